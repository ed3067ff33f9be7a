"""TD3 (Fujimoto et al., 2018, "Addressing Function Approximation Error in Actor-Critic Methods")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import AgentConfig, check_at_least_one
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.deterministic_policy import DeterministicPolicyAgent, DeterministicPolicyConfig
from ml.tradingbots.components.networks import soft_update
from ml.tradingbots.components.optimizers import descend


@dataclass(frozen=True, kw_only=True)
class TD3Config(DeterministicPolicyConfig):
    """Hyperparameters of TD3. Defaults follow the paper unless a comment says otherwise."""

    policy_delay: int = 2
    """Updates of the critics per update of the policy and of all targets."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target policy's actions, which are in [−1, 1]."""
    target_noise_clip: float = 0.5
    """Largest size of that noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "policy_delay")
        for name in ("target_noise", "target_noise_clip"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


class TD3Agent(DeterministicPolicyAgent):
    """Deterministic policy with twin critics, delayed policy updates and target smoothing, for continuous actions."""

    agent_type: ClassVar[str] = "td3"
    description: ClassVar[str] = "Twin Delayed DDPG - twin critics with delayed policy updates"
    config_class: ClassVar[type[AgentConfig]] = TD3Config
    # The loss of the policy's last step is logged on the steps between, after a resume too.
    learned: ClassVar[tuple[str, ...]] = (*DeterministicPolicyAgent.learned, "actor_loss")
    n_critics: ClassVar[int] = 2
    config: TD3Config

    def _build(self) -> None:
        super()._build()
        self.actor_loss = torch.zeros((), device=self.device)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on the critics and, every `policy_delay` steps, one on the policy (algorithm 1)."""
        config = self.config
        noise = torch.randn(batch.action.shape, generator=self.generator, device=self.device)
        critic_loss, value = self._critic_step(batch, noise)
        descend(critic_loss, self._critic_parameters, self.critic_optimizer, config.max_grad_norm)
        # Counted from one, over the agent's life: the delayed steps are every second of all steps.
        if (self.num_updates + 1) % config.policy_delay == 0:
            self.actor_loss = self._improve_policy(batch)
            soft_update(self._target_parameters, self._online_parameters, config.tau)
        return {"critic_loss": critic_loss.detach(), "actor_loss": self.actor_loss, "q_mean": value}

    def _critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors of both critics against the smaller target value, smoothed over similar actions."""
        config = self.config
        with torch.no_grad():
            smoothing = (config.target_noise * noise).clamp(-config.target_noise_clip, config.target_noise_clip)
            next_action = (self.actor_target(batch.next_observation) + smoothing).clamp(-1.0, 1.0)
            next_value = self.critic_target(batch.next_observation, next_action).amin(0)
            target = batch.reward + config.gamma * (1.0 - batch.terminated) * next_value  # (batch,)
        value = self.critic(batch.observation, batch.action)  # (2, batch)
        return (value - target).square().mean(1).sum(), value.detach().mean()
