"""`GaussianHMM`: a hidden Markov chain of regimes, each with a Gaussian or Student-t distribution of the features."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ml.tradingbots.components.base_detector import (
    BaseDetector,
    State,
    check_detector_config,
    require_distributions,
    require_feature,
    require_shapes,
)
from ml.tradingbots.components.hmm_em import Fit, Parameters, fit_parameters
from ml.tradingbots.components.hmm_emissions import Covariance, Emission, Emissions
from ml.tradingbots.components.regime_detector import FloatArray, SmoothedProbabilities
from ml.tradingbots.components.regime_inputs import Histories, Standardiser, read_rows
from ml.tradingbots.components.regime_names import are_separated, matching_order, regime_names, regime_order
from ml.tradingbots.core.hidden_markov import as_start, filter_step, smooth_sequences, stationary_distribution


@dataclass(frozen=True, kw_only=True)
class GaussianHMMConfig:
    """Hyperparameters of `GaussianHMM`.

    Raises:
        ValueError: a value is of another type than its field, or out of range.
    """

    n_regimes: int = 2
    """Number of regimes; `select_n_regimes` finds one."""
    covariance: Covariance = "full"
    """Whether features depend on each other within a regime."""
    emission: Emission = "gaussian"
    """Distribution of the features in a regime; Student-t where single bars far out should not make a regime of their own."""
    degrees_of_freedom: float | None = None
    """Of the Student-t distributions, above 2; None estimates one for each regime, between 2.1 and 200."""
    n_starts: int = 8
    """Starts of EM; the best after a short run is finished."""
    max_iterations: int = 1_000
    """Passes over the training bars at most."""
    tolerance: float = 1e-4
    """EM ends where two rounds in a row raise the log-likelihood of all training bars by less."""
    sticky: float = 0.0
    """Changes from each regime to itself that are counted on top of those seen (a Dirichlet prior): a thousand make regimes of
    a history of a thousand bars last."""
    min_variance: float = 1e-4
    """Least variance of a regime in any direction, as a share of that of all training bars: no regime shrinks onto one bar."""
    return_feature: int | None = 0
    """Which feature is the return that regimes are named for; None names none."""
    seed: int = 0
    """Of the starts."""

    def __post_init__(self) -> None:
        check_detector_config(self)
        for name in ("n_starts", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tolerance", "min_variance"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.min_variance >= 1.0:
            raise ValueError(f"min_variance must be below 1, the variance of all bars, got {self.min_variance}")
        if self.sticky < 0.0:
            raise ValueError(f"sticky must be at least 0, got {self.sticky}")
        if self.degrees_of_freedom is not None and not self.degrees_of_freedom > 2.0:
            raise ValueError(
                f"degrees_of_freedom must be above 2, or there is no variance, got {self.degrees_of_freedom}; "
                "None estimates them"
            )
        if self.degrees_of_freedom is not None and self.emission == "gaussian":
            raise ValueError('degrees_of_freedom is for emission="student_t", and emission is "gaussian"')


class GaussianHMM(BaseDetector):
    """A hidden Markov model fitted by EM (Hamilton, 1989; Rabiner, 1989), filtered without looking ahead.

    Features are standardised by their training mean and deviation, so their units do not matter. A history begins in a
    regime as often as training bars were in it, and in each with at least one in a thousand. Regimes come from the highest
    mean return to the lowest where means are separated, else from calm to wild; `match_regimes` keeps the order of an earlier
    fit.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.

    Attributes:
        means_: in units of the data; (n_regimes, n_features).
        covariances_: likewise, whatever the emission; (n_regimes, n_features, n_features).
        degrees_of_freedom_: inf for Gaussians; (n_regimes,).
        mean_errors_: standard errors of the means, see `docs/regimes.md`; (n_regimes, n_features).
        initial_probabilities_: of each regime at the first bar of a history; (n_regimes,).
        objectives_: log-likelihood of the training bars (with `sticky` plus the log of the prior, up to a constant) at the
            start and after every step of EM; it never falls. Every regime is as likely as any at the first bar here.
        converged_: whether EM ended by itself.
    """

    detector_type: ClassVar[str] = "gaussian_hmm"
    config_class: ClassVar[type[GaussianHMMConfig]] = GaussianHMMConfig
    config: GaussianHMMConfig
    mean_errors_: FloatArray
    initial_probabilities_: FloatArray
    objectives_: FloatArray
    converged_: bool
    _parameters: Parameters
    _standardiser: Standardiser

    @classmethod
    def from_parameters(
        cls,
        means: npt.ArrayLike,
        covariances: npt.ArrayLike,
        transition_matrix: npt.ArrayLike,
        *,
        initial_probabilities: npt.ArrayLike | None = None,
        degrees_of_freedom: npt.ArrayLike | None = None,
        return_feature: int = 0,
    ) -> Self:
        """Return the model with known parameters, in the order given.

        Args:
            means: (n_regimes, n_features), or (n_regimes,) for one feature.
            covariances: (n_regimes, n_features, n_features), or (n_regimes,), variances of one feature.
            transition_matrix: P(next regime is the column | now it is the row).
            initial_probabilities: at the first bar of a history; None: the chain's long run.
            degrees_of_freedom: one number for all or (n_regimes,), above 2, for Student-t distributions with these
                covariances; None: Gaussians.
            return_feature: which feature is the return, for the names.

        Raises:
            ValueError: a shape is wrong, rows of probabilities do not sum to 1, or a covariance is none.
        """
        means, covariances = np.array(means, dtype=np.float64), np.array(covariances, dtype=np.float64)
        transition = np.array(transition_matrix, dtype=np.float64)
        if means.ndim == 1 and covariances.ndim == 1:
            means, covariances = means[:, None], covariances[:, None, None]
        n_regimes, n_features = means.shape if means.ndim == 2 else (0, 0)
        wanted = (n_regimes, n_features, n_features), (n_regimes, n_regimes)
        if not n_regimes * n_features or (covariances.shape, transition.shape) != wanted:
            raise ValueError(
                "means must be (n_regimes, n_features), covariances (n_regimes, n_features, n_features) and transition_matrix "
                f"(n_regimes, n_regimes), got shapes {means.shape}, {covariances.shape} and {transition.shape}; means and "
                "variances of one feature may be (n_regimes,) both"
            )
        if not 0 <= return_feature < n_features:
            raise ValueError(f"return_feature must be one of the features, 0 to {n_features - 1}, got {return_feature}")
        if not (np.diagonal(covariances, axis1=1, axis2=2) > 0.0).all():
            raise ValueError(
                "covariances must be positive definite, and a variance is not above 0: give a tiny one instead"
            )
        student = degrees_of_freedom is not None
        degrees = np.broadcast_to(np.asarray(degrees_of_freedom if student else math.inf, np.float64), (n_regimes,))
        if not (degrees > 2.0).all():
            raise ValueError(f"degrees_of_freedom must be above 2, or there is no variance, got {degrees.tolist()}")
        model = cls(n_regimes=n_regimes, return_feature=return_feature, emission="student_t" if student else "gaussian")
        initial = stationary_distribution(transition) if initial_probabilities is None else initial_probabilities
        # Units in which the features of all regimes together are about 1, as after a fit.
        spread = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2).mean(axis=0) + means.var(axis=0))
        center = means.mean(axis=0)
        model.n_features_in_, model.feature_names_in_ = n_features, None
        model._take(
            {
                "means": (means - center) / spread,
                "scales": covariances / np.outer(spread, spread) * (1.0 - 2.0 / degrees)[:, None, None],
                "degrees": np.array(degrees if student else np.zeros(n_regimes)),
                "transition": transition,
                "initial": np.array(initial, dtype=np.float64),
                "center": center,
                "scale": spread,
                "mean_errors": np.zeros_like(means),
                "objectives": np.zeros(1),
                "converged": np.ones(()),
            }
        )
        means, errors, _ = model._returns_of_regimes()
        model._name(are_separated(means, errors))
        model._state = model._first_state()
        return model

    # Learning.

    def _learn(self, histories: Histories) -> None:
        self._check_enough(histories)
        self._standardiser = Standardiser.of(histories)
        rows = self._standardiser.apply(histories.rows)
        standardised = Histories(rows, histories.starts, histories.names)
        fit = fit_parameters(standardised, self.config)
        self._parameters = fit.parameters
        self.objectives_, self.converged_ = np.array(fit.objectives), fit.converged
        # Not the chain's long run: where the last regime of the training bars is never left, that has no room for others.
        self.initial_probabilities_ = as_start(fit.smoothing.smoothed.mean(axis=0))
        self.mean_errors_ = self._errors_of_means(fit.smoothing.smoothed)
        if self.config.return_feature is not None:
            means, errors, deviations = self._returns_of_regimes()
            by_mean = are_separated(means, errors) and self._beats_one_regime(fit, standardised)
            self._reorder(regime_order(means, deviations, by_mean=by_mean))
            self._name(by_mean)
        else:
            self._names = tuple(f"regime_{number}" for number in range(self.n_regimes))
        if not fit.converged:
            warnings.warn(
                f"EM did not converge in {self.config.max_iterations} iterations: raise max_iterations or tolerance, or ask "
                "for fewer regimes",
                RuntimeWarning,
                stacklevel=4,
            )

    def _beats_one_regime(self, fit: Fit, histories: Histories) -> bool:
        """Whether there is more than one regime at all, by BIC: in plain noise EM finds two whose means differ, too."""
        alone = type(self)(replace(self.config, n_regimes=1))
        gain = fit.smoothing.log_scores.sum() - fit_parameters(histories, alone.config).smoothing.log_scores.sum()
        n_bars, n_features = histories.rows.shape
        extra = self._n_parameters(n_features) - alone._n_parameters(n_features)
        return bool(2.0 * gain > extra * math.log(n_bars))

    def _check_enough(self, histories: Histories) -> None:
        n_bars, n_features = histories.rows.shape
        needed = self._n_parameters(n_features)
        if n_bars < needed:
            raise ValueError(
                f"X has {n_bars} bars, and {self.n_regimes} regimes of {n_features} features have {needed} parameters: "
                "give at least as many bars, better a hundred times as many, or ask for fewer regimes"
            )
        # Many bars are told apart by a few of them.
        n_distinct = len(np.unique(histories.rows[:1_000], axis=0))
        if n_distinct < self.n_regimes:
            n_distinct = len(np.unique(histories.rows, axis=0))
        if n_distinct < self.n_regimes:
            raise ValueError(f"X has {n_distinct} distinct bars, too few for n_regimes={self.n_regimes}: ask for fewer")
        require_feature(self.config, "return_feature", n_features)

    def _n_parameters(self, n_features: int) -> int:
        spread = n_features if self.config.covariance == "diag" else n_features * (n_features + 1) // 2
        estimated = self.config.emission == "student_t" and self.config.degrees_of_freedom is None
        return self.n_regimes * (n_features + spread + int(estimated) + self.n_regimes - 1)

    def _errors_of_means(self, smoothed: FloatArray) -> FloatArray:
        # A bar that is in a regime with probability p tells p² as much of its mean as one that is in it for certain: p
        # counts it, and p (1 - p) is lost for not knowing (Louis, 1982, with the regimes of bars as if independent).
        effective = np.maximum((smoothed**2).sum(axis=0), 1e-8)
        variances = np.diagonal(self._parameters.emissions.covariances, axis1=1, axis2=2)
        errors: FloatArray = np.sqrt(variances / effective[:, None]) * self._standardiser.scale
        return errors

    def _returns_of_regimes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of the return in each regime, its standard error, and the return's deviation."""
        feature = self.config.return_feature
        assert feature is not None
        deviations = np.sqrt(self.covariances_[:, feature, feature])
        return self.means_[:, feature], self.mean_errors_[:, feature], deviations

    def _reorder(self, order: list[int]) -> None:
        emissions, transition = self._parameters.emissions, self._parameters.transition
        self._parameters = Parameters(emissions.reordered(order), transition[np.ix_(order, order)])
        self.initial_probabilities_ = self.initial_probabilities_[order]
        self.mean_errors_ = self.mean_errors_[order]

    def _name(self, by_mean: bool) -> None:
        means, _, deviations = self._returns_of_regimes()
        self._names = regime_names(means, deviations, by_mean=by_mean)

    def match_regimes(self, reference: GaussianHMM) -> Self:
        """Put the regimes in the order of another fit's, so that an index goes on meaning the same; begins a new history.

        Regimes are paired so that the Bhattacharyya distances of their distributions add up to the least, a Student-t
        standing for the Gaussian of its mean and covariance. Names stay with their regimes.

        Args:
            reference: fitted on the same features, with as many regimes.

        Returns:
            The detector itself.

        Raises:
            ValueError: the other has other features or another number of regimes.
        """
        self._require_fitted()
        reference._require_fitted()
        for name in ("n_regimes", "n_features_in_", "feature_names_in_"):
            if getattr(self, name) != getattr(reference, name):
                raise ValueError(
                    f"reference must have the same {name}: it has {getattr(reference, name)}, "
                    f"this detector {getattr(self, name)}"
                )
        order = matching_order(self.means_, self.covariances_, reference.means_, reference.covariances_)
        self._reorder(order)
        self._names = tuple(self._names[k] for k in order)
        self.reset()
        return self

    # Filtering.

    def _evidence(self, rows: FloatArray) -> list[list[float]]:
        emissions = self._parameters.emissions
        evidence: list[list[float]] = emissions.log_density(emissions.squares(self._standardiser.apply(rows))).tolist()
        return evidence

    def _first_state(self) -> State:
        self._columns = self._parameters.transition.T.tolist()
        # The density of a feature in its own units is that of the standardised one over its scale.
        self._log_units = float(np.log(self._standardiser.scale).sum())
        initial = self.initial_probabilities_.tolist()
        return State(initial, initial, 0.0, [])

    def _step(self, state: State, evidence: list[float]) -> State:
        probability, predicted, log_score = filter_step(evidence, state.predicted, self._columns)
        return State(probability, predicted, log_score - self._log_units, [])

    @property
    def last_log_score_(self) -> float:
        """Log density of the bar last given to `update`, given those before it; 0 before the first."""
        self._require_fitted()
        return self._state.log_score

    def score(self, X: Any, y: None = None) -> float:
        """Return the mean log density of a bar given those before it."""
        return float(np.mean(self.predictive_log_scores(X)))

    def bic(self, X: Any) -> float:
        """Return the Bayesian information criterion of the training bars (Schwarz, 1978); the lower the better."""
        scores = self.predictive_log_scores(X)
        return float(self._n_parameters(self.n_features_in_) * math.log(len(scores)) - 2.0 * scores.sum())

    # Hindsight and simulation.

    def smooth_for_analysis(self, X: Any) -> SmoothedProbabilities:
        """Return the probability of each regime at each bar given all bars, later ones included.

        For pictures and for studying the past. What is done at a bar must come from `filter` or `predict_next`.
        """
        self._require_fitted()
        log_density = np.array(self._evidence(read_rows(X, self.n_features_in_, self.feature_names_in_)))
        starts = np.arange(len(log_density)) == 0
        found = smooth_sequences(log_density, self.initial_probabilities_, self.transition_matrix_, starts)
        return SmoothedProbabilities(found.smoothed, self._names)

    def sample(self, n_bars: int, *, seed: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Draw a history from the model.

        Args:
            n_bars: its length, at least 1.
            seed: seed of the generator.

        Returns:
            Features in units of the data, (n_bars, n_features), and the regime that made each bar, (n_bars,).
        """
        self._require_fitted()
        if n_bars < 1:
            raise ValueError(f"n_bars must be at least 1, got {n_bars}")
        rng = np.random.default_rng(seed)
        emissions = self._parameters.emissions
        thresholds = np.cumsum(self.transition_matrix_, axis=1)[:, :-1].tolist()
        bounds, regimes = np.cumsum(self.initial_probabilities_)[:-1].tolist(), []
        for uniform in rng.random(n_bars).tolist():
            regimes.append(sum(uniform >= bound for bound in bounds))
            bounds = thresholds[regimes[-1]]
        regime = np.array(regimes, dtype=np.int64)
        noise = rng.standard_normal((n_bars, self.n_features_in_))
        degrees = emissions.degrees[regime]
        if np.isfinite(degrees).all():
            noise /= np.sqrt(rng.chisquare(degrees) / degrees)[:, None]
        deviations = (np.linalg.cholesky(emissions.scales)[regime] @ noise[..., None])[..., 0]
        return (emissions.means[regime] + deviations) * self._standardiser.scale + self._standardiser.center, regime

    # What was learned.

    @property
    def transition_matrix_(self) -> FloatArray:
        """P(next regime is the column | now it is the row); (n_regimes, n_regimes)."""
        self._require_learned()
        return self._parameters.transition.copy()

    @property
    def means_(self) -> FloatArray:
        """Mean of the features in each regime, in units of the data; (n_regimes, n_features)."""
        self._require_learned()
        means: FloatArray = self._parameters.emissions.means * self._standardiser.scale + self._standardiser.center
        return means

    @property
    def covariances_(self) -> FloatArray:
        """Covariance of the features in each regime, in units of the data; (n_regimes, n_features, n_features)."""
        self._require_learned()
        scale = self._standardiser.scale
        covariances: FloatArray = self._parameters.emissions.covariances * np.outer(scale, scale)
        return covariances

    @property
    def degrees_of_freedom_(self) -> FloatArray:
        """Degrees of freedom in each regime, inf for Gaussians; (n_regimes,)."""
        self._require_learned()
        return self._parameters.emissions.degrees.copy()

    def _require_learned(self) -> None:
        if not hasattr(self, "_parameters"):
            self._require_fitted()

    def _arrays(self) -> dict[str, FloatArray]:
        emissions = self._parameters.emissions
        return {
            "means": emissions.means,
            "scales": emissions.scales,
            # Files hold finite numbers: 0 stands for the degrees of freedom of a Gaussian.
            "degrees": np.where(np.isfinite(emissions.degrees), emissions.degrees, 0.0),
            "transition": self._parameters.transition,
            "initial": self.initial_probabilities_,
            "center": self._standardiser.center,
            "scale": self._standardiser.scale,
            "mean_errors": self.mean_errors_,
            "objectives": self.objectives_,
            "converged": np.array(float(self.converged_)),
        }

    def _take(self, arrays: dict[str, FloatArray]) -> None:
        k, d = self.n_regimes, self.n_features_in_
        shapes: dict[str, tuple[int, ...]] = {
            "means": (k, d),
            "scales": (k, d, d),
            "degrees": (k,),
            "transition": (k, k),
            "initial": (k,),
            "center": (d,),
            "scale": (d,),
            "mean_errors": (k, d),
            "objectives": arrays["objectives"].shape,
            "converged": (),
        }
        require_shapes(arrays, **shapes)
        require_distributions("transition_matrix", arrays["transition"])
        require_distributions("initial_probabilities", arrays["initial"])
        is_student = self.config.emission == "student_t"
        if not ((arrays["degrees"] > 2.0).all() if is_student else (arrays["degrees"] == 0.0).all()):
            raise ValueError("degrees must be above 2 for Student-t distributions and 0 for Gaussians")
        if not (arrays["scale"] > 0.0).all():
            raise ValueError("scale must be above 0")
        scales = arrays["scales"]
        if not np.allclose(scales, scales.transpose(0, 2, 1)) or not (np.linalg.eigvalsh(scales) > 0.0).all():
            raise ValueError("covariances must be symmetric and positive definite")
        degrees = arrays["degrees"] if is_student else np.full(k, np.inf)
        emissions = Emissions(arrays["means"], scales, degrees, self.config.covariance == "diag")
        self._parameters = Parameters(emissions, arrays["transition"])
        self._standardiser = Standardiser(arrays["center"], arrays["scale"])
        self.initial_probabilities_, self.mean_errors_ = arrays["initial"], arrays["mean_errors"]
        self.objectives_, self.converged_ = arrays["objectives"], bool(arrays["converged"])
