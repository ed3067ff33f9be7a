"""Expectation maximisation of hidden Markov models from several starts (Baum et al., 1970; Dempster et al., 1977)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ml.tradingbots.components.clustering import IntArray, rough_clusters
from ml.tradingbots.components.hmm_emissions import DEGREES_RANGE, Covariance, Emission, Emissions
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories
from ml.tradingbots.core.hidden_markov import SMALLEST, Smoothing, smooth_sequences

View: TypeAlias = Literal["both", "level", "size"]

# What first clusters are made of, start by start: the bar itself or averages around it, of features and of their size.
# Regimes that differ in volatility alone cannot be seen in single returns, and faint means only in long averages.
_VIEWS: tuple[tuple[View, int], ...] = (
    ("both", 1),
    ("size", 20),
    ("level", 20),
    ("size", 5),
    ("level", 60),
    ("both", 60),
    ("level", 1),
    ("both", 5),
)
# Iterations after which the best start is chosen, and goes on alone.
_SHORT_RUN = 14
# Bars on which starts are tried where there are more.
_BARS_TO_START = 50_000
# Steps of EM that one extrapolation may stand for.
_LONGEST_STEP = 1e4
_FIRST_DEGREES = 10.0


class EMSettings(Protocol):
    """What EM needs to be told; `GaussianHMMConfig` says what each is."""

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""

    @property
    def covariance(self) -> Covariance:
        """Diagonal or full."""

    @property
    def emission(self) -> Emission:
        """Gaussian or Student-t."""

    @property
    def degrees_of_freedom(self) -> float | None:
        """Fixed, or None."""

    @property
    def n_starts(self) -> int:
        """Number of starts."""

    @property
    def max_iterations(self) -> int:
        """Most iterations."""

    @property
    def tolerance(self) -> float:
        """Gain in log-likelihood below which it ends."""

    @property
    def sticky(self) -> float:
        """Pseudo-counts on the diagonal."""

    @property
    def min_variance(self) -> float:
        """Least variance."""

    @property
    def seed(self) -> int:
        """Of the starts."""


@dataclass(frozen=True)
class Parameters:
    """A hidden Markov model of standardised features."""

    emissions: Emissions
    transition: FloatArray
    """(n_regimes, n_regimes)."""


@dataclass(frozen=True)
class Fit:
    """What EM found."""

    parameters: Parameters
    objectives: list[float]
    """Log-likelihood, plus the log of the prior where there is one, of the start and of every step that was kept."""
    smoothing: Smoothing
    """Of the training bars."""
    converged: bool


def fit_parameters(histories: Histories, settings: EMSettings) -> Fit:
    """Fit a model to standardised features; of several starts the one that is best after a short run is finished.

    Starts are tried on the first bars alone where there are very many. Regimes are taken as equally likely at the first bar of
    a history: what one first bar says of the next history's is nothing, and with it fixed every step is an exact one of EM.
    """
    some = histories if len(histories.rows) <= _BARS_TO_START else histories.first(_BARS_TO_START)
    runs = [_Run(some, settings, start) for start in _starts(some, settings)]
    for run in runs:
        run.iterate(min(_SHORT_RUN, settings.max_iterations))
    # A regime that holds fewer bars than it has parameters has shrunk onto them; its likelihood is an accident.
    needed = histories.rows.shape[1] + 1.0
    sound = [run for run in runs if run.smoothing.smoothed.sum(axis=0).min() > needed]
    best = max(sound or runs, key=lambda run: run.objectives[-1])
    best.iterate(settings.max_iterations)
    if some is not histories:
        best = _Run(histories, settings, best.parameters)
        best.iterate(settings.max_iterations)
    return Fit(best.parameters, best.objectives, best.smoothing, best.converged)


class _Run:
    """EM from one start, with extrapolated steps (SQUAREM, Varadhan & Roland, 2008) that are kept where they gain."""

    def __init__(self, histories: Histories, settings: EMSettings, start: Parameters) -> None:
        self.histories, self.settings = histories, settings
        self.objectives: list[float] = []
        self.n_iterations = 0
        self.n_idle = 0
        self._keep(self._expect(start))

    @property
    def converged(self) -> bool:
        """Whether two rounds in a row gained next to nothing."""
        return self.n_idle >= 2

    def iterate(self, n_iterations: int) -> None:
        """Go on until it converges, or `n_iterations` expectations have been taken in all."""
        while not self.converged and self.n_iterations < n_iterations:
            before = self.objectives[-1]
            first = self.parameters
            second = self._improved()
            self._keep(self._expect(second))
            third = self._improved()
            farther = extrapolated(first, second, third, self.settings.min_variance)
            found = None if farther is None else self._expect(farther)
            if found is None or not found.objective >= self.objectives[-1]:
                found = self._expect(third)
            self._keep(found)
            self.n_idle = self.n_idle + 1 if self.objectives[-1] - before < self.settings.tolerance else 0

    def _keep(self, found: _Expectation) -> None:
        self.parameters, self.squares, self.smoothing = found.parameters, found.squares, found.smoothing
        self.objectives.append(found.objective)

    def _expect(self, parameters: Parameters) -> _Expectation:
        """Find what parameters say of the bars."""
        self.n_iterations += 1
        settings, transition = self.settings, parameters.transition
        uniform = np.full(settings.n_regimes, 1.0 / settings.n_regimes)
        squares = parameters.emissions.squares(self.histories.rows)
        log_density = parameters.emissions.log_density(squares)
        smoothing = smooth_sequences(log_density, uniform, transition, self.histories.starts)
        prior = settings.sticky * float(np.log(np.diag(transition)).sum()) if settings.sticky > 0.0 else 0.0
        return _Expectation(parameters, squares, smoothing, float(smoothing.log_scores.sum()) + prior)

    def _improved(self) -> Parameters:
        settings, found = self.settings, self.smoothing
        emissions = self.parameters.emissions.improved(
            self.histories.rows,
            found.smoothed,
            self.squares,
            min_variance=settings.min_variance,
            fixed_degrees=settings.degrees_of_freedom,
        )
        counts = found.transition_counts + settings.sticky * np.eye(settings.n_regimes)
        total = counts.sum(axis=1, keepdims=True)
        known = total > 0.0
        transition = np.where(known, counts / np.where(known, total, 1.0), self.parameters.transition)
        return Parameters(emissions, transition)


@dataclass(frozen=True)
class _Expectation:
    """What parameters say of the bars."""

    parameters: Parameters
    squares: FloatArray
    smoothing: Smoothing
    objective: float


def extrapolated(first: Parameters, second: Parameters, third: Parameters, min_variance: float) -> Parameters | None:
    """Return where three steps of EM in a row are heading, or None where they head nowhere that is allowed."""
    points = [_coordinates(parameters) for parameters in (first, second, third)]
    step, bend = points[1] - points[0], points[2] - 2.0 * points[1] + points[0]
    size = float(np.linalg.norm(bend))
    if size == 0.0:
        return None
    length = max(1.0, min(float(np.linalg.norm(step)) / size, _LONGEST_STEP))
    found = _from_coordinates(points[0] + 2.0 * length * step + length**2 * bend, first)
    emissions = found.emissions
    if not np.isfinite(emissions.scales).all() or np.linalg.eigvalsh(emissions.scales).min() < min_variance:
        return None
    student = emissions.degrees[np.isfinite(emissions.degrees)]
    low, high = DEGREES_RANGE
    return found if ((student >= low) & (student <= high)).all() else None


def _coordinates(parameters: Parameters) -> FloatArray:
    """Lay parameters out as numbers that may take any value."""
    emissions = parameters.emissions
    factors = np.linalg.cholesky(emissions.scales)
    roots = np.diagonal(factors, axis1=1, axis2=2)
    below = factors * np.tri(factors.shape[1], k=-1) / roots[:, :, None]
    transition = np.log(np.maximum(parameters.transition, SMALLEST))
    degrees = np.log(np.where(np.isfinite(emissions.degrees), emissions.degrees, 1.0))
    return np.concatenate([part.ravel() for part in (emissions.means, np.log(roots), below, transition, degrees)])


def _from_coordinates(values: FloatArray, like: Parameters) -> Parameters:
    """Turn `_coordinates` back."""
    emissions, (n_regimes, n_features) = like.emissions, like.emissions.means.shape
    sizes = [n_regimes * n_features] * 2 + [n_regimes * n_features**2, n_regimes**2]
    means, roots, below, transition, degrees = np.split(values, np.cumsum(sizes))
    # Far out of any reach, but still a number.
    roots = np.exp(np.clip(roots.reshape(n_regimes, n_features), -50.0, 50.0))
    factors = roots[:, :, None] * (below.reshape(n_regimes, n_features, n_features) + np.eye(n_features))
    logits = transition.reshape(n_regimes, n_regimes)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    is_student = np.isfinite(emissions.degrees)
    new = Emissions(
        means.reshape(n_regimes, n_features),
        factors @ factors.transpose(0, 2, 1),
        np.where(is_student, np.exp(np.clip(degrees, -50.0, 50.0)), np.inf) if is_student.any() else emissions.degrees,
        emissions.is_diagonal,
    )
    return Parameters(new, chances / chances.sum(axis=1, keepdims=True))


def _starts(histories: Histories, settings: EMSettings) -> Iterator[Parameters]:
    """Yield parameters to start from, by clusters of different views of the bars."""
    rng = np.random.default_rng(settings.seed)
    if settings.n_regimes == 1:
        yield _from_labels(histories, np.zeros(len(histories.rows), dtype=np.int64), settings)
        return
    for number in range(settings.n_starts):
        view, window = _VIEWS[number % len(_VIEWS)]
        points = _viewed(histories.rows, view, window)
        yield _from_labels(histories, rough_clusters(points, settings.n_regimes, rng), settings)


def _viewed(rows: FloatArray, view: View, window: int) -> FloatArray:
    """Averages around each bar of features, of their size, or both, each with a spread of 1."""
    columns = []
    if view in ("both", "level"):
        columns.append(_centered_mean(rows, window))
    if view in ("both", "size"):
        columns.append(_centered_mean(np.abs(rows), window))
    points = np.hstack(columns)
    spread = points.std(axis=0)
    result: FloatArray = (points - points.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    return result


def _centered_mean(rows: FloatArray, window: int) -> FloatArray:
    """Mean of the bars around each, fewer at the ends; only training looks ahead like this."""
    total = np.vstack([np.zeros(rows.shape[1]), np.cumsum(rows, axis=0)])
    places = np.arange(len(rows))
    first = np.maximum(places - window // 2, 0)
    last = np.minimum(places + (window + 1) // 2, len(rows))
    means: FloatArray = (total[last] - total[first]) / (last - first)[:, None]
    return means


def _from_labels(histories: Histories, labels: IntArray, settings: EMSettings) -> Parameters:
    """Return the parameters that labels of the bars suggest, none of them certain."""
    rows, n_regimes = histories.rows, settings.n_regimes
    shares = 0.9 * np.eye(n_regimes)[labels] + 0.1 / n_regimes
    student = settings.emission == "student_t"
    degrees = (settings.degrees_of_freedom or _FIRST_DEGREES) if student else math.inf
    shape = (n_regimes, rows.shape[1])
    blank = Emissions(
        np.zeros(shape),
        np.tile(np.eye(shape[1]), (n_regimes, 1, 1)),
        np.full(n_regimes, degrees),
        settings.covariance == "diag",
    )
    emissions = blank.improved(
        rows, shares, np.zeros((len(rows), n_regimes)), min_variance=settings.min_variance, fixed_degrees=degrees
    )
    counts = np.ones((n_regimes, n_regimes))
    goes_on = ~histories.starts[1:]
    np.add.at(counts, (labels[:-1][goes_on], labels[1:][goes_on]), 1.0)
    return Parameters(emissions, counts / counts.sum(axis=1, keepdims=True))
