"""A policy for one task of an agent that learned several: takes and gives what an agent of that task alone would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml.tradingbots.components.task_learners import TaskLearner


@dataclass(frozen=True, eq=False)
class MarketScale:
    """How a market's features are put on one scale before the networks see them: (x − mean)/std."""

    mean: Tensor
    """Of each entry of the window; float64 (window_dim,)."""
    std: Tensor
    """Of each entry of the window; float64 (window_dim,)."""


class TaskPolicy:
    """Acts for one task. It shares the networks of the agent that it was asked of, and learns as that agent does.

    Args:
        learner: the agent's learner.
        task: its task vector τ; float32 (n_tasks,), or one for each row of the batches it will be shown (batch, n_tasks).
        scale: how the task's market features are seen; None: as they are.
        specification: what the task's environment says about itself.
    """

    def __init__(
        self, learner: TaskLearner, task: Tensor, scale: MarketScale | None, specification: Mapping[str, Any]
    ) -> None:
        self.learner, self.task = learner, task.to(learner.device, torch.float32)
        self._scale = None
        if scale is not None:
            # As the environment scales its table, in float32: the same numbers, bit for bit.
            self._scale = tuple(values.to(learner.device, torch.float32) for values in (scale.mean, scale.std))
        self._specification = dict(specification)

    @property
    def agent_type(self) -> str:
        """Kind of agent that learned."""
        return self.learner.agent_type

    @property
    def config(self) -> Any:
        """Hyperparameters of the learner."""
        return self.learner.config

    @property
    def config_class(self) -> type:
        """Their class."""
        return self.learner.config_class

    @property
    def is_discrete(self) -> bool:
        """Whether actions are choices rather than numbers."""
        return self.learner.is_discrete

    @property
    def state_dim(self) -> int:
        """Length of the observations of its task."""
        return self.learner.state_dim - self.task.shape[-1]

    @property
    def action_dim(self) -> int:
        """As the learner's."""
        return self.learner.action_dim

    @property
    def environment_spec(self) -> dict[str, Any]:
        """What its environment says about itself, and until when the learner has seen prices, where that is known."""
        seen = self.learner.environment_spec.get("seen_until")
        return self._specification | ({} if seen is None else {"seen_until": seen})

    def select_action(self, observation: Any, deterministic: bool = False, *, action_mask: Any = None) -> Any:
        """Choose actions for raw observations of the task's environment; arguments and errors as `BaseAgent`'s.

        Args:
            observation: (state_dim,) or (batch, state_dim), NumPy or torch.
            deterministic: whether to take the policy's centre or best choice instead of drawing from it.
            action_mask: discrete agents only: which choices are legal.

        Raises:
            ValueError: the observation has another length, or is not finite.
        """
        is_tensor = isinstance(observation, Tensor)
        raw = observation if is_tensor else torch.from_numpy(np.array(observation, dtype=np.float32))
        if raw.shape[-1:] != (self.state_dim,) or raw.ndim > 2:
            raise ValueError(
                f"observation must have shape ({self.state_dim},) or (batch, {self.state_dim}), got {tuple(raw.shape)}"
            )
        shown = self._shown(raw.to(self.learner.device, torch.float32))
        return self.learner.select_action(
            shown if is_tensor else shown.cpu().numpy(), deterministic, action_mask=action_mask
        )

    def _shown(self, raw: Tensor) -> Tensor:
        """Return what the learner was trained to see: the window on its scale, and τ behind."""
        parts = [raw]
        if self._scale is not None:
            mean, std = self._scale
            parts = [(raw[..., : len(mean)] - mean) / std, raw[..., len(mean) :]]
        return torch.cat([*parts, self.task.expand(*raw.shape[:-1], -1)], -1)
