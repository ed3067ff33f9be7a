"""Hooks into a training run: called in order, remembered across a resume, and able to stop it."""

import gymnasium
import numpy as np
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent, load_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.callbacks import (
    Callback,
    CallbackList,
    CheckpointCallback,
    EarlyStoppingRLCallback,
    EvalCallback,
    TradingMetricsCallback,
)
from ml.tradingbots.training.evaluation import evaluate_agent, evaluate_episodes
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent
from ml.tradingbots.training.training_state import EpisodeSummary

CONFIG = SACConfig(hidden_dim=8, batch_size=8, learning_starts=20, buffer_size=200)
torch.set_num_threads(1)


def market(seed=1, **settings):
    config = TradingEnvConfig(**{"window_size": 3, "episode_length": 10} | settings)
    return TradingEnvironment(autoregressive(80, seed=seed).prices, config)


def agent_for(env, seed=0):
    return create_rl_agent("sac", env.observation_space_dim, 1, CONFIG, seed=seed)


def train(callbacks=None, *, env=None, agent=None, **settings):
    env = env or market()
    config = RLTrainingConfig(
        **{"n_envs": 2, "progress": False, "log_frequency": 20}
        | ({} if "total_episodes" in settings else {"total_timesteps": 60})
        | settings
    )
    return train_rl_agent(agent or agent_for(env), env, config, callbacks)


class Diary(Callback):
    """Writes down which hook was called when."""

    def __init__(self, name="", shared=None):
        self.name, self.calls = name, [] if shared is None else shared

    def on_training_start(self, state):
        self.calls.append((self.name, "start", state.num_timesteps))

    def on_step(self, state):
        self.calls.append((self.name, "step", state.num_timesteps))

    def on_episode_end(self, state, episode):
        self.calls.append((self.name, "episode", state.num_timesteps))

    def on_eval(self, state, metrics):
        self.calls.append((self.name, "eval", state.num_timesteps))

    def on_training_end(self, state):
        self.calls.append((self.name, "end", state.num_timesteps))


def episode(episode_return):
    return EpisodeSummary(
        episode_return=episode_return, length=10, sharpe_ratio=1.0, max_drawdown=0.1, total_return=0.1
    )


def test_hooks_are_called_in_the_order_of_the_run():
    diary = Diary()
    train(diary, total_timesteps=22, eval_frequency=20)
    hooks = [hook for _, hook, _ in diary.calls]
    # Ten vector steps to the end of two episodes and an evaluation at 20; one more step, the closing evaluation, the end.
    assert hooks == ["start", *["step"] * 9, "episode", "episode", "step", "eval", "step", "eval", "end"]


def test_each_step_hook_sees_the_timesteps_of_all_accounts():
    diary = Diary()
    train(diary, total_timesteps=12, n_envs=3)
    assert [number for _, hook, number in diary.calls if hook == "step"] == [3, 6, 9, 12]


def test_several_callbacks_are_called_in_the_order_given():
    calls = []
    train([Diary("first", calls), Diary("second", calls)], total_timesteps=20)
    assert [name for name, _, _ in calls] == ["first", "second"] * (len(calls) // 2)


def test_a_callback_list_is_taken_as_callbacks():
    diary = Diary()
    train(CallbackList([diary]), total_timesteps=4)
    assert len(diary.calls) == 5  # Start, two steps, the closing evaluation, end.


def test_something_that_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="callbacks must be Callback objects, got str"):
        train(["early stopping"])


class StopAt(Callback):
    def __init__(self, num_timesteps):
        self.at = num_timesteps

    def on_step(self, state):
        if state.num_timesteps >= self.at:
            state.request_stop("enough")


def test_a_callback_can_stop_the_run():
    metrics = train(StopAt(30))
    assert (metrics.num_timesteps, metrics.stop_reason) == (30, "enough")


def test_a_stopped_run_still_ends_with_an_evaluation_and_the_closing_hook():
    diary = Diary()
    metrics = train([StopAt(30), diary])
    assert [hook for _, hook, _ in diary.calls[-2:]] == ["eval", "end"]
    assert "eval_sharpe" in metrics.final_evaluation


def test_the_first_reason_to_stop_is_kept():
    class Also(Callback):
        def on_step(self, state):
            state.request_stop("too late")

    assert train([StopAt(2), Also()]).stop_reason == "enough"


class Recorder(Callback):
    def on_step(self, state):
        state.record(mine=float(state.num_timesteps))


def test_recorded_values_stand_in_the_next_log_row():
    history = train(Recorder(), log_frequency=20).history
    assert history["mine"].dropna().tolist() == [20.0, 40.0, 60.0]


def test_episode_hooks_see_what_the_metrics_keep():
    class Collect(Callback):
        found: list[float] = []  # noqa: RUF012 - One test, one run.

        def on_episode_end(self, state, episode):
            self.found.append(episode.episode_return)

    metrics = train(Collect())
    assert metrics.episode_returns == Collect.found
    assert metrics.episode_lengths == [10] * 6


# --- Early stopping


class Inbox:
    """The one method of a training state that early stopping uses."""

    stop_reason = ""

    def request_stop(self, reason):
        self.stop_reason = reason


def feed(callback, returns):
    """Number of episodes until it asks to stop, None if it does not."""
    state = Inbox()
    for number, value in enumerate(returns, start=1):
        callback.on_episode_end(state, episode(value))
        if state.stop_reason:
            return number
    return None


def test_early_stopping_waits_for_its_patience():
    # Window of two: the best mean is known after two episodes, three more do not beat it.
    assert feed(EarlyStoppingRLCallback(patience=3, window=2), [1.0] * 10) == 5


def test_early_stopping_goes_on_while_rewards_rise():
    assert feed(EarlyStoppingRLCallback(patience=2, window=2), [float(value) for value in range(50)]) is None


def test_early_stopping_starts_counting_anew_after_an_improvement():
    assert feed(EarlyStoppingRLCallback(patience=3, window=1), [1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]) == 7


def test_a_rise_below_min_delta_does_not_count():
    assert feed(EarlyStoppingRLCallback(patience=3, min_delta=0.5, window=1), [1.0, 1.1, 1.2, 1.3, 9.0]) == 4


def test_early_stopping_stops_a_run():
    metrics = train(EarlyStoppingRLCallback(patience=2, min_delta=1e6, window=1), total_timesteps=1_000)
    # The first two episodes end together at 20 timesteps, the next two, both without improvement, at 40.
    assert metrics.num_timesteps == 40
    assert metrics.stop_reason.startswith("early stopping")


@pytest.mark.parametrize(
    "arguments", [{"patience": 0}, {"window": 0}, {"min_delta": -1.0}, {"min_delta": float("nan")}]
)
def test_early_stopping_refuses_settings_that_make_no_sense(arguments):
    with pytest.raises(ValueError, match="must be at least"):
        EarlyStoppingRLCallback(**arguments)


def test_early_stopping_goes_on_waiting_after_a_resume():
    first, second = (EarlyStoppingRLCallback(patience=3, window=2) for _ in range(2))
    assert feed(first, [1.0] * 4) is None
    second.load_state_dict(first.state_dict())
    assert feed(second, [1.0] * 4) == 1


# --- Checkpoints


def names(folder):
    return sorted((path.name for path in folder.iterdir()), key=lambda name: int(name.split("_")[1].split(".")[0]))


def test_checkpoints_are_written_at_their_frequency(tmp_path):
    train(CheckpointCallback(20, tmp_path, keep_last=0))
    assert names(tmp_path) == ["agent_20.pt", "agent_40.pt", "agent_60.pt"]


def test_a_frequency_between_vector_steps_is_met_at_the_next_one(tmp_path):
    train(CheckpointCallback(25, tmp_path, keep_last=0), n_envs=4)
    assert names(tmp_path) == ["agent_28.pt", "agent_52.pt"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    train(CheckpointCallback(10, tmp_path, keep_last=2))
    assert names(tmp_path) == ["agent_50.pt", "agent_60.pt"]


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "agent_5.pt").write_text("somebody else's")
    train(CheckpointCallback(10, tmp_path, keep_last=1))
    assert names(tmp_path) == ["agent_5.pt", "agent_60.pt"]


def test_a_checkpoint_is_the_agent_of_its_moment(tmp_path):
    agent = agent_for(market())
    train(CheckpointCallback(60, tmp_path, name_prefix="mine"), agent=agent)
    loaded = load_rl_agent(tmp_path / "mine_60.pt")
    assert loaded.num_timesteps == 60
    assert torch.equal(loaded.actor.head.weight, agent.actor.head.weight)


def test_a_resumable_checkpoint_can_be_loaded_as_an_agent(tmp_path):
    train(CheckpointCallback(60, tmp_path, resumable=True))
    assert load_rl_agent(tmp_path / "agent_60.pt").num_timesteps == 60


def test_rotation_goes_on_after_a_resume(tmp_path):
    callbacks = [CheckpointCallback(10, tmp_path, keep_last=2, resumable=True)]
    train(callbacks, total_timesteps=40)
    env = market()
    train_rl_agent(
        agent_for(env),
        env,
        RLTrainingConfig(total_timesteps=60, n_envs=2, progress=False),
        [CheckpointCallback(10, tmp_path, keep_last=2, resumable=True)],
        resume_from=tmp_path / "agent_40.pt",
    )
    assert names(tmp_path) == ["agent_50.pt", "agent_60.pt"]


def test_a_list_of_files_from_elsewhere_deletes_nothing_outside_its_folder(tmp_path):
    precious = tmp_path / "precious" / "agent_1.pt"
    precious.parent.mkdir()
    precious.write_text("mine")
    callback = CheckpointCallback(10, tmp_path / "checkpoints", keep_last=1)
    callback.load_state_dict(
        {"saved": [str(precious), str(tmp_path / "checkpoints" / ".." / "precious" / "agent_1.pt")]}
    )
    train(callback)
    assert precious.read_text() == "mine"


def test_checkpoints_refuse_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be 0"):
        CheckpointCallback(10, tmp_path, keep_last=-1)
    with pytest.raises(ValueError, match="save_freq must be at least 1 timestep"):
        CheckpointCallback(0, tmp_path)


# --- Resuming with callbacks


def test_a_list_restores_each_callback_its_own_state():
    saved = CallbackList([EarlyStoppingRLCallback(window=1), TradingMetricsCallback(7)])
    saved.callbacks[0].best, saved.callbacks[1].logged_at = 4.5, 14
    restored = CallbackList([EarlyStoppingRLCallback(window=1), TradingMetricsCallback(7)])
    restored.load_state_dict(saved.state_dict())
    assert (restored.callbacks[0].best, restored.callbacks[1].logged_at) == (4.5, 14)


def test_other_callbacks_than_those_saved_are_refused_by_name():
    saved = CallbackList([EarlyStoppingRLCallback()]).state_dict()
    with pytest.raises(
        ValueError, match=r"saved with callbacks \['EarlyStopping.*resumed with \['TradingMetrics.*same ones"
    ):
        CallbackList([TradingMetricsCallback()]).load_state_dict(saved)


# --- Evaluation


def test_an_evaluation_of_a_market_is_one_walk_over_all_of_it():
    env = market()
    agent = agent_for(env)
    metrics = train(env=env, agent=agent)
    whole = evaluate_agent(agent, env, n_bootstrap=0).metrics
    assert metrics.final_evaluation["eval_sharpe"] == whole["sharpe_ratio"]
    assert metrics.final_evaluation["eval_total_return"] == whole["total_return"]


def test_an_evaluation_elsewhere_plays_episodes():
    env = gymnasium.make("Pendulum-v1")
    agent = create_rl_agent("sac", 3, 1, CONFIG)
    callback = EvalCallback("Pendulum-v1", eval_freq=30, n_eval_episodes=2)
    metrics = train(callback, env=env, agent=agent, n_envs=1, total_timesteps=30)
    expected = evaluate_episodes(agent, "Pendulum-v1", n_episodes=2, seed=1).mean()
    assert callback.best_score == expected
    assert set(metrics.final_evaluation) == {"eval_episode_return"}


@pytest.mark.parametrize("arguments", [{"eval_freq": 0}, {"eval_freq": 5, "eval_episode_freq": 5}])
def test_an_evaluation_has_one_frequency(arguments):
    with pytest.raises(ValueError, match="one of them positive"):
        EvalCallback(**arguments)


def test_an_evaluation_callback_of_the_user_tells_the_other_callbacks(tmp_path):
    diary = Diary()
    train([EvalCallback(market(2), eval_freq=20, best_model_path=tmp_path / "best.pt"), diary], total_timesteps=50)
    assert [number for _, hook, number in diary.calls if hook == "eval"] == [20, 40, 50]


class Scripted(Callback):
    """Notes the score of each evaluation and the weights it belongs to."""

    def __init__(self):
        self.scores, self.weights = [], []

    def on_eval(self, state, metrics):
        self.scores.append(metrics["eval_sharpe"])
        self.weights.append(state.agent.actor.head.weight.detach().clone())


def test_the_best_file_holds_the_agent_with_the_best_score(tmp_path):
    scripted = Scripted()
    callback = EvalCallback(market(2), eval_freq=10, best_model_path=tmp_path / "best.pt")
    train([callback, scripted], total_timesteps=200, env=market())
    # The last score is that of the run's own closing evaluation, on the training market.
    scores = np.nan_to_num(scripted.scores[: 200 // 10])
    best = int(np.argmax(scores))
    assert len(set(scores)) > 2
    assert callback.best_score == scores[best]
    assert torch.equal(load_rl_agent(tmp_path / "best.pt").actor.head.weight, scripted.weights[best])


def test_evaluations_do_not_change_training():
    env = market()
    plain, evaluated = agent_for(env), agent_for(env)
    train(agent=plain, env=env, total_timesteps=100)
    train(EvalCallback(eval_freq=10), agent=evaluated, env=env, total_timesteps=100)
    assert torch.equal(plain.actor.head.weight, evaluated.actor.head.weight)


# --- What traders look at


def test_trading_metrics_speak_only_when_an_episode_has_ended():
    history = train(TradingMetricsCallback(2), total_timesteps=60, log_frequency=2).history
    # Episodes of ten bars in two accounts end at 20, 40 and 60 timesteps.
    assert history["num_timesteps"][history["rollout_sharpe"].notna()].tolist() == [20, 40, 60]


def test_the_win_rate_is_the_share_of_recent_episodes_that_gained():
    class Collect(Callback):
        def __init__(self):
            self.gains = []

        def on_episode_end(self, state, episode):
            self.gains.append(episode.total_return > 0.0)

    collect = Collect()
    history = train([collect, TradingMetricsCallback(20)], total_timesteps=60).history
    assert history["rollout_win_rate"].dropna().iloc[-1] == pytest.approx(sum(collect.gains) / len(collect.gains))
