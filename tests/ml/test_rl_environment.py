"""One account walks hand-made prices: what it sees, when it trades, what it pays and how its episodes end."""

import math

import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.data.bars import SECONDS_PER_YEAR, Bars

# Prices, weights and equity are float64 products of a few factors.
CLOSE_TO = {"rel": 1e-12, "abs": 1e-15}
YEAR_OF_ONE_DAY = 24 * 3600 / SECONDS_PER_YEAR


def table(close, open_=None, *, freq="D", **columns):
    index = pd.date_range("2024-01-01", periods=len(close), freq=freq)
    opens = {} if open_ is None else {"open": open_}
    return pd.DataFrame({**opens, "close": close, **columns}, index=index, dtype=float)


def two_assets(first, second, **fields):
    index = pd.date_range("2024-01-01", periods=len(first), freq="D")
    return pd.DataFrame({"AAA": first, "BBB": second, **fields}, index=index, dtype=float)


def make(price_data, *, seed=0, extra_features=None, **settings):
    settings = {"window_size": 1, "commission": 0.0, **settings}
    env = TradingEnvironment(price_data, TradingEnvConfig(**settings), extra_features=extra_features)
    env.reset(seed=seed)
    return env


def walk(env, actions):
    """Step through the actions; return the lists of rewards and infos."""
    rewards, infos = [], []
    for action in actions:
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
    return rewards, infos


def target(*weight):
    return np.array(weight, dtype=np.float64)


# Spaces and dimensions.


def test_a_continuous_action_is_a_target_weight_per_asset(make_prices):
    env = make(make_prices(60, 3), max_weight=0.5)
    assert env.action_space == spaces.Box(np.float32(-0.5), np.float32(0.5), (3,), np.float32)
    assert env.action_space_dim == 3


def test_a_long_only_action_space_begins_at_zero(make_prices):
    env = make(make_prices(60), allow_short=False)
    assert env.action_space == spaces.Box(np.float32(0.0), np.float32(1.0), (1,), np.float32)


def test_a_discrete_action_is_one_of_three(make_prices):
    env = make(make_prices(60), action_type="discrete")
    assert env.action_space == spaces.Discrete(3)
    assert env.action_space_dim == 3


def test_a_discrete_portfolio_chooses_per_asset(make_prices):
    env = make(make_prices(60, 3), action_type="discrete")
    assert env.action_space == spaces.MultiDiscrete([3, 3, 3])
    assert env.action_space_dim == 9


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("delay", [0, 2])
def test_the_observation_has_the_length_the_table_says(make_prices, n_assets, delay):
    env = make(
        make_prices(60, n_assets, extra=True),
        window_size=7,
        features=("log_return", "momentum:5"),
        execution_delay=delay,
    )
    expected = 7 * n_assets * 3 + n_assets + n_assets + 1 + n_assets * delay
    observation, _ = env.reset(seed=0)
    assert env.observation_space_dim == expected
    assert observation.shape == env.observation_space.shape == (expected,)
    assert observation.dtype == np.float32


# Observation, index by index.


def test_the_window_shows_the_last_bars_oldest_first(make_prices):
    frame = make_prices(12)
    env = make(frame, window_size=3)
    log_returns = np.diff(np.log(frame["close"].to_numpy()))
    env.step(target(0.0))
    observation = env.step(target(0.0))[0]
    # The first window of three log returns ends at bar 3, and two bars were walked.
    np.testing.assert_allclose(observation[:3], log_returns[2:5], rtol=1e-6)  # float32


def test_a_row_of_the_window_has_assets_major_and_features_minor():
    frame = two_assets([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    code = {"bar_and_asset": lambda bars: 10.0 * np.arange(4)[:, None] + np.array([1.0, 2.0])}
    env = make(frame, window_size=2, features=("log_return",), extra_features=code)
    observation = env.step(target(0.0, 0.0))[0]
    rows = observation[: 2 * 2 * 2].reshape(2, 2, 2)
    np.testing.assert_array_equal(rows[:, :, 1], [[21.0, 22.0], [31.0, 32.0]])
    np.testing.assert_allclose(rows[0, :, 0], np.log([3.0 / 2.0, 7.0 / 6.0]), rtol=1e-6)  # float32


def test_the_first_decision_is_at_the_first_full_window_of_defined_features(make_prices):
    env = make(make_prices(40), window_size=5, features=("momentum:10",))
    # Momentum of 10 bars is defined from bar 10; five of them are known at bar 14.
    assert env.reset(seed=0)[1]["bar"] == 14


def test_the_account_part_of_one_asset_is_weight_unrealised_return_and_drawdown():
    env = make(table([10.0, 10.0, 10.0, 12.0, 9.0]))
    env.step(target(0.5))
    observation = env.step(np.array([np.nan]))[0]
    # 50 in cash and 50 in the asset, which becomes 60.
    np.testing.assert_allclose(observation[1:], [60.0 / 110.0, 0.2, 0.0], rtol=1e-6)  # float32
    observation = env.step(np.array([np.nan]))[0]
    # The 60 become 45.
    np.testing.assert_allclose(observation[1:], [45.0 / 95.0, -0.1, 15.0 / 110.0], rtol=1e-6)


def test_the_unrealised_return_of_a_short_rises_when_the_price_falls():
    env = make(table([10.0, 10.0, 8.0]))
    observation = env.step(target(-0.5))[0]
    assert observation[2] == pytest.approx(0.2, rel=1e-6)


def test_the_account_part_of_a_portfolio_is_weights_unrealised_returns_and_drawdown():
    env = make(two_assets([10.0, 10.0, 12.0, 12.0], [10.0, 10.0, 10.0, 5.0]))
    env.step(target(0.5, 0.5))
    observation = env.step(target(np.nan, np.nan))[0]
    np.testing.assert_allclose(observation[2:], [60.0 / 85.0, 25.0 / 85.0, 0.2, -0.5, 25.0 / 110.0], rtol=1e-6)


def test_targets_under_way_are_shown_oldest_first():
    env = make(table([10.0] * 9), execution_delay=2)
    env.step(target(0.3))
    observation = env.step(target(0.6))[0]
    np.testing.assert_allclose(observation[1:], [0.0, 0.0, 0.0, 0.3, 0.6], rtol=1e-6)


def test_where_no_order_is_under_way_the_weight_held_is_shown():
    env = make(table([10.0] * 9), execution_delay=2)
    walk(env, [target(0.3), target(np.nan)])
    observation = env.step(target(np.nan))[0]
    np.testing.assert_allclose(observation[1:], [0.3, 0.0, 0.0, 0.3, 0.3], rtol=1e-6)


def test_targets_under_way_of_a_portfolio_are_grouped_by_order():
    env = make(two_assets([10.0] * 9, [10.0] * 9), execution_delay=2)
    env.step(target(0.1, 0.2))
    observation = env.step(target(0.3, 0.4))[0]
    np.testing.assert_allclose(observation[-4:], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_no_price_and_no_currency_is_in_the_observation(make_prices):
    frame, actions = make_prices(60, 2, seed=3), np.random.default_rng(4).uniform(-0.5, 0.5, (20, 2))
    settings = {"window_size": 3, "commission": 0.001, "features": ("log_return", "zscore:5")}
    plain = make(frame, **settings)
    richer = make(8.0 * frame, initial_balance=4.0 * 100_000.0, **settings)
    for action in actions:
        # Powers of two scale without rounding.
        np.testing.assert_array_equal(plain.step(action)[0], richer.step(action)[0])


# Fills.


def test_an_order_is_filled_at_the_next_open():
    env = make(table([10.0, 10.0, 12.0], [10.0, 10.0, 11.0]))
    _, infos = walk(env, [target(1.0)])
    # Bought at 11, valued at 12; the gap from 10 to 11 was missed.
    assert infos[0]["equity"] == pytest.approx(100_000.0 * 12.0 / 11.0, **CLOSE_TO)


def test_an_order_is_filled_at_the_last_close_where_there_is_no_open():
    env = make(table([10.0, 10.0, 12.0]))
    _, infos = walk(env, [target(1.0)])
    assert infos[0]["equity"] == pytest.approx(100_000.0 * 1.2, **CLOSE_TO)


def test_the_position_held_earns_the_gap_before_it_is_sold_at_the_open():
    env = make(table([10.0, 10.0, 10.0, 5.0], [10.0, 10.0, 10.0, 11.0]))
    _, infos = walk(env, [target(1.0), target(0.0)])
    assert infos[1]["equity"] == pytest.approx(110_000.0, **CLOSE_TO)


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delayed_order_waits_that_many_bars(delay):
    close = [10.0 * 1.1**bar for bar in range(9)]
    env = make(table(close), execution_delay=delay)
    _, infos = walk(env, [target(1.0)] + [target(np.nan)] * 5)
    earned = [info["equity"] / 100_000.0 for info in infos]
    assert earned[:delay] == [1.0] * delay
    assert earned[delay] == pytest.approx(1.1, **CLOSE_TO)


def test_buying_in_full_pays_the_fee_out_of_the_purchase():
    env = make(table([10.0, 10.0, 10.0]), commission=0.01)
    _, infos = walk(env, [target(1.0)])
    assert infos[0]["costs"] == pytest.approx(100_000.0 * (1.0 - 1.0 / 1.01), rel=1e-10)  # a difference of 1e5
    assert env.account_state.cash == pytest.approx(0.0, abs=1e-9)


def test_commission_and_slippage_add_up():
    env = make(table([10.0, 10.0, 10.0, 10.0]), commission=0.01, slippage_rate=0.02)
    _, infos = walk(env, [target(1.0), target(0.0)])
    assert infos[1]["equity"] == pytest.approx(100_000.0 / 1.03 * 0.97, **CLOSE_TO)


def test_turnover_from_long_to_short_counts_two():
    env = make(table([10.0] * 5))
    _, infos = walk(env, [target(1.0), target(-1.0)])
    assert [info["turnover"] for info in infos] == [1.0, 2.0]


def test_a_held_position_drifts_with_the_price():
    env = make(table([10.0, 10.0, 12.0]))
    _, infos = walk(env, [target(0.5)])
    assert infos[0]["weight"] == pytest.approx(60.0 / 110.0, **CLOSE_TO)


def test_keeping_a_target_weight_trades_against_the_drift():
    env = make(table([10.0, 10.0, 12.0, 12.0]))
    _, infos = walk(env, [target(0.5), target(0.5)])
    assert infos[1]["turnover"] == pytest.approx(60.0 / 110.0 - 0.5, rel=1e-10)  # a difference of weights


# Actions.


@pytest.mark.parametrize("action_type", ["continuous", "discrete"])
@pytest.mark.parametrize("n_assets", [1, 3])
def test_holding_keeps_the_units_and_turns_over_exactly_nothing(make_prices, n_assets, action_type):
    env = make(make_prices(60, n_assets, seed=1), action_type=action_type, commission=0.001)
    buy, hold = (1, 0) if action_type == "discrete" else (1.0 / n_assets, np.nan)
    as_action = (lambda a: a) if (action_type, n_assets) == ("discrete", 1) else (lambda a: np.full(n_assets, a))
    env.step(as_action(buy))
    units = env.account_state.position
    for _ in range(30):
        info = env.step(as_action(hold))[4]
        assert (info["turnover"], info["costs"]) == (0.0, 0.0)
        # Units come back from weights that drift by a product and a quotient a bar.
        np.testing.assert_allclose(env.account_state.position, units, rtol=1e-13)


def test_one_asset_can_be_held_while_another_trades(make_prices):
    env = make(make_prices(60, 2, seed=2), commission=0.01)
    env.step(target(0.5, 0.2))
    held = env.account_state.position[0]
    env.step(target(np.nan, -0.4))
    assert env.account_state.position[0] == pytest.approx(held, rel=1e-13)


def test_a_target_of_nan_is_no_order_at_all_for_one_asset(make_prices):
    env = make(make_prices(60))
    _, infos = walk(env, [np.array([np.nan], dtype=np.float32)])
    assert (infos[0]["equity"], infos[0]["turnover"]) == (100_000.0, 0.0)
    assert infos[0]["target_weight"] is None


@pytest.mark.parametrize(
    ("choice", "allow_short", "expected"), [(1, True, 0.7), (2, True, -0.7), (2, False, 0.0), (1, False, 0.7)]
)
def test_buy_and_sell_go_to_the_largest_weight_and_its_opposite(choice, allow_short, expected):
    env = make(table([10.0] * 4), action_type="discrete", max_weight=0.7, allow_short=allow_short)
    _, infos = walk(env, [1, choice])
    assert infos[1]["weight"] == expected


def test_sell_without_shorts_goes_to_cash():
    env = make(table([10.0] * 5), action_type="discrete", allow_short=False)
    _, infos = walk(env, [1, 2, 2])
    assert [info["turnover"] for info in infos] == [1.0, 1.0, 0.0]


def test_a_discrete_portfolio_takes_one_choice_per_asset():
    env = make(two_assets([10.0] * 5, [10.0] * 5), action_type="discrete", max_weight=0.5)
    _, infos = walk(env, [np.array([1, 2]), np.array([0, 1])])
    np.testing.assert_allclose(infos[0]["weight"], [0.5, -0.5], rtol=1e-14)
    np.testing.assert_allclose(infos[1]["weight"], [0.5, 0.5], rtol=1e-14)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("choice", [-1, 3])
def test_a_choice_that_does_not_exist_is_refused(make_prices, n_assets, choice):
    env = make(make_prices(20, n_assets), action_type="discrete")
    with pytest.raises(ValueError, match=r"0 \(hold\), 1 \(buy\) or 2 \(sell\)"):
        env.step(choice if n_assets == 1 else np.array([0, choice]))


@pytest.mark.parametrize("shape", [(3,), (1, 2), ()])
def test_a_portfolio_action_of_another_shape_is_refused(make_prices, shape):
    env = make(make_prices(20, 2))
    with pytest.raises(ValueError, match=r"action must have shape \(2,\)"):
        env.step(np.zeros(shape))


@pytest.mark.parametrize("asked", [0.8, -0.8])
def test_a_target_beyond_the_largest_weight_is_clipped(asked):
    env = make(table([10.0] * 4), max_weight=0.5)
    _, infos = walk(env, [target(asked)])
    assert infos[0]["weight"] == math.copysign(0.5, asked)


def test_a_short_target_is_clipped_to_zero_without_shorts():
    env = make(table([10.0] * 4), allow_short=False)
    _, infos = walk(env, [target(-0.8)])
    assert infos[0]["weight"] == 0.0


def test_targets_over_the_gross_limit_are_scaled_down_in_proportion():
    env = make(two_assets([10.0] * 5, [10.0] * 5), max_gross_exposure=1.0)
    _, infos = walk(env, [target(0.9, -0.6)])
    np.testing.assert_allclose(infos[0]["weight"], [0.6, -0.4], rtol=1e-14)


def test_a_held_asset_takes_its_room_under_the_gross_limit_first():
    env = make(two_assets([10.0] * 5, [10.0] * 5), max_gross_exposure=1.0)
    _, infos = walk(env, [target(0.7, 0.0), target(np.nan, 0.9)])
    np.testing.assert_allclose(infos[1]["weight"], [0.7, 0.3], rtol=1e-14)


def test_targets_within_the_gross_limit_are_left_alone():
    env = make(two_assets([10.0] * 5, [10.0] * 5), max_gross_exposure=2.0)
    _, infos = walk(env, [target(0.9, -0.6)])
    np.testing.assert_array_equal(infos[0]["target_weight"], [0.9, -0.6])


def test_the_gross_limit_binds_one_asset_too():
    env = make(table([10.0] * 4), max_weight=2.0, max_gross_exposure=1.5)
    _, infos = walk(env, [target(2.0), target(-2.0)])
    assert [info["weight"] for info in infos] == [1.5, -1.5]


# Rewards and ends.


def test_the_reward_is_scaled():
    env = make(table([10.0, 10.0, 12.0]), reward_scaling=100.0)
    rewards, _ = walk(env, [target(1.0)])
    assert rewards[0] == pytest.approx(100.0 * math.log(1.2), **CLOSE_TO)


def test_the_end_of_the_data_is_a_truncation():
    env = make(table([10.0] * 4))
    ends = [env.step(target(0.0))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]


def test_an_episode_of_fixed_length_is_truncated(make_prices):
    env = make(make_prices(60), episode_length=5)
    ends = [env.step(target(0.0))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_an_episode_that_starts_late_ends_with_the_data(make_prices):
    env = make(make_prices(20), episode_length=10)
    env.reset(options={"start_bar": 16})
    ends = [env.step(target(0.0))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_ruin_terminates_and_its_loss_is_in_the_reward():
    env = make(table([10.0, 10.0, 0.05, 10.0]))
    _, reward, terminated, truncated, _ = env.step(target(1.0))
    assert (terminated, truncated) == (True, False)
    assert reward == pytest.approx(math.log(0.005), **CLOSE_TO)


def test_ruin_on_the_last_bar_is_a_termination():
    env = make(table([10.0, 10.0, 0.05]))
    assert env.step(target(1.0))[2:4] == (True, False)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("final", [19.99, 20.0, 20.01, 45.0])
def test_a_short_that_loses_everything_ends_with_a_finite_and_terrible_reward(n_assets, final):
    close = [10.0, 10.0, final, 10.0]
    env = make(table(close) if n_assets == 1 else two_assets(close, close))
    observation, reward, terminated, _, _ = env.step(target(*[-1.0 / n_assets] * n_assets))
    assert terminated
    assert -14.0 < reward < math.log(0.01)
    assert np.isfinite(observation).all()


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("opening", [20.0, 25.0])
@pytest.mark.parametrize("minimum_commission", [0.0, 5.0])
def test_an_account_wiped_out_by_the_gap_trades_no_more(n_assets, opening, minimum_commission):
    close, open_ = [10.0, 10.0, 10.0, opening, 10.0], [10.0, 10.0, 10.0, opening, 10.0]
    if n_assets == 1:
        frame = table(close, open_)
    else:
        frame = pd.concat({"AAA": table(close, open_), "BBB": table(close, open_)}, axis=1)
    env = make(frame, commission=0.01, minimum_commission=minimum_commission)
    env.step(target(*[-1.0 / n_assets] * n_assets))
    _, reward, terminated, _, info = env.step(target(*[1.0 / n_assets] * n_assets))
    assert terminated
    assert (info["turnover"], info["costs"]) == (0.0, 0.0)
    assert -14.0 < reward < math.log(0.01)


def test_a_drawdown_beyond_the_limit_stops_the_account_out():
    env = make(table([10.0, 10.0, 12.0, 9.5]), max_drawdown=0.2)
    env.step(target(1.0))
    _, reward, terminated, truncated, _ = env.step(target(np.nan))
    assert (terminated, truncated) == (True, False)
    assert reward == pytest.approx(math.log(9.5 / 12.0), **CLOSE_TO)


def test_the_drawdown_counts_from_the_first_bar():
    env = make(table([10.0, 10.0, 7.0, 7.0]), max_drawdown=0.2)
    assert env.step(target(1.0))[2]


def test_stepping_before_reset_is_refused(make_prices):
    env = TradingEnvironment(make_prices(30), TradingEnvConfig(window_size=1))
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        env.step(target(0.0))


@pytest.mark.parametrize("last_price", [10.0, 0.05])
def test_stepping_after_the_end_is_refused(last_price):
    env = make(table([10.0, 10.0, last_price, last_price]), episode_length=1)
    env.step(target(1.0))
    with pytest.raises(RuntimeError, match=r"the episode is over"):
        env.step(target(0.0))


# Starts.


def test_an_episode_starts_flat_with_the_initial_balance(make_prices):
    env = make(make_prices(30), initial_balance=500.0)
    walk(env, [target(1.0)] * 5)
    observation, info = env.reset()
    assert (info["equity"], info["weight"]) == (500.0, 0.0)
    np.testing.assert_array_equal(observation[1:], 0.0)


def test_orders_under_way_do_not_survive_a_reset(make_prices):
    env = make(make_prices(30), execution_delay=2)
    env.step(target(1.0))
    env.reset()
    _, infos = walk(env, [target(np.nan)] * 3)
    assert [info["turnover"] for info in infos] == [0.0] * 3


def test_the_memory_of_the_reward_does_not_survive_a_reset(make_prices):
    env = make(make_prices(80), reward="differential_sharpe", reward_warmup_bars=5)
    actions = [target(0.5)] * 30
    first, _ = walk(env, actions)
    env.reset()
    assert walk(env, actions)[0] == first


def test_random_starts_are_legal_and_reach_both_ends(make_prices):
    env = make(make_prices(30), window_size=4, random_start=True, episode_length=10)
    starts = {env.reset()[1]["bar"] for _ in range(400)}
    # Log returns exist from bar 1, so windows of 4 from bar 4; 10 bars more fit from bar 19 at the latest.
    assert starts == set(range(4, 20))


def test_random_starts_follow_the_seed(make_prices):
    env = make(make_prices(300), random_start=True, episode_length=10)

    def starts(seed):
        return [env.reset(seed=seed)[1]["bar"], *(env.reset()[1]["bar"] for _ in range(5))]

    assert starts(7) == starts(7)
    assert starts(7) != starts(8)


def test_a_start_bar_can_be_chosen(make_prices):
    env = make(make_prices(30))
    assert env.reset(options={"start_bar": 11})[1]["bar"] == 11


@pytest.mark.parametrize("start", [0, 29])
def test_a_start_bar_without_a_window_or_a_next_bar_is_refused(make_prices, start):
    env = make(make_prices(30))
    with pytest.raises(ValueError, match=rf"start_bar must be in \[1, 28\], got {start}"):
        env.reset(options={"start_bar": start})


# Data that cannot be traded on.


def test_a_table_too_short_says_how_many_bars_are_needed(make_prices):
    with pytest.raises(
        ValueError, match=r"price_data has 20 bars, but at least 36 are needed: 10 for the warm-up of momentum:10"
    ):
        make(make_prices(20), window_size=21, features=("momentum:10",), episode_length=5)


def test_the_shortest_table_allowed_makes_one_step(make_prices):
    env = make(make_prices(36), window_size=21, features=("momentum:10",), episode_length=5)
    assert env.reset()[1]["bar"] == 30


def test_an_unknown_feature_is_answered_with_the_nearest_name(make_prices):
    with pytest.raises(ValueError, match=r"unknown feature 'volatilty'. Did you mean 'volatility'"):
        make(make_prices(30), features=("volatilty",))


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_a_hole_in_a_feature_is_refused_with_feature_asset_and_row(make_prices, hole):
    def holed(bars):
        values = np.ones((bars.n_bars, bars.n_assets))
        values[13, 1] = hole
        return values

    with pytest.raises(ValueError, match=rf"feature 'mood' of asset 'BBB' is {hole} at row 13 \("):
        make(make_prices(30, 2), extra_features={"mood": holed})


def test_a_warm_up_in_a_feature_of_the_user_costs_bars(make_prices):
    def late(bars):
        values = np.ones(bars.n_bars)
        values[:13] = np.nan
        return values

    env = make(make_prices(30), extra_features={"late": late})
    assert env.reset()[1]["bar"] == 13


def test_impact_without_volume_is_refused(make_prices):
    with pytest.raises(ValueError, match="impact_coefficient is above 0 but price_data has no volume"):
        make(make_prices(60), impact_coefficient=0.1)


def test_an_unknown_render_mode_is_refused(make_prices):
    with pytest.raises(ValueError, match="render_mode must be None or 'figure', got 'human'"):
        TradingEnvironment(make_prices(60), render_mode="human")


# Holding and trading costs.


@pytest.mark.parametrize("has_open", [True, False])
def test_interest_on_a_short_adds_up_bar_by_bar(has_open):
    prices = [10.0] * 103
    env = make(table(prices, prices if has_open else None), borrow_rate=0.05)
    env.step(target(-1.0))
    first = env.account.equity
    _, infos = walk(env, [target(np.nan)] * 100)
    # 100 days of simple interest on a debt of constant size: the units never change, nor does the price.
    units = 100_000.0 / 10.0
    expected = first - 100 * 0.05 * YEAR_OF_ONE_DAY * units * 10.0
    assert infos[-1]["equity"] == pytest.approx(expected, **CLOSE_TO)


def test_flipping_to_long_does_not_forgive_the_interest_of_the_short():
    env = make(table([10.0] * 60), borrow_rate=0.05)
    _, infos = walk(env, [target(-1.0)] + [target(np.nan)] * 49 + [target(1.0)])
    assert infos[-1]["equity"] == pytest.approx(100_000.0 * (1.0 - 50 * 0.05 * YEAR_OF_ONE_DAY), **CLOSE_TO)


def test_positive_cash_earns_and_compounds():
    env = make(table([10.0] * 103), cash_rate=0.05)
    _, infos = walk(env, [target(0.0)] * 100)
    assert infos[-1]["equity"] == pytest.approx(100_000.0 * (1.0 + 0.05 * YEAR_OF_ONE_DAY) ** 100, **CLOSE_TO)


def test_borrowed_cash_costs_interest():
    env = make(table([10.0] * 5), margin_rate=0.05, max_weight=3.0, max_gross_exposure=3.0)
    _, infos = walk(env, [target(3.0)])
    assert infos[0]["equity"] == pytest.approx(100_000.0 * (1.0 - 2.0 * 0.05 * YEAR_OF_ONE_DAY), **CLOSE_TO)


def test_interest_counts_calendar_time_over_a_weekend():
    friday = pd.DataFrame(
        {"close": [10.0] * 4}, index=pd.to_datetime(["2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08"])
    )
    env = make(friday, borrow_rate=0.05)
    _, infos = walk(env, [target(-1.0), target(np.nan)])
    assert infos[1]["equity"] == pytest.approx(100_000.0 * (1.0 - 4 * 0.05 * YEAR_OF_ONE_DAY), **CLOSE_TO)


def test_the_night_before_an_open_is_charged_to_the_position_held_through_it():
    env = make(table([10.0] * 4, [10.0] * 4), borrow_rate=0.05)
    _, infos = walk(env, [target(-1.0), target(0.0)])
    # Sold short at an open: nothing is borrowed until the night, which ends before the position is bought back.
    assert infos[0]["equity"] == 100_000.0
    assert infos[1]["equity"] == pytest.approx(100_000.0 * (1.0 - 0.05 * YEAR_OF_ONE_DAY), **CLOSE_TO)


@pytest.mark.parametrize("n_assets", [1, 2])
def test_every_fill_pays_the_minimum_commission(n_assets):
    close = [10.0] * 6
    env = make(table(close) if n_assets == 1 else two_assets(close, close), commission=0.001, minimum_commission=30.0)
    share = 0.1 / n_assets
    _, infos = walk(env, [target(*[share] * n_assets), target(*[np.nan] * n_assets), target(*[0.0] * n_assets)])
    # 10,000 and less a fill: a commission of 10 and less, so the ticket binds.
    costs = [info["costs"] for info in infos]
    assert costs == pytest.approx([30.0 * n_assets, 0.0, 30.0 * n_assets], rel=1e-10)  # differences of 1e5


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("tickets", [100.0, 250.0])
def test_tickets_dearer_than_the_account_end_it(n_assets, tickets):
    close = [10.0] * 4
    frame = table(close) if n_assets == 1 else two_assets(close, close)
    env = make(frame, initial_balance=100.0, minimum_commission=tickets / n_assets)
    _, reward, terminated, _, _ = env.step(target(*[0.5] * n_assets))
    assert terminated
    assert math.isfinite(reward)


def flat_with_noise(n_bars, *, volume):
    close = 10.0 * np.exp(0.01 * np.random.default_rng(5).standard_normal(n_bars))
    return table(close, volume=np.full(n_bars, volume))


def test_impact_is_charged_on_what_is_known_when_the_order_is_sent():
    frame = flat_with_noise(40, volume=1_000.0)
    env = make(frame, impact_coefficient=0.1)
    bar = env.reset(seed=0)[1]["bar"]
    _, infos = walk(env, [target(1.0)])
    close = frame["close"].to_numpy()[: bar + 1]
    daily_volatility = np.diff(np.log(close))[-20:].std(ddof=1)
    rate = 0.1 * daily_volatility * math.sqrt(100_000.0 / (1_000.0 * close[-20:]).mean())
    assert infos[0]["costs"] == pytest.approx(100_000.0 * (1.0 - 1.0 / (1.0 + rate)), rel=1e-10)  # a difference of 1e5


def test_impact_of_four_times_the_order_is_twice_the_rate():
    env = make(flat_with_noise(40, volume=1e4), impact_coefficient=0.1)
    rates = []
    for weight in (0.1, 0.4):
        env.reset(seed=0)
        _, infos = walk(env, [target(weight)])
        rates.append(infos[0]["costs"] / (infos[0]["turnover"] * 100_000.0))
    assert rates[1] == pytest.approx(2.0 * rates[0], rel=1e-9)  # costs are differences of 1e5


# Sharing, features of the user, rendering.


def test_extra_columns_are_observed(make_prices):
    frame = make_prices(30, extra=True)
    env = make(frame)
    observation, info = env.reset(seed=0)
    assert observation[1] == np.float32(frame["signal"].iloc[info["bar"]])


def test_a_feature_of_the_user_is_observed(make_prices):
    env = make(make_prices(30), extra_features={"bar": lambda bars: np.arange(bars.n_bars) / 64.0})
    observation, info = env.reset(seed=0)
    assert observation[1] == info["bar"] / 64.0


def test_accounts_that_share_a_market_keep_their_own_settings(make_prices):
    frame = make_prices(60)
    settings = {"window_size": 1, "execution_delay": 0}
    market = Market(frame, TradingEnvConfig(commission=0.0, **settings))
    own = TradingEnvConfig(commission=0.02, borrow_rate=0.1, initial_balance=500.0, **settings)
    shared, alone = TradingEnvironment(market, own), TradingEnvironment(frame, own)
    for env in (shared, alone):
        env.reset(seed=0)
    actions = [target(-1.0), target(0.5), target(np.nan)]
    assert walk(shared, actions)[0] == walk(alone, actions)[0]


@pytest.mark.parametrize("n_assets", [1, 2])
def test_a_portfolio_that_shares_a_market_keeps_its_own_balance(make_prices, n_assets):
    market = Market(make_prices(60, n_assets), TradingEnvConfig(window_size=1))
    env = TradingEnvironment(market, TradingEnvConfig(window_size=1, initial_balance=500.0))
    assert env.reset(seed=0)[1]["equity"] == 500.0


def test_a_market_built_for_another_window_is_refused(make_prices):
    market = Market(make_prices(60), TradingEnvConfig(window_size=5))
    with pytest.raises(ValueError, match="built with window_size=5, config says 6"):
        TradingEnvironment(market, TradingEnvConfig(window_size=6))


def test_bars_and_their_table_give_the_same_environment(make_prices):
    frame = make_prices(30)
    by_table, by_bars = make(frame), make(Bars.from_frame(frame))
    np.testing.assert_array_equal(by_table.reset(seed=0)[0], by_bars.reset(seed=0)[0])


@pytest.mark.parametrize("n_assets", [1, 2])
def test_rendering_returns_a_figure_of_price_equity_and_weight(make_prices, n_assets):
    from plotly.graph_objects import Figure

    env = make(make_prices(30, n_assets))
    _, infos = walk(env, [target(*[0.4] * n_assets)] * 5)
    figure = env.render()
    assert isinstance(figure, Figure)
    assert len(figure.data) == 2 * n_assets + 1
    (equity,) = (trace for trace in figure.data if trace.name == "equity")
    np.testing.assert_array_equal(equity.y, [100_000.0, *(info["equity"] for info in infos)])


def test_the_account_state_is_equity_cash_and_units(make_prices):
    env = make(table([10.0, 10.0, 12.0]))
    env.step(target(0.5))
    state = env.account_state
    assert state.equity == pytest.approx(110_000.0, **CLOSE_TO)
    assert state.cash == pytest.approx(50_000.0, **CLOSE_TO)
    np.testing.assert_allclose(state.position, [5_000.0], rtol=1e-12)
    assert state.peak_equity == state.equity


@pytest.mark.parametrize("n_assets", [1, 2])
def test_an_info_is_not_changed_by_later_bars(make_prices, n_assets):
    env = make(make_prices(30, n_assets))
    _, (first,) = walk(env, [target(*[0.5] * n_assets)])
    before = np.array(first["weight"])
    walk(env, [target(*[-0.5] * n_assets)])
    np.testing.assert_array_equal(first["weight"], before)


def test_observations_are_not_changed_by_later_bars(make_prices):
    env = make(make_prices(30))
    first = env.step(target(0.5))[0]
    before = first.copy()
    env.step(target(-0.5))
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("action", [0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]]), [0.5]])
def test_one_number_is_an_action_in_any_wrapping(make_prices, action):
    assert make(make_prices(20)).step(action)[4]["target_weight"] == 0.5


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (np.zeros(2), r"shape \(2,\)"),
        (np.zeros((1, 3)), r"shape \(1, 3\)"),
        (np.zeros(0), r"shape \(0,\)"),
        ([0.1, 0.2], "got 2 values"),
        ("0.5", "must be a number"),
        (np.array(["0.5"]), "must be a number"),
        (None, "must be a number"),
    ],
)
def test_an_action_for_one_asset_that_is_not_one_number_is_refused(make_prices, action, found):
    env = make(make_prices(20))
    with pytest.raises(ValueError, match=found):
        env.step(action)


@pytest.mark.parametrize("action", [1, np.int64(1), np.uint8(1), np.array(1), np.array([1])])
def test_one_choice_is_an_action_in_any_wrapping(make_prices, action):
    assert make(make_prices(20), action_type="discrete").step(action)[4]["target_weight"] == 1.0


@pytest.mark.parametrize("action", [1.7, 1.0, np.float32(1.0), "1", None, np.array([0, 1])])
def test_a_choice_that_is_no_integer_is_refused(make_prices, action):
    env = make(make_prices(20), action_type="discrete")
    with pytest.raises(ValueError, match=r"must be an integer|hold exactly one"):
        env.step(action)


@pytest.mark.parametrize(
    ("action_type", "action"), [("discrete", [0.0, 1.0]), ("discrete", ["0", "1"]), ("continuous", ["0", "1"])]
)
def test_a_portfolio_action_of_another_kind_is_refused(make_prices, action_type, action):
    env = make(make_prices(20, 2), action_type=action_type)
    with pytest.raises(ValueError, match=r"action must hold (integer choices|numbers)"):
        env.step(np.array(action))
