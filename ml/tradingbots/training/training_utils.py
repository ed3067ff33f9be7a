"""What training needs around the model: splits of the data, stopping in time, and files of the best models."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ml.tradingbots.components.early_stopping import EarlyStoppingCallback
from ml.tradingbots.components.serialization import CheckpointError, plain, shown, write_atomically
from ml.tradingbots.data.splitters import CombinatorialPurgedCV, PanelSplit, PurgedKFold, WalkForwardValidator

__all__ = [
    "Checkpoint",
    "CombinatorialPurgedCV",
    "EarlyStoppingCallback",
    "ModelCheckpointer",
    "PanelSplit",
    "PurgedKFold",
    "WalkForwardValidator",
]

MANIFEST = "checkpoints.json"
FORMAT_VERSION = 1
_FILE_NAME = re.compile(r"model_(\d{6,})\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One saved model."""

    id: int
    """Its number in the folder, counted from 1 and never given twice."""
    file: str
    """Name of its file in the folder."""
    score: float | None
    """What it is ranked by; None where that was no number."""
    saved_at: str
    """When it was saved, ISO 8601 in UTC."""
    metadata: dict[str, Any]
    """What was said about it."""


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What the folder's list says."""

    next_id: int
    """The number that the next model is given."""
    checkpoints: list[Checkpoint]
    """The models kept, oldest first."""
    leftover: list[int]
    """Numbers whose files, if there are any, are to be deleted: saved without being listed, or kept no longer."""


class ModelCheckpointer:
    """Keeps the best models of a training run in a folder, and gives the best one back.

    The folder holds a file per model and `checkpoints.json`, which names them relative to the folder, so that it can be
    moved. The number of a model is written down before its file, and a file is deleted after the list without it is
    written: a crash in between costs the model being saved, never one that is listed, and no number is given twice. One
    process writes into a folder at a time.

    Args:
        folder: where; it is made by the first save, and later ones go on in it.
        monitor: name of the score.
        mode: "min" where less is better (losses), "max" where more is.
        keep: how many of the best models to keep. The latest one is kept beside them.

    Raises:
        ValueError: an argument is out of range, or the folder holds models that are ranked by another score.
        CheckpointError: the folder's list is damaged.
    """

    def __init__(
        self, folder: str | Path, *, monitor: str = "val_loss", mode: Literal["min", "max"] = "min", keep: int = 3
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' (losses) or 'max', got {mode!r}")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be an integer of 1 model or more, got {keep!r}")
        self.folder, self.monitor, self.mode, self.keep = Path(folder), monitor, mode, keep
        self._read()

    def save(self, model: Any, *, score: float, metadata: dict[str, Any] | None = None) -> Path:
        """Save a model, and delete those that are no longer among the best.

        Args:
            model: anything with `save(path)` that writes one file, such as an agent or a predictor.
            score: its `monitor`. One that is no number, or infinite, ranks behind all others.
            metadata: numbers, text, lists and dictionaries to keep with it; numbers that are none become null.

        Returns:
            The model's file.

        Raises:
            TypeError: the metadata hold something that JSON cannot; nothing was saved.
            RuntimeError: the model's `save` wrote no file where it was told to.
        """
        kept_metadata = _as_json(plain(dict(metadata or {}), "metadata"), "metadata")
        before = self._read()
        self._delete(before.leftover)
        number = max([before.next_id, *(found + 1 for found in self._numbers_of_files())])
        self._write(_Manifest(next_id=number + 1, checkpoints=before.checkpoints, leftover=[number]))
        path = self.folder / _file_name(number)
        model.save(path)
        if not path.is_file():
            raise RuntimeError(
                f"{type(model).__name__}.save({str(path)!r}) wrote no file there; it must write one file"
            )
        checkpoint = Checkpoint(
            id=number,
            file=path.name,
            score=float(score) if math.isfinite(score) else None,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            metadata=kept_metadata,
        )
        candidates = [*before.checkpoints, checkpoint]
        kept = [*sorted(candidates, key=self._rank)[: self.keep], checkpoint]
        dropped = [item.id for item in candidates if item not in kept]
        listed = [item for item in candidates if item in kept]
        self._write(_Manifest(next_id=number + 1, checkpoints=listed, leftover=dropped))
        self._delete(dropped)
        return path

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The models whose files are there, oldest first."""
        return [checkpoint for checkpoint in self._read().checkpoints if (self.folder / checkpoint.file).is_file()]

    @property
    def best(self) -> Checkpoint | None:
        """The best model; of equal ones the earliest; None where there is none with a score."""
        scored = [checkpoint for checkpoint in self.checkpoints if checkpoint.score is not None]
        return min(scored, key=self._rank, default=None)

    @property
    def best_path(self) -> Path | None:
        """File of the best model, None where there is none with a score."""
        return None if self.best is None else self.folder / self.best.file

    @property
    def latest_path(self) -> Path | None:
        """File of the model saved last, None where there is none."""
        found = self.checkpoints
        return self.folder / found[-1].file if found else None

    def restore_best(self, model: Any) -> Any:
        """Make a model the best one that was saved.

        Args:
            model: with `load(path)`. Where that makes a new model instead of changing this one, this one takes over all
                that the new one has.

        Returns:
            The same model.

        Raises:
            FileNotFoundError: no model with a score was saved.
            TypeError: the file holds a model of another class.
        """
        path = self.best_path
        if path is None:
            raise FileNotFoundError(f"there is no model with a score in {self.folder}; save one first")
        loaded = model.load(path)
        if loaded is None or loaded is model:
            return model
        if type(loaded) is not type(model):
            raise TypeError(f"{path} holds a {type(loaded).__name__}, the model is a {type(model).__name__}")
        vars(model).clear()
        vars(model).update(vars(loaded))
        return model

    def _rank(self, checkpoint: Checkpoint) -> tuple[bool, float, int]:
        score = 0.0 if checkpoint.score is None else checkpoint.score
        return checkpoint.score is None, score if self.mode == "min" else -score, checkpoint.id

    def _numbers_of_files(self) -> list[int]:
        found = (_FILE_NAME.fullmatch(path.name) for path in self.folder.glob("model_*.pt"))
        return [int(match[1]) for match in found if match]

    def _delete(self, numbers: list[int]) -> None:
        for number in numbers:
            (self.folder / _file_name(number)).unlink(missing_ok=True)

    def _write(self, manifest: _Manifest) -> None:
        ranking = {"monitor": self.monitor, "mode": self.mode}
        content = {"format_version": FORMAT_VERSION, **ranking, **asdict(manifest)}
        write_atomically(self.folder / MANIFEST, json.dumps(content, indent=2, allow_nan=False).encode())

    def _read(self) -> _Manifest:
        path = self.folder / MANIFEST
        if not path.exists():
            return _Manifest(next_id=1, checkpoints=[], leftover=[])
        try:
            content = json.loads(path.read_text())
            version, monitor, mode = content.pop("format_version"), content.pop("monitor"), content.pop("mode")
            if version != FORMAT_VERSION:
                raise ValueError(f"it has format version {shown(version)}, this library reads {FORMAT_VERSION}")
            checkpoints = [Checkpoint(**entry) for entry in content.pop("checkpoints")]
            manifest = _Manifest(checkpoints=checkpoints, **content)
            _check_manifest(manifest)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a list of checkpoints: {error}") from error
        if (monitor, mode) != (self.monitor, self.mode):
            raise ValueError(
                f"{self.folder} holds models ranked by monitor={monitor!r}, mode={mode!r}; got {self.monitor!r}, "
                f"{self.mode!r}. Use those, or another folder"
            )
        return manifest


def _file_name(number: int) -> str:
    return f"model_{number:06d}.pt"


def _check_manifest(manifest: _Manifest) -> None:
    """Check what a file said; names are only ever those that a save gives, since files are deleted by them."""
    numbers = [checkpoint.id for checkpoint in manifest.checkpoints]
    every = [*numbers, *manifest.leftover]
    if type(manifest.next_id) is not int or any(type(number) is not int for number in every):
        raise ValueError("numbers must be integers")
    if sorted(numbers) != numbers or len(set(every)) != len(every) or not all(0 < n < manifest.next_id for n in every):
        raise ValueError("numbers must differ, rise from 1 and be less than next_id")
    for checkpoint in manifest.checkpoints:
        score = checkpoint.score
        if checkpoint.file != _file_name(checkpoint.id):
            raise ValueError(f"the file of number {checkpoint.id} cannot be {shown(checkpoint.file)}")
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise ValueError(f"the score of number {checkpoint.id} cannot be {shown(score)}")


def _as_json(value: Any, where: str) -> Any:
    """Return a value as JSON holds it; numbers that are none become None."""
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} must have text as names, got {name!r}")
        return {name: _as_json(item, f"{where}[{name!r}]") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; metadata hold numbers, text, lists and dictionaries of them")
