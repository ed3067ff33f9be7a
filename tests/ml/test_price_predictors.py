"""Predictors by name and from any file: each comes back as what it was, and nothing hostile in a file ever runs."""

import copy
import os

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components import (
    EnsemblePricePredictor,
    LSTMEnsemble,
    LSTMPricePredictor,
    RidgePredictor,
    ZeroPredictor,
    create_predictor,
    create_rl_agent,
    list_available_predictors,
    load_predictor,
    load_rl_agent,
)
from ml.tradingbots.components.naive_predictors import NaiveConfig
from ml.tradingbots.components.price_predictors import CONFIG_CLASSES, PREDICTORS
from ml.tradingbots.components.serialization import CheckpointError, file_label, read_file
from ml.tradingbots.data.synthetic import autoregressive

torch.set_num_threads(1)
TINY = {"window_size": 4, "hidden_dim": 4, "max_epochs": 2, "batch_size": 64, "horizons": (1, 3)}
FRAME = pd.concat({f"A{i}": autoregressive(120, seed=i).prices for i in range(2)}, axis=1)


def small(name):
    """One predictor of each kind; the ensemble holds another one."""
    if name == "ensemble":
        members = [small("ridge"), small("lstm_ensemble"), EnsemblePricePredictor([small("drift"), small("zero")])]
        return EnsemblePricePredictor(members, "stacking")
    settings = {
        "lstm": TINY,
        "transformer": {**TINY, "asset_dim": 2},
        "cnn": {**TINY, "n_filters": (4,), "head": "point"},
        "lstm_ensemble": {**TINY, "n_members": 2},
    }
    return create_predictor(name, **settings.get(name, {"horizons": (1, 3)}))


@pytest.fixture(scope="module")
def fitted():
    return {name: small(name).fit(FRAME) for name in PREDICTORS}


@pytest.fixture(scope="module")
def files(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: predictor.save(folder / f"{name}.pt") for name, predictor in fitted.items()}


each = pytest.mark.parametrize("name", PREDICTORS)
# One of each layout that files have.
each_layout = pytest.mark.parametrize("name", ["transformer", "ridge", "ensemble"])


# By name.


def test_every_predictor_says_what_it_is():
    described = list_available_predictors()
    assert list(described) == list(PREDICTORS)
    assert set(described) == {
        "lstm", "transformer", "cnn", "lstm_ensemble", "ensemble", "zero", "drift", "last_sign", "ridge"
    }  # fmt: skip
    assert all(described.values())


def test_a_predictor_is_made_by_name_with_its_hyperparameters():
    made = create_predictor("lstm", window_size=7)
    assert type(made) is LSTMPricePredictor
    assert made.config.window_size == 7
    with pytest.raises(
        ValueError, match=r"unknown predictor 'lstn'\. Did you mean 'lstm'\? Available: lstm, transformer"
    ):
        create_predictor("lstn")
    with pytest.raises(ValueError, match="unknown hyperparameter 'widow_size'"):
        create_predictor("ridge", widow_size=7)


# From files.


@each
def test_a_file_of_any_kind_comes_back_to_the_bit(name, fitted, files):
    loaded = load_predictor(files[name])
    assert type(loaded) is type(fitted[name])
    assert loaded.predict_quantiles(FRAME).equals(fitted[name].predict_quantiles(FRAME))
    assert loaded.score(FRAME) == fitted[name].score(FRAME)
    assert repr(loaded.get_params(deep=False)) == repr(fitted[name].get_params(deep=False)) or name == "ensemble"


@each
def test_the_file_of_another_predictor_is_named_with_the_way_to_load_it(name, files):
    other = {"ridge": "cnn"}.get(name, "ridge")
    message = rf"{other}\.pt holds a '{other}' predictor, this is '{name}': load it with load_predictor\(path\)$"
    with pytest.raises(CheckpointError, match=message):
        PREDICTORS[name]().load(files[other])


def test_the_file_of_an_agent_is_named_with_the_way_to_load_it_and_the_other_way_round(files, tmp_path):
    agent = create_rl_agent("ppo", state_dim=4, action_dim=1)
    path = agent.save(tmp_path / "agent.pt")
    message = r"agent\.pt holds a 'ppo' agent, not a predictor: load it with load_rl_agent\(path\)$"
    for load in (load_predictor, LSTMPricePredictor().load, EnsemblePricePredictor().load, ZeroPredictor().load):
        with pytest.raises(CheckpointError, match=message):
            load(path)
    message = r"ridge\.pt holds a 'ridge' predictor, not an agent: load it with load_predictor\(path\)$"
    for load in (load_rl_agent, agent.load):
        with pytest.raises(CheckpointError, match=message):
            load(files["ridge"])


def test_the_checkpoint_of_a_fit_is_named_with_its_use(tmp_path):
    LSTMPricePredictor(**TINY).fit(FRAME, checkpoint=tmp_path / "fit.pt")
    with pytest.raises(CheckpointError, match=r"holds a 'predictor fit', not a predictor: give it to fit\("):
        load_predictor(tmp_path / "fit.pt")


class OwnConfig(NaiveConfig):
    """As a user may write one."""


class OwnPredictor(ZeroPredictor):
    predictor_type = "own"
    config_class = OwnConfig


def test_a_predictor_of_a_users_own_class_is_named_as_one(tmp_path):
    path = OwnPredictor().fit(FRAME).save(tmp_path / "own.pt")
    assert OwnPredictor().load(path).predict(FRAME).notna().all(axis=None)
    with pytest.raises(CheckpointError, match="holds a 'own' predictor, whose class is none of this library's"):
        load_predictor(path)
    with pytest.raises(CheckpointError, match="holds a 'own' predictor, this is 'ridge'"):
        RidgePredictor().load(path)


# Damaged and hostile files.


class Hostile:
    """Runs a command where it is unpickled carelessly."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class HostileByName(Hostile):
    """Poses as a class of ours."""

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.target)!r})",)


def content_of(path):
    return read_file(path, "predictor", allowed=CONFIG_CLASSES)


@each_layout
@pytest.mark.parametrize("kind", [Hostile, HostileByName])
@pytest.mark.parametrize("place", ["config", "assets", "extra", "kind", "predictor_type"])
def test_a_command_in_a_file_is_refused_and_does_not_run(name, kind, place, files, tmp_path):
    target, path = tmp_path / "it ran", tmp_path / "hostile.pt"
    torch.save({**content_of(files[name]), place: kind(target)}, path)
    for load in (load_predictor, PREDICTORS[name]().load):
        with pytest.raises(CheckpointError, match=r"hostile\.pt was refused: .* nothing in it was run"):
            load(path)
    assert file_label(path) == ("", "")
    assert not target.exists()
    torch.load(path, weights_only=False)  # Without care it would have run.
    assert target.exists()


def test_a_command_inside_a_members_file_is_refused_and_does_not_run(files, tmp_path):
    target, path = tmp_path / "it ran", tmp_path / "hostile.pt"
    torch.save({**content_of(files["ridge"]), "extra": Hostile(target)}, path)
    content = content_of(files["ensemble"])
    member = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    content["members"]["ridge"] = ("ridge", member)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"hostile\.pt does not fit .*: a member's file: it was refused"):
        load_predictor(path)
    assert not target.exists()


@each_layout
def test_a_file_cut_off_anywhere_is_refused(name, files, tmp_path):
    whole, path = files[name].read_bytes(), tmp_path / "cut.pt"
    for length in np.linspace(0, len(whole) - 1, 15, dtype=int):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            load_predictor(path)


@each_layout
def test_a_flipped_bit_is_refused(name, files, tmp_path):
    whole, path = files[name].read_bytes(), tmp_path / "flipped.pt"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert is_refused_or_valid(path), place


WRONG = {
    "text": "wrong",
    "nothing": None,
    "dictionary": {"wrong": 1},
    "NaN": float("nan"),
    "another shape": torch.full((2, 3, 4), torch.nan),
    "huge integer": 10**30,
    "unprintable integer": 10**5_000,
    "expanded tensor": torch.zeros(1).expand(10**12),
    "empty": (),
}


def is_refused_or_valid(path):
    """Whether the file is refused by its name, or what it holds is a predictor; no third thing happens."""
    try:
        predictor = load_predictor(path)
    except CheckpointError as error:
        return str(path) in str(error)
    try:
        found = predictor.predict(FRAME)
    except ValueError:  # Such as a window longer than the table.
        return True
    return bool(np.isfinite(found.to_numpy()).all())


def places_of(content):
    for key, value in content.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, inner) for inner in list(value)[:2])
    if "config" in content:
        yield from (("config", field) for field in vars(content["config"]))


@each
def test_a_wrong_or_missing_entry_is_refused_or_harmless_wherever_it_stands(name, files, tmp_path):
    content, path = content_of(files[name]), tmp_path / "wrong.pt"
    for place in places_of(content):
        for value in (*WRONG.values(), "missing"):
            changed = copy.deepcopy(content)
            target = changed if len(place) == 1 else changed[place[0]]
            target = target if isinstance(target, dict) else vars(target)
            if value == "missing":
                del target[place[-1]]
            else:
                target[place[-1]] = value
            torch.save(changed, path)
            assert is_refused_or_valid(path), (place, value)


@pytest.mark.parametrize("field", ["hidden_dim", "n_layers", "asset_dim"])
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_small_file_that_claims_a_huge_network_is_refused_before_it_is_made(name, field, files, tmp_path):
    content, path = content_of(files[name]), tmp_path / "huge.pt"
    vars(content["config"])[field] = 4_000_000
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"huge\.pt does not fit"):
        load_predictor(path)


def test_a_file_that_is_refused_leaves_the_predictor_as_it_was(fitted, files, tmp_path):
    content = content_of(files["ridge"])
    content["arrays"]["intercept_"] = torch.full((2,), torch.nan, dtype=torch.float64)
    torch.save(content, tmp_path / "nan.pt")
    predictor = small("ridge").load(files["ridge"])
    with pytest.raises(CheckpointError, match="NaN or inf"):
        predictor.load(tmp_path / "nan.pt")
    assert predictor.predict(FRAME).equals(fitted["ridge"].predict(FRAME))


def test_an_ensemble_of_lstms_without_members_is_refused(files, tmp_path):
    for name in ("lstm_ensemble", "ensemble"):
        torch.save({**content_of(files[name]), "members": {}}, tmp_path / "none.pt")
        with pytest.raises(CheckpointError, match="does not fit"):
            load_predictor(tmp_path / "none.pt")
    assert LSTMEnsemble().n_members == 3
