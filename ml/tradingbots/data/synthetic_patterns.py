"""Synthetic markets for forecasters, and the best scores that anyone can reach on them.

A forecaster that stays far below these scores is broken, and one that passes them by more than chance has seen the future.
Conventions are those of `data.synthetic`; `y` is the log return over `horizon` bars, ln(close[t + h] / close[t]). Log returns
have mean zero here, so the forecast without skill is zero.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from ml.tradingbots.data.synthetic import (
    Autoregressive,
    FloatArray,
    SyntheticMarket,
    _check_above,
    _check_at_least,
    _first_order,
    _normals,
    _prices_from_log,
)

PatternName: TypeAlias = Literal["v", "double_bottom"]

SHAPES: dict[str, tuple[int, ...]] = {
    "v": (-1,) * 6 + (1,) * 6,
    "double_bottom": ((-1,) * 3 + (1,) * 3) * 2,
}
"""Signs of the 12 log returns of each shape, which sum to zero: the way up. Upside down they are the way down."""
SHAPE_BARS = 12

_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class GaussianOptimum:
    """The scores of the true expectation where it and the outcome are jointly normal with mean zero."""

    r2: float
    """Share of the outcome's variance that can be known beforehand, in [0, 1)."""
    deviation: float
    """Standard deviation of the outcome y."""

    @property
    def error_deviation(self) -> float:
        """Standard deviation of the outcome around its true expectation."""
        return self.deviation * math.sqrt(1.0 - self.r2)

    @property
    def information_coefficient(self) -> float:
        """Pearson correlation of expectation and outcome."""
        return math.sqrt(self.r2)

    @property
    def rank_ic(self) -> float:
        """Spearman correlation of expectation and outcome."""
        return 6.0 / math.pi * math.asin(0.5 * math.sqrt(self.r2))

    @property
    def directional_accuracy(self) -> float:
        """Probability that the expectation has the sign of the outcome."""
        return 0.5 + math.asin(math.sqrt(self.r2)) / math.pi

    @property
    def crps(self) -> float:
        """Mean CRPS of the true distribution given what is known."""
        return self.error_deviation / math.sqrt(math.pi)

    def pinball_loss(self, quantile: float) -> float:
        """Mean pinball loss of the true conditional quantile."""
        return self.error_deviation * _STANDARD_NORMAL.pdf(_STANDARD_NORMAL.inv_cdf(quantile))

    def quantile(self, expected: FloatArray, quantile: float) -> FloatArray:
        """True conditional quantile given the true expectation, shaped like it."""
        return expected + self.error_deviation * _STANDARD_NORMAL.inv_cdf(quantile)

    def sharpe_of_sign(self, *, bars_per_year: float) -> float:
        """Annual Sharpe ratio, before costs, of holding the sign of the expectation; horizon 1."""
        edge = math.sqrt(self.r2) * math.sqrt(2.0 / math.pi)
        return edge / math.sqrt(1.0 - edge**2) * math.sqrt(bars_per_year)

    def sharpe_of_linear(self, *, bars_per_year: float) -> float:
        """Annual Sharpe ratio, before costs, of holding a multiple of the expectation, without a limit; horizon 1."""
        return math.sqrt(self.r2 / (1.0 + self.r2)) * math.sqrt(bars_per_year)


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


@dataclass(frozen=True, kw_only=True)
class NoisySine:
    """Log returns that swing as a sine under noise, r[t] = amplitude · sin(2π t / period) + volatility · e[t]."""

    period: float = 20.0
    """Length of one swing in bars, > 2."""
    amplitude: float = 0.005
    """Highest expected log return per bar, > 0."""
    volatility: float = 0.01
    """Standard deviation of the noise per bar, > 0."""

    def __post_init__(self) -> None:
        _check_above("period", self.period, 2.0)
        _check_above("amplitude", self.amplitude, 0.0)
        _check_above("volatility", self.volatility, 0.0)

    def optimal_r2(self, horizon: int = 1, *, window_size: int | None = None) -> float:
        """R² over a horizon of who knows the phase, or of the best linear forecast from the last `window_size` returns.

        The first is an upper bound for all; a window can only guess the phase. A horizon of whole periods leaves noise.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
        pulse = 2.0 * math.pi / self.period
        gain = math.sin(0.5 * pulse * horizon) / math.sin(0.5 * pulse)
        signal = 0.5 * (self.amplitude * gain) ** 2
        total = signal + horizon * self.volatility**2
        if window_size is None:
            return signal / total
        # Averaged over the phase, returns k bars apart have covariance ½ amplitude² cos(pulse · k).
        lags = np.arange(window_size)
        covariance = 0.5 * self.amplitude**2 * np.cos(pulse * (lags[:, None] - lags))
        covariance += self.volatility**2 * np.eye(window_size)
        ahead = np.arange(1, horizon + 1)
        with_outcome = 0.5 * self.amplitude**2 * np.cos(pulse * (lags[:, None] + ahead)).sum(axis=1)
        return float(with_outcome @ np.linalg.solve(covariance, with_outcome)) / total


@dataclass(frozen=True, kw_only=True)
class VolatilityBreak:
    """Independent normal log returns of mean zero whose deviation changes once."""

    at: int
    """First bar with the new deviation, at least 1."""
    factor: float = 3.0
    """New deviation over the old one, > 0."""
    volatility: float = 0.01
    """Standard deviation of the log return per bar before the break, > 0."""

    def __post_init__(self) -> None:
        if self.at < 1:
            raise ValueError(f"at must be at least 1, got {self.at}")
        _check_above("factor", self.factor, 0.0)
        _check_above("volatility", self.volatility, 0.0)


@dataclass(frozen=True, kw_only=True)
class Garch:
    """GARCH(1, 1) log returns of mean zero (Bollerslev, 1986): the direction cannot be predicted, the size can.

    s²[t+1] = (1 - reaction - memory) · volatility² + reaction · r²[t] + memory · s²[t]; the paper's α and β.
    """

    volatility: float = 0.01
    """Standard deviation of the log return per bar in the long run, > 0."""
    reaction: float = 0.1
    """Weight of the last squared log return in the next variance, >= 0."""
    memory: float = 0.85
    """Weight of the last variance in the next one, >= 0; with `reaction` below 1."""

    def __post_init__(self) -> None:
        _check_above("volatility", self.volatility, 0.0)
        _check_at_least("reaction", self.reaction, 0.0)
        _check_at_least("memory", self.memory, 0.0)
        if self.reaction + self.memory >= 1.0:
            raise ValueError(
                "reaction + memory must be below 1, or the variance has no long run; "
                f"got {self.reaction} + {self.memory}"
            )

    def forecast_deviation(self, next_deviation: FloatArray, horizon: int = 1) -> FloatArray:
        """Deviation of y over a horizon, given that of the next bar (the market's state); shaped like it."""
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
        persistence = self.reaction + self.memory
        excess = next_deviation**2 - self.volatility**2
        variance = horizon * self.volatility**2 + excess * (1.0 - persistence**horizon) / (1.0 - persistence)
        deviation: FloatArray = np.sqrt(variance)
        return deviation


@dataclass(frozen=True, kw_only=True)
class PanelAutoregressive:
    """Several assets whose log returns are AR(1) with one phi and volatilities of their own, independent of each other."""

    phi: float
    """Share of the last log return that is expected to repeat, in (-1, 1); the same for all."""
    volatilities: tuple[float, ...]
    """Standard deviation of the innovation of each asset, > 0; (n_assets,)."""

    def __post_init__(self) -> None:
        if not self.volatilities:
            raise ValueError("volatilities must have one entry per asset, got none")
        for asset in range(len(self.volatilities)):
            self.of_asset(asset)

    def of_asset(self, asset: int) -> Autoregressive:
        """The process of one asset alone."""
        return Autoregressive(phi=self.phi, volatility=self.volatilities[asset])


def autoregressive_optimum(parameters: Autoregressive, horizon: int = 1) -> GaussianOptimum:
    """Best scores on an AR(1) over a horizon: at horizon 1, R² is phi² and the IC |phi|.

    They hold for outcomes about their mean; with a `mean_log_return` other than 0 directions and Sharpe ratios gain a little.

    Args:
        parameters: the process.
        horizon: bars over which the outcome is measured; its log returns are summed up, which hides what the last return
            says about the first bar of them behind the noise of all the others.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
    phi = parameters.phi
    lags = np.arange(1, horizon)
    variance = horizon + 2.0 * float(np.sum((horizon - lags) * phi**lags))
    known = _expected_multiple(phi, horizon) ** 2
    return GaussianOptimum(r2=known / variance, deviation=parameters.stationary_deviation * math.sqrt(variance))


def autoregressive_expectation(parameters: Autoregressive, last: FloatArray, horizon: int = 1) -> FloatArray:
    """Expected log return over the next `horizon` bars of an AR(1) given its last log return; shaped like `last`."""
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
    mean = parameters.mean_log_return
    return horizon * mean + _expected_multiple(parameters.phi, horizon) * (last - mean)


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


def noisy_sine(
    n_bars: int, *, period: float = 20.0, amplitude: float = 0.005, volatility: float = 0.01, seed: int
) -> SyntheticMarket:
    """Make a market whose expected log return swings as a sine, to be forecast over several horizons.

    `sine` is the other way round: there the price swings, and noise on it is gone at the next bar.

    Args:
        n_bars: number of bars, at least 2.
        period: length of one swing in bars.
        amplitude: highest expected log return per bar.
        volatility: standard deviation of the noise per bar.
        seed: seed of the generator.

    Returns:
        The market; its state is the expected log return of the next bar.
    """
    parameters = NoisySine(period=period, amplitude=amplitude, volatility=volatility)
    noise = volatility * _normals(n_bars, seed)
    expected = amplitude * np.sin(2.0 * np.pi * (np.arange(n_bars + 1, dtype=np.float64) % period) / period)
    prices = _prices_from_log(np.cumsum(expected[:-1] + noise))
    return SyntheticMarket(name="noisy_sine", prices=prices, state=expected[1:], parameters=parameters)


def volatility_break(
    n_bars: int, *, at: int, factor: float = 3.0, volatility: float = 0.01, seed: int
) -> SyntheticMarket:
    """Make a market that cannot be predicted and whose volatility changes once: intervals fitted before must fail.

    Args:
        n_bars: number of bars, at least 2.
        at: first bar with the new volatility.
        factor: new volatility over the old one.
        volatility: standard deviation of the log return per bar before the break.
        seed: seed of the generator.

    Returns:
        The market; its state is the deviation of the next bar's log return, which no one knows before the break.
    """
    parameters = VolatilityBreak(at=at, factor=factor, volatility=volatility)
    deviation = np.where(np.arange(n_bars + 1) >= at, factor * volatility, volatility)
    prices = _prices_from_log(np.cumsum(deviation[:-1] * _normals(n_bars, seed)))
    return SyntheticMarket(name="volatility_break", prices=prices, state=deviation[1:], parameters=parameters)


def garch(
    n_bars: int, *, volatility: float = 0.01, reaction: float = 0.1, memory: float = 0.85, seed: int
) -> SyntheticMarket:
    """Make a market whose direction cannot be predicted and whose volatility can.

    Args:
        n_bars: number of bars, at least 2.
        volatility: standard deviation of the log return in the long run, and of the first bar.
        reaction: weight of the last squared log return in the next variance.
        memory: weight of the last variance in the next one.
        seed: seed of the generator.

    Returns:
        The market; its state is the deviation of the next bar's log return, a function of the returns so far.
    """
    parameters = Garch(volatility=volatility, reaction=reaction, memory=memory)
    variance = volatility**2
    constant = (1.0 - reaction - memory) * variance
    log_returns, state = [], []
    for normal in _normals(n_bars, seed).tolist():
        log_return = math.sqrt(variance) * normal
        variance = constant + reaction * log_return**2 + memory * variance
        log_returns.append(log_return)
        state.append(math.sqrt(variance))
    prices = _prices_from_log(np.cumsum(log_returns))
    return SyntheticMarket(name="garch", prices=prices, state=np.array(state), parameters=parameters)


def panel_autoregressive(
    n_assets: int, n_bars: int, *, phi: float = 0.3, volatilities: tuple[float, ...] | None = None, seed: int
) -> SyntheticMarket:
    """Make a panel of assets that share one law and differ in size: little data each, enough together.

    A model fitted to one asset of 300 bars and 16 lags expects R² of phi² - (1 - phi²) · 16/300; one fitted to all of them,
    in units of each one's volatility, has n_assets times the bars.

    Args:
        n_assets: number of assets, at least 1; they are called A00, A01 and so on.
        n_bars: number of bars, at least 2.
        phi: share of the last log return that is expected to repeat.
        volatilities: standard deviation of each asset's innovation; None spreads them evenly in ratio from 0.005 to 0.03.
        seed: seed of the generator; with it, each asset has a stream of its own.

    Returns:
        The market; its prices have one column of closes per asset, and its state is the last log return of each.
    """
    if n_assets < 1:
        raise ValueError(f"n_assets must be at least 1, got {n_assets}")
    if volatilities is None:
        volatilities = tuple(np.geomspace(0.005, 0.03, n_assets).tolist())
    if len(volatilities) != n_assets:
        raise ValueError(f"volatilities must have one entry for each of {n_assets} assets, got {len(volatilities)}")
    parameters = PanelAutoregressive(phi=phi, volatilities=tuple(volatilities))
    streams = np.random.SeedSequence(seed).generate_state(n_assets, np.uint64).tolist()
    log_returns, closes = [], {}
    for asset, (stream, volatility) in enumerate(zip(streams, volatilities, strict=True)):
        process = parameters.of_asset(asset)
        innovations = volatility * _normals(n_bars, stream)
        log_returns.append(_first_order(phi, process.stationary_deviation, innovations, volatility))
        closes[f"A{asset:02d}"] = _prices_from_log(np.cumsum(log_returns[-1]))["close"]
    return SyntheticMarket(
        name="panel_autoregressive",
        prices=pd.DataFrame(closes),
        state=np.stack(log_returns, axis=1),
        parameters=parameters,
    )


def _expected_multiple(phi: float, horizon: int) -> float:
    """What an AR(1)'s next `horizon` log returns are expected to sum to, for a last one of 1 above its mean."""
    return phi * (1.0 - phi**horizon) / (1.0 - phi)


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
