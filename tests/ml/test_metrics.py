"""Metrics: pencil cases, what is undefined, and agreement with empyrical."""

import inspect
import math
from collections.abc import Callable

import empyrical
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ml.tradingbots.core import metrics

YEAR = 252
ANNUALISED = {"annual_return", "annual_volatility", "sharpe_ratio", "sortino_ratio", "calmar_ratio"}
OF_RETURNS = {
    name: function
    for name, function in inspect.getmembers(metrics, inspect.isfunction)
    if not name.startswith("_")
    and function.__module__ == metrics.__name__
    and name not in {"simple_returns", "equity_from_returns", "drawdown", "average_turnover", "summary"}
}

# Whole tenths of a percent: two returns are equal or clearly different, so that 1e-12 tests formulas and not how badly
# rounding is amplified by a deviation of nearly nothing.
returns_of_a_market = st.lists(st.integers(-200, 200), min_size=2, max_size=60).map(
    lambda ticks: np.array(ticks) / 1000
)
examples = settings(max_examples=60, deadline=None, derandomize=True)


def evaluate(name: str, returns: np.ndarray) -> float:
    keywords = {"bars_per_year": YEAR} if name in ANNUALISED else {}
    return OF_RETURNS[name](returns, **keywords)


# Pencil


def test_a_gain_and_its_undoing_return_nothing():
    assert metrics.total_return([1.0, -0.5]) == 0.0
    assert metrics.annual_return([1.0, -0.5], bars_per_year=YEAR) == 0.0


def test_a_year_of_bars_returns_the_same_per_year_as_in_total():
    returns = np.random.default_rng(0).normal(0.001, 0.01, YEAR)
    assert metrics.annual_return(returns, bars_per_year=YEAR) == pytest.approx(metrics.total_return(returns), rel=1e-12)


def test_returns_and_equity_are_each_others_inverse():
    returns = np.random.default_rng(1).normal(0.0, 0.02, 50)
    equity = metrics.equity_from_returns(returns, 1e5)
    assert equity[0] == 1e5
    assert len(equity) == 51
    np.testing.assert_allclose(metrics.simple_returns(equity), returns, rtol=0, atol=1e-15)


def test_a_loss_on_the_first_bar_is_a_drawdown():
    assert metrics.max_drawdown([-0.25, 0.1]) == 0.25


def test_drawdown_counts_from_the_highest_close_so_far():
    np.testing.assert_array_equal(
        metrics.drawdown([10.0, 20.0, 15.0, 30.0, 15.0]), np.array([0.0, 0.0, 0.25, 0.0, 0.5])
    )


def test_drawdown_duration_is_the_longest_stretch_below_a_peak():
    assert metrics.max_drawdown_duration([0.1, -0.1, 0.01, 0.5, -0.2, -0.2, 0.1, 0.05]) == 4
    assert metrics.max_drawdown_duration([0.1, 0.0, 0.1]) == 0


def test_a_drawdown_ends_when_the_peak_is_reached_up_to_rounding():
    lost = 1.0 - 1.0 / 1.1
    assert metrics.max_drawdown_duration([0.1, -lost, 0.1, 0.0, 0.0]) == 1


def test_sortino_counts_gains_as_no_downside_but_still_counts_them():
    downside = math.sqrt((0.01**2 + 0.0 + 0.0 + 0.0) / 4)
    assert metrics.sortino_ratio([-0.01, 0.02, 0.0, 0.03], bars_per_year=1) == pytest.approx(0.01 / downside, rel=1e-12)


def test_win_rate_ignores_bars_out_of_the_market():
    assert metrics.win_rate([0.0, 0.0, 0.01, 0.02, -0.01, 0.0]) == pytest.approx(2 / 3)


def test_turnover_averages_over_bars_without_trades_too():
    assert metrics.average_turnover([2.0, 0.0, 0.0, 0.0]) == 0.5


def test_losses_are_positive_numbers():
    returns = np.random.default_rng(2).normal(0.0, 0.01, 500)
    shortfall, value_at_risk = metrics.expected_shortfall(returns), metrics.value_at_risk(returns)
    assert shortfall > value_at_risk > 0.0
    assert metrics.max_drawdown(returns) > 0.0


def test_kurtosis_of_normal_returns_is_three():
    returns = np.random.default_rng(3).normal(size=200_000)
    # The estimate's own standard error is sqrt(24 / n) = 0.011.
    assert metrics.kurtosis(returns) == pytest.approx(3.0, abs=0.04)
    assert metrics.skewness(returns) == pytest.approx(0.0, abs=0.02)


def test_leverage_does_not_change_the_sharpe_ratio():
    returns = np.random.default_rng(4).normal(0.001, 0.01, 100)
    once, twice = (metrics.sharpe_ratio(x, bars_per_year=YEAR) for x in (returns, 2 * returns))
    assert twice == pytest.approx(once, rel=1e-12)


# Ruin


def test_ruin_loses_everything_and_no_more():
    returns = [0.1, -1.0, 0.3]
    assert metrics.total_return(returns) == -1.0
    assert metrics.annual_return(returns, bars_per_year=YEAR) == -1.0
    assert metrics.max_drawdown(returns) == 1.0
    assert metrics.calmar_ratio(returns, bars_per_year=YEAR) == -1.0


def test_two_losses_beyond_everything_do_not_multiply_to_a_gain():
    returns = [-2.0, -2.0, 0.5]
    assert metrics.total_return(returns) == -2.0
    assert metrics.annual_return(returns, bars_per_year=YEAR) == -1.0
    assert metrics.max_drawdown(returns) == 1.0


def test_an_account_left_at_zero_keeps_its_metrics():
    returns = metrics.simple_returns([100.0, 50.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(returns, [-0.5, -1.0, 0.0, 0.0])
    assert metrics.max_drawdown(returns) == 1.0


def test_a_gain_out_of_nothing_is_undefined():
    assert np.isnan(metrics.simple_returns([0.0, 1.0])).all()
    assert np.isnan(metrics.simple_returns([-1.0, 1.0])).all()


# Undefined is NaN


@pytest.mark.parametrize("name", OF_RETURNS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_leaves_every_metric_undefined(name, bad):
    assert math.isnan(evaluate(name, np.array([0.01, bad, -0.02, 0.03])))


@pytest.mark.parametrize("name", OF_RETURNS)
def test_no_bars_leave_every_metric_undefined(name):
    assert math.isnan(evaluate(name, np.array([])))


@pytest.mark.parametrize(
    "name",
    sorted(
        OF_RETURNS.keys()
        - {"total_return", "annual_return", "max_drawdown", "max_drawdown_duration", "calmar_ratio", "win_rate"}
    ),
)
def test_one_bar_says_nothing_about_a_distribution(name):
    assert math.isnan(evaluate(name, np.array([-0.1])))


CONSTANT = {
    "the same number": np.full(30, 0.1),
    "constant growth, seen through an account": metrics.simple_returns(1e5 * 1.01 ** np.arange(300)),
    "an idle account": np.zeros(30),
}


@pytest.mark.parametrize("returns", CONSTANT.values(), ids=CONSTANT.keys())
@pytest.mark.parametrize(
    "name", ["sharpe_ratio", "sortino_ratio", "calmar_ratio", "skewness", "kurtosis", "profit_factor"]
)
def test_returns_that_do_not_vary_have_no_ratio(name, returns):
    assert math.isnan(evaluate(name, returns))


@pytest.mark.parametrize("returns", CONSTANT.values(), ids=CONSTANT.keys())
def test_returns_that_do_not_vary_have_no_volatility(returns):
    assert metrics.annual_volatility(returns, bars_per_year=YEAR) == 0.0


def test_a_return_equal_to_the_required_one_is_no_downside():
    returns = np.array([0.1 + 0.2, 0.3, 0.4]) - 0.2
    assert math.isnan(metrics.sortino_ratio(returns, bars_per_year=YEAR, required_return=0.1))


def test_growth_beyond_every_number_is_undefined():
    assert math.isnan(metrics.annual_return([0.5], bars_per_year=1e6))
    assert math.isnan(metrics.max_drawdown(np.full(4000, 1.0)))
    assert math.isnan(metrics.max_drawdown_duration(np.full(4000, 1.0)))


@pytest.mark.parametrize("name", sorted(ANNUALISED))
@pytest.mark.parametrize("bars_per_year", [0, -252, math.nan, math.inf])
def test_a_year_needs_bars(name, bars_per_year):
    with pytest.raises(ValueError, match="bars_per_year must be positive"):
        OF_RETURNS[name](np.array([0.01, 0.02]), bars_per_year=bars_per_year)


def test_several_accounts_at_once_are_refused():
    with pytest.raises(ValueError, match="one account at a time"):
        metrics.sharpe_ratio(np.zeros((5, 2)), bars_per_year=YEAR)


def test_a_tail_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"5% is 0\.05"):
        metrics.value_at_risk([0.1, 0.2], tail_probability=5)


def test_summary_holds_every_metric_as_a_plain_float():
    returns = np.random.default_rng(5).normal(0.0, 0.01, 60)
    summary = metrics.summary(returns, bars_per_year=YEAR)
    assert summary.keys() == OF_RETURNS.keys() - {"omega_ratio"}
    assert all(type(value) is float for value in summary.values())
    assert summary == {name: evaluate(name, returns) for name in summary}


def test_arguments_are_left_untouched():
    returns = np.array([0.1, -0.2, 0.3])
    before = returns.copy()
    metrics.summary(returns, bars_per_year=YEAR)
    np.testing.assert_array_equal(returns, before)


# Agreement


def agree(ours: float, theirs: float) -> None:
    """Equal to 1e-12; where theirs divides by zero, ours is NaN."""
    if math.isfinite(theirs):
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)
    else:
        assert math.isnan(ours)


PAIRS: dict[str, tuple[Callable[[np.ndarray], float], Callable[[np.ndarray], float]]] = {
    "total_return": (metrics.total_return, empyrical.cum_returns_final),
    "annual_return": (
        lambda x: metrics.annual_return(x, bars_per_year=YEAR),
        lambda x: empyrical.annual_return(x, annualization=YEAR),
    ),
    "annual_volatility": (
        lambda x: metrics.annual_volatility(x, bars_per_year=365),
        lambda x: empyrical.annual_volatility(x, annualization=365),
    ),
    "sharpe_ratio": (
        lambda x: metrics.sharpe_ratio(x, bars_per_year=YEAR),
        lambda x: empyrical.sharpe_ratio(x, annualization=YEAR),
    ),
    "sharpe_ratio over a risk-free rate": (
        lambda x: metrics.sharpe_ratio(x, bars_per_year=YEAR, risk_free_rate=0.0005),
        lambda x: empyrical.sharpe_ratio(x, risk_free=0.0005, annualization=YEAR),
    ),
    "sortino_ratio": (
        lambda x: metrics.sortino_ratio(x, bars_per_year=YEAR),
        lambda x: empyrical.sortino_ratio(x, annualization=YEAR),
    ),
    "sortino_ratio over a required return": (
        lambda x: metrics.sortino_ratio(x, bars_per_year=YEAR, required_return=0.0005),
        lambda x: empyrical.sortino_ratio(x, required_return=0.0005, annualization=YEAR),
    ),
    "calmar_ratio": (
        lambda x: metrics.calmar_ratio(x, bars_per_year=YEAR),
        lambda x: empyrical.calmar_ratio(x, annualization=YEAR),
    ),
    "omega_ratio": (
        lambda x: metrics.omega_ratio(x, required_return=0.0005),
        lambda x: empyrical.omega_ratio(x, required_return=0.0005, annualization=1),
    ),
    "max_drawdown": (metrics.max_drawdown, lambda x: -empyrical.max_drawdown(x)),
    "value_at_risk": (metrics.value_at_risk, lambda x: -empyrical.value_at_risk(x)),
    "value_at_risk at 1%": (
        lambda x: metrics.value_at_risk(x, tail_probability=0.01),
        lambda x: -empyrical.value_at_risk(x, cutoff=0.01),
    ),
    "expected_shortfall": (metrics.expected_shortfall, lambda x: -empyrical.conditional_value_at_risk(x)),
    "expected_shortfall at 29%": (
        lambda x: metrics.expected_shortfall(x, tail_probability=0.29),
        lambda x: -empyrical.conditional_value_at_risk(x, cutoff=0.29),
    ),
    "tail_ratio": (metrics.tail_ratio, empyrical.tail_ratio),
    "skewness": (metrics.skewness, stats.skew),
    "kurtosis": (metrics.kurtosis, lambda x: stats.kurtosis(x, fisher=False)),
}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS.keys())
# Theirs warns where it divides by zero and where scipy subtracts equal numbers.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples
@given(returns=returns_of_a_market)
def test_metrics_agree_with_empyrical_and_scipy(ours, theirs, returns):
    agree(ours(returns), theirs(returns))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS.keys())
def test_metrics_agree_on_ten_years_of_daily_returns(ours, theirs):
    returns = np.random.default_rng(6).standard_t(4, 2520) * 0.01 + 0.0003
    agree(ours(returns), theirs(returns))


@examples
@given(returns=returns_of_a_market)
def test_drawdowns_agree_with_empyrical_bar_by_bar(returns):
    ours = metrics.drawdown(metrics.equity_from_returns(returns, 100.0))[1:]
    np.testing.assert_allclose(ours, -empyrical.stats.drawdown_series(returns), rtol=0, atol=1e-12)


@examples
@given(returns=returns_of_a_market)
def test_simple_returns_agree_with_empyrical(returns):
    equity = metrics.equity_from_returns(returns, 100.0)
    np.testing.assert_array_equal(metrics.simple_returns(equity), empyrical.simple_returns(equity))


@examples
@given(returns=returns_of_a_market)
def test_every_metric_is_a_sensible_number_or_undefined(returns):
    summary = metrics.summary(returns, bars_per_year=YEAR)
    assert not any(math.isinf(value) for value in summary.values())
    assert 0.0 <= summary["max_drawdown"] <= 1.0
    assert summary["max_drawdown_duration"] <= len(returns)
    assert summary["expected_shortfall"] >= summary["value_at_risk"] - 1e-15
    assert not summary["win_rate"] > 1.0
