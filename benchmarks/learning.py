"""How long our agents and Stable-Baselines3's learn until they earn 90% and 97% of a computed optimum on unseen bars.

Part of `agents.py`. One stopwatch serves both: it runs while an agent collects and learns, and stands while the
deterministic policy is judged. Theirs learn in two forms of the same market: in `TradingVectorEnv`, which ours lends
them, and in an environment per account under `VecNormalize`, which is how its users have it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rivals import (
    N_SCORE_BARS,
    Algorithm,
    SB3Settings,
    make_agent,
    make_config,
    unseen_path,
)
from stable_baselines3.common.callbacks import BaseCallback

from ml.tradingbots.components import TradingVectorEnv, create_rl_agent
from ml.tradingbots.components.market import Market
from ml.tradingbots.training.market_recipes import MARKET_RECIPES
from ml.tradingbots.training.regret import CASES, N_TRAIN_BARS, gain_of_agent, known_market

SHARES = (0.9, 0.97)
EVAL_EVERY = 256
# What schedules span, for both; who has not got there by `MAX_TIMESTEPS` is stopped.
BUDGET = 400_000
MAX_TIMESTEPS = 200_000


@dataclass(frozen=True)
class Fast:
    """Settings of ours for the shortest time."""

    n_envs: int
    """Accounts."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the config that differ from `MARKET_RECIPES`."""


FAST_RECIPES: Mapping[Algorithm, Fast] = {name: Fast(64) for name in ("ppo", "a2c", "dqn", "sac", "td3", "ddpg")}  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the stopwatch showed at one judgement."""

    num_timesteps: int
    """Transitions so far."""
    wall_seconds: float
    """Time of collecting and learning alone."""
    cpu_seconds: float
    """Processor time of it, all threads."""
    share: float
    """Gain on unseen bars over the optimum's."""


class Stopwatch:
    """Judges a learner now and then, while its clocks stand.

    Args:
        algorithm: what learns; DQN is judged beside the optimum of its own three choices.
        case: a name of `CASES`.
        seed: of the path that is judged on.
        shares: of the optimum; the watch is done when the highest is reached.
        every: timesteps between judgements.
    """

    def __init__(
        self, algorithm: Algorithm, case: str, *, seed: int, shares: Sequence[float] = SHARES, every: int = EVAL_EVERY
    ) -> None:
        self.unseen, self.best = unseen_path(algorithm, case, N_SCORE_BARS, seed)
        self.config = make_config(algorithm, CASES[case])
        self.shares, self.every, self.next = tuple(shares), every, every
        self.marks: list[Mark] = []
        self.start()

    def start(self) -> None:
        """Set the clocks to 0 and let them run."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def look(self, num_timesteps: int, agent: Any) -> None:
        """Judge an agent if it is time to."""
        if num_timesteps < self.next:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        self.next = num_timesteps + self.every
        gain = gain_of_agent(agent, self.unseen, self.config).gains.mean()
        self.marks.append(
            Mark(
                num_timesteps=num_timesteps,
                wall_seconds=wall - self.wall,
                cpu_seconds=cpu - self.cpu,
                share=float(gain / self.best.gains.mean()),
            )
        )
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    @property
    def done(self) -> bool:
        """Whether the highest share was reached, or time is up."""
        return bool(self.marks) and (
            self.marks[-1].share >= max(self.shares) or self.marks[-1].num_timesteps >= MAX_TIMESTEPS
        )

    def first(self, share: float) -> Mark | None:
        """Return when a share was first reached; None if it never was."""
        return next((mark for mark in self.marks if mark.share >= share), None)


class _Watched(BaseCallback):
    """Lets the stopwatch look at theirs between blocks of updates."""

    def __init__(self, watch: Stopwatch, agent: Any) -> None:
        super().__init__()
        self.watch, self.agent = watch, agent

    def _on_training_start(self) -> None:
        self.watch.start()

    def _on_rollout_start(self) -> None:
        self.watch.look(self.num_timesteps, self.agent)

    def _on_step(self) -> bool:
        return not self.watch.done


def learn_theirs(algorithm: Algorithm, case: str, *, seed: int, settings: SB3Settings) -> Stopwatch:
    """Let theirs learn until the stopwatch is done."""
    watch = Stopwatch(algorithm, case, seed=seed)
    agent = make_agent(algorithm, CASES[case], seed=seed, settings=settings)
    agent.model.learn(BUDGET, callback=_Watched(watch, agent), log_interval=None)  # type: ignore[arg-type]
    return watch


def learn_ours(algorithm: Algorithm, case: str, *, seed: int, n_envs: int, config: Any) -> Stopwatch:
    """Let ours learn until the stopwatch is done, by its own loop, as `train_rl_agent` sets it up."""
    watch = Stopwatch(algorithm, case, seed=seed)
    chosen = CASES[case]
    env_config = dataclasses.replace(make_config(algorithm, chosen), random_start=True)
    market = Market.of(known_market(chosen.market, N_TRAIN_BARS, seed=1_000 + seed).prices, env_config, None)
    env = TradingVectorEnv(market, env_config, n_envs=n_envs, seed=seed)
    agent = create_rl_agent(algorithm, env.observation_space_dim, env.action_space_dim, config, seed=seed)
    agent.bind(env)
    agent.normalizer.fix(*env.observation_statistics())
    agent.scale_rewards = True
    agent.schedule_timesteps = BUDGET
    watch.start()
    for report in agent.training_steps(env):
        watch.look(report.num_timesteps, agent)
        if watch.done:
            break
    return watch


def fast_recipe(algorithm: Algorithm, case: str) -> Any:
    """Return our config for the shortest time, at the discount of a case."""
    changes = {"gamma": CASES[case].discount, **FAST_RECIPES[algorithm].changes}
    return dataclasses.replace(MARKET_RECIPES[algorithm], **changes)
