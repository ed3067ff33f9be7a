"""Which bars decide anew: every n-th, or the first of each month, week or any other calendar length."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.calendar_sizes import Edge, Size, edge_after, next_start, position_of, read_size

IntArray: TypeAlias = npt.NDArray[np.int64]


def rebalance_bars(timestamps: pd.DatetimeIndex, every: Any, first: int = 0) -> IntArray:
    """Return the bars at whose close a portfolio is decided anew, increasing.

    On the calendar that is the first bar at or after each edge ("MS": the first bar of a month), which is known when it
    closes; the last bar of a month is not known to be one until the next. The first bar always decides. Bars added later
    change nothing.

    Args:
        timestamps: when each bar became known; (n_bars,).
        every: number of bars, or a calendar length such as "1W", "MS" or "3MS".
        first: first bar that may decide.

    Raises:
        ValueError: `every` is no length, or `first` is no bar.

    >>> days = pd.date_range("2024-01-30", periods=4)
    >>> rebalance_bars(days, "MS").tolist(), rebalance_bars(days, 3).tolist()
    ([0, 2], [0, 3])
    """
    size = read_size(every, "rebalance")
    n_bars = len(timestamps)
    if not 0 <= first < n_bars:
        raise ValueError(f"first must be one of the {n_bars} bars, got {first}")
    if isinstance(size, int):
        return np.arange(first, n_bars, size)
    try:
        return np.array(_on_the_calendar(timestamps, size, first))
    except (ValueError, OverflowError) as error:  # Of pandas, which has no instants so far away or so close together.
        raise ValueError(
            f"rebalance must be a length that can be counted between these timestamps, got {every!r} ({error})"
        ) from None


def _on_the_calendar(timestamps: pd.DatetimeIndex, size: Size, first: int) -> list[int]:
    bars, start, number = [first], next_start(first, size, timestamps), 0
    while True:
        number = _first_after(timestamps[bars[-1]], start, size, number)
        bar = position_of(edge_after(start, size, timestamps, times=number), timestamps)
        if bar == len(timestamps):
            return bars
        bars.append(bar)


def _first_after(instant: pd.Timestamp, start: Edge, size: Size, number: int) -> int:
    """Return the first number of sizes, from one on, after which an edge lies behind an instant.

    Found by halving: between two bars there may be more edges than can be walked.
    """

    def is_behind(times: int) -> bool:
        edge = edge_after(start, size, None, times=times)
        assert isinstance(edge, pd.Timestamp)
        return edge > instant

    if is_behind(number):
        return number
    step = 1
    while not is_behind(number + step):
        step *= 2
    low, high = number + step // 2, number + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_behind(middle) else (middle, high)
    return high
