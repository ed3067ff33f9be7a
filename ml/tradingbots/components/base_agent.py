"""What every agent can do: fit an environment, train, act, save and load.

One loop serves everybody: `training_steps(env)` is a generator that walks the environment, learns, and yields a short
report after each vector step. `train` runs it to a budget; `train_rl_agent` runs the same one and adds the rest.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ml.tradingbots.components.agent_config import AgentConfig
from ml.tradingbots.components.agent_spaces import check_box, n_branches_of
from ml.tradingbots.components.agent_state import check_agent_state, check_dimensions
from ml.tradingbots.components.config_checks import check_seed
from ml.tradingbots.components.encoders import WindowShape, make_encoder, window_shape
from ml.tradingbots.components.normalization import ObservationNormalizer
from ml.tradingbots.components.serialization import (
    DAMAGE,
    CheckpointError,
    check_like,
    check_optimizer,
    checked_config,
    read_file,
    save_file,
    shown,
)
from ml.tradingbots.components.single_action import Perceptron, SingleAction
from ml.tradingbots.components.vector_adapter import as_vector_env

if TYPE_CHECKING:
    from ml.tradingbots.components.task_networks import TaskLayout

FloatArray32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class StepReport:
    """What one vector step did."""

    num_timesteps: int
    """Transitions so far, summed over accounts."""
    reward: Tensor
    """Reward of each account; (n_envs,)."""
    infos: dict[str, Any]
    """What the environment said about the step."""
    losses: dict[str, Tensor] | None
    """Losses and other figures of the last update, as 0-dimensional tensors; None before the first."""

    @property
    def episodes(self) -> dict[str, Tensor] | None:
        """Summaries of the episodes that ended in this step, None where none ended; (n_ended,) each.

        `r` sum of rewards, `l` length, `sharpe` per bar, `max_drawdown`, `log_growth`. On an accelerator asking waits for
        the device.
        """
        if "episode" not in self.infos:
            return None
        rows = self.infos["_episode"].nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        return {name: values.index_select(0, rows) for name, values in self.infos["episode"].items()}


class BaseAgent(ABC):
    """A learner with a config, networks and a memory of how it sees observations.

    Inside, an action is what networks answer: numbers in [−1, 1] (batch, action_dim), or the numbers of choices (batch,
    n_branches). `to_environment` turns them into what the environment takes.

    Args:
        state_dim: length of the flattened observation.
        action_dim: length of an action; for discrete ones the number of choices, summed over assets.
        config: the agent's hyperparameters.
        device: where the networks live; small ones are fastest on the CPU.
        seed: of the networks' first weights and of everything the agent draws. Nothing global is seeded or used.
    """

    agent_type: ClassVar[str]
    description: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    learned: ClassVar[tuple[str, ...]]
    """Attributes that learning changes: networks, optimisers, tensors and statistics. They make up the agent's file."""
    derived: ClassVar[tuple[str, ...]] = ("_single_action",)
    """Attributes that follow from the others: made by `_prepare`, left out of copies and made anew there."""
    kept_on_load: ClassVar[tuple[str, ...]] = ("scale_rewards",)
    """Attributes of a run in progress, which loading an agent does not touch."""
    task_layout: ClassVar[TaskLayout | None] = None
    """How an agent of several tasks is made: the last entries of its observations say which task they are of."""
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
        self.scale_rewards = False
        self.num_timesteps = 0
        self.num_updates = 0
        self.schedule_timesteps = 0
        self.environment_spec: dict[str, Any] = {}
        self.n_branches = 1
        self.set_action_bounds(-np.ones(self.action_dim), np.ones(self.action_dim))
        self.is_built = False
        self._single_action: SingleAction | None = None
        if config.network == "mlp":
            self._make_networks(None)

    @property
    def is_discrete(self) -> bool:
        """Whether actions are choices rather than numbers."""
        return False

    @abstractmethod
    def _build(self) -> None:
        """Make the networks and optimisers, on the agent's device."""

    def _prepare(self) -> None:  # noqa: B027 - A hook that may stay empty.
        """Derive what updates use: lists of parameters, compiled losses. Called after making networks and after loading."""

    @abstractmethod
    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the best actions for normalised observations; `action_mask` is bool (batch, action_dim)."""

    @abstractmethod
    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Draw actions for normalised observations; `action_mask` is bool (batch, action_dim)."""

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
    def memory_state(self) -> dict[str, Any] | None:
        """Return what a run in progress remembers beside the agent's file: transitions, exploration; None if nothing."""

    @abstractmethod
    def restore_memory(self, env: Any, state: dict[str, Any] | None) -> None:
        """Take over what `memory_state` returned, for a run that goes on in `env`.

        Raises:
            ValueError: it was saved with other settings, or is damaged.
        """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self.derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._single_action = None
        if self.is_built:
            self._become_ready()

    def take_over(self, other: BaseAgent) -> None:
        """Become another agent of the same kind, its memory included; the other one must not be used any more."""
        self._become(other)

    def learned_state(self) -> dict[str, Any]:
        """Return the networks and optimisers as state dictionaries."""
        self._require_networks()
        # Copies: a state is what the agent was, whatever it learns after.
        return {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value.state_dict())
            for name in self.learned
            for value in [getattr(self, name)]
        }

    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Take over what `learned_state` returned."""
        for name in self.learned:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                with torch.no_grad():
                    value.copy_(state[name])  # In place: the optimiser holds this very tensor.
            else:
                value.load_state_dict(state[name])

    def _make_networks(self, window: WindowShape | None) -> None:
        self.window = window
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed every accelerator too.
            torch.default_generator.manual_seed(self.seed)
            self._build()
        self.is_built = True
        self._become_ready()

    def _become_ready(self) -> None:
        """Derive what is used of the networks: lists of parameters, compiled losses, a policy without torch."""
        self._prepare()
        is_plain = self.config.network == "mlp" and self.device.type == "cpu"
        if is_plain:
            probe = next(getattr(self, self.learned[0]).parameters())
            self._single_action = SingleAction(self._perceptron(), self.normalizer, probe)
        else:
            self._single_action = None

    @abstractmethod
    def _perceptron(self) -> Perceptron:
        """Return the deterministic policy of an agent without an encoder, as views of its parameters."""

    def _noise_scale(self) -> float:
        """Scale of the noise on single actions, or the share of random ones."""
        return 1.0

    def _require_networks(self) -> None:
        if not self.is_built:
            raise RuntimeError(
                f"an agent with network={self.config.network!r} gets its networks when it meets its environment: call "
                "agent.bind(env), train it, or load a trained one first"
            )

    @property
    def _shown_dim(self) -> int:
        """Length of what an environment shows, without the entries that say which task it is of."""
        return self.state_dim - (self.task_layout.n_tasks if self.task_layout is not None else 0)

    def _encoder(self) -> nn.Module:
        """Return a new encoder of observations as the config asks for it."""
        return make_encoder(self.config.network, self.state_dim, self.window, self.config.hidden_dim)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of tensors, compiled if the config asks for it."""
        return torch.compile(function, dynamic=False) if self.config.compile else function

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]; 0 where its length is not known."""
        return min(self.num_timesteps / self.schedule_timesteps, 1.0) if self.schedule_timesteps else 0.0

    def _follow_schedule(self) -> None:
        """Set the optimisers' step size to what the schedule says now."""
        if self.config.learning_rate_schedule == "linear":
            rate = self.config.learning_rate * (1.0 - self.progress)
            for name in self.learned:
                optimizer = getattr(self, name)
                if isinstance(optimizer, torch.optim.Optimizer):
                    for group in optimizer.param_groups:
                        group["lr"] = rate

    def set_action_bounds(self, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        """Set what −1 and 1 of the policy mean to the environment; (action_dim,) each."""
        lowest, highest = (torch.from_numpy(np.array(bound, dtype=np.float32)) for bound in (low, high))
        half_range, middle = (highest - lowest) * 0.5, (highest + lowest) * 0.5
        # Before they go to the device, which would have to be waited for.
        self._half_range_numpy, self._middle_numpy = half_range.numpy(), middle.numpy()
        self._plain_bounds = bool((half_range == 1.0).all() and (middle == 0.0).all())
        self.action_low, self.action_high = lowest.to(self.device), highest.to(self.device)
        self._half_range, self._middle = half_range.to(self.device), middle.to(self.device)

    def bind(self, env: Any) -> None:
        """Check that an environment fits, and take over its action space and specification.

        Args:
            env: a vector environment, or a `TradingEnvironment`.

        Raises:
            ValueError: observation or action dimensions differ, or actions have no bounds.
            TypeError: the action space is not the kind this agent acts in.
        """
        if not hasattr(env, "single_observation_space"):
            env = env.vectorize(1)
        shape = env.single_observation_space.shape
        if shape != (self.state_dim,):
            raise ValueError(
                f"the environment's observations have shape {shape}, the agent was created with state_dim={self.state_dim}; "
                "create it with state_dim=env.observation_space_dim"
            )
        space = env.single_action_space
        if self.is_discrete:
            self.n_branches = n_branches_of(space, self)
        else:
            check_box(space, self)
            self.set_action_bounds(space.low, space.high)
        specification = env.specification() if hasattr(env, "specification") else {}
        if self.config.network != "mlp":
            window = window_shape(specification, self._shown_dim)
            if not self.is_built:
                self._make_networks(window)
            elif window != self.window:
                raise ValueError(f"the agent reads windows of {self.window}, the environment has {window}")
        if specification:
            self.environment_spec = specification

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
        for name, value in (("total_timesteps", total_timesteps), ("n_envs", n_envs), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        vector_env = as_vector_env(env, n_envs=n_envs, device=str(self.device), seed=self.seed)
        self.bind(vector_env)
        self.schedule_timesteps = stop = self.num_timesteps + total_timesteps
        for report in self.training_steps(vector_env, batch_size=batch_size):
            if report.num_timesteps >= stop:
                break
        return self

    def select_action(self, observation: Any, deterministic: bool = False, *, action_mask: Any = None) -> Any:
        """Choose actions for raw observations.

        Args:
            observation: (state_dim,) or (batch, state_dim), NumPy or torch; raw, as the environment gives it.
            deterministic: whether to take the policy's centre or best choice instead of drawing from it.
            action_mask: discrete agents only: which choices are legal, (action_dim,) or (batch, action_dim), as
                `info["action_mask"]` gives it; None allows all.

        Returns:
            Actions of the kind and batch shape that came in: within the environment's bounds, float32, or int64 choices.

        Raises:
            ValueError: the observation or mask has another length, or the observation is not finite.
        """
        self._require_networks()
        is_tensor = isinstance(observation, Tensor)
        if not is_tensor and self._single_action is not None:
            alone = np.asarray(observation, dtype=np.float32)
            if alone.shape == (self.state_dim,) and (deterministic or self._single_action.perceptron.noise):
                return self._act_alone(alone, action_mask, None if deterministic else self.generator)
        raw = observation if is_tensor else torch.from_numpy(np.array(observation, dtype=np.float32))
        if raw.shape[-1:] != (self.state_dim,) or raw.ndim > 2:
            raise ValueError(
                f"observation must have shape ({self.state_dim},) or (batch, {self.state_dim}), got {tuple(raw.shape)}"
            )
        mask = None if action_mask is None else self._mask(action_mask, (*raw.shape[:-1], self.action_dim))
        with torch.inference_mode():
            batch = raw.to(self.device, torch.float32)
            batch = batch if batch.ndim == 2 else batch.unsqueeze(0)
            policy = self.deterministic_policy if deterministic else self.stochastic_policy
            action = self.to_environment(policy(self.normalizer(batch), mask))
            # The action alone would not tell: clipping and tanh turn an infinite observation into a finite action.
            if not bool(torch.isfinite(batch).all()):
                raise ValueError("observation holds NaN or inf")
            if not bool((action >= 0 if self.is_discrete else torch.isfinite(action)).all()):
                raise ValueError("the action is not finite: the networks diverged")
            action = action if raw.ndim == 2 else action.squeeze(0)
        # [()] turns a single choice into a number, as Gymnasium's discrete spaces give it.
        return action.clone() if is_tensor else action.cpu().numpy()[()]

    def _act_alone(self, observation: FloatArray32, action_mask: Any, generator: torch.Generator | None) -> Any:
        assert self._single_action is not None
        if self._single_action.is_stale:
            self._become_ready()
        mask = None if action_mask is None else self._mask(action_mask, (self.action_dim,))[0].numpy()
        scale = 1.0 if generator is None else self._noise_scale()
        action = self._single_action(observation, self.n_branches, mask, generator, scale)
        if self.is_discrete or self._plain_bounds:
            return action
        return action * self._half_range_numpy + self._middle_numpy

    def _mask(self, action_mask: Any, shape: tuple[int, ...]) -> Tensor:
        """Return a mask as bool (batch, action_dim)."""
        if not self.is_discrete:
            raise ValueError(f"agent {self.agent_type!r} acts continuously: it takes no action_mask")
        given = action_mask if isinstance(action_mask, Tensor) else torch.from_numpy(np.array(action_mask))
        mask = given.to(self.device)
        if mask.is_floating_point() and bool(mask.isnan().any()):
            raise ValueError("action_mask holds NaN")
        mask = mask.bool()
        if mask.shape != shape:
            raise ValueError(f"action_mask must have shape {shape}, as the observation has; got {tuple(mask.shape)}")
        mask = mask if mask.ndim == 2 else mask.unsqueeze(0)
        if not bool(mask.view(len(mask), self.n_branches, self._n_choices).any(-1).all()):
            raise ValueError("action_mask must leave at least one choice (of each asset), here it leaves none")
        return mask

    def to_environment(self, action: Tensor) -> Tensor:
        """Turn actions of the networks into the environment's: scaled to its bounds, or (batch,) for a single choice."""
        if self.is_discrete:
            return action.squeeze(-1) if self.n_branches == 1 else action
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
            "n_branches": self.n_branches,
            "generator": self.generator.get_state(),
            "device": self.device.type,
            "counters": {name: getattr(self, name) for name in COUNTERS},
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
        check_dimensions(state, config, path, self.task_layout)
        dimensions = {"state_dim": self.state_dim, "action_dim": self.action_dim}
        if state["dimensions"] != dimensions:
            raise CheckpointError(f"{path} was saved with {state['dimensions']}, this agent has {dimensions}")
        try:
            # Build first, replace after: a file that does not fit must leave this agent as it was.
            fresh = self._rebuilt(state, config)
        except DAMAGE as error:
            raise CheckpointError(f"{path} does not fit a {self.agent_type!r} agent: {str(error)[:300]}") from error
        self._become(fresh, keeping=self.kept_on_load)

    def save(self, path: str | Path) -> Path:
        """Write the agent to a file: config, networks, optimisers, normaliser, bounds, random state and counters.

        The write is atomic. The replay memory is not part of it; `training.checkpoints` saves whole runs.
        """
        return save_file(path, "agent", self.state_dict())

    def export_onnx(self, path: str | Path) -> Path:
        """Write the deterministic policy as an ONNX file: raw `observation` in, the environment's `action` out.

        Needs the extra `onnx`. See `onnx_export.export_onnx`.
        """
        from ml.tradingbots.components.onnx_export import export_onnx

        return export_onnx(self, path)

    def load(self, path: str | Path) -> BaseAgent:
        """Become the agent in a file written by `save`; returns the agent itself.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or another kind of agent; this agent is left as it was.
        """
        # Every agent's: a file of another kind is to be named as what it is.
        from ml.tradingbots.components.rl_agents import CONFIG_CLASSES

        self.load_state_dict(read_file(path, "agent", allowed=CONFIG_CLASSES), path=path)
        return self

    def _rebuilt(self, state: dict[str, Any], config: Any) -> BaseAgent:
        """Return a new agent with everything that a file holds; raises one of `DAMAGE` where anything is odd."""
        counters = state["counters"]
        if set(counters) != set(COUNTERS):
            raise ValueError(f"counters must be {', '.join(COUNTERS)}")
        if any(type(value) is not int or not 0 <= value < 2**63 for value in counters.values()):
            raise ValueError("counters must be integers in [0, 2**63)")
        fresh = type(self)(self.state_dim, self.action_dim, config, device=str(self.device), seed=counters["seed"])
        if not fresh.is_built:
            fresh._make_networks(window_shape(state["environment"], self._shown_dim))
        if not 1 <= state["n_branches"] <= self.action_dim or self.action_dim % state["n_branches"]:
            raise ValueError(f"n_branches must divide {self.action_dim}, got {state['n_branches']}")
        fresh.n_branches = state["n_branches"]
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
        for name in COUNTERS:
            setattr(fresh, name, counters[name])
        fresh.environment_spec = state["environment"]
        return fresh

    def _become(self, other: BaseAgent, *, keeping: tuple[str, ...] = ()) -> None:
        self.__dict__.update(other.__dict__ | {name: self.__dict__[name] for name in keeping})
        self._become_ready()  # What was derived were the other agent's.

    def _check_choices(self, action: Tensor) -> None:
        """Check the actions in a saved memory of a discrete agent: whole numbers of choices it has; raises ValueError."""
        if self.is_discrete and bool(((action != action.floor()) | (action < 0) | (action >= self._n_choices)).any()):
            raise ValueError(f"the memory holds actions that are none of {self._n_choices} choices")

    @property
    def _n_choices(self) -> int:
        return self.action_dim // self.n_branches

    def _check_learned(self, learned: dict[str, Any]) -> None:
        """Check networks and optimisers from a file against those of this agent; raises ValueError."""
        ours = self.learned_state()
        if set(learned) != set(ours):
            raise ValueError(f"learned must have the entries {', '.join(ours)}")
        for name, value in learned.items():
            own = getattr(self, name)
            if isinstance(own, torch.optim.Optimizer):
                check_optimizer(value, own, name, any_rate=self.config.learning_rate_schedule != "constant")
            else:
                check_like(value, ours[name], name)


# Whole numbers of an agent's life: seed, transitions, gradient steps, and the timesteps that its schedules span.
COUNTERS = ("num_timesteps", "num_updates", "schedule_timesteps", "seed")
