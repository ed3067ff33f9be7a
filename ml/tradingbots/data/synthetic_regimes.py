"""Markets with hidden regimes on which detectors are judged, from hopeless to easy, and long samples of them.

What the filter that knows the true parameters gets right is the most that anyone can: on the cases below 0.637, 0.939,
0.832 and 0.891 of the bars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.tradingbots.core.hidden_markov import stationary_distribution
from ml.tradingbots.data.synthetic import FloatArray, RegimeSwitching

IntArray = npt.NDArray[np.int64]


def _case(
    means: tuple[float, ...], volatilities: tuple[float, ...], stay: float | tuple[float, ...]
) -> RegimeSwitching:
    """A process whose log returns have the given means, for which a drift is half a variance higher."""
    drifts = tuple(math.expm1(mean + 0.5 * volatility**2) for mean, volatility in zip(means, volatilities, strict=True))
    return RegimeSwitching(drifts=drifts, volatilities=volatilities, stay_probability=stay)


REGIME_CASES: dict[str, RegimeSwitching] = {
    "faint": _case((0.001, -0.001), (0.01, 0.01), 0.98),
    "bull_bear": _case((0.001, -0.0015), (0.008, 0.02), (0.99, 0.97)),
    "bull_sideways_bear": _case((0.0012, 0.0, -0.002), (0.008, 0.006, 0.02), (0.99, 0.985, 0.975)),
    "toy": _case((0.005, -0.005), (0.01, 0.01), 0.98),
}
"""Means of ±10 basis points under 1% of noise; a calm bull and a wild bear; the same with a market that goes sideways; and
means half a deviation from 0."""


@dataclass(frozen=True, eq=False)
class RegimeSample:
    """Independent histories of one process."""

    log_returns: FloatArray
    """(n_chains, n_bars)."""
    regimes: IntArray
    """The hidden regime that made each bar; (n_chains, n_bars)."""


def sample_regimes(parameters: RegimeSwitching, n_chains: int, n_bars: int, *, seed: int) -> RegimeSample:
    """Draw log returns and the regimes behind them, many histories at once.

    Args:
        parameters: the process.
        n_chains: number of histories, at least 1.
        n_bars: length of each, at least 1.
        seed: seed of the generator.

    Returns:
        The sample; each history begins in a regime drawn from the chain's long run.
    """
    for name, value in (("n_chains", n_chains), ("n_bars", n_bars)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    chain, noise = np.random.default_rng(seed).spawn(2)
    transition = parameters.transition_matrix
    # The last threshold is left out: a uniform number above all others is in the last regime, however sums are rounded.
    thresholds = np.cumsum(transition, axis=1)[:, :-1]
    first = np.cumsum(stationary_distribution(transition))[:-1]
    regimes = np.empty((n_bars, n_chains), dtype=np.int64)
    for t, uniforms in enumerate(chain.random((n_bars, n_chains))):
        bounds = first if t == 0 else thresholds[regimes[t - 1]]
        regimes[t] = (uniforms[:, None] >= bounds).sum(axis=1)
    regimes = np.ascontiguousarray(regimes.T)
    deviations = np.array(parameters.volatilities)[regimes] * noise.standard_normal((n_chains, n_bars))
    return RegimeSample(parameters.mean_log_returns[regimes] + deviations, regimes)
