"""The one place that writes and reads files of learned things: atomic, allow-listed, nothing in them ever runs.

Files are what `torch.save` writes. They are read by torch's restricted loader with an explicit list of our own config
classes, so a file that names anything else is refused before anything of it is executed.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import tempfile
import types
import typing
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A file cannot be used: broken, hostile, of another format version, or for something else."""


def save_file(path: str | Path, kind: str, content: dict[str, Any]) -> Path:
    """Write a file so that a crash leaves the old one or the new one, never half of one.

    Args:
        path: where; parent folders are made.
        kind: what the file is ("agent", "training run"), checked when it is read.
        content: tensors, plain values and allow-listed config dataclasses.

    Returns:
        The path written.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, "kind": kind, **content}, buffer)
    return write_atomically(path, buffer.getbuffer())


def write_atomically(path: str | Path, content: bytes | memoryview) -> Path:
    """Write bytes to a temporary name, sync them, and rename; parent folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read.
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_file(path: str | Path, kind: str, *, allowed: Iterable[type] = ()) -> dict[str, Any]:
    """Read a file written by `save_file`.

    Args:
        path: the file.
        kind: what it must be.
        allowed: config dataclasses that it may hold, beside tensors and plain values.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated or no checkpoint at all, names a class outside `allowed`, is of another format
            version or kind, or a config in it has fields of the wrong names or types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    allowed = tuple(allowed)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors, plain values and the configs of this library, "
            f"or is damaged; nothing in it was run ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: truncated or damaged ({_first_line(error)})"
        ) from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of this library: it has no format_version")
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content['format_version']!r}, this library reads {FORMAT_VERSION}: "
            "load it with the version of the library that wrote it"
        )
    if content.get("kind") != kind:
        raise CheckpointError(f"{path} holds a {content.get('kind')!r}, not a {kind!r}")
    return content


def checked_config(config: Any, expected: Any, path: str | Path) -> Any:
    """Return a config read from a file after running all its checks again, field types included.

    The restricted loader fills a dataclass without calling its constructor, so nothing in it has been checked yet.

    Raises:
        CheckpointError: it is no instance of `expected`, or a field is missing, unknown, of the wrong type or refused.
    """
    if type(config) is not expected:
        raise CheckpointError(f"{path}: config is a {type(config).__name__}, expected {expected.__name__}")
    values = dict(vars(config))
    fields = {field.name for field in dataclasses.fields(config)}
    if set(values) != fields:
        raise CheckpointError(
            f"{path}: {expected.__name__} has other fields: {', '.join(sorted(set(values) ^ fields))}"
        )
    hints = typing.get_type_hints(expected)
    for name, value in values.items():
        if not _is_of_type(value, hints[name]):
            raise CheckpointError(f"{path}: {expected.__name__}.{name} is {value!r}, expected {hints[name]}")
    try:
        return expected(**values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {expected.__name__} was refused: {error}") from error


def require_keys(content: dict[str, Any], path: str | Path, **types_: Any) -> None:
    """Check that a file has these entries with these types.

    Raises:
        CheckpointError: one is missing or of another type.
    """
    for name, kind in types_.items():
        if name not in content:
            raise CheckpointError(f"{path} has no entry {name!r}")
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(content[name]).__name__}")


def _is_of_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments and type(value) in {type(argument) for argument in arguments}
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(item, arguments[0]) for item in value)
    if hint is float:
        return type(value) in (float, int)
    return type(value) is hint


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a no-op where folders cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
