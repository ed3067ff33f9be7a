"""`tradingbots train`: learn from the past, be judged on what came after, leave one folder."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import tyro

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, create_rl_agent, load_rl_agent
from ml.tradingbots.components.agent_config import ActionType
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.data import Bars, train_test_split
from ml.tradingbots.training import (
    EvaluationResult,
    RLTrainingConfig,
    RLTrainingMetrics,
    evaluate_agent,
    train_rl_agent,
    write_report,
)
from tradingbots.console import OptionalDate, OptionalPath, Prices, at_the_door, note, parse, show, show_result
from tradingbots.periods import context_bars, load_bars
from tradingbots.run_folder import RecordRun, check_new, check_resumable, checkpoint_of

DEFAULT_AGENT = "sac"
DEFAULT_TIMESTEPS = 200_000
# What is kept for the test, where `--test-start` does not say.
TEST_SHARE = 0.2
# How often a validation block is looked at, where `--training.eval-frequency` does not say.
N_EVALUATIONS = 10

ConfigT = TypeVar("ConfigT")
RunT = TypeVar("RunT", bound=Any)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(RLTrainingConfig):
    """Settings of the training loop."""

    total_timesteps: int | None = None
    """Transitions to train for, summed over accounts; 200,000 where no budget is given."""
    run_dir: tyro.conf.Suppress[str | None] = None
    """Told by `--run-dir`."""
    seed: tyro.conf.Suppress[int] = 0
    """Told by `--seed`."""

    def __post_init__(self) -> None:
        if self.total_timesteps is None and self.total_episodes is None:
            object.__setattr__(self, "total_timesteps", DEFAULT_TIMESTEPS)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Train(Generic[ConfigT]):
    """Train an agent on the prices before a date, judge it on those after, and leave one folder.

    The folder holds config.json, metrics.csv, checkpoints/last.pt (resumable), best.pt, agent.pt and report.html. The prices
    of the test are looked at once, after training; nothing is chosen on them.
    """

    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    test_start: OptionalDate = None
    """First date of the test; training sees nothing from it on. None keeps the last fifth of the bars for it."""
    train_start: OptionalDate = None
    """First date of training; None is the beginning of the data."""
    validation_start: OptionalDate = None
    """First date of a block at the end of training that the agent does not learn from: best.pt is chosen on it, and is
    what the test judges. None uses every bar to learn from, and judges the last agent (agent.pt)."""
    test_end: OptionalDate = None
    """First date after the test; None is the end of the data."""
    agent: str = DEFAULT_AGENT
    """Kind of agent; the flags --config.* are its own."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/AGENT-PRICES-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir; give the same settings, or a larger budget."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    seed: int = 0
    """Of first weights, exploration and starts; on a CPU the same seed gives the same run."""
    device: str = "cpu"
    """Where networks and accounts live: cpu, cuda."""
    env: TradingEnvConfig = field(default_factory=TradingEnvConfig)
    config: ConfigT
    training: TrainingFlags = field(default_factory=TrainingFlags)


@dataclass(frozen=True)
class Blocks:
    """The prices of a run, cut in time; validation and test begin with the context that fills their windows."""

    train: Bars
    validation: Bars | None
    test: Bars
    seen_until: str
    """Timestamp of the last bar before the test."""


def run(argv: list[str]) -> int:
    """Train, judge, report."""
    arguments: Train[Any] = parse(Train[agent_config_class(argv)], "train", argv)  # type: ignore[misc]
    arguments = with_fitting_actions(arguments, argv)
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        arguments = dataclasses.replace(arguments, run_dir=_new_run_dir(arguments))
        argv = [*argv, f"--run-dir={arguments.run_dir}"]
    train_and_judge(arguments, how_to_resume=resume_command("train", argv))
    return 0


def with_fitting_actions(arguments: RunT, argv: list[str]) -> RunT:
    """Let the environment take the kind of actions that the agent gives, unless the user asked for another."""
    if any(word.replace("_", "-").startswith("--env.action-type") for word in argv):
        return arguments
    is_discrete = arguments.agent == "dqn" or getattr(arguments.config, "action_type", "continuous") == "discrete"
    wanted: ActionType = "discrete" if is_discrete else "continuous"
    fitting: RunT = dataclasses.replace(arguments, env=dataclasses.replace(arguments.env, action_type=wanted))
    return fitting


def resume_command(verb: str, argv: list[str]) -> str:
    """Return the command that goes on with the run that these arguments began."""
    kept = [word for word in argv if word not in ("--overwrite", "--resume")]
    return shlex.join(["tradingbots", verb, *kept, "--resume"])


def train_and_judge(arguments: Train[Any], *, how_to_resume: str) -> EvaluationResult:
    """Do what `tradingbots train` does with arguments that are already read.

    Args:
        arguments: what to do; `run_dir` is given.
        how_to_resume: the command to go on with after an interruption.

    Raises:
        KeyboardInterrupt: training was interrupted; its message says how to go on.
    """
    assert arguments.run_dir is not None
    run_dir, budget = Path(arguments.run_dir), arguments.training
    with at_the_door():
        bars = load_bars(arguments.prices)
    if arguments.test_start is None:
        arguments = dataclasses.replace(arguments, test_start=_default_test_start(bars, arguments))
    if arguments.validation_start is not None and budget.eval_frequency == 0:
        budget = dataclasses.replace(budget, eval_frequency=max(budget.budget // N_EVALUATIONS, 1))
    training = dataclasses.replace(budget, run_dir=str(run_dir), seed=arguments.seed)
    data = {
        name: getattr(arguments, name)
        for name in ("prices", "train_start", "validation_start", "test_start", "test_end", "agent", "seed", "device")
    }
    if arguments.resume and (run_dir / "config.json").is_file() and not checkpoint_of(run_dir).is_file():
        note("the run was killed before its first checkpoint: it starts over")
        arguments = dataclasses.replace(arguments, resume=False, overwrite=True)
    if arguments.resume:
        settings = {
            "data": data,
            "agent": dataclasses.asdict(arguments.config),
            "environment": dataclasses.asdict(arguments.env),
            "training": dataclasses.asdict(training),
        }
        check_resumable(run_dir, settings)
    elif not arguments.overwrite:
        check_new(run_dir)

    with at_the_door():
        check_device(arguments.device)
        blocks = cut(bars, arguments)
        env = TradingEnvironment(blocks.train, arguments.env)
        test_env = _whole(blocks.test, arguments.env)
        validation_env = None if blocks.validation is None else _whole(blocks.validation, arguments.env)
        agent = create_rl_agent(
            arguments.agent,
            state_dim=env.observation_space_dim,
            action_dim=env.action_space_dim,
            config=arguments.config,
            device=arguments.device,
            seed=arguments.seed,
        )
        agent.bind(env.vectorize(1))
    run_dir.mkdir(parents=True, exist_ok=True)
    _announce(arguments, blocks, agent)
    if arguments.overwrite and not arguments.resume:
        checkpoint_of(run_dir).unlink(missing_ok=True)  # An interruption must not offer to resume the run it replaced.
    try:
        metrics = train_rl_agent(
            agent,
            env,
            training,
            [RecordRun(run_dir, data, blocks.seen_until)],
            eval_env=validation_env,
            resume_from=checkpoint_of(run_dir) if arguments.resume else None,
        )
        agent.save(run_dir / "agent.pt")
        if metrics.num_updates == 0:
            note(f"{metrics.stop_reason}; what follows judges first weights")
        chosen = run_dir / ("agent.pt" if validation_env is None else "best.pt")
        result = evaluate_agent(load_rl_agent(chosen), test_env, name=arguments.agent, sample="out of sample")
        report = write_report(
            run_dir / "report.html",
            result,
            history=metrics.history,
            title=f"{arguments.agent.upper()} on {Path(arguments.prices).name}",
            facts=_facts(arguments, blocks, metrics, chosen),
        )
    except KeyboardInterrupt as stop:
        if not checkpoint_of(run_dir).is_file():
            raise KeyboardInterrupt("interrupted before anything was saved") from stop
        raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {how_to_resume}") from stop
    show_result(result)
    show_next(report, chosen, arguments.prices, start=arguments.test_start)
    return result


def cut(bars: Bars, arguments: Train[Any]) -> Blocks:
    """Cut prices into what is learned from, what is chosen on, and what is judged on.

    Raises:
        ValueError: a block is empty, or the dates are out of order.
    """
    assert arguments.test_start is not None
    learn_end = arguments.validation_start or arguments.test_start
    context = context_bars(bars, arguments.env, arguments.test_start, arguments.test_end)
    before, test = train_test_split(
        bars,
        train_start=arguments.train_start,
        test_start=arguments.test_start,
        test_end=arguments.test_end,
        warmup_bars=context,
    )
    seen = Bars.from_frame(before)
    train, validation = seen, None
    if arguments.validation_start is not None:
        try:
            context = context_bars(seen, arguments.env, learn_end)
            learned, chosen = train_test_split(seen, test_start=learn_end, warmup_bars=context)
        except ValueError as error:
            raise ValueError(
                f"validation_start={learn_end} must cut the training range, {seen.timestamps[0]} to {seen.timestamps[-1]}, "
                f"into two blocks: {error}"
            ) from error
        train, validation = Bars.from_frame(learned), Bars.from_frame(chosen)
    return Blocks(train, validation, Bars.from_frame(test), seen.timestamps[-1].isoformat())


def show_next(report: Path | None, checkpoint: Path, prices: str, *, start: str | None) -> None:
    """Print where things are and the command that comes next, unwrapped, so that they can be copied.

    The command replays from `start`, so that its account is the one just judged and not one that lived through training.
    """
    print(f"\nReport      {report}" if report is not None else "")
    print(f"Checkpoint  {checkpoint}")
    command = ["tradingbots", "act", str(checkpoint), "--prices", prices, *(["--start", start] if start else [])]
    print(f"Next        {shlex.join(command)}")


def costs_in_words(config: TradingEnvConfig) -> str:
    """Say what trading costs, for people."""
    rates = {
        "commission": config.commission,
        "slippage": config.slippage_rate,
        "borrow": config.borrow_rate,
        "margin": config.margin_rate,
        "cash": config.cash_rate,
    }
    named = [f"{name} {rate:.6g}" for name, rate in rates.items() if rate > 0.0]
    named += [f"minimum commission {config.minimum_commission:.6g}"] if config.minimum_commission > 0.0 else []
    named += [f"impact coefficient {config.impact_coefficient:.6g}"] if config.impact_coefficient > 0.0 else []
    return ", ".join(named) or "none"


def agent_config_class(argv: list[str]) -> type:
    """Return the config class of the agent that the arguments name; its fields are the flags --config.*."""
    name = DEFAULT_AGENT
    for word, following in pairwise([*argv, ""]):
        if word == "--agent":
            name = following
        elif word.startswith("--agent="):
            name = word.removeprefix("--agent=")
    return AGENTS.get(name, AGENTS[DEFAULT_AGENT]).config_class


def _default_test_start(bars: Bars, arguments: Train[Any]) -> str:
    used = bars.between(arguments.train_start, arguments.test_end)
    return str(used.timestamps[int(used.n_bars * (1.0 - TEST_SHARE))].isoformat())


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).split('.')[0].strip()}") from error


def _new_run_dir(arguments: Train[Any]) -> str:
    prices = Path(arguments.prices).name.split(".")[0].replace(":", "-").replace(",", "-")
    return str(Path("runs") / f"{arguments.agent}-{prices}-{datetime.now():%Y%m%d-%H%M%S}")


def _whole(bars: Bars, config: TradingEnvConfig) -> TradingEnvironment:
    """Return an environment that is one pass over all of the bars."""
    return TradingEnvironment(bars, dataclasses.replace(config, episode_length=None, random_start=False))


def _announce(arguments: Train[Any], blocks: Blocks, agent: Any) -> None:
    show(f"Prices      {arguments.prices}: {_names(blocks.train.assets)}, costs: {costs_in_words(arguments.env)}")
    show(f"Training    {_period(blocks.train, arguments.env)}")
    if blocks.validation is not None:
        show(f"Validation  {_period(blocks.validation, arguments.env, decisions=True)}")
    show(f"Test        {_period(blocks.test, arguments.env, decisions=True)}")
    show(f"Agent       {arguments.agent}, {agent.state_dim} inputs, {agent.action_dim} actions, seed {arguments.seed}")
    show(f"Folder      {arguments.run_dir}\n")


def _names(assets: tuple[str, ...]) -> str:
    return ", ".join(assets) if len(assets) <= 5 else f"{len(assets)} assets"


def _period(bars: Bars, config: TradingEnvConfig, *, decisions: bool = False) -> str:
    """Write a period; with `decisions`, from its first decision on."""
    first = _whole(bars, config).market.first_bar if decisions else 0
    return f"{bars.timestamps[first]:%Y-%m-%d} to {bars.timestamps[-1]:%Y-%m-%d}, {bars.n_bars - first:,} bars"


def _facts(arguments: Train[Any], blocks: Blocks, metrics: RLTrainingMetrics, chosen: Path) -> dict[str, str]:
    facts = {
        "Prices": arguments.prices,
        "Trained on": _period(blocks.train, arguments.env),
        "Chosen on": "nothing: the last agent is judged",
        "Costs": costs_in_words(arguments.env),
        "Agent": f"{arguments.agent} ({chosen.name}), seed {arguments.seed}",
        "Training": f"{metrics.num_timesteps:,} timesteps, {metrics.num_updates:,} updates, {metrics.wall_seconds:,.0f} s",
        "Agent settings": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(arguments.config).items()),
        "Features": f"{', '.join(arguments.env.features)}; window {arguments.env.window_size}",
    }
    if blocks.validation is not None:
        facts["Chosen on"] = _period(blocks.validation, arguments.env, decisions=True)
    return facts
