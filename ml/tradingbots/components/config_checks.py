"""What every config is checked for first: fields of their annotated types, whoever fills them in."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

# torch and NumPy take seeds of 63 bits without complaint; larger or negative ones only in some places.
SEED_LIMIT = 2**63

_REFUSED = object()


def check_field_types(config: Any) -> None:
    """Refuse a config whose fields are not of their annotated types; called first in `__post_init__`.

    NumPy numbers become Python's own and lists become tuples, so that a config can be compared, saved and written as JSON.
    A field called `seed` must be a legal seed as well.

    Args:
        config: an instance of a dataclass, frozen or not.

    Raises:
        ValueError: a value is of another type, or a number is not finite.
    """
    for name, hint in _field_types(config.__class__):
        value = getattr(config, name)
        found = _as_type(value, hint)
        if found is _REFUSED:
            raise ValueError(f"{name} must be {_in_words(hint)}, got {_shown(value)}{_how_to_mend(value, hint)}")
        if found is not value:
            object.__setattr__(config, name, found)
        if name == "seed":
            check_seed(found)


def check_seed(seed: Any) -> int:
    """Return a seed as a plain integer.

    Raises:
        ValueError: it is no integer in [0, 2**63).
    """
    found = _as_type(seed, int)
    if found is _REFUSED or not 0 <= found < SEED_LIMIT:
        raise ValueError(f"seed must be an integer in [0, 2**63), got {_shown(seed)}")
    return int(found)


@functools.lru_cache(maxsize=128)
def _field_types(config_class: type) -> tuple[tuple[str, Any], ...]:
    """Return the fields of a dataclass with their types; resolving annotations takes a hundred times the checks."""
    hints = typing.get_type_hints(config_class)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(config_class))


def _as_type(value: Any, hint: Any) -> Any:
    """Return the value as the plain type that the annotation names, or `_REFUSED`; other annotations take anything."""
    if hint is float:
        return _as_float(value)
    kind = type(value)
    if hint is int:
        if kind is bool or not isinstance(value, numbers.Integral):
            return _REFUSED
        return value if kind is int else int(value)
    if hint is bool:
        return bool(value) if isinstance(value, (bool, np.bool_)) else _REFUSED
    if hint is str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        return value if isinstance(value, str) else _REFUSED
    if hint is type(None):
        return None if value is None else _REFUSED
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value if isinstance(value, str) and value in arguments else _REFUSED
    if origin in (typing.Union, types.UnionType):
        found = (_as_type(value, argument) for argument in arguments)
        return next((item for item in found if item is not _REFUSED), _REFUSED)
    if hint == tuple[int, ...]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return _REFUSED
        numbers_ = tuple(_as_type(item, int) for item in value)
        return _REFUSED if _REFUSED in numbers_ else numbers_
    if hint == tuple[str, ...]:
        is_names = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_names or not all(isinstance(item, str) for item in value):
            return _REFUSED
        return value if type(value) is tuple else tuple(value)
    return value


def _as_float(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else _REFUSED
    if kind is bool or not isinstance(value, numbers.Real):
        return _REFUSED
    try:
        number = float(value)
    except OverflowError:
        return _REFUSED
    if not math.isfinite(number):
        return _REFUSED
    return value if kind is int else number


def _in_words(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", bool: "True or False", str: "text", type(None): "None"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(str(argument) for argument in arguments)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(argument) for argument in arguments)
    return "a sequence of integers" if hint == tuple[int, ...] else "a sequence of names"


def _how_to_mend(value: Any, hint: Any) -> str:
    return f"; write ({value!r},)" if hint == tuple[str, ...] and isinstance(value, str) else ""


def _shown(value: Any) -> str:
    """Return a value for a message: short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print one of 4,300 digits.
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
