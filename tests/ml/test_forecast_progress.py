"""What is drawn while predictors are fitted."""

import io

from rich.console import Console

from ml.tradingbots.components.ensemble_predictor import MemberReport
from ml.tradingbots.components.predictor_fitting import EpochReport
from ml.tradingbots.training.forecast_progress import FitProgress, WalkForwardProgress
from ml.tradingbots.training.forecast_validation import FoldReport


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def lines_of(console):
    return console.file.getvalue().splitlines()


def epoch(number, *, val_loss=1.25, **more):
    kind = MemberReport if more else EpochReport
    return kind(number, 1.5, val_loss, 12_345.6, max(number - 1, 1), **more)


def fold_report(model, fold, n_folds=2):
    return FoldReport(model=model, fold=fold, n_folds=n_folds, n_train_bars=100, n_test_bars=50, seconds=61.0)


def test_a_fit_shows_epochs_speed_time_left_losses_and_the_best_epoch():
    clock, console = Clock(), plain_console()
    with FitProgress(4, console=console, clock=clock) as progress:
        for number in (1, 2, 3):
            clock.seconds += 2.0
            progress(epoch(number))
    first, last = lines_of(console)[0], lines_of(console)[-1]
    assert first.startswith(" 25%  1/4 epochs  at most 6 s left  windows/s 12,346")
    assert last.endswith("in 6 s  windows/s 12,346  training loss 1.5  validation loss 1.25  best epoch 2")


def test_a_validation_loss_that_is_no_number_is_shown_as_a_dash():
    console = plain_console()
    with FitProgress(1, console=console) as progress:
        progress(epoch(1, val_loss=float("nan")))
    assert "validation loss –" in lines_of(console)[-1]


def test_an_ensemble_counts_the_fits_of_its_members_and_ends_at_all_of_them():
    clock, console = Clock(), plain_console()
    with FitProgress(50, console=console, clock=clock) as progress:
        for number in (1, 2, 3):
            progress(epoch(1, member="lstm", fold=None, fit_number=number, n_fits=3))
            clock.seconds += 2.0
    assert "100%  3/3 fits  in 6 s" in lines_of(console)[-1]


def test_a_fit_that_fails_does_not_claim_to_be_done():
    console = plain_console()
    try:
        with FitProgress(50, console=console) as progress:
            progress(epoch(1, member="lstm", fold=None, fit_number=1, n_fits=3))
            raise FloatingPointError
    except FloatingPointError:
        pass
    assert "3/3" not in console.file.getvalue()


def test_a_walk_forward_counts_fits_that_take_epochs_and_says_what_each_took():
    clock, console = Clock(), plain_console()
    with WalkForwardProgress(2, console=console, clock=clock) as progress:
        for fold in (0, 1):
            progress.on_epoch(fold)(epoch(7))
            clock.seconds += 61.0
            progress.on_fold(fold_report("lstm", fold))
            progress.on_fold(fold_report("zero", fold))
    lines = lines_of(console)
    assert "fold 1/2  lstm: 7 epochs, best 6, 1 min 1 s" in lines
    assert "fold 2/2  lstm: 7 epochs, best 6, 1 min 1 s" in lines
    assert not any("zero" in line for line in lines)
    assert lines[-1].startswith("100%  2/2 fits")


def test_time_left_is_known_however_long_ago_the_last_fit_ended():
    clock, console = Clock(), plain_console()
    with WalkForwardProgress(4, console=console, clock=clock) as progress:
        for _ in range(2):
            clock.seconds += 100.0
            progress.on_epoch(0)(epoch(1))
            progress.on_fold(fold_report("lstm", 0))
        for number in range(2, 10):
            clock.seconds += 20.0
            progress.on_epoch(1)(epoch(number))
    # Two fits in the 340 seconds to the last line: as long again.
    assert "50%  2/4 fits  5 min 40 s left" in lines_of(console)[-1]


def test_silence_is_complete():
    console = plain_console()
    with FitProgress(4, enabled=False, console=console) as progress:
        progress(epoch(1))
    with WalkForwardProgress(4, enabled=False, console=console) as progress:
        progress.on_epoch(0)(epoch(1))
        progress.on_fold(fold_report("lstm", 0))
    assert console.file.getvalue() == ""
