"""Scores of one model's forecasts over one horizon, and what each origin adds to them, so that origins can be resampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.core import forecast_metrics as metrics
from ml.tradingbots.core.metrics import sharpe_ratio

Batch: TypeAlias = Callable[[FloatArray], FloatArray]

# An even grid, as the CRPS wants it, whose ends are the 90% interval.
LEVELS = tuple(round((k + 0.5) / 10, 2) for k in range(10))


@dataclass(frozen=True)
class ForecastSample:
    """Forecasts of one model over one horizon beside what happened; n origins."""

    timestamps: pd.DatetimeIndex
    """Of the origins; (n,)."""
    y: FloatArray
    """(n, n_assets), as the two below."""
    prediction: FloatArray
    train_mean: FloatArray
    quantiles: FloatArray | None
    """(n, n_assets, n_levels)."""
    net_returns: FloatArray
    """Of trading on the sign of the forecast; (n,)."""
    bars_per_year: float

    def scores(self) -> dict[str, float]:
        """Return every score of these origins."""
        y, prediction = self.y, self.prediction
        found = {
            "r2": metrics.r2_against_naive(y, prediction, self.train_mean),
            "ic": metrics.information_coefficient(y, prediction),
            "rank_ic": metrics.rank_ic(y, prediction),
            "directional_skill": metrics.directional_skill(y, prediction),
            "crps": float("nan"),
            "coverage": float("nan"),
            "sharpe_ratio": sharpe_ratio(self.net_returns, bars_per_year=self.bars_per_year),
        }
        if self.quantiles is not None:
            found["crps"] = metrics.crps_from_quantiles(y, self.quantiles, LEVELS)
            found["coverage"] = metrics.coverage(y, self.quantiles[..., 0], self.quantiles[..., -1])
        return found

    def parts(self) -> dict[str, tuple[FloatArray, Batch]]:
        """Return what each origin adds to each score, (n, n_parts), and the score of mean parts, (n_batch, n_parts).

        Ranks are those among all origins, also in a resample.
        """
        y, error = self.y, self.y - self.prediction
        squares = [(values**2).sum(1) for values in (error, y, y - self.train_mean)]
        moved = y != 0.0
        hits = [(np.sign(y) * np.sign(self.prediction)).sum(1), moved.sum(1), (y > 0.0).sum(1)]
        centre = self.net_returns.mean()
        found: dict[str, tuple[FloatArray, Batch]] = {
            "r2": (np.stack(squares, 1), lambda m: 1.0 - m[:, 0] / np.minimum(m[:, 1], m[:, 2])),
            "ic": (_moments(y, self.prediction), _correlation),
            "rank_ic": (_moments(_ranks(y), _ranks(self.prediction)), _correlation),
            "directional_skill": (np.stack(hits, 1).astype(np.float64), _skill),
            "sharpe_ratio": (np.stack([self.net_returns, (self.net_returns - centre) ** 2], 1), self._sharpe(centre)),
        }
        if self.quantiles is not None:
            above = y[..., None] - self.quantiles
            levels = np.asarray(LEVELS)
            loss = 2.0 * np.maximum(levels * above, (levels - 1.0) * above).mean((1, 2))
            inside = ((self.quantiles[..., 0] <= y) & (y <= self.quantiles[..., -1])).mean(1)
            found |= {"crps": (loss[:, None], _first), "coverage": (inside[:, None], _first)}
        return found

    def _sharpe(self, centre: float) -> Batch:
        n = len(self.net_returns)

        def ratio(m: FloatArray) -> FloatArray:
            variance = (m[:, 1] - (m[:, 0] - centre) ** 2) * n / (n - 1)
            found: FloatArray = m[:, 0] / np.sqrt(variance) * np.sqrt(self.bars_per_year)
            return found

        return ratio


def joined(samples: list[ForecastSample], name: str, horizon: int) -> ForecastSample:
    """Return the samples of several folds as one; raises ValueError where there is none."""
    if not samples:
        raise ValueError(f"no outcome of {name!r} over {horizon} bars is known in any test; give more bars")
    quantiles = [sample.quantiles for sample in samples if sample.quantiles is not None]
    arrays: dict[str, npt.NDArray[np.float64]] = {
        field: np.concatenate([getattr(sample, field) for sample in samples])
        for field in ("y", "prediction", "train_mean", "net_returns")
    }
    together = np.concatenate(quantiles) if len(quantiles) == len(samples) else None
    timestamps = pd.DatetimeIndex(samples[0].timestamps.append([sample.timestamps for sample in samples[1:]]))
    return ForecastSample(timestamps=timestamps, **arrays, quantiles=together, bars_per_year=samples[0].bars_per_year)


def _first(m: FloatArray) -> FloatArray:
    return m[:, 0]


def _skill(m: FloatArray) -> FloatArray:
    up = m[:, 2] / m[:, 1]
    found: FloatArray = 0.5 + 0.5 * m[:, 0] / m[:, 1] - np.maximum(up, 1.0 - up)
    return found


def _moments(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the sums over assets that a correlation is made of; (n, 5)."""
    # On the scale of 1, so that differences of squares keep their digits.
    a, b = ((values - values.mean()) / (values.std() or 1.0) for values in (left, right))
    return np.stack([values.mean(1) for values in (a, b, a**2, b**2, a * b)], 1)


def _correlation(m: FloatArray) -> FloatArray:
    spread = (m[:, 2] - m[:, 0] ** 2) * (m[:, 3] - m[:, 1] ** 2)
    found: FloatArray = (m[:, 4] - m[:, 0] * m[:, 1]) / np.sqrt(spread)
    return found


def _ranks(values: FloatArray) -> FloatArray:
    return np.asarray(pd.Series(values.ravel()).rank(), dtype=np.float64).reshape(values.shape)
