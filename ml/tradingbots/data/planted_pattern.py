"""A market in which a chart shape foretells the next move, and nothing simpler does."""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, TypeAlias, get_args

import numpy as np

from ml.tradingbots.data.synthetic import FloatArray, SyntheticMarket, _check_above, _normals, _prices_from_log

PatternName: TypeAlias = Literal["v", "double_bottom"]

SHAPES: dict[str, tuple[int, ...]] = {
    "v": (-1,) * 6 + (1,) * 6,
    "double_bottom": ((-1,) * 3 + (1,) * 3) * 2,
}
"""Signs of the 12 log returns of each shape, which sum to zero: the way up. Upside down they are the way down."""
SHAPE_BARS = 12

_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class PlantedPattern:
    """Noise in which a shape, where chance draws it clearly enough, is followed by a move.

    With z the log returns over `volatility`, the match is m[t] = Σ shape · z[t-11 … t] / √12, positive for the shape and
    negative for the shape upside down. A pattern is complete at c where |m[c]| exceeds the threshold and did not in the h
    bars before (h the horizon). The h bars after c are a pause; the bar after the pause moves by
    sign(m[c]) · effect · volatility · √h on top of its noise. It lies within the next h bars of the origins c+1 … c+h.

    What follows from this:
        The last return has no correlation with y over this horizon: the pause keeps the shape out of it, and patterns too
        near to each other do not count. A linear model of one lag learns nothing. One that sees the whole window ranks
        origins by their match and gains most of the AUC, but a third of R² at most: it takes faint shapes for small moves.
        A window of 12 + 2h log returns that ends at the origin shows all there is to know.
        y is normal with deviation volatility · √h around its expectation, so of two such origins, up and down, Φ(effect)
        move the way of their pattern, and over all origins the best score, which is `state`, ranks a rise above a fall with
        probability AUC* = ½ + q · (2 - q) · (Φ(effect) - ½), q being the prevalence.
    """

    pattern: PatternName = "v"
    """Which shape."""
    prevalence: float = 0.1
    """q, share of the origins whose next `horizon` bars hold a move, in (0, 0.12], if moves did not disturb the matches
    after them. They do: the share found, mean(state != 0), is up to a fifth off for an effect of 1 and half for one of 2."""
    effect: float = 1.0
    """Size of the move in deviations of the log return over `horizon` bars, > 0."""
    horizon: int = 1
    """h, bars over which the outcome is measured; 1 to 20."""
    volatility: float = 0.01
    """Standard deviation of the noise of the log return per bar, > 0."""

    def __post_init__(self) -> None:
        if self.pattern not in get_args(PatternName):
            raise ValueError(f"pattern must be one of {', '.join(SHAPES)}, got {self.pattern!r}")
        if not 0.0 < self.prevalence <= 0.12:
            raise ValueError(f"prevalence must be in (0, 0.12], or patterns run into each other; got {self.prevalence}")
        if not 1 <= self.horizon <= 20:
            raise ValueError(f"horizon must be 1 to 20 bars, got {self.horizon}")
        _check_above("effect", self.effect, 0.0)
        _check_above("volatility", self.volatility, 0.0)

    @property
    def window_size(self) -> int:
        """Log returns that show all there is to know."""
        return SHAPE_BARS + 2 * self.horizon

    @property
    def threshold(self) -> float:
        """What |m| must exceed, so that the prevalence results."""
        return _threshold(self.pattern, self.prevalence, self.horizon)

    @property
    def move(self) -> float:
        """Size of the move, as a log return."""
        return self.effect * self.volatility * math.sqrt(self.horizon)

    def optimal_auc(self, prevalence: float | None = None) -> float:
        """AUC* for telling rises of y from falls; at the prevalence found in a market, where given."""
        q = self.prevalence if prevalence is None else prevalence
        return 0.5 + q * (2.0 - q) * (_STANDARD_NORMAL.cdf(self.effect) - 0.5)

    def optimal_r2(self, prevalence: float | None = None) -> float:
        """R² of the true expectation of y, state · move; at the prevalence found in a market, where given."""
        q = self.prevalence if prevalence is None else prevalence
        return q * self.effect**2 / (1.0 + q * self.effect**2)


def planted_pattern(
    n_bars: int,
    *,
    pattern: PatternName = "v",
    prevalence: float = 0.1,
    effect: float = 1.0,
    horizon: int = 1,
    volatility: float = 0.01,
    seed: int,
) -> SyntheticMarket:
    """Make a market in which a chart shape foretells the next move, and nothing simpler does; see `PlantedPattern`.

    Args:
        n_bars: number of bars, at least 2.
        pattern: which shape.
        prevalence: share of the origins whose next `horizon` bars hold a move.
        effect: size of the move in deviations of the log return over the horizon.
        horizon: bars over which the outcome is measured.
        volatility: standard deviation of the noise per bar.
        seed: seed of the generator.

    Returns:
        The market; its state is +1 where the next `horizon` bars hold a move up, -1 where one down, 0 elsewhere: the best
        score there is. The expected log return over them is state · parameters.move.
    """
    parameters = PlantedPattern(
        pattern=pattern, prevalence=prevalence, effect=effect, horizon=horizon, volatility=volatility
    )
    standardised, state = _walk_pattern(_normals(n_bars, seed).tolist(), parameters)
    prices = _prices_from_log(np.cumsum(volatility * standardised))
    return SyntheticMarket(name="planted_pattern", prices=prices, state=state, parameters=parameters)


def _walk_pattern(noise: list[float], parameters: PlantedPattern) -> tuple[FloatArray, FloatArray]:
    """Run the process of `PlantedPattern`; return log returns in units of volatility, and the state; (n_bars,) each."""
    n_bars, horizon = len(noise), parameters.horizon
    shape = [sign / math.sqrt(SHAPE_BARS) for sign in SHAPES[parameters.pattern]]
    threshold, move = parameters.threshold, parameters.effect * math.sqrt(horizon)
    values = noise
    # The state of the origins after the last bar, and its move, fall off the end.
    state = [0.0] * (n_bars + horizon + 1)
    last_above = -horizon - 1
    for t in range(SHAPE_BARS - 1, n_bars):
        match = sum(weight * value for weight, value in zip(shape, values[t - SHAPE_BARS + 1 : t + 1], strict=True))
        if abs(match) <= threshold:
            continue
        if t - last_above > horizon:
            direction = math.copysign(1.0, match)
            state[t + 1 : t + 1 + horizon] = [direction] * horizon
            if t + horizon + 1 < n_bars:
                values[t + horizon + 1] += direction * move
        last_above = t
    return np.array(values), np.array(state[:n_bars])


@lru_cache(maxsize=64)
def _threshold(pattern: str, prevalence: float, horizon: int) -> float:
    """Find the threshold of the match that gives the prevalence, on a fixed long stretch of noise, by bisection."""
    normals = np.random.default_rng(0).standard_normal(400_000)
    shape = np.array(SHAPES[pattern]) / math.sqrt(SHAPE_BARS)
    size = np.abs(np.convolve(normals, shape[::-1], mode="valid"))
    windows = np.lib.stride_tricks.sliding_window_view(size[:-1], horizon)
    highest_before, size = windows.max(axis=1), size[horizon:]
    # Below 1, higher thresholds find more patterns, because fewer stand in each other's way.
    low, high = 1.0, 5.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        share = horizon * float(np.mean((size > middle) & (highest_before <= middle)))
        low, high = (middle, high) if share > prevalence else (low, middle)
    return 0.5 * (low + high)
