"""Hyperparameters of `RegimeAwareAgent`, and how its file holds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ml.tradingbots.components.agent_config import AgentConfig, check_fraction
from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, checked_config, shown


@dataclass(frozen=True, kw_only=True)
class RegimeAwareConfig:
    """Hyperparameters of `RegimeAwareAgent`.

    Raises:
        ValueError: a value is out of range, or `agent_type` is unknown.
        TypeError: `agent_config` belongs to another agent.
    """

    network: ClassVar[str] = "mlp"

    agent_type: str = "sac"
    """What all members are: a name of `list_available_agents()`."""
    agent_config: AgentConfig | None = None
    """Their hyperparameters; None takes the defaults of `agent_type`."""
    min_generalist: float = 0.1
    """Least weight of the generalist, in (0, 1]: it is always in the mix; 1 leaves it alone."""
    observe_probabilities: bool = True
    """Whether members see the columns of regimes; False hides them, and leaves the regimes to the mixing."""
    mix: bool = True
    """Whether there are specialists; False is the generalist alone."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.agent_type not in AGENTS:
            raise ValueError(f"agent_type must be one of {', '.join(AGENTS)}, got {self.agent_type!r}")
        expected = AGENTS[self.agent_type].config_class
        if self.agent_config is not None and type(self.agent_config) is not expected:
            raise TypeError(
                f"agent_config of agent_type {self.agent_type!r} must be a {expected.__name__}, got "
                f"{type(self.agent_config).__name__}"
            )
        check_fraction(self, "min_generalist")
        if self.min_generalist == 0.0:
            raise ValueError(
                "min_generalist must be above 0, the generalist is always in the mix, got 0; 0.01 is next to nothing"
            )

    @property
    def member_config(self) -> AgentConfig:
        """Hyperparameters of members."""
        return self.agent_config if self.agent_config is not None else AGENTS[self.agent_type].config_class()

    @property
    def has_choices(self) -> bool:
        """Whether members choose among actions rather than answer with numbers."""
        return self.agent_type == "dqn" or getattr(self.member_config, "action_type", "continuous") == "discrete"


def checked_fields(fields: Any, path: str | Path) -> RegimeAwareConfig:
    """Make a config of what a file holds, every field checked.

    Raises:
        CheckpointError: it is none.
    """
    names = {field.name for field in dataclasses.fields(RegimeAwareConfig)}
    if type(fields) is not dict or set(fields) != names:
        raise CheckpointError(f"{path}: config of a regime-aware agent must have the fields {', '.join(sorted(names))}")
    kind, inner = fields["agent_type"], fields["agent_config"]
    if type(kind) is not str or kind not in AGENTS:
        raise CheckpointError(f"{path}: agent_type is {shown(kind)}, known are {', '.join(AGENTS)}")
    if inner is not None:
        inner = checked_config(inner, AGENTS[kind].config_class, path)
    try:
        return RegimeAwareConfig(**{**fields, "agent_config": inner})
    except DAMAGE as error:
        raise CheckpointError(f"{path}: the config was refused: {str(error)[:200]}") from error
