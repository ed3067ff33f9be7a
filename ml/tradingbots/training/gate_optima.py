"""Agents that adapt to regimes beside the best gate there is: a market whose regimes can be filtered exactly.

The market (`data.synthetic_gate`) turns from momentum to reversal and back. Bayes' filter with the true parameters says what
can be known of the regime; the gate that takes the sign of what it expects is the yardstick. Agents trade without costs, see
one bar at a time, train on one path and are judged on another, on the very bars that the gate is judged on.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.gaussian_hmm import GaussianHMM
from ml.tradingbots.components.regime_aware_agent import RegimeAwareAgent
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig
from ml.tradingbots.components.regime_columns import RegimeColumns
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.data.synthetic_gate import MARKER, GateMarket, gate_features, switching_autoregression
from ml.tradingbots.training.evaluation import act
from ml.tradingbots.training.market_recipes import N_ENVS, market_recipe
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

FloatArray: TypeAlias = npt.NDArray[np.float64]
Variant = Literal["both", "features only", "mixing only", "generalist", "marker seen", "trained on shuffled"]

N_BARS = 50_000
N_LANES = 250
BARS_PER_YEAR = 252
TOTAL_TIMESTEPS = 64_000
# Account features carry what an account gained, which tells a trader whether its rule is the right one just now. At a tenth of
# a percent a bar they are too small to be seen, so that a generalist without regimes is one without memory.
VOLATILITY = 0.001
MARKER_DISTANCE = 0.5
TWO_REGIMES, ONE_REGIME = (0.25, -0.25), (0.25,)

SWITCHES: dict[str, dict[str, bool]] = {
    "both": {},
    "features only": {"mix": False},
    "mixing only": {"observe_probabilities": False},
    "generalist": {"mix": False, "observe_probabilities": False},
    "marker seen": {"mix": False, "observe_probabilities": False},
    "trained on shuffled": {},
}
"""Which switches of `RegimeAwareConfig` each variant sets."""
SEEN: dict[str, tuple[str, ...]] = {"marker seen": ("log_return", MARKER)}
"""What each variant sees beside regimes, where it is more than the last return."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """An agent beside the best gate on unseen bars; Sharpe ratios are annualised by 252 bars."""

    agent_type: str
    variant: str
    n_regimes: int
    """Regimes that the market has; the detector always knows two."""
    seed: int
    sharpe_ratio: float
    """Of the agent's deterministic policy."""
    gate_sharpe_ratio: float
    """Of the sign of what the exact filter expects, on the same bars."""
    shuffled_sharpe_ratio: float
    """Of the same agent where the columns of regimes are shuffled in time."""
    num_timesteps: int
    """Transitions it trained on."""
    cpu_seconds: float
    """Processor time of the training."""

    @property
    def share(self) -> float:
        """Sharpe ratio over the gate's."""
        return self.sharpe_ratio / self.gate_sharpe_ratio


@dataclass(frozen=True, eq=False)
class Gate:
    """Prices with columns of regimes to train and to judge on, and the truth behind the latter."""

    regimes: RegimeColumns
    train: pd.DataFrame
    test: pd.DataFrame
    truth: GateMarket


def measure_gate(
    agent_type: str,
    variant: Variant,
    *,
    seed: int,
    phis: tuple[float, ...] = TWO_REGIMES,
    total_timesteps: int = TOTAL_TIMESTEPS,
    volatility: float = VOLATILITY,
    marker_distance: float = MARKER_DISTANCE,
    n_bars: int = N_BARS,
) -> GateResult:
    """Train an agent by its market recipe and judge it on another path.

    Args:
        agent_type: what the members are.
        variant: which of the two uses of regimes are on; "trained on shuffled" has both, and columns without meaning; "marker
            seen" has neither, and sees at each bar what the detector makes its columns of.
        seed: of agent, paths and starts.
        phis: of the market's regimes.
        total_timesteps: transitions to train on, all members together.
        volatility: of the market, per bar.
        marker_distance: of the marker's means from 0; the larger, the better regimes are known.
        n_bars: of each path.
    """
    gate = gate_of(seed, tuple(phis), volatility, marker_distance, n_bars)
    train = _shuffled(gate.train, seed) if variant == "trained on shuffled" else gate.train
    env = TradingEnvironment(train, gate_environment(agent_type, gate.regimes, variant))
    # Without costs nothing that is done now matters later.
    recipe = market_recipe(agent_type, discount=0.0)
    config = RegimeAwareConfig(agent_type=agent_type, agent_config=recipe, **SWITCHES[variant])
    agent = RegimeAwareAgent(env.observation_space_dim, env.action_space_dim, config, gate.regimes, seed=seed)
    before = time.process_time()
    training = RLTrainingConfig(total_timesteps=total_timesteps, n_envs=N_ENVS, progress=False, seed=seed)
    vector_env = env.vectorize(N_ENVS, seed=seed, random_start=True)
    metrics = train_rl_agent(agent, vector_env, training)
    spent = time.process_time() - before
    shuffled = _shuffled(gate.test, seed)
    earned, bars = walked(agent, shuffled if variant == "trained on shuffled" else gate.test, env.config)
    astray, _ = walked(agent, shuffled, env.config)
    return GateResult(
        agent_type=agent_type,
        variant=variant,
        n_regimes=len(phis),
        seed=seed,
        sharpe_ratio=sharpe(earned),
        gate_sharpe_ratio=sharpe(gate_returns(gate.truth, bars)),
        shuffled_sharpe_ratio=sharpe(astray),
        num_timesteps=metrics.num_timesteps,
        cpu_seconds=spent,
    )


@functools.lru_cache(maxsize=2)
def gate_of(seed: int, phis: tuple[float, ...], volatility: float, marker_distance: float, n_bars: int) -> Gate:
    """Make both paths, and the columns by a detector of two regimes that was fitted on the first."""
    train, test = (
        switching_autoregression(n_bars, phis, marker_distance=marker_distance, volatility=volatility, seed=path + seed)
        for path in (1_000, 2_000)
    )
    regimes = RegimeColumns(GaussianHMM(n_regimes=2, covariance="full"), inputs=gate_features).fit(train.prices)
    return Gate(regimes, regimes.add_to(train.prices), regimes.add_to(test.prices), test)


def gate_environment(agent_type: str, regimes: RegimeColumns, variant: str = "both") -> TradingEnvConfig:
    """Return how agents trade here: they see the last return and the columns of regimes; the marker in one variant alone."""
    actions: Literal["discrete", "continuous"] = "discrete" if agent_type == "dqn" else "continuous"
    return TradingEnvConfig(
        window_size=1,
        episode_length=500,
        commission=0.0,
        action_type=actions,
        features=(*SEEN.get(variant, ("log_return",)), *regimes.names),
        use_extra_columns=False,
    )


def walked(agent: Any, prices: pd.DataFrame, config: TradingEnvConfig) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Walk an agent's deterministic policy over prices, many stretches side by side.

    Returns:
        Simple returns of the accounts, and the bars that the decisions were made at; (n_steps, n_lanes) each.
    """
    whole = dataclasses.replace(config, random_start=False, episode_length=None)
    env = TradingVectorEnv(prices, whole, n_envs=N_LANES)
    length = (env.market.last_bar - env.market.first_bar) // N_LANES
    observation, _ = env.reset(options={"start_bar": env.market.first_bar + length * torch.arange(N_LANES)})
    earned, bars = [], []
    # One bar less than a stretch, so that no account reaches the end of the data and starts over.
    for _ in range(length - 1):
        bars.append(env.bar.numpy().copy())
        observation, *_ = env.step(act(agent, observation, env.action_mask()))
        earned.append(env.account.growth.numpy() - 1.0)
    return np.array(earned), np.array(bars)


def gate_returns(market: GateMarket, bars: npt.NDArray[np.int64]) -> FloatArray:
    """Return what the sign of the expected return earns from the bars given; of their shape."""
    returns: FloatArray = np.sign(market.expected_return[bars]) * np.expm1(market.log_returns[bars + 1])
    return returns


def sharpe(returns: FloatArray) -> float:
    """Annualised Sharpe ratio of all bars together; 0 for an account that never moves."""
    deviation = float(returns.std(ddof=1))
    return float(returns.mean()) / deviation * BARS_PER_YEAR**0.5 if deviation > 0.0 else 0.0


def _shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a table whose columns of regimes are in a random order in time, each bar's together."""
    names = [name for name in table.columns if name.startswith("regime_")]
    known = np.flatnonzero(table[names].notna().all(axis=1))
    values = table[names].to_numpy(copy=True)
    values[known] = values[np.random.default_rng(seed).permutation(known)]
    shuffled = table.copy()
    shuffled[names] = values
    return shuffled
