"""What the columns of a price table are called, and what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import pandas as pd

PRICE_FIELDS = ("open", "high", "low", "close")
FIELDS = (*PRICE_FIELDS, "volume")
ADJUSTED_CLOSE_NAMES = frozenset({"adj close", "adj_close", "adjclose", "adjusted close", "adjusted_close"})
# What yfinance adds to prices: amounts paid and ratios of splits on single days, 0 on all others.
BOOKKEEPING_NAMES = frozenset({"dividends", "stock splits", "stock_splits", "capital gains", "capital_gains"})
IGNORED_NAMES = ADJUSTED_CLOSE_NAMES | BOOKKEEPING_NAMES
"""Columns that are neither prices to trade at nor features."""
DATE_COLUMN_NAMES = frozenset({"date", "datetime", "timestamp", "time"})
SINGLE_ASSET = "asset"
"""Name of the asset of a table whose columns are only called open, high, low, close, volume."""


def plain_name(label: object) -> str:
    """Return a label as text without outer spaces and in lower case, as column names are compared."""
    return str(label).strip().lower()


def is_one_asset(labels: pd.Index[Any]) -> bool:
    """Tell the columns of one asset (open, high, low, close, volume) from one column of closes per asset."""
    plain = {plain_name(label) for label in labels}
    if plain & {"close", "volume"} or plain & IGNORED_NAMES:
        return True
    # LOW and OPEN are tickers (Lowe's, Opendoor): in capitals, and without a third field, they are assets.
    named = [str(label).strip() for label in labels if plain_name(label) in FIELDS]
    return len(named) > 2 or any(not name.isupper() for name in named)


def field_level(columns: pd.Index[Any]) -> int:
    """Return which of two column levels holds open, high, low, close and volume."""
    if "field" in columns.names:
        return columns.names.index("field")
    names = [{plain_name(label) for label in columns.get_level_values(level)} for level in (0, 1)]
    with_close = ["close" in level_names for level_names in names]
    if with_close[0] != with_close[1]:
        return with_close.index(True)
    n_fields = [len(level_names & set(FIELDS)) for level_names in names]
    if n_fields[0] == n_fields[1]:
        raise ValueError(
            f"one level of the columns must name the fields (open, high, low, close, volume), got levels "
            f"{sorted(names[0])[:5]} and {sorted(names[1])[:5]}. Name them: frame.columns.names = ['field', 'asset']"
        )
    return int(n_fields[1] > n_fields[0])


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return ' Did you mean ...?' where a choice is spelled much like `name`, else an empty string."""
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    return f" Did you mean {lowered[near[0]]!r}?" if near else ""
