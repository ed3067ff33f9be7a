"""How off-policy agents find out: random actions before the first update, noise and greed after it."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_actions(n_envs: int, action_dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw actions uniformly from [−1, 1]; (n_envs, action_dim)."""
    return torch.rand((n_envs, action_dim), generator=generator, device=device) * 2.0 - 1.0


def uniform_choices(
    n_envs: int,
    n_branches: int,
    action_dim: int,
    generator: torch.Generator,
    device: torch.device,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw a legal choice per branch, each as likely as any; int64 (n_envs, n_branches).

    Args:
        n_envs: accounts.
        n_branches: choices made at once.
        action_dim: choices of all branches together.
        generator: of the draws.
        device: where they are made.
        mask: bool, which are legal; (n_envs, action_dim). None allows all.
    """
    scores = torch.rand((n_envs, action_dim), generator=generator, device=device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1.0)
    return scores.view(n_envs, n_branches, action_dim // n_branches).argmax(-1)


class OrnsteinUhlenbeckNoise:
    """Noise that returns to 0 and remembers where it was (Lillicrap et al., 2016): x += −θ·x·dt + σ·√dt·N(0, 1).

    Args:
        n_envs: accounts, each with a noise of its own.
        action_dim: length of an action.
        sigma: scale σ, actions being in [−1, 1].
        theta: rate θ of the return.
        time_step: dt.
        device: where it lives.
    """

    def __init__(
        self, n_envs: int, action_dim: int, *, sigma: float, theta: float, time_step: float, device: torch.device
    ) -> None:
        self.value = torch.zeros((n_envs, action_dim), device=device)
        self.keep = 1.0 - theta * time_step
        self.scale = sigma * time_step**0.5

    def draw(self, generator: torch.Generator) -> Tensor:
        """Walk one step; (n_envs, action_dim)."""
        noise = torch.randn(self.value.shape, generator=generator, device=self.value.device)
        self.value = self.value * self.keep + self.scale * noise
        return self.value

    def reset(self, done: Tensor) -> None:
        """Begin at 0 again in the accounts whose episode ended; bool (n_envs,)."""
        self.value = self.value.masked_fill(done[:, None], 0.0)


class StateDependentNoise:
    """The random matrices of state-dependent exploration, one per account, kept until they are drawn again.

    Args:
        n_envs: accounts.
        n_features: features that the noise is a function of.
        action_dim: length of an action.
        device: where they live.
    """

    def __init__(self, n_envs: int, n_features: int, action_dim: int, device: torch.device) -> None:
        self.matrices = torch.zeros((n_envs, n_features, action_dim), device=device)

    def renew(self, generator: torch.Generator) -> None:
        """Draw standard normal matrices anew."""
        self.matrices = torch.randn(self.matrices.shape, generator=generator, device=self.matrices.device)
