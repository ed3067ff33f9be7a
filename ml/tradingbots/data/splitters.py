"""Splitters: which bars are learned from and which are judged on, without labels that reach across.

They follow scikit-learn's splitter protocol, `split(X, y=None, groups=None)` and `get_n_splits`, so they fit
`cross_val_score` as well as our own `validate`. A bar here is an origin: where its label reaches h bars ahead, `purge_size`
must be at least h. Purge and embargo are those of López de Prado, Advances in Financial Machine Learning (2018), chapters
7 and 12. `X` is anything with a length, a DataFrame (its dates are used where sizes are calendar lengths), or a `Bars`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.data.bar_splitter import (
    BarSplitter,
    Fold,
    IntArray,
    TimeAxis,
    axis_of,
    checked_count,
    constructor_call,
    spread,
)
from ml.tradingbots.data.walk_forward import WalkForwardValidator

__all__ = ["BarSplitter", "CombinatorialPurgedCV", "PanelSplit", "PurgedKFold", "WalkForwardValidator"]

# Each split is a fit of a whole model; beyond this the arguments are a slip, not an intention.
_MOST_SPLITS = 100_000
_TRAIN, _EMBARGOED, _PURGED, _TEST = range(4)


class PurgedKFold(BarSplitter):
    """K blocks in time order, each tested once by training on both sides of it.

    Training on what follows the test tells how well a model fits, not what a strategy would have lived; for that, use
    `WalkForwardValidator`.

    scikit-learn's `cross_val_score` glues the training rows on both sides of a test into one table, so that one return that
    never was crosses the gap; `validate` and `WalkForwardValidator` have no such return.

    Args:
        n_splits: number of folds; their sizes differ by one bar at most.
        purge_size: bars dropped on each side of a test block, whose labels overlap with the test's: those before it reach
            into it, and its own reach into those after it. At least the horizon of the labels.
        embargo_size: bars dropped after those that follow the test block, whose windows still hold what was tested.

    >>> for train, test in PurgedKFold(n_splits=3, purge_size=1, embargo_size=1).split(range(9)):
    ...     print(train, test)
    [5 6 7 8] [0 1 2]
    [0 1 8] [3 4 5]
    [0 1 2 3 4] [6 7 8]
    """

    def __init__(self, n_splits: int = 5, purge_size: int = 0, embargo_size: int = 0) -> None:
        self.n_splits = checked_count(n_splits, "n_splits", least=2)
        self.purge_size = checked_count(purge_size, "purge_size", least=0)
        self.embargo_size = checked_count(embargo_size, "embargo_size", least=0)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def _folds(self, axis: TimeAxis) -> Iterator[Fold]:
        blocks = _blocks(axis.n_bars, self.n_splits, "n_splits")
        yield from _two_sided(axis.n_bars, [[block] for block in blocks], self.purge_size, self.embargo_size)


class CombinatorialPurgedCV(BarSplitter):
    """Every choice of `n_test_folds` out of `n_folds` blocks is tested once, so that many histories can be pieced together.

    Combinatorial purged cross-validation of López de Prado (2018), chapter 12. Every bar is in a fold: their sizes differ by
    one at most. A split's test bars are its test folds end to end, in time order; `paths` says which split stands for which
    fold in which history, `folds` which bars a fold has.

    Args:
        n_folds: number of blocks.
        n_test_folds: blocks tested in each split, fewer than `n_folds`.
        purge_size: bars dropped on each side of every test block, as in `PurgedKFold`.
        embargo_size: further bars dropped after every test block.

    >>> cv = CombinatorialPurgedCV(n_folds=4, n_test_folds=2)
    >>> cv.get_n_splits(), cv.paths().tolist()
    (6, [[0, 0, 1, 2], [1, 3, 3, 4], [2, 4, 5, 5]])
    """

    def __init__(self, n_folds: int = 10, n_test_folds: int = 2, purge_size: int = 0, embargo_size: int = 0) -> None:
        self.n_folds = checked_count(n_folds, "n_folds", least=2)
        self.n_test_folds = checked_count(n_test_folds, "n_test_folds", least=1)
        self.purge_size = checked_count(purge_size, "purge_size", least=0)
        self.embargo_size = checked_count(embargo_size, "embargo_size", least=0)
        if self.n_test_folds >= self.n_folds:
            raise ValueError(
                f"n_test_folds must be less than n_folds={self.n_folds}, got {self.n_test_folds}: some fold must be left to "
                "learn from"
            )
        if self.get_n_splits() > _MOST_SPLITS:
            raise ValueError(
                f"n_folds={self.n_folds} and n_test_folds={self.n_test_folds} make {self.get_n_splits():,} splits, each a "
                f"fit of the model; at most {_MOST_SPLITS:,} are allowed. Use fewer folds"
            )

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits: n_folds choose n_test_folds."""
        return math.comb(self.n_folds, self.n_test_folds)

    def paths(self) -> IntArray:
        """Return the histories that can be pieced together from the splits' tests.

        Returns:
            The number of the split that tests fold f in history p; (n_paths, n_folds), with
            n_paths = (n_folds - 1) choose (n_test_folds - 1). Each split's test of each fold is in exactly one history.
        """
        chosen = np.zeros((self.get_n_splits(), self.n_folds), dtype=bool)
        for number, test_folds in enumerate(self._combinations()):
            chosen[number, list(test_folds)] = True
        return np.stack([np.flatnonzero(column) for column in chosen.T], axis=1)

    def folds(self, X: Any) -> list[IntArray]:
        """Return the bar positions of each fold, in time order."""
        return [np.arange(start, stop) for start, stop in _blocks(axis_of(X).n_bars, self.n_folds, "n_folds")]

    def _combinations(self) -> Iterator[tuple[int, ...]]:
        return itertools.combinations(range(self.n_folds), self.n_test_folds)

    def _folds(self, axis: TimeAxis) -> Iterator[Fold]:
        blocks = _blocks(axis.n_bars, self.n_folds, "n_folds")
        tested = ([blocks[number] for number in test_folds] for test_folds in self._combinations())
        yield from _two_sided(axis.n_bars, tested, self.purge_size, self.embargo_size)


class PanelSplit:
    """Splits a long table, one row per asset and date, by date: all rows of a date are on the same side.

    The bars of the splitter inside are the table's dates, so `purge_size` counts dates. An asset that misses dates has labels
    that reach over more of them; make labels over the table's dates, or purge by the longest.

    Args:
        splitter: any splitter of this module, which says how dates are split.

    Raises:
        TypeError: `splitter` is something else.

    >>> dates = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-01", "2024-01-03"])
    >>> for train, test in PanelSplit(WalkForwardValidator(n_splits=2)).split(range(5), groups=dates):
    ...     print(train, test)
    [0 3] [1]
    [0 1 3] [2 4]
    """

    def __init__(self, splitter: BarSplitter) -> None:
        if not isinstance(splitter, BarSplitter):
            raise TypeError(
                f"splitter must be a splitter of bars, such as WalkForwardValidator, got {type(splitter).__name__}"
            )
        self.splitter = splitter

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield the folds in order.

        Args:
            X: the table, in any order of rows.
            y: ignored.
            groups: the date of each row; None where X has an index with one level of dates; (n_rows,).

        Yields:
            Positions of the training rows and of the test rows, both increasing.

        Raises:
            ValueError: there are no dates, or too few for the folds.
        """
        dates, date_of_row = _dates_of(X, groups)
        for train, test in self.splitter.split(dates):
            yield _rows(train, date_of_row), _rows(test, date_of_row)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds; the table is needed only where the splitter inside needs its dates."""
        return self.splitter.get_n_splits(None if X is None else _dates_of(X, groups)[0])

    def purge_report(self, X: Any, y: Any = None, groups: Any = None) -> pd.DataFrame:
        """Return the report of the splitter inside, whose bars are dates, with `n_train_rows` and `n_test_rows`."""
        dates, date_of_row = _dates_of(X, groups)
        report = self.splitter.purge_report(dates)
        folds = list(self.splitter.split(dates))
        report.insert(0, "n_train_rows", [len(_rows(train, date_of_row)) for train, _ in folds])
        report.insert(1, "n_test_rows", [len(_rows(test, date_of_row)) for _, test in folds])
        return report

    def __repr__(self) -> str:
        """The constructor call that makes it."""
        return constructor_call(self)


def _dates_of(X: Any, groups: Any) -> tuple[pd.DatetimeIndex, IntArray]:
    """Return the dates of a panel in order, and which of them each row has; (n_dates,) and (n_rows,)."""
    if groups is None:
        groups = _date_level(X)
    found = pd.Index(groups)
    if not isinstance(found, pd.DatetimeIndex):
        raise ValueError(
            f"groups must hold the date of each row as timestamps, got {found.dtype}. Convert them: pd.to_datetime(dates)"
        )
    n_rows = int(X.shape[0]) if getattr(X, "shape", None) else len(X)
    if len(found) != n_rows:
        raise ValueError(f"groups must hold one date per row: X has {n_rows} rows, groups {len(found)}")
    if found.hasnans:
        raise ValueError(f"every row needs a date, row {int(np.flatnonzero(found.isna())[0])} has none. Drop such rows")
    dates = found.unique().sort_values()
    return dates, dates.get_indexer(found).astype(np.int64)


def _date_level(X: Any) -> pd.Index[Any]:
    index = getattr(X, "index", None) if isinstance(X, (pd.DataFrame, pd.Series)) else None
    if isinstance(index, pd.DatetimeIndex):
        return index
    levels = range(index.nlevels) if isinstance(index, pd.MultiIndex) else ()
    dated = [level for level in levels if isinstance(index.levels[level], pd.DatetimeIndex)]  # type: ignore[union-attr]
    if len(dated) != 1:
        raise ValueError(
            f"a panel is split by date: X needs an index with one level of timestamps, it has {len(dated)}. Give the date of "
            "each row as groups=frame['date']"
        )
    assert isinstance(index, pd.MultiIndex)
    return index.get_level_values(dated[0])


def _rows(positions: IntArray, date_of_row: IntArray) -> IntArray:
    return np.flatnonzero(np.isin(date_of_row, positions))


def _blocks(n_bars: int, n_blocks: int, name: str) -> list[tuple[int, int]]:
    if n_bars < n_blocks:
        fits = f"{name}={n_bars} would fit" if n_bars > 1 else "Use a longer period"
        raise ValueError(f"{name}={n_blocks} needs at least {n_blocks} bars, got {n_bars}. {fits}")
    edges = [0, *np.cumsum(spread(n_bars, n_blocks)).tolist()]
    return list(itertools.pairwise(edges))


def _two_sided(
    n_bars: int, tested: Iterable[list[tuple[int, int]]], purge_size: int, embargo_size: int
) -> Iterator[Fold]:
    """Yield a fold for each list of test blocks, with training on both sides of them."""
    for number, blocks in enumerate(tested):
        role = np.full(n_bars, _TRAIN, dtype=np.int8)
        for _, stop in blocks:
            role[stop + purge_size : stop + purge_size + embargo_size] = _EMBARGOED
        for start, stop in blocks:
            role[max(start - purge_size, 0) : start] = _PURGED
            role[stop : stop + purge_size] = _PURGED
        for start, stop in blocks:
            role[start:stop] = _TEST
        counts = np.bincount(role, minlength=4)
        if counts[_TRAIN] == 0:
            raise ValueError(
                f"fold {number} has nothing left to learn from: of {n_bars} bars {counts[_TEST]} are tested, "
                f"purge_size={purge_size} drops {counts[_PURGED]} and embargo_size={embargo_size} {counts[_EMBARGOED]}. Use a "
                "longer period, or fewer folds and a smaller share of them tested"
            )
        train, test = np.flatnonzero(role == _TRAIN), np.flatnonzero(role == _TEST)
        yield Fold(train, test, n_purged=int(counts[_PURGED]), n_embargoed=int(counts[_EMBARGOED]))
