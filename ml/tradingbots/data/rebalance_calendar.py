"""Which bars decide anew: every n-th, or the first of each month, week or any other calendar length."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.calendar_sizes import edge_after, next_start, position_of, read_size

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
    bars = [first]
    edge = start = next_start(first, size, timestamps)
    number = 0
    while (bar := position_of(edge, timestamps)) < n_bars:
        if bar > bars[-1]:
            bars.append(bar)
        number += 1
        edge = edge_after(start, size, timestamps, times=number)
    return np.array(bars)
