"""The factory: every agent by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ml.tradingbots.components.base_agent import BaseAgent, check_agent_state, check_dimensions
from ml.tradingbots.components.sac_agent import SACAgent
from ml.tradingbots.components.serialization import CheckpointError, checked_config, read_file, shown

AGENTS: dict[str, type[BaseAgent]] = {agent.agent_type: agent for agent in (SACAgent,)}
CONFIG_CLASSES: tuple[type, ...] = tuple(agent.config_class for agent in AGENTS.values())


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
    if state["agent_type"] not in AGENTS:
        raise CheckpointError(f"{path} holds an agent of unknown type {shown(state['agent_type'])}")
    config = checked_config(state["config"], AGENTS[state["agent_type"]].config_class, path)
    check_dimensions(state, config, path)
    agent = create_rl_agent(state["agent_type"], **state["dimensions"], config=config, device=device)
    agent.load_state_dict(state, path=path)
    return agent
