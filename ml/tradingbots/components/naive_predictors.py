"""Predictors that a network must beat: zero, the drift, the last sign, and ridge regression on the same window.

They are fitted in closed form in float64, and are used like any other predictor. Same prices, same bits: what they say at a
bar does not depend on which other bars are asked for.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.predictor_files import check_assets
from ml.tradingbots.components.predictor_fitting import EpochReport, ReportFunction
from ml.tradingbots.components.return_predictor import N_RESIDUAL_LEVELS, ConfiguredPredictor, PriceData
from ml.tradingbots.components.serialization import check_like, checked_config, require_keys

# Penalties tried per training row, from none to speak of to all but zero slopes.
_PENALTIES = np.logspace(-4.0, 4.0, 33)
# Origins whose windows are laid out at once while a ridge is fitted.
_ORIGINS_AT_ONCE = 1_024


@dataclass(frozen=True, kw_only=True)
class NaiveConfig:
    """Hyperparameters of every naive predictor.

    Raises:
        TypeError: a value has another type than its field.
        ValueError: a value is out of range.
    """

    horizons: tuple[int, ...] = (1,)
    """Bars ahead, increasing: the targets are log returns over each."""
    volatility_bars: int = 0
    """Look-back of the volatility that errors are divided by, where markets are calm and wild by turns; 0 does not divide."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons must be increasing numbers of bars, at least 1, got {self.horizons}")
        if self.volatility_bars < 0 or self.volatility_bars == 1:
            raise ValueError(f"volatility_bars must be 0 or at least 2, got {self.volatility_bars}")


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(NaiveConfig):
    """Hyperparameters of the ridge regression."""

    window_size: int = 1
    """Bars in an input; 1 with the last return as the only feature is AR(1)."""
    features: tuple[str, ...] = ("log_return",)
    """What is seen of each bar: names of `list_features()` or columns of the data."""
    alpha: float | None = None
    """Penalty on the sum of squared slopes of standardised features, beside the sum of squared errors; None finds it by
    generalised cross-validation, for each horizon its own."""
    clip: float = 10.0
    """Size beyond which standardised features are cut, as networks do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {self.window_size}")
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError(f"features must name each feature once, got {self.features}")
        if self.alpha is not None and not 0.0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and at least 0, got {self.alpha}; None finds it")
        if not self.clip > 0.0:
            raise ValueError(f"clip must be above 0, got {self.clip}")


def forecast_table(params: Mapping[str, Any], price_data: PriceData) -> ForecastTable:
    """Return the table that a predictor with these hyperparameters (`get_params`) reads."""
    return ForecastTable.of(
        price_data,
        features=params.get("features", ("log_return",)),
        window_size=params.get("window_size", 1),
        horizons=params["horizons"],
        volatility_bars=params["volatility_bars"],
    )


class NaivePredictor(ConfiguredPredictor):
    """A forecast in closed form, with the distribution that its training errors had.

    Quantiles are those of the training errors around the expected return, pooled over assets; with `volatility_bars` of
    errors divided by the volatility known at their origin, times the present one. From an asset that stood still for a whole
    look-back nothing is learned; what is said of it is in units of the last volatility that it had.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    config_class: ClassVar[type[NaiveConfig]] = NaiveConfig
    _learned: ClassVar[tuple[str, ...]] = ()
    """Arrays of the class's own that make up its file."""
    _residuals: FloatArray

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

        Args:
            price_data: what `Bars.from_frame` accepts, one asset or many.
            y: not used; targets follow from the prices.
            bars: origins to learn from, increasing positions in `price_data`; None: all with a known return.
            report: called once, with the mean squared error of the fit as its loss and no validation loss (NaN).
            checkpoint: not used: there is nothing to resume.

        Returns:
            The predictor itself.
        """
        began = time.perf_counter()
        table, origins = self._origins(price_data, bars, labelled=True)
        table.check_moves(origins)
        returns = table.targets[origins]
        self.assets_, self._own_columns = table.bars.assets, self._own_among(table.bars)
        self._train_mean = returns.mean((0, 1))
        widening = self._learn(table, origins)
        errors = returns - self._mean(table, origins)
        scaled = (errors / table.scale[origins]).reshape(-1, len(self.horizons)) * widening
        known = table.moves[origins].ravel()
        self._residuals = np.quantile(scaled[known], np.linspace(0.0, 1.0, N_RESIDUAL_LEVELS), axis=0).T
        if report is not None:
            speed = len(scaled) / (time.perf_counter() - began)
            report(EpochReport(1, float(np.nanmean(errors**2)), math.nan, speed, 1))
        return self

    @abstractmethod
    def _learn(self, table: ForecastTable, origins: IntArray) -> FloatArray | float:
        """Learn from some origins; returns how much larger errors on new data will be than on these, per horizon."""

    def _origins(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
    ) -> tuple[ForecastTable, IntArray]:
        table = forecast_table(self.get_params(), price_data)
        return table, table.origins(bars, labelled=labelled)

    def _quantiles(self, table: ForecastTable, origins: IntArray, levels: FloatArray) -> FloatArray:
        grid = np.linspace(0.0, 1.0, N_RESIDUAL_LEVELS)
        spread = np.stack([np.interp(levels, grid, row) for row in self._residuals])  # (n_horizons, n_levels)
        return self._mean(table, origins)[..., None] + spread * table.scale[origins][..., None]

    def _content(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(np.array(getattr(self, name))) for name in self._shapes(self.assets_)}
        return {"config": self.config, "assets": self.assets_, "own_columns": self._own_columns, "arrays": arrays}

    def _from_content(self, content: dict[str, Any], path: str | Path, device: str | None) -> Self:
        require_keys(content, path, config=object, assets=tuple, own_columns=tuple, arrays=dict)
        fresh = type(self)(checked_config(content["config"], self.config_class, path))
        check_assets(content["assets"])
        shapes = fresh._shapes(content["assets"])
        check_like(content["arrays"], {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}, "arrays")
        for name in shapes:
            setattr(fresh, name, content["arrays"][name].numpy().copy())
        fresh.assets_ = content["assets"]
        fresh._own_columns = fresh._check_own_columns(content["own_columns"])
        return fresh

    def _shapes(self, assets: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of all arrays that were learned, given how many assets there were."""
        n_horizons = len(self.horizons)
        own = {name: self._shape(name, len(assets), n_horizons) for name in self._learned}
        return {"_train_mean": (n_horizons,), "_residuals": (n_horizons, N_RESIDUAL_LEVELS), **own}

    def _shape(self, name: str, n_assets: int, n_horizons: int) -> tuple[int, ...]:
        return (n_horizons,)


class ZeroPredictor(NaivePredictor):
    """Expects nothing: the price stays where it is (a random walk without drift)."""

    predictor_type: ClassVar[str] = "zero"
    description: ClassVar[str] = "expects no return"

    def _learn(self, table: ForecastTable, origins: IntArray) -> float:
        return 1.0

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        return np.zeros((len(origins), table.bars.n_assets, len(self.horizons)))


class DriftPredictor(NaivePredictor):
    """Expects what the training returns were on average, each asset and horizon on its own.

    Attributes:
        drift_: mean log return over each horizon; (n_assets, n_horizons).
    """

    predictor_type: ClassVar[str] = "drift"
    description: ClassVar[str] = "expects the mean training return of each asset"
    _learned: ClassVar[tuple[str, ...]] = ("drift_",)

    def _learn(self, table: ForecastTable, origins: IntArray) -> float:
        self.drift_ = table.targets[origins].mean(0)
        return 1.0

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        unknown = [name for name in table.bars.assets if name not in self.assets_]
        if unknown:
            raise ValueError(f"there is a drift for each of {', '.join(self.assets_)}, none for {', '.join(unknown)}")
        rows = [self.assets_.index(name) for name in table.bars.assets]
        return np.repeat(self.drift_[rows][None], len(origins), axis=0)

    def _shape(self, name: str, n_assets: int, n_horizons: int) -> tuple[int, ...]:
        return (n_assets, n_horizons)


class LastSignPredictor(NaivePredictor):
    """Expects the direction of the last bar to go on, by as much as returns are large on average.

    The size is the mean absolute return over the horizon in training (with `volatility_bars`, per unit of volatility), all
    assets alike. It tells what direction alone is worth; its squared error is large, because it promises a full move.

    Attributes:
        magnitude_: mean absolute log return over each horizon, divided by its scale; (n_horizons,).
    """

    predictor_type: ClassVar[str] = "last_sign"
    description: ClassVar[str] = "expects the last direction to go on"
    _learned: ClassVar[tuple[str, ...]] = ("magnitude_",)

    @property
    def _features_read(self) -> tuple[str, ...]:
        return ("log_return",)

    def _learn(self, table: ForecastTable, origins: IntArray) -> float:
        self.magnitude_ = np.nanmean(np.abs(table.scaled_targets(origins)), (0, 1))
        return 1.0

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        sign = np.sign(table.features[origins])  # (n_origins, n_assets, 1), the last log return
        result: FloatArray = sign * self.magnitude_ * table.scale[origins]
        return result


class RidgePredictor(NaivePredictor):
    """Linear regression with a penalty on the window that a network would see (Hoerl & Kennard, 1970).

    Features are standardised by their statistics over the training windows alone, the constant is free. The penalty is
    found by generalised cross-validation (Golub, Heath & Wahba, 1979), which takes errors for independent: with horizons
    above 1, whose targets overlap, it penalises less than it should.

    Attributes:
        coefficients_: slopes of standardised features, oldest bar first; (window_size, n_features, n_horizons).
        intercept_: constant, in units of the target; (n_horizons,).
        alpha_: the penalty; (n_horizons,).
    """

    predictor_type: ClassVar[str] = "ridge"
    description: ClassVar[str] = "linear regression with a penalty on the window"
    config_class: ClassVar[type[NaiveConfig]] = RidgeConfig
    config: RidgeConfig
    _learned: ClassVar[tuple[str, ...]] = ("coefficients_", "intercept_", "alpha_", "_feature_mean", "_feature_std")

    def _learn(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        rows = table.features[table.rows_of_windows(origins)].reshape(-1, table.n_features)
        std = rows.std(0)
        self._feature_mean, self._feature_std = rows.mean(0), np.where(std < 1e-12, 1.0, std)
        moments = _Moments.of(self._samples(table, origins))
        solution = _Ridge(moments)
        n_horizons = len(self.horizons)
        fixed = self.config.alpha
        self.alpha_ = solution.best_alpha() if fixed is None else np.full(n_horizons, float(fixed))
        slopes = solution.slopes(self.alpha_)  # (n_inputs, n_horizons)
        self.intercept_ = moments.target_mean - moments.input_mean @ slopes
        shape = (table.n_features, self.config.window_size, n_horizons)
        self.coefficients_ = np.ascontiguousarray(slopes.reshape(shape).transpose(1, 0, 2))
        # What an error would have been without its own row, on average over rows.
        return moments.n_rows / np.maximum(moments.n_rows - solution.degrees(self.alpha_), 1.0)

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        inputs, window_size = self._standardised(table), self.config.window_size
        result = np.tile(self.intercept_, (len(origins), table.bars.n_assets, 1))
        # Added up in one order: a matrix product's rounding would depend on how many origins are asked for.
        for lag in range(window_size):
            seen = inputs[origins - lag]  # (n_origins, n_assets, n_features)
            for number in range(table.n_features):
                result += seen[..., number, None] * self.coefficients_[window_size - 1 - lag, number]
        result *= table.scale[origins]
        return result

    def _standardised(self, table: ForecastTable) -> FloatArray:
        scaled = (table.features - self._feature_mean) / self._feature_std
        clipped: FloatArray = np.clip(scaled, -self.config.clip, self.config.clip)
        return clipped

    def _samples(self, table: ForecastTable, origins: IntArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield windows (n_rows, n_features · window_size) and scaled targets (n_rows, n_horizons), some at a time."""
        window_size = self.config.window_size
        windows = np.lib.stride_tricks.sliding_window_view(self._standardised(table), window_size, axis=0)
        for first in range(0, len(origins), _ORIGINS_AT_ONCE):
            chosen = origins[first : first + _ORIGINS_AT_ONCE]
            targets = (table.targets[chosen] / table.scale[chosen]).reshape(-1, len(self.horizons))
            known = table.moves[chosen].ravel()
            yield windows[chosen - window_size + 1].reshape(len(targets), -1)[known], targets[known]

    def _shape(self, name: str, n_assets: int, n_horizons: int) -> tuple[int, ...]:
        n_features = len(self.config.features)
        shapes = {"coefficients_": (self.config.window_size, n_features, n_horizons)}
        return shapes.get(name, (n_features,) if name.startswith("_feature") else (n_horizons,))


@dataclass(frozen=True)
class _Moments:
    """What a linear regression needs to know of its rows."""

    n_rows: int
    input_mean: FloatArray
    """(n_inputs,)."""
    target_mean: FloatArray
    """(n_horizons,)."""
    gram: FloatArray
    """Σ of products of centred inputs; (n_inputs, n_inputs)."""
    cross: FloatArray
    """Σ of products of centred inputs and targets; (n_inputs, n_horizons)."""
    target_squares: FloatArray
    """Σ of squares of centred targets; (n_horizons,)."""

    @classmethod
    def of(cls, samples: Iterator[tuple[FloatArray, FloatArray]]) -> _Moments:
        n_rows, sums = 0, [np.zeros(())] * 5
        for x, y in samples:
            n_rows += len(x)
            parts = (x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum(0))
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
        x_mean, y_mean = sums[0] / n_rows, sums[1] / n_rows
        gram = sums[2] - n_rows * np.outer(x_mean, x_mean)
        cross = sums[3] - n_rows * np.outer(x_mean, y_mean)
        return cls(n_rows, x_mean, y_mean, gram, cross, sums[4] - n_rows * y_mean**2)


class _Ridge:
    """All ridge regressions on some rows at once, by the eigenvalues of their Gram matrix."""

    def __init__(self, moments: _Moments) -> None:
        self.moments = moments
        values, self.vectors = np.linalg.eigh(moments.gram)
        # Directions in which the rows do not vary have no slope, whatever the penalty.
        varies = values > 1e-12 * max(float(values[-1]), 1e-300)
        self.values = np.where(varies, values, np.inf)
        self.share = np.where(varies, values, 0.0)
        self.projected = self.vectors.T @ moments.cross  # (n_inputs, n_horizons)

    def slopes(self, alpha: FloatArray) -> FloatArray:
        """(n_inputs, n_horizons), given one penalty per horizon."""
        result: FloatArray = self.vectors @ (self.projected / (self.values[:, None] + alpha))
        return result

    def degrees(self, alpha: FloatArray) -> FloatArray:
        """Effective number of parameters, the constant included; (n_horizons,)."""
        degrees: FloatArray = 1.0 + (self.share[:, None] / (self.values[:, None] + alpha)).sum(0)
        return degrees

    def best_alpha(self) -> FloatArray:
        """The penalty with the least generalised cross-validation error; (n_horizons,)."""
        moments = self.moments
        tried = moments.n_rows * _PENALTIES
        errors = []
        for alpha in tried:
            shrunk = self.values[:, None] + alpha
            explained = (self.projected**2 * (1.0 + alpha / shrunk) / shrunk).sum(0)
            left = moments.n_rows - self.degrees(np.full(len(moments.target_mean), alpha))
            errors.append((moments.target_squares - explained) / np.maximum(left, 1e-9) ** 2)
        best: FloatArray = tried[np.argmin(errors, axis=0)]
        return best
