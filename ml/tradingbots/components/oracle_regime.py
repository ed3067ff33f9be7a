"""`OracleRegime`: is told the regime by a column of the features; for tests of what uses a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ml.tradingbots.components.base_detector import State, check_detector_config, require_feature
from ml.tradingbots.components.hard_detector import HardDetector
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories


@dataclass(frozen=True, kw_only=True)
class OracleRegimeConfig:
    """Hyperparameters of `OracleRegime`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """

    n_regimes: int = 2
    """Number of regimes."""
    column: int = 0
    """Which feature is the number of the true regime of the bar, from 0 on."""

    def __post_init__(self) -> None:
        check_detector_config(self)


class OracleRegime(HardDetector):
    """Knows the regime of every bar, and how often regimes change in training; no market tells as much.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    detector_type: ClassVar[str] = "oracle_regime"
    config_class: ClassVar[type[OracleRegimeConfig]] = OracleRegimeConfig
    config: OracleRegimeConfig

    def _learn(self, histories: Histories) -> None:
        require_feature(self.config, "column", histories.rows.shape[1])
        path = np.array([int(bar[0]) for bar in self._evidence(histories.rows)])
        self._names = tuple(f"regime_{number}" for number in range(self.n_regimes))
        self._learn_changes(path, histories.starts)

    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        told = rows[:, self.config.column]
        wrong = np.flatnonzero((told != np.floor(told)) | (told < 0) | (told >= self.n_regimes))
        if len(wrong):
            raise ValueError(
                f"column {self.config.column} must number the regimes from 0 to {self.n_regimes - 1}, and row {wrong[0]} is "
                f"{told[wrong[0]]}"
            )
        return [[regime] for regime in told.tolist()]

    def _first_memory(self) -> list[float]:
        return []

    def _step(self, state: State, evidence: list[float]) -> State:
        return self._certain(int(evidence[0]), [])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {}
