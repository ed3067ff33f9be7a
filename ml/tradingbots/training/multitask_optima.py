"""How close an agent of several tasks comes to the best that anyone could do in each: markets whose optimum is known.

All are AR(1) with 1% volatility, no costs and weights in [−1, 1]: the optimum holds the sign of phi times the last log return.
An agent is judged on a path of each market that it never saw, by its mean log return per bar over the optimum's on the very
same bars. Without costs a decision changes nothing that a later one meets, so agents look one bar ahead (discount 0).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml.tradingbots.components.a2c_agent import A2CConfig
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.multitask_agent import MultiTaskConfig, MultiTaskRLAgent
from ml.tradingbots.components.rl_agents import PPOConfig
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.synthetic import SyntheticMarket, autoregressive
from ml.tradingbots.training.regret import gain_of_agent

VOLATILITY = 0.01
CONFLICT_PHI = 0.2
SHARED_PHI = 0.3
N_ASSETS = 20
# Assets of them that are judged, each on bars of its own.
N_JUDGED = 5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, and for how long."""

    window_size: int
    """Log returns that an observation shows."""
    n_train_bars: int
    """Bars of each task."""
    timesteps_per_task: int
    n_envs: int
    """Accounts in each task."""
    config: MultiTaskConfig
    n_test_bars: int = 128_000
    """Bars of each path that is judged on."""

    @property
    def action_type(self) -> Literal["continuous", "discrete"]:
        """Kind of actions, the agent's."""
        discrete = getattr(self.config.agent_config, "action_type", "continuous") == "discrete"
        return "discrete" if discrete else "continuous"


# Chosen on seeds 100 to 105. For CONFLICT and REWARDS the seeds that are reported had no part in it; of SCARCE see there.
_PPO = PPOConfig(
    hidden_dims=(16,), gamma=0.0, gae_lambda=0.0, n_steps=32, batch_size=1_024, n_epochs=4, learning_rate=3e-3
)
_SAC = SACConfig(
    hidden_dims=(16,),
    gamma=0.0,
    batch_size=512,
    learning_rate=3e-3,
    alpha=0.1,
    target_entropy=-2.0,
    learning_starts=5_000,
)
CONFLICT = Recipe(
    window_size=1,
    n_train_bars=100_000,
    timesteps_per_task=100_000,
    n_envs=32,
    config=MultiTaskConfig(agent_type="ppo", agent_config=_PPO, trunk_dims=(16,), embedding_dim=4),
)
# With SAC, whose critic fits rewards as they are; PPO's advantages are put on one scale in any case.
REWARDS = dataclasses.replace(
    CONFLICT,
    timesteps_per_task=50_000,
    config=MultiTaskConfig(agent_type="sac", agent_config=_SAC, trunk_dims=(16,), embedding_dim=4),
)
# With ε = 1 steps are in proportion to gradients: Adam's, all of one size, move an input that is noise as far as the one that
# is not, and with 32 inputs and 300 bars of each asset that is what is learned then. Choices, because the sign alone counts: a
# weight would have to be learned until it is at its bound, which takes as long as learning the noise. Chosen on seeds 100 to
# 105, too, but after two earlier choices, which learned a weight, had been seen on the reported seeds.
SCARCE = Recipe(
    window_size=32,
    n_train_bars=300,
    timesteps_per_task=40_000,
    n_envs=16,
    config=MultiTaskConfig(
        agent_type="a2c",
        agent_config=A2CConfig(
            action_type="discrete",
            hidden_dims=(16,),
            gamma=0.0,
            gae_lambda=0.0,
            n_steps=8,
            learning_rate=0.6,
            learning_rate_schedule="linear",
            epsilon=1.0,
            normalize_advantages=True,
            max_grad_norm=None,
        ),
        trunk_dims=(8,),
        embedding_dim=1,
        heads="shared",
    ),
    # Accounts walk about as long as in training: drawdowns of longer walks were never seen there.
    n_test_bars=32_000,
)


class SignOfLast:
    """The optimal policy of an AR(1) without costs: fully in the direction of phi times the last log return.

    Args:
        phi: of the market.
        window_size: log returns that an observation begins with; the last one decides.
    """

    def __init__(self, phi: float, window_size: int) -> None:
        self.weights = torch.zeros(window_size)
        self.weights[-1] = phi

    def select_action(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """Return weights; (batch, 1)."""
        return torch.sign(observation[:, : len(self.weights)] @ self.weights)[:, None]


class SignOfFit(SignOfLast):
    """The sign of what least squares expects from the window, fitted on one asset's bars: what a linear model makes of them.

    Args:
        log_returns: of the training bars; (n_bars,).
        window_size: regressors.
    """

    def __init__(self, log_returns: npt.NDArray[np.float64], window_size: int) -> None:
        super().__init__(0.0, window_size)
        windows = np.lib.stride_tricks.sliding_window_view(log_returns[1:-1], window_size)
        fitted = np.linalg.lstsq(windows, log_returns[window_size + 1 :], rcond=None)[0]
        self.weights = torch.as_tensor(fitted, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class TaskShares:
    """What was earned of what was to be had, on unseen bars: gains over the optimum's."""

    shares: dict[str, float]
    """By task or policy."""
    cpu_seconds: float
    """Processor time of the training."""
    num_timesteps: int
    """Transitions learned from, all tasks."""
    swapped: dict[str, float] = field(default_factory=dict)
    """By task, what the policy of the other one earned there; for two tasks."""

    @property
    def worst(self) -> float:
        """Least share."""
        return min(self.shares.values())

    @property
    def mean(self) -> float:
        """Mean share."""
        return sum(self.shares.values()) / len(self.shares)


def conflict_shares(*, seed: int, identity: bool = True, recipe: Recipe = CONFLICT) -> TaskShares:
    """Train on two markets that ask for opposite policies, phi ±0.2.

    Args:
        seed: of agent, paths and starts.
        identity: whether the networks are told the task; a policy for both earns nothing over both, whatever it is.
        recipe: what is trained.
    """
    phis = {"repeats": CONFLICT_PHI, "reverses": -CONFLICT_PHI}
    return _shares(phis, _told(recipe, identity=identity), seed=seed)


def reward_shares(*, seed: int, pooled: bool = False, recipe: Recipe = REWARDS) -> TaskShares:
    """Train on the same two markets with rewards ×1 in one and ×100 in the other.

    Args:
        seed: of agent, paths and starts.
        pooled: whether all rewards are divided by one deviation, as an agent of one task would.
        recipe: what is trained.
    """
    phis = {"rewards ×1": CONFLICT_PHI, "rewards ×100": -CONFLICT_PHI}
    chosen = _told(recipe, return_scaling="pooled" if pooled else "per_task")
    return _shares(phis, chosen, seed=seed, reward_scalings=(1.0, 100.0))


def scarce_shares(
    *,
    seed: int,
    n_assets: int = N_ASSETS,
    n_judged: int = N_JUDGED,
    timesteps_per_asset: int | None = None,
    recipe: Recipe = SCARCE,
) -> TaskShares:
    """Train on 300 bars of each of several assets with the same phi, 0.3, and judge one more that was not trained.

    Args:
        seed: of agent, paths and starts.
        n_assets: 1 is the control: the same network, the same bars of the first asset and nothing else.
        n_judged: assets judged, the first ones; and the unseen one.
        timesteps_per_asset: transitions; None takes the recipe's.
        recipe: what is trained.

    Returns:
        Shares of "assets" (their mean), "unseen" and "linear" (`SignOfFit` on the first asset's bars).
    """
    steps = timesteps_per_asset or recipe.timesteps_per_task
    chosen = dataclasses.replace(recipe, timesteps_per_task=steps)
    agent, seconds = _trained({f"asset {n}": SHARED_PHI for n in range(n_assets)}, chosen, seed=seed)
    last = _market(SHARED_PHI, chosen.n_train_bars, _train_seed(seed, N_ASSETS))
    policies: dict[str, Any] = {name: agent.for_task(name) for name in agent.names[:n_judged]}
    policies["unseen"] = agent.for_unseen(_environment(last, chosen))
    first = _market(SHARED_PHI, chosen.n_train_bars, _train_seed(seed, 0))
    policies["linear"] = SignOfFit(first.state, chosen.window_size)
    # By name, so that forms with other numbers of assets are judged on the same paths; the linear one on its own asset's.
    numbers = {name: n for n, name in enumerate(agent.names)} | {"unseen": N_ASSETS, "linear": 0}
    unseen = {name: _test_market(SHARED_PHI, seed, numbers[name], chosen) for name in policies}
    found = {name: _share(policy, unseen[name], SHARED_PHI, chosen) for name, policy in policies.items()}
    own = [found[name] for name in agent.names[:n_judged]]
    shares = {"assets": sum(own) / len(own), "unseen": found["unseen"], "linear": found["linear"]}
    return TaskShares(shares=shares, cpu_seconds=seconds, num_timesteps=agent.learner.num_timesteps)


def _shares(
    phis: dict[str, float],
    recipe: Recipe,
    *,
    seed: int,
    reward_scalings: tuple[float, ...] | None = None,
) -> TaskShares:
    agent, seconds = _trained(phis, recipe, seed=seed, reward_scalings=reward_scalings)
    shares: dict[str, float] = {}
    swapped: dict[str, float] = {}
    for number, (name, phi) in enumerate(phis.items()):
        market = _test_market(phi, seed, number, recipe)
        for found, acting in ((shares, name), (swapped, agent.names[1 - number])):
            found[name] = _share(agent.for_task(acting, scaled_as=name), market, phi, recipe)
    steps = agent.learner.num_timesteps
    return TaskShares(shares=shares, cpu_seconds=seconds, num_timesteps=steps, swapped=swapped)


def _trained(
    phis: dict[str, float], recipe: Recipe, *, seed: int, reward_scalings: tuple[float, ...] | None = None
) -> tuple[MultiTaskRLAgent, float]:
    """Return an agent of tasks with these phis, and the processor time of its training."""
    scalings = reward_scalings or (1.0,) * len(phis)
    environments = {
        name: _environment(_market(phi, recipe.n_train_bars, _train_seed(seed, number)), recipe, scalings[number])
        for number, (name, phi) in enumerate(phis.items())
    }
    agent = MultiTaskRLAgent(environments, recipe.config, seed=seed)
    started = time.process_time()
    agent.train(recipe.timesteps_per_task * len(phis), n_envs=recipe.n_envs)
    return agent, time.process_time() - started


def _told(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **changes))


def _environment(market: SyntheticMarket, recipe: Recipe, reward_scaling: float = 1.0) -> TradingEnvironment:
    config = TradingEnvConfig(
        window_size=recipe.window_size,
        commission=0.0,
        reward_scaling=reward_scaling,
        action_type=recipe.action_type,
    )
    return TradingEnvironment(market.prices, config)


def _market(phi: float, n_bars: int, seed: int) -> SyntheticMarket:
    return autoregressive(n_bars, phi=phi, volatility=VOLATILITY, seed=seed)


def _train_seed(seed: int, number: int) -> int:
    return 10_000 + 100 * seed + number


def _test_market(phi: float, seed: int, number: int, recipe: Recipe) -> SyntheticMarket:
    return _market(phi, recipe.n_test_bars, 1_000_000 + 100 * seed + number)


def _share(policy: Any, market: SyntheticMarket, phi: float, recipe: Recipe) -> float:
    """Return the gain of a policy over the optimum's on the same bars."""
    weights = TradingEnvConfig(window_size=recipe.window_size, commission=0.0)
    own = weights if isinstance(policy, SignOfLast) else dataclasses.replace(weights, action_type=recipe.action_type)
    best = SignOfLast(phi, recipe.window_size)
    gain, most = (
        float(gain_of_agent(each, market, config).gains.mean()) for each, config in ((policy, own), (best, weights))
    )
    return gain / most
