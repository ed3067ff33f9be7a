"""Draws follow the priorities, exactly and for ever, and the weights make up for it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.components.buffers import ReplayBuffer
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.priorities import PriorityTree
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.data.synthetic import autoregressive

CPU = torch.device("cpu")


def tree_of(priorities, *, fan_out=4):
    tree = PriorityTree(len(priorities), device=CPU, fan_out=fan_out)
    tree.update(torch.arange(len(priorities)), torch.tensor(priorities, dtype=torch.float64))
    return tree


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(counts, expected):
    return float((((counts - expected) ** 2) / expected).sum())


def assert_sums_are_those_of_the_children(tree):
    for children, parents in itertools.pairwise(tree.levels):
        flat = parents.view(-1)
        # To the bit: sums are taken from all the children, in one order, whenever one of them changes.
        assert torch.equal(flat[: len(children)], children.sum(1))
        assert torch.count_nonzero(flat[len(children) :]) == 0


@pytest.mark.parametrize(("capacity", "n_levels"), [(1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (1_000_000, 4)])
def test_the_tree_is_as_deep_as_the_logarithm_of_its_places(capacity, n_levels):
    assert len(PriorityTree(capacity, device=CPU).levels) == n_levels


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 70), st.integers(2, 9), st.integers(1, 30), st.integers(0, 2**32))
def test_sums_never_drift_from_what_they_sum(capacity, fan_out, n_changes, seed):
    rng = np.random.default_rng(seed)
    tree, plain = PriorityTree(capacity, device=CPU, fan_out=fan_out), np.zeros(capacity)
    highest = 1.0
    for _ in range(n_changes):
        if rng.random() < 0.3:
            start, stop = sorted(rng.choice(capacity + 1, 2, replace=False))
            tree.add(int(start), int(stop))
            plain[start:stop] = highest
        else:
            index = rng.integers(0, capacity, 5)
            # Sixteen orders of magnitude: sums that were only corrected by differences would keep nothing of the small.
            priority = 10.0 ** rng.uniform(-8.0, 8.0, 5)
            tree.update(torch.from_numpy(index), torch.from_numpy(priority))
            plain[index] = 0.0
            np.maximum.at(plain, index, priority)
            highest = max(highest, priority.max())
    assert tree.priorities.numpy().tolist() == plain.tolist()
    assert tree.highest.item() == highest
    assert_sums_are_those_of_the_children(tree)


def test_a_place_given_several_times_gets_the_highest_of_its_priorities():
    tree = tree_of([1.0, 1.0, 1.0])
    tree.update(torch.tensor([1, 1, 1]), torch.tensor([2.0, 5.0, 3.0]))
    assert tree.priorities.tolist() == [1.0, 5.0, 1.0]


def test_a_priority_can_fall():
    tree = tree_of([4.0, 4.0])
    tree.update(torch.tensor([0]), torch.tensor([0.5]))
    assert tree.priorities.tolist() == [0.5, 4.0]


def test_an_added_place_gets_the_highest_priority_ever_seen_even_if_it_is_gone():
    tree = tree_of([1.0, 7.0, 1.0])
    tree.update(torch.tensor([1]), torch.tensor([2.0]))
    tree.add(2, 3)
    assert tree.priorities.tolist() == [1.0, 2.0, 7.0]


def test_before_any_priority_is_known_it_is_one():
    tree = PriorityTree(3, device=CPU)
    tree.add(0, 2)
    assert tree.priorities.tolist() == [1.0, 1.0, 0.0]


def test_draws_are_in_proportion_to_priorities():
    priorities = np.arange(1.0, 51.0)
    # One draw at a time is the plain proportional form: the ranges of many are stratified, and would fit too well.
    tree, drawn = tree_of(priorities.tolist()), generator(3)
    counts = np.bincount([tree.sample(1, drawn)[0].item() for _ in range(5_000)], minlength=50)
    # The 99.9 % quantile of chi-square with 49 degrees of freedom is 85.4.
    assert chi_square(counts, 5_000 * priorities / priorities.sum()) < 85.4


def test_a_batch_holds_each_place_as_often_as_its_share_to_within_the_two_ranges_it_is_cut_by():
    priorities = np.random.default_rng(0).random(300)
    tree = tree_of(priorities.tolist(), fan_out=8)
    index, probability = tree.sample(1_000, generator())
    expected = 1_000 * priorities / priorities.sum()
    counts = np.bincount(index.numpy(), minlength=300)
    assert np.all(np.abs(counts - expected) <= 2.0)
    assert index.tolist() == sorted(index.tolist())
    # float64 sums of 300 numbers in two orders.
    np.testing.assert_allclose(probability.numpy(), expected[index.numpy()] / 1_000, rtol=1e-13)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(2, 200), st.integers(2, 9), st.integers(0, 2**32))
def test_a_place_with_priority_zero_is_never_drawn(capacity, fan_out, seed):
    rng = np.random.default_rng(seed)
    priorities = 10.0 ** rng.uniform(-12.0, 12.0, capacity) * (rng.random(capacity) < 0.3)
    priorities[rng.integers(capacity)] = 1.0
    tree = tree_of(priorities.tolist(), fan_out=fan_out)
    index, probability = tree.sample(500, generator(seed % 1000))
    assert torch.all(tree.priorities[index] > 0.0)
    assert torch.all(probability > 0.0)


@pytest.mark.parametrize("fan_out", [2, 3, 64])
@pytest.mark.parametrize(
    ("mass", "place"), [(0.0, 1), (0.5, 1), (1.0, 4), (2.75, 4), (3.0, 5), (6.9, 5), (7.0, 5), (8.0, 5)]
)
def test_a_mass_belongs_to_the_place_whose_range_it_falls_into(fan_out, mass, place):
    # Ranges: [0, 1) of place 1, [1, 3) of place 4, [3, 7) of place 5. The others have none, the ends of the sum included.
    tree = tree_of([0.0, 1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 0.0], fan_out=fan_out)
    assert tree.find(torch.tensor([mass], dtype=torch.float64)).tolist() == [place]


def test_the_same_generator_draws_the_same_places():
    tree = tree_of([1.0, 2.0, 3.0])
    assert torch.equal(tree.sample(50, generator(8))[0], tree.sample(50, generator(8))[0])


def test_nothing_can_be_drawn_from_an_empty_tree():
    with pytest.raises(ValueError, match="nothing to draw"):
        PriorityTree(5, device=CPU).sample(1, generator())


@pytest.mark.parametrize("priority", [-1.0, math.nan, math.inf], ids=str)
def test_a_priority_that_is_none_is_refused(priority):
    tree = tree_of([1.0, 2.0])
    with pytest.raises(ValueError, match="finite and not negative"):
        tree.update(torch.tensor([0, 1]), torch.tensor([1.0, priority]))
    assert tree.priorities.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_outside_is_refused(place):
    with pytest.raises(IndexError, match="index must be from 0 to 1"):
        tree_of([1.0, 2.0]).update(torch.tensor([place]), torch.tensor([1.0]))


@pytest.mark.parametrize("sizes", [{"capacity": 0}, {"capacity": 3, "fan_out": 1}], ids=str)
def test_a_tree_without_places_or_branches_is_refused(sizes):
    with pytest.raises(ValueError, match="capacity must be at least 1 and fan_out at least 2"):
        PriorityTree(**sizes, device=CPU)


def memory(capacity=6, n_envs=2, **options):
    return ReplayBuffer(capacity, n_envs, 2, 1, device=CPU, prioritized=True, **options)


def add_numbered(replay, number):
    """Store a vector step whose every value tells its number."""
    n = replay.n_envs
    no = torch.zeros(n, dtype=torch.bool)
    value = torch.full((n, 1), float(number))
    replay.add(value.expand(n, 2), value, value[:, 0], value.expand(n, 2) + 1.0, no, truncated=no)


def filled(n_rows, **options):
    replay = memory(**options)
    for number in range(n_rows):
        add_numbered(replay, number)
    return replay


def test_a_priority_is_the_error_plus_epsilon_to_the_power_of_alpha():
    replay = filled(3, priority_exponent=0.5, priority_epsilon=0.01)
    replay.update_priorities(torch.tensor([0, 4]), torch.tensor([0.0, 8.99]))
    # The errors are float32: 8.99 is known to 7 digits.
    assert replay.priorities.priorities[[0, 4]].tolist() == pytest.approx([0.1, 3.0], rel=1e-6)


def test_transitions_are_drawn_in_proportion_to_their_error_to_the_power_of_alpha():
    replay = filled(10, capacity=20, n_envs=1, priority_exponent=0.6)
    error = torch.arange(1.0, 11.0)
    replay.update_priorities(torch.arange(10), error)
    drawn = generator(5)
    index = torch.cat([replay.sample(1, drawn).index for _ in range(5_000)])
    share = (error**0.6 / (error**0.6).sum()).numpy()
    # The 99.9 % quantile of chi-square with 9 degrees of freedom is 27.9.
    assert chi_square(np.bincount(index.numpy(), minlength=10), 5_000 * share) < 27.9


def test_what_is_drawn_stands_where_the_index_says():
    replay = filled(7, capacity=10, n_envs=2)  # Wrapped: the numbers 5 and 6 stand first.
    batch = replay.sample(200, generator())
    assert batch.reward.tolist() == [[5.0, 6.0, 2.0, 3.0, 4.0][place // 2] for place in batch.index.tolist()]


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_follow_the_formula(beta):
    replay = filled(3, n_envs=2, priority_exponent=1.0)
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    replay.update_priorities(torch.arange(6), error)
    batch = replay.sample(64, generator(), beta=beta)
    probability = (error.double() + 1e-6) / (error.double() + 1e-6).sum()
    weight = (6 * probability[batch.index]) ** -beta
    assert batch.weight.dtype == torch.float32
    # The weight is rounded to float32.
    torch.testing.assert_close(batch.weight.double(), weight / weight.max(), rtol=1e-6, atol=0.0)


def test_with_beta_one_weighted_means_are_those_of_uniform_draws():
    replay = filled(50, capacity=50, n_envs=1)
    replay.update_priorities(torch.arange(50), torch.arange(1.0, 51.0))
    batch = replay.sample(200_000, generator(1), beta=1.0)
    mean = float((batch.weight * batch.reward).sum() / batch.weight.sum())
    # The mean of 0 to 49. Stratified draws take each place as often as they should to within two, and even the rarest
    # about 80 times, so that its share is known to 2.5 % of a fiftieth, which is 0.01 in the mean; the others add less.
    assert mean == pytest.approx(24.5, abs=0.03)
    assert float(batch.reward.mean()) > 30.0


def test_new_transitions_have_the_highest_priority_seen():
    replay = filled(1, priority_exponent=1.0)
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([9.0, 0.5]))
    replay.update_priorities(torch.tensor([0]), torch.tensor([0.25]))
    add_numbered(replay, 1)
    assert replay.priorities.priorities.tolist() == pytest.approx([0.25, 0.5, 9.0, 9.0, 0.0, 0.0], rel=1e-5)


def test_an_overwritten_transition_loses_its_priority():
    replay = filled(3, priority_exponent=1.0)
    replay.update_priorities(torch.arange(6), torch.full((6,), 0.5))
    add_numbered(replay, 3)
    assert replay.priorities.priorities.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.5, 0.5], rel=1e-5)
    assert_sums_are_those_of_the_children(replay.priorities)


def test_a_transition_without_error_can_still_be_drawn():
    replay = filled(3)
    replay.update_priorities(torch.arange(6), torch.zeros(6))
    assert set(replay.sample(60, generator()).index.tolist()) == set(range(6))


def test_an_empty_place_is_never_drawn():
    replay = filled(3, capacity=1_000)
    assert int(replay.sample(10_000, generator()).index.max()) == 5


@pytest.mark.parametrize("place", [-1, 2])
def test_the_priority_of_an_empty_place_cannot_be_set(place):
    with pytest.raises(IndexError, match="index must be"):
        filled(1).update_priorities(torch.tensor([place]), torch.tensor([1.0]))


@pytest.mark.parametrize("error", [-1.0, math.nan, math.inf], ids=str)
def test_an_error_that_is_none_is_refused(error):
    with pytest.raises(ValueError, match="finite and not negative"):
        filled(1).update_priorities(torch.tensor([0]), torch.tensor([error]))


def test_a_uniform_memory_has_no_priorities_to_update():
    with pytest.raises(RuntimeError, match="prioritized=True"):
        ReplayBuffer(6, 2, 2, 1, device=CPU).update_priorities(torch.tensor([0]), torch.tensor([1.0]))


def test_priorities_cost_about_eight_bytes_a_transition():
    bare, ours = (ReplayBuffer(10**5, 1, 3, 1, device=CPU, prioritized=flag) for flag in (False, True))
    assert 8.0 <= ours.bytes_per_transition - bare.bytes_per_transition < 8.2


def test_returns_over_several_steps_start_at_the_transition_drawn():
    replay = filled(4, capacity=10, n_envs=1, n_steps=2, gamma=0.5)
    batch = replay.sample(40, generator())
    expected = [[0.5, 2.0, 3.5, 3.0][place] for place in batch.index.tolist()]
    assert batch.reward.tolist() == expected
    assert batch.discount.tolist() == [0.5 if place == 3 else 0.25 for place in batch.index.tolist()]


def test_a_market_memory_can_be_prioritised():
    config = TradingEnvConfig(window_size=4, episode_length=7, random_start=True)
    env = TradingVectorEnv(autoregressive(60, seed=1).prices, config, n_envs=3, seed=5)
    replay = ReplayBuffer.for_env(env, 30, 1, device=CPU, prioritized=True, n_steps=2, gamma=0.9)
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(5):
        bar, key = env.bar, env.account_features()
        seen.append(observation)
        observation, reward, terminated, truncated, infos = env.step(torch.ones(3, 1))
        replay.add(key, torch.ones(3, 1), reward, infos["next_account"], terminated, bar, truncated=truncated)
    batch = replay.sample(50, generator())
    assert torch.equal(batch.observation, torch.cat(seen)[batch.index])


def trained(n_rows=5):
    """A memory whose priorities have a past."""
    replay = filled(n_rows, capacity=200, n_envs=2)
    drawn = generator(2)
    for _ in range(20):
        index = replay.sample(16, drawn).index
        replay.update_priorities(index, torch.rand(16, generator=drawn) * 3.0)
    return replay


@pytest.mark.parametrize("n_rows", [5, 130], ids=["partly filled", "wrapped"])
def test_a_saved_memory_draws_to_the_bit_as_the_original(n_rows):
    original, restored = trained(n_rows), memory(capacity=200, n_envs=2)
    restored.load_state_dict(original.state_dict())
    for replay in (original, restored):
        add_numbered(replay, 1_000)
    assert torch.equal(restored.priorities.highest, original.priorities.highest)
    for ours, theirs in zip(restored.priorities.levels, original.priorities.levels, strict=True):
        assert torch.equal(ours, theirs)
    one, other = (replay.sample(64, generator(3)) for replay in (original, restored))
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.weight, other.weight)


def test_loading_forgets_what_was_there():
    replay = filled(100, capacity=200, n_envs=2)
    replay.load_state_dict(trained(5).state_dict())
    assert int(replay.sample(1_000, generator()).index.max()) == 9
    assert_sums_are_those_of_the_children(replay.priorities)


def test_an_empty_memory_can_be_saved():
    replay = memory()
    replay.load_state_dict(memory().state_dict())
    add_numbered(replay, 1)
    assert replay.sample(3, generator()).reward.tolist() == [1.0] * 3


ONES = torch.ones(10, dtype=torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        {"priorities": None},
        {"priorities": "ones"},
        {"priorities": ONES[:9]},
        {"priorities": ONES[:, None]},
        {"priorities": ONES.float()},
        {"priorities": ONES.to_sparse()},
        {"priorities": -ONES},
        {"priorities": 0.0 * ONES},
        {"priorities": torch.nan * ONES},
        {"priorities": torch.inf * ONES, "highest_priority": torch.tensor(torch.inf, dtype=torch.float64)},
        {"priorities": 1e308 * ONES, "highest_priority": torch.tensor(1e308, dtype=torch.float64)},
        {"priorities": 100.0 * ONES},
        {"highest_priority": None},
        {"highest_priority": 5.0},
        {"highest_priority": torch.tensor(5.0)},
        {"highest_priority": ONES},
        {"highest_priority": torch.tensor(0.0, dtype=torch.float64)},
        {"highest_priority": torch.tensor(torch.nan, dtype=torch.float64)},
    ],
    ids=lambda change: ", ".join(f"{name} {str(value)[:16]}" for name, value in change.items()),
)
def test_damaged_priorities_are_refused(change):
    replay = memory(capacity=200, n_envs=2)
    with pytest.raises(ValueError, match="replay memory"):
        replay.load_state_dict(trained().state_dict() | change)
    assert replay.size == 0


@pytest.mark.parametrize("name", ["priorities", "highest_priority"])
def test_a_memory_saved_without_priorities_is_refused(name):
    state = trained().state_dict()
    del state[name]
    with pytest.raises(ValueError, match="with priorities and masks as before"):
        memory(capacity=200, n_envs=2).load_state_dict(state)
