"""Predictors beside the best forecast there is: short forms on a few thousand bars, and over five seeds where marked.

Medians over three seeds are judged in the short forms, because a fit to few bars is worth more or less by luck; behind each
bound stands the range over six other seeds.
"""

import dataclasses
import functools
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ml.tradingbots.components.naive_predictors import RidgeConfig
from ml.tradingbots.core.forecast_metrics import r2_out_of_sample
from ml.tradingbots.data.synthetic_patterns import noisy_sine
from ml.tradingbots.training.forecast_optima import (
    AUTOREGRESSION_RECIPES,
    PATTERN_RECIPES,
    SINE,
    SINE_RECIPES,
    area_under_curve,
    combine,
    cover_break,
    cover_stationary,
    heavy_tails,
    learn_autoregression,
    learn_pattern,
    learn_sine,
    recover_mixture,
    sine_expectation,
)

each = pytest.mark.parametrize("name", AUTOREGRESSION_RECIPES)
FEW = {"n_train": 6_000, "n_test": 10_000}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def over_seeds(measure, n_seeds=3):
    """Return the rows of some seeds."""
    return [measure(seed=seed) for seed in range(n_seeds)]


def median(rows, name):
    return statistics.median(getattr(row, name) for row in rows)


# What optima are measured with.


def test_the_best_forecast_of_a_sine_lies_between_the_best_linear_one_and_the_one_that_knows_the_phase():
    market = noisy_sine(40_000, seed=1, **SINE)
    origins = np.arange(100, 39_980)
    log_price = np.log(market.prices["close"].to_numpy())
    for horizon in (1, 5, 20):
        y = log_price[origins + horizon] - log_price[origins]
        found = r2_out_of_sample(y, sine_expectation(market, origins, horizon, window_size=64))
        # The least distance to either is 8%; the standard error of an R² of a half with 2,000 separate outcomes is 3%.
        assert market.parameters.optimal_r2(horizon, window_size=64) < found < market.parameters.optimal_r2(horizon)


def test_the_best_forecast_of_a_sine_reads_its_window_alone():
    market = noisy_sine(400, seed=2, **SINE)
    changed = market.prices.copy()
    changed.iloc[:230] *= 1.1  # A window of 64 that ends at bar 300 begins with the return from bar 236 to 237.
    changed.iloc[301:] *= 0.9
    other = dataclasses.replace(market, prices=changed)
    one, two = (sine_expectation(m, np.array([300]), 5, window_size=64) for m in (market, other))
    assert one == pytest.approx(two, rel=1e-12)


def test_the_area_under_the_curve_is_the_one_of_scikit_learn():
    generator = np.random.default_rng(0)
    score, rises = generator.integers(0, 5, 500).astype(float), generator.random(500) < 0.4
    assert area_under_curve(score, rises) == pytest.approx(roc_auc_score(rises, score), rel=1e-12)


def test_heavy_tails_are_as_heavy_as_said():
    log_returns = np.diff(np.log(heavy_tails(50_001, seed=3)["close"].to_numpy()))
    # P(|t| < 2.132) with 4 degrees of freedom is 0.9; three standard errors of a share.
    assert np.mean(np.abs(log_returns) < 2.132 * 0.01 / np.sqrt(2.0)) == pytest.approx(0.9, abs=0.004)


# Short forms.


@each
def test_few_bars_of_an_autoregression_bring_four_fifths_of_the_optimum(name):
    rate = 3e-3 if name == "lstm" else 1e-3
    changes = {"window_size": 4, "max_epochs": 6, "batch_size": 128, "learning_rate": rate}
    config = dataclasses.replace(AUTOREGRESSION_RECIPES[name], **changes)
    rows = over_seeds(functools.partial(learn_autoregression, config, n_train=4_000, n_test=10_000))
    # Six seeds: R² 86% to 99% of the optimum's, accuracy −1.2 to +0.1 points, coverage 88.0% to 92.2%, loss up to +0.8%.
    assert median(rows, "r2_share") >= 0.8
    assert abs(median(rows, "accuracy_gap")) <= 0.01
    assert 0.88 <= median(rows, "coverage") <= 0.92
    assert median(rows, "pinball_excess") <= 0.03


def test_few_bars_of_noise_bring_nothing():
    config = dataclasses.replace(AUTOREGRESSION_RECIPES["cnn"], max_epochs=4)
    rows = over_seeds(functools.partial(learn_autoregression, config, phi=0.0, **FEW))
    assert all(-0.005 <= row.r2 <= 0.001 for row in rows)  # Six seeds: −0.08% to 0%.


def test_few_bars_of_a_sine_are_forecast_over_all_horizons():
    config = dataclasses.replace(SINE_RECIPES["cnn"], max_epochs=5, learning_rate=1e-3, n_filters=(16, 16, 16))
    rows = over_seeds(functools.partial(learn_sine, config, **FEW))
    for of_horizon in zip(*rows, strict=True):
        assert median(of_horizon, "r2_share") >= 0.8  # Six seeds: 79% to 95%, medians 91%.


def test_a_chart_pattern_is_seen_by_a_network_and_not_by_the_last_return():
    changes = {"n_filters": (16,), "kernel_size": 12, "max_epochs": 8, "batch_size": 256}
    config = dataclasses.replace(PATTERN_RECIPES["cnn"], **changes)
    sizes = {"n_train": 16_000, "n_test": 20_000}
    rows = over_seeds(functools.partial(learn_pattern, config, **sizes))
    assert median(rows, "auc_share") >= 0.8  # Six seeds: 82% to 92%.
    blind = over_seeds(functools.partial(learn_pattern, RidgeConfig(window_size=1), **sizes))
    assert abs(median(blind, "auc_errors")) <= 2.0


def test_a_stack_finds_the_mixture_that_made_the_market():
    for row in over_seeds(recover_mixture, 5):
        assert row.largest_error <= 3.0  # Of 15 weights one is beyond three standard errors in 4% of all runs.


def test_no_ensemble_loses_to_its_best_member():
    cnn = dataclasses.replace(PATTERN_RECIPES["cnn"], max_epochs=4, batch_size=256)
    members = {"ridge": RidgeConfig(window_size=16), "cnn": cnn}
    for rows in zip(
        *over_seeds(functools.partial(combine, "pattern", members=members, n_train=5_000, n_test=5_000)), strict=True
    ):
        assert median(rows, "excess") <= 1.0  # Six seeds, all methods: 0 to 0.42 standard errors, voting once 0.86.


@pytest.mark.parametrize("market", ["garch", "student_t"])
def test_intervals_of_few_bars_hold_what_they_promise(market):
    config = dataclasses.replace(AUTOREGRESSION_RECIPES["cnn"], max_epochs=5)
    rows = over_seeds(functools.partial(cover_stationary, config, market, head="student_t", **FEW))
    # Six seeds: 88.5% to 92.3%; conformal 86.6% to 91.7% in GARCH, whose calm and wild months outlast 5,000 bars.
    assert 0.88 <= median(rows, "coverage") <= 0.92
    assert 0.88 <= median(rows, "conformal_coverage") <= 0.92


def test_adapted_intervals_of_a_fitted_predictor_survive_a_break():
    rows = over_seeds(functools.partial(cover_break, AUTOREGRESSION_RECIPES["cnn"]))
    assert median(rows, "plain_during") < 0.5  # The break is one.
    for row in rows:  # Six seeds: 89% to 91%.
        assert 0.87 <= row.during <= 0.93
        assert 0.87 <= row.after <= 0.93


# Over five seeds, at full size.


@pytest.mark.learning
@each
def test_every_network_reaches_the_optimum_of_an_autoregression(name):
    for row in over_seeds(functools.partial(learn_autoregression, AUTOREGRESSION_RECIPES[name]), 5):
        assert row.r2_share >= 0.8
        assert abs(row.accuracy_gap) <= 0.01
        assert 0.88 <= row.coverage <= 0.92
        assert row.pinball_excess <= 0.03


@pytest.mark.learning
@each
def test_no_network_finds_anything_in_noise(name):
    for row in over_seeds(functools.partial(learn_autoregression, AUTOREGRESSION_RECIPES[name], phi=0.0), 5):
        assert -0.005 <= row.r2 <= 0.001
        assert 0.88 <= row.coverage <= 0.92


@pytest.mark.learning
@each
def test_every_network_forecasts_a_sine_over_all_horizons(name):
    for rows in over_seeds(functools.partial(learn_sine, SINE_RECIPES[name]), 5):
        assert [row.horizon for row in rows] == [1, 5, 20]
        assert min(row.r2_share for row in rows) >= 0.8


@pytest.mark.learning
def test_a_convolutional_network_sees_a_chart_pattern_and_the_last_return_does_not():
    rows = over_seeds(functools.partial(learn_pattern, PATTERN_RECIPES["cnn"]), 5)
    assert min(row.auc_share for row in rows) >= 0.8
    # A linear model of 16 lags gains nearly as much AUC; what tells the two apart is how far they see the moves.
    linear = over_seeds(functools.partial(learn_pattern, PATTERN_RECIPES["ridge, 16 lags"]), 5)
    assert min(row.r2_share for row in rows) > 2.0 * max(row.r2_share for row in linear)
    blind = over_seeds(functools.partial(learn_pattern, PATTERN_RECIPES["ridge, 1 lag"]), 5)
    # One of five without skill is beyond two standard errors in a fifth of all runs, their mean in a twentieth.
    assert abs(statistics.mean(row.auc_errors for row in blind)) <= 2.0 / np.sqrt(5.0)


@pytest.mark.learning
@pytest.mark.parametrize("market", ["ar1", "pattern"])
def test_an_ensemble_of_all_networks_loses_no_more_than_its_best_member(market):
    for rows in over_seeds(functools.partial(combine, market), 5):
        for row in rows:
            if row.method != "voting":  # A majority is not meant to have a small squared error.
                assert row.excess <= 1.0


@pytest.mark.learning
@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantile"])
@pytest.mark.parametrize("market", ["garch", "student_t"])
@pytest.mark.parametrize("name", ["lstm", "cnn"])
def test_intervals_hold_what_they_promise_on_stationary_data(name, market, head):
    # A normal distribution with the deviation of a Student-t of 4 degrees is wrong about it: its 90% hold P(|t| < 1.645 · √2).
    wrong = (market, head) == ("student_t", "gaussian")
    least, most = (0.9195 - 0.01, 0.9195 + 0.01) if wrong else (0.88, 0.92)
    for row in over_seeds(functools.partial(cover_stationary, AUTOREGRESSION_RECIPES[name], market, head=head), 5):
        assert least <= row.coverage <= most
        assert 0.88 <= row.conformal_coverage <= 0.92


@pytest.mark.learning
@each
def test_adapted_intervals_of_every_network_are_back_after_a_break(name):
    for row in over_seeds(functools.partial(cover_break, AUTOREGRESSION_RECIPES[name]), 20):
        assert 0.87 <= row.during <= 0.93
        assert 0.87 <= row.after <= 0.93
