"""What something said of a price table, laid out by bar, whatever form it said it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, IntArray
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.timestamps import read_timestamps


@dataclass(frozen=True)
class Outputs:
    """What was said of a table."""

    bars: IntArray
    """Position of each row; (n_rows,)."""
    columns: list[Any]
    values: FloatArray
    """(n_rows, n_columns)."""

    def before(self, bar: int) -> Outputs:
        """Return what was said at or before a bar."""
        kept = self.bars <= bar
        return Outputs(self.bars[kept], self.columns, self.values[kept])


def outputs_of(model: Any, price_data: PriceData, bars: Bars) -> Outputs:
    """Ask for numbers, and find out which bar each row belongs to."""
    ask = getattr(model, "predict", model)
    if not callable(ask):
        raise TypeError(f"audit something with predict(price_data), or a function; got {type(model).__name__}")
    found = ask(price_data)
    if isinstance(found, pd.Series):
        found = found.to_frame()
    if not isinstance(found, pd.DataFrame):
        found = _from_array(np.asarray(found, dtype=np.float64), price_data)
    if found.index.has_duplicates:
        raise ValueError("what is audited must say one thing per time; its index has timestamps more than once")
    places = _positions(found.index, price_data, bars)
    order = np.argsort(places)
    return Outputs(places[order], found.columns.tolist(), found.to_numpy(np.float64)[order])


def _from_array(values: FloatArray, price_data: PriceData) -> pd.DataFrame:
    index = price_data.timestamps if isinstance(price_data, Bars) else price_data.index
    if values.ndim == 0 or len(values) != len(index):
        raise ValueError(
            f"what is audited must return a table by timestamp or an array with {len(index)} rows, one per bar, got shape "
            f"{values.shape}"
        )
    return pd.DataFrame(values.reshape(len(index), -1), index=index)


def _positions(index: pd.Index[Any], price_data: PriceData, bars: Bars) -> IntArray:
    places = np.full(len(index), -1)
    if isinstance(price_data, pd.DataFrame):
        places = price_data.index.get_indexer(index)
    if (places < 0).any():
        places = bars.timestamps.get_indexer(read_timestamps(index))
    if (places < 0).any():
        raise ValueError(f"what is audited speaks of {index[int(np.argmin(places))]}, which is no bar of the table")
    return places.astype(np.int64)


def own_columns(bars: Bars) -> dict[Any, FloatArray]:
    """Return the columns that users brought, (n_bars,) each; with several assets (name, asset) is the label."""
    several = bars.n_assets > 1
    return {
        (name, asset) if several else name: values[:, number]
        for name, values in bars.extra.items()
        for number, asset in enumerate(bars.assets)
    }


def columns_of(bars: Bars, outputs: Outputs) -> dict[Any, FloatArray]:
    """Return these and the outputs, NaN at bars of which nothing was said."""
    columns = own_columns(bars)
    for number, label in enumerate(outputs.columns):
        laid_out = np.full(bars.n_bars, np.nan)
        laid_out[outputs.bars] = outputs.values[:, number]
        columns.setdefault(label, laid_out)
    return columns
