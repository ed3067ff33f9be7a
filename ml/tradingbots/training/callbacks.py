"""Hooks into a training run: on each step, on an episode's end, on an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.training.evaluation import evaluate_agent, evaluate_episodes
from ml.tradingbots.training.training_state import EpisodeSummary, TrainingState


class Callback:
    """Does nothing at each hook; override what you need.

    A hook may read everything in the state, `record` values for the log, and `request_stop`. What must survive a resume
    goes through `state_dict` and `load_state_dict`: tensors and plain values only.
    """

    def on_training_start(self, state: TrainingState) -> None:
        """Before the first step of this call, resumed or not."""

    def on_step(self, state: TrainingState) -> None:
        """After each vector step: `n_envs` timesteps."""

    def on_step_end(self, state: TrainingState) -> None:
        """After all of a vector step, its log row included: the moment to save a run that can be resumed."""

    def on_episode_end(self, state: TrainingState, episode: EpisodeSummary) -> None:
        """After each episode that ended."""

    def on_eval(self, state: TrainingState, metrics: dict[str, float]) -> None:
        """After each evaluation."""

    def on_training_end(self, state: TrainingState) -> None:
        """After the last step, however the run ended."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class CallbackList(Callback):
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be Callback objects, got {type(callback).__name__}")

    def on_training_start(self, state: TrainingState) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_training_start(state)

    def on_step(self, state: TrainingState) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_step(state)

    def on_step_end(self, state: TrainingState) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_step_end(state)

    def on_episode_end(self, state: TrainingState, episode: EpisodeSummary) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_episode_end(state, episode)

    def on_eval(self, state: TrainingState, metrics: dict[str, float]) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_eval(state, metrics)

    def on_training_end(self, state: TrainingState) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_training_end(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each, in order."""
        return {"callbacks": [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand each its own state.

        Raises:
            ValueError: the run was saved with other callbacks.
        """
        saved, names = state["callbacks"], [type(callback).__name__ for callback in self.callbacks]
        if [name for name, _ in saved] != names:
            raise ValueError(
                f"the run was saved with callbacks {[name for name, _ in saved]}, it is resumed with {names}; "
                "pass the same ones in the same order"
            )
        for callback, (_, own) in zip(self.callbacks, saved, strict=True):
            callback.load_state_dict(own)


class Cadence:
    """Says when a frequency in timesteps is due: at the first step at or past each multiple."""

    def __init__(self, frequency: int, name: str) -> None:
        if frequency < 1:
            raise ValueError(f"{name} must be at least 1 timestep, got {frequency}")
        self.frequency = frequency

    def is_due(self, before: int, now: int) -> bool:
        """Whether a multiple of the frequency lies in (before, now]."""
        return now // self.frequency > before // self.frequency


class CheckpointCallback(Callback):
    """Saves the agent at regular intervals, as `<save_path>/<name_prefix>_<timesteps>.pt`.

    Args:
        save_freq: timesteps between files.
        save_path: folder of the files.
        name_prefix: beginning of their names.
        keep_last: how many of this run's files to keep; older ones are deleted. 0 keeps all.
        resumable: whether the files hold the whole run, replay memory included, so that `resume_from` takes them.
            Either kind can be loaded with `agent.load`.
    """

    def __init__(
        self,
        save_freq: int = 1_000,
        save_path: str | Path = "./checkpoints/",
        *,
        name_prefix: str = "agent",
        keep_last: int = 5,
        resumable: bool = False,
    ) -> None:
        if keep_last < 0:
            raise ValueError(f"keep_last must be 0 (all) or more, got {keep_last}")
        self.cadence = Cadence(save_freq, "save_freq")
        self.save_path, self.name_prefix = Path(save_path), name_prefix
        self.keep_last, self.resumable = keep_last, resumable
        self.saved: list[Path] = []

    def on_step_end(self, state: TrainingState) -> None:
        """Save when due."""
        if self.cadence.is_due(state.num_timesteps - state.env.num_envs, state.num_timesteps):
            path = self.save_path / f"{self.name_prefix}_{state.num_timesteps}.pt"
            self.saved = [*(old for old in self.saved if old != path), path]
            stale = self.saved[: -self.keep_last] if self.keep_last else []
            self.saved = self.saved[len(stale) :]
            if self.resumable:
                state.save(path)
            else:
                state.agent.save(path)
            for old in stale:  # Only once the new one is safely there.
                old.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return which files are there."""
        return {"saved": [str(path) for path in self.saved]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on rotating the same files, those that are this callback's own."""
        candidates = [Path(str(path)) for path in state["saved"]]
        # Names come from a file: only ones this callback could have written are ever deleted.
        self.saved = [
            path
            for path in candidates
            if path.parent == self.save_path and path.name.startswith(f"{self.name_prefix}_") and path.suffix == ".pt"
        ]


class EarlyStoppingRLCallback(Callback):
    """Stops training when the episode reward has stopped rising.

    The mean reward of the last `window` episodes must beat its best by `min_delta` at least once every `patience` episodes.

    Args:
        patience: episodes without improvement that are waited for.
        min_delta: smallest rise that counts, in units of the episode's sum of rewards.
        window: episodes in the mean.
    """

    def __init__(self, patience: int = 50, min_delta: float = 0.0, *, window: int = 20) -> None:
        if patience < 1 or window < 1:
            raise ValueError(f"patience and window must be at least 1 episode, got {patience} and {window}")
        if not min_delta >= 0.0:
            raise ValueError(f"min_delta must be at least 0, got {min_delta}")
        self.patience, self.min_delta, self.window = patience, min_delta, window
        self.best = -float("inf")
        self.n_waited = 0
        self.recent: list[float] = []

    def on_episode_end(self, state: TrainingState, episode: EpisodeSummary) -> None:
        """Compare the running mean with its best."""
        self.recent = [*self.recent, episode.episode_return][-self.window :]
        if len(self.recent) < self.window:
            return
        mean = float(np.mean(self.recent))
        if mean > self.best + self.min_delta:
            self.best, self.n_waited = mean, 0
            return
        self.n_waited += 1
        if self.n_waited >= self.patience:
            state.request_stop(
                f"early stopping: the mean reward of {self.window} episodes has not risen by {self.min_delta} "
                f"above {self.best:.4g} for {self.patience} episodes"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return best, wait and window."""
        return {"best": self.best, "n_waited": self.n_waited, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting."""
        self.best, self.n_waited = float(state["best"]), int(state["n_waited"])
        self.recent = [float(value) for value in state["recent"]]


class EvalCallback(Callback):
    """Evaluates the agent, deterministically, and keeps the best one.

    A trading environment is walked once from end to end and scored by its annualised Sharpe ratio after costs; any other
    plays `n_eval_episodes` episodes and is scored by their mean reward. The best is chosen on these data: keep a test
    period that no choice has seen.

    Args:
        eval_env: environment to evaluate in; None takes the one given to `train_rl_agent`.
        eval_freq: timesteps between evaluations; 0 leaves it to `eval_episode_freq`.
        eval_episode_freq: episodes between evaluations, where `eval_freq` is 0.
        n_eval_episodes: episodes per evaluation, where it is not a market.
        best_model_path: file that keeps the best agent; None keeps none.
        report_to: other callbacks whose `on_eval` is called; `train_rl_agent` sets it.
    """

    def __init__(
        self,
        eval_env: Any = None,
        *,
        eval_freq: int = 10_000,
        eval_episode_freq: int = 0,
        n_eval_episodes: int = 10,
        best_model_path: str | Path | None = None,
        report_to: Sequence[Callback] = (),
    ) -> None:
        if (eval_freq < 1) == (eval_episode_freq < 1):
            raise ValueError(
                f"give eval_freq (timesteps) or eval_episode_freq (episodes), one of them positive; "
                f"got {eval_freq} and {eval_episode_freq}"
            )
        self.eval_env, self.n_eval_episodes = eval_env, n_eval_episodes
        self.eval_freq, self.eval_episode_freq = eval_freq, eval_episode_freq
        self.best_model_path = Path(best_model_path) if best_model_path else None
        self.report_to = tuple(report_to)
        self.best_score = -float("inf")
        self.evaluated_at = 0  # In timesteps or episodes, so that a resumed run may have another frequency.

    def on_step(self, state: TrainingState) -> None:
        """Evaluate when due."""
        by_steps = self.eval_freq > 0
        done, frequency = (
            (state.num_timesteps, self.eval_freq) if by_steps else (state.num_episodes, self.eval_episode_freq)
        )
        if done // frequency > self.evaluated_at // frequency:
            self.evaluated_at = done
            self.evaluate(state)

    def evaluate(self, state: TrainingState) -> dict[str, float]:
        """Evaluate now; records the figures, keeps the best agent, and tells the other callbacks."""
        env = self.eval_env if self.eval_env is not None else state.eval_env
        if isinstance(env, TradingEnvironment):
            found = evaluate_agent(state.agent, env, n_bootstrap=0).metrics
            metrics = {f"eval_{name}": found[name] for name in EVAL_METRICS}
            score = metrics["eval_sharpe"] = metrics.pop("eval_sharpe_ratio")
        else:
            rewards = evaluate_episodes(state.agent, env, n_episodes=self.n_eval_episodes, seed=state.config.seed + 1)
            score = float(rewards.mean())
            metrics = {"eval_episode_return": score}
        state.num_evaluations += 1
        state.last_evaluation = metrics
        state.record(**metrics)
        # An agent that never trades has no Sharpe ratio; it scores like cash.
        score = 0.0 if score != score else score
        if score > self.best_score:
            self.best_score = score
            if self.best_model_path is not None:
                state.agent.save(self.best_model_path)
        for callback in self.report_to:
            callback.on_eval(state, metrics)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and when it last evaluated."""
        return {"best_score": self.best_score, "evaluated_at": self.evaluated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on comparing."""
        self.best_score, self.evaluated_at = float(state["best_score"]), int(state["evaluated_at"])


EVAL_METRICS = ("sharpe_ratio", "total_return", "max_drawdown", "average_turnover", "cost_share", "mean_gross_exposure")


class TradingMetricsCallback(Callback):
    """Logs what traders look at, over the recent training episodes: Sharpe ratio, drawdown, win rate, return.

    Args:
        log_freq: timesteps between rows; a row is written only where an episode has ended since the last one.
    """

    def __init__(self, log_freq: int = 1_000) -> None:
        self.cadence = Cadence(log_freq, "log_freq")
        self.has_news = False
        self.logged_at = 0

    def on_episode_end(self, state: TrainingState, episode: EpisodeSummary) -> None:
        """Remember that there is something to say."""
        self.has_news = True

    def on_step(self, state: TrainingState) -> None:
        """Record when due."""
        if not self.has_news or not self.cadence.is_due(self.logged_at, state.num_timesteps):
            return
        self.has_news, self.logged_at = False, state.num_timesteps
        wins = [
            episode.total_return > 0.0
            for episode in state.recent_episodes
            if episode.total_return == episode.total_return
        ]
        state.record(
            rollout_sharpe=state.recent_mean("sharpe_ratio"),
            rollout_max_drawdown=state.recent_mean("max_drawdown"),
            rollout_total_return=state.recent_mean("total_return"),
            rollout_win_rate=sum(wins) / len(wins) if wins else float("nan"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return when it last spoke."""
        return {"has_news": self.has_news, "logged_at": self.logged_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.has_news, self.logged_at = bool(state["has_news"]), int(state["logged_at"])
