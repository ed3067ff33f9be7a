"""What regimes are called, in which order they come, and which of two fits' regimes are the same."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from ml.tradingbots.components.regime_detector import FloatArray

# Standard errors of their difference by which means of returns must lie apart before regimes are named for them.
SEPARATION = 2.0


def are_separated(means: FloatArray, errors: FloatArray) -> bool:
    """Whether each mean is at least two standard errors of the difference away from the next; (n_regimes,) each."""
    order = np.argsort(means)
    return len(means) > 1 and all(
        means[j] - means[i] >= SEPARATION * math.hypot(errors[i], errors[j]) and means[j] > means[i]
        for i, j in pairwise(order.tolist())
    )


def regime_order(means: FloatArray, deviations: FloatArray, *, by_mean: bool) -> list[int]:
    """Return regimes from the highest mean return to the lowest, or from calm to wild."""
    ranks = -means if by_mean else deviations
    order: list[int] = np.argsort(ranks, kind="stable").tolist()
    return order


def regime_names(means: FloatArray, deviations: FloatArray, *, by_mean: bool) -> tuple[str, ...]:
    """Name regimes bull, sideways and bear for their mean returns, or else for their volatility.

    Args:
        means: mean return in each regime; (n_regimes,).
        deviations: standard deviation of the return in each regime; (n_regimes,).
        by_mean: whether the means are known well enough.

    Returns:
        One name for each, all different.
    """
    order = regime_order(means, deviations, by_mean=by_mean)
    if by_mean:
        return _ranked(order, "bull", "sideways", "bear")
    return _ranked(order, "low_volatility", "medium_volatility", "high_volatility")


def _ranked(order: list[int], first: str, between: str, last: str) -> tuple[str, ...]:
    n_regimes = len(order)
    if n_regimes == 1:
        return ("all",)
    middle = [between] if n_regimes == 3 else [f"{between}_{number}" for number in range(1, n_regimes - 1)]
    names = [""] * n_regimes
    for regime, name in zip(order, [first, *middle, last], strict=True):
        names[regime] = name
    return tuple(names)


def bhattacharyya(mean: FloatArray, covariance: FloatArray, other_mean: FloatArray, other: FloatArray) -> float:
    """Bhattacharyya distance of two Gaussians, 0 where they are the same; no matter in which units features are."""
    middle = 0.5 * (covariance + other)
    off = mean - other_mean
    log_size = np.linalg.slogdet(middle)[1] - 0.5 * (np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(other)[1])
    return float(0.125 * off @ np.linalg.solve(middle, off) + 0.5 * log_size)


def matching_order(
    means: FloatArray, covariances: FloatArray, other_means: FloatArray, other_covariances: FloatArray
) -> list[int]:
    """Return which regime goes with each of another fit's, so that distances add up to the least (Kuhn, 1955)."""
    distances = np.array(
        [
            [bhattacharyya(m, c, own_m, own_c) for own_m, own_c in zip(means, covariances, strict=True)]
            for m, c in zip(other_means, other_covariances, strict=True)
        ]
    )
    return [int(k) for k in linear_sum_assignment(distances)[1]]
