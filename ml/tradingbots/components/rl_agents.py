"""PPO, DQN, and the factory of all agents."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from ml.tradingbots.components.a2c_agent import A2CAgent, explained_variance
from ml.tradingbots.components.agent_config import (
    AgentConfig,
    OffPolicyConfig,
    OnPolicyConfig,
    check_at_least_one,
    check_fraction,
    check_positive,
    check_share,
)
from ml.tradingbots.components.agent_state import check_agent_state, check_dimensions
from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.buffers import Batch, ReplayBuffer
from ml.tradingbots.components.ddpg_agent import DDPGAgent
from ml.tradingbots.components.distributions import best_choices
from ml.tradingbots.components.explicit_gradients import PolicyGradient, ValueGradient, covers
from ml.tradingbots.components.exploration import uniform_choices
from ml.tradingbots.components.networks import BranchingQNetwork, soft_update
from ml.tradingbots.components.off_policy import OffPolicyAgent
from ml.tradingbots.components.on_policy import Experience, OnPolicyAgent
from ml.tradingbots.components.optimizers import FusedAdam, ListedOptimizer, write_gradients
from ml.tradingbots.components.sac_agent import SACAgent
from ml.tradingbots.components.serialization import CheckpointError, checked_config, read_file, shown
from ml.tradingbots.components.single_action import Perceptron, body_layers, linear
from ml.tradingbots.components.td3_agent import TD3Agent


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnPolicyConfig):
    """Hyperparameters of PPO. Defaults follow the paper and its reference code unless a comment says otherwise."""

    n_steps: int = 128
    """Steps of every account per rollout."""
    batch_size: int = 256
    """Transitions per gradient step: the size of a shuffled minibatch."""
    n_epochs: int = 10
    """Passes over a rollout."""
    clip_epsilon: float = 0.2
    """How far the probability of an action may move per rollout, as a fraction, before its gradient vanishes."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """"linear" lets `clip_epsilon` fall to 0 over the timesteps of the run."""
    clip_value_epsilon: float | None = None
    """How far a value may move per rollout before its gradient vanishes; None does not clip values."""
    target_kl: float | None = None
    """The rollout is done with when the policy has moved 1.5 times this far, in nats; None goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "n_steps", "batch_size", "n_epochs")
        check_positive(self, "clip_epsilon")
        check_positive(self, "clip_value_epsilon", "target_kl", optional=True)


class PPOAgent(OnPolicyAgent):
    """Proximal policy optimisation (Schulman et al., 2017), for continuous and discrete actions."""

    agent_type: ClassVar[str] = "ppo"
    description: ClassVar[str] = "Proximal Policy Optimization - stable on-policy algorithm"
    config_class: ClassVar[type[AgentConfig]] = PPOConfig
    explicit_form_of: ClassVar[tuple[str, ...]] = (*OnPolicyAgent.explicit_form_of, "_surrogate", "_value_error")
    config: PPOConfig

    def _new_optimizer(self, parameters: list[Tensor]) -> ListedOptimizer:
        # ε as in the reference code, a thousand times Adam's own.
        return FusedAdam(parameters, self.config.learning_rate, eps=1e-5)

    def update(self, experience: Experience, batch_size: int | None) -> dict[str, Tensor]:
        """Take `n_epochs` passes of gradient steps over shuffled minibatches that cover the rollout."""
        config = self.config
        batch_size = batch_size or config.batch_size
        clip = config.clip_epsilon * (1.0 - self.progress if config.clip_schedule == "linear" else 1.0)
        clipping = torch.tensor(clip, device=self.device)
        explained = explained_variance(experience.value, experience.value_target)
        table, widths = _as_table(experience)
        figures: list[Tensor] = []
        for epoch in range(config.n_epochs):
            order = torch.randperm(len(table), generator=self.generator, device=self.device)
            for rows in torch.split(table.index_select(0, order), batch_size):
                columns = rows.split_with_sizes(widths, 1)
                parts = self._write_gradients(columns[0], columns, clipping)
                if config.target_kl is not None and float(approximate_kl(parts[-1])) > 1.5 * config.target_kl:
                    return self._figures([*figures, _summary(parts, clip)], explained)
                if epoch == config.n_epochs - 1:
                    figures.append(_summary(parts, clip))
                self.optimizer.advance()
                self.num_updates += 1
        return self._figures(figures, explained)

    def _figures(self, figures: list[Tensor], explained: Tensor) -> dict[str, Tensor]:
        """Means over the minibatches of the last epoch."""
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
        means = torch.stack(figures).mean(0).unbind()
        return dict(zip(names, means, strict=True)) | {"explained_variance": explained}

    def _loss(self, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The clipped surrogate, value error and entropy (equations 7 and 9); arguments: columns of the table, ε."""
        config, (columns, clip) = self.config, arguments
        observation, action, log_prob_then, value_then, advantage, value_target, *rest = columns
        log_prob, entropy, value = self._evaluate(observation, action, rest[0] > 0.5 if rest else None)
        log_ratio = log_prob - log_prob_then.squeeze(1)
        gain, bound = self._surrogate(log_ratio, advantage.squeeze(1), clip)
        error, entropy = self._value_error(value, value_then.squeeze(1), value_target.squeeze(1)), entropy.mean()
        loss = config.value_coef * error.mean() - torch.minimum(gain, bound).mean() - config.entropy_coef * entropy
        return loss, tuple(part.detach() for part in (gain, bound, error, entropy, log_ratio))

    def _surrogate(self, log_ratio: Tensor, advantage: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """What the objective is the smaller one of: min(rA, clip(r, 1 − ε, 1 + ε)A) = min(rA, A + ε|A|), whatever A's sign."""
        if self.config.normalize_advantages and len(advantage) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return advantage * log_ratio.exp(), advantage + clip * advantage.abs()

    def _value_error(self, value: Tensor, value_then: Tensor, value_target: Tensor) -> Tensor:
        error = (value - value_target).square()
        epsilon = self.config.clip_value_epsilon
        if epsilon is not None:
            clipped = value_then + (value - value_then).clamp(-epsilon, epsilon)
            error = torch.maximum(error, (clipped - value_target).square())
        return error

    def _write_explicitly(self, gradient: PolicyGradient, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients of `_loss`; same arguments."""
        config, (columns, clip) = self.config, arguments
        observation, action, log_prob_then, value_then, advantage, value_target, *rest = columns
        log_prob, entropy, value = self._evaluate_explicitly(
            gradient, observation, action, rest[0] > 0.5 if rest else None
        )
        log_ratio = log_prob - log_prob_then.squeeze(1)
        gain, bound = self._surrogate(log_ratio, advantage.squeeze(1), clip)
        value_then, value_target = value_then.squeeze(1), value_target.squeeze(1)
        slope, error = value - value_target, self._value_error(value, value_then, value_target)
        if config.clip_value_epsilon is not None:
            # Beyond ε the clipped value stands still. (Within it, rounding alone may make its error the larger one.)
            beyond = (value - value_then).abs() > config.clip_value_epsilon
            slope = slope.masked_fill(beyond & (error > slope.square()), 0.0)
        n = len(value)
        # r moves with its own size; beyond the bound nothing moves.
        on_policy = gain.masked_fill(gain > bound, 0.0) * (-1.0 / n)
        gradient.backward(on_policy, -config.entropy_coef, slope * (2.0 * config.value_coef / n))
        return gain, bound, error, entropy, log_ratio


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Divergence of the new policy from the old in nats, mean of r − 1 − ln r: unbiased, never negative (Schulman, 2020)."""
    return (log_ratio.exp() - 1.0 - log_ratio).mean()


def _summary(parts: tuple[Tensor, ...], clip: float) -> Tensor:
    """Figures of one minibatch: policy and value loss, entropy, approximate divergence, share of clipped ratios."""
    gain, bound, error, entropy, log_ratio = parts
    clip_fraction = ((log_ratio.exp() - 1.0).abs() > clip).float().mean()
    policy_loss = -torch.minimum(gain, bound).mean()
    return torch.stack([policy_loss, error.mean(), entropy, approximate_kl(log_ratio), clip_fraction])


def _as_table(experience: Experience) -> tuple[Tensor, list[int]]:
    """Pack an experience into one table of rows, so that a minibatch is one slice; returns it and its columns' widths."""
    assert experience.log_prob is not None
    columns = [
        experience.observation,
        experience.action,
        experience.log_prob[:, None],
        experience.value[:, None],
        experience.advantage[:, None],
        experience.value_target[:, None],
    ]
    if experience.mask is not None:
        columns.append(experience.mask.float())
    return torch.cat(columns, 1), [column.shape[1] for column in columns]


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    """Hyperparameters of DQN. Dueling and double are on; n-step and prioritised replay are options."""

    learning_rate: float = 1e-3
    max_grad_norm: float | None = 10.0
    tau: float = 1.0
    """Share of the online network mixed into the target network at each target update; 1 copies it."""
    target_update_interval: int = 1_000
    """Timesteps between target updates."""
    dueling: bool = True
    """Whether values split into one of the state and advantages of choices (Wang et al., 2016)."""
    double: bool = True
    """Whether the online network chooses and the target network judges (van Hasselt et al., 2016)."""
    n_step_targets: int = 1
    """Rewards summed before a target bootstraps (Sutton, 1988)."""
    prioritized: bool = False
    """Whether transitions are drawn in proportion to their error (Schaul et al., 2016)."""
    priority_exponent: float = 0.6
    """How much errors matter in drawing: 0 is uniform."""
    importance_exponent: float = 0.4
    """First exponent of the weights that make up for it; it rises to 1 over the timesteps of the run."""
    epsilon_start: float = 1.0
    """Share of random choices at first."""
    epsilon_end: float = 0.05
    """Share of random choices from `epsilon_fraction` on."""
    epsilon_fraction: float = 0.1
    """Share of the run's timesteps over which random choices grow rarer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "tau", "epsilon_fraction")
        check_at_least_one(self, "target_update_interval", "n_step_targets")
        check_fraction(self, "priority_exponent", "importance_exponent", "epsilon_start", "epsilon_end")


class DQNAgent(OffPolicyAgent):
    """Deep Q-learning (Mnih et al., 2015), for discrete actions; portfolios have a branch of choices per asset."""

    agent_type: ClassVar[str] = "dqn"
    description: ClassVar[str] = "Deep Q-Network - discrete action spaces"
    config_class: ClassVar[type[AgentConfig]] = DQNConfig
    learned: ClassVar[tuple[str, ...]] = ("network", "target_network", "optimizer")
    derived: ClassVar[tuple[str, ...]] = (
        *OffPolicyAgent.derived,
        "_parameters",
        "_target_parameters",
        "_loss_step",
        "_explicit",
    )
    config: DQNConfig

    @property
    def is_discrete(self) -> bool:
        """True."""
        return True

    def _build(self) -> None:
        config = self.config
        self.network, self.target_network = (
            BranchingQNetwork(
                self._encoder(), config.widths, self.action_dim, activation=config.activation, dueling=config.dueling
            ).to(self.device)
            for _ in range(2)
        )
        self.target_network.requires_grad_(False).load_state_dict(self.network.state_dict())
        self.optimizer = FusedAdam(self.network.parameters(), config.learning_rate)

    def _prepare(self) -> None:
        self._parameters = list(self.network.parameters())
        self._target_parameters = list(self.target_network.parameters())
        self._loss_step = self._compiled(self._loss)
        is_plain = self.config.network == "mlp" and not self.config.compile
        self._explicit = ValueGradient(self.network) if is_plain and covers(type(self), ("_loss", "_target")) else None

    def _perceptron(self) -> Perceptron:
        # The value of the state is the same for all choices of a branch: advantages decide.
        head = linear(self.network.advantage_head)
        return Perceptron(body_layers(self.network.body), head, self.config.activation, "choose", noise="greedy")

    def _noise_scale(self) -> float:
        return self.epsilon

    @property
    def epsilon(self) -> float:
        """Share of random choices now."""
        config = self.config
        elapsed = min(self.progress / config.epsilon_fraction, 1.0)
        return config.epsilon_start + elapsed * (config.epsilon_end - config.epsilon_start)

    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the most valuable legal choices; (batch, n_branches)."""
        values: Tensor = self.network(observation, self.n_branches)
        return best_choices(_legal(values, action_mask))

    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the most valuable legal choices, in a share `epsilon` of the batch random ones."""
        best = self.deterministic_policy(observation, action_mask)
        n = len(observation)
        # A draw for every account: one for the whole batch would make all explore in the same step.
        explores = torch.rand((n, 1), generator=self.generator, device=self.device) < self.epsilon
        random = uniform_choices(n, self.n_branches, self.action_dim, self.generator, self.device, action_mask)
        return torch.where(explores & (best >= 0), random, best)  # A diverged network is not to hide behind chance.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on the temporal-difference error."""
        if self._explicit is not None and self._explicit.suits(batch.observation):
            loss, error, value = self._write_explicitly(self._explicit, batch)
            self._explicit.clip(self.config.max_grad_norm, self.optimizer.frozen)
        else:
            loss, error, value = self._loss_step(batch, self.n_branches)
            write_gradients(loss, self.optimizer.moving(self._parameters), self.config.max_grad_norm)
        self.optimizer.advance()
        if batch.index is not None and self.replay is not None:
            self.replay.update_priorities(batch.index, error)
        return {"loss": loss.detach(), "q_mean": value, "epsilon": torch.tensor(self.epsilon)}

    def _loss(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Huber error of every branch's choice against one target; the arguments are a `Batch` and `n_branches`."""
        batch, n_branches = arguments
        target = self._target(batch, n_branches)
        values = self.network(batch.observation, n_branches)
        value = values.gather(-1, batch.action.long().unsqueeze(-1)).squeeze(-1)  # (batch, n_branches)
        losses = smooth_l1_loss(value, target.expand_as(value), reduction="none").mean(-1)  # (batch,)
        loss = losses.mean() if batch.weight is None else (batch.weight * losses).mean()
        return loss, (value.detach() - target).abs().mean(-1), value.detach().mean()

    @torch.no_grad()
    def _target(self, batch: Batch, n_branches: int) -> Tensor:
        """Reward and the mean of the branches' best next values; (batch, 1)."""
        judged = self.target_network(batch.next_observation, n_branches)  # (batch, n_branches, choices)
        chooser = self.network(batch.next_observation, n_branches) if self.config.double else judged
        choice = _legal(chooser, batch.next_mask).argmax(-1, keepdim=True)
        next_value = judged.gather(-1, choice).squeeze(-1).mean(-1)
        beyond = self.config.gamma if batch.discount is None else batch.discount
        target: Tensor = batch.reward + beyond * (1.0 - batch.terminated) * next_value
        return target.unsqueeze(-1)

    @torch.no_grad()
    def _write_explicitly(self, gradient: ValueGradient, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of `_loss`, and what it returns."""
        target, choice = self._target(batch, self.n_branches), batch.action.long().unsqueeze(-1)
        values = gradient.evaluate(batch.observation, self.n_branches)
        value = values.gather(-1, choice).squeeze(-1)  # (batch, n_branches)
        error = value - target
        slope = error.clamp(-1.0, 1.0)
        # Huber's function: e²/2 up to 1, |e| − 1/2 beyond.
        losses = slope * (error - 0.5 * slope)
        if batch.weight is not None:
            slope, losses = batch.weight[:, None] * slope, batch.weight[:, None] * losses
        gradient.backward(torch.zeros_like(values).scatter_(-1, choice, slope.unsqueeze(-1) / error.numel()))
        return losses.mean(), error.abs().mean(-1), value.mean()

    def _new_replay(self, env: Any, mask_dim: int) -> ReplayBuffer:
        config = self.config
        return ReplayBuffer.for_env(
            env,
            config.buffer_size,
            self.n_branches,
            device=self.device,
            n_steps=config.n_step_targets,
            gamma=config.gamma,
            prioritized=config.prioritized,
            priority_exponent=config.priority_exponent,
            mask_dim=mask_dim,
        )

    def _sample(self, batch_size: int) -> Batch:
        assert self.replay is not None
        first = self.config.importance_exponent
        beta = first + self.progress * (1.0 - first)
        return self._as_seen(self.replay.sample(batch_size, self.generator, beta=beta))

    def _after_step(self, terminated: Tensor, truncated: Tensor) -> None:
        """Update the target network when its interval is over."""
        interval, before = self.config.target_update_interval, self.num_timesteps
        if (before + len(terminated)) // interval > before // interval:
            soft_update(self._target_parameters, self._parameters, self.config.tau)


def _legal(values: Tensor, mask: Tensor | None) -> Tensor:
    """Put illegal choices out of reach; values (batch, n_branches, choices), mask (batch, action_dim)."""
    return values if mask is None else values.masked_fill(~mask.view_as(values), -torch.inf)


AGENTS: dict[str, type[BaseAgent]] = {
    agent.agent_type: agent for agent in (PPOAgent, DQNAgent, SACAgent, TD3Agent, DDPGAgent, A2CAgent)
}
CONFIG_CLASSES: tuple[type, ...] = tuple(agent.config_class for agent in AGENTS.values())
# Agents made of these ones, by the module and class that builds one from a file. They stand above this file and know
# environments, so it must not import them before a file asks for one.
COMPOSITES: dict[str, tuple[str, str]] = {
    "regime_aware": ("ml.tradingbots.components.regime_aware_agent", "RegimeAwareAgent"),
}


def list_available_agents() -> dict[str, str]:
    """Return every agent's name and what it is.

    >>> list_available_agents()["sac"]
    'Soft Actor-Critic - state-of-the-art for continuous control'
    """
    return {name: agent.description for name, agent in AGENTS.items()}


def create_rl_agent(
    agent_type: str, state_dim: int, action_dim: int, config: Any = None, *, device: str = "cpu", seed: int = 0
) -> Any:
    """Create an agent.

    Args:
        agent_type: a name of `list_available_agents()`.
        state_dim: length of the flattened observation (`env.observation_space_dim`).
        action_dim: length of an action (`env.action_space_dim`).
        config: the agent's config dataclass; None takes its defaults.
        device: where the networks live.
        seed: of the first weights and of everything the agent draws.

    Returns:
        The agent.

    Raises:
        ValueError: the name is unknown or a dimension is not a positive integer.
        TypeError: the config belongs to another agent.
    """
    agent_class = AGENTS.get(agent_type)
    if agent_class is None:
        close = difflib.get_close_matches(str(agent_type).lower(), AGENTS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown agent_type {agent_type!r}.{hint} Available: {', '.join(sorted(AGENTS))}")
    chosen = config if config is not None else agent_class.config_class()
    return agent_class(state_dim, action_dim, chosen, device=device, seed=seed)


def load_rl_agent(path: str | Path, *, device: str = "cpu") -> Any:
    """Load an agent of any kind from a file written by its `save`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, of another format version, or no agent.
    """
    return agent_from_state(read_file(path, "agent", allowed=CONFIG_CLASSES), path=path, device=device)


def agent_from_state(state: dict[str, Any], *, path: str | Path = "state", device: str = "cpu") -> Any:
    """Build the agent that a file's content describes; errors as for `load_rl_agent`."""
    check_agent_state(state, path)
    if state["agent_type"] in COMPOSITES:
        module, name = COMPOSITES[state["agent_type"]]
        return getattr(importlib.import_module(module), name).from_state(state, path=path, device=device)
    if state["agent_type"] not in AGENTS:
        raise CheckpointError(f"{path} holds an agent of unknown type {shown(state['agent_type'])}")
    config = checked_config(state["config"], AGENTS[state["agent_type"]].config_class, path)
    check_dimensions(state, config, path)
    agent = create_rl_agent(state["agent_type"], **state["dimensions"], config=config, device=device)
    agent.load_state_dict(state, path=path)
    return agent
