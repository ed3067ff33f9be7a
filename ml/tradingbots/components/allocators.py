"""Allocators: from a window of past returns to a portfolio. skfolio's estimators behind one small protocol.

Nothing here optimises; skfolio does. An allocator of one's own needs one method.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from ml.tradingbots.data.names import did_you_mean


@runtime_checkable
class Allocator(Protocol):
    """Anything that turns past returns into weights."""

    def weights(self, returns_window: pd.DataFrame) -> pd.Series[float]:
        """Return the weights wanted.

        Args:
            returns_window: simple returns of past bars, the last one just closed; one column per asset.

        Returns:
            Signed shares of equity, indexed by asset.
        """
        ...


class SkfolioAllocator:
    """One of skfolio's portfolio optimisations, fitted anew to every window.

    Args:
        estimator: anything with skfolio's `fit(X)` and `weights_`; it is cloned, never changed.
    """

    def __init__(self, estimator: Any) -> None:
        if not hasattr(estimator, "fit") or isinstance(estimator, type):
            raise TypeError(
                f"estimator must be an instance of a skfolio optimisation, e.g. MeanRisk(), got {estimator!r}"
            )
        self.estimator = estimator

    def weights(self, returns_window: pd.DataFrame) -> pd.Series[float]:
        """Fit and return the weights.

        Raises:
            ValueError: skfolio found none; the message says for which window.
        """
        # Imported where they are used: skfolio takes seconds.
        from skfolio.exceptions import SkfolioError
        from sklearn.base import clone  # type: ignore[import-untyped]

        try:
            fitted = clone(self.estimator).fit(returns_window)
        except (SkfolioError, ValueError) as error:
            raise ValueError(
                f"{type(self.estimator).__name__} found no weights for the {len(returns_window)} returns up to "
                f"{returns_window.index[-1]}: {error} Use a longer window, leave out assets that do not move, or give the "
                "estimator a fallback (fallback=EqualWeighted())"
            ) from error
        return pd.Series(np.asarray(fitted.weights_, dtype=np.float64), index=returns_window.columns)

    def __repr__(self) -> str:
        """What it fits."""
        return f"SkfolioAllocator({self.estimator!r})"


ALLOCATORS = (
    "equal_weight",
    "inverse_volatility",
    "minimum_variance",
    "max_ratio",
    "mean_risk",
    "risk_budgeting",
    "hierarchical_risk_parity",
)


def list_allocators() -> tuple[str, ...]:
    """Return the names that `create_allocator` knows."""
    return ALLOCATORS


def create_allocator(name: str, **params: Any) -> SkfolioAllocator:
    """Return one of skfolio's optimisations by name.

    `max_ratio` holds the minimum-variance portfolio while every asset's mean return in the window is below the risk-free rate,
    where no ratio can be maximised; `fallback=None` makes that an error.

    Args:
        name: equal_weight, inverse_volatility, minimum_variance, max_ratio (largest mean over risk), mean_risk (utility: mean
            less risk aversion times risk), risk_budgeting or hierarchical_risk_parity.
        **params: of skfolio's estimator, in place of its defaults.

    Raises:
        ValueError: the name is unknown.
        TypeError: the estimator has no such parameter.
    """
    if name not in ALLOCATORS:
        raise ValueError(
            f"unknown allocator {name!r}.{did_you_mean(str(name), ALLOCATORS)} Known: {', '.join(ALLOCATORS)}"
        )
    from skfolio import optimization as skfolio

    goal = skfolio.ObjectiveFunction
    makers: dict[str, tuple[Any, dict[str, Any]]] = {
        "equal_weight": (skfolio.EqualWeighted, {}),
        "inverse_volatility": (skfolio.InverseVolatility, {}),
        "minimum_variance": (skfolio.MeanRisk, {"objective_function": goal.MINIMIZE_RISK}),
        "max_ratio": (skfolio.MeanRisk, {"objective_function": goal.MAXIMIZE_RATIO, "fallback": skfolio.MeanRisk()}),
        "mean_risk": (skfolio.MeanRisk, {"objective_function": goal.MAXIMIZE_UTILITY}),
        "risk_budgeting": (skfolio.RiskBudgeting, {}),
        "hierarchical_risk_parity": (skfolio.HierarchicalRiskParity, {}),
    }
    estimator, defaults = makers[name]
    return SkfolioAllocator(estimator(**(defaults | params)))
