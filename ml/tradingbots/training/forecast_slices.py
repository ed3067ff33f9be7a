"""One model and one horizon of a validation as arrays, for what is computed from forecasts beside their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.training.forecast_results import ForecastValidation


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastSlice:
    """What one model forecast over one horizon, at the origins whose outcome is known; folds end to end."""

    timestamps: pd.DatetimeIndex
    """Of the origins; (n_origins,)."""
    outcomes: FloatArray
    """Log returns; (n_origins, n_assets)."""
    predictions: FloatArray
    """Expected log returns; (n_origins, n_assets)."""
    quantiles: FloatArray | None
    """(n_origins, n_assets, n_levels); None where the model has none."""
    levels: FloatArray
    """Of the quantiles, increasing; (n_levels,)."""

    def hits(self) -> FloatArray:
        """Return 1 where an outcome was not above a quantile and 0 elsewhere; (n_origins, n_assets, n_levels)."""
        if self.quantiles is None:
            raise ValueError("this model has no quantiles")
        return (self.outcomes[..., None] <= self.quantiles).astype(np.float64)

    def covered(self) -> FloatArray:
        """Return 1 where an outcome lies within the outermost quantiles and 0 elsewhere; (n_origins, n_assets)."""
        if self.quantiles is None:
            raise ValueError("this model has no quantiles")
        inside = (self.quantiles[..., 0] <= self.outcomes) & (self.outcomes <= self.quantiles[..., -1])
        return inside.astype(np.float64)


def forecast_slice(validation: ForecastValidation, model: str, horizon: int) -> ForecastSlice:
    """Return the forecasts of one model over one horizon.

    Raises:
        ValueError: there are none.
    """
    check_horizon(validation, horizon)
    if model not in models_at(validation, horizon):
        raise ValueError(
            f"no model {model!r} forecast {horizon} ahead; those that did are {', '.join(models_at(validation, horizon))}"
        )
    outcomes = validation.outcomes.xs(horizon, axis=1, level="horizon").to_numpy(np.float64)
    known = np.isfinite(outcomes).all(axis=1)
    predictions = _of(validation.predictions, model, horizon).to_numpy(np.float64)
    quantiles, levels = None, np.empty(0)
    if model in validation.quantiles.columns.get_level_values(0):
        table = _of(validation.quantiles, model, horizon)
        levels = table.columns.get_level_values("quantile").unique().to_numpy(np.float64)
        quantiles = table.to_numpy(np.float64).reshape(*outcomes.shape, len(levels))[known]
    return ForecastSlice(
        timestamps=origins_of(validation)[known],
        outcomes=outcomes[known],
        predictions=predictions[known],
        quantiles=quantiles,
        levels=levels,
    )


def origins_of(validation: ForecastValidation) -> pd.DatetimeIndex:
    """Return the times of all origins, folds end to end."""
    return pd.DatetimeIndex(validation.outcomes.index.get_level_values("timestamp"))


def horizons_of(validation: ForecastValidation) -> tuple[int, ...]:
    """Return the horizons that some model forecast, increasing."""
    return tuple(sorted({int(horizon) for horizon in validation.pooled.index.get_level_values("horizon")}))


def check_horizon(validation: ForecastValidation, horizon: int | None) -> int:
    """Return the horizon, or the shortest one for None.

    Raises:
        ValueError: no model forecast it.
    """
    horizons = horizons_of(validation)
    if horizon is None:
        return horizons[0]
    if horizon not in horizons:
        raise ValueError(f"horizon must be one that was forecast, {', '.join(map(str, horizons))}, got {horizon}")
    return horizon


def all_models(validation: ForecastValidation) -> list[str]:
    """Return every model, predictors before naive ones."""
    found = dict.fromkeys(str(model) for model in validation.pooled.index.get_level_values("model"))
    return sorted(found, key=lambda model: model in validation.naive)


def models_at(validation: ForecastValidation, horizon: int) -> list[str]:
    """Return the models that forecast a horizon, predictors before naive ones."""
    return [model for model in all_models(validation) if (model, horizon) in validation.pooled.index]


def models_with_quantiles(validation: ForecastValidation, horizon: int) -> list[str]:
    """Return those of `models_at` that forecast quantiles."""
    having = set(validation.quantiles.columns.get_level_values(0))
    return [model for model in models_at(validation, horizon) if model in having]


def _of(table: pd.DataFrame, model: str, horizon: int) -> pd.DataFrame:
    """Return the columns of one model and horizon."""
    levels = table.columns.get_level_values
    return table.loc[:, (levels("model") == model) & (levels("horizon") == horizon)]
