"""Taking gradient steps: Adam with less ceremony, an RMSprop that PyTorch lacks, and clipping in a few calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam(fused=True)` that keeps its lists of tensors instead of gathering them at every step.

    Fused Adam must be asked for on a CPU, where the default is a Python loop over parameters. Its own `step` spends as long
    on gathering the parameters of a small network as on the update. States and results are the same, bit for bit.

    Args:
        params: parameters, one group; all of them must have gradients when `step` is called.
        lr: step size.
        eps: ε.
    """

    # Of the class: copies of an optimiser keep only what PyTorch knows of.
    _lists: tuple[list[Tensor], ...] | None = None

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, lr, eps=eps, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state."""
        super().load_state_dict(state_dict)
        self._lists = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients; `closure` is not used."""
        (group,) = self.param_groups
        parameters = group["params"]
        if self._lists is None:
            if not self.state:
                super().step()  # Makes the state.
                return
            states = [self.state[parameter] for parameter in parameters]
            self._lists = tuple([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        averages, squares, steps = self._lists
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class RMSpropInside(torch.optim.Optimizer):
    """RMSprop with ε inside the root, θ ← θ − η·g/√(v + ε), as TensorFlow has it and Mnih et al. (2016) write it.

    `v` starts at 1, as in TensorFlow, so that the first steps are short. One call per operation for all parameters.

    Args:
        params: parameters.
        lr: step size η.
        alpha: share of v that is kept per step.
        eps: ε.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, alpha: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that are there; `closure` is not used."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["square_avg"] = torch.ones_like(parameter)
            squares = [self.state[parameter]["square_avg"] for parameter in parameters]
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(parameters, gradients, roots, -group["lr"])


def descend(
    loss: Tensor, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> None:
    """Take one step down a loss; no gradient is spent on anything but `parameters`, which are all of the optimiser's."""
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(loss, inputs=parameters)
    clip_gradients(parameters, max_grad_norm)
    optimizer.step()


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], max_norm: float | None) -> None:
    """Scale the gradients of all parameters together so that their norm is at most `max_norm`; None leaves them.

    The same as `torch.nn.utils.clip_grad_norm_`, which on a CPU loops over parameters in Python.
    """
    if max_norm is None:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # On an accelerator to look at the norm would wait for the device.
    if norm.device.type != "cpu" or float(norm) > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
