"""How far training is: a live bar in a terminal, a line now and then in a log file, nothing where nobody looks.

`RLProgressTracker.update` is called after every vector step, so what it does most of the time is look at the clock and
return; drawing happens a few times a second.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW_SECONDS = 0.25
"""Time between two drawings of the live bar."""

LINE_SECONDS = 10.0
"""Shortest time between two heartbeat lines where there is no terminal."""

MILESTONE_SECONDS = 1.0
"""Shortest time between two lines of any kind where there is no terminal."""

RATE_WINDOW_SECONDS = 30.0
"""The speed shown is that of this last stretch: random warm-up steps are much faster than learning."""

WIDE_COLUMNS = 100
"""A terminal narrower than this shows speed and time left below the bar, not beside it."""

LABELS = {
    "episode_return": "episode reward",
    "episode_reward": "episode reward",
    "sharpe_ratio": "Sharpe",
    "eval_sharpe": "eval Sharpe",
    "max_drawdown": "drawdown",
    "val_loss": "validation loss",
    "train_loss": "training loss",
}
"""What the display calls a value; any other name is shown with spaces for underscores."""

FINE = ("train_loss", "val_loss")
"""Values whose fourth digit matters."""


class RLProgressTracker:
    """Progress of a training run: bar, time left, speed, and the latest values that matter.

    Use it as a context manager. In a terminal it draws a live bar; elsewhere (a log file, a notebook) it prints a line
    at every tenth of the way and, in between, when ten seconds and a tenth of the time so far have passed, so that the
    log of a long run stays short.

    Args:
        total: how many units make the run.
        unit: what `update` counts with `done`.
        rate_unit: what it counts with `num_timesteps`, for the speed; None shows no speed.
        may_stop_early: whether the time left is only the longest it can be.
        enabled: False for complete silence.
        console: where to draw; the standard output by default.
        clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        total: int,
        unit: Literal["timesteps", "episodes", "epochs", "fits"],
        *,
        rate_unit: str | None = "steps",
        may_stop_early: bool = False,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total < 1:
            raise ValueError(f"total must be at least 1, got {total}")
        self.total = total
        self.unit = unit
        self._rate_unit = rate_unit
        self._at_most = "at most " if may_stop_early else ""
        self.console = console or Console()
        self._enabled = enabled
        self._clock = clock
        self._done = 0
        self._num_timesteps = 0
        self._values: dict[str, float] = {}
        self._start = clock()
        # (seconds, done, num_timesteps) at recent drawings, for the speed.
        self._marks: deque[tuple[float, int, int]] = deque()
        # A notebook is no terminal: rich would ask for ipywidgets there.
        is_live = (
            enabled and self.console.is_terminal and not (self.console.is_dumb_terminal or self.console.is_jupyter)
        )
        self._live = Live(console=self.console, auto_refresh=False, transient=False) if is_live else None
        self._next_draw = -math.inf if enabled else math.inf
        self._next_tenth = 1
        # (done, seconds) of the last line printed.
        self._last_line = (-1, self._start)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, num_timesteps: int, **live: float) -> None:
        """Say how far the run is; cheap enough for every step.

        Args:
            done: units finished so far, including those of a run that was resumed.
            num_timesteps: transitions experienced so far, over all environments.
            **live: values to show, such as `episode_return`; each stays until it is replaced, NaN is shown as a dash.
        """
        self._done = done
        self._num_timesteps = num_timesteps
        if live:
            self._values.update(live)
        if self._clock() >= self._next_draw:
            self._draw()

    def message(self, text: str) -> None:
        """Print a line of text above the bar."""
        if self._enabled:
            self.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Show the final state and give the terminal back; closing twice is fine."""
        if self._closed or not self._enabled:
            return
        self._closed = True
        self._next_draw = math.inf
        if not self._marks:
            return
        self._mark()
        if self._live is None:
            stopped_early = bool(self._at_most) and self._done < self.total
            if self._last_line[0] != self._done or stopped_early:
                self._print_line()
            return
        self._live.update(self._picture(), refresh=True)
        self._live.stop()

    def _draw(self) -> None:
        self._mark()
        now = self._marks[-1][0]
        if self._live is not None:
            self._live.start()
            self._live.update(self._picture(), refresh=True)
            self._next_draw = now + REDRAW_SECONDS
            return
        tenth = self._done * 10 // self.total
        if len(self._marks) == 1:  # Nothing to say yet, but where a resumed run begins.
            self._next_tenth = tenth + 1
        heartbeat = max(LINE_SECONDS, (now - self._start) / 10.0)
        if tenth >= self._next_tenth or now - self._last_line[1] >= heartbeat:
            self._next_tenth = tenth + 1
            self._print_line()
        self._next_draw = now + MILESTONE_SECONDS

    def _mark(self) -> None:
        now = self._clock()
        self._marks.append((now, self._done, self._num_timesteps))
        if self._rate_unit is None:
            # Long units of unlike length: only the whole way says how long the rest may take.
            while len(self._marks) > 2:
                del self._marks[1]
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_SECONDS:
            self._marks.popleft()

    def _print_line(self) -> None:
        self._last_line = (self._done, self._marks[-1][0])
        line = "  ".join([self._percent(), *self._facts(), *(f"{name} {value}" for name, value in self._shown())])
        # One line whatever the width: a log file is searched by line.
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _picture(self) -> RenderableType:
        is_wide = self.console.width >= WIDE_COLUMNS
        bar = ProgressBar(total=self.total, completed=min(self._done, self.total), width=40 if is_wide else 20)
        facts = Text("  ".join(self._facts()), style="dim", no_wrap=True, overflow="ellipsis")
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, Text(self._percent(), style="bold"), *([facts] if is_wide else []))
        values = Text(overflow="fold")
        for name, value in self._shown():
            values.append(f"{name} ", style="dim").append(f"{value}   ", style="bold")
        lines: list[RenderableType] = [grid] if is_wide else [grid, facts]
        return Group(*lines, values) if self._values else Group(*lines)

    def _percent(self) -> str:
        # Rounded down: never 100% before the end.
        return f"{100 * min(self._done, self.total) // self.total:3d}%"

    def _facts(self) -> list[str]:
        seconds, done, num_timesteps = (
            last - first for last, first in zip(self._marks[-1], self._marks[0], strict=True)
        )
        rate = f"{num_timesteps / seconds:,.0f}" if seconds > 0.0 and num_timesteps > 0 else "–"
        speed = [] if self._rate_unit is None else [f"{rate} {self._rate_unit}/s"]
        if self._done >= self.total or self._closed:
            clock = f"in {format_seconds(self._marks[-1][0] - self._start)}"
        elif seconds > 0.0 and done > 0:
            clock = f"{self._at_most}{format_seconds((self.total - self._done) * seconds / done)} left"
        else:
            clock = "– left"
        return [f"{self._done:,}/{self.total:,} {self.unit}", *speed, clock]

    def _shown(self) -> list[tuple[str, str]]:
        return [
            (LABELS.get(name, name.replace("_", " ")), format_live(name, value)) for name, value in self._values.items()
        ]


def format_live(name: str, value: float) -> str:
    """Write a live value: drawdowns as percentages below zero, NaN as a dash, counts and speeds in full, else three digits.

    >>> format_live("max_drawdown", 0.2), format_live("sharpe_ratio", 1.234), format_live("windows/s", 12_345.6)
    ('−20.0%', '1.23', '12,346')
    """
    if math.isnan(value):
        return "–"
    if isinstance(value, int) or name.endswith("/s"):
        return f"{value:,.0f}"
    text = f"{-value:.1%}" if "drawdown" in name else f"{value:.4g}" if name in FINE else f"{value:.3g}"
    return text.replace("-", "−")


def format_seconds(seconds: float) -> str:
    """Write a duration in its two largest units.

    >>> format_seconds(42.4), format_seconds(125), format_seconds(7_380), format_seconds(200_000)
    ('42 s', '2 min 5 s', '2 h 3 min', '2 d 7 h')
    """
    whole = round(seconds)
    for size, unit, part, part_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {part_unit}"
    return f"{whole} s"
