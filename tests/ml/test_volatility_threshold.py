"""`VolatilityThreshold` and `OracleRegime`: what they say can be counted by hand."""

import numpy as np
import pytest

from ml.tradingbots.components.hiddenmarkov import OracleRegime, VolatilityThreshold
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes


def test_volatility_is_a_mean_of_squares_that_halves_every_half_life():
    x = np.random.default_rng(1).standard_normal(100)
    model = VolatilityThreshold(half_life_bars=1.0).fit(x)
    variance, said = np.mean(x**2), []
    for value in x:
        variance = 0.5 * variance + 0.5 * value**2
        said.append(int(np.sqrt(variance) > model.thresholds_[0]))
    np.testing.assert_array_equal(model.filter(x).argmax(axis=1), said)


def test_regimes_hold_as_many_training_bars_each():
    x = sample_regimes(REGIME_CASES["bull_bear"], 1, 3_000, seed=2).log_returns[0]
    model = VolatilityThreshold(n_regimes=3).fit(x)
    assert model.filter(x).sum(axis=0) == pytest.approx([1_000.0] * 3, abs=1.0)
    assert model.state_names_ == ("low_volatility", "medium_volatility", "high_volatility")
    assert (np.diff(model.thresholds_) > 0.0).all()


def test_it_beats_chance_where_volatility_changes():
    sample = sample_regimes(REGIME_CASES["bull_bear"], 1, 5_000, seed=3)
    said = VolatilityThreshold().fit(sample.log_returns[0]).filter(sample.log_returns[0]).argmax(axis=1)
    wild = sample.regimes[0] == 1
    assert said[wild].mean() > 0.9
    assert said[~wild].mean() < 0.45


def test_the_oracle_says_what_it_is_told_and_how_often_it_changes():
    told = np.array([0, 0, 1, 1, 1, 0])
    model = OracleRegime().fit(told)
    np.testing.assert_array_equal(model.filter(told), np.eye(2)[told])
    # One stay and one change from the first, two stays and one change from the second, half a change added to each.
    np.testing.assert_allclose(model.transition_matrix_, [[0.5, 0.5], [1.5 / 4.0, 2.5 / 4.0]])
    np.testing.assert_allclose(model.predict_next(told), model.transition_matrix_[told])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: VolatilityThreshold(return_feature=1).fit(np.arange(9.0)),
            "return_feature is 1, and X has 1 features",
        ),
        (lambda: VolatilityThreshold(n_regimes=3).fit(np.zeros(50)), "too few distinct volatilities for n_regimes=3"),
        (lambda: OracleRegime(column=1).fit(np.arange(2.0)), "column is 1, and X has 1 features"),
        (lambda: OracleRegime().fit(np.array([0.0, 1.0, 2.0])), "from 0 to 1, and row 2 is 2.0"),
        (lambda: OracleRegime().fit(np.array([0.0, 0.5])), "row 1 is 0.5"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
