"""Settings of intervals by resampling, checked before anything is fitted."""

from __future__ import annotations

import numbers
from typing import Any


def check_resampling(*, confidence: float, n_bootstrap: int, seed: int) -> None:
    """Refuse settings with which intervals cannot be resampled.

    Args:
        confidence: of the intervals, in (0, 1).
        n_bootstrap: resamples of each interval; 0 skips them.
        seed: of the resampling.

    Raises:
        ValueError: one of them is out of its range, or not the kind of number that it must be.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}; 95% is 0.95")
    advice = {"n_bootstrap": "1000 gives steady intervals, 0 skips them", "seed": "give 0 or any other such number"}
    given: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
            raise ValueError(f"{name} must be a whole number, at least 0, got {value!r}; {advice[name]}")
