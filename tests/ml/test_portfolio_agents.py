"""The agents of docs/reports/portfolio-agents.md: what they learn from, what they are judged on, and what they pay."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("portfolio_agents")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("agent_type", ["ppo", "a2c", "sac", "td3", "ddpg"])
def test_an_agent_learns_before_the_test_and_pays_for_what_it_trades_in_it(benchmark, agent_type):
    start, end = "2015-01-01", "2015-04-01"
    agent = benchmark.train(agent_type, 100, 0.9, 256, start)
    assert agent.num_timesteps >= 256
    account = benchmark.walk(agent, start, end, agent_type)
    # A decision at the first close of the period; nothing of it was learned from.
    learned_from = benchmark.environment(None, start).market.bars.timestamps
    assert learned_from[-1] < pd.Timestamp(start, tz="UTC") <= account.timestamps[0]
    assert account.timestamps[-1] < pd.Timestamp(end, tz="UTC")
    held = account.weights
    assert held.min() >= -1e-9
    assert held.sum(axis=1).max() <= 1.0 + 1e-9
    # Ten basis points of what is traded, in units of equity before the trade.
    np.testing.assert_allclose(account.costs, 0.001 * account.turnover * account.equity_curve[:-1], rtol=1e-3)
    assert account.costs.sum() > 0.0


@pytest.mark.learning
def test_a_kept_run_is_what_running_it_again_gives(benchmark):
    kept = json.loads((BENCHMARKS / "results" / "portfolio_agents.json").read_text())["rows"]
    discount, total_timesteps = benchmark.CHOSEN["a2c"]
    (row,) = [row for row in kept if row["key"] == f"a2c, {total_timesteps} timesteps, seed 0"]
    agent = benchmark.train("a2c", 0, discount, total_timesteps, benchmark.TEST_START)
    account = benchmark.walk(agent, benchmark.TEST_START, None, "a2c")
    # Another processor rounds otherwise, which training magnifies.
    assert account.metrics["sharpe_ratio"] == pytest.approx(row["sharpe_ratio"], abs=0.05)
