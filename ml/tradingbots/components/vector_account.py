"""Many accounts advanced together, as float64 tensors: (n_accounts,) for one asset, (n_accounts, n_assets) for a portfolio."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.vector_restart import Restarting
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


class VectorAccount:
    """`n_accounts` accounts over one market; the batched form of `SingleAssetAccount` and `PortfolioAccount`.

    After `advance`: `equity`, `weight`, `basis`, `drawdown`, and of the bar just walked `growth` (E'/E), `turnover` and
    `costs` (currency).
    """

    def __init__(self, market: Market, config: TradingEnvConfig, n_accounts: int, device: torch.device) -> None:
        def tensor(values: Any) -> Tensor:
            return torch.tensor(np.asarray(values), dtype=torch.float64, device=device)

        self.single = market.n_assets == 1
        self.n_accounts, self.n_assets = n_accounts, market.n_assets
        self.config, self.costs_model, self.device = config, config.costs, device
        self._gap = tensor(self._columns(market.gap_return)) if market.bars.has_open else None
        self._session = tensor(self._columns(market.session_return))
        self._gap_years, self._session_years = tensor(market.gap_years), tensor(market.session_years)
        self._impact: tuple[Tensor, Tensor] | None = None
        if market.impact is not None:
            impact = market.impact
            self._impact = (tensor(self._columns(impact.daily_volatility)), tensor(self._columns(impact.daily_value)))
        self.choice_weights = tensor([float("nan"), config.max_weight, config.min_weight])
        self._shape = (n_accounts,) if self.single else (n_accounts, market.n_assets)
        # Without discrete holds, delays or NaN actions from outside, orders are always sent; a hold is a NaN target.
        self.reset()

    def reset(self) -> None:
        """Start flat with the initial balance."""
        balance = float(self.config.initial_balance)
        self.equity = torch.full((self.n_accounts,), balance, dtype=torch.float64, device=self.device)
        self.peak_equity = self.equity.clone()
        self.weight = torch.zeros(self._shape, dtype=torch.float64, device=self.device)
        self.basis = torch.ones_like(self.weight)
        self.drawdown = torch.zeros_like(self.equity)
        self.growth = torch.ones_like(self.equity)
        self.turnover = torch.zeros_like(self.equity)
        self.costs = torch.zeros_like(self.equity)
        nan = torch.full_like(self.weight, torch.nan)
        self._under_way = [nan.clone() for _ in range(self.config.execution_delay)]

    def restart(self, accounts: Restarting) -> None:
        """Start some accounts anew; what the bar just walked did to them (`growth`, `turnover`, `costs`) stays."""
        self.equity = accounts.fill(self.equity, self.config.initial_balance)
        self.peak_equity = accounts.fill(self.peak_equity, self.config.initial_balance)
        self.weight = accounts.fill(self.weight, 0.0)
        self.basis = accounts.fill(self.basis, 1.0)
        self.drawdown = accounts.fill(self.drawdown, 0.0)
        self._under_way = [accounts.fill(order, torch.nan) for order in self._under_way]

    def advance(self, bar: Tensor, target: Tensor) -> None:
        """Walk every account from the close of its `bar` to the next; `target` is NaN where no order is sent."""
        if self._under_way:
            self._under_way.append(target)
            target = self._under_way.pop(0)
        start = equity = self.equity
        weight, basis = self.weight, self.basis
        if self._gap is not None:
            move = self._gap.index_select(0, bar)
            equity, weight = self._carry(equity, weight, move, self._interest(weight, self._gap_years, bar))
            basis = basis / (1.0 + move)
        before, held = equity, weight
        equity, weight, self.turnover = self._trade(bar, equity, weight, target)
        self.costs = before - equity
        if self.single:
            basis = entry_basis(basis, held * before, weight * equity)
        else:
            basis = entry_basis(basis, held * before[:, None], weight * equity[:, None])
        move = self._session.index_select(0, bar)
        self.equity, self.weight = self._carry(equity, weight, move, self._interest(weight, self._session_years, bar))
        self.basis = basis / (1.0 + move)
        self.growth = self.equity / start
        self.peak_equity = torch.maximum(self.peak_equity, self.equity)
        self.drawdown = 1.0 - self.equity / self.peak_equity

    def features(self) -> Tensor:
        """Account part of the observation, float32 (n_accounts, account_dim); see `TradingEnvironment`."""
        unrealised = self.weight.sign() * (1.0 / self.basis - 1.0)
        waiting = [torch.where(order.isnan(), self.weight, order) for order in self._under_way]
        if self.single:
            return torch.stack([self.weight, unrealised, self.drawdown, *waiting], 1).float()
        return torch.cat([self.weight, unrealised, self.drawdown[:, None], *waiting], 1).float()

    def limit(self, target: Tensor) -> Tensor:
        """Scale targets down to the gross exposure limit; assets without an order keep their weight and take room first."""
        limit = self.config.max_gross_exposure
        if self.single:
            return target.clamp(-limit, limit)
        hold = target.isnan()
        room = (limit - torch.where(hold, self.weight.abs(), 0.0).sum(1)).clamp_min(0.0)
        room = torch.where(hold.any(1), room, limit)
        gross = torch.where(hold, 0.0, target.abs()).sum(1)
        scale = torch.where(gross > room, room / gross, 1.0)
        return target * scale[:, None]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the accounts go on."""
        names = ("equity", "peak_equity", "weight", "basis", "drawdown")
        return {name: getattr(self, name) for name in names} | {"under_way": list(self._under_way)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in ("equity", "peak_equity", "weight", "basis", "drawdown"):
            setattr(self, name, state[name].to(self.device))
        self._under_way = [order.to(self.device) for order in state["under_way"]]

    def _columns(self, table: Any) -> Any:
        """Drop the axis of assets where there is only one."""
        return table[:, 0] if self.single else table

    def _carry(self, equity: Tensor, weight: Tensor, move: Tensor, accrual: Tensor | float) -> tuple[Tensor, Tensor]:
        return (carry if self.single else carry_portfolio)(equity, weight, move, accrual)

    def _interest(self, weight: Tensor, years: Tensor, bar: Tensor) -> Tensor | float:
        if not self.costs_model.has_accruals:
            return 0.0
        short, net = positive_part(-weight), weight
        if not self.single:
            short, net = short.sum(-1), weight.sum(-1)
        return accrued_interest(self.costs_model, 1.0 - net, short, years.index_select(0, bar))

    def _trade(self, bar: Tensor, equity: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        costs = self.costs_model
        hold = target.isnan()
        if self._gap is not None:  # An account that the gap wiped out trades no more.
            ruined = equity <= 0.0
            hold = hold | (ruined if self.single else ruined[:, None])
        target = torch.where(hold, weight, target)
        impact: Tensor | float = 0.0
        if self._impact is not None:
            volatility, value = (values.index_select(0, bar) for values in self._impact)
            size = (target - weight).abs() * (equity if self.single else equity[:, None]).abs()
            impact = impact_rate(costs.impact_coefficient, volatility, size, value)
        if not self.single:
            ordered = (~hold).double()
            if costs.minimum_commission > 0.0:
                ordered = ordered * (target != weight)
            return rebalance_portfolio(
                equity,
                weight,
                target,
                ordered,
                cost_rate=costs.cost_rate + impact,
                minimum_commission=costs.minimum_commission,
                slippage_rate=costs.slippage_rate + impact,
            )
        if costs.minimum_commission > 0.0:
            equity, turnover = rebalance_with_minimum(
                equity,
                weight,
                target,
                commission_rate=costs.commission_rate,
                slippage_rate=costs.slippage_rate + impact,
                minimum_commission=costs.minimum_commission,
            )
        else:
            equity, turnover = rebalance(equity, weight, target, cost_rate=costs.cost_rate + impact)
        return equity, target, turnover
