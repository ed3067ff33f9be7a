"""One agent for several assets, or for several objectives on the same prices: `MultiTaskRLAgent`.

What the tasks have in common is learned from all of their bars, what they have not stands apart: a head and an embedding
for each, rewards on a scale of their own, accounts that stay in their task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import MAX_HIDDEN_DIM, MAX_LAYERS, AgentConfig, check_at_least_one
from ml.tradingbots.components.agent_state import check_agent_state, check_dimensions
from ml.tradingbots.components.config_checks import check_field_types, check_seed
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.multi_market import MultiMarketVectorEnv, Scaling
from ml.tradingbots.components.rl_agents import AGENTS, CONFIG_CLASSES
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.serialization import (
    CheckpointError,
    checked_config,
    read_file,
    require_keys,
    save_file,
    shown,
)
from ml.tradingbots.components.task_learners import TaskLearner, task_learner_class
from ml.tradingbots.components.task_networks import Gradients, Heads, ReturnScaling, TaskLayout
from ml.tradingbots.components.task_policy import MarketScale, TaskPolicy
from ml.tradingbots.data.names import did_you_mean

AgentType = Literal["ppo", "dqn", "sac", "td3", "ddpg", "a2c"]

# Length of a training episode, as in `train_rl_agent`: a year of daily bars.
EPISODE_BARS = 252
# More would be a portfolio, or a digit too many.
MAX_TASKS = 10_000


@dataclass(frozen=True, kw_only=True)
class MultiTaskConfig:
    """Settings of a `MultiTaskRLAgent`."""

    agent_type: AgentType = "sac"
    """Kind of agent that learns; any of the six."""
    agent_config: AgentConfig | None = None
    """Its hyperparameters; None takes its defaults. Its hidden layers stand above the trunk."""
    trunk_dims: tuple[int, ...] = (64,)
    """Widths of the layers that all tasks share."""
    embedding_dim: int = 8
    """Length of the learned vector that stands for a task at the trunk's entrance."""
    heads: Heads = "per_task"
    """"per_task" gives the first layer above the trunk weights of its own for each task; "shared" leaves it to the embedding
    to tell them apart."""
    gradients: Gradients = "sum"
    """"sum" descends the tasks' losses together; "pcgrad" first takes from each task's gradient what points against
    another's (Yu et al., 2020), and costs a pass for each task."""
    identity: bool = True
    """Whether the networks are told which task they act for. False is the control that is not: no embedding, no heads."""
    scaling: Scaling = "each"
    """"each" shows a market's features on their own scale, by the statistics of its training prices; "none" as they are."""
    return_scaling: ReturnScaling = "per_task"
    """Whether each task's rewards are divided by a deviation of their own, or all by a pooled one, so that the task with the
    largest rewards decides."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_at_least_one(self, "embedding_dim")
        if not self.trunk_dims or min(self.trunk_dims) < 1 or max(self.trunk_dims) > MAX_HIDDEN_DIM:
            raise ValueError(
                f"trunk_dims must be widths from 1 to {MAX_HIDDEN_DIM}, at least one, got {self.trunk_dims}"
            )
        if len(self.trunk_dims) > MAX_LAYERS or self.embedding_dim > MAX_HIDDEN_DIM:
            raise ValueError(
                f"trunk_dims must have at most {MAX_LAYERS} layers and embedding_dim be at most {MAX_HIDDEN_DIM}"
            )
        expected = AGENTS[self.agent_type].config_class
        if self.agent_config is not None and not isinstance(self.agent_config, expected):
            raise TypeError(
                f"agent_config of agent_type {self.agent_type!r} must be a {expected.__name__}, "
                f"got {type(self.agent_config).__name__}"
            )

    def layout(self, n_tasks: int) -> TaskLayout:
        """Return how networks for so many tasks are divided."""
        return TaskLayout(
            n_tasks,
            self.trunk_dims,
            self.embedding_dim if self.identity else 0,
            self.identity and self.heads == "per_task",
            self.gradients,
            self.return_scaling,
        )


class MultiTaskRLAgent:
    """One agent that learns several tasks at once: assets, or objectives on the same prices.

    `learner` is an agent like any other, for `environment()`: `train_rl_agent(agent.learner, agent.environment(), config)`
    trains it with callbacks, logs and resumable checkpoints, `train` does without. `for_task` gives the policy of one task,
    `for_unseen` one for an asset that was not trained.

    Args:
        environments: a `TradingEnvironment` for each task, by name; they fit together as `MultiMarketVectorEnv` asks.
        config: settings; None takes the defaults.
        seed: of the networks' first weights and of everything the agent draws.
        device: where the networks live.

    Raises:
        ValueError: there are no tasks, or two do not fit together.
        TypeError: one is no `TradingEnvironment`, or the agent cannot give the actions that they take.

    Attributes:
        names: of the tasks.
        learner: the agent inside.
        environments: those given; empty for an agent that was loaded without.
    """

    def __init__(
        self,
        environments: Mapping[str, TradingEnvironment],
        config: MultiTaskConfig | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if config is not None and not isinstance(config, MultiTaskConfig):
            raise TypeError(
                f"config must be a MultiTaskConfig, got {type(config).__name__}; write MultiTaskConfig(...)"
            )
        self.config = config or MultiTaskConfig()
        self.seed, self.device = check_seed(seed), device
        # Refuses what is no market and what does not fit together.
        env = MultiMarketVectorEnv(environments, n_envs=1, device=device, identify=True, scaling=self.config.scaling)
        self.environments = dict(environments)
        self.names = env.names
        self._check_names()
        self._specifications = {name: task.vectorize(1).specification() for name, task in environments.items()}
        self._scales = {name: _scale_of(task) for name, task in environments.items()}
        agent_config = self.config.agent_config
        learner = self._learner_class()(
            env.observation_space_dim,
            env.action_space_dim,
            AGENTS[self.config.agent_type].config_class() if agent_config is None else agent_config,
            device=device,
            seed=seed,
        )
        assert isinstance(learner, TaskLearner)
        learner.bind(env)
        self.learner: TaskLearner = learner

    @property
    def n_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.names)

    def environment(self, *, n_envs: int = 16, seed: int | None = None, **changes: Any) -> MultiMarketVectorEnv:
        """Return what the learner trains in: `n_envs` accounts in each task, as `train_rl_agent` would have them in one.

        Episodes start at random bars and last a year of daily bars where no task's `episode_length` says otherwise.

        Args:
            n_envs: accounts in each task.
            seed: of random starts; None takes the agent's.
            **changes: fields of the environments' configs that differ in training.

        Raises:
            RuntimeError: the agent was loaded without environments.
        """
        if not self.environments:
            raise RuntimeError(
                "the agent was loaded without environments: give MultiTaskRLAgent.load(path, environments={...}) to train it"
            )
        settings: dict[str, Any] = {"random_start": True}
        tasks = self.environments.values()
        if all(env.config.episode_length is None for env in tasks):
            legal = min(env.market.last_bar - env.market.first_bar for env in tasks)
            settings["episode_length"] = max(min(EPISODE_BARS, legal // 2), 1)
        return MultiMarketVectorEnv(
            self.environments,
            n_envs=n_envs,
            device=self.device,
            seed=self.seed if seed is None else seed,
            identify=True,
            scaling=self.config.scaling,
            **(settings | changes),
        )

    def train(self, total_timesteps: int, *, n_envs: int = 16, batch_size: int | None = None) -> MultiTaskRLAgent:
        """Train for a number of timesteps, summed over accounts and tasks, without callbacks, logs or checkpoints.

        Observations and each task's rewards are put on one scale, as `train_rl_agent` does unless it is told otherwise.

        Returns:
            The agent itself.
        """
        env = self.environment(n_envs=n_envs)
        learner = self.learner
        if learner.num_timesteps == 0:
            learner.normalizer.fix(*env.observation_statistics())
        learner.scale_rewards = True
        try:
            learner.train(env, total_timesteps, batch_size=batch_size)
        finally:
            learner.scale_rewards = False
        return self

    def for_task(self, name: str, *, scaled_as: str | None = None) -> TaskPolicy:
        """Return the policy of a task, for that task's own prices.

        Args:
            name: of the task.
            scaled_as: the task whose market it shall look at; None is its own. What a head makes of another task's bars.

        Raises:
            ValueError: there is no such task.
        """
        place, market = self._place(name), name if scaled_as is None else scaled_as
        self._place(market)
        return self._policy(torch.eye(self.n_tasks)[place], self._scales[market], self._specifications[market])

    def for_all(self, market: str) -> TaskPolicy:
        """Return what the policies of all tasks make of one task's market: row k of a batch is answered by the k-th's.

        Raises:
            ValueError: there is no such task.
        """
        self._place(market)
        return self._policy(torch.eye(self.n_tasks), self._scales[market], self._specifications[market])

    def for_unseen(self, environment: TradingEnvironment) -> TaskPolicy:
        """Return a policy for an asset that the agent was not trained on: the mean embedding and the mean of all heads.

        Args:
            environment: the asset's past, and settings as the tasks have them. Its features are put on the scale of these
                prices, so give it none that lie after the first decision.

        Raises:
            TypeError: it is no `TradingEnvironment`.
            ValueError: it shows other features or takes other actions than the tasks do.
        """
        if not isinstance(environment, TradingEnvironment):
            raise TypeError(
                f"environment must be a TradingEnvironment of the asset's past, got {type(environment).__name__}"
            )
        specification, first = environment.vectorize(1).specification(), self._specifications[self.names[0]]
        found, wanted = environment.observation_space_dim, self.learner.state_dim - self.n_tasks
        if found != wanted or tuple(specification["features"]) != tuple(first["features"]):
            raise ValueError(
                f"the environment shows {found} numbers of the features {', '.join(specification['features'])}; the tasks have "
                f"{wanted} of {', '.join(first['features'])}: give it the same window_size, features and number of assets"
            )
        if environment.action_space_dim != self.learner.action_dim:
            raise ValueError(
                f"the environment takes {environment.action_space_dim} numbers for an action, the tasks take "
                f"{self.learner.action_dim}: give it the same action_type"
            )
        mean = torch.full((self.n_tasks,), 1.0 / self.n_tasks)
        return self._policy(mean, _scale_of(environment), specification)

    def save(self, path: str | Path) -> Path:
        """Write the agent to one file, atomically: learner, tasks, their statistics and settings, but no prices."""
        content = {
            "config": dataclasses.replace(self.config, agent_config=None),
            "tasks": [
                {
                    "name": name,
                    "specification": self._specifications[name],
                    "mean": self._scales[name].mean,
                    "std": self._scales[name].std,
                }
                for name in self.names
            ],
            "learner": self.learner.state_dict(),
        }
        return save_file(path, KIND, content)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        environments: Mapping[str, TradingEnvironment] | None = None,
        device: str = "cpu",
    ) -> MultiTaskRLAgent:
        """Return the agent in a file that `save` wrote.

        Args:
            path: the file.
            environments: the tasks, to train further; None gives an agent that acts only.
            device: where the networks live.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or something else.
            ValueError: the environments are not the tasks of the file.
        """
        content = read_file(path, KIND, allowed=(MultiTaskConfig, *CONFIG_CLASSES))
        require_keys(content, path, config=object, tasks=list, learner=dict)
        agent = cls.__new__(cls)
        config = checked_config(content["config"], MultiTaskConfig, path)
        agent.device = device
        agent._take_tasks(content["tasks"], path)
        agent.config = config
        agent.learner = agent._restored(content["learner"], path)
        agent.config = dataclasses.replace(config, agent_config=agent.learner.config)
        agent.seed = agent.learner.seed
        agent.environments = {}
        if environments is not None:
            if tuple(environments) != agent.names:
                raise ValueError(
                    f"environments must be the tasks {', '.join(agent.names)}, in this order, got {', '.join(environments)}"
                )
            env = MultiMarketVectorEnv(environments, n_envs=1, device=device, identify=True, scaling=config.scaling)
            agent.learner.bind(env)
            agent.environments = dict(environments)
        return agent

    def _take_tasks(self, tasks: list[Any], path: str | Path) -> None:
        """Take over what a file says of the tasks, checked."""
        names, self._specifications, self._scales = [], {}, {}
        for task in tasks:
            if not isinstance(task, dict):
                raise CheckpointError(f"{path}: a task must be a dictionary, got {shown(task)}")
            require_keys(task, path, name=str, specification=dict, mean=Tensor, std=Tensor)
            names.append(task["name"])
            _check_specification(task["specification"], path)
            self._specifications[task["name"]] = task["specification"]
            self._scales[task["name"]] = MarketScale(task["mean"], task["std"])
            for values in (task["mean"], task["std"]):
                plain = values.layout is torch.strided and values.dtype == torch.float64 and values.ndim == 1
                if not plain or values.is_meta or not bool(torch.isfinite(values).all()):
                    raise CheckpointError(f"{path}: statistics of task {shown(task['name'])} must be finite numbers")
            if task["mean"].shape != task["std"].shape or not bool((task["std"] > 0.0).all()):
                raise CheckpointError(f"{path}: deviations of task {shown(task['name'])} must be positive")
        self.names = tuple(names)
        try:
            self._check_names()
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def _check_names(self) -> None:
        if not 1 <= len(self.names) <= MAX_TASKS or len(set(self.names)) != len(self.names):
            raise ValueError(f"tasks must be 1 to {MAX_TASKS:,}, each with a name of its own, got {len(self.names)}")
        for name in self.names:
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise ValueError(
                    f"names of tasks must be text, not empty and without control characters, got {shown(name)}"
                )

    def _restored(self, state: dict[str, Any], path: str | Path) -> TaskLearner:
        """Return the learner that a file describes."""
        check_agent_state(state, path)
        kind = self._learner_class()
        if state["agent_type"] != kind.agent_type:
            raise CheckpointError(
                f"{path} should hold a {kind.agent_type!r} learner, it is {shown(state['agent_type'])}"
            )
        config = checked_config(state["config"], kind.config_class, path)
        dimensions = state["dimensions"]
        window_dim = len(self._scales[self.names[0]].mean)
        check_dimensions(state, config, path, kind.task_layout)
        if dimensions["state_dim"] <= self.n_tasks + window_dim - 1 or any(
            len(scale.mean) != window_dim for scale in self._scales.values()
        ):
            raise CheckpointError(f"{path}: the statistics of the tasks do not fit {shown(dimensions)}")
        learner = kind(**dimensions, config=config, device=self.device)
        learner.load_state_dict(state, path=path)
        assert isinstance(learner, TaskLearner)
        return learner

    def _learner_class(self) -> Any:
        return task_learner_class(self.config.agent_type, self.config.layout(len(self.names)))

    def _policy(self, task: Tensor, scale: MarketScale, specification: Mapping[str, Any]) -> TaskPolicy:
        return TaskPolicy(self.learner, task, scale if self.config.scaling == "each" else None, specification)

    def _place(self, name: str) -> int:
        if not isinstance(name, str) or name not in self.names:
            raise ValueError(
                f"there is no task {name!r}.{did_you_mean(str(name), self.names)} Tasks: {', '.join(self.names)}"
            )
        return self.names.index(name)


def _check_specification(specification: Mapping[str, Any], path: str | Path) -> None:
    """Check that a file says of a task's environment what policies for it are asked for; raises CheckpointError."""
    require_keys(dict(specification), path, features=(tuple, list), assets=(tuple, list), config=dict)
    for key in ("features", "assets"):
        if not all(isinstance(name, str) for name in specification[key]):
            raise CheckpointError(f"{path}: {key} of a task must be names, got {shown(specification[key])}")
    try:
        TradingEnvConfig.from_dict(specification["config"])
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: the environment of a task was refused: {error}") from error


KIND = "multitask agent"
"""What files of such agents say they are."""


def _scale_of(env: TradingEnvironment) -> MarketScale:
    """Return the statistics of the market part of an environment's observations, over its price table."""
    mean, std = env.market.observation_statistics()
    window = env.market.window_dim
    return MarketScale(torch.as_tensor(mean[:window]), torch.as_tensor(std[:window]))
