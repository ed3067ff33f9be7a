"""`Trajectory`: what one strategy did on one price table, and the figures that describe it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ml.tradingbots.core.metrics import (
    annual_return,
    annual_volatility,
    average_turnover,
    calmar_ratio,
    max_drawdown,
    sharpe_ratio,
    simple_returns,
    sortino_ratio,
    total_return,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """One deterministic pass of one strategy over one price table.

    Close 0 is the last close before the first decision; step t leads from close t to close t + 1.
    """

    name: str
    """What tables and legends call the strategy, for example `sac` or `buy_and_hold`."""
    timestamps: pd.DatetimeIndex
    """When each close became known; (n_steps + 1,)."""
    assets: tuple[str, ...]
    """Names of the assets, in the order of the columns of `weights`; n_assets of them."""
    equity_curve: FloatArray
    """Account value at each close, in account currency; (n_steps + 1,)."""
    weights: FloatArray
    """Signed share of equity held at each close, after drift; (n_steps + 1, n_assets)."""
    target_weights: FloatArray
    """Signed share of equity asked for in each step, NaN where nothing was ordered; (n_steps, n_assets)."""
    actions: NDArray[Any]
    """What the agent answered in each step; integers are choices, floats are amounts; (n_steps, action_dim)."""
    turnover: FloatArray
    """Notional traded in each step as a fraction of equity, both sides counted; (n_steps,)."""
    costs: FloatArray
    """What trading cost in each step, in account currency; (n_steps,)."""
    rewards: FloatArray
    """Reward of each step, in the unit of the environment's reward; (n_steps,)."""
    bars_per_year: float
    """Bars in one year, for annual figures; 252 for daily bars of stocks."""
    action_low: float = -1.0
    """Lower bound of the action space, where actions are amounts."""
    action_high: float = 1.0
    """Upper bound of the action space, where actions are amounts."""
    stopped_at: pd.Timestamp | None = None
    """When ruin or a stop-out ended trading; cash is held from then on. None where it never did."""

    def __post_init__(self) -> None:
        n_steps, n_assets = len(self.timestamps) - 1, len(self.assets)
        if n_steps < 1:
            raise ValueError(f"timestamps must hold at least 2 closes to make one step, got {n_steps + 1}")
        required = {
            "equity_curve": (n_steps + 1,),
            "weights": (n_steps + 1, n_assets),
            "target_weights": (n_steps, n_assets),
            "turnover": (n_steps,),
            "costs": (n_steps,),
            "rewards": (n_steps,),
        }
        for name, shape in required.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape} for {n_steps + 1} timestamps and {n_assets} assets, "
                    f"got {getattr(self, name).shape}"
                )
        if self.actions.ndim != 2 or len(self.actions) != n_steps:
            raise ValueError(f"actions must have shape ({n_steps}, action_dim), got {self.actions.shape}")
        if not self.bars_per_year > 0.0:
            raise ValueError(f"bars_per_year must be positive, got {self.bars_per_year}")
        if not self.action_low < self.action_high:
            raise ValueError(f"action_low ({self.action_low}) must be below action_high ({self.action_high})")

    @property
    def n_steps(self) -> int:
        """Steps from close to close."""
        return len(self.turnover)

    @property
    def has_discrete_actions(self) -> bool:
        """Whether actions are choices (integers) and not amounts (floats)."""
        return np.issubdtype(self.actions.dtype, np.integer)

    @cached_property
    def strategy_returns(self) -> FloatArray:
        """Simple return of the account in each step, after costs, as a fraction; (n_steps,)."""
        return simple_returns(self.equity_curve)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The figures that describe the pass; fractions, unless the name says otherwise.

        `average_turnover` is per bar, `total_costs` and `final_equity` are in account currency, `cost_share` is total
        costs over initial equity, `n_fills` counts the bars with a fill.
        """
        returns, bars_per_year = self.strategy_returns, self.bars_per_year
        turnover, total_costs = average_turnover(self.turnover), float(self.costs.sum())
        return {
            "total_return": total_return(returns),
            "annual_return": annual_return(returns, bars_per_year=bars_per_year),
            "annual_volatility": annual_volatility(returns, bars_per_year=bars_per_year),
            "sharpe_ratio": sharpe_ratio(returns, bars_per_year=bars_per_year),
            "sortino_ratio": sortino_ratio(returns, bars_per_year=bars_per_year),
            "calmar_ratio": calmar_ratio(returns, bars_per_year=bars_per_year),
            "max_drawdown": max_drawdown(returns),
            "average_turnover": turnover,
            "annual_turnover": turnover * bars_per_year,
            "total_costs": total_costs,
            "cost_share": total_costs / float(self.equity_curve[0]),
            "mean_gross_exposure": float(np.abs(self.weights[1:]).sum(axis=1).mean()),
            "n_fills": int(np.count_nonzero(self.turnover > 0.0)),
            "final_equity": float(self.equity_curve[-1]),
        }


def monthly_returns(trajectory: Trajectory) -> pd.Series[float]:
    """Return of the account in each calendar month, after costs, as a fraction; indexed by month.

    The first month starts at the first close and the last one ends at the last close, so both may be incomplete.
    """
    equity = pd.Series(trajectory.equity_curve, index=trajectory.timestamps.tz_localize(None).to_period("M"))
    last = equity.groupby(level=0).last()
    before = last.shift(1)
    before.iloc[0] = trajectory.equity_curve[0]
    return last / before - 1.0
