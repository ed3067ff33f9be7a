"""One HTML page that holds an evaluation and needs nothing else: `write_report`.

The page carries the figures of `figures.py` and the library that draws them, so it opens without a network, years later.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ml.tradingbots.training.figures import (
    action_histogram_figure,
    curve_names,
    drawdown_figure,
    equity_figure,
    monthly_returns_figure,
    training_curves_figure,
    turnover_and_costs_figure,
    weights_figure,
)
from ml.tradingbots.training.loggers import STEP_COLUMN
from ml.tradingbots.training.page import (
    Row,
    embedded,
    facts_section,
    figure_section,
    page_html,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.trajectory import Trajectory


def write_report(
    path: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    history: pd.DataFrame | None = None,
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with the verdict, the comparison, the figures and the facts of a run.

    The file contains all it needs and forbids the browser to fetch anything. It is written next to its final name,
    synced and renamed, so a crash leaves the old report or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        result: the evaluation.
        history: what was logged during training, if the page shall show it.
        title: headline of the page.
        facts: what made the numbers (data, costs, seed, …), in words; the period and the versions are added.

    Returns:
        The path of the file.
    """
    return write_page(path, report_html(result, history=history, title=title, facts=facts))


def report_html(
    result: EvaluationResult,
    *,
    history: pd.DataFrame | None = None,
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Build the page that `write_report` writes; the same arguments give the same page."""
    body = [
        _table(result),
        section(
            "How it trades", f"<ul>{''.join(f'<li>{html.escape(finding)}</li>' for finding in result.diagnosis())}</ul>"
        ),
        figure_section(equity_figure(result), "Account value after all costs, log scale."),
        figure_section(drawdown_figure(result), "Distance below the highest close so far."),
        figure_section(monthly_returns_figure(result), "", wide=True),
        figure_section(weights_figure(result), "Share of equity held at each close; below zero is short."),
        figure_section(turnover_and_costs_figure(result), ""),
        figure_section(action_histogram_figure(result), "What the policy answered, before limits and costs."),
    ]
    if history is not None and curve_names(history):
        body.append(_training_section(history))
    body.append(facts_section(_facts(result, facts or {})))
    return page_html(title=title, period=_period(result.agent), verdict=result.verdict(), body=body)


def _training_section(history: pd.DataFrame) -> str:
    """Lay the training curves out as separate small figures, which a phone can stack."""
    panels = []
    for name in curve_names(history):
        figure = training_curves_figure(history[[STEP_COLUMN, name]])
        figure.update_layout(title_text=None, height=210, margin={"l": 44, "r": 8, "t": 34, "b": 30})
        panels.append(f'<div class="figure">{embedded(figure, f"training {name}")}</div>')
    return section("Training", f'<div class="panels">{"".join(panels)}</div>', note="Over timesteps.")


def _period(trajectory: Trajectory) -> str:
    first, last = trajectory.timestamps[0], trajectory.timestamps[-1]
    intraday = any(stamp != stamp.normalize() for stamp in (first, last)) and (last - first).days < 10
    form = "%Y-%m-%d %H:%M" if intraday else "%Y-%m-%d"
    return (
        f"{first.strftime(form)} to {last.strftime(form)}, {trajectory.n_steps:,} bars, {', '.join(trajectory.assets)}"
    )


def _table(result: EvaluationResult) -> str:
    table = result.formatted_table()
    rows = [
        Row(label=str(name), cells=cells, kind="agent" if name == result.agent.name else "")
        for name, cells in zip(table.index, table.itertuples(index=False, name=None), strict=True)
    ]
    return table_html(list(table.columns), rows)


def _facts(result: EvaluationResult, given: Mapping[str, str]) -> dict[str, str]:
    return {
        "Period": _period(result.agent),
        "Bars per year": f"{result.agent.bars_per_year:,.6g}",
        "Initial equity": f"{result.agent.equity_curve[0]:,.2f}",
        **given,
    }
