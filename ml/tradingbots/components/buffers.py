"""Replay memory: transitions in one preallocated table, market observations as (bar, account) instead of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ml.tradingbots.components.priorities import PriorityTree


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
    """Transitions drawn for one gradient step.

    With n-step returns, m transitions are taken as one: `reward` is their discounted sum, and `next_observation`,
    `terminated` and `next_mask` are those of the last. The target is
    reward + discount · (1 − terminated) · V(next_observation).
    """

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
    discount: Tensor | None = None
    """(batch,), gamma^m for the m rewards that were summed; None for one-step returns, whose m is always 1."""
    weight: Tensor | None = None
    """(batch,), importance weights in (0, 1]; None where draws are uniform."""
    index: Tensor | None = None
    """(batch,), int64, the places drawn, for `ReplayBuffer.update_priorities`; None where draws are uniform."""
    next_mask: Tensor | None = None
    """(batch, mask_dim), bool, which actions are allowed after `next_observation`; None where masks are not stored."""


class ReplayBuffer:
    """The last `capacity` transitions, each one row of a float32 table.

    A row is [key, next key, action, reward, end], where `end` is 0 where the episode goes on, 1 where it terminated and
    -1 where it was truncated. For an environment with `IndexedObservations` the key is its account features, and the bar
    stands in a column of integers; for any other the key is the observation itself. The rows of one vector step stand
    together, so that the transition after row i of the same account is row i + n_envs.

    Returns over several steps are put together when they are drawn and need no memory. They stop early at an end, and at
    the newest transition; a target over fewer steps than asked for is as right as any.

    Prioritised draws follow Schaul et al., 2016, "Prioritized Experience Replay", arXiv:1511.05952, in the proportional
    form: P(i) = p(i)^α / Σ p^α with p = |error| + ε. A new transition has the highest priority seen so far.

    Args:
        capacity: transitions kept; rounded down to a multiple of `n_envs`, at least one row of accounts.
        n_envs: transitions added at a time.
        key_dim: length of the key.
        action_dim: length of an action.
        device: where the table lives.
        source: the environment that rebuilds observations; None when the key is the observation.
        n_steps: rewards in a return, at least 1.
        gamma: discount per step inside a return, in [0, 1]; not used when `n_steps` is 1.
        prioritized: whether to draw in proportion to priorities rather than uniformly. Costs about 8 bytes a transition.
        priority_exponent: α in [0, 1]: 0 is uniform, 1 fully proportional.
        priority_epsilon: ε, above 0: keeps transitions without error from never being drawn again.
        mask_dim: number of actions, to store which are allowed next; 0 stores none.

    Raises:
        ValueError: one of the last six is out of its range.
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
        n_steps: int = 1,
        gamma: float = 1.0,
        prioritized: bool = False,
        priority_exponent: float = 0.6,
        priority_epsilon: float = 1e-6,
        mask_dim: int = 0,
    ) -> None:
        if n_steps < 1 or mask_dim < 0:
            raise ValueError(f"n_steps must be at least 1 and mask_dim at least 0, got {n_steps} and {mask_dim}")
        if not (0.0 <= gamma <= 1.0 and 0.0 <= priority_exponent <= 1.0):
            raise ValueError(f"gamma and priority_exponent must be in [0, 1], got {gamma} and {priority_exponent}")
        if not priority_epsilon > 0.0:
            raise ValueError(f"priority_epsilon must be above 0, got {priority_epsilon}")
        self.capacity = max(capacity // n_envs, 1) * n_envs
        self.n_envs, self.key_dim, self.action_dim, self.mask_dim = n_envs, key_dim, action_dim, mask_dim
        self.source = source
        self.n_steps, self.gamma = n_steps, gamma
        self.priority_exponent, self.priority_epsilon = priority_exponent, priority_epsilon
        self.rows = torch.zeros((self.capacity, 2 * key_dim + action_dim + 2), device=device)
        self.bars = torch.zeros(self.capacity if source is not None else 0, dtype=torch.int32, device=device)
        self.next_masks = torch.zeros((self.capacity if mask_dim else 0, mask_dim), dtype=torch.bool, device=device)
        self.priorities = PriorityTree(self.capacity, device=device) if prioritized else None
        self.size = self.position = 0
        self._widths = [key_dim, key_dim, action_dim, 2]
        self._steps = torch.arange(n_steps, device=device)
        self._discounts = torch.tensor([gamma**step for step in range(n_steps + 1)], device=device)

    @classmethod
    def for_env(
        cls, env: Any, capacity: int, action_dim: int, *, device: torch.device, **settings: Any
    ) -> ReplayBuffer:
        """Return the memory that suits an environment; `settings` are the constructor's, from `n_steps` on."""
        if isinstance(env, IndexedObservations):
            n_envs: int = env.num_envs  # type: ignore[attr-defined]
            return cls(capacity, n_envs, env.account_dim, action_dim, device=device, source=env, **settings)
        (obs_dim,) = env.single_observation_space.shape
        return cls(capacity, env.num_envs, obs_dim, action_dim, device=device, **settings)

    @property
    def bytes_per_transition(self) -> float:
        """Memory of one transition, in bytes."""
        tree = 0 if self.priorities is None else self.priorities.nbytes
        return (self.rows.nbytes + self.bars.nbytes + self.next_masks.nbytes + tree) / self.capacity

    def add(
        self,
        key: Tensor,
        action: Tensor,
        reward: Tensor,
        next_key: Tensor,
        terminated: Tensor,
        bar: Tensor | None = None,
        *,
        truncated: Tensor,
        next_mask: Tensor | None = None,
    ) -> None:
        """Store one transition of every account; the first axis of each argument is `n_envs`.

        Args:
            key: what stands for the observation.
            action: what was done.
            reward: what it earned.
            next_key: what stands for the next observation, before any reset.
            terminated: bool, whether the task ended.
            bar: position of the observation in the source's table; for a market only.
            truncated: bool, whether time or data ran out. Where both are true, the task ended.
            next_mask: bool, which actions are allowed next, before any reset; only where masks are stored.

        Raises:
            ValueError: `next_mask` is missing where masks are stored, or given where they are not.
        """
        if (next_mask is not None) != bool(self.mask_dim):
            raise ValueError(
                f"next_mask must be given where masks are stored, and only there; mask_dim is {self.mask_dim}"
            )
        stop = self.position + self.n_envs
        end = terminated.to(reward.dtype) - (truncated > terminated).to(reward.dtype)
        torch.cat([key, next_key, action, reward[:, None], end[:, None]], 1, out=self.rows[self.position : stop])
        if bar is not None:
            self.bars[self.position : stop] = bar
        if next_mask is not None:
            self.next_masks[self.position : stop] = next_mask
        if self.priorities is not None:
            self.priorities.add(self.position, stop)
        self.position = stop % self.capacity
        self.size = max(self.size, stop)

    def cut(self) -> None:
        """Mark the newest transition of every account as truncated, unless its episode ended.

        To be called when the environment was reset from outside: what is added next does not follow what was added last,
        and no return may reach across. Does nothing to an empty memory.
        """
        newest = (self.position - self.n_envs) % self.capacity
        if self.size:
            ends = self.rows[newest : newest + self.n_envs, -1]
            ends.masked_fill_(ends == 0.0, -1.0)

    def sample(self, batch_size: int, generator: torch.Generator, *, beta: float = 0.4) -> Batch:
        """Draw transitions, with replacement.

        Args:
            batch_size: how many.
            generator: what draws.
            beta: how far the weights make up for draws that are not uniform: 0 not at all, 1 fully (section 3.4 of the
                paper, which lets it grow to 1 in training). The weights (size · P(i))^−β are divided by the largest in
                the batch, as common implementations do; the largest in the memory would need a second tree. Only read
                where draws are prioritised.
        """
        device = self.rows.device
        if self.priorities is None:
            index, weight = torch.randint(self.size, (batch_size,), generator=generator, device=device), None
        else:
            index, probability = self.priorities.sample(batch_size, generator)
            # The size cancels against the largest weight, which is that of the smallest probability.
            weight = (probability / probability.min()).pow_(-beta).to(self.rows.dtype)
        key, next_key, action, reward, end = self._columns(index)
        last, discount = index, None
        if self.n_steps > 1:
            last, reward, discount = self._look_ahead(index)
            _, next_key, _, _, end = self._columns(last)
        if self.source is not None:
            bar = self.bars.index_select(0, index).long()
            next_bar = (bar if last is index else self.bars.index_select(0, last).long()) + 1
            key, next_key = self.source.gather(bar, key), self.source.gather(next_bar, next_key)
        terminated = end.relu()  # A truncation is -1.
        mask = self.next_masks.index_select(0, last) if self.mask_dim else None
        drawn = None if weight is None else index
        return Batch(key, action, reward, next_key, terminated, discount, weight, drawn, mask)

    def _columns(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return [key, next key, action, reward, end] of some rows."""
        *wide, reward_and_end = self.rows.index_select(0, index).split_with_sizes(self._widths, 1)
        return *wide, *reward_and_end.unbind(1)

    def _look_ahead(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Follow each account for up to `n_steps` rows.

        Returns:
            The last row used, the discounted sum of the rewards, and gamma to the power of their number; (batch,) each.
        """
        path = (index[:, None] + self._steps * self.n_envs) % self.capacity  # (batch, n_steps)
        ahead = (self.position - 1 - index) % self.capacity // self.n_envs  # Rows up to the newest of the same account.
        rewards, ends = self.rows[:, -2].take(path), self.rows[:, -1].take(path)
        stops = (ends != 0.0) | (self._steps >= ahead.clamp_(max=self.n_steps - 1)[:, None])
        offset = stops.int().argmax(1, keepdim=True)  # The first one.
        # Not a product with 0: what stands after the end belongs to another episode, and must not matter.
        reward = (rewards * self._discounts[:-1]).masked_fill_(self._steps > offset, 0.0).sum(1)
        return path.gather(1, offset).squeeze(1), reward, self._discounts[1:].take(offset.squeeze(1))

    def update_priorities(self, index: Tensor, absolute_error: Tensor) -> None:
        """Set the priorities of transitions to (|error| + ε)^α.

        Args:
            index: `Batch.index`, before anything was added; (batch,).
            absolute_error: how far their values were from their targets, unweighted; (batch,).

        Raises:
            RuntimeError: this memory draws uniformly.
            IndexError: there is no such transition.
            ValueError: an error is negative or not finite.
        """
        if self.priorities is None:
            raise RuntimeError("this memory draws uniformly: make it with prioritized=True")
        if index.max() >= self.size:
            raise IndexError(f"index must be below {self.size}, the number of transitions, got {int(index.max())}")
        error = absolute_error.detach().to(torch.float64)
        self.priorities.update(index, (error + self.priority_epsilon) ** self.priority_exponent)

    def actions(self) -> Tensor:
        """Actions stored so far; (size, action_dim)."""
        return self.rows[: self.size, 2 * self.key_dim : -2]

    def rewards(self) -> Tensor:
        """Rewards stored so far; (size,)."""
        return self.rows[: self.size, -2]

    def state_dict(self) -> dict[str, Any]:
        """Return what is stored, without the empty part."""
        state = {
            "rows": self.rows[: self.size].clone(),
            "bars": self.bars[: self.size].clone(),
            "size": self.size,
            "position": self.position,
        }
        if self.mask_dim:
            state["next_masks"] = self.next_masks[: self.size].clone()
        if self.priorities is not None:
            state["priorities"] = self.priorities.priorities[: self.size].clone()
            state["highest_priority"] = self.priorities.highest.clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved memory.

        Raises:
            ValueError: it was saved with other dimensions, another capacity or number of accounts, with or without
                priorities or masks where this one is not, or is damaged.
        """
        if not self._fits(state):
            rows = getattr(state.get("rows"), "shape", "none")
            raise ValueError(
                f"the saved replay memory (rows: {rows}) does not fit this one ({tuple(self.rows.shape)}, {self.n_envs} "
                "accounts) or is damaged: resume with the same environment, n_envs and buffer_size, and with priorities "
                "and masks as before"
            )
        size = state["size"]
        self.rows[:size] = state["rows"].detach().to(self.rows.device)
        if self.source is not None:
            self.bars[:size] = state["bars"].to(self.bars.device)
        if self.mask_dim:
            self.next_masks[:size] = state["next_masks"].to(self.next_masks.device)
        if self.priorities is not None:
            self.priorities.load(state["priorities"], state["highest_priority"])
        self.size, self.position = size, state["position"]

    def _fits(self, state: dict[str, Any]) -> bool:
        """Whether a state, which may come from anywhere, is one that this memory could have had."""
        size, position = state.get("size"), state.get("position")
        if type(size) is not int or type(position) is not int:
            return False
        if not 0 <= size <= self.capacity or size % self.n_envs or position % self.n_envs:
            return False
        if not 0 <= position < self.capacity or (position != size and size != self.capacity):
            return False
        if ("next_masks" in state) != bool(self.mask_dim) or ("priorities" in state) != (self.priorities is not None):
            return False
        if self.mask_dim and not _is_tensor(state["next_masks"], torch.bool, (size, self.mask_dim)):
            return False
        if not self._rows_fit(state.get("rows"), size) or not self._bars_fit(state.get("bars"), size):
            return False
        return self.priorities is None or self._priorities_fit(state["priorities"], state.get("highest_priority"), size)

    def _rows_fit(self, rows: Any, size: int) -> bool:
        if not _is_tensor(rows, self.rows.dtype, (size, self.rows.shape[1])):
            return False
        end = rows[:, -1]
        return bool(torch.isfinite(rows).all()) and bool((end == end.sign()).all())

    def _bars_fit(self, bars: Any, size: int) -> bool:
        if not _is_tensor(bars, self.bars.dtype, (size if self.source is not None else 0,)):
            return False
        if self.source is None or size == 0:
            return True
        return are_bars_of(self.source, bars.to(self.bars.device))

    def _priorities_fit(self, priorities: Any, highest: Any, size: int) -> bool:
        if not _is_tensor(priorities, torch.float64, (size,)) or not _is_tensor(highest, torch.float64, ()):
            return False
        # None may be 0: ε keeps them above. The sums must stay finite whatever is added next.
        if not bool(highest >= 1.0) or not bool(torch.isfinite(highest * self.capacity)):
            return False
        return size == 0 or bool((priorities.min() > 0.0) & (priorities.max() <= highest))


def _is_tensor(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether something is a plain tensor of this kind, with all its numbers there."""
    if type(value) is not Tensor or value.layout is not torch.strided or value.device.type == "meta":
        return False
    return value.dtype == dtype and value.shape == shape


def are_bars_of(source: IndexedObservations, bars: Tensor) -> bool:
    """Whether an environment can rebuild the observations at some bars, one or more, and at the bars after them."""
    first_and_last = torch.stack([bars.min(), bars.max() + 1]).long()
    try:
        seen = source.gather(first_and_last, torch.zeros((2, source.account_dim), device=bars.device))
    except IndexError:
        return False
    return bool(torch.isfinite(seen).all())
