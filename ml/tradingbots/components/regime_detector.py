"""What every regime detector promises, and the wrapper that keeps hindsight away from decisions.

Everything a detector says of bar t uses bars up to t: `filter` and `update` say which regime made bar t, `predict_next` which
one will make bar t + 1. Smoothed probabilities use later bars as well. On regimes of ±10 basis points a strategy on them shows
a Sharpe ratio of 2.9 where the best that can be had is 0.4, so they come in a wrapper that no decision accepts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray: TypeAlias = npt.NDArray[np.float64]


@runtime_checkable
class RegimeDetector(Protocol):
    """Anything that says, bar by bar and without looking ahead, which regime a market is in.

    `X` are features, one row per bar: an array (n_bars, n_features), a DataFrame, or a list of such, one for each history
    (`fit` only).
    """

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""

    @property
    def state_names_(self) -> tuple[str, ...]:
        """What each regime is, in words; (n_regimes,)."""

    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the regimes from training bars, and begin a new history."""

    def filter(self, X: Any) -> FloatArray:
        """Return the probability of each regime at each bar, given the bars up to it; (n_bars, n_regimes)."""

    def predict_next(self, X: Any = None) -> FloatArray:
        """Return the probability of each regime at the bar after each; None: after the last one given to `update`."""

    def update(self, x: Any) -> FloatArray:
        """Take in the next bar, (n_features,), and return the probability of each regime, as `filter` would."""

    def reset(self) -> None:
        """Begin a new history: forget the bars given to `update`."""

    def save(self, path: str | Path) -> Path:
        """Write the detector to a file, with where it is in its history."""

    def load(self, path: str | Path) -> Self:
        """Become the detector in a file."""


class SmoothedProbabilities:
    """Probabilities of regimes that know the future: for pictures and for studying the past, never for decisions.

    It is no array and turns into none, so that it cannot pass for `filter`'s answer by accident.

    Args:
        probabilities: of each regime at each bar given all bars, later ones too; (n_bars, n_regimes).
        state_names: what each regime is.
    """

    def __init__(self, probabilities: FloatArray, state_names: tuple[str, ...]) -> None:
        self.probabilities = probabilities
        self.state_names = state_names

    def to_frame(self, index: pd.Index[Any] | None = None) -> pd.DataFrame:
        """Return a table with a column for each regime."""
        return pd.DataFrame(self.probabilities, index=index, columns=list(self.state_names))

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to become an array.

        Raises:
            TypeError: always.
        """
        raise TypeError(_REFUSAL.format(what="an array is asked for here"))

    def __repr__(self) -> str:
        """What it is and how much of it there is."""
        return f"SmoothedProbabilities of {len(self.probabilities)} bars, knows the future, for analysis only"


_REFUSAL = (
    "{what}, and these are smoothed probabilities, which know the future: pass detector.filter(X) or "
    "detector.predict_next(X); for pictures take .probabilities"
)


def refuse_smoothed(*values: Any, to: str) -> None:
    """Refuse smoothed probabilities; whatever decides, trains or evaluates calls it on what it is given.

    Args:
        *values: what was given; anything but smoothed probabilities passes.
        to: who was given it, for the message.

    Raises:
        TypeError: one is a `SmoothedProbabilities`.
    """
    if any(isinstance(value, SmoothedProbabilities) for value in values):
        raise TypeError(_REFUSAL.format(what=f"{to} must not see later bars"))
