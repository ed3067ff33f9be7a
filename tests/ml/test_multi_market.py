"""Accounts in several markets at once: each walks as it would alone, and is told apart only where that is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ml.tradingbots.components.buffers import IndexedObservations, ReplayBuffer
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.multi_market import MultiMarketVectorEnv
from ml.tradingbots.components.rl_agents import PPOConfig, create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

CONFIG = TradingEnvConfig(window_size=3, episode_length=7)


def market(seed: int, n_bars: int = 60, volatility: float = 0.01, **changes: object) -> TradingEnvironment:
    prices = autoregressive(n_bars, phi=0.3, volatility=volatility, seed=seed).prices
    return TradingEnvironment(prices, dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]


def three(**settings: object) -> MultiMarketVectorEnv:
    environments = {"a": market(1), "b": market(2, n_bars=45, volatility=0.03), "c": market(1, reward="return")}
    return MultiMarketVectorEnv(environments, n_envs=2, seed=5, random_start=True, **settings)  # type: ignore[arg-type]


def test_every_account_walks_as_it_would_in_its_market_alone() -> None:
    together, alone = (
        three(),
        [
            env.vectorize(2, seed=5 + n, random_start=True)
            for n, env in enumerate((market(1), market(2, n_bars=45, volatility=0.03), market(1, reward="return")))
        ],
    )
    observation, _ = together.reset()
    assert torch.equal(observation, torch.cat([env.reset()[0] for env in alone]))
    generator = torch.Generator().manual_seed(0)
    n_ended = 0
    for _ in range(30):
        actions = torch.rand((6, 1), generator=generator) * 2 - 1
        observation, reward, terminated, truncated, infos = together.step(actions)
        found = [env.step(part) for env, part in zip(alone, actions.split(2), strict=True)]
        assert torch.equal(observation, torch.cat([each[0] for each in found]))
        assert torch.equal(reward, torch.cat([each[1] for each in found]))
        assert torch.equal(terminated, torch.cat([each[2] for each in found]))
        assert torch.equal(truncated, torch.cat([each[3] for each in found]))
        for number, each in enumerate(found):
            rows = slice(2 * number, 2 * number + 2)
            for account in (truncated[rows] | terminated[rows]).nonzero().flatten().tolist():
                n_ended += 1
                assert torch.equal(infos["final_obs"][rows][account], each[4]["final_obs"][account])
                for name, values in each[4]["episode"].items():
                    assert torch.equal(infos["episode"][name][rows][account], values[account])
                assert bool(infos["_episode"][rows][account])
    assert n_ended > 10


def test_observations_are_rebuilt_from_bar_and_account_in_every_market() -> None:
    env = three(identify=True)
    assert isinstance(env, IndexedObservations)
    observation, _ = env.reset()
    for _ in range(12):
        assert torch.equal(env.gather(env.bar, env.account_features()), observation)
        assert torch.equal(env.market_of(env.bar), env.market_of_account)
        observation, *_, infos = env.step(torch.zeros(6, 1))
        assert torch.equal(env.market_of(infos["next_bar"]), env.market_of_account)


def test_the_identity_of_the_market_ends_the_observation_where_it_is_asked_for() -> None:
    plain, told = three(), three(identify=True)
    seen, _ = plain.reset()
    identified, _ = told.reset()
    assert told.observation_space_dim == plain.observation_space_dim + 3
    assert torch.equal(identified[:, :-3], seen)
    assert torch.equal(identified[:, -3:], torch.eye(3).repeat_interleave(2, 0))


def test_pooled_statistics_are_those_of_all_rows_together() -> None:
    env = three()
    mean, std = env.observation_statistics()
    rows = np.concatenate([each.market.features[each.market.first_bar - 2 :] for each in env.markets]).astype(float)
    # Each market's rows count by its legal bars, two fewer than the rows that windows of three show.
    assert mean[0] == pytest.approx(rows.mean(), abs=2e-5)
    assert std[0] == pytest.approx(rows.std(), rel=0.02)


def test_each_market_scaled_by_itself_looks_alike() -> None:
    env = three(scaling="each", identify=True)
    for each, offset in zip(env.markets, (0, 60, 105), strict=True):
        bars = torch.arange(each.market.first_bar, each.market.n_bars) + offset
        seen = env.gather(bars, torch.zeros(len(bars), env.account_dim))[:, 2]
        assert abs(float(seen.mean())) < 0.1
        assert float(seen.std()) == pytest.approx(1.0, abs=0.1)
    mean, std = env.observation_statistics()
    assert bool((mean[:3] == 0.0).all())
    assert bool((std[:3] == 1.0).all())


@pytest.mark.parametrize("agent_type", ["ppo", "sac"])
def test_an_interrupted_run_over_several_markets_ends_where_an_uninterrupted_one_does(
    agent_type: str, tmp_path: object
) -> None:
    configs = {"ppo": PPOConfig(n_steps=8, batch_size=16), "sac": SACConfig(hidden_dim=8, learning_starts=20)}

    def run(total: int, resume: str | None, folder: str) -> object:
        env = three(identify=True)
        agent = create_rl_agent(agent_type, env.observation_space_dim, 1, configs[agent_type], seed=3)
        config = RLTrainingConfig(total_timesteps=total, run_dir=f"{tmp_path}/{folder}", progress=False)
        agent.schedule_timesteps = 240
        train_rl_agent(agent, env, config, resume_from=resume)
        return agent

    whole = run(240, None, "whole")
    run(120, None, "half")
    resumed = run(240, f"{tmp_path}/half/checkpoints/last.pt", "half")
    expected, found = whole.learned_state(), resumed.learned_state()  # type: ignore[attr-defined]
    name = next(iter(expected))
    for key, value in expected[name].items():
        assert torch.equal(found[name][key], value)


def test_a_replay_memory_holds_as_many_transitions_of_each_market() -> None:
    env = three()
    agent = create_rl_agent("sac", env.observation_space_dim, 1, SACConfig(hidden_dim=8, learning_starts=12))
    agent.train(env, 60)
    assert isinstance(agent.replay, ReplayBuffer)
    held = env.market_of(agent.replay.bars[: agent.replay.size].long())
    assert held.bincount().tolist() == [20, 20, 20]


def test_markets_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' and 'b' must have the same window_size"):
        MultiMarketVectorEnv({"a": market(1), "b": market(2, window_size=4)})
    with pytest.raises(ValueError, match="must have the same actions"):
        MultiMarketVectorEnv({"a": market(1), "b": market(2, allow_short=False)})
    with pytest.raises(ValueError, match="at least one market"):
        MultiMarketVectorEnv({})
    with pytest.raises(TypeError, match="'b' must be a TradingEnvironment"):
        MultiMarketVectorEnv({"a": market(1), "b": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="scaling"):
        MultiMarketVectorEnv({"a": market(1)}, scaling="both")  # type: ignore[arg-type]


def test_a_state_of_other_markets_is_refused() -> None:
    env, other = three(), MultiMarketVectorEnv({"a": market(1)}, n_envs=2)
    env.reset()
    other.reset()
    with pytest.raises(ValueError, match="markets"):
        other.load_state_dict(env.state_dict())
