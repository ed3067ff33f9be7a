"""Putting observations on one scale, with statistics that are saved with the agent."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Normalised observations are clipped here, in standard deviations: one bad tick must not saturate a network.
CLIP = 10.0


class RunningMeanStd:
    """Mean and variance of a stream, exact whatever the batch sizes (Chan et al., 1979); float64.

    Args:
        shape: shape of one sample.

    >>> statistics = RunningMeanStd((1,))
    >>> statistics.update(torch.tensor([[1.0], [3.0]])); statistics.update(torch.tensor([[5.0]]))
    >>> statistics.mean.item(), round(statistics.var.item(), 6), statistics.count
    (3.0, 2.666667, 3)
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.var = torch.ones(shape, dtype=torch.float64)
        self.count = 0

    @property
    def std(self) -> Tensor:
        """Standard deviation, population form (ddof=0)."""
        return self.var.sqrt()

    def update(self, batch: Tensor) -> None:
        """Take in a batch of samples; (batch, *shape)."""
        batch = batch.detach().to(torch.float64)
        n = batch.shape[0]
        if n == 0:
            return
        # Where the batch lives: its moments are less to move than the batch.
        mean, var = batch.mean(0).cpu(), batch.var(0, unbiased=False).cpu()
        total = self.count + n
        delta = mean - self.mean
        squares = (self.var * self.count if self.count else 0.0) + var * n + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.var = squares / total
        self.count = total

    def normalize(self, values: Tensor) -> Tensor:
        """Return (values − mean)/std, clipped to ±10; a constant entry is centred only."""
        return apply_normalization(values, self.mean, self.std)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved statistics.

        Raises:
            ValueError: a variance or the count is negative.
        """
        if bool((state["var"] < 0.0).any()) or not 0 <= state["count"] < 2**63:
            raise ValueError("the variances and the count of running statistics must not be negative")
        self.mean, self.var, self.count = state["mean"].clone(), state["var"].clone(), int(state["count"])


def apply_normalization(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (values − mean)/std clipped to ±`CLIP`, in the dtype of `values`; where std is 0 nothing is divided."""
    safe = torch.where(std < 1e-8, 1.0, std)
    return ((values - mean.to(values)) / safe.to(values)).clamp(-CLIP, CLIP)


Mode = Literal["off", "fixed", "running"]


class ObservationNormalizer:
    """How an agent sees observations: untouched, by fixed statistics, or by running ones.

    `fixed` is for markets, whose statistics over the training range are known exactly; `running` is for other
    environments and is updated by the training loop only, never by acting.
    """

    def __init__(self, state_dim: int, device: torch.device) -> None:
        self.mode: Mode = "off"
        self.statistics = RunningMeanStd((state_dim,))
        self.device = device
        self._refresh()

    def fix(self, mean: Tensor, std: Tensor) -> None:
        """Use these statistics from now on; (state_dim,) each."""
        self.mode = "fixed"
        self.statistics.mean, self.statistics.var = mean.to(torch.float64), std.to(torch.float64).square()
        self._refresh()

    def run(self) -> None:
        """Follow the stream of observations from now on."""
        self.mode = "running"

    def update(self, observations: Tensor) -> None:
        """Take in what was just collected, if statistics are running; (batch, state_dim)."""
        if self.mode == "running":
            self.statistics.update(observations)
            self._refresh()

    def __call__(self, observations: Tensor) -> Tensor:
        """Return what the networks see."""
        if self.mode == "off":
            return observations
        return torch.addcmul(self._shift, observations, self._scale).clamp(-CLIP, CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Return mode and statistics."""
        return {"mode": self.mode, "statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved mode and statistics.

        Raises:
            ValueError: the mode is unknown, or a variance or the count is negative.
        """
        if state["mode"] not in get_args(Mode):
            raise ValueError(f"unknown normaliser mode {state['mode']!r}")
        self.statistics.load_state_dict(state["statistics"])
        self.mode = state["mode"]
        self._refresh()

    def _refresh(self) -> None:
        """Keep (x − mean)/std as x·scale + shift: one fused operation where it is used."""
        std = self.statistics.std
        safe = torch.where(std < 1e-8, 1.0, std)
        self._scale = (1.0 / safe).float().to(self.device)
        self._shift = (-self.statistics.mean / safe).float().to(self.device)

    @property
    def affine(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scale and shift of normalisation before clipping, on a CPU; (state_dim,) each."""
        return self._scale.numpy(), self._shift.numpy()
