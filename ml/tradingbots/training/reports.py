"""Figures of an evaluation, and one HTML page that holds them all and needs nothing else.

The functions that end in `_figure` return Plotly figures for notebooks and web pages; `write_report` puts the same
figures into a page that opens without a network, years later. The agent has the one colour; what it is compared with is
grey.
"""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.core.metrics import drawdown
from ml.tradingbots.training.loggers import STEP_COLUMN
from ml.tradingbots.training.results import (
    EvaluationResult,
    FloatArray,
    Trajectory,
    action_histogram,
    format_change,
    monthly_returns,
)

ACCENT = "#1d5fbf"
LOSS = "#b5532a"
INK = "#1c2026"
MUTED = "#667080"
GRID = "#e9ecf0"
PAPER = "#ffffff"
BASELINE_GREYS = ("#3f4650", "#7b838f", "#949ca7", "#b3b9c2")
BASELINE_DASHES = ("solid", "dash", "dot", "dashdot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

MAX_POINTS = 2_000
"""Points drawn per line: more than a screen is wide, and a million bars still make a small page."""

MAX_BINS = 120
"""Bars drawn for turnover and columns drawn for weights."""

FIRST_COLUMNS = ("eval_sharpe", "episode_return", "actor_loss", "critic_loss", "alpha")
"""What comes first among the training curves; the rest follows in its own order."""


def equity_figure(result: EvaluationResult) -> go.Figure:
    """Draw the account of the agent and of each baseline, on a log scale: equal slopes are equal growth."""
    figure = _figure("Equity")
    values = {name: trajectory.equity_curve for name, trajectory in result.strategies.items()}
    _add_strategies(figure, result, values, hover="%{y:,.0f}")
    _log_equity_axis(figure, values.values())
    return figure


def equity_curve_figure(trajectory: Trajectory) -> go.Figure:
    """Draw the account of one pass, on a log scale."""
    return equity_figure(EvaluationResult(agent=trajectory)).update_layout(title_text=f"Equity of {trajectory.name}")


def drawdown_figure(result: EvaluationResult) -> go.Figure:
    """Draw how far each account lies below its highest close so far, as percentages below zero."""
    figure = _figure("Drawdown")
    values = {name: -drawdown(trajectory.equity_curve) for name, trajectory in result.strategies.items()}
    _add_strategies(figure, result, values, hover="%{y:.1%}")
    figure.update_traces(fill="tozeroy", fillcolor=_transparent(ACCENT, 0.12), selector={"meta": result.agent.name})
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def weights_figure(result: EvaluationResult) -> go.Figure:
    """Draw what the agent held: an area for one asset, a row of colours for each of several."""
    agent = result.agent
    figure = _figure("Weights held")
    if len(agent.assets) == 1:
        times, values = _thin(agent.timestamps, agent.weights[:, 0])
        figure.add_scatter(
            x=times,
            y=values,
            name=agent.assets[0],
            line={"color": ACCENT, "width": 1.2, "shape": "hv"},
            fill="tozeroy",
            fillcolor=_transparent(ACCENT, 0.12),
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
    _style(figure, "Turnover and costs", height=420)
    figure.add_bar(
        x=turnover.index,
        y=turnover.to_numpy(),
        marker_color=ACCENT,
        hovertemplate="%{y:.2f}×<extra></extra>",
        row=1,
        col=1,
    )
    times, costs = _thin(agent.timestamps[1:], np.cumsum(agent.costs) / agent.equity_curve[0])
    figure.add_scatter(
        x=times,
        y=costs,
        line={"color": ACCENT, "width": 1.8},
        hovertemplate="%{y:.2%}<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_yaxes(rangemode="tozero").update_yaxes(ticksuffix="×", row=1).update_yaxes(tickformat=".1~%", row=2)
    _caption_panel(figure, 1, f"Turnover per {stretch}, times equity")
    _caption_panel(figure, 2, "Trading costs so far, share of initial equity")
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
    figure = _figure("Monthly returns, %")
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
        colorscale=[[0.0, _mixed(LOSS)], [0.5, PAPER], [1.0, _mixed(ACCENT)]],
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
    figure = _figure("Actions", height=260)
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
    names = _curve_names(history)
    if not names:
        raise ValueError(f"history must have a numeric column besides {STEP_COLUMN}, got {list(history.columns)}")
    n_columns = min(2, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = make_subplots(rows=n_rows, cols=n_columns, vertical_spacing=min(0.3, 0.4 / n_rows), horizontal_spacing=0.1)
    _style(figure, "Training", height=80 + 190 * n_rows)
    for panel, name in enumerate(names):
        logged = history[[STEP_COLUMN, name]].dropna()
        steps, values = _thin(logged[STEP_COLUMN].to_numpy(), logged[name].to_numpy(np.float64))
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
        _caption_panel(figure, panel + 1, name.replace("_", " "))
    figure.update_xaxes(tickformat="~s", nticks=6).update_yaxes(nticks=5)
    return figure.update_layout(showlegend=False, hovermode="closest")


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, report_html(result, history=history, title=title, facts=facts).encode("utf-8"))
    return path


def report_html(
    result: EvaluationResult,
    *,
    history: pd.DataFrame | None = None,
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Build the page that `write_report` writes; the same arguments give the same page."""
    sections = [
        _section(equity_figure(result), "Account value after all costs, log scale."),
        _section(drawdown_figure(result), "Distance below the highest close so far."),
        _section(monthly_returns_figure(result), "", wide=True),
        _section(weights_figure(result), "Share of equity held at each close; below zero is short."),
        _section(turnover_and_costs_figure(result), ""),
        _section(action_histogram_figure(result), "What the policy answered, before limits and costs."),
    ]
    if history is not None and _curve_names(history):
        sections.append(_training_section(history))
    return _PAGE.substitute(
        title=html.escape(title),
        style=_STYLE,
        plotly=get_plotlyjs(),
        period=html.escape(_period(result.agent)),
        verdict=html.escape(result.verdict()),
        table=_table(result),
        findings="".join(f"<li>{html.escape(finding)}</li>" for finding in result.diagnosis()),
        sections="\n".join(sections),
        facts=_facts(result, facts or {}),
    )


def _figure(title: str, *, height: int = 340) -> go.Figure:
    return _style(go.Figure(), title, height=height)


def _style(figure: go.Figure, title: str, *, height: int) -> go.Figure:
    """Give a figure the look of the project: no frame, few light lines, text in the colour of text."""
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0.0, "xref": "paper", "xanchor": "left", "font": {"size": 16, "color": INK}},
        font={"family": FONT, "size": 12, "color": MUTED},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        height=height,
        margin={"l": 52, "r": 12, "t": 56, "b": 36},
        legend={
            "orientation": "h",
            "x": 0.0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"color": INK},
        },
        hovermode="x unified",
        hoverlabel={"bgcolor": PAPER, "bordercolor": GRID, "font": {"family": FONT, "color": INK}},
    )
    figure.update_xaxes(showgrid=False, zeroline=False, showline=True, linecolor=GRID, ticks="outside", tickcolor=GRID)
    return figure.update_yaxes(gridcolor=GRID, zeroline=True, zerolinecolor="#b3b9c2", ticks="", nticks=6)


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
    times, thinned = _thin(trajectory.timestamps, values)
    figure.add_scatter(
        x=times,
        y=thinned,
        name=_spaced(name),
        meta=name,
        mode="lines",
        line=line,
        legendrank=legend_rank,
        hovertemplate=hover,
    )


def _log_equity_axis(figure: go.Figure, curves: Iterable[FloatArray]) -> None:
    """Put round numbers on a log axis, where Plotly would write digits without their power of ten."""
    values = np.concatenate(list(curves))
    values = values[np.isfinite(values) & (values > 0.0)]
    if len(values) == 0:
        return
    ticks = _round_values(float(values.min()), float(values.max()))
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[_short_amount(value) for value in ticks])


def _round_values(low: float, high: float) -> list[float]:
    """Choose a handful of round numbers between two positive amounts."""
    if high / low > 8.0:
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        steps = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
        return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    rough = max(high - low, 0.01 * high) / 5.0
    size = 10.0 ** np.floor(np.log10(rough))
    step = float(size * min((1.0, 2.0, 5.0, 10.0), key=lambda factor: abs(np.log(factor * size / rough))))
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return [float(f"{count * step:.6g}") for count in range(first, last + 1)] or [low]


def _short_amount(value: float) -> str:
    """Write an amount with k, M or B."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def _thin(x: pd.DatetimeIndex | NDArray[np.generic], values: FloatArray) -> tuple[object, FloatArray]:
    """Keep the lowest and the highest of every few points, and both ends, so that no extreme is lost."""
    x = x.tz_localize(None) if isinstance(x, pd.DatetimeIndex) else x
    if len(values) <= MAX_POINTS:
        return x, values
    parts = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
    extremes = [part[index] for part in parts for index in (values[part].argmin(), values[part].argmax())]
    kept = np.unique([0, *extremes, len(values) - 1])
    return x[kept], values[kept]


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


def _month_label(value: float) -> str:
    return "" if np.isnan(value) else format_change(value).rstrip("%")


def _curve_names(history: pd.DataFrame) -> list[str]:
    if STEP_COLUMN not in history:
        return []
    numeric = history.select_dtypes("number").dropna(axis="columns", how="all")
    names = [str(name) for name in numeric if name != STEP_COLUMN]
    return sorted(names, key=lambda name: FIRST_COLUMNS.index(name) if name in FIRST_COLUMNS else len(FIRST_COLUMNS))


def _caption_panel(figure: go.Figure, panel: int, text: str) -> None:
    suffix = "" if panel == 1 else str(panel)
    figure.add_annotation(
        text=text,
        xref=f"x{suffix} domain",
        yref=f"y{suffix} domain",
        x=0.0,
        y=1.0,
        yshift=18,
        xanchor="left",
        showarrow=False,
        font={"color": INK, "size": 12},
    )


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _mixed(colour: str) -> str:
    """Mix a colour with as much white as dark text on it needs."""
    parts = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return "#" + "".join(f"{round(0.55 * part + 0.45 * 255):02x}" for part in parts)


def _section(figure: go.Figure, caption: str, *, wide: bool = False) -> str:
    """Turn a figure into a section of the page, its title into the section's heading."""
    heading = html.escape(figure.layout.title.text)
    figure.update_layout(title_text=None, margin_t=30 if figure.layout.showlegend is not False else 22)
    note = f"<p>{html.escape(caption)}</p>" if caption else ""
    kind = "figure wide" if wide else "figure"
    return f'<section><h2>{heading}</h2>{note}<div class="{kind}">{_embedded(figure, heading)}</div></section>'


def _training_section(history: pd.DataFrame) -> str:
    """Lay the training curves out as separate small figures, which a phone can stack."""
    panels = []
    for name in _curve_names(history):
        figure = training_curves_figure(history[[STEP_COLUMN, name]])
        figure.update_layout(title_text=None, height=210, margin={"l": 44, "r": 8, "t": 34, "b": 30})
        panels.append(f'<div class="figure">{_embedded(figure, f"training {name}")}</div>')
    return f'<section><h2>Training</h2><p>Over timesteps.</p><div class="panels">{"".join(panels)}</div></section>'


def _embedded(figure: go.Figure, name: str) -> str:
    # A name of our own: Plotly's random one would make every page different.
    identifier = "figure-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    configuration = {"displayModeBar": False, "responsive": True, "showTips": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=identifier, config=configuration))


def _period(trajectory: Trajectory) -> str:
    first, last = trajectory.timestamps[0], trajectory.timestamps[-1]
    intraday = any(stamp != stamp.normalize() for stamp in (first, last)) and (last - first).days < 10
    form = "%Y-%m-%d %H:%M" if intraday else "%Y-%m-%d"
    return (
        f"{first.strftime(form)} to {last.strftime(form)}, {trajectory.n_steps:,} bars, {', '.join(trajectory.assets)}"
    )


def _table(result: EvaluationResult) -> str:
    table = result.formatted_table()
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *table.columns])
    body = []
    for name, row in zip(table.index, table.itertuples(index=False), strict=True):
        kind = ' class="agent"' if name == result.agent.name else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body.append(f'<tr{kind}><th scope="row">{html.escape(_spaced(str(name)))}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _facts(result: EvaluationResult, given: Mapping[str, str]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pandas"))
    facts = {
        "Period": _period(result.agent),
        "Bars per year": f"{result.agent.bars_per_year:,.6g}",
        "Initial equity": f"{result.agent.equity_curve[0]:,.2f}",
        **given,
        "Versions": given.get("Versions", f"Python {platform.python_version()}, {packages}"),
    }
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items()
    )


_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: {PAPER}; color: {INK}; font: 16px/1.5 {FONT}; -webkit-text-size-adjust: 100%; }}
main {{ max-width: 1040px; margin: 0 auto; padding: 48px 24px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; margin: 0; }}
h2 {{ font-size: 18px; margin: 0; }}
section {{ margin-top: 44px; }}
section > p, .period {{ margin: 2px 0 0; color: {MUTED}; font-size: 14px; }}
.verdict {{ margin: 28px 0 24px; padding-left: 16px; border-left: 3px solid {ACCENT}; font-size: 19px;
  max-width: 46em; }}
.scroll, .wide {{ overflow-x: auto; }}
.wide > div {{ min-width: 720px; }}
.figure {{ margin-top: 6px; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 8px 28px; }}
.panels > * {{ min-width: 0; }}
table {{ width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 8px 0 8px 20px; text-align: right; white-space: nowrap; border-bottom: 1px solid {GRID}; }}
th:first-child {{ padding-left: 0; text-align: left; }}
thead th {{ color: {MUTED}; font-weight: 500; }}
tbody th {{ font-weight: 400; }}
.agent > * {{ color: {ACCENT}; font-weight: 600; }}
ul {{ margin: 10px 0 0; padding-left: 18px; }}
li {{ margin: 2px 0; }}
dl {{ margin: 12px 0 0; display: grid; gap: 14px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); }}
dt {{ color: {MUTED}; font-size: 13px; }}
dd {{ margin: 0; font-size: 14px; overflow-wrap: anywhere; }}
@media (max-width: 600px) {{
  main {{ padding: 28px 16px 40px; }}
  h1 {{ font-size: 24px; }}
  .verdict {{ font-size: 17px; }}
}}
"""

# default-src 'none' makes the promise hold: the browser itself refuses to fetch anything for this page.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
<script>$plotly</script>
</head>
<body>
<main>
<header><h1>$title</h1><p class="period">$period</p></header>
<p class="verdict">$verdict</p>
<div class="scroll">$table</div>
<section><h2>How it trades</h2><ul>$findings</ul></section>
$sections
<section><h2>Facts</h2><dl>$facts</dl></section>
</main>
<script>
// On a touch screen a finger on a figure scrolls the page; with a mouse, dragging zooms in time.
const touch = matchMedia("(pointer: coarse)").matches;
for (const figure of document.querySelectorAll(".js-plotly-plot")) {
  Plotly.relayout(figure, {autosize: true, dragmode: touch ? false : "zoom", "yaxis.fixedrange": true});
}
</script>
</body>
</html>
""")
