"""Feature names become columns, and a wrong name says what was meant."""

import numpy as np
import pytest

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.features import BURN_IN, FEATURES, list_features, market_features
from ml.tradingbots.components.market import Market
from ml.tradingbots.core import indicators
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.sources import load_prices


@pytest.fixture(scope="module")
def bars(make_prices):
    frame = make_prices(320, seed=1, volume=True, extra=True)
    frame["high"] = frame[["open", "close"]].max(axis=1) * 1.01
    frame["low"] = frame[["open", "close"]].min(axis=1) * 0.99
    return Bars.from_frame(frame)


@pytest.fixture(scope="module")
def closes(make_prices):
    return Bars.from_frame(make_prices(120, 2, seed=2, has_open=False))


def compute(bars, *features, extra=None, **settings):
    return market_features(bars, TradingEnvConfig(features=features, **settings), extra or {})


def expected_columns(bars):
    """Return what each name means, written once more as the indicator it stands for."""
    o, h, l, c, v = bars.open, bars.high, bars.low, bars.close, bars.volume  # noqa: E741 - the usual letters
    return {
        "log_return": indicators.log_return(c),
        "momentum": indicators.momentum(c, 10),
        "volatility": indicators.volatility(c, 20),
        "zscore": indicators.zscore(c, 20),
        "rsi": indicators.rsi(c, 14),
        "macd": indicators.macd(c),
        "bollinger_position": indicators.bollinger_position(c, 20),
        "drawdown_from_high": indicators.drawdown_from_high(c, 60),
        "atr": indicators.atr(h, l, c, 14),
        "high_low_range": indicators.high_low_range(h, l),
        "close_location": indicators.close_location(h, l, c),
        "open_gap": indicators.open_gap(o, c),
        "volume_change": indicators.volume_change(v, 20),
    }


@pytest.mark.parametrize("name", FEATURES)
def test_a_name_without_a_look_back_uses_its_default(bars, name):
    _, columns = compute(bars, name, use_extra_columns=False)
    expected = expected_columns(bars)[name].copy()
    if FEATURES[name].recursive:
        expected[: BURN_IN * 14] = np.nan
    np.testing.assert_array_equal(columns[:, :, 0], expected)


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_undefined_only_in_a_run_at_the_start(bars, name):
    _, columns = compute(bars, name, use_extra_columns=False)
    defined = np.isfinite(columns[:, 0, 0])
    assert defined[np.argmax(defined) :].all()


def test_a_look_back_after_a_colon_is_used(bars):
    names, columns = compute(bars, "momentum:3", use_extra_columns=False)
    assert names == ("momentum:3",)
    np.testing.assert_array_equal(columns[:, :, 0], indicators.momentum(bars.close, 3))


def test_features_keep_the_order_they_are_named_in(bars):
    names, columns = compute(bars, "rsi:5", "log_return", use_extra_columns=False)
    assert names == ("rsi:5", "log_return")
    np.testing.assert_array_equal(columns[:, :, 1], indicators.log_return(bars.close))


def test_assets_do_not_mix(closes):
    _, together = compute(closes, "momentum:3", "rsi:5")
    for asset in range(2):
        alone = Bars(closes.timestamps, (closes.assets[asset],), closes.close[:, [asset]])
        np.testing.assert_array_equal(together[:, [asset]], compute(alone, "momentum:3", "rsi:5")[1])


def test_columns_of_the_user_become_features(bars):
    names, columns = compute(bars, "log_return")
    assert names == ("log_return", "signal")
    np.testing.assert_array_equal(columns[:, :, 1], bars.extra["signal"])


def test_columns_of_the_user_can_be_switched_off(bars):
    assert compute(bars, "log_return", use_extra_columns=False)[0] == ("log_return",)


def test_a_column_of_the_user_can_be_picked_by_name(bars):
    names, columns = compute(bars, "signal", use_extra_columns=False)
    assert names == ("signal",)
    np.testing.assert_array_equal(columns[:, :, 0], bars.extra["signal"])


def test_columns_of_the_user_alone_are_enough(bars):
    assert compute(bars)[0] == ("signal",)


def test_no_feature_at_all_is_refused_with_a_remedy(closes):
    with pytest.raises(ValueError, match=r"features is empty.*would see no market"):
        compute(closes)


def test_a_function_of_the_user_becomes_a_feature(closes):
    names, columns = compute(closes, "log_return", extra={"rank": lambda b: b.close.argsort(axis=1)})
    assert names == ("log_return", "rank")
    np.testing.assert_array_equal(columns[:, :, 1], closes.close.argsort(axis=1))


def test_a_function_may_return_one_dimension_for_one_asset(bars):
    _, columns = compute(bars, extra={"bar": lambda b: np.arange(b.n_bars)}, use_extra_columns=True)
    np.testing.assert_array_equal(columns[:, 0, 1], np.arange(bars.n_bars))


def test_a_function_of_another_shape_is_refused_by_name(closes):
    with pytest.raises(ValueError, match=r"extra feature 'late' must return shape \(120, 2\), got \(119, 2\)"):
        compute(closes, "log_return", extra={"late": lambda b: b.close[1:]})


@pytest.mark.parametrize(
    ("written", "meant"), [("log_returns", "log_return"), ("volatilty:5", "volatility"), ("signals", "signal")]
)
def test_a_misspelt_feature_is_answered_with_the_nearest_name(bars, written, meant):
    with pytest.raises(ValueError, match=f"unknown feature '{written}'. Did you mean '{meant}'"):
        compute(bars, written)


def test_a_feature_names_the_column_it_lacks(closes):
    with pytest.raises(ValueError, match="feature 'atr' needs the column 'high'"):
        compute(closes, "atr")


@pytest.mark.parametrize("name", ["momentum:x", "momentum:0", "momentum:-3", "momentum:2.5"])
def test_a_look_back_that_is_no_number_of_bars_is_refused(bars, name):
    with pytest.raises(ValueError, match=r"write momentum:n with n a number of bars"):
        compute(bars, name)


def test_a_look_back_on_a_feature_that_takes_none_is_refused(bars):
    with pytest.raises(ValueError, match="'log_return' takes no look-back"):
        compute(bars, "log_return:5")


def test_the_list_of_features_shows_the_default_look_backs():
    assert {"log_return", "momentum:10", "rsi:14"} <= set(list_features())


def test_every_listed_feature_can_be_asked_for_as_it_is_listed(bars):
    names, _ = compute(bars, *list_features(), use_extra_columns=False)
    assert names == tuple(list_features())


@pytest.mark.parametrize("name", ["rsi", "macd", "atr"])
def test_a_recursive_feature_is_the_same_wherever_its_table_begins(name):
    frame = load_prices("nasdaq").iloc[:800]
    config = TradingEnvConfig(features=(name,), window_size=1)
    whole, later = Market(frame, config), Market(frame.iloc[300:], config)
    seen = later.features[later.first_bar :]
    scale = whole.features[whole.first_bar :].std()
    # 1/20,000 of where the table began is left after the burn-in; a thousandth of a standard deviation is none to see.
    np.testing.assert_allclose(seen, whole.features[300 + later.first_bar :], atol=1e-3 * scale)
