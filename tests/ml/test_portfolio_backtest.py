"""Walking a portfolio manager over prices: the environment's equity, identities, no look-ahead."""

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import (
    DQNConfig,
    PortfolioConfig,
    PortfolioManager,
    PPOConfig,
    RidgePredictor,
    TradingEnvConfig,
    TradingEnvironment,
    create_rl_agent,
)
from ml.tradingbots.components.portfolio_state import Proposal
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.data import Bars
from ml.tradingbots.data.rebalance_calendar import rebalance_bars
from ml.tradingbots.training import (
    EvaluationResult,
    audit_look_ahead,
    backtest_portfolio,
    evaluate_agent,
    write_report,
)

UNLIMITED = {"allow_short": True, "max_weight": None, "max_gross_exposure": None}
CHARGED = TransactionCosts(
    commission_rate=0.001, slippage_rate=0.0005, borrow_rate=0.02, margin_rate=0.05, cash_rate=0.01
)


class RandomTargets:
    """A source that wants other weights at every bar; which, only the bar decides."""

    def __init__(self, size=0.5, holds=True):
        self.size, self.holds = size, holds

    def first_bar(self, bars):
        return 1

    def propose(self, bars, state):
        rng = np.random.default_rng(bars.n_bars)
        weights = rng.normal(0.0, self.size, bars.n_assets)
        if self.holds:
            weights[rng.random(bars.n_assets) < 0.3] = np.nan
        return Proposal(weights=weights)


def walked_in_the_environment(prices, source, costs, start=1):
    """Return equity and costs of the same targets, given to a TradingEnvironment."""
    bars = Bars.from_frame(prices)
    config = TradingEnvConfig(
        window_size=1,
        max_weight=100.0,
        max_gross_exposure=1_000.0,
        commission=costs.commission_rate,
        **{name: getattr(costs, name) for name in ("slippage_rate", "borrow_rate", "margin_rate", "cash_rate")},
    )
    env = TradingEnvironment(prices, config)
    _, info = env.reset(options={"start_bar": start})
    equity, paid = [info["equity"]], []
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(source.propose(bars.slice(0, info["bar"] + 1), None).weights)
        equity.append(info["equity"])
        paid.append(info["costs"])
        done = terminated or truncated
    return np.array(equity), np.array(paid)


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("has_open", [True, False])
def test_without_limits_and_lots_equity_is_the_environments(make_prices, n_assets, has_open):
    prices, source = make_prices(80, n_assets, seed=4, has_open=has_open), RandomTargets()
    found = backtest_portfolio(PortfolioManager(source=source, costs=CHARGED, **UNLIMITED), prices)
    equity, paid = walked_in_the_environment(prices, source, CHARGED)
    np.testing.assert_allclose(found.trajectory.equity_curve, equity, rtol=1e-9)
    np.testing.assert_allclose(found.trajectory.costs, paid, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_managed_agent_earns_what_its_evaluation_says(make_prices, discrete):
    prices = make_prices(120, 3, seed=5)
    env = TradingEnvironment(
        prices, TradingEnvConfig(window_size=5, action_type="discrete" if discrete else "continuous")
    )
    name, config = (
        ("dqn", DQNConfig(learning_starts=16, hidden_dim=16))
        if discrete
        else ("ppo", PPOConfig(n_steps=32, hidden_dim=16))
    )
    agent = create_rl_agent(name, env.observation_space_dim, env.action_space_dim, config, seed=0)
    agent.train(env, total_timesteps=64)
    evaluated = evaluate_agent(agent, env, n_bootstrap=0).agent
    costs = TransactionCosts(commission_rate=env.config.commission)
    managed = backtest_portfolio(PortfolioManager(source=agent, costs=costs, **UNLIMITED), prices).trajectory
    np.testing.assert_allclose(managed.equity_curve, evaluated.equity_curve, rtol=1e-9)
    assert evaluated.turnover.sum() > 0.0


LOTS = {"lot_size": 1.0, "minimum_notional": 200.0}
COSTS = TransactionCosts(commission_rate=0.001, slippage_rate=0.0005, minimum_commission=1.0)


@pytest.mark.parametrize("lots", [{}, LOTS])
@pytest.mark.parametrize("limits", [{}, UNLIMITED, {"max_weight": 0.4, "max_turnover": 0.3, "drift_band": 0.02}])
def test_accounts_add_up(make_prices, units_and_cash, lots, limits):
    prices, initial = make_prices(90, 3, seed=6), 50_000.0
    config = PortfolioConfig(**lots, **limits, costs=COSTS)
    found = backtest_portfolio(PortfolioManager(config, RandomTargets(0.3)), prices, initial_balance=initial)
    trajectory, fills, bars = found.trajectory, found.fills, Bars.from_frame(prices)
    close = bars.close[-len(trajectory.timestamps) :]
    # equity = cash + Σ units · price
    worth = found.cash.to_numpy() + (found.positions.to_numpy() * close).sum(axis=1)
    np.testing.assert_allclose(worth, trajectory.equity_curve, rtol=1e-9)
    # Fees and turnover of the fills are those of the account.
    per_bar = fills.assign(size=fills["notional"].abs()).groupby(level=0)[["costs", "size"]].sum()
    per_bar = per_bar.reindex(trajectory.timestamps[1:], fill_value=0.0)
    np.testing.assert_allclose(per_bar["costs"], trajectory.costs, atol=1e-9 * initial)
    at_open = trajectory.equity_curve[:-1] + (found.positions.to_numpy()[:-1] * (bars.open[2:] - close[:-1])).sum(
        axis=1
    )
    np.testing.assert_allclose(per_bar["size"] / at_open, trajectory.turnover, atol=1e-9)
    # The plainest account, given the fills, ends with the same equity.
    plain = units_and_cash(initial, 3)
    for step, time in enumerate(trajectory.timestamps[1:]):
        orders = fills.loc[[time]].set_index("asset")["units"] if time in fills.index else pd.Series(dtype=float)
        amounts = orders.reindex(trajectory.assets, fill_value=0.0).to_numpy()
        plain.fill(amounts, bars.open[step + 2], commission_rate=0.001, slippage_rate=0.0005, minimum_commission=1.0)
        assert plain.equity(close[step + 1]) == pytest.approx(trajectory.equity_curve[step + 1], rel=1e-9)
    assert len(fills) > 20


def test_positions_are_whole_shares_and_cash_is_never_borrowed(make_prices):
    manager = PortfolioManager(source=RandomTargets(0.6, holds=False), **LOTS)
    found = backtest_portfolio(manager, make_prices(200, 4, seed=7), initial_balance=5_000.0)
    units = found.positions.to_numpy()
    np.testing.assert_allclose(units, np.round(units), atol=1e-9)
    assert (found.cash >= -1e-9 * 5_000.0).all()
    assert found.fills["notional"].abs().min() >= 200.0 - 1e-6


def test_impact_is_paid_for_too(make_prices):
    costs = TransactionCosts(commission_rate=0.001, impact_coefficient=0.5)
    prices = make_prices(80, 3, seed=8, volume=True)
    found = backtest_portfolio(PortfolioManager(source=RandomTargets(0.2), costs=costs), prices)
    assert found.fills["costs"].sum() == pytest.approx(found.trajectory.costs.sum(), rel=1e-9)
    assert (found.fills["costs"] > 0.001 * found.fills["notional"].abs()).all()


EVERYTHING = PortfolioConfig(
    allow_short=True,
    max_weight=0.5,
    max_net_exposure=0.8,
    groups={"pair": ("AAA", "BBB")},
    max_group_exposure={"pair": 0.6},
    volatility_target=0.15,
    kelly_fraction=2.0,
    risk_window=20,
    brake_start=0.02,
    drift_band=0.01,
    max_turnover=0.4,
    exceed_turnover=True,
    lot_size=1.0,
    minimum_notional=100.0,
    window_size=20,
)


def audited(manager_of, prices, n_checks=3):
    # Differences of any size are findings; only rows that a shorter table cannot have yet are none.
    return audit_look_ahead(
        lambda table: backtest_portfolio(manager_of(table), table, start=30).decided,
        prices,
        n_checks=n_checks,
        truncation_tolerance=1e-300,
    )


def test_nothing_decided_moves_when_the_future_does(make_prices):
    prices = make_prices(70, 3, seed=9)
    found = audited(lambda table: PortfolioManager(EVERYTHING, "inverse_volatility"), prices)
    assert found.passed, found
    assert found.checks["n_compared"].sum() > 300


def test_nothing_decided_on_forecasts_moves_when_the_future_does(make_prices):
    prices = make_prices(70, 3, seed=9)
    predictor = RidgePredictor(window_size=4).fit(make_prices(200, 3, seed=10))
    found = audited(lambda table: PortfolioManager(EVERYTHING, predictor), prices)
    assert found.passed, found


def test_the_audit_finds_a_manager_that_looks_ahead(make_prices):
    class Seer(RandomTargets):
        def __init__(self, table):
            self.close = Bars.from_frame(table).close

        def propose(self, bars, state):
            ahead = min(bars.n_bars, len(self.close) - 1)
            return Proposal(weights=np.sign(self.close[ahead] / self.close[bars.n_bars - 1] - 1.0) / 3.0)

    found = audited(lambda table: PortfolioManager(source=Seer(table), **UNLIMITED), make_prices(60, 3), n_checks=2)
    assert not found.passed


def test_a_source_is_shown_no_bar_after_the_decision(make_prices):
    seen = []

    class Watching(RandomTargets):
        def propose(self, bars, state):
            seen.append(bars.timestamps[-1])
            return super().propose(bars, state)

    found = backtest_portfolio(PortfolioManager(source=Watching(), rebalance=3), make_prices(40, 2))
    assert seen == [decision.timestamp for decision in found.decisions] == list(found.trajectory.timestamps[:-1:3])


def test_limits_hold_at_every_fill(make_prices):
    config = PortfolioConfig(max_weight=0.4, groups={"pair": ("AAA", "BBB")}, max_group_exposure={"pair": 0.5})
    found = backtest_portfolio(PortfolioManager(config, RandomTargets(holds=False)), make_prices(100, 4, seed=3))
    targets = found.trajectory.target_weights
    assert targets.max() <= 0.4 + 1e-9
    assert targets.min() >= 0.0
    assert targets.sum(axis=1).max() <= 1.0 + 1e-9
    assert targets[:, :2].sum(axis=1).max() <= 0.5 + 1e-9


def test_months_are_decided_on_their_first_bars(make_prices):
    prices = make_prices(120, 2)
    found = backtest_portfolio(PortfolioManager(source=RandomTargets(), rebalance="MS"), prices)
    decided = found.decided.index
    assert [time.month for time in decided[1:]] == [2, 3, 4, 5, 6]
    assert [time.day for time in decided[1:]] == [3, 2, 1, 1, 1]  # 2020-02-01 and 2020-03-01 were weekend days.
    assert np.isnan(found.trajectory.target_weights).all(axis=1).sum() >= 110


def test_a_calendar_of_bars_counts_from_the_first_decision():
    days = pd.date_range("2024-01-01", periods=10, tz="UTC")
    assert rebalance_bars(days, 4, first=3).tolist() == [3, 7]
    with pytest.raises(ValueError, match="first must be one of the 10 bars"):
        rebalance_bars(days, 4, first=10)


def test_bars_that_come_later_move_no_rebalance():
    days = pd.date_range("2024-01-01", periods=400, freq="B", tz="UTC")
    whole = rebalance_bars(days, "3MS", first=10)
    for n_bars in (11, 50, 200, 399):
        assert rebalance_bars(days[:n_bars], "3MS", first=10).tolist() == whole[whole < n_bars].tolist()


def test_lengths_shorter_than_a_bar_decide_at_every_bar_without_walking_all_of_them():
    days = pd.date_range("2010-01-01", periods=500, freq="B", tz="UTC").as_unit("us")
    for every in ("1us", "1s", "1min"):  # Walked one by one, microseconds would take days.
        assert rebalance_bars(days, every).tolist() == list(range(500))


@pytest.mark.parametrize(
    ("every", "unit"), [("1ns", "us"), ("99999999999D", "us"), ("999999D", "ns"), ("9999MS", "ns")]
)
def test_a_length_that_no_calendar_has_is_refused_by_name(every, unit):
    days = pd.date_range("2010-01-01", periods=50, freq="B", tz="UTC").as_unit(unit)
    with pytest.raises(ValueError, match=f"rebalance must be a .*length.*{every}"):
        rebalance_bars(days, every)


def test_reports_and_baselines_take_the_trajectory(make_prices, tmp_path):
    prices = make_prices(150, 3, seed=11)
    found = backtest_portfolio(PortfolioManager(source="inverse_volatility", window_size=40), prices)
    result = EvaluationResult.from_trajectories(found.trajectory, found.baselines(), n_bootstrap=0)
    assert {"portfolio", "buy_and_hold", "flat"} <= set(result.table().index)
    assert write_report(tmp_path / "report.html", result).is_file()


def test_buying_equal_weights_once_is_the_baseline(make_prices):
    prices = make_prices(100, 3, seed=12)
    manager = PortfolioManager(source="equal_weight", window_size=30, rebalance=1_000)
    found = backtest_portfolio(manager, prices)
    baseline = found.baselines()["buy_and_hold"]
    np.testing.assert_allclose(found.trajectory.equity_curve, baseline.equity_curve, rtol=1e-9)


def test_a_start_without_a_full_window_is_refused(make_prices):
    with pytest.raises(ValueError, match="start must lie between bar 252"):
        backtest_portfolio(PortfolioManager(), make_prices(300, 2), start=10)
