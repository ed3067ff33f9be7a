"""The synthetic markets follow their processes, and their seeds."""

import math

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.data import synthetic
from ml.tradingbots.data.synthetic import (
    RegimeSwitching,
    autoregressive,
    filtered_regime_probability,
    ornstein_uhlenbeck,
    random_walk,
    regime_switching,
    sine,
)

MARKETS = {
    "random_walk": random_walk,
    "autoregressive": autoregressive,
    "ornstein_uhlenbeck": ornstein_uhlenbeck,
    "regime_switching": regime_switching,
    "noisy_sine": lambda n_bars, seed: sine(n_bars, noise=0.01, seed=seed),
}
N_BARS = 50_000

every_market = pytest.mark.parametrize("make", MARKETS.values(), ids=MARKETS.keys())


def log_returns_of(market):
    return np.diff(np.log(market.prices["close"].to_numpy()))


@every_market
def test_same_seed_same_prices(make):
    first, second = make(300, seed=3), make(300, seed=3)
    pd.testing.assert_frame_equal(first.prices, second.prices, check_exact=True)
    np.testing.assert_array_equal(first.state, second.state)


@every_market
def test_another_seed_gives_other_prices(make):
    assert (make(300, seed=3).prices["close"] != make(300, seed=4).prices["close"]).mean() > 0.99


@every_market
def test_a_longer_market_starts_with_the_shorter_one(make):
    short, long = make(257, seed=5), make(1_000, seed=5)
    pd.testing.assert_frame_equal(long.prices.iloc[:257], short.prices, check_exact=True)
    np.testing.assert_array_equal(long.state[:257], short.state)


@every_market
def test_every_bar_has_a_price_and_a_state(make):
    market = make(300, seed=6)
    assert len(market.prices) == len(market.state) == 300
    assert market.state.dtype == np.float64
    assert (market.prices["close"] > 0.0).all()
    assert np.isfinite(market.state).all()


def test_bars_are_business_days_in_utc_from_1990_on():
    index = random_walk(500, seed=1).prices.index
    assert index[0] == pd.Timestamp("1990-01-01", tz="UTC")
    assert index.is_monotonic_increasing
    assert index.is_unique
    assert index.day_of_week.max() == 4
    assert len(pd.bdate_range(index[0], index[-1])) == 500


def test_long_markets_do_not_overflow_their_timestamps():
    index = autoregressive(300_000, seed=1).prices.index
    assert index.is_monotonic_increasing
    assert index[-1].year == 3139


def test_a_driftless_random_walk_is_a_martingale():
    market = random_walk(N_BARS, volatility=0.02, seed=11)
    asset_returns = np.expm1(log_returns_of(market))
    # Three standard errors of a mean.
    assert abs(asset_returns.mean()) < 3.0 * 0.02 / math.sqrt(N_BARS)


def test_drift_is_the_expected_simple_return():
    asset_returns = np.expm1(log_returns_of(random_walk(N_BARS, volatility=0.05, drift=0.002, seed=12)))
    assert asset_returns.mean() == pytest.approx(0.002, abs=3.0 * 0.05 / math.sqrt(N_BARS))


def test_without_volatility_the_price_compounds_the_drift():
    close = random_walk(10, volatility=0.0, drift=0.01, seed=1).prices["close"].to_numpy()
    np.testing.assert_allclose(close[1:] / close[:-1], 1.01, rtol=1e-12)


def test_volatility_is_the_deviation_of_the_log_returns():
    log_returns = log_returns_of(random_walk(N_BARS, volatility=0.02, seed=13))
    # The standard error of a standard deviation of n normals is sigma / sqrt(2 n).
    assert log_returns.std() == pytest.approx(0.02, abs=3.0 * 0.02 / math.sqrt(2 * N_BARS))


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.3, 0.9])
def test_phi_is_the_autocorrelation_of_the_log_returns(phi):
    log_returns = log_returns_of(autoregressive(N_BARS, phi=phi, volatility=0.02, seed=14))
    autocorrelation = np.corrcoef(log_returns[1:], log_returns[:-1])[0, 1]
    # The standard error of the first autocorrelation of an AR(1) is sqrt((1 - phi²) / n) (Bartlett).
    assert autocorrelation == pytest.approx(phi, abs=3.0 * math.sqrt((1.0 - phi**2) / N_BARS))
    innovations = log_returns[1:] - phi * log_returns[:-1]
    assert innovations.std() == pytest.approx(0.02, abs=3.0 * 0.02 / math.sqrt(2 * N_BARS))


def test_the_state_of_an_autoregressive_market_is_its_last_log_return():
    market = autoregressive(300, seed=15)
    np.testing.assert_allclose(market.state[1:], log_returns_of(market), atol=1e-13)
    assert market.state[0] == pytest.approx(math.log(market.prices["close"].iloc[0] / 100.0), abs=1e-13)


@pytest.mark.parametrize("make", [autoregressive, ornstein_uhlenbeck])
def test_the_first_state_is_already_stationary(make):
    n_seeds = 4_000
    first = np.array([make(2, seed=seed).state[0] for seed in range(n_seeds)])
    expected = make(2, seed=0).parameters.stationary_deviation
    assert first.std() == pytest.approx(expected, abs=3.0 * expected / math.sqrt(2 * n_seeds))


def test_the_deviation_of_an_ornstein_uhlenbeck_price_decays_by_the_reversion():
    market = ornstein_uhlenbeck(N_BARS, reversion=0.1, volatility=0.02, seed=16)
    autocorrelation = np.corrcoef(market.state[1:], market.state[:-1])[0, 1]
    assert autocorrelation == pytest.approx(0.9, abs=3.0 * math.sqrt((1.0 - 0.9**2) / N_BARS))
    innovations = market.state[1:] - 0.9 * market.state[:-1]
    assert innovations.std() == pytest.approx(0.02, abs=3.0 * 0.02 / math.sqrt(2 * N_BARS))


def test_an_ornstein_uhlenbeck_price_shows_its_deviation():
    market = ornstein_uhlenbeck(300, seed=17)
    np.testing.assert_array_equal(market.prices["deviation"], market.state)
    np.testing.assert_allclose(np.log(market.prices["close"] / 100.0), market.state, atol=1e-13)


def test_regimes_last_as_long_as_their_stay_probability_says():
    market = regime_switching(N_BARS, drifts=(0.0, 0.0, 0.0), volatilities=(0.01,) * 3, stay_probability=0.9, seed=18)
    stayed = np.mean(market.state[1:] == market.state[:-1])
    assert stayed == pytest.approx(0.9, abs=3.0 * math.sqrt(0.9 * 0.1 / N_BARS))
    assert set(market.state) == {0.0, 1.0, 2.0}


def test_each_regime_has_its_own_drift_and_volatility():
    market = regime_switching(N_BARS, drifts=(0.002, -0.003), volatilities=(0.01, 0.03), seed=19)
    asset_returns, regime = np.expm1(log_returns_of(market)), market.state[1:]
    for index, (drift, volatility) in enumerate([(0.002, 0.01), (-0.003, 0.03)]):
        sample = asset_returns[regime == index]
        assert sample.mean() == pytest.approx(drift, abs=3.0 * volatility / math.sqrt(len(sample)))
        # Simple returns of 3% volatility are slightly skewed: 4 instead of 3 standard errors leave room for it.
        assert sample.std() == pytest.approx(volatility, abs=4.0 * volatility / math.sqrt(2 * len(sample)))


def test_the_regime_filter_is_the_rule_of_bayes():
    parameters = RegimeSwitching(drifts=(0.0, 0.0), volatilities=(0.01, 0.02), stay_probability=0.75)
    mean = parameters.mean_log_returns
    # At each regime's own mean only the heights of the densities matter, 1/0.01 against 1/0.02.
    far = math.exp(-0.5 * ((mean[0] - mean[1]) / 0.02) ** 2)
    first = 100.0 / (100.0 + 50.0 * far)
    predicted = 0.75 * first + 0.25 * (1.0 - first)
    second = predicted * 100.0 / (predicted * 100.0 + (1.0 - predicted) * 50.0 * far)
    probability = filtered_regime_probability(np.full(2, mean[0]), parameters)
    np.testing.assert_allclose(probability[:, 0], [first, second], rtol=1e-12)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-12)


def test_the_regime_filter_is_right_as_often_as_it_says():
    market = regime_switching(20_000, volatilities=(0.005, 0.02), seed=20)
    log_returns = np.log(market.prices["close"].to_numpy() / np.r_[100.0, market.prices["close"].to_numpy()[:-1]])
    probability = filtered_regime_probability(log_returns, market.parameters)[:, 1]
    sure = probability > 0.9
    assert sure.mean() > 0.3
    # Errors come in runs of a few bars; 0.01 is some three standard errors at about a fifth of the bars independent.
    assert market.state[sure].mean() == pytest.approx(probability[sure].mean(), abs=0.01)


def test_the_regime_filter_survives_an_impossible_log_return():
    probability = filtered_regime_probability(np.array([0.0, 5.0, 0.0]), RegimeSwitching())
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-12)


def test_a_sine_without_noise_repeats_itself():
    market = sine(400, period=40, amplitude=0.1, seed=21)
    close = market.prices["close"].to_numpy()
    np.testing.assert_allclose(close[40:], close[:-40], rtol=1e-12)
    np.testing.assert_allclose(np.log(close / 100.0), 0.1 * np.sin(market.state), atol=1e-13)
    assert close.max() == pytest.approx(100.0 * math.exp(0.1), rel=1e-12)


def test_noise_is_the_deviation_of_the_log_price_from_the_sine():
    market = sine(N_BARS, noise=0.03, seed=22)
    noise = np.log(market.prices["close"].to_numpy() / 100.0) - 0.1 * np.sin(market.state)
    assert noise.std() == pytest.approx(0.03, abs=3.0 * 0.03 / math.sqrt(2 * N_BARS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_walk(1, seed=1), "n_bars must be between 2 and"),
        (lambda: random_walk(10, volatility=-0.01, seed=1), "volatility must be finite and at least 0"),
        (lambda: random_walk(10, drift=-1.0, seed=1), "drift must be finite and above -1"),
        (lambda: random_walk(2_000, volatility=1.0, seed=1), "beyond what a float can hold"),
        (lambda: autoregressive(10, phi=1.0, seed=1), r"phi must be in \(-1, 1\)"),
        (lambda: autoregressive(10, volatility=float("nan"), seed=1), "volatility must be finite and above 0"),
        (lambda: ornstein_uhlenbeck(10, reversion=0.0, seed=1), r"reversion must be in \(0, 1\]"),
        (lambda: regime_switching(10, drifts=(0.0,), volatilities=(0.1, 0.1), seed=1), "one entry for each"),
        (lambda: regime_switching(10, volatilities=(0.1, 0.0), seed=1), "every volatility must be finite and above 0"),
        (lambda: regime_switching(10, stay_probability=1.0, seed=1), r"stay_probability must be in \[0, 1\)"),
        (lambda: regime_switching(10, stay_probability=(0.9, 1.0), seed=1), r"stay_probability must be in \[0, 1\)"),
        (lambda: regime_switching(10, stay_probability=(0.9,), seed=1), "one for each of 2 regimes, got 1"),
        (lambda: sine(10, period=2.0, seed=1), "period must be finite and above 2"),
        (lambda: sine(10, amplitude=0.0, seed=1), "amplitude must be finite and above 0"),
        (lambda: sine(10, noise=-1.0, seed=1), "noise must be finite and at least 0"),
    ],
)
def test_impossible_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_market_names_its_function():
    for name in ("random_walk", "autoregressive", "ornstein_uhlenbeck", "regime_switching", "sine"):
        assert getattr(synthetic, name)(5, seed=1).name == name
