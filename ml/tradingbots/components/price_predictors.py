"""The factory of all predictors: by name, and from any of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml.tradingbots.components.ensemble_predictor import MEMBER_CLASSES, EnsemblePricePredictor
from ml.tradingbots.components.predictor_files import read_predictor
from ml.tradingbots.data.names import did_you_mean

PREDICTORS: dict[str, type[Any]] = {**MEMBER_CLASSES, EnsemblePricePredictor.predictor_type: EnsemblePricePredictor}
"""Every predictor of this library by name."""
CONFIG_CLASSES: tuple[type, ...] = tuple(
    {kind.config_class: None for kind in PREDICTORS.values() if hasattr(kind, "config_class")}
)


def list_available_predictors() -> dict[str, str]:
    """Return every predictor's name and what it is.

    >>> list_available_predictors()["zero"]
    'expects no return'
    """
    return {name: kind.description for name, kind in PREDICTORS.items()}


def create_predictor(name: str, **hyperparameters: Any) -> Any:
    """Make an unfitted predictor.

    Args:
        name: one of `list_available_predictors()`.
        **hyperparameters: what its class takes; an ensemble takes `members` and `method`.

    Raises:
        ValueError: the name or a hyperparameter is unknown, or a value is refused.

    >>> create_predictor("ridge", window_size=16)
    RidgePredictor(window_size=16)
    """
    if name not in PREDICTORS:
        hint = did_you_mean(str(name), tuple(PREDICTORS))
        raise ValueError(f"unknown predictor {name!r}.{hint} Available: {', '.join(PREDICTORS)}")
    return PREDICTORS[name](**hyperparameters)


def load_predictor(path: str | Path, device: str | None = None) -> Any:
    """Load a predictor of any kind from a file written by its `save`; nothing in it is run.

    Args:
        path: the file.
        device: where its networks, if it has any, are from now on; None: the device they were fitted on where it can be
            used here, else "cpu".

    Raises:
        ValueError: `device` cannot be used here.
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, of another format version, or no predictor of this library.
    """
    content = read_predictor(path, CONFIG_CLASSES, PREDICTORS)
    return PREDICTORS[content["predictor_type"]]().load_content(content, path, device)
