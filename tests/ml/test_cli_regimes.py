"""`tradingbots regimes` as people and scripts use it, and every mistake in one line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import SACConfig, TradingEnvConfig, TradingEnvironment, load_rl_agent
from ml.tradingbots.components.hiddenmarkov import DETECTORS, GaussianHMM, load_detector, regime_features
from ml.tradingbots.components.meta_learning import RegimeAwareAgent, RegimeAwareConfig, RegimeColumns
from ml.tradingbots.data import Bars, load_prices
from ml.tradingbots.data.synthetic import regime_switching
from ml.tradingbots.training import RLTrainingConfig, train_rl_agent
from tradingbots.__main__ import main

N_BARS = 700


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one.csv (one asset, two regimes) and two.parquet (two assets)."""
    folder = tmp_path_factory.mktemp("prices")
    prices = regime_switching(
        N_BARS, drifts=(0.001, -0.0015), volatilities=(0.006, 0.02), stay_probability=(0.98, 0.96), seed=5
    ).prices
    prices.to_csv(folder / "one.csv", index_label="date")
    pd.DataFrame({"AAPL": prices["close"], "MSFT": prices["close"] ** 2}).to_parquet(folder / "two.parquet")
    return folder


@pytest.fixture(scope="module")
def fitted(files, tmp_path_factory):
    """The folder of a run with the defaults."""
    run_dir = tmp_path_factory.mktemp("runs") / "hmm"
    assert main(["regimes", "--data", str(files / "one.csv"), "--run-dir", str(run_dir)]) == 0
    return run_dir


def refused(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err + printed.out
    return printed.err


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_verb_explains_its_options(capsys):
    assert main(["regimes", "--help"]) == 0
    printed = capsys.readouterr()
    assert "usage: tradingbots regimes" in printed.out
    assert "--train-end" in printed.out
    assert printed.err == ""


def test_a_run_leaves_what_its_help_promises(fitted):
    assert {path.name for path in fitted.iterdir()} == {
        "config.json",
        "detector.pt",
        "probabilities.csv",
        "report.html",
    }
    settings = json.loads((fitted / "config.json").read_text())
    assert settings["verb"] == "regimes"
    assert settings["arguments"]["train_end"] == "0.8"


def test_the_detector_is_learned_from_the_training_bars_alone(fitted, files):
    prices = Bars.from_frame(load_prices(str(files / "one.csv")))
    features = regime_features(prices)
    n_train = int(len(features) * 0.8)
    alone = GaussianHMM().fit(features.iloc[:n_train])
    table = pd.read_csv(fitted / "probabilities.csv", index_col="timestamp", parse_dates=True)
    names = alone.state_names_
    np.testing.assert_array_equal(table[[f"p_{name}" for name in names]], alone.filter(features))
    np.testing.assert_array_equal(table[[f"p_next_{name}" for name in names]], alone.predict_next(features))
    np.testing.assert_array_equal(table["log_score"], alone.predictive_log_scores(features))
    assert table["in_training"].sum() == n_train
    assert json.loads((fitted / "config.json").read_text())["seen_until"] == features.index[n_train - 1].isoformat()


def test_the_saved_detector_goes_on_with_the_next_bar(fitted, files):
    features = regime_features(load_prices(str(files / "one.csv"))).to_numpy()
    detector = load_detector(fitted / "detector.pt")
    longer = np.concatenate([features, [[0.01]]])
    np.testing.assert_array_equal(detector.update(0.01), detector.filter(longer)[-1])


def test_the_printed_table_says_what_each_regime_is_and_where_things_are(files, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["regimes", "--prices", str(files / "one.csv"), "--run-dir", str(run_dir), "--train-end", "0.7"]) == 0
    text = capsys.readouterr().out
    for words in ("return a year, train", "volatility, after", "share of bars", "lasts", "P(now)", "P(next bar)"):
        assert words in text
    assert "filtered only" in text
    assert str(run_dir / "report.html") in text


def test_the_command_of_the_report_makes_the_same_run(fitted, tmp_path):
    page = (fitted / "report.html").read_text(encoding="utf-8")
    command = shlex.split(page.rpartition("<dt>Command</dt><dd>")[2].partition("</dd>")[0])
    assert main([*command[1:], "--run-dir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "probabilities.csv").read_bytes() == (fitted / "probabilities.csv").read_bytes()
    assert (tmp_path / "again" / "report.html").read_bytes() == (fitted / "report.html").read_bytes()


@pytest.mark.parametrize("detector", ["online-hmm", "jump-model", "volatility-threshold"])
def test_every_detector_can_be_asked(detector, files, tmp_path):
    flags = ["--detector", detector, "--n-regimes", "3", "--run-dir", str(tmp_path / "run")]
    assert main(["regimes", "--data", str(files / "one.csv"), *flags]) == 0
    saved = load_detector(tmp_path / "run" / "detector.pt")
    assert type(saved) is DETECTORS[detector.replace("-", "_")]
    assert saved.n_features_in_ == (2 if detector == "jump-model" else 1)


def test_auto_chooses_on_training_bars_and_shows_the_scores(files, tmp_path, capsys):
    flags = ["--n-regimes", "auto", "--run-dir", str(tmp_path / "run")]
    assert main(["regimes", "--data", str(files / "one.csv"), *flags]) == 0
    assert "Log scores by number of regimes" in capsys.readouterr().out
    assert "How many regimes" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_one_asset_of_several_dates_and_student_t(files, tmp_path, capsys):
    flags = ["--asset", "MSFT", "--train-end", "1991-06-01", "--student-t", "--volatility-bars", "5"]
    run_dir = tmp_path / "run"
    assert main(["regimes", "--data", str(files / "two.parquet"), *flags, "--run-dir", str(run_dir)]) == 0
    assert "MSFT" in capsys.readouterr().out
    table = pd.read_csv(run_dir / "probabilities.csv", index_col="timestamp", parse_dates=True)
    assert (table["in_training"] == (table.index < pd.Timestamp("1991-06-01", tz="UTC"))).all()
    assert load_detector(run_dir / "detector.pt").config.emission == "student_t"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--detector", "gausian-hmm"], "gaussian-hmm"),
        (["--n-regimes", "0"], "from 1 to 50, or auto"),
        (["--n-regimes", "two"], "from 1 to 50, or auto"),
        (["--n-regimes", "auto", "--detector", "jump-model"], "give a number"),
        (["--student-t", "--detector", "jump-model"], "--student-t is for --detector gaussian-hmm"),
        (["--train-end", "1999-01-01"], "must lie within the bars"),
        (["--train-end", "1.5"], "share of the bars in (0, 1]"),
        (["--train-end", "soon"], "--train-end must be a date"),
        (["--train-end", "0.001"], "to learn from: raise it"),
        (["--volatility-bars", "1"], "volatility_bars must be 0 or at least 2"),
        (["--asset", "GOOG"], "asset must be one of"),
        (["--start", "2050-01-01"], "2050"),
        (["--n-regime", "3", "--foo"], "--n-regimes"),
        (["--end", "1990-01-08"], "parameters"),
    ],
)
def test_mistakes_are_explained_in_one_line_and_leave_nothing(flags, message, files, tmp_path, capsys):
    run_dir = tmp_path / "run"
    line = refused(capsys, "regimes", "--data", files / "one.csv", "--run-dir", run_dir, *flags)
    assert message in line
    assert not run_dir.exists()


def test_several_assets_need_one_named(files, tmp_path, capsys):
    assert "--asset AAPL" in refused(capsys, "regimes", "--data", files / "two.parquet", "--run-dir", tmp_path / "run")


def test_unknown_prices_are_refused_with_a_hint(tmp_path, capsys):
    assert "sp500" in refused(capsys, "regimes", "--data", "sp50", "--run-dir", tmp_path / "run")


def test_a_run_is_replaced_only_when_asked(fitted, files, tmp_path, capsys):
    before = contents(fitted)
    line = refused(capsys, "regimes", "--data", files / "one.csv", "--run-dir", fitted)
    assert "already holds a run" in line
    assert "--overwrite" in line
    assert contents(fitted) == before
    flags = ["regimes", "--data", str(files / "one.csv"), "--run-dir", str(tmp_path / "run"), "--detector"]
    assert main([*flags, "volatility-threshold"]) == 0
    assert main([*flags, "gaussian-hmm", "--overwrite"]) == 0
    assert isinstance(load_detector(tmp_path / "run" / "detector.pt"), GaussianHMM)


def test_an_interrupted_fit_ends_at_once_and_leaves_nothing(tmp_path):
    # Many bars and regimes: EM takes far longer than the test waits.
    regime_switching(20_000, seed=1).prices.to_parquet(tmp_path / "long.parquet")
    flags = ["--data", str(tmp_path / "long.parquet"), "--n-regimes", "9", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tradingbots", "regimes", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("Folder"):
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def adapting(tmp_path_factory):
    """A folder with prices.csv and agent.pt, a `RegimeAwareAgent` that adds its columns itself."""
    folder = tmp_path_factory.mktemp("adapting")
    # Regimes that look alike and last: where a history begins matters for long.
    prices = regime_switching(400, drifts=(0.002, -0.002), volatilities=(0.01, 0.012), seed=5).prices
    prices.to_csv(folder / "prices.csv", index_label="date")
    detector = GaussianHMM.from_parameters([0.002, -0.002], [1e-4, 1.4e-4], [[0.99, 0.01], [0.01, 0.99]])
    regimes = RegimeColumns(detector)
    env = TradingEnvironment(regimes.add_to(prices), TradingEnvConfig(window_size=2, episode_length=10))
    config = RegimeAwareConfig(agent_config=SACConfig(hidden_dim=8, batch_size=8, learning_starts=12, buffer_size=100))
    agent = RegimeAwareAgent(env.observation_space_dim, env.action_space_dim, config, regimes)
    train_rl_agent(agent, env, RLTrainingConfig(total_timesteps=60, n_envs=3, progress=False))
    agent.save(folder / "agent.pt")
    return folder


def test_regimes_of_an_evaluation_are_those_of_all_bars_before_it(adapting, capsys):
    agent, raw = adapting / "agent.pt", adapting / "prices.csv"
    prices = load_prices(str(raw))
    # Beside the same table with columns made of the whole of it.
    table = adapting / "table.csv"
    load_rl_agent(agent).add_regimes(prices).to_csv(table, index_label="date")
    printed = []
    for path in (raw, table):
        assert main(["evaluate", str(agent), "--prices", str(path), "--start", f"{prices.index[300]:%Y-%m-%d}"]) == 0
        printed.append(capsys.readouterr().out.replace(str(path), "PRICES"))
    assert printed[0] == printed[1]


def test_an_answer_from_few_bars_says_how_many_are_needed(adapting, capsys, tmp_path):
    prices = adapting / "prices.csv"
    assert main(["act", str(adapting / "agent.pt"), "--prices", str(prices)]) == 0
    assert capsys.readouterr().err == ""
    few = tmp_path / "few.csv"
    few.write_text("\n".join(prices.read_text().splitlines()[:60]))
    assert main(["act", str(adapting / "agent.pt"), "--prices", str(few)]) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("note: 59 bars up to the decision are few")
    assert "until 228 bars" in printed
    assert printed.count("\n") == 1
