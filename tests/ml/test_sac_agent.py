"""SAC against the paper's formulas, how it collects and acts, and the factory's errors."""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from ml.tradingbots.components.base_agent import StepReport
from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACAgent, SACConfig
from ml.tradingbots.components.vector_adapter import as_vector_env
from ml.tradingbots.data.synthetic import autoregressive

SMALL = SACConfig(hidden_dim=8, batch_size=16, learning_starts=20, buffer_size=200)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_agent(state_dim=3, action_dim=2, config=SMALL, **settings):
    return create_rl_agent("sac", state_dim, action_dim, config, **settings)


def market(**settings):
    config = TradingEnvConfig(**{"window_size": 4, "episode_length": 20} | settings)
    return TradingEnvironment(autoregressive(120, seed=1).prices, config)


def agent_for(env, config=SMALL, **settings):
    return create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, config, **settings)


def weights(agent):
    return torch.cat([value.detach().flatten() for value in (*agent.actor.parameters(), *agent.critic.parameters())])


def tiny_batch(state_dim=3, action_dim=2):
    generator = torch.Generator().manual_seed(11)
    return Batch(
        torch.randn(4, state_dim, generator=generator),
        torch.rand(4, action_dim, generator=generator) * 2.0 - 1.0,
        torch.randn(4, generator=generator),
        torch.randn(4, state_dim, generator=generator),
        torch.tensor([0.0, 1.0, 0.0, 0.0]),
    )


# The paper's update, written out once more with plain operations: no code of the agent is called.


def plain_policy(state, observation, noise):
    """Action and log-probability, Haarnoja et al. (2018), equations 19 to 21; float64."""
    x = observation
    for layer in range(2):
        x = torch.relu(x @ state[f"body.layers.{layer}.weight"].T + state[f"body.layers.{layer}.bias"])
    mean, log_std = (x @ state["head.weight"].T + state["head.bias"]).chunk(2, dim=1)
    u = mean + log_std.exp() * noise
    normal = torch.distributions.Normal(mean, log_std.exp())
    action = torch.tanh(u)
    return action, (normal.log_prob(u) - torch.log(1.0 - action**2)).sum(1)


def plain_values(state, observation, action):
    """Both Q-values, (2, batch); float64."""
    values = []
    for twin in range(2):
        x = torch.cat([observation, action], 1)
        for layer in range(3):
            x = x @ state[f"mlp.weights.{layer}"][twin] + state[f"mlp.biases.{layer}"][twin]
            x = torch.relu(x) if layer < 2 else x
        values.append(x[:, 0])
    return torch.stack(values)


def columns(batch):
    """What every batch has; SAC draws uniformly and looks one step ahead."""
    return batch.observation, batch.action, batch.reward, batch.next_observation, batch.terminated


def in_double(module):
    return {name: value.detach().double().clone().requires_grad_() for name, value in module.state_dict().items()}


class PaperUpdate:
    """Losses and gradients of one update, from the formulas."""

    def __init__(self, agent, batch):
        config, batch = agent.config, Batch(*(tensor.double() for tensor in columns(batch)))
        twin = torch.Generator()
        twin.set_state(agent.generator.get_state())
        shape = batch.action.shape
        # The draws of the update in its order: at the next states for the target, at the states for the policy.
        next_noise, noise = (torch.randn(shape, generator=twin).double() for _ in range(2))
        self.actor, self.critic = in_double(agent.actor), in_double(agent.critic)
        target_critic = in_double(agent.critic_target)
        alpha = agent.log_alpha.detach().double().exp()

        next_action, next_log_prob = plain_policy(self.actor, batch.next_observation, next_noise)
        smaller = plain_values(target_critic, batch.next_observation, next_action).min(0).values
        self.target = (
            batch.reward + config.gamma * (1.0 - batch.terminated) * (smaller - alpha * next_log_prob)
        ).detach()
        q1, q2 = plain_values(self.critic, batch.observation, batch.action)
        self.critic_loss = 0.5 * ((q1 - self.target) ** 2).mean() + 0.5 * ((q2 - self.target) ** 2).mean()
        self.critic_gradient = dict(
            zip(self.critic, torch.autograd.grad(self.critic_loss, list(self.critic.values())), strict=True)
        )
        self.batch, self.noise, self.alpha, self.config = batch, noise, alpha, config

    def after_critic_step(self, critic_after):
        """The policy is improved against the critics as they are after their own step."""
        action, log_prob = plain_policy(self.actor, self.batch.observation, self.noise)
        self.actor_loss = (
            self.alpha * log_prob - plain_values(critic_after, self.batch.observation, action).min(0).values
        ).mean()
        self.actor_gradient = dict(
            zip(self.actor, torch.autograd.grad(self.actor_loss, list(self.actor.values())), strict=True)
        )
        self.entropy = -log_prob.detach().mean()
        return self


# float32 against float64 through three layers; Adam divides by the gradient's own size, so steps compare as tightly.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


def updated(config=SMALL):
    """An agent after one update on a tiny batch, and the paper's account of that update."""
    agent = small_agent(config=config, seed=4)
    # Targets that equal the online critics would hide a mix-up of the two.
    with torch.no_grad():
        for parameter in agent.critic_target.parameters():
            parameter.mul_(1.5)
    paper, before = PaperUpdate(agent, tiny_batch()), in_double(agent.critic_target)
    losses = agent.update(tiny_batch())
    return agent, paper.after_critic_step(in_double(agent.critic)), losses, before


def test_the_critic_loss_is_the_soft_bellman_error_of_both_critics():
    _, paper, losses, _ = updated()
    torch.testing.assert_close(losses["critic_loss"].double(), paper.critic_loss.detach(), **CLOSE)


def test_the_target_of_a_terminated_transition_is_its_reward():
    _, paper, _, _ = updated()
    assert paper.target[1] == tiny_batch().reward[1].double()


def test_the_critics_step_along_the_gradient_of_their_loss():
    agent, paper, _, _ = updated()
    for name, parameter in agent.critic.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), paper.critic_gradient[name], **CLOSE)


def test_the_actor_loss_is_the_entropy_regularised_smaller_value():
    _, paper, losses, _ = updated()
    torch.testing.assert_close(losses["actor_loss"].double(), paper.actor_loss.detach(), **CLOSE)


def test_the_actor_steps_along_the_gradient_of_its_loss():
    agent, paper, _, _ = updated()
    for name, parameter in agent.actor.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), paper.actor_gradient[name], **CLOSE)


def test_the_temperature_steps_along_the_gradient_of_its_loss():
    # J(α) = E[−log α·(log π + H̄)], so its gradient in log α is −(log π + H̄) = entropy − target entropy.
    agent, paper, _, _ = updated()
    assert agent.log_alpha.grad.item() == pytest.approx(paper.entropy.item() - (-2.0), rel=2e-4)


def test_the_temperature_of_a_step_is_the_one_before_its_update():
    agent, _, losses, _ = updated(dataclasses.replace(SMALL, alpha=0.3))
    assert losses["alpha"].item() == pytest.approx(0.3, rel=1e-6)
    assert agent.log_alpha.exp().item() != pytest.approx(0.3, rel=1e-6)


def test_the_temperature_falls_while_the_policy_has_more_entropy_than_its_target():
    agent, paper, _, _ = updated()
    assert paper.entropy > -2.0
    assert agent.log_alpha.item() < 0.0


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate():
    # Adam's first step is learning_rate·g/(|g| + eps): its sign is the gradient's, its size the learning rate.
    agent, paper, _, _ = updated()
    for name, parameter in agent.critic.named_parameters():
        before = paper.critic[name].detach()
        clear = paper.critic_gradient[name].abs() > 1e-4
        step = (parameter.detach().double() - before)[clear]
        expected = -SMALL.learning_rate * paper.critic_gradient[name][clear].sign()
        # A parameter near 1 moves by 3e-4, known to about 1e-7 in float32.
        torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)


def test_the_target_critics_move_by_tau_towards_the_updated_critics():
    agent, _, _, before = updated()
    online = in_double(agent.critic)
    for name, value in agent.critic_target.state_dict().items():
        expected = before[name].detach() + SMALL.tau * (online[name].detach() - before[name].detach())
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_actor_loss_leaves_no_gradient_in_the_critics():
    agent, paper, _, _ = updated()
    (first, gradient), *_ = agent.critic.named_parameters()
    torch.testing.assert_close(gradient.grad.double(), paper.critic_gradient[first], **CLOSE)


def test_the_temperature_is_fixed_without_auto_alpha():
    agent = small_agent(config=dataclasses.replace(SMALL, auto_alpha=False, alpha=0.2))
    for _ in range(5):
        agent.update(tiny_batch())
    assert agent.log_alpha.exp().item() == pytest.approx(0.2, rel=1e-6)


def test_the_target_entropy_is_minus_the_number_of_actions_unless_given():
    assert small_agent().target_entropy == -2.0
    assert small_agent(config=dataclasses.replace(SMALL, target_entropy=-0.5)).target_entropy == -0.5


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


def value_of_reward_of_one(ends):
    config = SACConfig(
        hidden_dim=8,
        batch_size=32,
        learning_starts=32,
        buffer_size=2_000,
        gamma=0.8,
        tau=0.05,
        learning_rate=3e-3,
        auto_alpha=False,
        alpha=1e-6,
    )
    agent = create_rl_agent("sac", 1, 1, config, seed=0).train(RewardOfOne(ends), 900)
    with torch.no_grad():
        return agent.critic(torch.zeros(1, 1), torch.zeros(1, 1)).mean().item()


def test_the_value_of_a_constant_reward_is_one_over_one_minus_gamma_where_time_runs_out():
    # 1/(1 − 0.8) = 5; the fixed point is approached from the side by bootstrapping, within a tenth after 900 steps.
    assert value_of_reward_of_one("truncated") == pytest.approx(5.0, abs=0.1)


def test_the_value_ends_where_the_task_ends():
    # All four steps look alike, so the value is their mean: V = 1 + 0.8·(3/4)·V, V = 2.5; sampling leaves some noise.
    assert value_of_reward_of_one("terminated") == pytest.approx(2.5, abs=0.4)


def test_the_same_seed_gives_the_same_weights():
    first, again = (agent_for(market(), seed=7).train(market(), 80, n_envs=2) for _ in range(2))
    assert first.num_updates > 20
    assert torch.equal(weights(first), weights(again))


def test_another_seed_gives_other_weights():
    first, other = (agent_for(market(), seed=seed).train(market(), 80, n_envs=2) for seed in (7, 8))
    assert not torch.equal(weights(first), weights(other))


def test_nothing_global_is_seeded_or_drawn_from():
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - This is what must not move.
    before, before_numpy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    agent = agent_for(market(), seed=7).train(market(), 80, n_envs=2)
    agent.select_action(np.zeros(agent.state_dim))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy[1])  # noqa: NPY002


def test_what_is_drawn_globally_does_not_change_an_agent():
    torch.manual_seed(1)
    first = weights(small_agent(seed=7))
    torch.manual_seed(2)
    assert torch.equal(weights(small_agent(seed=7)), first)


def test_train_returns_the_agent_and_counts_its_timesteps():
    env = market()
    agent = agent_for(env)
    assert agent.train(env, 81, n_envs=2) is agent
    assert agent.num_timesteps == 82  # Whole vector steps.


def test_no_update_happens_before_learning_starts():
    env = as_vector_env(market())
    agent = agent_for(market()).train(env, SMALL.learning_starts)
    assert agent.num_updates == 0
    assert agent.train(env, 1).num_updates == 1


def test_updates_follow_train_freq_and_gradient_steps():
    env = market()
    config = dataclasses.replace(SMALL, train_freq=4, gradient_steps=3)
    # 40 steps, the first update after step 20: at steps 24, 28, 32, 36 and 40.
    assert agent_for(env, config).train(env, 40).num_updates == 15


def test_training_yields_a_report_after_each_vector_step():
    env = as_vector_env(market(random_start=True), n_envs=3)
    agent = agent_for(market())
    agent.bind(env)
    steps = agent.training_steps(env)
    reports = [next(steps) for _ in range(20)]
    assert all(isinstance(report, StepReport) and report.reward.shape == (3,) for report in reports)
    assert [report.num_timesteps for report in reports] == list(range(3, 61, 3))
    assert [report.episodes is not None for report in reports] == [False] * 19 + [True]
    assert reports[-1].episodes["l"].tolist() == [20.0] * 3


def test_a_market_is_remembered_by_bar_and_not_by_window():
    env = market(window_size=20)
    agent = agent_for(env).train(env, 30, n_envs=2)
    assert agent.replay.source is not None
    assert agent.replay.bytes_per_transition < 50


@pytest.mark.parametrize("total_timesteps", [0, -5])
def test_training_for_no_timesteps_is_refused(total_timesteps):
    with pytest.raises(ValueError, match="total_timesteps must be at least 1"):
        agent_for(market()).train(market(), total_timesteps)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("shape", "expected"), [((3,), (2,)), ((5, 3), (5, 2)), ((1, 3), (1, 2))])
def test_actions_have_the_batch_shape_and_kind_of_the_observations(shape, expected, deterministic):
    agent = small_agent()
    from_numpy = agent.select_action(np.zeros(shape, np.float32), deterministic)
    from_torch = agent.select_action(torch.zeros(shape), deterministic)
    assert isinstance(from_numpy, np.ndarray)
    assert from_numpy.shape == expected
    assert from_numpy.dtype == np.float32
    assert isinstance(from_torch, torch.Tensor)
    assert tuple(from_torch.shape) == expected
    assert from_torch.dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_observations_of_other_number_types_are_taken(dtype):
    assert small_agent().select_action(np.zeros(3, dtype)).shape == (2,)


def test_an_action_can_be_written_into():
    action = small_agent().select_action(torch.zeros(3))
    action += 1.0
    assert not action.is_inference()


def test_deterministic_actions_repeat_and_drawn_ones_do_not():
    agent, observation = small_agent(), np.ones(3, np.float32)
    assert np.array_equal(agent.select_action(observation, True), agent.select_action(observation, True))
    assert not np.array_equal(agent.select_action(observation), agent.select_action(observation))


def test_deterministic_actions_draw_nothing():
    agent = small_agent()
    before = agent.generator.get_state()
    agent.select_action(np.ones(3, np.float32), deterministic=True)
    assert torch.equal(agent.generator.get_state(), before)


@pytest.mark.parametrize("shape", [(2,), (4,), (), (1, 4), (1, 1, 3)])
def test_an_observation_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(3,\) or \(batch, 3\)"):
        small_agent().select_action(np.zeros(shape, np.float32))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("mode", ["off", "fixed"])
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_an_observation_with_a_hole_is_refused(hole, mode, deterministic):
    agent = small_agent()
    if mode == "fixed":
        agent.normalizer.fix(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="NaN or inf"):
        agent.select_action(np.array([[0.0, 1.0, 2.0], [0.0, hole, 0.0]], np.float32), deterministic)


def test_a_diverged_agent_says_so_instead_of_acting():
    agent = small_agent()
    with torch.no_grad():
        agent.actor.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        agent.select_action(np.zeros(3, np.float32))


def test_actions_of_a_long_only_market_lie_between_zero_and_one():
    env = market(allow_short=False)
    agent = agent_for(env).train(env, 2)
    observations = np.random.default_rng(0).normal(size=(500, agent.state_dim)).astype(np.float32) * 5.0
    actions = agent.select_action(observations)
    assert actions.min() >= 0.0
    assert actions.max() <= 1.0
    assert np.ptp(actions) > 0.5


def test_actions_of_a_pendulum_lie_between_minus_two_and_two():
    agent = create_rl_agent("sac", 3, 1, SMALL).train("Pendulum-v1", 2)
    observations = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * 5.0
    actions = agent.select_action(observations)
    assert np.abs(actions).max() <= 2.0
    assert np.abs(actions).max() > 1.5


def test_the_policys_range_is_mapped_onto_the_bounds():
    agent = small_agent()
    agent.set_action_bounds([0.0, -2.0], [1.0, 2.0])
    ends = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert agent.to_environment(ends).tolist() == [[0.0, -2.0], [0.5, 0.0], [1.0, 2.0]]


def test_the_memory_keeps_actions_on_the_policys_own_scale():
    agent = create_rl_agent("sac", 3, 1, SMALL, seed=0).train("Pendulum-v1", 15)
    stored = agent.replay.rows[: agent.replay.size, 6]
    assert 0.5 < stored.abs().max() <= 1.0


def test_actions_without_bounds_are_refused():
    env = RewardOfOne("truncated")
    env.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    with pytest.raises(ValueError, match="finite bounds"):
        create_rl_agent("sac", 1, 1, SMALL).train(env, 10)


def test_a_discrete_environment_is_refused_with_the_setting_that_fixes_it():
    env = market(action_type="discrete")
    with pytest.raises(TypeError, match=r"needs continuous actions.*TradingEnvConfig\(action_type='continuous'\)"):
        agent_for(env).train(env, 10)


def test_an_environment_with_other_observations_is_refused_with_the_argument_to_change():
    with pytest.raises(ValueError, match=r"create it with state_dim=env\.observation_space_dim"):
        create_rl_agent("sac", 5, 1, SMALL).train(market(), 10)


def test_an_environment_with_other_actions_is_refused_with_the_argument_to_change():
    env = market()
    with pytest.raises(ValueError, match=r"create it with action_dim=1 \(env\.action_space_dim"):
        create_rl_agent("sac", env.observation_space_dim, 2, SMALL).train(env, 10)


ALL = "a2c, ddpg, dqn, ppo, sac, td3"


def test_a_misspelt_agent_gets_a_suggestion():
    with pytest.raises(ValueError, match=rf"unknown agent_type 'SACC'\. Did you mean 'sac'\? Available: {ALL}$"):
        create_rl_agent("SACC", 3, 1)


def test_an_agent_that_is_like_no_other_gets_the_list():
    with pytest.raises(ValueError, match=rf"unknown agent_type 'zzz'\. Available: {ALL}$"):
        create_rl_agent("zzz", 3, 1)


def test_the_config_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="config of agent 'sac' must be a SACConfig, got TradingEnvConfig"):
        create_rl_agent("sac", 3, 1, TradingEnvConfig())


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
@pytest.mark.parametrize("name", ["state_dim", "action_dim"])
def test_dimensions_must_be_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        create_rl_agent("sac", **{"state_dim": 3, "action_dim": 1, name: value})


def test_dimensions_may_be_numpy_integers():
    assert create_rl_agent("sac", np.int64(3), np.int32(1), SMALL).state_dim == 3


def test_an_agent_without_a_config_has_the_defaults():
    assert create_rl_agent("sac", 3, 1).config == SACConfig()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gamma": 1.0}, "gamma must be in"),
        ({"gamma": -0.1}, "gamma must be in"),
        ({"gamma": float("nan")}, "gamma must be a finite number"),
        ({"tau": 0.0}, "tau must be in"),
        ({"tau": 1.1}, "tau must be in"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"alpha": -1.0}, "alpha must be a positive number"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"target_entropy": float("nan")}, "target_entropy must be"),
        ({"target_entropy": float("-inf")}, "target_entropy must be"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"buffer_size": 0}, "buffer_size must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"train_freq": 0}, "train_freq must be at least 1"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1"),
        ({"learning_starts": -1}, "learning_starts"),
        ({"learning_starts": 101, "buffer_size": 100}, "overwritten before they are learned from"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SACConfig(**setting)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.gamma = 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_dim": "256"}, "hidden_dim must be an integer, got '256'"),
        ({"hidden_dim": 65_537}, "hidden_dim must be at most 65536"),
        ({"n_layers": 65}, "n_layers must be at most 64"),
        ({"auto_alpha": 1}, "auto_alpha must be True or False"),
        ({"target_entropy": "auto"}, "target_entropy must be a finite number or None, got 'auto'"),
    ],
)
def test_a_setting_of_another_type_or_size_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SACConfig(**settings)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None, 10**400])
def test_a_seed_that_is_no_integer_of_63_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 2\*\*63\)"):
        small_agent(seed=seed)


def test_the_largest_seed_is_accepted():
    assert small_agent(seed=np.uint64(2**63 - 1)).seed == 2**63 - 1


# Stable-Baselines3 with the same weights and the same noise.


class Spaces(gymnasium.Env):
    """Nothing but spaces: the updates below are fed by hand."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


class DrawsAsTheyDo(SACAgent):
    """Draws in the order of Stable-Baselines3: at the states, then at the next ones. Our update asks for the latter first."""

    waiting = None

    def _normal(self, batch):
        if self.waiting is None:
            self.waiting = super()._normal(batch)
            return super()._normal(batch)
        drawn, self.waiting = self.waiting, None
        return drawn


def sb3_actor(module):
    ours = module.state_dict()
    theirs = {}
    for part in ("weight", "bias"):
        for layer in range(2):
            theirs[f"latent_pi.{2 * layer}.{part}"] = ours[f"body.layers.{layer}.{part}"]
        theirs[f"mu.{part}"], theirs[f"log_std.{part}"] = ours[f"head.{part}"].chunk(2)
    return theirs


def sb3_critic(module):
    theirs = {}
    for twin in range(2):
        for layer in range(3):
            theirs[f"qf{twin}.{2 * layer}.weight"] = module.mlp.weights[layer][twin].detach().T
            theirs[f"qf{twin}.{2 * layer}.bias"] = module.mlp.biases[layer][twin, 0].detach()
    return theirs


def sb3_sac(agent, batch):
    """Their SAC with our weights, which draws our batch."""
    config = agent.config
    model = stable_baselines3.SAC(
        "MlpPolicy",
        Spaces(),
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        tau=config.tau,
        buffer_size=10,
        ent_coef=f"auto_{config.alpha}",
        policy_kwargs={"net_arch": [8, 8]},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    model._current_progress_remaining = 1.0
    model.actor.load_state_dict(sb3_actor(agent.actor))
    model.critic.load_state_dict(sb3_critic(agent.critic))
    model.critic_target.load_state_dict(sb3_critic(agent.critic_target))
    ended, reward = batch.terminated[:, None], batch.reward[:, None]
    drawn = ReplayBufferSamples(batch.observation, batch.action, batch.next_observation, ended, reward)
    model.replay_buffer = SimpleNamespace(sample=lambda *_, **__: drawn)
    return model


def test_gradient_steps_are_those_of_stable_baselines3():
    agent = DrawsAsTheyDo(3, 2, dataclasses.replace(SMALL, alpha=0.3, tau=0.05, gamma=0.9), seed=4)
    with torch.no_grad():
        for parameter in agent.critic_target.parameters():
            parameter.mul_(1.5)  # Equal targets would hide a mix-up of the two.
    batch = tiny_batch()
    model = sb3_sac(agent, batch)
    agent.generator.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        for _ in range(3):
            model.train(1, 4)
            figures, logged = agent.update(batch), model.logger.name_to_value
            # They add 1e-6 inside the logarithm of 1 - tanh(x)^2, where ours is exact.
            for ours, theirs in (("critic_loss", "critic_loss"), ("actor_loss", "actor_loss"), ("alpha", "ent_coef")):
                assert figures[ours].item() == pytest.approx(logged[f"train/{theirs}"], rel=1e-4, abs=1e-5)
    assert agent.log_alpha.item() == pytest.approx(model.log_ent_coef.item(), rel=1e-5)
    for name, renamed in (("actor", sb3_actor), ("critic", sb3_critic), ("critic_target", sb3_critic)):
        theirs = getattr(model, name).state_dict()
        for key, value in renamed(getattr(agent, name)).items():
            # Three steps of Adam of the learning rate each; it divides by the gradient's size, so rounding is enlarged.
            torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=3e-6)
