"""What follows from expected returns and their quantiles, whoever says them: tables, prices, scores, files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.configured import Configured
from ml.tradingbots.components.features import FEATURES
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.predictor_config import check_device
from ml.tradingbots.components.predictor_files import KIND, read_predictor
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, save_file, shown
from ml.tradingbots.core.forecast_metrics import r2_against_naive
from ml.tradingbots.data.bars import Bars

PriceData = pd.DataFrame | Bars
# Residuals that stand for the distribution around a point forecast.
N_RESIDUAL_LEVELS = 201
_ROUNDING = 1e-9


def levels_within(predictor: Any, levels: Sequence[float]) -> tuple[float, ...]:
    """Return those of some quantile levels that a predictor can be asked for, in their order.

    Args:
        predictor: fitted or not; one without `predict_quantiles` has none, one without `quantile_range` has all.
        levels: in (0, 1).
    """
    if not hasattr(predictor, "predict_quantiles"):
        return ()
    low, high = getattr(predictor, "quantile_range", (0.0, 1.0))
    return tuple(level for level in levels if low - _ROUNDING <= level <= high + _ROUNDING)


class ReturnPredictor(ABC):
    """What follows from the expected returns and their quantiles at an origin: tables, prices and the score.

    Attributes:
        assets_: names of the assets it learned from.
    """

    predictor_type: ClassVar[str]
    """Its name in files and in `PREDICTORS`."""
    description: ClassVar[str]
    """What it is, in a line for people."""
    assets_: tuple[str, ...]
    _train_mean: FloatArray
    """Mean of the training returns; (n_horizons,)."""

    @property
    @abstractmethod
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead, increasing."""

    @abstractmethod
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return hyperparameters by name; those of members, where there are some, as name__hyperparameter."""

    @property
    def quantile_range(self) -> tuple[float, float]:
        """Least and greatest level that `predict_quantiles` can be asked for.

        A network with `head="quantile"` knows nothing beyond the outermost levels that it learns, nor does an ensemble with
        such a member. (0, 1) stands for every level between.
        """
        params = self.get_params()
        low, high = 0.0, 1.0
        for key, head in params.items():
            prefix, _, name = key.rpartition("__")
            if name == "head" and head == "quantile":
                learned = params[f"{prefix}__quantiles" if prefix else "quantiles"]
                low, high = max(low, learned[0]), min(high, learned[-1])
        return low, high

    @abstractmethod
    def _origins(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
    ) -> tuple[ForecastTable, IntArray]:
        """Return prices and targets, and those origins among the bars asked for at which it can say something."""

    @abstractmethod
    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        """Expected log returns; (n_origins, n_assets, n_horizons)."""

    @abstractmethod
    def _quantiles(self, table: ForecastTable, origins: IntArray, levels: FloatArray) -> FloatArray:
        """Quantiles of log returns; (n_origins, n_assets, n_horizons, n_levels)."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """What was learned, as a file holds it."""

    @abstractmethod
    def _from_content(self, content: dict[str, Any], path: str | Path, device: str | None) -> Self:
        """Return the predictor that a file's content describes; raises one of `DAMAGE` where anything is odd."""

    def _config_classes(self) -> tuple[type, ...]:
        """Configs that its file may hold."""
        return ()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "assets_")

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that it is a regressor whose targets follow from the prices."""
        # Slow to import, and only scikit-learn asks.
        from sklearn.utils import RegressorTags, Tags, TargetTags  # type: ignore[import-untyped]

        return Tags(estimator_type="regressor", target_tags=TargetTags(required=False), regressor_tags=RegressorTags())

    def save(self, path: str | Path) -> Path:
        """Write the predictor to a file: hyperparameters and all that was learned. The write is atomic."""
        self._require_fitted()
        return save_file(path, KIND, {"predictor_type": self.predictor_type, **self._content()})

    def load(self, path: str | Path, device: str | None = None) -> Self:
        """Become the predictor in a file written by `save`; nothing in it is run.

        Args:
            path: the file.
            device: where its networks, if it has any, are from now on; None: the device they were fitted on where it can
                be used here, else "cpu".

        Raises:
            ValueError: `device` cannot be used here.
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or another kind of predictor; this one is left as it was.
        """
        content = read_predictor(path, self._config_classes(), (self.predictor_type,))
        return self.load_content(content, path, device)

    def load_content(self, content: dict[str, Any], path: str | Path, device: str | None = None) -> Self:
        """Become the predictor that a file's content describes; errors as for `load`."""
        if device is not None:
            check_device(device)
        try:
            fresh = self._from_content(content, path, device)
        except CheckpointError:
            raise
        except DAMAGE as error:
            message = f"{path} does not fit a {self.predictor_type!r} predictor: {str(error)[:300]}"
            raise CheckpointError(message) from error
        self._become(fresh)
        return self

    def predict(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return expected log returns.

        Args:
            price_data: prices up to the last origin or further; nothing beyond an origin is read for it.
            bars: origins, increasing positions; None: every bar at which something can be said.

        Returns:
            One row per origin (its timestamp), columns (asset, horizon). Timestamps come back in UTC, naive ones are read as
            UTC; bring a table of naive ones in line with them by `.tz_localize("UTC")`.
        """
        table, origins = self._ready(price_data, bars)
        return self._frame(table, origins, self._mean(table, origins))

    def predict_quantiles(
        self,
        price_data: PriceData,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        *,
        bars: npt.ArrayLike | None = None,
    ) -> pd.DataFrame:
        """Return quantiles of log returns; columns (asset, horizon, quantile), else as `predict`.

        Raises:
            ValueError: a level is not in (0, 1), or beyond `quantile_range`.
        """
        levels = np.asarray(quantiles, dtype=np.float64)
        if levels.ndim != 1 or not len(levels) or not ((levels > 0.0) & (levels < 1.0)).all():
            raise ValueError(f"quantiles must be numbers in (0, 1), got {quantiles}")
        table, origins = self._ready(price_data, bars)
        return self._frame(table, origins, self._quantiles(table, origins, levels), quantile=levels.tolist())

    def predict_price(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return the price at each horizon that the expected log return leads to, as `predict`.

        A price forecast that looks close to the price proves nothing: "tomorrow is today" does too.
        """
        table, origins = self._ready(price_data, bars)
        return self._frame(table, origins, table.bars.close[origins][..., None] * np.exp(self._mean(table, origins)))

    def score(self, price_data: PriceData, y: None = None, *, bars: npt.ArrayLike | None = None) -> float:
        """Return R² of the expected returns against the better of zero and the mean of the training returns, pooled."""
        table, origins = self._ready(price_data, bars, labelled=True)
        predicted, found = self._mean(table, origins), table.targets[origins]
        of_horizons = [
            r2_against_naive(found[..., h].ravel(), predicted[..., h].ravel(), self._train_mean[h])
            for h in range(len(self.horizons))
        ]
        return float(np.mean(of_horizons))

    def _ready(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool = False
    ) -> tuple[ForecastTable, IntArray]:
        self._require_fitted()
        prices = Bars.from_frame(price_data)
        self._check_columns(prices)
        return self._origins(prices, bars, labelled=labelled)

    @abstractmethod
    def _check_columns(self, prices: Bars) -> None:
        """Refuse a table in which the name of a feature means something else than in training; raises ValueError."""

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise RuntimeError(
                f"this {type(self).__name__} has learned nothing yet: call fit(price_data) or load(path)"
            )

    def _become(self, other: ReturnPredictor) -> None:
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)

    def _frame(
        self, table: ForecastTable, origins: IntArray, values: FloatArray, **last_level: Sequence[Any]
    ) -> pd.DataFrame:
        levels = {"asset": table.bars.assets, "horizon": self.horizons, **last_level}
        columns = pd.MultiIndex.from_product(list(levels.values()), names=list(levels))
        return pd.DataFrame(values.reshape(len(origins), -1), index=table.bars.timestamps[origins], columns=columns)


class ConfiguredPredictor(Configured, ReturnPredictor):
    """A predictor with one config, whose fields are its hyperparameters.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    _own_columns: tuple[str, ...]
    """Features that were columns of the training table's own, not computed from prices."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead, increasing."""
        horizons: tuple[int, ...] = self.config.horizons
        return horizons

    @property
    def _features_read(self) -> tuple[str, ...]:
        """Names of the features that it is shown."""
        return getattr(self.config, "features", ())

    def _own_among(self, prices: Bars) -> tuple[str, ...]:
        """Return the features that a table has as columns of its own."""
        return tuple(name for name in self._features_read if name in prices.extra)

    def _check_columns(self, prices: Bars) -> None:
        for name in self._features_read:
            was_own, is_own = name in self._own_columns, name in prices.extra
            if (
                was_own == is_own or name.partition(":")[0] not in FEATURES
            ):  # One that is missing is refused where it is computed.
                continue
            own, built_in = f"the table's own column {name!r}", f"the built-in feature {name!r}, computed from prices"
            raise ValueError(
                f"price_data: this {type(self).__name__} was fitted with {own}, which price_data does not have, so that "
                f"{built_in}, would take its place; bring the column"
                if was_own
                else f"price_data: this {type(self).__name__} was fitted with {built_in}, and {own} would take its place; "
                "rename or drop the column"
            )

    def _check_own_columns(self, names: Any) -> tuple[str, ...]:
        """Return the names of own columns in a file, which must be some of the features; raises ValueError."""
        features = self._features_read
        if type(names) is not tuple or list(names) != [name for name in features if name in names]:
            raise ValueError(f"own_columns must be some of the features {features}, in their order, got {shown(names)}")
        return names

    def _config_classes(self) -> tuple[type, ...]:
        return (self.config_class,)
