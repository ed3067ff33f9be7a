"""Walks a portfolio manager over past prices: decided at a close, filled at the next open, in the environment's account."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.portfoliomanager import PortfolioDecision, PortfolioManager, PortfolioState
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.core.accounting import carry_portfolio, positive_part
from ml.tradingbots.core.costs import accrued_interest, impact_rate
from ml.tradingbots.core.order_sizing import fill_costs
from ml.tradingbots.core.portfolio_constraints import PortfolioLimits
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.rebalance_calendar import rebalance_bars
from ml.tradingbots.training.evaluation import run_baselines, run_strategy
from ml.tradingbots.training.trajectory import Trajectory

FloatArray = npt.NDArray[np.float64]

# The manager's limits are the only ones: the environment below it has none that a portfolio could reach.
_NO_LIMIT = 1e9
FILL_COLUMNS = ("asset", "units", "price", "notional", "costs")


@dataclass(frozen=True, kw_only=True, eq=False)
class PortfolioBacktest:
    """What a manager did on one price table."""

    trajectory: Trajectory
    """The account bar by bar, with its metrics; `target_weights` are those of the orders that were sent."""
    decisions: tuple[PortfolioDecision, ...]
    """What was decided at each rebalance."""
    environment: TradingEnvironment
    """The market and the account that it was walked in, from the first decision on."""

    @property
    def decided(self) -> pd.DataFrame:
        """Weights decided at each rebalance, before lots; NaN where no order was sent; one row per decision."""
        return self._frame([decision.target_weights for decision in self.decisions])

    @property
    def proposed(self) -> pd.DataFrame:
        """What the source wanted at each rebalance; one row per decision."""
        return self._frame([decision.stages.loc["proposed"].to_numpy() for decision in self.decisions])

    @property
    def positions(self) -> pd.DataFrame:
        """Units held at each close, signed; one row per close."""
        trajectory = self.trajectory
        return pd.DataFrame(self._units(), index=trajectory.timestamps, columns=list(trajectory.assets))

    @property
    def cash(self) -> pd.Series[float]:
        """Equity that is not held in assets, at each close, in account currency."""
        trajectory = self.trajectory
        return pd.Series(trajectory.equity_curve * (1.0 - trajectory.weights.sum(axis=1)), index=trajectory.timestamps)

    @property
    def fills(self) -> pd.DataFrame:
        """Every fill: asset, units (signed), price, notional (signed) and costs, in currency; indexed by the bar of the fill.

        The bar's timestamp is its close; the fill was at its open, or at the close before where the data has no opens.
        """
        trajectory, bars = self.trajectory, self._bars()
        ordered = ~np.isnan(trajectory.target_weights) & (trajectory.turnover > 0.0)[:, None]
        units = self._units()
        change = np.diff(units, axis=0)
        price = bars.open[1:] if bars.open is not None else bars.close[:-1]
        # What is left of units computed twice is rounding.
        change[~ordered | (np.abs(change * price) < 1e-12 * trajectory.equity_curve[:-1, None])] = 0.0
        notional = change * price
        costs = self._fill_costs(notional, price)
        steps, assets = np.nonzero(change)
        columns = {
            "asset": np.array(trajectory.assets)[assets],
            "units": change[steps, assets],
            "price": price[steps, assets],
            "notional": notional[steps, assets],
            "costs": costs[steps, assets],
        }
        return pd.DataFrame(columns, index=trajectory.timestamps[1:][steps], columns=list(FILL_COLUMNS))

    def baselines(self) -> dict[str, Trajectory]:
        """Run the baselines of `evaluate_agent` over the same closes with the same costs, and shorts where they are allowed."""
        env = self.environment
        config = dataclasses.replace(env.config, max_weight=1.0, max_gross_exposure=1.0)
        return run_baselines(TradingEnvironment(env.market, config))

    def _frame(self, rows: list[FloatArray]) -> pd.DataFrame:
        index = pd.DatetimeIndex([decision.timestamp for decision in self.decisions])
        return pd.DataFrame(np.array(rows), index=index, columns=list(self.trajectory.assets))

    def _bars(self) -> Bars:
        market = self.environment.market
        return market.bars.slice(market.first_bar, market.n_bars)

    def _units(self) -> FloatArray:
        trajectory = self.trajectory
        units: FloatArray = trajectory.weights * trajectory.equity_curve[:, None] / self._bars().close
        return units

    def _fill_costs(self, notional: FloatArray, price: FloatArray) -> FloatArray:
        market, costs = self.environment.market, self.environment.config.costs
        found = fill_costs(notional, costs)
        if market.impact is None:
            return found
        bars = slice(market.first_bar, -1)
        volatility, value = market.impact.daily_volatility[bars], market.impact.daily_value[bars]
        impact = np.abs(notional) * impact_rate(costs.impact_coefficient, volatility, np.abs(notional), value)
        # The account prices the order before its costs, which the notional is after: to scale, they add up to what was paid.
        paid, total = self.trajectory.costs - found.sum(axis=1), impact.sum(axis=1)
        scale = np.divide(paid, total, out=np.zeros_like(paid), where=total > 0.0)
        found += impact * scale[:, None]
        return found


def backtest_portfolio(
    manager: PortfolioManager,
    price_data: pd.DataFrame | Bars,
    *,
    initial_balance: float = 100_000.0,
    start: int | None = None,
    name: str = "portfolio",
) -> PortfolioBacktest:
    """Walk a manager over prices, from its first decision to the last bar.

    At the close of each bar of the rebalance calendar the manager is given the bars up to it, cut off there, and the account.
    Its targets are filled at the next open (the last close stands in where the data has none) and sized at the price of the
    fill. On other bars nothing is ordered and weights drift. A predictor or an agent is used as it is: fit it on bars before
    `start`.

    Args:
        manager: limits, calendar, costs and where weights come from.
        price_data: what `Bars.from_frame` accepts.
        initial_balance: equity at the start, in account currency.
        start: position of the first bar that decides; None is the first at which a decision can be made.
        name: what tables and reports call it.

    Returns:
        The account's path, decisions and fills. `trajectory` goes wherever trajectories go: `EvaluationResult`, reports.

    Raises:
        InfeasibleLimitsError: limits contradict each other at some bar.
        ValueError: there are too few bars, or `start` lies too early or too late.
    """
    bars = Bars.from_frame(price_data)
    env = _environment(manager, bars, start, initial_balance)
    first = bars.n_bars - env.market.n_bars + env.market.first_bar
    walk = _Walk(manager, bars, env, first)
    trajectory = run_strategy(env, walk.decide, name=name)
    return PortfolioBacktest(
        trajectory=_with_bounds(trajectory, manager.config.limits(bars.assets)),
        decisions=tuple(walk.decisions),
        environment=env,
    )


def _with_bounds(trajectory: Trajectory, limits: PortfolioLimits) -> Trajectory:
    """Return the trajectory as reports read it: an action is what was ordered or else held, of either sign.

    For a portfolio a weight of 0 is no extreme, also where shorts are not allowed; the largest weight is.
    """
    actions = np.where(np.isnan(trajectory.target_weights), trajectory.weights[:-1], trajectory.target_weights)
    largest = float(limits.upper.max())
    bound = largest if 0.0 < largest < np.inf else max(float(np.abs(actions).max()), 1.0)
    return dataclasses.replace(trajectory, actions=actions, action_low=-bound, action_high=bound)


class _Walk:
    """Asks the manager on the bars of its calendar, and sizes what it wants where orders are filled."""

    def __init__(self, manager: PortfolioManager, bars: Bars, env: TradingEnvironment, first: int) -> None:
        self.manager, self.bars, self.env = manager, bars, env
        self.offset = first - env.market.first_bar
        self.due = set(rebalance_bars(bars.timestamps, manager.config.rebalance, first).tolist())
        self.decisions: list[PortfolioDecision] = []

    def decide(self, _observation: Any, bar: int) -> FloatArray:
        """Return what is ordered at a bar of the environment; (n_assets,), NaN where nothing is."""
        known = bar + self.offset
        if known not in self.due:
            return np.full(self.bars.n_assets, np.nan)
        decision = self.manager.decide(self.bars.slice(0, known + 1), self._state())
        self.decisions.append(decision)
        return self._sized(bar, decision.target_weights)

    def _state(self) -> PortfolioState:
        account = self.env.account
        return PortfolioState(
            equity=float(account.equity),
            weights=np.atleast_1d(np.array(account.weight, dtype=np.float64)),
            drawdown=float(account.drawdown),
            unrealised_return=np.atleast_1d(np.array(account.unrealised_return, dtype=np.float64)),
            brake=self.decisions[-1].brake if self.decisions else 1.0,
        )

    def _sized(self, bar: int, target: FloatArray) -> FloatArray:
        """Return the target as the orders reach it at the fill."""
        config = self.manager.config
        if config.lot_size == 0.0 and config.minimum_notional == 0.0:
            return target
        market, state = self.env.market, self._state()
        interest = 0.0
        if config.costs.has_accruals:
            short = float(positive_part(-state.weights).sum())
            cash = 1.0 - float(state.weights.sum())
            interest = accrued_interest(config.costs, cash, short, float(market.gap_years[bar]))
        equity, weights = carry_portfolio(np.asarray(state.equity), state.weights, market.gap_return[bar], interest)
        if not equity > 0.0:
            return np.full_like(target, np.nan)
        price = market.bars.close[bar] * (1.0 + market.gap_return[bar])
        return self.manager.size(target, float(equity), weights, price, self.bars.assets).target_weight


def _environment(
    manager: PortfolioManager, bars: Bars, start: int | None, initial_balance: float
) -> TradingEnvironment:
    """Return an environment whose first bar is the first decision's."""
    costs = manager.config.costs
    config = TradingEnvConfig(
        initial_balance=initial_balance,
        window_size=1,
        use_extra_columns=False,
        allow_short=manager.config.allow_short,
        max_weight=_NO_LIMIT,
        max_gross_exposure=_NO_LIMIT * bars.n_assets,
        commission=costs.commission_rate,
        slippage_rate=costs.slippage_rate,
        minimum_commission=costs.minimum_commission,
        borrow_rate=costs.borrow_rate,
        margin_rate=costs.margin_rate,
        cash_rate=costs.cash_rate,
        impact_coefficient=costs.impact_coefficient,
    )
    market = Market(bars, config)
    earliest = max(manager.first_bar(bars), market.first_bar)
    first = earliest if start is None else start
    if not earliest <= first < market.last_bar:
        raise ValueError(
            f"start must lie between bar {earliest}, the first with full windows, and {market.last_bar - 1}, the last with a "
            f"bar to trade on, got {first}; give more bars or shorten the windows"
        )
    skipped = first - market.first_bar
    return TradingEnvironment(bars.slice(skipped, bars.n_bars) if skipped else market, config)
