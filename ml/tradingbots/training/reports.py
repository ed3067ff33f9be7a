"""One HTML page that holds an evaluation and needs nothing else: `write_report`.

The page carries the figures of `figures.py` and the library that draws them, so it opens without a network, years later.
"""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from string import Template

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.training.figures import (
    ACCENT,
    FONT,
    GRID,
    INK,
    MUTED,
    PAPER,
    action_histogram_figure,
    curve_names,
    drawdown_figure,
    equity_figure,
    monthly_returns_figure,
    training_curves_figure,
    turnover_and_costs_figure,
    weights_figure,
)
from ml.tradingbots.training.formatting import spaced
from ml.tradingbots.training.loggers import STEP_COLUMN
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
    if history is not None and curve_names(history):
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
    for name in curve_names(history):
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
        body.append(f'<tr{kind}><th scope="row">{html.escape(spaced(str(name)))}</th>{cells}</tr>')
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
