"""What carrying an agent from one market to another brings, where the best policy is known.

    python benchmarks/transfer.py --save                       # SAC and PPO, two sources, five seeds; a quarter of an hour
    python benchmarks/transfer.py --agents ppo --seeds 1
    python benchmarks/transfer.py --resume                     # goes on where a run was interrupted

Scores are shares of the optimal gain on unseen bars of the target market; timesteps are those in the target market.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from records import Records, conditions, digest

from ml.tradingbots.training import transfer_optima
from ml.tradingbots.training.transfer_optima import RECIPES, SETTINGS, AgentName, TransferSize, transfer_outcomes


@dataclass(frozen=True)
class Options:
    """What to run."""

    agents: tuple[AgentName, ...] = get_args(AgentName)
    """Which agents."""
    seeds: int = 5
    """Seeds per agent."""
    save: bool = False
    """Whether to write benchmarks/results/transfer.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


def main(options: Options) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    records = Records("transfer", save=options.save, resume=options.resume)
    source = digest(ast.dump(ast.parse(Path(transfer_optima.__file__).read_text(encoding="utf-8"))))
    rows = []
    for agent in options.agents:
        under = conditions({"agent": RECIPES[agent], "size": TransferSize(), "settings": SETTINGS, "cases": source})
        for seed in range(options.seeds):
            key = f"{agent}, seed {seed}"
            row = records.done(key, under)
            if row is None:
                found = [_finite(dataclasses.asdict(outcome)) for outcome in transfer_outcomes(agent, seed=seed)]
                row = records.add(key, under, {"agent": agent, "seed": seed, "found": found})
            rows += row["found"]
            for part in row["found"]:
                print(_line(part), flush=True)
    summary = summarise(rows)
    print("\nmedians over seeds [worst, best]")
    for entry in summary:
        print(entry)
    records.write(summary)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: timesteps that were never reached are null. A curve is one line of text, not hundreds."""
    points = "; ".join(f"{steps:.0f} {ours:.3f} {theirs:.3f}" for steps, ours, theirs in row["curve"])
    known = {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in row.items()}
    return known | {"curve": points}


def _line(row: dict[str, Any]) -> str:
    names = (
        "timesteps_to_optimum",
        "scratch_timesteps_to_optimum",
        "timesteps_to_scratch",
        "scratch_timesteps_to_scratch",
    )
    steps = " ".join(f"{'-' if row[name] is None else format(row[name], '.0f'):>6}" for name in names)
    return (
        f"{row['agent']:4} {row['source']:9} {row['setting']:12} {row['seed']:2d} {row['zero_shot']:7.3f} "
        f"{row['zero_shot_reset']:7.3f} {row['zero_shot_blend']:7.3f} {steps} {row['asymptote']:7.3f} "
        f"{row['scratch_asymptote']:7.3f} {row['frozen_unchanged']!s:6} {row['cpu_seconds']:6.1f}"
    )


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over seeds with the worst and the best, one entry per agent, source and setting."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["setting"], row["agent"]), []).append(row)
    summary = []
    for (source, setting, agent), group in groups.items():
        goal = "optimum" if source == "same" else "scratch"
        entry: dict[str, Any] = {"source": source, "setting": setting, "agent": agent, "seeds": len(group)}
        for name in ("zero_shot", "zero_shot_reset", "zero_shot_blend", "untrained", "asymptote", "scratch_asymptote"):
            entry[name] = _spread([row[name] for row in group], max)
        entry["timesteps"] = _spread([_steps(row[f"timesteps_to_{goal}"]) for row in group], min)
        entry["scratch_timesteps"] = _spread([_steps(row[f"scratch_timesteps_to_{goal}"]) for row in group], min)
        ratios = [_steps(row[f"timesteps_to_{goal}"]) / _steps(row[f"scratch_timesteps_to_{goal}"]) for row in group]
        entry["ratio"] = _spread([ratio if ratio == ratio else math.inf for ratio in ratios], min)
        entry["frozen_unchanged"] = [row["frozen_unchanged"] for row in group]
        entry["cpu_seconds"] = statistics.median(row["cpu_seconds"] for row in group)
        summary.append(entry)
    return summary


def _steps(value: float | None) -> float:
    return math.inf if value is None else value


def _spread(values: list[float], best: Callable[[list[float]], float]) -> dict[str, float | None]:
    worst = min if best is max else max
    found = {"median": statistics.median(values), "worst": worst(values), "best": best(values)}
    return {name: None if math.isinf(value) else value for name, value in found.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
