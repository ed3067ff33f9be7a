"""Conformal intervals cover as promised, and again soon after the market has changed."""

import json
import math

import numpy as np
import pytest

from ml.tradingbots.core.conformal import AdaptiveConformal, SplitConformal
from ml.tradingbots.core.forecast_metrics import coverage, interval_width
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.data.synthetic_patterns import garch, volatility_break

# A share of 20,000 at 0.9 has a standard error of 0.2 points, that of the margin of 2,000 scores is 0.7.
N_CALIBRATION, N_TEST = 2_000, 20_000


def ar1_data():
    market = autoregressive(N_CALIBRATION + N_TEST + 1, phi=0.3, seed=1)
    return market.state[1:], 0.3 * market.state[:-1], np.ones(N_CALIBRATION + N_TEST)


def garch_data():
    market = garch(N_CALIBRATION + N_TEST + 1, seed=2)
    y = np.diff(np.log(market.prices["close"].to_numpy()))
    return y, np.zeros(len(y)), market.state[:-1]


stationary = pytest.mark.parametrize("make", [ar1_data, garch_data])


@stationary
@pytest.mark.parametrize("symmetric", [True, False])
def test_split_intervals_cover_stationary_data(make, symmetric):
    y, prediction, scale = make()
    conformal = SplitConformal(0.9, symmetric=symmetric)
    conformal.fit(y[:N_CALIBRATION], prediction[:N_CALIBRATION], scale[:N_CALIBRATION])
    low, high = conformal.interval(prediction[N_CALIBRATION:], scale[N_CALIBRATION:])
    assert 0.88 <= coverage(y[N_CALIBRATION:], low, high) <= 0.92


@stationary
@pytest.mark.parametrize("scaled", [True, False])
def test_adaptive_intervals_cover_stationary_data(make, scaled):
    y, prediction, scale = make()
    low, high = AdaptiveConformal().run(y, prediction, scale if scaled else 1.0)
    assert 0.89 <= coverage(y[100:], low[100:], high[100:]) <= 0.91


def test_the_margin_is_the_order_statistic_of_the_paper():
    residuals = np.arange(1.0, 20.0)  # 19 rows: ceil(20 · 0.9) = 18.
    low, high = SplitConformal(0.9).fit(residuals, np.zeros(19)).interval([0.0])
    assert (low[0], high[0]) == (-18.0, 18.0)
    low, high = SplitConformal(0.9).fit(residuals[:9], np.zeros(9)).interval([0.0])
    assert high[0] == 9.0


def test_the_coverage_of_few_rows_is_at_least_nominal_and_at_most_one_rank_more():
    generator = np.random.default_rng(3)
    n_rows, n_repeats = 19, 4_000
    scores = generator.standard_normal((n_rows, n_repeats))
    conformal = SplitConformal(0.85).fit(scores, np.zeros_like(scores))
    y = generator.standard_normal((1, n_repeats))
    low, high = conformal.interval(np.zeros_like(y))
    # ceil(20 · 0.85) / 20 = 0.85 exactly; three standard errors of a share.
    assert coverage(y, low, high) == pytest.approx(0.85, abs=3.0 * math.sqrt(0.85 * 0.15 / n_repeats))


def test_asymmetric_margins_miss_each_tail_equally_often():
    y = np.random.default_rng(4).exponential(size=20_000)
    low, high = SplitConformal(0.9, symmetric=False).fit(y[:5_000], np.zeros(5_000)).interval(np.zeros(15_000))
    # Three standard errors of a share of 5%, of the test and of the calibration.
    assert np.mean(y[5_000:] < low) == pytest.approx(0.05, abs=0.011)
    assert np.mean(y[5_000:] > high) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_quantile_forecasts_that_are_off_are_widened_or_narrowed_until_they_cover(factor):
    y = np.random.default_rng(5).standard_normal(20_000)
    low, high = np.full(20_000, -1.645 * factor), np.full(20_000, 1.645 * factor)
    conformal = SplitConformal(0.9).fit_quantiles(y[:5_000], low[:5_000], high[:5_000])
    ends = conformal.interval_from_quantiles(low[5_000:], high[5_000:])
    assert coverage(y[5_000:], *ends) == pytest.approx(0.9, abs=0.015)  # Three standard errors, as above.
    assert interval_width(*ends) == pytest.approx(2 * 1.645, rel=0.06)


def test_narrowing_past_the_middle_leaves_the_middle():
    conformal = SplitConformal(0.9).fit_quantiles(np.zeros(20), np.full(20, -5.0), np.full(20, 5.0))
    low, high = conformal.interval_from_quantiles([-1.0], [2.0])
    assert low[0] == high[0] == pytest.approx(0.5)


def test_columns_are_calibrated_on_their_own():
    y = np.random.default_rng(6).standard_normal((500, 2)) * [1.0, 10.0]
    _, high = SplitConformal().fit(y, np.zeros_like(y)).interval(np.zeros((1, 2)))
    alone = SplitConformal().fit(y[:, 1], np.zeros(500)).interval([0.0])
    assert high[0, 1] == alone[1][0]
    assert high[0, 1] > 5.0 * high[0, 0]


@pytest.mark.parametrize("make", [lambda: SplitConformal(0.8, symmetric=False), lambda: AdaptiveConformal(0.8, 0.05)])
def test_a_restored_object_goes_on_as_the_saved_one(make):
    y = np.random.default_rng(7).standard_normal(300)
    original, restored = make().fit(y[:200], np.zeros(200)), make()
    if isinstance(original, AdaptiveConformal):
        original.interval(0.3, 2.0)
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    if isinstance(original, AdaptiveConformal):
        for conformal in (original, restored):
            conformal.update(0.1)
        np.testing.assert_array_equal(original.run(y, np.zeros(300)), restored.run(y, np.zeros(300)))
    np.testing.assert_array_equal(original.interval(0.0), restored.interval(0.0))


def test_coverage_is_back_250_bars_after_volatility_tripled():
    after, around, at_once = [], [], []
    for seed in range(20):
        market = volatility_break(2_000, at=1_001, factor=3.0, seed=seed)
        y = np.diff(np.log(market.prices["close"].to_numpy()))  # The first of the wild bars is y[1000].
        low, high = AdaptiveConformal(0.9).run(y, np.zeros(len(y)))
        held = (low <= y) & (y <= high)
        at_once.append(held[1_000:1_025].mean())
        around.append(held[1_000:1_250].mean())
        after.append(held[1_250:1_500].mean())
    assert np.mean(at_once) < 0.8  # The break is one.
    # Of each seed, the 250 bars from the break on and the 250 after them.
    assert np.abs(np.array(around) - 0.9).max() <= 0.03
    assert np.abs(np.array(after) - 0.9).max() <= 0.03
    assert abs(np.mean(after) - 0.9) <= 0.01


def test_a_split_interval_does_not_come_back_after_the_break():
    y = np.diff(np.log(volatility_break(3_000, at=1_001, seed=0).prices["close"].to_numpy()))
    low, high = SplitConformal(0.9).fit(y[:1_000], np.zeros(1_000)).interval(np.zeros(1_999))
    # P(|N| < 1.645 / 3) = 0.42.
    assert coverage(y[1_000:], low, high) < 0.5


def test_the_share_of_misses_is_what_the_identity_says_whatever_the_market_does():
    generator = np.random.default_rng(8)
    y = generator.standard_normal(1_000) * np.exp(3.0 * np.sin(np.arange(1_000) / 50.0))
    conformal = AdaptiveConformal(0.9, 0.05).fit(y[:100], np.zeros(100))
    low, high = conformal.run(y, np.zeros(1_000))
    conformal.update(y[-1])
    misses = np.mean((y < low) | (y > high))
    assert misses == pytest.approx(0.1 + (0.1 - conformal.miss_rate) / (0.05 * 1_000), abs=1e-12)


def test_the_aim_may_leave_the_unit_interval_and_intervals_stay_finite():
    rising = np.exp(np.arange(300) / 5.0)  # Every score is a new record: nothing remembered is wide enough.
    conformal = AdaptiveConformal(0.9, 0.05).fit(rising[:20], np.zeros(20))
    low, high = conformal.run(rising[20:], np.zeros(280))
    assert conformal.miss_rate < 0.0
    assert np.isfinite(high).all()
    conformal = AdaptiveConformal(0.9, 0.5).fit(np.ones(20), np.zeros(20))
    low, high = conformal.run(np.zeros(100), np.zeros(100))
    assert conformal.miss_rate > 1.0
    assert (low[-1], high[-1]) == (0.0, 0.0)


@pytest.mark.parametrize("horizon", [1, 5])
def test_a_block_and_a_stream_give_the_same_intervals(horizon):
    generator = np.random.default_rng(9)
    y, prediction, scale = generator.standard_normal(400), generator.standard_normal(400), 1.0 + generator.random(400)
    in_a_block = AdaptiveConformal().run(y, prediction, scale, horizon=horizon)
    conformal = AdaptiveConformal()
    for t in range(400):
        if t >= horizon:
            conformal.update(y[t - horizon])
        low, high = conformal.interval(prediction[t], scale[t])
        assert (low, high) == (in_a_block[0][t], in_a_block[1][t])
    assert conformal.n_open == horizon


@pytest.mark.parametrize("horizon", [1, 5])
def test_outcomes_of_the_future_change_no_interval(horizon):
    y, prediction = np.random.default_rng(10).standard_normal((2, 400))
    whole = AdaptiveConformal().run(y, prediction, horizon=horizon)
    shorter = AdaptiveConformal().run(y[:250], prediction[:250], horizon=horizon)
    unknown = y.copy()
    unknown[250 - horizon :] = np.nan
    np.testing.assert_array_equal(shorter, np.array(whole)[:, :250])
    blind = AdaptiveConformal().run(unknown[:250], prediction[:250], horizon=horizon)
    np.testing.assert_array_equal(blind, shorter)


def test_intervals_are_infinite_until_there_are_enough_scores():
    low, high = AdaptiveConformal(0.9).run(np.ones(12), np.zeros(12))
    assert np.isinf(high[:9]).all()  # Nine scores are the fewest with a 90% quantile.
    assert high[9:].tolist() == [1.0, 1.0, 1.0]
    assert low[0] == -math.inf


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="coverage must be in"):
        SplitConformal(90)
    with pytest.raises(ValueError, match="at least 9 calibration rows"):
        SplitConformal(0.9).fit(np.zeros(8), np.zeros(8))
    with pytest.raises(ValueError, match="at least 19 calibration rows"):
        SplitConformal(0.9, symmetric=False).fit(np.zeros(18), np.zeros(18))
    with pytest.raises(RuntimeError, match="call fit"):
        SplitConformal().interval([0.0])
    with pytest.raises(ValueError, match="not known yet"):
        SplitConformal().fit(np.full(20, np.nan), np.zeros(20))
    with pytest.raises(RuntimeError, match="no open interval"):
        AdaptiveConformal().update(0.0)
    with pytest.raises(ValueError, match="scale"):
        AdaptiveConformal().interval(0.0, 0.0)
    with pytest.raises(ValueError, match="window_size must be at least 99"):
        AdaptiveConformal(0.99, window_size=98)
    conformal = AdaptiveConformal()
    conformal.interval(0.0)
    with pytest.raises(RuntimeError, match="1 intervals are open"):
        conformal.run(np.zeros(3), np.zeros(3))
