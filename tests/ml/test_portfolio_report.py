"""Managed portfolios beside the baselines: the comparison, which limits bound, and the page about them."""

import re

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import PortfolioConfig, PortfolioManager
from ml.tradingbots.components.portfolio_state import Proposal
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.data import Bars
from ml.tradingbots.training import backtest_portfolio, compare_portfolios, write_portfolio_report
from ml.tradingbots.training.portfolio_comparison import BASELINES, sharpe_gain
from ml.tradingbots.training.portfolio_figures import ASSET_COLOURS, holdings_figure, portfolio_equity_figure
from ml.tradingbots.training.portfolio_limits import binding_limits
from ml.tradingbots.training.portfolio_report import portfolio_report_html

N_BARS = 260


def market(n_assets=4, seed=0):
    steps = np.random.default_rng(seed).normal(0.0004, 0.01, (N_BARS, n_assets)) * np.linspace(0.5, 2.0, n_assets)
    dates = pd.bdate_range("2020-01-01", periods=N_BARS)
    closes = pd.DataFrame(
        100.0 * np.exp(steps.cumsum(axis=0)), index=dates, columns=[f"A{number}" for number in range(n_assets)]
    )
    return Bars.from_frame(closes)


BARS = market()
CONFIG = PortfolioConfig(max_weight=0.4, rebalance="MS", window_size=60, max_turnover=0.2)


class Wants:
    """A source that always wants the same weights."""

    def __init__(self, *weights):
        self.weights = np.array(weights)

    def first_bar(self, bars):
        return 1

    def propose(self, bars, state):
        return Proposal(weights=self.weights)


@pytest.fixture(scope="module")
def found():
    managers = {
        "careful": PortfolioManager(CONFIG, "minimum_variance"),
        "<b>short</b>": PortfolioManager(CONFIG, Wants(0.5, -0.3, 0.2, 0.0), allow_short=True, max_turnover=None),
    }
    return compare_portfolios(managers, BARS, n_bootstrap=60)


# The comparison


def test_baselines_pay_the_costs_of_the_manager_and_have_none_of_its_limits(found):
    assert tuple(found.baselines) == BASELINES
    plain = PortfolioConfig(rebalance="MS", window_size=60)
    alone = backtest_portfolio(PortfolioManager(plain, "minimum_variance"), BARS, start=60)
    np.testing.assert_array_equal(found.baselines["minimum_variance"].equity_curve, alone.trajectory.equity_curve)
    held = found.baselines["buy_and_hold"]
    assert (held.turnover[1:] == 0.0).all()
    # A fully invested purchase of everything: the share k of what is bought after it is paid.
    assert held.costs[0] == pytest.approx(100_000.0 * (1.0 - 1.0 / 1.001), rel=1e-9)


def test_all_accounts_begin_at_the_same_close(found):
    assert {account.timestamps[0] for account in found.strategies.values()} == {BARS.timestamps[60]}


def test_a_gain_is_the_difference_of_the_sharpe_ratios(found):
    table = found.table()
    expected = table["sharpe_ratio"] - table.loc["equal_weight", "sharpe_ratio"]
    np.testing.assert_allclose(table["sharpe_gain"], expected, atol=1e-12)
    bounded = table.drop(index="equal_weight")
    assert (bounded["sharpe_gain_low"] < bounded["sharpe_gain_high"]).all()
    assert table.loc["equal_weight", "sharpe_gain"] == 0.0


def test_what_two_accounts_share_cancels_in_the_interval():
    rng = np.random.default_rng(1)
    shared, own = rng.normal(0.0005, 0.01, 1_000), rng.normal(0.0, 0.001, 1_000)
    near = sharpe_gain(shared + own, shared, bars_per_year=252)
    far = sharpe_gain(rng.normal(0.0005, 0.01, 1_000), shared, bars_per_year=252)
    assert near.high - near.low < 0.3 * (far.high - far.low)


def test_the_gain_of_several_runs_is_the_mean_of_theirs():
    rng = np.random.default_rng(2)
    runs, other = rng.normal(0.0005, 0.01, (300, 3)), rng.normal(0.0005, 0.01, 300)
    found = sharpe_gain(runs, other, bars_per_year=252, n_samples=50)
    each = [sharpe_ratio(run, bars_per_year=252) - sharpe_ratio(other, bars_per_year=252) for run in runs.T]
    assert found.estimate == pytest.approx(np.mean(each), abs=1e-12)


def test_accounts_over_different_bars_are_refused():
    with pytest.raises(ValueError, match="same bars, got 10 and 9"):
        sharpe_gain(np.zeros(10), np.zeros(9), bars_per_year=252)


def test_a_manager_called_like_a_baseline_is_refused():
    with pytest.raises(ValueError, match="none of them called like a baseline"):
        compare_portfolios({"equal_weight": PortfolioManager(CONFIG)}, BARS)


def test_the_verdict_says_what_chance_explains(found):
    verdict = found.verdict()
    assert "Careful had a Sharpe ratio of" in verdict
    assert "95% interval" in verdict
    assert verdict.count("chance") == 2


def test_an_account_that_never_moves_is_not_judged():
    idle = compare_portfolios({"idle": PortfolioManager(CONFIG, Wants(0.0, 0.0, 0.0, 0.0))}, BARS, n_bootstrap=10)
    assert "Idle cannot be compared" in idle.verdict()
    assert portfolio_report_html(idle)


# Limits that bound


def bound(*wanted, **changes):
    config = PortfolioConfig(**{"costs": TransactionCosts(), "rebalance": 20} | changes)
    walk = backtest_portfolio(PortfolioManager(config, Wants(*wanted)), BARS, start=60)
    return binding_limits(walk.decisions, config)


def test_a_proposal_within_all_limits_is_bound_by_none():
    assert not bound(0.4, 0.2, 0.2, 0.2, max_weight=0.4).to_numpy().any()


@pytest.mark.parametrize(
    ("wanted", "changes", "name"),
    [
        ((0.9, 0.05, 0.0, 0.0), {"max_weight": 0.4}, "max_weight"),
        ((0.9, 0.05, 0.0, 0.0), {"max_weights": {"A0": 0.4}}, "max_weights"),
        ((0.5, -0.2, 0.2, 0.0), {}, "allow_short"),
        ((0.6, 0.6, 0.3, 0.3), {}, "max_gross_exposure"),
        ((0.3, 0.1, 0.1, 0.0), {"min_net_exposure": 0.8}, "min_net_exposure"),
        ((0.3, 0.3, 0.1, 0.0), {"max_net_exposure": 0.5}, "max_net_exposure"),
        (
            (0.4, 0.4, 0.1, 0.0),
            {"groups": {"two": ("A0", "A1")}, "max_group_exposure": {"two": 0.5}},
            "max_group_exposure: two",
        ),
    ],
)
def test_the_limit_that_moved_the_proposal_is_named_and_no_other(wanted, changes, name):
    table = bound(*wanted, **changes)
    assert table[name].all()
    assert not table.drop(columns=name).to_numpy().any()


def test_factors_bands_and_caps_are_named_where_they_act():
    wanted = (0.4, 0.3, 0.2, 0.1)
    assert bound(*wanted, volatility_target=0.01)["volatility_target"].all()
    assert bound(*wanted, drift_band=0.2)["drift_band"].iloc[1:].all()
    capped = bound(*wanted, max_turnover=0.3)["max_turnover"]
    assert capped.iloc[:3].all()
    assert not capped.iloc[-1]


# The page


def test_areas_add_up_to_what_is_held(found):
    account = found.managed["<b>short</b>"].trajectory
    figure = holdings_figure(account, "Weights")
    total = np.sum([trace.y for trace in figure.data], axis=0)
    np.testing.assert_allclose(total, account.weights.sum(axis=1), atol=1e-12)
    assert {trace.stackgroup for trace in figure.data} == {"maximum", "minimum"}


def test_small_positions_share_one_grey_area():
    wide = market(n_assets=15)
    walk = backtest_portfolio(PortfolioManager(PortfolioConfig(rebalance=50), "equal_weight", window_size=60), wide)
    figure = holdings_figure(walk.trajectory, "Weights")
    assert len(figure.data) == len(ASSET_COLOURS) + 1
    assert figure.data[-1].name == "3 others"
    total = np.sum([trace.y for trace in figure.data], axis=0)
    np.testing.assert_allclose(total, walk.trajectory.weights.sum(axis=1), atol=1e-12)


def test_accounts_are_drawn_from_one(found):
    figure = portfolio_equity_figure(found)
    assert [trace.y[0] for trace in figure.data] == [1.0] * 6


def test_the_page_states_the_verdict_the_table_and_the_facts(found, tmp_path):
    path = write_portfolio_report(tmp_path / "report.html", found, title="A & B", facts={"Prices": "<i>x</i>"})
    page = path.read_text(encoding="utf-8")
    text = page[page.index("</script>") :]
    for cell in found.formatted_table()["Sharpe"]:
        assert f"<td>{cell}</td>" in text
    for heading in ("Weights held, careful", "Turnover and costs, careful", "Limits that bound", "Decisions, careful"):
        assert f"{heading}" in text
    assert "A &amp; B" in text
    assert "&lt;i&gt;x&lt;/i&gt;" in text
    assert "<b>short</b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'<[^>]*\s(src|href)="', text)


def test_the_same_comparison_gives_the_same_page(found):
    assert portfolio_report_html(found) == portfolio_report_html(found)


def test_managers_that_pay_other_costs_are_not_compared():
    dear = PortfolioConfig(window_size=CONFIG.window_size, costs=TransactionCosts(commission_rate=0.01))
    managers = {"cheap": PortfolioManager(CONFIG), "dear": PortfolioManager(dear)}
    with pytest.raises(ValueError, match="managers 'cheap' and 'dear' must have the same costs"):
        compare_portfolios(managers, BARS)
