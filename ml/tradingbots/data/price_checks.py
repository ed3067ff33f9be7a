"""What every price must satisfy, and the refusal that names the value, its place and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.data.names import ADJUSTED_CLOSE_NAMES, FIELDS, SINGLE_ASSET, plain_name

FloatArray: TypeAlias = npt.NDArray[np.float64]

# Vendors round or adjust open, high, low and close separately, which moves the last digits of a float64.
HIGH_LOW_TOLERANCE = 1e-9
PREVIOUS_CLOSE = "close before it"

_MISSING = (
    "every value must be a finite number. Drop the row (frame.dropna()) or, only where the last price was still valid, "
    "carry it forward (frame.ffill())"
)
_NOT_POSITIVE = (
    "a price must be above 0, because returns and weights divide by it. Drop the row, or replace a 0 that stands for "
    "'no trade' by the last price: frame.replace(0, float('nan')).ffill()"
)
_JUMP = (
    "the ratio of the two is beyond what a float64 can hold, so no return can be computed. Correct the row, or cut the "
    "table there"
)
_NEGATIVE_VOLUME = "a volume must be 0 or more. Correct it, or leave the column out: frame.drop(columns='volume')"
_INFINITE_EXTRA = "a feature must be finite. Guard the division that made it, e.g. ratio.replace([inf, -inf], 0.0)"
_LATE_NAN = (
    "a feature may be NaN only in a run at the start (its warm-up). Fill the gap with values known at that time "
    "(frame.ffill(), never bfill)"
)


class _Check(NamedTuple):
    """One rule applied to one column."""

    name: str
    """The column that may be wrong."""
    bad: npt.NDArray[np.bool_]
    """Which values break the rule; (n_bars, n_assets)."""
    rule: str
    """What is required and how to mend it."""
    other: str | None = None
    """The column it was compared to, or `PREVIOUS_CLOSE`; its value is shown too."""


def check_values(
    timestamps: pd.DatetimeIndex,
    assets: tuple[str, ...],
    fields: Mapping[str, FloatArray],
    extra: Mapping[str, FloatArray],
) -> None:
    """Refuse values that cannot be traded on.

    Args:
        timestamps: of the bars; (n_bars,).
        assets: one name per asset.
        fields: open, high, low, close and volume, as far as there are any; (n_bars, n_assets) each.
        extra: feature columns by name; (n_bars, n_assets) each.

    Raises:
        ValueError: for the first value that breaks a rule.
    """
    for check in _checks(fields, extra):
        if check.bad.any():
            raise ValueError(_refusal(check, timestamps, assets, {**extra, **fields}))


def _checks(fields: Mapping[str, FloatArray], extra: Mapping[str, FloatArray]) -> Iterator[_Check]:
    """Apply the rules in the order in which they are reported."""
    for name, values in fields.items():
        yield _Check(name, ~np.isfinite(values), _MISSING)
        if name == "volume":
            yield _Check(name, values < 0, _NEGATIVE_VOLUME)
        else:
            yield _Check(name, values <= 0, _NOT_POSITIVE)
    yield from _high_low_checks(fields)
    yield from _jump_checks(fields)
    for name, values in extra.items():
        if plain_name(name) in ADJUSTED_CLOSE_NAMES.union(FIELDS):
            raise ValueError(f"extra must not hold a price column, got {name!r}. Pass it as a field: Bars(close=...)")
        missing = np.isnan(values)
        warm_up = np.logical_and.accumulate(missing, axis=0)
        yield _Check(name, np.isinf(values), _INFINITE_EXTRA)
        yield _Check(name, missing & ~warm_up, _LATE_NAN)


def _high_low_checks(fields: Mapping[str, FloatArray]) -> Iterator[_Check]:
    """Find bars whose high is not the highest or whose low is not the lowest price."""
    limit = "Fix the row, or leave the range out: frame.drop(columns=['high', 'low'])"
    high, low = fields.get("high"), fields.get("low")
    if high is not None and low is not None:
        crossed = high < low * (1.0 - HIGH_LOW_TOLERANCE)
        yield _Check("high", crossed, f"a high must not be below the low. {limit}", "low")
    for name in ("open", "close"):
        price = fields.get(name)
        if price is None:
            continue
        if high is not None:
            above = price > high * (1.0 + HIGH_LOW_TOLERANCE)
            yield _Check("high", above, f"a high must not be below the {name}. {limit}", name)
        if low is not None:
            below = price < low * (1.0 - HIGH_LOW_TOLERANCE)
            yield _Check("low", below, f"a low must not be above the {name}. {limit}", name)


def _jump_checks(fields: Mapping[str, FloatArray]) -> Iterator[_Check]:
    """Find prices whose ratio to the price before them over- or underflows."""
    close, opening = fields["close"], fields.get("open")
    before = np.concatenate([close[:1], close[:-1]])
    yield _Check("close", _is_beyond(close, before), _JUMP, PREVIOUS_CLOSE)
    if opening is not None:
        yield _Check("open", _is_beyond(opening, before), _JUMP, PREVIOUS_CLOSE)
        yield _Check("close", _is_beyond(close, opening), _JUMP, "open")


def _is_beyond(price: FloatArray, before: FloatArray) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore", under="ignore"):
        ratio = price / before
    beyond: npt.NDArray[np.bool_] = ~np.isfinite(ratio) | (ratio <= 0.0)
    return beyond


def _refusal(
    check: _Check, timestamps: pd.DatetimeIndex, assets: tuple[str, ...], columns: Mapping[str, FloatArray]
) -> str:
    """Name the first value that breaks a rule and its place."""
    row, asset = (int(position) for position in np.unravel_index(int(check.bad.argmax()), check.bad.shape))
    of_asset = "" if assets == (SINGLE_ASSET,) else f" of asset {assets[asset]!r}"
    found = f"{columns[check.name][row, asset]:.10g}"
    if check.other is not None:
        other = (
            columns["close"][max(row - 1, 0), asset]
            if check.other == PREVIOUS_CLOSE
            else columns[check.other][row, asset]
        )
        found += f" while the {check.other} is {other:.10g}"
    n_bad = int(np.count_nonzero(check.bad))
    count = f" (the first of {n_bad} such values)" if n_bad > 1 else ""
    return f"column {check.name!r}{of_asset} at row {row} ({timestamps[row]}) is {found}{count}; {check.rule}"
