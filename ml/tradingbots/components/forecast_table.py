"""What predictors learn from: features of every bar, the returns that followed, and windows gathered by index.

One table holds every bar once. A window is a contiguous slice of it, so all windows are one overlapping view and nothing is
ever copied but the batch that is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ml.tradingbots.components.features import feature_columns
from ml.tradingbots.core.indicators import volatility
from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def forward_returns(bars: Bars, horizons: Sequence[int]) -> FloatArray:
    """Return what followed each bar: ln(close[t + h] / close[t]).

    Returns:
        (n_bars, n_assets, n_horizons), NaN where the future is not known yet.

    >>> closes = pd.DataFrame({"close": [1.0, 2.0, 4.0]}, index=pd.date_range("2024-01-01", periods=3))
    >>> forward_returns(Bars.from_frame(closes), (1,))[:, 0, 0].round(3).tolist()
    [0.693, 0.693, nan]
    """
    log_close = np.log(bars.close)
    returns = np.full((bars.n_bars, bars.n_assets, len(horizons)), np.nan)
    for number, horizon in enumerate(horizons):
        if horizon < bars.n_bars:
            returns[:-horizon, :, number] = log_close[horizon:] - log_close[:-horizon]
    return returns


@dataclass(frozen=True)
class ForecastTable:
    """One price table as a predictor sees it.

    Every window and scale at an origin t is made of bars up to t alone; only `targets` look ahead.
    """

    bars: Bars
    window_size: int
    features: FloatArray
    """NaN in warm-ups; (n_bars, n_assets, n_features)."""
    targets: FloatArray
    """Log returns over each horizon; (n_bars, n_assets, n_horizons), NaN where unknown."""
    scale: FloatArray
    """What forecasts are made in units of: volatility per bar known at the bar times √horizon, or 1; as `targets`. An asset
    that stood still for a whole look-back keeps the last volatility it had; NaN before it first moves."""
    moves: npt.NDArray[np.bool_]
    """Whether an asset moved within its look-back; where it did not, nothing is learned from it; (n_bars, n_assets)."""
    reach: int
    """Bars that a forecast reads before its origin, warm-ups of features included; a volatility that was kept is older."""
    first_bar: int
    """First bar at which every asset has a full window and a scale."""
    horizon: int
    """The longest one."""

    @classmethod
    def of(
        cls,
        price_data: pd.DataFrame | Bars,
        *,
        features: Sequence[str],
        window_size: int,
        horizons: Sequence[int],
        volatility_bars: int,
    ) -> ForecastTable:
        """Compute the table.

        Args:
            price_data: what `Bars.from_frame` accepts.
            features: names of `list_features()`, or columns of `price_data`.
            window_size: bars in a window.
            horizons: bars ahead.
            volatility_bars: look-back of the volatility that targets are divided by; 0 divides by 1.

        Raises:
            ValueError: a feature is unknown or has a hole, or there are too few bars for one window.
        """
        bars = Bars.from_frame(price_data)
        return cls.of_columns(
            bars,
            feature_columns(bars, features),
            window_size=window_size,
            horizons=horizons,
            volatility_bars=volatility_bars,
        )

    @classmethod
    def of_columns(
        cls, bars: Bars, columns: FloatArray, *, window_size: int, horizons: Sequence[int], volatility_bars: int
    ) -> ForecastTable:
        """Compute the table from columns of numbers, NaN in warm-ups; (n_bars, n_assets, n_features); else as `of`."""
        # Asked for before it is computed, bar by bar of the look-back.
        knows_volatility = 0 < volatility_bars < bars.n_bars
        deviation = volatility(bars.close, volatility_bars) if knows_volatility else np.ones_like(bars.close)
        moves = deviation > 0.0
        deviation = _kept(deviation, moves)
        scale = deviation[..., None] * np.sqrt(np.asarray(horizons, dtype=np.float64))
        if not volatility_bars:
            scale = np.ones((bars.n_bars, bars.n_assets, len(horizons)))
        known = np.asarray(np.isfinite(columns.reshape(bars.n_bars, -1)).all(axis=1))
        if not known.any():
            raise ValueError(
                f"price_data has {bars.n_bars} bars, too few for one bar with all features defined; give more bars"
            )
        warmup = int(np.argmax(known))
        if not known[warmup:].all():
            row = warmup + int(np.argmin(known[warmup:]))
            raise ValueError(f"a feature is undefined at row {row} ({bars.timestamps[row]}), after its warm-up")
        reach = max(warmup + window_size - 1, volatility_bars)
        if reach >= bars.n_bars:
            raise ValueError(
                f"price_data has {bars.n_bars} bars, a forecast needs {reach + 1}: window_size={window_size} after a "
                f"warm-up of {warmup}, volatility over {volatility_bars}; give more bars or shorten these"
            )
        return cls(
            bars=bars,
            window_size=window_size,
            features=columns,
            targets=forward_returns(bars, horizons),
            scale=scale,
            moves=moves,
            reach=reach,
            first_bar=max(reach, _first_known(bars, deviation, volatility_bars)),
            horizon=max(horizons),
        )

    def scaled_targets(self, origins: IntArray) -> FloatArray:
        """Return targets in units of `scale`, NaN where nothing is to be learned; (n_origins, n_assets, n_horizons).

        An asset that stands still says nothing about how it moves, and in units of the last moves before it stopped the
        first one after could be of any size.

        Raises:
            ValueError: no asset moved before any of the origins.
        """
        self.check_moves(origins)
        targets: FloatArray = self.targets[origins] / self.scale[origins]
        targets[~self.moves[origins]] = np.nan
        return targets

    def check_moves(self, origins: IntArray) -> None:
        """Refuse origins at which every asset stands still; raises ValueError."""
        if not self.moves[origins].any():
            first, last = self.bars.timestamps[origins[[0, -1]]]
            raise ValueError(
                f"no asset moved in the look-back of any of {len(origins)} origins from {first} to {last}, so there is nothing "
                "to learn in units of its volatility; give other bars, or use volatility_bars=0"
            )

    @property
    def n_features(self) -> int:
        """Features of a bar and asset."""
        return int(self.features.shape[2])

    def origins(self, bars: npt.ArrayLike | None, *, labelled: bool) -> IntArray:
        """Return the bars at which forecasts are made.

        Args:
            bars: those asked for, increasing positions; those without a full window or a scale are left out. None: all.
            labelled: whether the return over the longest horizon must be known.

        Raises:
            ValueError: they are no increasing positions of this table, or none is left.
        """
        n_bars = self.bars.n_bars
        asked = np.arange(n_bars) if bars is None else np.asarray(bars)
        if asked.ndim != 1 or (len(asked) and not np.issubdtype(asked.dtype, np.integer)):
            raise ValueError(
                f"bars must be a list of positions, got an array of {asked.dtype} with shape {asked.shape}"
            )
        if len(asked) and (asked[0] < 0 or asked[-1] >= n_bars or (np.diff(asked) <= 0).any()):
            raise ValueError(f"bars must be increasing positions in [0, {n_bars}), got {asked[0]} to {asked[-1]}")
        # The last bar whose longest future is over.
        last = n_bars - 1 - (self.horizon if labelled else 0)
        kept = asked[(asked >= self.first_bar) & (asked <= last)]
        if len(kept) == 0:
            wanted = "a full window, a scale and a known return" if labelled else "a full window and a scale"
            raise ValueError(
                f"none of the {len(asked)} bars asked for has {wanted}: they must lie in [{self.first_bar}, {last}]"
            )
        return kept.astype(np.int64)

    def rows_of_windows(self, origins: IntArray) -> IntArray:
        """Return the bars that the windows of some origins cover."""
        covered = np.zeros(self.bars.n_bars + 1, dtype=np.int64)
        np.add.at(covered, origins - self.window_size + 1, 1)
        np.add.at(covered, origins + 1, -1)
        return np.flatnonzero(np.cumsum(covered)[:-1] > 0)


def _kept(deviation: FloatArray, moves: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the last volatility of each asset at which it moved, NaN before the first; as `deviation`."""
    rows = np.where(moves, np.arange(len(moves))[:, None], 0)
    kept = np.take_along_axis(deviation, np.maximum.accumulate(rows, axis=0), axis=0)
    return np.where(kept > 0.0, kept, np.nan)


def _first_known(bars: Bars, deviation: FloatArray, volatility_bars: int) -> int:
    """Return the first bar at which every asset has a volatility.

    Raises:
        ValueError: one never has.
    """
    known = np.isfinite(deviation)
    for asset, name in enumerate(bars.assets):
        if not known[:, asset].any():
            raise ValueError(
                f"{name!r} has not moved in any of {bars.n_bars} bars, so volatility_bars={volatility_bars} finds no "
                "volatility to forecast in units of; leave it out, give earlier bars, or use volatility_bars=0"
            )
    return int(np.argmax(known, axis=0).max())


class Windows:
    """All windows of a table as one view: (asset, bar) pairs in, (batch, window_size, n_features) out.

    Args:
        table: what is looked at.
        mean, std: of every feature; (n_features,).
        clip: size beyond which standardised features are cut.
        device: where batches are made.
        dtype: of batches.
    """

    def __init__(
        self,
        table: ForecastTable,
        mean: FloatArray,
        std: FloatArray,
        *,
        clip: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = np.clip((table.features - mean) / std, -clip, clip)
        values = np.nan_to_num(values, nan=0.0)  # Warm-ups, which no window covers.
        flat = torch.tensor(values.transpose(1, 0, 2).reshape(-1, table.n_features), dtype=dtype, device=device)
        n_rows, width = flat.shape
        self.n_bars, self.shape = table.bars.n_bars, (table.window_size, width)
        self._view = flat.as_strided((n_rows - table.window_size + 1, table.window_size * width), (width, 1))

    def __call__(self, asset: Tensor, bar: Tensor) -> Tensor:
        """Gather the windows that end at some bars; int64 (batch,) each."""
        start = asset * self.n_bars + bar - (self.shape[0] - 1)
        return self._view.index_select(0, start).view(-1, *self.shape)
