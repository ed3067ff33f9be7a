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
import torch
from torch import Tensor, nn

from ml.tradingbots.components.distributions import LOG_STD_MAX, LOG_STD_MIN
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
    n_outputs: int | None = None
    """How many of the head's outputs are the answer; the others are log standard deviations. None: all."""
    noise: Literal["before", "after", "clocks", "greedy"] | None = None
    """How actions are drawn: Gaussian noise before the answer or after it, choices in proportion to exp(output), or the best
    choice but for a share of random ones. None: not here."""
    log_std: FloatArray32 | None = None
    """Log standard deviation of the noise before; None: the head's other outputs."""


def body_layers(body: Body) -> list[Affine]:
    """Return the hidden layers of a body as views."""
    return [linear(layer) for layer in body.layers if isinstance(layer, nn.Linear)]


def batched_layers(network: BatchedMLP, number: int) -> list[Affine]:
    """Return the layers of one network of a batch as views."""
    pairs = zip(network.weights, network.biases, strict=True)
    return [(view(weight[number]), view(bias[number, 0])) for weight, bias in pairs]


def linear(layer: nn.Linear, n_outputs: int | None = None) -> Affine:
    """Return a linear layer, or its first outputs only, as views."""
    return view(layer.weight[:n_outputs]).T, view(layer.bias[:n_outputs])


def view(tensor: Tensor) -> FloatArray32:
    """Return a tensor's own numbers as an array."""
    numbers: FloatArray32 = tensor.detach().numpy()
    return numbers


class SingleAction:
    """The policy of an agent for one raw observation.

    Args:
        perceptron: the policy.
        normalizer: how the agent sees observations; asked at every call.
        probe: a parameter of the policy; where it has been given other memory, the views are of the past.
    """

    def __init__(self, perceptron: Perceptron, normalizer: ObservationNormalizer, probe: Tensor) -> None:
        self.perceptron, self.normalizer = perceptron, normalizer
        self.activate: Callable[..., Any] = np.tanh if perceptron.activation == "tanh" else _relu
        self._probe, self._address = probe, probe.data_ptr()

    @property
    def is_stale(self) -> bool:
        """Whether the parameters have moved."""
        return self._probe.data_ptr() != self._address

    def __call__(
        self,
        observation: FloatArray32,
        n_branches: int,
        mask: npt.NDArray[np.bool_] | None,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
    ) -> Any:
        """Return the action before it is scaled to the environment's bounds, or the choices of the branches.

        Args:
            observation: raw; (state_dim,).
            n_branches: choices made at once.
            mask: which are legal; (action_dim,).
            generator: of the draws; None takes the policy's centre or best choice.
            scale: of the noise after the answer, or the share of random choices.

        Raises:
            ValueError: the observation is not finite, or the networks diverged.
        """
        output = self._output(observation)
        kind = self.perceptron.noise if generator is not None else None
        if self.perceptron.answer == "choose":
            if kind == "clocks":
                output = output - _clocks(len(output), generator)
            elif kind == "greedy":
                first, *scores = torch.rand(1 + len(output), generator=generator).tolist()
                if first < scale:
                    output = np.array(scores, dtype=np.float32)
            return _best(output, n_branches, mask)
        action = self._answer(output, generator if kind == "before" else None)
        if kind == "after":
            action = _cut(action + np.float32(scale) * _normals(len(action), generator), 1.0)
        return action

    def _output(self, observation: FloatArray32) -> FloatArray32:
        """Return what the last layer says."""
        if not np.isfinite(observation).all():
            raise ValueError("observation holds NaN or inf")
        perceptron, activate = self.perceptron, self.activate
        x = observation
        if self.normalizer.mode != "off":
            scale, shift = self.normalizer.affine
            x = _cut(x * scale + shift, CLIP)
        for weight, bias in perceptron.layers:
            x = x.dot(weight)
            x += bias
            activate(x, out=x)
        weight, bias = perceptron.head
        x = x.dot(weight)
        x += bias
        if not np.isfinite(x).all():
            raise ValueError("the action is not finite: the networks diverged")
        output: FloatArray32 = x
        return output

    def _answer(self, output: FloatArray32, generator: torch.Generator | None) -> FloatArray32:
        """Turn the output into numbers in [−1, 1], with noise where there is a generator."""
        perceptron = self.perceptron
        mean: Any = output[: perceptron.n_outputs]
        if perceptron.bound is not None:
            mean = _cut(mean, perceptron.bound)
        if generator is not None:
            log_std: Any = perceptron.log_std
            if log_std is None:
                log_std = np.minimum(np.maximum(output[perceptron.n_outputs :], LOG_STD_MIN), LOG_STD_MAX)
            mean = mean + np.exp(log_std) * _normals(len(mean), generator)
        answer: FloatArray32 = np.tanh(mean) if perceptron.answer == "squash" else _cut(mean, 1.0)
        return answer


def _cut(x: FloatArray32, size: float) -> FloatArray32:
    cut: FloatArray32 = np.minimum(np.maximum(x, -size), size)
    return cut


def _normals(n: int, generator: torch.Generator | None) -> FloatArray32:
    drawn: FloatArray32 = torch.randn(n, generator=generator).numpy()
    return drawn


def _clocks(n: int, generator: torch.Generator | None) -> FloatArray32:
    """Logarithms of exponential draws; see `distributions.draw_choices`."""
    drawn: FloatArray32 = torch.empty(n).exponential_(generator=generator).clamp_min_(1e-30).log_().numpy()
    return drawn


def _relu(x: FloatArray32, out: FloatArray32) -> FloatArray32:
    return np.maximum(x, 0.0, out=out)


def _best(values: FloatArray32, n_branches: int, mask: npt.NDArray[np.bool_] | None) -> Any:
    if mask is not None:
        values = np.where(mask, values, -np.inf).astype(np.float32)
    return values.reshape(n_branches, -1).argmax(1) if n_branches > 1 else values.argmax()
