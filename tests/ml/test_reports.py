"""The report: one file, nothing fetched, the numbers of the result."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from ml.tradingbots.training.figure_style import MAX_POINTS
from ml.tradingbots.training.figures import (
    action_histogram_figure,
    drawdown_figure,
    equity_figure,
    monthly_returns_figure,
    training_curves_figure,
    turnover_and_costs_figure,
    weights_figure,
)
from ml.tradingbots.training.reports import report_html, write_report
from ml.tradingbots.training.results import EvaluationResult
from ml.tradingbots.training.trajectory import Trajectory

ALL_FIGURES = [
    equity_figure,
    drawdown_figure,
    weights_figure,
    turnover_and_costs_figure,
    monthly_returns_figure,
    action_histogram_figure,
]


def make_trajectory(name, strategy_returns, *, assets=("SPY",), freq="D", **changes):
    n_steps, n_assets = len(strategy_returns), len(assets)
    rng = np.random.default_rng(1)
    weights = rng.uniform(-1.0, 1.0, (n_steps + 1, n_assets)) / n_assets
    fields = {
        "name": name,
        "timestamps": pd.date_range("2023-01-01", periods=n_steps + 1, freq=freq, tz="UTC"),
        "assets": assets,
        "equity_curve": 1_000.0 * np.concatenate([[1.0], np.cumprod(1.0 + np.asarray(strategy_returns))]),
        "weights": weights,
        "target_weights": weights[1:],
        "actions": weights[1:] * n_assets,
        "turnover": np.full(n_steps, 0.1),
        "costs": np.full(n_steps, 0.5),
        "rewards": np.zeros(n_steps),
        "bars_per_year": 252.0,
    }
    return Trajectory(**{**fields, **changes})


def make_result(n_steps=300, **changes):
    rng = np.random.default_rng(0)
    passes = [
        make_trajectory(name, rng.normal(0.0003, 0.01, n_steps), **changes)
        for name in ("sac", "buy_and_hold", "random")
    ]
    agent, *baselines = passes
    return EvaluationResult.from_trajectories(agent, {each.name: each for each in baselines}, n_bootstrap=20)


@pytest.fixture(scope="module")
def result():
    return make_result()


@pytest.fixture(scope="module")
def history():
    return pd.DataFrame(
        {
            "num_timesteps": [100, 200, 300, 400],
            "critic_loss": [1.0, 0.5, 0.2, 0.1],
            "eval_sharpe": [np.nan, 0.3, np.nan, 0.6],
            "never": [np.nan] * 4,
            "note": ["a", "b", "c", "d"],
        }
    )


class Tags(HTMLParser):
    """Collects every tag, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text.append(data)


def test_the_report_is_one_file_that_fetches_nothing(result, history, tmp_path):
    path = write_report(tmp_path / "runs" / "report.html", result, history=history, title="SAC on SPY", facts={})
    page = path.read_text(encoding="utf-8")
    tags = Tags(page).tags
    assert not [attributes for tag, attributes in tags if "src" in attributes or tag in ("link", "iframe", "base")]
    assert not [attributes for _, attributes in tags if "href" in attributes]
    assert not re.search(r"@import|url\(", page[page.index("<style>") : page.index("</style>")])
    policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "content" in attributes)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert list(path.parent.iterdir()) == [path]


def test_plotly_is_in_the_page_once(result):
    page = report_html(result)
    # Its licence line stands at its head.
    assert len(re.findall(r"plotly\.js v\d", page)) == 1


def test_the_page_states_the_verdict_the_diagnosis_and_the_facts(result):
    text = " ".join(Tags(report_html(result, title="SAC on SPY", facts={"Seed": "7", "Costs": "10 bps"})).text)
    for expected in (result.verdict(), *result.diagnosis(), "SAC on SPY", "Seed", "10 bps", "2023-01-01 to 2023-10-28"):
        assert expected in text
    assert result.formatted_table().loc["sac", "95% interval"] in text


def test_names_cannot_smuggle_markup_into_the_page(result):
    hostile = "<img src=x onerror=alert(1)>"
    trajectory = make_trajectory(hostile, np.full(10, 0.01))
    page = report_html(EvaluationResult(agent=trajectory), title=hostile, facts={hostile: hostile})
    assert hostile not in page
    assert not [tag for tag, _ in Tags(page).tags if tag == "img"]


def test_the_same_result_gives_the_same_page(result, history):
    assert report_html(result, history=history) == report_html(result, history=history)


def test_a_report_replaces_the_one_before(result, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, result)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_shows_training_only_where_there_is_a_history(result, history):
    assert "<h2>Training</h2>" not in report_html(result)
    assert "<h2>Training</h2>" not in report_html(result, history=pd.DataFrame())
    assert "<h2>Training</h2>" in report_html(result, history=history)


@pytest.mark.parametrize("figure_of", ALL_FIGURES, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "changes",
    [{}, {"assets": ("AAPL", "MSFT", "KO")}, {"n_steps": 3}, {"n_steps": 400, "freq": "min"}, {"n_steps": 4_000}],
    ids=["one asset", "three assets", "three bars", "minutes", "eleven years"],
)
def test_every_figure_draws_every_kind_of_pass(figure_of, changes):
    figure = figure_of(make_result(**changes))
    assert isinstance(figure, go.Figure)
    assert figure.layout.title.text
    assert figure.to_json()


def test_the_equity_figure_shows_every_strategy_with_the_agent_on_top_and_first_in_the_legend(result):
    figure = equity_figure(result)
    assert [trace.name for trace in figure.data] == ["buy and hold", "random", "sac"]
    assert min(figure.data, key=lambda trace: trace.legendrank).name == "sac"
    assert figure.layout.yaxis.type == "log"
    np.testing.assert_array_equal(figure.data[-1].y, result.agent.equity_curve)


def test_axis_labels_of_the_equity_are_round_numbers():
    returns = np.concatenate([np.full(10, 0.1), np.full(10, -0.05)])
    ticks = equity_figure(EvaluationResult(agent=make_trajectory("sac", returns))).layout.yaxis
    assert ticks.ticktext == ("1k", "1.5k", "2k", "2.5k")
    assert ticks.tickvals == (1000.0, 1500.0, 2000.0, 2500.0)


def test_a_bankrupt_account_can_be_drawn():
    trajectory = make_trajectory("sac", [0.5, -1.0])
    result = EvaluationResult(agent=trajectory)
    assert equity_figure(result).layout.yaxis.type == "log"
    assert "sac" in report_html(result)


def test_a_drawdown_is_drawn_below_zero():
    figure = drawdown_figure(EvaluationResult(agent=make_trajectory("sac", [0.0, -0.2, 0.1])))
    np.testing.assert_allclose(figure.data[0].y, [0.0, 0.0, -0.2, -0.12], atol=1e-12)
    assert figure.layout.yaxis.tickformat == ".0%"


def test_a_long_pass_is_thinned_and_keeps_its_worst_moment():
    rng = np.random.default_rng(0)
    returns = rng.normal(0.0, 0.001, 20_000)
    returns[12_345], returns[12_346] = -0.5, 1.0
    figure = drawdown_figure(EvaluationResult(agent=make_trajectory("sac", returns, freq="min")))
    drawn = np.asarray(figure.data[0].y)
    assert len(drawn) <= MAX_POINTS + 2
    assert -drawn.min() == pytest.approx(figure_free_max_drawdown(returns))


def figure_free_max_drawdown(strategy_returns):
    equity = np.concatenate([[1.0], np.cumprod(1.0 + strategy_returns)])
    return float((1.0 - equity / np.maximum.accumulate(equity)).max())


def test_turnover_is_summed_and_costs_add_up(result):
    figure = turnover_and_costs_figure(result)
    assert sum(figure.data[0].y) == pytest.approx(300 * 0.1)
    assert figure.data[1].y[-1] == pytest.approx(300 * 0.5 / 1_000.0)


def test_the_months_of_a_year_multiply_to_the_year():
    returns = np.full(59, 0.001)
    figure = monthly_returns_figure(EvaluationResult(agent=make_trajectory("sac", returns)))
    labels = list(figure.data[0].text[0])
    # 30 steps lead to the close of January 31, 28 through February, and one to March 1.
    assert labels[:3] == ["+3.0", "+2.8", "+0.1"]
    assert labels[3:12] == [""] * 9
    assert labels[12] == "<b>+6.1</b>"


def test_choices_are_drawn_as_one_bar_each():
    trajectory = make_trajectory("dqn", np.full(4, 0.01), actions=np.array([[0], [2], [2], [2]]))
    bars = action_histogram_figure(EvaluationResult(agent=trajectory)).data[0]
    assert (list(bars.x), list(bars.y)) == ([0.0, 2.0], [0.25, 0.75])


def test_training_curves_skip_gaps_text_and_columns_that_were_never_logged(history):
    figure = training_curves_figure(history)
    assert [annotation.text for annotation in figure.layout.annotations] == ["eval sharpe", "critic loss"]
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([200, 400], [0.3, 0.6])


def test_a_history_without_numbers_is_refused():
    with pytest.raises(ValueError, match="history must have a numeric column besides num_timesteps"):
        training_curves_figure(pd.DataFrame({"num_timesteps": [1, 2]}))
