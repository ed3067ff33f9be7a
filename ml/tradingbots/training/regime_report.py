"""One HTML page about the regimes of a market: `write_regime_report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ml.tradingbots.components.hiddenmarkov import GaussianHMM, OnlineHMM
from ml.tradingbots.training.formatting import format_number, format_percent, spaced
from ml.tradingbots.training.page import (
    Row,
    facts_section,
    figure_section,
    page_html,
    panels,
    section,
    table_html,
    write_page,
)
from ml.tradingbots.training.regime_analysis import Part, RegimeAnalysis
from ml.tradingbots.training.regime_figures import (
    MOST_STRETCHES,
    duration_figure,
    duration_text,
    regime_price_figure,
    regime_probability_figure,
    score_gain_figure,
    transition_figure,
)

PART_NAMES: dict[Part, str] = {"training": "Training", "after": "After training"}


def write_regime_report(
    path: str | os.PathLike[str],
    analysis: RegimeAnalysis,
    *,
    title: str = "Regimes",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with the regimes of a market, how they change, and what they foretold.

    The file contains all it needs and forbids the browser to fetch anything. It is written next to its final name,
    synced and renamed, so a crash leaves the old report or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        analysis: what `analyse_regimes` returned.
        title: headline of the page.
        facts: what made the numbers (data, detector, settings), in words; periods and versions are added.

    Returns:
        The path of the file.
    """
    return write_page(path, regime_report_html(analysis, title=title, facts=facts))


def regime_report_html(
    analysis: RegimeAnalysis, *, title: str = "Regimes", facts: Mapping[str, str] | None = None
) -> str:
    """Build the page that `write_regime_report` writes; the same arguments give the same page."""
    shading = "the most probable regime" + (
        ", of stretches of bars the most frequent" if analysis.n_bars > MOST_STRETCHES else ""
    )
    changes = {
        "From the row to the column": transition_figure(analysis),
        "How long each lasts": duration_figure(analysis),
    }
    body = [
        _now_section(analysis),
        figure_section(regime_price_figure(analysis), f"Log scale, shaded by {shading}. {_no_look_ahead(analysis)}"),
        figure_section(regime_probability_figure(analysis), PROBABILITY_NOTE),
        section("How regimes change", panels("changes", changes, wide=True), note=_change_note(analysis)),
        section("What regimes were worth", _performance_table(analysis), note=PERFORMANCE_NOTE, below=_flips(analysis)),
    ]
    if analysis.has_densities:
        body.append(figure_section(score_gain_figure(analysis), _score_note(analysis)))
    if analysis.selection is not None:
        body.append(_selection_section(analysis))
    body.append(facts_section(_facts(analysis, facts or {})))
    return page_html(title=title, period=_period(analysis), verdict=analysis.verdict(), body=body)


def naming_sentence(analysis: RegimeAnalysis) -> str:
    """Say why the regimes are called what they are."""
    if analysis.n_regimes == 1:
        return "There is one regime, called all."
    rule = "Regimes are called bull, sideways and bear only where their mean returns are clearly apart"
    if analysis.is_named_by_mean:
        said = " and ".join("in training" if part == "training" else "after it" for part in analysis.misnamed_in())
        if not said:
            return f"{rule}, as they are here."
        return (
            f"{rule}, as they are here. Yet bars for which bear was expected at the close before earned no less than those for "
            f"which bull was ({said}): the names describe bars that have been, and foretell no returns."
        )
    return f"{rule}; here they are not, so regimes are named for their volatility."


def _no_look_ahead(analysis: RegimeAnalysis) -> str:
    last = analysis.timestamps[analysis.n_train_bars - 1]
    learning = " and went on learning bar by bar" if _goes_on_learning(analysis) else ""
    return (
        "Nothing looks ahead: what is drawn at a bar uses that bar and those before it. The detector learned from bars up to "
        f"{last:%Y-%m-%d}{learning}, so only what comes after is what it would have said at the time. "
        f"{naming_sentence(analysis)}"
    )


def _goes_on_learning(analysis: RegimeAnalysis) -> bool:
    return isinstance(analysis.detector, OnlineHMM)


def _now_section(analysis: RegimeAnalysis) -> str:
    parts = analysis.parts()
    rows = [
        Row(
            label=name,
            cells=[
                _percent(analysis.filtered[-1, k]),
                _percent(analysis.following[-1, k]),
                *(format_percent(analysis.shares(part)[k]) for part in parts),
                duration_text(analysis.expected_durations[k]),
            ],
            kind="agent" if k == int(analysis.filtered[-1].argmax()) else "",
        )
        for k, name in enumerate(analysis.state_names)
    ]
    columns = [
        "P(last bar)",
        "P(next bar)",
        *(f"Share, {PART_NAMES[part].lower()}" for part in parts),
        "Expected duration",
    ]
    return table_html(columns, rows) + _fitted_table(analysis)


def _fitted_table(analysis: RegimeAnalysis) -> str:
    """What a hidden Markov model takes returns to be in each regime; nothing of other detectors."""
    detector, per_year = analysis.detector, analysis.bars_per_year
    if not isinstance(detector, GaussianHMM):
        return ""
    means, errors = detector.means_[:, 0] * per_year, detector.mean_errors_[:, 0] * per_year
    volatilities = np.sqrt(detector.covariances_[:, 0, 0] * per_year)
    rows = [
        Row(label=name, cells=[f"{format_percent(mean)} ± {format_percent(error)}", format_percent(volatility)])
        for name, mean, error, volatility in zip(analysis.state_names, means, errors, volatilities, strict=True)
    ]
    table = table_html(["Log return a year, ± standard error", "Volatility a year"], rows)
    return section("What was learned", table, note="Of the bars that a regime makes. These means are what names go by.")


def _performance_table(analysis: RegimeAnalysis) -> str:
    rows: list[Row] = []
    for part in analysis.parts():
        rows.append(Row(label=PART_NAMES[part], kind="group"))
        for name, found in analysis.performance(part).iterrows():
            cells = [format_percent(found[column]) for column in ("share", "mean_return", "volatility")]
            kind = "naive" if name == "all" and analysis.n_regimes > 1 else ""
            label = "all bars" if name == "all" else str(name)
            rows.append(Row(label=label, cells=[*cells, format_number(found["sharpe_ratio"])], kind=kind))
            if analysis.n_regimes == 1:
                break
    return table_html(["Share of bars", "Return a year", "Volatility a year", "Sharpe"], rows)


def _flips(analysis: RegimeAnalysis) -> str:
    flips = " and ".join(
        f"{format_number(analysis.flips_per_year(part))} times a year {'in training' if part == 'training' else 'after'}"
        for part in analysis.parts()
    )
    return (
        f"The most probable regime changed {flips}; a chain with these transitions changes "
        f"{format_number(analysis.expected_flips_per_year())} times a year."
    )


def _change_note(analysis: RegimeAnalysis) -> str:
    when = " as of the last bar" if _goes_on_learning(analysis) else ""
    return (
        f"Probability of the next bar's regime, given that of this one{when}; a regime lasts 1 / (1 − probability to stay) "
        "bars on average."
    )


def _score_note(analysis: RegimeAnalysis) -> str:
    note = (
        "How far the log density of each bar, foretold from the bars before it, is ahead of that of one normal distribution "
        "with the moments of the training bars; added up, and 0 where training ends. Rising is better."
    )
    if np.isnan(analysis.score_gain):
        return note
    low, high = analysis.score_gain_interval
    after = slice(analysis.n_train_bars, None)
    own, other = (
        format(float(scores[after].mean()), ".3f") for scores in (analysis.log_scores, analysis.plain_log_scores)
    )
    interval = "" if np.isnan(low) else f" (95% interval {low:+.3f} to {high:+.3f})"
    found = f" After training: {own} nats a bar against {other}, a difference of {analysis.score_gain:+.3f}{interval}."
    return (note + found).replace("-", "−")


def _selection_section(analysis: RegimeAnalysis) -> str:
    selection = analysis.selection
    assert selection is not None
    rows = [
        Row(
            label=f"{number} regime{'' if number == 1 else 's'}",
            cells=[
                format(value, ".4f").replace("-", "−")
                for value in (found["log_score"], found["behind"], found["error"])
            ],
            kind="agent" if number == selection.n_regimes else "",
        )
        for number, found in selection.table.iterrows()
    ]
    return section(
        "How many regimes",
        table_html(["Log score", "Behind the best", "Standard error of that"], rows),
        note=(
            "Training bars alone: each number was fitted on the first 70% of them and judged on one-step densities of the "
            "rest. The fewest regimes within a standard error of the best are taken."
        ),
    )


def _facts(analysis: RegimeAnalysis, given: Mapping[str, str]) -> dict[str, str]:
    after = "Filtered, and learned from bar by bar" if _goes_on_learning(analysis) else "Filtered only"
    periods = {
        "Learned from" if name == "training" else after: _bars(analysis, part.start, part.stop)
        for name, part in analysis.parts().items()
    }
    return {**periods, "Bars per year": f"{analysis.bars_per_year:,.6g}", **given}


def _bars(analysis: RegimeAnalysis, start: int, stop: int) -> str:
    times = analysis.timestamps
    return (
        f"{times[start]:%Y-%m-%d} to {times[stop - 1]:%Y-%m-%d}, {stop - start:,} bar{'' if stop - start == 1 else 's'}"
    )


def _period(analysis: RegimeAnalysis) -> str:
    regimes = ", ".join(spaced(name) for name in analysis.state_names)
    return f"{_bars(analysis, 0, analysis.n_bars)}, {analysis.asset}; {regimes}"


def _percent(probability: float) -> str:
    return format_percent(float(probability))


PROBABILITY_NOTE = (
    "How probable each regime is at the close of a bar, given the bars up to it; they add up to one. In hindsight changes look "
    "sharper and earlier, and nobody has hindsight at the time."
)
PERFORMANCE_NOTE = (
    "Of buying and holding, without costs, on the bars for which each regime was the most probable one at the close before. "
    "Means are not compounded. Few bars make means of returns rough, and fewer than 30 are left out; volatility is known much "
    "sooner."
)
