"""`Bars`: a price table that has been checked once, so that nothing after it has to doubt it.

Every simulator starts from one `Bars`. Bad input is refused at this door with a message that names the
column, the row, what was found and how to mend it; nothing is filled, dropped, sorted or guessed silently.
Row numbers count from 0. `docs/data.md` lists the accepted tables and every refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.frames import read_frame
from ml.tradingbots.data.names import FIELDS, SINGLE_ASSET, did_you_mean, is_one_asset
from ml.tradingbots.data.price_checks import check_values
from ml.tradingbots.data.timestamps import read_timestamps, utc_timestamp

FloatArray: TypeAlias = npt.NDArray[np.float64]

SECONDS_PER_YEAR = 365.25 * 24 * 3600
USUAL_BARS_PER_YEAR = (1, 4, 12, 52, 252, 365, 24 * 365)


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
        check_values(timestamps, assets, {name: frozen[name] for name in self.fields}, extra)

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
        columns = read_frame(price_data)
        try:
            return Bars(columns.timestamps, columns.assets, **columns.fields, extra=columns.extra)
        except ValueError as error:
            if not columns.note:
                raise
            raise ValueError(f"{error}. {columns.note}") from None

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
        if tuple(columns) == ("close",) and not is_one_asset(labels):
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
