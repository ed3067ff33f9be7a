"""The one loop that fits predictors: shuffled batches gathered by index, one look at the device per epoch, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ml.tradingbots.components.early_stopping import EarlyStoppingCallback
from ml.tradingbots.components.forecast_heads import Head
from ml.tradingbots.components.forecast_table import Windows
from ml.tradingbots.components.optimizers import FusedAdamW, clip_gradients
from ml.tradingbots.components.predictor_config import PredictorConfig

# Numbers that one layer makes of the windows that pass a network at once on a processor. Larger tensors come fresh from the
# system at every step, and an LSTM then spends as long on faulting in their pages as on arithmetic.
VALUES_AT_ONCE = 1 << 20
LEAST_AT_ONCE = 32
# Elsewhere a call costs more than its memory.
DEVICE_AT_ONCE = 4_096


def windows_at_once(config: PredictorConfig) -> int:
    """Return how many windows a network takes at once, whatever the batch of a gradient step is; sizes alone decide it."""
    if torch.device(config.device).type != "cpu":
        return DEVICE_AT_ONCE
    return max(LEAST_AT_ONCE, VALUES_AT_ONCE // config.values_per_window)


@dataclass(frozen=True)
class Samples:
    """Pairs of asset and origin with what followed; all on one device."""

    asset: Tensor
    """int64; (n_samples,)."""
    bar: Tensor
    """int64; (n_samples,)."""
    target: Tensor
    """On the scale of 1; (n_samples, n_horizons)."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.bar)


@dataclass(frozen=True)
class EpochReport:
    """What one pass over the training windows did."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the pass, while the weights changed."""
    val_loss: float
    """Of the validation windows, after it."""
    windows_per_second: float
    """Training windows; wall time."""
    best_epoch: int
    """With the least validation loss so far."""


ReportFunction = Callable[[EpochReport], None]


class Fitting:
    """A fit under way: what it needs to go on from any epoch, and `state_dict` to save it.

    Args:
        network: maps windows (batch, window_size, n_features) and assets (batch,) to (batch, n_horizons, n_outputs).
        head: judges its outputs.
        windows: where inputs come from.
        config: of the predictor.
    """

    def __init__(self, network: nn.Module, head: Head, windows: Windows, config: PredictorConfig) -> None:
        self.network, self.head, self.windows, self.config = network, head, windows, config
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = FusedAdamW(self.parameters, config.learning_rate, config.weight_decay)
        self.stopping = EarlyStoppingCallback(config.patience)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pass_size = windows_at_once(config)
        # What normalises over a batch must see all of it.
        over_batch = any(isinstance(module, _BatchNorm) for module in network.modules())
        self.step_size = config.batch_size if over_batch else self.pass_size
        self.history: list[EpochReport] = []

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stopping.should_stop or len(self.history) >= self.config.max_epochs

    def run_epoch(self, train: Samples, validation: Samples) -> EpochReport:
        """Take one pass over the training windows and judge the network on the others."""
        began = time.perf_counter()
        train_loss = self._train(train)
        seconds = time.perf_counter() - began
        val_loss = self.loss(validation)
        self.stopping.update(val_loss, self.network)
        best = self.stopping.best_epoch
        report = EpochReport(
            len(self.history) + 1, train_loss, val_loss, len(train) / seconds, 0 if best is None else best + 1
        )
        self.history.append(report)
        return report

    def finish(self) -> None:
        """Give the network its best weights.

        Raises:
            FloatingPointError: no epoch had a finite validation loss.
        """
        if self.stopping.best_epoch is None:
            raise FloatingPointError(
                "the network diverged: no epoch had a finite validation loss. Lower learning_rate, or look for values "
                "far from all others in the features"
            )
        self.stopping.restore(self.network)
        self.network.eval()

    @torch.inference_mode()
    def loss(self, samples: Samples) -> float:
        """Mean loss of some windows."""
        self.network.eval()
        total = torch.zeros((), device=samples.target.device)
        for first in range(0, len(samples), self.pass_size):
            rows = slice(first, first + self.pass_size)
            outputs = self.network(self.windows(samples.asset[rows], samples.bar[rows]), samples.asset[rows])
            target = samples.target[rows]
            total += self.head.loss(outputs, target) * len(target)
        return float(total) / len(samples)

    def _train(self, samples: Samples) -> float:
        self.network.train()
        order = torch.randperm(len(samples), generator=self.generator).to(samples.bar.device)
        total = torch.zeros((), device=samples.bar.device)
        # Dropout draws from the global generator: fork it, so that nobody else's numbers move.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed + 1_000_003 * (len(self.history) + 1))
            for rows in torch.split(order, self.config.batch_size):
                for parameter in self.parameters:
                    parameter.grad = None
                total += self._backward(samples, rows) * len(rows)
                clip_gradients(self.parameters, self.config.max_grad_norm)
                self.optimizer.advance()
        return float(total) / len(samples)

    def _backward(self, samples: Samples, rows: Tensor) -> Tensor:
        """Add the gradients of the mean loss of some windows, one pass of them after the other; returns that loss."""
        total = torch.zeros((), device=rows.device)
        for part in torch.tensor_split(rows, math.ceil(len(rows) / self.step_size)):
            asset, target = samples.asset[part], samples.target[part]
            loss = self.head.loss(self.network(self.windows(asset, samples.bar[part]), asset), target)
            loss = loss * (len(part) / len(rows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides how the fit goes on."""
        return {
            "network": {name: value.detach().clone() for name, value in self.network.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "stopping": self.stopping.state_dict(),
            "generator": self.generator.get_state(),
            "history": [vars(report) for report in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stopping.load_state_dict(state["stopping"])
        self.generator.set_state(state["generator"])
        self.history = [EpochReport(**report) for report in state["history"]]
