"""Writes what `results/` holds into the tables of `docs/`, so that no number there is copied by hand.

python benchmarks/tables.py            # after any benchmark whose results stand in a page
python benchmarks/tables.py --check    # says whether the pages are what the results are
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from learning_tables import multitask_page, regimes_page, transfer_page
from table_text import RESULTS, shown_figure, with_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
AGENTS = ("ppo", "dqn", "sac", "td3", "ddpg", "a2c")
BASIS_POINT = 1e-4
MARKETS = {"ar1": "AR(1), phi 0.3", "ou": "Ornstein–Uhlenbeck, reversion 0.1"}
FLAT = {
    "costs above the edge": "faint edge (8 bps a bar) below its costs (50 bps)",
    "random walk": "random walk, 5 bps costs",
}
REQUIRED_SHARES = {"ppo": 0.95, "a2c": 0.95, "sac": 0.92, "td3": 0.92, "dqn": 0.92, "ddpg": 0.90}
# Tables of docs/forecasting.md: case, head of the first column, and measures with their heads and decimals.
FORECAST_TABLES: dict[str, tuple[str, dict[str, tuple[str, int]]]] = {
    "ar1": (
        "AR(1), phi 0.3",
        {
            "r2_share": ("R² over the optimum's", 1),
            "accuracy_gap": ("points of directional accuracy above the optimum's", 2),
            "coverage": ("90% intervals hold", 1),
            "pinball_excess": ("pinball loss above the optimum's", 2),
        },
    ),
    "noise": ("noise", {"r2": ("R²", 3), "coverage": ("90% intervals hold", 1)}),
    "sine": (
        "sine under noise",
        {"r2_share": ("R² over the optimum's", 1), "linear_share": ("over the best linear forecast's", 1)},
    ),
    "pattern": (
        "planted pattern",
        {
            "auc_share": ("AUC gain over the optimum's", 1),
            "auc_errors": ("AUC − ½, s.e.", 2),
            "r2_share": ("R² over the optimum's", 1),
        },
    ),
    "ensembles": (
        "ensemble",
        {
            "excess": ("loss above the best member's, s.e. of that", 2),
            "paired_excess": ("in s.e. of the difference", 1),
            "r2_share": ("R² over the optimum's", 1),
            "best_r2_share": ("the best member's", 1),
        },
    ),
    "mixture": ("mixture", {"largest_error": ("weight furthest off, s.e.", 2)}),
    "intervals": (
        "market, predictor, head",
        {"coverage": ("90% intervals hold", 1), "conformal_coverage": ("after `SplitConformal`", 1)},
    ),
    "break": (
        "volatility times three",
        {
            "before": ("250 bars before", 1),
            "during": ("250 bars from the break on", 1),
            "after": ("the next 250", 1),
            "plain_during": ("from the break on, not adapted", 1),
        },
    ),
}
FORECAST_NAMES = {
    "lstm": "LSTM",
    "cnn": "CNN",
    "ar1": "AR(1)",
    "pattern": "planted pattern",
    "garch": "GARCH",
    "gaussian": "Gaussian",
    "student_t": "Student-t",
}
TASK_NAMES = {"MountainCarContinuous-v0": "MountainCarContinuous-v0 (gSDE)"}


def main() -> None:
    """Write the pages, or check them."""
    check = "--check" in sys.argv[1:]
    for path, fill in pages():
        text = path.read_text(encoding="utf-8")
        fresh = fill(text)
        if fresh == text:
            continue
        if check:
            raise SystemExit(
                f"{path.relative_to(ROOT)} differs from benchmarks/results: run python benchmarks/tables.py"
            )
        path.write_text(fresh, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


def pages() -> Iterator[tuple[Path, Callable[[str], str]]]:
    """Yield every page with tables, and what fills them."""
    for agent in AGENTS:
        yield DOCS / "algorithms" / f"{agent}.md", functools.partial(page, agent=agent)
    yield DOCS / "forecasting.md", forecasting_page
    yield DOCS / "regimes.md", regimes_page
    yield DOCS / "transfer.md", transfer_page
    yield DOCS / "multitask.md", multitask_page


def page(text: str, agent: str) -> str:
    """Return an agent's page with its tables filled."""
    reference, regret = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("reference", "regret"))
    text = with_table(text, _reference_table(reference["summary"], agent))
    text = with_table(text, _market_table(regret["rows"], agent))
    return with_table(text, _flat_table(regret["rows"])) if agent == "sac" else text


def forecasting_page(text: str) -> str:
    """Return the page on forecasting with its tables filled."""
    summary = json.loads((RESULTS / "predictors.json").read_text())["summary"]
    for case in FORECAST_TABLES:
        text = with_table(text, _forecast_table([entry for entry in summary if entry["case"] == case], case))
    return text


def _forecast_table(entries: list[dict[str, Any]], case: str) -> list[list[str]]:
    title, columns = FORECAST_TABLES[case]
    heads = [f"{head}{_required(entries, name)}" for name, (head, _) in columns.items()]
    timed = all("cpu_seconds" in entry for entry in entries)
    table = [[title, *heads, "seeds", *(["CPU seconds"] if timed else [])]]
    for entry in entries:
        cells = [_spread(entry, name, decimals) for name, (_, decimals) in columns.items()]
        who = ", ".join(FORECAST_NAMES.get(part, part) for part in entry["what"].split(", "))
        seconds = [f"{entry['cpu_seconds']:.1f}"] if timed else []
        table.append([who, *cells, str(entry["seeds"]), *seconds])
    return table


def _required(entries: list[dict[str, Any]], name: str) -> str:
    """What is asked of a measure, for the head of its column; some lines of a table may be free of it."""
    bounds = {}
    for entry in entries:
        found = entry["measures"].get(name, {})
        bounds |= {end: _bound(found[end], found["unit"]) for end in ("low", "high") if end in found}
    if len(bounds) == 2:
        return f" ({bounds['low']} to {bounds['high']})"
    return f" (≥ {bounds['low']})" if "low" in bounds else f" (≤ {bounds['high']})" if bounds else ""


def _spread(entry: dict[str, Any], name: str, decimals: int) -> str:
    """Median, worst and best; how many seeds do as required, where not all do."""
    found = entry["measures"].get(name)
    if found is None:
        return ""
    median, worst, best = (shown_figure(found[key], found["unit"], decimals) for key in ("median", "worst", "best"))
    missed = found["reached"] < entry["seeds"]
    return f"{median} [{worst}, {best}]" + (f", {found['reached']} of {entry['seeds']}" if missed else "")


def _bound(value: float, unit: str) -> str:
    return shown_figure(value, unit, 1).replace(".0", "")


def _reference_table(summary: list[dict[str, Any]], agent: str) -> list[list[str]]:
    table = [["task", "timesteps", "required", "median [worst, best]", "seeds", "CPU seconds", "RL Zoo, one model"]]
    for entry in summary:
        task, _, who = entry["task"].partition(" ")
        if who == agent:
            scores = f"{_number(entry['median'])} [{_number(entry['min'])}, {_number(entry['max'])}]"
            table.append(
                [
                    TASK_NAMES.get(task, task),
                    f"{_timesteps(entry['task']):,}",
                    _number(entry["required"]),
                    scores,
                    str(entry["seeds"]),
                    f"{entry['cpu_seconds']:.0f}",
                    _number(entry["zoo"]),
                ]
            )
    return table


def _timesteps(task: str) -> int:
    # Read, not imported: the check must not need torch.
    source = (ROOT / "ml" / "tradingbots" / "training" / "reference.py").read_text(encoding="utf-8")
    env, _, agent = task.partition(" ")
    found = re.search(rf'"{re.escape(env)}",\s+"{agent}",.*?total_timesteps=([\d_]+)', source, re.DOTALL)
    assert found is not None
    return int(found[1].replace("_", ""))


def _market_table(rows: list[dict[str, Any]], agent: str) -> list[list[str]]:
    name = agent.upper()
    table = [
        [
            "market",
            "optimum, bps a bar",
            name,
            "share of the optimum [worst, best]",
            "required",
            "SB3, same timesteps",
            f"CPU and wall seconds, {name}",
            "SB3",
            "seeds",
        ]
    ]
    for case, label in MARKETS.items():
        ours, theirs = (
            [row for row in rows if (row["agent"], row["case"], row["who"]) == (agent, case, who)]
            for who in ("ours", "theirs")
        )
        shares = [row["share"] for row in ours]
        spread = f"{statistics.median(shares):.1%} [{min(shares):.1%}, {max(shares):.1%}]"
        table.append(
            [
                label,
                f"{_median(ours, 'optimum') / BASIS_POINT:.2f}",
                f"{_median(ours, 'gain') / BASIS_POINT:.2f}",
                spread,
                f"{REQUIRED_SHARES[agent]:.0%}",
                f"{_median(theirs, 'share'):.1%}",
                _seconds(ours),
                _seconds(theirs),
                f"{len(ours)} and {len(theirs)}",
            ]
        )
    return table


def _flat_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = [["market", "SAC, bps a bar", "held, share of equity", "traded, share of equity a bar"]]
    for case, label in FLAT.items():
        found = [row for row in rows if row["case"] == case]
        gain = f"{_median(found, 'gain') / BASIS_POINT:.1f}".replace("-", "−")
        table.append([label, gain, f"{_median(found, 'exposure'):.0%}", f"{_median(found, 'turnover'):.1%}"])
    return table


def _seconds(rows: list[dict[str, Any]]) -> str:
    return f"{_median(rows, 'cpu_seconds'):.0f} and {_median(rows, 'wall_seconds'):.0f}"


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0").replace("-", "−")


if __name__ == "__main__":
    main()
