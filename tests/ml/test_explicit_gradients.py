"""Gradients written by hand: autograd's, in float64, for every form of network, and used where they may be."""

import pytest
import torch

from ml.tradingbots.components import (
    A2CConfig,
    DQNConfig,
    PPOConfig,
    TradingEnvConfig,
    TradingVectorEnv,
    create_rl_agent,
)
from ml.tradingbots.components.distributions import (
    categorical_entropy,
    categorical_log_prob,
    gaussian_entropy,
    gaussian_log_prob,
    log_probabilities,
)
from ml.tradingbots.components.encoders import FlatEncoder
from ml.tradingbots.components.explicit_gradients import PolicyGradient, ValueGradient
from ml.tradingbots.components.networks import ActorCritic, BranchingQNetwork
from ml.tradingbots.data.synthetic import autoregressive

N, STATE_DIM = 13, 5
EXACT = {"rtol": 1e-10, "atol": 1e-13}

each_activation = pytest.mark.parametrize("activation", ["tanh", "relu"])
each_depth = pytest.mark.parametrize("widths", [[7], [7, 6], [7, 6, 5]])


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def actor_critic(widths, n_outputs, activation, log_std):
    torch.manual_seed(0)
    encoders = (FlatEncoder(STATE_DIM), FlatEncoder(STATE_DIM))
    network = ActorCritic(encoders, widths, n_outputs, activation=activation, log_std=log_std).double()
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter += 0.3 * numbers(*parameter.shape, seed=number)  # Heads start near 0, where much cancels.
    return network


def assert_same(network, expected):
    for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@each_activation
@each_depth
def test_a_gaussian_policys_gradients_are_those_of_autograd(widths, activation):
    network = actor_critic(widths, 2, activation, torch.tensor([-0.5, 0.3]))
    observation, action = numbers(N, STATE_DIM), numbers(N, 2, seed=1)
    slopes, value_slopes, entropy_slope = numbers(N, seed=2), numbers(N, seed=3), 0.37
    output, _, value = network(observation)
    log_prob, entropy = gaussian_log_prob(action, output, network.log_std), gaussian_entropy(network.log_std)
    loss = slopes @ log_prob + entropy_slope * entropy + value_slopes @ value
    expected = torch.autograd.grad(loss, list(network.parameters()))
    by_hand = PolicyGradient(network)
    found = by_hand.evaluate(observation, action, None, 0)
    for one, other in zip(found, (log_prob, entropy, value), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    by_hand.backward(slopes, entropy_slope, value_slopes)
    assert_same(network, expected)


@each_activation
@pytest.mark.parametrize("entropy_slope", [0.0, 0.37])
@pytest.mark.parametrize(("n_branches", "masked"), [(1, False), (2, False), (2, True)])
def test_a_categorical_policys_gradients_are_those_of_autograd(n_branches, masked, entropy_slope, activation):
    network = actor_critic([7, 6], 6, activation, None)
    observation = numbers(N, STATE_DIM)
    action = torch.randint(6 // n_branches, (N, n_branches), generator=torch.Generator().manual_seed(1))
    mask = None
    if masked:
        mask = numbers(N, 6, seed=4) < 0.0
        mask.view(N, n_branches, -1).scatter_(2, action[..., None], True)
    slopes, value_slopes = numbers(N, seed=2), numbers(N, seed=3)
    output, _, value = network(observation)
    log_probs = log_probabilities(output, n_branches, mask)
    log_prob, entropy = categorical_log_prob(log_probs, action), categorical_entropy(log_probs).mean()
    loss = slopes @ log_prob + entropy_slope * entropy + value_slopes @ value
    expected = torch.autograd.grad(loss, list(network.parameters()))
    by_hand = PolicyGradient(network)
    found = by_hand.evaluate(observation, action.double(), mask, n_branches)
    for one, other in zip(found, (log_prob, entropy, value), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    by_hand.backward(slopes, entropy_slope, value_slopes)
    assert_same(network, expected)


@each_activation
@each_depth
@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("n_branches", [1, 3])
def test_a_q_networks_gradients_are_those_of_autograd(n_branches, dueling, widths, activation):
    torch.manual_seed(0)
    network = BranchingQNetwork(FlatEncoder(STATE_DIM), widths, 6, activation=activation, dueling=dueling).double()
    observation, slopes = numbers(N, STATE_DIM), numbers(N, n_branches, 6 // n_branches, seed=2)
    values = network(observation, n_branches)
    expected = torch.autograd.grad((slopes * values).sum(), list(network.parameters()))
    by_hand = ValueGradient(network)
    torch.testing.assert_close(by_hand.evaluate(observation, n_branches), values, **EXACT)
    by_hand.backward(slopes)
    assert_same(network, expected)


def test_clipping_is_that_of_pytorch():
    network = actor_critic([7], 2, "tanh", torch.zeros(2))
    by_hand = PolicyGradient(network)
    for max_norm in (None, 1e-3, 1e3):
        by_hand.evaluate(numbers(N, STATE_DIM), numbers(N, 2, seed=1), None, 0)
        by_hand.backward(numbers(N, seed=2), 0.1, numbers(N, seed=3))
        copies = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
        for one, other in zip(copies, network.parameters(), strict=True):
            one.grad = other.grad.clone()
        torch.nn.utils.clip_grad_norm_(copies, max_norm or torch.inf)
        by_hand.clip(max_norm)
        for one, other in zip(copies, network.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-12)


SMALL: dict = {"hidden_dim": 16}
LITTLE: dict = {**SMALL, "learning_starts": 50, "batch_size": 16, "buffer_size": 500}
FORMS = {
    "ppo": (
        "ppo",
        PPOConfig(n_steps=16, batch_size=24, n_epochs=2, clip_value_epsilon=0.2, entropy_coef=0.01, **SMALL),
    ),
    "ppo discrete": (
        "ppo",
        PPOConfig(n_steps=16, batch_size=24, n_epochs=2, action_type="discrete", entropy_coef=0.01, **SMALL),
    ),
    "a2c": ("a2c", A2CConfig(entropy_coef=0.01, normalize_advantages=True, **SMALL)),
    "a2c discrete": ("a2c", A2CConfig(action_type="discrete", **SMALL)),
    "dqn": ("dqn", DQNConfig(**LITTLE)),
    "dqn prioritized": (
        "dqn",
        DQNConfig(**LITTLE, prioritized=True, n_step_targets=3, dueling=False),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_agent_learns_the_same_by_hand_and_by_autograd(form):
    agent_type, config = FORMS[form]
    discrete = agent_type == "dqn" or config.action_type == "discrete"
    weights = []
    for by_hand in (True, False):
        kind = "discrete" if discrete else "continuous"
        settings = TradingEnvConfig(window_size=4, episode_length=50, action_type=kind)
        env = TradingVectorEnv(autoregressive(300, seed=1).prices, settings, n_envs=4)
        agent = create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config, seed=0)
        agent.normalizer.fix(*env.observation_statistics())
        assert agent._explicit is not None
        if not by_hand:
            agent._explicit = None
        agent.train(env, 600)
        assert agent.num_updates >= 20
        weights.append(torch.cat([parameter.detach().flatten() for parameter in agent.network.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-2, atol=1e-4)


def test_noise_that_depends_on_the_state_is_left_to_autograd():
    assert create_rl_agent("ppo", 4, 3, PPOConfig(gsde=True))._explicit is None


@pytest.mark.parametrize("network", ["cnn", "lstm", "transformer"])
@pytest.mark.parametrize("agent_type", ["ppo", "dqn"])
def test_encoders_are_left_to_autograd(agent_type, network):
    discrete = agent_type == "dqn"
    settings = TradingEnvConfig(window_size=8, action_type="discrete" if discrete else "continuous")
    env = TradingVectorEnv(autoregressive(100, seed=1).prices, settings, n_envs=2)
    config = (DQNConfig if discrete else PPOConfig)(network=network)
    agent = create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config)
    agent.bind(env)
    assert agent._explicit is None
