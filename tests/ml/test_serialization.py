"""Agent files: they come back as they were, survive failures, and nothing hostile in them ever runs."""

import copy
import dataclasses
import io
import os
import pickle
import random
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import AGENTS, create_rl_agent, load_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.serialization import FORMAT_VERSION, CheckpointError, save_file, write_atomically
from ml.tradingbots.data.synthetic import autoregressive

ROOT = Path(__file__).parents[2]
CONFIG = SACConfig(hidden_dim=8, batch_size=8, learning_starts=8, buffer_size=100)
torch.set_num_threads(1)


def market():
    config = TradingEnvConfig(window_size=3, episode_length=10)
    return TradingEnvironment(autoregressive(60, seed=1).prices, config)


def trained_agent(seed=3):
    env = market()
    agent = create_rl_agent("sac", env.observation_space_dim, env.action_space_dim, CONFIG, seed=seed)
    agent.normalizer.fix(*env.vectorize(1).observation_statistics())
    return agent.train(env, 20)


MARKET = market()
TRAINED = trained_agent()
OTHER = trained_agent(seed=9)
CONTENT = {"format_version": FORMAT_VERSION, "kind": "agent", **TRAINED.state_dict()}


def observations(agent, n=5):
    return np.random.default_rng(0).normal(size=(n, agent.state_dim)).astype(np.float32)


def snapshot(agent):
    """Everything of an agent that a file could change, as bytes."""
    buffer = io.BytesIO()
    torch.save(agent.state_dict(), buffer)
    return buffer.getvalue()


def assert_same(found, expected, where="agent"):
    """Bit for bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    else:
        assert found == expected, where


def assert_refused(path, match=None):
    """Both ways of loading refuse the file by name, and the agent that tried is as it was."""
    agent, before = OTHER, snapshot(OTHER)
    with pytest.raises(CheckpointError, match=match) as raised:
        agent.load(path)
    assert str(path) in str(raised.value)
    assert snapshot(agent) == before
    with pytest.raises(CheckpointError) as raised:
        load_rl_agent(path)
    assert str(path) in str(raised.value)


def assert_refused_or_valid(path, env=MARKET):
    """The file is refused, or what it holds acts and learns; no third thing happens."""
    try:
        agent = load_rl_agent(path)
    except CheckpointError:
        return
    assert np.isfinite(agent.select_action(observations(agent))).all()
    agent.train(env, 10)


# --- What is saved comes back


ACT = """
import sys
import numpy as np
from ml.tradingbots.components import load_rl_agent
agent = load_rl_agent(sys.argv[1])
observations = np.load(sys.argv[2])
np.save(sys.argv[3], np.stack([agent.select_action(observations, deterministic=True), agent.select_action(observations)]))
"""


def test_a_saved_agent_acts_identically_in_a_fresh_process(tmp_path):
    agent = trained_agent()
    agent.save(tmp_path / "agent.pt")
    np.save(tmp_path / "observations.npy", observations(agent))
    arguments = [str(tmp_path / name) for name in ("agent.pt", "observations.npy", "actions.npy")]
    subprocess.run([sys.executable, "-c", ACT, *arguments], cwd=ROOT, check=True, timeout=120)
    deterministic, drawn = np.load(tmp_path / "actions.npy")
    assert np.array_equal(agent.select_action(observations(agent), deterministic=True), deterministic)
    assert np.array_equal(agent.select_action(observations(agent)), drawn)


def test_a_loaded_agent_is_the_saved_one_entry_by_entry(tmp_path):
    agent = trained_agent()
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    assert_same(loaded.state_dict(), agent.state_dict())


def test_a_loaded_agent_goes_on_learning_as_the_saved_one(tmp_path):
    agent = trained_agent()
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    loaded.replay = agent.replay = None
    assert_same(loaded.train(market(), 30).state_dict(), agent.train(market(), 30).state_dict())


def test_loading_into_an_agent_takes_over_the_config(tmp_path):
    path = trained_agent().save(tmp_path / "agent.pt")
    other = create_rl_agent("sac", TRAINED.state_dim, 1, SACConfig(hidden_dim=4, gamma=0.5))
    assert other.load(path) is other
    assert other.config == CONFIG


def test_the_config_dataclass_comes_back_from_plain_torch_load(tmp_path):
    path = trained_agent().save(tmp_path / "agent.pt")
    assert torch.load(path, weights_only=False)["config"] == CONFIG


def test_a_file_may_have_any_name_and_its_folders_are_made(tmp_path):
    path = trained_agent().save(tmp_path / "a" / "b" / "agent of mine")
    assert load_rl_agent(str(path)).config == CONFIG


def test_a_saved_file_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        path = trained_agent().save(tmp_path / "agent.pt")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_config_of_numpy_numbers_comes_back(tmp_path):
    config = SACConfig(hidden_dim=np.int64(8), learning_rate=np.float64(1e-3), gamma=np.float32(0.5))
    path = create_rl_agent("sac", 3, 1, config).save(tmp_path / "agent.pt")
    assert load_rl_agent(path).config == config


def test_an_environment_described_by_numpy_numbers_comes_back(tmp_path):
    prices = autoregressive(60, seed=1).prices
    env = TradingEnvironment(prices, TradingEnvConfig(window_size=3, commission=np.float64(0.002)))
    agent = create_rl_agent("sac", env.observation_space_dim, 1, CONFIG).train(env, 2)
    loaded = load_rl_agent(agent.save(tmp_path / "agent.pt"))
    assert loaded.environment_spec["config"]["commission"] == 0.002


def test_agents_can_be_loaded_by_many_threads_at_once(tmp_path):
    path, failures = trained_agent().save(tmp_path / "agent.pt"), []

    def load_often():
        for _ in range(25):
            try:
                load_rl_agent(path)
            except CheckpointError as error:
                failures.append(error)

    threads = [threading.Thread(target=load_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- Writing fails


class CannotBePickled:
    def __reduce__(self):
        raise pickle.PicklingError("no")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = trained_agent().save(tmp_path / "agent.pt")
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"content\['bad'\] is a CannotBePickled, which cannot be saved"):
        save_file(path, "agent", {"bad": CannotBePickled()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_debris(tmp_path):
    (tmp_path / "agent.pt").mkdir()
    with pytest.raises(OSError, match=r"agent\.pt"):
        write_atomically(tmp_path / "agent.pt", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = trained_agent().save(tmp_path / "agent.pt")
    before = path.read_bytes()
    # A limit on file sizes stands in for a full disk: the write fails half-way.
    script = (
        "import resource, signal, sys; from ml.tradingbots.components.serialization import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(sys.argv[1], bytes(100_000))\n"
        "except OSError: sys.exit(7)"
    )
    assert resource is not None
    finished = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, timeout=120, check=False)
    assert finished.returncode == 7
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"content\['extra'\]\[1\] is a ndarray"):
        save_file(tmp_path / "file.pt", "agent", {"extra": [1, np.zeros(3)]})
    assert not list(tmp_path.iterdir())


# --- Hostile files


class Hostile:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, sentinel):
        self.command = f"touch {sentinel}"

    def __reduce__(self):
        return os.system, (self.command,)


class HostileByEval(Hostile):
    def __reduce__(self):
        return eval, (f"__import__('os').system({self.command!r})",)


def with_pickle(path, replacement, content=CONTENT):
    """Rewrite an agent file with another data.pkl; the check sums of the archive are right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, replacement(data) if entry.filename.endswith("/data.pkl") else data)
    return path


def raw_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload))


def pickle_in_archive(path, payload):
    with_pickle(path, lambda _: pickle.dumps(payload, protocol=2))


def in_config_position(path, payload):
    torch.save(CONTENT | {"config": payload}, path)


def in_an_extra_entry(path, payload):
    torch.save(CONTENT | {"extra": payload}, path)


def legacy_format(path, payload):
    torch.save(CONTENT | {"extra": payload}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("payload", [Hostile, HostileByEval])
@pytest.mark.parametrize(
    "place",
    [raw_pickle, pickle_in_archive, in_config_position, in_an_extra_entry, legacy_format],
    ids=lambda f: f.__name__,
)
def test_a_command_in_a_file_is_refused_and_does_not_run(tmp_path, place, payload):
    path, sentinel = tmp_path / "agent.pt", tmp_path / "it ran".replace(" ", "_")
    place(path, payload(sentinel))
    assert_refused(path)
    assert not sentinel.exists()


def test_the_hostile_file_would_have_run_without_care(tmp_path):
    # Otherwise the test above would show nothing.
    path, sentinel = tmp_path / "agent.pt", tmp_path / "it_ran"
    in_config_position(path, Hostile(sentinel))
    torch.load(path, weights_only=False)
    assert sentinel.exists()


def test_files_of_the_old_torch_format_are_refused(tmp_path):
    path = tmp_path / "agent.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    assert_refused(path)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    path = tmp_path / "agent.pt"
    torch.save(CONTENT, path)
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    assert_refused(path, "compressed")


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "agent.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("version", "data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"agent/{name}", "3\n")
    assert_refused(path)


# --- Wrong contents


def walk(content, prefix=()):
    """Every place in a file, containers included."""
    for key, value in content.items():
        yield (*prefix, key)
        if prefix[-1:] == ("state",) and key != 0:
            continue  # The other parameters of an optimiser look the same.
        if isinstance(value, dict) and key != "environment":
            yield from walk(value, (*prefix, key))
        elif key == "param_groups":
            yield from walk(value[0], (*prefix, key, 0))


def replaced(place, value, content=CONTENT):
    """A deep copy of the content with another value at one place."""
    content = copy.deepcopy(content)
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return content


PLACES = list(walk(CONTENT))
CONFIG_FIELDS = [field.name for field in dataclasses.fields(SACConfig)]
WRONG = {
    "text": "wrong",
    "None": None,
    "dictionary": {"wrong": 1},
    "NaN": float("nan"),
    "tensor of another shape": torch.full((2, 3, 4), torch.nan),
    "huge integer": 10**30,
    "unprintable integer": 10**5_000,
    "expanded tensor": torch.zeros(1).expand(10**12),
    "meta tensor": torch.zeros(10**12, device="meta"),
    "sparse tensor": torch.zeros(3, 3).to_sparse(),
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_wrong_value_is_refused_wherever_it_stands(tmp_path, place):
    path = tmp_path / "agent.pt"
    for name, value in WRONG.items():
        if place == ("environment",) and name == "dictionary":
            continue  # What an environment says of itself is its own affair.
        if place[-1] in ("foreach", "fused", "auto_alpha") and name == "None":
            continue  # Possibly what was there.
        torch.save(replaced(place, value), path)
        with pytest.raises(CheckpointError, match=r"agent\.pt"):
            load_rl_agent(path)
    assert_refused(path)


# Without the settings of an optimiser that other versions of torch may not know, and the last entry of one that has not
# stepped yet.
NEEDED = [
    place
    for place in PLACES
    if (place[-2:-1] != (0,) or place[-3:-2] != ("param_groups",) or place[-1] in ("params", "lr"))
    and place != ("learned", "alpha_optimizer", "state", 0)
]


@pytest.mark.parametrize("place", NEEDED, ids=lambda place: ".".join(map(str, place)))
def test_a_missing_entry_is_refused_wherever_it_is_missing(tmp_path, place):
    content = replaced(place, None)
    target = content
    for key in place[:-1]:
        target = target[key]
    del target[place[-1]]
    path = tmp_path / "agent.pt"
    torch.save(content, path)
    assert_refused(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format_version",), FORMAT_VERSION + 1),
        (("format_version",), True),
        (("format_version",), 1.0),
        (("kind",), "predictor"),
        (("agent_type",), "ppo"),
        (("dimensions", "state_dim"), TRAINED.state_dim + 1),
        (("dimensions", "state_dim"), 10**9),
        (("dimensions", "action_dim"), 2),
        (("dimensions", "action_dim"), 0),
        (("reward_scale",), 0.0),
        (("reward_scale",), -1.0),
        (("reward_scale",), float("inf")),
        (("counters", "num_timesteps"), -1),
        (("counters", "num_updates"), 2**63),
        (("normalizer", "mode"), "sometimes"),
        (("normalizer", "statistics", "var"), torch.full((TRAINED.state_dim,), -1.0, dtype=torch.float64)),
        (("normalizer", "statistics", "mean"), torch.zeros(TRAINED.state_dim)),
        (("normalizer", "statistics", "count"), -1),
        (("action_bounds", "low"), torch.tensor([2.0])),
        (("action_bounds", "high"), torch.tensor([torch.inf])),
        (("generator",), torch.zeros(7, dtype=torch.uint8)),
        (("generator",), torch.full_like(CONTENT["generator"], 255)),
        (("learned", "log_alpha"), torch.tensor(torch.nan)),
        (("learned", "actor", "head.bias"), torch.full((2,), torch.nan)),
        (("learned", "actor", "head.bias"), torch.zeros(2, dtype=torch.float64)),
        (("learned", "actor_optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
        (("learned", "critic_optimizer", "state", 99), {}),
        (("learned", "critic_optimizer", "param_groups", 0, "lr"), 1.0),
        (("learned", "critic_optimizer", "param_groups", 0, "params"), [0]),
    ],
    ids=str,
)
def test_a_value_of_the_right_kind_that_makes_no_sense_is_refused(tmp_path, place, value):
    path = tmp_path / "agent.pt"
    torch.save(replaced(place, value), path)
    assert_refused(path)


def with_config_fields(changes):
    """The content with a config as a hostile file would make it: its constructor never called."""
    config = object.__new__(SACConfig)
    values = {name: getattr(CONFIG, name) for name in CONFIG_FIELDS} | changes
    config.__dict__.update({name: value for name, value in values.items() if value is not ...})
    return CONTENT | {"config": config}


@pytest.mark.parametrize("name", CONFIG_FIELDS)
def test_a_config_field_of_the_wrong_type_or_missing_is_refused(tmp_path, name):
    path = tmp_path / "agent.pt"
    for value in ("8", [8], {}, b"8", 8.5j, torch.tensor(8), ...):
        torch.save(with_config_fields({name: value}), path)
        with pytest.raises(CheckpointError, match="SACConfig"):
            load_rl_agent(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {0: 1},
        {("a", 1): 1, "b": 2},
        {"gamma": 1.5},
        {"gamma": float("nan")},
        {"gamma": 10**400},
        {"alpha": 10**400},
        {"tau": -1.0},
        {"learning_rate": 0.0},
        {"hidden_dim": 0},
        {"hidden_dim": -8},
        {"hidden_dim": True},
        {"hidden_dim": 8.0},
        {"hidden_dim": 16},
        {"hidden_dim": 10**6},
        {"hidden_dim": 10**5_000},
        {"n_layers": 3},
        {"n_layers": 10**9},
        {"auto_alpha": 1},
        {"auto_alpha": None},
        {"learning_starts": 101},
        {"target_entropy": float("nan")},
    ],
    ids=lambda changes: (
        str(list(changes.items()))[:40] if 10**5_000 not in changes.values() else "hidden_dim unprintable"
    ),
)
def test_a_config_that_its_own_checks_would_refuse_is_refused(tmp_path, changes):
    path = tmp_path / "agent.pt"
    torch.save(with_config_fields(changes), path)
    assert_refused(path)


@pytest.mark.parametrize(
    "config", [SACConfig, TradingEnvConfig(), CONFIG.__dict__], ids=["class", "other", "dictionary"]
)
def test_a_config_that_is_something_else_is_refused(tmp_path, config):
    path = tmp_path / "agent.pt"
    torch.save(CONTENT | {"config": config}, path)
    assert_refused(path)


SOMETHING_ELSE = [None, 3, "text", [CONTENT], torch.zeros(3), {}, {"kind": "agent"}]


@pytest.mark.parametrize("content", SOMETHING_ELSE, ids=lambda content: type(content).__name__)
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "agent.pt"
    torch.save(content, path)
    assert_refused(path, "no format_version")


def test_a_file_of_another_format_version_says_which_and_what_to_do(tmp_path):
    path = tmp_path / "agent.pt"
    torch.save(CONTENT | {"format_version": 7}, path)
    assert_refused(
        path, "format version 7, this library reads 2: load it with the version of the library that wrote it"
    )


def test_an_agent_of_other_dimensions_is_refused_by_the_agent_that_loads_it(tmp_path):
    path = create_rl_agent("sac", 4, 2, CONFIG).save(tmp_path / "agent.pt")
    agent = create_rl_agent("sac", 3, 2, CONFIG)
    before = snapshot(agent)
    with pytest.raises(CheckpointError, match=r"saved with \{'state_dim': 4, 'action_dim': 2\}"):
        agent.load(path)
    assert snapshot(agent) == before


# --- Damage


def saved_bytes():
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    return buffer.getvalue()


def test_a_truncated_file_is_refused_at_every_length(tmp_path):
    path, content = tmp_path / "agent.pt", saved_bytes()
    lengths = [0, 1, 2, 3, 4, 10, 100, *range(1_000, len(content), 997), *range(len(content) - 90, len(content), 3)]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"agent\.pt"):
            load_rl_agent(path)


def test_random_bytes_are_refused(tmp_path):
    generator = random.Random(5)
    path = tmp_path / "agent.pt"
    for length in (1, 4, 30, 500, 20_000):
        for beginning in (b"", b"PK\x03\x04", b"\x80\x02"):
            path.write_bytes(beginning + generator.randbytes(length))
            with pytest.raises(CheckpointError, match=r"agent\.pt"):
                load_rl_agent(path)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    generator, path, content = random.Random(6), tmp_path / "agent.pt", saved_bytes()
    for _ in range(100):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert_refused_or_valid(path)


def pickle_damage(seed):
    """A function that changes a few bytes, others at every call."""
    generator = random.Random(seed)

    def damage(data):
        # With check sums made right again, so that the restricted loader itself meets it.
        changed = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 8])):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        return bytes(changed)

    return damage


# torch's own words about what it finds, on its way to refusing it.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
def test_damage_inside_the_pickle_is_refused_or_harmless(tmp_path):
    path, damage = tmp_path / "agent.pt", pickle_damage(seed=7)
    for _ in range(200):
        with_pickle(path, damage)
        assert_refused_or_valid(path)


def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path, "is a folder")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*agent\.pt"):
        load_rl_agent(tmp_path / "agent.pt")


# --- The files of every other agent

OFF_POLICY = {"hidden_dim": 8, "batch_size": 4, "learning_starts": 8, "buffer_size": 100}
OTHERS = {
    "ppo": {"hidden_dim": 8, "n_steps": 3},
    "ppo that chooses": {"hidden_dim": 8, "n_steps": 3, "action_type": "discrete"},
    "a2c": {"hidden_dim": 8, "gsde": True},
    "a2c with rmsprop": {"hidden_dim": 8, "optimizer": "rmsprop"},
    "dqn": OFF_POLICY,
    "td3 with cnn": OFF_POLICY | {"network": "cnn"},
    "ddpg with lstm": OFF_POLICY | {"network": "lstm"},
}
each_other = pytest.mark.parametrize("name", OTHERS)


def other_market(name):
    kind = "discrete" if name in ("ppo that chooses", "dqn") else "continuous"
    return TradingEnvironment(
        autoregressive(60, seed=1).prices, TradingEnvConfig(window_size=3, episode_length=10, action_type=kind)
    )


def other_agent(name):
    env, agent_type = other_market(name), name.split()[0]
    config = AGENTS[agent_type].config_class(**OTHERS[name])
    return create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config).train(env, 20)


@pytest.fixture(scope="module")
def contents():
    """What the file of each of them holds."""
    header = {"format_version": FORMAT_VERSION, "kind": "agent"}
    return {name: header | other_agent(name).state_dict() for name in OTHERS}


KINDS_OF_WRONG = ["text", "None", "NaN", "tensor of another shape", "huge integer", "meta tensor", "missing"]


def spoiled(content, place, kind):
    """A copy of a file's content that is wrong at one place; None where it would be as good as before."""
    if kind != "missing":
        # An optimiser's settings may have been None.
        return None if kind == "None" and place[-1] in ("foreach", "fused") else replaced(place, WRONG[kind], content)
    if place[-3:-2] == ("param_groups",) and place[-1] not in ("params", "lr"):
        return None  # A setting that another version of torch may not know.
    damaged = replaced(place, None, content)
    target = damaged
    for key in place[:-1]:
        target = target[key]
    del target[place[-1]]
    return damaged


def check_spoiled(path, content, cases):
    for place, kind in cases:
        if (damaged := spoiled(content, place, kind)) is not None:
            torch.save(damaged, path)
            with pytest.raises(CheckpointError, match=r"agent\.pt"):
                load_rl_agent(path)


@each_other
def test_a_wrong_or_missing_value_is_refused_wherever_it_stands_in_any_file(tmp_path, contents, name):
    # One kind of wrong at each place, in turn.
    cases = [(place, KINDS_OF_WRONG[n % 7]) for n, place in enumerate(walk(contents[name]))]
    check_spoiled(tmp_path / "agent.pt", contents[name], cases)


@pytest.mark.slow
@each_other
def test_every_wrong_or_missing_value_is_refused_wherever_it_stands_in_any_file(tmp_path, contents, name):
    cases = [(place, kind) for place in walk(contents[name]) for kind in KINDS_OF_WRONG]
    check_spoiled(tmp_path / "agent.pt", contents[name], cases)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@each_other
def test_damage_inside_the_pickle_of_any_file_is_refused_or_harmless(tmp_path, contents, name):
    path, damage = tmp_path / "agent.pt", pickle_damage(seed=8)
    for _ in range(40):
        with_pickle(path, damage, contents[name])
        assert_refused_or_valid(path, other_market(name))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("dqn", ("n_branches",), 2),
        ("dqn", ("n_branches",), 0),
        ("dqn", ("n_branches",), -3),
        ("dqn", ("n_branches",), 10**9),
        ("ppo", ("learned", "return_statistics", "var"), torch.tensor(-1.0, dtype=torch.float64)),
        ("ppo", ("learned", "return_statistics", "count"), -1),
        ("ppo", ("learned", "network", "log_std"), torch.tensor([torch.nan])),
        ("ppo", ("counters", "schedule_timesteps"), -1),
        ("ppo", ("learned", "optimizer", "param_groups", 0, "lr"), 0.0),
        ("a2c", ("learned", "optimizer", "param_groups", 0, "alpha"), 0.5),
        ("a2c with rmsprop", ("learned", "optimizer", "param_groups", 0, "inside"), True),
        ("td3 with cnn", ("environment", "config", "window_size"), 4),
        ("td3 with cnn", ("environment", "config", "window_size"), 10**9),
        ("ddpg with lstm", ("environment", "assets"), ["a", "b"]),
        ("ddpg with lstm", ("environment", "config"), None),
        ("ddpg with lstm", ("environment",), {}),
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_for_an_agent_is_refused(tmp_path, contents, name, place, value):
    path = tmp_path / "agent.pt"
    torch.save(replaced(place, value, contents[name]), path)
    with pytest.raises(CheckpointError, match=r"agent\.pt"):
        load_rl_agent(path)


def test_the_file_of_an_agent_of_choices_does_not_become_one_of_numbers(tmp_path, contents):
    path = tmp_path / "agent.pt"
    config = dataclasses.replace(contents["ppo that chooses"]["config"], action_type="continuous")
    torch.save(contents["ppo that chooses"] | {"config": config}, path)
    with pytest.raises(CheckpointError, match=r"agent\.pt"):
        load_rl_agent(path)


def test_a_small_file_that_asks_for_convolutions_over_a_long_window_is_refused_before_they_are_made(tmp_path, contents):
    # The head of the convolutions reads a quarter of the window, 64 numbers each: here 3 million weights.
    window_size, hidden_dim = 10_000, 20
    content = copy.deepcopy(contents["td3 with cnn"])
    content["config"] = dataclasses.replace(content["config"], hidden_dim=hidden_dim, hidden_dims=(1,))
    content["environment"]["config"]["window_size"] = window_size
    n_features, n_account = 1, content["dimensions"]["state_dim"] - 3
    state_dim = content["dimensions"]["state_dim"] = window_size * n_features + n_account
    statistics = content["normalizer"]["statistics"]
    statistics["mean"], statistics["var"] = (torch.zeros(state_dim, dtype=torch.float64) for _ in range(2))
    content["learned"]["actor"]["padding"] = torch.zeros(5_000)
    path = tmp_path / "agent.pt"
    torch.save(content, path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="larger than those in the file"):
        load_rl_agent(path)
