"""The training loop: budgets, evaluation, the folder a run leaves, and Ctrl-C.

The file is also the program that is interrupted: `python test_rl_training.py FOLDER`.
"""

import copy
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent, load_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.callbacks import Callback, EvalCallback
from ml.tradingbots.training.checkpoints import read_run
from ml.tradingbots.training.loggers import MemoryLogger, read_history
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

ROOT = Path(__file__).parents[2]
CONFIG = SACConfig(hidden_dim=8, batch_size=8, learning_starts=20, buffer_size=500)
torch.set_num_threads(1)


def market(seed=1, **settings):
    config = TradingEnvConfig(**{"window_size": 3, "episode_length": 10} | settings)
    return TradingEnvironment(autoregressive(80, seed=seed).prices, config)


def agent_for(env, config=CONFIG, seed=0):
    return create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, config, seed=seed)


def train(agent=None, env=None, callbacks=None, *, eval_env=None, loggers=(), resume_from=None, **settings):
    env = env if env is not None else market()
    agent = agent or agent_for(env)
    budget = {} if "total_episodes" in settings else {"total_timesteps": 60}
    config = RLTrainingConfig(**{"n_envs": 2, "progress": False, "log_frequency": 20} | budget | settings)
    return train_rl_agent(agent, env, config, callbacks, eval_env=eval_env, loggers=loggers, resume_from=resume_from)


class Evaluations(Callback):
    """When evaluations happened and what they found."""

    def __init__(self):
        self.at, self.episodes, self.scores, self.weights = [], [], [], []

    def on_eval(self, state, metrics):
        self.at.append(state.num_timesteps)
        self.episodes.append(state.num_episodes)
        self.scores.append(metrics["eval_sharpe"])
        self.weights.append(state.agent.actor.head.weight.detach().clone())


# --- Budgets


@pytest.mark.parametrize(("total", "n_envs", "expected"), [(60, 2, 60), (61, 4, 64), (1, 3, 3)])
def test_a_budget_of_timesteps_is_spent_in_whole_vector_steps(total, n_envs, expected):
    metrics = train(total_timesteps=total, n_envs=n_envs)
    assert metrics.num_timesteps == expected
    assert metrics.stop_reason.startswith("the budget is spent")


def test_a_budget_of_episodes_counts_those_of_all_accounts():
    metrics = train(total_episodes=6, n_envs=2)
    assert (metrics.num_episodes, metrics.num_timesteps) == (6, 60)
    assert metrics.episode_lengths == [10] * 6
    assert len(metrics.episode_returns) == 6


def test_training_the_agent_directly_is_the_same_loop():
    env = market(random_start=True)
    direct, by_function = agent_for(env), agent_for(env)
    direct.train(env, 60, n_envs=2)
    train(by_function, env, normalize_observations=False, normalize_rewards=False)
    assert torch.equal(direct.actor.head.weight, by_function.actor.head.weight)


def test_the_metrics_count_updates():
    # The first update follows the first vector step past 20 timesteps: 20 steps are left of 30.
    assert train().num_updates == 20


def test_a_second_run_begins_its_own_count():
    env = market()
    agent = agent_for(env)
    train(agent, env)
    metrics = train(agent, env, total_timesteps=40)
    assert metrics.num_timesteps == 40
    assert agent.num_timesteps == 100


def test_the_batch_size_of_the_run_wins_over_the_agents():
    env = market()
    own, other = agent_for(env), agent_for(env)
    train(own, env, batch_size=8)
    train(other, env, batch_size=9)
    assert not torch.equal(own.actor.head.weight, other.actor.head.weight)
    same = agent_for(env)
    train(same, env)
    assert torch.equal(own.actor.head.weight, same.actor.head.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one budget"),
        ({"total_timesteps": 5, "total_episodes": 5}, "give one budget"),
        ({"total_timesteps": 0}, "total_timesteps must be at least 1"),
        ({"total_episodes": -1}, "total_episodes must be at least 1"),
        ({"total_timesteps": 5, "batch_size": 0}, "batch_size must be at least 1"),
        ({"total_timesteps": 5, "n_envs": 0}, "n_envs must be at least 1"),
        ({"total_timesteps": 5, "torch_threads": 0}, "torch_threads must be at least 1"),
        ({"total_timesteps": 5, "torch_threads": 257}, "torch_threads must be at most 256"),
        ({"total_timesteps": 5.0}, "total_timesteps must be an integer or None, got 5.0"),
        ({"total_timesteps": 5, "progress": "no"}, "progress must be True or False, got 'no'"),
        ({"total_timesteps": 5, "seed": -1}, "seed must be an integer"),
        ({"total_timesteps": 5, "eval_frequency": -1}, "eval_frequency must be at least 0"),
        ({"total_timesteps": 5, "log_frequency": -1}, "log_frequency must be at least 0"),
        ({"total_timesteps": 5, "checkpoint_frequency": -1}, "checkpoint_frequency must be at least 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RLTrainingConfig(**settings)


# --- What the agent sees


def test_an_agent_sees_a_market_by_its_exact_statistics():
    env = market()
    agent = agent_for(env)
    train(agent, env, total_timesteps=2)
    mean, std = env.market.observation_statistics()
    assert agent.normalizer.mode == "fixed"
    np.testing.assert_array_equal(agent.normalizer.statistics.mean, mean)
    # Kept as a variance: the square root of a square.
    np.testing.assert_allclose(agent.normalizer.statistics.std, std, rtol=1e-15)


def test_rewards_are_scaled_by_their_deviation_under_the_first_actions():
    env = market()
    agent = agent_for(env)
    train(agent, env, total_timesteps=22)
    assert agent.reward_scale == pytest.approx(1.0 / agent.replay.rewards().double().std().item(), rel=1e-12)


def test_scaling_can_be_switched_off():
    env = market()
    agent = agent_for(env)
    train(agent, env, normalize_observations=False, normalize_rewards=False)
    assert (agent.normalizer.mode, agent.reward_scale) == ("off", 1.0)


def test_the_environment_given_is_not_changed_by_training():
    env = market()
    env.reset(seed=0)
    before = copy.deepcopy((env._bar, env.account.equity))
    train(env=env)
    assert (env._bar, env.account.equity) == before


def test_the_number_of_torch_threads_is_put_back():
    before = torch.get_num_threads()
    train(total_timesteps=2, torch_threads=before + 1)
    assert torch.get_num_threads() == before


# --- Evaluation


def test_evaluations_follow_a_budget_of_timesteps_in_timesteps():
    evaluations = Evaluations()
    train(callbacks=evaluations, total_timesteps=70, eval_frequency=20)
    assert evaluations.at == [20, 40, 60, 70]


def test_evaluations_follow_a_budget_of_episodes_in_episodes():
    evaluations = Evaluations()
    train(callbacks=evaluations, total_episodes=10, eval_frequency=4)
    # The last one closes the run.
    assert evaluations.episodes == [4, 8, 10]


def test_without_a_frequency_there_is_one_evaluation_at_the_end():
    evaluations = Evaluations()
    metrics = train(callbacks=evaluations, total_timesteps=60)
    assert evaluations.at == [60]
    assert metrics.final_evaluation["eval_sharpe"] == evaluations.scores[0]


def test_the_evaluation_environment_decides_the_score():
    first, second = (train(eval_env=market(seed)).final_evaluation["eval_total_return"] for seed in (1, 2))
    assert first != second


def test_best_pt_holds_the_agent_of_the_best_evaluation(tmp_path):
    evaluations = Evaluations()
    metrics = train(
        callbacks=evaluations, eval_env=market(2), total_timesteps=200, eval_frequency=10, run_dir=str(tmp_path)
    )
    scores = np.nan_to_num(evaluations.scores)
    best = int(np.argmax(scores))
    assert metrics.best_eval_score == scores[best]
    assert torch.equal(load_rl_agent(tmp_path / "best.pt").actor.head.weight, evaluations.weights[best])


def test_evaluating_often_does_not_change_training():
    env = market()
    seldom, often = agent_for(env), agent_for(env)
    train(seldom, env, total_timesteps=100)
    train(often, env, total_timesteps=100, eval_frequency=4)
    assert torch.equal(seldom.actor.head.weight, often.actor.head.weight)


# --- The folder of a run


def test_a_run_leaves_its_folder(tmp_path):
    train(run_dir=str(tmp_path / "run"))
    found = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert found == ["best.pt", "checkpoints/last.pt", "config.json", "metrics.csv"]


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train()
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_run_can_be_read_back(tmp_path):
    env = market()
    train(env=env, run_dir=str(tmp_path), seed=4)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["agent_type"] == "sac"
    assert SACConfig(**settings["agent"]) == CONFIG
    assert RLTrainingConfig(**settings["training"]).seed == 4
    assert TradingEnvConfig.from_dict(settings["environment"]["config"]) == env.config


def test_the_log_has_a_row_at_each_multiple_of_its_frequency(tmp_path):
    train(run_dir=str(tmp_path), total_timesteps=60, log_frequency=20)
    history = read_history(tmp_path / "metrics.csv")
    # The second row at 60 is that of the closing evaluation.
    assert history["num_timesteps"].tolist() == [20, 40, 60, 60]
    assert {"num_episodes", "episode_return", "episode_length", "critic_loss", "eval_sharpe"} <= set(history.columns)


def test_the_log_on_disk_is_the_history_in_memory(tmp_path):
    metrics = train(run_dir=str(tmp_path))
    on_disk = read_history(tmp_path / "metrics.csv")
    assert list(on_disk.columns) == list(metrics.history.columns)
    # Floats are written with as many digits as they have.
    np.testing.assert_array_equal(on_disk.to_numpy(float), metrics.history.to_numpy(float))


def test_more_loggers_get_the_same_rows():
    extra = MemoryLogger()
    metrics = train(loggers=[extra])
    assert extra.history.equals(metrics.history)


def test_a_fresh_run_in_an_old_folder_begins_its_log_anew(tmp_path):
    for _ in range(2):
        train(run_dir=str(tmp_path))
    assert read_history(tmp_path / "metrics.csv")["num_timesteps"].tolist() == [20, 40, 60, 60]


def test_checkpoints_are_written_during_the_run(tmp_path):
    class Watch(Callback):
        found: list[int] = []  # noqa: RUF012 - One test, one run.

        def on_step(self, state):
            path = tmp_path / "checkpoints" / "last.pt"
            self.found.append(load_rl_agent(path).num_timesteps if path.exists() else 0)

    train(callbacks=Watch(), run_dir=str(tmp_path), total_timesteps=12, checkpoint_frequency=4)
    assert Watch.found == [0, 2, 4, 4, 8, 8]


def test_a_callback_whose_state_cannot_be_saved_is_refused_before_the_run(tmp_path):
    class Unsaveable(Callback):
        n_steps = 0

        def on_step(self, state):
            self.n_steps += 1

        def state_dict(self):
            return {"table": np.zeros(3)}

    callback = Unsaveable()
    with pytest.raises(TypeError, match=r"the state of callbacks.*table.*is a ndarray, which cannot be saved"):
        train(callbacks=callback, run_dir=str(tmp_path))
    assert callback.n_steps == 0


# --- Other environments


def pendulum_agent(seed=0):
    return create_rl_agent("sac", 3, 1, CONFIG, seed=seed)


def test_a_gymnasium_environment_is_trained_in_and_evaluated():
    metrics = train(pendulum_agent(), gymnasium.make("Pendulum-v1"), n_envs=1, total_timesteps=450)
    assert metrics.episode_lengths == [200, 200]
    assert metrics.num_updates == 430
    # A pendulum pays between about −16.3 and 0 a step.
    assert -3_300.0 < metrics.final_evaluation["eval_episode_return"] < 0.0
    assert np.isnan(metrics.history["episode_return"].iloc[0])


def test_a_gymnasium_environment_is_seen_by_running_statistics():
    agent = pendulum_agent()
    train(agent, gymnasium.make("Pendulum-v1"), n_envs=1, total_timesteps=100)
    assert agent.normalizer.mode == "running"
    assert agent.normalizer.statistics.count == 101  # The first observation and those after each step.


@pytest.mark.parametrize("env", ["Pendulum-v1", gymnasium.make("Pendulum-v1")], ids=["by id", "by spec"])
def test_several_copies_are_made_of_an_environment_with_a_spec(env):
    class Count(Callback):
        def on_step(self, state):
            self.n_envs = state.env.num_envs

    count = Count()
    metrics = train(pendulum_agent(), env, count, n_envs=3, total_timesteps=30)
    assert count.n_envs == 3
    assert metrics.num_timesteps == 30


class Line(gymnasium.Env):
    """A walk on a line, without a spec; every copy counts its own steps."""

    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.n_steps = self.np_random.uniform(-1.0, 1.0), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += 0.1 * float(action[0])
        self.n_steps += 1
        return np.array([self.place], np.float32), -abs(self.place), False, self.n_steps == 7, {}


@pytest.mark.parametrize("make", [Line, lambda: gymnasium.make("Pendulum-v1")], ids=["without a spec", "with a spec"])
def test_evaluations_do_not_touch_the_environment_that_is_trained_in(make):
    results = []
    for eval_frequency in (0, 10):
        env = make()
        agent = create_rl_agent("sac", env.observation_space.shape[0], 1, CONFIG, seed=0)
        train(agent, env, n_envs=1, total_timesteps=60, eval_frequency=eval_frequency)
        results.append(torch.cat([parameter.detach().flatten() for parameter in agent.actor.parameters()]))
    assert torch.equal(*results)


def test_a_vector_environment_is_trained_in_as_it_is():
    env = market().vectorize(3, random_start=True)
    metrics = train(agent_for(env), env, total_timesteps=60, n_envs=99)
    assert metrics.num_timesteps == 60
    assert metrics.final_evaluation == {}


def test_evaluating_during_training_in_a_vector_environment_needs_an_environment():
    env = market().vectorize(3)
    with pytest.raises(ValueError, match="eval_frequency needs an eval_env"):
        train(agent_for(env), env, eval_frequency=10)


def test_something_that_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="env must be a gymnasium environment or its id, got float"):
        train(agent_for(market()), 3.5)


def test_an_agent_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="state_dim=env"):
        train(create_rl_agent("sac", 2, 1, CONFIG), market(), run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# --- Ctrl-C


INTERRUPTED_TOTAL = 1_600


def long_run(folder, resume_from=None):
    env = market()
    agent = agent_for(env)
    config = RLTrainingConfig(
        total_timesteps=INTERRUPTED_TOTAL, n_envs=2, progress=False, log_frequency=20, run_dir=str(folder)
    )
    return agent, train_rl_agent(agent, env, config, resume_from=resume_from)


def test_ctrl_c_saves_the_run_at_a_step_and_it_resumes_as_if_nothing_had_happened(tmp_path):
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "cut")], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "cut" / "metrics.csv", time.monotonic() + 60.0
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert "KeyboardInterrupt: training stopped at" in stderr
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=False)
    assert 0 < saved["counters"]["num_timesteps"] < INTERRUPTED_TOTAL
    assert saved["training"]["memory"]["replay"]["size"] == min(saved["counters"]["num_timesteps"], CONFIG.buffer_size)
    resumed, metrics = long_run(tmp_path / "cut", resume_from=last)
    whole, whole_metrics = long_run(tmp_path / "whole")
    assert torch.equal(resumed.actor.head.weight, whole.actor.head.weight)
    assert metrics.history.equals(whole_metrics.history)


def test_ctrl_c_without_a_folder_interrupts_at_once():
    class Interrupt(Callback):
        def on_step(self, state):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(callbacks=Interrupt())


def test_ctrl_c_during_the_closing_evaluation_is_not_lost(tmp_path):
    class Interrupt(Callback):
        def on_eval(self, state, metrics):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="training stopped at 60 timesteps"):
        train(callbacks=Interrupt(), total_timesteps=60, run_dir=str(tmp_path))
    assert read_run(tmp_path / "checkpoints" / "last.pt")[1]["counters"]["num_evaluations"] == 0
    assert (tmp_path / "best.pt").exists()


def test_ctrl_c_skips_the_closing_evaluation(tmp_path):
    class Interrupt(Callback):
        n_evaluations = 0

        def on_step(self, state):
            signal.raise_signal(signal.SIGINT)

        def on_eval(self, state, metrics):
            self.n_evaluations += 1

    callback = Interrupt()
    with pytest.raises(KeyboardInterrupt, match="training stopped at 2 timesteps"):
        train(callbacks=callback, run_dir=str(tmp_path))
    assert callback.n_evaluations == 0


def test_the_handling_of_ctrl_c_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(run_dir=str(tmp_path), total_timesteps=2)
    assert signal.getsignal(signal.SIGINT) is before


def test_every_setting_of_a_run_is_plain():
    config = RLTrainingConfig(total_timesteps=5)
    assert RLTrainingConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


if __name__ == "__main__":
    long_run(sys.argv[1])


# --- What was once broken


def test_a_run_folder_can_be_resumed_from_its_first_step_on(tmp_path):
    class Crash(Callback):
        def on_step_end(self, state):
            if state.num_timesteps >= 4:
                raise MemoryError

    with pytest.raises(MemoryError):
        train(callbacks=Crash(), run_dir=str(tmp_path), total_timesteps=1_000)
    assert (tmp_path / "checkpoints" / "last.pt").is_file()


def test_a_run_is_checkpointed_about_twenty_times_unless_told_otherwise(tmp_path):
    written = set()

    class Watch(Callback):
        def on_step(self, state):
            last = tmp_path / "checkpoints" / "last.pt"
            if last.is_file():
                written.add(last.stat().st_mtime_ns)

    train(callbacks=Watch(), run_dir=str(tmp_path), total_timesteps=200)
    assert 19 <= len(written) <= 21


def test_a_resumed_run_with_a_larger_budget_goes_on_evaluating(tmp_path):
    first, second = Evaluations(), Evaluations()
    train(callbacks=first, run_dir=str(tmp_path), total_timesteps=40, eval_frequency=4)
    env = market()
    train(
        agent_for(env),
        env,
        second,
        run_dir=str(tmp_path),
        total_timesteps=80,
        eval_frequency=8,
        resume_from=tmp_path / "checkpoints" / "last.pt",
    )
    assert second.at[:5] == [48, 56, 64, 72, 80]


def test_training_visits_early_and_late_bars_alike():
    env = TradingEnvironment(autoregressive(2_600, seed=0).prices, TradingEnvConfig(window_size=2))
    visits = np.zeros(2_600)

    class Count(Callback):
        def on_step(self, state):
            np.add.at(visits, state.env.bar.numpy(), 1.0)

    agent = create_rl_agent(
        "sac", env.observation_space_dim, 1, SACConfig(hidden_dim=8, batch_size=8, train_freq=1_000), seed=0
    )
    train(agent, env, Count(), n_envs=64, total_timesteps=100_000)
    quarters = visits[: 2_600 // 4 * 4].reshape(4, -1).sum(axis=1)
    assert quarters.max() < 1.5 * quarters.min()


def test_an_agent_that_is_trained_again_fills_its_memory_before_it_learns():
    env = market()
    agent = agent_for(env)
    train(agent, env)
    n_updates = agent.num_updates
    train(agent, env, total_timesteps=agent.config.learning_starts - 2)
    assert agent.num_updates == n_updates


WRONG_KINDS = {"market": lambda: market(action_type="discrete"), "gymnasium": lambda: gymnasium.make("CartPole-v1")}


@pytest.mark.parametrize("wrong", WRONG_KINDS.values(), ids=WRONG_KINDS)
@pytest.mark.parametrize("by_callback", [False, True])
def test_an_evaluation_in_the_other_kind_of_actions_is_refused_before_training(tmp_path, by_callback, wrong):
    env, folder = market(), tmp_path / "run"
    agent = agent_for(env)
    given = {"callbacks": [EvalCallback(wrong(), eval_freq=20)]} if by_callback else {"eval_env": wrong()}
    with pytest.raises(TypeError, match=r"needs continuous actions.*TradingEnvConfig\(action_type='continuous'\)"):
        train(agent, env, run_dir=str(folder), **given)
    assert agent.num_timesteps == 0
    assert not folder.exists()


@pytest.mark.parametrize("by_callback", [False, True])
def test_an_evaluation_in_an_id_of_the_other_kind_of_actions_is_refused_before_training(by_callback):
    env = market()
    agent = agent_for(env)
    wrong = "CartPole-v1"
    given = {"callbacks": [EvalCallback(wrong, eval_freq=20)]} if by_callback else {"eval_env": wrong}
    with pytest.raises(TypeError, match="needs continuous actions"):
        train(agent, env, **given)
    assert agent.num_timesteps == 0


UNTRAINED = "the budget is spent and no gradient step was taken: it is too small for the agent"


def test_a_run_without_a_gradient_step_says_so():
    metrics = train(total_timesteps=20)  # As many as are collected before the first.
    assert (metrics.num_updates, metrics.stop_reason) == (0, UNTRAINED)
    metrics = train(total_timesteps=22)
    assert (metrics.num_updates, metrics.stop_reason) == (1, "the budget is spent")


def test_a_later_run_without_a_gradient_step_says_so_too():
    env = market()
    agent = agent_for(env)
    train(agent, env)
    metrics = train(agent, env, total_timesteps=4)  # Its memory begins empty.
    assert (metrics.num_updates, metrics.stop_reason) == (0, UNTRAINED)
