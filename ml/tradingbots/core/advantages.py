"""How good each action turned out: advantages and value targets from a rollout, on any device.

Tensors have time first, (n_steps, n_envs), and every argument covers the steps t in [0, n_steps). What came after step
t is `next_values[t]`: the value of the observation that step t led to, *before* any reset. This makes the two ways in
which an episode ends explicit (Pardo et al., 2018, "Time Limits in Reinforcement Learning", arXiv:1712.00378):

- terminated: the task itself ended, nothing follows, the value beyond is 0 and `next_values[t]` is not read;
- truncated: time or data ran out, the market goes on, and the value beyond is `next_values[t]`.

Nothing is ever carried over from the step after an end, which belongs to another episode. The rollout's own last step
is cut in the same way: its future is `next_values[n_steps - 1]`.
"""

import torch
from torch import Tensor


@torch.no_grad()
def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by GAE(γ, λ) (Schulman et al., 2016, arXiv:1506.02438, equations 11 to 16).

        δ[t] = rewards[t] + γ · next_values[t] · (1 - terminated[t]) - values[t]
        A[t] = δ[t] + γ λ · (1 - terminated[t]) · (1 - truncated[t]) · A[t+1],   A[n_steps] = 0

    λ = 0 is the one-step error δ (equation 17); λ = 1 is the discounted sum less the value (equation 18).

    Args:
        rewards: reward of step t, for t in [0, n_steps); (n_steps, n_envs).
        values: value of the observation that step t acted on, for t in [0, n_steps); (n_steps, n_envs).
        next_values: value of the observation that step t led to, before any reset, for t in [0, n_steps);
            (n_steps, n_envs). Without ends it is `values` one step later.
        terminated: bool, whether step t ended the task; (n_steps, n_envs).
        truncated: bool, whether step t was the last one for lack of time or data; (n_steps, n_envs).
        gamma: discount per step, in [0, 1].
        gae_lambda: share of the error that is passed back one more step, in [0, 1].

    Returns:
        Advantages A and value targets A + values (the TD(λ) targets), without gradients; (n_steps, n_envs) each.

    >>> one = torch.ones(2, 1)
    >>> no = torch.zeros(2, 1, dtype=torch.bool)
    >>> advantages, value_targets = generalized_advantages(one, 2 * one, 2 * one, no, no, gamma=0.5, gae_lambda=1.0)
    >>> advantages.flatten().tolist(), value_targets.flatten().tolist()
    ([0.0, 0.0], [2.0, 2.0])
    """
    _check_fractions(gamma=gamma, gae_lambda=gae_lambda)
    _check_shapes(rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated)
    _check_flags(terminated=terminated, truncated=truncated)
    errors = rewards + gamma * _value_beyond(next_values, terminated) - values
    advantages = discounted_sum(errors, terminated | truncated, gamma=gamma * gae_lambda)
    return advantages, advantages + values


@torch.no_grad()
def discounted_sum(rewards: Tensor, ended: Tensor, *, gamma: float) -> Tensor:
    """Sum the rewards from each step to the end of its episode or of the rollout, discounted; nothing is bootstrapped.

        G[t] = rewards[t] + γ · (1 - ended[t]) · G[t+1],   G[n_steps] = 0

    Args:
        rewards: reward of step t, for t in [0, n_steps); (n_steps, n_envs).
        ended: bool, `terminated | truncated` of step t; (n_steps, n_envs).
        gamma: discount per step, in [0, 1].

    Returns:
        Discounted sums, without gradients; (n_steps, n_envs).

    >>> ended = torch.tensor([[False], [True], [False]])
    >>> discounted_sum(torch.ones(3, 1), ended, gamma=0.5).flatten().tolist()
    [1.5, 1.0, 1.0]
    """
    _check_fractions(gamma=gamma)
    _check_shapes(rewards=rewards, ended=ended)
    _check_flags(ended=ended)
    carried = gamma * (~ended).to(rewards.dtype)
    sums = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:1])
    for t in reversed(range(len(rewards))):
        following = rewards[t : t + 1] + carried[t : t + 1] * following
        sums[t : t + 1] = following
    return sums


@torch.no_grad()
def n_step_targets(
    rewards: Tensor, terminated: Tensor, truncated: Tensor, next_values: Tensor, *, gamma: float, n_steps: int
) -> Tensor:
    """Compute n-step value targets (Sutton and Barto, 2018, equation 7.1).

        y[t] = Σ_{k < m} γ^k · rewards[t+k] + γ^m · next_values[t+m-1] · (1 - terminated[t+m-1])

    m is `n_steps`, or less where the episode or the rollout ends before: it then counts the steps up to and including
    that last one.

    Args:
        rewards: reward of step t, for t in [0, n_rows); (n_rows, n_envs).
        terminated: bool, whether step t ended the task; (n_rows, n_envs).
        truncated: bool, whether step t was the last one for lack of time or data; (n_rows, n_envs).
        next_values: value of the observation that step t led to, before any reset, for t in [0, n_rows);
            (n_rows, n_envs).
        gamma: discount per step, in [0, 1].
        n_steps: rewards in a target, at least 1; this is a length of targets, not of the rollout.

    Returns:
        Value targets, without gradients; (n_rows, n_envs).

    >>> no = torch.zeros(3, 1, dtype=torch.bool)
    >>> n_step_targets(torch.ones(3, 1), no, no, torch.full((3, 1), 8.0), gamma=0.5, n_steps=2).flatten().tolist()
    [3.5, 3.5, 5.0]
    """
    _check_fractions(gamma=gamma)
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    _check_shapes(rewards=rewards, terminated=terminated, truncated=truncated, next_values=next_values)
    _check_flags(terminated=terminated, truncated=truncated)
    beyond = _value_beyond(next_values, terminated)
    ended = terminated | truncated
    ended[-1:] = True
    targets = rewards + gamma * beyond
    for _ in range(min(n_steps, len(rewards)) - 1):
        # The wrapped-around row is never read: the last step counts as an end.
        targets = rewards + gamma * torch.where(ended, beyond, targets.roll(-1, dims=0))
    return targets


def _value_beyond(next_values: Tensor, terminated: Tensor) -> Tensor:
    # Not a product with 0: the network's value of a terminal observation may be NaN or infinite, and must not matter.
    return next_values.masked_fill(terminated, 0.0)


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def _check_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        # Left alone, (n_steps,) against (n_steps, 1) broadcasts to (n_steps, n_steps).
        raise ValueError(f"expected one shape (n_steps, n_envs) for all, got {shapes}")


def _check_flags(**flags: Tensor) -> None:
    for name, flag in flags.items():
        if flag.dtype != torch.bool:
            raise TypeError(f"{name} must be a bool tensor, got {flag.dtype}")
