"""The look-ahead audit: planted leaks are found, honest models pass, and splitters keep their folds when data grow."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.features import FEATURES, feature_columns
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import (
    DriftPredictor,
    LastSignPredictor,
    RidgePredictor,
    ZeroPredictor,
)
from ml.tradingbots.components.transformer_predictor import TransformerPricePredictor
from ml.tradingbots.core import indicators
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.sources import load_prices
from ml.tradingbots.data.splitters import CombinatorialPurgedCV, PanelSplit, PurgedKFold, WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive, sine
from ml.tradingbots.training.look_ahead import (
    LookAheadError,
    audit_look_ahead,
    resembling_columns,
    walk_forward_pipeline,
)
from ml.tradingbots.training.target_leaks import leaking_features

torch.set_num_threads(1)
PRICES = autoregressive(160, phi=0.3, seed=7).prices
TINY = {"window_size": 8, "max_epochs": 1}
SIZED = WalkForwardValidator(train_size=60, test_size=25, purge_size=1)
PREDICTORS = {
    "lstm": lambda: LSTMPricePredictor(hidden_dim=4, **TINY),
    "transformer": lambda: TransformerPricePredictor(**TINY),
    "cnn": lambda: CNNPricePredictor(hidden_dim=4, n_filters=(4,), **TINY),
    "ridge": lambda: RidgePredictor(window_size=4),
    "zero": ZeroPredictor,
    "drift": DriftPredictor,
    "last sign": LastSignPredictor,
}


class Scaled:
    """AR(1) of returns standardised by the statistics of a whole table, or of the training bars."""

    def __init__(self, *, leaks, horizon=1):
        self.leaks, self.horizon = leaks, horizon

    def fit(self, price_data, *, bars):
        returns = log_returns(price_data)
        known = returns if self.leaks else returns.iloc[: bars[-1] + 1]
        self.mean, self.deviation = known.mean(), known.std()
        x = self._scaled(price_data)
        y = x.rolling(self.horizon).sum().shift(-self.horizon)
        rows = bars[1:]
        self.slope = float((x.iloc[rows] * y.iloc[rows]).sum() / (x.iloc[rows] ** 2).sum())
        return self

    def predict(self, price_data, *, bars=None):
        forecast = self.slope * self._scaled(price_data)
        return (forecast if bars is None else forecast.iloc[bars]).to_frame("forecast")

    def _scaled(self, price_data):
        return (log_returns(price_data) - self.mean) / self.deviation


def log_returns(prices):
    return np.log(prices["close"]).diff()


def smoothed(prices):
    forward = log_returns(prices).fillna(0.0).ewm(alpha=0.3).mean()
    return forward[::-1].ewm(alpha=0.3).mean()[::-1]


def clustered(n_bars, seed=3):
    rng = np.random.default_rng(seed)
    returns, variance = np.zeros(n_bars), 1e-4
    for bar in range(1, n_bars):
        variance = 2e-6 + 0.1 * returns[bar - 1] ** 2 + 0.88 * variance
        returns[bar] = np.sqrt(variance) * rng.standard_normal()
    dates = pd.date_range("2010-01-01", periods=n_bars, tz="UTC")
    return pd.DataFrame({"close": 100.0 * np.exp(returns.cumsum())}, index=dates)


LEAKS = {
    "centred moving average": lambda prices: prices["close"].rolling(5, center=True).mean(),
    "without its undefined rows": lambda prices: prices["close"].rolling(5, center=True).mean().dropna(),
    "scaler of the whole table": lambda prices: log_returns(prices) / log_returns(prices).std(),
    "maximum of the whole table": lambda prices: prices["close"] / prices["close"].max(),
    "next return": lambda prices: log_returns(prices).shift(-1),
    "target among features": lambda prices: pd.DataFrame(
        {"momentum": log_returns(prices), "label": np.sign(log_returns(prices).shift(-3))}
    ),
    "smoothing": smoothed,
    "filled backwards": lambda prices: log_returns(prices).where(lambda r: r > 0.0).bfill(),
}

# --- Planted leaks


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found(name):
    report = audit_look_ahead(LEAKS[name], PRICES, n_checks=6)
    assert not report.passed
    with pytest.raises(LookAheadError, match="Look-ahead"):
        report.raise_for_leaks()


@pytest.mark.parametrize("change", ["small", "large", "extreme", "cut off"])
def test_each_kind_of_change_finds_a_leak_on_its_own(change):
    report = audit_look_ahead(LEAKS["smoothing"], PRICES, n_checks=6)
    assert change in set(report.findings["change"])


def test_a_finding_says_what_moved_first_and_how_far_it_looked():
    def average(prices):
        return pd.DataFrame({"honest": prices["close"], "leak": prices["close"].rolling(5, center=True).mean()})

    report = audit_look_ahead(average, PRICES, n_checks=8)
    finding = report.findings.iloc[-1]
    assert finding["column"] == "leak"
    assert finding["n_moved"] == finding["bars_ahead"] == 2
    assert finding["first_moved"] == PRICES.index[PRICES.index.get_loc(finding["bar"]) - 1]


def test_a_pipeline_whose_scaler_saw_the_whole_table_is_found():
    audit_look_ahead(walk_forward_pipeline(lambda: Scaled(leaks=False), SIZED), PRICES).raise_for_leaks()
    assert not audit_look_ahead(walk_forward_pipeline(lambda: Scaled(leaks=True), SIZED), PRICES).passed


@pytest.mark.parametrize(("purge_size", "passes"), [(0, False), (3, True)])
def test_labels_that_reach_into_the_test_are_found(purge_size, passes):
    splitter = WalkForwardValidator(train_size=60, test_size=25, purge_size=purge_size)
    pipeline = walk_forward_pipeline(lambda: Scaled(leaks=False, horizon=3), splitter)
    assert audit_look_ahead(pipeline, PRICES, n_checks=3).passed is passes


@pytest.mark.parametrize("field", ["open", "high", "low", "volume", "signal"])
def test_every_column_is_moved_on_its_own(field, make_prices):
    prices = make_prices(80, volume=True, extra=True)
    prices["high"] = prices[["open", "close"]].max(axis=1) * 1.01
    prices["low"] = prices[["open", "close"]].min(axis=1) * 0.99
    # Ratios to the close, so that it is not found by the close alone; the signal has no ratio to it.
    leak = audit_look_ahead(lambda table: (table[field] / table["close"]).shift(-1), prices, n_checks=3)
    honest = audit_look_ahead(lambda table: table[field] / table["close"], prices, n_checks=3)
    assert not leak.passed
    assert honest.passed


# --- Columns that are the target


@pytest.mark.parametrize(
    "column",
    [
        lambda close: np.log(close).diff().shift(-1),
        lambda close: -100.0 * close.pct_change(3).shift(-3) + 2.0,
        lambda close: np.sign(np.log(close).diff().shift(-1)),
        lambda close: close.shift(-1),
    ],
    ids=["return", "scaled simple return", "direction", "next close"],
)
def test_a_column_of_the_table_that_is_the_target_is_flagged(column):
    prices = PRICES.assign(signal=column(PRICES["close"])).iloc[:-5]
    report = audit_look_ahead(lambda table: log_returns(table), prices, n_checks=2)
    assert report.findings[["change", "column"]].to_numpy().tolist() == [["is the target", "signal"]]
    assert "'signal' has a correlation" in repr(report)


@pytest.mark.parametrize("volatility_bars", [0, 15])
def test_the_audit_compares_with_the_horizons_and_the_volatility_of_the_model(volatility_bars):
    log_close = np.log(PRICES["close"])
    scale = log_close.diff().rolling(volatility_bars).std() if volatility_bars else 1.0
    prices = PRICES.assign(x=(log_close.shift(-7) - log_close) / scale).iloc[20:-7]
    model = RidgePredictor(horizons=(7,), features=("log_return", "x"), volatility_bars=volatility_bars).fit(prices)
    findings = audit_look_ahead(model, prices, n_checks=1).findings.set_index("column")
    assert findings.loc["x", ["change", "bars_ahead"]].tolist() == ["is the target", 7]


COPIES = {
    "rank": lambda target: target.rank(),
    "in five steps": lambda target: pd.cut(target.clip(*target.quantile([0.02, 0.98])), 5, labels=False),
    "with noise": lambda target: target + 0.3 * target.std() * np.random.default_rng(0).standard_normal(len(target)),
    "in units of volatility": lambda target: target / target.shift(5).rolling(20).std(),
    "cubed": lambda target: target**3,
    "sign": np.sign,
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("horizon", [1, 5])
def test_a_coarse_or_noisy_copy_of_the_target_is_flagged(name, horizon):
    prices = autoregressive(800, phi=0.3, seed=7).prices
    prices["x"] = COPIES[name](np.log(prices["close"]).diff(horizon).shift(-horizon))
    report = audit_look_ahead(log_returns, prices.iloc[30:-horizon], n_checks=1)
    assert report.findings["column"].tolist() == ["x"]
    assert re.search("resembles the return|has a correlation", repr(report))
    (sentence,) = leaking_features(prices.iloc[30:-horizon], ("log_return", "x"), (horizon,))
    assert "feature 'x'" in sentence
    assert "make it of bars up to its own" in sentence


HONEST = ("log_return", "volatility", "momentum", "zscore", "rsi")


@pytest.mark.parametrize(
    "make_market",
    [
        lambda: autoregressive(2_000, phi=0.9, seed=1).prices,
        lambda: autoregressive(300, phi=0.9, seed=2).prices,
        lambda: sine(2_000, period=40.0, noise=0.005, seed=0).prices,
        lambda: sine(600, period=200.0, seed=0).prices,
        lambda: sine(2_000, period=40.0, noise=0.0, seed=0).prices,
        lambda: clustered(3_000),
        lambda: load_prices("sp500"),
        lambda: load_prices("sp500-stocks").iloc[-2_000:, :4],
    ],
    ids=["AR(1)", "short AR(1)", "sine", "slow sine", "noiseless sine", "GARCH", "sp500", "sp500-stocks"],
)
def test_honest_features_are_accused_in_no_market(make_market):
    assert leaking_features(make_market(), HONEST, (1, 5, 20), volatility_bars=20) == []


def test_a_ridge_that_foretells_a_sine_is_not_accused():
    prices = sine(600, period=40.0, noise=0.0, seed=0).prices
    model = RidgePredictor(horizons=(1, 5), window_size=4).fit(prices)
    audit_look_ahead(model, prices, n_checks=2).raise_for_leaks()
    audit_look_ahead(lambda table: model.predict(table), prices, n_checks=2).raise_for_leaks()


def test_the_leak_of_one_asset_is_told_with_its_name(make_prices):
    prices = make_prices(300, 2, extra=True)
    prices[("signal", "BBB")] = np.log(prices[("close", "BBB")]).diff(2).shift(-2)
    (sentence,) = leaking_features(prices.iloc[:-2], ("log_return", "signal"), (2,))
    assert sentence.startswith("feature 'signal' of 'BBB' is the return of the next 2 bars, correlation 1.000")


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"horizons": ()}, "horizons must"), ({"horizons": (0,)}, "at least 1"), ({"volatility_bars": 1}, "at least 2")],
)
def test_targets_that_nobody_forecasts_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        leaking_features(PRICES, ("log_return",), **{"horizons": (1,), **settings})


def test_the_target_of_one_asset_is_found_among_several(make_prices):
    prices = make_prices(120, 2, extra=True)
    prices[("signal", "BBB")] = np.log(prices[("close", "BBB")]).diff(2).shift(-2)
    found = resembling_columns(prices.iloc[:-2])
    assert found[["column", "bars_ahead"]].to_numpy().tolist() == [[("signal", "BBB"), 2]]


def test_honest_columns_and_foreseeable_markets_are_left_alone(make_prices):
    assert resembling_columns(make_prices(200, 2, extra=True)).empty
    wave = sine(400, period=200.0, seed=0).prices
    assert resembling_columns(wave.assign(signal=log_returns(wave))).empty


# --- Honest models


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_fitted_predictor_passes(name):
    predictor = PREDICTORS[name]().fit(PRICES)
    audit_look_ahead(predictor, PRICES, n_checks=9).raise_for_leaks()


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_that_is_fitted_fold_by_fold_passes(name):
    pipeline = walk_forward_pipeline(PREDICTORS[name], SIZED)
    report = audit_look_ahead(pipeline, PRICES, n_checks=2)
    report.raise_for_leaks()
    assert "No look-ahead found" in repr(report)


def test_every_built_in_feature_passes(make_prices):
    prices = make_prices(320, 2, volume=True)
    for asset in ("AAA", "BBB"):
        prices[("high", asset)] = prices[[("open", asset), ("close", asset)]].max(axis=1) * 1.01
        prices[("low", asset)] = prices[[("open", asset), ("close", asset)]].min(axis=1) * 0.99

    def features(table):
        bars = Bars.from_frame(table)
        return feature_columns(bars, tuple(FEATURES)).reshape(bars.n_bars, -1)

    # To the last bit where the table is cut off, too.
    audit_look_ahead(features, prices, n_checks=9, truncation_tolerance=0.0).raise_for_leaks()


def test_quantiles_may_be_audited_as_well():
    predictor = PREDICTORS["cnn"]().fit(PRICES)
    audit_look_ahead(predictor.predict_quantiles, PRICES, n_checks=3).raise_for_leaks()


@pytest.mark.parametrize("form", ["naive index", "bars", "rows by number", "closes of a panel", "two levels", "vendor"])
def test_tables_of_every_form_are_audited_in_that_form(form, make_prices):
    prices = {
        "naive index": PRICES.tz_localize(None),
        "bars": Bars.from_frame(PRICES),
        "rows by number": PRICES.reset_index(drop=True),
        "closes of a panel": make_prices(80, 2)["close"],
        "two levels": make_prices(80, 2, volume=True).swaplevel(axis=1),
        "vendor": make_prices(80, volume=True).rename(columns=str.upper).assign(**{"Adj Close": 1.0}),
    }[form]
    seen = []

    def feature(table):
        seen.append(table)
        return indicators.log_return(Bars.from_frame(table).close)

    def leak(table):
        return np.roll(feature(table), -1, axis=0)

    assert audit_look_ahead(feature, prices, n_checks=4).passed
    assert not audit_look_ahead(leak, prices, n_checks=4).passed
    assert {type(table) for table in seen} == {type(prices)}
    if form != "bars":
        assert all(table.columns.equals(prices.columns) for table in seen)


def test_the_table_given_is_not_changed():
    prices = PRICES.copy()
    audit_look_ahead(log_returns, prices, n_checks=3)
    pd.testing.assert_frame_equal(prices, PRICES, check_exact=True)


def test_every_bar_is_changed_and_cut_off_once():
    report = audit_look_ahead(log_returns, PRICES, n_checks=20)
    counts = report.checks["change"].value_counts()
    assert counts.to_dict() == {"cut off": 20, "small": 7, "large": 7, "extreme": 6, "nothing": 1}
    assert report.checks["bar"].iloc[1] == PRICES.index[1]  # The first output.


def test_an_answer_that_is_random_is_named_as_such():
    rng = np.random.default_rng(0)
    report = audit_look_ahead(lambda prices: rng.standard_normal(len(prices)), PRICES)
    assert report.findings["change"].tolist() == ["nothing"]
    assert "fix every seed" in repr(report)


# --- Splitters


@pytest.mark.parametrize("mode", ["expanding", "rolling"])
@pytest.mark.parametrize("sizes", [(40, 15), ("60D", "1MS")], ids=["bars", "calendar"])
def test_sized_folds_stay_what_they_were_when_data_grow(mode, sizes):
    splitter = WalkForwardValidator(train_size=sizes[0], test_size=sizes[1], mode=mode, purge_size=2)
    whole = [(train.tolist(), test.tolist()) for train, test in splitter.split(PRICES)]
    for n_bars in range(120, len(PRICES)):
        folds = [(train.tolist(), test.tolist()) for train, test in splitter.split(PRICES.iloc[:n_bars])]
        assert folds == whole[: len(folds)]


@pytest.mark.parametrize(
    "splitter",
    [
        WalkForwardValidator(n_splits=4, purge_size=1),
        PurgedKFold(n_splits=4, purge_size=1, embargo_size=2),
        CombinatorialPurgedCV(n_folds=5, n_test_folds=2, purge_size=1),
        PanelSplit(WalkForwardValidator(n_splits=4)),
    ],
    ids=repr,
)
def test_no_splitter_looks_at_prices(splitter):
    moved = PRICES * np.random.default_rng(0).uniform(0.5, 2.0, PRICES.shape)
    for (train, test), (train_moved, test_moved) in itertools.zip_longest(
        splitter.split(PRICES), splitter.split(moved)
    ):
        assert np.array_equal(train, train_moved)
        assert np.array_equal(test, test_moved)


def test_a_walk_forward_trains_on_nothing_after_its_test():
    for train, test in SIZED.split(PRICES):
        assert train[-1] < test[0]


# --- Refusals


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (3.0, TypeError, "predict"),
        (lambda prices: np.ones(3), ValueError, "one per bar"),
        (lambda prices: log_returns(prices).iloc[[1, 1, 2]], ValueError, "more than once"),
        (lambda prices: log_returns(prices).shift(freq="365D"), ValueError, "no bar of the table"),
        (lambda prices: log_returns(prices).iloc[-1:], ValueError, "nothing to audit"),
        (lambda prices: pd.DataFrame({str(prices["close"].iloc[-1]): prices["close"]}), ValueError, "columns changed"),
    ],
)
def test_what_cannot_be_audited_is_refused(model, error, match):
    with pytest.raises(error, match=match):
        audit_look_ahead(model, PRICES, n_checks=2)


def test_at_least_one_check_is_made():
    with pytest.raises(ValueError, match="n_checks"):
        audit_look_ahead(log_returns, PRICES, n_checks=0)
