"""Forecasting with convolutions: shapes in a chart, over time in its numbers or over the pixels of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.forecast_table import ForecastTable, IntArray, Windows
from ml.tradingbots.components.lstm_predictor import check_network
from ml.tradingbots.components.ohlc_images import BAR_WIDTH, LEAST_HEIGHT, ImageWindows, chart_columns
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.data.bars import Bars

# Activations of one image take a megabyte and more: this many at once where all of a table are looked at.
IMAGES_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class CNNConfig(PredictorConfig):
    """Hyperparameters of the convolutional network.

    With `input="image"` it is shown a chart of the last `window_size` bars, drawn from open, high, low, close (and volume);
    `features`, `clip`, `kernel_size` and `hidden_dim` are of no use then, and no asset is told from another.
    """

    input: Literal["series", "image"] = "series"
    """What is looked at: the features of each bar, or an image of the chart."""
    n_filters: tuple[int, ...] = (32, 32, 32)
    """Filters of each layer. Series: from the second on each layer looks at every second result of the one before. Images:
    each layer halves the rows."""
    kernel_size: int = 5
    """Bars that a filter spans; series only, filters of images are 5 rows by 3 columns."""
    hidden_dim: int = 64
    """Units between the convolutions and the answer; series only."""
    dropout: float = 0.0
    image_height: int = 64
    """Rows of an image; it has 3 columns per bar."""
    vertical_stride: int = 3
    """Rows from one place to the next that the first layer of images looks at."""
    moving_average: bool = True
    """Whether images show the mean of the last `window_size` closes as a line; the first image then needs as many bars more."""
    volume: bool = True
    """Whether images show volume in their bottom fifth; price_data needs the column then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_network(self.hidden_dim, len(self.n_filters), self.dropout)
        if min(self.n_filters) < 1 or self.kernel_size < 1:
            raise ValueError(
                f"n_filters and kernel_size must be at least 1, got {self.n_filters} and {self.kernel_size}"
            )
        if self.vertical_stride < 1:
            raise ValueError(f"vertical_stride must be at least 1, got {self.vertical_stride}")
        if self.input == "image":
            self._check_image()

    def _check_image(self) -> None:
        if self.image_height < LEAST_HEIGHT or self.rows_of_layers[-1] < 1:
            raise ValueError(
                f"image_height must be at least {LEAST_HEIGHT} and leave a row after all layers, got {self.image_height} with "
                f"{len(self.n_filters)} layers and vertical_stride={self.vertical_stride}: draw more rows or take fewer layers"
            )
        if self.features != PredictorConfig.features:
            raise ValueError(
                f"features are not looked at with input='image', got {self.features}: leave them out, or take input='series'"
            )
        if self.asset_dim:
            raise ValueError(
                f"asset_dim must be 0 with input='image', got {self.asset_dim}: an image does not say whose it is"
            )

    @property
    def rows_of_layers(self) -> tuple[int, ...]:
        """Rows of an image after each layer."""
        rows, found = self.image_height, []
        for number in range(len(self.n_filters)):
            stride = self.vertical_stride if number == 0 else 1
            rows = ((rows - 1) // stride + 1) // 2
            found.append(rows)
        return tuple(found)

    @classmethod
    def jiang_kelly_xiu(cls, window_size: Literal[5, 20, 60] = 20, **changes: Any) -> CNNConfig:
        """Return the settings of Jiang, Kelly & Xiu (2023) for images of 5, 20 or 60 bars.

        What differs: returns are forecast by our heads, where they ask whether the next is positive; the last 30% of the
        origins validate, where they draw 30% at random; filters have no gaps (dilation) and weights start as PyTorch has it.

        Args:
            window_size: bars of an image.
            **changes: single hyperparameters, in place of the paper's.

        Raises:
            ValueError: the paper has no images of this many bars.
        """
        sizes: dict[int, tuple[int, int, tuple[int, ...]]] = {
            5: (32, 1, (64, 128)),
            20: (64, 3, (64, 128, 256)),
            60: (96, 3, (64, 128, 256, 512)),
        }
        if window_size not in sizes:
            raise ValueError(f"window_size must be one of {', '.join(map(str, sizes))}, got {window_size}")
        height, stride, n_filters = sizes[window_size]
        image = {"input": "image", "image_height": height, "vertical_stride": stride, "n_filters": n_filters}
        learning = {"dropout": 0.5, "learning_rate": 1e-5, "batch_size": 128, "patience": 2, "validation_share": 0.3}
        return cls(**{"window_size": window_size, **image, **learning, "max_grad_norm": None, **changes})

    @property
    def values_per_window(self) -> int:
        """Numbers that the first layer makes of one window; the others make fewer of a shorter one."""
        rows = 1 if self.input == "series" else self.image_height
        return self.window_size * rows * max(self.n_filters)


class CNNPricePredictor(BasePredictor):
    """Convolutions over a window, and a layer that knows where in it things happened.

    `input="series"` looks at features bar by bar, `input="image"` at the chart as Jiang, Kelly & Xiu (2023) draw it, of which
    price_data must have open, high, low and close, and volume unless `volume=False`.
    """

    predictor_type: ClassVar[str] = "cnn"
    description: ClassVar[str] = "causal convolutions over the window"
    config_class: ClassVar[type[PredictorConfig]] = CNNConfig
    config: CNNConfig

    def saliency(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Return what in each window the expected return depends on: input times gradient (Shrikumar et al., 2016).

        Jiang, Kelly & Xiu use Grad-CAM. Its maps have the few rows that pooling leaves, and its weights are means over all
        places, where the last layer here weighs each place for itself; input times gradient speaks of every mark.

        Returns:
            Of the first horizon's standardised mean; series: (n_origins, n_assets, window_size, n_features), bars oldest
            first; images: (n_origins, n_assets, image_height, 3 · window_size), 0 where the image is black.
        """
        table, origins = self._ready(price_data, bars)
        windows, n_assets, device = self._windows(table), table.bars.n_assets, self.config.device
        bar = torch.from_numpy(origins).to(device).repeat_interleave(n_assets)
        asset = torch.arange(n_assets, device=device).repeat(len(origins))
        number = torch.tensor([self._number(name) for name in table.bars.assets], device=device)[asset]
        parts = []
        for rows in torch.split(torch.arange(len(bar), device=device), IMAGES_AT_ONCE):
            parts.append(self._input_times_gradient(windows(asset[rows], bar[rows]).float(), number[rows]))
        found = torch.cat(parts).cpu().numpy()
        if self.config.input == "image":
            found = found.squeeze(1)
        return found.reshape(len(origins), n_assets, *found.shape[1:])

    def render_image(self, price_data: PriceData, bar: int, *, asset: str | None = None) -> npt.NDArray[np.uint8]:
        """Return the image that is looked at when a forecast is made at a bar; nothing need be learned for it.

        Args:
            price_data: as for `fit`.
            bar: the origin, a position.
            asset: whose chart; None where there is only one.

        Returns:
            0 (black) or 255 (white); (image_height, 3 · window_size), row 0 is the top.

        Raises:
            ValueError: this predictor looks at no images, the bar has no full window, or it is not clear whose chart to draw.
        """
        if self.config.input != "image":
            raise ValueError("this predictor looks at no images: make it with input='image'")
        table = self._table(price_data)
        origins, names = table.origins([bar], labelled=False), table.bars.assets
        if (asset or names[0]) not in names or (asset is None and len(names) > 1):
            raise ValueError(f"asset must be one of {', '.join(names)}, got {asset!r}")
        places = (names.index(asset or names[0]), origins[0])
        (drawn,) = self._windows(table)(*(torch.tensor([place], device=self.config.device) for place in places))
        image: npt.NDArray[np.uint8] = 255 * drawn[0].cpu().numpy()
        return image

    # Inside.

    def _new_network(self, n_features: int, n_outputs: int) -> nn.Module:
        if self.config.input == "image":
            return ImageNetwork(self.config, n_outputs)
        return ConvolutionalNetwork(self.config, n_features, n_outputs)

    @property
    def _features_read(self) -> tuple[str, ...]:
        return () if self.config.input == "image" else super()._features_read

    @property
    def _n_features(self) -> int:
        if self.config.input == "image":
            return 4 + self.config.volume + self.config.moving_average
        return super()._n_features

    def _table(self, price_data: PriceData) -> ForecastTable:
        config = self.config
        if config.input != "image":
            return super()._table(price_data)
        bars, size = Bars.from_frame(price_data), config.window_size
        columns = chart_columns(bars, window_size=size, volume=config.volume, moving_average=config.moving_average)
        return ForecastTable.of_columns(
            bars, columns, window_size=size, horizons=config.horizons, volatility_bars=config.volatility_bars
        )

    def _learn_scales(self, table: ForecastTable, origins: IntArray) -> None:
        super()._learn_scales(table, origins)
        if self.config.input == "image":  # Each image has its own.
            self._mean_of_features, self._std_of_features = np.zeros(table.n_features), np.ones(table.n_features)

    def _windows(self, table: ForecastTable) -> Windows:
        config = self.config
        if config.input != "image":
            return super()._windows(table)
        shown = {"volume": config.volume, "moving_average": config.moving_average}
        return ImageWindows(table, height=config.image_height, device=torch.device(config.device), **shown)

    def _input_times_gradient(self, inputs: Tensor, number: Tensor) -> Tensor:
        assert self.network is not None
        inputs = inputs.requires_grad_()
        mean = self._head.mean(self.network(inputs, number))[:, 0].sum()
        (gradient,) = torch.autograd.grad(mean, inputs)
        return (inputs * gradient).detach()


class ConvolutionalNetwork(nn.Module):
    """(batch, window_size, n_features) to (batch, n_outputs); causal convolutions that halve the time axis."""

    def __init__(self, config: CNNConfig, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.layers, self.padding = nn.ModuleList(), []
        length, width = config.window_size, n_features
        for number, n_filters in enumerate(config.n_filters):
            stride = 1 if number == 0 else 2
            self.layers.append(nn.Conv1d(width, n_filters, config.kernel_size, stride=stride))
            # Before the first bar only, and so that the last result ends at the last bar.
            left = config.kernel_size - 1 - (length - 1) % stride
            self.padding.append(left)
            length, width = (length + left - config.kernel_size) // stride + 1, n_filters
        self.hidden = nn.Linear(length * width, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_dim, n_outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the outputs."""
        x = windows.transpose(1, 2)
        for layer, before in zip(self.layers, self.padding, strict=True):
            x = torch.relu(layer(pad(x, (before, 0))))
        outputs: Tensor = self.head(self.dropout(torch.relu(self.hidden(x.flatten(1)))))
        return outputs


class ImageNetwork(nn.Module):
    """(batch, 1, image_height, 3 · window_size) to (batch, n_outputs), as Jiang, Kelly & Xiu (2023) stack it.

    Blocks of a convolution over 5 rows and 3 columns, batch normalisation, leaky ReLU and the larger of every two rows; columns
    are never pooled, so that bars stay apart. What is left goes to one layer that knows every place.
    """

    def __init__(self, config: CNNConfig, n_outputs: int) -> None:
        super().__init__()
        self.blocks, width = nn.Sequential(), 1
        for number, n_filters in enumerate(config.n_filters):
            stride = config.vertical_stride if number == 0 else 1
            # Normalisation takes its own constant away.
            convolution = nn.Conv2d(width, n_filters, (5, 3), stride=(stride, 1), padding=(2, 1), bias=False)
            # The larger one first and then the leaky ReLU: it rises, so the result is the same, from half the numbers.
            block = (convolution, nn.BatchNorm2d(n_filters), nn.MaxPool2d((2, 1)), nn.LeakyReLU(0.01))
            self.blocks.append(nn.Sequential(*block))
            width = n_filters
        # Filters innermost in memory: half as fast again on a CPU.
        self.blocks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width * config.rows_of_layers[-1] * BAR_WIDTH * config.window_size, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs."""
        if self.training or torch.is_grad_enabled():
            return self._of(images)
        return torch.cat([self._of(part) for part in torch.split(images, IMAGES_AT_ONCE)])

    def _of(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.dropout(self.blocks(images.float()).flatten(1)))
        return outputs
