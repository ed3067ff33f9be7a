"""The forecasters' synthetic markets follow their processes, and nobody beats their optima."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ml.tradingbots.core.forecast_metrics import information_coefficient, r2_out_of_sample
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import Autoregressive, autoregressive
from ml.tradingbots.data.synthetic_patterns import (
    Garch,
    NoisySine,
    PlantedPattern,
    autoregressive_expectation,
    autoregressive_optimum,
    garch,
    noisy_sine,
    panel_autoregressive,
    planted_pattern,
    volatility_break,
)

MARKETS = {
    "planted_v": planted_pattern,
    "planted_double_bottom": lambda n, seed: planted_pattern(n, pattern="double_bottom", horizon=5, seed=seed),
    "noisy_sine": noisy_sine,
    "volatility_break": lambda n, seed: volatility_break(n, at=100, seed=seed),
    "garch": garch,
    "panel": lambda n, seed: panel_autoregressive(3, n, seed=seed),
}
N_BARS = 60_000

every_market = pytest.mark.parametrize("make", MARKETS.values(), ids=MARKETS.keys())
patterns = pytest.mark.parametrize(
    ("pattern", "horizon", "effect"), [("v", 1, 1.0), ("v", 1, 2.0), ("v", 5, 1.0), ("double_bottom", 3, 1.5)]
)


def outcomes(market, horizon=1):
    """Origins' log returns over the horizon; one fewer per bar of horizon than there are bars."""
    log_price = np.log(market.prices["close"].to_numpy())
    return log_price[horizon:] - log_price[:-horizon]


def area_under_curve(score, is_rise):
    """Probability that a rise has the higher score, ties counting half (Mann and Whitney)."""
    ranks = stats.rankdata(score)
    n_rises = int(is_rise.sum())
    return (ranks[is_rise].sum() - n_rises * (n_rises + 1) / 2) / (n_rises * (len(score) - n_rises))


@every_market
def test_same_seed_same_prices_and_another_seed_others(make):
    first, again, other = make(300, seed=3), make(300, seed=3), make(300, seed=4)
    pd.testing.assert_frame_equal(first.prices, again.prices, check_exact=True)
    np.testing.assert_array_equal(first.state, again.state)
    assert (first.prices.to_numpy() != other.prices.to_numpy()).mean() > 0.99


@every_market
def test_a_longer_market_starts_with_the_shorter_one(make):
    short, long = make(257, seed=5), make(1_000, seed=5)
    pd.testing.assert_frame_equal(long.prices.iloc[:257], short.prices, check_exact=True)
    np.testing.assert_array_equal(long.state[:257], short.state)


@every_market
def test_every_market_is_a_price_table(make):
    market = make(300, seed=6)
    bars = Bars.from_frame(market.prices)
    assert len(bars.timestamps) == len(market.state) == 300
    assert np.isfinite(market.state).all()


@patterns
def test_the_best_score_of_a_pattern_reaches_the_documented_auc_and_r_squared(pattern, horizon, effect):
    market = planted_pattern(N_BARS, pattern=pattern, horizon=horizon, effect=effect, seed=7)
    y, state = outcomes(market, horizon), market.state[:-horizon]
    parameters, found = market.parameters, np.mean(state != 0.0)
    # Outcomes share bars, so h of them count as one: the standard error of an AUC of n pairs is 1 / sqrt(3 n); three.
    tolerance = 3.0 * math.sqrt(horizon / (3.0 * N_BARS))
    assert area_under_curve(state, y > 0.0) == pytest.approx(parameters.optimal_auc(found), abs=tolerance)
    # Three standard errors of R² = corr²: 2 corr / sqrt(n).
    expected = parameters.optimal_r2(found)
    error = 3.0 * 2.0 * math.sqrt(expected * horizon / N_BARS)
    assert r2_out_of_sample(y, state * parameters.move) == pytest.approx(expected, abs=error)
    moved = y[state != 0.0] * state[state != 0.0]
    share = stats.norm.cdf(effect)
    n_moves = len(moved) / horizon
    assert np.mean(moved > 0.0) == pytest.approx(share, abs=3.0 * math.sqrt(share * (1.0 - share) / n_moves))


@patterns
def test_the_last_return_says_nothing_about_a_planted_pattern(pattern, horizon, effect):
    market = planted_pattern(N_BARS, pattern=pattern, horizon=horizon, effect=effect, seed=8)
    y, last = outcomes(market, horizon)[20:], np.diff(np.log(market.prices["close"].to_numpy()), prepend=np.nan)
    last = last[20:-horizon]
    # Three standard errors: the last returns are independent of each other, so outcomes that overlap cost nothing.
    assert abs(information_coefficient(y, last)) < 3.0 / math.sqrt(N_BARS)
    half = len(y) // 2
    slope = last[:half] @ y[:half] / (last[:half] @ last[:half])
    assert abs(r2_out_of_sample(y[half:], slope * last[half:])) < 9.0 / half
    assert area_under_curve(last, y > 0.0) == pytest.approx(0.5, abs=3.0 / math.sqrt(3.0 * N_BARS))


def test_the_window_of_a_pattern_shows_its_state():
    parameters = PlantedPattern(horizon=2)
    market = planted_pattern(3_000, horizon=2, seed=9)
    z = np.diff(np.log(market.prices["close"].to_numpy()), prepend=math.log(100.0)) / 0.01
    shape = np.array([-1] * 6 + [1] * 6) / math.sqrt(12)
    width, horizon = parameters.window_size, parameters.horizon
    for origin in range(width - 1, 3_000):
        window = z[origin - width + 1 : origin + 1]
        match = np.convolve(window, shape[::-1], mode="valid")  # Of the bars origin - 2h … origin.
        above = np.abs(match) > parameters.threshold
        seen = 0.0
        for complete in range(horizon, 2 * horizon):
            if above[complete] and not above[complete - horizon : complete].any():
                seen = float(np.sign(match[complete]))
        assert seen == market.state[origin]


@pytest.mark.parametrize("horizon", [1, 5])
def test_prevalence_is_about_the_share_of_origins_with_a_move(horizon):
    state = planted_pattern(N_BARS, prevalence=0.08, effect=0.5, horizon=horizon, seed=10).state
    assert np.mean(state != 0.0) == pytest.approx(0.08, rel=0.1)  # Chance is 3%; the rest are moves in later matches.
    assert abs(state.mean()) < 0.01


@pytest.mark.parametrize("horizon", [1, 3, 8])
def test_the_optimum_of_an_ar1_over_a_horizon_is_reached_by_its_expectation(horizon):
    market = autoregressive(N_BARS, phi=0.5, seed=11)
    best = autoregressive_optimum(market.parameters, horizon)
    y, expected = outcomes(market, horizon), autoregressive_expectation(market.parameters, market.state, horizon)
    # Three standard errors of R² and of a deviation, h overlapping outcomes counting as one.
    error = 3.0 * math.sqrt(horizon / N_BARS)
    assert r2_out_of_sample(y, expected[:-horizon]) == pytest.approx(best.r2, abs=2.0 * math.sqrt(best.r2) * error)
    assert y.std() == pytest.approx(best.deviation, rel=error)
    assert np.std(y - expected[:-horizon]) == pytest.approx(best.error_deviation, rel=error)


def test_the_optimum_of_an_ar1_for_the_next_bar_is_the_known_one():
    best = autoregressive_optimum(Autoregressive(phi=-0.3, volatility=0.02))
    assert best.r2 == pytest.approx(0.09)
    assert best.information_coefficient == pytest.approx(0.3)
    assert best.directional_accuracy == pytest.approx(0.5970, abs=5e-5)
    assert best.sharpe_of_sign(bars_per_year=252) == pytest.approx(3.91, abs=5e-3)
    assert best.sharpe_of_linear(bars_per_year=252) == pytest.approx(4.56, abs=5e-3)
    assert best.error_deviation == pytest.approx(0.02)


@pytest.mark.parametrize("horizon", [1, 5, 10])
def test_a_sine_is_forecast_as_well_as_its_optima_say(horizon):
    market = noisy_sine(N_BARS, period=20.0, amplitude=0.008, seed=12)
    parameters, y = market.parameters, outcomes(market, horizon)
    bar = np.arange(len(y))[:, None] + np.arange(1, horizon + 1)
    known_phase = 0.008 * np.sin(2.0 * np.pi * bar / 20.0).sum(axis=1)
    best = parameters.optimal_r2(horizon)
    error = 3.0 * 2.0 * math.sqrt(best * horizon / N_BARS)  # Three standard errors, as above.
    assert r2_out_of_sample(y, known_phase) == pytest.approx(best, abs=error)
    log_returns = np.diff(np.log(market.prices["close"].to_numpy()))
    windows = np.lib.stride_tricks.sliding_window_view(log_returns, 16)[: len(y) - 16]
    target, half = y[16:], len(windows) // 2
    coefficients = np.linalg.lstsq(windows[:half], target[:half], rcond=None)[0]
    reachable = parameters.optimal_r2(horizon, window_size=16)
    assert reachable < best
    assert r2_out_of_sample(target[half:], windows[half:] @ coefficients) == pytest.approx(
        reachable, abs=math.sqrt(2.0) * error + 16 * horizon / half
    )


def test_a_sine_over_whole_periods_cannot_be_forecast():
    assert NoisySine(period=20.0).optimal_r2(20) == pytest.approx(0.0, abs=1e-12)


def test_a_long_window_of_a_sine_tells_its_phase():
    sine = NoisySine(period=20.0, amplitude=0.01, volatility=0.01)
    by_window = [sine.optimal_r2(window_size=size) for size in (1, 10, 100, 1_000)]
    assert by_window == sorted(by_window)
    assert by_window[-1] == pytest.approx(sine.optimal_r2(), rel=0.02)


def test_volatility_breaks_at_its_bar():
    market = volatility_break(20_000, at=10_000, factor=3.0, seed=13)
    log_returns = np.diff(np.log(market.prices["close"].to_numpy()), prepend=math.log(100.0))
    # Three standard errors of a deviation of 10,000 normals.
    assert log_returns[:10_000].std() == pytest.approx(0.01, rel=3.0 / math.sqrt(20_000))
    assert log_returns[10_000:].std() == pytest.approx(0.03, rel=3.0 / math.sqrt(20_000))
    assert (market.state[9_998], market.state[9_999]) == (0.01, pytest.approx(0.03))


def test_garch_returns_are_normal_once_scaled_and_cannot_be_predicted():
    market = garch(N_BARS, reaction=0.1, memory=0.8, seed=14)
    y = outcomes(market)
    scaled = y / market.state[:-1]
    assert scaled.std() == pytest.approx(1.0, abs=3.0 / math.sqrt(2 * N_BARS))
    # Three standard errors of the kurtosis of normals, and of a correlation of fat-tailed ones (with room for their tails).
    assert stats.kurtosis(scaled) == pytest.approx(0.0, abs=3.0 * math.sqrt(24 / N_BARS))
    assert abs(information_coefficient(y[1:], y[:-1])) < 6.0 / math.sqrt(N_BARS)
    assert information_coefficient(y[1:] ** 2, y[:-1] ** 2) > 0.1


def test_the_forecast_deviation_of_garch_is_that_of_the_outcomes():
    market = garch(200_000, reaction=0.1, memory=0.8, seed=15)
    y, forecast = outcomes(market, 5), market.parameters.forecast_deviation(market.state, 5)[:-5]
    for chosen in (forecast < np.quantile(forecast, 0.2), forecast > np.quantile(forecast, 0.8)):
        # 40,000 outcomes of which five share bars: three standard errors of a variance, with room for fat tails.
        assert np.mean((y[chosen] / forecast[chosen]) ** 2) == pytest.approx(1.0, abs=0.07)
    assert Garch().forecast_deviation(np.array([0.01]), 4)[0] == pytest.approx(0.02)


def test_assets_of_a_panel_share_phi_and_differ_in_volatility():
    market = panel_autoregressive(20, 300, phi=0.3, seed=16)
    assert market.prices.shape == market.state.shape == (300, 20)
    scaled = market.state / np.array(market.parameters.volatilities)
    pooled = np.corrcoef(scaled[1:].ravel(), scaled[:-1].ravel())[0, 1]
    assert pooled == pytest.approx(0.3, abs=3.0 * math.sqrt((1 - 0.09) / 6_000))
    across = np.corrcoef(market.state.T) - np.eye(20)
    assert np.abs(across).max() < 0.3  # Of 190 pairs of 300 bars, 4.5 standard errors and a little more for phi.
    assert market.state[:, -1].std() / market.state[:, 0].std() == pytest.approx(6.0, rel=0.25)


def test_one_asset_of_a_small_panel_is_too_little_to_learn_from_and_all_together_are_enough():
    alone, together, optimum = [], [], 0.09
    for seed in range(10):
        scaled = panel_autoregressive(20, 600, phi=0.3, seed=seed).state
        scaled = scaled / scaled[:300].std(axis=0)
        windows = np.lib.stride_tricks.sliding_window_view(scaled, 16, axis=0)[:-1].swapaxes(
            0, 1
        )  # (assets, bars, lags)
        target, cut = scaled[16:].T, 300 - 16
        pooled = np.linalg.lstsq(windows[:, :cut].reshape(-1, 16), target[:, :cut].ravel(), rcond=None)[0]
        together.append(r2_out_of_sample(target[:, cut:].ravel(), windows[:, cut:].reshape(-1, 16) @ pooled))
        single = np.linalg.lstsq(windows[0, :cut], target[0, :cut], rcond=None)[0]
        alone.append(r2_out_of_sample(target[0, cut:], windows[0, cut:] @ single))
    assert np.mean(together) > 0.85 * optimum
    assert np.mean(alone) < 0.6 * optimum


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlantedPattern(prevalence=0.5), "prevalence"),
        (lambda: PlantedPattern(pattern="cup"), "pattern must be one of"),
        (lambda: PlantedPattern(horizon=0), "horizon"),
        (lambda: Garch(reaction=0.2, memory=0.8), "below 1"),
        (lambda: NoisySine(period=2.0), "period"),
        (lambda: volatility_break(10, at=0, seed=1), "at must be"),
        (lambda: panel_autoregressive(3, 10, volatilities=(0.01,), seed=1), "3 assets"),
        (lambda: autoregressive_optimum(Autoregressive(), 0), "horizon"),
    ],
)
def test_processes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
