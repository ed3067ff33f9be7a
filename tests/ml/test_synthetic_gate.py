"""The market that switches between momentum and reversal, and what can be known of it."""

import numpy as np
import pytest

from ml.tradingbots.components.hiddenmarkov import GaussianHMM
from ml.tradingbots.data.synthetic_gate import (
    SwitchingAutoregression,
    gate_features,
    known_regimes,
    switching_autoregression,
)


def annual_sharpe(returns):
    return returns.mean() / returns.std() * 252**0.5


def test_the_filter_of_three_bars_is_what_bayes_rule_says_by_hand():
    parameters = SwitchingAutoregression(phis=(0.5, -0.5), stay=0.9, marker_distance=1.0, volatility=0.1)
    log_returns, marker = np.array([0.1, 0.05, 0.0]), np.array([0.3, -0.2, 0.1])
    filtered, predicted = known_regimes(log_returns, marker, parameters)

    def normal(x, mean, deviation):
        return np.exp(-0.5 * ((x - mean) / deviation) ** 2) / deviation

    prior = np.array([0.5, 0.5])
    for t in range(3):
        before = log_returns[t - 1] if t else 0.0
        deviation = 0.1 if t else 0.1 / 0.75**0.5  # The first return is one of the long run.
        likelihood = np.array(
            [
                normal(log_returns[t], phi * before, deviation) * normal(marker[t], mean, 1.0)
                for phi, mean in ((0.5, 1.0), (-0.5, -1.0))
            ]
        )
        now = prior * likelihood / (prior * likelihood).sum()
        prior = now @ np.array([[0.9, 0.1], [0.1, 0.9]])
        np.testing.assert_allclose(filtered[t], now, rtol=1e-12)
        np.testing.assert_allclose(predicted[t], prior, rtol=1e-12)


def test_returns_follow_the_recursion_of_their_regime():
    market = switching_autoregression(2_000, (0.9, -0.9), stay=0.95, volatility=1e-9, seed=1)
    # With next to no noise a return is its regime's share of the one before, but for the noise itself.
    residual = market.log_returns[1:] - np.array([0.9, -0.9])[market.regimes[1:]] * market.log_returns[:-1]
    assert np.abs(residual).max() < 5e-9
    assert set(market.regimes) == {0, 1}
    np.testing.assert_allclose(np.log(market.prices["close"]).diff()[1:], market.log_returns[1:], atol=1e-12)


# Accuracy of the filter, Sharpe ratio of its sign, of a position in proportion, and of one who sees the present regime, as
# simulations elsewhere found them. Tolerances are three standard errors of 120,000 bars: sqrt(252 / 120,000) = 0.046 for a
# Sharpe ratio, and for the accuracy, whose errors come in spells, 0.003 by the spread of seeds.
@pytest.mark.parametrize(
    ("distance", "accuracy", "sign", "linear"),
    [(0.0, 0.831, 2.08, None), (0.5, 0.940, 2.76, 3.34), (1.0, 0.979, 3.02, None)],
)
def test_the_best_that_can_be_earned_is_what_it_should_be(distance, accuracy, sign, linear):
    found = []
    for seed in range(2):
        market = switching_autoregression(60_000, marker_distance=distance, seed=seed)
        earned = np.expm1(market.log_returns[1:])
        expected = market.expected_return[:-1]
        present = np.array([0.25, -0.25])[market.regimes[:-1]] * market.log_returns[:-1]
        found.append(
            [
                (market.filtered.argmax(1) == market.regimes).mean(),
                annual_sharpe(np.sign(expected) * earned),
                annual_sharpe(expected * earned),
                annual_sharpe(np.sign(present) * earned),
            ]
        )
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(accuracy, abs=0.009)
    assert means[1] == pytest.approx(sign, abs=0.14)
    assert linear is None or means[2] == pytest.approx(linear, abs=0.14)
    assert means[3] == pytest.approx(3.15, abs=0.14)


def test_the_filter_uses_no_later_bar():
    market = switching_autoregression(300, seed=4)
    for n_bars in (2, 57, 299):
        filtered, predicted = known_regimes(
            market.log_returns[:n_bars], market.prices["marker"].to_numpy()[:n_bars], market.parameters
        )
        assert (filtered == market.filtered[:n_bars]).all()
        assert (predicted == market.predicted[:n_bars]).all()


def test_a_longer_market_begins_with_the_shorter_one():
    long, short = (switching_autoregression(n_bars, seed=3) for n_bars in (500, 200))
    assert (long.prices[:200] == short.prices).all(axis=None)
    assert (long.regimes[:200] == short.regimes).all()


def test_a_detector_that_is_shown_marker_and_two_returns_filters_as_well_as_the_truth():
    market = switching_autoregression(20_000, seed=5)
    features = gate_features(market.prices)
    detector = GaussianHMM(n_regimes=2, covariance="full").fit(features.iloc[:10_000])
    found = detector.filter(features)[10_000:]
    order = np.argsort(-detector.means_[:, 0])
    right = (found[:, order].argmax(1) == market.regimes[10_002:]).mean()
    # Within a point, as is asked of detectors.
    assert right > (market.filtered.argmax(1) == market.regimes)[10_002:].mean() - 0.01


def test_one_regime_leaves_nothing_to_know():
    market = switching_autoregression(100, (0.25,), seed=0)
    assert (market.predicted == 1.0).all()
    assert abs(market.prices["marker"].mean()) < 0.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"phis": (1.0, 0.0)}, "phis"),
        ({"phis": ()}, "phis"),
        ({"stay": 1.0}, "stay"),
        ({"marker_distance": -1.0}, "marker_distance"),
        ({"volatility": 0.0}, "volatility"),
    ],
)
def test_impossible_processes_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        switching_autoregression(100, **{"phis": (0.1, 0.2)} | changes, seed=0)
