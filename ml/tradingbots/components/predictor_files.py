"""Files of predictors: what all of them have in common, and what is said of one that holds another."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ml.tradingbots.components.serialization import CheckpointError, file_label, read_file, require_keys, shown

KIND = "predictor"


def read_predictor(path: str | Path, configs: Iterable[type], types: Collection[str]) -> dict[str, Any]:
    """Return the content of a predictor's file.

    Args:
        path: the file.
        configs: config classes that it may hold.
        types: names of the predictors that it may hold, one of them or all that the library has.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, or holds something else; the message says what, and how to load it.
    """
    try:
        content = read_file(path, KIND, allowed=configs)
    except CheckpointError as error:
        kind, found = file_label(path)
        if kind == KIND and found and found not in types:
            raise CheckpointError(_holds_another(path, found, types)) from error
        raise
    require_keys(content, path, predictor_type=str)
    if content["predictor_type"] not in types:
        raise CheckpointError(_holds_another(path, content["predictor_type"], types))
    return content


def _holds_another(path: str | Path, found: str, types: Collection[str]) -> str:
    if len(types) == 1:
        advice = f"this is {next(iter(types))!r}: load it with load_predictor(path)"
    else:
        advice = "whose class is none of this library's: make one of that class, and use its load(path)"
    return f"{path} holds a {shown(found)} predictor, {advice}"


def check_assets(assets: tuple[Any, ...]) -> None:
    """Check names of assets read from a file; raises ValueError."""
    if not assets or not all(type(name) is str for name in assets):
        raise ValueError("assets must be names")
