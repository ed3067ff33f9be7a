"""One HTML page about agents that were trained fold after fold and lived what followed: `write_walk_forward_report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ml.tradingbots.training.agent_validation import AgentValidation
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
from ml.tradingbots.training.walk_forward_figures import (
    FOLD_MARKS,
    walk_forward_equity_figure,
    walk_forward_folds_figure,
)


def write_walk_forward_report(
    path: str | os.PathLike[str],
    validation: AgentValidation,
    *,
    title: str = "Walk-forward",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML file with the verdict on agents, their accounts end to end, and every fold.

    The file contains all it needs and forbids the browser to fetch anything. It is written next to its final name,
    synced and renamed, so a crash leaves the old report or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        validation: what `walk_forward_agents` returned.
        title: headline of the page.
        facts: what made the numbers (agent, data, costs, timesteps, command), in words; period, seeds and versions are
            added.

    Returns:
        The path of the file.
    """
    return write_page(path, walk_forward_report_html(validation, title=title, facts=facts))


def walk_forward_report_html(
    validation: AgentValidation, *, title: str = "Walk-forward", facts: Mapping[str, str] | None = None
) -> str:
    """Build the page that `write_walk_forward_report` writes; the same arguments give the same page."""
    figures = {
        "Return": walk_forward_folds_figure(validation, measure="total_return"),
        "Sharpe": walk_forward_folds_figure(validation, measure="sharpe_ratio"),
    }
    for figure in figures.values():
        figure.update_layout(showlegend=False)
    drawn = legend_html(FOLD_MARKS) + panels("folds", figures, wide=True)
    body = [
        figure_section(walk_forward_equity_figure(validation), EQUITY_NOTE),
        section("Folds", drawn, _table(validation), below=_table_note(validation)),
        _dates_section(validation),
        facts_section(_facts(validation, facts or {})),
    ]
    return page_html(title=title, period=_period(validation), verdict=validation.verdict(), body=body)


def _table(validation: AgentValidation) -> str:
    table = validation.formatted_table()
    rows = [
        Row(
            label=str(name),
            cells=[str(cell).removesuffix(" (–)") for cell in cells],
            kind="agent" if place == len(table) - 1 else "",
        )
        for place, (name, cells) in enumerate(zip(table.index, table.to_numpy(), strict=True))
    ]
    columns = [str(name).replace(" of buy-and-hold", ", held").replace(" ratio", "") for name in table.columns]
    return table_html(columns, rows, small_brackets=True)


def _table_note(validation: AgentValidation) -> str:
    spread = (
        "With one seed nothing is known about how runs differ by their seed."
        if validation.n_seeds == 1
        else f"Small: {validation.confidence:.0%} intervals of the seeds; another stretch of market is not in them, and the "
        "verdict has an interval of its own for that. Few seeds make them rough and narrow."
    )
    return f"Interquartile means over seeds, after costs; held is buy-and-hold on the same terms. {spread}"


def _dates_section(validation: AgentValidation) -> str:
    rows = [
        Row(
            label=str(fold),
            cells=[
                f"{dates['train_start']:%Y-%m-%d} to {dates['train_end']:%Y-%m-%d}",
                f"{dates['n_train_bars']:,}",
                f"{dates['test_start']:%Y-%m-%d} to {dates['test_end']:%Y-%m-%d}",
                f"{dates['n_test_bars']:,}",
            ],
        )
        for fold, dates in validation.per_fold.iterrows()
    ]
    table = table_html(["Trained on", "Bars", "Tested on", "Bars"], rows)
    return section(
        "Dates", table, note="Training saw the bars of its own stretch and nothing else, its normaliser included."
    )


def _facts(validation: AgentValidation, given: Mapping[str, str]) -> dict[str, str]:
    seeds = ", ".join(str(seed) for seed in validation.equity.columns[:-1])
    return {"Tested": _period(validation), "Seeds": seeds, **given}


def _period(validation: AgentValidation) -> str:
    folds = validation.per_fold
    return (
        f"{folds['test_start'].min():%Y-%m-%d} to {folds['test_end'].max():%Y-%m-%d}, "
        f"{len(folds)} fold{'' if len(folds) == 1 else 's'}, {int(folds['n_test_bars'].sum()):,} bars, "
        f"{validation.n_seeds} seed{'' if validation.n_seeds == 1 else 's'}"
    )


EQUITY_NOTE = (
    "What 1 became on bars that the agents were not trained on, after costs; log scale, folds end to end, a vertical line "
    "where one begins. Every fold has agents of its own, so a line is a seed, not an agent. Seeds that part ways say that "
    "what was learned is mostly luck of the draw."
)
