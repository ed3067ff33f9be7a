"""Everything of one price table that does not depend on an account, computed once and shared by every account.

Prices are exogenous, so an observation's market part is looked up by bar: a window of consecutive rows of the feature
table is one contiguous slice of it. Both environments hold a `Market`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.features import market_features
from ml.tradingbots.core.indicators import rolling_mean, volatility
from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]
FeatureFunction = Callable[[Bars], FloatArray]

# Account features are put on the scale of 1 by fixed, documented divisors instead of running statistics: weights are of
# that order already, and 10% is a typical unrealised return or drawdown.
UNREALISED_SCALE = 0.1
DRAWDOWN_SCALE = 0.1
# Bars over which the daily volatility and traded value of the impact formula are averaged.
IMPACT_BARS = 20
# The settings that decide what a market precomputes; accounts that share one may differ in all others.
SETTINGS_OF_THE_MARKET = ("window_size", "features", "use_extra_columns", "impact_coefficient", "execution_delay")


@dataclass(frozen=True)
class ImpactInputs:
    """What the square-root impact formula needs, per bar; (n_bars, n_assets) each."""

    daily_volatility: FloatArray
    """Standard deviation of daily returns known at the bar, a fraction."""
    daily_value: FloatArray
    """Average daily traded value known at the bar, in account currency."""


class Market:
    """The price table as an account meets it: moves between closes, feature windows, legal bars.

    Args:
        price_data: a `Bars`, or a DataFrame that `Bars.from_frame` accepts.
        config: the environment's settings.
        extra_features: named functions of `Bars` returning (n_bars, n_assets), NaN only in a leading warm-up. They are not
            saved with an agent; whoever loads it passes them again.

    Attributes:
        gap_return: move from the close of t to the next open, where the fill happens; (n_bars − 1, n_assets). Zero where
            the data has no open: the last close stands in for it.
        session_return: move from that fill to the close of t + 1; (n_bars − 1, n_assets).
        gap_years, session_years: calendar time over which interest accrues on the weights before and after the fill. The
            night lies before an open; without opens all of it lies after the fill; (n_bars − 1,).
        features: float32 table, one row a bar, assets major, features minor; (n_bars, n_assets · n_features).
        first_bar: first bar with a full window of defined features, the first legal decision.
        last_bar: last bar; an episode that reaches it is truncated.
    """

    def __init__(
        self,
        price_data: Bars | pd.DataFrame,
        config: TradingEnvConfig,
        extra_features: Mapping[str, FeatureFunction] | None = None,
    ) -> None:
        self.bars = Bars.from_frame(price_data)
        self.config = config
        self.assets = self.bars.assets
        self.n_bars, self.n_assets = self.bars.n_bars, self.bars.n_assets
        self.feature_names, columns = market_features(self.bars, config, extra_features or {})
        self.impact = _impact_inputs(self.bars) if config.impact_coefficient > 0.0 else None
        warmup_bars = self._warmup_bars(columns)
        self.first_bar = warmup_bars + config.window_size - 1
        self.last_bar = self.n_bars - 1
        self._check_length(warmup_bars)
        self.features = np.ascontiguousarray(columns.reshape(self.n_bars, -1), dtype=np.float32)
        self._check_features()
        close = self.bars.close
        fill = self.bars.open[1:] if self.bars.open is not None else close[:-1]
        self.gap_return: FloatArray = fill / close[:-1] - 1.0
        self.session_return: FloatArray = close[1:] / fill - 1.0
        years = self.bars.years_between
        self.gap_years = years if self.bars.has_open else np.zeros_like(years)
        self.session_years = np.zeros_like(years) if self.bars.has_open else years

    @classmethod
    def of(
        cls,
        price_data: Market | Bars | pd.DataFrame,
        config: TradingEnvConfig | None,
        extra_features: Mapping[str, FeatureFunction] | None,
    ) -> Market:
        """Return the market given, if it fits the config, or build one.

        Raises:
            ValueError: a shared market was built with settings that change what is observed.
        """
        if not isinstance(price_data, Market):
            return cls(price_data, config or TradingEnvConfig(), extra_features)
        for name in SETTINGS_OF_THE_MARKET if config is not None else ():
            built, wanted = getattr(price_data.config, name), getattr(config, name)
            if built != wanted:
                raise ValueError(
                    f"the shared market was built with {name}={built!r}, config says {wanted!r}; build a new one"
                )
        if config is not None and price_data.n_bars < price_data.first_bar + 1 + (config.episode_length or 1):
            raise ValueError(
                f"episode_length={config.episode_length} is longer than the market's {price_data.n_bars} bars allow"
            )
        return price_data

    @property
    def window_dim(self) -> int:
        """Length of the market part of an observation."""
        return self.config.window_size * int(self.features.shape[1])

    @property
    def account_dim(self) -> int:
        """Length of the account part: weights, unrealised returns, drawdown and, with a delay, the orders under way."""
        return self.n_assets * (2 + self.config.execution_delay) + 1

    @property
    def observation_dim(self) -> int:
        """Length of the flattened observation."""
        return self.window_dim + self.account_dim

    def last_start(self, episode_length: int | None) -> int:
        """Return the last legal first bar of an episode."""
        last_bar: int = self.last_bar
        return last_bar - (episode_length or 1)

    def observation_statistics(self) -> tuple[FloatArray, FloatArray]:
        """Exact mean and standard deviation of each observation entry over this market; (observation_dim,) each.

        The market part has the statistics of its column over the rows that windows can show; the account part has mean 0
        and the fixed scales of this module.
        """
        rows = self.features[self.first_bar - self.config.window_size + 1 :].astype(np.float64)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        std[std < 1e-12] = 1.0  # A constant column carries no scale.
        window = self.config.window_size
        account_std = np.ones(self.account_dim)
        account_std[self.n_assets : 2 * self.n_assets] = UNREALISED_SCALE
        account_std[2 * self.n_assets] = DRAWDOWN_SCALE
        return (
            np.concatenate([np.tile(mean, window), np.zeros(self.account_dim)]),
            np.concatenate([np.tile(std, window), account_std]),
        )

    def specification(self, config: TradingEnvConfig) -> dict[str, Any]:
        """Return what a loaded agent needs to see the same observations: plain values, saved with it."""
        return {
            "config": dataclasses.asdict(config) | {"features": list(config.features)},
            "assets": list(self.assets),
            "features": list(self.feature_names),
            "has_open": self.bars.has_open,
        }

    def fingerprint(self) -> str:
        """Return a digest of the prices and features, to tell whether two runs saw the same market."""
        digest = hashlib.sha256(self.features[self.first_bar :].tobytes())
        digest.update(self.bars.close.tobytes())
        digest.update(self.gap_return.tobytes())
        return digest.hexdigest()

    def _warmup_bars(self, columns: FloatArray) -> int:
        defined = np.isfinite(columns).all(axis=(1, 2))
        if self.impact is not None:
            defined &= np.isfinite(self.impact.daily_volatility * self.impact.daily_value).all(axis=1)
        if not defined.any():
            return self.n_bars
        return int(np.argmax(defined))

    def _check_length(self, warmup_bars: int) -> None:
        needed = warmup_bars + self.config.window_size + (self.config.episode_length or 1)
        if warmup_bars >= self.n_bars or self.n_bars < needed:
            raise ValueError(
                f"price_data has {self.n_bars} bars, but at least {needed} are needed: {warmup_bars} for the warm-up of "
                f"{', '.join(self.feature_names)}, window_size {self.config.window_size} and an episode of "
                f"{self.config.episode_length or 1}. Bring more bars or lower window_size or episode_length."
            )

    def _check_features(self) -> None:
        """Refuse undefined values after the warm-up: an agent must not learn from holes."""
        rows = self.features[self.first_bar - self.config.window_size + 1 :]
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            row, column = int(bad[0][0]) + self.first_bar - self.config.window_size + 1, int(bad[0][1])
            asset, name = divmod(column, len(self.feature_names))
            raise ValueError(
                f"feature {self.feature_names[name]!r} of asset {self.assets[asset]!r} is {self.features[row, column]} at "
                f"row {row} ({self.bars.timestamps[row]}), after its warm-up; it must be finite there. "
                "Fix the column, or start the table after the hole."
            )


def _impact_inputs(bars: Bars) -> ImpactInputs:
    if bars.volume is None:
        raise ValueError("impact_coefficient is above 0 but price_data has no volume column; add one or set it to 0")
    bars_per_day = max(bars.bars_per_year / 252.0, 1.0) if bars.bars_per_year > 252.0 * 1.5 else 1.0
    daily_value = rolling_mean(bars.close * bars.volume, IMPACT_BARS) * bars_per_day
    return ImpactInputs(
        daily_volatility=volatility(bars.close, IMPACT_BARS) * np.sqrt(bars_per_day),
        # A market without volume has no depth to speak of: one unit of currency keeps the formula finite.
        daily_value=np.where(daily_value < 1.0, 1.0, daily_value),
    )
