"""How close SAC comes to a computed optimum, on bars it never saw.

    python benchmarks/regret.py                      # AR(1) and OU, five seeds each
    python benchmarks/regret.py --cases ar1 --seeds 1

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

from ml.tradingbots.training.regret import CASES, SAC_RECIPE, TRAINING_RECIPE, regret_of_sac

RESULTS = Path(__file__).parent / "results" / "regret.json"


@dataclass(frozen=True)
class Options:
    """What to run."""

    cases: tuple[str, ...] = tuple(CASES)
    """Names of the cases."""
    seeds: int = 5
    """Seeds per case."""
    total_timesteps: int = 400_000
    """Transitions per run."""
    save: bool = False
    """Whether to write benchmarks/results/regret.json."""


def main(options: Options) -> None:
    """Run every case and print the table."""
    print(
        f"{'case':28} seed  optimum    agent  ±s.e.   ratio  turnover  exposure   wall   CPU   (bps a bar over flat; seconds)"
    )
    rows = []
    for case in options.cases:
        found = []
        for seed in range(options.seeds):
            result = regret_of_sac(case, seed=seed, total_timesteps=options.total_timesteps)
            found.append(result)
            print(
                f"{case:28} {result.seed:4d} {result.optimum * 1e4:8.2f} {result.gain * 1e4:8.2f} "
                f"{result.standard_error * 1e4:6.2f} {result.ratio:7.3f} {result.turnover:9.4f} {result.exposure:9.3f} "
                f"{result.wall_seconds:6.1f} {result.cpu_seconds:5.1f}",
                flush=True,
            )
            rows.append({"case": case, "ratio": result.ratio, **asdict(result)})
        median = statistics.median(result.gain / result.optimum if result.optimum > 1e-9 else 0.0 for result in found)
        gain = statistics.median(result.gain for result in found) * 1e4
        print(f"{case:28} median of {len(found)}: gain {gain:.2f} bps" + (f", ratio {median:.3f}" if median else ""))
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        about = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor() or platform.machine()}
        about |= {"torch": torch.__version__, "agent": asdict(SAC_RECIPE), "training": asdict(TRAINING_RECIPE)}
        RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
