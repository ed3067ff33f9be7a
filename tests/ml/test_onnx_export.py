"""An exported file answers what the agent answers, and leaves the agent as it was."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.onnx_export import export_onnx
from ml.tradingbots.components.rl_agents import AGENTS, create_rl_agent, list_available_agents
from ml.tradingbots.components.vector_environment import TradingVectorEnv


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_agent(agent_type, state_dim, action_dim, **settings):
    config = AGENTS[agent_type].config_class(hidden_dim=8, **settings)
    agent = create_rl_agent(agent_type, state_dim, action_dim, config, seed=3)
    # As after training on observations far from the scale of 1.
    rng = np.random.default_rng(4)
    agent.normalizer.fix(torch.tensor(rng.normal(5.0, 2.0, state_dim)), torch.tensor(rng.uniform(0.5, 3.0, state_dim)))
    return agent


def market_env(make_prices, n_assets, action_type):
    config = TradingEnvConfig(
        window_size=6, features=("log_return", "rsi:5"), action_type=action_type, allow_short=False
    )
    return TradingVectorEnv(make_prices(60, n_assets), config, n_envs=4)


def bound_agent(agent_type, env, **settings):
    agent = new_agent(agent_type, env.observation_space_dim, env.action_space_dim, **settings)
    agent.bind(env)
    return agent


def running(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # It warns that an input may be left out.
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def act(observation, **mask):
        return session.run(None, {"observation": observation, **mask})[0]

    return act


def observations(batch, state_dim, seed=0):
    return np.random.default_rng(seed).normal(5.0, 4.0, (batch, state_dim)).astype(np.float32)


def masks(batch, n_branches, seed=1):
    """Return random masks with at least one legal choice of three in each branch."""
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, n_branches, 3)) < 0.5
    np.put_along_axis(mask, rng.integers(0, 3, (batch, n_branches, 1)), True, axis=2)
    return mask.reshape(batch, -1)


@pytest.mark.parametrize("agent_type", sorted(list_available_agents()))
def test_the_file_of_every_agent_answers_what_the_agent_answers(agent_type, tmp_path):
    agent = new_agent(agent_type, 5, 3)
    if not agent.is_discrete:
        agent.set_action_bounds([-1.0, 0.0, -3.0], [1.0, 0.5, 5.0])
    act = running(export_onnx(agent, tmp_path / "agent.onnx"))
    for batch in (1, 2, 100):
        observation = observations(batch, 5)
        observation[0, 0] = 1e6  # Clipped by the normaliser.
        expected, found = agent.select_action(observation, deterministic=True), act(observation)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        # Two float32 programs that sum in other orders, times the widest bounds.
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("agent_type", "settings"),
    [
        ("dqn", {"network": "transformer"}),
        ("ppo", {"network": "lstm", "action_type": "discrete"}),
        ("a2c", {"network": "cnn", "action_type": "discrete"}),
    ],
)
def test_a_file_for_a_portfolio_reads_windows_and_obeys_masks(agent_type, settings, make_prices, tmp_path):
    env = market_env(make_prices, 2, "discrete")
    agent = bound_agent(agent_type, env, **settings)
    act = running(export_onnx(agent, tmp_path / "agent.onnx"))
    observation, mask = observations(200, agent.state_dim), masks(200, 2)
    free = act(observation)
    assert free.dtype == np.int64
    # Not a tolerance but the same choices: at a tie within rounding they could differ, and there is none here.
    np.testing.assert_array_equal(free, agent.select_action(observation, deterministic=True))
    masked = act(observation, action_mask=mask)
    np.testing.assert_array_equal(masked, agent.select_action(observation, deterministic=True, action_mask=mask))
    assert np.take_along_axis(mask.reshape(200, 2, 3), masked[..., None], axis=2).all()
    assert (masked != free).any()
    # One mask for the whole batch is stretched over it.
    np.testing.assert_array_equal(
        act(observation, action_mask=mask[:1]),
        agent.select_action(observation, deterministic=True, action_mask=np.repeat(mask[:1], 200, axis=0)),
    )


@pytest.mark.parametrize(("agent_type", "settings"), [("dqn", {}), ("a2c", {"action_type": "discrete"})])
def test_the_file_of_a_discrete_agent_leaves_the_batch_free(agent_type, settings, tmp_path):
    path = export_onnx(new_agent(agent_type, 5, 3, **settings), tmp_path / "agent.onnx")
    graph = onnx.load(path).graph
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output))
    act = running(path)
    assert [len(act(observations(batch, 5))) for batch in (1, 3, 7)] == [1, 3, 7]


@pytest.fixture(scope="module")
def lstm_sac(make_prices, tmp_path_factory):
    """A continuous agent that reads windows, what it answered before it was exported, and its file."""
    env = market_env(make_prices, 2, "continuous")
    agent = bound_agent("sac", env, network="lstm", learning_starts=8, batch_size=8, buffer_size=100)
    before = agent.select_action(observations(5, agent.state_dim), deterministic=True)
    return env, agent, before, export_onnx(agent, tmp_path_factory.mktemp("models") / "new" / "agent.onnx")


def test_a_file_for_weights_scales_to_the_bounds_of_the_environment(lstm_sac):
    _, agent, before, path = lstm_sac
    found = running(path)(observations(5, agent.state_dim))
    np.testing.assert_allclose(found, before, rtol=0.0, atol=1e-5)  # As above.
    assert ((found >= 0.0) & (found <= 1.0)).all()


def test_exporting_leaves_the_agent_as_it_was(lstm_sac):
    env, agent, before, _ = lstm_sac
    np.testing.assert_array_equal(agent.select_action(observations(5, agent.state_dim), deterministic=True), before)
    assert all(
        type(parameter) is torch.nn.Parameter and parameter.requires_grad for parameter in agent.actor.parameters()
    )
    agent.train(env, 40)
    assert agent.num_updates > 0


def test_the_file_says_what_it_is_and_what_it_was_trained_in(lstm_sac):
    env, _, _, path = lstm_sac
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["agent_type"] == "sac"
    assert json.loads(metadata["environment"]) == json.loads(json.dumps(env.specification()))
    assert json.loads(metadata["action_bounds"]) == {"low": [0.0, 0.0], "high": [1.0, 1.0]}
    assert [value.name for value in model.graph.input] == ["observation"]
    assert [value.name for value in model.graph.output] == ["action"]


def test_the_file_holds_the_policy_and_nothing_else(lstm_sac):
    _, agent, _, path = lstm_sac
    content = path.read_bytes()
    policy = 4 * sum(parameter.numel() for parameter in agent.actor.parameters())
    # Beside the weights only nodes, names and metadata.
    assert len(content) < policy + 20_000
    assert b"critic" not in content
    assert b".py" not in content


def test_a_diverged_agent_is_refused_and_an_older_file_stays(tmp_path):
    agent, path = new_agent("sac", 4, 1), tmp_path / "agent.onnx"
    path.write_bytes(b"older")
    with torch.no_grad():
        next(agent.actor.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        export_onnx(agent, path)
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == ["agent.onnx"]


def test_an_agent_without_networks_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="gets its networks when it meets its environment"):
        export_onnx(new_agent("sac", 10, 1, network="lstm"), tmp_path / "agent.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_names_the_extra(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'tradingbots\[onnx\]'"):
        export_onnx(new_agent("sac", 4, 1), tmp_path / "agent.onnx")
