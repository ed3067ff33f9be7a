"""What the file of an agent must hold, checked before anything is made of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ml.tradingbots.components.agent_config import AgentConfig
from ml.tradingbots.components.encoders import least_parameters, window_shape
from ml.tradingbots.components.serialization import CheckpointError, require_keys, shown

if TYPE_CHECKING:
    from ml.tradingbots.components.task_networks import TaskLayout


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
        n_branches=int,
        generator=Tensor,
        device=str,
        counters=dict,
        environment=dict,
    )


def check_dimensions(
    state: dict[str, Any], config: AgentConfig, path: str | Path, layout: TaskLayout | None = None
) -> None:
    """Check the dimensions in a file against the networks in it, before networks of that size are made.

    `layout` is that of an agent of several tasks.

    Raises:
        CheckpointError: they are no positive integers, or need more parameters than the file holds.
    """
    check_sizes(state, path)
    dimensions = state["dimensions"]
    stored: dict[int, int] = {}
    waiting = [state["learned"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    needed = _least_parameters(state, config, path, layout)
    if 4 * needed > sum(stored.values()):
        raise CheckpointError(
            f"{path}: networks for {shown(dimensions)} with network={config.network!r} and hidden layers "
            f"{shown(config.widths)} are larger than those in the file"
        )


def check_sizes(state: dict[str, Any], path: str | Path) -> None:
    """Check the dimensions in a file against the statistics and bounds in it, before anything of that size is made.

    Raises:
        CheckpointError: they are no positive integers, or others.
    """
    dimensions = state["dimensions"]
    if set(dimensions) != {"state_dim", "action_dim"} or any(
        type(value) is not int or value < 1 for value in dimensions.values()
    ):
        raise CheckpointError(f"{path}: dimensions must be state_dim and action_dim, got {shown(dimensions)}")
    # The statistics are one number for each entry of an observation: they bound everything that is made of its length.
    statistics = state["normalizer"].get("statistics")
    mean = statistics.get("mean") if isinstance(statistics, dict) else None
    if type(mean) is not Tensor or mean.shape != (dimensions["state_dim"],) or not _is_stored(mean):
        raise CheckpointError(f"{path}: the normaliser does not have {shown(dimensions['state_dim'])} entries")
    low = state["action_bounds"].get("low")
    if type(low) is not Tensor or low.shape != (dimensions["action_dim"],) or not _is_stored(low):
        raise CheckpointError(f"{path}: the bounds of actions do not have {shown(dimensions['action_dim'])} entries")


def _is_stored(tensor: Tensor) -> bool:
    """Whether every entry of a tensor has memory of its own in the file: an expanded one can claim any size."""
    is_plain = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return is_plain and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _least_parameters(state: dict[str, Any], config: AgentConfig, path: str | Path, layout: TaskLayout | None) -> int:
    """Count the weights that one network has at least, without making it."""
    width = state["dimensions"]["state_dim"] - (layout.n_tasks if layout is not None else 0)
    encoder = 0
    if config.network != "mlp":
        try:
            window = window_shape(state["environment"], width)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        encoder = least_parameters(config.network, window, config.hidden_dim)
        width = config.hidden_dim
    if layout is not None:
        encoder += layout.n_weights(width)
        width = layout.output_dim
    sizes = [width, *config.widths, state["dimensions"]["action_dim"]]
    return int(encoder + sum(before * after for before, after in pairwise(sizes)))
