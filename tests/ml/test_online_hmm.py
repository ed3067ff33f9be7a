"""`OnlineHMM` learns what made the bars, one bar at a time."""

import numpy as np
import pytest

from ml.tradingbots.components.hiddenmarkov import GaussianHMM, OnlineHMM
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes

ALTERNATING = GaussianHMM.from_parameters([1.0, -1.0], [1.0, 1.0], [[0.05, 0.95], [0.95, 0.05]])
UNSURE = GaussianHMM.from_parameters([1.5, -1.5], [2.0, 2.0], [[0.5, 0.5], [0.5, 0.5]])


def taught(start, x, **changes):
    detector = OnlineHMM.starting_from(start, **changes)
    for value in x.tolist():
        detector.update(value)
    return detector


def test_one_regime_is_an_average_with_falling_weights():
    start = GaussianHMM.from_parameters([2.0], [9.0], [[1.0]])
    x = np.random.default_rng(1).standard_normal(50)
    detector = taught(start, x, n_bars=10, step_exponent=0.6)
    first, second = 2.0, 9.0 + 4.0
    for number, value in enumerate(x, start=11):
        step = number**-0.6
        first, second = first + step * (value - first), second + step * (value**2 - second)
    assert detector.means_[0, 0] == pytest.approx(first, rel=1e-9)
    assert detector.variances_[0, 0] == pytest.approx(second - first**2, rel=1e-9)


def test_the_variance_of_one_regime_goes_to_what_it_is():
    start = GaussianHMM.from_parameters([2.0], [9.0], [[1.0]])
    found = [taught(start, np.random.default_rng(seed).standard_normal(5_000)).variances_[0, 0] for seed in range(3)]
    # The last 1,800 bars weigh most at bar 5,000, hence a standard error of some 0.03 each and 0.02 of the mean.
    assert np.mean(found) == pytest.approx(1.0, abs=0.15)


def test_statistics_are_those_of_plain_recursion_over_all_pairs_of_regimes():
    """Cappé's recursion in its first form: for each last regime, expected sums over pairs, by loops."""
    x = ALTERNATING.sample(30, seed=2)[0][:, 0]
    detector = OnlineHMM.starting_from(UNSURE, n_bars=15, step_exponent=0.6)
    center, scale = UNSURE._standardiser.center[0], UNSURE._standardiser.scale[0]
    transition, start = UNSURE.transition_matrix_, UNSURE.initial_probabilities_
    means, variances = (UNSURE.means_[:, 0] - center) / scale, UNSURE.covariances_[:, 0, 0] / scale**2
    base = {(i, j): start[i] * transition[i, j] for i in range(2) for j in range(2)}
    moments = {i: (start[i], start[i] * means[i], start[i] * (variances[i] + means[i] ** 2)) for i in range(2)}
    pairs = {key: [value, value] for key, value in base.items()}
    sums = {i: [list(moments[i]), list(moments[i])] for i in range(2)}
    now = start
    for number, value in enumerate((x - center) / scale, start=16):
        step = number**-0.6
        joint = now[:, None] * transition
        predicted = joint.sum(axis=0)
        back = joint / predicted
        density = np.exp(-0.5 * (value - means) ** 2 / variances) / np.sqrt(variances)
        now = predicted * density / (predicted * density).sum()
        pairs = {
            (i, j): [
                step * back[i, k] * (j == k) + (1 - step) * sum(pairs[i, j][m] * back[m, k] for m in range(2))
                for k in range(2)
            ]
            for i in range(2)
            for j in range(2)
        }
        sums = {
            i: [
                [
                    step * (i == k) * power + (1 - step) * sum(sums[i][m][place] * back[m, k] for m in range(2))
                    for place, power in enumerate((1.0, value, value**2))
                ]
                for k in range(2)
            ]
            for i in range(2)
        }
        count = np.array([[sum(pairs[i, j][k] * now[k] for k in range(2)) for j in range(2)] for i in range(2)])
        total = np.array([[sum(sums[i][k][place] * now[k] for k in range(2)) for place in range(3)] for i in range(2)])
        transition = count / count.sum(axis=1, keepdims=True)
        means = total[:, 1] / total[:, 0]
        variances = total[:, 2] / total[:, 0] - means**2
        found = detector.update(value * scale + center)
        np.testing.assert_allclose(found, now, rtol=1e-9)
    np.testing.assert_allclose(detector.transition_matrix_, transition, rtol=1e-9)
    np.testing.assert_allclose(detector.means_[:, 0], means * scale + center, rtol=1e-8)
    np.testing.assert_allclose(detector.variances_[:, 0], variances * scale**2, rtol=1e-8)


def test_a_chain_that_alternates_is_learned_to():
    stays = []
    for seed in range(2):
        x, _ = ALTERNATING.sample(10_000, seed=seed)
        stays.append(np.diag(taught(UNSURE, x[:, 0]).transition_matrix_))
    # Steps of n^-0.8 remember some 3,200 bars at bar 10,000: each of the four has a standard error of about 0.01.
    assert np.mean(stays) == pytest.approx(0.05, abs=0.03)
    assert np.max(stays) < 0.12


@pytest.mark.learning
def test_online_learning_goes_to_the_truth_over_five_seeds():
    start = GaussianHMM.from_parameters([2.0], [9.0], [[1.0]])
    stays, variances = [], []
    for seed in range(5):
        x, _ = ALTERNATING.sample(60_000, seed=seed)
        stays.append(np.diag(taught(UNSURE, x[:, 0]).transition_matrix_))
        variances.append(taught(start, np.random.default_rng(seed).standard_normal(60_000)).variances_[0, 0])
    # 13,000 bars are remembered: standard errors of about 0.005 for the chance to stay and 0.012 for the variance.
    assert np.sqrt(np.mean((np.array(stays) - 0.05) ** 2)) < 0.02
    assert np.mean(stays) == pytest.approx(0.05, abs=0.01)
    assert np.mean(variances) == pytest.approx(1.0, abs=0.05)


def test_fitting_goes_over_the_bars_once_and_filters_nearly_as_well_as_the_true_model():
    case = REGIME_CASES["bull_bear"]
    train, fresh = (sample_regimes(case, 1, 8_000, seed=seed) for seed in (3, 4))
    detector = OnlineHMM().fit(train.log_returns[0])
    true = GaussianHMM.from_parameters(case.mean_log_returns, np.square(case.volatilities), case.transition_matrix)
    x, regimes = fresh.log_returns[0], fresh.regimes[0]
    calm = int(np.argmin(detector.variances_[:, 0]))
    right = np.mean((detector.filter(x).argmax(axis=1) == calm) == (regimes == 0))
    assert right > np.mean(true.filter(x).argmax(axis=1) == regimes) - 0.02


def test_a_floor_under_the_step_follows_a_market_that_changes_for_good():
    rng = np.random.default_rng(5)
    x = np.r_[rng.standard_normal(4_000), 3.0 * rng.standard_normal(1_500)]
    start = GaussianHMM.from_parameters([0.0], [1.0], [[1.0]])
    follows, settles = (taught(start, x, min_step=step, step_exponent=1.0).variances_[0, 0] for step in (0.01, 0.0))
    assert follows == pytest.approx(9.0, rel=0.3)
    assert settles < 5.0


def test_filtering_learns_on_a_copy_and_reset_forgets_the_stream():
    x, _ = ALTERNATING.sample(400, seed=6)
    detector = OnlineHMM.starting_from(UNSURE)
    before = detector.transition_matrix_
    whole = detector.filter(x)
    np.testing.assert_array_equal(detector.transition_matrix_, before)
    for row in x:
        detector.update(row)
    assert not np.array_equal(detector.transition_matrix_, before)
    detector.reset()
    np.testing.assert_array_equal(detector.transition_matrix_, before)
    np.testing.assert_array_equal(detector.filter(x), whole)


def test_a_training_set_shorter_than_the_burn_in_is_all_burn_in():
    x, _ = ALTERNATING.sample(300, seed=7)
    detector = OnlineHMM(burn_in_bars=500).fit(x)
    burnt = GaussianHMM(covariance="diag", max_iterations=200, tolerance=0.1).fit(x)
    np.testing.assert_allclose(detector.means_, burnt.means_, rtol=1e-9)
    np.testing.assert_allclose(detector.transition_matrix_, burnt.transition_matrix_, rtol=1e-6)


def test_three_regimes_are_learned_as_well_as_a_fit_of_all_bars_nearly():
    case = REGIME_CASES["bull_sideways_bear"]
    train, fresh = (sample_regimes(case, 1, n_bars, seed=seed) for n_bars, seed in ((12_000, 101), (5_000, 99)))
    true = GaussianHMM.from_parameters(case.mean_log_returns, np.square(case.volatilities), case.transition_matrix)
    detector = OnlineHMM(n_regimes=3).fit(train.log_returns[0])
    x, regimes = fresh.log_returns[0], fresh.regimes[0]
    order = np.argsort(-detector.means_[:, 0])
    right = np.mean(detector.filter(x)[:, order].argmax(axis=1) == regimes)
    assert right > np.mean(true.filter(x).argmax(axis=1) == regimes) - 0.04


@pytest.mark.parametrize(("n_regimes", "n_bars"), [(1, 500), (2, 500), (3, 2_000), (4, 4_500)])
def test_more_regimes_are_given_a_longer_start(n_regimes, n_bars):
    assert OnlineHMM(n_regimes=n_regimes).config.n_burn_in_bars == n_bars
    assert OnlineHMM(n_regimes=n_regimes, burn_in_bars=50).config.n_burn_in_bars == 50


@pytest.mark.parametrize("n_bars", [1_200, 1_000])
def test_regimes_that_never_come_back_in_training_are_filtered_all_the_same(n_bars):
    # In the long run of what the burn-in bars say there is the last regime alone.
    regime = np.repeat([0, 1, 2], 400)
    x = np.random.default_rng(0).normal(0.0, np.array([1.0, 1.5, 4.0])[regime])
    detector = OnlineHMM(n_regimes=3, burn_in_bars=n_bars).fit(x)
    assert (detector.filter(x).argmax(axis=1) != regime).mean() < 0.1
