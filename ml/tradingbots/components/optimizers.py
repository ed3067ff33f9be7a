"""Taking gradient steps: Adam and RMSprop with less ceremony, and clipping in a few calls."""

from __future__ import annotations

import copy
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class ListedOptimizer(torch.optim.Optimizer):
    """An optimiser of one group that keeps its lists of tensors instead of gathering them at every step.

    PyTorch's spend as long on gathering the parameters of a small network, and on hooks around `step`, as on the update.
    Parameters without a gradient stay as they are.
    """

    # Of the class: copies of an optimiser keep only what PyTorch knows of.
    _lists: tuple[list[Tensor], ...] | None = None
    _active: Sequence[Tensor] = ()
    _counters: Sequence[Tensor] = ()
    _source: Any = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a copy of a saved state."""
        super().load_state_dict(copy.deepcopy(state_dict))
        self._lists = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with a counter of its own for every parameter, as PyTorch's optimisers expect it."""
        state = super().state_dict()
        entries = {name: {**entry, "step": entry["step"].clone()} for name, entry in state["state"].items()}
        return {**state, "state": entries}

    @abstractmethod
    def advance(self) -> None:
        """Take a step along the gradients: `step` without the hooks."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients; `closure` is not used."""
        self.advance()

    def _is_ready(self) -> tuple[list[Tensor], bool]:
        """Return the parameters that have gradients, and whether all of them have a state."""
        parameters = [parameter for parameter in self.param_groups[0]["params"] if parameter.grad is not None]
        same = len(parameters) == len(self._active) and not any(map(operator.is_not, parameters, self._active))
        if not same or self._source is not self.state:
            self._lists = None  # Some were frozen, or somebody put another state there.
        return parameters, self._lists is not None or all(parameter in self.state for parameter in parameters)

    def _counted(self, parameters: list[Tensor], *names: str) -> tuple[list[Tensor], ...]:
        """Count a step; returns the lists of some entries of the parameters' states."""
        if self._lists is None:
            states = [self.state[parameter] for parameter in parameters]
            if len({float(state["step"]) for state in states}) == 1:
                for state in states:  # One counter for all, so that one call counts.
                    state["step"] = states[0]["step"]
            self._lists = tuple([state[name] for state in states] for name in names)
            self._counters = list({id(state["step"]): state["step"] for state in states}.values())
            self._active, self._source = parameters, self.state
        for counter in self._counters:
            counter.add_(1.0)
        return self._lists


class FusedAdam(ListedOptimizer, torch.optim.Adam):
    """`torch.optim.Adam(fused=True)`, which must be asked for on a CPU; states and results are the same, bit for bit.

    Args:
        params: parameters, one group.
        lr: step size.
        eps: ε.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, lr, eps=eps, fused=True)

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step along the gradients: `step` without the hooks."""
        parameters, is_ready = self._is_ready()
        if is_ready:
            _advance_adam(self, torch._fused_adam_, parameters, 0.0)
        else:
            _separate_counters(self)
            torch.optim.Adam.step(self)  # Makes the state.


class FusedAdamW(ListedOptimizer, torch.optim.AdamW):
    """`torch.optim.AdamW(fused=True)` in the same way.

    Args:
        params: parameters, one group.
        lr: step size.
        weight_decay: decoupled, per unit of step size.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step along the gradients: `step` without the hooks."""
        parameters, is_ready = self._is_ready()
        if is_ready:
            _advance_adam(self, torch._fused_adamw_, parameters, self.param_groups[0]["weight_decay"])
        else:
            _separate_counters(self)
            torch.optim.AdamW.step(self)  # Makes the state.


def _separate_counters(optimizer: ListedOptimizer) -> None:
    """Give every parameter a counter of its own again, as PyTorch's step counts them one by one."""
    for entry in optimizer.state.values():
        entry["step"] = entry["step"].clone()


def _advance_adam(
    optimizer: ListedOptimizer, update: Callable[..., None], parameters: list[Tensor], weight_decay: float
) -> None:
    (group,) = optimizer.param_groups
    averages, squares, steps = optimizer._counted(parameters, "exp_avg", "exp_avg_sq", "step")
    beta1, beta2 = group["betas"]
    update(
        parameters,
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        averages,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


class RMSprop(ListedOptimizer):
    """RMSprop, with ε inside the root, θ ← θ − η·g/√(v + ε), or outside, θ ← θ − η·g/(√v + ε).

    Inside is as TensorFlow has it and Mnih et al. (2016) write it; `v` then starts at 1, as in TensorFlow, so that the first
    steps are short. Outside is PyTorch's, and `v` starts at 0.

    Args:
        params: parameters, one group.
        lr: step size η.
        alpha: share of v that is kept per step.
        eps: ε.
        inside: where ε stands.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, alpha: float = 0.99, eps: float = 1e-5, *, inside: bool = True
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "inside": inside})

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step along the gradients: `step` without the hooks."""
        (group,) = self.param_groups
        alpha, epsilon = group["alpha"], group["eps"]
        parameters, is_ready = self._is_ready()
        for parameter in () if is_ready else parameters:
            if parameter not in self.state:
                square = torch.full_like(parameter, 1.0 if group["inside"] else 0.0)
                self.state[parameter] = {"step": torch.tensor(0.0), "square_avg": square}
        (squares,) = self._counted(parameters, "square_avg")
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - alpha)
        if group["inside"]:
            roots = torch._foreach_add(squares, epsilon)
            torch._foreach_sqrt_(roots)
        else:
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, epsilon)
        torch._foreach_addcdiv_(parameters, gradients, roots, -group["lr"])


def descend(
    loss: Tensor, parameters: Sequence[Tensor], optimizer: ListedOptimizer, max_grad_norm: float | None
) -> None:
    """Take one step down a loss; no gradient is spent on anything but `parameters`, which are all of the optimiser's."""
    write_gradients(loss, parameters, max_grad_norm)
    optimizer.advance()


def write_gradients(loss: Tensor, parameters: Sequence[Tensor], max_grad_norm: float | None) -> None:
    """Give `parameters`, and nothing else, their clipped gradients of a loss."""
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(loss, inputs=[parameter for parameter in parameters if parameter.requires_grad])
    clip_gradients(parameters, max_grad_norm)


def clip_gradients(parameters: Sequence[Tensor], max_norm: float | None) -> None:
    """Scale the gradients of all parameters together so that their norm is at most `max_norm`; None leaves them.

    The same as `torch.nn.utils.clip_grad_norm_`, which on a CPU loops over parameters in Python.
    """
    if max_norm is None:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    scale_down(gradients, torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))), max_norm)


def scale_down(gradients: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients of a norm to at most `max_norm`."""
    # On an accelerator to look at the norm would wait for the device.
    if norm.device.type != "cpu" or float(norm) > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
