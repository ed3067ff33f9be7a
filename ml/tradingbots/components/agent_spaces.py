"""How an agent's actions fit an environment's: kinds of spaces, branches of choices, masks of legal ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from ml.tradingbots.components.base_agent import BaseAgent


def check_fits(space: gymnasium.Space[Any], agent: Any) -> None:
    """Check that an agent can act in a space; errors as for `BaseAgent.bind`. Agents that are not ours always pass."""
    if isinstance(getattr(agent, "is_discrete", None), bool):
        if agent.is_discrete:
            n_branches_of(space, agent)
        else:
            check_box(space, agent)


def check_box(space: gymnasium.Space[Any], agent: BaseAgent) -> None:
    """Check that an action space is a box that a continuous agent fits; errors as for `BaseAgent.bind`."""
    name = f"agent {agent.agent_type!r}"
    if isinstance(space, gymnasium.spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        raise TypeError(
            f"no agent acts in a Box of whole numbers, the environment has {space}: offer Discrete choices or "
            "a Box of floats in a gymnasium.ActionWrapper"
        )
    if not isinstance(space, gymnasium.spaces.Box):
        own = f", {agent.config_class.__name__}(action_type='discrete')" if _has_both(agent) else ""
        raise TypeError(
            f"{name} needs continuous actions, the environment has {space}; use TradingEnvConfig(action_type='continuous')"
            f"{own}, or a discrete agent: create_rl_agent('dqn', ...)"
        )
    if len(space.shape) != 1:
        raise ValueError(f"{name} needs actions in one row, the environment has {space}; flatten them in a wrapper")
    if space.shape != (agent.action_dim,):
        raise ValueError(
            f"the environment's actions have shape {space.shape}, the agent was created with action_dim={agent.action_dim}; "
            f"create it with action_dim={space.shape[0]} (env.action_space_dim of a TradingEnvironment)"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"{name} needs actions with finite bounds, the environment has {space}; bound "
            "them with gymnasium.wrappers.TransformAction"
        )


def n_branches_of(space: gymnasium.Space[Any], agent: BaseAgent) -> int:
    """Return how many choices a discrete agent makes at once in a space; errors as for `BaseAgent.bind`."""
    name = f"agent {agent.agent_type!r}"
    if isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        own = f", {agent.config_class.__name__}(action_type='continuous')" if _has_both(agent) else ""
        raise TypeError(
            f"{name} needs discrete actions, the environment has {space}; use TradingEnvConfig(action_type='discrete')"
            f"{own}, or a continuous agent: create_rl_agent('sac', ...)"
        )
    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        n_branches, n_choices = 1, int(space.n)
    elif _is_even(space):
        n_branches, n_choices = len(space.nvec), int(space.nvec[0])  # type: ignore[attr-defined]
    else:
        raise TypeError(
            f"{name} needs Discrete(n), or MultiDiscrete with as many choices in each entry, both counted from 0; the "
            f"environment has {space}: translate its actions in a gymnasium.ActionWrapper"
        )
    if n_branches * n_choices != agent.action_dim:
        raise ValueError(
            f"the environment has {n_branches * n_choices} choices ({space}), the agent was created with "
            f"action_dim={agent.action_dim}; create it with action_dim={n_branches * n_choices} "
            "(env.action_space_dim of a TradingEnvironment)"
        )
    return n_branches


def _is_even(space: gymnasium.Space[Any]) -> bool:
    """Whether a space has several choices to make, all of the same size and counted from 0."""
    if not isinstance(space, gymnasium.spaces.MultiDiscrete) or space.nvec.ndim != 1:
        return False
    return len(space.nvec) > 1 and len(set(space.nvec)) == 1 and not np.any(space.start)


def _has_both(agent: BaseAgent) -> bool:
    """Whether the config says which kind of actions the agent gives."""
    return hasattr(agent.config, "action_type")


def present_mask(env: Any) -> Tensor | None:
    """Return which choices are legal in an environment under way; None where it does not say."""
    mask: Tensor | None = env.action_mask() if hasattr(env, "action_mask") else None
    return mask


def saved_mask_dim(masks: Any) -> int:
    """Return the length of the action masks in a saved memory; 0 where there are none."""
    return int(masks.shape[-1]) if isinstance(masks, Tensor) and masks.ndim > 1 else 0
