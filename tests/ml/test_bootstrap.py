"""Bootstrap intervals hold the truth about as often as they say, where rows depend on each other too."""

import math

import numpy as np
import pytest

from ml.tradingbots.core.bootstrap import automatic_block_length, block_bootstrap_interval
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.data.synthetic_patterns import garch


def mean_of_each(series):
    return series.mean(axis=1)


def variance_of_each(series):
    return series.var(axis=1)


def share_covering(block_length, n_markets=150, n_bars=400, phi=0.6):
    covered = 0
    for seed in range(n_markets):
        series = autoregressive(n_bars, phi=phi, seed=seed).state
        found = block_bootstrap_interval(
            mean_of_each, series, block_length=block_length, n_samples=300, seed=seed, vectorised=True
        )
        covered += not found.excludes(0.0)
    return covered / n_markets


def test_intervals_of_dependent_rows_cover_with_blocks_and_not_without():
    # Three standard errors of a share of 150 are 7 points at 0.91 and 12 at 0.65. A known property of percentile intervals
    # is that 400 dependent bars cover some points less than the nominal 95%.
    assert 0.84 <= share_covering(None) <= 0.98
    assert share_covering(1.0) <= 0.77


def test_the_block_is_longer_where_rows_depend_more():
    lengths = [automatic_block_length(np.mean, autoregressive(500, phi=phi, seed=3).state) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert lengths[2] <= 500 / 4


def test_the_block_length_of_a_mean_is_that_of_the_series_itself():
    from arch.bootstrap import optimal_block_length

    series = autoregressive(400, phi=0.5, seed=4).state
    expected = optimal_block_length(series)["stationary"].iloc[0]
    # Leaving a row out moves a mean by a multiple of the row: the influences are the series up to sign and scale.
    assert automatic_block_length(np.mean, series) == pytest.approx(expected, rel=1e-6)


def test_the_block_length_follows_what_the_statistic_averages():
    log_returns = np.diff(np.log(garch(2_000, reaction=0.2, memory=0.75, seed=5).prices["close"].to_numpy()))
    assert automatic_block_length(np.mean, log_returns) < 15
    assert automatic_block_length(variance_of_each, log_returns, vectorised=True) > 25


def test_a_statistic_called_once_or_in_batches_gives_the_same_interval():
    series = autoregressive(300, seed=6).state
    one_by_one = block_bootstrap_interval(np.mean, series, n_samples=200, seed=7)
    in_batches = block_bootstrap_interval(mean_of_each, series, n_samples=200, seed=7, vectorised=True)
    assert one_by_one.low == pytest.approx(in_batches.low, rel=1e-9)
    assert one_by_one.high == pytest.approx(in_batches.high, rel=1e-9)
    assert one_by_one.block_length == pytest.approx(in_batches.block_length, rel=1e-6)


def test_resamples_do_not_depend_on_the_size_of_the_batches(monkeypatch):
    series = autoregressive(300, seed=6).state
    whole = block_bootstrap_interval(np.mean, series, block_length=5.0, n_samples=100, seed=7)
    monkeypatch.setattr("ml.tradingbots.core.bootstrap.BATCH_ENTRIES", 900)
    assert block_bootstrap_interval(np.mean, series, block_length=5.0, n_samples=100, seed=7) == whole


def test_blocks_have_the_asked_mean_length_and_every_row_is_as_likely():
    rows = []

    def collect(batch):
        rows.append(batch)
        return batch.mean(axis=1)

    block_bootstrap_interval(collect, np.arange(200.0), block_length=8.0, n_samples=500, seed=8, vectorised=True)
    drawn = rows[-1]
    breaks = np.mean((np.diff(drawn, axis=1) % 200) != 1)
    # A block ends with probability 1/8, and the next then starts one row further by chance once in 200.
    assert breaks == pytest.approx(1 / 8 * 199 / 200, rel=0.03)
    assert np.bincount(drawn.astype(int).ravel(), minlength=200) == pytest.approx(500.0, rel=0.5)


def test_rows_of_several_series_stay_together():
    y = autoregressive(300, seed=9).state
    found = block_bootstrap_interval(lambda a, b: np.abs(a - b).max(), y, y.copy(), block_length=4.0, n_samples=50)
    assert (found.low, found.high) == (0.0, 0.0)
    panel = np.stack([y, -y], axis=1)
    found = block_bootstrap_interval(lambda a: np.abs(a.sum(axis=1)).max(), panel, block_length=4.0, n_samples=50)
    assert (found.low, found.high) == (0.0, 0.0)


def test_plain_bootstrap_of_independent_rows_has_the_width_of_theory():
    series = np.random.default_rng(10).standard_normal(1_000)
    found = block_bootstrap_interval(mean_of_each, series, block_length=1.0, n_samples=2_000, vectorised=True)
    # The error of a 2.5% quantile of 2,000 draws is about 5% of the width.
    assert found.high - found.low == pytest.approx(2 * 1.96 * series.std() / math.sqrt(1_000), rel=0.08)
    assert found.low < found.estimate < found.high


def test_same_seed_same_interval_and_another_seed_another():
    series = autoregressive(200, seed=11).state
    first, again, other = (block_bootstrap_interval(np.mean, series, n_samples=100, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.low != other.low


def test_a_statistic_that_is_often_undefined_has_no_interval():
    idle = np.zeros(100)
    found = block_bootstrap_interval(lambda r: sharpe_ratio(r, bars_per_year=252), idle, n_samples=50)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.excludes(0.0)


def test_a_series_that_does_not_vary_has_an_interval_of_no_width():
    found = block_bootstrap_interval(np.mean, np.full(50, 0.01), n_samples=50)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="same number of bars"):
        block_bootstrap_interval(np.mean, np.zeros(5), np.zeros(6))
    with pytest.raises(ValueError, match="block_length"):
        block_bootstrap_interval(np.mean, np.zeros(5), block_length=0.5)
    with pytest.raises(ValueError, match="confidence"):
        block_bootstrap_interval(np.mean, np.zeros(5), confidence=95)
    with pytest.raises(ValueError, match="one number per resample"):
        block_bootstrap_interval(np.mean, np.zeros(5), block_length=1.0, vectorised=True)
