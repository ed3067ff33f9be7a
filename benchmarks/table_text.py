"""Tables as text of a page."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parent / "results"


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


def shown_figure(value: float, unit: str, decimals: int) -> str:
    """Return a figure in its unit, with a minus that is one."""
    shown = f"{value:z.{decimals}%}" if unit == "%" else f"{100.0 * value if unit == 'points' else value:z.{decimals}f}"
    return shown.replace("-", "−")
