"""The six agents as learners of several tasks: told which task an observation is of, each task's rewards on its own scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.buffers import Batch, ReplayBuffer
from ml.tradingbots.components.encoders import make_encoder
from ml.tradingbots.components.explicit_gradients import PolicyGradient
from ml.tradingbots.components.normalization import CLIP, RunningMeanStd
from ml.tradingbots.components.off_policy import OffPolicyAgent, inverse_deviation
from ml.tradingbots.components.on_policy import OnPolicyAgent
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.components.rollouts import Rollout, inverse_of
from ml.tradingbots.components.task_gradients import with_surgery
from ml.tradingbots.components.task_networks import TaskEncoder, TaskLayout

# Losses of the agents, and the parameters that go down each.
_LOSSES = {
    "_loss_step": "_parameters",
    "_critic_step": "_critic_parameters",
    "_actor_step": "_actor_parameters",
}
# Rows of a replay memory that are rebuilt at a time to see which tasks they are of.
_CHUNK = 16_384


class TaskStatistics:
    """Running statistics of every task's discounted sums of rewards."""

    def __init__(self, n_tasks: int) -> None:
        self.each = [RunningMeanStd() for _ in range(n_tasks)]

    def state_dict(self) -> dict[str, Any]:
        """Return them."""
        return {"tasks": [statistics.state_dict() for statistics in self.each]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved ones; raises ValueError where a variance or a count is negative."""
        for statistics, saved in zip(self.each, state["tasks"], strict=True):
            statistics.load_state_dict(saved)


class TaskLearner(BaseAgent):
    """What learners of several tasks share. The last `n_tasks` entries of an observation are its task vector τ.

    Attributes:
        task_scales: what each task's rewards are multiplied by; float32 (n_tasks,).
    """

    task_layout: ClassVar[TaskLayout]
    _explicit: PolicyGradient | None

    def _build(self) -> None:
        super()._build()  # type: ignore[safe-super]
        self.task_scales = torch.ones(self.task_layout.n_tasks, device=self.device)

    def _encoder(self) -> nn.Module:
        config = self.config
        inner = make_encoder(config.network, self._shown_dim, self.window, config.hidden_dim)
        return TaskEncoder(inner, self.task_layout, config.activation)

    def _prepare(self) -> None:
        super()._prepare()
        # Gradients written by hand are those of plain perceptrons.
        self._explicit = None
        if self.task_layout.gradients == "pcgrad":
            for step, parameters in _LOSSES.items():
                if hasattr(self, step):
                    setattr(self, step, self._with_surgery(getattr(self, step), getattr(self, parameters)))

    def _with_surgery(self, step: Callable[..., Any], parameters: list[Tensor]) -> Callable[..., Any]:
        return with_surgery(step, parameters, self.task_layout.n_tasks, self.generator)

    def _become_ready(self) -> None:
        # Without the path for single actions, which knows plain perceptrons only.
        self._prepare()
        self._single_action = None

    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Take over what `learned_state` returned.

        Raises:
            ValueError: a scale of rewards is not positive.
        """
        if not bool((state["task_scales"] > 0.0).all()):
            raise ValueError("task_scales must be positive")
        super().load_learned_state(state)

    @property
    def _scales_apart(self) -> bool:
        return self.task_layout.return_scaling == "per_task"

    def _task_of(self, observation: Tensor) -> Tensor:
        """Number of the task of each raw observation; the last axis goes."""
        return observation[..., -self.task_layout.n_tasks :].argmax(-1)


class OnPolicyTaskLearner(TaskLearner, OnPolicyAgent):
    """Rewards divided by the running deviation of their own task's discounted sums."""

    def _build(self) -> None:
        super()._build()
        self.task_statistics = TaskStatistics(self.task_layout.n_tasks)

    def _scaled_rewards(self, rollout: Rollout) -> Tensor:
        if not self._scales_apart:
            return super()._scaled_rewards(rollout)
        task = self._task_of(rollout.observation[0])  # Accounts keep their tasks; (n_envs,).
        if self.scale_rewards and self.scaler is not None:
            totals = self.scaler.totals(rollout.reward, rollout.terminated | rollout.truncated)
            for number, statistics in enumerate(self.task_statistics.each):
                statistics.update(totals[:, task == number].flatten())
                self.task_scales[number] = inverse_of(statistics) if statistics.count else 1.0
        if self.scale_rewards or bool((self.task_scales != 1.0).any()):
            return (rollout.reward * self.task_scales[task]).clamp(-CLIP, CLIP)
        return rollout.reward


class OffPolicyTaskLearner(TaskLearner, OffPolicyAgent):
    """Rewards divided by the deviation of their own task's under the first random actions, as batches are drawn."""

    def _find_reward_scale(self, replay: ReplayBuffer) -> None:
        if not self._scales_apart:
            super()._find_reward_scale(replay)
            return
        rewards, task = replay.rewards(), self._tasks_of(replay)
        for number in range(self.task_layout.n_tasks):
            self.task_scales[number] = inverse_deviation(rewards[task == number])

    def _tasks_of(self, replay: ReplayBuffer) -> Tensor:
        """Number of the task of every transition in a memory; (size,)."""
        keys, bars = replay.rows[: replay.size, : replay.key_dim], replay.bars[: replay.size].long()
        if replay.source is None:
            return self._task_of(keys)
        chunks = zip(torch.split(bars, _CHUNK), torch.split(keys, _CHUNK), strict=True)
        return torch.cat([self._task_of(replay.source.gather(bar, key)) for bar, key in chunks])

    def _as_seen(self, batch: Batch) -> Batch:
        seen = super()._as_seen(batch)
        return dataclasses.replace(seen, reward=seen.reward * self.task_scales[self._task_of(batch.observation)])


@cache
def task_learner_class(agent_type: str, layout: TaskLayout) -> type[BaseAgent]:
    """Return the class of learners of several tasks that is made from one of the agents.

    Args:
        agent_type: a name of `list_available_agents()`.
        layout: how its networks are divided among its tasks.
    """
    agent = AGENTS[agent_type]
    on_policy = issubclass(agent, OnPolicyAgent)
    own = ("task_scales", "task_statistics") if on_policy else ("task_scales",)
    members = {
        "__doc__": agent.__doc__,
        "agent_type": f"multitask_{agent_type}",
        "learned": (*agent.learned, *own),
        "task_layout": layout,
    }
    return type(f"Task{agent.__name__}", (OnPolicyTaskLearner if on_policy else OffPolicyTaskLearner, agent), members)
