"""Walk-forward validation of agents: what they train on and live, the arithmetic of their tables, and every refusal."""

import dataclasses
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import trim_mean

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.sac_agent import SACAgent, SACConfig
from ml.tradingbots.core import metrics
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import PurgedKFold, WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.agent_validation import (
    MEASURES,
    interquartile_mean,
    stratified_interval,
    walk_forward_agents,
)
from ml.tradingbots.training.rl_training import RLTrainingConfig

torch.set_num_threads(1)
PRICES = autoregressive(120, phi=0.3, seed=2).prices
ENV = TradingEnvConfig(window_size=3, commission=0.0, episode_length=10)
TRAINING = RLTrainingConfig(total_timesteps=40, n_envs=2, progress=False, seed=5)
SPLITTER = WalkForwardValidator(train_size=60, test_size=20, embargo_size=2)
AGENT = SACConfig(hidden_dim=8, batch_size=8, learning_starts=20, buffer_size=500)


def sac(env, seed):
    return create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, AGENT, seed=seed)


def check(factory=sac, prices=PRICES, env=ENV, training=TRAINING, splitter=SPLITTER, **settings):
    return walk_forward_agents(factory, prices, env, training, splitter, **{"n_seeds": 1, "n_bootstrap": 40} | settings)


@pytest.fixture(scope="module")
def watched():
    """A validation over three folds and two seeds, what its factory was given, and its reports."""
    given, reports = [], []

    def factory(env, seed):
        given.append((env, seed))
        return sac(env, seed)

    return check(factory, n_seeds=2, report=reports.append), given, reports


@pytest.fixture(scope="module")
def found(watched):
    return watched[0]


# --- What is trained on and lived


def test_agents_train_on_the_training_rows_of_their_fold_and_nothing_else(watched):
    _, given, _ = watched
    folds = [train for train, _ in SPLITTER.split(PRICES) for _ in range(2)]
    assert [seed for _, seed in given] == [5, 6] * 3
    for (env, _), train in zip(given, folds, strict=True):
        assert env.market.bars.timestamps.equals(PRICES.index[train])


def test_prices_after_a_fold_change_nothing_in_it(found):
    changed = PRICES.copy()
    changed.iloc[80:] *= np.linspace(1.0, 2.0, 40)[:, None]
    moved = check(prices=changed, n_seeds=2)
    pd.testing.assert_frame_equal(found.runs.loc[[0]], moved.runs.loc[[0]], check_exact=True)
    pd.testing.assert_frame_equal(found.equity.iloc[:21], moved.equity.iloc[:21], check_exact=True)
    assert not found.runs.loc[[1]].equals(moved.runs.loc[[1]])


def test_every_test_bar_is_lived_once_from_the_close_before_the_first(found):
    assert found.equity.index.equals(PRICES.index[59:120])
    assert (found.equity.iloc[0] == 1.0).all()


def test_buy_and_hold_end_to_end_is_the_price_itself_where_trading_is_free(found):
    close = PRICES["close"].iloc[59:]
    np.testing.assert_allclose(found.equity["buy_and_hold"], close / close.iloc[0], rtol=1e-12)


def test_each_fold_pays_to_open_where_trading_costs():
    env = TradingEnvConfig(window_size=3, commission=0.01)
    held = check(env=env).equity["buy_and_hold"].iloc[-1]
    ratio = PRICES["close"].iloc[-1] / PRICES["close"].iloc[59]
    assert held == pytest.approx(ratio / 1.01**3, rel=1e-12)


def test_blocks_with_gaps_between_them_leave_the_gaps_out():
    splitter = WalkForwardValidator(train_size=60, test_size=10, step=25)
    found = check(splitter=splitter)
    assert found.equity.index.equals(PRICES.index[[59, *range(60, 70), *range(85, 95), *range(110, 120)]])


def test_undefined_rows_of_a_users_column_do_not_move_the_first_decision():
    prices = PRICES.assign(signal=np.where(np.arange(120) < 30, np.nan, np.sin(np.arange(120.0))))
    found = check(prices=prices, env=TradingEnvConfig(window_size=3, commission=0.0))
    assert found.equity.index.equals(PRICES.index[59:120])


def test_each_run_has_a_folder_of_its_own(tmp_path):
    training = RLTrainingConfig(total_timesteps=20, n_envs=2, progress=False, run_dir=str(tmp_path))
    splitter = WalkForwardValidator(train_size=60, test_size=30)
    check(training=training, splitter=splitter, n_seeds=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"fold_{fold}_seed_{seed}" for fold in (0, 1) for seed in (0, 1)
    ]


def test_progress_is_reported_once_for_each_run(watched):
    found, _, reports = watched
    assert [(report.fold, report.seed) for report in reports] == found.runs.index.tolist()
    assert [report.total_return for report in reports] == found.runs["total_return"].tolist()


# --- Tables


def test_end_to_end_is_fold_after_fold(found):
    for seed in (5, 6):
        growth = 1.0 + found.runs["total_return"].xs(seed, level="seed")
        assert found.equity[seed].iloc[-1] == pytest.approx(growth.prod(), rel=1e-12)


def test_figures_are_those_of_the_account_values(found):
    value = found.equity[6].iloc[20:41].to_numpy()
    earned = metrics.simple_returns(value)
    assert found.runs.loc[(1, 6), "sharpe_ratio"] == pytest.approx(
        metrics.sharpe_ratio(earned, bars_per_year=Bars.from_frame(PRICES).bars_per_year)
    )
    assert found.runs.loc[(1, 6), "max_drawdown"] == pytest.approx(metrics.max_drawdown(earned))


def test_tables_hold_the_interquartile_means_of_the_runs(found):
    for name in MEASURES:
        assert found.summary.loc[name, "agent"] == interquartile_mean(found.runs[name])
        of_fold = found.runs.loc[2, name]
        assert found.per_fold.loc[2, name] == interquartile_mean(of_fold)
        assert of_fold.min() <= found.per_fold.loc[2, f"{name}_low"] <= found.per_fold.loc[2, f"{name}_high"]
    assert found.to_frame().equals(found.per_fold)


def test_excess_is_the_yearly_difference_of_log_growth(found):
    logs = np.log(found.equity.iloc[-1])
    yearly = (logs[[5, 6]].mean() - logs["buy_and_hold"]) / 60 * Bars.from_frame(PRICES).bars_per_year
    assert found.excess == pytest.approx(yearly, rel=1e-9)
    assert found.excess_interval[0] < found.excess < found.excess_interval[1]


def test_same_seeds_same_runs_and_other_seeds_other_runs(found):
    again = check(n_seeds=2)
    pd.testing.assert_frame_equal(found.runs, again.runs, check_exact=True)
    assert (found.equity[5] != found.equity[6]).any()


def test_it_reads_as_a_table_with_a_conclusion(found):
    text = repr(found)
    assert "3 folds, 2 seeds" in text
    assert "all folds" in text
    assert "distinguishable from zero" in text


# --- Interquartile means


@pytest.mark.parametrize("n_scores", [1, 3, 4, 7, 12])
def test_the_interquartile_mean_is_the_papers(n_scores):
    scores = np.random.default_rng(n_scores).standard_normal(n_scores)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), rel=1e-12)


def test_an_undefined_score_is_not_cut_off_as_an_extreme_one():
    assert np.isnan(interquartile_mean([0.0, 1.0, 2.0, np.nan]))


def test_runs_are_drawn_within_their_fold():
    # Folds that differ by 100 and seeds that do not differ: drawn across folds, means would scatter.
    scores = np.tile([0.0, 100.0, 200.0], (4, 1))
    assert stratified_interval(scores, confidence=0.9, n_bootstrap=50, seed=0) == (100.0, 100.0)


def test_the_interval_holds_the_mean_of_normal_scores_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(120):
        low, high = stratified_interval(rng.standard_normal((10, 4)), confidence=0.9, n_bootstrap=100, seed=trial)
        held += low <= 0.0 <= high
    # Percentile intervals of ten runs are a little narrow; four standard errors of 120 trials are 0.11.
    assert 0.74 < held / 120 <= 0.99


def test_one_seed_has_no_interval():
    assert np.isnan(stratified_interval(np.ones((1, 3)), confidence=0.9, n_bootstrap=10, seed=0)).all()


# --- Refusals


@pytest.mark.parametrize(
    ("splitter", "match"),
    [
        (PurgedKFold(n_splits=3), "one stretch|after its test"),
        (WalkForwardValidator(train_size=60, test_size=20, step=10), "count twice"),
        (WalkForwardValidator(train_size=3, test_size=20), "full window"),
    ],
)
def test_folds_that_no_account_can_live_are_refused(splitter, match):
    with pytest.raises(ValueError, match=match):
        check(splitter=splitter)


def test_at_least_one_seed_is_needed():
    with pytest.raises(ValueError, match="n_seeds"):
        check(n_seeds=0)


@pytest.mark.parametrize(
    "wrong",
    [{"confidence": 1.0}, {"confidence": 95}, {"n_bootstrap": -1}, {"n_bootstrap": 2.5}, {"seed": -1}],
    ids=str,
)
def test_wrong_settings_of_intervals_are_refused_by_name_before_any_training(wrong):
    made = []
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be"):
        check(lambda env, seed: made.append(seed) or sac(env, seed), **wrong)
    assert not made


# --- Interrupted and resumed


def same(left, right):
    """Whether two validations agree to the bit."""
    for name in ("runs", "per_fold", "summary", "equity"):
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name), check_exact=True)
    return (left.excess, left.excess_interval) == (right.excess, right.excess_interval)


class InterruptedSAC(SACAgent):
    """Somebody presses Ctrl-C while it learns."""

    def training_steps(self, *arguments, **settings):
        for number, step in enumerate(super().training_steps(*arguments, **settings)):
            if number == 12:
                os.kill(os.getpid(), signal.SIGINT)
            yield step


def test_a_walk_forward_cut_between_two_runs_goes_on_to_the_same_tables(found, tmp_path):
    training = dataclasses.replace(TRAINING, run_dir=str(tmp_path))
    done, again = [], []

    def stop_after_two(report):
        done.append(report)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(training=training, n_seeds=2, report=stop_after_two)
    assert len(list(tmp_path.iterdir())) == 2
    kept = len((tmp_path / "fold_0_seed_5" / "metrics.csv").read_text().splitlines())
    resumed = check(training=training, n_seeds=2, report=again.append, resume=True)
    assert same(resumed, found)
    assert again[:2] == done
    assert len(again) == 6
    assert len((tmp_path / "fold_0_seed_5" / "metrics.csv").read_text().splitlines()) == kept


def test_a_walk_forward_cut_within_a_run_by_ctrl_c_goes_on_to_the_same_tables(found, tmp_path):
    training = dataclasses.replace(TRAINING, run_dir=str(tmp_path))
    reports = []

    def factory(env, seed):
        if len(reports) < 1:
            return sac(env, seed)
        return InterruptedSAC(env.observation_space_dim, env.action_space_dim, AGENT, seed=seed)

    with pytest.raises(KeyboardInterrupt, match="training stopped at"):
        check(factory, training=training, n_seeds=2, report=reports.append)
    assert len(reports) == 1  # The agent that was half trained was not evaluated.
    assert same(check(training=training, n_seeds=2, resume=True), found)


def test_runs_that_a_smaller_budget_ended_early_go_on_to_the_same_tables(found, tmp_path):
    training = dataclasses.replace(TRAINING, run_dir=str(tmp_path))
    check(training=dataclasses.replace(training, total_timesteps=26), n_seeds=2)
    assert same(check(training=training, n_seeds=2, resume=True), found)


def test_what_another_walk_forward_left_is_not_gone_on_with(found, tmp_path):
    training = dataclasses.replace(TRAINING, run_dir=str(tmp_path))
    check(training=dataclasses.replace(training, n_envs=4), n_seeds=2)

    def stop(_report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(training=training, n_seeds=2, report=stop)
    assert same(check(training=training, n_seeds=2, resume=True), found)


def test_without_a_folder_there_is_nothing_to_resume():
    with pytest.raises(ValueError, match="run_dir"):
        check(resume=True)
