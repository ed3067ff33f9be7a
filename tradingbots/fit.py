"""`tradingbots fit`: a predictor learns from the past, is judged on what came after, and leaves one folder."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd

from ml.tradingbots.components.return_predictor import levels_within
from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.data import Bars
from ml.tradingbots.data.timestamps import utc_timestamp
from ml.tradingbots.training import (
    FitProgress,
    ForecastValidation,
    WalkForwardValidator,
    leaking_features,
    validate,
)
from ml.tradingbots.training.forecast_report import write_forecast_report
from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, note, parse, show
from tradingbots.periods import load_bars
from tradingbots.predictor_flags import check_names, config_class, make_predictor, max_epochs
from tradingbots.run_folder import claimed
from tradingbots.scores import show_scores, show_weights

DEFAULT_PREDICTOR = "lstm"
# What is kept for the test, where `--test-start` does not say.
TEST_SHARE = 0.2

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Fit(Generic[ConfigT]):
    """Fit a predictor on the prices before a date, judge it on those after beside naive forecasts, and leave one folder.

    The folder holds config.json, predictor.pt, history.csv, report.html (where there is a test) and checkpoints/, from which an
    interrupted fit goes on. Forecasts are of log returns; those of the test are made once, and nothing is chosen on them.
    """

    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    predictor: str = DEFAULT_PREDICTOR
    """Kind of predictor: lstm, transformer, cnn, ensemble, lstm_ensemble, ridge, ...; the flags --config.* are its own."""
    train_start: OptionalDate = None
    """First date of training; None is the beginning of the data."""
    test_start: OptionalDate = None
    """First date of the test; no label of training reaches it. None keeps the last fifth of the bars for it."""
    test_end: OptionalDate = None
    """First date after the test; None is the end of the data."""
    test: bool = True
    """Whether to keep bars for a test. --no-test learns from all of them, and nobody can say how good it is."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/PREDICTOR-PRICES-TIME."""
    resume: bool = False
    """Go on with the fit in --run-dir; give the same settings."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    cost_rate: float = 0.0005
    """Cost of trading in the Sharpe ratio of the report, as a fraction of the notional."""
    config: ConfigT


def run(argv: list[str]) -> int:
    """Fit, judge, report."""
    arguments: Fit[Any] = parse(Fit[config_class([_named(argv)])], "fit", argv)  # type: ignore[misc]
    with at_the_door():
        check_names([arguments.predictor], arguments.config)
        bars = load_bars(arguments.prices).between(arguments.train_start, arguments.test_end)
        predictor = make_predictor(arguments.predictor, arguments.config)
        first_test = _first_test(bars, arguments)
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        arguments = dataclasses.replace(arguments, run_dir=new_run_dir(arguments.predictor, arguments.prices))
        argv = [*argv, f"--run-dir={arguments.run_dir}"]
    assert arguments.run_dir is not None
    run_dir = Path(arguments.run_dir)
    settings = settings_of("fit", arguments) | {"seen_until": bars.timestamps[first_test - 1].isoformat()}
    with claimed(run_dir, settings, resume=arguments.resume, overwrite=arguments.overwrite) as checkpoints:
        _announce(arguments, bars, first_test, predictor)
        note_leaks(bars, predictor)
        checkpoint = checkpoints / ("members" if hasattr(predictor, "members") else "last.pt")
        try:
            found = _fitted(arguments, bars, first_test, predictor, checkpoint)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; go on with: {resume_command('fit', argv)}") from stop
        saved = predictor.save(run_dir / "predictor.pt")
        histories = histories_of(predictor, arguments.predictor)
        together = pd.concat(histories, names=["predictor"]).reset_index("predictor") if histories else pd.DataFrame()
        write_atomically(run_dir / "history.csv", together.to_csv(index=False).encode())
        report = None if found is None else _report(run_dir, arguments, bars, first_test, predictor, found, histories)
    if found is not None:
        show_scores(found)
    show_weights(predictor)
    print(f"\nReport      {report}" if report is not None else "")
    print(f"Predictor   {saved}")
    print(f"Next        {shlex.join(['tradingbots', 'forecast', str(saved), '--prices', arguments.prices])}")
    return 0


def settings_of(verb: str, arguments: Any) -> dict[str, Any]:
    """Return what a run is made by, for its config.json."""
    free = ("run_dir", "resume", "overwrite")
    return {
        "verb": verb,
        "arguments": {name: value for name, value in dataclasses.asdict(arguments).items() if name not in free},
    }


def note_leaks(bars: Bars, *predictors: Any) -> None:
    """Say on stderr which features are what is to be forecast."""
    said = dict.fromkeys(sentence for predictor in predictors for sentence in _leaks(bars, predictor))
    for sentence in said:
        note(sentence)


def _leaks(bars: Bars, predictor: Any) -> list[str]:
    members = getattr(predictor, "members", None)
    if members is not None:
        inner = members.values() if isinstance(members, Mapping) else members
        return [sentence for member in inner for sentence in _leaks(bars, member)]
    params = predictor.get_params()
    features = [name for name in params.get("features", ()) if name in bars.extra]
    if not features:
        return []
    volatility_bars = params.get("volatility_bars", 0)
    found: list[str] = leaking_features(bars, features, predictor.horizons, volatility_bars=volatility_bars)
    return found


def histories_of(predictor: Any, name: str) -> dict[str, pd.DataFrame]:
    """Return `history_` of a fitted predictor by name; of an ensemble, that of each member's fit on all bars."""
    if hasattr(predictor, "members_"):
        return {
            full: history
            for member, fitted in predictor.members_.items()
            for full, history in histories_of(fitted, f"{name}: {member}").items()
        }
    return {name: predictor.history_} if hasattr(predictor, "history_") else {}


def new_run_dir(name: str, prices: str) -> str:
    """Return a folder that is named after what is run, on what and when."""
    source = Path(prices).name.split(".")[0].replace(":", "-").replace(",", "-")
    return str(Path("runs") / f"{name}-{source}-{datetime.now():%Y%m%d-%H%M%S}")


def resume_command(verb: str, argv: list[str]) -> str:
    """Return the command that goes on with the run that these arguments began."""
    kept = [word for word in argv if word not in ("--overwrite", "--resume")]
    return shlex.join(["tradingbots", verb, *kept, "--resume"])


def _named(argv: list[str]) -> str:
    """Return the predictor that the arguments name."""
    name = DEFAULT_PREDICTOR
    for word, following in pairwise([*argv, ""]):
        if word == "--predictor":
            name = following
        elif word.startswith("--predictor="):
            name = word.removeprefix("--predictor=")
    return name


def _first_test(bars: Bars, arguments: Fit[Any]) -> int:
    """Return the first bar of the test; the number of bars where there is none.

    Raises:
        ValueError: no bar lies on one of its sides.
    """
    if not arguments.test:
        if arguments.test_start is not None:
            raise ValueError("--no-test keeps no bars for a test: leave out --test-start, or --no-test")
        return bars.n_bars
    if arguments.test_start is None:
        return int(bars.n_bars * (1.0 - TEST_SHARE))
    first = int(bars.timestamps.searchsorted(utc_timestamp(arguments.test_start, "test_start")))
    if not 0 < first < bars.n_bars:
        raise ValueError(
            f"--test-start {arguments.test_start} must lie within the prices, {bars.timestamps[0]} to {bars.timestamps[-1]}"
        )
    return first


def _fitted(
    arguments: Fit[Any], bars: Bars, first_test: int, predictor: Any, checkpoint: Path
) -> ForecastValidation | None:
    with FitProgress(max_epochs(arguments.config)) as progress:
        learning = {"report": progress, "checkpoint": checkpoint}
        if not arguments.test:
            predictor.fit(bars, **learning)
            return None
        return validate(
            {arguments.predictor: lambda: predictor},
            bars,
            WalkForwardValidator(
                train_size=first_test, test_size=bars.n_bars - first_test, purge_size=max(predictor.horizons)
            ),
            cost_rate=arguments.cost_rate,
            fit_params=lambda name, _: learning if name == arguments.predictor else {},
        )


def _announce(arguments: Fit[Any], bars: Bars, first_test: int, predictor: Any) -> None:
    names = ", ".join(bars.assets) if bars.n_assets <= 5 else f"{bars.n_assets} assets"
    show(f"Prices      {arguments.prices}: {names}")
    show(f"Training    {_period(bars, 0, first_test)}")
    if first_test < bars.n_bars:
        show(f"Test        {_period(bars, first_test, bars.n_bars)}")
    ahead = ", ".join(str(horizon) for horizon in predictor.horizons)
    show(f"Predictor   {arguments.predictor}, {ahead} {'bar' if predictor.horizons == (1,) else 'bars'} ahead")
    show(f"Folder      {arguments.run_dir}\n")


def _period(bars: Bars, start: int, stop: int) -> str:
    return f"{bars.timestamps[start]:%Y-%m-%d} to {bars.timestamps[stop - 1]:%Y-%m-%d}, {stop - start:,} bars"


def _report(
    run_dir: Path,
    arguments: Fit[Any],
    bars: Bars,
    first_test: int,
    predictor: Any,
    found: ForecastValidation,
    histories: Mapping[str, pd.DataFrame],
) -> Path:
    facts = {
        "Prices": arguments.prices,
        "Trained on": _period(bars, 0, first_test),
        "Predictor": arguments.predictor,
        "Settings": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.config).items()),
    }
    levels = levels_within(predictor, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95))
    latest = predictor.predict_quantiles(bars, levels, bars=[bars.n_bars - 1]) if len(levels) > 1 else None
    weights = getattr(predictor, "weights_", None)
    return write_forecast_report(
        run_dir / "report.html",
        found,
        title=f"{arguments.predictor} on {Path(arguments.prices).name}",
        facts=facts,
        prices=bars,
        latest_quantiles=latest,
        histories=histories,
        weights=None if weights is None else {arguments.predictor: weights},
    )
