"""Forecast scores by pencil, and at the optima of an AR(1)."""

import math

import numpy as np
import pytest
from scipy import stats

from ml.tradingbots.core import forecast_metrics as metrics
from ml.tradingbots.core.sizing import sized_strategy_returns
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.data.synthetic_patterns import autoregressive_optimum

N_BARS = 200_000


def ar1_pairs(phi=0.3, n_bars=N_BARS, seed=1):
    """Forecast and outcome of the best forecaster of an AR(1)."""
    market = autoregressive(n_bars, phi=phi, seed=seed)
    return phi * market.state[:-1], market.state[1:], market.parameters


def test_r_squared_of_the_benchmark_is_zero_and_of_the_truth_one():
    y = np.array([0.01, -0.02, 0.03])
    assert metrics.r2_out_of_sample(y, np.full(3, 0.005), 0.005) == 0.0
    assert metrics.r2_out_of_sample(y, y, 0.005) == 1.0
    assert metrics.r2_out_of_sample(y, -y, 0.0) == pytest.approx(-3.0)


def test_r_squared_takes_one_benchmark_per_column():
    y = np.array([[1.0, 10.0], [3.0, 30.0]])
    mean = y.mean(axis=0)
    assert metrics.r2_out_of_sample(y, np.broadcast_to(mean, y.shape), mean) == 0.0


def test_r_squared_against_naive_takes_the_harder_benchmark():
    y, prediction = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 2.5])
    by_hand = [1 - 0.5 / np.sum(y**2), 1 - 0.5 / np.sum((y - 2.0) ** 2)]
    assert metrics.r2_against_naive(y, prediction, 2.0) == pytest.approx(min(by_hand))
    assert metrics.r2_against_naive(y, prediction, -9.0) == pytest.approx(by_hand[0])


def test_pooled_correlations_agree_with_scipy():
    generator = np.random.default_rng(2)
    y, prediction = generator.standard_normal((2, 300)).round(1)  # Rounded, so that there are ties.
    assert metrics.information_coefficient(y, prediction) == pytest.approx(stats.pearsonr(y, prediction)[0], abs=1e-12)
    assert metrics.rank_ic(y, prediction) == pytest.approx(stats.spearmanr(y, prediction)[0], abs=1e-12)


def test_correlations_by_date_do_not_see_the_market():
    generator = np.random.default_rng(3)
    market = generator.standard_normal((500, 1))
    y = market + 1e-3 * generator.standard_normal((500, 8))
    prediction = np.broadcast_to(market, y.shape) + 1e-3 * generator.standard_normal((500, 8))
    assert metrics.information_coefficient(y, prediction) > 0.99
    # Three standard errors of the mean of 500 correlations of 8 pairs.
    assert abs(metrics.information_coefficient(y, prediction, pooling="by_date")) < 3.0 / math.sqrt(7 * 500)
    assert abs(metrics.rank_ic(y, prediction, pooling="by_date")) < 3.0 / math.sqrt(7 * 500)


def test_dates_without_variation_are_left_out_of_the_mean_correlation():
    y = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])
    prediction = np.array([[0.1, 0.1, 0.1], [1.0, 2.0, 4.0]])
    by_date = metrics.correlation_by_date(y, prediction)
    assert np.isnan(by_date[0])
    assert metrics.information_coefficient(y, prediction, pooling="by_date") == pytest.approx(1.0)


def test_what_does_not_vary_has_no_correlation():
    assert math.isnan(metrics.information_coefficient([1.0, 2.0], [0.1, 0.1]))
    assert math.isnan(metrics.rank_ic([1.0, 1.0], [0.1, 0.2]))
    assert math.isnan(metrics.r2_out_of_sample([0.0, 0.0], [0.1, 0.1]))


def test_a_forecast_of_zero_is_right_half_the_time_and_bars_without_a_move_do_not_count():
    assert metrics.directional_accuracy([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]) == 0.5
    assert metrics.directional_accuracy([0.0, 1.0, 0.0], [-1.0, 2.0, 1.0]) == 1.0
    assert math.isnan(metrics.directional_accuracy([0.0, 0.0], [1.0, 1.0]))


def test_always_up_has_no_directional_skill_in_a_rising_market():
    y = np.array([1.0, 1.0, 1.0, -1.0])
    assert metrics.directional_accuracy(y, np.ones(4)) == 0.75
    assert metrics.directional_skill(y, np.ones(4)) == 0.0
    assert metrics.majority_accuracy(-y) == 0.75


@pytest.mark.parametrize("phi", [0.1, 0.3, -0.5])
def test_the_best_forecaster_of_an_ar1_reaches_every_optimum(phi):
    prediction, y, parameters = ar1_pairs(phi)
    best = autoregressive_optimum(parameters)
    # Four standard errors; those of a correlation, of a share and, for R², of the square of a correlation.
    error = 4.0 / math.sqrt(N_BARS)
    assert metrics.r2_out_of_sample(y, prediction) == pytest.approx(best.r2, abs=2.0 * abs(phi) * error)
    assert metrics.information_coefficient(y, prediction) == pytest.approx(best.information_coefficient, abs=error)
    assert metrics.rank_ic(y, prediction) == pytest.approx(best.rank_ic, abs=error)
    assert metrics.directional_accuracy(y, prediction) == pytest.approx(best.directional_accuracy, abs=0.5 * error)
    # The deviation of a normal's CRPS, pinball loss and Winkler score is below its mean: error times the optimum.
    deviation = best.error_deviation
    assert metrics.crps_gaussian(y, prediction, deviation) == pytest.approx(best.crps, rel=error)
    tails = (0.05, 0.95)
    low, high = (best.quantile(prediction, q) for q in tails)
    assert metrics.pinball_loss(y, low, 0.05) == pytest.approx(best.pinball_loss(0.05), rel=1.5 * error)
    assert metrics.coverage(y, low, high) == pytest.approx(0.9, abs=0.3 * error)
    assert metrics.interval_width(low, high) == pytest.approx(2.0 * 1.6448536 * deviation, rel=1e-6)


@pytest.mark.parametrize(
    "score",
    [
        metrics.r2_out_of_sample,
        metrics.information_coefficient,
        metrics.rank_ic,
        metrics.directional_accuracy,
        sized_strategy_returns,
        lambda y, p: metrics.pinball_loss(y, p, 0.5),
        lambda y, p: metrics.crps_gaussian(y, p, 1.0),
        lambda y, p: metrics.coverage(y, p, p),
    ],
)
def test_missing_values_are_refused_with_their_row(score):
    with pytest.raises(ValueError, match=r"1 of 3 rows .* row 1"):
        score([1.0, 2.0, 3.0], [1.0, math.nan, 3.0])
    with pytest.raises(ValueError, match=r"1 of 3 rows .* row 2"):
        score([1.0, 2.0, math.nan], [1.0, 2.0, 3.0])


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="prediction must be shaped"):
        metrics.r2_out_of_sample([1.0, 2.0], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="deviation must be above 0"):
        metrics.crps_gaussian([1.0], 0.0, 0.0)
    with pytest.raises(ValueError, match="quantile_forecast must have shape"):
        metrics.pinball_loss([1.0], [0.0], [0.1, 0.9])
