"""How predictors fare on bars they never saw: fold by fold, beside forecasts without skill, with what chance explains."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.forecast_table import FloatArray, IntArray, forward_returns
from ml.tradingbots.core import forecast_metrics as metrics
from ml.tradingbots.core.bootstrap import automatic_block_length, block_bootstrap_interval
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.timestamps import read_timestamps

PriceData: TypeAlias = pd.DataFrame | Bars
Factory: TypeAlias = Callable[[], Any]
PredictorFactory: TypeAlias = Factory | Mapping[str, Factory]
Batch: TypeAlias = Callable[[FloatArray], FloatArray]

SCORES = ("r2", "ic", "rank_ic", "directional_skill", "crps", "coverage", "sharpe_ratio")
"""What forecasts are judged by; `ForecastValidation` says what each means."""
# An even grid, as the CRPS wants it, whose ends are the 90% interval.
LEVELS = tuple(round((k + 0.5) / 10, 2) for k in range(10))
_PERCENT = ("r2", "directional_skill", "coverage")


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ForecastValidation:
    """What predictors forecast out of sample, and how good that was.

    Scores, all pooled over assets: `r2`, R² against the better of zero and the mean training return; `ic` and `rank_ic`,
    correlation of forecast and outcome; `directional_skill`, share of directions called minus that of always calling the
    majority; `crps`, twice the mean pinball loss over the quantiles 0.05, 0.15 to 0.95, in units of log returns (less is
    better); `coverage`, share of outcomes in the 90% interval; `sharpe_ratio`, annualised, after costs, of holding each
    asset long or short by the sign of its forecast for one bar, whatever the horizon. Each fold starts flat. A score that is
    not defined, such as the correlation of a constant, is NaN.
    """

    per_fold: pd.DataFrame
    """`n_origins` and the scores; rows (model, horizon, fold)."""
    pooled: pd.DataFrame
    """The same over the origins of all folds; rows (model, horizon)."""
    intervals: pd.DataFrame
    """`estimate`, `low`, `high` and `block_length` (bars) of the pooled scores; rows (model, horizon, score)."""
    predictions: pd.DataFrame
    """Expected log returns; rows (fold, timestamp), columns (model, asset, horizon)."""
    quantiles: pd.DataFrame
    """Forecast quantiles of models that have them; rows as above, columns (model, asset, horizon, quantile)."""
    outcomes: pd.DataFrame
    """What happened, NaN where it is not known yet; rows as above, columns (asset, horizon)."""
    strategy_returns: pd.DataFrame
    """What holding by the sign of the forecasts earned over the bar after each origin, after costs, simple returns, NaN where
    the outcome is not known; rows as above, columns (model, horizon)."""
    folds: pd.DataFrame
    """Bars and dates of each fold, `n_origins` of which were forecast by every model."""
    confidence: float
    """Share of intervals built like these that would hold the truth, in (0, 1)."""
    naive: tuple[str, ...]
    """Which models are forecasts without skill, to compare with."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (model, horizon): each pooled score with its interval, `r2`, `r2_low`, `r2_high` and so on."""
        ends = self.intervals[["low", "high"]].unstack("score")
        table = self.pooled[["n_origins"]].copy()
        for score in SCORES:
            table[score] = self.pooled[score]
            for end in ("low", "high"):
                table[f"{score}_{end}"] = ends[(end, score)]
        return table

    def formatted_table(self) -> pd.DataFrame:
        """Return the pooled scores and intervals as text for people."""
        numbers = self.to_frame()
        return pd.DataFrame(
            {
                score.replace("_", " "): [
                    _as_text(score, row[score], row[f"{score}_low"], row[f"{score}_high"])
                    for _, row in numbers.iterrows()
                ]
                for score in SCORES
            },
            index=numbers.index,
        )

    def __repr__(self) -> str:
        """The pooled table, and what it is made of."""
        table = self.formatted_table()
        table.index = pd.Index(
            [f"{model}{' (naive)' if model in self.naive else ''}, {horizon} ahead" for model, horizon in table.index]
        )
        period = f"{self.folds['test_start'].min():%Y-%m-%d} to {self.folds['test_end'].max():%Y-%m-%d}"
        return (
            f"Out of sample: {len(self.folds)} folds, {len(self.outcomes):,} origins from {period}, assets: "
            f"{self.outcomes.columns.get_level_values('asset').nunique()}; {self.confidence:.0%} intervals by the stationary "
            f"bootstrap\n{table.to_string()}"
        )


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
) -> ForecastValidation:
    """Fit a fresh predictor in every fold, and judge what it forecasts of bars that it never saw.

    Nothing can leak by carelessness: a predictor is fitted on a table that ends with the last label it may know, and asked
    with one that ends with the last test bar. All models are judged at the same origins, those that every one of them
    forecast. Intervals resample blocks of origins of all folds at once, at least a horizon long.

    Args:
        factory: makes an unfitted predictor, or several by name. A predictor has `fit(price_data, bars=...)`,
            `predict(price_data, bars=...)`, `get_params()` with its `horizons`, and `predict_quantiles` if it can.
        price_data: what `Bars.from_frame` accepts; predictors are given the same kind.
        splitter: makes folds of bars; its purge must be at least the longest horizon.
        naive: forecasts to compare with, by name. None: zero, drift, sign of the last return, and a ridge regression.
        cost_rate: of trading, as a fraction of the notional (0.0005 is 5 basis points).
        confidence: of the intervals, in (0, 1).
        n_bootstrap: resamples of each interval; 0 skips them.
        seed: of the resampling.
        report: called after each predictor and fold.

    Returns:
        Tables of scores, and the forecasts themselves.

    Raises:
        ValueError: training labels would overlap with a test, a bar is tested twice, or models have no origin in common.
    """
    bars = Bars.from_frame(price_data)
    models = _named(factory)
    horizons = {name: _horizons_of(name, make()) for name, make in models.items()}
    longest = max(max(ahead) for ahead in horizons.values())
    if naive is None:
        naive = default_naive(tuple(sorted(set().union(*horizons.values()))), _window_of(models))
    both = sorted(set(models) & set(naive))
    if both:
        raise ValueError(f"{both[0]!r} names a predictor and a naive one; give the predictor another name")
    models = {**models, **naive}
    horizons |= {name: _horizons_of(name, make()) for name, make in naive.items()}
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(bars.to_frame())]
    check_purge(folds, longest, splitter)
    _check_tested_once(folds)
    found = []
    for number, (train, test) in enumerate(folds):
        forecasts = {}
        for name, make in models.items():
            began = time.perf_counter()
            forecasts[name] = _forecast(name, make(), price_data, bars, train, test, horizons[name])
            if report is not None:
                seconds = time.perf_counter() - began
                sizes = {"n_train_bars": len(train), "n_test_bars": len(test)}
                report(FoldReport(model=name, fold=number, n_folds=len(folds), **sizes, seconds=seconds))
        found.append(_aligned(forecasts, number))
    judge = _Judge(bars, folds, found, horizons, cost_rate, confidence, n_bootstrap, seed)
    return judge.verdict(tuple(naive))


def default_naive(horizons: tuple[int, ...], window_size: int | None = None) -> dict[str, Factory]:
    """Return the forecasts without skill that every predictor should be shown beside.

    Args:
        horizons: bars ahead.
        window_size: bars that the ridge regression sees; None is its own default.
    """
    # Imported where it is used: who brings naive forecasts of their own needs none of these.
    from ml.tradingbots.components import naive_predictors

    ridge: dict[str, Any] = {"horizons": horizons} | ({} if window_size is None else {"window_size": window_size})
    return {
        "zero": lambda: naive_predictors.ZeroPredictor(horizons=horizons),
        "drift": lambda: naive_predictors.DriftPredictor(horizons=horizons),
        "last_sign": lambda: naive_predictors.LastSignPredictor(horizons=horizons),
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
    params = predictor.get_params()
    if "horizons" not in params:
        raise TypeError(f"predictor {name!r} must say how far ahead it forecasts: get_params() must have 'horizons'")
    return tuple(int(horizon) for horizon in params["horizons"])


def _window_of(models: Mapping[str, Factory]) -> int | None:
    sizes = [make().get_params().get("window_size") for make in models.values()]
    return max((size for size in sizes if size is not None), default=None)


def until(price_data: PriceData, stop: int) -> PriceData:
    """Return the first `stop` bars of a price table, in the form it has."""
    return price_data.slice(0, stop) if isinstance(price_data, Bars) else price_data.iloc[:stop]


@dataclass(frozen=True)
class _Forecast:
    """What one model said in one fold."""

    origins: IntArray
    mean: FloatArray
    """(n_origins, n_assets, n_horizons)."""
    quantiles: FloatArray | None
    """(n_origins, n_assets, n_horizons, n_levels)."""

    def at(self, origins: IntArray) -> _Forecast:
        rows = np.searchsorted(self.origins, origins)
        return _Forecast(origins, self.mean[rows], None if self.quantiles is None else self.quantiles[rows])


def _forecast(
    name: str,
    predictor: Any,
    price_data: PriceData,
    bars: Bars,
    train: IntArray,
    test: IntArray,
    horizons: tuple[int, ...],
) -> _Forecast:
    last_known = min(int(train[-1]) + max(horizons) + 1, bars.n_bars)
    predictor.fit(until(price_data, last_known), bars=train)
    seen = until(price_data, int(test[-1]) + 1)
    shape = (bars.n_assets, len(horizons))
    origins, mean = _read(name, predictor.predict(seen, bars=test), bars, test, (bars.assets, horizons))
    quantiles = None
    if hasattr(predictor, "predict_quantiles"):
        table = predictor.predict_quantiles(seen, LEVELS, bars=test)
        also, values = _read(name, table, bars, test, (bars.assets, horizons, LEVELS))
        if not np.array_equal(also, origins):
            raise ValueError(f"predictor {name!r} must give quantiles at the origins of its predictions")
        quantiles = values.reshape(len(origins), *shape, len(LEVELS))
    return _Forecast(origins, mean.reshape(len(origins), *shape), quantiles)


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


def _aligned(forecasts: Mapping[str, _Forecast], fold: int) -> dict[str, _Forecast]:
    """Keep the origins that all models forecast."""
    common: IntArray | None = None
    for forecast in forecasts.values():
        common = forecast.origins if common is None else np.intersect1d(common, forecast.origins)
    if common is None or not len(common):
        counts = ", ".join(f"{name} {len(forecast.origins)}" for name, forecast in forecasts.items())
        raise ValueError(f"no test bar of fold {fold} was forecast by all models ({counts}); give more bars before it")
    return {name: forecast.at(common) for name, forecast in forecasts.items()}


@dataclass(frozen=True)
class _Sample:
    """Forecasts of one model over one horizon beside what happened; n origins."""

    timestamps: pd.DatetimeIndex
    """Of the origins; (n,)."""
    y: FloatArray
    """(n, n_assets), as the two below."""
    prediction: FloatArray
    train_mean: FloatArray
    quantiles: FloatArray | None
    """(n, n_assets, n_levels)."""
    net_returns: FloatArray
    """Of trading on the sign of the forecast; (n,)."""
    bars_per_year: float

    def scores(self) -> dict[str, float]:
        """Return every score of these origins."""
        y, prediction = self.y, self.prediction
        found = {
            "r2": metrics.r2_against_naive(y, prediction, self.train_mean),
            "ic": metrics.information_coefficient(y, prediction),
            "rank_ic": metrics.rank_ic(y, prediction),
            "directional_skill": metrics.directional_skill(y, prediction),
            "crps": float("nan"),
            "coverage": float("nan"),
            "sharpe_ratio": sharpe_ratio(self.net_returns, bars_per_year=self.bars_per_year),
        }
        if self.quantiles is not None:
            found["crps"] = metrics.crps_from_quantiles(y, self.quantiles, LEVELS)
            found["coverage"] = metrics.coverage(y, self.quantiles[..., 0], self.quantiles[..., -1])
        return found

    def parts(self) -> dict[str, tuple[FloatArray, Batch]]:
        """Return what each origin adds to each score, (n, n_parts), and the score of mean parts, (n_batch, n_parts).

        Ranks are those among all origins, also in a resample.
        """
        y, error = self.y, self.y - self.prediction
        squares = [(values**2).sum(1) for values in (error, y, y - self.train_mean)]
        moved = y != 0.0
        hits = [(np.sign(y) * np.sign(self.prediction)).sum(1), moved.sum(1), (y > 0.0).sum(1)]
        centre = self.net_returns.mean()
        found: dict[str, tuple[FloatArray, Batch]] = {
            "r2": (np.stack(squares, 1), lambda m: 1.0 - m[:, 0] / np.minimum(m[:, 1], m[:, 2])),
            "ic": (_moments(y, self.prediction), _correlation),
            "rank_ic": (_moments(_ranks(y), _ranks(self.prediction)), _correlation),
            "directional_skill": (np.stack(hits, 1).astype(np.float64), _skill),
            "sharpe_ratio": (np.stack([self.net_returns, (self.net_returns - centre) ** 2], 1), self._sharpe(centre)),
        }
        if self.quantiles is not None:
            above = y[..., None] - self.quantiles
            levels = np.asarray(LEVELS)
            loss = 2.0 * np.maximum(levels * above, (levels - 1.0) * above).mean((1, 2))
            inside = ((self.quantiles[..., 0] <= y) & (y <= self.quantiles[..., -1])).mean(1)
            found |= {"crps": (loss[:, None], _first), "coverage": (inside[:, None], _first)}
        return found

    def _sharpe(self, centre: float) -> Batch:
        n = len(self.net_returns)

        def ratio(m: FloatArray) -> FloatArray:
            variance = (m[:, 1] - (m[:, 0] - centre) ** 2) * n / (n - 1)
            found: FloatArray = m[:, 0] / np.sqrt(variance) * np.sqrt(self.bars_per_year)
            return found

        return ratio


def _first(m: FloatArray) -> FloatArray:
    return m[:, 0]


def _skill(m: FloatArray) -> FloatArray:
    up = m[:, 2] / m[:, 1]
    found: FloatArray = 0.5 + 0.5 * m[:, 0] / m[:, 1] - np.maximum(up, 1.0 - up)
    return found


def _moments(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the sums over assets that a correlation is made of; (n, 5)."""
    # On the scale of 1, so that differences of squares keep their digits.
    a, b = ((values - values.mean()) / (values.std() or 1.0) for values in (left, right))
    return np.stack([values.mean(1) for values in (a, b, a**2, b**2, a * b)], 1)


def _correlation(m: FloatArray) -> FloatArray:
    spread = (m[:, 2] - m[:, 0] ** 2) * (m[:, 3] - m[:, 1] ** 2)
    found: FloatArray = (m[:, 4] - m[:, 0] * m[:, 1]) / np.sqrt(spread)
    return found


def _ranks(values: FloatArray) -> FloatArray:
    return np.asarray(pd.Series(values.ravel()).rank(), dtype=np.float64).reshape(values.shape)


@dataclass(frozen=True)
class _Judge:
    """Everything that was forecast, and how it is to be scored."""

    bars: Bars
    folds: list[tuple[IntArray, IntArray]]
    forecasts: list[dict[str, _Forecast]]
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
                whole = _joined(list(samples.values()), name, horizon)
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

    def _sample(self, fold: int, name: str, place: int, horizon: int) -> _Sample | None:
        """Return a fold's forecasts whose outcome is known; None where no outcome is."""
        forecast, (train, _) = self.forecasts[fold][name], self.folds[fold]
        outcomes = forward_returns(self.bars, (horizon, 1))
        known = np.isfinite(outcomes[forecast.origins, :, 0]).all(1)
        origins = forecast.origins[known]
        if not len(origins):
            return None
        prediction, y = forecast.mean[known, :, place], outcomes[origins, :, 0]
        return _Sample(
            timestamps=self.bars.timestamps[origins],
            y=y,
            prediction=prediction,
            train_mean=np.full_like(y, np.nanmean(outcomes[train, :, 0])),
            quantiles=None if forecast.quantiles is None else forecast.quantiles[known, :, place],
            net_returns=metrics.sized_strategy_returns(prediction, outcomes[origins, :, 1], cost_rate=self.cost_rate),
            bars_per_year=self.bars.bars_per_year,
        )

    def _intervals(self, sample: _Sample, horizon: int, scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
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


def _joined(samples: list[_Sample], name: str, horizon: int) -> _Sample:
    if not samples:
        raise ValueError(f"no outcome of {name!r} over {horizon} bars is known in any test; give more bars")
    quantiles = [sample.quantiles for sample in samples if sample.quantiles is not None]
    arrays: dict[str, npt.NDArray[np.float64]] = {
        field: np.concatenate([getattr(sample, field) for sample in samples])
        for field in ("y", "prediction", "train_mean", "net_returns")
    }
    together = np.concatenate(quantiles) if len(quantiles) == len(samples) else None
    timestamps = pd.DatetimeIndex(samples[0].timestamps.append([sample.timestamps for sample in samples[1:]]))
    return _Sample(timestamps=timestamps, **arrays, quantiles=together, bars_per_year=samples[0].bars_per_year)


def _table(rows: Mapping[tuple[Any, ...], Mapping[str, Any]], *names: str) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return pd.DataFrame(list(rows.values()), index=index)


def _as_text(score: str, value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    form = ".2%" if score in _PERCENT else ".5f" if score == "crps" else ".3f" if "ic" in score.split("_") else ".2f"
    text = [format(number, form) for number in (value, low, high)]
    return (text[0] if np.isnan(low) else f"{text[0]} ({text[1]} to {text[2]})").replace("-", "−")
