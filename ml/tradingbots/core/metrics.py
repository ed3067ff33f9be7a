"""What a strategy earned and what it risked: every performance figure of the project is computed here, once.

Environments, evaluation and reports call these functions, so that one Sharpe ratio means one thing. Definitions follow
empyrical: sample deviation (ddof=1), downside deviation over all bars, a running peak that includes the starting value.
Losses, drawdowns and values at risk are positive numbers here (empyrical's are negative).

What is undefined is NaN, never a huge number: too few bars, a value that is not finite, a ratio to a deviation, a
downside or a drawdown of zero. Missing bars are not skipped: what the other bars say is another figure.
"""

import math
from typing import SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# A simple return is the difference of a number near 1 and 1, so rounding alone moves it by some 1e-16. What is smaller
# than this is rounding: an account that grows by 1% every bar has a computed deviation of 1e-16 and no Sharpe ratio.
_RESOLUTION = 64 * float(np.finfo(np.float64).eps)


def simple_returns(equity_curve: ArrayLike) -> FloatArray:
    """Compute the return of each bar from the values at its two ends.

    An account that does not change returned 0, even an empty one; any other change from zero or from debt is NaN.

    Args:
        equity_curve: value of the account at each close, in account currency; (n_bars,).

    Returns:
        Simple returns, as fractions; entry t leads from close t to close t+1; (n_bars - 1,).

    >>> simple_returns([100.0, 110.0, 0.0, 0.0]).round(12).tolist()
    [0.1, -1.0, 0.0]
    """
    equity = _series(equity_curve, "equity_curve")
    before, change = equity[:-1], np.diff(equity)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(before > 0.0, change / before, np.nan)
    return np.where(change == 0.0, 0.0, fraction)


def equity_from_returns(strategy_returns: ArrayLike, initial_capital: float) -> FloatArray:
    """Compound returns into the account's value at each close.

    An account that reached zero or debt stays where it is: there is nothing left to earn a return on.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        initial_capital: value before the first return, in account currency.

    Returns:
        The equity curve, which starts with `initial_capital`; (n_bars + 1,).

    >>> equity_from_returns([0.5, -1.0, 0.2], 100.0).tolist()
    [100.0, 150.0, 0.0, 0.0]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        growth = np.cumprod(1.0 + _series(strategy_returns, "strategy_returns"))
    ruined = growth <= 0.0
    if ruined.any():
        first = int(ruined.argmax())
        growth[first:] = growth[first]
    return initial_capital * np.concatenate([[1.0], growth])


def total_return(strategy_returns: ArrayLike) -> float:
    """Compound all returns: final value over starting value, minus 1; -1 is ruin.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(total_return([0.1, -0.5]), 12)
    -0.45
    """
    returns = _finite(strategy_returns)
    if len(returns) < 1:
        return math.nan
    return _finite_or_nan(equity_from_returns(returns, 1.0)[-1] - 1.0)


def annual_return(strategy_returns: ArrayLike, *, bars_per_year: float) -> float:
    """Compute the compound annual growth rate, (1 + total return)^(bars_per_year / n_bars) - 1; -1 is ruin.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market (252 for daily bars of stocks, 365 of crypto currencies).

    >>> round(annual_return([0.1, 0.1], bars_per_year=4), 4)
    0.4641
    """
    _check_bars_per_year(bars_per_year)
    returns = _finite(strategy_returns)
    if len(returns) < 1:
        return math.nan
    # Debt has no root, and no annual rate says more than that everything was lost.
    growth = np.maximum(equity_from_returns(returns, 1.0)[-1], 0.0)
    with np.errstate(over="ignore"):
        return _finite_or_nan(growth ** (bars_per_year / len(returns)) - 1.0)


def annual_volatility(strategy_returns: ArrayLike, *, bars_per_year: float) -> float:
    """Compute the standard deviation of the returns (ddof=1), times the root of `bars_per_year`.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market.

    >>> round(annual_volatility([0.01, -0.01], bars_per_year=252), 6)
    0.224499
    """
    _check_bars_per_year(bars_per_year)
    return _deviation(_finite(strategy_returns)) * math.sqrt(bars_per_year)


def sharpe_ratio(strategy_returns: ArrayLike, *, bars_per_year: float, risk_free_rate: float = 0.0) -> float:
    """Compute mean excess return over its standard deviation (ddof=1), times the root of `bars_per_year`.

    NaN where the returns do not vary: nothing was risked, and there is no ratio to nothing.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market.
        risk_free_rate: what safe money earns, as a fraction *per bar*.

    >>> round(sharpe_ratio([0.02, -0.01, 0.02], bars_per_year=252), 4)
    9.1652
    >>> sharpe_ratio([0.1, 0.1, 0.1], bars_per_year=252)
    nan
    """
    _check_bars_per_year(bars_per_year)
    excess = _finite(strategy_returns) - risk_free_rate
    if len(excess) < 2:
        return math.nan
    return _ratio(float(excess.mean()), _deviation(excess)) * math.sqrt(bars_per_year)


def sortino_ratio(strategy_returns: ArrayLike, *, bars_per_year: float, required_return: float = 0.0) -> float:
    """Compute mean excess return over its downside deviation, times the root of `bars_per_year`.

    The downside deviation is the root of the mean of min(excess, 0)^2 over *all* bars, gains counting as 0 (Sortino and
    Price, 1994). NaN where no bar fell short.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market.
        required_return: what counts as neither gain nor loss, as a fraction *per bar*.

    >>> round(sortino_ratio([0.03, -0.01, 0.01, -0.01], bars_per_year=4), 4)
    1.4142
    """
    _check_bars_per_year(bars_per_year)
    excess = _finite(strategy_returns) - required_return
    if len(excess) < 2:
        return math.nan
    with np.errstate(over="ignore"):
        downside = math.sqrt(float(np.mean(np.minimum(excess, 0.0) ** 2)))
    return _ratio(float(excess.mean()), downside) * math.sqrt(bars_per_year)


def drawdown(equity_curve: ArrayLike) -> FloatArray:
    """Compute how far each close lies below the highest close so far.

    Args:
        equity_curve: value of the account at each close, in account currency; (n_bars,).

    Returns:
        Drawdown as a positive fraction in [0, 1], where 1 is ruin or debt; NaN from the first value that is not finite
        and where there was never anything to lose; (n_bars,).

    >>> drawdown([100.0, 80.0, 120.0, 60.0]).tolist()
    [0.0, 0.2, 0.0, 0.5]
    """
    equity = _series(equity_curve, "equity_curve")
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = np.maximum.accumulate(equity)
        fraction = np.where(peak > 0.0, (peak - equity) / peak, np.nan)
    return np.minimum(fraction, 1.0)


def max_drawdown(strategy_returns: ArrayLike) -> float:
    """Compute the deepest fall from a running peak that includes the starting value; in [0, 1], positive.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(max_drawdown([-0.2, 0.5, -0.1]), 12)
    0.2
    """
    returns = _finite(strategy_returns)
    if len(returns) < 1:
        return math.nan
    return float(drawdown(equity_from_returns(returns, 1.0)).max())


def max_drawdown_duration(strategy_returns: ArrayLike) -> float:
    """Count the bars of the longest stretch below a running peak, whether or not the peak was reached again.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    Returns:
        A whole number of bars (a float, so that it can be NaN).

    >>> max_drawdown_duration([0.1, -0.1, 0.05, 0.2, -0.01])
    2.0
    """
    returns = _finite(strategy_returns)
    fall = drawdown(equity_from_returns(returns, 1.0))
    if len(returns) < 1 or np.isnan(fall).any():
        return math.nan
    bar = np.arange(len(fall))
    last_peak = np.maximum.accumulate(np.where(fall > _RESOLUTION, 0, bar))
    return float((bar - last_peak).max())


def calmar_ratio(strategy_returns: ArrayLike, *, bars_per_year: float) -> float:
    """Compute the compound annual return over the maximum drawdown; NaN where nothing was ever lost.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market.

    >>> round(calmar_ratio([-0.2, 0.5], bars_per_year=2), 12)
    1.0
    """
    returns = _finite(strategy_returns)
    return _ratio(annual_return(returns, bars_per_year=bars_per_year), max_drawdown(returns))


def omega_ratio(strategy_returns: ArrayLike, *, required_return: float = 0.0) -> float:
    """Compute the sum of the gains over the sum of the losses, both measured from `required_return`.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        required_return: what counts as neither gain nor loss, as a fraction *per bar*.

    >>> round(omega_ratio([0.03, -0.01, 0.01], required_return=0.01), 12)
    1.0
    """
    excess = _finite(strategy_returns) - required_return
    if len(excess) < 2 or -excess.min() <= _RESOLUTION:
        return math.nan
    return _ratio(float(excess[excess > 0.0].sum()), -float(excess[excess < 0.0].sum()))


def profit_factor(strategy_returns: ArrayLike) -> float:
    """Compute the sum of the gains over the sum of the losses; NaN where no bar lost.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(profit_factor([0.03, -0.01, 0.01]), 12)
    4.0
    """
    return omega_ratio(strategy_returns, required_return=0.0)


def win_rate(strategy_returns: ArrayLike) -> float:
    """Compute the share of gains among the bars whose return is not zero (an account out of the market has no say).

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> win_rate([0.01, 0.0, 0.0, -0.02])
    0.5
    """
    returns = _finite(strategy_returns)
    moved = returns[np.abs(returns) > _RESOLUTION]
    return float(np.mean(moved > 0.0)) if len(moved) else math.nan


def value_at_risk(strategy_returns: ArrayLike, *, tail_probability: float = 0.05) -> float:
    """Find the loss per bar that only the worst `tail_probability` of the bars exceed (historical, interpolated).

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        tail_probability: share of bars that may be worse, in (0, 1).

    Returns:
        A fraction of equity; positive is a loss, negative says that even this quantile gained.

    >>> round(value_at_risk([-0.04, -0.02, 0.0, 0.02, 0.04], tail_probability=0.25), 12)
    0.02
    """
    _check_probability(tail_probability)
    returns = _finite(strategy_returns)
    return -float(np.percentile(returns, 100.0 * tail_probability)) if len(returns) >= 2 else math.nan


def expected_shortfall(strategy_returns: ArrayLike, *, tail_probability: float = 0.05) -> float:
    """Compute the mean loss of the worst bars, also called conditional value at risk (CVaR).

    The worst bars are the lowest 1 + floor((n_bars - 1) * tail_probability) returns.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        tail_probability: share of bars in the tail, in (0, 1).

    Returns:
        A fraction of equity; positive is a loss.

    >>> round(expected_shortfall([-0.04, -0.02, 0.0, 0.02, 0.04], tail_probability=0.25), 12)
    0.03
    """
    _check_probability(tail_probability)
    returns = np.sort(_finite(strategy_returns))
    if len(returns) < 2:
        return math.nan
    return -float(returns[: 1 + int((len(returns) - 1) * tail_probability)].mean())


def tail_ratio(strategy_returns: ArrayLike) -> float:
    """Compute the size of the 95th percentile over the size of the 5th; above 1, good surprises exceed bad ones.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(tail_ratio([-0.01, 0.0, 0.02]), 12)
    2.0
    """
    returns = _finite(strategy_returns)
    if len(returns) < 2:
        return math.nan
    low, high = np.percentile(returns, [5.0, 95.0])
    return _ratio(abs(float(high)), abs(float(low)))


def skewness(strategy_returns: ArrayLike) -> float:
    """Compute the third standardised moment (population form, no bias correction); 0 for symmetric returns.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(skewness([0.0, 0.0, 0.0, 0.04]), 4)
    1.1547
    """
    return _standardised_moment(_finite(strategy_returns), 3)


def kurtosis(strategy_returns: ArrayLike) -> float:
    """Compute the fourth standardised moment (population form, raw: 3 for normal returns, more for fat tails).

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).

    >>> round(kurtosis([-0.01, 0.01, -0.01, 0.01]), 12)
    1.0
    """
    return _standardised_moment(_finite(strategy_returns), 4)


def average_turnover(turnover: ArrayLike) -> float:
    """Compute the mean turnover per bar, bars without a trade included.

    Args:
        turnover: notional traded at each bar as a fraction of equity, where long to short counts 2; (n_bars,).

    >>> average_turnover([1.0, 0.0, 2.0, 0.0])
    0.75
    """
    traded = _finite(turnover, "turnover")
    return float(traded.mean()) if len(traded) else math.nan


def summary(strategy_returns: ArrayLike, *, bars_per_year: float) -> dict[str, float]:
    """Compute every metric of a return series under its function's name.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,).
        bars_per_year: bars in a year of this market.

    >>> round(summary([0.1, -0.5], bars_per_year=252)["total_return"], 12)
    -0.45
    """
    returns = _series(strategy_returns, "strategy_returns")
    return {
        "total_return": total_return(returns),
        "annual_return": annual_return(returns, bars_per_year=bars_per_year),
        "annual_volatility": annual_volatility(returns, bars_per_year=bars_per_year),
        "sharpe_ratio": sharpe_ratio(returns, bars_per_year=bars_per_year),
        "sortino_ratio": sortino_ratio(returns, bars_per_year=bars_per_year),
        "calmar_ratio": calmar_ratio(returns, bars_per_year=bars_per_year),
        "max_drawdown": max_drawdown(returns),
        "max_drawdown_duration": max_drawdown_duration(returns),
        "value_at_risk": value_at_risk(returns),
        "expected_shortfall": expected_shortfall(returns),
        "tail_ratio": tail_ratio(returns),
        "win_rate": win_rate(returns),
        "profit_factor": profit_factor(returns),
        "skewness": skewness(returns),
        "kurtosis": kurtosis(returns),
    }


def _series(values: ArrayLike, name: str) -> FloatArray:
    """Return the values as float64; more than one axis is refused, or a statistic would mix accounts."""
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"{name} must have shape (n_bars,), got {series.shape}; pass one account at a time")
    return series


def _finite(values: ArrayLike, name: str = "strategy_returns") -> FloatArray:
    """Return the values, or none if any is not finite: a metric is then as undefined as for an empty series."""
    series = _series(values, name)
    return series if np.isfinite(series).all() else series[:0]


def _finite_or_nan(value: SupportsFloat) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _deviation(values: FloatArray) -> float:
    """Compute the standard deviation (ddof=1): NaN below two values, exactly 0 where only rounding varies."""
    if len(values) < 2:
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = _finite_or_nan(np.std(values, ddof=1))
    return 0.0 if deviation <= _RESOLUTION * max(1.0, float(np.abs(values).max())) else deviation


def _standardised_moment(values: FloatArray, order: int) -> float:
    if len(values) < 2 or _deviation(values) == 0.0:
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        centred = values - values.mean()
        return _finite_or_nan(np.mean(centred**order) / np.mean(centred**2) ** (order / 2))


def _ratio(numerator: float, denominator: float) -> float:
    """Divide, NaN where the denominator is zero up to rounding or either side is not finite."""
    if not (math.isfinite(numerator) and math.isfinite(denominator)) or denominator <= _RESOLUTION:
        return math.nan
    return numerator / denominator


def _check_bars_per_year(bars_per_year: float) -> None:
    if not (math.isfinite(bars_per_year) and bars_per_year > 0.0):
        raise ValueError(f"bars_per_year must be positive (252 for daily bars of stocks), got {bars_per_year}")


def _check_probability(tail_probability: float) -> None:
    if not 0.0 < tail_probability < 1.0:
        raise ValueError(f"tail_probability must be in (0, 1), got {tail_probability}; 5% is 0.05")
