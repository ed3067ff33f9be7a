"""`tradingbots walk-forward`: predictors or agents that are trained again and again on the past, judged on what follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pandas as pd

from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.data import Bars
from ml.tradingbots.training import ForecastValidation, WalkForwardValidator, validate
from ml.tradingbots.training.forecast_progress import WalkForwardProgress
from ml.tradingbots.training.forecast_report import write_forecast_report
from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, parse, show
from tradingbots.fit import new_run_dir, note_leaks, resume_command, settings_of
from tradingbots.periods import load_bars
from tradingbots.predictor_flags import NETWORKS, check_names, config_class, make_predictor
from tradingbots.run_folder import claimed
from tradingbots.scores import show_scores

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How the bars are cut: n-splits alone cuts them into one block more than that, the first only learned from."""

    n_splits: int | None = None
    """Number of folds; 5 where no sizes are given."""
    train_size: str | None = None
    """Bars, or a calendar length such as 12MS, before the first test block; with mode rolling before every one."""
    test_size: str | None = None
    """Bars, or a calendar length such as 3MS, of a test block."""
    mode: Literal["expanding", "rolling"] = "expanding"
    """expanding learns from all of the past, rolling from as much as before the first test."""
    embargo_size: int = 0
    """Bars left out between training and test beside those whose labels reach into it."""

    def splitter(self, purge_size: int) -> WalkForwardValidator:
        """Return the splitter these settings describe."""
        sizes = (self.train_size, self.test_size)
        n_splits = 5 if self.n_splits is None and None in sizes else self.n_splits
        train_size, test_size = (int(size) if size is not None and size.isdigit() else size for size in sizes)
        return WalkForwardValidator(
            n_splits, train_size, test_size, mode=self.mode, purge_size=purge_size, embargo_size=self.embargo_size
        )


@dataclass(frozen=True, kw_only=True)
class WalkForward(Generic[ConfigT]):
    """Fit predictors on the past of each fold and judge them on the bars that follow, beside naive forecasts.

    The folder holds config.json, scores.csv, per_fold.csv, forecasts.parquet, report.html and checkpoints/, from which an
    interrupted run goes on. For agents give --agent NAME: `tradingbots walk-forward --agent sac --help`.
    """

    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    predictors: tuple[str, ...] = (*NETWORKS, "ensemble")
    """Kinds of predictors; of several, the flags --config.* are those they share."""
    start: OptionalDate = None
    """First date used; None is the beginning of the data."""
    end: OptionalDate = None
    """First date not used any more; None is the end of the data."""
    folds: Folds = field(default_factory=Folds)
    cost_rate: float = 0.0005
    """Cost of trading in the Sharpe ratio, as a fraction of the notional."""
    confidence: float = 0.95
    """Of the intervals, in (0, 1)."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/walk-forward-PRICES-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir; give the same settings."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    config: ConfigT


def run(argv: list[str]) -> int:
    """Fit and judge fold by fold, report."""
    if any(word == "--agent" or word.startswith("--agent=") for word in argv):
        from tradingbots.walk_forward_agents import run as run_agents

        return run_agents(argv)
    arguments: WalkForward[Any] = parse(WalkForward[config_class(_named(argv))], "walk-forward", argv)  # type: ignore[misc]
    with at_the_door():
        check_names(arguments.predictors, arguments.config)
        bars = load_bars(arguments.prices).between(arguments.start, arguments.end)
        predictors = [make_predictor(name, arguments.config) for name in arguments.predictors]
        splitter = arguments.folds.splitter(max(max(predictor.horizons) for predictor in predictors))
        n_folds = splitter.get_n_splits(bars.to_frame())
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        arguments = dataclasses.replace(arguments, run_dir=new_run_dir("walk-forward", arguments.prices))
        argv = [*argv, f"--run-dir={arguments.run_dir}"]
    assert arguments.run_dir is not None
    run_dir, settings = Path(arguments.run_dir), settings_of("walk-forward", arguments)
    with claimed(run_dir, settings, resume=arguments.resume, overwrite=arguments.overwrite) as checkpoints:
        show(f"Prices      {arguments.prices}: {bars.n_assets} {'asset' if bars.n_assets == 1 else 'assets'}")
        show(f"Bars        {bars.timestamps[0]:%Y-%m-%d} to {bars.timestamps[-1]:%Y-%m-%d}, {bars.n_bars:,}")
        show(f"Folds       {n_folds}, {splitter!r}")
        show(f"Predictors  {', '.join(arguments.predictors)}")
        show(f"Folder      {run_dir}\n")
        note_leaks(bars, *predictors)
        try:
            found = _validated(arguments, bars, splitter, n_folds, checkpoints)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; go on with: {resume_command('walk-forward', argv)}") from stop
        _write_tables(run_dir, found)
        report = _report(run_dir, arguments, bars, splitter, found)
    show_scores(found)
    print(f"\nReport      {report}")
    return 0


def _named(argv: list[str]) -> tuple[str, ...]:
    """Return the predictors that the arguments name."""
    for place, word in enumerate(argv):
        if word == "--predictors" or word.startswith("--predictors="):
            first = [word.partition("=")[2]] if "=" in word else []
            rest = argv[place + 1 :]
            stop = next((number for number, other in enumerate(rest) if other.startswith("-")), len(rest))
            return (*first, *rest[:stop])
    return NETWORKS


def _validated(
    arguments: WalkForward[Any], bars: Bars, splitter: WalkForwardValidator, n_folds: int, checkpoints: Path
) -> ForecastValidation:
    def factory(name: str) -> Any:
        return lambda: make_predictor(name, arguments.config)

    with WalkForwardProgress(n_folds * len(arguments.predictors)) as progress:

        def fit_params(name: str, fold: int) -> dict[str, Any]:
            if name not in arguments.predictors:
                return {}
            place = checkpoints / f"{name}-{fold}"
            is_file = not hasattr(make_predictor(name, arguments.config), "members")
            return {"report": progress.on_epoch(fold), "checkpoint": place.with_suffix(".pt") if is_file else place}

        return validate(
            {name: factory(name) for name in arguments.predictors},
            bars,
            splitter,
            cost_rate=arguments.cost_rate,
            confidence=arguments.confidence,
            report=progress.on_fold,
            fit_params=fit_params,
        )


def _write_tables(run_dir: Path, found: ForecastValidation) -> None:
    write_atomically(run_dir / "scores.csv", found.to_frame().to_csv().encode())
    write_atomically(run_dir / "per_fold.csv", found.per_fold.to_csv().encode())
    outcomes = pd.Series(found.outcomes.stack(["asset", "horizon"], future_stack=True), name="outcome").reset_index()
    stacked = found.predictions.stack(["model", "asset", "horizon"], future_stack=True)
    forecasts = pd.Series(stacked, name="expected_log_return").reset_index()
    table = forecasts.merge(outcomes, on=["fold", "timestamp", "asset", "horizon"])
    table = table.dropna(subset=["expected_log_return"])
    write_atomically(run_dir / "forecasts.parquet", table.to_parquet(index=False))


def _report(
    run_dir: Path,
    arguments: WalkForward[Any],
    bars: Bars,
    splitter: WalkForwardValidator,
    found: ForecastValidation,
) -> Path:
    return write_forecast_report(
        run_dir / "report.html",
        found,
        title=f"Walk-forward on {Path(arguments.prices).name}",
        facts={
            "Prices": arguments.prices,
            "Folds": repr(splitter),
            "Cost rate": f"{arguments.cost_rate:g}",
            "Predictors": ", ".join(arguments.predictors),
            "Settings": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.config).items()),
        },
        prices=bars,
    )
