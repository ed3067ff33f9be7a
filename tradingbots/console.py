"""What every verb shares: reading arguments, printing tables, and turning the user's errors into one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from ml.tradingbots.training.results import EvaluationResult

# How flags are shown in help; tyro would write {None}|STR.
OptionalDate = Annotated[str | None, tyro.conf.arg(metavar="DATE")]
OptionalPath = Annotated[str | None, tyro.conf.arg(metavar="PATH")]
OptionalJson = Annotated[str | None, tyro.conf.arg(metavar="JSON")]
Checkpoint = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
Prices = Annotated[str, tyro.conf.arg(metavar="SOURCE")]

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

# Wide enough that nothing wraps where no terminal sets a width.
PLAIN_WIDTH = 400


class UsageError(ValueError):
    """Arguments that cannot be understood."""


def guarded(work: Callable[[], int], *, debug: bool = False) -> int:
    """Run a verb; an error that its user can mend ends in one line on stderr, any other in its traceback.

    Args:
        work: what to run; returns an exit code.
        debug: whether to show the traceback of every error.

    Returns:
        The exit code.
    """
    debug = debug or os.environ.get("TRADINGBOTS_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A minus sign must not fail on a terminal that has none.
    try:
        with warnings.catch_warnings():
            if not debug:
                # Overflows and divisions by zero end in NaN, which is shown or refused where it matters.
                warnings.simplefilter("ignore", RuntimeWarning)
            code = work()
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # Help was asked for.
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as stop:
        if debug:
            traceback.print_exc()
        print(_one_line(str(stop) or "interrupted"), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        return _report(error, debug)  # FloatingPointError: a network diverged, and the message says what to change.
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        return _report(error, debug)  # Torch's word for a MemoryError.
    except ImportError as error:
        if "pip install" not in str(error):
            raise  # Not an extra that is left out, but a broken installation.
        return _report(error, debug)


@contextlib.contextmanager
def at_the_door() -> Iterator[None]:
    """Where the library checks what the user gave: its TypeError and KeyError are the user's there, and bugs elsewhere."""
    try:
        yield
    except (TypeError, KeyError) as error:
        raise UsageError(str(error.args[0]) if error.args else str(error)) from error


def parse(target: Any, verb: str, argv: list[str]) -> Any:
    """Read a verb's arguments into its dataclass.

    Args:
        target: the dataclass, whose fields become flags and whose docstrings become help.
        verb: name of the verb.
        argv: arguments after the verb.

    Raises:
        UsageError: in one line, with the flag that was probably meant.
        SystemExit: help was asked for and printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(target, prog=f"tradingbots {verb}", args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_usage_line(complaint.getvalue())} (see tradingbots {verb} --help)") from None


def show(text: str = "") -> None:
    """Print text, wrapped between words in a terminal and as it is elsewhere."""
    _console().print(text, markup=False, highlight=False)


def note(text: str) -> None:
    """Say something beside the result, in one line on stderr."""
    print(f"note: {_one_line(text)}", file=sys.stderr)


def show_table(table: pd.DataFrame, *, first: str = "", align: Literal["left", "right"] = "right") -> None:
    """Print a table of text: with rules in a terminal, in plain columns elsewhere.

    Args:
        table: cells and headings as they shall be read; the index is the first column.
        first: heading of the first column.
        align: of all columns but the first.
    """
    console = _console()
    picture = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, collapse_padding=True)
    picture.add_column(first)
    for name in table.columns:
        picture.add_column(str(name), justify=align)
    for name, row in zip(table.index, table.itertuples(index=False), strict=True):
        picture.add_row(*(Text(str(cell)) for cell in (name, *row)))  # Text, or [data] would be read as markup.
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_result(result: EvaluationResult) -> None:
    """Print an evaluation: the table, the verdict, and how the agent trades."""
    first, last = result.agent.timestamps[0], result.agent.timestamps[-1]
    show(f"\n{result.sample.capitalize()}, {first:%Y-%m-%d} to {last:%Y-%m-%d}, {result.agent.n_steps:,} bars\n")
    # Strategies side by side: few columns fit a narrow terminal, many figures do not.
    table = result.formatted_table().T
    show_table(table.rename(columns=lambda name: name.replace("_", " ")))
    show()
    show(result.verdict())
    show()
    for finding in result.diagnosis():
        show(f"- {finding}")


def _console() -> Console:
    # Made anew each time: the stream that sys.stdout names may have been replaced.
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _report(error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
    return USER_ERROR


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _usage_line(complaint: str) -> str:
    """Put what tyro says in a box into one line: the complaint, and the flags that are spelled alike."""
    # Two columns of border and padding; where box characters cannot be printed, the border is blank and the title, which
    # otherwise stands in the rule, has a line of its own.
    text = "\n".join("---" if line[:1] in "╭╰" else line[2:].rstrip("│ ") for line in complaint.splitlines())
    sections = [section.strip("\n") for section in re.split(r"^[─-]{3,}$", text, flags=re.MULTILINE)]
    sections = [section for section in sections if section][0 if "╭" in complaint else 1 :]
    first, *others = sections or [complaint]
    message = _one_line(first).replace("') .", "').")
    if message.startswith("Missing from"):
        # Flags are indented once, their help twice.
        message = "required and not given: " + ", ".join(re.findall(r"^ {4}(\S.*)$", first, flags=re.MULTILINE))
    for section in others:
        if section.startswith(("Perhaps you meant", "Arguments similar")):
            flags = dict.fromkeys(re.findall(r"^ *(--[\w.-]+)", section, flags=re.MULTILINE))
            message += f"; did you mean {' or '.join(list(flags)[:2])}?"
        elif section.startswith("Unrecognized"):
            message += f"; {section[:1].lower()}{_one_line(section[1:])}"
    return message[:1].lower() + message[1:]
