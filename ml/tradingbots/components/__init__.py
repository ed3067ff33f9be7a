"""Environments and agents: what `ml/README.md` builds with."""

from ml.tradingbots.components.a2c_agent import A2CAgent, A2CConfig
from ml.tradingbots.components.allocators import SkfolioAllocator, create_allocator, list_allocators
from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.cnn_predictor import CNNConfig, CNNPricePredictor
from ml.tradingbots.components.ddpg_agent import DDPGAgent, DDPGConfig
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.features import list_features
from ml.tradingbots.components.forecast_feature import ForecastFeature, FrozenForecast, with_forecasts
from ml.tradingbots.components.hiddenmarkov import (
    GaussianHMM,
    JumpModel,
    OnlineHMM,
    RegimeDetector,
    VolatilityThreshold,
    load_detector,
    regime_features,
    select_n_regimes,
)
from ml.tradingbots.components.lstm_ensemble import LSTMEnsemble
from ml.tradingbots.components.lstm_predictor import LSTMConfig, LSTMPricePredictor
from ml.tradingbots.components.meta_learning import (
    MultiTaskConfig,
    MultiTaskRLAgent,
    RegimeAwareAgent,
    RegimeAwareConfig,
    RegimeColumns,
    TaskPolicy,
    TransferLearningTrainer,
    TransferReport,
    with_regime_probabilities,
)
from ml.tradingbots.components.naive_predictors import DriftPredictor, LastSignPredictor, RidgePredictor, ZeroPredictor
from ml.tradingbots.components.portfolio_sources import AgentSource, AllocatorSource, PredictorSource
from ml.tradingbots.components.portfoliomanager import (
    PortfolioConfig,
    PortfolioDecision,
    PortfolioManager,
    PortfolioState,
)
from ml.tradingbots.components.price_predictors import create_predictor, list_available_predictors, load_predictor
from ml.tradingbots.components.rl_agents import (
    DQNAgent,
    DQNConfig,
    PPOAgent,
    PPOConfig,
    create_rl_agent,
    list_available_agents,
    load_rl_agent,
)
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACAgent, SACConfig
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.components.td3_agent import TD3Agent, TD3Config
from ml.tradingbots.components.transformer_predictor import TransformerConfig, TransformerPricePredictor
from ml.tradingbots.components.vector_environment import TradingVectorEnv

__all__ = [
    "A2CAgent",
    "A2CConfig",
    "AgentSource",
    "AllocatorSource",
    "BaseAgent",
    "BasePredictor",
    "CNNConfig",
    "CNNPricePredictor",
    "CheckpointError",
    "DDPGAgent",
    "DDPGConfig",
    "DQNAgent",
    "DQNConfig",
    "DriftPredictor",
    "EnsemblePricePredictor",
    "ForecastFeature",
    "FrozenForecast",
    "GaussianHMM",
    "JumpModel",
    "LSTMConfig",
    "LSTMEnsemble",
    "LSTMPricePredictor",
    "LastSignPredictor",
    "MultiTaskConfig",
    "MultiTaskRLAgent",
    "OnlineHMM",
    "PPOAgent",
    "PPOConfig",
    "PortfolioConfig",
    "PortfolioDecision",
    "PortfolioManager",
    "PortfolioState",
    "PredictorSource",
    "RegimeAwareAgent",
    "RegimeAwareConfig",
    "RegimeColumns",
    "RegimeDetector",
    "RidgePredictor",
    "SACAgent",
    "SACConfig",
    "SkfolioAllocator",
    "TD3Agent",
    "TD3Config",
    "TaskPolicy",
    "TradingEnvConfig",
    "TradingEnvironment",
    "TradingVectorEnv",
    "TransferLearningTrainer",
    "TransferReport",
    "TransformerConfig",
    "TransformerPricePredictor",
    "VolatilityThreshold",
    "ZeroPredictor",
    "create_allocator",
    "create_predictor",
    "create_rl_agent",
    "list_allocators",
    "list_available_agents",
    "list_available_predictors",
    "list_features",
    "load_detector",
    "load_predictor",
    "load_rl_agent",
    "regime_features",
    "select_n_regimes",
    "with_forecasts",
    "with_regime_probabilities",
]
