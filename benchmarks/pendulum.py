"""SAC on Pendulum-v1 after 20,000 timesteps, with the RL Zoo's hyper-parameters; its own score there is −157 ± 89.

    python benchmarks/pendulum.py --save

One environment, 256×256 networks, one gradient step per timestep; deterministic evaluation over 50 episodes.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from ml.tradingbots.components import SACConfig, create_rl_agent
from ml.tradingbots.training import RLTrainingConfig, evaluate_episodes, train_rl_agent

RESULTS = Path(__file__).parent / "results" / "pendulum.json"
AGENT = SACConfig(learning_rate=1e-3, learning_starts=100)


@dataclass(frozen=True)
class Options:
    """What to run."""

    seeds: int = 3
    """Seeds."""
    total_timesteps: int = 20_000
    """Transitions per run."""
    save: bool = False
    """Whether to write benchmarks/results/pendulum.json."""


def main(options: Options) -> None:
    """Train, score, print."""
    rows = []
    for seed in range(options.seeds):
        agent = create_rl_agent("sac", 3, 1, AGENT, seed=seed)
        training = RLTrainingConfig(total_timesteps=options.total_timesteps, n_envs=1, seed=seed, progress=False)
        cpu = time.process_time()
        train_rl_agent(agent, "Pendulum-v1", training)
        cpu = time.process_time() - cpu
        scores = evaluate_episodes(agent, "Pendulum-v1", n_episodes=50, seed=1_000)
        print(
            f"seed {seed}: {scores.mean():7.1f} ± {scores.std():.1f} over 50 episodes, {cpu:.0f} CPU seconds",
            flush=True,
        )
        rows.append({"seed": seed, "mean": scores.mean(), "std": scores.std(), "cpu_seconds": cpu})
    median = statistics.median(row["mean"] for row in rows)
    print(f"median of {options.seeds} seeds: {median:.1f}")
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        about = {"torch": torch.__version__, "agent": asdict(AGENT), "total_timesteps": options.total_timesteps}
        RESULTS.write_text(json.dumps({"about": about, "median": median, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
