"""How fast the environments step, and what a remembered transition weighs.

    python benchmarks/environment.py

Parity comes first: the scalar and the vector environment must agree to 1e-10 on the same actions, or nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, TradingVectorEnv
from ml.tradingbots.components.buffers import ReplayBuffer
from ml.tradingbots.data import load_prices

RESULTS = Path(__file__).parent / "results" / "environment.json"
N_REPEATS = 7
CONFIG = TradingEnvConfig(commission=0.0005, slippage_rate=0.0002)


def check_parity(env: TradingEnvironment, n_steps: int = 500) -> float:
    """Walk both environments with the same actions; returns the largest difference of equity, relative."""
    vector = env.vectorize(3)
    vector.reset()
    env.reset()
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (n_steps, env.market.n_assets)).astype(np.float32)
    worst = 0.0
    for action in actions:
        _, reward, *_, info = env.step(action)
        _, rewards, *_ = vector.step(torch.from_numpy(action).expand(3, -1))
        worst = max(worst, float((vector.account.equity / info["equity"] - 1.0).abs().max()))
        worst = max(worst, abs(float(rewards[0]) - np.float32(reward)) * 1e-3)  # Rewards are float32 there.
    if worst > 1e-10:
        raise SystemExit(f"parity broken: the environments differ by {worst:.2e}; nothing was timed")
    return worst


def rate(work: Callable[[int], None], n: int, per_step: int = 1) -> tuple[float, float, float]:
    """Return the median, lowest and highest steps per second of several runs after a warm-up."""
    work(n // 5)
    rates = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        work(n)
        rates.append(n * per_step / (time.perf_counter() - start))
    return statistics.median(rates), min(rates), max(rates)


def walk_scalar(env: TradingEnvironment) -> Callable[[int], None]:
    """Return a walk with prepared random actions."""
    rng = np.random.default_rng(0)
    actions = list(rng.uniform(-1.0, 1.0, (1024, env.market.n_assets)).astype(np.float32))

    def work(n: int) -> None:
        env.reset()
        for i in range(n):
            _, _, terminated, truncated, _ = env.step(actions[i & 1023])
            if terminated or truncated:
                env.reset()

    return work


def walk_vector(env: TradingVectorEnv) -> Callable[[int], None]:
    """Return a walk of all accounts with prepared random actions."""
    generator = torch.Generator().manual_seed(0)
    actions = [torch.rand((env.num_envs, env.market.n_assets), generator=generator) * 2.0 - 1.0 for _ in range(64)]
    env.reset()

    def work(n: int) -> None:
        for i in range(n):
            env.step(actions[i & 63])

    return work


def replay_bytes(env: TradingEnvironment) -> tuple[float, float]:
    """Bytes per transition: ours, measured on a real buffer, and Stable-Baselines3's, measured on its own."""
    from stable_baselines3.common.buffers import ReplayBuffer as TheirBuffer

    ours = ReplayBuffer.for_env(env.vectorize(8), 1024, env.action_space_dim, device=torch.device("cpu"))
    theirs = TheirBuffer(1024, env.observation_space, env.action_space, device="cpu", n_envs=8)
    stored = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return ours.bytes_per_transition, sum(getattr(theirs, name).nbytes for name in stored) / 1024


def main() -> None:
    """Check parity, time, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the vector environment")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, {arguments.threads} thread(s); median of {N_REPEATS} [min, max]"
    )
    for source, what, n_scalar, n_vector in (
        ("sp500", "1 asset", 20_000, 400),
        ("sp500-stocks", "20 assets", 4_000, 100),
    ):
        env = TradingEnvironment(load_prices(source), CONFIG)
        difference = check_parity(env)
        print(f"{what}, window {CONFIG.window_size}, observation {env.observation_space_dim}: parity {difference:.1e}")
        episodes = dataclasses.replace(CONFIG, episode_length=252, random_start=True)
        vector = TradingVectorEnv(env.market, episodes, n_envs=1024)
        ours, theirs = replay_bytes(env)
        timed = (
            ("scalar, steps/s", *rate(walk_scalar(env), n_scalar)),
            ("vector n_envs=1024, account-steps/s", *rate(walk_vector(vector), n_vector, 1024)),
        )
        for name, median, low, high in timed:
            print(f"  {name:38} {median:12,.0f}  [{low:,.0f}, {high:,.0f}]")
            rows.append({"assets": env.market.n_assets, "what": name, "median": median, "min": low, "max": high})
        memory = "replay memory, bytes per transition"
        print(f"  {memory:38} {ours:12,.0f}  Stable-Baselines3 {theirs:,.0f}, {theirs / ours:.1f} times")
        rows.append({"assets": env.market.n_assets, "what": "replay bytes per transition", "ours": ours, "sb3": theirs})
    if arguments.save:
        RESULTS.parent.mkdir(exist_ok=True)
        about = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        about |= {"torch": torch.__version__, "threads": arguments.threads}
        RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
