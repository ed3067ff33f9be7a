"""The verdict on forecasts: paired with the best naive one, widened for the choice, and plain about what is not known."""

import dataclasses

import numpy as np
import pytest
import torch

from ml.tradingbots.components.naive_predictors import DriftPredictor, RidgePredictor, ZeroPredictor
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive, random_walk
from ml.tradingbots.training.forecast_slices import forecast_slice
from ml.tradingbots.training.forecast_validation import validate
from ml.tradingbots.training.forecast_verdict import best_comparison, compare_with_naive, forecast_verdict

torch.set_num_threads(1)
WITH_SKILL = autoregressive(800, phi=0.4, seed=3).prices
NAIVE = {"zero": lambda: ZeroPredictor(horizons=(1, 3)), "drift": lambda: DriftPredictor(horizons=(1, 3))}


def ridge(window_size=2):
    return RidgePredictor(horizons=(1, 3), window_size=window_size)


def check(factory, prices=WITH_SKILL, naive=NAIVE, n_splits=3, **settings):
    splitter = WalkForwardValidator(n_splits=n_splits, purge_size=3)
    return validate(factory, prices, splitter, naive=naive, **{"n_bootstrap": 60} | settings)


@pytest.fixture(scope="module")
def found():
    return check({"ridge": ridge})


def test_the_difference_is_that_of_the_pooled_scores_and_lies_in_its_interval(found):
    for comparison in compare_with_naive(found):
        r2 = found.pooled["r2"]
        best = max(r2[name, comparison.horizon] for name in found.naive)
        assert comparison.naive_r2 == best
        assert comparison.difference == r2[comparison.model, comparison.horizon] - best
        assert comparison.interval[0] < comparison.difference < comparison.interval[1]


def test_what_origins_add_to_the_difference_sums_to_it(found):
    # Written once more from the squared errors: both R² have the denominator of the better of zero and the training mean.
    ours, zero = (forecast_slice(found, name, 1) for name in ("ridge", "zero"))
    errors = [((part.outcomes - part.predictions) ** 2).sum() for part in (ours, zero)]
    r2 = found.pooled["r2"]
    denominator = errors[0] / (1.0 - r2["ridge", 1])
    assert (errors[1] - errors[0]) / denominator == pytest.approx(r2["ridge", 1] - r2["zero", 1], rel=1e-9)


def test_skill_that_is_there_is_called_so(found):
    verdict = forecast_verdict(found)
    assert verdict.startswith("Out of sample, ridge beats the naive forecasts 1 bar ahead: R² ")
    assert "The difference is distinguishable from zero" in verdict
    assert "95% interval for all 2 comparisons at once" in verdict


def test_noise_wins_no_more_often_than_the_confidence_allows():
    wins = 0
    for seed in range(5):
        prices = random_walk(400, seed=seed).prices
        validation = check({"two": ridge, "eight": lambda: ridge(8)}, prices, n_splits=2, n_bootstrap=20)
        wins += any(comparison.is_win for comparison in compare_with_naive(validation))
    # Each has a chance of 2.5% or less; two of five would come up less than once in a hundred times.
    assert wins <= 1


def test_a_predictor_behind_a_naive_one_does_not_beat_it_however_good_it_is():
    validation = check({"many": lambda: ridge(24)}, naive={"few": ridge})
    best = best_comparison(compare_with_naive(validation))
    assert best.r2 > 0.0 > best.difference
    assert "no predictor beats the naive forecasts: the closest, many" in forecast_verdict(validation)


def test_intervals_are_wider_the_more_there_is_to_choose_from(found):
    several = check({"ridge": ridge, "b": lambda: ridge(3), "c": lambda: ridge(4), "d": lambda: ridge(5)})
    alone, among = (compare_with_naive(validation)[0] for validation in (found, several))
    assert alone.difference == among.difference
    assert among.interval[0] < alone.interval[0] < alone.interval[1] < among.interval[1]


def test_a_lead_over_naive_forecasts_is_no_win_below_zero_and_the_training_mean(found):
    comparison = compare_with_naive(found)[0]
    assert comparison.is_win
    assert not dataclasses.replace(comparison, r2=-0.01, naive_r2=-0.5).is_win


def test_where_nothing_was_estimated_the_verdict_says_so():
    bare = check({"ridge": ridge}, n_bootstrap=0)
    assert all(np.isnan(comparison.interval).all() for comparison in compare_with_naive(bare))
    verdict = forecast_verdict(bare)
    assert "no predictor is shown to beat" in verdict
    assert verdict.endswith("Whether the difference can be told apart from luck was not estimated.")
    assert "nan" not in verdict
    assert "–" not in verdict


def test_without_naive_forecasts_there_is_nothing_to_beat():
    verdict = forecast_verdict(check({"ridge": ridge}, naive={}))
    assert "against the better of zero and the training mean" in verdict
    assert verdict.endswith("No naive forecast stands beside it.")


def test_the_same_validation_has_the_same_verdict(found):
    assert compare_with_naive(found) == compare_with_naive(found)
