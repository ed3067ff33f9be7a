"""The look that all figures share: colours, type, axes, and lines that stay small in the page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from ml.tradingbots.training.formatting import spaced
from ml.tradingbots.training.trajectory import FloatArray

ACCENT = "#1d5fbf"
LOSS = "#b5532a"
INK = "#1c2026"
MUTED = "#667080"
GRID = "#e9ecf0"
PAPER = "#ffffff"
FAINT = "#b3b9c2"
BAND = "#edf0f3"
PREDICTOR_COLOURS = (ACCENT, "#c8741a", "#17806d", "#8a4b9e", "#b8335a", "#6b7a1c")
BASELINE_GREYS = ("#3f4650", "#7b838f", "#949ca7", "#b3b9c2")
BASELINE_DASHES = ("solid", "dash", "dot", "dashdot")
HOLD_LINE: dict[str, object] = {"color": INK, "width": 1.8}
"""Of buying and holding, beside lines of other colours."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

MAX_POINTS = 2_000
"""Points drawn per line: more than a screen is wide, and a million bars still make a small page."""


def new_figure(title: str, *, height: int = 340) -> go.Figure:
    """Start a figure in the look of the project; `height` in pixels, the width is the page's."""
    return apply_style(go.Figure(), title, height=height)


def apply_style(figure: go.Figure, title: str, *, height: int) -> go.Figure:
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
    return figure.update_yaxes(gridcolor=GRID, zeroline=True, zerolinecolor=FAINT, ticks="", nticks=6)


def log_equity_axis(figure: go.Figure, curves: Iterable[FloatArray]) -> None:
    """Put round numbers on a log axis, where Plotly would write digits without their power of ten."""
    values = np.concatenate(list(curves))
    values = values[np.isfinite(values) & (values > 0.0)]
    if len(values) == 0:
        return
    ticks = _round_values(float(values.min()), float(values.max()))
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[_short_amount(value) for value in ticks])


def thin(x: pd.DatetimeIndex | NDArray[np.generic], values: FloatArray) -> tuple[object, FloatArray]:
    """Keep the lowest and the highest of every few points, and both ends, so that no extreme is lost."""
    x = x.tz_localize(None) if isinstance(x, pd.DatetimeIndex) else x
    if len(values) <= MAX_POINTS:
        return x, values
    parts = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
    extremes = [part[index] for part in parts for index in (values[part].argmin(), values[part].argmax())]
    kept = np.unique([0, *extremes, len(values) - 1])
    return x[kept], values[kept]


def caption_panel(figure: go.Figure, panel: int, text: str) -> None:
    """Write a line above one panel of several, counted from 1."""
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


def mark_folds(figure: go.Figure, starts: pd.DatetimeIndex) -> None:
    """Draw a light line where each fold but the first begins, behind all else."""
    for start in starts.tz_localize(None)[1:]:
        line = {"color": "#d5dae0", "width": 1}
        figure.add_shape(type="line", x0=start, x1=start, y0=0.0, y1=1.0, yref="y domain", line=line, layer="below")


def plain(name: str, longest: int | None = None) -> str:
    """Return a name for a legend, a tick or an annotation, where Plotly would take markup in it for its own.

    Args:
        name: as it is.
        longest: letters left of it where there is little room, those at its ends: names that differ do so there.
    """
    words = spaced(name)
    if longest is not None and len(words) > longest:
        words = f"{words[: longest // 2].rstrip()}…{words[-((longest - 1) // 2) :].lstrip()}"
    return html.escape(words, quote=False)


def tinted(colour: str, share: float) -> str:
    """Mix a #rrggbb colour with white; `share` of it, in [0, 1], is left."""
    parts = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return "#" + "".join(f"{round(share * part + (1.0 - share) * 255):02x}" for part in parts)


def fold_ticks(figure: go.Figure, starts: Sequence[pd.Timestamp]) -> None:
    """Label an axis of fold numbers by the months in which their tests begin, as many as a phone has room for."""
    shown = list(range(0, len(starts), -(-len(starts) // 5)))
    names = [f"{starts[fold]:%Y-%m}" for fold in shown]
    figure.update_xaxes(tickvals=shown, ticktext=names, tickangle=0, fixedrange=True)


def transparent(colour: str, opacity: float) -> str:
    """Return a #rrggbb colour that lets through what lies under it."""
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


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
