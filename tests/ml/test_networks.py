"""The networks' arithmetic: densities that integrate to one, stacked networks that are separate ones, targets that follow."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ml.tradingbots.components.distributions import LOG_STD_MAX, LOG_STD_MIN, squashed_gaussian_log_prob
from ml.tradingbots.components.encoders import FlatEncoder, WindowEncoder, WindowShape, make_encoder
from ml.tradingbots.components.networks import (
    ActorCritic,
    BatchedMLP,
    Body,
    BranchingQNetwork,
    Critic,
    DeterministicActor,
    SquashedGaussianActor,
    gsde_log_std,
    gsde_noise,
    soft_update,
)
from ml.tradingbots.components.optimizers import clip_gradients


def squashed_actor(n_layers=2, **settings):
    """A policy from 3 numbers to 2."""
    return SquashedGaussianActor(Body(FlatEncoder(3), [8] * n_layers, "relu"), 2, **settings)


def twin_critic(n_layers=2, width=8, state_dim=5, n_critics=2, activation="relu"):
    return Critic(FlatEncoder(state_dim), 2, [width] * n_layers, activation=activation, n_critics=n_critics)


def plain_layers(batched, number):
    """The layers of one of the stacked networks as `nn.Linear`, its weights copied."""
    layers = []
    for weight, bias in zip(batched.weights, batched.biases, strict=True):
        layer = nn.Linear(*weight.shape[1:])
        with torch.no_grad():
            layer.weight.copy_(weight[number].T)
            layer.bias.copy_(bias[number, 0])
        layers.append(layer)
    return layers


# Batched and single products may sum in another order: a few units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def log_prob_of(before_squash, mean, log_std):
    """Log-probability of tanh(u), with the noise that leads to u."""
    noise = (before_squash - mean) / log_std.exp()
    return squashed_gaussian_log_prob(noise, log_std, before_squash)


def exact_log_prob(u, mean, log_std):
    """The change of variables in Python's own float64, with 1 − tanh²u as 4·e^(−2|u|) / (1 + e^(−2|u|))²."""
    std = math.exp(log_std)
    log_normal = -0.5 * ((u - mean) / std) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = math.log(4.0) - 2.0 * abs(u) - 2.0 * math.log1p(math.exp(-2.0 * abs(u)))
    return log_normal - log_slope


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.2, 0.4)])
def test_the_density_of_squashed_actions_integrates_to_one(mean, log_std):
    # Over actions, not over u: a wrong slope term would pass an integral over u. The nodes are those of u, so that the
    # steep ends at ±1 are resolved; 1e-6 is what the trapezium rule leaves on this grid.
    u = torch.linspace(mean - 9.0 * math.exp(log_std), mean + 9.0 * math.exp(log_std), 200_001, dtype=torch.float64)
    action = torch.tanh(u)
    density = log_prob_of(u[:, None], torch.tensor(mean), torch.tensor(log_std, dtype=torch.float64)).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.2, 0.4)])
def test_the_density_matches_a_histogram_of_probabilities(mean, log_std):
    # P(a <= x) = Φ((atanh x − mean)/std): its numerical derivative is the density. Central differences of step 1e-5 leave
    # errors of the order 1e-9 relative to the density's curvature; 1e-6 is ample.
    step, std = 1e-5, math.exp(log_std)

    def cumulative(action):
        return 0.5 * (1.0 + math.erf((math.atanh(action) - mean) / std / math.sqrt(2.0)))

    for action in (-0.7, -0.2, 0.0, 0.3, 0.8):
        derivative = (cumulative(action + step) - cumulative(action - step)) / (2.0 * step)
        u = torch.tensor([[math.atanh(action)]], dtype=torch.float64)
        density = log_prob_of(u, torch.tensor(mean), torch.tensor(log_std, dtype=torch.float64)).exp().item()
        assert density == pytest.approx(derivative, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("u", [-12.0, -9.0, -3.0, -1e-3, 0.0, 0.5, 3.0, 9.0, 10.0, 12.0])
def test_the_log_probability_is_accurate_in_float32_far_into_saturation(u):
    # Noise and u are given as the policy makes them; the direct form log(1 − tanh²u) is −inf from |u| = 10 on.
    mean, log_std = 0.0, math.log(4.0)
    noise = torch.tensor([[u / 4.0]])
    found = squashed_gaussian_log_prob(noise, torch.tensor([[log_std]]), torch.tensor([[u]]))
    # Sums of terms up to 24 in size: a few units in the last place of 24 in float32 (2e-6).
    assert found.item() == pytest.approx(exact_log_prob(u, mean, log_std), abs=1e-5)


def test_the_log_probability_sums_over_action_dimensions():
    u = torch.tensor([[0.3, -1.1, 2.0]], dtype=torch.float64)
    zero = torch.zeros((1, 3), dtype=torch.float64)
    expected = sum(exact_log_prob(value, 0.0, 0.0) for value in u[0].tolist())
    # Twelve digits: float64 on both sides.
    assert squashed_gaussian_log_prob(u, zero, u).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_log_probability_is_finite_at_the_ends():
    u = torch.tensor([[-12.0], [12.0]], requires_grad=True)
    squashed_gaussian_log_prob(u / 4.0, torch.full((2, 1), math.log(4.0)), u).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_sampled_log_probabilities_are_those_of_the_sampled_actions():
    torch.manual_seed(0)
    actor = squashed_actor().double()
    observation, noise = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    with torch.no_grad():
        action, log_prob = actor.sample(observation, noise)
        mean, log_std = actor(observation)
    u = torch.atanh(action)
    expected = [
        sum(exact_log_prob(u[row, k].item(), mean[row, k].item(), log_std[row, k].item()) for k in range(2))
        for row in range(16)
    ]
    # atanh loses digits where actions saturate; these do not, and eight digits are left.
    np.testing.assert_allclose(log_prob, expected, rtol=1e-8)


def test_sampling_depends_on_nothing_but_the_noise_it_is_given():
    torch.manual_seed(0)
    actor, observation, noise = squashed_actor(), torch.randn(4, 3), torch.randn(4, 2)
    state = torch.get_rng_state()
    first, _ = actor.sample(observation, noise)
    again, _ = actor.sample(observation, noise)
    other, _ = actor.sample(observation, -noise)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_noise_the_mean_is_sampled():
    torch.manual_seed(0)
    actor, observation = squashed_actor(), torch.randn(4, 3)
    assert torch.equal(actor.sample(observation, torch.zeros(4, 2))[0], actor.deterministic(observation))


def test_the_deterministic_action_is_the_squashed_mean():
    torch.manual_seed(0)
    actor, observation = squashed_actor(n_layers=1), torch.randn(4, 3)
    assert torch.equal(actor.deterministic(observation), torch.tanh(actor(observation)[0]))


@pytest.mark.parametrize(("bias", "expected"), [(1e6, LOG_STD_MAX), (-1e6, LOG_STD_MIN)])
def test_the_log_standard_deviation_stays_within_its_bounds(bias, expected):
    actor = squashed_actor(n_layers=1)
    with torch.no_grad():
        actor.head.bias[2:] = bias
        _, log_std = actor(torch.zeros(1, 3))
    assert torch.equal(log_std, torch.full((1, 2), expected))


def test_a_deterministic_policy_answers_within_the_bounds_of_actions():
    torch.manual_seed(0)
    actor = DeterministicActor(Body(FlatEncoder(3), [8, 8], "relu"), 2)
    observation = 1e3 * torch.randn(50, 3)
    action = actor(observation)
    assert action.shape == (50, 2)
    assert action.abs().max() <= 1.0
    assert torch.equal(action, torch.tanh(actor.head(actor.body(observation))))


# --- State-dependent noise


def test_the_deviation_of_state_dependent_noise_is_that_of_the_noise():
    # The noise is linear in standard normal matrices: over 200,000 of them its deviation is known to 0.5 % (three times
    # the standard error, 1/sqrt(2n)).
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, generator=generator)
    log_std = 0.5 * torch.randn(5, 3, generator=generator) - 1.0
    matrices = torch.randn(200_000, 5, 3, generator=generator)
    for row in features:
        noise = gsde_noise(row.expand(200_000, 5), log_std, matrices)
        torch.testing.assert_close(noise.std(0), gsde_log_std(row[None], log_std).exp()[0], rtol=0.005, atol=0.0)


def test_the_density_of_state_dependent_noise_shapes_the_features_unless_they_are_detached():
    # Where nothing flows into them, the features of SAC may die, and the noise with them.
    features = torch.ones(4, 5, requires_grad=True)
    log_std = torch.zeros(5, 3, requires_grad=True)
    gsde_log_std(features.detach(), log_std).sum().backward()
    assert features.grad is None
    assert torch.count_nonzero(log_std.grad) == 15
    gsde_log_std(features, log_std).sum().backward()
    assert torch.count_nonzero(features.grad) == 20


def test_state_dependent_noise_has_a_density_where_all_features_are_zero():
    assert torch.isfinite(gsde_log_std(torch.zeros(1, 5), torch.zeros(5, 3))).all()


def test_exploring_with_zero_matrices_is_the_deterministic_action():
    torch.manual_seed(0)
    actor, observation = squashed_actor(gsde=True), torch.randn(4, 3)
    assert torch.equal(actor.explore(observation, torch.zeros(4, 8, 2)), actor.deterministic(observation))


def test_each_account_explores_by_its_own_matrix():
    torch.manual_seed(0)
    actor, observation, matrices = squashed_actor(gsde=True), torch.randn(4, 3), torch.randn(4, 8, 2)
    with torch.no_grad():
        together = actor.explore(observation, matrices)
        alone = torch.cat([actor.explore(observation[[row]], matrices[[row]]) for row in range(4)])
    torch.testing.assert_close(together, alone, **CLOSE)


# --- Several networks in one product


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("n_critics", [1, 2, 3])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_critics_equal_separate_networks(n_layers, n_critics, activation):
    torch.manual_seed(0)
    critic = twin_critic(n_layers, n_critics=n_critics, activation=activation)
    observation, action = torch.randn(7, 5), torch.randn(7, 2)
    values = critic(observation, action)
    assert values.shape == (n_critics, 7)
    for number in range(n_critics):
        x = torch.cat([observation, action], 1)
        *hidden, last = plain_layers(critic.mlp, number)
        for layer in hidden:
            x = getattr(torch, activation)(layer(x))
        torch.testing.assert_close(values[number], last(x).squeeze(1), **CLOSE)


def test_the_first_critic_alone_gives_the_first_of_the_values():
    torch.manual_seed(0)
    critic, observation, action = twin_critic(), torch.randn(7, 5), torch.randn(7, 2)
    torch.testing.assert_close(critic.first(observation, action), critic(observation, action)[0], **CLOSE)


@pytest.mark.parametrize("activate_last", [False, True])
def test_one_of_several_networks_evaluated_alone_answers_as_it_does_among_them(activate_last):
    torch.manual_seed(0)
    networks, x = BatchedMLP(3, [4, 8, 2], activation="tanh", activate_last=activate_last), torch.randn(6, 4)
    together = networks(x)
    for number in range(3):
        torch.testing.assert_close(networks.evaluate(number, x), together[number], **CLOSE)


def test_several_networks_may_have_an_input_each():
    torch.manual_seed(0)
    networks, x = BatchedMLP(2, [4, 8, 2], activation="relu"), torch.randn(2, 6, 4)
    together = networks(x)
    for number in range(2):
        torch.testing.assert_close(networks.evaluate(number, x[number]), together[number], **CLOSE)


def test_the_twins_begin_different():
    torch.manual_seed(0)
    twin = twin_critic()
    assert not torch.equal(twin.mlp.weights[0][0], twin.mlp.weights[0][1])


def test_the_gradient_of_one_twin_does_not_touch_the_other():
    torch.manual_seed(0)
    twin = twin_critic()
    twin(torch.randn(7, 5), torch.randn(7, 2))[0].sum().backward()
    assert all(torch.count_nonzero(parameter.grad[1]) == 0 for parameter in twin.parameters())


def test_hidden_weights_begin_within_the_bound_of_a_linear_layer():
    torch.manual_seed(0)
    for weight in twin_critic(width=64, state_dim=14).mlp.weights:
        bound = 1.0 / math.sqrt(weight.shape[1])
        assert 0.8 * bound < weight.abs().max().item() <= bound


def test_the_parameters_of_a_critic_are_named_by_layer():
    assert list(twin_critic().state_dict()) == [
        f"mlp.{kind}.{layer}" for kind in ("weights", "biases") for layer in range(3)
    ]


# --- Policy and value


def actor_critic(encoders=None, log_std=None):
    encoders = encoders or (FlatEncoder(5), FlatEncoder(5))
    return ActorCritic(encoders, [16, 8], 3, activation="tanh", log_std=log_std)


@pytest.mark.parametrize("part", ["policy", "value"])
def test_policy_and_value_equal_separate_networks(part):
    torch.manual_seed(0)
    network, observation = actor_critic(), torch.randn(7, 5)
    output, features, value = network(observation)
    x, number = observation, ["policy", "value"].index(part)
    for layer in plain_layers(network.body, number):
        x = torch.tanh(layer(x))
    if part == "policy":
        torch.testing.assert_close(features, x, **CLOSE)
        torch.testing.assert_close(output, network.policy_head(x), **CLOSE)
    else:
        torch.testing.assert_close(value, network.value_head(x).squeeze(1), **CLOSE)


@pytest.mark.parametrize("windows", [False, True])
def test_policy_or_value_alone_answer_as_they_do_together(windows):
    torch.manual_seed(0)
    encoders = None
    if windows:
        encoders = tuple(make_encoder("cnn", 15, WindowShape(4, 3, 3), 8) for _ in range(2))
        assert isinstance(encoders[0], WindowEncoder)
    network, observation = actor_critic(encoders), torch.randn(7, 15 if windows else 5)
    output, features, value = network(observation)
    torch.testing.assert_close(network.policy(observation), (output, features), **CLOSE)
    torch.testing.assert_close(network.value(observation), value, **CLOSE)


def test_policy_and_value_share_no_parameter():
    torch.manual_seed(0)
    encoders = tuple(make_encoder("cnn", 15, WindowShape(4, 3, 3), 8) for _ in range(2))
    network = actor_critic(encoders)
    network(torch.randn(7, 15))[2].sum().backward()
    assert network.policy_head.weight.grad is None
    assert all(torch.count_nonzero(parameter.grad[0]) == 0 for parameter in network.body.parameters())
    assert all(not parameter.grad.any() for parameter in network.encoders[0].parameters())
    assert any(parameter.grad.any() for parameter in network.encoders[1].parameters())


def test_policy_and_value_begin_orthogonal_with_their_gains():
    torch.manual_seed(0)
    network = actor_critic()

    def gains(weight):
        return torch.linalg.svdvals(weight)

    # All singular values of an orthogonal matrix are its gain; 1e-5 is float32 through a QR decomposition.
    for weight in network.body.weights:
        for one in weight:
            torch.testing.assert_close(gains(one), torch.full((min(one.shape),), math.sqrt(2.0)), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gains(network.policy_head.weight), torch.full((3,), 0.01), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gains(network.value_head.weight), torch.ones(1), rtol=1e-5, atol=0.0)
    biases = [*network.body.biases, network.policy_head.bias, network.value_head.bias]
    assert not any(bias.any() for bias in biases)


# --- Values of choices


def branching(dueling, action_dim=6):
    torch.manual_seed(0)
    return BranchingQNetwork(FlatEncoder(5), [8, 8], action_dim, activation="relu", dueling=dueling)


@pytest.mark.parametrize("n_branches", [1, 2, 3])
def test_dueling_values_average_to_the_value_of_the_state_in_every_branch(n_branches):
    network, observation = branching(True), torch.randn(7, 5)
    values = network(observation, n_branches)
    assert values.shape == (7, n_branches, 6 // n_branches)
    state_value = network.value_head(network.body(observation))
    torch.testing.assert_close(values.mean(-1), state_value.expand(7, n_branches), **CLOSE)


def test_dueling_values_differ_as_the_advantages_do():
    network, observation = branching(True), torch.randn(7, 5)
    values = network(observation, 2)
    advantages = network.advantage_head(network.body(observation)).view(7, 2, 3)
    torch.testing.assert_close(values.diff(dim=-1), advantages.diff(dim=-1), **CLOSE)


def test_without_dueling_the_head_gives_the_values():
    network, observation = branching(False), torch.randn(7, 5)
    assert torch.equal(network(observation, 2).flatten(1), network.advantage_head(network.body(observation)))


# --- Targets and gradients


def test_soft_update_mixes_in_a_share_tau():
    target, online = [torch.tensor([1.0, 2.0]), torch.tensor(4.0)], [torch.tensor([3.0, 0.0]), torch.tensor(8.0)]
    soft_update(target, online, 0.25)
    assert target[0].tolist() == [1.5, 1.5]
    assert target[1].item() == 5.0


def test_soft_update_with_tau_one_copies():
    target, online = [torch.randn(3, generator=torch.Generator().manual_seed(0))], [torch.tensor([0.1, 0.2, 0.3])]
    soft_update(target, online, 1.0)
    assert torch.equal(target[0], online[0])


def test_a_body_has_an_activation_after_every_layer():
    torch.manual_seed(0)
    body, x = Body(FlatEncoder(3), [8, 4], "tanh"), torch.randn(5, 3)
    assert torch.equal(body(x), torch.tanh(body.layers[1](torch.tanh(body.layers[0](x)))))
    assert [tuple(layer.weight.shape) for layer in body.layers] == [(8, 3), (4, 8)]


def test_stacked_networks_have_no_activation_after_their_last_layer_unless_asked():
    torch.manual_seed(0)
    x = torch.randn(50, 3)
    assert (BatchedMLP(2, [3, 8, 2], activation="relu")(x) < 0.0).any()
    assert (BatchedMLP(2, [3, 8, 2], activation="relu", activate_last=True)(x) >= 0.0).all()


def gradients(scale):
    parameters = [torch.zeros(3, 2, requires_grad=True), torch.zeros(4, requires_grad=True), torch.zeros(2)]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters[:2]:  # The third has none.
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_clipping_gradients_is_that_of_torch(scale):
    ours, torchs = gradients(scale), gradients(scale)
    clip_gradients(ours, 0.5)
    nn.utils.clip_grad_norm_(torchs, 0.5)
    for own, expected in zip(ours[:2], torchs[:2], strict=True):
        # One division more or less: a unit in the last place.
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-6, atol=0.0)


def test_without_a_norm_gradients_are_left_alone():
    parameters = gradients(1e4)
    clip_gradients(parameters, None)
    assert torch.equal(parameters[0].grad, gradients(1e4)[0].grad)
