"""Several predictors as one: averaged, weighted by past error, voting, or stacked, and how far they disagree.

Whatever is learned about members is learned from forecasts of bars that they were not fitted on, with bars left out between
the two: judged on what it has seen, the member that memorises best would win.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ml.tradingbots.components.base_ensemble import BaseEnsemble, EnsembleMethod
from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.ensemble_fitting import MemberReport
from ml.tradingbots.components.ensemble_members import PricePredictor, clone, named
from ml.tradingbots.components.lstm_ensemble import LSTMEnsemble
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import (
    DriftPredictor,
    LastSignPredictor,
    RidgePredictor,
    ZeroPredictor,
)
from ml.tradingbots.components.transformer_predictor import TransformerPricePredictor
from ml.tradingbots.data.splitters import BarSplitter

__all__ = ["MEMBER_CLASSES", "EnsembleMethod", "EnsemblePricePredictor", "LSTMEnsemble", "MemberReport"]

_NETWORKS = (LSTMPricePredictor, TransformerPricePredictor, CNNPricePredictor)
_NAIVE = (ZeroPredictor, DriftPredictor, LastSignPredictor, RidgePredictor)
MEMBER_CLASSES: dict[str, type[Any]] = {kind.predictor_type: kind for kind in (*_NETWORKS, LSTMEnsemble, *_NAIVE)}
"""Every predictor of this library but the ensemble, by name; an ensemble's file may hold each of them, and ensembles."""


class EnsemblePricePredictor(BaseEnsemble):
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
        ValueError: the method is unknown.
        TypeError: the splitter may test a bar more than once.
    """

    predictor_type: ClassVar[str] = "ensemble"
    description: ClassVar[str] = "several predictors averaged, weighted, voting or stacked"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; with `deep` also each member's hyperparameters as name__hyperparameter."""
        params: dict[str, Any] = {"members": self.members, "method": self.method, "splitter": self.splitter}
        if deep:
            for name, member in named(self.members).items():
                params |= {f"{name}__{key}": value for key, value in member.get_params().items()}
        return params

    def __repr__(self) -> str:
        """The constructor call that makes it."""
        splitter = "" if self.splitter is None else f", splitter={self.splitter!r}"
        return f"{type(self).__name__}({self.members!r}, method={self.method!r}{splitter})"

    def _member_classes(self) -> Mapping[str, type[Any]]:
        return {**MEMBER_CLASSES, EnsemblePricePredictor.predictor_type: EnsemblePricePredictor}

    def _holding(
        self, members: dict[str, PricePredictor], method: Any, splitter: BarSplitter | None
    ) -> EnsemblePricePredictor:
        clones = {name: clone(member) for name, member in members.items()}
        return EnsemblePricePredictor(clones, method, splitter=splitter)
