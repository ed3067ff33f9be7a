"""One HTML page about forecasts and what they are worth: `write_forecast_report`.

The verdict comes first, then the scores beside those of the naive forecasts, then the figures, each with how to read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import SINGLE_ASSET
from ml.tradingbots.training.calibration import CHANCE, effective_outcomes
from ml.tradingbots.training.figure_style import BAND, HOLD_LINE
from ml.tradingbots.training.forecast_figures import (
    calibration_figure,
    coverage_figure,
    fan_chart_figure,
    interval_figure,
    model_lines,
)
from ml.tradingbots.training.forecast_slices import (
    all_models,
    forecast_slice,
    horizons_of,
    models_at,
    models_with_quantiles,
)
from ml.tradingbots.training.forecast_validation import SCORES, ForecastValidation
from ml.tradingbots.training.forecast_verdict import (
    Comparison,
    best_comparison,
    compare_with_naive,
    forecast_verdict,
)
from ml.tradingbots.training.formatting import (
    bars_ahead,
    format_fine_percent,
    format_interval,
    format_number,
    spaced,
)
from ml.tradingbots.training.page import (
    Row,
    facts_section,
    figure_section,
    legend_html,
    page_html,
    panels,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.skill_figures import (
    SCORE_NAMES,
    fitting_figure,
    fold_figure,
    skill_figure,
    skill_marks,
    stitched_equity_figure,
)

MAX_FANS = 6
"""Fan charts of one predictor in a page; a forecast of 500 assets would otherwise be 500 of them."""
COVERAGE_WINDOW = 250
"""Origins over which coverage is watched: a year of daily bars."""
SKILLS_DRAWN = ("r2", "ic", "sharpe_ratio")
CHANCE_LINE = {"color": BAND, "width": 9}
"""How a legend shows a band."""


def write_forecast_report(
    path: str | os.PathLike[str],
    validation: ForecastValidation,
    *,
    title: str = "Forecasts",
    facts: Mapping[str, str] | None = None,
    prices: Bars | None = None,
    latest_quantiles: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    histories: Mapping[str, pd.DataFrame] | None = None,
    weights: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write one HTML file with the verdict on forecasts, their scores, calibration and what trading on them earned.

    The file contains all it needs and forbids the browser to fetch anything. It is written next to its final name,
    synced and renamed, so a crash leaves the old report or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        validation: what `validate` returned, of one fold or many.
        title: headline of the page.
        facts: what made the numbers (data, costs, purge, seed, command), in words; period, models and versions are added.
        prices: what was forecast; with it the page says how many bars were purged, and can draw `latest_quantiles`.
        latest_quantiles: one row of `predict_quantiles`, or one by predictor, to draw as fan charts.
        histories: `history_` of predictors by name, to draw how they were fitted. Those of ensembles are their members'
            reports, with columns `member` and `fold`: each member's fit on all bars (no fold) is drawn, if it has epochs.
        weights: `weights_` of fitted ensembles by name, one row per member, one column per horizon.

    Returns:
        The path of the file.

    Raises:
        ValueError: there are `latest_quantiles` without `prices`, or they do not fit them.
    """
    page = forecast_report_html(
        validation,
        title=title,
        facts=facts,
        prices=prices,
        latest_quantiles=latest_quantiles,
        histories=histories,
        weights=weights,
    )
    return write_page(path, page)


def forecast_report_html(
    validation: ForecastValidation,
    *,
    title: str = "Forecasts",
    facts: Mapping[str, str] | None = None,
    prices: Bars | None = None,
    latest_quantiles: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    histories: Mapping[str, pd.DataFrame] | None = None,
    weights: Mapping[str, pd.DataFrame] | None = None,
) -> str:
    """Build the page that `write_forecast_report` writes; the same arguments give the same page."""
    comparisons = compare_with_naive(validation)
    body = [_scores_section(validation, comparisons)]
    if latest_quantiles is not None:
        latest = {"": latest_quantiles} if isinstance(latest_quantiles, pd.DataFrame) else latest_quantiles
        body.append(_fan_section(prices, latest, f"{FAN_NOTE} {CALIBRATED_NOTE}"))
    body.append(_skill_section(validation))
    if len(validation.folds) > 1:
        body.append(_fold_scores_section(validation))
    body += _quantile_sections(validation, comparisons)
    body.append(_equity_section(validation))
    if weights:
        body.append(_weights_section(weights))
    fits = "".join(_fit_panels(name, history) for name, history in (histories or {}).items())
    if fits:
        body.append(section("Fit", fits, note=FIT_NOTE))
    body += [_folds_section(validation, prices), facts_section(_facts(validation, facts or {}))]
    verdict = forecast_verdict(validation, comparisons)
    return page_html(title=title, period=_period(validation), verdict=verdict, body=body)


def write_fan_report(
    path: str | os.PathLike[str],
    prices: Bars,
    quantiles: pd.DataFrame,
    *,
    title: str = "Forecast",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with fan charts of a single forecast.

    Args:
        path: the file to write; its folder is made where it is missing.
        prices: what was forecast, up to the origin or further.
        quantiles: one row of `predict_quantiles`, with levels in pairs such as 0.05 and 0.95.
        title: headline of the page.
        facts: what made the forecast, in words; versions are added.

    Raises:
        ValueError: the quantiles do not fit the prices, or have no pair of levels.
    """
    origin = quantiles.index[0]
    body = [_fan_section(prices, {"": quantiles}, f"{FAN_NOTE} {UNJUDGED_NOTE}"), facts_section(dict(facts or {}))]
    lead = "A fan says where prices may go, not where they will: a tenth of outcomes lies outside a band of 90%."
    return write_page(
        path, page_html(title=title, period=f"at the close of {origin:%Y-%m-%d %H:%M}", verdict=lead, body=body)
    )


def _scores_section(validation: ForecastValidation, comparisons: Sequence[Comparison]) -> str:
    texts = validation.formatted_table()
    above = {(found.model, found.horizon): _above_naive(found) for found in comparisons}
    best = best_comparison(comparisons)
    rows = []
    for horizon in horizons_of(validation):
        rows.append(Row(label=bars_ahead(horizon), kind="group"))
        for model in models_at(validation, horizon):
            kind = "naive" if model in validation.naive else ""
            if best is not None and (model, horizon) == (best.model, best.horizon):
                kind = "agent"
            r2, *others = [str(text) for text in texts.loc[[(model, horizon)]].to_numpy()[0]]
            rows.append(Row(label=model, cells=[r2, above.get((model, horizon), ""), *others], kind=kind))
    names = [SCORE_NAMES[score] for score in SCORES]
    table = table_html([names[0], "Above naive", *names[1:]], rows, small_brackets=True)
    return section("Scores out of sample", table, below=f"{SCORES_NOTE} {_interval_note(validation)}")


def _interval_note(validation: ForecastValidation) -> str:
    estimated = validation.intervals["low"].notna().any()
    return CHOICE_NOTE.format(confidence=validation.confidence) if estimated else NO_INTERVALS_NOTE


def _above_naive(found: Comparison) -> str:
    if np.isnan(found.difference):
        return "–"
    interval = format_interval(found.interval, format_fine_percent)
    text = format_fine_percent(found.difference)
    return text if np.isnan(found.interval).any() else f"{text} ({interval})"


def _fan_section(prices: Bars | None, latest: Mapping[str, pd.DataFrame], note: str) -> str:
    if prices is None:
        raise ValueError("latest_quantiles need the closes they start from: give the Bars that were forecast as prices")
    figures, n_left_out = {}, 0
    for name, quantiles in latest.items():
        assets = [str(asset) for asset in quantiles.columns.get_level_values(0).unique()]
        n_left_out = max(n_left_out, len(assets) - MAX_FANS)
        for asset in assets[:MAX_FANS]:
            label = ", ".join(part for part in (name, asset) if part and part != SINGLE_ASSET)
            figures[label] = fan_chart_figure(prices, quantiles, asset=asset).update_layout(height=320)
    more = f" Assets beyond the first {MAX_FANS}, {n_left_out} more, are not drawn." if n_left_out else ""
    return section("Forecast", panels("forecast", figures, wide=True), note=note + more)


def _skill_section(validation: ForecastValidation) -> str:
    figures = {SCORE_NAMES[score]: skill_figure(validation, score=score) for score in SKILLS_DRAWN}
    for figure in figures.values():
        figure.update_layout(showlegend=False)
    horizons, note = horizons_of(validation), SKILL_NOTE
    legend = legend_html(skill_marks(horizons)) if len(horizons) > 1 else ""
    return section("Skill", legend, panels("skill", figures), note=note)


def _fold_scores_section(validation: ForecastValidation) -> str:
    horizons, models = horizons_of(validation), all_models(validation)
    drawn = _by_horizon("folds", {h: fold_figure(validation, horizon=h) for h in horizons}, model_lines(validation))
    r2, rows = validation.per_fold["r2"].to_dict(), []
    for horizon in horizons:
        rows.append(Row(label=bars_ahead(horizon), kind="group"))
        for fold, dates in validation.folds.iterrows():
            label = f"{fold}: {dates['test_start']:%Y-%m-%d} to {dates['test_end']:%Y-%m-%d}"
            values = [r2.get((model, horizon, fold), float("nan")) for model in models]
            rows.append(Row(label=label, cells=[format_fine_percent(value) for value in values]))
    table = table_html([spaced(model) for model in models], rows)
    return section("R² in each fold", drawn, table, note=FOLD_SCORES_NOTE)


def _quantile_sections(validation: ForecastValidation, comparisons: Sequence[Comparison]) -> list[str]:
    having = {h: models_with_quantiles(validation, h) for h in horizons_of(validation)}
    having = {horizon: models for horizon, models in having.items() if models}
    if not having:
        return []
    shown = set().union(*having.values())
    lines = {name: line for name, line in model_lines(validation).items() if name in shown} | {"chance": CHANCE_LINE}
    calibration = {horizon: calibration_figure(validation, horizon=horizon) for horizon in having}
    note = _calibration_note(validation, having)
    parts = [section("Calibration", _by_horizon("calibration", calibration, lines), note=note)]
    watched = [h for h, models in having.items() if _n_known(validation, models[0], h) >= 2 * COVERAGE_WINDOW]
    if watched:
        coverage = {h: coverage_figure(validation, horizon=h, window=COVERAGE_WINDOW) for h in watched}
        note = COVERAGE_NOTE.format(window=COVERAGE_WINDOW, chance=CHANCE)
        parts.append(section("Coverage over time", _by_horizon("coverage", coverage, lines), note=note))
    return [*parts, _interval_section(validation, comparisons, *next(iter(having.items())))]


def _calibration_note(validation: ForecastValidation, having: Mapping[int, Sequence[str]]) -> str:
    counts = []
    for horizon, models in having.items():
        found = [forecast_slice(validation, model, horizon) for model in models]
        counts.append(f"{effective_outcomes(found, horizon):,.0f} ({bars_ahead(horizon)})")
    without = set(all_models(validation)).difference(*having.values())
    note = CALIBRATION_NOTE.format(chance=CHANCE, counts=", ".join(counts))
    if validation.outcomes.columns.get_level_values("asset").nunique() > 1:
        note += ", and assets by how far their misses go together"
    names = ", ".join(spaced(model) for model in all_models(validation) if model in without)
    return f"{note}. Without quantiles: {names}." if names else f"{note}."


def _interval_section(
    validation: ForecastValidation, comparisons: Sequence[Comparison], horizon: int, having: Sequence[str]
) -> str:
    best = best_comparison([found for found in comparisons if found.horizon == horizon and found.model in having])
    model = having[0] if best is None else best.model
    asset = str(validation.outcomes.columns.get_level_values("asset")[0])
    whose = spaced(model) if asset == SINGLE_ASSET else f"{spaced(model)}, {asset}"
    figure = interval_figure(validation, model=model, horizon=horizon)
    return figure_section(figure, f"{whose}, {bars_ahead(horizon)}: {INTERVAL_NOTE}")


def _equity_section(validation: ForecastValidation) -> str:
    figures = {h: stitched_equity_figure(validation, horizon=h) for h in horizons_of(validation)}
    has_bars = 1 in validation.outcomes.columns.get_level_values("horizon")
    held = {"buy and hold": HOLD_LINE} if has_bars else {}
    drawn = _by_horizon("equity", figures, model_lines(validation) | held)
    return section("Trading on the sign of the forecast", drawn, note=EQUITY_NOTE)


def _weights_section(weights: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for name, table in weights.items():
        rows = [Row(label=name, kind="group")]
        for member, row in zip(table.index, table.to_numpy(np.float64), strict=True):
            rows.append(Row(label=str(member), cells=[format_number(float(value)) for value in row]))
        parts.append(table_html([bars_ahead(int(horizon)) for horizon in table.columns], rows))
    return section("Weights", *parts, note=WEIGHTS_NOTE)


def _fit_panels(name: str, history: pd.DataFrame) -> str:
    """Draw how a predictor was fitted; of an ensemble, each member's fit on all bars."""
    if "member" not in history:
        return panels("fit", {name: fitting_figure(history)}, wide=True)
    kept = history[history["fold"].isna()] if "fold" in history else history
    figures = {}
    for member, epochs in kept.groupby("member", sort=False):
        # An ensemble as a member fits its own members several times over, the last time on all of its bars.
        restarts = np.flatnonzero(np.diff(epochs.index.to_numpy()) <= 0)
        last = epochs.iloc[restarts[-1] + 1 :] if len(restarts) else epochs
        if last["val_loss"].notna().any():  # One in closed form has no epochs to show.
            figures[f"{name}, {member}"] = fitting_figure(last).update_layout(height=220)
    return panels("fit", figures) if figures else ""


def _folds_section(validation: ForecastValidation, prices: Bars | None) -> str:
    rows = []
    for fold, dates in validation.folds.iterrows():
        cells = [
            f"{dates['train_start']:%Y-%m-%d} to {dates['train_end']:%Y-%m-%d}",
            f"{dates['n_train_bars']:,}",
            *([] if prices is None else [_purged(prices, dates["train_end"], dates["test_start"])]),
            f"{dates['test_start']:%Y-%m-%d} to {dates['test_end']:%Y-%m-%d}",
            f"{dates['n_test_bars']:,}",
            f"{dates['n_origins']:,}",
        ]
        rows.append(Row(label=str(fold), cells=cells))
    columns = ["Trained on", "Bars", *([] if prices is None else ["Purged"]), "Tested on", "Bars", "Origins"]
    return section("Folds", table_html(columns, rows), note=FOLDS_NOTE)


def _purged(prices: Bars, train_end: pd.Timestamp, test_start: pd.Timestamp) -> str:
    if train_end > test_start:
        return "trained on both sides"
    ends = prices.timestamps.get_indexer(pd.DatetimeIndex([train_end, test_start]))
    return "–" if (ends < 0).any() else f"{ends[1] - ends[0] - 1:,}"


def _facts(validation: ForecastValidation, given: Mapping[str, str]) -> dict[str, str]:
    models = all_models(validation)
    return {
        "Tested": _period(validation),
        "Predictors": ", ".join(spaced(model) for model in models if model not in validation.naive),
        "Naive forecasts": ", ".join(spaced(model) for model in models if model in validation.naive) or "none",
        **given,
    }


def _period(validation: ForecastValidation) -> str:
    folds = validation.folds
    assets = [str(asset) for asset in validation.outcomes.columns.get_level_values("asset").unique()]
    parts = [
        f"{folds['test_start'].min():%Y-%m-%d} to {folds['test_end'].max():%Y-%m-%d}",
        f"{len(folds)} fold{'' if len(folds) == 1 else 's'}",
        f"{len(validation.outcomes):,} origins",
    ]
    if assets != [SINGLE_ASSET]:  # What a table without a name for its asset is given says nothing.
        parts.append(", ".join(assets) if len(assets) <= 6 else f"{len(assets)} assets")
    return ", ".join(parts)


def _by_horizon(of: str, figures: Mapping[int, go.Figure], lines: Mapping[str, Mapping[str, object]]) -> str:
    """Lay out one figure per horizon under a legend that they share."""
    for figure in figures.values():
        figure.update_layout(showlegend=False)
    return legend_html(lines) + panels(of, {bars_ahead(h): figure for h, figure in figures.items()}, wide=True)


def _n_known(validation: ForecastValidation, model: str, horizon: int) -> int:
    return len(forecast_slice(validation, model, horizon).timestamps)


# How to read what stands under each heading.
SCORES_NOTE = (
    "Grey rows forecast without skill. R² is against the better of zero and the mean of the training returns; above naive is "
    "how far it lies above that of the best grey row, on the same origins. IC is the correlation of forecast and outcome; "
    "directional skill is the share of directions called, less that of always calling the more frequent one; CRPS judges "
    "whole distributions, in log return, and less is better; Sharpe is that of holding by the sign of the forecast, after "
    "costs."
)
CHOICE_NOTE = (
    "Small: {confidence:.0%} intervals from blocks of bars, drawn anew. The best of several rows owes part of its lead to "
    "having been chosen: the intervals above naive are widened for that, those of the scores are not."
)
NO_INTERVALS_NOTE = (
    "No intervals were estimated, so nothing here can be told apart from luck; and the best of several rows owes part of its "
    "lead to having been chosen."
)
FAN_NOTE = (
    "The newest forecast as prices: the median, which marks the horizons, and intervals; between horizons lines are drawn "
    "straight."
)
CALIBRATED_NOTE = "Intervals hold the outcome with the probability they name if the calibration below bears them out."
UNJUDGED_NOTE = (
    "Whether intervals hold the outcome with the probability they name is not judged here: a validation out of sample, such "
    "as that of `tradingbots fit`, says so."
)
SKILL_NOTE = (
    "Scores over all folds with their intervals, where these were estimated; naive forecasts are grey. An interval that "
    "reaches over the line at 0 is what no skill looks like, too. What lies far off the axis is written at its edge."
)
FOLD_SCORES_NOTE = (
    "Skill that is there shows in most folds; one fold far above the rest is luck more often than not. Naive lines may leave "
    "the figure; the table has their values."
)
CALIBRATION_NOTE = (
    "Share of outcomes below each quantile: perfect forecasts lie on the diagonal, and at 0 in the lower figure. A line that "
    "falls there from left to right says that intervals are too narrow, one that rises that they are too wide. Chance keeps "
    "a perfect forecast in the band {chance:.0%} of the time at each level taken alone, so at one level of ten or so it may "
    "well be outside. The band is that of independent outcomes, as many as there are in effect: {counts}; overlapping ones "
    "count once per horizon"
)
COVERAGE_NOTE = (
    "Share of outcomes inside the 90% interval over the last {window} origins. The band is where chance keeps perfect "
    "intervals {chance:.0%} of the time. A line below it for long was too sure of itself, one above it not sure enough."
)
INTERVAL_NOTE = (
    "the last intervals of the test, and what came. One outcome in ten belongs outside; several in a row say that the "
    "forecast does not notice when the market turns wild."
)
EQUITY_NOTE = (
    "What 1 became, after costs, by holding each asset long or short by the sign of its forecast, one bar at a time; log "
    "scale, folds end to end, a vertical line where one begins. Orders fill at the very close that the forecast was made at, "
    "which flatters all lines alike. Buy-and-hold is of equal weights, without costs."
)
WEIGHTS_NOTE = (
    "What an ensemble makes of its members' expected returns, horizon by horizon. A weight is no score: of two members that "
    "say nearly the same, one may have all of it."
)
FIT_NOTE = "Loss over epochs. The weights of the epoch with the least validation loss were kept."
FOLDS_NOTE = (
    "Nothing was fitted on a bar of its own test. Purged bars lie between the two: outcomes that training may know must not "
    "reach into the test. Origins are the bars that every model forecast, and all are judged on these alone."
)
