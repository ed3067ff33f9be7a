"""The replay memory gives back what was seen, however little of it was stored."""

import numpy as np
import pytest
import torch

from ml.tradingbots.components.buffers import Batch, IndexedObservations, ReplayBuffer
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive

CPU = torch.device("cpu")
FIELDS = ("observation", "action", "reward", "next_observation", "terminated")


def market_env(n_envs=3, n_assets=1, **settings):
    frame = autoregressive(60, seed=1).prices
    if n_assets == 2:
        close = np.stack([autoregressive(60, seed=seed).prices["close"].to_numpy() for seed in (1, 2)], 1)
        frame = Bars(timestamps=frame.index, assets=("a", "b"), close=close)
    config = TradingEnvConfig(**{"window_size": 4, "episode_length": 7, "random_start": True} | settings)
    return TradingVectorEnv(frame, config, n_envs=n_envs, seed=5)


def walk(env, replay, n_steps, *, seed=0):
    """Fill the memory as an agent does, and remember every observation whole; one row per transition, in order."""
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset(seed=seed)
    seen = []
    for _ in range(n_steps):
        action = torch.rand((env.num_envs, env.market.n_assets), generator=generator) * 2.0 - 1.0
        bar, key = env.bar, env.account_features()
        after, reward, terminated, truncated, infos = env.step(action)
        replay.add(key, action, reward, infos["next_account"], terminated, bar)
        following = infos.get("final_obs", after)
        for row in range(env.num_envs):
            ended = bool(terminated[row] | truncated[row])
            seen.append(
                (observation[row], action[row], reward[row], following[row], terminated[row], ended, after[row])
            )
        observation = after
    return seen


def everything(replay):
    """All stored transitions, in storage order, as the memory rebuilds them."""
    # Draw until every row was seen, and sort by the place that each was drawn from.
    generator, twin = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    n_draws = 40 * replay.size
    batch = replay.sample(n_draws, generator)
    index = torch.randint(replay.size, (n_draws,), generator=twin)
    first = torch.stack([(index == place).nonzero()[0, 0] for place in range(replay.size)])
    return Batch(*(getattr(batch, name)[first] for name in FIELDS))


def assert_rebuilt(batch, expected):
    for position, (observation, action, reward, following, terminated, _, _) in enumerate(expected):
        assert torch.equal(batch.observation[position], observation)
        assert torch.equal(batch.action[position], action)
        assert torch.equal(batch.reward[position], reward)
        assert torch.equal(batch.next_observation[position], following)
        assert batch.terminated[position] == float(terminated)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("execution_delay", [0, 2])
def test_the_market_memory_rebuilds_exactly_what_was_seen(n_assets, execution_delay):
    env = market_env(n_assets=n_assets, execution_delay=execution_delay)
    replay = ReplayBuffer.for_env(env, 300, n_assets, device=CPU)
    seen = walk(env, replay, 40)
    assert_rebuilt(everything(replay), seen)


def test_the_market_memory_rebuilds_what_was_seen_after_wrapping_round():
    env = market_env(n_envs=3)
    replay = ReplayBuffer.for_env(env, 31, 1, device=CPU)  # 30 rows: ten vector steps.
    seen = walk(env, replay, 14)
    last = seen[-30:]
    # The oldest of the last 30 stands where the next will be written.
    in_storage_order = last[-replay.position :] + last[: -replay.position]
    assert (replay.capacity, replay.size, replay.position) == (30, 30, 12)
    assert_rebuilt(everything(replay), in_storage_order)


def test_at_the_end_of_an_episode_the_next_observation_is_its_last_not_the_reset_one():
    env = market_env()
    replay = ReplayBuffer.for_env(env, 300, 1, device=CPU)
    seen = walk(env, replay, 30)
    batch = everything(replay)
    ends = [position for position, transition in enumerate(seen) if transition[5]]
    assert len(ends) >= 9
    for position in ends:
        assert torch.equal(batch.next_observation[position], seen[position][3])
        assert not torch.equal(batch.next_observation[position], seen[position][6])


def test_a_truncation_is_not_stored_as_an_end():
    env = market_env()
    replay = ReplayBuffer.for_env(env, 300, 1, device=CPU)
    seen = walk(env, replay, 30)
    assert any(transition[5] for transition in seen)
    assert torch.count_nonzero(everything(replay).terminated) == 0


def test_a_termination_is_stored_as_an_end():
    # Any drawdown at all stops the account out, so that many episodes terminate.
    env = market_env(max_drawdown=1e-4)
    replay = ReplayBuffer.for_env(env, 300, 1, device=CPU)
    seen = walk(env, replay, 30)
    expected = [float(transition[4]) for transition in seen]
    assert 0 < sum(expected) < len(expected)
    assert everything(replay).terminated.tolist() == expected


def test_a_market_transition_costs_a_few_numbers_whatever_the_window():
    env = market_env(window_size=30)
    replay = ReplayBuffer.for_env(env, 300, 1, device=CPU)
    # Account (3), next account (3), action, reward, terminated as float32, and the bar as int32.
    assert replay.bytes_per_transition == 4 * (3 + 3 + 1 + 1 + 1) + 4


def test_a_generic_transition_costs_both_observations():
    assert ReplayBuffer(100, 2, 11, 3, device=CPU).bytes_per_transition == 4 * (11 + 11 + 3 + 1 + 1)


def test_a_market_environment_offers_indexed_observations():
    assert isinstance(market_env(), IndexedObservations)


def generic_buffer(capacity=6, n_envs=2):
    return ReplayBuffer(capacity, n_envs, 2, 1, device=CPU)


def add_numbered(replay, number, *, terminated=False):
    """Store a vector step whose every value tells its number."""
    n = replay.n_envs
    replay.add(
        torch.full((n, 2), float(number)),
        torch.full((n, 1), number + 0.25),
        torch.full((n,), number + 0.5),
        torch.full((n, 2), number + 1.0),
        torch.full((n,), terminated),
    )


def test_the_generic_memory_gives_back_what_was_added():
    replay = generic_buffer()
    add_numbered(replay, 3, terminated=True)
    batch = everything(replay)
    assert batch.observation.tolist() == [[3.0, 3.0]] * 2
    assert batch.action.tolist() == [[3.25]] * 2
    assert batch.reward.tolist() == [3.5] * 2
    assert batch.next_observation.tolist() == [[4.0, 4.0]] * 2
    assert batch.terminated.tolist() == [1.0] * 2


def test_a_full_memory_forgets_the_oldest_first():
    replay = generic_buffer(capacity=6)
    for number in range(5):
        add_numbered(replay, number)
    assert sorted(everything(replay).observation[:, 0].tolist()) == [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


@pytest.mark.parametrize(("capacity", "n_envs", "expected"), [(10, 4, 8), (3, 4, 4), (8, 4, 8)])
def test_capacity_is_a_multiple_of_the_accounts_and_at_least_one_row_of_them(capacity, n_envs, expected):
    assert ReplayBuffer(capacity, n_envs, 2, 1, device=CPU).capacity == expected


def test_only_stored_transitions_are_drawn():
    replay = generic_buffer(capacity=100)
    add_numbered(replay, 7)
    batch = replay.sample(500, torch.Generator().manual_seed(0))
    assert set(batch.observation.flatten().tolist()) == {7.0}


def test_every_stored_transition_can_be_drawn():
    replay = generic_buffer(capacity=20)
    for number in range(10):
        add_numbered(replay, number)
    # The chance that 2,000 draws miss one of 20 rows is 20·0.95^2000 < 1e-42.
    assert len(set(replay.sample(2_000, torch.Generator().manual_seed(0)).reward.tolist())) == 10


def test_the_same_generator_draws_the_same_batch():
    replay = generic_buffer(capacity=20)
    for number in range(10):
        add_numbered(replay, number)
    first, again = (replay.sample(8, torch.Generator().manual_seed(4)).reward for _ in range(2))
    assert torch.equal(first, again)


def test_rewards_are_those_stored_so_far():
    replay = generic_buffer(capacity=20)
    add_numbered(replay, 1)
    add_numbered(replay, 2)
    assert replay.rewards().tolist() == [1.5, 1.5, 2.5, 2.5]


@pytest.mark.parametrize("n_steps", [2, 5], ids=["half full", "wrapped"])
def test_a_saved_memory_goes_on_as_the_original(n_steps):
    original, restored = generic_buffer(), generic_buffer()
    for number in range(n_steps):
        add_numbered(original, number)
    restored.load_state_dict(original.state_dict())
    add_numbered(original, 9)
    add_numbered(restored, 9)
    assert (restored.size, restored.position) == (original.size, original.position)
    assert torch.equal(restored.rows, original.rows)


def test_a_saved_market_memory_rebuilds_the_same_observations():
    env = market_env()
    original, restored = (ReplayBuffer.for_env(env, 60, 1, device=CPU) for _ in range(2))
    walk(env, original, 25)
    restored.load_state_dict(original.state_dict())
    assert torch.equal(everything(restored).observation, everything(original).observation)
    assert torch.equal(everything(restored).next_observation, everything(original).next_observation)


def test_a_saved_memory_holds_no_empty_rows():
    replay = generic_buffer(capacity=1_000)
    add_numbered(replay, 1)
    assert replay.state_dict()["rows"].shape == (2, 7)


def saved():
    replay = generic_buffer()
    for number in range(5):
        add_numbered(replay, number)
    return replay.state_dict()


@pytest.mark.parametrize(
    "target",
    [
        ReplayBuffer(6, 2, 3, 1, device=CPU),
        ReplayBuffer(6, 2, 2, 2, device=CPU),
        ReplayBuffer(4, 2, 2, 1, device=CPU),
        ReplayBuffer(6, 4, 2, 1, device=CPU),
    ],
    ids=["other observation", "other action", "smaller capacity", "other number of accounts"],
)
def test_a_memory_of_another_shape_is_refused(target):
    before = target.rows.clone()
    with pytest.raises(ValueError, match="same environment, n_envs and buffer_size"):
        target.load_state_dict(saved())
    assert torch.equal(target.rows, before)
    assert target.size == 0


@pytest.mark.parametrize(
    "change",
    [
        {"position": 6},
        {"position": -2},
        {"position": 1},
        {"position": 10**30},
        {"size": 4},
        {"size": -1},
        {"rows": torch.zeros(7)},
        {"rows": "rows"},
        {"rows": torch.full((6, 7), torch.nan)},
        {"rows": torch.zeros((6, 7), dtype=torch.int64)},
        {"size": None},
        {"position": "2"},
    ],
    ids=lambda change: f"{next(iter(change))} {str(next(iter(change.values())))[:12]}",
)
def test_a_damaged_memory_is_refused(change):
    with pytest.raises(ValueError, match="replay memory"):
        generic_buffer().load_state_dict(saved() | change)


@pytest.mark.parametrize("bar", [-1, 0, 59, 10**6], ids=str)
def test_a_market_memory_with_bars_outside_the_market_is_refused(bar):
    # Bars 3 to 58 have a full window before them and a next bar after them.
    env = market_env()
    original = ReplayBuffer.for_env(env, 60, 1, device=CPU)
    walk(env, original, 5)
    state = original.state_dict()
    state["bars"][3] = bar
    with pytest.raises(ValueError, match="replay memory"):
        ReplayBuffer.for_env(env, 60, 1, device=CPU).load_state_dict(state)
