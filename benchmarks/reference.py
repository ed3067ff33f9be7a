"""Cheap public tasks beside what the RL Zoo reports: every agent, five seeds, deterministic evaluation over fifty episodes.

    python benchmarks/reference.py --save                                     # hours on one core
    python benchmarks/reference.py --tasks "CartPole-v1 ppo" --seeds 1
    python benchmarks/reference.py --resume --processes 2                     # goes on where a run was interrupted

What must be reached is the median over seeds; the Zoo's figure is of one trained model.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from records import Records, conditions

from ml.tradingbots.training.reference import REFERENCE_TASKS, ReferenceScore, reference_score


@dataclass(frozen=True)
class Options:
    """What to run."""

    tasks: tuple[str, ...] = tuple(REFERENCE_TASKS)
    """Names of tasks."""
    seeds: int = 5
    """Seeds per task."""
    processes: int = 1
    """Trainings at a time, each with one torch thread."""
    save: bool = False
    """Whether to write benchmarks/results/reference.json, row by row."""
    resume: bool = False
    """As `save`, and seeds that the file has from the same settings, code, versions and machine are not run again."""


def main(options: Options) -> None:
    """Run what is not done, print the table, row by row as scores come."""
    unknown = [name for name in options.tasks if name not in REFERENCE_TASKS]
    if unknown:
        raise SystemExit(f"unknown tasks {unknown}; choose from {', '.join(map(repr, REFERENCE_TASKS))}")
    torch.set_num_threads(1)
    records = Records("reference", save=options.save, resume=options.resume)
    under = {name: conditions(REFERENCE_TASKS[name]) for name in options.tasks}
    wanted = [(name, seed) for name in options.tasks for seed in range(options.seeds)]
    found: dict[str, list[Any]] = {name: [] for name in options.tasks}
    print(f"{'task':30} seed     mean     std   CPU s  wall s")
    left = []
    for name, seed in wanted:
        row = records.done(_key(name, seed), under[name])
        if row is None:
            left.append((name, seed))
        else:
            found[name].append(row)
            print(f"{_line(row)}   (made before)")
    for score in _scores(left, options.processes):
        row = records.add(_key(score.task, score.seed), under[score.task], score)
        found[score.task].append(row)
        print(_line(row), flush=True)
    summary = [_summary(name, rows) for name, rows in found.items() if rows]
    _print_summary(summary)
    records.write(summary)


def _key(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def _scores(tasks: list[tuple[str, int]], n_processes: int) -> Iterator[ReferenceScore]:
    if n_processes == 1:
        yield from (_score(name, seed) for name, seed in tasks)
        return
    # A forked process would share what the threads of torch held at that moment.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        waiting = [pool.submit(_score, name, seed) for name, seed in tasks]
        for done in as_completed(waiting):
            yield done.result()


def _score(name: str, seed: int) -> ReferenceScore:
    torch.set_num_threads(1)
    return reference_score(REFERENCE_TASKS[name], seed=seed)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['task']:30} {row['seed']:4d} {row['mean']:8.1f} {row['std']:7.1f} {row['cpu_seconds']:7.0f} "
        f"{row['wall_seconds']:7.0f}"
    )


def _summary(name: str, rows: list[Any]) -> dict[str, Any]:
    task, means = REFERENCE_TASKS[name], [row["mean"] for row in rows]
    median = statistics.median(means)
    return {
        "task": name,
        "seeds": len(rows),
        "median": median,
        "min": min(means),
        "max": max(means),
        "required": task.required,
        "zoo": task.zoo,
        "reached": median >= task.required,
        "cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows),
    }


def _print_summary(summary: list[dict[str, Any]]) -> None:
    print(f"\n{'task':30} timesteps  seeds   median [min, max]             required      zoo  reached  CPU s per seed")
    for row in summary:
        spread = f"{row['median']:.1f} [{row['min']:.1f}, {row['max']:.1f}]"
        timesteps = REFERENCE_TASKS[row["task"]].total_timesteps
        print(
            f"{row['task']:30} {timesteps:9,d} {row['seeds']:6d}   {spread:28} {row['required']:9.1f} {row['zoo']:8.1f}  "
            f"{'yes' if row['reached'] else 'NO':7} {row['cpu_seconds']:7.0f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
