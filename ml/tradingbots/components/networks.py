"""Networks of the agents: small, explicit, and batched where two of the same kind are always evaluated together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# Bounds of the log standard deviation of a Gaussian policy (Haarnoja et al., 2018, reference code).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_TWO = math.log(2.0)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers with ReLU between them; none after the last.

    Args:
        sizes: input, hidden and output widths.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SquashedGaussianActor(nn.Module):
    """Gaussian policy squashed by tanh into [−1, 1] (Haarnoja et al., 2018, appendix C)."""

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp([state_dim, *[hidden_dim] * n_layers]), nn.ReLU())
        self.head = nn.Linear(hidden_dim, 2 * action_dim)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing; (batch, action_dim) each."""
        mean, log_std = self.head(self.body(observation)).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def deterministic(self, observation: Tensor) -> Tensor:
        """Return the squashed mean; (batch, action_dim)."""
        mean, _ = self(observation)
        return torch.tanh(mean)

    def sample(self, observation: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw actions and their log-probabilities.

        Returns:
            Actions in [−1, 1] (batch, action_dim) and log-probabilities (batch,).
        """
        mean, log_std = self(observation)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        before_squash = mean + log_std.exp() * noise
        return torch.tanh(before_squash), squashed_gaussian_log_prob(noise, log_std, before_squash)


def squashed_gaussian_log_prob(noise: Tensor, log_std: Tensor, before_squash: Tensor) -> Tensor:
    """Log-probability of tanh(u) with u = mean + std·noise; summed over action dimensions, (batch,).

    ln N(u) − Σ ln(1 − tanh²u), the second term as 2(ln 2 − u − softplus(−2u)): in float32 the direct form is off by 0.7
    at |u| = 9 and infinite from 10.
    """
    log_normal = -0.5 * noise.square() - log_std - _HALF_LOG_TWO_PI
    log_slope = 2.0 * (_LOG_TWO - before_squash - nn.functional.softplus(-2.0 * before_squash))
    return (log_normal - log_slope).sum(-1)


class TwinCritic(nn.Module):
    """Two Q-functions of (observation, action), evaluated as one batched matrix product per layer."""

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        sizes = [state_dim + action_dim, *[hidden_dim] * n_layers, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for width_in, width_out in pairwise(sizes):
            bound = 1.0 / math.sqrt(width_in)  # What nn.Linear draws from.
            self.weights.append(nn.Parameter(torch.empty(2, width_in, width_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(2, 1, width_out).uniform_(-bound, bound)))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return both values; (2, batch)."""
        x = torch.cat([observation, action], -1).unsqueeze(0).expand(2, -1, -1)  # (2, batch, state_dim + action_dim)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = torch.relu(x)
        return x.squeeze(-1)


@torch.no_grad()
def soft_update(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """Move target parameters a share `tau` towards the online ones, all in one call."""
    torch._foreach_lerp_(list(target), list(online), tau)
