"""Which accounts of a batch begin a new episode, and how their values are replaced.

By index where looking at a tensor is free: only the accounts that are done cost anything. By flag on an accelerator: to
know how many accounts are done is to wait for the device, which costs more than a fresh start for all of them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Restarting(Protocol):
    """The accounts that begin anew. `fresh` values are in the order of `of`; `values` have one row per account."""

    count: int
    """Accounts to bring fresh values for."""

    def of(self, values: Tensor) -> Tensor:
        """Return the rows to bring fresh values for; (count, ...)."""
        ...

    def put(self, values: Tensor, fresh: Tensor) -> Tensor:
        """Return `values` with the accounts' rows taken from `fresh` (count, ...)."""
        ...

    def fill(self, values: Tensor, number: float) -> Tensor:
        """Return `values` with `number` in the accounts' rows."""
        ...


class RestartingByIndex:
    """The accounts that are `done` (n_envs,), by their indices; finding them waits for the device."""

    def __init__(self, done: Tensor) -> None:
        self.rows = done.nonzero().squeeze(1)
        self.count = len(self.rows)

    def of(self, values: Tensor) -> Tensor:
        """Return the rows of the accounts that are done."""
        return values.index_select(0, self.rows)

    def put(self, values: Tensor, fresh: Tensor) -> Tensor:
        """Copy `values` and write the fresh rows into it."""
        return values.index_copy(0, self.rows, fresh)

    def fill(self, values: Tensor, number: float) -> Tensor:
        """Copy `values` and write the number into its rows."""
        return values.index_fill(0, self.rows, number)


class RestartingByFlag:
    """The accounts that are `done` (n_envs,), by that flag: fresh values come for all accounts, most are dropped."""

    def __init__(self, done: Tensor) -> None:
        self.done = done
        self.count = len(done)

    def of(self, values: Tensor) -> Tensor:
        """Return all rows."""
        return values

    def put(self, values: Tensor, fresh: Tensor) -> Tensor:
        """Choose between the two, account by account."""
        return torch.where(self._beside(values), fresh, values)

    def fill(self, values: Tensor, number: float) -> Tensor:
        """Choose between the number and the value, account by account."""
        return values.masked_fill(self._beside(values), number)

    def _beside(self, values: Tensor) -> Tensor:
        return self.done if values.dim() == 1 else self.done[:, None]
