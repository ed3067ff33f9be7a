"""What every ensemble can do: fit its members, combine what they say, say how far they disagree, save and load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ml.tradingbots.components.ensemble_files import (
    SPLITTERS,
    member_as_tensor,
    member_from_tensor,
    splitter_as_content,
    splitter_from_content,
)
from ml.tradingbots.components.ensemble_fitting import MemberFits, forecasts_of
from ml.tradingbots.components.ensemble_members import (
    Members,
    PricePredictor,
    common_horizons,
    common_origins,
    named,
    purged_folds,
)
from ml.tradingbots.components.ensemble_weights import inverse_error_weights, majority, stacking_weights
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.predictor_files import check_assets
from ml.tradingbots.components.predictor_fitting import ReportFunction
from ml.tradingbots.components.return_predictor import PriceData, ReturnPredictor
from ml.tradingbots.components.serialization import check_like, require_keys, shown
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import did_you_mean
from ml.tradingbots.data.splitters import BarSplitter

EnsembleMethod = Literal["simple", "weighted", "voting", "stacking"]
# The normal distribution's quantiles at one standard deviation below and above its mean.
ONE_DEVIATION = (0.15865525393145707, 0.8413447460685429)


class BaseEnsemble(ReturnPredictor):
    """Several predictors as one; `EnsemblePricePredictor` says how they are combined.

    Args:
        members: unfitted predictors by name, or in a list, which names them by their types.
        method: how forecasts are combined.
        splitter: makes the folds whose tests are forecast for "weighted" and "stacking".

    Attributes:
        members_: the fitted members by name.
        weights_: one row per member, one column per horizon.
        out_of_fold_mse_: mean squared errors, likewise, where a method needs them.

    Raises:
        ValueError: the method is unknown.
        TypeError: the splitter may test a bar more than once.
    """

    members_: dict[str, PricePredictor]
    weights_: pd.DataFrame
    out_of_fold_mse_: pd.DataFrame

    def __init__(
        self,
        members: Members = (),
        method: EnsembleMethod = "simple",
        *,
        splitter: BarSplitter | None = None,
    ) -> None:
        if method not in get_args(EnsembleMethod):
            known = get_args(EnsembleMethod)
            raise ValueError(f"method must be one of {', '.join(known)}, got {method!r}.{did_you_mean(method, known)}")
        if splitter is not None and type(splitter) not in SPLITTERS.values():
            raise TypeError(
                f"splitter must be a {' or a '.join(SPLITTERS)}, which test each bar once, got {type(splitter).__name__}"
            )
        self.members, self.method, self.splitter = members, method, splitter

    @abstractmethod
    def _member_classes(self) -> Mapping[str, type[Any]]:
        """Return the classes, by `predictor_type`, whose files it reads as its members'."""

    @abstractmethod
    def _holding(self, members: dict[str, PricePredictor], method: Any, splitter: BarSplitter | None) -> Self:
        """Return an unfitted ensemble of clones of the members in a file."""

    @abstractmethod
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead, increasing; those of the members.

        Raises:
            ValueError: there are no members, or their horizons differ.
        """
        return common_horizons(getattr(self, "members_", None) or named(self.members))

    def set_params(self, **params: Any) -> Self:
        """Change arguments, or members' hyperparameters by name__hyperparameter; what was learned is forgotten.

        Raises:
            ValueError: a name is unknown or a value is refused.
        """
        own = self.get_params(deep=False)
        nested = {key: params.pop(key) for key in list(params) if "__" in key}
        unknown = [name for name in params if name not in own]
        if unknown:
            raise ValueError(f"unknown argument {unknown[0]!r} of {type(self).__name__}; known are {', '.join(own)}")
        fresh = type(self)(**{**own, **params})
        members = named(fresh.members)
        for key, value in nested.items():
            name, _, inner = key.partition("__")
            if name not in members:
                raise ValueError(f"{key!r} names no member; members are {', '.join(members)}")
            members[name].set_params(**{inner: value})
        self._become(fresh)
        return self

    def fit(
        self,
        price_data: PriceData,
        y: None = None,
        *,
        bars: npt.ArrayLike | None = None,
        report: ReportFunction | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Fit all members, and what combines them.

        "weighted" and "stacking" fit every member once per fold for forecasts out of fold, then once on all bars.

        Args:
            price_data: what `Bars.from_frame` accepts.
            y: not used.
            bars: origins to learn from, increasing positions in `price_data`; those at which some member has no full
                window are left out. None: all.
            report: called with a `MemberReport` after every epoch of every fit.
            checkpoint: a folder for the members' checkpoints, one per fit; a fit that is begun again goes on from them.

        Raises:
            ValueError: there are no members, their horizons differ, or the splitter purges too little.
        """
        members = named(self.members)
        table, origins = common_origins(members, price_data, bars, labelled=True)
        needs_folds = self.method in ("weighted", "stacking")
        folds = purged_folds(members, table, origins, self.splitter) if needs_folds else []
        fits = MemberFits(members, table.bars, (len(folds) + 1) * len(members), report, checkpoint)
        shape = (len(members), len(table.targets[0, 0]))
        weights, errors = np.full(shape, 1.0 / len(members)), None
        if needs_folds:
            forecasts, targets = fits.out_of_fold(folds, table)
            errors = ((targets - forecasts) ** 2).mean(1)  # (n_members, n_horizons)
            find = inverse_error_weights if self.method == "weighted" else stacking_weights
            weights = np.stack([find(forecasts[..., h], targets[:, h]) for h in range(shape[1])], axis=1)
        self.members_ = fits.run(origins, fold=None)
        self.assets_ = table.bars.assets
        self._train_mean = table.targets[origins].mean((0, 1))
        self._keep(weights, errors)
        return self

    def disagreement(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return the standard deviation (ddof=0) of the members' expected returns, as `predict`.

        It says how much depends on which member is asked, not how far off all of them may be.
        """
        table, origins = self._ready(price_data, bars)
        return self._frame(table, origins, self._members_say(table, origins).std(0))

    def predict_uncertainty(self, price_data: PriceData, *, bars: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return how uncertain the members are, each of them and among each other (Lakshminarayanan et al., 2017).

        Returns:
            Columns (asset, horizon, part), standard deviations of the log return: "noise", which members expect of the
            market (root mean square over members of half the width of their central 68.3%); "disagreement" between
            members, which more data would make smaller; "total", the root of the sum of both squares.
        """
        table, origins = self._ready(price_data, bars)
        ends = self._members_quantiles(table, origins, np.array(ONE_DEVIATION))
        noise = np.sqrt(np.mean((0.5 * (ends[..., 1] - ends[..., 0])) ** 2, axis=0))
        disagreement = self._members_say(table, origins).std(0)
        parts = np.stack([noise, disagreement, np.hypot(noise, disagreement)], axis=-1)
        return self._frame(table, origins, parts, part=["noise", "disagreement", "total"])

    # Files.

    def _content(self) -> dict[str, Any]:
        errors = getattr(self, "out_of_fold_mse_", None)
        members = {name: (member.predictor_type, member_as_tensor(member)) for name, member in self.members_.items()}
        return {
            "method": self.method,
            "splitter": splitter_as_content(self.splitter),
            "assets": self.assets_,
            "members": members,
            "weights": torch.tensor(self.weights_.to_numpy()),
            "errors": None if errors is None else torch.tensor(errors.to_numpy()),
            "train_mean": torch.tensor(self._train_mean),
        }

    def _from_content(self, content: dict[str, Any], path: str | Path, device: str | None) -> Self:
        require_keys(content, path, method=str, assets=tuple, members=dict, weights=torch.Tensor)
        # A user's own classes are known where the ensemble that loads has a member of theirs.
        classes = {
            **self._member_classes(),
            **{member.predictor_type: type(member) for member in named(self.members).values()},
        }
        members = {}
        for name, (kind, file) in content["members"].items():
            if type(name) is not str or kind not in classes:
                raise ValueError(f"member {shown(name)} is a {shown(kind)}; known are {', '.join(classes)}")
            members[name] = member_from_tensor(classes[kind], file, device)
        fresh = self._holding(members, content["method"], splitter_from_content(content["splitter"]))
        fresh.members_, fresh.assets_ = members, content["assets"]
        check_assets(fresh.assets_)
        template = torch.zeros(len(members), len(fresh.horizons), dtype=torch.float64)
        check_like(content["weights"], template, "weights")
        check_like(content["train_mean"], template[0], "train_mean")
        if content["errors"] is not None:
            check_like(content["errors"], template, "errors")
        fresh._train_mean = content["train_mean"].numpy().copy()
        fresh._keep(
            content["weights"].numpy().copy(), None if content["errors"] is None else content["errors"].numpy().copy()
        )
        return fresh

    # Inside.

    def _keep(self, weights: FloatArray, errors: FloatArray | None) -> None:
        rows, columns = pd.Index(self.members_, name="member"), pd.Index(self.horizons, name="horizon")
        self.weights_ = pd.DataFrame(weights, index=rows, columns=columns)
        self.__dict__.pop("out_of_fold_mse_", None)
        if errors is not None:
            self.out_of_fold_mse_ = pd.DataFrame(errors, index=rows, columns=columns)

    def _origins(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
    ) -> tuple[ForecastTable, IntArray]:
        return common_origins(self.members_, price_data, bars, labelled=labelled)

    def _check_columns(self, prices: Bars) -> None:
        for member in self.members_.values():
            if isinstance(member, ReturnPredictor):
                member._check_columns(prices)

    def _members_say(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        """(n_members, n_origins, n_assets, n_horizons)."""
        return np.stack([forecasts_of(member, table, origins) for member in self.members_.values()])

    def _members_quantiles(self, table: ForecastTable, origins: IntArray, levels: FloatArray) -> FloatArray:
        """(n_members, n_origins, n_assets, n_horizons, n_levels)."""
        shape = (len(origins), table.bars.n_assets, len(self.horizons), len(levels))
        frames = [m.predict_quantiles(table.bars, levels.tolist(), bars=origins) for m in self.members_.values()]
        return np.stack([frame.to_numpy().reshape(shape) for frame in frames])

    def _mean(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        return self._combined(self._members_say(table, origins))

    def _combined(self, forecasts: FloatArray) -> FloatArray:
        if self.method == "voting":
            return majority(forecasts)
        combined: FloatArray = (self.weights_.to_numpy()[:, None, None] * forecasts).sum(0)
        return combined

    def _quantiles(self, table: ForecastTable, origins: IntArray, levels: FloatArray) -> FloatArray:
        forecasts = self._members_say(table, origins)
        shapes = self._members_quantiles(table, origins, levels) - forecasts[..., None]
        weights = self.weights_.to_numpy()
        total = weights.sum(0)
        shares = np.where(total > 0.0, weights / np.where(total > 0.0, total, 1.0), 1.0 / len(weights))
        result: FloatArray = self._combined(forecasts)[..., None] + (shares[:, None, None, :, None] * shapes).sum(0)
        return result
