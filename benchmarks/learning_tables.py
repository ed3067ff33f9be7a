"""Tables of the pages on regimes, transfer and several tasks; `tables.py` writes them."""

from __future__ import annotations

import json
from typing import Any

from table_text import RESULTS, shown_figure, with_table

# What is measured in results/gate.json, and the heads in docs/regimes.md.
GATE_COLUMNS = {
    "both": "features and mixing (≥ 80%)",
    "features only": "features only",
    "mixing only": "mixing only",
    "generalist": "no regimes (≤ 25%)",
    "marker seen": "no regimes, marker seen",
    "shuffled": "shuffled in time",
    "trained on shuffled": "trained on shuffled",
    "one regime": "one regime, over the generalist (≥ 95%)",
    "generalist, account seen": "no regimes, account seen",
    "both, account seen": "features and mixing, account seen",
}

# Variants in results/bull_bear.json, and the heads in docs/regimes.md.
BULL_BEAR_COLUMNS = {
    "both": "features and mixing",
    "features only": "features only",
    "mixing only": "mixing only",
    "generalist": "no regimes",
}

RATIOS = ("sharpe_ratio", "best_sharpe_ratio", "hold_sharpe_ratio")

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

# Tables of docs/multitask.md: case, head of the first column, and shares with their heads.
MULTITASK_TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "conflict": ("opposite markets", {"repeats": "repeats", "reverses": "reverses"}),
    "rewards": ("rewards ×1 and ×100", {"rewards ×1": "rewards ×1", "rewards ×100": "rewards ×100"}),
    "scarce": ("scarce bars", {"assets": "trained assets", "unseen": "unseen asset", "linear": "least squares"}),
}


def regimes_page(text: str) -> str:
    """Return the page on regimes with its tables filled."""
    summary = json.loads((RESULTS / "regimes.json").read_text())["summary"]
    text = with_table(text, _recovery_table([entry for entry in summary if entry["case"] == "recover"]))
    text = with_table(text, _check_table([entry for entry in summary if entry["case"] != "recover"]))
    text = with_table(text, _gate_table(json.loads((RESULTS / "gate.json").read_text())["summary"]))
    return with_table(text, _bull_bear_table(json.loads((RESULTS / "bull_bear.json").read_text())["summary"]))


def transfer_page(text: str) -> str:
    """Return the page on transfer with its tables filled."""
    summary = json.loads((RESULTS / "transfer.json").read_text())["summary"]
    for source in ("same", "opposite"):
        text = with_table(text, _transfer_table([entry for entry in summary if entry["source"] == source], source))
    return text


def multitask_page(text: str) -> str:
    """Return the page on agents of several tasks with its tables filled."""
    summary = json.loads((RESULTS / "multitask.json").read_text())["summary"]
    for case in MULTITASK_TABLES:
        text = with_table(text, _multitask_table([entry for entry in summary if entry["case"] == case], case))
    return text


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


def _gate_table(summary: list[dict[str, Any]]) -> list[list[str]]:
    agents = list(dict.fromkeys(entry["agent"] for entry in summary))
    table = [["members", *GATE_COLUMNS.values(), "seeds"]]
    for agent in agents:
        found = {entry["measure"]: entry for entry in summary if entry["agent"] == agent}
        cells = [_gate_cell(found.get(measure)) for measure in GATE_COLUMNS]
        table.append([agent.upper(), *cells, str(found["both"]["seeds"])])
    return table


def _bull_bear_table(summary: list[dict[str, Any]]) -> list[list[str]]:
    table = [["adapting to three regimes", *BULL_BEAR_COLUMNS.values(), "Sharpe", "best", "buy-and-hold", "seeds"]]
    for entry in summary:
        shares = [_spread(entry["shares"][variant]) for variant in BULL_BEAR_COLUMNS]
        ratios = [f"{entry[name]:z.2f}".replace("-", "−") for name in RATIOS]
        table.append([entry["agent"].upper(), *shares, *ratios, str(entry["seeds"])])
    return table


def _transfer_table(entries: list[dict[str, Any]], source: str) -> list[list[str]]:
    same = source == "same"
    zero_shot = ["zero-shot (≥ 90%)", "own scales", "blended"] if same else ["zero-shot"]
    goal, required = ("90% of the optimum", "≤ 1/3") if same else ("90% of scratch's asymptote", "≤ 1.5")
    steps = [f"timesteps to {goal}", "scratch's", f"ratio ({required})"]
    table = [[f"{source} coefficient, what moves", "agent", *zero_shot, *steps, "asymptote", "scratch's", "seeds"]]
    for entry in entries:
        names = ("zero_shot", "zero_shot_reset", "zero_shot_blend") if same else ("zero_shot",)
        shares = [_share(entry[name]) for name in names]
        counts = [_range(entry[name], ",.0f") for name in ("timesteps", "scratch_timesteps")]
        ends = [_share(entry[name]) for name in ("asymptote", "scratch_asymptote")]
        cells = [*shares, *counts, _range(entry["ratio"], ".2f"), *ends, str(entry["seeds"])]
        table.append([entry["setting"], entry["agent"].upper(), *cells])
    return table


def _multitask_table(entries: list[dict[str, Any]], case: str) -> list[list[str]]:
    title, columns = MULTITASK_TABLES[case]
    swapped = ["swapped"] if case == "conflict" else []
    both = ["both together"] if case == "conflict" else []
    table = [[title, *columns.values(), *both, *swapped, "seeds", "CPU seconds"]]
    for entry in entries:
        spreads = [entry["shares"][name] for name in columns] + [entry["mean"] for _ in both]
        cells = [_spread(spread) for spread in spreads]
        if swapped:
            ends = list(entry["swapped"].values())
            cells.append(f"at most {max(spread['max'] for spread in ends):z.1%}".replace("-", "−"))
        table.append([entry["what"], *cells, str(entry["seeds"]), f"{entry['cpu_seconds']:.1f}"])
    return table


def _spread(spread: dict[str, float]) -> str:
    """Median, worst and best."""
    median, worst, best = (f"{spread[name]:z.1%}".replace("-", "−") for name in ("median", "min", "max"))
    return f"{median} [{worst}, {best}]"


def _gate_cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    median, worst, best = (shown_figure(100.0 * entry[key], "", 0) for key in ("median", "min", "max"))
    return f"{median}% [{worst}, {best}]"


def _share(found: dict[str, float]) -> str:
    return _range(found, ".1%")


def _range(found: dict[str, float | None], form: str) -> str:
    """Median, worst and best; what was not reached within the timesteps has a dash."""
    shown = ["–" if value is None else format(value, form).replace("-", "−") for value in found.values()]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _small(found: dict[str, Any], seeds: int, factor: float, form: str) -> str:
    """Median, worst and best of what should be small; how many seeds do as required, where not all do."""
    median, worst, best = (format(factor * found[key], f"z{form}") for key in ("median", "worst", "best"))
    missed = f", {found['reached']} of {seeds}" if found["reached"] < seeds else ""
    return f"{median} [{worst}, {best}]{missed}".replace("-", "−")
