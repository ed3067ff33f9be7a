"""The brief's own usage example, as printed but for a short `prices_df` and fewer episodes."""

import pytest

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment
from ml.tradingbots.data.synthetic import autoregressive


def test_the_briefs_usage_example_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prices_df = autoregressive(120, seed=0).prices
    observation, _ = TradingEnvironment(price_data=prices_df).reset()

    from ml.tradingbots.components import SACConfig, create_rl_agent
    from ml.tradingbots.training import (
        CallbackList,
        CheckpointCallback,
        EarlyStoppingRLCallback,
        RLTrainingConfig,
        TradingMetricsCallback,
        train_rl_agent,
    )

    # 1. Create the trading environment
    env_config = TradingEnvConfig(
        initial_balance=100_000,
        window_size=20,
        commission=0.001,
    )
    env = TradingEnvironment(price_data=prices_df, config=env_config)

    # 2. Create an RL agent
    agent_config = SACConfig(hidden_dim=256, learning_rate=3e-4)
    agent = create_rl_agent(
        agent_type="sac",
        state_dim=env.observation_space_dim,
        action_dim=env.action_space_dim,
        config=agent_config,
    )

    # 3. Set up training callbacks
    callbacks = CallbackList(
        [
            CheckpointCallback(save_freq=1000, save_path="./checkpoints/"),
            EarlyStoppingRLCallback(patience=50, min_delta=0.01),
            TradingMetricsCallback(log_freq=10),
        ]
    )

    # 4. Train
    training_config = RLTrainingConfig(
        total_episodes=40,
        eval_frequency=20,
        batch_size=64,
    )
    metrics = train_rl_agent(
        agent=agent,
        env=env,
        config=training_config,
        callbacks=callbacks,
    )

    # 5. Save the trained model
    agent.save("./models/sac_trading_agent.pt")

    # 6. Load later for inference or backtesting
    agent.load("./models/sac_trading_agent.pt")
    action = agent.select_action(observation, deterministic=True)

    assert metrics.num_episodes >= 40
    assert metrics.num_updates > 0
    assert action.shape == (1,)
    assert list((tmp_path / "checkpoints").glob("*.pt"))
    assert (tmp_path / "models" / "sac_trading_agent.pt").is_file()
    assert {"eval_sharpe", "rollout_sharpe"} <= set(metrics.history.columns)


@pytest.mark.parametrize(("field", "value"), [("initial_balance", 100_000), ("window_size", 20), ("commission", 0.001)])
def test_the_environment_config_has_the_briefs_field_names(field, value):
    assert getattr(TradingEnvConfig(**{field: value}), field) == value


def test_the_briefs_promise_that_a_file_gives_its_config_back_holds(tmp_path):
    import torch

    from ml.tradingbots.components import SACConfig, create_rl_agent

    config = SACConfig(hidden_dim=512, learning_rate=1e-4, gamma=0.995)
    agent = create_rl_agent("sac", state_dim=20, action_dim=3, config=config)
    path = agent.save(tmp_path / "agent.pt")
    assert torch.load(path, weights_only=False)["config"] == config
