"""Taking gradient steps: Adam and RMSprop with less ceremony, and clipping in a few calls."""

from __future__ import annotations

import copy
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Pace:
    """The parameters of an optimiser that move at one rate, and what it remembers of them."""

    factor: float
    parameters: list[Tensor]
    memories: tuple[list[Tensor], ...]
    counters: list[Tensor]
    anchors: list[Tensor] | None


class ListedOptimizer(torch.optim.Optimizer):
    """An optimiser of one group that keeps its lists of tensors instead of gathering them at every step.

    PyTorch's spend as long on gathering the parameters of a small network, and on hooks around `step`, as on the update.
    Parameters without a gradient stay as they are; so do those that `set_rates` freezes, gradient or not.
    """

    # Of the class: copies of an optimiser keep only what PyTorch knows of.
    _lists: tuple[list[Tensor], ...] | None = None
    _active: Sequence[Tensor] = ()
    _counters: Sequence[Tensor] = ()
    _source: Any = None
    _factors: dict[Tensor, float] | None = None
    _anchors: dict[Tensor, Tensor] | None = None
    _l2_sp: float = 0.0
    _paces: tuple[_Pace, ...] | None = None
    frozen: tuple[Tensor, ...] = ()
    """Parameters that `set_rates` keeps where they are."""

    def set_rates(
        self,
        factors: dict[Tensor, float],
        *,
        l2_sp: float = 0.0,
        anchors: dict[Tensor, Tensor] | None = None,
    ) -> None:
        """Let parameters move at rates of their own from now on; no part of `state_dict`.

        Args:
            factors: of the step size, by parameter; 0 keeps a parameter as it is, bit for bit. Those not named have 1.
            l2_sp: pull towards `anchors`: adds l2_sp·(w − w₀) to the gradient, after any clipping, as weight decay
                would be (Li et al., 2018, "Explicit Inductive Bias for Transfer Learning").
            anchors: w₀ by parameter; those not named are not pulled.

        Raises:
            ValueError: a factor or `l2_sp` is negative or not finite, or a parameter is none of the optimiser's.
        """
        own = self.param_groups[0]["params"]
        if any(all(parameter is not mine for mine in own) for parameter in {**factors, **(anchors or {})}):
            raise ValueError(
                "factors and anchors must name parameters of this optimiser; make them from the same agent"
            )
        for name, value in [("l2_sp", l2_sp), *(("a factor", value) for value in factors.values())]:
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        pulled = anchors if l2_sp > 0.0 else None
        is_plain = not pulled and all(factors.get(parameter, 1.0) == 1.0 for parameter in own)
        self._factors = None if is_plain else dict(factors)
        self._anchors, self._l2_sp = (None, 0.0) if not pulled else (dict(pulled), l2_sp)
        self.frozen = tuple(parameter for parameter in own if factors.get(parameter, 1.0) == 0.0)
        self._lists = self._paces = None
        _separate_counters(self)

    def moving(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return those of the parameters that are not frozen."""
        if not self.frozen:
            return parameters
        frozen = set(map(id, self.frozen))
        return [parameter for parameter in parameters if id(parameter) not in frozen]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a copy of a saved state."""
        super().load_state_dict(copy.deepcopy(state_dict))
        self._lists = self._paces = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with a counter of its own for every parameter, as PyTorch's optimisers expect it."""
        state = super().state_dict()
        entries = {name: {**entry, "step": entry["step"].clone()} for name, entry in state["state"].items()}
        return {**state, "state": entries}

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step along the gradients: `step` without the hooks."""
        if self._factors is None:
            self._advance()
        else:
            self._advance_at_paces(self._factors)

    @abstractmethod
    def _advance(self) -> None:
        """Take a step, all parameters at the same rate."""

    @abstractmethod
    def _new_memory(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return what is remembered of a parameter before its first step, `step` included."""

    @abstractmethod
    def _apply(
        self, parameters: list[Tensor], gradients: list[Tensor], memories: tuple[list[Tensor], ...], rate: float
    ) -> None:
        """Move parameters along gradients; `memories` are lists of what `_memory_names` names, steps counted already."""

    _memory_names: tuple[str, ...]

    def _advance_at_paces(self, factors: dict[Tensor, float]) -> None:
        """Take a step at the rates of `set_rates`."""
        (group,) = self.param_groups
        active = [p for p in group["params"] if p.grad is not None and factors.get(p, 1.0) > 0.0]
        same = len(active) == len(self._active) and not any(map(operator.is_not, active, self._active))
        if self._paces is None or not same or self._source is not self.state:
            self._paces = self._paces_of(active, factors)
            self._active, self._source = active, self.state
        for pace in self._paces:
            for counter in pace.counters:
                counter.add_(1.0)
            gradients = [parameter.grad for parameter in pace.parameters if parameter.grad is not None]
            if pace.anchors is not None:
                away = torch._foreach_sub(pace.parameters, pace.anchors)
                gradients = list(torch._foreach_add(gradients, away, alpha=self._l2_sp))
            self._apply(pace.parameters, gradients, pace.memories, group["lr"] * pace.factor)

    def _paces_of(self, active: list[Tensor], factors: dict[Tensor, float]) -> tuple[_Pace, ...]:
        for parameter in self.param_groups[0]["params"]:
            # Of frozen ones too: a file must hold the state of all parameters, or of none.
            if parameter not in self.state:
                self.state[parameter] = self._new_memory(parameter)
        anchors = self._anchors or {}
        alike: dict[tuple[float, bool], list[Tensor]] = {}
        for parameter in active:
            alike.setdefault((factors.get(parameter, 1.0), parameter in anchors), []).append(parameter)
        paces = []
        for (factor, is_pulled), parameters in alike.items():
            states = [self.state[parameter] for parameter in parameters]
            memories = tuple([state[name] for state in states] for name in self._memory_names)
            pulls = [anchors[parameter] for parameter in parameters] if is_pulled else None
            paces.append(_Pace(factor, parameters, memories, [state["step"] for state in states], pulls))
        return tuple(paces)

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


ADAM_MEMORY = ("exp_avg", "exp_avg_sq", "step")


class FusedAdam(ListedOptimizer, torch.optim.Adam):
    """`torch.optim.Adam(fused=True)`, which must be asked for on a CPU; states and results are the same, bit for bit.

    Args:
        params: parameters, one group.
        lr: step size.
        eps: ε.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, lr, eps=eps, fused=True)

    _memory_names = ADAM_MEMORY

    def _new_memory(self, parameter: Tensor) -> dict[str, Tensor]:
        return _new_adam_memory(parameter)

    def _apply(
        self, parameters: list[Tensor], gradients: list[Tensor], memories: tuple[list[Tensor], ...], rate: float
    ) -> None:
        _apply_adam(self, torch._fused_adam_, parameters, gradients, memories, rate, 0.0)

    def _advance(self) -> None:
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

    _memory_names = ADAM_MEMORY

    def _new_memory(self, parameter: Tensor) -> dict[str, Tensor]:
        return _new_adam_memory(parameter)

    def _apply(
        self, parameters: list[Tensor], gradients: list[Tensor], memories: tuple[list[Tensor], ...], rate: float
    ) -> None:
        decay = self.param_groups[0]["weight_decay"]
        _apply_adam(self, torch._fused_adamw_, parameters, gradients, memories, rate, decay)

    def _advance(self) -> None:
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
    memories = optimizer._counted(parameters, *ADAM_MEMORY)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    _apply_adam(optimizer, update, parameters, gradients, memories, optimizer.param_groups[0]["lr"], weight_decay)


def _apply_adam(
    optimizer: ListedOptimizer,
    update: Callable[..., None],
    parameters: list[Tensor],
    gradients: list[Tensor],
    memories: tuple[list[Tensor], ...],
    rate: float,
    weight_decay: float,
) -> None:
    (group,) = optimizer.param_groups
    averages, squares, steps = memories
    beta1, beta2 = group["betas"]
    update(
        parameters,
        gradients,
        averages,
        squares,
        [],
        steps,
        lr=rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def _new_adam_memory(parameter: Tensor) -> dict[str, Tensor]:
    """What PyTorch's fused Adam begins with."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


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

    _memory_names = ("square_avg",)

    def _new_memory(self, parameter: Tensor) -> dict[str, Tensor]:
        square = torch.full_like(parameter, 1.0 if self.param_groups[0]["inside"] else 0.0)
        return {"step": torch.tensor(0.0), "square_avg": square.detach()}

    def _advance(self) -> None:
        parameters, is_ready = self._is_ready()
        for parameter in () if is_ready else parameters:
            if parameter not in self.state:
                self.state[parameter] = self._new_memory(parameter)
        memories = self._counted(parameters, "square_avg")
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._apply(parameters, gradients, memories, self.param_groups[0]["lr"])

    def _apply(
        self, parameters: list[Tensor], gradients: list[Tensor], memories: tuple[list[Tensor], ...], rate: float
    ) -> None:
        (group,), (squares,) = self.param_groups, memories
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - group["alpha"])
        if group["inside"]:
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
        else:
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, gradients, roots, -rate)


def descend(
    loss: Tensor, parameters: Sequence[Tensor], optimizer: ListedOptimizer, max_grad_norm: float | None
) -> None:
    """Take one step down a loss; no gradient is spent on anything but `parameters`, which are all of the optimiser's."""
    write_gradients(loss, optimizer.moving(parameters), max_grad_norm)
    optimizer.advance()


def write_gradients(loss: Tensor, parameters: Sequence[Tensor], max_grad_norm: float | None) -> None:
    """Give `parameters`, and nothing else, their clipped gradients of a loss."""
    for parameter in parameters:
        parameter.grad = None
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not wanted:  # All are frozen.
        return
    torch.autograd.backward(loss, inputs=wanted)
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
