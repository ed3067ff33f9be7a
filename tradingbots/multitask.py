"""`tradingbots multitask`: one agent for several assets, or several objectives, beside agents that learned one alone."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from ml.tradingbots.components import MultiTaskConfig, MultiTaskRLAgent, TradingEnvConfig, TradingEnvironment
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.data import Bars
from ml.tradingbots.training import RLTrainingMetrics, train_rl_agent
from ml.tradingbots.training.multitask_evaluation import (
    TaskEvaluation,
    TaskScore,
    evaluate_tasks,
    single_task_agent,
)
from ml.tradingbots.training.multitask_report import as_text, write_multitask_report
from tradingbots.console import OptionalDate, OptionalPath, at_the_door, parse, show, show_table
from tradingbots.fit import new_run_dir, resume_command, settings_of
from tradingbots.periods import load_bars
from tradingbots.run_folder import RecordRun, checkpoint_of, claimed
from tradingbots.train import (
    TEST_SHARE,
    Blocks,
    TrainingFlags,
    agent_config_class,
    check_device,
    costs_in_words,
    cut,
    with_fitting_actions,
)

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What the tasks share and what they do not."""

    trunk_dims: tuple[int, ...] = (64,)
    """Widths of the layers that all tasks share."""
    embedding_dim: int = 8
    """Length of the learned vector that stands for a task."""
    heads: Literal["per_task", "shared"] = "per_task"
    """Whether the first layer above the trunk is one of its own for each task."""
    gradients: Literal["sum", "pcgrad"] = "sum"
    """Whether gradients of tasks that disagree are projected (Yu et al., 2020)."""


@dataclass(frozen=True, kw_only=True)
class MultiTask(Generic[ConfigT]):
    """Train one agent on several assets, or for several rewards, before a date, and judge each task on the bars after it.

    Every asset of --data is a task; with --rewards each reward is one, on all assets of one table. The controls are agents
    of the same kind that learn one task alone, from as many timesteps each. The folder holds config.json, agent.pt,
    matrix.csv, comparison.csv, report.html and checkpoints/, a folder for each training run, from which an interrupted run
    goes on.
    """

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE [SOURCE ...]", aliases=("--prices",))]
    """Sources of `tradingbots data`, .csv, .csv.gz or .parquet files, or yfinance:AAPL,MSFT."""
    rewards: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Rewards as tasks, e.g. log_return,sortino; None makes each asset a task."""
    test_start: OptionalDate = None
    """First date of the test; training sees nothing from it on. None keeps at least the last fifth of every table for it."""
    train_start: OptionalDate = None
    """First date of training; None is the beginning of the data."""
    test_end: OptionalDate = None
    """First date after the test; None is the end of the data."""
    agent: str = "sac"
    """Kind of agent; the flags --config.* are its own."""
    timesteps: int = 200_000
    """Transitions to train for, summed over tasks; each control gets its share of them."""
    controls: bool = True
    """Whether to train an agent of each task alone, for the column that says what learning together gained or cost."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/multitask-AGENT-PRICES-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir; give the same settings."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    seed: int = 0
    """Of first weights, exploration and starts; on a CPU the same seed gives the same run."""
    device: str = "cpu"
    """Where networks and accounts live: cpu, cuda."""
    env: TradingEnvConfig = field(default_factory=TradingEnvConfig)
    config: ConfigT
    sharing: Sharing = field(default_factory=Sharing)
    training: TrainingFlags = field(default_factory=TrainingFlags)

    @property
    def validation_start(self) -> None:
        """None: every bar before the test is learned from."""
        return None


@dataclass(frozen=True)
class _Tasks:
    """Environments of the tasks, before and after the date."""

    train: dict[str, TradingEnvironment]
    test: dict[str, TradingEnvironment]
    seen_until: str


def run(argv: list[str]) -> int:
    """Train, judge, report."""
    arguments: MultiTask[Any] = parse(MultiTask[agent_config_class(argv)], "multitask", argv)  # type: ignore[misc]
    arguments = with_fitting_actions(arguments, argv)
    _check(arguments)
    with at_the_door():
        check_device(arguments.device)
        tasks = _tasks(arguments)
        agent = MultiTaskRLAgent(tasks.train, _config(arguments), seed=arguments.seed, device=arguments.device)
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        made = new_run_dir(f"multitask-{arguments.agent}", arguments.data[0])
        arguments = dataclasses.replace(arguments, run_dir=made)
        argv = [*argv, f"--run-dir={made}"]
    assert arguments.run_dir is not None
    run_dir = Path(arguments.run_dir)
    with claimed(run_dir, _settings(arguments), resume=arguments.resume, overwrite=arguments.overwrite) as runs:
        _announce(arguments, tasks)
        try:
            history = {"several tasks": _trained(arguments, agent, tasks, runs / "several_tasks", arguments.timesteps)}
            agent.save(run_dir / "agent.pt")
            controls = {}
            for number, name in enumerate(agent.names if arguments.controls else ()):
                alone = single_task_agent(agent, name)
                share = max(arguments.timesteps // agent.n_tasks, 1)
                show(f"\nAlone       {name}")
                history[name] = _trained(arguments, alone, tasks, runs / f"alone_{number}_{_plain(name)}", share)
                controls[name] = alone.for_task(name)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; go on with: {resume_command('multitask', argv)}") from stop
        found = evaluate_tasks(agent, tasks.test, single_task=controls, score=_score(arguments))
        write_atomically(run_dir / "matrix.csv", found.matrix.to_csv().encode())
        write_atomically(run_dir / "comparison.csv", found.comparison.to_csv().encode())
        report = write_multitask_report(
            run_dir / "report.html",
            found,
            histories={name: metrics.history for name, metrics in history.items()},
            title=f"{arguments.agent.upper()} on {agent.n_tasks} tasks",
            facts=_facts(arguments, tasks, history["several tasks"]),
        )
    _show(found, tasks)
    print(f"\nReport      {report}")
    print(f"Agent       {run_dir / 'agent.pt'}")
    return 0


def _check(arguments: MultiTask[Any]) -> None:
    if arguments.agent not in AGENTS:
        raise ValueError(f"unknown agent {arguments.agent!r}; known are {', '.join(AGENTS)}")
    if not arguments.data:
        raise ValueError("--data needs at least one source")
    if arguments.timesteps < 1:
        raise ValueError(f"--timesteps must be at least 1, got {arguments.timesteps}")
    if arguments.rewards is not None and len(arguments.data) > 1:
        raise ValueError(
            f"--rewards makes tasks of one table, and --data names {len(arguments.data)}: leave out all but one, or --rewards"
        )


def _config(arguments: MultiTask[Any]) -> MultiTaskConfig:
    sharing = dataclasses.asdict(arguments.sharing)
    return MultiTaskConfig(agent_type=arguments.agent, agent_config=arguments.config, **sharing)  # type: ignore[arg-type]


def _tasks(arguments: MultiTask[Any]) -> _Tasks:
    """Cut the prices of every task at the date."""
    tables = {source: load_bars(source) for source in arguments.data}
    if arguments.test_start is None:
        # The earliest of their dates: whatever order the tables are named in, each keeps at least its last fifth.
        used = [table.between(arguments.train_start, arguments.test_end) for table in tables.values()]
        start = min(table.timestamps[int(table.n_bars * (1.0 - TEST_SHARE))] for table in used)
        arguments = dataclasses.replace(arguments, test_start=start.isoformat())
    if arguments.rewards is not None:
        (bars,) = tables.values()
        names = [name.strip() for name in arguments.rewards.split(",") if name.strip()]
        if len(set(names)) != len(names):
            raise ValueError(f"--rewards names a reward twice: {arguments.rewards}")
        blocks = cut(bars, arguments)  # type: ignore[arg-type]
        configs = {name: dataclasses.replace(arguments.env, reward=name) for name in names}  # type: ignore[arg-type]
        return _environments({name: (blocks, config) for name, config in configs.items()})
    assets: dict[str, tuple[Blocks, TradingEnvConfig]] = {}
    for source, table in tables.items():
        for asset in table.assets:
            # Several tables may call their only asset alike.
            name = asset if asset not in assets and len(tables) == 1 else _task_name(source, asset, table)
            if name in assets:
                raise ValueError(f"two tasks are called {name!r}: --data names {source} twice, or two files alike")
            assets[name] = (cut(table.select((asset,)), arguments), arguments.env)  # type: ignore[arg-type]
    return _environments(assets)


def _task_name(source: str, asset: str, table: Bars) -> str:
    stem = Path(source).name.split(".")[0]
    return stem if table.n_assets == 1 else f"{stem} {asset}"


def _environments(tasks: dict[str, tuple[Blocks, TradingEnvConfig]]) -> _Tasks:
    if len(tasks) < 2:
        raise ValueError(
            f"there is one task only, {', '.join(tasks)}: give several assets in --data, or several --rewards; one is for "
            "`tradingbots train`"
        )
    return _Tasks(
        {name: TradingEnvironment(blocks.train, config) for name, (blocks, config) in tasks.items()},
        {
            name: TradingEnvironment(blocks.test, dataclasses.replace(config, episode_length=None, random_start=False))
            for name, (blocks, config) in tasks.items()
        },
        max(blocks.seen_until for blocks, _ in tasks.values()),
    )


def _trained(
    arguments: MultiTask[Any], agent: MultiTaskRLAgent, tasks: _Tasks, folder: Path, timesteps: int
) -> RLTrainingMetrics:
    """Train an agent of one task or several, or go on with its training."""
    training = dataclasses.replace(
        arguments.training, total_timesteps=timesteps, run_dir=str(folder), seed=arguments.seed
    )
    saved = checkpoint_of(folder)
    return train_rl_agent(
        agent.learner,
        agent.environment(n_envs=training.n_envs, random_start=training.random_start),
        training,
        [RecordRun(folder, {"tasks": list(agent.names)}, tasks.seen_until)],
        resume_from=saved if arguments.resume and saved.is_file() else None,
    )


def _settings(arguments: MultiTask[Any]) -> dict[str, Any]:
    settings = settings_of("multitask", arguments)
    settings["arguments"]["training"].pop("progress")  # How a run is watched may change.
    return settings


def _score(arguments: MultiTask[Any]) -> TaskScore:
    """Assets are compared by what an investor would look at, objectives each by its own."""
    return "sharpe_ratio" if arguments.rewards is None else "reward"


def _plain(name: str) -> str:
    """Return a task's name as a folder may be called."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40]


def _announce(arguments: MultiTask[Any], tasks: _Tasks) -> None:
    show(f"Tasks       {_listed(list(tasks.train))}; costs: {costs_in_words(arguments.env)}")
    show(f"Training    {_period(tasks.train)}")
    show(f"Test        {_period(tasks.test)}")
    show(f"Agent       {arguments.agent}, {arguments.timesteps:,} timesteps, seed {arguments.seed}")
    show(f"Folder      {arguments.run_dir}\n")


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"


def _period(environments: dict[str, TradingEnvironment]) -> str:
    """Say from which decision to which bar the tasks go."""
    markets = [env.market for env in environments.values()]
    first = min(market.bars.timestamps[market.first_bar] for market in markets)
    last = max(market.bars.timestamps[-1] for market in markets)
    counts = sorted({market.n_bars - market.first_bar for market in markets})
    n_bars = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}, {n_bars} decisions a task"


def _show(found: TaskEvaluation, tasks: _Tasks) -> None:
    show(f"\nOut of sample, {_period(tasks.test)}\n")
    matrix, comparison = as_text(found.matrix, found.score), as_text(found.comparison, found.score)
    show(
        "Rows: whose policy acts. Columns: whose prices it acts on."
        if found.score != "reward"
        else "Rows: whose policy acts. Columns: whose reward it is judged by."
    )
    show_table(matrix, first="policy")
    show()
    show_table(comparison.rename(columns=lambda name: name.replace("_", " ")), first="task")
    show()
    show(found.verdict())


def _facts(arguments: MultiTask[Any], tasks: _Tasks, metrics: RLTrainingMetrics) -> dict[str, str]:
    return {
        "Prices": ", ".join(arguments.data),
        "Tasks": ", ".join(tasks.train),
        "Trained on": _period(tasks.train),
        "Tested on": _period(tasks.test),
        "Costs": costs_in_words(arguments.env),
        "Agent": f"{arguments.agent}, seed {arguments.seed}",
        "Training": f"{metrics.num_timesteps:,} timesteps, {metrics.num_updates:,} updates, {metrics.wall_seconds:,.0f} s",
        "Shared": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.sharing).items()),
        "Agent settings": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.config).items()),
        "Features": f"{', '.join(arguments.env.features)}; window {arguments.env.window_size}",
    }
