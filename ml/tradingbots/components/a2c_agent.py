"""Advantage Actor-Critic (Mnih et al., 2016, "Asynchronous Methods for Deep Reinforcement Learning"), synchronous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ml.tradingbots.components.agent_config import AgentConfig, OnPolicyConfig, check_at_least_one, check_positive
from ml.tradingbots.components.explicit_gradients import PolicyGradient
from ml.tradingbots.components.on_policy import Experience, OnPolicyAgent
from ml.tradingbots.components.optimizers import FusedAdam, ListedOptimizer, RMSprop


@dataclass(frozen=True, kw_only=True)
class A2CConfig(OnPolicyConfig):
    """Hyperparameters of A2C. Defaults follow the paper unless a comment says otherwise."""

    learning_rate: float = 7e-4
    n_steps: int = 5
    """Steps of every account per gradient step."""
    gae_lambda: float = 1.0
    normalize_advantages: bool = False
    optimizer: Literal["rmsprop_inside", "rmsprop", "adam"] = "rmsprop_inside"
    """"rmsprop_inside" divides by √(v + ε), as the paper and TensorFlow do; "rmsprop" by √v + ε, as PyTorch does: where
    gradients are small, steps are up to 1/√ε smaller with the former."""
    rms_decay: float = 0.99
    """Share of the running mean of squared gradients that is kept per step."""
    epsilon: float = 1e-5
    """ε of the optimiser."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "n_steps")
        check_positive(self, "epsilon")
        if not 0.0 < self.rms_decay < 1.0:
            raise ValueError(f"rms_decay must be in (0, 1), got {self.rms_decay}")


class A2CAgent(OnPolicyAgent):
    """Actor-critic that takes one gradient step per short rollout, for continuous and discrete actions."""

    agent_type: ClassVar[str] = "a2c"
    description: ClassVar[str] = "Advantage Actor-Critic - simpler synchronous variant of PPO"
    config_class: ClassVar[type[AgentConfig]] = A2CConfig
    explicit_form_of: ClassVar[tuple[str, ...]] = (*OnPolicyAgent.explicit_form_of, "_advantage")
    needs_log_prob: ClassVar[bool] = False
    config: A2CConfig

    def _new_optimizer(self, parameters: list[Tensor]) -> ListedOptimizer:
        config = self.config
        if config.optimizer == "adam":
            return FusedAdam(parameters, config.learning_rate, eps=config.epsilon)
        inside = config.optimizer == "rmsprop_inside"
        return RMSprop(parameters, config.learning_rate, config.rms_decay, config.epsilon, inside=inside)

    def update(self, experience: Experience, batch_size: int | None) -> dict[str, Tensor]:
        """Take one gradient step on the whole rollout.

        Raises:
            ValueError: a `batch_size` was asked for; A2C has no minibatches.
        """
        if batch_size is not None:
            raise ValueError(
                f"A2C learns from whole rollouts of n_steps × n_envs timesteps, it has no batch_size (got {batch_size}): leave "
                "it None and set A2CConfig(n_steps=...) and RLTrainingConfig(n_envs=...)"
            )
        parts = self._write_gradients(experience.observation, experience)
        self.optimizer.advance()
        self.num_updates += 1
        names = ("policy_loss", "value_loss", "entropy", "explained_variance")
        return dict(zip(names, parts, strict=True))

    def _loss(self, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Policy gradient, value error and entropy (section 4 of the paper); the arguments are one `Experience`."""
        (experience,) = arguments
        config = self.config
        log_prob, entropy, value = self._evaluate(experience.observation, experience.action, experience.mask)
        policy_loss = -(self._advantage(experience) * log_prob).mean()
        value_loss = (value - experience.value_target).square().mean()
        entropy = entropy.mean()
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        explained = explained_variance(experience.value, experience.value_target)
        return loss, (policy_loss.detach(), value_loss.detach(), entropy.detach(), explained)

    def _write_explicitly(self, gradient: PolicyGradient, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients of `_loss`."""
        config, (experience,) = self.config, arguments
        log_prob, entropy, value = self._evaluate_explicitly(
            gradient, experience.observation, experience.action, experience.mask
        )
        advantage, error = self._advantage(experience), value - experience.value_target
        n = len(error)
        gradient.backward(advantage * (-1.0 / n), -config.entropy_coef, error * (2.0 * config.value_coef / n))
        explained = explained_variance(experience.value, experience.value_target)
        return -(advantage @ log_prob) / n, error.square().mean(), entropy, explained

    def _advantage(self, experience: Experience) -> Tensor:
        advantage = experience.advantage
        if self.config.normalize_advantages and len(advantage) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return advantage


def explained_variance(value: Tensor, value_target: Tensor) -> Tensor:
    """Share of the variance of the targets that the values explain: 1 − Var(target − value)/Var(target)."""
    return 1.0 - (value_target - value).var(correction=0) / value_target.var(correction=0).clamp_min(1e-12)
