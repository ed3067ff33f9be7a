"""Collecting rollouts: what is stored, what it is worth, and what stands still meanwhile."""

import dataclasses
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ml.tradingbots.components.a2c_agent import A2CAgent, A2CConfig
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.on_policy import Experience
from ml.tradingbots.components.rl_agents import PPOAgent, PPOConfig, create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_adapter import TensorVectorEnv
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.training import RLTrainingConfig, train_rl_agent

SMALL = PPOConfig(hidden_dim=8, n_steps=10, n_epochs=2, batch_size=8, gamma=0.9, gae_lambda=0.8)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recording(PPOAgent):
    """A PPO agent that keeps what it learns from, and the networks and normaliser it had then."""

    def update(self, experience, batch_size):
        state = {name: value.double().clone() for name, value in self.network.state_dict().items()}
        statistics = dict(self.normalizer.state_dict()["statistics"])
        parts = {name: getattr(experience, name) for name in Experience.__slots__}
        # Copies: the next rollout is written over this one.
        kept = Experience(**{name: None if part is None else part.clone() for name, part in parts.items()})
        self.rollouts_seen = [*getattr(self, "rollouts_seen", []), (kept, state, statistics)]
        return super().update(experience, batch_size)


class Line(gymnasium.Env):
    """A walk along a line that moves by the action; rewards and episode lengths are this copy's own."""

    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, length, ends, rewards=np.cos):
        self.length, self.ends, self.rewards = length, ends, rewards
        self.log = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 0.0, 0
        return self.look(), {}

    def look(self):
        return np.array([self.place, self.time / 4.0], np.float32)

    def step(self, action):
        before = self.look()
        self.place += float(action[0]) + 0.5
        self.time += 1
        over = self.time == self.length
        flags = (over and self.ends == "terminated", over and self.ends == "truncated")
        reward = float(self.rewards(len(self.log) + self.length))
        self.log.append((before, float(action[0]), reward, *flags, self.look()))
        return self.look(), reward, *flags, {}


def lines(*settings, **others):
    envs = [Line(*setting, **others) for setting in settings]
    makers = [lambda env=env: env for env in envs]
    return envs, TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


# Ends in the middle of a rollout of ten steps, at its very end, and none at all.
SETTINGS = [(4, "truncated"), (4, "terminated"), (5, "truncated"), (5, "terminated"), (1_000, "truncated")]


def trained(env, n_rollouts=2, config=SMALL, prepare=None, **changes):
    config = dataclasses.replace(config, **changes)
    (state_dim,) = env.single_observation_space.shape
    space = env.single_action_space
    action_dim = gymnasium.spaces.flatdim(space)
    agent = Recording(state_dim, action_dim, config, seed=3)
    if prepare is not None:
        prepare(agent)
    agent.train(env, config.n_steps * env.num_envs * n_rollouts)
    return agent


def column(logs, index, n_steps, rollout):
    """One entry of the environments' own logs, time first; (n_steps, n_envs, ...)."""
    part = slice(rollout * n_steps, (rollout + 1) * n_steps)
    return torch.tensor(np.array([[entry[index] for entry in log[part]] for log in logs])).transpose(0, 1)


def plain_network(state, observation):
    """Means and values from the network's own weights; float64."""
    hidden = []
    for network in range(2):
        x = observation.double()
        for layer in range(2):
            x = torch.tanh(x @ state[f"body.weights.{layer}"][network] + state[f"body.biases.{layer}"][network])
        hidden.append(x)
    mean = hidden[0] @ state["policy_head.weight"].T + state["policy_head.bias"]
    return mean, hidden[1] @ state["value_head.weight"][0] + state["value_head.bias"]


def plain_advantages(state, before, after, reward, terminated, truncated, *, see=lambda x: x, gamma=0.9, lam=0.8):
    """GAE of each account by a plain loop; (n_steps, n_envs) each."""
    value, following = (plain_network(state, see(part))[1] for part in (before, after))
    advantages = torch.zeros_like(value)
    for env in range(value.shape[1]):
        later = 0.0
        for t in reversed(range(len(value))):
            beyond = 0.0 if terminated[t, env] else float(following[t, env])
            error = float(reward[t, env]) + gamma * beyond - float(value[t, env])
            later = error + gamma * lam * (0.0 if terminated[t, env] or truncated[t, env] else later)
            advantages[t, env] = later
    return advantages, advantages + value


# What is stored.


def test_stored_actions_are_raw_and_the_environment_gets_them_clipped_and_scaled():
    envs, env = lines(*SETTINGS)
    agent = trained(env, log_std_init=0.5)
    for rollout, (experience, _, _) in enumerate(agent.rollouts_seen):
        raw = experience.action.view(10, 5)
        assert (raw.abs() > 1.0).any()
        done = column([env.log for env in envs], 1, 10, rollout)
        torch.testing.assert_close(done, raw.clamp(-1.0, 1.0).double() * 2.0, rtol=1e-6, atol=1e-6)


def test_the_log_probability_is_that_of_the_raw_action_when_it_was_drawn():
    envs, env = lines(*SETTINGS)
    agent = trained(env, n_rollouts=3, log_std_init=0.5)
    for rollout, (experience, state, _) in enumerate(agent.rollouts_seen):
        before = column([env.log for env in envs], 0, 10, rollout).reshape(-1, 2)
        mean, value = plain_network(state, before)
        normal = torch.distributions.Normal(mean, state["log_std"].exp())
        expected = normal.log_prob(experience.action.double()).sum(1)
        torch.testing.assert_close(experience.log_prob.double(), expected, **CLOSE)
        torch.testing.assert_close(experience.value.double(), value, **CLOSE)
        assert torch.equal(experience.observation, before)


def test_actions_are_drawn_from_the_policy_that_learns():
    _, env = lines((1_000, "truncated"))
    experience, state, _ = trained(env, 1, n_steps=4_000, n_epochs=1, batch_size=4_000).rollouts_seen[0]
    mean, _ = plain_network(state, experience.observation)
    scaled = (experience.action.double() - mean) / state["log_std"].exp()
    # Four standard errors of mean and standard deviation of 4,000 normal draws.
    assert scaled.mean().item() == pytest.approx(0.0, abs=4.0 / 4_000**0.5)
    assert scaled.std().item() == pytest.approx(1.0, abs=4.0 / 8_000**0.5)


def test_time_limits_bootstrap_and_ends_of_the_task_do_not():
    envs, env = lines(*SETTINGS)
    for rollout, (experience, state, _) in enumerate(trained(env, 3).rollouts_seen):
        before, _, reward, terminated, truncated, after = (
            column([env.log for env in envs], index, 10, rollout) for index in range(6)
        )
        assert terminated.any()
        assert truncated[-1].any()
        advantages, targets = plain_advantages(state, before, after, reward, terminated, truncated)
        torch.testing.assert_close(experience.advantage.view(10, 5).double(), advantages, **CLOSE)
        torch.testing.assert_close(experience.value_target.view(10, 5).double(), targets, **CLOSE)


# Discrete actions.


class Doors(gymnasium.Env):
    """Two rows of three doors, of which some are open; which ones, the observation tells."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (6,), np.float32)
    action_space = gymnasium.spaces.MultiDiscrete([3, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.look()

    def look(self):
        self.open = self.np_random.random(6) < 0.5
        self.open[[self.time % 3, 3 + (self.time + 1) % 3]] = True
        mask = self.open.astype(np.int8)
        return self.open.astype(np.float32), {"action_mask": (mask[:3], mask[3:])}

    def step(self, action):
        assert self.open[action[0]]
        assert self.open[3 + action[1]]
        self.time += 1
        observation, info = self.look()
        return observation, float(action[0]), False, self.time % 4 == 0, info


def test_each_action_is_remembered_with_the_mask_it_was_chosen_under():
    makers = [Doors, Doors, Doors]
    env = TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), seed=5)
    agent = trained(env, 3, action_type="discrete")
    for experience, state, _ in agent.rollouts_seen:
        assert torch.equal(experience.mask, experience.observation > 0.5)
        logits, _ = plain_network(state, experience.observation)
        branches = logits.masked_fill(~experience.mask, -1e300).chunk(2, 1)
        choices = experience.action.long().T
        expected = sum(
            torch.distributions.Categorical(logits=part).log_prob(choice)
            for part, choice in zip(branches, choices, strict=True)
        )
        torch.testing.assert_close(experience.log_prob.double(), expected, **CLOSE)
        assert experience.action.unique().tolist() == [0.0, 1.0, 2.0]


# Market observations.


@pytest.mark.parametrize("action_type", ["continuous", "discrete"])
@pytest.mark.parametrize("n_assets", [1, 2])
def test_a_rollout_by_bar_is_the_one_of_windows(make_prices, action_type, n_assets):
    config = TradingEnvConfig(window_size=3, episode_length=7, action_type=action_type, allow_short=False)
    market = Market(make_prices(40, n_assets, seed=9), config)
    makers = [partial(TradingEnvironment, market, config)] * 2
    windows = TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    bars = TradingVectorEnv(market, config, n_envs=2)
    ours, theirs = (trained(env, 3, action_type=action_type).rollouts_seen for env in (bars, windows))
    for (by_bar, _, _), (by_window, _, _) in zip(ours, theirs, strict=True):
        for name in Experience.__slots__[:6]:
            # The two compute accounts in another order; three updates carry on what rounds.
            torch.testing.assert_close(getattr(by_bar, name), getattr(by_window, name), rtol=1e-4, atol=1e-5)
        assert (by_bar.mask is None) is (action_type == "continuous")
        assert by_bar.mask is None or torch.equal(by_bar.mask, by_window.mask)


def test_a_rollout_by_bar_holds_no_windows(make_prices):
    config = TradingEnvConfig(window_size=10, episode_length=7)
    env = TradingVectorEnv(make_prices(60, seed=9), config, n_envs=2)
    agent = trained(env, 1)
    assert agent.rollouts.tensors["key"].shape[-1] == env.account_dim
    assert agent.state_dim > 10 > env.account_dim


# Scales.


def scale_rewards(agent):
    agent.scale_rewards = True


def test_rewards_are_divided_by_the_deviation_of_their_running_discounted_sum():
    envs, env = lines(*SETTINGS, rewards=lambda n: 3.0 + n % 7)
    agent = trained(env, 3, prepare=scale_rewards)
    total, seen = np.zeros(5), []
    for rollout, (experience, state, _) in enumerate(agent.rollouts_seen):
        before, _, reward, terminated, truncated, after = (
            column([env.log for env in envs], index, 10, rollout) for index in range(6)
        )
        for t in range(10):
            total = 0.9 * total + reward[t].numpy()
            seen.extend(total)
            total = np.where((terminated | truncated)[t], 0.0, total)
        scaled = reward / np.std(seen)
        assert scaled.max() < 10.0
        _, targets = plain_advantages(state, before, after, scaled, terminated, truncated)
        torch.testing.assert_close(experience.value_target.view(10, 5).double(), targets, **CLOSE)
    assert agent.reward_scale == pytest.approx(1.0 / np.std(seen), rel=1e-5)


def test_scaled_rewards_are_clipped_at_ten():
    envs, env = lines((10_000, "truncated"), rewards=lambda n: -500.0 if n == 10_150 else 0.1 * (n % 2))
    agent = trained(env, 1, n_steps=1_500, batch_size=1_500, prepare=scale_rewards)
    experience, state, _ = agent.rollouts_seen[0]
    before, _, reward, terminated, truncated, after = (
        column([env.log for env in envs], index, 1_500, 0) for index in range(6)
    )
    scaled = reward * agent.reward_scale
    assert scaled.min() < -10.0
    _, targets = plain_advantages(state, before, after, scaled.clamp(min=-10.0), terminated, truncated)
    torch.testing.assert_close(experience.value_target[:, None].double(), targets, **CLOSE)


class RecordingA2C(A2CAgent):
    """An A2C agent that keeps what it learns from."""

    def update(self, experience, batch_size):
        self.value_targets = [*getattr(self, "value_targets", []), experience.value_target.clone()]
        return super().update(experience, batch_size)


class RecordingPPO(PPOAgent):
    """A PPO agent that keeps what it learns from."""

    def update(self, experience, batch_size):
        self.value_targets = [*getattr(self, "value_targets", []), experience.value_target.clone()]
        return super().update(experience, batch_size)


A2C = A2CConfig(hidden_dim=8, n_steps=10, gamma=0.9)
each_scaled = pytest.mark.parametrize(("kind", "config"), [(RecordingPPO, SMALL), (RecordingA2C, A2C)])


def of_scaled_rewards(kind, config, tmp_path):
    """An agent that learned from rewards around 500, the one that was loaded from its file, and more of the same."""
    env = Line(7, "truncated", rewards=lambda n: 500.0 + 100.0 * (n % 5))
    agent = kind(2, 1, config, seed=3)
    settings = RLTrainingConfig(total_timesteps=40, progress=False)
    train_rl_agent(agent, env, settings)
    assert agent.reward_scale < 0.01
    return agent, kind(2, 1, config, seed=8).load(agent.save(tmp_path / "agent.pt")), env


@each_scaled
def test_a_loaded_agent_goes_on_learning_from_rewards_at_the_scale_it_learned(tmp_path, kind, config):
    agent, loaded, env = of_scaled_rewards(kind, config, tmp_path)
    scale = loaded.reward_scale
    loaded.train(env, 30)
    # Unscaled they would be hundreds.
    assert all(targets.abs().max() < 20.0 for targets in loaded.value_targets)
    assert loaded.reward_scale == scale == agent.reward_scale
    assert loaded.return_statistics.count == agent.return_statistics.count


@pytest.mark.parametrize("as_the_run_left_it", [False, True])
@each_scaled
def test_a_loaded_agent_learns_the_value_targets_of_the_one_that_was_not_saved(
    tmp_path, kind, config, as_the_run_left_it
):
    agent, loaded, _ = of_scaled_rewards(kind, config, tmp_path)
    if not as_the_run_left_it:
        agent.scale_rewards = False  # The scale stands still.
    agent.value_targets = []
    for one in (agent, loaded):
        one.train(Line(7, "truncated", rewards=lambda n: 500.0 + 100.0 * (n % 5)), 30)
    assert len(loaded.value_targets) == 3
    for ours, theirs in zip(loaded.value_targets, agent.value_targets, strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.reward_scale == agent.reward_scale


def test_rewards_are_left_alone_unless_asked():
    _, env = lines(*SETTINGS)
    agent = trained(env)
    assert agent.reward_scale == 1.0
    assert agent.return_statistics.count == 0


def test_the_normaliser_stands_still_while_a_rollout_is_collected():
    _, env = lines(*SETTINGS)
    agent = Recording(2, 1, SMALL, seed=3)
    agent.bind(env)
    agent.normalizer.run()
    counts = []
    for report in agent.training_steps(env):
        counts.append(agent.normalizer.statistics.count)
        if report.num_timesteps == 150:
            break
    # The first observations, then 50 after each rollout of ten steps of five accounts.
    assert counts == [5] * 9 + [55] * 10 + [105] * 10 + [155]


def test_a_rollout_is_learned_from_as_it_was_seen():
    envs, env = lines(*SETTINGS)
    agent = trained(env, 3, prepare=lambda agent: agent.normalizer.run())
    for rollout, (experience, state, statistics) in enumerate(agent.rollouts_seen):
        before, _, reward, terminated, truncated, after = (
            column([env.log for env in envs], index, 10, rollout) for index in range(6)
        )
        assert statistics["count"] == 5 + 50 * rollout

        def see(observation, statistics=statistics):
            # A column that has not varied yet is centred only.
            std = statistics["var"].sqrt().masked_fill(statistics["var"] == 0.0, 1.0)
            return ((observation.double() - statistics["mean"]) / std).clamp(-10.0, 10.0)

        torch.testing.assert_close(experience.observation.double(), see(before).reshape(-1, 2), **CLOSE)
        _, targets = plain_advantages(state, before, after, reward, terminated, truncated, see=see)
        torch.testing.assert_close(experience.value_target.view(10, 5).double(), targets, **CLOSE)


@pytest.mark.parametrize(("timesteps", "rate"), [(50, 0.75), (100, 0.5), (200, 0.0)])
def test_a_linear_step_size_falls_to_nothing_over_the_run(timesteps, rate):
    _, env = lines(*SETTINGS)
    config = dataclasses.replace(SMALL, learning_rate=1e-3, learning_rate_schedule="linear")
    agent = PPOAgent(2, 1, config, seed=0)
    agent.bind(env)
    agent.schedule_timesteps = 200
    for report in agent.training_steps(env):
        if report.num_timesteps == timesteps:
            break
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * rate)


# Values of a constant reward.


class RewardOfOne(gymnasium.Env):
    """One state, a reward of 1 a step; the episode ends after four steps, by time or for good."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, ends):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        over = self.n_steps == 4
        flags = (over, False) if self.ends == "terminated" else (False, over)
        return np.zeros(1, np.float32), 1.0, *flags, {}


CONSTANT = {"hidden_dim": 8, "gamma": 0.8, "learning_rate": 1e-2, "value_coef": 1.0}
CONFIGS = {
    "ppo": PPOConfig(n_steps=32, n_epochs=4, batch_size=16, **CONSTANT),
    "a2c": A2CConfig(n_steps=16, max_grad_norm=10.0, **CONSTANT),
}
each_agent = pytest.mark.parametrize("agent_type", CONFIGS)


def value_of_reward_of_one(agent_type, ends, gae_lambda):
    config = dataclasses.replace(CONFIGS[agent_type], gae_lambda=gae_lambda)
    agent = create_rl_agent(agent_type, 1, 1, config, seed=0).train(RewardOfOne(ends), 2_400)
    with torch.no_grad():
        return agent.network.value(torch.zeros(1, 1)).item()


@each_agent
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_the_value_of_a_constant_reward_is_one_over_one_minus_gamma_where_time_runs_out(agent_type, gae_lambda):
    # 1/(1 − 0.8) = 5, approached from below; within a tenth after 2,400 steps.
    assert value_of_reward_of_one(agent_type, "truncated", gae_lambda) == pytest.approx(5.0, abs=0.1)


@each_agent
@pytest.mark.parametrize(("gae_lambda", "value"), [(0.0, 2.5), (1.0, (2.952 + 2.44 + 1.8 + 1.0) / 4.0)])
def test_the_value_ends_where_the_task_ends(agent_type, gae_lambda, value):
    # All four steps look alike, so the value is the mean of their targets: V = 1 + 0.8·(3/4)·V one step ahead, the mean of
    # the sums to the end otherwise.
    assert value_of_reward_of_one(agent_type, "terminated", gae_lambda) == pytest.approx(value, abs=0.1)


def test_both_agents_collect_alike():
    (_, first), (_, second) = lines(*SETTINGS), lines(*SETTINGS)
    ppo = trained(first, 1)

    class RecordingA2C(A2CAgent):
        def update(self, experience, batch_size):
            self.seen = experience
            return super().update(experience, batch_size)

    shared = {name: getattr(SMALL, name) for name in ("hidden_dim", "n_steps", "gamma", "gae_lambda")}
    a2c = RecordingA2C(2, 1, A2CConfig(**shared), seed=3).train(second, 50)
    experience, _, _ = ppo.rollouts_seen[0]
    for name in ("observation", "action", "value", "advantage", "value_target"):
        assert torch.equal(getattr(a2c.seen, name), getattr(experience, name))
