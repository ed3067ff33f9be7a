"""How good forecasts are: every score of them that the project has, each computed once.

Those of expected values are computed here; `distribution_scores` has those of quantiles and distributions, handed out here
too, and `sizing` what forecasts earn.

`y` is what happened (log returns over the horizon, fractions) and everything else was said beforehand. Arrays are
(n_bars,) or (n_bars, n_columns), aligned row by row: row i of a forecast was made for row i of `y`, which lies in its
future. Scores of several columns are pooled: every entry counts the same.

Missing values are refused, because a score over the rows that happen to be there is another score. What is undefined is
NaN, never a huge number: a correlation of what does not vary, a ratio to a loss of zero.

Errors, losses and widths are better when lower; R², correlations, accuracies and skill when higher.
"""

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ml.tradingbots.core.distribution_scores import (
    coverage,
    crps_from_quantiles,
    crps_gaussian,
    crps_student_t,
    interval_width,
    pinball_loss,
    winkler_score,
)
from ml.tradingbots.core.score_inputs import FloatArray, aligned, like

Pooling: TypeAlias = Literal["pooled", "by_date"]

__all__ = [
    "Pooling",
    "correlation_by_date",
    "coverage",
    "crps_from_quantiles",
    "crps_gaussian",
    "crps_student_t",
    "directional_accuracy",
    "directional_skill",
    "information_coefficient",
    "interval_width",
    "majority_accuracy",
    "pinball_loss",
    "r2_against_naive",
    "r2_out_of_sample",
    "rank_ic",
    "skill_score",
    "winkler_score",
]

# Variation below this share of a row's size is rounding: three equal forecasts have a computed deviation of 1e-17.
_RESOLUTION = 64 * float(np.finfo(np.float64).eps)


def r2_out_of_sample(y: ArrayLike, prediction: ArrayLike, benchmark: ArrayLike = 0.0) -> float:
    """Share of the benchmark's squared error that the prediction removes (Campbell and Thompson, 2008).

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        prediction: what was expected, shaped like `y`.
        benchmark: what a forecaster without skill expects, known beforehand: zero, or the mean of the *training* bars; a
            number, one per column, or shaped like `y`.

    Returns:
        1 - SSE / SSE of the benchmark: 1 is perfect, 0 no better than the benchmark, below 0 worse; NaN where the
        benchmark is perfect.

    >>> r2_out_of_sample([2.0, -2.0], [1.0, -1.0])
    0.75
    """
    actual, forecast = aligned(y=y, prediction=prediction)
    naive = like(actual, benchmark=benchmark)
    return skill_score(float(np.sum((actual - forecast) ** 2)), float(np.sum((actual - naive) ** 2)))


def r2_against_naive(y: ArrayLike, prediction: ArrayLike, train_mean: ArrayLike) -> float:
    """R² against the better of two forecasts without skill: zero and the mean of the training bars.

    The better one is the one with less squared error on `y` itself, so that no choice of benchmark flatters.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        prediction: what was expected, shaped like `y`.
        train_mean: mean of the training bars; a number, one per column, or shaped like `y`.

    >>> r2_against_naive([2.0, 4.0], [2.0, 3.0], train_mean=3.0)
    0.5
    """
    against_zero = r2_out_of_sample(y, prediction, 0.0)
    against_mean = r2_out_of_sample(y, prediction, train_mean)
    return min(against_zero, against_mean)


def information_coefficient(y: ArrayLike, prediction: ArrayLike, *, pooling: Pooling = "pooled") -> float:
    """Pearson correlation of what was expected with what happened.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_assets).
        prediction: what was expected, shaped like `y`.
        pooling: `pooled` correlates all entries at once; `by_date` averages the correlations across the assets of each
            bar, those where either side does not vary left out, which says how well assets are ranked against each other
            and nothing about the market's direction.

    Returns:
        In [-1, 1]; NaN where nothing varies.

    >>> round(information_coefficient([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), 12)
    0.5
    """
    actual, forecast = aligned(y=y, prediction=prediction)
    return _pooled_correlation(actual, forecast, pooling, ranked=False)


def rank_ic(y: ArrayLike, prediction: ArrayLike, *, pooling: Pooling = "pooled") -> float:
    """Spearman correlation of what was expected with what happened: Pearson's on ranks, ties sharing their mean rank.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_assets).
        prediction: what was expected, shaped like `y`.
        pooling: as for `information_coefficient`.

    >>> round(rank_ic([1.0, 2.0, 30.0], [0.1, 0.2, 0.3]), 12)
    1.0
    """
    actual, forecast = aligned(y=y, prediction=prediction)
    return _pooled_correlation(actual, forecast, pooling, ranked=True)


def correlation_by_date(y: ArrayLike, prediction: ArrayLike, *, ranked: bool = False) -> FloatArray:
    """Correlation across the assets of each bar: the series that a mean IC averages.

    Args:
        y: what happened; (n_bars, n_assets), at least 2 assets.
        prediction: what was expected, shaped like `y`.
        ranked: Spearman's instead of Pearson's.

    Returns:
        In [-1, 1]; NaN where either side does not vary; (n_bars,).

    >>> correlation_by_date([[1.0, 2.0], [1.0, 2.0]], [[3.0, 4.0], [4.0, 3.0]]).round(12).tolist()
    [1.0, -1.0]
    """
    actual, forecast = aligned(y=y, prediction=prediction)
    if actual.ndim != 2 or actual.shape[1] < 2:
        raise ValueError(
            f"y must have shape (n_bars, n_assets) with at least 2 assets to correlate across, got {actual.shape}; "
            "with one asset pool the bars"
        )
    return _row_correlations(_ranks(actual), _ranks(forecast)) if ranked else _row_correlations(actual, forecast)


def directional_accuracy(y: ArrayLike, prediction: ArrayLike) -> float:
    """Share of the moves whose sign was called.

    Bars that did not move have no direction and are left out. A prediction of exactly 0 calls nothing and counts one
    half, as the toss of a coin would on average: the zero forecast scores 0.5 whatever the market did.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        prediction: what was expected, shaped like `y`.

    Returns:
        In [0, 1]; NaN where nothing moved.

    >>> directional_accuracy([1.0, -1.0, 0.0, 2.0, -2.0], [3.0, 1.0, 1.0, 0.0, -1.0])
    0.625
    """
    actual, forecast = aligned(y=y, prediction=prediction)
    moved = actual != 0.0
    if not moved.any():
        return math.nan
    return float(0.5 + 0.5 * np.mean(np.sign(actual[moved]) * np.sign(forecast[moved])))


def majority_accuracy(y: ArrayLike) -> float:
    """Directional accuracy of always calling the direction that came up more often; columns share one direction.

    The direction is chosen with hindsight, which makes it a hard naive forecast to beat: on n bars of a fair coin it
    scores about 0.5 + 0.4 / sqrt(n).

    >>> majority_accuracy([1.0, 2.0, 3.0, -1.0, 0.0])
    0.75
    """
    (actual,) = aligned(y=y)
    moved = actual[actual != 0.0]
    if not len(moved):
        return math.nan
    share_up = float(np.mean(moved > 0.0))
    return max(share_up, 1.0 - share_up)


def directional_skill(y: ArrayLike, prediction: ArrayLike) -> float:
    """Directional accuracy minus that of always calling the majority: in a rising market "up" is right without skill.

    >>> directional_skill([1.0, 2.0, 3.0, -1.0], [1.0, 1.0, 1.0, 1.0])
    0.0
    """
    return directional_accuracy(y, prediction) - majority_accuracy(y)


def skill_score(loss: float, naive_loss: float) -> float:
    """Share of a naive forecast's loss that was removed: 1 perfect, 0 none, below 0 worse; NaN without a naive loss.

    >>> skill_score(0.75, 1.0)
    0.25
    """
    if not (math.isfinite(loss) and math.isfinite(naive_loss)) or naive_loss <= 0.0:
        return math.nan
    return 1.0 - loss / naive_loss


def _pooled_correlation(y: FloatArray, prediction: FloatArray, pooling: Pooling, *, ranked: bool) -> float:
    if pooling == "pooled":
        y, prediction = y.reshape(1, -1), prediction.reshape(1, -1)
        pair = (_ranks(y), _ranks(prediction)) if ranked else (y, prediction)
        return float(_row_correlations(*pair)[0])
    if pooling != "by_date":
        raise ValueError(f"pooling must be 'pooled' or 'by_date', got {pooling!r}")
    by_date = correlation_by_date(y, prediction, ranked=ranked)
    known = by_date[np.isfinite(by_date)]
    return float(known.mean()) if len(known) else math.nan


def _row_correlations(left: FloatArray, right: FloatArray) -> FloatArray:
    """Pearson correlation of each row; NaN where a row varies by rounding only; (n_rows,)."""
    centred, deviations = [], []
    for values in (left, right):
        about_mean = values - values.mean(axis=1, keepdims=True)
        deviation = np.sqrt(np.mean(about_mean**2, axis=1))
        varies = deviation > _RESOLUTION * np.abs(values).max(axis=1)
        centred.append(about_mean)
        deviations.append(np.where(varies, deviation, np.nan))
    correlation: FloatArray = np.mean(centred[0] * centred[1], axis=1) / (deviations[0] * deviations[1])
    return np.clip(correlation, -1.0, 1.0)


def _ranks(values: FloatArray) -> FloatArray:
    """Rank of each entry in its row, ties sharing their mean rank; shaped like `values`."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    ranks: FloatArray = rankdata(values, axis=1)
    return ranks
