"""Forecasts as a feature of the environment, every one of them made by a predictor that was fitted on earlier bars alone.

A predictor asked about the bars that it learned from is right about them more often than it will ever be again. An agent that
is shown such forecasts learns to trust them, and loses what it bets on them once they are of new bars. So the whole column,
bars that agents train on included, is made the way it will be made live: fit on the past, forecast some bars, fit again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.tradingbots.components.base_ensemble import ONE_DEVIATION
from ml.tradingbots.components.ensemble_files import member_as_tensor, member_from_tensor
from ml.tradingbots.components.ensemble_members import PricePredictor, clone, horizons_of
from ml.tradingbots.components.features import FEATURES
from ml.tradingbots.components.forecast_table import FloatArray, IntArray
from ml.tradingbots.components.price_predictors import PREDICTORS
from ml.tradingbots.components.return_predictor import PriceData
from ml.tradingbots.components.serialization import DAMAGE, CheckpointError, read_file, require_keys, save_file, shown
from ml.tradingbots.data.bar_splitter import checked_count
from ml.tradingbots.data.bars import Bars, require_bars
from ml.tradingbots.data.names import FIELDS, IGNORED_NAMES, plain_name
from ml.tradingbots.data.timestamps import utc_timestamp

# Processors multiply the rows of a batch in tiles and what is left over by other instructions, whose roundings differ. Asked
# for whole tiles of origins, a network says the same of a bar wherever in the batch it stands.
_TILE = 64


class FrozenForecast:
    """Fitted predictors as a feature: each forecasts the bars from one instant on, until the next one takes over.

    Nothing is fitted any more, so this is what belongs in production; after the last instant the last predictor goes on.
    `ForecastFeature.freeze` makes it, `save` and `load` keep it.

    Args:
        predictors: fitted predictors by the first instant that each may be asked about, increasing. Whoever makes this by
            hand answers for it that their training labels ended before.
        assets: names that price tables must have, in any order; None takes what the first predictor learned from.
        horizon: bars ahead, one of the predictors' horizons; None: their only one.
        output: as in `ForecastFeature`.

    Raises:
        ValueError: there are no predictors, their instants do not increase, or `horizon` or `output` is unknown.
    """

    def __init__(
        self,
        predictors: Mapping[Any, PricePredictor],
        *,
        assets: tuple[str, ...] | None = None,
        horizon: int | None = None,
        output: str = "mean",
    ) -> None:
        if not predictors:
            raise ValueError(
                "predictors is empty: give at least one fitted predictor and the first instant that it feeds"
            )
        self.predictors = tuple(predictors.values())
        self.starts = pd.DatetimeIndex([utc_timestamp(start, "predictors") for start in predictors])
        if not (self.starts.is_monotonic_increasing and self.starts.is_unique):
            raise ValueError(
                f"predictors must be in the order of their instants, got {self.starts.astype(str).tolist()}"
            )
        found: Any = self.predictors[0]
        self.assets: tuple[str, ...] = found.assets_ if assets is None else assets
        self.horizon = _one_horizon(found, horizon)
        for predictor in self.predictors:
            _one_horizon(predictor, self.horizon)
        self.output, self._levels = output, _levels(output)

    def __repr__(self) -> str:
        """How many predictors of which kind, from when on, and what they say."""
        kind, first = self.predictors[0].predictor_type, self.starts[0].isoformat()
        return (
            f"FrozenForecast({len(self.predictors)} × {kind} from {first} on, horizon={self.horizon}, "
            f"output={self.output!r})"
        )

    def __call__(self, price_data: PriceData) -> FloatArray:
        """Return the forecast made at every bar.

        Args:
            price_data: what `Bars.from_frame` accepts; it may begin later than the table that predictors were fitted on.

        Returns:
            (n_bars, n_assets), NaN before the first predictor's instant and before the first full window. What is said of a
            bar depends on no bar after it, and on none before its window: only where fewer than 64 full windows come before it
            in the table may networks differ, by a rounding of float32.

        Raises:
            ValueError: it has other assets, or lacks what the predictors read.
        """
        bars = Bars.from_frame(price_data)
        if set(bars.assets) != set(self.assets):
            raise ValueError(
                f"the forecasts are of the assets {', '.join(self.assets)}, price_data has {', '.join(bars.assets)}; bring "
                "the same assets, or freeze a ForecastFeature on these"
            )
        column = np.full((bars.n_bars, bars.n_assets), np.nan)
        edges = [*bars.timestamps.searchsorted(self.starts).tolist(), bars.n_bars]
        for predictor, (start, stop) in zip(self.predictors, pairwise(edges), strict=True):
            if start < stop:
                self._feed(column, predictor, bars, start, stop)
        return column

    def save(self, path: str | Path) -> Path:
        """Write the predictors and when each takes over to one file. The write is atomic."""
        content = {
            "starts": [start.isoformat() for start in self.starts],
            "predictors": [(fitted.predictor_type, member_as_tensor(fitted)) for fitted in self.predictors],
            "assets": self.assets,
            "horizon": self.horizon,
            "output": self.output,
        }
        return save_file(path, "forecast feature", content)

    @classmethod
    def load(cls, path: str | Path, *, predictor_class: type[Any] | None = None) -> FrozenForecast:
        """Read a file written by `save`; nothing in it is run.

        Args:
            path: the file.
            predictor_class: class of the predictors, where it is not one of this library's.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, hostile, or something else.
        """
        content = read_file(path, "forecast feature")
        require_keys(content, path, starts=list, predictors=list, assets=tuple, horizon=int, output=str)
        try:
            return cls._from_content(content, predictor_class)
        except DAMAGE as error:
            raise CheckpointError(f"{path} holds no whole forecast feature: {str(error)[:300]}") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any], predictor_class: type[Any] | None) -> FrozenForecast:
        classes = dict(PREDICTORS)
        if predictor_class is not None:
            classes[predictor_class.predictor_type] = predictor_class
        if not content["assets"] or not all(type(name) is str for name in content["assets"]):
            raise ValueError("assets must be names")
        predictors = {}
        for start, (kind, file) in zip(content["starts"], content["predictors"], strict=True):
            if kind not in classes:
                raise ValueError(f"a predictor is a {shown(kind)}; known are {', '.join(classes)}")
            if type(start) is not str or pd.Timestamp(start).tzinfo is None:
                raise ValueError(f"an instant must be a date and time with its zone, got {shown(start)}")
            predictors[start] = member_from_tensor(classes[kind], file)
        settings = {name: content[name] for name in ("assets", "horizon", "output")}
        return cls(predictors, **settings)

    def _feed(self, column: FloatArray, predictor: PricePredictor, bars: Bars, start: int, stop: int) -> None:
        """Let one predictor forecast the bars in [start, stop); it is shown none after them."""
        known, n_more = bars.slice(0, stop), -(stop - start) % _TILE
        asked = np.arange(max(start - n_more, 0), stop)
        try:
            places, values = self._answer(predictor, known, asked)
        except ValueError:
            # A table that begins late may have no full window yet when the next predictor takes over.
            if stop == bars.n_bars or np.isfinite(column).any():
                raise
            return
        if len(places) > _TILE and len(places) % _TILE:  # Not all that was asked had a full window.
            _, last = self._answer(predictor, known, asked[-_TILE:])
            values = np.concatenate([values[:-_TILE], last])
        new = places >= start
        column[places[new]] = values[new]

    def _answer(self, predictor: PricePredictor, bars: Bars, asked: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the bars that a predictor says something of, and what; (n_origins,), (n_origins, n_assets)."""
        horizons = horizons_of(predictor)
        number, shape = horizons.index(self.horizon), (-1, bars.n_assets, len(horizons))
        if self.output.startswith("quantile"):
            frame = predictor.predict_quantiles(bars, self._levels, bars=asked)
        else:
            frame = predictor.predict(bars, bars=asked)
        values = frame.to_numpy().reshape(shape)[..., number]
        if self.output == "mean_over_spread":
            ends = predictor.predict_quantiles(bars, self._levels, bars=asked).to_numpy().reshape(*shape, 2)
            spread = 0.5 * (ends[:, :, number, 1] - ends[:, :, number, 0])
            # Without any doubt there is no unit to measure in.
            values = np.divide(values, spread, out=np.full_like(values, np.nan), where=spread > 0.0)
        return bars.timestamps.get_indexer(frame.index).astype(np.int64), values


class ForecastFeature:
    """Forecasts of a predictor that is fitted again and again on the bars before those that it forecasts.

    Use it like any function in `extra_features`, or `with_forecasts` for a table that is going to be cut into training and
    test: its fits are counted from the first bar of the table that it is given. The predictor that feeds the bars from r on,
    r = train_size + k · refit_every, is shown the bars before r and no other, so that its labels end before r, whatever the
    horizon. A column is therefore causal, bars that an agent learns from included; it does not change when bars are added
    (on a CPU bit for bit, for networks from 64 full windows on), and is undefined for the first `train_size` bars, which
    cost the environment as many bars of warm-up.

    Every fit is made once and remembered by the bars it read: environments over the same prices fit nothing again.

    Args:
        predictor: what is fitted: clones of it, it stays as it is. Same prices, same fit: its seeds are among its settings.
        train_size: bars that the first fit reads.
        refit_every: bars that one fit feeds; None feeds all of the rest by the first one.
        rolling: whether every fit reads the last `train_size` bars instead of all.
        horizon: bars ahead, one of the predictor's horizons; None: its only one.
        output: "mean", the expected log return; "quantile:0.05" (any level in (0, 1)), a quantile of it; "mean_over_spread",
            the mean in units of half the width of the central 68.3%, which is a standard deviation where returns are normal.

    Raises:
        TypeError: `predictor` is no predictor.
        ValueError: a size, `horizon` or `output` is refused.
    """

    def __init__(
        self,
        predictor: PricePredictor,
        *,
        train_size: int,
        refit_every: int | None = None,
        rolling: bool = False,
        horizon: int | None = None,
        output: str = "mean",
    ) -> None:
        if isinstance(predictor, type) or not hasattr(predictor, "predict"):
            raise TypeError(f"predictor must be a predictor such as RidgePredictor(window_size=5), got {predictor!r}")
        self.predictor = clone(predictor)
        self.train_size = checked_count(train_size, "train_size", least=2)
        self.refit_every = None if refit_every is None else checked_count(refit_every, "refit_every", least=1)
        self.rolling = rolling
        self.horizon = _one_horizon(predictor, horizon)
        _levels(output)
        self.output = output
        self._fits: dict[str, PricePredictor] = {}

    def __repr__(self) -> str:
        """The constructor call that makes it."""
        names = ("train_size", "refit_every", "rolling", "horizon", "output")
        return f"ForecastFeature({self.predictor!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __call__(self, price_data: PriceData) -> FloatArray:
        """Return the forecast made at every bar; (n_bars, n_assets), NaN in the first `train_size`.

        Raises:
            ValueError: there are no more bars than `train_size`, or the predictor refuses them.
        """
        return self.freeze(price_data)(price_data)

    def freeze(self, price_data: PriceData) -> FrozenForecast:
        """Make all fits that a table asks for, and no more: what an agent needs in production beside its own file.

        On the same table, and on one that goes on from it until the next fit would be due, the frozen forecasts are the same
        to the bit. Freeze again when `refit_every` bars have gone by.

        Raises:
            ValueError: as when it is called.
        """
        bars = Bars.from_frame(price_data)
        require_bars(bars, self.train_size + 1, f"a ForecastFeature with train_size={self.train_size}")
        predictors = {bars.timestamps[start]: self._fitted(bars, start) for start in self._starts(bars.n_bars)}
        return FrozenForecast(predictors, assets=bars.assets, horizon=self.horizon, output=self.output)

    def _starts(self, n_bars: int) -> Iterator[int]:
        """Yield the first bar that each fit feeds."""
        yield from range(self.train_size, n_bars, self.refit_every or n_bars)

    def _fitted(self, bars: Bars, start: int) -> PricePredictor:
        """Return the predictor that was fitted on the bars before `start`."""
        seen = bars.slice(start - self.train_size if self.rolling else 0, start)
        key = _digest(seen)
        if key not in self._fits:
            try:
                self._fits[key] = clone(self.predictor).fit(seen)
            except ValueError as error:
                raise ValueError(
                    f"the fit on the {seen.n_bars} bars before {bars.timestamps[start]} was refused (train_size="
                    f"{self.train_size}): {error}"
                ) from error
        return self._fits[key]


def with_forecasts(price_data: PriceData, features: Mapping[str, Callable[[Bars], FloatArray]]) -> pd.DataFrame:
    """Add columns to a price table: made on the whole of it, before it is cut into training, validation and test.

    A feature that is computed after the cut would have its warm-up, and its fits, in each piece anew. `use_extra_columns`
    shows the columns to agents wherever the table goes: environments, `walk_forward_agents`, files, the command line.

    Args:
        price_data: what `Bars.from_frame` accepts.
        features: by the name of the new column: a `ForecastFeature`, a `FrozenForecast`, or any causal function of `Bars` to
            (n_bars, n_assets).

    Returns:
        A table that `Bars.from_frame` accepts, in its plainest form.

    Raises:
        ValueError: a name is taken, that of a price or of a built-in feature, or a forecast is undefined after its warm-up.
    """
    bars = Bars.from_frame(price_data)
    for name in features:
        if name in bars.extra or plain_name(name) in (*FIELDS, *IGNORED_NAMES):
            raise ValueError(
                f"the table has a column {name!r} already; choose another name"
                if name in bars.extra
                else f"a feature cannot be called {name!r}, which is a column of prices; choose another name"
            )
        if name.partition(":")[0] in FEATURES:
            raise ValueError(
                f"features: a column cannot be called {name!r}, the name of a built-in feature, whose place it would "
                f"silently take; choose another name, such as {name.replace(':', '_') + '_forecast'!r}"
            )
    columns = {name: np.asarray(function(bars)) for name, function in features.items()}
    fields = {name: getattr(bars, name) for name in bars.fields}
    return Bars(bars.timestamps, bars.assets, **fields, extra={**bars.extra, **columns}).to_frame()


def _one_horizon(predictor: PricePredictor, horizon: int | None) -> int:
    known = horizons_of(predictor)
    if horizon is None and len(known) == 1:
        return known[0]
    if horizon not in known:
        raise ValueError(f"horizon must be one of the predictor's, {', '.join(map(str, known))}, got {horizon!r}")
    return int(horizon)


def _levels(output: str) -> tuple[float, ...]:
    """Return the quantiles that an output is made of."""
    if output == "mean":
        return ()
    if output == "mean_over_spread":
        return ONE_DEVIATION
    name, _, text = output.partition(":")
    try:
        level = float(text)
    except ValueError:
        level = float("nan")
    if name != "quantile" or not 0.0 < level < 1.0:
        raise ValueError(
            f"output must be 'mean', 'mean_over_spread' or 'quantile:LEVEL' with a level in (0, 1), got {output!r}"
        )
    return (level,)


def _digest(bars: Bars) -> str:
    """Return what tells two tables apart."""
    columns = {name: getattr(bars, name) for name in bars.fields} | dict(bars.extra)
    found = hashlib.sha256(repr((bars.assets, list(columns), bars.timestamps.dtype)).encode())
    found.update(bars.timestamps.asi8.tobytes())
    for values in columns.values():
        found.update(values.tobytes())
    return found.hexdigest()
