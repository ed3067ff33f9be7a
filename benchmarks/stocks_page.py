"""Keeps what a walk-forward on `sp500-stocks` found, and writes it into the tables of `docs/reports/sp500-stocks.md`.

python benchmarks/stocks_page.py RUN_DIR    # after the command that the page names
python benchmarks/stocks_page.py --check    # says whether the page is what was kept
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

from tables import with_table

ROOT = Path(__file__).parents[1]
KEPT, PAGE = Path(__file__).parent / "results" / "sp500-stocks", ROOT / "docs" / "reports" / "sp500-stocks.md"
FILES = ("scores.csv", "per_fold.csv", "config.json")
PREDICTORS = ("lstm", "transformer", "cnn", "ensemble")
HORIZONS = ("1", "5")
# Score, heading, format.
SCORES = (
    ("r2", "R²", ".2%"),
    ("ic", "IC", ".3f"),
    ("rank_ic", "rank IC", ".3f"),
    ("directional_skill", "directional skill", ".2%"),
    ("crps", "CRPS", ".5f"),
    ("coverage", "90% coverage", ".1%"),
    ("sharpe_ratio", "Sharpe", ".2f"),
)


def main() -> None:
    """Keep a run and write the page, or check it."""
    if sys.argv[1:] == ["--check"]:
        if page(PAGE.read_text(encoding="utf-8")) != PAGE.read_text(encoding="utf-8"):
            raise SystemExit(
                f"{PAGE.relative_to(ROOT)} differs from {KEPT.relative_to(ROOT)}: run benchmarks/stocks_page.py"
            )
        return
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(Path(sys.argv[1]) / name, KEPT / name)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def page(text: str) -> str:
    """Return the page with its tables filled."""
    scores, folds = (_rows(name) for name in ("scores.csv", "per_fold.csv"))
    for horizon in HORIZONS:
        text = with_table(text, _scores_table(scores, horizon))
    return with_table(text, _fold_table(folds))


def _scores_table(rows: list[dict[str, str]], horizon: str) -> list[list[str]]:
    table = [[f"{horizon} {'bar' if horizon == '1' else 'bars'} ahead", *(heading for _, heading, _ in SCORES)]]
    for row in rows:
        if row["horizon"] == horizon:
            name = row["model"] if row["model"] in PREDICTORS else f"*{row['model'].replace('_', ' ')}*"
            table.append([name, *(_with_interval(row, score, form) for score, _, form in SCORES)])
    return table


def _fold_table(rows: list[dict[str, str]]) -> list[list[str]]:
    folds = sorted({row["fold"] for row in rows}, key=int)
    table = [["R² by fold", *(f"{int(fold) + 1}" for fold in folds)]]
    for horizon in HORIZONS:
        for model in dict.fromkeys(row["model"] for row in rows):
            found = [row for row in rows if (row["model"], row["horizon"]) == (model, horizon)]
            table.append([f"{model.replace('_', ' ')}, {horizon} ahead", *(_text(row["r2"], ".2%") for row in found)])
    return table


def _with_interval(row: dict[str, str], score: str, form: str) -> str:
    value, low, high = (_text(row[f"{score}{end}"], form) for end in ("", "_low", "_high"))
    return value if "–" in (value, low) else f"{value} ({low} to {high})"


def _text(number: str, form: str) -> str:
    return format(float(number), form).replace("-", "−") if number else "–"


def _rows(name: str) -> list[dict[str, str]]:
    with (KEPT / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
