"""How close one agent of several tasks comes to the best there is in each, on unseen bars of markets whose optimum is known.

    python benchmarks/multitask.py --save                        # all cases, five seeds; some minutes on one core
    python benchmarks/multitask.py --cases conflict --seeds 2
    python benchmarks/multitask.py --resume                      # goes on where a run was interrupted

A share is a mean log return per bar over the optimum's on the same bars.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from records import Records, conditions, digest

from ml.tradingbots.training import multitask_optima
from ml.tradingbots.training.multitask_optima import (
    CONFLICT,
    N_ASSETS,
    REWARDS,
    SCARCE,
    TaskShares,
    conflict_shares,
    reward_shares,
    scarce_shares,
)

CASES = ("conflict", "rewards", "scarce")


@dataclass(frozen=True)
class Options:
    """What to run."""

    cases: tuple[str, ...] = CASES
    """Names of cases."""
    seeds: int = 5
    """Seeds, from 0."""
    save: bool = False
    """Whether to write benchmarks/results/multitask.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


@dataclass(frozen=True)
class Form:
    """One way of training in a case, and what is read from it."""

    case: str
    what: str
    run: Callable[[int], TaskShares]
    """Called with the seed."""
    settings: Any


FORMS = (
    Form("conflict", "told the task", lambda seed: conflict_shares(seed=seed), CONFLICT),
    Form("conflict", "not told", lambda seed: conflict_shares(seed=seed, identity=False), CONFLICT),
    Form("rewards", "a scale for each", lambda seed: reward_shares(seed=seed), REWARDS),
    Form("rewards", "one scale for both", lambda seed: reward_shares(seed=seed, pooled=True), REWARDS),
    Form("scarce", "twenty assets", lambda seed: scarce_shares(seed=seed), SCARCE),
    Form("scarce", "one asset", lambda seed: scarce_shares(seed=seed, n_assets=1, n_judged=1), SCARCE),
    Form(
        "scarce",
        "one asset, as many timesteps in all",
        lambda seed: scarce_shares(
            seed=seed, n_assets=1, n_judged=1, timesteps_per_asset=N_ASSETS * SCARCE.timesteps_per_task
        ),
        SCARCE,
    ),
)


def main(options: Options) -> None:
    """Run, print and keep."""
    torch.set_num_threads(1)
    records = Records("multitask", save=options.save, resume=options.resume)
    source = digest(ast.dump(ast.parse(Path(multitask_optima.__file__).read_text(encoding="utf-8"))))
    for form, seed in _jobs(options):
        under = conditions({"case": form.case, "what": form.what, "recipe": form.settings, "cases": source})
        key = f"{form.case}, {form.what}, seed {seed}"
        row = records.done(key, under)
        if row is None:
            found = form.run(seed)
            row = records.add(
                key,
                under,
                {
                    "case": form.case,
                    "what": form.what,
                    "seed": seed,
                    "shares": found.shares,
                    "swapped": found.swapped,
                    "mean": found.mean,
                    "worst": found.worst,
                    "cpu_seconds": found.cpu_seconds,
                    "num_timesteps": found.num_timesteps,
                },
            )
        shares = ", ".join(f"{name} {share:.3f}" for name, share in row["shares"].items())
        print(f"{key:60} {shares}; {row['cpu_seconds']:.1f} CPU s", flush=True)
    records.write(summarise(list(records.rows.values())))


def _jobs(options: Options) -> Iterator[tuple[Form, int]]:
    for form in FORMS:
        if form.case in options.cases:
            for seed in range(options.seeds):
                yield form, seed


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians, worst and best over seeds, one entry per case and form."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["what"]), []).append(row)
    return [
        {
            "case": case,
            "what": what,
            "seeds": len(group),
            "shares": {name: _spread([row["shares"][name] for row in group]) for name in group[0]["shares"]},
            "mean": _spread([row["mean"] for row in group]),
            "swapped": {name: _spread([row["swapped"][name] for row in group]) for name in group[0]["swapped"]},
            "cpu_seconds": statistics.median(row["cpu_seconds"] for row in group),
        }
        for (case, what), group in groups.items()
    ]


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main(tyro.cli(Options))
