"""Soft Actor-Critic (Haarnoja et al., 2018, "Soft Actor-Critic Algorithms and Applications")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import OffPolicyConfig, check_gsde, check_positive, check_share
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.exploration import StateDependentNoise
from ml.tradingbots.components.networks import GSDE_MEAN_BOUND, Body, Critic, SquashedGaussianActor, soft_update
from ml.tradingbots.components.off_policy import OffPolicyAgent
from ml.tradingbots.components.optimizers import FusedAdam, descend
from ml.tradingbots.components.single_action import Perceptron, body_layers, linear


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Hyperparameters of SAC. Defaults follow the paper unless a comment says otherwise."""

    tau: float = 0.005
    """Share of the online critics mixed into the target critics per update."""
    auto_alpha: bool = True
    """Whether the temperature is tuned to hold the policy's entropy at `target_entropy`."""
    alpha: float = 1.0
    """Temperature: its first value when it is tuned, its only value otherwise. In units of (scaled) reward."""
    target_entropy: float | None = None
    """Entropy the temperature aims at, in nats over [−1, 1] actions; None is −action_dim, as in the paper."""
    gsde: bool = False
    """Whether exploration noise depends on the state and stays for a while (Raffin et al., 2021)."""
    gsde_sample_freq: int = -1
    """Vector steps between draws of that noise; −1 draws once per `train_freq`."""
    log_std_init: float = -3.0
    """First logarithm of the standard deviation of that noise's matrix; used with `gsde` only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "tau")
        check_positive(self, "alpha")
        check_gsde(self)


class SACAgent(OffPolicyAgent):
    """Maximum-entropy actor-critic with twin critics and a tuned temperature, for continuous actions."""

    agent_type: ClassVar[str] = "sac"
    description: ClassVar[str] = "Soft Actor-Critic - state-of-the-art for continuous control"
    config_class: ClassVar[type[OffPolicyConfig]] = SACConfig
    learned: ClassVar[tuple[str, ...]] = (
        "actor",
        "critic",
        "critic_target",
        "log_alpha",
        "actor_optimizer",
        "critic_optimizer",
        "alpha_optimizer",
    )
    derived: ClassVar[tuple[str, ...]] = (
        *OffPolicyAgent.derived,
        "_actor_parameters",
        "_critic_parameters",
        "_target_parameters",
        "_critic_step",
        "_actor_step",
    )
    config: SACConfig
    noise: StateDependentNoise | None = None

    def _build(self) -> None:
        config = self.config
        body = Body(self._encoder(), config.widths, config.activation)
        self.actor = SquashedGaussianActor(
            body, self.action_dim, gsde=config.gsde, log_std_init=config.log_std_init
        ).to(self.device)
        self.critic, self.critic_target = (
            Critic(self._encoder(), self.action_dim, config.widths, activation=config.activation, n_critics=2).to(
                self.device
            )
            for _ in range(2)
        )
        self.critic_target.requires_grad_(False).load_state_dict(self.critic.state_dict())
        self.log_alpha = torch.tensor(config.alpha, device=self.device).log().requires_grad_(config.auto_alpha)
        self.target_entropy = -float(self.action_dim) if config.target_entropy is None else config.target_entropy
        self.actor_optimizer = FusedAdam(self.actor.parameters(), config.learning_rate)
        self.critic_optimizer = FusedAdam(self.critic.parameters(), config.learning_rate)
        self.alpha_optimizer = FusedAdam([self.log_alpha], config.learning_rate)

    def _prepare(self) -> None:
        self._actor_parameters = list(self.actor.parameters())
        self._critic_parameters = list(self.critic.parameters())
        self._target_parameters = list(self.critic_target.parameters())
        self._critic_step = self._compiled(self._critic_loss)
        self._actor_step = self._compiled(self._actor_loss)

    def _perceptron(self) -> Perceptron:
        layers, head = body_layers(self.actor.body), linear(self.actor.head)
        if self.config.gsde:
            return Perceptron(layers, head, self.config.activation, "squash", bound=GSDE_MEAN_BOUND)
        return Perceptron(layers, head, self.config.activation, "squash", n_outputs=self.action_dim, noise="before")

    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the squashed mean; (batch, action_dim)."""
        return self.actor.deterministic(observation)

    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Draw actions; (batch, action_dim)."""
        return self.actor.sample(observation, self._normal(len(observation)))[0]

    def _normal(self, batch: int) -> Tensor:
        return torch.randn((batch, self.action_dim), generator=self.generator, device=self.device)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on critics, actor and temperature, in the order of the paper's algorithm 1."""
        config = self.config
        alpha = self.log_alpha.detach().exp()

        critic_loss, value = self._critic_step(batch, alpha, self._normal(len(batch.reward)))
        descend(critic_loss, self._critic_parameters, self.critic_optimizer, config.max_grad_norm)
        actor_loss, entropy = self._actor_step(batch.observation, alpha, self._normal(len(batch.reward)))
        descend(actor_loss, self._actor_parameters, self.actor_optimizer, config.max_grad_norm)

        # Temperature: rises while the policy's entropy is below its target.
        if config.auto_alpha:
            self.log_alpha.grad = entropy - self.target_entropy
            self.alpha_optimizer.advance()

        soft_update(self._target_parameters, self._critic_parameters, config.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "alpha": alpha,
            "entropy": entropy,
            "q_mean": value,
        }

    def _critic_loss(self, batch: Batch, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Soft Bellman error; truncated transitions bootstrap, only terminated ones do not."""
        with torch.no_grad():
            next_action, next_log_prob = self.actor.sample(batch.next_observation, noise)
            next_value = self.critic_target(batch.next_observation, next_action).amin(0) - alpha * next_log_prob
            target = batch.reward + self.config.gamma * (1.0 - batch.terminated) * next_value  # (batch,)
        value = self.critic(batch.observation, batch.action)  # (2, batch)
        return 0.5 * (value - target).square().mean(1).sum(), value.detach().mean()

    def _actor_loss(self, observation: Tensor, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reparameterised policy climbs the smaller critic plus its entropy."""
        action, log_prob = self.actor.sample(observation, noise)
        loss = (alpha * log_prob - self.critic(observation, action, frozen=True).amin(0)).mean()
        return loss, -log_prob.detach().mean()

    # State-dependent exploration: one matrix per account, drawn anew now and then.

    def _begin_exploring(self, n_envs: int) -> None:
        if self.config.gsde:
            self.noise = StateDependentNoise(n_envs, self.actor.body.output_dim, self.action_dim, self.device)
            self.noise.renew(self.generator)

    def _before_step(self, vector_step: int) -> None:
        config = self.config
        period = config.train_freq if config.gsde_sample_freq == -1 else config.gsde_sample_freq
        if config.gsde and self.noise is not None and vector_step % period == 0:
            self.noise.renew(self.generator)

    def _exploring_policy(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        if self.noise is None or not self.config.gsde:  # A file without gSDE may have been loaded into a run with it.
            return self.stochastic_policy(observation)
        return self.actor.explore(observation, self.noise.matrices)

    def _exploration_state(self) -> dict[str, Tensor]:
        return {} if self.noise is None else {"matrices": self.noise.matrices}

    def _load_exploration_state(self, state: dict[str, Tensor]) -> None:
        if self.noise is not None:
            self.noise.matrices = state["matrices"].to(self.device)
