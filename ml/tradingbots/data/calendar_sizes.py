"""How long a block of bars is: a number of bars, or a length on the calendar such as "365D" or "3MS".

A boundary between two blocks is an edge: a bar's position where sizes are bars, an instant where they are calendar lengths.
A bar at or after an edge belongs to the block that begins there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.tseries import offsets
from pandas.tseries.frequencies import to_offset

Size: TypeAlias = int | offsets.BaseOffset
Edge: TypeAlias = int | pd.Timestamp

_PERIOD_ENDS = (
    offsets.MonthEnd,
    offsets.QuarterEnd,
    offsets.YearEnd,
    offsets.BMonthEnd,
    offsets.BQuarterEnd,
    offsets.BYearEnd,
)


def read_size(value: Any, name: str) -> Size:
    """Return a size as a number of bars or a pandas offset.

    Args:
        value: a positive integer (bars), text that pandas reads as an offset, a timedelta or an offset.
        name: what to call it in an error.

    Raises:
        ValueError: it is none of these, not positive, or an offset that falls on the last day of its periods.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{name} must be at least 1 bar, got {value}")
        return int(value)
    if not isinstance(value, (str, timedelta, offsets.BaseOffset)):
        raise ValueError(_complaint(name, value))
    midsummer = pd.Timestamp("2000-06-15")
    try:
        offset = to_offset(value)
        later = midsummer + offset
    except (ValueError, OverflowError):  # Text that is none, or a length that no calendar has.
        raise ValueError(_complaint(name, value)) from None
    if isinstance(offset, _PERIOD_ENDS):
        # Blocks are half-open: an edge at the start of a period's last day would put that day into the next block.
        raise ValueError(
            f"{name} must fall on the starts of periods ('MS', 'QS', 'YS'), got {value!r}, their last days"
        )
    if later <= midsummer:
        raise ValueError(f"{name} must be longer than nothing, got {value!r}")
    return offset


def _complaint(name: str, value: Any) -> str:
    return f"{name} must be a number of bars or a calendar length such as '365D', '12W' or '3MS', got {value!r}"


def position_of(edge: Edge, timestamps: pd.DatetimeIndex | None) -> int:
    """Return the position of the first bar at or after an edge."""
    if isinstance(edge, int):
        return edge
    assert timestamps is not None
    return int(timestamps.searchsorted(edge))


def edge_after(edge: Edge, size: Size, timestamps: pd.DatetimeIndex | None, *, times: int = 1) -> Edge:
    """Return the edge that lies `times` sizes after another one; negative `times` go back.

    Calendar lengths of a day or more are counted from midnight.

    Args:
        edge: where to start; a position must be one of a bar where `size` is a calendar length.
        size: bars or a calendar length.
        timestamps: of all bars; needed for calendar lengths.
        times: how many sizes.
    """
    if times == 0:
        return edge
    if isinstance(size, int):
        return position_of(edge, timestamps) + times * size
    moved: pd.Timestamp = instant_of(edge, size, timestamps) + times * size
    return moved


def instant_of(edge: Edge, size: offsets.BaseOffset, timestamps: pd.DatetimeIndex | None) -> pd.Timestamp:
    """Return the instant from which a calendar length is counted: the edge's own, or the midnight before it."""
    if isinstance(edge, int):
        assert timestamps is not None
        edge = timestamps[edge]
    # In pandas 2 a day was a Tick too.
    is_clock_time = isinstance(size, offsets.Tick) and not isinstance(size, offsets.Day)
    return edge if is_clock_time else edge.normalize()


def next_start(edge: Edge, size: Size, timestamps: pd.DatetimeIndex | None) -> Edge:
    """Return the first edge at or after another one from which whole sizes can be laid: month starts for '3MS'.

    No bar before the given edge lies after the one returned.
    """
    if isinstance(size, int):
        return edge
    before = position_of(edge, timestamps)
    instant = instant_of(edge, size, timestamps)
    start = size.rollforward(instant)
    if position_of(start, timestamps) < before:  # Midnight came before bars of the same day that were asked for.
        start = size.rollforward(instant + pd.Timedelta(days=1))
    return start


def is_reached(edge: Edge, n_bars: int, timestamps: pd.DatetimeIndex | None) -> bool:
    """Whether all bars before an edge are in the data: a bar at or after it is, or the next one could only be.

    The next bar is expected after the shortest pause that ever followed a bar of the same weekday and time of day, so
    that data which end on the last Friday of a year have the whole year.
    """
    if isinstance(edge, int):
        return edge <= n_bars
    assert timestamps is not None
    last = timestamps[-1]
    if last >= edge or len(timestamps) < 2:
        return bool(last >= edge)
    before, pauses = timestamps[:-1], timestamps[1:] - timestamps[:-1]
    alike = (before.day_of_week == last.day_of_week) & (before - before.normalize() == last - last.normalize())
    pause = pauses[alike].min() if alike.any() else pauses.min()
    return bool(last + pause >= edge)
