"""What owners do with agents (copy, pickle, freeze, subclass, restore, draw single actions) is safe and means what it says."""

import copy
import pickle

import numpy as np
import pytest
import torch

from ml.tradingbots.components import create_rl_agent
from ml.tradingbots.components.agent_config import OffPolicyConfig
from ml.tradingbots.components.rl_agents import AGENTS

EVERY_AGENT = sorted(AGENTS)


def small_agent(agent_type, seed=0, **settings):
    config_class = AGENTS[agent_type].config_class
    if issubclass(config_class, OffPolicyConfig):
        settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200} | settings
    else:
        settings = {"n_steps": 10} | settings
    config = config_class(**({"hidden_dim": 8} | settings))
    return create_rl_agent(
        agent_type, 4 if agent_type == "dqn" else 3, 2 if agent_type == "dqn" else 1, config, seed=seed
    )


def task_of(agent):
    return "CartPole-v1" if agent.agent_type == "dqn" else "Pendulum-v1"


def weights_of(agent):
    parts = [getattr(agent, name) for name in agent.learned]
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    return torch.cat([parameter.detach().flatten() for module in modules for parameter in module.parameters()])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("agent_type", EVERY_AGENT)
def test_a_copy_of_an_agent_lives_its_own_life(agent_type, copied):
    agent = small_agent(agent_type)
    agent.train(task_of(agent), 60)
    twin = copied(agent)
    observation = np.ones(agent.state_dim, np.float32)
    before, weights = agent.select_action(observation, True), weights_of(agent)
    twin.train(task_of(twin), 200)
    assert torch.equal(weights_of(agent), weights)
    assert not torch.equal(weights_of(twin), weights)
    np.testing.assert_array_equal(agent.select_action(observation, True), before)
    for one in (agent, twin):  # One observation and a batch of it get one answer.
        alone, batch = one.select_action(observation, True), one.select_action(observation[None], True)
        np.testing.assert_allclose(alone, batch[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("agent_type", EVERY_AGENT)
def test_a_state_in_memory_is_what_the_agent_was(agent_type):
    agent = small_agent(agent_type)
    agent.train(task_of(agent), 60)
    state, weights = agent.state_dict(), weights_of(agent)
    other = small_agent(agent_type)
    other.load_state_dict(state)
    agent.train(task_of(agent), 100)
    other.train(task_of(other), 100)
    agent.load_state_dict(state)
    assert torch.equal(weights_of(agent), weights)
    for name in agent.learned:
        if isinstance(getattr(agent, name), torch.optim.Optimizer):
            mine, theirs = getattr(agent, name).state, getattr(other, name).state
            addresses = {value.data_ptr() for entry in mine.values() for value in entry.values()}
            assert not any(value.data_ptr() in addresses for entry in theirs.values() for value in entry.values())


@pytest.mark.parametrize("agent_type", EVERY_AGENT)
def test_a_frozen_parameter_stays_and_the_others_learn(agent_type):
    agent = small_agent(agent_type)
    module = getattr(agent, agent.learned[0])
    frozen = max(module.parameters(), key=lambda parameter: parameter.numel()).requires_grad_(False)
    before, all_before = frozen.detach().clone(), weights_of(agent)
    agent.train(task_of(agent), 100)
    assert torch.equal(frozen, before)
    assert not torch.equal(weights_of(agent), all_before)
    frozen.requires_grad_(True)
    agent.train(task_of(agent), 100)
    assert not torch.equal(frozen, before)


@pytest.mark.parametrize("agent_type", EVERY_AGENT)
def test_parameters_given_other_memory_are_followed(agent_type):
    agent = small_agent(agent_type)
    module = getattr(agent, agent.learned[0])
    flat = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    noise = 0.3 * torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
    torch.nn.utils.vector_to_parameters(noise, module.parameters())
    for observation in np.random.default_rng(0).normal(size=(16, agent.state_dim)).astype(np.float32):
        alone, batch = agent.select_action(observation, True), agent.select_action(observation[None], True)
        np.testing.assert_allclose(alone, batch[0], rtol=1e-5, atol=1e-6)
    by_autograd = copy.deepcopy(agent)
    if hasattr(by_autograd, "_explicit"):
        by_autograd._explicit = None
    agent.train(task_of(agent), 60)
    by_autograd.train(task_of(agent), 60)
    torch.testing.assert_close(weights_of(agent), weights_of(by_autograd), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", ["ppo", "a2c", "dqn"])
def test_a_subclass_with_a_loss_of_its_own_is_listened_to(base):
    calls = []

    class Own(AGENTS[base]):
        def _loss(self, *arguments):
            calls.append(1)
            return super()._loss(*arguments)

    config = small_agent(base).config
    agent = Own(4 if base == "dqn" else 3, 2 if base == "dqn" else 1, config)
    agent.train(task_of(agent), 200)
    assert len(calls) == agent.num_updates > 0


@pytest.mark.parametrize("rows", [1, 4, 256])
@pytest.mark.parametrize("agent_type", EVERY_AGENT)
def test_a_diverged_agent_of_any_kind_and_width_says_so(agent_type, rows):
    agent = small_agent(agent_type, hidden_dim=256)
    module = getattr(agent, agent.learned[0])
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 10_000:
                parameter.view(-1)[:300] = float("nan")
    observation = np.ones((rows, agent.state_dim), np.float32)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match="the networks diverged"):
            agent.select_action(observation, deterministic)


@pytest.mark.parametrize("argument", ["batch_size", "n_envs", "total_timesteps"])
def test_training_with_nothing_at_all_is_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        small_agent("ppo").train("Pendulum-v1", **({"total_timesteps": 10} | {argument: 0}))


@pytest.mark.parametrize(
    ("agent_type", "settings"),
    [
        ("ppo", {}),
        ("a2c", {}),
        ("sac", {}),
        ("td3", {"noise_std": 0.3}),
        ("ddpg", {"noise_std": 0.3, "exploration_noise": "gaussian"}),
    ],
)
def test_numbers_drawn_for_one_observation_have_the_distribution_of_a_batch(agent_type, settings):
    agent = small_agent(agent_type, **settings)
    observation = np.array([0.3, -0.5, 1.0], np.float32)
    alone = np.concatenate([agent.select_action(observation) for _ in range(4_000)])
    batch = agent.select_action(np.tile(observation, (20_000, 1)))[:, 0]
    # 4,000 draws: quantiles of a density near 1 are known to 0.5/√4000 = 0.008.
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(
        np.quantile(alone, levels), np.quantile(batch, levels), atol=0.06 * batch.std() * 2.0 + 0.01
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("agent_type", ["ppo", "a2c", "dqn"])
def test_choices_drawn_for_one_observation_have_the_probabilities_of_a_batch(agent_type, masked):
    settings = {} if agent_type == "dqn" else {"action_type": "discrete"}
    config_class = AGENTS[agent_type].config_class
    agent = create_rl_agent(agent_type, 3, 4, config_class(hidden_dim=8, **settings), seed=1)
    if agent_type == "dqn":
        agent.schedule_timesteps, agent.num_timesteps = 1_000, 60  # Six tenths of random choices' first phase.
    mask = np.array([True, False, True, True]) if masked else None
    observation = np.array([0.3, -0.5, 1.0], np.float32)
    drawn = [int(agent.select_action(observation, action_mask=mask)) for _ in range(4_000)]
    masks = None if mask is None else np.tile(mask, (20_000, 1))
    batch = agent.select_action(np.tile(observation, (20_000, 1)), action_mask=masks)
    found, expected = (
        np.bincount(np.asarray(choices).ravel(), minlength=4) / len(choices) for choices in (drawn, batch)
    )
    np.testing.assert_allclose(found, expected, atol=0.035)  # Four standard errors of 4,000 draws.
    assert not masked or found[1] == 0.0


@pytest.mark.parametrize("agent_type", ["ppo", "a2c", "dqn"])
def test_under_autocast_agents_still_learn(agent_type):
    agent = small_agent(agent_type)
    before = weights_of(agent)
    with torch.autocast("cpu", torch.bfloat16):
        agent.train(task_of(agent), 60)
    assert not torch.equal(weights_of(agent), before)
    assert torch.isfinite(weights_of(agent)).all()
