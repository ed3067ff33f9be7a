"""Our agents beside Stable-Baselines3's: speed at one recipe, time to act, memory, and time to learn a known market.

    python benchmarks/agents.py                                  # all parts, some twenty minutes
    python benchmarks/agents.py --parts throughput --algorithms ppo a2c --threads 2
    python benchmarks/agents.py --parts memory --save

Ratios are theirs over ours, from runs that alternate in one process: above 1 we are faster. Seconds of different sessions
say little on a shared machine. The parts are in `speed.py`, `memory.py` and `learning.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import tyro
from learning import LEARNERS, SHARES, count_reached, fast_config, fast_settings, median_seconds, time_to_shares
from memory import Options as MemoryOptions
from memory import compare_bytes, fill_in_a_process
from records import Records, as_json, conditions
from rivals import Algorithm, check_same_environment
from speed import N_CALLS, N_REPEATS, RECIPES, compare_latency, compare_throughput

Part = Literal["throughput", "latency", "memory", "learning"]
MEGABYTE = 1e6


@dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = ("throughput", "latency", "memory", "learning")
    """throughput: same recipe. latency: one action, and 64 at once. memory: of transitions. learning: time to 90% and 97%."""
    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which agents."""
    cases: tuple[str, ...] = ("ar1", "ou")
    """Markets of the learning part."""
    seeds: int = 5
    """Seeds of the learning part."""
    repeats: int = N_REPEATS
    """Rounds of throughput and latency."""
    calls: int = N_CALLS
    """Actions per round of latency."""
    threads: int = 1
    """torch threads; small networks are slower with more, in both libraries."""
    sb3_fused: bool = False
    """Whether theirs is asked for fused Adam in the throughput part, which it does not use by itself."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    """Of the memory part."""
    save: bool = False
    """Whether to write benchmarks/results/agents.json; parts and agents that were not measured stay as they were."""


def main(options: Options) -> None:
    """Measure and print, part by part."""
    torch.set_num_threads(options.threads)
    # Theirs warns of rollouts shorter than a minibatch, which some of the settings found best have.
    warnings.filterwarnings("ignore", module="stable_baselines3")
    records = Records("agents", save=options.save)
    measure = {"throughput": throughput, "latency": latency, "memory": memory, "learning": learning}
    for part in options.parts:
        measure[part](options, records)


def throughput(options: Options, records: Records) -> None:
    """Print the table of training at the same recipe."""
    print(
        f"Same recipe, {options.threads} thread(s), {options.repeats} rounds: timesteps per CPU second, ratio [min, max]"
    )
    print("agent        ours    theirs   CPU ratio             wall ratio            aim")
    for algorithm in options.algorithms:
        under = conditions({"recipe": RECIPES[algorithm], "repeats": options.repeats, "sb3_fused": options.sb3_fused})
        found = compare_throughput(algorithm, n_repeats=options.repeats, fused=options.sb3_fused)
        print(
            f"{algorithm:6} {found['ours']:10,.0f} {found['theirs']:9,.0f}   {_ratio(found['ratio']):20}  "
            f"{_ratio(found['wall_ratio']):20}  {found['aim']:.1f}",
            flush=True,
        )
        # What was asked for beside the ordinary has a row of its own.
        fused = ", fused" if options.sb3_fused else ""
        key = f"throughput {algorithm}, {options.threads} thread(s){fused}"
        records.add(key, under, {"part": "throughput", "algorithm": algorithm, **found})


def latency(options: Options, records: Records) -> None:
    """Print the table of the time to act."""
    print(
        f"\nActions for NumPy observations, best or drawn, {options.repeats} × {options.calls} calls: microseconds a call"
    )
    print("agent  action  batch     ours    theirs   ratio [min, max]")
    for algorithm in options.algorithms:
        under = conditions({"recipe": RECIPES[algorithm], "calls": options.calls, "repeats": options.repeats})
        for batch, best in ((1, True), (1, False), (64, True)):
            found = compare_latency(
                algorithm, batch, deterministic=best, n_calls=options.calls, n_repeats=options.repeats
            )
            kind = "best" if best else "drawn"
            print(
                f"{algorithm:6} {kind:6} {batch:6d} {found['ours']:8.1f} {found['theirs']:9.1f}   {_ratio(found['ratio'])}",
                flush=True,
            )
            drawn = "" if best else ", drawn"
            key = f"latency {algorithm}, batch {batch}{drawn}, {options.threads} thread(s)"
            records.add(key, under, {"part": "latency", "algorithm": algorithm, **found})


def memory(options: Options, records: Records) -> None:
    """Print what transitions weigh."""
    print("\nReplay memory, bytes of a transition")
    under = conditions(options.memory)
    for row in compare_bytes():
        print(
            f"{row['market']:22} ours {row['ours']:6.0f}   theirs {row['theirs']:6.0f} ({row['ratio']:.1f} times; "
            f"{row['theirs_without_truncations']:.0f} without what truncated episodes led to)"
        )
        records.add(f"memory {row['market']}", under, {"part": "memory", **row})
    found = fill_in_a_process(options.memory)
    print(
        f"{found['transitions']:,} transitions of 20 assets filled, {found['gradient_steps']} gradient steps of SAC: memory of "
        f"the process grew by {found['growth'] / MEGABYTE:.0f} MB to {found['rss_peak'] / MEGABYTE:.0f} MB at its highest; "
        f"their arrays alone would take {found['theirs'] / MEGABYTE:.0f} MB"
    )
    records.add("memory filled", under, {"part": "memory", **found})


def learning(options: Options, records: Records) -> None:
    """Print the time to shares of the optimum."""
    check_same_environment()
    names = [f"{share:.0%}" for share in SHARES]
    print(
        f"\nCPU milliseconds of training until {' / '.join(names)} of the optimum on unseen bars, medians of {options.seeds} "
        "seeds; ratio of medians"
    )
    print("agent  case   " + "".join(f"{learner:>24}" for learner in LEARNERS) + "       ratio, vector   ratio, scalar")
    for algorithm in options.algorithms:
        for learner in LEARNERS:
            time_to_shares(algorithm, options.cases[0], learner, seed=0)  # First calls are not what is measured.
        for case in options.cases:
            runs = _learning_runs(algorithm, case, options, records)
            medians = {learner: [median_seconds(runs[learner], name) for name in names] for learner in LEARNERS}
            shown = ""
            for learner in LEARNERS:
                reached = count_reached(runs[learner], names[-1])
                # Those that never got there have no time; how many they are belongs beside the median.
                missing = "" if reached == options.seeds else f" ({reached} of {options.seeds})"
                shown += f"{_milliseconds(medians[learner]) + missing:>24}"
            ratios = [
                " / ".join(f"{slow / fast:.1f}" for fast, slow in zip(medians["ours"], medians[learner], strict=True))
                for learner in LEARNERS[1:]
            ]
            print(f"{algorithm:6} {case:6} {shown}   {ratios[0]:>16} {ratios[1]:>15}", flush=True)


def _learning_runs(algorithm: Algorithm, case: str, options: Options, records: Records) -> dict[str, list[Any]]:
    runs: dict[str, list[Any]] = {learner: [] for learner in LEARNERS}
    settings: dict[str, Any] = dict(
        zip(
            LEARNERS,
            (fast_config(algorithm, case), fast_settings(algorithm, "vector"), fast_settings(algorithm, "scalar")),
            strict=True,
        )
    )
    # Seed by seed, so that a machine that slows down slows all three.
    for seed in range(options.seeds):
        for learner in LEARNERS:
            found = as_json(time_to_shares(algorithm, case, learner, seed=seed))
            runs[learner].append(found)
            key = f"learning {algorithm}, {case}, {learner}, seed {seed}"
            records.add(key, conditions(settings[learner]), {"part": "learning", **found})
    return runs


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} [{found['min']:.2f}, {found['max']:.2f}]"


def _milliseconds(seconds: list[float]) -> str:
    return " / ".join("never" if value == float("inf") else f"{value * 1e3:.0f}" for value in seconds)


if __name__ == "__main__":
    main(tyro.cli(Options))
