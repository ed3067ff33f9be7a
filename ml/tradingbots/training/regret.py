"""How close an agent comes to the best that anyone could do: markets whose optimal policy under costs is known.

An agent trains on one path of a synthetic market and is judged on another that it never saw, beside the optimal policy on
the very same bars and accounts, so that what is luck is shared by both.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml.tradingbots.components.action_space import BUY, HOLD, SELL
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.data.optimal import MarkovMarket, OptimalPolicy, optimal_policy
from ml.tradingbots.data.synthetic import SyntheticMarket, autoregressive, ornstein_uhlenbeck, random_walk
from ml.tradingbots.training.evaluation import act
from ml.tradingbots.training.market_recipes import N_ENVS, market_recipe
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

KnownMarket = Literal["ar1", "ou", "faint_ar1", "random_walk"]

N_TRAIN_BARS = 100_000
N_TEST_BARS = 256_000
# Accounts that walk the test path side by side, each a stretch of its own.
N_LANES = 256


@dataclass(frozen=True, kw_only=True)
class RegretResult:
    """An agent beside the optimum on unseen bars. Gains are mean log returns per bar, over flat (which earns 0)."""

    market: str
    seed: int
    optimum: float
    """Gain of the optimal policy on the test bars."""
    gain: float
    """Gain of the agent's deterministic policy on the same bars."""
    standard_error: float
    """Of `gain`, over accounts."""
    turnover: float
    """Mean turnover of the agent per bar."""
    exposure: float
    """Mean absolute weight that the agent held."""
    wall_seconds: float
    """Time the training took."""
    cpu_seconds: float
    """Processor time the training took, all threads."""
    num_timesteps: int
    """Transitions the agent trained on."""

    @property
    def ratio(self) -> float:
        """Gain over the optimum's gain; NaN where there is none to be had."""
        return self.gain / self.optimum if self.optimum > 1e-9 else float("nan")


@dataclass(frozen=True)
class Case:
    """A market at a cost, and the discount at which agent and optimum look ahead."""

    market: KnownMarket
    cost_rate: float
    """Commission as a fraction of notional."""
    discount: float
    """Per bar."""


CASES = {
    "ar1": Case("ar1", 0.0005, 0.9),
    "ou": Case("ou", 0.0005, 0.95),
    "costs above the edge": Case("faint_ar1", 0.005, 0.9),
    "random walk": Case("random_walk", 0.0005, 0.9),
}

TRAINING_RECIPE = RLTrainingConfig(total_timesteps=400_000, n_envs=N_ENVS, progress=False)


def regret_of(
    agent_type: str, case: str, *, seed: int, total_timesteps: int = 400_000, config: Any = None
) -> RegretResult:
    """Train an agent by its recipe on one of `CASES` and judge it.

    Args:
        agent_type: a name of `list_available_agents()`; DQN is judged beside the optimum of its own three choices.
        case: a name of `CASES`.
        seed: of agent, training path and starts.
        total_timesteps: transitions to train on.
        config: the agent's config; None takes the recipe of `market_recipes`.
    """
    chosen = CASES[case]
    config = config or market_recipe(agent_type, discount=chosen.discount)
    return measure_regret(
        lambda state_dim, action_dim: create_rl_agent(agent_type, state_dim, action_dim, config, seed=seed),
        dataclasses.replace(TRAINING_RECIPE, total_timesteps=total_timesteps, seed=seed),
        chosen.market,
        seed=seed,
        cost_rate=chosen.cost_rate,
        discount=chosen.discount,
        env_config=regret_environment(agent_type),
    )


def regret_environment(agent_type: str) -> TradingEnvConfig:
    """Return how an agent trades the known markets: it is shown one bar, and DQN chooses among hold, buy and sell."""
    actions: Literal["discrete", "continuous"] = "discrete" if agent_type == "dqn" else "continuous"
    return TradingEnvConfig(window_size=1, episode_length=500, action_type=actions)


class Walk(NamedTuple):
    """What a policy did on a path."""

    gains: npt.NDArray[np.float64]
    """Mean log return per bar of each account; (n_lanes,)."""
    turnover: float
    """Mean turnover per bar."""
    exposure: float
    """Mean absolute weight."""


def known_market(name: KnownMarket, n_bars: int, *, seed: int) -> SyntheticMarket:
    """Make a market with a known optimum.

    `ar1` has phi 0.3 and `ou` mean reversion 0.1, both with 1% volatility, as the random walk. `faint_ar1` has phi 0.02 and
    5% volatility and is a fair game on average: an edge of 8 basis points a bar, at risk enough that any position held for
    nothing shows.
    """
    if name == "ar1":
        return autoregressive(n_bars, phi=0.3, volatility=0.01, seed=seed)
    if name == "ou":
        return ornstein_uhlenbeck(n_bars, reversion=0.1, volatility=0.01, seed=seed)
    if name == "faint_ar1":
        return autoregressive(n_bars, phi=0.02, volatility=0.05, mean_log_return=-0.5 * 0.05**2, seed=seed)
    if name == "random_walk":
        return random_walk(n_bars, volatility=0.01, seed=seed)
    raise ValueError(f"market must be ar1, ou, faint_ar1 or random_walk, got {name!r}")


def measure_regret(
    make_agent: Callable[[int, int], Any],
    training: RLTrainingConfig,
    market: KnownMarket,
    *,
    seed: int,
    cost_rate: float = 0.0005,
    discount: float = 0.99,
    env_config: TradingEnvConfig | None = None,
) -> RegretResult:
    """Train an agent on a market with a known optimum and judge it on bars it never saw.

    Args:
        make_agent: called with (state_dim, action_dim).
        training: budget and settings of the run.
        market: which market.
        seed: of the training path; the test path has another.
        cost_rate: commission as a fraction of notional (0.0005 is 5 basis points).
        discount: of the optimal policy.
        env_config: settings of the environment beside the commission; None shows the agent one bar.

    Returns:
        The agent beside the optimum.
    """
    config = env_config or TradingEnvConfig(window_size=1, episode_length=500)
    config = dataclasses.replace(config, commission=cost_rate)
    env = TradingEnvironment(known_market(market, N_TRAIN_BARS, seed=1_000 + seed).prices, config)
    agent = make_agent(env.observation_space_dim, env.action_space_dim)
    wall, cpu = time.perf_counter(), time.process_time()
    vector_env = env.vectorize(training.n_envs, seed=seed, random_start=training.random_start)
    metrics = train_rl_agent(agent, vector_env, training)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    unseen = known_market(market, N_TEST_BARS, seed=2_000 + seed)
    assert isinstance(unseen.parameters, MarkovMarket)
    policy = optimal_policy(unseen.parameters, cost_rate=cost_rate, discount=discount, actions=config.action_type)
    gains, turnover, exposure = gain_of_agent(agent, unseen, config)
    best, _, _ = gain_of_optimum(policy, unseen, config)
    return RegretResult(
        market=market,
        seed=seed,
        optimum=float(best.mean()),
        gain=float(gains.mean()),
        standard_error=float(gains.std(ddof=1) / len(gains) ** 0.5),
        turnover=turnover,
        exposure=exposure,
        wall_seconds=wall,
        cpu_seconds=cpu,
        num_timesteps=metrics.num_timesteps,
    )


def gain_of_agent(agent: Any, market: SyntheticMarket, config: TradingEnvConfig) -> Walk:
    """Walk an agent's deterministic policy over a market."""
    return _walk(market, config, lambda env, observation: act(agent, observation, env.action_mask()))


def gain_of_optimum(policy: OptimalPolicy, market: SyntheticMarket, config: TradingEnvConfig) -> Walk:
    """Walk the optimal policy over the same accounts, in the same environment; it is told the market's state."""

    def decide(env: TradingVectorEnv, _observation: Tensor) -> Tensor:
        held = env.account.weight.numpy()
        target = policy.target_weight(market.state[env.bar.numpy()], held)
        if config.action_type == "discrete":
            return torch.as_tensor(np.select([target == held, target == policy.max_weight], [HOLD, BUY], SELL))
        return torch.as_tensor(target)[:, None]

    return _walk(market, config, decide)


def _walk(
    market: SyntheticMarket, config: TradingEnvConfig, decide: Callable[[TradingVectorEnv, Tensor], Tensor]
) -> Walk:
    whole = dataclasses.replace(config, random_start=False, episode_length=None)
    env = TradingVectorEnv(market.prices, whole, n_envs=N_LANES)
    first = env.market.first_bar
    length = (env.market.last_bar - first) // N_LANES
    observation, _ = env.reset(options={"start_bar": first + length * torch.arange(N_LANES)})
    turnover, exposure = torch.zeros(2, N_LANES, dtype=torch.float64)
    # One bar less than a stretch, so that no account reaches the end of the data and starts over.
    for _ in range(length - 1):
        observation, *_ = env.step(decide(env, observation))
        turnover += env.account.turnover
        exposure += env.account.weight.abs()
    growth = (env.account.equity / config.initial_balance).log() / (length - 1)
    n_steps = length - 1
    return Walk(np.asarray(growth), float(turnover.mean() / n_steps), float(exposure.mean() / n_steps))
