"""Detectors that say one regime at a time, without doubt: what they share."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from ml.tradingbots.components.base_detector import BaseDetector, State, require_distributions, require_shapes
from ml.tradingbots.components.clustering import IntArray
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import BoolArray
from ml.tradingbots.core.hidden_markov import stationary_distribution

# Added to the count of every change of regime (Jeffreys' prior): one that was never seen is not impossible.
_UNSEEN = 0.5


class HardDetector(BaseDetector):
    """A detector whose probabilities at a bar are 0 or 1; those of the next bar are shares of the changes in training."""

    _transition: FloatArray

    @abstractmethod
    def _first_memory(self) -> list[float]:
        """What it remembers before the first bar of a history."""

    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the class itself learned, kept in attributes of these names with an underscore in front."""

    def _learn_changes(self, path: IntArray, starts: BoolArray) -> None:
        counts = np.full((self.n_regimes, self.n_regimes), _UNSEEN)
        goes_on = ~starts[1:]
        np.add.at(counts, (path[:-1][goes_on], path[1:][goes_on]), 1.0)
        self._transition = counts / counts.sum(axis=1, keepdims=True)

    def _certain(self, regime: int, memory: list[float]) -> State:
        """The state in which a regime is certain."""
        probability = [0.0] * self.n_regimes
        probability[regime] = 1.0
        return State(probability, self._rows[regime], math.nan, memory)

    def _first_state(self) -> State:
        self._rows = self._transition.tolist()
        shares = stationary_distribution(self._transition).tolist()
        return State(shares, shares, math.nan, self._first_memory())

    @property
    def transition_matrix_(self) -> FloatArray:
        """Share of the changes from the row's regime to the column's in training, half a change added to each."""
        self._require_fitted()
        return self._transition.copy()

    def _arrays(self) -> dict[str, FloatArray]:
        return {"transition": self._transition, **{name: getattr(self, f"_{name}") for name in self._shapes()}}

    def _take(self, arrays: dict[str, FloatArray]) -> None:
        require_shapes(arrays, transition=(self.n_regimes, self.n_regimes), **self._shapes())
        require_distributions("transition_matrix", arrays["transition"])
        for name, value in arrays.items():
            setattr(self, f"_{name}", value)
