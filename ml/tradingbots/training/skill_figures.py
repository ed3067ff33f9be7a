"""Figures of what forecasts are worth: skill beside the naive ones, fold by fold, what trading on them earned, the fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.core.metrics import equity_from_returns
from ml.tradingbots.training.figure_style import (
    ACCENT,
    FAINT,
    HOLD_LINE,
    INK,
    LOSS,
    MUTED,
    fold_ticks,
    log_equity_axis,
    mark_folds,
    new_figure,
    plain,
    thin,
)
from ml.tradingbots.training.forecast_figures import model_lines
from ml.tradingbots.training.forecast_results import ForecastValidation
from ml.tradingbots.training.forecast_slices import all_models, check_horizon, horizons_of, models_at, origins_of
from ml.tradingbots.training.formatting import bars_ahead

SCORE_NAMES = {
    "r2": "R²",
    "ic": "IC",
    "rank_ic": "Rank IC",
    "directional_skill": "Directional skill",
    "crps": "CRPS",
    "coverage": "90% coverage",
    "sharpe_ratio": "Sharpe",
}
"""What scores are called in figures and tables."""
SKILLS = ("r2", "ic", "rank_ic", "directional_skill", "sharpe_ratio")
"""Scores of which 0 means no skill."""
_PERCENT = ("r2", "directional_skill")
# Plotly's names of the marks of horizons, and what they look like in text.
_MARKS = {"circle": "●", "diamond-open": "◇", "square-open": "□", "triangle-up-open": "△", "circle-open": "○"}


def skill_figure(validation: ForecastValidation, *, score: str = "r2") -> go.Figure:
    """Draw a pooled score of every model with its interval, a row each; naive ones are grey.

    The axis spans the predictors; what lies far outside it is written at the edge.

    Raises:
        ValueError: there is no such score.
    """
    _check_score(score)
    models, horizons = all_models(validation), horizons_of(validation)
    rows = pd.DataFrame(validation.intervals.xs(score, level="score"))
    own = rows[[model not in validation.naive for model, _ in rows.index]]
    low, high = _axis(own[["estimate", "low", "high"]].to_numpy(np.float64), rows["estimate"].to_numpy(np.float64))
    figure = new_figure(SCORE_NAMES[score], height=80 + 19 * max(2, len(horizons)) * len(models))
    for place, horizon in enumerate(horizons):
        for naive in (True, False):
            found = [name for name in models_at(validation, horizon) if (name in validation.naive) == naive]
            offset = (place - 0.5 * (len(horizons) - 1)) * min(0.3, 0.7 / len(horizons))
            colour = MUTED if naive else ACCENT
            entries = rows.reindex(pd.MultiIndex.from_product([found, [horizon]]))
            heights = [models.index(name) + offset for name in found]
            _add_estimates(figure, entries, heights, (low, high), colour, list(_MARKS)[place % len(_MARKS)], score)
            figure.data[-1].update(name=bars_ahead(horizon), showlegend=not naive and len(horizons) > 1)
    figure.update_yaxes(
        tickvals=list(range(len(models))),
        ticktext=[plain(name, 16) for name in models],
        range=[len(models) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        tickfont={"color": INK},
        automargin=True,
    )
    figure.update_xaxes(
        range=[low, high], tickformat=_tick_format(score), fixedrange=True, nticks=6, gridcolor="#eef0f3"
    )
    figure.add_vline(x=0.0, line={"color": FAINT, "width": 1}, layer="below")
    return figure.update_layout(hovermode="closest", margin={"l": 84, "r": 14, "b": 36}, showlegend=len(horizons) > 1)


def skill_marks(horizons: Sequence[int]) -> dict[str, dict[str, object]]:
    """Return the mark of each horizon in `skill_figure`, for a legend."""
    marks = list(_MARKS.values())
    return {bars_ahead(h): {"text": marks[place % len(marks)], "color": ACCENT} for place, h in enumerate(horizons)}


def fold_figure(validation: ForecastValidation, *, horizon: int | None = None, score: str = "r2") -> go.Figure:
    """Draw a score of every model in each fold, so that one lucky fold shows as one.

    The axis spans the predictors; naive lines may leave it.

    Raises:
        ValueError: there is no such score, or the horizon was not forecast.
    """
    _check_score(score)
    horizon = check_horizon(validation, horizon)
    models = models_at(validation, horizon)
    table = validation.per_fold[score].xs(horizon, level="horizon").unstack("fold").reindex(models)
    naive = [name in validation.naive for name in models]
    low, high = _axis(table[~np.array(naive)].to_numpy(np.float64), table.to_numpy(np.float64))
    figure = new_figure(f"{SCORE_NAMES[score]} in each fold")
    lines = model_lines(validation)
    for name in reversed(models):
        figure.add_scatter(
            x=list(table.columns),
            y=table.loc[name].to_numpy(np.float64),
            name=plain(name),
            mode="lines+markers",
            line=lines[name],
            marker={"size": 6},
            legendrank=1 + models.index(name),
            hovertemplate=f"%{{y:{'+.2%' if score in _PERCENT else '+.3f'}}}",
        )
    fold_ticks(figure, list(validation.folds["test_start"]))
    return figure.update_yaxes(range=[low, high], tickformat=_tick_format(score), fixedrange=True)


def stitched_equity_figure(validation: ForecastValidation, *, horizon: int | None = None) -> go.Figure:
    """Draw what 1 became under the sign rule of each model after costs, folds end to end, beside buying and holding.

    Buy-and-hold is of equal weights, restored at every bar, without costs; it is drawn where returns of one bar are among
    the outcomes. A value stands at the close to which its last return leads; the time of the very last is estimated.

    Args:
        validation: what `validate` returned.
        horizon: of the forecasts whose sign is held; None: the shortest. The holding period is one bar for all.
    """
    horizon = check_horizon(validation, horizon)
    models = models_at(validation, horizon)
    earned = validation.strategy_returns[[(name, horizon) for name in models]].to_numpy(np.float64)
    known = np.isfinite(earned).all(axis=1)
    times = _closes(origins_of(validation)[known])
    curves = {name: equity_from_returns(earned[known, place], 1.0) for place, name in enumerate(models)}
    figure = new_figure("Trading on the sign of the forecast", height=380)
    lines = model_lines(validation)
    for name in reversed(models):
        _add_curve(figure, plain(name), times, curves[name], lines[name], 2 + models.index(name))
    if 1 in validation.outcomes.columns.get_level_values("horizon"):
        outcomes = validation.outcomes.xs(1, axis="columns", level="horizon").to_numpy(np.float64)[known]
        curves["buy and hold"] = equity_from_returns(np.expm1(outcomes).mean(axis=1), 1.0)
        _add_curve(figure, "buy and hold", times, curves["buy and hold"], HOLD_LINE, 1_000)
    mark_folds(figure, pd.DatetimeIndex(validation.folds["test_start"]))
    log_equity_axis(figure, curves.values())
    return figure.update_yaxes(zeroline=False)


def fitting_figure(history: pd.DataFrame) -> go.Figure:
    """Draw the loss of training and of validation over epochs; the epoch whose weights were kept is marked.

    Args:
        history: `history_` of a predictor, one row per epoch.

    Raises:
        ValueError: the columns `train_loss` and `val_loss` are missing, or there is no epoch.
    """
    if not {"train_loss", "val_loss"} <= set(history.columns) or not len(history):
        raise ValueError(
            f"history must have rows, train_loss and val_loss, got {len(history)}, {list(history.columns)}"
        )
    epochs, losses = history.index.to_numpy(), history["val_loss"].to_numpy(np.float64)
    figure = new_figure("Fit", height=280)
    for column, name, colour in (("train_loss", "training", MUTED), ("val_loss", "validation", ACCENT)):
        line = {"color": colour, "width": 1.8}
        values = history[column].to_numpy(np.float64)
        figure.add_scatter(x=epochs, y=values, name=name, mode="lines", line=line, hovertemplate="%{y:.4g}")
    if np.isfinite(losses).any():
        kept = history["best_epoch"].iloc[-1] if "best_epoch" in history else epochs[np.nanargmin(losses)]
        best = list(epochs).index(kept)
        figure.add_scatter(
            x=[epochs[best]],
            y=[losses[best]],
            name=f"kept: epoch {epochs[best]}",
            mode="markers",
            marker={"color": LOSS, "size": 9},
            hoverinfo="skip",
        )
    figure.update_yaxes(title_text="loss", nticks=5, tickformat=".3~g", zeroline=False)
    # Whole epochs: a tick at one and a half would be called two.
    step = max(1, -(-len(epochs) // 6))
    return figure.update_xaxes(title_text="epoch", tickformat="d", tick0=int(epochs[0]), dtick=step).update_layout(
        margin={"l": 64, "b": 44}
    )


def _add_estimates(
    figure: go.Figure,
    entries: pd.DataFrame,
    heights: list[float],
    ends: tuple[float, float],
    colour: str,
    symbol: str,
    score: str,
) -> None:
    """Add one marker with its interval per row of `estimate`, `low` and `high`; where it leaves the axis, a number."""
    estimate, low, high = (entries[name].to_numpy(np.float64) for name in ("estimate", "low", "high"))
    shown = (estimate >= ends[0]) & (estimate <= ends[1])
    form = ".1%" if score in _PERCENT else ".2f"
    for value, height in zip(estimate[~shown], np.array(heights)[~shown], strict=True):
        if np.isfinite(value):
            below = value < ends[0]
            text = format(value, form).replace("-", "−")
            figure.add_annotation(
                x=ends[0] if below else ends[1],
                y=height,
                text=f"◂ {text}" if below else f"{text} ▸",
                xanchor="left" if below else "right",
                showarrow=False,
                font={"size": 11, "color": colour},
            )
    error = {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(high - estimate),
        "arrayminus": np.nan_to_num(estimate - low),
        "color": colour,
        "thickness": 1.6,
        "width": 0,
    }
    figure.add_scatter(
        x=np.where(shown, estimate, np.nan),
        y=heights,
        error_x=error,
        mode="markers",
        marker={"color": colour, "size": 8, "symbol": symbol, "line": {"width": 1.6, "color": colour}},
        customdata=np.column_stack([low, high]),
        hovertemplate=f"%{{x:{form}}} (%{{customdata[0]:{form}}} to %{{customdata[1]:{form}}})<extra></extra>",
    )


def _closes(origins: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return the closes at which values stand: the origins, and an estimate of the one after the last; (n_origins + 1,)."""
    step = (origins[-1] - origins[0]) / max(len(origins) - 1, 1)
    return pd.DatetimeIndex([*origins, origins[-1] + step])


def _add_curve(
    figure: go.Figure, name: str, times: pd.DatetimeIndex, values: FloatArray, line: dict[str, object], rank: int
) -> None:
    x, thinned = thin(times, values)
    figure.add_scatter(x=x, y=thinned, name=name, mode="lines", line=line, legendrank=rank, hovertemplate="%{y:,.3f}")


def _axis(own: FloatArray, all_values: FloatArray) -> tuple[float, float]:
    """Return ends of an axis: zero, the predictors, and of the others what lies within as much again on either side."""
    values = own[np.isfinite(own)] if np.isfinite(own).any() else all_values[np.isfinite(all_values)]
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    span = (high - low) or 1.0
    near = all_values[(all_values >= low - span) & (all_values <= high + span)]
    low, high = min(low, *near, low), max(high, *near, high)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _tick_format(score: str) -> str:
    return ".2~%" if score in _PERCENT else ".3~f"


def _check_score(score: str) -> None:
    if score not in SKILLS:
        raise ValueError(f"score must be one of {', '.join(SKILLS)}, got {score!r}")
