"""The door to learning across markets: agents that adapt to regimes, and that carry what they learned elsewhere.

Everything has a file of its own; `docs/regimes.md` and `docs/transfer.md` explain it.
"""

from __future__ import annotations

from ml.tradingbots.components.regime_aware_agent import RegimeAwareAgent
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig
from ml.tradingbots.components.regime_columns import RegimeColumns, with_regime_probabilities
from ml.tradingbots.components.transfer_learning import TransferLearningTrainer
from ml.tradingbots.components.transfer_results import TransferReport

__all__ = [
    "RegimeAwareAgent",
    "RegimeAwareConfig",
    "RegimeColumns",
    "TransferLearningTrainer",
    "TransferReport",
    "with_regime_probabilities",
]
