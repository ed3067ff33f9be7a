"""What a regime detector says of a market, bar by bar, and what that was worth: `analyse_regimes`.

The detector learned from the training bars alone. Whatever is said of a bar comes from that bar and those before it; what
regimes are worth is measured on the bar after the one at whose close they were known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.base_detector import BaseDetector
from ml.tradingbots.components.hmm_selection import RegimeSelection
from ml.tradingbots.components.regime_features import regime_features
from ml.tradingbots.core.bootstrap import block_bootstrap_interval
from ml.tradingbots.core.hidden_markov import stationary_distribution
from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Part = Literal["training", "after"]

# Bars below which their mean says nothing worth showing.
_FEWEST = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class RegimeAnalysis:
    """Regimes of one market; bars are those that have all features."""

    asset: str
    """Name of the asset."""
    timestamps: pd.DatetimeIndex
    """(n_bars,)."""
    close: FloatArray
    """(n_bars,)."""
    asset_returns: FloatArray
    """Simple return of each bar; (n_bars,)."""
    bars_per_year: float
    """For annual figures."""
    n_train_bars: int
    """The first bars, from which the detector learned."""
    detector: BaseDetector
    """As the last bar left it."""
    state_names: tuple[str, ...]
    """Of the regimes; (n_regimes,)."""
    transition_matrix: FloatArray
    """As the last bar left it: `OnlineHMM` goes on learning, the others do not; (n_regimes, n_regimes)."""
    expected_durations: FloatArray
    """Bars, inf for a regime that never ends; (n_regimes,)."""
    filtered: FloatArray
    """P(regime of the bar | bars up to it); (n_bars, n_regimes)."""
    following: FloatArray
    """P(regime of the next bar | bars up to this one); (n_bars, n_regimes)."""
    log_scores: FloatArray
    """Log density of each bar's features given the bars before; NaN where the detector has none; (n_bars,)."""
    plain_log_scores: FloatArray
    """The same of one normal distribution with the moments of the training bars; NaN likewise; (n_bars,)."""
    score_gain: float
    """Mean of `log_scores` minus that of `plain_log_scores` over the bars after training; NaN without either."""
    score_gain_interval: tuple[float, float]
    """95% interval of it, by the stationary bootstrap; NaN where there are too few bars."""
    selection: RegimeSelection | None = None
    """What the number of regimes was chosen by, if it was."""

    @property
    def n_bars(self) -> int:
        """Number of bars."""
        return len(self.timestamps)

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""
        return len(self.state_names)

    @property
    def regimes(self) -> IntArray:
        """The most probable regime of each bar, filtered; (n_bars,)."""
        regimes: IntArray = self.filtered.argmax(axis=1)
        return regimes

    @property
    def has_densities(self) -> bool:
        """Whether the detector says how probable bars are."""
        return bool(np.isfinite(self.log_scores).all())

    @property
    def is_named_by_mean(self) -> bool:
        """Whether the regimes are called bull and bear."""
        return "bull" in self.state_names

    def parts(self) -> dict[Part, slice]:
        """Return the bars of each part that has some."""
        parts: dict[Part, slice] = {
            "training": slice(0, self.n_train_bars),
            "after": slice(self.n_train_bars, self.n_bars),
        }
        return {name: part for name, part in parts.items() if part.stop > part.start}

    def probabilities(self) -> pd.DataFrame:
        """Return everything that is said of each bar, a row each."""
        columns: dict[str, Any] = {f"p_{name}": self.filtered[:, k] for k, name in enumerate(self.state_names)}
        columns |= {f"p_next_{name}": self.following[:, k] for k, name in enumerate(self.state_names)}
        columns |= {"log_score": self.log_scores, "in_training": np.arange(self.n_bars) < self.n_train_bars}
        return pd.DataFrame(columns, index=self.timestamps.rename("timestamp"))

    def shares(self, part: Part) -> FloatArray:
        """Share of a part's bars at which each regime is the most probable one; (n_regimes,)."""
        counts = np.bincount(self.regimes[self.parts()[part]], minlength=self.n_regimes)
        shares: FloatArray = counts / counts.sum()
        return shares

    def flips_per_year(self, part: Part) -> float:
        """How often a year the most probable regime changes; NaN for a part of one bar."""
        regimes = self.regimes[self.parts()[part]]
        if len(regimes) < 2:
            return math.nan
        return float(np.mean(regimes[1:] != regimes[:-1]) * self.bars_per_year)

    def expected_flips_per_year(self) -> float:
        """How often a year the chain itself changes in the long run."""
        leave = 1.0 - np.diag(self.transition_matrix)
        return float(stationary_distribution(self.transition_matrix) @ leave * self.bars_per_year)

    def performance(self, part: Part) -> pd.DataFrame:
        """Return what buying and holding earned in each regime, on the bars before which it was the most probable one.

        The regime of a bar is the one that was expected at the close before, so that its own return had no say in it.

        Returns:
            Index: names of the regimes, and "all". Columns: `share` of the bars, `mean_return` and `volatility` a year, simple
            and not compounded, and `sharpe_ratio`; NaN where there are fewer than 30 bars.
        """
        part_bars = self.parts()[part]
        bars = np.arange(max(part_bars.start, 1), part_bars.stop)
        expected, returns = self.following[bars - 1].argmax(axis=1), self.asset_returns[bars]
        groups = {name: returns[expected == k] for k, name in enumerate(self.state_names)}
        rows = {name: self._annual(group, len(bars)) for name, group in [*groups.items(), ("all", returns)]}
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["share", "mean_return", "volatility", "sharpe_ratio"]
        )

    def _annual(self, returns: FloatArray, n_all: int) -> list[float]:
        share = len(returns) / n_all if n_all else math.nan
        if len(returns) < _FEWEST:
            return [share, math.nan, math.nan, math.nan]
        mean = float(returns.mean()) * self.bars_per_year
        volatility = float(returns.std(ddof=1)) * math.sqrt(self.bars_per_year)
        return [share, mean, volatility, mean / volatility if volatility > 0.0 else math.nan]

    def misnamed_in(self) -> list[Part]:
        """Return the parts in which bars for which bear was expected earned no less than those for which bull was."""
        if not self.is_named_by_mean:
            return []
        means = {part: self.performance(part)["mean_return"] for part in self.parts()}
        return [part for part, found in means.items() if found["bear"] >= found["bull"]]

    def verdict(self) -> str:
        """Say what regimes told of bars that they were not learned from, and which one it is now."""
        now = int(self.filtered[-1].argmax())
        name = self.state_names[now].replace("_", " ")
        present = f"The last bar is most probably {name} ({self.filtered[-1, now]:.0%})."
        n_after = self.n_bars - self.n_train_bars
        if self.n_regimes == 1:
            return "There is one regime, and so nothing to tell apart."
        if n_after == 0:
            return f"All bars were learned from, so nobody can say what these regimes are worth. {present}"
        if not self.has_densities:
            return f"This detector says which regime it is, not how probable bars are. {self._ratio()}{present}"
        low, high = self.score_gain_interval
        size = f"{self.score_gain:+.3f} nats a bar".replace("-", "−")
        if math.isnan(low):
            bars = "bar after training is" if n_after == 1 else "bars after training are"
            return f"{n_after} {bars} too few to say what these regimes are worth. {present}"
        said = f"{size}, 95% interval {low:+.3f} to {high:+.3f}".replace("-", "−")
        if low > 0.0:
            found = f"After training, regimes foretold bars better than one normal distribution ({said})."
        elif high < 0.0:
            found = f"After training, regimes foretold bars worse than one normal distribution ({said})."
        else:
            found = (
                f"After training, regimes foretold bars no better than one normal distribution, beyond chance ({said})."
            )
        return f"{found} {present}"

    def _ratio(self) -> str:
        volatility = self.performance("after")["volatility"].iloc[:-1].dropna()
        if len(volatility) < 2 or not volatility.min() > 0.0:
            return ""
        return (
            f"After training, returns varied {volatility.max() / volatility.min():.1f} times as much in "
            f"{str(volatility.idxmax()).replace('_', ' ')} as in {str(volatility.idxmin()).replace('_', ' ')}. "
        )


def analyse_regimes(
    detector: BaseDetector,
    prices: pd.DataFrame | Bars,
    n_train_bars: int,
    *,
    asset: str | None = None,
    volatility_bars: int = 0,
    selection: RegimeSelection | None = None,
) -> RegimeAnalysis:
    """Filter all bars with a detector that was fitted on the first of them, and say what came of it.

    Args:
        detector: fitted on the first `n_train_bars` rows of `regime_features(prices, ...)`; it is left at the last bar, so that
            `update` goes on with the next.
        prices: all of them, what `Bars.from_frame` accepts.
        n_train_bars: number of those rows, at least 2.
        asset: which one; None: the only one.
        volatility_bars: as for `regime_features`.
        selection: what the number of regimes was chosen by.

    Raises:
        ValueError: `n_train_bars` is out of range, or the features are not the detector's.
    """
    prices = Bars.from_frame(prices)
    features = regime_features(prices, asset=asset, volatility_bars=volatility_bars)
    if not 2 <= n_train_bars <= len(features):
        raise ValueError(
            f"n_train_bars must be from 2 to the number of bars with features, {len(features)}, got {n_train_bars}"
        )
    name = prices.assets[0] if asset is None else asset
    close = prices.close[:, prices.assets.index(name)]
    first = prices.n_bars - len(features)
    log_scores = detector.predictive_log_scores(features)
    has_densities = bool(np.isfinite(log_scores).all())
    plain = _normal_log_scores(features.to_numpy(), n_train_bars) if has_densities else np.full(len(features), np.nan)
    filtered, following = detector.filter(features), detector.predict_next(features)
    detector.reset()
    for row in features.to_numpy():
        detector.update(row)
    gain, interval = _gain((log_scores - plain)[n_train_bars:])
    return RegimeAnalysis(
        asset=name,
        timestamps=prices.timestamps[first:],
        close=close[first:],
        asset_returns=close[first:] / close[first - 1 : -1] - 1.0,
        bars_per_year=prices.bars_per_year,
        n_train_bars=n_train_bars,
        detector=detector,
        state_names=detector.state_names_,
        transition_matrix=detector.transition_matrix_,
        expected_durations=detector.expected_durations_,
        filtered=filtered,
        following=following,
        log_scores=log_scores,
        plain_log_scores=plain,
        score_gain=gain,
        score_gain_interval=interval,
        selection=selection,
    )


def _normal_log_scores(rows: FloatArray, n_train_bars: int) -> FloatArray:
    """Log density of rows by one normal distribution with the moments of the first of them; (n_bars,)."""
    train = rows[:n_train_bars]
    factor = np.linalg.cholesky(np.atleast_2d(np.cov(train.T, ddof=0)))
    off = np.linalg.solve(factor, (rows - train.mean(axis=0)).T)
    scores: FloatArray = (
        -0.5 * (off**2).sum(axis=0) - np.log(np.diag(factor)).sum() - 0.5 * rows.shape[1] * math.log(2.0 * math.pi)
    )
    return scores


def _gain(differences: FloatArray) -> tuple[float, tuple[float, float]]:
    """Mean of differences of log scores after training, and its interval."""
    nothing = (math.nan, math.nan)
    if len(differences) == 0 or not np.isfinite(differences).all():
        return math.nan, nothing
    if len(differences) < _FEWEST:
        return float(differences.mean()), nothing
    found = block_bootstrap_interval(lambda values: values.mean(axis=1), differences, vectorised=True)
    return float(differences.mean()), (found.low, found.high)
