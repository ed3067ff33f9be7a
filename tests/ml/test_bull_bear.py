"""Agents that adapt to bull, sideways and bear markets: a short form by default, five seeds with `-m learning`."""

from statistics import mean, median

import pytest
import torch

from ml.tradingbots.training.bull_bear_optima import measure_bull_bear


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


# A Sharpe ratio of 40,000 bars, 159 years, has a standard error of 0.08; the agent and the yardstick share most of it.
def test_an_agent_that_adapts_soon_earns_most_of_what_can_be_known_of_bull_and_bear():
    short = {"total_timesteps": 60_000, "n_train_bars": 20_000, "n_test_bars": 40_000}
    found = [measure_bull_bear("ppo", "both", seed=seed, **short) for seed in range(2)]
    assert mean(result.share for result in found) > 0.6


@pytest.mark.learning
@pytest.mark.parametrize("agent_type", ["sac", "ppo"])
def test_an_agent_that_adapts_earns_seven_tenths_of_what_can_be_known_of_bull_and_bear(agent_type):
    both = [measure_bull_bear(agent_type, "both", seed=seed) for seed in range(5)]
    alone = [measure_bull_bear(agent_type, "generalist", seed=seed) for seed in range(5)]
    assert min(result.share for result in both) >= 0.7
    assert median(result.share for result in both) > median(result.share for result in alone)
