"""Price tables cut off or changed after a bar, in the form in which they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import FIELDS, IGNORED_NAMES, field_level, is_one_asset, plain_name


def until(price_data: PriceData, stop: int) -> PriceData:
    """Return the first `stop` bars of a price table, in the form it has."""
    return price_data.slice(0, stop) if isinstance(price_data, Bars) else price_data.iloc[:stop]


class ChangeableTable:
    """A price table whose later rows can be changed, in the form in which it was given."""

    def __init__(self, price_data: PriceData) -> None:
        self.bars = Bars.from_frame(price_data)
        self.frame = price_data if isinstance(price_data, pd.DataFrame) else None
        fields = {name: getattr(self.bars, name) for name in FIELDS if getattr(self.bars, name) is not None}
        self.values: dict[str, FloatArray] = {**fields, **self.bars.extra}

    def unchanged(self) -> PriceData:
        """Return the table as it was, made the way the changed ones are."""
        return self._formed(self.values)

    def moved(self, bar: int, size: float, rng: np.random.Generator) -> PriceData:
        """Return the table with everything after a bar moved by about `size`, in log units; still a valid one."""
        later = slice(bar + 1, None)
        values = {name: array.copy() for name, array in self.values.items()}
        shape = values["close"][later].shape

        def draw() -> FloatArray:
            # As large downward as upward, and nowhere next to nothing.
            return size * rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape)

        for name in ("open", "close"):
            if name in values:
                values[name][later] *= np.exp(draw())
        ends = [values[name][later] for name in ("open", "close") if name in values]
        if "high" in values:
            values["high"][later] = np.maximum.reduce(ends) * np.exp(np.abs(draw()))
        if "low" in values:
            values["low"][later] = np.minimum.reduce(ends) * np.exp(-np.abs(draw()))
        if "volume" in values:
            values["volume"][later] = values["volume"][later] * np.exp(draw()) + np.abs(draw())
        for name in self.bars.extra:
            deviation = float(np.nanstd(values[name])) or 1.0
            values[name][later] += deviation * np.expm1(size) * draw() / size
        return self._formed(values)

    def _formed(self, values: dict[str, FloatArray]) -> PriceData:
        if self.frame is None:
            fields = {name: array for name, array in values.items() if name in FIELDS}
            extra = {name: array for name, array in values.items() if name not in FIELDS}
            return Bars(self.bars.timestamps, self.bars.assets, **fields, extra=extra)
        columns = [self._column(place, label, values) for place, label in enumerate(self.frame.columns)]
        return pd.DataFrame(np.column_stack(columns), index=self.frame.index, columns=self.frame.columns)

    def _column(self, place: int, label: Any, values: dict[str, FloatArray]) -> FloatArray:
        """Return the values of one column of the frame."""
        assert self.frame is not None
        columns, asset, name = self.frame.columns, 0, label
        if columns.nlevels > 1:
            level = field_level(columns)
            name, asset = label[level], self.bars.assets.index(str(label[1 - level]))
        elif not is_one_asset(columns):
            return values["close"][:, place]
        plain = plain_name(name)
        if plain in IGNORED_NAMES:  # Adjusted closes and the like go with the close.
            ratio = values["close"][:, asset] / self.values["close"][:, asset]
            followed: FloatArray = self.frame.iloc[:, place].to_numpy(np.float64) * ratio
            return followed
        return values[plain if plain in FIELDS else str(name)][:, asset]
