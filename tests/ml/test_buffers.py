"""The replay memory gives back what was seen, however little of it was stored."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer

from ml.tradingbots.components.buffers import Batch, IndexedObservations, ReplayBuffer
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.core.advantages import n_step_targets
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive

CPU = torch.device("cpu")
FIELDS = [field.name for field in dataclasses.fields(Batch)]


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
        replay.add(key, action, reward, infos["next_account"], terminated, bar, truncated=truncated)
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
    values = {name: getattr(batch, name) for name in FIELDS}
    return Batch(**{name: value if value is None else value[first] for name, value in values.items()})


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


def test_a_truncation_is_not_given_back_as_a_termination():
    env = market_env()
    replay = ReplayBuffer.for_env(env, 300, 1, device=CPU)
    seen = walk(env, replay, 30)
    assert any(transition[5] for transition in seen)
    assert torch.count_nonzero(everything(replay).terminated) == 0


def test_a_termination_is_given_back_as_one():
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
    # Account (3), next account (3), action, reward, end as float32, and the bar as int32.
    assert replay.bytes_per_transition == 4 * (3 + 3 + 1 + 1 + 1) + 4


def test_a_generic_transition_costs_both_observations():
    assert ReplayBuffer(100, 2, 11, 3, device=CPU).bytes_per_transition == 4 * (11 + 11 + 3 + 1 + 1)


def test_returns_over_several_steps_cost_no_memory():
    one, many = (ReplayBuffer(100, 2, 11, 3, device=CPU, n_steps=n_steps) for n_steps in (1, 10))
    assert many.bytes_per_transition == one.bytes_per_transition


def test_a_mask_costs_one_byte_for_each_action():
    bare, masked = (ReplayBuffer(100, 2, 11, 3, device=CPU, mask_dim=mask_dim) for mask_dim in (0, 5))
    assert masked.bytes_per_transition == bare.bytes_per_transition + 5


def test_a_market_environment_offers_indexed_observations():
    assert isinstance(market_env(), IndexedObservations)


def generic_buffer(capacity=6, n_envs=2, **settings):
    return ReplayBuffer(capacity, n_envs, 2, 1, device=CPU, **settings)


def add_numbered(replay, number, *, terminated=False, truncated=False):
    """Store a vector step whose every value tells its number."""
    n = replay.n_envs
    replay.add(
        torch.full((n, 2), float(number)),
        torch.full((n, 1), number + 0.25),
        torch.full((n,), number + 0.5),
        torch.full((n, 2), number + 1.0),
        torch.full((n,), terminated),
        truncated=torch.full((n,), truncated),
        next_mask=torch.arange(replay.mask_dim).expand(n, -1) < number if replay.mask_dim else None,
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


@pytest.mark.parametrize(
    ("terminated", "truncated", "end"),
    [(False, False, 0.0), (True, False, 1.0), (False, True, -1.0), (True, True, 1.0)],
)
def test_the_last_column_tells_how_a_transition_ended(terminated, truncated, end):
    replay = generic_buffer()
    add_numbered(replay, 1, terminated=terminated, truncated=truncated)
    assert replay.rows[:2, -1].tolist() == [end] * 2
    assert everything(replay).terminated.tolist() == [max(end, 0.0)] * 2


def test_a_memory_without_options_gives_nothing_but_the_transition():
    replay = generic_buffer()
    add_numbered(replay, 1)
    batch = replay.sample(4, torch.Generator().manual_seed(0))
    assert (batch.discount, batch.weight, batch.index, batch.next_mask) == (None, None, None, None)


def test_the_allowed_actions_come_back_with_their_transition():
    replay = generic_buffer(mask_dim=3)
    for number in range(5):  # Wraps round.
        add_numbered(replay, number)
    batch = everything(replay)
    assert batch.next_mask.dtype == torch.bool
    assert torch.equal(batch.next_mask, torch.arange(3) < batch.observation[:, :1])


@pytest.mark.parametrize(("mask_dim", "mask"), [(3, None), (0, torch.ones((2, 3), dtype=torch.bool))])
def test_a_mask_that_is_missing_or_not_stored_is_refused(mask_dim, mask):
    replay = generic_buffer(mask_dim=mask_dim)
    keys, column, no = torch.zeros((2, 2)), torch.zeros((2, 1)), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="next_mask"):
        replay.add(keys, column, column[:, 0], keys, no, truncated=no, next_mask=mask)
    assert replay.size == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"n_steps": 0},
        {"mask_dim": -1},
        {"gamma": 1.1},
        {"gamma": float("nan")},
        {"priority_exponent": -0.1},
        {"priority_epsilon": 0.0},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        generic_buffer(**setting)


@dataclasses.dataclass
class Log:
    """Everything that was added to a memory; the first axes of each are (n_rows, n_envs)."""

    observation: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    next_observation: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    next_mask: torch.Tensor


def add_random(replay, n_rows, seed):
    """Fill a memory with numbers in which episodes end often, and return them all."""
    rng = np.random.default_rng(seed)
    shape = (n_rows, replay.n_envs)

    def normal(*more):
        return torch.from_numpy(rng.standard_normal((*shape, *more), dtype=np.float32))

    end = torch.from_numpy(rng.random(shape))
    log = Log(
        observation=normal(replay.key_dim),
        action=normal(replay.action_dim),
        reward=normal(),
        next_observation=normal(replay.key_dim),
        terminated=end < 0.15,
        truncated=end > 0.85,
        next_mask=torch.from_numpy(rng.random((*shape, replay.mask_dim)) < 0.5),
    )
    for t in range(n_rows):
        add_row(replay, log, t)
    return log


def add_row(replay, log, t):
    replay.add(
        log.observation[t],
        log.action[t],
        log.reward[t],
        log.next_observation[t],
        log.terminated[t],
        truncated=log.truncated[t],
        next_mask=log.next_mask[t] if replay.mask_dim else None,
    )


def stored_times(replay, n_rows):
    """When each row of the memory was added; in storage order, for one account."""
    length = replay.capacity // replay.n_envs
    return [max(t for t in range(n_rows) if t % length == place) for place in range(min(n_rows, length))]


def last_time_and_sum(log, t, account, n_steps, gamma):
    """Follow one account step by step; return the last time used and the discounted sum."""
    total, n_rows = 0.0, len(log.reward)
    for k in range(n_steps):
        total += gamma**k * float(log.reward[t + k, account])
        if log.terminated[t + k, account] or log.truncated[t + k, account] or t + k == n_rows - 1:
            break
    return t + k, total


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    n_envs=st.integers(1, 3),
    length=st.integers(1, 7),
    n_rows=st.integers(1, 16),
    n_steps=st.integers(2, 9),
    seed=st.integers(0, 2**32),
)
def test_returns_over_several_steps_match_a_plain_loop(n_envs, length, n_rows, n_steps, seed):
    replay = ReplayBuffer(n_envs * length, n_envs, 2, 1, device=CPU, n_steps=n_steps, gamma=0.9, mask_dim=2)
    log = add_random(replay, n_rows, seed)
    batch = everything(replay)
    for place, t in enumerate(stored_times(replay, n_rows)):
        for account in range(n_envs):
            row = place * n_envs + account
            last, total = last_time_and_sum(log, t, account, n_steps, 0.9)
            assert torch.equal(batch.observation[row], log.observation[t, account])
            assert torch.equal(batch.action[row], log.action[t, account])
            assert torch.equal(batch.next_observation[row], log.next_observation[last, account])
            assert torch.equal(batch.next_mask[row], log.next_mask[last, account])
            assert batch.terminated[row] == float(log.terminated[last, account])
            # Sums of up to nine float32 numbers of size one.
            assert batch.reward[row].item() == pytest.approx(total, abs=2e-6)
            assert batch.discount[row].item() == pytest.approx(0.9 ** (last - t + 1), rel=1e-6)


@pytest.mark.parametrize("n_rows", [5, 12, 31], ids=["partly filled", "just full", "wrapped"])
@pytest.mark.parametrize("n_steps", [2, 3, 20])
def test_returns_over_several_steps_give_the_targets_of_a_rollout(n_rows, n_steps):
    replay = ReplayBuffer(36, 3, 2, 1, device=CPU, n_steps=n_steps, gamma=0.8)
    log = add_random(replay, n_rows, seed=n_rows)
    batch = everything(replay)
    ours = batch.reward + batch.discount * (1.0 - batch.terminated) * batch.next_observation.sum(1)
    newest = slice(max(n_rows - 12, 0), n_rows)
    theirs = n_step_targets(
        log.reward[newest],
        log.terminated[newest],
        log.truncated[newest],
        log.next_observation[newest].sum(2),
        gamma=0.8,
        n_steps=n_steps,
    )
    in_storage_order = theirs[torch.tensor(stored_times(replay, n_rows)) - newest.start].flatten()
    # Two orders of adding up to 21 float32 numbers of size one.
    torch.testing.assert_close(ours, in_storage_order, rtol=0.0, atol=4e-6)


@pytest.mark.parametrize("n_rows", [5, 31], ids=["partly filled", "wrapped"])
def test_returns_over_several_steps_match_stable_baselines3(n_rows):
    ours = ReplayBuffer(36, 3, 2, 1, device=CPU, n_steps=4, gamma=0.8)
    log = add_random(ours, n_rows, seed=1)
    mine = everything(ours)
    space = Box(-np.inf, np.inf, (2,)), Box(-1.0, 1.0, (1,))
    for account in range(3):  # Theirs draws accounts at random: one memory for each.
        theirs = NStepReplayBuffer(12, *space, device="cpu", n_steps=4, gamma=0.8)
        for t in range(n_rows):
            row = (log.observation, log.next_observation, log.action, log.reward)
            done = log.terminated[t, account] | log.truncated[t, account]
            infos = [{"TimeLimit.truncated": bool(log.truncated[t, account])}]
            theirs.add(*(values[t, account][None].numpy() for values in row), done[None].numpy(), infos)
        batch = theirs._get_samples(np.arange(min(n_rows, 12)))
        rows = slice(account, None, 3)
        assert torch.equal(mine.next_observation[rows], batch.next_observations)
        assert torch.equal(mine.terminated[rows], batch.dones[:, 0])
        torch.testing.assert_close(mine.reward[rows], batch.rewards[:, 0], rtol=0.0, atol=2e-6)
        torch.testing.assert_close(mine.discount[rows], batch.discounts[:, 0])


@pytest.mark.parametrize("n_rows", [8, 14], ids=["partly filled", "wrapped"])
def test_the_market_memory_rebuilds_the_observation_several_steps_on(n_rows):
    # Episodes of at most seven bars, some of them stopped out before.
    env = market_env(max_drawdown=0.005)
    replay = ReplayBuffer.for_env(env, 31, 1, device=CPU, n_steps=3, gamma=0.9)
    seen = walk(env, replay, n_rows)
    batch = everything(replay)
    assert any(transition[4] for transition in seen)
    for place, t in enumerate(stored_times(replay, n_rows)):
        for account in range(3):
            row, last, total = place * 3 + account, 3 * t + account, float(seen[3 * t + account][2])
            while not seen[last][5] and last + 3 < len(seen) and (last - account) // 3 < t + 2:
                last += 3
                total += 0.9 ** ((last - account) // 3 - t) * float(seen[last][2])
            assert torch.equal(batch.observation[row], seen[3 * t + account][0])
            assert torch.equal(batch.next_observation[row], seen[last][3])
            assert batch.terminated[row] == float(seen[last][4])
            # float32 sums of three log returns of a few per cent.
            assert batch.reward[row].item() == pytest.approx(total, abs=1e-7)


def test_no_return_reaches_across_a_cut():
    replay = generic_buffer(capacity=20, n_envs=1, n_steps=5)
    for number in range(3):
        add_numbered(replay, number)
    replay.cut()
    add_numbered(replay, 9)
    assert everything(replay).next_observation[:, 0].tolist() == [3.0, 3.0, 3.0, 10.0]
    assert everything(replay).reward.tolist() == [0.5 + 1.5 + 2.5, 1.5 + 2.5, 2.5, 9.5]


@pytest.mark.parametrize("n_rows", [0, 2, 3, 4], ids=["empty", "partly filled", "full", "wrapped"])
def test_a_cut_leaves_terminations_and_older_transitions_as_they_are(n_rows):
    replay = generic_buffer(capacity=6)
    log = add_random(replay, n_rows, seed=2)
    if n_rows:
        log.terminated[-1] = torch.tensor([True, False])
        log.truncated[-1] = False
        add_row(replay, log, -1)
    before = replay.rows.clone()
    newest = (replay.position - 1) % 6
    replay.cut()
    before[newest, -1] = -1.0 if n_rows else 0.0
    assert torch.equal(replay.rows, before)


def test_rewards_are_those_stored_so_far():
    replay = generic_buffer(capacity=20)
    add_numbered(replay, 1)
    add_numbered(replay, 2)
    assert replay.rewards().tolist() == [1.5, 1.5, 2.5, 2.5]


@pytest.mark.parametrize("mask_dim", [0, 3])
@pytest.mark.parametrize("n_steps", [2, 5], ids=["half full", "wrapped"])
def test_a_saved_memory_goes_on_as_the_original(n_steps, mask_dim):
    original, restored = generic_buffer(mask_dim=mask_dim), generic_buffer(mask_dim=mask_dim)
    for number in range(n_steps):
        add_numbered(original, number)
    restored.load_state_dict(original.state_dict())
    add_numbered(original, 9)
    add_numbered(restored, 9)
    assert (restored.size, restored.position) == (original.size, original.position)
    assert torch.equal(restored.rows, original.rows)
    assert torch.equal(restored.next_masks, original.next_masks)


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
        ReplayBuffer(6, 2, 2, 1, device=CPU, mask_dim=3),
        ReplayBuffer(6, 2, 2, 1, device=CPU, prioritized=True),
    ],
    ids=["other observation", "other action", "smaller capacity", "other number of accounts", "masks", "priorities"],
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
        {"rows": torch.zeros((6, 7)).to_sparse()},
        {"rows": torch.zeros((6, 7), device="meta")},
        {"rows": torch.full((6, 7), 0.5)},
        {"rows": torch.full((6, 7), 2.0)},
        {"bars": torch.zeros(6, dtype=torch.int32)},
        {"next_masks": torch.zeros((6, 3), dtype=torch.bool)},
        {"priorities": torch.ones(6, dtype=torch.float64)},
        {"size": None},
        {"position": "2"},
    ],
    ids=lambda change: f"{next(iter(change))} {str(next(iter(change.values())))[:12]}",
)
def test_a_damaged_memory_is_refused(change):
    with pytest.raises(ValueError, match="replay memory"):
        generic_buffer().load_state_dict(saved() | change)


@pytest.mark.parametrize(
    "mask", [None, torch.zeros((6, 3)), torch.zeros((6, 2), dtype=torch.bool), torch.zeros((4, 3), dtype=torch.bool)]
)
def test_damaged_masks_are_refused(mask):
    original = generic_buffer(mask_dim=3)
    add_random(original, 5, seed=0)
    with pytest.raises(ValueError, match="replay memory"):
        generic_buffer(mask_dim=3).load_state_dict(original.state_dict() | {"next_masks": mask})


def test_a_loaded_memory_can_be_added_to_even_where_the_file_asks_for_gradients():
    state = saved()
    replay = generic_buffer()
    replay.load_state_dict(state | {"rows": state["rows"].requires_grad_()})
    add_numbered(replay, 9)
    assert not replay.rows.requires_grad


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
