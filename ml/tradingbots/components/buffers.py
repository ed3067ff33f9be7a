"""Replay memory: transitions in one preallocated table, market observations as (bar, account) instead of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class IndexedObservations(Protocol):
    """What a vector environment offers whose observations can be looked up.

    An observation is a position in a table (`bar`) and a few account features. Beside these members, `step` puts
    `next_bar` and `next_account`, where each account stood before any reset, into its infos. The next bar is always the
    bar after.
    """

    bar: Tensor
    account_dim: int

    def account_features(self) -> Tensor:
        """Account part of the present observations; (n_envs, account_dim)."""
        ...

    def gather(self, bar: Tensor, account: Tensor) -> Tensor:
        """Rebuild observations; (batch, observation_dim)."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Transitions drawn for one gradient step."""

    observation: Tensor
    """(batch, state_dim), raw."""
    action: Tensor
    """(batch, action_dim), in [−1, 1]."""
    reward: Tensor
    """(batch,)."""
    next_observation: Tensor
    """(batch, state_dim), raw; the last one of the old episode where one ended."""
    terminated: Tensor
    """(batch,), 1.0 where there is no value beyond. Truncations are 0: they bootstrap."""


class ReplayBuffer:
    """The last `capacity` transitions, each one row of a float32 table.

    A row is [key, next key, action, reward, terminated]. For an environment with `IndexedObservations` the key is its
    account features, and the bar stands in a column of integers; for any other the key is the observation itself.

    Args:
        capacity: transitions kept; rounded down to a multiple of `n_envs`, at least one row of accounts.
        n_envs: transitions added at a time.
        key_dim: length of the key.
        action_dim: length of an action.
        device: where the table lives.
        source: the environment that rebuilds observations; None when the key is the observation.
    """

    def __init__(
        self,
        capacity: int,
        n_envs: int,
        key_dim: int,
        action_dim: int,
        *,
        device: torch.device,
        source: IndexedObservations | None = None,
    ) -> None:
        self.capacity = max(capacity // n_envs, 1) * n_envs
        self.n_envs, self.key_dim, self.action_dim = n_envs, key_dim, action_dim
        self.source = source
        self.rows = torch.zeros((self.capacity, 2 * key_dim + action_dim + 2), device=device)
        self.bars = torch.zeros(self.capacity if source is not None else 0, dtype=torch.int32, device=device)
        self.size = self.position = 0
        self._widths = [key_dim, key_dim, action_dim, 1, 1]

    @classmethod
    def for_env(cls, env: Any, capacity: int, action_dim: int, *, device: torch.device) -> ReplayBuffer:
        """Return the memory that suits an environment."""
        if isinstance(env, IndexedObservations):
            return cls(capacity, env.num_envs, env.account_dim, action_dim, device=device, source=env)  # type: ignore[attr-defined]
        (obs_dim,) = env.single_observation_space.shape
        return cls(capacity, env.num_envs, obs_dim, action_dim, device=device)

    @property
    def bytes_per_transition(self) -> float:
        """Memory of one transition, in bytes."""
        return (self.rows.nbytes + self.bars.nbytes) / self.capacity

    def add(
        self,
        key: Tensor,
        action: Tensor,
        reward: Tensor,
        next_key: Tensor,
        terminated: Tensor,
        bar: Tensor | None = None,
    ) -> None:
        """Store one transition of every account; the first axis of each argument is `n_envs`."""
        stop = self.position + self.n_envs
        torch.cat(
            [key, next_key, action, reward[:, None], terminated[:, None].to(reward.dtype)],
            1,
            out=self.rows[self.position : stop],
        )
        if bar is not None:
            self.bars[self.position : stop] = bar
        self.position = stop % self.capacity
        self.size = max(self.size, stop)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw transitions uniformly, with replacement."""
        index = torch.randint(self.size, (batch_size,), generator=generator, device=self.rows.device)
        key, next_key, action, reward, terminated = torch.split(self.rows.index_select(0, index), self._widths, 1)
        if self.source is not None:
            bar = self.bars.index_select(0, index).long()
            key, next_key = self.source.gather(bar, key), self.source.gather(bar + 1, next_key)
        return Batch(key, action, reward.squeeze(1), next_key, terminated.squeeze(1))

    def rewards(self) -> Tensor:
        """Rewards stored so far; (size,)."""
        return self.rows[: self.size, -2]

    def state_dict(self) -> dict[str, Any]:
        """Return what is stored, without the empty part."""
        return {
            "rows": self.rows[: self.size].clone(),
            "bars": self.bars[: self.size].clone(),
            "size": self.size,
            "position": self.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved memory.

        Raises:
            ValueError: it was saved with other dimensions, another capacity or number of accounts, or is damaged.
        """
        if not self._fits(state):
            rows = getattr(state.get("rows"), "shape", "none")
            raise ValueError(
                f"the saved replay memory (rows: {rows}) does not fit this one ({tuple(self.rows.shape)}, {self.n_envs} "
                "accounts) or is damaged: resume with the same environment, n_envs and buffer_size"
            )
        size = state["size"]
        self.rows[:size] = state["rows"].to(self.rows.device)
        if self.source is not None:
            self.bars[:size] = state["bars"].to(self.bars.device)
        self.size, self.position = size, state["position"]

    def _fits(self, state: dict[str, Any]) -> bool:
        """Whether a state, which may come from anywhere, is one that this memory could have had."""
        rows, bars, size, position = (state.get(name) for name in ("rows", "bars", "size", "position"))
        if type(size) is not int or type(position) is not int or type(rows) is not Tensor or type(bars) is not Tensor:
            return False
        if not 0 <= size <= self.capacity or size % self.n_envs or position % self.n_envs:
            return False
        if not 0 <= position < self.capacity or (position != size and size != self.capacity):
            return False
        if rows.dtype != self.rows.dtype or rows.shape != (size, self.rows.shape[1]) or not torch.isfinite(rows).all():
            return False
        if self.source is None or size == 0:
            return True
        if bars.dtype != self.bars.dtype or bars.shape != (size,):
            return False
        first_and_last = torch.stack([bars.min(), bars.max() + 1]).to(self.bars.device).long()
        try:
            seen = self.source.gather(first_and_last, torch.zeros((2, self.key_dim), device=self.rows.device))
        except IndexError:
            return False
        return bool(torch.isfinite(seen).all())
