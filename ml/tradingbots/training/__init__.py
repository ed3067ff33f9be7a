"""Training runs: the loop, callbacks, evaluation, checkpoints, logs and reports."""

from ml.tradingbots.components.normalization import RunningMeanStd
from ml.tradingbots.training.callbacks import (
    Callback,
    CallbackList,
    CheckpointCallback,
    EarlyStoppingRLCallback,
    EvalCallback,
    TradingMetricsCallback,
)
from ml.tradingbots.training.evaluation import evaluate_agent, evaluate_episodes
from ml.tradingbots.training.loggers import CSVLogger, Logger, MemoryLogger, TensorBoardLogger
from ml.tradingbots.training.progress import RLProgressTracker
from ml.tradingbots.training.reports import write_report
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.rl_training import RLTrainingConfig, RLTrainingMetrics, train_rl_agent
from ml.tradingbots.training.training_state import EpisodeSummary, TrainingState
from ml.tradingbots.training.trajectory import Trajectory

__all__ = [
    "CSVLogger",
    "Callback",
    "CallbackList",
    "CheckpointCallback",
    "EarlyStoppingRLCallback",
    "EpisodeSummary",
    "EvalCallback",
    "EvaluationResult",
    "Logger",
    "MemoryLogger",
    "RLProgressTracker",
    "RLTrainingConfig",
    "RLTrainingMetrics",
    "RunningMeanStd",
    "TensorBoardLogger",
    "TradingMetricsCallback",
    "TrainingState",
    "Trajectory",
    "evaluate_agent",
    "evaluate_episodes",
    "train_rl_agent",
    "write_report",
]
