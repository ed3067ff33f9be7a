"""Finding out whether anything uses prices that it could not have known: change the future and see what moves.

Whatever is said at bar t must stay what it is, bit for bit, when bars after t change or are taken away. The audit does both
at many bars, to anything that turns a price table into numbers by time: features, fitted predictors, and pipelines that fit
inside. What it cannot see is a column of the table itself that was made with later prices; such columns are compared with
the returns that followed, over the horizons of the model too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, IntArray
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.training.audited_outputs import Outputs, columns_of, outputs_of, own_columns
from ml.tradingbots.training.price_tables import ChangeableTable, until
from ml.tradingbots.training.target_leaks import IS_TARGET, RESEMBLES, TARGET_HORIZONS, resemblances

Pipeline: TypeAlias = Callable[[Any], Any]

# How far prices after a bar are moved, in log units: a tenth of a percent, a third, and a thousandfold.
SIZES = {"small": 1e-3, "large": 0.3, "extreme": float(np.log(1_000.0))}
_COLUMNS = ("change", "bar", "first_moved", "column", "n_moved", "bars_ahead", "largest_move")


class LookAheadError(ValueError):
    """Something used prices that it could not have known."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LookAheadReport:
    """What moved when the future changed."""

    findings: pd.DataFrame
    """One row per change that moved something: `change` (what was done to the bars after `bar`), `first_moved` (timestamp) and
    `column` (the first output that moved), `n_moved` (how many did), `bars_ahead` (how far the earliest of them looked at
    least) and `largest_move` (in standard deviations of its column). Columns that resemble the target have `column`, how
    far they look in `bars_ahead`, and their correlation in `largest_move`."""
    checks: pd.DataFrame
    """One row per change: `change`, `bar`, `n_compared` (values at or before the bar), `n_moved`, `note`."""

    @property
    def passed(self) -> bool:
        """Whether nothing moved."""
        return self.findings.empty

    def raise_for_leaks(self) -> None:
        """Raise if something moved.

        Raises:
            LookAheadError: with the findings.
        """
        if not self.passed:
            raise LookAheadError(repr(self))

    def __repr__(self) -> str:
        """What was found, in words, and the findings."""
        n_bars, n_compared = self.checks["bar"].nunique(), int(self.checks["n_compared"].sum())
        done = f"{len(self.checks)} changed tables at {n_bars} bars, {n_compared:,} values compared"
        if self.passed:
            return f"No look-ahead found: {done}."
        first = self.findings.iloc[0]
        return (
            f"Look-ahead: {len(self.findings)} findings in {done}. First: {_in_words(first)}\n"
            f"{self.findings.head(20).to_string(index=False)}"
        )


def audit_look_ahead(
    model_or_pipeline: Any,
    price_data: PriceData,
    *,
    n_checks: int = 20,
    seed: int = 0,
    truncation_tolerance: float = 1e-5,
) -> LookAheadReport:
    """Look for anything that depends on prices it could not have known.

    At each of some bars t the prices after t are moved (by a little, by a lot, a thousandfold; all columns) and outputs at or
    before t must not change by a single bit; then the table is cut off after t, and they must be the same. A leak that
    training made into a fitted model does not show in what the model says of other prices: audit a pipeline that fits, such
    as `walk_forward_pipeline`.

    Args:
        model_or_pipeline: something with `predict(price_data)`, or a function of it: a feature, a pipeline that splits, fits
            and forecasts. It returns numbers by time: a table or series with the timestamps as index, or an array with a row
            per bar. It must not write into the table, and do the same every time.
        price_data: what `Bars.from_frame` accepts; it is given in the same form.
        n_checks: bars t, at least 1; the first output is always among them. Each costs two calls.
        seed: of the choice of bars and of the moves.
        truncation_tolerance: difference that is rounding where the table is cut off, in standard deviations of a column:
            products of shorter matrices are added up in another order. Rows that the shorter table lacks are no finding: a
            test block that is not over yet has no forecasts.

    Returns:
        What was done and what moved.

    Raises:
        ValueError: there is nothing to audit: no output before the last bar.
    """
    if n_checks < 1:
        raise ValueError(f"n_checks must be at least 1, got {n_checks}")
    table = ChangeableTable(price_data)
    whole = table.unchanged()
    base = outputs_of(model_or_pipeline, whole, table.bars)
    rng = np.random.default_rng(seed)
    bars = _chosen_bars(base, table.bars.n_bars, n_checks, rng)
    audit = _Audit(table.bars, base)
    # Without this, everything random would look like a leak of everything.
    audit.compare("nothing", table.bars.n_bars - 1, outputs_of(model_or_pipeline, whole, table.bars), 0.0)
    if not audit.found:
        for number, bar in enumerate(bars):
            change = list(SIZES)[number % len(SIZES)]
            moved = table.moved(bar, SIZES[change], rng)
            audit.compare(change, bar, outputs_of(model_or_pipeline, moved, table.bars), 0.0)
            try:
                shorter = outputs_of(model_or_pipeline, until(whole, bar + 1), table.bars)
            except ValueError as error:  # Too short to say anything, and so nothing to compare.
                audit.skip("cut off", bar, str(error))
            else:
                audit.compare("cut off", bar, shorter, truncation_tolerance)
    columns = columns_of(table.bars, base)
    horizons, volatility_bars = _own_targets(model_or_pipeline)
    audit.found += resemblances(
        table.bars,
        columns,
        sorted({*TARGET_HORIZONS, *horizons}),
        volatility_bars=volatility_bars,
        fitted=frozenset(set(columns) - set(own_columns(table.bars)))
        if hasattr(model_or_pipeline, "predict")
        else frozenset(),
    )
    return LookAheadReport(
        findings=pd.DataFrame(audit.found, columns=list(_COLUMNS)), checks=pd.DataFrame(audit.checks)
    )


def walk_forward_pipeline(factory: Callable[[], Any], splitter: Any) -> Callable[[PriceData], pd.DataFrame]:
    """Return a function that fits a fresh predictor in every fold and forecasts its test bars, to be audited.

    The predictor is given the whole table, so that one that looks beyond its training bars is found out. Use a splitter whose
    folds do not depend on how long the table is: `WalkForwardValidator(train_size=..., test_size=...)`.

    Args:
        factory: makes an unfitted predictor.
        splitter: makes folds of bars, each tested once.
    """

    def forecast(price_data: PriceData) -> pd.DataFrame:
        parts: list[pd.DataFrame] = [
            factory().fit(price_data, bars=train).predict(price_data, bars=test)
            for train, test in splitter.split(price_data)
        ]
        return pd.concat(parts).sort_index()

    return forecast


def resembling_columns(price_data: PriceData, horizons: Sequence[int] = TARGET_HORIZONS) -> pd.DataFrame:
    """Return which columns of a table are, as good as, what is to be predicted.

    A column of one's own is compared with the return that followed, its sign, its rank and in units of volatility, as it is
    and as a price over the close. Markets whose past tells as much of the future are left alone.

    Args:
        price_data: what `Bars.from_frame` accepts.
        horizons: bars ahead.

    Returns:
        Findings as in `LookAheadReport`, none where all is well.
    """
    bars = Bars.from_frame(price_data)
    return pd.DataFrame(resemblances(bars, own_columns(bars), horizons), columns=list(_COLUMNS))


def _own_targets(model: Any) -> tuple[tuple[int, ...], int]:
    """Return the horizons that a model says it forecasts, and the look-back of its volatility; none and 0 without."""
    params = model.get_params() if callable(getattr(model, "get_params", None)) else {}
    horizons = getattr(model, "horizons", params.get("horizons", ()))
    numbers = np.atleast_1d(np.asarray(horizons))
    known = tuple(int(h) for h in numbers if h > 0) if np.issubdtype(numbers.dtype, np.number) else ()
    look_back = getattr(model, "volatility_bars", params.get("volatility_bars", 0))
    return known, int(look_back) if isinstance(look_back, int | np.integer) and look_back > 1 else 0


def _chosen_bars(base: Outputs, n_bars: int, n_checks: int, rng: np.random.Generator) -> list[int]:
    """Return bars with an output: the first one of all, where labels of training reach furthest, and random ones."""
    said = base.bars[np.isfinite(base.values).any(1)]
    said = said[said < n_bars - 1]
    if not len(said):
        raise ValueError("there is nothing to audit: no output before the last bar; give more bars")
    others = rng.permutation(said[1:])[: n_checks - 1]
    return sorted({int(said[0]), *others.tolist()})


class _Audit:
    """Collects what was compared and what moved."""

    def __init__(self, bars: Bars, base: Outputs) -> None:
        self.bars, self.base = bars, base
        spread = [column[np.isfinite(column)].std() if np.isfinite(column).any() else 0.0 for column in base.values.T]
        self.scale = np.where(np.array(spread) > 0.0, spread, 1.0)
        self.found: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []

    def skip(self, change: str, bar: int, why: str) -> None:
        """Note that there was nothing to compare."""
        self._note(change, bar, 0, 0, why)

    def compare(self, change: str, bar: int, other: Outputs, tolerance: float) -> None:
        """Compare what was said at or before a bar with what is said now."""
        if other.columns != self.base.columns:
            raise ValueError(
                f"the columns changed with the prices, from {self.base.columns[:3]} to {other.columns[:3]}: what is audited "
                "must always say the same things"
            )
        before, after = self.base.before(bar), other.before(bar)
        rows = np.union1d(before.bars, after.bars)
        old, new = (self._laid_out(part, rows) for part in (before, after))
        moved = ~((old == new) | (np.isnan(old) & np.isnan(new)))
        if tolerance:
            # A shorter table may not say everything yet.
            moved &= ~np.isnan(new) & np.isin(rows, before.bars)[:, None]
            moved &= ~(np.abs(new - old) <= tolerance * self.scale)
        self._note(change, bar, old.size, int(moved.sum()), "")
        if moved.any():
            self._find(change, bar, rows, np.abs(new - old) / self.scale, moved)

    def _laid_out(self, part: Outputs, rows: IntArray) -> FloatArray:
        values = np.full((len(rows), len(part.columns)), np.nan)
        values[np.searchsorted(rows, part.bars)] = part.values
        return values

    def _note(self, change: str, bar: int, n_compared: int, n_moved: int, note: str) -> None:
        row = {"change": change, "bar": self.bars.timestamps[bar], "n_compared": n_compared}
        self.checks.append({**row, "n_moved": n_moved, "note": note})

    def _find(self, change: str, bar: int, rows: IntArray, sizes: FloatArray, moved: npt.NDArray[np.bool_]) -> None:
        row, column = (int(place) for place in np.argwhere(moved)[0])
        known = sizes[moved & np.isfinite(sizes)]
        self.found.append(
            {
                "change": change,
                "bar": self.bars.timestamps[bar],
                "first_moved": self.bars.timestamps[rows[row]],
                "column": self.base.columns[column],
                "n_moved": int(moved.sum()),
                "bars_ahead": bar - int(rows[row]) + 1,
                "largest_move": float(known.max()) if len(known) else float("nan"),
            }
        )


def _in_words(finding: pd.Series[Any]) -> str:
    if finding["change"] == IS_TARGET:
        return (
            f"column {finding['column']!r} has a correlation of {finding['largest_move']:.3f} with the return of the next "
            f"{finding['bars_ahead']} bars (or its sign, its rank, or in units of volatility)."
        )
    if finding["change"] == RESEMBLES:
        return (
            f"column {finding['column']!r} resembles the return of the next {finding['bars_ahead']} bars, correlation "
            f"{finding['largest_move']:.3f}, which the past does not explain: it must have been made with later prices."
        )
    if finding["change"] == "nothing":
        return "the same table gave two different answers; fix every seed, or nothing can be compared."
    done = "the table was cut off" if finding["change"] == "cut off" else f"prices were moved ({finding['change']})"
    return (
        f"{finding['column']!r} at {finding['first_moved']} moved when {done} after {finding['bar']}, "
        f"{finding['bars_ahead']} bars ahead of it."
    )
