"""Fitting the members of an ensemble, on all bars and fold by fold, so that they can be judged on bars they never saw."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.tradingbots.components.ensemble_members import PricePredictor, clone
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.predictor_fitting import EpochReport, ReportFunction
from ml.tradingbots.data.bars import Bars


@dataclass(frozen=True)
class MemberReport(EpochReport):
    """What one pass of one member's fit did, and where in the ensemble's fit it stands."""

    member: str
    """Name of the member."""
    fold: int | None
    """Fold whose training bars it learns from, counted from 0; None for the fit on all bars, which is kept."""
    fit_number: int
    """Which of the ensemble's fits this is, counted from 1."""
    n_fits: int
    """How many there are."""


class MemberFits:
    """All fits of an ensemble, numbered for reports."""

    def __init__(
        self,
        members: Mapping[str, PricePredictor],
        prices: Bars,
        n_fits: int,
        report: ReportFunction | None,
        checkpoint: str | Path | None,
    ) -> None:
        self.members, self.prices, self.n_fits = members, prices, n_fits
        self.report, self.folder = report, None if checkpoint is None else Path(checkpoint)
        self.n_begun = 0

    def run(self, origins: IntArray, *, fold: int | None) -> dict[str, PricePredictor]:
        """Fit a clone of every member."""
        fitted = {}
        for name, member in self.members.items():
            self.n_begun += 1
            path = None if self.folder is None else self.folder / f"{'all' if fold is None else fold}-{name}.pt"
            report = None if self.report is None else functools.partial(self._pass_on, self.report, name, fold)
            fitted[name] = clone(member).fit(self.prices, bars=origins, report=report, checkpoint=path)
        return fitted

    def out_of_fold(
        self, folds: list[tuple[IntArray, IntArray]], table: ForecastTable
    ) -> tuple[FloatArray, FloatArray]:
        """Forecast every fold's test with members fitted on its training bars.

        Returns:
            Forecasts (n_members, n_rows, n_horizons) and what happened (n_rows, n_horizons), a row per origin and asset.
        """
        forecasts, targets = [], []
        for number, (train, test) in enumerate(folds):
            fitted = self.run(train, fold=number)
            said = np.stack([forecasts_of(member, table, test) for member in fitted.values()])
            forecasts.append(said.reshape(len(fitted), -1, said.shape[-1]))
            targets.append(table.targets[test].reshape(-1, said.shape[-1]))
        said, found = np.concatenate(forecasts, axis=1), np.concatenate(targets)
        # A member of a user's own may say nothing of some asset.
        known = np.isfinite(said).all((0, 2))
        if not known.any():
            raise ValueError("there is no bar out of fold that all members have a forecast for")
        return said[:, known], found[known]

    def _pass_on(self, report: ReportFunction, name: str, fold: int | None, found: EpochReport) -> None:
        entry = {key: getattr(found, key) for key in EpochReport.__dataclass_fields__}
        if isinstance(found, MemberReport):  # An ensemble within this one.
            name = f"{name}.{found.member}"
        report(MemberReport(**entry, member=name, fold=fold, fit_number=self.n_begun, n_fits=self.n_fits))


def forecasts_of(member: PricePredictor, table: ForecastTable, origins: IntArray) -> FloatArray:
    """Return what a member expects; (n_origins, n_assets, n_horizons)."""
    frame = member.predict(table.bars, bars=origins)
    return frame.to_numpy().reshape(len(origins), table.bars.n_assets, -1)
