"""What every regime detector keeps: it never looks ahead, streams what it filters, survives files, and refuses hindsight."""

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn.base
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.tradingbots.components.hiddenmarkov import (
    DETECTORS,
    CheckpointError,
    GaussianHMM,
    JumpModel,
    OnlineHMM,
    OracleRegime,
    RegimeDetector,
    SmoothedProbabilities,
    VolatilityThreshold,
    load_detector,
    refuse_smoothed,
    regime_features,
)
from ml.tradingbots.data.synthetic import regime_switching
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes
from ml.tradingbots.training.look_ahead import audit_look_ahead

N_BARS = 600
SAMPLE = sample_regimes(REGIME_CASES["bull_bear"], 1, N_BARS, seed=1)
RETURNS, REGIMES = SAMPLE.log_returns[0], SAMPLE.regimes[0]
SIZES = np.log(np.abs(RETURNS) + 1e-4)
TWO = np.column_stack([RETURNS, SIZES])
TOLD = np.column_stack([RETURNS, REGIMES])

FORMS = {
    "gaussian": (lambda: GaussianHMM(n_starts=2), TWO),
    "student": (lambda: GaussianHMM(n_starts=2, emission="student_t", covariance="diag"), TWO),
    "three": (lambda: GaussianHMM(n_regimes=3, n_starts=2, max_iterations=200, tolerance=0.01), TWO),
    "online": (lambda: OnlineHMM(burn_in_bars=200), TWO),
    "jump": (lambda: JumpModel(n_starts=2), TWO),
    "threshold": (lambda: VolatilityThreshold(n_regimes=3), TWO),
    "oracle": (lambda: OracleRegime(column=1), TOLD),
}
FITTED = {name: make().fit(X) for name, (make, X) in FORMS.items()}

every_form = pytest.mark.parametrize("name", FORMS)
# The oracle reads no sizes, only the number of a regime.
every_form_that_measures = pytest.mark.parametrize("name", [name for name in FORMS if name != "oracle"])


def test_every_detector_is_here():
    assert {type(detector) for detector in FITTED.values()} == set(DETECTORS.values())


@every_form
def test_a_detector_keeps_the_protocol(name):
    detector, X = FITTED[name], FORMS[name][1]
    assert isinstance(detector, RegimeDetector)
    probability = detector.filter(X)
    assert probability.shape == (N_BARS, detector.n_regimes)
    assert len(set(detector.state_names_)) == detector.n_regimes
    # Probabilities of a bar add up to 1 but for roundings.
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(detector.predict_next(X).sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(detector.transition_matrix_.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(detector.expected_durations_, 1.0 / (1.0 - np.diag(detector.transition_matrix_)))


@every_form
def test_what_is_said_of_a_bar_does_not_depend_on_later_ones(name):
    detector, X = FITTED[name], FORMS[name][1]
    whole, following = detector.filter(X), detector.predict_next(X)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(1, N_BARS))
    def prefix(n_bars):
        np.testing.assert_array_equal(detector.filter(X[:n_bars]), whole[:n_bars])
        np.testing.assert_array_equal(detector.predict_next(X[:n_bars]), following[:n_bars])

    prefix()


@every_form
def test_streaming_says_what_filtering_says_to_the_bit(name):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    streamed, following = [], []
    for row in X:
        streamed.append(detector.update(row))
        following.append(detector.predict_next())
    np.testing.assert_array_equal(np.array(streamed), detector.filter(X))
    np.testing.assert_array_equal(np.array(following), detector.predict_next(X))
    detector.reset()
    np.testing.assert_array_equal(detector.update(X[0]), streamed[0])


@every_form
def test_filtering_leaves_the_stream_where_it_is(name):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    for row in X[:50]:
        detector.update(row)
    detector.filter(X)
    detector.predict_next(X)
    np.testing.assert_array_equal(detector.update(X[50]), detector.filter(X[:51])[-1])


@every_form
def test_a_loaded_detector_goes_on_to_the_bit(name, tmp_path):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    for row in X[:100]:
        detector.update(row)
    path = detector.save(tmp_path / "detector.pt")
    loaded, other = load_detector(path), type(detector)().load(path)
    for again in (loaded, other):
        assert type(again) is type(detector)
        assert again.config == detector.config
        assert again.state_names_ == detector.state_names_
        np.testing.assert_array_equal(again.predict_next(), detector.predict_next())
        np.testing.assert_array_equal(again.filter(X), detector.filter(X))
    np.testing.assert_array_equal(loaded.update(X[100]), detector.update(X[100]))


@every_form_that_measures
def test_the_units_of_the_features_do_not_matter(name):
    make, X = FORMS[name]
    whole = FITTED[name].filter(X)
    for factor in (0.01, 100.0):
        scaled = X * factor if name != "threshold" else X * [factor, 1.0]
        # Standardised features differ by roundings, which EM may stretch by some thousands.
        np.testing.assert_allclose(make().fit(scaled).filter(scaled), whole, atol=1e-6)


@every_form
def test_fitting_again_gives_the_same_and_a_clone_is_unfitted(name):
    make, X = FORMS[name]
    detector = make()
    np.testing.assert_array_equal(detector.fit(X).filter(X), FITTED[name].filter(X))
    clone = sklearn.base.clone(detector)
    assert clone.get_params() == detector.get_params()
    with pytest.raises(RuntimeError, match="has learned nothing yet"):
        clone.filter(X)
    assert pickle.loads(pickle.dumps(detector)).filter(X).tobytes() == detector.filter(X).tobytes()


@every_form
def test_several_histories_are_not_joined(name):
    make, X = FORMS[name]
    joined, apart = make().fit(X), make().fit([X[:300], X[300:]])
    assert not np.array_equal(apart.transition_matrix_, joined.transition_matrix_)


@every_form
def test_tables_are_read_by_their_columns(name):
    make, X = FORMS[name]
    table = pd.DataFrame(X, columns=["log_return", "other"])
    detector = make().fit(table)
    np.testing.assert_array_equal(detector.filter(table), detector.filter(X))
    np.testing.assert_array_equal(detector.update(table.iloc[0]), detector.filter(X[:1])[0])
    with pytest.raises(
        ValueError, match=r"fitted on 2 features \(log_return, other\), and is given 2 features \(other, l"
    ):
        detector.filter(table[["other", "log_return"]])


@every_form
def test_hindsight_is_refused(name):
    smoothed = FITTED["gaussian"].smooth_for_analysis(TWO)
    for call in (FITTED[name].filter, FITTED[name].predict_next, FITTED[name].update, FORMS[name][0]().fit):
        with pytest.raises(TypeError, match="know the future"):
            call(smoothed)


def test_smoothed_probabilities_become_no_array_by_accident():
    smoothed = FITTED["gaussian"].smooth_for_analysis(TWO)
    assert isinstance(smoothed, SmoothedProbabilities)
    with pytest.raises(TypeError, match="know the future"):
        np.asarray(smoothed)
    with pytest.raises(TypeError, match="know the future"):
        smoothed @ np.eye(2)
    with pytest.raises(TypeError):
        smoothed[0]
    with pytest.raises((TypeError, RuntimeError)):
        torch.as_tensor(smoothed)
    with pytest.raises(TypeError, match="an agent must not see later bars"):
        refuse_smoothed(1.0, smoothed, to="an agent")
    refuse_smoothed(smoothed.probabilities[0], None, to="an agent")
    np.testing.assert_allclose(smoothed.to_frame().sum(axis=1), 1.0)
    assert "knows the future" in repr(smoothed)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.full((600, 2), np.nan), ValueError, "must be finite, and feature 0 of row 0 is nan"),
        (np.where(np.arange(1_200).reshape(600, 2) == 901, np.inf, TWO), ValueError, "feature 1 of row 450 is inf"),
        (np.zeros((0, 2)), ValueError, "at least one of each"),
        (np.zeros((2, 3, 4)), ValueError, "must be .n_bars, n_features."),
        (["a", "b"], ValueError, "a list means several histories"),
        ([], ValueError, "X is an empty list"),
        ([1.0, 2.0], ValueError, "a list means several histories"),
        ([TWO, TWO[:, :1]], ValueError, r"X\[1\] must have the same features as X\[0\]"),
        (np.array([["a"], ["b"]]), TypeError, "must be numbers"),
    ],
    ids=["nan", "inf", "empty", "three axes", "text", "no history", "numbers", "other features", "text array"],
)
@every_form
def test_features_that_are_none_are_refused(name, X, error, message):
    with pytest.raises(error, match=message):
        FORMS[name][0]().fit(X)


@every_form
def test_bars_with_other_features_are_refused_and_change_nothing(name):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    detector.update(X[0])
    for bar in (X[0, :1], np.array([np.nan, 0.0]), X[:2]):
        with pytest.raises(ValueError, match=r"fitted on 2 features, and is given 1|must be finite|must be one bar"):
            detector.update(bar)
    np.testing.assert_array_equal(detector.update(X[1]), detector.filter(X[:2])[-1])


@every_form_that_measures
def test_an_extreme_bar_leaves_probabilities(name):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    for far in (1e3, -1e12, 1e200, -1e308):
        probability = detector.update([far, 0.0])
        assert np.isfinite(probability).all()
        assert probability.sum() == pytest.approx(1.0)
    assert np.isfinite(detector.update(X[0])).all()


def test_an_error_in_the_data_does_not_undo_what_was_learned_online():
    detector = copy.deepcopy(FITTED["online"])
    variances = detector.variances_
    detector.update([1e200, 0.0])
    # A step is a fortieth at bar 600, and a hundred deviations are ten thousand variances.
    assert (detector.variances_ < 300.0 * variances.max(axis=0)).all()


@every_form
def test_a_damaged_file_is_refused_and_leaves_the_detector_alone(name, tmp_path):
    detector, X = copy.deepcopy(FITTED[name]), FORMS[name][1]
    path = detector.save(tmp_path / "detector.pt")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            detector.load(path)
    for place in rng.choice(len(whole), 40, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            load_detector(path)
        except CheckpointError:
            continue
    np.testing.assert_array_equal(detector.filter(X), FITTED[name].filter(X))


class Hostile:
    def __reduce__(self):
        return (json.loads, ("[]",))


@every_form
def test_a_hostile_file_is_refused(name, tmp_path):
    path = FITTED[name].save(tmp_path / "detector.pt")
    content = torch.load(path, weights_only=False)
    changes = [
        {"config": Hostile()},
        {"config": None},
        {"detector_type": "other"},
        {"detector_type": 3},
        {"kind": "agent"},
        {"n_features": 0},
        {"n_features": 10**9},
        {"n_features": True},
        {"feature_names": ("a",)},
        {"feature_names": [Hostile()]},
        {"state_names": ("a",)},
        {"arrays": {}},
        {"arrays": {**content["arrays"], "transition": torch.full((9, 9), 0.5, dtype=torch.float64)}},
        {"arrays": {key: value.float() for key, value in content["arrays"].items()}},
        {"arrays": {key: value * torch.nan for key, value in content["arrays"].items()}},
        {"arrays": {key: -value for key, value in content["arrays"].items()}},
        {"state": ()},
        {"state": ([2.0] * 3, *content["state"][1:])},
        {"state": ([-1.0] * len(content["state"][0]), *content["state"][1:])},
        {"state": (*content["state"][:3], [0.0] * 1_000)},
    ]
    for change in changes:
        torch.save({**content, **change}, path)
        with pytest.raises(CheckpointError):
            load_detector(path)
    torch.save(content, path)
    load_detector(path)


def test_a_file_of_another_detector_is_refused(tmp_path):
    path = FITTED["jump"].save(tmp_path / "detector.pt")
    with pytest.raises(CheckpointError, match="was refused"):
        GaussianHMM().load(path)
    with pytest.raises(FileNotFoundError):
        load_detector(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianHMM(n_regimes=0), "n_regimes must be from 1 to 50, got 0"),
        (lambda: GaussianHMM(n_regimes=2.5), "n_regimes must be an integer"),
        (lambda: GaussianHMM(covariance="tied"), "covariance must be one of diag, full"),
        (lambda: GaussianHMM(n_starts=0), "n_starts must be at least 1"),
        (lambda: GaussianHMM(tolerance=0.0), "tolerance must be above 0"),
        (lambda: GaussianHMM(min_variance=1.0), "min_variance must be below 1"),
        (lambda: GaussianHMM(sticky=-1.0), "sticky must be at least 0"),
        (lambda: GaussianHMM(emission="student_t", degrees_of_freedom=2.0), "degrees_of_freedom must be above 2"),
        (lambda: GaussianHMM(degrees_of_freedom=5.0), 'is for emission="student_t"'),
        (lambda: GaussianHMM(return_feature=-1), "return_feature must be the number of a feature"),
        (lambda: GaussianHMM(seed=-1), "seed must be an integer"),
        (lambda: GaussianHMM(k=2), "unknown hyperparameter 'k'"),
        (lambda: OnlineHMM(burn_in_bars=1), "burn_in_bars must be at least 10"),
        (lambda: OnlineHMM(step_exponent=0.5), r"step_exponent must be in \(0.5, 1\]"),
        (lambda: OnlineHMM(min_step=1.0), r"min_step must be in \[0, 1\)"),
        (lambda: JumpModel(jump_penalty=-1.0), "jump_penalty must be at least 0"),
        (lambda: VolatilityThreshold(half_life_bars=0.0), "half_life_bars must be above 0"),
        (lambda: OracleRegime(column=-1), "column must be the number of a feature"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_features_of_prices_are_the_return_and_the_volatility_so_far():
    prices = regime_switching(200, seed=3).prices
    table = regime_features(prices, volatility_bars=10)
    returns = np.log(prices["close"]).diff()
    np.testing.assert_allclose(table["log_return"], returns.iloc[10:])
    assert len(table) == 190
    assert len(regime_features(prices)) == 199
    # Which of the two estimates of a deviation it is does not matter here: ln(10 / 9) / 2 is 0.05.
    np.testing.assert_allclose(table["log_volatility"], np.log(returns.rolling(10).std()).iloc[10:], atol=0.06)
    panel = pd.concat({"close": pd.DataFrame({"A": prices["close"], "B": prices["close"] ** 2})}, axis=1)
    np.testing.assert_allclose(regime_features(panel, asset="B"), 2.0 * regime_features(panel, asset="A"), rtol=1e-9)
    with pytest.raises(ValueError, match="has 2 assets, and regimes are of one"):
        regime_features(panel)
    with pytest.raises(ValueError, match="asset must be one of A, B, got 'C'"):
        regime_features(panel, asset="C")
    with pytest.raises(ValueError, match="has 5 bars, and the first features need 11"):
        regime_features(prices.iloc[:5], volatility_bars=10)


def test_a_market_that_stands_still_has_a_volatility_to_take_the_logarithm_of():
    prices = pd.DataFrame({"close": 100.0}, index=pd.date_range("2020-01-01", periods=30, freq="B"))
    assert np.isfinite(regime_features(prices, volatility_bars=5)).all().all()


@pytest.mark.parametrize("name", ["gaussian", "jump"])
def test_the_look_ahead_audit_passes_what_a_detector_says_of_prices(name):
    prices = regime_switching(700, volatilities=(0.005, 0.02), seed=4).prices
    detector = FORMS[name][0]().fit(regime_features(prices, volatility_bars=10))

    def said(price_data):
        features = regime_features(price_data, volatility_bars=10)
        return pd.DataFrame(detector.predict_next(features), index=features.index)

    assert audit_look_ahead(said, prices, n_checks=6).passed


def test_the_look_ahead_audit_finds_smoothed_probabilities_out():
    prices = regime_switching(700, volatilities=(0.005, 0.02), seed=4).prices
    detector = GaussianHMM(n_starts=2).fit(regime_features(prices))

    def said(price_data):
        features = regime_features(price_data)
        return detector.smooth_for_analysis(features).to_frame(features.index)

    assert not audit_look_ahead(said, prices, n_checks=6).passed
