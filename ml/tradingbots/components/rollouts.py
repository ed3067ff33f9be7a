"""What on-policy agents remember: the last few steps of every account, in time order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ml.tradingbots.components.buffers import IndexedObservations, are_bars_of
from ml.tradingbots.components.normalization import RunningMeanStd
from ml.tradingbots.components.serialization import check_like


@dataclass(frozen=True, slots=True)
class Rollout:
    """`n_steps` of `n_envs` accounts; the first two axes of every tensor are (n_steps, n_envs)."""

    observation: Tensor
    """What each step acted on, raw; (n_steps, n_envs, state_dim)."""
    action: Tensor
    """As the policy drew it, before any clipping; numbers, or choices as numbers."""
    reward: Tensor
    """As the environment gave it."""
    terminated: Tensor
    """bool, whether the task ended."""
    truncated: Tensor
    """bool, whether time or data ran out."""
    next_observation: Tensor
    """What the whole rollout led to, raw; (n_envs, state_dim)."""
    mask: Tensor | None
    """bool, legal choices; (n_steps, n_envs, action_dim)."""
    final_observations: Callable[[Tensor | None], Tensor]
    """See `RolloutBuffer.final_observations`."""


class RolloutBuffer:
    """Preallocated storage of one rollout, market observations as (bar, account) instead of windows.

    Args:
        env: the vector environment it is filled from.
        n_steps: steps per account.
        action_dim: numbers stored for an action.
        mask_dim: length of an action mask; 0 stores none.
        device: where it lives.
    """

    def __init__(self, env: Any, n_steps: int, action_dim: int, *, mask_dim: int, device: torch.device) -> None:
        self.source = env if isinstance(env, IndexedObservations) else None
        shape = (n_steps, env.num_envs)
        (state_dim,) = env.single_observation_space.shape
        key_dim = self.source.account_dim if self.source is not None else state_dim
        self.n_steps, self.position = n_steps, 0
        self.tensors = {
            "key": torch.zeros((*shape, key_dim), device=device),
            # Where a step led to, before any reset; read where it was cut for lack of time.
            "next_key": torch.zeros((*shape, key_dim), device=device),
            "bar": torch.zeros(shape if self.source is not None else (0,), dtype=torch.int64, device=device),
            "action": torch.zeros((*shape, action_dim), device=device),
            "reward": torch.zeros(shape, device=device),
            "terminated": torch.zeros(shape, dtype=torch.bool, device=device),
            "truncated": torch.zeros(shape, dtype=torch.bool, device=device),
            "mask": torch.ones((*shape, mask_dim), dtype=torch.bool, device=device),
        }

    @property
    def is_full(self) -> bool:
        """Whether the rollout is complete."""
        return self.position == self.n_steps

    def add(self, **values: Tensor | None) -> None:
        """Store one step of every account; names as in `tensors`, None leaves what is there."""
        for name, value in values.items():
            if value is not None:
                self.tensors[name][self.position] = value
        self.position += 1

    def rollout(self, next_observation: Tensor) -> Rollout:
        """Return the complete rollout; `next_observation` is what its last step led to, after any reset."""
        tensors = self.tensors
        mask = tensors["mask"]
        return Rollout(
            self._observations(),
            tensors["action"],
            tensors["reward"],
            tensors["terminated"],
            tensors["truncated"],
            next_observation,
            mask if mask.shape[-1] else None,
            self.final_observations,
        )

    def final_observations(self, rows: Tensor | None) -> Tensor:
        """What steps led to before any reset, raw; (len(rows), state_dim), rows counting step by step, None for all."""
        key = self.tensors["next_key"].flatten(0, 1)
        key = key if rows is None else key.index_select(0, rows)
        if self.source is None:
            return key
        bar = self.tensors["bar"].flatten() + 1
        return self.source.gather(bar if rows is None else bar.index_select(0, rows), key)

    def _observations(self) -> Tensor:
        key = self.tensors["key"]
        if self.source is None:
            return key
        flat = self.source.gather(self.tensors["bar"].flatten(), key.flatten(0, 1))
        return flat.view(*key.shape[:2], -1)

    def state_dict(self) -> dict[str, Any]:
        """Return what is stored and how far it goes."""
        return {"tensors": {name: value.clone() for name, value in self.tensors.items()}, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved rollout.

        Raises:
            ValueError: it was saved with other settings, or is damaged.
        """
        check_like(state, {"tensors": self.tensors, "position": 0}, "rollout")
        if not 0 <= state["position"] < self.n_steps:
            raise ValueError(f"the position of a rollout must be in [0, {self.n_steps}), got {state['position']}")
        bar = state["tensors"]["bar"][: state["position"]]
        if self.source is not None and len(bar) and not are_bars_of(self.source, bar.to(self.tensors["bar"].device)):
            raise ValueError("the rollout stands at bars that the environment does not have")
        for name, value in state["tensors"].items():
            self.tensors[name].copy_(value)
        self.position = state["position"]


class ReturnScaler:
    """Divides rewards by the standard deviation of their discounted sum (Engstrom et al., 2020, "Implementation Matters").

    The sum runs forward in time, G ← γ·G + r, and starts over where an episode ends; its mean is left alone, so that no
    reward changes its sign.

    Args:
        n_envs: accounts.
        gamma: discount of the sum.
        statistics: of G, from an earlier run or fresh.
        device: where rewards live.
    """

    def __init__(self, n_envs: int, gamma: float, statistics: RunningMeanStd, device: torch.device) -> None:
        self.total = torch.zeros(n_envs, device=device)
        self.gamma, self.statistics = gamma, statistics

    def update(self, reward: Tensor, ended: Tensor) -> float:
        """Take in the rewards of a rollout; (n_steps, n_envs) each. Returns what to multiply rewards by."""
        self.statistics.update(self.totals(reward, ended).flatten())
        return inverse_of(self.statistics)

    def totals(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Return G after every step of a rollout, and remember where it stands; (n_steps, n_envs) each."""
        totals = torch.empty_like(reward)
        total = self.total
        for step, (now, over) in enumerate(zip(reward, ended, strict=True)):
            total = self.gamma * total + now
            totals[step] = total
            total = total.masked_fill(over, 0.0)
        self.total = total
        return totals


def inverse_of(statistics: RunningMeanStd) -> float:
    """Return one over a standard deviation; 1 where there is none to speak of."""
    deviation = float(statistics.std)
    return 1.0 / deviation if deviation > 1e-8 else 1.0
