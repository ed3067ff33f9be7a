"""The page about agents trained fold after fold, and its figures."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.agent_validation import walk_forward_agents
from ml.tradingbots.training.rl_training import RLTrainingConfig
from ml.tradingbots.training.walk_forward_figures import walk_forward_equity_figure, walk_forward_folds_figure
from ml.tradingbots.training.walk_forward_report import walk_forward_report_html, write_walk_forward_report

torch.set_num_threads(1)
PRICES = autoregressive(120, phi=0.3, seed=2).prices
CONFIG = SACConfig(hidden_dim=8, batch_size=8, learning_starts=20, buffer_size=500)


def check(**settings):
    return walk_forward_agents(
        lambda env, seed: create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, CONFIG, seed=seed),
        PRICES,
        TradingEnvConfig(window_size=3, commission=0.0, episode_length=10),
        RLTrainingConfig(total_timesteps=40, n_envs=2, progress=False, seed=5),
        WalkForwardValidator(train_size=60, test_size=20, embargo_size=2),
        **settings,
    )


@pytest.fixture(scope="module")
def found():
    return check(n_seeds=3, n_bootstrap=40)


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def test_every_seed_has_a_thin_line_and_the_median_a_thick_one(found):
    figure = walk_forward_equity_figure(found)
    seeds = found.equity.drop(columns="buy_and_hold")
    lines = [trace for trace in figure.data if trace.name == "seeds"]
    assert len(lines) == 3
    np.testing.assert_array_equal([line.y for line in lines], seeds.to_numpy().T)
    np.testing.assert_array_equal(traces(figure)["median"].y, seeds.median(axis=1))
    np.testing.assert_array_equal(traces(figure)["buy and hold"].y, found.equity["buy_and_hold"])
    assert [trace.showlegend for trace in lines] == [True, False, False]


def test_the_band_holds_the_middle_half_of_the_seeds(found):
    figure = walk_forward_equity_figure(found)
    low, high = (trace.y for trace in figure.data[:2])
    seeds = found.equity.drop(columns="buy_and_hold")
    np.testing.assert_allclose(low, seeds.quantile(0.25, axis=1), rtol=1e-12)
    np.testing.assert_allclose(high, seeds.quantile(0.75, axis=1), rtol=1e-12)


def test_one_seed_is_one_line_without_a_band():
    figure = walk_forward_equity_figure(check(n_seeds=1, n_bootstrap=0))
    assert [trace.name for trace in figure.data] == ["seed 5", "buy and hold"]


@pytest.mark.parametrize("measure", ["total_return", "sharpe_ratio", "max_drawdown"])
def test_folds_are_drawn_as_the_tables_have_them(found, measure):
    drawn = traces(walk_forward_folds_figure(found, measure=measure))
    np.testing.assert_array_equal(drawn["seeds"].y, found.runs[measure])
    np.testing.assert_array_equal(drawn["interquartile mean"].y, found.per_fold[measure])
    np.testing.assert_array_equal(drawn["buy and hold"].y, found.per_fold[f"buy_and_hold_{measure}"])


def test_unknown_measures_are_refused(found):
    with pytest.raises(ValueError, match=r"measure must be one of sharpe_ratio, .* got 'alpha'"):
        walk_forward_folds_figure(found, measure="alpha")


def test_the_page_states_the_verdict_the_folds_and_the_facts(found, tmp_path):
    facts = {"Agent": "<b>sac</b>"}
    path = write_walk_forward_report(tmp_path / "walk_forward.html", found, title="SAC & co", facts=facts)
    page = path.read_text(encoding="utf-8")
    assert found.verdict().replace("&", "&amp;") in page
    for cell in found.formatted_table()["Sharpe ratio"]:
        assert f"<td>{cell.partition(' (')[0]}<small>" in page
    assert "SAC &amp; co" in page
    assert "&lt;b&gt;sac&lt;/b&gt;" in page
    assert not re.search(r'<[^>]*\s(src|href)="', page[page.index("</script>") :])


def test_the_same_validation_gives_the_same_page(found):
    assert walk_forward_report_html(found) == walk_forward_report_html(found)


def test_where_nothing_was_estimated_the_page_claims_nothing(found):
    bare = dataclasses.replace(found, excess_interval=(float("nan"), float("nan")))
    assert bare.verdict().endswith("was not estimated.")
    page = walk_forward_report_html(check(n_seeds=1, n_bootstrap=0))
    assert "With one seed nothing is known about how runs differ" in page
    assert "(–)" not in page
