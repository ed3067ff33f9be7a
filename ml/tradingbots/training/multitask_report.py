"""One HTML page about an agent of several tasks: `write_multitask_report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ml.tradingbots.training.figure_style import (
    ACCENT,
    HOLD_LINE,
    INK,
    LOSS,
    PAPER,
    log_equity_axis,
    new_figure,
    plain,
    thin,
)
from ml.tradingbots.training.formatting import format_change, format_number
from ml.tradingbots.training.loggers import STEP_COLUMN
from ml.tradingbots.training.multitask_evaluation import AGENT, SINGLE, TRANSFER, TaskEvaluation, TaskScore
from ml.tradingbots.training.page import (
    Row,
    facts_section,
    figure_section,
    legend_html,
    page_html,
    panels,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.results import BUY_AND_HOLD

LINES: dict[str, dict[str, object]] = {
    AGENT: {"color": ACCENT, "width": 2.2},
    SINGLE: {"color": "#c8741a", "width": 1.6},
    BUY_AND_HOLD: {**HOLD_LINE, "width": 1.2},
}
MEASURES = {"sharpe_ratio": "Sharpe ratio", "total_return": "total return", "reward": "mean reward per bar"}
# More panels would make a page that nobody reads to its end; all are in the tables.
MAX_PANELS = 12


def write_multitask_report(
    path: str | os.PathLike[str],
    found: TaskEvaluation,
    *,
    histories: Mapping[str, pd.DataFrame] | None = None,
    title: str = "Several tasks",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with the verdict, the evaluation matrix, every task's account and the learning curves.

    Args:
        path: the file to write; its folder is made where it is missing.
        found: what `evaluate_tasks` returned.
        histories: logs of training (`RLTrainingMetrics.history`): of all tasks together first, then of the controls.
        title: headline of the page.
        facts: what made the numbers, in words; versions are added.

    Returns:
        The path of the file.
    """
    return write_page(path, multitask_report_html(found, histories=histories, title=title, facts=facts))


def multitask_report_html(
    found: TaskEvaluation,
    *,
    histories: Mapping[str, pd.DataFrame] | None = None,
    title: str = "Several tasks",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Build the page that `write_multitask_report` writes; the same arguments give the same page."""
    body = [
        figure_section(matrix_figure(found), _matrix_note(found)),
        section("Task by task", _table(found), below=TABLE_NOTE),
        _equity_section(found),
    ]
    curves = learning_figure(histories or {})
    if curves is not None:
        kinds = " Rewards are of several kinds and sizes: look at shapes." if found.score == "reward" else ""
        body.append(figure_section(curves, CURVES_NOTE + kinds))
    body.append(facts_section(facts or {}))
    return page_html(title=title, period=_period(found), verdict=found.verdict(), body=body)


def as_text(scores: pd.DataFrame, score: TaskScore) -> pd.DataFrame:
    """Return scores as people read them; an en dash where there is none."""
    forms = {"sharpe_ratio": format_number, "total_return": format_change, "reward": _short}
    return scores.map(lambda value: "–" if np.isnan(value) else forms[score](value))


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def matrix_figure(found: TaskEvaluation) -> go.Figure:
    """Draw the evaluation matrix: policies down, tasks across, blue above 0 and brown below."""
    scores = found.matrix.to_numpy(np.float64)
    n_tasks = len(scores)
    names = [plain(str(name), longest=18) for name in found.matrix.columns]
    figure = new_figure("Whose policy, on which task", height=130 + max(34 * n_tasks, 80))
    # Objectives have units of their own, so each column has its own scale.
    size = np.abs(scores).max(0) if found.score == "reward" else np.full(n_tasks, np.abs(scores).max())
    texts = as_text(found.matrix, found.score).to_numpy() if n_tasks <= 12 else None
    figure.add_heatmap(
        x=names,
        y=names,
        z=scores / np.where(size > 0.0, size, 1.0),
        customdata=scores,
        text=texts,
        texttemplate="%{text}" if texts is not None else None,
        hovertemplate="policy of %{y} on %{x}: %{customdata:.3g}<extra></extra>",
        zmin=-1.0,
        zmax=1.0,
        colorscale=[[0.0, LOSS], [0.5, PAPER], [1.0, ACCENT]],
        showscale=False,
        xgap=2,
        ygap=2,
    )
    for place in range(n_tasks):
        # The diagonal: a task's own policy.
        box = {"x0": place - 0.5, "x1": place + 0.5, "y0": place - 0.5, "y1": place + 0.5}
        figure.add_shape(type="rect", **box, line={"color": INK, "width": 1.4})
    slanted = n_tasks > 8
    figure.update_xaxes(side="top", showline=False, ticks="", tickangle=-45 if slanted else 0, dtick=1)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, dtick=1, title_text="policy of")
    return figure.update_layout(
        hovermode="closest", showlegend=True, margin_l=140, margin_b=16, margin_t=90 if slanted else 56
    )


def task_equity_figure(curves: pd.DataFrame) -> go.Figure:
    """Draw what 1 became in one task: the agent of all tasks, the agent of this one, and buy-and-hold."""
    figure = new_figure("Equity", height=240)
    times = pd.DatetimeIndex(curves.index)
    for name in reversed([name for name in LINES if name in curves]):
        x, thinned = thin(times, curves[name].to_numpy(np.float64))
        line = LINES[name]
        figure.add_scatter(x=x, y=thinned, name=plain(name), mode="lines", line=line, hovertemplate="%{y:,.3f}")
    log_equity_axis(figure, [curves.to_numpy(np.float64).ravel()])
    return figure.update_layout(showlegend=False).update_yaxes(zeroline=False)


def learning_figure(histories: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    """Draw the mean reward of training episodes over the share of the training done; None without a log."""
    known = {
        name: history.dropna(subset=["episode_return"])
        for name, history in histories.items()
        if "episode_return" in history and history["episode_return"].notna().any()
    }
    if not known:
        return None
    figure = new_figure("Learning", height=300)
    for number, (name, history) in enumerate(reversed(list(known.items()))):
        is_agent = number == len(known) - 1
        steps = history[STEP_COLUMN].to_numpy(np.float64)
        width = 2.2 if is_agent else 1.0
        figure.add_scatter(
            x=steps / steps[-1],
            y=history["episode_return"],
            name=plain(AGENT if is_agent else f"alone: {name}", longest=28),
            mode="lines",
            line={"color": ACCENT, "width": width} if is_agent else {"color": "#c8741a", "width": width},
            opacity=1.0 if is_agent else 0.45,
            showlegend=is_agent,
            hovertemplate="%{y:.3g}",
        )
    if len(known) > 1:
        figure.add_scatter(x=[None], y=[None], mode="lines", name="each task alone", line=LINES[SINGLE])
    figure.update_xaxes(tickformat=".0%", title_text="of its training", range=[0.0, 1.0], title_standoff=8)
    return figure.update_yaxes(title_text="reward of an episode").update_layout(margin_b=52, legend_traceorder="normal")


def _table(found: TaskEvaluation) -> str:
    heads = {AGENT: AGENT, SINGLE: SINGLE, TRANSFER: "transfer", BUY_AND_HOLD: "buy and hold"}
    shown = as_text(found.comparison, found.score)
    rows = [Row(label=str(name), cells=[str(shown.loc[name, column]) for column in heads]) for name in shown.index]
    return table_html(list(heads.values()), rows)


def _equity_section(found: TaskEvaluation) -> str:
    shown = dict(list(found.equity.items())[:MAX_PANELS])
    figures = {name: task_equity_figure(curves) for name, curves in shown.items()}
    lines = {name: line for name, line in LINES.items() if any(name in curves for curves in shown.values())}
    left = len(found.equity) - len(shown)
    note = f"The first {MAX_PANELS} tasks; {left} more are in the tables." if left else ""
    return section("Accounts", legend_html(lines), panels("equity", figures), note=EQUITY_NOTE, below=note)


def _matrix_note(found: TaskEvaluation) -> str:
    units = " Colours are on a scale of each column's own." if found.score == "reward" else ""
    return (
        f"{MEASURES[found.score].capitalize()} out of sample, after costs. In a row the policy of one task, in a column the "
        f"task that it is judged on; framed, its own. Where a column is all alike, the task needs no policy of its own.{units}"
    )


def _period(found: TaskEvaluation) -> str:
    first = min(curves.index[0] for curves in found.equity.values())
    last = max(curves.index[-1] for curves in found.equity.values())
    return f"Out of sample, {first:%Y-%m-%d} to {last:%Y-%m-%d}, {len(found.equity)} tasks"


TABLE_NOTE = (
    "Single task: an agent of the same kind and settings that learned this task only, from as many timesteps of it, after as "
    "many random ones. – took no gradient step or was not trained. "
    "Transfer is the difference: below 0, learning together did harm (negative transfer)."
)
EQUITY_NOTE = "What 1 became out of sample, after costs; log scale."
CURVES_NOTE = (
    "Mean reward of the last training episodes, exploration included; of all tasks together, and of each alone."
)
