"""Columns that are what is to be predicted, as good as: a leak that no change of the future shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, forward_returns
from ml.tradingbots.data.bars import Bars

TARGET_HORIZONS = (1, 2, 3, 5, 10, 20)
# Correlation with the returns that followed from which a column is taken for the target itself.
RESEMBLANCE = 0.99
# Rows from which a correlation says anything.
_FEWEST_ROWS = 30


def resemblances(
    bars: Bars, columns: Mapping[Any, FloatArray], horizons: Sequence[int] = TARGET_HORIZONS
) -> list[dict[str, Any]]:
    """Return findings, rows of `LookAheadReport.findings`, on those columns that are as good as the target.

    Args:
        bars: the market.
        columns: what is compared, by label; (n_bars,) each, NaN where there is nothing.
        horizons: bars ahead.
    """
    targets = _targets(bars, horizons)
    found = [_resemblance(bars, label, values, targets) for label, values in columns.items()]
    return [finding for finding in found if finding is not None]


def _targets(bars: Bars, horizons: Sequence[int]) -> list[tuple[int, int, FloatArray]]:
    """Return (horizon, asset, target) of everything that might be predicted and cannot be told from the last return."""
    last = np.diff(np.log(bars.close), axis=0, prepend=np.nan)
    found = []
    for horizon in horizons:
        ahead = forward_returns(bars, (horizon,))[..., 0]
        for asset in range(bars.n_assets):
            for target in (ahead[:, asset], np.sign(ahead[:, asset])):
                if not abs(_correlation(last[:, asset], target)) > RESEMBLANCE:
                    found.append((horizon, asset, target))
    return found


def _resemblance(
    bars: Bars, label: Any, values: FloatArray, targets: list[tuple[int, int, FloatArray]]
) -> dict[str, Any] | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.log(values[:, None] / bars.close)  # What a price says about returns.
    best, ahead = 0.0, 0
    for horizon, asset, target in targets:
        for form in (values, relative[:, asset]):
            correlation = _correlation(form, target)
            if abs(correlation) > max(abs(best), RESEMBLANCE):
                best, ahead = correlation, horizon
    if not ahead:
        return None
    nowhere = {"bar": pd.NaT, "first_moved": pd.NaT, "n_moved": 0}
    return {"change": "is the target", **nowhere, "column": label, "bars_ahead": ahead, "largest_move": best}


def _correlation(left: FloatArray, right: FloatArray) -> float:
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < _FEWEST_ROWS:
        return 0.0
    a, b = left[known] - left[known].mean(), right[known] - right[known].mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0.0 else 0.0
