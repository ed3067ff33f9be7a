"""How close every agent comes to a computed optimum on bars it never saw, beside Stable-Baselines3 with as many timesteps.

    python benchmarks/regret.py --save                            # six agents, AR(1) and OU, five seeds; an hour or two
    python benchmarks/regret.py --agents ppo --cases ar1 --seeds 1 --no-rival
    python benchmarks/regret.py --resume                          # goes on where a run was interrupted

Gains are in basis points a bar over flat; `share` is the agent's over the optimum's on the same bars and accounts. DQN is
judged beside the optimum of hold, buy and sell. SAC has two cases more: with costs above the edge it must stay flat, and on a
random walk it must claim nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
import tyro
from records import Records, conditions
from rivals import SB3_SETTINGS, Algorithm, measure_sb3_regret

from ml.tradingbots.training.market_recipes import market_recipe
from ml.tradingbots.training.regret import CASES, TRAINING_RECIPE, RegretResult, regret_of

EARNING = ("ar1", "ou")
FLAT = ("costs above the edge", "random walk")
BASIS_POINT = 1e-4


@dataclass(frozen=True)
class Options:
    """What to run."""

    agents: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which agents."""
    cases: tuple[str, ...] = (*EARNING, *FLAT)
    """Names of cases; the two without gain are SAC's alone."""
    seeds: int = 5
    """Seeds per agent and case."""
    total_timesteps: int = 400_000
    """Transitions per run, of ours and of theirs."""
    rival: bool = True
    """Whether Stable-Baselines3 is measured too, where there is something to earn."""
    save: bool = False
    """Whether to write benchmarks/results/regret.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


@dataclass(frozen=True)
class Job:
    """One training."""

    who: str
    """ours or theirs."""
    agent: Algorithm
    case: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.agent}, {self.case}, {self.who}, seed {self.seed}"


def main(options: Options) -> None:
    """Run every case and print the tables."""
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        raise SystemExit(f"unknown cases {unknown}; choose from {', '.join(map(repr, CASES))}")
    torch.set_num_threads(1)
    records = Records("regret", save=options.save, resume=options.resume)
    print(
        "agent  case                  who     seed  optimum     gain   ±s.e.   share  turnover  exposure   CPU s  wall s"
    )
    rows = []
    for job in jobs(options):
        under = conditions(_settings(job, options.total_timesteps))
        row = records.done(job.key, under)
        if row is None:
            found = run(job, options.total_timesteps)
            share = found.ratio if found.optimum > 1e-9 else None
            made = {**dataclasses.asdict(job), "share": share, **dataclasses.asdict(found)}
            row = records.add(job.key, under, made)
        rows.append(row)
        print(_line(row), flush=True)
    summary = summarise(rows)
    _print_summary(summary)
    records.write(summary)


def jobs(options: Options) -> Iterator[Job]:
    """Yield what is to be run; ours and theirs of a seed follow each other, so that both meet the same machine."""
    for agent in options.agents:
        for case in options.cases:
            if case in FLAT and agent != "sac":
                continue
            for seed in range(options.seeds):
                yield Job("ours", agent, case, seed)
                if options.rival and case in EARNING:
                    yield Job("theirs", agent, case, seed)


def run(job: Job, total_timesteps: int) -> RegretResult:
    """Train and judge."""
    if job.who == "ours":
        return regret_of(job.agent, job.case, seed=job.seed, total_timesteps=total_timesteps)
    return measure_sb3_regret(job.agent, job.case, seed=job.seed, total_timesteps=total_timesteps)


def _settings(job: Job, total_timesteps: int) -> dict[str, Any]:
    case = CASES[job.case]
    settings: dict[str, Any] = {"case": case, "total_timesteps": total_timesteps}
    if job.who == "ours":
        recipe = market_recipe(job.agent, discount=case.discount)
        training = dataclasses.replace(TRAINING_RECIPE, total_timesteps=total_timesteps)
        return {**settings, "agent": recipe, "training": training}
    return {**settings, "agent": SB3_SETTINGS[job.agent]}


def _line(row: dict[str, Any]) -> str:
    share = "      -" if row["share"] is None else f"{row['share']:7.3f}"
    return (
        f"{row['agent']:6} {row['case']:21} {row['who']:6} {row['seed']:5d} {row['optimum'] / BASIS_POINT:8.2f} "
        f"{row['gain'] / BASIS_POINT:8.2f} {row['standard_error'] / BASIS_POINT:7.2f} {share} {row['turnover']:9.4f} "
        f"{row['exposure']:9.3f} {row['cpu_seconds']:7.1f} {row['wall_seconds']:7.1f}"
    )


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over seeds, one row per agent, case and library."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["agent"], row["case"], row["who"]), []).append(row)
    summary = []
    for (agent, case, who), group in groups.items():
        entry: dict[str, Any] = {"agent": agent, "case": case, "who": who, "seeds": len(group)}
        shares = [row["share"] for row in group if row["share"] is not None]
        if shares:
            entry |= {"share": statistics.median(shares), "min": min(shares), "max": max(shares)}
        for name in ("gain", "turnover", "exposure", "cpu_seconds", "wall_seconds"):
            entry[name] = statistics.median(row[name] for row in group)
        summary.append(entry)
    return summary


def _print_summary(summary: list[dict[str, Any]]) -> None:
    print("\nmedians over seeds")
    print("agent  case                  who    seeds   share [min, max]         gain  exposure   CPU s  wall s")
    for row in summary:
        share = f"{row['share']:.3f} [{row['min']:.3f}, {row['max']:.3f}]" if "share" in row else "-"
        print(
            f"{row['agent']:6} {row['case']:21} {row['who']:6} {row['seeds']:5d}   {share:22} "
            f"{row['gain'] / BASIS_POINT:6.2f} {row['exposure']:9.3f} {row['cpu_seconds']:7.1f} {row['wall_seconds']:7.1f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
