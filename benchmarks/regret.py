"""How close SAC comes to a computed optimum, on bars it never saw.

    python benchmarks/regret.py                      # AR(1) and OU, five seeds each
    python benchmarks/regret.py --markets ar1 --seeds 1 --seconds-note ""

Prints, per market and seed, the optimum, the agent and their ratio, in basis points a bar over flat; then the medians.
Also: with costs above the edge it must stay flat, and on a random walk it must claim nothing.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import tyro

from ml.tradingbots.components import SACConfig, create_rl_agent
from ml.tradingbots.training import RLTrainingConfig
from ml.tradingbots.training.regret import RegretResult, measure_regret

RESULTS = Path(__file__).parent / "results" / "regret.json"

# Chosen on AR(1) seed 0: the paper's target entropy of −1 leaves noise in the policy that pays costs on every bar.
AGENT = SACConfig(
    hidden_dim=64, batch_size=1024, learning_rate=1e-3, gamma=0.9, alpha=0.1, target_entropy=-3.5, learning_starts=5_000
)
TRAINING = RLTrainingConfig(total_timesteps=400_000, n_envs=64, progress=False)
# name: market, cost rate, discount of agent and optimum
CASES = {
    "ar1": ("ar1", 0.0005, 0.9),
    "ou": ("ou", 0.0005, 0.95),
    "ar1, costs above the edge": ("ar1", 0.01, 0.9),
    "random walk": ("random_walk", 0.0005, 0.9),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    cases: tuple[str, ...] = tuple(CASES)
    """Names of the cases."""
    seeds: int = 5
    """Seeds per case."""
    total_timesteps: int = TRAINING.total_timesteps or 0
    """Transitions per run."""
    save: bool = False
    """Whether to write benchmarks/results/regret.json."""


def run(case: str, seed: int, total_timesteps: int) -> RegretResult:
    """Train and judge one agent."""
    market, cost_rate, discount = CASES[case]
    config = SACConfig(**{**asdict(AGENT), "gamma": discount})
    training = RLTrainingConfig(**{**asdict(TRAINING), "total_timesteps": total_timesteps, "seed": seed})
    return measure_regret(
        lambda state_dim, action_dim: create_rl_agent("sac", state_dim, action_dim, config, seed=seed),
        training,
        market,  # type: ignore[arg-type]
        seed=seed,
        cost_rate=cost_rate,
        discount=discount,
    )


def main(options: Options) -> None:
    """Run every case and print the table."""
    print(f"{'case':28} seed  optimum    agent  ±s.e.   ratio  turnover   wall   CPU   (bps a bar over flat; seconds)")
    rows = []
    for case in options.cases:
        found = [run(case, seed, options.total_timesteps) for seed in range(options.seeds)]
        for result in found:
            print(
                f"{case:28} {result.seed:4d} {result.optimum * 1e4:8.2f} {result.gain * 1e4:8.2f} "
                f"{result.standard_error * 1e4:6.2f} {result.ratio:7.3f} {result.turnover:9.4f} "
                f"{result.wall_seconds:6.1f} {result.cpu_seconds:5.1f}",
                flush=True,
            )
            rows.append({"case": case, "ratio": result.ratio, **asdict(result)})
        median = statistics.median(result.gain / result.optimum if result.optimum > 1e-9 else 0.0 for result in found)
        gain = statistics.median(result.gain for result in found) * 1e4
        print(f"{case:28} median of {len(found)}: gain {gain:.2f} bps" + (f", ratio {median:.3f}" if median else ""))
    if options.save:
        about = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor() or platform.machine()}
        about |= {"torch": torch.__version__, "agent": asdict(AGENT), "training": asdict(TRAINING)}
        RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
