"""The one place that writes and reads files of learned things: atomic, allow-listed, nothing in them ever runs.

Files are what `torch.save` writes. They are read by torch's restricted loader with an explicit list of our own config
classes, so a file that names anything else is refused before anything of it is executed.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import pickle
import re
import struct
import tempfile
import threading
import types
import typing
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT_VERSION = 2

# What Python and torch raise on contents that make no sense: never let out as they are. OSError and programming errors of
# ours are not among them, except where damaged contents cause the same kind.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
)
# torch's list of allowed classes is one for the process, and leaving its context removes them for every thread.
_ALLOW_LIST = threading.Lock()


# How a person gets at what a file of each kind holds.
_HOW_TO_LOAD = {
    "agent": "load it with load_rl_agent(path)",
    "predictor": "load it with load_predictor(path)",
    "multitask agent": "load it with MultiTaskRLAgent.load(path)",
    "predictor fit": "give it to fit(..., checkpoint=path), which goes on from it",
}


class CheckpointError(ValueError):
    """A file cannot be used: broken, hostile, of another format version, or for something else."""


def save_file(path: str | Path, kind: str, content: dict[str, Any]) -> Path:
    """Write a file so that a crash leaves the old one or the new one, never half of one.

    Args:
        path: where; parent folders are made.
        kind: what the file is ("agent", "training run"), checked when it is read.
        content: tensors, plain values and allow-listed config dataclasses. NumPy scalars become Python's.

    Returns:
        The path written.

    Raises:
        TypeError: the content holds something else, which could be written but would be refused when it is read.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, "kind": kind, **plain(content, "content")}, buffer)
    return write_atomically(path, buffer.getbuffer())


def plain(value: Any, where: str) -> Any:
    """Return a value as files hold it: containers, tensors and Python's own scalars.

    Args:
        value: what is to be saved.
        where: what messages call it.

    Raises:
        TypeError: it holds something that the restricted loader would refuse to read.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor) or value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, dict):
        if all(isinstance(item, Tensor) for item in value.values()):
            return value  # A module's own state dictionary, which carries more than its items.
        return {plain(key, where): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item, f"{where}[{number}]") for number, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: plain(getattr(value, name), f"{where}.{name}") for name in names})
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be saved: files hold tensors, numbers, text, lists, tuples and "
        "dictionaries of them"
    )


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
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    allowed = tuple(allowed)
    try:
        _check_archive(path)
        with _ALLOW_LIST, torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        label = file_label(path)
        if label[0] and label[0] != kind:
            raise CheckpointError(f"{path} holds {_what_it_is(*label, kind)}") from error
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors, plain values and the configs of this library, "
            f"or is damaged; nothing in it was run ({_first_line(error)})"
        ) from error
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # The disk's fault; EINVAL is what seeking to nonsensical places gives.
        raise CheckpointError(
            f"{path} is not a readable checkpoint: truncated or damaged ({_first_line(error)})"
        ) from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of this library: it has no format_version")
    version, found = content["format_version"], content.get("kind")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {shown(version)}, this library reads {FORMAT_VERSION}: "
            "load it with the version of the library that wrote it"
        )
    if type(found) is not str or found != kind:
        type_ = content.get(f"{found}_type") if type(found) is str else ""
        raise CheckpointError(f"{path} holds {_what_it_is(found, type_, kind)}")
    return content


def file_label(path: str | Path) -> tuple[str, str]:
    """Return what a file says it is, for messages: its kind and, of that kind, its type ("predictor", "lstm").

    Configs in it are not needed for that: empty classes stand for whatever it names, so nothing of it is imported or run.
    Entries that it does not have, or that cannot be read, are "".
    """
    try:
        _check_archive(Path(path))
        with _ALLOW_LIST:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins: list[Any] = [_stand_in(*name.rsplit(".", 1)) for name in named]
            with torch.serialization.safe_globals(stand_ins):
                content = torch.load(path, map_location="cpu", weights_only=True)
        kind = content["kind"]
        type_ = content.get(f"{kind}_type", "")
    except (*DAMAGE, OSError):
        return "", ""
    return (kind, type_) if type(kind) is str and type(type_) is str else ("", "")


def _stand_in(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


def _what_it_is(kind: Any, type_: Any, expected: str) -> str:
    """Return "a 'ppo' agent, not a predictor: load it so"."""
    what = f"{shown(type_)} {kind}" if type(type_) is str and type_ else shown(kind)
    advice = _HOW_TO_LOAD.get(kind) if type(kind) is str else None
    article = "an" if expected[0] in "aeiou" else "a"
    return f"a {what}, not {article} {expected}{f': {advice}' if advice else ''}"


def _check_archive(path: Path) -> None:
    """Check that a file is a plain archive, so that torch's readers of older formats never see it."""
    with path.open("rb") as file:
        begins_well = file.read(4) == b"PK\x03\x04"
    if not begins_well:
        raise ValueError("it is no torch archive")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        damaged = archive.testzip()  # torch itself does not look at the check sums.
    if damaged is not None:
        raise ValueError(f"the check sum of its entry {shown(damaged)} is wrong")
    # Ours are stored as they are. Anything else can claim any size once unpacked.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries are larger than the file")


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
        other = ", ".join(sorted(shown(name) for name in set(values) ^ fields))
        raise CheckpointError(f"{path}: {expected.__name__} has other fields: {other}")
    hints = typing.get_type_hints(expected)
    for name, value in values.items():
        if not _is_of_type(value, hints[name]):
            raise CheckpointError(f"{path}: {expected.__name__}.{name} is {shown(value)}, expected {hints[name]}")
    try:
        return expected(**values)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: {expected.__name__} was refused: {_first_line(error)}") from error


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


def check_like(value: Any, template: Any, where: str, *, finite: bool = True) -> None:
    """Check that a value read from a file has the structure of one made here, tensors of the same types and shapes.

    Args:
        value: from the file.
        template: a value that is right in everything but its numbers.
        where: what messages call it.
        finite: whether tensors must hold no NaN or inf.

    Raises:
        ValueError: something differs.
    """
    if isinstance(template, Tensor):
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_meta:
            raise ValueError(f"{where} must be a tensor, it is a {type(value).__name__}")
        if value.shape != template.shape or value.dtype != template.dtype:
            raise ValueError(
                f"{where} must be {template.dtype} of shape {tuple(template.shape)}, "
                f"it is {value.dtype} of shape {tuple(value.shape)}"
            )
        if finite and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where} holds NaN or inf: the run had diverged, or the file is damaged")
    elif isinstance(template, dict):
        if not isinstance(value, dict) or set(value) != set(template):
            raise ValueError(f"{where} must have the entries {', '.join(map(str, template))}")
        for name, item in template.items():
            check_like(value[name], item, f"{where}.{name}", finite=finite)
    elif isinstance(template, (list, tuple)):
        if type(value) is not type(template) or len(value) != len(template):
            raise ValueError(f"{where} must be a {type(template).__name__} of {len(template)} entries")
        for number, item in enumerate(template):
            check_like(value[number], item, f"{where}[{number}]", finite=finite)
    elif type(value) is not type(template):
        raise ValueError(f"{where} must be a {type(template).__name__}, it is a {type(value).__name__}")


def check_optimizer(value: Any, optimizer: torch.optim.Optimizer, where: str, *, any_rate: bool = False) -> None:
    """Check that an optimiser's state read from a file is one that `optimizer` can go on from.

    Settings that the version of torch that wrote it did not know are filled in. With `any_rate` the step size may be any
    that a falling schedule passes.

    Raises:
        ValueError: it is for other parameters or other hyperparameters, or not finite.
    """
    own = optimizer.state_dict()
    if not isinstance(value, dict) or set(value) != set(own):
        raise ValueError(f"{where} must be the state of an optimiser")
    if type(value["param_groups"]) is not list or len(value["param_groups"]) != len(own["param_groups"]):
        raise ValueError(f"{where} must have {len(own['param_groups'])} groups of parameters")
    for group, ours in zip(value["param_groups"], own["param_groups"], strict=True):
        for name in ours.keys() - {"params", "lr"}:
            group.setdefault(name, ours[name])
        if any_rate and type(group["lr"]) is float and 0.0 <= group["lr"] <= ours["lr"]:
            ours["lr"] = group["lr"]
        for name in ours:
            if type(group[name]) is not type(ours[name]) or group[name] != ours[name]:
                raise ValueError(f"{where}: {name} is {shown(group[name])}, the config makes it {shown(ours[name])}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = value["state"]
    if not isinstance(states, dict) or list(states) not in ([], list(range(len(parameters)))):
        raise ValueError(f"{where} must have a state for each of {len(parameters)} parameters, or none")
    entries = _optimizer_entries(optimizer)
    for number, state in states.items():
        parameter = parameters[number].detach()
        template = {name: item if item.ndim == 0 else parameter for name, item in entries.items()}
        check_like(state, template, f"{where}.state[{number}]")


def _optimizer_entries(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of a parameter, found by letting one like it take a step."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    probe = type(optimizer)([parameter], optimizer.defaults["lr"])
    probe.step()
    return dict(probe.state[parameter])


def _is_of_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments and type(value) in {type(argument) for argument in arguments}
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(item, arguments[0]) for item in value)
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**53)
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


def shown(value: Any) -> str:
    """Return a value from a file for a message: short, whatever it is."""
    try:
        text = repr(value)
    except DAMAGE:  # Integers beyond 4,300 digits, tensors without content.
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"


def _first_line(error: BaseException) -> str:
    # Torch colours its messages for terminals.
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text or type(error).__name__).splitlines()[0][:200]
