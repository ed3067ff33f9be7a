"""How far predictors are: the epochs of one fit, or the fits of a walk-forward, drawn as training runs are."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console

from ml.tradingbots.components.ensemble_predictor import MemberReport
from ml.tradingbots.components.predictor_fitting import EpochReport, ReportFunction
from ml.tradingbots.training.forecast_validation import FoldReport
from ml.tradingbots.training.progress import RLProgressTracker, format_seconds


class FitProgress:
    """Draws one fit; give it to `fit(report=...)`, and use it as a context manager.

    A network's fit counts epochs, of which early stopping may save some; that of an ensemble counts its members' fits.

    Args:
        max_epochs: most epochs of the fit.
        enabled: False for complete silence.
        console: where to draw; the standard output by default.
        clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        max_epochs: int,
        *,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = RLProgressTracker(
            max_epochs, "epochs", rate_unit=None, may_stop_early=True, enabled=enabled, console=console, clock=clock
        )

    def __enter__(self) -> Self:
        self._tracker.update(0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._tracker.unit == "fits":
            self._tracker.update(self._tracker.total, 0)
        self._tracker.close()

    def __call__(self, report: EpochReport) -> None:
        """Draw what an epoch brought."""
        live = live_values(report)
        if isinstance(report, MemberReport):
            self._tracker.unit, self._tracker.total = "fits", report.n_fits
            self._tracker.update(report.fit_number - 1, 0, **live)
        else:
            live.pop("epoch")
            self._tracker.update(report.epoch, 0, **live)


class WalkForwardProgress:
    """Draws a walk-forward: a bar over all fits, and a line for each that is done. A context manager.

    Args:
        n_fits: models that learn, times folds.
        enabled: False for complete silence.
        console: where to draw; the standard output by default.
        clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        n_fits: int,
        *,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = RLProgressTracker(n_fits, "fits", rate_unit=None, enabled=enabled, console=console, clock=clock)
        self._done = 0
        self._last: EpochReport | None = None

    def __enter__(self) -> Self:
        self._tracker.update(0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tracker.close()

    def on_epoch(self, fold: int) -> ReportFunction:
        """Return what a fit in this fold reports its epochs to."""

        def report(found: EpochReport) -> None:
            self._last = found
            self._tracker.update(self._done, 0, fold=fold + 1, **live_values(found))

        return report

    def on_fold(self, report: FoldReport) -> None:
        """Note that one model is through with one fold."""
        last, self._last = self._last, None
        if last is None:  # It learns nothing that takes epochs.
            return
        self._done += 1
        epochs = "" if isinstance(last, MemberReport) else f"{last.epoch} epochs, best {last.best_epoch}, "
        self._tracker.message(
            f"fold {report.fold + 1}/{report.n_folds}  {report.model}: {epochs}{format_seconds(report.seconds)}"
        )
        self._tracker.update(self._done, 0)


def live_values(report: EpochReport) -> dict[str, float]:
    """Return what is shown of an epoch: its number, speed, losses, and the best epoch so far."""
    return {
        "epoch": report.epoch,
        "windows/s": report.windows_per_second,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "best_epoch": report.best_epoch,
    }
