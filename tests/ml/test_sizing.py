"""Rules that turn forecasts into weights reach the optima of an AR(1), pay as accounts do, and see no future."""

import math

import numpy as np
import pytest

from ml.tradingbots.core.accounting import rebalance
from ml.tradingbots.core.sizing import sized_strategy_returns, sized_strategy_sharpe
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.data.synthetic_patterns import autoregressive_optimum

N_BARS = 200_000


def ar1_pairs(phi=0.3, n_bars=N_BARS, seed=1):
    """Forecast and outcome of the best forecaster of an AR(1)."""
    market = autoregressive(n_bars, phi=phi, seed=seed)
    return phi * market.state[:-1], market.state[1:], market.parameters


@pytest.mark.parametrize("phi", [0.1, 0.3])
def test_sizing_rules_reach_the_sharpe_ratios_of_an_ar1(phi):
    prediction, y, parameters = ar1_pairs(phi)
    best = autoregressive_optimum(parameters)
    # The standard error of an annual Sharpe ratio is sqrt(252 / n); four of them. Log returns are so small that simple ones
    # differ by less.
    tolerance = 4.0 * math.sqrt(252 / N_BARS)
    sign = sized_strategy_sharpe(prediction, y, 0.01, bars_per_year=252)
    linear = sized_strategy_sharpe(prediction, y, 0.01, rule="linear", max_weight=10.0, bars_per_year=252)
    assert sign == pytest.approx(best.sharpe_of_sign(bars_per_year=252), abs=tolerance)
    assert linear == pytest.approx(best.sharpe_of_linear(bars_per_year=252), abs=tolerance)
    assert linear > sign


def test_the_edge_of_the_sign_rule_is_gone_at_its_break_even_cost():
    prediction, y, _ = ar1_pairs(0.1)
    flips = 0.5 - math.asin(0.1) / math.pi
    break_even = 0.1 * y.std() * math.sqrt(2.0 / math.pi) / (2.0 * flips)
    paid = sized_strategy_returns(prediction, y, cost_rate=break_even)
    # Four standard errors of a mean; of the drift of weights within a bar, which also trades, less than one basis point.
    assert abs(paid.mean()) < 4.0 * y.std() / math.sqrt(N_BARS) + 1e-5


def test_a_strategy_pays_for_its_turnover_as_the_account_does():
    net = sized_strategy_returns([0.01, -0.01], [0.0, 0.0], cost_rate=0.01)
    first, _ = rebalance(1.0, 0.0, 1.0, cost_rate=0.01)
    second, _ = rebalance(1.0, 1.0, -1.0, cost_rate=0.01)
    np.testing.assert_array_equal(net, [first - 1.0, second - 1.0])


def test_one_column_and_several_equal_columns_earn_the_same():
    prediction, y, _ = ar1_pairs(n_bars=400)
    alone = sized_strategy_returns(prediction, y, 0.01, 0.001, "linear")
    column = sized_strategy_returns(prediction[:, None], y[:, None], 0.01, 0.001, "linear")
    twice = sized_strategy_returns(np.stack([prediction] * 2, axis=1), np.stack([y] * 2, axis=1), 0.01, 0.001, "linear")
    np.testing.assert_array_equal(column, alone)
    np.testing.assert_allclose(twice, alone, atol=1e-12)


def test_volatility_scaling_halves_the_weight_where_volatility_doubles_and_sees_no_future():
    volatility = np.array([0.01, 0.01, 0.04, 0.01])
    gross = sized_strategy_returns(np.ones(4), np.full(4, math.log(1.1)), volatility, rule="volatility_scaled")
    np.testing.assert_allclose(gross, [0.1, 0.1, 0.1 * 0.02 / 0.04, 0.1], atol=1e-12)
    cut = sized_strategy_returns(np.ones(3), np.full(3, math.log(1.1)), volatility[:3], rule="volatility_scaled")
    np.testing.assert_array_equal(cut, gross[:3])


def test_a_ruined_account_stops_trading():
    net = sized_strategy_returns([-1.0, -1.0], [math.log(2.5), -0.1])
    assert net.tolist() == [-1.5, 0.0]
    assert math.isnan(sized_strategy_sharpe([0.0, 0.0], [0.1, 0.1], bars_per_year=252))
