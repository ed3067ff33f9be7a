"""Forecasts as features: fitted on earlier bars alone, the same whatever comes after, the same in production, and of use."""

import dataclasses
from statistics import median

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor, LSTMEnsemble
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.forecast_feature import ForecastFeature, FrozenForecast, with_forecasts
from ml.tradingbots.components.forecast_table import forward_returns
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.naive_predictors import DriftPredictor, RidgePredictor
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.serialization import CheckpointError, save_file
from ml.tradingbots.components.transformer_predictor import TransformerPricePredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.optimal import optimal_policy
from ml.tradingbots.data.sources import load_prices
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import RLTrainingConfig, audit_look_ahead, train_rl_agent, walk_forward_agents
from ml.tradingbots.training.live import target_weights
from ml.tradingbots.training.market_recipes import market_recipe
from ml.tradingbots.training.regret import TRAINING_RECIPE, gain_of_agent, gain_of_optimum, known_market

torch.set_num_threads(1)
PRICES = autoregressive(400, phi=0.4, seed=3).prices
BARS = Bars.from_frame(PRICES)
RIDGE = RidgePredictor(window_size=3)
NETWORKS = [
    LSTMPricePredictor(window_size=4, max_epochs=1, hidden_dim=8),
    CNNPricePredictor(window_size=4, max_epochs=1),
    TransformerPricePredictor(window_size=4, max_epochs=1, hidden_dim=16),
]
ENSEMBLES = [
    LSTMEnsemble(2, window_size=4, max_epochs=1, hidden_dim=8),
    EnsemblePricePredictor([RIDGE, DriftPredictor()], "weighted"),
]


def feature(predictor=RIDGE, **settings):
    return ForecastFeature(predictor, **{"train_size": 150, "refit_every": 60} | settings)


class Watched(RidgePredictor):
    """Keeps a note of every table that it is fitted on."""

    predictor_type = "watched"
    seen: list[Bars] = []  # noqa: RUF012 - of all clones together

    def fit(self, price_data, y=None, **settings):
        self.seen.append(price_data)
        return super().fit(price_data, y, **settings)


@pytest.fixture
def seen():
    Watched.seen.clear()
    return Watched.seen


# --- What a forecast may know


@pytest.mark.parametrize("settings", [{}, {"rolling": True}, {"refit_every": None}, {"output": "mean_over_spread"}])
def test_no_forecast_moves_by_a_bit_when_later_bars_change_or_go(settings):
    predictor = RidgePredictor(window_size=3, volatility_bars=10, features=("log_return", "momentum:5", "zscore:10"))
    made = feature(predictor, **settings)
    audit_look_ahead(made, PRICES, n_checks=10, truncation_tolerance=0.0).raise_for_leaks()


@pytest.mark.parametrize("predictor", [*NETWORKS, *ENSEMBLES], ids=lambda predictor: predictor.predictor_type)
def test_no_forecast_of_a_network_moves_by_a_bit_either(predictor):
    audit_look_ahead(feature(predictor), PRICES, n_checks=4, truncation_tolerance=0.0).raise_for_leaks()


@pytest.mark.parametrize("n_bars", [151, 209, 210, 211, 330, 399])
def test_the_column_of_a_shorter_table_is_the_beginning_of_the_longer_one(n_bars):
    np.testing.assert_array_equal(feature()(PRICES.iloc[:n_bars]), feature()(PRICES)[:n_bars])


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("horizons", [(1,), (1, 5)])
def test_every_fit_is_shown_the_bars_before_those_it_feeds_and_no_other(seen, rolling, horizons):
    column = feature(Watched(horizons=horizons), rolling=rolling, horizon=1)(PRICES)
    starts = [150, 210, 270, 330, 390]
    # With all labels among the bars shown, none ends at or after the first bar fed.
    assert [table.timestamps[-1] for table in seen] == [BARS.timestamps[start - 1] for start in starts]
    assert [table.n_bars for table in seen] == ([150] * 5 if rolling else starts)
    assert np.isnan(column[:150]).all()
    assert np.isfinite(column[150:]).all()


@pytest.mark.parametrize(("bar", "n_seen"), [(150, 150), (209, 150), (210, 210), (399, 390)])
def test_a_forecast_is_what_a_predictor_fitted_by_hand_says_with_what_is_known_then(bar, n_seen):
    by_hand = RidgePredictor(window_size=3).fit(PRICES.iloc[:n_seen])
    said = by_hand.predict(PRICES.iloc[: bar + 1], bars=[bar]).to_numpy()
    np.testing.assert_array_equal(feature()(PRICES)[bar], said[0])


def test_in_sample_forecasts_of_noise_look_like_skill_and_those_of_the_feature_do_not():
    in_sample, of_feature = [], []
    for seed in range(5):
        noise = Bars.from_frame(autoregressive(1_000, phi=0.0, seed=seed).prices)
        returns = forward_returns(noise, (1,))[:, 0, 0]
        memorises = RidgePredictor(window_size=60, alpha=0.0)
        said = memorises.fit(noise.slice(0, 250)).predict(noise).to_numpy()[:, 0]  # From bar 60 on.
        in_sample.append(np.corrcoef(said[:189], returns[60:249])[0, 1])
        column = feature(memorises, train_size=250, refit_every=250)(noise)[:, 0]
        of_feature.append(np.corrcoef(column[250:-1], returns[250:-1])[0, 1])
    # 60 slopes on 189 rows explain 60/189 of any noise: a correlation of about 0.56. Of 750 unseen bars it has a standard
    # deviation of 1/√750 = 0.037; five of those are beyond chance.
    assert min(in_sample) > 0.4
    assert np.abs(of_feature).max() < 5.0 * 0.037


# --- Fits are made once


def test_environments_over_the_same_prices_fit_nothing_again(seen):
    made = feature(Watched())
    config = TradingEnvConfig(window_size=3)
    first, second = (TradingEnvironment(prices, config, extra_features={"f": made}) for prices in (PRICES, BARS))
    assert len(seen) == 5
    assert first.market.fingerprint() == second.market.fingerprint()


def test_added_bars_cost_the_fits_that_they_make_due_and_no_other(seen):
    made = feature(Watched())
    made(PRICES.iloc[:300])
    assert len(seen) == 3
    made(PRICES)
    assert [table.n_bars for table in seen[3:]] == [330, 390]


def test_another_price_is_another_fit(seen):
    made = feature(Watched())
    made(PRICES)
    changed = PRICES.copy()
    changed.iloc[329, :] *= 1.001
    made(changed)
    assert [table.n_bars for table in seen[5:]] == [330, 390]


def test_the_predictor_given_stays_as_it_is():
    given = RidgePredictor(window_size=3)
    made = feature(given)
    made(PRICES)
    assert not given.__sklearn_is_fitted__()
    given.set_params(window_size=9)
    np.testing.assert_array_equal(made(PRICES), feature()(PRICES))


# --- What it says


def test_outputs_are_the_mean_a_quantile_and_the_mean_in_units_of_its_spread():
    predictor = RidgePredictor(window_size=2, horizons=(1, 5))
    fitted = predictor.fit(PRICES.iloc[:150])
    levels = (0.05, 0.15865525393145707, 0.8413447460685429)  # Normal quantiles at one deviation below and above.
    mean = fitted.predict(PRICES)["asset", 5].to_numpy()[-250:]
    low, below, above = fitted.predict_quantiles(PRICES, levels)["asset"][5].to_numpy()[-250:].T
    expected = {"mean": mean, "quantile:0.05": low, "mean_over_spread": mean / (0.5 * (above - below))}
    for output, values in expected.items():
        column = feature(predictor, refit_every=None, horizon=5, output=output)(PRICES)
        np.testing.assert_array_equal(column[150:, 0], values)


def test_every_asset_has_its_own_forecasts_and_assets_may_be_reordered(make_prices):
    prices = make_prices(300, 3)
    frozen = feature().freeze(prices)
    column = frozen(prices)
    by_hand = RidgePredictor(window_size=3).fit(prices.iloc[:150]).predict(prices, bars=np.arange(150, 210))
    np.testing.assert_array_equal(column[150:210], by_hand.to_numpy())
    np.testing.assert_array_equal(frozen(Bars.from_frame(prices).select(["CCC", "AAA", "BBB"])), column[:, [2, 0, 1]])


# --- The environment and what trains in it


def test_the_environment_sees_the_same_as_a_function_and_as_a_column():
    config = TradingEnvConfig(window_size=3)
    of_function = Market(PRICES, config, {"forecast": feature()})
    of_column = Market(with_forecasts(PRICES, {"forecast": feature()}), config)
    assert of_function.feature_names == of_column.feature_names == ("log_return", "forecast")
    assert of_function.fingerprint() == of_column.fingerprint()
    assert of_function.first_bar == 150 + 3 - 1  # The bars of the first fit are warm-up.


def test_a_table_with_forecasts_holds_what_it_held_before(make_prices):
    prices = make_prices(200, 2, volume=True, extra=True)
    before, after = Bars.from_frame(prices), Bars.from_frame(with_forecasts(prices, {"f": feature(), "g": feature()}))
    assert (after.assets, after.fields) == (before.assets, before.fields)
    assert list(after.extra) == ["signal", "f", "g"]
    np.testing.assert_array_equal(after.extra["signal"], before.extra["signal"])
    np.testing.assert_array_equal(after.close, before.close)


def tiny_agent(env, seed):
    config = SACConfig(hidden_dim=8, batch_size=8, learning_starts=20, buffer_size=500)
    return create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, config, seed=seed)


TRAINING = RLTrainingConfig(total_timesteps=40, n_envs=2, progress=False)


def test_prices_after_a_fold_change_nothing_that_agents_with_forecasts_live_in_it():
    splitter = WalkForwardValidator(train_size=250, test_size=60)

    def runs(prices):
        table = with_forecasts(prices, {"forecast": feature()})
        config = TradingEnvConfig(window_size=3, features=(), episode_length=10)
        return walk_forward_agents(tiny_agent, table, config, TRAINING, splitter, n_seeds=1, n_bootstrap=0).runs

    changed = PRICES.copy()
    changed.iloc[310:] *= np.linspace(1.0, 2.0, 90)[:, None]
    before, after = runs(PRICES), runs(changed)
    pd.testing.assert_frame_equal(before.loc[[0]], after.loc[[0]], check_exact=True)
    assert not before.loc[[1]].equals(after.loc[[1]])


def test_an_agent_decides_live_with_frozen_forecasts_what_it_decides_with_all_fits_made_anew(tmp_path):
    config = TradingEnvConfig(window_size=3)
    env = TradingEnvironment(PRICES, config, extra_features={"forecast": feature()})
    agent = tiny_agent(env, 0)
    train_rl_agent(agent, env, TRAINING)
    feature().freeze(PRICES).save(tmp_path / "forecast.pt")
    loaded = FrozenForecast.load(tmp_path / "forecast.pt")
    # Bars that came later, in a file as `tradingbots act --prices` takes it; the next fit is due at bar 450.
    later = autoregressive(430, phi=0.4, seed=3).prices
    with_forecasts(later, {"forecast": loaded}).to_parquet(tmp_path / "now.parquet")
    live = target_weights(agent, load_prices(str(tmp_path / "now.parquet")))
    anew = target_weights(agent, Market(later, config, {"forecast": feature()}))
    assert live.timestamp == later.index[-1]
    assert live.to_dict() == anew.to_dict()


# Seeds 0 to 4 gave after 32,000 timesteps 1.01, 0.91, 0.99, 1.00 and 0.99, with shuffled forecasts -0.05 to -0.01; after
# 200,000 1.00, 0.98, 0.96, 1.00 and 1.00, with shuffled ones -0.05 to 0.18. The last is no leak: the drift of the weight held
# tells the last return, and that agent earns 0.16 with a constant in the place of forecasts too. The standard error is 0.03.
def share_of_optimum(seed, *, total_timesteps, shuffled=False):
    """Train PPO on the forecast of a ridge regression alone; its gain on unseen bars over that of the optimal policy."""
    config = TradingEnvConfig(window_size=1, episode_length=500, features=(), commission=0.0005)
    train, test = (_with_column(n, seed + first, shuffled) for n, first in ((30_000, 1_000), (50_000, 2_000)))
    env = TradingEnvironment(train.prices, config)
    agent = create_rl_agent("ppo", env.observation_space_dim, 1, market_recipe("ppo", discount=0.9), seed=seed)
    training = dataclasses.replace(TRAINING_RECIPE, total_timesteps=total_timesteps, seed=seed)
    train_rl_agent(agent, env.vectorize(training.n_envs, seed=seed, random_start=True), training)
    best = optimal_policy(test.parameters, cost_rate=0.0005, discount=0.9)
    return gain_of_agent(agent, test, config).gains.mean() / gain_of_optimum(best, test, config).gains.mean()


def _with_column(n_bars, seed, shuffled):
    market = known_market("ar1", n_bars, seed=seed)
    made = ForecastFeature(RidgePredictor(window_size=2), train_size=1_000, refit_every=5_000)
    table = with_forecasts(market.prices, {"forecast": made})
    if shuffled:
        known = table["forecast"].to_numpy()[1_000:]
        table.iloc[1_000:, table.columns.get_loc("forecast")] = np.random.default_rng(seed).permutation(known)
    return dataclasses.replace(market, prices=table)


def test_an_agent_earns_most_of_the_optimum_with_nothing_but_forecasts_and_nothing_with_shuffled_ones():
    informed = [share_of_optimum(seed, total_timesteps=32_000) for seed in range(3)]
    misled = [share_of_optimum(seed, total_timesteps=32_000, shuffled=True) for seed in range(3)]
    assert median(informed) > 0.85
    assert median(misled) < 0.1


@pytest.mark.learning
def test_an_agent_with_nothing_but_forecasts_reaches_the_optimum():
    assert median(share_of_optimum(seed, total_timesteps=200_000) for seed in range(5)) > 0.95
    assert median(share_of_optimum(seed, total_timesteps=200_000, shuffled=True) for seed in range(5)) < 0.2


# --- Frozen, and in files


@pytest.mark.parametrize("predictor", [RIDGE, *NETWORKS, *ENSEMBLES], ids=lambda predictor: predictor.predictor_type)
def test_what_was_saved_says_the_same_to_the_bit(tmp_path, predictor):
    made = feature(predictor, output="mean_over_spread")
    made.freeze(PRICES).save(tmp_path / "forecast.pt")
    loaded = FrozenForecast.load(tmp_path / "forecast.pt")
    assert (loaded.horizon, loaded.output, len(loaded.predictors)) == (1, "mean_over_spread", 5)
    np.testing.assert_array_equal(loaded(PRICES), made(PRICES))


def test_frozen_forecasts_go_on_with_the_last_fit():
    frozen = feature().freeze(PRICES.iloc[:300])
    last = RidgePredictor(window_size=3).fit(PRICES.iloc[:270]).predict(PRICES, bars=np.arange(270, 400))
    np.testing.assert_array_equal(frozen(PRICES)[270:], last.to_numpy())


@pytest.mark.parametrize("predictor", [RIDGE, *NETWORKS], ids=lambda predictor: predictor.predictor_type)
@pytest.mark.parametrize("first", [100, 140, 170, 207, 333])
def test_frozen_forecasts_are_the_same_to_the_bit_in_a_table_that_begins_later(predictor, first):
    prices = autoregressive(500, phi=0.4, seed=3).prices
    frozen = feature(predictor, refit_every=100).freeze(prices)
    whole, late = frozen(prices)[first:], frozen(prices.iloc[first:])
    known = np.isfinite(late[:, 0])
    # From 64 windows on: with fewer, networks may answer with other roundings.
    known[:68] = False
    assert known[68:].sum() == len(known) - max(68, 150 - first)
    np.testing.assert_array_equal(late[known], whole[known])


def test_a_table_that_begins_just_before_a_predictor_takes_over_is_undefined_until_a_window_is_full():
    frozen = feature(RidgePredictor(window_size=6)).freeze(PRICES)
    column = frozen(PRICES.iloc[207:])  # Three bars of one predictor, then the next.
    assert np.isnan(column[:6]).all()  # Six returns need seven closes.
    np.testing.assert_array_equal(column[6:], frozen(PRICES)[213:])


def test_a_fitted_predictor_of_ones_own_feeds_the_bars_from_an_instant_on():
    fitted = RidgePredictor(window_size=3).fit(PRICES.iloc[:200])
    column = FrozenForecast({PRICES.index[200]: fitted})(PRICES)
    assert np.isnan(column[:200]).all()
    np.testing.assert_array_equal(column, feature(train_size=200, refit_every=None)(PRICES))


def test_files_may_hold_predictors_of_a_class_of_ones_own(tmp_path, seen):
    made = feature(Watched())
    made.freeze(PRICES).save(tmp_path / "forecast.pt")
    loaded = FrozenForecast.load(tmp_path / "forecast.pt", predictor_class=Watched)
    np.testing.assert_array_equal(loaded(PRICES), made(PRICES))
    with pytest.raises(CheckpointError, match=r"a predictor is a 'watched'; known are lstm"):
        FrozenForecast.load(tmp_path / "forecast.pt")


CONTENT = {"starts": ["2020-01-01T00:00:00+00:00"], "assets": ("asset",), "horizon": 1, "output": "mean"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": ["2020-01-01"]}, "an instant must be a date and time with its zone"),
        ({"starts": [3]}, "an instant must be"),
        ({"starts": []}, "is longer than argument 1"),
        ({"assets": ()}, "assets must be names"),
        ({"horizon": 2}, "horizon must be one of the predictor's, 1, got 2"),
        ({"output": "median"}, "output must be"),
        ({"predictors": [("ridge", torch.zeros(3))]}, "a predictor must be the bytes of its file"),
        ({"predictors": [("ridge", torch.zeros(3, dtype=torch.uint8))]}, "is not a readable checkpoint"),
        ({"predictors": ["ridge"]}, "holds no whole forecast feature"),
        ({"horizon": "1"}, "entry 'horizon' is a str"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, change, message):
    whole = feature().freeze(PRICES.iloc[:160]).save(tmp_path / "whole.pt")
    predictors = torch.load(whole, weights_only=True)["predictors"]
    save_file(tmp_path / "broken.pt", "forecast feature", CONTENT | {"predictors": predictors} | change)
    with pytest.raises(CheckpointError, match=message):
        FrozenForecast.load(tmp_path / "broken.pt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    save_file(tmp_path / "other.pt", "predictor", {})
    with pytest.raises(
        CheckpointError, match="holds a 'predictor', not a forecast feature: load it with load_predictor"
    ):
        FrozenForecast.load(tmp_path / "other.pt")


# --- Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 1}, "train_size must be an integer of 2 or more, got 1"),
        ({"train_size": 150.0}, "train_size must be an integer"),
        ({"refit_every": 0}, "refit_every must be an integer of 1 or more, got 0"),
        ({"horizon": 2}, "horizon must be one of the predictor's, 1, got 2"),
        ({"output": "median"}, "output must be 'mean', 'mean_over_spread' or 'quantile:LEVEL'"),
        ({"output": "quantile:1.5"}, r"with a level in \(0, 1\), got 'quantile:1.5'"),
        ({"predictor": RidgePredictor(horizons=(1, 5))}, "horizon must be one of the predictor's, 1, 5, got None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        feature(**settings)


@pytest.mark.parametrize("given", [RidgePredictor, lambda: RidgePredictor(), "ridge"])
def test_what_is_no_predictor_is_refused(given):
    with pytest.raises(TypeError, match=r"predictor must be a predictor such as RidgePredictor\(window_size=5\)"):
        feature(given)


def test_a_training_size_too_small_for_the_predictor_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"the fit on the 10 bars before .* was refused \(train_size=10\): price_data has"
    ):
        feature(RidgePredictor(window_size=30), train_size=10)(PRICES)


def test_a_table_that_ends_before_the_first_forecast_is_refused():
    with pytest.raises(ValueError, match=r"a ForecastFeature with train_size=150 needs at least 151 bars, got 150"):
        feature()(PRICES.iloc[:150])


def test_other_assets_than_those_fitted_on_are_refused(make_prices):
    frozen = feature().freeze(make_prices(300, 2))
    with pytest.raises(ValueError, match="the forecasts are of the assets AAA, BBB, price_data has AAA, BBB, CCC"):
        frozen(make_prices(300, 3))


def test_a_column_that_the_predictor_reads_and_the_table_lacks_is_refused(make_prices):
    prices = make_prices(300, extra=True)
    frozen = feature(RidgePredictor(features=("signal",))).freeze(prices)
    with pytest.raises(ValueError, match="unknown feature 'signal'"):
        frozen(prices.drop(columns="signal"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("signal", "the table has a column 'signal' already; choose another name"),
        ("Close", "a feature cannot be called 'Close', which is a column of prices"),
        ("Adj Close", "a feature cannot be called 'Adj Close'"),
    ],
)
def test_a_name_that_is_taken_is_refused(make_prices, name, message):
    with pytest.raises(ValueError, match=message):
        with_forecasts(make_prices(300, extra=True), {name: feature()})


def test_an_extra_feature_with_the_name_of_another_feature_is_refused():
    with pytest.raises(ValueError, match="extra feature 'log_return' has the name of another feature"):
        Market(PRICES, TradingEnvConfig(), {"log_return": feature()})


def test_predictors_out_of_order_and_none_at_all_are_refused():
    fitted = RidgePredictor().fit(PRICES)
    with pytest.raises(ValueError, match="must be in the order of their instants"):
        FrozenForecast({"2021-01-01": fitted, "2020-01-01": fitted})
    with pytest.raises(ValueError, match="predictors is empty"):
        FrozenForecast({})


def test_predictors_that_look_ahead_differently_far_are_refused():
    near, far = (RidgePredictor(horizons=(horizon,)).fit(PRICES) for horizon in (1, 5))
    with pytest.raises(ValueError, match="horizon must be one of the predictor's, 5, got 1"):
        FrozenForecast({"2020-01-01": near, "2021-01-01": far})


def test_both_kinds_say_what_they_are():
    assert repr(feature()).startswith("ForecastFeature(RidgePredictor(window_size=3), train_size=150, refit_every=60,")
    assert repr(feature().freeze(PRICES)).startswith("FrozenForecast(5 × ridge from 19")
