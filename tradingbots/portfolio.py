"""`tradingbots portfolio`: portfolios managed bar by bar over past prices, beside the ones that anybody can have."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from ml.tradingbots.components import PortfolioConfig, PortfolioManager
from ml.tradingbots.components.allocators import ALLOCATORS
from ml.tradingbots.components.serialization import file_label, write_atomically
from ml.tradingbots.data import Bars
from ml.tradingbots.data.names import did_you_mean
from ml.tradingbots.data.timestamps import utc_timestamp
from ml.tradingbots.training.portfolio_comparison import BASELINES, PortfolioComparison, compare_portfolios
from ml.tradingbots.training.portfolio_limits import binding_limits
from ml.tradingbots.training.portfolio_report import write_portfolio_report
from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, note, parse, show, show_table
from tradingbots.evaluate import load_agent
from tradingbots.fit import new_run_dir, settings_of
from tradingbots.periods import load_bars
from tradingbots.run_folder import claimed, read_seen_until

SHORT_NAMES = {"hrp": "hierarchical_risk_parity", "equal": "equal_weight", "min_variance": "minimum_variance"}
# What people call calendar lengths.
REBALANCE_WORDS = {"daily": "1", "weekly": "1W", "monthly": "MS", "quarterly": "3MS", "yearly": "12MS"}


@dataclass(frozen=True, kw_only=True)
class Portfolio:
    """Manage portfolios over past prices: weights from a source, within limits, after costs, beside simple baselines.

    Decisions are made at a close from the bars up to it, and filled at the next open (the last close where there is none). The
    folder holds config.json, report.html, scores.csv, weights.csv (held at each close), fills.csv and decisions.csv.
    """

    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    source: tuple[str, ...] = ("hierarchical_risk_parity",)
    """Where weights come from, one or several: equal_weight, inverse_volatility, minimum_variance, max_ratio, mean_risk,
    risk_budgeting, hierarchical_risk_parity (hrp), or the file of a fitted predictor or of a trained agent."""
    start: OptionalDate = None
    """First date that decides; the bars before it fill windows. None starts as soon as windows are full and no predictor or
    agent among the sources has seen the prices."""
    end: OptionalDate = None
    """First date not used any more; None is the end of the data."""
    initial_balance: float = 100_000.0
    """Equity at the start, in account currency."""
    confidence: float = 0.95
    """Of the intervals, in (0, 1)."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/portfolio-PRICES-TIME."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    config: Annotated[PortfolioConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: PortfolioConfig(rebalance="MS")
    )
    """Limits, risk, trading and the calendar; --rebalance also takes daily, weekly, monthly, quarterly and yearly."""


@dataclass(frozen=True)
class Source:
    """Something that weights come from, as the command line names it."""

    name: str
    """What tables call it."""
    value: Any
    """What `PortfolioManager` takes."""
    decides_daily: bool = False
    """Whether it was made to decide at every bar."""
    seen_until: pd.Timestamp | None = None
    """Last instant of the prices it learned from; None where it learned from none, or its file does not say."""
    learned: bool = False
    """Whether it learned from prices before."""


def run(argv: list[str]) -> int:
    """Manage, compare, report."""
    arguments: Portfolio = parse(Portfolio, "portfolio", _with_calendar_words(argv))
    with at_the_door():
        bars = load_bars(arguments.prices).between(None, arguments.end)
        sources = _sources(arguments.source)
        managers = {source.name: PortfolioManager(arguments.config, source.value) for source in sources}
        arguments.config.limits(bars.assets)
        start = _first_decision(arguments, bars, sources, managers)
    notes = _notes(arguments, sources, bars.timestamps[start])
    run_dir = Path(arguments.run_dir or new_run_dir("portfolio", arguments.prices))
    with claimed(run_dir, _settings(arguments, notes), resume=False, overwrite=arguments.overwrite) as checkpoints:
        show(f"Prices      {arguments.prices}: {bars.n_assets} {'asset' if bars.n_assets == 1 else 'assets'}")
        show(f"Decisions   from {bars.timestamps[start]:%Y-%m-%d}, {_calendar(arguments.config)}")
        show(f"Sources     {', '.join(arguments.source)}")
        show(f"Folder      {run_dir}\n")
        for text in notes:
            note(text)
        with at_the_door():
            found = compare_portfolios(
                managers,
                bars,
                start=start,
                initial_balance=arguments.initial_balance,
                confidence=arguments.confidence,
                report=lambda name: show(f"walking     {name.replace('_', ' ')}"),
            )
        show()
        _write_tables(run_dir, found)
        report = _report(run_dir, arguments, found, notes)
        with contextlib.suppress(OSError):  # Somebody's files are in it; nothing is resumed here.
            checkpoints.rmdir()
    show_table(found.formatted_table().T.rename(columns=lambda name: name.replace("_", " ")))
    show()
    show(found.verdict())
    print(f"\nReport      {report}")
    return 0


def _with_calendar_words(argv: list[str]) -> list[str]:
    """Return the arguments with calendar lengths in words as the library writes them."""
    words = []
    for place, word in enumerate(argv):
        flag, sign, value = word.partition("=")
        if sign and flag == "--rebalance":
            word = f"{flag}={REBALANCE_WORDS.get(value, value)}"
        elif place and argv[place - 1] == "--rebalance":
            word = REBALANCE_WORDS.get(word, word)
        words.append(word)
    return words


def _sources(given: tuple[str, ...]) -> list[Source]:
    if not given:
        raise ValueError(f"--source needs one source or several: {', '.join(ALLOCATORS)}, or files")
    found = [_source(name) for name in given]
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"--source names {twice.replace('_', ' ')} twice; name each source once, and rename files that are called alike"
        )
    return found


def _source(given: str) -> Source:
    """Read a source: an allocator by name, or a file."""
    name = SHORT_NAMES.get(given, given)
    if name in ALLOCATORS:
        # The baselines have these names already, without limits.
        return Source(f"managed_{name}" if name in BASELINES else name, name)
    path = Path(given)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"--source {given}: there is no such file. Check the path")
        known = (*ALLOCATORS, *SHORT_NAMES)
        raise ValueError(
            f"--source {given!r} is neither an allocator nor a file.{did_you_mean(given, known)} Allocators: "
            f"{', '.join(ALLOCATORS)} (hrp for the last)"
        )
    if path.is_dir():
        inside = [str(path / file) for file in ("agent.pt", "best.pt", "predictor.pt") if (path / file).is_file()]
        hint = f" Did you mean {' or '.join(inside)}?" if inside else ""
        raise FileNotFoundError(
            f"--source {given} is a folder, and the file of an agent or a predictor is required.{hint}"
        )
    if file_label(path)[0] == "predictor":
        from ml.tradingbots.components import load_predictor

        predictor = load_predictor(path)
        return Source(_name_of(path), predictor, seen_until=_seen_by_predictor(path), learned=True)
    agent = load_agent(given)
    seen_until = read_seen_until(agent.environment_spec.get("seen_until"), given)
    return Source(_name_of(path), agent, decides_daily=True, seen_until=seen_until, learned=True)


def _name_of(path: Path) -> str:
    """Name a file as people tell it from others: all agents are called agent.pt, their folders are not."""
    usual = path.stem in ("agent", "predictor", "best", "last") and path.resolve().parent.name
    name = f"{path.resolve().parent.name} {path.stem}" if usual else path.stem
    return f"{name}.pt" if name in BASELINES else name


def _seen_by_predictor(path: Path) -> pd.Timestamp | None:
    """Return until when a predictor has seen prices; the config.json of its run knows."""
    config = path.parent / "config.json"
    try:
        seen = json.loads(config.read_text()).get("seen_until")
    except (OSError, ValueError, AttributeError):
        return None
    return read_seen_until(seen, config)


def _first_decision(
    arguments: Portfolio, bars: Bars, sources: list[Source], managers: Mapping[str, PortfolioManager]
) -> int:
    """Return the bar at which all begin.

    Raises:
        ValueError: windows are not full there, or no bar is left to trade on.
    """
    plain = PortfolioManager(PortfolioConfig(window_size=arguments.config.window_size))
    earliest = max(manager.first_bar(bars) for manager in (plain, *managers.values()))
    last = bars.n_bars - 2
    if earliest > last:
        raise ValueError(
            f"{arguments.prices} has {bars.n_bars} bars, and {earliest} are needed before the first decision to fill windows; "
            "shorten --window-size or bring earlier prices"
        )
    if arguments.start is not None:
        first = int(bars.timestamps.searchsorted(utc_timestamp(arguments.start, "start")))
        if first > last:
            raise ValueError(
                f"--start {arguments.start} leaves no bar to trade on: the prices run from {bars.timestamps[0]:%Y-%m-%d} to "
                f"{bars.timestamps[-1]:%Y-%m-%d}"
            )
        if first < earliest:
            raise ValueError(
                f"{earliest} bars are needed before --start {arguments.start} to fill windows, and {first} are there; start at "
                f"{bars.timestamps[earliest]:%Y-%m-%d} or later, or shorten --window-size"
            )
        return first
    seen = [source.seen_until for source in sources if source.seen_until is not None]
    first = max([earliest, *(int(bars.timestamps.searchsorted(instant, side="right")) for instant in seen)])
    if first > last:
        raise ValueError(
            f"the sources have seen prices until {max(seen):%Y-%m-%d}, and these end on {bars.timestamps[-1]:%Y-%m-%d}: "
            "nothing is left to judge them on. Bring later prices, or give --start to judge them in sample all the same"
        )
    return first


def _notes(arguments: Portfolio, sources: list[Source], first: pd.Timestamp) -> list[str]:
    """Return what has to be known to read the scores: who has seen the prices, who is asked less often than trained."""
    found = []
    for source in sources:
        if source.seen_until is not None and first <= source.seen_until:
            found.append(
                f"in sample: {source.name} has seen prices until {source.seen_until:%Y-%m-%d}: before that, what it earns says "
                "nothing of how good it is (see --start)"
            )
        elif source.learned and source.seen_until is None:
            found.append(f"the file of {source.name} does not say which prices it has seen: these may be among them")
        if source.decides_daily and arguments.config.rebalance != 1:
            found.append(
                f"{source.name} was trained to decide at every bar and is asked {_calendar(arguments.config)}; "
                "--rebalance daily asks it as it was trained"
            )
    return found


def _settings(arguments: Portfolio, notes: list[str]) -> dict[str, Any]:
    return settings_of("portfolio", arguments) | {"notes": notes}


def _calendar(config: PortfolioConfig) -> str:
    words = {value: word for word, value in REBALANCE_WORDS.items()}
    every = str(config.rebalance)
    return words.get(every, f"every {every} bars" if every.isdigit() else f"every {every}")


def _write_tables(run_dir: Path, found: PortfolioComparison) -> None:
    managed = found.managed
    weights = {
        name: pd.DataFrame(
            walk.trajectory.weights, index=walk.trajectory.timestamps, columns=list(walk.trajectory.assets)
        )
        for name, walk in managed.items()
    }
    tables = {
        "weights": weights,
        "fills": {name: walk.fills for name, walk in managed.items()},
        "decisions": {
            name: walk.decided.join(binding_limits(walk.decisions, found.managers[name].config).add_prefix("bound: "))
            for name, walk in managed.items()
        },
    }
    for name, parts in tables.items():
        table = pd.concat(parts, names=["source", "timestamp"])
        write_atomically(run_dir / f"{name}.csv", table.to_csv().encode())
    write_atomically(run_dir / "scores.csv", found.table().to_csv().encode())


def _report(run_dir: Path, arguments: Portfolio, found: PortfolioComparison, notes: list[str]) -> Path:
    config = arguments.config
    defaults = PortfolioConfig()
    changed = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(config)
        if item.name not in ("costs", "rebalance") and getattr(config, item.name) != getattr(defaults, item.name)
    }
    costs = {name: rate for name, rate in dataclasses.asdict(config.costs).items() if rate}
    return write_portfolio_report(
        run_dir / "report.html",
        found,
        title=f"Portfolio of {Path(arguments.prices).name}",
        notes=notes,
        facts={
            "Prices": arguments.prices,
            "Sources": ", ".join(arguments.source),
            "Decisions": _calendar(config),
            "Costs": ", ".join(f"{name.replace('_', ' ')} {rate:g}" for name, rate in costs.items()) or "none",
            "Settings other than the defaults": ", ".join(f"{name} {value}" for name, value in changed.items())
            or "none",
            "Initial equity": f"{arguments.initial_balance:,.2f}",
        },
    )
