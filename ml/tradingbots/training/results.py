"""What one strategy did on one price table, how it compares with the baselines, and what can be concluded from that.

A number without its uncertainty invites the wrong decision: a Sharpe ratio from two years of daily bars is known to
about plus or minus 1.4. So every comparison here comes with a bootstrap interval, and `EvaluationResult.verdict` says
in words whether the difference can be told apart from luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

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
Interval = tuple[float, float]

BUY_AND_HOLD = "buy_and_hold"
"""Key of the baseline that the verdict is about."""

NO_INTERVAL: Interval = (float("nan"), float("nan"))
"""What stands where nothing was estimated."""

SATURATION_MARGIN = 0.01
"""How close to a bound counts as saturated, as a fraction of half the range: |action| > 0.99 on [-1, 1]."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
    """An agent's pass beside the baselines' passes over the same prices, with what chance alone could explain."""

    agent: Trajectory
    """The agent's pass."""
    baselines: dict[str, Trajectory] = field(default_factory=dict)
    """The passes it is compared with, by name; the verdict needs `buy_and_hold`."""
    sharpe_intervals: dict[str, Interval] = field(default_factory=dict)
    """Interval of each strategy's annualised Sharpe ratio, by the names of `strategies`."""
    excess_interval: Interval = NO_INTERVAL
    """Interval of `excess`, as a fraction per year."""
    confidence: float = 0.95
    """Share of intervals built like these that would cover the truth, in (0, 1)."""
    sample: Literal["out of sample", "in sample"] = "out of sample"
    """Whether the agent had never seen these prices; only the caller can know."""

    @classmethod
    def from_trajectories(
        cls,
        agent: Trajectory,
        baselines: Mapping[str, Trajectory],
        *,
        n_bootstrap: int = 1_000,
        confidence: float = 0.95,
        block_size: float = 20.0,
        seed: int = 0,
        sample: Literal["out of sample", "in sample"] = "out of sample",
    ) -> EvaluationResult:
        """Compare an agent with its baselines and estimate how much of the difference may be luck.

        The stationary bootstrap (Politis & Romano, 1994) draws blocks of bars of random length, so that volatility
        clusters survive. The agent and buy-and-hold are resampled together, bar by bar, because both ride the same
        market: what they share cancels, and the interval of the difference is as narrow as it should be.

        Args:
            agent: the agent's pass.
            baselines: the passes to compare it with, by name, each starting at the same close.
            n_bootstrap: resamples; 0 skips the intervals, for quick evaluations during training.
            confidence: coverage of the intervals, in (0, 1).
            block_size: mean length of a block, in bars; a month of daily bars by default. Shortened to a quarter of
                the pass where the pass is short.
            seed: of the resampling.
            sample: whether the agent had never seen these prices.
        """
        if n_bootstrap < 0:
            raise ValueError(f"n_bootstrap must be 0 or more, got {n_bootstrap}")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {confidence}")
        if not block_size >= 1.0:
            raise ValueError(f"block_size must be at least 1 bar, got {block_size}")
        if agent.name in baselines:
            raise ValueError(f"the agent is called {agent.name!r}, like one of the baselines; give it another name")

        def interval(values: FloatArray, statistic: Callable[[FloatArray], float]) -> Interval:
            blocks = max(1, round(min(block_size, len(values) / 4)))
            return _bootstrap_interval(values, statistic, n_bootstrap, confidence, blocks, seed)

        def sharpe_interval(trajectory: Trajectory) -> Interval:
            bars = trajectory.bars_per_year
            return interval(trajectory.strategy_returns, lambda drawn: sharpe_ratio(drawn, bars_per_year=bars))

        excess_interval = NO_INTERVAL
        if BUY_AND_HOLD in baselines:
            difference = _log_return_difference(agent, baselines[BUY_AND_HOLD])
            excess_interval = interval(difference, lambda drawn: float(drawn.mean() * agent.bars_per_year))
        strategies = {agent.name: agent, **baselines}
        return cls(
            agent=agent,
            baselines=dict(baselines),
            sharpe_intervals={name: sharpe_interval(trajectory) for name, trajectory in strategies.items()},
            excess_interval=excess_interval,
            confidence=confidence,
            sample=sample,
        )

    @property
    def strategies(self) -> dict[str, Trajectory]:
        """Every pass by name, the agent's first."""
        return {self.agent.name: self.agent, **self.baselines}

    @property
    def metrics(self) -> dict[str, float]:
        """The agent's figures; see `Trajectory.metrics`."""
        return self.agent.metrics

    @cached_property
    def excess(self) -> float:
        """Mean log return of the agent less that of buy-and-hold, as a fraction per year; NaN without the baseline.

        Log returns, because their sum is what the account ends with: a positive excess means that the agent ended
        richer, whatever the path. The Sharpe ratios in `table` are the comparison per unit of risk.
        """
        if BUY_AND_HOLD not in self.baselines:
            return float("nan")
        difference = _log_return_difference(self.agent, self.baselines[BUY_AND_HOLD])
        return float(difference.mean() * self.agent.bars_per_year)

    @property
    def is_distinguishable(self) -> bool:
        """Whether `excess_interval` leaves zero out; False where nothing was estimated."""
        low, high = self.excess_interval
        return low > 0.0 or high < 0.0

    def table(self) -> pd.DataFrame:
        """Return the comparison as numbers: one row per strategy, the agent first; fractions, costs in currency."""
        rows = {}
        for name, trajectory in self.strategies.items():
            low, high = self.sharpe_intervals.get(name, NO_INTERVAL)
            found = trajectory.metrics
            rows[name] = {
                "sharpe_ratio": found["sharpe_ratio"],
                "sharpe_low": low,
                "sharpe_high": high,
                "total_return": found["total_return"],
                "annual_return": found["annual_return"],
                "max_drawdown": found["max_drawdown"],
                "annual_turnover": found["annual_turnover"],
                "total_costs": found["total_costs"],
                "cost_share": found["cost_share"],
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")

    def formatted_table(self) -> pd.DataFrame:
        """Return the comparison as text for people, with percentages and drawdowns below zero."""
        numbers = self.table()
        return pd.DataFrame(
            {
                "Sharpe": numbers["sharpe_ratio"].map(format_number),
                f"{self.confidence:.0%} interval": [
                    format_interval((low, high), format_number)
                    for low, high in zip(numbers["sharpe_low"], numbers["sharpe_high"], strict=True)
                ],
                "Total return": numbers["total_return"].map(format_change),
                "Annual return": numbers["annual_return"].map(format_change),
                "Max drawdown": (-numbers["max_drawdown"]).map(format_percent),
                "Turnover a year": numbers["annual_turnover"].map(lambda value: f"{format_number(value)}×"),
                "Costs": numbers["cost_share"].map(format_percent),
            }
        )

    def verdict(self) -> str:
        """Say plainly whether the agent beat buy-and-hold, and whether that can be told apart from luck."""
        if BUY_AND_HOLD not in self.baselines:
            return "There is no buy-and-hold baseline to compare the agent with."
        own, other = self.agent.metrics, self.baselines[BUY_AND_HOLD].metrics
        # Two accounts that made the same trades differ by rounding only.
        level = abs(self.excess) < 1e-9
        outcome = "ended level with" if level else "beat" if self.excess > 0.0 else "did not beat"
        sentences = [
            f"The agent {outcome} buy-and-hold {self.sample}: {format_change(own['total_return'])} against "
            f"{format_change(other['total_return'])} in total, after costs.",
            self._significance(),
        ]
        if own["n_fills"] == 0:
            sentences.append("The agent never traded.")
        sharpe_difference = own["sharpe_ratio"] - other["sharpe_ratio"]
        if not level and self.excess * sharpe_difference < 0.0:
            sentences.append(
                f"Per unit of risk it did {'better' if sharpe_difference > 0.0 else 'worse'}: a Sharpe ratio of "
                f"{format_number(own['sharpe_ratio'])} against {format_number(other['sharpe_ratio'])}."
            )
        return " ".join(sentences)

    def _significance(self) -> str:
        if np.isnan(self.excess_interval).any():
            return "Whether the difference can be told apart from luck was not estimated."
        return (
            f"The difference is {'' if self.is_distinguishable else 'not '}distinguishable from zero: "
            f"{format_change(self.excess)} a year in log return, {self.confidence:.0%} interval "
            f"{format_interval(self.excess_interval, format_change)}."
        )

    def diagnosis(self) -> list[str]:
        """Say how the agent trades, one finding per line: what to read when it does nothing, or too much."""
        return [*_trading_findings(self.agent), *_action_findings(self.agent), *_cost_findings(self.agent)]

    def __str__(self) -> str:
        return f"{self.verdict()}\n\n{self.formatted_table().to_string()}"


def monthly_returns(trajectory: Trajectory) -> pd.Series[float]:
    """Return of the account in each calendar month, after costs, as a fraction; indexed by month.

    The first month starts at the first close and the last one ends at the last close, so both may be incomplete.
    """
    equity = pd.Series(trajectory.equity_curve, index=trajectory.timestamps.tz_localize(None).to_period("M"))
    last = equity.groupby(level=0).last()
    before = last.shift(1)
    before.iloc[0] = trajectory.equity_curve[0]
    return last / before - 1.0


def format_number(value: float) -> str:
    """Write a number with two decimals, a true minus sign, and a dash for what is undefined."""
    return _format(value, ",.2f")


def format_percent(value: float) -> str:
    """Write a fraction as a percentage with one decimal."""
    return _format(value, ",.1%")


def format_change(value: float) -> str:
    """Write a fraction as a percentage with its sign."""
    return _format(value, "+,.1%")


def _format(value: float, specification: str) -> str:
    if np.isnan(value):
        return "–"
    text = format(value, specification)
    # What rounds to zero has no sign.
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.lstrip("+-")


def format_interval(interval: Interval, format_value: Callable[[float], str]) -> str:
    """Write an interval from low to high."""
    return "–" if np.isnan(interval).any() else f"{format_value(interval[0])} to {format_value(interval[1])}"


def _bootstrap_interval(
    values: FloatArray,
    statistic: Callable[[FloatArray], float],
    n_bootstrap: int,
    confidence: float,
    block_size: int,
    seed: int,
) -> Interval:
    """Percentile interval of a statistic of a series, by the stationary bootstrap; values are (n_steps,)."""
    if n_bootstrap == 0 or len(values) < 2:
        return NO_INTERVAL
    # Imported where it is used: arch brings scipy.stats along, which takes longer to import than all of ours.
    from arch.bootstrap import StationaryBootstrap

    bootstrap = StationaryBootstrap(block_size, values, seed=seed)
    draws = np.asarray(bootstrap.apply(statistic, n_bootstrap), dtype=np.float64).ravel()
    # A resample in which nothing happened has no Sharpe ratio. A few such are left out; many mean that there is no
    # interval to speak of.
    draws = draws[np.isfinite(draws)]
    if len(draws) < 0.95 * n_bootstrap:
        return NO_INTERVAL
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)


def _log_return_difference(agent: Trajectory, baseline: Trajectory) -> FloatArray:
    """Log return of one account less that of another in each step; a ruined account stays where it fell; (n_steps,)."""
    n_common = min(agent.n_steps, baseline.n_steps) + 1
    if not agent.timestamps[:n_common].equals(baseline.timestamps[:n_common]):
        raise ValueError(
            f"{agent.name!r} and {baseline.name!r} must be passes over the same closes: they start at "
            f"{agent.timestamps[0]} and {baseline.timestamps[0]}; evaluate both on one price table"
        )
    n_steps = max(agent.n_steps, baseline.n_steps)
    return _padded_log_returns(agent, n_steps) - _padded_log_returns(baseline, n_steps)


def _padded_log_returns(trajectory: Trajectory, n_steps: int) -> FloatArray:
    # The floor keeps an account that lost more than everything comparable: a factor of 1e-12 is ruin in any currency.
    log_returns = np.log(np.maximum(1.0 + trajectory.strategy_returns, 1e-12))
    return np.pad(log_returns, (0, n_steps - trajectory.n_steps))


def _trading_findings(trajectory: Trajectory) -> list[str]:
    found = trajectory.metrics
    n_fills, n_steps = int(found["n_fills"]), trajectory.n_steps
    if n_fills == 0:
        return [f"It never trades: no fill in {n_steps:,} bars. {_why_idle(trajectory)}"]
    return [
        f"It trades on {format_percent(n_fills / n_steps)} of bars ({n_fills:,} of {n_steps:,}); turnover is "
        f"{format_percent(found['average_turnover'])} of equity per bar, {format_number(found['annual_turnover'])} "
        "times equity a year.",
        f"Its mean gross exposure is {format_percent(found['mean_gross_exposure'])} of equity.",
    ]


def _why_idle(trajectory: Trajectory) -> str:
    if np.isnan(trajectory.target_weights).all():
        return "It never orders anything: every action means hold."
    wanted = np.nanmax(np.abs(trajectory.target_weights))
    if wanted == 0.0:
        return "It always asks to be flat: costs may exceed any edge it sees, or learning went nowhere."
    return "It always asks for what it already holds."


def _action_findings(trajectory: Trajectory) -> list[str]:
    actions = trajectory.actions
    # A tolerance for networks, whose outputs for different observations never agree to the last bit.
    if np.ptp(actions, axis=0).max() < 1e-6:
        answers = ", ".join(format_number(float(value)) for value in actions[0])
        return [f"Its action is constant ({answers}): the policy ignores what it observes."]
    edges, shares = action_histogram(trajectory)
    fullest = int(shares.argmax())
    if trajectory.has_discrete_actions:
        return [
            f"Its most frequent action is {edges[fullest]:.0f}, taken on {format_percent(shares[fullest])} of bars."
        ]
    findings = [
        f"Of its actions, {format_percent(shares[fullest])} lie in the fullest tenth of the range, from "
        f"{format_number(edges[fullest])} to {format_number(edges[fullest + 1])}."
    ]
    saturation = saturation_share(trajectory)
    if saturation > 0.0:
        often = " The policy is saturated: all or nothing." if saturation > 0.5 else ""
        findings.append(f"{format_percent(saturation)} of its actions lie at a bound of the range.{often}")
    return findings


def action_histogram(trajectory: Trajectory, *, n_bins: int = 10) -> tuple[FloatArray, FloatArray]:
    """Count where the actions lie, all dimensions together.

    Args:
        trajectory: the pass.
        n_bins: equal parts of the action range, where actions are amounts.

    Returns:
        For choices, the choices that occur and the share of each. For amounts, the (n_bins + 1,) edges of the bins and
        the (n_bins,) share of actions in each; an action beyond a bound counts as lying at it.
    """
    actions = trajectory.actions
    if trajectory.has_discrete_actions:
        choices, counts = np.unique(actions, return_counts=True)
        return choices.astype(np.float64), counts / actions.size
    low, high = trajectory.action_low, trajectory.action_high
    counts, edges = np.histogram(np.clip(actions, low, high), bins=n_bins, range=(low, high))
    return edges, counts / actions.size


def saturation_share(trajectory: Trajectory) -> float:
    """Share of the actions that lie at a bound of the action space; 0 where actions are choices."""
    if trajectory.has_discrete_actions:
        return 0.0
    middle = (trajectory.action_high + trajectory.action_low) / 2.0
    half_range = (trajectory.action_high - trajectory.action_low) / 2.0
    return float(np.mean(np.abs(trajectory.actions - middle) > (1.0 - SATURATION_MARGIN) * half_range))


def _cost_findings(trajectory: Trajectory) -> list[str]:
    found = trajectory.metrics
    if found["total_costs"] == 0.0:
        return []
    gross_profit = found["final_equity"] - float(trajectory.equity_curve[0]) + found["total_costs"]
    if gross_profit <= 0.0:
        return [
            f"It lost money even before costs, and costs took another {format_percent(found['cost_share'])} of its "
            "initial equity."
        ]
    share = found["total_costs"] / gross_profit
    eaten = "all" if share >= 1.0 else format_percent(share)
    return [f"Costs took {eaten} of its gross profit ({format_percent(found['cost_share'])} of its initial equity)."]
