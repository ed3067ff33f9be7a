"""Writes what `results/` holds into the tables of `docs/`, so that no number there is copied by hand.

python benchmarks/tables.py            # after reference.py, regret.py, predictors.py and regimes.py
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

ROOT = Path(__file__).parents[1]
RESULTS, PAGES, FORECASTING, REGIMES = (
    Path(__file__).parent / "results",
    ROOT / "docs" / "algorithms",
    ROOT / "docs" / "forecasting.md",
    ROOT / "docs" / "regimes.md",
)
AGENTS = ("ppo", "dqn", "sac", "td3", "ddpg", "a2c")
BASIS_POINT = 1e-4
MARKETS = {"ar1": "AR(1), phi 0.3", "ou": "Ornstein–Uhlenbeck, reversion 0.1"}
FLAT = {
    "costs above the edge": "faint edge (8 bps a bar) below its costs (50 bps)",
    "random walk": "random walk, 5 bps costs",
}
REQUIRED_SHARES = {"ppo": 0.95, "a2c": 0.95, "sac": 0.92, "td3": 0.92, "dqn": 0.92, "ddpg": 0.90}
# The table of docs/regimes.md: measures of results/gate.json and their heads.
GATE_COLUMNS = {
    "both": "features and mixing (≥ 80%)",
    "features only": "features only",
    "mixing only": "mixing only",
    "generalist": "no regimes (≤ 25%)",
    "shuffled": "shuffled in time",
    "trained on shuffled": "trained on shuffled",
    "one regime": "one regime, over the generalist (≥ 95%)",
    "generalist, account seen": "no regimes, account seen",
}
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
REGIME_CASES = {
    "bull_bear": "bull +10 bp at 0.8%, bear −15 bp at 2%",
    "bull_sideways_bear": "three regimes, +12, 0 and −20 bp",
    "toy": "means half a deviation from 0",
    "faint": "means of ±10 bp at 1%, nothing else",
}
REGIME_CHECKS = {
    ("alternating", "GaussianHMM"): "P(stay) of 0.05: error, `GaussianHMM`, 5,000 bars",
    ("alternating", "OnlineHMM"): "the same, `OnlineHMM`, 60,000 bars",
    ("online variance", "OnlineHMM"): "variance of noise: error, `OnlineHMM`, 60,000 bars",
    ("units", "bull_bear"): "filtered probability in other units: difference, two regimes",
    ("units", "bull_sideways_bear"): "the same, three regimes",
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
        yield PAGES / f"{agent}.md", functools.partial(page, agent=agent)
    yield FORECASTING, forecasting_page
    yield REGIMES, regimes_page


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


def _gate_table(summary: list[dict[str, Any]]) -> list[list[str]]:
    agents = list(dict.fromkeys(entry["agent"] for entry in summary))
    table = [["members", *GATE_COLUMNS.values(), "seeds"]]
    for agent in agents:
        found = {entry["measure"]: entry for entry in summary if entry["agent"] == agent}
        cells = [_gate_cell(found.get(measure)) for measure in GATE_COLUMNS]
        table.append([agent.upper(), *cells, str(found["both"]["seeds"])])
    return table


def _gate_cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    median, worst, best = (_figure(100.0 * entry[key], "", 0) for key in ("median", "min", "max"))
    return f"{median}% [{worst}, {best}]"


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


def regimes_page(text: str) -> str:
    """Return the page on regimes with its tables filled."""
    summary = json.loads((RESULTS / "regimes.json").read_text())["summary"]
    text = with_table(text, _recovery_table([entry for entry in summary if entry["case"] == "recover"]))
    text = with_table(text, _check_table([entry for entry in summary if entry["case"] != "recover"]))
    return with_table(text, _gate_table(json.loads((RESULTS / "gate.json").read_text())["summary"]))


def _recovery_table(entries: list[dict[str, Any]]) -> list[list[str]]:
    heads = ["case", "bars", "true filter", "points below it (≤ 1)", "means within 2 s.e.", "their mean square"]
    table = [[*heads, "variances within 5%", "s.e. of one", "P(stay) off by at most", "seeds", "CPU seconds"]]
    for entry in entries:
        name, bars = entry["what"].split(", ")
        table.append(
            [
                REGIME_CASES[name],
                bars.removesuffix(" bars"),
                f"{entry['best_accuracy']:.1%}",
                _small(entry["measures"]["accuracy_gap"], entry["seeds"], 100.0, ".2f"),
                f"{entry['means_within']} of {entry['parameters']}",
                f"{entry['mean_square']:.2f}",
                f"{entry['variances_within']} of {entry['parameters']}",
                f"{entry['variance_deviation']:.1%}",
                f"{entry['largest_stay_error']:.3f}",
                str(entry["seeds"]),
                f"{entry['cpu_seconds']:.1f}",
            ]
        )
    return table


def _check_table(entries: list[dict[str, Any]]) -> list[list[str]]:
    table = [["what", "required", "median [worst, best]", "seeds"]]
    for entry in entries:
        (found,) = entry["measures"].values()
        form = ".1e" if entry["case"] == "units" else ".3f"
        shown = _small(found, entry["seeds"], 1.0, form)
        table.append([REGIME_CHECKS[entry["case"], entry["what"]], f"≤ {found['high']:g}", shown, str(entry["seeds"])])
    return table


def _small(found: dict[str, Any], seeds: int, factor: float, form: str) -> str:
    """Median, worst and best of what should be small; how many seeds do as required, where not all do."""
    median, worst, best = (format(factor * found[key], f"z{form}") for key in ("median", "worst", "best"))
    missed = f", {found['reached']} of {seeds}" if found["reached"] < seeds else ""
    return f"{median} [{worst}, {best}]{missed}".replace("-", "−")


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
    median, worst, best = (_figure(found[key], found["unit"], decimals) for key in ("median", "worst", "best"))
    missed = found["reached"] < entry["seeds"]
    return f"{median} [{worst}, {best}]" + (f", {found['reached']} of {entry['seeds']}" if missed else "")


def _bound(value: float, unit: str) -> str:
    return _figure(value, unit, 1).replace(".0", "")


def _figure(value: float, unit: str, decimals: int) -> str:
    shown = f"{value:z.{decimals}%}" if unit == "%" else f"{100.0 * value if unit == 'points' else value:z.{decimals}f}"
    return shown.replace("-", "−")


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


def with_table(text: str, table: list[list[str]]) -> str:
    """Put a table in the place of the one whose head begins alike; raises SystemExit where there is none."""
    head = f"| {table[0][0].strip()} | {table[0][1].split()[0]}"
    lines = text.split("\n")
    first = next((number for number, line in enumerate(lines) if line.startswith(head)), None)
    if first is None:
        raise SystemExit(f"no table begins with {head!r}")
    last = next(number for number in range(first, len(lines) + 1) if not "".join(lines[number : number + 1]))
    cells = [[cell.strip() for cell in row] for row in table]
    drawn = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    lines[first:last] = [f"| {' | '.join(row)} |" for row in drawn]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
