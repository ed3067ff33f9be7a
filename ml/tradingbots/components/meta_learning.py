"""The door to agents that carry what they learned elsewhere."""

from ml.tradingbots.components.transfer_learning import TransferLearningTrainer
from ml.tradingbots.components.transfer_results import TransferReport

__all__ = ["TransferLearningTrainer", "TransferReport"]
