"""From target weights to orders in units: whole lots, least notionals and fees, within the limits.

A target is a share of equity after costs, as everywhere (`accounting.rebalance_portfolio`). Positions are rounded toward zero
to whole lots, orders below the least notional are not sent, and where that leaves more than the limits allow (a small sale
that was not sent, a short that was rounded), positions are cut by further lots until they fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.tradingbots.core.accounting import rebalance_portfolio
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.core.portfolio_constraints import BoolArray, FloatArray, PortfolioLimits

# Units come from weights times equity over price, exact to about 1e-12: what is so close to a lot is one.
_LOT_ROUNDING = 1e-9
# Excess over a limit that is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class SizedOrders:
    """Orders that lead from one portfolio to another; (n_assets,) unless said otherwise."""

    units: FloatArray
    """Signed units held after the fills."""
    change: FloatArray
    """Signed units to buy (positive) or sell, 0 where no order is sent."""
    price: FloatArray
    """Fill price, in account currency."""
    costs: FloatArray
    """Commission and slippage of each fill, in account currency."""
    equity: float
    """Value of the account after the fills and their costs."""

    @property
    def target_weight(self) -> FloatArray:
        """Share of equity after costs that each order leads to, NaN where none is sent."""
        return np.where(self.change != 0.0, self.units * self.price / self.equity, np.nan)

    @property
    def weight(self) -> FloatArray:
        """Signed share of equity held after the fills."""
        return self.units * self.price / self.equity


def fill_costs(notional: FloatArray, costs: TransactionCosts) -> FloatArray:
    """Return what fills cost, in account currency: the larger of commission and ticket, and slippage.

    Args:
        notional: traded in each fill, 0 for none, of either sign; (...).
        costs: the rates; market impact is not among what is charged here.

    >>> fill_costs(np.array([1_000.0, -10.0, 0.0]), TransactionCosts(commission_rate=0.01, minimum_commission=2.0)).tolist()
    [10.0, 2.0, 0.0]
    """
    size = np.abs(notional)
    commission = np.where(size > 0.0, np.maximum(costs.commission_rate * size, costs.minimum_commission), 0.0)
    return commission + costs.slippage_rate * size


def size_orders(
    equity: float,
    weight: FloatArray,
    target: FloatArray,
    price: FloatArray,
    limits: PortfolioLimits,
    costs: TransactionCosts,
    *,
    lot_size: float = 0.0,
    minimum_notional: float = 0.0,
) -> SizedOrders:
    """Turn a target into orders.

    Upper limits (exposures, groups, largest sizes of weights, and with `max_net` the cash) are kept by the positions after the
    fills, except by as much as the target itself exceeds them: assets without an order may have drifted. Lower ones may be
    missed by a lot per asset.

    Args:
        equity: value of the account before the fills, in account currency, above 0.
        weight: signed shares of equity held; (n_assets,).
        target: shares wanted after the fills and their costs, NaN where no order is sent; (n_assets,).
        price: fill prices; (n_assets,).
        limits: what the positions must keep.
        costs: what fills pay.
        lot_size: positions are whole multiples of it, in units; 0 trades fractions.
        minimum_notional: least |units × price| of an order, in account currency.

    Returns:
        The orders.

    Raises:
        ValueError: nothing is left of the account: shares of it are no positions.

    >>> limits = PortfolioLimits(lower=np.zeros(2), upper=np.ones(2), max_gross=1.0)
    >>> orders = size_orders(1_000.0, np.zeros(2), np.array([0.5, 0.5]), np.array([300.0, 70.0]), limits,
    ...                      TransactionCosts(commission_rate=0.0), lot_size=1.0)
    >>> orders.change.tolist()
    [1.0, 7.0]
    """
    if not 0.0 < equity < np.inf:
        raise ValueError(
            f"equity must be a positive number at the fill, got {equity}: nothing is left to size orders by. Check the "
            "prices, or close the positions by hand"
        )
    sizing = _Sizing(equity, weight, target, price, limits, costs, lot_size, minimum_notional)
    units = sizing.without_small(sizing.in_lots(sizing.wanted))
    # Every round cuts a position, by what is missing or all of it; fees move what is missing a little each time.
    for _ in range(50 + 10 * len(units)):
        fewer = sizing.cut(units)
        if fewer is None:
            break
        units = fewer
    change = units - sizing.held
    return SizedOrders(
        units=units, change=change, price=price, costs=fill_costs(change * price, costs), equity=sizing.after(units)
    )


class _Sizing:
    """What orders of one moment are sized with."""

    def __init__(
        self,
        equity: float,
        weight: FloatArray,
        target: FloatArray,
        price: FloatArray,
        limits: PortfolioLimits,
        costs: TransactionCosts,
        lot_size: float,
        minimum_notional: float,
    ) -> None:
        self.equity, self.price, self.costs = equity, price, costs
        self.lot_size, self.minimum_notional = lot_size, minimum_notional
        self.least_sent = minimum_notional * (1.0 - _LOT_ROUNDING)
        hold = np.isnan(target)
        self.held: FloatArray = self._snapped(weight * equity / price)
        # The fill without lots: the house's own arithmetic.
        target = np.where(hold, weight, target)
        ordered = np.where(hold | ((target == weight) & (costs.minimum_commission > 0.0)), 0.0, 1.0)
        after, reached, _ = rebalance_portfolio(
            np.asarray(equity),
            weight,
            target,
            ordered,
            cost_rate=costs.cost_rate,
            minimum_commission=costs.minimum_commission,
            slippage_rate=costs.slippage_rate,
        )
        self.fixed: BoolArray = ordered == 0.0
        self.wanted: FloatArray = np.where(self.fixed, self.held, reached * after / price)
        self.assets, self.sums, self.caps = _measures(limits, reached)
        self.caps = np.maximum(self.caps, self._used(reached))

    def in_lots(self, units: FloatArray) -> FloatArray:
        """Round positions with an order toward zero to whole lots."""
        if self.lot_size == 0.0:
            return units
        lots = np.abs(units) / self.lot_size
        whole = np.floor(lots + _LOT_ROUNDING * np.maximum(lots, 1.0)) * self.lot_size
        return np.where(self.fixed, self.held, np.sign(units) * whole)

    def without_small(self, units: FloatArray) -> FloatArray:
        """Leave out orders below the least notional."""
        small = np.abs(units - self.held) * self.price < self.least_sent
        return np.where(small, self.held, units)

    def after(self, units: FloatArray) -> float:
        """Return the equity after fills that lead to these positions."""
        return self.equity - float(fill_costs((units - self.held) * self.price, self.costs).sum())

    def cut(self, units: FloatArray) -> FloatArray | None:
        """Cut one position where a limit is exceeded; None where none is, or none that has an order can help."""
        after = self.after(units)
        weight = units * self.price / after
        over = self._used(weight) - self.caps
        for row in np.argsort(-over):
            if over[row] <= _ROUNDING:
                return None
            side = self.assets[row] if self.sums[row] else self.assets[row] * np.sign(weight)
            fewer = self._reduced(units, (side * weight > 0.0) & ~self.fixed, float(over[row]) * after)
            if fewer is not None:
                return fewer
        return None

    def _reduced(self, units: FloatArray, helpful: BoolArray, notional: float) -> FloatArray | None:
        """Take a notional off one position: the one that grew most, or the largest where none grew or could be cut."""
        grown = (np.abs(units) - np.abs(self.held)) * self.price
        preference = np.where(grown > 0.0, grown + np.abs(units @ self.price), np.abs(units) * self.price)
        for place in np.argsort(-preference):
            found = self._smaller(int(place), float(units[place]), notional) if helpful[place] else None
            if found is not None:
                fewer = units.copy()
                fewer[place] = found
                return fewer
        return None

    def _smaller(self, place: int, units: float, notional: float) -> float | None:
        """Return a smaller position in one asset that an order can reach, by a notional if it can be; None for none."""
        price, held = float(self.price[place]), float(self.held[place])
        side = 1.0 if units > 0.0 else -1.0
        cut = max(abs(units) - self._in_whole_lots(notional / price), 0.0)
        least = max(held * side - self._in_whole_lots(self.minimum_notional / price), 0.0)
        # What is left, what is held, or as much off what is held as an order must be.
        for found in (side * cut, held, side * least):
            can_be_sent = found == held or abs(found - held) * price >= self.least_sent
            if can_be_sent and abs(found) < abs(units):
                return found
        return None

    def _in_whole_lots(self, units: float) -> float:
        """Round up to whole lots."""
        if self.lot_size == 0.0:
            return units
        return float(np.ceil(units / self.lot_size - _LOT_ROUNDING)) * self.lot_size

    def _snapped(self, units: FloatArray) -> FloatArray:
        """Return units that are whole lots but for rounding as whole lots."""
        if self.lot_size == 0.0:
            return units
        lots = units / self.lot_size
        whole = np.round(lots)
        return np.where(
            np.abs(lots - whole) < _LOT_ROUNDING * np.maximum(np.abs(lots), 1.0), whole * self.lot_size, units
        )

    def _used(self, weight: FloatArray) -> FloatArray:
        used: FloatArray = np.where(self.sums, self.assets @ weight, self.assets @ np.abs(weight))
        return used


def _measures(limits: PortfolioLimits, weight: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_], FloatArray]:
    """Return the limits that cutting positions can keep.

    Returns:
        The assets of each limit, 0 or 1; whether it is on the sum of weights, not of sizes; and its value: (n_limits,
        n_assets), (n_limits,), (n_limits,).
    """
    n = limits.n_assets
    one, bound = np.ones((1, n)), np.where(weight >= 0.0, limits.upper, -limits.lower)
    rows = [one, one, limits.members.astype(np.float64), np.eye(n)]
    caps = np.concatenate([[limits.max_gross, limits.max_net], limits.group_caps, bound])
    sums = np.zeros(len(caps), dtype=bool)
    sums[1] = True
    return np.vstack(rows), sums, caps
