"""Orders in units: whole lots, least notionals, fees that add up, limits that still hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.core.accounting import rebalance_portfolio
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.core.order_sizing import fill_costs, size_orders
from ml.tradingbots.core.portfolio_constraints import LEAST_NET, LOWEST, PortfolioLimits, excesses
from ml.tradingbots.core.portfolio_projection import project


@st.composite
def cases(draw):
    """Return an account within its limits, a target within them, prices, limits, costs, lot and least notional."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_assets, short = draw(st.integers(1, 7)), draw(st.booleans())
    upper = np.full(n_assets, draw(st.sampled_from([0.3, 0.6, 1.0])))
    limits = PortfolioLimits(
        lower=-upper if short else np.zeros(n_assets),
        upper=upper,
        max_gross=draw(st.sampled_from([1.0, 1.5])),
        max_net=draw(st.sampled_from([0.5, 1.0])),
        members=rng.random((1, n_assets)) < 0.5,
        group_caps=np.array([0.4]),
        group_names=("group",),
    )
    costs = TransactionCosts(
        commission_rate=draw(st.sampled_from([0.0, 0.001, 0.01])),
        slippage_rate=draw(st.sampled_from([0.0, 0.002])),
        minimum_commission=draw(st.sampled_from([0.0, 1.0])),
    )
    equity, price = float(np.exp(rng.normal(10.0, 1.0))), np.exp(rng.normal(3.0, 1.5, n_assets))
    weight, target = (project(rng.normal(0.1, 0.5, n_assets), limits) for _ in range(2))
    lot, least = draw(st.sampled_from([0.0, 0.01, 1.0, 10.0])), draw(st.sampled_from([0.0, 10.0, 200.0]))
    if lot:
        weight = np.trunc(weight * equity / price / lot) * lot * price / equity
    return equity, weight, target, price, limits, costs, lot, least


def sized(case):
    *arguments, lot, least = case
    return size_orders(*arguments, lot_size=lot, minimum_notional=least)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_rounding_leads_beyond_no_upper_limit(case):
    equity, weight, target, price, limits, costs, _, least = case
    found = excesses(sized(case).weight, limits)
    # Assets that are not traded weigh more as fees take equity; that is so without rounding too.
    unrounded = excesses(size_orders(equity, weight, target, price, limits, costs).weight, limits)
    # And a position worth less than the least order cannot be sold.
    stuck = float(((np.abs(weight) > 0.0) * (np.abs(weight) * equity < least)).sum()) * least / equity
    for name in set(found) - {LOWEST, LEAST_NET}:
        assert found[name] <= max(unrounded[name], 0.0) + 1e-9 + stuck, name


@settings(deadline=None, max_examples=80)
@given(cases())
def test_orders_are_whole_lots_and_large_enough(case):
    price, lot, least = case[3], case[-2], case[-1]
    orders = sized(case)
    sent = orders.change != 0.0
    assert (np.abs(orders.change * price)[sent] >= least * (1.0 - 1e-8)).all()
    if lot:
        np.testing.assert_allclose(orders.units / lot, np.round(orders.units / lot), rtol=1e-9, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(cases())
def test_the_accounting_pays_the_same_fees_for_the_same_orders(case):
    equity, weight, _, price, _, costs, *_ = case
    orders = sized(case)
    sent = orders.change != 0.0
    after, reached, turnover = rebalance_portfolio(
        np.asarray(equity),
        weight,
        np.where(sent, orders.target_weight, weight),
        1.0 * sent,
        cost_rate=costs.cost_rate,
        minimum_commission=costs.minimum_commission,
        slippage_rate=costs.slippage_rate,
    )
    assert float(after) == pytest.approx(equity - orders.costs.sum(), rel=1e-9)
    assert float(turnover) * equity == pytest.approx(np.abs(orders.change * price).sum(), rel=1e-9, abs=1e-9 * equity)
    np.testing.assert_allclose(reached[sent] * after / price[sent], orders.units[sent], rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_fractional_orders_are_the_accountings_own_trade(case):
    equity, weight, target, price, limits, costs, *_ = case
    orders = size_orders(equity, weight, target, price, limits, costs)
    after, reached, _ = rebalance_portfolio(
        np.asarray(equity),
        weight,
        target,
        1.0 * ((target != weight) | (costs.minimum_commission == 0.0)),
        cost_rate=costs.cost_rate,
        minimum_commission=costs.minimum_commission,
        slippage_rate=costs.slippage_rate,
    )
    assert orders.equity == pytest.approx(float(after), rel=1e-12)
    np.testing.assert_allclose(orders.weight, reached, atol=1e-9)


LIMITS = PortfolioLimits(lower=np.zeros(2), upper=np.ones(2), max_gross=1.0)
FREE = TransactionCosts(commission_rate=0.0)


def test_nothing_is_ordered_where_nothing_is_asked_for():
    orders = size_orders(100.0, np.array([0.5, 0.2]), np.full(2, np.nan), np.ones(2), LIMITS, FREE, lot_size=1.0)
    assert (orders.change == 0.0).all()
    assert np.isnan(orders.target_weight).all()


def test_lots_that_are_held_are_not_traded_for_a_rounding():
    weight = np.array([0.1 + 1e-16, 0.3])
    orders = size_orders(1_000.0, weight, weight, np.array([10.0, 10.0]), LIMITS, FREE, lot_size=1.0)
    assert orders.units.tolist() == [10.0, 30.0]


def test_a_sale_too_small_to_send_makes_room_elsewhere():
    # A falls from 60 to 59.5, too little to sell; B may then grow to 40 only, not to 40.5.
    orders = size_orders(
        100.0, np.array([0.6, 0.3]), np.array([0.595, 0.405]), np.ones(2), LIMITS, FREE, minimum_notional=1.0
    )
    np.testing.assert_allclose(orders.units, [60.0, 40.0])


def test_fees_are_the_larger_of_ticket_and_commission_plus_slippage():
    costs = TransactionCosts(commission_rate=0.001, minimum_commission=5.0, slippage_rate=0.0005)
    np.testing.assert_allclose(fill_costs(np.array([1_000.0, -10_000.0, 0.0]), costs), [5.5, 15.0, 0.0])


@pytest.mark.parametrize("equity", [0.0, -50.0, np.nan])
def test_an_account_with_nothing_left_sends_no_orders(equity):
    with pytest.raises(ValueError, match="equity must be a positive number at the fill"):
        size_orders(equity, np.array([0.5, 0.2]), np.array([0.2, 0.5]), np.ones(2), LIMITS, FREE)
