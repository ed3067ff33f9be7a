"""Figures of agents that were trained fold after fold: what their accounts became, and how runs differ by fold and seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ml.tradingbots.training.agent_validation import MEASURES, AgentValidation
from ml.tradingbots.training.figure_style import (
    ACCENT,
    HOLD_LINE,
    INK,
    fold_ticks,
    log_equity_axis,
    mark_folds,
    new_figure,
    thin,
    transparent,
)
from ml.tradingbots.training.results import BUY_AND_HOLD

FOLD_MARKS: dict[str, dict[str, object]] = {
    "seeds": {"text": "•", "color": ACCENT},
    "interquartile mean": {"text": "●", "color": ACCENT},
    "buy and hold": {"text": "◇", "color": INK},
}
"""The marks of `walk_forward_folds_figure`, for a legend."""


def walk_forward_equity_figure(validation: AgentValidation) -> go.Figure:
    """Draw the account of every seed out of sample, folds end to end, beside buy-and-hold, on a log scale.

    Thin lines are seeds; the thick one is their median at each close, and the band around it holds the middle half.
    """
    times = pd.DatetimeIndex(validation.equity.index)
    seeds = validation.equity.drop(columns=BUY_AND_HOLD)
    values = seeds.to_numpy(np.float64)
    figure = new_figure("Account value out of sample", height=400)
    if values.shape[1] > 1:
        low, high = np.quantile(values, [0.25, 0.75], axis=1)
        # Both ends at the same closes, or the band would have corners that are not there.
        rows = np.unique(np.linspace(0, len(times) - 1, min(len(times), 1_000)).round().astype(int))
        closes = times.tz_localize(None)[rows]
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_scatter(x=closes, y=low[rows], showlegend=False, **edge)
        fill = {"fill": "tonexty", "fillcolor": transparent(ACCENT, 0.14), "legendrank": 3}
        figure.add_scatter(x=closes, y=high[rows], name="middle half of seeds", **edge, **fill)
    for number, seed in enumerate(seeds.columns):
        x, thinned = thin(times, values[:, number])
        single = values.shape[1] == 1
        line = {"color": ACCENT if single else transparent(ACCENT, 0.4), "width": 2.2 if single else 0.9}
        figure.add_scatter(
            x=x,
            y=thinned,
            name=f"seed {seed}" if single else "seeds",
            showlegend=number == 0,
            mode="lines",
            line=line,
            legendrank=2,
            hoverinfo=None if single else "skip",
            hovertemplate="%{y:,.3f}" if single else None,
        )
    if values.shape[1] > 1:
        x, thinned = thin(times, np.median(values, axis=1))
        line = {"color": ACCENT, "width": 2.2}
        figure.add_scatter(
            x=x, y=thinned, name="median", mode="lines", line=line, legendrank=1, hovertemplate="%{y:,.3f}"
        )
    x, thinned = thin(times, validation.equity[BUY_AND_HOLD].to_numpy(np.float64))
    figure.add_scatter(
        x=x, y=thinned, name="buy and hold", mode="lines", line=HOLD_LINE, legendrank=4, hovertemplate="%{y:,.3f}"
    )
    mark_folds(figure, pd.DatetimeIndex(validation.per_fold["test_start"]))
    log_equity_axis(figure, [validation.equity.to_numpy(np.float64).ravel()])
    return figure.update_yaxes(zeroline=False).update_layout(legend_traceorder="normal")


def walk_forward_folds_figure(validation: AgentValidation, *, measure: str = "total_return") -> go.Figure:
    """Draw a figure of every run by fold: a dot per seed, their interquartile mean, and buy-and-hold.

    Raises:
        ValueError: there is no such measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
    form = ".2f" if measure == "sharpe_ratio" else ".1%"
    folds, runs = validation.per_fold, validation.runs[measure]
    dots = runs.index.get_level_values("fold").to_numpy()
    places = folds.index.to_numpy()
    names = {"sharpe_ratio": "Sharpe", "total_return": "Return", "max_drawdown": "Max drawdown"}
    figure = new_figure(f"{names[measure]} in each fold", height=300)
    held = folds[f"{BUY_AND_HOLD}_{measure}"]
    marks = (
        (dots, runs, {"color": transparent(ACCENT, 0.45), "size": 6}),
        (places, folds[measure], {"color": ACCENT, "size": 10}),
        (places, held, {"color": INK, "size": 9, "symbol": "diamond-open"}),
    )
    for name, (x, y, marker) in zip(FOLD_MARKS, marks, strict=True):
        values = y.to_numpy(np.float64)
        hover = f"%{{y:{form}}}<extra></extra>"
        figure.add_scatter(x=x, y=values, name=name, mode="markers", marker=marker, hovertemplate=hover)
    fold_ticks(figure, list(folds["test_start"]))
    figure.update_xaxes(range=[-0.6, len(folds) - 0.4])
    figure.update_yaxes(tickformat=".3~f" if measure == "sharpe_ratio" else ".1~%", fixedrange=True)
    return figure.update_layout(hovermode="closest")
