"""`tradingbots portfolio` as people and scripts use it, and every mistake in one line."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import RidgePredictor
from ml.tradingbots.data import load_prices
from tradingbots.__main__ import main

N_BARS = 300
SMALL = ["--window-size", "40"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with four.parquet: closes of four assets, the last of them the wildest."""
    folder = tmp_path_factory.mktemp("prices")
    dates = pd.bdate_range("2020-01-01", periods=N_BARS)
    steps = np.random.default_rng(0).normal(0.0005, 0.01, (N_BARS, 4)) * np.array([0.5, 1.0, 1.5, 2.0])
    closes = pd.DataFrame(100.0 * np.exp(steps.cumsum(axis=0)), index=dates, columns=["AAPL", "KO", "MSFT", "XOM"])
    closes.to_parquet(folder / "four.parquet")
    return folder


@pytest.fixture(scope="module")
def agent(files, tmp_path_factory):
    """The file of a tiny agent that has seen prices until the end of October 2020."""
    run_dir = tmp_path_factory.mktemp("runs") / "sac"
    flags = ["--config.hidden-dim", "8", "--config.batch-size", "16", "--config.learning-starts", "50"]
    flags += ["--env.window-size", "3", "--env.no-allow-short", "--training.n-envs", "4"]
    flags += ["--training.total-timesteps", "200", "--test-start", "2020-11-01", "--run-dir", str(run_dir)]
    assert main(["train", "--prices", str(files / "four.parquet"), *flags]) == 0
    return run_dir / "agent.pt"


@pytest.fixture(scope="module")
def managed(files, tmp_path_factory):
    """The folder of a run with two sources and limits."""
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    flags = ["--source", "hrp", "inverse_volatility", "--rebalance", "monthly", "--max-weight", "0.3", *SMALL]
    assert main(["portfolio", "--prices", str(files / "four.parquet"), *flags, "--run-dir", str(run_dir)]) == 0
    return run_dir


def portfolio(files, run_dir, *more):
    return ["portfolio", "--prices", str(files / "four.parquet"), "--run-dir", str(run_dir), *SMALL, *map(str, more)]


def refused(capsys, arguments):
    """Run a command that must fail, and return its one line."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed.err + printed.out
    return printed.err.splitlines()[-1]


def test_help_names_every_limit_as_the_library_does(capsys):
    assert main(["portfolio", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--max-weight", "--max-gross-exposure", "--allow-short", "--max-turnover", "--volatility-target"):
        assert flag in text
    assert "--costs.commission-rate" in text


def test_a_run_leaves_what_its_help_promises(managed):
    names = {path.name for path in managed.iterdir()}
    assert names == {"config.json", "report.html", "scores.csv", "weights.csv", "fills.csv", "decisions.csv"}
    settings = json.loads((managed / "config.json").read_text())
    assert settings["arguments"]["config"]["rebalance"] == "MS"
    assert settings["arguments"]["config"]["max_weight"] == 0.3


def test_decisions_keep_to_the_limits_and_to_the_calendar(managed):
    table = pd.read_csv(managed / "decisions.csv", parse_dates=["timestamp"])
    assert set(table["source"]) == {"managed_hierarchical_risk_parity", "inverse_volatility"}
    assert (table[["AAPL", "KO", "MSFT", "XOM"]].max().to_numpy() <= 0.3 + 1e-9).all()
    assert table["bound: max_weight"].any()
    months = table.groupby("source")["timestamp"].apply(lambda times: times.dt.strftime("%Y-%m").is_unique)
    assert months.all()


def test_costs_of_the_fills_are_those_of_the_scores(managed):
    fills, scores = pd.read_csv(managed / "fills.csv"), pd.read_csv(managed / "scores.csv", index_col="strategy")
    paid = fills.groupby("source")["costs"].sum()
    np.testing.assert_allclose(paid, scores.loc[paid.index, "total_costs"], rtol=1e-9)


def test_the_table_has_the_baselines_and_the_verdict_an_interval(files, tmp_path, capsys):
    assert main(portfolio(files, tmp_path / "run", "--source", "risk_budgeting")) == 0
    text = capsys.readouterr().out
    for name in ("risk budgeting", "equal weight", "minimum variance", "hierarchical risk parity", "buy and hold"):
        assert name in text
    assert re.search(r"95% interval [−+]\d\.\d\d to [−+]\d\.\d\d", text)
    assert f"Report      {tmp_path / 'run' / 'report.html'}" in text


def test_an_agent_begins_after_what_it_has_seen(files, agent, tmp_path, capsys):
    assert main(portfolio(files, tmp_path / "run", "--source", agent, "--rebalance", "daily")) == 0
    weights = pd.read_csv(tmp_path / "run" / "weights.csv")
    assert weights["timestamp"].iloc[0] == "2020-11-02 00:00:00+00:00"
    assert weights["source"].iloc[0] == "sac agent"
    assert capsys.readouterr().err == ""


def test_an_agent_in_sample_or_asked_seldom_is_pointed_out(files, agent, tmp_path, capsys):
    assert main(portfolio(files, tmp_path / "run", "--source", agent, "--start", "2020-06-01")) == 0
    said = capsys.readouterr().err
    assert "has seen prices until 2020-10-30" in said
    assert "--rebalance daily" in said
    page = (tmp_path / "run" / "report.html").read_text().partition("</script>")[2]
    noted = json.loads((tmp_path / "run" / "config.json").read_text())["notes"]
    assert len(noted) == 2
    for part in ("In sample: sac agent has seen prices until 2020-10-30", "was trained to decide at every bar"):
        assert page.count(part) == 2  # Beside the verdict, and among the facts.


def test_a_predictor_manages_too(files, tmp_path, capsys):
    path = tmp_path / "ridge.pt"
    RidgePredictor(window_size=5).fit(load_prices(str(files / "four.parquet")).iloc[:150]).save(path)
    assert main(portfolio(files, tmp_path / "run", "--source", path, "--start", "2020-09-01")) == 0
    assert "does not say which prices it has seen" in capsys.readouterr().err
    assert "does not say which prices it has seen" in (tmp_path / "run" / "report.html").read_text()


def test_a_predictor_whose_run_says_no_instant_is_refused(files, tmp_path, capsys):
    path = tmp_path / "ridge.pt"
    RidgePredictor(window_size=5).fit(load_prices(str(files / "four.parquet")).iloc[:150]).save(path)
    (tmp_path / "config.json").write_text(json.dumps({"seen_until": "2020-07-30"}))
    line = refused(capsys, portfolio(files, tmp_path / "run", "--source", path))
    assert "seen_until must be a date and time with its zone" in line


def test_a_folder_is_answered_with_the_file_that_was_meant(files, agent, tmp_path, capsys):
    line = refused(capsys, portfolio(files, tmp_path / "run", "--source", agent.parent))
    assert f"Did you mean {agent}" in line


def test_a_file_that_is_no_agent_is_refused(files, tmp_path, capsys):
    line = refused(capsys, portfolio(files, tmp_path / "run", "--source", files / "four.parquet"))
    assert "four.parquet" in line


def test_a_run_is_not_overwritten_unasked(files, managed, capsys):
    before = (managed / "report.html").read_bytes()
    assert "--overwrite" in refused(capsys, portfolio(files, managed))
    assert (managed / "report.html").read_bytes() == before


def test_a_refused_run_leaves_no_folder(files, tmp_path, capsys):
    line = refused(capsys, portfolio(files, tmp_path / "run", "--min-net-exposure", "1", "--max-weight", "0.2"))
    assert "min_net_exposure" in line
    assert "largest weights (together 0.8)" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "hpr"], "Did you mean 'hrp'?"),
        (["--source", "missing.pt"], "there is no such file"),
        (["--source", "hrp", "hierarchical_risk_parity"], "twice"),
        (["--start", "2030-01-01"], "leaves no bar to trade on"),
        (["--start", "2020-01-10"], "bars are needed before --start 2020-01-10"),
        (["--window-size", "5000"], "shorten --window-size"),
        (["--max-weights", "TSLA", "0.1"], "TSLA"),
        (["--max-wieght", "0.1"], "did you mean --max-weight"),
        (["--rebalance", "fortnightly"], "rebalance"),
        (["--costs.commission-rate", "7"], "commission_rate"),
        (["--confidence", "95"], "confidence"),
        (["--initial-balance", "-1"], "initial_balance"),
        (["--max-turnover", "0.1", "--min-net-exposure", "1"], "max_turnover"),
    ],
)
def test_mistakes_are_explained_in_one_line(flags, message, files, tmp_path, capsys):
    assert message in refused(capsys, portfolio(files, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()
