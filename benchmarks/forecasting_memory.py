"""Peak memory of one fit, ours or neuralforecast's, in a process of its own, whose memory nothing else has touched.

Part of `forecasting.py`:

    python benchmarks/forecasting_memory.py --who ours --network lstm --data panel --batch-size 256
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from forecasting_rivals import DataName, Network, Task, Who, collect_garbage, silence
from memory import status_bytes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to fit."""

    who: Who
    network: Network
    data: DataName
    batch_size: int
    """Windows per gradient step."""
    n_steps: int = 10
    """Gradient steps."""
    threads: int = 1
    """torch threads."""


def measure_in_a_process(options: Options) -> dict[str, int]:
    """Run `measure` in a fresh process."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(options).items()]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: Options) -> dict[str, int]:
    """Fit in this process; the data is there before, for both libraries.

    Returns:
        Bytes: `rss_before` the fit, `rss_peak` in it, and `growth` between them.
    """
    task = Task(options.network, options.data, options.batch_size)
    # What is imported at the last moment is no memory of the fit.
    Task(options.network, "series", 1).fit_once(options.who, 1)
    collect_garbage()
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far.
    before = status_bytes("VmRSS")
    task.fit_once(options.who, options.n_steps)
    peak = status_bytes("VmHWM")
    return {"rss_before": before, "rss_peak": peak, "growth": peak - before}


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    torch.set_num_threads(chosen.threads)
    silence()
    print(json.dumps(measure(chosen)))
