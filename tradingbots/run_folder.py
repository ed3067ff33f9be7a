"""The folder of a run: what made it, whether it can be gone on with, and until when its agent has seen prices."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ml.tradingbots.components.serialization import CheckpointError, shown, write_atomically
from ml.tradingbots.data.timestamps import utc_timestamp
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
        seen_until: timestamp of the last bar that training or choosing looked at, now or before; None where that is not known.
    """

    def __init__(self, run_dir: Path, data: Mapping[str, Any], seen_until: str | None) -> None:
        self.run_dir, self.data, self.seen_until = run_dir, dict(data), seen_until

    def on_training_start(self, state: TrainingState) -> None:
        """Write."""
        spec = {name: value for name, value in state.agent.environment_spec.items() if name != "seen_until"}
        state.agent.environment_spec = spec if self.seen_until is None else spec | {"seen_until": self.seen_until}
        path = self.run_dir / "config.json"
        settings = json.loads(path.read_text()) | {"data": self.data}
        write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


def read_seen_until(value: object, file: str | Path) -> pd.Timestamp | None:
    """Return the last instant at which an agent or a predictor has seen prices, None where its file does not say.

    Args:
        value: what the file says.
        file: its name, for the error.

    Raises:
        CheckpointError: the file says something that is no instant.
    """
    if value is None:
        return None
    try:
        # Without its zone it is not what a run writes, and could be hours off.
        text = value if isinstance(value, str) and pd.Timestamp(value).tzinfo is not None else None
        known = None if text is None else utc_timestamp(text, "seen_until")
    except (TypeError, ValueError, OverflowError):
        known = None
    if known is None:
        raise CheckpointError(f"{file}: seen_until must be a date and time with its zone, got {shown(value)}")
    return known


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
        go_on = "go on with it by --resume, " if any((run_dir / "checkpoints").rglob("*.pt")) else ""
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


@contextlib.contextmanager
def claimed(run_dir: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Hold the folder of a fit or a walk-forward while it runs; gives the folder of its checkpoints.

    What is refused before anything was learned leaves the folder as it was found.

    Args:
        run_dir: the folder.
        settings: what made the run, `verb` first; a resumed run must have been begun with the same.
        resume: go on with the run that is there.
        overwrite: replace it.

    Raises:
        FileExistsError: it holds a run, and neither was asked for.
        FileNotFoundError: there is nothing to resume.
        ValueError: the run there is another one.
    """
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite replaces it: leave one of them out")
    checkpoints, path = run_dir / "checkpoints", run_dir / "config.json"
    before = path.read_bytes() if path.is_file() else None
    if resume:
        _check_same(run_dir, before, settings)
    elif not overwrite:
        check_new(run_dir)
    elif before is not None:
        # Checkpoints alone: whatever else is in a folder of that name is not ours to delete.
        for file in (found for found in checkpoints.rglob("*.pt") if found.is_file()):
            file.unlink()
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())
    try:
        yield checkpoints
    except Exception:
        if not any(checkpoints.rglob("*.pt")):
            _leave_as_found(run_dir, before)
        raise


def _check_same(run_dir: Path, before: bytes | None, settings: Mapping[str, Any]) -> None:
    if before is None:
        raise FileNotFoundError(f"there is nothing to resume: {run_dir} holds no run")
    wanted = json.loads(json.dumps(settings))
    try:
        saved = json.loads(before)
        verb = saved.get("verb", "train")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{run_dir / 'config.json'} is damaged ({error!r})") from error
    if verb != wanted["verb"]:
        raise ValueError(f"the run in {run_dir} is one of `tradingbots {verb}`; choose another --run-dir")
    found = sorted(_differences(saved.get("arguments", {}), wanted["arguments"], "--"))
    if found:
        raise ValueError(
            f"the run in {run_dir} was begun with other settings: {'; '.join(found)}. Resume it with the same ones, or choose "
            "another --run-dir"
        )


def _differences(saved: Mapping[str, Any], present: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name in {*saved, *present}:
        before, now, flag = saved.get(name), present.get(name), prefix + name.replace("_", "-")
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{flag}.")
        elif before != now:
            found.append(f"{flag} was {before!r}, now {now!r}")
    return found


def _leave_as_found(run_dir: Path, before: bytes | None) -> None:
    if before is not None:
        write_atomically(run_dir / "config.json", before)
        return
    (run_dir / "config.json").unlink()
    with contextlib.suppress(OSError):  # Not empty: something of the user's is in it.
        for folder in sorted((run_dir / "checkpoints").rglob("*"), reverse=True):
            folder.rmdir()
        (run_dir / "checkpoints").rmdir()
        run_dir.rmdir()
