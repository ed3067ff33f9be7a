"""Cutting a price table in time: what may be learned from, and what is kept to judge with.

All cuts are half-open, [start, end): a bar belongs to exactly one of two periods that touch.
"""

from __future__ import annotations

from datetime import date

import pandas as pd

from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.timestamps import utc_timestamp


def train_test_split(
    price_data: pd.DataFrame | Bars,
    *,
    test_start: str | date | pd.Timestamp,
    train_start: str | date | pd.Timestamp | None = None,
    test_end: str | date | pd.Timestamp | None = None,
    purge_size: int = 0,
    warmup_bars: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a price table by date into what comes before and what comes after.

    The training rows are those with train_start <= timestamp < test_start, without the last `purge_size`. The test
    rows are those with test_start <= timestamp < test_end. Dates without a time zone are read as UTC.

    Args:
        price_data: any table that `Bars.from_frame` accepts; it is checked as a whole first.
        test_start: the test rows begin with the first timestamp at or after it.
        train_start: first instant of training; None is the beginning of the data.
        test_end: first instant after the test; None is the end of the data.
        purge_size: bars dropped from the end of training, because their labels reach into the test block; at least the
            horizon of what is predicted. 0 is right for agents that learn from rewards inside the training rows.
        warmup_bars: bars from before `test_start` put in front of the test rows, so that windows and indicators are
            full at the first test decision. They are context: no decision falls in them, and a training row that is
            repeated there (purged ones included) leaks nothing, since it was known at the time.

    Returns:
        Training table and test table, copies with the columns of `price_data`. The test table begins `warmup_bars`
        rows before its first decision.

    Raises:
        ValueError: where a side would be empty, or fewer than `warmup_bars` bars come before the test.

    >>> closes = pd.DataFrame({"close": range(1, 11)}, index=pd.date_range("2024-01-01", periods=10))
    >>> train, test = train_test_split(closes, test_start="2024-01-07", purge_size=1, warmup_bars=2)
    >>> train["close"].tolist(), test["close"].tolist()
    ([1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10])
    """
    for name, count in (("purge_size", purge_size), ("warmup_bars", warmup_bars)):
        if count < 0:
            raise ValueError(f"{name} must be 0 or more bars, got {count}")
    bars = Bars.from_frame(price_data)
    frame = bars.to_frame() if isinstance(price_data, Bars) else price_data
    train_first = 0 if train_start is None else _position(bars, train_start, "train_start")
    test_first = _position(bars, test_start, "test_start")
    test_stop = bars.n_bars if test_end is None else _position(bars, test_end, "test_end")
    period = f"the data runs from {bars.timestamps[0]} to {bars.timestamps[-1]}"
    if test_first >= test_stop:
        raise ValueError(
            f"the test side is empty: no bar lies in test_start={test_start} <= timestamp < test_end={test_end}; "
            f"{period}. Choose an earlier test_start or a later test_end"
        )
    train_stop = test_first - purge_size
    if train_first >= train_stop:
        n_before = max(test_first - train_first, 0)
        raise ValueError(
            f"the training side is empty: {n_before} bars lie in train_start={train_start} <= timestamp < "
            f"test_start={test_start}, and purge_size={purge_size} drops the last {purge_size}; {period}. "
            "Choose a later test_start, an earlier train_start or a smaller purge_size"
        )
    if warmup_bars > test_first:
        raise ValueError(
            f"warmup_bars={warmup_bars} needs that many bars before test_start={test_start}, got {test_first}; "
            f"{period}. Choose a later test_start or fewer warmup_bars"
        )
    return frame.iloc[train_first:train_stop].copy(), frame.iloc[test_first - warmup_bars : test_stop].copy()


def _position(bars: Bars, instant: str | date | pd.Timestamp, name: str) -> int:
    """Return the position of the first bar at or after an instant."""
    return int(bars.timestamps.searchsorted(utc_timestamp(instant, name)))
