"""DDPG against the paper's formulas written out once more in float64, and against Stable-Baselines3 with the same weights."""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.ddpg_agent import DDPGAgent, DDPGConfig
from ml.tradingbots.components.rl_agents import create_rl_agent

STATE_DIM, ACTION_DIM, N = 3, 2, 16
SMALL = DDPGConfig(hidden_dim=8, batch_size=N, learning_starts=20, buffer_size=500, gamma=0.9, tau=0.05)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(**changes):
    """A small agent whose target networks are others: equal ones would hide a mix-up of the two."""
    agent = DDPGAgent(STATE_DIM, ACTION_DIM, dataclasses.replace(SMALL, **changes), seed=4)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in (*agent.actor_target.parameters(), *agent.critic_target.parameters()):
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return agent


def batch_for():
    generator = torch.Generator().manual_seed(11)
    return Batch(
        torch.randn(N, STATE_DIM, generator=generator),
        torch.rand(N, ACTION_DIM, generator=generator) * 2.0 - 1.0,
        torch.randn(N, generator=generator),
        torch.randn(N, STATE_DIM, generator=generator),
        (torch.rand(N, generator=generator) < 0.3).float(),
    )


def in_double(module):
    return {name: value.detach().double().clone().requires_grad_() for name, value in module.state_dict().items()}


def plain_policy(state, observation):
    x = observation.double()
    for layer in range(2):
        x = torch.relu(x @ state[f"body.layers.{layer}.weight"].T + state[f"body.layers.{layer}.bias"])
    return torch.tanh(x @ state["head.weight"].T + state["head.bias"])


def plain_value(state, observation, action):
    x = torch.cat([observation.double(), action.double()], 1)
    for layer in range(3):
        x = x @ state[f"mlp.weights.{layer}"][0] + state[f"mlp.biases.{layer}"][0]
        x = torch.relu(x) if layer < 2 else x
    return x[:, 0]


def critic_loss_of(agent, critic, batch):
    """Lillicrap et al. (2016), algorithm 1: (y − Q(s, a))² with y = r + γ·Q'(s', μ'(s')) until the task ends."""
    next_action = plain_policy(in_double(agent.actor_target), batch.next_observation)
    beyond = plain_value(in_double(agent.critic_target), batch.next_observation, next_action)
    target = (batch.reward.double() + 0.9 * (1.0 - batch.terminated.double()) * beyond).detach()
    return ((plain_value(critic, batch.observation, batch.action) - target) ** 2).mean()


def assert_gradients(module, names, expected):
    found = dict(module.named_parameters())
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name].grad.double(), gradient, **CLOSE)


def test_the_critic_learns_the_target_networks_value_of_the_next_observation():
    agent, batch = agent_of(), batch_for()
    critic = in_double(agent.critic)
    loss = critic_loss_of(agent, critic, batch)
    gradients = torch.autograd.grad(loss, list(critic.values()))
    figures = agent.update(batch)
    torch.testing.assert_close(figures["critic_loss"].double(), loss.detach(), **CLOSE)
    assert_gradients(agent.critic, critic, gradients)


def test_the_policy_climbs_the_critic_after_the_critics_step():
    agent, batch = agent_of(), batch_for()
    actor = in_double(agent.actor)
    figures = agent.update(batch)
    loss = -plain_value(in_double(agent.critic), batch.observation, plain_policy(actor, batch.observation)).mean()
    torch.testing.assert_close(figures["actor_loss"].double(), loss.detach(), **CLOSE)
    assert_gradients(agent.actor, actor, torch.autograd.grad(loss, list(actor.values())))


def test_targets_move_by_tau_at_every_step():
    agent = agent_of()
    for _ in range(3):
        before = {name: in_double(getattr(agent, name)) for name in ("actor_target", "critic_target")}
        agent.update(batch_for())
        for name in ("actor", "critic"):
            online = in_double(getattr(agent, name))
            for key, value in getattr(agent, f"{name}_target").state_dict().items():
                then = before[f"{name}_target"][key].detach()
                expected = then + 0.05 * (online[key].detach() - then)
                torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_targets_begin_as_the_online_networks():
    agent = DDPGAgent(STATE_DIM, ACTION_DIM, SMALL, seed=4)
    torch.testing.assert_close(agent.actor_target.state_dict(), agent.actor.state_dict(), rtol=0.0, atol=0.0)
    torch.testing.assert_close(agent.critic_target.state_dict(), agent.critic.state_dict(), rtol=0.0, atol=0.0)


def test_the_target_policy_is_not_smoothed():
    agent, batch = agent_of(), batch_for()
    before = agent.generator.get_state()
    agent.update(batch)
    assert torch.equal(agent.generator.get_state(), before)


def test_there_is_one_critic():
    agent = agent_of()
    with torch.no_grad():
        assert agent.critic(batch_for().observation, batch_for().action).shape == (1, N)


@pytest.mark.parametrize("exploration_noise", ["ornstein_uhlenbeck", "gaussian"])
def test_actions_that_are_remembered_stay_within_bounds(exploration_noise):
    config = dataclasses.replace(SMALL, exploration_noise=exploration_noise, noise_std=5.0)
    agent = create_rl_agent("ddpg", 3, 1, config, seed=0).train("Pendulum-v1", 120)
    actions = agent.replay.rows[SMALL.learning_starts : 120, 6]
    assert actions.abs().max().item() == 1.0
    assert (actions.abs() < 1.0).sum().item() > 0


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


def value_of_reward_of_one(ends):
    config = DDPGConfig(
        hidden_dim=8, batch_size=32, learning_starts=32, buffer_size=2_000, gamma=0.8, tau=0.05, learning_rate=5e-3
    )
    agent = create_rl_agent("ddpg", 1, 1, config, seed=0).train(RewardOfOne(ends), 800)
    with torch.no_grad():
        return agent.critic(torch.zeros(1, 1), torch.zeros(1, 1)).mean().item()


def test_the_value_of_a_constant_reward_is_one_over_one_minus_gamma_where_time_runs_out():
    # 1/(1 − 0.8) = 5; within a tenth after 800 steps.
    assert value_of_reward_of_one("truncated") == pytest.approx(5.0, abs=0.1)


def test_the_value_ends_where_the_task_ends():
    # All four steps look alike, so the value is their mean: V = 1 + 0.8·(3/4)·V, V = 2.5; sampling leaves some noise.
    assert value_of_reward_of_one("terminated") == pytest.approx(2.5, abs=0.4)


# Stable-Baselines3 with the same weights.


class Spaces(gymnasium.Env):
    """Nothing but spaces: the updates below are fed by hand."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (STATE_DIM,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


def sb3_actor(module):
    ours = module.state_dict()
    order = ("body.layers.0", "body.layers.1", "head")
    return {f"mu.{2 * i}.{part}": ours[f"{name}.{part}"] for i, name in enumerate(order) for part in ("weight", "bias")}


def sb3_critic(module):
    theirs = {}
    for layer in range(3):
        theirs[f"qf0.{2 * layer}.weight"] = module.mlp.weights[layer][0].detach().T
        theirs[f"qf0.{2 * layer}.bias"] = module.mlp.biases[layer][0, 0].detach()
    return theirs


def test_gradient_steps_are_those_of_stable_baselines3():
    agent, batch = agent_of(), batch_for()
    model = stable_baselines3.DDPG(
        "MlpPolicy",
        Spaces(),
        learning_rate=SMALL.learning_rate,
        gamma=SMALL.gamma,
        tau=SMALL.tau,
        buffer_size=10,
        policy_kwargs={"net_arch": [8, 8]},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    model._current_progress_remaining = 1.0
    for name, renamed in (("actor", sb3_actor), ("critic", sb3_critic)):
        getattr(model, name).load_state_dict(renamed(getattr(agent, name)))
        getattr(model, f"{name}_target").load_state_dict(renamed(getattr(agent, f"{name}_target")))
    drawn = ReplayBufferSamples(
        batch.observation, batch.action, batch.next_observation, batch.terminated[:, None], batch.reward[:, None]
    )
    model.replay_buffer = SimpleNamespace(sample=lambda *_, **__: drawn)
    with torch.random.fork_rng(devices=[]):  # Stable-Baselines3 draws noise of size 0 from the global generator.
        for _ in range(3):
            model.train(1, N)
            figures, logged = agent.update(batch), model.logger.name_to_value
            assert figures["critic_loss"].item() == pytest.approx(logged["train/critic_loss"], rel=1e-5)
            assert figures["actor_loss"].item() == pytest.approx(logged["train/actor_loss"], rel=1e-4)
    for name, renamed in (("actor", sb3_actor), ("critic", sb3_critic)):
        for module in (name, f"{name}_target"):
            theirs = getattr(model, module).state_dict()
            for key, value in renamed(getattr(agent, module)).items():
                # Three steps of Adam of at most 0.001.
                torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=2e-6)
