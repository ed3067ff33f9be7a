"""One observation, one action, in NumPy: what a live service asks for, at a fraction of the cost of a batch of one.

A product of a small matrix with a vector takes less time than asking torch for it. The arrays here are views of the
networks' own parameters, so that nothing has to be kept up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ml.tradingbots.components.networks import BatchedMLP, Body
from ml.tradingbots.components.normalization import CLIP, ObservationNormalizer

FloatArray32 = npt.NDArray[np.float32]
Affine = tuple[FloatArray32, FloatArray32]


@dataclass(frozen=True, slots=True)
class Perceptron:
    """A policy of plain layers: what is needed to evaluate it without torch."""

    layers: Sequence[Affine]
    """Weights (inputs, outputs) and biases of the hidden layers."""
    head: Affine
    """Of the last one, which has no activation."""
    activation: Literal["relu", "tanh"]
    """After every hidden layer."""
    answer: Literal["squash", "clip", "choose"]
    """What becomes of the head's output: tanh, clipping to [−1, 1], or the largest of each branch."""
    bound: float | None = None
    """Size to which the head's output is clipped first."""


def body_layers(body: Body) -> list[Affine]:
    """Return the hidden layers of a body as views."""
    return [linear(layer) for layer in body.layers if isinstance(layer, nn.Linear)]


def batched_layers(network: BatchedMLP, number: int) -> list[Affine]:
    """Return the layers of one network of a batch as views."""
    pairs = zip(network.weights, network.biases, strict=True)
    return [(_view(weight[number]), _view(bias[number, 0])) for weight, bias in pairs]


def linear(layer: nn.Linear, n_outputs: int | None = None) -> Affine:
    """Return a linear layer, or its first outputs only, as views."""
    return _view(layer.weight[:n_outputs]).T, _view(layer.bias[:n_outputs])


def _view(tensor: Tensor) -> FloatArray32:
    view: FloatArray32 = tensor.detach().numpy()
    return view


class SingleAction:
    """The deterministic policy of an agent for one raw observation.

    Args:
        perceptron: the policy.
        normalizer: how the agent sees observations; asked at every call.
    """

    def __init__(self, perceptron: Perceptron, normalizer: ObservationNormalizer) -> None:
        self.perceptron, self.normalizer = perceptron, normalizer
        self.activate: Callable[..., Any] = np.tanh if perceptron.activation == "tanh" else _relu

    def __call__(self, observation: FloatArray32, n_branches: int, mask: npt.NDArray[np.bool_] | None) -> Any:
        """Return the action before it is scaled to the environment's bounds, or the choices of the branches.

        Raises:
            ValueError: the observation is not finite, or the networks diverged.
        """
        if not np.isfinite(observation).all():
            raise ValueError("observation holds NaN or inf")
        perceptron, activate = self.perceptron, self.activate
        x = observation
        if self.normalizer.mode != "off":
            scale, shift = self.normalizer.affine
            x = np.minimum(np.maximum(x * scale + shift, -CLIP), CLIP)
        for weight, bias in perceptron.layers:
            x = x.dot(weight)
            x += bias
            activate(x, out=x)
        weight, bias = perceptron.head
        x = x.dot(weight)
        x += bias
        if not np.isfinite(x).all():
            raise ValueError("the action is not finite: the networks diverged")
        if perceptron.answer == "choose":
            return _best(x, n_branches, mask)
        if perceptron.bound is not None:
            x = np.minimum(np.maximum(x, -perceptron.bound), perceptron.bound)
        return np.tanh(x) if perceptron.answer == "squash" else np.minimum(np.maximum(x, -1.0), 1.0)


def _relu(x: FloatArray32, out: FloatArray32) -> FloatArray32:
    return np.maximum(x, 0.0, out=out)


def _best(values: FloatArray32, n_branches: int, mask: npt.NDArray[np.bool_] | None) -> Any:
    if mask is not None:
        values = np.where(mask, values, -np.inf).astype(np.float32)
    return values.reshape(n_branches, -1).argmax(1) if n_branches > 1 else values.argmax()
