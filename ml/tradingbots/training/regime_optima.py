"""How close hidden Markov models come to what made the data: filters beside the true one, parameters beside their true values.

Markets are those of `REGIME_CASES`, where the filter that knows the parameters is the best there is. A model is fitted on one
sample and judged on another that is the same for all of a case, so that the luck of the bars is shared by both filters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.tradingbots.components.hiddenmarkov import GaussianHMM, OnlineHMM
from ml.tradingbots.core.hidden_markov import filter_sequences, stationary_distribution
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, RegimeSample, sample_regimes

FloatArray = npt.NDArray[np.float64]

FRESH_SEED = 99
"""Of the bars that filters are judged on: 20 histories of 5,000."""
HISTORY_BARS = 5_000
"""Length of a history, where there are several."""
ALTERNATING_STAY = 0.05
"""Probability to stay in a chain that nearly always changes."""
ALTERNATING = GaussianHMM.from_parameters(
    [1.0, -1.0],
    [1.0, 1.0],
    [[ALTERNATING_STAY, 1.0 - ALTERNATING_STAY], [1.0 - ALTERNATING_STAY, ALTERNATING_STAY]],
)
SCALES = (1e-4, 100.0, 1e6)
"""By which features are multiplied to see whether units matter."""
# Of the parameters by which log scores are differentiated, in units where regimes are about 1 wide.
_STEP = 1e-4


@dataclass(frozen=True, kw_only=True)
class RecoveryRow:
    """A model that was fitted on bars of a case, beside the true one."""

    n_bars: int
    """That it was fitted on."""
    accuracy: float
    """Share of fresh bars whose regime its filter has right."""
    best_accuracy: float
    """Of the filter with the true parameters, on the same bars."""
    mean_errors: tuple[float, ...]
    """Estimated mean minus the true one, in standard errors by observed information; one for each regime."""
    variance_errors: tuple[float, ...]
    """Estimated variance over the true one, minus 1."""
    variance_deviations: tuple[float, ...]
    """Standard errors of these, by observed information."""
    stay_errors: tuple[float, ...]
    """Estimated probability to stay minus the true one."""
    cpu_seconds: float
    """Processor time of the fit."""

    @property
    def accuracy_gap(self) -> float:
        """Accuracy below that of the true filter."""
        return self.best_accuracy - self.accuracy

    @property
    def largest_variance_error(self) -> float:
        """The largest relative error of a variance, either way."""
        return float(np.abs(self.variance_errors).max())


@dataclass(frozen=True, kw_only=True)
class StayRow:
    """What was learned of a chain that nearly always changes."""

    n_bars: int
    stays: tuple[float, ...]
    """Estimated probabilities to stay."""

    @property
    def stay_error(self) -> float:
        """The largest distance from the true one."""
        return float(np.abs(np.array(self.stays) - ALTERNATING_STAY).max())


@dataclass(frozen=True, kw_only=True)
class VarianceRow:
    """What `OnlineHMM` learned of the variance of plain noise, from a start nine times as high."""

    n_bars: int
    variance: float
    """1 is right."""

    @property
    def variance_error(self) -> float:
        """Its distance from 1."""
        return abs(self.variance - 1.0)


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """How much units of the features matter."""

    n_bars: int
    largest_difference: float
    """Of any filtered probability between units."""


def true_model(case: str) -> GaussianHMM:
    """Return the model that makes the bars of a case."""
    process = REGIME_CASES[case]
    return GaussianHMM.from_parameters(
        process.mean_log_returns, np.square(process.volatilities), process.transition_matrix
    )


def fresh_sample(case: str) -> RegimeSample:
    """Return the bars on which models of a case are judged."""
    return sample_regimes(REGIME_CASES[case], 20, HISTORY_BARS, seed=FRESH_SEED)


def filter_accuracy(model: GaussianHMM, sample: RegimeSample) -> float:
    """Return the share of bars at which the likeliest filtered regime is the one that made them."""
    right = [model.filter(x).argmax(axis=1) == s for x, s in zip(sample.log_returns, sample.regimes, strict=True)]
    return float(np.mean(right))


def fit_case(case: str, n_bars: int, *, seed: int, **changes: Any) -> tuple[GaussianHMM, list[FloatArray]]:
    """Fit a model on bars of a case, its regimes in the order of the true ones; returns the histories as well.

    Args:
        case: one of `REGIME_CASES`.
        n_bars: number of bars; one history up to 50,000, else histories of `HISTORY_BARS`.
        seed: of the bars and of the fit.
        **changes: hyperparameters.
    """
    process = REGIME_CASES[case]
    n_chains = 1 if n_bars <= 50_000 else n_bars // HISTORY_BARS
    sample = sample_regimes(process, n_chains, n_bars // n_chains, seed=seed)
    histories = list(sample.log_returns)
    model = GaussianHMM(n_regimes=len(process.drifts), seed=seed, **changes)
    return model.fit(histories).match_regimes(true_model(case)), histories


def recover(case: str, n_bars: int, *, seed: int) -> RecoveryRow:
    """Fit a model on a case and compare filter and parameters with the true ones."""
    began = time.process_time()
    model, histories = fit_case(case, n_bars, seed=seed)
    seconds = time.process_time() - began
    true, fresh = true_model(case), fresh_sample(case)
    errors = standard_errors(model, histories)
    k = model.n_regimes
    return RecoveryRow(
        n_bars=n_bars,
        accuracy=filter_accuracy(model, fresh),
        best_accuracy=filter_accuracy(true, fresh),
        mean_errors=_floats((model.means_ - true.means_)[:, 0] / errors[:k]),
        variance_errors=_floats((model.covariances_ / true.covariances_)[:, 0, 0] - 1.0),
        variance_deviations=_floats(errors[k : 2 * k]),
        stay_errors=_floats(np.diag(model.transition_matrix_) - np.diag(true.transition_matrix_)),
        cpu_seconds=seconds,
    )


def standard_errors(model: GaussianHMM, histories: Sequence[FloatArray]) -> FloatArray:
    """Return standard errors of a fitted model of one feature, by the information that its bars hold.

    The information is the sum of outer products of the gradients of the bars' log scores (Berndt, Hall, Hall and Hausman,
    1974), which are uncorrelated where the model is right; gradients are central differences.

    Args:
        model: fitted on the histories, one Gaussian feature.
        histories: (n_bars,) each.

    Returns:
        Of the means, in units of the data; of the logarithms of the variances, which are relative errors of the variances;
        and of the log odds of each regime that may follow against staying, row by row. (n_regimes * (n_regimes + 1),).
    """
    k = model.n_regimes
    deviations = np.sqrt(model.covariances_[:, 0, 0])
    leave = model.transition_matrix_[~np.eye(k, dtype=np.bool_)].reshape(k, k - 1)
    odds = np.log(leave / np.diag(model.transition_matrix_)[:, None])
    parameters = np.concatenate([np.zeros(k), np.zeros(k), odds.ravel()])
    starts = np.zeros(sum(map(len, histories)), dtype=np.bool_)
    starts[np.cumsum([0, *map(len, histories[:-1])])] = True
    rows = np.concatenate(list(histories))

    def log_scores(moved: FloatArray) -> FloatArray:
        means, scales = model.means_[:, 0] + moved[:k] * deviations, deviations * np.exp(0.5 * moved[k : 2 * k])
        transition = _from_odds(moved[2 * k :].reshape(k, k - 1))
        log_density = -0.5 * ((rows[:, None] - means) / scales) ** 2 - np.log(scales)
        return filter_sequences(log_density, stationary_distribution(transition), transition, starts)[1]

    moves = _STEP * np.eye(len(parameters))
    gradients = [(log_scores(parameters + move) - log_scores(parameters - move)) / (2.0 * _STEP) for move in moves]
    information = np.array([[float(one @ other) for other in gradients] for one in gradients])
    errors: FloatArray = np.sqrt(np.diag(np.linalg.inv(information)))
    errors[:k] *= deviations
    return errors


def alternate(*, seed: int, n_bars: int = 5_000) -> StayRow:
    """Fit a chain that nearly always changes."""
    x, _ = ALTERNATING.sample(n_bars, seed=seed)
    return StayRow(n_bars=n_bars, stays=_floats(np.diag(GaussianHMM(seed=seed).fit(x).transition_matrix_)))


def alternate_online(*, seed: int, n_bars: int = 60_000) -> StayRow:
    """Learn the same chain bar by bar, from a start that thinks changes and stays are equally likely."""
    unsure = GaussianHMM.from_parameters([1.5, -1.5], [2.0, 2.0], [[0.5, 0.5], [0.5, 0.5]])
    x, _ = ALTERNATING.sample(n_bars, seed=seed)
    return StayRow(n_bars=n_bars, stays=_floats(np.diag(_taught(unsure, x[:, 0]).transition_matrix_)))


def learn_variance_online(*, seed: int, n_bars: int = 60_000) -> VarianceRow:
    """Learn the variance of plain noise bar by bar, from a start that takes it to be 9 around 2."""
    start = GaussianHMM.from_parameters([2.0], [9.0], [[1.0]])
    taught = _taught(start, np.random.default_rng(seed).standard_normal(n_bars))
    return VarianceRow(n_bars=n_bars, variance=float(taught.variances_[0, 0]))


def rescale(case: str, *, seed: int, n_bars: int = 2_000) -> ScaleRow:
    """Fit the same bars in several units and compare what the filters say."""
    n_regimes = len(REGIME_CASES[case].drifts)
    x = sample_regimes(REGIME_CASES[case], 1, n_bars, seed=seed).log_returns[0]
    plain = GaussianHMM(n_regimes=n_regimes, seed=seed).fit(x).filter(x)
    scaled = [GaussianHMM(n_regimes=n_regimes, seed=seed).fit(scale * x).filter(scale * x) for scale in SCALES]
    return ScaleRow(n_bars=n_bars, largest_difference=max(float(np.abs(found - plain).max()) for found in scaled))


def _taught(start: GaussianHMM, x: FloatArray) -> OnlineHMM:
    detector = OnlineHMM.starting_from(start)
    for value in x.tolist():
        detector.update(value)
    return detector


def _from_odds(odds: FloatArray) -> FloatArray:
    """Transition matrix of the log odds of leaving for each other regime against staying; (n_regimes, n_regimes)."""
    k = len(odds)
    weights = np.ones((k, k))
    weights[~np.eye(k, dtype=np.bool_)] = np.exp(odds).ravel()
    transition: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return transition


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
