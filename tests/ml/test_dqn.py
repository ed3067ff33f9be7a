"""DQN against targets worked out by hand, formulas written out in float64, and Stable-Baselines3 with the same weights."""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from scipy.stats import chi2_contingency, chisquare
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from ml.tradingbots.components.buffers import Batch
from ml.tradingbots.components.rl_agents import DQNAgent, DQNConfig, create_rl_agent
from ml.tradingbots.components.vector_adapter import as_vector_env

STATE_DIM, N = 3, 12
SMALL = DQNConfig(hidden_dim=8, batch_size=16, learning_starts=16, buffer_size=500, max_grad_norm=None, gamma=0.9)
PLAIN = dataclasses.replace(SMALL, double=False, dueling=False)
# float32 against float64 through three layers.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_of(config=SMALL, action_dim=6, n_branches=1, **changes):
    """A small agent whose target network is another one: equal ones would hide a mix-up of the two."""
    agent = DQNAgent(STATE_DIM, action_dim, dataclasses.replace(config, **changes), seed=4)
    agent.n_branches = n_branches
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in agent.target_network.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return agent


def batch_for(action_dim=6, n_branches=1, n=N, **optional):
    generator = torch.Generator().manual_seed(11)
    return Batch(
        torch.randn(n, STATE_DIM, generator=generator),
        torch.randint(action_dim // n_branches, (n, n_branches), generator=generator).float(),
        2.0 * torch.randn(n, generator=generator),
        torch.randn(n, STATE_DIM, generator=generator),
        (torch.rand(n, generator=generator) < 0.3).float(),
        **optional,
    )


def constant_agent(online, target, n_branches=1, config=PLAIN, **changes):
    """An agent whose two networks answer the same numbers everywhere."""
    agent = DQNAgent(STATE_DIM, len(online), dataclasses.replace(config, dueling=False, **changes), seed=0)
    agent.n_branches = n_branches
    with torch.no_grad():
        for network, values in ((agent.network, online), (agent.target_network, target)):
            network.advantage_head.weight.zero_()
            network.advantage_head.bias.copy_(torch.tensor(values))
    return agent


def one_transition(action, reward, *, terminated=0.0, **optional):
    zero = torch.zeros(1, STATE_DIM)
    return Batch(
        zero, torch.tensor([action]).float(), torch.tensor([reward]), zero, torch.tensor([terminated]), **optional
    )


# Targets by hand. The value chosen is 0, so that far from it the Huber error is the target less a half.


def target_of(agent, reward=1.0, **optional):
    first = [0] * agent.n_branches
    return agent.update(one_transition(first, reward, **optional))["loss"].item() + 0.5


ONLINE, TARGET = [0.0, 2.0, 3.0], [30.0, 20.0, 10.0]


def test_the_plain_target_takes_the_largest_value_of_the_target_network():
    assert target_of(constant_agent(ONLINE, TARGET)) == pytest.approx(1.0 + 0.9 * 30.0)


def test_with_double_the_online_network_chooses_and_the_target_network_judges():
    assert target_of(constant_agent(ONLINE, TARGET, double=True)) == pytest.approx(1.0 + 0.9 * 10.0)


@pytest.mark.parametrize("double", [False, True])
def test_nothing_is_expected_beyond_the_end_of_the_task(double):
    agent = constant_agent(ONLINE, TARGET, double=double)
    assert target_of(agent, reward=4.0, terminated=1.0) == pytest.approx(4.0)


def test_a_reward_over_several_steps_is_followed_by_a_value_discounted_as_often():
    discount = torch.tensor([0.9**3])
    assert target_of(constant_agent(ONLINE, TARGET), reward=2.5, discount=discount) == pytest.approx(2.5 + 0.729 * 30.0)


@pytest.mark.parametrize(("double", "best"), [(False, 20.0), (True, 20.0)])
def test_an_illegal_next_choice_is_not_expected(double, best):
    # Without the mask, the target network would take its 30 and the online network would choose the last one's 10.
    agent = constant_agent(ONLINE, TARGET, double=double)
    mask = torch.tensor([[False, True, False]])
    assert target_of(agent, next_mask=mask) == pytest.approx(1.0 + 0.9 * best)


@pytest.mark.parametrize(("double", "expected"), [(False, (30.0 + 8.0) / 2.0), (True, (10.0 + 6.0) / 2.0)])
def test_all_branches_aim_at_the_mean_of_the_branches_best_next_values(double, expected):
    agent = constant_agent([*ONLINE, 0.0, 5.0, 1.0], [*TARGET, 8.0, 6.0, 7.0], 2, double=double)
    assert target_of(agent) == pytest.approx(1.0 + 0.9 * expected)


def test_each_branch_is_masked_by_its_own_part():
    agent = constant_agent([*ONLINE, 0.0, 5.0, 1.0], [*TARGET, 8.0, 6.0, 7.0], 2)
    mask = torch.tensor([[False, True, True, False, True, True]])
    assert target_of(agent, next_mask=mask) == pytest.approx(1.0 + 0.9 * (20.0 + 7.0) / 2.0)


@pytest.mark.parametrize(("error", "loss"), [(0.5, 0.125), (-0.5, 0.125), (1.0, 0.5), (3.0, 2.5), (-3.0, 2.5)])
def test_the_loss_is_hubers(error, loss):
    agent = constant_agent(ONLINE, TARGET)
    assert agent.update(one_transition([0], error, terminated=1.0))["loss"].item() == pytest.approx(loss)


def test_importance_weights_multiply_the_loss_of_each_transition():
    zeros, rewards = torch.zeros(2, STATE_DIM), torch.tensor([3.0, 5.0])
    batch = Batch(zeros, torch.zeros(2, 1), rewards, zeros, torch.ones(2), weight=torch.tensor([1.0, 0.25]))
    loss = constant_agent(ONLINE, TARGET).update(batch)["loss"].item()
    assert loss == pytest.approx((2.5 + 0.25 * 4.5) / 2.0)


# Formulas written out once more.


def plain_values(state, observation, n_branches, dueling):
    """Wang et al. (2016), equation 9, for each branch; (batch, n_branches, choices), float64."""
    x = observation.double()
    for layer in range(2):
        x = torch.relu(x @ state[f"body.layers.{layer}.weight"].T + state[f"body.layers.{layer}.bias"])
    head = x @ state["advantage_head.weight"].T + state["advantage_head.bias"]
    branches = torch.stack(head.chunk(n_branches, 1), 1)
    if dueling:
        value = x @ state["value_head.weight"][0] + state["value_head.bias"]
        branches = value[:, None, None] + branches - branches.sum(-1, keepdim=True) / branches.shape[-1]
    return branches


def in_double(network):
    return {name: value.detach().double().clone().requires_grad_() for name, value in network.state_dict().items()}


def plain_loss(agent, batch, state):
    """The loss, transition by transition and branch by branch, and each transition's mean absolute error."""
    config, n_branches = agent.config, agent.n_branches
    with torch.no_grad():
        judged = plain_values(in_double(agent.target_network), batch.next_observation, n_branches, config.dueling)
        chooser = plain_values(state, batch.next_observation, n_branches, config.dueling) if config.double else judged
    values = plain_values(state, batch.observation, n_branches, config.dueling)
    losses, errors = [], []
    for row in range(len(batch.reward)):
        best = []
        for branch in range(n_branches):
            legal = range(values.shape[2])
            if batch.next_mask is not None:
                legal = [i for i in legal if batch.next_mask[row, branch * values.shape[2] + i]]
            best.append(judged[row, branch, max(legal, key=lambda i, b=branch, r=row: chooser[r, b, i])])
        discount = config.gamma if batch.discount is None else batch.discount[row].double()
        target = batch.reward[row].double()
        if not batch.terminated[row]:
            target = target + discount * sum(best) / n_branches
        error = [values[row, branch, int(batch.action[row, branch])] - target for branch in range(n_branches)]
        huber = [0.5 * e**2 if abs(e) < 1.0 else abs(e) - 0.5 for e in error]
        weight = 1.0 if batch.weight is None else batch.weight[row].double()
        losses.append(weight * sum(huber) / n_branches)
        errors.append(float(sum(abs(e.detach()) for e in error) / n_branches))
    return sum(losses) / len(losses), errors


def optional_parts(kind):
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(N, 6, generator=generator) < 0.5
    mask[:, [0, 4]] = True
    parts = {
        "discount": {"discount": 0.9 ** torch.randint(1, 4, (N,), generator=generator)},
        "weight": {"weight": torch.rand(N, generator=generator)},
        "mask": {"next_mask": mask},
    }
    return parts.get(kind, {})


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("n_branches", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "discount", "weight", "mask"])
def test_loss_and_gradients_are_those_of_the_formulas(double, dueling, n_branches, kind):
    agent = agent_of(n_branches=n_branches, double=double, dueling=dueling)
    batch, state = batch_for(n_branches=n_branches, **optional_parts(kind)), in_double(agent.network)
    loss, _ = plain_loss(agent, batch, state)
    gradients = torch.autograd.grad(loss, list(state.values()))
    figures = agent.update(batch)
    torch.testing.assert_close(figures["loss"].double(), loss.detach(), **CLOSE)
    found = dict(agent.network.named_parameters())
    for name, gradient in zip(state, gradients, strict=True):
        torch.testing.assert_close(found[name].grad.double(), gradient, **CLOSE)
    assert all(parameter.grad is None for parameter in agent.target_network.parameters())


@pytest.mark.parametrize("n_branches", [1, 2])
def test_dueling_values_average_to_the_value_of_the_state(n_branches):
    agent = agent_of(n_branches=n_branches)
    observation = batch_for().observation
    network = agent.network
    with torch.no_grad():
        before = network(observation, n_branches)
        value = network.value_head(network.body(observation))
        torch.testing.assert_close(before.mean(-1), value.expand(-1, n_branches), **CLOSE)
        network.value_head.bias.add_(10.0)  # Moves all values alike.
        torch.testing.assert_close(network(observation, n_branches), before + 10.0, **CLOSE)
        network.advantage_head.bias.add_(7.0)  # Moves nothing.
        torch.testing.assert_close(network(observation, n_branches), before + 10.0, **CLOSE)


def test_errors_become_the_priorities_of_what_was_drawn():
    config = dataclasses.replace(SMALL, prioritized=True)
    agent = create_rl_agent("dqn", 4, 2, config, seed=0).train("CartPole-v1", 40)
    batch = agent._sample(16)
    state = in_double(agent.network)
    errors = dict(zip(batch.index.tolist(), plain_loss(agent, batch, state)[1], strict=True))
    agent.update(batch)
    for place, error in errors.items():
        assert agent.replay.priorities.priorities[place].item() == pytest.approx((error + 1e-6) ** 0.6, rel=1e-3)


def test_the_exponent_of_importance_weights_rises_to_one_over_the_run():
    agent = create_rl_agent("dqn", 4, 2, dataclasses.replace(SMALL, prioritized=True), seed=0).train("CartPole-v1", 60)
    for progress, beta in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0)):
        agent.num_timesteps, agent.schedule_timesteps = int(100 * progress), 100
        batch = agent._sample(64)
        probability = agent.replay.priorities.priorities[batch.index]
        expected = (probability / probability.min()) ** -beta
        torch.testing.assert_close(batch.weight.double(), expected, rtol=1e-5, atol=0.0)


# Target updates.


class Steps(gymnasium.Env):
    """Observations count the steps; episodes of seven steps, a reward of 1."""

    observation_space = gymnasium.spaces.Box(-1.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        return np.array([self.n_steps], np.float32), 1.0, False, self.n_steps == 7, {}


gymnasium.register("tests/Steps-v0", Steps)


def snapshot(network):
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()])


@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_target_network_follows_once_in_every_interval_of_timesteps(n_envs, tau):
    interval = 10
    env = as_vector_env("tests/Steps-v0", n_envs=n_envs)
    agent = create_rl_agent(
        "dqn", 1, 2, dataclasses.replace(SMALL, target_update_interval=interval, tau=tau, learning_starts=0), seed=0
    )
    agent.bind(env)
    online, target, updates = snapshot(agent.network), snapshot(agent.target_network), []
    for report in agent.training_steps(env):
        now = snapshot(agent.target_network)
        if not torch.equal(now, target):
            updates.append(report.num_timesteps)
            # Towards the online network as it was before this step's own update.
            torch.testing.assert_close(now, target + tau * (online - target), rtol=1e-6, atol=1e-7)
        online, target = snapshot(agent.network), now
        if report.num_timesteps >= 120:
            break
    # The first vector step at or after each multiple of the interval.
    assert updates == [-(-interval * k // n_envs) * n_envs for k in range(1, 120 // interval + 1)]


# Exploration.


@pytest.mark.parametrize(
    ("num_timesteps", "epsilon"), [(0, 1.0), (5, 0.81), (25, 0.05), (50, 0.05), (100, 0.05), (500, 0.05)]
)
def test_epsilon_falls_in_a_straight_line_over_its_share_of_the_run(num_timesteps, epsilon):
    agent = DQNAgent(3, 2, dataclasses.replace(SMALL, epsilon_fraction=0.25), seed=0)
    agent.num_timesteps, agent.schedule_timesteps = num_timesteps, 100
    assert agent.epsilon == pytest.approx(epsilon)


def exploring_agent(epsilon, n_branches=1, seed=0):
    """An agent that finds the first of three choices best, in every branch."""
    config = dataclasses.replace(PLAIN, epsilon_start=epsilon, epsilon_end=epsilon)
    agent = DQNAgent(STATE_DIM, 3 * n_branches, config, seed=seed)
    agent.n_branches = n_branches
    with torch.no_grad():
        agent.network.advantage_head.weight.zero_()
        agent.network.advantage_head.bias.copy_(torch.tensor([1.0, 0.0, 0.0] * n_branches))
    return agent


def explored(agent, n_steps, n_accounts, mask=None):
    """Choices of several accounts over many steps; (n_steps, n_accounts, n_branches)."""
    observation = torch.zeros(n_accounts, STATE_DIM)
    with torch.inference_mode():
        return torch.stack([agent.stochastic_policy(observation, mask) for _ in range(n_steps)])


def test_every_account_explores_in_a_share_epsilon_of_its_steps():
    choices = explored(exploring_agent(0.6), 4_000, 3)[..., 0]
    for account in choices.T:
        # A third of the random choices is the best one; a right agent fails one seed in a thousand.
        expected = 4_000 * np.array([0.6, 0.2, 0.2])
        assert chisquare(torch.bincount(account, minlength=3).numpy(), expected).pvalue > 1e-3


def test_accounts_explore_independently_of_each_other():
    choices = explored(exploring_agent(0.6), 4_000, 3)[..., 0]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        table = torch.bincount(choices[:, first] * 3 + choices[:, second], minlength=9).view(3, 3).numpy()
        assert chi2_contingency(table).pvalue > 1e-3


def test_steps_explore_independently_of_each_other():
    choices = explored(exploring_agent(0.6), 4_000, 1)[:, 0, 0]
    table = torch.bincount(choices[:-1] * 3 + choices[1:], minlength=9).view(3, 3).numpy()
    assert chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_an_illegal_choice_is_never_explored(epsilon):
    mask = torch.tensor([[False, True, True, True, False, False]]).expand(200, -1)
    choices = explored(exploring_agent(epsilon, n_branches=2), 20, 200, mask)
    assert set(choices[..., 0].unique().tolist()) == ({1} if epsilon == 0.0 else {1, 2})
    assert choices[..., 1].unique().tolist() == [0]


def test_exploration_draws_from_the_agents_own_generator_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = explored(exploring_agent(0.6), 50, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(explored(exploring_agent(0.6), 50, 3), first)
    assert not torch.equal(explored(exploring_agent(0.6, seed=1), 50, 3), first)


# Values of a constant reward.


class RewardOfOne(Steps):
    """One state, a reward of 1 a step; the episode ends after four steps, by time or for good."""

    def __init__(self, ends):
        self.ends = ends

    def step(self, action):
        self.n_steps += 1
        over = self.n_steps == 4
        flags = (over, False) if self.ends == "terminated" else (False, over)
        return np.zeros(1, np.float32), 1.0, *flags, {}


def value_of_reward_of_one(ends, n_steps):
    config = dataclasses.replace(
        SMALL, gamma=0.8, learning_rate=2e-2, tau=0.2, target_update_interval=1, n_step_targets=n_steps, batch_size=32
    )
    agent = create_rl_agent("dqn", 1, 2, config, seed=0).train(RewardOfOne(ends), 450)
    with torch.no_grad():
        return agent.network(torch.zeros(1, 1), 1).mean().item()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_value_of_a_constant_reward_is_one_over_one_minus_gamma_where_time_runs_out(n_steps):
    # 1/(1 − 0.8) = 5; within a tenth after 450 steps.
    assert value_of_reward_of_one("truncated", n_steps) == pytest.approx(5.0, abs=0.1)


def test_the_value_ends_where_the_task_ends():
    # All four steps look alike. Three targets of 1 + 0.8·V pull upwards by 1 − 0.2·V each, one target of 1 pulls downwards
    # by 1, which is where Huber's pull ends: V = 10/3. (By squared errors it would be 2.5.) Sampling leaves some noise.
    assert value_of_reward_of_one("terminated", 1) == pytest.approx(10.0 / 3.0, abs=0.4)


def test_the_value_ends_where_the_task_ends_over_several_steps_too():
    # Targets over up to three steps: 2.44 + 0.512·V and 1, more than 1 above and below and so pulling alike, and 2.44 and
    # 1.8 between them: V = 2.12.
    assert value_of_reward_of_one("terminated", 3) == pytest.approx(2.12, abs=0.4)


# Stable-Baselines3 with the same weights.


def sb3_names(network):
    ours = {name: value.detach().clone() for name, value in network.state_dict().items()}
    order = ("body.layers.0", "body.layers.1", "advantage_head")
    return {
        f"q_net.{2 * i}.{part}": ours[f"{name}.{part}"] for i, name in enumerate(order) for part in ("weight", "bias")
    }


def test_gradient_steps_are_those_of_stable_baselines3():
    agent = agent_of(PLAIN, max_grad_norm=0.3)
    spaces = Steps()
    spaces.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (STATE_DIM,), np.float32)
    spaces.action_space = gymnasium.spaces.Discrete(6)
    model = stable_baselines3.DQN(
        "MlpPolicy",
        spaces,
        learning_rate=agent.config.learning_rate,
        gamma=0.9,
        buffer_size=10,
        max_grad_norm=0.3,
        policy_kwargs={"net_arch": [8, 8]},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    model._current_progress_remaining = 1.0
    model.q_net.load_state_dict(sb3_names(agent.network))
    model.q_net_target.load_state_dict(sb3_names(agent.target_network))
    batch = batch_for()
    drawn = ReplayBufferSamples(
        batch.observation, batch.action, batch.next_observation, batch.terminated[:, None], batch.reward[:, None]
    )
    model.replay_buffer = SimpleNamespace(sample=lambda *_, **__: drawn)
    for _ in range(3):
        model.train(1, N)
        assert agent.update(batch)["loss"].item() == pytest.approx(model.logger.name_to_value["train/loss"], rel=1e-5)
    for name, value in sb3_names(agent.network).items():
        # Three steps of Adam of at most 0.001.
        torch.testing.assert_close(value, model.q_net.state_dict()[name], rtol=1e-4, atol=1e-6)
