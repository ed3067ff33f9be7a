"""Each reward against its formula, written out once more from the paper it comes from."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rewards import RATIO_BOUND, REWARDS, VOLATILITY_FLOOR, Outcome, create_reward

MOVING = ["differential_sharpe", "sortino"]


def outcome(simple_return, before=0.0, after=0.0):
    return Outcome(simple_return, math.log1p(simple_return), before, after)


def rewards_of(config, outcomes):
    reward = create_reward(config)
    memory, values = reward.initial_memory, []
    for each in outcomes:
        value, memory = reward.step(memory, each)
        values.append(value)
    return values


def of_returns(name, strategy_returns, **settings):
    return rewards_of(TradingEnvConfig(reward=name, **settings), [outcome(r) for r in strategy_returns])


def moody_saffell_sharpe(strategy_returns, decay):
    """D_t of equation 14, with moments that begin as plain averages and never a volatility below the floor."""
    first, second, values = 0.0, 0.0, []
    for n, r in enumerate(strategy_returns):
        delta_first, delta_second = r - first, r**2 - second
        variance = max(second - first**2, VOLATILITY_FLOOR**2)
        values.append((second * delta_first - 0.5 * first * delta_second) / variance**1.5)
        rate = max(1.0 / (n + 1), decay)
        first, second = first + rate * delta_first, second + rate * delta_second
    return values


def moody_saffell_sortino(strategy_returns, decay):
    """D_t of equation 22: by cases on the sign of the return."""
    first, downside, values = 0.0, 0.0, []
    for n, r in enumerate(strategy_returns):
        deviation = math.sqrt(max(downside, VOLATILITY_FLOOR**2))
        if r > 0.0:
            values.append((r - 0.5 * first) / deviation)
        else:
            values.append((deviation**2 * (r - 0.5 * first) - 0.5 * first * r**2) / deviation**3)
        rate = max(1.0 / (n + 1), decay)
        first += rate * (r - first)
        downside += rate * (min(r, 0.0) ** 2 - downside)
    return values


PAPER = {"differential_sharpe": moody_saffell_sharpe, "sortino": moody_saffell_sortino}


def test_every_reward_of_the_config_exists():
    assert {TradingEnvConfig(reward=name).reward for name in REWARDS} == set(REWARDS)


def test_log_return_is_the_log_of_growth():
    assert of_returns("log_return", [0.1, -0.2]) == pytest.approx([math.log(1.1), math.log(0.8)], rel=1e-15)


def test_return_is_growth_less_one():
    assert of_returns("return", [0.1, -0.2]) == [0.1, -0.2]


def test_calmar_charges_a_drawdown_that_deepens():
    (value,) = rewards_of(TradingEnvConfig(reward="calmar", drawdown_weight=2.0), [outcome(-0.1, 0.05, 0.145)])
    assert value == pytest.approx(math.log(0.9) - 2.0 * 0.095, abs=1e-15)


def test_calmar_does_not_pay_twice_for_a_recovery():
    (value,) = rewards_of(TradingEnvConfig(reward="calmar", drawdown_weight=2.0), [outcome(0.1, 0.145, 0.05)])
    assert value == math.log1p(0.1)


@pytest.mark.parametrize(
    ("simple_return", "penalty"), [(0.05, 0.0), (-0.01, 0.0), (-0.05, 3.0 * (-math.log(0.95) - 0.02))]
)
def test_cvar_charges_only_the_loss_beyond_the_threshold(simple_return, penalty):
    (value,) = of_returns("cvar", [simple_return], tail_threshold=0.02, tail_weight=3.0)
    assert value == pytest.approx(math.log1p(simple_return) - penalty, abs=1e-15)


def test_differential_sharpe_by_hand():
    # After returns 2% and 0%: A = 1%, B = 2e-4, B − A² = 1e-4. Then R = 3%: ΔA = 2%, ΔB = 7e-4.
    value = of_returns("differential_sharpe", [0.02, 0.0, 0.03], reward_warmup_bars=2)[-1]
    assert value == pytest.approx((2e-4 * 0.02 - 0.5 * 0.01 * 7e-4) / 1e-6, rel=1e-12)


def test_sortino_by_hand_after_a_gain():
    # After returns 2% and −2%: A = 0, D² = 2e-4. Then R = 3%: R / D.
    value = of_returns("sortino", [0.02, -0.02, 0.03], reward_warmup_bars=2)[-1]
    assert value == pytest.approx(0.03 / math.sqrt(2e-4), rel=1e-12)


def test_sortino_by_hand_after_a_loss():
    # After returns 4% and −2%: A = 1%, D² = 2e-4. Then R = −3%: (D²(R − ½A) − ½A·R²)/D³.
    value = of_returns("sortino", [0.04, -0.02, -0.03], reward_warmup_bars=2)[-1]
    assert value == pytest.approx((2e-4 * -0.035 - 0.005 * 9e-4) / 2e-4**1.5, rel=1e-12)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("decay", [0.01, 0.1])
def test_the_moving_rewards_are_the_formulas_of_moody_and_saffell(name, decay):
    strategy_returns = 0.002 + 0.015 * np.random.default_rng(1).standard_normal(300)
    values = of_returns(name, strategy_returns.tolist(), reward_decay=decay, reward_warmup_bars=20)
    # Both in float64; the differences of moments lose about three digits.
    np.testing.assert_allclose(values[20:], PAPER[name](strategy_returns, decay)[20:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("strategy_returns", [[0.0001] * 50 + [0.05], [0.25, 0.0], [-0.3, 0.5, -0.3]])
def test_a_moving_reward_stays_within_its_bound_where_returns_hardly_vary(name, strategy_returns):
    values = of_returns(name, strategy_returns, reward_warmup_bars=0)
    assert max(abs(value) for value in values) <= RATIO_BOUND


def test_differential_sharpe_is_the_slope_of_the_moving_sharpe_ratio():
    strategy_returns = 0.002 + 0.015 * np.random.default_rng(2).standard_normal(200)
    first, second, step = 0.0, 0.0, 1e-7
    for n, r in enumerate(strategy_returns[:-1]):
        rate = max(1.0 / (n + 1), 0.02)
        first, second = first + rate * (r - first), second + rate * (r**2 - second)

    def sharpe(rate):
        last = strategy_returns[-1]
        a, b = first + rate * (last - first), second + rate * (last**2 - second)
        return a / math.sqrt(b - a * a)

    value = of_returns("differential_sharpe", strategy_returns.tolist(), reward_decay=0.02)[-1]
    # A central difference is exact to step² and the rounding of the ratio over the step.
    assert value == pytest.approx((sharpe(step) - sharpe(-step)) / (2.0 * step), rel=1e-6)


@pytest.mark.parametrize("name", MOVING)
def test_the_moving_rewards_pay_nothing_in_their_warm_up(name):
    strategy_returns = 0.01 * np.random.default_rng(3).standard_normal(30)
    values = of_returns(name, strategy_returns.tolist(), reward_warmup_bars=20)
    assert values[:20] == [0.0] * 20
    assert all(value != 0.0 for value in values[20:])


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("first_return", [0.05, -0.05])
def test_the_first_trade_after_a_flat_stretch_is_no_miracle(name, first_return):
    values = of_returns(name, [0.0] * 500 + [first_return])
    # A 5% bar counts as at most 50 bars of the least volatility that counts, 0.1%.
    assert abs(values[-1]) <= 0.05 / VOLATILITY_FLOOR * (1.0 + 1e-12)  # rounding


@pytest.mark.parametrize("name", MOVING)
def test_trading_after_a_flat_stretch_stays_on_the_scale_of_trading(name):
    strategy_returns = [0.0] * 500 + (0.01 * np.random.default_rng(4).standard_normal(300)).tolist()
    assert max(map(abs, of_returns(name, strategy_returns))) < 100.0


@pytest.mark.parametrize("name", REWARDS)
def test_a_flat_account_earns_nothing(name):
    assert of_returns(name, [0.0] * 50, reward_warmup_bars=0) == [0.0] * 50


@pytest.mark.parametrize("name", REWARDS)
def test_a_better_bar_is_never_worth_less_than_a_worse_one(name):
    history = (0.001 + 0.01 * np.random.default_rng(5).standard_normal(100)).tolist()
    # Within one moving standard deviation of the mean the moving ratios rise with the return.
    last = [of_returns(name, [*history, r])[-1] for r in (-0.02, -0.01, 0.0, 0.01)]
    assert last == sorted(last)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(sorted(REWARDS)),
    strategy_returns=st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=40),
    warmup=st.integers(0, 5),
)
def test_floats_and_tensors_agree(name, strategy_returns, warmup):
    config = TradingEnvConfig(reward=name, reward_warmup_bars=warmup)
    equity = np.cumprod([1.0, *(1.0 + r for r in strategy_returns)])
    drawdown = 1.0 - equity / np.maximum.accumulate(equity)
    plain = [outcome(r, b, a) for r, b, a in zip(strategy_returns, drawdown, drawdown[1:], strict=False)]
    reward = create_reward(config)
    memory = tuple(torch.full((1,), value, dtype=torch.float64) for value in reward.initial_memory)
    for each, expected in zip(plain, rewards_of(config, plain), strict=True):
        values = (each.simple_return, each.log_return, each.drawdown_before, each.drawdown_after)
        value, memory = reward.step(memory, Outcome(*(torch.tensor([v], dtype=torch.float64) for v in values)))
        # The two libraries' pow may differ in the last place, which the memory carries along.
        assert float(value) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", REWARDS)
def test_accounts_in_a_batch_keep_their_own_memory(name):
    rng = np.random.default_rng(6)
    paths = 0.02 * rng.standard_normal((3, 40))
    reward = create_reward(TradingEnvConfig(reward=name, reward_warmup_bars=3))
    memory = tuple(torch.full((3,), value, dtype=torch.float64) for value in reward.initial_memory)
    zeros, together = torch.zeros(3, dtype=torch.float64), []
    for column in torch.as_tensor(paths).T:
        value, memory = reward.step(memory, Outcome(column, column.log1p(), zeros, zeros))
        together.append(value)
    alone = [of_returns(name, path.tolist(), reward_warmup_bars=3) for path in paths]
    np.testing.assert_allclose(torch.stack(together, 1), alone, rtol=1e-12, atol=1e-15)  # as above
