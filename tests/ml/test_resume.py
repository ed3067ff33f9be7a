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
from ml.tradingbots.components.rl_agents import AGENTS, create_rl_agent, load_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.callbacks import (
    Callback,
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


# What every agent is made with, so small that it learns in milliseconds. Rollouts of 7 and 9 steps, so that none ends where
# a run is cut.
OFF_POLICY = {"hidden_dim": 8, "batch_size": 8, "learning_starts": 60, "buffer_size": 500}
BASE = {
    "sac": OFF_POLICY,
    "td3": OFF_POLICY,
    "ddpg": OFF_POLICY,
    "dqn": OFF_POLICY | {"target_update_interval": 50},
    "ppo": {"hidden_dim": 8, "n_steps": 9, "batch_size": 10, "n_epochs": 2},
    "a2c": {"hidden_dim": 8, "n_steps": 7},
}
DISCRETE = {"action_type": "discrete"}
LONG_ONLY = DISCRETE | {"allow_short": False}  # Where choices are masked.
LINEAR = {"learning_rate_schedule": "linear"}
STOPPED = {"stopped": True}


def new_agent(agent_type, env, seed=5, **settings):
    config = AGENTS[agent_type].config_class(**BASE[agent_type] | settings)
    return create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config, seed=seed)


# Name, timesteps before the cut, settings of the market, of the agent (`agent_type` chooses another than SAC) and of the
# run. Three accounts, so that no number of timesteps below divides the other by accident. A run is cut by a smaller budget;
# where something follows a schedule over the budget it is `stopped` on the way instead.
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
    "sac with state-dependent noise": (129, {}, {"gsde": True, "gsde_sample_freq": 4, **LINEAR}, STOPPED),
    "ppo, mid-rollout": (120, {}, {"agent_type": "ppo"}, {}),
    "ppo, in the first rollout": (12, {}, {"agent_type": "ppo"}, {}),
    "ppo, after a rollout": (108, {}, {"agent_type": "ppo"}, {}),
    "ppo with choices": (120, LONG_ONLY, {"agent_type": "ppo", **DISCRETE}, {}),
    "ppo with a portfolio of choices": (120, {"n_assets": 2, **LONG_ONLY}, {"agent_type": "ppo", **DISCRETE}, {}),
    "ppo with state-dependent noise": (120, {}, {"agent_type": "ppo", "gsde": True, "gsde_sample_freq": 4}, {}),
    "ppo with schedules": (120, {}, {"agent_type": "ppo", "clip_schedule": "linear", **LINEAR}, STOPPED),
    "a2c": (120, {"n_assets": 2}, {"agent_type": "a2c"}, {}),
    "a2c with choices and a schedule": (120, LONG_ONLY, {"agent_type": "a2c", **DISCRETE, **LINEAR}, STOPPED),
    "dqn": (120, DISCRETE, {"agent_type": "dqn", "epsilon_fraction": 0.8}, STOPPED),
    "dqn with long returns and priorities": (
        120,
        LONG_ONLY,
        {"agent_type": "dqn", "n_step_targets": 3, "prioritized": True, "buffer_size": 90, **LINEAR},
        STOPPED,
    ),
    "dqn with a portfolio of choices": (
        120,
        {"n_assets": 2, **LONG_ONLY},
        {"agent_type": "dqn", "dueling": False, "tau": 0.1, "target_update_interval": 7},
        STOPPED,
    ),
    "td3": (123, {"n_assets": 2}, {"agent_type": "td3", "policy_delay": 3}, {}),
    "td3 with a schedule": (120, {}, {"agent_type": "td3", **LINEAR}, STOPPED),
    "ddpg, noise mid-episode": (120, {}, {"agent_type": "ddpg", "noise_time_step": 1.0}, {}),
    "ddpg with independent noise": (30, {}, {"agent_type": "ddpg", "exploration_noise": "gaussian"}, {}),
}


class StopAt(Callback):
    """Ends a run on its way, its budget unspent."""

    def __init__(self, timesteps):
        self.timesteps = timesteps

    def on_step(self, state):
        if self.timesteps is not None and state.num_timesteps >= self.timesteps:
            state.request_stop("that is enough")


def pieces(name, stop_at=None):
    """Everything that a run of a scenario is called with, made anew."""
    _, env_settings, agent_settings, run_settings = SCENARIOS[name]
    env = market(**env_settings)
    agent = new_agent(**{"agent_type": "sac", "env": env} | agent_settings)
    callbacks = [
        EarlyStoppingRLCallback(patience=40, window=3),
        TradingMetricsCallback(30),
        EvalCallback(market(**env_settings | {"seed": 7}), eval_freq=70),
        StopAt(stop_at),
    ]
    settings = {"n_envs": 3, "log_frequency": 10, "checkpoint_frequency": 80, "progress": False, "seed": 2}
    return env, agent, callbacks, settings | run_settings


def run(name, folder, *, cut=None, resume_from=None):
    """Run a scenario to its end, or to where it is cut."""
    stops = "stopped" in SCENARIOS[name][3]
    env, agent, callbacks, settings = pieces(name, stop_at=cut if stops else None)
    settings.pop("stopped", None)
    unit = "total_episodes" if "total_episodes" in settings else "total_timesteps"
    settings[unit] = cut if cut and not stops else settings.get(unit, TOTAL)
    config = RLTrainingConfig(run_dir=str(folder), **settings)
    train_rl_agent(agent, env, config, callbacks, resume_from=resume_from)
    return agent


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
        run(name, folder / slug(name) / "resumed", cut=cut)
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
    for content in (found, expected):
        content["counters"].pop("schedule_timesteps")  # The budget, which may have been smaller before the cut.
    assert_same(found, expected)


def small_run(folder, *, total, callbacks=(), resume_from=None, seed=1, n_envs=3, agent=None, env=None, **settings):
    env = market(seed=seed) if env is None else env
    agent = new_agent("sac", env, learning_starts=30, buffer_size=200) if agent is None else agent
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


# Agents whose memories differ; SAC is what the other tests are about. Market and agent settings.
KINDS = {
    "sac": ("sac", {}, {}),
    "sac with gsde": ("sac", {}, {"gsde": True}),
    "ddpg": ("ddpg", {}, {}),
    "dqn": ("dqn", LONG_ONLY, {"prioritized": True}),
    "ppo": ("ppo", {}, {}),
    "ppo with gsde": ("ppo", {}, {"gsde": True}),
    "a2c with choices": ("a2c", LONG_ONLY, DISCRETE),
}


def run_of(kind, seed):
    """An agent of a kind, and its market."""
    agent_type, env_settings, agent_settings = KINDS[kind]
    env = market(**env_settings)
    return new_agent(agent_type, env, seed, **agent_settings), env


def assert_resume_refused(path, match, kind="sac", **settings):
    """Resuming is refused, and the agent is as it was."""
    agent, env = run_of(kind, seed=99)
    agent.bind(env.vectorize(1))
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=match) as raised:
        small_run(None, total=120, resume_from=path, agent=agent, **{"env": env} | settings)
    assert str(path) in str(raised.value)
    assert_same(agent.state_dict(), before)
    assert agent.memory_state() is None


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory):
    """A saved run of every kind of agent, made when it is asked for."""
    made = {}

    def saved_run_of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("saved")
            agent, env = run_of(kind, seed=5)
            small_run(folder, total=90, agent=agent, env=env)
            made[kind] = folder / "checkpoints" / "last.pt"
        return made[kind]

    return saved_run_of


@pytest.fixture(scope="module")
def saved_run(saved_runs):
    return saved_runs("sac")


def with_value(path, place, value):
    """Write a copy of a run with another value at one place; returns its path."""
    content = torch.load(path, weights_only=False)
    target = content["training"]
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    damaged = path.with_name("damaged.pt")
    torch.save(content, damaged)
    return damaged


def test_a_run_on_other_prices_is_refused(saved_run):
    assert_resume_refused(
        saved_run, "trained on other prices or features; resume it with the same price_data", env=market(seed=3)
    )


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
        ("memory",),
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
        if place == ("memory",) and value is None:
            continue  # An agent without a memory.
        if place in [("pending",), ("losses",)] and value == {"wrong": 1}:
            continue  # A value by the name of "wrong".
        if place in [("history", 0), ("recent_episodes", 0, "episode_return"), ("history", 0, "num_timesteps")]:
            continue_if = (float, str, int, dict) if place[-1] == 0 else (float, int, str)
            if isinstance(value, continue_if):
                continue  # Numbers and text by name: what a row is.
        assert_resume_refused(with_value(saved_run, place, value), None)


def places_in(content, prefix):
    """Every place under some entry, containers included, it too."""
    yield prefix
    for key, value in content.items():
        if isinstance(value, dict):
            yield from places_in(value, (*prefix, key))
        else:
            yield (*prefix, key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_or_missing_value_anywhere_in_what_an_agent_remembers_is_refused(saved_runs, kind):
    path = saved_runs(kind)
    memory = torch.load(path, weights_only=False)["training"]["memory"]
    places = list(places_in(memory, ("memory",)))[1:]
    assert len(places) >= 6
    for place in places:
        for value in WRONG if kind == "sac" else WRONG[::2]:
            assert_resume_refused(with_value(path, place, value), None, kind)
        if place[-1] == "next_masks":
            continue  # A memory of an environment that masks nothing.
        content = torch.load(path, weights_only=False)
        target = content["training"]
        for key in place[:-1]:
            target = target[key]
        del target[place[-1]]
        damaged = path.with_name("damaged.pt")
        torch.save(content, damaged)
        assert_resume_refused(damaged, None, kind)


def changed(tensor, value):
    """A copy of a tensor with one value in it changed, in its first row."""
    copy = tensor.clone()
    copy.view(len(copy), -1)[0, 0] = value
    return copy


# What has the right type and shape and could not be so: tensors as functions of the saved ones.
IMPOSSIBLE = {
    "a bar before the first": ("ppo", "rollouts.tensors.bar", lambda bar: changed(bar, -1)),
    "a bar whose window begins before the data": ("ppo", "rollouts.tensors.bar", lambda bar: changed(bar, 1)),
    "a bar after the last": ("ppo", "rollouts.tensors.bar", lambda bar: changed(bar, 10_000)),
    "a choice that there is not": ("a2c with choices", "rollouts.tensors.action", lambda action: changed(action, 3.0)),
    "a negative choice": ("a2c with choices", "rollouts.tensors.action", lambda action: changed(action, -1.0)),
    "half a choice": ("a2c with choices", "rollouts.tensors.action", lambda action: changed(action, 0.5)),
    "infinite reward": ("ppo", "rollouts.tensors.reward", lambda reward: changed(reward, torch.inf)),
    "undefined observation": ("ppo", "rollouts.tensors.key", lambda key: changed(key, torch.nan)),
    "masks of more choices": (
        "a2c with choices",
        "rollouts.tensors.mask",
        lambda mask: torch.ones((*mask.shape[:2], 4), dtype=torch.bool),
    ),
    "masks of 300 GB": (
        "a2c with choices",
        "rollouts.tensors.mask",
        lambda mask: torch.ones(1, dtype=torch.bool).expand(*mask.shape[:2], 10**10),
    ),
    "a rollout that is full": ("ppo", "rollouts.position", lambda position: 9),
    "a negative position": ("ppo", "rollouts.position", lambda position: -1),
    "position True": ("ppo", "rollouts.position", lambda position: True),
    "infinite sum of rewards": ("ppo", "totals", lambda totals: changed(totals, torch.inf)),
    "undefined noise": ("ppo with gsde", "exploration.matrices", lambda matrices: changed(matrices, torch.nan)),
    "undefined noise of a sac agent": (
        "sac with gsde",
        "exploration.matrices",
        lambda matrices: changed(matrices, torch.nan),
    ),
    "undefined noise of a ddpg agent": ("ddpg", "exploration.value", lambda value: changed(value, torch.nan)),
    "a remembered choice that there is not": ("dqn", "replay.rows", lambda rows: with_column(rows, -3, 3.0)),
    "a priority of nothing": ("dqn", "replay.priorities", lambda priorities: changed(priorities, 0.0)),
    "masks of other widths": ("dqn", "replay.next_masks", lambda masks: torch.ones((len(masks), 4), dtype=torch.bool)),
    "masks of 900 GB": (
        "dqn",
        "replay.next_masks",
        lambda masks: torch.ones(1, dtype=torch.bool).expand(len(masks), 10**10),
    ),
}


def with_column(rows, column, value):
    copy = rows.clone()
    copy[:, column] = value
    return copy


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_an_agent_cannot_remember_is_refused(saved_runs, name):
    kind, place, change = IMPOSSIBLE[name]
    path, keys = saved_runs(kind), ("memory", *place.split("."))
    value = torch.load(path, weights_only=False)["training"]
    for key in keys:
        value = value[key]
    assert_resume_refused(with_value(path, keys, change(value)), None, kind)


def test_the_memory_of_another_number_of_steps_is_refused(saved_runs):
    path = saved_runs("ppo")
    content = torch.load(path, weights_only=False)
    tensors = content["training"]["memory"]["rollouts"]["tensors"]
    for name, tensor in tensors.items():
        tensors[name] = torch.cat([tensor, tensor])
    damaged = path.with_name("damaged.pt")
    torch.save(content, damaged)
    assert_resume_refused(damaged, "rollout", "ppo")


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
