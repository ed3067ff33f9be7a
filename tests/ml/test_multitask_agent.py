"""One agent of several tasks: what is shared and what is not, gradients that disagree, rewards on their own scales, files."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.tradingbots.components import AgentSource, TradingEnvConfig, TradingEnvironment, load_rl_agent
from ml.tradingbots.components.encoders import FlatEncoder
from ml.tradingbots.components.meta_learning import MultiTaskConfig, MultiTaskRLAgent
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.components.serialization import CheckpointError, read_file, save_file
from ml.tradingbots.components.task_gradients import project_conflicts, with_surgery
from ml.tradingbots.components.task_networks import TaskEncoder, TaskLayout
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.live import target_weights

torch.set_num_threads(1)

CONFIG = TradingEnvConfig(window_size=2, commission=0.0)
N_BARS = 300


def market(seed: int = 1, volatility: float = 0.01, phi: float = 0.3, **changes: Any) -> TradingEnvironment:
    prices = autoregressive(N_BARS, phi=phi, volatility=volatility, seed=seed).prices
    return TradingEnvironment(prices, dataclasses.replace(CONFIG, **changes))


def tasks(**changes: Any) -> dict[str, TradingEnvironment]:
    return {"a": market(1, **changes), "b": market(2, phi=-0.2, **changes), "c": market(3, volatility=0.03, **changes)}


def small(agent_type: str, **settings: Any) -> MultiTaskConfig:
    fields: dict[str, Any] = {"hidden_dims": (8,)}
    if agent_type == "ppo":
        fields |= {"n_steps": 8, "batch_size": 16, "n_epochs": 2}
    elif agent_type != "a2c":
        fields |= {"learning_starts": 48, "batch_size": 16}
    config = AGENTS[agent_type].config_class(**(fields | settings.pop("fields", {})))
    return MultiTaskConfig(agent_type=agent_type, agent_config=config, trunk_dims=(8,), **settings)  # type: ignore[arg-type]


def agent_of(agent_type: str = "sac", *, seed: int = 0, **settings: Any) -> MultiTaskRLAgent:
    action_type = "discrete" if agent_type == "dqn" else "continuous"
    return MultiTaskRLAgent(tasks(action_type=action_type), small(agent_type, **settings), seed=seed)


def with_tasks(observation: torch.Tensor, task: list[float]) -> torch.Tensor:
    return torch.cat([observation, torch.tensor(task).expand(len(observation), -1)], 1)


# What is shared, and what is not.


def test_a_head_of_its_own_reads_each_task() -> None:
    encoder = TaskEncoder(FlatEncoder(3), TaskLayout(2, (4,), 2, has_heads=True), "tanh")
    seen = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    first, second = encoder(with_tasks(seen, [1.0, 0.0])), encoder(with_tasks(seen, [0.0, 1.0]))
    assert first.shape == (5, encoder.output_dim) == (5, 10)
    assert bool((first[:, 5:] == 0.0).all())
    assert bool((second[:, :5] == 0.0).all())
    assert bool((first[:, 4] == 1.0).all())


def test_a_mixture_of_tasks_gets_the_mean_of_their_embeddings_and_heads() -> None:
    encoder = TaskEncoder(FlatEncoder(3), TaskLayout(2, (4,), 2, has_heads=True), "tanh")
    head = torch.nn.Linear(encoder.output_dim, 1, bias=False)
    with torch.no_grad():
        encoder.embedding[1] = encoder.embedding[0]  # So that the trunk says the same for both.
        seen = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        of_each = [head(encoder(with_tasks(seen, task))) for task in ([1.0, 0.0], [0.0, 1.0])]
        mixed = head(encoder(with_tasks(seen, [0.5, 0.5])))
    torch.testing.assert_close(mixed, (of_each[0] + of_each[1]) / 2)
    assert not torch.equal(*of_each)


def test_the_control_is_not_told_its_task() -> None:
    agent = agent_of(identity=False)
    observation, _ = agent.environments["a"].reset()
    actions = [agent.for_task(name, scaled_as="a").select_action(observation, True) for name in agent.names]
    assert actions[0] == actions[1] == actions[2]
    told = agent_of()
    assert len({float(told.for_task(name, scaled_as="a").select_action(observation, True)[0]) for name in "abc"}) == 3


def test_shared_heads_are_told_apart_by_the_embedding_alone() -> None:
    shared, apart = agent_of(heads="shared").learner, agent_of().learner
    assert shared.actor.body.layers[0].in_features == 8
    assert apart.actor.body.layers[0].in_features == 3 * 9


# Gradients that disagree.


def test_surgery_takes_away_what_points_against_another_task() -> None:
    generator = torch.Generator().manual_seed(0)
    # (1, 0)·(−1, 1) = −1: the first becomes (1, 0) + ½(−1, 1), the second (−1, 1) + (1, 0).
    found = project_conflicts(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), generator)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5]))
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    torch.testing.assert_close(project_conflicts(agreeing, generator), agreeing.sum(0))
    opposite = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    torch.testing.assert_close(project_conflicts(opposite, generator), torch.zeros(2))
    torch.testing.assert_close(
        project_conflicts(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), generator), torch.tensor([1.0, 0.0])
    )


def test_a_gradient_is_projected_as_it_was_left_by_the_task_before() -> None:
    # By hand: (−1, 0) meets (1, 0) and (1, 1). First (1, 0): (0, 0), which conflicts with nothing. First (1, 1): (−½, ½),
    # then (0, ½). (1, 0) is left with nothing, (1, 1) with (0, 1).
    gradients = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    found = {tuple(project_conflicts(gradients, torch.Generator().manual_seed(n)).tolist()) for n in range(20)}
    assert found == {(0.0, 1.0), (0.0, 1.5)}


def test_a_loss_with_surgery_is_the_loss_with_the_gradient_of_the_surgery() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    observation = torch.tensor(
        [[2.0, 0.0, 1.0, 0.0], [-1.0, 3.0, 0.0, 1.0], [-3.0, 1.0, 0.0, 1.0], [4.0, 1.0, 1.0, 0.0]]
    )

    def loss_of(seen: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        each = factor * (seen[:, :2] @ weight)
        return each.mean(), each.detach(), each.detach().mean()

    factor = torch.tensor(3.0)
    plain, rows, mean = loss_of(observation, factor)
    step = with_surgery(loss_of, [weight], 2, torch.Generator().manual_seed(0))
    loss, found_rows, found_mean = step(observation, factor)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found_rows, rows)
    torch.testing.assert_close(found_mean, mean)
    # Halves of the batch: 3·(3, ½)/2 and 3·(−2, 2)/2; their product is negative.
    first, second = torch.tensor([4.5, 0.75]), torch.tensor([-3.0, 3.0])
    against = first @ second
    expected = first - against / (second @ second) * second + second - against / (first @ first) * first
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("agent_type", AGENTS)
def test_without_conflict_surgery_changes_no_gradient(agent_type: str) -> None:
    """With one task there is none: a step with surgery is the step without it, to rounding."""
    found = []
    for gradients in ("sum", "pcgrad"):
        action_type = "discrete" if agent_type == "dqn" else "continuous"
        config = small(agent_type, gradients=gradients, fields={"max_grad_norm": None})
        agent = MultiTaskRLAgent({"a": market(action_type=action_type)}, config, seed=2)
        agent.train(64 if agent_type in ("ppo", "a2c") else 56, n_envs=8)
        assert agent.learner.num_updates > 0
        found.append(agent.learner.learned_state()[agent.learner.learned[0]])
    for name, value in found[0].items():
        # Adam divides gradients by their size: rounding of those near 0 shows, at most as steps of the learning rate.
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("agent_type", AGENTS)
def test_every_agent_learns_several_tasks_with_surgery(agent_type: str) -> None:
    agent = agent_of(agent_type, gradients="pcgrad")
    before = agent.learner.learned_state()[agent.learner.learned[0]]
    losses = None
    agent.learner.scale_rewards = True
    env = agent.environment(n_envs=4)
    agent.learner.bind(env)
    for report in agent.learner.training_steps(env):
        losses = report.losses
        if report.num_timesteps >= 120:
            break
    assert losses is not None
    assert all(bool(torch.isfinite(value)) and value.ndim == 0 for value in losses.values())
    after = agent.learner.learned_state()[agent.learner.learned[0]]
    assert any(not torch.equal(before[name], after[name]) for name in before)


# Rewards on scales of their own.


@pytest.mark.parametrize("agent_type", ["sac", "ppo"])
def test_rewards_a_hundred_times_larger_are_seen_as_large(agent_type: str) -> None:
    environments = {"one": market(), "hundred": market(reward_scaling=100.0)}
    agent = MultiTaskRLAgent(environments, small(agent_type), seed=1).train(400, n_envs=10)
    one, hundred = agent.learner.task_scales.tolist()
    assert one / hundred == pytest.approx(100.0, rel=0.4)  # Accounts of their own: deviations of other actions.
    assert agent.learner.reward_scale == 1.0


def test_drawn_rewards_have_the_scale_of_their_own_task() -> None:
    environments = {"one": market(), "hundred": market(reward_scaling=100.0)}
    learner = MultiTaskRLAgent(environments, small("sac", fields={"learning_starts": 200}), seed=1).train(220).learner
    batch = learner._sample(4_000)
    for task in (0, 1):
        own = batch.observation[:, -2 + task] == 1.0
        assert 1_700 < int(own.sum()) < 2_300
        assert float(batch.reward[own].std()) == pytest.approx(1.0, rel=0.25)


def test_pooled_rewards_are_those_of_a_plain_agent() -> None:
    environments = {"one": market(), "hundred": market(reward_scaling=100.0)}
    learner = MultiTaskRLAgent(environments, small("sac", return_scaling="pooled"), seed=1).train(200).learner
    assert learner.task_scales.tolist() == [1.0, 1.0]
    assert learner.reward_scale != 1.0


@pytest.mark.parametrize("agent_type", ["sac", "ppo"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(agent_type: str, tmp_path: Path) -> None:
    def run(total: int, resume: str | None, folder: str) -> MultiTaskRLAgent:
        agent = agent_of(agent_type, seed=4, gradients="pcgrad")
        config = RLTrainingConfig(
            total_timesteps=total, run_dir=str(tmp_path / folder), checkpoint_frequency=120, progress=False
        )
        env = agent.environment(n_envs=2)
        agent.learner.schedule_timesteps = 240
        train_rl_agent(agent.learner, env, config, resume_from=resume)
        return agent

    whole = run(240, None, "whole").learner
    run(120, None, "half")
    resumed = run(240, str(tmp_path / "half" / "checkpoints" / "last.pt"), "half").learner
    assert torch.equal(whole.task_scales, resumed.task_scales)
    assert bool((whole.task_scales != 1.0).all())
    expected, found = whole.learned_state(), resumed.learned_state()
    for key, value in expected[whole.learned[0]].items():
        assert torch.equal(found[whole.learned[0]][key], value)


# Policies of tasks.


@pytest.mark.parametrize("agent_type", ["sac", "dqn"])
def test_the_policy_of_a_task_sees_what_the_learner_was_trained_on(agent_type: str) -> None:
    agent = agent_of(agent_type).train(80, n_envs=4)
    env = agent.environment(n_envs=1, random_start=False, episode_length=None)
    together, _ = env.reset()
    expected = agent.learner.select_action(together, deterministic=True)
    for row, (name, alone) in enumerate(agent.environments.items()):
        observation, _ = alone.reset()
        policy = agent.for_task(name)
        shown = policy._shown(torch.from_numpy(observation))
        assert torch.equal(shown, together[row])
        action = policy.select_action(observation, deterministic=True)
        # One row and several take different paths through a matrix product: equal to rounding.
        assert np.asarray(action) == pytest.approx(np.asarray(expected[row]), abs=1e-6)


def test_a_batch_of_observations_gets_the_actions_of_each() -> None:
    policy = agent_of().train(80, n_envs=4).for_task("b")
    seen = np.random.default_rng(0).normal(0.0, 0.01, (6, policy.state_dim)).astype(np.float32)
    together = policy.select_action(seen, deterministic=True)
    assert together.shape == (6, 1)
    assert np.stack([policy.select_action(one, True) for one in seen]) == pytest.approx(together, abs=1e-6)
    assert torch.is_tensor(policy.select_action(torch.from_numpy(seen), True))
    with pytest.raises(ValueError, match="observation must have shape"):
        policy.select_action(seen[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        policy.select_action(np.full(policy.state_dim, np.nan))


@pytest.mark.parametrize("agent_type", ["a2c", "dqn"])
def test_the_policy_of_a_task_is_an_agent_of_that_market_to_others(agent_type: str) -> None:
    agent = agent_of(agent_type).train(80, n_envs=4)
    env, policy = agent.environments["a"], agent.for_task("a")
    result = evaluate_agent(policy, env, n_bootstrap=0)
    assert np.isfinite(result.agent.equity_curve).all()
    bars = env.market.bars
    decision = target_weights(policy, bars)
    # The replay of the last decision is the evaluation, which ends a bar earlier.
    assert decision.equity == pytest.approx(result.agent.equity_curve[-1], rel=1e-9)
    source = AgentSource(policy)
    assert source.first_bar(bars) == env.market.first_bar


def test_an_unseen_asset_is_seen_on_its_own_scale() -> None:
    agent = agent_of().train(80, n_envs=4)
    calm = autoregressive(200, phi=0.3, volatility=0.01, seed=9).prices
    wild = np.exp(3.0 * np.log(calm))
    envs = [TradingEnvironment(prices, CONFIG) for prices in (calm, wild)]
    actions = [agent.for_unseen(env).select_action(env.reset()[0], deterministic=True) for env in envs]
    # Log returns three times as large are the same in units of their own deviation.
    assert actions[0] == pytest.approx(actions[1], abs=1e-5)
    assert agent.for_unseen(envs[0]).task.tolist() == pytest.approx([1 / 3] * 3)


def test_encoders_of_windows_read_what_is_not_the_task() -> None:
    config = small("sac", fields={"network": "cnn", "hidden_dim": 8})
    agent = MultiTaskRLAgent(tasks(window_size=8), config, seed=1).train(60, n_envs=4)
    observation, _ = agent.environments["a"].reset()
    assert np.isfinite(agent.for_task("a").select_action(observation, True)).all()


# Files.


@pytest.mark.parametrize(("agent_type", "fields"), [("ppo", {}), ("dqn", {}), ("sac", {"network": "lstm"})])
def test_a_saved_agent_acts_identically(agent_type: str, fields: dict[str, Any], tmp_path: Path) -> None:
    agent = agent_of(agent_type, fields=fields).train(80, n_envs=4)
    loaded = MultiTaskRLAgent.load(agent.save(tmp_path / "agent.pt"))
    assert loaded.names == agent.names
    assert loaded.config == dataclasses.replace(agent.config, agent_config=agent.learner.config)
    for name, env in agent.environments.items():
        observation, _ = env.reset()
        for deterministic in (True, False):
            expected = agent.for_task(name).select_action(observation, deterministic)
            assert np.array_equal(loaded.for_task(name).select_action(observation, deterministic), expected)
        assert loaded.for_task(name).environment_spec == agent.for_task(name).environment_spec
    with pytest.raises(RuntimeError, match="loaded without environments"):
        loaded.train(10)


def test_a_loaded_agent_learns_on_in_its_environments(tmp_path: Path) -> None:
    agent = agent_of().train(80, n_envs=4)
    path = agent.save(tmp_path / "agent.pt")
    scales = agent.learner.task_scales.clone()
    again = MultiTaskRLAgent.load(path, environments=tasks())
    assert torch.equal(again.learner.task_scales, scales)
    again.train(80, n_envs=4)
    assert again.learner.num_timesteps == 2 * agent.learner.num_timesteps
    with pytest.raises(ValueError, match="environments must be the tasks a, b, c"):
        MultiTaskRLAgent.load(path, environments={"a": market()})


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_hostile_file_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"format_version": 2, "kind": "multitask agent", "tasks": Touch(marker)}, tmp_path / "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Touch(marker)))
    for name in ("evil.pt", "pickle.pt"):
        with pytest.raises(CheckpointError):
            MultiTaskRLAgent.load(tmp_path / name)
    assert not marker.exists()


def _change(content: dict[str, Any], name: str) -> None:
    task, learner = content["tasks"][0], content["learner"]
    if name == "deviation":
        task["std"] = -task["std"]
    elif name == "statistics":
        task["mean"], task["std"] = task["mean"][:1], task["std"][:1]
    elif name == "names":
        content["tasks"][1]["name"] = "a"
    elif name == "fewer":
        del content["tasks"][1]
    elif name == "trunk":
        object.__setattr__(content["config"], "trunk_dims", (65_536, 65_536))
    elif name == "heads":
        object.__setattr__(content["config"], "heads", "shared")
    elif name == "type":
        object.__setattr__(content["config"], "agent_type", "td3")
    elif name == "scales":
        learner["learned"]["task_scales"] = -learner["learned"]["task_scales"]
    elif name == "no specification":
        task["specification"] = {}
    elif name == "features":
        task["specification"]["features"] = 3
    elif name == "environment":
        task["specification"]["config"] = {"window_size": "x"}
    elif name == "escape":
        task["name"] = "\n\x1b[31mX"
    elif name == "dimensions":
        learner["dimensions"]["state_dim"] = 2
    else:
        content["tasks"] = [1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "deviation",
        "statistics",
        "names",
        "fewer",
        "trunk",
        "heads",
        "type",
        "scales",
        "dimensions",
        "tasks",
        "no specification",
        "features",
        "environment",
        "escape",
    ],
)
def test_a_file_that_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    path = agent_of().train(80, n_envs=4).save(tmp_path / "agent.pt")
    allowed = (MultiTaskConfig, *(agent.config_class for agent in AGENTS.values()))
    content = read_file(path, "multitask agent", allowed=allowed)
    _change(content, name)
    save_file(path, "multitask agent", {key: content[key] for key in ("config", "tasks", "learner")})
    with pytest.raises(CheckpointError):
        MultiTaskRLAgent.load(path)


def test_files_of_other_kinds_are_named_with_how_to_load_them(tmp_path: Path) -> None:
    path = agent_of().save(tmp_path / "agent.pt")
    with pytest.raises(CheckpointError, match=r"MultiTaskRLAgent.load\(path\)"):
        load_rl_agent(path)
    single = AGENTS["a2c"](3, 1, AGENTS["a2c"].config_class()).save(tmp_path / "single.pt")
    with pytest.raises(CheckpointError, match="load_rl_agent"):
        MultiTaskRLAgent.load(single)


# What is refused at the door.


def test_tasks_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same window_size"):
        MultiTaskRLAgent({"a": market(), "b": market(window_size=3)})
    with pytest.raises(TypeError, match="needs discrete actions"):
        MultiTaskRLAgent(tasks(), MultiTaskConfig(agent_type="dqn"))
    with pytest.raises(TypeError, match="must be a SACConfig, got A2CConfig"):
        MultiTaskConfig(agent_config=AGENTS["a2c"].config_class())
    for settings in ({"trunk_dims": ()}, {"embedding_dim": 0}, {"gradients": "mean"}, {"agent_type": "sarsa"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            MultiTaskConfig(**settings)  # type: ignore[arg-type]
    for name in ("", " ", "a\nb", 1):
        with pytest.raises(ValueError, match="names of tasks must be text, not empty and without control characters"):
            MultiTaskRLAgent({name: market()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="config must be a MultiTaskConfig, got dict"):
        MultiTaskRLAgent(tasks(), {"agent_type": "a2c"})  # type: ignore[arg-type]
    agent = agent_of()
    with pytest.raises(ValueError, match=r"no task None\."):
        agent.for_task(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no task 'aa'\. Did you mean 'a'"):
        agent.for_task("aa")
    with pytest.raises(ValueError, match="same window_size, features"):
        agent.for_unseen(market(window_size=3))
    with pytest.raises(ValueError, match="same action_type"):
        agent.for_unseen(market(action_type="discrete"))
    with pytest.raises(TypeError, match="TradingEnvironment of the asset's past"):
        agent.for_unseen(market().market.bars)  # type: ignore[arg-type]
