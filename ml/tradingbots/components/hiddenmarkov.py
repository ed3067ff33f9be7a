"""Regime detectors: which kind of market this is, bar by bar, from bars up to now alone. `docs/regimes.md` explains them.

This file is the door; each detector has a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml.tradingbots.components.base_detector import KIND, BaseDetector
from ml.tradingbots.components.gaussian_hmm import GaussianHMM, GaussianHMMConfig
from ml.tradingbots.components.hmm_selection import RegimeSelection, select_n_regimes
from ml.tradingbots.components.jump_model import JumpModel, JumpModelConfig
from ml.tradingbots.components.online_hmm import OnlineHMM, OnlineHMMConfig
from ml.tradingbots.components.oracle_regime import OracleRegime, OracleRegimeConfig
from ml.tradingbots.components.regime_detector import RegimeDetector, SmoothedProbabilities, refuse_smoothed
from ml.tradingbots.components.regime_features import regime_features
from ml.tradingbots.components.serialization import CheckpointError, read_file, shown
from ml.tradingbots.components.volatility_threshold import VolatilityThreshold, VolatilityThresholdConfig

__all__ = [
    "DETECTORS",
    "GaussianHMM",
    "GaussianHMMConfig",
    "JumpModel",
    "JumpModelConfig",
    "OnlineHMM",
    "OnlineHMMConfig",
    "OracleRegime",
    "OracleRegimeConfig",
    "RegimeDetector",
    "RegimeSelection",
    "SmoothedProbabilities",
    "VolatilityThreshold",
    "VolatilityThresholdConfig",
    "load_detector",
    "refuse_smoothed",
    "regime_features",
    "select_n_regimes",
]

DETECTORS: dict[str, type[BaseDetector]] = {
    detector.detector_type: detector
    for detector in (GaussianHMM, OnlineHMM, JumpModel, VolatilityThreshold, OracleRegime)
}


def load_detector(path: str | Path) -> BaseDetector:
    """Return the detector in a file, whichever it is; nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, hostile, or no detector.
    """
    allowed: list[Any] = [detector.config_class for detector in DETECTORS.values()]
    content = read_file(path, KIND, allowed=allowed)
    found = content.get("detector_type")
    if type(found) is not str or found not in DETECTORS:
        raise CheckpointError(f"{path} holds a {shown(found)} detector, known are {', '.join(DETECTORS)}")
    detector = DETECTORS[found]()
    detector._become(content, path)
    return detector
