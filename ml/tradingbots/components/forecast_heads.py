"""Heads: what the last layer of a predictor says about the next returns, how it is judged, and its quantiles.

Outputs are of targets on the scale of 1 (divided by their volatility and standardised).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import softplus

HeadName = Literal["gaussian", "student_t", "quantile", "point"]
FloatArray = npt.NDArray[np.float64]
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# Densities stay finite whatever a network says.
_LEAST_SCALE = 1e-3
# Below 2 a Student-t distribution has no variance.
_LEAST_DEGREES = 2.1


class Head(ABC):
    """A family of distributions: `n_outputs` numbers per horizon stand for one of its members."""

    n_outputs: int

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean loss; outputs (batch, n_horizons, n_outputs), target (batch, n_horizons)."""

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Expected value; (batch, n_horizons)."""

    @abstractmethod
    def quantiles(self, outputs: Tensor, levels: FloatArray) -> FloatArray:
        """Quantiles; (batch, n_horizons, n_levels)."""


class PointHead(Head):
    """One number, the mean, by squared error; its quantiles come from residuals that the predictor kept."""

    n_outputs = 1

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return (outputs.squeeze(-1) - target).square().mean()

    def mean(self, outputs: Tensor) -> Tensor:
        """The number itself."""
        return outputs.squeeze(-1)

    def quantiles(self, outputs: Tensor, levels: FloatArray) -> FloatArray:
        """The number itself at every level; the predictor adds quantiles of its residuals."""
        return np.repeat(outputs.double().cpu().numpy(), len(levels), -1)


class GaussianHead(Head):
    """Mean and standard deviation, by likelihood."""

    n_outputs = 2

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood, nats."""
        mean, deviation = self._parameters(outputs)
        return (0.5 * ((target - mean) / deviation).square() + deviation.log() + _HALF_LOG_TWO_PI).mean()

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean."""
        return outputs[..., 0]

    def quantiles(self, outputs: Tensor, levels: FloatArray) -> FloatArray:
        """μ + σ Φ⁻¹(level)."""
        mean, deviation = (values.double().cpu().numpy()[..., None] for values in self._parameters(outputs))
        result: FloatArray = mean + deviation * stats.norm.ppf(levels)
        return result

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        # softplus(0.54) = 1: an untrained network says the deviation that standardised targets have.
        return outputs[..., 0], softplus(outputs[..., 1] + 0.5413) + _LEAST_SCALE


class StudentTHead(Head):
    """Location, scale and degrees of freedom, by likelihood: for returns with heavy tails."""

    n_outputs = 3

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood, nats."""
        location, scale, degrees = self._parameters(outputs)
        z = (target - location) / scale
        normaliser = torch.lgamma(0.5 * degrees) - torch.lgamma(0.5 * (degrees + 1.0)) + 0.5 * (degrees * math.pi).log()
        return (normaliser + scale.log() + 0.5 * (degrees + 1.0) * torch.log1p(z.square() / degrees)).mean()

    def mean(self, outputs: Tensor) -> Tensor:
        """The location."""
        return outputs[..., 0]

    def quantiles(self, outputs: Tensor, levels: FloatArray) -> FloatArray:
        """Location + scale · the standard quantile."""
        location, scale, degrees = (values.double().cpu().numpy()[..., None] for values in self._parameters(outputs))
        result: FloatArray = location + scale * stats.t.ppf(levels, degrees)
        return result

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        location, scale, degrees = outputs.unbind(-1)
        return location, softplus(scale + 0.5413) + _LEAST_SCALE, _LEAST_DEGREES + softplus(degrees + 3.0)


class QuantileHead(Head):
    """Some quantiles that never cross, by pinball loss (Koenker & Bassett, 1978).

    The first output is the middle level, the others are distances from level to level, made positive.

    Args:
        levels: increasing, in (0, 1); an odd number of them, symmetric about 0.5.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = np.asarray(levels, dtype=np.float64)
        symmetric = np.allclose(self.levels + self.levels[::-1], 1.0)
        if len(levels) % 2 == 0 or not symmetric or (np.diff(self.levels) <= 0).any() or not 0 < self.levels[0] < 1:
            raise ValueError(
                f"quantiles must be increasing in (0, 1) and symmetric about 0.5, with 0.5; got {tuple(levels)}"
            )
        self.n_outputs = len(levels)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean pinball loss over levels, doubled, so that it estimates the CRPS."""
        error = target.unsqueeze(-1) - self._values(outputs)
        levels = torch.as_tensor(self.levels, dtype=outputs.dtype, device=outputs.device)
        return 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean()

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the distribution that is linear between its levels and ends at the outermost ones."""
        values = self._values(outputs)
        levels = torch.as_tensor(self.levels, dtype=values.dtype, device=values.device)
        between = (0.5 * (values[..., 1:] + values[..., :-1]) * levels.diff()).sum(-1)
        return between + levels[0] * values[..., 0] + (1.0 - levels[-1]) * values[..., -1]

    def quantiles(self, outputs: Tensor, levels: FloatArray) -> FloatArray:
        """Linear between the levels learned.

        Raises:
            ValueError: a level lies beyond the outermost one.
        """
        if levels.min() < self.levels[0] - 1e-9 or levels.max() > self.levels[-1] + 1e-9:
            raise ValueError(
                f"quantiles must lie in [{self.levels[0]}, {self.levels[-1]}], the levels this predictor learned; got "
                f"{levels.tolist()}. Name more of them in its config."
            )
        values = self._values(outputs).double().cpu().numpy()
        place = np.interp(levels, self.levels, np.arange(len(self.levels)))
        low = np.minimum(place.astype(np.int64), len(self.levels) - 2)
        share = place - low
        result: FloatArray = values[..., low] * (1.0 - share) + values[..., low + 1] * share
        return result

    def _values(self, outputs: Tensor) -> Tensor:
        half = len(self.levels) // 2
        centre, steps = outputs[..., :1], softplus(outputs[..., 1:] - 1.0)
        above = centre + steps[..., :half].cumsum(-1)
        below = centre - steps[..., half:].cumsum(-1)
        return torch.cat([below.flip(-1), centre, above], -1)


def make_head(name: HeadName, levels: Sequence[float]) -> Head:
    """Return a head by name.

    Raises:
        ValueError: the name is unknown, or the levels are not as `QuantileHead` needs them.
    """
    if name == "quantile":
        return QuantileHead(levels)
    heads: dict[str, type[Head]] = {"gaussian": GaussianHead, "student_t": StudentTHead, "point": PointHead}
    if name not in heads:
        raise ValueError(f"head must be one of {', '.join(get_args(HeadName))}, got {name!r}")
    return heads[name]()
