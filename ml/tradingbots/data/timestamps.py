"""Time as a price table tells it: every instant in UTC, strictly increasing."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd

FIRST_SYNTHETIC_DAY = np.datetime64("2000-01-03", "s")  # a Monday


def utc_timestamp(value: str | date | pd.Timestamp, name: str) -> pd.Timestamp:
    """Read one date; naive is UTC.

    Args:
        value: a date, or text that pandas reads as one ("2015", "2015-06-30", "2015-06-30 16:00-04:00").
        name: what to call it in an error.
    """
    try:
        timestamp = pd.Timestamp(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a date such as '2015-06-30', got {value!r} ({error})") from None
    if pd.isna(timestamp):
        raise ValueError(f"{name} must be a date such as '2015-06-30', got {value!r}, which is no date")
    return timestamp.tz_localize("UTC") if timestamp.tzinfo is None else timestamp.tz_convert("UTC")


def read_timestamps(index: pd.Index[Any]) -> pd.DatetimeIndex:
    """Return a table's index as UTC timestamps, without NaT and strictly increasing."""
    if len(index) == 0:
        raise ValueError("price_data is empty: it has 0 rows, and at least 1 bar is required. Check the filter or file")
    if isinstance(index, pd.RangeIndex):
        index = _business_days(index)
    if not isinstance(index, pd.DatetimeIndex):
        raise ValueError(_index_complaint(index))
    timestamps = index.tz_localize("UTC") if index.tz is None else index.tz_convert("UTC")
    missing = np.flatnonzero(timestamps.isna())
    if missing.size:
        raise ValueError(
            f"the index is NaT (no timestamp) at row {missing[0]}; every bar needs the time at which it became known. "
            "Drop such rows: frame[frame.index.notna()]"
        )
    _check_order(timestamps)
    return timestamps.rename(None)


def _business_days(labels: pd.RangeIndex) -> pd.DatetimeIndex:
    """Label i becomes the i-th business day from Monday 2000-01-03, so that a slice keeps its dates."""
    if len(labels) and min(labels[0], labels[-1]) < 0:
        raise ValueError(
            f"an integer index must not be negative, got {labels!r}. "
            "Use timestamps (pd.to_datetime) or frame.reset_index(drop=True)"
        )
    weeks, days = np.divmod(labels.to_numpy(dtype=np.int64), 5)
    return pd.DatetimeIndex(FIRST_SYNTHETIC_DAY + (7 * weeks + days) * np.timedelta64(86_400, "s"))


def _index_complaint(index: pd.Index[Any]) -> str:
    """Say why an index that is neither a DatetimeIndex nor a RangeIndex is refused."""
    if isinstance(index, pd.PeriodIndex):
        return (
            "the index holds periods, and a bar needs the time at which it became known. "
            "Use the end of each period: frame.index = frame.index.to_timestamp(how='end')"
        )
    aware = [getattr(value, "tzinfo", None) is not None for value in index]
    dated = [isinstance(value, date) for value in index]
    if all(dated) and any(aware) and not all(aware):
        row = aware.index(not aware[0])
        return (
            f"the index mixes timestamps with and without a time zone: row 0 is {index[0]!r}, row {row} is "
            f"{index[row]!r}. Give all of them one zone: frame.index = pd.to_datetime(frame.index, utc=True) "
            "reads the naive ones as UTC"
        )
    numeric = pd.api.types.is_numeric_dtype(index.dtype)
    how = "pd.to_datetime(frame.index, utc=True)"
    if numeric:
        how = "pd.to_datetime(frame.index, unit='s', utc=True), or number the rows with frame.reset_index(drop=True)"
    return (
        f"the index must be a DatetimeIndex (or a plain RangeIndex), got {type(index).__name__} of {index.dtype} "
        f"starting with {index.tolist()[0]!r}. Convert it: frame.index = {how}"
    )


def _check_order(timestamps: pd.DatetimeIndex) -> None:
    """Refuse timestamps that go back or repeat."""
    instants = timestamps.asi8
    backward = np.flatnonzero(instants[1:] < instants[:-1])
    if backward.size:
        row = int(backward[0]) + 1
        raise ValueError(
            f"timestamps must increase: row {row} ({timestamps[row]}) is earlier than row {row - 1} "
            f"({timestamps[row - 1]}). Sort them: frame.sort_index()"
        )
    repeated = np.flatnonzero(instants[1:] == instants[:-1])
    if repeated.size:
        row = int(repeated[0]) + 1
        raise ValueError(
            f"timestamps must be unique: rows {row - 1} and {row} are both {timestamps[row]}. "
            "Keep one of them: frame[~frame.index.duplicated(keep='last')]"
        )
