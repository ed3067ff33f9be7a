"""Reading a DataFrame: which of its columns is which price of which asset, and every value as a number.

What the numbers must satisfy is not decided here; `price_checks` does that for every table.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.names import (
    DATE_COLUMN_NAMES,
    FIELDS,
    IGNORED_NAMES,
    SINGLE_ASSET,
    did_you_mean,
    field_level,
    is_one_asset,
    plain_name,
)
from ml.tradingbots.data.timestamps import read_timestamps

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameColumns:
    """What a DataFrame holds; the arguments of `Bars`, values not yet checked."""

    timestamps: pd.DatetimeIndex
    """When each bar became known, in UTC; (n_bars,)."""
    assets: tuple[str, ...]
    """One name per asset."""
    fields: dict[str, FloatArray]
    """Open, high, low, close and volume, as far as there are any; (n_bars, n_assets) each."""
    extra: dict[str, FloatArray] = field(default_factory=dict)
    """All other columns by name; (n_bars, n_assets) each."""
    note: str = ""
    """How the columns were understood, where an error about their values would puzzle without it."""


def read_frame(frame: pd.DataFrame) -> FrameColumns:
    """Read a price table of any layout that `Bars.from_frame` accepts.

    Raises:
        ValueError: where the layout, the index or a value that is no number leaves the meaning open.
    """
    _check_shape(frame)
    timestamps = read_timestamps(frame.index)
    if frame.columns.nlevels > 1:
        return _read_two_levels(frame, timestamps)
    if is_one_asset(frame.columns):
        return _read_one_asset(frame, timestamps)
    return _read_closes(frame, timestamps)


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
    dates = [label for label in frame.columns if plain_name(label) in DATE_COLUMN_NAMES]
    if dates and isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"the dates are in column {dates[0]!r}, but the index numbers the rows. Make them the index: "
            f"frame = frame.set_index({dates[0]!r}); frame.index = pd.to_datetime(frame.index)"
        )


def _read_one_asset(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> FrameColumns:
    columns: dict[str, FloatArray] = {}
    labels: dict[str, object] = {}
    for position, label in enumerate(frame.columns):
        plain = plain_name(label)
        if plain in IGNORED_NAMES:
            continue
        name = plain if plain in FIELDS else str(label)
        if name in labels:
            raise ValueError(
                f"columns {labels[name]!r} and {label!r} are both read as {name!r}; one is required. "
                f"Drop one: frame.drop(columns=[{label!r}])"
            )
        labels[name] = label
        columns[name] = _numbers(frame.iloc[:, position], label, timestamps)[:, None]
    return _sorted_out(timestamps, (SINGLE_ASSET,), columns, frame.columns)


def _read_closes(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> FrameColumns:
    series = [_numbers(frame.iloc[:, position], label, timestamps) for position, label in enumerate(frame.columns)]
    return FrameColumns(
        timestamps=timestamps,
        assets=tuple(str(label) for label in frame.columns),
        fields={"close": np.column_stack(series)},
        note="(No column is called 'close', so each column was read as the closes of one asset.)",
    )


def _read_two_levels(frame: pd.DataFrame, timestamps: pd.DatetimeIndex) -> FrameColumns:
    level = field_level(frame.columns)
    cells: dict[str, dict[str, FloatArray]] = {}
    for position, label in enumerate(frame.columns):
        field_label, asset = label[level], str(label[1 - level])
        plain = plain_name(field_label)
        if plain in IGNORED_NAMES:
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
    return _sorted_out(timestamps, assets, stacked, frame.columns.get_level_values(level).unique())


def _sorted_out(
    timestamps: pd.DatetimeIndex, assets: tuple[str, ...], columns: dict[str, FloatArray], labels: pd.Index[Any]
) -> FrameColumns:
    """Tell prices and volume from extra columns, and refuse a table without closes."""
    if "close" not in columns:
        found = [str(label) for label in labels]
        raise ValueError(
            f"price_data has no column 'close', which is required.{did_you_mean('close', found)} "
            f"Found: {', '.join(found[:10])}. Rename the column that holds the last price of each bar: "
            "frame.rename(columns={...: 'close'})"
        )
    fields = {name: columns[name] for name in FIELDS if name in columns}
    extra = {name: values for name, values in columns.items() if name not in FIELDS}
    return FrameColumns(timestamps=timestamps, assets=assets, fields=fields, extra=extra)


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
