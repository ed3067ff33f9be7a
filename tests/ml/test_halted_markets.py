"""Markets that stand still for a whole look-back of volatility: nothing is learned from them, and all is said of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from ml.tradingbots.components import (
    CNNPricePredictor,
    DriftPredictor,
    EnsemblePricePredictor,
    LastSignPredictor,
    LSTMEnsemble,
    LSTMPricePredictor,
    RidgePredictor,
    TransformerPricePredictor,
    ZeroPredictor,
)
from ml.tradingbots.components.naive_predictors import forecast_table
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import audit_look_ahead, validate

torch.set_num_threads(1)
LOOK_BACK = 10
SETTINGS = {"volatility_bars": LOOK_BACK, "horizons": (1, 3)}
TINY = {**SETTINGS, "window_size": 4, "hidden_dim": 4, "max_epochs": 2, "batch_size": 64}
EACH = {
    "lstm": LSTMPricePredictor(**TINY),
    "transformer": TransformerPricePredictor(**TINY),
    "cnn": CNNPricePredictor(n_filters=(4,), **TINY),
    "zero": ZeroPredictor(**SETTINGS),
    "drift": DriftPredictor(**SETTINGS),
    "last_sign": LastSignPredictor(**SETTINGS),
    "ridge": RidgePredictor(window_size=4, **SETTINGS),
    "ensemble": EnsemblePricePredictor([RidgePredictor(**SETTINGS), ZeroPredictor(horizons=(1, 3))], "stacking"),
    "lstm_ensemble": LSTMEnsemble(2, **TINY),
}
each = pytest.mark.parametrize("name", EACH)
HALT = slice(100, 140)


def walking(n_bars=240, seed=1):
    return autoregressive(n_bars, seed=seed).prices["close"]


def halted(halt=HALT, n_bars=240, seed=2):
    """A market that stands still over some bars and goes on from there as if nothing had been."""
    returns = np.diff(np.log(walking(n_bars, seed)), prepend=np.log(100.0))
    returns[halt] = 0.0
    return pd.Series(np.exp(np.cumsum(returns)), walking(n_bars).index)


def panel():
    return pd.DataFrame({"walks": walking(), "halted": halted()})


def table_of(frame):
    return forecast_table(SETTINGS, frame)


# The scale.


def test_a_market_that_stands_still_keeps_the_last_volatility_it_had():
    frame = panel()
    table, log_returns = table_of(frame), np.log(frame).diff()
    by_hand = log_returns.rolling(LOOK_BACK).std()
    still = (log_returns == 0.0).rolling(LOOK_BACK).sum() == LOOK_BACK
    # Rolling sums leave roundings; the halted stretch itself is exact.
    np.testing.assert_allclose(table.scale[..., 0], by_hand.mask(still).ffill(), rtol=1e-6)
    np.testing.assert_array_equal(table.moves, by_hand.notna() & ~still)
    assert still["halted"].sum() == 40 - LOOK_BACK + 1


def test_no_scale_depends_on_what_comes_after():
    frame = panel()
    whole = table_of(frame)
    for stop in (90, 105, 115, 139, 141, 150):
        part = table_of(frame.iloc[:stop])
        np.testing.assert_array_equal(part.scale, whole.scale[:stop])
        np.testing.assert_array_equal(part.moves, whole.moves[:stop])


# Forecasts.


@each
def test_a_halted_asset_takes_no_origin_from_the_others_and_all_is_said_of_it(name):
    frame = panel()
    predictor = clone(EACH[name]).fit(frame)
    found = predictor.predict(frame)
    assert found.index.equals(frame.index[LOOK_BACK:])
    assert np.isfinite(found.to_numpy()).all()
    spread = predictor.predict_quantiles(frame, (0.1, 0.9))
    assert np.isfinite(spread.to_numpy()).all()
    assert np.isfinite(predictor.score(frame))
    assert audit_look_ahead(predictor, frame, n_checks=3).passed


def test_intervals_of_a_halted_asset_stay_as_wide_as_they_were():
    frame = panel()
    ends = ZeroPredictor(**SETTINGS).fit(frame).predict_quantiles(frame, (0.1, 0.9))["halted"][1]
    width = (ends[0.9] - ends[0.1]).to_numpy()
    # Bar 108 is the last with a move in its look-back, bar 140 the next one; rows begin with bar LOOK_BACK.
    assert (width[98:130] == width[98]).all()
    assert width[97] != width[98] != width[130]


@pytest.mark.parametrize("name", ["lstm", "transformer", "cnn", "lstm_ensemble", "zero", "last_sign", "ridge"])
def test_no_target_is_learned_of_an_asset_that_stands_still(name):
    """The first move after a halt is the target of origins in the halt alone, and its size must not matter."""

    def fitted(jump):
        prices = halted(slice(120, 136))
        prices.iloc[136:] *= jump
        return clone(EACH[name]).fit(pd.DataFrame({"only": prices}), bars=np.arange(136))

    test = pd.DataFrame({"only": walking(seed=5)})
    assert fitted(1.01).predict_quantiles(test).equals(fitted(2.0).predict_quantiles(test))


# From the first bar.


@each
def test_a_market_flat_from_its_first_bar_is_forecast_once_it_has_moved(name):
    frame = pd.DataFrame({"late": halted(slice(0, 60))})
    found = clone(EACH[name]).fit(frame).predict(frame)
    assert found.index[0] == frame.index[60]
    assert np.isfinite(found.to_numpy()).all()


def test_a_panel_is_forecast_once_every_asset_has_moved():
    frame = pd.DataFrame({"walks": walking(), "late": halted(slice(0, 60))})
    assert RidgePredictor(**SETTINGS).fit(frame).predict(frame).index[0] == frame.index[60]


def test_an_asset_that_never_moves_is_named():
    frame = pd.DataFrame({"walks": walking(), "dead": 100.0}, index=walking().index)
    for predictor in EACH.values():
        with pytest.raises(ValueError, match=r"'dead' has not moved in any of 240 bars.* leave it out"):
            clone(predictor).fit(frame)
    assert ZeroPredictor().fit(frame).predict(frame).notna().all(axis=None)


@pytest.mark.parametrize("name", ["lstm", "zero", "last_sign", "ridge"])
def test_a_fit_on_nothing_but_a_halt_is_refused(name):
    frame, predictor = pd.DataFrame({"only": halted()}), clone(EACH[name])
    with pytest.raises(ValueError, match="no asset moved in the look-back of any of"):
        predictor.fit(frame, bars=np.arange(112, 136))
    with pytest.raises(RuntimeError, match="has learned nothing yet"):
        predictor.predict(frame)


def test_an_ensembles_embargo_is_as_long_as_its_members_windows_however_late_a_market_begins():
    fitted_on = []

    class Watched(RidgePredictor):
        def fit(self, price_data, y=None, *, bars=None, **options):
            fitted_on.append(np.asarray(bars))
            return super().fit(price_data, y, bars=bars, **options)

    frame = pd.DataFrame({"late": halted(slice(0, 60))})
    EnsemblePricePredictor([Watched(**SETTINGS)], "stacking").fit(frame)
    # 177 origins, the first fold tests 36 of them; a purge of 3 and an embargo of the look-back follow.
    assert len(fitted_on[-1]) == 177
    assert len(fitted_on[0]) == 177 - 36 - 3 - LOOK_BACK


# Validation.


def test_validation_goes_through_a_halt():
    names = ("ridge", "last_sign", "ensemble")
    found = validate(
        {name: lambda name=name: clone(EACH[name]) for name in names},
        panel(),
        WalkForwardValidator(n_splits=3, purge_size=3),
        n_bootstrap=0,
    )
    assert found.folds["n_origins"].sum() == 180
    assert found.pooled["r2"].notna().all()
