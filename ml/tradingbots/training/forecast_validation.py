"""How predictors fare on bars they never saw: fold by fold, beside forecasts without skill, with what chance explains."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, IntArray
from ml.tradingbots.components.return_predictor import PriceData, levels_within
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.timestamps import read_timestamps
from ml.tradingbots.training.forecast_judging import Forecast, Judge
from ml.tradingbots.training.forecast_results import SCORES, ForecastValidation
from ml.tradingbots.training.forecast_scores import LEVELS
from ml.tradingbots.training.price_tables import until
from ml.tradingbots.training.resampling_settings import check_resampling

__all__ = [
    "LEVELS",
    "SCORES",
    "FoldReport",
    "ForecastValidation",
    "check_purge",
    "default_naive",
    "validate",
]

Factory: TypeAlias = Callable[[], Any]
PredictorFactory: TypeAlias = Factory | Mapping[str, Factory]


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """One predictor fitted and asked in one fold."""

    model: str
    fold: int
    """Counted from 0."""
    n_folds: int
    n_train_bars: int
    n_test_bars: int
    seconds: float
    """Wall time of fit and forecasts."""


def validate(
    factory: PredictorFactory,
    price_data: PriceData,
    splitter: Any,
    *,
    naive: Mapping[str, Factory] | None = None,
    cost_rate: float = 0.0005,
    confidence: float = 0.95,
    n_bootstrap: int = 1_000,
    seed: int = 0,
    report: Callable[[FoldReport], None] | None = None,
    fit_params: Callable[[str, int], Mapping[str, Any]] | None = None,
) -> ForecastValidation:
    """Fit a fresh predictor in every fold, and judge what it forecasts of bars that it never saw.

    Nothing can leak by carelessness: a predictor is fitted on a table that ends with the last label it may know, and asked
    with one that ends with the last test bar. All models are judged at the same origins, those that every one of them
    forecast. Intervals resample blocks of origins of all folds at once, at least a horizon long.

    CRPS and coverage need quantiles at all of `LEVELS`, 0.05 to 0.95. They are left out (NaN) for a model that has none, or
    none so far out: a network with `head="quantile"` and levels 0.1 to 0.9, say, or an ensemble with such a member.

    Args:
        factory: makes an unfitted predictor, or several by name. A predictor has `fit(price_data, bars=...)`,
            `predict(price_data, bars=...)`, `horizons` (an attribute, or of `get_params()`), and `predict_quantiles` if it can.
        price_data: what `Bars.from_frame` accepts; predictors are given the same kind.
        splitter: makes folds of bars; its purge must be at least the longest horizon.
        naive: forecasts to compare with, by name. None: zero, drift, sign of the last return, and a ridge regression, which
            sees as long a window as the predictors; all in units of volatility where these are, over their longest
            `volatility_bars`. One whose name `factory` gives to a predictor makes way for it, which is judged and not marked
            as naive.
        cost_rate: of trading, as a fraction of the notional, in [0, 1) (0.0005 is 5 basis points).
        confidence: of the intervals, in (0, 1).
        n_bootstrap: resamples of each interval; 0 skips them.
        seed: of the resampling, at least 0.
        report: called after each predictor and fold.
        fit_params: what else a fit is given, by name of the predictor and number of the fold: `report` to watch it,
            `checkpoint` to go on with it after an interruption. The naive ones are asked about as well.

    Returns:
        Tables of scores, and the forecasts themselves.

    Raises:
        ValueError: a setting is out of its range, training labels would overlap with a test, a bar is tested twice, models
            have no origin in common, or `factory` and `naive` give one name to two of them.
    """
    # All that can be refused is refused before hours of fits.
    check_resampling(confidence=confidence, n_bootstrap=n_bootstrap, seed=seed)
    if not 0.0 <= cost_rate < 1.0:
        raise ValueError(
            f"cost_rate must be a fraction of the notional in [0, 1), got {cost_rate}; 5 basis points are 0.0005"
        )
    bars = Bars.from_frame(price_data)
    models = _named(factory)
    horizons = {name: _horizons_of(name, make()) for name, make in models.items()}
    if naive is None:
        ahead = tuple(sorted(set().union(*horizons.values())))
        usual = default_naive(
            ahead, _largest(models, "window_size"), volatility_bars=_largest(models, "volatility_bars") or 0
        )
        naive = {name: make for name, make in usual.items() if name not in models}
    both = sorted(set(models) & set(naive))
    if both:
        raise ValueError(f"factory and naive both have a {both[0]!r}; give one of them another name")
    models = {**models, **naive}
    horizons |= {name: _horizons_of(name, make()) for name, make in naive.items()}
    longest = max(max(ahead) for ahead in horizons.values())
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(bars.to_frame())]
    check_purge(folds, longest, splitter)
    _check_tested_once(folds)
    found = []
    for number, (train, test) in enumerate(folds):
        forecasts = {}
        for name, make in models.items():
            began = time.perf_counter()
            params = {} if fit_params is None else fit_params(name, number)
            forecasts[name] = _forecast(name, make(), price_data, bars, train, test, horizons[name], params)
            if report is not None:
                seconds = time.perf_counter() - began
                sizes = {"n_train_bars": len(train), "n_test_bars": len(test)}
                report(FoldReport(model=name, fold=number, n_folds=len(folds), **sizes, seconds=seconds))
        found.append(_aligned(forecasts, number))
    judge = Judge(bars, folds, found, horizons, cost_rate, confidence, n_bootstrap, seed)
    return judge.verdict(tuple(naive))


def default_naive(
    horizons: tuple[int, ...], window_size: int | None = None, *, volatility_bars: int = 0
) -> dict[str, Factory]:
    """Return the forecasts without skill that every predictor should be shown beside.

    Args:
        horizons: bars ahead.
        window_size: bars that the ridge regression sees; None is its own default.
        volatility_bars: look-back of the volatility that their errors are in units of, at least 2; 0 does without, and their
            intervals are as wide in calm as in wild times.
    """
    # Imported where it is used: who brings naive forecasts of their own needs none of these.
    from ml.tradingbots.components import naive_predictors

    common: dict[str, Any] = {"horizons": horizons, "volatility_bars": volatility_bars}
    ridge = common | ({} if window_size is None else {"window_size": window_size})
    return {
        "zero": lambda: naive_predictors.ZeroPredictor(**common),
        "drift": lambda: naive_predictors.DriftPredictor(**common),
        "last_sign": lambda: naive_predictors.LastSignPredictor(**common),
        "ridge": lambda: naive_predictors.RidgePredictor(**ridge),
    }


def check_purge(folds: Iterable[tuple[IntArray, IntArray]], horizon: int, splitter: Any) -> None:
    """Refuse folds in which a label known in training overlaps with one that is tested.

    Args:
        folds: training and test bars, increasing.
        horizon: bars that labels reach ahead.
        splitter: what made the folds, for the advice.

    Raises:
        ValueError: a training bar lies within `horizon` bars of a test bar.
    """
    for number, (train, test) in enumerate(folds):
        place = np.searchsorted(test, train)
        below, above = test[np.maximum(place - 1, 0)], test[np.minimum(place, len(test) - 1)]
        distance = np.minimum(np.abs(train - below), np.abs(above - train))
        if (distance <= horizon).any():
            bar = int(train[distance <= horizon][-1])
            raise ValueError(
                f"fold {number} trains on bar {bar}, {int(distance[train == bar][0])} from its test, and forecasts reach "
                f"{horizon} ahead: labels of training would overlap with those tested. Use {_purged(splitter, horizon)}"
            )


def _purged(splitter: Any, horizon: int) -> str:
    if not hasattr(splitter, "purge_size"):
        return f"a splitter with a purge, such as WalkForwardValidator(n_splits=5, purge_size={horizon})"
    mended = copy.copy(splitter)
    mended.purge_size = horizon
    return repr(mended)


def _check_tested_once(folds: Sequence[tuple[IntArray, IntArray]]) -> None:
    tested = np.concatenate([test for _, test in folds])
    bars, times = np.unique(tested, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"bar {int(bars[times > 1][0])} is tested in {int(times.max())} folds: scores over all folds would count it more "
            "than once, and their intervals would be too narrow. Use a splitter that tests each bar once: a step not below "
            "test_size, or PurgedKFold in place of CombinatorialPurgedCV"
        )


def _named(factory: PredictorFactory) -> dict[str, Factory]:
    if isinstance(factory, Mapping):
        if not factory:
            raise ValueError("factory must name at least one predictor, got an empty mapping")
        return dict(factory)
    made = factory()
    return {str(getattr(made, "predictor_type", type(made).__name__)): factory}


def _horizons_of(name: str, predictor: Any) -> tuple[int, ...]:
    horizons = getattr(predictor, "horizons", None) or predictor.get_params().get("horizons")
    if not horizons:
        raise TypeError(f"predictor {name!r} must say how far ahead it forecasts: get_params() must have 'horizons'")
    return tuple(int(horizon) for horizon in horizons)


def _largest(models: Mapping[str, Factory], name: str) -> int | None:
    """Return the largest value that a hyperparameter has in any model; None where no model has it."""
    # Those of an ensemble's members are called member__name.
    params = [(key, value) for make in models.values() for key, value in make().get_params().items()]
    return max((value for key, value in params if key.split("__")[-1] == name and value is not None), default=None)


def _forecast(
    name: str,
    predictor: Any,
    price_data: PriceData,
    bars: Bars,
    train: IntArray,
    test: IntArray,
    horizons: tuple[int, ...],
    fit_params: Mapping[str, Any],
) -> Forecast:
    last_known = min(int(train[-1]) + max(horizons) + 1, bars.n_bars)
    predictor.fit(until(price_data, last_known), bars=train, **fit_params)
    seen = until(price_data, int(test[-1]) + 1)
    shape = (bars.n_assets, len(horizons))
    origins, mean = _read(name, predictor.predict(seen, bars=test), bars, test, (bars.assets, horizons))
    quantiles = None
    if levels_within(predictor, LEVELS) == LEVELS:
        table = predictor.predict_quantiles(seen, LEVELS, bars=test)
        also, values = _read(name, table, bars, test, (bars.assets, horizons, LEVELS))
        if not np.array_equal(also, origins):
            raise ValueError(f"predictor {name!r} must give quantiles at the origins of its predictions")
        quantiles = values.reshape(len(origins), *shape, len(LEVELS))
    return Forecast(origins, mean.reshape(len(origins), *shape), quantiles)


def _read(
    name: str, table: pd.DataFrame, bars: Bars, test: IntArray, levels: tuple[Sequence[Any], ...]
) -> tuple[IntArray, FloatArray]:
    """Return the test origins of a forecast and its values, columns in our order."""
    columns = pd.MultiIndex.from_product(levels)
    missing = [label for label in columns if label not in table.columns]
    if missing:
        raise ValueError(f"predictor {name!r} forecast no column {missing[0]}; it has {table.columns[:4].tolist()} ...")
    if table.empty:
        return np.empty(0, dtype=np.int64), np.empty((0, len(columns)))
    places = bars.timestamps.get_indexer(read_timestamps(table.index)).astype(np.int64)
    rows = np.isin(places, test)
    values: FloatArray = table.loc[:, columns].to_numpy(np.float64)[rows]
    if not np.isfinite(values).all():
        bar = int(places[rows][np.argwhere(~np.isfinite(values))[0, 0]])
        raise ValueError(
            f"predictor {name!r} forecast no number at bar {bar} ({bars.timestamps[bar]}); leave such origins out"
        )
    return places[rows], values


def _aligned(forecasts: Mapping[str, Forecast], fold: int) -> dict[str, Forecast]:
    """Keep the origins that all models forecast."""
    common: IntArray | None = None
    for forecast in forecasts.values():
        common = forecast.origins if common is None else np.intersect1d(common, forecast.origins)
    if common is None or not len(common):
        counts = ", ".join(f"{name} {len(forecast.origins)}" for name, forecast in forecasts.items())
        raise ValueError(f"no test bar of fold {fold} was forecast by all models ({counts}); give more bars before it")
    return {name: forecast.at(common) for name, forecast in forecasts.items()}
