"""What all regime detectors share: reading features, walking bars one by one, streaming, files.

A detector says how one bar moves its state (`_step`); `filter` and `update` both call it, so they agree to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch

from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.components.configured import Configured
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories, read_bar, read_histories, read_rows
from ml.tradingbots.components.serialization import (
    DAMAGE,
    CheckpointError,
    check_like,
    checked_config,
    read_file,
    require_keys,
    save_file,
)

KIND = "regime detector"
MOST_REGIMES = 50


class State(NamedTuple):
    """Where a detector is in a history."""

    probability: list[float]
    """Of each regime at the last bar."""
    predicted: list[float]
    """Of each regime at the next bar."""
    log_score: float
    """Log density of the last bar given those before it, in units of the data; NaN where the detector has none."""
    memory: list[float]
    """What else the detector remembers of the history."""


class BaseDetector(Configured, ABC):
    """A regime detector (see `RegimeDetector`) but for what it learns and how a bar moves it.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        n_features_in_: number of features it was fitted on.
        feature_names_in_: their names, None where they came as an array.
        state_names_: what each regime is, in words; (n_regimes,).
        transition_matrix_: P(next regime is the column | now it is the row); (n_regimes, n_regimes).
    """

    detector_type: ClassVar[str]
    n_features_in_: int
    feature_names_in_: tuple[str, ...] | None
    _names: tuple[str, ...]
    _state: State

    # What a detector is.

    @abstractmethod
    def _learn(self, histories: Histories) -> None:
        """Learn the regimes and name them."""

    @abstractmethod
    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        """What `_step` needs to know of each bar; computed so that a bar's bits do not depend on the others."""

    @abstractmethod
    def _first_state(self) -> State:
        """Where a history begins."""

    @abstractmethod
    def _step(self, state: State, evidence: list[float]) -> State:
        """Take one bar into account; `state` is left as it was."""

    @abstractmethod
    def _arrays(self) -> dict[str, FloatArray]:
        """Everything learned, by name."""

    @abstractmethod
    def _take(self, arrays: dict[str, FloatArray]) -> None:
        """Become what `_arrays` described.

        Raises:
            ValueError: it cannot be: wrong names, shapes or values.
        """

    @property
    @abstractmethod
    def transition_matrix_(self) -> FloatArray:
        """P(next regime is the column | now it is the row); (n_regimes, n_regimes)."""

    # What follows.

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""
        return int(self.config.n_regimes)

    @property
    def state_names_(self) -> tuple[str, ...]:
        """What each regime is, in words; (n_regimes,)."""
        self._require_fitted()
        return self._names

    @property
    def expected_durations_(self) -> FloatArray:
        """Mean number of bars that each regime lasts; inf for one that never ends; (n_regimes,)."""
        leave = 1.0 - np.diag(self.transition_matrix_)
        durations: FloatArray = np.divide(1.0, leave, out=np.full(self.n_regimes, np.inf), where=leave > 0.0)
        return durations

    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the regimes from training bars, and begin a new history.

        Args:
            X: features, finite: an array (n_bars, n_features) or (n_bars,), a DataFrame, or a list of such, one for each
                history.
            y: not used.

        Returns:
            The detector itself.

        Raises:
            TypeError: X holds no numbers, or smoothed probabilities.
            ValueError: there are too few bars, a value is not finite, or a feature is constant.
        """
        histories = read_histories(X)
        fresh = type(self)(self.config)
        fresh.n_features_in_ = histories.rows.shape[1]
        fresh.feature_names_in_ = histories.names
        fresh._learn(histories)
        fresh._state = fresh._first_state()
        self.__dict__.clear()
        self.__dict__.update(fresh.__dict__)
        return self

    def filter(self, X: Any) -> FloatArray:
        """Return the probability of each regime at each bar, given the bars up to it; nothing later is used.

        Args:
            X: features of one history from its first bar; (n_bars, n_features). What `update` was given plays no part.

        Returns:
            (n_bars, n_regimes), rows sum to 1.
        """
        return np.array([state.probability for state in self._walk(X)])

    def predict_next(self, X: Any = None) -> FloatArray:
        """Return the probability of each regime at the bar after each, given the bars up to it: what to decide on.

        Args:
            X: as for `filter`; None: go by what `update` was given.

        Returns:
            (n_bars, n_regimes); without X (n_regimes,).
        """
        if X is None:
            self._require_fitted()
            return np.array(self._state.predicted)
        return np.array([state.predicted for state in self._walk(X)])

    def predictive_log_scores(self, X: Any) -> FloatArray:
        """Return the log density of each bar given those before it, in units of the data; they add up to the log-likelihood.

        Args:
            X: features of one history; (n_bars, n_features).

        Returns:
            (n_bars,), NaN from detectors that have no densities.
        """
        return np.array([state.log_score for state in self._walk(X)])

    def update(self, x: Any) -> FloatArray:
        """Take in the next bar and return the probability of each regime; `filter` of the same bars says the same bits.

        Args:
            x: features of the bar; (n_features,). A bar that is refused changes nothing.

        Returns:
            (n_regimes,).
        """
        self._require_fitted()
        rows = read_bar(x, self.n_features_in_, self.feature_names_in_)
        self._state = self._step(self._state, self._evidence(rows)[0])
        return np.array(self._state.probability)

    def reset(self) -> None:
        """Begin a new history: forget the bars given to `update`."""
        self._require_fitted()
        self._state = self._first_state()

    def states(self, X: Any) -> list[State]:
        """Return where the detector is after each bar of a history: what `filter` and `predict_next` say, and log scores."""
        return self._walk(X)

    @property
    def state_(self) -> State:
        """Where it is in the history given to `update`."""
        self._require_fitted()
        return self._state

    def _walk(self, X: Any) -> list[State]:
        self._require_fitted()
        state, states = self._first_state(), []
        for evidence in self._evidence(read_rows(X, self.n_features_in_, self.feature_names_in_)):
            state = self._step(state, evidence)
            states.append(state)
        return states

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise RuntimeError(f"this {type(self).__name__} has learned nothing yet: call fit(X) or load(path)")

    # Files.

    def save(self, path: str | Path) -> Path:
        """Write the detector to a file, with where it is in its history. The write is atomic."""
        self._require_fitted()
        content = {
            "detector_type": self.detector_type,
            "config": self.config,
            "n_features": self.n_features_in_,
            "feature_names": self.feature_names_in_,
            "state_names": self._names,
            "arrays": {name: torch.from_numpy(np.array(value)) for name, value in self._arrays().items()},
            "state": tuple(self._state),
        }
        return save_file(path, KIND, content)

    def load(self, path: str | Path) -> Self:
        """Become the detector in a file written by `save`; nothing in it is run.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or another kind of detector; this one is left as it was.
        """
        content = read_file(path, KIND, allowed=(self.config_class,))
        self._become(content, path)
        return self

    def _become(self, content: dict[str, Any], path: str | Path) -> None:
        require_keys(content, path, detector_type=str, n_features=int, state_names=tuple, arrays=dict, state=tuple)
        if content["detector_type"] != self.detector_type:
            raise CheckpointError(
                f"{path} holds a {content['detector_type']!r} detector, this is {self.detector_type!r}"
            )
        fresh = type(self)(checked_config(content.get("config"), self.config_class, path))
        try:
            fresh._fill(content)
        except DAMAGE as error:
            raise CheckpointError(
                f"{path} does not fit a {self.detector_type!r} detector: {str(error)[:300]}"
            ) from error
        self.__dict__.clear()
        self.__dict__.update(fresh.__dict__)

    def _fill(self, content: dict[str, Any]) -> None:
        names, self.n_features_in_ = content.get("feature_names"), content["n_features"]
        if type(self.n_features_in_) is not int or not 1 <= self.n_features_in_ <= 100_000:
            raise ValueError("n_features must be a number of features")
        if names is not None:
            check_like(names, ("",) * self.n_features_in_, "feature_names")
        self.feature_names_in_ = names
        check_like(content["state_names"], ("",) * self.n_regimes, "state_names")
        self._names = content["state_names"]
        if not all(
            type(value) is torch.Tensor and value.dtype == torch.float64 for value in content["arrays"].values()
        ):
            raise ValueError("arrays must be tensors of float64")
        self._take({name: value.numpy().copy() for name, value in content["arrays"].items()})
        first = self._first_state()
        check_like(content["state"], tuple(first), "state")
        self._state = State(*content["state"])
        for probabilities in self._state[:2]:
            require_distributions("state", np.array([probabilities]))
        if not np.isfinite(self._state.memory).all():
            raise ValueError("state must be finite")


def check_detector_config(config: Any) -> None:
    """Check the fields that configs of detectors share, their types first; called first in `__post_init__`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """
    check_field_types(config)
    if not 1 <= config.n_regimes <= MOST_REGIMES:
        raise ValueError(f"n_regimes must be from 1 to {MOST_REGIMES}, got {config.n_regimes}")
    for name in ("return_feature", "column"):
        number = getattr(config, name, None)
        if number is not None and number < 0:
            raise ValueError(f"{name} must be the number of a feature, from 0 on, got {number}")


def require_feature(config: Any, name: str, n_features: int) -> None:
    """Check that the feature which a field of the config names is there.

    Raises:
        ValueError: it is not.
    """
    number = getattr(config, name)
    if number is not None and number >= n_features:
        raise ValueError(f"{name} is {number}, and X has {n_features} features, counted from 0: name another")


def require_shapes(arrays: dict[str, FloatArray], **shapes: tuple[int, ...]) -> None:
    """Check names and shapes of arrays from a file, and that they are finite.

    Raises:
        ValueError: they are not as they must be.
    """
    if set(arrays) != set(shapes):
        raise ValueError(f"arrays must be {', '.join(shapes)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must be finite, of shape {shape}, it has shape {arrays[name].shape}")


def require_distributions(name: str, rows: FloatArray) -> None:
    """Check that rows are probabilities that sum to 1.

    Raises:
        ValueError: they are not.
    """
    if not (np.isfinite(rows).all() and (rows >= 0.0).all() and (np.abs(rows.sum(axis=-1) - 1.0) < 1e-6).all()):
        raise ValueError(f"{name} must be probabilities, at least 0, and each row must sum to 1, got {rows.tolist()}")
