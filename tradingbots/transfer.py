"""`tradingbots transfer`: learn in some markets, go on in another, and be told whether that was worth it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pandas as pd
import tyro

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, create_rl_agent, load_rl_agent
from ml.tradingbots.components.freezing import FreezingSchedule
from ml.tradingbots.components.policy_scores import ScoreName, score_of
from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.components.transfer_learning import TransferLearningTrainer, source_accounts
from ml.tradingbots.components.transfer_results import FINE_TUNED, SCRATCH, TransferReport
from ml.tradingbots.data import Bars, train_test_split
from ml.tradingbots.training import EvaluationResult, RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.evaluation import act, evaluation_environment, run_strategy
from ml.tradingbots.training.fine_tuning import FineTuning, ScoreCurve
from ml.tradingbots.training.results import BUY_AND_HOLD
from ml.tradingbots.training.transfer_report import write_transfer_report
from tradingbots.console import (
    OptionalDate,
    OptionalPath,
    Prices,
    at_the_door,
    note,
    parse,
    show,
    show_result,
    show_table,
)
from tradingbots.fit import new_run_dir, resume_command, settings_of
from tradingbots.periods import context_bars, load_bars
from tradingbots.run_folder import RecordRun, claimed, read_seen_until
from tradingbots.train import TEST_SHARE, agent_config_class, check_device, costs_in_words, with_fitting_actions

PRETRAINED = "pretrained"

ConfigT = TypeVar("ConfigT")
Module = Literal["encoder", "trunk", "heads"]


@dataclass(frozen=True, kw_only=True)
class Transfer(Generic[ConfigT]):
    """Pretrain an agent on some markets, fine-tune it on another, and compare it with learning there from scratch.

    The folder holds config.json, pretrained.pt, agent.pt (fine-tuned), scratch.pt, curves.csv, report.html and checkpoints/.
    """

    target: Prices
    """The market to go on in: a source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SOURCE")] = ()
    """A market to pretrain on; give it several times for several, which are learned from side by side."""
    pretrained: OptionalPath = None
    """An agent's file to begin with, instead of sources; it brings its kind, settings and environment."""
    train_end: OptionalDate = None
    """First date of the test: nothing from it on is learned from, in no market. None keeps the target's last fifth."""
    agent: str = "sac"
    """Kind of agent; the flags --config.* are its own."""
    pretrain_timesteps: int = 200_000
    """Transitions to pretrain on, summed over markets."""
    timesteps: int = 50_000
    """Transitions to fine-tune on, and the same number for scratch."""
    freeze: tuple[Module, ...] = ("encoder", "trunk")
    """Modules that stand still; give none to let all move."""
    unfreeze_at: float | None = None
    """Share of the timesteps from which they move; None keeps them still."""
    normalizer: Literal["transfer", "reset", "blend"] = "transfer"
    """Whose scales of observations and rewards the target is seen on: the source's, its own, both pooled."""
    blend_weight: int = 1_000
    """What the source's scales count for in a blend, in bars of the target."""
    layer_decay: float = 1.0
    """Factor of the step size per layer away from the head."""
    learning_rate_factor: float = 1.0
    """Factor of the step size in fine-tuning."""
    l2_sp: float = 0.0
    """Pull towards the pretrained weights."""
    reinitialize: tuple[Module, ...] = ()
    """Modules that begin with new weights."""
    on_negative: Literal["warn", "reinitialize"] = "reinitialize"
    """Whether to begin anew, or to say so only, where the transferred agent begins worse than an untrained one."""
    n_evaluations: int = 20
    """Scores on a learning curve."""
    n_envs: int = 16
    """Accounts that collect side by side, in each market."""
    run_dir: OptionalPath = None
    """Folder of the run; None makes runs/transfer-AGENT-TARGET-TIME."""
    resume: bool = False
    """Go on with the run in --run-dir; give the same settings."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    seed: int = 0
    """Of the agents and starts; scratch has the next one."""
    device: str = "cpu"
    """Where networks and accounts live: cpu, cuda."""
    progress: bool = True
    """Whether to show progress."""
    env: TradingEnvConfig = field(default_factory=TradingEnvConfig)
    config: ConfigT


@dataclass(frozen=True)
class Markets:
    """What is learned from, and what is judged on."""

    sources: dict[str, TradingEnvironment]
    target: TradingEnvironment
    test: TradingEnvironment
    train_end: str


def run(argv: list[str]) -> int:
    """Pretrain, fine-tune, compare, report."""
    arguments: Transfer[Any] = parse(Transfer[agent_config_class(argv)], "transfer", argv)  # type: ignore[misc]
    if bool(arguments.source) == (arguments.pretrained is not None):
        raise ValueError(
            "give markets to pretrain on by --source, or an agent that has learned by --pretrained: one of them"
        )
    with at_the_door():
        check_device(arguments.device)
        arguments = _with_agent(arguments, argv) if arguments.pretrained else with_fitting_actions(arguments, argv)
        markets = _markets(arguments)
        trainer = _trainer(arguments, markets)
        seen_until = _seen_until(arguments, markets, trainer.agent)
    if arguments.run_dir is None:
        if arguments.resume:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        made = new_run_dir(f"transfer-{trainer.agent.agent_type}", arguments.target)
        arguments, argv = dataclasses.replace(arguments, run_dir=made), [*argv, f"--run-dir={made}"]
    assert arguments.run_dir is not None
    run_dir = Path(arguments.run_dir)
    settings = settings_of("transfer", arguments)
    settings["arguments"].pop("progress")  # How a run is watched may change.
    if arguments.pretrained is not None:  # Another agent may lie where this one did.
        digest = hashlib.sha256(Path(arguments.pretrained).read_bytes()).hexdigest()
        settings["arguments"]["pretrained"] = {"path": arguments.pretrained, "sha256": digest}
    with claimed(run_dir, settings, resume=arguments.resume, overwrite=arguments.overwrite) as runs:
        _announce(arguments, markets, trainer, run_dir)
        try:
            report, result = _learn_all(arguments, markets, trainer, run_dir, runs, seen_until)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; go on with: {resume_command('transfer', argv)}") from stop
        write_atomically(run_dir / "curves.csv", report.curves.to_csv().encode())
        page = write_transfer_report(
            run_dir / "report.html",
            report,
            result,
            title=f"{trainer.agent.agent_type.upper()} carried to {Path(arguments.target).name}",
            facts=_facts(arguments, markets, trainer),
        )
    show()
    show(report.verdict())
    show()
    show_table(report.formatted_table())
    show_result(result)
    print(f"\nReport      {page}\nAgent       {run_dir / 'agent.pt'}")
    return 0


def _with_agent(arguments: Transfer[Any], argv: list[str]) -> Transfer[Any]:
    """Let a pretrained agent bring its environment, where no flag says otherwise."""
    assert arguments.pretrained is not None
    if given := [word for word in argv if word.startswith(("--agent", "--config."))]:
        raise ValueError(
            f"{given[0].partition('=')[0]} cannot be given with --pretrained: the file says what agent it holds"
        )
    agent = load_rl_agent(arguments.pretrained, device=arguments.device)
    arguments = dataclasses.replace(arguments, agent=agent.agent_type, config=agent.config)
    if any(word.startswith("--env.") for word in argv) or "config" not in agent.environment_spec:
        return with_fitting_actions(arguments, argv)
    return dataclasses.replace(arguments, env=TradingEnvConfig.from_dict(agent.environment_spec["config"]))


def _markets(arguments: Transfer[Any]) -> Markets:
    bars = load_bars(arguments.target)
    end = arguments.train_end or str(bars.timestamps[int(bars.n_bars * (1.0 - TEST_SHARE))].isoformat())
    before, test = train_test_split(bars, test_start=end, warmup_bars=context_bars(bars, arguments.env, end))
    target = TradingEnvironment(before, arguments.env)
    sources = {}
    for name in arguments.source:
        try:
            # Markets move together: what a source did after `end` says something about the test.
            sources[name] = TradingEnvironment(load_bars(name).between(None, end), arguments.env)
        except ValueError as error:
            raise ValueError(f"source {name} cannot be learned from before {end}: {error}") from error
    whole = dataclasses.replace(arguments.env, episode_length=None, random_start=False)
    return Markets(sources, target, TradingEnvironment(Bars.from_frame(test), whole), end)


def _seen_until(arguments: Transfer[Any], markets: Markets, agent: Any) -> dict[str, str | None]:
    """Return until when each of the three agents will have seen prices, None where the pretrained one's file does not say."""
    here = _last_bar(markets.target)
    if arguments.pretrained is None:
        before: pd.Timestamp | None = max(_last_bar(env) for env in markets.sources.values())
    else:
        before = read_seen_until(agent.environment_spec.get("seen_until"), arguments.pretrained)
    seen = {PRETRAINED: before, FINE_TUNED: None if before is None else max(before, here), SCRATCH: here}
    return {who: None if instant is None else instant.isoformat() for who, instant in seen.items()}


def _is_unseen(markets: Markets, seen_until: str | None) -> bool:
    """Whether the test begins after all that the agent to be judged has seen."""
    first = markets.test.market.bars.timestamps[markets.test.market.first_bar]
    if seen_until is None:
        note("the pretrained agent does not say which prices it has seen, so the test counts as in sample")
    elif first <= pd.Timestamp(seen_until):
        note(f"the pretrained agent has seen prices until {seen_until}, so the test counts as in sample")
    return seen_until is not None and first > pd.Timestamp(seen_until)


def _last_bar(env: TradingEnvironment) -> pd.Timestamp:
    return env.market.bars.timestamps[-1]


def _trainer(arguments: Transfer[Any], markets: Markets) -> TransferLearningTrainer:
    if arguments.pretrained is not None:
        agent = load_rl_agent(arguments.pretrained, device=arguments.device)
    else:
        env = source_accounts(markets.sources, n_envs=1, device=arguments.device)
        agent = create_rl_agent(
            arguments.agent,
            state_dim=env.observation_space_dim,
            action_dim=env.action_space_dim,
            config=arguments.config,
            device=arguments.device,
            seed=arguments.seed,
        )
        agent.bind(env)
    share = arguments.unfreeze_at
    trainer = TransferLearningTrainer(
        agent,
        normalizer=arguments.normalizer,
        blend_weight=arguments.blend_weight,
        freeze=arguments.freeze,
        unfreeze_at={} if share is None or not arguments.freeze else {share: arguments.freeze},
        layer_decay=arguments.layer_decay,
        learning_rate_factor=arguments.learning_rate_factor,
        l2_sp=arguments.l2_sp,
        reinitialize=arguments.reinitialize,
        on_negative=arguments.on_negative,
        seed=arguments.seed,
    )
    trainer.check_target(markets.target)
    for name in ("pretrain_timesteps", "timesteps", "n_envs", "n_evaluations"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    return trainer


def _learn_all(
    arguments: Transfer[Any],
    markets: Markets,
    trainer: TransferLearningTrainer,
    run_dir: Path,
    runs: Path,
    seen_until: dict[str, str | None],
) -> tuple[TransferReport, EvaluationResult]:
    """Run the three trainings, each of which goes on where it was interrupted, and compare."""
    name: ScoreName = "sharpe_ratio"
    score = score_of(name)
    if not arguments.pretrained:
        trainer.agent = _pretrained(arguments, markets, trainer, runs, seen_until[PRETRAINED])
    trainer.agent.save(run_dir / "pretrained.pt")
    student, new = trainer.student(markets.target), trainer.scratch(markets.target)
    zero_shot, untrained = score(student, markets.test), score(new, markets.test)
    passes = {"zero-shot": _walk(student, markets.test, "zero-shot")}
    thrown = trainer.harms(student, new, markets.target, score)
    if thrown:
        student = trainer.scratch(markets.target, seed_offset=0)
    schedule = FreezingSchedule(freeze=()) if thrown else trainer.schedule
    learners = {FINE_TUNED: (student, schedule, "agent.pt"), SCRATCH: (new, FreezingSchedule(freeze=()), "scratch.pt")}
    curves, agents = {}, {}
    for who, (agent, its_schedule, file) in learners.items():
        show(f"{who[:1].upper()}{who[1:]}")
        curve = ScoreCurve(score, markets.test, max(arguments.timesteps // arguments.n_evaluations, 1))
        folder = runs / who
        training = dataclasses.replace(
            _training(arguments, arguments.timesteps, folder),
            normalize_observations=False,  # The trainer has chosen the scales.
            normalize_rewards=agent.scale_rewards,
        )
        _train(arguments, agent, markets, markets.target, training, [FineTuning(its_schedule), curve], seen_until[who])
        agent.save(run_dir / file)
        curves[who], agents[who] = curve.points, agent
    passes = {SCRATCH: _walk(agents[SCRATCH], markets.test, SCRATCH), **passes}
    judged = evaluate_agent(agents[FINE_TUNED], markets.test, name=FINE_TUNED, n_bootstrap=0)
    baselines = {BUY_AND_HOLD: judged.baselines[BUY_AND_HOLD], **passes}
    report = TransferReport(
        curves=pd.DataFrame({who: pd.Series(points) for who, points in curves.items()}).rename_axis("timesteps"),
        zero_shot=zero_shot,
        untrained=untrained,
        score=name,
        out_of_sample=_is_unseen(markets, seen_until[FINE_TUNED]),
        reinitialized=thrown,
        settings=trainer.settings(),
        agent=agents[FINE_TUNED],
        scratch_agent=agents[SCRATCH],
    )
    sample: Literal["out of sample", "in sample"] = "out of sample" if report.out_of_sample else "in sample"
    return report, EvaluationResult.from_trajectories(judged.agent, baselines, seed=arguments.seed, sample=sample)


def _pretrained(
    arguments: Transfer[Any], markets: Markets, trainer: TransferLearningTrainer, runs: Path, seen_until: str | None
) -> Any:
    show(f"Pretraining on {', '.join(markets.sources)}")
    env = source_accounts(markets.sources, n_envs=arguments.n_envs, device=arguments.device, seed=arguments.seed)
    training = _training(arguments, arguments.pretrain_timesteps, runs / "pretraining")
    _train(arguments, trainer.agent, markets, env, training, [], seen_until)
    return trainer.agent


def _training(arguments: Transfer[Any], total_timesteps: int, folder: Path) -> RLTrainingConfig:
    return RLTrainingConfig(
        total_timesteps=total_timesteps,
        n_envs=arguments.n_envs,
        seed=arguments.seed,
        run_dir=str(folder),
        progress=arguments.progress,
    )


def _train(
    arguments: Transfer[Any],
    agent: Any,
    markets: Markets,
    env: Any,
    training: RLTrainingConfig,
    callbacks: list[Any],
    seen_until: str | None,
) -> None:
    """Train, or go on with a training of the same run that was interrupted."""
    assert training.run_dir is not None
    folder = Path(training.run_dir)
    last = folder / "checkpoints" / "last.pt"
    data = {"target": arguments.target, "sources": list(arguments.source), "train_end": markets.train_end}
    train_rl_agent(
        agent,
        env,
        training,
        [RecordRun(folder, data, seen_until), *callbacks],
        eval_env=markets.test if callbacks else None,
        resume_from=last if arguments.resume and last.is_file() else None,
    )


def _walk(agent: Any, env: TradingEnvironment, name: str) -> Any:
    whole = evaluation_environment(env)
    return run_strategy(whole, lambda observation, _bar: act(agent, observation, whole.action_mask()), name=name)


def _announce(arguments: Transfer[Any], markets: Markets, trainer: TransferLearningTrainer, run_dir: Path) -> None:
    for name, env in markets.sources.items():
        show(f"Source      {name}: {_period(env)}")
    if arguments.pretrained:
        show(f"Pretrained  {arguments.pretrained}")
    show(f"Target      {arguments.target}: {_period(markets.target)}, costs: {costs_in_words(arguments.env)}")
    show(f"Test        {_period(markets.test)}")
    kept = ", ".join(arguments.freeze) or "nothing"
    show(
        f"Agent       {trainer.agent.agent_type}, {kept} frozen, normaliser {arguments.normalizer}, seed {arguments.seed}"
    )
    show(f"Folder      {run_dir}\n")


def _period(env: TradingEnvironment) -> str:
    times = env.market.bars.timestamps
    return f"{times[env.market.first_bar]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}, {len(times) - env.market.first_bar:,} bars"


def _facts(arguments: Transfer[Any], markets: Markets, trainer: TransferLearningTrainer) -> dict[str, str]:
    sources = "; ".join(f"{name}, {_period(env)}" for name, env in markets.sources.items())
    return {
        "Learned before": sources or f"agent {arguments.pretrained}",
        "Target": f"{arguments.target}, {_period(markets.target)}",
        "Timesteps": f"{arguments.pretrain_timesteps:,} before, {arguments.timesteps:,} here"
        if markets.sources
        else f"{arguments.timesteps:,}",
        "Costs": costs_in_words(arguments.env),
        "Transfer": json.dumps(trainer.settings(), default=str).strip("{}").replace('"', ""),
        "Agent settings": ", ".join(
            f"{key} {value}" for key, value in dataclasses.asdict(trainer.agent.config).items()
        ),
        "Features": f"{', '.join(arguments.env.features)}; window {arguments.env.window_size}",
    }
