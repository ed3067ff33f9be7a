"""Where the numbers of a training run go: one row per moment, as many columns as there was something to say.

Rows are sparse: a row holds the values known at its `num_timesteps`, and a table of rows has gaps elsewhere.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import pandas as pd

from ml.tradingbots.components.serialization import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Value = float | int | str
STEP_COLUMN = "num_timesteps"
"""The column that orders rows: transitions experienced so far, over all environments."""


class Logger(Protocol):
    """Anything that accepts rows of named values."""

    def write(self, row: Mapping[str, Value]) -> None:
        """Record the values known at one moment; `num_timesteps` says when."""

    def close(self) -> None:
        """Finish; nothing is written afterwards."""


class CSVLogger:
    """One CSV file with a header; columns appear as they are first written.

    Each row reaches the operating system before `write` returns, so a crash of the program loses nothing. A last line
    that a crash of the machine cut short is dropped when the file is opened again.

    Args:
        path: the file; continued where it exists.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._columns: list[str] = []
        if self.path.exists():
            self._repair()
        self._file: TextIO | None = self._open()

    def write(self, row: Mapping[str, Value]) -> None:
        """Append a row; a column not seen before widens the table, and earlier rows stay empty there."""
        if self._file is None:
            raise ValueError(f"{self.path} is closed; open a new CSVLogger to continue it")
        new_columns = [name for name in row if name not in self._columns]
        if new_columns:
            self._rewrite(self._rows(), columns=[*self._columns, *new_columns])
        # "nan" is a value that was logged (a diverged loss), an empty cell is one that was not.
        cells = [_plain(row[name]) if name in row else "" for name in self._columns]
        csv.writer(self._file, lineterminator="\n").writerow(cells)
        self._file.flush()

    def truncate_after(self, num_timesteps: int) -> None:
        """Drop what was written after a checkpoint, so that a resumed run does not repeat rows.

        Args:
            num_timesteps: counter of the checkpoint; rows up to and including it stay.
        """
        kept: list[dict[str, str]] = []
        for row in self._rows():
            if row.get(STEP_COLUMN) and float(row[STEP_COLUMN]) > num_timesteps:
                break  # Rows are in the order of time: what follows came later, even where it names no timestep.
            kept.append(row)
        self._rewrite(kept, columns=self._columns)

    def close(self) -> None:
        """Sync the file to disk and close it; closing twice is fine."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _open(self) -> TextIO:
        return self.path.open("a", encoding="utf-8", newline="")

    def _repair(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_atomically(self.path, whole)
        header = next(csv.reader(io.StringIO(whole.decode("utf-8"), newline="")), [])
        self._columns = header

    def _rows(self) -> list[dict[str, str]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: Iterable[Mapping[str, str]], *, columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        if self._file is not None:
            self._file.close()
        write_atomically(self.path, text.getvalue().encode("utf-8"))
        self._columns = columns
        self._file = self._open()


class TensorBoardLogger:
    """TensorBoard event files; text values are left out. Needs the extra `tensorboard`.

    Args:
        folder: where the event files go.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs the package tensorboard: pip install 'tradingbots[tensorboard]'"
            ) from error
        self._writer: SummaryWriter = SummaryWriter(str(folder))

    def write(self, row: Mapping[str, Value]) -> None:
        """Record each number as a scalar at the row's `num_timesteps`."""
        step = int(row[STEP_COLUMN])
        for name, value in row.items():
            if name != STEP_COLUMN and not isinstance(value, str):
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MemoryLogger:
    """Rows in memory, for notebooks, tests and the report at the end of a run."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Value]] = []

    @property
    def history(self) -> pd.DataFrame:
        """All rows so far as a table, NaN where a row had nothing to say."""
        return pd.DataFrame(self._rows)

    @property
    def rows(self) -> list[dict[str, Value]]:
        """Copies of all rows so far, each with what it had to say."""
        return [dict(row) for row in self._rows]

    def write(self, row: Mapping[str, Value]) -> None:
        """Keep a copy of the row."""
        self._rows.append({name: _plain(value) for name, value in row.items()})

    def close(self) -> None:
        """Do nothing: the rows stay readable."""


class LoggerList:
    """Several loggers as one.

    Args:
        loggers: who receives each row, in this order.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self.loggers = list(loggers)

    def write(self, row: Mapping[str, Value]) -> None:
        """Hand the row to every logger."""
        for logger in self.loggers:
            logger.write(row)

    def close(self) -> None:
        """Close every logger."""
        for logger in self.loggers:
            logger.close()


def read_history(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what a `CSVLogger` wrote, NaN where a row had nothing to say; empty where nothing was written yet."""
    if Path(path).stat().st_size == 0:
        return pd.DataFrame()
    return pd.read_csv(path)


def _plain(value: Any) -> Value:
    """Turn NumPy and torch scalars into Python's own numbers, and keep text on one line."""
    if isinstance(value, str):
        return " ".join(value.splitlines())
    return int(value) if isinstance(value, Integral) else float(value)
