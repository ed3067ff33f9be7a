"""`tradingbots walk-forward --agent`: agents trained on the past of each fold, over several seeds, living what follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, create_rl_agent
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.data import Bars
from ml.tradingbots.training import AgentValidation, walk_forward_agents
from ml.tradingbots.training.agent_validation import AgentFoldReport
from ml.tradingbots.training.formatting import format_change, format_number
from ml.tradingbots.training.walk_forward_report import write_walk_forward_report
from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, parse, show, show_table
from tradingbots.fit import new_run_dir, resume_command, settings_of
from tradingbots.periods import load_bars
from tradingbots.run_folder import claimed
from tradingbots.train import TrainingFlags, agent_config_class, check_device, costs_in_words, with_fitting_actions
from tradingbots.walk_forward import Folds

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class WalkForwardAgents(Generic[ConfigT]):
    """Train agents on the past of each fold, over several seeds, and let them live the bars that follow, costs included.

    The folder holds config.json, runs.csv, per_fold.csv, equity.csv, report.html and checkpoints/, a folder for each training
    run, from which an interrupted walk-forward goes on.
    """

    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    agent: str
    """Kind of agent; the flags --config.* are its own."""
    start: OptionalDate = None
    """First date used; None is the beginning of the data."""
    end: OptionalDate = None
    """First date not used any more; None is the end of the data."""
    folds: Folds = field(default_factory=Folds)
    n_seeds: int = 3
    """Agents trained per fold."""
    seed: int = 0
    """Of the first of them."""
    device: str = "cpu"
    """Where networks and accounts live: cpu, cuda."""
    confidence: float = 0.95
    """Of the intervals, in (0, 1)."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/walk-forward-AGENT-PRICES-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir; give the same settings."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    env: TradingEnvConfig = field(default_factory=TradingEnvConfig)
    config: ConfigT
    training: TrainingFlags = field(default_factory=TrainingFlags)


def run(argv: list[str]) -> int:
    """Train, judge, report."""
    arguments: WalkForwardAgents[Any] = parse(WalkForwardAgents[agent_config_class(argv)], "walk-forward", argv)  # type: ignore[misc]
    arguments = with_fitting_actions(arguments, argv)
    with at_the_door():
        check_device(arguments.device)
        if arguments.agent not in AGENTS:
            raise ValueError(f"unknown agent {arguments.agent!r}; known are {', '.join(AGENTS)}")
        bars = load_bars(arguments.prices).between(arguments.start, arguments.end)
        splitter = arguments.folds.splitter(0)
        n_folds = splitter.get_n_splits(bars.to_frame())
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        made = new_run_dir(f"walk-forward-{arguments.agent}", arguments.prices)
        arguments = dataclasses.replace(arguments, run_dir=made)
        argv = [*argv, f"--run-dir={made}"]
    assert arguments.run_dir is not None
    run_dir = Path(arguments.run_dir)
    with claimed(run_dir, _settings(arguments, bars), resume=arguments.resume, overwrite=arguments.overwrite) as runs:
        show(f"Prices      {arguments.prices}: {bars.n_assets} {'asset' if bars.n_assets == 1 else 'assets'}")
        show(f"Bars        {bars.timestamps[0]:%Y-%m-%d} to {bars.timestamps[-1]:%Y-%m-%d}, {bars.n_bars:,}")
        show(f"Folds       {n_folds}, {splitter!r}")
        show(f"Agents      {arguments.agent}, {arguments.n_seeds} per fold; costs: {costs_in_words(arguments.env)}")
        show(f"Folder      {run_dir}\n")
        try:
            found = walk_forward_agents(
                lambda env, seed: _agent(arguments, env, seed),
                bars,
                arguments.env,
                dataclasses.replace(arguments.training, seed=arguments.seed, run_dir=str(runs)),
                splitter,
                n_seeds=arguments.n_seeds,
                confidence=arguments.confidence,
                seed=arguments.seed,
                report=_say,
                resume=arguments.resume,
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; go on with: {resume_command('walk-forward', argv)}") from stop
        for name in ("runs", "per_fold", "equity"):
            write_atomically(run_dir / f"{name}.csv", getattr(found, name).to_csv().encode())
        report = write_walk_forward_report(
            run_dir / "report.html",
            found,
            title=f"Walk-forward of {arguments.agent.upper()} on {Path(arguments.prices).name}",
            facts=_facts(arguments, splitter),
        )
    _show(found)
    print(f"\nReport      {report}")
    return 0


def _settings(arguments: WalkForwardAgents[Any], bars: Bars) -> dict[str, Any]:
    settings = settings_of("walk-forward", arguments)
    settings["arguments"]["training"].pop("progress")  # How a run is watched may change.
    settings["arguments"]["bars"] = _period(bars)
    return settings


def _period(bars: Bars) -> dict[str, Any]:
    first, last = (bars.timestamps[place].isoformat() for place in (0, -1))
    return {"number": bars.n_bars, "first": first, "last": last, "assets": list(bars.assets)}


def _agent(arguments: WalkForwardAgents[Any], env: TradingEnvironment, seed: int) -> Any:
    return create_rl_agent(
        arguments.agent,
        state_dim=env.observation_space_dim,
        action_dim=env.action_space_dim,
        config=arguments.config,
        device=arguments.device,
        seed=seed,
    )


def _say(report: AgentFoldReport) -> None:
    show(
        f"fold {report.fold + 1}/{report.n_folds}, seed {report.seed}: Sharpe {format_number(report.sharpe_ratio)}, "
        f"{format_change(report.total_return)}"
    )


def _show(found: AgentValidation) -> None:
    show()
    show_table(found.formatted_table(), first="fold")
    show()
    show(found.verdict())


def _facts(arguments: WalkForwardAgents[Any], splitter: Any) -> dict[str, str]:
    return {
        "Prices": arguments.prices,
        "Folds": repr(splitter),
        "Agents": f"{arguments.agent}, seeds {arguments.seed} to {arguments.seed + arguments.n_seeds - 1}",
        "Costs": costs_in_words(arguments.env),
        "Agent settings": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.config).items()),
        "Features": f"{', '.join(arguments.env.features)}; window {arguments.env.window_size}",
        "Timesteps per run": f"{arguments.training.total_timesteps or 0:,}",
    }
