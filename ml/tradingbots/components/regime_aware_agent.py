"""An agent of agents that adapts to regimes: a generalist for all bars and a specialist for each regime's.

Members see the probabilities of the regimes (Macri, Jaimungal and Lillo, 2025, arXiv:2511.00190, find that posterior
probabilities in the observation beat both hidden states and point forecasts), and their answers are mixed by them. A generalist
always has a say: it has all of it where the regime is not known, or the market is like nothing in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from ml.tradingbots.components.agent_state import check_agent_state, check_sizes
from ml.tradingbots.components.base_agent import BaseAgent, StepReport
from ml.tradingbots.components.config_checks import SEED_LIMIT
from ml.tradingbots.components.encoders import WindowShape
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig, checked_fields
from ml.tradingbots.components.regime_columns import RegimeColumns, file_as_tensor, from_tensor
from ml.tradingbots.components.regime_detector import refuse_smoothed
from ml.tradingbots.components.regime_environment import BlindVectorEnv, WeightedVectorEnv
from ml.tradingbots.components.regime_layout import RegimeLayout, probability_name
from ml.tradingbots.components.regime_mixing import (
    choose_by_probability,
    choose_by_value,
    mix_numbers,
    mixed_log_probabilities,
    mixed_values,
    mixing_weights,
)
from ml.tradingbots.components.regime_tables import PriceData
from ml.tradingbots.components.regime_worlds import HandedOnNormalizer, World
from ml.tradingbots.components.rl_agents import agent_from_state, create_rl_agent
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, shown
from ml.tradingbots.components.single_action import Perceptron
from ml.tradingbots.components.vector_environment import TradingVectorEnv


class RegimeAwareAgent(BaseAgent):
    """A generalist and a specialist for each regime, mixed by how likely the regimes are; see `docs/regimes.md`.

    It trains and acts like any agent, in markets whose price table has the columns of `RegimeColumns` or of
    `with_regime_probabilities`. Specialists train on the bars of their regime: their rewards are multiplied by its
    probability over the mean of that where they train, and their episodes begin in proportion to it. All timesteps of a run
    are shared out evenly among members, one vector step each in turn; figures of a step are those of the generalist.

    Args:
        state_dim: length of the flattened observation, columns of regimes included.
        action_dim: as for any agent.
        config: hyperparameters.
        regimes: fitted on the training segment: saved with the agent, so that it can be shown raw prices. None for
            probabilities of one's own.
        device: where the networks live.
        seed: of the generalist; specialists have the numbers after it.

    Attributes:
        members: the generalist, then the specialist of each regime; made when the agent meets its environment.

    Raises:
        TypeError: `regimes` are smoothed probabilities, no `RegimeColumns`, or of a detector that no file can hold.
        RuntimeError: its detector has learned nothing yet.
    """

    agent_type: ClassVar[str] = "regime_aware"
    description: ClassVar[str] = "A generalist and a specialist for each market regime, mixed by its probability"
    config_class: ClassVar[type[Any]] = RegimeAwareConfig
    learned: ClassVar[tuple[str, ...]] = ("members", "regimes")
    derived: ClassVar[tuple[str, ...]] = (*BaseAgent.derived, "_worlds", "_present", "_is_walking")
    config: RegimeAwareConfig
    _worlds: tuple[World, ...] | None = None
    _present: tuple[Tensor | None, ...] | None = None
    _is_walking: bool = False

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        config: RegimeAwareConfig | None = None,
        regimes: RegimeColumns | None = None,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        refuse_smoothed(regimes, to="an agent")
        if regimes is not None and not isinstance(regimes, RegimeColumns):
            raise TypeError(
                f"regimes must be RegimeColumns(detector).fit(train), or None, got {type(regimes).__name__}"
            )
        if regimes is not None:
            regimes.require_keepable()
        self.regimes = regimes
        self.members: list[Any] = []
        self.layout: RegimeLayout | None = None
        super().__init__(state_dim, action_dim, config or RegimeAwareConfig(), device=device, seed=seed)
        self.normalizer = HandedOnNormalizer(self.state_dim, self.device)
        self.is_built = False

    @property
    def is_discrete(self) -> bool:
        """Whether actions are choices rather than numbers."""
        return self.config.has_choices

    @property
    def generalist(self) -> Any:
        """The member that is trained on all bars."""
        self._require_networks()
        return self.members[0]

    @property
    def specialists(self) -> tuple[Any, ...]:
        """The members trained on the bars of each regime; (n_regimes,), empty without mixing and with one regime."""
        self._require_networks()
        return tuple(self.members[1:])

    def add_regimes(self, price_data: PriceData) -> pd.DataFrame:
        """Add the columns of its detector to a price table; see `RegimeColumns.add_to`.

        Raises:
            RuntimeError: the agent has no detector.
        """
        if self.regimes is None:
            raise RuntimeError(
                "this agent has no detector of its own: add the columns by with_regime_probabilities(prices, probabilities)"
            )
        return self.regimes.add_to(price_data)

    # Meeting an environment.

    def _make_networks(self, window: WindowShape | None) -> None:
        """Members come with the environment, which says where regimes are."""

    def _become_ready(self) -> None:
        self._single_action = None

    def _build(self) -> None:
        """Members build their own."""

    def _perceptron(self) -> Perceptron:
        raise NotImplementedError("a mixture is no perceptron")

    def _require_networks(self) -> None:
        if not self.is_built:
            raise RuntimeError(
                "a RegimeAwareAgent gets its members when it meets its environment: call agent.bind(env), train it, or load a "
                "trained one first"
            )

    def bind(self, env: Any) -> None:
        """Check that an environment fits, find the regimes in its observations, and make the members if there are none.

        Raises:
            ValueError: it is no market, shows no regimes or others than the agent knows, or dimensions differ.
            TypeError: the action space is not the kind the members act in.
        """
        if not hasattr(env, "single_observation_space") and hasattr(env, "vectorize"):
            env = env.vectorize(1)
        if not isinstance(env, TradingVectorEnv):
            raise ValueError(
                f"a RegimeAwareAgent acts in markets, and {type(env).__name__} is none: give a TradingEnvironment over prices "
                "with columns of regimes, RegimeColumns(...).fit(train).add_to(prices)"
            )
        layout = RegimeLayout.of(env.specification(), env.observation_space_dim)
        if self.regimes is not None and self.regimes.n_regimes != layout.n_regimes:
            raise ValueError(
                f"the prices have columns of {layout.n_regimes} regimes, the agent's detector knows {self.regimes.n_regimes}: "
                "make them by agent.add_regimes(prices)"
            )
        if self.layout is not None and layout != self.layout:
            raise ValueError(
                "the environment shows its features in another order, or other regimes, than the agent was trained with: give "
                f"the features {', '.join(self.environment_spec['features'])}"
            )
        super().bind(env)
        world = self._world(env, layout)
        if not self.is_built:
            self.layout = layout
            self.members = [self._new_member(world, number) for number in range(self._n_members(layout))]
            self.is_built = True
        for member in self.members:
            member.bind(world.seen)

    def _n_members(self, layout: RegimeLayout) -> int:
        return 1 + (layout.n_regimes if self.config.mix and layout.n_regimes > 1 else 0)

    def _new_member(self, world: World, number: int) -> Any:
        (length,) = world.seen.single_observation_space.shape or (0,)
        return create_rl_agent(
            self.config.agent_type,
            length,
            self.action_dim,
            self.config.member_config,
            device=str(self.device),
            seed=self._seed_of(number),
        )

    def _seed_of(self, number: int) -> int:
        return (self.seed + number) % SEED_LIMIT

    def _world(self, env: TradingVectorEnv, layout: RegimeLayout) -> World:
        return World(env, env if self.config.observe_probabilities else BlindVectorEnv(env, layout))

    # Acting.

    def mixing_weights(self, observation: Tensor) -> Tensor:
        """Return how much each member counts at raw observations, the generalist first; (batch, n_members)."""
        self._require_networks()
        assert self.layout is not None
        if len(self.members) == 1:
            return torch.ones((len(observation), 1), device=observation.device)
        columns = observation[:, (*self.layout.probabilities, self.layout.entropy, self.layout.novelty)]
        return mixing_weights(columns[:, :-2], columns[:, -2], columns[:, -1], self.config.min_generalist)

    def select_action(self, observation: Any, deterministic: bool = False, *, action_mask: Any = None) -> Any:
        """Choose actions for raw observations, columns of regimes included; see `BaseAgent.select_action`.

        Raises:
            TypeError: smoothed probabilities are given.
        """
        refuse_smoothed(observation, to="an agent")
        return super().select_action(observation, deterministic, action_mask=action_mask)

    def deterministic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Mix the members' best actions; observations are raw."""
        return self._mixed(observation, action_mask, draw=False)

    def stochastic_policy(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Mix the members' draws, or draw from the mixture of their choices; observations are raw."""
        return self._mixed(observation, action_mask, draw=True)

    def _mixed(self, observation: Tensor, mask: Tensor | None, *, draw: bool) -> Tensor:
        seen = self._seen(observation)
        inputs = [member.normalizer(seen) for member in self.members]
        if not self.is_discrete or len(self.members) == 1:
            answers = [
                (member.stochastic_policy if draw else member.deterministic_policy)(entry, mask)
                for member, entry in zip(self.members, inputs, strict=True)
            ]
            return answers[0] if len(answers) == 1 else mix_numbers(answers, self.mixing_weights(observation))
        weights = self.mixing_weights(observation)
        if self.config.agent_type != "dqn":
            log_probs = mixed_log_probabilities(self.members, weights, inputs, self.n_branches, mask)
            return choose_by_probability(log_probs, self.generator, draw=draw)
        values = mixed_values(self.members, weights, inputs, self.n_branches)
        return choose_by_value(values, mask, epsilon=self.members[0].epsilon, generator=self.generator, draw=draw)

    def _seen(self, observation: Tensor) -> Tensor:
        if self.config.observe_probabilities or self.layout is None:
            return observation
        return observation[:, self.layout.visible]

    # Training.

    def training_steps(
        self, env: Any, *, batch_size: int | None = None, observation: Tensor | None = None
    ) -> Iterator[StepReport]:
        """Let each member walk its world in turn, one vector step each; see `BaseAgent.training_steps`."""
        worlds = self._worlds_of(env)
        self._hand_on(env.num_envs)
        present: list[Tensor | None] = [None] * len(worlds)
        if observation is not None:
            present = [worlds[0].see(observation), *(self._present or present)[1:]]
        self._present = None
        walks = [
            member.training_steps(world.seen, batch_size=batch_size, observation=seen)
            for member, world, seen in zip(self.members, worlds, present, strict=True)
        ]
        self._is_walking = True
        try:
            yield from self._in_turn(walks, env.num_envs)
        finally:
            self._is_walking = False

    def _in_turn(self, walks: list[Iterator[StepReport]], n_envs: int) -> Iterator[StepReport]:
        while True:
            # Whoever has walked least, the first of several: known from counters, so that a run can be cut anywhere.
            turn = min(range(len(self.members)), key=lambda number: self.members[number].num_timesteps)
            report = next(walks[turn])
            self.num_timesteps += n_envs
            self.num_updates = sum(member.num_updates for member in self.members)
            losses = report.losses if turn == 0 else None
            yield StepReport(self.num_timesteps, report.reward, report.infos, losses)

    def _hand_on(self, n_envs: int) -> None:
        """Tell the members what a run told this agent: scaling of observations and rewards, and its length."""
        rounds = -(-self.schedule_timesteps // (n_envs * len(self.members)))
        statistics = self.normalizer.statistics
        for member in self.members:
            member.scale_rewards = self.scale_rewards
            member.schedule_timesteps = rounds * n_envs
            if self.normalizer.mode == "running":
                member.normalizer.run()
            if self.normalizer.mode == "fixed" and member.num_timesteps == 0:
                member.normalizer.fix(*(self._seen(values[None])[0] for values in (statistics.mean, statistics.std)))

    def _worlds_of(self, env: Any) -> tuple[World, ...]:
        """Return the world of each member in an environment; the same ones for the same environment."""
        if self.layout is None or self._worlds is None or self._worlds[0].env is not env:
            self.bind(env)
            assert self.layout is not None
            worlds = [self._world(env, self.layout)]
            for regime in range(len(self.members) - 1):
                weights = self._probability_of(regime, env)
                weighted = WeightedVectorEnv(env, weights, seed=self._seed_of(1 + regime))
                worlds.append(self._world(weighted, self.layout))
            self._worlds = tuple(worlds)
        return self._worlds

    def _probability_of(self, regime: int, env: TradingVectorEnv) -> Tensor:
        """Return the probability of a regime at the bar after each, as the market shows it; (n_bars,)."""
        column = env.market.feature_names.index(probability_name(regime))
        return torch.from_numpy(env.market.features[:, column].copy())

    def memory_state(self) -> dict[str, Any] | None:
        """Return what members remember and where specialists stand; None before training."""
        if self._worlds is None:
            return None
        # The generalist's environment is the run's own, which saves it.
        environments = [world.env for world in self._worlds[1:]]
        return {
            "members": [member.memory_state() for member in self.members],
            "environments": [env.state_dict() if env.is_under_way else None for env in environments],
        }

    def restore_memory(self, env: Any, state: dict[str, Any] | None) -> None:
        """Take over what `memory_state` returned; None leaves it to be made when training starts."""
        self._worlds = self._present = None
        worlds = self._worlds_of(env)
        n_members = len(self.members)
        if state is None:
            state = {"members": [None] * n_members, "environments": [None] * (n_members - 1)}
        if set(state) != {"members", "environments"} or not (
            len(state["members"]) == n_members == len(state["environments"]) + 1
        ):
            raise ValueError(f"the memory must be that of {n_members} members")
        present: list[Tensor | None] = [None]
        for world, saved in zip(worlds[1:], state["environments"], strict=True):
            present.append(None if saved is None else world.resumed(saved))
        for member, world, memory in zip(self.members, worlds, state["members"], strict=True):
            member.restore_memory(world.seen, memory)
        self._present = tuple(present)

    # Files.

    def learned_state(self) -> dict[str, Any]:
        """Return the members and the detector, each as its own file holds it."""
        self._require_networks()
        return {
            "members": [member.state_dict() for member in self.members],
            "regimes": None if self.regimes is None else file_as_tensor(self.regimes),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the memory: what a file of the agent holds."""
        fields = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        return {**super().state_dict(), "config": fields}

    @classmethod
    def from_state(cls, state: dict[str, Any], *, path: str | Path = "state", device: str = "cpu") -> Self:
        """Build the agent that a file's content describes; errors as for `load_rl_agent`."""
        check_agent_state(state, path)
        check_sizes(state, path)
        config = checked_fields(state["config"], path)
        agent = cls(**state["dimensions"], config=config, device=device)
        agent.load_state_dict(state, path=path)
        return agent

    def load_state_dict(self, state: dict[str, Any], *, path: str | Path = "state") -> None:
        """Become the agent that a checked state describes; see `BaseAgent.load_state_dict`."""
        check_agent_state(state, path)
        if state["agent_type"] != self.agent_type:
            raise CheckpointError(f"{path} holds a {shown(state['agent_type'])} agent, this one is {self.agent_type!r}")
        config = checked_fields(state["config"], path)
        dimensions = {"state_dim": self.state_dim, "action_dim": self.action_dim}
        if state["dimensions"] != dimensions:
            raise CheckpointError(f"{path} was saved with {shown(state['dimensions'])}, this agent has {dimensions}")
        try:
            fresh = self._rebuilt(state, config)
        except DAMAGE as error:
            raise CheckpointError(f"{path} does not fit a {self.agent_type!r} agent: {str(error)[:300]}") from error
        self._become(fresh, keeping=self.kept_on_load)

    def _rebuilt(self, state: dict[str, Any], config: Any) -> BaseAgent:
        fresh = super()._rebuilt(state, config)
        assert isinstance(fresh, RegimeAwareAgent)
        layout = RegimeLayout.of(fresh.environment_spec, fresh.state_dim)
        fresh._check_members(layout)
        fresh.layout, fresh.is_built = layout, True
        return fresh

    def _check_learned(self, learned: dict[str, Any]) -> None:
        if set(learned) != set(self.learned) or type(learned["members"]) is not list:
            raise ValueError(f"learned must have the entries {', '.join(self.learned)}")

    def load_learned_state(self, state: dict[str, Any]) -> None:
        """Take over what `learned_state` returned."""
        self.members = [
            agent_from_state(member, path="a member", device=str(self.device)) for member in state["members"]
        ]
        self.regimes = None if state["regimes"] is None else from_tensor(state["regimes"], RegimeColumns.load)

    def _check_members(self, layout: RegimeLayout) -> None:
        """Check that members from a file are those that the config asks for; raises ValueError."""
        state_dim = len(layout.visible) if not self.config.observe_probabilities else self.state_dim
        wanted = (self.config.agent_type, self.config.member_config, state_dim, self.action_dim, self.n_branches)
        if len(self.members) != self._n_members(layout) or any(
            (member.agent_type, member.config, member.state_dim, member.action_dim, member.n_branches) != wanted
            for member in self.members
        ):
            raise ValueError("the members are not those that the config asks for")
        if self.regimes is not None and self.regimes.n_regimes != layout.n_regimes:
            raise ValueError("the detector knows another number of regimes than the environment shows")

    def _become(self, other: BaseAgent, *, keeping: tuple[str, ...] = ()) -> None:
        assert isinstance(other, RegimeAwareAgent)
        alike = self._form() == other._form()
        if self._is_walking and not alike:
            raise CheckpointError(
                "the file cannot be loaded amid a run: its members differ from those that walk in type, number, features or "
                "what they see of them; load it before the run or after it"
            )
        mine_shown, theirs_shown = self.regimes, other.regimes
        if mine_shown is not None and theirs_shown is not None:
            theirs_shown.take_function_of(mine_shown)
        if keeping and alike:
            # A run in progress goes on with the members it walks; each keeps its memory.
            for mine, theirs in zip(self.members, other.members, strict=True):
                mine._become(theirs, keeping=mine.kept_on_load)
            other.members = self.members
        super()._become(other, keeping=keeping)

    def _form(self) -> tuple[Any, ...]:
        """What members that walk a run must share with those that take their place."""
        return self.config.agent_type, len(self.members), self.config.observe_probabilities, self.layout

    def export_onnx(self, path: str | Path) -> Path:
        """Not for mixtures: members can be exported one by one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a RegimeAwareAgent is no single network: export agent.generalist and each of agent.specialists, and mix what they "
            "answer by agent.mixing_weights"
        )
