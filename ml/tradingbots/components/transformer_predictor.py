"""Forecasting with a causal transformer over patches of bars (Vaswani et al., 2017; Nie et al., 2023, "PatchTST")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.lstm_predictor import check_network
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.return_predictor import PriceData


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(PredictorConfig):
    """Hyperparameters of the transformer."""

    patch_size: int = 4
    """Bars read as one token; a window that they do not divide is filled up with zeros before its first bar."""
    hidden_dim: int = 32
    n_layers: int = 2
    n_heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_network(self.hidden_dim, self.n_layers, self.dropout)
        if not 1 <= self.patch_size <= self.window_size:
            raise ValueError(f"patch_size must be in [1, window_size={self.window_size}], got {self.patch_size}")
        if self.n_heads < 1 or self.hidden_dim % self.n_heads:
            raise ValueError(f"n_heads must divide hidden_dim={self.hidden_dim}, got {self.n_heads}")


class TransformerPricePredictor(BasePredictor):
    """Tokens are patches of bars, each looks at itself and those before; the last one speaks."""

    predictor_type: ClassVar[str] = "transformer"
    description: ClassVar[str] = "causal transformer over patches of bars"
    config_class: ClassVar[type[PredictorConfig]] = TransformerConfig
    config: TransformerConfig

    def _new_network(self, n_features: int, n_outputs: int) -> nn.Module:
        config = self.config
        return PatchTransformer(config, n_features, n_outputs)

    def attention_maps(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Return how much every token looked at every other one.

        Returns:
            (n_origins, n_assets, n_layers, n_heads, n_tokens, n_tokens); rows sum to 1, entries after a row's own token
            are 0. Tokens are patches, oldest first.
        """
        table, origins = self._ready(price_data, bars)
        assert self.network is not None
        blocks = [module for module in self.network.modules() if isinstance(module, CausalBlock)]
        try:
            for block in blocks:
                block.keeps_attention = True
            self._outputs(table, origins)
            maps = torch.stack([torch.cat(block.attention) for block in blocks], 1)
        finally:
            for block in blocks:
                block.keeps_attention, block.attention = False, []
        return maps.view(len(origins), table.bars.n_assets, *maps.shape[1:]).cpu().numpy()


class PatchTransformer(nn.Module):
    """(batch, window_size, n_features) to (batch, n_outputs)."""

    def __init__(self, config: TransformerConfig, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.n_tokens = math.ceil(config.window_size / config.patch_size)
        self.n_missing = self.n_tokens * config.patch_size - config.window_size
        self.embedding = nn.Linear(config.patch_size * n_features, config.hidden_dim)
        self.positions = nn.Parameter(torch.randn(self.n_tokens, config.hidden_dim))
        self.blocks = nn.ModuleList(
            CausalBlock(config.hidden_dim, config.n_heads, config.dropout, config.n_layers)
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.head = nn.Linear(config.hidden_dim, n_outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the outputs."""
        if self.n_missing:
            windows = pad(windows, (0, 0, self.n_missing, 0))
        x = self.embedding(windows.reshape(len(windows), self.n_tokens, -1)) + self.positions
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.head(self.norm(x[:, -1]))
        return outputs


class CausalBlock(nn.Module):
    """Pre-norm attention to oneself and what came before, and a small network, each added to what came in."""

    def __init__(self, width: int, n_heads: int, dropout: float, n_layers: int) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.silence = nn.Dropout(dropout)
        with torch.no_grad():  # Each block adds twice to the stream (Radford et al., 2019).
            for layer in (self.mix, self.narrow):
                layer.weight.mul_(1.0 / math.sqrt(2.0 * n_layers))
        self.keeps_attention = False
        self.attention: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_tokens, width) to the same."""
        batch, n_tokens, width = x.shape
        split = self.query_key_value(self.attention_norm(x)).view(batch, n_tokens, 3, self.n_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (batch, n_heads, n_tokens, width / n_heads) each.
        found = scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        if self.keeps_attention:
            self.attention.append(_attention(query, key))
        x = x + self.silence(self.mix(found.transpose(1, 2).reshape(batch, n_tokens, width)))
        result: Tensor = x + self.silence(self.narrow(gelu(self.widen(self.network_norm(x)))))
        return result


def _attention(query: Tensor, key: Tensor) -> Tensor:
    """The weights that `scaled_dot_product_attention` does not show; (batch, n_heads, n_tokens, n_tokens)."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)
