"""What of an agent moves, and how fast, while it is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.optimizers import ListedOptimizer
from ml.tradingbots.components.parameter_groups import (
    EXPLORATION,
    ModuleName,
    check_modules,
    optimizers_of,
    parameter_groups,
)


@dataclass(frozen=True, kw_only=True)
class FreezingSchedule:
    """Which modules stand still until when, and how fast the others move. Applies to every optimiser of an agent."""

    freeze: tuple[ModuleName, ...] = ("encoder", "trunk")
    """Modules that stand still at first: out of encoder, trunk and heads."""
    unfreeze_at: Mapping[float, tuple[ModuleName, ...]] = field(default_factory=dict)
    """Modules that move from a share of the run's timesteps on, e.g. {0.3: ("trunk",), 0.6: ("encoder",)}."""
    layer_decay: float = 1.0
    """Factor of the step size per layer away from the head, in (0, 1] (Howard & Ruder, 2018)."""
    learning_rate_factor: float = 1.0
    """Factor of the step size of everything that moves."""
    l2_sp: float = 0.0
    """Pull towards the weights that fine-tuning began with: l2_sp·(w − w₀) is added to the gradient (Li et al., 2018)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", check_modules(self.freeze, "freeze"))
        if not isinstance(self.unfreeze_at, Mapping):
            raise TypeError(
                f"unfreeze_at must be a dictionary such as {{0.5: ('trunk',)}}, got {type(self.unfreeze_at).__name__}"
            )
        for name in ("layer_decay", "learning_rate_factor", "l2_sp"):
            _check_number(getattr(self, name), name)
        for share in self.unfreeze_at:
            _check_number(share, "a key of unfreeze_at")
        thawed = {share: check_modules(names, "unfreeze_at") for share, names in sorted(self.unfreeze_at.items())}
        object.__setattr__(self, "unfreeze_at", thawed)
        for share, names in thawed.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"unfreeze_at is by shares of the run in [0, 1], got {share}")
            if others := [name for name in names if name not in self.freeze]:
                raise ValueError(f"unfreeze_at names {others[0]!r}, which is not frozen: freeze is {self.freeze}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if not 0.0 < self.learning_rate_factor < math.inf:
            raise ValueError(
                f"learning_rate_factor must be a positive number, got {self.learning_rate_factor}; to keep modules as "
                "they are name them in freeze"
            )
        if not 0.0 <= self.l2_sp < math.inf:
            raise ValueError(f"l2_sp must be a finite number of at least 0, got {self.l2_sp}")

    def frozen(self, share: float) -> tuple[ModuleName, ...]:
        """Return the modules that stand still when a share of the run is over."""
        moving = {name for start, names in self.unfreeze_at.items() if share >= start for name in names}
        return tuple(name for name in self.freeze if name not in moving)

    def changes(self, before: float, now: float) -> bool:
        """Whether something begins to move in between two shares of the run."""
        return self.frozen(before) != self.frozen(now)

    def apply(self, agent: BaseAgent, share: float = 0.0, anchors: Mapping[str, Tensor] | None = None) -> None:
        """Set the rates of all of an agent's optimisers to what they are when a share of the run is over.

        Rates live as long as the agent's optimisers do: they are no part of its file or of a copy of it.

        Args:
            agent: it.
            share: of the run's timesteps.
            anchors: what `l2_sp` pulls towards, by name, from `anchors_of` when fine-tuning began; None pulls nothing.
        """
        frozen = self.frozen(share)
        factors: dict[Tensor, float] = {}
        pulls: dict[Tensor, Tensor] = {}
        for module, layers in parameter_groups(agent).items():
            for layer in layers:
                rate = self.learning_rate_factor * self.layer_decay**layer.depth
                factors[layer.parameter] = 0.0 if module in frozen else rate
                if anchors is not None and layer.name in anchors:
                    pulls[layer.parameter] = anchors[layer.name]
        for optimizer in optimizers_of(agent):
            assert isinstance(optimizer, ListedOptimizer)
            own = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
            optimizer.set_rates(
                {parameter: factor for parameter, factor in factors.items() if id(parameter) in own},
                l2_sp=self.l2_sp,
                anchors={parameter: value for parameter, value in pulls.items() if id(parameter) in own},
            )


def _check_number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def anchors_of(agent: BaseAgent) -> dict[str, Tensor]:
    """Copy what an agent has in its layers now, by name: what an L2-SP penalty pulls towards.

    The temperature and the standard deviations of policies, which say how widely to explore, are no part of it.
    """
    with torch.no_grad():
        return {
            layer.name: layer.parameter.detach().clone()
            for layers in parameter_groups(agent).values()
            for layer in layers
            if not layer.name.endswith(EXPLORATION)
        }
