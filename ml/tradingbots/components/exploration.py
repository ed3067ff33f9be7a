"""How off-policy agents find out: random actions before the first update."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_actions(n_envs: int, action_dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw actions uniformly from [−1, 1]; (n_envs, action_dim)."""
    return torch.rand((n_envs, action_dim), generator=generator, device=device) * 2.0 - 1.0
