"""A market that turns from momentum to reversal and back, with a noisy sign of which it is, and all that can be known of it.

Whoever looks at one bar and knows no regime earns nothing here: the last return says up in one regime and down in the other.
What can be earned is what can be known of the regime, and that the filter below computes exactly. It is given the true
parameters; an agent that beats it over many bars has seen the future.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.core.hidden_markov import filter_step
from ml.tradingbots.data.synthetic import (
    FloatArray,
    _check_above,
    _check_at_least,
    _check_n_bars,
    _markov_chain,
    _prices_from_log,
)

IntArray: TypeAlias = npt.NDArray[np.int64]

MARKER = "marker"


@dataclass(frozen=True, kw_only=True)
class SwitchingAutoregression:
    """Hidden regimes of an AR(1), r[t] = phi(regime of t) · r[t-1] + e[t], and a marker z[t] that is regime plus noise.

    Regimes lie evenly between `marker_distance` and its opposite in the mean of z, whose noise has deviation 1. A regime
    that ends is followed by any of the others with equal probability. One regime is an AR(1) beside pure noise.
    """

    phis: tuple[float, ...] = (0.25, -0.25)
    """Share of the last log return that is expected to repeat in each regime, in (-1, 1); (n_regimes,)."""
    stay: float = 0.99
    """Probability that a regime lasts one bar more, in [0, 1)."""
    marker_distance: float = 0.5
    """Mean of the marker in the first regime, >= 0; the last one's is its opposite."""
    volatility: float = 0.01
    """Standard deviation of the innovation e per bar, > 0."""

    def __post_init__(self) -> None:
        if not self.phis or not all(-1.0 < phi < 1.0 for phi in self.phis):
            raise ValueError(f"phis must be numbers in (-1, 1), one for each regime, got {self.phis}")
        if not 0.0 <= self.stay < 1.0:
            raise ValueError(f"stay must be a probability in [0, 1), got {self.stay}")
        _check_at_least("marker_distance", self.marker_distance, 0.0)
        _check_above("volatility", self.volatility, 0.0)

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""
        return len(self.phis)

    @property
    def transition_matrix(self) -> FloatArray:
        """Probability of the next regime (column) given this one (row); (n_regimes, n_regimes)."""
        if self.n_regimes == 1:
            return np.ones((1, 1))
        matrix: FloatArray = np.full((self.n_regimes,) * 2, (1.0 - self.stay) / (self.n_regimes - 1))
        np.fill_diagonal(matrix, self.stay)
        return matrix

    @property
    def marker_means(self) -> FloatArray:
        """Mean of the marker in each regime; (n_regimes,)."""
        if self.n_regimes == 1:
            return np.zeros(1)
        return np.linspace(self.marker_distance, -self.marker_distance, self.n_regimes)


@dataclass(frozen=True, kw_only=True, eq=False)
class GateMarket:
    """Prices, the regimes behind them, and what can be known of the regimes."""

    prices: pd.DataFrame
    """Columns `close` and `marker`; index: business days, UTC; n_bars rows."""
    log_returns: FloatArray
    """Of each bar, the first one from a price of 100; (n_bars,)."""
    regimes: IntArray
    """The hidden regime that made each bar; (n_bars,)."""
    filtered: FloatArray
    """P(regime of bar t | returns and markers up to t), exact; (n_bars, n_regimes)."""
    predicted: FloatArray
    """P(regime of bar t + 1 | returns and markers up to t), exact: what the best gate decides on; (n_bars, n_regimes)."""
    parameters: SwitchingAutoregression
    """The process itself."""

    @property
    def expected_return(self) -> FloatArray:
        """Expected log return of the bar after each, for one who knows the parameters and the past; (n_bars,)."""
        expected: FloatArray = self.predicted @ np.array(self.parameters.phis) * self.log_returns
        return expected


def switching_autoregression(
    n_bars: int,
    phis: tuple[float, ...] = (0.25, -0.25),
    *,
    stay: float = 0.99,
    marker_distance: float = 0.5,
    volatility: float = 0.01,
    seed: int,
) -> GateMarket:
    """Make the market; arguments as for `SwitchingAutoregression`.

    Args:
        n_bars: number of bars, at least 2.
        phis: share of the last log return that is expected to repeat in each regime.
        stay: probability that a regime lasts one bar more.
        marker_distance: mean of the marker in the first regime; at 0 the regime shows in returns alone.
        volatility: standard deviation of the innovation.
        seed: seed of the generator.
    """
    parameters = SwitchingAutoregression(
        phis=tuple(phis), stay=stay, marker_distance=marker_distance, volatility=volatility
    )
    _check_n_bars(n_bars)
    chain, noise, marks = np.random.default_rng(seed).spawn(3)
    regimes = _markov_chain(parameters.transition_matrix, chain.random(n_bars))
    phi = np.array(parameters.phis)[regimes].tolist()
    innovations = (volatility * noise.standard_normal(n_bars)).tolist()
    # The first return is drawn from the long run of its regime.
    path = [innovations[0] / math.sqrt(1.0 - phi[0] ** 2)]
    for t in range(1, n_bars):
        path.append(phi[t] * path[-1] + innovations[t])
    log_returns = np.array(path)
    marker = parameters.marker_means[regimes] + marks.standard_normal(n_bars)
    prices = _prices_from_log(np.cumsum(log_returns))
    prices[MARKER] = marker
    filtered, predicted = known_regimes(log_returns, marker, parameters)
    return GateMarket(
        prices=prices,
        log_returns=log_returns,
        regimes=regimes,
        filtered=filtered,
        predicted=predicted,
        parameters=parameters,
    )


def known_regimes(
    log_returns: FloatArray, marker: FloatArray, parameters: SwitchingAutoregression
) -> tuple[FloatArray, FloatArray]:
    """Say what can be known of the regimes, bar by bar: Bayes' rule with the true parameters (Hamilton, 1989).

    Args:
        log_returns: of each bar, from the first one of the market; (n_bars,).
        marker: of each bar; (n_bars,).
        parameters: the process that made them.

    Returns:
        Probability of each regime at each bar and at the bar after it, given returns and markers up to it; (n_bars,
        n_regimes) each, rows sum to 1.
    """
    phis, volatility = np.array(parameters.phis), parameters.volatility
    expected = np.outer(np.concatenate([[0.0], log_returns[:-1]]), phis)
    deviation = np.full_like(expected, volatility)
    deviation[0] = volatility / np.sqrt(1.0 - phis**2)
    surprise = (log_returns[:, None] - expected) / deviation
    log_density = -0.5 * surprise**2 - np.log(deviation) - 0.5 * (marker[:, None] - parameters.marker_means) ** 2
    columns = parameters.transition_matrix.T.tolist()
    following = [1.0 / parameters.n_regimes] * parameters.n_regimes
    filtered, predicted = [], []
    for row in log_density.tolist():
        now, following, _ = filter_step(row, following, columns)
        filtered.append(now)
        predicted.append(following)
    return np.array(filtered), np.array(predicted)


def gate_features(price_data: pd.DataFrame) -> pd.DataFrame:
    """Return what a detector must be shown to know these regimes: marker, return and the return before it.

    A normal distribution of the three with a full covariance holds the autocorrelation of returns, by which regimes differ
    beside the marker.

    Args:
        price_data: a table with the columns `close` and `marker`.

    Returns:
        Columns `marker`, `log_return` and `previous_log_return`, from the third bar on.
    """
    log_return = np.log(price_data["close"]).diff()
    columns = {MARKER: price_data[MARKER], "log_return": log_return, "previous_log_return": log_return.shift(1)}
    return pd.DataFrame(columns).iloc[2:]
