"""Training runs: the loop, callbacks, evaluation, checkpoints, logs and reports."""

from ml.tradingbots.components.normalization import RunningMeanStd
from ml.tradingbots.training.agent_validation import AgentValidation, walk_forward_agents
from ml.tradingbots.training.callbacks import (
    Callback,
    CallbackList,
    CheckpointCallback,
    EarlyStoppingRLCallback,
    EvalCallback,
    TradingMetricsCallback,
)
from ml.tradingbots.training.evaluation import evaluate_agent, evaluate_episodes
from ml.tradingbots.training.forecast_progress import FitProgress
from ml.tradingbots.training.forecast_report import write_forecast_report
from ml.tradingbots.training.forecast_results import ForecastValidation
from ml.tradingbots.training.forecast_validation import validate
from ml.tradingbots.training.forecast_verdict import forecast_verdict
from ml.tradingbots.training.loggers import CSVLogger, Logger, MemoryLogger, TensorBoardLogger
from ml.tradingbots.training.look_ahead import LookAheadError, LookAheadReport, audit_look_ahead
from ml.tradingbots.training.multitask_evaluation import TaskEvaluation, evaluate_tasks, train_single_tasks
from ml.tradingbots.training.multitask_report import write_multitask_report
from ml.tradingbots.training.portfolio_backtest import PortfolioBacktest, backtest_portfolio
from ml.tradingbots.training.portfolio_comparison import PortfolioComparison, compare_portfolios
from ml.tradingbots.training.portfolio_report import write_portfolio_report
from ml.tradingbots.training.progress import RLProgressTracker
from ml.tradingbots.training.reports import write_report
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.rl_training import RLTrainingConfig, RLTrainingMetrics, train_rl_agent
from ml.tradingbots.training.target_leaks import leaking_features
from ml.tradingbots.training.training_state import EpisodeSummary, TrainingState
from ml.tradingbots.training.training_utils import (
    CombinatorialPurgedCV,
    EarlyStoppingCallback,
    ModelCheckpointer,
    PanelSplit,
    PurgedKFold,
    WalkForwardValidator,
)
from ml.tradingbots.training.trajectory import Trajectory
from ml.tradingbots.training.walk_forward_report import write_walk_forward_report

__all__ = [
    "AgentValidation",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "CheckpointCallback",
    "CombinatorialPurgedCV",
    "EarlyStoppingCallback",
    "EarlyStoppingRLCallback",
    "EpisodeSummary",
    "EvalCallback",
    "EvaluationResult",
    "FitProgress",
    "ForecastValidation",
    "Logger",
    "LookAheadError",
    "LookAheadReport",
    "MemoryLogger",
    "ModelCheckpointer",
    "PanelSplit",
    "PortfolioBacktest",
    "PortfolioComparison",
    "PurgedKFold",
    "RLProgressTracker",
    "RLTrainingConfig",
    "RLTrainingMetrics",
    "RunningMeanStd",
    "TaskEvaluation",
    "TensorBoardLogger",
    "TradingMetricsCallback",
    "TrainingState",
    "Trajectory",
    "WalkForwardValidator",
    "audit_look_ahead",
    "backtest_portfolio",
    "compare_portfolios",
    "evaluate_agent",
    "evaluate_episodes",
    "evaluate_tasks",
    "forecast_verdict",
    "leaking_features",
    "train_rl_agent",
    "train_single_tasks",
    "validate",
    "walk_forward_agents",
    "write_forecast_report",
    "write_multitask_report",
    "write_portfolio_report",
    "write_report",
    "write_walk_forward_report",
]
