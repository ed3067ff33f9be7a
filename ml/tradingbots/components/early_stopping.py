"""Stop training when a score has stopped improving, and go back to the weights that had the best one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Modules: TypeAlias = nn.Module | Sequence[nn.Module]


class EarlyStoppingCallback:
    """Watches one score per epoch, keeps a copy of the best weights, and says when to stop.

    The best weights are copies on the CPU: training further changes nothing about them. Buffers that are not part of a
    module's `state_dict`, and optimisers, are not kept.

    Args:
        patience: epochs in a row without improvement that end training.
        min_delta: an epoch improves where it beats the best score by more than this, in units of the score.
        mode: "min" where less is better (losses), "max" where more is.
        restore_best: whether the best weights are kept, so that they can be restored. When `update` says stop they already
            are; call `restore` where training ends otherwise.

    Raises:
        ValueError: an argument is out of range.

    >>> stopping = EarlyStoppingCallback(patience=2)
    >>> layer = nn.Linear(1, 1)
    >>> [stopping.update(score, layer) for score in (1.0, 0.5, 0.7, float("nan"))]
    [False, False, False, True]
    >>> stopping.best_score, stopping.best_epoch
    (0.5, 1)
    """

    def __init__(
        self,
        patience: int = 10,
        *,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        restore_best: bool = True,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an integer of 1 epoch or more, got {patience!r}")
        if not 0.0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be a finite number of 0 or more, got {min_delta!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' (losses) or 'max', got {mode!r}")
        self.patience, self.min_delta, self.mode, self.restore_best = patience, min_delta, mode, restore_best
        self.best_score: float | None = None
        """Score of the weights that `restore` brings back; None before any epoch had a number as its score."""
        self.best_epoch: int | None = None
        """Which update had it, counted from 0."""
        self.n_epochs = 0
        """How many updates there were."""
        self.n_waited = 0
        """Epochs since the best one."""
        self._best_weights: list[dict[str, Any]] | None = None
        self._modules: tuple[nn.Module, ...] = ()

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.n_waited >= self.patience

    def update(self, score: float, modules: Modules) -> bool:
        """Take the score that the modules have after an epoch.

        Args:
            score: of this epoch. One that is no number, or infinite, is no improvement: training that has diverged
                ends with the weights it had before.
            modules: what was trained, one module or several; the same ones in the same order at each call.

        Returns:
            Whether to stop. If so, and with `restore_best`, the modules have the best weights again; where no epoch had a
            score, they stay as they are.
        """
        self._modules = _as_tuple(modules)
        value = float(score)
        if self._improves(value):
            self.best_score, self.best_epoch, self.n_waited = value, self.n_epochs, 0
            if self.restore_best:
                self._best_weights = [_cloned(module.state_dict()) for module in self._modules]
        else:
            self.n_waited += 1
        self.n_epochs += 1
        if self.should_stop and self._best_weights is not None:
            self.restore()
        return self.should_stop

    def restore(self, modules: Modules | None = None) -> None:
        """Give the modules the best weights; harmless where they have them.

        Args:
            modules: which ones; None is those of the last `update`.

        Raises:
            RuntimeError: nothing was kept: restore_best=False, or no epoch had a number as its score.
            ValueError: no modules are known, or another number of them than was kept.
        """
        if self._best_weights is None:
            reason = "every score was NaN or infinite" if self.restore_best else "restore_best=False keeps none"
            raise RuntimeError(f"there are no best weights to restore after {self.n_epochs} epochs: {reason}")
        chosen = self._modules if modules is None else _as_tuple(modules)
        if len(chosen) != len(self._best_weights):
            raise ValueError(
                f"modules must be the {len(self._best_weights)} whose weights were kept, got {len(chosen)}. After "
                "load_state_dict say which: restore(modules)"
            )
        for module, weights in zip(chosen, self._best_weights, strict=True):
            module.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs: tensors and plain values."""
        weights = None if self._best_weights is None else [_cloned(item) for item in self._best_weights]
        counts = {"n_epochs": self.n_epochs, "n_waited": self.n_waited}
        best = {"best_score": self.best_score, "best_epoch": self.best_epoch, "best_weights": weights}
        return {"mode": self.mode, **counts, **best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; patience and min_delta may be others.

        Raises:
            ValueError: it was saved with the other mode, or is something else.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"the state of early stopping must have the entries {', '.join(self.state_dict())}")
        if state["mode"] != self.mode:
            raise ValueError(f"the run was saved with mode={state['mode']!r}, it is resumed with mode={self.mode!r}")
        self.n_epochs, self.n_waited = int(state["n_epochs"]), int(state["n_waited"])
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        weights = state["best_weights"] if self.restore_best else None
        self._best_weights = None if weights is None else [_cloned(item) for item in weights]

    def _improves(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        gain = self.best_score - score if self.mode == "min" else score - self.best_score
        return gain > self.min_delta


def _as_tuple(modules: Modules) -> tuple[nn.Module, ...]:
    found = (modules,) if isinstance(modules, nn.Module) else tuple(modules)
    for module in found:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be torch modules, got {type(module).__name__}")
    return found


def _cloned(weights: dict[str, Any]) -> dict[str, Any]:
    # A state_dict's tensors are the live parameters: without a copy "best" would follow training to the last epoch.
    with torch.no_grad():
        return {
            name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in weights.items()
        }
