"""How close hidden Markov models come to what made the data: filters beside the true one, parameters beside their true values.

    python benchmarks/regimes.py --save                          # all cases, five seeds; some twenty minutes on one core
    python benchmarks/regimes.py --cases alternating --seeds 2
    python benchmarks/regimes.py --resume                        # goes on where a run was interrupted

Every line says the median over seeds and, in brackets, the worst and the best, then how many seeds reach what is required.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from records import Records, conditions, digest

from ml.tradingbots.training import regime_optima
from ml.tradingbots.training.regime_optima import alternate, alternate_online, learn_variance_online, recover, rescale

PACKAGES = ("torch", "numpy", "scipy", "pandas")
RECOVERED = (
    ("bull_bear", 20_000),
    ("bull_sideways_bear", 20_000),
    ("toy", 20_000),
    ("faint", 20_000),
    ("faint", 2_000_000),
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    cases: tuple[str, ...] = ("recover", "alternating", "online variance", "units")
    """Kinds of cases."""
    seeds: int = 5
    """Seeds per case."""
    most_bars: int = 2_000_000
    """Cases with more training bars are left out."""
    save: bool = False
    """Whether to write benchmarks/results/regimes.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


@dataclass(frozen=True)
class Job:
    """One fit."""

    case: str
    what: str
    """Market and number of bars, or the detector."""
    seed: int
    run: Callable[..., Any]
    """Called with the seed; returns a row."""

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.case}, {self.what}, seed {self.seed}"


@dataclass(frozen=True)
class Measure:
    """A figure of a row that should be small, and how large it may be."""

    name: str
    """Property of the row."""
    high: float | None = None
    """What it is required not to exceed."""


MEASURES: dict[str, tuple[Measure, ...]] = {
    "recover": (Measure("accuracy_gap", 0.01), Measure("largest_variance_error", 0.05)),
    "alternating": (Measure("stay_error", 0.02),),
    "online variance": (Measure("variance_error", 0.05),),
    "units": (Measure("largest_difference", 0.001),),
}


def main(options: Options) -> None:
    """Run every case and print the table."""
    unknown = [case for case in options.cases if case not in MEASURES]
    if unknown:
        raise SystemExit(f"unknown cases {unknown}; choose from {', '.join(map(repr, MEASURES))}")
    torch.set_num_threads(1)
    records = Records("regimes", save=options.save, resume=options.resume)
    rows: list[dict[str, Any]] = []
    for job in jobs(options):
        under = conditions(_settings(job), PACKAGES)
        row = records.done(job.key, under)
        if row is None:
            made = {"case": job.case, "what": job.what, "seed": job.seed, **_as_row(job.run(seed=job.seed))}
            row = records.add(job.key, under, made)
        rows.append(row)
        figures = "  ".join(f"{measure.name} {row[measure.name]:.4g}" for measure in MEASURES[job.case])
        print(f"{job.case:15} {job.what:30} seed {job.seed}  {figures}", flush=True)
    summary = summarise(rows)
    _print_summary(summary)
    records.write(summary)


def jobs(options: Options) -> Iterator[Job]:
    """Yield what is to be run."""
    for case in options.cases:
        for what, run in _runs(case, options.most_bars):
            for seed in range(options.seeds):
                yield Job(case, what, seed, run)


def _runs(case: str, most_bars: int) -> Iterator[tuple[str, Callable[..., Any]]]:
    if case == "recover":
        for name, n_bars in RECOVERED:
            if n_bars <= most_bars:
                yield f"{name}, {n_bars:,} bars", functools.partial(recover, name, n_bars)
    elif case == "alternating":
        yield "GaussianHMM", alternate
        yield "OnlineHMM", alternate_online
    elif case == "online variance":
        yield "OnlineHMM", learn_variance_online
    else:
        for name in ("bull_bear", "bull_sideways_bear"):
            yield name, functools.partial(rescale, name)


def _settings(job: Job) -> dict[str, Any]:
    """What a result depends on beside what `records` names: arguments, and the code of the cases."""
    arguments = job.run.args if isinstance(job.run, functools.partial) else ()
    source = Path(regime_optima.__file__).read_text(encoding="utf-8")
    return {"arguments": list(arguments), "cases": digest(ast.dump(ast.parse(source)))}


def _as_row(found: Any) -> dict[str, Any]:
    """Return a row's fields and its properties."""
    names = [name for name, value in vars(type(found)).items() if isinstance(value, property)]
    return {**dataclasses.asdict(found), **{name: getattr(found, name) for name in names}}


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over seeds with the worst and the best, one entry per case and line."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["what"]), []).append(row)
    return [
        {
            "case": case,
            "what": what,
            "seeds": len(group),
            "measures": {measure.name: _over_seeds(group, measure) for measure in MEASURES[case]},
            **(_of_parameters(group) if case == "recover" else {}),
        }
        for (case, what), group in groups.items()
    ]


def _over_seeds(group: list[dict[str, Any]], measure: Measure) -> dict[str, Any]:
    values = [row[measure.name] for row in group]
    found = {"median": statistics.median(values), "worst": max(values), "best": min(values)}
    if measure.high is None:
        return found
    return found | {"high": measure.high, "reached": sum(value <= measure.high for value in values)}


def _of_parameters(group: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Count parameters, all regimes of all seeds together: by chance 1 mean in 20 is beyond two standard errors."""
    means = np.abs(np.concatenate([row["mean_errors"] for row in group]))
    variances = np.abs(np.concatenate([row["variance_errors"] for row in group]))
    deviations = np.concatenate([row["variance_deviations"] for row in group])
    return {
        "best_accuracy": group[0]["best_accuracy"],
        "accuracy": statistics.median(row["accuracy"] for row in group),
        "parameters": len(means),
        "means_within": int((means <= 2.0).sum()),
        "mean_square": float(np.mean(means**2)),
        "variances_within": int((variances <= 0.05).sum()),
        "variance_deviation": float(np.median(deviations)),
        "largest_stay_error": max(float(np.abs(row["stay_errors"]).max()) for row in group),
        "cpu_seconds": statistics.median(row["cpu_seconds"] for row in group),
    }


def _print_summary(summary: list[dict[str, Any]]) -> None:
    print(f"\n{'case':15} {'what':30} {'measure':23} {'median [best, worst]':34} seeds as required")
    for entry in summary:
        for name, found in entry["measures"].items():
            spread = f"{found['median']:.4g} [{found['best']:.4g}, {found['worst']:.4g}]"
            reached = f"{found['reached']} of {entry['seeds']}" if "reached" in found else ""
            print(f"{entry['case']:15} {entry['what']:30} {name:23} {spread:34} {reached}")
        if "parameters" in entry:
            print(
                f"{'':46} means within 2 s.e. {entry['means_within']} of {entry['parameters']}, mean square "
                f"{entry['mean_square']:.2f}; variances within 5% {entry['variances_within']}; CPU {entry['cpu_seconds']:.1f} s"
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
