"""Agents that adapt to bull, sideways and bear markets beside what can be known of them, five seeds.

    python benchmarks/bull_bear.py --save          # ten minutes
    python benchmarks/bull_bear.py --agents ppo --seeds 1
    python benchmarks/bull_bear.py --resume        # goes on where a run was interrupted

`share` is the Sharpe ratio above buy-and-hold's over that of the sign of what the exact filter expects, both on the same unseen
bars.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from records import Records, conditions

from ml.tradingbots.training.bull_bear_optima import (
    N_TEST_BARS,
    N_TRAIN_BARS,
    TOTAL_TIMESTEPS,
    BullBearResult,
    measure_bull_bear,
)
from ml.tradingbots.training.gate_optima import SWITCHES, Variant
from ml.tradingbots.training.market_recipes import market_recipe

VARIANTS: tuple[Variant, ...] = ("both", "features only", "mixing only", "generalist")


@dataclass(frozen=True)
class Options:
    """What to run."""

    agents: tuple[str, ...] = ("sac", "ppo")
    """Which agents are members."""
    seeds: int = 5
    """Seeds per variant."""
    save: bool = False
    """Whether to write benchmarks/results/bull_bear.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


def main(options: Options) -> None:
    """Run every case and print the table."""
    torch.set_num_threads(1)
    records = Records("bull_bear", save=options.save, resume=options.resume)
    rows = []
    for agent in options.agents:
        for variant in VARIANTS:
            for seed in range(options.seeds):
                key, under = f"{agent}, {variant}, seed {seed}", conditions(_settings(agent, variant))
                row = records.done(key, under)
                if row is None:
                    found: BullBearResult = measure_bull_bear(agent, variant, seed=seed)
                    row = records.add(key, under, {**dataclasses.asdict(found), "share": found.share})
                rows.append(row)
                print(
                    {name: row[name] for name in ("agent_type", "variant", "seed", "share", "cpu_seconds")}, flush=True
                )
    summary = [_summed(rows, agent) for agent in options.agents]
    for entry in summary:
        print(entry)
    records.write(summary)


def _settings(agent: str, variant: Variant) -> dict[str, Any]:
    return {
        "agent": market_recipe(agent, discount=0.0),
        "switches": SWITCHES[variant],
        "total_timesteps": TOTAL_TIMESTEPS,
        "bars": (N_TRAIN_BARS, N_TEST_BARS),
    }


def _summed(rows: list[dict[str, Any]], agent: str) -> dict[str, Any]:
    own = [row for row in rows if row["agent_type"] == agent]
    shares = {variant: [row["share"] for row in own if row["variant"] == variant] for variant in VARIANTS}
    ratios = {
        name: statistics.median(row[name] for row in own if row["variant"] == "both")
        for name in ("sharpe_ratio", "best_sharpe_ratio", "hold_sharpe_ratio")
    }
    spreads = {
        variant: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for variant, values in shares.items()
    }
    return {"agent": agent, "shares": spreads, **ratios, "seeds": len(shares["both"])}


if __name__ == "__main__":
    main(tyro.cli(Options))
