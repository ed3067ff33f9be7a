"""Carrying an agent to another market: what stands still, what moves how fast, on which scales, and beside what."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ml.tradingbots.components import TradingEnvConfig, TradingEnvironment, create_rl_agent, load_rl_agent
from ml.tradingbots.components.a2c_agent import A2CConfig
from ml.tradingbots.components.ddpg_agent import DDPGConfig
from ml.tradingbots.components.freezing import FreezingSchedule, anchors_of
from ml.tradingbots.components.meta_learning import TransferLearningTrainer, TransferReport
from ml.tradingbots.components.optimizers import FusedAdam, FusedAdamW, RMSprop, descend
from ml.tradingbots.components.parameter_groups import TARGETS, optimizers_of, parameter_groups
from ml.tradingbots.components.policy_scores import walk_log_returns
from ml.tradingbots.components.rl_agents import DQNConfig, PPOConfig
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.td3_agent import TD3Config
from ml.tradingbots.components.transfer_learning import target_accounts
from ml.tradingbots.components.transfer_results import timesteps_to
from ml.tradingbots.components.transfer_scaling import random_reward_variance
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import RLTrainingConfig, evaluate_agent, train_rl_agent
from ml.tradingbots.training.callbacks import CheckpointCallback
from ml.tradingbots.training.fine_tuning import FineTuning, ScoreCurve
from ml.tradingbots.training.transfer_report import transfer_report_html

ON_POLICY = {"hidden_dim": 8, "n_steps": 5}
OFF_POLICY = {"hidden_dim": 8, "batch_size": 8, "learning_starts": 20, "buffer_size": 200}
FORMS = {
    "ppo": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2),
    "ppo, discrete": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2, action_type="discrete"),
    "ppo, gsde": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2, gsde=True),
    "ppo, lstm": PPOConfig(**ON_POLICY, batch_size=4, n_epochs=2, network="lstm"),
    "dqn": DQNConfig(**OFF_POLICY, target_update_interval=10, tau=0.5),
    "sac": SACConfig(**OFF_POLICY),
    "sac, cnn": SACConfig(**OFF_POLICY, network="cnn"),
    "td3": TD3Config(**OFF_POLICY),
    "ddpg": DDPGConfig(**OFF_POLICY),
    "a2c": A2CConfig(**ON_POLICY),
}
DISCRETE = ("dqn", "ppo, discrete")
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def market(form="sac", seed=1, volatility=0.01, n_bars=60, **changes):
    kind = "discrete" if form in DISCRETE else "continuous"
    config = TradingEnvConfig(**{"window_size": 4, "episode_length": 10, "action_type": kind} | changes)
    return TradingEnvironment(autoregressive(n_bars, volatility=volatility, seed=seed).prices, config)


def pretrained(form, total=60, **settings):
    # So little training is often worse than none; only some tests are about that.
    settings.setdefault("on_negative", "warn")
    env = market(form)
    config = FORMS[form]
    agent = create_rl_agent(
        form.split(",")[0], env.observation_space_dim, env.action_space_dim, config, seed=settings.pop("agent_seed", 0)
    )
    return TransferLearningTrainer(agent, **settings).pretrain({"a": env, "b": market(form, 2, 0.02)}, total, n_envs=2)


def weights(agent):
    return {
        name: {layer.name: layer.parameter.detach().clone() for layer in layers}
        for name, layers in parameter_groups(agent).items()
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_alike(one, other):
    """Nested states are the same, tensors bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_alike(value, other[name])
    elif isinstance(one, (list, tuple)):
        for value, twin in zip(one, other, strict=True):
            assert_alike(value, twin)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def file_of(agent, tmp_path, name="agent.pt"):
    return agent.save(tmp_path / name).read_bytes()


# --- Modules by name


@each_form
def test_every_parameter_of_every_optimiser_is_in_one_module(form):
    agent = pretrained(form).agent
    named = [layer.parameter for layers in parameter_groups(agent).values() for layer in layers]
    moved = [parameter for optimizer in optimizers_of(agent) for parameter in optimizer.param_groups[0]["params"]]
    assert sorted(map(id, named)) == sorted(map(id, moved))


def test_depth_counts_layers_from_the_head_in_actors_and_critics_alike():
    env = market("sac")
    config = (
        dataclasses.replace(FORMS["sac"], hidden_layers=(8, 7, 6)) if hasattr(FORMS["sac"], "hidden_layers") else None
    )
    agent = create_rl_agent("sac", env.observation_space_dim, 1, config or FORMS["sac"])
    groups = parameter_groups(agent)
    n_hidden = len(agent.config.widths)
    for network in ("actor.", "critic."):
        depths = sorted({layer.depth for layer in groups["trunk"] if layer.name.startswith(network)})
        assert depths == list(range(1, n_hidden + 1))
        first = next(layer for layer in groups["trunk"] if layer.name.startswith(network))
        assert first.depth == n_hidden
    assert {layer.depth for layer in groups["heads"]} == {0}
    assert "log_alpha" in [layer.name for layer in groups["heads"]]
    assert [layer.name for layer in groups["heads"] if layer.name.startswith("critic")] == [
        f"critic.mlp.weights.{n_hidden}",
        f"critic.mlp.biases.{n_hidden}",
    ]


@pytest.mark.parametrize("form", ["ppo, lstm", "sac, cnn"])
def test_encoders_of_actors_and_critics_are_below_the_trunk(form):
    groups = parameter_groups(pretrained(form).agent)
    deepest = max(layer.depth for layer in groups["trunk"])
    assert {layer.depth for layer in groups["encoder"]} == {deepest + 1, deepest + 2}
    networks = {layer.name.split("encoder")[0] for layer in groups["encoder"]}
    assert networks == ({"network."} if form.startswith("ppo") else {"actor.body.", "critic."})


# --- What is frozen stands still


@each_form
@pytest.mark.parametrize("freeze", [("encoder", "trunk"), ("heads",)])
def test_frozen_modules_are_the_same_bit_for_bit_and_the_others_are_not(form, freeze):
    trainer = pretrained(form, freeze=freeze)
    before = weights(trainer.agent)
    tuned = trainer.fine_tune(market(form, 3, 0.03), 80, scratch=False, n_evaluations=1, n_envs=2).agent
    after = weights(tuned)
    for module in before:
        if module in freeze:
            exploring = ("log_std", "log_alpha")  # They begin anew, and stand still then.
            assert_same(
                *({k: v for k, v in side[module].items() if not k.endswith(exploring)} for side in (before, after))
            )
        elif before[module]:
            assert any(not torch.equal(value, after[module][name]) for name, value in before[module].items())


@each_form
def test_target_networks_of_frozen_modules_stand_still_too(form):
    trainer = pretrained(form)
    targets = [name for name in TARGETS if name in trainer.agent.learned]
    before = weights(trainer.agent)
    tuned = trainer.fine_tune(market(form, 3, 0.03), 80, scratch=False, n_evaluations=1, n_envs=2).agent
    for target in targets:
        frozen = {
            name.partition(".")[2]
            for m in ("encoder", "trunk")
            for name in before[m]
            if name.startswith(TARGETS[target])
        }
        values, moved = dict(getattr(tuned, target).named_parameters()), 0
        for name, value in values.items():
            was = next(b[f"{TARGETS[target]}.{name}"] for b in before.values() if f"{TARGETS[target]}.{name}" in b)
            if name in frozen:
                assert torch.equal(value, was), name
            else:
                moved += not torch.equal(value, was)
        assert moved


@pytest.mark.parametrize("form", ["ppo", "a2c", "dqn", "sac", "td3"])
def test_clipping_counts_only_what_moves(form):
    # With everything but the heads frozen, a bound on the norm shortens the step by the heads' gradients alone. RMSprop and
    # Adam hardly see the length of a step, so the gradients are looked at.
    trainer = pretrained(form)
    agent = trainer.student(market(form, 3))
    agent.config = dataclasses.replace(agent.config, max_grad_norm=1e-5)
    trainer.schedule.apply(agent)
    frozen = {id(p) for optimizer in optimizers_of(agent) for p in optimizer.frozen}
    agent.train(market(form, 3), 60, n_envs=2)
    for optimizer in optimizers_of(agent):
        moving = [p.grad for p in optimizer.param_groups[0]["params"] if id(p) not in frozen and p.grad is not None]
        if all(gradient.ndim == 0 for gradient in moving):
            continue  # The temperature is not clipped.
        norm = torch.stack([gradient.norm() for gradient in moving]).norm()
        assert float(norm) == pytest.approx(1e-5, rel=1e-2)  # The bound is divided by the norm plus 1e-6.


def test_explicit_gradients_stay_in_use_and_leave_frozen_parameters_alone():
    trainer = pretrained("ppo")
    student = trainer.student(market("ppo", 3))
    trainer.schedule.apply(student)
    before = weights(student)
    student.train(market("ppo", 3), 40, n_envs=2)
    assert student._explicit.suits(torch.zeros(1, student.state_dim))
    assert any(float(layer.parameter.grad.abs().sum()) == 0.0 for layer in parameter_groups(student)["trunk"])
    assert_same(before["trunk"], weights(student)["trunk"])


# --- How fast the others move


def two(kind, values=(1.0, -2.0)):
    parameters = [torch.tensor([value, 0.5]).requires_grad_() for value in values]
    return parameters, kind(parameters)


OPTIMIZERS = {
    "adam": lambda p: FusedAdam(p, 0.1),
    "adamw": lambda p: FusedAdamW(p, 0.1, 0.01),
    "rmsprop": lambda p: RMSprop(p, 0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_with_a_factor_is_that_many_times_the_step(kind):
    (plain, first), (slow, second) = two(OPTIMIZERS[kind]), two(OPTIMIZERS[kind])
    second.set_rates({slow[0]: 0.25, slow[1]: 3.0})
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        starts = [value.detach().clone() for value in plain]
        for value, other, start in zip(plain, slow, starts, strict=True):
            value.grad = torch.randn(2, generator=generator)
            other.grad = value.grad.clone()
            other.data.copy_(start)  # AdamW's decay is a share of where it stands.
        first.step()
        second.step()
        for value, other, start, factor in zip(plain, slow, starts, (0.25, 3.0), strict=True):
            # float32: a difference of two numbers of size 1 is right to 1e-7.
            torch.testing.assert_close(other - start, factor * (value - start), rtol=1e-5, atol=5e-7)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_factors_of_one_are_the_plain_optimiser_bit_for_bit(kind):
    (plain, first), (same, second) = two(OPTIMIZERS[kind]), two(OPTIMIZERS[kind])
    second.set_rates(dict.fromkeys(same, 0.5))
    second.set_rates(dict.fromkeys(same, 1.0))
    assert second._factors is None
    for number in range(5):
        for values in (plain, same):
            for value in values:
                value.grad = torch.tensor([0.3 - number, 2.0])
        first.step()
        second.step()
    assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_is_let_go_moves_as_if_its_steps_began_then(kind):
    (late, first), (fresh, second) = two(OPTIMIZERS[kind]), two(OPTIMIZERS[kind])
    first.set_rates({late[0]: 0.0})
    for _ in range(4):
        for value in late:
            value.grad = torch.tensor([1.0, -1.0])
        first.step()
    assert torch.equal(late[0], fresh[0])
    first.set_rates({})
    for value in (late[0], fresh[0]):
        value.grad = torch.tensor([0.5, 2.0])
    late[1].grad = fresh[1].grad = None
    first.step()
    second.step()
    torch.testing.assert_close(late[0], fresh[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rates_are_no_part_of_the_state_and_a_frozen_optimiser_can_be_saved(kind):
    (values, optimizer), (others, other) = two(OPTIMIZERS[kind]), two(OPTIMIZERS[kind])
    optimizer.set_rates({values[0]: 0.0})
    for parameters, owner in ((values, optimizer), (others, other)):
        for value in parameters:
            value.grad = torch.ones(2)
        owner.step()
    assert optimizer.state_dict().keys() == other.state_dict().keys()
    assert list(optimizer.state_dict()["state"]) == [0, 1]  # All or none, as files must have it.
    assert not copy.deepcopy(optimizer).frozen


def test_the_pull_towards_the_source_is_added_to_the_gradient():
    # RMSprop with decay 0 moves by rate·g/√(g² + ε): the gradient can be read off the step. g = 2 + 0.5·(1.5 − 1).
    value = torch.tensor([1.5], requires_grad=True)
    optimizer = RMSprop([value], 0.1, alpha=0.0, eps=3.0)
    optimizer.set_rates({value: 1.0}, l2_sp=0.5, anchors={value: torch.tensor([1.0])})
    value.grad = torch.tensor([2.0])
    optimizer.step()
    pulled = 2.0 + 0.5 * 0.5
    assert value.item() == pytest.approx(1.5 - 0.1 * pulled / math.sqrt(pulled**2 + 3.0), rel=1e-6)
    assert value.grad.item() == 2.0  # The caller's gradient is left as it was.


def test_rates_that_make_no_sense_are_refused_by_name():
    (values, optimizer) = two(OPTIMIZERS["adam"])
    with pytest.raises(ValueError, match="a factor must be a finite number of at least 0, got -1"):
        optimizer.set_rates({values[0]: -1.0})
    with pytest.raises(ValueError, match="parameters of this optimiser"):
        optimizer.set_rates({torch.zeros(1): 1.0})


def test_nothing_to_move_is_no_error():
    value = torch.tensor([1.0], requires_grad=True)
    optimizer = FusedAdam([value], 0.1)
    optimizer.set_rates({value: 0.0})
    descend((value * 2).sum(), [value], optimizer, 1.0)
    assert value.item() == 1.0


@pytest.mark.parametrize("form", ["sac", "a2c", "dqn"])
def test_layers_far_from_the_head_move_slower_in_every_optimiser(form):
    trainer = pretrained(form, freeze=(), layer_decay=0.5, learning_rate_factor=0.1)
    student = trainer.student(market(form, 3))
    trainer.schedule.apply(student)
    rates = {id(p): factor for optimizer in optimizers_of(student) for p, factor in optimizer._factors.items()}
    for layers in parameter_groups(student).values():
        for layer in layers:
            assert rates[id(layer.parameter)] == pytest.approx(0.1 * 0.5**layer.depth)


def test_a_strong_pull_keeps_an_agent_near_where_it_began():
    far = {}
    for l2_sp in (0.0, 100.0):
        trainer = pretrained("sac", freeze=(), l2_sp=l2_sp)
        start = anchors_of(trainer.student(market("sac", 3)))
        tuned = trainer.fine_tune(market("sac", 3), 120, scratch=False, n_evaluations=1, n_envs=2).agent
        far[l2_sp] = sum(float((value - start[name]).square().sum()) for name, value in anchors_of(tuned).items())
    assert far[100.0] < 0.5 * far[0.0]


# --- When modules begin to move


@pytest.mark.parametrize("form", ["ppo", "sac"])
def test_modules_begin_to_move_at_their_share_of_the_timesteps(form):
    trainer = pretrained(form, freeze=("trunk", "heads"), unfreeze_at={0.25: ("heads",), 0.5: ("trunk",)})
    moved = {}

    class Watch(ScoreCurve):
        def on_step(self, state):
            now = weights(state.agent)
            for module in ("trunk", "heads"):
                if any(not torch.equal(v, self.first[module][k]) for k, v in now[module].items()):
                    moved.setdefault(module, state.num_timesteps)

    student = trainer.student(market(form, 3))
    watch = Watch(lambda *_: 0.0, market(form, 3), 1)
    watch.first = weights(student)
    config = RLTrainingConfig(
        total_timesteps=400, n_envs=2, normalize_observations=False, progress=False, eval_frequency=0
    )
    train_rl_agent(student, market(form, 3), config, [FineTuning(trainer.schedule), watch])
    # The step at which the share is passed lets go; SAC learns at every step after, PPO when its rollout of 10 is full.
    assert 100 < moved["heads"] <= 110
    assert 200 < moved["trunk"] <= 210


def test_schedules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="freeze must name modules out of encoder, trunk, heads, got 'body'"):
        FreezingSchedule(freeze=("body",))
    with pytest.raises(ValueError, match=r"write \('trunk',\)"):
        FreezingSchedule(freeze="trunk")
    with pytest.raises(ValueError, match="'heads', which is not frozen"):
        FreezingSchedule(unfreeze_at={0.5: ("heads",)})
    with pytest.raises(ValueError, match=r"shares of the run in \[0, 1\], got 500"):
        FreezingSchedule(unfreeze_at={500: ("trunk",)})
    with pytest.raises(ValueError, match="layer_decay must be in"):
        FreezingSchedule(layer_decay=0.0)
    with pytest.raises(ValueError, match="name them in freeze"):
        FreezingSchedule(learning_rate_factor=0.0)


@pytest.mark.parametrize("form", ["ppo", "sac"])
def test_a_resumed_fine_tuning_ends_where_an_uninterrupted_one_does(form, tmp_path):
    settings = {"unfreeze_at": {0.6: ("trunk",)}, "l2_sp": 0.1, "layer_decay": 0.5}
    trainer = pretrained(form, **settings)

    def run(total, resume_from=None, callbacks=()):
        student = trainer.student(market(form, 3))
        config = RLTrainingConfig(
            total_timesteps=200, n_envs=2, normalize_observations=False, normalize_rewards=False, progress=False
        )
        own = [FineTuning(trainer.schedule), ScoreCurve(lambda *_: 1.0, market(form, 3), 50), *callbacks]
        if total < 200:
            own.append(Stop(total))
        else:
            own.append(Stop(10**9))
        train_rl_agent(student, market(form, 3), config, own, resume_from=resume_from)
        return student, own[1].points

    checkpoints = CheckpointCallback(100, tmp_path, resumable=True)
    whole, points = run(200, callbacks=[CheckpointCallback(100, tmp_path / "w", resumable=True)])
    run(100, callbacks=[checkpoints])
    resumed, found = run(200, tmp_path / "agent_100.pt", [CheckpointCallback(100, tmp_path / "r", resumable=True)])
    assert_alike(whole.state_dict(), resumed.state_dict())
    assert points == found == dict.fromkeys([0, 50, 100, 150, 200], 1.0)


def test_a_fine_tuning_is_not_resumed_with_another_schedule(tmp_path):
    trainer, target = pretrained("sac", unfreeze_at={0.5: ("trunk",)}), market("sac", 3)
    settings = {"n_envs": 2, "normalize_observations": False, "progress": False}
    keep = CheckpointCallback(40, tmp_path, resumable=True)
    config = RLTrainingConfig(total_timesteps=40, **settings)
    train_rl_agent(trainer.student(target), target, config, [FineTuning(trainer.schedule), keep])
    other = FineTuning(dataclasses.replace(trainer.schedule, l2_sp=0.5))
    with pytest.raises(ValueError, match=r"another schedule: l2_sp was 0.0, now 0.5"):
        train_rl_agent(
            trainer.student(target),
            target,
            RLTrainingConfig(total_timesteps=80, **settings),
            [other, keep],
            resume_from=tmp_path / "agent_40.pt",
        )


class Stop(CheckpointCallback):
    """Ends a run after some timesteps."""

    def __init__(self, at):
        super().__init__(10**9, "unused")
        self.at = at

    def on_step(self, state):
        if state.num_timesteps >= self.at:
            state.request_stop("enough")


# --- Scales


def statistics(agent):
    return agent.normalizer.statistics.mean, agent.normalizer.statistics.std


def test_transfer_keeps_the_scales_of_the_source():
    trainer = pretrained("sac", normalizer="transfer")
    student = trainer.student(market("sac", 3, 0.03))
    assert torch.equal(statistics(student)[1], statistics(trainer.agent)[1])
    assert student.reward_scale == trainer.agent.reward_scale != 1.0
    assert not student.scale_rewards


def test_reset_takes_those_of_the_target():
    trainer, target = pretrained("sac", normalizer="reset"), market("sac", 3, 0.03)
    student = trainer.student(target)
    mean, std = target.vectorize(1).observation_statistics()
    assert torch.equal(statistics(student)[0], mean.double())
    torch.testing.assert_close(statistics(student)[1], std.double(), rtol=1e-12, atol=0.0)
    assert student.scale_rewards
    tuned = trainer.fine_tune(target, 60, scratch=False, n_evaluations=1, n_envs=2).agent
    assert tuned.reward_scale < trainer.agent.reward_scale  # Three times the volatility.


def test_blend_pools_both_by_counts():
    trainer, target = pretrained("sac", normalizer="blend", blend_weight=30), market("sac", 3, 0.03)
    student = trainer.student(target)
    n = target.market.n_bars - target.market.first_bar
    (m1, s1), (m2, s2) = statistics(trainer.agent), target.vectorize(1).observation_statistics()
    mean = (30 * m1 + n * m2) / (30 + n)
    square = (30 * (s1**2 + m1**2) + n * (s2**2 + m2**2)) / (30 + n)
    torch.testing.assert_close(statistics(student)[0], mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics(student)[1], (square - mean**2).sqrt(), rtol=1e-6, atol=1e-9)
    here = random_reward_variance(student, target_accounts(target, n_envs=16, seed=0))
    pooled = (30 * trainer.agent.reward_scale**-2 + n * here) / (30 + n)
    assert student.reward_scale == pytest.approx(pooled**-0.5, rel=1e-9)


@pytest.mark.parametrize(("normalizer", "runs"), [("transfer", False), ("reset", True), ("blend", True)])
def test_running_scales_of_rewards_stand_begin_anew_or_go_on(normalizer, runs):
    trainer = pretrained("ppo", normalizer=normalizer, blend_weight=7)
    student = trainer.student(market("ppo", 3))
    assert student.scale_rewards is runs
    source = trainer.agent.return_statistics
    expected = {"transfer": source.count, "reset": 0, "blend": 7}[normalizer]
    assert student.return_statistics.count == expected
    if normalizer != "reset":
        assert torch.equal(student.return_statistics.var, source.var)


def test_statistics_that_are_not_there_cannot_be_blended():
    env = market("sac")
    agent = create_rl_agent("sac", env.observation_space_dim, 1, FORMS["sac"]).train(env, 40)
    with pytest.raises(ValueError, match="saw its observations unscaled"):
        TransferLearningTrainer(agent, normalizer="blend").student(market("sac", 3))


# --- The trainer


@each_form
def test_the_pretrained_agent_is_not_touched_and_fine_tuning_does_not_add_up(form, tmp_path):
    trainer, target = pretrained(form, freeze=("encoder",)), market(form, 3, 0.03)
    before = file_of(trainer.agent, tmp_path)
    first, second = (trainer.fine_tune(target, 60, scratch=False, n_evaluations=2, n_envs=2) for _ in range(2))
    assert file_of(trainer.agent, tmp_path) == before
    assert file_of(first.agent, tmp_path) == file_of(second.agent, tmp_path)
    pd.testing.assert_frame_equal(first.curves, second.curves)


def test_a_loaded_agent_transfers_as_the_one_that_was_saved(tmp_path):
    trainer, target = pretrained("sac"), market("sac", 3)
    loaded = TransferLearningTrainer(load_rl_agent(trainer.agent.save(tmp_path / "source.pt")))
    one, other = (each.fine_tune(target, 60, n_evaluations=2, n_envs=2) for each in (trainer, loaded))
    pd.testing.assert_frame_equal(one.curves, other.curves)


def test_pretraining_sees_all_markets_in_one_memory():
    trainer = pretrained("sac")
    env = trainer.agent.replay.source
    assert env.names == ("a", "b")
    batch = trainer.agent.replay.sample(64, torch.Generator().manual_seed(0))
    assert len(batch.reward) == 64
    both = statistics(trainer.agent)[1]
    torch.testing.assert_close(both, env.observation_statistics()[1].double(), rtol=1e-9, atol=0.0)


def test_new_heads_begin_with_first_weights_and_the_trunk_does_not():
    trainer = pretrained("sac", reinitialize=("heads",))
    student, source = weights(trainer.student(market("sac", 3))), weights(trainer.agent)
    assert_same(student["trunk"], source["trunk"])
    assert all(not torch.equal(v, source["heads"][k]) for k, v in student["heads"].items())


@pytest.mark.parametrize("form", ["sac", "ppo", "ppo, gsde", "dqn"])
def test_exploration_begins_anew_or_is_carried_over(form):
    trainer, target = pretrained(form, total=200), market(form, 3)
    new = trainer.scratch(target, seed_offset=0)
    anew, kept = trainer.student(target), pretrained(form, total=200, reset_exploration=False).student(target)
    assert (anew.num_timesteps, kept.num_timesteps) == (0, trainer.agent.num_timesteps)
    for name in ("log_alpha", "network.log_std"):
        find = {layer.name: layer.parameter for layer in parameter_groups(anew)["heads"]}
        if name in find:
            carried, begun, source = (
                {layer.name: layer.parameter for layer in parameter_groups(agent)["heads"]}[name]
                for agent in (kept, new, trainer.agent)
            )
            assert torch.equal(find[name], begun)
            assert torch.equal(carried, source)
            assert not torch.equal(begun, source)


def test_agents_that_cannot_see_the_target_are_told_what_differs():
    trainer = pretrained("sac")
    with pytest.raises(ValueError, match=r"window_size 4 before, 6 here.*same features, window_size"):
        trainer.fine_tune(market("sac", window_size=6), 10)
    with pytest.raises(ValueError, match=r"features \(.*before.*here"):
        trainer.fine_tune(market("sac", features=("momentum",)), 10)
    with pytest.raises(TypeError, match="needs continuous actions"):
        trainer.fine_tune(market("dqn"), 10)
    with pytest.raises(TypeError, match="must be a TradingEnvironment, got str"):
        trainer.fine_tune("CartPole-v1", 10)


@pytest.mark.parametrize(("form", "changes", "named"), [
    ("sac", {"allow_short": False}, "allow_short True before, False here"),
    ("sac", {"max_weight": 0.5}, "max_weight 1.0 before, 0.5 here"),
    ("dqn", {"allow_short": True}, "allow_short False before, True here"),
])  # fmt: skip
def test_a_target_with_other_bounds_of_actions_is_refused_by_name(form, changes, named):
    before = {"allow_short": not changes["allow_short"]} if "allow_short" in changes else {}
    env = market(form, **before)
    agent = create_rl_agent(form, env.observation_space_dim, env.action_space_dim, FORMS[form])
    trainer = TransferLearningTrainer(agent).pretrain({"a": env}, 30, n_envs=2)
    with pytest.raises(ValueError, match=f"another position in the target: {named}"):
        trainer.student(market(form, 3, **(before | changes)))


def test_a_student_has_seen_the_prices_that_its_parent_has():
    trainer = pretrained("sac")
    assert "seen_until" not in trainer.student(market("sac", 3)).environment_spec
    trainer.agent.environment_spec = trainer.agent.environment_spec | {"seen_until": "2030-01-01T00:00:00+00:00"}
    assert trainer.student(market("sac", 3)).environment_spec["seen_until"] == "2030-01-01T00:00:00+00:00"
    assert "seen_until" not in trainer.scratch(market("sac", 3)).environment_spec


def test_a_report_on_seen_prices_says_in_sample_everywhere():
    trainer, target = pretrained("sac"), market("sac", 3)
    report = trainer.fine_tune(target, 20, n_evaluations=1, n_envs=2)
    result = evaluate_agent(report.agent, target, n_bootstrap=0)
    page = transfer_report_html(report, result)
    assert "(in sample)" in report.verdict()
    assert "In sample, " in page
    assert "Out of sample" not in page


def test_settings_that_make_no_sense_are_refused():
    agent = pretrained("sac").agent
    with pytest.raises(TypeError, match="agent must be one of create_rl_agent or load_rl_agent, got Linear"):
        TransferLearningTrainer(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="normalizer must be 'transfer' or 'reset' or 'blend', got 'keep'"):
        TransferLearningTrainer(agent, normalizer="keep")
    with pytest.raises(ValueError, match="is in reinitialize and in freeze"):
        TransferLearningTrainer(agent, reinitialize=("trunk",))
    with pytest.raises(ValueError, match="blend_weight"):
        TransferLearningTrainer(agent, blend_weight=0)
    with pytest.raises(ValueError, match="total_timesteps must be a whole number of at least 1, got 0"):
        TransferLearningTrainer(agent).fine_tune(market("sac"), 0)
    with pytest.raises(ValueError, match="score must be 'sharpe_ratio' or 'log_growth'"):
        TransferLearningTrainer(agent).fine_tune(market("sac"), 10, score="sharp")


@pytest.mark.parametrize(("settings", "error", "said"), [
    ({"layer_decay": "0.5"}, TypeError, "layer_decay must be a number, got '0.5'"),
    ({"l2_sp": None}, TypeError, "l2_sp must be a number, got None"),
    ({"unfreeze_at": {"0.5": ("trunk",)}}, TypeError, "a key of unfreeze_at must be a number, got '0.5'"),
    ({"freeze": None}, ValueError, "freeze must be a tuple of modules, got None"),
])  # fmt: skip
def test_settings_of_other_types_are_refused_by_name(settings, error, said):
    with pytest.raises(error, match=said):
        TransferLearningTrainer(pretrained("sac").agent, **settings)


@pytest.mark.parametrize(("settings", "error", "said"), [
    ({"threshold": "x"}, ValueError, "threshold must be a finite score or None, got 'x'"),
    ({"threshold": math.nan}, ValueError, "threshold must be a finite score or None, got nan"),
    ({"eval_env": "x"}, TypeError, "eval_env must be a TradingEnvironment, got str"),
    ({"score": lambda *_: None}, ValueError, "score must return a finite number .* got None"),
    ({"score": lambda *_: math.nan}, ValueError, "score must return a finite number .* got nan"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused_before_anything_is_learned(settings, error, said):
    with pytest.raises(error, match=said):
        pretrained("sac").fine_tune(market("sac", 3), 10**9, **settings)


# --- Negative transfer


def sign_score(agent, env):
    """What the mean action is: an agent is as bad as its weights say, whatever the market does."""
    return float(np.mean(agent.select_action(np.zeros((1, agent.state_dim), np.float32), deterministic=True)))


def spoiled(**settings):
    """A trainer whose agent answers −1 to everything."""
    trainer = pretrained("sac", **settings)
    with torch.no_grad():
        trainer.agent.actor.head.bias.fill_(-5.0)
    return trainer


@pytest.mark.parametrize("choice", ["warn", "reinitialize"])
def test_a_worse_start_than_an_untrained_agents_is_said_and_can_be_thrown_away(choice):
    trainer = spoiled(on_negative=choice)
    report = trainer.fine_tune(market("sac", 3), 60, n_evaluations=2, n_envs=2, score=sign_score)
    assert report.is_negative
    assert report.jump_start < 0.0
    assert "negative transfer" in report.summary()
    assert report.reinitialized is (choice == "reinitialize")
    trunk = [weights(agent)["trunk"] for agent in (trainer.agent, report.agent)]
    kept = all(torch.equal(value, trunk[1][name]) for name, value in trunk[0].items())
    assert kept is (choice == "warn")
    assert bool(report.curves["fine-tuned"][0] == report.zero_shot) is (choice == "warn")
    assert ("thrown away" in report.verdict()) is (choice == "reinitialize")


@pytest.mark.parametrize("harmful_where", ["learned from", "held back"])
def test_what_is_transferred_is_thrown_away_by_the_prices_to_learn_from_alone(harmful_where):
    target, unseen = market("sac", 3), market("sac", 4)
    harmful = target if harmful_where == "learned from" else unseen

    def score(agent, env):
        return sign_score(agent, env) * (1.0 if env is harmful else -1.0)

    trainer = spoiled(on_negative="reinitialize")
    report = trainer.fine_tune(target, 60, eval_env=unseen, n_evaluations=2, n_envs=2, score=score)
    assert report.reinitialized is (harmful_where == "learned from")
    assert report.is_negative is (harmful_where == "held back")


def test_thrown_away_means_learning_as_from_scratch(tmp_path):
    trainer = spoiled(on_negative="reinitialize")
    target = market("sac", 3)
    report = trainer.fine_tune(target, 60, n_evaluations=2, n_envs=2, score=sign_score)
    fresh = trainer.scratch(target, n_envs=2, seed_offset=0)
    env = target_accounts(target, n_envs=2, seed=fresh.seed)
    fresh.schedule_timesteps = 60
    for step in fresh.training_steps(env):
        if step.num_timesteps >= 60:
            break
    fresh.scale_rewards = False
    assert file_of(report.agent, tmp_path) == file_of(fresh, tmp_path)


# --- The report


def curves(ours, theirs):
    index = pd.Index([0, 100, 200, 300, 400, 500], name="timesteps")
    return pd.DataFrame({"fine-tuned": ours, "scratch": theirs}, index=index)


def test_the_three_measures_by_hand():
    report = TransferReport(
        curves=curves([0.5, 0.7, 0.95, 1.0, 1.0, 1.1], [-0.1, 0.1, 0.3, 0.6, 0.95, 1.0]),
        zero_shot=0.5,
        untrained=-0.1,
        score="sharpe_ratio",
        out_of_sample=True,
    )
    assert report.jump_start == pytest.approx(0.6)
    assert report.asymptote("scratch") == 1.0  # The last fifth of five evaluations.
    assert report.threshold == pytest.approx(0.9)
    assert report.timesteps_to_threshold() == 200
    assert report.timesteps_to_threshold("scratch") == 400
    assert not report.is_negative
    table = report.to_frame()
    assert table.loc["asymptote", "fine-tuned"] == 1.1
    assert "200 timesteps, scratch 400" in report.summary()


def test_a_scratch_that_learned_nothing_gives_no_threshold():
    report = TransferReport(
        curves=curves([0.5] * 6, [-0.1] * 6), zero_shot=0.5, untrained=-0.1, score="log_growth", out_of_sample=False
    )
    assert math.isnan(report.timesteps_to_threshold())
    assert "earned nothing" in report.verdict()
    assert dataclasses.replace(report, threshold_given=0.6).timesteps_to_threshold() == math.inf
    assert dataclasses.replace(report, threshold_given=0.4).timesteps_to_threshold() == 0
    assert timesteps_to(pd.Series([1.0], index=[7]), 2.0) == math.inf


def test_a_fine_tuning_is_reported_beside_scratch():
    trainer = pretrained("sac")
    report = trainer.fine_tune(market("sac", 3), 60, eval_env=market("sac", 4), n_evaluations=3, n_envs=2)
    assert list(report.curves.index) == [0, 20, 40, 60]
    assert list(report.curves.columns) == ["fine-tuned", "scratch"]
    assert report.out_of_sample
    assert report.curves["fine-tuned"][0] == report.zero_shot
    assert report.curves["scratch"][0] == report.untrained
    assert report.agent.seed != report.scratch_agent.seed
    assert report.settings["freeze"] == ("encoder", "trunk")


def test_scores_are_those_of_the_environment_walked_step_by_step():
    agent, env = pretrained("sac").agent, market("sac", 5, n_bars=80, episode_length=None, random_start=False)
    found = walk_log_returns(agent, env, n_lanes=1)[:, 0]
    observation, info = env.reset()
    equity = [info["equity"]]
    for _ in range(len(found)):
        observation, _, _, _, info = env.step(agent.select_action(observation, deterministic=True))
        equity.append(info["equity"])
    # Single observations go through NumPy, batches through torch: float32 actions that differ in the last bits.
    np.testing.assert_allclose(found, np.diff(np.log(equity)), rtol=1e-4, atol=1e-8)


def test_a_stopped_account_holds_cash_to_the_end():
    class Long:
        def select_action(self, observation, deterministic):
            return torch.ones(len(observation), 1)

    env = market("sac", 6, 0.1, n_bars=80, max_drawdown=0.1)
    found = walk_log_returns(Long(), env, n_lanes=1)[:, 0]
    stopped = np.flatnonzero(found)[-1]
    assert stopped < len(found) - 1
    curve = np.exp(np.append(0.0, found.cumsum()))
    drawdown = 1.0 - curve / np.maximum.accumulate(curve)
    assert (
        drawdown[stopped] < 0.1 <= drawdown[stopped + 1]
    )  # It was stopped when it had to be, and its last loss counts.
