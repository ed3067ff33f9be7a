"""Indicators: pencil cases, agreement with pandas and plain loops, causality, warm-up."""

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.core import indicators

INDICATORS = {
    name: function
    for name, function in inspect.getmembers(indicators, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == indicators.__name__
}
WINDOW, FAST, SLOW = 7, 4, 9
WARMUP_BARS = {
    "atr": WINDOW,
    "bollinger_position": WINDOW - 1,
    "close_location": 0,
    "drawdown_from_high": WINDOW - 1,
    "exponential_mean": WINDOW - 1,
    "high_low_range": 0,
    "log_return": 1,
    "macd": SLOW - 1,
    "momentum": WINDOW,
    "open_gap": 1,
    "rolling_mean": WINDOW - 1,
    "rolling_std": WINDOW - 1,
    "rsi": WINDOW,
    "stochastic_oscillator": WINDOW - 1,
    "volatility": WINDOW,
    "volume_change": WINDOW - 1,
    "zscore": WINDOW - 1,
}
RECURSIVE = {"atr", "exponential_mean", "macd", "rsi"}
IN_UNITS_OF_THEIR_ARGUMENT = {"exponential_mean", "rolling_mean", "rolling_std"}

every_indicator = pytest.mark.parametrize("name", INDICATORS)
rolling_indicators = pytest.mark.parametrize("name", sorted(INDICATORS.keys() - RECURSIVE))

Columns = dict[str, np.ndarray]


def make_columns(n_bars: int = 60, n_assets: int = 3, seed: int = 0) -> Columns:
    """A random market: each bar opens near the last close, and its high and low enclose open and close."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, (n_bars, n_assets)), axis=0))
    open_price = np.concatenate([close[:1], close[:-1]]) * np.exp(rng.normal(0.0, 0.005, close.shape))
    high = np.maximum(open_price, close) * np.exp(np.abs(rng.normal(0.0, 0.01, close.shape)))
    low = np.minimum(open_price, close) * np.exp(-np.abs(rng.normal(0.0, 0.01, close.shape)))
    volume = np.exp(rng.normal(10.0, 1.0, close.shape))
    return {"open_price": open_price, "high": high, "low": low, "close": close, "volume": volume, "values": close}


def evaluate(name: str, columns: Columns) -> np.ndarray:
    sizes = {"n_bars": WINDOW, "span": WINDOW, "fast_span": FAST, "slow_span": SLOW}
    available: dict[str, Any] = {**columns, **sizes}
    parameters = inspect.signature(INDICATORS[name]).parameters
    return INDICATORS[name](**{key: available[key] for key in parameters if key in available})


def rows(columns: Columns, selected: slice) -> Columns:
    return {key: column[selected] for key, column in columns.items()}


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    # NaN has a sign bit of its own, which says nothing.
    ours, theirs = (np.where(np.isnan(array), np.nan, array) for array in (ours, theirs))
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


# Causality


@every_indicator
@pytest.mark.parametrize("future", [1e6, 1e-6, np.nan, np.inf, 0.0], ids=str)
@pytest.mark.parametrize("first_changed", [5, 30, 59])
def test_changing_future_bars_changes_no_past_value(name, future, first_changed):
    columns = make_columns()
    changed = {key: column.copy() for key, column in columns.items()}
    for column in changed.values():
        column[first_changed:] *= future if np.isfinite(future) else 1.0
        column[first_changed:] += 0.0 if np.isfinite(future) else future
    past = slice(first_changed)
    assert_same_bits(evaluate(name, changed)[past], evaluate(name, columns)[past])


@every_indicator
def test_removing_future_bars_changes_no_past_value(name):
    columns = make_columns()
    whole = evaluate(name, columns)
    for n_bars in range(len(whole) + 1):
        assert_same_bits(evaluate(name, rows(columns, slice(n_bars))), whole[:n_bars])


@rolling_indicators
def test_bars_before_the_window_change_no_value(name):
    columns = make_columns()
    for column in columns.values():
        column[0] *= 1e9  # A running sum would carry the rounding of this bar along.
    whole = evaluate(name, columns)
    for start in range(1, 40):
        assert_same_bits(evaluate(name, rows(columns, slice(start, None)))[WINDOW:], whole[start + WINDOW :])


@every_indicator
def test_assets_do_not_mix(name):
    columns = make_columns()
    together = evaluate(name, columns)
    for asset in range(3):
        alone = evaluate(name, {key: column[:, asset] for key, column in columns.items()})
        assert_same_bits(alone, together[:, asset])


@every_indicator
def test_arguments_are_left_untouched_and_never_returned(name):
    columns = make_columns()
    value = evaluate(name, columns)
    assert not any(np.shares_memory(value, column) for column in columns.values())
    for key, column in make_columns().items():
        assert_same_bits(columns[key], column)


# Warm-up


def test_the_warmup_of_every_indicator_is_pinned():
    assert WARMUP_BARS.keys() == INDICATORS.keys()


@every_indicator
def test_the_warmup_is_nan_and_nothing_after_it_is(name):
    defined = np.isfinite(evaluate(name, make_columns()))
    assert not defined[: WARMUP_BARS[name]].any()
    assert defined[WARMUP_BARS[name] :].all()


@every_indicator
def test_an_asset_listed_later_warms_up_from_its_listing(name):
    columns = make_columns()
    listed = {key: column.copy() for key, column in columns.items()}
    for column in listed.values():
        column[:20, 1] = np.nan
    value = evaluate(name, listed)
    assert_same_bits(value[20:, 1], evaluate(name, rows(columns, slice(20, None)))[:, 1])
    assert np.isnan(value[:20, 1]).all()
    assert_same_bits(value[:, 0], evaluate(name, columns)[:, 0])


@every_indicator
def test_fewer_bars_than_a_window_are_all_nan(name):
    value = evaluate(name, make_columns(n_bars=WARMUP_BARS[name]))
    assert value.shape == (WARMUP_BARS[name], 3)
    assert np.isnan(value).all()


def test_a_recursive_mean_passes_over_a_missing_bar():
    with_gap = indicators.exponential_mean([1.0, 2.0, np.nan, 3.0, 8.0], 3)
    np.testing.assert_array_equal(with_gap, [np.nan, np.nan, np.nan, 2.0, 5.0])


# Scale


@pytest.mark.parametrize("name", sorted(INDICATORS.keys() - IN_UNITS_OF_THEIR_ARGUMENT))
@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e5])
def test_prices_times_a_constant_leave_indicators_unchanged(name, factor):
    columns = make_columns()
    scaled = {key: column * factor for key, column in columns.items()}
    # Scaling rounds every price by up to 1e-16 of itself; a 7-bar deviation is 1% of it and more.
    np.testing.assert_allclose(evaluate(name, scaled), evaluate(name, columns), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", sorted(IN_UNITS_OF_THEIR_ARGUMENT))
def test_plain_means_and_deviations_carry_the_unit_of_their_argument(name):
    columns = make_columns()
    scaled = {key: column * 2.0 for key, column in columns.items()}
    np.testing.assert_array_equal(evaluate(name, scaled), 2.0 * evaluate(name, columns))


# Flat markets


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("atr", 0.0),
        ("bollinger_position", 0.0),
        ("close_location", 0.0),
        ("drawdown_from_high", 0.0),
        ("high_low_range", 0.0),
        ("log_return", 0.0),
        ("momentum", 0.0),
        ("open_gap", 0.0),
        ("rolling_std", 0.0),
        ("rsi", 0.5),
        ("stochastic_oscillator", 0.5),
        ("volatility", 0.0),
        ("volume_change", 0.0),
        ("zscore", 0.0),
        ("rolling_mean", 0.1),
    ],
)
def test_a_flat_market_is_exactly_neutral(name, neutral):
    columns = {key: np.full((30, 2), 0.1) for key in make_columns()}
    value = evaluate(name, columns)[WARMUP_BARS[name] :]
    np.testing.assert_array_equal(value, np.full_like(value, neutral))


def test_rounding_noise_is_no_zscore():
    noisy = 1e4 * (1.0 + 2e-16 * np.random.default_rng(0).integers(-1, 2, 50))
    assert len(np.unique(noisy)) > 1
    np.testing.assert_array_equal(indicators.zscore(noisy, 10)[9:], 0.0)


def test_a_flat_stretch_after_a_high_price_is_flat_to_the_last_bit():
    values = np.concatenate([[1e9], np.full(20, 0.1)])
    np.testing.assert_array_equal(indicators.rolling_std(values, 5)[5:], 0.0)


def test_a_bar_without_volume_has_no_volume_change():
    value = indicators.volume_change([0.0, 0.0, 4.0, 0.0], 2)
    np.testing.assert_array_equal(np.isnan(value), [True, True, False, True])
    assert value[2] == pytest.approx(np.log(2.0))


# Pencil


def test_rsi_is_one_when_prices_only_rise_and_zero_when_they_only_fall():
    rising = np.arange(1.0, 20.0)
    np.testing.assert_array_equal(indicators.rsi(rising, 5)[5:], 1.0)
    np.testing.assert_array_equal(indicators.rsi(rising[::-1], 5)[5:], 0.0)


def test_rsi_follows_wilders_recursion():
    # Changes +2 -1 | +3: gains 1 then (1 + 3) / 2 = 2, losses 0.5 then 0.25.
    np.testing.assert_allclose(indicators.rsi([10.0, 12.0, 11.0, 14.0], 2)[2:], [1.0 / 1.5, 2.0 / 2.25], rtol=1e-15)


def test_atr_counts_the_gap_from_the_close_before():
    # Bar 1 spans 12 to 13, but came from 10: its true range is 3.
    np.testing.assert_array_equal(indicators.atr([10.5, 13.0], [9.5, 12.0], [10.0, 12.5], 1), [np.nan, 3.0 / 12.5])


def test_a_close_on_the_upper_band_is_at_one():
    close = np.array([1.0, 1.0, 1.0, 5.0])  # Mean 2, deviation 2.
    assert indicators.bollinger_position(close, 4, n_deviations=1.5)[3] == pytest.approx(1.0)


def test_the_close_lies_between_minus_one_and_one_of_its_bar():
    columns = make_columns(500)
    location = indicators.close_location(columns["high"], columns["low"], columns["close"])
    assert (np.abs(location) <= 1.0).all()
    np.testing.assert_array_equal(indicators.close_location([2.0], [1.0], [2.0]), [1.0])


def test_macd_of_a_steady_climb_is_the_lag_between_its_means():
    # On a line, a mean of span s lags (s - 1) / 2 bars.
    close = np.arange(100.0, 150.0)
    line = indicators.macd(close, FAST, SLOW)[SLOW - 1 :] * close[SLOW - 1 :]
    np.testing.assert_allclose(line, (SLOW - FAST) / 2, rtol=1e-12)


# Agreement with pandas and with plain loops

REFERENCE = {
    "log_return": lambda c: np.log(c.close).diff(),
    "momentum": lambda c: np.log(c.close).diff(WINDOW),
    "rolling_mean": lambda c: c.close.rolling(WINDOW).mean(),
    "rolling_std": lambda c: c.close.rolling(WINDOW).std(),
    "zscore": lambda c: (c.close - c.close.rolling(WINDOW).mean()) / c.close.rolling(WINDOW).std(),
    "bollinger_position": lambda c: (c.close - c.close.rolling(WINDOW).mean()) / (2 * c.close.rolling(WINDOW).std()),
    "volatility": lambda c: np.log(c.close).diff().rolling(WINDOW).std(),
    "high_low_range": lambda c: np.log(c.high) - np.log(c.low),
    "close_location": lambda c: 2 * (c.close - c.low) / (c.high - c.low) - 1,
    "open_gap": lambda c: np.log(c.open_price / c.close.shift()),
    "volume_change": lambda c: np.log(c.volume / c.volume.rolling(WINDOW).mean()),
    "drawdown_from_high": lambda c: 1 - c.close / c.close.rolling(WINDOW).max(),
    "stochastic_oscillator": lambda c: (
        (c.close - c.low.rolling(WINDOW).min()) / (c.high.rolling(WINDOW).max() - c.low.rolling(WINDOW).min())
    ),
    "exponential_mean": lambda c: recursive(c.close, WINDOW, 2 / (WINDOW + 1)),
    "macd": lambda c: (recursive(c.close, FAST, 2 / (FAST + 1)) - recursive(c.close, SLOW, 2 / (SLOW + 1))) / c.close,
    "rsi": lambda c: (
        1
        - 1
        / (
            1
            + recursive(c.close.diff().clip(lower=0), WINDOW, 1 / WINDOW)
            / recursive(-c.close.diff().clip(upper=0), WINDOW, 1 / WINDOW)
        )
    ),
    "atr": lambda c: recursive(true_range(c), WINDOW, 1 / WINDOW) / c.close,
}


def recursive(series: pd.Series, n_start: int, new_weight: float) -> pd.Series:
    """The textbook loop: the mean of the first values, then each later one with its weight."""
    means = pd.Series(np.nan, index=series.index)
    first = int(series.isna().sum()) + n_start - 1
    means[first] = series[: first + 1].mean()
    for t in range(first + 1, len(series)):
        means[t] = (1 - new_weight) * means[t - 1] + new_weight * series[t]
    return means


def true_range(c: pd.DataFrame) -> pd.Series:
    before = c.close.shift()
    ranges = pd.concat([c.high - c.low, (c.high - before).abs(), (c.low - before).abs()], axis=1)
    return ranges.max(axis=1).where(before.notna())


@every_indicator
def test_indicators_agree_with_their_textbook_formula(name):
    columns = make_columns(n_bars=80, n_assets=1, seed=3)
    table = pd.DataFrame({key: column[:, 0] for key, column in columns.items()})
    # pandas carries running sums along, which costs it some digits.
    np.testing.assert_allclose(evaluate(name, columns)[:, 0], REFERENCE[name](table), rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), n_bars=st.integers(2, 8))
def test_rolling_moments_agree_with_numpy_on_each_window(values, n_bars):
    series = np.array(values, dtype=float)
    mean, deviation = indicators.rolling_mean(series, n_bars), indicators.rolling_std(series, n_bars)
    for t in range(n_bars - 1, len(series)):
        window = series[t - n_bars + 1 : t + 1]
        assert mean[t] == pytest.approx(window.mean(), rel=1e-12, abs=1e-12)
        assert deviation[t] == pytest.approx(window.std(ddof=1), rel=1e-12, abs=1e-12)


# Refused arguments


@pytest.mark.parametrize(
    ("name", "too_short"), [("rolling_mean", 0), ("rolling_std", 1), ("zscore", 1), ("momentum", 0), ("rsi", 0)]
)
def test_a_window_too_short_to_mean_anything_is_refused(name, too_short):
    with pytest.raises(ValueError, match="n_bars must be at least"):
        INDICATORS[name](np.arange(1.0, 10.0), too_short)


def test_columns_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="expected one shape"):
        indicators.high_low_range(np.ones((5, 2)), np.ones(5))


def test_a_fast_mean_that_is_slower_is_refused():
    with pytest.raises(ValueError, match="fast_span must be below slow_span"):
        indicators.macd(np.ones(50), 26, 12)
