"""`OnlineHMM`: a hidden Markov model that goes on learning with every bar (Cappé, 2011).

What EM adds up over all bars, expected changes of regime and moments of the features, is kept up to date instead: for every
regime the last bar may be in, what would have been added up. Each bar moves these averages by a step that falls as n^-0.8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ml.tradingbots.components.base_detector import (
    BaseDetector,
    State,
    check_detector_config,
    require_distributions,
    require_shapes,
)
from ml.tradingbots.components.gaussian_hmm import GaussianHMM
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import Histories, Standardiser
from ml.tradingbots.core.hidden_markov import as_start, filter_step

# Deviations beyond which a bar teaches no more: an error in the data must not undo what thousands of bars taught.
_FARTHEST_LEARNED = 100.0


@dataclass(frozen=True, kw_only=True)
class OnlineHMMConfig:
    """Hyperparameters of `OnlineHMM`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """

    n_regimes: int = 2
    """Number of regimes."""
    burn_in_bars: int | None = None
    """First training bars, from which `GaussianHMM` makes the model that learning starts from; None takes 500 for two regimes,
    2,000 for three, 4,500 for four and so on: learning does not leave a poor start of many regimes."""
    step_exponent: float = 0.8
    """Bar n moves averages by n to the minus this; in (0.5, 1]. Near 1 early bars weigh as much as late ones; near 0.5 it
    forgets sooner: at bar 20,000 it remembers 5,500 bars with 0.8, and 760 with 0.6, too few for three regimes."""
    min_step: float = 0.0
    """Step below which it does not fall, where markets change for good: 0.002 remembers some thousand bars."""
    min_variance: float = 1e-4
    """Least variance of a feature in a regime, as a share of that of the burn-in bars."""
    return_feature: int | None = 0
    """Which feature is the return that regimes are named for; None names none."""
    seed: int = 0
    """Of the fit of the burn-in bars."""

    def __post_init__(self) -> None:
        check_detector_config(self)
        if self.burn_in_bars is not None and self.burn_in_bars < 10:
            raise ValueError(f"burn_in_bars must be at least 10, got {self.burn_in_bars}")
        if not 0.5 < self.step_exponent <= 1.0:
            raise ValueError(f"step_exponent must be in (0.5, 1], or it never settles, got {self.step_exponent}")
        if not 0.0 <= self.min_step < 1.0:
            raise ValueError(f"min_step must be in [0, 1), got {self.min_step}")
        if not 0.0 < self.min_variance < 1.0:
            raise ValueError(f"min_variance must be in (0, 1), got {self.min_variance}")

    @property
    def n_burn_in_bars(self) -> int:
        """The number of first training bars that `burn_in_bars` means."""
        return 500 * max(self.n_regimes - 1, 1) ** 2 if self.burn_in_bars is None else self.burn_in_bars


class OnlineHMM(BaseDetector):
    """A hidden Markov model with independent Gaussian features that learns bar by bar.

    `fit` starts from a model of the first bars and learns from the others once, in order. `update` goes on learning; `filter`
    does so from where `fit` left it, and leaves the detector as it is; `reset` forgets what `update` taught.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        means_: as of the last bar, in units of the data; (n_regimes, n_features).
        variances_: likewise; (n_regimes, n_features).
    """

    detector_type: ClassVar[str] = "online_hmm"
    config_class: ClassVar[type[OnlineHMMConfig]] = OnlineHMMConfig
    config: OnlineHMMConfig
    _standardiser: Standardiser
    _start: FloatArray
    """Probability of each regime at the first bar of a history; (n_regimes,)."""
    _learned: FloatArray
    """What `fit` learned, as `State.memory` holds it."""

    @classmethod
    def starting_from(cls, model: GaussianHMM, *, n_bars: int = 20, **changes: Any) -> Self:
        """Return a detector that begins with a model and goes on learning, without `fit`.

        Args:
            model: a fitted model; of its covariances the variances are taken.
            n_bars: number of bars that the model counts for: the first bar is learned from as the one after these.
            **changes: hyperparameters.
        """
        model._require_fitted()
        detector = cls(n_regimes=model.n_regimes, return_feature=model.config.return_feature, **changes)
        detector._begin(model, n_bars)
        detector._state = detector._first_state()
        return detector

    def _begin(self, model: GaussianHMM, n_bars: int) -> None:
        self.n_features_in_, self.feature_names_in_ = model.n_features_in_, model.feature_names_in_
        self._standardiser, self._names = model._standardiser, model.state_names_
        emissions, transition = model._parameters.emissions, model.transition_matrix_
        self._start = as_start(model.initial_probabilities_)
        second = np.diagonal(emissions.covariances, axis1=1, axis2=2) + emissions.means**2
        shares = self._start[:, None]
        average = np.concatenate(
            [part.ravel() for part in (shares * transition, shares, shares * emissions.means, shares * second)]
        )
        self._learned = np.concatenate([[float(n_bars)], np.repeat(average, self.n_regimes)])

    def _learn(self, histories: Histories) -> None:
        config = self.config
        n_first = min(config.n_burn_in_bars, len(histories.rows))
        starts = np.flatnonzero(histories.starts)
        parts = np.split(histories.rows[:n_first], starts[(starts > 0) & (starts < n_first)])
        model = GaussianHMM(
            n_regimes=config.n_regimes,
            covariance="diag",
            min_variance=config.min_variance,
            return_feature=config.return_feature,
            seed=config.seed,
            # A start, and no result.
            max_iterations=200,
            tolerance=0.1,
        ).fit(parts)
        self._begin(model, n_first)
        self.feature_names_in_ = histories.names
        state = self._first_state()
        evidence = self._evidence(histories.rows[n_first:])
        for bar, is_first in zip(evidence, histories.starts[n_first:].tolist(), strict=True):
            state = self._step(self._restarted(state) if is_first else state, bar)
        state = self._restarted(state)
        self._start, self._learned = np.array(state.probability), np.array(state.memory)

    def _restarted(self, state: State) -> State:
        """Begin a new history with what was learned: a regime is as likely as it has been frequent."""
        statistics = self._statistics(state)
        averages = _weighted(statistics, np.array(state.probability))
        memory = np.concatenate([state.memory[:1], np.repeat(averages, self.n_regimes)])
        k = self.n_regimes
        shares = as_start(averages[k * k : k * k + k]).tolist()
        return State(shares, shares, 0.0, memory.tolist())

    # Bar by bar.

    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        evidence: list[list[float]] = self._standardiser.apply(rows).tolist()
        return evidence

    def _first_state(self) -> State:
        self._log_units = float(np.log(self._standardiser.scale).sum())
        start = self._start.tolist()
        return State(start, start, 0.0, self._learned.tolist())

    def _step(self, state: State, evidence: list[float]) -> State:
        n_regimes, row = self.n_regimes, np.array(evidence)
        n_bars = state.memory[0] + 1.0
        step = max(n_bars**-self.config.step_exponent, self.config.min_step)
        statistics, before = self._statistics(state), np.array(state.probability)
        transition, means, variances = self._parameters(_weighted(statistics, before))
        off = row - means
        log_density = (-0.5 * (off * off / variances + np.log(2.0 * math.pi * variances))).sum(axis=1)
        columns = transition.T.tolist()
        probability, _, log_score = filter_step(log_density.tolist(), state.predicted, columns)
        # P(bar before was in l | this one is in k), column by column.
        joint = before[:, None] * transition
        back = joint / np.maximum(joint.sum(axis=0), 1e-300)
        # What each regime of this bar would have been added up with, from each of the one before.
        moved = (1.0 - step) * _through(statistics, back)
        eye, row = np.eye(n_regimes), np.clip(row, -_FARTHEST_LEARNED, _FARTHEST_LEARNED)
        first, second = eye[:, None, :] * row[:, None], eye[:, None, :] * (row * row)[:, None]
        changes = back[:, None, :] * eye  # (from, to, regime of this bar)
        added = np.concatenate([part.reshape(-1, n_regimes) for part in (changes, eye, first, second)])
        statistics = moved + step * added
        new_transition = self._parameters(_weighted(statistics, np.array(probability)))[0]
        predicted = _weighted(new_transition.T, np.array(probability))
        memory = [n_bars, *statistics.ravel().tolist()]
        return State(probability, predicted.tolist(), log_score - self._log_units, memory)

    def _statistics(self, state: State) -> FloatArray:
        """What EM would have added up, per bar, were the last bar in each regime; (n_statistics, n_regimes)."""
        return np.array(state.memory[1:]).reshape(-1, self.n_regimes)

    def _parameters(self, averages: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Transition matrix, means and variances that averages of the statistics give."""
        k, d = self.n_regimes, self.n_features_in_
        changes, shares, first, second = np.split(averages, np.cumsum([k * k, k, k * d]))
        counts = np.maximum(changes.reshape(k, k), 1e-300)
        shares = np.maximum(shares, 1e-300)[:, None]
        means = first.reshape(k, d) / shares
        variances = np.maximum(second.reshape(k, d) / shares - means * means, self.config.min_variance)
        return counts / counts.sum(axis=1, keepdims=True), means, variances

    # What was learned.

    def _now(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        self._require_fitted()
        return self._parameters(_weighted(self._statistics(self._state), np.array(self._state.probability)))

    @property
    def transition_matrix_(self) -> FloatArray:
        """P(next regime is the column | now it is the row), as of the last bar; (n_regimes, n_regimes)."""
        return self._now()[0]

    @property
    def means_(self) -> FloatArray:
        """Mean of the features in each regime as of the last bar, in units of the data; (n_regimes, n_features)."""
        means: FloatArray = self._now()[1] * self._standardiser.scale + self._standardiser.center
        return means

    @property
    def variances_(self) -> FloatArray:
        """Variance of the features in each regime as of the last bar, in units of the data; (n_regimes, n_features)."""
        variances: FloatArray = self._now()[2] * self._standardiser.scale**2
        return variances

    def _arrays(self) -> dict[str, FloatArray]:
        units = {"center": self._standardiser.center, "scale": self._standardiser.scale}
        return {"learned": self._learned, "start": self._start, **units}

    def _take(self, arrays: dict[str, FloatArray]) -> None:
        k, d = self.n_regimes, self.n_features_in_
        n_statistics = k * k + k + 2 * k * d
        require_shapes(arrays, learned=(1 + n_statistics * k,), start=(k,), center=(d,), scale=(d,))
        require_distributions("start", arrays["start"])
        if not (arrays["scale"] > 0.0).all() or arrays["learned"][0] < 0.0:
            raise ValueError("scale must be above 0, and the number of bars at least 0")
        self._learned, self._start = arrays["learned"], arrays["start"]
        self._standardiser = Standardiser(arrays["center"], arrays["scale"])


def _weighted(statistics: FloatArray, weights: FloatArray) -> FloatArray:
    """Sum of columns times weights, in one order whatever the library below; (n_statistics,)."""
    total: FloatArray = statistics[:, 0] * weights[0]
    for k in range(1, len(weights)):
        total = total + statistics[:, k] * weights[k]
    return total


def _through(statistics: FloatArray, back: FloatArray) -> FloatArray:
    """Matrix product, likewise; (n_statistics, n_regimes)."""
    total: FloatArray = statistics[:, 0, None] * back[0]
    for k in range(1, len(back)):
        total = total + statistics[:, k, None] * back[k]
    return total
