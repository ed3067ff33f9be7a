"""A run that was cut and resumed in another process ends bit for bit where an uninterrupted one does.

The file is also the program of that other process: `python test_resume.py resume FOLDER` finishes every scenario in the
folder, `python test_resume.py train FOLDER TOTAL` runs one training that may be killed.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent, load_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.callbacks import (
    CheckpointCallback,
    EarlyStoppingRLCallback,
    EvalCallback,
    TradingMetricsCallback,
)
from ml.tradingbots.training.loggers import read_history
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

ROOT = Path(__file__).parents[2]
TOTAL = 240
torch.set_num_threads(1)


def prices(n_assets, seed=1):
    frames = [autoregressive(90, seed=seed + number).prices for number in range(n_assets)]
    if n_assets == 1:
        return frames[0]
    close = np.stack([frame["close"].to_numpy() for frame in frames], 1)
    return Bars(timestamps=frames[0].index, assets=tuple("abc"[:n_assets]), close=close)


def market(n_assets=1, seed=1, **settings):
    config = TradingEnvConfig(**{"window_size": 4, "episode_length": 25} | settings)
    return TradingEnvironment(prices(n_assets, seed), config)


# Name, timesteps before the cut, settings of the market, of the agent and of the run. Three accounts, so that no number
# of timesteps below divides the other by accident.
SCENARIOS = {
    "one asset, mid-episode": (120, {}, {}, {}),
    "portfolio": (120, {"n_assets": 2}, {}, {}),
    "in the warm-up": (30, {}, {}, {}),
    "before the first step": (3, {}, {}, {}),
    "after the memory wrapped": (150, {}, {"buffer_size": 75}, {}),
    "orders under way and a reward with a memory": (
        120,
        {"execution_delay": 2, "reward": "differential_sharpe", "borrow_rate": 0.05, "margin_rate": 0.1},
        {},
        {},
    ),
    "several updates at a time, seldom": (123, {}, {"train_freq": 4, "gradient_steps": 2}, {"log_frequency": 3}),
    "accounts that are stopped out": (120, {"max_drawdown": 0.02}, {}, {}),
    "raw observations and rewards": (120, {}, {}, {"normalize_observations": False, "normalize_rewards": False}),
    "fixed temperature": (120, {}, {"auto_alpha": False, "alpha": 0.1}, {}),
    "one batch size for the run": (120, {}, {}, {"batch_size": 5}),
    "a budget of episodes": (6, {}, {}, {"total_episodes": 12, "eval_frequency": 4}),
    "evaluations": (120, {}, {}, {"eval_frequency": 50}),
}


def pieces(name):
    """Everything that a run of a scenario is called with, made anew."""
    _, env_settings, agent_settings, run_settings = SCENARIOS[name]
    env = market(**env_settings)
    agent_config = SACConfig(
        **{"hidden_dim": 8, "batch_size": 8, "learning_starts": 60, "buffer_size": 500} | agent_settings
    )
    agent = create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, agent_config, seed=5)
    callbacks = [
        EarlyStoppingRLCallback(patience=40, window=3),
        TradingMetricsCallback(30),
        EvalCallback(market(**env_settings | {"seed": 7}), eval_freq=70),
    ]
    return env, agent, callbacks, {"n_envs": 3, "log_frequency": 10, "progress": False, "seed": 2} | run_settings


def run(name, folder, *, budget=None, resume_from=None):
    """Run a scenario to its end, or to a smaller budget."""
    env, agent, callbacks, settings = pieces(name)
    unit = "total_episodes" if "total_episodes" in settings else "total_timesteps"
    settings[unit] = budget or settings.get(unit, TOTAL)
    config = RLTrainingConfig(run_dir=str(folder), **settings)
    metrics = train_rl_agent(agent, env, config, callbacks, resume_from=resume_from)
    return metrics


def plain_contents(path):
    """What a run's file holds, without the seconds it took."""
    content = torch.load(path, weights_only=False)
    content["training"]["counters"].pop("wall_seconds")
    content["training"].pop("config")  # It names the folder and the budget.
    return content


def assert_same(found, expected, where="content"):
    """Bit for bit; NaN equals NaN."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        # As bytes, so that NaN equals NaN and 0.0 differs from −0.0.
        assert found.shape == expected.shape, where
        assert found.detach().numpy().tobytes() == expected.detach().numpy().tobytes(), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(ours, theirs, f"{where}[{number}]")
    else:
        assert found == expected or (found != found and expected != expected), where


def slug(name):
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def resume_all(folder):
    for name in SCENARIOS:
        resumed = folder / slug(name) / "resumed"
        run(name, resumed, resume_from=resumed / "checkpoints" / "last.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every scenario, uninterrupted and cut here, and resumed in one fresh process."""
    folder = tmp_path_factory.mktemp("resume")
    for name, (cut, *_) in SCENARIOS.items():
        run(name, folder / slug(name) / "uninterrupted")
        run(name, folder / slug(name) / "resumed", budget=cut)
    subprocess.run([sys.executable, __file__, "resume", str(folder)], cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(runs, name):
    folder = runs / slug(name)
    found, expected = (
        plain_contents(folder / kind / "checkpoints" / "last.pt") for kind in ("resumed", "uninterrupted")
    )
    assert expected["counters"]["num_timesteps"] >= 120
    assert expected["counters"]["num_updates"] > 10
    assert_same(found, expected)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(runs, name):
    folder = runs / slug(name)
    found, expected = ((folder / kind / "metrics.csv").read_text() for kind in ("resumed", "uninterrupted"))
    assert found == expected


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_best_agent_of_a_resumed_run_is_that_of_an_uninterrupted_one(runs, name):
    folder = runs / slug(name)
    found, expected = (
        torch.load(folder / kind / "best.pt", weights_only=False) for kind in ("resumed", "uninterrupted")
    )
    assert_same(found, expected)


def small_run(folder, *, total, callbacks=(), resume_from=None, seed=1, n_envs=3, agent=None, **settings):
    env = market(seed=seed)
    if agent is None:
        config = SACConfig(hidden_dim=8, batch_size=8, learning_starts=30, buffer_size=200)
        agent = create_rl_agent("sac", env.observation_space_dim, 1, config, seed=5)
    run_settings = {"n_envs": n_envs, "log_frequency": 10, "progress": False} | settings
    config = RLTrainingConfig(total_timesteps=total, run_dir=str(folder) if folder else None, **run_settings)
    return agent, train_rl_agent(agent, env, config, list(callbacks), resume_from=resume_from)


def test_a_run_resumes_from_a_resumable_checkpoint(tmp_path):
    def callbacks():
        return [CheckpointCallback(60, tmp_path / "checkpoints", resumable=True)]

    whole, whole_metrics = small_run(None, total=150, callbacks=callbacks())
    resumed, metrics = small_run(
        None, total=150, callbacks=callbacks(), resume_from=tmp_path / "checkpoints" / "agent_60.pt"
    )
    assert_same(resumed.state_dict(), whole.state_dict())
    pd.testing.assert_frame_equal(metrics.history, whole_metrics.history, check_exact=True)
    assert metrics.episode_returns == whole_metrics.episode_returns


def test_a_resumed_run_counts_its_earlier_seconds(tmp_path):
    _, first = small_run(tmp_path, total=60)
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=False)["training"]["counters"]["wall_seconds"]
    _, metrics = small_run(tmp_path, total=90, resume_from=tmp_path / "checkpoints" / "last.pt")
    assert metrics.wall_seconds > saved > 0.0
    assert first.num_timesteps < metrics.num_timesteps


def test_resuming_a_completed_run_does_nothing(tmp_path):
    agent, first = small_run(tmp_path, total=60)
    log = (tmp_path / "metrics.csv").read_text()
    again, metrics = small_run(tmp_path, total=60, resume_from=tmp_path / "checkpoints" / "last.pt")
    assert_same(again.state_dict(), agent.state_dict())
    assert metrics.num_timesteps == first.num_timesteps
    assert "already spent" in metrics.stop_reason
    assert (tmp_path / "metrics.csv").read_text() == log


def test_a_trained_agent_may_begin_another_run_and_resume_that(tmp_path):
    def second_run(folder, total, resume_from=None, agent=None):
        return small_run(folder, total=total, resume_from=resume_from, agent=agent)

    pretrained, _ = small_run(tmp_path / "first", total=60)
    path = pretrained.save(tmp_path / "agent.pt")
    whole, _ = second_run(tmp_path / "whole", 120, agent=load_rl_agent(path))
    second_run(tmp_path / "cut", 60, agent=load_rl_agent(path))
    resumed, metrics = second_run(tmp_path / "cut", 120, resume_from=tmp_path / "cut" / "checkpoints" / "last.pt")
    assert metrics.num_timesteps == 120
    assert resumed.num_timesteps == 180
    assert_same(resumed.state_dict(), whole.state_dict())


# --- What cannot be resumed


def assert_resume_refused(path, match, **settings):
    """Resuming is refused, and the agent is as it was."""
    env = market()
    config = SACConfig(hidden_dim=8, batch_size=8, learning_starts=30, buffer_size=200)
    agent = create_rl_agent("sac", env.observation_space_dim, 1, config, seed=99)
    agent.bind(env.vectorize(1))
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=match) as raised:
        small_run(None, total=120, resume_from=path, agent=agent, **settings)
    assert str(path) in str(raised.value)
    assert_same(agent.state_dict(), before)
    assert agent.replay is None


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("saved")
    small_run(tmp_path, total=90)
    return tmp_path / "checkpoints" / "last.pt"


def test_a_run_on_other_prices_is_refused(saved_run):
    assert_resume_refused(saved_run, "trained on other prices or features; resume it with the same price_data", seed=3)


def test_a_run_with_another_number_of_accounts_is_refused(saved_run):
    assert_resume_refused(saved_run, "environment_state.bar must be|3 accounts, this one 2", n_envs=2)


def test_a_run_with_other_callbacks_is_refused(saved_run):
    assert_resume_refused(saved_run, "pass the same ones in the same order", callbacks=[TradingMetricsCallback()])


def test_an_agent_without_its_run_is_refused_with_what_to_use_instead(tmp_path):
    agent, _ = small_run(None, total=60)
    path = agent.save(tmp_path / "agent.pt")
    assert_resume_refused(path, r"resume from checkpoints/last\.pt of a run_dir, or from a CheckpointCallback")


def test_a_missing_run_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        small_run(None, total=60, resume_from=tmp_path / "last.pt")


WRONG = ["wrong", None, 10**30, [1, "2"], {"wrong": 1}, float("nan"), torch.full((2, 3), torch.nan)]


@pytest.mark.parametrize(
    "place",
    [
        ("replay",),
        ("replay", "rows"),
        ("replay", "bars"),
        ("replay", "size"),
        ("replay", "position"),
        ("environment_state", "bar"),
        ("environment_state", "account"),
        ("environment_state", "account", "equity"),
        ("environment_state", "sums"),
        ("environment_state", "generator"),
        ("environment_state", "market"),
        ("callbacks",),
        ("callbacks", "callbacks"),
        ("counters",),
        ("counters", "num_episodes"),
        ("counters", "offset"),
        ("recent_episodes",),
        ("recent_episodes", 0),
        ("recent_episodes", 0, "episode_return"),
        ("pending",),
        ("losses",),
        ("episode_returns",),
        ("episode_lengths", 0),
        ("history",),
        ("history", 0),
        ("history", 0, "num_timesteps"),
    ],
    ids=lambda place: ".".join(map(str, place)),
)
def test_a_damaged_run_is_refused(saved_run, place):
    for value in WRONG:
        if place == ("replay",) and value is None:
            continue  # An agent without a memory.
        if place in [("pending",), ("losses",)] and value == {"wrong": 1}:
            continue  # A value by the name of "wrong".
        if place in [("history", 0), ("recent_episodes", 0, "episode_return"), ("history", 0, "num_timesteps")]:
            continue_if = (float, str, int, dict) if place[-1] == 0 else (float, int, str)
            if isinstance(value, continue_if):
                continue  # Numbers and text by name: what a row is.
        content = torch.load(saved_run, weights_only=False)
        target = content["training"]
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        damaged = saved_run.with_name("damaged.pt")
        torch.save(content, damaged)
        assert_resume_refused(damaged, None)


# --- Killed at any moment


# A checkpoint after every vector step: kills land inside writes too.
def killed_run(folder, total):
    path = Path(folder) / "checkpoints" / "last.pt"
    resume_from = path if path.exists() else None
    small_run(folder, total=total, resume_from=resume_from, checkpoint_frequency=3, eval_frequency=400)


def kill_and_resume(folder, total, n_kills, seed):
    """Kill a training at seeded random moments after it began, then let it finish; how many timesteps each kill found."""
    delays, reached = random.Random(seed), []
    log = folder / "metrics.csv"
    for _ in range(n_kills):
        child = subprocess.Popen([sys.executable, __file__, "train", str(folder), str(total)], cwd=ROOT)
        try:
            before, deadline = log.stat().st_mtime_ns if log.exists() else 0, time.monotonic() + 60.0
            # The delay counts from the moment the child writes, not from the seconds that importing takes.
            while child.poll() is None and (not log.exists() or log.stat().st_mtime_ns == before):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(delays.uniform(0.0, 0.6))
        finally:
            child.kill()
            assert child.wait(timeout=60) in (-signal.SIGKILL, 0)
        last = folder / "checkpoints" / "last.pt"
        reached.append(load_rl_agent(last).num_timesteps if last.exists() else 0)
    killed_run(folder, total)
    return reached


def check_killed_run(tmp_path, total, n_kills, seed):
    small_run(tmp_path / "whole", total=total, checkpoint_frequency=0, eval_frequency=400)
    reached = kill_and_resume(tmp_path / "killed", total, n_kills, seed)
    assert reached == sorted(reached)
    assert any(0 < number < total for number in reached)
    found, expected = (plain_contents(tmp_path / kind / "checkpoints" / "last.pt") for kind in ("killed", "whole"))
    assert_same(found, expected)
    assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_a_run_killed_three_times_ends_as_an_uninterrupted_one(tmp_path):
    check_killed_run(tmp_path, total=900, n_kills=3, seed=1)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_an_uninterrupted_one(tmp_path):
    check_killed_run(tmp_path, total=3_000, n_kills=20, seed=2)


def test_the_log_of_a_run_is_in_the_order_of_time(tmp_path):
    small_run(tmp_path, total=60)
    assert read_history(tmp_path / "metrics.csv")["num_timesteps"].is_monotonic_increasing


if __name__ == "__main__":
    if sys.argv[1] == "resume":
        resume_all(Path(sys.argv[2]))
    else:
        killed_run(sys.argv[2], int(sys.argv[3]))
