"""Numbers and names as text for people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def format_number(value: float) -> str:
    """Write a number with two decimals, a true minus sign, and a dash for what is undefined."""
    return _format(value, ",.2f")


def format_percent(value: float) -> str:
    """Write a fraction as a percentage with one decimal."""
    return _format(value, ",.1%")


def format_fine_percent(value: float) -> str:
    """Write a fraction as a percentage with two decimals, for what is small, such as the R² of a forecast."""
    return _format(value, ",.2%")


def format_change(value: float) -> str:
    """Write a fraction as a percentage with its sign."""
    return _format(value, "+,.1%")


def _format(value: float, specification: str) -> str:
    if np.isnan(value):
        return "–"
    text = format(value, specification)
    # What rounds to zero has no sign.
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.lstrip("+-")


def format_interval(interval: tuple[float, float], format_value: Callable[[float], str]) -> str:
    """Write an interval from low to high."""
    return "–" if np.isnan(interval).any() else f"{format_value(interval[0])} to {format_value(interval[1])}"


def spaced(name: str) -> str:
    """Write a name of ours as words for people."""
    return name.replace("_", " ")


def bars_ahead(horizon: int) -> str:
    """Write a horizon as words for people."""
    return f"{horizon} bar{'' if horizon == 1 else 's'} ahead"
