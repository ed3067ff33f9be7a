"""Charts as a person sees them: windows of prices drawn as black and white images (Jiang, Kelly & Xiu, 2023).

Each bar is three pixels wide: a tick for the open, a line from low to high, a tick for the close. A line of moving averages
may run through them, and bars of volume may stand below, in the bottom fifth. Every image has a scale of its own, so that
prices times a constant give the same image and nothing but the bars of its window can move a pixel.

Jiang, J., Kelly, B. & Xiu, D. (2023). (Re-)Imag(in)ing Price Trends. Journal of Finance 78(6).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, Windows
from ml.tradingbots.core.indicators import rolling_mean
from ml.tradingbots.data.bars import Bars

BAR_WIDTH = 3
"""Pixels of a bar: open, low to high, close."""
LEAST_HEIGHT = 8
# A window whose prices differ by less than this share of them stands still: what is left is rounding.
_FLAT = 1e-9
# Prices halfway between two rows go to the upper one, whatever rounding says: else prices in cents and in dollars would
# give different images. In pixels; float64 errs by less in the flattest window that is drawn.
_TIE = 1e-4


def panel_rows(height: int, *, volume: bool) -> tuple[int, int]:
    """Return how many rows of an image show prices, and how many volume; one row between them stays black.

    >>> panel_rows(64, volume=True), panel_rows(64, volume=False)
    ((51, 12), (64, 0))
    """
    n_volume = height // 5 if volume else 0
    return height - n_volume - int(volume), n_volume


def ohlc_images(
    open_price: Tensor,
    high: Tensor,
    low: Tensor,
    close: Tensor,
    volume: Tensor | None = None,
    moving_average: Tensor | None = None,
    *,
    height: int,
) -> Tensor:
    """Draw windows of bars, oldest left.

    The highest high and the lowest low of a window, its moving averages included, are the top and the bottom row of its
    prices; the largest volume fills the height of its panel. A window that stands still is drawn in the middle row.

    Args:
        open_price: first prices; NaN draws no tick; (batch, window_size). Give float64: float32 knows prices to one in ten
            million, which is pixels where a window is narrow.
        high: highest prices; as `open_price`, without NaN, like all below.
        low: lowest prices.
        close: last prices.
        volume: units traded, 0 or more; None draws no panel for them.
        moving_average: a mean of closes at each bar; None draws no line. Between the middles of bars it is straight, one
            pixel in each column.
        height: rows of the image, at least `LEAST_HEIGHT`.

    Returns:
        uint8 (batch, 1, height, 3 · window_size), 1 where there is a mark; row 0 is the top. On the device of the prices.

    Raises:
        ValueError: the height is too small.
    """
    if height < LEAST_HEIGHT:
        raise ValueError(f"height must be at least {LEAST_HEIGHT} rows, got {height}")
    n_rows, n_volume = panel_rows(height, volume=volume is not None)
    top, bottom = high.amax(1, keepdim=True), low.amin(1, keepdim=True)
    if moving_average is not None:
        top = torch.maximum(top, moving_average.amax(1, keepdim=True))
        bottom = torch.minimum(bottom, moving_average.amin(1, keepdim=True))

    def row_of(price: Tensor) -> Tensor:
        return _row(price, top, bottom, n_rows)[:, None]  # (batch, 1, n_columns), beside `rows`.

    batch, window_size = close.shape
    image = torch.zeros(batch, height, window_size, BAR_WIDTH, dtype=torch.uint8, device=close.device)
    rows = torch.arange(n_rows, dtype=close.dtype, device=close.device)[:, None]
    image[:, :n_rows, :, 0] = rows == row_of(open_price)
    image[:, :n_rows, :, 1] = (rows >= row_of(high)) & (rows <= row_of(low))
    image[:, :n_rows, :, 2] = rows == row_of(close)
    if n_volume and volume is not None:
        image[:, height - n_volume :, :, 1] = _volume_bars(volume, n_volume)
    image = image.view(batch, 1, height, -1)
    if moving_average is not None:
        # From the middle of the first bar to the middle of the last.
        image[:, 0, :n_rows, 1:-1] |= rows == row_of(_straight_between(moving_average))
    return image


def _row(price: Tensor, top: Tensor, bottom: Tensor, n_rows: int) -> Tensor:
    """Return the row of each price, as a number of the prices' kind, so that NaN is no row at all."""
    span = top - bottom
    flat = span <= _FLAT * top
    share = torch.where(flat, 0.5, (price - bottom) / torch.where(flat, 1.0, span))
    above_bottom = (share.clamp(0.0, 1.0) * (n_rows - 1) + 0.5 + _TIE).floor()
    return n_rows - 1 - torch.where(price.isnan(), math.nan, above_bottom)


def _volume_bars(volume: Tensor, n_rows: int) -> Tensor:
    """Return which pixels lie in a bar; bool (batch, n_rows, window_size)."""
    largest = volume.amax(1, keepdim=True)
    share = volume / torch.where(largest > 0.0, largest, 1.0)
    filled = (share * n_rows + 0.5 + _TIE).floor()[:, None]
    return torch.arange(n_rows, 0, -1, dtype=volume.dtype, device=volume.device)[:, None] <= filled


def _straight_between(values: Tensor) -> Tensor:
    """Return values in steps of a pixel; (batch, n) to (batch, 3 (n - 1) + 1)."""
    steps = torch.arange(BAR_WIDTH, dtype=values.dtype, device=values.device) / BAR_WIDTH
    between = values[:, :-1, None] + values.diff(dim=1)[..., None] * steps
    return torch.cat([between.flatten(1), values[:, -1:]], 1)


def chart_columns(bars: Bars, *, window_size: int, volume: bool, moving_average: bool) -> FloatArray:
    """Return what images are drawn from: open, high, low, close, then volume and the moving average where wanted.

    The moving average spans as many bars as an image, so the first image needs `window_size - 1` bars before its own.

    Returns:
        (n_bars, n_assets, 4 to 6), NaN where the moving average is not defined yet.

    Raises:
        ValueError: a column is missing.
    """
    names = ("open", "high", "low", "close", *(["volume"] if volume else []))
    columns = []
    for name in names:
        values = getattr(bars, name)
        if values is None:
            hint = ", or set volume=False to draw none" if name == "volume" else ""
            raise ValueError(
                f"images are drawn from {', '.join(names)}: price_data has no column {name!r}, it has "
                f"{', '.join(bars.fields)}. Give it{hint}"
            )
        columns.append(values)
    if moving_average:
        columns.append(rolling_mean(bars.close, window_size))
    return np.stack(columns, axis=-1)


class ImageWindows(Windows):
    """All windows of a table, drawn when they are asked for: (asset, bar) pairs in, images out; nothing is kept.

    Args:
        table: with the columns of `chart_columns`.
        height: rows of an image.
        volume: whether the table has volume.
        moving_average: whether it has moving averages.
        device: where images are drawn.
    """

    def __init__(
        self, table: ForecastTable, *, height: int, volume: bool, moving_average: bool, device: torch.device
    ) -> None:
        as_they_are = np.zeros(table.n_features), np.ones(table.n_features)
        super().__init__(table, *as_they_are, clip=math.inf, device=device, dtype=torch.float64)
        self.height, self.volume, self.moving_average = height, volume, moving_average

    def __call__(self, asset: Tensor, bar: Tensor) -> Tensor:
        """Draw the windows that end at some bars; int64 (batch,) each, to uint8 (batch, 1, height, 3 · window_size)."""
        open_price, high, low, close, *others = super().__call__(asset, bar).unbind(-1)
        volume = others[0] if self.volume else None
        moving_average = others[-1] if self.moving_average else None
        return ohlc_images(open_price, high, low, close, volume, moving_average, height=self.height)
