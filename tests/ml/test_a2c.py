"""A2C against the paper's formulas written out once more in float64, and against Stable-Baselines3 with the same weights."""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from ml.tradingbots.components.a2c_agent import A2CAgent, A2CConfig
from ml.tradingbots.components.on_policy import Experience
from ml.tradingbots.components.rl_agents import create_rl_agent

STATE_DIM, N = 3, 20
SMALL = A2CConfig(hidden_dim=8, entropy_coef=0.03, value_coef=0.7)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
each_kind = pytest.mark.parametrize("kind", ["gaussian", "discrete", "masked"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(kind="gaussian", **changes):
    """A small agent, moved off its first weights, whose policy head is nearly 0."""
    action_type = "continuous" if kind == "gaussian" else "discrete"
    config = dataclasses.replace(SMALL, action_type=action_type, **changes)
    agent = A2CAgent(STATE_DIM, 2 if kind == "gaussian" else 4, config, seed=4)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def experience_for(kind, n=N):
    generator = torch.Generator().manual_seed(11)
    observation = torch.randn(n, STATE_DIM, generator=generator)
    action = torch.randn(n, 2, generator=generator)
    mask = None
    if kind != "gaussian":
        action = torch.randint(4, (n, 1), generator=generator)
        if kind == "masked":
            mask = (torch.rand(n, 4, generator=generator) < 0.4).scatter_(1, action, True)
    log_prob, value, advantage, target = torch.randn(4, n, generator=generator)
    return Experience(observation, action.float(), log_prob, value, advantage + 0.5, 2.0 * target, mask)


def in_double(agent):
    return {
        name: value.detach().double().clone().requires_grad_() for name, value in agent.network.state_dict().items()
    }


def plain_loss(state, kind, config, experience):
    """Mnih et al. (2016), section 4: −A log π, the squared value error and the entropy; torch.distributions, float64."""
    hidden = []
    for network in range(2):
        x = experience.observation.double()
        for layer in range(2):
            x = torch.tanh(x @ state[f"body.weights.{layer}"][network] + state[f"body.biases.{layer}"][network])
        hidden.append(x)
    value = hidden[1] @ state["value_head.weight"][0] + state["value_head.bias"]
    output = hidden[0] @ state["policy_head.weight"].T + state["policy_head.bias"]
    if kind == "gaussian":
        policy = torch.distributions.Normal(output, state["log_std"].exp())
        log_prob, entropy = policy.log_prob(experience.action.double()).sum(1), policy.entropy().sum(1)
    else:
        if experience.mask is not None:
            output = output.masked_fill(~experience.mask, -1e300)
        policy = torch.distributions.Categorical(logits=output)
        log_prob, entropy = policy.log_prob(experience.action[:, 0].long()), policy.entropy()
    advantage, target = experience.advantage.double(), experience.value_target.double()
    if config.normalize_advantages:
        spread = ((advantage - advantage.mean()) ** 2).sum() / (len(advantage) - 1)
        advantage = (advantage - advantage.mean()) / (spread.sqrt() + 1e-8)
    parts = {
        "policy_loss": -(advantage * log_prob).mean(),
        "value_loss": ((value - target) ** 2).mean(),
        "entropy": entropy.mean(),
    }
    loss = parts["policy_loss"] + config.value_coef * parts["value_loss"] - config.entropy_coef * parts["entropy"]
    return loss, parts


@each_kind
@pytest.mark.parametrize("normalize_advantages", [False, True])
def test_loss_and_gradients_are_those_of_the_paper(kind, normalize_advantages):
    agent = agent_of(kind, normalize_advantages=normalize_advantages, max_grad_norm=None)
    experience, state = experience_for(kind), in_double(agent)
    loss, parts = plain_loss(state, kind, agent.config, experience)
    gradients = torch.autograd.grad(loss, list(state.values()))
    figures = agent.update(experience, None)
    for name, expected in parts.items():
        torch.testing.assert_close(figures[name].double(), expected.detach(), **CLOSE)
    found = dict(agent.network.named_parameters())
    for name, gradient in zip(state, gradients, strict=True):
        torch.testing.assert_close(found[name].grad.double(), gradient, **CLOSE)


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        # Running square v after one step from 1 or from 0, ε inside or outside of the root.
        ("rmsprop_inside", lambda g: g / (0.9 + 0.1 * g**2 + 1e-3) ** 0.5),
        ("rmsprop", lambda g: g / ((0.1 * g**2) ** 0.5 + 1e-3)),
        ("adam", lambda g: g / (g.abs() + 1e-3)),
    ],
)
def test_one_step_is_taken_along_the_clipped_gradient(optimizer, size):
    settings = {"optimizer": optimizer, "rms_decay": 0.9, "epsilon": 1e-3, "learning_rate": 1e-2, "max_grad_norm": 0.5}
    agent = agent_of(**settings)
    experience, state = experience_for("gaussian"), in_double(agent)
    gradients = torch.autograd.grad(plain_loss(state, "gaussian", agent.config, experience)[0], list(state.values()))
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    assert norm > 0.5
    agent.update(experience, None)
    assert agent.num_updates == 1
    for (name, before), gradient in zip(state.items(), gradients, strict=True):
        expected = before.detach() - 1e-2 * size(gradient * 0.5 / norm)
        torch.testing.assert_close(agent.network.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_shorter_than_the_limit_is_left_alone():
    limited, free = agent_of(max_grad_norm=1e6), agent_of(max_grad_norm=None)
    for agent in (limited, free):
        agent.update(experience_for("gaussian"), None)
    torch.testing.assert_close(limited.network.state_dict(), free.network.state_dict(), rtol=0.0, atol=0.0)


def test_explained_variance_is_one_less_the_share_of_the_errors():
    experience = experience_for("gaussian")
    target, value = experience.value_target.double().numpy(), experience.value.double().numpy()
    expected = 1.0 - np.var(target - value) / np.var(target)
    figure = agent_of().update(experience, None)["explained_variance"].item()
    assert figure == pytest.approx(expected, rel=1e-5)


def test_one_transition_alone_is_not_normalised():
    agent = agent_of(normalize_advantages=True)
    experience = experience_for("gaussian", n=1)
    plain = plain_loss(
        in_double(agent), "gaussian", dataclasses.replace(agent.config, normalize_advantages=False), experience
    )
    figures = agent.update(experience, None)
    assert figures["policy_loss"].item() == pytest.approx(plain[1]["policy_loss"].item(), rel=1e-5)
    assert all(torch.isfinite(value).all() for value in (*figures.values(), *agent.network.parameters()))


def test_minibatches_are_refused_with_the_settings_to_change():
    with pytest.raises(ValueError, match=r"no batch_size \(got 5\): leave it None and set A2CConfig\(n_steps=\.\.\.\)"):
        agent_of().update(experience_for("gaussian"), 5)


def test_one_step_is_taken_per_rollout():
    config = dataclasses.replace(SMALL, n_steps=8)
    agent = create_rl_agent("a2c", 3, 1, config, seed=0).train("Pendulum-v1", 40)
    assert (agent.num_updates, agent.num_timesteps) == (5, 40)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a positive number"),
        ({"rms_decay": 1.0}, "rms_decay must be in"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"gae_lambda": 1.5}, "gae_lambda must be in"),
        ({"optimizer": "sgd"}, "optimizer must be"),
        ({"gsde": True, "action_type": "discrete"}, "gsde needs continuous actions"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        A2CConfig(**setting)


# Stable-Baselines3 with the same weights.


class Spaces(gymnasium.Env):
    """Nothing but spaces: the updates below are fed by hand."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (STATE_DIM,), np.float32)

    def __init__(self, kind):
        box, choices = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), gymnasium.spaces.Discrete(4)
        self.action_space = box if kind == "gaussian" else choices


def sb3_names(agent):
    """Our weights under the names and in the layout that Stable-Baselines3 gives them."""
    ours = {name: value.detach().clone() for name, value in agent.network.state_dict().items()}
    theirs = {"action_net.weight": ours["policy_head.weight"], "action_net.bias": ours["policy_head.bias"]}
    theirs |= {"value_net.weight": ours["value_head.weight"], "value_net.bias": ours["value_head.bias"]}
    for network, part in enumerate(("policy_net", "value_net")):
        for layer in range(2):
            theirs[f"mlp_extractor.{part}.{2 * layer}.weight"] = ours[f"body.weights.{layer}"][network].T
            theirs[f"mlp_extractor.{part}.{2 * layer}.bias"] = ours[f"body.biases.{layer}"][network, 0]
    return theirs | ({"log_std": ours["log_std"]} if "log_std" in ours else {})


def sb3_with_weights_of(agent, kind, **policy):
    config = agent.config
    model = stable_baselines3.A2C(
        "MlpPolicy",
        Spaces(kind),
        learning_rate=config.learning_rate,
        n_steps=N,
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        normalize_advantage=config.normalize_advantages,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, **policy},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    model._current_progress_remaining = 1.0
    parameters = dict(model.policy.named_parameters())
    assert parameters.keys() == sb3_names(agent).keys()
    for name, value in sb3_names(agent).items():
        parameters[name].data.copy_(value)
    return model


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop_inside"])
@pytest.mark.parametrize("normalize_advantages", [False, True])
def test_gradient_steps_are_those_of_stable_baselines3(kind, optimizer, normalize_advantages):
    agent = agent_of(kind, hidden_dim=64, optimizer=optimizer, normalize_advantages=normalize_advantages)
    like_tensorflow = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
    model = sb3_with_weights_of(agent, kind, **(like_tensorflow if optimizer == "rmsprop_inside" else {}))
    experience, buffer = experience_for(kind), model.rollout_buffer
    columns = ("observations", "actions", "log_probs", "values", "advantages", "returns")
    for name, column in zip(columns, (getattr(experience, name) for name in Experience.__slots__[:6]), strict=True):
        setattr(buffer, name, column.numpy().reshape(getattr(buffer, name).shape))
    buffer.full = True
    for _ in range(3):
        model.train()
        figures, logged = agent.update(experience, None), model.logger.name_to_value
        pairs = {
            "policy_loss": logged["train/policy_loss"],
            "value_loss": logged["train/value_loss"],
            "entropy": -logged["train/entropy_loss"],
            "explained_variance": logged["train/explained_variance"],
        }
        for name, theirs in pairs.items():
            assert figures[name].item() == pytest.approx(theirs, rel=1e-4, abs=1e-6), name
    after = dict(model.policy.named_parameters())
    for name, value in sb3_names(agent).items():
        # Three steps of at most 0.007 divided by roots of running squares, in float32.
        torch.testing.assert_close(value, after[name].detach(), rtol=1e-4, atol=1e-5)
