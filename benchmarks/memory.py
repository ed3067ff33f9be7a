"""What remembering weighs: bytes of a transition beside Stable-Baselines3's, and a million of them in a process that learns.

Part of `agents.py`. Filling takes a process of its own, whose memory nothing else has touched:

    python benchmarks/memory.py --transitions 1000000
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro

from ml.tradingbots.components import SACConfig, TradingEnvConfig, TradingEnvironment, create_rl_agent
from ml.tradingbots.components.buffers import ReplayBuffer
from ml.tradingbots.data import load_prices

if TYPE_CHECKING:
    # Imported where it is used: what it weighs is not the memory of the process that is measured.
    from stable_baselines3.common.buffers import ReplayBuffer as TheirBuffer

MARKETS = {"1 asset": "sp500", "20 assets": "sp500-stocks"}
CONFIG = TradingEnvConfig(window_size=20, commission=0.0005)
# Divides a million; walking more accounts at once fills faster and changes nothing else.
N_ENVS = 500
N_SAMPLE = 1_000


@dataclass(frozen=True)
class Options:
    """What to fill."""

    transitions: int = 1_000_000
    """Capacity of the replay memory, filled to the last place."""
    gradient_steps: int = 100
    """Gradient steps of SAC, batches of 256, on the full memory."""
    threads: int = 1
    """torch threads."""


def compare_bytes() -> list[dict[str, Any]]:
    """Bytes of a transition in both replay memories, from the arrays that they hold.

    Stable-Baselines3 has a leaner form, `optimize_memory_usage`, which forgets what a truncated episode led to; its
    default remembers it, as ours does.
    """
    from stable_baselines3.common.buffers import ReplayBuffer as TheirBuffer

    rows = []
    for what, source in MARKETS.items():
        env = TradingEnvironment(load_prices(source), CONFIG)
        action_dim = env.action_space_dim
        ours = ReplayBuffer.for_env(env.vectorize(8), N_SAMPLE, action_dim, device=torch.device("cpu"))
        spaces = (env.observation_space, env.action_space)
        theirs = TheirBuffer(N_SAMPLE, *spaces, device="cpu", n_envs=8)
        lean = TheirBuffer(
            N_SAMPLE, *spaces, device="cpu", n_envs=8, optimize_memory_usage=True, handle_timeout_termination=False
        )
        row: dict[str, Any] = {"market": f"{what}, window {CONFIG.window_size}", "ours": ours.bytes_per_transition}
        row |= {"theirs": their_bytes(theirs), "theirs_without_truncations": their_bytes(lean)}
        rows.append({**row, "ratio": row["theirs"] / row["ours"]})
    return rows


def their_bytes(buffer: TheirBuffer) -> float:
    """Bytes of a transition in a memory of theirs."""
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    held = sum(getattr(buffer, name).nbytes for name in names if hasattr(buffer, name))
    return float(held / (buffer.buffer_size * buffer.n_envs))


def fill_in_a_process(options: Options) -> dict[str, Any]:
    """Run `fill` in a fresh process; returns what it found, and in `theirs` what their arrays would take, in bytes."""
    from stable_baselines3.common.buffers import ReplayBuffer as TheirBuffer

    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(options).items()]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    env = TradingEnvironment(load_prices(MARKETS["20 assets"]), CONFIG)
    theirs = TheirBuffer(N_SAMPLE, env.observation_space, env.action_space, device="cpu")
    return {**found, "theirs": their_bytes(theirs) * options.transitions}


def fill(options: Options) -> dict[str, Any]:
    """Fill the memory of SAC in a market of 20 assets by its own loop, and learn from it.

    Returns:
        Bytes: `rss_before` of the process with environment and networks, `rss_peak` at the end, `growth` between them,
        and `ours`, the memory's tensors.
    """
    env = TradingEnvironment(load_prices(MARKETS["20 assets"]), CONFIG)
    vector_env = env.vectorize(N_ENVS, random_start=True, episode_length=252)
    settings = SACConfig(buffer_size=options.transitions, learning_starts=options.transitions)
    agent = create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, settings)
    agent.bind(vector_env)
    agent.normalizer.fix(*vector_env.observation_statistics())
    agent.scale_rewards = True
    before = status_bytes("VmRSS")
    for _ in agent.training_steps(vector_env):
        if agent.num_updates >= options.gradient_steps:
            break
    peak = status_bytes("VmHWM")
    replay = agent.replay
    if replay.size != options.transitions or not bool(replay.rows[:, -2].any()):
        raise SystemExit(f"the memory holds {replay.size} transitions, not {options.transitions}")
    return {
        "transitions": replay.size,
        "gradient_steps": agent.num_updates,
        "rss_before": before,
        "rss_peak": peak,
        "growth": peak - before,
        "ours": replay.bytes_per_transition * replay.size,
    }


def status_bytes(entry: str) -> int:
    """Read a figure of this process from Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {entry}: this measurement needs Linux")


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    torch.set_num_threads(chosen.threads)
    print(json.dumps(fill(chosen)))
