"""Figures of the regimes of a market: prices shaded by them, how sure they are, how they change, and what they foretell."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from ml.tradingbots.training.figure_style import (
    ACCENT,
    INK,
    LOSS,
    MAX_POINTS,
    MUTED,
    PAPER,
    log_equity_axis,
    new_figure,
    plain,
    thin,
    tinted,
    transparent,
)
from ml.tradingbots.training.formatting import format_percent
from ml.tradingbots.training.regime_analysis import FloatArray, RegimeAnalysis

RISING = "#17806d"
BETWEEN = ("#98a1ac", "#c8a23a", "#8a4b9e", "#6b7a1c")
"""Of the regimes between the first and the last."""
MOST_STRETCHES = 4 * MAX_POINTS
"""Bars up to which each is shaded by its own regime: thirty years of days."""
# Share of a price axis above and below the prices.
_MARGIN = 0.03


def regime_colours(analysis: RegimeAnalysis) -> tuple[str, ...]:
    """Return a colour for each regime: bull is green and bear rust, calm is blue and wild rust; (n_regimes,)."""
    n_regimes = analysis.n_regimes
    if n_regimes == 1:
        return (BETWEEN[0],)
    first = RISING if analysis.is_named_by_mean else ACCENT
    ordered = [first, *(BETWEEN[k % len(BETWEEN)] for k in range(n_regimes - 2)), LOSS]
    # Fits that were matched to an earlier one keep its order, and names go with their regimes.
    places = {name: place for place, name in enumerate(_from_first_to_last(analysis.state_names))}
    return tuple(ordered[places[name]] for name in analysis.state_names)


def regime_price_figure(analysis: RegimeAnalysis) -> go.Figure:
    """Draw the price on a log scale over the most probable filtered regime of each bar."""
    figure = new_figure("Price and regime", height=400)
    low, high = _price_range(analysis.close)
    edges, regimes = _stretches(analysis)
    for k, (name, colour) in enumerate(zip(analysis.state_names, regime_colours(analysis), strict=True)):
        x, y = _boxes(edges, regimes == k, low, high)
        figure.add_scatter(
            x=x,
            y=y,
            name=plain(name),
            mode="lines",
            # Simplified, outlines of narrow boxes would lose corners.
            line={"width": 0, "color": colour, "simplify": False},
            fill="toself",
            fillcolor=transparent(colour, 0.28),
            hoverinfo="skip",
        )
    times, values = thin(analysis.timestamps, analysis.close)
    line = {"color": INK, "width": 1.3}
    figure.add_scatter(
        x=times, y=values, mode="lines", line=line, hovertemplate="%{y:,.6g}<extra></extra>", showlegend=False
    )
    mark_end_of_training(figure, analysis)
    log_equity_axis(figure, [analysis.close])
    figure.update_yaxes(range=[np.log10(low), np.log10(high)], showgrid=False)
    return figure.update_layout(legend_traceorder="normal")


def regime_probability_figure(analysis: RegimeAnalysis) -> go.Figure:
    """Draw the filtered probability of each regime, stacked; of many bars, means over stretches of equal length."""
    figure = new_figure("Filtered probabilities", height=260)
    parts = np.array_split(np.arange(analysis.n_bars), min(analysis.n_bars, MAX_POINTS // 2))
    times = _naive(analysis)[[part[0] for part in parts]]
    means = np.stack([analysis.filtered[part].mean(axis=0) for part in parts])
    for k, (name, colour) in enumerate(zip(analysis.state_names, regime_colours(analysis), strict=True)):
        figure.add_scatter(
            x=times,
            y=means[:, k],
            name=plain(name),
            mode="lines",
            line={"width": 0, "color": colour},
            fillcolor=tinted(colour, 0.55),
            stackgroup="regimes",
            hovertemplate="%{y:.0%}",
        )
    mark_end_of_training(figure, analysis, label=False)
    figure.update_yaxes(tickformat=".0%", range=[0.0, 1.0], nticks=5)
    return figure.update_layout(legend_traceorder="normal")


def transition_figure(analysis: RegimeAnalysis) -> go.Figure:
    """Draw the probability to go from the regime of the row to that of the column, in numbers on colours."""
    figure = new_figure("Transition matrix", height=_matrix_height(analysis))
    names = [plain(name, 24) for name in analysis.state_names]
    matrix = analysis.transition_matrix
    figure.add_heatmap(
        x=names,
        y=names,
        z=matrix,
        text=[[_probability(value) for value in row] for row in matrix],
        texttemplate="%{text}",
        textfont={"size": 13, "color": INK},
        zmin=0.0,
        zmax=1.0,
        colorscale=[[0.0, PAPER], [1.0, tinted(ACCENT, 0.5)]],
        showscale=False,
        xgap=2,
        ygap=2,
        hoverinfo="skip",
    )
    figure.update_xaxes(
        type="category",
        side="top",
        showline=False,
        ticks="",
        fixedrange=True,
        tickangle=0 if analysis.n_regimes <= 3 else -35,
        automargin=True,
    )
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, zeroline=False, fixedrange=True, automargin=True
    )
    return figure.update_layout(hovermode=False, showlegend=False)


def duration_figure(analysis: RegimeAnalysis) -> go.Figure:
    """Draw how many bars each regime lasts on average, by its probability to stay."""
    figure = new_figure("Expected duration", height=_matrix_height(analysis))
    durations = analysis.expected_durations
    finite = durations[np.isfinite(durations)]
    longest = float(finite.max()) if len(finite) else 1.0
    figure.add_bar(
        x=np.where(np.isfinite(durations), durations, longest),
        y=[plain(name, 24) for name in analysis.state_names],
        orientation="h",
        marker_color=[tinted(colour, 0.75) for colour in regime_colours(analysis)],
        text=[duration_text(value) for value in durations],
        textposition="outside",
        textfont={"color": INK, "size": 12},
        cliponaxis=False,
        hoverinfo="skip",
    )
    # Room for the words at the end of the longest bar.
    figure.update_xaxes(range=[0.0, 1.35 * longest], showline=False, ticks="", showticklabels=False, fixedrange=True)
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, zeroline=False, fixedrange=True, automargin=True
    )
    return figure.update_layout(hovermode=False, showlegend=False, bargap=0.45)


def score_gain_figure(analysis: RegimeAnalysis) -> go.Figure:
    """Draw how far the log scores of regimes are ahead of those of one normal distribution, added up bar by bar."""
    figure = new_figure("What regimes foretell", height=280)
    ahead = np.cumsum(analysis.log_scores - analysis.plain_log_scores)
    # From the last training bar on, so that what was not learned from can be read off.
    times, values = thin(analysis.timestamps, ahead - ahead[analysis.n_train_bars - 1])
    line = {"color": ACCENT, "width": 1.8}
    figure.add_scatter(x=times, y=values, mode="lines", line=line, hovertemplate="%{y:,.1f} nats<extra></extra>")
    mark_end_of_training(figure, analysis, label=False)
    figure.update_yaxes(tickformat=",.6~g")
    return figure.update_layout(showlegend=False)


def mark_end_of_training(figure: go.Figure, analysis: RegimeAnalysis, *, label: bool = True) -> None:
    """Draw a dashed line where the bars end that the detector learned from."""
    if analysis.n_train_bars == analysis.n_bars:
        return
    start = _naive(analysis)[analysis.n_train_bars]
    line = {"color": INK, "width": 1.2, "dash": "dash"}
    figure.add_shape(type="line", x0=start, x1=start, y0=0.0, y1=1.0, yref="y domain", line=line)
    if label:
        figure.add_annotation(
            text="after training →",
            x=start,
            y=1.0,
            yref="y domain",
            xanchor="left",
            yanchor="top",
            xshift=3,
            showarrow=False,
            font={"color": MUTED, "size": 11},
        )


def duration_text(value: float) -> str:
    """Write an expected duration in bars."""
    if np.isinf(value):
        return "never ends"
    return f"{value:,.0f} bars" if value >= 10.0 else f"{value:.1f} bars"


def _naive(analysis: RegimeAnalysis) -> npt.NDArray[np.datetime64]:
    """Timestamps as Plotly takes them."""
    return analysis.timestamps.tz_localize(None).to_numpy()


def _stretches(analysis: RegimeAnalysis) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.int64]]:
    """Cut the bars into runs of one regime; of many bars, into stretches of equal length, each of its most frequent regime.

    Returns:
        Where stretches begin and, last, where all end; and the regime of each.
    """
    n_bars, regimes = analysis.n_bars, analysis.regimes
    starts = np.unique(np.linspace(0, n_bars, min(n_bars, MOST_STRETCHES) + 1).astype(np.int64))[:-1]
    if len(starts) < n_bars:
        counts = np.add.reduceat(np.eye(analysis.n_regimes)[regimes], starts)
        regimes = counts.argmax(axis=1)
    changes = np.flatnonzero(np.r_[True, regimes[1:] != regimes[:-1]])
    times = _naive(analysis)
    # A stretch lasts until the next begins, so that no gap is left between bars.
    return np.append(times[starts[changes]], times[-1]), regimes[changes]


def _boxes(
    edges: npt.NDArray[np.datetime64], chosen: npt.NDArray[np.bool_], low: float, high: float
) -> tuple[list[object], list[float | None]]:
    """Corners of a box over each chosen stretch, one outline after another."""
    x: list[object] = []
    y: list[float | None] = []
    for place in np.flatnonzero(chosen):
        left, right = (str(edge.astype("datetime64[s]")) for edge in edges[place : place + 2])
        x += [left, left, right, right, None]
        y += [low, high, high, low, None]
    return x or [None], y or [None]


def _price_range(close: FloatArray) -> tuple[float, float]:
    low, high = float(close.min()), float(close.max())
    room = (high / low) ** _MARGIN if high > low else 1.01
    return low / room, high * room


def _matrix_height(analysis: RegimeAnalysis) -> int:
    # Names of many regimes stand slantwise above the matrix.
    return 100 + 42 * analysis.n_regimes + (60 if analysis.n_regimes > 3 else 0)


def _probability(value: float) -> str:
    if 0.0 < value < 0.0005:
        return "<0.1%"
    return format_percent(value)


def _from_first_to_last(names: tuple[str, ...]) -> list[str]:
    """Names from bull to bear, or from calm to wild; numbered ones by their numbers."""
    ends = {"bull": -1, "low_volatility": -1, "bear": 1, "high_volatility": 1}
    return sorted(names, key=lambda name: (ends.get(name, 0), name))
