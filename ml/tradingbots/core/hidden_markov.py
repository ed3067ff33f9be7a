"""Hidden Markov chains: what can be known of a hidden regime, bar by bar (the filter) and in hindsight (smoothing).

Two forms of one arithmetic. `filter_step` takes one bar after another in Python floats and logarithms; whoever filters, in
a batch or as bars come in, calls it, so that both get the same bits. `filter_sequences` and `smooth_sequences` are for
fitting: they cut long histories into blocks that advance side by side, and agree with it up to rounding.

Notation (Hamilton, 1989; Rabiner, 1989): regimes i, j in [0, n_regimes); transition[i, j] = P(next is j | now is i).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

# Likelihoods below this share of the bar's largest count as this: products of a few of them still fit in a float.
SMALLEST = 1e-300
# Least probability of a regime at the first bar of a history: what begins at 0 may stay there whatever bars say.
LEAST_START = 1e-3


def filter_step(
    log_density: Sequence[float], predicted: Sequence[float], columns: Sequence[Sequence[float]]
) -> tuple[list[float], list[float], float]:
    """Take one bar into account.

    Args:
        log_density: log density of the bar in each regime, finite; (n_regimes,).
        predicted: probability of each regime before the bar was seen; (n_regimes,).
        columns: the transition matrix column by column, columns[j][i] = P(next is j | now is i).

    Returns:
        The probability of each regime now that the bar is seen, that of each regime of the next bar, and the log density
        of the bar given all bars before.

    >>> now, following, score = filter_step([0.0, math.log(3.0)], [0.5, 0.5], [[0.9, 0.2], [0.1, 0.8]])
    >>> [round(p, 12) for p in now], [round(p, 12) for p in following], round(math.exp(score), 12)
    ([0.25, 0.75], [0.375, 0.625], 2.0)
    """
    joint = [
        density + math.log(prior) if prior > 0.0 else -math.inf
        for density, prior in zip(log_density, predicted, strict=True)
    ]
    largest = max(joint)
    weights = [math.exp(value - largest) for value in joint]
    total = sum(weights)
    probability = [weight / total for weight in weights]
    return probability, advance(probability, columns), largest + math.log(total)


def advance(probability: Sequence[float], columns: Sequence[Sequence[float]]) -> list[float]:
    """Return the probability of each regime one bar later, given the transition matrix column by column.

    >>> advance([1.0, 0.0], [[0.9, 0.2], [0.1, 0.8]])
    [0.9, 0.1]
    """
    return [sum(map(mul, probability, column)) for column in columns]


def stationary_distribution(transition: FloatArray) -> FloatArray:
    """Return the share of time that a chain spends in each regime in the long run; (n_regimes,).

    A chain that falls into parts which never meet is started from all regimes alike.

    >>> stationary_distribution(np.array([[0.9, 0.1], [0.3, 0.7]])).round(12).tolist()
    [0.75, 0.25]
    """
    # A chain that sometimes waits has the same long run, and forgets even where this one alternates forever.
    power = 0.5 * (transition + np.eye(len(transition)))
    for _ in range(64):
        power = power @ power
        power /= power.sum(axis=1, keepdims=True)
    shares: FloatArray = power.mean(axis=0)
    shares /= shares.sum()
    return shares


def as_start(occupancy: FloatArray) -> FloatArray:
    """Return how likely regimes are at a history's first bar, by how often they were met; none is impossible; (n_regimes,).

    >>> as_start(np.array([1.0, 0.0])).round(6).tolist()
    [0.999001, 0.000999]
    """
    start: FloatArray = np.maximum(occupancy, LEAST_START)
    start /= start.sum()
    return start


@dataclass(frozen=True)
class Smoothing:
    """What hindsight knows of the regimes; for fitting and for pictures, never for decisions."""

    smoothed: FloatArray
    """Probability of each regime given all bars, later ones included; (n_bars, n_regimes)."""
    transition_counts: FloatArray
    """Expected number of changes from each regime (row) to each (column); (n_regimes, n_regimes)."""
    log_scores: FloatArray
    """Log density of each bar given those before it; they add up to the log-likelihood; (n_bars,)."""


def filter_sequences(
    log_density: FloatArray, initial: FloatArray, transition: FloatArray, starts: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Filter histories that lie end to end.

    Args:
        log_density: log density of each bar in each regime, finite; (n_bars, n_regimes).
        initial: probability of each regime at the first bar of a history; (n_regimes,).
        transition: (n_regimes, n_regimes).
        starts: whether a bar is the first of its history, True at the first; (n_bars,).

    Returns:
        Filtered probabilities (n_bars, n_regimes) and log scores (n_bars,), as `filter_step` gives them.
    """
    blocks = _Blocks(log_density, initial, transition, starts)
    blocks.run_forward()
    return blocks.flat(blocks.filtered), blocks.log_scores()


def smooth_sequences(
    log_density: FloatArray, initial: FloatArray, transition: FloatArray, starts: BoolArray
) -> Smoothing:
    """Smooth histories that lie end to end, the expectation step of EM (Baum et al., 1970); arguments as above."""
    blocks = _Blocks(log_density, initial, transition, starts)
    blocks.run_forward()
    blocks.run_backward()
    filtered, later = blocks.flat(blocks.filtered), blocks.flat(blocks.later)
    smoothed = filtered * later
    smoothed /= smoothed.sum(axis=1, keepdims=True)
    # Chance of each change at bar t, before it is made to sum to 1: filtered[t-1, i] · transition[i, j] · seen[t, j].
    seen = (blocks.flat(blocks.likelihood) * later)[1:]
    before = filtered[:-1]
    # einsum, because BLAS hands such thin products to threads, which takes ten times as long where cores are busy.
    weight = np.maximum(np.einsum("ti,ij,tj->t", before, transition, seen), SMALLEST)
    counted = np.where(starts[1:], 0.0, 1.0 / weight)
    counts = transition * np.einsum("ti,tj->ij", before, seen * counted[:, None])
    return Smoothing(smoothed, counts, blocks.log_scores())


class _Blocks:
    """Histories cut into blocks of equal length that are walked side by side.

    The effect of a whole block on the filter is a matrix, so all blocks' matrices are multiplied up at once, the blocks are
    chained by them, and then all are walked again from where each begins: three walks of √n_bars steps in place of one of
    n_bars.
    """

    def __init__(self, log_density: FloatArray, initial: FloatArray, transition: FloatArray, starts: BoolArray) -> None:
        self.n_bars, self.n_regimes = log_density.shape
        self.initial, self.transition = initial, transition
        self.length = math.isqrt(self.n_bars - 1) + 1
        self.n_blocks = -(-self.n_bars // self.length)
        self.height = log_density.max(axis=1)
        likelihood = np.maximum(np.exp(log_density - self.height[:, None]), SMALLEST)
        # Bars after the end that are alike in all regimes say nothing, forward or backward.
        self.likelihood = self._by_step(likelihood, 1.0)
        first = self._by_step(starts[:, None], False)[..., 0]
        self.starts = [np.flatnonzero(row) for row in first]

    def _by_step(self, values: NDArray[np.generic], fill: float) -> FloatArray:
        """(n_bars, n) to (length, n_blocks, n), filled up at the end."""
        padded = np.full((self.n_blocks * self.length, values.shape[1]), fill, dtype=values.dtype)
        padded[: self.n_bars] = values
        return np.ascontiguousarray(padded.reshape(self.n_blocks, self.length, -1).transpose(1, 0, 2))

    def flat(self, values: FloatArray) -> FloatArray:
        """(length, n_blocks, n_regimes) to (n_bars, n_regimes)."""
        return values.transpose(1, 0, 2).reshape(-1, values.shape[2])[: self.n_bars]

    def log_scores(self) -> FloatArray:
        """Log density of each bar given those before it; (n_bars,)."""
        scores: FloatArray = np.log(self.flat(self.totals[..., None])[:, 0]) + self.height
        return scores

    def _multiply_up(self) -> None:
        """Find each block's matrix: from the regime before it to that at its end, rows summing to 1, and their log sizes."""
        shape = (self.n_blocks, self.n_regimes, self.n_regimes)
        matrix = np.broadcast_to(np.eye(self.n_regimes), shape)
        log_size = np.zeros(shape[:2])
        for likelihood, starts in zip(self.likelihood, self.starts, strict=True):
            matrix = matrix @ self.transition
            matrix[starts] = self.initial
            matrix *= likelihood[:, None, :]
            size = matrix.sum(axis=2)
            matrix /= size[..., None]
            log_size += np.log(size)
        self.matrix, self.log_size = matrix, log_size

    def run_forward(self) -> None:
        """Fill in `filtered` and what each bar added, `totals`."""
        self._multiply_up()
        entering = np.empty((self.n_blocks, self.n_regimes))
        entering[0] = self.initial  # Not used: the first bar is the start of a history.
        with np.errstate(divide="ignore"):
            for block in range(self.n_blocks - 1):
                weight = np.log(entering[block]) + self.log_size[block]
                leaving = np.exp(weight - weight.max()) @ self.matrix[block]
                entering[block + 1] = leaving / leaving.sum()
        self.filtered = np.empty_like(self.likelihood)
        self.totals = np.empty(self.likelihood.shape[:2])
        probability = entering
        for step, (likelihood, starts) in enumerate(zip(self.likelihood, self.starts, strict=True)):
            probability = probability @ self.transition
            probability[starts] = self.initial
            probability *= likelihood
            total = probability.sum(axis=1)
            probability /= total[:, None]
            self.filtered[step], self.totals[step] = probability, total

    def run_backward(self) -> None:
        """Fill in `later`: how likely all bars after each one are in each regime, up to a factor per bar."""
        leaving = np.empty((self.n_blocks, self.n_regimes))
        leaving[-1] = 1.0
        for block in range(self.n_blocks - 1, 0, -1):
            size = np.exp(self.log_size[block] - self.log_size[block].max())
            entering = np.maximum(size * (self.matrix[block] @ leaving[block]), SMALLEST)
            leaving[block - 1] = entering / entering.sum()
        self.later = np.empty_like(self.likelihood)
        later = leaving
        for step in range(self.length - 1, -1, -1):
            self.later[step] = later
            later = (self.likelihood[step] * later) @ self.transition.T
            later[self.starts[step]] = 1.0
            later /= later.sum(axis=1, keepdims=True)
