"""How the features of a bar are distributed in each regime: Gaussian or Student-t, and how EM improves them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import scipy.special as special  # type: ignore[import-untyped]
from scipy.optimize import brentq  # type: ignore[import-untyped]

from ml.tradingbots.components.regime_detector import FloatArray

Covariance: TypeAlias = Literal["diag", "full"]
Emission: TypeAlias = Literal["gaussian", "student_t"]

# A Student-t distribution has a variance above 2 degrees of freedom, and is all but Gaussian at the upper end.
DEGREES_RANGE = (2.1, 200.0)


@dataclass(frozen=True)
class Emissions:
    """One distribution of the features for each regime."""

    means: FloatArray
    """(n_regimes, n_features)."""
    scales: FloatArray
    """Covariance of a Gaussian, scale matrix of a Student-t; (n_regimes, n_features, n_features)."""
    degrees: FloatArray
    """Degrees of freedom, inf for a Gaussian; (n_regimes,)."""
    is_diagonal: bool
    """Whether features are independent given the regime (for a Student-t: but for a common scale)."""

    @property
    def covariances(self) -> FloatArray:
        """(n_regimes, n_features, n_features)."""
        # ν / (ν - 2), which is 1 for a Gaussian.
        widening = 1.0 / (1.0 - 2.0 / self.degrees)
        result: FloatArray = self.scales * widening[:, None, None]
        return result

    @cached_property
    def _whitening(self) -> FloatArray:
        """Inverse of the lower Cholesky factor of each scale matrix."""
        return np.linalg.inv(np.linalg.cholesky(self.scales))

    @cached_property
    def _log_heights(self) -> FloatArray:
        """Log density of each regime at its mean; (n_regimes,)."""
        n_features = self.means.shape[1]
        log_roots = np.log(np.diagonal(self._whitening, axis1=1, axis2=2)).sum(axis=1)
        heights: FloatArray = log_roots - 0.5 * n_features * math.log(2.0 * math.pi)
        for k in np.flatnonzero(np.isfinite(self.degrees)):
            nu = self.degrees[k]
            shape = special.gammaln(0.5 * (nu + n_features)) - special.gammaln(0.5 * nu)
            heights[k] = log_roots[k] + shape - 0.5 * n_features * math.log(nu * math.pi)
        return heights

    def squares(self, rows: FloatArray) -> FloatArray:
        """Squared Mahalanobis distance of each bar from each regime; (n_bars, n_regimes)."""
        # Written with sums and products of single numbers, so that a bar's bits do not depend on the bars beside it.
        n_regimes, n_features = self.means.shape
        result = np.zeros((len(rows), n_regimes))
        for k in range(n_regimes):
            off = [rows[:, f] - self.means[k, f] for f in range(n_features)]
            for f in range(n_features):
                whitened = off[f] * self._whitening[k, f, f]
                for g in range(0 if not self.is_diagonal else f, f):
                    whitened = whitened + off[g] * self._whitening[k, f, g]
                result[:, k] += whitened * whitened
        return result

    def log_density(self, squares: FloatArray) -> FloatArray:
        """Log density given squared distances; (n_bars, n_regimes)."""
        result = self._log_heights - 0.5 * squares
        n_features = self.means.shape[1]
        for k in np.flatnonzero(np.isfinite(self.degrees)):
            nu = self.degrees[k]
            # SciPy's log1p takes one number at a time, whatever stands beside it; NumPy's need not.
            result[:, k] = self._log_heights[k] - 0.5 * (nu + n_features) * special.log1p(squares[:, k] / nu)
        return result

    def improved(
        self,
        rows: FloatArray,
        shares: FloatArray,
        squares: FloatArray,
        *,
        min_variance: float,
        fixed_degrees: float | None,
    ) -> Emissions:
        """Return what makes the expected log-likelihood largest (the M-step; for Student-t Liu & Rubin, 1995).

        Args:
            rows: features; (n_bars, n_features).
            shares: probability of each regime at each bar; (n_bars, n_regimes).
            squares: squared distances from these distributions; (n_bars, n_regimes).
            min_variance: least variance in any direction, without which one regime could shrink onto one bar.
            fixed_degrees: degrees of freedom of a Student-t that are not to be estimated.
        """
        means, scales, degrees = self.means.copy(), self.scales.copy(), self.degrees.copy()
        n_features = rows.shape[1]
        for k in range(len(means)):
            share = shares[:, k]
            n_bars = float(share.sum())
            if n_bars < 1e-8:
                continue  # No bar tells anything about it.
            weight = share
            if np.isfinite(degrees[k]):
                pull = (degrees[k] + n_features) / (degrees[k] + squares[:, k])
                weight = share * pull
                if fixed_degrees is None:
                    degrees[k] = _best_degrees(share, pull, n_bars, float(degrees[k]), n_features)
            # einsum, because BLAS hands such thin products to threads, which takes ten times as long where cores are busy.
            means[k] = np.einsum("t,ti->i", weight, rows) / weight.sum()
            off = rows - means[k]
            weighted = weight[:, None] * off
            if self.is_diagonal:
                scales[k] = np.diag(np.maximum(np.einsum("ti,ti->i", weighted, off) / n_bars, min_variance))
            else:
                scales[k] = _with_least_variance(np.einsum("ti,tj->ij", weighted, off) / n_bars, min_variance)
        return Emissions(means, scales, degrees, self.is_diagonal)

    def reordered(self, order: list[int]) -> Emissions:
        """Return the same distributions, regime k being what was order[k]."""
        return Emissions(self.means[order], self.scales[order], self.degrees[order], self.is_diagonal)


def _with_least_variance(matrix: FloatArray, least: float) -> FloatArray:
    """Return the likeliest covariance matrix whose eigenvalues are at least `least`: theirs are cut, directions stay."""
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    if values[0] >= least:
        return matrix
    result: FloatArray = (vectors * np.maximum(values, least)) @ vectors.T
    return result


def _best_degrees(share: FloatArray, pull: FloatArray, n_bars: float, nu: float, n_features: int) -> float:
    """Degrees of freedom that make the expected log-likelihood largest, within their range (Liu & Rubin, 1995, eq. 30)."""
    mean = float(share @ (np.log(pull) - pull)) / n_bars
    constant = 1.0 + mean + special.digamma(0.5 * (nu + n_features)) - math.log(0.5 * (nu + n_features))

    def slope(degrees: float) -> float:
        return float(math.log(0.5 * degrees) - special.digamma(0.5 * degrees) + constant)

    low, high = DEGREES_RANGE
    # It falls from left to right.
    if slope(high) >= 0.0:
        return high
    return low if slope(low) <= 0.0 else float(brentq(slope, low, high, xtol=1e-10))
