"""The verbs for predictors as people and scripts use them: fit, forecast, walk-forward, and every mistake in one line."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components import load_predictor
from ml.tradingbots.data import Bars, load_prices
from tradingbots.__main__ import main
from tradingbots.predictor_flags import EnsembleFlags, make_predictor

N_BARS = 420
SMALL = ["--config.window-size", "8", "--config.max-epochs", "2", "--config.batch-size", "64"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one.csv (one asset) and three.parquet (three)."""
    folder = tmp_path_factory.mktemp("prices")
    dates = pd.bdate_range("2020-01-01", periods=N_BARS)
    steps = np.random.default_rng(0).normal(0.0005, 0.01, (N_BARS, 3))
    closes = pd.DataFrame(100.0 * np.exp(steps.cumsum(axis=0)), index=dates, columns=["AAPL", "MSFT", "XOM"])
    closes[["AAPL"]].rename(columns={"AAPL": "close"}).to_csv(folder / "one.csv", index_label="date")
    closes.to_parquet(folder / "three.parquet")
    return folder


@pytest.fixture(scope="module")
def fitted(files, tmp_path_factory):
    """The folder of a small fit on three assets with two horizons."""
    run_dir = tmp_path_factory.mktemp("runs") / "lstm"
    flags = ["--config.horizons", "1", "5", "--run-dir", str(run_dir), *SMALL]
    assert main(["fit", "--prices", str(files / "three.parquet"), *flags]) == 0
    return run_dir


def refused(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err + printed.out
    return printed.err


@pytest.mark.parametrize("verb", ["fit", "forecast", "walk-forward"])
def test_every_verb_explains_its_options(verb, capsys):
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"usage: tradingbots {verb}" in printed.out
    assert printed.err == ""


def test_walk_forward_explains_its_options_for_agents(capsys):
    assert main(["walk-forward", "--agent", "sac", "--help"]) == 0
    assert "--n-seeds" in capsys.readouterr().out


# fit


def test_a_fit_leaves_what_its_help_promises(fitted):
    names = {path.name for path in fitted.iterdir()}
    assert names == {"config.json", "predictor.pt", "history.csv", "report.html", "checkpoints"}
    settings = json.loads((fitted / "config.json").read_text())
    assert settings["arguments"]["config"]["horizons"] == [1, 5]
    assert len(pd.read_csv(fitted / "history.csv")) == 2


def test_no_label_of_training_reaches_the_test(fitted, files):
    prices = Bars.from_frame(load_prices(str(files / "three.parquet")))
    first_test = int(N_BARS * 0.8)
    saved = load_predictor(fitted / "predictor.pt")
    fresh = type(saved)(saved.config).fit(prices.slice(0, first_test), bars=np.arange(first_test - 5))
    pd.testing.assert_frame_equal(saved.predict(prices), fresh.predict(prices), check_exact=True)


def test_an_interrupted_fit_goes_on_to_the_same_predictor(fitted, files, tmp_path, capsys):
    flags = ["fit", "--prices", str(files / "three.parquet"), "--run-dir", str(tmp_path / "run"), *SMALL]
    assert main([*flags, "--config.horizons", "1", "5"]) == 0
    (tmp_path / "run" / "predictor.pt").unlink()
    assert main([*flags, "--config.horizons", "1", "5", "--resume"]) == 0
    prices = load_prices(str(files / "three.parquet"))
    again, first = (load_predictor(folder / "predictor.pt") for folder in (tmp_path / "run", fitted))
    pd.testing.assert_frame_equal(again.predict(prices), first.predict(prices), check_exact=True)
    assert "--config.horizons was [1, 5], now [1]" in refused(capsys, *flags, "--config.horizons", "1", "--resume")


def test_a_run_is_not_overwritten_unasked(fitted, files, capsys):
    line = refused(capsys, "fit", "--prices", files / "three.parquet", "--run-dir", fitted, *SMALL)
    assert "already holds a run" in line
    assert "--overwrite" in line


def test_the_printed_table_has_the_naive_forecasts_and_a_verdict(files, tmp_path, capsys):
    main(["fit", "--prices", str(files / "one.csv"), "--run-dir", str(tmp_path / "run"), *SMALL])
    text = capsys.readouterr().out
    assert all(f"{name} (naive)" in text for name in ("zero", "drift", "last_sign", "ridge"))
    assert f"Predictor   {tmp_path / 'run' / 'predictor.pt'}" in text
    assert "tradingbots forecast" in text


def test_without_a_test_all_bars_are_learned_from_and_nothing_is_claimed(files, tmp_path, capsys):
    run_dir = tmp_path / "run"
    main(["fit", "--prices", str(files / "one.csv"), "--no-test", "--run-dir", str(run_dir), *SMALL])
    assert "Out of sample" not in capsys.readouterr().out
    assert not (run_dir / "report.html").exists()
    prices = load_prices(str(files / "one.csv"))
    saved = load_predictor(run_dir / "predictor.pt")
    fresh = type(saved)(saved.config).fit(prices)
    pd.testing.assert_frame_equal(saved.predict(prices), fresh.predict(prices), check_exact=True)


@pytest.mark.parametrize("predictor", ["cnn", "transformer", "ensemble", "lstm_ensemble", "ridge", "zero"])
def test_every_kind_of_predictor_can_be_fitted_and_asked(predictor, files, tmp_path, capsys):
    small = ["--config.max-epochs", "1", "--config.window-size", "8"]
    flags = {"zero": [], "ridge": small[2:], "ensemble": [*small, "--config.members", "lstm", "cnn"]}
    run_dir = tmp_path / "run"
    arguments = ["fit", "--prices", str(files / "one.csv"), "--predictor", predictor, "--run-dir", str(run_dir)]
    assert main([*arguments, *flags.get(predictor, small)]) == 0
    assert main(["forecast", str(run_dir / "predictor.pt"), "--prices", str(files / "one.csv")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predictor", "lstn"], "lstm"),
        (["--test-start", "1999-01-01"], "within the prices"),
        (["--no-test", "--test-start", "2021-01-01"], "--no-test"),
        (["--config.head", "normal"], "head"),
        (["--config.window-size", "5000"], "bars"),
        (["--config.features", "rsii"], "rsi"),
        (["--resume"], "--run-dir"),
        (["--predictor", "ensemble", "--config.members", "ensemble"], "member of itself"),
        (["--predictor", "ensemble", "--config.members", "foo"], "unknown member 'foo'"),
        (["--predictor", "cnn", "--config.learning-rate", "1e30", *SMALL], "Lower learning_rate"),
        (["--cost-rate", "7", *SMALL], "cost_rate"),
    ],
)
def test_mistakes_of_a_fit_are_explained_in_one_line(flags, message, files, tmp_path, capsys):
    flags = flags if "--resume" in flags else [*flags, "--run-dir", str(tmp_path / "run")]
    assert message in refused(capsys, "fit", "--prices", files / "one.csv", *flags)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_same_run_is_resumed_and_another_is_left_as_it_was(fitted, files, capsys):
    before = contents(fitted)
    prices = ["--prices", files / "three.parquet", "--run-dir", fitted, "--resume"]
    flags = [*SMALL, "--config.horizons", "1", "5"]
    assert "--predictor was 'lstm', now 'ridge'" in refused(capsys, "fit", *prices, "--predictor", "ridge")
    assert "--test was True, now False" in refused(capsys, "fit", *prices, *flags, "--no-test")
    assert "`tradingbots fit`" in refused(capsys, "walk-forward", *prices, *flags)
    assert "leave one of them out" in refused(capsys, "fit", *prices, *flags, "--overwrite")
    assert contents(fitted) == before


def test_a_refused_fit_leaves_its_folder_as_it_found_it(fitted, files, tmp_path, capsys):
    refused(capsys, "fit", "--prices", files / "one.csv", "--run-dir", tmp_path / "new", "--config.features", "foo")
    assert not (tmp_path / "new").exists()
    settings = (fitted / "config.json").read_bytes()
    again = ["--prices", files / "one.csv", "--run-dir", fitted, "--overwrite", "--config.features", "foo"]
    refused(capsys, "fit", *again)
    assert (fitted / "config.json").read_bytes() == settings


def test_replacing_a_run_deletes_checkpoints_alone_and_only_those_of_a_run(files, tmp_path):
    flags = [
        "fit",
        "--prices",
        str(files / "one.csv"),
        "--predictor",
        "zero",
        "--run-dir",
        str(tmp_path),
        "--overwrite",
    ]
    notes, model = tmp_path / "checkpoints" / "notes.txt", tmp_path / "checkpoints" / "mine.pt"
    model.parent.mkdir()
    notes.write_text("mine")
    model.write_bytes(b"mine")
    assert main(flags) == 0  # No run was there: the folder of that name is somebody's own.
    assert model.read_bytes() == b"mine"
    assert main(flags) == 0
    assert not model.exists()
    assert notes.read_text() == "mine"


def test_a_fit_of_an_ensemble_of_ensembles_can_be_replaced_and_shows_its_weights(files, tmp_path, capsys):
    flags = ["fit", "--prices", str(files / "one.csv"), "--predictor", "ensemble", "--run-dir", str(tmp_path / "run")]
    flags += ["--config.members", "lstm_ensemble", "ridge", "--config.method", "simple", *SMALL]
    assert main(flags) == 0
    assert "Weights of the members" in capsys.readouterr().out
    assert main([*flags, "--overwrite"]) == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["predictor"].nunique() == 3


def test_a_ridge_that_is_named_sees_the_window_that_was_asked_for():
    config = EnsembleFlags(window_size=32, volatility_bars=20)
    assert make_predictor("ridge", config).get_params()["window_size"] == 32
    assert make_predictor("ridge", EnsembleFlags()).get_params()["window_size"] == EnsembleFlags().window_size


def test_a_target_among_the_features_is_pointed_out(files, tmp_path, capsys):
    closes = pd.read_csv(files / "one.csv", index_col="date", parse_dates=True)
    leak = closes.assign(x=np.log(closes["close"]).diff().shift(-1)).iloc[1:-1]
    leak.to_csv(tmp_path / "leak.csv", index_label="date")
    flags = ["--predictor", "ridge", "--config.features", "log_return", "x", "--run-dir", str(tmp_path / "run")]
    assert main(["fit", "--prices", str(tmp_path / "leak.csv"), *flags]) == 0
    assert "note: " in (said := capsys.readouterr().err)
    assert "'x'" in said


# forecast


def test_the_forecast_is_the_predictors_own_at_the_last_bar(fitted, files, capsys):
    capsys.readouterr()
    prices = str(files / "three.parquet")
    assert main(["forecast", str(fitted / "predictor.pt"), "--prices", prices, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["forecasts"]
    predictor, table = load_predictor(fitted / "predictor.pt"), load_prices(prices)
    mean = predictor.predict(table, bars=[N_BARS - 1])
    bounds = predictor.predict_quantiles(table, (0.05, 0.95), bars=[N_BARS - 1])
    price = predictor.predict_price(table, bars=[N_BARS - 1])
    assert len(rows) == 6
    for row in rows:
        place = (row["asset"], row["horizon"])
        assert row["expected_log_return"] == mean[place].iloc[0]
        assert row["quantile_0.05"] == bounds[(*place, 0.05)].iloc[0]
        assert row["expected_price"] == pytest.approx(price[place].iloc[0], rel=1e-12)


def test_a_forecast_at_a_date_is_the_one_that_was_made_then(fitted, files, tmp_path, capsys):
    prices = files / "three.parquet"
    early = tmp_path / "early.parquet"
    pd.read_parquet(prices).iloc[:400].to_parquet(early)
    date = pd.read_parquet(prices).index[399].date()
    capsys.readouterr()
    main(["forecast", str(fitted / "predictor.pt"), "--prices", str(prices), "--at", str(date), "--json"])
    then = json.loads(capsys.readouterr().out)["forecasts"]
    main(["forecast", str(fitted / "predictor.pt"), "--prices", str(early), "--json"])
    assert json.loads(capsys.readouterr().out)["forecasts"] == then


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_forecasts_at_many_bars_are_written_to_a_file(suffix, fitted, files, tmp_path):
    output = tmp_path / f"forecasts{suffix}"
    flags = ["--prices", str(files / "three.parquet"), "--start", "2021-06-01", "--output", str(output)]
    assert main(["forecast", str(fitted / "predictor.pt"), *flags]) == 0
    table = pd.read_csv(output, parse_dates=["timestamp"]) if suffix == ".csv" else pd.read_parquet(output)
    predicted = load_predictor(fitted / "predictor.pt").predict(load_prices(str(files / "three.parquet")))
    wide = table.pivot(index="timestamp", columns=["asset", "horizon"], values="expected_log_return")
    expected = predicted[predicted.index >= "2021-06-01"]
    np.testing.assert_allclose(wide[expected.columns], expected, rtol=1e-12)


def test_a_forecast_is_drawn(fitted, files, tmp_path):
    report = tmp_path / "fan.html"
    flags = ["--prices", str(files / "three.parquet"), "--report", str(report)]
    assert main(["forecast", str(fitted / "predictor.pt"), *flags]) == 0
    assert "<html" in report.read_text()


def test_mistakes_of_a_forecast_are_explained_in_one_line(fitted, files, tmp_path, capsys):
    prices = files / "three.parquet"
    assert "predictor.pt" in refused(capsys, "forecast", fitted, "--prices", prices)
    assert "nowhere.pt" in refused(capsys, "forecast", tmp_path / "nowhere.pt", "--prices", prices)
    file = fitted / "predictor.pt"
    assert "--output" in refused(capsys, "forecast", file, "--prices", prices, "--start", "2021-01-01")
    assert ".csv" in refused(capsys, "forecast", file, "--prices", prices, "--output", tmp_path / "a.xlsx")
    assert "prices run from" in refused(capsys, "forecast", file, "--prices", prices, "--at", "1999-01-01")
    assert "quantiles" in refused(capsys, "forecast", file, "--prices", prices, "--quantiles", "0.5", "1.5")
    refused(capsys, "forecast", prices, "--prices", prices)
    hostile = tmp_path / "hostile.pt"
    torch.save({"anything": 1}, hostile)
    refused(capsys, "forecast", hostile, "--prices", prices)


def test_a_forecast_never_takes_the_place_of_what_it_was_made_of(fitted, files, tmp_path, capsys):
    prices = tmp_path / "prices.csv"
    prices.write_bytes((files / "one.csv").read_bytes())
    predictor = fitted / "predictor.pt"
    assert "would be lost" in refused(capsys, "forecast", predictor, "--prices", prices, "--output", prices)
    assert ".html" in refused(capsys, "forecast", predictor, "--prices", prices, "--report", predictor)
    assert prices.read_bytes() == (files / "one.csv").read_bytes()


def test_forecasts_of_bars_that_were_learned_from_are_said_to_be_so(fitted, files, tmp_path, capsys):
    flags = ["--prices", str(files / "three.parquet"), "--output", str(tmp_path / "f.csv"), "--start"]
    main(["forecast", str(fitted / "predictor.pt"), *flags, "2020-06-01"])
    assert "learned from" in capsys.readouterr().err
    main(["forecast", str(fitted / "predictor.pt"), *flags, "2021-08-01"])
    assert "learned from" not in capsys.readouterr().err


def test_a_quantile_head_is_asked_for_what_it_learned_alone(files, tmp_path):
    run_dir = tmp_path / "run"
    head = ["--config.head", "quantile", "--config.quantiles", "0.1", "0.5", "0.9", "--run-dir", str(run_dir), *SMALL]
    assert main(["fit", "--prices", str(files / "one.csv"), *head]) == 0
    asked = ["forecast", str(run_dir / "predictor.pt"), "--prices", str(files / "one.csv")]
    assert main([*asked, "--report", str(tmp_path / "fan.html")]) == 0


# walk-forward


def test_a_walk_forward_leaves_tables_forecasts_and_a_report_and_can_be_resumed(files, tmp_path, capsys):
    run_dir = tmp_path / "run"
    arguments = ["walk-forward", "--prices", str(files / "one.csv"), "--run-dir", str(run_dir), *SMALL]
    arguments += ["--predictors", "cnn", "ensemble", "--config.members", "lstm", "cnn", "--folds.n-splits", "2"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "fold 2/2  cnn: 2 epochs" in text
    assert "ensemble" in text
    assert "ridge (naive)" in text
    scores = pd.read_csv(run_dir / "scores.csv", index_col=["model", "horizon"])
    assert set(scores.index.get_level_values("model")) == {"cnn", "ensemble", "zero", "drift", "last_sign", "ridge"}
    forecasts = pd.read_parquet(run_dir / "forecasts.parquet")
    assert set(forecasts.columns) == {
        "fold", "timestamp", "model", "asset", "horizon", "expected_log_return", "outcome"
    }  # fmt: skip
    assert (run_dir / "report.html").is_file()
    first = (run_dir / "scores.csv").read_bytes()
    assert main([*arguments, "--resume"]) == 0
    assert (run_dir / "scores.csv").read_bytes() == first


def test_agents_walk_forward_too(files, tmp_path, capsys):
    run_dir = tmp_path / "run"
    arguments = ["walk-forward", "--agent", "a2c", "--prices", str(files / "one.csv"), "--run-dir", str(run_dir)]
    arguments += ["--folds.n-splits", "2", "--n-seeds", "2", "--training.total-timesteps", "400"]
    arguments += ["--config.hidden-dim", "8", "--env.window-size", "4", "--training.n-envs", "4"]
    assert main(arguments) == 0
    assert "distinguishable from zero" in capsys.readouterr().out
    assert {"runs.csv", "per_fold.csv", "equity.csv", "report.html"} <= {path.name for path in run_dir.iterdir()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predictors", "cnnn"], "cnn"),
        (["--predictors", "cnn", "cnn"], "once"),
        (["--folds.train-size", "x", "--folds.test-size", "10"], "train_size"),
        (["--folds.n-splits", "600"], "bars"),
        (["--agent", "sacc"], "sac"),
        (["--predictors", "lstm", "ensemble", "--config.members", "foo"], "unknown member 'foo'"),
        (["--confidence", "2", *SMALL], "confidence"),
    ],
)
def test_mistakes_of_a_walk_forward_are_explained_in_one_line(flags, message, files, tmp_path, capsys):
    assert message in refused(
        capsys, "walk-forward", "--prices", files / "one.csv", "--run-dir", tmp_path / "r", *flags
    )


def test_an_interrupted_walk_forward_of_agents_goes_on_to_the_same_tables(files, tmp_path, capsys, monkeypatch):
    arguments = ["walk-forward", "--agent", "a2c", "--prices", str(files / "one.csv"), "--n-seeds", "2"]
    arguments += ["--folds.n-splits", "2", "--training.total-timesteps", "200", "--training.n-envs", "4"]
    arguments += ["--config.hidden-dim", "8", "--env.window-size", "4"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*arguments, "--run-dir", str(whole)]) == 0
    done = []

    def press_ctrl_c(report):
        done.append(report)
        if len(done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tradingbots.walk_forward_agents._say", press_ctrl_c)
        capsys.readouterr()
        assert main([*arguments, "--run-dir", str(cut)]) == 130
    said = capsys.readouterr().err
    assert "interrupted; go on with: tradingbots walk-forward" in said
    command = shlex.split(said.partition("go on with: tradingbots ")[2])
    assert command[-1] == "--resume"
    written = (cut / "config.json").read_bytes()
    line = refused(capsys, *command, "--config.hidden-dim", "16", "--training.n-envs", "2")
    assert "--config.hidden-dim was 8, now 16" in line
    assert "--training.n-envs was 4, now 2" in line
    assert "--end was None" in refused(capsys, *command, "--end", "2021-01-01")
    assert (cut / "config.json").read_bytes() == written
    assert main([*command, "--training.no-progress"]) == 0
    for name in ("runs.csv", "per_fold.csv", "equity.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert "nothing to resume" in refused(capsys, *arguments, "--run-dir", tmp_path / "none", "--resume")
    assert not (tmp_path / "none").exists()
    assert "--run-dir" in refused(capsys, *arguments, "--resume")
