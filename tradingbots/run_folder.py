"""The folder of a run: what made it, whether it can be gone on with, and until when its agent has seen prices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml.tradingbots.components.serialization import write_atomically
from ml.tradingbots.training import Callback, TrainingState

# What a run may be resumed with differently: its length, and what only concerns how it is watched.
FREE_TO_CHANGE = (
    "total_timesteps",
    "total_episodes",
    "eval_frequency",
    "log_frequency",
    "checkpoint_frequency",
    "progress",
    "torch_threads",
    "run_dir",
)
FLAG_PREFIXES = {"data": "--", "agent": "--config.", "environment": "--env.", "training": "--training."}


class RecordRun(Callback):
    """Adds to `config.json` what the library cannot know, and to the agent until when it has seen prices.

    Args:
        run_dir: folder of the run.
        data: prices, periods and seed, plain values.
        seen_until: timestamp of the last bar that training or choosing looked at.
    """

    def __init__(self, run_dir: Path, data: Mapping[str, Any], seen_until: str) -> None:
        self.run_dir, self.data, self.seen_until = run_dir, dict(data), seen_until

    def on_training_start(self, state: TrainingState) -> None:
        """Write."""
        state.agent.environment_spec = state.agent.environment_spec | {"seen_until": self.seen_until}
        path = self.run_dir / "config.json"
        settings = json.loads(path.read_text()) | {"data": self.data}
        write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


def checkpoint_of(run_dir: Path) -> Path:
    """Where a run keeps what it is resumed from."""
    return run_dir / "checkpoints" / "last.pt"


def check_new(run_dir: Path) -> None:
    """Refuse a folder that already holds a run.

    Raises:
        FileExistsError: it does.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"{run_dir} is a file, and a run needs a folder; choose another --run-dir")
    if (run_dir / "config.json").exists():
        go_on = "go on with it by --resume, " if checkpoint_of(run_dir).is_file() else ""
        raise FileExistsError(
            f"{run_dir} already holds a run; {go_on}replace it by --overwrite, or choose another --run-dir"
        )


def check_resumable(run_dir: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to resume a run with other settings than it was begun with.

    Args:
        run_dir: its folder.
        settings: the present settings, by the sections of `FLAG_PREFIXES`.

    Raises:
        FileNotFoundError: there is nothing to resume.
        ValueError: settings differ; the message names them as flags.
    """
    if not checkpoint_of(run_dir).is_file():
        raise FileNotFoundError(f"there is nothing to resume: no checkpoint at {checkpoint_of(run_dir)}")
    path = run_dir / "config.json"
    try:
        saved = json.loads(path.read_text())
        saved["environment"] = saved["environment"]["config"]
        sections = {name: dict(saved[name]) for name in settings}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was not written by `tradingbots train` ({error!r})") from error
    differences = []
    for section, present in settings.items():
        for name, value in json.loads(json.dumps(present)).items():
            before = sections[section].get(name)
            if name not in FREE_TO_CHANGE and before != value:
                flag = FLAG_PREFIXES[section] + name.replace("_", "-")
                differences.append(f"{flag} was {before!r}, now {value!r}")
    if differences:
        raise ValueError(
            f"the run in {run_dir} was begun with other settings: {'; '.join(differences)}. Resume it with the same ones, "
            "or choose another --run-dir"
        )
