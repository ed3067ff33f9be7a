"""One LSTM with several seeds: how far first weights decide what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ml.tradingbots.components.base_ensemble import BaseEnsemble
from ml.tradingbots.components.ensemble_members import PricePredictor, clone, named
from ml.tradingbots.components.lstm_predictor import LSTMConfig, LSTMPricePredictor
from ml.tradingbots.data.splitters import BarSplitter


class LSTMEnsemble(BaseEnsemble):
    """LSTMs that differ in their seeds alone, averaged; `predict_uncertainty` says how far they are to be trusted.

    Args:
        n_members: how many; their seeds count up from the config's.
        config: hyperparameters of all of them; None takes the defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    predictor_type: ClassVar[str] = "lstm_ensemble"
    description: ClassVar[str] = "LSTMs of several seeds, averaged"

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

    def _member_classes(self) -> Mapping[str, type[Any]]:
        return {LSTMPricePredictor.predictor_type: LSTMPricePredictor}

    def _holding(self, members: dict[str, PricePredictor], method: Any, splitter: BarSplitter | None) -> LSTMEnsemble:
        first = next(iter(members.values()), None)
        if not isinstance(first, LSTMPricePredictor):
            found = "there are none" if first is None else f"the first is a {first.predictor_type!r}"
            raise ValueError(f"its members must be LSTMs, {found}")
        fresh = LSTMEnsemble(len(members), first.config)
        same = [clone(member).get_params() for member in members.values()]
        if same != [member.get_params() for member in named(fresh.members).values()] or list(members) != list(
            named(fresh.members)
        ):
            raise ValueError("its members must be LSTMs that differ in their seeds alone")
        return fresh
