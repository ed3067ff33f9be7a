"""Features as detectors read them: checked once, one history after another, in units of their training spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.regime_detector import FloatArray, refuse_smoothed

BoolArray: TypeAlias = npt.NDArray[np.bool_]

# Standardised features beyond this would have squares that no float holds; the order of the regimes is clear long before.
_FARTHEST = 1e100


@dataclass(frozen=True)
class Histories:
    """Features of one or several histories, end to end."""

    rows: FloatArray
    """(n_bars, n_features)."""
    starts: BoolArray
    """Whether a bar is the first of its history; (n_bars,)."""
    names: tuple[str, ...] | None
    """Of the features, where they came as DataFrames."""

    def first(self, n_bars: int) -> Histories:
        """Return the first bars."""
        return Histories(self.rows[:n_bars], self.starts[:n_bars], self.names)


def read_histories(X: Any) -> Histories:
    """Read features of one history, or of each in a list.

    Raises:
        TypeError: they are smoothed probabilities, or no numbers.
        ValueError: a shape is wrong, a value is not finite, or histories have different features.
    """
    if not isinstance(X, (list, tuple)):
        rows, names = _read(X, "X")
        parts = [rows]
    else:
        if not X:
            raise ValueError("X is an empty list: give at least one history, an array (n_bars, n_features)")
        if any(np.ndim(part) == 0 for part in X if not isinstance(part, pd.DataFrame)):
            raise ValueError("X is a list of numbers, and a list means several histories: give np.asarray(X)")
        read = [_read(part, f"X[{number}]") for number, part in enumerate(X)]
        parts, names = [rows for rows, _ in read], read[0][1]
        for number, (rows, own) in enumerate(read):
            if rows.shape[1] != parts[0].shape[1] or own != names:
                raise ValueError(f"X[{number}] must have the same features as X[0]; {_described(rows.shape[1], own)}")
    starts = np.zeros(sum(map(len, parts)), dtype=np.bool_)
    starts[np.cumsum([0, *map(len, parts[:-1])])] = True
    return Histories(np.concatenate(parts), starts, names)


def read_rows(X: Any, n_features: int, names: tuple[str, ...] | None) -> FloatArray:
    """Read features of one history for a detector that was fitted; (n_bars, n_features).

    Raises:
        TypeError: they are smoothed probabilities, or no numbers.
        ValueError: they are not the features it was fitted on, or one is not finite.
    """
    rows, own = _read(X, "X")
    _require_same(rows.shape[1], own, n_features, names)
    return rows


def read_bar(x: Any, n_features: int, names: tuple[str, ...] | None) -> FloatArray:
    """Read the features of one bar: a number, (n_features,), a Series, or a table of one row; (1, n_features).

    Raises:
        TypeError: they are smoothed probabilities, or no numbers.
        ValueError: they are not the features the detector was fitted on, or one is not finite.
    """
    refuse_smoothed(x, to="a detector")
    if isinstance(x, pd.Series):
        x = x.to_frame().T
    if not isinstance(x, pd.DataFrame):
        x = np.atleast_1d(np.asarray(x))
        x = x[None] if x.ndim == 1 else x
    rows, own = _read(x, "x")
    if len(rows) != 1:
        raise ValueError(f"x must be one bar, ({n_features},), got {len(rows)} rows; filter(X) takes many")
    _require_same(rows.shape[1], own, n_features, names)
    return rows


def _read(X: Any, name: str) -> tuple[FloatArray, tuple[str, ...] | None]:
    refuse_smoothed(X, to="a detector")
    names = tuple(map(str, X.columns)) if isinstance(X, pd.DataFrame) else None
    if isinstance(X, pd.Series):
        X = X.to_numpy()
    try:
        rows = np.array(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers, (n_bars, n_features), got {type(X).__name__}: {error}") from error
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} must be (n_bars, n_features), at least one of each, got shape {rows.shape}")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = (int(place) for place in bad[0])
        what = f"feature {column if names is None else repr(names[column])}"
        raise ValueError(
            f"{name} must be finite, and {what} of row {row} is {rows[row, column]} (one of {len(bad)} such values): "
            "drop the warm-up of indicators, and bars without a price"
        )
    return rows, names


def _require_same(n_found: int, found: tuple[str, ...] | None, n_features: int, names: tuple[str, ...] | None) -> None:
    wrong = n_found != n_features or (found is not None and names is not None and found != names)
    if wrong:
        raise ValueError(
            f"the detector was fitted on {_described(n_features, names)}, and is given {_described(n_found, found)}: "
            "give the same features in the same order"
        )


def _described(n_features: int, names: Sequence[str] | None) -> str:
    return f"{n_features} features" + (f" ({', '.join(names)})" if names else "")


@dataclass(frozen=True)
class Standardiser:
    """Features minus their training mean, over their training deviation: the units of the data then matter nowhere."""

    center: FloatArray
    """(n_features,)."""
    scale: FloatArray
    """Above 0; (n_features,)."""

    @classmethod
    def of(cls, histories: Histories) -> Standardiser:
        """Learn it.

        Raises:
            ValueError: a feature never changes, or a value is so large that there is no variance.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            center, scale = histories.rows.mean(axis=0), histories.rows.std(axis=0)
        if not np.isfinite(scale).all():
            raise ValueError(
                f"X must have a variance that a float holds; its largest value is {histories.rows.max():g}"
            )
        # A constant that no float holds exactly has a deviation of roundings.
        still = np.flatnonzero(scale <= 1e-12 * np.abs(center))
        if len(still):
            names = histories.names or tuple(f"number {number}" for number in range(len(scale)))
            raise ValueError(f"feature {names[still[0]]} is constant in training and says nothing: leave it out")
        return cls(center, scale)

    def apply(self, rows: FloatArray) -> FloatArray:
        """Return standardised features; (n_bars, n_features)."""
        # Sums and quotients alone, which round the same way for one row as for many.
        with np.errstate(over="ignore"):
            standardised: FloatArray = np.clip((rows - self.center) / self.scale, -_FARTHEST, _FARTHEST)
        return standardised
