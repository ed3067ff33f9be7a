"""The agent of several tasks on markets whose optimum is known, and the matrix that judges it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment
from ml.tradingbots.components.a2c_agent import A2CConfig
from ml.tradingbots.components.meta_learning import MultiTaskConfig, MultiTaskRLAgent
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training.evaluation import evaluate_agent
from ml.tradingbots.training.multitask_evaluation import (
    AGENT,
    SINGLE,
    TRANSFER,
    evaluate_tasks,
    single_task_agent,
    train_single_tasks,
)
from ml.tradingbots.training.multitask_optima import (
    CONFLICT,
    REWARDS,
    SCARCE,
    conflict_shares,
    reward_shares,
    scarce_shares,
)
from ml.tradingbots.training.multitask_report import as_text

torch.set_num_threads(1)
SEEDS = range(5)


# Known optima, in short.


def test_opposite_markets_are_both_learned_where_the_agent_is_told_which_is_which() -> None:
    recipe = dataclasses.replace(CONFLICT, timesteps_per_task=30_000, n_train_bars=20_000, n_test_bars=32_000)
    told = conflict_shares(seed=100, recipe=recipe)
    assert told.worst >= 0.85
    assert max(told.swapped.values()) < 0.0
    # Whoever is not told earns in one what it loses in the other.
    assert abs(conflict_shares(seed=100, recipe=recipe, identity=False).mean) <= 0.15


def test_rewards_of_a_hundredfold_size_in_one_market_do_not_drown_the_other() -> None:
    recipe = dataclasses.replace(REWARDS, timesteps_per_task=20_000, n_train_bars=20_000, n_test_bars=32_000)
    assert reward_shares(seed=100, recipe=recipe).worst >= 0.7


def test_assets_with_few_bars_learn_from_each_other_soon() -> None:
    recipe = dataclasses.replace(SCARCE, timesteps_per_task=20_000, n_test_bars=16_000)
    together = scarce_shares(seed=100, n_judged=3, recipe=recipe).shares
    alone = [scarce_shares(seed=seed, n_assets=1, n_judged=1, recipe=recipe).shares["assets"] for seed in (100, 101)]
    assert min(together["assets"], together["unseen"]) >= 0.75
    assert np.mean(alone) <= 0.6


def test_least_squares_are_judged_on_the_same_path_whatever_number_of_assets_was_trained() -> None:
    recipe = dataclasses.replace(SCARCE, timesteps_per_task=128, n_test_bars=8_192)
    found = [scarce_shares(seed=100, n_assets=n, n_judged=1, recipe=recipe).shares["linear"] for n in (1, 3)]
    assert found[0] == found[1]


# In full: five seeds.


@pytest.mark.learning
def test_opposite_markets_are_both_learned_by_all_seeds() -> None:
    told = [conflict_shares(seed=seed) for seed in SEEDS]
    assert min(found.worst for found in told) >= 0.85
    assert max(max(found.swapped.values()) for found in told) < 0.0
    control = [conflict_shares(seed=seed, identity=False) for seed in SEEDS]
    assert max(abs(found.mean) for found in control) <= 0.15
    assert max(found.worst for found in control) <= 0.15


@pytest.mark.learning
def test_rewards_a_hundred_times_larger_drown_no_other_task() -> None:
    assert min(reward_shares(seed=seed).worst for seed in SEEDS) >= 0.8


@pytest.mark.learning
def test_what_twenty_assets_have_in_common_is_learned_from_all_of_them() -> None:
    together = [scarce_shares(seed=seed) for seed in SEEDS]
    alone = [scarce_shares(seed=seed, n_assets=1, n_judged=1) for seed in SEEDS]
    assert np.median([found.shares["assets"] for found in together]) >= 0.85
    assert np.median([found.shares["unseen"] for found in together]) >= 0.75
    assert np.median([found.shares["assets"] for found in alone]) <= 0.60


# The matrix.


def trained() -> tuple[MultiTaskRLAgent, dict[str, TradingEnvironment]]:
    config = TradingEnvConfig(window_size=2, commission=0.001)
    phis = {"repeats": 0.4, "reverses": -0.4}
    environments = {
        split: {
            name: TradingEnvironment(autoregressive(n_bars, phi=phi, seed=seed + place).prices, config)
            for place, (name, phi) in enumerate(phis.items())
        }
        for split, n_bars, seed in (("train", 3_000, 1), ("test", 400, 11))
    }
    fast = A2CConfig(hidden_dims=(16,), gamma=0.0, n_steps=16, learning_rate=3e-3, optimizer="adam")
    settings = MultiTaskConfig(agent_type="a2c", agent_config=fast, trunk_dims=(16,))
    return MultiTaskRLAgent(environments["train"], settings, seed=100).train(40_000), environments["test"]


@pytest.fixture(scope="module")
def agent_and_test() -> tuple[MultiTaskRLAgent, dict[str, TradingEnvironment]]:
    return trained()


def test_the_matrix_is_what_evaluating_each_policy_gives(
    agent_and_test: tuple[MultiTaskRLAgent, dict[str, TradingEnvironment]],
) -> None:
    agent, unseen = agent_and_test
    found = evaluate_tasks(agent, unseen)
    assert found.matrix.loc["repeats", "repeats"] > 0.0 > found.matrix.loc["reverses", "repeats"]
    for policy in agent.names:
        for task in agent.names:
            alone = evaluate_agent(agent.for_task(policy, scaled_as=task), unseen[task], n_bootstrap=0)
            # Batched networks round differently in the last bit of float32.
            assert found.matrix.loc[policy, task] == pytest.approx(alone.metrics["sharpe_ratio"], rel=1e-4)
            if policy == task:
                curve = alone.agent.equity_curve / alone.agent.equity_curve[0]
                assert found.equity[task][AGENT].to_numpy() == pytest.approx(curve, rel=1e-5)
                assert found.equity[task].index.equals(alone.agent.timestamps)
    hold = evaluate_agent(agent.for_task("repeats"), unseen["repeats"], n_bootstrap=0).baselines["buy_and_hold"].metrics
    assert found.comparison.loc["repeats", "buy_and_hold"] == pytest.approx(hold["sharpe_ratio"])
    assert found.comparison[[SINGLE, TRANSFER]].isna().all(axis=None)
    assert "in 2 of 2" in found.verdict()


def test_negative_transfer_is_what_learning_together_cost(
    agent_and_test: tuple[MultiTaskRLAgent, dict[str, TradingEnvironment]],
) -> None:
    agent, unseen = agent_and_test
    controls = train_single_tasks(agent, timesteps_per_task=4_000)
    found = evaluate_tasks(agent, unseen, single_task=controls, score="reward")
    rows = found.comparison
    assert (rows[AGENT] - rows[SINGLE]).to_numpy() == pytest.approx(rows[TRANSFER].to_numpy())
    # Log rewards sum to the growth of the account.
    growth = np.log(found.equity["repeats"].iloc[-1])
    assert rows.loc["repeats", [AGENT, SINGLE, "buy_and_hold"]].to_numpy(float) * 397 == pytest.approx(
        growth[[AGENT, SINGLE, "buy_and_hold"]].to_numpy(), abs=1e-4
    )
    assert isinstance(found.table(), pd.DataFrame)
    assert "learning alone" in found.verdict()


def off_policy(**settings: int) -> MultiTaskRLAgent:
    config = TradingEnvConfig(window_size=2)
    environments = {
        f"t{seed}": TradingEnvironment(autoregressive(200, seed=seed).prices, config) for seed in range(1, 5)
    }
    fields = {"hidden_dims": (8,), "batch_size": 16, "learning_starts": 400} | settings
    agent_config = SACConfig(**fields)  # type: ignore[arg-type]
    return MultiTaskRLAgent(environments, MultiTaskConfig(agent_config=agent_config, trunk_dims=(8,)))


def test_controls_begin_to_learn_after_their_share_of_the_random_timesteps() -> None:
    agent = off_policy(buffer_size=2_000).train(800, n_envs=4)
    controls = train_single_tasks(agent, n_envs=4)
    for policy in controls.values():
        assert policy.learner.num_timesteps == agent.learner.num_timesteps / 4
        assert policy.learner.num_updates > 0
        assert (policy.config.learning_starts, policy.config.buffer_size) == (100, 500)
    small = single_task_agent(off_policy(learning_starts=40), "t1").learner.config
    assert (small.learning_starts, small.batch_size) == (16, 16)


def test_who_took_no_gradient_step_is_not_compared_but_named() -> None:
    agent = off_policy().train(800, n_envs=4)
    controls = train_single_tasks(agent, timesteps_per_task=200, n_envs=4)
    controls["t2"] = train_single_tasks(agent, timesteps_per_task=40, n_envs=4)["t2"]
    found = evaluate_tasks(agent, agent.environments, single_task=controls)
    assert found.comparison[SINGLE].isna().tolist() == [False, True, False, False]
    assert found.comparison[TRANSFER].isna().tolist() == [False, True, False, False]
    assert "controls of t2 took no gradient step" in found.verdict()
    assert as_text(found.comparison, found.score).loc["t2", SINGLE] == "–"
    idle = evaluate_tasks(off_policy().train(80, n_envs=4), agent.environments)
    assert idle.comparison[AGENT].isna().all()
    assert "agent of all tasks took no gradient step" in idle.verdict()


def test_a_policy_that_is_stopped_out_holds_cash_from_then_on() -> None:
    agent, unseen = trained()
    strict = {
        name: TradingEnvironment(env.market, dataclasses.replace(env.config, max_drawdown=0.02))
        for name, env in unseen.items()
    }
    found = evaluate_tasks(agent, strict)
    alone = evaluate_agent(agent.for_task("repeats", scaled_as="repeats"), strict["repeats"], n_bootstrap=0)
    assert alone.agent.stopped_at is not None
    curve = alone.agent.equity_curve / alone.agent.equity_curve[0]
    assert found.equity["repeats"][AGENT].to_numpy() == pytest.approx(curve, rel=1e-5)


def test_what_cannot_be_evaluated_is_refused(
    agent_and_test: tuple[MultiTaskRLAgent, dict[str, TradingEnvironment]],
) -> None:
    agent, unseen = agent_and_test
    with pytest.raises(ValueError, match="environments must be those of the tasks"):
        evaluate_tasks(agent, {"repeats": unseen["repeats"]})
    with pytest.raises(ValueError, match="score must be one of"):
        evaluate_tasks(agent, unseen, score="luck")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="single_task must be 'train', None, or policies by task, got 'trained'"):
        evaluate_tasks(agent, unseen, single_task="trained")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="policies by task, got a list"):
        evaluate_tasks(agent, unseen, single_task=["repeats"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="single_task names 'Repeats', which is no task: repeats, reverses"):
        evaluate_tasks(agent, unseen, single_task={"Repeats": agent.for_task("repeats")})
    with pytest.raises(TypeError, match="that of 'reverses' is of type int"):
        evaluate_tasks(agent, unseen | {"reverses": 1})  # type: ignore[dict-item]
    other = dataclasses.replace(unseen["repeats"].config, window_size=4)
    with pytest.raises(ValueError, match="same window_size"):
        evaluate_tasks(agent, unseen | {"repeats": TradingEnvironment(unseen["repeats"].market.bars, other)})
