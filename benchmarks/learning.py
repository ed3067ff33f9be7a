"""How long our agents and Stable-Baselines3's learn until they earn 90% and 97% of a computed optimum on unseen bars.

Part of `agents.py`. One stopwatch serves both: it runs while an agent collects and learns, and stands while the
deterministic policy is judged. Theirs learn in two forms of the same market: in `TradingVectorEnv`, which ours lends
them, and in an environment per account under `VecNormalize`, which is how its users have it.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rivals import (
    N_SCORE_BARS,
    SB3_SETTINGS,
    Algorithm,
    SB3Settings,
    make_agent,
    make_config,
    unseen_path,
)
from stable_baselines3.common.callbacks import BaseCallback

from ml.tradingbots.components import (
    A2CConfig,
    DDPGConfig,
    DQNConfig,
    PPOConfig,
    SACConfig,
    TD3Config,
    TradingVectorEnv,
    create_rl_agent,
)
from ml.tradingbots.components.market import Market
from ml.tradingbots.training.regret import CASES, N_TRAIN_BARS, gain_of_agent, known_market

Form = Literal["vector", "scalar"]
Learner = Literal["ours", "theirs, vector", "theirs, scalar"]
LEARNERS: tuple[Learner, ...] = ("ours", "theirs, vector", "theirs, scalar")
SHARES = (0.9, 0.97)
EVAL_EVERY = 256
# What schedules span, for both; who has not got there by `MAX_TIMESTEPS` is stopped.
BUDGET = 400_000
MAX_TIMESTEPS = 200_000


# Settings for a short time, not for the last percent, which `market_recipes` is for. Both were given the same ones to try on
# AR(1) seed 0: 64 to 512 accounts (8 to 128 in the customary form), rollouts of 1 to 8 steps or 1 to 4 gradient steps per
# vector step, learning from 256, 512 or 1,024 timesteps, batches of 128, 256 and 512, learning rates of 3e-3, 5e-3 and 1e-2.
#
# Ours are what then reached 97% in the least CPU time. Only for TD3 and DDPG, 1e-2 and batches of 128 were left out: some of
# the settings tried with them never learned, and on one of the five seeds neither did a first choice that had 1e-2.
#
# Theirs, chosen like that, did badly on other seeds. To be fair to them, the best few were run on all five seeds of AR(1), and
# taken is what learned on all of them with the least sum of the median times to 90% and 97%: a choice that ours never had.
_OURS: dict[str, Any] = {"hidden_dim": 64, "learning_rate": 5e-3, "batch_size": 256, "tau": 0.1}
_ON_POLICY: dict[str, Any] = {"gae_lambda": 0.8, "log_std_init": 1.0}

FAST_RECIPES: Mapping[Algorithm, tuple[int, Any]] = {
    "ppo": (64, PPOConfig(n_steps=4, batch_size=256, n_epochs=5, learning_rate=3e-3, **_ON_POLICY)),
    "a2c": (
        512,
        A2CConfig(
            n_steps=1,
            learning_rate=3e-3,
            learning_rate_schedule="linear",
            normalize_advantages=True,
            optimizer="rmsprop",
            **_ON_POLICY,
        ),
    ),
    "dqn": (
        256,
        DQNConfig(
            **_OURS,
            gradient_steps=4,
            learning_rate_schedule="linear",
            learning_starts=512,
            target_update_interval=256,
            epsilon_fraction=0.02,
        ),
    ),
    "sac": (
        512,
        SACConfig(
            **{**_OURS, "learning_rate": 1e-2},
            gradient_steps=4,
            learning_starts=1_024,
            alpha=0.002,
            target_entropy=-3.5,
        ),
    ),
    "td3": (
        512,
        TD3Config(
            **_OURS,
            gradient_steps=4,
            learning_starts=1_024,
            policy_delay=1,
            target_noise=0.05,
            target_noise_clip=0.1,
            noise_std=0.5,
        ),
    ),
    "ddpg": (
        512,
        DDPGConfig(**_OURS, gradient_steps=2, learning_starts=1_024, exploration_noise="gaussian", noise_std=0.5),
    ),
}
"""Accounts and config of ours, by agent; `gamma` comes from the case."""


def _falling(first: float) -> Callable[[float], float]:
    """Return a learning rate that falls linearly to 0 over the budget."""
    return lambda remaining: first * remaining


# What differs from `SB3_SETTINGS`: accounts and hyper-parameters.
_FAST_SB3: Mapping[Form, Mapping[Algorithm, tuple[int, Mapping[str, Any]]]] = {
    "vector": {
        "ppo": (512, {"n_steps": 1, "batch_size": 512, "learning_rate": 1e-2}),
        "a2c": (512, {"n_steps": 1}),
        "dqn": (
            512,
            {
                "learning_starts": 1_024,
                "gradient_steps": 2,
                "learning_rate": _falling(5e-3),
                "target_update_interval": 512,
            },
        ),
        "sac": (256, {"learning_starts": 512, "gradient_steps": 2, "learning_rate": 1e-2}),
        "td3": (64, {"learning_starts": 256, "gradient_steps": 2}),
        "ddpg": (128, {"learning_starts": 512}),
    },
    "scalar": {
        "ppo": (64, {"n_steps": 4}),
        "a2c": (64, {"n_steps": 2}),
        "dqn": (
            128,
            {
                "learning_starts": 512,
                "batch_size": 256,
                "gradient_steps": 4,
                "learning_rate": _falling(5e-3),
                "target_update_interval": 128,
            },
        ),
        "sac": (64, {"learning_starts": 256, "learning_rate": 1e-2}),
        "td3": (64, {"learning_rate": 1e-2}),
        "ddpg": (64, {}),
    },
}


def fast_config(algorithm: Algorithm, case: str) -> tuple[int, Any]:
    """Return accounts and config of ours for the shortest time, at the discount of a case."""
    n_envs, config = FAST_RECIPES[algorithm]
    return n_envs, dataclasses.replace(config, gamma=CASES[case].discount)


def fast_settings(algorithm: Algorithm, form: Form) -> SB3Settings:
    """Return theirs for the shortest time in one form of the market."""
    settings, (n_envs, changes) = SB3_SETTINGS[algorithm], _FAST_SB3[form][algorithm]
    hyperparameters = {**settings.hyperparameters, **changes}
    return dataclasses.replace(settings, n_envs=n_envs, hyperparameters=hyperparameters, environment=form)


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


def time_to_shares(algorithm: Algorithm, case: str, learner: Learner, *, seed: int) -> dict[str, Any]:
    """Let one learner learn until it earns the highest share; returns when it first earned each, and the whole curve."""
    if learner == "ours":
        n_envs, config = fast_config(algorithm, case)
        watch = learn_ours(algorithm, case, seed=seed, n_envs=n_envs, config=config)
    else:
        form: Form = "vector" if learner == "theirs, vector" else "scalar"
        watch = learn_theirs(algorithm, case, seed=seed, settings=fast_settings(algorithm, form))
    reached = {f"{share:.0%}": watch.first(share) for share in watch.shares}
    return {
        "algorithm": algorithm,
        "case": case,
        "learner": learner,
        "seed": seed,
        "reached": reached,
        "curve": watch.marks,
    }


def count_reached(runs: Sequence[Mapping[str, Any]], share: str) -> int:
    """Return how many seeds got to a share at all."""
    return sum(run["reached"][share] is not None for run in runs)


def median_seconds(runs: Sequence[Mapping[str, Any]], share: str, clock: str = "cpu_seconds") -> float:
    """Return the median time of several seeds to a share; one that never got there counts as infinitely long."""
    times = [run["reached"][share][clock] if run["reached"][share] else float("inf") for run in runs]
    return statistics.median(times)
