"""What forecasts are worth in money: simple rules that turn them into weights, and what those earn after costs."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ml.tradingbots.core.accounting import carry, carry_portfolio, rebalance, rebalance_portfolio
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.core.score_inputs import FloatArray, aligned, positive

SizingRule: TypeAlias = Literal["sign", "linear", "volatility_scaled"]


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
    actual, forecast = aligned(y_next=y_next, prediction=prediction)
    if not max_weight > 0.0:
        raise ValueError(f"max_weight must be above 0, got {max_weight}")
    if not 0.0 <= cost_rate < 1.0:
        raise ValueError(f"cost_rate must be in [0, 1), got {cost_rate}; 10 basis points are 0.001")
    target = _target_weights(forecast, positive(forecast, volatility=volatility), rule, max_weight)
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
