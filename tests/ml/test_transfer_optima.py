"""What transfer brings where the best policy is known: sooner where the source is right, no lasting harm where it is wrong."""

import statistics

import pytest
import torch

from ml.tradingbots.training.transfer_optima import TransferSize, transfer_outcomes

SMALL = TransferSize(
    n_source_bars=10_000,
    n_target_bars=2_000,
    n_test_bars=8_192,
    source_timesteps=30_000,
    target_timesteps=3_072,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_setting(outcomes):
    return {(outcome.source, outcome.setting): outcome for outcome in outcomes}


def test_ppo_keeps_its_policy_at_three_times_the_volatility_and_unlearns_the_opposite_one():
    # Seed 100, on which the recipe was chosen; the five reported seeds are the long test's.
    found = by_setting(transfer_outcomes("ppo", seed=100, size=SMALL))
    heads = found["same", "default (heads alone)"]
    assert heads.zero_shot >= 0.9
    assert heads.timesteps_to_optimum <= heads.scratch_timesteps_to_optimum / 3
    assert heads.frozen_unchanged
    wrong = found["opposite", "new heads"]
    assert found["opposite", "all layers"].zero_shot < -0.5
    assert wrong.timesteps_to_scratch <= 1.5 * wrong.scratch_timesteps_to_scratch
    # What is transferred unasked is thrown away here, and was not above.
    default = found["opposite", "default (thrown away)"]
    assert default.curve[0][1] != default.zero_shot
    assert heads.curve[0][1] == heads.zero_shot


@pytest.mark.learning
# What else mends each of them differs by agent; as a trainer is unless it is told otherwise, both are held to the bound.
@pytest.mark.parametrize(("agent", "mends"), [("ppo", "new heads"), ("sac", "all layers")])
def test_transfer_saves_time_and_does_no_lasting_harm_over_five_seeds(agent, mends):
    seeds = [by_setting(transfer_outcomes(agent, seed=seed)) for seed in range(5)]
    same = [found["same", "default (heads alone)"] for found in seeds]
    assert min(outcome.zero_shot for outcome in same) >= 0.9
    if agent == "sac":  # PPO trades at the limits of its range on either scale: what is lost there is within the noise.
        assert statistics.median(o.zero_shot_reset for o in same) < statistics.median(o.zero_shot for o in same)
    # A scratch that never came so far took longer than any number.
    ratios = [outcome.timesteps_to_optimum / outcome.scratch_timesteps_to_optimum for outcome in same]
    assert statistics.median(ratios) <= 1 / 3
    assert all(outcome.frozen_unchanged for outcome in same)
    for setting in ("default (thrown away)", mends):
        harmed = [found["opposite", setting] for found in seeds]
        assert statistics.median(o.timesteps_to_scratch / o.scratch_timesteps_to_scratch for o in harmed) <= 1.5, (
            setting
        )
