"""How a generalist and specialists become one action: by how likely each regime is, and how much is known of it.

What is mixed means the same for every member: numbers for continuous actions, probabilities or values of choices for discrete
ones. Numbers of choices are never averaged: between "buy" and "sell" there is no "hold".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ml.tradingbots.components.distributions import best_choices, draw_choices, log_probabilities
from ml.tradingbots.components.exploration import uniform_choices


def mixing_weights(probabilities: Tensor, entropy: Tensor, novelty: Tensor, min_generalist: float) -> Tensor:
    """Return how much each member counts: the generalist as much as is not known, specialists the rest by regime.

    The generalist's weight is max(entropy, novelty), at least `min_generalist` and at most 1; that of the specialist of
    regime k is what is left times p_k. With one regime there is nothing to tell apart, and the generalist has all.

    Args:
        probabilities: of each regime at the next bar; (batch, n_regimes).
        entropy: of them, over its largest value; (batch,).
        novelty: 1 where the detector is surprised, else 0; (batch,).
        min_generalist: in [0, 1].

    Returns:
        (batch, 1 + n_regimes), the generalist first; (batch, 1) with one regime.

    >>> mixing_weights(torch.tensor([[0.75, 0.25]]), torch.tensor([0.5]), torch.tensor([0.0]), 0.1).tolist()
    [[0.5, 0.375, 0.125]]
    """
    if probabilities.shape[1] == 1:
        return torch.ones_like(probabilities)
    generalist = torch.maximum(entropy, novelty).clamp(min_generalist, 1.0)[:, None]
    return torch.cat([generalist, (1.0 - generalist) * probabilities], 1)


def mix_numbers(actions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted mean of actions; (batch, action_dim) each, weights (batch, n_members)."""
    total = weights[:, :1] * actions[0]
    for number, action in enumerate(actions[1:], start=1):
        total = total + weights[:, number : number + 1] * action
    return total


def mixed_log_probabilities(
    members: Sequence[Any], weights: Tensor, observations: Sequence[Tensor], n_branches: int, mask: Tensor | None
) -> Tensor:
    """Return the log of the weighted mean of members' probabilities of choices; (batch, n_branches, choices).

    Args:
        members: discrete agents with a stochastic policy.
        weights: (batch, n_members).
        observations: as each member's network sees them; (batch, state_dim) each.
        n_branches: choices made at once.
        mask: bool, which are legal; (batch, action_dim). None allows all.
    """
    logs = [
        log_probabilities(member.network.policy(observation)[0], n_branches, mask)
        for member, observation in zip(members, observations, strict=True)
    ]
    # Weights of 0 are allowed: their logarithm, minus infinity, drops out of the sum.
    weighted = torch.stack(logs) + weights.T[:, :, None, None].log()
    return weighted.logsumexp(0)


def mixed_values(members: Sequence[Any], weights: Tensor, observations: Sequence[Tensor], n_branches: int) -> Tensor:
    """Return the weighted mean of members' advantages of choices, in units of reward; (batch, n_branches, choices).

    A value is that of the choice over the mean of its branch: how good its regime is as a whole gives a member no say.
    """
    advantages = []
    for member, observation in zip(members, observations, strict=True):
        values = member.network(observation, n_branches) / member.reward_scale
        advantages.append(values - values.mean(-1, keepdim=True))
    shares = weights.T[:, :, None, None]
    return (torch.stack(advantages) * shares).sum(0)


def choose_by_value(
    values: Tensor, mask: Tensor | None, *, epsilon: float, generator: torch.Generator, draw: bool
) -> Tensor:
    """Return the most valuable legal choices; with `draw`, random ones in a share `epsilon`; (batch, n_branches)."""
    n, n_branches, n_choices = values.shape
    legal = values if mask is None else values.masked_fill(~mask.view_as(values), -torch.inf)
    best = best_choices(legal)
    if not draw:
        return best
    explores = torch.rand((n, 1), generator=generator, device=values.device) < epsilon
    random = uniform_choices(n, n_branches, n_branches * n_choices, generator, values.device, mask)
    return torch.where(explores & (best >= 0), random, best)  # Diverged networks are not to hide behind chance.


def choose_by_probability(log_probs: Tensor, generator: torch.Generator, *, draw: bool) -> Tensor:
    """Return the likeliest choices, or with `draw` choices drawn by their probability; (batch, n_branches)."""
    return draw_choices(log_probs, generator) if draw else best_choices(log_probs)
