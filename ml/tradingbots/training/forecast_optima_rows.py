"""What is found about predictors on markets whose best forecast is known: one row for each fit, made by `forecast_optima`.

R² is against zero, which is the mean of all log returns there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml.tradingbots.components.ensemble_predictor import EnsembleMethod


@dataclass(frozen=True, kw_only=True)
class AutoregressionRow:
    """A predictor beside the optimum of an AR(1), one bar ahead."""

    r2: float
    best_r2: float
    """Of the true expectation on the same bars."""
    theoretical_r2: float
    """phi²."""
    accuracy: float
    """Directional."""
    theoretical_accuracy: float
    """½ + asin(phi) / π."""
    coverage: float
    """Share of the outcomes in the 90% interval."""
    pinball: float
    """Mean over the levels judged, in units of the log return."""
    best_pinball: float
    """Of the true quantiles on the same bars."""
    cpu_seconds: float
    """Processor time of the fit."""

    @property
    def r2_share(self) -> float:
        """R² over that of the optimum on the same bars; NaN where there is nothing to know."""
        return self.r2 / self.best_r2 if self.best_r2 else math.nan

    @property
    def accuracy_gap(self) -> float:
        """Directional accuracy minus the theoretical one."""
        return self.accuracy - self.theoretical_accuracy

    @property
    def pinball_excess(self) -> float:
        """Pinball loss above that of the true quantiles, as a share of it."""
        return self.pinball / self.best_pinball - 1.0


@dataclass(frozen=True, kw_only=True)
class SineRow:
    """A predictor beside the optimum of a noisy sine, one horizon."""

    horizon: int
    r2: float
    best_r2: float
    """Of who knows the process and weighs all phases by what the same window shows (Bayes), on the same bars."""
    linear_r2: float
    """Theoretical R² of the best linear forecast from the window."""
    cpu_seconds: float
    """Processor time of the fit, all horizons together."""

    @property
    def r2_share(self) -> float:
        """R² over that of the optimum on the same bars."""
        return self.r2 / self.best_r2

    @property
    def linear_share(self) -> float:
        """R² over the theoretical one of the best linear forecast, which networks may exceed."""
        return self.r2 / self.linear_r2


@dataclass(frozen=True, kw_only=True)
class PatternRow:
    """A predictor beside the optimum of a planted pattern: does it tell rises from falls, and how far does it see them?"""

    auc: float
    best_auc: float
    """Of the market's state on the same bars."""
    standard_error: float
    """Of an AUC without skill."""
    r2: float
    best_r2: float
    """Of the true expectation on the same bars."""
    cpu_seconds: float
    """Processor time of the fit."""

    @property
    def auc_share(self) -> float:
        """Share of the AUC that is to be gained over ½; above 1 by luck."""
        return (self.auc - 0.5) / (self.best_auc - 0.5)

    @property
    def auc_errors(self) -> float:
        """AUC above ½ in standard errors of one without skill."""
        return (self.auc - 0.5) / self.standard_error

    @property
    def r2_share(self) -> float:
        """R² over that of the optimum on the same bars."""
        return self.r2 / self.best_r2


@dataclass(frozen=True, kw_only=True)
class EnsembleRow:
    """An ensemble beside its best member, in mean squared errors over the variance of the outcome."""

    method: EnsembleMethod
    loss: float
    best_member: str
    """The member with the least loss on the very bars that all are judged on."""
    best_loss: float
    optimal_loss: float
    """Of the true expectation."""
    paired_error: float
    """Standard error of `loss` - `best_loss`, by block bootstrap of the paired differences."""
    best_error: float
    """Standard error of `best_loss`, by block bootstrap."""
    weights: dict[str, float]
    losses: dict[str, float]
    """Of all members."""
    cpu_seconds: float
    """Processor time of the fits; all methods share them."""

    @property
    def excess(self) -> float:
        """Loss above that of the best member, in standard errors of the latter."""
        return (self.loss - self.best_loss) / self.best_error

    @property
    def paired_excess(self) -> float:
        """Loss above that of the best member, in standard errors of the difference; 0 where the ensemble is that member."""
        return (self.loss - self.best_loss) / self.paired_error if self.paired_error else 0.0

    @property
    def r2_share(self) -> float:
        """R² over that of the optimum on the same bars."""
        return (1.0 - self.loss) / (1.0 - self.optimal_loss)

    @property
    def best_r2_share(self) -> float:
        """R² of the best member over that of the optimum."""
        return (1.0 - self.best_loss) / (1.0 - self.optimal_loss)


@dataclass(frozen=True, kw_only=True)
class MixtureRow:
    """Weights of a stack beside those of the mixture that made the market."""

    weights: dict[str, float]
    true_weights: dict[str, float]
    standard_error: float
    """Of each weight."""

    @property
    def largest_error(self) -> float:
        """The weight that is furthest off, in standard errors."""
        distances = [abs(self.weights[name] - weight) for name, weight in self.true_weights.items()]
        return max(distances) / self.standard_error


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """Coverage of 90% intervals on stationary data, as the head says them and made conformal."""

    coverage: float
    conformal_coverage: float
    """After `SplitConformal.fit_quantiles` on bars that were not learned from."""
    cpu_seconds: float
    """Processor time of the fit."""


@dataclass(frozen=True, kw_only=True)
class BreakRow:
    """Coverage of 90% intervals around a threefold rise of volatility."""

    before: float
    """250 bars up to the break."""
    during: float
    """250 bars from it on."""
    after: float
    """The 250 bars after these."""
    plain_during: float
    """Of the predictor's own intervals, which know of no break, from it on."""
    cpu_seconds: float
    """Processor time of the fit."""
