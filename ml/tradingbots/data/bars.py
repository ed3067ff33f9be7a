"""`Bars`: a price table that has been checked once, so that nothing after it has to doubt it.

Every simulator starts from one `Bars`. Bad input is refused at this door with a message that names the
column, the row, what was found and how to mend it; nothing is filled, dropped, sorted or guessed silently.
Row numbers count from 0. `docs/data.md` lists the accepted tables and every refusal.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray: TypeAlias = npt.NDArray[np.float64]

PRICE_FIELDS = ("open", "high", "low", "close")
FIELDS = (*PRICE_FIELDS, "volume")
ADJUSTED_CLOSE_NAMES = frozenset({"adj close", "adj_close", "adjclose", "adjusted close", "adjusted_close"})
DATE_COLUMN_NAMES = frozenset({"date", "datetime", "timestamp", "time"})
SINGLE_ASSET = "asset"
"""Name of the asset of a table whose columns are only called open, high, low, close, volume."""

SECONDS_PER_YEAR = 365.25 * 24 * 3600
USUAL_BARS_PER_YEAR = (1, 4, 12, 52, 252, 365, 24 * 365)
# Vendors round or adjust open, high, low and close separately, which moves the last digits of a float64.
HIGH_LOW_TOLERANCE = 1e-9
FIRST_SYNTHETIC_DAY = np.datetime64("2000-01-03", "s")  # a Monday


@dataclass(frozen=True, eq=False)
class Bars:
    """A validated table of prices in time order; its arrays are read-only copies.

    Prices are taken as given: an "Adj Close" column is ignored, so adjust all of open, high, low and close
    for splits and dividends (or none of them) before they come here.

    Args:
        timestamps: when each bar became known (its close), in UTC, strictly increasing; (n_bars,).
        assets: one name per asset.
        close: last price of each bar, in the asset's currency, above 0; (n_bars, n_assets).
        open: first price of each bar, or None where the data has none; (n_bars, n_assets).
        high: highest price of each bar, or None; (n_bars, n_assets).
        low: lowest price of each bar, or None; (n_bars, n_assets).
        volume: units traded in each bar, 0 or more, or None; (n_bars, n_assets).
        extra: feature columns of your own by name, known at the close of their bar; (n_bars, n_assets) each.
            NaN is allowed only in a run at the start (the warm-up of an indicator).

    Raises:
        ValueError: where a value, a timestamp or a shape is not as above.

    >>> days = pd.to_datetime(["2024-01-02", "2024-01-03"])
    >>> bars = Bars.from_frame(pd.DataFrame({"close": [100.0, 101.0]}, index=days))
    >>> bars.n_bars, bars.assets, bars.has_open
    (2, ('asset',), False)
    """

    timestamps: pd.DatetimeIndex
    assets: tuple[str, ...]
    close: FloatArray
    open: FloatArray | None = None
    high: FloatArray | None = None
    low: FloatArray | None = None
    volume: FloatArray | None = None
    extra: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        timestamps = read_timestamps(self.timestamps)
        assets = _checked_assets(self.assets)
        shape = (len(timestamps), len(assets))
        frozen: dict[str, Any] = {"timestamps": timestamps, "assets": assets}
        for name in FIELDS:
            values = getattr(self, name)
            frozen[name] = None if values is None and name != "close" else _frozen_array(name, values, shape)
        extra = {name: _frozen_array(name, values, shape) for name, values in self.extra.items()}
        frozen["extra"] = MappingProxyType(extra)
        for name, value in frozen.items():
            object.__setattr__(self, name, value)
        _check_values(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or an unpickled Bars goes through the constructor, so its arrays are read-only too.
        columns = (self.close, self.open, self.high, self.low, self.volume, dict(self.extra))
        return Bars, (self.timestamps, self.assets, *columns)

    def __repr__(self) -> str:
        """One line: size, period and which columns there are."""
        columns = ", ".join([*self.fields, *self.extra])
        period = f"{self.timestamps[0]:%Y-%m-%d} to {self.timestamps[-1]:%Y-%m-%d}"
        return f"Bars(n_bars={self.n_bars}, n_assets={self.n_assets}, {period}, columns: {columns})"

    @property
    def n_bars(self) -> int:
        """Number of bars."""
        return len(self.timestamps)

    @property
    def n_assets(self) -> int:
        """Number of assets."""
        return len(self.assets)

    @property
    def has_open(self) -> bool:
        """Whether the data has opens; where it has none, a fill at the open uses the last close."""
        return self.open is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """Which of open, high, low, close and volume there are, in this order."""
        return tuple(name for name in FIELDS if getattr(self, name) is not None)

    @cached_property
    def years_between(self) -> FloatArray:
        """Calendar years (of 365.25 days) from each bar to the next; (n_bars - 1,)."""
        instants = self.timestamps.tz_localize(None).to_numpy()
        years: FloatArray = np.diff(instants) / np.timedelta64(1, "s") / SECONDS_PER_YEAR
        years.flags.writeable = False
        return years

    @cached_property
    def bars_per_year(self) -> float:
        """Bars per calendar year, for annualising.

        Estimated as (n_bars - 1) / calendar years; an estimate within 5% of 252, 365, 52, 12, 4, 1 or 24 * 365
        becomes that number.

        Raises:
            ValueError: with fewer than two bars, from which no frequency can be estimated.
        """
        require_bars(self, 2, "estimating bars_per_year")
        estimate = (self.n_bars - 1) / float(self.years_between.sum())
        for usual in USUAL_BARS_PER_YEAR:
            if abs(estimate / usual - 1.0) <= 0.05:
                return float(usual)
        return estimate

    @classmethod
    def from_frame(cls, price_data: pd.DataFrame | Bars) -> Bars:
        """Read and check a price table.

        Accepted columns, names in any case:
            one asset: `close`, optionally `open`, `high`, `low`, `volume`; other numeric columns become `extra`.
            closes: one column per asset, none of them called close.
            several assets: a two-level column index of (field, asset) or (asset, field); fields that are not
                open, high, low, close or volume become `extra`. Every asset has every field.

        The index is a `DatetimeIndex`; naive timestamps are read as UTC, others are converted to UTC. A
        `RangeIndex` is accepted too: row label i is given the i-th business day counted from 2000-01-03.
        A column called "Adj Close" is ignored: prices are taken as given.

        Args:
            price_data: the table; a `Bars` is returned as it is.

        Returns:
            The same data, checked.

        Raises:
            TypeError: where `price_data` is neither a DataFrame nor a Bars.
            ValueError: where the data is not fit to trade on; the message says where and how to mend it.
        """
        if isinstance(price_data, Bars):
            return price_data
        if not isinstance(price_data, pd.DataFrame):
            raise TypeError(
                f"price_data must be a pandas DataFrame or Bars, got {type(price_data).__name__}. "
                "Make a table of it first: series.to_frame('close') or pd.DataFrame({'close': values}, index=dates)"
            )
        _check_shape(price_data)
        timestamps = read_timestamps(price_data.index)
        if price_data.columns.nlevels > 1:
            return _read_two_levels(price_data, timestamps)
        if _is_one_asset(price_data.columns):
            return _read_one_asset(price_data, timestamps)
        return _read_closes(price_data, timestamps)

    def to_frame(self) -> pd.DataFrame:
        """Return the data as the plainest table that `from_frame` reads back to the same `Bars`.

        Returns:
            A copy with index `timestamp` (UTC). Columns: open, high, low, close, volume and extra for the unnamed
            asset of a one-asset table; one column of closes per asset where there is nothing else; otherwise two
            levels named field and asset.
        """
        index = self.timestamps.rename("timestamp")
        columns = {name: getattr(self, name) for name in self.fields} | dict(self.extra)
        if self.assets == (SINGLE_ASSET,):
            return pd.DataFrame({name: values[:, 0] for name, values in columns.items()}, index=index)
        labels = pd.Index(self.assets)
        if tuple(columns) == ("close",) and not _is_one_asset(labels):
            return pd.DataFrame(self.close.copy(), index=index, columns=labels)
        labels = pd.MultiIndex.from_product([list(columns), self.assets], names=["field", "asset"])
        return pd.DataFrame(np.hstack(list(columns.values())), index=index, columns=labels)

    def slice(self, start: int, stop: int) -> Bars:
        """Return the bars in [start, stop), by position.

        Args:
            start: first bar kept, 0 <= start < stop.
            stop: first bar after those kept, at most n_bars.
        """
        if not 0 <= start < stop <= self.n_bars:
            raise ValueError(
                f"start and stop must satisfy 0 <= start < stop <= n_bars, got start={start}, stop={stop} "
                f"of {self.n_bars} bars. Positions do not wrap around; use between() to slice by date"
            )
        return self._map(self.timestamps[start:stop], self.assets, lambda values: values[start:stop])

    def between(
        self, start: str | date | pd.Timestamp | None = None, end: str | date | pd.Timestamp | None = None
    ) -> Bars:
        """Return the bars with start <= timestamp < end, so that one period's end can be the next one's start.

        Args:
            start: first instant kept; naive is read as UTC; None keeps the beginning.
            end: first instant not kept; None keeps the rest.
        """
        first = 0 if start is None else int(self.timestamps.searchsorted(utc_timestamp(start, "start")))
        stop = self.n_bars if end is None else int(self.timestamps.searchsorted(utc_timestamp(end, "end")))
        if first >= stop:
            raise ValueError(
                f"no bar lies in start={start} <= timestamp < end={end}: the bars run from {self.timestamps[0]} "
                f"to {self.timestamps[-1]}. Choose dates inside that period, start before end"
            )
        return self.slice(first, stop)

    def select(self, assets: str | Sequence[str]) -> Bars:
        """Return some of the assets, in the order asked for.

        Args:
            assets: one name or several.
        """
        names = (assets,) if isinstance(assets, str) else tuple(assets)
        for name in names:
            if name not in self.assets:
                raise ValueError(
                    f"unknown asset {name!r}.{did_you_mean(name, self.assets)} Available: {', '.join(self.assets)}"
                )
        columns = [self.assets.index(name) for name in names]
        return self._map(self.timestamps, names, lambda values: values[:, columns])

    def _map(
        self, timestamps: pd.DatetimeIndex, assets: tuple[str, ...], take: Callable[[FloatArray], FloatArray]
    ) -> Bars:
        columns = {name: take(getattr(self, name)) for name in self.fields}
        extra = {name: take(values) for name, values in self.extra.items()}
        return Bars(timestamps, assets, **columns, extra=extra)


def require_bars(bars: Bars, n_required: int, why: str) -> None:
    """Refuse a table that is too short.

    Args:
        bars: the table.
        n_required: how many bars are needed.
        why: what needs them, as the subject of a sentence ("window_size=30 with warmup_bars=20").

    Raises:
        ValueError: where there are fewer.
    """
    if bars.n_bars < n_required:
        raise ValueError(
            f"price_data is too short: {why} needs at least {n_required} bars, got {bars.n_bars} "
            f"({bars.timestamps[0]} to {bars.timestamps[-1]}). Use a longer period or ask for fewer bars"
        )


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


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return ' Did you mean ...?' where a choice is spelled much like `name`, else an empty string."""
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    return f" Did you mean {lowered[near[0]]!r}?" if near else ""


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


def _checked_assets(assets: Sequence[str]) -> tuple[str, ...]:
    names = tuple(assets)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"assets must be one or more names, each a non-empty str, got {names!r}")
    repeated = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"assets must differ from each other, got {repeated[0]!r} twice. Rename or drop one of them")
    return names


def _frozen_array(name: str, values: object, shape: tuple[int, int]) -> FloatArray:
    array: FloatArray = np.array(values, dtype=np.float64, order="C")
    if array.shape != shape:
        raise ValueError(
            f"{name} must have shape (n_bars, n_assets) = {shape}, got {array.shape}. "
            "One value per timestamp and asset is required; values[:, None] makes a column of a single asset"
        )
    array.flags.writeable = False
    return array


def _check_values(bars: Bars) -> None:
    """Refuse values that cannot be traded on; in every check NaN compares as false, so it is caught too."""
    for name in bars.fields:
        values = getattr(bars, name)
        _refuse(bars, name, ~np.isfinite(values), _MISSING)
        if name == "volume":
            _refuse(bars, name, values < 0, _NEGATIVE_VOLUME)
        else:
            _refuse(bars, name, values <= 0, _NOT_POSITIVE)
    _check_high_low(bars)
    for name, values in bars.extra.items():
        if _plain(name) in ADJUSTED_CLOSE_NAMES.union(FIELDS):
            raise ValueError(f"extra must not hold a price column, got {name!r}. Pass it as a field: Bars(close=...)")
        missing = np.isnan(values)
        warm_up = np.logical_and.accumulate(missing, axis=0)
        _refuse(bars, name, np.isinf(values), _INFINITE_EXTRA)
        _refuse(bars, name, missing & ~warm_up, _LATE_NAN)


_MISSING = (
    "every value must be a finite number. Drop the row (frame.dropna()) or, only where the last price was still valid, "
    "carry it forward (frame.ffill())"
)
_NOT_POSITIVE = (
    "a price must be above 0, because returns and weights divide by it. Drop the row, or replace a 0 that stands for "
    "'no trade' by the last price: frame.replace(0, float('nan')).ffill()"
)
_NEGATIVE_VOLUME = "a volume must be 0 or more. Correct it, or leave the column out: frame.drop(columns='volume')"
_INFINITE_EXTRA = "a feature must be finite. Guard the division that made it, e.g. ratio.replace([inf, -inf], 0.0)"
_LATE_NAN = (
    "a feature may be NaN only in a run at the start (its warm-up). Fill the gap with values known at that time "
    "(frame.ffill(), never bfill)"
)


def _check_high_low(bars: Bars) -> None:
    """Refuse bars whose high is not the highest or whose low is not the lowest price."""
    limit = "Fix the row, or leave the range out: frame.drop(columns=['high', 'low'])"
    if bars.high is not None and bars.low is not None:
        crossed = bars.high < bars.low * (1.0 - HIGH_LOW_TOLERANCE)
        _refuse(bars, "high", crossed, f"a high must not be below the low. {limit}", "low")
    for name in ("open", "close"):
        price = getattr(bars, name)
        if price is None:
            continue
        if bars.high is not None:
            above = price > bars.high * (1.0 + HIGH_LOW_TOLERANCE)
            _refuse(bars, "high", above, f"a high must not be below the {name}. {limit}", name)
        if bars.low is not None:
            below = price < bars.low * (1.0 - HIGH_LOW_TOLERANCE)
            _refuse(bars, "low", below, f"a low must not be above the {name}. {limit}", name)


def _refuse(bars: Bars, name: str, bad: npt.NDArray[np.bool_], rule: str, other: str | None = None) -> None:
    """Raise for the first True of `bad` (n_bars, n_assets), naming the place and the value.

    Args:
        bars: the table.
        name: the column that is wrong.
        bad: which values break the rule; (n_bars, n_assets).
        rule: what is required and how to mend it.
        other: the column it was compared to, whose value is shown too.
    """
    if not bad.any():
        return
    row, asset = (int(position) for position in np.unravel_index(int(bad.argmax()), bad.shape))
    of_asset = "" if bars.assets == (SINGLE_ASSET,) else f" of asset {bars.assets[asset]!r}"
    found = f"{_values(bars, name)[row, asset]:.10g}"
    if other is not None:
        found += f" while the {other} is {_values(bars, other)[row, asset]:.10g}"
    n_bad = int(np.count_nonzero(bad))
    count = f" (the first of {n_bad} such values)" if n_bad > 1 else ""
    raise ValueError(f"column {name!r}{of_asset} at row {row} ({bars.timestamps[row]}) is {found}{count}; {rule}")


def _values(bars: Bars, name: str) -> FloatArray:
    values: FloatArray = getattr(bars, name) if name in FIELDS else bars.extra[name]
    return values


def _plain(label: object) -> str:
    return str(label).strip().lower()


def _check_shape(frame: pd.DataFrame) -> None:
    """Refuse tables without rows or columns, with repeated columns, or whose dates are still a column."""
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise ValueError(
            f"price_data is empty: it has {frame.shape[0]} rows and {frame.shape[1]} columns, and at least 1 bar and a "
            "close are required. Check the filter or file that it comes from"
        )
    if frame.columns.nlevels > 2:
        raise ValueError(
            f"columns must have one level or two (field, asset), got {frame.columns.nlevels} levels. "
            "Drop the others: frame.columns = frame.columns.droplevel(...)"
        )
    if frame.columns.has_duplicates:
        label = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(
            f"column {label!r} appears more than once, and which one is meant cannot be known. "
            "Keep the first: frame.loc[:, ~frame.columns.duplicated()]"
        )
    dates = [label for label in frame.columns if _plain(label) in DATE_COLUMN_NAMES]
    if dates and isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"the dates are in column {dates[0]!r}, but the index numbers the rows. Make them the index: "
            f"frame = frame.set_index({dates[0]!r}); frame.index = pd.to_datetime(frame.index)"
        )


def _is_one_asset(labels: pd.Index[Any]) -> bool:
    """Tell the columns of one asset (open, high, low, close, volume) from one column of closes per asset."""
    plain = {_plain(label) for label in labels}
    if plain & {"close", "volume"} or plain & ADJUSTED_CLOSE_NAMES:
        return True
    # LOW and OPEN are tickers (Lowe's, Opendoor): in capitals, and without a third field, they are assets.
    named = [str(label).strip() for label in labels if _plain(label) in FIELDS]
    return len(named) > 2 or any(not name.isupper() for name in named)


def _read_one_asset(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> Bars:
    columns: dict[str, FloatArray] = {}
    labels: dict[str, object] = {}
    for position, label in enumerate(frame.columns):
        plain = _plain(label)
        if plain in ADJUSTED_CLOSE_NAMES:
            continue
        name = plain if plain in FIELDS else str(label)
        if name in labels:
            raise ValueError(
                f"columns {labels[name]!r} and {label!r} are both read as {name!r}; one is required. "
                f"Drop one: frame.drop(columns=[{label!r}])"
            )
        labels[name] = label
        columns[name] = _numbers(frame.iloc[:, position], label, timestamps)[:, None]
    return _build(columns, (SINGLE_ASSET,), timestamps, frame.columns)


def _read_closes(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> Bars:
    series = [_numbers(frame.iloc[:, position], label, timestamps) for position, label in enumerate(frame.columns)]
    try:
        return Bars(timestamps, tuple(str(label) for label in frame.columns), np.column_stack(series))
    except ValueError as error:
        raise ValueError(
            f"{error}. (No column is called 'close', so each column was read as the closes of one asset.)"
        ) from None


def _read_two_levels(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> Bars:
    level = _field_level(frame.columns)
    cells: dict[str, dict[str, FloatArray]] = {}
    for position, label in enumerate(frame.columns):
        field_label, asset = label[level], str(label[1 - level])
        plain = _plain(field_label)
        if plain in ADJUSTED_CLOSE_NAMES:
            continue
        name = plain if plain in FIELDS else str(field_label)
        by_asset = cells.setdefault(name, {})
        if asset in by_asset:
            raise ValueError(f"two columns are read as {name!r} of asset {asset!r}, e.g. {label!r}. Drop one of them")
        by_asset[asset] = _numbers(frame.iloc[:, position], label, timestamps)
    assets = tuple(dict.fromkeys(asset for by_asset in cells.values() for asset in by_asset))
    for name, by_asset in cells.items():
        absent = [asset for asset in assets if asset not in by_asset]
        if absent:
            raise ValueError(
                f"column {name!r} is missing for asset {absent[0]!r}, and every asset must have every column. "
                f"Add it (a column shared by all assets is repeated for each) or drop {name!r} everywhere"
            )
    stacked = {name: np.column_stack([by_asset[asset] for asset in assets]) for name, by_asset in cells.items()}
    return _build(stacked, assets, timestamps, frame.columns.get_level_values(level).unique())


def _field_level(columns: pd.Index[Any]) -> int:
    """Return which of two column levels holds open, high, low, close and volume."""
    if "field" in columns.names:
        return columns.names.index("field")
    names = [{_plain(label) for label in columns.get_level_values(level)} for level in (0, 1)]
    with_close = ["close" in level_names for level_names in names]
    if with_close[0] != with_close[1]:
        return with_close.index(True)
    n_fields = [len(level_names & set(FIELDS)) for level_names in names]
    if n_fields[0] == n_fields[1]:
        raise ValueError(
            f"one level of the columns must name the fields (open, high, low, close, volume), got levels "
            f"{sorted(names[0])[:5]} and {sorted(names[1])[:5]}. Name them: frame.columns.names = ['field', 'asset']"
        )
    return int(n_fields[1] > n_fields[0])


def _build(
    columns: dict[str, FloatArray], assets: tuple[str, ...], timestamps: pd.DatetimeIndex, labels: pd.Index[Any]
) -> Bars:
    if "close" not in columns:
        found = [str(label) for label in labels]
        raise ValueError(
            f"price_data has no column 'close', which is required.{did_you_mean('close', found)} "
            f"Found: {', '.join(found[:10])}. Rename the column that holds the last price of each bar: "
            "frame.rename(columns={...: 'close'})"
        )
    fields = {name: columns[name] for name in FIELDS if name in columns}
    extra = {name: values for name, values in columns.items() if name not in FIELDS}
    return Bars(timestamps, assets, **fields, extra=extra)


def _numbers(series: pd.Series[Any], label: object, timestamps: pd.DatetimeIndex) -> FloatArray:
    """Return a column as float64 (n_bars,), or say which of its values is no number."""
    if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_complex_dtype(series.dtype):
        numeric: FloatArray = series.to_numpy(dtype=np.float64, na_value=np.nan)
        return numeric
    values = series.to_numpy(dtype=object)
    for row, value in enumerate(values):
        if not (isinstance(value, numbers.Real) or value is None or value is pd.NA):
            raise ValueError(
                f"column {label!r} at row {row} ({timestamps[row]}) is {value!r} ({type(value).__name__}), and every "
                f"column must hold numbers. Convert it (frame[{label!r}] = pd.to_numeric(frame[{label!r}])) or drop it "
                f"(frame.drop(columns=[{label!r}]))"
            )
    return np.array([np.nan if value is None or value is pd.NA else value for value in values], dtype=np.float64)
