"""How close predictors come to the best forecast there is: markets whose right answer is known.

A predictor learns from one path of a synthetic market and is judged on another that it never saw, beside the optimal forecast
of the very same bars, so that what is luck is shared by both. R² is against zero, which is the mean of all log returns here.

Hyper-parameters were chosen on seeds from 100 on; the seeds below, which are those reported, had no part in it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.cnn_predictor import CNNConfig, CNNPricePredictor
from ml.tradingbots.components.ensemble_predictor import EnsembleMethod, EnsemblePricePredictor
from ml.tradingbots.components.forecast_heads import HeadName
from ml.tradingbots.components.forecast_table import ForecastTable, IntArray, forward_returns
from ml.tradingbots.components.lstm_predictor import LSTMConfig, LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import NaiveConfig, NaivePredictor, RidgeConfig, RidgePredictor
from ml.tradingbots.components.predictor_config import PredictorConfig
from ml.tradingbots.components.return_predictor import ConfiguredPredictor
from ml.tradingbots.components.transformer_predictor import TransformerConfig, TransformerPricePredictor
from ml.tradingbots.core.bootstrap import block_bootstrap_interval
from ml.tradingbots.core.conformal import AdaptiveConformal, SplitConformal
from ml.tradingbots.core.forecast_metrics import coverage, directional_accuracy, pinball_loss, r2_out_of_sample
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import PurgedKFold
from ml.tradingbots.data.synthetic import Autoregressive, SyntheticMarket, autoregressive, random_walk
from ml.tradingbots.data.synthetic_patterns import (
    NoisySine,
    PlantedPattern,
    autoregressive_optimum,
    garch,
    noisy_sine,
    planted_pattern,
    volatility_break,
)
from ml.tradingbots.training.forecast_optima_rows import (
    AutoregressionRow,
    BreakRow,
    EnsembleRow,
    IntervalRow,
    MixtureRow,
    PatternRow,
    SineRow,
)

FloatArray = npt.NDArray[np.float64]
EnsembleMarket = Literal["ar1", "pattern"]
StationaryMarket = Literal["garch", "student_t"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that are judged; the outer two are the ends of the 90% interval."""
SINE = {"period": 50.0, "amplitude": 0.005}
SINE_HORIZONS = (1, 5, 20)
TAIL_DEGREES = 4.0
"""Degrees of freedom of the heavy-tailed market: no fourth moment, as daily returns of stocks hardly have one."""
MIXTURE = {"a": 0.5, "b": 0.3, "c": 0.1}
BREAK_BARS = 250
# Origins before this one are not scored, so that predictors with any window are judged on the same bars.
_FIRST_ORIGIN = 100
_KINDS: dict[type[Any], type[ConfiguredPredictor]] = {
    LSTMConfig: LSTMPricePredictor,
    TransformerConfig: TransformerPricePredictor,
    CNNConfig: CNNPricePredictor,
    RidgeConfig: RidgePredictor,
}

AUTOREGRESSION_RECIPES: dict[str, PredictorConfig] = {
    "lstm": LSTMConfig(window_size=16),
    "transformer": TransformerConfig(window_size=16, learning_rate=3e-4),
    "cnn": CNNConfig(window_size=16, learning_rate=3e-4, batch_size=512),
}
SINE_RECIPES: dict[str, PredictorConfig] = {
    "lstm": LSTMConfig(window_size=64, horizons=SINE_HORIZONS, batch_size=512, learning_rate=3e-3),
    "transformer": TransformerConfig(window_size=64, horizons=SINE_HORIZONS, patch_size=16, batch_size=512, patience=3),
    "cnn": CNNConfig(window_size=64, horizons=SINE_HORIZONS, learning_rate=3e-4, batch_size=512),
}
# Few filters and decay: what the pattern's noise offers to learn by heart is much more than the pattern.
PATTERN_RECIPES: dict[str, PredictorConfig | RidgeConfig] = {
    "cnn": CNNConfig(
        window_size=16,
        n_filters=(16, 16, 16),
        weight_decay=0.2,
        learning_rate=3e-3,
        batch_size=1_024,
        patience=6,
    ),
    "ridge, 16 lags": RidgeConfig(window_size=16),
    "ridge, 1 lag": RidgeConfig(window_size=1),
}


def learn_autoregression(
    config: PredictorConfig | RidgeConfig, *, phi: float = 0.3, seed: int, n_train: int = 20_000, n_test: int = 50_000
) -> AutoregressionRow:
    """Fit a predictor to an AR(1) and judge it on another path.

    Args:
        config: of the predictor; its seed is replaced.
        phi: of the process; 0 is noise.
        seed: of predictor and paths.
        n_train: bars to learn from.
        n_test: bars to be judged on.
    """
    train, test = (autoregressive(n_bars, phi=phi, seed=path) for n_bars, path in _paths(seed, n_train, n_test))
    predictor, seconds = _fitted(config, train.prices, seed)
    y, origins = _outcomes(test.prices, 1)
    mean, quantiles = _said(predictor, test.prices, origins)
    best = autoregressive_optimum(Autoregressive(phi=phi))
    expected = phi * test.state[origins]
    ends = np.stack([best.quantile(expected, level) for level in LEVELS], axis=-1)
    return AutoregressionRow(
        r2=r2_out_of_sample(y, mean),
        best_r2=r2_out_of_sample(y, expected),
        theoretical_r2=best.r2,
        accuracy=directional_accuracy(y, mean),
        theoretical_accuracy=best.directional_accuracy,
        coverage=coverage(y, quantiles[:, 0], quantiles[:, -1]),
        pinball=pinball_loss(y, quantiles, LEVELS),
        best_pinball=pinball_loss(y, ends, LEVELS),
        cpu_seconds=seconds,
    )


def learn_sine(
    config: PredictorConfig, *, seed: int, n_train: int = 20_000, n_test: int = 50_000
) -> tuple[SineRow, ...]:
    """Fit a predictor to a sine under noise and judge it on another path, one row for each of its horizons."""
    train, test = (noisy_sine(n_bars, seed=path, **SINE) for n_bars, path in _paths(seed, n_train, n_test))
    predictor, seconds = _fitted(config, train.prices, seed)
    _, origins = _outcomes(test.prices, max(config.horizons))
    said = predictor.predict(test.prices, bars=origins).to_numpy()
    process, rows = test.parameters, []
    assert isinstance(process, NoisySine)
    for number, horizon in enumerate(config.horizons):
        y = forward_returns(Bars.from_frame(test.prices), (horizon,))[origins, 0, 0]
        best = sine_expectation(test, origins, horizon, window_size=config.window_size)
        rows.append(
            SineRow(
                horizon=horizon,
                r2=r2_out_of_sample(y, said[:, number]),
                best_r2=r2_out_of_sample(y, best),
                linear_r2=process.optimal_r2(horizon, window_size=config.window_size),
                cpu_seconds=seconds,
            )
        )
    return tuple(rows)


def sine_expectation(market: SyntheticMarket, origins: IntArray, horizon: int, *, window_size: int) -> FloatArray:
    """Return the best forecast from a window: the mean over all phases by their probability given what the window shows.

    Args:
        market: of `noisy_sine`, its period a whole number of bars.
        origins: bars at whose close forecasts are made, at least `window_size`.
        horizon: bars ahead.
        window_size: log returns that are seen.

    Returns:
        Expected log return over the horizon; (n_origins,).
    """
    process = market.parameters
    assert isinstance(process, NoisySine)
    phases = np.arange(round(process.period))
    log_returns = np.diff(np.log(market.prices["close"].to_numpy()))
    seen = np.lib.stride_tricks.sliding_window_view(log_returns, window_size)[origins - window_size]

    def expected(bars: IntArray) -> FloatArray:
        """Of bars after an origin, for each phase that this may have; (n_bars, n_phases)."""
        result: FloatArray = process.amplitude * np.sin(2.0 * np.pi * (bars[:, None] + phases) / process.period)
        return result

    past = expected(np.arange(1 - window_size, 1))
    log_likelihood = (seen @ past - 0.5 * (past**2).sum(0)) / process.volatility**2  # (n_origins, n_phases)
    likelihood = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    ahead = expected(np.arange(1, horizon + 1)).sum(0)
    mean: FloatArray = likelihood @ ahead / likelihood.sum(1)
    return mean


def learn_pattern(
    config: PredictorConfig | RidgeConfig, *, seed: int, n_train: int = 200_000, n_test: int = 200_000
) -> PatternRow:
    """Fit a predictor to a market with a planted chart pattern and judge it on another path."""
    train, test = (planted_pattern(n_bars, seed=path) for n_bars, path in _paths(seed, n_train, n_test))
    predictor, seconds = _fitted(config, train.prices, seed)
    y, origins = _outcomes(test.prices, 1)
    mean, state = predictor.predict(test.prices, bars=origins).to_numpy()[:, 0], test.state[origins]
    assert isinstance(test.parameters, PlantedPattern)
    return PatternRow(
        auc=area_under_curve(mean, y > 0.0),
        best_auc=area_under_curve(state, y > 0.0),
        standard_error=1.0 / math.sqrt(3.0 * len(y)),  # Half of the outcomes are rises (Mann & Whitney, 1947).
        r2=r2_out_of_sample(y, mean),
        best_r2=r2_out_of_sample(y, state * test.parameters.move),
        cpu_seconds=seconds,
    )


def area_under_curve(score: FloatArray, is_rise: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a rise has a higher score than a fall, ties counting half (Mann & Whitney, 1947).

    >>> area_under_curve(np.array([1.0, 2.0, 2.0]), np.array([False, False, True]))
    0.75
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    n_rises = int(is_rise.sum())
    above = float(rankdata(score)[is_rise].sum()) - 0.5 * n_rises * (n_rises + 1)
    return above / (n_rises * (len(score) - n_rises))


def combine(
    market: EnsembleMarket,
    *,
    seed: int,
    members: Mapping[str, PredictorConfig | RidgeConfig] | None = None,
    n_train: int = 10_000,
    n_test: int = 50_000,
) -> tuple[EnsembleRow, ...]:
    """Fit ensembles of all methods from the same members and judge them beside the best of these.

    Args:
        market: an AR(1) with phi 0.3, or a planted pattern.
        seed: of members and paths.
        members: configs of networks by name; None: those of `AUTOREGRESSION_RECIPES`.
        n_train: bars to learn from.
        n_test: bars to be judged on.
    """
    paths = _paths(seed, n_train, n_test)
    if market == "ar1":
        train, test = (autoregressive(n_bars, phi=0.3, seed=path) for n_bars, path in paths)
    else:
        train, test = (planted_pattern(n_bars, seed=path) for n_bars, path in paths)
    named = {name: _predictor(config, seed) for name, config in (members or AUTOREGRESSION_RECIPES).items()}
    began = time.process_time()
    fitted = _ensembles(named, train.prices)
    seconds = time.process_time() - began
    y, origins = _outcomes(test.prices, 1)

    def squares(predictor: Any) -> FloatArray:
        """Squared errors over the variance of what happened; (n_origins,)."""
        said = predictor.predict(test.prices, bars=origins).to_numpy()[:, 0]
        errors: FloatArray = (y - said) ** 2 / y.var()
        return errors

    of_members = {name: squares(member) for name, member in fitted["stacking"].members_.items()}
    losses = {name: float(values.mean()) for name, values in of_members.items()}
    best = min(losses, key=losses.__getitem__)
    multiple = test.parameters.move if isinstance(test.parameters, PlantedPattern) else 0.3
    optimal_loss = float(np.mean((y - multiple * test.state[origins]) ** 2) / y.var())
    best_error, rows = _standard_error(of_members[best]), []
    for method, ensemble in fitted.items():
        found = squares(ensemble)
        rows.append(
            EnsembleRow(
                method=method,
                loss=float(found.mean()),
                best_member=best,
                best_loss=losses[best],
                optimal_loss=optimal_loss,
                paired_error=_standard_error(found - of_members[best]),
                best_error=best_error,
                weights={str(name): float(weight) for name, weight in ensemble.weights_[1].items()},
                losses=losses,
                cpu_seconds=seconds,
            )
        )
    return tuple(rows)


def recover_mixture(*, seed: int, n_bars: int = 4_000) -> MixtureRow:
    """Stack members that say independent signals, in a market whose next return is a known mixture of these plus noise."""
    generator = np.random.default_rng(seed)
    signals = {name: 0.01 * generator.standard_normal(n_bars) for name in MIXTURE}
    log_returns = 0.01 * generator.standard_normal(n_bars) + sum(w * signals[name] for name, w in MIXTURE.items())
    prices = _with_log_returns(np.concatenate([[0.0], log_returns[:-1]])).assign(**signals)
    members = {name: _ColumnPredictor(features=(name,)) for name in MIXTURE}
    weights = EnsemblePricePredictor(members, "stacking").fit(prices).weights_[1]
    return MixtureRow(
        weights={name: float(weights[name]) for name in MIXTURE},
        true_weights=MIXTURE,
        standard_error=1.0 / math.sqrt(n_bars),  # Of a regression on independent columns as large as the noise.
    )


def cover_stationary(
    config: PredictorConfig,
    market: StationaryMarket,
    *,
    head: HeadName,
    seed: int,
    n_train: int = 20_000,
    n_calibration: int = 5_000,
    n_test: int = 50_000,
) -> IntervalRow:
    """Fit a predictor to a market that cannot be predicted and count what its 90% intervals hold on another path.

    Args:
        config: of the predictor; head and seed are replaced.
        market: GARCH(1, 1), or independent Student-t log returns.
        head: the distribution that is learned.
        seed: of predictor and paths.
        n_train: bars to learn from.
        n_calibration: bars after these, on which the intervals are made conformal.
        n_test: bars to be judged on.
    """
    paths = _paths(seed, n_train + n_calibration, n_test)
    train, test = (
        garch(n_bars, seed=path).prices if market == "garch" else heavy_tails(n_bars, seed=path)
        for n_bars, path in paths
    )
    # The last target to learn from is known at the first bar to calibrate on.
    predictor, seconds = _fitted(config, train, seed, bars=np.arange(n_train - 1), head=head)
    y, origins = _outcomes(train, 1, first=n_train)
    conformal = SplitConformal(0.9).fit_quantiles(y, *_interval(predictor, train, origins))
    y, origins = _outcomes(test, 1)
    low, high = _interval(predictor, test, origins)
    return IntervalRow(
        coverage=coverage(y, low, high),
        conformal_coverage=coverage(y, *conformal.interval_from_quantiles(low, high)),
        cpu_seconds=seconds,
    )


def heavy_tails(n_bars: int, *, seed: int) -> pd.DataFrame:
    """Make prices whose log returns are independent Student-t with `TAIL_DEGREES` and a deviation of 1%."""
    scale = 0.01 / math.sqrt(TAIL_DEGREES / (TAIL_DEGREES - 2.0))
    return _with_log_returns(scale * np.random.default_rng(seed).standard_t(TAIL_DEGREES, n_bars))


def cover_break(config: PredictorConfig, *, seed: int, n_train: int = 2_000) -> BreakRow:
    """Fit a predictor before a threefold rise of volatility and let `AdaptiveConformal` correct its 90% intervals through it.

    Scores are in units of half the width that the predictor gives its own interval at the bar.
    """
    at = n_train + 2 * BREAK_BARS
    market = volatility_break(at + 2 * BREAK_BARS, at=at, factor=3.0, seed=30_000 + seed)
    predictor, seconds = _fitted(config, market.prices, seed, bars=np.arange(n_train - 1))
    y, origins = _outcomes(market.prices, 1, first=n_train)
    low, high = _interval(predictor, market.prices, origins)
    held = (low <= y) & (y <= high)
    ends = AdaptiveConformal(0.9).run(y, 0.5 * (low + high), 0.5 * (high - low))
    adapted = (ends[0] <= y) & (y <= ends[1])
    first = at - 1 - n_train  # The origin whose outcome is the first wild bar.
    before, during, after = (
        float(adapted[first + k * BREAK_BARS : first + (k + 1) * BREAK_BARS].mean()) for k in (-1, 0, 1)
    )
    plain = float(held[first : first + BREAK_BARS].mean())
    return BreakRow(before=before, during=during, after=after, plain_during=plain, cpu_seconds=seconds)


# Inside.


class _ColumnPredictor(NaivePredictor):
    """Expects what a column of the data says."""

    predictor_type: ClassVar[str] = "column"
    config_class: ClassVar[type[NaiveConfig]] = RidgeConfig

    def _learn(self, table: ForecastTable, origins: IntArray) -> float:
        return 1.0

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        return table.features[origins]


def _paths(seed: int, n_train: int, n_test: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Length and seed of the path to learn from and of the one to be judged on."""
    return (n_train, 10_000 + seed), (n_test, 20_000 + seed)


def _predictor(config: PredictorConfig | RidgeConfig, seed: int, **changes: Any) -> Any:
    if isinstance(config, PredictorConfig):
        changes["seed"] = seed
    return _KINDS[type(config)](config, **changes)


def _fitted(
    config: PredictorConfig | RidgeConfig,
    prices: pd.DataFrame,
    seed: int,
    *,
    bars: IntArray | None = None,
    **changes: Any,
) -> tuple[Any, float]:
    """Return a fitted predictor and the processor seconds that the fit took."""
    began = time.process_time()
    predictor = _predictor(config, seed, **changes).fit(prices, bars=bars)
    return predictor, time.process_time() - began


def _outcomes(prices: pd.DataFrame, horizon: int, *, first: int = _FIRST_ORIGIN) -> tuple[FloatArray, IntArray]:
    """Return what followed and the origins it followed, from the first one on."""
    origins = np.arange(first, len(prices) - horizon)
    return forward_returns(Bars.from_frame(prices), (horizon,))[origins, 0, 0], origins


def _said(predictor: Any, prices: pd.DataFrame, origins: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return expected log returns (n_origins,) and their quantiles (n_origins, n_levels)."""
    mean: FloatArray = predictor.predict(prices, bars=origins).to_numpy()[:, 0]
    quantiles: FloatArray = predictor.predict_quantiles(prices, LEVELS, bars=origins).to_numpy()
    return mean, quantiles


def _interval(predictor: Any, prices: pd.DataFrame, origins: IntArray) -> FloatArray:
    """Return the ends of the 90% interval; (2, n_origins)."""
    ends: FloatArray = predictor.predict_quantiles(prices, (0.05, 0.95), bars=origins).to_numpy().T
    return ends


def _ensembles(members: Mapping[str, Any], prices: pd.DataFrame) -> dict[EnsembleMethod, EnsemblePricePredictor]:
    """Fit an ensemble by each method; three folds are enough to weigh members by thousands of bars."""
    window_size = max(member.config.window_size for member in members.values())
    splitter = PurgedKFold(3, purge_size=1, embargo_size=window_size)
    methods: tuple[EnsembleMethod, ...] = ("stacking", "weighted", "simple", "voting")
    # Methods share the fits through their checkpoints; stacking, which needs all of them, makes them.
    with tempfile.TemporaryDirectory() as folder:
        return {
            method: EnsemblePricePredictor(members, method, splitter=splitter).fit(prices, checkpoint=folder)
            for method in methods
        }


def _standard_error(values: FloatArray) -> float:
    """Standard error of a mean: half of the central 68.3% of its block bootstrap."""
    found = block_bootstrap_interval(
        lambda rows: rows.mean(axis=-1), values, n_samples=400, confidence=0.6827, vectorised=True
    )
    return 0.5 * (found.high - found.low)


def _with_log_returns(log_returns: FloatArray) -> pd.DataFrame:
    """Return closes that start near 100 and move as given."""
    calendar = random_walk(len(log_returns), seed=0).prices
    return calendar.assign(close=100.0 * np.exp(np.cumsum(log_returns)))
