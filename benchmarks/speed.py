"""Our agents beside Stable-Baselines3's at one and the same recipe: training throughput, and the time to choose an action.

Part of `agents.py`. Same accounts in the same `TradingVectorEnv`, same networks, batches, optimisers and numbers of gradient
steps. What each does is counted, not believed: the optimisers say how often they stepped, the networks how large they are.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from rivals import ALGORITHMS, Algorithm, SB3VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise

from ml.tradingbots.components import (
    A2CConfig,
    DDPGConfig,
    DQNConfig,
    PPOConfig,
    SACConfig,
    TD3Config,
    TradingEnvConfig,
    TradingVectorEnv,
    create_rl_agent,
)
from ml.tradingbots.components.market import Market
from ml.tradingbots.data.synthetic import autoregressive

N_REPEATS = 5
N_CALLS = 2_000
BUFFER_SIZE = 100_000
VOLATILITY = 0.01


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to learn, said to both libraries in their own words."""

    n_envs: int
    """Accounts."""
    total_timesteps: int
    """Transitions of one timed run: some seconds of it."""
    warm_up: int
    """Transitions of the first run, which is not timed."""
    ours: Any
    """Our config."""
    theirs: Mapping[str, Any]
    """Arguments of their algorithm; what is not named is their default."""
    policy: Mapping[str, Any]
    """Their `policy_kwargs`."""
    aim: float
    """Promised ratio of throughputs."""


_OFF_POLICY: dict[str, Any] = {"buffer_size": BUFFER_SIZE, "learning_starts": 100, "train_freq": 1, "gradient_steps": 1}
NOISE_STD = 0.1
_WIDE = {"net_arch": [256, 256]}

# Their own network sizes and hyper-parameters, but for: one gradient step per vector step, and for TD3 and DDPG the 256×256
# networks and batches of 256 that SAC has in both libraries.
RECIPES: Mapping[Algorithm, Recipe] = {
    "ppo": Recipe(
        n_envs=16,
        total_timesteps=20_480,
        warm_up=2_048,
        ours=PPOConfig(n_steps=128, batch_size=64, n_epochs=10),
        theirs={"n_steps": 128, "batch_size": 64, "n_epochs": 10},
        policy={},
        aim=2.0,
    ),
    "a2c": Recipe(
        n_envs=16,
        total_timesteps=64_000,
        warm_up=2_000,
        ours=A2CConfig(n_steps=5, optimizer="rmsprop"),
        theirs={"n_steps": 5},
        policy={},
        aim=2.0,
    ),
    "dqn": Recipe(
        n_envs=4,
        total_timesteps=9_600,
        warm_up=1_000,
        ours=DQNConfig(
            hidden_dim=64,
            learning_rate=1e-4,
            batch_size=64,
            dueling=False,
            double=False,
            target_update_interval=1_000,
            **_OFF_POLICY,
        ),
        theirs={**_OFF_POLICY, "batch_size": 64, "target_update_interval": 1_000},
        policy={"net_arch": [64, 64]},
        aim=1.5,
    ),
    "sac": Recipe(
        n_envs=1,
        total_timesteps=500,
        warm_up=150,
        ours=SACConfig(**_OFF_POLICY),
        theirs=_OFF_POLICY,
        policy=_WIDE,
        aim=1.3,
    ),
    "td3": Recipe(
        n_envs=1,
        total_timesteps=700,
        warm_up=150,
        ours=TD3Config(noise_std=NOISE_STD, **_OFF_POLICY),
        theirs={**_OFF_POLICY, "batch_size": 256},
        policy=_WIDE,
        aim=1.3,
    ),
    "ddpg": Recipe(
        n_envs=1,
        total_timesteps=800,
        warm_up=150,
        ours=DDPGConfig(exploration_noise="gaussian", noise_std=NOISE_STD, **_OFF_POLICY),
        theirs={**_OFF_POLICY, "batch_size": 256},
        policy=_WIDE,
        aim=1.3,
    ),
}


def make_env(algorithm: Algorithm, n_envs: int) -> TradingVectorEnv:
    """Make the accounts that both walk: one asset, ten bars in sight, episodes of 500 bars, rewards about 1 in size."""
    kind: Literal["discrete", "continuous"] = "discrete" if algorithm == "dqn" else "continuous"
    config = TradingEnvConfig(
        window_size=10,
        episode_length=500,
        random_start=True,
        action_type=kind,
        commission=0.0005,
        reward_scaling=1.0 / VOLATILITY,
    )
    market = Market.of(autoregressive(20_000, volatility=VOLATILITY, seed=1).prices, config, None)
    return TradingVectorEnv(market, config, n_envs=n_envs, seed=0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    wall_seconds: float
    """Time it took."""
    cpu_seconds: float
    """Processor time it took, all threads; a shared machine disturbs it less."""
    optimizer_steps: tuple[int, ...]
    """Steps that each optimiser took, sorted."""
    n_parameters: int
    """Numbers in all networks, target networks included."""
    num_timesteps: int
    """Transitions it collected."""


def train_ours(algorithm: Algorithm, recipe: Recipe, total_timesteps: int, *, seed: int) -> Run:
    """Train our agent; observations are put on one scale in both libraries, by us in the agent, by them before it."""
    env = make_env(algorithm, recipe.n_envs)
    state_dim, action_dim = env.observation_space_dim, env.action_space_dim
    agent = create_rl_agent(algorithm, state_dim, action_dim, recipe.ours, seed=seed)
    agent.normalizer.fix(*env.observation_statistics())
    wall, cpu = _timed(lambda: agent.train(env, total_timesteps))
    learned = [getattr(agent, name) for name in agent.learned]
    modules = [part for part in learned if isinstance(part, torch.nn.Module)]
    optimizers = [part for part in learned if isinstance(part, torch.optim.Optimizer)]
    return _run(wall, cpu, modules, optimizers, agent.num_timesteps)


def train_theirs(algorithm: Algorithm, recipe: Recipe, total_timesteps: int, *, seed: int, fused: bool = False) -> Run:
    """Train theirs on the CPU, silently, without the logging of figures that nobody reads."""
    model = make_theirs(algorithm, recipe, seed=seed, fused=fused)
    wall, cpu = _timed(lambda: model.learn(total_timesteps, log_interval=None))  # type: ignore[arg-type]
    policy = model.policy
    holders = (policy, getattr(policy, "actor", None), getattr(policy, "critic", None))
    found = [getattr(holder, "optimizer", None) for holder in holders]
    found.append(getattr(model, "ent_coef_optimizer", None))
    return _run(wall, cpu, [policy], [optimizer for optimizer in found if optimizer is not None], model.num_timesteps)


def make_theirs(algorithm: Algorithm, recipe: Recipe, *, seed: int, fused: bool = False) -> BaseAlgorithm:
    """Make an untrained model of theirs; `fused` asks for fused Adam, which it does not by itself."""
    policy = dict(recipe.policy)
    if fused and algorithm != "a2c":
        policy["optimizer_kwargs"] = {"fused": True, **({"eps": 1e-5} if algorithm == "ppo" else {})}
    env = SB3VectorEnv(make_env(algorithm, recipe.n_envs), seed=0)
    env.reward_scale = 1.0  # The environment itself has scaled rewards, for both.
    arguments = dict(recipe.theirs)
    if algorithm in ("td3", "ddpg"):
        arguments["action_noise"] = NormalActionNoise(np.zeros(1), np.full(1, NOISE_STD))
    return ALGORITHMS[algorithm](
        "MlpPolicy",
        env,
        seed=seed,
        device="cpu",
        policy_kwargs=policy,
        **arguments,
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    # A full collection walks everything that was ever imported, and falls to whichever of the two happens to trigger it.
    gc.collect()
    gc.freeze()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _run(
    wall: float,
    cpu: float,
    modules: list[torch.nn.Module],
    optimizers: list[torch.optim.Optimizer],
    num_timesteps: int,
) -> Run:
    # Each optimiser counts for itself how often it moved a parameter.
    steps = [int(max(float(entry["step"]) for entry in optimizer.state.values())) for optimizer in optimizers]
    n_parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return Run(
        wall_seconds=wall,
        cpu_seconds=cpu,
        optimizer_steps=tuple(sorted(steps)),
        n_parameters=n_parameters,
        num_timesteps=num_timesteps,
    )


def check_same_work(algorithm: Algorithm, ours: Run, theirs: Run) -> None:
    """Stop where two runs did not do the same; raises SystemExit."""
    for what in ("optimizer_steps", "n_parameters", "num_timesteps"):
        one, other = getattr(ours, what), getattr(theirs, what)
        if one != other:
            raise SystemExit(f"{algorithm}: {what} differ, ours {one}, theirs {other}; nothing is compared")


def compare_throughput(algorithm: Algorithm, *, n_repeats: int = N_REPEATS, fused: bool = False) -> dict[str, Any]:
    """Train both in turn, several times.

    Returns:
        `ours` and `theirs` in timesteps per CPU second, `ratio` of the medians of CPU seconds with the lowest and highest
        ratio of neighbouring runs, `wall_ratio` the same of wall seconds, and every run.
    """
    recipe = RECIPES[algorithm]
    check_same_work(
        algorithm,
        train_ours(algorithm, recipe, recipe.warm_up, seed=0),
        train_theirs(algorithm, recipe, recipe.warm_up, seed=0, fused=fused),
    )
    ours, theirs = [], []
    for seed in range(n_repeats):
        ours.append(train_ours(algorithm, recipe, recipe.total_timesteps, seed=seed))
        theirs.append(train_theirs(algorithm, recipe, recipe.total_timesteps, seed=seed, fused=fused))
        check_same_work(algorithm, ours[-1], theirs[-1])
    n = ours[0].num_timesteps
    return {
        "ours": n / statistics.median(run.cpu_seconds for run in ours),
        "theirs": n / statistics.median(run.cpu_seconds for run in theirs),
        "ratio": _ratio(ours, theirs, "cpu_seconds"),
        "wall_ratio": _ratio(ours, theirs, "wall_seconds"),
        "aim": recipe.aim,
        "runs": {"ours": ours, "theirs": theirs},
    }


def _ratio(ours: list[Run], theirs: list[Run], clock: str) -> dict[str, float]:
    one, other = [getattr(run, clock) for run in ours], [getattr(run, clock) for run in theirs]
    pairs = [slow / fast for fast, slow in zip(one, other, strict=True)]
    return {"median": statistics.median(other) / statistics.median(one), "min": min(pairs), "max": max(pairs)}


def compare_latency(
    algorithm: Algorithm,
    batch: int,
    *,
    deterministic: bool = True,
    n_calls: int = N_CALLS,
    n_repeats: int = N_REPEATS,
) -> dict[str, Any]:
    """Time actions for observations that arrive as NumPy arrays: one alone, or a batch of them; the best ones, or drawn.

    Returns:
        `ours` and `theirs` in microseconds of a call, medians of several rounds, `ratio` theirs over ours with its spread.
    """
    recipe = RECIPES[algorithm]
    env = make_env(algorithm, recipe.n_envs)
    state_dim = env.observation_space_dim
    agent = create_rl_agent(algorithm, state_dim, env.action_space_dim, recipe.ours, seed=0)
    agent.bind(env)
    agent.normalizer.fix(*env.observation_statistics())
    model = make_theirs(algorithm, recipe, seed=0)
    shape = (state_dim,) if batch == 1 else (batch, state_dim)
    observation = np.random.default_rng(0).normal(0.0, 0.01, shape).astype(np.float32)
    calls = (
        lambda: agent.select_action(observation, deterministic=deterministic),
        lambda: model.predict(observation, deterministic=deterministic),
    )
    for call in calls:
        _microseconds(call, n_calls // 10)
    rounds = [[_microseconds(call, n_calls) for call in calls] for _ in range(n_repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    pairs = [slow / fast for fast, slow in rounds]
    ratio = {"median": theirs / ours, "min": min(pairs), "max": max(pairs)}
    return {
        "batch": batch,
        "deterministic": deterministic,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "rounds": rounds,
    }


def _microseconds(call: Callable[[], object], n_calls: int) -> float:
    start = time.perf_counter()
    for _ in range(n_calls):
        call()
    return (time.perf_counter() - start) / n_calls * 1e6
