"""What every predictor can do: fit a price table, forecast returns with their uncertainty, be judged, save and load.

A forecast is made at an origin, the close of a bar, of the log return over the next `horizon` bars. The protocol is
scikit-learn's: keyword hyperparameters, `fit`, `predict`, `score`, `get_params`, `set_params`, `clone`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from ml.tradingbots.components.forecast_heads import PointHead, make_head
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray, Windows
from ml.tradingbots.components.predictor_config import PredictorConfig, can_use, check_device
from ml.tradingbots.components.predictor_files import check_assets
from ml.tradingbots.components.predictor_fitting import EpochReport, Fitting, ReportFunction, Samples, windows_at_once
from ml.tradingbots.components.return_predictor import N_RESIDUAL_LEVELS, ConfiguredPredictor, PriceData
from ml.tradingbots.components.serialization import (
    DAMAGE,
    CheckpointError,
    check_like,
    checked_config,
    read_file,
    require_keys,
    save_file,
)


class BasePredictor(ConfiguredPredictor):
    """A network that reads windows of a price table and says how the next returns are distributed.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        history_: one row per epoch, after `fit`.
        best_epoch_: the epoch whose weights are kept, counted from 1.
        assets_: names of the assets it learned from.
    """

    predictor_type: ClassVar[str]
    config_class: ClassVar[type[PredictorConfig]]

    def __init__(self, config: PredictorConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        self.network: nn.Module | None = None

    @abstractmethod
    def _new_network(self, n_features: int, n_outputs: int) -> nn.Module:
        """Make a network from windows (batch, window_size, n_features) to (batch, n_outputs)."""

    def __sklearn_is_fitted__(self) -> bool:
        return self.network is not None

    def fit(
        self,
        price_data: PriceData,
        y: None = None,
        *,
        bars: npt.ArrayLike | None = None,
        report: ReportFunction | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Learn from a price table.

        Features are standardised by their statistics over the training windows alone. The last `validation_share` of the
        origins decides when to stop, and the weights with the least validation loss are kept. With `volatility_bars` nothing
        is learned from an asset that stood still for a whole look-back; forecasts of it are in units of its last volatility.

        Args:
            price_data: what `Bars.from_frame` accepts, one asset or many.
            y: not used; targets follow from the prices.
            bars: origins to learn from, increasing positions in `price_data`; their targets reach `max(horizons)` bars
                further. None: all.
            report: called after every epoch.
            checkpoint: a file that is written after every epoch; if it is there and belongs to this very fit, it goes on
                from where it was, to the same bits.

        Returns:
            The predictor itself.

        Raises:
            ValueError: there are too few bars, no asset moved, the device cannot be used here, or the checkpoint is of
                another fit.
            FloatingPointError: the network diverged.
        """
        check_device(self.config.device)
        table = self._table(price_data)
        origins = table.origins(bars, labelled=True)
        train_bars, validation_bars = self._divide(origins)
        self.assets_, self._own_columns = table.bars.assets, self._own_among(table.bars)
        self._learn_scales(table, train_bars)
        fitting = self._new_fitting(table)
        self.network = fitting.network
        train, validation = (self._samples(table, chosen) for chosen in (train_bars, validation_bars))
        fingerprint = self._fingerprint(table, origins) if checkpoint is not None else ""
        if checkpoint is not None and Path(checkpoint).exists():
            _resume(fitting, Path(checkpoint), fingerprint)
        while not fitting.is_over:
            found = fitting.run_epoch(train, validation)
            if checkpoint is not None:
                save_file(checkpoint, "predictor fit", {"fit": fingerprint, "state": fitting.state_dict()})
            if report is not None:
                report(found)
        fitting.finish()
        self._keep(fitting)
        self._residuals = self._residual_quantiles(table, validation)
        return self

    # Files.

    def _content(self) -> dict[str, Any]:
        assert self.network is not None
        return {
            "config": self.config,
            "assets": self.assets_,
            "own_columns": self._own_columns,
            "n_features": len(self._mean_of_features),
            "network": {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()},
            "arrays": {name: torch.from_numpy(np.array(getattr(self, name))) for name in _ARRAYS},
            "history": [vars(entry) for entry in self._reports],
            "best_epoch": self.best_epoch_,
        }

    def _from_content(self, content: dict[str, Any], path: str | Path, device: str | None) -> Self:
        entries: dict[str, type] = {"config": object, "assets": tuple, "own_columns": tuple, "n_features": int}
        require_keys(content, path, **entries, network=dict, arrays=dict)
        config = checked_config(content["config"], self.config_class, path)
        device = device or (config.device if can_use(config.device) else "cpu")
        config = dataclasses.replace(config, device=device)
        fresh = type(self)(config)
        check_assets(content["assets"])
        fresh.assets_ = content["assets"]
        fresh._own_columns = fresh._check_own_columns(content["own_columns"])
        if not 1 <= content["n_features"] == fresh._n_features:
            raise ValueError("n_features must be the number of features")
        fresh.network = fresh._network_from(content["network"], content["n_features"])
        if set(content["arrays"]) != set(_ARRAYS):
            raise ValueError(f"arrays must be {', '.join(_ARRAYS)}")
        n_horizons = len(config.horizons)
        shapes = {
            "_mean_of_features": (content["n_features"],),
            "_std_of_features": (content["n_features"],),
            "_residuals": (n_horizons, N_RESIDUAL_LEVELS),
        }
        for name, value in content["arrays"].items():
            template = torch.zeros(shapes.get(name, (n_horizons,)), dtype=torch.float64)
            check_like(value, template, name)
            setattr(fresh, name, value.numpy().copy())
        for entry in content["history"]:
            check_like(entry, vars(EpochReport(1, 0.0, 0.0, 0.0, 1)), "history")
        fresh._reports = [EpochReport(**entry) for entry in content["history"]]
        fresh.history_, fresh.best_epoch_ = _history(fresh._reports), content["best_epoch"]
        if type(fresh.best_epoch_) is not int or not 1 <= fresh.best_epoch_ <= len(fresh._reports):
            raise ValueError(f"best_epoch must be one of {len(fresh._reports)} epochs")
        return fresh

    def _network_from(self, weights: dict[str, Any], n_features: int) -> nn.Module:
        if getattr(self.config, "n_layers", 1) > len(weights):
            raise ValueError(f"n_layers={self.config.n_layers} needs more weights than the {len(weights)} in the file")
        # Without memory first: a config can claim a network of any size.
        with torch.device("meta"):
            check_like(weights, dict(self._forecast_network(n_features).state_dict()), "network")
        network = self._make_network(n_features)
        network.load_state_dict(weights)
        return network.eval()

    # Inside.

    @property
    def _head(self) -> Any:
        return make_head(self.config.head, self.config.quantiles)

    @property
    def _n_features(self) -> int:
        """Numbers of each bar that the network is shown."""
        return len(self.config.features)

    def _table(self, price_data: PriceData) -> ForecastTable:
        config = self.config
        return ForecastTable.of(
            price_data,
            features=config.features,
            window_size=config.window_size,
            horizons=config.horizons,
            volatility_bars=config.volatility_bars,
        )

    def _origins(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
    ) -> tuple[ForecastTable, IntArray]:
        table = self._table(price_data)
        if self.config.asset_dim:
            unknown = [name for name in table.bars.assets if name not in self.assets_]
            if unknown:
                raise ValueError(
                    f"the predictor has an embedding for each of {', '.join(self.assets_)}, none for {', '.join(unknown)}: "
                    "leave these out, or fit with asset_dim=0, which treats all assets alike"
                )
        return table, table.origins(bars, labelled=labelled)

    def _divide(self, origins: IntArray) -> tuple[IntArray, IntArray]:
        """Divide origins into those to learn from and the last ones, which decide when to stop."""
        n_validation = max(1, round(len(origins) * self.config.validation_share))
        validation = origins[-n_validation:]
        train = origins[origins + max(self.config.horizons) <= validation[0]]  # No target reaches in.
        if len(train) == 0:
            raise ValueError(
                f"{len(origins)} origins are too few: validation_share={self.config.validation_share} and horizons="
                f"{self.config.horizons} leave none to learn from; give more bars"
            )
        return train, validation

    def _learn_scales(self, table: ForecastTable, origins: IntArray) -> None:
        rows = table.features[table.rows_of_windows(origins)].reshape(-1, table.n_features)
        std = rows.std(0)
        self._mean_of_features, self._std_of_features = rows.mean(0), np.where(std < 1e-12, 1.0, std)
        returns = table.targets[origins]
        scaled = table.scaled_targets(origins)
        self._target_mean = np.nanmean(scaled, (0, 1))
        std = np.nanstd(scaled, (0, 1))
        self._target_std = np.where(std < 1e-12, 1.0, std)
        self._train_mean = np.nanmean(returns, (0, 1))

    def _windows(self, table: ForecastTable) -> Windows:
        config = self.config
        return Windows(
            table, self._mean_of_features, self._std_of_features, clip=config.clip, device=torch.device(config.device)
        )

    def _samples(self, table: ForecastTable, origins: IntArray) -> Samples:
        scaled = (table.scaled_targets(origins) - self._target_mean) / self._target_std
        origin, asset = np.nonzero(np.isfinite(scaled).all(-1))
        device = self.config.device
        return Samples(
            torch.from_numpy(asset).to(device),
            torch.from_numpy(origins[origin]).to(device),
            torch.from_numpy(scaled[origin, asset]).to(device, torch.float32),
        )

    def _new_fitting(self, table: ForecastTable) -> Fitting:
        return Fitting(self._make_network(table.n_features), self._head, self._windows(table), self.config)

    def _make_network(self, n_features: int) -> nn.Module:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            network = self._forecast_network(n_features)
        return network.to(config.device)

    def _forecast_network(self, n_features: int) -> ForecastNetwork:
        config = self.config
        n_outputs = len(config.horizons) * self._head.n_outputs
        body = self._new_network(n_features + config.asset_dim, n_outputs)
        return ForecastNetwork(body, len(self.assets_), config.asset_dim, len(config.horizons))

    def _keep(self, fitting: Fitting) -> None:
        self._reports = fitting.history
        self.history_ = _history(fitting.history)
        self.best_epoch_ = int(fitting.stopping.best_epoch or 0) + 1

    @torch.inference_mode()
    def _outputs(self, table: ForecastTable, origins: IntArray) -> Tensor:
        """Return what the network says; (n_origins · n_assets, n_horizons, n_outputs), assets minor."""
        assert self.network is not None
        windows, device = self._windows(table), self.config.device
        n_assets = table.bars.n_assets
        bar = torch.from_numpy(origins).to(device).repeat_interleave(n_assets)
        asset = torch.arange(n_assets, device=device).repeat(len(origins))
        number = torch.tensor([self._number(name) for name in table.bars.assets], device=device)
        parts = []
        for rows in torch.split(torch.arange(len(bar), device=device), windows_at_once(self.config)):
            parts.append(self.network(windows(asset[rows], bar[rows]), number[asset[rows]]))
        return torch.cat(parts)

    def _number(self, name: str) -> int:
        return self.assets_.index(name) if name in self.assets_ else 0

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        """Expected log returns; (n_origins, n_assets, n_horizons)."""
        outputs = self._outputs(table, origins)
        mean = self._head.mean(outputs).double().cpu().numpy() * self._target_std + self._target_mean
        result: FloatArray = mean.reshape(len(origins), table.bars.n_assets, -1) * table.scale[origins]
        return result

    def _residual_quantiles(self, table: ForecastTable, samples: Samples) -> FloatArray:
        """Quantiles of what the validation targets were beside the forecast; (n_horizons, N_RESIDUAL_LEVELS)."""
        assert self.network is not None
        windows, parts = self._windows(table), []
        with torch.inference_mode():
            for rows in torch.split(
                torch.arange(len(samples), device=samples.bar.device), windows_at_once(self.config)
            ):
                outputs = self.network(windows(samples.asset[rows], samples.bar[rows]), samples.asset[rows])
                parts.append(samples.target[rows] - self._head.mean(outputs))
        residuals = torch.cat(parts).double().cpu().numpy()
        quantiles: FloatArray = np.quantile(residuals, np.linspace(0.0, 1.0, N_RESIDUAL_LEVELS), axis=0).T
        return quantiles

    def _quantiles(self, table: ForecastTable, origins: IntArray, levels: FloatArray) -> FloatArray:
        values: FloatArray = self._head.quantiles(self._outputs(table, origins), levels)
        if isinstance(self._head, PointHead):
            grid = np.linspace(0.0, 1.0, N_RESIDUAL_LEVELS)
            spread = np.stack([np.interp(levels, grid, row) for row in self._residuals])
            values = values + spread  # (n, n_horizons, n_levels)
        values = values * self._target_std[:, None] + self._target_mean[:, None]
        shaped = values.reshape(len(origins), table.bars.n_assets, len(self.horizons), len(levels))
        result: FloatArray = shaped * table.scale[origins][..., None]
        return result

    def _fingerprint(self, table: ForecastTable, origins: IntArray) -> str:
        found = hashlib.sha256(repr((self.predictor_type, self.config, table.bars.assets)).encode())
        for array in (table.features, table.targets, origins):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


# What a fit learned beside the network.
_ARRAYS = ("_mean_of_features", "_std_of_features", "_target_mean", "_target_std", "_train_mean", "_residuals")


class ForecastNetwork(nn.Module):
    """A body behind an embedding of the asset, its outputs divided among horizons."""

    def __init__(self, body: nn.Module, n_assets: int, asset_dim: int, n_horizons: int) -> None:
        super().__init__()
        self.body, self.n_horizons = body, n_horizons
        self.embedding = nn.Embedding(n_assets, asset_dim) if asset_dim else None

    def forward(self, windows: Tensor, asset: Tensor) -> Tensor:
        """(batch, window_size, n_features) and (batch,) to (batch, n_horizons, n_outputs)."""
        if self.embedding is not None:
            known = self.embedding(asset)[:, None, :].expand(-1, windows.shape[1], -1)
            windows = torch.cat([windows, known], -1)
        outputs: Tensor = self.body(windows)
        return outputs.view(len(outputs), self.n_horizons, -1)


def _history(reports: list[EpochReport]) -> pd.DataFrame:
    return pd.DataFrame([vars(report) for report in reports]).set_index("epoch")


def _resume(fitting: Fitting, path: Path, fingerprint: str) -> None:
    content = read_file(path, "predictor fit")
    require_keys(content, path, fit=str, state=dict)
    if content["fit"] != fingerprint:
        raise ValueError(
            f"{path} belongs to a fit with other data, bars or hyperparameters: name another checkpoint, or remove the file"
        )
    try:
        fitting.load_state_dict(content["state"])
    except DAMAGE as error:
        raise CheckpointError(f"{path} does not fit: {str(error)[:300]}") from error
