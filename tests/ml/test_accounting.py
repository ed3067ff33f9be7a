"""The arithmetic of an account, against a pencil, a root finder and itself on other kinds of numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from ml.tradingbots.core.accounting import (
    carry,
    carry_portfolio,
    entry_basis,
    positive_part,
    rebalance,
    rebalance_portfolio,
    rebalance_with_minimum,
)
from ml.tradingbots.core.costs import TransactionCosts, accrued_interest, impact_rate

# The same few operations on other number types: they differ by the order of a rounding at most.
ROUNDING = 1e-14

weights = st.floats(-2.0, 2.0)
rates = st.floats(0.0, 0.05)
returns = st.floats(-0.3, 0.3)
moderate = settings(deadline=None, derandomize=True, max_examples=150)


def scalar_carry(equity, weight, other, rate):
    return carry(equity, weight, 0.1 * other, 0.1 * rate)


def scalar_rebalance(equity, weight, other, rate):
    return rebalance(equity, weight, other, cost_rate=rate)


def scalar_rebalance_with_minimum(equity, weight, other, rate):
    return rebalance_with_minimum(
        equity, weight, other, commission_rate=rate, slippage_rate=0.5 * rate, minimum_commission=3.0
    )


def scalar_entry_basis(equity, weight, other, rate):
    return entry_basis(1.0 + rate, weight, other), weight


def scalar_accrued_interest(equity, weight, other, rate):
    costs = TransactionCosts(borrow_rate=0.03, margin_rate=0.05, cash_rate=0.02)
    return accrued_interest(costs, 1.0 - weight, positive_part(-weight), rate), weight


def scalar_impact_rate(equity, weight, other, rate):
    return impact_rate(0.7, rate, abs(other - weight) * equity, 1e6), weight


FORMULAS = [
    scalar_carry,
    scalar_rebalance,
    scalar_rebalance_with_minimum,
    scalar_entry_basis,
    scalar_accrued_interest,
    scalar_impact_rate,
]


def random_inputs(n_accounts=200, seed=1):
    """Equity, weight held, weight wanted (a return after scaling) and a rate, with ties and flat accounts among them."""
    rng = np.random.default_rng(seed)
    equity = rng.uniform(50.0, 2_000.0, n_accounts)
    weight, other = rng.uniform(-2.0, 2.0, (2, n_accounts))
    other[::7] = weight[::7]
    weight[::11] = 0.0
    other[::13] = 0.0
    return equity, weight, other, rng.uniform(0.0, 0.05, n_accounts)


def exact_remaining(weight, target, rate, slippage=0.0, ticket=None):
    """Solve x = 1 − Σ max(commission·|w*x − w|, ticket) − Σ slippage·|w*x − w| by bisection-like search."""

    def gap(x):
        trade = np.abs(target * x - weight)
        commission = (rate - slippage) * trade
        if ticket is not None:
            commission = np.maximum(commission, ticket)
        return x - 1.0 + (commission + slippage * trade).sum()

    return brentq(gap, 0.0, 1.0, xtol=1e-15, rtol=1e-14)


# Pencil values.


def test_holding_half_through_a_rise_of_ten_percent_earns_five_and_drifts_up():
    equity, weight = carry(100.0, 0.5, 0.10)
    assert equity == pytest.approx(105.0, abs=1e-12)
    assert weight == pytest.approx(55.0 / 105.0, abs=1e-15)


def test_holding_a_short_through_a_rise_loses_and_the_short_grows():
    equity, weight = carry(100.0, -1.0, 0.10)
    assert equity == pytest.approx(90.0, abs=1e-12)
    assert weight == pytest.approx(-110.0 / 90.0, abs=1e-15)


def test_interest_counts_in_equity_and_dilutes_the_weight():
    equity, weight = carry(100.0, 0.5, 0.0, 0.01)
    assert equity == pytest.approx(101.0, abs=1e-12)
    assert weight == pytest.approx(50.0 / 101.0, abs=1e-15)


def test_buying_in_full_leaves_equity_over_one_plus_the_rate():
    equity, turnover = rebalance(100.0, 0.0, 1.0, cost_rate=0.01)
    assert equity == pytest.approx(100.0 / 1.01, abs=1e-12)
    assert turnover == pytest.approx(1.0 / 1.01, abs=1e-15)


def test_selling_everything_pays_the_rate_on_the_notional_held():
    equity, turnover = rebalance(100.0, 1.0, 0.0, cost_rate=0.01)
    assert (equity, turnover) == (pytest.approx(99.0, abs=1e-12), pytest.approx(1.0, abs=1e-15))


def test_flipping_from_long_to_short_without_costs_turns_over_twice_the_equity():
    assert rebalance(100.0, 1.0, -1.0, cost_rate=0.0) == (100.0, 2.0)


def test_flipping_from_long_to_short_pays_for_both_halves():
    # Selling 100 and shorting s with s = 100 − 0.01·(100 + s): s = 99/1.01.
    equity, turnover = rebalance(100.0, 1.0, -1.0, cost_rate=0.01)
    assert equity == pytest.approx(99.0 / 1.01, abs=1e-12)
    assert turnover == pytest.approx(1.0 + 0.99 / 1.01, abs=1e-14)


def test_a_fully_invested_portfolio_that_flips_sides_turns_over_twice_the_equity():
    ones = np.ones((1, 2))
    _, _, turnover = rebalance_portfolio(
        np.array([100.0]), np.array([[0.5, 0.5]]), np.array([[-0.5, -0.5]]), ones, cost_rate=0.0
    )
    assert turnover[0] == 2.0


@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0, 0.37, 1.9])
def test_a_target_equal_to_the_weight_costs_exactly_nothing(weight):
    assert rebalance(123.4, weight, weight, cost_rate=0.05) == (123.4, 0.0)


@pytest.mark.parametrize("minimum_commission", [0.0, 5.0])
def test_a_portfolio_without_orders_costs_exactly_nothing(minimum_commission):
    weight = np.array([[0.3, -0.7, 0.1]])
    equity, after, turnover = rebalance_portfolio(
        np.array([123.4]),
        weight,
        weight,
        np.zeros((1, 3)),
        cost_rate=0.05,
        slippage_rate=0.01,
        minimum_commission=minimum_commission,
    )
    assert (equity[0], turnover[0]) == (123.4, 0.0)
    np.testing.assert_array_equal(after, weight)


def test_portfolio_targets_equal_to_the_weights_cost_exactly_nothing():
    weight = np.array([[0.3, -0.7, 0.1]])
    equity, after, turnover = rebalance_portfolio(np.array([123.4]), weight, weight, np.ones((1, 3)), cost_rate=0.05)
    assert (equity[0], turnover[0]) == (123.4, 0.0)
    np.testing.assert_array_equal(after, weight)


def test_a_small_fill_pays_the_minimum_commission():
    # 100 becomes 98 by the ticket of 2, of which half is bought.
    equity, turnover = rebalance_with_minimum(
        100.0, 0.0, 0.5, commission_rate=0.001, slippage_rate=0.0, minimum_commission=2.0
    )
    assert (equity, turnover) == (pytest.approx(98.0, abs=1e-12), pytest.approx(0.49, abs=1e-15))


def test_a_large_fill_pays_its_rate_and_no_minimum():
    paid = rebalance_with_minimum(1e6, 0.0, 1.0, commission_rate=0.001, slippage_rate=0.002, minimum_commission=2.0)
    assert paid == rebalance(1e6, 0.0, 1.0, cost_rate=0.003)


def test_slippage_comes_on_top_of_the_minimum_commission():
    # x = 1 − 0.02 − 0.01·x.
    equity, _ = rebalance_with_minimum(100.0, 0.0, 1.0, commission_rate=0.0, slippage_rate=0.01, minimum_commission=2.0)
    assert equity == pytest.approx(98.0 / 1.01, abs=1e-12)


def test_no_order_pays_no_minimum_commission():
    paid = rebalance_with_minimum(100.0, 0.4, 0.4, commission_rate=0.01, slippage_rate=0.0, minimum_commission=2.0)
    assert paid == (100.0, 0.0)


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (1.0, 2.0, 0.75),  # one unit of notional at half the price of now, and one at the price of now
        (-1.0, -2.0, 0.75),
        (1.0, 0.4, 0.5),
        (-1.0, -0.4, 0.5),
        (1.0, -1.0, 1.0),
        (-0.5, 1.0, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 0.0, 1.0),
        (1.0, 1.0, 0.5),
    ],
)
def test_the_entry_price_averages_when_adding_and_stays_when_reducing(held, wanted, expected):
    assert entry_basis(0.5, held, wanted) == pytest.approx(expected, abs=1e-15)


def test_borrowed_stock_and_borrowed_cash_cost_interest_and_cash_earns_it():
    costs = TransactionCosts(borrow_rate=0.02, margin_rate=0.05, cash_rate=0.01)
    assert accrued_interest(costs, 0.4, 0.0, 0.5) == pytest.approx(0.4 * 0.01 * 0.5, abs=1e-16)
    assert accrued_interest(costs, -0.4, 0.0, 0.5) == pytest.approx(-0.4 * 0.05 * 0.5, abs=1e-16)
    assert accrued_interest(costs, 0.0, 0.4, 0.5) == pytest.approx(-0.4 * 0.02 * 0.5, abs=1e-16)


def test_impact_is_the_square_root_of_the_share_of_the_day():
    assert impact_rate(0.5, 0.02, 4e6, 1e8) == pytest.approx(0.5 * 0.02 * 0.2, abs=1e-16)


@pytest.mark.parametrize("name", ["commission_rate", "minimum_commission", "borrow_rate", "impact_coefficient"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_cost_that_is_no_cost_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0"):
        TransactionCosts(**{name: value})


def test_ten_basis_points_written_as_percent_of_percent_are_refused():
    with pytest.raises(ValueError, match=r"10 basis points are 0\.001"):
        TransactionCosts(commission_rate=10.0)


# One source, four kinds of numbers.


@pytest.mark.parametrize("formula", FORMULAS)
def test_arrays_give_what_floats_give(formula):
    columns = random_inputs()
    by_array = np.array(formula(*columns))
    by_float = np.array([formula(*map(float, row)) for row in zip(*columns, strict=True)]).T
    np.testing.assert_allclose(by_array, by_float, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("formula", FORMULAS)
def test_tensors_give_what_arrays_give(formula):
    columns = random_inputs()
    by_tensor = formula(*map(torch.as_tensor, columns))
    assert all(part.dtype == torch.float64 for part in by_tensor)
    np.testing.assert_allclose(torch.stack(by_tensor), np.array(formula(*columns)), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_rate_given_as_a_number_is_not_rounded_by_tensors(formula):
    equity, weight, other, _ = random_inputs()
    by_tensor = formula(*map(torch.as_tensor, (equity, weight, other)), 0.0013)
    expected = np.array(formula(equity, weight, other, 0.0013))
    np.testing.assert_allclose(torch.stack(by_tensor), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("minimum_commission", [0.0, 3.0])
def test_a_rate_given_as_a_number_is_not_rounded_by_portfolios_of_tensors(minimum_commission):
    rng = np.random.default_rng(7)
    equity, (weight, target) = rng.uniform(50.0, 2_000.0, 100), rng.uniform(-0.7, 0.7, (2, 100, 3))
    arguments = (equity, weight, target, np.ones((100, 3)))
    rates_ = {"cost_rate": 0.0013, "slippage_rate": 0.0007, "minimum_commission": minimum_commission}
    tensors = rebalance_portfolio(*map(torch.as_tensor, arguments), **rates_)
    for array, tensor in zip(rebalance_portfolio(*arguments, **rates_), tensors, strict=True):
        np.testing.assert_allclose(tensor, array, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture(scope="module")
def compiled():
    """A user's own kernel: it walks bars and loops over assets with the compiled formulas."""
    numba = pytest.importorskip("numba")
    jit_carry, jit_rebalance = numba.njit(carry), numba.njit(rebalance)
    jit_positive, jit_basis = numba.njit(positive_part), numba.njit(entry_basis)
    jit_impact = numba.njit(impact_rate)

    jit_minimum = numba.njit(rebalance_with_minimum)

    @numba.njit
    def kernel(equity, weight, other, rate):
        out = np.empty((9, len(equity)))
        for row in range(len(equity)):
            e, w, o, k = equity[row], weight[row], other[row], rate[row]
            out[0, row], out[1, row] = jit_carry(e, w, 0.1 * o, 0.1 * k)
            out[2, row], out[3, row] = jit_rebalance(e, w, o, k)
            out[4, row], out[5, row] = jit_minimum(e, w, o, k, 0.5 * k, 3.0)
            out[6, row] = jit_basis(1.0 + k, w, o)
            out[7, row] = jit_impact(0.7, k, abs(o - w) * e, 1e6)
            out[8, row] = jit_positive(w)
        return out

    return kernel


def test_a_compiled_loop_gives_what_arrays_give(compiled):
    columns = random_inputs()
    expected = np.vstack(
        [
            *scalar_carry(*columns),
            *scalar_rebalance(*columns),
            *scalar_rebalance_with_minimum(*columns),
            scalar_entry_basis(*columns)[0],
            scalar_impact_rate(*columns)[0],
            np.maximum(columns[1], 0.0),
        ]
    )
    np.testing.assert_allclose(compiled(*columns), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_compiled_kernel_that_loops_over_assets_matches_accounts_of_one_asset():
    numba = pytest.importorskip("numba")
    jit_carry, jit_rebalance = numba.njit(carry), numba.njit(rebalance)

    @numba.njit
    def walk(asset_returns, targets, cost_rate):
        n_bars, n_assets = asset_returns.shape
        final = np.empty(n_assets)
        for asset in range(n_assets):
            equity, weight = 1.0, 0.0
            for bar in range(n_bars):
                target = targets[bar, asset]
                equity, _ = jit_rebalance(equity, weight, target, cost_rate)
                equity, weight = jit_carry(equity, target, asset_returns[bar, asset])
            final[asset] = equity
        return final

    rng = np.random.default_rng(2)
    asset_returns, targets = 0.02 * rng.standard_normal((50, 3)), rng.uniform(-1.0, 1.0, (50, 3))
    equity, weight = np.ones(3), np.zeros(3)
    for moves, target in zip(asset_returns, targets, strict=True):
        equity, _ = rebalance(equity, weight, target, cost_rate=0.002)
        equity, weight = carry(equity, target, moves)
    # 100 operations in a row, each rounded once.
    np.testing.assert_allclose(walk(asset_returns, targets, 0.002), equity, rtol=100 * ROUNDING)


@pytest.mark.parametrize("minimum_commission", [0.0, 3.0])
def test_portfolios_of_tensors_give_what_arrays_give(minimum_commission):
    rng = np.random.default_rng(3)
    equity = rng.uniform(50.0, 2_000.0, 100)
    weight, target = rng.uniform(-0.7, 0.7, (2, 100, 3))
    ordered = (rng.random((100, 3)) < 0.7).astype(float)
    rate = rng.uniform(0.0, 0.05, (100, 3))
    settings_ = {"minimum_commission": minimum_commission}
    arrays = rebalance_portfolio(equity, weight, target, ordered, cost_rate=rate, slippage_rate=0.5 * rate, **settings_)
    t = torch.as_tensor
    tensors = rebalance_portfolio(
        t(equity), t(weight), t(target), t(ordered), cost_rate=t(rate), slippage_rate=0.5 * t(rate), **settings_
    )
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(tensor, array, rtol=ROUNDING, atol=ROUNDING)


# The portfolio form.


@moderate
@given(weight=weights, asset_return=returns, accrual=st.floats(-0.01, 0.01))
def test_carrying_a_portfolio_of_one_asset_is_carrying_that_asset(weight, asset_return, accrual):
    equity, after = carry_portfolio(np.array([50.0]), np.array([[weight]]), np.array([[asset_return]]), accrual)
    assert (equity[0], after[0, 0]) == pytest.approx(carry(50.0, weight, asset_return, accrual), rel=ROUNDING)


@moderate
@given(weight=weights, target=weights, cost_rate=rates)
def test_trading_a_portfolio_of_one_asset_is_trading_that_asset(weight, target, cost_rate):
    one = np.ones((1, 1))
    equity, after, turnover = rebalance_portfolio(
        np.array([50.0]), np.array([[weight]]), np.array([[target]]), one, cost_rate=cost_rate
    )
    expected = rebalance(50.0, weight, target, cost_rate=cost_rate)
    # Turnover is a difference of numbers of order 1, so it is compared absolutely.
    assert (equity[0], turnover[0]) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert after[0, 0] == pytest.approx(target, rel=ROUNDING, abs=ROUNDING)


@moderate
@given(
    weight=weights,
    target=weights,
    commission_rate=rates,
    slippage_rate=st.floats(0.0, 0.02),
    minimum_commission=st.floats(0.01, 20.0),
)
def test_tickets_of_a_portfolio_of_one_asset_are_those_of_that_asset(
    weight, target, commission_rate, slippage_rate, minimum_commission
):
    equity, _, turnover = rebalance_portfolio(
        np.array([1_000.0]),
        np.array([[weight]]),
        np.array([[target]]),
        np.array([[1.0 * (weight != target)]]),
        cost_rate=commission_rate + slippage_rate,
        slippage_rate=slippage_rate,
        minimum_commission=minimum_commission,
    )
    expected = rebalance_with_minimum(
        1_000.0,
        weight,
        target,
        commission_rate=commission_rate,
        slippage_rate=slippage_rate,
        minimum_commission=minimum_commission,
    )
    # Two ways to the same root, each with a few roundings of the commission's share of the rate.
    assert (equity[0], turnover[0]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def random_trade(rng, n_assets, gross):
    """Weights, targets and orders; half of the targets within a few percent of the weights, where sides flip."""
    weight = rng.uniform(-1.0, 1.0, n_assets)
    weight *= gross / np.abs(weight).sum()
    target = rng.uniform(-1.0, 1.0, n_assets)
    target *= rng.uniform(0.2, 1.0) * gross / np.abs(target).sum()
    near = rng.random(n_assets) < 0.5
    target = np.where(near, weight * (1.0 + 0.05 * rng.uniform(-1.0, 2.0, n_assets)), target)
    return weight, target, (rng.random(n_assets) < 0.8).astype(float)


@pytest.mark.parametrize("cost_rate", [0.0005, 0.005, 0.05])
@pytest.mark.parametrize("gross", [1.0, 2.0])
def test_the_portfolio_trade_solves_its_equation(cost_rate, gross):
    rng = np.random.default_rng(4)
    for _ in range(400):
        weight, target, ordered = random_trade(rng, int(rng.integers(2, 8)), gross)
        equity, _, _ = rebalance_portfolio(
            np.array([1.0]), weight[None], target[None], ordered[None], cost_rate=cost_rate
        )
        expected = exact_remaining(weight, np.where(ordered == 1.0, target, weight), ordered * cost_rate)
        # Three Newton steps leave at most rate³ of a fee, and almost always nothing.
        assert equity[0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("cost_rate", [0.0, 0.005, 0.05])
def test_the_portfolio_trade_with_tickets_solves_its_equation(cost_rate):
    rng = np.random.default_rng(5)
    for _ in range(400):
        weight, target, ordered = random_trade(rng, int(rng.integers(2, 8)), 2.0)
        slippage_rate, minimum = 0.002, float(rng.uniform(0.01, 10.0))
        equity, _, _ = rebalance_portfolio(
            np.array([1_000.0]),
            weight[None],
            target[None],
            ordered[None],
            cost_rate=cost_rate + slippage_rate,
            slippage_rate=slippage_rate,
            minimum_commission=minimum,
        )
        expected = exact_remaining(
            weight,
            target,
            ordered * (cost_rate + slippage_rate),
            slippage=ordered * slippage_rate,
            ticket=ordered * minimum / 1_000.0,
        )
        assert equity[0] / 1_000.0 == pytest.approx(expected, abs=1e-10)  # as above


@moderate
@given(weight=weights, target=weights, cost_rate=rates)
def test_what_a_trade_takes_is_the_rate_on_what_it_trades(weight, target, cost_rate):
    equity, turnover = rebalance(1.0, weight, target, cost_rate=cost_rate)
    # Equity is of order 1, so its rounding is absolute.
    assert 1.0 - equity == pytest.approx(cost_rate * turnover, abs=1e-14)


def test_an_asset_without_an_order_keeps_its_units():
    weight, target = np.array([[0.6, 0.2]]), np.array([[0.6, 0.4]])
    equity, after, _ = rebalance_portfolio(np.array([100.0]), weight, target, np.array([[0.0, 1.0]]), cost_rate=0.01)
    assert after[0, 0] * equity[0] == pytest.approx(60.0, rel=1e-15)


def test_the_ordered_assets_reach_their_targets_after_costs():
    target = np.array([[0.3, -0.4, 0.2]])
    _, after, _ = rebalance_portfolio(
        np.array([100.0]), np.array([[-0.5, 0.4, 0.0]]), target, np.ones((1, 3)), cost_rate=0.05
    )
    np.testing.assert_allclose(after, target, rtol=1e-14)  # one product and one quotient


@pytest.mark.parametrize("n_assets", [1, 2, 5])
def test_a_fully_invested_long_only_account_never_borrows_to_pay_its_fees(n_assets):
    rng = np.random.default_rng(6)
    equity, weight = np.array([100.0]), np.zeros((1, n_assets))
    for _ in range(200):
        target = rng.random((1, n_assets))
        target /= target.sum()
        equity, weight, _ = rebalance_portfolio(equity, weight, target, np.ones((1, n_assets)), cost_rate=0.01)
        assert 1.0 - weight.sum() >= -1e-14  # Σw is rounded once per asset
        equity, weight = carry_portfolio(equity, weight, 0.05 * rng.standard_normal((1, n_assets)))
        assert 1.0 - weight.sum() >= -1e-14
