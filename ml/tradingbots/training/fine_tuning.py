"""Fine-tuning in a run of `train_rl_agent`: frozen modules and rates by timestep, after a resume too."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ml.tradingbots.components.freezing import FreezingSchedule, anchors_of
from ml.tradingbots.components.policy_scores import Score
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.training.callbacks import Callback
from ml.tradingbots.training.training_state import TrainingState


class FineTuning(Callback):
    """Sets the rates of an agent's optimisers as a `FreezingSchedule` says, over the timesteps of the run.

    Give it to `train_rl_agent` with an agent from `TransferLearningTrainer.student` and
    `RLTrainingConfig(normalize_observations=False, normalize_rewards=student.scale_rewards)`, which leave the scales as the
    trainer chose them.

    Args:
        schedule: what stands still until when; its shares are of `total_timesteps`.
    """

    def __init__(self, schedule: FreezingSchedule) -> None:
        self.schedule = schedule
        self.anchors: dict[str, Tensor] | None = None
        self.share = 0.0

    def on_training_start(self, state: TrainingState) -> None:
        """Set the rates; a resumed agent comes from a file, which knows nothing of them."""
        if state.config.total_timesteps is None:
            raise ValueError("fine-tuning needs a budget in timesteps: give RLTrainingConfig(total_timesteps=...)")
        if self.schedule.l2_sp and self.anchors is None:
            self.anchors = anchors_of(state.agent)
        self.share = self._share(state)
        self.schedule.apply(state.agent, self.share, self.anchors)

    def on_step(self, state: TrainingState) -> None:
        """Let modules move when their time has come."""
        before, self.share = self.share, self._share(state)
        if self.schedule.changes(before, self.share):
            self.schedule.apply(state.agent, self.share, self.anchors)

    def on_training_end(self, state: TrainingState) -> None:
        """Free everything: who trains the agent on is to find it so."""
        FreezingSchedule(freeze=()).apply(state.agent)

    def state_dict(self) -> dict[str, Any]:
        """Return what the weights are pulled towards, and the schedule."""
        anchors = None if self.anchors is None else {name: w.clone() for name, w in self.anchors.items()}
        return {"anchors": anchors, "schedule": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what fine-tuning began with.

        Raises:
            ValueError: it is not what was saved, or was saved with another schedule.
        """
        saved, own = state["schedule"], self._settings()
        if not isinstance(saved, dict) or saved.keys() != own.keys():
            raise ValueError("schedule must be the settings of a FreezingSchedule by name")
        if changed := [f"{name} was {saved[name]!r}, now {own[name]!r}" for name in own if saved[name] != own[name]]:
            raise ValueError(
                f"the fine-tuning was begun with another schedule: {'; '.join(changed)}. Resume it with the same one"
            )
        anchors = state["anchors"]
        if anchors is not None and not (
            isinstance(anchors, dict) and all(isinstance(value, Tensor) for value in anchors.values())
        ):
            raise ValueError("anchors must be tensors by name")
        self.anchors = anchors

    def _settings(self) -> dict[str, Any]:
        """Return the schedule as plain values."""
        return dataclasses.asdict(self.schedule) | {
            "freeze": list(self.schedule.freeze),
            "unfreeze_at": [[share, list(names)] for share, names in self.schedule.unfreeze_at.items()],
        }

    def _share(self, state: TrainingState) -> float:
        assert state.config.total_timesteps is not None
        return min(state.num_timesteps / state.config.total_timesteps, 1.0)


class ScoreCurve(Callback):
    """Scores the deterministic policy at regular timesteps and before the first: a learning curve, kept over a resume.

    Args:
        score: of agent and environment.
        env: prices to score on.
        frequency: timesteps between scores.
    """

    def __init__(self, score: Score, env: TradingEnvironment, frequency: int) -> None:
        if frequency < 1:
            raise ValueError(f"frequency must be at least 1 timestep, got {frequency}")
        self.score, self.env, self.frequency = score, env, frequency
        self.points: dict[int, float] = {}

    def on_training_start(self, state: TrainingState) -> None:
        """Score what has not learned yet."""
        if state.num_timesteps == 0:
            self.points[0] = self._rate(state)

    def on_step(self, state: TrainingState) -> None:
        """Score when due."""
        last = max(self.points, default=0)
        if state.num_timesteps // self.frequency > last // self.frequency:
            self.points[state.num_timesteps] = self._rate(state)

    def on_training_end(self, state: TrainingState) -> None:
        """Score the last agent."""
        if state.num_timesteps not in self.points:
            self.points[state.num_timesteps] = self._rate(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the curve."""
        return {"timesteps": list(self.points), "scores": list(self.points.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the curve."""
        self.points = {int(n): float(value) for n, value in zip(state["timesteps"], state["scores"], strict=True)}

    def _rate(self, state: TrainingState) -> float:
        with torch.no_grad():
            return self.score(state.agent, self.env)
