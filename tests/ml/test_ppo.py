"""PPO against the paper's formulas written out once more in float64, and against Stable-Baselines3 with the same weights."""

import dataclasses
import math
from itertools import chain

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger

from ml.tradingbots.components.on_policy import Experience
from ml.tradingbots.components.rl_agents import PPOAgent, PPOConfig

STATE_DIM, N = 3, 24
SMALL = PPOConfig(hidden_dim=8, n_epochs=1, batch_size=N, n_steps=N, max_grad_norm=None, value_coef=0.7)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
KINDS = ("gaussian", "gsde", "discrete", "branches", "masked")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(kind="gaussian", agent_class=PPOAgent, seed=4, **changes):
    """A small agent of each kind of policy, moved off its first weights, whose head is nearly 0."""
    continuous = kind in ("gaussian", "gsde")
    settings = {"action_type": "continuous" if continuous else "discrete", "gsde": kind == "gsde", "log_std_init": -0.5}
    agent = agent_class(STATE_DIM, 2 if continuous else 6, dataclasses.replace(SMALL, **settings | changes), seed=seed)
    agent.n_branches = 2 if kind in ("branches", "masked") else 1
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def in_double(agent):
    return {
        name: value.detach().double().clone().requires_grad_() for name, value in agent.network.state_dict().items()
    }


def plain_policy(state, kind, observation, action, mask):
    """Log-probability, entropy and value from the network's own weights; torch.distributions, float64."""
    hidden = []
    for network in range(2):
        x = observation
        for layer in range(2):
            x = torch.tanh(x @ state[f"body.weights.{layer}"][network] + state[f"body.biases.{layer}"][network])
        hidden.append(x)
    value = hidden[1] @ state["value_head.weight"][0] + state["value_head.bias"]
    output = hidden[0] @ state["policy_head.weight"].T + state["policy_head.bias"]
    if kind in ("gaussian", "gsde"):
        std = state["log_std"].exp().expand_as(output) if kind == "gaussian" else None
        if std is None:  # Raffin et al. (2021), equation 8; no gradient into the features, a floor of 1e-6.
            std = (hidden[0].detach() ** 2 @ state["log_std"].exp() ** 2 + 1e-6).sqrt()
        normal = torch.distributions.Normal(output, std)
        return normal.log_prob(action).sum(1), normal.entropy().sum(1), value
    output = output if mask is None else output.masked_fill(~mask, -1e300)
    branches = [torch.distributions.Categorical(logits=part) for part in output.chunk(action.shape[1], 1)]
    log_prob = sum(branch.log_prob(action[:, i]) for i, branch in enumerate(branches))
    return log_prob, sum(branch.entropy() for branch in branches), value


def experience_for(agent, kind, n=N, drift=0.4):
    """Random transitions, whose probabilities were up to some e^±drift times what they are now."""
    generator = torch.Generator().manual_seed(11)
    observation = torch.randn(n, STATE_DIM, generator=generator)
    mask = None
    if kind in ("gaussian", "gsde"):
        action = torch.randn(n, 2, generator=generator)
    else:
        n_branches = agent.n_branches
        action = torch.randint(6 // n_branches, (n, n_branches), generator=generator)
        if kind == "masked":
            mask = torch.rand(n, 6, generator=generator) < 0.5
            mask.view(n, n_branches, -1).scatter_(2, action[..., None], True)
    wide = action.double() if kind in ("gaussian", "gsde") else action
    log_prob, _, value = plain_policy(in_double(agent), kind, observation.double(), wide, mask)
    noise = torch.randn(4, n, generator=generator)
    then = log_prob.detach().float() + drift * noise[0]
    value_then = value.detach().float() + 0.4 * noise[1]
    return Experience(observation, action.float(), then, value_then, noise[2] + 0.3, value_then + 2.0 * noise[3], mask)


def plain_loss(state, kind, config, experience, rows, clip):
    """The loss of some rows of an experience and its parts, from the paper's equations 7 and 9."""
    e = {
        name: None if value is None else value[rows]
        for name in Experience.__slots__
        for value in [getattr(experience, name)]
    }
    wide = {name: value.double() for name, value in e.items() if value is not None}
    action = wide["action"] if kind in ("gaussian", "gsde") else e["action"].long()
    log_prob, entropy, value = plain_policy(state, kind, wide["observation"], action, e["mask"])
    advantage = wide["advantage"]
    if config.normalize_advantages and len(advantage) > 1:
        spread = ((advantage - advantage.mean()) ** 2).sum() / (len(advantage) - 1)
        advantage = (advantage - advantage.mean()) / (spread.sqrt() + 1e-8)
    ratio = (log_prob - wide["log_prob"]).exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)
    errors = (value - wide["value_target"]) ** 2
    if config.clip_value_epsilon is not None:
        moved = (value - wide["value"]).clamp(-config.clip_value_epsilon, config.clip_value_epsilon)
        errors = torch.max(errors, (wide["value"] + moved - wide["value_target"]) ** 2)
    parts = {
        "policy_loss": -surrogate.mean(),
        "value_loss": errors.mean(),
        "entropy": entropy.mean(),
        "approx_kl": (ratio - 1.0 - ratio.log()).mean(),
        "clip_fraction": ((ratio < 1.0 - clip) | (ratio > 1.0 + clip)).double().mean(),
    }
    loss = parts["policy_loss"] + config.value_coef * parts["value_loss"] - config.entropy_coef * parts["entropy"]
    return loss, {name: part.detach() for name, part in parts.items()}, ratio.detach(), advantage


# One gradient step.


@each_kind
@pytest.mark.parametrize("clip_value_epsilon", [None, 0.2])
def test_loss_and_gradients_are_those_of_the_paper(kind, clip_value_epsilon):
    agent = agent_of(kind, clip_value_epsilon=clip_value_epsilon, entropy_coef=0.05)
    experience = experience_for(agent, kind)
    state = in_double(agent)
    loss, parts, ratio, advantage = plain_loss(state, kind, agent.config, experience, slice(None), 0.2)
    for beyond in (ratio > 1.2, ratio < 0.8):  # All four cases of the clipping occur.
        assert (advantage[beyond] > 0.0).any()
        assert (advantage[beyond] < 0.0).any()
    gradients = torch.autograd.grad(loss, list(state.values()))
    figures = agent.update(experience, None)
    for name, expected in parts.items():
        torch.testing.assert_close(figures[name].double(), expected, **CLOSE)
    for (name, expected), gradient in zip(state.items(), gradients, strict=True):
        assert expected.shape == gradient.shape
        found = dict(agent.network.named_parameters())[name].grad
        torch.testing.assert_close(found.double(), gradient, msg=lambda m, name=name: f"{name}: {m}", **CLOSE)


def one_transition(agent, ratio, advantage):
    """An experience of one transition, whose probability is now `ratio` times what it was."""
    experience = experience_for(agent, "gaussian", n=1, drift=0.0)
    changes = {
        "log_prob": experience.log_prob - math.log(ratio),
        "advantage": torch.tensor([advantage]),
    }
    return dataclasses.replace(experience, **changes)


@pytest.mark.parametrize(
    ("ratio", "advantage", "policy_loss", "pushes"),
    [
        (1.5, 1.0, -1.2, False),
        (0.5, 1.0, -0.5, True),
        (1.5, -1.0, 1.5, True),
        (0.5, -1.0, 0.8, False),
        (1.1, 2.0, -2.2, True),
        (0.9, -2.0, 1.8, True),
    ],
)
def test_the_surrogate_is_clipped_only_where_it_would_gain(ratio, advantage, policy_loss, pushes):
    agent = agent_of(normalize_advantages=False, value_coef=0.0)
    figures = agent.update(one_transition(agent, ratio, advantage), None)
    assert figures["policy_loss"].item() == pytest.approx(policy_loss, rel=1e-5)
    assert bool((agent.network.log_std.grad != 0.0).any()) is pushes
    assert figures["clip_fraction"].item() == float(abs(ratio - 1.0) > 0.2)


@pytest.mark.parametrize(
    ("target", "value_loss", "pulls"),
    [
        (1.0, 0.81, False),  # The value 0.5 moved by 0.5 from 0: clipped to 0.1, it is 0.9 off.
        (0.1, 0.16, True),  # Clipped to 0.1 it would be right, but it is 0.4 off.
        (-1.0, 2.25, True),
    ],
)
def test_a_clipped_value_has_the_larger_of_two_errors(target, value_loss, pulls):
    agent = agent_of(clip_value_epsilon=0.1)
    experience = one_transition(agent, 1.0, 0.0)
    value = plain_policy(
        in_double(agent), "gaussian", experience.observation.double(), experience.action.double(), None
    )[2]
    then = value.detach().float() - 0.5
    changed = dataclasses.replace(experience, value=then, value_target=then + target)
    figures = agent.update(changed, None)
    # Numbers of size 1 in float32, squared.
    assert figures["value_loss"].item() == pytest.approx(value_loss, abs=1e-5)
    assert bool((agent.network.value_head.bias.grad != 0.0).any()) is pulls


def test_an_unmoved_policy_has_no_divergence_and_nothing_clipped():
    agent = agent_of()
    figures = agent.update(experience_for(agent, "gaussian", drift=0.0), None)
    assert figures["approx_kl"].item() == pytest.approx(0.0, abs=1e-7)
    assert figures["clip_fraction"].item() == 0.0


def test_one_transition_alone_is_not_normalised():
    agent = agent_of()
    assert agent.update(one_transition(agent, 1.0, 3.0), None)["policy_loss"].item() == pytest.approx(-3.0, rel=1e-5)


def test_explained_variance_is_one_less_the_share_of_the_errors():
    agent = agent_of()
    experience = experience_for(agent, "gaussian")
    target, value = experience.value_target.double().numpy(), experience.value.double().numpy()
    expected = 1.0 - np.var(target - value) / np.var(target)
    assert agent.update(experience, None)["explained_variance"].item() == pytest.approx(expected, rel=1e-5)


# Whole updates.


class PlainAdam:
    """Kingma and Ba (2015), algorithm 1, on a dictionary of tensors."""

    def __init__(self, state, learning_rate):
        self.state, self.learning_rate, self.t = state, learning_rate, 0
        self.first, self.second = ({name: torch.zeros_like(value) for name, value in state.items()} for _ in range(2))

    def step(self, loss, max_norm):
        gradients = torch.autograd.grad(loss, list(self.state.values()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        scale = min(1.0, max_norm / (norm + 1e-6))
        self.t += 1
        with torch.no_grad():
            for (name, value), raw in zip(self.state.items(), gradients, strict=True):
                gradient = raw * scale
                self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
                self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
                mean, square = self.first[name] / (1 - 0.9**self.t), self.second[name] / (1 - 0.999**self.t)
                value -= self.learning_rate * mean / (square.sqrt() + 1e-5)


@each_kind
def test_a_whole_update_is_the_papers_with_shuffled_minibatches_each_normalised_by_itself(kind):
    agent = agent_of(kind, n_epochs=3, batch_size=7, max_grad_norm=0.5, entropy_coef=0.01, learning_rate=1e-2)
    experience, state = experience_for(agent, kind), in_double(agent)
    twin = torch.Generator()
    twin.set_state(agent.generator.get_state())
    adam = PlainAdam(state, 1e-2)
    for _ in range(3):
        parts = []
        for rows in torch.randperm(N, generator=twin).split(7):  # 7, 7, 7 and 3.
            loss, figures, _, _ = plain_loss(state, kind, agent.config, experience, rows, 0.2)
            parts.append(figures)
            adam.step(loss, 0.5)
    found = agent.update(experience, None)
    assert agent.num_updates == 12
    for name, value in agent.network.state_dict().items():
        # Twelve steps of 0.01, each known to float32's rounding of its gradient.
        torch.testing.assert_close(value.double(), state[name].detach(), rtol=1e-3, atol=2e-5)
    for name in parts[0]:  # Figures are means over the minibatches of the last epoch.
        expected = torch.stack([part[name] for part in parts]).mean()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=1e-4)


def test_a_bound_that_no_value_reaches_changes_no_gradient():
    gradients = []
    for bound in (None, 50.0):
        agent = agent_of(clip_value_epsilon=bound, max_grad_norm=None)
        agent.update(experience_for(agent, "gaussian", n=2_000), 2_000)
        gradients.append(agent.network.value_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


class Recording(PPOAgent):
    """A PPO agent that notes which transitions each of its minibatches held."""

    def _write_gradients(self, observation, *arguments):
        self.minibatches.append(observation[:, 0].tolist())
        return super()._write_gradients(observation, *arguments)


@pytest.mark.parametrize(("batch_size", "sizes"), [(10, [10, 10, 4]), (8, [8, 8, 8]), (100, [24]), (23, [23, 1])])
def test_every_epoch_covers_every_transition_once_in_another_order(batch_size, sizes):
    agent = agent_of(agent_class=Recording, n_epochs=3, batch_size=batch_size)
    agent.minibatches = []
    experience = experience_for(agent, "gaussian")
    agent.update(experience, None)
    assert [len(minibatch) for minibatch in agent.minibatches] == sizes * 3
    k = len(sizes)
    rows = [list(chain(*agent.minibatches[i * k : (i + 1) * k])) for i in range(3)]
    assert all(sorted(epoch) == sorted(experience.observation[:, 0].tolist()) for epoch in rows)
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_a_batch_size_asked_for_goes_before_the_configured_one():
    agent = agent_of()
    agent.update(experience_for(agent, "gaussian"), 6)
    assert agent.num_updates == 4


@pytest.mark.parametrize(("share", "n_updates"), [(1.01, 4), (0.99, 0)])
def test_the_rollout_is_done_with_before_the_step_that_would_go_on_from_too_far(share, n_updates):
    agent = agent_of(n_epochs=4, learning_rate=1e-12)
    experience = experience_for(agent, "gaussian")
    divergence = float(plain_loss(in_double(agent), "gaussian", SMALL, experience, slice(None), 0.2)[1]["approx_kl"])
    limited = agent_of(n_epochs=4, learning_rate=1e-12, target_kl=divergence / 1.5 * share)
    before = in_double(limited)
    figures = limited.update(experience, None)
    assert limited.num_updates == n_updates
    assert figures["approx_kl"].item() == pytest.approx(divergence, rel=1e-4)
    if n_updates == 0:
        assert all(torch.equal(value, before[name].float()) for name, value in limited.network.state_dict().items())


def test_too_far_a_policy_ends_all_remaining_epochs():
    agent = agent_of(n_epochs=50, batch_size=6, learning_rate=0.02, target_kl=0.01)
    figures = agent.update(experience_for(agent, "gaussian", drift=0.0), None)
    assert 1 <= agent.num_updates < 50
    assert torch.isfinite(torch.stack(list(figures.values()))).all()


@pytest.mark.parametrize(("num_timesteps", "policy_loss"), [(0, -1.2), (25, -1.15), (75, -1.05), (100, -1.0)])
def test_a_linear_clip_range_falls_to_nothing_over_the_run(num_timesteps, policy_loss):
    agent = agent_of(normalize_advantages=False, clip_schedule="linear")
    agent.num_timesteps, agent.schedule_timesteps = num_timesteps, 100
    figures = agent.update(one_transition(agent, 1.5, 1.0), None)
    assert figures["policy_loss"].item() == pytest.approx(policy_loss, rel=1e-5)


# Stable-Baselines3 with the same weights.


class Spaces(gymnasium.Env):
    """Nothing but spaces: the updates below are fed by hand."""

    def __init__(self, kind):
        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (STATE_DIM,), np.float32)
        box = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        several = gymnasium.spaces.MultiDiscrete([3, 3])
        self.action_space = {"discrete": gymnasium.spaces.Discrete(6), "branches": several}.get(kind, box)


def sb3_with_weights_of(agent, kind):
    config = agent.config
    model = stable_baselines3.PPO(
        "MlpPolicy",
        Spaces(kind),
        learning_rate=config.learning_rate,
        n_steps=N,
        batch_size=N,
        n_epochs=1,
        clip_range=config.clip_epsilon,
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        use_sde=config.gsde,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    for name, value in sb3_names(agent, dict(model.policy.named_parameters())).items():
        dict(model.policy.named_parameters())[name].data.copy_(value)
    return model


def sb3_names(agent, expected):
    """Our weights under the names and in the layout that Stable-Baselines3 gives them."""
    ours = {name: value.detach().clone() for name, value in agent.network.state_dict().items()}
    theirs = {"action_net.weight": ours["policy_head.weight"], "action_net.bias": ours["policy_head.bias"]}
    theirs |= {"value_net.weight": ours["value_head.weight"], "value_net.bias": ours["value_head.bias"]}
    for network, part in enumerate(("policy_net", "value_net")):
        for layer in range(2):
            theirs[f"mlp_extractor.{part}.{2 * layer}.weight"] = ours[f"body.weights.{layer}"][network].T
            theirs[f"mlp_extractor.{part}.{2 * layer}.bias"] = ours[f"body.biases.{layer}"][network, 0]
    if "log_std" in ours:
        theirs["log_std"] = ours["log_std"]
    assert theirs.keys() == expected.keys()
    return theirs


@pytest.mark.parametrize("kind", ["gaussian", "gsde", "discrete", "branches"])
def test_a_gradient_step_is_that_of_stable_baselines3(kind):
    agent = agent_of(kind, hidden_dim=64, max_grad_norm=0.5, entropy_coef=0.02, learning_rate=1e-2)
    experience = experience_for(agent, kind)
    model = sb3_with_weights_of(agent, kind)
    action = experience.action if kind != "discrete" else experience.action[:, 0]
    with torch.no_grad():
        value, log_prob, entropy = model.policy.evaluate_actions(experience.observation, action)
        ours = agent._evaluate(experience.observation, experience.action, None)
    # The same float32 network, multiplied out in another order.
    torch.testing.assert_close(ours, (log_prob, entropy if kind != "gaussian" else entropy[0], value[:, 0]), **CLOSE)

    buffer, columns = model.rollout_buffer, ("observations", "actions", "log_probs", "values", "advantages", "returns")
    for name, column in zip(columns, (getattr(experience, name) for name in Experience.__slots__[:6]), strict=True):
        setattr(buffer, name, column.numpy().reshape(getattr(buffer, name).shape))
    buffer.full = True
    model._current_progress_remaining = 1.0
    model.train()
    figures, logged = agent.update(experience, None), model.logger.name_to_value
    pairs = {
        "policy_loss": logged["train/policy_gradient_loss"],
        "value_loss": logged["train/value_loss"],
        "entropy": -logged["train/entropy_loss"],
        "approx_kl": logged["train/approx_kl"],
        "clip_fraction": logged["train/clip_fraction"],
        "explained_variance": logged["train/explained_variance"],
    }
    for name, theirs in pairs.items():
        assert figures[name].item() == pytest.approx(theirs, rel=1e-4, abs=1e-6), name
    after = dict(model.policy.named_parameters())
    for name, value in sb3_names(agent, after).items():
        # One step of Adam of at most 0.01, divided by the gradient's own size.
        torch.testing.assert_close(value, after[name].detach(), rtol=1e-4, atol=1e-5)
