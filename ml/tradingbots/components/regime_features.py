"""What detectors see of a market: its return, and how large moves have been."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ml.tradingbots.components.features import feature_columns
from ml.tradingbots.data.bars import Bars

# A hundredth of a basis point: the volatility of a market that stands still, whose logarithm there is none of.
_STILL = 1e-6


def regime_features(
    price_data: pd.DataFrame | Bars, *, volatility_bars: int = 0, asset: str | None = None
) -> pd.DataFrame:
    """Return features for a detector, each known at the close of its bar.

    Args:
        price_data: what `Bars.from_frame` accepts.
        volatility_bars: look-back of the volatility, at least 2; 0 gives the return alone, which is right for `GaussianHMM`:
            it knows volatility as a property of regimes. `JumpModel` needs to be shown it.
        asset: which one; None: the only one.

    Returns:
        Columns `log_return` and, with a look-back, `log_volatility`, the logarithm of the deviation of that many log returns.
        Rows from the first bar that has all.

    Raises:
        ValueError: there are several assets and none is named, or too few bars.
    """
    bars = Bars.from_frame(price_data)
    if asset is None and bars.n_assets > 1:
        raise ValueError(
            f"price_data has {bars.n_assets} assets, and regimes are of one: give asset, one of {bars.assets}"
        )
    if asset is not None and asset not in bars.assets:
        raise ValueError(f"asset must be one of {', '.join(bars.assets)}, got {asset!r}")
    if volatility_bars < 0 or volatility_bars == 1:
        raise ValueError(f"volatility_bars must be 0 or at least 2, got {volatility_bars}")
    names = ["log_return"] + ([f"volatility:{volatility_bars}"] if volatility_bars else [])
    place = 0 if asset is None else bars.assets.index(asset)
    values = feature_columns(bars, names)[:, place]
    first = max(volatility_bars, 1)
    if len(values) <= first:
        raise ValueError(f"price_data has {len(values)} bars, and the first features need {first + 1}: give more bars")
    table = pd.DataFrame({"log_return": values[first:, 0]}, index=bars.timestamps[first:])
    if volatility_bars:
        table["log_volatility"] = np.log(np.maximum(values[first:, 1], _STILL))
    return table
