"""A pass and its comparison: figures checked with a pencil, verdicts in words."""

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.training.diagnosis import action_histogram, saturation_share
from ml.tradingbots.training.formatting import format_change, format_interval, format_number, format_percent
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.trajectory import Trajectory, monthly_returns


def make_trajectory(name, strategy_returns, *, start="2024-01-01", turnover=None, costs=None, **changes):
    """A pass with the given returns on one asset; it trades once, at the start, unless told otherwise."""
    strategy_returns = np.asarray(strategy_returns, dtype=np.float64)
    n_steps = len(strategy_returns)
    once = np.zeros(n_steps)
    once[0] = 1.0
    fields = {
        "name": name,
        "timestamps": pd.date_range(start, periods=n_steps + 1, freq="D", tz="UTC"),
        "assets": ("SPY",),
        "equity_curve": 1_000.0 * np.concatenate([[1.0], np.cumprod(1.0 + strategy_returns)]),
        "weights": np.ones((n_steps + 1, 1)),
        "target_weights": np.ones((n_steps, 1)),
        "actions": np.linspace(-0.5, 0.5, n_steps)[:, None],
        "turnover": once if turnover is None else np.asarray(turnover, dtype=np.float64),
        "costs": np.zeros(n_steps) if costs is None else np.asarray(costs, dtype=np.float64),
        "rewards": np.log1p(np.maximum(strategy_returns, -0.999)),
        "bars_per_year": 252.0,
    }
    return Trajectory(**{**fields, **changes})


def noisy_market(n_steps=500):
    return np.random.default_rng(3).normal(0.0003, 0.01, n_steps)


def test_a_pass_is_summed_up_in_the_units_that_its_figures_promise():
    trajectory = make_trajectory(
        "sac",
        [0.10, -0.50, 0.20],
        turnover=[1.0, 0.0, 0.5],
        costs=[10.0, 0.0, 5.0],
        weights=np.array([[0.0], [1.0], [-0.5], [0.0]]),
        bars_per_year=3.0,
    )
    found = trajectory.metrics
    assert found["total_return"] == pytest.approx(-0.34)
    assert found["annual_return"] == pytest.approx(-0.34)
    assert found["max_drawdown"] == pytest.approx(0.5)
    assert found["average_turnover"] == pytest.approx(0.5)
    assert found["annual_turnover"] == pytest.approx(1.5)
    assert found["total_costs"] == 15.0
    assert found["cost_share"] == pytest.approx(0.015)
    assert found["mean_gross_exposure"] == pytest.approx(0.5)
    assert found["n_fills"] == 2
    assert found["final_equity"] == pytest.approx(660.0)


def test_the_sharpe_ratio_is_mean_over_deviation_times_the_root_of_the_bars_of_a_year():
    found = make_trajectory("sac", [0.02, -0.01, 0.02]).metrics
    assert found["sharpe_ratio"] == pytest.approx(0.01 / (0.01 * np.sqrt(3.0)) * np.sqrt(252.0))


def test_a_pass_of_the_wrong_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"turnover must have shape \(3,\) for 4 timestamps and 1 assets, got \(2,\)"):
        make_trajectory("sac", [0.1, 0.1, 0.1], turnover=[1.0, 0.0])


def test_actions_need_one_row_per_step():
    with pytest.raises(ValueError, match=r"actions must have shape \(3, action_dim\), got \(3,\)"):
        make_trajectory("sac", [0.1, 0.1, 0.1], actions=np.zeros(3))


def test_months_multiply_to_the_whole():
    trajectory = make_trajectory("sac", noisy_market(100), start="2024-01-20")
    months = monthly_returns(trajectory)
    assert [str(month) for month in months.index] == ["2024-01", "2024-02", "2024-03", "2024-04"]
    assert np.prod(1.0 + months) - 1.0 == pytest.approx(trajectory.metrics["total_return"])
    assert months.iloc[0] == pytest.approx(trajectory.equity_curve[11] / 1_000.0 - 1.0)


def test_the_excess_is_the_annual_difference_of_mean_log_returns():
    agent = make_trajectory("sac", [0.10, 0.0])
    hold = make_trajectory("buy_and_hold", [0.0, 0.05])
    result = EvaluationResult.from_trajectories(agent, {"buy_and_hold": hold}, n_bootstrap=10)
    assert result.excess == pytest.approx(252.0 * (np.log(1.10) - np.log(1.05)) / 2.0)


def test_an_agent_that_earns_more_every_day_wins_and_the_difference_is_real():
    market = noisy_market()
    extra = np.random.default_rng(4).normal(0.001, 0.001, len(market))
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market + extra), {"buy_and_hold": make_trajectory("buy_and_hold", market)}
    )
    assert result.verdict().startswith("The agent beat buy-and-hold out of sample: +")
    assert "The difference is distinguishable from zero: +" in result.verdict()
    assert result.is_distinguishable
    # The market's own noise, 16% a year, cancels in the paired difference, whose noise is ten times smaller.
    low, high = result.excess_interval
    assert low < result.excess < high
    assert high - low < 0.08


def test_an_agent_that_pays_for_nothing_loses_and_the_difference_is_real():
    market = noisy_market()
    drag = np.random.default_rng(4).normal(-0.001, 0.001, len(market))
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market + drag), {"buy_and_hold": make_trajectory("buy_and_hold", market)}
    )
    assert result.verdict().startswith("The agent did not beat buy-and-hold out of sample: ")
    assert "The difference is distinguishable from zero: −" in result.verdict()


def test_a_lucky_agent_is_told_that_its_win_may_be_luck():
    market = noisy_market()
    luck = np.random.default_rng(7).normal(0.0, 0.01, len(market))
    luck += 0.0002 - luck.mean()
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market + luck), {"buy_and_hold": make_trajectory("buy_and_hold", market)}
    )
    assert result.verdict().startswith("The agent beat buy-and-hold")
    assert "The difference is not distinguishable from zero: +" in result.verdict()
    assert not result.is_distinguishable


def test_an_agent_that_holds_ends_level_with_buy_and_hold():
    market = noisy_market(60)
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market), {"buy_and_hold": make_trajectory("buy_and_hold", market)}, n_bootstrap=50
    )
    assert result.verdict().startswith("The agent ended level with buy-and-hold out of sample: ")
    assert "not distinguishable from zero: 0.0% a year" in result.verdict()


def test_a_poorer_but_calmer_agent_gets_credit_for_its_risk():
    market = noisy_market()
    market += 0.0005 - market.mean()
    calm = 0.3 * (market - market.mean()) + 0.0004
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", calm), {"buy_and_hold": make_trajectory("buy_and_hold", market)}, n_bootstrap=50
    )
    assert "did not beat" in result.verdict()
    assert "Per unit of risk it did better: a Sharpe ratio of 2." in result.verdict()


def test_an_agent_that_wins_by_doing_nothing_is_not_praised_without_saying_so():
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", np.zeros(60), turnover=np.zeros(60)),
        {"buy_and_hold": make_trajectory("buy_and_hold", noisy_market(60) - 0.01)},
        n_bootstrap=10,
    )
    assert result.verdict().startswith("The agent beat buy-and-hold")
    assert result.verdict().endswith("The agent never traded.")


def test_a_result_on_training_prices_says_so():
    market = noisy_market(60)
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market + 0.01),
        {"buy_and_hold": make_trajectory("buy_and_hold", market)},
        n_bootstrap=10,
        sample="in sample",
    )
    assert "beat buy-and-hold in sample" in result.verdict()


def test_without_buy_and_hold_there_is_no_verdict():
    result = EvaluationResult.from_trajectories(make_trajectory("sac", noisy_market(60)), {}, n_bootstrap=10)
    assert result.verdict() == "There is no buy-and-hold baseline to compare the agent with."
    assert np.isnan(result.excess)
    assert not result.is_distinguishable


def test_without_a_bootstrap_nothing_is_claimed_about_luck():
    market = noisy_market(60)
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market + 0.01), {"buy_and_hold": make_trajectory("buy_and_hold", market)}, n_bootstrap=0
    )
    assert "Whether the difference can be told apart from luck was not estimated." in result.verdict()
    assert np.isnan(result.excess_interval).all()


def test_the_interval_of_a_sharpe_ratio_has_the_width_that_theory_gives():
    # On independent normal returns the standard error of an annual Sharpe ratio is about the root of 1 / years.
    n_years = 4
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", noisy_market(252 * n_years)), {}, n_bootstrap=500, block_size=5.0
    )
    low, high = result.sharpe_intervals["sac"]
    # 15%: the estimate of a quantile from 500 draws, and blocks of one path.
    assert (high - low) / 2.0 == pytest.approx(1.96 / np.sqrt(n_years), rel=0.15)


def test_the_same_seed_gives_the_same_intervals():
    market = noisy_market(100)
    passes = make_trajectory("sac", market[::-1]), {"buy_and_hold": make_trajectory("buy_and_hold", market)}
    first, second = (EvaluationResult.from_trajectories(*passes, n_bootstrap=50, seed=5) for _ in range(2))
    assert first.sharpe_intervals == second.sharpe_intervals
    assert first.excess_interval == second.excess_interval


def test_a_ruined_agent_is_compared_over_the_whole_period():
    agent = make_trajectory("sac", [-0.9])
    hold = make_trajectory("buy_and_hold", [0.01, 0.01, 0.01, 0.01])
    result = EvaluationResult.from_trajectories(agent, {"buy_and_hold": hold}, n_bootstrap=20)
    assert result.excess == pytest.approx(252.0 * (np.log(0.1) - 4.0 * np.log(1.01)) / 4.0)


def test_passes_over_different_prices_are_not_compared():
    agent = make_trajectory("sac", [0.01, 0.01])
    hold = make_trajectory("buy_and_hold", [0.01, 0.01], start="2020-01-01")
    with pytest.raises(ValueError, match="must be passes over the same closes"):
        EvaluationResult.from_trajectories(agent, {"buy_and_hold": hold})


def test_an_agent_needs_a_name_of_its_own():
    hold = make_trajectory("buy_and_hold", [0.01, 0.01])
    with pytest.raises(ValueError, match="like one of the baselines"):
        EvaluationResult.from_trajectories(hold, {"buy_and_hold": hold})


def test_the_table_has_the_agent_first_and_a_dash_where_a_ratio_is_undefined():
    market = noisy_market(60)
    result = EvaluationResult.from_trajectories(
        make_trajectory("sac", market, costs=[50.0] + [0.0] * 59),
        {"buy_and_hold": make_trajectory("buy_and_hold", market), "flat": make_trajectory("flat", np.zeros(60))},
        n_bootstrap=20,
    )
    table = result.table()
    assert list(table.index) == ["sac", "buy_and_hold", "flat"]
    assert table.loc["sac", "cost_share"] == pytest.approx(0.05)
    assert table.loc["sac", "sharpe_low"] < table.loc["sac", "sharpe_ratio"] < table.loc["sac", "sharpe_high"]
    shown = result.formatted_table()
    assert shown.loc["flat", "Sharpe"] == "–"
    assert shown.loc["flat", "95% interval"] == "–"
    assert shown.loc["flat", "Max drawdown"] == "0.0%"
    assert shown.loc["sac", "Max drawdown"].startswith("−")
    assert shown.loc["sac", "Costs"] == "5.0%"
    assert result.verdict() in str(result)


def test_an_agent_that_only_holds_is_told_that_it_never_orders():
    idle = make_trajectory("dqn", [0.0] * 4, turnover=[0.0] * 4, target_weights=np.full((4, 1), np.nan))
    findings = EvaluationResult(agent=idle).diagnosis()
    assert findings[0] == "It never trades: no fill in 4 bars. It never orders anything: every action means hold."


def test_an_agent_that_asks_to_be_flat_is_told_so():
    idle = make_trajectory(
        "sac", [0.0] * 4, turnover=[0.0] * 4, target_weights=np.zeros((4, 1)), actions=np.zeros((4, 1))
    )
    findings = EvaluationResult(agent=idle).diagnosis()
    assert "It always asks to be flat" in findings[0]
    assert findings[1] == "Its action is constant (0.00): the policy ignores what it observes."


def test_a_saturated_policy_is_named():
    actions = np.array([[1.0], [-1.0], [0.995], [0.2]])
    findings = EvaluationResult(agent=make_trajectory("sac", [0.01] * 4, actions=actions)).diagnosis()
    assert "75.0% of its actions lie at a bound of the range. The policy is saturated: all or nothing." in findings


def test_saturation_is_measured_against_the_bounds_of_the_action_space():
    long_only = make_trajectory("sac", [0.01] * 4, actions=np.array([[0.0], [0.5], [0.98], [1.0]]), action_low=0.0)
    assert saturation_share(long_only) == 0.5
    assert saturation_share(make_trajectory("dqn", [0.01] * 2, actions=np.array([[1], [1]]))) == 0.0


def test_the_histogram_of_amounts_covers_the_range_and_counts_everything():
    edges, shares = action_histogram(
        make_trajectory("sac", [0.01] * 4, actions=np.array([[-1.0], [-0.9], [0.0], [7.0]])), n_bins=4
    )
    assert edges.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert shares.tolist() == [0.5, 0.0, 0.25, 0.25]


def test_choices_are_counted_one_by_one():
    trajectory = make_trajectory("dqn", [0.01] * 4, actions=np.array([[0], [2], [2], [2]]))
    choices, shares = action_histogram(trajectory)
    assert (choices.tolist(), shares.tolist()) == ([0.0, 2.0], [0.25, 0.75])
    assert "Its most frequent action is 2, taken on 75.0% of bars." in EvaluationResult(agent=trajectory).diagnosis()


def test_costs_are_measured_against_the_profit_before_them():
    # 1,000 became 1,030 after costs of 10: a quarter of the 40 earned.
    findings = EvaluationResult(agent=make_trajectory("sac", [0.03, 0.0], costs=[6.0, 4.0])).diagnosis()
    assert findings[-1] == "Costs took 25.0% of its gross profit (1.0% of its initial equity)."


def test_costs_beyond_the_profit_took_all_of_it():
    findings = EvaluationResult(agent=make_trajectory("sac", [-0.01, 0.0], costs=[20.0, 0.0])).diagnosis()
    assert findings[-1] == "Costs took all of its gross profit (2.0% of its initial equity)."


def test_a_loss_before_costs_is_not_blamed_on_them():
    findings = EvaluationResult(agent=make_trajectory("sac", [-0.10, 0.0], costs=[20.0, 0.0])).diagnosis()
    assert findings[-1].startswith("It lost money even before costs")


def test_numbers_are_written_for_people():
    assert format_number(-1234.5) == "−1,234.50"
    assert format_percent(float("nan")) == "–"
    assert [format_change(value) for value in (0.1234, -0.2, -0.0001)] == ["+12.3%", "−20.0%", "0.0%"]
    assert format_interval((-0.01, 0.02), format_change) == "−1.0% to +2.0%"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n_bootstrap": -1}, "n_bootstrap"), ({"confidence": 95.0}, "confidence"), ({"block_size": 0.0}, "block_size")],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        EvaluationResult.from_trajectories(make_trajectory("sac", [0.01, 0.02]), {}, **arguments)
