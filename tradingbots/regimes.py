"""`tradingbots regimes`: which kind of market it was and is, learned from the past and filtered bar by bar."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tradingbots.console import OptionalDate, OptionalPath, UsageError, at_the_door, note, parse, show, show_table

if TYPE_CHECKING:
    import pandas as pd

    from ml.tradingbots.components.hmm_selection import RegimeSelection
    from ml.tradingbots.data import Bars
    from ml.tradingbots.training.regime_analysis import RegimeAnalysis

Detector = Literal["gaussian-hmm", "online-hmm", "jump-model", "volatility-threshold"]
AUTO = "auto"
CANDIDATES = (1, 2, 3, 4)
# What a jump model is shown beside returns, where nothing else is said: it tells regimes apart by means alone.
JUMP_VOLATILITY_BARS = 10


@dataclass(frozen=True, kw_only=True)
class Regimes:
    """Learn regimes from the first bars, filter the rest without looking ahead, and leave one folder.

    The folder holds config.json, detector.pt, probabilities.csv (what was said of each bar at its close) and report.html.
    """

    prices: Annotated[str, tyro.conf.arg(metavar="SOURCE", aliases=("--data",))]
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    detector: Detector = "gaussian-hmm"
    """How regimes are told apart."""
    n_regimes: Annotated[str, tyro.conf.arg(metavar="K|auto")] = "2"
    """Number of regimes; auto takes the one of 1 to 4 that foretells held-back training bars best (hidden Markov models)."""
    asset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which one, where the prices are of several."""
    start: OptionalDate = None
    """First date used; None is the beginning of the data."""
    end: OptionalDate = None
    """First date not used any more; None is the end of the data."""
    train_end: Annotated[str, tyro.conf.arg(metavar="DATE|SHARE")] = "0.8"
    """First date that is not learned from, or the share of the bars that is, such as 0.8; 1 learns from all."""
    student_t: bool = False
    """Student-t distributions, where single bars far out should not make a regime (gaussian-hmm)."""
    volatility_bars: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Show the detector the volatility of the last N returns too; 0 shows returns alone. None: 10 for jump-model, else 0."""
    seed: int = 0
    """Of the starts of the fit."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/DETECTOR-PRICES-TIME."""
    overwrite: bool = False
    """Replace the run in --run-dir."""


def run(argv: list[str]) -> int:
    """Fit, filter, report."""
    arguments: Regimes = parse(Regimes, "regimes", argv)
    n_regimes = _number(arguments)

    from ml.tradingbots.training.regime_analysis import analyse_regimes
    from tradingbots.fit import new_run_dir
    from tradingbots.periods import load_bars
    from tradingbots.run_folder import check_new

    run_dir = Path(arguments.run_dir or new_run_dir(arguments.detector, arguments.prices))
    if not arguments.overwrite:
        check_new(run_dir)
    with at_the_door():
        bars = load_bars(arguments.prices).between(arguments.start, arguments.end)
        features, n_train = _features(arguments, bars)
        _announce(arguments, bars, features, n_train, run_dir)
        selection = _selected(arguments, features.iloc[:n_train]) if n_regimes is None else None
        detector = _detector(arguments, selection.n_regimes if n_regimes is None and selection else n_regimes or 1)
        detector.fit(features.iloc[:n_train])
        if not getattr(detector, "converged_", True):
            note("the fit did not converge: what it found may change with --seed, and fewer regimes may do")
        found = analyse_regimes(
            detector,
            bars,
            n_train,
            asset=arguments.asset,
            volatility_bars=_volatility_bars(arguments),
            selection=selection,
        )
    _write(run_dir, arguments, found)
    _show(found)
    print(f"\nReport      {run_dir / 'report.html'}")
    print(f"Detector    {run_dir / 'detector.pt'}")
    print(f"Bar by bar  {run_dir / 'probabilities.csv'}")
    return 0


def _number(arguments: Regimes) -> int | None:
    """Return the number of regimes, None for auto; refuse flags that do not go with the detector.

    Raises:
        UsageError: they do not, or it is none.
    """
    is_markov = arguments.detector in ("gaussian-hmm", "online-hmm")
    if arguments.student_t and arguments.detector != "gaussian-hmm":
        raise UsageError(
            f"--student-t is for --detector gaussian-hmm, and it is {arguments.detector}: leave one of them out"
        )
    if arguments.n_regimes == AUTO:
        if not is_markov:
            raise UsageError(
                f"--n-regimes auto compares densities of bars, which {arguments.detector} has none of: give a number, or "
                "--detector gaussian-hmm"
            )
        return None
    if not arguments.n_regimes.isdecimal() or not 1 <= int(arguments.n_regimes) <= 50:
        raise UsageError(f"--n-regimes must be a number from 1 to 50, or auto, got {arguments.n_regimes!r}")
    return int(arguments.n_regimes)


def _volatility_bars(arguments: Regimes) -> int:
    if arguments.volatility_bars is not None:
        return arguments.volatility_bars
    return JUMP_VOLATILITY_BARS if arguments.detector == "jump-model" else 0


def _features(arguments: Regimes, bars: Bars) -> tuple[pd.DataFrame, int]:
    """Return what the detector sees, and how many rows of it it learns from.

    Raises:
        ValueError: no bar lies in training.
    """
    from ml.tradingbots.components.hiddenmarkov import regime_features
    from ml.tradingbots.data.timestamps import utc_timestamp

    if arguments.asset is None and bars.n_assets > 1:
        raise UsageError(
            f"the prices are of {bars.n_assets} assets, and regimes are of one: give --asset {bars.assets[0]}, …"
        )
    features = regime_features(bars, volatility_bars=_volatility_bars(arguments), asset=arguments.asset)
    share = _share(arguments.train_end)
    if share is not None:
        n_train = int(len(features) * share)
    else:
        n_train = int(features.index.searchsorted(utc_timestamp(arguments.train_end, "--train-end")))
        if not 0 < n_train < len(features):
            raise ValueError(
                f"--train-end {arguments.train_end} must lie within the bars, {features.index[0]} to {features.index[-1]}; "
                "--train-end 1 learns from all of them"
            )
    if n_train < 2:
        raise ValueError(
            f"--train-end {arguments.train_end} leaves {n_train} of {len(features)} bars to learn from: raise it"
        )
    return features, n_train


def _share(text: str) -> float | None:
    """Return the share that a text means; None for what may be a date.

    Raises:
        UsageError: it is a number that is no share.
    """
    try:
        share = float(text)
    except ValueError:
        return None
    if 0.0 < share <= 1.0:
        return share
    if 1000.0 <= share <= 9999.0 and text.isdecimal():
        return None  # A year.
    raise UsageError(f"--train-end must be a date, or a share of the bars in (0, 1], got {text}")


def _selected(arguments: Regimes, train: pd.DataFrame) -> RegimeSelection:
    from ml.tradingbots.components.hiddenmarkov import GaussianHMMConfig, select_n_regimes

    config = GaussianHMMConfig(emission="student_t" if arguments.student_t else "gaussian", seed=arguments.seed)
    return select_n_regimes(train, CANDIDATES, config=config)


def _detector(arguments: Regimes, n_regimes: int) -> Any:
    from ml.tradingbots.components.hiddenmarkov import DETECTORS

    changes: dict[str, Any] = {"n_regimes": n_regimes}
    if arguments.detector != "volatility-threshold":
        changes["seed"] = arguments.seed
    if arguments.student_t:
        changes["emission"] = "student_t"
    return DETECTORS[arguments.detector.replace("-", "_")](**changes)


def _announce(arguments: Regimes, bars: Bars, features: pd.DataFrame, n_train: int, run_dir: Path) -> None:
    show(f"Prices      {arguments.prices}: {arguments.asset or bars.assets[0]}")
    show(f"Training    {_period(features.iloc[:n_train])}")
    if n_train < len(features):
        how = "filtered, and learned from bar by bar" if arguments.detector == "online-hmm" else "filtered only"
        show(f"After       {_period(features.iloc[n_train:])}, {how}")
    show(f"Detector    {arguments.detector} on {' and '.join(features.columns).replace('_', ' ')}")
    show(f"Folder      {run_dir}\n")


def _period(features: pd.DataFrame) -> str:
    bars = "bar" if len(features) == 1 else "bars"
    return f"{features.index[0]:%Y-%m-%d} to {features.index[-1]:%Y-%m-%d}, {len(features):,} {bars}"


def _write(run_dir: Path, arguments: Regimes, found: RegimeAnalysis) -> None:
    from ml.tradingbots.components.serialization import write_atomically
    from ml.tradingbots.training.regime_report import write_regime_report

    found.detector.save(run_dir / "detector.pt")
    write_atomically(run_dir / "probabilities.csv", found.probabilities().to_csv().encode())
    given = dataclasses.asdict(arguments)
    settings = {name: value for name, value in given.items() if name not in ("run_dir", "overwrite")}
    seen = found.timestamps[found.n_train_bars - 1].isoformat()
    facts = {
        "Prices": arguments.prices,
        "Detector": arguments.detector,
        "Settings": ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(found.detector.config).items()),
        "Command": shlex.join(["tradingbots", "regimes", *_flags(settings)]),
    }
    write_regime_report(run_dir / "report.html", found, title=f"Regimes of {Path(arguments.prices).name}", facts=facts)
    content = {"verb": "regimes", "arguments": settings, "seen_until": seen}
    write_atomically(run_dir / "config.json", (json.dumps(content, indent=2) + "\n").encode())


def _flags(settings: dict[str, Any]) -> list[str]:
    """Return the settings as flags, less those that say nothing."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [flag, str(value)]
    return flags


def _show(found: RegimeAnalysis) -> None:
    import pandas as pd

    from ml.tradingbots.training.formatting import format_number, format_percent, spaced
    from ml.tradingbots.training.regime_figures import duration_text
    from ml.tradingbots.training.regime_report import PART_NAMES, naming_sentence

    table: dict[str, list[str]] = {}
    for part in found.parts():
        short = "train" if part == "training" else "after"
        worth = found.performance(part).iloc[: found.n_regimes]
        table[f"return a year, {short}"] = [format_percent(value) for value in worth["mean_return"]]
        table[f"volatility, {short}"] = [format_percent(value) for value in worth["volatility"]]
        table[f"share of bars, {short}"] = [format_percent(value) for value in found.shares(part)]
    table["lasts"] = [duration_text(value) for value in found.expected_durations]
    table["P(now)"] = [format_percent(float(value)) for value in found.filtered[-1]]
    table["P(next bar)"] = [format_percent(float(value)) for value in found.following[-1]]
    if found.selection is not None:
        scores = found.selection.table["log_score"]
        said = ", ".join(f"{number}: {value:.4f}" for number, value in scores.items()).replace("-", "−")
        show(f"Log scores by number of regimes, on held-back training bars: {said}; taken {found.n_regimes}\n")
    # Regimes side by side: few columns fit a narrow terminal.
    show_table(pd.DataFrame(table, index=[spaced(name) for name in found.state_names]).T)
    flips = ", ".join(
        f"{PART_NAMES[part].lower()} {format_number(found.flips_per_year(part))}" for part in found.parts()
    )
    show(
        "\nReturns and volatility are of the bars for which a regime was expected at the close before. "
        f"Changes a year: {flips}."
    )
    show(naming_sentence(found))
    show()
    show(found.verdict())
