"""What an ensemble asks of its members: their names, their horizons, and the bars at which all of them can speak."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.forecast_table import ForecastTable, IntArray
from ml.tradingbots.components.naive_predictors import forecast_table
from ml.tradingbots.components.predictor_fitting import ReportFunction
from ml.tradingbots.components.return_predictor import PriceData, ReturnPredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import BarSplitter, PurgedKFold


class PricePredictor(Protocol):
    """What a member must be able to do; all predictors of this library can."""

    predictor_type: ClassVar[str]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyperparameters by name."""

    def set_params(self, **params: Any) -> Self:
        """Change hyperparameters."""

    def fit(
        self,
        price_data: PriceData,
        y: None = None,
        *,
        bars: npt.ArrayLike | None = None,
        report: ReportFunction | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Learn from the given origins."""

    def predict(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return expected log returns, columns (asset, horizon)."""

    def predict_quantiles(
        self, price_data: PriceData, quantiles: Sequence[float] = ..., *, bars: npt.ArrayLike | None = None
    ) -> pd.DataFrame:
        """Return quantiles, columns (asset, horizon, quantile)."""

    def save(self, path: str | Path) -> Path:
        """Write a file."""

    def load(self, path: str | Path) -> Self:
        """Become what is in a file."""


Members = Sequence[PricePredictor] | Mapping[str, PricePredictor]


def clone(predictor: PricePredictor) -> PricePredictor:
    """Return an unfitted predictor with the same hyperparameters."""
    made: Any = type(predictor)
    fresh: PricePredictor = made(**predictor.get_params(deep=False))
    return fresh


def named(members: Members) -> dict[str, PricePredictor]:
    """Return members by name; those in a list are called by their types, numbered from 1 where a type comes twice."""
    if isinstance(members, Mapping):
        return dict(members)
    kinds = [member.predictor_type for member in members]
    repeated = {kind for kind in kinds if kinds.count(kind) > 1}
    numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
    names = [f"{kind}_{n}" if kind in repeated else kind for kind, n in zip(kinds, numbers, strict=True)]
    return dict(zip(names, members, strict=True))


def common_horizons(members: Mapping[str, PricePredictor]) -> tuple[int, ...]:
    """Return the members' horizons.

    Raises:
        ValueError: there are no members, or their horizons differ.
    """
    found = {name: horizons_of(member) for name, member in members.items()}
    if len(set(found.values())) != 1:
        shown = ", ".join(f"{name}: {horizons}" for name, horizons in found.items())
        raise ValueError(f"members must have the same horizons, got {shown or 'no members'}")
    return next(iter(found.values()))


def common_origins(
    members: Mapping[str, PricePredictor], price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
) -> tuple[ForecastTable, IntArray]:
    """Return prices and targets, and those origins among the bars asked for at which all members can say something.

    Raises:
        ValueError: there is none, or the members' horizons differ.
    """
    prices = Bars.from_frame(price_data)
    table = forecast_table({"horizons": common_horizons(members), "volatility_bars": 0}, prices)
    of_members = [part.origins(bars, labelled=labelled) for part in _tables(members, prices)]
    origins: IntArray = functools.reduce(np.intersect1d, of_members)
    if len(origins) == 0:
        raise ValueError("there is no bar at which all members have a full window; give more bars")
    return table, origins


def purged_folds(
    members: Mapping[str, PricePredictor], table: ForecastTable, origins: IntArray, splitter: BarSplitter | None
) -> list[tuple[IntArray, IntArray]]:
    """Return folds of origins in which no label or window of training touches the test.

    Args:
        members: who is to be judged.
        table: what they read.
        origins: to be divided.
        splitter: makes the folds; None: five, purged by the longest horizon, with all that a forecast reads as embargo.

    Raises:
        ValueError: the splitter leaves out too little.
    """
    purge_size = max(common_horizons(members))
    tables = _tables(members, table.bars)
    reach = max(max(part.reach, part.window_size) for part in tables)
    window_size = max(part.window_size for part in tables)
    made: Any = splitter or PurgedKFold(5, purge_size=purge_size, embargo_size=reach)
    if made.purge_size < purge_size:
        raise ValueError(
            f"splitter must have a purge_size of at least the longest horizon, {purge_size}, got {made.purge_size}: "
            "labels of training bars would reach into the test"
        )
    if isinstance(made, PurgedKFold) and made.embargo_size < window_size:
        raise ValueError(
            f"splitter must have an embargo_size of at least the longest window, {window_size}, got "
            f"{made.embargo_size}: windows after the test would hold what was tested"
        )
    # Folds are made of origins: where bars are missing between them, gaps become longer, never shorter.
    folds = made.split(table.bars.timestamps[origins])
    return [(origins[train], origins[test]) for train, test in folds]


def horizons_of(member: PricePredictor) -> tuple[int, ...]:
    """Return how far ahead a predictor forecasts."""
    horizons: tuple[int, ...] = (
        member.horizons if isinstance(member, ReturnPredictor) else member.get_params(deep=False)["horizons"]
    )
    return horizons


def _tables(members: Mapping[str, PricePredictor], prices: Bars) -> list[ForecastTable]:
    """Return what members read, members of members instead of ensembles."""
    tables = []
    for member in members.values():
        inner: Members | None = getattr(member, "members", None)
        if inner is not None:
            tables += _tables(named(inner), prices)
        elif isinstance(member, BasePredictor):
            tables.append(member._table(prices))
        else:
            tables.append(forecast_table(member.get_params(deep=False), prices))
    return tables
