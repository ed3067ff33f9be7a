"""How an agent compares with the baselines, and what can be concluded from that.

A number without its uncertainty invites the wrong decision: a Sharpe ratio from two years of daily bars is known to
about plus or minus 1.4. So every comparison here comes with a bootstrap interval, and `EvaluationResult.verdict` says
in words whether the difference can be told apart from luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.training.diagnosis import diagnose
from ml.tradingbots.training.formatting import format_change, format_interval, format_number, format_percent
from ml.tradingbots.training.trajectory import FloatArray, Trajectory

Interval = tuple[float, float]

BUY_AND_HOLD = "buy_and_hold"
"""Key of the baseline that the verdict is about."""

NO_INTERVAL: Interval = (float("nan"), float("nan"))
"""What stands where nothing was estimated."""


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
        return diagnose(self.agent)

    def __str__(self) -> str:
        return f"{self.verdict()}\n\n{self.formatted_table().to_string()}"


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
