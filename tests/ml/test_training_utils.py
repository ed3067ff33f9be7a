import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ml.tradingbots.components.ddpg_agent import DDPGAgent
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.serialization import CheckpointError, save_file
from ml.tradingbots.training.training_utils import (
    CombinatorialPurgedCV,
    EarlyStoppingCallback,
    ModelCheckpointer,
    PanelSplit,
    PurgedKFold,
    WalkForwardValidator,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fill(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_splitters_and_callbacks_come_from_one_place():
    names = (
        WalkForwardValidator,
        PurgedKFold,
        CombinatorialPurgedCV,
        PanelSplit,
        EarlyStoppingCallback,
        ModelCheckpointer,
    )
    assert all(isinstance(item, type) for item in names)


# Early stopping.


def overfit(stopping, n_epochs=200):
    """Fit a network to noise until told to stop; returns it with its validation loss."""
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(40, 8, generator=generator), torch.randn(40, 1, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def validation_loss():
        with torch.no_grad():
            return float(nn.functional.mse_loss(network(features[20:]), labels[20:]))

    scores = []
    for _ in range(n_epochs):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(features[:20]), labels[:20]).backward()
        optimizer.step()
        scores.append(validation_loss())
        if stopping.update(scores[-1], network):
            break
    return network, scores, validation_loss


def test_the_score_after_restoring_is_the_best_and_not_the_last():
    stopping = EarlyStoppingCallback(patience=20)
    _, scores, validation_loss = overfit(stopping)
    assert len(scores) < 200
    assert scores[-1] > 1.05 * min(scores)  # Overfitted: or the test would show nothing.
    # The same weights on the same machine give the same loss, to the bit.
    assert validation_loss() == stopping.best_score == min(scores) == scores[stopping.best_epoch]


def test_training_that_runs_out_of_epochs_is_restored_by_asking():
    stopping = EarlyStoppingCallback(patience=1_000)
    _, scores, validation_loss = overfit(stopping)
    assert validation_loss() == scores[-1]
    stopping.restore()
    stopping.restore()
    assert validation_loss() == min(scores)


def test_the_kept_weights_do_not_follow_training():
    layer, stopping = nn.Linear(2, 2), EarlyStoppingCallback()
    fill(layer, 1.0)
    stopping.update(0.5, layer)
    fill(layer, 2.0)
    stopping.restore()
    assert all((parameter == 1.0).all() for parameter in layer.parameters())
    fill(layer, 3.0)
    stopping.restore()
    assert all((parameter == 1.0).all() for parameter in layer.parameters())


def test_restoring_changes_the_very_tensors_that_the_optimiser_holds():
    layer, stopping = nn.Linear(2, 2), EarlyStoppingCallback()
    before = [parameter.data_ptr() for parameter in layer.parameters()]
    stopping.update(0.5, layer)
    fill(layer, 2.0)
    stopping.restore()
    assert [parameter.data_ptr() for parameter in layer.parameters()] == before


def test_kept_weights_are_on_the_cpu_without_a_gradient():
    layer, stopping = nn.BatchNorm1d(3), EarlyStoppingCallback()
    stopping.update(0.5, layer)
    (weights,) = stopping.state_dict()["best_weights"]
    assert set(weights) == set(layer.state_dict())
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in weights.values())


def test_buffers_and_several_modules_are_restored():
    layers, stopping = [nn.Linear(2, 2), nn.BatchNorm1d(2)], EarlyStoppingCallback()
    stopping.update(0.5, layers)
    kept = [copy.deepcopy(layer.state_dict()) for layer in layers]
    layers[1](torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    fill(layers[0], 7.0)
    stopping.restore()
    for layer, weights in zip(layers, kept, strict=True):
        torch.testing.assert_close(dict(layer.state_dict()), dict(weights), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_stopping_waits_exactly_for_patience(mode):
    sign = 1.0 if mode == "min" else -1.0
    layer, stopping = nn.Linear(1, 1), EarlyStoppingCallback(patience=2, mode=mode)
    scores = [5.0, 4.0, 4.0, 3.0, 3.5, 3.0]
    assert [stopping.update(sign * score, layer) for score in scores] == [False, False, False, False, False, True]
    assert (stopping.best_score, stopping.best_epoch, stopping.n_epochs) == (sign * 3.0, 3, 6)


def test_a_gain_of_min_delta_is_not_enough():
    layer, stopping = nn.Linear(1, 1), EarlyStoppingCallback(patience=1, min_delta=0.5)
    assert not stopping.update(2.0, layer)
    assert stopping.update(1.5, layer)
    assert stopping.best_score == 2.0


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_no_improvement(score):
    layer, stopping = nn.Linear(1, 1), EarlyStoppingCallback(patience=2)
    fill(layer, 1.0)
    stopping.update(0.5, layer)
    fill(layer, math.nan)
    assert [stopping.update(score, layer) for _ in range(2)] == [False, True]
    assert stopping.best_epoch == 0
    assert layer.bias.item() == 1.0


def test_training_that_never_had_a_score_stops_and_has_nothing_to_restore():
    layer, stopping = nn.Linear(1, 1), EarlyStoppingCallback(patience=2)
    assert [stopping.update(math.nan, layer) for _ in range(2)] == [False, True]
    assert (stopping.best_score, stopping.best_epoch) == (None, None)
    with pytest.raises(
        RuntimeError, match=r"no best weights to restore after 2 epochs: every score was NaN or infinite"
    ):
        stopping.restore()


def test_nothing_is_kept_or_restored_unless_asked():
    layer, stopping = nn.Linear(1, 1), EarlyStoppingCallback(patience=1, restore_best=False)
    stopping.update(0.5, layer)
    fill(layer, 2.0)
    assert stopping.update(0.6, layer)
    assert layer.bias.item() == 2.0
    assert stopping.state_dict()["best_weights"] is None
    with pytest.raises(RuntimeError, match="restore_best=False keeps none"):
        stopping.restore()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, math.nan]), min_size=1, max_size=12), st.data())
def test_a_resumed_stopping_is_an_uninterrupted_one(scores, data):
    cut = data.draw(st.integers(0, len(scores)))

    def run(layer, stopping, part):
        said = []
        for score in part:
            if not stopping.should_stop:
                fill(layer, score)
                said.append(stopping.update(score, layer))
        return said

    layer, whole = nn.Linear(1, 1), EarlyStoppingCallback(patience=3)
    fill(layer, 0.0)
    expected = run(layer, whole, scores)
    other, first = nn.Linear(1, 1), EarlyStoppingCallback(patience=3)
    fill(other, 0.0)
    said = run(other, first, scores[:cut])
    second = EarlyStoppingCallback(patience=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    said += run(other, second, scores[cut:])
    assert said == expected
    if whole.best_score is not None:
        whole.restore(layer)
        second.restore(other)
        assert other.bias.item() == layer.bias.item() == whole.best_score == second.best_score


def test_the_state_can_be_saved_with_a_run(tmp_path):
    stopping = EarlyStoppingCallback()
    stopping.update(0.5, nn.Linear(2, 2))
    save_file(tmp_path / "state.pt", "test", {"stopping": stopping.state_dict()})


def test_restoring_after_a_resume_asks_for_the_modules():
    first, second, layer = EarlyStoppingCallback(), EarlyStoppingCallback(), nn.Linear(1, 1)
    first.update(0.5, layer)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"modules must be the 1 whose weights were kept, got 0.*restore\(modules\)"):
        second.restore()
    second.restore(layer)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"patience": 0}, "patience must be an integer of 1 epoch or more, got 0"),
        ({"patience": 1.5}, "patience must be an integer of 1 epoch or more, got 1.5"),
        ({"min_delta": -0.1}, "min_delta must be a finite number of 0 or more, got -0.1"),
        ({"min_delta": math.nan}, "min_delta must be a finite number of 0 or more, got nan"),
        ({"mode": "less"}, "mode must be 'min' .* got 'less'"),
    ],
)
def test_impossible_stopping_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        EarlyStoppingCallback(**arguments)


def test_a_state_of_the_other_mode_is_refused():
    with pytest.raises(ValueError, match="saved with mode='max', it is resumed with mode='min'"):
        EarlyStoppingCallback().load_state_dict(EarlyStoppingCallback(mode="max").state_dict())


# Checkpoints.


class Number:
    """The smallest model: it learns one number."""

    def __init__(self, value=0.0):
        self.value = value

    def save(self, path):
        return save_file(path, "number", {"value": self.value})

    def load(self, path):
        self.value = float(torch.load(path, weights_only=True)["value"])
        return self


class MadeByLoading(Number):
    """A model whose `load` makes a new one."""

    @classmethod
    def load(cls, path):
        return cls(float(torch.load(path, weights_only=True)["value"]))


def files(folder):
    return sorted(path.name for path in folder.glob("*.pt"))


def save_all(checkpointer, scores):
    return [checkpointer.save(Number(score), score=score, metadata={}) for score in scores]


@pytest.mark.parametrize("model_class", [Number, MadeByLoading])
def test_the_best_model_is_restored_and_not_the_last(tmp_path, model_class):
    checkpointer = ModelCheckpointer(tmp_path)
    for score in (3.0, 1.0, 2.0):
        checkpointer.save(model_class(score), score=score, metadata={})
    model = model_class(99.0)
    assert checkpointer.restore_best(model) is model
    assert model.value == 1.0


def test_an_agent_is_restored_to_the_weights_it_was_saved_with(tmp_path):
    checkpointer = ModelCheckpointer(tmp_path, monitor="sharpe", mode="max")
    agents = [create_rl_agent("ddpg", 4, 1, seed=seed) for seed in range(3)]
    observation = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
    for agent, score in zip(agents, (0.5, 2.0, 1.0), strict=True):
        checkpointer.save(agent, score=score)
    restored = checkpointer.restore_best(create_rl_agent("ddpg", 4, 1, seed=7))
    assert isinstance(restored, DDPGAgent)
    expected = agents[1].select_action(observation, deterministic=True)
    np.testing.assert_array_equal(restored.select_action(observation, deterministic=True), expected)


def test_the_best_and_the_latest_are_kept(tmp_path):
    checkpointer = ModelCheckpointer(tmp_path, keep=2)
    paths = save_all(checkpointer, [5.0, 3.0, 4.0, 1.0, 9.0])
    assert checkpointer.best_path == paths[3]
    assert checkpointer.latest_path == paths[4]
    assert files(tmp_path) == [paths[number].name for number in (1, 3, 4)]


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan, math.inf]), min_size=1, max_size=7),
    st.integers(1, 3),
    st.sampled_from(["min", "max"]),
)
def test_the_kept_models_are_the_best_so_far(tmp_path_factory, scores, keep, mode):
    folder = tmp_path_factory.mktemp("run")
    checkpointer = ModelCheckpointer(folder, keep=keep, mode=mode)
    save_all(checkpointer, scores)
    sign = 1.0 if mode == "min" else -1.0
    worst = [sign * score if math.isfinite(score) else math.inf for score in scores]
    order = sorted(range(len(scores)), key=lambda number: (worst[number], number))
    assert {checkpoint.id - 1 for checkpoint in checkpointer.checkpoints} == {*order[:keep], len(scores) - 1}
    assert len(files(folder)) == len(checkpointer.checkpoints)
    if math.isfinite(worst[order[0]]):
        assert checkpointer.best.score == scores[order[0]]
    else:
        assert checkpointer.best_path is None


def test_numbers_are_never_given_twice_even_where_files_were_deleted(tmp_path):
    save_all(ModelCheckpointer(tmp_path, keep=1), [1.0, 2.0, 3.0])
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    checkpointer = ModelCheckpointer(tmp_path, keep=1)
    assert checkpointer.best_path is checkpointer.latest_path is None
    assert save_all(checkpointer, [4.0])[0].name == "model_000004.pt"


def test_models_whose_list_was_lost_are_neither_overwritten_nor_deleted(tmp_path):
    save_all(ModelCheckpointer(tmp_path), [1.0, 2.0])
    (tmp_path / "checkpoints.json").unlink()
    save_all(ModelCheckpointer(tmp_path, keep=1), [3.0])
    save_all(ModelCheckpointer(tmp_path, keep=1), [0.0])
    assert files(tmp_path) == ["model_000001.pt", "model_000002.pt", "model_000004.pt"]


def test_a_folder_can_be_moved(tmp_path):
    save_all(ModelCheckpointer(tmp_path / "here"), [2.0, 1.0])
    assert str(tmp_path) not in (tmp_path / "here" / "checkpoints.json").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    model = ModelCheckpointer(tmp_path / "there").restore_best(Number())
    assert model.value == 1.0


class Crash(BaseException):
    """Stands for the process being killed."""


@pytest.mark.parametrize("n_writes", [0, 1])
def test_a_crash_while_saving_loses_only_the_model_being_saved(tmp_path, monkeypatch, n_writes):
    checkpointer = ModelCheckpointer(tmp_path, keep=2)
    save_all(checkpointer, [2.0, 1.0])
    write, written = ModelCheckpointer._write, []

    def killed(self, *arguments):
        if len(written) == n_writes:
            raise Crash
        written.append(write(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(ModelCheckpointer, "_write", killed)
        with pytest.raises(Crash):
            save_all(checkpointer, [0.5])
    after = ModelCheckpointer(tmp_path, keep=2)
    assert after.restore_best(Number()).value == 1.0
    assert [checkpoint.score for checkpoint in after.checkpoints] == [2.0, 1.0]
    (path,) = save_all(after, [0.1])
    # The crash before the first write has given no number yet.
    assert path.name == ("model_000003.pt", "model_000004.pt")[n_writes]
    assert files(tmp_path) == ["model_000002.pt", path.name]


def test_a_crash_in_the_model_itself_leaves_the_list_as_it_was(tmp_path):
    class Broken(Number):
        def save(self, path):
            raise Crash

    checkpointer = ModelCheckpointer(tmp_path)
    save_all(checkpointer, [1.0])
    with pytest.raises(Crash):
        checkpointer.save(Broken(), score=0.0, metadata={})
    assert checkpointer.restore_best(Number()).value == 1.0
    assert save_all(checkpointer, [2.0])[0].name == "model_000003.pt"


def test_metadata_are_kept_as_json(tmp_path):
    checkpointer = ModelCheckpointer(tmp_path)
    metadata = {"epoch": np.int64(3), "losses": (0.5, math.nan), "train_end": "2020-01-31", "is_final": False}
    checkpointer.save(Number(), score=np.float64(1.5), metadata=metadata)
    (checkpoint,) = ModelCheckpointer(tmp_path).checkpoints
    assert checkpoint.metadata == {"epoch": 3, "losses": [0.5, None], "train_end": "2020-01-31", "is_final": False}
    assert checkpoint.score == 1.5


@pytest.mark.parametrize("metadata", [{"model": nn.Linear(1, 1)}, {"weights": torch.zeros(2)}, {3: "three"}])
def test_metadata_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path, metadata):
    with pytest.raises(TypeError, match="metadata"):
        ModelCheckpointer(tmp_path).save(Number(), score=1.0, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"next_id": 1},
        {"next_id": "2"},
        {"leftover": [1]},
        {"leftover": ["../1"]},
        {"format_version": 9},
        {"checkpoints": [{"id": 1}]},
        {"checkpoints": [{"id": 1, "file": "../model_000001.pt", "score": 1.0, "saved_at": "", "metadata": {}}]},
        {"checkpoints": [{"id": 1, "file": "model_000001.pt", "score": "low", "saved_at": "", "metadata": {}}]},
    ],
)
def test_a_damaged_list_is_refused(tmp_path, change):
    save_all(ModelCheckpointer(tmp_path), [1.0])
    path = tmp_path / "checkpoints.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"checkpoints\.json is not a list of checkpoints"):
        ModelCheckpointer(tmp_path)


def test_half_a_list_is_refused(tmp_path):
    save_all(ModelCheckpointer(tmp_path), [1.0])
    path = tmp_path / "checkpoints.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match="is not a list of checkpoints"):
        ModelCheckpointer(tmp_path)


def test_a_folder_ranked_by_another_score_is_refused(tmp_path):
    save_all(ModelCheckpointer(tmp_path), [1.0])
    with pytest.raises(
        ValueError, match=r"ranked by monitor='val_loss', mode='min'; got 'sharpe', 'max'.*another folder"
    ):
        ModelCheckpointer(tmp_path, monitor="sharpe", mode="max")


def test_a_model_that_writes_elsewhere_is_refused(tmp_path):
    class Astray(Number):
        def save(self, path):
            return super().save(f"{path}.elsewhere")

    with pytest.raises(RuntimeError, match="wrote no file there"):
        ModelCheckpointer(tmp_path).save(Astray(), score=1.0, metadata={})


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model with a score"):
        ModelCheckpointer(tmp_path / "run").restore_best(Number())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [({"keep": 0}, "keep must be an integer of 1 model or more, got 0"), ({"mode": "low"}, "mode must be 'min'")],
)
def test_impossible_checkpointers_are_refused(tmp_path, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        ModelCheckpointer(tmp_path, **arguments)
