"""Regimes as columns: made by the training segment, of bars up to each, the same bit by bit; hindsight gets nowhere."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.hiddenmarkov import GaussianHMM, JumpModel, OnlineHMM, OracleRegime, regime_features
from ml.tradingbots.components.meta_learning import RegimeColumns, with_regime_probabilities
from ml.tradingbots.components.regime_detector import SmoothedProbabilities
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import regime_switching
from ml.tradingbots.data.synthetic_gate import gate_features, switching_autoregression

ROOT = Path(__file__).parents[2]
PRICES = regime_switching(600, volatilities=(0.005, 0.02), seed=2).prices
TRAIN = PRICES.iloc[:400]


def fitted(n_regimes=2, **settings):
    return RegimeColumns(GaussianHMM(n_regimes=n_regimes, n_starts=2), **settings).fit(TRAIN)


def two_assets(n_bars=300):
    close = np.stack([regime_switching(n_bars, seed=seed).prices["close"] for seed in (1, 2)], 1)
    index = pd.date_range("2020-01-01", periods=n_bars, tz="UTC")
    return Bars(timestamps=index, assets=("a", "b"), close=close)


@pytest.mark.parametrize("n_regimes", [1, 2, 3])
def test_the_columns_are_what_the_detector_says_of_the_next_bar(n_regimes):
    columns = fitted(n_regimes)
    table = columns.add_to(PRICES)
    predicted = columns.detector.predict_next(regime_features(PRICES))
    names = [f"regime_p{k}" for k in range(n_regimes)]
    assert list(table.columns) == ["close", *names, "regime_entropy", "regime_novelty"] == ["close", *columns.names]
    assert (table[names].to_numpy()[1:] == predicted).all()
    assert table.iloc[0, 1:].isna().all()  # The first bar has no return.
    entropy = -np.sum(predicted * np.log(predicted), axis=1) / math.log(n_regimes) if n_regimes > 1 else 0.0
    np.testing.assert_allclose(table["regime_entropy"].to_numpy()[1:], entropy, atol=1e-12)


def test_the_detector_has_seen_training_bars_alone():
    alone = GaussianHMM(n_regimes=2, n_starts=2).fit(regime_features(TRAIN))
    assert (fitted().detector.means_ == alone.means_).all()


def test_bars_are_novel_where_enough_of_them_in_a_row_score_below_the_training_quantile():
    columns = fitted(novelty_bars=3)
    scores = columns.detector.predictive_log_scores(regime_features(PRICES))
    assert columns.novel_below == np.quantile(scores[:399], 0.01)
    # Returns of 20% a day, twice in a row and then five times: the market leaves what the detector knows.
    wild = PRICES.copy()
    wild["close"] = wild["close"].to_numpy() * np.cumprod(
        np.where(np.isin(np.arange(600), [450, 451, 500, 501, 502, 503, 504]), 1.2, 1.0)
    )
    found = columns.add_to(wild)["regime_novelty"].to_numpy()
    assert np.flatnonzero(found[440:520]).tolist() == [62, 63, 64]


def test_a_detector_without_scores_knows_no_novelty():
    columns = RegimeColumns(JumpModel(n_regimes=2), inputs=("log_return", "volatility:10")).fit(TRAIN)
    table = columns.add_to(PRICES)
    assert (table["regime_novelty"].iloc[10:] == 0.0).all()
    assert table["regime_p0"].isna().sum() == 10
    assert columns.novel_below == -math.inf


@pytest.mark.parametrize(
    "detector", [GaussianHMM(n_regimes=3, n_starts=1), OnlineHMM(n_regimes=2), JumpModel(n_regimes=2)]
)
def test_bars_one_by_one_give_the_bits_of_the_table(detector):
    columns = RegimeColumns(detector, novelty_bars=1).fit(TRAIN)
    table = columns.table(PRICES)
    rows = regime_features(PRICES).to_numpy()
    for _ in range(2):
        assert (np.array([columns.update(row) for row in rows]) == table[1:]).all()
        columns.reset()


def test_later_bars_change_nothing_before_them():
    columns = fitted()
    whole = columns.table(PRICES)
    for n_bars in (2, 100, 401, 599):
        found = columns.table(PRICES.iloc[:n_bars])
        assert found.tobytes() == whole[:n_bars].tobytes()
    changed = PRICES.copy()
    changed.iloc[500:] *= 1.5
    assert columns.table(changed)[:500].tobytes() == whole[:500].tobytes()


def test_a_function_may_choose_what_the_detector_is_shown():
    market = switching_autoregression(800, seed=1)
    columns = RegimeColumns(GaussianHMM(n_regimes=2, covariance="full"), inputs=gate_features).fit(market.prices)
    table = columns.add_to(market.prices)
    assert table["regime_p0"].isna().sum() == 2
    expected = columns.detector.predict_next(gate_features(market.prices))
    assert (table[["regime_p0", "regime_p1"]].to_numpy()[2:] == expected).all()


def test_every_asset_is_told_the_regime_of_the_one_named():
    bars = two_assets()
    columns = RegimeColumns(GaussianHMM(n_regimes=2, n_starts=1), asset="b").fit(bars)
    found = Bars.from_frame(columns.add_to(bars))
    alone = RegimeColumns(GaussianHMM(n_regimes=2, n_starts=1)).fit(bars.select("b")).table(bars.select("b"))
    for place, name in enumerate(columns.names):
        np.testing.assert_array_equal(found.extra[name], np.repeat(alone[:, [place]], 2, axis=1))
    with pytest.raises(ValueError, match="give asset"):
        RegimeColumns(GaussianHMM(n_regimes=2)).fit(bars)
    with pytest.raises(ValueError, match="give asset"):
        RegimeColumns(GaussianHMM(n_regimes=2), inputs=("log_return",)).fit(bars)


def test_probabilities_of_ones_own_become_the_same_columns():
    columns = fitted()
    expected = columns.add_to(PRICES)
    table = with_regime_probabilities(PRICES, expected[["regime_p0", "regime_p1"]].to_numpy())
    pd.testing.assert_frame_equal(table.drop(columns="regime_novelty"), expected.drop(columns="regime_novelty"))
    assert (table["regime_novelty"].iloc[1:] == 0.0).all()


@pytest.mark.parametrize(
    ("probabilities", "match"),
    [
        (np.full((599, 2), 0.5), "600 bars"),
        (np.full(600, 1.0), "n_regimes"),
        (np.full((600, 2), 0.6), "sum to 1"),
        (np.tile([1.5, -0.5], (600, 1)), "at least 0"),
        (np.full((600, 2), np.nan), "every bar"),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities, match):
    with pytest.raises(ValueError, match=match):
        with_regime_probabilities(PRICES, probabilities)


def test_hindsight_is_refused_wherever_it_is_offered():
    columns = fitted()
    smoothed = columns.detector.smooth_for_analysis(regime_features(PRICES))
    assert isinstance(smoothed, SmoothedProbabilities)
    with pytest.raises(TypeError, match="know the future"):
        with_regime_probabilities(PRICES, smoothed)
    for call in (columns.fit, columns.table, columns.add_to, columns.update):
        with pytest.raises(TypeError, match="know the future"):
            call(smoothed)
    with pytest.raises(TypeError, match="know the future"):
        RegimeColumns(GaussianHMM(n_regimes=2), inputs=lambda table: smoothed).fit(TRAIN)


def test_a_table_that_has_regimes_already_is_refused():
    columns = fitted()
    with pytest.raises(ValueError, match="regimes already"):
        columns.add_to(columns.add_to(PRICES))


def test_impossible_settings_are_refused():
    with pytest.raises(TypeError, match="regime detector"):
        RegimeColumns(GaussianHMM)
    with pytest.raises(TypeError, match="regime detector"):
        RegimeColumns("hmm")
    for novelty_bars in (0, 1.5, True):
        with pytest.raises(ValueError, match="novelty_bars"):
            RegimeColumns(GaussianHMM(n_regimes=2), novelty_bars=novelty_bars)
    for inputs in ("log_return", (), (1,), 5):
        with pytest.raises(ValueError, match="inputs"):
            RegimeColumns(GaussianHMM(n_regimes=2), inputs=inputs)
    with pytest.raises(RuntimeError, match="learned nothing"):
        RegimeColumns(GaussianHMM(n_regimes=2)).add_to(PRICES)
    with pytest.raises(ValueError, match="returned None"):
        RegimeColumns(GaussianHMM(n_regimes=2), inputs=lambda table: None).fit(TRAIN)
    with pytest.raises(ValueError, match="last bar"):
        RegimeColumns(GaussianHMM(n_regimes=2), inputs=lambda table: regime_features(table).iloc[:-1]).fit(TRAIN)


@pytest.mark.parametrize("inputs", [None, ("log_return", "volatility:10")])
def test_saved_columns_come_back_in_another_process(tmp_path, inputs):
    columns = RegimeColumns(GaussianHMM(n_regimes=2, n_starts=2), inputs=inputs, novelty_bars=2).fit(TRAIN)
    columns.update(np.full(1 if inputs is None else 2, 0.01))
    path = columns.save(tmp_path / "regimes.pt")
    np.save(tmp_path / "expected.npy", columns.table(PRICES))
    PRICES.to_parquet(tmp_path / "prices.parquet")
    program = f"""
import numpy as np, pandas as pd
from ml.tradingbots.components.meta_learning import RegimeColumns
columns = RegimeColumns.load({str(path)!r})
prices = pd.read_parquet({str(tmp_path / "prices.parquet")!r})
assert columns.table(prices).tobytes() == np.load({str(tmp_path / "expected.npy")!r}).tobytes()
assert columns.novelty_bars == 2 and columns.novel_below == {columns.novel_below!r}
print(columns.update(np.full({1 if inputs is None else 2}, 0.01)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Where it was in its history is in the file, too.
    assert eval(done.stdout) == columns.update(np.full(1 if inputs is None else 2, 0.01)).tolist()


def test_a_function_is_brought_again_after_loading(tmp_path):
    market = switching_autoregression(500, seed=1)
    columns = RegimeColumns(GaussianHMM(n_regimes=2), inputs=gate_features).fit(market.prices)
    path = columns.save(tmp_path / "regimes.pt")
    with pytest.raises(ValueError, match="gate_features"):
        RegimeColumns.load(path).add_to(market.prices)
    again = RegimeColumns.load(path, inputs=gate_features)
    assert again.table(market.prices).tobytes() == columns.table(market.prices).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"detector": torch.zeros(3)},
        {"detector": torch.zeros(3, dtype=torch.uint8)},
        {"inputs": [1]},
        {"inputs": ()},
        {"asset": 3},
        {"novelty_bars": 0},
        {"novel_below": math.nan},
        {"n_low": -1},
    ],
)
def test_damaged_files_are_refused(tmp_path, change):
    path = fitted().save(tmp_path / "regimes.pt")
    content = torch.load(path, weights_only=False)
    torch.save(content | change, path)
    with pytest.raises(CheckpointError):
        RegimeColumns.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = fitted().detector.save(tmp_path / "detector.pt")
    with pytest.raises(CheckpointError, match="regime detector"):
        RegimeColumns.load(path)


def test_an_oracle_may_say_the_regime():
    # For experiments: what would be earned if the regime were known.
    market = switching_autoregression(300, seed=1)
    prices = market.prices.assign(regime=market.regimes.astype(float))
    columns = RegimeColumns(OracleRegime(n_regimes=2), inputs=("regime",)).fit(prices)
    assert (columns.add_to(prices)["regime_p0"].to_numpy() > 0.5).tolist() == (market.regimes == 0).tolist()


def test_tables_longer_than_what_is_forgotten_agree_wherever_they_begin():
    detector = GaussianHMM.from_parameters([0.0, 0.001], [1e-4, 1.1e-4], [[0.99, 0.01], [0.03, 0.97]])
    columns = RegimeColumns(detector)
    needed = columns.bars_to_forget
    assert needed == math.ceil(math.log(0.01) / math.log(0.96))  # The other eigenvalue of the matrix.
    whole = columns.table(PRICES)[:, 0]
    off = [abs(columns.table(PRICES.iloc[-n - 1 :])[-1, 0] - whole[-1]) for n in (5, needed)]
    assert off[1] < 0.01 < off[0]


def test_what_is_forgotten_is_unknown_where_regimes_never_meet_or_there_is_no_matrix():
    apart = GaussianHMM.from_parameters([0.0, 0.001], [1e-4, 4e-4], np.eye(2))
    assert RegimeColumns(apart).bars_to_forget is None
    assert RegimeColumns(Foreign()).bars_to_forget is None
    alone = GaussianHMM.from_parameters([0.0], [1e-4], [[1.0]])
    assert RegimeColumns(alone).bars_to_forget == 1


class Foreign:
    """A detector that is not one of this library's."""

    n_regimes = 2
    answer: tuple[float, ...] = (0.4, 0.6)

    def fit(self, X):
        return self

    def predict_next(self, X=None):
        return np.tile(self.answer, (len(X), 1))

    def update(self, x):
        return np.array(self.answer)

    def reset(self):
        pass


@pytest.mark.parametrize("answer", [(0.4, 0.5), (math.nan, 1.0), (1.5, -0.5), (0.2, 0.3, 0.5)])
def test_detectors_of_ones_own_must_say_probabilities(answer):
    detector = Foreign()
    assert RegimeColumns(detector).table(PRICES)[-1, :2].tolist() == [0.4, 0.6]
    detector.answer = answer
    with pytest.raises(ValueError, match=r"Foreign\.predict_next must return"):
        RegimeColumns(detector).table(PRICES)


def test_probabilities_of_other_bars_than_the_table_are_refused():
    own = pd.DataFrame(np.tile([0.4, 0.6], (len(PRICES), 1)), index=PRICES.index)
    expected = with_regime_probabilities(PRICES, own.to_numpy())
    pd.testing.assert_frame_equal(with_regime_probabilities(PRICES, own), expected)
    for other in (own.iloc[::-1], own.shift(1, freq="D"), own.reset_index(drop=True)):
        with pytest.raises(ValueError, match="index of probabilities"):
            with_regime_probabilities(PRICES, other)
