"""Probabilities of actions in closed form: Gaussian, squashed Gaussian and independent categorical choices.

`torch.distributions` checks its arguments and builds objects at every call, which costs more than the arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Bounds of the log standard deviation of a Gaussian policy (Haarnoja et al., 2018, reference code).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_HALF_LOG_TWO_PI_E = 0.5 + _HALF_LOG_TWO_PI
_LOG_TWO = math.log(2.0)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of independent Gaussians, summed over action dimensions; (batch, action_dim) to (batch,)."""
    return standardized_log_prob((action - mean) * (-log_std).exp(), log_std)


def standardized_log_prob(scaled: Tensor, log_std: Tensor) -> Tensor:
    """The same from z = (action − mean) / std; (batch, action_dim) to (batch,)."""
    return (-0.5 * scaled.square() - log_std - _HALF_LOG_TWO_PI).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of independent Gaussians in nats, summed over the last axis."""
    return (log_std + _HALF_LOG_TWO_PI_E).sum(-1)


def squashed_gaussian_log_prob(noise: Tensor, log_std: Tensor, before_squash: Tensor) -> Tensor:
    """Log-probability of tanh(u) with u = mean + std·noise; summed over action dimensions, (batch,).

    ln N(u) − Σ ln(1 − tanh²u), the second term as 2(ln 2 − u − softplus(−2u)): in float32 the direct form is off by 0.7
    at |u| = 9 and infinite from 10.
    """
    log_normal = -0.5 * noise.square() - log_std - _HALF_LOG_TWO_PI
    log_slope = 2.0 * (_LOG_TWO - before_squash - nn.functional.softplus(-2.0 * before_squash))
    return (log_normal - log_slope).sum(-1)


def log_probabilities(logits: Tensor, n_branches: int, mask: Tensor | None = None) -> Tensor:
    """Log-probabilities of every choice.

    Args:
        logits: (batch, n_branches · choices).
        n_branches: independent choices made at once.
        mask: bool, which choices are legal, shaped as the logits; at least one of each branch. None allows all.

    Returns:
        (batch, n_branches, choices); about −1e38 where illegal, so that products with a probability of 0 stay 0.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e38)
    return logits.view(logits.shape[0], n_branches, logits.shape[1] // n_branches).log_softmax(-1)


def categorical_log_prob(log_probs: Tensor, choice: Tensor) -> Tensor:
    """Log-probability of the choices made (batch, n_branches), summed over branches; (batch,)."""
    return log_probs.gather(-1, choice.unsqueeze(-1)).squeeze(-1).sum(-1)


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats, summed over branches; (batch, n_branches, choices) to (batch,)."""
    return -(log_probs.exp() * log_probs).sum((-2, -1))


def draw_choices(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a choice per branch; (batch, n_branches, choices) to int64 (batch, n_branches).

    The first of independent exponential clocks with rates p rings for choice i with probability pᵢ.
    """
    # Away from 0, whose logarithm would ring for an illegal choice.
    clocks = torch.empty_like(log_probs).exponential_(generator=generator).clamp_min_(1e-30)
    return best_choices(log_probs - clocks.log())


def best_choices(values: Tensor) -> Tensor:
    """Return the largest of the last axis; −1, which no environment takes, where a value is NaN: the networks diverged."""
    return values.argmax(-1).masked_fill(values.isnan().any(-1), -1)
