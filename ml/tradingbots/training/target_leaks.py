"""Columns that are what is to be predicted, or resemble it: a leak that no change of the future shows.

A column is accused if it correlates with a return that followed beyond what is believable, and still does once what the
past of the market tells of both is taken out. Markets that foretell themselves are left alone that way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.features import feature_columns
from ml.tradingbots.components.forecast_table import FloatArray, forward_returns
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.data.bars import Bars

TARGET_HORIZONS = (1, 2, 3, 5, 10, 20)
# Correlation with the returns that followed from which a column is taken for the target itself.
RESEMBLANCE = 0.99
# Correlation with the returns that followed that nothing honest has, on many rows.
BELIEVABLE = 0.5
IS_TARGET, RESEMBLES = "is the target", "resembles the target"
# Look-backs of the volatility that targets may be divided by.
_VOLATILITY_BARS = (10, 20, 60)
# Rows from which a correlation says anything.
_FEWEST_ROWS = 30
# Past returns from which the next are foretold, and rows for each of them.
_N_PAST, _ROWS_PER_LAG = 64, 10
# A slow column and returns over h of n bars have by chance a squared correlation of a few h / n.
_CHANCE = 20.0
# Share of the variance that the past must leave for anything to be said about the rest.
_LEAST_LEFT = 1e-3


@dataclass(frozen=True)
class _Found:
    """A column that is, or resembles, a return that followed."""

    horizon: int
    correlation: float

    @property
    def kind(self) -> str:
        return IS_TARGET if abs(self.correlation) > RESEMBLANCE else RESEMBLES


def leaking_features(
    price_data: PriceData, features: Sequence[str], horizons: Sequence[int], *, volatility_bars: int = 0
) -> list[str]:
    """Return a sentence for each feature that is, or resembles, what is to be forecast; none where all are honest.

    Args:
        price_data: what `Bars.from_frame` accepts.
        features: names of `list_features()`, or columns of `price_data`.
        horizons: bars ahead that are forecast.
        volatility_bars: look-back of the volatility that targets are divided by; 0 divides by 1.

    Raises:
        ValueError: a feature is unknown, or horizons or volatility_bars are out of range.
    """
    if not len(horizons) or min(horizons) < 1:
        raise ValueError(f"horizons must be numbers of bars, at least 1, got {tuple(horizons)}; give e.g. (1,)")
    if volatility_bars < 0 or volatility_bars == 1:
        raise ValueError(f"volatility_bars must be 0 or at least 2, got {volatility_bars}; 0 does not divide")
    if not len(features):
        return []
    bars = Bars.from_frame(price_data)
    columns = feature_columns(bars, features)
    worst: dict[str, tuple[str, _Found]] = {}
    for number, asset in enumerate(bars.assets):
        future = _Future(bars, number, sorted(set(horizons)), volatility_bars)
        for name, found in zip(features, future.resembled_by(columns[:, number]), strict=True):
            if found and (name not in worst or abs(found.correlation) > abs(worst[name][1].correlation)):
                worst[name] = asset, found
    return [_sentence(name, *worst[name], bars.n_assets > 1) for name in features if name in worst]


def resemblances(
    bars: Bars,
    columns: Mapping[Any, FloatArray],
    horizons: Sequence[int] = TARGET_HORIZONS,
    *,
    volatility_bars: int = 0,
    fitted: frozenset[Any] = frozenset(),
) -> list[dict[str, Any]]:
    """Return findings, rows of `LookAheadReport.findings`, on those columns that are the target or resemble it.

    Args:
        bars: the market.
        columns: what is compared, by label; (n_bars,) each, NaN where there is nothing.
        horizons: bars ahead.
        volatility_bars: look-back of the volatility that targets may be divided by, beside usual ones.
        fitted: labels of what a fitted model says, which may have learned these very bars by heart: accused only if it
            is the target, as good as.
    """
    if not columns:
        return []
    values = np.stack(list(columns.values()), axis=1)
    worst: list[_Found | None] = [None] * len(columns)
    for asset in range(bars.n_assets):
        for number, found in enumerate(_Future(bars, asset, horizons, volatility_bars).resembled_by(values)):
            before = worst[number]
            if found and (before is None or abs(found.correlation) > abs(before.correlation)):
                worst[number] = found
    nowhere = {"bar": pd.NaT, "first_moved": pd.NaT, "n_moved": 0}
    return [
        {**nowhere, "change": f.kind, "column": label, "bars_ahead": f.horizon, "largest_move": f.correlation}
        for label, f in zip(columns, worst, strict=True)
        if f is not None and (f.kind == IS_TARGET or label not in fitted)
    ]


class _Future:
    """What followed each bar of one asset, in every form in which it may be a target, and what the past told of it."""

    def __init__(self, bars: Bars, asset: int, horizons: Sequence[int], volatility_bars: int) -> None:
        self.bars, self.asset = bars, asset
        self.log_close: FloatArray = np.log(bars.close[:, asset])
        self.ahead = {h: forward_returns(bars, (h,))[:, asset, 0] for h in horizons if h < bars.n_bars}
        returns = pd.Series(np.diff(self.log_close, prepend=np.nan))
        look_backs = sorted({*_VOLATILITY_BARS, volatility_bars} - {0})
        deviations = [returns.rolling(look_back).std(ddof=0).to_numpy() for look_back in look_backs]
        forms, self.horizons = [], []
        for horizon, ahead in self.ahead.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                scaled = [ahead / deviation for deviation in deviations]
            for form in (ahead, _ranks(ahead), np.sign(ahead), *scaled):
                forms.append(form)
                self.horizons.append(horizon)
        self.forms = np.stack(forms, axis=1) if forms else np.empty((bars.n_bars, 0))

    @cached_property
    def past(self) -> FloatArray:
        """What was known at each bar; see `_past`."""
        return _past(self.bars, self.asset)

    def resembled_by(self, columns: FloatArray) -> list[_Found | None]:
        """Return for each of some columns, (n_bars, n_columns), which future return it is or resembles most."""
        if not self.horizons:
            return [None] * columns.shape[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.log(columns) - self.log_close[:, None]  # What a price says about returns.
        forms = [columns, _ranks(columns), relative, _ranks(relative)]
        r_of_all, n_of_all = _correlations(np.concatenate(forms, axis=1), self.forms)
        horizons = np.asarray(self.horizons)
        found: list[_Found | None] = []
        for number in range(columns.shape[1]):
            candidates: dict[int, tuple[float, int]] = {}
            for kind in range(len(forms)):
                row = kind * columns.shape[1] + number
                r, n = r_of_all[row], n_of_all[row]
                bound = np.minimum(RESEMBLANCE**2, BELIEVABLE**2 + _CHANCE * horizons / np.maximum(n, 1.0))
                for place in np.flatnonzero((n >= _FEWEST_ROWS) & (r**2 > bound)):
                    horizon = int(horizons[place])
                    if abs(r[place]) > abs(candidates.get(horizon, (0.0, 0))[0]):
                        candidates[horizon] = float(r[place]), kind
            ordered = sorted(candidates.items(), key=lambda item: -abs(item[1][0]))
            found.append(next((_Found(h, r) for h, (r, k) in ordered if self._is_news(forms[k][:, number], h)), None))
        return found

    def _is_news(self, column: FloatArray, horizon: int) -> bool:
        """Say whether a column still tells of a future return what no linear regression on the past tells."""
        ahead = self.ahead[horizon]
        known = np.isfinite(column) & np.isfinite(ahead)
        rows = known & np.isfinite(self.past).all(axis=1)
        n_past = min(self.past.shape[1], int(known.sum()) // _ROWS_PER_LAG)
        if rows.sum() < _FEWEST_ROWS // 2:
            return False
        past = _standardised(self.past[rows, :n_past])
        both = _standardised(np.stack([column[rows], ahead[rows], _ranks(ahead[rows])], axis=1))
        foretold = past @ _slopes(past, both[:, 1:2])
        # What rises with it, or has its sign, is foretold as well.
        past = np.concatenate([past, _standardised(np.hstack([_ranks(foretold), np.sign(foretold)]))], axis=1)
        left = both - past @ _slopes(past, both)
        size = (left**2).mean(axis=0)
        if size[0] < _LEAST_LEFT or size[1] < _LEAST_LEFT:
            return False
        partial = (left[:, :1] * left[:, 1:]).mean(axis=0) ** 2 / (size[0] * np.maximum(size[1:], _LEAST_LEFT))
        return bool(partial.max() > BELIEVABLE**2)


def _past(bars: Bars, asset: int) -> FloatArray:
    """Return what was known of a market at each bar, the most telling first: the last returns and the close."""
    n_past = min(_N_PAST, bars.n_bars // _ROWS_PER_LAG)
    returns: FloatArray = np.diff(np.log(bars.close), axis=0, prepend=np.nan)
    lags = [_lagged(returns[:, asset], lag) for lag in range(n_past)]
    others = [returns[:, other] for other in range(bars.n_assets) if other != asset]
    ordered = [*lags[:2], np.log(bars.close[:, asset]), *others[:n_past], *lags[2:]]
    return np.stack(ordered, axis=1)


def _lagged(values: FloatArray, lag: int) -> FloatArray:
    shifted = np.full(len(values), np.nan)
    shifted[lag:] = values[: len(values) - lag]
    return shifted


def _ranks(values: FloatArray) -> FloatArray:
    """Return ranks of what is known in each column, NaN elsewhere."""
    known = pd.DataFrame(np.where(np.isfinite(values), values, np.nan))
    return known.rank().to_numpy(np.float64).reshape(values.shape)


def _slopes(inputs: FloatArray, outputs: FloatArray) -> FloatArray:
    """Return those of linear regressions on inputs that may depend on each other."""
    return np.asarray(np.linalg.lstsq(inputs.T @ inputs, inputs.T @ outputs, rcond=1e-10)[0], dtype=np.float64)


def _standardised(values: FloatArray) -> FloatArray:
    """Return columns with mean 0 and size 1, constant ones all 0."""
    centred = values - values.mean(axis=0)
    size = np.sqrt((centred**2).mean(axis=0))
    result: FloatArray = centred / np.where(size > 0.0, size, 1.0)
    return result


def _correlations(left: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return correlations of columns, each over the rows that both know, and how many these are; (n_left, n_right)."""
    (x, knows_x), (y, knows_y) = _filled(left), _filled(right)
    # One product of all that is summed.
    sums = np.concatenate([knows_x, x, x**2], axis=1).T @ np.concatenate([knows_y, y, y**2], axis=1)
    (n, sum_y, squares_y), (sum_x, products, _), (squares_x, _, _) = (
        np.split(rows, 3, axis=1) for rows in np.split(sums, 3, axis=0)
    )
    count = np.maximum(n, 1.0)
    mean_x, mean_y = sum_x / count, sum_y / count
    variance_x, variance_y = squares_x / count - mean_x**2, squares_y / count - mean_y**2
    size = np.sqrt(np.maximum(variance_x, 0.0) * np.maximum(variance_y, 0.0))
    covariance = products / count - mean_x * mean_y
    return np.where(size > 1e-9, covariance / np.where(size > 1e-9, size, 1.0), 0.0), n


def _filled(values: FloatArray) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return standardised columns with 0 where nothing is known, and 1 where it is."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    zeros = np.where(known, values, 0.0)
    centred = np.where(known, zeros - zeros.sum(axis=0) / count, 0.0)
    size = np.sqrt((centred**2).sum(axis=0) / count)
    return centred / np.where(size > 0.0, size, 1.0), known.astype(np.float64)


def _sentence(name: str, asset: str, found: _Found, several: bool) -> str:
    verb = "is" if found.kind == IS_TARGET else "resembles"
    of = f" of {asset!r}" if several else ""
    bars = "bar" if found.horizon == 1 else f"{found.horizon} bars"
    return (
        f"feature {name!r}{of} {verb} the return of the next {bars}, correlation {found.correlation:.3f}: it must have been "
        "made with later prices; make it of bars up to its own, or leave it out."
    )
