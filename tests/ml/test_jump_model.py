"""`JumpModel` finds the cheapest path, and its filter never revises."""

import itertools

import numpy as np
import pytest

from ml.tradingbots.components.hiddenmarkov import JumpModel
from ml.tradingbots.components.jump_model import add_bar, cheapest_path
from ml.tradingbots.data.synthetic_regimes import REGIME_CASES, sample_regimes


def cost(path, losses, starts, penalty):
    jumps = sum(a != b and not first for a, b, first in zip(path, path[1:], starts[1:], strict=False))
    return losses[np.arange(len(path)), list(path)].sum() + penalty * jumps


def features(log_returns, n_bars=10):
    windows = np.lib.stride_tricks.sliding_window_view(log_returns, n_bars)
    return np.column_stack([log_returns[n_bars - 1 :], np.log(windows.std(axis=1))])


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("cut", [None, 4])
def test_the_path_is_the_cheapest_of_all(penalty, cut):
    rng = np.random.default_rng(1)
    for _ in range(5):
        losses = rng.random((8, 3))
        starts = [t in (0, cut) for t in range(8)]
        cheapest = min(cost(path, losses, starts, penalty) for path in itertools.product(range(3), repeat=8))
        path = cheapest_path(losses, starts, penalty)
        assert cost(path.tolist(), losses, starts, penalty) == pytest.approx(cheapest, rel=1e-12)


def test_the_filter_says_where_the_cheapest_path_so_far_ends():
    sample = sample_regimes(REGIME_CASES["bull_bear"], 1, 400, seed=2)
    X = features(sample.log_returns[0])
    model = JumpModel().fit(X)
    losses = np.array(model._evidence(X))
    said = model.filter(X).argmax(axis=1)
    for n_bars in (1, 2, 57, 200, len(X)):
        path = cheapest_path(losses[:n_bars], [t == 0 for t in range(n_bars)], model.config.jump_penalty)
        assert said[n_bars - 1] == path[-1]


def test_a_change_is_paid_for_once():
    assert add_bar([0.0, 10.0], [1.0, 2.0], 5.0) == [1.0, 7.0]


def test_without_a_penalty_every_bar_goes_to_the_nearest_center():
    rng = np.random.default_rng(3)
    X = np.concatenate([rng.normal(-3.0, 1.0, 200), rng.normal(3.0, 1.0, 200)])[rng.permutation(400)]
    model = JumpModel(jump_penalty=0.0).fit(X)
    nearest = np.abs(X[:, None] - model.means_[:, 0]).argmin(axis=1)
    np.testing.assert_array_equal(model.filter(X).argmax(axis=1), nearest)
    np.testing.assert_allclose(sorted(model.means_[:, 0]), [X[X < 0].mean(), X[X > 0].mean()], rtol=0.02)


def test_a_higher_penalty_makes_fewer_changes():
    X = features(sample_regimes(REGIME_CASES["bull_bear"], 1, 3_000, seed=4).log_returns[0])
    changes = [np.abs(np.diff(JumpModel(jump_penalty=p).fit(X).filter(X)[:, 0])).sum() for p in (0.0, 1.0, 5.0, 50.0)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 3 * changes[2]


def test_more_starts_find_no_worse_an_end():
    X = features(sample_regimes(REGIME_CASES["bull_sideways_bear"], 1, 1_000, seed=5).log_returns[0])
    one, many = (JumpModel(n_regimes=3, n_starts=n).fit(X).objective_ for n in (1, 6))
    assert many <= one


def test_it_tells_bull_from_bear_where_volatility_shows():
    """The true filter is right 94% of the time and never late; volatility thresholds at the median are at 75%."""
    train, fresh = (sample_regimes(REGIME_CASES["bull_bear"], 1, 4_000, seed=seed) for seed in (6, 7))
    model = JumpModel().fit(features(train.log_returns[0]))
    assert model.state_names_ == ("bull", "bear")
    right = model.filter(features(fresh.log_returns[0])).argmax(axis=1) == fresh.regimes[0][9:]
    assert right.mean() > 0.85


def test_what_is_likely_next_is_what_followed_in_training():
    X = np.array([0.0] * 6 + [10.0] * 3 + [0.0] * 3)
    model = JumpModel(jump_penalty=0.1, return_feature=None).fit(X)
    low, high = (0, 1) if model.means_[0, 0] < model.means_[1, 0] else (1, 0)
    # Seven and two stays, a change each way, half a change added to each.
    assert model.transition_matrix_[low, low] == pytest.approx(7.5 / 9.0)
    assert model.transition_matrix_[high, high] == pytest.approx(2.5 / 4.0)
    np.testing.assert_allclose(model.predict_next(X)[-1], model.transition_matrix_[low])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JumpModel(n_regimes=3).fit(np.tile([0.0, 1.0], 50)), "fewer distinct bars than n_regimes=3"),
        (lambda: JumpModel(return_feature=1).fit(np.arange(50.0)), "return_feature is 1, and X has 1 features"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
