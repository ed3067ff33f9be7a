"""`GaussianHMM`: equal to hmmlearn and statsmodels at equal parameters, and finds what made the data."""

import math
import time
import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hmmlearn import hmm
from scipy import stats
from statsmodels.tsa.regime_switching.markov_regression import MarkovRegression

from ml.tradingbots.components.hiddenmarkov import GaussianHMM, GaussianHMMConfig, select_n_regimes
from ml.tradingbots.components.hmm_emissions import Emissions
from ml.tradingbots.core.hidden_markov import filter_sequences
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes
from ml.tradingbots.training.regime_optima import filter_accuracy, fit_case, fresh_sample, recover, true_model

MEANS = np.array([[0.001, -7.0], [-0.002, -5.0]])
COVARIANCES = np.array([[[1e-4, 1e-3], [1e-3, 0.5]], [[4e-4, -2e-3], [-2e-3, 0.8]]])
TRANSITION = np.array([[0.97, 0.03], [0.06, 0.94]])
KNOWN = GaussianHMM.from_parameters(MEANS, COVARIANCES, TRANSITION)


def fit_of(name, n_bars, seed, **changes):
    sample = sample_regimes(REGIME_CASES[name], 1, n_bars, seed=seed)
    return GaussianHMM(n_regimes=len(REGIME_CASES[name].drifts), seed=seed, **changes).fit(sample.log_returns[0])


# Oracles.


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_log_likelihood_is_hmmlearns_at_equal_parameters(covariance):
    covariances = COVARIANCES if covariance == "full" else COVARIANCES * np.eye(2)
    model = GaussianHMM.from_parameters(MEANS, covariances, TRANSITION, initial_probabilities=[0.3, 0.7])
    X, _ = model.sample(2_000, seed=1)
    oracle = hmm.GaussianHMM(n_components=2, covariance_type=covariance)
    oracle.startprob_, oracle.transmat_, oracle.means_ = np.array([0.3, 0.7]), TRANSITION, MEANS
    oracle.covars_ = covariances if covariance == "full" else np.diagonal(covariances, axis1=1, axis2=2)
    # 2,000 bars of log densities of some 3 each add up to 6,000, of which roundings are some 1e-11.
    assert model.predictive_log_scores(X).sum() == pytest.approx(oracle.score(X), abs=1e-8)
    # Its public probabilities are smoothed.
    np.testing.assert_allclose(model.smooth_for_analysis(X).probabilities, oracle.predict_proba(X), atol=1e-8)


def test_filtered_probabilities_are_those_of_statsmodels_at_equal_parameters():
    case = REGIME_CASES["bull_bear"]
    x = 100.0 * sample_regimes(case, 1, 1_500, seed=2).log_returns[0]
    means, deviations, transition = (
        100.0 * case.mean_log_returns,
        100.0 * np.array(case.volatilities),
        case.transition_matrix,
    )
    # Their order: P(stay in 0), P(from 1 to 0), means, variances.
    parameters = [transition[0, 0], transition[1, 0], *means, *deviations**2]
    oracle = MarkovRegression(x, k_regimes=2, switching_variance=True).filter(parameters)
    model = GaussianHMM.from_parameters(means, deviations**2, transition)
    np.testing.assert_allclose(model.filter(x), oracle.filtered_marginal_probabilities, atol=1e-8)
    np.testing.assert_allclose(model.predict_next(x)[:-1], oracle.predicted_marginal_probabilities[1:], atol=1e-8)
    assert model.score(x) * len(x) == pytest.approx(oracle.llf, abs=1e-8)


def test_densities_are_scipys():
    rows = np.random.default_rng(3).standard_normal((50, 2)) * 3.0
    means, scales = np.array([[0.5, -1.0], [2.0, 0.0]]), np.array([[[1.0, 0.3], [0.3, 2.0]], [[0.5, 0.0], [0.0, 0.1]]])
    for degrees in (np.array([4.0, 30.0]), np.full(2, np.inf)):
        emissions = Emissions(means, scales, degrees, is_diagonal=False)
        found = emissions.log_density(emissions.squares(rows))
        for k in range(2):
            expected = stats.multivariate_t(means[k], scales[k], degrees[k]).logpdf(rows)
            np.testing.assert_allclose(found[:, k], expected, rtol=1e-12)


# EM.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"covariance": "diag"},
        {"n_regimes": 3},
        {"sticky": 50.0},
        {"emission": "student_t"},
        {"emission": "student_t", "degrees_of_freedom": 5.0, "covariance": "diag"},
        {"min_variance": 0.3},
    ],
    ids=str,
)
def test_no_step_of_em_lowers_the_likelihood(changes):
    X, _ = KNOWN.sample(1_200, seed=4)
    model = GaussianHMM(n_starts=3, **changes).fit(X)
    # Roundings of a sum of 1,200 numbers around 3.
    assert np.diff(model.objectives_).min() > -1e-8
    assert model.converged_
    assert (np.linalg.eigvalsh(model.covariances_) > 0.0).all()


def test_where_em_ends_nothing_gains():
    X, _ = KNOWN.sample(1_500, seed=5)
    best = GaussianHMM(n_starts=3, tolerance=1e-7).fit(X)
    for move in (-1e-3, 1e-3):
        for change in (
            {"means": best.means_ + move * X.std(axis=0)},
            {"covariances": best.covariances_ * (1.0 + move)},
        ):
            kept = {"means": best.means_, "covariances": best.covariances_}
            other = GaussianHMM.from_parameters(**{**kept, **change}, transition_matrix=best.transition_matrix_)
            assert other.score(X) < best.score(X)


def test_a_fit_is_no_worse_than_hmmlearns_from_the_same_bars():
    X, _ = KNOWN.sample(1_000, seed=6)
    oracle = hmm.GaussianHMM(2, "full", n_iter=200, tol=1e-6, covars_prior=0.0, covars_weight=0.0, min_covar=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = max(oracle.fit(X).score(X) for _ in range(3))
    # It fits the first regime too, which is worth at most a regime's share of one bar.
    assert GaussianHMM().fit(X).score(X) * len(X) > best - 2.0


def test_one_regime_is_the_mean_and_the_covariance():
    X, _ = KNOWN.sample(300, seed=7)
    model = GaussianHMM(n_regimes=1).fit(X)
    np.testing.assert_allclose(model.means_[0], X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.covariances_[0], np.cov(X.T, ddof=0), rtol=1e-10)
    assert model.state_names_ == ("all",)
    assert model.expected_durations_[0] == math.inf
    expected = stats.multivariate_normal(model.means_[0], model.covariances_[0]).logpdf(X)
    np.testing.assert_allclose(model.predictive_log_scores(X), expected, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_regimes_that_never_come_back_are_filtered_all_the_same(seed, tmp_path):
    # The last of three regimes is never left, so that in the chain's long run there is no other.
    regime = np.repeat([0, 1, 2], 400)
    x = np.random.default_rng(seed).normal(0.0, np.array([1.0, 1.5, 2.2])[regime])
    model = GaussianHMM(n_regimes=3, n_starts=4).fit(x)
    assert model.initial_probabilities_.min() > 0.2
    # The best that a filter does here, told the parameters, is wrong on 10 to 20% of the bars.
    assert (model.filter(x).argmax(axis=1) != regime).mean() < 0.25
    again = GaussianHMM().load(model.save(tmp_path / "model.pt"))
    assert (again.predict_next(x[:300]) == model.predict_next(x[:300])).all()


def test_a_sticky_prior_counts_changes_that_nobody_saw():
    X, _ = KNOWN.sample(600, seed=8)
    free, sticky = (GaussianHMM(sticky=sticky, n_starts=3).fit(X) for sticky in (0.0, 1_000.0))
    assert (sticky.expected_durations_ > 2.0 * free.expected_durations_).all()


def test_a_regime_does_not_shrink_onto_one_bar():
    x = np.random.default_rng(9).standard_normal(300)
    x[:20] = 0.123
    model = GaussianHMM(n_regimes=2, min_variance=0.01).fit(x)
    assert model.covariances_.min() >= 0.01 * x.var() * (1.0 - 1e-9)


def test_student_t_finds_its_degrees_of_freedom():
    true = GaussianHMM.from_parameters(
        [0.0, 0.0], [1.0, 9.0], [[0.98, 0.02], [0.02, 0.98]], degrees_of_freedom=[4.0, 8.0]
    )
    x, _ = true.sample(30_000, seed=10)
    model = GaussianHMM(emission="student_t", n_starts=3, seed=1).fit(x).match_regimes(true)
    # Standard errors of degrees of freedom from 15,000 bars are about 0.15 at 4 and 0.6 at 8.
    assert model.degrees_of_freedom_ == pytest.approx([4.0, 8.0], abs=1.8)
    assert model.degrees_of_freedom_[0] == pytest.approx(4.0, abs=0.5)
    assert model.covariances_[:, 0, 0] == pytest.approx([1.0, 9.0], rel=0.1)


def test_single_bars_far_out_make_no_regime_of_their_own_with_student_t():
    case = REGIME_CASES["bull_bear"]
    sample = sample_regimes(case, 1, 4_000, seed=11)
    x = sample.log_returns[0].copy()
    x[::200] = 0.3
    robust, plain = (GaussianHMM(emission=emission).fit(x).filter(x) for emission in ("student_t", "gaussian"))
    regimes = sample.regimes[0]
    assert max(np.mean(robust.argmax(axis=1) == order[regimes]) for order in np.array([[0, 1], [1, 0]])) > 0.9
    assert max(np.mean(plain.argmax(axis=1) == order[regimes]) for order in np.array([[0, 1], [1, 0]])) < 0.85


def test_many_bars_are_fitted_from_a_start_on_some():
    sample = sample_regimes(REGIME_CASES["toy"], 12, 5_000, seed=12)
    model = GaussianHMM(n_starts=2).fit(list(sample.log_returns))
    assert model.converged_
    assert model.means_[:, 0] == pytest.approx([0.005, -0.005], abs=0.0005)


def test_a_fit_that_did_not_converge_says_so():
    X, _ = KNOWN.sample(600, seed=13)
    with pytest.warns(RuntimeWarning, match="EM did not converge in 3 iterations"):
        model = GaussianHMM(max_iterations=3).fit(X)
    assert not model.converged_


# What it finds.


def test_parameters_of_one_sample_are_recovered():
    true = true_model("bull_bear")
    model = fit_of("bull_bear", 20_000, seed=1, n_starts=4)
    errors = model.mean_errors_[:, 0]
    assert np.abs(model.means_[:, 0] - true.means_[:, 0]) == pytest.approx(0.0, abs=float(3.5 * errors.max()))
    np.testing.assert_allclose(model.covariances_, true.covariances_, rtol=0.05)
    np.testing.assert_allclose(np.diag(model.transition_matrix_), [0.99, 0.97], atol=0.006)


@pytest.mark.learning
def test_parameters_are_recovered_over_five_seeds():
    deviations, variances = [], []
    for name in ("bull_bear", "toy"):
        true = true_model(name)
        for seed in range(5):
            model = fit_of(name, 20_000, seed).match_regimes(true)
            deviations.append((model.means_ - true.means_)[:, 0] / model.mean_errors_[:, 0])
            variances.append((model.covariances_ / true.covariances_ - 1.0).ravel())
    deviations, variances = np.concatenate(deviations), np.abs(np.concatenate(variances))
    print("means, in standard errors", deviations.round(2), "variances, relative", variances.round(3))
    # Of 20 deviations in standard errors, about one is beyond 2 by chance, more than four in 0.3% of the tries; their mean
    # square is about 1, above 1.9 in 1%.
    assert (np.abs(deviations) > 2.0).sum() <= 4
    assert np.mean(deviations**2) < 1.9
    # Bear holds 5,000 of the bars, so its variance has a standard error of 2.1%: of five such one is beyond 5% in every
    # twelfth try. The others' is 1.3% or less.
    assert (variances > 0.05).sum() <= 1
    assert variances.max() < 0.08


def test_a_chain_that_alternates_is_found_to():
    true = GaussianHMM.from_parameters([1.0, -1.0], [1.0, 1.0], [[0.05, 0.95], [0.95, 0.05]])
    for seed in range(3):
        x, _ = true.sample(5_000, seed=seed)
        stay = np.diag(GaussianHMM(seed=seed).fit(x).transition_matrix_)
        assert stay == pytest.approx([0.05, 0.05], abs=0.02)


@pytest.mark.parametrize("name", ["bull_bear", "toy"])
def test_a_fit_filters_nearly_as_well_as_the_true_model(name):
    true, fresh = true_model(name), sample_regimes(REGIME_CASES[name], 1, 20_000, seed=99)
    model = fit_of(name, 10_000, seed=1, n_starts=4).match_regimes(true)
    assert filter_accuracy(model, fresh) > filter_accuracy(true, fresh) - 0.01


@pytest.mark.learning
@pytest.mark.parametrize("name", ["bull_bear", "bull_sideways_bear", "toy"])
def test_fits_of_20_000_bars_filter_within_a_point_of_the_true_model(name):
    for seed in range(5):
        found = recover(name, 20_000, seed=seed)
        assert found.accuracy_gap < 0.01
        if name == "bull_sideways_bear":
            assert found.accuracy > 0.80


@pytest.mark.learning
def test_fits_of_two_million_bars_find_means_of_ten_basis_points():
    """Five parameters in 1% of noise: 20,000 bars leave up to six points of accuracy, 500,000 still two."""
    true, fresh = true_model("faint"), fresh_sample("faint")
    best = filter_accuracy(true, fresh)
    for seed in range(5):
        model, _ = fit_case("faint", 2_000_000, seed=seed)
        assert filter_accuracy(model, fresh) > best - 0.01


def test_regimes_are_the_same_whatever_the_seed_of_the_starts():
    x = sample_regimes(REGIME_CASES["bull_bear"], 1, 1_500, seed=14).log_returns[0]
    fits = [GaussianHMM(seed=seed, n_starts=3).fit(x) for seed in range(20)]
    for model in fits:
        assert model.state_names_ == fits[0].state_names_
        # Fits end within the tolerance of the same best place.
        np.testing.assert_allclose(model.filter(x), fits[0].filter(x), atol=0.02)


# Names and order.


def test_regimes_with_separated_means_are_bull_sideways_and_bear():
    model = fit_of("bull_sideways_bear", 20_000, seed=2, n_starts=4)
    assert model.state_names_ == ("bull", "sideways", "bear")
    assert (np.diff(model.means_[:, 0]) < 0.0).all()


@pytest.mark.parametrize(("n_regimes", "names"), [
    (2, ("low_volatility", "high_volatility")),
    (3, ("low_volatility", "medium_volatility", "high_volatility")),
    (4, ("low_volatility", "medium_volatility_1", "medium_volatility_2", "high_volatility")),
])  # fmt: skip
def test_regimes_of_plain_noise_are_named_for_their_volatility(n_regimes, names):
    for seed in range(3):
        x = 0.01 * np.random.default_rng(seed).standard_normal(800)
        model = GaussianHMM(n_regimes=n_regimes, n_starts=2, tolerance=0.1, seed=seed).fit(x)
        assert model.state_names_ == names
        assert (np.diff(model.covariances_[:, 0, 0]) > 0.0).all()


def test_regimes_that_differ_in_volatility_alone_are_rarely_called_bull_and_bear():
    true = GaussianHMM.from_parameters([0.0, 0.0], [0.008**2, 0.02**2], [[0.99, 0.01], [0.03, 0.97]])
    wrong = 0
    for seed in range(12):
        x, _ = true.sample(1_500, seed=seed)
        wrong += "bull" in GaussianHMM(n_starts=3, seed=seed).fit(x).state_names_
    # Two standard errors let 5% through, some more because errors are estimated; more than 4 of 12 then in less than 0.5%.
    assert wrong <= 4


def test_without_a_return_among_the_features_regimes_have_numbers():
    X, _ = KNOWN.sample(600, seed=15)
    assert GaussianHMM(return_feature=None, n_starts=2).fit(X).state_names_ == ("regime_0", "regime_1")


def test_a_refit_keeps_the_numbers_of_the_regimes():
    case = REGIME_CASES["bull_sideways_bear"]
    x = sample_regimes(case, 1, 6_000, seed=16).log_returns[0]
    first, later = (GaussianHMM(n_regimes=3, n_starts=4).fit(part) for part in (x[:4_000], x[1_000:]))
    order = [2, 0, 1]
    turned = GaussianHMM.from_parameters(
        later.means_[order],
        later.covariances_[order],
        later.transition_matrix_[np.ix_(order, order)],
        initial_probabilities=later.initial_probabilities_[order],
    )
    turned.match_regimes(first)
    later.match_regimes(first)
    np.testing.assert_allclose(turned.means_, later.means_, rtol=1e-9)
    np.testing.assert_allclose(turned.transition_matrix_, later.transition_matrix_, rtol=1e-9)
    np.testing.assert_allclose(turned.filter(x), later.filter(x), atol=1e-9)
    assert np.mean(first.filter(x).argmax(axis=1) == later.filter(x).argmax(axis=1)) > 0.85
    # Names went with their regimes.
    assert dict(zip(turned.state_names_, turned.means_[:, 0].round(12), strict=True)).keys() == {
        "bull",
        "sideways",
        "bear",
    }
    assert turned.means_[turned.state_names_.index("bull"), 0] == turned.means_[:, 0].max()


def test_matching_needs_as_many_regimes_of_the_same_features():
    with pytest.raises(ValueError, match="reference must have the same n_regimes: it has 3, this detector 2"):
        KNOWN.match_regimes(true_model("bull_sideways_bear"))
    with pytest.raises(ValueError, match="same n_features_in_"):
        KNOWN.match_regimes(true_model("toy"))


# How many.


@pytest.mark.parametrize("by", ["predictive", "bic"])
@pytest.mark.parametrize("n_regimes", [1, 2])
def test_the_number_of_regimes_is_found(by, n_regimes):
    if n_regimes == 1:
        x = 0.01 * np.random.default_rng(17).standard_normal(2_000)
    else:
        x = sample_regimes(REGIME_CASES["bull_bear"], 1, 3_000, seed=17).log_returns[0]
    config = GaussianHMMConfig(n_starts=3, tolerance=0.05)
    found = select_n_regimes(x, (1, 2, 3), by=by, config=config)
    assert found.n_regimes == n_regimes
    assert list(found.table.index) == [1, 2, 3]


def test_the_predictive_score_never_fits_the_bars_it_is_taken_on():
    x = sample_regimes(REGIME_CASES["bull_bear"], 1, 1_000, seed=18).log_returns[0]
    found = select_n_regimes(x, (2,), test_share=0.3)
    expected = GaussianHMM().fit(x[:700]).predictive_log_scores(x)[700:].mean()
    assert found.table.loc[2, "log_score"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ()}, "candidates must be different numbers of regimes"),
        ({"candidates": (0, 1)}, "candidates must be"),
        ({"by": "aic"}, 'by must be "predictive" or "bic"'),
        ({"test_share": 1.0}, r"test_share must be in \(0, 1\)"),
    ],
)
def test_impossible_selections_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        select_n_regimes(np.arange(50.0), **changes)


# Scores, samples, errors.


def test_bic_and_score_are_the_log_likelihood():
    X, _ = KNOWN.sample(600, seed=19)
    model = GaussianHMM(n_starts=2).fit(X)
    total = model.predictive_log_scores(X).sum()
    assert model.score(X) == pytest.approx(total / 600)
    # Two means and three covariances in each of two regimes, and two free changes.
    assert model.bic(X) == pytest.approx(12 * math.log(600) - 2.0 * total)
    assert model.last_log_score_ == 0.0
    model.update(X[0])
    assert model.last_log_score_ == model.predictive_log_scores(X)[0]


def test_densities_are_in_the_units_of_the_data():
    X, _ = KNOWN.sample(600, seed=20)
    model, scaled = GaussianHMM(n_starts=2).fit(X), GaussianHMM(n_starts=2).fit(10.0 * X)
    assert scaled.score(10.0 * X) == pytest.approx(model.score(X) - 2.0 * math.log(10.0), abs=1e-7)


def test_samples_have_the_moments_of_the_model():
    X, regimes = KNOWN.sample(40_000, seed=21)
    assert np.array_equal(X, KNOWN.sample(40_000, seed=21)[0])
    # Two thirds of the time in the first regime; four standard errors at a tenth of the bars independent.
    assert np.mean(regimes == 0) == pytest.approx(2 / 3, abs=0.03)
    for k in range(2):
        np.testing.assert_allclose(
            X[regimes == k].mean(axis=0), MEANS[k], atol=4.0 * np.sqrt(COVARIANCES[k].max() / 10_000)
        )
        np.testing.assert_allclose(np.cov(X[regimes == k].T), COVARIANCES[k], rtol=0.06, atol=3e-4)


def test_a_filter_is_right_as_often_as_it_says():
    sample = sample_regimes(REGIME_CASES["toy"], 1, 20_000, seed=22)
    probability = true_model("toy").filter(sample.log_returns[0])[:, 0]
    for low in (0.1, 0.3, 0.5, 0.7):
        own = (probability >= low) & (probability < low + 0.2)
        # Some 1,000 bars in each, in runs of a few.
        assert np.mean(sample.regimes[0][own] == 0) == pytest.approx(probability[own].mean(), abs=0.06)


def test_ten_thousand_bars_are_filtered_in_less_than_a_second():
    x = sample_regimes(REGIME_CASES["bull_sideways_bear"], 1, 10_000, seed=23).log_returns[0]
    model = true_model("bull_sideways_bear")
    began = time.perf_counter()
    model.filter(x)
    # About 0.1 s; the rest is for machines that do something else.
    assert time.perf_counter() - began < 1.0


def test_the_filter_of_all_bars_is_the_one_of_fitting():
    x = sample_regimes(REGIME_CASES["bull_sideways_bear"], 1, 3_000, seed=24).log_returns[0]
    model = true_model("bull_sideways_bear")
    deviations = np.sqrt(model.covariances_[:, 0, 0])
    log_density = -0.5 * ((x[:, None] - model.means_[:, 0]) / deviations) ** 2 - np.log(deviations)
    starts = np.arange(len(x)) == 0
    expected, _ = filter_sequences(log_density, model.initial_probabilities_, model.transition_matrix_, starts)
    np.testing.assert_allclose(model.filter(x), expected, atol=1e-11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GaussianHMM(n_regimes=3).fit(np.arange(11.0)),
            "has 11 bars, and 3 regimes of 1 features have 12 param",
        ),
        (lambda: GaussianHMM(n_regimes=1).fit(np.zeros(50)), "feature number 0 is constant"),
        (lambda: GaussianHMM().fit(pd.DataFrame({"a": np.arange(50.0), "b": 0.1})), "feature b is constant"),
        (lambda: GaussianHMM(n_regimes=3).fit(np.tile([0.0, 1.0], 50)), "has 2 distinct bars, too few for n_regimes=3"),
        (lambda: GaussianHMM(return_feature=1).fit(np.arange(50.0)), "return_feature is 1, and X has 1 features"),
        (
            lambda: GaussianHMM().fit(np.r_[np.arange(50.0), 1e200]),
            r"variance that a float holds; its largest value is 1e\+200",
        ),
        (lambda: KNOWN.smooth_for_analysis(np.zeros((5, 3))), "fitted on 2 features, and is given 3"),
        (lambda: KNOWN.sample(0, seed=1), "n_bars must be at least 1"),
        (lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0, -1.0], np.eye(2)), "positive definite"),
        (lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0, 0.0], np.eye(2)), "a variance is not above 0"),
        (
            lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0, 1.0], np.eye(2), return_feature=5),
            "return_feature must be one of the features, 0 to 0, got 5",
        ),
        (lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0, 1.0], np.ones((2, 2))), "each row must sum to 1"),
        (
            lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0], np.eye(2)),
            "covariances .n_regimes, n_features, n_features",
        ),
        (lambda: GaussianHMM.from_parameters([0.0, 1.0], [1.0, 1.0], np.eye(2), degrees_of_freedom=2.0), "above 2"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "attribute", ["means_", "covariances_", "transition_matrix_", "state_names_", "expected_durations_"]
)
def test_what_was_never_learned_is_not_told(attribute):
    with pytest.raises(RuntimeError, match="has learned nothing yet"):
        getattr(GaussianHMM(), attribute)


def test_regimes_of_equal_prices_in_pairs_do_not_stop_a_fit():
    x = np.repeat([0.0, 0.01, -0.01, 0.02], 40)
    model = GaussianHMM(n_regimes=2, n_starts=2, tolerance=0.1).fit(x)
    assert all(before <= after + 1e-8 for before, after in pairwise(model.objectives_))
