"""The eight identities that every simulator of the project must keep, each checked from outside.

The account of `units_and_cash` (see `conftest.py`) knows cash and units only, and shares no code with the project.
"""

import json
import math
import warnings
from pathlib import Path

import gymnasium.utils.env_checker
import numpy as np
import pandas as pd
import pytest
import stable_baselines3.common.env_checker
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.data.bars import Bars

FREE = {"commission": 0.0}
RATES = {"commission": 0.002, "slippage_rate": 0.001}
TICKETS = {"commission": 0.001, "slippage_rate": 0.001, "minimum_commission": 40.0}
LEVERED = {"commission": 0.001, "max_weight": 1.5, "max_gross_exposure": 2.5}
INTEREST = {**LEVERED, "borrow_rate": 0.05, "margin_rate": 0.08, "cash_rate": 0.03}
COSTS = {"free": FREE, "rates": RATES, "tickets": TICKETS, "levered": LEVERED, "interest": INTEREST}

each_kind = pytest.mark.parametrize("n_assets", [1, 3])
each_data = pytest.mark.parametrize("has_open", [True, False], ids=["open", "close_only"])
each_costs = pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS.keys())


def config_of(**changes):
    return TradingEnvConfig(**{"window_size": 2, **changes})


def random_targets(n_steps, n_assets, *, seed, size=1.0):
    """Return targets over the whole box, a fifth of them no order; (n_steps, n_assets)."""
    rng = np.random.default_rng(seed)
    targets = rng.uniform(-size, size, (n_steps, n_assets))
    return np.where(rng.random(targets.shape) < 0.2, np.nan, targets)


class ScalarWalk:
    """The scalar environment as the identities see it: float64 equity, units, costs and rewards."""

    def __init__(self, market, config):
        self.env = TradingEnvironment(market, config)
        self.env.reset(seed=0)

    @property
    def units(self):
        return self.env.account_state.position

    def step(self, target):
        _, reward, terminated, truncated, info = self.env.step(target)
        return info["equity"], info["costs"], reward, terminated or truncated


class VectorWalk:
    """One account of a batch, the others of which do something else."""

    def __init__(self, market, config):
        self.env = TradingVectorEnv(market, config, n_envs=3)
        self.env.reset(seed=0)

    @property
    def units(self):
        account, close = self.env.account, self.env.market.bars.close
        bar = int(self.env.bar[1])
        return np.atleast_1d(account.weight[1].numpy()) * float(account.equity[1]) / close[bar]

    def step(self, target):
        account = self.env.account
        targets = torch.stack([torch.full((len(target),), w, dtype=torch.float64) for w in (0.1, 0.0, -0.1)])
        targets[1] = torch.as_tensor(target)
        before = float(self.env._sums[0][1])
        _, _, terminated, truncated, infos = self.env.step(targets)
        done = bool(terminated[1] | truncated[1])
        total = float(infos["episode"]["r"][1]) if done else float(self.env._sums[0][1])
        return float(account.equity[1]), float(account.costs[1]), total - before, done


each_walk = pytest.mark.parametrize("walk_of", [ScalarWalk, VectorWalk], ids=["scalar", "vector"])


def fill_prices(bars):
    """Return where the order decided at bar t is filled, row t; (n_bars − 1, n_assets)."""
    return bars.close[:-1] if bars.open is None else bars.open[1:]


def fills_of(walk, market, targets):
    """Walk to before the last bar; return the bars, the unit amounts filled, and equity, costs and rewards per bar."""
    bars, fill = market.bars, fill_prices(market.bars)
    first = market.first_bar
    rows = []
    for bar in range(first, min(first + len(targets), market.last_bar - 1)):
        before = walk.units
        equity, costs, reward, done = walk.step(targets[bar - first])
        assert not done
        amounts = walk.units - before
        # Units come back from weights: what is left of them where nothing was traded is rounding, not an order.
        amounts[np.abs(amounts) * fill[bar] < 1e-9 * equity] = 0.0
        rows.append((bar, amounts, equity, costs, reward))
    visited, amounts, *series = zip(*rows, strict=True)
    assert np.count_nonzero(amounts) > len(rows) / 2
    return list(visited), np.array(amounts), *map(np.array, series), bars


def simulate(simulator, bars, visited, amounts, config, *, with_costs=True):
    """Drive the simulator in units and cash with the fills; return its equity at each close."""
    rates = {name: getattr(config, name) for name in ("borrow_rate", "margin_rate", "cash_rate")}
    fees = {"commission_rate": config.commission, "slippage_rate": config.slippage_rate}
    fees = {**fees, "minimum_commission": config.minimum_commission} if with_costs else {}
    fill, equity = fill_prices(bars), []
    for bar, amount in zip(visited, amounts, strict=True):
        years = bars.years_between[bar]
        if bars.has_open:
            simulator.accrue(bars.close[bar], years, **rates)
        simulator.fill(amount, fill[bar], **fees)
        if not bars.has_open:
            simulator.accrue(fill[bar], years, **rates)
        equity.append(simulator.equity(bars.close[bar + 1]))
    return np.array(equity)


# Identity 1: Σ log rewards = ln(final / initial); Σ fills' costs = the gap to the cost-free account path at equal units.


@each_kind
@each_data
@each_costs
@each_walk
def test_1_log_rewards_sum_to_the_log_growth_of_equity(make_prices, n_assets, has_open, costs, walk_of):
    config = config_of(**costs)
    market = Market(make_prices(80, n_assets, seed=1, has_open=has_open), config)
    _, _, equity, _, rewards, _ = fills_of(walk_of(market, config), market, random_targets(80, n_assets, seed=2))
    # A sum of 76 logs, each rounded once.
    assert rewards.sum() == pytest.approx(math.log(equity[-1] / config.initial_balance), rel=1e-11, abs=1e-13)


@each_kind
@each_data
@pytest.mark.parametrize("costs", [RATES, TICKETS, LEVERED], ids=["rates", "tickets", "levered"])
@each_walk
def test_1_costs_sum_to_the_gap_to_the_free_account(make_prices, units_and_cash, n_assets, has_open, costs, walk_of):
    config = config_of(**costs)
    market = Market(make_prices(80, n_assets, seed=3, has_open=has_open), config)
    visited, amounts, equity, paid, _, bars = fills_of(
        walk_of(market, config), market, random_targets(80, n_assets, seed=4)
    )
    free = units_and_cash(config.initial_balance, n_assets)
    free_equity = simulate(free, bars, visited, amounts, config, with_costs=False)
    # On the scale of the equity, from which both sides are differences.
    np.testing.assert_allclose(free_equity - equity, paid.cumsum(), atol=1e-9 * config.initial_balance)


# Identity 2: equity = cash + Σ units · price at every bar, to 1e-9 relative.


@each_kind
@each_data
@each_costs
@each_walk
def test_2_equity_is_cash_plus_units_times_price(make_prices, units_and_cash, n_assets, has_open, costs, walk_of):
    config = config_of(**costs)
    market = Market(make_prices(80, n_assets, seed=5, has_open=has_open), config)
    targets = random_targets(80, n_assets, seed=6, size=config.max_weight)
    visited, amounts, equity, paid, _, bars = fills_of(walk_of(market, config), market, targets)
    simulator = units_and_cash(config.initial_balance, n_assets)
    np.testing.assert_allclose(simulate(simulator, bars, visited, amounts, config), equity, rtol=1e-9)
    assert simulator.paid == pytest.approx(paid.sum(), abs=1e-9 * config.initial_balance)


@each_kind
@each_data
def test_2_the_account_state_holds_the_cash_of_the_simulator(make_prices, units_and_cash, n_assets, has_open):
    config = config_of(**INTEREST)
    market = Market(make_prices(60, n_assets, seed=7, has_open=has_open), config)
    walk = ScalarWalk(market, config)
    visited, amounts, *_, bars = fills_of(walk, market, random_targets(60, n_assets, seed=8))
    simulator = units_and_cash(config.initial_balance, n_assets)
    simulate(simulator, bars, visited, amounts, config)
    state = walk.env.account_state
    assert state.cash == pytest.approx(simulator.cash, abs=1e-9 * config.initial_balance)
    np.testing.assert_allclose(state.position, simulator.units, rtol=1e-9, atol=1e-9)


# Identity 3: at constant prices, equity falls by exactly the costs of the turnover.


@each_kind
@each_data
@each_walk
def test_3_at_constant_prices_equity_falls_by_the_costs_of_turnover(make_prices, n_assets, has_open, walk_of):
    frame = make_prices(40, n_assets, has_open=has_open)
    frame[:] = 10.0
    config = config_of(**RATES)
    walk, equity = walk_of(Market(frame, config), config), config.initial_balance
    for target in random_targets(35, n_assets, seed=9):
        turnover_before = equity
        after, costs, _, _ = walk.step(target)
        account = walk.env.account
        turnover = account.turnover if walk_of is ScalarWalk else float(account.turnover[1])
        # Differences of equity are rounded on its scale.
        assert turnover_before - after == pytest.approx(costs, abs=1e-9)
        assert costs == pytest.approx(0.003 * turnover * equity, abs=1e-9)
        equity = after


@each_kind
@each_walk
def test_3_at_constant_prices_without_costs_nothing_changes(make_prices, n_assets, walk_of):
    frame = make_prices(40, n_assets)
    frame[:] = 10.0
    config = config_of(commission=0.0)
    walk = walk_of(Market(frame, config), config)
    equity = [walk.step(target)[0] for target in random_targets(35, n_assets, seed=10)]
    assert equity == [config.initial_balance] * 35


# Identity 4: prices times a constant, same returns; assets permuted, same equity; n accounts in a batch = n alone.


@each_kind
@each_walk
@pytest.mark.parametrize("factor", [0.001, 7.3])
def test_4_prices_times_a_constant_give_the_same_equity(make_prices, n_assets, walk_of, factor):
    frame, config = make_prices(60, n_assets, seed=11), config_of(**INTEREST)
    targets = random_targets(50, n_assets, seed=12)
    plain, scaled = (walk_of(Market(table, config), config) for table in (frame, factor * frame))
    for target in targets:
        # Ratios of scaled prices differ in their last place.
        assert scaled.step(target)[0] == pytest.approx(plain.step(target)[0], rel=1e-11)


@each_walk
@pytest.mark.parametrize("costs", [RATES, TICKETS, INTEREST], ids=["rates", "tickets", "interest"])
def test_4_permuting_the_assets_changes_no_equity(make_prices, walk_of, costs):
    frame, config, order = make_prices(60, 3, seed=13), config_of(**costs), [2, 0, 1]
    assets = ["AAA", "BBB", "CCC"]
    columns = [(field, assets[asset]) for field in ("open", "close") for asset in order]
    plain = walk_of(Market(frame, config), config)
    permuted = walk_of(Market(frame[columns], config), config)
    for target in random_targets(50, 3, seed=14):
        # The sums over assets are added in another order.
        assert permuted.step(target[order])[0] == pytest.approx(plain.step(target)[0], rel=1e-11)


@each_kind
@each_data
def test_4_accounts_in_a_batch_are_the_same_accounts_alone(make_prices, n_assets, has_open):
    config = config_of(**INTEREST, execution_delay=1)
    market = Market(make_prices(60, n_assets, seed=15, has_open=has_open), config)
    starts = [5, 11, 23, 3, 17, 8, 30]
    targets = np.stack([random_targets(25, n_assets, seed=16 + account) for account in range(len(starts))], axis=1)
    together = TradingVectorEnv(market, config, n_envs=len(starts))
    together.reset(options={"start_bar": torch.tensor(starts)})
    alone = [TradingEnvironment(market, config) for _ in starts]
    for env, start in zip(alone, starts, strict=True):
        env.reset(options={"start_bar": start})
    for row in targets:
        together.step(torch.as_tensor(row))
        expected = [env.step(target)[4]["equity"] for env, target in zip(alone, row, strict=True)]
        # Torch and NumPy may add and multiply in another order.
        np.testing.assert_allclose(together.account.equity, expected, rtol=1e-12)


# Identity 5: bars after t changed or removed: everything up to t unchanged, bit for bit.

CAUSAL_FEATURES = ("log_return", "momentum:5", "volatility:5", "zscore:5", "rsi:2", "drawdown_from_high:8")
LAST_COMMON_BAR = 55


def exchange_hours(n_bars):
    """Return the closes of hourly bars on weekdays, seven a day."""
    days = pd.bdate_range("2020-01-01", periods=n_bars // 7 + 1)
    return pd.DatetimeIndex([day + pd.Timedelta(hours=10 + hour) for day in days for hour in range(7)][:n_bars])


def with_another_future(frame, change, seed):
    """Return the same bars up to the last common one, and others (or none) after it."""
    if change == "removed":
        return frame.iloc[: LAST_COMMON_BAR + 1]
    other = frame.copy()
    wild = np.exp(np.random.default_rng(seed).standard_normal(len(frame) - LAST_COMMON_BAR - 1))
    other.iloc[LAST_COMMON_BAR + 1 :] = frame.iloc[LAST_COMMON_BAR + 1 :].to_numpy() * wild[:, None]
    return other


def bits(*values):
    # As numbers: None, where no order was asked for, becomes NaN, whose bits compare equal.
    return b"".join(np.asarray(value, dtype=np.float64).tobytes() for value in values)


def scalar_history(frame, config):
    """Return the bytes of every observation, reward and info up to the last common bar."""
    env = TradingEnvironment(frame, config)
    observation, info = env.reset(seed=0)
    history = [bits(observation, *info.values())]
    for target in random_targets(LAST_COMMON_BAR - info["bar"], env.market.n_assets, seed=17):
        observation, reward, terminated, _, info = env.step(target)
        history.append(bits(observation, reward, terminated, *info.values()))
    assert info["bar"] == LAST_COMMON_BAR
    return history


def vector_history(frame, config):
    env = TradingVectorEnv(frame, config, n_envs=2)
    observation, _ = env.reset(seed=0)
    history = [bits(observation)]
    targets = random_targets(LAST_COMMON_BAR - int(env.bar[0]), env.market.n_assets, seed=18)
    for target in targets:
        observation, reward, terminated, _, infos = env.step(torch.as_tensor(np.stack([target, -target])))
        observation = infos.get("final_obs", observation)
        history.append(
            bits(observation, reward, terminated, infos["next_bar"], env.account.costs, env.account.turnover)
        )
    assert int(infos["next_bar"][0]) == LAST_COMMON_BAR
    return history


@each_kind
@each_data
@pytest.mark.parametrize("change", ["changed", "removed"])
@pytest.mark.parametrize("history_of", [scalar_history, vector_history])
@pytest.mark.parametrize("reward", ["log_return", "differential_sharpe"])
def test_5_later_bars_change_nothing_before_them(make_prices, n_assets, has_open, change, history_of, reward):
    frame = make_prices(75, n_assets, seed=19, has_open=has_open, volume=True, extra=True)
    features = (*CAUSAL_FEATURES, "volume_change:5", *(["open_gap"] if has_open else []))
    config = config_of(features=features, reward=reward, reward_warmup_bars=5, impact_coefficient=0.3, **INTEREST)
    assert history_of(with_another_future(frame, change, 20), config) == history_of(frame, config)


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_5_later_intraday_bars_change_no_impact_before_them(make_prices, change):
    frame = make_prices(75, seed=21, volume=True).set_axis(exchange_hours(75))
    config = config_of(impact_coefficient=0.3)
    assert scalar_history(with_another_future(frame, change, 22), config) == scalar_history(frame, config)


# Identity 6: the sign of the bar just seen, on a driftless random walk, earns nothing beyond noise and pays its costs.

N_WALK_BARS, N_BLOCKS, WALK_VOLATILITY = 20_001, 200, 0.01


def follow_the_last_bar(frame, sign, cost_rate):
    """Trade the sign of the bar just seen over 200 stretches of 99 bars.

    Returns:
        Simple returns before costs and costs over equity, per bar; (n_bars_traded,) each.
    """
    config = TradingEnvConfig(window_size=1, commission=cost_rate)
    env = TradingVectorEnv(frame, config, n_envs=N_BLOCKS)
    length = (N_WALK_BARS - 1) // N_BLOCKS
    env.reset(options={"start_bar": torch.arange(N_BLOCKS) * length + 1})
    close = torch.as_tensor(env.market.bars.close[:, 0].copy())
    earned, paid = [], []
    for _ in range(length - 1):
        seen = close[env.bar] - close[env.bar - 1]
        before = env.account.equity
        env.step(sign * torch.sign(seen)[:, None])
        costs = env.account.costs / before
        earned.append(env.account.growth - 1.0 + costs)
        paid.append(costs)
    return torch.cat(earned).numpy(), torch.cat(paid).numpy()


@each_data
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["follow", "fade"])
@pytest.mark.parametrize("seed", [31, 32, 33, 34])
def test_6_the_bar_just_seen_earns_nothing_on_a_random_walk(make_prices, has_open, sign, seed):
    frame = make_prices(N_WALK_BARS, seed=seed, has_open=has_open, volatility=WALK_VOLATILITY)
    earned, _ = follow_the_last_bar(frame, sign, cost_rate=0.0)
    standard_error = earned.std(ddof=1) / math.sqrt(len(earned))
    # The standard error is 0.7 basis points a bar; a fill that sees its own bar earns E|r|, 80 basis points.
    assert standard_error < 1e-4
    assert abs(earned.mean()) < 4.0 * standard_error


@each_data
@pytest.mark.parametrize("seed", [35, 36])
def test_6_trading_the_bar_just_seen_pays_its_costs(make_prices, has_open, seed):
    frame = make_prices(N_WALK_BARS, seed=seed, has_open=has_open, volatility=WALK_VOLATILITY)
    earned, paid = follow_the_last_bar(frame, 1.0, cost_rate=0.001)
    net = earned - paid
    standard_error = net.std(ddof=1) / math.sqrt(len(net))
    # The sign turns every second bar, and a turn trades twice the equity: 10 basis points a bar.
    assert paid.mean() == pytest.approx(0.001, rel=0.05)
    assert abs(net.mean() + paid.mean()) < 4.0 * standard_error
    assert net.mean() < -5.0 * standard_error


# Identity 7: our fills handed to an independent simulator as unit amounts give the same equity. These are numbers that
# vectorbt produced (`oracles/make_vectorbt_numbers.py`); `test_vectorbt_oracle.py` compares with vectorbt itself.

ORACLE = json.loads((Path(__file__).parent / "oracles" / "vectorbt_equity.json").read_text())


@pytest.fixture(params=ORACLE["cases"], ids=[case["name"] for case in ORACLE["cases"]])
def case(request):
    return request.param


def bars_of(case):
    close, open_ = (None if case[name] is None else np.array(case[name]) for name in ("close", "open"))
    timestamps = pd.date_range("2024-01-01", periods=len(close), freq="D")
    return Bars(timestamps, tuple(case["assets"]), close, open_)


def test_7_the_environment_has_the_equity_of_vectorbt(case):
    env = TradingEnvironment(bars_of(case), TradingEnvConfig(**case["config"]))
    env.reset(seed=0)
    equity = [env.step(np.array(target, dtype=np.float64))[4]["equity"] for target in case["targets"]]
    np.testing.assert_allclose(equity, case["equity"], rtol=1e-9)


def test_7_the_vector_environment_has_the_equity_of_vectorbt(case):
    env = TradingVectorEnv(bars_of(case), TradingEnvConfig(**case["config"]), n_envs=1)
    env.reset(seed=0)
    equity = []
    for target in case["targets"][:-1]:  # The last step starts a new episode.
        env.step(torch.tensor([target], dtype=torch.float64))
        equity.append(float(env.account.equity[0]))
    np.testing.assert_allclose(equity, case["equity"][:-1], rtol=1e-9)


def test_7_the_environment_fills_the_amounts_that_vectorbt_was_given(case):
    env = TradingEnvironment(bars_of(case), TradingEnvConfig(**case["config"]))
    env.reset(seed=0)
    amounts = []
    for target in case["targets"]:
        before = env.account_state.position
        env.step(np.array(target, dtype=np.float64))
        amounts.append(env.account_state.position - before)
    # Units near 1,000 that come back from weights.
    np.testing.assert_allclose(amounts, case["amounts"], atol=1e-8)


def test_7_the_simulator_of_these_tests_has_the_equity_of_vectorbt(case, units_and_cash):
    bars, config = bars_of(case), TradingEnvConfig(**case["config"])
    visited = range(case["first_bar"], case["first_bar"] + len(case["amounts"]))
    simulator = units_and_cash(config.initial_balance, bars.n_assets)
    equity = simulate(simulator, bars, visited, np.array(case["amounts"]), config)
    np.testing.assert_allclose(equity, case["equity"], rtol=1e-9)


def test_7_the_cases_hold_shorts_and_a_portfolio_that_shares_its_cash():
    held = {case["name"]: np.cumsum(case["amounts"], axis=0) for case in ORACLE["cases"]}
    assert {amounts.shape[1] for amounts in held.values()} == {1, 3}
    assert all((amounts < -1.0).any() and (amounts > 1.0).any() for amounts in held.values())


# Identity 8: the environment checkers of Gymnasium and Stable-Baselines3 pass on every environment.

ADVICE = [
    # An unbounded Box is right for raw features; agents normalise them.
    "A Box observation space minimum value is -infinity",
    "A Box observation space maximum value is infinity",
    # Environments are made from data, not by name from a registry.
    "Not able to test alternative render modes",
    # Advice for SB3's own Gaussian policies: targets are weights, bounded by the limits of the account.
    "We recommend you to use a symmetric and normalized Box action space",
]
KINDS = {
    "continuous": {},
    "discrete": {"action_type": "discrete"},
    "long_only": {"allow_short": False},
    "discrete_long_only": {"action_type": "discrete", "allow_short": False},
    "delayed": {"execution_delay": 2},
    "random_start": {"random_start": True, "episode_length": 10},
}


@each_kind
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(
    "check",
    [gymnasium.utils.env_checker.check_env, stable_baselines3.common.env_checker.check_env],
    ids=["gymnasium", "sb3"],
)
def test_8_the_environment_checkers_pass(make_prices, n_assets, kind, check):
    env = TradingEnvironment(make_prices(60, n_assets, seed=23), config_of(**kind))
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message=rf".*{message}")
        check(env)
