"""Agents against optima that can be computed and public tasks: short forms by default, full promises with `-m learning`."""

from dataclasses import replace
from statistics import median

import pytest

from ml.tradingbots.components import SACConfig, TradingEnvConfig, TradingEnvironment, create_rl_agent
from ml.tradingbots.data.synthetic import random_walk
from ml.tradingbots.training import RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.reference import REFERENCE_TASKS, reference_score
from ml.tradingbots.training.regret import regret_of

SEEDS = range(5)
SHORT = {"ppo": (32_000, 0.0)}
# Median share of the optimum after 400,000 timesteps.
PROMISED = {"ppo": 0.95, "a2c": 0.95, "sac": 0.92, "td3": 0.92, "dqn": 0.92, "ddpg": 0.90}


@pytest.mark.parametrize("agent_type", SHORT)
def test_agent_soon_earns_most_of_the_optimum_of_an_autoregressive_market(agent_type):
    total_timesteps, bound = SHORT[agent_type]
    found = [regret_of(agent_type, "ar1", seed=seed, total_timesteps=total_timesteps).ratio for seed in range(3)]
    assert median(found) > bound
