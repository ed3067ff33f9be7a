"""`tradingbots forecast`: what a fitted predictor expects after the last bar, with how sure it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tyro

from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, note, parse, show, show_table

FILE_SUFFIXES = (".csv", ".parquet")
USUAL_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FAN_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Print the returns that a predictor expects after a bar, and the prices they lead to.

    Returns are log returns over each horizon. The quantiles bound them: of outcomes, 5% shall lie below the one of 0.05.
    """

    predictor: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PREDICTOR")]
    """File of the predictor: predictor.pt of a run."""
    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    at: OptionalDate = None
    """Forecast at the last bar known at this date; None is the last bar."""
    start: OptionalDate = None
    """Forecast at every bar from this date on; needs --output."""
    quantiles: tuple[float, ...] | None = None
    """Levels, in (0, 1); None takes those of 0.05, 0.25, 0.5, 0.75 and 0.95 that the predictor has."""
    output: OptionalPath = None
    """File to write the forecasts to: .csv or .parquet, one row per bar, asset and horizon."""
    report: OptionalPath = None
    """HTML file to draw the forecasts to, as a fan of their quantiles."""
    json: bool = False
    """Print JSON and nothing else."""


def run(argv: list[str]) -> int:
    """Forecast, print, write."""
    arguments: Forecast = parse(Forecast, "forecast", argv)
    _check(arguments)

    from ml.tradingbots.components import load_predictor
    from ml.tradingbots.components.return_predictor import levels_within
    from ml.tradingbots.data.timestamps import utc_timestamp
    from tradingbots.periods import load_bars

    with at_the_door():
        predictor = load_predictor(_file_of(arguments.predictor))
        bars = load_bars(arguments.prices)
        last = bars.n_bars - 1
        if arguments.at is not None:
            last = int(bars.timestamps.searchsorted(utc_timestamp(arguments.at, "at"), side="right")) - 1
        first = last
        if arguments.start is not None:
            first = int(bars.timestamps.searchsorted(utc_timestamp(arguments.start, "start")))
        if not 0 <= first <= last:
            asked = [f"from --start {arguments.start}"] if arguments.start else []
            asked += [f"up to --at {arguments.at}"] if arguments.at else []
            raise ValueError(
                f"there is no bar {' '.join(asked)}: the prices run from {bars.timestamps[0]} to {bars.timestamps[-1]}"
            )
        # What comes later is not even shown to the predictor.
        seen = bars.slice(0, last + 1)
        levels = levels_within(predictor, USUAL_QUANTILES) if arguments.quantiles is None else arguments.quantiles
        table = forecasts(predictor, seen, np.arange(first, last + 1), levels)
    _note_in_sample(arguments, table["timestamp"].iloc[0])
    if arguments.output is not None:
        _write(Path(arguments.output), table)
    if arguments.report is not None:
        _draw(arguments, predictor, seen)
    if arguments.json:
        print(json.dumps(_as_json(arguments, table), indent=2, allow_nan=False))
        return 0
    latest = table[table["timestamp"] == table["timestamp"].iloc[-1]]
    show(f"Forecasts at the close of {latest['timestamp'].iloc[0].isoformat()}\n")
    show_table(_for_people(latest, levels), first="asset")
    for path in (arguments.output, arguments.report):
        if path is not None:
            print(f"\nWritten to {path}")
    return 0


def forecasts(predictor: Any, bars: Any, origins: npt.NDArray[np.int64], quantiles: tuple[float, ...]) -> pd.DataFrame:
    """Return forecasts as a long table.

    Args:
        predictor: a fitted one.
        bars: prices, none of them later than the last origin.
        origins: positions of the bars to forecast at; those without a full window are left out.
        quantiles: levels.

    Returns:
        Columns timestamp, asset, horizon, close, expected_log_return, expected_price and one `quantile_LEVEL` per level,
        of the log return; one row per origin, asset and horizon.
    """
    mean = predictor.predict(bars, bars=origins)
    bounds = predictor.predict_quantiles(bars, quantiles, bars=origins) if quantiles else None
    close = pd.DataFrame(bars.close, index=bars.timestamps, columns=list(bars.assets)).loc[mean.index]
    parts = []
    for asset, horizon in mean.columns:
        values = {
            "timestamp": mean.index,
            "asset": asset,
            "horizon": horizon,
            "close": close[asset].to_numpy(),
            "expected_log_return": mean[asset, horizon].to_numpy(),
            "expected_price": close[asset].to_numpy() * np.exp(mean[asset, horizon].to_numpy()),
        }
        if bounds is not None:
            values |= {f"quantile_{level:g}": bounds[asset, horizon, level].to_numpy() for level in quantiles}
        parts.append(pd.DataFrame(values))
    return pd.concat(parts).sort_values("timestamp", kind="stable", ignore_index=True)


def _check(arguments: Forecast) -> None:
    if arguments.start is not None and arguments.output is None:
        raise ValueError("--start forecasts at many bars: say where to write them by --output FILE.csv or FILE.parquet")
    if arguments.output is not None and Path(arguments.output).suffix not in FILE_SUFFIXES:
        raise ValueError(f"--output must end in {' or '.join(FILE_SUFFIXES)}, got {arguments.output}")
    if arguments.report is not None and Path(arguments.report).suffix not in (".html", ".htm"):
        raise ValueError(f"--report must end in .html, got {arguments.report}")
    for flag, name in (("--output", arguments.output), ("--report", arguments.report)):
        for what, given in (("prices", arguments.prices), ("predictor", arguments.predictor)):
            if name is not None and Path(name).resolve() == Path(given).resolve():
                raise ValueError(f"{flag} {name} is the file of the {what}, which would be lost: choose another")
    levels = arguments.quantiles or ()
    if list(levels) != sorted(set(levels)):
        raise ValueError(f"--quantiles must increase, got {' '.join(map(str, levels))}")


def _note_in_sample(arguments: Forecast, first: pd.Timestamp) -> None:
    """Say so where forecasts are of bars that the predictor learned from; its run's config.json knows."""
    path = Path(arguments.predictor).parent / "config.json"
    if not path.is_file():
        return
    try:
        seen_until = json.loads(path.read_text()).get("seen_until")
    except (ValueError, AttributeError):
        return
    if isinstance(seen_until, str) and first <= pd.Timestamp(seen_until):
        note(
            f"the predictor learned from bars up to {seen_until}: its forecasts of those say nothing of how good it is"
        )


def _file_of(name: str) -> Path:
    """Return the file of a predictor; a folder is answered with the file that was probably meant."""
    path = Path(name)
    if path.is_dir():
        file = path / "predictor.pt"
        hint = f" Did you mean {file}?" if file.is_file() else ""
        raise FileNotFoundError(f"{name} is a folder, and the file of a predictor is required.{hint}")
    return path


def _write(path: Path, table: pd.DataFrame) -> None:
    from ml.tradingbots.components.serialization import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    content = table.to_csv(index=False).encode() if path.suffix == ".csv" else table.to_parquet(index=False)
    write_atomically(path, content)


def _draw(arguments: Forecast, predictor: Any, bars: Any) -> None:
    from ml.tradingbots.components.return_predictor import levels_within
    from ml.tradingbots.training.forecast_report import write_fan_report

    levels = levels_within(predictor, FAN_LEVELS)
    if len(levels) < 2:
        raise ValueError(f"--report draws quantiles, and this predictor has none of {', '.join(map(str, FAN_LEVELS))}")
    assert arguments.report is not None
    write_fan_report(
        arguments.report,
        bars,
        predictor.predict_quantiles(bars, levels, bars=[bars.n_bars - 1]),
        title=f"{predictor.predictor_type} on {Path(arguments.prices).name}",
        facts={"Prices": arguments.prices, "Predictor": arguments.predictor},
    )


def _as_json(arguments: Forecast, table: pd.DataFrame) -> dict[str, Any]:
    rows = table.assign(timestamp=[stamp.isoformat() for stamp in table["timestamp"]]).to_dict(orient="records")
    return {"predictor": arguments.predictor, "prices": arguments.prices, "forecasts": rows}


def _for_people(table: pd.DataFrame, quantiles: tuple[float, ...]) -> pd.DataFrame:
    shown = pd.DataFrame(
        {
            "bars ahead": table["horizon"].map(str),
            "close": table["close"].map("{:,.6g}".format),
            "expected": table["expected_log_return"].map(_percent),
            "price": table["expected_price"].map("{:,.6g}".format),
            **{f"{level:.4g} quantile": table[f"quantile_{level:g}"].map(_percent) for level in quantiles},
        }
    )
    return shown.set_axis(table["asset"].tolist(), axis=0)


def _percent(value: float) -> str:
    return f"{value:+.2%}".replace("-", "−")
