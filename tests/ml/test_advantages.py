"""Advantages and value targets: pencil cases, plain loops, and how the two ends of an episode differ."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml.tradingbots.core.advantages import discounted_sum, generalized_advantages, n_step_targets

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
examples = settings(max_examples=25, deadline=None, derandomize=True)
fractions = st.floats(0.0, 1.0)
# float64 and at most 12 steps of numbers near 1: sums in another order differ by less than 1e-12.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def make_rollout(n_steps: int = 12, n_envs: int = 3, seed: int = 0, end_rate: float = 0.2) -> dict[str, Tensor]:
    """A random rollout whose episodes end both ways; next_values is values one step on where none ended."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_steps, n_envs)
    rewards, values, beyond = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    terminated, truncated = (torch.rand(shape, generator=generator) < end_rate / 2 for _ in range(2))
    ended = terminated | truncated
    ended[-1] = True
    next_values = torch.where(ended, beyond, values.roll(-1, dims=0))
    return {
        "rewards": rewards,
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "truncated": truncated,
    }


def without_ends(rollout: dict[str, Tensor]) -> dict[str, Tensor]:
    no = torch.zeros_like(rollout["terminated"])
    following = torch.cat([rollout["values"][1:], rollout["next_values"][-1:]])
    return {**rollout, "next_values": following, "terminated": no, "truncated": no}


def without_values(rollout: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in rollout.items() if key != "values"}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)


# Plain loops, on Python floats, written forwards from the definitions


def gae_by_definition(rollout: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    rewards, values, next_values, terminated, truncated = (tensor.tolist() for tensor in rollout.values())
    n_steps, n_envs = len(rewards), len(rewards[0])
    advantages = torch.zeros(n_steps, n_envs, dtype=torch.float64)
    for env in range(n_envs):
        for t in range(n_steps):
            for later in range(t, n_steps):
                bootstrap = 0.0 if terminated[later][env] else gamma * next_values[later][env]
                error = rewards[later][env] + bootstrap - values[later][env]
                advantages[t, env] += (gamma * gae_lambda) ** (later - t) * error
                if terminated[later][env] or truncated[later][env]:
                    break
    return advantages


def n_step_by_definition(rollout: dict[str, Tensor], gamma: float, n_steps: int) -> Tensor:
    rewards, _, next_values, terminated, truncated = (tensor.tolist() for tensor in rollout.values())
    n_rows, n_envs = len(rewards), len(rewards[0])
    targets = torch.zeros(n_rows, n_envs, dtype=torch.float64)
    for env in range(n_envs):
        for t in range(n_rows):
            later, discount = t, 1.0
            while True:
                targets[t, env] += discount * rewards[later][env]
                discount *= gamma
                full = later - t + 1 == n_steps
                if full or terminated[later][env] or truncated[later][env] or later == n_rows - 1:
                    break
                later += 1
            if not terminated[later][env]:
                targets[t, env] += discount * next_values[later][env]
    return targets


@examples
@given(seed=st.integers(0, 10_000), gamma=fractions, gae_lambda=fractions)
def test_gae_matches_a_plain_loop(seed, gamma, gae_lambda):
    rollout = make_rollout(seed=seed)
    advantages, value_targets = generalized_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
    expected = gae_by_definition(rollout, gamma, gae_lambda)
    assert_close(advantages, expected)
    assert_close(value_targets, expected + rollout["values"])


@examples
@given(seed=st.integers(0, 10_000), gamma=fractions, n_steps=st.integers(1, 15))
def test_n_step_targets_match_a_plain_loop(seed, gamma, n_steps):
    rollout = make_rollout(seed=seed)
    ours = n_step_targets(**without_values(rollout), gamma=gamma, n_steps=n_steps)
    assert_close(ours, n_step_by_definition(rollout, gamma, n_steps))


# Closed forms


def test_gae_with_lambda_zero_is_the_one_step_error():
    rollout = make_rollout()
    advantages, _ = generalized_advantages(**rollout, gamma=0.9, gae_lambda=0.0)
    beyond = torch.where(rollout["terminated"], 0.0, rollout["next_values"])
    assert_close(advantages, rollout["rewards"] + 0.9 * beyond - rollout["values"])


def test_gae_with_lambda_one_is_the_discounted_sum_minus_the_value():
    rollout = without_ends(make_rollout())
    rollout["terminated"][-1] = True
    advantages, _ = generalized_advantages(**rollout, gamma=0.9, gae_lambda=1.0)
    ended = rollout["terminated"] | rollout["truncated"]
    assert_close(advantages, discounted_sum(rollout["rewards"], ended, gamma=0.9) - rollout["values"])


def test_gae_is_the_exponential_mean_of_n_step_advantages():
    # Schulman et al. (2016), equation 16: (1 - λ) Σ λ^(n-1) A^(n), where the last one takes what weight is left.
    rollout, gamma, gae_lambda, length = without_ends(make_rollout()), 0.95, 0.8, 12
    weights = [(1 - gae_lambda) * gae_lambda**n for n in range(length - 1)] + [gae_lambda ** (length - 1)]
    targets = sum(
        weight * n_step_targets(**without_values(rollout), gamma=gamma, n_steps=n)
        for n, weight in enumerate(weights, start=1)
    )
    advantages, value_targets = generalized_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
    assert_close(advantages, targets - rollout["values"])
    assert_close(value_targets, targets)


@pytest.mark.parametrize("seed", range(5))
def test_long_n_step_targets_are_gae_targets_with_lambda_one(seed):
    rollout = make_rollout(seed=seed)
    _, value_targets = generalized_advantages(**rollout, gamma=0.9, gae_lambda=1.0)
    assert_close(n_step_targets(**without_values(rollout), gamma=0.9, n_steps=100), value_targets)


def test_one_step_targets_are_gae_targets_with_lambda_zero():
    rollout = make_rollout()
    _, value_targets = generalized_advantages(**rollout, gamma=0.9, gae_lambda=0.0)
    assert_close(n_step_targets(**without_values(rollout), gamma=0.9, n_steps=1), value_targets)


def test_a_constant_reward_sums_to_the_geometric_series():
    sums = discounted_sum(torch.ones(10, 2, dtype=torch.float64), torch.zeros(10, 2, dtype=torch.bool), gamma=0.9)
    steps_left = torch.arange(10, 0, -1, dtype=torch.float64)[:, None].expand(10, 2)
    assert_close(sums, (1 - 0.9**steps_left) / (1 - 0.9))


def test_without_a_discount_rewards_just_add_up():
    rewards = make_rollout()["rewards"]
    sums = discounted_sum(rewards, torch.zeros_like(rewards, dtype=torch.bool), gamma=1.0)
    assert_close(sums[0], rewards.sum(dim=0))


# Ends


def learned_value(end: str, gamma: float, n_sweeps: int = 400) -> float:
    """One value for all steps of 5-step episodes with reward 1, set to the mean of its targets again and again."""
    flags = {"terminated": torch.zeros(20, 1, dtype=torch.bool), "truncated": torch.zeros(20, 1, dtype=torch.bool)}
    flags[end][4::5] = True
    value = torch.zeros(20, 1, dtype=torch.float64)
    for _ in range(n_sweeps):
        _, targets = generalized_advantages(torch.ones_like(value), value, value, **flags, gamma=gamma, gae_lambda=0.95)
        value = targets.mean() * torch.ones_like(value)
    return float(value[0, 0])


def test_value_of_a_constant_reward_is_one_over_one_minus_gamma_only_if_time_limits_bootstrap():
    assert learned_value("truncated", 0.9) == pytest.approx(1 / (1 - 0.9), rel=1e-9)
    # An end that counts as one hides all that would have followed: five rewards of 1 at the very most.
    assert learned_value("terminated", 0.9) < 5.0


def test_the_true_value_of_a_constant_reward_leaves_no_advantage():
    value = torch.full((8, 2), 10.0, dtype=torch.float64)
    no = torch.zeros(8, 2, dtype=torch.bool)
    cut = no.clone()
    cut[3] = True
    advantages, _ = generalized_advantages(torch.ones_like(value), value, value, no, cut, gamma=0.9, gae_lambda=0.95)
    assert_close(advantages, torch.zeros_like(value))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_what_follows_an_end_changes_nothing_before_it(end):
    rollout = without_ends(make_rollout())
    rollout = {**rollout, end: rollout[end].clone()}
    rollout[end][5] = True
    other = {key: tensor.clone() for key, tensor in rollout.items()}
    for key in ("rewards", "values", "next_values"):
        other[key][6:] += 100.0
    for estimate in (
        lambda r: generalized_advantages(**r, gamma=0.99, gae_lambda=0.95)[0],
        lambda r: n_step_targets(**without_values(r), gamma=0.99, n_steps=4),
        lambda r: discounted_sum(r["rewards"], r["terminated"] | r["truncated"], gamma=0.99),
    ):
        assert torch.equal(estimate(rollout)[:6], estimate(other)[:6])
        assert not torch.equal(estimate(rollout)[6:], estimate(other)[6:])


def test_the_value_of_a_terminal_observation_does_not_matter_even_if_it_is_nan():
    rollout = make_rollout()
    rollout["next_values"][rollout["terminated"]] = torch.nan
    assert rollout["next_values"].isnan().any()
    advantages, value_targets = generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    targets = n_step_targets(**without_values(rollout), gamma=0.99, n_steps=3)
    assert all(tensor.isfinite().all() for tensor in (advantages, value_targets, targets))


def test_a_step_that_is_both_ends_counts_as_terminated():
    rollout = without_ends(make_rollout())
    rollout["terminated"] = torch.ones_like(rollout["terminated"])
    alone, _ = generalized_advantages(**rollout, gamma=0.9, gae_lambda=0.9)
    rollout["truncated"] = rollout["terminated"].clone()
    both, _ = generalized_advantages(**rollout, gamma=0.9, gae_lambda=0.9)
    assert torch.equal(alone, both)
    assert_close(both, rollout["rewards"] - rollout["values"])


# Contract


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_device_and_dtype_and_carry_no_gradient(device, dtype):
    rollout = {
        key: (tensor if tensor.dtype == torch.bool else tensor.to(dtype)).to(device)
        for key, tensor in make_rollout().items()
    }
    rollout["values"].requires_grad_()
    advantages, value_targets = generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    targets = n_step_targets(**without_values(rollout), gamma=0.99, n_steps=3)
    for tensor in (advantages, value_targets, targets):
        assert tensor.shape == (12, 3)
        assert (tensor.dtype, tensor.device.type, tensor.requires_grad) == (dtype, device, False)


def test_environments_do_not_mix():
    rollout = make_rollout()
    together, _ = generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    for env in range(3):
        alone, _ = generalized_advantages(
            **{key: tensor[:, env : env + 1] for key, tensor in rollout.items()}, gamma=0.99, gae_lambda=0.95
        )
        assert torch.equal(alone, together[:, env : env + 1])


def test_arguments_are_left_untouched():
    rollout = make_rollout()
    before = {key: tensor.clone() for key, tensor in rollout.items()}
    generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    n_step_targets(**without_values(rollout), gamma=0.99, n_steps=3)
    assert all(torch.equal(rollout[key], before[key]) for key in rollout)


def test_shapes_that_would_broadcast_are_refused():
    rollout = make_rollout(n_envs=1)
    rollout["values"] = rollout["values"][:, 0]
    with pytest.raises(ValueError, match="expected one shape"):
        generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)


def test_flags_that_are_numbers_are_refused():
    rollout = make_rollout()
    rollout["terminated"] = rollout["terminated"].float()
    with pytest.raises(TypeError, match="terminated must be a bool tensor"):
        generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)


@pytest.mark.parametrize("arguments", [{"gamma": 1.1, "gae_lambda": 0.9}, {"gamma": 0.9, "gae_lambda": -0.1}])
def test_discounts_outside_zero_and_one_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        generalized_advantages(**make_rollout(), **arguments)


def test_targets_of_no_steps_are_refused():
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        n_step_targets(**without_values(make_rollout()), gamma=0.9, n_steps=0)
