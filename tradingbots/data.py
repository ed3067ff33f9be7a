"""`tradingbots data`: which prices there are, and what one table holds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from tradingbots.console import OptionalPath, at_the_door, parse, show, show_table

EXPORT_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the price sources; or check one and describe it."""

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[SOURCE]")] = None
    """A source, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT; none lists the sources."""
    export: OptionalPath = None
    """File to write the checked prices to: .parquet or .csv."""


def run(argv: list[str]) -> int:
    """List, or check and describe."""
    arguments: Data = parse(Data, "data", argv)

    from ml.tradingbots.data import list_sources

    if arguments.source is None:
        if arguments.export is not None:
            raise ValueError("--export needs a source to write; `tradingbots data` lists them")
        sources = pd.DataFrame({"what it is": list_sources()})
        show_table(sources, first="source", align="left")
        show("\nCheck one with `tradingbots data SOURCE`.")
        return 0
    _describe(arguments.source, arguments.export)
    return 0


def _describe(source: str, export: str | None) -> None:
    from ml.tradingbots.data import describe_prices
    from ml.tradingbots.data.bars import Bars
    from ml.tradingbots.data.sources import load_prices

    if export is not None and not export.lower().endswith(EXPORT_SUFFIXES):
        raise ValueError(f"--export must end in {' or '.join(EXPORT_SUFFIXES)}, got {export!r}")
    with at_the_door():
        bars = Bars.from_frame(load_prices(source))
    found = describe_prices(bars)
    facts = {
        "Assets": f"{len(found.assets)}: {', '.join(found.assets)}",
        "Period": f"{_when(found.first)} to {_when(found.last)}",
        "Bars": f"{found.n_bars:,}",
        "Bars a year": "–" if found.bars_per_year is None else f"{found.bars_per_year:,.6g}",
        "Fields": ", ".join(found.fields),
        "Extra features": ", ".join(found.extra) or "none",
        "Open = last close": _open_note(found.open_equals_last_close_share),
    }
    for name, text in facts.items():
        show(f"{name:<19}{text}")
    if export is not None:
        show(f"Written            {_write(bars.to_frame(), Path(export))}")


def _when(timestamp: pd.Timestamp) -> str:
    return f"{timestamp:%Y-%m-%d}" if timestamp == timestamp.normalize() else f"{timestamp:%Y-%m-%d %H:%M} UTC"


def _open_note(share: float | None) -> str:
    if share is None:
        return "no opens: orders are filled at the last close"
    warning = "; there, a fill at the open is a fill at the price just seen" if share > 0.01 else ""
    return f"{share:.1%} of bars{warning}"


def _write(frame: pd.DataFrame, path: Path) -> Path:
    from ml.tradingbots.components.serialization import write_atomically

    if path.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        return write_atomically(path, buffer.getvalue())
    if frame.columns.nlevels > 1:
        raise ValueError(
            f"--export {path}: a CSV file has one row of headings, and several assets with several fields need two; "
            "write .parquet"
        )
    return write_atomically(path, frame.to_csv().encode())
