"""How close predictors come to the best forecast there is, on unseen bars of markets where it is known.

    python benchmarks/predictors.py --save                          # all cases, five seeds; twenty minutes on one core
    python benchmarks/predictors.py --cases noise pattern --seeds 2
    python benchmarks/predictors.py --resume                        # goes on where a run was interrupted

Every line says the median over seeds and, in brackets, the worst and the best, then how many seeds reach what is required.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from records import Records, conditions, digest

from ml.tradingbots.training import forecast_optima
from ml.tradingbots.training.forecast_optima import (
    AUTOREGRESSION_RECIPES,
    PATTERN_RECIPES,
    SINE_RECIPES,
    combine,
    cover_break,
    cover_stationary,
    learn_autoregression,
    learn_pattern,
    learn_sine,
    recover_mixture,
)

CASES = ("ar1", "noise", "sine", "pattern", "mixture", "ensembles", "intervals", "break")
# A fit is a few tenths of a second, and a coverage of 250 bars is known to two points: more seeds than elsewhere.
N_BREAK_SEEDS = 20


@dataclass(frozen=True)
class Options:
    """What to run."""

    cases: tuple[str, ...] = CASES
    """Names of cases."""
    seeds: int = 5
    """Seeds per case and predictor; `break` has four times as many."""
    save: bool = False
    """Whether to write benchmarks/results/predictors.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


@dataclass(frozen=True)
class Job:
    """One fit, or one ensemble's fits."""

    case: str
    what: str
    """Predictor, and head or market where there are several."""
    seed: int
    run: Callable[..., Any]
    """Called with the seed; returns a row or several."""

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.case}, {self.what}, seed {self.seed}"


@dataclass(frozen=True)
class Measure:
    """A figure of a row, and the range it is required to lie in."""

    name: str
    """Property of the row."""
    low: float = -math.inf
    high: float = math.inf
    target: float | None = None
    """What would be best between two bounds; None: their middle."""
    unit: str = "%"
    """Figures are fractions, shown as percentages or percentage points, or counts of standard errors (s.e.)."""
    is_loss: bool = False
    """Whether less is better where nothing is required."""

    def reached(self, value: float) -> bool:
        """Whether a seed does as required."""
        return self.low <= value <= self.high

    def badness(self, value: float) -> float:
        """How far from what would be best; only comparisons mean anything."""
        if math.isinf(self.low) and math.isinf(self.high):
            return value if self.is_loss else -value
        if math.isinf(self.low) or math.isinf(self.high):
            return value if math.isinf(self.low) else -value
        target = 0.5 * (self.low + self.high) if self.target is None else self.target
        return max((value - target) / (self.high - target), (target - value) / (target - self.low))


COVERAGE = Measure("coverage", 0.88, 0.92)
MEASURES: dict[str, tuple[Measure, ...]] = {
    "ar1": (
        Measure("r2_share", low=0.8),
        Measure("accuracy_gap", -0.01, 0.01, unit="points"),
        COVERAGE,
        Measure("pinball_excess", high=0.03),
    ),
    "noise": (Measure("r2", -0.005, 0.001, target=0.0), COVERAGE),
    "sine": (Measure("r2_share", low=0.8), Measure("linear_share")),
    "pattern cnn": (Measure("auc_share", low=0.8), Measure("r2_share")),
    "pattern ridge, 16 lags": (Measure("auc_share"), Measure("r2_share")),
    "pattern ridge, 1 lag": (Measure("auc_errors", -2.0, 2.0, unit="s.e."), Measure("r2_share")),
    "mixture": (Measure("largest_error", high=3.0, unit="s.e."),),
    "ensembles": (
        Measure("excess", high=1.0, unit="s.e."),
        Measure("paired_excess", unit="s.e.", is_loss=True),
        Measure("r2_share"),
        Measure("best_r2_share"),
    ),
    # A majority is not meant to have a small squared error.
    "ensembles voting": (
        Measure("excess", unit="s.e.", is_loss=True),
        Measure("paired_excess", unit="s.e.", is_loss=True),
        Measure("r2_share"),
        Measure("best_r2_share"),
    ),
    "intervals": (COVERAGE, Measure("conformal_coverage", 0.88, 0.92)),
    "break": (Measure("during", 0.87, 0.93), Measure("after", 0.87, 0.93), Measure("before"), Measure("plain_during")),
}


def main(options: Options) -> None:
    """Run every case and print the table."""
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        raise SystemExit(f"unknown cases {unknown}; choose from {', '.join(CASES)}")
    torch.set_num_threads(1)
    records = Records("predictors", save=options.save, resume=options.resume)
    rows: list[dict[str, Any]] = []
    for job in jobs(options):
        under = conditions(_settings(job))
        row = records.done(job.key, under)
        if row is None:
            found = job.run(seed=job.seed)
            parts = [_as_row(part) for part in (found if isinstance(found, tuple) else (found,))]
            row = records.add(job.key, under, {"case": job.case, "what": job.what, "seed": job.seed, "found": parts})
        rows.append(row)
        for what, part, measures in _parts(row):
            figures = "  ".join(f"{m.name} {_shown(part[m.name], m)}" for m in measures)
            print(
                f"{job.case:9} {what:26} seed {job.seed:2d}  {figures}  CPU {part.get('cpu_seconds', 0):.1f} s",
                flush=True,
            )
    summary = summarise(rows)
    _print_summary(summary)
    records.write(summary)


def jobs(options: Options) -> Iterator[Job]:
    """Yield what is to be run."""
    for case in options.cases:
        for what, run in _runs(case):
            n_seeds = options.seeds * (N_BREAK_SEEDS // 5 if case == "break" else 1)
            for seed in range(n_seeds):
                yield Job(case, what, seed, run)


def _runs(case: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    with_config: dict[str, tuple[Any, dict[str, Any]]] = {
        "ar1": (learn_autoregression, AUTOREGRESSION_RECIPES),
        "noise": (functools.partial(learn_autoregression, phi=0.0), AUTOREGRESSION_RECIPES),
        "sine": (learn_sine, SINE_RECIPES),
        "pattern": (learn_pattern, PATTERN_RECIPES),
        "break": (cover_break, AUTOREGRESSION_RECIPES),
    }
    if case in with_config:
        function, recipes = with_config[case]
        yield from ((name, functools.partial(function, config)) for name, config in recipes.items())
    elif case == "mixture":
        yield "stacking", recover_mixture
    elif case == "ensembles":
        yield "ar1", functools.partial(combine, "ar1")
        yield "pattern", functools.partial(combine, "pattern")
    else:
        for market in ("garch", "student_t"):
            for name in ("lstm", "cnn"):
                for head in ("gaussian", "student_t", "quantile"):
                    run = functools.partial(cover_stationary, AUTOREGRESSION_RECIPES[name], market, head=head)
                    yield f"{market}, {name}, {head}", run


def _settings(job: Job) -> dict[str, Any]:
    """What a result depends on beside what `records` names: arguments, and the code of the cases without its comments."""
    run = job.run if isinstance(job.run, functools.partial) else functools.partial(job.run)
    source = Path(forecast_optima.__file__).read_text(encoding="utf-8")
    return {"arguments": [*run.args, run.keywords], "cases": digest(ast.dump(ast.parse(source)))}


def _as_row(part: Any) -> dict[str, Any]:
    """Return a row's fields and its properties."""
    names = [name for name, value in vars(type(part)).items() if isinstance(value, property)]
    figures = {name: getattr(part, name) for name in names}
    known = {name: value for name, value in figures.items() if not math.isnan(value)}
    return {**dataclasses.asdict(part), **known}


def _parts(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[Measure, ...]]]:
    """Yield the lines of a row: its name, figures and what is required of them."""
    case, what = row["case"], row["what"]
    for part in row["found"]:
        named = {"sine": f"{what}, horizon {part.get('horizon')}", "ensembles": f"{what}, {part.get('method')}"}
        kind = f"{case} {part.get('method', what)}"
        yield named.get(case, what), part, MEASURES.get(kind) or MEASURES[case]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over seeds with the worst and the best, one entry per case and line."""
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], tuple[Measure, ...]]]] = {}
    for row in rows:
        for what, part, measures in _parts(row):
            groups.setdefault((row["case"], what), []).append((part, measures))
    summary = []
    for (case, what), group in groups.items():
        found = {m.name: _over_seeds([part[m.name] for part, _ in group], m) for m in group[0][1]}
        seconds = [part["cpu_seconds"] for part, _ in group if "cpu_seconds" in part]
        entry = {"case": case, "what": what, "seeds": len(group), "measures": found}
        summary.append(entry | ({"cpu_seconds": statistics.median(seconds)} if seconds else {}))
    return summary


def _over_seeds(values: list[float], measure: Measure) -> dict[str, Any]:
    ordered = sorted(values, key=measure.badness)
    limits = {"low": measure.low, "high": measure.high}
    return {
        "median": statistics.median(values),
        "worst": ordered[-1],
        "best": ordered[0],
        "reached": sum(map(measure.reached, values)),
        "unit": measure.unit,
        **{name: limit for name, limit in limits.items() if math.isfinite(limit)},
    }


def _print_summary(summary: list[dict[str, Any]]) -> None:
    print(f"\n{'case':9} {'what':26} {'measure':19} {'median [worst, best]':29} seeds as required   CPU s per fit")
    for entry in summary:
        for name, found in entry["measures"].items():
            measure = Measure(name, unit=found["unit"])
            shown = [_shown(found[key], measure) for key in ("median", "worst", "best")]
            is_bound = "low" in found or "high" in found
            reached = f"{found['reached']} of {entry['seeds']}" if is_bound else ""
            print(
                f"{entry['case']:9} {entry['what']:26} {name:19} {f'{shown[0]} [{shown[1]}, {shown[2]}]':29} "
                f"{reached:19} {entry.get('cpu_seconds', 0.0):.1f}"
            )


def _shown(value: float, measure: Measure) -> str:
    if measure.unit == "%":
        return f"{value:.2%}"
    return f"{100.0 * value if measure.unit == 'points' else value:.2f} {measure.unit}"


if __name__ == "__main__":
    main(tyro.cli(Options))
