"""What every splitter of bars is: a rule that makes folds of a time axis, in scikit-learn's splitter protocol."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.timestamps import read_timestamps

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TimeAxis:
    """The time axis of what is split."""

    n_bars: int
    """How many bars there are."""
    timestamps: pd.DatetimeIndex | None
    """When each became known, in UTC; None where the data have no dates."""
    kind: str
    """What messages call the data."""


@dataclass(frozen=True)
class Fold:
    """One fold as bar positions, with what was left out of its training."""

    train: IntArray
    """Training bars, increasing."""
    test: IntArray
    """Test bars, increasing."""
    n_purged: int
    """Bars left out of training because their labels overlap with the test's."""
    n_embargoed: int
    """Bars left out beyond those."""


class BarSplitter(ABC):
    """A rule that makes folds of bars; what all splitters have in common."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield the folds in order.

        Args:
            X: what is split: a `Bars`, a DataFrame with one row per bar, or anything with a length.
            y: ignored; scikit-learn's protocol has it.
            groups: ignored, except by `PanelSplit`.

        Yields:
            Positions of the training bars and of the test bars, both increasing; (n_train,) and (n_test,).

        Raises:
            ValueError: the data are too short for the folds; the message says what would fit.
        """
        for fold in self._folds(axis_of(X)):
            yield fold.train, fold.test

    @abstractmethod
    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""

    def purge_report(self, X: Any, y: Any = None, groups: Any = None) -> pd.DataFrame:
        """Return what each fold learns from, is judged on and leaves out.

        Args:
            X: as in `split`.
            y: ignored.
            groups: ignored.

        Returns:
            One row per fold: `n_train_bars`, `n_test_bars`, `n_purged` and `n_embargoed` (bars left out of training),
            `train_start`, `train_end`, `test_start` and `test_end` (first and last bar, as timestamps where there are
            any, else as positions).
        """
        axis = axis_of(X)
        return _report(self._folds(axis), axis.timestamps)

    @abstractmethod
    def _folds(self, axis: TimeAxis) -> Iterator[Fold]:
        """Yield the folds of a time axis."""

    def __repr__(self) -> str:
        """The constructor call that makes it, arguments in alphabetical order."""
        return constructor_call(self)


def axis_of(X: Any) -> TimeAxis:
    """Read the time axis of what is split.

    Raises:
        TypeError: it has no length.
        ValueError: it has several rows per date, or dates that are missing or out of order.
    """
    if isinstance(X, Bars):
        return TimeAxis(X.n_bars, X.timestamps, "Bars")
    index = X.index if isinstance(X, (pd.DataFrame, pd.Series)) else X if isinstance(X, pd.Index) else None
    if isinstance(index, pd.MultiIndex) or (isinstance(index, pd.DatetimeIndex) and index.has_duplicates):
        raise ValueError(
            "X has several rows per date. Split it by date: PanelSplit(splitter).split(X, groups=dates); where it should "
            "have one row per date, drop the repeated ones"
        )
    kind = type(X).__name__ if index is None else f"{type(X).__name__} with {type(index).__name__}"
    if isinstance(index, pd.DatetimeIndex):
        return TimeAxis(len(index), read_timestamps(index), kind)
    shape = getattr(X, "shape", None)
    if not shape and not hasattr(X, "__len__"):
        raise TypeError(f"X must be a Bars, a DataFrame or something with a length, got {kind}")
    return TimeAxis(int(shape[0]) if shape else len(X), None, kind)


def spread(n_bars: int, n_blocks: int) -> IntArray:
    """Return the sizes of blocks that differ by one at most, larger ones first; (n_blocks,)."""
    sizes = np.full(n_blocks, n_bars // n_blocks, dtype=np.int64)
    sizes[: n_bars % n_blocks] += 1
    return sizes


def _report(folds: Iterable[Fold], timestamps: pd.DatetimeIndex | None) -> pd.DataFrame:
    rows = []
    for fold in folds:
        ends = {
            "train_start": fold.train[0],
            "train_end": fold.train[-1],
            "test_start": fold.test[0],
            "test_end": fold.test[-1],
        }
        named = {name: int(bar) if timestamps is None else timestamps[bar] for name, bar in ends.items()}
        counts = {"n_train_bars": len(fold.train), "n_test_bars": len(fold.test)}
        rows.append({**counts, "n_purged": fold.n_purged, "n_embargoed": fold.n_embargoed, **named})
    return pd.DataFrame(rows).rename_axis("fold")


def constructor_call(splitter: object) -> str:
    """Return the call that makes an object whose constructor arguments are its attributes, in alphabetical order."""
    names = sorted(inspect.signature(type(splitter)).parameters)
    return f"{type(splitter).__name__}({', '.join(f'{name}={getattr(splitter, name)!r}' for name in names)})"


def checked_count(value: Any, name: str, *, least: int) -> int:
    """Return an integer argument.

    Raises:
        ValueError: it is none, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
    return int(value)
