"""How agents that learn from their present policy collect, and what they make of a rollout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import OnPolicyConfig
from ml.tradingbots.components.agent_spaces import present_mask, saved_mask_dim
from ml.tradingbots.components.base_agent import BaseAgent, StepReport
from ml.tradingbots.components.distributions import (
    best_choices,
    categorical_entropy,
    categorical_log_prob,
    draw_choices,
    gaussian_entropy,
    gaussian_log_prob,
    log_probabilities,
)
from ml.tradingbots.components.explicit_gradients import PolicyGradient, covers
from ml.tradingbots.components.exploration import StateDependentNoise
from ml.tradingbots.components.networks import ActorCritic, gsde_log_std, gsde_noise
from ml.tradingbots.components.normalization import CLIP, RunningMeanStd
from ml.tradingbots.components.optimizers import ListedOptimizer, write_gradients
from ml.tradingbots.components.rollouts import ReturnScaler, Rollout, RolloutBuffer
from ml.tradingbots.components.serialization import check_like
from ml.tradingbots.components.single_action import Perceptron, batched_layers, linear, view
from ml.tradingbots.core.advantages import generalized_advantages


@dataclass(frozen=True, slots=True)
class Experience:
    """A rollout as the losses need it, accounts and steps in one axis."""

    observation: Tensor
    """Normalised; (batch, state_dim)."""
    action: Tensor
    """Before clipping, or choices as numbers; (batch, action_dim or n_branches)."""
    log_prob: Tensor | None
    """Of the action under the policy that took it; (batch,). None for agents that do not ask."""
    value: Tensor
    """Of the observation, before learning; (batch,)."""
    advantage: Tensor
    """GAE; (batch,)."""
    value_target: Tensor
    """What the value should have been; (batch,)."""
    mask: Tensor | None
    """bool, legal choices; (batch, action_dim)."""


class OnPolicyAgent(BaseAgent):
    """An agent that learns from rollouts of its present policy. Subclasses own the optimiser and one `update`."""

    learned: ClassVar[tuple[str, ...]] = ("network", "optimizer", "return_statistics")
    kept_on_load: ClassVar[tuple[str, ...]] = (*BaseAgent.kept_on_load, "rollouts", "scaler", "noise")
    derived: ClassVar[tuple[str, ...]] = (*BaseAgent.derived, "_parameters", "_loss_step", "_explicit")
    explicit_form_of: ClassVar[tuple[str, ...]] = ("_loss", "_evaluate", "_log_std")
    """Methods whose gradients `_write_explicitly` writes: a subclass with others of these is left to autograd."""
    needs_log_prob: ClassVar[bool] = True
    """Whether `update` reads how likely actions were when they were taken."""
    config: Any

    def __init__(self, state_dim: int, action_dim: int, config: Any, *, device: str = "cpu", seed: int = 0) -> None:
        self.rollouts: RolloutBuffer | None = None
        self.scaler: ReturnScaler | None = None
        self.noise: StateDependentNoise | None = None
        self.return_statistics = RunningMeanStd()
        super().__init__(state_dim, action_dim, config, device=device, seed=seed)

    @property
    def is_discrete(self) -> bool:
        """Whether actions are choices rather than numbers."""
        return bool(self.config.action_type == "discrete")

    @abstractmethod
    def _new_optimizer(self, parameters: list[Tensor]) -> ListedOptimizer:
        """Make the optimiser."""

    @abstractmethod
    def _loss(self, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss and its parts, without gradient."""

    @abstractmethod
    def _write_explicitly(self, gradient: PolicyGradient, *arguments: Any) -> tuple[Tensor, ...]:
        """Write the gradients of `_loss` to the parameters by hand; returns the parts of the loss."""

    @abstractmethod
    def update(self, experience: Experience, batch_size: int | None) -> dict[str, Tensor]:
        """Learn from one rollout; returns figures as 0-dimensional tensors."""

    def _build(self) -> None:
        config: OnPolicyConfig = self.config
        log_std = None
        if not self.is_discrete:
            shape = (config.widths[-1], self.action_dim) if config.gsde else (self.action_dim,)
            log_std = torch.full(shape, config.log_std_init)
        self.network = ActorCritic(
            (self._encoder(), self._encoder()),
            config.widths,
            self.action_dim,
            activation=config.activation,
            log_std=log_std,
        ).to(self.device)
        self.optimizer = self._new_optimizer(list(self.network.parameters()))

    def _prepare(self) -> None:
        if self.scaler is not None:
            self.scaler.statistics = self.return_statistics  # A loaded agent brings its own.
        self._parameters = list(self.network.parameters())
        self._loss_step = self._compiled(self._loss)
        is_plain = self.network.is_plain and not self.config.gsde and not self.config.compile
        self._explicit = (
            PolicyGradient(self.network) if is_plain and covers(type(self), self.explicit_form_of) else None
        )

    def _perceptron(self) -> Perceptron:
        network, config = self.network, self.config
        layers, head = batched_layers(network.body, 0), linear(network.policy_head)
        if self.is_discrete:
            return Perceptron(layers, head, config.activation, "choose", noise="clocks")
        if config.gsde:
            return Perceptron(layers, head, config.activation, "clip")
        return Perceptron(layers, head, config.activation, "clip", noise="before", log_std=view(network.log_std))

    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the mean within [−1, 1] (batch, action_dim), or the likeliest choices (batch, n_branches)."""
        output, _ = self.network.policy(observation)
        if self.is_discrete:
            return best_choices(log_probabilities(output, self.n_branches, action_mask))
        return output.clamp(-1.0, 1.0)

    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Draw actions; numbers are clipped to [−1, 1]."""
        action = self._draw(observation, action_mask)
        return action if self.is_discrete else action.clamp(-1.0, 1.0)

    def _draw(self, observation: Tensor, mask: Tensor | None, noise: StateDependentNoise | None = None) -> Tensor:
        """Draw actions as they are remembered: numbers before clipping, or choices."""
        output, features = self.network.policy(observation)
        if self.is_discrete:
            return draw_choices(log_probabilities(output, self.n_branches, mask), self.generator)
        if noise is not None:
            return output + gsde_noise(features, self.network.log_std, noise.matrices)
        deviation = self._log_std(features).exp()
        return output + deviation * torch.randn(output.shape, generator=self.generator, device=self.device)

    def _log_std(self, features: Tensor) -> Tensor:
        """Log standard deviation of numbers: (action_dim,), or (batch, action_dim) where it depends on the state."""
        log_std = self.network.log_std
        return gsde_log_std(features.detach(), log_std) if self.config.gsde else log_std

    def _evaluate(self, observation: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability (batch,), entropy (batch,) or () where it is the same everywhere, and value (batch,)."""
        output, features, value = self.network(observation)
        if self.is_discrete:
            log_probs = log_probabilities(output, self.n_branches, mask)
            return categorical_log_prob(log_probs, action.long()), categorical_entropy(log_probs), value
        log_std = self._log_std(features)
        return gaussian_log_prob(action, output, log_std), gaussian_entropy(log_std), value

    def _write_gradients(self, observation: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """Write the clipped gradients of the loss to the parameters, the faster way; returns the parts of the loss."""
        if self._explicit is not None and self._explicit.suits(observation):
            parts = self._write_explicitly(self._explicit, *arguments)
            self._explicit.clip(self.config.max_grad_norm, self.optimizer.frozen)
            return parts
        loss, figures = self._loss_step(*arguments)
        write_gradients(loss, self.optimizer.moving(self._parameters), self.config.max_grad_norm)
        return tuple(figures)

    def _evaluate_explicitly(
        self, gradient: PolicyGradient, observation: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return gradient.evaluate(observation, action, mask, self.n_branches if self.is_discrete else 0)

    def training_steps(
        self, env: Any, *, batch_size: int | None = None, observation: Tensor | None = None
    ) -> Iterator[StepReport]:
        """Walk a rollout, learn from it, and so on; see `BaseAgent.training_steps`."""
        if observation is None:
            observation, infos = env.reset()
            mask = infos.get("action_mask")
            self.normalizer.update(observation)
            self.rollouts = None
        else:
            mask = present_mask(env)
        mask = mask if self.is_discrete else None
        if self.rollouts is None:
            self._begin_rollouts(env, 0 if mask is None else self.action_dim)
        rollouts = self.rollouts
        assert rollouts is not None
        losses: dict[str, Tensor] | None = None
        while True:
            action = self._collecting_action(observation, mask, rollouts.position)
            key, bar = observation, None
            if rollouts.source is not None:
                key, bar = rollouts.source.account_features(), rollouts.source.bar
            bounded = action if self.is_discrete else action.clamp(-1.0, 1.0)
            next_observation, reward, terminated, truncated, infos = env.step(self.to_environment(bounded))
            rollouts.add(
                key=key,
                bar=bar,
                action=action,
                mask=mask,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                next_key=infos.get("next_account") if rollouts.source is not None else infos.get("final_obs"),
            )
            observation, mask = next_observation, infos.get("action_mask") if self.is_discrete else None
            self.num_timesteps += env.num_envs
            if rollouts.is_full:
                losses = self._learn(rollouts.rollout(observation), batch_size)
                rollouts.position = 0
            yield StepReport(self.num_timesteps, reward, infos, losses)

    def _collecting_action(self, observation: Tensor, mask: Tensor | None, position: int) -> Tensor:
        if self.noise is not None:
            period = self.config.gsde_sample_freq
            if position == 0 or (period > 0 and position % period == 0):
                self.noise.renew(self.generator)
        with torch.inference_mode():
            action = self._draw(self.normalizer(observation), mask, self.noise)
        return action.clone()

    def _learn(self, rollout: Rollout, batch_size: int | None) -> dict[str, Tensor]:
        self._follow_schedule()
        losses = self.update(self._experience(rollout), batch_size)
        # Not before: a rollout is learned from as it was seen when it was collected.
        self.normalizer.update(rollout.observation.flatten(0, 1))
        return losses

    @torch.no_grad()
    def _experience(self, rollout: Rollout) -> Experience:
        """Evaluate a whole rollout at once: log-probabilities, values, advantages."""
        shape = rollout.reward.shape
        reward = self._scaled_rewards(rollout)
        observation = self.normalizer(rollout.observation.flatten(0, 1))
        action = rollout.action.flatten(0, 1)
        mask = rollout.mask.flatten(0, 1) if rollout.mask is not None else None
        last = self.normalizer(rollout.next_observation)
        if self.needs_log_prob:
            log_prob, _, value = self._evaluate(observation, action, mask)
            beyond = self.network.value(last)
        else:
            both = self.network.value(torch.cat([observation, last]))  # One call costs half of two.
            log_prob, (value, beyond) = None, torch.split(both, [len(observation), len(last)])
        values = value.view(shape)
        advantage, value_target = generalized_advantages(
            reward,
            values,
            self._next_values(rollout, values, beyond),
            rollout.terminated,
            rollout.truncated,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        return Experience(observation, action, log_prob, value, advantage.flatten(), value_target.flatten(), mask)

    def _scaled_rewards(self, rollout: Rollout) -> Tensor:
        """Rewards as the losses see them; (n_steps, n_envs)."""
        reward = rollout.reward
        if self.scale_rewards and self.scaler is not None:
            self.reward_scale = self.scaler.update(reward, rollout.terminated | rollout.truncated)
        # Without `scale_rewards` the scale stands still: 1, or what an earlier run left the values in.
        if self.scale_rewards or self.reward_scale != 1.0:
            reward = (reward * self.reward_scale).clamp(-CLIP, CLIP)
        return reward

    def _next_values(self, rollout: Rollout, values: Tensor, last: Tensor) -> Tensor:
        """Value of what each step led to, before any reset; (n_steps, n_envs). `last` is that of what the rollout led to."""
        following = torch.cat([values[1:], last[None]])
        if self.device.type != "cpu":
            # All of them: to count those that were cut would wait for the device.
            final = self.network.value(self.normalizer(rollout.final_observations(None)))
            return torch.where(rollout.truncated, final.view_as(values), following)
        rows = rollout.truncated.flatten().nonzero().squeeze(1)
        if len(rows):
            final = self.network.value(self.normalizer(rollout.final_observations(rows)))
            following.view(-1)[rows] = final
        return following

    def _begin_rollouts(self, env: Any, mask_dim: int) -> tuple[RolloutBuffer, ReturnScaler]:
        width = self.n_branches if self.is_discrete else self.action_dim
        self.rollouts = RolloutBuffer(env, self.config.n_steps, width, mask_dim=mask_dim, device=self.device)
        self.scaler = ReturnScaler(env.num_envs, self.config.gamma, self.return_statistics, self.device)
        if self.config.gsde:
            self.noise = StateDependentNoise(env.num_envs, self.config.widths[-1], self.action_dim, self.device)
        return self.rollouts, self.scaler

    def memory_state(self) -> dict[str, Any] | None:
        """Return the rollout under way and what exploration and reward scaling remember; None before training."""
        if self.rollouts is None or self.scaler is None:
            return None
        noise = {} if self.noise is None else {"matrices": self.noise.matrices}
        return {"rollouts": self.rollouts.state_dict(), "totals": self.scaler.total, "exploration": noise}

    def restore_memory(self, env: Any, state: dict[str, Any] | None) -> None:
        """Take over what `memory_state` returned; None leaves it to be made when training starts."""
        self.rollouts = None
        if state is None:
            return
        saved = state["rollouts"]["tensors"]["mask"]
        rollouts, scaler = self._begin_rollouts(env, self.action_dim if saved_mask_dim(saved) else 0)
        ours = self.memory_state() or {}
        for name in ("totals", "exploration"):
            check_like(state[name], ours[name], name)
        rollouts.load_state_dict(state["rollouts"])
        self._check_choices(rollouts.tensors["action"])
        scaler.total = state["totals"].to(self.device)
        if self.noise is not None:
            self.noise.matrices = state["exploration"]["matrices"].to(self.device)
