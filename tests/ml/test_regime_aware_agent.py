"""A generalist and specialists: how they are mixed, trained, cut and resumed, saved, and what they refuse."""

import copy
import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.tradingbots.components import (
    A2CConfig,
    AgentSource,
    DDPGConfig,
    DQNConfig,
    PPOConfig,
    SACConfig,
    TD3Config,
    TradingEnvConfig,
    TradingEnvironment,
    create_rl_agent,
    list_available_agents,
    load_rl_agent,
)
from ml.tradingbots.components.hiddenmarkov import GaussianHMM, regime_features
from ml.tradingbots.components.meta_learning import (
    RegimeAwareAgent,
    RegimeAwareConfig,
    RegimeColumns,
    TransferLearningTrainer,
    with_regime_probabilities,
)
from ml.tradingbots.components.portfolio_state import PortfolioState
from ml.tradingbots.components.regime_environment import WeightedVectorEnv
from ml.tradingbots.components.regime_mixing import (
    choose_by_probability,
    choose_by_value,
    mix_numbers,
    mixed_log_probabilities,
    mixed_values,
    mixing_weights,
)
from ml.tradingbots.components.serialization import CheckpointError
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import autoregressive, regime_switching
from ml.tradingbots.training import Callback, RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.live import target_weights

ROOT = Path(__file__).parents[2]
ON_POLICY = {"hidden_dim": 8, "n_steps": 5}
OFF_POLICY = {"hidden_dim": 8, "batch_size": 8, "learning_starts": 12, "buffer_size": 100}
DISCRETE = {"action_type": "discrete"}
FORMS = {
    "ppo": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2),
    "ppo, discrete": PPOConfig(**ON_POLICY, **DISCRETE, batch_size=4, n_epochs=2),
    "dqn": DQNConfig(**OFF_POLICY, target_update_interval=10),
    "sac": SACConfig(**OFF_POLICY),
    "td3": TD3Config(**OFF_POLICY),
    "ddpg": DDPGConfig(**OFF_POLICY),
    "a2c": A2CConfig(**ON_POLICY),
    "a2c, discrete": A2CConfig(**ON_POLICY, **DISCRETE),
}
CHOOSING = ("ppo, discrete", "dqn", "a2c, discrete")
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def own_probabilities(n_bars, n_regimes, seed=0):
    """Probabilities that come and go slowly, so that every regime has bars of its own."""
    steps = np.random.default_rng(seed).normal(size=(n_bars, n_regimes)).cumsum(axis=0)
    weights = np.exp(steps - steps.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def prices_of(n_regimes=2, n_assets=1, n_bars=90):
    frames = [autoregressive(n_bars, seed=1 + number).prices for number in range(n_assets)]
    close = np.stack([frame["close"].to_numpy() for frame in frames], 1)
    table = frames[0] if n_assets == 1 else Bars(timestamps=frames[0].index, assets=("a", "b")[:n_assets], close=close)
    return with_regime_probabilities(table, own_probabilities(n_bars, n_regimes))


def market(form="sac", n_regimes=2, n_assets=1, **settings):
    kind = "discrete" if form in CHOOSING else "continuous"
    config = TradingEnvConfig(**{"window_size": 3, "episode_length": 10, "action_type": kind} | settings)
    return TradingEnvironment(prices_of(n_regimes, n_assets), config)


def new_agent(form, env, seed=0, regimes=None, **settings):
    config = RegimeAwareConfig(agent_type=form.split(",")[0], agent_config=FORMS[form], **settings)
    return RegimeAwareAgent(env.observation_space_dim, env.action_space_dim, config, regimes, seed=seed)


def trained(form, env, total=120, **settings):
    agent = new_agent(form, env, **settings)
    train_rl_agent(
        agent, env.vectorize(3, seed=1, random_start=True), RLTrainingConfig(total_timesteps=total, progress=False)
    )
    return agent


def observations_of(env, n=6):
    vector_env = env.vectorize(n, random_start=True, seed=3)
    observation, infos = vector_env.reset()
    return observation, infos.get("action_mask")


def acted(agent, observation, mask, deterministic=True):
    legal = {} if mask is None else {"action_mask": mask}
    return agent.select_action(observation, deterministic, **legal)


def weights_of(agent):
    parts = []
    for member in agent.members:
        networks = [getattr(member, name) for name in member.learned]
        parts += [
            p.detach().flatten() for net in networks if isinstance(net, torch.nn.Module) for p in net.parameters()
        ]
    return torch.cat(parts)


# --- The mixing, by hand


def test_the_generalist_counts_as_much_as_is_not_known():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    entropy, novelty = torch.tensor([0.4, 1.0, 0.0, 0.4]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    found = mixing_weights(p, entropy, novelty, 0.1)
    expected = [[0.4, 0.54, 0.06], [1.0, 0.0, 0.0], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert mixing_weights(torch.ones(2, 1), torch.zeros(2), torch.zeros(2), 0.1).tolist() == [[1.0], [1.0]]


def test_numbers_are_averaged():
    found = mix_numbers(
        [torch.tensor([[1.0]]), torch.tensor([[-1.0]]), torch.tensor([[0.5]])], torch.tensor([[0.2, 0.3, 0.5]])
    )
    assert found.item() == pytest.approx(0.2 - 0.3 + 0.25)


class Constant(torch.nn.Module):
    """A network that answers the same to everything."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = torch.tensor([numbers])

    def policy(self, observation):
        return self.numbers, None

    def forward(self, observation, n_branches):
        return self.numbers.view(1, n_branches, -1)


def members_of(env, form, answers, scales):
    """Real agents whose networks were put out of action by constants."""
    members = []
    for numbers, scale in zip(answers, scales, strict=True):
        member = create_rl_agent(form.split(",")[0], env.observation_space_dim, 3, FORMS[form])
        member.network, member.reward_scale = Constant(numbers), scale
        members.append(member)
    return members


def test_probabilities_of_choices_are_averaged_and_masks_kept():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.8])
    members = members_of(market(), "ppo, discrete", [np.log(p).tolist(), np.log(q).tolist()], (1.0, 1.0))
    weights, seen = torch.tensor([[0.25, 0.75]]), [torch.zeros(1, 4)] * 2
    found = mixed_log_probabilities(members, weights, seen, 1, None).exp()
    np.testing.assert_allclose(found.flatten(), 0.25 * p + 0.75 * q, rtol=1e-6)
    mask = torch.tensor([[True, True, False]])
    found = mixed_log_probabilities(members, weights, seen, 1, mask).exp()
    np.testing.assert_allclose(
        found.flatten(), [0.25 * 7 / 9 + 0.75 * 0.5, 0.25 * 2 / 9 + 0.75 * 0.5, 0.0], rtol=1e-6, atol=1e-30
    )
    certain = mixed_log_probabilities(members, torch.tensor([[0.0, 1.0]]), seen, 1, None).exp()
    np.testing.assert_allclose(certain.flatten(), q, rtol=1e-6)


def test_values_are_averaged_in_units_of_reward_over_the_mean_of_the_branch():
    # The second member's rewards were multiplied by 10, and its regime is worth 1,000 whatever is chosen.
    answers = [[1.0, 2.0, 3.0], [10_030.0, 10_020.0, 10_010.0]]
    members = members_of(market("dqn"), "dqn", answers, (1.0, 10.0))
    found = mixed_values(members, torch.tensor([[0.4, 0.6]]), [torch.zeros(1, 4)] * 2, 1)
    np.testing.assert_allclose(found.flatten(), [-0.4 + 0.6, 0.0, 0.4 - 0.6], atol=1e-3)
    generator = torch.Generator().manual_seed(0)
    assert choose_by_value(found, None, epsilon=1.0, generator=generator, draw=False).item() == 0
    illegal = torch.tensor([[False, True, True]])
    assert choose_by_value(found, illegal, epsilon=0.0, generator=generator, draw=True).item() == 1
    many = found.expand(4_000, 1, 3)
    drawn = choose_by_value(many, None, epsilon=0.3, generator=generator, draw=True)
    # Random ones are 0.3 of them, a third of those the best; three standard errors of 4,000 draws.
    assert (drawn == 0).float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_a_choice_between_buying_and_selling_is_never_their_average():
    # One member buys (1), the other sells (2) or holds (0): what comes out is one of them, never a number between.
    log_probs = torch.tensor([[[0.1, 0.45, 0.45]]]).log().expand(3_000, 1, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = choose_by_probability(log_probs, generator, draw=True)
    assert drawn.flatten().bincount(minlength=3).div(3_000).tolist() == pytest.approx([0.1, 0.45, 0.45], abs=0.03)


@each_form
def test_the_action_is_the_mixture_of_the_members(form):
    env = market(form)
    agent = trained(form, env)
    observation, mask = observations_of(env)
    names = env.specification()["features"]
    newest = 2 * len(names)
    columns = observation[:, [newest + names.index(name) for name in ("regime_p0", "regime_p1", "regime_entropy")]]
    generalist = columns[:, 2].clamp(0.1, 1.0)
    weights = torch.stack([generalist, (1 - generalist) * columns[:, 0], (1 - generalist) * columns[:, 1]], 1)
    torch.testing.assert_close(agent.mixing_weights(observation), weights)
    found = acted(agent, observation, mask)
    if form in CHOOSING:
        assert found.shape == (6,)
        if "dqn" not in form:
            total = 0.0
            for member, weight in zip(agent.members, weights.T, strict=True):
                logits = member.network.policy(member.normalizer(observation))[0]
                total = total + weight[:, None] * logits.masked_fill(~mask, -torch.inf).softmax(-1)
            assert (found == total.argmax(-1)).all()
        return
    answers = [member.select_action(observation, True) for member in agent.members]
    torch.testing.assert_close(found, sum(w[:, None] * a for w, a in zip(weights.T, answers, strict=True)))


@pytest.mark.parametrize("form", ["sac", "ppo", "td3"])
def test_draws_are_mixed_by_the_rule_of_the_best_actions(tmp_path, form):
    env = market(form)
    agent = trained(form, env)
    observation, _ = observations_of(env)
    twin = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    found = agent.select_action(observation, False)
    draws = [member.select_action(observation, False) for member in twin.members]
    weights = agent.mixing_weights(observation)
    torch.testing.assert_close(found, sum(w[:, None] * a for w, a in zip(weights.T, draws, strict=True)))


# --- The contract of agents


@pytest.mark.parametrize(
    ("form", "n_regimes"), [*((form, 3) for form in FORMS), *((form, k) for form in ("sac", "dqn") for k in (1, 2, 5))]
)
def test_any_agent_trains_and_acts_with_any_number_of_regimes(form, n_regimes):
    env = market(form, n_regimes)
    agent = new_agent(form, env)
    config = RLTrainingConfig(total_timesteps=180, n_envs=3, progress=False)
    metrics = train_rl_agent(agent, env, config)
    assert agent.num_timesteps == metrics.num_timesteps == 180
    assert len(agent.members) == (1 if n_regimes == 1 else 1 + n_regimes)
    assert sum(member.num_timesteps for member in agent.members) == 180
    assert max(m.num_timesteps for m in agent.members) - min(m.num_timesteps for m in agent.members) <= 3
    assert agent.num_updates == sum(member.num_updates for member in agent.members) > 0
    assert all(member.normalizer.mode == "fixed" for member in agent.members)
    observation, mask = observations_of(env)
    for deterministic in (True, False):
        assert env.action_space.contains(acted(agent, observation[0].numpy(), None, deterministic))
    together = acted(agent, observation, mask)
    for row, expected in enumerate(together):
        alone = acted(agent, observation[row : row + 1], None if mask is None else mask[row : row + 1])
        # One row or many: the library below may add up in another order.
        torch.testing.assert_close(alone[0], expected, rtol=1e-5, atol=1e-6)
    result = evaluate_agent(agent, env, n_bootstrap=0)
    assert np.isfinite(result.metrics["total_return"])


def test_there_are_six_agents_still():
    assert "regime_aware" not in list_available_agents()
    assert len(list_available_agents()) == 6


@each_form
def test_with_one_regime_it_is_the_generalist_to_the_bit(form):
    env = market(form, n_regimes=1)
    agent = trained(form, env)
    plain = create_rl_agent(form.split(",")[0], env.observation_space_dim, env.action_space_dim, FORMS[form], seed=0)
    train_rl_agent(
        plain, env.vectorize(3, seed=1, random_start=True), RLTrainingConfig(total_timesteps=120, progress=False)
    )
    assert (weights_of(agent) == torch.cat([weights_of(PlainMembers(plain))])).all()
    observation, mask = observations_of(env)
    assert torch.equal(acted(agent, observation, mask), acted(plain, observation, mask))


@dataclasses.dataclass
class PlainMembers:
    """One agent as the only member."""

    agent: object

    @property
    def members(self):
        return [self.agent]


def test_the_same_seed_gives_the_same_agent():
    env = market()
    assert torch.equal(weights_of(trained("sac", env)), weights_of(trained("sac", env)))
    assert not torch.equal(weights_of(trained("sac", env)), weights_of(trained("sac", env, seed=1)))


@pytest.mark.parametrize("form", ["sac", "dqn", "ppo, discrete"])
def test_training_again_goes_on(form):
    env = market(form)
    agent = trained(form, env)
    before, n_updates = weights_of(agent), agent.num_updates
    agent.train(env, 60, n_envs=2)
    assert agent.num_timesteps == 180
    assert agent.num_updates > n_updates
    assert not torch.equal(weights_of(agent), before)


def test_hidden_columns_have_no_say_in_what_members_answer():
    env = market(n_assets=2)
    agent = trained("sac", env, observe_probabilities=False)
    observation, _ = observations_of(env)
    hidden = list(agent.layout.hidden)
    # Three rows of two assets, each with a return, two probabilities, entropy and novelty; then the account.
    assert len(hidden) == 3 * 2 * 4
    assert agent.members[0].state_dim == env.observation_space_dim - len(hidden)
    other = observation.clone()
    other[:, hidden] = torch.rand(len(observation), len(hidden))
    inputs = [agent._seen(observation), agent._seen(other)]
    assert torch.equal(*inputs)
    torch.testing.assert_close(inputs[0][:, 0], observation[:, 0])
    # The mixing goes by the newest bar alone, and sees them.
    other[:, hidden] = observation[:, hidden]
    other[:, : 2 * 10] = observation[:, : 2 * 10] + 1.0
    assert torch.equal(agent.mixing_weights(other), agent.mixing_weights(observation))


def test_without_mixing_there_is_the_generalist_alone():
    env = market(n_regimes=3)
    agent = trained("sac", env, mix=False)
    assert len(agent.members) == 1
    assert agent.specialists == ()
    observation, _ = observations_of(env)
    assert torch.equal(agent.select_action(observation, True), agent.generalist.select_action(observation, True))


@pytest.mark.parametrize("observe", [True, False])
def test_networks_that_read_windows_may_be_members(observe):
    env = market(n_assets=2)
    config = RegimeAwareConfig(
        agent_config=dataclasses.replace(FORMS["sac"], network="lstm"), observe_probabilities=observe
    )
    agent = RegimeAwareAgent(env.observation_space_dim, env.action_space_dim, config)
    agent.train(env, 60, n_envs=2)
    assert agent.num_updates > 0
    assert agent.members[0].window.row_dim == (2 * 5 if observe else 2)


# --- The bars of a regime


def test_rewards_count_by_the_probability_of_the_bar_they_were_decided_at():
    env = market(n_regimes=2, commission=0.001).vectorize(4, seed=1, random_start=True)
    column = env.market.feature_names.index("regime_p1")
    weights = torch.from_numpy(env.market.features[:, column].copy())
    weighted = WeightedVectorEnv(env, weights, seed=5)
    legal = weights[env.market.first_bar :].double()
    unit = (legal**2).sum() / legal.sum()
    weighted.reset()
    env.reset(options={"start_bar": weighted.bar})
    for step in range(25):
        action = torch.full((4, 1), (-1.0) ** step)
        bar = weighted.bar
        if not torch.equal(env.bar, bar):  # Where an episode ended the two draw other starts.
            break
        _, plain, *_ = env.step(action)
        _, reward, *_ = weighted.step(action)
        torch.testing.assert_close(reward, plain * (weights[bar] / unit).float(), rtol=1e-6, atol=0.0)
    assert step >= 9


@pytest.mark.parametrize("probability", [0.2, 0.8, 1.0])
def test_a_specialist_of_a_regime_that_is_always_as_likely_gets_the_rewards_of_the_market(probability):
    # Its values are weighed by the probability when they are mixed: rewards that were, too, would count it twice.
    env = market(n_regimes=2, commission=0.001).vectorize(4, seed=1, random_start=True)
    weighted = WeightedVectorEnv(env, torch.full((env.market.n_bars,), probability), seed=5)
    weighted.reset()
    env.reset(options={"start_bar": weighted.bar})
    for step in range(9):
        action = torch.full((4, 1), (-1.0) ** step)
        assert torch.equal(env.step(action)[1], weighted.step(action)[1])


def test_episodes_begin_in_proportion_to_the_probability():
    env = market(n_regimes=2).vectorize(6_000, random_start=True)
    weights = torch.from_numpy(env.market.features[:, 1].copy()).double()
    weighted = WeightedVectorEnv(env, weights, seed=5)
    weighted.reset()
    first, last = env.market.first_bar, env.market.last_start(10)
    found = weighted.bar.bincount(minlength=env.market.n_bars).double() / 6_000
    expected = torch.zeros_like(found)
    expected[first : last + 1] = weights[first : last + 1] / weights[first : last + 1].sum()
    # Four standard errors of each share, plus a little for those next to 0.
    bound = 4.0 * (expected * (1.0 - expected) / 6_000).sqrt() + 1e-3
    assert ((found - expected).abs() <= bound).all()


def test_a_specialist_of_a_regime_that_never_comes_learns_nothing_and_breaks_nothing():
    probabilities = np.tile([1.0, 0.0], (90, 1))
    table = with_regime_probabilities(autoregressive(90, seed=1).prices, probabilities)
    env = TradingEnvironment(table, TradingEnvConfig(window_size=3, episode_length=10))
    agent = trained("sac", env)
    observation, _ = observations_of(env)
    assert torch.isfinite(agent.select_action(observation, True)).all()
    assert agent.mixing_weights(observation)[:, 2].tolist() == [0.0] * 6


# --- Runs that are cut


class StopAt(Callback):
    def __init__(self, timesteps):
        self.timesteps = timesteps

    def on_step(self, state):
        if self.timesteps is not None and state.num_timesteps >= self.timesteps:
            state.request_stop("that is enough")


def run(form, folder, *, stop=None, resume_from=None, **settings):
    env = market(form, n_regimes=2, allow_short=form not in CHOOSING)
    agent = new_agent(form, env, seed=5, **settings)
    config = RLTrainingConfig(
        total_timesteps=240,
        n_envs=3,
        log_frequency=10,
        checkpoint_frequency=999,
        eval_frequency=140,
        progress=False,
        seed=2,
        run_dir=str(folder),
    )
    train_rl_agent(agent, env, config, [StopAt(stop)], resume_from=resume_from)
    return agent


def contents(path):
    content = torch.load(path, weights_only=False)
    content["training"]["counters"].pop("wall_seconds")
    content["training"].pop("config")
    return content


def assert_same(found, expected, where="content"):
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape, where
        assert found.detach().numpy().tobytes() == expected.detach().numpy().tobytes(), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(ours, theirs, f"{where}[{number}]")
    else:
        assert found == expected or (found != found and expected != expected), where


# Amid the second round of rollouts; for two of them also after one step of the generalist alone, and where all have learned.
@pytest.mark.parametrize(
    ("form", "stop"), [*((form, 51) for form in FORMS), ("sac", 3), ("sac", 147), ("ppo", 3), ("ppo", 147)]
)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, form, stop):
    settings = {"observe_probabilities": False} if form in ("sac", "a2c") else {}
    run(form, tmp_path / "whole", **settings)
    run(form, tmp_path / "cut", stop=stop, **settings)
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    run(form, tmp_path / "cut", resume_from=last, **settings)
    expected = contents(tmp_path / "whole" / "checkpoints" / "last.pt")
    assert expected["counters"]["num_updates"] > 6
    assert_same(contents(last), expected)
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_a_run_of_another_number_of_regimes_is_not_resumed(tmp_path):
    run("sac", tmp_path, stop=60)
    env = market("sac", n_regimes=3)
    config = RLTrainingConfig(total_timesteps=240, n_envs=3, progress=False)
    with pytest.raises(CheckpointError):
        train_rl_agent(new_agent("sac", env), env, config, resume_from=tmp_path / "checkpoints" / "last.pt")


class LoadsOnTheWay(Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_step(self, state):
        if state.num_timesteps == self.at:
            state.agent.load(self.path)


@pytest.mark.parametrize("form", ["sac", "ppo"])
def test_an_agent_may_be_loaded_inside_a_run(tmp_path, form):
    env = market(form)
    path = trained(form, env).save(tmp_path / "agent.pt")
    agent = new_agent(form, env, seed=9)
    config = RLTrainingConfig(total_timesteps=180, n_envs=3, progress=False)
    train_rl_agent(agent, env, config, LoadsOnTheWay(path, at=90))
    assert agent.num_updates > load_rl_agent(path).num_updates


@pytest.mark.parametrize("other", [{"mix": False}, {"observe_probabilities": False}, {"form": "td3"}])
def test_an_agent_that_cannot_go_on_with_a_run_is_not_loaded_inside_it(tmp_path, other):
    env = market("sac")
    path = trained(other.pop("form", "sac"), env, **other).save(tmp_path / "agent.pt")
    agent = new_agent("sac", env, seed=9)
    before = []

    class Tries(Callback):
        def on_step(self, state):
            if state.num_timesteps == 90:
                before.append(agent.config)
                with pytest.raises(CheckpointError, match="amid a run"):
                    agent.load(path)

    train_rl_agent(agent, env, RLTrainingConfig(total_timesteps=180, n_envs=3, progress=False), Tries())
    assert before == [agent.config]
    assert len(agent.members) == 3
    if agent.agent_type == "regime_aware" and agent.config.agent_type == load_rl_agent(path).config.agent_type:
        agent.load(path)  # The run is over.
        assert agent.config == load_rl_agent(path).config


# --- Files


def own_inputs(table):
    return regime_features(table)


def test_loading_keeps_the_function_that_no_file_holds(tmp_path):
    raw, _, _ = fitted_market()
    regimes = RegimeColumns(GaussianHMM(n_regimes=2, n_starts=1), inputs=own_inputs).fit(raw.iloc[:120])
    env = TradingEnvironment(regimes.add_to(raw), TradingEnvConfig(window_size=3, episode_length=10))
    agent = trained("sac", env, total=30, regimes=regimes)
    expected = agent.add_regimes(raw)
    path = agent.save(tmp_path / "agent.pt")
    agent.load(path)
    assert agent.add_regimes(raw).equals(expected)
    with pytest.raises(ValueError, match="own_inputs"):
        load_rl_agent(path).add_regimes(raw)


def test_detectors_that_know_nothing_or_that_no_file_holds_are_refused_at_once():
    with pytest.raises(RuntimeError, match=r"regimes\.fit\(train\)"):
        RegimeAwareAgent(9, 1, None, RegimeColumns(GaussianHMM(n_regimes=2)))

    class Foreign:
        fit = predict_next = update = reset = lambda self: None

    with pytest.raises(TypeError, match=r"regimes\.add_to\(prices\)"):
        RegimeAwareAgent(9, 1, None, RegimeColumns(Foreign()))


def test_raw_prices_are_refused_before_anything_is_trained_or_judged():
    raw, regimes, env = fitted_market()
    raw_env = TradingEnvironment(raw, TradingEnvConfig(window_size=3, episode_length=10))
    agent = new_agent("sac", env, regimes=regimes)
    config = RLTrainingConfig(total_timesteps=60, n_envs=3, progress=False)
    with pytest.raises(ValueError, match=r"agent\.add_regimes\(prices\)"):
        train_rl_agent(agent, env, config, eval_env=raw_env)
    assert agent.num_timesteps == 0
    with pytest.raises(ValueError, match=r"agent\.add_regimes\(prices\)"):
        evaluate_agent(trained("sac", env, total=30, regimes=regimes), raw_env, n_bootstrap=0)


def fitted_market(form="sac", n_bars=160):
    raw = regime_switching(n_bars, volatilities=(0.005, 0.02), seed=3).prices
    regimes = RegimeColumns(GaussianHMM(n_regimes=2, n_starts=1)).fit(raw.iloc[:120])
    kind = "discrete" if form in CHOOSING else "continuous"
    config = TradingEnvConfig(window_size=3, episode_length=10, action_type=kind)
    return raw, regimes, TradingEnvironment(regimes.add_to(raw), config)


def test_saved_agents_act_the_same_in_another_process(tmp_path):
    program = ["import numpy as np", "from ml.tradingbots.components import load_rl_agent"]
    for number, form in enumerate(FORMS):
        _, regimes, env = fitted_market(form)
        agent = trained(form, env, regimes=regimes, observe_probabilities=number % 2 == 0)
        observation, _ = observations_of(env)
        np.save(tmp_path / f"{number}.npy", observation.numpy())
        np.save(tmp_path / f"{number}_expected.npy", agent.select_action(observation.numpy(), True))
        agent.save(tmp_path / f"{number}.pt")
        folder = str(tmp_path)
        program += [
            f"agent = load_rl_agent({folder!r} + '/{number}.pt')",
            f"seen = np.load({folder!r} + '/{number}.npy')",
            f"expected = np.load({folder!r} + '/{number}_expected.npy')",
            "assert agent.select_action(seen, True).tobytes() == expected.tobytes()",
            "assert agent.regimes is not None and agent.regimes.n_regimes == 2",
        ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_loaded_agent_adds_the_columns_that_it_was_trained_with(tmp_path):
    raw, regimes, env = fitted_market()
    agent = trained("sac", env, regimes=regimes)
    again = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    assert (again.add_regimes(raw).iloc[1:] == regimes.add_to(raw).iloc[1:]).all(axis=None)
    assert again.config == agent.config
    assert again.layout == agent.layout
    assert again.seed == agent.seed
    with pytest.raises(RuntimeError, match="no detector"):
        new_agent("sac", env).add_regimes(raw)


def saved(tmp_path):
    _, regimes, env = fitted_market()
    path = trained("sac", env, total=30, regimes=regimes).save(tmp_path / "agent.pt")
    return path, torch.load(path, weights_only=False), env


def test_hostile_and_damaged_files_are_refused(tmp_path):
    path, content, env = saved(tmp_path)
    learned, config = content["learned"], content["config"]
    member = learned["members"][0]
    changes = {
        "no members": {"learned": learned | {"members": []}},
        "a member too few": {"learned": learned | {"members": learned["members"][:2]}},
        "a member of another kind": {
            "learned": learned | {"members": [*learned["members"][:2], {"agent_type": "ppo"}]}
        },
        "no list": {"learned": learned | {"members": 3}},
        "a detector of bytes": {"learned": learned | {"regimes": torch.zeros(9, dtype=torch.uint8)}},
        "a detector that is none": {"learned": learned | {"regimes": "hmm"}},
        "an entry too many": {"learned": learned | {"more": 1}},
        "another config": {"config": config | {"min_generalist": 3.0}},
        "a field too many": {"config": config | {"more": 1}},
        "a config of another agent": {"config": config | {"agent_config": DQNConfig()}},
        "no such agent": {"config": config | {"agent_type": "eval"}},
        "no config": {"config": SACConfig()},
        "immense": {"dimensions": {"state_dim": 10**12, "action_dim": 1}},
        "many actions": {"dimensions": {"state_dim": content["dimensions"]["state_dim"], "action_dim": 10**12}},
        "no regimes": {"environment": content["environment"] | {"features": ["log_return"]}},
        "no environment": {"environment": {}},
        "diverged": {"learned": learned | {"members": [diverged(member), *learned["members"][1:]]}},
    }
    for name, change in changes.items():
        torch.save(content | change, path)
        with pytest.raises(CheckpointError):
            load_rl_agent(path)
        agent = new_agent("sac", env, seed=4)
        agent.bind(env)
        before = weights_of(agent)
        with pytest.raises(CheckpointError):
            agent.load(path)
        assert torch.equal(weights_of(agent), before), name


def diverged(member):
    spoilt = copy.deepcopy(member)
    next(iter(spoilt["learned"]["actor"].values())).fill_(torch.nan)
    return spoilt


def test_a_file_of_a_plain_agent_is_named_as_what_it_is(tmp_path):
    env = market()
    plain = create_rl_agent("sac", env.observation_space_dim, 1, FORMS["sac"])
    path = plain.save(tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="'sac'"):
        new_agent("sac", env).load(path)
    path = trained("sac", env, total=30).save(tmp_path / "aware.pt")
    with pytest.raises(CheckpointError, match="regime_aware"):
        plain.load(path)


# --- Decisions now


def test_live_decisions_on_raw_prices_are_those_on_the_trained_table():
    raw, regimes, env = fitted_market()
    agent = trained("sac", env, regimes=regimes)
    expected = target_weights(agent, regimes.add_to(raw))
    found = target_weights(agent, raw)
    assert found.target_weights.tobytes() == expected.target_weights.tobytes()
    earlier = raw.index[157]
    assert target_weights(agent, raw, at=earlier).target_weights.tobytes() == (
        target_weights(agent, raw.iloc[:158]).target_weights.tobytes()
    )


def test_a_portfolio_may_be_managed_on_raw_prices():
    raw, regimes, env = fitted_market()
    agent = trained("sac", env, regimes=regimes)
    bars, state = Bars.from_frame(raw), PortfolioState(weights=np.zeros(1), equity=1.0, drawdown=0.0)
    found = AgentSource(agent).propose(bars, state)
    expected = AgentSource(agent).propose(Bars.from_frame(regimes.add_to(raw)), state)
    assert found.weights.tobytes() == expected.weights.tobytes()


def test_answers_that_depend_on_where_prices_begin_say_so():
    raw, regimes, env = fitted_market()
    agent = trained("sac", env, total=30, regimes=regimes)
    needed = regimes.bars_to_forget
    assert 20 < needed < len(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target_weights(agent, raw)
        target_weights(agent, regimes.add_to(raw).iloc[-20:])
    state = PortfolioState(weights=np.zeros(1), equity=1.0, drawdown=0.0)
    for ask in (
        lambda: target_weights(agent, raw.iloc[-20:]),
        lambda: target_weights(agent, raw, at=raw.index[19]),
        lambda: AgentSource(agent).propose(Bars.from_frame(raw.iloc[-20:]), state),
    ):
        with pytest.warns(UserWarning, match=f"20 bars .* until {needed} bars"):
            ask()


# --- What is refused


def test_several_markets_at_once_are_refused_with_the_way_that_works():
    env = market()
    trainer = TransferLearningTrainer(trained("sac", env, total=30))
    with pytest.raises(TypeError, match="train_rl_agent"):
        trainer.pretrain({"a": env, "b": env}, 100)


def test_hindsight_is_refused():
    raw, regimes, env = fitted_market()
    smoothed = regimes.detector.smooth_for_analysis(regime_features(raw))
    with pytest.raises(TypeError, match="know the future"):
        RegimeAwareAgent(9, 1, RegimeAwareConfig(), smoothed)
    agent = trained("sac", env, total=30, regimes=regimes)
    with pytest.raises(TypeError, match="know the future"):
        agent.select_action(smoothed)
    with pytest.raises(TypeError, match="know the future"):
        agent.add_regimes(smoothed)


def test_environments_that_are_no_markets_or_show_no_regimes_are_refused():
    plain = TradingEnvironment(autoregressive(90, seed=1).prices, TradingEnvConfig(window_size=3))
    with pytest.raises(ValueError, match=r"regime_p0.*add_to"):
        new_agent("sac", plain).train(plain, 10)
    with pytest.raises(ValueError, match="markets"):
        RegimeAwareAgent(3, 1).train("Pendulum-v1", 10)
    hidden = market(use_extra_columns=False)
    with pytest.raises(ValueError, match="use_extra_columns"):
        new_agent("sac", hidden).bind(hidden)


def test_another_number_or_order_of_regimes_is_refused():
    raw, regimes, env = fitted_market()
    three = market(n_regimes=3)
    with pytest.raises(ValueError, match="3 regimes"):
        new_agent("sac", three, regimes=regimes).bind(three)
    agent = trained("sac", env, total=30, regimes=regimes)
    names = ("regime_novelty", "log_return", "regime_p0", "regime_p1", "regime_entropy")
    other = TradingEnvironment(
        regimes.add_to(raw), dataclasses.replace(env.config, features=names, use_extra_columns=False)
    )
    with pytest.raises(ValueError, match="another order"):
        agent.bind(other)


def test_a_market_of_regimes_alone_cannot_be_hidden():
    env = market(features=(), use_extra_columns=True)
    with pytest.raises(ValueError, match="no other feature"):
        new_agent("sac", env, observe_probabilities=False).bind(env)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"agent_type": "a3c"}, ValueError, "agent_type"),
        ({"agent_config": DQNConfig()}, TypeError, "SACConfig"),
        ({"min_generalist": 1.5}, ValueError, "min_generalist"),
        ({"min_generalist": 0.0}, ValueError, "min_generalist must be above 0"),
        ({"mix": 1}, ValueError, "mix"),
    ],
)
def test_impossible_configs_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        RegimeAwareConfig(**settings)


def test_an_agent_that_has_met_no_environment_says_so():
    agent = RegimeAwareAgent(9, 1)
    with pytest.raises(RuntimeError, match=r"agent\.bind"):
        agent.select_action(np.zeros(9, dtype=np.float32))
    with pytest.raises(RuntimeError, match=r"agent\.bind"):
        agent.state_dict()
    with pytest.raises(TypeError, match="RegimeColumns"):
        RegimeAwareAgent(9, 1, None, GaussianHMM(n_regimes=2))


def test_a_mixture_is_not_exported_as_one_network(tmp_path):
    agent = trained("sac", market(), total=30)
    with pytest.raises(NotImplementedError, match="specialists"):
        agent.export_onnx(tmp_path / "agent.onnx")
