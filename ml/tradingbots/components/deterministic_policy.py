"""What TD3 and DDPG share: a deterministic policy that climbs a critic, and noise to explore with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import OffPolicyConfig, check_positive, check_share
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.exploration import OrnsteinUhlenbeckNoise
from ml.tradingbots.components.networks import Body, Critic, DeterministicActor
from ml.tradingbots.components.off_policy import OffPolicyAgent
from ml.tradingbots.components.optimizers import FusedAdam, descend
from ml.tradingbots.components.single_action import Perceptron, body_layers, linear


@dataclass(frozen=True, kw_only=True)
class DeterministicPolicyConfig(OffPolicyConfig):
    """Hyperparameters that TD3 and DDPG share."""

    learning_rate: float = 1e-3
    tau: float = 0.005
    """Share of the online networks mixed into the target networks per update of these."""
    exploration_noise: Literal["gaussian", "ornstein_uhlenbeck"] = "gaussian"
    """Noise on actions while collecting: a new draw at every step, or one that remembers where it was, starting at 0 in
    every episode."""
    noise_std: float = 0.1
    """Scale σ of that noise, actions being in [−1, 1]."""
    noise_theta: float = 0.15
    """Rate at which Ornstein–Uhlenbeck noise returns to 0, per unit of its time."""
    noise_time_step: float = 0.01
    """Its time per environment step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "tau")
        check_positive(self, "noise_theta", "noise_time_step")
        if self.noise_std < 0.0:
            raise ValueError(f"noise_std must be at least 0, got {self.noise_std}")


class DeterministicPolicyAgent(OffPolicyAgent):
    """A deterministic actor, `n_critics` critics and targets of both. Subclasses own one `update` and its critic loss."""

    learned: ClassVar[tuple[str, ...]] = (
        "actor",
        "actor_target",
        "critic",
        "critic_target",
        "actor_optimizer",
        "critic_optimizer",
    )
    derived: ClassVar[tuple[str, ...]] = (
        *OffPolicyAgent.derived,
        "_actor_parameters",
        "_critic_parameters",
        "_online_parameters",
        "_target_parameters",
        "_critic_step",
        "_actor_step",
    )
    n_critics: ClassVar[int]
    config: Any
    noise: OrnsteinUhlenbeckNoise | None = None
    _critic_loss: Callable[..., tuple[Tensor, Tensor]]

    def _build(self) -> None:
        config = self.config
        self.actor, self.actor_target = (
            DeterministicActor(Body(self._encoder(), config.widths, config.activation), self.action_dim).to(self.device)
            for _ in range(2)
        )
        self.critic, self.critic_target = (
            Critic(
                self._encoder(),
                self.action_dim,
                config.widths,
                activation=config.activation,
                n_critics=self.n_critics,
            ).to(self.device)
            for _ in range(2)
        )
        self.actor_target.requires_grad_(False).load_state_dict(self.actor.state_dict())
        self.critic_target.requires_grad_(False).load_state_dict(self.critic.state_dict())
        self.actor_optimizer = FusedAdam(self.actor.parameters(), config.learning_rate)
        self.critic_optimizer = FusedAdam(self.critic.parameters(), config.learning_rate)

    def _prepare(self) -> None:
        self._actor_parameters = list(self.actor.parameters())
        self._critic_parameters = list(self.critic.parameters())
        self._online_parameters = [*self._actor_parameters, *self._critic_parameters]
        self._target_parameters = [*self.actor_target.parameters(), *self.critic_target.parameters()]
        self._critic_step = self._compiled(self._critic_loss)
        self._actor_step = self._compiled(self._actor_loss)

    def _perceptron(self) -> Perceptron:
        return Perceptron(
            body_layers(self.actor.body), linear(self.actor.head), self.config.activation, "squash", noise="after"
        )

    def _noise_scale(self) -> float:
        return float(self.config.noise_std)

    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the policy's action; (batch, action_dim)."""
        action: Tensor = self.actor(observation)
        return action

    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the policy's action with independent Gaussian noise of `noise_std`; (batch, action_dim)."""
        action = self.actor(observation)
        noise = torch.randn(action.shape, generator=self.generator, device=self.device)
        noisy: Tensor = action + self.config.noise_std * noise
        return noisy.clamp(-1.0, 1.0)

    def _improve_policy(self, batch: Batch) -> Tensor:
        """Let the policy climb the first critic; returns its loss."""
        loss: Tensor = self._actor_step(batch.observation)
        descend(loss, self._actor_parameters, self.actor_optimizer, self.config.max_grad_norm)
        return loss.detach()

    def _actor_loss(self, observation: Tensor) -> Tensor:
        return -self.critic.first(observation, self.actor(observation), frozen=True).mean()

    # Exploration: noise on the policy's actions.

    def _begin_exploring(self, n_envs: int) -> None:
        config = self.config
        if config.exploration_noise == "ornstein_uhlenbeck":
            self.noise = OrnsteinUhlenbeckNoise(
                n_envs,
                self.action_dim,
                sigma=config.noise_std,
                theta=config.noise_theta,
                time_step=config.noise_time_step,
                device=self.device,
            )

    def _exploring_policy(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        if self.noise is None:
            return self.stochastic_policy(observation)
        return (self.deterministic_policy(observation) + self.noise.draw(self.generator)).clamp(-1.0, 1.0)

    def _after_step(self, terminated: Tensor, truncated: Tensor) -> None:
        if self.noise is not None:
            self.noise.reset(terminated | truncated)

    def _exploration_state(self) -> dict[str, Tensor]:
        return {} if self.noise is None else {"value": self.noise.value}

    def _load_exploration_state(self, state: dict[str, Tensor]) -> None:
        if self.noise is not None:
            self.noise.value = state["value"].to(self.device)
