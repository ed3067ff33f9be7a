"""How far shares of outcomes stray from perfect quantiles by chance alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.training.forecast_slices import ForecastSlice

CHANCE = 0.95
"""Share of perfect forecasts that the bands of chance hold at any one place."""


def effective_outcomes(slices: Sequence[ForecastSlice], horizon: int) -> float:
    """Return how many independent outcomes carry as much as those of some models over one horizon.

    Were forecasts perfect, an outcome could miss its quantile only by what is new since the origin: at one bar ahead misses
    are independent in time, and outcomes over h bars count once in h. Assets move together, and so do their misses: they
    count by the variance of their mean, taken from the data, beside that of one of them.

    Args:
        slices: of models that have quantiles.
        horizon: bars ahead.
    """
    shares = []
    for found in slices:
        hits = found.hits()
        # Over time, each asset's variance and that of the mean over assets; (n_levels,).
        single, together = hits.var(axis=0).mean(axis=0), hits.mean(axis=1).var(axis=0)
        shares.append(float(together.sum() / single.sum()) if single.sum() > 0.0 else 1.0)
    n_origins, n_assets = slices[0].outcomes.shape
    counted = n_origins / horizon / float(np.mean(shares))
    return float(np.clip(counted, 1.0, n_origins * n_assets))


def chance_band(levels: FloatArray, n_outcomes: float) -> tuple[FloatArray, FloatArray]:
    """Return the ends of what chance allows the share of outcomes below perfect quantiles, pointwise; (n_levels,) each."""
    # Imported where it is used: scipy.stats takes longer to import than all of ours.
    from scipy.stats import binom  # type: ignore[import-untyped]

    count = max(1, round(n_outcomes))
    tail = 0.5 * (1.0 - CHANCE)
    low, high = (np.asarray(binom.ppf(end, count, levels), dtype=np.float64) / count for end in (tail, 1.0 - tail))
    return low, high
