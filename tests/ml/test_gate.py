"""Agents that adapt to regimes against the best gate there is: a short form by default, five seeds with `-m learning`."""

from statistics import mean, median

import pytest
import torch

from ml.tradingbots.training.gate_optima import ONE_REGIME, measure_gate

SEEDS = range(5)


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


# A Sharpe ratio of 10,000 bars has a standard error of 0.16, or 6% of the gate's 2.76; the agent's and the gate's err together.
def test_an_agent_that_adapts_soon_earns_most_of_the_best_gate_and_one_that_does_not_earns_nothing():
    short = {"total_timesteps": 32_000, "n_bars": 10_000}
    both = [measure_gate("ppo", "both", seed=seed, **short) for seed in range(2)]
    alone = [measure_gate("ppo", "generalist", seed=seed, **short) for seed in range(2)]
    assert mean(result.share for result in both) > 0.8
    assert mean(result.share for result in alone) < 0.25
    # Probabilities of other bars are worth nothing.
    assert abs(mean(result.shuffled_sharpe_ratio for result in both)) < 0.4


@pytest.mark.learning
@pytest.mark.parametrize("agent_type", ["sac", "ppo", "dqn"])
def test_an_agent_that_adapts_earns_at_least_four_fifths_of_the_best_gate(agent_type):
    both = [measure_gate(agent_type, "both", seed=seed) for seed in SEEDS]
    alone = [measure_gate(agent_type, "generalist", seed=seed) for seed in SEEDS]
    assert min(result.share for result in both) >= 0.8
    assert median(result.share for result in alone) <= 0.25
    # Disjoint 95% intervals over seeds: all of one lie above all of the other.
    assert min(result.share for result in both) > max(result.share for result in alone)
    assert abs(median(result.shuffled_sharpe_ratio for result in both)) < 0.2
    lost = [measure_gate(agent_type, "trained on shuffled", seed=seed).sharpe_ratio for seed in SEEDS]
    assert abs(median(lost)) < 0.3


@pytest.mark.learning
@pytest.mark.parametrize("agent_type", ["sac", "ppo", "dqn"])
@pytest.mark.parametrize("variant", ["features only", "mixing only"])
def test_either_use_of_regimes_is_enough_here(agent_type, variant):
    assert median(measure_gate(agent_type, variant, seed=seed).share for seed in SEEDS) >= 0.8


@pytest.mark.learning
@pytest.mark.parametrize("agent_type", ["sac", "ppo", "dqn"])
def test_adapting_does_no_harm_where_there_is_one_regime(agent_type):
    shares = []
    for seed in SEEDS:
        both, alone = (
            measure_gate(agent_type, variant, seed=seed, phis=ONE_REGIME) for variant in ("both", "generalist")
        )
        shares.append(both.sharpe_ratio / alone.sharpe_ratio)
    assert median(shares) >= 0.95


@pytest.mark.learning
def test_the_better_regimes_are_known_the_more_is_earned():
    earned = [
        mean(measure_gate("ppo", "both", seed=seed, marker_distance=distance).sharpe_ratio for seed in SEEDS)
        for distance in (0.0, 0.5, 1.0)
    ]
    assert earned == sorted(earned)
