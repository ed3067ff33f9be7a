"""Market indicators that know nothing of the future: value t is computed from bars up to t, and from nothing else.

Arrays are float64 with time first, (n_bars,) or (n_bars, n_assets); assets never mix. Bars where an indicator is not
yet defined are NaN (its warm-up), never 0 and never a later value. A window of `n_bars` ends at bar t and includes it.

Rolling indicators add up each window by itself: a running sum would be faster, but would carry the rounding of every
earlier bar, and the same window would give another last digit in training than live. Recursive ones (exponential and
Wilder means) remember all their past. A missing bar (not finite) is NaN; windows that hold it are NaN, and recursive
means pass over it.

Prices enter as ratios: multiplying them by a constant changes no indicator except `rolling_mean`, `rolling_std` and
`exponential_mean`, which are in the unit of their argument.
"""

from collections.abc import Iterator
from functools import reduce
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# A window whose deviation is this small a part of its values is flat: what varies is the rounding of the values.
_FLAT = 1e-12


def log_return(close: ArrayLike) -> FloatArray:
    """Compute ln(close[t] / close[t-1]); warm-up 1 bar.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).

    >>> log_return([1.0, np.e, np.e]).tolist()
    [nan, 1.0, 0.0]
    """
    return momentum(close, 1)


def momentum(close: ArrayLike, n_bars: int) -> FloatArray:
    """Compute the log return over `n_bars` bars, ln(close[t] / close[t-n_bars]); warm-up `n_bars` bars.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        n_bars: bars between the two prices, at least 1.

    >>> momentum([1.0, 2.0, np.e], 2).tolist()
    [nan, nan, 1.0]
    """
    (close,) = _columns(close=close)
    return _log_ratio(close, _earlier(close, _window(n_bars, 1)))


def rolling_mean(values: ArrayLike, n_bars: int) -> FloatArray:
    """Compute the mean of each window, in the unit of the values; warm-up `n_bars - 1` bars.

    Args:
        values: any series; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 1.

    >>> rolling_mean([1.0, 2.0, 6.0], 2).tolist()
    [nan, 1.5, 4.0]
    """
    (values,) = _columns(values=values)
    return values + _mean_distance(values, _window(n_bars, 1))


def rolling_std(values: ArrayLike, n_bars: int) -> FloatArray:
    """Compute the standard deviation (ddof=1) of each window, in the unit of the values; warm-up `n_bars - 1` bars.

    Exactly 0 where all values of the window are equal.

    Args:
        values: any series; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 2.

    >>> rolling_std([1.0, 2.0, 3.0], 3).tolist()
    [nan, nan, 1.0]
    """
    (values,) = _columns(values=values)
    n_bars = _window(n_bars, 2)
    mean_distance = _mean_distance(values, n_bars)
    squares = (np.square((earlier - values) - mean_distance) for earlier in _lags(values, n_bars))
    return np.sqrt(reduce(np.add, squares) / (n_bars - 1))


def zscore(values: ArrayLike, n_bars: int) -> FloatArray:
    """Compute how many standard deviations the last value of a window lies above its mean; warm-up `n_bars - 1` bars.

    0 where the window is flat.

    Args:
        values: any series; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 2.

    >>> zscore([1.0, 2.0, 3.0], 3).tolist()
    [nan, nan, 1.0]
    """
    (values,) = _columns(values=values)
    deviation = rolling_std(values, n_bars)
    largest = reduce(np.maximum, (np.abs(earlier) for earlier in _lags(values, n_bars)))
    return _fraction(-_mean_distance(values, n_bars), np.where(deviation <= _FLAT * largest, 0.0, deviation), 0.0)


def volatility(close: ArrayLike, n_bars: int) -> FloatArray:
    """Compute the standard deviation (ddof=1) of the last `n_bars` log returns, per bar; warm-up `n_bars` bars.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        n_bars: log returns in the window, at least 2.

    >>> volatility([1.0, np.e, 1.0], 2).round(4).tolist()
    [nan, nan, 1.4142]
    """
    return rolling_std(log_return(close), n_bars)


def exponential_mean(values: ArrayLike, span: int) -> FloatArray:
    """Compute the mean whose weights fall by (span - 1) / (span + 1) per bar of age; warm-up `span - 1` bars.

    It starts as the plain mean of the first `span` values (TA-Lib's convention), so that no single bar dominates it.

    Args:
        values: any series; (n_bars,) or (n_bars, n_assets).
        span: a new value has the weight 2 / (span + 1); at least 1.

    >>> exponential_mean([1.0, 2.0, 3.0, 8.0], 3).tolist()
    [nan, nan, 2.0, 5.0]
    """
    (values,) = _columns(values=values)
    return _recursive_mean(values, _window(span, 1, "span"), new_weight=2.0 / (span + 1.0))


def rsi(close: ArrayLike, n_bars: int = 14) -> FloatArray:
    """Compute Wilder's relative strength index as a fraction: mean gain / (mean gain + mean loss); warm-up `n_bars`.

    In [0, 1], so that the textbook levels 30 and 70 are 0.3 and 0.7; 0.5 where no price has moved. Means are Wilder's
    (a new value has the weight 1 / n_bars), started with the plain mean of the first `n_bars` changes.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        n_bars: length of the mean in bars, at least 1.

    >>> rsi([1.0, 4.0, 3.0, 3.0], 2).tolist()
    [nan, nan, 0.75, 0.75]
    """
    (close,) = _columns(close=close)
    change = close - _earlier(close, 1)
    gain = _wilder_mean(np.maximum(change, 0.0), n_bars)
    loss = _wilder_mean(np.maximum(-change, 0.0), n_bars)
    return _fraction(gain, gain + loss, 0.5)


def macd(close: ArrayLike, fast_span: int = 12, slow_span: int = 26) -> FloatArray:
    """Compute the MACD line as a fraction of price: (fast - slow exponential mean) / close.

    Warm-up `slow_span - 1` bars. This is the line; charts show `macd(close) - exponential_mean(macd(close), 9)` as the
    histogram.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        fast_span: span of the fast mean in bars, below `slow_span`.
        slow_span: span of the slow mean in bars.

    >>> macd([1.0, 2.0, 4.0], 1, 2).round(4).tolist()
    [nan, 0.25, 0.2083]
    """
    if fast_span >= slow_span:
        raise ValueError(f"fast_span must be below slow_span, got {fast_span} and {slow_span}")
    (close,) = _columns(close=close)
    return _fraction(exponential_mean(close, fast_span) - exponential_mean(close, slow_span), close, np.nan)


def atr(high: ArrayLike, low: ArrayLike, close: ArrayLike, n_bars: int = 14) -> FloatArray:
    """Compute Wilder's average true range as a fraction of the close; warm-up `n_bars` bars.

    The true range spans the bar and the close before it, so the first bar has none.

    Args:
        high: highest prices; (n_bars,) or (n_bars, n_assets).
        low: lowest prices; like `high`.
        close: closing prices, positive; like `high`.
        n_bars: length of Wilder's mean in bars, at least 1.

    >>> atr([2.0, 3.0, 5.0], [1.0, 2.0, 4.0], [2.0, 2.0, 4.0], 1).tolist()
    [nan, 0.5, 0.75]
    """
    high, low, close = _columns(high=high, low=low, close=close)
    previous = _earlier(close, 1)
    return _fraction(_wilder_mean(np.maximum(high, previous) - np.minimum(low, previous), n_bars), close, np.nan)


def bollinger_position(close: ArrayLike, n_bars: int = 20, n_deviations: float = 2.0) -> FloatArray:
    """Locate the close between its Bollinger bands: -1 on the lower, 0 in the middle, 1 on the upper; not clipped.

    Warm-up `n_bars - 1` bars; 0 where the window is flat.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 2.
        n_deviations: distance of the bands from the mean in standard deviations (ddof=1), positive.

    >>> bollinger_position([1.0, 2.0, 3.0], 3).tolist()
    [nan, nan, 0.5]
    """
    if not n_deviations > 0.0:
        raise ValueError(f"n_deviations must be positive, got {n_deviations}")
    return zscore(close, n_bars) / n_deviations


def high_low_range(high: ArrayLike, low: ArrayLike) -> FloatArray:
    """Compute ln(high / low) of each bar; no warm-up.

    Args:
        high: highest prices; (n_bars,) or (n_bars, n_assets).
        low: lowest prices, positive; like `high`.

    >>> high_low_range([np.e, 2.0], [1.0, 2.0]).tolist()
    [1.0, 0.0]
    """
    return _log_ratio(*_columns(high=high, low=low))


def close_location(high: ArrayLike, low: ArrayLike, close: ArrayLike) -> FloatArray:
    """Locate the close in its bar: -1 at the low, 1 at the high, 0 in the middle.

    No warm-up; 0 where the bar has no range.

    Args:
        high: highest prices; (n_bars,) or (n_bars, n_assets).
        low: lowest prices; like `high`.
        close: closing prices, in [low, high]; like `high`.

    >>> close_location([3.0, 3.0, 3.0], [1.0, 1.0, 3.0], [3.0, 1.5, 3.0]).tolist()
    [1.0, -0.5, 0.0]
    """
    high, low, close = _columns(high=high, low=low, close=close)
    return _fraction((close - low) - (high - close), high - low, 0.0)


def open_gap(open_price: ArrayLike, close: ArrayLike) -> FloatArray:
    """Compute ln(open[t] / close[t-1]), the move while the market was shut; warm-up 1 bar.

    Args:
        open_price: opening prices, positive; (n_bars,) or (n_bars, n_assets).
        close: closing prices, positive; like `open_price`.

    >>> open_gap([1.0, np.e], [1.0, 5.0]).tolist()
    [nan, 1.0]
    """
    open_price, close = _columns(open_price=open_price, close=close)
    return _log_ratio(open_price, _earlier(close, 1))


def volume_change(volume: ArrayLike, n_bars: int = 20) -> FloatArray:
    """Compute ln(volume / mean volume of the window that ends with it); warm-up `n_bars - 1` bars.

    NaN at a bar without volume, which has no logarithm.

    Args:
        volume: traded volume in any unit; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 1.

    >>> volume_change([1.0, 3.0, 0.0], 2).round(4).tolist()
    [nan, 0.4055, nan]
    """
    (volume,) = _columns(volume=volume)
    return _log_ratio(volume, rolling_mean(volume, n_bars))


def stochastic_oscillator(high: ArrayLike, low: ArrayLike, close: ArrayLike, n_bars: int = 14) -> FloatArray:
    """Locate the close in the range of the window: 0 at its low, 1 at its high (the %K line).

    Warm-up `n_bars - 1` bars; 0.5 where the window has no range.

    Args:
        high: highest prices; (n_bars,) or (n_bars, n_assets).
        low: lowest prices; like `high`.
        close: closing prices, in [low, high]; like `high`.
        n_bars: bars in the window, at least 1.

    >>> stochastic_oscillator([2.0, 5.0], [1.0, 3.0], [1.0, 4.0], 2).tolist()
    [nan, 0.75]
    """
    high, low, close = _columns(high=high, low=low, close=close)
    lowest = reduce(np.minimum, _lags(low, _window(n_bars, 1)))
    highest = reduce(np.maximum, _lags(high, n_bars))
    return _fraction(close - lowest, highest - lowest, 0.5)


def drawdown_from_high(close: ArrayLike, n_bars: int) -> FloatArray:
    """Compute how far the close lies below the highest close of the window; in [0, 1), positive; warm-up `n_bars - 1`.

    Args:
        close: closing prices, positive; (n_bars,) or (n_bars, n_assets).
        n_bars: bars in the window, at least 1.

    >>> drawdown_from_high([4.0, 3.0, 3.0], 2).tolist()
    [nan, 0.25, 0.0]
    """
    (close,) = _columns(close=close)
    highest = reduce(np.maximum, _lags(close, _window(n_bars, 1)))
    return _fraction(highest - close, highest, np.nan)


def _columns(**columns: ArrayLike) -> tuple[FloatArray, ...]:
    """Return the columns as float64, NaN where missing; mixed shapes are refused, or bars would meet assets."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) not in (1, 2):
        raise ValueError(f"expected one shape, (n_bars,) or (n_bars, n_assets), got {shapes}")
    return tuple(np.where(np.isfinite(array), array, np.nan) for array in arrays.values())


def _window(n_bars: int, at_least: int, name: str = "n_bars") -> int:
    if n_bars < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {n_bars}")
    return n_bars


def _earlier(values: FloatArray, n_bars: int) -> FloatArray:
    """Return the values of `n_bars` bars before, NaN where there are none."""
    if n_bars == 0:
        return values
    earlier = np.full_like(values, np.nan)
    earlier[n_bars:] = values[:-n_bars]
    return earlier


def _lags(values: FloatArray, n_bars: int) -> Iterator[FloatArray]:
    """Yield the values of 0, 1, ... n_bars - 1 bars before.

    Folding these adds every window in one fixed order. A sum along the axis of `sliding_window_view` would not: NumPy
    chooses the order by the shape of the whole array, so that more bars or assets could move the last digit.
    """
    return (_earlier(values, lag) for lag in range(n_bars))


def _mean_distance(values: FloatArray, n_bars: int) -> FloatArray:
    """Compute the mean of a window less its last value: exactly 0 where all are equal."""
    return reduce(np.add, (earlier - values for earlier in _lags(values, n_bars))) / n_bars


def _wilder_mean(values: FloatArray, n_bars: int) -> FloatArray:
    return _recursive_mean(values, _window(n_bars, 1), new_weight=1.0 / n_bars)


def _recursive_mean(values: FloatArray, n_start: int, *, new_weight: float) -> FloatArray:
    """Start with the mean of the first `n_start` finite values and move by `new_weight` towards each later one."""
    means = np.full_like(values, np.nan)
    for column, result in zip(np.atleast_2d(values.T), np.atleast_2d(means.T), strict=True):
        known = np.flatnonzero(np.isfinite(column))
        if len(known) < n_start:
            continue
        first, *later = column[known[n_start - 1 :]].tolist()
        start = sum(column[known[: n_start - 1]].tolist(), first) / n_start
        # Python floats: one pass per asset, many times faster than one NumPy call per bar.
        result[known[n_start - 1 :]] = list(
            accumulate(later, lambda mean, value: mean + new_weight * (value - mean), initial=start)
        )
    return means


def _log_ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Compute ln(numerator / denominator), NaN where it is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(numerator / denominator)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _fraction(numerator: FloatArray, denominator: FloatArray, at_zero: float) -> FloatArray:
    """Divide, with `at_zero` where the denominator is 0; NaN stays NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = numerator / denominator
    return np.where(denominator == 0.0, at_zero, fraction)
