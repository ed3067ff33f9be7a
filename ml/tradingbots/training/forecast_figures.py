"""Figures of forecasts as distributions: the fan of the newest one, intervals beside outcomes, calibration, coverage.

Predictors have a colour each, naive forecasts are grey and dashed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.training.calibration import CHANCE, chance_band, effective_outcomes
from ml.tradingbots.training.figure_style import (
    ACCENT,
    BAND,
    BASELINE_DASHES,
    BASELINE_GREYS,
    FAINT,
    GRID,
    INK,
    LOSS,
    MUTED,
    PREDICTOR_COLOURS,
    apply_style,
    caption_panel,
    new_figure,
    plain,
    thin,
    tinted,
    transparent,
)
from ml.tradingbots.training.forecast_results import ForecastValidation
from ml.tradingbots.training.forecast_slices import (
    ForecastSlice,
    all_models,
    check_horizon,
    forecast_slice,
    models_with_quantiles,
)
from ml.tradingbots.training.formatting import bars_ahead


def fan_chart_figure(
    bars: Bars, quantiles: pd.DataFrame, *, asset: str | None = None, n_bars: int | None = None
) -> go.Figure:
    """Draw the last closes before a forecast, and the prices that it leads to: median and nested intervals.

    A quantile q of the log return over h bars becomes the price close · exp(q). Between horizons lines are drawn straight:
    nothing was forecast there. Where the prices go on after the origin, they are drawn too.

    Args:
        bars: prices that hold the origin.
        quantiles: one row of `predict_quantiles`, columns (asset, horizon, quantile); every pair of levels such as 0.05
            and 0.95 becomes an interval.
        asset: which one; None: the first of the forecast.
        n_bars: closes drawn before the origin; None: some times the longest horizon.

    Raises:
        ValueError: not one row, or of an origin or asset that the prices lack, or no pair of levels.
    """
    asset, fan = _fan(bars, quantiles, asset)
    origin = int(bars.timestamps.get_indexer(pd.DatetimeIndex(quantiles.index))[0])
    if origin < 0:
        raise ValueError(
            f"bars must hold the origin of the forecast, {quantiles.index[0]}; they end {bars.timestamps[-1]}"
        )
    longest = int(fan.index[-1])
    n_bars = min(max(30, 6 * longest), 250) if n_bars is None else n_bars
    first, last = max(origin - n_bars, 0), min(origin + longest, bars.n_bars - 1)
    close = bars.close[:, bars.assets.index(asset)]
    made = bars.timestamps[origin].strftime(_form(bars))
    figure = new_figure(f"{plain(asset)}, forecast of {made}")
    prices = close[origin] * np.exp(fan)
    _add_closes(figure, bars, close, (first, origin), origin, name="close", colour=INK)
    _add_fan(figure, close[origin], prices)
    if last > origin:
        _add_closes(figure, bars, close, (origin, last), origin, name="what came", colour=LOSS)
    figure.update_yaxes(tickformat=",.6~g", zeroline=False)
    figure.update_xaxes(range=[first - origin - 0.5, longest + 0.5], title_text=f"bars from the close of {made}")
    return figure.update_layout(hovermode="closest", margin_b=44)


def interval_figure(
    validation: ForecastValidation,
    *,
    model: str | None = None,
    asset: str | None = None,
    horizon: int | None = None,
    n_origins: int = 120,
) -> go.Figure:
    """Draw the last forecast intervals of a validation beside what came, misses marked.

    Args:
        validation: what `validate` returned.
        model: which one; None: the first predictor that has quantiles.
        asset: which one; None: the first.
        horizon: bars ahead; None: the shortest.
        n_origins: how many of the last origins with a known outcome.

    Raises:
        ValueError: the model has no quantiles, or there is no such model, asset or horizon.
    """
    horizon = check_horizon(validation, horizon)
    found = _with_quantiles(validation, model, horizon)
    assets = list(validation.outcomes.columns.get_level_values("asset").unique())
    asset = assets[0] if asset is None else asset
    if asset not in assets:
        raise ValueError(f"asset must be one of {', '.join(assets)}, got {asset!r}")
    column, last = assets.index(asset), slice(-n_origins, None)
    assert found.quantiles is not None
    times = found.timestamps[last].tz_localize(None)
    outcomes, low, high = found.outcomes[last, column], *(found.quantiles[last, column, end] for end in (0, -1))
    inside = (low <= outcomes) & (outcomes <= high)
    figure = new_figure("Intervals and outcomes")
    edge = {"color": transparent(ACCENT, 0.45), "width": 1}
    figure.add_scatter(x=times, y=low, line=edge, mode="lines", showlegend=False, hoverinfo="skip")
    interval = f"{found.levels[-1] - found.levels[0]:.0%} interval"
    filled = {"fill": "tonexty", "fillcolor": transparent(ACCENT, 0.14), "mode": "lines", "line": edge}
    figure.add_scatter(x=times, y=high, name=interval, hoverinfo="skip", **filled)
    for rows, name, colour, size in ((inside, "outcome inside", MUTED, 4), (~inside, "outcome outside", LOSS, 7)):
        figure.add_scatter(
            x=times[rows],
            y=outcomes[rows],
            name=f"{name} ({rows.sum()})",
            mode="markers",
            marker={"color": colour, "size": size},
            hovertemplate="%{x|%Y-%m-%d %H:%M}: %{y:+.2%}<extra></extra>",
        )
    figure.update_yaxes(tickformat=".1~%", title_text=f"log return, {bars_ahead(horizon)}")
    return figure.update_layout(hovermode="closest", margin_l=64, legend_traceorder="normal")


def calibration_figure(validation: ForecastValidation, *, horizon: int | None = None) -> go.Figure:
    """Draw how often outcomes fell below each forecast quantile, beside how often they should have.

    Above, shares against levels with the diagonal of perfect forecasts; below, their difference, which shows what the
    diagonal hides. The band holds `CHANCE` of perfect forecasts at each level: a binomial of `effective_outcomes`.

    Raises:
        ValueError: no model has quantiles of this horizon, or it was not forecast.
    """
    horizon = check_horizon(validation, horizon)
    found = {name: forecast_slice(validation, name, horizon) for name in models_with_quantiles(validation, horizon)}
    if not found:
        raise ValueError(f"no model has quantiles {horizon} ahead, and there is nothing to calibrate")
    levels, lines = next(iter(found.values())).levels, model_lines(validation)
    low, high = chance_band(levels, effective_outcomes(list(found.values()), horizon))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14, row_heights=[0.55, 0.45])
    apply_style(figure, "Calibration", height=500)
    band = {"fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip"}
    outline = np.concatenate([levels, levels[::-1]])
    for row, centre in ((1, 0.0), (2, levels)):
        ends = np.concatenate([low - centre, (high - centre)[::-1]])
        name = f"chance, {CHANCE:.0%}"
        figure.add_scatter(x=outline, y=ends, name=name, showlegend=row == 1, legendrank=2_000, row=row, col=1, **band)
        ideal = levels - centre
        style = {"color": FAINT, "width": 1}
        figure.add_scatter(
            x=levels, y=ideal, line=style, mode="lines", showlegend=False, hoverinfo="skip", row=row, col=1
        )
    for name in reversed(found):
        shares = found[name].hits().mean(axis=(0, 1))
        rank = 1 + list(found).index(name)
        style = {"name": plain(name), "line": lines[name], "mode": "lines+markers", "marker": {"size": 4}}
        style |= {"legendrank": rank, "legendgroup": plain(name)}
        figure.add_scatter(x=levels, y=shares, hovertemplate="%{y:.1%}", row=1, col=1, **style)
        figure.add_scatter(
            x=levels, y=shares - levels, hovertemplate="%{y:+.1%}", showlegend=False, row=2, col=1, **style
        )
    figure.update_xaxes(tickformat=".0%", range=[0.0, 1.0]).update_yaxes(tickformat=".0%")
    figure.update_yaxes(tickformat=".1~%", row=2).update_xaxes(title_text="level of the quantile", row=2)
    caption_panel(figure, 1, "Share of outcomes below the quantile")
    caption_panel(figure, 2, "The same less the level")
    return figure.update_layout(margin_b=48)


def coverage_figure(validation: ForecastValidation, *, horizon: int | None = None, window: int = 250) -> go.Figure:
    """Draw the share of outcomes within the forecast intervals over the last `window` origins, as time goes on.

    Raises:
        ValueError: there are fewer than `window` origins, or no model has quantiles of this horizon.
    """
    horizon = check_horizon(validation, horizon)
    found = {name: forecast_slice(validation, name, horizon) for name in models_with_quantiles(validation, horizon)}
    if not found:
        raise ValueError(f"no model has quantiles {horizon} ahead, and there is no coverage to draw")
    slices, lines = list(found.values()), model_lines(validation)
    n_origins = len(slices[0].timestamps)
    if not 1 <= window <= n_origins:
        raise ValueError(f"window must be between 1 and the number of origins, {n_origins}, got {window}")
    nominal = float(slices[0].levels[-1] - slices[0].levels[0])
    n_effective = effective_outcomes(slices, horizon) * window / n_origins
    low, high = chance_band(np.array([nominal]), n_effective)
    figure = new_figure("Coverage over time")
    times = slices[0].timestamps[window - 1 :].tz_localize(None)
    figure.add_hrect(y0=float(low[0]), y1=float(high[0]), fillcolor=BAND, line_width=0, layer="below")
    figure.add_hline(y=nominal, line={"color": FAINT, "width": 1})
    for name in reversed(found):
        inside = found[name].covered().mean(axis=1)
        sums = np.cumsum(np.concatenate([[0.0], inside]))
        x, rolling = thin(times, (sums[window:] - sums[:-window]) / window)
        rank = 1 + list(found).index(name)
        style = {"name": plain(name), "line": lines[name], "mode": "lines", "legendrank": rank}
        figure.add_scatter(x=x, y=rolling, hovertemplate="%{y:.1%}", **style)
    return figure.update_yaxes(tickformat=".0%", zeroline=False)


def model_lines(validation: ForecastValidation) -> dict[str, dict[str, object]]:
    """Return a line style for each model, the same in all figures: a colour for a predictor, dashed greys for naive ones."""
    lines: dict[str, dict[str, object]] = {}
    models = all_models(validation)
    own = [name for name in models if name not in validation.naive]
    for name in models:
        if name in own:
            again, colour = divmod(own.index(name), len(PREDICTOR_COLOURS))
            dash = BASELINE_DASHES[again % len(BASELINE_DASHES)]
            lines[name] = {"color": PREDICTOR_COLOURS[colour], "width": 2.0, "dash": dash}
        else:
            rank = models.index(name) - len(own)
            dash = BASELINE_DASHES[(rank + 1) % len(BASELINE_DASHES)]
            lines[name] = {"color": BASELINE_GREYS[rank % len(BASELINE_GREYS)], "width": 1.3, "dash": dash}
    return lines


def _with_quantiles(validation: ForecastValidation, model: str | None, horizon: int) -> ForecastSlice:
    having = models_with_quantiles(validation, horizon)
    if model is None and having:
        model = having[0]
    if model not in having:
        raise ValueError(
            f"model must be one with quantiles {horizon} ahead, {', '.join(having) or 'none'}, got {model!r}"
        )
    return forecast_slice(validation, model, horizon)


def _fan(bars: Bars, quantiles: pd.DataFrame, asset: str | None) -> tuple[str, pd.DataFrame]:
    """Return the asset and its quantiles; rows horizons, increasing, columns levels."""
    if len(quantiles) != 1:
        raise ValueError(f"quantiles must be one row, a forecast made at one bar, got {len(quantiles)}; use .tail(1)")
    if quantiles.columns.nlevels != 3:
        raise ValueError(f"quantiles must have columns (asset, horizon, quantile), got {quantiles.columns.names}")
    assets = [str(name) for name in quantiles.columns.get_level_values(0).unique()]
    asset = assets[0] if asset is None else asset
    if asset not in assets or asset not in bars.assets:
        raise ValueError(
            f"asset must be in the forecast ({', '.join(assets)}) and in the prices ({', '.join(bars.assets)}), got {asset!r}"
        )
    table = quantiles.iloc[0].loc[asset].unstack().sort_index().sort_index(axis=1)
    if not _pairs(table):
        raise ValueError(f"quantiles must have a pair of levels such as 0.05 and 0.95, got {list(table.columns)}")
    return asset, table


def _form(bars: Bars) -> str:
    """Return how to write closes: with the time of day where there are several a day."""
    spacing = (bars.timestamps[-1] - bars.timestamps[0]) / max(bars.n_bars - 1, 1)
    return "%Y-%m-%d" if spacing > pd.Timedelta(hours=12) else "%Y-%m-%d %H:%M"


def _pairs(table: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the levels that make intervals, the widest first."""
    levels = [float(level) for level in table.columns]
    pairs = [(low, high) for low in levels for high in levels if low < 0.5 and abs(low + high - 1.0) < 1e-9]
    return sorted(pairs)


def _add_closes(
    figure: go.Figure,
    bars: Bars,
    close: FloatArray,
    ends: tuple[int, int],
    origin: int,
    *,
    name: str,
    colour: str,
) -> None:
    rows = np.arange(ends[0], ends[1] + 1)
    figure.add_scatter(
        x=rows - origin,
        y=close[rows],
        name=name,
        mode="lines",
        line={"color": colour, "width": 1.6},
        customdata=list(bars.timestamps[rows].strftime(_form(bars))),
        hovertemplate="%{customdata}: %{y:,.6~g}<extra></extra>",
    )


def _add_fan(figure: go.Figure, close: float, prices: pd.DataFrame) -> None:
    x = np.concatenate([[0], prices.index.to_numpy()])
    pairs = _pairs(prices)
    for place, (low, high) in enumerate(pairs):
        lower, upper = (np.concatenate([[close], prices[level].to_numpy()]) for level in (low, high))
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([lower, upper[::-1]]),
            name=f"{high - low:.0%}",
            fill="toself",
            fillcolor=tinted(ACCENT, 0.15 + 0.45 * place / len(pairs)),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    if 0.5 in prices:
        low, high = pairs[0]
        figure.add_scatter(
            x=x[1:],
            y=prices[0.5].to_numpy(),
            name="median",
            mode="lines+markers",
            line={"color": ACCENT, "width": 2.0},
            marker={"size": 5},
            customdata=prices[[low, high]].to_numpy(),
            hovertemplate=f"+%{{x}}: %{{y:,.6~g}}, {high - low:.0%} within %{{customdata[0]:,.6~g}} to "
            "%{customdata[1]:,.6~g}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": GRID, "width": 1})
