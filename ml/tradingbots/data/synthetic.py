"""Synthetic markets whose right answer is known: seeded prices together with the process that made them.

An agent that learns nothing on these markets is broken, and one that earns more than the optimum that `data.optimal`
computes has seen the future. Every market is a pure function of its arguments and its seed, and a longer one starts
with the shorter one of the same seed, bit for bit.

Conventions: one bar is one business day; `volatility` is the standard deviation of the log price's innovation per bar
(0.01 is 1% a day, not annualised); prices start near 100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:
    from ml.tradingbots.data.synthetic_patterns import (
        Garch,
        NoisySine,
        PanelAutoregressive,
        PlantedPattern,
        VolatilityBreak,
    )

FloatArray = npt.NDArray[np.float64]

INITIAL_PRICE = 100.0
FIRST_DAY = "1990-01-01"


@dataclass(frozen=True, kw_only=True)
class RandomWalk:
    """Independent log returns: mean log(1 + drift) - volatility²/2, standard deviation `volatility`.

    The mean is chosen so that the expected *simple* return is `drift`. At drift 0 the price is therefore a martingale
    and no strategy earns anything; a zero mean log return would instead reward holding half the equity in the asset.
    """

    volatility: float = 0.01
    """Standard deviation of the log return per bar, >= 0."""
    drift: float = 0.0
    """Expected simple return per bar (0.0004 is about 10% a year), above -1."""

    def __post_init__(self) -> None:
        _check_at_least("volatility", self.volatility, 0.0)
        _check_above("drift", self.drift, -1.0)

    @property
    def mean_log_return(self) -> float:
        """Expected log return per bar."""
        return math.log1p(self.drift) - 0.5 * self.volatility**2


@dataclass(frozen=True, kw_only=True)
class Autoregressive:
    """AR(1) log returns, r[t] - m = phi · (r[t-1] - m) + e[t]: momentum for phi > 0, reversal for phi < 0."""

    phi: float = 0.3
    """Share of the last log return that is expected to repeat, in (-1, 1)."""
    volatility: float = 0.01
    """Standard deviation of the innovation e per bar, > 0."""
    mean_log_return: float = 0.0
    """m, the mean log return per bar. At 0 the price drifts up by half the variance, which holding half of it harvests;
    minus half the variance makes it a fair game on average."""

    def __post_init__(self) -> None:
        if not -1.0 < self.phi < 1.0:
            raise ValueError(f"phi must be in (-1, 1), or the log returns are not stationary; got {self.phi}")
        _check_above("volatility", self.volatility, 0.0)

    @property
    def stationary_deviation(self) -> float:
        """Standard deviation of the log return per bar in the long run."""
        return self.volatility / math.sqrt(1.0 - self.phi**2)


@dataclass(frozen=True, kw_only=True)
class OrnsteinUhlenbeck:
    """A log price that returns to its mean, x[t] = (1 - reversion) · x[t-1] + e[t], close = 100 · exp(x)."""

    reversion: float = 0.1
    """Share of the deviation that is expected to vanish in one bar, in (0, 1]."""
    volatility: float = 0.01
    """Standard deviation of the innovation e per bar, > 0."""

    def __post_init__(self) -> None:
        if not 0.0 < self.reversion <= 1.0:
            raise ValueError(f"reversion must be in (0, 1], or the log price is not stationary; got {self.reversion}")
        _check_above("volatility", self.volatility, 0.0)

    @property
    def stationary_deviation(self) -> float:
        """Standard deviation of the log price in the long run."""
        return self.volatility / math.sqrt(1.0 - (1.0 - self.reversion) ** 2)


@dataclass(frozen=True, kw_only=True)
class RegimeSwitching:
    """A hidden Markov chain of regimes, each a random walk with a drift and a volatility of its own.

    A regime that ends is followed by any of the others with equal probability.
    """

    drifts: tuple[float, ...] = (0.001, -0.001)
    """Expected simple return per bar in each regime, above -1; (n_regimes,)."""
    volatilities: tuple[float, ...] = (0.008, 0.016)
    """Standard deviation of the log return per bar in each regime, > 0; (n_regimes,)."""
    stay_probability: float | tuple[float, ...] = 0.98
    """Probability that a regime lasts one bar more, in [0, 1); its mean length is 1 / (1 - stay_probability) bars. One
    number, or one for each regime."""

    def __post_init__(self) -> None:
        if len(self.drifts) != len(self.volatilities) or len(self.drifts) < 2:
            raise ValueError(
                "drifts and volatilities must have one entry for each of at least two regimes, "
                f"got {len(self.drifts)} drifts and {len(self.volatilities)} volatilities"
            )
        for drift in self.drifts:
            _check_above("every drift", drift, -1.0)
        for volatility in self.volatilities:
            _check_above("every volatility", volatility, 0.0)
        if len(self._stay_probabilities) != len(self.drifts):
            raise ValueError(
                f"stay_probability must be one number or one for each of {len(self.drifts)} regimes, "
                f"got {len(self._stay_probabilities)}"
            )
        if not all(0.0 <= stay < 1.0 for stay in self._stay_probabilities):
            raise ValueError(f"stay_probability must be in [0, 1), got {self.stay_probability}")

    @property
    def _stay_probabilities(self) -> tuple[float, ...]:
        if isinstance(self.stay_probability, tuple):
            return self.stay_probability
        return (self.stay_probability,) * len(self.drifts)

    @property
    def transition_matrix(self) -> FloatArray:
        """Probability of the next regime (column) given this one (row); (n_regimes, n_regimes)."""
        stay = np.array(self._stay_probabilities)
        matrix: FloatArray = np.repeat(((1.0 - stay) / (len(stay) - 1))[:, None], len(stay), axis=1)
        np.fill_diagonal(matrix, stay)
        return matrix

    @property
    def mean_log_returns(self) -> FloatArray:
        """Expected log return per bar in each regime; (n_regimes,)."""
        means: FloatArray = np.log1p(np.array(self.drifts)) - 0.5 * np.array(self.volatilities) ** 2
        return means


@dataclass(frozen=True, kw_only=True)
class Sine:
    """A log price that swings as a sine, log(close / 100) = amplitude · sin(2π t / period) + noise · e[t]."""

    period: float = 40.0
    """Length of one swing in bars, > 2 (a shorter one cannot be told from a longer one)."""
    amplitude: float = 0.1
    """Highest log price of the swing; 0.1 moves the price between about -10% and +10%; > 0."""
    noise: float = 0.0
    """Standard deviation of the independent noise on each log price, >= 0."""

    def __post_init__(self) -> None:
        _check_above("period", self.period, 2.0)
        _check_above("amplitude", self.amplitude, 0.0)
        _check_at_least("noise", self.noise, 0.0)


Parameters: TypeAlias = (
    "RandomWalk | Autoregressive | OrnsteinUhlenbeck | RegimeSwitching | Sine"
    " | PlantedPattern | NoisySine | VolatilityBreak | Garch | PanelAutoregressive"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticMarket:
    """Prices together with the process that made them."""

    name: str
    """Name of the function that made the market."""
    prices: pd.DataFrame
    """Column `close`, and for some markets a column an agent may be shown; a panel has one column of closes per asset.
    Index: business days, UTC; n_bars rows."""
    state: FloatArray
    """What predicts the next bar, as of the close of each bar; each market's function says what it is; (n_bars,), for a
    panel (n_bars, n_assets)."""
    parameters: Parameters
    """The process itself."""


def random_walk(n_bars: int, *, volatility: float = 0.01, drift: float = 0.0, seed: int) -> SyntheticMarket:
    """Make a market that cannot be predicted; at drift 0 nothing earns and every trade pays its costs.

    Args:
        n_bars: number of bars, at least 2.
        volatility: standard deviation of the log return per bar.
        drift: expected simple return per bar.
        seed: seed of the generator.

    Returns:
        The market; its state is the last log return, which predicts nothing.
    """
    parameters = RandomWalk(volatility=volatility, drift=drift)
    log_returns = parameters.mean_log_return + volatility * _normals(n_bars, seed)
    prices = _prices_from_log(np.cumsum(log_returns))
    return SyntheticMarket(name="random_walk", prices=prices, state=log_returns, parameters=parameters)


def autoregressive(
    n_bars: int, *, phi: float = 0.3, volatility: float = 0.01, mean_log_return: float = 0.0, seed: int
) -> SyntheticMarket:
    """Make a market whose last log return predicts the next one: r[t] - m = phi · (r[t-1] - m) + e[t].

    Args:
        n_bars: number of bars, at least 2.
        phi: share of the last log return that is expected to repeat.
        volatility: standard deviation of the innovation e.
        mean_log_return: m.
        seed: seed of the generator.

    Returns:
        The market; its state is the last log return (at bar 0 the return from a price of 100 before the first bar).
    """
    parameters = Autoregressive(phi=phi, volatility=volatility, mean_log_return=mean_log_return)
    log_returns = mean_log_return + _first_order(
        phi, parameters.stationary_deviation, volatility * _normals(n_bars, seed), volatility
    )
    prices = _prices_from_log(np.cumsum(log_returns))
    return SyntheticMarket(name="autoregressive", prices=prices, state=log_returns, parameters=parameters)


def ornstein_uhlenbeck(n_bars: int, *, reversion: float = 0.1, volatility: float = 0.01, seed: int) -> SyntheticMarket:
    """Make a market whose log price x returns to its mean: x[t] = (1 - reversion) · x[t-1] + e[t].

    Args:
        n_bars: number of bars, at least 2.
        reversion: share of the deviation that is expected to vanish in one bar.
        volatility: standard deviation of the innovation e.
        seed: seed of the generator.

    Returns:
        The market; its state is the deviation x, also in the column `deviation` of its prices so that an agent can see
        it.
    """
    parameters = OrnsteinUhlenbeck(reversion=reversion, volatility=volatility)
    innovations = volatility * _normals(n_bars, seed)
    deviation = _first_order(1.0 - reversion, parameters.stationary_deviation, innovations, volatility)
    prices = _prices_from_log(deviation)
    prices["deviation"] = deviation
    return SyntheticMarket(name="ornstein_uhlenbeck", prices=prices, state=deviation, parameters=parameters)


def regime_switching(
    n_bars: int,
    *,
    drifts: tuple[float, ...] = (0.001, -0.001),
    volatilities: tuple[float, ...] = (0.008, 0.016),
    stay_probability: float | tuple[float, ...] = 0.98,
    seed: int,
) -> SyntheticMarket:
    """Make a market that changes between hidden regimes, each a random walk of its own.

    Args:
        n_bars: number of bars, at least 2.
        drifts: expected simple return per bar in each regime; (n_regimes,).
        volatilities: standard deviation of the log return per bar in each regime; (n_regimes,).
        stay_probability: probability that a regime lasts one bar more, one number or one for each regime.
        seed: seed of the generator.

    Returns:
        The market; its state is the index of the regime that made the bar, which no agent can see;
        `filtered_regime_probability` is what can be known of it.
    """
    parameters = RegimeSwitching(
        drifts=tuple(drifts), volatilities=tuple(volatilities), stay_probability=stay_probability
    )
    _check_n_bars(n_bars)
    chain_generator, return_generator = np.random.default_rng(seed).spawn(2)
    regime = _markov_chain(parameters.transition_matrix, chain_generator.random(n_bars))
    deviations = np.array(volatilities)[regime] * return_generator.standard_normal(n_bars)
    prices = _prices_from_log(np.cumsum(parameters.mean_log_returns[regime] + deviations))
    return SyntheticMarket(
        name="regime_switching", prices=prices, state=regime.astype(np.float64), parameters=parameters
    )


def sine(
    n_bars: int, *, period: float = 40.0, amplitude: float = 0.1, noise: float = 0.0, seed: int
) -> SyntheticMarket:
    """Make a market that swings as a sine, the easiest one to learn: without noise the window tells all.

    Args:
        n_bars: number of bars, at least 2.
        period: length of one swing in bars.
        amplitude: highest log price of the swing.
        noise: standard deviation of the independent noise on each log price.
        seed: seed of the generator; without noise it changes nothing.

    Returns:
        The market; its state is the phase of the swing in radians, in [0, 2π). With noise, the last noise term matters
        too: it is gone at the next bar.
    """
    parameters = Sine(period=period, amplitude=amplitude, noise=noise)
    innovations = noise * _normals(n_bars, seed)
    phase = 2.0 * np.pi * (np.arange(n_bars, dtype=np.float64) % period) / period
    prices = _prices_from_log(amplitude * np.sin(phase) + innovations)
    return SyntheticMarket(name="sine", prices=prices, state=phase, parameters=parameters)


def filtered_regime_probability(log_returns: FloatArray, parameters: RegimeSwitching) -> FloatArray:
    """Probability of each regime given the log returns seen so far: the most an agent can know (Hamilton, 1989).

    Args:
        log_returns: log return of each bar, from the first bar of the market; (n_bars,).
        parameters: the process that made them.

    Returns:
        Row t uses log returns up to and including bar t; rows sum to 1; (n_bars, n_regimes).
    """
    volatilities = np.array(parameters.volatilities)
    standardised = (log_returns[:, None] - parameters.mean_log_returns) / volatilities
    log_likelihood = -0.5 * standardised**2 - np.log(volatilities)
    # Only ratios within a row matter; without this shift a far outlier has likelihood 0 in every regime.
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    transition = parameters.transition_matrix
    probability: FloatArray = np.empty_like(likelihood)
    predicted = np.full(len(volatilities), 1.0 / len(volatilities))
    for t in range(len(log_returns)):
        joint = predicted * likelihood[t]
        probability[t] = joint / joint.sum()
        predicted = probability[t] @ transition
    return probability


def _normals(n_bars: int, seed: int) -> FloatArray:
    _check_n_bars(n_bars)
    return np.random.default_rng(seed).standard_normal(n_bars)


def _first_order(
    coefficient: float, stationary_deviation: float, innovations: FloatArray, volatility: float
) -> FloatArray:
    """Run s[t] = coefficient · s[t-1] + e[t] from a first value drawn from the stationary distribution; (n_bars,)."""
    last = float(innovations[0]) * stationary_deviation / volatility
    path = [last]
    for innovation in innovations[1:].tolist():
        last = coefficient * last + innovation
        path.append(last)
    return np.array(path)


def _markov_chain(transition: FloatArray, uniforms: FloatArray) -> npt.NDArray[np.int64]:
    """Walk a chain from a uniformly drawn first regime, one uniform number a bar; (n_bars,)."""
    n_regimes = len(transition)
    # The last threshold is exactly 1, whatever the rounding of the sum, so that every uniform number finds a regime.
    thresholds = np.cumsum(transition, axis=1)
    thresholds[:, -1] = 1.0
    regime = int(uniforms[0] * n_regimes)
    path = [regime]
    for uniform in uniforms[1:].tolist():
        regime = int(np.searchsorted(thresholds[regime], uniform, side="right"))
        path.append(regime)
    return np.array(path, dtype=np.int64)


def _prices_from_log(log_price: FloatArray) -> pd.DataFrame:
    """Turn log prices relative to 100 into the table of closes."""
    # exp leaves the normal range of float64 near ±708.
    if np.abs(log_price).max() > 700.0:
        raise ValueError(
            f"the log price reaches {log_price[np.abs(log_price).argmax()]:.0f}, beyond what a float can hold: "
            "use fewer bars, less volatility or less drift"
        )
    return pd.DataFrame({"close": INITIAL_PRICE * np.exp(log_price)}, index=_business_days(len(log_price)))


def _business_days(n_bars: int) -> pd.DatetimeIndex:
    """The first `n_bars` Mondays to Fridays from 1990 on, at midnight UTC."""
    days = np.busday_offset(FIRST_DAY, np.arange(n_bars), roll="forward")
    # Microseconds: in nanoseconds business days after 71 000 bars (the year 2262) overflow.
    return pd.DatetimeIndex(days.astype("datetime64[us]"), name="timestamp").tz_localize("UTC")


def _check_n_bars(n_bars: int) -> None:
    # The calendar of Python's datetime, which pandas prints timestamps with, ends in the year 9999.
    if not 2 <= n_bars <= 2_000_000:
        raise ValueError(f"n_bars must be between 2 and 2,000,000, got {n_bars}")


def _check_above(name: str, value: float, bound: float) -> None:
    if not (math.isfinite(value) and value > bound):
        raise ValueError(f"{name} must be finite and above {bound:g}, got {value}")


def _check_at_least(name: str, value: float, bound: float) -> None:
    if not (math.isfinite(value) and value >= bound):
        raise ValueError(f"{name} must be finite and at least {bound:g}, got {value}")
