"""`VolatilityThreshold`: calm and wild by where volatility stands among its training values; what others must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ml.tradingbots.components.base_detector import State, check_detector_config, require_feature
from ml.tradingbots.components.hard_detector import HardDetector
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories
from ml.tradingbots.components.regime_names import regime_names


@dataclass(frozen=True, kw_only=True)
class VolatilityThresholdConfig:
    """Hyperparameters of `VolatilityThreshold`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """

    n_regimes: int = 2
    """Number of regimes, each of which holds as many training bars as the others."""
    half_life_bars: float = 10.0
    """Bars after which a squared return counts half."""
    return_feature: int = 0
    """Which feature is the return."""

    def __post_init__(self) -> None:
        check_detector_config(self)
        if not self.half_life_bars > 0.0:
            raise ValueError(f"half_life_bars must be above 0, got {self.half_life_bars}")


class VolatilityThreshold(HardDetector):
    """Compares the exponentially weighted mean of squared returns with its quantiles in training.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        thresholds_: volatilities per bar between which regimes lie; (n_regimes - 1,).
    """

    detector_type: ClassVar[str] = "volatility_threshold"
    config_class: ClassVar[type[VolatilityThresholdConfig]] = VolatilityThresholdConfig
    config: VolatilityThresholdConfig
    _variance: FloatArray
    """Mean squared return in training, where every history begins; ()."""
    _variances: FloatArray
    """Thresholds; (n_regimes - 1,)."""

    def _learn(self, histories: Histories) -> None:
        require_feature(self.config, "return_feature", histories.rows.shape[1])
        squares = [bar[0] for bar in self._evidence(histories.rows)]
        self._variance = np.array(float(np.mean(squares)))
        path, variance = [], 0.0
        for square, is_first in zip(squares, histories.starts.tolist(), strict=True):
            variance = self._moved(float(self._variance) if is_first else variance, square)
            path.append(variance)
        levels = np.arange(1, self.n_regimes) / self.n_regimes
        self._variances = np.quantile(path, levels)
        if not (np.diff(np.r_[-np.inf, self._variances, max(path)]) > 0.0).all():
            raise ValueError(
                f"X has too few distinct volatilities for n_regimes={self.n_regimes}: ask for fewer, or give more bars"
            )
        order = np.arange(self.n_regimes, dtype=np.float64)
        self._names = regime_names(order, order, by_mean=False)
        self._learn_changes(np.searchsorted(self._variances, path, side="left"), histories.starts)

    @property
    def thresholds_(self) -> FloatArray:
        """Volatilities per bar between which regimes lie; (n_regimes - 1,)."""
        self._require_fitted()
        return np.sqrt(self._variances)

    def _moved(self, variance: float, square: float) -> float:
        kept = 0.5 ** (1.0 / self.config.half_life_bars)
        return float(kept * variance + (1.0 - kept) * square)

    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        # Beyond this a square is inf, and so would be every mean after it.
        returns = np.clip(rows[:, self.config.return_feature], -1e150, 1e150)
        return [[square] for square in (returns * returns).tolist()]

    def _first_memory(self) -> list[float]:
        return [float(self._variance)]

    def _step(self, state: State, evidence: list[float]) -> State:
        variance = self._moved(state.memory[0], evidence[0])
        return self._certain(int(np.searchsorted(self._variances, variance, side="left")), [variance])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"variance": (), "variances": (self.n_regimes - 1,)}
