"""Many accounts advanced together, as float64 tensors: (n_accounts,) for one asset, (n_accounts, n_assets) for a portfolio."""

from __future__ import annotations

from dataclasses import dataclass
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

# From some number of accounts on PyTorch's threads win.
MOST_NUMPY_ACCOUNTS = 16_384


@dataclass(frozen=True, slots=True)
class _Tables:
    """What the market does at each bar, as arrays of one library: (n_bars,) for one asset, else (n_bars, n_assets)."""

    module: Any
    """NumPy or torch."""
    gap: Any
    """Return from the close to the next open; None without opens."""
    session: Any
    """Return from there to the next close."""
    gap_years: Any
    session_years: Any
    impact: tuple[Any, Any] | None
    """Daily volatility and daily traded value."""

    @classmethod
    def of(cls, market: Market) -> _Tables:
        """Return them as NumPy arrays."""

        def columns(table: Any) -> Any:
            values = np.asarray(table, dtype=np.float64)
            return np.ascontiguousarray(values[:, 0]) if market.n_assets == 1 else values

        impact = market.impact
        return cls(
            np,
            columns(market.gap_return) if market.bars.has_open else None,
            columns(market.session_return),
            np.asarray(market.gap_years, dtype=np.float64),
            np.asarray(market.session_years, dtype=np.float64),
            None if impact is None else (columns(impact.daily_volatility), columns(impact.daily_value)),
        )

    def on(self, device: torch.device) -> _Tables:
        """Return them as tensors."""

        def tensor(values: Any) -> Any:
            return None if values is None else torch.tensor(values, dtype=torch.float64, device=device)

        impact = None if self.impact is None else (tensor(self.impact[0]), tensor(self.impact[1]))
        years = tensor(self.gap_years), tensor(self.session_years)
        return _Tables(torch, tensor(self.gap), tensor(self.session), *years, impact)


class VectorAccount:
    """`n_accounts` accounts over one market; the batched form of `SingleAssetAccount` and `PortfolioAccount`.

    After `advance`: `equity`, `weight`, `basis`, `drawdown`, and of the bar just walked `growth` (E'/E), `turnover` and
    `costs` (currency). Where `synchronous`, values may be looked at outside the device's queue.
    """

    def __init__(
        self, market: Market, config: TradingEnvConfig, n_accounts: int, device: torch.device, *, synchronous: bool
    ) -> None:
        self.single = market.n_assets == 1
        self.n_accounts, self.n_assets = n_accounts, market.n_assets
        self.config, self.costs_model, self.device = config, config.costs, device
        arrays = _Tables.of(market)
        self._tables = arrays.on(device)
        # The two libraries sum over assets in different orders, and differ in the last bit of roots and of a number over an
        # array, which impact and tickets need.
        same_bits = self.single and market.impact is None and config.minimum_commission == 0.0
        takes_numpy = same_bits and synchronous and device.type == "cpu" and n_accounts <= MOST_NUMPY_ACCOUNTS
        self._arrays = arrays if takes_numpy else None
        weights = [float("nan"), config.max_weight, config.min_weight]
        self.choice_weights = torch.tensor(weights, dtype=torch.float64, device=device)
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
        state = (self.equity, self.peak_equity, self.weight, self.basis)
        if self._arrays is None:
            walked = self._walk(self._tables, bar, target, *state)
        else:
            # The same numbers, bit for bit, in a third of the time: a call of NumPy's costs less.
            arrays = [values.numpy() for values in (bar, target, *state)]
            with np.errstate(all="ignore"):
                walked = tuple(torch.from_numpy(values) for values in self._walk(self._arrays, *arrays))
        self.equity, self.peak_equity, self.weight, self.basis, *rest = walked
        self.growth, self.drawdown, self.turnover, self.costs = rest

    def _walk(
        self, tables: _Tables, bar: Any, target: Any, equity: Any, peak: Any, weight: Any, basis: Any
    ) -> tuple[Any, ...]:
        """Walk one bar with arrays of either library.

        Returns:
            Equity, its peak, weight and basis after the bar; growth, drawdown, turnover and costs of the bar.
        """
        start = equity
        if tables.gap is not None:
            move = tables.gap[bar]
            equity, weight = self._carry(equity, weight, move, self._interest(weight, tables.gap_years, bar))
            basis = basis / (1.0 + move)
        before, held = equity, weight
        equity, weight, turnover = self._trade(tables, bar, equity, weight, target)
        costs = before - equity
        if self.single:
            basis = entry_basis(basis, held * before, weight * equity)
        else:
            basis = entry_basis(basis, held * before[:, None], weight * equity[:, None])
        move = tables.session[bar]
        equity, weight = self._carry(equity, weight, move, self._interest(weight, tables.session_years, bar))
        peak = tables.module.maximum(peak, equity)
        return equity, peak, weight, basis / (1.0 + move), equity / start, 1.0 - equity / peak, turnover, costs

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

    def _carry(self, equity: Any, weight: Any, move: Any, accrual: Any) -> tuple[Any, Any]:
        return (carry if self.single else carry_portfolio)(equity, weight, move, accrual)

    def _interest(self, weight: Any, years: Any, bar: Any) -> Any:
        if not self.costs_model.has_accruals:
            return 0.0
        short, net = positive_part(-weight), weight
        if not self.single:
            short, net = short.sum(-1), weight.sum(-1)
        return accrued_interest(self.costs_model, 1.0 - net, short, years[bar])

    def _trade(self, tables: _Tables, bar: Any, equity: Any, weight: Any, target: Any) -> tuple[Any, Any, Any]:
        costs, where = self.costs_model, tables.module.where
        hold = tables.module.isnan(target)
        if tables.gap is not None:  # An account that the gap wiped out trades no more.
            ruined = equity <= 0.0
            hold = hold | (ruined if self.single else ruined[:, None])
        target = where(hold, weight, target)
        impact: Any = 0.0
        if tables.impact is not None:
            volatility, value = (values[bar] for values in tables.impact)
            size = abs(target - weight) * abs(equity if self.single else equity[:, None])
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
