"""How forecasts of several predictors become one: votes, and weights found on forecasts out of fold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]

from ml.tradingbots.components.forecast_table import FloatArray


def majority(forecasts: npt.ArrayLike) -> FloatArray:
    """Return the mean of those forecasts whose sign most have; 0 where as many are above zero as below.

    Args:
        forecasts: (n_members, ...); exact zeros do not vote.

    >>> majority([[1.0, 1.0], [3.0, -1.0], [-5.0, 0.0]]).tolist()
    [2.0, 0.0]
    """
    values = np.asarray(forecasts, dtype=np.float64)
    winner = np.sign(np.sign(values).sum(0))
    agrees = (np.sign(values) == winner) & (winner != 0.0)
    result: FloatArray = np.where(agrees, values, 0.0).sum(0) / np.maximum(agrees.sum(0), 1)
    # A member without a forecast leaves none to the ensemble, as an average does.
    return np.where(np.isnan(values).any(0), np.nan, result)


def inverse_error_weights(forecasts: npt.ArrayLike, targets: npt.ArrayLike) -> FloatArray:
    """Return weights in inverse proportion to mean squared errors, with a sum of 1 (Bates & Granger, 1969).

    Args:
        forecasts: (n_members, n_rows).
        targets: (n_rows,).

    >>> inverse_error_weights([[1.0, 1.0], [2.0, 2.0]], [0.0, 0.0]).tolist()
    [0.8, 0.2]
    """
    errors = np.mean((np.asarray(targets) - np.asarray(forecasts)) ** 2, axis=1)
    # A forecast without error would leave nothing to the others, and two of them nothing to divide.
    least = float(np.maximum(errors, 1e-12 * errors.max()).min())
    inverse = least / np.maximum(errors, least) if least > 0.0 else np.ones(len(errors))
    weights: FloatArray = inverse / inverse.sum()
    return weights


def stacking_weights(forecasts: npt.ArrayLike, targets: npt.ArrayLike) -> FloatArray:
    """Return the weights ≥ 0 with a sum ≤ 1 whose weighted sum of forecasts has the least squared error (exact).

    "Zero" is one forecast more, whose weight is what is missing from 1. With a sum of exactly 1 the error is the weighted
    sum of the members' errors, so what is looked for is the shortest vector in their hull; that is a problem of
    non-negative least squares with one row more (Lawson & Hanson, 1974, chapter 23), whose solution is scaled to 1.

    Args:
        forecasts: (n_members, n_rows).
        targets: (n_rows,).

    >>> stacking_weights([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [0.5, 0.25, 0.75]).round(12).tolist()
    [0.5, 0.25]
    """
    target = np.asarray(targets, dtype=np.float64)
    errors = np.vstack([np.zeros_like(target), np.asarray(forecasts, dtype=np.float64)]) - target
    size = float(np.sqrt(np.mean(errors[0] ** 2)))
    if size == 0.0:
        return np.zeros(len(errors) - 1)
    # The triangle of a QR decomposition has the same lengths and angles as all rows.
    triangle = np.linalg.qr(errors.T / (size * np.sqrt(len(target))), mode="r")
    system = np.vstack([triangle, np.ones(len(errors))])
    solution, _ = nnls(system, np.append(np.zeros(len(triangle)), 1.0))
    weights: FloatArray = solution[1:] / solution.sum()
    return weights
