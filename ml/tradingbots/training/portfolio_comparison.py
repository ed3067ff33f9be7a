"""Managed portfolios beside the ones that anybody can have: equal weights, minimum variance, risk parity, buying and holding.

All start at the same close and pay the same costs. A difference of Sharpe ratios is estimated on the bars that both lived
through, so that the market they share cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.portfolio_config import PortfolioConfig
from ml.tradingbots.components.portfoliomanager import PortfolioManager
from ml.tradingbots.core.bootstrap import BootstrapInterval, block_bootstrap_interval
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.training.formatting import format_change, format_interval, format_number, format_percent
from ml.tradingbots.training.portfolio_backtest import PortfolioBacktest, backtest_portfolio
from ml.tradingbots.training.results import BUY_AND_HOLD
from ml.tradingbots.training.trajectory import Trajectory

FloatArray = npt.NDArray[np.float64]

EQUAL_WEIGHT = "equal_weight"
"""The baseline that the others are measured against: it estimates nothing, and is hard to beat (DeMiguel et al., 2009)."""

ALLOCATED = (EQUAL_WEIGHT, "minimum_variance", "hierarchical_risk_parity")
BASELINES = (*ALLOCATED, BUY_AND_HOLD)


@dataclass(frozen=True, kw_only=True, eq=False)
class PortfolioComparison:
    """What managers did beside the baselines, on the same bars and after the same costs."""

    managers: dict[str, PortfolioManager]
    """Who managed, by name."""
    managed: dict[str, PortfolioBacktest]
    """Each manager's walk, by the same names."""
    baselines: dict[str, Trajectory]
    """The accounts they are compared with, by the names of `BASELINES`."""
    gains: dict[str, BootstrapInterval]
    """Annual Sharpe ratio less that of equal weights, with its interval, by the names of `strategies`."""
    confidence: float
    """Of the intervals, in (0, 1)."""

    @property
    def strategies(self) -> dict[str, Trajectory]:
        """Every account by name, the managed ones first."""
        return {name: found.trajectory for name, found in self.managed.items()} | self.baselines

    @property
    def reference(self) -> Trajectory:
        """Equal weights without limits: what `gains` are over."""
        return self.baselines[EQUAL_WEIGHT]

    def table(self) -> pd.DataFrame:
        """Return the comparison as numbers: one row per strategy, fractions, costs in account currency."""
        rows = {}
        for name, trajectory in self.strategies.items():
            found, gain = trajectory.metrics, self.gains[name]
            rows[name] = {
                "sharpe_ratio": found["sharpe_ratio"],
                "sharpe_gain": gain.estimate,
                "sharpe_gain_low": gain.low,
                "sharpe_gain_high": gain.high,
                "annual_return": found["annual_return"],
                "annual_volatility": found["annual_volatility"],
                "max_drawdown": found["max_drawdown"],
                "annual_turnover": found["annual_turnover"],
                "total_costs": found["total_costs"],
                "cost_share": found["cost_share"],
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")

    def formatted_table(self) -> pd.DataFrame:
        """Return the comparison as text for people, with drawdowns below zero."""
        numbers = self.table()
        return pd.DataFrame(
            {
                "Sharpe": numbers["sharpe_ratio"].map(format_number),
                "Over equal weight": [self._gain(str(name)) for name in numbers.index],
                "Annual return": numbers["annual_return"].map(format_change),
                "Volatility": numbers["annual_volatility"].map(format_percent),
                "Max drawdown": (-numbers["max_drawdown"]).map(format_percent),
                "Turnover a year": numbers["annual_turnover"].map(lambda value: f"{format_number(value)}×"),
                "Costs": numbers["cost_share"].map(format_percent),
            }
        )

    def verdict(self) -> str:
        """Say plainly whether the managed portfolios did better than equal weights, and whether that may be chance."""
        return " ".join(self._judged(name) for name in self.managed)

    def _judged(self, name: str) -> str:
        own, other, gain = self.strategies[name].metrics, self.reference.metrics, self.gains[name]
        words = name.replace("_", " ")
        words = words[:1].upper() + words[1:]
        if np.isnan(gain.estimate):
            return f"{words} cannot be compared with equal weights: an account that never moves has no Sharpe ratio."
        level = (
            f"{words} had a Sharpe ratio of {format_number(own['sharpe_ratio'])} after costs, equal weights "
            f"{format_number(other['sharpe_ratio'])}"
        )
        if np.isnan(gain.low):
            return f"{level}; whether by chance was not estimated."
        luck = "more than chance explains" if gain.excludes(0.0) else "not distinguishable from chance"
        return (
            f"{level}; the difference of {_signed(gain.estimate)} is {luck} ({self.confidence:.0%} interval "
            f"{format_interval((gain.low, gain.high), _signed)})."
        )

    def _gain(self, name: str) -> str:
        gain = self.gains[name]
        if np.isnan(gain.estimate) or self.strategies[name] is self.reference:
            return "–"
        bounds = "" if np.isnan(gain.low) else f" ({format_interval((gain.low, gain.high), _signed)})"
        return _signed(gain.estimate) + bounds


def compare_portfolios(
    managers: Mapping[str, PortfolioManager],
    price_data: pd.DataFrame | Bars,
    *,
    start: int | None = None,
    initial_balance: float = 100_000.0,
    n_bootstrap: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> PortfolioComparison:
    """Walk managers and the baselines over the same bars.

    The baselines are long only and fully invested, on the managers' calendar, window, lots and costs, and have none of their
    limits; buy-and-hold buys equal weights once, at the same costs and without lots.

    Args:
        managers: by name.
        price_data: what `Bars.from_frame` accepts.
        start: position of the first bar that decides; None is the first at which all can decide.
        initial_balance: equity at the start, in account currency.
        n_bootstrap: resamples of the intervals; 0 skips them.
        confidence: of the intervals, in (0, 1).
        seed: of the resampling.
        report: called with the name of each portfolio before it is walked.

    Raises:
        InfeasibleLimitsError: limits of a manager contradict each other at some bar.
        ValueError: there is no manager, one has the name of a baseline, two pay other costs or decide on other days, there are
            too few bars, or `start` is too early.
    """
    taken = [name for name in managers if name in BASELINES]
    if not managers or taken:
        raise ValueError(
            f"managers must be one or several, none of them called like a baseline ({', '.join(BASELINES)}), got "
            f"{list(managers)}; give it another name"
        )
    if n_bootstrap < 0:
        raise ValueError(f"n_bootstrap must be 0 or more, got {n_bootstrap}")
    _check_comparable(managers)
    bars = Bars.from_frame(price_data)
    plain = {name: PortfolioManager(baseline_config(next(iter(managers.values())).config), name) for name in ALLOCATED}
    everyone = [*managers.values(), *plain.values()]
    first = max(manager.first_bar(bars) for manager in everyone) if start is None else start

    def walked(name: str, manager: PortfolioManager) -> PortfolioBacktest:
        if report is not None:
            report(name)
        return backtest_portfolio(manager, bars, initial_balance=initial_balance, start=first, name=name)

    managed = {name: walked(name, manager) for name, manager in managers.items()}
    others = {name: walked(name, manager) for name, manager in plain.items()}
    baselines = {name: found.trajectory for name, found in others.items()}
    baselines[BUY_AND_HOLD] = others[EQUAL_WEIGHT].baselines()[BUY_AND_HOLD]
    reference = others[EQUAL_WEIGHT].trajectory
    accounts = {name: found.trajectory for name, found in managed.items()} | baselines
    gains = {
        name: sharpe_gain(
            account.strategy_returns,
            reference.strategy_returns,
            bars_per_year=account.bars_per_year,
            n_samples=n_bootstrap,
            confidence=confidence,
            seed=seed,
        )
        for name, account in accounts.items()
    }
    return PortfolioComparison(
        managers=dict(managers), managed=managed, baselines=baselines, gains=gains, confidence=confidence
    )


def baseline_config(config: PortfolioConfig) -> PortfolioConfig:
    """Return the settings of the baselines beside a manager: its calendar, window, lots and costs, and none of its limits."""
    return PortfolioConfig(
        lot_size=config.lot_size,
        minimum_notional=config.minimum_notional,
        rebalance=config.rebalance,
        window_size=config.window_size,
        costs=config.costs,
    )


def sharpe_gain(
    strategy_returns: FloatArray,
    reference_returns: FloatArray,
    *,
    bars_per_year: float,
    n_samples: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval:
    """Estimate by how much an annual Sharpe ratio exceeds another's, with the interval of the stationary bootstrap.

    Both accounts are resampled together, bar by bar.

    Args:
        strategy_returns: simple return per bar, as fractions; (n_bars,). Or those of several runs, (n_bars, n_runs): the
            mean of their ratios is then what is estimated, and the interval is about the bars, not about the runs.
        reference_returns: of the other account, on the same bars; (n_bars,).
        bars_per_year: bars in a year of this market.
        n_samples: resamples; 0 estimates no interval.
        confidence: of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: the series are not of the same bars.
    """
    runs = strategy_returns.reshape(len(strategy_returns), -1)

    def gain(own: FloatArray, other: FloatArray) -> float:
        ratios = [sharpe_ratio(run, bars_per_year=bars_per_year) for run in own.T]
        return float(np.mean(ratios)) - sharpe_ratio(other, bars_per_year=bars_per_year)

    if len(runs) != len(reference_returns):
        raise ValueError(
            f"both accounts must have returns of the same bars, got {len(runs)} and {len(reference_returns)}; walk them over "
            "one price table from one start"
        )
    if n_samples == 0 or len(runs) < 2 or np.array_equal(runs, np.broadcast_to(reference_returns[:, None], runs.shape)):
        return BootstrapInterval(
            estimate=gain(runs, reference_returns), low=float("nan"), high=float("nan"), block_length=float("nan")
        )
    return block_bootstrap_interval(
        gain, runs, reference_returns, n_samples=n_samples, confidence=confidence, seed=seed
    )


def _signed(value: float) -> str:
    text = format_number(value)
    return text if text.startswith("−") or not any(digit in text for digit in "123456789") else f"+{text}"


def _check_comparable(managers: Mapping[str, PortfolioManager]) -> None:
    (first_name, first), *others = managers.items()
    for name, manager in others:
        for what in ("costs", "rebalance", "window_size", "lot_size", "minimum_notional"):
            wanted, found = getattr(first.config, what), getattr(manager.config, what)
            if wanted != found:
                raise ValueError(
                    f"managers {first_name!r} and {name!r} must have the same {what}, which the baselines share, got {wanted} "
                    f"and {found}; compare them in two calls"
                )
