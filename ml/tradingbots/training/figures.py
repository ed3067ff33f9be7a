"""Figures of an evaluation and of a training run, for notebooks, web pages and the report.

Every function that ends in `_figure` returns a Plotly figure. The agent has the one colour; what it is compared with is
grey.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ml.tradingbots.core.metrics import drawdown
from ml.tradingbots.training.diagnosis import action_histogram
from ml.tradingbots.training.figure_style import (
    ACCENT,
    BASELINE_DASHES,
    BASELINE_GREYS,
    INK,
    LOSS,
    PAPER,
    apply_style,
    caption_panel,
    log_equity_axis,
    new_figure,
    thin,
    tinted,
    transparent,
)
from ml.tradingbots.training.formatting import format_change, spaced
from ml.tradingbots.training.loggers import STEP_COLUMN
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.trajectory import FloatArray, Trajectory, monthly_returns

MAX_BINS = 120
"""Bars drawn for turnover and columns drawn for weights."""

FIRST_COLUMNS = ("eval_sharpe", "episode_return", "actor_loss", "critic_loss", "alpha")
"""What comes first among the training curves; the rest follows in its own order."""


def equity_figure(result: EvaluationResult) -> go.Figure:
    """Draw the account of the agent and of each baseline, on a log scale: equal slopes are equal growth."""
    figure = new_figure("Equity")
    values = {name: trajectory.equity_curve for name, trajectory in result.strategies.items()}
    _add_strategies(figure, result, values, hover="%{y:,.0f}")
    log_equity_axis(figure, values.values())
    return figure


def drawdown_figure(result: EvaluationResult) -> go.Figure:
    """Draw how far each account lies below its highest close so far, as percentages below zero."""
    figure = new_figure("Drawdown")
    values = {name: -drawdown(trajectory.equity_curve) for name, trajectory in result.strategies.items()}
    _add_strategies(figure, result, values, hover="%{y:.1%}")
    figure.update_traces(fill="tozeroy", fillcolor=transparent(ACCENT, 0.12), selector={"meta": result.agent.name})
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def weights_figure(result: EvaluationResult) -> go.Figure:
    """Draw what the agent held: an area for one asset, a row of colours for each of several."""
    agent = result.agent
    figure = new_figure("Weights held")
    if len(agent.assets) == 1:
        times, values = thin(agent.timestamps, agent.weights[:, 0])
        figure.add_scatter(
            x=times,
            y=values,
            name=agent.assets[0],
            line={"color": ACCENT, "width": 1.2, "shape": "hv"},
            fill="tozeroy",
            fillcolor=transparent(ACCENT, 0.12),
            hovertemplate="%{y:.1%}<extra></extra>",
        )
        return figure.update_yaxes(tickformat=".0%", rangemode="tozero").update_layout(showlegend=False)
    times, columns = _binned_mean(agent.timestamps, agent.weights)
    limit = float(np.abs(columns).max()) or 1.0
    figure.add_heatmap(
        x=times,
        y=list(agent.assets),
        z=columns.T,
        zmin=-limit,
        zmax=limit,
        colorscale=[[0.0, LOSS], [0.5, PAPER], [1.0, ACCENT]],
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "len": 1.0},
        ygap=2,
        hovertemplate="%{y} %{z:.1%}<br>%{x|%Y-%m-%d}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    return figure.update_layout(height=max(220, 90 + 26 * len(agent.assets)), hovermode="closest")


def turnover_and_costs_figure(result: EvaluationResult) -> go.Figure:
    """Draw how much the agent trades in each stretch of time, and what that has cost so far."""
    agent = result.agent
    stretch, turnover = _summed_by_calendar(agent.timestamps[1:], agent.turnover)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16)
    apply_style(figure, "Turnover and costs", height=420)
    figure.add_bar(
        x=turnover.index,
        y=turnover.to_numpy(),
        marker_color=ACCENT,
        hovertemplate="%{y:.2f}×<extra></extra>",
        row=1,
        col=1,
    )
    times, costs = thin(agent.timestamps[1:], np.cumsum(agent.costs) / agent.equity_curve[0])
    figure.add_scatter(
        x=times,
        y=costs,
        line={"color": ACCENT, "width": 1.8},
        hovertemplate="%{y:.2%}<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_yaxes(rangemode="tozero").update_yaxes(ticksuffix="×", row=1).update_yaxes(tickformat=".2~%", row=2)
    caption_panel(figure, 1, f"Turnover per {stretch}, times equity")
    caption_panel(figure, 2, "Trading costs so far, share of initial equity")
    return figure.update_layout(showlegend=False, bargap=0.25)


def monthly_returns_figure(result: EvaluationResult) -> go.Figure:
    """Draw the agent's return in each month, one row per year, with the year's return at the end."""
    months = monthly_returns(result.agent)
    periods = pd.PeriodIndex(months.index)
    by_year = pd.DataFrame({"year": periods.year, "month": periods.month, "value": months.to_numpy()})
    grid = by_year.pivot(index="year", columns="month", values="value").reindex(columns=range(1, 13))
    years = by_year.groupby("year")["value"].agg(lambda values: float(np.prod(1.0 + values)) - 1.0)
    cells = grid.to_numpy()
    labels = [[_month_label(value) for value in row] for row in cells]
    limit = float(np.nanmax(np.abs(cells))) or 1.0
    figure = new_figure("Monthly returns, %")
    figure.add_heatmap(
        x=["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Year"],
        y=[str(year) for year in grid.index],
        # The year's cell has no colour: it is another quantity, and would drown the months.
        z=np.column_stack([cells, np.zeros(len(grid))]),
        text=[[*row, f"<b>{_month_label(year)}</b>"] for row, year in zip(labels, years, strict=True)],
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        zmin=-limit,
        zmax=limit,
        colorscale=[[0.0, _pale(LOSS)], [0.5, PAPER], [1.0, _pale(ACCENT)]],
        showscale=False,
        xgap=2,
        ygap=2,
        hoverinfo="skip",
    )
    figure.update_xaxes(type="category", side="top", showline=False, ticks="", fixedrange=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, fixedrange=True, zeroline=False)
    return figure.update_layout(height=max(140, 70 + 34 * len(grid)), hovermode=False, showlegend=False)


def action_histogram_figure(result: EvaluationResult) -> go.Figure:
    """Draw where the agent's actions lie in their range, all assets together."""
    agent = result.agent
    edges, shares = action_histogram(agent, n_bins=40)
    figure = new_figure("Actions", height=260)
    middles = edges if agent.has_discrete_actions else (edges[:-1] + edges[1:]) / 2.0
    figure.add_bar(x=middles, y=shares, marker_color=ACCENT, hovertemplate="%{x:.2f}: %{y:.1%}<extra></extra>")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", title_text="share of actions")
    if agent.has_discrete_actions:
        figure.update_xaxes(tickvals=edges, tickformat="d")
    else:
        figure.update_xaxes(range=[agent.action_low, agent.action_high])
    figure.update_xaxes(title_text="action")
    return figure.update_layout(bargap=0.08, hovermode="closest", showlegend=False, margin_b=44)


def training_curves_figure(history: pd.DataFrame) -> go.Figure:
    """Draw each logged number over the timesteps of training, a panel each.

    Args:
        history: rows of a logger; one numeric column per panel, NaN where nothing was logged, and `num_timesteps`.
    """
    names = curve_names(history)
    if not names:
        raise ValueError(f"history must have a numeric column besides {STEP_COLUMN}, got {list(history.columns)}")
    n_columns = min(2, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = make_subplots(rows=n_rows, cols=n_columns, vertical_spacing=min(0.3, 0.4 / n_rows), horizontal_spacing=0.1)
    apply_style(figure, "Training", height=80 + 190 * n_rows)
    for panel, name in enumerate(names):
        logged = history[[STEP_COLUMN, name]].dropna()
        steps, values = thin(logged[STEP_COLUMN].to_numpy(), logged[name].to_numpy(np.float64))
        few = len(values) <= 40
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines+markers" if few else "lines",
            line={"color": ACCENT, "width": 1.5},
            marker={"size": 5},
            hovertemplate="%{y:.4g} at %{x:,}<extra></extra>",
            row=panel // n_columns + 1,
            col=panel % n_columns + 1,
        )
        caption_panel(figure, panel + 1, spaced(name))
    figure.update_xaxes(tickformat="~s", nticks=6).update_yaxes(nticks=5)
    return figure.update_layout(showlegend=False, hovermode="closest")


def _add_strategies(
    figure: go.Figure, result: EvaluationResult, values: Mapping[str, FloatArray], *, hover: str
) -> None:
    """Add a line per strategy, the agent's last, so that it lies on top; the legend still names it first."""
    for rank, (name, trajectory) in enumerate(result.baselines.items()):
        line = {
            "color": BASELINE_GREYS[rank % len(BASELINE_GREYS)],
            "width": 1.3,
            "dash": BASELINE_DASHES[rank % len(BASELINE_DASHES)],
        }
        _add_line(figure, name, trajectory, values[name], line=line, hover=hover, legend_rank=2 + rank)
    agent = result.agent
    line = {"color": ACCENT, "width": 2.2}
    _add_line(figure, agent.name, agent, values[agent.name], line=line, hover=hover, legend_rank=1)


def _add_line(
    figure: go.Figure,
    name: str,
    trajectory: Trajectory,
    values: FloatArray,
    *,
    line: dict[str, object],
    hover: str,
    legend_rank: int,
) -> None:
    times, thinned = thin(trajectory.timestamps, values)
    figure.add_scatter(
        x=times,
        y=thinned,
        name=spaced(name),
        meta=name,
        mode="lines",
        line=line,
        legendrank=legend_rank,
        hovertemplate=hover,
    )


def _binned_mean(timestamps: pd.DatetimeIndex, values: FloatArray) -> tuple[pd.DatetimeIndex, FloatArray]:
    """Average (n_bars, n_assets) over at most twice `MAX_BINS` stretches of time; each is named by its first close."""
    parts = np.array_split(np.arange(len(values)), min(2 * MAX_BINS, len(values)))
    times = timestamps.tz_localize(None)[[part[0] for part in parts]]
    return times, np.stack([values[part].mean(axis=0) for part in parts])


def _summed_by_calendar(timestamps: pd.DatetimeIndex, values: FloatArray) -> tuple[str, pd.Series[float]]:
    """Sum over the shortest stretch of the calendar that makes at most `MAX_BINS` bars."""
    series = pd.Series(values, index=timestamps.tz_localize(None))
    if len(series) <= MAX_BINS:
        return "bar", series
    for stretch, frequency in (("hour", "h"), ("day", "D"), ("week", "W-MON"), ("month", "MS"), ("quarter", "QS")):
        summed = series.resample(frequency, label="left", closed="left").sum()
        if len(summed) <= MAX_BINS:
            return stretch, summed
    return "year", series.resample("YS").sum()


def _pale(colour: str) -> str:
    """Mix a colour with as much white as dark text on it needs."""
    return tinted(colour, 0.55)


def _month_label(value: float) -> str:
    return "" if np.isnan(value) else format_change(value).rstrip("%")


def curve_names(history: pd.DataFrame) -> list[str]:
    """Names of the logged numbers that can be drawn over timesteps, the most telling first."""
    if STEP_COLUMN not in history:
        return []
    numeric = history.select_dtypes("number").dropna(axis="columns", how="all")
    names = [str(name) for name in numeric if name != STEP_COLUMN]
    return sorted(names, key=lambda name: FIRST_COLUMNS.index(name) if name in FIRST_COLUMNS else len(FIRST_COLUMNS))
