"""Drawing places of a table in proportion to their priorities, by a wide sum tree (Schaul et al., 2016)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


class PriorityTree:
    """Priorities of `capacity` places, which can be changed and drawn from in time that grows with log(capacity).

    The tree of "Prioritized Experience Replay" (Schaul et al., 2016, arXiv:1511.05952, appendix B.2.1), but each node has
    `fan_out` children, so that a million places are four levels and every level is one operation for a whole batch.
    Sums are float64 and are always taken anew from the children. Adding differences would be less work and would drift.

    A place begins with priority 0, which is never drawn.

    Args:
        capacity: places.
        device: where the tree lives.
        fan_out: children of a node, at least 2.
    """

    def __init__(self, capacity: int, *, device: torch.device, fan_out: int = 64) -> None:
        if capacity < 1 or fan_out < 2:
            raise ValueError(f"capacity must be at least 1 and fan_out at least 2, got {capacity} and {fan_out}")
        self.capacity, self.fan_out = capacity, fan_out
        self.levels: list[Tensor] = []
        """Sums below each node, from the places up to the root; (n_nodes, fan_out), the rest of the last node 0."""
        n_nodes = capacity
        while not self.levels or n_nodes > 1:
            n_nodes = -(-n_nodes // fan_out)
            self.levels.append(torch.zeros((n_nodes, fan_out), dtype=torch.float64, device=device))
        self.highest = torch.ones((), dtype=torch.float64, device=device)
        """The highest priority seen so far, and at least 1; a tensor, so that nothing waits for a GPU."""

    @property
    def priorities(self) -> Tensor:
        """Priority of each place, a view; (capacity,), float64."""
        return self.levels[0].view(-1)[: self.capacity]

    @property
    def nbytes(self) -> int:
        """Memory of the tree, in bytes; about eight for each place."""
        return sum(level.nbytes for level in self.levels)

    def add(self, start: int, stop: int) -> None:
        """Give the places from `start` to before `stop` the highest priority seen, so that each is drawn soon."""
        self.priorities[start:stop] = self.highest
        for children, parents in pairwise(self.levels):
            start, stop = start // self.fan_out, (stop - 1) // self.fan_out + 1
            torch.sum(children[start:stop], 1, out=parents.view(-1)[start:stop])

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Change the priorities of some places.

        Args:
            index: places; (batch,), int64. Of one that stands there several times, the highest priority counts.
            priority: their new priorities; (batch,).

        Raises:
            IndexError: there is no such place.
            ValueError: a priority is negative or not finite.
        """
        priority = priority.to(torch.float64)
        (first, last), (low, high) = torch.aminmax(index), torch.aminmax(priority)
        if first < 0 or last >= self.capacity:
            raise IndexError(f"index must be from 0 to {self.capacity - 1}, got {int(first)} to {int(last)}")
        if not (low >= 0.0 and high < torch.inf):  # Written so that NaN is refused, too.
            raise ValueError(f"priorities must be finite and not negative, got {float(low)} to {float(high)}")
        self.highest = torch.maximum(self.highest, high)
        # Writing twice to one place keeps either value on a GPU; the largest does not depend on the order.
        self.levels[0].view(-1).scatter_reduce_(0, index, priority, "amax", include_self=False)
        node = index
        for children, parents in pairwise(self.levels):
            node = node // self.fan_out
            parents.view(-1).index_copy_(0, node, children.index_select(0, node).sum(1))

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw places in proportion to their priorities, with replacement.

        The draws are stratified, as in the paper: the sum of all priorities is cut into `batch_size` equal ranges, and
        each range gives one draw. Places therefore come in rising order.

        Returns:
            Places, int64, and the probability of each in one proportional draw, float64; (batch_size,) each.

        Raises:
            ValueError: all priorities are 0.
        """
        total = self.levels[-1].sum()
        if not total > 0.0:
            raise ValueError("there is nothing to draw: all priorities are 0")
        drawn = torch.rand(batch_size, dtype=torch.float64, generator=generator, device=total.device)
        drawn += torch.arange(batch_size, device=total.device)
        place = self.find(drawn * (total / batch_size))
        return place, self.levels[0].view(-1).index_select(0, place) / total

    def find(self, mass: Tensor) -> Tensor:
        """Find the places at which the running sum of priorities first exceeds `mass`.

        Args:
            mass: from 0 to the sum of all priorities, which must be above 0; (batch,), float64. The sum itself, and what
                rounding may have put beyond it, belong to the last place with a priority above 0.

        Returns:
            Places, each with a priority above 0; (batch,), int64.
        """
        rest, zero, node = mass, torch.zeros_like(mass), torch.zeros_like(mass, dtype=torch.int64)
        for level in reversed(self.levels):
            sums = level.index_select(0, node).cumsum(1)
            # Below its sum, every node has a child at which the running sum first exceeds the rest; it cannot be 0.
            rest = torch.minimum(rest, torch.nextafter(sums[:, -1], zero))[:, None]
            child = torch.searchsorted(sums, rest, right=True)
            before = sums.gather(1, (child - 1).clamp_(min=0)).masked_fill_(child == 0, 0.0)
            rest = (rest - before).squeeze(1)
            node = node * self.fan_out + child.squeeze(1)
        return node

    def load(self, priorities: Tensor, highest: Tensor) -> None:
        """Take over the priorities of the first places, and the highest seen; the other places get 0."""
        self.highest = highest.detach().to(self.highest)
        self.levels[0].zero_()
        self.priorities[: len(priorities)] = priorities.detach().to(self.highest)
        for children, parents in pairwise(self.levels):
            parents.view(-1)[: len(children)] = children.sum(1)
