"""One HTML page about managed portfolios: `write_portfolio_report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ml.tradingbots.components.portfoliomanager import PortfolioDecision
from ml.tradingbots.training.figures import turnover_and_costs_figure
from ml.tradingbots.training.formatting import format_number, format_percent, spaced
from ml.tradingbots.training.page import (
    Row,
    facts_section,
    figure_section,
    page_html,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.portfolio_comparison import PortfolioComparison
from ml.tradingbots.training.portfolio_figures import (
    holdings_figure,
    portfolio_drawdown_figure,
    portfolio_equity_figure,
)
from ml.tradingbots.training.portfolio_limits import binding_limits
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.trajectory import FloatArray

N_DECISIONS = 24
"""Decisions that the page lists: two years of monthly ones."""
N_POSITIONS = 3
"""Positions that it names in each."""


def write_portfolio_report(
    path: str | os.PathLike[str],
    comparison: PortfolioComparison,
    *,
    title: str = "Portfolio",
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file with the verdict, accounts, holdings, costs, limits that bound, and the last decisions.

    The file contains all it needs and forbids the browser to fetch anything. It is written next to its final name,
    synced and renamed, so a crash leaves the old report or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        comparison: what `compare_portfolios` returned.
        title: headline of the page.
        facts: what made the numbers (prices, sources, limits, costs), in words; the versions are added.
        notes: what must be known to read them, such as that a source had seen the prices; they stand beside the verdict and
            among the facts.

    Returns:
        The path of the file.
    """
    return write_page(path, portfolio_report_html(comparison, title=title, facts=facts, notes=notes))


def portfolio_report_html(
    comparison: PortfolioComparison,
    *,
    title: str = "Portfolio",
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Build the page that `write_portfolio_report` writes; the same arguments give the same page."""
    body = [
        _table(comparison),
        figure_section(portfolio_equity_figure(comparison), "What 1 became after all costs; log scale."),
        figure_section(portfolio_drawdown_figure(comparison), "Distance below the highest close so far."),
    ]
    for name in comparison.managed:
        body += _sections_of(comparison, name)
    sentences = [f"{text[:1].upper()}{text[1:].removesuffix('.')}." for text in notes]
    noted = {"Notes": " ".join(sentences)} if notes else {}
    body.append(facts_section({**(facts or {}), **noted}))
    verdict = " ".join([comparison.verdict(), *sentences])
    return page_html(title=title, period=_period(comparison), verdict=verdict, body=body)


def _table(comparison: PortfolioComparison) -> str:
    table = comparison.formatted_table()
    rows = [
        Row(label=str(name), cells=cells, kind="agent" if name in comparison.managed else "naive")
        for name, cells in zip(table.index, table.itertuples(index=False, name=None), strict=True)
    ]
    note = (
        f"After costs. Small: {comparison.confidence:.0%} interval of the difference of Sharpe ratios, by resampling blocks of "
        "bars that both accounts lived through. The baselines in grey are long only and fully invested, with the same "
        "calendar, window and costs, and none of the limits; costs are shares of the initial equity."
    )
    return section("Comparison", table_html(list(table.columns), rows, small_brackets=True), note=note)


def _sections_of(comparison: PortfolioComparison, name: str) -> list[str]:
    found, config = comparison.managed[name], comparison.managers[name].config
    label = f", {spaced(name)}" if len(comparison.managed) > 1 else ""
    costs = turnover_and_costs_figure(EvaluationResult(agent=found.trajectory))
    costs.update_layout(title_text=f"Turnover and costs{label}")
    binding = binding_limits(found.decisions, config)
    return [
        figure_section(
            holdings_figure(found.trajectory, f"Weights held{label}"),
            "Share of equity at each close, longs above zero and shorts below; what is missing to 100% is cash.",
        ),
        figure_section(costs, ""),
        section(
            f"Limits that bound{label}",
            _limits_table(binding),
            note="A limit binds where the target lies at it and limits had moved what the source wanted; a factor on "
            "exposure where it is not 1; a turnover cap where the account was stopped on its way.",
        ),
        section(
            f"Decisions{label}",
            _decisions_table(found.decisions, binding),
            note=f"The last {min(N_DECISIONS, len(found.decisions))} of {len(found.decisions):,}, latest first: what was "
            f"aimed at, with the {N_POSITIONS} largest positions. All of them are in decisions.csv where the command line "
            "made this page.",
        ),
    ]


def _limits_table(binding: pd.DataFrame) -> str:
    rows = [
        Row(
            label=LIMIT_NAMES.get(str(name), spaced(str(name))),
            cells=[f"{int(bound.sum()):,} of {len(bound):,}", format_percent(float(bound.mean())), _latest(bound)],
        )
        for name, bound in binding.items()
    ]
    return table_html(["Decisions", "Share", "Last"], rows)


def _latest(bound: pd.Series[bool]) -> str:
    found = bound.index[bound.to_numpy()]
    return f"{found[-1]:%Y-%m-%d}" if len(found) else "–"


def _decisions_table(decisions: tuple[PortfolioDecision, ...], binding: pd.DataFrame) -> str:
    rows = []
    for place in range(len(decisions) - 1, max(-1, len(decisions) - 1 - N_DECISIONS), -1):
        decision, bound = decisions[place], binding.iloc[place]
        target = decision.stages.loc["turnover"].to_numpy(np.float64)
        kept = int(np.isnan(decision.target_weights).sum())
        scale = decision.volatility_scale * decision.kelly_scale * decision.brake
        limits = [LIMIT_NAMES.get(str(name), spaced(str(name))) for name in binding.columns[bound.to_numpy()]]
        cells = [
            format_percent(float(np.abs(target).sum())),
            format_percent(float(target.sum())),
            format_number(scale),
            f"{kept}" if kept else "–",
            _largest(decision.assets, target),
            ", ".join(limits) or "–",
        ]
        rows.append(Row(label=f"{decision.timestamp:%Y-%m-%d}", cells=cells))
    columns = ["Gross", "Net", "Factor", "Not traded", "Largest positions", "Limits that bound"]
    return table_html(columns, rows, small_brackets=True)


def _largest(assets: tuple[str, ...], weights: FloatArray) -> str:
    order = [place for place in np.argsort(-np.abs(weights), kind="stable")[:N_POSITIONS] if weights[place] != 0.0]
    return ", ".join(f"{assets[place]} {format_percent(float(weights[place]))}" for place in order) or "nothing"


def _period(comparison: PortfolioComparison) -> str:
    account = comparison.reference
    n_assets = len(account.assets)
    n_decisions = len(next(iter(comparison.managed.values())).decisions)
    return (
        f"{account.timestamps[0]:%Y-%m-%d} to {account.timestamps[-1]:%Y-%m-%d}, {account.n_steps:,} bars, {n_assets} "
        f"asset{'' if n_assets == 1 else 's'}, {n_decisions:,} decision{'' if n_decisions == 1 else 's'}"
    )


LIMIT_NAMES = {"allow_short": "long only", "brake_start": "drawdown brake"}
"""What settings are called where their own name would mislead."""
