"""What every agent promises, whatever it learns by: the factory, seeds, files, actions, masks, networks, schedules."""

import dataclasses
import random
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.wrappers import TransformAction

from ml.tradingbots.components import (
    A2CConfig,
    DDPGConfig,
    DQNConfig,
    PPOConfig,
    SACConfig,
    TD3Config,
    TradingEnvConfig,
    TradingEnvironment,
    TradingVectorEnv,
    create_rl_agent,
    list_available_agents,
    load_rl_agent,
)
from ml.tradingbots.components.rl_agents import AGENTS
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import Callback, RLTrainingConfig, train_rl_agent

ON_POLICY = {"hidden_dim": 8, "n_steps": 5}
OFF_POLICY = {"hidden_dim": 8, "batch_size": 8, "learning_starts": 20, "buffer_size": 200}
DISCRETE = {"action_type": "discrete"}

# Every agent in every form it acts in: name, then its config.
FORMS = {
    "ppo": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2),
    "ppo, discrete": PPOConfig(**ON_POLICY, **DISCRETE, batch_size=4, n_epochs=2),
    "ppo, gsde": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2, gsde=True, gsde_sample_freq=2),
    "dqn": DQNConfig(**OFF_POLICY, target_update_interval=10),
    "dqn, prioritised": DQNConfig(**OFF_POLICY, prioritized=True, n_step_targets=3),
    "sac": SACConfig(**OFF_POLICY),
    "sac, gsde": SACConfig(**OFF_POLICY, gsde=True, gsde_sample_freq=2),
    "td3": TD3Config(**OFF_POLICY),
    "ddpg": DDPGConfig(**OFF_POLICY),
    "a2c": A2CConfig(**ON_POLICY),
    "a2c, discrete": A2CConfig(**ON_POLICY, **DISCRETE),
}
MASKED = [form for form in FORMS if "discrete" in form or form.startswith("dqn")]
CONTINUOUS = [form for form in FORMS if form not in MASKED]
PLAIN = list(AGENTS)  # One form of each.

each_form = pytest.mark.parametrize("form", FORMS)
each_agent = pytest.mark.parametrize("form", PLAIN)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_type_of(form):
    return form.split(",")[0]


def market(form, n_assets=1, **settings):
    """A small market that a form acts in."""
    kind = "discrete" if form in MASKED else "continuous"
    config = TradingEnvConfig(**{"window_size": 4, "episode_length": 10, "action_type": kind} | settings)
    frames = [autoregressive(60, seed=1 + number).prices for number in range(n_assets)]
    if n_assets == 1:
        return TradingEnvironment(frames[0], config)
    close = np.stack([frame["close"].to_numpy() for frame in frames], 1)
    return TradingEnvironment(Bars(timestamps=frames[0].index, assets=tuple("abc"[:n_assets]), close=close), config)


def new_agent(form, env, seed=0, **changes):
    config = dataclasses.replace(FORMS[form], **changes)
    return create_rl_agent(agent_type_of(form), env.observation_space_dim, env.action_space_dim, config, seed=seed)


def trained(form, env=None, total=60, seed=0, **changes):
    env = env if env is not None else market(form)
    return new_agent(form, env, seed, **changes).train(env, total, n_envs=2)


def observations(agent, n=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, agent.state_dim)).astype(np.float32)


def weights(agent):
    """All parameters of an agent's networks, end to end."""
    modules = [getattr(agent, name) for name in agent.learned]
    parts = [value for module in modules if isinstance(module, torch.nn.Module) for value in module.parameters()]
    return torch.cat([part.detach().flatten() for part in parts])


def optimizers(agent):
    values = [getattr(agent, name) for name in agent.learned]
    return [value for value in values if isinstance(value, torch.optim.Optimizer)]


def test_the_forms_are_those_of_every_agent():
    assert {agent_type_of(form) for form in FORMS} == set(list_available_agents())


# --- The factory


def test_the_briefs_factory_block_runs_as_printed(capsys):
    from ml.tradingbots.components import create_rl_agent, list_available_agents

    # See what's available
    print(list_available_agents())
    printed = (
        "{'ppo': 'Proximal Policy Optimization - stable on-policy algorithm', "
        "'dqn': 'Deep Q-Network - discrete action spaces', "
        "'sac': 'Soft Actor-Critic - state-of-the-art for continuous control', "
        "'td3': 'Twin Delayed DDPG - twin critics with delayed policy updates', "
        "'ddpg': 'Deep Deterministic Policy Gradient - continuous control', "
        "'a2c': 'Advantage Actor-Critic - simpler synchronous variant of PPO'}\n"
    )
    assert capsys.readouterr().out == printed  # In this order, too.

    # Create an agent with default config
    agent = create_rl_agent(
        agent_type="sac",
        state_dim=20,
        action_dim=3,
    )
    assert agent.config == SACConfig()

    # Or pass a custom config
    from ml.tradingbots.components import SACConfig as Config

    config = Config(hidden_dim=512, learning_rate=1e-4, gamma=0.995)
    agent = create_rl_agent("sac", state_dim=20, action_dim=3, config=config)
    assert agent.select_action(np.zeros(20)).shape == (3,)


@pytest.mark.parametrize("name", PLAIN)
def test_every_agent_can_be_made_from_its_name_alone(name):
    agent = create_rl_agent(name, state_dim=20, action_dim=3)
    assert agent.agent_type == name
    assert agent.config == AGENTS[name].config_class()
    assert all(callable(getattr(agent, method)) for method in ("train", "select_action", "save", "load"))


@pytest.mark.parametrize("name", PLAIN)
def test_a_misspelt_name_is_answered_with_one_that_works(name):
    with pytest.raises(ValueError, match="unknown agent_type") as raised:
        create_rl_agent(name.upper() + "x", 3, 1)
    suggestion = re.search(r"Did you mean '(\w+)'\?", str(raised.value)).group(1)
    assert suggestion == name
    assert create_rl_agent(suggestion, 3, 1).agent_type == name


@pytest.mark.parametrize("name", PLAIN)
def test_the_config_of_another_agent_is_answered_with_the_one_that_works(name):
    other = TD3Config() if name != "td3" else SACConfig()
    with pytest.raises(
        TypeError, match=f"config of agent '{name}' must be a (.*), got {type(other).__name__}$"
    ) as raised:
        create_rl_agent(name, 3, 1, other)
    named = re.search(r"must be a (\w+)", str(raised.value)).group(1)
    configs = {
        config.__name__: config for config in (A2CConfig, DDPGConfig, DQNConfig, PPOConfig, SACConfig, TD3Config)
    }
    assert create_rl_agent(name, 3, 1, configs[named]()).config == configs[named]()


def advice(form, error):
    """What a message says to write: settings of the market, of the agent, and another agent."""
    text = str(error.value)
    env = re.search(r"TradingEnvConfig\(action_type='(\w+)'\)", text).group(1)
    own = re.search(rf"{type(FORMS[form]).__name__}\(action_type='(\w+)'\)", text)
    return env, own.group(1) if own else None, re.search(r"create_rl_agent\('(\w+)', \.\.\.\)", text).group(1)


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_the_wrong_kind_of_actions_is_answered_with_ways_out_that_work(form, n_assets):
    wrong = {"action_type": "continuous" if form in MASKED else "discrete"}
    env = market(form, n_assets, **wrong)
    with pytest.raises(TypeError, match=r"needs (discrete|continuous) actions") as raised:
        new_agent(form, env).train(env, 10)
    env_kind, own_kind, other = advice(form, raised)
    right = market(form, n_assets, action_type=env_kind)
    assert new_agent(form, right).train(right, 10).num_timesteps == 10
    # Agents that act in both ways name their own setting too.
    assert (own_kind is not None) == (agent_type_of(form) in ("ppo", "a2c"))
    if own_kind is not None:
        gsde = {"gsde": False} if "gsde" in form else {}
        assert new_agent(form, env, action_type=own_kind, **gsde).train(env, 10).num_timesteps == 10
    assert create_rl_agent(other, env.observation_space_dim, env.action_space_dim).train(env, 10).num_timesteps == 10


@each_form
def test_other_dimensions_are_answered_with_the_argument_to_change(form):
    env = market(form)
    sizes = {"state_dim": env.observation_space_dim, "action_dim": env.action_space_dim}
    advice = {
        "state_dim": "state_dim=env.observation_space_dim",
        "action_dim": f"action_dim={env.action_space_dim} (env.action_space_dim of a TradingEnvironment)",
    }
    for name, right in advice.items():
        wrong = sizes | {name: sizes[name] + 3}
        with pytest.raises(ValueError, match=re.escape(f"create it with {right}")):
            create_rl_agent(agent_type_of(form), **wrong, config=FORMS[form]).train(env, 10)


# --- Seeds


@each_form
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(form):
    first, again, other = (weights(trained(form, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@each_form
def test_training_moves_the_weights(form):
    env = market(form)
    assert not torch.equal(weights(trained(form, env)), weights(new_agent(form, env)))


@each_form
def test_the_first_weights_are_those_of_the_seed_whatever_was_drawn_before(form):
    env = market(form)
    torch.manual_seed(1)
    first = weights(new_agent(form, env, seed=3))
    torch.manual_seed(2)
    assert torch.equal(weights(new_agent(form, env, seed=3)), first)
    assert not torch.equal(weights(new_agent(form, env, seed=4)), first)


@each_form
def test_nothing_global_is_seeded_or_drawn_from(form):
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - This is what must not move.
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    agent = trained(form)
    for deterministic in (True, False):
        agent.select_action(observations(agent), deterministic)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


# --- Files


def assert_acts_alike(agent, other):
    """Deterministic actions, then drawn ones, from both generators as they stand."""
    seen = observations(agent)
    assert np.array_equal(agent.select_action(seen, deterministic=True), other.select_action(seen, deterministic=True))
    for _ in range(3):
        assert np.array_equal(agent.select_action(seen), other.select_action(seen))


def as_plain(value):
    """A state without tensors, so that == compares it."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_a_saved_agent_acts_identically(tmp_path, form, n_assets):
    env = market(form, n_assets)
    agent = trained(form, env)
    agent.normalizer.fix(*env.vectorize(1).observation_statistics())
    path = agent.save(tmp_path / "agent.pt")
    fresh = new_agent(form, env, seed=99)
    assert fresh.load(path) is fresh
    loaded = load_rl_agent(path)
    assert type(loaded) is type(agent)
    for other in (fresh, loaded):
        assert as_plain(other.state_dict()) == as_plain(agent.state_dict())
    states = agent.generator.get_state()
    for other in (fresh, loaded):
        agent.generator.set_state(states)
        assert_acts_alike(agent, other)


@each_form
def test_a_loaded_agent_goes_on_learning_as_the_saved_one(tmp_path, form):
    env = market(form)
    agent = trained(form, env)
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    # Both begin with an empty memory, which is no part of an agent's file.
    again = load_rl_agent(tmp_path / "agent.pt")
    for one in (loaded, again):
        one.train(env, 60, n_envs=2)
    assert loaded.num_updates > agent.num_updates
    assert as_plain(loaded.state_dict()) == as_plain(again.state_dict())
    assert not torch.equal(weights(loaded), weights(agent))


@each_form
def test_an_agent_takes_over_the_config_it_loads(tmp_path, form):
    env = market(form)
    path = trained(form, env).save(tmp_path / "agent.pt")
    other = new_agent(form, env, hidden_dim=4, gamma=0.5)
    assert other.load(path).config == FORMS[form]


@each_agent
def test_the_file_of_another_agent_is_refused(tmp_path, form):
    other = "sac" if form != "sac" else "td3"
    path = create_rl_agent(other, 3, 3).save(tmp_path / "agent.pt")
    agent = create_rl_agent(form, 3, 3)
    before = weights(agent).clone()
    with pytest.raises(ValueError, match=rf"agent\.pt holds a '{other}' agent, this one is '{form}'"):
        agent.load(path)
    assert torch.equal(weights(agent), before)


def trained_on_scaled_rewards(form, env):
    """An agent that learned with scaled observations and rewards."""
    agent = new_agent(form, env)
    train_rl_agent(agent, env, RLTrainingConfig(total_timesteps=60, n_envs=2, progress=False))
    assert agent.reward_scale not in (0.0, 1.0)
    return agent


@each_form
def test_a_loaded_agent_keeps_the_scale_of_its_rewards_and_observations(tmp_path, form):
    env = market(form)
    agent = trained_on_scaled_rewards(form, env)
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    fresh = new_agent(form, env, seed=9).load(tmp_path / "agent.pt")
    for one in (loaded, fresh):
        assert one.reward_scale == agent.reward_scale
        assert one.normalizer.mode == "fixed"
        one.train(env, 60, n_envs=2)
        assert one.num_updates > agent.num_updates
        assert one.reward_scale == agent.reward_scale
        assert one.normalizer.mode == "fixed"


class LoadsOnTheWay(Callback):
    """Takes over a file once, in the middle of a run."""

    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_step(self, state):
        if state.num_timesteps == self.at:
            state.agent.load(self.path)


@pytest.mark.parametrize("form", ["ppo", "ppo, discrete", "ppo, gsde", "a2c", "a2c, discrete"])
def test_an_agent_loaded_inside_a_run_scales_rewards_by_the_statistics_it_saves(tmp_path, form):
    env = market(form)
    path = trained_on_scaled_rewards(form, env).save(tmp_path / "agent.pt")
    agent = new_agent(form, env, seed=9)
    config = RLTrainingConfig(total_timesteps=120, n_envs=2, progress=False)
    train_rl_agent(agent, env, config, LoadsOnTheWay(path, at=26))  # In the middle of a rollout of ten.
    assert agent.scaler.statistics is agent.return_statistics
    # 60 of the file; the agent is then 60 timesteps old, and six rollouts of ten end before it is 120.
    assert agent.return_statistics.count == 60 + 60
    assert agent.reward_scale == pytest.approx(1.0 / agent.return_statistics.std.item(), rel=1e-12)


# --- Training


@each_form
def test_training_again_goes_on(form):
    env = market(form)
    agent = trained(form, env)
    n_updates, before = agent.num_updates, weights(agent).clone()
    assert n_updates > 0
    assert agent.train(env, 60, n_envs=2) is agent
    assert agent.num_timesteps == 120
    assert agent.num_updates > n_updates
    assert not torch.equal(weights(agent), before)


@each_form
def test_training_again_in_the_same_vector_environment_goes_on(form):
    env = market(form).vectorize(2, random_start=True)
    agent = new_agent(form, market(form))
    agent.train(env, 60)
    n_updates = agent.num_updates
    agent.train(env, 60)
    assert agent.num_timesteps == 120
    assert agent.num_updates > n_updates


@each_form
def test_training_with_more_accounts_than_before_goes_on(form):
    env = market(form)
    agent = trained(form, env)
    assert agent.train(env, 60, n_envs=3).num_timesteps == 120


@each_form
def test_training_with_everything_that_surrounds_it_learns(form, tmp_path):
    env = market(form)
    agent = new_agent(form, env)
    config = RLTrainingConfig(
        total_timesteps=60, n_envs=2, progress=False, run_dir=str(tmp_path), checkpoint_frequency=99
    )
    metrics = train_rl_agent(agent, env, config)
    assert (metrics.num_timesteps, metrics.num_updates) == (60, agent.num_updates)
    assert agent.num_updates > 0
    assert agent.reward_scale != 1.0
    assert np.isfinite(metrics.final_evaluation["eval_total_return"])
    loaded = load_rl_agent(tmp_path / "checkpoints" / "last.pt")
    assert torch.equal(weights(loaded), weights(agent))


@pytest.mark.parametrize("form", [form for form in PLAIN if form != "a2c"])
def test_the_batch_size_of_a_call_wins_over_the_agents_own(form):
    env = market(form)
    own = weights(trained(form, env))
    same = weights(new_agent(form, env).train(env, 60, n_envs=2, batch_size=FORMS[form].batch_size))
    other = weights(new_agent(form, env).train(env, 60, n_envs=2, batch_size=3))
    assert torch.equal(own, same)
    assert not torch.equal(own, other)


@pytest.mark.parametrize("form", ["a2c", "a2c, discrete"])
def test_a2c_refuses_a_batch_size_and_says_what_to_set_instead(form):
    env = market(form)
    message = (
        r"A2C.* has no batch_size \(got 5\).*None and set A2CConfig\(n_steps=\.\.\.\) and RLTrainingConfig\(n_envs"
    )
    with pytest.raises(ValueError, match=message):
        new_agent(form, env).train(env, 60, batch_size=5)
    with pytest.raises(ValueError, match=message):
        train_rl_agent(new_agent(form, env), env, RLTrainingConfig(total_timesteps=200, batch_size=5, progress=False))
    config = RLTrainingConfig(total_timesteps=60, n_envs=3, progress=False)
    agent = new_agent(form, env, n_steps=4)
    train_rl_agent(agent, env, config)
    assert agent.num_updates == 60 // (4 * 3)


@each_form
def test_gradients_are_clipped_to_the_norm_asked_for(form):
    agent = trained(form, max_grad_norm=1e-6)
    for name in ("critic", "actor", "network"):
        if hasattr(agent, name):
            gradients = [
                parameter.grad for parameter in getattr(agent, name).parameters() if parameter.grad is not None
            ]
            norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients])).item()
            # The denominator is kept from 0 by 1e-6, little beside gradients of ordinary size.
            assert 0.0 < norm <= 1e-6 * (1.0 + 1e-5)


@each_form
def test_the_norm_of_gradients_matters_only_where_it_is_smaller(form):
    unclipped, loose, tight = (weights(trained(form, max_grad_norm=norm)) for norm in (None, 1e9, 1e-4))
    assert torch.equal(unclipped, loose)
    assert not torch.equal(unclipped, tight)


# --- Schedules


@each_form
def test_a_linear_learning_rate_reaches_zero_at_the_budget(form):
    env = market(form)
    agent = new_agent(form, env, learning_rate_schedule="linear")
    agent.bind(vector_env := env.vectorize(2, random_start=True))
    agent.schedule_timesteps = 60
    rates = []
    for report in agent.training_steps(vector_env):
        if report.losses is not None:
            (rate,) = {group["lr"] for optimizer in optimizers(agent) for group in optimizer.param_groups}
            rates.append((report.num_timesteps, rate))
        if report.num_timesteps >= 60:
            break
    # On-policy agents learn after rollouts of 10 timesteps; the last of them is at the budget.
    learned_at = [(t, rate) for t, rate in rates if agent_type_of(form) not in ("ppo", "a2c") or t % 10 == 0]
    assert len(learned_at) >= 5
    assert [rate for _, rate in learned_at] == [FORMS[form].learning_rate * (1.0 - t / 60) for t, _ in learned_at]
    assert learned_at[-1] == (60, 0.0)


@each_form
@pytest.mark.parametrize("by_function", [False, True])
def test_schedules_end_with_the_run(form, by_function):
    env = market(form)
    agent = new_agent(form, env, learning_rate_schedule="linear")
    if by_function:
        train_rl_agent(agent, env, RLTrainingConfig(total_timesteps=60, n_envs=2, progress=False))
    else:
        agent.train(env, 60, n_envs=2)
    assert agent.progress == 1.0
    assert all(group["lr"] == 0.0 for optimizer in optimizers(agent) for group in optimizer.param_groups)


@each_form
def test_a_constant_learning_rate_stays(form):
    agent = trained(form)
    rates = {group["lr"] for optimizer in optimizers(agent) for group in optimizer.param_groups}
    assert rates == {FORMS[form].learning_rate}


@each_form
def test_a_saved_agent_is_as_far_in_its_schedules(tmp_path, form):
    env = market(form)
    agent = new_agent(form, env, learning_rate_schedule="linear")
    agent.bind(vector_env := env.vectorize(2))
    agent.schedule_timesteps = 80
    for report in agent.training_steps(vector_env):
        if report.num_timesteps == 40:
            break
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    assert loaded.progress == agent.progress == 0.5
    rates = [
        [group["lr"] for optimizer in optimizers(one) for group in optimizer.param_groups] for one in (agent, loaded)
    ]
    assert rates[0] == rates[1]


def test_random_choices_grow_rarer_in_a_run_of_timesteps_and_of_episodes():
    env = market("dqn")
    for budget in ({"total_timesteps": 100}, {"total_episodes": 10}):
        agent = new_agent("dqn", env, epsilon_fraction=0.5)
        train_rl_agent(agent, env, RLTrainingConfig(**budget, n_envs=2, progress=False))
        assert agent.num_timesteps == 100
        assert agent.epsilon == pytest.approx(agent.config.epsilon_end, rel=1e-12)


# --- Actions


def expected_shape(form, n_assets, batch):
    """Shape of an action: one choice has none of its own."""
    own = () if form in MASKED and n_assets == 1 else (n_assets,)
    return (*batch, *own)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_actions_have_the_shape_and_kind_of_the_observations(form, n_assets, deterministic):
    env = market(form, n_assets)
    agent = new_agent(form, env)
    agent.bind(env.vectorize(1))
    dtypes = (np.int64, torch.int64) if form in MASKED else (np.float32, torch.float32)
    for batch in ((), (1,), (5,)):
        seen = np.zeros((*batch, agent.state_dim))
        for observation in (seen, seen.astype(np.float32), seen.tolist()):
            action = agent.select_action(observation, deterministic)
            assert isinstance(action, (np.ndarray, np.integer))
            assert (action.dtype, action.shape) == (dtypes[0], expected_shape(form, n_assets, batch))
        action = agent.select_action(torch.from_numpy(seen), deterministic)
        assert isinstance(action, torch.Tensor)
        assert (action.dtype, tuple(action.shape)) == (dtypes[1], expected_shape(form, n_assets, batch))
        assert not action.is_inference()


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_one_observation_alone_is_answered_as_it_is_among_others(form, n_assets):
    env = market(form, n_assets, max_weight=0.5)
    agent = trained(form, env)
    agent.normalizer.fix(*env.vectorize(1).observation_statistics())
    for scale in (0.1, 1.0, 100.0):
        seen = scale * observations(agent, 20)
        together = agent.select_action(seen, deterministic=True)
        alone = [agent.select_action(one, deterministic=True) for one in seen]
        as_tensors = [agent.select_action(torch.from_numpy(one), deterministic=True) for one in seen]
        # Products of another shape sum in another order; a tie of two choices within that is not met here.
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.stack(as_tensors), together, rtol=1e-5, atol=1e-6)


@each_form
def test_an_action_follows_what_was_learned_loaded_and_fixed_since_the_last_one(tmp_path, form):
    env = market(form)
    agent = trained(form, env)
    path, seen = agent.save(tmp_path / "agent.pt"), observations(agent)

    def assert_alone_as_together():
        together = agent.select_action(seen, deterministic=True)
        alone = [agent.select_action(one, deterministic=True) for one in seen]
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)

    assert_alone_as_together()
    agent.train(env, 60, n_envs=2)
    assert_alone_as_together()
    agent.normalizer.fix(*env.vectorize(1).observation_statistics())
    assert_alone_as_together()
    agent.set_action_bounds([-0.5] * agent.action_dim, [2.0] * agent.action_dim)
    assert_alone_as_together()
    agent.load(path)
    assert_alone_as_together()


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_single_actions_can_be_handed_to_the_environment(form, n_assets):
    env = market(form, n_assets)
    agent = trained(form, env, total=2)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False):
        for _ in range(4):
            action = agent.select_action(observation, deterministic)
            assert env.action_space.contains(action)
            observation = env.step(action)[0]
    kinds = {True: (Discrete, MultiDiscrete)[n_assets - 1]}
    assert isinstance(env.action_space, kinds.get(form in MASKED, object))


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("form", CONTINUOUS)
def test_actions_stay_within_the_bounds_of_the_market(form, n_assets):
    env = market(form, n_assets, allow_short=False, max_weight=0.5)
    agent = trained(form, env, total=2)
    for scale in (1.0, 100.0):
        for deterministic in (True, False):
            actions = agent.select_action(scale * observations(agent, 500), deterministic)
            assert actions.min() >= 0.0
            assert actions.max() <= 0.5
    assert np.ptp(agent.select_action(100.0 * observations(agent, 500))) > 0.05


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@each_form
def test_an_observation_with_a_hole_is_refused(form, hole, deterministic):
    agent = new_agent(form, market(form))
    agent.normalizer.fix(torch.zeros(agent.state_dim), torch.ones(agent.state_dim))
    for seen in (np.zeros(agent.state_dim), np.zeros((3, agent.state_dim))):
        seen[..., 1] = hole
        with pytest.raises(ValueError, match="NaN or inf"):
            agent.select_action(seen, deterministic)


@each_form
def test_an_observation_of_the_wrong_shape_is_refused(form):
    agent = new_agent(form, market(form))
    n = agent.state_dim
    for shape in ((n + 1,), (2, n - 1), (), (1, 1, n)):
        with pytest.raises(ValueError, match=rf"must have shape \({n},\) or \(batch, {n}\)"):
            agent.select_action(np.zeros(shape))


@each_form
def test_deterministic_actions_draw_nothing_and_repeat(form):
    agent = new_agent(form, market(form))
    before = agent.generator.get_state()
    first, again = (agent.select_action(observations(agent), deterministic=True) for _ in range(2))
    assert np.array_equal(first, again)
    assert torch.equal(agent.generator.get_state(), before)


@each_form
def test_drawn_actions_differ(form):
    agent = new_agent(form, market(form))
    seen = observations(agent, 50)
    assert not np.array_equal(agent.select_action(seen), agent.select_action(seen))


@pytest.mark.parametrize("form", CONTINUOUS)
def test_a_diverged_agent_says_so_instead_of_acting(form):
    agent = new_agent(form, market(form))
    with torch.no_grad():
        for name in agent.learned:
            if isinstance(module := getattr(agent, name), torch.nn.Module):
                for parameter in module.parameters():
                    parameter.fill_(torch.nan)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match="diverged"):
            agent.select_action(observations(agent), deterministic)


def handed_over(values):
    """The same numbers as other programs hand them over: backwards in memory, read-only, every other one of a table."""
    wide = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
    wide[..., ::2] = values
    backwards = np.ascontiguousarray(values[..., ::-1])[..., ::-1]
    read_only = np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape)
    assert backwards.strides[-1] < 0
    assert not read_only.flags.writeable
    return backwards, read_only, wide[..., ::2]


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_arrays_may_lie_in_memory_in_any_way(form, n_assets):
    agent = trained(form, market(form, n_assets))
    seen = observations(agent, 4)
    for values in (seen[0], seen, seen[0].astype(np.float64), seen.astype(np.float64)):
        for deterministic in (True, False):
            agent.generator.manual_seed(5)
            expected = agent.select_action(values, deterministic)
            for same in handed_over(values):
                agent.generator.manual_seed(5)
                # The same numbers; products may sum them in another order where they lie otherwise.
                np.testing.assert_allclose(agent.select_action(same, deterministic), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_assets", [1, 2])
@each_form
def test_a_batch_of_no_observations_has_no_actions(form, n_assets):
    agent = trained(form, market(form, n_assets))
    empty = np.zeros((0, agent.state_dim), np.float32)
    for deterministic in (True, False):
        usual = agent.select_action(observations(agent, 2), deterministic)
        for seen in (empty, torch.from_numpy(empty.copy())):
            masks = [{}, {"action_mask": np.ones((0, agent.action_dim), bool)}] if form in MASKED else [{}]
            for mask in masks:
                found = np.asarray(agent.select_action(seen, deterministic, **mask))
                assert found.shape == (0, *usual.shape[1:])
                assert found.dtype == usual.dtype


# --- Spaces of other environments


class Acts(gymnasium.Env):
    """Nothing but a space of actions."""

    observation_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, space):
        self.action_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(3, np.float32), 1.0, False, False, {}


def assert_learns_in(form, env):
    """Train an agent of the dimensions that an environment asks for; every action is one of its space."""
    action_dim = gymnasium.spaces.flatdim(env.action_space)
    agent = create_rl_agent(agent_type_of(form), 3, action_dim, FORMS[form], seed=0).train(env, 60)
    assert agent.num_updates > 0


DISCRETE_PLAIN = ["dqn", "ppo, discrete", "a2c, discrete"]
CONTINUOUS_PLAIN = ["ppo", "sac", "td3", "ddpg", "a2c"]

# Spaces of choices that no agent acts in, the action in them, and the space to translate them from.
ODD_CHOICES = {
    "counted from 1": (Discrete(3, start=1), lambda action: action + 1, Discrete(3)),
    "several counted from 1": (MultiDiscrete([3, 3], start=[1, 1]), lambda action: action + 1, MultiDiscrete([3, 3])),
    "unequal": (MultiDiscrete([2, 3]), lambda action: np.minimum(action, [1, 2]), MultiDiscrete([3, 3])),
    "two rows": (MultiDiscrete([[3, 3]]), lambda action: action[None], MultiDiscrete([3, 3])),
}


@pytest.mark.parametrize("odd", ODD_CHOICES.values(), ids=ODD_CHOICES)
@pytest.mark.parametrize("form", DISCRETE_PLAIN)
def test_choices_that_do_not_fit_are_answered_with_a_wrapper_that_works(form, odd):
    space, translate, plain = odd
    agent = create_rl_agent(agent_type_of(form), 3, 6, FORMS[form])
    with pytest.raises(
        TypeError, match=r"both counted from 0; the environment has .*Discrete.*gymnasium\.ActionWrapper"
    ):
        agent.train(Acts(space), 10)

    class Translated(gymnasium.ActionWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.action_space = plain

        def action(self, action):
            return translate(action)

    assert_learns_in(form, Translated(Acts(space)))


@pytest.mark.parametrize("form", CONTINUOUS_PLAIN)
def test_actions_in_a_table_are_answered_with_flattening_which_works(form):
    env = Acts(Box(-2.0, 1.0, (2, 2), np.float32))
    with pytest.raises(ValueError, match=r"needs actions in one row, .*; flatten them in a wrapper"):
        create_rl_agent(form, 3, 4, FORMS[form]).train(env, 10)
    row = Box(-2.0, 1.0, (4,), np.float32)
    assert_learns_in(form, TransformAction(env, lambda action: action.reshape(2, 2), row))


def refusal(form, action_dim, env):
    with pytest.raises((TypeError, ValueError)) as raised:
        create_rl_agent(agent_type_of(form), 3, action_dim, FORMS[form]).train(env, 10)
    return str(raised.value)


@pytest.mark.parametrize("form", CONTINUOUS_PLAIN)
@pytest.mark.parametrize("low", [-np.inf, 0.0])
def test_actions_without_bounds_are_refused(form, low):
    env = Acts(Box(low, np.inf, (2,), np.float32))
    assert "needs actions with finite bounds" in refusal(form, 2, env)
    bounded = Box(max(low, -1.0), 1.0, (2,), np.float32)
    assert_learns_in(form, TransformAction(env, lambda action: action, bounded))


def test_the_wrapper_named_for_actions_without_bounds_works():
    env = Acts(Box(-np.inf, np.inf, (2,), np.float32))
    named = re.search(r"gymnasium\.wrappers\.(\w+)", refusal("sac", 2, env)).group(1)
    bounded = Box(-1.0, 1.0, (2,), np.float32)
    arguments = {"RescaleAction": (-1.0, 1.0), "TransformAction": (lambda action: action, bounded)}[named]
    assert_learns_in("sac", getattr(gymnasium.wrappers, named)(env, *arguments))


@pytest.mark.parametrize("form", [*DISCRETE_PLAIN, *CONTINUOUS_PLAIN])
def test_whole_numbers_in_a_box_are_refused(form):
    assert "int64" in refusal(form, 2, Acts(Box(0, 5, (2,), np.int64)))


@pytest.mark.parametrize("form", [*DISCRETE_PLAIN, *CONTINUOUS_PLAIN])
def test_whole_numbers_in_a_box_are_not_answered_with_an_agent_that_refuses_them_too(form):
    env = Acts(Box(0, 5, (2,), np.int64))
    other = re.search(r"create_rl_agent\('(\w+)'", refusal(form, 2, env))
    assert other is None or not refusal(other.group(1), 2, env)


# --- Masks


def random_masks(n, n_assets, generator):
    """Masks that leave at least one choice per asset."""
    mask = generator.random((n, n_assets, 3)) < 0.5
    keep = generator.integers(0, 3, (n, n_assets))
    np.put_along_axis(mask, keep[..., None], True, -1)
    return mask


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("form", MASKED)
def test_no_masked_choice_is_ever_made(form, n_assets):
    env = market(form, n_assets)
    agent = trained(form, env)
    generator = np.random.default_rng(0)
    seen, mask = 3.0 * observations(agent, 1_000), random_masks(1_000, n_assets, generator)
    for progress in (0, 100):  # A DQN agent explores first and hardly any more later.
        agent.num_timesteps, agent.schedule_timesteps = progress, 100
        for deterministic in (False, True):
            choices = agent.select_action(seen, deterministic, action_mask=mask.reshape(1_000, -1))
            assert np.take_along_axis(mask, choices.reshape(1_000, n_assets, 1), -1).all()


@pytest.mark.parametrize("form", MASKED)
def test_every_legal_choice_is_made_sometimes(form):
    agent = new_agent(form, market(form))
    seen = np.zeros((1_000, agent.state_dim))
    choices = agent.select_action(seen, action_mask=np.tile([1, 0, 1], (1_000, 1)))
    counts = np.bincount(choices, minlength=3)
    # A fresh agent is close to undecided: 500 of 1,000 draws, four standard errors of sqrt(250) are 63.
    assert counts[1] == 0
    assert counts[0] == pytest.approx(500, abs=64)


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_of_a_single_observation_has_one_axis(form):
    agent = new_agent(form, market(form))
    for only in range(3):
        mask = np.zeros(3, np.int8)  # As the environment gives it.
        mask[only] = 1
        for deterministic in (True, False):
            assert agent.select_action(np.zeros(agent.state_dim), deterministic, action_mask=mask) == only
            assert (
                agent.select_action(torch.zeros(agent.state_dim), deterministic, action_mask=torch.tensor(mask)) == only
            )


@pytest.mark.parametrize("form", MASKED)
def test_the_best_of_the_legal_choices_is_taken(form):
    agent = trained(form)
    seen = 3.0 * observations(agent, 200)
    best = agent.select_action(seen, deterministic=True)
    mask = np.ones((200, 3), bool)
    mask[:, 0] = best == 0  # Nothing that is best is forbidden, and the choice stays.
    assert np.array_equal(agent.select_action(seen, deterministic=True, action_mask=mask), best)


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_of_the_wrong_shape_is_refused(form):
    agent = new_agent(form, market(form))
    one, two = np.zeros(agent.state_dim), np.zeros((2, agent.state_dim))
    for seen, shape, right in (
        (one, 4, 3),
        (one, (1, 3), 3),
        (two, 3, (2, 3)),
        (two, (3, 3), (2, 3)),
        (two, (1, 3), (2, 3)),
    ):
        mask = np.ones(shape)
        expected = np.ones(right)
        with pytest.raises(ValueError, match=re.escape(f"action_mask must have shape {expected.shape}")) as raised:
            agent.select_action(seen, action_mask=mask)
        assert str(raised.value).endswith(f"got {mask.shape}")
        agent.select_action(seen, action_mask=expected)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("form", MASKED)
def test_a_mask_that_leaves_no_choice_is_refused(form, n_assets):
    agent = trained(form, market(form, n_assets))
    none = np.ones((3, n_assets, 3), np.int8)
    none[1, -1] = 0  # One asset of one observation.
    none, seen = none.reshape(3, -1), observations(agent, 3)
    for deterministic in (True, False):
        for values, mask in ((seen, none), (seen[1], none[1]), (seen[1:2], none[1:2])):
            for as_given in (np.asarray, torch.tensor):
                with pytest.raises(ValueError, match="action_mask must leave at least one choice"):
                    agent.select_action(as_given(values), deterministic, action_mask=as_given(mask))


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_with_holes_is_refused(form):
    agent = new_agent(form, market(form))
    seen, mask = observations(agent, 2), np.array([[1.0, 0.0, 1.0], [1.0, np.nan, 1.0]])
    for deterministic in (True, False):
        for values, holes in ((seen, mask), (seen[1], mask[1])):
            for as_given in (np.asarray, torch.tensor):
                with pytest.raises(ValueError, match="action_mask holds NaN"):
                    agent.select_action(as_given(values), deterministic, action_mask=as_given(holes))


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_may_lie_in_memory_in_any_way(form):
    agent = trained(form)
    seen, mask = observations(agent, 2), np.array([[1, 0, 0], [0, 1, 1]], np.int8)
    for values, legal in ((seen, mask), (seen[0], mask[0])):
        for deterministic in (True, False):
            agent.generator.manual_seed(5)
            expected = agent.select_action(values, deterministic, action_mask=legal)
            for same in handed_over(legal):
                agent.generator.manual_seed(5)
                assert np.array_equal(agent.select_action(values, deterministic, action_mask=same), expected)


@pytest.mark.parametrize("form", CONTINUOUS)
def test_an_agent_of_numbers_refuses_a_mask(form):
    agent = new_agent(form, market(form))
    with pytest.raises(ValueError, match=f"agent '{agent.agent_type}' acts continuously: it takes no action_mask"):
        agent.select_action(np.zeros(agent.state_dim), action_mask=np.ones(1))


class Watched(TradingVectorEnv):
    """A market that writes down what was legal and what was done."""

    def step(self, actions):
        self.__dict__.setdefault("seen", []).append((self.action_mask(), actions.clone()))
        return super().step(actions)


@pytest.mark.parametrize("n_assets", [1, 2])
@pytest.mark.parametrize("form", MASKED)
def test_no_masked_choice_is_made_while_collecting(form, n_assets):
    env = market(form, n_assets, allow_short=False)  # Flat, there is nothing to sell.
    agent = new_agent(form, env, **({"learning_starts": 150} if form.startswith("dqn") else {}))
    watched = Watched(env.market, dataclasses.replace(env.config, random_start=True), n_envs=5, seed=0)
    agent.train(watched, 300)
    legal = torch.stack([mask for mask, _ in watched.seen]).view(60, 5, n_assets, 3)
    choices = torch.stack([choice for _, choice in watched.seen]).view(60, 5, n_assets, 1)
    assert not legal.all()
    assert legal.gather(-1, choices).all()
    assert set(choices.unique().tolist()) == {0, 1, 2}


# --- Networks that read the window


NETWORKS = ["cnn", "lstm", "transformer"]


@each_form
def test_an_agent_without_its_networks_says_how_it_gets_them(tmp_path, form):
    env = market(form)
    agent = new_agent(form, env, network="lstm")
    message = (
        r"network='lstm' gets its networks when it meets its environment: call agent\.bind\(env\), train it, or load"
    )
    for use in (
        lambda: agent.select_action(np.zeros(agent.state_dim)),
        lambda: agent.save(tmp_path / "agent.pt"),
        agent.state_dict,
    ):
        with pytest.raises(RuntimeError, match=message):
            use()
    assert not list(tmp_path.iterdir())
    agent.bind(env.vectorize(1))  # The first of the three ways out; the others are below.
    assert agent.select_action(observations(agent)).shape == expected_shape(form, 1, (5,))


def test_an_agent_that_reads_windows_refuses_an_environment_without_them():
    agent = create_rl_agent("sac", 3, 1, SACConfig(network="cnn"))
    with pytest.raises(ValueError, match="use network='mlp', or train in a TradingEnvironment"):
        agent.train("Pendulum-v1", 10)


# A few updates of networks that cost more than the rest of the file together.
FEW = {"ppo": {"n_steps": 3, "n_epochs": 1}, "a2c": {"n_steps": 3}, "dqn": {"epsilon_start": 0.5, "epsilon_end": 0.5}}


def window_agent(form, network, env, seed=0):
    """An agent that reads windows. A DQN's share of random choices is kept from following the budget."""
    few = FEW.get(form, {}) if form in ("ppo", "a2c") else {"learning_starts": 8, "batch_size": 4} | FEW.get(form, {})
    # Eight rectified numbers may all be 0 at once, and then nothing before them learns.
    return new_agent(form, env, seed, network=network, hidden_dim=16, activation="tanh", **few)


def run(agent, env, folder, total, resume_from=None):
    settings = {"n_envs": 2, "progress": False, "checkpoint_frequency": 1_000}
    config = RLTrainingConfig(total_timesteps=total, run_dir=str(folder), **settings)
    train_rl_agent(agent, env, config, resume_from=resume_from)
    return folder / "checkpoints" / "last.pt"


@pytest.mark.parametrize("network", NETWORKS)
@each_agent
def test_an_agent_that_reads_windows_trains_saves_loads_and_resumes(tmp_path, form, network):
    env = market(form, window_size=6)
    whole = window_agent(form, network, env)
    path = run(whole, env, tmp_path / "whole", 24)
    loaded, fresh = load_rl_agent(path), window_agent(form, network, env, seed=9).load(path)
    for other in (loaded, fresh):
        whole.generator.set_state(other.generator.get_state())
        assert_acts_alike(other, whole)
    cut = window_agent(form, network, env)
    last = run(cut, env, tmp_path / "cut", 16)
    assert 0 < cut.num_updates < whole.num_updates
    resumed = window_agent(form, network, env, seed=9)
    run(resumed, env, tmp_path / "cut", 24, resume_from=last)
    resumed.generator.set_state(whole.generator.get_state())  # It has acted since.
    assert as_plain(resumed.state_dict()) == as_plain(whole.state_dict())


@pytest.mark.parametrize("network", NETWORKS)
@each_agent
def test_every_part_of_an_agent_that_reads_windows_learns(form, network):
    env = market(form, window_size=6)
    agent = window_agent(form, network, env).train(env, 24, n_envs=2)
    parameters = [parameter for optimizer in optimizers(agent) for parameter in optimizer.param_groups[0]["params"]]
    assert len(parameters) >= 6
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)


# --- Compiled losses


# Of torch's own making, when its compiler is first imported.
compiling = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:.*torch.jit:DeprecationWarning")


def compare_compiled(form, **changes):
    """Train an agent as it is and with compiled losses; both learn alike, and something was compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    env = market(form)
    if agent_type_of(form) == "ppo":
        changes["batch_size"] = 5  # A smaller last minibatch would be compiled for its own.
    results = []
    for compiled in (False, True):
        agent = new_agent(form, env, compile=compiled, **changes)
        agent.bind(vector_env := env.vectorize(2, random_start=True))
        losses = []
        for report in agent.training_steps(vector_env):
            if report.losses is not None:
                losses.append(torch.stack([value.detach().double() for value in report.losses.values()]))
            if report.num_timesteps >= 40:
                break
        if not compiled:
            assert not torch._dynamo.utils.counters["stats"]
        results.append((torch.stack(losses), weights(agent), agent.num_updates))
    (losses, plain, n_updates), (compiled_losses, compiled_weights, n_compiled_updates) = results
    stats = torch._dynamo.utils.counters
    # Whole losses, in one piece each: actor-critics of replay memories have two.
    n_losses = 2 if agent_type_of(form) in ("sac", "td3", "ddpg") else 1
    assert stats["stats"]["unique_graphs"] == n_losses
    assert not stats["graph_break"]
    assert n_updates == n_compiled_updates > 3
    # Fused operations round in another order, and a few steps of Adam carry it on.
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(compiled_weights, plain, rtol=1e-3, atol=1e-4)


@compiling
def test_a_compiled_agent_learns_as_it_does_uncompiled():
    compare_compiled("a2c")


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "a2c"])
def test_every_compiled_agent_learns_as_it_does_uncompiled(form):
    compare_compiled(form)
