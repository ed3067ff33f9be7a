"""`JumpModel`: regimes as clusters of bars, with a price on every change (Nystrup et al., 2020; Shu, Yu & Mulvey, 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ml.tradingbots.components.base_detector import State, check_detector_config, require_feature
from ml.tradingbots.components.clustering import IntArray, rough_clusters, squared_distances
from ml.tradingbots.components.hard_detector import HardDetector
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories, Standardiser
from ml.tradingbots.components.regime_names import are_separated, regime_names, regime_order


@dataclass(frozen=True, kw_only=True)
class JumpModelConfig:
    """Hyperparameters of `JumpModel`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """

    n_regimes: int = 2
    """Number of regimes."""
    jump_penalty: float = 5.0
    """Price of a change of regime, in half squared deviations of the features, added up over them: 5 is worth ten bars whose
    squared distance to another regime is less by 1. 0 is k-means; more makes regimes last longer and changes come later.
    Choose it out of sample."""
    n_starts: int = 5
    """Starts; the best end is kept."""
    max_iterations: int = 50
    """Rounds of finding the path and the centers in turn at most."""
    return_feature: int | None = 0
    """Which feature is the return that regimes are named for; None names none."""
    seed: int = 0
    """Of the starts."""

    def __post_init__(self) -> None:
        check_detector_config(self)
        if self.jump_penalty < 0.0:
            raise ValueError(f"jump_penalty must be at least 0, got {self.jump_penalty}")
        for name in ("n_starts", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class JumpModel(HardDetector):
    """Finds centers and a path of regimes so that ½ Σ |x[t] - center|² + penalty · changes is least.

    At a bar `filter` says the regime in which the cheapest path up to that bar ends. Earlier bars are never revised, so it
    comes later to a change than the path that was fitted. It sees means alone: give it features that differ in their mean
    between regimes, such as `regime_features`.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        means_: centers in units of the data; (n_regimes, n_features).
        objective_: the least sum found.
    """

    detector_type: ClassVar[str] = "jump_model"
    config_class: ClassVar[type[JumpModelConfig]] = JumpModelConfig
    config: JumpModelConfig
    _centers: FloatArray
    _center: FloatArray
    _scale: FloatArray
    _objective: FloatArray

    def _learn(self, histories: Histories) -> None:
        if len(np.unique(histories.rows, axis=0)) < self.n_regimes:
            raise ValueError(f"X has fewer distinct bars than n_regimes={self.n_regimes}: ask for fewer")
        require_feature(self.config, "return_feature", histories.rows.shape[1])
        standardiser = Standardiser.of(histories)
        self._center, self._scale = standardiser.center, standardiser.scale
        rows = standardiser.apply(histories.rows)
        rng = np.random.default_rng(self.config.seed)
        best: tuple[float, FloatArray, IntArray] | None = None
        for _ in range(self.config.n_starts):
            found = self._descend(rows, histories, rough_clusters(rows, self.n_regimes, rng))
            best = found if best is None or found[0] < best[0] else best
        assert best is not None
        objective, centers, path = best
        self._objective = np.array(objective)
        order = self._order_and_name(histories.rows, path)
        self._centers = centers[order]
        self._learn_changes(np.argsort(order)[path], histories.starts)

    def _descend(self, rows: FloatArray, histories: Histories, path: IntArray) -> tuple[float, FloatArray, IntArray]:
        """Find centers for the path and the path for the centers until neither changes; each step lowers the sum."""
        centers = np.zeros((self.n_regimes, rows.shape[1]))
        objective = np.inf
        for _ in range(self.config.max_iterations):
            for k in range(self.n_regimes):
                if (path == k).any():
                    centers[k] = rows[path == k].mean(axis=0)
            losses = 0.5 * squared_distances(rows, centers)
            path = cheapest_path(losses, histories.starts.tolist(), self.config.jump_penalty)
            jumps = ((path[1:] != path[:-1]) & ~histories.starts[1:]).sum()
            now = float(losses[np.arange(len(path)), path].sum() + self.config.jump_penalty * jumps)
            if not now < objective:
                break
            objective, best = now, (centers.copy(), path)
        return objective, *best

    def _order_and_name(self, rows: FloatArray, path: IntArray) -> list[int]:
        """Name the regimes, and return the order that goes with the names."""
        feature = self.config.return_feature
        if feature is None:
            self._names = tuple(f"regime_{number}" for number in range(self.n_regimes))
            return list(range(self.n_regimes))
        returns = [rows[path == k, feature] for k in range(self.n_regimes)]
        counts = np.array([len(part) for part in returns])
        means = np.array([part.mean() if len(part) else 0.0 for part in returns])
        deviations = np.array([part.std() if len(part) else 0.0 for part in returns])
        by_mean = counts.min() > 1 and are_separated(means, deviations / np.sqrt(np.maximum(counts, 1)))
        order = regime_order(means, deviations, by_mean=by_mean)
        self._names = regime_names(means[order], deviations[order], by_mean=by_mean)
        return order

    @property
    def means_(self) -> FloatArray:
        """Centers of the regimes in units of the data; (n_regimes, n_features)."""
        self._require_fitted()
        return self._centers * self._scale + self._center

    @property
    def objective_(self) -> float:
        """The least sum of losses and penalties found in training."""
        self._require_fitted()
        return float(self._objective)

    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        standardised = Standardiser(self._center, self._scale).apply(rows)
        evidence: list[list[float]] = (0.5 * squared_distances(standardised, self._centers)).tolist()
        return evidence

    def _first_memory(self) -> list[float]:
        return [0.0] * self.n_regimes

    def _step(self, state: State, evidence: list[float]) -> State:
        costs = add_bar(state.memory, evidence, self.config.jump_penalty)
        # Only differences matter, and sums would outgrow their digits.
        least = min(costs)
        return self._certain(costs.index(least), [cost - least for cost in costs])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.n_features_in_
        return {"centers": (self.n_regimes, d), "center": (d,), "scale": (d,), "objective": ()}


def add_bar(costs: list[float], losses: list[float], penalty: float) -> list[float]:
    """Return what the cheapest path costs that ends in each regime, one bar later."""
    changed = min(costs) + penalty
    return [min(cost, changed) + loss for cost, loss in zip(costs, losses, strict=True)]


def cheapest_path(losses: FloatArray, starts: list[bool], penalty: float) -> IntArray:
    """Return the path of regimes with the least sum of losses and penalties, by dynamic programming (Bellman).

    Args:
        losses: of each bar in each regime; (n_bars, n_regimes).
        starts: whether a bar is the first of its history, where a change costs nothing; (n_bars,).
        penalty: price of a change.

    Returns:
        (n_bars,).
    """
    costs: list[list[float]] = []
    for row, is_first in zip(losses.tolist(), starts, strict=True):
        costs.append(row if is_first else add_bar(costs[-1], row, penalty))
    path, later, begins = [], -1, True
    for row, is_first in zip(reversed(costs), reversed(starts), strict=True):
        least = min(row)
        if begins or row[later] > least + penalty:
            later = row.index(least)
        path.append(later)
        begins = is_first
    return np.array(path[::-1], dtype=np.int64)
