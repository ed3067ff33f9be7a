"""Probabilities in closed form: against numerical integrals, torch.distributions and counted draws."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import chisquare
from torch.distributions import Categorical, Normal

from ml.tradingbots.components.distributions import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    categorical_entropy,
    categorical_log_prob,
    draw_choices,
    gaussian_entropy,
    gaussian_log_prob,
    log_probabilities,
    squashed_gaussian_log_prob,
)
from ml.tradingbots.components.networks import gsde_log_std, gsde_noise

# The same float64 arithmetic on both sides, in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Gaussian.


@pytest.mark.parametrize("log_std_shape", [(3,), (6, 3)], ids=["shared", "of_each_state"])
def test_gaussian_log_probabilities_and_entropy_are_those_of_torch(log_std_shape):
    action, mean, log_std = drawn(6, 3), drawn(6, 3, seed=1), drawn(*log_std_shape, seed=2)
    normal = Normal(mean, log_std.exp())
    torch.testing.assert_close(gaussian_log_prob(action, mean, log_std), normal.log_prob(action).sum(-1), **EXACT)
    torch.testing.assert_close(gaussian_entropy(log_std).expand(6), normal.entropy().sum(-1), **EXACT)


def test_the_gradients_of_gaussian_log_probabilities_are_those_of_torch():
    action, mean, log_std = drawn(6, 3), drawn(6, 3, seed=1).requires_grad_(), drawn(3, seed=2).requires_grad_()
    ours = torch.autograd.grad(gaussian_log_prob(action, mean, log_std).sum(), [mean, log_std])
    theirs = torch.autograd.grad(Normal(mean, log_std.exp()).log_prob(action).sum(), [mean, log_std])
    torch.testing.assert_close(ours, theirs, **EXACT)


# Squashed Gaussian.


def squashed_density(distance, end, mean, std):
    """Density of the action at a distance from an end of [−1, 1], which near an end is known to more digits than it."""
    u = end * 0.5 * math.log((2.0 - distance) / distance)
    before_squash = torch.tensor([[u]], dtype=torch.float64)
    log_std = torch.tensor(math.log(std), dtype=torch.float64)
    return squashed_gaussian_log_prob((before_squash - mean) / std, log_std, before_squash).exp().item()


def distance(u):
    """Distance of tanh(u) from the end of [−1, 1] that is nearer."""
    return 2.0 / (1.0 + math.exp(2.0 * abs(u)))


MEANS_AND_STDS = [(0.0, 1.0), (-0.8, 0.3), (3.0, 0.5), (8.0, 0.1), (12.0, 1.0), (-9.0, 2.0), (0.0, 7.0)]


@pytest.mark.parametrize(("mean", "std"), MEANS_AND_STDS)
def test_the_squashed_density_integrates_to_one(mean, std):
    total = 0.0
    for end in (-1.0, 1.0):
        # From the middle to one end, over the logarithm of the distance from it, which resolves however steep an end.
        furthest = max(end * mean + 9.0 * std, 1.0)
        logs = np.linspace(math.log(distance(furthest)), 0.0, 4_001)
        density = [squashed_density(math.exp(s), end, mean, std) for s in logs]
        total += np.trapezoid(density * np.exp(logs), logs)
    # What the trapezium rule leaves at the middle, where the integrand is cut.
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), MEANS_AND_STDS)
@pytest.mark.parametrize("quantile", [-2.0, -0.3, 1.5])
def test_the_squashed_density_is_what_probabilities_grow_by(mean, std, quantile):
    # P(a ≤ tanh u) = Φ((u − mean)/std), whose part between two near actions is the density times their distance.
    u, step = mean + quantile * std, 1e-4 * std
    width = abs(distance(u + step) - distance(u - step))
    probability = ndtr(quantile + 1e-4) - ndtr(quantile - 1e-4)
    # Errors are of the order of the step squared; the difference of two probabilities keeps about eleven digits.
    assert squashed_density(distance(u), math.copysign(1.0, u), mean, std) == pytest.approx(
        probability / width, rel=1e-5
    )


def test_the_squashed_density_has_the_entropy_that_an_integral_gives():
    mean, std = 0.4, 0.6

    def surprise(u):
        density = squashed_density(distance(u), math.copysign(1.0, u), mean, std)
        return -math.log(density) * density / math.cosh(u) ** 2

    expected, _ = quad(surprise, mean - 9.0 * std, mean + 9.0 * std)
    noise = drawn(200_000, 1)
    log_std = torch.tensor(math.log(std), dtype=torch.float64)
    found = -squashed_gaussian_log_prob(noise, log_std, mean + std * noise)
    # Five standard errors of the mean of the draws.
    assert found.mean().item() == pytest.approx(expected, abs=5.0 * found.std().item() / math.sqrt(len(noise)))


# Choices.


def masked_example():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0]], dtype=torch.bool)
    return 3.0 * drawn(3, 6), mask


@pytest.mark.parametrize("is_masked", [False, True])
def test_choices_are_independent_categoricals_over_what_is_legal(is_masked):
    logits, mask = masked_example()
    mask = mask if is_masked else None
    choice = torch.tensor([[0, 2], [2, 2], [1, 0]])
    log_probs = log_probabilities(logits, 2, mask)
    plain = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    branches = [Categorical(logits=part) for part in plain.split(3, 1)]
    expected = sum(branch.log_prob(choice[:, i]) for i, branch in enumerate(branches))
    torch.testing.assert_close(categorical_log_prob(log_probs, choice), expected, **EXACT)
    # The plain sum, leaving out p·log p = 0·(−∞).
    entropy = -sum((b.probs * b.probs.log()).nan_to_num(0.0).sum(-1) for b in branches)
    torch.testing.assert_close(categorical_entropy(log_probs), entropy, **EXACT)


def test_no_gradient_reaches_an_illegal_choice():
    logits, mask = masked_example()
    logits.requires_grad_()
    log_probs = log_probabilities(logits, 2, mask)
    (
        categorical_entropy(log_probs).sum()
        + categorical_log_prob(log_probs, torch.tensor([[0, 2], [2, 2], [1, 0]])).sum()
    ).backward()
    assert (logits.grad[~mask] == 0.0).all()
    assert (logits.grad[0] != 0.0).all()


def test_a_single_legal_choice_is_certain_and_has_no_entropy():
    log_probs = log_probabilities(torch.tensor([[5.0, -3.0, 2.0]]), 1, torch.tensor([[False, True, False]]))
    assert categorical_log_prob(log_probs, torch.tensor([[1]])).item() == 0.0
    assert categorical_entropy(log_probs).item() == 0.0


def counts_of_draws(log_probs, n, seed):
    repeated = log_probs.expand(n, -1, -1)
    choice = draw_choices(repeated, torch.Generator().manual_seed(seed))
    return choice, [torch.bincount(branch, minlength=log_probs.shape[-1]).numpy() for branch in choice.T]


def test_choices_are_drawn_as_often_as_their_probabilities_say():
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5, -0.3, 3.0]])
    log_probs = log_probabilities(logits, 2)
    n = 60_000
    _, counts = counts_of_draws(log_probs, n, seed=3)
    for count, p in zip(counts, log_probs[0].double().exp(), strict=True):
        # A right sampler fails one seed in a thousand.
        assert chisquare(count, n * (p / p.sum()).numpy()).pvalue > 1e-3


def test_branches_are_drawn_independently():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5, -0.3, 1.0]])
    log_probs = log_probabilities(logits, 2)
    n = 60_000
    choice, _ = counts_of_draws(log_probs, n, seed=4)
    joint = torch.bincount(choice[:, 0] * 3 + choice[:, 1], minlength=9).numpy()
    first, second = log_probs[0].double().exp()
    expected = torch.outer(first / first.sum(), second / second.sum()).flatten().numpy()
    assert chisquare(joint, n * expected).pvalue > 1e-3


def test_rows_of_a_batch_are_drawn_independently():
    choice, _ = counts_of_draws(log_probabilities(torch.zeros(1, 3), 1), 60_000, seed=5)
    pairs = torch.bincount(choice[::2, 0] * 3 + choice[1::2, 0], minlength=9).numpy()
    assert chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize("lead", [0.0, 1e4, 1e30])
def test_an_illegal_choice_is_never_drawn_however_much_it_is_preferred(lead):
    logits = torch.tensor([[lead, 0.0, -50.0, lead]])
    log_probs = log_probabilities(logits, 1, torch.tensor([[False, True, True, False]]))
    _, (count,) = counts_of_draws(log_probs, 200_000, seed=6)
    assert count[0] == count[3] == 0


def test_a_near_impossible_choice_is_not_drawn_either():
    # e^−60 is 1e-26: 200,000 draws meet it with probability 2e-21.
    _, (count,) = counts_of_draws(log_probabilities(torch.tensor([[0.0, -60.0]]), 1), 200_000, seed=7)
    assert count.tolist() == [200_000, 0]


# State-dependent exploration.


def test_the_noise_of_many_matrices_has_the_deviation_that_log_probabilities_assume():
    n_matrices, features, log_std = 40_000, drawn(1, 5).float(), drawn(5, 2, seed=1).float() * 0.5 - 1.0
    matrices = torch.randn((n_matrices, 5, 2), generator=torch.Generator().manual_seed(2))
    noise = gsde_noise(features.expand(n_matrices, -1), log_std, matrices)
    # The standard error of a standard deviation is its 1/√(2n), here 0.35 %; four of them.
    torch.testing.assert_close(noise.std(0), gsde_log_std(features, log_std)[0].exp(), rtol=0.015, atol=0.0)
    assert noise.mean(0).abs().max().item() < 4.0 * noise.std(0).max().item() / math.sqrt(n_matrices)


def test_the_deviation_of_state_dependent_noise_is_the_root_of_the_summed_squares():
    # Features 3 and 4 with deviations 1 and 2: √(3²·1² + 4²·2²) = √73.
    features, log_std = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [math.log(2.0)]])
    assert gsde_log_std(features, log_std).exp().item() == pytest.approx(math.sqrt(73.0), rel=1e-6)


def test_one_matrix_gives_the_same_noise_in_the_same_state():
    features, log_std, matrices = drawn(1, 5).float(), torch.zeros(5, 2), drawn(1, 5, 2, seed=3).float()
    first, again = (gsde_noise(features, log_std, matrices) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.allclose(gsde_noise(2.0 * features, log_std, matrices), 2.0 * first)


@pytest.mark.parametrize(("log_std", "bound"), [(-30.0, LOG_STD_MIN), (5.0, LOG_STD_MAX)])
def test_noise_and_its_deviation_are_bounded_alike(log_std, bound):
    features, matrices = torch.ones(1, 1), torch.ones(1, 1, 1)
    beyond, at = (torch.tensor([[value]]) for value in (log_std, bound))
    assert torch.equal(gsde_noise(features, beyond, matrices), gsde_noise(features, at, matrices))
    assert torch.equal(gsde_log_std(features, beyond), gsde_log_std(features, at))


def test_the_gradient_of_state_dependent_log_probabilities_is_the_one_derived_by_hand():
    # With s² = Σ f²σ² and d = a − μ: ∂ log p/∂ log σⱼ = (d²/s² − 1)·fⱼ²σⱼ²/s².
    features = drawn(6, 4)
    log_std, mean, action = (drawn(*shape, seed=seed) for seed, shape in enumerate([(4, 2), (6, 2), (6, 2)], start=1))
    log_std.requires_grad_()
    gaussian_log_prob(action, mean, gsde_log_std(features, log_std)).sum().backward()
    square, sigma = features**2, log_std.detach().exp() ** 2
    variance = square @ sigma
    outer = ((action - mean) ** 2 / variance - 1.0) / variance
    # The variance has a floor of 1e-6, against values of order 1.
    torch.testing.assert_close(log_std.grad, (square.T @ outer) * sigma, rtol=1e-4, atol=1e-5)
