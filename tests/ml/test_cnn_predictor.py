"""The CNN on images finds what only a chart shows, keeps every promise of a predictor, and refuses what no image can hold.

Its promises on series are in `test_predictors.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from ml.tradingbots.components.cnn_predictor import CNNConfig, CNNPricePredictor
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor
from ml.tradingbots.components.naive_predictors import DriftPredictor
from ml.tradingbots.training.look_ahead import audit_look_ahead

ROOT = Path(__file__).parents[2]
SMALL = {"input": "image", "window_size": 5, "image_height": 16, "vertical_stride": 1, "n_filters": (8, 8)}
PLAIN = {"volume": False, "moving_average": False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes):
    return CNNPricePredictor(**(SMALL | {"max_epochs": 2, "batch_size": 64} | changes))


def prices(n_bars=300, *, seed=1, n_assets=1, tell=0.0):
    """Bars whose close lies near their high or near their low by the toss of a coin that body and past do not show.

    The next log return is `tell` times 1% where it lies near the high, the negative of it where near the low, plus noise of 1%:
    the best forecast explains tell² / (1 + tell²) of its variance, and closes alone explain nothing.
    """
    frames = {}
    for number in range(n_assets):
        rng = np.random.default_rng([seed, number])
        near_high = rng.random(n_bars) < 0.5
        signal = np.roll(np.where(near_high, 0.01, -0.01), 1)
        close = 100.0 * np.exp(np.cumsum(tell * signal + 0.01 * rng.standard_normal(n_bars)))
        opening = np.concatenate([close[:1], close[:-1]])
        above, below = np.where(near_high, 0.002, 0.02), np.where(near_high, 0.02, 0.002)
        columns = {
            "open": opening,
            "high": np.maximum(opening, close) * np.exp(above),
            "low": np.minimum(opening, close) * np.exp(-below),
            "close": close,
            "volume": rng.lognormal(10.0, 0.5, n_bars),
        }
        index = pd.date_range("2020-01-01", periods=n_bars, freq="B")
        frames[f"A{number}"] = pd.DataFrame(columns, index=index)
    return frames["A0"] if n_assets == 1 else pd.concat(frames, axis=1)


# Learning.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_show_what_closes_do_not(seed):
    train, test = prices(4_000, seed=10 + seed, tell=1.0), prices(6_000, seed=20 + seed, tell=1.0)
    learning = {"max_epochs": 10, "batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.1, "dropout": 0.3}
    learner = CNNPricePredictor(**SMALL | PLAIN | learning, seed=seed).fit(train)
    # The optimum is 0.5, known to 0.01 from 6,000 bars; seeds reach 0.88 of it and more.
    assert learner.score(test) > 0.8 * 0.5
    # And it knows where: at the last bar, twice as much as anywhere else, less what chance in the weights adds elsewhere.
    found = np.abs(learner.saliency(test, bars=np.arange(100, 400))).sum((0, 1, 2)).reshape(5, 3).sum(1)
    assert found[4] > 1.5 * found[:4].max()


def test_closes_alone_explain_nothing_of_it():
    train, test = prices(4_000, seed=10, tell=1.0), prices(6_000, seed=20, tell=1.0)
    blind = CNNPricePredictor(window_size=5, n_filters=(8, 8), max_epochs=6).fit(train)
    # A fit on 3,200 bars with 500 weights costs up to a percent, and chance in 6,000 bars a tenth of that.
    assert -0.02 < blind.score(test) < 0.005


# The protocol.


def test_it_speaks_as_other_predictors_do():
    frame = prices(n_assets=2)
    predictor = small(horizons=(1, 5), volatility_bars=10).fit(frame)
    mean = predictor.predict(frame)
    assert mean.columns.tolist() == [("A0", 1), ("A0", 5), ("A1", 1), ("A1", 5)]
    assert len(mean) == 300 - 10  # The volatility is known from bar 10 on, the chart from bar 8.
    spread = predictor.predict_quantiles(frame, (0.1, 0.9)).to_numpy().reshape(len(mean), 4, 2)
    assert (spread[..., 0] < spread[..., 1]).all()
    assert clone(predictor).get_params() == predictor.get_params()
    assert np.isfinite(predictor.score(frame))
    # Both assets are read with the same eyes, and assets never seen too.
    alone = frame["A1"].rename(columns=str)
    assert np.allclose(predictor.predict(alone), mean["A1"], rtol=1e-5, atol=1e-9)


def test_prices_in_cents_get_the_same_forecasts_as_in_dollars():
    frame = prices()
    predictor = small().fit(frame)
    in_cents = frame.mul({"open": 100.0, "high": 100.0, "low": 100.0, "close": 100.0, "volume": 1.0})
    assert predictor.predict(in_cents).equals(predictor.predict(frame))


def test_no_image_knows_what_comes_after_it():
    frame = prices(200, n_assets=2)
    audit_look_ahead(small(volatility_bars=10).fit(frame), frame, n_checks=5).raise_for_leaks()
    before = small().render_image(frame, 100, asset="A1")
    assert (small().render_image(frame.iloc[:101], 100, asset="A1") == before).all()


def test_the_same_seed_gives_the_same_bits():
    frame = prices()
    one, two, other = (small(seed=seed, dropout=0.5).fit(frame).predict(frame) for seed in (3, 3, 4))
    assert one.equals(two)
    assert not one.equals(other)


def test_a_fit_on_images_that_was_cut_ends_as_if_it_had_not_been(tmp_path):
    frame, settings = prices(), {"max_epochs": 5, "dropout": 0.5}
    whole = small(**settings).fit(frame)

    class Cut(Exception):
        pass

    def stop(report):
        if report.epoch == 2:
            raise Cut

    with pytest.raises(Cut):
        small(**settings).fit(frame, checkpoint=tmp_path / "fit.pt", report=stop)
    resumed = small(**settings).fit(frame, checkpoint=tmp_path / "fit.pt")
    assert resumed.predict(frame).equals(whole.predict(frame))
    assert resumed.history_["val_loss"].equals(whole.history_["val_loss"])
    # Volume is no feature and no target, yet it is drawn: another volume is another fit.
    with pytest.raises(ValueError, match="belongs to a fit with other data"):
        small(**settings).fit(frame.assign(volume=1.0), checkpoint=tmp_path / "fit.pt")


def test_a_file_forecasts_from_images_the_same_bits_in_another_process(tmp_path):
    frame = prices(n_assets=2)
    predictor = small(head="point").fit(frame)
    predictor.save(tmp_path / "predictor.pt")
    frame.to_pickle(tmp_path / "frame.pkl")
    code = (
        "import sys, torch, pandas as pd; torch.set_num_threads(1)\n"
        "from ml.tradingbots.components.cnn_predictor import CNNPricePredictor as P\n"
        "folder = sys.argv[1]; p = P().load(folder + '/predictor.pt'); f = pd.read_pickle(folder + '/frame.pkl')\n"
        "p.predict_quantiles(f, (0.1, 0.9)).to_pickle(folder + '/out.pkl')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=environment)
    assert pd.read_pickle(tmp_path / "out.pkl").equals(predictor.predict_quantiles(frame, (0.1, 0.9)))


def test_an_ensemble_asks_it_only_where_it_has_an_image():
    frame = prices()
    ensemble = EnsemblePricePredictor({"chart": small(max_epochs=1), "drift": DriftPredictor()}, "weighted").fit(frame)
    assert len(ensemble.predict(frame)) == 300 - 8


# What can be looked at.


def test_the_image_of_a_bar_is_the_one_that_its_forecast_is_made_from():
    frame = prices(n_assets=2)
    predictor = small()
    image = predictor.render_image(frame, 50, asset="A1")
    assert image.shape == (16, 15)
    assert set(np.unique(image)) == {0, 255}
    saliency = predictor.fit(frame).saliency(frame, bars=[50, 60])
    assert saliency.shape == (2, 2, 16, 15)
    assert (saliency[0, 1][image == 0] == 0.0).all()
    assert (saliency[0, 1] != 0.0).any()


def test_an_image_of_nobody_or_of_no_full_window_is_refused():
    frame = prices(n_assets=2)
    for asset in (None, "A7"):
        with pytest.raises(ValueError, match=f"asset must be one of A0, A1, got {asset!r}"):
            small().render_image(frame, 50, asset=asset)
    with pytest.raises(ValueError, match="they must lie in \\[8, 299\\]"):
        small().render_image(frame, 7, asset="A0")
    with pytest.raises(ValueError, match="looks at no images"):
        CNNPricePredictor().render_image(frame, 50, asset="A0")


# What is refused.


def test_a_column_that_images_need_is_named_when_fitting_and_when_forecasting():
    frame = prices()
    predictor = small().fit(frame)
    for name in ("open", "high", "low", "volume"):
        for act in (small().fit, predictor.predict):
            with pytest.raises(ValueError, match=f"price_data has no column '{name}'"):
                act(frame.drop(columns=name))
    reordered = frame[frame.columns[::-1]]
    assert predictor.predict(reordered).equals(predictor.predict(frame))
    assert len(small(volume=False).fit(frame.drop(columns="volume")).predict(frame)) == 300 - 8
    assert len(small(volume=False, moving_average=False).fit(frame).predict(frame)) == 300 - 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_height": 7}, "image_height must be at least 8"),
        ({"n_filters": (8,) * 5}, "leave a row after all layers, got 16 with 5 layers"),
        ({"vertical_stride": 0}, "vertical_stride must be at least 1"),
        ({"features": ("close_location",)}, "features are not looked at with input='image'"),
        ({"asset_dim": 2}, "asset_dim must be 0 with input='image'"),
        ({"input": "picture"}, "input must be one of series, image"),
    ],
)
def test_settings_that_make_no_image_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(("bars", "last_rows", "n_inputs"), [(5, 8, 15_360), (20, 2, 30_720), (60, 2, 184_320)])
def test_the_papers_settings_give_networks_of_its_size(bars, last_rows, n_inputs):
    config = CNNConfig.jiang_kelly_xiu(bars, horizons=(5,))
    assert config.rows_of_layers[-1] == last_rows
    # 15,360 and 184,320 are the paper's; its gaps within filters leave a third row to images of 20 bars.
    network = CNNPricePredictor(config)._new_network(6, 2)
    assert network.head.in_features == n_inputs
    assert network(torch.zeros(2, 1, config.image_height, 3 * bars, dtype=torch.uint8)).shape == (2, 2)
    with pytest.raises(ValueError, match="window_size must be one of 5, 20, 60, got 10"):
        CNNConfig.jiang_kelly_xiu(10)


class Watched(CNNPricePredictor):
    """Notes how many images each step of its fit normalises together."""

    def _new_network(self, n_features, n_outputs):
        network = super()._new_network(n_features, n_outputs)
        self.sizes = []
        first = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
        first.register_forward_hook(
            lambda module, inputs, _: self.sizes.append(len(inputs[0])) if module.training else None
        )
        return network


def test_batch_normalisation_sees_the_whole_batch_however_large():
    watched = Watched(**(SMALL | {"n_filters": (64, 8)}), max_epochs=1, batch_size=150)
    watched.fit(prices(260))
    assert set(watched.sizes[:-1]) == {150}
    assert max(watched.sizes) == 150
