"""Samples of regimes follow their process, and the four cases have the optima that are written beside them."""

import math

import numpy as np
import pytest

from ml.tradingbots.core.hidden_markov import filter_sequences
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes

# Share of the bars that the filter with the true parameters gets right.
OPTIMA = {"faint": 0.637, "bull_bear": 0.939, "bull_sideways_bear": 0.832, "toy": 0.891}


def test_a_sample_is_a_function_of_its_seed():
    first, again, other = (sample_regimes(REGIME_CASES["toy"], 3, 50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.log_returns, again.log_returns)
    np.testing.assert_array_equal(first.regimes, again.regimes)
    assert (first.log_returns != other.log_returns).all()


@pytest.mark.parametrize("name", REGIME_CASES)
def test_regimes_have_the_means_volatilities_and_changes_of_their_case(name):
    case = REGIME_CASES[name]
    sample = sample_regimes(case, 100, 2_000, seed=3)
    for k, (mean, volatility) in enumerate(zip(case.mean_log_returns, case.volatilities, strict=True)):
        own = sample.log_returns[sample.regimes == k]
        # Four standard errors.
        assert own.mean() == pytest.approx(mean, abs=4.0 * volatility / math.sqrt(len(own)))
        assert own.std() == pytest.approx(volatility, abs=4.0 * volatility / math.sqrt(2 * len(own)))
        stay = case.transition_matrix[k, k]
        stayed = (sample.regimes[:, 1:] == k)[sample.regimes[:, :-1] == k]
        assert stayed.mean() == pytest.approx(stay, abs=4.0 * math.sqrt(stay * (1.0 - stay) / len(stayed)))


def test_histories_begin_anywhere_in_the_long_run():
    regimes = sample_regimes(REGIME_CASES["bull_bear"], 20_000, 1, seed=4).regimes
    # Three quarters of the time it is bull; four standard errors.
    assert np.mean(regimes == 0) == pytest.approx(0.75, abs=4.0 * math.sqrt(0.75 * 0.25 / 20_000))


@pytest.mark.parametrize("name", REGIME_CASES)
def test_the_filter_that_knows_all_is_right_as_often_as_the_case_says(name):
    case = REGIME_CASES[name]
    sample = sample_regimes(case, 80, 5_000, seed=5)
    deviations = np.array(case.volatilities)
    standardised = (sample.log_returns.reshape(-1, 1) - case.mean_log_returns) / deviations
    log_density = -0.5 * standardised**2 - np.log(deviations)
    starts = np.arange(len(log_density)) % 5_000 == 0
    shares = np.full(len(deviations), 1.0 / len(deviations))
    filtered, _ = filter_sequences(log_density, shares, case.transition_matrix, starts)
    accuracy = np.mean(filtered.argmax(axis=1) == sample.regimes.ravel())
    # Regimes last some 50 bars, so that 400,000 bars are some 8,000 independent ones: three standard errors are 0.016.
    assert accuracy == pytest.approx(OPTIMA[name], abs=0.016)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="n_chains must be at least 1, got 0"):
        sample_regimes(REGIME_CASES["toy"], 0, 5, seed=1)
