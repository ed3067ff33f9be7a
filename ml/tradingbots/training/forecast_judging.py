"""From what models forecast in every fold to the tables of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, IntArray, forward_returns
from ml.tradingbots.core.bootstrap import automatic_block_length, block_bootstrap_interval
from ml.tradingbots.core.sizing import sized_strategy_returns
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.training.forecast_results import SCORES, ForecastValidation
from ml.tradingbots.training.forecast_scores import LEVELS, Batch, ForecastSample, joined


@dataclass(frozen=True)
class Forecast:
    """What one model said in one fold."""

    origins: IntArray
    mean: FloatArray
    """(n_origins, n_assets, n_horizons)."""
    quantiles: FloatArray | None
    """(n_origins, n_assets, n_horizons, n_levels)."""

    def at(self, origins: IntArray) -> Forecast:
        """Return the same for some of the origins."""
        rows = np.searchsorted(self.origins, origins)
        return Forecast(origins, self.mean[rows], None if self.quantiles is None else self.quantiles[rows])


@dataclass(frozen=True)
class Judge:
    """Everything that was forecast, and how it is to be scored."""

    bars: Bars
    folds: list[tuple[IntArray, IntArray]]
    forecasts: list[dict[str, Forecast]]
    horizons: dict[str, tuple[int, ...]]
    cost_rate: float
    confidence: float
    n_bootstrap: int
    seed: int

    def verdict(self, naive: tuple[str, ...]) -> ForecastValidation:
        """Score everything."""
        per_fold, pooled, intervals, earned = {}, {}, {}, {}
        for name, horizons in self.horizons.items():
            for place, horizon in enumerate(horizons):
                found = {number: self._sample(number, name, place, horizon) for number in range(len(self.folds))}
                samples = {number: sample for number, sample in found.items() if sample is not None}
                for number, sample in samples.items():
                    per_fold[name, horizon, number] = {"n_origins": len(sample.y), **sample.scores()}
                whole = joined(list(samples.values()), name, horizon)
                earned[name, horizon] = pd.concat(
                    {number: pd.Series(sample.net_returns, sample.timestamps) for number, sample in samples.items()}
                )
                pooled[name, horizon] = {"n_origins": len(whole.y), **whole.scores()}
                for score, interval in self._intervals(whole, horizon, pooled[name, horizon]).items():
                    intervals[name, horizon, score] = interval
        index = self._index()
        return ForecastValidation(
            per_fold=_table(per_fold, "model", "horizon", "fold"),
            pooled=_table(pooled, "model", "horizon"),
            intervals=_table(intervals, "model", "horizon", "score"),
            predictions=self._predictions(index),
            quantiles=self._quantiles(index),
            outcomes=self._outcomes(index),
            strategy_returns=pd.DataFrame(earned).rename_axis(columns=["model", "horizon"]).reindex(index),
            folds=self._fold_table(),
            confidence=self.confidence,
            naive=naive,
        )

    def _sample(self, fold: int, name: str, place: int, horizon: int) -> ForecastSample | None:
        """Return a fold's forecasts whose outcome is known; None where no outcome is."""
        forecast, (train, _) = self.forecasts[fold][name], self.folds[fold]
        outcomes = forward_returns(self.bars, (horizon, 1))
        known = np.isfinite(outcomes[forecast.origins, :, 0]).all(1)
        origins = forecast.origins[known]
        if not len(origins):
            return None
        prediction, y = forecast.mean[known, :, place], outcomes[origins, :, 0]
        return ForecastSample(
            timestamps=self.bars.timestamps[origins],
            y=y,
            prediction=prediction,
            train_mean=np.full_like(y, np.nanmean(outcomes[train, :, 0])),
            quantiles=None if forecast.quantiles is None else forecast.quantiles[known, :, place],
            net_returns=sized_strategy_returns(prediction, outcomes[origins, :, 1], cost_rate=self.cost_rate),
            bars_per_year=self.bars.bars_per_year,
        )

    def _intervals(
        self, sample: ForecastSample, horizon: int, scores: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        parts = sample.parts()
        nothing = dict.fromkeys(("low", "high", "block_length"), float("nan"))
        found = {score: {"estimate": scores[score], **nothing} for score in SCORES}
        for score, (rows, formula) in parts.items():
            if self.n_bootstrap == 0 or not np.isfinite(scores[score]) or len(rows) < 2:
                continue
            found[score] = self._interval(rows, formula, horizon)
        return found

    def _interval(self, rows: FloatArray, formula: Batch, horizon: int) -> dict[str, float]:
        def statistic(batch: FloatArray) -> FloatArray:
            with np.errstate(divide="ignore", invalid="ignore"):
                return formula(batch.mean(1))

        length = automatic_block_length(statistic, rows, vectorised=True)
        # Labels over h bars share h - 1 of them with their neighbours.
        length = max(length, float(min(horizon, max(len(rows) // 4, 1))))
        interval = block_bootstrap_interval(
            statistic,
            rows,
            block_length=length,
            n_samples=self.n_bootstrap,
            confidence=self.confidence,
            seed=self.seed,
            vectorised=True,
        )
        return {name: getattr(interval, name) for name in ("estimate", "low", "high", "block_length")}

    def _origins(self) -> list[IntArray]:
        return [next(iter(models.values())).origins for models in self.forecasts]

    def _index(self) -> pd.MultiIndex:
        origins = self._origins()
        numbers = np.repeat(np.arange(len(origins)), [len(found) for found in origins])
        timestamps = self.bars.timestamps[np.concatenate(origins)]
        return pd.MultiIndex.from_arrays([numbers, timestamps], names=["fold", "timestamp"])

    def _predictions(self, index: pd.MultiIndex) -> pd.DataFrame:
        parts = {
            name: self._frame([models[name].mean for models in self.forecasts], index, ("asset", horizons))
            for name, horizons in self.horizons.items()
        }
        return pd.concat(parts, axis=1, names=["model"])

    def _quantiles(self, index: pd.MultiIndex) -> pd.DataFrame:
        parts = {}
        for name, horizons in self.horizons.items():
            values = [models[name].quantiles for models in self.forecasts]
            known = [found for found in values if found is not None]
            if len(known) == len(values):
                parts[name] = self._frame(known, index, ("asset", horizons, LEVELS))
        return pd.concat(parts, axis=1, names=["model"]) if parts else pd.DataFrame(index=index)

    def _outcomes(self, index: pd.MultiIndex) -> pd.DataFrame:
        horizons = tuple(sorted(set().union(*self.horizons.values())))
        outcomes = forward_returns(self.bars, horizons)
        return self._frame([outcomes[origins] for origins in self._origins()], index, ("asset", horizons))

    def _frame(self, parts: list[FloatArray], index: pd.MultiIndex, levels: tuple[Any, ...]) -> pd.DataFrame:
        names = ["asset", "horizon", "quantile"][: len(levels)]
        columns = pd.MultiIndex.from_product([self.bars.assets, *levels[1:]], names=names)
        return pd.DataFrame(np.concatenate(parts).reshape(len(index), -1), index=index, columns=columns)

    def _fold_table(self) -> pd.DataFrame:
        times = self.bars.timestamps
        rows = [
            {
                "n_train_bars": len(train),
                "n_test_bars": len(test),
                "n_origins": len(origins),
                "train_start": times[train[0]],
                "train_end": times[train[-1]],
                "test_start": times[test[0]],
                "test_end": times[test[-1]],
            }
            for (train, test), origins in zip(self.folds, self._origins(), strict=True)
        ]
        return pd.DataFrame(rows).rename_axis("fold")


def _table(rows: Mapping[tuple[Any, ...], Mapping[str, Any]], *names: str) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return pd.DataFrame(list(rows.values()), index=index)
