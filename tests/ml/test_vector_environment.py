"""Many accounts in one batch are the same accounts alone, and the scalar environment is their specification."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rewards import REWARDS
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv

# NumPy and torch add and exponentiate in another order: a few roundings a bar, over at most a hundred bars.
PARITY = 1e-10
# The vector environment hands out rewards and account features as float32.
FLOAT32 = {"rtol": 1e-6, "atol": 1e-7}

COSTLY = {
    "commission": 0.002,
    "slippage_rate": 0.001,
    "minimum_commission": 20.0,
    "borrow_rate": 0.05,
    "margin_rate": 0.08,
    "cash_rate": 0.03,
    "impact_coefficient": 0.3,
    "max_weight": 1.5,
    "max_gross_exposure": 1.8,
}
VARIANTS = {
    "plain": {},
    "free": {"commission": 0.0},
    "delay": {"execution_delay": 2},
    "minimum_commission": {"minimum_commission": 150.0, "slippage_rate": 0.0005},
    "impact": {"impact_coefficient": 0.5},
    "accruals": {
        "borrow_rate": 0.05,
        "margin_rate": 0.08,
        "cash_rate": 0.03,
        "max_weight": 1.5,
        "max_gross_exposure": 2.0,
    },
    "long_only": {"allow_short": False, "max_weight": 0.8},
    "stops": {"max_drawdown": 0.06, "reward_scaling": 10.0},
    "everything": {**COSTLY, "execution_delay": 1},
}


def config_of(**changes):
    return TradingEnvConfig(
        **{"window_size": 3, "features": ("log_return", "momentum:4"), "reward_warmup_bars": 5, **changes}
    )


def random_actions(rng, config, n_assets, n_steps):
    """Return (n_steps, n_assets) actions, a fifth of them no order; beyond the box at times."""
    if config.action_type == "discrete":
        return rng.integers(0, 3, (n_steps, n_assets))
    actions = rng.uniform(-1.2, 1.2, (n_steps, n_assets)) * config.max_weight
    return np.where(rng.random(actions.shape) < 0.2, np.nan, actions)


def as_tensor(config, actions):
    """Return the batch's actions at one step: (n_envs,) choices of one asset, else (n_envs, n_assets)."""
    actions = torch.as_tensor(np.asarray(actions))
    return actions.squeeze(1) if config.action_type == "discrete" and actions.shape[1] == 1 else actions


def walk_alone(env, start, actions):
    """Return what the scalar environment says at each step of one episode."""
    observation, _ = env.reset(options={"start_bar": start})
    rows = []
    for action in actions:
        action = action[0] if isinstance(env.action_space, spaces.Discrete) else action
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((observation, reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return rows


def check_parity(frame, config, n_steps=40, n_accounts=4, seed=0):
    """Walk the same actions in both environments, from starts of their own, until each episode ends."""
    market = Market(frame, config)
    rng = np.random.default_rng(seed)
    scalar = TradingEnvironment(market, config)
    vector = TradingVectorEnv(market, config, n_envs=n_accounts)
    starts = rng.integers(market.first_bar, market.last_start(None) + 1, n_accounts)
    actions = np.stack([random_actions(rng, config, market.n_assets, n_steps) for _ in range(n_accounts)])
    alone = [walk_alone(scalar, int(start), own) for start, own in zip(starts, actions, strict=True)]
    vector.reset(options={"start_bar": torch.as_tensor(starts)})
    sums = np.zeros(n_accounts)
    for step in range(max(map(len, alone))):
        observation, reward, terminated, truncated, infos = vector.step(as_tensor(config, actions[:, step]))
        ended = (terminated | truncated).numpy()
        seen = (
            torch.where(infos["_final_obs"][:, None], infos["final_obs"], observation) if ended.any() else observation
        )
        for row, own in enumerate(alone):
            if step >= len(own):
                continue
            expected_observation, expected_reward, *ends, info = own[step]
            np.testing.assert_allclose(seen[row], expected_observation, **FLOAT32)
            np.testing.assert_allclose(float(reward[row]), expected_reward, **FLOAT32)
            assert [bool(terminated[row]), bool(truncated[row])] == ends
            assert int(infos["next_bar"][row]) == info["bar"]
            assert float(vector.account.turnover[row]) == pytest.approx(info["turnover"], rel=PARITY, abs=PARITY)
            # Costs are differences of equity: absolute on its scale.
            assert float(vector.account.costs[row]) == pytest.approx(info["costs"], abs=PARITY * 1e5)
            sums[row] += expected_reward
            if ended[row]:
                # The sum of rewards is kept in float64, unlike each of them.
                assert float(infos["episode"]["r"][row]) == pytest.approx(sums[row], rel=PARITY, abs=PARITY)
                assert float(infos["episode"]["l"][row]) == len(own)
                growth = math.log(max(info["equity"], 1e-300) / config.initial_balance)
                if not terminated[row]:
                    assert float(infos["episode"]["log_growth"][row]) == pytest.approx(growth, rel=PARITY, abs=PARITY)
            else:
                assert float(vector.account.equity[row]) == pytest.approx(info["equity"], rel=PARITY)
                assert float(vector._sums[0][row]) == pytest.approx(sums[row], rel=PARITY, abs=PARITY)


# Parity with the scalar environment.


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_every_reward_is_that_of_the_scalar_environment(make_prices, n_assets, reward):
    check_parity(make_prices(90, n_assets, seed=1), config_of(reward=reward, reward_decay=0.05), n_steps=90, seed=2)


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("has_open", [True, False], ids=["open", "close_only"])
@pytest.mark.parametrize("action_type", ["continuous", "discrete"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_setting_acts_as_in_the_scalar_environment(make_prices, n_assets, has_open, action_type, variant):
    frame = make_prices(60, n_assets, seed=3, has_open=has_open, volume=True)
    check_parity(frame, config_of(action_type=action_type, **VARIANTS[variant]), seed=4)


@pytest.mark.parametrize("has_open", [True, False], ids=["open", "close_only"])
@pytest.mark.parametrize("action_type", ["continuous", "discrete"])
@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"minimum_commission", "impact", "everything"}))
def test_one_asset_is_walked_by_numpy_to_the_bits_of_torch(make_prices, has_open, action_type, variant, seed):
    config = config_of(action_type=action_type, episode_length=25, **VARIANTS[variant])
    market = Market(make_prices(80, 1, seed=seed, has_open=has_open, volume=True), config)
    quick, plain = (TradingVectorEnv(market, config, n_envs=5) for _ in range(2))
    assert quick.account._arrays is not None
    plain.account._arrays = None
    rng = np.random.default_rng(4)
    assert torch.equal(quick.reset(seed=1)[0], plain.reset(seed=1)[0])
    for _ in range(60):
        action = as_tensor(config, random_actions(rng, config, 1, 5))
        one, other = quick.step(action), plain.step(action)
        assert all(torch.equal(x, y) for x, y in zip(one[:4], other[:4], strict=True))
        for name in ("equity", "weight", "basis", "drawdown", "growth", "turnover", "costs"):
            assert torch.equal(getattr(quick.account, name), getattr(plain.account, name))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    n_assets=st.integers(1, 3),
    has_open=st.booleans(),
    reward=st.sampled_from(sorted(REWARDS)),
    action_type=st.sampled_from(["continuous", "discrete"]),
    execution_delay=st.integers(0, 2),
    commission=st.floats(0.0, 0.05),
    minimum_commission=st.sampled_from([0.0, 50.0]),
    impact_coefficient=st.sampled_from([0.0, 0.5]),
    borrow_rate=st.floats(0.0, 0.2),
    cash_rate=st.floats(0.0, 0.1),
    max_weight=st.floats(0.3, 2.0),
    allow_short=st.booleans(),
    max_drawdown=st.sampled_from([0.1, 1.0]),
    episode_length=st.none() | st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_any_settings_act_as_in_the_scalar_environment(make_prices, n_assets, has_open, seed, **changes):
    frame = make_prices(50, n_assets, seed=seed, has_open=has_open, volume=True)
    check_parity(frame, config_of(**changes), n_steps=30, n_accounts=3, seed=seed)


@pytest.mark.parametrize("n_assets", [1, 2])
def test_wild_prices_ruin_the_same_accounts_in_the_same_bars(make_prices, n_assets):
    frame = make_prices(50, n_assets, seed=5, volatility=0.18)
    check_parity(frame, config_of(max_weight=3.0, max_gross_exposure=3.0, commission=0.01), n_accounts=12, seed=6)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("opening", [20.0, 25.0])
def test_an_account_wiped_out_by_the_gap_has_a_finite_last_observation(make_prices, n_assets, opening):
    frame = make_prices(6, n_assets)
    frame[:] = 10.0
    frame.loc[frame.index[3:], "open"] = opening
    frame.loc[frame.index[3:], "close"] = opening
    env = TradingVectorEnv(frame, TradingEnvConfig(window_size=1, commission=0.0), n_envs=2)
    env.reset()
    share = torch.full((2, n_assets), 1.0 / n_assets, dtype=torch.float64)
    env.step(-share)
    _, reward, terminated, _, infos = env.step(share)
    assert terminated.all()
    assert torch.isfinite(infos["final_obs"]).all()
    assert torch.isfinite(reward).all()


@pytest.mark.parametrize("n_assets", [1, 2])
def test_an_account_wiped_out_by_the_gap_trades_no_more(make_prices, n_assets):
    frame = make_prices(6, n_assets)
    frame[:] = 10.0
    frame.iloc[3:] = 25.0
    env = TradingVectorEnv(frame, TradingEnvConfig(window_size=1, commission=0.01), n_envs=2)
    env.reset()
    share = torch.full((2, n_assets), 1.0 / n_assets, dtype=torch.float64)
    env.step(-share)
    env.step(share)
    assert env.account.turnover.tolist() == env.account.costs.tolist() == [0.0, 0.0]


# Batches.


@pytest.mark.parametrize("n_assets", [1, 3])
def test_accounts_in_a_batch_are_the_same_accounts_alone(make_prices, n_assets):
    config = config_of(**COSTLY, execution_delay=1, reward="differential_sharpe", episode_length=15)
    market = Market(make_prices(80, n_assets, seed=7, volume=True), config)
    starts = torch.tensor([24, 30, 41, 50, 60])
    actions = torch.as_tensor(np.random.default_rng(8).uniform(-1.0, 1.0, (20, 5, n_assets)))

    def outcomes(rows):
        env = TradingVectorEnv(market, config, n_envs=len(rows))
        env.reset(options={"start_bar": starts[rows]})
        return [torch.cat([o[0], o[1][:, None]], 1) for o in (env.step(step[rows]) for step in actions[:, :])][:15]

    together = outcomes(list(range(5)))
    for row in range(5):
        for batched, single in zip(together[:14], outcomes([row])[:14], strict=True):
            # Float32, after sums over assets that may be added in another order.
            np.testing.assert_allclose(batched[row], single[0], **FLOAT32)


def test_spaces_are_batches_of_the_spaces_of_one_account(make_prices):
    config = config_of(action_type="discrete")
    frame = make_prices(60, 2)
    env, single = TradingVectorEnv(frame, config, n_envs=5), TradingEnvironment(frame, config)
    assert env.single_action_space == single.action_space
    assert env.single_observation_space == single.observation_space
    assert env.action_space == batch_space(single.action_space, 5)
    assert env.observation_space.shape == (5, single.observation_space_dim)
    assert (env.observation_space_dim, env.action_space_dim) == (single.observation_space_dim, single.action_space_dim)


def test_the_autoreset_mode_is_announced(make_prices):
    assert TradingVectorEnv(make_prices(60), config_of()).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_observations_and_rewards_are_float32_and_ends_are_bool(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(), n_envs=2)
    first, _ = env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(torch.zeros(2, 1))
    assert [x.dtype for x in (first, observation, reward)] == [torch.float32] * 3
    assert [x.dtype for x in (terminated, truncated)] == [torch.bool] * 2


@pytest.mark.parametrize("costs", [{"minimum_commission": 1.0}, {"impact_coefficient": 0.1}])
def test_costs_that_the_libraries_round_differently_are_left_to_torch(make_prices, costs):
    env = TradingVectorEnv(make_prices(60, 1, volume=True), config_of(**costs), n_envs=3)
    assert env.account._arrays is None


def test_actions_straight_from_a_policy_are_taken_without_their_gradient(make_prices):
    env = TradingVectorEnv(make_prices(60, 1), config_of(), n_envs=3)
    observation, _ = env.reset()
    policy = torch.nn.Linear(env.observation_space_dim, 1)
    for _ in range(3):
        observation, reward, *_ = env.step(policy(observation))
    assert not reward.requires_grad
    assert not observation.requires_grad


def test_stepping_before_reset_is_refused(make_prices):
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        TradingVectorEnv(make_prices(60), config_of(), n_envs=2).step(torch.zeros(2, 1))


def test_no_account_at_all_is_refused(make_prices):
    with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
        TradingVectorEnv(make_prices(60), config_of(), n_envs=0)


@pytest.mark.parametrize("start", [0, 59])
def test_a_start_bar_outside_the_legal_range_is_refused(make_prices, start):
    env = TradingVectorEnv(make_prices(60), config_of(), n_envs=2)
    with pytest.raises(ValueError, match=r"start_bar must be in \[6, 58\]"):
        env.reset(options={"start_bar": torch.tensor([10, start])})


def test_random_starts_follow_the_seed(make_prices):
    def starts(seed):
        env = TradingVectorEnv(make_prices(300), config_of(random_start=True, episode_length=3), n_envs=4, seed=seed)
        env.reset()
        for _ in range(3):
            env.step(torch.zeros(4, 1))
        return env.bar.tolist()

    assert starts(7) == starts(7)
    assert starts(7) != starts(8)


def test_a_seed_given_to_reset_replaces_that_of_the_constructor(make_prices):
    def starts(seed):
        env = TradingVectorEnv(make_prices(300), config_of(random_start=True, episode_length=3), n_envs=4, seed=seed)
        env.reset(seed=11)
        return env.bar.tolist()

    assert starts(7) == starts(8)


def test_random_starts_are_legal_and_reach_both_ends(make_prices):
    env = TradingVectorEnv(make_prices(30), config_of(random_start=True, episode_length=10), n_envs=500)
    env.reset(seed=0)
    # Momentum of 4 bars is defined from bar 4, windows of 3 from bar 6; 10 bars more fit from bar 19 at the latest.
    assert set(env.bar.tolist()) == set(range(6, 20))


def test_restarts_are_random_too(make_prices):
    env = TradingVectorEnv(make_prices(30), config_of(random_start=True, episode_length=1), n_envs=500)
    env.reset(seed=0)
    env.step(torch.zeros(500, 1))
    assert set(env.bar.tolist()) == set(range(6, 29))


# Autoreset.


@pytest.fixture
def ended(make_prices):
    """Walk three accounts, started at different bars, to the bar where the second one's data ends."""
    config = config_of(commission=0.001, reward="calmar", execution_delay=1)
    env = TradingVectorEnv(make_prices(40, seed=9), config, n_envs=3)
    env.reset(options={"start_bar": torch.tensor([10, 30, 20])})
    for _ in range(8):
        env.step(torch.tensor([[0.5], [0.9], [-0.5]]))
    return env, env.step(torch.tensor([[0.5], [0.9], [-0.5]]))


def test_only_the_account_that_ended_starts_anew(ended):
    env, (_, _, _, truncated, _) = ended
    assert truncated.tolist() == [False, True, False]
    assert env.bar.tolist() == [19, env.market.first_bar, 29]


def test_the_account_that_starts_anew_is_flat_with_the_initial_balance(ended):
    env, (observation, *_) = ended
    assert float(env.account.equity[1]) == 100_000.0
    np.testing.assert_array_equal(observation[1, -env.account_dim :], 0.0)


def test_the_observation_returned_is_the_first_of_the_next_episode(ended):
    env, (observation, *_) = ended
    fresh = TradingVectorEnv(env.market, env.config, n_envs=1).reset()[0]
    np.testing.assert_array_equal(observation[1], fresh[0])


def test_the_last_observation_of_the_episode_is_in_the_infos(ended):
    env, (_, _, _, _, infos) = ended
    assert infos["_final_obs"].tolist() == [False, True, False]
    scalar = TradingEnvironment(env.market, env.config)
    last = walk_alone(scalar, 30, np.full((9, 1), np.float64(np.float32(0.9))))[-1][0]
    np.testing.assert_allclose(infos["final_obs"][1], last, **FLOAT32)


def test_the_next_bar_in_the_infos_is_the_one_before_any_reset(ended):
    _, (_, _, _, _, infos) = ended
    assert infos["next_bar"].tolist() == [19, 39, 29]


def test_no_order_survives_the_end_of_its_episode(ended):
    env, _ = ended
    env.step(torch.full((3, 1), torch.nan))
    assert float(env.account.turnover[1]) == 0.0


def test_the_next_episode_is_the_one_a_fresh_account_lives(ended):
    env, _ = ended
    fresh = TradingVectorEnv(env.market, env.config, n_envs=1)
    fresh.reset()
    for weight in np.random.default_rng(10).uniform(-1.0, 1.0, 15):
        again = env.step(torch.full((3, 1), weight))
        new = fresh.step(torch.full((1, 1), weight))
        np.testing.assert_allclose(again[0][1], new[0][0], **FLOAT32)
        assert float(again[1][1]) == pytest.approx(float(new[1][0]), rel=1e-6, abs=1e-9)  # float32
        if bool((again[2] | again[3])[[0, 2]].any()):
            break


def test_the_summary_of_an_episode_is_that_of_a_scalar_run(make_prices):
    config = config_of(commission=0.002, reward="cvar", tail_threshold=0.005)
    frame = make_prices(60, seed=11)
    actions = np.random.default_rng(12).uniform(-1.0, 1.0, (60, 1))
    rows = walk_alone(TradingEnvironment(frame, config), 6, actions)
    equity = np.array([100_000.0, *(row[4]["equity"] for row in rows)])
    strategy_returns = equity[1:] / equity[:-1] - 1.0
    env = TradingVectorEnv(frame, config, n_envs=1)
    env.reset()
    for action in actions[: len(rows)]:
        infos = env.step(torch.as_tensor(action[None]))[4]
    summary = {name: float(value[0]) for name, value in infos["episode"].items()}
    assert infos["_episode"].tolist() == [True]
    assert summary == pytest.approx(
        {
            "r": sum(row[1] for row in rows),
            "l": len(rows),
            "sharpe": strategy_returns.mean() / strategy_returns.std(ddof=1),
            "max_drawdown": (1.0 - equity / np.maximum.accumulate(equity)).max(),
            "log_growth": math.log(equity[-1] / equity[0]),
        },
        rel=1e-9,  # the variance is a difference of sums
    )


def test_an_episode_is_summarised_without_the_one_before_it(make_prices):
    env = TradingVectorEnv(make_prices(60, seed=21), config_of(episode_length=10), n_envs=1)
    env.reset()
    infos = [env.step(torch.full((1, 1), 0.8))[4] for _ in range(20)]
    # Both episodes start at the first bar and do the same.
    first, second = infos[9]["episode"], infos[19]["episode"]
    assert {name: float(value[0]) for name, value in second.items()} == {n: float(v[0]) for n, v in first.items()}


def test_the_sharpe_ratio_of_an_account_that_never_traded_is_undefined(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(episode_length=10), n_envs=1)
    env.reset()
    for _ in range(10):
        infos = env.step(torch.zeros(1, 1))[4]
    assert math.isnan(float(infos["episode"]["sharpe"][0]))


def test_a_summary_is_not_changed_by_later_bars(make_prices):
    env = TradingVectorEnv(make_prices(60, seed=13), config_of(episode_length=5), n_envs=1)
    env.reset()
    for _ in range(5):
        infos = env.step(torch.ones(1, 1))[4]
    before = {name: float(value[0]) for name, value in infos["episode"].items()}
    for _ in range(3):
        env.step(torch.ones(1, 1))
    assert {name: float(value[0]) for name, value in infos["episode"].items()} == before


# Indexed observations.


@pytest.mark.parametrize("n_assets", [1, 3])
def test_bar_and_account_rebuild_every_observation_bit_for_bit(make_prices, n_assets):
    config = config_of(commission=0.001, execution_delay=1, random_start=True, episode_length=7)
    env = TradingVectorEnv(make_prices(60, n_assets, seed=14), config, n_envs=4)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(15)
    for _ in range(25):
        assert torch.equal(env.gather(env.bar, env.account_features()), observation)
        observation, _, _, _, infos = env.step(torch.as_tensor(rng.uniform(-1.0, 1.0, (4, n_assets))))
        if "final_obs" in infos:
            assert torch.equal(env.gather(infos["next_bar"], infos["next_account"]), infos["final_obs"])


def test_the_account_part_has_the_length_it_says(make_prices):
    env = TradingVectorEnv(make_prices(60, 3), config_of(execution_delay=2), n_envs=2)
    env.reset()
    assert env.account_features().shape == (2, env.account_dim) == (2, 3 + 3 + 1 + 6)


def test_observation_statistics_are_those_of_the_windows_that_can_be_seen(make_prices):
    env = TradingVectorEnv(make_prices(60, 2, seed=16), config_of(), n_envs=1)
    mean, std = env.observation_statistics()
    rows = env.market.features[env.market.first_bar - 2 :].astype(np.float64)
    np.testing.assert_allclose(mean[: env.market.window_dim], np.tile(rows.mean(0), 3), rtol=1e-12)
    np.testing.assert_allclose(std[: env.market.window_dim], np.tile(rows.std(0), 3), rtol=1e-12)


# Saving and going on.


def resumable(make_prices, **changes):
    config = config_of(
        **{
            "commission": 0.002,
            "minimum_commission": 5.0,
            "execution_delay": 2,
            "reward": "differential_sharpe",
            "random_start": True,
            "episode_length": 12,
            **changes,
        }
    )
    return TradingVectorEnv(make_prices(60, 2, seed=17), config, n_envs=5, seed=3)


def record(env, actions):
    """Return everything that 30 steps say, as one list of tensors."""
    said = []
    for action in actions:
        observation, reward, terminated, truncated, infos = env.step(action)
        said += [observation, reward, terminated, truncated, infos["next_bar"], infos["next_account"]]
        said += list(infos.get("episode", {}).values())
    return said


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_saved_environment_goes_on_bit_for_bit(make_prices):
    actions = torch.as_tensor(np.random.default_rng(18).uniform(-1.0, 1.0, (45, 5, 2)))
    env = resumable(make_prices)
    env.reset()
    record(env, actions[:15])
    saved = env.state_dict()
    expected = record(env, actions[15:])
    other = resumable(make_prices)
    other.load_state_dict(saved)
    assert_same_bits(record(other, actions[15:]), expected)


def test_a_state_can_be_loaded_twice(make_prices):
    actions = torch.as_tensor(np.random.default_rng(19).uniform(-1.0, 1.0, (45, 5, 2)))
    env = resumable(make_prices)
    env.reset()
    record(env, actions[:15])
    saved = env.state_dict()
    env.load_state_dict(saved)
    first = record(env, actions[15:])
    env.load_state_dict(saved)
    assert_same_bits(record(env, actions[15:]), first)


def test_loading_returns_the_present_observation(make_prices):
    env = resumable(make_prices)
    env.reset()
    action = torch.full((5, 2), 0.3)
    for _ in range(4):
        observation = env.step(action)[0]
    assert torch.equal(resumable(make_prices).load_state_dict(env.state_dict()), observation)


def test_a_state_survives_torch_save(make_prices, tmp_path):
    env = resumable(make_prices)
    env.reset()
    env.step(torch.full((5, 2), 0.3))
    torch.save(env.state_dict(), tmp_path / "state.pt")
    other = resumable(make_prices)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same_bits(record(other, [torch.full((5, 2), -0.2)]), record(env, [torch.full((5, 2), -0.2)]))


def test_a_state_of_another_number_of_accounts_is_refused(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(), n_envs=3)
    env.reset()
    with pytest.raises(ValueError, match="the saved environment has 3 accounts, this one 2"):
        TradingVectorEnv(make_prices(60), config_of(), n_envs=2).load_state_dict(env.state_dict())


@pytest.mark.parametrize("field", ["open", "close"])
def test_a_state_of_other_prices_is_refused(make_prices, field):
    frame = make_prices(60)
    env = TradingVectorEnv(frame, config_of(), n_envs=2)
    env.reset()
    other = frame.copy()
    other.loc[other.index[30], field] *= 1.001
    with pytest.raises(ValueError, match="trained on other prices or features"):
        TradingVectorEnv(other, config_of(), n_envs=2).load_state_dict(env.state_dict())


# From the scalar environment.


def test_vectorize_shares_the_market_and_takes_changes(make_prices):
    env = TradingEnvironment(make_prices(60), config_of())
    vector = env.vectorize(4, seed=1, random_start=True, commission=0.01)
    assert vector.market is env.market
    assert vector.num_envs == 4
    assert vector.config == dataclasses.replace(env.config, random_start=True, commission=0.01)


def test_a_change_that_alters_what_is_observed_is_refused(make_prices):
    with pytest.raises(ValueError, match="built with window_size=3, config says 4"):
        TradingEnvironment(make_prices(60), config_of()).vectorize(4, window_size=4)


def test_an_episode_longer_than_a_shared_market_is_refused(make_prices):
    with pytest.raises(ValueError, match="episode_length=58 is longer than the market's 60 bars allow"):
        TradingEnvironment(make_prices(60), config_of()).vectorize(4, episode_length=58)


@pytest.mark.parametrize(("choice", "expected"), [(0, 0.0), (1, 0.7), (2, -0.7)])
def test_discrete_choices_hold_buy_and_sell(make_prices, choice, expected):
    frame = make_prices(60)
    frame[:] = 10.0
    env = TradingVectorEnv(frame, config_of(action_type="discrete", max_weight=0.7), n_envs=2)
    env.reset()
    env.step(torch.tensor([choice, choice]))
    np.testing.assert_allclose(env.account.weight, expected, rtol=1e-15)


def test_holding_turns_over_exactly_nothing(make_prices):
    env = TradingVectorEnv(make_prices(60, 2, seed=20), config_of(minimum_commission=5.0), n_envs=3)
    env.reset()
    env.step(torch.full((3, 2), 0.4))
    for _ in range(20):
        env.step(torch.full((3, 2), torch.nan))
        assert env.account.turnover.tolist() == env.account.costs.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("n_assets", "action_type", "actions", "found"),
    [
        (1, "continuous", torch.zeros(3), r"shape \(3, 1\).*got \(3,\)"),
        (1, "continuous", torch.zeros(3, 2), r"shape \(3, 1\).*got \(3, 2\)"),
        (2, "continuous", torch.zeros(1, 2), r"shape \(3, 2\).*got \(1, 2\)"),
        (1, "discrete", torch.zeros(2, dtype=torch.int64), r"shape \(3,\).*got \(2,\)"),
        (2, "discrete", torch.zeros(3, dtype=torch.int64), r"shape \(3, 2\).*got \(3,\)"),
        (1, "discrete", torch.ones(3), "integer tensor, got torch.float32"),
        (1, "discrete", torch.ones(3, dtype=torch.bool), "integer tensor, got torch.bool"),
        (1, "discrete", torch.tensor([0, 1, 3]), "got 0 to 3"),
        (1, "discrete", torch.tensor([0, 1, -1]), "got -1 to 1"),
    ],
)
def test_actions_of_another_shape_or_kind_are_refused(make_prices, n_assets, action_type, actions, found):
    env = TradingVectorEnv(make_prices(60, n_assets), config_of(action_type=action_type), n_envs=3)
    env.reset()
    with pytest.raises(ValueError, match=found):
        env.step(actions)


def test_choices_of_small_integers_are_choices_and_no_mask(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(action_type="discrete", commission=0.0), n_envs=3)
    env.reset()
    env.step(torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert env.account.weight.sign().tolist() == [0.0, 1.0, -1.0]


# Without waiting for the device.

RESTARTS = {
    "length": {"episode_length": 7},
    "stops": {"max_drawdown": 0.05, "reward": "differential_sharpe"},
    "ruin": {"max_weight": 3.0, "max_gross_exposure": 3.0, "ruin_fraction": 0.9, "reward": "sortino"},
    "delay": {"episode_length": 5, "execution_delay": 2, "minimum_commission": 20.0},
    "discrete": {"episode_length": 6, "action_type": "discrete", "allow_short": False, "max_drawdown": 0.1},
}


class NoWaiting(TorchDispatchMode):
    """Fails on what would wait for an accelerator: values read, sizes that depend on values, tensors made of numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "is_nonzero")
        name = function.__name__.split(".")[0]
        by_mask = name == "index" and any(index is not None and index.dtype is torch.bool for index in args[1])
        assert name not in waits, function
        assert not by_mask, function
        return function(*args, **(kwargs or {}))


def both_ways(make_prices, n_assets, changes, n_envs=4):
    """Return the same accounts, restarted by index and by flag."""
    market = Market(make_prices(40, n_assets, seed=22, volatility=0.04), config_of(**changes))
    return [TradingVectorEnv(market, n_envs=n_envs, synchronous=way) for way in (True, False)]


def batch_of_actions(rng, env):
    actions = random_actions(rng, env.config, env.market.n_assets, env.num_envs)
    return as_tensor(env.config, actions)


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("restart", sorted(RESTARTS))
def test_accounts_restarted_by_flag_live_the_episodes_of_those_restarted_by_index(make_prices, n_assets, restart):
    waiting, free = both_ways(make_prices, n_assets, RESTARTS[restart])
    starts = {"start_bar": torch.tensor([6, 11, 17, 30])}
    assert_same_bits(waiting.reset(options=starts)[0], free.reset(options=starts)[0])
    rng, n_ended, n_terminated = np.random.default_rng(23), 0, 0
    for _ in range(60):
        actions = batch_of_actions(rng, waiting)
        *expected, infos = waiting.step(actions)
        *found, ours = free.step(actions)
        assert_same_bits(found, expected)
        done = found[2] | found[3]
        n_ended, n_terminated = n_ended + int(done.sum()), n_terminated + int(found[2].sum())
        assert_same_bits([ours["_final_obs"], ours["_episode"]], [done, done])
        if done.any():
            assert_same_bits(ours["final_obs"][done], infos["final_obs"][done])
            for name, values in infos["episode"].items():
                assert_same_bits(ours["episode"][name][done], values[done])
        for name in infos.keys() - {"final_obs", "_final_obs", "episode", "_episode"}:
            assert_same_bits(ours[name], infos[name])
        assert_same_bits([free.bar, free.account_features()], [waiting.bar, waiting.account_features()])
    assert n_ended >= 8
    assert n_terminated > 0 or restart in ("length", "delay")


@pytest.mark.parametrize("n_assets", [1, 2])
def test_accounts_restarted_by_flag_are_saved_and_go_on_bit_for_bit(make_prices, n_assets):
    def env():
        config = config_of(random_start=True, episode_length=6, execution_delay=1, reward="differential_sharpe")
        return TradingVectorEnv(make_prices(60, n_assets, seed=24), config, n_envs=5, seed=3, synchronous=False)

    actions = torch.as_tensor(np.random.default_rng(25).uniform(-1.0, 1.0, (30, 5, n_assets)))
    first, second = env(), env()
    first.reset()
    record(first, actions[:10])
    saved = first.state_dict()
    expected = record(first, actions[10:])
    second.load_state_dict(saved)
    assert_same_bits(record(second, actions[10:]), expected)


@pytest.mark.parametrize(("n_assets", "action_type"), [(1, "discrete"), (2, "continuous")])
@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_a_step_that_may_not_wait_does_not(make_prices, n_assets, action_type, reward):
    config = config_of(
        **COSTLY, action_type=action_type, reward=reward, random_start=True, episode_length=2, execution_delay=1
    )
    env = TradingVectorEnv(make_prices(60, n_assets, seed=26, volume=True), config, n_envs=3, synchronous=False)
    env.reset()
    rng = np.random.default_rng(27)
    actions = [batch_of_actions(rng, env) for _ in range(5)]
    with NoWaiting():
        for action in actions:
            env.step(action)


def test_a_step_that_may_wait_is_seen_to_wait(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(), n_envs=3, synchronous=True)
    env.reset()
    actions = torch.zeros(3, 1)
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        env.step(actions)


def test_restarts_by_flag_are_random_and_legal(make_prices):
    config = config_of(random_start=True, episode_length=1)
    env = TradingVectorEnv(make_prices(30), config, n_envs=500, synchronous=False)
    env.reset(seed=0)
    env.step(torch.zeros(500, 1))
    assert set(env.bar.tolist()) == set(range(6, 29))


def test_accounts_that_go_on_keep_their_bar_when_others_restart_by_flag(make_prices):
    config = config_of(random_start=True)
    env = TradingVectorEnv(make_prices(40), config, n_envs=3, synchronous=False)
    env.reset(options={"start_bar": torch.tensor([10, 38, 20])})
    env.step(torch.zeros(3, 1))
    assert env.bar[[0, 2]].tolist() == [11, 21]


def test_only_the_cpu_is_waited_for_unless_told_otherwise(make_prices):
    market = Market(make_prices(60), config_of())
    assert TradingVectorEnv(market).synchronous
    assert not TradingVectorEnv(market, synchronous=False).synchronous


def test_a_generator_of_another_kind_of_device_draws_anew(make_prices):
    env = TradingVectorEnv(make_prices(60), config_of(random_start=True), n_envs=3, seed=5)
    env.reset()
    state = env.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8), "generator_device": "cuda"}
    other = TradingVectorEnv(make_prices(60), config_of(random_start=True), n_envs=3, seed=6)
    fresh = other._generator.get_state()
    other.load_state_dict(state)
    assert_same_bits([other.state_dict()["generator"]], [fresh])
