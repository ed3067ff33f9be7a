"""One pass over all prices, and baselines that pay what the agent pays."""

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment
from ml.tradingbots.training import evaluate_agent


class Always:
    """An agent that always asks for the same."""

    def __init__(self, *weights):
        self.action = np.array(weights, dtype=np.float32)

    def select_action(self, observation, deterministic=False):
        return self.action


def prices(close):
    return pd.DataFrame({"close": close}, index=pd.date_range("2020-01-01", periods=len(close), tz="UTC"))


@pytest.fixture
def falling():
    """A market that loses a quarter, then more than recovers."""
    return prices(np.concatenate([np.linspace(100.0, 75.0, 60), np.linspace(76.0, 150.0, 90)]))


def test_the_pass_covers_every_bar_whatever_training_episodes_look_like(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, episode_length=5, random_start=True))
    assert evaluate_agent(Always(1.0), env, n_bootstrap=0).agent.n_steps == len(falling) - 3


def test_buy_and_hold_pays_for_its_one_purchase(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, commission=0.01))
    held = evaluate_agent(Always(0.0), env, n_bootstrap=0).baselines["buy_and_hold"]
    first, last = falling["close"].iloc[2], falling["close"].iloc[-1]
    assert held.metrics["final_equity"] == pytest.approx(100_000 / 1.01 * last / first, rel=1e-12)
    assert held.metrics["n_fills"] == 1


def test_a_portfolio_is_bought_in_equal_weights_and_left_to_drift():
    closes = pd.DataFrame(
        {"A": np.linspace(100.0, 200.0, 50), "B": np.full(50, 100.0)},
        index=pd.date_range("2020-01-01", periods=50, tz="UTC"),
    )
    env = TradingEnvironment(closes, TradingEnvConfig(window_size=2, commission=0.0))
    held = evaluate_agent(Always(0.0, 0.0), env, n_bootstrap=0).baselines["buy_and_hold"]
    np.testing.assert_allclose(held.target_weights[0], [0.5, 0.5])
    assert held.weights[-1][0] > 0.6
    assert held.turnover[1:].max() == 0.0


def test_baselines_are_not_stopped_out_by_the_agents_own_rule(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, commission=0.0, max_drawdown=0.2))
    result = evaluate_agent(Always(0.0), env, n_bootstrap=0)
    assert result.baselines["buy_and_hold"].metrics["total_return"] > 0.4
    assert "did not beat" in result.verdict()


def test_a_stopped_agent_holds_cash_to_the_end_and_the_diagnosis_says_so(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, commission=0.0, max_drawdown=0.2))
    result = evaluate_agent(Always(1.0), env, n_bootstrap=0)
    assert result.agent.n_steps == result.baselines["flat"].n_steps
    assert result.agent.weights[-1] == 0.0
    assert "stopped out on 2020-0" in result.diagnosis()[0]
