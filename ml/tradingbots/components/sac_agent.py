"""Soft Actor-Critic (Haarnoja et al., 2018, "Soft Actor-Critic Algorithms and Applications")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Adam

from ml.tradingbots.components.base_agent import OffPolicyAgent
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.components.networks import SquashedGaussianActor, TwinCritic, soft_update

# Far beyond what learns from prices: a digit too many must be a message, not a machine without memory.
MAX_HIDDEN_DIM = 65_536
MAX_LAYERS = 64


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Hyperparameters of SAC. Defaults follow the paper unless a comment says otherwise."""

    hidden_dim: int = 256
    """Width of every hidden layer."""
    n_layers: int = 2
    """Hidden layers of actor and critics."""
    learning_rate: float = 3e-4
    """Adam step size of actor, critics and temperature."""
    gamma: float = 0.99
    """Discount per environment step, in [0, 1)."""
    tau: float = 0.005
    """Share of the online critics mixed into the target critics per update."""
    buffer_size: int = 1_000_000
    """Transitions kept in the replay memory."""
    batch_size: int = 256
    """Transitions per gradient step."""
    learning_starts: int = 1_000
    """Environment timesteps of uniformly random actions before the first gradient step."""
    train_freq: int = 1
    """Vector steps between blocks of gradient steps."""
    gradient_steps: int = 1
    """Gradient steps per block."""
    auto_alpha: bool = True
    """Whether the temperature is tuned to hold the policy's entropy at `target_entropy`."""
    alpha: float = 1.0
    """Temperature: its first value when it is tuned, its only value otherwise. In units of (scaled) reward."""
    target_entropy: float | None = None
    """Entropy the temperature aims at, in nats over [−1, 1] actions; None is −action_dim, as in the paper."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must be in [0, 1), got {self.gamma}")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"tau must be in (0, 1], got {self.tau}")
        for name in ("learning_rate", "alpha"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("hidden_dim", "n_layers", "buffer_size", "batch_size", "train_freq", "gradient_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, most in (("hidden_dim", MAX_HIDDEN_DIM), ("n_layers", MAX_LAYERS)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if not 0 <= self.learning_starts <= self.buffer_size:
            raise ValueError(
                f"learning_starts ({self.learning_starts}) must be between 0 and buffer_size ({self.buffer_size}): "
                "beyond it the first transitions would be overwritten before they are learned from"
            )


class SACAgent(OffPolicyAgent):
    """Maximum-entropy actor-critic with twin critics and a tuned temperature, for continuous actions."""

    agent_type: ClassVar[str] = "sac"
    description: ClassVar[str] = "Soft Actor-Critic - state-of-the-art for continuous control"
    config_class: ClassVar[type] = SACConfig
    config: SACConfig

    def _build(self) -> None:
        config = self.config
        shape = (self.state_dim, self.action_dim, config.hidden_dim, config.n_layers)
        self.actor = SquashedGaussianActor(*shape).to(self.device)
        self.critic = TwinCritic(*shape).to(self.device)
        self.critic_target = TwinCritic(*shape).to(self.device).requires_grad_(False)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.log_alpha = torch.tensor(config.alpha, device=self.device).log().requires_grad_(config.auto_alpha)
        self.target_entropy = -float(self.action_dim) if config.target_entropy is None else config.target_entropy
        # Fused Adam must be asked for on a CPU, where the default is a Python loop over parameters.
        self.actor_optimizer = Adam(self.actor.parameters(), config.learning_rate, fused=True)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate, fused=True)
        self.alpha_optimizer = Adam([self.log_alpha], config.learning_rate, fused=True)
        self._actor_parameters = list(self.actor.parameters())
        self._critic_parameters = list(self.critic.parameters())
        self._target_parameters = list(self.critic_target.parameters())

    def _policy(self, observation: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            return self.actor.deterministic(observation)
        return self.actor.sample(observation, self.generator)[0]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on critics, actor and temperature, in the order of the paper's algorithm 1."""
        config = self.config
        alpha = self.log_alpha.detach().exp()

        # Critics: soft Bellman targets. Truncated transitions bootstrap; only terminated ones do not.
        with torch.no_grad():
            next_action, next_log_prob = self.actor.sample(batch.next_observation, self.generator)
            next_value = self.critic_target(batch.next_observation, next_action).amin(0) - alpha * next_log_prob
            target = batch.reward + config.gamma * (1.0 - batch.terminated) * next_value  # (batch,)
        value = self.critic(batch.observation, batch.action)  # (2, batch)
        critic_loss = 0.5 * (value - target).square().mean(1).sum()
        self.critic_optimizer.zero_grad()
        critic_loss.backward(inputs=self._critic_parameters)
        self.critic_optimizer.step()

        # Actor: the reparameterised policy climbs the smaller critic plus its entropy.
        action, log_prob = self.actor.sample(batch.observation, self.generator)
        actor_loss = (alpha * log_prob - self.critic(batch.observation, action).amin(0)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=self._actor_parameters)  # No gradient is spent on the critics.
        self.actor_optimizer.step()

        # Temperature: rises while the policy's entropy is below its target.
        entropy = -log_prob.detach().mean()
        if config.auto_alpha:
            self.log_alpha.grad = entropy - self.target_entropy
            self.alpha_optimizer.step()

        soft_update(self._target_parameters, self._critic_parameters, config.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "alpha": alpha,
            "entropy": entropy,
            "q_mean": value.detach().mean(),
        }

    def learned_state(self) -> dict[str, Any]:
        """Return networks, temperature and optimisers."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "critic_target": self.critic_target.state_dict(),
            "log_alpha": self.log_alpha.detach().clone(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Take over networks, temperature and optimisers."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.critic_target.load_state_dict(state["critic_target"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])  # In place: the optimiser holds this very tensor.
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
