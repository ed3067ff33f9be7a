"""One HTML page about an agent that was carried to another market: `write_transfer_report`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ml.tradingbots.components.transfer_results import FINE_TUNED, SCRATCH, TransferReport
from ml.tradingbots.training.figure_style import ACCENT, INK, LOSS, MUTED, new_figure
from ml.tradingbots.training.figures import drawdown_figure, equity_figure
from ml.tradingbots.training.page import (
    Row,
    facts_section,
    figure_section,
    page_html,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.results import EvaluationResult

CURVE_LINES: dict[str, dict[str, object]] = {
    FINE_TUNED: {"color": ACCENT, "width": 2.2},
    SCRATCH: {"color": LOSS, "width": 1.8},
}


def write_transfer_report(
    path: str | os.PathLike[str],
    report: TransferReport,
    result: EvaluationResult,
    *,
    title: str = "Transfer",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with what the transfer brought: learning curves, accounts, measures.

    The file contains all it needs and forbids the browser to fetch anything; it is written atomically.

    Args:
        path: the file to write.
        report: curves and measures.
        result: the fine-tuned agent's pass over the prices judged on; its baselines may be scratch, zero-shot and buy-and-hold.
        title: headline of the page.
        facts: what made the numbers, in words; versions are added.

    Returns:
        The path of the file.
    """
    return write_page(path, transfer_report_html(report, result, title=title, facts=facts))


def transfer_report_html(
    report: TransferReport, result: EvaluationResult, *, title: str = "Transfer", facts: Mapping[str, str] | None = None
) -> str:
    """Build the page that `write_transfer_report` writes; the same arguments give the same page."""
    first, last = result.agent.timestamps[0], result.agent.timestamps[-1]
    sample = "Out of sample" if report.out_of_sample else "In sample"
    period = f"{sample}, {first:%Y-%m-%d} to {last:%Y-%m-%d}, {result.agent.n_steps:,} bars"
    body = [
        section("What it brought", _measures(report), below=_measures_note(report)),
        figure_section(learning_curves_figure(report), _curve_note(report)),
        section("Accounts", _strategies(result), note=f"{period}, after costs."),
        figure_section(equity_figure(result), "Accounts on a log scale: equal slopes are equal growth."),
        figure_section(drawdown_figure(result), "How far each account lies below its highest close so far."),
        facts_section(facts or {}),
    ]
    return page_html(title=title, period=period, verdict=f"{report.verdict()} {result.verdict()}", body=body)


def learning_curves_figure(report: TransferReport) -> go.Figure:
    """Draw the score of the fine-tuned agent and of scratch over timesteps, with zero-shot and the threshold as levels."""
    figure = new_figure("Learning in the target market", height=380)
    for name, line in CURVE_LINES.items():
        if name not in report.curves:
            continue
        values = report.curves[name].dropna()
        figure.add_scatter(
            x=values.index.to_numpy(),
            y=values.to_numpy(np.float64),
            name=name,
            mode="lines+markers" if len(values) <= 40 else "lines",
            line=line,
            marker={"size": 5},
            hovertemplate="%{y:.3g} at %{x:,}",
        )
    ends = [0, int(report.curves.index[-1])]
    levels = {"zero-shot": (report.zero_shot, INK, "dash")}
    if math.isfinite(report.threshold):
        levels["threshold"] = (report.threshold, MUTED, "dot")
    for name, (level, colour, dash) in levels.items():
        line = {"color": colour, "width": 1.3, "dash": dash}
        figure.add_scatter(x=ends, y=[level, level], name=name, mode="lines", line=line, hovertemplate="%{y:.3g}")
    figure.update_xaxes(tickformat="~s", title_text="timesteps in the target market", range=ends)
    figure.update_yaxes(title_text=report.score_name)
    return figure.update_layout(margin_b=48)


def _measures(report: TransferReport) -> str:
    table = report.formatted_table().T
    rows = [
        Row(label=str(name), cells=[str(cell) for cell in cells], kind="agent" if name == FINE_TUNED else "")
        for name, cells in zip(table.index, table.to_numpy(), strict=True)
    ]
    return table_html([str(name) for name in table.columns], rows)


def _measures_note(report: TransferReport) -> str:
    where = "prices that nobody learned from" if report.out_of_sample else "prices that count as seen, in sample"
    counted = "The threshold is 90% of scratch's asymptote. " if report.threshold_given is None else ""
    return (
        f"Scores are the {report.score_name} of the deterministic policy on {where}, after costs. The asymptote is the mean "
        f"of the last fifth of a curve. {counted}Curves are scored on stretches of about a year side by side, accounts live "
        "the whole period. One run each: nothing is known of how runs differ by their seed."
    )


def _curve_note(report: TransferReport) -> str:
    thrown = " What was transferred was thrown away, so both begin with first weights." if report.reinitialized else ""
    return (
        f"Both learn from the same prices with the same settings; zero-shot is the transferred agent unchanged.{thrown}"
    )


def _strategies(result: EvaluationResult) -> str:
    table = result.formatted_table()
    rows = [
        Row(label=str(name), cells=[str(cell) for cell in cells], kind="agent" if number == 0 else "")
        for number, (name, cells) in enumerate(zip(table.index, table.to_numpy(), strict=True))
    ]
    return table_html([str(name) for name in table.columns], rows)
