"""Agents against optima that can be computed and public tasks: short forms by default, full promises with `-m learning`."""

from dataclasses import replace
from statistics import median

import pytest
import torch

from ml.tradingbots.components import SACConfig, TradingEnvConfig, TradingEnvironment, create_rl_agent
from ml.tradingbots.data.synthetic import random_walk
from ml.tradingbots.training import RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.reference import REFERENCE_TASKS, reference_score
from ml.tradingbots.training.regret import regret_of

SEEDS = range(5)
# Promised median share of the optimum after 400,000 timesteps.
PROMISED = {"ppo": 0.95, "a2c": 0.95, "sac": 0.92, "td3": 0.92, "dqn": 0.92, "ddpg": 0.90}


@pytest.fixture(autouse=True)
def _one_thread():
    # Training sets it for itself, judging does not: with two threads on busy cores it takes twenty times as long.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


# Seeds 0 to 4 gave, in this order of agents, medians of 0.985, 0.994, 0.985, 0.991, 0.988 and 0.871. The worst single seeds had
# 0.968, 0.982, 0.967, 0.988, -0.018 and 0.852: DDPG now and then learns nothing, which a median of three forgives once.
@pytest.mark.parametrize(
    ("agent_type", "n_seeds", "bound"),
    [("ppo", 3, 0.9), ("a2c", 3, 0.9), ("dqn", 3, 0.9), ("td3", 3, 0.9), ("ddpg", 3, 0.9), ("sac", 2, 0.8)],
)
def test_agent_soon_earns_most_of_the_optimum_of_an_autoregressive_market(agent_type, n_seeds, bound):
    found = [regret_of(agent_type, "ar1", seed=seed, total_timesteps=32_000).ratio for seed in range(n_seeds)]
    assert median(found) > bound


def test_sac_learns_to_hold_what_always_rises():
    prices = random_walk(2_000, volatility=0.002, drift=0.002, seed=0).prices
    env = TradingEnvironment(prices, TradingEnvConfig(window_size=2, commission=0.001, episode_length=100))
    config = SACConfig(hidden_dim=32, batch_size=256, learning_rate=3e-3, gamma=0.9, alpha=0.1, target_entropy=-3.0)
    exposures = []
    for seed in range(2):
        agent = create_rl_agent("sac", env.observation_space_dim, 1, config, seed=seed)
        train_rl_agent(agent, env, RLTrainingConfig(total_timesteps=24_000, n_envs=32, progress=False, seed=seed))
        exposures.append(float(evaluate_agent(agent, env, n_bootstrap=0).agent.weights[1:].mean()))
    assert median(exposures) > 0.9


def test_ppo_soon_balances_the_pole_for_a_while():
    # A fifth of the full budget, and the step size falls to 0 as fast. Seeds 0 to 4 gave 176, 333, 255, 339 and 379; a policy
    # that draws at random lasts about 22 steps.
    task = replace(REFERENCE_TASKS["CartPole-v1 ppo"], total_timesteps=20_000)
    assert median(reference_score(task, seed=seed).mean for seed in range(3)) > 120.0


@pytest.mark.learning
@pytest.mark.parametrize("case", ["ar1", "ou"])
@pytest.mark.parametrize("agent_type", PROMISED)
def test_agent_reaches_the_computed_optimum_on_unseen_bars(agent_type, case):
    found = [regret_of(agent_type, case, seed=seed) for seed in SEEDS]
    assert median(result.ratio for result in found) >= PROMISED[agent_type]
    assert max(result.cpu_seconds for result in found) < 180.0


@pytest.mark.learning
def test_sac_stays_flat_when_costs_exceed_the_edge():
    found = [regret_of("sac", "costs above the edge", seed=seed) for seed in SEEDS]
    # A policy of the last sign would hold 1, turn over 1 a bar and pay 50 basis points for each.
    assert median(result.exposure for result in found) < 0.25
    assert median(result.turnover for result in found) < 0.1


@pytest.mark.learning
def test_sac_claims_nothing_on_a_random_walk():
    found = [regret_of("sac", "random walk", seed=seed) for seed in SEEDS]
    for result in found:
        assert result.gain < 2.0 * result.standard_error  # Nothing to be had, nothing claimed.
        assert result.gain > -0.0001  # And little spent on looking for it: a basis point a bar.


# One seed each, the quick ones: the whole table, five seeds and all tasks, is `make reference`.
@pytest.mark.learning
@pytest.mark.parametrize("name", ["CartPole-v1 ppo", "Pendulum-v1 ppo", "Pendulum-v1 td3", "Pendulum-v1 ddpg"])
def test_agent_scores_what_a_public_task_requires(name):
    task = REFERENCE_TASKS[name]
    assert reference_score(task, seed=0).mean >= task.required
