"""Regimes as columns of a price table: what a detector says of the next bar, for agents to see and to be weighted by.

A detector is fitted on the training segment alone. The columns are then made on the whole table, before it is cut, as
forecasts are: what is said of a bar depends on bars up to it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import pandas as pd
import torch

from ml.tradingbots.components.base_detector import BaseDetector
from ml.tradingbots.components.features import feature_columns
from ml.tradingbots.components.hiddenmarkov import load_detector
from ml.tradingbots.components.regime_detector import FloatArray, RegimeDetector, refuse_smoothed
from ml.tradingbots.components.regime_features import regime_features
from ml.tradingbots.components.regime_layout import regime_column_names
from ml.tradingbots.components.regime_tables import (
    PriceData,
    are_distributions,
    from_first_defined,
    relative_entropy,
    with_columns,
)
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, read_file, require_keys, save_file
from ml.tradingbots.data.bars import Bars

Inputs: TypeAlias = Callable[[pd.DataFrame], Any] | Sequence[str] | None

KIND = "regime columns"
# Share of training bars whose log score is so low that it counts as novel.
NOVEL_SHARE = 0.01
# What is asked of a detector.
_METHODS = ("fit", "predict_next", "update", "reset")
# Share of where a history began that no longer matters.
_LEFT_OF_START = 0.01
# A chain whose second eigenvalue is this close to 1 does not forget.
_NEVER = 1e-6


class RegimeColumns:
    """A detector that adds what it says of the next bar to price tables.

    The columns, each known at the close of its bar, the same for every asset:

    | name | meaning |
    |---|---|
    | `regime_p0` … | probability of each regime at the next bar, `detector.predict_next` |
    | `regime_entropy` | their entropy over its largest value: 0 certain, 1 no idea; 0 for a single regime |
    | `regime_novelty` | 1 where the detector's log score was below its 1% training quantile for `novelty_bars` bars in a row; |
    | | 0 elsewhere, and for detectors without a score |

    Args:
        detector: a regime detector; `fit` fits it. One that is fitted already needs no `fit`, and knows no novelty then.
        inputs: what it is shown. None: the log return; names: built-in features and columns of the table; or a function of
            the table (as `Bars.to_frame` writes it) to features that end with its last bar, undefined only in a warm-up.
        asset: whose features, in tables of several; a function chooses for itself.
        novelty_bars: bars that must surprise in a row before they count as novel, at least 1.

    Raises:
        TypeError: `detector` is none.
        ValueError: `novelty_bars` is below 1, or `inputs` is empty.
    """

    def __init__(
        self, detector: RegimeDetector, *, inputs: Inputs = None, asset: str | None = None, novelty_bars: int = 3
    ) -> None:
        # Not isinstance: asking a protocol for its properties would ask a detector that has learned nothing for its names.
        if isinstance(detector, type) or not all(callable(getattr(detector, name, None)) for name in _METHODS):
            raise TypeError(f"detector must be a regime detector such as GaussianHMM(n_regimes=2), got {detector!r}")
        if type(novelty_bars) is not int or novelty_bars < 1:
            raise ValueError(f"novelty_bars must be a number of bars, at least 1, got {novelty_bars!r}")
        if inputs is not None and not callable(inputs) and not _are_names(inputs):
            raise ValueError(f"inputs must be names of features such as ('log_return',), or a function, got {inputs!r}")
        self.detector = detector
        self.inputs: Inputs = inputs if inputs is None or callable(inputs) else tuple(inputs)
        self.asset, self.novelty_bars = asset, novelty_bars
        self.novel_below = -math.inf
        self._lost_function: str | None = None
        self._n_low = 0

    def __repr__(self) -> str:
        """The detector and what it is shown."""
        return f"RegimeColumns({self.detector!r}, inputs={self.inputs!r}, novelty_bars={self.novelty_bars})"

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""
        return self.detector.n_regimes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns; (n_regimes + 2,)."""
        return regime_column_names(self.n_regimes)

    @property
    def bars_to_forget(self) -> int | None:
        """Bars until 1% is left of where a history begins, by the second eigenvalue of the detector's transition matrix.

        Of two tables that end alike, the last columns agree where both are longer. Bars themselves tell regimes apart too, so
        fewer mostly do. None where it is not known: the detector has no transition matrix, or parts that never meet.
        """
        transition = getattr(self.detector, "transition_matrix_", None)
        if transition is None:
            return None
        sizes = np.sort(np.abs(np.linalg.eigvals(np.asarray(transition, dtype=np.float64))))
        second = float(sizes[-2]) if len(sizes) > 1 else 0.0
        if second >= 1.0 - _NEVER:
            return None
        return max(math.ceil(math.log(_LEFT_OF_START) / math.log(second)), 1) if second > 0.0 else 1

    def fit(self, price_data: PriceData) -> Self:
        """Fit the detector, and learn how low its scores fall, on the training segment; a new history begins.

        Raises:
            ValueError: the table lacks what the detector is shown, or has too few bars.
        """
        refuse_smoothed(price_data, to="a detector")
        _, rows = self._shown(Bars.from_frame(price_data))
        self.detector.fit(rows)
        _, scores = self._said(rows)
        known = scores[np.isfinite(scores)]
        self.novel_below = float(np.quantile(known, NOVEL_SHARE)) if len(known) else -math.inf
        self._n_low = 0
        return self

    def table(self, price_data: PriceData) -> FloatArray:
        """Return the columns of a table, NaN in the warm-up of what the detector is shown; (n_bars, n_regimes + 2)."""
        refuse_smoothed(price_data, to="an agent")
        bars = Bars.from_frame(price_data)
        first, rows = self._shown(bars)
        predicted, scores = self._said(rows)
        found = np.full((bars.n_bars, self.n_regimes + 2), np.nan)
        found[first:, :-2] = predicted
        found[first:, -2] = [relative_entropy(row) for row in predicted.tolist()]
        found[first:, -1] = self._novelty(scores < self.novel_below)
        return found

    def add_to(self, price_data: PriceData) -> pd.DataFrame:
        """Add the columns to a price table, before it is cut into training, validation and test.

        Args:
            price_data: what `Bars.from_frame` accepts.

        Returns:
            A table that `Bars.from_frame` accepts, in its plainest form.

        Raises:
            RuntimeError: the detector has learned nothing yet.
            ValueError: the table has columns of regimes already, or lacks what the detector is shown.
        """
        return with_columns(price_data, self.table(price_data))

    def are_in(self, bars: Bars) -> bool:
        """Whether a table has all the columns."""
        return set(self.names) <= set(bars.extra)

    # Bar by bar.

    def reset(self) -> None:
        """Begin a new history: forget the bars given to `update`."""
        self.detector.reset()
        self._n_low = 0

    def update(self, features: Any) -> FloatArray:
        """Take in what the detector is shown of the next bar; the numbers are those of `table`, to the bit.

        Args:
            features: (n_features,). A bar that is refused changes nothing.

        Returns:
            The columns of the bar; (n_regimes + 2,).
        """
        refuse_smoothed(features, to="a detector")
        self.detector.update(features)
        if isinstance(self.detector, BaseDetector):
            state = self.detector.state_
            predicted, score = list(state.predicted), state.log_score
        else:
            predicted, score = np.asarray(self.detector.predict_next()).tolist(), math.nan
        self._n_low = self._n_low + 1 if score < self.novel_below else 0
        return np.array([*predicted, relative_entropy(predicted), float(self._n_low >= self.novelty_bars)])

    def _shown(self, bars: Bars) -> tuple[int, Any]:
        """Return the first bar with all features, and what the detector is shown from it on."""
        if self._lost_function is not None and self.inputs is None:
            raise ValueError(
                f"these regime columns were made of what the function {self._lost_function!r} returns, which no file holds: "
                "set .inputs to it, or give RegimeColumns.load(path, inputs=...)"
            )
        if self.inputs is None:
            found: Any = regime_features(bars, asset=self.asset)
        elif callable(self.inputs):
            found = self.inputs(bars.to_frame())
            if found is None:
                raise ValueError(
                    f"inputs, the function {_name_of(self.inputs)!r}, returned None: let it return the features"
                )
        else:
            found = self._named(bars, tuple(self.inputs))
        refuse_smoothed(found, to="a detector")
        return from_first_defined(found, bars)

    def _named(self, bars: Bars, names: tuple[str, ...]) -> pd.DataFrame:
        if self.asset is None and bars.n_assets > 1:
            raise ValueError(
                f"price_data has {bars.n_assets} assets, and regimes are of one: give asset, of {bars.assets}"
            )
        chosen = bars if self.asset is None else bars.select(self.asset)
        return pd.DataFrame(feature_columns(chosen, names)[:, 0], index=bars.timestamps, columns=list(names))

    def _said(self, rows: Any) -> tuple[FloatArray, FloatArray]:
        """Return probabilities of the next bar and log scores of each bar; (n_bars, n_regimes), (n_bars,)."""
        if isinstance(self.detector, BaseDetector):
            states = self.detector.states(rows)
            return np.array([state.predicted for state in states]), np.array([state.log_score for state in states])
        predicted = self.detector.predict_next(rows)
        refuse_smoothed(predicted, to="an agent")
        predicted = np.asarray(predicted, dtype=np.float64)
        if predicted.shape != (len(rows), self.n_regimes) or not are_distributions(predicted):
            raise ValueError(
                f"{type(self.detector).__name__}.predict_next must return a finite probability of each of {self.n_regimes} "
                f"regimes for each of {len(rows)} bars, rows that sum to 1; it returned shape {predicted.shape}"
            )
        return predicted, np.full(len(rows), np.nan)

    def _novelty(self, is_low: Any) -> FloatArray:
        """Return 1 where a bar and those before it, `novelty_bars` in all, are low; (n_bars,)."""
        places = np.arange(len(is_low))
        last_high = np.maximum.accumulate(np.where(is_low, -1, places))
        return (places - last_high >= self.novelty_bars).astype(np.float64)

    # Files.

    def require_keepable(self) -> None:
        """Check that an agent can keep them: the detector is fitted, and a file can hold it.

        Raises:
            TypeError: the detector is not one of this library's.
            RuntimeError: it has learned nothing yet.
        """
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(
                f"an agent's file holds detectors of this library, this one is a {type(self.detector).__name__}: make the "
                "table by regimes.add_to(prices) yourself, and give the agent regimes=None"
            )
        if not self.detector.__sklearn_is_fitted__():
            raise RuntimeError(
                "the detector of regimes has learned nothing yet: call regimes.fit(train), the training segment, first"
            )

    def take_function_of(self, other: RegimeColumns) -> None:
        """Be shown what others are shown by their function, where a file named it and could not hold it."""
        if self.inputs is None and callable(other.inputs) and _name_of(other.inputs) == self._lost_function:
            self.inputs = other.inputs

    def save(self, path: str | Path) -> Path:
        """Write the detector and what it is shown to a file; of a function its name alone. The write is atomic.

        Raises:
            TypeError: the detector is not one of this library's.
        """
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(f"a file holds detectors of this library, this one is a {type(self.detector).__name__}")
        is_function = callable(self.inputs)
        content = {
            "detector": file_as_tensor(self.detector),
            "inputs": None if is_function else self.inputs,
            "function": _name_of(self.inputs) if is_function else self._lost_function,
            "asset": self.asset,
            "novelty_bars": self.novelty_bars,
            "novel_below": self.novel_below,
            "n_low": self._n_low,
        }
        return save_file(path, KIND, content)

    @classmethod
    def load(cls, path: str | Path, *, inputs: Inputs = None) -> RegimeColumns:
        """Read a file written by `save`; nothing in it is run.

        Args:
            path: the file.
            inputs: the function that the detector was shown the results of, where it was one.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or something else.
        """
        content = read_file(path, KIND)
        require_keys(content, path, detector=torch.Tensor, novelty_bars=int, novel_below=float, n_low=int)
        try:
            return cls._from_content(content, inputs)
        except DAMAGE as error:
            raise CheckpointError(f"{path} holds no whole regime columns: {str(error)[:300]}") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any], inputs: Inputs) -> RegimeColumns:
        for name in ("asset", "function"):
            if content[name] is not None and type(content[name]) is not str:
                raise ValueError(f"{name} must be a name")
        names = content["inputs"]
        if names is not None and (type(names) is not tuple or not all(type(name) is str for name in names)):
            raise ValueError("inputs must be names")
        if math.isnan(content["novel_below"]) or content["novel_below"] == math.inf or content["n_low"] < 0:
            raise ValueError("what counts as novel must be a number")
        made = cls(
            from_tensor(content["detector"], load_detector),
            inputs=names if inputs is None else inputs,
            asset=content["asset"],
            novelty_bars=content["novelty_bars"],
        )
        made.novel_below, made._n_low, made._lost_function = (
            content["novel_below"],
            content["n_low"],
            content["function"],
        )
        return made


def file_as_tensor(thing: Any) -> torch.Tensor:
    """Return the bytes of something's own file; uint8."""
    with tempfile.TemporaryDirectory() as folder:
        content = thing.save(Path(folder) / "file.pt").read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def from_tensor(content: Any, load: Callable[[Path], Any]) -> Any:
    """Return what `load` makes of a file with these bytes.

    Raises:
        ValueError: they are none, or those of something else.
    """
    if type(content) is not torch.Tensor or content.dtype != torch.uint8 or content.ndim != 1:
        raise ValueError("a file within a file must be bytes")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.pt"
        path.write_bytes(content.numpy().tobytes())
        return load(path)


def _are_names(inputs: Any) -> bool:
    is_list = isinstance(inputs, Sequence) and not isinstance(inputs, str)
    return is_list and len(inputs) > 0 and all(isinstance(name, str) for name in inputs)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", "a function"))
