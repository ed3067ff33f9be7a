"""Several predictors as one: averaged, weighted by past error, voting, or stacked, and how far they disagree.

Whatever is learned about members is learned from forecasts of bars that they were not fitted on, with bars left out between
the two: judged on what it has seen, the member that memorises best would win.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pandas.tseries.frequencies import to_offset
from scipy.optimize import nnls  # type: ignore[import-untyped]

from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.forecast_table import FloatArray, ForecastTable, IntArray
from ml.tradingbots.components.lstm_predictor import LSTMConfig, LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import (
    DriftPredictor,
    LastSignPredictor,
    RidgePredictor,
    ZeroPredictor,
    forecast_table,
)
from ml.tradingbots.components.predictor_fitting import EpochReport, ReportFunction
from ml.tradingbots.components.return_predictor import PriceData, ReturnPredictor
from ml.tradingbots.components.serialization import (
    DAMAGE,
    CheckpointError,
    check_like,
    read_file,
    require_keys,
    save_file,
    shown,
)
from ml.tradingbots.components.transformer_predictor import TransformerPricePredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import did_you_mean
from ml.tradingbots.data.splitters import BarSplitter, PurgedKFold, WalkForwardValidator

EnsembleMethod = Literal["simple", "weighted", "voting", "stacking"]
_SPLITTERS: dict[str, type[BarSplitter]] = {kind.__name__: kind for kind in (PurgedKFold, WalkForwardValidator)}
# The normal distribution's quantiles at one standard deviation below and above its mean.
ONE_DEVIATION = (0.15865525393145707, 0.8413447460685429)


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


class EnsemblePricePredictor(ReturnPredictor):
    """Several predictors as one.

    | method | expected return |
    |---|---|
    | "simple" | mean of the members' |
    | "weighted" | mean with weights in inverse proportion to the mean squared error out of fold |
    | "voting" | the sign most members give, times how much those who give it expect on average; 0 where they tie |
    | "stacking" | Σ weight · member, weights ≥ 0 with a sum ≤ 1 that fit the returns out of fold best |

    Stacking is that of Wolpert (1992), with the weights of Breiman (1996) but for their sum: what is missing from 1 is the
    weight of the forecast "zero", so that members that find nothing are shrunk away. A member that expects exactly zero does
    not vote. Weights are found for each horizon, pooled over assets.

    Quantiles are averaged level by level over members (Vincent, 1912; Ratcliff, 1979) with the same weights, scaled to a sum
    of 1, and moved to the ensemble's expected return. Averaging levels keeps the members' shape and width; a mixture of
    their distributions would add their disagreement to the width, see `disagreement`.

    Args:
        members: predictors that have the same horizons; clones of them are fitted, they stay as they are. By name, or in a
            list, which names them by their types. Empty is good for `load` alone.
        method: how forecasts are combined.
        splitter: makes the folds whose tests are forecast for "weighted" and "stacking": a `PurgedKFold` or a
            `WalkForwardValidator`, purged by the longest horizon and with an embargo of the longest window. None: five
            purged folds with these.

    Attributes:
        members_: the fitted members by name.
        weights_: one row per member, one column per horizon.
        out_of_fold_mse_: mean squared errors, likewise, where a method needs them.

    Raises:
        ValueError: the method is unknown, or members share a name.
    """

    predictor_type: ClassVar[str] = "ensemble"
    members_: dict[str, PricePredictor]
    weights_: pd.DataFrame
    out_of_fold_mse_: pd.DataFrame

    def __init__(
        self,
        members: Sequence[PricePredictor] | Mapping[str, PricePredictor] = (),
        method: EnsembleMethod = "simple",
        *,
        splitter: BarSplitter | None = None,
    ) -> None:
        if method not in get_args(EnsembleMethod):
            known = get_args(EnsembleMethod)
            raise ValueError(f"method must be one of {', '.join(known)}, got {method!r}.{did_you_mean(method, known)}")
        if splitter is not None and type(splitter) not in _SPLITTERS.values():
            raise TypeError(
                f"splitter must be a {' or a '.join(_SPLITTERS)}, which test each bar once, got {type(splitter).__name__}"
            )
        self.members, self.method, self.splitter = members, method, splitter

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead, increasing; those of the members.

        Raises:
            ValueError: there are no members, or their horizons differ.
        """
        named = getattr(self, "members_", None) or self._named()
        found = {name: horizons_of(member) for name, member in named.items()}
        if len(set(found.values())) != 1:
            shown_ = ", ".join(f"{name}: {horizons}" for name, horizons in found.items())
            raise ValueError(f"members must have the same horizons, got {shown_ or 'no members'}")
        return next(iter(found.values()))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; with `deep` also each member's hyperparameters as name__hyperparameter."""
        params: dict[str, Any] = {"members": self.members, "method": self.method, "splitter": self.splitter}
        if deep:
            for name, member in self._named().items():
                params |= {f"{name}__{key}": value for key, value in member.get_params().items()}
        return params

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
        members = fresh._named()
        for key, value in nested.items():
            name, _, inner = key.partition("__")
            if name not in members:
                raise ValueError(f"{key!r} names no member; members are {', '.join(members)}")
            members[name].set_params(**{inner: value})
        self._become(fresh)
        return self

    def __repr__(self) -> str:
        """The constructor call that makes it."""
        splitter = "" if self.splitter is None else f", splitter={self.splitter!r}"
        return f"{type(self).__name__}({self.members!r}, method={self.method!r}{splitter})"

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
        members = self._named()
        table, origins = self._common_origins(members, price_data, bars, labelled=True)
        needs_folds = self.method in ("weighted", "stacking")
        folds = self._folds(members, table, origins) if needs_folds else []
        fits = _Fits(members, table.bars, (len(folds) + 1) * len(members), report, checkpoint)
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

    def save(self, path: str | Path) -> Path:
        """Write the ensemble to one file, each member as the file it would have alone. The write is atomic."""
        self._require_fitted()
        errors = getattr(self, "out_of_fold_mse_", None)
        content: dict[str, Any] = {
            "predictor_type": self.predictor_type,
            "method": self.method,
            "splitter": _splitter_as_content(self.splitter),
            "assets": self.assets_,
            "members": {
                name: (member.predictor_type, file_as_tensor(member)) for name, member in self.members_.items()
            },
            "weights": torch.tensor(self.weights_.to_numpy()),
            "errors": None if errors is None else torch.tensor(errors.to_numpy()),
            "train_mean": torch.tensor(self._train_mean),
        }
        return save_file(path, "predictor", content)

    def load(self, path: str | Path) -> Self:
        """Become the ensemble in a file written by `save`; nothing in it is run.

        Members of other classes than this library's can be loaded where the ensemble that loads has some of their class.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or another kind of predictor; this one is left as it was.
        """
        content = read_file(path, "predictor")
        require_keys(content, path, predictor_type=str)
        if content["predictor_type"] != self.predictor_type:
            raise CheckpointError(
                f"{path} holds a {content['predictor_type']!r} predictor, this is {self.predictor_type!r}"
            )
        require_keys(content, path, method=str, assets=tuple, members=dict, weights=torch.Tensor)
        try:
            fresh = self._from_content(content)
        except DAMAGE as error:
            raise CheckpointError(f"{path} holds no whole ensemble: {str(error)[:300]}") from error
        self._become(fresh)
        return self

    def _from_content(self, content: dict[str, Any]) -> EnsemblePricePredictor:
        classes = {**predictor_classes(), **{member.predictor_type: type(member) for member in self._named().values()}}
        members = {}
        for name, (kind, file) in content["members"].items():
            if type(name) is not str or kind not in classes:
                raise ValueError(f"member {shown(name)} is a {shown(kind)}; known are {', '.join(classes)}")
            members[name] = predictor_from_tensor(classes[kind], file)
        fresh = self._holding(members, content["method"], _splitter_from_content(content["splitter"]))
        fresh.members_, fresh.assets_ = members, content["assets"]
        if not fresh.assets_ or not all(type(name) is str for name in fresh.assets_):
            raise ValueError("assets must be names")
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

    def _holding(
        self, members: dict[str, PricePredictor], method: Any, splitter: BarSplitter | None
    ) -> EnsemblePricePredictor:
        """Return an unfitted ensemble of clones."""
        clones = {name: clone(member) for name, member in members.items()}
        return EnsemblePricePredictor(clones, method, splitter=splitter)

    def _become(self, other: EnsemblePricePredictor) -> None:
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)

    # Inside.

    def _named(self) -> dict[str, PricePredictor]:
        if isinstance(self.members, Mapping):
            return dict(self.members)
        kinds = [member.predictor_type for member in self.members]
        repeated = {kind for kind in kinds if kinds.count(kind) > 1}
        numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
        names = [f"{kind}_{n}" if kind in repeated else kind for kind, n in zip(kinds, numbers, strict=True)]
        return dict(zip(names, self.members, strict=True))

    def _keep(self, weights: FloatArray, errors: FloatArray | None) -> None:
        rows, columns = pd.Index(self.members_, name="member"), pd.Index(self.horizons, name="horizon")
        self.weights_ = pd.DataFrame(weights, index=rows, columns=columns)
        self.__dict__.pop("out_of_fold_mse_", None)
        if errors is not None:
            self.out_of_fold_mse_ = pd.DataFrame(errors, index=rows, columns=columns)

    def _origins(
        self, price_data: PriceData, bars: npt.ArrayLike | None, *, labelled: bool
    ) -> tuple[ForecastTable, IntArray]:
        return self._common_origins(self.members_, price_data, bars, labelled=labelled)

    def _common_origins(
        self,
        members: Mapping[str, PricePredictor],
        price_data: PriceData,
        bars: npt.ArrayLike | None,
        *,
        labelled: bool,
    ) -> tuple[ForecastTable, IntArray]:
        prices = Bars.from_frame(price_data)
        table = forecast_table({"horizons": self.horizons, "volatility_bars": 0}, prices)
        of_members = [part.origins(bars, labelled=labelled) for part in _tables(members, prices)]
        origins: IntArray = functools.reduce(np.intersect1d, of_members)
        if len(origins) == 0:
            raise ValueError("there is no bar at which all members have a full window; give more bars")
        return table, origins

    def _folds(
        self, members: Mapping[str, PricePredictor], table: ForecastTable, origins: IntArray
    ) -> list[tuple[IntArray, IntArray]]:
        purge_size = max(self.horizons)
        # Bars that a forecast reads before its origin, warm-ups of indicators included.
        reach = max(max(part.first_bar, part.window_size) for part in _tables(members, table.bars))
        window_size = max(part.window_size for part in _tables(members, table.bars))
        splitter: Any = self.splitter or PurgedKFold(5, purge_size=purge_size, embargo_size=reach)
        if splitter.purge_size < purge_size:
            raise ValueError(
                f"splitter must have a purge_size of at least the longest horizon, {purge_size}, got {splitter.purge_size}: "
                "labels of training bars would reach into the test"
            )
        if isinstance(splitter, PurgedKFold) and splitter.embargo_size < window_size:
            raise ValueError(
                f"splitter must have an embargo_size of at least the longest window, {window_size}, got "
                f"{splitter.embargo_size}: windows after the test would hold what was tested"
            )
        # Folds are made of origins: where bars are missing between them, gaps become longer, never shorter.
        folds = splitter.split(table.bars.timestamps[origins])
        return [(origins[train], origins[test]) for train, test in folds]

    def _members_say(self, table: ForecastTable, origins: IntArray) -> FloatArray:
        """(n_members, n_origins, n_assets, n_horizons)."""
        return np.stack([_values(member, table, origins) for member in self.members_.values()])

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


class LSTMEnsemble(EnsemblePricePredictor):
    """LSTMs that differ in their seeds alone, averaged; `predict_uncertainty` says how far they are to be trusted.

    Args:
        n_members: how many; their seeds count up from the config's.
        config: hyperparameters of all of them; None takes the defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    predictor_type: ClassVar[str] = "lstm_ensemble"

    def __init__(self, n_members: int = 3, config: LSTMConfig | None = None, **changes: Any) -> None:
        if isinstance(n_members, bool) or not isinstance(n_members, int) or n_members < 1:
            raise ValueError(f"n_members must be an integer of 1 or more, got {n_members!r}")
        first = LSTMPricePredictor(config, **changes)
        self.n_members, self.config = n_members, first.config
        seeds = range(first.config.seed, first.config.seed + n_members)
        super().__init__([LSTMPricePredictor(first.config, seed=seed) for seed in seeds])

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return `n_members` and the hyperparameters of the LSTMs; `deep` is not used."""
        return {"n_members": self.n_members, **LSTMPricePredictor(self.config).get_params()}

    def __sklearn_clone__(self) -> Self:
        return type(self)(self.n_members, self.config)

    def __repr__(self) -> str:
        """The number of members and what differs from the LSTM's defaults."""
        inner = repr(LSTMPricePredictor(self.config)).partition("(")[2]
        return f"{type(self).__name__}(n_members={self.n_members}{', ' if inner != ')' else ''}{inner}"

    def _holding(
        self, members: dict[str, PricePredictor], method: Any, splitter: BarSplitter | None
    ) -> EnsemblePricePredictor:
        first = next(iter(members.values()))
        if not isinstance(first, LSTMPricePredictor):
            raise ValueError(f"its members must be LSTMs, the first is a {first.predictor_type!r}")
        fresh = LSTMEnsemble(len(members), first.config)
        same = [clone(member).get_params() for member in members.values()]
        if same != [member.get_params() for member in fresh._named().values()] or list(members) != list(fresh._named()):
            raise ValueError("its members must be LSTMs that differ in their seeds alone")
        return fresh


def majority(forecasts: npt.ArrayLike) -> FloatArray:
    """Return the mean of those forecasts whose sign most have; 0 where as many are above zero as below.

    Args:
        forecasts: (n_members, ...); exact zeros do not vote.

    >>> majority([[1.0, 1.0], [3.0, -1.0], [-5.0, 0.0]]).tolist()
    [2.0, 0.0]
    """
    values = np.asarray(forecasts, dtype=np.float64)
    winner = np.sign(np.sign(values).sum(0))
    agrees = (np.sign(values) == winner) & (winner != 0.0)
    result: FloatArray = np.where(agrees, values, 0.0).sum(0) / np.maximum(agrees.sum(0), 1)
    # A member without a forecast leaves none to the ensemble, as an average does.
    return np.where(np.isnan(values).any(0), np.nan, result)


def inverse_error_weights(forecasts: npt.ArrayLike, targets: npt.ArrayLike) -> FloatArray:
    """Return weights in inverse proportion to mean squared errors, with a sum of 1 (Bates & Granger, 1969).

    Args:
        forecasts: (n_members, n_rows).
        targets: (n_rows,).

    >>> inverse_error_weights([[1.0, 1.0], [2.0, 2.0]], [0.0, 0.0]).tolist()
    [0.8, 0.2]
    """
    errors = np.mean((np.asarray(targets) - np.asarray(forecasts)) ** 2, axis=1)
    # A forecast without error would leave nothing to the others, and two of them nothing to divide.
    least = float(np.maximum(errors, 1e-12 * errors.max()).min())
    inverse = least / np.maximum(errors, least) if least > 0.0 else np.ones(len(errors))
    weights: FloatArray = inverse / inverse.sum()
    return weights


def stacking_weights(forecasts: npt.ArrayLike, targets: npt.ArrayLike) -> FloatArray:
    """Return the weights ≥ 0 with a sum ≤ 1 whose weighted sum of forecasts has the least squared error (exact).

    "Zero" is one forecast more, whose weight is what is missing from 1. With a sum of exactly 1 the error is the weighted
    sum of the members' errors, so what is looked for is the shortest vector in their hull; that is a problem of
    non-negative least squares with one row more (Lawson & Hanson, 1974, chapter 23), whose solution is scaled to 1.

    Args:
        forecasts: (n_members, n_rows).
        targets: (n_rows,).

    >>> stacking_weights([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [0.5, 0.25, 0.75]).round(12).tolist()
    [0.5, 0.25]
    """
    target = np.asarray(targets, dtype=np.float64)
    errors = np.vstack([np.zeros_like(target), np.asarray(forecasts, dtype=np.float64)]) - target
    size = float(np.sqrt(np.mean(errors[0] ** 2)))
    if size == 0.0:
        return np.zeros(len(errors) - 1)
    # The triangle of a QR decomposition has the same lengths and angles as all rows.
    triangle = np.linalg.qr(errors.T / (size * np.sqrt(len(target))), mode="r")
    system = np.vstack([triangle, np.ones(len(errors))])
    solution, _ = nnls(system, np.append(np.zeros(len(triangle)), 1.0))
    weights: FloatArray = solution[1:] / solution.sum()
    return weights


def clone(predictor: PricePredictor) -> PricePredictor:
    """Return an unfitted predictor with the same hyperparameters."""
    made: Any = type(predictor)
    fresh: PricePredictor = made(**predictor.get_params(deep=False))
    return fresh


class _Fits:
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
            said = np.stack([_values(member, table, test) for member in fitted.values()])
            forecasts.append(said.reshape(len(fitted), -1, said.shape[-1]))
            targets.append(table.targets[test].reshape(-1, said.shape[-1]))
        said, found = np.concatenate(forecasts, axis=1), np.concatenate(targets)
        # Where a market stood still, a member that scales by volatility says nothing.
        known = np.isfinite(said).all((0, 2))
        if not known.any():
            raise ValueError("there is no bar out of fold that all members have a forecast for")
        return said[:, known], found[known]

    def _pass_on(self, report: ReportFunction, name: str, fold: int | None, found: EpochReport) -> None:
        entry = {key: getattr(found, key) for key in EpochReport.__dataclass_fields__}
        if isinstance(found, MemberReport):  # An ensemble within this one.
            name = f"{name}.{found.member}"
        report(MemberReport(**entry, member=name, fold=fold, fit_number=self.n_begun, n_fits=self.n_fits))


def _values(member: PricePredictor, table: ForecastTable, origins: IntArray) -> FloatArray:
    frame = member.predict(table.bars, bars=origins)
    return frame.to_numpy().reshape(len(origins), table.bars.n_assets, -1)


def horizons_of(member: PricePredictor) -> tuple[int, ...]:
    """Return how many bars ahead a predictor looks, increasing."""
    horizons: tuple[int, ...] = (
        member.horizons if isinstance(member, ReturnPredictor) else member.get_params(deep=False)["horizons"]
    )
    return horizons


def _tables(members: Mapping[str, PricePredictor], prices: Bars) -> list[ForecastTable]:
    """Return what members read, members of members instead of ensembles."""
    tables = []
    for member in members.values():
        if isinstance(member, EnsemblePricePredictor):
            tables += _tables(member._named(), prices)
        else:
            tables.append(forecast_table(member.get_params(deep=False), prices))
    return tables


def predictor_classes() -> dict[str, Any]:
    """Return the predictors of this library by the type that their files name."""
    networks = (LSTMPricePredictor, TransformerPricePredictor, CNNPricePredictor)
    naive = (ZeroPredictor, DriftPredictor, LastSignPredictor, RidgePredictor)
    return {kind.predictor_type: kind for kind in (*networks, *naive, EnsemblePricePredictor, LSTMEnsemble)}


def file_as_tensor(member: PricePredictor) -> torch.Tensor:
    """Return the file that a fitted predictor would write, to be held by another file; uint8 (n_bytes,)."""
    with tempfile.TemporaryDirectory() as folder:
        content = member.save(Path(folder) / "member.pt").read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def predictor_from_tensor(made: Any, content: Any) -> PricePredictor:
    """Return the predictor whose file another file held; `made` is its class. Raises ValueError where it is none."""
    if type(content) is not torch.Tensor or content.dtype != torch.uint8 or content.ndim != 1:
        raise ValueError("a predictor must be the bytes of its file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "member.pt"
        path.write_bytes(content.numpy().tobytes())
        member: PricePredictor = made().load(path)
    return member


def _splitter_as_content(splitter: BarSplitter | None) -> dict[str, Any] | None:
    if splitter is None:
        return None
    arguments = {name: value for name, value in vars(splitter).items() if not name.startswith("_")}
    sizes = {
        name: value if value is None or isinstance(value, (int, str)) else to_offset(value).freqstr
        for name, value in arguments.items()
    }
    return {"type": type(splitter).__name__, **sizes}


def _splitter_from_content(content: Any) -> BarSplitter | None:
    if content is None:
        return None
    arguments = dict(content)
    kind = arguments.pop("type")
    if kind not in _SPLITTERS:
        raise ValueError(f"splitter is a {shown(kind)}; known are {', '.join(_SPLITTERS)}")
    return _SPLITTERS[kind](**arguments)
