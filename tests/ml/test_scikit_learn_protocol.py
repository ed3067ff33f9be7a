"""scikit-learn's own tools take our predictors for regressors: scores, searches and pipelines."""

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from ml.tradingbots.components import EnsemblePricePredictor, LSTMPricePredictor, RidgePredictor, ZeroPredictor
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive

torch.set_num_threads(1)
PRICES = autoregressive(240, phi=0.5, seed=1).prices
SPLITTER = WalkForwardValidator(train_size=120, test_size=60, purge_size=1)
EACH = {
    "ridge": RidgePredictor(window_size=2),
    "lstm": LSTMPricePredictor(window_size=4, hidden_dim=4, max_epochs=1, batch_size=64),
    "ensemble": EnsemblePricePredictor([RidgePredictor(window_size=2), ZeroPredictor()]),
}
each = pytest.mark.parametrize("name", EACH)


@each
def test_every_predictor_is_a_regressor_that_needs_no_targets(name):
    assert is_regressor(EACH[name])
    assert not is_classifier(EACH[name])
    assert not get_tags(EACH[name]).target_tags.required


@each
def test_cross_val_score_gives_the_scores_of_fits_by_hand(name):
    found = cross_val_score(EACH[name], PRICES, cv=SPLITTER, error_score="raise")
    by_hand = [
        clone(EACH[name]).fit(PRICES.iloc[train]).score(PRICES.iloc[test]) for train, test in SPLITTER.split(PRICES)
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameter", "values"),
    [("ridge", "window_size", [1, 3]), ("lstm", "hidden_dim", [2, 4]), ("ensemble", "ridge__window_size", [1, 3])],
)
def test_a_grid_search_tries_every_hyperparameter_and_refits_the_best(name, parameter, values):
    search = GridSearchCV(EACH[name], {parameter: values}, cv=SPLITTER, error_score="raise").fit(PRICES)
    assert [tried[parameter] for tried in search.cv_results_["params"]] == values
    assert search.best_estimator_.get_params()[parameter] == search.best_params_[parameter]
    assert np.isfinite(search.predict(PRICES).to_numpy()).all()


def test_a_grid_search_leaves_the_members_of_the_given_ensemble_as_they_are():
    GridSearchCV(EACH["ensemble"], {"ridge__window_size": [1, 5]}, cv=SPLITTER).fit(PRICES)
    assert EACH["ensemble"].members[0].config.window_size == 2


@each
def test_a_predictor_ends_a_pipeline(name):
    pipeline = make_pipeline(FunctionTransformer(), clone(EACH[name])).fit(PRICES)
    alone = clone(EACH[name]).fit(PRICES)
    assert pipeline.predict(PRICES).equals(alone.predict(PRICES))
    assert pipeline.score(PRICES) == alone.score(PRICES)
    assert is_regressor(pipeline)
