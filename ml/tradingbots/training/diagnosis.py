"""How an agent trades, in words: what to read when it does nothing, or too much."""

from __future__ import annotations

import numpy as np

from ml.tradingbots.training.formatting import format_number, format_percent
from ml.tradingbots.training.trajectory import FloatArray, Trajectory

SATURATION_MARGIN = 0.01
"""How close to a bound counts as saturated, as a fraction of half the range: |action| > 0.99 on [-1, 1]."""


def diagnose(trajectory: Trajectory) -> list[str]:
    """Say how a strategy trades, one finding per line."""
    stopped = []
    if trajectory.stopped_at is not None:
        stopped = [f"It was stopped out on {trajectory.stopped_at.date()} and held cash from then on."]
    return [*stopped, *_trading_findings(trajectory), *_action_findings(trajectory), *_cost_findings(trajectory)]


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
