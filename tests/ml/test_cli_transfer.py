"""`tradingbots transfer` as people use it: the folder, the measures beside scratch, resuming, and mistakes in one line."""

import json

import pandas as pd
import pytest

from ml.tradingbots.components import load_rl_agent
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.training import rl_training
from tradingbots.__main__ import main

SMALL = ["--config.hidden-dim", "8", "--config.batch-size", "16", "--config.learning-starts", "50"]
SMALL += ["--env.window-size", "4", "--n-envs", "4", "--pretrain-timesteps", "200", "--timesteps", "200"]
SMALL += ["--n-evaluations", "2", "--no-progress"]
TRAIN_END = "2021-01-01"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two markets to pretrain on, one to go on in, and one of two assets."""
    folder = tmp_path_factory.mktemp("prices")
    for seed, (name, volatility) in enumerate({"a": 0.01, "b": 0.02, "target": 0.03}.items()):
        prices = autoregressive(320, phi=0.3, volatility=volatility, seed=seed).prices
        prices.index = pd.bdate_range("2020-01-01", periods=320)
        prices.to_csv(folder / f"{name}.csv", index_label="date")
    pd.DataFrame({"X": prices["close"], "Y": prices["close"] * 2.0}).to_parquet(folder / "two.parquet")
    return folder


def arguments(files, run_dir, *more, sources=("a", "b")):
    given = [word for name in sources for word in ("--source", str(files / f"{name}.csv"))]
    target = ["--target", str(files / "target.csv"), "--train-end", TRAIN_END, "--run-dir", str(run_dir)]
    return ["transfer", *given, *target, *(SMALL if sources else SMALL[6:]), *more]


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(files, folder)) == 0
    return folder


def refused(capsys, *words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_folder_holds_the_agents_the_curves_and_a_page(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "pretrained.pt", "agent.pt", "scratch.pt", "curves.csv", "report.html", "checkpoints"
    }  # fmt: skip
    curves = pd.read_csv(run / "curves.csv", index_col="timesteps")
    assert list(curves.index) == [0, 100, 200]
    assert list(curves.columns) == ["fine-tuned", "scratch"]
    page = (run / "report.html").read_text()
    for said in (
        "What it brought",
        "jump start",
        "timesteps to threshold",
        "Learning in the target market",
        "zero-shot",
    ):
        assert said in page
    assert "default-src 'none'" in page  # The browser itself fetches nothing.


def test_agents_know_until_when_they_have_seen_prices(run, capsys):
    for name in ("pretrained", "agent", "scratch"):
        spec = load_rl_agent(run / f"{name}.pt").environment_spec
        assert spec["seen_until"].startswith("2020-12-31"), name


@pytest.mark.parametrize(("own", "kept"), [("2021-02-10T00:00:00+00:00", "2021-02-10"), (None, None)])
def test_what_a_pretrained_agent_has_seen_is_never_forgotten(files, run, tmp_path, capsys, own, kept):
    before = load_rl_agent(run / "pretrained.pt")
    before.environment_spec = {**before.environment_spec, "seen_until": own}
    if own is None:
        del before.environment_spec["seen_until"]
    before.save(tmp_path / "before.pt")
    words = arguments(files, tmp_path / "on", "--pretrained", str(tmp_path / "before.pt"), sources=())
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "the test counts as in sample" in printed.err
    assert "unseen prices" not in printed.out
    seen = load_rl_agent(tmp_path / "on" / "agent.pt").environment_spec.get("seen_until")
    assert (seen if seen is None else seen[:10]) == kept
    assert load_rl_agent(tmp_path / "on" / "scratch.pt").environment_spec["seen_until"].startswith("2020-12-31")


def test_frozen_modules_are_the_pretrained_agents(run):
    tuned, before = (load_rl_agent(run / f"{name}.pt") for name in ("agent", "pretrained"))
    pairs = zip(tuned.actor.body.parameters(), before.actor.body.parameters(), strict=True)
    assert all(bool((one == other).all()) for one, other in pairs)
    assert not bool((tuned.actor.head.weight == before.actor.head.weight).all())


def test_the_measures_are_printed_beside_scratch_and_buy_and_hold(files, run, tmp_path, capsys):
    pretrained = ["--pretrained", str(run / "pretrained.pt")]
    assert main(arguments(files, tmp_path / "again", *pretrained, sources=())) == 0
    printed = capsys.readouterr().out
    for said in (
        "fine-tuned",
        "scratch",
        "jump start",
        "timesteps to threshold",
        "asymptote",
        "buy and hold",
        "zero-shot",
    ):
        assert said in printed.replace("_", " "), said
    # The same pretrained agent, the same seed: the same transfer.
    assert (tmp_path / "again" / "curves.csv").read_text() == (run / "curves.csv").read_text()


def test_an_interrupted_run_goes_on_to_the_same_end(files, run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "cut"
    whole, seen = rl_training._Run._after_step, []

    def interrupted(self, *given):
        whole(self, *given)
        seen.append(1)
        if len(seen) == 70:  # Vector steps of 8, then of 4: in the middle of fine-tuning.
            raise KeyboardInterrupt

    monkeypatch.setattr(rl_training._Run, "_after_step", interrupted)
    assert main(arguments(files, folder)) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments(files, folder, "--resume")) == 0
    assert (folder / "curves.csv").read_text() == (run / "curves.csv").read_text()


def test_what_a_source_did_from_the_test_on_changes_nothing(files, tmp_path):
    prices = pd.read_csv(files / "a.csv", index_col="date")
    for name in ("one", "other"):  # From one file: an agent knows how its markets are called.
        prices.to_csv(tmp_path / "source.csv")
        prices.loc[prices.index >= TRAIN_END] *= 3.0
        assert main(arguments(files, tmp_path / name, sources=(tmp_path / "source",))) == 0
    for file in ("pretrained.pt", "agent.pt", "scratch.pt", "curves.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_a_run_is_not_resumed_with_another_agent_in_the_same_file(files, run, tmp_path, capsys):
    file = tmp_path / "mine.pt"
    given = arguments(files, tmp_path / "run", "--pretrained", str(file), sources=())
    file.write_bytes((run / "pretrained.pt").read_bytes())
    assert main(given) == 0
    file.write_bytes((run / "scratch.pt").read_bytes())
    capsys.readouterr()
    assert "--pretrained.sha256 was" in refused(capsys, *given, "--resume")


def test_mistakes_are_one_line(files, run, tmp_path, capsys):
    target, new = files / "target.csv", tmp_path / "new"
    assert "one of them" in refused(capsys, "transfer", "--target", target, "--run-dir", new)
    both = ("--source", files / "a.csv", "--pretrained", run / "pretrained.pt")
    assert "one of them" in refused(capsys, "transfer", "--target", target, *both)
    file = ("--pretrained", run / "pretrained.pt", "--target", target)
    assert "the file says" in refused(capsys, "transfer", *file, "--agent", "ppo")
    assert "window_size 4 before, 6 here" in refused(
        capsys, "transfer", *file, "--env.window-size", 6, "--run-dir", new
    )
    two = ("--source", files / "a.csv", "--target", files / "two.parquet", "--run-dir", new)
    assert "number of assets" in refused(capsys, "transfer", *two)
    early = ("--source", files / "a.csv", "--target", target, "--run-dir", new, "--train-end", "2020-01-02")
    assert "before" in refused(capsys, "transfer", *early)
    assert "'body'" in refused(capsys, *arguments(files, new, "--freeze", "body"))
    assert "--timesteps must be at least 1" in refused(capsys, *arguments(files, new, "--timesteps", "0"))
    assert "already holds a run" in refused(capsys, *arguments(files, run))
    assert "--layer-decay" in refused(capsys, *arguments(files, run, "--layer-decay", "0.5", "--resume"))
    assert not new.exists()


def test_everything_is_kept_in_config_json(run):
    saved = json.loads((run / "config.json").read_text())
    assert saved["verb"] == "transfer"
    assert saved["arguments"]["freeze"] == ["encoder", "trunk"]


def test_help_explains_the_options(capsys):
    assert main(["transfer", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--source", "--pretrained", "--freeze", "--train-end"))
