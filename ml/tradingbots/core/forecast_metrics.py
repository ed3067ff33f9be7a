"""How good forecasts are: every forecast score of the project is computed here, once.

`y` is what happened (log returns over the horizon, fractions) and everything else was said beforehand. Arrays are
(n_bars,) or (n_bars, n_columns), aligned row by row: row i of a forecast was made for row i of `y`, which lies in its
future. Scores of several columns are pooled: every entry counts the same.

Missing values are refused, because a score over the rows that happen to be there is another score. What is undefined is
NaN, never a huge number: a correlation of what does not vary, a ratio to a loss of zero.

Errors, losses and widths are better when lower; R², correlations, accuracies and skill when higher.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml.tradingbots.core.accounting import carry, carry_portfolio, rebalance, rebalance_portfolio
from ml.tradingbots.core.metrics import sharpe_ratio

FloatArray: TypeAlias = NDArray[np.float64]
SizingRule: TypeAlias = Literal["sign", "linear", "volatility_scaled"]
Pooling: TypeAlias = Literal["pooled", "by_date"]

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
    actual, forecast = _aligned(y=y, prediction=prediction)
    naive = _like(actual, benchmark=benchmark)
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
    actual, forecast = _aligned(y=y, prediction=prediction)
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
    actual, forecast = _aligned(y=y, prediction=prediction)
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
    actual, forecast = _aligned(y=y, prediction=prediction)
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
    actual, forecast = _aligned(y=y, prediction=prediction)
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
    (actual,) = _aligned(y=y)
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
    (actual,) = _aligned(y=y)
    if forecast.shape != (*actual.shape, len(levels)):
        raise ValueError(
            f"quantile_forecast must have shape {(*actual.shape, len(levels))}, that of y and an axis of {len(levels)} "
            f"quantiles, got {np.shape(quantile_forecast)}"
        )
    _check_known("quantile_forecast", forecast, infinite=False)
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
    nu = _like(z, degrees_of_freedom=degrees_of_freedom)
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


def skill_score(loss: float, naive_loss: float) -> float:
    """Share of a naive forecast's loss that was removed: 1 perfect, 0 none, below 0 worse; NaN without a naive loss.

    >>> skill_score(0.75, 1.0)
    0.25
    """
    if not (math.isfinite(loss) and math.isfinite(naive_loss)) or naive_loss <= 0.0:
        return math.nan
    return 1.0 - loss / naive_loss


def sized_strategy_returns(
    prediction: ArrayLike,
    y_next: ArrayLike,
    volatility: ArrayLike = 1.0,
    cost_rate: float = 0.0,
    rule: SizingRule = "sign",
    max_weight: float = 1.0,
) -> FloatArray:
    """Trade on forecasts by a simple rule and return what was earned after costs, bar by bar.

    The account trades at the close at which the forecast is made (a market-on-close fill) and holds for one bar. Several
    assets share the account equally: each gets at most max_weight / n_assets of it. An account that is ruined stops.

    Rules, before the limit of ±max_weight (P prediction, s volatility):
        `sign`: max_weight · sign(P).
        `linear`: P / s, the forecast in units of its risk; its optimum on an AR(1) has the higher Sharpe ratio.
        `volatility_scaled`: max_weight · sign(P) · (mean of s so far) / s, less when it is wilder than usual.

    Args:
        prediction: expected log return of the next bar, known at its start; (n_bars,) or (n_bars, n_assets).
        y_next: log return of that bar, shaped like `prediction`.
        volatility: deviation of the log return expected for that bar, known at its start, > 0; a number, one per asset, or
            shaped like `prediction`. `sign` does not use it.
        cost_rate: commission plus slippage, a fraction of the notional traded (0.001 is 10 basis points).
        rule: how a forecast becomes a weight.
        max_weight: largest share of equity, long or short, > 0.

    Returns:
        Simple returns after costs, fractions; (n_bars,).

    >>> sized_strategy_returns([0.01, -0.01], [np.log(1.1), np.log(1.1)], cost_rate=0.0).round(12).tolist()
    [0.1, -0.1]
    """
    actual, forecast = _aligned(y_next=y_next, prediction=prediction)
    if not max_weight > 0.0:
        raise ValueError(f"max_weight must be above 0, got {max_weight}")
    if not 0.0 <= cost_rate < 1.0:
        raise ValueError(f"cost_rate must be in [0, 1), got {cost_rate}; 10 basis points are 0.001")
    target = _target_weights(forecast, _positive(forecast, volatility=volatility), rule, max_weight)
    asset_returns = np.expm1(actual)
    if actual.ndim == 2 and actual.shape[1] > 1:
        return _walk_portfolio(target / actual.shape[1], asset_returns, cost_rate)
    return _walk_one_asset(target.ravel().tolist(), asset_returns.ravel().tolist(), cost_rate)


def sized_strategy_sharpe(
    prediction: ArrayLike,
    y_next: ArrayLike,
    volatility: ArrayLike = 1.0,
    cost_rate: float = 0.0,
    rule: SizingRule = "sign",
    max_weight: float = 1.0,
    *,
    bars_per_year: float,
) -> float:
    """Sharpe ratio after costs of `sized_strategy_returns`, annualised; NaN where nothing was ever held.

    Args:
        prediction: as there, and so are the other arguments.
        y_next: log return of the bar after each forecast.
        volatility: expected deviation of that log return.
        cost_rate: fraction of the notional traded.
        rule: how a forecast becomes a weight.
        max_weight: largest share of equity.
        bars_per_year: bars in a year of this market.
    """
    net_returns = sized_strategy_returns(prediction, y_next, volatility, cost_rate, rule, max_weight)
    return sharpe_ratio(net_returns, bars_per_year=bars_per_year)


def _target_weights(forecast: FloatArray, volatility: FloatArray, rule: SizingRule, max_weight: float) -> FloatArray:
    if rule == "sign":
        return max_weight * np.sign(forecast)
    if rule == "linear":
        weight = forecast / volatility
    elif rule == "volatility_scaled":
        # The mean up to and including the bar's own forecast: nothing later is known.
        usual = np.cumsum(volatility, axis=0) / np.arange(1, len(volatility) + 1).reshape(
            -1, *[1] * (forecast.ndim - 1)
        )
        weight = max_weight * np.sign(forecast) * usual / volatility
    else:
        raise ValueError(f"rule must be 'sign', 'linear' or 'volatility_scaled', got {rule!r}")
    return np.clip(weight, -max_weight, max_weight)


def _walk_one_asset(targets: list[float], asset_returns: list[float], cost_rate: float) -> FloatArray:
    net_returns = np.zeros(len(targets))
    weight = 0.0
    for t, (target, asset_return) in enumerate(zip(targets, asset_returns, strict=True)):
        equity, _ = rebalance(1.0, weight, target, cost_rate=cost_rate)
        equity, weight = carry(equity, target, asset_return)
        net_returns[t] = equity - 1.0
        if equity <= 0.0:
            break
    return net_returns


def _walk_portfolio(targets: FloatArray, asset_returns: FloatArray, cost_rate: float) -> FloatArray:
    net_returns = np.zeros(len(targets))
    one, ordered, weight = np.ones(()), np.ones(targets.shape[1]), np.zeros(targets.shape[1])
    for t, (target, asset_return) in enumerate(zip(targets, asset_returns, strict=True)):
        equity, weight, _ = rebalance_portfolio(one, weight, target, ordered, cost_rate=cost_rate)
        equity, weight = carry_portfolio(equity, weight, asset_return)
        net_returns[t] = equity - 1.0
        if equity <= 0.0:
            break
    return net_returns


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


def _standardised(
    y: ArrayLike, centre: ArrayLike, scale: ArrayLike, centre_name: str, scale_name: str
) -> tuple[FloatArray, FloatArray]:
    """Return the scale and (y - centre) / scale, both shaped like `y`."""
    (actual,) = _aligned(y=y)
    size = _positive(actual, **{scale_name: scale})
    return size, (actual - _like(actual, **{centre_name: centre})) / size


def _intervals(y: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    (actual,) = _aligned(y=y)
    lower, upper = (_same_shape(actual, name, ends) for name, ends in (("low", low), ("high", high)))
    crossed = lower > upper
    if crossed.any():
        raise ValueError(f"low must not be above high: it is in row {int(np.argwhere(crossed)[0, 0])}")
    return actual, lower, upper


def _quantile_levels(quantile: ArrayLike) -> FloatArray:
    levels = np.asarray(quantile, dtype=np.float64)
    if levels.ndim > 1 or not levels.size or not ((levels > 0.0) & (levels < 1.0)).all():
        raise ValueError(f"quantile must be a number in (0, 1) or a list of such, got {levels}; the median is 0.5")
    return levels


def _aligned(**arrays: ArrayLike) -> list[FloatArray]:
    """Return the arrays as float64, all of one shape with one or two axes and finite; their names are for errors."""
    (first_name, first), *others = ((name, np.asarray(values, dtype=np.float64)) for name, values in arrays.items())
    if first.ndim not in (1, 2) or first.size == 0:
        raise ValueError(
            f"{first_name} must have shape (n_bars,) or (n_bars, n_columns) and at least one entry, got {first.shape}"
        )
    _check_known(first_name, first, infinite=False)
    aligned = [first]
    for name, values in others:
        aligned.append(_same_shape(first, name, values, infinite=False))
    return aligned


def _same_shape(reference: FloatArray, name: str, values: ArrayLike, *, infinite: bool = True) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != reference.shape:
        raise ValueError(f"{name} must be shaped like what it is compared with, {reference.shape}, got {array.shape}")
    _check_known(name, array, infinite=infinite)
    return array


def _like(reference: FloatArray, **named: ArrayLike) -> FloatArray:
    """Return a number, a row of columns or a full array in the shape of the reference."""
    ((name, values),) = named.items()
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), reference.shape[1:], reference.shape):
        raise ValueError(
            f"{name} must be a number, one per column or shaped like {reference.shape}, got shape {array.shape}"
        )
    _check_known(name, np.atleast_1d(array), infinite=False)
    return np.broadcast_to(array, reference.shape)


def _positive(reference: FloatArray, **named: Any) -> FloatArray:
    array = _like(reference, **named)
    if not (array > 0.0).all():
        raise ValueError(f"{next(iter(named))} must be above 0, got {array.min()}")
    return array


def _check_known(name: str, array: FloatArray, *, infinite: bool) -> None:
    refused = np.isnan(array) if infinite else ~np.isfinite(array)
    if refused.any():
        n_rows = int(np.count_nonzero(refused.reshape(len(array), -1).any(axis=1)))
        raise ValueError(
            f"{name} must have no missing values: {n_rows} of {len(array)} rows have some, the first is row "
            f"{int(np.argwhere(refused)[0, 0])}. Leave out the bars whose outcome is not known yet before scoring"
        )
