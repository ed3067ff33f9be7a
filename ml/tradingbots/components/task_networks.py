"""What an agent of several tasks makes of an observation: a shared trunk, an embedding of the task, a head for each.

An observation ends with a task vector τ: a 1 among zeros for a task that was trained, any mixture of them for one that was
not. Everything here is linear in τ where it depends on it, so that a mixture gets the mean embedding and the mean head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ml.tradingbots.components.encoders import Encoder
from ml.tradingbots.components.networks import ACTIVATIONS

Heads = Literal["per_task", "shared"]
Gradients = Literal["sum", "pcgrad"]
ReturnScaling = Literal["per_task", "pooled"]


@dataclass(frozen=True)
class TaskLayout:
    """How the networks of an agent are divided among its tasks."""

    n_tasks: int
    """Entries at the end of an observation that say which task it is of."""
    trunk_dims: tuple[int, ...]
    """Widths of the layers that all tasks share; at least one."""
    embedding_dim: int
    """Length of what stands for a task at the trunk's entrance; 0 tells the trunk nothing."""
    has_heads: bool
    """Whether the first layer above the trunk is one of its own for each task."""
    gradients: Gradients = "sum"
    """How the tasks' gradients become one."""
    return_scaling: ReturnScaling = "per_task"
    """Whether each task's rewards are put on a scale of their own."""

    @property
    def output_dim(self) -> int:
        """Length of what comes out of the encoder."""
        width = self.trunk_dims[-1]
        return self.n_tasks * (width + 1) if self.has_heads else width

    def n_weights(self, width: int) -> int:
        """Count the weights of trunk and embedding, for what is `width` numbers before."""
        layers = sum(before * after for before, after in pairwise((width + self.embedding_dim, *self.trunk_dims)))
        return layers + self.n_tasks * self.embedding_dim


class TaskEncoder(Encoder):
    """[observation, τ] to features: observation through its own encoder, joined by τ·E, through the trunk.

    With heads the features h come out as τ ⊗ [h, 1]: task k finds them, and a 1 for its bias, in the k-th of n_tasks places
    and zeros in all others, so that the linear layer that reads them has weights of its own for each task.

    Args:
        inner: what reads the observation without τ.
        layout: how tasks share the rest.
        activation: after every layer of the trunk.
    """

    def __init__(self, inner: Encoder, layout: TaskLayout, activation: str) -> None:
        super().__init__(layout.output_dim)
        self.inner, self.layout = inner, layout
        self.activation = ACTIVATIONS[activation]
        sizes = (inner.output_dim + layout.embedding_dim, *layout.trunk_dims)
        self.trunk = nn.ModuleList(_layer(*pair) for pair in pairwise(sizes))
        # As large as a normalised observation's entries, or the trunk would hardly hear it.
        self.embedding = nn.Parameter(torch.randn(layout.n_tasks, layout.embedding_dim))

    def forward(self, observation: Tensor) -> Tensor:
        """Encode [observation, τ] (batch, state_dim) as (batch, output_dim)."""
        n_tasks = self.layout.n_tasks
        task = observation[:, -n_tasks:]  # (batch, n_tasks)
        x: Tensor = self.inner(observation[:, :-n_tasks])
        if self.layout.embedding_dim:
            x = torch.cat([x, task @ self.embedding], 1)
        for layer in self.trunk:
            x = self.activation(layer(x))
        if not self.layout.has_heads:
            return x
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # (batch, width + 1)
        # Sizes spelled out, for an empty batch leaves nothing to infer.
        return (task.unsqueeze(2) * x.unsqueeze(1)).reshape(len(x), self.output_dim)


def _layer(n_inputs: int, n_outputs: int) -> nn.Linear:
    layer = nn.Linear(n_inputs, n_outputs)
    nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
    nn.init.zeros_(layer.bias)
    return layer
