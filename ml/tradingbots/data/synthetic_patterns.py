"""Synthetic markets for forecasters, and the best scores that anyone can reach on them.

A forecaster that stays far below these scores is broken, and one that passes them by more than chance has seen the future.
Conventions are those of `data.synthetic`; `y` is the log return over `horizon` bars, ln(close[t + h] / close[t]). Log returns
have mean zero here, so the forecast without skill is zero.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ml.tradingbots.data.gaussian_optimum import GaussianOptimum, autoregressive_expectation, autoregressive_optimum
from ml.tradingbots.data.planted_pattern import PlantedPattern, planted_pattern
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

__all__ = [
    "Garch",
    "GaussianOptimum",
    "NoisySine",
    "PanelAutoregressive",
    "PlantedPattern",
    "VolatilityBreak",
    "autoregressive_expectation",
    "autoregressive_optimum",
    "garch",
    "noisy_sine",
    "panel_autoregressive",
    "planted_pattern",
    "volatility_break",
]


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
