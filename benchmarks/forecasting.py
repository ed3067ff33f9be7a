"""Our predictors beside neuralforecast's: windows per second in fits and in forecasts, whole fits, and peak memory.

    make bench-forecasting                                     # in an environment of its own; all parts, some ten minutes
    python benchmarks/forecasting.py --parts training --networks lstm --batch-sizes 256
    python benchmarks/forecasting.py --resume                  # goes on where a saved run was interrupted

Ratios are theirs over ours, from rounds that alternate in one process: above 1 we are faster. `stock` is their own model
of the kind, `hosted` our network in their loop (`forecasting_rivals.py`). Before anything is timed both loops are given the
same weights, and must find the same windows, loss and gradients. The parts are in `forecasting_speed.py` and
`forecasting_memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import tyro
from forecasting_memory import Options as MemoryOptions
from forecasting_memory import measure_in_a_process
from forecasting_rivals import STOCK, WINDOW_SIZE, DataName, Network, Task, make_predictor, silence
from forecasting_speed import FIT_BATCH, check_loops, compare_fits, compare_predicting, compare_training, sizes
from records import Records, conditions

Part = Literal["training", "predicting", "fit", "memory"]
PACKAGES = ("torch", "numpy", "pandas", "neuralforecast", "pytorch-lightning")
# Steps of a timed run, a second or so of theirs; steps times batch is a multiple of the panel's 20 assets.
STEPS = {32: 120, 256: 30, 1_024: 10}
SIDES = ("ours", "stock", "hosted")
MEGABYTE = 1e6


@dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = get_args(Part)
    """training: steps of fits. predicting: forecasts at all bars. fit: one epoch, all in. memory: peaks of fits."""
    networks: tuple[Network, ...] = get_args(Network)
    """Which of them."""
    data: tuple[DataName, ...] = get_args(DataName)
    """series: one of 20,000 bars. panel: 20 of 2,500."""
    batch_sizes: tuple[Literal[32, 256, 1024], ...] = (32, 256, 1024)
    """Windows per gradient step, of training and memory."""
    rounds: int = 5
    """Of training and predicting."""
    fits: int = 2
    """Whole fits of each side."""
    threads: int = 1
    """torch threads of both."""
    save: bool = False
    """Whether to write benchmarks/results/forecasting.json; what was not measured stays as it was."""
    resume: bool = False
    """Whether what was saved under the very same conditions counts as done; what is measured is saved, too."""


def main(options: Options) -> None:
    """Check, measure and print, part by part."""
    torch.set_num_threads(options.threads)
    silence()
    records = Records("forecasting", save=options.save, resume=options.resume)
    for network in options.networks:
        print(sizes(network))
        for data in options.data:
            check_loops(Task(network, data, FIT_BATCH))
    print("Both loops find the same windows, and losses and gradients within 1e-5, at the same weights.", flush=True)
    measure = {"training": training, "predicting": predicting, "fit": whole_fits, "memory": memory}
    for part in options.parts:
        measure[part](options, records)


def training(options: Options, records: Records) -> None:
    """Print the table of the loops."""
    print(
        f"\nSteps of fits, {options.threads} thread(s), {options.rounds} rounds: windows per CPU second; theirs over ours"
    )
    print(_head("batch      "))
    for network, data, batch_size in _cases(options):
        settings = {"steps": STEPS[batch_size], "rounds": options.rounds}
        row = _kept(
            records,
            f"training {network}, {data}, batch {batch_size}, {options.threads} thread(s)",
            _under(network, batch_size, settings),
            lambda: compare_training(Task(network, data, batch_size), STEPS[batch_size], options.rounds),  # noqa: B023
        )
        alone = row["ratios"].get("stock, one series a step")
        note = f"   {alone['cpu']['median']:.2f} if a step sees one series" if alone else ""
        print(_line(f"{network:12} {data:6} {batch_size:6d}", row) + note, flush=True)


def predicting(options: Options, records: Records) -> None:
    """Print the table of forecasts at all bars."""
    print(f"\nForecasts at all bars, {options.threads} thread(s), {options.rounds} rounds: as above")
    print(_head(""))
    for network, data in _tables(options):
        row = _kept(
            records,
            f"predicting {network}, {data}, {options.threads} thread(s)",
            _under(network, FIT_BATCH, {"rounds": options.rounds}),
            lambda: compare_predicting(Task(network, data, FIT_BATCH), options.rounds),  # noqa: B023
        )
        print(_line(f"{network:12} {data:6}", row), flush=True)


def whole_fits(options: Options, records: Records) -> None:
    """Print the table of whole fits."""
    print(
        f"\nOne epoch, batches of {FIT_BATCH}, from prices to a predictor, {options.fits} each: wall seconds; theirs over ours"
    )
    print("network      data        ours    stock   CPU ratio             wall ratio")
    for network, data in _tables(options):
        row = _kept(
            records,
            f"fit {network}, {data}, {options.threads} thread(s)",
            _under(network, FIT_BATCH, {"fits": options.fits}),
            lambda: compare_fits(Task(network, data, FIT_BATCH), options.fits),  # noqa: B023
        )
        seconds, ratios = row["wall_seconds"], row["ratios"]["stock"]
        print(
            f"{network:12} {data:6} {seconds['ours']:9.2f} {seconds['stock']:8.2f}   {_ratio(ratios['cpu']):20}  "
            f"{_ratio(ratios['wall'])}",
            flush=True,
        )


def memory(options: Options, records: Records) -> None:
    """Print the table of memory."""
    print("\nGrowth of a fresh process in a fit of 10 steps, MB, and its peak; theirs over ours")
    print("network      data    batch            ours            stock   ratio of growth")
    for network, data, batch_size in _cases(options):
        if batch_size < FIT_BATCH:
            continue
        row = _kept(
            records,
            f"memory {network}, {data}, batch {batch_size}, {options.threads} thread(s)",
            _under(network, batch_size, {}),
            lambda: _memory(network, data, batch_size, options.threads),  # noqa: B023
        )
        cells = [
            f"{row[who]['growth'] / MEGABYTE:7.0f} {row[who]['rss_peak'] / MEGABYTE:8.0f}" for who in ("ours", "stock")
        ]
        print(f"{network:12} {data:6} {batch_size:6d} {cells[0]} {cells[1]}   {row['ratio']:7.1f}", flush=True)


def _memory(network: Network, data: DataName, batch_size: int, threads: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who in ("ours", "stock"):
        asked = MemoryOptions(who=who, network=network, data=data, batch_size=batch_size, threads=threads)
        found[who] = measure_in_a_process(asked)
    return {**found, "ratio": found["stock"]["growth"] / found["ours"]["growth"]}


def _tables(options: Options) -> list[tuple[Network, DataName]]:
    return [(network, data) for network in options.networks for data in options.data]


def _cases(options: Options) -> list[tuple[Network, DataName, int]]:
    return [(network, data, batch) for network, data in _tables(options) for batch in options.batch_sizes]


def _under(network: Network, batch_size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What a row was measured under; sizes of both networks are part of it."""
    kind, arguments = STOCK[network]
    sizes_of_both = {"ours": make_predictor(network, batch_size).config, "theirs": {"model": kind, **arguments}}
    return conditions({**settings, "window_size": WINDOW_SIZE, **sizes_of_both}, PACKAGES)


def _kept(records: Records, key: str, under: dict[str, Any], compare: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row that counts as done, or measure it and keep it."""
    return records.done(key, under) or records.add(key, under, compare())


def _head(extra: str) -> str:
    return f"network      data   {extra}     ours    stock   hosted   stock, CPU           wall    hosted, CPU          wall"


def _line(name: str, row: dict[str, Any]) -> str:
    speeds = " ".join(f"{row['windows_per_cpu_second'][who]:8,.0f}" for who in SIDES)
    ratios = "   ".join(
        f"{_ratio(row['ratios'][who]['cpu']):19} {row['ratios'][who]['wall']['median']:5.2f}" for who in SIDES[1:]
    )
    return f"{name} {speeds}   {ratios}"


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} [{found['min']:.2f}, {found['max']:.2f}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
