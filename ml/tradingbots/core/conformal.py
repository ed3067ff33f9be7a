"""Intervals that keep their promise: conformal prediction, calibrated on past errors and nothing assumed about them.

`SplitConformal` is fitted once on bars that the predictor did not learn from, and covers as promised while errors stay what
they were (exchangeable). `AdaptiveConformal` keeps learning from every outcome and covers in the long run whatever the
market does.

A score is how far the outcome lay from what was said, in units of `scale`. With a volatility forecast as the scale, intervals
are wide where the market is wild; with the default of 1 they are as wide everywhere.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]


class SplitConformal:
    """Intervals from the errors on a calibration block (Vovk et al., 2005; quantile forecasts: Romano et al., 2019).

    With n calibration rows the margin is their ceil((n + 1) · coverage)-th smallest score. If the errors to come are like
    those of the calibration block, the interval then holds the outcome with a probability of at least `coverage` and, where
    no two scores are equal, at most `coverage` + 1/(n + 1).

    Args:
        coverage: share of the outcomes that the interval is to hold, in (0, 1).
        symmetric: one margin for both ends. Otherwise each end has its own and misses (1 - coverage)/2 of the outcomes,
            which suits skewed errors and needs twice the rows.
    """

    def __init__(self, coverage: float = 0.9, *, symmetric: bool = True) -> None:
        _check_coverage(coverage)
        self.coverage = coverage
        self.symmetric = symmetric
        self.margins: tuple[FloatArray, FloatArray] | None = None
        """Below and above, in units of scale; () or (n_columns,) each; None before a fit."""

    def fit(self, y: ArrayLike, prediction: ArrayLike, scale: ArrayLike = 1.0) -> "SplitConformal":
        """Calibrate on outcomes and point forecasts.

        Args:
            y: outcomes that the predictor did not learn from; (n_bars,), or (n_bars, n_columns) to calibrate each column
                on its own.
            prediction: their forecasts, shaped like `y`.
            scale: volatility forecast for each, > 0; a number or shaped like `y`.

        Returns:
            This object.
        """
        return self.fit_quantiles(y, prediction, prediction, scale)

    def fit_quantiles(self, y: ArrayLike, low: ArrayLike, high: ArrayLike, scale: ArrayLike = 1.0) -> "SplitConformal":
        """Calibrate on outcomes and the ends of forecast intervals (conformalised quantile regression).

        Args:
            y: outcomes that the predictor did not learn from; (n_bars,) or (n_bars, n_columns).
            low: lower quantile forecast, shaped like `y`.
            high: upper quantile forecast, likewise.
            scale: what the margin is a multiple of, > 0; a number or shaped like `y`.

        Returns:
            This object. Margins are negative where the forecast intervals were too wide.
        """
        outcome, lower, upper = (np.asarray(values, dtype=np.float64) for values in (y, low, high))
        if outcome.ndim not in (1, 2) or not outcome.shape == lower.shape == upper.shape:
            raise ValueError(
                "y and its forecasts must have one shape, (n_bars,) or (n_bars, n_columns), got "
                f"{outcome.shape}, {lower.shape} and {upper.shape}"
            )
        size = _checked_scale(scale)
        below, above = (lower - outcome) / size, (outcome - upper) / size
        if not np.isfinite(below + above).all():
            raise ValueError("y, its forecasts and scale must be finite: leave out bars whose outcome is not known yet")
        if self.symmetric:
            margin = _finite_sample_quantile(np.maximum(below, above), self.coverage)
            self.margins = margin, margin
        else:
            one_sided = 0.5 + 0.5 * self.coverage
            self.margins = _finite_sample_quantile(below, one_sided), _finite_sample_quantile(above, one_sided)
        return self

    def interval(self, prediction: ArrayLike, scale: ArrayLike = 1.0) -> tuple[FloatArray, FloatArray]:
        """Interval around point forecasts.

        Args:
            prediction: (n_bars,) or (n_bars, n_columns), columns as in the fit.
            scale: volatility forecast, > 0; a number or shaped like `prediction`.

        Returns:
            Lower and upper ends, shaped like `prediction`.
        """
        return self.interval_from_quantiles(prediction, prediction, scale)

    def interval_from_quantiles(
        self, low: ArrayLike, high: ArrayLike, scale: ArrayLike = 1.0
    ) -> tuple[FloatArray, FloatArray]:
        """Forecast interval widened, or narrowed, until it covers as promised.

        Args:
            low: lower quantile forecast; (n_bars,) or (n_bars, n_columns).
            high: upper quantile forecast, likewise.
            scale: as in the fit.

        Returns:
            Lower and upper ends. Where narrowing crosses them, both are their midpoint.
        """
        if self.margins is None:
            raise RuntimeError("SplitConformal has no margins yet: call fit or fit_quantiles first")
        size = _checked_scale(scale)
        lower = np.asarray(low, dtype=np.float64) - size * self.margins[0]
        upper = np.asarray(high, dtype=np.float64) + size * self.margins[1]
        middle = 0.5 * (lower + upper)
        return np.minimum(lower, middle), np.maximum(upper, middle)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs, as plain data."""
        margins = None if self.margins is None else [margin.tolist() for margin in self.margins]
        return {"coverage": self.coverage, "symmetric": self.symmetric, "margins": margins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the object whose `state_dict` this is."""
        self.coverage, self.symmetric = float(state["coverage"]), bool(state["symmetric"])
        margins = state["margins"]
        self.margins = None if margins is None else (np.array(margins[0]), np.array(margins[1]))


class AdaptiveConformal:
    """Intervals that learn from every outcome: adaptive conformal inference (Gibbs and Candès, 2021).

    The interval at bar t is prediction ± scale · q, q the ceil((n + 1)(1 - a[t]))-th smallest of the last n scores
    |y - prediction| / scale. After each outcome the miss rate aimed at moves by a[t+1] = a[t] + rate · (1 - coverage - miss),
    miss being 1 where the interval did not hold it. Summed up, after T outcomes

        share of misses = 1 - coverage + (a[1] - a[T+1]) / (rate · T)

    exactly, whatever the market does. As in the paper a may leave [0, 1]. Above 1 - 1/(n + 1) the interval is empty there;
    here it has no width and lies at the prediction. Below 1/(n + 1) it is infinite there; here it is as wide as the largest
    score remembered, so that widths stay numbers, and what falls outside counts as a miss. a then stays low until the misses
    are paid back: the identity above holds for the intervals returned.

    Labels over several bars become known late. Intervals whose outcome is still open wait in a queue, and `update` answers
    the oldest.

    Args:
        coverage: share of the outcomes that the intervals are to hold, in (0, 1).
        rate: step of a after each outcome, > 0. A larger one forgives faster and makes widths jump more: 0.02 lowers a by
            0.018 after a miss, so that six misses beyond the expected ones widen an interval as far as the memory goes.
        window_size: number of scores remembered, at least coverage / (1 - coverage). Until a memory is full again after a
            change of volatility it holds scores of another market, most lastingly where the market calms down: with 100
            both directions are over 250 bars after a change by a factor of three, with 250 only the rise is. A longer one
            makes intervals steadier and a little narrower (by 1% for 250).
    """

    def __init__(self, coverage: float = 0.9, rate: float = 0.02, *, window_size: int = 100) -> None:
        _check_coverage(coverage)
        if not (math.isfinite(rate) and rate > 0.0):
            raise ValueError(f"rate must be finite and above 0, got {rate}")
        least = _fewest_rows(coverage)
        if window_size < least:
            raise ValueError(f"window_size must be at least {least} for a coverage of {coverage}, got {window_size}")
        self.coverage = coverage
        self.rate = rate
        self.window_size = window_size
        self.miss_rate = 1.0 - coverage
        """a, the share of misses aimed at now; may leave [0, 1]."""
        self._scores: deque[float] = deque()
        self._sorted: list[float] = []
        self._open: deque[tuple[float, float, float]] = deque()

    @property
    def n_open(self) -> int:
        """Number of intervals given whose outcome is not known yet."""
        return len(self._open)

    def fit(self, y: ArrayLike, prediction: ArrayLike, scale: ArrayLike = 1.0) -> "AdaptiveConformal":
        """Start afresh with the scores of a calibration block, of which the last `window_size` are remembered.

        Args:
            y: outcomes that the predictor did not learn from; (n_bars,).
            prediction: their forecasts; (n_bars,).
            scale: volatility forecast for each, > 0; a number or (n_bars,).

        Returns:
            This object.
        """
        outcomes, predictions, scales = _checked_run(y, prediction, scale)
        if not np.isfinite(outcomes).all():
            raise ValueError("y must be finite: leave out the bars whose outcome is not known yet")
        scores = np.abs(outcomes - predictions) / scales
        self.miss_rate = 1.0 - self.coverage
        self._scores = deque(scores[-self.window_size :].tolist())
        self._sorted = sorted(self._scores)
        self._open.clear()
        return self

    def interval(self, prediction: float, scale: float = 1.0) -> tuple[float, float]:
        """Give the interval for the next outcome, which then waits for its `update`.

        Args:
            prediction: point forecast, finite.
            scale: volatility forecast, > 0.

        Returns:
            Lower and upper end; infinite while there are fewer scores than 1/(1 - coverage).
        """
        if not (math.isfinite(prediction) and math.isfinite(scale) and scale > 0.0):
            raise ValueError(f"prediction must be finite and scale above 0, got {prediction} and {scale}")
        half_width = float(scale) * self._score_quantile()
        self._open.append((float(prediction), float(scale), half_width))
        return prediction - half_width, prediction + half_width

    def update(self, y: float) -> None:
        """Learn the outcome of the oldest open interval.

        While scores are too few for a finite interval they are remembered only, and the miss rate aimed at stays.

        Args:
            y: what happened, finite.
        """
        if not self._open:
            raise RuntimeError("there is no open interval: call interval before update, once for each outcome")
        if not math.isfinite(y):
            raise ValueError(f"y must be finite, got {y}; call update when the outcome is known")
        prediction, scale, half_width = self._open.popleft()
        distance = abs(float(y) - prediction)
        if math.isfinite(half_width):
            missed = 1.0 if distance > half_width else 0.0
            self.miss_rate += self.rate * (1.0 - self.coverage - missed)
        self._remember(distance / scale)

    def run(
        self, y: ArrayLike, prediction: ArrayLike, scale: ArrayLike = 1.0, *, horizon: int = 1
    ) -> tuple[FloatArray, FloatArray]:
        """Stream over a block: at each bar learn the outcome that became known, then give an interval.

        The numbers are those of calling `update` and `interval` bar by bar. The outcomes of the last `horizon` bars are not
        known within the block: their intervals stay open, and `y` may be NaN there.

        Args:
            y: outcome of each bar's forecast, known `horizon` bars later; (n_bars,).
            prediction: point forecast of each bar; (n_bars,).
            scale: volatility forecast of each bar, > 0; a number or (n_bars,).
            horizon: bars between a forecast and its outcome, at least 1.

        Returns:
            Lower and upper ends; (n_bars,) each.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
        if self._open:
            raise RuntimeError(f"{self.n_open} intervals are open: answer them with update before running over a block")
        outcomes, predictions, scales = _checked_run(y, prediction, scale)
        low, high = np.empty(len(outcomes)), np.empty(len(outcomes))
        known = outcomes.tolist()
        for t, (expected, size) in enumerate(zip(predictions.tolist(), scales.tolist(), strict=True)):
            if t >= horizon:
                self.update(known[t - horizon])
            low[t], high[t] = self.interval(expected, size)
        return low, high

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs, as plain data."""
        return {
            "coverage": self.coverage,
            "rate": self.rate,
            "window_size": self.window_size,
            "miss_rate": self.miss_rate,
            "scores": list(self._scores),
            "open": [list(entry) for entry in self._open],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the object whose `state_dict` this is, open intervals included."""
        self.coverage, self.rate = float(state["coverage"]), float(state["rate"])
        self.window_size, self.miss_rate = int(state["window_size"]), float(state["miss_rate"])
        self._scores = deque(state["scores"])
        self._sorted = sorted(self._scores)
        self._open = deque((prediction, scale, half_width) for prediction, scale, half_width in state["open"])

    def _score_quantile(self) -> float:
        n_scores = len(self._sorted)
        if n_scores < _fewest_rows(self.coverage):
            return math.inf
        rank = _rank(n_scores, 1.0 - self.miss_rate)
        return 0.0 if rank < 1 else self._sorted[min(rank, n_scores) - 1]

    def _remember(self, score: float) -> None:
        if len(self._scores) >= self.window_size:
            del self._sorted[bisect_left(self._sorted, self._scores.popleft())]
        self._scores.append(score)
        insort(self._sorted, score)


def _rank(n_scores: int, coverage: float) -> int:
    # The small number takes back what rounding adds: 0.9 times 10 must be the 9th score, not the 10th.
    return math.ceil((n_scores + 1) * coverage - 1e-9)


def _fewest_rows(coverage: float) -> int:
    """Fewest scores whose quantile is finite: rank n must not be below (n + 1) · coverage."""
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


def _finite_sample_quantile(scores: FloatArray, coverage: float) -> FloatArray:
    """The ceil((n + 1) · coverage)-th smallest score of each column; () or (n_columns,)."""
    n_rows, least = len(scores), _fewest_rows(coverage)
    if n_rows < least:
        raise ValueError(f"at least {least} calibration rows are required for this coverage, got {n_rows}")
    nth = _rank(n_rows, coverage) - 1
    quantile: FloatArray = np.asarray(np.partition(scores, nth, axis=0)[nth])
    return quantile


def _checked_scale(scale: ArrayLike) -> FloatArray:
    size = np.asarray(scale, dtype=np.float64)
    if not (np.isfinite(size) & (size > 0.0)).all():
        raise ValueError("scale must be finite and above 0 everywhere; it is a volatility")
    return size


def _checked_run(y: ArrayLike, prediction: ArrayLike, scale: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    outcomes, predictions = np.asarray(y, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if outcomes.ndim != 1 or outcomes.shape != predictions.shape:
        raise ValueError(f"y and prediction must be (n_bars,), got {outcomes.shape} and {predictions.shape}")
    size = _checked_scale(scale)
    if size.shape not in ((), outcomes.shape):
        raise ValueError(f"scale must be a number or shaped like y, {outcomes.shape}, got {size.shape}")
    return outcomes, predictions, np.broadcast_to(size, outcomes.shape)


def _check_coverage(coverage: float) -> None:
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}; 90% is 0.9")
