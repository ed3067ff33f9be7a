"""Forecasting with convolutions over time: shapes in a chart, wherever in the window they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.lstm_predictor import check_network
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.return_predictor import PriceData


@dataclass(frozen=True, kw_only=True)
class CNNConfig(PredictorConfig):
    """Hyperparameters of the convolutional network."""

    n_filters: tuple[int, ...] = (32, 32, 32)
    """Filters of each layer; from the second on each layer looks at every second result of the one before."""
    kernel_size: int = 5
    hidden_dim: int = 64
    """Units between the convolutions and the answer."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_network(self.hidden_dim, len(self.n_filters), self.dropout)
        if min(self.n_filters) < 1 or self.kernel_size < 1:
            raise ValueError(
                f"n_filters and kernel_size must be at least 1, got {self.n_filters} and {self.kernel_size}"
            )

    @property
    def values_per_window(self) -> int:
        """Numbers that the first layer makes of one window; the others make fewer of a shorter one."""
        return self.window_size * max(self.n_filters)


class CNNPricePredictor(BasePredictor):
    """Causal convolutions that halve the time axis, and a layer that knows where in the window things happened."""

    predictor_type: ClassVar[str] = "cnn"
    config_class: ClassVar[type[PredictorConfig]] = CNNConfig
    config: CNNConfig

    def _new_network(self, n_features: int, n_outputs: int) -> nn.Module:
        return ConvolutionalNetwork(self.config, n_features, n_outputs)

    def saliency(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Return what in each window the expected return depends on: input times gradient (Shrikumar et al., 2016).

        Returns:
            (n_origins, n_assets, window_size, n_features), of the first horizon's standardised mean; bars oldest first.
        """
        table, origins = self._ready(price_data, bars)
        assert self.network is not None
        windows, n_assets, device = self._windows(table), table.bars.n_assets, self.config.device
        bar = torch.from_numpy(origins).to(device).repeat_interleave(n_assets)
        asset = torch.arange(n_assets, device=device).repeat(len(origins))
        number = torch.tensor([self._number(name) for name in table.bars.assets], device=device)[asset]
        inputs = windows(asset, bar).requires_grad_()
        mean = self._head.mean(self.network(inputs, number))[:, 0].sum()
        (gradient,) = torch.autograd.grad(mean, inputs)
        found = (inputs * gradient).detach().cpu().numpy()
        return found.reshape(len(origins), n_assets, *found.shape[1:])


class ConvolutionalNetwork(nn.Module):
    """(batch, window_size, n_features) to (batch, n_outputs)."""

    def __init__(self, config: CNNConfig, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.layers, self.padding = nn.ModuleList(), []
        length, width = config.window_size, n_features
        for number, n_filters in enumerate(config.n_filters):
            stride = 1 if number == 0 else 2
            self.layers.append(nn.Conv1d(width, n_filters, config.kernel_size, stride=stride))
            # Before the first bar only, and so that the last result ends at the last bar.
            left = config.kernel_size - 1 - (length - 1) % stride
            self.padding.append(left)
            length, width = (length + left - config.kernel_size) // stride + 1, n_filters
        self.hidden = nn.Linear(length * width, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_dim, n_outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the outputs."""
        x = windows.transpose(1, 2)
        for layer, before in zip(self.layers, self.padding, strict=True):
            x = torch.relu(layer(pad(x, (before, 0))))
        outputs: Tensor = self.head(self.dropout(torch.relu(self.hidden(x.flatten(1)))))
        return outputs
