"""`tradingbots multitask` as people use it: tiny data, whole folders, interruptions, and every mistake in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.meta_learning import MultiTaskRLAgent
from ml.tradingbots.data import load_prices
from ml.tradingbots.training.live import target_weights
from tradingbots.__main__ import main

torch.set_num_threads(1)

SMALL = ["--agent", "a2c", "--config.hidden-dim", "8", "--sharing.trunk-dims", "8", "--env.window-size", "3"]
SMALL += ["--timesteps", "480", "--training.n-envs", "4", "--test-start", "2021-01-01"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with three.csv (closes of three assets) and one.csv (of one)."""
    folder = tmp_path_factory.mktemp("prices")
    steps = np.random.default_rng(0).normal(0.0, 0.01, (320, 3))
    index = pd.bdate_range("2020-01-01", periods=320)
    closes = pd.DataFrame(100.0 * np.exp(steps.cumsum(0)), index=index, columns=["AAPL", "MSFT", "XOM"])
    closes.to_csv(folder / "three.csv", index_label="date")
    closes[["AAPL"]].rename(columns={"AAPL": "close"}).to_csv(folder / "one.csv", index_label="date")
    return folder


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "assets"
    assert main(["multitask", "--data", str(files / "three.csv"), "--run-dir", str(folder), *SMALL]) == 0
    return folder


def refused(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    code = main(["multitask", *(str(argument) for argument in arguments)])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_every_asset_of_a_table_is_a_task(run):
    matrix = pd.read_csv(run / "matrix.csv", index_col=0)
    assert list(matrix.index) == list(matrix.columns) == ["AAPL", "MSFT", "XOM"]
    comparison = pd.read_csv(run / "comparison.csv", index_col=0)
    assert comparison.notna().all(axis=None)
    difference = comparison["several tasks"] - comparison["single task"]
    assert comparison["transfer"].to_numpy() == pytest.approx(difference.to_numpy())
    assert {path.name for path in run.iterdir()} >= {"config.json", "agent.pt", "report.html", "checkpoints"}
    page = (run / "report.html").read_text()
    assert all(text in page for text in ("Whose policy, on which task", "Task by task", "buy and hold", "Learning"))


def test_nothing_of_the_test_is_seen_in_training(run, files):
    agent = MultiTaskRLAgent.load(run / "agent.pt")
    seen = pd.Timestamp(agent.for_task("AAPL").environment_spec["seen_until"])
    assert seen < pd.Timestamp("2021-01-01", tz="UTC")
    decision = target_weights(agent.for_task("MSFT"), load_prices(str(files / "three.csv"))[["MSFT"]])
    assert decision.assets == ("MSFT",)
    assert np.isfinite(decision.target_weights).all()


def test_rewards_are_tasks_on_the_same_prices(files, tmp_path, capsys):
    arguments = ["--data", str(files / "three.csv"), "--rewards", "log_return,sortino", "--no-controls"]
    assert main(["multitask", *arguments, "--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "mean reward per bar" in printed
    comparison = pd.read_csv(tmp_path / "run" / "comparison.csv", index_col=0)
    assert list(comparison.index) == ["log_return", "sortino"]
    assert comparison["single task"].isna().all()


def test_tables_of_one_asset_each_are_tasks_by_the_names_of_their_files(files, tmp_path):
    sources = [str(files / "one.csv"), str(files / "three.csv")]
    assert main(["multitask", "--data", *sources, "--no-controls", "--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    matrix = pd.read_csv(tmp_path / "run" / "matrix.csv", index_col=0)
    assert list(matrix.index) == ["one", "three AAPL", "three MSFT", "three XOM"]


@pytest.mark.parametrize("order", [("long", "short"), ("short", "long")])
def test_by_default_every_table_keeps_its_last_fifth_in_whatever_order(order, files, tmp_path):
    closes = pd.read_csv(files / "three.csv", index_col="date")[["AAPL"]].rename(columns={"AAPL": "close"})
    closes.to_csv(tmp_path / "long.csv")
    closes.iloc[:250].to_csv(tmp_path / "short.csv")
    sources = [str(tmp_path / f"{name}.csv") for name in order]
    flags = [*SMALL[:-2], "--no-controls", "--run-dir", str(tmp_path / "run")]
    assert main(["multitask", "--data", *sources, *flags]) == 0
    agent = MultiTaskRLAgent.load(tmp_path / "run" / "agent.pt")
    # The bar before the 200th of the 250 of the shorter table.
    seen = pd.Timestamp(agent.for_task("long").environment_spec["seen_until"])
    assert seen == pd.Timestamp(closes.index[199], tz="UTC")


def test_a_run_that_was_cut_goes_on_to_the_same_end(run, files, tmp_path, monkeypatch):
    """Stopped after the agent of all tasks and one control: what was done is not done again."""
    folder = tmp_path / "cut"
    arguments = ["multitask", "--data", str(files / "three.csv"), "--run-dir", str(folder), *SMALL]
    from tradingbots import multitask

    trained = multitask._trained

    def interrupted(arguments_, agent, tasks, path, timesteps):
        if path.name.startswith("alone_1"):
            raise KeyboardInterrupt
        return trained(arguments_, agent, tasks, path, timesteps)

    monkeypatch.setattr(multitask, "_trained", interrupted)
    assert main(arguments) == 130
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    for name in ("matrix.csv", "comparison.csv"):
        assert (folder / name).read_text() == (run / name).read_text()


def test_a_run_is_neither_replaced_unasked_nor_resumed_with_other_settings(run, files, capsys):
    arguments = ["--data", files / "three.csv", "--run-dir", run, *SMALL]
    assert "already holds a run" in refused(capsys, *arguments)
    assert "--sharing.heads was 'per_task', now 'shared'" in refused(
        capsys, *arguments, "--resume", "--sharing.heads", "shared"
    )


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--data", "one.csv"], "one task only"),
        (["--data", "one.csv", "./one.csv"], "two tasks are called 'one'"),
        (["--data", "one.csv", "three.csv", "--rewards", "log_return,sortino"], "--rewards makes tasks of one table"),
        (["--data", "three.csv", "--rewards", "log_return,luck"], "luck"),
        (["--data", "three.csv", "--rewards", "calmar,calmar"], "twice"),
        (["--data", "three.csv", "--agent", "sarsa"], "unknown agent 'sarsa'"),
        (["--data", "three.csv", "--timesteps", "0"], "--timesteps must be at least 1"),
        (["--data", "three.csv", "--resume"], "--resume needs --run-dir"),
        (["--data", "missing.csv"], "missing.csv"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(arguments, hint, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    # The arguments last: of a flag that is given twice, the last counts.
    assert hint in refused(capsys, *SMALL, *arguments)
    assert not (Path.cwd() / "runs").exists()


def test_the_settings_of_a_run_are_kept(run):
    kept = json.loads((run / "config.json").read_text())
    assert kept["verb"] == "multitask"
    assert kept["arguments"]["sharing"]["trunk_dims"] == [8]
