"""Ensembles combine as a pencil does, learn about members from bars these were not fitted on, and keep their bits."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.base import clone

from ml.tradingbots.components.ensemble_fitting import MemberReport
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor
from ml.tradingbots.components.ensemble_weights import inverse_error_weights, majority, stacking_weights
from ml.tradingbots.components.forecast_table import forward_returns
from ml.tradingbots.components.lstm_ensemble import LSTMEnsemble
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import (
    DriftPredictor,
    LastSignPredictor,
    NaiveConfig,
    NaivePredictor,
    RidgePredictor,
    ZeroPredictor,
)
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import CombinatorialPurgedCV, PurgedKFold, WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive

ROOT = Path(__file__).parents[2]
METHODS = ("simple", "weighted", "voting", "stacking")
each_method = pytest.mark.parametrize("method", METHODS)
TINY = {"window_size": 4, "hidden_dim": 4, "max_epochs": 2, "batch_size": 128}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class ColumnConfig(NaiveConfig):
    features: tuple[str, ...] = ("a",)


class ColumnPredictor(NaivePredictor):
    """A member as a user may write one: it expects what a column of the data says."""

    predictor_type = "column"
    config_class = ColumnConfig

    def _learn(self, table, origins):
        return 1.0

    def _mean(self, table, origins):
        return np.repeat(table.features[origins], len(self.horizons), axis=-1)


def prices(n_bars=500, seed=1, n_assets=2):
    return pd.concat({f"A{i}": autoregressive(n_bars, seed=seed + i).prices for i in range(n_assets)}, axis=1)


def columns(*names):
    return {name: ColumnPredictor(features=(name,)) for name in names}


def market_of(signals, weights, noise, seed):
    """Return prices whose next return is a weighted sum of the columns plus noise."""
    rng = np.random.default_rng(seed)
    expected = sum(weight * signals[name] for name, weight in weights.items())
    returns = expected + noise * rng.standard_normal(len(expected))
    frame = pd.DataFrame(signals, index=pd.date_range("2000-01-03", periods=len(expected), freq="B"))
    frame["close"] = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(returns[:-1])]))
    return frame


def linear_members():
    return [RidgePredictor(), RidgePredictor(window_size=6), DriftPredictor()]


# Weights.


def test_stacking_recovers_a_known_mixture():
    rng = np.random.default_rng(3)
    signals = {name: 0.01 * rng.standard_normal(4_000) for name in "abc"}
    truth = {"a": 0.5, "b": 0.3, "c": 0.1}
    frame = market_of(signals, truth, noise=0.01, seed=4)
    ensemble = EnsemblePricePredictor(columns("a", "b", "c"), "stacking").fit(frame)
    # Standard errors of a regression on independent columns as large as the noise: 1 / sqrt(n).
    assert ensemble.weights_[1].to_numpy() == pytest.approx(list(truth.values()), abs=3 / np.sqrt(4_000))
    assert ensemble.weights_.index.tolist() == ["a", "b", "c"]
    assert ensemble.weights_.columns.tolist() == [1]


def test_stacking_gives_noisy_readings_of_one_signal_the_weights_of_theory():
    rng = np.random.default_rng(5)
    signal, deviations = 0.01 * rng.standard_normal(6_000), np.array([0.01, 0.02, 0.04])
    readings = {name: signal + s * rng.standard_normal(len(signal)) for name, s in zip("abc", deviations, strict=True)}
    frame = market_of({**readings, "signal": signal}, {"signal": 1.0}, noise=0.02, seed=6)
    ensemble = EnsemblePricePredictor(columns("a", "b", "c"), "stacking").fit(frame)
    # E[signal | readings]: precisions beside that of the signal's own spread, which is the weight of zero.
    precisions = 1e-4 / deviations**2
    truth = precisions / (1.0 + precisions.sum())
    values = np.stack([readings[name] for name in "abc"])
    left = np.std(forward_returns(Bars.from_frame(frame), (1,))[:-1, 0, 0] - truth @ values[:, :-1])
    errors = left * np.sqrt(np.diag(np.linalg.inv(values @ values.T)))
    assert (np.abs(ensemble.weights_[1].to_numpy() - truth) < 3 * errors).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(5, 40), st.integers(0, 10_000), st.floats(0.0, 3.0))
def test_no_other_legal_weights_fit_better_than_the_stack(n_members, n_rows, seed, skill):
    rng = np.random.default_rng(seed)
    target = 0.01 * rng.standard_normal(n_rows)
    forecasts = skill * target + 0.01 * rng.standard_normal((n_members, n_rows))

    def loss(weights):
        return float(np.mean((target - weights @ forecasts) ** 2)) * 1e4

    found = stacking_weights(forecasts, target)
    assert (found >= 0.0).all()
    assert found.sum() <= 1.0 + 1e-9
    limit = {"type": "ineq", "fun": lambda weights: 1.0 - weights.sum()}
    oracle = minimize(loss, np.full(n_members, 0.5 / n_members), bounds=[(0, 1)] * n_members, constraints=[limit])
    assert loss(found) <= oracle.fun + 1e-6


def test_stacking_drops_what_finds_nothing():
    weights = EnsemblePricePredictor([LastSignPredictor(), RidgePredictor()], "stacking").fit(prices(3_000)).weights_
    # The regression is right, so all of the weight is its; 6,000 rows know it to about 1 / (0.3 · sqrt(6,000)) = 4%.
    assert weights.loc["ridge", 1] > 0.85
    assert weights.loc["last_sign", 1] < 0.1


def test_weights_are_in_inverse_proportion_to_errors_out_of_fold():
    frame = prices()
    splitter = PurgedKFold(3, purge_size=1, embargo_size=1)
    ensemble = EnsemblePricePredictor(
        {"zero": ZeroPredictor(), "drift": DriftPredictor()}, "weighted", splitter=splitter
    ).fit(frame)
    returns = forward_returns(Bars.from_frame(frame), (1,))[1:-1, :, 0]
    drift = np.empty_like(returns)
    for train, test in splitter.split(returns):
        drift[test] = returns[train].mean(0)
    errors = [np.mean(returns**2), np.mean((returns - drift) ** 2)]
    np.testing.assert_allclose(ensemble.out_of_fold_mse_[1], errors, rtol=1e-12)
    np.testing.assert_allclose(ensemble.weights_[1], (1 / np.array(errors)) / np.sum(1 / np.array(errors)), rtol=1e-12)


def test_a_member_without_error_takes_all_the_weight_but_no_division_fails():
    assert inverse_error_weights([[0.0, 0.0], [1.0, 1.0]], [0.0, 0.0]) == pytest.approx([1.0, 0.0], abs=1e-9)
    assert inverse_error_weights([[0.0], [0.0]], [0.0]).tolist() == [0.5, 0.5]
    assert stacking_weights([[1.0, -1.0]], [0.0, 0.0]).tolist() == [0.0]


# Votes.


def test_votes_are_counted_by_hand():
    rng = np.random.default_rng(0)
    forecasts = rng.standard_normal((4, 50)).round(1)
    for column, found in zip(forecasts.T, majority(forecasts), strict=True):
        up, down = column[column > 0], column[column < 0]
        by_hand = 0.0 if len(up) == len(down) else up.mean() if len(up) > len(down) else down.mean()
        assert found == pytest.approx(by_hand)


def test_voting_asks_the_members():
    rng = np.random.default_rng(1)
    signals = {name: rng.choice([-0.02, -0.01, 0.0, 0.01, 0.02], 200) for name in "abc"}
    frame = market_of(signals, {"a": 1.0}, noise=0.01, seed=2)
    ensemble = EnsemblePricePredictor(columns("a", "b", "c"), "voting").fit(frame)
    np.testing.assert_array_equal(ensemble.predict(frame).to_numpy()[:, 0], majority(np.stack(list(signals.values()))))


# What comes out.


def loss_of(predictor, frame, first):
    found = predictor.predict(frame, bars=np.arange(first, len(frame) - 1)).to_numpy()[:, 0]
    return (forward_returns(Bars.from_frame(frame), (1,))[first:-1, 0, 0] - found) ** 2


@each_method
def test_an_ensemble_loses_no_more_than_its_best_member(method):
    train, test = (autoregressive(n_bars, phi=0.3, seed=seed).prices for n_bars, seed in ((1_500, 1), (5_000, 2)))
    network = LSTMPricePredictor(window_size=4, hidden_dim=8, max_epochs=6, learning_rate=0.01)
    ensemble = EnsemblePricePredictor([RidgePredictor(), RidgePredictor(window_size=8), network], method).fit(train)
    losses = [loss_of(member, test, 8) for member in ensemble.members_.values()]
    best = min(losses, key=np.mean)
    assert loss_of(ensemble, test, 8).mean() <= best.mean() + best.std() / np.sqrt(len(best))
    assert ensemble.score(test) > 0.8 * 0.09  # R² of the optimum is φ².


def test_a_stack_loses_nothing_by_members_without_skill():
    train, test = (autoregressive(n_bars, phi=0.3, seed=seed).prices for n_bars, seed in ((3_000, 1), (10_000, 2)))
    members = [RidgePredictor(), LastSignPredictor(), DriftPredictor()]
    ensemble = EnsemblePricePredictor(members, "stacking").fit(train)
    difference = loss_of(ensemble, test, 8) - loss_of(ensemble.members_["ridge"], test, 8)
    assert difference.mean() <= difference.std() / np.sqrt(len(difference))


def test_quantiles_are_averaged_level_by_level():
    frame = prices()
    ensemble = EnsemblePricePredictor(linear_members(), "weighted").fit(frame)
    found = ensemble.predict_quantiles(frame, (0.1, 0.5))
    bars = np.arange(6, 500)
    parts = [member.predict_quantiles(frame, (0.1, 0.5), bars=bars) for member in ensemble.members_.values()]
    by_hand = sum(weight * part for weight, part in zip(ensemble.weights_[1], parts, strict=True))
    pd.testing.assert_frame_equal(found, by_hand, rtol=0, atol=1e-15)


@each_method
def test_intervals_of_an_ensemble_hold_what_they_promise(method):
    train, test = (autoregressive(n_bars, seed=seed).prices for n_bars, seed in ((3_000, 1), (10_000, 2)))
    ensemble = EnsemblePricePredictor([RidgePredictor(), RidgePredictor(window_size=4)], method).fit(train)
    low, high = ensemble.predict_quantiles(test, (0.05, 0.95)).to_numpy()[:-1].T
    followed = forward_returns(Bars.from_frame(test), (1,))[-len(low) - 1 : -1, 0, 0]
    # Ends known from 3,000 errors to 0.4% each, the share from 10,000 bars to 0.3%.
    assert np.mean((low < followed) & (followed < high)) == pytest.approx(0.9, abs=0.02)


def test_disagreement_is_the_deviation_across_members():
    frame = prices()
    ensemble = EnsemblePricePredictor([RidgePredictor(), ZeroPredictor()]).fit(frame)
    half = 0.5 * ensemble.members_["ridge"].predict(frame).abs()
    np.testing.assert_allclose(ensemble.disagreement(frame), half, rtol=1e-12)
    parts = ensemble.predict_uncertainty(frame).xs(1, axis=1, level="horizon")["A0"]
    np.testing.assert_allclose(parts["total"] ** 2, parts["noise"] ** 2 + parts["disagreement"] ** 2, rtol=1e-12)
    # Innovations deviate by 1%, returns by 1% / sqrt(1 - 0.09); 500 errors know that to 3%.
    assert parts["noise"].mean() == pytest.approx(0.0103, rel=0.1)


def test_an_ensemble_of_lstms_averages_its_seeds():
    frame = prices()
    ensemble = LSTMEnsemble(n_members=2, seed=5, **TINY).fit(frame)
    alone = [LSTMPricePredictor(seed=seed, **TINY).fit(frame) for seed in (5, 6)]
    average = 0.5 * alone[0].predict(frame) + 0.5 * alone[1].predict(frame)
    pd.testing.assert_frame_equal(ensemble.predict(frame), average, rtol=0, atol=1e-15)
    assert not alone[0].predict(frame).equals(alone[1].predict(frame))
    parts = ensemble.predict_uncertainty(frame)
    assert parts.columns.names == ["asset", "horizon", "part"]
    assert (parts > 0.0).all(axis=None)
    assert (
        repr(ensemble) == "LSTMEnsemble(n_members=2, window_size=4, batch_size=128, max_epochs=2, seed=5, hidden_dim=4)"
    )


# Causality.


@each_method
def test_forecasts_read_nothing_after_their_origin(method):
    frame = prices()
    ensemble = EnsemblePricePredictor(linear_members(), method).fit(frame)
    whole = ensemble.predict_quantiles(frame)
    for stop in (60, 201, 499):
        part = ensemble.predict_quantiles(frame.iloc[:stop])
        assert part.equals(whole.iloc[: len(part)])


@each_method
def test_fitting_reads_nothing_but_its_origins_their_windows_and_their_targets(method):
    frame = prices(600)
    other = frame.copy()
    other.iloc[:90] *= np.linspace(3.0, 1.0, 90)[:, None]
    other.iloc[402:] *= np.linspace(1.1, 7.0, 198)[:, None]  # Origins up to 400 have targets up to 401.
    bars = np.arange(100, 401)
    one, two = (EnsemblePricePredictor(linear_members(), method).fit(data, bars=bars) for data in (frame, other))
    test = prices(300, seed=9)
    assert one.predict_quantiles(test).equals(two.predict_quantiles(test))
    assert one.weights_.equals(two.weights_)


def test_members_are_judged_on_bars_they_were_not_fitted_on():
    class Memory(ColumnPredictor):
        """Knows the returns of the bars it was fitted on and says zero elsewhere."""

        predictor_type = "memory"

        def _learn(self, table, origins):
            self.known = dict(zip(origins.tolist(), table.targets[origins], strict=True))
            return 1.0

        def _mean(self, table, origins):
            return np.stack([self.known.get(bar, np.zeros_like(table.targets[0])) for bar in origins.tolist()])

    frame = prices(400)
    cheat = Memory(features=("log_return",))
    ensemble = EnsemblePricePredictor([cheat, RidgePredictor()], "stacking").fit(frame)
    assert ensemble.members_["memory"].score(frame) == pytest.approx(1.0)
    assert ensemble.weights_.loc["memory", 1] == 0.0
    returns = forward_returns(Bars.from_frame(frame), (1,))[1:-1]
    assert ensemble.out_of_fold_mse_.loc["memory", 1] == pytest.approx(np.mean(returns**2))


def test_folds_leave_out_what_labels_and_windows_reach():
    members = [RidgePredictor(horizons=(1, 4), window_size=6, features=("momentum:5",)), ZeroPredictor(horizons=(1, 4))]
    frame = prices()
    fitted_on = []

    class Watched(RidgePredictor):
        def fit(self, price_data, y=None, *, bars=None, **options):
            fitted_on.append(np.asarray(bars))
            return super().fit(price_data, y, bars=bars, **options)

    watched = Watched(**members[0].get_params())
    EnsemblePricePredictor([watched, members[1]], "stacking").fit(frame)
    every = fitted_on.pop()
    assert len(fitted_on) == 5
    for train in fitted_on:
        gaps = np.diff(train)
        left_out = np.setdiff1d(every, train)
        if train[0] == every[0] and train[-1] == every[-1]:  # A block in the middle: purge 4, embargo 6 + 5 - 1.
            assert gaps.max() - 1 == len(every) // 5 + 4 + 4 + 10
        assert len(left_out) >= len(every) // 5 + 4


# The protocol.


def test_what_makes_no_ensemble_is_refused():
    with pytest.raises(
        ValueError, match=r"method must be one of simple, weighted, voting, stacking, got 'stackin'.* 'stacking'"
    ):
        EnsemblePricePredictor([ZeroPredictor()], "stackin")
    with pytest.raises(
        TypeError, match="splitter must be a PurgedKFold or a WalkForwardValidator, which test each bar once"
    ):
        EnsemblePricePredictor([ZeroPredictor()], splitter=CombinatorialPurgedCV())
    with pytest.raises(ValueError, match="members must have the same horizons, got no members"):
        EnsemblePricePredictor().fit(prices())
    with pytest.raises(ValueError, match=r"got zero: \(1,\), drift: \(2,\)"):
        EnsemblePricePredictor([ZeroPredictor(), DriftPredictor(horizons=(2,))]).fit(prices())
    far, splitter = ZeroPredictor(horizons=(3,)), WalkForwardValidator(3, purge_size=2)
    with pytest.raises(ValueError, match="purge_size of at least the longest horizon, 3, got 2"):
        EnsemblePricePredictor([far], "weighted", splitter=splitter).fit(prices())
    wide, folds = RidgePredictor(window_size=8), PurgedKFold(3, purge_size=1, embargo_size=7)
    with pytest.raises(ValueError, match="embargo_size of at least the longest window, 8, got 7"):
        EnsemblePricePredictor([wide], "weighted", splitter=folds).fit(prices())
    with pytest.raises(RuntimeError, match="has learned nothing yet: call fit"):
        EnsemblePricePredictor([ZeroPredictor()]).predict(prices())
    with pytest.raises(ValueError, match="n_members must be an integer of 1 or more, got 0"):
        LSTMEnsemble(0)


def test_it_follows_the_protocol_of_scikit_learn():
    members = linear_members()
    ensemble = EnsemblePricePredictor(members, "voting").fit(prices())
    assert ensemble.members is members
    assert not any(hasattr(member, "assets_") for member in members)
    assert list(ensemble.members_) == ["ridge_1", "ridge_2", "drift"]
    copy = clone(ensemble)
    assert not hasattr(copy, "members_")
    assert copy.get_params().keys() == ensemble.get_params().keys()
    assert copy.set_params(method="simple", ridge_2__window_size=3) is copy
    assert copy.get_params()["ridge_2__window_size"] == 3
    assert ensemble.get_params()["ridge_2__window_size"] == 6
    with pytest.raises(ValueError, match="unknown argument 'metod'"):
        copy.set_params(metod="simple")
    with pytest.raises(ValueError, match="'lstm__alpha' names no member; members are ridge_1, ridge_2, drift"):
        copy.set_params(lstm__alpha=1.0)
    lstms = clone(LSTMEnsemble(n_members=2, horizons=[1, 2], **TINY))
    assert lstms.get_params() == {"n_members": 2, **LSTMPricePredictor(horizons=(1, 2), **TINY).get_params()}
    assert lstms.set_params(seed=9, n_members=4).members[3].config.seed == 12


def test_bars_without_a_full_window_for_every_member_are_left_out():
    frame = prices()
    ensemble = EnsemblePricePredictor([ZeroPredictor(), RidgePredictor(window_size=30)]).fit(frame)
    assert ensemble.predict(frame).index[0] == frame.index[30]
    assert len(ensemble.predict(frame, bars=[3, 29, 30, 44])) == 2


def test_an_ensemble_can_be_a_member():
    frame = prices(300)
    inner = EnsemblePricePredictor([RidgePredictor(window_size=3), ZeroPredictor()])
    ensemble = EnsemblePricePredictor([inner, LSTMEnsemble(n_members=2, **TINY)], "weighted").fit(frame)
    assert ensemble.weights_.index.tolist() == ["ensemble", "lstm_ensemble"]
    assert ensemble.predict(frame).index[0] == frame.index[4]


def test_a_fit_reports_every_epoch_of_every_member():
    reports = []
    members = [LSTMPricePredictor(**TINY), RidgePredictor()]
    splitter = WalkForwardValidator(2, purge_size=1)
    EnsemblePricePredictor(members, "stacking", splitter=splitter).fit(prices(300), report=reports.append)
    assert all(isinstance(report, MemberReport) and report.n_fits == 6 for report in reports)
    seen = [(report.fold, report.member, report.fit_number, report.epoch) for report in reports]
    ofs = [(0, 1), (1, 3), (None, 5)]
    assert seen == [
        row for fold, n in ofs for row in ((fold, "lstm", n, 1), (fold, "lstm", n, 2), (fold, "ridge", n + 1, 1))
    ]


def test_a_fit_that_was_cut_ends_as_if_it_had_not_been(tmp_path):
    frame = prices(300)
    ensemble = EnsemblePricePredictor([LSTMPricePredictor(**TINY), RidgePredictor()], "stacking")

    class Cut(Exception):
        pass

    def stop(report):
        if report.fit_number == 5:
            raise Cut

    with pytest.raises(Cut):
        clone(ensemble).fit(frame, report=stop, checkpoint=tmp_path)
    reports = []
    resumed = clone(ensemble).fit(frame, report=reports.append, checkpoint=tmp_path)
    assert {report.fit_number for report in reports if report.member == "lstm"} == {5, 7, 9, 11}
    assert resumed.predict(frame).equals(clone(ensemble).fit(frame).predict(frame))


# Files.


def test_saved_ensembles_say_the_same_bits_in_another_process(tmp_path):
    frame = prices(300)
    splitter = WalkForwardValidator(train_size="180D", test_size=pd.offsets.MonthBegin(3), purge_size=1)
    members = [LSTMPricePredictor(**TINY), RidgePredictor(), EnsemblePricePredictor([DriftPredictor()])]
    stack = EnsemblePricePredictor(members, "stacking", splitter=splitter).fit(frame)
    lstms = LSTMEnsemble(n_members=2, seed=3, **TINY).fit(frame)
    frame.to_pickle(tmp_path / "prices.pkl")
    for name, ensemble in (("stack", stack), ("lstms", lstms)):
        ensemble.save(tmp_path / f"{name}.pt")
        ensemble.predict_quantiles(frame, (0.1, 0.5)).to_pickle(tmp_path / f"{name}.pkl")
    script = f"""
import pandas as pd, torch
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor, LSTMEnsemble
torch.set_num_threads(1)
frame = pd.read_pickle(r"{tmp_path}/prices.pkl")
for name, made in (("stack", EnsemblePricePredictor), ("lstms", LSTMEnsemble)):
    ensemble = made().load(rf"{tmp_path}/{{name}}.pt")
    assert ensemble.predict_quantiles(frame, (0.1, 0.5)).equals(pd.read_pickle(rf"{tmp_path}/{{name}}.pkl")), name
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    loaded = EnsemblePricePredictor().load(tmp_path / "stack.pt")
    assert loaded.weights_.equals(stack.weights_)
    assert loaded.out_of_fold_mse_.equals(stack.out_of_fold_mse_)
    assert loaded.score(frame) == stack.score(frame)
    assert list(clone(loaded).fit(frame).members_) == ["lstm", "ridge", "ensemble"]
    assert clone(loaded).fit(frame).weights_.equals(stack.weights_)
    assert LSTMEnsemble().load(tmp_path / "lstms.pt").get_params() == lstms.get_params()


def test_files_that_are_no_ensemble_are_refused(tmp_path):
    stack = EnsemblePricePredictor(linear_members()).fit(prices())
    path = stack.save(tmp_path / "stack.pt")
    with pytest.raises(CheckpointError, match="holds a 'ensemble' predictor, this is 'lstm_ensemble'"):
        LSTMEnsemble().load(path)
    own = EnsemblePricePredictor([ColumnPredictor(features=("log_return",))]).fit(prices())
    path = own.save(tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match="member 'column' is a 'column'; known are"):
        EnsemblePricePredictor().load(path)
    assert EnsemblePricePredictor([ColumnPredictor()]).load(path).predict(prices()).equals(own.predict(prices()))
    stack._train_mean = np.zeros(2)
    with pytest.raises(CheckpointError, match="does not fit a 'ensemble' predictor: train_mean must be"):
        EnsemblePricePredictor().load(stack.save(tmp_path / "other.pt"))
