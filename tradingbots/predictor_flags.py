"""Which predictors the command line makes, and how its flags become their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.tradingbots.components.ensemble_predictor import EnsembleMethod, EnsemblePricePredictor, LSTMEnsemble
from ml.tradingbots.components.lstm_predictor import LSTMConfig
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.price_predictors import PREDICTORS
from ml.tradingbots.components.return_predictor import ConfiguredPredictor
from ml.tradingbots.data.names import did_you_mean

NETWORKS = ("lstm", "transformer", "cnn")


@dataclass(frozen=True, kw_only=True)
class EnsembleFlags(PredictorConfig):
    """Settings that all networks share, and those of ensembles; a ridge regression takes the window and what else it knows."""

    method: EnsembleMethod = "stacking"
    """How an ensemble combines its members."""
    members: tuple[str, ...] = NETWORKS
    """Members of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class LSTMEnsembleFlags(LSTMConfig):
    """Settings of an ensemble of LSTMs that differ by their seeds."""

    n_members: int = 3
    """Number of LSTMs."""


def check_names(names: Sequence[str], config: Any) -> None:
    """Refuse names of no predictor, and members that make no ensemble.

    Args:
        names: of the predictors.
        config: an instance of `config_class(names)`.

    Raises:
        ValueError: one is unknown or given twice, there is none, or an ensemble is to be a member of itself.
    """
    _check_known(names, "predictor")
    if "ensemble" in names:
        _check_known(config.members, "member")
        if "ensemble" in config.members:
            raise ValueError("an ensemble cannot be a member of itself: leave 'ensemble' out of --config.members")


def _check_known(names: Sequence[str], what: str) -> None:
    if not names:
        raise ValueError(f"name at least one {what}; known are {', '.join(PREDICTORS)}")
    for name in names:
        if name not in PREDICTORS:
            raise ValueError(
                f"unknown {what} {name!r}.{did_you_mean(name, tuple(PREDICTORS))} Known are {', '.join(PREDICTORS)}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"each {what} can be named once, got {', '.join(names)}")


def config_class(names: Sequence[str]) -> type[Any]:
    """Return the dataclass whose fields are the flags --config.* of these predictors."""
    if len(names) != 1 or names[0] == "ensemble" or names[0] not in PREDICTORS:
        return EnsembleFlags
    if names[0] == "lstm_ensemble":
        return LSTMEnsembleFlags
    kind = PREDICTORS[names[0]]
    assert issubclass(kind, ConfiguredPredictor)
    return kind.config_class


def make_predictor(name: str, config: Any) -> Any:
    """Make an unfitted predictor.

    Args:
        name: of `PREDICTORS`.
        config: an instance of `config_class`; of one that covers several predictors, each takes what it knows.
    """
    if name == "ensemble":
        members = {member: make_predictor(member, config) for member in config.members}
        return EnsemblePricePredictor(members, method=config.method)
    if name == "lstm_ensemble":
        values = _values(config)
        n_members = values.pop("n_members", LSTMEnsembleFlags.n_members)  # Shared flags have none.
        return LSTMEnsemble(n_members, LSTMConfig(**_known(values, LSTMConfig)))
    kind = PREDICTORS[name]
    assert issubclass(kind, ConfiguredPredictor)
    if type(config) is kind.config_class:
        return kind(config)
    return kind(kind.config_class(**_known(_values(config), kind.config_class)))


def max_epochs(config: Any) -> int:
    """Return the most epochs that a fit with these flags may take."""
    found: int = getattr(config, "max_epochs", 1)
    return found


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _known(values: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}
