"""Walk-forward validation: train on the past, test on the block that follows, move on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ml.tradingbots.data.bar_splitter import BarSplitter, Fold, TimeAxis, axis_of, checked_count, spread
from ml.tradingbots.data.calendar_sizes import Edge, edge_after, is_reached, next_start, position_of, read_size
from ml.tradingbots.data.names import did_you_mean


class WalkForwardValidator(BarSplitter):
    """Train on the past, test on the block that follows, move on: what a strategy that is refitted would have lived.

    Either `n_splits`, or `train_size` and `test_size`:

    - `n_splits` alone cuts the bars into n_splits + 1 blocks that differ by one bar at most; the first is only trained on.
    - `n_splits` and `train_size`: what follows the first `train_size` is cut into n_splits such blocks.
    - `n_splits` and `test_size` (in bars): the last n_splits blocks of that size.
    - `train_size` and `test_size`: whole blocks from `train_size` on, as many as there are. Bars after the last whole block
      are in no test, and folds of data that grow stay what they were.

    Args:
        n_splits: exact number of folds.
        train_size: bars or calendar length ("365D", "12MS", an offset) before the first test block; with
            mode="rolling" before every one. Bars that are purged count.
        test_size: length of a test block, in bars or on the calendar. Calendar blocks begin on the calendar (the first of a
            month for "3MS"); those without a bar are left out.
        step: from the start of one test block to the next; None is `test_size`, which tests every bar once.
        mode: "expanding" trains on all of the past, "rolling" on the last `train_size`, or, where none is given, on
            as many bars as come before the first test block.
        purge_size: bars dropped from the end of training because their labels reach into the test block: a training
            bar t has t + purge_size < first test bar. At least the horizon of the labels.
        embargo_size: extra distance between training and test: as many bars are dropped before those that are purged, such
            as the time that refitting takes. Nothing is dropped after a test, where an embargo has its meaning in other
            splitters: here no training follows its test.
        min_train_size: fewest bars that a fold may learn from, after purge and embargo.

    Raises:
        ValueError: arguments that contradict each other.

    >>> for train, test in WalkForwardValidator(n_splits=2, purge_size=1).split(range(9)):
    ...     print(train, test)
    [0 1] [3 4 5]
    [0 1 2 3 4] [6 7 8]
    """

    def __init__(
        self,
        n_splits: int | None = None,
        train_size: Any = None,
        test_size: Any = None,
        step: Any = None,
        mode: Literal["expanding", "rolling"] = "expanding",
        purge_size: int = 0,
        embargo_size: int = 0,
        min_train_size: int = 1,
    ) -> None:
        self.n_splits = None if n_splits is None else checked_count(n_splits, "n_splits", least=1)
        self.train_size, self.test_size, self.step = train_size, test_size, step
        self._train = None if train_size is None else read_size(train_size, "train_size")
        self._test = None if test_size is None else read_size(test_size, "test_size")
        self._step = self._test if step is None else read_size(step, "step")
        if mode not in ("expanding", "rolling"):
            hint = did_you_mean(str(mode), ("expanding", "rolling"))
            raise ValueError(f"mode must be 'expanding' or 'rolling', got {mode!r}.{hint}")
        self.mode = mode
        self.purge_size = checked_count(purge_size, "purge_size", least=0)
        self.embargo_size = checked_count(embargo_size, "embargo_size", least=0)
        self.min_train_size = checked_count(min_train_size, "min_train_size", least=1)
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.n_splits is None and (self._train is None or self._test is None):
            raise ValueError(
                "give n_splits, or both train_size and test_size; got "
                f"n_splits=None, train_size={self.train_size!r}, test_size={self.test_size!r}"
            )
        if self.step is not None and self._test is None:
            raise ValueError(f"step={self.step!r} needs test_size: blocks that n_splits alone cuts touch each other")
        if self.n_splits is not None and not all(
            size is None or isinstance(size, int) for size in (self._test, self._step)
        ):
            raise ValueError(
                f"n_splits={self.n_splits} takes test_size and step in bars, got test_size={self.test_size!r}, "
                f"step={self.step!r}. Leave n_splits out to test on calendar blocks"
            )

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds; `X` is needed only where sizes decide it."""
        if self.n_splits is not None:
            return self.n_splits
        if X is None:
            raise ValueError("X is required: with train_size and test_size the number of folds depends on the data")
        return len(self._sized_blocks(axis_of(X)))

    def _folds(self, axis: TimeAxis) -> Iterator[Fold]:
        self._check_dates(axis)
        blocks = self._sized_blocks(axis) if self.n_splits is None else self._counted_blocks(self.n_splits, axis)
        folds = [self._fold(start, stop, blocks[0][0], axis) for start, stop in blocks]
        for number, ((start, _), fold) in enumerate(zip(blocks, folds, strict=True)):
            if len(fold.train) < self.min_train_size:
                raise ValueError(self._too_little_training(number, position_of(start, axis.timestamps), fold))
        yield from folds

    def _fold(self, start: Edge, stop: Edge, first_start: Edge, axis: TimeAxis) -> Fold:
        test_start, test_stop = position_of(start, axis.timestamps), position_of(stop, axis.timestamps)
        train_start = 0
        if self.mode == "rolling":
            size = position_of(first_start, axis.timestamps) if self._train is None else self._train
            train_start = max(position_of(edge_after(start, size, axis.timestamps, times=-1), axis.timestamps), 0)
        purge_start = max(test_start - self.purge_size, train_start)
        train_stop = max(purge_start - self.embargo_size, train_start)
        train, test = np.arange(train_start, train_stop), np.arange(test_start, test_stop)
        return Fold(train, test, n_purged=test_start - purge_start, n_embargoed=purge_start - train_stop)

    def _sized_blocks(self, axis: TimeAxis) -> list[tuple[Edge, Edge]]:
        """Return every whole test block, as edges."""
        self._check_dates(axis)
        assert self._train is not None and self._test is not None and self._step is not None  # noqa: PT018
        self._check_spacing(axis)
        blocks: list[tuple[Edge, Edge]] = []
        first = self._first_test(axis)
        for number in itertools.count():
            start: Edge = axis.n_bars
            if position_of(first, axis.timestamps) < axis.n_bars:
                start = edge_after(first, self._step, axis.timestamps, times=number)
            if position_of(start, axis.timestamps) >= axis.n_bars:
                break
            stop = edge_after(start, self._test, axis.timestamps)
            if not is_reached(stop, axis.n_bars, axis.timestamps):
                break
            if position_of(stop, axis.timestamps) > position_of(start, axis.timestamps):
                blocks.append((start, stop))
        if not blocks:
            before = min(position_of(first, axis.timestamps), axis.n_bars)
            raise ValueError(
                f"no whole test block fits: {before} of {axis.n_bars} bars come before the first one with "
                f"train_size={self.train_size!r}, and the {axis.n_bars - before} left hold no test_size={self.test_size!r}. "
                "Use smaller sizes or a longer period"
            )
        return blocks

    def _first_test(self, axis: TimeAxis) -> Edge:
        """Return where the first test block begins, given sizes."""
        assert self._train is not None
        first = edge_after(0, self._train, axis.timestamps)
        if position_of(first, axis.timestamps) >= axis.n_bars or self._test is None or self._step is None:
            return first
        return next_start(next_start(first, self._step, axis.timestamps), self._test, axis.timestamps)

    def _counted_blocks(self, n_splits: int, axis: TimeAxis) -> list[tuple[Edge, Edge]]:
        """Return exactly `n_splits` test blocks, the last of which ends with the data."""
        first = self._first_counted(n_splits, axis)
        if first is None:
            raise ValueError(self._too_many_folds(n_splits, axis))
        if isinstance(self._test, int) and isinstance(self._step, int):
            starts = [first + number * self._step for number in range(n_splits)]
            return [(start, start + self._test) for start in starts]
        edges = first + np.concatenate([[0], np.cumsum(spread(axis.n_bars, n_splits + 1)[1:])])
        if self._train is not None:
            edges = first + np.concatenate([[0], np.cumsum(spread(axis.n_bars - first, n_splits))])
        return [(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]

    def _first_counted(self, n_splits: int, axis: TimeAxis) -> int | None:
        """Return where the first of `n_splits` test blocks begins, None where they do not fit."""
        before = 0 if self._train is None else position_of(edge_after(0, self._train, axis.timestamps), axis.timestamps)
        if isinstance(self._test, int) and isinstance(self._step, int):
            first = axis.n_bars - self._test - (n_splits - 1) * self._step
            fits = first >= before
        elif self._train is None:
            first = -(-axis.n_bars // (n_splits + 1))
            fits = axis.n_bars > n_splits
        else:
            first = before
            fits = axis.n_bars - before >= n_splits
        return first if fits and first - self.purge_size - self.embargo_size >= self.min_train_size else None

    def _too_many_folds(self, n_splits: int, axis: TimeAxis) -> str:
        fewer = range(min(n_splits - 1, axis.n_bars), 0, -1)
        fitting = next((number for number in fewer if self._first_counted(number, axis) is not None), None)
        advice = "Use a longer period or smaller sizes" if fitting is None else f"n_splits={fitting} would fit"
        sizes = "".join(
            f", {name}={value!r}"
            for name in ("train_size", "test_size", "step")
            if (value := getattr(self, name)) is not None
        )
        return (
            f"n_splits={n_splits}{sizes} does not fit {axis.n_bars} bars: before the first test block {self.min_train_size} "
            f"must be left to learn from (min_train_size) after purge_size={self.purge_size} and "
            f"embargo_size={self.embargo_size}, and every test block needs a bar. {advice}"
        )

    def _too_little_training(self, number: int, test_start: int, fold: Fold) -> str:
        n_before = len(fold.train) + fold.n_purged + fold.n_embargoed
        return (
            f"fold {number}, whose test begins at bar {test_start}, has {len(fold.train)} bars to learn from, and "
            f"min_train_size={self.min_train_size}: of {n_before} before it, purge_size={self.purge_size} and "
            f"embargo_size={self.embargo_size} leave out {fold.n_purged + fold.n_embargoed}. Use a larger train_size, at "
            f"least {self.min_train_size + self.purge_size + self.embargo_size} bars"
        )

    def _check_dates(self, axis: TimeAxis) -> None:
        for name, size in (("train_size", self._train), ("test_size", self._test), ("step", self._step)):
            if axis.timestamps is None and size is not None and not isinstance(size, int):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is a calendar length, so X must be a Bars or have a DatetimeIndex, got "
                    f"{axis.kind}. Give the size in bars, or the data their dates"
                )

    def _check_spacing(self, axis: TimeAxis) -> None:
        if axis.timestamps is None or axis.n_bars < 2:
            return
        first, pause = axis.timestamps[0], (axis.timestamps[1:] - axis.timestamps[:-1]).min()
        for name, size in (("test_size", self._test), ("step", self._step)):
            if size is not None and not isinstance(size, int) and first + size < first + pause:
                raise ValueError(
                    f"{name} must not be shorter than the spacing of the bars, which is {pause} or more, got "
                    f"{size.freqstr!r}. Use a longer one, or a number of bars"
                )
