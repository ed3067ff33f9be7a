"""Our predictors beside neuralforecast's: do both do the same, and how fast. Part of `forecasting.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from forecasting_rivals import STOCK, WINDOW_SIZE, Network, Run, Task, Who, count_parameters, make_predictor, timed
from neuralforecast import NeuralForecast
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ml.tradingbots.components.base_predictor import BasePredictor
from ml.tradingbots.components.predictor_fitting import Samples

# float32: the same sums in another order.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5
FORECAST_TOLERANCE = 1e-4
FIT_BATCH = 256
# They take as many windows at once as they are told; their default, and one that suits a processor's cache.
INFERENCE_BATCHES = (256, 1_024)


def sizes(network: Network) -> str:
    """Say how large both networks are: parameters, and multiplications and additions of a window, forward and backward."""
    ours = make_predictor(network, FIT_BATCH)._new_network(1, 1)
    theirs = Task(network, "series", FIT_BATCH).make_theirs("stock", 1)
    windows = torch.zeros(8, WINDOW_SIZE, 1)
    batch = {"insample_y": windows, "futr_exog": None, "hist_exog": None, "stat_exog": None}
    # PyTorch does not count what happens in an LSTM; these two are the same.
    counts = (
        ["", ""]
        if network == "lstm"
        else [f", {_flops(n, x) / 8:,.0f} flop" for n, x in ((ours, windows), (theirs, batch))]
    )
    names = type(ours).__name__, STOCK[network][0].__name__
    described = [
        f"{name} {count_parameters(module):,} parameters{count}"
        for name, module, count in zip(names, (ours, theirs), counts, strict=True)
    ]
    return f"{network}: {described[0]}; {described[1]}"


def _flops(network: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        network(inputs).sum().backward()
    return int(counter.get_total_flops())


def check_loops(task: Task) -> None:
    """Give both loops the same weights; stop where windows, losses or gradients differ.

    Raises:
        SystemExit: they do not do the same, and nothing is compared.
    """
    for who in ("hosted", "stock") if task.network == "lstm" else ("hosted",):
        _check_loop(task, who)


def _check_loop(task: Task, who: Who) -> None:
    fitting, samples = task.begin(task.origins)
    body: Any = fitting.network.body
    model = task.make_theirs(who, 1, body=body)
    caught: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]["insample_y"].clone()))
    model.fit(task.dataset)
    rows = _find(caught[0], fitting.windows(samples.asset, samples.bar))
    loss = float(fitting._backward(_on_their_scale(task, samples), rows))
    their_loss = model.train_trajectories[0][1]
    if abs(loss - their_loss) > LOSS_TOLERANCE:
        raise SystemExit(f"{task.network}, {who}: losses differ, ours {loss}, theirs {their_loss}; nothing is compared")
    ours, theirs = (
        torch.cat([parameter.grad.ravel() for parameter in module.parameters() if parameter.grad is not None])
        for module in (fitting.network, model)
    )
    gap = float((ours - theirs).abs().max())
    if gap > GRADIENT_TOLERANCE:
        raise SystemExit(f"{task.network}, {who}: gradients differ by up to {gap}; nothing is compared")


def _find(windows: Tensor, among: Tensor) -> Tensor:
    """Return where windows are among others, equal to the last bit; raises SystemExit where one is not."""
    places = {row.tobytes(): number for number, row in enumerate(among.numpy())}
    found = [places.get(row.tobytes()) for row in windows.contiguous().numpy()]
    if None in found:
        raise SystemExit("a window of theirs is none of ours; nothing is compared")
    return torch.tensor(found)


def _on_their_scale(task: Task, samples: Samples) -> Samples:
    """Their target is the next value of what they read, ours is standardised by itself; bring ours to theirs."""
    predictor = task.predictor
    returns = samples.target.double() * predictor._target_std + predictor._target_mean
    target = (returns - predictor._mean_of_features) / predictor._std_of_features
    return Samples(samples.asset, samples.bar, target.float())


def compare_training(task: Task, n_steps: int, n_rounds: int) -> dict[str, Any]:
    """Time steps of all sides in turn.

    Returns:
        Of each side windows per CPU second; `ratios` of the others to ours, of CPU and wall seconds; and every run.
    """
    sides: dict[str, Callable[[], Run]] = {
        "ours": lambda: task.fit_ours(n_steps),
        "stock": lambda: task.fit_theirs("stock", n_steps),
        "hosted": lambda: task.fit_theirs("hosted", n_steps),
    }
    if task.table.bars.n_assets > 1:
        # Cheaper for them, and another thing: a step sees one series only.
        sides["stock, one series a step"] = lambda: task.fit_theirs("stock", n_steps, series_per_step=1)
    runs: dict[str, list[Run]] = {who: [] for who in sides}
    for _ in range(n_rounds):
        for who, side in sides.items():
            run = side()
            if (run.n_steps, run.n_windows) != (n_steps, n_steps * task.batch_size):
                raise SystemExit(f"{who} took {run.n_steps} steps on {run.n_windows} windows; nothing is compared")
            runs[who].append(run)
    parameters = {who: runs[who][0].n_parameters for who in runs}
    return {"batch_size": task.batch_size, "parameters": parameters, **_summary(runs)}


def compare_predicting(task: Task, n_rounds: int) -> dict[str, Any]:
    """Time forecasts at all origins, theirs as an array and ours as a table; same entries."""
    predictor = task.predictor
    predictor.network = task.begin(task.origins)[0].network.eval()
    body: Any = predictor.network.body
    models = {
        "stock": [task.make_theirs("stock", 1, inference_batch=batch) for batch in INFERENCE_BATCHES],
        "hosted": [task.make_theirs("hosted", 1, body=body, inference_batch=batch) for batch in INFERENCE_BATCHES],
    }
    _check_forecasts(task, predictor, task.predict_theirs(models["hosted"][0]))
    n_windows = len(task.origins) * task.table.bars.n_assets
    runs: dict[str, list[Run]] = {"ours": [], "stock": [], "hosted": []}
    for number in range(n_rounds + 1):
        found = {"ours": timed(lambda: predictor.predict(task.prices, bars=task.origins), n_windows)}
        for who, pair in models.items():
            tried = [timed(lambda model=model: task.predict_theirs(model), n_windows) for model in pair]  # type: ignore[misc]
            found[who] = min(tried, key=lambda run: run.cpu_seconds)
        if number:  # The first round warms up.
            for who, run in found.items():
                runs[who].append(run)
    return _summary(runs)


def _check_forecasts(task: Task, predictor: BasePredictor, theirs: Any) -> None:
    said = predictor.predict(task.prices, bars=task.origins).to_numpy()
    ours = (said - predictor._target_mean) / predictor._target_std
    gap = float(np.abs(ours - theirs).max())
    if gap > FORECAST_TOLERANCE:
        raise SystemExit(f"{task.network}: forecasts differ by up to {gap}; nothing is compared")


def compare_fits(task: Task, n_rounds: int) -> dict[str, Any]:
    """Time one epoch through both front doors, from a price table to a fitted predictor; same entries."""
    n_windows = len(task.origins) * task.table.bars.n_assets
    n_steps = -(-n_windows // task.batch_size)
    runs: dict[str, list[Run]] = {"ours": [], "stock": []}
    for _ in range(n_rounds):
        predictor = make_predictor(task.network, task.batch_size, max_epochs=1)
        runs["ours"].append(timed(lambda predictor=predictor: predictor.fit(task.prices), n_windows))  # type: ignore[misc]
        whole = NeuralForecast(models=[task.make_theirs("stock", n_steps)], freq=1)
        runs["stock"].append(timed(lambda whole=whole: whole.fit(task.frame), n_windows))  # type: ignore[misc]
    return _summary(runs)


def _summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Windows per CPU second of every side, and how many times as long as ours the others take."""
    clocks = ("cpu", "wall")
    speeds = {who: side[0].n_windows / statistics.median(run.cpu_seconds for run in side) for who, side in runs.items()}
    seconds = {who: statistics.median(run.wall_seconds for run in side) for who, side in runs.items()}
    ratios = {
        who: {clock: _ratio(runs["ours"], side, f"{clock}_seconds") for clock in clocks}
        for who, side in runs.items()
        if who != "ours"
    }
    return {"windows_per_cpu_second": speeds, "wall_seconds": seconds, "ratios": ratios, "runs": runs}


def _ratio(ours: list[Run], theirs: list[Run], clock: str) -> dict[str, float]:
    one, other = [getattr(run, clock) for run in ours], [getattr(run, clock) for run in theirs]
    pairs = [slow / fast for fast, slow in zip(one, other, strict=True)]
    return {"median": statistics.median(other) / statistics.median(one), "min": min(pairs), "max": max(pairs)}
