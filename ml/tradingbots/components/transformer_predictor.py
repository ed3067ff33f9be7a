"""Forecasting with a causal transformer over patches of bars (Vaswani et al., 2017; Nie et al., 2023, "PatchTST")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, pad, scaled_dot_product_attention

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.lstm_predictor import check_network
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.return_predictor import PriceData

# Tokens up to which attention is written out: PyTorch's fused one is made for long sequences and takes twice the time.
SHORT = 64
# A softmax over rows that do not fill a processor's vectors takes ten times as long as over rows that do.
VECTOR = 16


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

    @property
    def values_per_window(self) -> int:
        """Numbers that the widest layer makes of one window."""
        return math.ceil(self.window_size / self.patch_size) * 4 * self.hidden_dim


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
        for number, block in enumerate(self.blocks, 1):
            x = block(x, last_only=number == len(self.blocks))
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

    def forward(self, x: Tensor, *, last_only: bool = False) -> Tensor:
        """(batch, n_tokens, width) to the same, or to its last token alone, (batch, 1, width)."""
        batch, n_tokens, _ = x.shape
        split = self.query_key_value(self.attention_norm(x)).view(batch, n_tokens, 3, self.n_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (batch, n_heads, n_tokens, width / n_heads) each.
        if self.keeps_attention:
            self.attention.append(attention_weights(query, key)[..., :n_tokens])
        if last_only:  # Nobody reads what the others would say.
            query, x = query[:, :, -1:], x[:, -1:]
        found = attend(query, key, value, self.dropout if self.training else 0.0)
        x = x + self.silence(self.mix(found.transpose(1, 2).reshape(x.shape)))
        result: Tensor = x + self.silence(self.narrow(gelu(self.widen(self.network_norm(x)))))
        return result


def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Causal attention of the last tokens to all.

    Args:
        query: of all tokens, or of the last alone; (batch, n_heads, n_queries, width).
        key: of all tokens; (batch, n_heads, n_tokens, width).
        value: as `key`.
        dropout_p: share of weights silenced.

    Returns:
        As `query`.
    """
    n_tokens = key.shape[2]
    if n_tokens > SHORT:
        is_causal = query.shape[2] > 1
        return scaled_dot_product_attention(query, key, value, is_causal=is_causal, dropout_p=dropout_p)
    weights = dropout(attention_weights(query, key), dropout_p)
    return torch.bmm(weights.flatten(0, 1), _filled(value).flatten(0, 1)).view(query.shape)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much the last tokens look at each; (batch, n_heads, n_queries, n_tokens filled up to vectors), 0 where unseen."""
    n_queries, n_tokens = query.shape[2], key.shape[2]
    keys = _filled(key).flatten(0, 1)
    unseen = torch.full((n_queries, keys.shape[1]), -torch.inf, dtype=key.dtype, device=key.device)
    # Mask, scale and product in one call: each of them alone would write all scores once more.
    scores = torch.baddbmm(
        unseen.triu(n_tokens - n_queries + 1), query.flatten(0, 1), keys.mT, alpha=1.0 / math.sqrt(query.shape[-1])
    )
    return scores.softmax(-1).view(*query.shape[:2], n_queries, -1)


def _filled(values: Tensor) -> Tensor:
    """Append tokens that nobody sees, up to whole vectors."""
    missing = -values.shape[2] % VECTOR
    return pad(values, (0, 0, 0, missing)) if missing else values
