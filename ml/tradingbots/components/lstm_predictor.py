"""Forecasting with an LSTM (Hochreiter & Schmidhuber, 1997), alone or as an ensemble of seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.predictor_config import PredictorConfig


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(PredictorConfig):
    """Hyperparameters of the LSTM."""

    hidden_dim: int = 32
    n_layers: int = 1
    dropout: float = 0.0
    """Share of units silenced between layers while learning; with one layer, of its last state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_network(self.hidden_dim, self.n_layers, self.dropout)

    @property
    def values_per_window(self) -> int:
        """Numbers that a layer makes of one window: its states and its cells."""
        return self.window_size * 2 * self.hidden_dim


class LSTMPricePredictor(BasePredictor):
    """Reads the window bar by bar; its last hidden state speaks."""

    predictor_type: ClassVar[str] = "lstm"
    description: ClassVar[str] = "LSTM that reads the window bar by bar"
    config_class: ClassVar[type[PredictorConfig]] = LSTMConfig
    config: LSTMConfig

    def _new_network(self, n_features: int, n_outputs: int) -> nn.Module:
        config = self.config
        return LSTMNetwork(n_features, config.hidden_dim, config.n_layers, n_outputs, config.dropout)


class LSTMNetwork(nn.Module):
    """LSTM layers and a linear one; (batch, window_size, n_features) to (batch, n_outputs)."""

    def __init__(self, n_features: int, hidden_dim: int, n_layers: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        between = dropout if n_layers > 1 else 0.0
        self.lstm = nn.LSTM(n_features, hidden_dim, n_layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, n_outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the outputs."""
        states, _ = self.lstm(windows)
        outputs: Tensor = self.head(self.dropout(states[:, -1]))
        return outputs


def check_network(hidden_dim: int, n_layers: int, dropout: float) -> None:
    """Refuse sizes that make no network; raises ValueError."""
    for name, value in (("hidden_dim", hidden_dim), ("n_layers", n_layers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
