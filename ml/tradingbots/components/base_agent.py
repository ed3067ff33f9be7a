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
from ml.tradingbots.components.exploration import uniform_actions
from ml.tradingbots.components.normalization import ObservationNormalizer
from ml.tradingbots.components.serialization import CheckpointError, checked_config, read_file, require_keys, save_file
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
        self.seed = seed
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.normalizer = ObservationNormalizer(self.state_dim, self.device)
        self.reward_scale = 1.0
        self.num_timesteps = 0
        self.num_updates = 0
        self.environment_spec: dict[str, Any] = {}
        self.set_action_bounds(-np.ones(self.action_dim), np.ones(self.action_dim))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
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
            ValueError: observation or action dimensions differ.
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
            # One test for both: a hole in the observation always reaches the action.
            if not bool(torch.isfinite(action).all()):
                raise ValueError("observation holds NaN or inf (or the networks diverged): the action is not finite")
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
            raise CheckpointError(f"{path} holds a {state['agent_type']!r} agent, this one is {self.agent_type!r}")
        config = checked_config(state["config"], self.config_class, path)
        dimensions = {"state_dim": self.state_dim, "action_dim": self.action_dim}
        if state["dimensions"] != dimensions:
            raise CheckpointError(f"{path} was saved with {state['dimensions']}, this agent has {dimensions}")
        try:
            # Build first, replace after: a file that does not fit must leave this agent as it was.
            fresh = type(self)(
                self.state_dim, self.action_dim, config, device=str(self.device), seed=state["counters"]["seed"]
            )
            fresh.load_learned_state(state["learned"])
            fresh.normalizer.load_state_dict(state["normalizer"])
            fresh._check_shapes(state)
            fresh.generator.set_state(state["generator"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} does not fit a {self.agent_type!r} agent: {str(error)[:300]}") from error
        kept = {name: self.__dict__[name] for name in ("replay", "scale_rewards") if name in self.__dict__}
        fresh.reward_scale = float(state["reward_scale"])
        fresh.set_action_bounds(state["action_bounds"]["low"], state["action_bounds"]["high"])
        fresh.num_timesteps = state["counters"]["num_timesteps"]
        fresh.num_updates = state["counters"]["num_updates"]
        fresh.environment_spec = state["environment"]
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

    def _check_shapes(self, state: dict[str, Any]) -> None:
        expected = {
            "normaliser": (state["normalizer"]["statistics"]["mean"], (self.state_dim,)),
            "normaliser variance": (state["normalizer"]["statistics"]["var"], (self.state_dim,)),
            "lower action bound": (state["action_bounds"]["low"], (self.action_dim,)),
            "upper action bound": (state["action_bounds"]["high"], (self.action_dim,)),
        }
        for name, (value, shape) in expected.items():
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                raise ValueError(f"{name} must be a tensor of shape {shape}")
        if state["normalizer"]["mode"] not in ("off", "fixed", "running"):
            raise ValueError(f"unknown normaliser mode {state['normalizer']['mode']!r}")
        if any(type(value) is not int for value in state["counters"].values()):
            raise ValueError("counters must be integers")


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
        counters=dict,
        environment=dict,
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
            if self.num_timesteps > config.learning_starts and vector_step % config.train_freq == 0:
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
