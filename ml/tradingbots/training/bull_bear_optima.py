"""Agents that adapt to bull, sideways and bear markets beside what can be known of these.

The market is the three-regime case of `data.synthetic_regimes`: means of +12, 0 and −20 basis points a bar at volatilities of
0.8%, 0.6% and 2%. The yardstick knows the true parameters, filters exactly, and holds the sign of what it expects. A market
that rises on average pays whoever holds it, so what counts is the Sharpe ratio above that of buy-and-hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.gaussian_hmm import GaussianHMM
from ml.tradingbots.components.regime_aware_agent import RegimeAwareAgent
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig
from ml.tradingbots.components.regime_columns import RegimeColumns
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.data.synthetic import SyntheticMarket, regime_switching
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES
from ml.tradingbots.training.gate_optima import SWITCHES, Variant, sharpe, walked
from ml.tradingbots.training.market_recipes import N_ENVS, market_recipe
from ml.tradingbots.training.regime_optima import true_model
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

CASE = "bull_sideways_bear"
N_TRAIN_BARS, N_TEST_BARS = 50_000, 200_000
TOTAL_TIMESTEPS = 200_000


@dataclass(frozen=True, kw_only=True)
class BullBearResult:
    """An agent on unseen bars beside what could be known there; Sharpe ratios are annualised by 252 bars."""

    agent_type: str
    variant: str
    seed: int
    sharpe_ratio: float
    """Of the agent's deterministic policy."""
    best_sharpe_ratio: float
    """Of the sign of what the exact filter expects."""
    hold_sharpe_ratio: float
    """Of buy-and-hold."""
    cpu_seconds: float
    """Processor time of the training, without the detector's fit."""

    @property
    def share(self) -> float:
        """Sharpe ratio over that of the exact filter, both above that of buy-and-hold."""
        return (self.sharpe_ratio - self.hold_sharpe_ratio) / (self.best_sharpe_ratio - self.hold_sharpe_ratio)


def measure_bull_bear(
    agent_type: str,
    variant: Variant,
    *,
    seed: int,
    total_timesteps: int = TOTAL_TIMESTEPS,
    n_train_bars: int = N_TRAIN_BARS,
    n_test_bars: int = N_TEST_BARS,
) -> BullBearResult:
    """Train an agent by its market recipe on one path, without costs, and judge it on another.

    Args:
        agent_type: what the members are; continuous.
        variant: which uses of regimes are on; see `gate_optima.SWITCHES`.
        seed: of agent, paths and starts.
        total_timesteps: transitions to train on, all members together.
        n_train_bars: length of the path to learn from.
        n_test_bars: length of the path to be judged on.
    """
    train, test = _market(n_train_bars, 1_000 + seed), _market(n_test_bars, 2_000 + seed)
    regimes = RegimeColumns(GaussianHMM(n_regimes=3)).fit(train.prices)
    config = TradingEnvConfig(
        window_size=1,
        episode_length=500,
        commission=0.0,
        features=("log_return", *regimes.names),
        use_extra_columns=False,
    )
    env = TradingEnvironment(regimes.add_to(train.prices), config)
    recipe = market_recipe(agent_type, discount=0.0)
    adapting = RegimeAwareConfig(agent_type=agent_type, agent_config=recipe, **SWITCHES[variant])
    agent = RegimeAwareAgent(env.observation_space_dim, env.action_space_dim, adapting, regimes, seed=seed)
    before = time.process_time()
    training = RLTrainingConfig(total_timesteps=total_timesteps, n_envs=N_ENVS, progress=False, seed=seed)
    train_rl_agent(agent, env.vectorize(N_ENVS, seed=seed, random_start=True), training)
    spent = time.process_time() - before
    earned, bars = walked(agent, regimes.add_to(test.prices), config)
    # Bar t of the returns is bar t + 1 of the prices; the decision at bar t is paid the return of the bar after it.
    returns = np.diff(np.log(test.prices["close"].to_numpy()))
    model = true_model(CASE)
    expected = model.predict_next(returns) @ model.means_[:, 0]
    paid = np.expm1(returns[bars])
    return BullBearResult(
        agent_type=agent_type,
        variant=variant,
        seed=seed,
        sharpe_ratio=sharpe(earned),
        best_sharpe_ratio=sharpe(np.sign(expected[bars - 1]) * paid),
        hold_sharpe_ratio=sharpe(paid),
        cpu_seconds=spent,
    )


def _market(n_bars: int, seed: int) -> SyntheticMarket:
    case = REGIME_CASES[CASE]
    return regime_switching(
        n_bars,
        drifts=case.drifts,
        volatilities=case.volatilities,
        stay_probability=case.stay_probability,
        seed=seed,
    )
