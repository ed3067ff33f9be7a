"""How much of a portfolio to hold: one factor on all weights, from its risk, its reward and the drawdown so far.

None of them changes the mix. They take moments of simple returns per bar that were known when the decision is made.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def portfolio_volatility(weights: FloatArray, covariance: FloatArray) -> float:
    """Return the standard deviation of a portfolio's return, in the unit of the covariance's root.

    Args:
        weights: signed shares of equity; (n_assets,).
        covariance: of simple returns; (n_assets, n_assets).

    >>> portfolio_volatility(np.array([1.0, 1.0]), np.diag([9.0, 16.0]))
    5.0
    """
    # A sum of squares, but for rounding.
    return math.sqrt(max(float(weights @ covariance @ weights), 0.0))


def volatility_scale(weights: FloatArray, covariance: FloatArray, target: float) -> float:
    """Return the factor that brings a portfolio to a volatility; 1 where it has none.

    Args:
        weights: signed shares of equity; (n_assets,).
        covariance: of simple returns; (n_assets, n_assets).
        target: standard deviation wanted, in the unit of the covariance's root.

    >>> volatility_scale(np.array([1.0]), np.array([[0.04]]), 0.1)
    0.5
    """
    volatility = portfolio_volatility(weights, covariance)
    return target / volatility if volatility > 0.0 else 1.0


def kelly_scale(weights: FloatArray, mean: FloatArray, covariance: FloatArray, fraction: float) -> float:
    """Return the factor, at most 1, that keeps a portfolio within a fraction of its growth-optimal size.

    A portfolio with mean m and variance v of returns grows fastest at m/v times its size (Kelly, 1956; Thorp, 2006); at
    twice that it does not grow at all. One that is expected to lose is not held.

    Args:
        weights: signed shares of equity; (n_assets,).
        mean: expected simple returns; (n_assets,).
        covariance: of simple returns over the same time; (n_assets, n_assets).
        fraction: share of the growth-optimal size that may be held; 0.5 is half Kelly.

    >>> kelly_scale(np.array([1.0]), np.array([0.01]), np.array([[0.04]]), 0.5)
    0.125
    """
    expected, variance = float(weights @ mean), float(weights @ covariance @ weights)
    if not weights.any():
        return 1.0
    if expected <= 0.0:
        return 0.0
    return min(fraction * expected / variance, 1.0) if variance > 0.0 else 1.0


def drawdown_brake(drawdown: float, start: float, full: float, floor: float) -> float:
    """Return the factor on exposure after a drawdown: 1 up to `start`, `floor` from `full` on, a straight line between.

    Args:
        drawdown: fall from the highest close so far, a fraction.
        start: drawdown at which braking begins.
        full: drawdown at which it is complete, above `start`.
        floor: factor from there on. At 0 the account can never climb out again.

    >>> drawdown_brake(0.1, 0.25, 0.75, 0.5), drawdown_brake(0.5, 0.25, 0.75, 0.5), drawdown_brake(0.8, 0.25, 0.75, 0.5)
    (1.0, 0.75, 0.5)
    """
    if drawdown <= start:
        return 1.0
    if drawdown >= full:
        return floor
    return 1.0 - (1.0 - floor) * (drawdown - start) / (full - start)
