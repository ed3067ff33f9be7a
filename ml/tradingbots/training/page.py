"""The HTML page of every report: one file that holds its figures and the library that draws them, and fetches nothing."""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.training.figure_style import ACCENT, FONT, GRID, INK, MUTED, PAPER
from ml.tradingbots.training.formatting import spaced


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    label: str
    cells: Sequence[str] = ()
    """One text per column."""
    kind: str = ""
    """How it looks: "agent" stands out, "naive" recedes, "group" is a heading over the rows below it."""


def page_html(*, title: str, period: str, verdict: str, body: Iterable[str]) -> str:
    """Build a page.

    Args:
        title: headline, as text.
        period: the line under it, as text.
        verdict: what can be concluded, as text; it comes first.
        body: tables and sections, as HTML.

    Returns:
        The whole document; the same arguments give the same page.
    """
    return _PAGE.substitute(
        title=html.escape(title),
        style=_STYLE,
        plotly=get_plotlyjs(),
        period=html.escape(period),
        verdict=html.escape(verdict),
        body="\n".join(body),
    )


def write_page(path: str | os.PathLike[str], page: str) -> Path:
    """Write a page next to its final name, sync and rename it: a crash leaves the old page or the new one."""
    return write_atomically(Path(path), page.encode("utf-8"))


def section(heading: str, *content: str, note: str = "", below: str = "") -> str:
    """Put HTML under a heading and a note, which are text, and above what is to be said `below`."""
    caption, remark = (f"<p>{html.escape(text)}</p>" if text else "" for text in (note, below))
    return f"<section><h2>{html.escape(heading)}</h2>{caption}{''.join(content)}{remark}</section>"


def figure_section(figure: go.Figure, caption: str, *, wide: bool = False) -> str:
    """Turn a figure into a section of the page, its title into the section's heading.

    Args:
        figure: it loses its title.
        caption: how to read it.
        wide: whether a phone scrolls it sideways rather than squeezing it.
    """
    heading = str(figure.layout.title.text)
    figure.update_layout(title_text=None, margin_t=30 if figure.layout.showlegend is not False else 22)
    kind = "figure wide" if wide else "figure"
    return section(heading, f'<div class="{kind}">{embedded(figure, heading)}</div>', note=caption)


def panels(of: str, figures: Mapping[str, go.Figure], *, wide: bool = False) -> str:
    """Lay figures out side by side, each under its name; a phone stacks them.

    Args:
        of: what they show, which tells them from panels of the same names elsewhere in the page.
        figures: by name; they lose their titles.
        wide: whether two of them fill the page, rather than three.
    """
    parts = []
    # All alike, so that axes that stand beside each other are level.
    above = any(figure.layout.showlegend is not False or figure.layout.annotations for figure in figures.values())
    for name, figure in figures.items():
        figure.update_layout(title_text=None, margin_t=30 if above else 10)
        drawn = embedded(figure, f"{of} {name}")
        parts.append(f'<div class="figure"><h3>{html.escape(spaced(name))}</h3>{drawn}</div>')
    return f'<div class="panels{" pair" if wide else ""}">{"".join(parts)}</div>'


def legend_html(lines: Mapping[str, Mapping[str, object]]) -> str:
    """Return one legend for several figures.

    Args:
        lines: by name, as Plotly has them: `color`, `width` in pixels and, where it is not solid, `dash`. One with `text`
            is that text instead, such as a mark.
    """
    entries = []
    for name, line in lines.items():
        if "text" in line:
            mark = html.escape(str(line["text"]))
            entries.append(f'<span><b style="color: {line["color"]}">{mark}</b>{html.escape(spaced(name))}</span>')
            continue
        dashes = f' stroke-dasharray="{_DASHES[str(line["dash"])]}"' if line.get("dash") in _DASHES else ""
        stroke = f'stroke="{line["color"]}" stroke-width="{line["width"]}"{dashes}'
        swatch = f'<svg width="24" height="10" aria-hidden="true"><line x1="0" y1="5" x2="24" y2="5" {stroke}/></svg>'
        entries.append(f"<span>{swatch}{html.escape(spaced(name))}</span>")
    return f'<p class="legend">{"".join(entries)}</p>'


def embedded(figure: go.Figure, name: str) -> str:
    """Return the HTML that draws a figure in the page; `name` must be one of a kind in it."""
    # A name of our own: Plotly's random one would make every page different.
    identifier = "figure-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    configuration = {"displayModeBar": False, "responsive": True, "showTips": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=identifier, config=configuration))


def table_html(columns: Sequence[str], rows: Iterable[Row], *, small_brackets: bool = False) -> str:
    """Return a table that scrolls sideways where it does not fit.

    Args:
        columns: headings of the cells.
        rows: what stands under them; the label comes first.
        small_brackets: whether to set what stands in brackets at the end of a cell small beneath it, less its signs of
            per cent, which the number above has.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *columns])
    body = []
    for row in rows:
        kind = f' class="{html.escape(row.kind)}"' if row.kind else ""
        if row.kind == "group":
            body.append(f'<tr{kind}><th colspan="{len(columns) + 1}">{html.escape(row.label)}</th></tr>')
            continue
        cells = "".join(f"<td>{_cell(text, small_brackets)}</td>" for text in row.cells)
        body.append(f'<tr{kind}><th scope="row">{html.escape(spaced(row.label))}</th>{cells}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll{" dense" if small_brackets else ""}">{table}</div>'


def facts_section(facts: Mapping[str, str]) -> str:
    """Return the section of what made the numbers; the versions are added where they are not given."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pandas"))
    versions = {"Versions": facts.get("Versions", f"Python {platform.python_version()}, {packages}")}
    entries = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in {**facts, **versions}.items()
    )
    return section("Facts", f"<dl>{entries}</dl>")


def _cell(text: str, small_brackets: bool) -> str:
    value, bracket, rest = text.partition(" (") if small_brackets else (text, "", "")
    small = f"<small>{html.escape(rest.removesuffix(')').replace('%', ''))}</small>" if bracket else ""
    return f"{html.escape(value)}{small}"


_DASHES = {"dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}
"""How SVG writes what Plotly calls so, in pixels."""

_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: {PAPER}; color: {INK}; font: 16px/1.5 {FONT}; -webkit-text-size-adjust: 100%; }}
main {{ max-width: 1040px; margin: 0 auto; padding: 48px 24px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; margin: 0; }}
h2 {{ font-size: 18px; margin: 0; }}
h3 {{ font-size: 14px; font-weight: 600; margin: 10px 0 0; }}
section {{ margin-top: 44px; }}
section > p:not(.legend), .period {{ margin: 2px 0 0; color: {MUTED}; font-size: 14px; }}
.scroll + p:not(.legend) {{ margin-top: 12px; }}
.verdict {{ margin: 28px 0 24px; padding-left: 16px; border-left: 3px solid {ACCENT}; font-size: 19px;
  max-width: 46em; }}
.scroll, .wide {{ overflow-x: auto; }}
.wide > div {{ min-width: 720px; }}
.figure {{ margin-top: 6px; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 8px 28px; }}
.legend {{ margin: 10px 0 0; color: {INK}; font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 18px; }}
.legend span {{ display: inline-flex; align-items: center; gap: 7px; }}
.panels > * {{ min-width: 0; }}
.pair {{ grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }}
table {{ width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 8px 0 8px 20px; text-align: right; white-space: nowrap; border-bottom: 1px solid {GRID}; }}
th:first-child {{ padding-left: 0; text-align: left; }}
thead th {{ color: {MUTED}; font-weight: 500; }}
tbody th {{ font-weight: 400; }}
.dense table {{ font-size: 13px; }}
.dense td, .dense th {{ padding-left: 12px; }}
.dense tbody th {{ min-width: 7em; max-width: 16em; white-space: normal; overflow-wrap: anywhere; }}
.dense small {{ font-size: 11px; }}
.dense th:first-child {{ padding-left: 0; }}
td small {{ display: block; color: {MUTED}; font-size: 12px; font-weight: 400; }}
.agent > * {{ color: {ACCENT}; font-weight: 600; }}
.naive > * {{ color: {MUTED}; }}
.group > th {{ padding-top: 20px; font-weight: 600; }}
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
$body
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
