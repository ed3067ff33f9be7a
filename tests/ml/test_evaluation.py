"""One pass over all prices, and baselines that pay what the agent pays."""

import gymnasium
import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, create_rl_agent
from ml.tradingbots.training import evaluate_agent
from ml.tradingbots.training.evaluation import evaluate_episodes


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


@pytest.mark.parametrize(("agent_type", "acts"), [("sac", "continuous"), ("dqn", "discrete")])
def test_an_environment_of_the_other_kind_of_actions_is_refused_with_the_one_that_works(falling, agent_type, acts):
    other = {"continuous": "discrete", "discrete": "continuous"}[acts]
    right, wrong = (
        TradingEnvironment(falling, TradingEnvConfig(window_size=2, action_type=kind)) for kind in (acts, other)
    )
    agent = create_rl_agent(agent_type, right.observation_space_dim, right.action_space_dim)
    with pytest.raises(TypeError, match=rf"needs {acts} actions.*TradingEnvConfig\(action_type='{acts}'\)"):
        evaluate_agent(agent, wrong, n_bootstrap=0)
    assert evaluate_agent(agent, right, n_bootstrap=0).agent.n_steps == len(falling) - 3


def test_an_environment_with_another_number_of_choices_is_refused_with_the_argument_to_change(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, action_type="discrete"))
    with pytest.raises(ValueError, match="create it with action_dim=3"):
        evaluate_agent(create_rl_agent("dqn", env.observation_space_dim, 5), env, n_bootstrap=0)
    result = evaluate_agent(create_rl_agent("dqn", env.observation_space_dim, 3), env, n_bootstrap=0)
    assert result.agent.n_steps == len(falling) - 3


@pytest.mark.parametrize(
    ("agent_type", "action_dim", "wrong", "right"),
    [("sac", 1, "CartPole-v1", "Pendulum-v1"), ("dqn", 2, "Pendulum-v1", "CartPole-v1")],
)
def test_episodes_of_the_other_kind_of_actions_are_refused(agent_type, action_dim, wrong, right):
    kind = "continuous" if agent_type == "sac" else "discrete"
    for made in (wrong, gymnasium.make(wrong)):
        with pytest.raises(TypeError, match=f"agent '{agent_type}' needs {kind} actions"):
            evaluate_episodes(create_rl_agent(agent_type, 3, action_dim), made, n_episodes=1)
    (state_dim,) = gymnasium.make(right).observation_space.shape
    agent = create_rl_agent(agent_type, state_dim, action_dim)
    assert len(evaluate_episodes(agent, right, n_episodes=1)) == 1


def test_agents_that_are_not_ours_are_not_asked_what_they_are(falling):
    env = TradingEnvironment(falling, TradingEnvConfig(window_size=2, action_type="discrete"))

    class Buys:
        def select_action(self, observation, deterministic=False):
            return 1

    assert evaluate_agent(Buys(), env, n_bootstrap=0).agent.n_steps == len(falling) - 3
