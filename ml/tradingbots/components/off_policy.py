"""How agents with a replay memory collect and learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ml.tradingbots.components.agent_spaces import present_mask, saved_mask_dim
from ml.tradingbots.components.base_agent import BaseAgent, StepReport
from ml.tradingbots.components.buffers import Batch, IndexedObservations, ReplayBuffer
from ml.tradingbots.components.exploration import uniform_actions, uniform_choices
from ml.tradingbots.components.serialization import check_like


class OffPolicyAgent(BaseAgent):
    """An agent that learns from a replay memory. Subclasses own `_build`, their policies and one `update`."""

    kept_on_load: ClassVar[tuple[str, ...]] = (*BaseAgent.kept_on_load, "replay")
    replay: ReplayBuffer | None

    def __init__(self, state_dim: int, action_dim: int, config: Any, *, device: str = "cpu", seed: int = 0) -> None:
        self.replay = None
        super().__init__(state_dim, action_dim, config, device=device, seed=seed)

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on normalised observations; returns figures as 0-dimensional tensors."""

    def training_steps(
        self, env: Any, *, batch_size: int | None = None, observation: Tensor | None = None
    ) -> Iterator[StepReport]:
        """Walk, remember and learn; see `BaseAgent.training_steps`."""
        config, n_envs = self.config, env.num_envs
        batch_size = batch_size or config.batch_size
        source = env if isinstance(env, IndexedObservations) else None
        starts_over = observation is None
        if observation is None:
            observation, infos = env.reset()
            mask = infos.get("action_mask")
            self.normalizer.update(observation)
            self._begin_exploring(n_envs)
        else:
            mask = present_mask(env)
        mask_dim = self.action_dim if self.is_discrete and mask is not None else 0
        if self.replay is None or self.replay.mask_dim != mask_dim or not self._remembers(env):
            self.replay = self._new_replay(env, mask_dim)
        elif starts_over:
            self.replay.cut()
        replay = self.replay
        vector_step = self.num_timesteps // n_envs
        losses: dict[str, Tensor] | None = None
        while True:
            self._before_step(vector_step)
            action = self._explore(observation, mask)
            bar, key = (source.bar, source.account_features()) if source is not None else (None, observation)
            next_observation, reward, terminated, truncated, infos = env.step(self.to_environment(action))
            if source is not None:
                next_key = infos["next_account"]
            else:
                next_key = infos.get("final_obs", next_observation)
                self.normalizer.update(next_observation)
            replay.add(
                key,
                action,
                reward,
                next_key,
                terminated,
                bar,
                truncated=truncated,
                next_mask=infos.get("next_action_mask") if replay.mask_dim else None,
            )
            self._after_step(terminated, truncated)
            observation, mask = next_observation, infos.get("action_mask")
            self.num_timesteps += n_envs
            vector_step += 1
            # An agent that is trained again begins with an empty memory: it, too, must fill before it is learned from.
            filled = replay.size >= min(config.learning_starts, replay.capacity)
            if filled and self.num_timesteps > config.learning_starts and vector_step % config.train_freq == 0:
                losses = self._learn(batch_size)
            yield StepReport(self.num_timesteps, reward, infos, losses)

    def _learn(self, batch_size: int) -> dict[str, Tensor]:
        """Take a block of gradient steps."""
        assert self.replay is not None
        config = self.config
        if self.scale_rewards and self.num_updates == 0:
            self._find_reward_scale(self.replay)
        self._follow_schedule()
        n_steps = config.gradient_steps if config.gradient_steps > 0 else config.train_freq * self.replay.n_envs
        for _ in range(n_steps):
            losses = self.update(self._sample(batch_size))
            self.num_updates += 1
        return losses

    def _find_reward_scale(self, replay: ReplayBuffer) -> None:
        """Choose what rewards are multiplied by, from those of the first actions."""
        self.reward_scale = inverse_deviation(replay.rewards())

    def memory_state(self) -> dict[str, Any] | None:
        """Return replay memory and exploration; None before training."""
        if self.replay is None:
            return None
        return {"replay": self.replay.state_dict(), "exploration": self._exploration_state()}

    def restore_memory(self, env: Any, state: dict[str, Any] | None) -> None:
        """Take over replay memory and exploration; None leaves them to be made when training starts."""
        self.replay = None
        if state is not None:
            has_masks = saved_mask_dim(state["replay"].get("next_masks")) > 0
            self.replay = self._new_replay(env, self.action_dim if has_masks else 0)
            self.replay.load_state_dict(state["replay"])
            self._check_choices(self.replay.actions())
            generator = self.generator.get_state()
            self._begin_exploring(env.num_envs)  # May draw, which the run that goes on did not.
            self.generator.set_state(generator)
            check_like(state["exploration"], self._exploration_state(), "exploration")
            self._load_exploration_state(state["exploration"])

    def _remembers(self, env: Any) -> bool:
        """Whether the replay memory is one of this environment."""
        assert self.replay is not None
        indexed = isinstance(env, IndexedObservations)
        return self.replay.n_envs == env.num_envs and (not indexed or self.replay.source is env)

    def _new_replay(self, env: Any, mask_dim: int) -> ReplayBuffer:
        return ReplayBuffer.for_env(env, self.config.buffer_size, self.action_dim, device=self.device)

    def _begin_exploring(self, n_envs: int) -> None:
        """Make what exploration remembers of `n_envs` accounts; nothing by default."""

    def _before_step(self, vector_step: int) -> None:
        """Hook before every vector step."""

    def _after_step(self, terminated: Tensor, truncated: Tensor) -> None:
        """Hook after every vector step."""

    def _exploration_state(self) -> dict[str, Tensor]:
        """What exploration remembers, for a run that is cut."""
        return {}

    def _load_exploration_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `_exploration_state` returned."""

    def _explore(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        """Return actions for collecting: uniform before `learning_starts`, then the agent's own."""
        n_envs = observation.shape[0]
        if self.num_timesteps < self.config.learning_starts:
            if self.is_discrete:
                return uniform_choices(n_envs, self.n_branches, self.action_dim, self.generator, self.device, mask)
            return uniform_actions(n_envs, self.action_dim, self.generator, self.device)
        with torch.inference_mode():
            action = self._exploring_policy(self.normalizer(observation), mask)
        return action.clone()

    def _exploring_policy(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        return self.stochastic_policy(observation, mask)

    def _sample(self, batch_size: int) -> Batch:
        """Draw a batch as the networks see it: observations normalised, rewards scaled."""
        assert self.replay is not None
        batch = self.replay.sample(batch_size, self.generator)
        return self._as_seen(batch)

    def _as_seen(self, batch: Batch) -> Batch:
        return Batch(
            self.normalizer(batch.observation),
            batch.action,
            batch.reward * self.reward_scale,
            self.normalizer(batch.next_observation),
            batch.terminated,
            batch.discount,
            batch.weight,
            batch.index,
            batch.next_mask,
        )


def inverse_deviation(rewards: Tensor) -> float:
    """Return one over the standard deviation of rewards; 1 where they do not differ."""
    deviation = float(rewards.double().std()) if len(rewards) > 1 else 0.0
    return 1.0 / deviation if deviation > 1e-12 else 1.0
