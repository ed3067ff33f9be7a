"""Gradient steps: RMSprop against TensorFlow's formula and Stable-Baselines3, Adam and clipping against PyTorch."""

import copy
import math

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from ml.tradingbots.components.optimizers import (
    FusedAdam,
    FusedAdamW,
    ListedOptimizer,
    RMSprop,
    clip_gradients,
    descend,
)

SETTINGS = {"lr": 0.05, "alpha": 0.9, "eps": 1e-3}
# Both sides do the same few operations in the same precision; the order of two of them may differ.
SAME = {"rtol": 1e-6, "atol": 1e-7}
# The formula is evaluated in Python's float64, the parameters are float32 and of size 1.
CLOSE = {"rtol": 1e-5, "abs": 1e-6}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (4,), ())]


def gradients(n_steps, seed=1):
    """Gradients of very different sizes, for each step and parameter."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(p.shape, generator=generator) * 10.0 ** (step % 5 - 3) for p in parameters()]
        for step in range(n_steps)
    ]


def walk(optimizer, values, steps):
    for step in steps:
        for value, gradient in zip(values, step, strict=True):
            value.grad = gradient.clone()
        optimizer.step()


def test_a_parameter_moves_by_the_formula():
    value = torch.tensor(1.0, requires_grad=True)
    optimizer = RMSprop([value], **SETTINGS)
    expected, square = 1.0, 1.0
    for gradient in (0.5, -2.0, 1e-3, 0.0, 30.0):
        walk(optimizer, [value], [[torch.tensor(gradient)]])
        square = 0.9 * square + 0.1 * gradient**2
        expected -= 0.05 * gradient / math.sqrt(square + 1e-3)
        assert value.item() == pytest.approx(expected, rel=CLOSE["rtol"], abs=CLOSE["abs"])


def test_the_running_square_starts_at_one():
    # So that a first small gradient makes a small step: 0.05·0.01/√(0.9 + 0.1·0.01² + 0.001).
    value = torch.tensor(0.0, requires_grad=True)
    walk(RMSprop([value], **SETTINGS), [value], [[torch.tensor(0.01)]])
    assert value.item() == pytest.approx(-0.05 * 0.01 / math.sqrt(0.90101), rel=1e-6)


def test_it_is_the_port_of_stable_baselines3():
    ours, theirs, steps = parameters(), parameters(), gradients(30)
    walk(RMSprop(ours, **SETTINGS), ours, steps)
    walk(RMSpropTFLike(theirs, **SETTINGS), theirs, steps)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **SAME)


def test_with_epsilon_outside_it_is_the_rmsprop_of_pytorch():
    ours, inside, theirs, steps = parameters(), parameters(), parameters(), gradients(30)
    walk(RMSprop(ours, **SETTINGS, inside=False), ours, steps)
    walk(RMSprop(inside, **SETTINGS), inside, steps)
    walk(torch.optim.RMSprop(theirs, **SETTINGS), theirs, steps)
    for one, other, different in zip(ours, theirs, inside, strict=True):
        torch.testing.assert_close(one, other, **SAME)
        assert not torch.allclose(different, other, rtol=1e-2)


@pytest.mark.parametrize("inside", [True, False])
def test_a_restored_optimiser_goes_on_as_if_nothing_had_happened(inside):
    values, steps = parameters(), gradients(8)
    optimizer = RMSprop(values, **SETTINGS, inside=inside)
    walk(optimizer, values, steps[:4])
    copies = [value.detach().clone().requires_grad_() for value in values]
    restored = RMSprop(copies, lr=1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, values, steps[4:])
    walk(restored, copies, steps[4:])
    assert all(torch.equal(one, other) for one, other in zip(values, copies, strict=True))


def test_a_changed_step_size_is_followed():
    value = torch.tensor(0.0, requires_grad=True)
    optimizer = RMSprop([value], **SETTINGS)
    optimizer.param_groups[0]["lr"] = 0.0
    walk(optimizer, [value], [[torch.tensor(1.0)]])
    assert value.item() == 0.0


# Adam.


def test_adam_is_the_fused_one_of_pytorch_bit_for_bit():
    ours, theirs, steps = parameters(), parameters(), gradients(20)
    walk(FusedAdam(ours, 0.05, eps=1e-5), ours, steps)
    walk(torch.optim.Adam(theirs, 0.05, eps=1e-5, fused=True), theirs, steps)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_fused_one_of_pytorch_bit_for_bit_and_goes_on_after_a_restore(weight_decay):
    ours, theirs, steps = parameters(), parameters(), gradients(20)
    optimizer = FusedAdamW(ours, 0.05, weight_decay)
    walk(optimizer, ours, steps[:10])
    restored = FusedAdamW(ours, 1.0, 1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(restored, ours, steps[10:])
    walk(torch.optim.AdamW(theirs, 0.05, weight_decay=weight_decay, fused=True), theirs, steps)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_adam_follows_the_papers_formula():
    value = torch.tensor(1.0, requires_grad=True)
    optimizer = FusedAdam([value], 0.05, eps=1e-3)
    expected, mean, square = 1.0, 0.0, 0.0
    for t, gradient in enumerate((0.5, -2.0, 1e-3, 0.0, 30.0), start=1):
        walk(optimizer, [value], [[torch.tensor(gradient)]])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected -= 0.05 * mean / (1 - 0.9**t) / (math.sqrt(square / (1 - 0.999**t)) + 1e-3)
        assert value.item() == pytest.approx(expected, rel=CLOSE["rtol"], abs=CLOSE["abs"])


@pytest.mark.parametrize("n_before", [0, 1, 4])
def test_a_restored_adam_goes_on_as_if_nothing_had_happened(n_before):
    values, steps = parameters(), gradients(8)
    optimizer = FusedAdam(values, 0.05)
    walk(optimizer, values, steps[:n_before])
    copies = [value.detach().clone().requires_grad_() for value in values]
    restored = FusedAdam(copies, 0.05)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, values, steps[n_before:])
    walk(restored, copies, steps[n_before:])
    assert all(torch.equal(one, other) for one, other in zip(values, copies, strict=True))


def test_adam_loads_over_steps_it_has_taken_itself():
    values, others, steps = parameters(), parameters(), gradients(8)
    optimizer, used = FusedAdam(values, 0.05), FusedAdam(others, 0.05)
    walk(optimizer, values, steps[:4])
    walk(used, others, gradients(3, seed=5))
    used.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for value, other in zip(values, others, strict=True):
            other.copy_(value)
    walk(optimizer, values, steps[4:])
    walk(used, others, steps[4:])
    assert all(torch.equal(one, other) for one, other in zip(values, others, strict=True))


def test_a_copy_of_adam_steps_by_itself():
    values, steps = parameters(), gradients(6)
    optimizer = FusedAdam(values, 0.05)
    walk(optimizer, values, steps[:3])
    before = [value.detach().clone() for value in values]
    twin = copy.deepcopy(optimizer)
    walk(twin, twin.param_groups[0]["params"], steps[3:])
    assert all(torch.equal(one, other) for one, other in zip(values, before, strict=True))
    walk(optimizer, values, steps[3:])
    assert all(torch.equal(one, other) for one, other in zip(values, twin.param_groups[0]["params"], strict=True))


def test_adam_follows_a_changed_step_size():
    value = torch.tensor(0.0, requires_grad=True)
    optimizer = FusedAdam([value], 0.05)
    walk(optimizer, [value], [[torch.tensor(1.0)]] * 2)
    before = value.item()
    optimizer.param_groups[0]["lr"] = 0.0
    walk(optimizer, [value], [[torch.tensor(1.0)]])
    assert value.item() == before


# Both.


@pytest.mark.parametrize("make", [FusedAdam, RMSprop])
def test_a_state_that_was_reset_stays_reset(make):
    values, others, steps = parameters(), parameters(), gradients(6)
    used, fresh = make(values, 0.01), make(others, 0.01)
    walk(used, values, steps[:3])
    used.state = type(used.state)(dict)
    with torch.no_grad():
        for value, other in zip(values, others, strict=True):
            other.copy_(value)
    walk(used, values, steps[3:])
    walk(fresh, others, steps[3:])
    assert all(torch.equal(one, other) for one, other in zip(values, others, strict=True))
    assert all(float(used.state[value]["step"]) == 3.0 for value in values)


@pytest.mark.parametrize("make", [FusedAdam, RMSprop])
def test_a_parameter_without_a_gradient_stays_and_is_counted_by_itself(make):
    values, steps = parameters(), gradients(6)
    optimizer = make(values, 0.01)
    walk(optimizer, values[1:], [step[1:] for step in steps[:2]])
    assert values[0] not in optimizer.state
    walk(optimizer, values, steps[2:4])
    values[0].grad = None
    before = values[0].detach().clone()
    walk(optimizer, values[1:], [step[1:] for step in steps[4:]])
    assert torch.equal(values[0], before)
    assert [float(optimizer.state[value]["step"]) for value in values] == [2.0, 6.0, 6.0]


def test_a_saved_adam_goes_on_in_pytorchs_own():
    ours, theirs, steps = parameters(), parameters(), gradients(8)
    optimizer = FusedAdam(ours, 0.05)
    walk(optimizer, ours, steps[:4])
    plain = torch.optim.Adam(theirs, 0.05, fused=True)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)
    walk(optimizer, ours, steps[4:])
    walk(plain, theirs, steps[4:])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


# Descending.


class Plain(ListedOptimizer):
    """Gradient descent."""

    @torch.no_grad()
    def advance(self):
        (group,) = self.param_groups
        for parameter in group["params"]:
            parameter -= group["lr"] * parameter.grad


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_pytorch(size):
    ours, theirs, (step,) = parameters(), parameters(), gradients(1)
    for one, other, gradient in zip(ours, theirs, step, strict=True):
        one.grad, other.grad = gradient * size, gradient * size
    clip_gradients(ours, 0.5)
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **SAME)


def test_descending_spends_gradients_on_its_own_parameters_only():
    weight, other = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    weight.grad, other.grad = torch.tensor(100.0), torch.tensor(7.0)  # Left from before.
    descend(weight * other, [weight], Plain([weight], {"lr": 0.1}), None)
    assert weight.item() == pytest.approx(2.0 - 0.1 * 3.0)
    assert other.grad.item() == 7.0


def test_descending_clips_before_it_steps():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    descend(0.5 * weight.square().sum(), [weight], Plain([weight], {"lr": 1.0}), 1.0)
    assert weight.tolist() == pytest.approx([3.0 - 0.6, 4.0 - 0.8], rel=1e-5)
