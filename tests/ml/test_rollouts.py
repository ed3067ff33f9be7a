"""A rollout keeps the steps of every account in order, and rewards are scaled by the deviation of their discounted sum."""

import numpy as np
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.normalization import RunningMeanStd
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.rollouts import ReturnScaler, RolloutBuffer
from ml.tradingbots.components.vector_adapter import as_vector_env
from ml.tradingbots.data.synthetic import autoregressive

CPU = torch.device("cpu")
N_STEPS, N_ENVS = 9, 3


def market(n_envs=N_ENVS, **settings):
    """Accounts whose episodes last four bars, so that a rollout crosses their ends."""
    config = TradingEnvConfig(**{"window_size": 5, "episode_length": 4} | settings)
    return TradingEnvironment(autoregressive(60, seed=1).prices, config).vectorize(n_envs, seed=3, random_start=True)


def walked(env, buffer, n_steps=N_STEPS, seed=0):
    """Fill a buffer by random actions; returns what was seen, as the environment itself gave it."""
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset(seed=5)
    seen = {name: [] for name in ("observation", "action", "reward", "terminated", "truncated", "final")}
    for _ in range(n_steps):
        action = torch.rand((env.num_envs, 1), generator=generator) * 2.0 - 1.0
        key, bar = observation, None
        if buffer.source is not None:
            key, bar = env.account_features(), env.bar
        after, reward, terminated, truncated, infos = env.step(action)
        final = infos.get("final_obs", after)
        next_key = infos["next_account"] if buffer.source is not None else final
        buffer.add(
            key=key,
            bar=bar,
            action=action,
            mask=None,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_key=next_key,
        )
        for name, value in zip(seen, (observation, action, reward, terminated, truncated, final), strict=True):
            seen[name].append(value.clone())
        observation = after
    return {name: torch.stack(values) for name, values in seen.items()}, observation


def buffer_of(env, n_steps=N_STEPS, mask_dim=0):
    return RolloutBuffer(env, n_steps, 1, mask_dim=mask_dim, device=CPU)


# --- What is kept


def test_a_rollout_of_a_market_gives_back_what_was_seen():
    env = market()
    buffer = buffer_of(env)
    seen, last = walked(env, buffer)
    rollout = buffer.rollout(last)
    assert buffer.source is env
    assert seen["truncated"].sum() == 6  # Two ends of each account.
    for name in ("observation", "action", "reward", "terminated", "truncated"):
        assert torch.equal(getattr(rollout, name), seen[name]), name
    assert torch.equal(rollout.next_observation, last)
    assert rollout.mask is None


def test_a_rollout_of_another_environment_gives_back_what_was_seen():
    env = as_vector_env("Pendulum-v1", n_envs=N_ENVS)
    buffer = buffer_of(env)
    seen, last = walked(env, buffer)
    rollout = buffer.rollout(last)
    assert buffer.source is None
    for name in ("observation", "action", "reward", "terminated", "truncated"):
        assert torch.equal(getattr(rollout, name), seen[name]), name


def test_the_last_observation_of_an_episode_is_kept_and_not_the_first_of_the_next():
    env = market()
    buffer = buffer_of(env)
    seen, _ = walked(env, buffer)
    rows = seen["truncated"].flatten().nonzero().squeeze(1)
    finals = buffer.final_observations(rows)
    assert torch.equal(finals, seen["final"].flatten(0, 1)[rows])
    following = torch.cat([seen["observation"][1:], seen["observation"][:1]]).flatten(0, 1)[rows]
    assert not torch.equal(finals, following)


def test_what_every_step_led_to_can_be_asked_for_at_once():
    env = market()
    buffer = buffer_of(env)
    seen, _ = walked(env, buffer)
    assert torch.equal(buffer.final_observations(None), seen["final"].flatten(0, 1))


def test_a_market_is_kept_as_positions_and_not_as_windows():
    buffer = buffer_of(market(window_size=30))
    kept = sum(tensor.nbytes for tensor in buffer.tensors.values())
    # Two times three account features, a bar, an action, a reward and two flags; a window alone is 120 bytes.
    assert kept == N_STEPS * N_ENVS * (2 * 3 * 4 + 8 + 4 + 4 + 2)


def test_masks_are_kept_where_they_have_a_length():
    env = market(action_type="discrete")
    buffer = buffer_of(env, n_steps=2, mask_dim=3)
    _, infos = env.reset()
    masks = []
    for step in range(2):
        mask = infos["action_mask"].clone()
        mask[:, step] = False
        masks.append(mask)
        buffer.add(mask=mask, bar=env.bar, key=env.account_features())
        infos = env.step(torch.ones(N_ENVS, dtype=torch.int64))[4]
    assert torch.equal(buffer.rollout(torch.zeros(N_ENVS, 8)).mask, torch.stack(masks))


def test_what_is_not_given_is_left_as_it_was():
    buffer = buffer_of(market())
    buffer.add(reward=torch.tensor([1.0, 2.0, 3.0]), action=None)
    assert buffer.tensors["reward"][0].tolist() == [1.0, 2.0, 3.0]
    assert not buffer.tensors["action"].any()
    assert buffer.position == 1


def test_a_rollout_is_full_after_its_steps():
    env = market()
    buffer = buffer_of(env)
    walked(env, buffer, N_STEPS - 1)
    assert not buffer.is_full
    buffer.add(reward=torch.zeros(N_ENVS))
    assert buffer.is_full


def test_a_second_rollout_takes_the_place_of_the_first():
    env = market()
    buffer = buffer_of(env)
    walked(env, buffer)
    buffer.position = 0
    seen, last = walked(env, buffer, seed=1)
    assert torch.equal(buffer.rollout(last).action, seen["action"])


def test_what_the_environment_does_later_does_not_change_what_is_kept():
    env = market()
    buffer = buffer_of(env, n_steps=1)
    seen, last = walked(env, buffer, 1)
    for _ in range(5):
        env.step(torch.ones(N_ENVS, 1))
    rollout = buffer.rollout(last)
    for name in ("observation", "action", "reward"):
        assert torch.equal(getattr(rollout, name), seen[name]), name


# --- A rollout that is cut


@pytest.mark.parametrize("position", [0, 1, N_STEPS - 1])
def test_a_restored_rollout_goes_on_as_the_saved_one(position):
    env = market()
    buffer, restored = buffer_of(env), buffer_of(env)
    if position:
        walked(env, buffer, position)
    else:
        env.reset()
    restored.load_state_dict(buffer.state_dict())
    assert restored.position == position
    for one in (buffer, restored):
        for _ in range(N_STEPS - position):
            one.add(reward=torch.ones(N_ENVS), action=torch.full((N_ENVS, 1), 0.5), bar=env.bar)
    assert restored.is_full
    for name, tensor in buffer.tensors.items():
        assert torch.equal(restored.tensors[name], tensor), name


def test_a_saved_rollout_does_not_change_any_more():
    env = market()
    buffer = buffer_of(env)
    walked(env, buffer, 2)
    state = buffer.state_dict()
    buffer.add(reward=torch.full((N_ENVS,), 7.0))
    assert not state["tensors"]["reward"][2].any()
    restored = buffer_of(env)
    restored.load_state_dict(state)
    restored.add(reward=torch.full((N_ENVS,), 8.0))
    assert not state["tensors"]["reward"][2].any()


def test_a_rollout_of_other_settings_is_refused():
    env = market()
    state = buffer_of(env).state_dict()
    others = [
        buffer_of(env, n_steps=N_STEPS + 1),
        buffer_of(env, mask_dim=3),
        buffer_of(market(n_envs=2)),
        buffer_of(market(execution_delay=1)),
        buffer_of(as_vector_env("Pendulum-v1", n_envs=N_ENVS)),
    ]
    for other in others:
        with pytest.raises(ValueError, match="rollout"):
            other.load_state_dict(state)
        assert other.position == 0


@pytest.mark.parametrize("position", [-1, N_STEPS, 10**30, True, 1.0, None])
def test_a_position_that_cannot_be_is_refused(position):
    # A full rollout is learned from and begun anew before anything can be saved.
    buffer = buffer_of(market())
    with pytest.raises(ValueError, match="position"):
        buffer.load_state_dict(buffer.state_dict() | {"position": position})


@pytest.mark.parametrize("bar", [-1, 59, 10**9])
def test_a_bar_that_cannot_be_is_refused(bar):
    env = market()
    buffer = buffer_of(env)
    walked(env, buffer, 4)
    state = buffer.state_dict()
    state["tensors"]["bar"][0, 0] = bar
    with pytest.raises(ValueError, match="bars that the environment does not have"):
        buffer.load_state_dict(state)


# --- Scaling rewards


def plain_scales(reward, ended, gamma, n_rollouts):
    """What rewards are multiplied by after each rollout, by plain loops over accounts."""
    n_steps, n_envs = reward.shape
    totals, sums, scales = np.zeros(n_envs), [], []
    for step in range(n_steps):
        for account in range(n_envs):
            totals[account] = gamma * totals[account] + reward[step, account]
            sums.append(totals[account])
            if ended[step, account]:
                totals[account] = 0.0
        if (step + 1) % (n_steps // n_rollouts) == 0:
            scales.append(1.0 / np.std(sums))
    return scales


def rewards(n_steps=40, seed=0):
    generator = np.random.default_rng(seed)
    return 0.3 + generator.standard_normal((n_steps, N_ENVS)), generator.random((n_steps, N_ENVS)) < 0.1


@pytest.mark.parametrize("n_rollouts", [1, 4, 40])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_rewards_are_scaled_by_the_deviation_of_their_discounted_sums_so_far(gamma, n_rollouts):
    reward, ended = rewards()
    scaler = ReturnScaler(N_ENVS, gamma, RunningMeanStd(), CPU)
    found = [
        scaler.update(torch.from_numpy(rows).float(), torch.from_numpy(over))
        for rows, over in zip(np.split(reward, n_rollouts), np.split(ended, n_rollouts), strict=True)
    ]
    # Sums are kept in float32.
    np.testing.assert_allclose(found, plain_scales(reward, ended, gamma, n_rollouts), rtol=1e-5)


def test_the_sum_starts_over_where_an_episode_ends_after_its_last_reward():
    scaler = ReturnScaler(2, 0.5, RunningMeanStd(), CPU)
    ended = torch.tensor([[False, True], [False, False]])
    scaler.update(torch.tensor([[4.0, 4.0], [1.0, 1.0]]), ended)
    assert scaler.total.tolist() == [3.0, 1.0]


def test_rewards_that_never_differ_are_left_alone():
    scaler = ReturnScaler(2, 0.0, RunningMeanStd(), CPU)
    assert scaler.update(torch.full((5, 2), 3.0), torch.zeros(5, 2, dtype=torch.bool)) == 1.0


def test_scaling_goes_on_from_statistics_of_an_earlier_run():
    reward, ended = (torch.from_numpy(values) for values in rewards())
    whole = ReturnScaler(N_ENVS, 0.9, RunningMeanStd(), CPU)
    whole.update(reward[:20], ended[:20])
    statistics = RunningMeanStd()
    statistics.load_state_dict(whole.statistics.state_dict())
    again = ReturnScaler(N_ENVS, 0.9, statistics, CPU)
    again.total = whole.total.clone()
    assert again.update(reward[20:], ended[20:]) == whole.update(reward[20:], ended[20:])


def test_scaling_changes_no_sign_and_not_the_rewards_themselves():
    reward, ended = (torch.from_numpy(values) for values in rewards())
    before = reward.clone()
    scale = ReturnScaler(N_ENVS, 0.99, RunningMeanStd(), CPU).update(reward, ended)
    assert scale > 0.0
    assert torch.equal(reward, before)
