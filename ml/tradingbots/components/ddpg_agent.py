"""DDPG (Lillicrap et al., 2016, "Continuous Control with Deep Reinforcement Learning")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import AgentConfig
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.deterministic_policy import DeterministicPolicyAgent, DeterministicPolicyConfig
from ml.tradingbots.components.networks import soft_update
from ml.tradingbots.components.optimizers import descend


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(DeterministicPolicyConfig):
    """Hyperparameters of DDPG. Defaults follow the paper unless a comment says otherwise."""

    exploration_noise: Literal["ornstein_uhlenbeck", "gaussian"] = "ornstein_uhlenbeck"
    """Noise on actions while collecting: one that remembers where it was, starting at 0 in every episode, or a new draw at
    every step."""
    noise_std: float = 0.2


class DDPGAgent(DeterministicPolicyAgent):
    """Deterministic policy and one critic, for continuous actions."""

    agent_type: ClassVar[str] = "ddpg"
    description: ClassVar[str] = "Deep Deterministic Policy Gradient - continuous control"
    config_class: ClassVar[type[AgentConfig]] = DDPGConfig
    n_critics: ClassVar[int] = 1
    config: DDPGConfig

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on the critic, one on the policy, and move the targets (algorithm 1)."""
        critic_loss, value = self._critic_step(batch)
        descend(critic_loss, self._critic_parameters, self.critic_optimizer, self.config.max_grad_norm)
        actor_loss = self._improve_policy(batch)
        soft_update(self._target_parameters, self._online_parameters, self.config.tau)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss, "q_mean": value}

    def _critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared error of the critic against the target networks' value of the next observation."""
        with torch.no_grad():
            next_value = self.critic_target(batch.next_observation, self.actor_target(batch.next_observation))[0]
            target = batch.reward + self.config.gamma * (1.0 - batch.terminated) * next_value  # (batch,)
        value = self.critic(batch.observation, batch.action)[0]  # (batch,)
        return (value - target).square().mean(), value.detach().mean()
