"""Naive predictors say what a pencil says, read the past only, and keep their bits."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge

from ml.tradingbots.components.forecast_table import forward_returns
from ml.tradingbots.components.naive_predictors import (
    DriftPredictor,
    LastSignPredictor,
    NaiveConfig,
    RidgePredictor,
    ZeroPredictor,
)
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive, random_walk
from ml.tradingbots.data.synthetic_patterns import garch

ROOT = Path(__file__).parents[2]
EACH = {
    "zero": ZeroPredictor(horizons=(1, 3)),
    "drift": DriftPredictor(horizons=(1, 3)),
    "last_sign": LastSignPredictor(horizons=(1, 3), volatility_bars=20),
    "ridge": RidgePredictor(horizons=(1, 3), window_size=6, features=("log_return", "momentum:5"), volatility_bars=20),
}
each = pytest.mark.parametrize("name", EACH)


def prices(n_bars=400, seed=1, n_assets=2):
    return pd.concat({f"A{i}": autoregressive(n_bars, seed=seed + i).prices for i in range(n_assets)}, axis=1)


def log_returns(frame):
    return np.diff(np.log(Bars.from_frame(frame).close), axis=0)


# What they say.


def test_zero_expects_nothing_and_has_no_skill():
    predictor = ZeroPredictor().fit(random_walk(500, drift=0.002, seed=1).prices)
    frame = random_walk(500, drift=0.002, seed=2).prices
    assert (predictor.predict(frame) == 0.0).all(axis=None)
    assert predictor.score(frame) <= 0.0


def test_drift_is_the_mean_training_return_of_each_asset_and_horizon():
    frame = prices()
    bars = np.arange(10, 210)
    predictor = DriftPredictor(horizons=(1, 3)).fit(frame, bars=bars)
    by_hand = forward_returns(Bars.from_frame(frame), (1, 3))[10:210].mean(0)
    np.testing.assert_array_equal(predictor.predict(frame).to_numpy()[7], by_hand.ravel())
    swapped = predictor.predict(frame[["A1"]])
    np.testing.assert_array_equal(swapped.to_numpy()[0], by_hand[1])
    with pytest.raises(ValueError, match="there is a drift for each of A0, A1, none for B"):
        predictor.predict(frame.rename(columns={"A1": "B"}))


def test_last_sign_goes_on_in_the_last_direction_by_the_mean_size_of_a_move():
    frame = prices(n_assets=1)
    predictor = LastSignPredictor().fit(frame)
    returns = log_returns(frame)
    size = np.abs(returns[1:]).mean()
    np.testing.assert_allclose(predictor.predict(frame).to_numpy(), np.sign(returns) * size, rtol=1e-12)


def test_last_sign_has_the_directional_accuracy_that_theory_gives():
    frame = autoregressive(20_000, phi=0.3, seed=4).prices
    found = LastSignPredictor().fit(frame).predict(frame).to_numpy()[:-1, 0]
    hits = np.sign(found) == np.sign(log_returns(frame)[1:, 0])
    # Three standard errors of a share of 20,000.
    assert hits.mean() == pytest.approx(0.5 + math.asin(0.3) / math.pi, abs=3 * 0.5 / math.sqrt(20_000))


def test_a_ridge_on_one_return_without_penalty_is_the_regression_line():
    frame = prices(n_assets=1)
    predictor = RidgePredictor(alpha=0.0).fit(frame)
    x = log_returns(frame)[:, 0]
    slope, constant = np.polyfit(x[:-1], x[1:], 1)
    np.testing.assert_allclose(predictor.predict(frame).to_numpy()[:, 0], constant + slope * x, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 3.0, 300.0])
def test_a_ridge_agrees_with_scikit_learn_on_the_same_windows(alpha):
    frame, window_size = prices(n_assets=1), 5
    predictor = RidgePredictor(window_size=window_size, alpha=alpha).fit(frame)
    x = log_returns(frame)[:, 0]
    mean, std = x[:-1].mean(), x[:-1].std()  # The last return is in no training window.
    windows = np.lib.stride_tricks.sliding_window_view((x - mean) / std, window_size)
    oracle = Ridge(alpha).fit(windows[:-1], x[window_size:])
    np.testing.assert_allclose(predictor.predict(frame).to_numpy()[:, 0], oracle.predict(windows), atol=1e-13)


def test_the_penalty_found_is_the_best_of_those_tried_by_generalised_cross_validation():
    frame = prices(150, n_assets=1)
    predictor = RidgePredictor(window_size=20).fit(frame)
    x = log_returns(frame)[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view((x - x[:-1].mean()) / x[:-1].std(), 20)[:-1]
    centred, y = windows - windows.mean(0), x[20:] - x[20:].mean()
    n_rows, errors = len(y), {}
    for alpha in n_rows * np.logspace(-4.0, 4.0, 33):
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(20), centred.T)
        errors[alpha] = np.sum((y - hat @ y) ** 2) / (n_rows - np.trace(hat) - 1.0) ** 2
    assert predictor.alpha_[0] == pytest.approx(min(errors, key=errors.get))


def test_a_ridge_reaches_the_optimum_of_an_autoregression():
    predictor = RidgePredictor(window_size=8).fit(autoregressive(6_000, phi=0.3, seed=1).prices)
    # R² of the optimum is φ² = 0.09, known from 20,000 bars to 0.004; 8 slopes from 6,000 bars cost 8/6,000 of it.
    assert predictor.score(autoregressive(20_000, phi=0.3, seed=2).prices) == pytest.approx(0.09, abs=0.012)


def test_a_ridge_finds_nothing_in_noise():
    predictor = RidgePredictor(window_size=32).fit(random_walk(6_000, seed=1).prices)
    assert -0.005 < predictor.score(random_walk(20_000, seed=2).prices) < 0.001


def test_columns_that_repeat_each_other_share_the_slope():
    frame = prices(n_assets=1)["A0"].copy()
    frame["once"] = frame["twice"] = np.random.default_rng(0).standard_normal(len(frame))
    predictor = RidgePredictor(features=("once", "twice"), alpha=0.0).fit(frame)
    slopes = predictor.coefficients_[0, :, 0]
    assert slopes[0] == pytest.approx(slopes[1])
    assert np.isfinite(predictor.predict(frame)).all(axis=None)


# The distribution.


def share_held(predictor, frame):
    low, high = predictor.predict_quantiles(frame, (0.05, 0.95)).to_numpy()[:-1].T
    followed = log_returns(frame)[-len(low) :, 0]
    return np.mean((low < followed) & (followed < high))


def test_intervals_hold_as_many_new_returns_as_they_say():
    predictor = ZeroPredictor().fit(autoregressive(2_000, seed=1).prices)
    # The ends are quantiles of 2,000 errors, each known to sqrt(0.05 · 0.95 / 2,000) = 0.5%.
    assert share_held(predictor, autoregressive(10_000, seed=2).prices) == pytest.approx(0.9, abs=0.02)


def test_intervals_of_a_ridge_know_that_it_was_fitted_to_the_errors_they_are_made_of():
    predictor = RidgePredictor(window_size=120, alpha=0.0).fit(autoregressive(720, seed=1).prices)
    # 121 parameters on 600 rows: errors are 20% smaller than new ones will be at both ends, and would hold 81%. The ends
    # are known to sqrt(0.05 · 0.95 / 600) = 0.9% each.
    assert share_held(predictor, autoregressive(10_000, seed=2).prices) == pytest.approx(0.9, abs=0.035)


def test_intervals_widen_with_the_market_where_errors_are_divided_by_volatility():
    frame = garch(6_000, seed=1).prices
    returns = log_returns(frame)[:, 0]
    recent = pd.Series(returns).rolling(20).std().to_numpy()
    wild = recent[19:-1] > np.quantile(recent[19:-1], 0.8)
    missed = {}
    for look_back in (0, 20):
        predictor = ZeroPredictor(volatility_bars=look_back).fit(frame)
        low, high = predictor.predict_quantiles(frame, (0.05, 0.95), bars=np.arange(20, 5_999)).to_numpy().T
        missed[look_back] = 1.0 - np.mean(((low < returns[20:]) & (returns[20:] < high))[wild])
    # A tenth is promised; after wild bars volatility tends to fall below what it was, so a little less is missed.
    assert 0.03 < missed[20] < 0.13 < missed[0]


# The protocol.


@each
def test_it_answers_in_the_shapes_of_all_predictors(name):
    frame = prices()
    predictor = clone(EACH[name]).fit(frame)
    mean, spread = predictor.predict(frame), predictor.predict_quantiles(frame, (0.1, 0.9))
    assert mean.columns.tolist() == [("A0", 1), ("A0", 3), ("A1", 1), ("A1", 3)]
    assert mean.columns.names == ["asset", "horizon"]
    assert spread.columns.names == ["asset", "horizon", "quantile"]
    assert mean.index[-1] == frame.index[-1]
    values = spread.to_numpy().reshape(len(spread), 4, 2)
    assert ((values[..., 0] < mean) & (mean < values[..., 1])).mean(axis=None) > 0.9
    ratio = predictor.predict_price(frame)["A1"].to_numpy() / frame["A1"]["close"].to_numpy()[-len(mean) :, None]
    np.testing.assert_allclose(np.log(ratio), mean["A1"].to_numpy(), atol=1e-14)
    assert isinstance(predictor.score(frame), float)


@each
def test_it_follows_the_protocol_of_scikit_learn(name):
    predictor = clone(EACH[name])
    assert predictor.get_params() == EACH[name].get_params()
    with pytest.raises(RuntimeError, match="has learned nothing yet: call fit"):
        predictor.predict(prices())
    assert predictor.fit(prices()).set_params(horizons=[2]) is predictor
    assert predictor.get_params()["horizons"] == (2,)
    assert "horizons=(2,)" in repr(predictor)
    with pytest.raises(RuntimeError, match="has learned nothing yet"):
        predictor.predict(prices())
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'alhpa' of \w+; known are horizons, volatility_bars"):
        predictor.set_params(alhpa=3)


@each
def test_forecasts_read_nothing_after_their_origin_and_nothing_of_other_origins(name):
    frame = prices()
    predictor = clone(EACH[name]).fit(frame)
    whole = predictor.predict_quantiles(frame)
    for stop in (60, 201, 399):
        part = predictor.predict_quantiles(frame.iloc[:stop])
        assert part.equals(whole.iloc[: len(part)])
    assert predictor.predict_quantiles(frame, bars=[77, 300]).equals(whole.loc[frame.index[[77, 300]]])


@each
def test_fitting_reads_nothing_but_its_origins_their_windows_and_their_targets(name):
    frame = prices(600)
    other = frame.copy()
    other.iloc[:150] *= np.linspace(3.0, 1.0, 150)[:, None]  # Windows, warm-ups and volatilities reach 20 bars back.
    other.iloc[404:] *= np.linspace(1.1, 7.0, 196)[:, None]  # Origins up to 400 have targets up to 403.
    one, two = (clone(EACH[name]).fit(data, bars=np.arange(180, 401)) for data in (frame, other))
    test = prices(300, seed=9)
    assert one.predict_quantiles(test).equals(two.predict_quantiles(test))
    assert one.score(test) == two.score(test)


def test_a_fit_reports_once():
    reports = []
    RidgePredictor().fit(prices(), report=reports.append)
    assert [(report.epoch, report.best_epoch) for report in reports] == [(1, 1)]
    assert 0.0 < reports[0].train_loss < 1e-3
    assert math.isnan(reports[0].val_loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        ({"features": ()}, "features must name each feature once"),
        ({"alpha": -1.0}, "alpha must be finite and at least 0, got -1.0"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"horizons": (3, 1)}, "horizons must be increasing"),
        ({"volatility_bars": 1}, "volatility_bars must be 0 or at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RidgePredictor(**settings)


def test_the_config_of_another_predictor_is_refused():
    with pytest.raises(TypeError, match="config must be a RidgeConfig, got NaiveConfig"):
        RidgePredictor(NaiveConfig())


# Files.


def test_saved_predictors_say_the_same_bits_in_another_process(tmp_path):
    frame = prices()
    frame.to_pickle(tmp_path / "prices.pkl")
    for name, predictor in EACH.items():
        fitted = clone(predictor).fit(frame)
        fitted.save(tmp_path / f"{name}.pt")
        fitted.predict_quantiles(frame).to_pickle(tmp_path / f"{name}.pkl")
    script = f"""
import pandas as pd
from ml.tradingbots.components import naive_predictors as naive
frame = pd.read_pickle(r"{tmp_path}/prices.pkl")
for made in (naive.ZeroPredictor, naive.DriftPredictor, naive.LastSignPredictor, naive.RidgePredictor):
    found = made().load(rf"{tmp_path}/{{made.predictor_type}}.pt").predict_quantiles(frame)
    assert found.equals(pd.read_pickle(rf"{tmp_path}/{{made.predictor_type}}.pkl")), made
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_files_of_other_predictors_and_damaged_ones_are_refused(tmp_path):
    path = RidgePredictor().fit(prices()).save(tmp_path / "ridge.pt")
    with pytest.raises(CheckpointError, match="holds a 'ridge' predictor, this is 'zero'"):
        ZeroPredictor().load(path)
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        RidgePredictor().load(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        RidgePredictor().load(tmp_path / "none.pt")
    other = RidgePredictor(window_size=3).fit(prices())
    other.config = RidgePredictor(window_size=2).config
    with pytest.raises(CheckpointError, match=r"does not fit a 'ridge' predictor: arrays\.coefficients_"):
        RidgePredictor().load(other.save(tmp_path / "other.pt"))
