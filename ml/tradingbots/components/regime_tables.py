"""Tables with columns of regimes: probabilities checked, put beside prices, the same for every asset."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_feature import with_forecasts
from ml.tradingbots.components.regime_detector import FloatArray, refuse_smoothed
from ml.tradingbots.components.regime_layout import is_regime_column, regime_column_names
from ml.tradingbots.data.bars import Bars

PriceData: TypeAlias = Bars | pd.DataFrame

# Probabilities that others made may be rounded to a few digits.
_ROUNDING = 1e-6


def with_regime_probabilities(price_data: PriceData, probabilities: Any) -> pd.DataFrame:
    """Add regime probabilities of one's own to a price table, in the columns that a `RegimeAwareAgent` reads.

    Args:
        price_data: what `Bars.from_frame` accepts.
        probabilities: of each regime at the bar after each, known at its close; (n_bars, n_regimes), NaN in a warm-up.

    Returns:
        The table with `regime_p0` …, `regime_entropy` and `regime_novelty`, which is 0.

    Raises:
        TypeError: they are smoothed, and know the future.
        ValueError: they are none, or of another number of bars.
    """
    refuse_smoothed(price_data, probabilities, to="an agent")
    bars = Bars.from_frame(price_data)
    if isinstance(probabilities, (pd.DataFrame, pd.Series)):
        tables = [bars.timestamps, *([price_data.index] if isinstance(price_data, pd.DataFrame) else [])]
        if not any(probabilities.index.equals(index) for index in tables):
            raise ValueError(
                "the index of probabilities must be the timestamps of price_data, bar by bar: reindex them, which fills a "
                "warm-up with NaN, or give probabilities.to_numpy() if rows are in the order of the bars"
            )
    given = np.array(probabilities, dtype=np.float64)
    if given.ndim != 2 or len(given) != bars.n_bars or given.shape[1] < 1:
        raise ValueError(
            f"probabilities must be (n_bars, n_regimes), one row for each of {bars.n_bars} bars, got shape {given.shape}; "
            "fill the warm-up with NaN"
        )
    first, rows = from_first_defined(given, bars)
    if not are_distributions(rows):
        raise ValueError("probabilities must be at least 0 and each row must sum to 1; fill the warm-up with NaN")
    table = np.full((bars.n_bars, given.shape[1] + 2), np.nan)
    table[first:, :-2] = rows
    table[first:, -2] = [relative_entropy(row) for row in rows.tolist()]
    table[first:, -1] = 0.0
    return with_columns(bars, table)


def with_columns(price_data: PriceData, table: FloatArray) -> pd.DataFrame:
    """Return a price table with columns of regimes, (n_bars, n_regimes + 2); raises ValueError where it has some."""
    bars = Bars.from_frame(price_data)
    present = [name for name in bars.extra if is_regime_column(name)]
    if present:
        raise ValueError(f"the table has columns of regimes already ({', '.join(present)}): drop them first")
    columns = dict(zip(regime_column_names(table.shape[1] - 2), table.T, strict=True))
    return with_forecasts(bars, {name: functools.partial(_for_every_asset, column) for name, column in columns.items()})


def _for_every_asset(column: FloatArray, bars: Bars) -> FloatArray:
    return np.repeat(column[:, None], bars.n_assets, axis=1)


def from_first_defined(features: Any, bars: Bars) -> tuple[int, Any]:
    """Return the first bar of features that end with the last bar and are undefined only in a warm-up, and the rest."""
    if isinstance(features, pd.Series):
        features = features.to_frame()
    if not isinstance(features, pd.DataFrame):
        features = np.asarray(features, dtype=np.float64)
        features = features[:, None] if features.ndim == 1 else features
    n_missing = bars.n_bars - len(features)
    if n_missing < 0 or features.ndim != 2:
        raise ValueError(f"inputs must be (n_bars, n_features) of {bars.n_bars} bars, got shape {features.shape}")
    if isinstance(features, pd.DataFrame) and not features.index.equals(bars.timestamps[n_missing:]):
        raise ValueError("inputs must end with the last bar of the table and leave out none after its first")
    defined = np.isfinite(np.asarray(features, dtype=np.float64)).all(axis=1)
    if not defined.any():
        raise ValueError("inputs are undefined at every bar: give more bars, or features with a shorter warm-up")
    first = int(np.argmax(defined))
    if isinstance(features, pd.DataFrame):
        return n_missing + first, features.iloc[first:]
    return n_missing + first, features[first:]


def are_distributions(rows: FloatArray) -> bool:
    """Whether every row is finite, at least 0 and sums to 1 but for rounding."""
    return bool(np.isfinite(rows).all() and (rows >= 0.0).all() and (np.abs(rows.sum(axis=1) - 1.0) < _ROUNDING).all())


def relative_entropy(probabilities: Sequence[float]) -> float:
    """Entropy over its largest value, in [0, 1]; 0 for a single regime."""
    if len(probabilities) == 1:
        return 0.0
    total = -sum(value * math.log(value) for value in probabilities if value > 0.0)
    return min(max(total / math.log(len(probabilities)), 0.0), 1.0)
