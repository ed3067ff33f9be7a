"""Figures of managed portfolios: accounts beside the baselines, what was held, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from ml.tradingbots.core.metrics import drawdown
from ml.tradingbots.training.figure_style import (
    BASELINE_DASHES,
    BASELINE_GREYS,
    FAINT,
    PREDICTOR_COLOURS,
    log_equity_axis,
    new_figure,
    thin,
    tinted,
    transparent,
)
from ml.tradingbots.training.formatting import spaced
from ml.tradingbots.training.portfolio_comparison import PortfolioComparison
from ml.tradingbots.training.trajectory import FloatArray, Trajectory

MAX_CLOSES = 400
"""Closes at which what is held is drawn: areas over each other are filled at all of them."""

ASSET_COLOURS = (*PREDICTOR_COLOURS, *(tinted(colour, 0.55) for colour in PREDICTOR_COLOURS))
"""Of the largest positions; all others are one grey area."""


def portfolio_equity_figure(comparison: PortfolioComparison) -> go.Figure:
    """Draw what 1 became in every account, on a log scale: equal slopes are equal growth."""
    figure = new_figure("Account value", height=400)
    curves = {name: account.equity_curve / account.equity_curve[0] for name, account in comparison.strategies.items()}
    _add_accounts(figure, comparison, curves, hover="%{y:,.3f}")
    log_equity_axis(figure, curves.values())
    return figure.update_yaxes(zeroline=False)


def portfolio_drawdown_figure(comparison: PortfolioComparison) -> go.Figure:
    """Draw how far each account lies below its highest close so far, as percentages below zero."""
    figure = new_figure("Drawdown", height=300)
    curves = {name: -drawdown(account.equity_curve) for name, account in comparison.strategies.items()}
    _add_accounts(figure, comparison, curves, hover="%{y:.1%}")
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def holdings_figure(trajectory: Trajectory, title: str) -> go.Figure:
    """Draw the weights held at each close as areas on top of each other, the largest positions by name.

    Long positions stack upwards from zero and short ones downwards; what is missing to 100% is cash.
    """
    figure = new_figure(title, height=360)
    rows = np.unique(np.linspace(0, trajectory.n_steps, min(trajectory.n_steps + 1, MAX_CLOSES)).round().astype(int))
    times, weights = trajectory.timestamps.tz_localize(None)[rows], trajectory.weights[rows]
    order = np.argsort(-np.abs(trajectory.weights).mean(axis=0), kind="stable")
    # One asset more than there are colours is drawn as grey; "1 other" would say less than its name.
    n_named = len(order) if len(order) <= len(ASSET_COLOURS) else len(ASSET_COLOURS)
    bands = {trajectory.assets[place]: weights[:, place] for place in order[:n_named]}
    colours = dict(zip(bands, ASSET_COLOURS, strict=False))
    areas = [(name, values, colours[name]) for name, values in bands.items()]
    for side in (np.maximum, np.minimum):
        rest = side(weights[:, order[n_named:]], 0.0).sum(axis=1)
        sided = [(name, side(values, 0.0), colour) for name, values, colour in areas]
        if n_named < len(order):
            sided.append((f"{len(order) - n_named} others", rest, FAINT))
        if side is np.minimum and not any(values.any() for _, values, _ in sided):
            continue
        for name, values, colour in sided:
            figure.add_scatter(
                x=times,
                y=values,
                name=name,
                legendgroup=name,
                showlegend=side is np.maximum,
                stackgroup=side.__name__,
                mode="lines",
                line={"width": 0.4, "color": colour},
                fillcolor=transparent(colour, 0.85),
                hovertemplate="%{y:.1%}",
            )
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero").update_layout(hovermode="x unified")


def _add_accounts(
    figure: go.Figure, comparison: PortfolioComparison, curves: Mapping[str, FloatArray], *, hover: str
) -> None:
    """Add a line per account, the managed ones last, so that they lie on top; the legend still names them first."""
    lines = {
        name: {"color": grey, "width": 1.3, "dash": dash}
        for name, grey, dash in zip(comparison.baselines, BASELINE_GREYS, BASELINE_DASHES, strict=False)
    }
    for place, name in enumerate(comparison.managed):
        lines[name] = {"color": PREDICTOR_COLOURS[place % len(PREDICTOR_COLOURS)], "width": 2.2}
    for rank, (name, line) in enumerate(lines.items()):
        times, values = thin(comparison.strategies[name].timestamps, curves[name])
        figure.add_scatter(
            x=times,
            y=values,
            name=spaced(name),
            mode="lines",
            line=line,
            legendrank=rank + (10 if name in comparison.baselines else 0),
            hovertemplate=hover,
        )
