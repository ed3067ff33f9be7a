"""Where prices come from: data sets installed with the library, files of your own, and Yahoo Finance.

Everything is returned as a DataFrame that `Bars.from_frame` accepts; `docs/data.md` says what each source is
worth. Files are read as CSV or Parquet only: nothing is ever unpickled, so a hostile file cannot run code.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import DATE_COLUMN_NAMES, did_you_mean

FILE_SUFFIXES = (".csv", ".csv.gz", ".parquet")
YFINANCE_PREFIX = "yfinance:"


def load_prices(source: str) -> pd.DataFrame:
    """Load prices by name, from a file, or from Yahoo Finance.

    Args:
        source: a name of `list_sources()`; or the path of a `.csv`, `.csv.gz` or `.parquet` file; or
            `yfinance:AAPL,MSFT`. In a CSV file the dates are the column called date, datetime, timestamp or time,
            else the first column, written as ISO 8601 (2020-01-31, 2020-01-31 16:00-05:00).

    Returns:
        A table with a `DatetimeIndex`, not yet checked: `Bars.from_frame` does that.

    Raises:
        ValueError: where the source is unknown or the file cannot be understood.
        FileNotFoundError: where there is no such file.
        ImportError: where `yfinance` is asked for and not installed.
    """
    if source in _DATA_SETS:
        return _DATA_SETS[source][1]()
    if source.startswith(YFINANCE_PREFIX):
        return _download(source)
    if source.lower().endswith(FILE_SUFFIXES):
        return _read_file(Path(source).expanduser())
    raise ValueError(_unknown(source))


def list_sources() -> dict[str, str]:
    """Return what `load_prices` understands: each name or pattern with a line about it."""
    return {name: description for name, (description, _) in _DATA_SETS.items()} | {
        "FILE.csv, FILE.csv.gz, FILE.parquet": "your own table; dates in a column called date, or the first one",
        "yfinance:AAPL,MSFT": "daily prices from Yahoo Finance, adjusted; needs pip install 'tradingbots[data]'",
    }


@dataclass(frozen=True, kw_only=True)
class PriceDescription:
    """What a price table holds, at a glance."""

    assets: tuple[str, ...]
    """Names of the assets."""
    fields: tuple[str, ...]
    """Which of open, high, low, close, volume there are."""
    extra: tuple[str, ...]
    """Names of the feature columns beside them."""
    n_bars: int
    """Number of bars."""
    first: pd.Timestamp
    """Timestamp of the first bar, UTC."""
    last: pd.Timestamp
    """Timestamp of the last bar, UTC."""
    bars_per_year: float | None
    """Bars per calendar year, as `Bars.bars_per_year`; None for a single bar."""
    open_equals_last_close_share: float | None
    """Fraction of opens that equal the close before them exactly, in [0, 1]; None without opens or with one bar.
    In those bars a fill at the open is a fill at the price just seen."""


def describe_prices(price_data: pd.DataFrame | Bars) -> PriceDescription:
    """Check a price table and summarise it.

    Args:
        price_data: any table that `Bars.from_frame` accepts.
    """
    bars = Bars.from_frame(price_data)
    several = bars.n_bars > 1
    share = float((bars.open[1:] == bars.close[:-1]).mean()) if several and bars.open is not None else None
    return PriceDescription(
        assets=bars.assets,
        fields=bars.fields,
        extra=tuple(bars.extra),
        n_bars=bars.n_bars,
        first=bars.timestamps[0],
        last=bars.timestamps[-1],
        bars_per_year=bars.bars_per_year if several else None,
        open_equals_last_close_share=share,
    )


def _load_sp500() -> pd.DataFrame:
    from arch.data import sp500

    return _plain_ohlcv(sp500.load())


def _load_nasdaq() -> pd.DataFrame:
    from arch.data import nasdaq

    return _plain_ohlcv(nasdaq.load())


def _load_sp500_stocks() -> pd.DataFrame:
    from skfolio.datasets import load_sp500_dataset

    prices: pd.DataFrame = load_sp500_dataset()
    return prices.rename_axis(index="date")


_DATA_SETS: dict[str, tuple[str, Callable[[], pd.DataFrame]]] = {
    "sp500": ("S&P 500 index, daily OHLCV, 1999-2018; until 2005 its opens repeat the last close", _load_sp500),
    "nasdaq": ("NASDAQ Composite index, daily OHLCV, 1999-2018", _load_nasdaq),
    "sp500-stocks": (
        "20 US stocks, daily adjusted closes, 1990-2022; survivors picked with hindsight: never evidence of skill",
        _load_sp500_stocks,
    ),
}


def _plain_ohlcv(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table in lower case, without an adjusted close that adds nothing."""
    frame = frame.rename(columns=str.lower).rename_axis(index="date")
    if "adj close" in frame and frame["adj close"].equals(frame["close"]):
        frame = frame.drop(columns="adj close")
    return frame


def _unknown(source: str) -> str:
    suffix = Path(source).suffix
    if suffix.lower() in {".pkl", ".pickle", ".joblib"}:
        return (
            f"source {source!r} is a pickle, which can run any code when it is read, so it is refused. "
            "Write the table as Parquet where you trust it: frame.to_parquet('prices.parquet')"
        )
    names = list(_DATA_SETS)
    if Path(source).exists() or (suffix and not did_you_mean(source, names)):
        return (
            f"source {source!r} is not a file that can be read; one ending in {', '.join(FILE_SUFFIXES)} is required. "
            "Convert it with pandas, or pass your own DataFrame instead of a source"
        )
    return f"unknown source {source!r}.{did_you_mean(source, names)} Available: {', '.join(list_sources())}"


def _read_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(_missing_file(path))
    parquet = path.name.lower().endswith(".parquet")
    try:
        frame = pd.read_parquet(path) if parquet else pd.read_csv(path, low_memory=False)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas, pyarrow, and gzip in three ways
        kind = "Parquet" if parquet else "CSV"
        raise ValueError(f"{path} cannot be read as {kind} ({error}). Check that the file is complete") from error
    if isinstance(frame.index, pd.DatetimeIndex):
        return frame
    column = _date_column(frame, path, first_column=not parquet)
    return frame if column is None else _index_by_date(frame, column, path)


def _missing_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: its folder {folder} does not exist. Check the path"
    if path.is_dir():
        return f"{path} is a folder, and a file is required. Name one file in it"
    present = [entry.name for entry in folder.iterdir() if entry.name.lower().endswith(FILE_SUFFIXES)]
    near = difflib.get_close_matches(path.name, present, n=3)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"there is no file {path}.{hint} Check the name and the folder ({folder.resolve()})"


def _date_column(frame: pd.DataFrame, path: Path, *, first_column: bool) -> Any:
    """Return the label of the column with the dates; None where a Parquet file has none (rows are numbered)."""
    if frame.columns.nlevels > 1:
        return None
    named = [label for label in frame.columns if str(label).strip().lower() in DATE_COLUMN_NAMES]
    if len(named) > 1:
        raise ValueError(
            f"{path} has several date columns: {', '.join(map(repr, named))}; one is required. "
            "Keep one, with date and time of day in it, or build the DataFrame yourself"
        )
    if named:
        return named[0]
    if not first_column:
        return None
    if pd.api.types.is_numeric_dtype(frame.dtypes.iloc[0]):
        raise ValueError(
            f"{path} has no date column: none is called {', '.join(sorted(DATE_COLUMN_NAMES))}, and the first, "
            f"{frame.columns[0]!r}, holds numbers. Add one, e.g. frame.to_csv(path, index_label='date')"
        )
    return frame.columns[0]


def _index_by_date(frame: pd.DataFrame, column: Any, path: Path) -> pd.DataFrame:
    dates = frame[column]
    if not pd.api.types.is_datetime64_any_dtype(dates.dtype):
        dates = _parse_dates(dates, column, path)
    prices: pd.DataFrame = frame.drop(columns=column)
    prices.index = pd.DatetimeIndex(dates, name="date")
    return prices


def _parse_dates(dates: pd.Series[Any], column: Any, path: Path) -> pd.Series[Any]:
    """Read ISO 8601 text; 01/02/2020 is refused, since it is January in one country and February in another."""
    text = dates.astype(str)
    # An offset follows a time of day; without the colon, the end of 2020-01-02 would look like one.
    aware = text.str.contains(r":\d{2}.*(?:Z|[+-]\d{2}:?\d{2})$")
    if aware.any() and not aware.all():
        row = int((aware != aware.iloc[0]).to_numpy().argmax())
        raise ValueError(
            f"column {column!r} of {path} mixes dates with and without a time zone: row 0 is {text.iloc[0]!r}, "
            f"row {row} is {text.iloc[row]!r}. Give every row one, e.g. +00:00"
        )
    # A bare year or month (shorter than 20200131) would be stamped at its start, long before its bar was known.
    full = text.where(text.str.len() >= 8)
    parsed = pd.to_datetime(full, format="ISO8601", errors="coerce", utc=bool(aware.any()))
    wrong = parsed.isna().to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"column {column!r} of {path} at row {row} is {text.iloc[row]!r}, and a date as ISO 8601 (2020-01-31) is "
            "required, since other forms are ambiguous. Read the file with pd.read_csv, set the index with "
            "pd.to_datetime(..., format='%d/%m/%Y') (or unit='s') and pass the DataFrame"
        )
    return parsed


def _download(source: str) -> pd.DataFrame:
    """Daily prices of the days on which every ticker has one, adjusted for splits and dividends."""
    tickers = [ticker.strip() for ticker in source.removeprefix(YFINANCE_PREFIX).split(",")]
    if not all(tickers):
        raise ValueError(f"source {source!r} must name tickers separated by commas, as in 'yfinance:AAPL,MSFT'")
    try:
        import yfinance
    except ImportError as error:
        raise ImportError(
            f"source {source!r} needs the package yfinance. Install it: pip install 'tradingbots[data]'"
        ) from error
    downloaded = yfinance.download(tickers, period="max", auto_adjust=True, progress=False)
    frame = pd.DataFrame() if downloaded is None else pd.DataFrame(downloaded).dropna()
    if frame.empty:
        raise ValueError(
            f"Yahoo Finance returned no day on which all of {', '.join(tickers)} have prices. "
            "Check the spelling of the tickers and the connection, or download them one by one"
        )
    return frame
