"""Every predictor reaches the optimum where there is one, finds nothing in noise, reads the past only, and keeps its bits."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate
from sklearn.base import clone

from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.forecast_heads import GaussianHead, QuantileHead, StudentTHead
from ml.tradingbots.components.forecast_table import forward_returns
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.components.transformer_predictor import TransformerPricePredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive, random_walk

PREDICTORS = {"lstm": LSTMPricePredictor, "transformer": TransformerPricePredictor, "cnn": CNNPricePredictor}
ROOT = Path(__file__).parents[2]
SMALL = {"window_size": 8, "hidden_dim": 8, "max_epochs": 2, "batch_size": 64}
each = pytest.mark.parametrize("name", PREDICTORS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name, **changes):
    settings = SMALL | ({"n_filters": (8, 8)} if name == "cnn" else {}) | changes
    return PREDICTORS[name](**settings)


def prices(n_bars=400, seed=1, n_assets=1):
    frames = {f"A{i}": autoregressive(n_bars, seed=seed + i).prices for i in range(n_assets)}
    return frames["A0"] if n_assets == 1 else pd.concat(frames, axis=1)


# Learning.


@each
def test_it_reaches_the_optimum_of_an_autoregression(name):
    train, test = autoregressive(6_000, phi=0.3, seed=1).prices, autoregressive(20_000, phi=0.3, seed=2).prices
    predictor = PREDICTORS[name](window_size=8, max_epochs=20).fit(train)
    # R² of the optimum is φ² = 0.09; 20,000 bars know it to 0.004. Windows of 8 and 4,800 samples cost some of it.
    assert predictor.score(test) > 0.8 * 0.09
    found = predictor.predict(test).to_numpy()[:-1, 0]
    followed = forward_returns(Bars.from_frame(test), (1,))[-len(found) - 1 : -1, 0, 0]
    hit = np.mean(np.sign(found) == np.sign(followed))
    assert hit == pytest.approx(0.5 + math.asin(0.3) / math.pi, abs=0.01)
    low, high = predictor.predict_quantiles(test, (0.05, 0.95)).to_numpy()[:-1].T
    assert 0.88 < np.mean((low < followed) & (followed < high)) < 0.92


@each
def test_it_finds_nothing_in_noise(name):
    train, test = random_walk(6_000, seed=1).prices, random_walk(20_000, seed=2).prices
    predictor = PREDICTORS[name](window_size=8, max_epochs=10).fit(train)
    assert -0.005 < predictor.score(test) < 0.001


# The protocol.


@each
def test_it_follows_the_protocol_of_scikit_learn(name):
    predictor = small(name, seed=3)
    assert clone(predictor).get_params() == predictor.get_params()
    assert predictor.set_params(seed=4) is predictor
    assert predictor.get_params()["seed"] == 4
    assert "seed=4" in repr(predictor)
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'hiden_dim' of \w+; known are .*hidden_dim"):
        PREDICTORS[name](hiden_dim=3)
    with pytest.raises(RuntimeError, match="has learned nothing yet: call fit"):
        predictor.predict(prices())


@each
@pytest.mark.parametrize("head", ["gaussian", "student_t", "quantile", "point"])
def test_every_head_answers_in_the_shapes_promised(name, head):
    frame = prices(n_assets=2)
    predictor = small(name, head=head, horizons=(1, 5), asset_dim=2, volatility_bars=20).fit(frame)
    mean = predictor.predict(frame)
    assert mean.columns.tolist() == [("A0", 1), ("A0", 5), ("A1", 1), ("A1", 5)]
    assert mean.index[-1] == frame.index[-1]  # What comes after the last bar is what one wants to know.
    spread = predictor.predict_quantiles(frame, (0.1, 0.5, 0.9))
    assert spread.columns.names == ["asset", "horizon", "quantile"]
    values = spread.to_numpy().reshape(len(spread), 4, 3)
    assert (np.diff(values, axis=2) > 0.0).all()
    assert np.isfinite(mean.to_numpy()).all()
    ratio = predictor.predict_price(frame).to_numpy()[:, 0] / frame["A0"]["close"].to_numpy()[-len(mean) :]
    np.testing.assert_allclose(np.log(ratio), mean.to_numpy()[:, 0], atol=1e-12)


@each
def test_forecasts_read_nothing_after_their_origin(name):
    frame = prices(n_assets=2)
    predictor = small(name, volatility_bars=20, features=("log_return", "momentum:5")).fit(frame)
    whole = predictor.predict(frame)
    for stop in (60, 201, 399):
        part = predictor.predict(frame.iloc[:stop])
        pd.testing.assert_frame_equal(part, whole.iloc[: len(part)], rtol=1e-5, atol=1e-9)


@each
def test_fitting_reads_nothing_but_its_origins_their_windows_and_their_targets(name):
    frame = prices(600)
    other = frame.copy()
    other.iloc[401:] *= np.linspace(1.0, 7.0, 199)[:, None]  # Origins up to 399 have targets up to 400.
    bars = np.arange(400)
    one, two = (small(name).fit(data, bars=bars) for data in (frame, other))
    test = prices(300, seed=9)
    assert one.predict(test).equals(two.predict(test))


@each
def test_the_best_epochs_weights_are_kept(name):
    predictor = small(name, max_epochs=6, learning_rate=0.03).fit(prices(800))
    losses = predictor.history_["val_loss"]
    assert predictor.best_epoch_ == losses.idxmin()
    table = predictor._table(prices(800))
    _, validation = predictor._divide(table.origins(None, labelled=True))
    fitting = predictor._new_fitting(table)
    fitting.network.load_state_dict(predictor.network.state_dict())
    assert fitting.loss(predictor._samples(table, validation)) == pytest.approx(losses.min(), rel=1e-6)


@each
def test_a_fit_that_was_cut_ends_as_if_it_had_not_been(name, tmp_path):
    frame, settings = prices(), {"max_epochs": 5, "dropout": 0.2}
    whole = small(name, **settings).fit(frame)

    class Cut(Exception):
        pass

    def stop(report):
        if report.epoch == 2:
            raise Cut

    with pytest.raises(Cut):
        small(name, **settings).fit(frame, checkpoint=tmp_path / "fit.pt", report=stop)
    resumed = small(name, **settings).fit(frame, checkpoint=tmp_path / "fit.pt")
    assert resumed.predict(frame).equals(whole.predict(frame))
    assert resumed.history_["val_loss"].equals(whole.history_["val_loss"])
    with pytest.raises(ValueError, match="belongs to a fit with other data"):
        small(name, **settings, seed=1).fit(frame, checkpoint=tmp_path / "fit.pt")


# Files.


@each
def test_a_file_predicts_the_same_bits_in_another_process(name, tmp_path):
    frame = prices(200, n_assets=2)
    predictor = small(name, asset_dim=2, head="point").fit(frame)
    predictor.save(tmp_path / "predictor.pt")
    frame.to_pickle(tmp_path / "frame.pkl")
    code = (
        "import sys, torch, pandas as pd; torch.set_num_threads(1)\n"
        f"from {PREDICTORS[name].__module__} import {PREDICTORS[name].__name__} as P\n"
        "folder = sys.argv[1]; p = P().load(folder + '/predictor.pt'); f = pd.read_pickle(folder + '/frame.pkl')\n"
        "p.predict_quantiles(f, (0.1, 0.9)).to_pickle(folder + '/out.pkl')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert pd.read_pickle(tmp_path / "out.pkl").equals(predictor.predict_quantiles(frame, (0.1, 0.9)))


def test_a_file_of_another_predictor_is_refused_and_nothing_changes(tmp_path):
    path = small("lstm").fit(prices()).save(tmp_path / "lstm.pt")
    other = small("cnn").fit(prices())
    before = other.predict(prices())
    with pytest.raises(CheckpointError):
        other.load(path)
    assert other.predict(prices()).equals(before)


def test_a_missing_column_is_named():
    frame = prices().assign(mood=np.sin(np.arange(400)))
    predictor = small("lstm", features=("log_return", "mood")).fit(frame)
    with pytest.raises(ValueError, match="unknown feature 'mood'"):
        predictor.predict(prices())
    reordered = frame[frame.columns[::-1]]
    assert predictor.predict(reordered).equals(predictor.predict(frame))


def test_an_asset_without_an_embedding_is_named():
    predictor = small("lstm", asset_dim=2).fit(prices(n_assets=2))
    with pytest.raises(ValueError, match="none for A2"):
        predictor.predict(prices(n_assets=3))
    swapped = predictor.predict(prices(n_assets=2)[["A1", "A0"]])
    pd.testing.assert_frame_equal(swapped[["A0", "A1"]], predictor.predict(prices(n_assets=2)), rtol=1e-5, atol=1e-9)


# What networks say about themselves.


def test_attention_looks_back_only_and_sums_to_one():
    predictor = small("transformer", window_size=10, patch_size=4).fit(prices())
    maps = predictor.attention_maps(prices(), bars=[50, 60])
    assert maps.shape == (2, 1, 2, 4, 3, 3)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-5)
    assert (maps[..., np.triu_indices(3, 1)[0], np.triu_indices(3, 1)[1]] == 0.0).all()
    assert predictor.predict(prices(), bars=[50]).notna().to_numpy().all()


def test_saliency_points_at_the_bar_that_matters():
    predictor = CNNPricePredictor(window_size=8, max_epochs=20).fit(autoregressive(5_000, phi=0.5, seed=1).prices)
    found = np.abs(predictor.saliency(autoregressive(500, phi=0.5, seed=2).prices)).mean((0, 1, 3))
    assert found.argmax() == 7
    assert found[7] > 3.0 * found[:7].max()


# Heads.


@pytest.mark.parametrize("head", [GaussianHead(), StudentTHead()])
def test_a_likelihood_is_a_density(head):
    outputs = torch.tensor([[[0.3, -0.2, 0.5][: head.n_outputs]]], dtype=torch.float64)

    def density(x):
        return math.exp(-float(head.loss(outputs, torch.tensor([[x]], dtype=torch.float64))))

    mass, _ = integrate.quad(density, -200.0, 200.0, limit=400, points=[0.0])
    assert mass == pytest.approx(1.0, abs=1e-3)
    (low, high) = head.quantiles(outputs, np.array([0.1, 0.8]))[0, 0]
    assert integrate.quad(density, low, high)[0] == pytest.approx(0.7, abs=1e-3)


def test_quantiles_never_cross_and_their_loss_is_least_at_the_truth():
    head = QuantileHead((0.1, 0.5, 0.9))
    outputs = torch.randn(100, 2, 3, generator=torch.Generator().manual_seed(0)) * 5.0
    assert (np.diff(head.quantiles(outputs, np.array([0.1, 0.5, 0.9])), axis=-1) >= 0.0).all()
    parameters = torch.zeros(1, 1, 3, requires_grad=True)
    target = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([parameters], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(parameters.expand(len(target), 1, 3), target).backward()
        optimizer.step()
    found = head.quantiles(parameters.detach(), np.array([0.1, 0.5, 0.9]))[0, 0]
    np.testing.assert_allclose(found, [-1.2816, 0.0, 1.2816], atol=0.05)
    with pytest.raises(ValueError, match="the levels this predictor learned"):
        head.quantiles(outputs, np.array([0.01]))
