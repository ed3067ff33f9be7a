"""A whole training run in one file: the agent, its replay memory, the environment, counters and callbacks.

The file is an agent's file with one more entry, so whatever loads an agent loads a run too; `resume_from` needs the entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml.tradingbots.components.rl_agents import CONFIG_CLASSES
from ml.tradingbots.components.serialization import CheckpointError, read_file, require_keys, save_file


def save_run(path: str | Path, agent: Any, training: dict[str, Any]) -> Path:
    """Write agent and run, atomically.

    Args:
        path: the file.
        agent: the agent.
        training: the rest of the run, tensors and plain values.
    """
    return save_file(path, "agent", agent.state_dict() | {"training": training})


def read_run(path: str | Path, agent: Any) -> dict[str, Any]:
    """Read a run: the agent takes over its state, the rest is returned.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, of another agent, or holds an agent without its run.
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
        replay=(dict, type(None)),
        environment_state=(dict, type(None)),
        callbacks=dict,
        counters=dict,
        recent_episodes=list,
        pending=dict,
        episode_returns=list,
        episode_lengths=list,
        history=list,
        config=dict,
    )
    agent.load_state_dict(content, path=path)
    return training
