"""The front door as people and scripts use it: every verb on tiny data, and every mistake in one line."""

import io
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, load_rl_agent
from ml.tradingbots.components.action_space import legal_target, limit_gross
from ml.tradingbots.data import Bars, load_prices
from ml.tradingbots.training.live import LiveAccount, environment_for, target_weights
from tradingbots.__main__ import main
from tradingbots.console import guarded
from tradingbots.periods import context_bars

N_BARS = 320
TEST_START = "2021-01-01"
SMALL = ["--config.hidden-dim", "8", "--config.batch-size", "16", "--config.learning-starts", "100"]
SMALL += ["--env.window-size", "5", "--training.n-envs", "4", "--training.total-timesteps", "600"]


def random_walk(n_assets, *, seed=0):
    steps = np.random.default_rng(seed).normal(0.0005, 0.01, (N_BARS, n_assets))
    return 100.0 * np.exp(steps.cumsum(axis=0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one.csv (open and close of one asset) and three.parquet (closes of three)."""
    folder = tmp_path_factory.mktemp("prices")
    dates = pd.bdate_range("2020-01-01", periods=N_BARS)
    close = random_walk(1)[:, 0]
    one = pd.DataFrame({"open": np.roll(close, 1) * 1.001, "close": close}, index=dates)
    one.iloc[0, 0] = 100.0
    one.to_csv(folder / "one.csv", index_label="date")
    pd.DataFrame(random_walk(3, seed=1), index=dates, columns=["AAPL", "MSFT", "XOM"]).to_parquet(
        folder / "three.parquet"
    )
    return folder


def train_arguments(prices, run_dir, *more):
    return ["train", "--prices", str(prices), "--test-start", TEST_START, "--run-dir", str(run_dir), *SMALL, *more]


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """Trained runs by name: a single asset, a long-only portfolio, and one whose orders wait a bar."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "single": ("one.csv", []),
        "portfolio": ("three.parquet", ["--env.max-gross-exposure", "0.7"]),
        "long_only": ("three.parquet", ["--env.no-allow-short", "--env.max-weight", "0.6"]),
        "delayed": ("three.parquet", ["--env.execution-delay", "2"]),
    }
    for name, (prices, flags) in kinds.items():
        assert main(train_arguments(files / prices, folder / name, *flags)) == 0
    return {name: (folder / name, files / prices) for name, (prices, _) in kinds.items()}


def refused(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err + printed.out
    return printed.err


def acted(capsys, run, *flags):
    folder, prices = run
    assert main(["act", str(folder / "agent.pt"), "--prices", str(prices), *flags]) == 0
    return json.loads(capsys.readouterr().out)


def walked(run, n_steps):
    """The environment, the observation and the agent after some steps."""
    folder, prices = run
    agent = load_rl_agent(folder / "agent.pt")
    env = TradingEnvironment(load_prices(str(prices)), TradingEnvConfig.from_dict(agent.environment_spec["config"]))
    observation, _ = env.reset()
    for _ in range(n_steps):
        observation, *_ = env.step(agent.select_action(observation, deterministic=True))
    return env, observation, agent


# Help and version.


def test_no_verb_prints_the_verbs(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(
        f"\n  {verb} " in text
        for verb in ("train", "evaluate", "act", "fit", "forecast", "walk-forward", "data", "demo")
    )


@pytest.mark.parametrize("verb", ["train", "evaluate", "act", "data", "demo"])
def test_every_verb_explains_its_options(verb, capsys):
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"usage: tradingbots {verb}" in printed.out
    assert printed.err == ""


def test_config_docstrings_become_help(capsys):
    main(["train", "--help"])
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "--env.commission FLOAT Commission per fill, as a fraction of its notional. (default: 0.001)" in text
    assert "--config.gamma FLOAT Discount per environment step, in [0, 1). (default: 0.99)" in text


def test_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"tradingbots \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_loads_neither_torch_nor_pandas():
    code = "import sys; from tradingbots.__main__ import main; main(['--help']); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_describing_prices_does_not_load_torch(files):
    code = (
        "import sys; from tradingbots.__main__ import main; main(['data', sys.argv[1]]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(files / "one.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


# Each verb.


def test_data_lists_the_sources(capsys):
    assert main(["data"]) == 0
    text = capsys.readouterr().out
    assert "sp500-stocks" in text
    assert "pip install 'tradingbots[data]'" in text


def test_data_describes_a_file(files, capsys):
    assert main(["data", str(files / "three.parquet")]) == 0
    text = capsys.readouterr().out
    assert "3: AAPL, MSFT, XOM" in text
    assert "320" in text


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_exported_prices_read_back_the_same(name, files, tmp_path):
    assert main(["data", str(files / "three.parquet"), "--export", str(tmp_path / name)]) == 0
    exported = Bars.from_frame(load_prices(str(tmp_path / name)))
    original = Bars.from_frame(load_prices(str(files / "three.parquet")))
    assert exported.assets == original.assets
    # Text is read with the last bit lost here and there.
    np.testing.assert_allclose(exported.close, original.close, rtol=1e-15)


def test_training_leaves_its_folder(runs):
    folder, prices = runs["single"]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "metrics.csv", "checkpoints/last.pt", "best.pt", "agent.pt", "report.html"}
    settings = json.loads((folder / "config.json").read_text())
    assert settings["data"]["prices"] == str(prices)
    assert settings["data"]["test_start"] == TEST_START
    assert settings["agent"]["hidden_dim"] == 8


def test_the_test_begins_at_its_date_and_training_ends_before_it(runs):
    folder, prices = runs["single"]
    agent = load_rl_agent(folder / "agent.pt")
    seen_until = pd.Timestamp(agent.environment_spec["seen_until"])
    times = Bars.from_frame(load_prices(str(prices))).timestamps
    assert seen_until == times[times < TEST_START][-1]


def test_the_best_agent_is_chosen_on_validation_and_never_on_the_test(files, tmp_path, capsys):
    cut = "2020-10-01"
    assert main(train_arguments(files / "one.csv", tmp_path / "run", "--validation-start", cut)) == 0
    assert "best.pt" in capsys.readouterr().out
    log = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert log["eval_sharpe"].notna().sum() >= 10
    # What chose it must not change when the test prices do.
    frame = load_prices(str(files / "one.csv"))
    frame.loc[TEST_START:] *= np.linspace(1.0, 3.0, len(frame.loc[TEST_START:]))[:, None]
    frame.to_csv(tmp_path / "other.csv", index_label="date")
    assert main(train_arguments(tmp_path / "other.csv", tmp_path / "other", "--validation-start", cut)) == 0
    other = pd.read_csv(tmp_path / "other" / "metrics.csv")
    pd.testing.assert_frame_equal(log, other)


def test_training_that_takes_no_gradient_step_says_what_is_judged(files, tmp_path, capsys):
    arguments = train_arguments(files / "one.csv", tmp_path / "run", "--training.total-timesteps", "80")
    assert main(arguments) == 0
    expected = (
        "note: the budget is spent and no gradient step was taken: it is too small for the agent; what follows judges"
    )
    assert expected in capsys.readouterr().err


def test_training_that_learns_has_nothing_to_note(files, tmp_path, capsys):
    assert main(train_arguments(files / "one.csv", tmp_path / "run")) == 0
    assert "gradient step" not in capsys.readouterr().err


def test_a_run_that_is_there_is_not_replaced_unasked(runs, capsys):
    folder, prices = runs["single"]
    assert "--overwrite" in refused(capsys, *train_arguments(prices, folder))


def test_resuming_with_other_settings_names_the_flags(runs, capsys):
    folder, prices = runs["single"]
    error = refused(capsys, *train_arguments(prices, folder, "--resume", "--env.commission", "0.01", "--seed", "3"))
    assert "--env.commission was 0.001, now 0.01" in error
    assert "--seed was 0, now 3" in error


def test_without_a_date_the_last_fifth_is_the_test(files, tmp_path):
    arguments = train_arguments(files / "one.csv", tmp_path / "run")
    del arguments[3:5]
    assert "--test-start" not in arguments
    assert main(arguments) == 0
    times = Bars.from_frame(load_prices(str(files / "one.csv"))).timestamps
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert pd.Timestamp(settings["data"]["test_start"]) == times[N_BARS * 4 // 5]


def test_a_budget_in_episodes_is_a_budget(files, tmp_path):
    arguments = train_arguments(files / "one.csv", tmp_path / "run", "--env.episode-length", "40")
    place = arguments.index("--training.total-timesteps")
    arguments[place : place + 2] = ["--training.total-episodes", "4"]
    assert main(arguments) == 0


def test_training_prints_the_table_that_evaluating_prints(runs, capsys):
    folder, prices = runs["single"]
    assert main(train_arguments(prices, folder, "--resume")) == 0  # Already done: only judged again.
    of_the_run = capsys.readouterr().out
    assert main(["evaluate", str(folder / "agent.pt"), "--prices", str(prices), "--start", TEST_START]) == 0
    printed = capsys.readouterr()
    names = ("Sharpe", "95% interval", "Total return", "Max drawdown", "Turnover a year", "Costs")
    for name in names:
        line = next(line for line in printed.out.splitlines() if line.startswith(name))
        assert line in of_the_run
    assert "buy and hold" in of_the_run
    assert "buy-and-hold out of sample" in of_the_run
    assert "buy-and-hold out of sample" in printed.out
    assert f"tradingbots act {folder / 'agent.pt'} --prices {prices}" in of_the_run
    assert printed.err == ""


def test_evaluating_on_training_prices_is_called_in_sample(runs, tmp_path, capsys):
    folder, prices = runs["portfolio"]
    report = tmp_path / "out.html"
    assert main(["evaluate", str(folder / "agent.pt"), "--prices", str(prices), "--report", str(report)]) == 0
    printed = capsys.readouterr()
    assert "in sample" in printed.out
    assert printed.err.startswith("note: the agent has seen prices until")
    assert report.read_text().startswith("<!doctype html>")


def test_demo_trains_and_judges(tmp_path, capsys):
    assert main(["demo", "--run-dir", str(tmp_path / "demo"), "--total-timesteps", "640"]) == 0
    text = capsys.readouterr().out
    assert "2013-01-02 to 2018-12-31" in text
    assert "buy and hold" in text
    assert (tmp_path / "demo" / "report.html").is_file()
    assert f"tradingbots act {tmp_path / 'demo' / 'agent.pt'} --prices sp500" in text


# Acting: the very numbers of the environment.


@pytest.mark.parametrize("name", ["single", "portfolio", "long_only", "delayed"])
@pytest.mark.parametrize("n_steps", [0, 100, None])
def test_acting_gives_the_numbers_of_the_environment(runs, name, n_steps, capsys):
    env, _, _ = walked(runs[name], 0)
    last = env.market.last_bar - env.market.first_bar
    env, observation, agent = walked(runs[name], last if n_steps is None else n_steps)
    expected = agent.select_action(observation, deterministic=True)
    bar = env.market.first_bar + (last if n_steps is None else n_steps)
    flags = [] if n_steps is None else ["--at", str(env.market.bars.timestamps[bar])]
    answer = acted(capsys, runs[name], *flags)
    assert answer["action"] == [float(value) for value in expected]
    assert answer["timestamp"] == env.market.bars.timestamps[bar].isoformat()
    assert list(answer["account"]["weights"].values()) == env.account_state.weight.tolist()
    assert answer["account"]["equity"] == env.account.equity
    assert list(answer["target_weights"]) == list(env.market.assets)
    if n_steps is not None:
        _, _, _, _, info = env.step(expected)
        assert list(answer["target_weights"].values()) == np.atleast_1d(info["target_weight"]).tolist()


def test_targets_are_within_the_limits_where_the_action_is_not(runs, capsys):
    answer = acted(capsys, runs["portfolio"])
    held = np.array(list(answer["account"]["weights"].values()))
    wanted = limit_gross(np.array(answer["action"]), held, 0.7)
    assert list(answer["target_weights"].values()) == wanted.tolist()
    assert np.abs(wanted).sum() <= 0.7 + 1e-12


def test_a_flat_account_is_the_environment_at_its_start(runs, capsys):
    for name in ("single", "delayed"):
        env, observation, agent = walked(runs[name], 0)
        at = str(env.market.bars.timestamps[env.market.first_bar])
        answer = acted(capsys, runs[name], "--account", "flat", "--at", at)
        assert answer["action"] == agent.select_action(observation, deterministic=True).tolist()
        assert answer["account"]["source"] == "given"


def test_an_account_told_is_the_environment_that_holds_it(runs):
    folder, prices = runs["delayed"]
    env, observation, agent = walked(runs["delayed"], 60)
    replayed = target_weights(agent, load_prices(str(prices)), at=env.market.bars.timestamps[env.market.first_bar + 60])
    told = LiveAccount(
        weights=dict(zip(env.market.assets, replayed.weights, strict=True)),
        unrealised_return=dict(zip(env.market.assets, replayed.unrealised_return, strict=True)),
        drawdown=replayed.drawdown,
        orders_under_way=tuple(dict(zip(env.market.assets, order, strict=True)) for order in replayed.orders_under_way),
    )
    answer = target_weights(load_rl_agent(folder / "agent.pt"), env.market, at=replayed.timestamp, account=told)
    assert answer.action.tolist() == agent.select_action(observation, deterministic=True).tolist()
    assert answer.target_weights.tolist() == replayed.target_weights.tolist()


def test_current_weights_change_the_answer_and_are_shown(runs, capsys):
    answer = acted(capsys, runs["portfolio"], "--current-weights", '{"MSFT": -0.4}', "--drawdown", "0.2")
    assert answer["account"]["weights"] == {"AAPL": 0.0, "MSFT": -0.4, "XOM": 0.0}
    assert answer["account"]["drawdown"] == 0.2
    assert answer["action"] != acted(capsys, runs["portfolio"], "--account", "flat")["action"]


def test_a_replay_from_a_date_is_the_evaluation_from_that_date(runs, capsys):
    env, _, agent = walked(runs["single"], 0)
    start = int(env.market.bars.timestamps.searchsorted(pd.Timestamp(TEST_START, tz="UTC")))
    observation, _ = env.reset(options={"start_bar": start})
    for _ in range(env.market.last_bar - start):
        observation, *_ = env.step(agent.select_action(observation, deterministic=True))
    answer = acted(capsys, runs["single"], "--start", TEST_START)
    assert answer["account"]["equity"] == env.account.equity
    assert answer["action"] == agent.select_action(observation, deterministic=True).tolist()


def test_later_bars_change_no_answer(runs, files, tmp_path, capsys):
    folder, _ = runs["portfolio"]
    frame = load_prices(str(files / "three.parquet"))
    frame.iloc[:201].to_parquet(tmp_path / "cut.parquet")
    at = str(frame.index[200])
    assert acted(capsys, runs["portfolio"], "--at", at) == acted(capsys, (folder, tmp_path / "cut.parquet"))


def test_assets_in_another_order_get_the_same_weights(runs, files, tmp_path, capsys):
    folder, _ = runs["portfolio"]
    load_prices(str(files / "three.parquet"))[["XOM", "AAPL", "MSFT"]].to_parquet(tmp_path / "turned.parquet")
    assert acted(capsys, (folder, tmp_path / "turned.parquet")) == acted(capsys, runs["portfolio"])


@pytest.mark.parametrize(
    ("settings", "actions"),
    [
        ({}, [[0.4], [1.7], [-2.0]]),
        ({"allow_short": False, "max_gross_exposure": 0.8}, [[-0.3], [0.9], [0.2]]),
        ({"action_type": "discrete", "max_weight": 0.5}, [0, 1, 2]),
    ],
)
def test_legal_targets_of_one_asset_are_those_of_the_environment(settings, actions):
    env = TradingEnvironment(pd.DataFrame({"close": random_walk(1)[:, 0]}), TradingEnvConfig(**settings))
    for action in actions:
        env.reset()
        _, _, _, _, info = env.step(action)
        target = legal_target(action, np.zeros(1), env.config)
        asked = np.atleast_1d(np.asarray(info["target_weight"], dtype=np.float64))  # None, no order, becomes NaN.
        np.testing.assert_array_equal(target, asked)


def test_holding_is_null_in_json(runs):
    env, _, agent = walked(runs["single"], 0)
    spec = agent.environment_spec

    class Holds:
        environment_spec = spec | {"config": spec["config"] | {"action_type": "discrete"}}
        state_dim = agent.state_dim

        def select_action(self, observation, deterministic=False):
            return np.int64(0)

    answer = target_weights(Holds(), env.market.bars).to_dict()
    assert answer["target_weights"] == {"asset": None}
    json.dumps(answer, allow_nan=False)


def test_a_replay_that_was_stopped_out_is_refused(runs):
    env, _, agent = walked(runs["single"], 0)
    agent.environment_spec["config"]["max_drawdown"] = 1e-6
    with pytest.raises(ValueError, match="stopped out at"):
        target_weights(agent, env.market.bars)


def test_context_counts_indicators_and_own_columns_once():
    frame = pd.DataFrame({"close": random_walk(1)[:, 0]}, index=pd.bdate_range("2020-01-01", periods=N_BARS))
    frame["signal"] = np.where(np.arange(N_BARS) < 100, np.nan, 1.0)
    config = TradingEnvConfig(window_size=5, features=("momentum:10",))
    bars = Bars.from_frame(frame)
    assert context_bars(bars, config, str(bars.timestamps[200])) == 14
    with pytest.raises(ValueError, match="104 bars are needed before"):
        context_bars(bars, config, str(bars.timestamps[50]))


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["--hlep"], "Did you mean '--help'?"),
        (["demo", "--total-timestps", "5"], "did you mean --total-timesteps?"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--env.comission", "0"], "--env.commission"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--env.window-size", "many"], "--env.window-size"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--env.window-size", "-1"], "at least 1, got -1"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--env.reward", "money"], "'log_return'"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--agent", "sax"], "Did you mean 'sac'?"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--env.action-type", "discrete"], "continuous actions"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--device", "toaster"], "--device toaster"),
        (["train", "--prices", "sp500", "--test-start", "next week"], "must be a date"),
        (["train", "--prices", "sp500", "--test-start", "2013", "--validation-start", "2014"], "validation_start=2014"),
        (["train"], "--prices SOURCE"),
        (["train", "--resume", "--prices", "sp500", "--test-start", "2013"], "--run-dir"),
        (["act", "--prices", "sp500"], "CHECKPOINT"),
        (["act", "nowhere.pt", "--prices", "sp500"], "no checkpoint at nowhere.pt"),
        (["act", "x.pt", "--prices", "sp500", "--current-weights", "{AAPL: 1}"], "must be JSON"),
        (["act", "x.pt", "--prices", "sp500", "--current-weights", "[1]"], "JSON object"),
        (["act", "x.pt", "--prices", "sp500", "--drawdown", "0.1"], "--account flat"),
        (["data", "sp50"], "Did you mean 'sp500'?"),
        (["data", "nowhere.csv"], "no file nowhere.csv"),
        (["data", "sp500", "--export", "out.xls"], ".parquet or .csv"),
        (["data", "--export", "out.csv"], "needs a source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_with_a_way_out(arguments, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hint in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_hole_in_a_file_is_named_with_its_place(files, tmp_path, capsys):
    frame = load_prices(str(files / "one.csv"))
    frame.iloc[17, 1] = np.nan
    frame.to_csv(tmp_path / "holes.csv", index_label="date")
    error = refused(capsys, *train_arguments(tmp_path / "holes.csv", tmp_path / "run"))
    assert "column 'close' at row 17" in error
    assert not (tmp_path / "run").exists()


def test_too_few_bars_are_refused_with_the_number_needed(files, tmp_path, capsys):
    load_prices(str(files / "one.csv")).iloc[:8].to_csv(tmp_path / "short.csv", index_label="date")
    arguments = [
        "train",
        "--prices",
        tmp_path / "short.csv",
        "--test-start",
        "2020-01-08",
        "--run-dir",
        tmp_path / "run",
    ]
    assert "at least 22 are needed" in refused(capsys, *arguments)


def test_other_assets_are_named(runs, files, capsys):
    folder, _ = runs["portfolio"]
    for verb in ("act", "evaluate"):
        error = refused(capsys, verb, folder / "agent.pt", "--prices", files / "one.csv")
        assert "AAPL, MSFT, XOM" in error
        assert "unknown to it: asset" in error


class Touch:
    """Pickled, this makes a file when it is read without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_hostile_checkpoint_is_refused_and_does_nothing(files, tmp_path, capsys):
    for name, content in {"pickle.pt": pickle.dumps(Touch(tmp_path / "harm")), "text.pt": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        refused(capsys, "act", tmp_path / name, "--prices", files / "one.csv")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("window_size", "20"), ("window_size", 10**9), ("commission", -1.0), ("surprise", 1), ("features", 3)],
)
def test_hostile_environment_settings_are_refused(name, value, runs, tmp_path, capsys):
    folder, prices = runs["single"]
    agent = load_rl_agent(folder / "agent.pt")
    agent.environment_spec["config"][name] = value
    agent.save(tmp_path / "hostile.pt")
    refused(capsys, "act", tmp_path / "hostile.pt", "--prices", prices)


def test_a_folder_is_answered_with_the_files_in_it(runs, capsys):
    folder, prices = runs["single"]
    assert "agent.pt" in refused(capsys, "act", folder, "--prices", prices)


def test_dates_outside_the_prices_are_refused(runs, capsys):
    folder, prices = runs["single"]
    act = ["act", folder / "agent.pt", "--prices", prices]
    for flags in (["--at", "2030-01-01"], ["--at", "2019-01-01"], ["--start", "2030-01-01"]):
        assert "must lie between" in refused(capsys, *act, *flags)
    evaluate = ["evaluate", folder / "agent.pt", "--prices", prices]
    assert "bars are needed before" in refused(capsys, *evaluate, "--start", "2020-01-03")
    assert "no bar lies between" in refused(capsys, *evaluate, "--start", "2030-01-01")


def test_debug_shows_the_traceback_of_a_mistake(capsys, monkeypatch):
    assert main(["--debug", "data", "sp50"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("TRADINGBOTS_DEBUG", "1")
    assert main(["data", "sp50"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_suggestions_do_not_need_box_characters(capsys, monkeypatch):
    for encoding in ("utf-8", "ascii"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert main(["data", "--exprt", "out.csv"]) == 2
        assert capsys.readouterr().err == (
            "error: unrecognized options: --exprt, out.csv; did you mean --export? (see tradingbots data --help)\n"
        )
        assert main(["act", "x.pt", "--prces", "sp500"]) == 2
        assert capsys.readouterr().err == (
            "error: required and not given: --prices SOURCE; unrecognized options: --prces sp500 "
            "(see tradingbots act --help)\n"
        )


@pytest.mark.parametrize("bug", [TypeError("bug"), KeyError("bug"), AttributeError("bug"), RuntimeError("bug")])
def test_a_bug_is_not_disguised_as_a_mistake(bug):
    def work():
        raise bug

    with pytest.raises(type(bug)):
        guarded(work)


def test_an_agent_of_another_world_is_refused(files, tmp_path, runs, capsys):
    agent = load_rl_agent(runs["single"][0] / "agent.pt")
    agent.environment_spec = {}
    agent.save(tmp_path / "other.pt")
    error = refused(capsys, "evaluate", tmp_path / "other.pt", "--prices", files / "one.csv")
    assert "not trained in a trading environment" in error


def test_features_shown_must_be_those_learned(runs):
    env, _, agent = walked(runs["single"], 0)
    agent.environment_spec["features"] = ["rsi:14"]
    with pytest.raises(ValueError, match=r"missing: rsi:14; unknown to it: log_return"):
        environment_for(agent, env.market.bars)


# As a process.


def test_a_reader_that_goes_away_is_no_error():
    command = shlex.join([sys.executable, "-m", "tradingbots", "data"])
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True)
    assert done.stderr == ""


def test_interrupted_training_says_how_to_go_on_and_does(files, tmp_path):
    run_dir = tmp_path / "my run"  # The space makes sure that the command is quoted.
    arguments = train_arguments(files / "one.csv", run_dir)
    arguments[arguments.index("600")] = "100000000"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tradingbots", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 60.0
    while not (run_dir / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    found = re.fullmatch(r"training stopped at (\d+) timesteps; go on with: tradingbots (.*)\n", stderr)
    assert found is not None, stderr
    resume = shlex.split(found[2])
    assert resume == [*arguments, "--resume"]
    resume[resume.index("100000000")] = str(int(found[1]) + 400)
    assert main(resume) == 0
    assert load_rl_agent(run_dir / "agent.pt").num_timesteps == int(found[1]) + 400
    assert (run_dir / "report.html").is_file()


@pytest.mark.parametrize("value", ["2021-01-01T00:00:00", "yesterday", "NaT", "9" * 75, 5])
def test_a_file_that_says_nonsense_about_what_was_seen_is_refused(value, runs, tmp_path, capsys):
    folder, prices = runs["single"]
    agent = load_rl_agent(folder / "agent.pt")
    agent.environment_spec["seen_until"] = value
    agent.save(tmp_path / "odd.pt")
    error = refused(capsys, "evaluate", tmp_path / "odd.pt", "--prices", prices)
    assert "seen_until must be a date and time with its zone" in error


@pytest.mark.parametrize("flag", ["--current-weights", "--unrealised-return"])
@pytest.mark.parametrize("number", ["9" * 75, "-1e9", "9" * 5_000, "Infinity", "NaN"], ids=lambda text: text[:8])
def test_a_weight_of_75_digits_is_refused_in_plain_words(flag, number, runs, capsys):
    folder, prices = runs["portfolio"]
    given_ = {"--current-weights": "{}", flag: f'{{"AAPL": {number}}}'}
    words = [word for pair in given_.items() for word in pair]
    error = refused(capsys, "act", folder / "agent.pt", "--prices", prices, *words)
    assert f"{flag} of 'AAPL' must be a fraction" in error


@pytest.mark.filterwarnings("default")
def test_warnings_about_numbers_stay_inside(capsys):
    def divide():
        return int(np.isfinite(np.float64(1.0) / np.float64(0.0)))

    assert guarded(divide) == 0
    assert capsys.readouterr().err == ""
