"""What every agent can do, and how off-policy agents collect.

One loop serves everybody: `training_steps(env)` is a generator that walks the environment, learns, and yields a short
report after each vector step. `train` runs it to a budget; `train_rl_agent` runs the same one and adds the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml.tradingbots.components.buffers import Batch, IndexedObservations, ReplayBuffer
from ml.tradingbots.components.config_checks import check_seed
from ml.tradingbots.components.exploration import uniform_actions
from ml.tradingbots.components.normalization import ObservationNormalizer
from ml.tradingbots.components.serialization import (
    DAMAGE,
    CheckpointError,
    check_like,
    check_optimizer,
    checked_config,
    read_file,
    require_keys,
    save_file,
    shown,
)
from ml.tradingbots.components.vector_adapter import as_vector_env

FloatArray32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class StepReport:
    """What one vector step did."""

    num_timesteps: int
    """Transitions so far, summed over accounts."""
    reward: Tensor
    """Reward of each account; (n_envs,)."""
    episodes: dict[str, Tensor] | None
    """Summaries of the episodes that ended in this step: `r` sum of rewards, `l` length, `sharpe` per bar, `max_drawdown`,
    `log_growth`; (n_ended,) each. None where none ended."""
    losses: dict[str, Tensor] | None
    """Losses of the last gradient step, as 0-dimensional tensors; None before the first."""


class BaseAgent(ABC):
    """A learner with a config, networks and a memory of how it sees observations.

    Args:
        state_dim: length of the flattened observation.
        action_dim: length of an action.
        config: the agent's hyperparameters.
        device: where the networks live; small ones are fastest on the CPU.
        seed: of the networks' first weights and of everything the agent draws. Nothing global is seeded or used.
    """

    agent_type: ClassVar[str]
    description: ClassVar[str]
    config_class: ClassVar[type]
    config: Any

    def __init__(self, state_dim: int, action_dim: int, config: Any, *, device: str = "cpu", seed: int = 0) -> None:
        for name, value in (("state_dim", state_dim), ("action_dim", action_dim)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"config of agent {self.agent_type!r} must be a {self.config_class.__name__}, got {type(config).__name__}"
            )
        self.state_dim, self.action_dim = int(state_dim), int(action_dim)
        self.config = config
        self.device = torch.device(device)
        self.seed = check_seed(seed)
        self.generator = torch.Generator(device=self.device).manual_seed(self.seed)
        self.normalizer = ObservationNormalizer(self.state_dim, self.device)
        self.reward_scale = 1.0
        self.num_timesteps = 0
        self.num_updates = 0
        self.environment_spec: dict[str, Any] = {}
        self.set_action_bounds(-np.ones(self.action_dim), np.ones(self.action_dim))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed every accelerator too.
            torch.default_generator.manual_seed(self.seed)
            self._build()

    @abstractmethod
    def _build(self) -> None:
        """Make the networks and optimisers."""

    @abstractmethod
    def _policy(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Return actions in [−1, 1] for normalised observations; (batch, action_dim)."""

    @abstractmethod
    def training_steps(
        self, env: Any, *, batch_size: int | None = None, observation: Tensor | None = None
    ) -> Iterator[StepReport]:
        """Walk and learn without end, yielding after each vector step.

        Args:
            env: a torch vector environment.
            batch_size: transitions per gradient step; None takes the config's.
            observation: present observations of an environment already under way; None resets it.
        """

    @abstractmethod
    def learned_state(self) -> dict[str, Any]:
        """Return the networks and optimisers as state dictionaries."""

    @abstractmethod
    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Take over what `learned_state` returned."""

    def set_action_bounds(self, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        """Set what −1 and 1 of the policy mean to the environment; (action_dim,) each."""
        self.action_low = torch.as_tensor(np.array(low, dtype=np.float32), device=self.device)
        self.action_high = torch.as_tensor(np.array(high, dtype=np.float32), device=self.device)
        self._half_range = (self.action_high - self.action_low) * 0.5
        self._middle = (self.action_high + self.action_low) * 0.5
        self._plain_bounds = bool((self._half_range == 1.0).all() and (self._middle == 0.0).all())

    def bind(self, env: Any) -> None:
        """Check that an environment fits, and take over its action bounds and specification.

        Raises:
            ValueError: observation or action dimensions differ, or actions have no bounds.
            TypeError: the action space is not the kind this agent acts in.
        """
        shape = env.single_observation_space.shape
        if shape != (self.state_dim,):
            raise ValueError(
                f"the environment's observations have shape {shape}, the agent was created with state_dim={self.state_dim}; "
                "create it with state_dim=env.observation_space_dim"
            )
        space = env.single_action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise TypeError(
                f"agent {self.agent_type!r} needs continuous actions, the environment has {space}; "
                "use TradingEnvConfig(action_type='continuous')"
            )
        if space.shape != (self.action_dim,):
            raise ValueError(
                f"the environment's actions have shape {space.shape}, the agent was created with action_dim={self.action_dim}; "
                "create it with action_dim=env.action_space_dim"
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"agent {self.agent_type!r} needs actions with finite bounds, the environment has {space}")
        self.set_action_bounds(space.low, space.high)
        if hasattr(env, "specification"):
            self.environment_spec = env.specification()

    def train(self, env: Any, total_timesteps: int, *, n_envs: int = 1, batch_size: int | None = None) -> BaseAgent:
        """Train for a number of timesteps, without callbacks, evaluation or logs; `train_rl_agent` has those.

        Args:
            env: a `TradingEnvironment`, any other `gymnasium.Env` or its id, or a torch vector environment.
            total_timesteps: transitions to collect, summed over accounts.
            n_envs: accounts or copies to run; ignored for a vector environment.
            batch_size: transitions per gradient step; None takes the config's.

        Returns:
            The agent itself.
        """
        if total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {total_timesteps}")
        vector_env = as_vector_env(env, n_envs=n_envs, device=str(self.device), seed=self.seed)
        self.bind(vector_env)
        stop = self.num_timesteps + total_timesteps
        for report in self.training_steps(vector_env, batch_size=batch_size):
            if report.num_timesteps >= stop:
                break
        return self

    def select_action(self, observation: Any, deterministic: bool = False) -> Any:
        """Choose actions for raw observations.

        Args:
            observation: (state_dim,) or (batch, state_dim), NumPy or torch; raw, as the environment gives it.
            deterministic: whether to take the policy's centre instead of drawing from it.

        Returns:
            Actions within the environment's bounds, float32, of the kind and batch shape that came in.

        Raises:
            ValueError: the observation has another length, or is not finite.
        """
        is_tensor = isinstance(observation, Tensor)
        raw = observation if is_tensor else torch.from_numpy(np.asarray(observation, dtype=np.float32))
        if raw.shape[-1:] != (self.state_dim,) or raw.ndim > 2:
            raise ValueError(
                f"observation must have shape ({self.state_dim},) or (batch, {self.state_dim}), got {tuple(raw.shape)}"
            )
        with torch.inference_mode():
            batch = raw.to(self.device, torch.float32)
            batch = batch if batch.ndim == 2 else batch.unsqueeze(0)
            action = self.to_environment(self._policy(self.normalizer(batch), deterministic))
            # The action alone would not tell: clipping and tanh turn an infinite observation into a finite action.
            if not bool(torch.isfinite(batch).all()):
                raise ValueError("observation holds NaN or inf")
            if not bool(torch.isfinite(action).all()):
                raise ValueError("the action is not finite: the networks diverged")
            action = action if raw.ndim == 2 else action.squeeze(0)
        return action.clone() if is_tensor else action.cpu().numpy()

    def to_environment(self, action: Tensor) -> Tensor:
        """Scale actions from [−1, 1] to the environment's bounds."""
        return action if self._plain_bounds else action * self._half_range + self._middle

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the replay memory: what a file of the agent holds."""
        return {
            "agent_type": self.agent_type,
            "config": self.config,
            "dimensions": {"state_dim": self.state_dim, "action_dim": self.action_dim},
            "learned": self.learned_state(),
            "normalizer": self.normalizer.state_dict(),
            "reward_scale": self.reward_scale,
            "action_bounds": {"low": self.action_low.cpu(), "high": self.action_high.cpu()},
            "generator": self.generator.get_state(),
            "device": self.device.type,
            "counters": {"num_timesteps": self.num_timesteps, "num_updates": self.num_updates, "seed": self.seed},
            "environment": self.environment_spec,
        }

    def load_state_dict(self, state: dict[str, Any], *, path: str | Path = "state") -> None:
        """Become the agent that a checked state describes; nothing changes if it does not fit.

        Raises:
            CheckpointError: another agent type, other dimensions, or contents that do not fit the networks.
        """
        check_agent_state(state, path)
        if state["agent_type"] != self.agent_type:
            raise CheckpointError(f"{path} holds a {shown(state['agent_type'])} agent, this one is {self.agent_type!r}")
        config = checked_config(state["config"], self.config_class, path)
        check_dimensions(state, config, path)
        dimensions = {"state_dim": self.state_dim, "action_dim": self.action_dim}
        if state["dimensions"] != dimensions:
            raise CheckpointError(f"{path} was saved with {state['dimensions']}, this agent has {dimensions}")
        try:
            # Build first, replace after: a file that does not fit must leave this agent as it was.
            fresh = self._rebuilt(state, config)
        except DAMAGE as error:
            raise CheckpointError(f"{path} does not fit a {self.agent_type!r} agent: {str(error)[:300]}") from error
        kept = {name: self.__dict__[name] for name in ("replay", "scale_rewards") if name in self.__dict__}
        self.__dict__.update(fresh.__dict__ | kept)

    def save(self, path: str | Path) -> Path:
        """Write the agent to a file: config, networks, optimisers, normaliser, bounds, random state and counters.

        The write is atomic. The replay memory is not part of it; `training.checkpoints` saves whole runs.
        """
        return save_file(path, "agent", self.state_dict())

    def load(self, path: str | Path) -> BaseAgent:
        """Become the agent in a file written by `save`; returns the agent itself.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or another kind of agent; this agent is left as it was.
        """
        self.load_state_dict(read_file(path, "agent", allowed=[self.config_class]), path=path)
        return self

    def _rebuilt(self, state: dict[str, Any], config: Any) -> BaseAgent:
        """Return a new agent with everything that a file holds; raises one of `DAMAGE` where anything is odd."""
        counters = state["counters"]
        if set(counters) != {"num_timesteps", "num_updates", "seed"}:
            raise ValueError("counters must be num_timesteps, num_updates and seed")
        if any(type(value) is not int or abs(value) >= 2**63 for value in counters.values()):
            raise ValueError("counters must be integers")
        if counters["num_timesteps"] < 0 or counters["num_updates"] < 0:
            raise ValueError("counters must not be negative")
        fresh = type(self)(self.state_dim, self.action_dim, config, device=str(self.device), seed=counters["seed"])
        fresh._check_learned(state["learned"])
        fresh.load_learned_state(state["learned"])
        check_like(state["normalizer"], fresh.normalizer.state_dict(), "normalizer")
        fresh.normalizer.load_state_dict(state["normalizer"])
        bounds = state["action_bounds"]
        check_like(bounds, {"low": fresh.action_low.cpu(), "high": fresh.action_high.cpu()}, "action_bounds")
        if not bool((bounds["low"] <= bounds["high"]).all()):
            raise ValueError("lower action bounds must not be above the upper ones")
        fresh.set_action_bounds(bounds["low"].numpy(), bounds["high"].numpy())
        if not 0.0 < state["reward_scale"] < float("inf"):
            raise ValueError(f"reward_scale must be a positive number, got {state['reward_scale']}")
        # The generators of two kinds of device cannot take over each other's state; another device draws anew.
        if torch.device(state["device"]).type == self.device.type:
            fresh.generator.set_state(state["generator"])
        fresh.reward_scale = state["reward_scale"]
        fresh.num_timesteps, fresh.num_updates = counters["num_timesteps"], counters["num_updates"]
        fresh.environment_spec = state["environment"]
        return fresh

    def _check_learned(self, learned: dict[str, Any]) -> None:
        """Check networks and optimisers from a file against those of this agent; raises ValueError."""
        ours = self.learned_state()
        if set(learned) != set(ours):
            raise ValueError(f"learned must have the entries {', '.join(ours)}")
        for name, value in learned.items():
            own = getattr(self, name)
            if isinstance(own, torch.optim.Optimizer):
                check_optimizer(value, own, name)
            else:
                check_like(value, ours[name], name)


def check_agent_state(state: dict[str, Any], path: str | Path) -> None:
    """Check that a file's content has the entries of an agent.

    Raises:
        CheckpointError: one is missing or of another type.
    """
    require_keys(
        state,
        path,
        agent_type=str,
        config=object,
        dimensions=dict,
        learned=dict,
        normalizer=dict,
        reward_scale=float,
        action_bounds=dict,
        generator=Tensor,
        device=str,
        counters=dict,
        environment=dict,
    )


def check_dimensions(state: dict[str, Any], config: Any, path: str | Path) -> None:
    """Check the dimensions in a file against the networks in it, before networks of that size are made.

    Raises:
        CheckpointError: they are no positive integers, or need more parameters than the file holds.
    """
    dimensions = state["dimensions"]
    if set(dimensions) != {"state_dim", "action_dim"} or any(
        type(value) is not int or value < 1 for value in dimensions.values()
    ):
        raise CheckpointError(f"{path}: dimensions must be state_dim and action_dim, got {shown(dimensions)}")
    stored: dict[int, int] = {}
    waiting = [state["learned"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    width, n_layers = getattr(config, "hidden_dim", 1), getattr(config, "n_layers", 1)
    needed = width * (sum(dimensions.values()) + width * (n_layers - 1))  # At least: one network without its biases.
    if 4 * needed > sum(stored.values()):
        raise CheckpointError(
            f"{path}: networks for {shown(dimensions)} with hidden_dim={shown(width)} and n_layers={shown(n_layers)} are "
            "larger than those in the file"
        )


class OffPolicyAgent(BaseAgent):
    """An agent that learns from a replay memory. Subclasses own `_build`, `_policy` and one `update`."""

    replay: ReplayBuffer | None = None
    scale_rewards: bool = False
    """Whether the first update fixes `reward_scale` at one over the standard deviation of the rewards seen until then."""

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on normalised observations; returns losses as 0-dimensional tensors."""

    def training_steps(
        self, env: Any, *, batch_size: int | None = None, observation: Tensor | None = None
    ) -> Iterator[StepReport]:
        """Walk, remember and learn; see `BaseAgent.training_steps`."""
        config = self.config
        batch_size = batch_size or config.batch_size
        indexed = isinstance(env, IndexedObservations)
        if self.replay is None or self.replay.n_envs != env.num_envs or (indexed and self.replay.source is not env):
            self.replay = self._new_replay(env)
        if observation is None:
            observation, _ = env.reset()
            self.normalizer.update(observation)
        vector_step = self.num_timesteps // env.num_envs
        losses: dict[str, Tensor] | None = None
        while True:
            action = self._explore(observation)
            bar, key = (env.bar, env.account_features()) if indexed else (None, observation)
            next_observation, reward, terminated, _truncated, infos = env.step(self.to_environment(action))
            if indexed:
                next_key = infos["next_account"]
            else:
                next_key = infos.get("final_obs", next_observation)
                self.normalizer.update(next_observation)
            self.replay.add(key, action, reward, next_key, terminated, bar)
            observation = next_observation
            self.num_timesteps += env.num_envs
            vector_step += 1
            # An agent that is trained again begins with an empty memory: it, too, must fill before it is learned from.
            filled = self.replay.size >= min(config.learning_starts, self.replay.capacity)
            if filled and self.num_timesteps > config.learning_starts and vector_step % config.train_freq == 0:
                if self.scale_rewards and self.num_updates == 0:
                    self.reward_scale = _inverse_deviation(self.replay.rewards())
                for _ in range(config.gradient_steps):
                    losses = self.update(self._sample(batch_size))
                    self.num_updates += 1
            yield StepReport(self.num_timesteps, reward, ended_episodes(infos), losses)

    def restore_replay(self, env: Any, state: dict[str, Any] | None) -> None:
        """Take over a saved replay memory for `env`; None leaves it to be made when training starts."""
        self.replay = None if state is None else self._new_replay(env)
        if self.replay is not None and state is not None:
            self.replay.load_state_dict(state)

    def _new_replay(self, env: Any) -> ReplayBuffer:
        return ReplayBuffer.for_env(env, self.config.buffer_size, self.action_dim, device=self.device)

    def _explore(self, observation: Tensor) -> Tensor:
        """Return actions in [−1, 1] for collecting: uniform before `learning_starts`, then the policy's own draws."""
        if self.num_timesteps < self.config.learning_starts:
            return uniform_actions(observation.shape[0], self.action_dim, self.generator, self.device)
        with torch.inference_mode():
            action = self._policy(self.normalizer(observation), False)
        return action.clone()

    def _sample(self, batch_size: int) -> Batch:
        """Draw a batch as the networks see it: observations normalised, rewards scaled."""
        assert self.replay is not None
        batch = self.replay.sample(batch_size, self.generator)
        return Batch(
            self.normalizer(batch.observation),
            batch.action,
            batch.reward * self.reward_scale,
            self.normalizer(batch.next_observation),
            batch.terminated,
        )


def _inverse_deviation(rewards: Tensor) -> float:
    deviation = float(rewards.double().std()) if len(rewards) > 1 else 0.0
    return 1.0 / deviation if deviation > 1e-12 else 1.0


def ended_episodes(infos: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the summaries of the episodes that ended in a step, or None."""
    if "episode" not in infos:
        return None
    rows = infos["_episode"].nonzero().squeeze(1)
    return {name: values.index_select(0, rows) for name, values in infos["episode"].items()}
