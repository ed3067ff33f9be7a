"""What agents and accounts do on an accelerator, seen without one: the same code on the CPU, and on tensors without numbers.

A tensor on the device "meta" has a shape and a place and no numbers. Reading one, or asking where it is true, raises; so
what trains there trains without ever waiting for its device. An operation that mixes devices is caught on its way.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.optimizers import FusedAdam, RMSprop
from ml.tradingbots.components.rl_agents import AGENTS, create_rl_agent
from ml.tradingbots.components.vector_adapter import TensorVectorEnv
from ml.tradingbots.components.vector_environment import TradingVectorEnv

GPU_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

ON_POLICY = {"n_steps": 4}
OFF_POLICY = {"hidden_dim": 8, "learning_starts": 16, "batch_size": 8, "buffer_size": 64}
# Agent, fields of its config, number of assets.
KINDS = {
    "ppo": ("ppo", {**ON_POLICY, "batch_size": 8, "n_epochs": 2, "learning_rate_schedule": "linear"}, 1),
    "ppo portfolio": ("ppo", {**ON_POLICY, "batch_size": 8, "n_epochs": 1, "clip_value_epsilon": 0.2}, 3),
    "ppo discrete": ("ppo", {**ON_POLICY, "batch_size": 8, "n_epochs": 1, "action_type": "discrete"}, 3),
    "ppo gsde": ("ppo", {**ON_POLICY, "batch_size": 8, "n_epochs": 1, "gsde": True, "gsde_sample_freq": 2}, 1),
    "ppo lstm": ("ppo", {**ON_POLICY, "batch_size": 8, "n_epochs": 1, "network": "lstm", "hidden_dim": 8}, 1),
    "a2c": ("a2c", ON_POLICY, 1),
    "a2c torch's rmsprop": ("a2c", {**ON_POLICY, "optimizer": "rmsprop"}, 1),
    "sac": ("sac", OFF_POLICY, 1),
    "sac gsde": ("sac", {**OFF_POLICY, "gsde": True, "train_freq": 2}, 1),
    "sac cnn": ("sac", {**OFF_POLICY, "network": "cnn"}, 1),
    "td3": ("td3", OFF_POLICY, 1),
    "ddpg": ("ddpg", OFF_POLICY, 1),
    "dqn": ("dqn", {**OFF_POLICY, "target_update_interval": 8}, 1),
    "dqn portfolio": ("dqn", {**OFF_POLICY, "n_step_targets": 3}, 3),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
N_ENVS = 4


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def markets(make_prices):
    return {n_assets: Market(make_prices(60, n_assets, seed=5, volatility=0.04), config_of()) for n_assets in (1, 3)}


def config_of(**changes):
    return TradingEnvConfig(
        **{"window_size": 3, "features": ("log_return", "momentum:4"), "commission": 0.001, **changes}
    )


def accounts_for(kind, markets, *, device="cpu", synchronous=False, **changes):
    agent_type, fields, n_assets = KINDS[kind]
    is_discrete = agent_type == "dqn" or fields.get("action_type") == "discrete"
    config = config_of(
        # Stops end episodes here and there, the length ends them together.
        **{"episode_length": 9, "max_drawdown": 0.04, "allow_short": False, "random_start": True, **changes},
        action_type="discrete" if is_discrete else "continuous",
    )
    return TradingVectorEnv(markets[n_assets], config, n_envs=N_ENVS, device=device, seed=2, synchronous=synchronous)


def agent_for(kind, env, *, device="cpu", **changes):
    agent_type, fields, _ = KINDS[kind]
    config = AGENTS[agent_type].config_class(**{**fields, **changes})
    agent = create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config, device=device, seed=3)
    agent.normalizer.fix(*env.observation_statistics())
    agent.bind(env)
    return agent


def tensors_in(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def assert_learned_the_same(one, other):
    ours, theirs = tensors_in(one.learned_state()), tensors_in(other.learned_state())
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


# On the CPU.


@each_kind
def test_an_agent_learns_the_same_from_accounts_that_may_be_waited_for_and_that_may_not(kind, markets):
    agents, n_ended = [], []
    for synchronous in (True, False):
        # No random starts: one draws for the accounts that are done, the other for all.
        env = accounts_for(kind, markets, synchronous=synchronous, random_start=False)
        agent = agent_for(kind, env)
        steps, ended = agent.training_steps(env), 0
        for _ in range(20):
            ended += len((next(steps).episodes or {"r": []})["r"])
        agents.append(agent)
        n_ended.append(ended)
    assert n_ended[0] == n_ended[1] >= 2 * N_ENVS
    assert agents[0].num_updates > 0
    assert_learned_the_same(*agents)


@pytest.mark.parametrize("kind", AGENTS)
def test_training_that_never_waits_can_be_repeated_bit_for_bit(kind, markets):
    env, other = (accounts_for(kind, markets) for _ in range(2))
    assert_learned_the_same(agent_for(kind, env).train(env, 40), agent_for(kind, other).train(other, 40))


class Clock(gymnasium.Env):
    """Tells the time, in episodes of a length of their own that end for lack of time; rewards are the action."""

    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def look(self):
        return np.array([self.time / 4.0, self.length / 4.0], np.float32)

    def step(self, action):
        self.time += 1
        return self.look(), float(action[0]), False, self.time == self.length, {}


def clocks(_):
    makers = [lambda length=length: Clock(length) for length in (2, 3, 5, 40)]
    return TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("agent_type", ["ppo", "a2c"])
@pytest.mark.parametrize(
    "environment", [lambda markets: accounts_for("ppo", markets, episode_length=4), clocks], ids=["market", "clocks"]
)
def test_values_beyond_the_cuts_are_those_found_by_index_where_all_are_evaluated(agent_type, environment, markets):
    env = environment(markets)
    (state_dim,) = env.single_observation_space.shape
    agent = create_rl_agent(agent_type, state_dim, 1, AGENTS[agent_type].config_class(n_steps=12), seed=3)
    steps = agent.training_steps(env)
    for _ in range(24):  # Two rollouts: the second is written over the first.
        report = next(steps)
    with torch.no_grad():
        rollout = agent.rollouts.rollout(env.reset()[0])
        assert 4 <= int(rollout.truncated.sum()) < rollout.truncated.numel()
        values = agent.network.value(rollout.observation.flatten(0, 1)).view_as(rollout.reward)
        last = agent.network.value(rollout.next_observation)
        by_index = agent._next_values(rollout, values, last)
        agent.device = torch.device("cuda")  # What the choice between the two ways depends on.
        of_all = agent._next_values(rollout, values, last)
    assert report.losses is not None
    # A row of a larger product may be summed in another order.
    torch.testing.assert_close(of_all, by_index, rtol=1e-5, atol=1e-6)
    assert torch.equal(of_all[~rollout.truncated], by_index[~rollout.truncated])


class NoWaiting(TorchDispatchMode):
    """Fails on what would wait for an accelerator: values read, sizes that depend on values, tensors made of numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "is_nonzero")
        name = function.__name__.split(".")[0]
        by_mask = name == "index" and any(index is not None and index.dtype is torch.bool for index in args[1])
        assert name not in waits, function
        assert not by_mask, function
        return function(*args, **(kwargs or {}))


@each_kind
def test_collecting_reads_no_value_back(kind, markets):
    env = accounts_for(kind, markets)
    on_policy = KINDS[kind][0] in ("ppo", "a2c")
    # Never learning: a rollout that does not fill, or a first block of gradient steps that is far away.
    agent = agent_for(kind, env, **({"n_steps": 40} if on_policy else {"train_freq": 1_000}))
    steps = agent.training_steps(env)
    next(steps)
    with NoWaiting():
        for _ in range(12):
            report = next(steps)
    assert agent.num_timesteps == 13 * N_ENVS > OFF_POLICY["learning_starts"]
    assert report.losses is None
    assert report.infos["_episode"].dtype is torch.bool


def test_prioritised_memories_are_filled_without_reading_a_value_back(markets):
    env = accounts_for("dqn", markets)
    agent = agent_for("dqn", env, prioritized=True, train_freq=1_000)
    steps = agent.training_steps(env)
    next(steps)
    with NoWaiting():
        for _ in range(10):
            next(steps)
    assert agent.replay.size == 11 * N_ENVS


def test_a_count_of_ended_episodes_is_seen_to_wait(markets):
    env = accounts_for("ppo", markets)
    report = next(agent_for("ppo", env).training_steps(env))
    with NoWaiting(), pytest.raises(AssertionError, match="nonzero"):
        report.episodes  # noqa: B018


# On tensors without numbers.


class HostGenerator(torch.Generator):
    """A generator for the meta device, which has none of its own and draws nothing."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    device = torch.device("meta")


class AllThere(TorchDispatchMode):
    """Fails on an operation with a tensor elsewhere than on the meta device; single numbers may come from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function.__name__.startswith("exponential_"):
            kwargs.pop("generator", None)  # The meta device refuses one there.
        result = function(*args, **kwargs)
        places = {tensor.device.type for tensor in tensors_in((args, kwargs, result)) if tensor.ndim > 0}
        assert places <= {"meta"}, f"{function} touches {places}"
        return result


@pytest.fixture
def _meta(monkeypatch):
    """Make up for what the meta device lacks: generators, and parameters that can be moved to it."""
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def without_fused_adam(agent):
    """Give an agent optimisers that the meta device has."""
    for name in agent.learned:
        optimizer = getattr(agent, name)
        if isinstance(optimizer, FusedAdam):
            setattr(agent, name, RMSprop(optimizer.param_groups[0]["params"], 1e-3))
    return agent


@pytest.mark.usefixtures("_meta")
@each_kind
def test_training_on_a_device_reads_nothing_back_and_makes_nothing_elsewhere(kind, markets):
    env = accounts_for(kind, markets, device="meta", synchronous=None)
    assert not env.synchronous
    agent = without_fused_adam(agent_for(kind, env, device="meta"))
    steps = agent.training_steps(env)
    with AllThere():
        for _ in range(6):
            report = next(steps)
    assert agent.num_updates > 0
    assert {tensor.device.type for tensor in tensors_in(agent.learned_state()) if tensor.ndim > 0} == {"meta"}
    assert {tensor.device.type for tensor in tensors_in(agent.memory_state())} == {"meta"}
    assert {tensor.device.type for tensor in tensors_in((report.reward, report.infos))} == {"meta"}


@pytest.mark.usefixtures("_meta")
def test_what_is_made_elsewhere_is_seen(markets):
    env = accounts_for("ppo", markets, device="meta")
    env.reset()
    with AllThere(), pytest.raises(AssertionError, match="touches"):
        env.step(torch.zeros(N_ENVS, 1))


@pytest.mark.usefixtures("_meta")
def test_reading_a_value_is_seen(markets):
    env = accounts_for("ppo", markets, device="meta", synchronous=True)
    env.reset()
    with pytest.raises(RuntimeError, match="meta"):
        env.step(torch.zeros(N_ENVS, 1, device="meta"))


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize(("low", "high", "plain"), [(-1.0, 1.0, True), (0.0, 1.0, False), (-2.0, 2.0, False)])
def test_action_bounds_are_known_without_asking_the_device(low, high, plain):
    agent = create_rl_agent("ppo", 3, 2, device="meta")
    agent.set_action_bounds(np.full(2, low), np.full(2, high))
    assert agent.to_environment(agent.action_low).device.type == "meta"
    assert agent._plain_bounds is plain


# The benchmark.


@pytest.fixture(scope="module")
def gpu():
    specification = importlib.util.spec_from_file_location("benchmark_gpu", GPU_SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["benchmark_gpu"] = module  # Where dataclasses look for their annotations.
    specification.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_gpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_the_gpu_benchmark_says_that_there_is_no_device_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(GPU_SCRIPT)])
    runpy.run_path(str(GPU_SCRIPT), run_name="__main__")
    assert "no CUDA device" in capsys.readouterr().out


def test_the_gpu_benchmark_runs_on_a_cpu(gpu, capsys):
    options = gpu.Options(
        device="cpu", recipes=("16k-one-epoch",), compile=False, seconds=0.0, n_repeats=2, shrink=2_048
    )
    rows = gpu.main(options)
    assert [row.what for row in rows] == ["environment, random actions", "ppo, collect only", "ppo, collect and learn"]
    assert all(len(row.rates) == 2 and min(row.rates) > 0.0 for row in rows)
    assert "16k-one-epoch: 8 accounts × 32 steps, 1 passes in minibatches of 16" in capsys.readouterr().out
    json.dumps(gpu.about(torch.device("cpu"), options))


def test_a_recipe_says_how_many_gradient_steps_a_million_timesteps_get(gpu):
    recipe = gpu.Recipe(n_envs=100, n_steps=10, batch_size=300, n_epochs=2)
    # 1,000 transitions are four minibatches, the last one smaller; two passes; a thousand rollouts.
    assert recipe.gradient_steps_per_million == pytest.approx(8_000.0)
    assert recipe.shrunk(10) == gpu.Recipe(n_envs=10, n_steps=10, batch_size=30, n_epochs=2)
    assert recipe.shrunk(10).gradient_steps_per_million == pytest.approx(80_000.0)


def test_the_gpu_benchmark_times_nothing_where_accounts_differ(gpu, markets, monkeypatch):
    monkeypatch.setattr(gpu, "PARITY", -1.0)
    monkeypatch.setattr(gpu, "N_CHECKED_BARS", 12)
    monkeypatch.setattr(gpu, "CONFIG", config_of())
    with pytest.raises(SystemExit, match="not those on the CPU"):
        gpu.check_agreement(markets[1], torch.device("cpu"), n_envs=3)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"recipes": ("huge",)}, "unknown recipe 'huge'"),
        ({"n_repeats": 0}, "must be at least 1, got 0"),
        ({"save": True, "device": "cpu"}, "leave it out with device='cpu'"),
    ],
)
def test_options_that_make_no_sense_are_refused(gpu, settings, found):
    with pytest.raises(ValueError, match=found):
        gpu.Options(**settings)
