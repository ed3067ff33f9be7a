"""The arithmetic of hidden Markov chains: against all paths written out, and block against bar."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import logsumexp

from ml.tradingbots.core.hidden_markov import (
    advance,
    filter_sequences,
    filter_step,
    smooth_sequences,
    stationary_distribution,
)

INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.7, 0.3], [0.2, 0.8]])


def all_paths(log_density, initial, transition):
    """Weight of every path of regimes: filtered, smoothed, expected changes and likelihood follow by adding up."""
    n_bars, n_regimes = log_density.shape
    for path in itertools.product(range(n_regimes), repeat=n_bars):
        weight = initial[path[0]] * math.exp(log_density[0, path[0]])
        for t in range(1, n_bars):
            weight *= transition[path[t - 1], path[t]] * math.exp(log_density[t, path[t]])
        yield path, weight


def by_steps(log_density, initial, transition, starts):
    columns, predicted, found = transition.T.tolist(), None, []
    for row, is_first in zip(log_density.tolist(), starts, strict=True):
        probability, predicted, score = filter_step(row, initial.tolist() if is_first else predicted, columns)
        found.append((probability, score))
    return np.array([probability for probability, _ in found]), np.array([score for _, score in found])


def random_case(n_bars, n_regimes, seed, n_histories=1):
    rng = np.random.default_rng(seed)
    log_density = 3.0 * rng.standard_normal((n_bars, n_regimes))
    transition = rng.dirichlet(np.ones(n_regimes), n_regimes)
    starts = np.zeros(n_bars, dtype=bool)
    starts[0] = True
    starts[rng.choice(n_bars, n_histories - 1, replace=False)] = True
    return log_density, rng.dirichlet(np.ones(n_regimes)), transition, starts


def test_a_filter_of_three_bars_is_what_all_eight_paths_add_up_to():
    log_density = np.log([[0.5, 0.1], [0.2, 0.9], [0.6, 0.3]])
    filtered, scores = by_steps(log_density, INITIAL, TRANSITION, [True, False, False])
    before = 1.0
    for n_bars in (1, 2, 3):
        mass, total = np.zeros(2), 0.0
        for path, weight in all_paths(log_density[:n_bars], INITIAL, TRANSITION):
            mass[path[-1]] += weight
            total += weight
        np.testing.assert_allclose(filtered[n_bars - 1], mass / total, rtol=1e-14)
        assert scores[n_bars - 1] == pytest.approx(math.log(total / before), rel=1e-13)
        before = total


def test_smoothing_is_what_all_paths_add_up_to():
    log_density = np.log([[0.5, 0.1], [0.2, 0.9], [0.6, 0.3], [0.3, 0.2]])
    smoothed, changes, total = np.zeros((4, 2)), np.zeros((2, 2)), 0.0
    for path, weight in all_paths(log_density, INITIAL, TRANSITION):
        total += weight
        for t, regime in enumerate(path):
            smoothed[t, regime] += weight
        for before, after in itertools.pairwise(path):
            changes[before, after] += weight
    found = smooth_sequences(log_density, INITIAL, TRANSITION, np.array([True, False, False, False]))
    np.testing.assert_allclose(found.smoothed, smoothed / total, rtol=1e-13)
    np.testing.assert_allclose(found.transition_counts, changes / total, rtol=1e-13)
    assert found.log_scores.sum() == pytest.approx(math.log(total), rel=1e-13)


@pytest.mark.parametrize(
    ("n_bars", "n_regimes", "n_histories"), [(1, 2, 1), (2, 3, 1), (7, 2, 3), (100, 3, 1), (1_501, 2, 9)]
)
def test_blocks_say_what_bars_one_by_one_say(n_bars, n_regimes, n_histories):
    case = random_case(n_bars, n_regimes, seed=n_bars, n_histories=n_histories)
    filtered, scores = filter_sequences(*case)
    expected, expected_scores = by_steps(*case)
    # Roundings of a few dozen products of numbers below 1.
    np.testing.assert_allclose(filtered, expected, atol=1e-13)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-12)


def test_smoothing_agrees_with_the_plain_backward_recursion_in_logarithms():
    log_density, initial, transition, starts = random_case(400, 3, seed=1, n_histories=5)
    filtered = np.log(by_steps(log_density, initial, transition, starts)[0])
    later = np.zeros_like(filtered)
    for t in range(len(later) - 2, -1, -1):
        if not starts[t + 1]:
            later[t] = logsumexp(np.log(transition) + log_density[t + 1] + later[t + 1], axis=1)
    expected = np.exp(filtered + later - logsumexp(filtered + later, axis=1, keepdims=True))
    np.testing.assert_allclose(
        smooth_sequences(log_density, initial, transition, starts).smoothed, expected, atol=1e-12
    )


def test_the_last_bar_is_smoothed_as_it_is_filtered():
    case = random_case(50, 2, seed=2)
    np.testing.assert_allclose(smooth_sequences(*case).smoothed[-1], filter_sequences(*case)[0][-1], atol=1e-14)


def test_bars_that_one_regime_cannot_have_made_leave_numbers():
    log_density = np.array([[0.0, -5_000.0], [-5_000.0, 0.0], [0.0, -5_000.0]] * 20)
    starts = np.arange(60) == 0
    for transition in (TRANSITION, np.eye(2)):
        found = smooth_sequences(log_density, INITIAL, transition, starts)
        assert np.isfinite(found.smoothed).all()
        assert np.isfinite(found.transition_counts).all()
        filtered, scores = by_steps(log_density, INITIAL, transition, starts)
        assert np.isfinite(filtered).all()
        assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("transition", "expected"),
    [
        ([[0.9, 0.1], [0.3, 0.7]], [0.75, 0.25]),
        ([[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5]),
        ([[1.0, 0.0], [0.5, 0.5]], [1.0, 0.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5]),
        ([[1.0]], [1.0]),
    ],
    ids=["ordinary", "alternating", "absorbing", "apart", "one"],
)
def test_the_long_run_of_a_chain(transition, expected):
    np.testing.assert_allclose(stationary_distribution(np.array(transition)), expected, atol=1e-12)


def test_advancing_is_a_product_with_the_transition_matrix():
    np.testing.assert_allclose(advance([0.3, 0.7], TRANSITION.T.tolist()), [0.3, 0.7] @ TRANSITION, rtol=1e-15)
