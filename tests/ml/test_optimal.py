"""The optimum is where theory, brute force and simulation say it is, and nothing beats it."""

import dataclasses
import math

import numpy as np
import pytest

from ml.tradingbots.core.accounting import carry, rebalance
from ml.tradingbots.data.optimal import optimal_policy, simulate_policy
from ml.tradingbots.data.synthetic import (
    Autoregressive,
    OrnsteinUhlenbeck,
    RandomWalk,
    Sine,
    autoregressive,
    ornstein_uhlenbeck,
)

COST_RATE = 0.0005
BPS = 1e-4
N_BARS = 200_000


@pytest.fixture(scope="module")
def momentum():
    """AR(1) at phi 0.3 and 1% volatility, discount 0.9."""
    return optimal_policy(Autoregressive(), cost_rate=COST_RATE, discount=0.9)


@pytest.fixture(scope="module")
def momentum_long_run():
    """The same at discount 1: no policy has a higher long-run average."""
    return optimal_policy(Autoregressive(), cost_rate=COST_RATE, discount=1.0)


@pytest.fixture(scope="module")
def reversion():
    """Ornstein-Uhlenbeck at reversion 0.1 and 1% volatility, discount 1."""
    return optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=1.0)


@pytest.fixture(scope="module")
def momentum_path():
    return autoregressive(N_BARS, seed=101)


@pytest.fixture(scope="module")
def reversion_path():
    return ornstein_uhlenbeck(N_BARS, seed=102)


def normal_nodes(n_nodes=601):
    nodes = np.linspace(-6.0, 6.0, n_nodes)
    probability = np.exp(-0.5 * nodes**2)
    return nodes, probability / probability.sum()


def next_states_and_returns(parameters, state, nodes):
    """One bar of the process, written out once more; (n_accounts, n_nodes) each."""
    if isinstance(parameters, Autoregressive):
        next_state = parameters.phi * state[:, None] + parameters.volatility * nodes
        return next_state, np.expm1(next_state)
    next_state = (1.0 - parameters.reversion) * state[:, None] + parameters.volatility * nodes
    return next_state, np.expm1(next_state - state[:, None])


def standard_error(log_rewards, batch=500):
    """Standard error of a mean of dependent rewards, from means over batches far longer than their memory."""
    means = log_rewards[: len(log_rewards) // batch * batch].reshape(-1, batch).mean(axis=1)
    return means.std(ddof=1) / math.sqrt(len(means))


def follow(decide, market, cost_rate=COST_RATE):
    """Log rewards of any rule (bar, weight) -> target, by the plainest loop."""
    close = market.prices["close"].to_numpy()
    weight, log_rewards = 0.0, []
    for t, asset_return in enumerate((close[1:] / close[:-1] - 1.0).tolist()):
        target = decide(t, weight)
        equity, _ = rebalance(1.0, weight, target, cost_rate=cost_rate)
        equity, weight = carry(equity, target, asset_return)
        log_rewards.append(math.log(equity))
    return np.array(log_rewards)


def test_without_costs_the_optimum_is_the_best_single_bet_of_every_bar():
    parameters = Autoregressive()
    policy = optimal_policy(parameters, cost_rate=0.0, discount=0.9)
    nodes, probability = normal_nodes()
    state = np.linspace(-5.0, 5.0, 1001) * parameters.stationary_deviation
    density = np.exp(-0.5 * (state / parameters.stationary_deviation) ** 2)
    _, asset_returns = next_states_and_returns(parameters, state, nodes)
    bets = [np.log1p(weight * asset_returns) @ probability for weight in np.linspace(-1.0, 1.0, 41)]
    expected = np.max(bets, axis=0) @ density / density.sum()
    # Linear interpolation between states widens their distribution a little.
    assert policy.mean_log_return == pytest.approx(expected, rel=1e-3)


def test_without_costs_the_optimum_is_long_after_a_rise_and_short_after_a_fall():
    policy = optimal_policy(Autoregressive(), cost_rate=0.0, discount=0.9)
    state = np.array([-0.02, -0.005, 0.005, 0.02])
    for weight in (-1.0, 0.0, 1.0):
        np.testing.assert_array_equal(policy.target_weight(state, np.full(4, weight)), [-1.0, -1.0, 1.0, 1.0])


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
@pytest.mark.parametrize("cost_rate", [0.0, COST_RATE])
def test_on_a_martingale_the_optimum_is_to_stay_flat(actions, cost_rate):
    policy = optimal_policy(RandomWalk(), cost_rate=cost_rate, discount=0.99, actions=actions)
    assert policy.target_weight(np.array([0.01]), np.zeros(1))[0] == 0.0
    assert policy.mean_log_return == pytest.approx(0.0, abs=1e-12)
    assert policy.value(np.array([0.0]), np.zeros(1))[0] == pytest.approx(0.0, abs=1e-7)


def test_a_zero_mean_log_return_is_worth_half_the_equity_to_an_account_without_costs():
    # Kelly: the simple return has mean sigma²/2 and variance sigma², so w = 1/2 and the gain is sigma²/8.
    policy = optimal_policy(Autoregressive(phi=0.0), cost_rate=0.0, discount=0.9)
    assert policy.target_weight(np.zeros(1), np.zeros(1))[0] == pytest.approx(0.5)
    assert policy.mean_log_return == pytest.approx(0.01**2 / 8.0, rel=1e-3)


def test_a_rising_random_walk_is_bought_once_and_held():
    parameters = RandomWalk(drift=0.0004)
    policy = optimal_policy(parameters, cost_rate=COST_RATE, discount=0.99)
    assert policy.target_weight(np.zeros(1), np.zeros(1))[0] == 1.0
    assert policy.mean_log_return == pytest.approx(parameters.mean_log_return, abs=1e-8)
    # The price of the purchase, and the mean log return of every bar from then on.
    expected = -math.log1p(COST_RATE) + parameters.mean_log_return / (1.0 - 0.99)
    assert policy.value(np.zeros(1), np.zeros(1))[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_costs_beyond_the_edge_keep_the_account_flat(actions):
    policy = optimal_policy(Autoregressive(), cost_rate=0.05, discount=0.9, actions=actions)
    state = np.linspace(-0.04, 0.04, 81)
    np.testing.assert_array_equal(policy.target_weight(state, np.zeros(81)), 0.0)
    assert policy.mean_log_return == pytest.approx(0.0, abs=1e-9)


def test_momentum_earns_about_21_basis_points_a_bar(momentum):
    assert momentum.mean_log_return == pytest.approx(20.79 * BPS, rel=2e-3)


def test_reversion_earns_about_17_basis_points_a_bar(reversion):
    assert reversion.mean_log_return == pytest.approx(16.64 * BPS, rel=2e-3)


def test_finer_grids_move_the_long_run_average_by_less_than_a_third_of_a_percent(momentum):
    for finer in ({"n_states": 481}, {"n_weights": 161}, {"n_nodes": 73}):
        refined = optimal_policy(Autoregressive(), cost_rate=COST_RATE, discount=0.9, **finer)
        assert refined.mean_log_return == pytest.approx(momentum.mean_log_return, rel=0.003)
    coarse = optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, n_weights=41, n_nodes=25)
    finer = optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, n_weights=41, n_states=481)
    assert finer.mean_log_return == pytest.approx(coarse.mean_log_return, rel=0.003)


@pytest.mark.parametrize("parameters", [Autoregressive(), OrnsteinUhlenbeck()], ids=["momentum", "reversion"])
def test_no_other_target_now_is_better_by_brute_force(parameters):
    """One step of lookahead over many targets and fine nodes, between grid points, returns the value itself."""
    policy = optimal_policy(parameters, cost_rate=COST_RATE, discount=0.9)
    generator = np.random.default_rng(7)
    nodes, probability = normal_nodes()
    state = generator.uniform(-3.0, 3.0, 200) * parameters.stationary_deviation
    weight = generator.uniform(-1.0, 1.0, 200)
    next_state, asset_returns = next_states_and_returns(parameters, state, nodes)
    best = np.full(200, -np.inf)
    for target in np.linspace(-1.0, 1.0, 21):
        side = np.sign(target - weight)
        remaining = (1.0 + side * COST_RATE * weight) / (1.0 + side * COST_RATE * target)
        growth = 1.0 + target * asset_returns
        later = policy.value(next_state.ravel(), (target * (1.0 + asset_returns) / growth).ravel())
        worth = np.log(remaining) + (np.log(growth) + 0.9 * later.reshape(growth.shape)) @ probability
        best = np.maximum(best, worth)
    residual = policy.value(state, weight) - best
    # Values are about 230 bps. What is left is interpolation, and the coarse 21 targets, which can only fall short.
    assert np.abs(residual).max() < 0.3 * BPS
    assert abs(residual.mean()) < 0.03 * BPS


@pytest.mark.parametrize("name", ["momentum", "reversion"])
def test_simulation_earns_the_computed_average(name, request):
    policy, path = request.getfixturevalue(name), request.getfixturevalue(f"{name}_path")
    log_rewards = simulate_policy(policy, path, cost_rate=COST_RATE)
    assert log_rewards.shape == (N_BARS - 1,)
    assert abs(log_rewards.mean() - policy.mean_log_return) < 3.0 * standard_error(log_rewards)


@pytest.mark.parametrize(
    ("make", "parameters", "tolerance"),
    [(autoregressive, Autoregressive(), 0.06 * BPS), (ornstein_uhlenbeck, OrnsteinUhlenbeck(), 0.20 * BPS)],
    ids=["momentum", "reversion"],
)
def test_expected_rewards_along_simulated_paths_average_to_the_computed_one(make, parameters, tolerance):
    """Each bar's expected instead of realised reward: most of the noise is gone; tolerances are 3 standard errors."""
    n_paths, n_bars = 250, 3_000
    policy = optimal_policy(parameters, cost_rate=COST_RATE, discount=0.9)
    states = np.stack([make(n_bars, seed=1_000 + seed).state for seed in range(n_paths)])
    nodes, probability = normal_nodes(41)
    weight, total = np.zeros(n_paths), np.zeros(n_paths)
    for t in range(n_bars - 1):
        target = policy.target_weight(states[:, t], weight)
        remaining, _ = rebalance(np.ones(n_paths), weight, target, cost_rate=COST_RATE)
        _, asset_returns = next_states_and_returns(parameters, states[:, t], nodes)
        total += np.log(remaining) + np.log1p(target[:, None] * asset_returns) @ probability
        memory = states[:, t] if isinstance(parameters, OrnsteinUhlenbeck) else 0.0
        _, weight = carry(np.ones(n_paths), target, np.expm1(states[:, t + 1] - memory))
    assert total.mean() / (n_bars - 1) == pytest.approx(policy.mean_log_return, abs=tolerance)


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_simulation_follows_target_weight(actions):
    policy = optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, actions=actions, n_states=81)
    path = ornstein_uhlenbeck(2_000, seed=9)

    def decide(t, weight):
        return float(policy.target_weight(path.state[t : t + 1], np.array([weight]))[0])

    expected = follow(decide, path)
    np.testing.assert_allclose(simulate_policy(policy, path, cost_rate=COST_RATE), expected, atol=1e-14)


def test_moved_bands_never_beat_the_optimum_by_more_than_noise(momentum_long_run, momentum_path):
    best = simulate_policy(momentum_long_run, momentum_path, cost_rate=COST_RATE)
    half_width = momentum_long_run.states[-1]
    for stretch, shift in ((0.8, 0.0), (1.2, 0.0), (1.0, 0.05), (1.0, -0.05), (0.5, 0.0), (2.0, 0.0)):
        moved = dataclasses.replace(momentum_long_run, states=stretch * momentum_long_run.states + shift * half_width)
        gained = simulate_policy(moved, momentum_path, cost_rate=COST_RATE) - best
        assert gained.mean() < 3.0 * standard_error(gained)


@pytest.mark.parametrize("name", ["momentum_long_run", "reversion"])
def test_simple_rules_earn_less_than_the_optimum(name, request):
    policy = request.getfixturevalue(name)
    path = request.getfixturevalue(f"{name.removesuffix('_long_run')}_path")
    direction = 1.0 if isinstance(policy.parameters, Autoregressive) else -1.0
    state = path.state.tolist()
    best = simulate_policy(policy, path, cost_rate=COST_RATE)
    rules = {
        "sign": lambda t, weight: math.copysign(1.0, direction * state[t]),
        "half": lambda t, weight: math.copysign(0.5, direction * state[t]),
        "buy and hold": lambda t, weight: 1.0,
        "flat": lambda t, weight: 0.0,
    }
    for rule, decide in rules.items():
        lost = best - follow(decide, path)
        # Trading the sign at every bar loses only about 2.5 bps, some two and a half standard errors of this path.
        assert lost.mean() > 2.0 * standard_error(lost), rule


def test_the_best_threshold_rule_of_all_comes_close_to_the_optimum(momentum_long_run, momentum_path):
    """Long above a threshold, short below minus it, else keep the weight's sign: nearly the optimum's form."""
    best = simulate_policy(momentum_long_run, momentum_path, cost_rate=COST_RATE)
    state = momentum_path.state.tolist()

    def threshold_rule(threshold):
        def decide(t, weight):
            if abs(state[t]) > threshold:
                return math.copysign(1.0, state[t])
            return max(-1.0, min(1.0, weight))

        return decide

    gained = [follow(threshold_rule(threshold), momentum_path) - best for threshold in np.arange(0.5, 3.5, 0.25) * 1e-3]
    closest = max(gained, key=np.mean)
    assert closest.mean() < 3.0 * standard_error(closest)
    assert closest.mean() > -0.005 * momentum_long_run.mean_log_return


def test_discrete_momentum_earns_nearly_what_continuous_momentum_earns(momentum):
    discrete = optimal_policy(Autoregressive(), cost_rate=COST_RATE, discount=0.9, actions="discrete")
    assert discrete.mean_log_return == pytest.approx(momentum.mean_log_return, rel=0.002)


def test_discrete_targets_are_hold_buy_and_sell():
    policy = optimal_policy(
        OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, actions="discrete", min_weight=-0.5, n_states=81
    )
    generator = np.random.default_rng(8)
    weight = generator.uniform(-0.5, 1.0, 500)
    target = policy.target_weight(generator.normal(0.0, 0.02, 500), weight)
    held, bought, sold = target == weight, target == 1.0, target == -0.5
    assert (held | bought | sold).all()
    assert held.any()
    assert bought.any()
    assert sold.any()


def test_a_long_only_account_never_goes_short():
    policy = optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, min_weight=0.0, n_states=121)
    state = np.linspace(-0.08, 0.08, 41)
    target = policy.target_weight(state, np.full(41, 0.5))
    assert target.min() == 0.0
    assert target.max() == 1.0
    both_sides = optimal_policy(OrnsteinUhlenbeck(), cost_rate=COST_RATE, discount=0.9, n_states=121)
    assert policy.mean_log_return < 0.6 * both_sides.mean_log_return


def test_a_drifted_short_is_bought_back_to_the_lowest_legal_weight(momentum):
    assert momentum.target_weight(np.array([-0.03]), np.array([-1.02]))[0] == -1.0


def test_higher_costs_earn_less_and_widen_the_band():
    cheap, dear = (
        optimal_policy(OrnsteinUhlenbeck(), cost_rate=cost_rate, discount=0.9, n_states=121, n_weights=41)
        for cost_rate in (0.0002, 0.002)
    )
    assert dear.mean_log_return < cheap.mean_log_return
    assert (dear.upper - dear.lower).sum() > (cheap.upper - cheap.lower).sum()
    assert (dear.lower <= dear.upper).all()


def test_a_policy_is_computed_the_same_twice():
    first, second = (optimal_policy(Autoregressive(), cost_rate=COST_RATE, discount=0.9) for _ in range(2))
    np.testing.assert_array_equal(first.after_trade_value, second.after_trade_value)
    assert first.mean_log_return == second.mean_log_return


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 0.0}, r"discount must be in \(0, 1\]"),
        ({"discount": 1.1}, r"discount must be in \(0, 1\]"),
        ({"cost_rate": -0.001}, "cost_rate must be at least 0"),
        ({"min_weight": 0.5}, "min_weight must be <= 0"),
        ({"min_weight": 0.0, "max_weight": 0.0}, "they must differ"),
        ({"actions": "sometimes"}, "actions must be 'continuous' or 'discrete'"),
        ({"n_weights": 1}, "n_weights must be at least 2"),
        ({"n_nodes": 5}, "n_nodes must be at least 11"),
        ({"parameters": Autoregressive(volatility=0.5)}, "can lose the whole equity"),
        ({"parameters": RandomWalk(volatility=0.0)}, "volatility must be above 0"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    valid = {"parameters": Autoregressive(), "cost_rate": COST_RATE, "discount": 0.9}
    with pytest.raises(ValueError, match=message):
        optimal_policy(**(valid | arguments))


def test_a_market_without_a_known_state_is_refused():
    with pytest.raises(TypeError, match=r"must be RandomWalk, Autoregressive or OrnsteinUhlenbeck.*got Sine"):
        optimal_policy(Sine(), cost_rate=COST_RATE, discount=0.9)


def test_in_a_faint_fair_game_whose_costs_exceed_the_edge_the_optimum_is_flat():
    parameters = Autoregressive(phi=0.02, volatility=0.05, mean_log_return=-0.5 * 0.05**2)
    policy = optimal_policy(parameters, cost_rate=0.005, discount=0.9)
    ordinary = np.linspace(-0.1, 0.1, 9)  # Two standard deviations either way.
    np.testing.assert_array_equal(policy.target_weight(ordinary, np.zeros(9)), np.zeros(9))
