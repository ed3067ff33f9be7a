"""The door to learning across markets: agents that adapt to regimes, carry over what they learned, and learn several tasks.

Everything has a file of its own; `docs/regimes.md`, `docs/transfer.md` and `docs/multitask.md` explain it.
"""

from __future__ import annotations

from ml.tradingbots.components.multitask_agent import MultiTaskConfig, MultiTaskRLAgent
from ml.tradingbots.components.regime_aware_agent import RegimeAwareAgent
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig
from ml.tradingbots.components.regime_columns import RegimeColumns
from ml.tradingbots.components.regime_tables import with_regime_probabilities
from ml.tradingbots.components.task_policy import TaskPolicy
from ml.tradingbots.components.transfer_learning import TransferLearningTrainer
from ml.tradingbots.components.transfer_results import TransferReport

__all__ = [
    "MultiTaskConfig",
    "MultiTaskRLAgent",
    "RegimeAwareAgent",
    "RegimeAwareConfig",
    "RegimeColumns",
    "TaskPolicy",
    "TransferLearningTrainer",
    "TransferReport",
    "with_regime_probabilities",
]
