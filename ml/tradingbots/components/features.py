"""Market features by name: what an agent sees of each bar, known at its close.

A name is a built-in of `list_features()`, with its look-back after a colon where it has one (`momentum:10`), or a column
the user brought. Add one: an indicator in `core/indicators.py` with a pencil test, one line in `FEATURES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.core import indicators
from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feature:
    """A built-in feature: its description, the fields it needs beside `close`, and how to compute it."""

    description: str
    compute: Callable[[Bars, int], FloatArray]
    lookback: int = 0
    """Default look-back in bars; 0 means that the feature takes none."""
    needs: tuple[str, ...] = ()
    memory: int = 0
    """Bars over which a recursive feature forgets, where it has no look-back to say so."""
    recursive: bool = False
    """Whether it depends on all bars before, ever less: its first `BURN_IN` look-backs are then left undefined, so that
    where a table begins makes no difference that an agent could see."""


def _field(bars: Bars, name: str) -> FloatArray:
    values = getattr(bars, name)
    assert values is not None  # `_built_in` checked it.
    return np.asarray(values)


# Look-backs after which a recursive feature has forgotten all but 1/20,000 of where it began.
BURN_IN = 10

FEATURES: dict[str, Feature] = {
    "log_return": Feature("log return of the bar", lambda b, n: indicators.log_return(b.close)),
    "momentum": Feature("log return over n bars", lambda b, n: indicators.momentum(b.close, n), 10),
    "volatility": Feature("std of log returns over n bars", lambda b, n: indicators.volatility(b.close, n), 20),
    "zscore": Feature(
        "distance of the close from its mean over n bars, in stds", lambda b, n: indicators.zscore(b.close, n), 20
    ),
    "rsi": Feature(
        "Wilder's relative strength index, 0 to 1", lambda b, n: indicators.rsi(b.close, n), 14, recursive=True
    ),
    "macd": Feature(
        "moving average convergence divergence over price",
        lambda b, n: indicators.macd(b.close),
        memory=14,  # Its slow mean spans 26 bars and forgets 2/27 of itself a bar.
        recursive=True,
    ),
    "bollinger_position": Feature(
        "place of the close within its Bollinger bands", lambda b, n: indicators.bollinger_position(b.close, n), 20
    ),
    "drawdown_from_high": Feature(
        "fall from the highest close of n bars", lambda b, n: indicators.drawdown_from_high(b.close, n), 60
    ),
    "atr": Feature(
        "average true range over price",
        lambda b, n: indicators.atr(_field(b, "high"), _field(b, "low"), b.close, n),
        14,
        ("high", "low"),
        recursive=True,
    ),
    "high_low_range": Feature(
        "log of high over low",
        lambda b, n: indicators.high_low_range(_field(b, "high"), _field(b, "low")),
        0,
        ("high", "low"),
    ),
    "close_location": Feature(
        "place of the close within the bar, -1 to 1",
        lambda b, n: indicators.close_location(_field(b, "high"), _field(b, "low"), b.close),
        0,
        ("high", "low"),
    ),
    "open_gap": Feature(
        "log of the open over the last close",
        lambda b, n: indicators.open_gap(_field(b, "open"), b.close),
        0,
        ("open",),
    ),
    "volume_change": Feature(
        "log of volume over its mean of n bars",
        lambda b, n: indicators.volume_change(_field(b, "volume"), n),
        20,
        ("volume",),
    ),
}


def list_features() -> dict[str, str]:
    """Return the built-in market features and what each is; look-backs are shown with their default.

    >>> list_features()["log_return"]
    'log return of the bar'
    """
    return {
        f"{name}:{feature.lookback}" if feature.lookback else name: feature.description
        for name, feature in FEATURES.items()
    }


def market_features(
    bars: Bars, config: TradingEnvConfig, extra_features: Mapping[str, Callable[[Bars], FloatArray]]
) -> tuple[tuple[str, ...], FloatArray]:
    """Compute the features of every bar.

    Returns:
        Their names, and the table (n_bars, n_assets, n_features), NaN in warm-ups.

    Raises:
        ValueError: a name is unknown, a field it needs is missing, a function returns another shape or has the name
            of another feature, or there is none.
    """
    columns = {name: _column(name, bars) for name in sorted(config.features, key=lambda name: name in bars.extra)}
    if config.use_extra_columns:
        columns.update(bars.extra)
    for name, function in extra_features.items():
        if name in columns:
            raise ValueError(f"extra feature {name!r} has the name of another feature; rename one of them")
        columns[name] = _checked(name, np.asarray(function(bars), dtype=np.float64), bars)
    if not columns:
        raise ValueError(
            "features is empty and price_data brings no columns of its own: the agent would see no market at all. "
            "Name some features (`list_features()` shows them)."
        )
    return tuple(columns), np.stack(list(columns.values()), axis=-1)


def feature_columns(bars: Bars, names: Sequence[str]) -> FloatArray:
    """Compute features by name, columns of the user's own included; (n_bars, n_assets, n_features), NaN in warm-ups.

    Raises:
        ValueError: a name is unknown or a field it needs is missing.
    """
    return np.stack([_column(name, bars) for name in names], axis=-1)


def _column(name: str, bars: Bars) -> FloatArray:
    return bars.extra[name] if name in bars.extra else _built_in(name, bars)


def _built_in(name: str, bars: Bars) -> FloatArray:
    base, _, lookback = name.partition(":")
    feature = FEATURES.get(base)
    if feature is None:
        known = [*FEATURES, *bars.extra]
        close = difflib.get_close_matches(base, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown feature {name!r}.{hint} Available: {', '.join(known)}")
    missing = [field for field in feature.needs if getattr(bars, field) is None]
    if missing:
        raise ValueError(f"feature {name!r} needs the column {missing[0]!r}, which price_data does not have")
    if lookback and not (lookback.isdigit() and int(lookback) > 0 and feature.lookback):
        raise ValueError(
            f"feature {name!r}: write {base}:n with n a number of bars"
            if feature.lookback
            else f"feature {base!r} takes no look-back, got {name!r}"
        )
    n_bars = int(lookback) if lookback else feature.lookback
    values = feature.compute(bars, n_bars)
    if feature.recursive:
        values = values.copy()
        values[: BURN_IN * (n_bars or feature.memory)] = np.nan
    return values


def _checked(name: str, values: FloatArray, bars: Bars) -> FloatArray:
    if values.shape == (bars.n_bars,) and bars.n_assets == 1:
        values = values[:, None]
    if values.shape != (bars.n_bars, bars.n_assets):
        raise ValueError(
            f"extra feature {name!r} must return shape ({bars.n_bars}, {bars.n_assets}), got {values.shape}"
        )
    return values
