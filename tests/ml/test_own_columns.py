"""A feature means on predict what it meant in training: a table's own column is never swapped for a built-in feature."""

import numpy as np
import pytest
import torch

from ml.tradingbots.components import (
    CNNPricePredictor,
    EnsemblePricePredictor,
    LSTMEnsemble,
    LSTMPricePredictor,
    RidgePredictor,
    create_predictor,
    load_predictor,
)
from ml.tradingbots.components.forecast_feature import with_forecasts
from ml.tradingbots.components.naive_predictors import LastSignPredictor, ZeroPredictor
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.synthetic import autoregressive

torch.set_num_threads(1)
PRICES = autoregressive(150, seed=1).prices
NOISE = np.random.default_rng(0).normal(size=len(PRICES))
TINY = {"window_size": 3, "hidden_dim": 4, "max_epochs": 1, "batch_size": 64}


def small(name, feature):
    """A small predictor of one kind that is shown one feature."""
    made = {
        "ridge": lambda: RidgePredictor(features=(feature,)),
        "lstm": lambda: LSTMPricePredictor(features=(feature,), **TINY),
        "lstm_ensemble": lambda: LSTMEnsemble(2, features=(feature,), **TINY),
        "ensemble": lambda: EnsemblePricePredictor(
            [EnsemblePricePredictor([small("ridge", feature)]), ZeroPredictor()]
        ),
    }
    return made[name]()


each = pytest.mark.parametrize("name", ["ridge", "lstm", "lstm_ensemble", "ensemble"])
QUESTIONS = ("predict", "predict_quantiles", "predict_price", "score")


@each
def test_a_predictor_of_an_own_column_is_never_shown_the_built_in_feature(name):
    fitted = small(name, "volatility").fit(PRICES.assign(volatility=NOISE))
    for question in QUESTIONS:
        with pytest.raises(
            ValueError, match=r"own column 'volatility', which price_data does not have.*built-in.*bring"
        ):
            getattr(fitted, question)(PRICES)
        getattr(fitted, question)(PRICES.assign(volatility=NOISE))


@each
def test_a_predictor_of_a_built_in_feature_is_never_shown_an_own_column(name):
    fitted = small(name, "log_return").fit(PRICES)
    for question in QUESTIONS:
        with pytest.raises(ValueError, match=r"built-in feature 'log_return'.*own column 'log_return'.*rename"):
            getattr(fitted, question)(PRICES.assign(log_return=NOISE))
        getattr(fitted, question)(PRICES.assign(other=NOISE))


def test_the_last_sign_is_that_of_the_return_and_of_no_own_column():
    with pytest.raises(ValueError, match="own column 'log_return'"):
        LastSignPredictor().fit(PRICES).predict(PRICES.assign(log_return=NOISE))


def test_who_does_not_look_at_a_feature_does_not_mind_its_name():
    chart = CNNPricePredictor(input="image", window_size=5, image_height=16, n_filters=(2,), max_epochs=1, volume=False)
    table = PRICES.assign(open=PRICES["close"], high=PRICES["close"], low=PRICES["close"])
    for predictor in (chart, ZeroPredictor()):
        predictor.fit(table).predict(table.assign(log_return=0.0))


@each
def test_a_file_remembers_which_features_were_own_columns(name, tmp_path):
    path = small(name, "volatility").fit(PRICES.assign(volatility=NOISE)).save(tmp_path / "predictor.pt")
    with pytest.raises(ValueError, match="own column 'volatility'"):
        load_predictor(path).predict(PRICES)


@pytest.mark.parametrize("name", ["ridge", "lstm"])
@pytest.mark.parametrize("found", [("volatility",), ("log_return", "log_return"), (1,), ["log_return"]])
def test_a_file_whose_own_columns_are_no_features_is_refused(name, found):
    fitted = small(name, "log_return").fit(PRICES)
    with pytest.raises(CheckpointError, match="own_columns"):
        create_predictor(name).load_content({**fitted._content(), "own_columns": found}, "file")


@pytest.mark.parametrize("name", ["log_return", "volatility", "momentum:5"])
def test_a_forecast_column_cannot_have_the_name_of_a_built_in_feature(name):
    with pytest.raises(ValueError, match=f"features: a column cannot be called '{name}'.*built-in"):
        with_forecasts(PRICES, {name: lambda bars: bars.close})
