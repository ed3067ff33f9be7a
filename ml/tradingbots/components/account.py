"""One account advanced bar by bar: Python floats for one asset (fast), NumPy for a portfolio.

Both walk one bar as the semantics say: carry over the gap, trade to the target and pay, carry over the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, log
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.core.accounting import (
    carry,
    carry_portfolio,
    entry_basis,
    positive_part,
    rebalance,
    rebalance_portfolio,
    rebalance_with_minimum,
)
from ml.tradingbots.core.costs import accrued_interest, impact_rate

FloatArray = npt.NDArray[np.float64]

# Growth of one bar counts at least this in a log: a wiped-out account has a very bad reward, not an infinite one.
GROWTH_FLOOR = 1e-6


@dataclass(frozen=True)
class AccountState:
    """The account after a close. Currency unless said otherwise."""

    equity: float
    """Value of the account."""
    cash: float
    """Equity not held in assets; includes the proceeds of shorts, negative when borrowed."""
    weight: FloatArray
    """Signed share of equity held per asset; (n_assets,)."""
    position: FloatArray
    """Units held per asset, signed; (n_assets,)."""
    peak_equity: float
    """Highest value at any close of the episode."""


class SingleAssetAccount:
    """An account in one asset, on Python floats.

    After `advance`: `equity`, `weight`, `unrealised_return`, `drawdown`, and of the bar just walked `simple_return`,
    `log_return`, `turnover` and `costs` (currency).
    """

    def __init__(self, market: Market, config: TradingEnvConfig) -> None:
        self.costs_model = config.costs
        self.cost_rate = self.costs_model.cost_rate
        self.initial_balance = float(config.initial_balance)
        # Lists, not arrays: indexing a list gives a Python float, four times faster to compute with than a NumPy scalar.
        self._gap: list[float] | None = market.gap_return[:, 0].tolist() if market.bars.has_open else None
        self._session: list[float] = market.session_return[:, 0].tolist()
        self._gap_years: list[float] = market.gap_years.tolist()
        self._session_years: list[float] = market.session_years.tolist()
        self._impact = None
        if market.impact is not None:
            self._impact = (market.impact.daily_volatility[:, 0].tolist(), market.impact.daily_value[:, 0].tolist())
        self.reset()

    def reset(self) -> None:
        """Start flat with the initial balance."""
        self.equity = self.peak_equity = self.initial_balance
        self.weight = 0.0
        self.basis = 1.0
        self.drawdown = self.simple_return = self.log_return = self.turnover = self.costs = 0.0

    @property
    def unrealised_return(self) -> float:
        """Return of the open position since its average entry price; 0 when flat."""
        if self.weight == 0.0:
            return 0.0
        gain = 1.0 / self.basis - 1.0
        return gain if self.weight > 0.0 else -gain

    def advance(self, bar: int, target: float) -> None:
        """Walk from the close of `bar` to the next close.

        Args:
            bar: the bar whose close the account stands at.
            target: share of equity wanted after the fill and its costs; NaN sends no order.
        """
        start = equity = self.equity
        weight, basis = self.weight, self.basis
        if self._gap is not None:
            move = self._gap[bar]
            equity, weight = carry(equity, weight, move, self._interest(weight, self._gap_years[bar]))
            basis /= 1.0 + move
        self.turnover = self.costs = 0.0
        if not isnan(target) and equity > 0.0:  # An account that the gap wiped out trades no more.
            before = equity
            equity, self.turnover = self._trade(bar, equity, weight, target)
            self.costs = before - equity
            basis = entry_basis(basis, weight * before, target * equity)
            weight = target
        move = self._session[bar]
        equity, self.weight = carry(equity, weight, move, self._interest(weight, self._session_years[bar]))
        self.basis = basis / (1.0 + move)
        self.equity = equity
        growth = equity / start
        self.simple_return = growth - 1.0
        self.log_return = log(growth if growth > GROWTH_FLOOR else GROWTH_FLOOR)
        if equity > self.peak_equity:
            self.peak_equity = equity
        self.drawdown = 1.0 - equity / self.peak_equity

    def _interest(self, weight: float, years: float) -> float:
        if not self.costs_model.has_accruals:
            return 0.0
        return accrued_interest(self.costs_model, 1.0 - weight, positive_part(-weight), years)

    def _trade(self, bar: int, equity: float, weight: float, target: float) -> tuple[float, float]:
        costs, impact = self.costs_model, 0.0
        if self._impact is not None:
            notional = abs(target - weight) * abs(equity)
            impact = impact_rate(costs.impact_coefficient, self._impact[0][bar], notional, self._impact[1][bar])
        if costs.minimum_commission > 0.0:
            return rebalance_with_minimum(
                equity,
                weight,
                target,
                commission_rate=costs.commission_rate,
                slippage_rate=costs.slippage_rate + impact,
                minimum_commission=costs.minimum_commission,
            )
        return rebalance(equity, weight, target, cost_rate=self.cost_rate + impact)


class PortfolioAccount:
    """An account in several assets, on NumPy arrays; the attributes of `SingleAssetAccount` with an axis of assets."""

    def __init__(self, market: Market, config: TradingEnvConfig) -> None:
        self.costs_model = config.costs
        self.cost_rate = self.costs_model.cost_rate
        self.initial_balance = float(config.initial_balance)
        self.n_assets = market.n_assets
        self._gap = market.gap_return if market.bars.has_open else None
        self._session = market.session_return
        self._gap_years: list[float] = market.gap_years.tolist()
        self._session_years: list[float] = market.session_years.tolist()
        self._impact = market.impact
        self._all_ordered: Any = np.ones(self.n_assets)
        self.reset()

    def reset(self) -> None:
        """Start flat with the initial balance."""
        self.equity = self.peak_equity = self.initial_balance
        self.weight = np.zeros(self.n_assets)
        self.basis = np.ones(self.n_assets)
        self.drawdown = self.simple_return = self.log_return = self.turnover = self.costs = 0.0

    @property
    def unrealised_return(self) -> FloatArray:
        """Return of each open position since its average entry price; 0 where flat; (n_assets,)."""
        return np.sign(self.weight) * (1.0 / self.basis - 1.0)

    def advance(self, bar: int, target: FloatArray) -> None:
        """Walk from the close of `bar` to the next close; `target` is (n_assets,), NaN where no order is sent."""
        start = self.equity
        equity: Any = np.float64(start)
        weight, basis = self.weight, self.basis
        if self._gap is not None:
            move = self._gap[bar]
            equity, weight = carry_portfolio(equity, weight, move, self._interest(weight, self._gap_years[bar]))
            basis = basis / (1.0 + move)
        hold = np.isnan(target)
        self.turnover = self.costs = 0.0
        n_held = np.count_nonzero(hold)
        if equity > 0.0 and n_held < self.n_assets:  # An account that the gap wiped out trades no more.
            before, held = equity, weight
            equity, weight, turnover = self._trade(bar, equity, weight, target, hold if n_held else None)
            self.turnover, self.costs = float(turnover), float(before - equity)
            basis = entry_basis(basis, held * before, weight * equity)
        move = self._session[bar]
        equity, self.weight = carry_portfolio(equity, weight, move, self._interest(weight, self._session_years[bar]))
        self.basis = basis / (1.0 + move)
        self.equity = float(equity)
        growth = self.equity / start
        self.simple_return = growth - 1.0
        self.log_return = log(growth if growth > GROWTH_FLOOR else GROWTH_FLOOR)
        self.peak_equity = max(self.peak_equity, self.equity)
        self.drawdown = 1.0 - self.equity / self.peak_equity

    def _interest(self, weight: FloatArray, years: float) -> float:
        if not self.costs_model.has_accruals:
            return 0.0
        short = float(positive_part(-weight).sum())
        return accrued_interest(self.costs_model, 1.0 - float(weight.sum()), short, years)

    def _trade(
        self, bar: int, equity: FloatArray, weight: FloatArray, target: FloatArray, hold: npt.NDArray[np.bool_] | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        costs = self.costs_model
        ordered = self._all_ordered
        if hold is not None:
            ordered, target = 1.0 - hold, np.where(hold, weight, target)
        if costs.minimum_commission > 0.0:
            ordered = ordered * (target != weight)
        impact: FloatArray | float = 0.0
        if self._impact is not None:
            notional = abs(target - weight) * abs(equity)
            volatility, value = self._impact.daily_volatility[bar], self._impact.daily_value[bar]
            impact = impact_rate(costs.impact_coefficient, volatility, notional, value)
        return rebalance_portfolio(
            equity,
            weight,
            target,
            ordered,
            cost_rate=self.cost_rate + impact,
            minimum_commission=costs.minimum_commission,
            slippage_rate=costs.slippage_rate + impact,
        )
