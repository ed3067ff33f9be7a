"""Training an RL agent: the agent's own loop, with normalisation, callbacks, evaluation, progress, logs and resume."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium
import pandas as pd
import torch
from gymnasium.vector import VectorEnv

from ml.tradingbots.components.agent_regimes import check_shows_regimes
from ml.tradingbots.components.agent_spaces import check_fits
from ml.tradingbots.components.base_agent import StepReport
from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.components.multi_market import MultiMarketVectorEnv
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, check_like, plain, write_atomically
from ml.tradingbots.components.vector_adapter import as_vector_env
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.training.callbacks import Callback, CallbackList, EvalCallback
from ml.tradingbots.training.checkpoints import read_run, save_run
from ml.tradingbots.training.loggers import CSVLogger, Logger, LoggerList, MemoryLogger
from ml.tradingbots.training.progress import RLProgressTracker
from ml.tradingbots.training.training_state import EpisodeSummary, TrainingState

# Rows a run's log has when `log_frequency` is left to the library.
N_LOG_ROWS = 200
# Resumable checkpoints of a run when `checkpoint_frequency` is left to the library.
N_CHECKPOINTS = 20
# What an unknown number of timesteps, a budget in episodes, is taken for when frequencies are chosen.
TYPICAL_TIMESTEPS = 200_000
# A frequency that no run reaches. One past its budget would not do: whole vector steps may overshoot it.
NEVER = 2**62
# Length of a training episode that starts at a random bar, where the environment's config sets none: a year of daily bars.
# Episodes that all ran to the end of the data would visit its last bars far more often than its first.
RANDOM_EPISODE_BARS = 252


@dataclass(frozen=True, kw_only=True)
class RLTrainingConfig:
    """Settings of one training run. Give one budget: `total_episodes` or `total_timesteps`."""

    total_episodes: int | None = None
    """Episodes to train for, summed over accounts."""
    total_timesteps: int | None = None
    """Transitions to train for, summed over accounts."""
    eval_frequency: int = 0
    """Evaluate this often, in the unit of the budget; 0 evaluates only at the end."""
    batch_size: int | None = None
    """Transitions per gradient step; None takes the agent's own setting."""
    n_envs: int = 16
    """Accounts that collect side by side (copies, for other environments made by `gymnasium.make`)."""
    random_start: bool = True
    """Whether training episodes start at random legal bars, and last a year of daily bars (252) where the environment's
    `episode_length` leaves it open; evaluation walks all bars once. Market environments only."""
    normalize_observations: bool = True
    """Whether the agent sees observations scaled: by the exact statistics of the training prices, or by running ones."""
    normalize_rewards: bool = True
    """Whether rewards are scaled inside the agent: divided by their standard deviation under the first random actions, or,
    for PPO and A2C, by the running standard deviation of their discounted sum."""
    seed: int = 0
    """Of the training environment's starts; the agent has a seed of its own."""
    log_frequency: int = 0
    """Timesteps between log rows; 0 chooses about 200 rows for the run."""
    checkpoint_frequency: int = 0
    """Timesteps between resumable checkpoints `checkpoints/last.pt` in `run_dir`; 0 chooses about 20 for the run. One is
    written after the first step and one at the end in any case."""
    run_dir: str | None = None
    """Folder of the run: config.json, metrics.csv, checkpoints/, best.pt; None writes nothing."""
    progress: bool = True
    """Whether to show progress."""
    torch_threads: int = 1
    """CPU threads of tensor operations; one is fastest for small networks, and results depend on it in the last bit."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if (self.total_episodes is None) == (self.total_timesteps is None):
            raise ValueError(
                "give one budget: total_episodes or total_timesteps; "
                f"got total_episodes={self.total_episodes} and total_timesteps={self.total_timesteps}"
            )
        for name in ("total_episodes", "total_timesteps", "batch_size", "n_envs", "torch_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.torch_threads > 256:
            raise ValueError(f"torch_threads must be at most 256, got {self.torch_threads}")
        for name in ("eval_frequency", "log_frequency", "checkpoint_frequency"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def budget(self) -> int:
        """Units to train for."""
        return self.total_timesteps or self.total_episodes or 0


@dataclass
class RLTrainingMetrics:
    """What a training run was like."""

    num_timesteps: int = 0
    """Transitions, summed over accounts and over resumed calls."""
    num_episodes: int = 0
    """Episodes that ended."""
    num_updates: int = 0
    """Gradient steps."""
    wall_seconds: float = 0.0
    """Time spent, summed over resumed calls."""
    stop_reason: str = ""
    """Why it stopped."""
    episode_returns: list[float] = field(default_factory=list)
    """Sum of rewards of each episode, in the order in which they ended."""
    episode_lengths: list[int] = field(default_factory=list)
    """Timesteps of each episode."""
    best_eval_score: float = float("nan")
    """Best score of an evaluation: Sharpe ratio of a market, mean episode reward elsewhere."""
    final_evaluation: dict[str, float] = field(default_factory=dict)
    """Figures of the last evaluation."""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The log: one row per `log_frequency` timesteps."""

    @property
    def timesteps_per_second(self) -> float:
        """Speed, learning included."""
        return self.num_timesteps / self.wall_seconds if self.wall_seconds > 0.0 else float("nan")


def train_rl_agent(
    agent: Any,
    env: Any,
    config: RLTrainingConfig,
    callbacks: Callback | Iterable[Callback] | None = None,
    *,
    eval_env: Any = None,
    resume_from: str | Path | None = None,
    loggers: Sequence[Logger] = (),
) -> RLTrainingMetrics:
    """Train an agent.

    Ctrl-C ends the run after the step under way; with a `run_dir` it is saved first, and KeyboardInterrupt is raised then.

    Args:
        agent: from `create_rl_agent`.
        env: a `TradingEnvironment`, any other `gymnasium.Env` or its id, or a torch vector environment. A market
            environment is trained in as `n_envs` accounts over its price table and is itself not changed.
        config: budget and settings.
        callbacks: one or several.
        eval_env: environment of the evaluations: prices that the agent does not train on. None evaluates on the training
            prices, in sample.
        resume_from: a file written by a `CheckpointCallback(resumable=True)` or `run_dir/checkpoints/last.pt`. The agent
            takes over everything in it and the run goes on to the budget in `config`; in a market, on a CPU, with the same
            settings it ends bit for bit where an uninterrupted run would have. Other Gymnasium environments cannot be saved:
            they start a fresh episode, and everything else goes on.
        loggers: more places for the log rows than `run_dir/metrics.csv`.

    Returns:
        What the run was like.

    Raises:
        ValueError, TypeError: agent and environment do not fit, or a setting is refused.
        CheckpointError: `resume_from` cannot be used.
    """
    return _Run(agent, env, config, callbacks, eval_env, loggers).train(resume_from)


class _Run:
    """One call of `train_rl_agent`: owns what lives as long as the call."""

    def __init__(
        self,
        agent: Any,
        env: Any,
        config: RLTrainingConfig,
        callbacks: Callback | Iterable[Callback] | None,
        eval_env: Any,
        loggers: Sequence[Logger],
    ) -> None:
        changes = _training_changes(env, config) if isinstance(env, TradingEnvironment) else {}
        n_envs = config.n_envs if isinstance(env, (TradingEnvironment, str)) or getattr(env, "spec", None) else 1
        self.agent, self.config = agent, config
        self.env = as_vector_env(env, n_envs=n_envs, device=str(agent.device), seed=config.seed, **changes)
        agent.bind(self.env)
        self.user_callbacks = CallbackList(_as_list(callbacks))
        self.evaluator = self._evaluator()
        self.callbacks = CallbackList([*self.user_callbacks.callbacks, self.evaluator])
        for callback in self.user_callbacks.callbacks:
            if isinstance(callback, EvalCallback):
                callback.report_to = tuple(self.user_callbacks.callbacks)
        chosen = eval_env if eval_env is not None else _evaluation_env(env)
        if config.eval_frequency and chosen is None:
            raise ValueError("eval_frequency needs an eval_env where the agent trains in a vector environment")
        for judged_in in (chosen, *(getattr(callback, "eval_env", None) for callback in self.user_callbacks.callbacks)):
            # Now, not after hours of training.
            if isinstance(judged_in, (str, gymnasium.Env)):
                made = gymnasium.make(judged_in) if isinstance(judged_in, str) else judged_in
                check_fits(made.action_space, agent)
                check_shows_regimes(made, agent)
        self.state = TrainingState(
            agent=agent,
            env=self.env,
            eval_env=chosen,
            eval_is_out_of_sample=eval_env is not None,
            config=config,
            save=self.save,
        )
        self.metrics = RLTrainingMetrics()
        self.memory = MemoryLogger()
        self.run_dir = Path(config.run_dir) if config.run_dir else None
        self.extra_loggers = list(loggers)
        self.bars_per_year: float = getattr(self.env, "bars_per_year", float("nan"))
        expected = self._expected_timesteps()
        self.log_frequency = config.log_frequency or expected // N_LOG_ROWS or 1
        self.checkpoint_frequency = config.checkpoint_frequency or expected // N_CHECKPOINTS or 1

    def _evaluator(self) -> EvalCallback:
        config, best = self.config, Path(self.config.run_dir) / "best.pt" if self.config.run_dir else None
        frequency = config.eval_frequency or NEVER  # The end evaluates by itself.
        by_steps = config.total_timesteps is not None
        return EvalCallback(
            eval_freq=frequency if by_steps else 0,
            eval_episode_freq=0 if by_steps else frequency,
            best_model_path=best,
            report_to=self.user_callbacks.callbacks,
        )

    def train(self, resume_from: str | Path | None) -> RLTrainingMetrics:
        observation = None
        if resume_from is not None:
            observation = self._resume(Path(resume_from))
        else:
            self._begin()
        unit = "timesteps" if self.config.total_timesteps is not None else "episodes"
        loggers = self._open_logs()
        started = time.perf_counter()
        spent_before = self.metrics.wall_seconds
        with (
            _torch_threads(self.config.torch_threads),
            _interruptible(self._interrupt, active=self.run_dir is not None),
            RLProgressTracker(self.config.budget, unit, enabled=self.config.progress) as progress,  # type: ignore[arg-type]
        ):
            try:
                self.callbacks.on_training_start(self.state)
                if self.run_dir is not None:
                    plain(self.callbacks.state_dict(), "the state of callbacks")  # Now, not at the first checkpoint.
                for report in self._steps(observation):
                    self.metrics.wall_seconds = spent_before + time.perf_counter() - started
                    self._after_step(report, loggers, progress)
                    if self.state.stop_reason:
                        break
                self._finish(loggers)
            finally:
                loggers.close()
                # The scale that the run found stays; `agent.train` moves it no further, whether the agent was saved or not.
                self.agent.scale_rewards = False
        if self.state.stop_reason == INTERRUPTED:
            raise KeyboardInterrupt(f"training stopped at {self.state.num_timesteps} timesteps")
        return self.metrics

    def _steps(self, observation: Any) -> Iterator[StepReport]:
        if self._is_complete():
            self.state.request_stop(f"the budget of {self.config.budget} was already spent")
            return iter(())
        self.agent.schedule_timesteps = self._offset + self._expected_timesteps()
        steps: Iterator[StepReport] = self.agent.training_steps(
            self.env, batch_size=self.config.batch_size, observation=observation
        )
        return steps

    def _expected_timesteps(self) -> int:
        """Return how long the run will be: what schedules span. For a budget of episodes, were they all of full length."""
        if self.config.total_timesteps is not None:
            return self.config.total_timesteps
        if not isinstance(self.env, TradingVectorEnv):
            return TYPICAL_TIMESTEPS
        market = self.env.market
        return self.config.budget * (self.env.config.episode_length or market.last_bar - market.first_bar)

    def _begin(self) -> None:
        """Set up what the agent sees; a fresh run."""
        agent, config = self.agent, self.config
        if config.normalize_observations and agent.num_timesteps == 0:
            if hasattr(self.env, "observation_statistics"):
                agent.normalizer.fix(*self.env.observation_statistics())
            else:
                agent.normalizer.run()
        agent.scale_rewards = config.normalize_rewards
        self._offset, self._updates_before = agent.num_timesteps, agent.num_updates

    def _resume(self, path: Path) -> Any:
        """Take over a saved run; returns the present observations, None where the environment starts afresh.

        What can be refused comes first: a run that cannot be resumed leaves the agent as it was.
        """
        content, training = read_run(path)
        counters = training["counters"]
        observation = None
        try:
            if training["environment_state"] is not None and hasattr(self.env, "load_state_dict"):
                if isinstance(self.env, (TradingVectorEnv, MultiMarketVectorEnv)):
                    self.env.reset()
                    template = self.env.state_dict()
                    check_like(training["environment_state"], template, "environment_state", finite=False)
                observation = self.env.load_state_dict(training["environment_state"])
            self.callbacks.load_state_dict(training["callbacks"])
            episodes = [EpisodeSummary(**episode) for episode in training["recent_episodes"]]
            trained = type(self.agent)(
                self.agent.state_dim, self.agent.action_dim, self.agent.config, device=str(self.agent.device)
            )
            if not trained.is_built:
                trained.bind(self.env)
            trained.load_state_dict(content, path=path)
            trained.restore_memory(self.env, training["memory"])
        except CheckpointError:
            raise
        except DAMAGE as error:
            raise CheckpointError(f"{path} cannot be resumed here: {str(error)[:300]}") from error
        self.agent.take_over(trained)
        self.agent.scale_rewards = self.config.normalize_rewards
        self._offset, self._updates_before = counters["offset"], 0
        state, metrics = self.state, self.metrics
        state.num_episodes, state.num_evaluations = counters["num_episodes"], counters["num_evaluations"]
        state.num_timesteps = self.agent.num_timesteps - self._offset
        state.recent_episodes.extend(episodes)
        state.pending.update(training["pending"])
        state.losses = {name: torch.tensor(value) for name, value in training["losses"].items()}
        metrics.wall_seconds = counters["wall_seconds"]
        metrics.episode_returns = list(training["episode_returns"])
        metrics.episode_lengths = list(training["episode_lengths"])
        for row in training["history"]:
            self.memory.write(row)
        return observation

    def save(self, path: Path | str) -> Path:
        """Write the whole run; see `TrainingState.save`."""
        stateful = hasattr(self.env, "load_state_dict")
        state = self.state
        return save_run(
            path,
            self.agent,
            {
                "memory": self.agent.memory_state(),
                "environment_state": self.env.state_dict() if stateful else None,
                "callbacks": self.callbacks.state_dict(),
                "counters": {
                    "num_episodes": state.num_episodes,
                    "num_evaluations": state.num_evaluations,
                    "wall_seconds": self.metrics.wall_seconds,
                    "offset": self._offset,
                },
                "recent_episodes": [dataclasses.asdict(episode) for episode in state.recent_episodes],
                "pending": dict(state.pending),
                "losses": {name: float(value) for name, value in state.losses.items()},
                "episode_returns": list(self.metrics.episode_returns),
                "episode_lengths": list(self.metrics.episode_lengths),
                "history": self.memory.rows,
                "config": dataclasses.asdict(self.config),
            },
        )

    def _after_step(self, report: StepReport, loggers: Logger, progress: RLProgressTracker) -> None:
        state, before = self.state, self.state.num_timesteps
        state.num_timesteps = report.num_timesteps - self._offset
        state.losses = report.losses or state.losses
        if report.episodes is not None:
            self._count_episodes(report.episodes)
        self.callbacks.on_step(state)
        if state.num_timesteps // self.log_frequency > before // self.log_frequency:
            self._log(loggers)
        self._show(progress)
        if self._is_complete():
            untrained = (
                ""
                if self.agent.num_updates > self._updates_before
                else " and no gradient step was taken: it is too small for the agent"
            )
            state.request_stop(f"the budget is spent{untrained}")
        self.callbacks.on_step_end(state)
        frequency = self.checkpoint_frequency
        if self.run_dir and (before == 0 or state.num_timesteps // frequency > before // frequency):
            self.save(self.run_dir / "checkpoints" / "last.pt")

    def _count_episodes(self, episodes: dict[str, torch.Tensor]) -> None:
        rows = zip(
            *(episodes[name].tolist() for name in ("r", "l", "sharpe", "max_drawdown", "log_growth")), strict=True
        )
        for episode_return, length, sharpe, drawdown, growth in rows:
            episode = EpisodeSummary(
                episode_return=episode_return,
                length=int(length),
                sharpe_ratio=sharpe * self.bars_per_year**0.5,
                max_drawdown=drawdown,
                total_return=float(torch.tensor(growth).expm1()),
            )
            self.state.num_episodes += 1
            self.state.recent_episodes.append(episode)
            self.metrics.episode_returns.append(episode.episode_return)
            self.metrics.episode_lengths.append(episode.length)
            self.callbacks.on_episode_end(self.state, episode)

    def _log(self, loggers: Logger) -> None:
        state = self.state
        row: dict[str, float | int | str] = {
            "num_timesteps": state.num_timesteps,
            "num_episodes": state.num_episodes,
            "episode_return": state.recent_mean("episode_return"),
            "episode_length": state.recent_mean("length"),
            **{name: float(value) for name, value in state.losses.items()},
            **state.pending,
        }
        state.pending.clear()
        loggers.write(row)

    def _show(self, progress: RLProgressTracker) -> None:
        state = self.state
        done = state.num_timesteps if self.config.total_timesteps is not None else state.num_episodes
        if not state.recent_episodes:
            progress.update(done, state.num_timesteps)
            return
        last = state.recent_episodes[-1]
        progress.update(
            done,
            state.num_timesteps,
            episode_return=last.episode_return,
            sharpe_ratio=last.sharpe_ratio,
            max_drawdown=last.max_drawdown,
        )

    def _is_complete(self) -> bool:
        if self.config.total_timesteps is not None:
            return self.state.num_timesteps >= self.config.total_timesteps
        return self.state.num_episodes >= self.config.budget

    def _interrupt(self) -> None:
        # Whatever reason there was to stop: an interrupted closing evaluation must not pass for a run that simply ended.
        self.state.stop_reason = INTERRUPTED

    def _finish(self, loggers: Logger) -> None:
        state, metrics = self.state, self.metrics
        if self.run_dir is not None:
            # Before the closing evaluation, which is not part of what an uninterrupted longer run would have done.
            self.save(self.run_dir / "checkpoints" / "last.pt")
        if state.eval_env is not None and state.stop_reason != INTERRUPTED:
            metrics.final_evaluation = self.evaluator.evaluate(state)
        if state.pending:
            self._log(loggers)
        self.callbacks.on_training_end(state)
        metrics.num_timesteps, metrics.num_episodes = state.num_timesteps, state.num_episodes
        metrics.num_updates = self.agent.num_updates - self._updates_before
        metrics.stop_reason = state.stop_reason
        metrics.best_eval_score = self.evaluator.best_score if state.num_evaluations else float("nan")
        metrics.history = self.memory.history

    def _open_logs(self) -> LoggerList:
        logs: list[Logger] = [self.memory, *self.extra_loggers]
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            settings = {
                "agent_type": self.agent.agent_type,
                "agent": dataclasses.asdict(self.agent.config),
                "training": dataclasses.asdict(self.config),
                "environment": self.agent.environment_spec,
            }
            # What a killed write left behind.
            for debris in (self.run_dir / "checkpoints").glob(".last.pt.*.part"):
                debris.unlink(missing_ok=True)
            write_atomically(self.run_dir / "config.json", (json.dumps(settings, indent=2) + "\n").encode())
            path = self.run_dir / "metrics.csv"
            path.unlink(missing_ok=True)
            csv = CSVLogger(path)
            # What the checkpoint holds is what the run had written by then; anything later is written again.
            for row in self.memory.rows:
                csv.write(row)
            logs.append(csv)
        return LoggerList(logs)


INTERRUPTED = "interrupted by the user"


def _training_changes(env: TradingEnvironment, config: RLTrainingConfig) -> dict[str, Any]:
    """Return what differs between the environment given and the accounts that train in it."""
    if not config.random_start:
        return {"random_start": False}
    if env.config.episode_length is not None:
        return {"random_start": True}
    legal = env.market.last_bar - env.market.first_bar
    return {"random_start": True, "episode_length": max(min(RANDOM_EPISODE_BARS, legal // 2), 1)}


def _evaluation_env(env: Any) -> Any:
    """Return what to evaluate in where no environment was given: never the very one that is trained in.

    None for a vector environment, which offers no single one.
    """
    if isinstance(env, (TradingEnvironment, str)):
        return env  # Both are only read.
    if isinstance(env, VectorEnv):
        return None
    return gymnasium.make(env.spec) if env.spec is not None else copy.deepcopy(env)


def _as_list(callbacks: Callback | Iterable[Callback] | None) -> list[Callback]:
    if callbacks is None:
        return []
    if isinstance(callbacks, CallbackList):
        return list(callbacks.callbacks)
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)


@contextmanager
def _torch_threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible(interrupt: Callable[[], None], *, active: bool) -> Iterator[None]:
    """Turn the first Ctrl-C into a request to stop between two steps; a second one interrupts at once."""
    if not active or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupt()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
