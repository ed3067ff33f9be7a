"""TD3 against the paper's formulas written out once more in float64, and against Stable-Baselines3 with the same weights."""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from scipy.stats import kstest, truncnorm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.td3_agent import TD3Agent, TD3Config

STATE_DIM, ACTION_DIM, N = 3, 2, 16
# Targets are smoothed so much that the noise is often clipped and the action often clamped.
SMALL = TD3Config(hidden_dim=8, batch_size=N, learning_starts=20, buffer_size=500, target_noise=0.6, gamma=0.9)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(num_updates=0, **changes):
    """A small agent whose target networks are others: equal ones would hide a mix-up of the two."""
    agent = TD3Agent(STATE_DIM, ACTION_DIM, dataclasses.replace(SMALL, **changes), seed=4)
    agent.num_updates = num_updates
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


def plain_values(state, observation, action):
    """Both Q-values, (batch,) each; float64."""
    values = []
    for twin in range(2):
        x = torch.cat([observation.double(), action.double()], 1)
        for layer in range(3):
            x = x @ state[f"mlp.weights.{layer}"][twin] + state[f"mlp.biases.{layer}"][twin]
            x = torch.relu(x) if layer < 2 else x
        values.append(x[:, 0])
    return values


class PaperUpdate:
    """Losses and gradients of one update, Fujimoto et al. (2018), algorithm 1; to be made before the update."""

    def __init__(self, agent, batch):
        config, twin = agent.config, torch.Generator()
        twin.set_state(agent.generator.get_state())
        drawn = config.target_noise * torch.randn(batch.action.shape, generator=twin).double()
        self.actor, self.critic = in_double(agent.actor), in_double(agent.critic)
        self.smoothing = drawn.clamp(-config.target_noise_clip, config.target_noise_clip)
        self.unclamped = plain_policy(in_double(agent.actor_target), batch.next_observation) + self.smoothing
        next_action = self.unclamped.clamp(-1.0, 1.0)
        self.next_values = plain_values(in_double(agent.critic_target), batch.next_observation, next_action)
        smaller = torch.minimum(*self.next_values)
        self.target = (batch.reward.double() + config.gamma * (1.0 - batch.terminated.double()) * smaller).detach()
        q1, q2 = plain_values(self.critic, batch.observation, batch.action)
        self.critic_loss = ((q1 - self.target) ** 2).mean() + ((q2 - self.target) ** 2).mean()
        self.critic_gradient = torch.autograd.grad(self.critic_loss, list(self.critic.values()))

    def actor_after(self, critic_after, batch):
        """Loss and gradient of the policy, which climbs the first critic as it is after its own step."""
        first, _ = plain_values(critic_after, batch.observation, plain_policy(self.actor, batch.observation))
        loss = -first.mean()
        return loss.detach(), torch.autograd.grad(loss, list(self.actor.values()))


def assert_gradients(module, names, expected):
    found = dict(module.named_parameters())
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name].grad.double(), gradient, **CLOSE)


def test_the_critics_learn_the_smaller_value_of_a_smoothed_next_action():
    agent, batch = agent_of(), batch_for()
    paper = PaperUpdate(agent, batch)
    # Every part of the target matters in this batch.
    assert (paper.smoothing.abs() == SMALL.target_noise_clip).any()
    assert (paper.unclamped.abs() > 1.0).any()
    assert 0 < (paper.next_values[0] < paper.next_values[1]).sum() < N
    assert 0 < batch.terminated.sum() < N
    figures = agent.update(batch)
    torch.testing.assert_close(figures["critic_loss"].double(), paper.critic_loss.detach(), **CLOSE)
    assert_gradients(agent.critic, paper.critic, paper.critic_gradient)


def test_the_target_of_a_terminated_transition_is_its_reward():
    batch = batch_for()
    ended = batch.terminated == 1.0
    assert torch.equal(PaperUpdate(agent_of(), batch).target[ended], batch.reward[ended].double())


def test_the_policy_climbs_the_first_critic_after_the_critics_step():
    agent, batch = agent_of(num_updates=1), batch_for()
    paper = PaperUpdate(agent, batch)
    figures = agent.update(batch)
    loss, gradient = paper.actor_after(in_double(agent.critic), batch)
    torch.testing.assert_close(figures["actor_loss"].double(), loss, **CLOSE)
    assert_gradients(agent.actor, paper.actor, gradient)


def test_the_policy_follows_the_first_critic_even_where_the_second_is_smaller():
    agent, batch = agent_of(num_updates=1), batch_for()
    with torch.no_grad():
        agent.critic.mlp.biases[-1][1] -= 100.0
    assert agent.update(batch)["actor_loss"].abs().item() < 10.0


def test_the_policys_step_leaves_no_gradient_in_the_critics():
    agent, batch = agent_of(num_updates=1), batch_for()
    paper = PaperUpdate(agent, batch)
    agent.update(batch)
    assert_gradients(agent.critic, paper.critic, paper.critic_gradient)


def test_gradients_are_clipped_where_a_limit_is_set():
    agent = agent_of(num_updates=1, max_grad_norm=0.01)
    agent.update(batch_for())
    for module in (agent.critic, agent.actor):
        norm = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-3)


def flat(module):
    return torch.cat([value.detach().flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize("policy_delay", [1, 2, 3])
def test_policy_and_targets_move_on_the_delayed_steps_only(policy_delay):
    env = "Pendulum-v1"
    config = dataclasses.replace(SMALL, policy_delay=policy_delay, tau=0.1)
    agent = create_rl_agent("td3", 3, 1, config, seed=0).train(env, SMALL.learning_starts)
    names = ("critic", "actor", "actor_target", "critic_target")
    for _ in range(7):
        before = {name: flat(getattr(agent, name)) for name in names}
        agent._learn(N)
        after = {name: flat(getattr(agent, name)) for name in names}
        assert not torch.equal(before["critic"], after["critic"])
        delayed = agent.num_updates % policy_delay == 0
        for online, target in (("actor", "actor_target"), ("critic", "critic_target")):
            mixed = before[target] + 0.1 * (after[online] - before[target])
            torch.testing.assert_close(after[target], mixed if delayed else before[target], rtol=1e-5, atol=1e-7)
        assert torch.equal(before["actor"], after["actor"]) is not delayed
    assert agent.num_updates == 7


def test_the_actor_loss_of_the_last_delayed_step_is_shown_in_between():
    agent, batch = agent_of(num_updates=1), batch_for()
    shown = agent.update(batch)["actor_loss"]
    agent.num_updates = 2
    assert torch.equal(agent.update(batch)["actor_loss"], shown)


# Acting.


def test_collecting_adds_gaussian_noise_and_stays_within_bounds():
    agent = agent_of(noise_std=0.5)
    with torch.inference_mode():
        for parameter in agent.actor.head.parameters():
            parameter.zero_()
        drawn = agent.stochastic_policy(torch.zeros(20_000, STATE_DIM))
    assert drawn.abs().max().item() == 1.0
    inside = drawn[drawn.abs() < 1.0] / 0.5
    assert len(inside) / drawn.numel() == pytest.approx(0.9545, abs=0.005)  # Two standard deviations either way.
    # A right sampler fails one seed in a thousand.
    assert kstest(inside.numpy(), truncnorm(-2.0, 2.0).cdf).pvalue > 1e-3


def test_the_deterministic_action_is_the_policys():
    agent, observation = agent_of(), batch_for().observation
    expected = plain_policy(in_double(agent.actor), observation).detach()
    with torch.no_grad():
        torch.testing.assert_close(agent.deterministic_policy(observation).double(), expected, **CLOSE)


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
    config = TD3Config(
        hidden_dim=8, batch_size=32, learning_starts=32, buffer_size=2_000, gamma=0.8, tau=0.1, learning_rate=5e-3
    )
    agent = create_rl_agent("td3", 1, 1, config, seed=0).train(RewardOfOne(ends), 800)
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
    for twin in range(2):
        for layer in range(3):
            theirs[f"qf{twin}.{2 * layer}.weight"] = module.mlp.weights[layer][twin].detach().T
            theirs[f"qf{twin}.{2 * layer}.bias"] = module.mlp.biases[layer][twin, 0].detach()
    return theirs


def test_gradient_steps_are_those_of_stable_baselines3():
    agent, batch = agent_of(tau=0.05), batch_for()
    config = agent.config
    model = stable_baselines3.TD3(
        "MlpPolicy",
        Spaces(),
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        tau=config.tau,
        buffer_size=10,
        policy_delay=config.policy_delay,
        target_policy_noise=config.target_noise,
        target_noise_clip=config.target_noise_clip,
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
    agent.generator.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)  # Both then draw the same noise for the targets.
        for _ in range(4):
            model.train(1, N)
            figures, logged = agent.update(batch), model.logger.name_to_value
            agent.num_updates += 1
            assert figures["critic_loss"].item() == pytest.approx(logged["train/critic_loss"], rel=1e-5)
    assert figures["actor_loss"].item() == pytest.approx(logged["train/actor_loss"], rel=1e-4)
    for name, renamed in (("actor", sb3_actor), ("critic", sb3_critic)):
        for module in (name, f"{name}_target"):
            theirs = getattr(model, module).state_dict()
            for key, value in renamed(getattr(agent, module)).items():
                # Four steps of Adam of at most 0.001.
                torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=2e-6)
