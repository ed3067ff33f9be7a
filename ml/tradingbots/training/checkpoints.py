"""A whole training run in one file: the agent, its replay memory, the environment, counters and callbacks.

The file is an agent's file with one more entry, so whatever loads an agent loads a run too; `resume_from` needs the entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml.tradingbots.components.rl_agents import CONFIG_CLASSES
from ml.tradingbots.components.serialization import CheckpointError, check_like, read_file, require_keys, save_file


def save_run(path: str | Path, agent: Any, training: dict[str, Any]) -> Path:
    """Write agent and run, atomically.

    Args:
        path: the file.
        agent: the agent.
        training: the rest of the run, tensors and plain values.
    """
    return save_file(path, "agent", agent.state_dict() | {"training": training})


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a run; returns the agent's state and the rest of the run, the latter checked.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, or holds an agent without its run.
    """
    content = read_file(path, "agent", allowed=CONFIG_CLASSES)
    training = content.get("training")
    if not isinstance(training, dict):
        raise CheckpointError(
            f"{path} holds an agent without its training run, so it can be loaded but not resumed; resume from "
            "checkpoints/last.pt of a run_dir, or from a CheckpointCallback(resumable=True)"
        )
    require_keys(
        training,
        path,
        memory=(dict, type(None)),
        environment_state=(dict, type(None)),
        callbacks=dict,
        counters=dict,
        recent_episodes=list,
        pending=dict,
        losses=dict,
        episode_returns=list,
        episode_lengths=list,
        history=list,
        config=dict,
    )
    try:
        check_like(training["counters"], COUNTERS, "counters")
        _check_numbers(training)
    except ValueError as error:
        raise CheckpointError(f"{path} holds a damaged training run: {error}") from error
    return content, training


# The counters of a run at its beginning.
COUNTERS = {"num_episodes": 0, "num_evaluations": 0, "wall_seconds": 0.0, "offset": 0}


def _check_numbers(training: dict[str, Any]) -> None:
    """Check that what should be numbers by name is; raises ValueError."""
    if any(not 0 <= value < 2**63 for value in training["counters"].values()):
        raise ValueError("counters must not be negative")
    for name, kind in (("episode_returns", float), ("episode_lengths", int)):
        if any(type(value) is not kind for value in training[name]):
            raise ValueError(f"{name} must be a list of {kind.__name__}")
    if any(not 0 < length < 2**63 for length in training["episode_lengths"]):
        raise ValueError("episode_lengths must be positive")
    for row in [*training["history"], *training["recent_episodes"], training["pending"], training["losses"]]:
        if not isinstance(row, dict) or any(type(name) is not str for name in row):
            raise ValueError("a row must be a dictionary by name")
        if any(type(value) not in (int, float, str) for value in row.values()):
            raise ValueError("a row must hold numbers and text")
