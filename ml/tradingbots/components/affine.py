"""Affine layers for processors: large products go to oneDNN, which PyTorch leaves aside for float32.

`torch.addmm` calls MKL. On processors that MKL was not made for, oneDNN's kernels take half of its time (the figures are in
`benchmarks/README.md`). Small products stay with `torch.addmm`, whose call costs less. Which one is used depends on sizes and
never on a measurement: the same seed must lead to the same weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Multiplications from which oneDNN is faster, forward and backward taken together (128 × 128 × 128).
LARGE = 1 << 21
_AVAILABLE = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether `large_affine` takes the product of (..., rows, in) and (..., in, out), and does so faster than `torch.addmm`."""
    # A compiler, and an export, read the ordinary form; sizes may be symbols there.
    if not _AVAILABLE or torch.compiler.is_compiling():
        return False
    n_products = x.shape[-2] * weight.shape[-2] * weight.shape[-1]
    return n_products >= LARGE and x.dtype == torch.float32 and x.device.type == "cpu"


def large_affine(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Return x·W + b, or its positive part; x (rows, in), W (in, out), b (out,).

    A weight that is stored as its transpose, as in `nn.Linear`, is given as `linear.weight.T`.
    """
    if torch.is_grad_enabled():
        result: Tensor = _LargeAffine.apply(x, weight, bias, relu)  # type: ignore[no-untyped-call]
        return result
    return _product(x, weight, bias, relu=relu)


def _product(x: Tensor, y: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    # The operation is x·Wᵀ + b and takes any strides. Its own ReLU would turn NaN into 0, and hide that a network diverged.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, y.T, bias, "none", [], "")
    return result.relu_() if relu else result


class _LargeAffine(torch.autograd.Function):
    """The same with its gradients, themselves such products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y = _product(x, weight, bias, relu=relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0.0)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            _product(gradient, weight.T) if needs_x else None,
            _weight_gradient(x, gradient, weight) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
            None,
        )


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    # In the layout of the weight: the optimiser would copy another.
    return _product(x.T, gradient) if weight.is_contiguous() else _product(gradient.T, x).T
