"""Our predictors and neuralforecast's on the same windows: how each is made, what each is asked to do, and whether they agree.

Part of `forecasting.py`. Three ways to fit one network:

    ours    our loop, our network.
    stock   their own model of that kind, in their loop. The LSTM is the same network to the last number; PatchTST has our
            transformer's patches, width, depth and heads; TCN has as many multiplications as our strided convolutions.
    hosted  our network in their loop: what remains is the loop and the way windows are made.

They are run as their experts would run them: Lightning without any of its extras, a fused Adam, no validation.
"""

from __future__ import annotations

import copy
import gc
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from neuralforecast.common._base_model import BaseModel
from neuralforecast.losses.pytorch import MSE
from neuralforecast.models import LSTM, TCN, PatchTST
from neuralforecast.tsdataset import TimeSeriesDataset
from torch import Tensor, nn

from ml.tradingbots.components import CNNPricePredictor, LSTMPricePredictor, TransformerPricePredictor
from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.predictor_fitting import Fitting, Samples

Network = Literal["lstm", "transformer", "cnn"]
DataName = Literal["series", "panel"]
Who = Literal["ours", "stock", "hosted"]

WINDOW_SIZE = 60
LEARNING_RATE = 1e-3
# Steps before the clock starts: first calls allocate what later ones find.
N_WARM_UP = 3
SHAPES: dict[DataName, tuple[int, int]] = {"series": (20_000, 1), "panel": (2_500, 20)}
CLASSES: dict[Network, type[BasePredictor]] = {
    "lstm": LSTMPricePredictor,
    "transformer": TransformerPricePredictor,
    "cnn": CNNPricePredictor,
}
# The settings that give our defaults' sizes; 19 filters cost as many multiplications as our 32, which halve the time axis.
_NO_DROPOUT = {"dropout": 0.0, "fc_dropout": 0.0, "head_dropout": 0.0, "attn_dropout": 0.0}
_PATCHES = {"patch_len": 4, "stride": 4, "revin": False, "res_attention": False}
STOCK: dict[Network, tuple[type[BaseModel], dict[str, Any]]] = {
    "lstm": (LSTM, {"encoder_n_layers": 1, "encoder_hidden_size": 32, "decoder_layers": 1}),
    "transformer": (
        PatchTST,
        {"encoder_layers": 2, "n_heads": 4, "hidden_size": 32, "linear_hidden_size": 128, **_PATCHES, **_NO_DROPOUT},
    ),
    "cnn": (
        TCN,
        {
            "kernel_size": 5,
            "dilations": [1, 2, 4],
            "encoder_hidden_size": 19,
            "decoder_hidden_size": 64,
            "decoder_layers": 2,
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Something that was timed."""

    wall_seconds: float
    cpu_seconds: float
    """Of all threads; a shared machine disturbs it less."""
    n_windows: int
    """That passed the network; in fits, as it counted them itself."""
    n_steps: int = 0
    """Of the optimiser."""
    n_parameters: int = 0


class Hosted(BaseModel):  # type: ignore[misc]
    """A network of ours as one of their models."""

    def __init__(self, *, body: nn.Module, **settings: Any) -> None:
        super().__init__(**settings)
        self.body = body

    def forward(self, windows_batch: dict[str, Tensor]) -> Tensor:
        """(batch, window_size, 1) to (batch, 1, 1)."""
        outputs: Tensor = self.body(windows_batch["insample_y"])
        return outputs.unsqueeze(-1)


class _Clock(pl.Callback):
    """The time after every step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the clocks."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


class Task:
    """One price table and one network, for both libraries.

    Args:
        network: which kind.
        data: `series`, one of 20,000 bars, or `panel`, 20 of 2,500.
        batch_size: windows per gradient step.
    """

    def __init__(self, network: Network, data: DataName, batch_size: int) -> None:
        self.network, self.batch_size = network, batch_size
        self.prices = make_prices(*SHAPES[data])
        self.predictor = make_predictor(network, batch_size)
        self.table = self.predictor._table(self.prices)
        self.origins = self.table.origins(None, labelled=True)
        self.predictor.assets_ = self.table.bars.assets
        self.predictor._learn_scales(self.table, self.origins)
        self.frame = their_frame(self.table, self.predictor)
        self.dataset = TimeSeriesDataset.from_df(self.frame)[0]

    def begin(self, origins: IntArray) -> tuple[Fitting, Samples]:
        """Return a fit of ours that has not begun, and its windows."""
        return self.predictor._new_fitting(self.table), self.predictor._samples(self.table, origins)

    def fit_ours(self, n_steps: int) -> Run:
        """Fit ours on full batches, one epoch of `n_steps`."""
        n_origins = n_steps * self.batch_size // self.table.bars.n_assets
        chosen = np.sort(np.random.default_rng(0).choice(self.origins, n_origins + 1, replace=False))
        fitting, train = self.begin(chosen[:-1])
        _, validation = self.begin(chosen[-1:])
        fitting.run_epoch(_first(train, N_WARM_UP * self.batch_size), validation)
        seen, before = _counted(fitting.network), _steps(fitting.optimizer)
        collect_garbage()
        wall, cpu = time.perf_counter(), time.process_time()
        fitting.run_epoch(train, validation)
        return Run(
            wall_seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
            n_windows=sum(seen),
            n_steps=_steps(fitting.optimizer) - before,
            n_parameters=count_parameters(fitting.network),
        )

    def fit_theirs(self, who: Who, n_steps: int, *, series_per_step: int | None = None) -> Run:
        """Fit theirs as long.

        Args:
            who: `stock` or `hosted`.
            n_steps: that are timed.
            series_per_step: how many series each step draws its windows from; None: all.
        """
        clock = _Clock()
        model = self.make_theirs(who, N_WARM_UP + n_steps, series_per_step=series_per_step, callbacks=[clock])
        seen = _counted(model)
        collect_garbage()
        model.fit(self.dataset)
        return Run(
            wall_seconds=clock.wall[-1] - clock.wall[N_WARM_UP - 1],
            cpu_seconds=clock.cpu[-1] - clock.cpu[N_WARM_UP - 1],
            n_windows=sum(seen[N_WARM_UP:]),
            n_steps=len(model.train_trajectories) - N_WARM_UP,
            n_parameters=count_parameters(model),
        )

    def fit_once(self, who: Who, n_steps: int) -> Run:
        """Fit with either library."""
        return self.fit_ours(n_steps) if who == "ours" else self.fit_theirs(who, n_steps)

    def predict_theirs(self, model: BaseModel) -> FloatArray:
        """Return what a model of theirs says of all origins, standardised; (n_origins, n_assets)."""
        model.set_test_size(len(self.origins))
        said = model.predict(self.dataset, step_size=1)
        return np.asarray(said, dtype=np.float64).reshape(self.table.bars.n_assets, -1).T

    def make_theirs(
        self,
        who: Who,
        n_steps: int,
        *,
        body: Any = None,
        series_per_step: int | None = None,
        inference_batch: int = 1_024,
        callbacks: list[pl.Callback] | None = None,
    ) -> BaseModel:
        """Make an untrained model of theirs; `body` gives the network that is hosted, or its weights where it is the same."""
        settings = {
            "h": 1,
            "input_size": WINDOW_SIZE,
            "loss": MSE(),
            "valid_loss": MSE(),
            "learning_rate": LEARNING_RATE,
            "max_steps": n_steps,
            "val_check_steps": n_steps,
            "batch_size": series_per_step or self.table.bars.n_assets,
            "valid_batch_size": self.table.bars.n_assets,
            "windows_batch_size": self.batch_size,
            "inference_windows_batch_size": inference_batch,
            "start_padding_enabled": False,
            "scaler_type": "identity",
            "optimizer": torch.optim.Adam,
            "optimizer_kwargs": {"fused": True},
            "accelerator": "cpu",
            "limit_val_batches": 0,
            "barebones": True,
            "callbacks": callbacks or [],
        }
        if who == "hosted":
            network = self.predictor._new_network(1, 1) if body is None else copy.deepcopy(body)
            return Hosted(body=network, **settings)
        kind, sizes = STOCK[self.network]
        model = kind(**sizes, **settings)
        if body is not None:
            model.hist_encoder.load_state_dict(body.lstm.state_dict())
            model.mlp_decoder.layers[0].load_state_dict(body.head.state_dict())
        return model


def make_prices(n_bars: int, n_assets: int) -> pd.DataFrame:
    """Make closes of random walks; speed does not ask what is in them."""
    steps = np.random.default_rng(0).normal(0.0, 0.01, (n_bars, n_assets))
    names = [f"asset{number:02d}" for number in range(n_assets)]
    index = pd.date_range("2000-01-01", periods=n_bars, freq="h")
    return pd.DataFrame(100.0 * np.exp(steps.cumsum(0)), index=index, columns=names)


def make_predictor(network: Network, batch_size: int, **changes: Any) -> BasePredictor:
    """Make ours at its default sizes, and ask for what both can do: squared errors, no clipping, no validation to speak of."""
    return CLASSES[network](
        window_size=WINDOW_SIZE,
        head="point",
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        max_grad_norm=None,
        validation_share=1e-6,  # One bar.
        **changes,
    )


def their_frame(table: ForecastTable, predictor: BasePredictor) -> pd.DataFrame:
    """Return our standardised features as their long table, without the first bar, which has no return."""
    values = ((table.features - predictor._mean_of_features) / predictor._std_of_features)[1:, :, 0]
    bars = np.arange(1, len(table.features))
    parts = [
        pd.DataFrame({"unique_id": name, "ds": bars, "y": values[:, number].astype(np.float32)})
        for number, name in enumerate(table.bars.assets)
    ]
    return pd.concat(parts, ignore_index=True)


def count_parameters(network: nn.Module) -> int:
    """Numbers that a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def _counted(network: nn.Module) -> list[int]:
    """Return a list that is told how many windows pass the network with gradients, call by call."""
    seen: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            first = inputs[0]
            seen.append(len(first["insample_y"] if isinstance(first, dict) else first))

    network.register_forward_pre_hook(note)
    return seen


def _steps(optimizer: torch.optim.Optimizer) -> int:
    return int(max(float(entry["step"]) for entry in optimizer.state.values()))


def _first(samples: Samples, n: int) -> Samples:
    return Samples(samples.asset[:n], samples.bar[:n], samples.target[:n])


def timed(work: Callable[[], object], n_windows: int) -> Run:
    """Time a call through which some windows pass."""
    collect_garbage()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Run(wall_seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, n_windows=n_windows)


def collect_garbage() -> None:
    """Collect what is to be collected, so that no run pays for another."""
    # A full collection walks all that was ever imported, and falls to whichever of the two happens to trigger it.
    gc.collect()
    gc.freeze()


def silence() -> None:
    """Keep their announcements off the tables."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
