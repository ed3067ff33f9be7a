"""How an account's equity moves: from one bar's prices and one decision to the next.

Every simulator of the project calls these functions, so that a strategy earns the same in all of them. They use operators
only (`+ - * /`, `abs()` and comparisons): the same code runs on Python floats, NumPy arrays, torch tensors on any device
and, compiled with `numba.njit(function)`, inside kernels, where Numba takes keyword-only arguments by position. The
`_portfolio` forms add a last axis of assets and a sum over it (NumPy and torch).

An account is its `equity` E (currency) and its `weight` w (signed share of equity held in an asset); the cash share is
1 − Σw. Prices are exogenous: nothing here moves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    Number = TypeVar("Number", float, npt.NDArray[np.float64], torch.Tensor)
    Array = TypeVar("Array", npt.NDArray[np.float64], torch.Tensor)

# Newton steps that solve the portfolio's trade for x. The equation is convex and piecewise linear, so each step is exact
# until an asset changes side, which only trades of the size of the fee itself do, and each step shrinks what is left by
# the cost rate.
N_NEWTON_STEPS = 3


def positive_part(x: Number) -> Number:
    """Return max(x, 0), with operators only.

    >>> positive_part(3.0), positive_part(-3.0)
    (3.0, 0.0)
    """
    return (abs(x) + x) * 0.5


def carry(equity: Number, weight: Number, asset_return: Number, accrual: Number | float = 0.0) -> tuple[Number, Number]:
    """Hold the position while the price moves.

    Args:
        equity: value of the account before the move, in account currency.
        weight: signed share of equity held in the asset.
        asset_return: simple return of the asset over the move, a fraction.
        accrual: interest earned (positive) or paid (negative) over the move, as a fraction of equity.

    Returns:
        The equity after the move and the weight, which drifts with the price: E·g and w(1 + r)/g with g = 1 + w·r + accrual.
        Where g is exactly 0 nothing is left to take a share of, and the weight is w(1 + r).

    >>> carry(100.0, 0.5, 0.10)
    (105.0, 0.5238095238095238)
    """
    growth = 1.0 + weight * asset_return + accrual
    return equity * growth, weight * (1.0 + asset_return) / (growth + (growth == 0.0))


def rebalance(
    equity: Number, weight: Number, target_weight: Number, *, cost_rate: Number | float
) -> tuple[Number, Number]:
    """Trade the account to its target, which is the share of equity *after* costs.

    With x the equity after over the equity before, x = 1 − k|w*·x − w|, whose solution is x = (1 + s·k·w)/(1 + s·k·w*),
    s the sign of w* − w. A fully invested account therefore never borrows to pay its fees.

    Args:
        equity: value of the account before the trade, in account currency.
        weight: signed share of equity held before the trade.
        target_weight: signed share of equity wanted after the trade and its costs.
        cost_rate: k, commission plus slippage as a fraction of the notional traded (0.001 is 10 basis points).

    Returns:
        The equity after costs, and the turnover: notional traded as a fraction of equity before the trade.

    >>> rebalance(100.0, 0.0, 1.0, cost_rate=0.01)
    (99.00990099009901, 0.9900990099009901)
    >>> rebalance(100.0, 1.0, 1.0, cost_rate=0.01)
    (100.0, 0.0)
    """
    side = 1.0 * (target_weight > weight) - 1.0 * (target_weight < weight)
    # The brackets matter: a side times a Python number would be float32 in torch, a side times a float64 tensor is not.
    remaining = (1.0 + side * (cost_rate * weight)) / (1.0 + side * (cost_rate * target_weight))
    return equity * remaining, abs(target_weight * remaining - weight)


def rebalance_with_minimum(
    equity: Number,
    weight: Number,
    target_weight: Number,
    *,
    commission_rate: Number | float,
    slippage_rate: Number | float,
    minimum_commission: float,
) -> tuple[Number, Number]:
    """Trade to the target where each fill pays at least a minimum commission.

    The fill pays the larger of `commission_rate` × notional and `minimum_commission`, plus slippage. An order is sent
    wherever the target differs from the weight held, however small: tickets are what small orders cost.

    Args:
        equity: value of the account before the trade, in account currency.
        weight: signed share of equity held before the trade.
        target_weight: signed share of equity wanted after the trade and its costs.
        commission_rate: fraction of notional.
        slippage_rate: adverse fraction of the price, market impact included.
        minimum_commission: least commission of one fill, in account currency.

    Returns:
        The equity after costs, and the turnover as a fraction of equity before the trade.

    >>> rebalance_with_minimum(100.0, 0.0, 0.5, commission_rate=0.0, slippage_rate=0.0, minimum_commission=2.0)
    (98.0, 0.49)
    """
    # `rebalance` at the full rate, written out: Numba cannot compile a call to a function that is not compiled yet.
    rate = commission_rate + slippage_rate
    side = 1.0 * (target_weight > weight) - 1.0 * (target_weight < weight)
    remaining = (1.0 + side * (rate * weight)) / (1.0 + side * (rate * target_weight))
    by_rate, traded = equity * remaining, abs(target_weight * remaining - weight)
    ordered = 1.0 * (target_weight != weight)
    # The ticket comes off first; the rest of the equity is brought to its target and pays slippage only.
    ticket = minimum_commission / equity
    side = 1.0 * (target_weight * (1.0 - ticket) > weight) - 1.0 * (target_weight * (1.0 - ticket) < weight)
    remaining = (1.0 - ticket + side * (slippage_rate * weight)) / (1.0 + side * (slippage_rate * target_weight))
    by_ticket = equity * remaining
    binding = ordered * (commission_rate * traded < ticket)
    return (
        binding * by_ticket + (1.0 - binding) * by_rate,
        binding * abs(target_weight * remaining - weight) + (1.0 - binding) * traded,
    )


def entry_basis(basis: Number, held: Number, wanted: Number) -> Number:
    """Average entry price over the fill price, after a fill.

    Adding to a position averages its entry price, reducing it leaves the entry price alone, and a position that is opened
    or flipped enters at the fill price.

    Args:
        basis: average entry price of the position held, divided by the fill price; any value where nothing is held.
        held: notional held before the fill, signed, as a fraction of any fixed amount.
        wanted: notional held after it, signed, as a fraction of the same amount.

    Returns:
        Average entry price after the fill over the fill price; 1 where nothing is held.

    >>> entry_basis(0.5, 1.0, 2.0), entry_basis(0.5, 1.0, 0.4), entry_basis(0.5, 1.0, -1.0), entry_basis(0.5, 1.0, 0.0)
    (0.75, 0.5, 1.0, 1.0)
    """
    nothing = wanted == 0.0
    ratio = held / (wanted + nothing)
    # The share of the position wanted that was held already: the ratio cut to [0, 1], and 0 where nothing is wanted.
    kept = 0.5 * (1.0 + abs(ratio) - abs(ratio - 1.0)) * (wanted != 0.0)
    basis_after: Number = 1.0 + (basis - 1.0) * kept
    return basis_after


def carry_portfolio(
    equity: Array, weight: Array, asset_return: Array, accrual: Array | float = 0.0
) -> tuple[Array, Array]:
    """Hold several positions while prices move; the form of `carry` with an axis of assets.

    Args:
        equity: value of each account, in account currency; (...,).
        weight: signed shares of equity; (..., n_assets).
        asset_return: simple returns, fractions; (..., n_assets).
        accrual: interest as a fraction of equity, positive when earned; (...,) or a number.

    Returns:
        Equity (...,) and drifted weights (..., n_assets).

    >>> equity, weight = carry_portfolio(np.array([100.0]), np.array([[0.5, 0.5]]), np.array([[0.2, 0.0]]))
    >>> equity, weight.round(4)
    (array([110.]), array([[0.5455, 0.4545]]))
    """
    growth = 1.0 + _sum_product(weight, asset_return) + accrual
    return equity * growth, weight * (1.0 + asset_return) / (growth + (growth == 0.0))[..., None]


def rebalance_portfolio(
    equity: Array,
    weight: Array,
    target_weight: Array,
    ordered: Array,
    *,
    cost_rate: Array | float,
    minimum_commission: float = 0.0,
    slippage_rate: Array | float = 0.0,
) -> tuple[Array, Array, Array]:
    """Trade several assets to their targets, which are shares of equity after all costs.

    Solves x = 1 − Σ k|w*·x − w| over the assets with an order, by Newton's method from x = 1: the left side minus the right
    is convex, increasing and piecewise linear, so the steps fall monotonically onto the root.

    Args:
        equity: value of each account before the trade, in account currency; (...,).
        weight: signed shares of equity held before the trade; (..., n_assets).
        target_weight: signed shares wanted after the trade, finite also where no order is sent; (..., n_assets).
        ordered: 1.0 where an order is sent, 0.0 where the units are kept; (..., n_assets).
        cost_rate: commission plus slippage, fraction of notional; a number or (..., n_assets).
        minimum_commission: least commission of one fill, in account currency; with it, `slippage_rate` says which part of
            `cost_rate` is not commission.
        slippage_rate: see `minimum_commission`.

    Returns:
        Equity after costs (...,), weights after the trade (..., n_assets) and turnover (...,) as a fraction of the equity
        before it.

    >>> equity, weight, turnover = rebalance_portfolio(
    ...     np.array([100.0]), np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), np.ones((1, 2)), cost_rate=0.01)
    >>> float(equity[0].round(6)), float(turnover[0].round(6))
    (98.019802, 1.980198)
    """
    # An asset without an order has rate 0: it drops out of both sums.
    rate = ordered * cost_rate
    if minimum_commission > 0.0:
        remaining = _solve_with_tickets(equity, weight, target_weight, ordered, rate, slippage_rate, minimum_commission)
    else:
        remaining = _solve(equity, weight, target_weight, rate)
    trade = ordered * (target_weight * remaining[..., None] - weight)
    # Tickets can take the last of the equity; as in `carry`, nothing is then left to take a share of.
    return equity * remaining, (weight + trade) / (remaining + (remaining == 0.0))[..., None], abs(trade).sum(-1)


def _sum_product(left: Array, right: Array) -> Array:
    """Sum of products over the last axis; one account alone takes the dot product, four times faster in NumPy."""
    total: Array = left @ right if left.ndim == 1 else (left * right).sum(-1)
    return total


def _solve(equity: Array, weight: Array, target_weight: Array, rate: Array) -> Array:
    """Solve x = 1 − Σ rate|w*·x − w| for x.

    With s the sides of the trades, x = (1 + Σ s·rate·w)/(1 + Σ s·rate·w*); where a trade is nil either side will do.
    """
    paid_on_held, paid_on_target = rate * weight, rate * target_weight
    held_sold, target_sold = 1.0 - paid_on_held.sum(-1), 1.0 - paid_on_target.sum(-1)  # Every side −1.
    held_turned, target_turned = 2.0 * paid_on_held, 2.0 * paid_on_target  # What turning a side to +1 adds.
    scaled = target_weight  # The first step starts from x = 1.
    for step in range(N_NEWTON_STEPS):
        bought: Any = 1.0 * (scaled > weight)
        turned = _sum_product(bought, held_turned), _sum_product(bought, target_turned)
        remaining: Array = (held_sold + turned[0]) / (target_sold + turned[1])
        if step < N_NEWTON_STEPS - 1:
            scaled = target_weight * remaining[..., None]
    return remaining


def _solve_with_tickets(
    equity: Array,
    weight: Array,
    target_weight: Array,
    ordered: Array,
    rate: Array,
    slippage_rate: Array | float,
    minimum_commission: float,
) -> Array:
    """Solve for x when a fill pays max(commission, ticket) plus slippage; still convex and piecewise linear in x."""
    ticket = ordered * (minimum_commission / equity)[..., None]
    slippage = ordered * slippage_rate
    commission = rate - slippage
    remaining = 1.0 + 0.0 * equity
    for _ in range(2 * N_NEWTON_STEPS):  # A fill can change between ticket and rate as well as between sides.
        trade = target_weight * remaining[..., None] - weight
        side = 2.0 * (trade > 0.0) - 1.0
        by_rate = 1.0 * (abs(trade) * commission > ticket)
        signed_rate = side * (slippage + commission * by_rate)
        tickets = (ticket * (1.0 - by_rate)).sum(-1)
        remaining = (1.0 - tickets + (signed_rate * weight).sum(-1)) / (1.0 + (signed_rate * target_weight).sum(-1))
    return remaining
