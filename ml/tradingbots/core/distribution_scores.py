"""How good forecasts of quantiles, intervals and distributions are: proper scores, coverage and width.

A proper score is least in expectation for the true distribution, so that nothing is gained by saying another one. Arrays
and conventions are those of `forecast_metrics`, which hands these scores out too.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from ml.tradingbots.core.score_inputs import FloatArray, aligned, check_known, like, positive, same_shape


def pinball_loss(y: ArrayLike, quantile_forecast: ArrayLike, quantile: ArrayLike) -> float:
    """Mean pinball loss: q · (y - f) where y lies above the forecast f, (1 - q) · (f - y) below.

    Its expectation is least for the true q-quantile (Koenker and Bassett, 1978).

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        quantile_forecast: shaped like `y`; for several quantiles with one more axis at the end, (..., n_quantiles).
        quantile: q in (0, 1); a number, or (n_quantiles,), over which the loss is averaged.

    Returns:
        In units of y, at least 0.

    >>> pinball_loss([1.0, -1.0], [0.0, 0.0], 0.75)
    0.5
    """
    levels = _quantile_levels(quantile)
    forecast = np.asarray(quantile_forecast, dtype=np.float64)
    if levels.ndim == 0:
        levels, forecast = levels[None], forecast[..., None]
    (actual,) = aligned(y=y)
    if forecast.shape != (*actual.shape, len(levels)):
        raise ValueError(
            f"quantile_forecast must have shape {(*actual.shape, len(levels))}, that of y and an axis of {len(levels)} "
            f"quantiles, got {np.shape(quantile_forecast)}"
        )
    check_known("quantile_forecast", forecast, infinite=False)
    above = actual[..., None] - forecast
    return float(np.mean(np.maximum(levels * above, (levels - 1.0) * above)))


def crps_from_quantiles(y: ArrayLike, quantile_forecast: ArrayLike, quantiles: ArrayLike) -> float:
    """Approximate the CRPS by twice the mean pinball loss over the quantiles.

    Exact in the limit of a dense and even grid, such as (k - ½)/n (Gneiting and Ranjan, 2011). A coarse grid measures its
    quantiles only and is comparable with the same grid alone.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        quantile_forecast: (n_bars, n_quantiles) or (n_bars, n_columns, n_quantiles).
        quantiles: levels in (0, 1), increasing; (n_quantiles,).

    >>> crps_from_quantiles([1.0], [[0.0, 0.0]], [0.25, 0.75])
    1.0
    """
    levels = np.atleast_1d(_quantile_levels(quantiles))
    if (np.diff(levels) <= 0.0).any():
        raise ValueError(f"quantiles must increase, got {levels.tolist()}")
    return 2.0 * pinball_loss(y, quantile_forecast, levels)


def crps_gaussian(y: ArrayLike, mean: ArrayLike, deviation: ArrayLike) -> float:
    """Mean continuous ranked probability score of normal forecasts (Gneiting and Raftery, 2007).

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        mean: of the forecast; a number, one per column, or shaped like `y`.
        deviation: standard deviation of the forecast, > 0; likewise.

    Returns:
        The integral of (F(x) - 1{x ≥ y})² over x, in units of y; for a point forecast it would be the absolute error.

    >>> round(crps_gaussian([0.0], 0.0, 1.0), 6)
    0.233695
    """
    # Imported where it is used: SciPy takes longer to import than all of ours.
    from scipy.special import ndtr  # type: ignore[import-untyped]

    scale, z = _standardised(y, mean, deviation, "mean", "deviation")
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return float(np.mean(scale * (z * (2.0 * ndtr(z) - 1.0) + 2.0 * density - 1.0 / math.sqrt(math.pi))))


def crps_student_t(y: ArrayLike, location: ArrayLike, scale: ArrayLike, degrees_of_freedom: ArrayLike) -> float:
    """Mean continuous ranked probability score of Student-t forecasts (Jordan, Krüger and Lerch, 2019).

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        location: centre of the forecast; a number, one per column, or shaped like `y`.
        scale: of the forecast, > 0; the deviation is scale · sqrt(ν / (ν - 2)); likewise.
        degrees_of_freedom: ν, above 1 (below, the score is infinite); likewise.

    Returns:
        The score in units of y.

    >>> round(crps_student_t([0.0], 0.0, 1.0, 1e6), 5), round(crps_student_t([0.0], 0.0, 1.0, 3.0), 6)
    (0.2337, 0.275664)
    """
    from scipy.special import betaln, stdtr

    size, z = _standardised(y, location, scale, "location", "scale")
    nu = like(z, degrees_of_freedom=degrees_of_freedom)
    if not (nu > 1.0).all():
        raise ValueError(f"degrees_of_freedom must be above 1, or the score is infinite; got {nu.min()}")
    log_beta = betaln(0.5, 0.5 * nu)
    density = np.exp(-0.5 * (nu + 1.0) * np.log1p(z**2 / nu) - log_beta) / np.sqrt(nu)
    spread = 2.0 * np.sqrt(nu) / (nu - 1.0) * np.exp(betaln(0.5, nu - 0.5) - 2.0 * log_beta)
    score = z * (2.0 * stdtr(nu, z) - 1.0) + 2.0 * density * (nu + z**2) / (nu - 1.0) - spread
    return float(np.mean(size * score))


def coverage(y: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of the outcomes inside their interval, ends included.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        low: lower end, shaped like `y`; may be infinite.
        high: upper end, likewise, not below `low`.

    >>> coverage([0.0, 1.0, 2.0], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]) == 2 / 3
    True
    """
    actual, lower, upper = _intervals(y, low, high)
    return float(np.mean((lower <= actual) & (actual <= upper)))


def interval_width(low: ArrayLike, high: ArrayLike) -> float:
    """Mean width of the intervals, infinite where one of them is.

    >>> interval_width([-1.0, -2.0], [1.0, 2.0])
    3.0
    """
    _, lower, upper = _intervals(np.zeros(np.shape(low)), low, high)
    return float(np.mean(upper - lower))


def winkler_score(y: ArrayLike, low: ArrayLike, high: ArrayLike, *, nominal_coverage: float) -> float:
    """Mean width plus 2/a times the distance of every miss, a = 1 - nominal coverage (Winkler, 1972).

    Least in expectation for the interval between the true a/2 and 1 - a/2 quantiles: it rewards narrow intervals and
    charges misses, so neither can be bought with the other. It is 2/a times the sum of the two ends' pinball losses.

    Args:
        y: what happened; (n_bars,) or (n_bars, n_columns).
        low: lower end, shaped like `y`.
        high: upper end, likewise.
        nominal_coverage: what the interval promises, in (0, 1).

    >>> winkler_score([0.0, 2.0], [-1.0, -1.0], [1.0, 1.0], nominal_coverage=0.5)
    4.0
    """
    if not 0.0 < nominal_coverage < 1.0:
        raise ValueError(f"nominal_coverage must be in (0, 1), got {nominal_coverage}; 90% is 0.9")
    actual, lower, upper = _intervals(y, low, high)
    missed = np.maximum(lower - actual, 0.0) + np.maximum(actual - upper, 0.0)
    return float(np.mean(upper - lower + 2.0 / (1.0 - nominal_coverage) * missed))


def _standardised(
    y: ArrayLike, centre: ArrayLike, scale: ArrayLike, centre_name: str, scale_name: str
) -> tuple[FloatArray, FloatArray]:
    """Return the scale and (y - centre) / scale, both shaped like `y`."""
    (actual,) = aligned(y=y)
    size = positive(actual, **{scale_name: scale})
    return size, (actual - like(actual, **{centre_name: centre})) / size


def _intervals(y: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    (actual,) = aligned(y=y)
    lower, upper = (same_shape(actual, name, ends) for name, ends in (("low", low), ("high", high)))
    crossed = lower > upper
    if crossed.any():
        raise ValueError(f"low must not be above high: it is in row {int(np.argwhere(crossed)[0, 0])}")
    return actual, lower, upper


def _quantile_levels(quantile: ArrayLike) -> FloatArray:
    levels = np.asarray(quantile, dtype=np.float64)
    if levels.ndim > 1 or not levels.size or not ((levels > 0.0) & (levels < 1.0)).all():
        raise ValueError(f"quantile must be a number in (0, 1) or a list of such, got {levels}; the median is 0.5")
    return levels
