"""How models are judged beside what made the data."""

import numpy as np
import pytest

from ml.tradingbots.components.hiddenmarkov import GaussianHMM
from ml.tradingbots.training.regime_optima import (
    ALTERNATING,
    alternate,
    alternate_online,
    filter_accuracy,
    fit_case,
    fresh_sample,
    learn_variance_online,
    recover,
    rescale,
    standard_errors,
    true_model,
)


def test_standard_errors_of_one_regime_are_those_of_the_books():
    x = 0.01 * np.random.default_rng(1).standard_normal(20_000) + 0.001
    errors = standard_errors(GaussianHMM(n_regimes=1).fit(x), [x])
    # Outer products of gradients estimate the information from fourth moments: 1% at 20,000 bars.
    assert errors == pytest.approx([x.std() / np.sqrt(20_000), np.sqrt(2.0 / 20_000)], rel=0.04)


def test_standard_errors_are_the_spread_of_fits_over_samples():
    true = GaussianHMM.from_parameters([2.0, -2.0], [1.0, 1.0], [[0.9, 0.1], [0.2, 0.8]])
    fits, errors = [], []
    for seed in range(40):
        x, _ = true.sample(1_000, seed=seed)
        model = GaussianHMM(n_starts=1).fit(x).match_regimes(true)
        fits.append(model.means_[:, 0])
        errors.append(standard_errors(model, [x[:, 0]])[:2])
    # A deviation of 40 fits has a standard error of 11%.
    np.testing.assert_allclose(np.std(fits, axis=0, ddof=1), np.mean(errors, axis=0), rtol=0.35)


def test_histories_count_each_by_itself_in_standard_errors():
    x, _ = ALTERNATING.sample(2_000, seed=2)
    model = GaussianHMM(n_starts=1).fit(x)
    whole, halves = standard_errors(model, [x[:, 0]]), standard_errors(model, [x[:1_000, 0], x[1_000:, 0]])
    np.testing.assert_allclose(halves, whole, rtol=0.02)


def test_a_fit_is_in_the_order_of_the_truth_and_comes_near_its_filter():
    found = recover("toy", 4_000, seed=1)
    assert found.accuracy_gap == pytest.approx(0.0, abs=0.03)
    assert found.best_accuracy == pytest.approx(filter_accuracy(true_model("toy"), fresh_sample("toy")))
    assert np.abs(found.mean_errors).max() < 4.0
    assert found.largest_variance_error < 0.2


def test_many_bars_come_as_several_histories():
    _, histories = fit_case("toy", 60_000, seed=1, n_starts=1, tolerance=10.0)
    assert [len(history) for history in histories] == [5_000] * 12


def test_a_chain_that_alternates_and_plain_noise_are_learned():
    # A probability to stay of 0.05 among 5,000 bars has a standard error of about 0.01.
    assert alternate(seed=7).stay_error < 0.04
    assert alternate_online(seed=7, n_bars=5_000).stay_error < 0.08
    assert learn_variance_online(seed=7, n_bars=3_000).variance_error < 0.25


def test_units_do_not_matter():
    assert rescale("bull_bear", seed=7, n_bars=800).largest_difference < 1e-3
