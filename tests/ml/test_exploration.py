"""Exploration: what is drawn at random, noise that remembers, and when it forgets."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.stats import chisquare, kstest

from ml.tradingbots.components.ddpg_agent import DDPGAgent, DDPGConfig
from ml.tradingbots.components.exploration import (
    OrnsteinUhlenbeckNoise,
    StateDependentNoise,
    uniform_actions,
    uniform_choices,
)
from ml.tradingbots.components.rl_agents import PPOAgent, PPOConfig
from ml.tradingbots.components.sac_agent import SACAgent, SACConfig
from ml.tradingbots.components.vector_adapter import TensorVectorEnv

CPU = torch.device("cpu")
# A right sampler fails one seed in a thousand.
LIKELY = 1e-3


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Uniform draws.


def test_random_actions_are_uniform_within_their_bounds():
    actions = uniform_actions(20_000, 2, seeded(), CPU)
    for column in actions.T:
        assert kstest(column.numpy(), "uniform", args=(-1.0, 2.0)).pvalue > LIKELY
    # Independent columns have a correlation of about 1/√20,000; four times that.
    assert abs(np.corrcoef(actions.T.numpy())[0, 1]) < 0.03


def test_random_choices_are_equally_likely_in_each_branch_by_itself():
    choices = uniform_choices(30_000, 2, 6, seeded(), CPU)
    assert choices.dtype == torch.int64
    joint = torch.bincount(choices[:, 0] * 3 + choices[:, 1], minlength=9)
    assert chisquare(joint.numpy()).pvalue > LIKELY


def test_random_choices_are_equally_likely_among_the_legal_ones():
    mask = torch.tensor([[True, False, True, False, True, False]]).expand(20_000, -1)
    choices = uniform_choices(20_000, 2, 6, seeded(), CPU, mask)
    counts = torch.bincount(choices[:, 0], minlength=3).numpy()
    assert counts[1] == 0
    assert chisquare(counts[[0, 2]]).pvalue > LIKELY
    assert choices[:, 1].unique().tolist() == [1]


# Ornstein-Uhlenbeck noise.


def noise_of(n_envs=1, action_dim=1, *, sigma=0.3, theta=0.5, time_step=0.1):
    return OrnsteinUhlenbeckNoise(n_envs, action_dim, sigma=sigma, theta=theta, time_step=time_step, device=CPU)


def test_each_value_is_the_last_one_drawn_towards_zero_and_a_kick():
    noise, twin, value = noise_of(2, 3), seeded(4), torch.zeros(2, 3, dtype=torch.float64)
    generator = seeded(4)
    for _ in range(20):
        kick = torch.randn((2, 3), generator=twin).double()
        value = value - 0.5 * value * 0.1 + 0.3 * math.sqrt(0.1) * kick
        torch.testing.assert_close(noise.draw(generator).double(), value, rtol=1e-5, atol=1e-6)


def test_the_noise_settles_at_the_variance_of_its_recursion_and_forgets_at_its_rate():
    # x' = k·x + s·N with k = 1 − θ·dt and s = σ·√dt has variance s²/(1 − k²) and autocorrelation k^lag.
    noise, generator = noise_of(4_000, 1), seeded(1)
    for _ in range(200):  # 0.95^200 is 4e-5: the start at 0 is forgotten.
        noise.draw(generator)
    first = noise.value.clone()
    keep, scale = 1.0 - 0.5 * 0.1, 0.3 * math.sqrt(0.1)
    # The standard error of a variance is its √(2/n), here 2.2 %; four of them.
    assert first.var().item() == pytest.approx(scale**2 / (1.0 - keep**2), rel=0.09)
    assert first.mean().item() == pytest.approx(0.0, abs=4.0 * first.std().item() / math.sqrt(4_000))
    for lag in range(1, 11):
        noise.draw(generator)
        if lag in (1, 10):
            found = torch.corrcoef(torch.cat([first, noise.value], 1).T)[0, 1].item()
            # The standard error of a correlation r is (1 − r²)/√n, at most 0.016.
            assert found == pytest.approx(keep**lag, abs=4.0 * (1.0 - keep ** (2 * lag)) / math.sqrt(4_000))


def test_accounts_and_actions_have_noises_of_their_own():
    noise, generator = noise_of(2, 2, theta=5.0), seeded(2)
    path = torch.stack([noise.draw(generator).flatten() for _ in range(4_000)])
    correlation = torch.corrcoef(path.T) - torch.eye(4)
    # Halving at every step, the 4,000 are worth about 2,400 independent ones; four standard errors.
    assert correlation.abs().max().item() < 4.0 / math.sqrt(2_400)


def test_a_reset_returns_to_zero_only_the_accounts_that_ended():
    noise = noise_of(3, 2)
    before = noise.draw(seeded()).clone()
    noise.reset(torch.tensor([False, True, False]))
    assert torch.equal(noise.value[[0, 2]], before[[0, 2]])
    assert noise.value[1].tolist() == [0.0, 0.0]


class Clock(gymnasium.Env):
    """Episodes of a fixed length; the observation is the time since the last reset."""

    observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, length, ends):
        self.length, self.ends = length, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.length
        flags = (over, False) if self.ends == "terminated" else (False, over)
        return np.array([self.time], np.float32), 0.0, *flags, {}


def clocks(*lengths):
    """Accounts with episodes of different lengths, by turns terminated and truncated."""
    makers = [lambda n=n, i=i: Clock(n, ("terminated", "truncated")[i % 2]) for i, n in enumerate(lengths)]
    return TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


def walk(agent, env, n_steps, look):
    """Bind, train for some vector steps and collect what `look` sees after each."""
    agent.bind(env)
    steps = agent.training_steps(env)
    seen = []
    for _ in range(n_steps):
        next(steps)
        seen.append(look().clone())
    return seen


def test_the_noise_of_an_agent_begins_anew_with_each_episode_of_each_account():
    config = DDPGConfig(hidden_dim=4, learning_starts=0, batch_size=4, buffer_size=100)
    agent = DDPGAgent(1, 2, config, seed=0)
    values = walk(agent, clocks(3, 4, 1_000), 24, lambda: agent.noise.value)
    for step, value in enumerate(values, start=1):
        assert bool((value[0] == 0.0).all()) is (step % 3 == 0)
        assert bool((value[1] == 0.0).all()) is (step % 4 == 0)
        assert (value[2] != 0.0).all()


def test_what_an_agent_does_is_its_policy_and_the_noise():
    config = DDPGConfig(hidden_dim=4, learning_starts=0, batch_size=4, buffer_size=100, learning_rate=1e-12)
    agent = DDPGAgent(1, 2, config, seed=0)
    values = walk(agent, clocks(1_000), 30, lambda: agent.noise.value)
    stored = agent.replay.rows[:30]
    with torch.no_grad():
        expected = agent.actor(stored[:, :1]) + torch.cat(values)
    # A step size of 1e-12 does not move the policy in float32.
    torch.testing.assert_close(stored[:, 2:4], expected.clamp(-1.0, 1.0), rtol=1e-5, atol=1e-6)


def test_gaussian_noise_has_nothing_to_remember():
    config = DDPGConfig(hidden_dim=4, learning_starts=0, batch_size=4, buffer_size=100, exploration_noise="gaussian")
    agent = DDPGAgent(1, 2, config, seed=0)
    agent.train(clocks(3), 5)
    assert agent.noise is None


# State-dependent noise.


def test_matrices_are_standard_normal_and_each_accounts_own():
    noise = StateDependentNoise(3, 40, 50, CPU)
    noise.renew(seeded())
    flat = noise.matrices.view(3, -1)
    for account in flat:
        assert kstest(account.numpy(), "norm").pvalue > LIKELY
    # Four standard errors of a correlation of 2,000 pairs.
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max().item() < 4.0 / math.sqrt(2_000)
    before = noise.matrices.clone()
    noise.renew(seeded(1))
    assert (noise.matrices != before).all()


def renewals(matrices):
    """Vector steps, counted from 0, that acted with other matrices than the step before."""
    return [i for i in range(1, len(matrices)) if not torch.equal(matrices[i], matrices[i - 1])]


@pytest.mark.parametrize(
    ("period", "expected"), [(-1, [10, 20]), (4, [4, 8, 10, 14, 18, 20, 24]), (1, list(range(1, 25)))]
)
def test_an_on_policy_agent_keeps_its_noise_for_a_period_and_no_longer_than_a_rollout(period, expected):
    config = PPOConfig(hidden_dim=4, gsde=True, gsde_sample_freq=period, n_steps=10, n_epochs=1)
    agent = PPOAgent(1, 2, config, seed=0)
    # Episodes of three steps: their ends do not matter.
    assert renewals(walk(agent, clocks(3, 3), 25, lambda: agent.noise.matrices)) == expected


@pytest.mark.parametrize(("period", "expected"), [(-1, [5, 10, 15]), (4, [4, 8, 12, 16]), (1, list(range(1, 17)))])
def test_an_off_policy_agent_keeps_its_noise_for_a_period(period, expected):
    config = SACConfig(hidden_dim=4, gsde=True, gsde_sample_freq=period, train_freq=5, learning_starts=2, batch_size=4)
    agent = SACAgent(1, 2, dataclasses.replace(config, buffer_size=100), seed=0)
    assert renewals(walk(agent, clocks(3, 3), 17, lambda: agent.noise.matrices)) == expected


def test_with_one_matrix_the_same_state_gets_the_same_action():
    config = PPOConfig(hidden_dim=4, gsde=True, n_steps=12, n_epochs=1)
    agent = PPOAgent(1, 2, config, seed=0)
    walk(agent, clocks(3), 11, lambda: agent.noise.matrices)
    observation, action = (agent.rollouts.tensors[name][:11, 0] for name in ("key", "action"))
    for time in range(3):
        same = action[observation[:, 0] == time]
        assert torch.equal(same, same[:1].expand_as(same))
    assert len(action.unique(dim=0)) == 3
