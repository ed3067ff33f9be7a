"""Agents that adapt to regimes beside the best gate of a market that turns from momentum to reversal, ablations included.

    python benchmarks/gate.py --save                       # five seeds; a quarter of an hour
    python benchmarks/gate.py --agents sac --seeds 1
    python benchmarks/gate.py --resume                     # goes on where a run was interrupted

Sharpe ratios are those of unseen bars without costs; `share` is over that of the gate that knows the true parameters and
filters them exactly, on the same bars.
"""

from __future__ import annotations

import ast
import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from records import Records, conditions, digest

from ml.tradingbots.training import gate_optima
from ml.tradingbots.training.gate_optima import (
    MARKER_DISTANCE,
    N_BARS,
    ONE_REGIME,
    SWITCHES,
    TOTAL_TIMESTEPS,
    TWO_REGIMES,
    VOLATILITY,
    GateResult,
    Variant,
    measure_gate,
)
from ml.tradingbots.training.market_recipes import market_recipe

ABLATED = ("sac", "ppo", "dqn")
"""Agents that are measured in every variant; the others with both uses of regimes and with none."""
AGENTS = (*ABLATED, "td3", "ddpg", "a2c")
# A volatility at which account features can be seen, and with them how well the agent's rule has just done.
SEEN_ACCOUNT = 0.01


@dataclass(frozen=True)
class Options:
    """What to run."""

    agents: tuple[str, ...] = AGENTS
    """Which agents are members."""
    seeds: int = 5
    """Seeds per case."""
    total_timesteps: int = TOTAL_TIMESTEPS
    """Transitions per run, all members together."""
    save: bool = False
    """Whether to write benchmarks/results/gate.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


@dataclass(frozen=True)
class Job:
    """One training."""

    agent: str
    variant: Variant
    seed: int
    phis: tuple[float, ...] = TWO_REGIMES
    volatility: float = VOLATILITY

    @property
    def case(self) -> str:
        """What is measured, whatever the seed."""
        market = "one regime" if self.phis == ONE_REGIME else "two regimes"
        return f"{market}, account seen" if self.volatility == SEEN_ACCOUNT else market

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.agent}, {self.variant}, {self.case}, seed {self.seed}"


def main(options: Options) -> None:
    """Run every case and print the table."""
    torch.set_num_threads(1)
    records = Records("gate", save=options.save, resume=options.resume)
    print("agent  variant              market                     seed  Sharpe    gate   share  shuffled   CPU s")
    rows = []
    for job in jobs(options):
        under = conditions(_settings(job, options.total_timesteps))
        row = records.done(job.key, under)
        if row is None:
            row = records.add(job.key, under, run(job, options.total_timesteps))
        rows.append(row)
        print(_line(row), flush=True)
    summary = summarise(rows)
    for entry in summary:
        print(entry)
    records.write(summary)


def jobs(options: Options) -> Iterator[Job]:
    """Yield what is to be run, seed by seed: a seed's paths and its detector are made once."""
    for seed in range(options.seeds):
        for agent in options.agents:
            variants: tuple[Any, ...] = tuple(SWITCHES) if agent in ABLATED else ("both", "generalist")
            for variant in variants:
                yield Job(agent, variant, seed)
        for agent in options.agents:
            for variant in ("both", "generalist") if agent in ABLATED else ():
                yield Job(agent, variant, seed, phis=ONE_REGIME)
        for agent in options.agents:
            if agent in ABLATED:
                for variant in ("both", "generalist"):
                    yield Job(agent, variant, seed, volatility=SEEN_ACCOUNT)


def run(job: Job, total_timesteps: int) -> dict[str, Any]:
    """Train and judge."""
    found: GateResult = measure_gate(
        job.agent,
        job.variant,
        seed=job.seed,
        phis=job.phis,
        total_timesteps=total_timesteps,
        volatility=job.volatility,
    )
    return {**dataclasses.asdict(job), "case": job.case, **dataclasses.asdict(found), "share": found.share}


def _settings(job: Job, total_timesteps: int) -> dict[str, Any]:
    source = Path(gate_optima.__file__).read_text(encoding="utf-8")
    return {
        "cases": digest(ast.dump(ast.parse(source))),
        "bars": N_BARS,
        "marker_distance": MARKER_DISTANCE,
        "agent": market_recipe(job.agent, discount=0.0),
        "switches": SWITCHES[job.variant],
        "phis": job.phis,
        "volatility": job.volatility,
        "total_timesteps": total_timesteps,
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['agent']:6} {row['variant']:20} {row['case']:26} {row['seed']:4d} {row['sharpe_ratio']:7.3f} "
        f"{row['gate_sharpe_ratio']:7.3f} {row['share']:7.3f} {row['shuffled_sharpe_ratio']:9.3f} {row['cpu_seconds']:7.1f}"
    )


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians, worst and best over seeds, one row per agent and measure."""
    found: dict[tuple[str, str], list[float]] = {}

    def note(row: dict[str, Any], measure: str, value: float) -> None:
        found.setdefault((row["agent"], measure), []).append(value)

    alone = {
        (row["agent"], row["seed"]): row["sharpe_ratio"]
        for row in rows
        if row["case"] == "one regime" and row["variant"] == "generalist"
    }
    for row in rows:
        if row["case"] == "two regimes":
            note(row, row["variant"], row["share"])
            if row["variant"] == "both":
                note(row, "shuffled", row["shuffled_sharpe_ratio"] / row["gate_sharpe_ratio"])
        elif row["case"] == "two regimes, account seen":
            note(row, f"{row['variant']}, account seen", row["share"])
        elif row["variant"] == "both" and (row["agent"], row["seed"]) in alone:
            note(row, "one regime", row["sharpe_ratio"] / alone[row["agent"], row["seed"]])
    return [
        {
            "agent": agent,
            "measure": measure,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "seeds": len(values),
        }
        for (agent, measure), values in found.items()
    ]


if __name__ == "__main__":
    main(tyro.cli(Options))
