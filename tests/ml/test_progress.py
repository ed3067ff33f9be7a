"""What the progress display shows, when, and that it stays out of the way."""

import io
import math
import timeit

import pytest
from rich.console import Console

from ml.tradingbots.training.progress import RLProgressTracker, format_live, format_seconds


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


def test_without_a_terminal_a_line_is_printed_at_each_tenth():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(100, "timesteps", console=console, clock=clock) as progress:
        for done in range(1, 101):
            progress.update(done, done)
            clock.seconds += 0.5
    lines = lines_of(console)
    assert len(lines) == 10
    assert lines[0] == " 11%  11/100 timesteps  2 steps/s  44 s left"
    assert lines[-1] == "100%  100/100 timesteps  2 steps/s  in 50 s"


def test_a_slow_run_still_shows_a_sign_of_life():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(10_000, "timesteps", console=console, clock=clock) as progress:
        for done in range(1, 31):
            progress.update(done, done)
            clock.seconds += 1.0
    assert [line.split()[1] for line in lines_of(console)] == ["11/10,000", "21/10,000", "30/10,000"]


def test_a_day_of_training_does_not_fill_a_log():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(86_400, "timesteps", console=console, clock=clock) as progress:
        for done in range(1, 86_401, 10):
            progress.update(done, done)
            clock.seconds += 10.0
    assert len(lines_of(console)) < 100


def test_values_stay_until_replaced_and_an_unknown_one_is_a_dash():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(10, "episodes", console=console, clock=clock) as progress:
        progress.update(1, 50, episode_return=math.nan, sharpe_ratio=1.234, max_drawdown=0.2)
        clock.seconds += 10.0
        progress.update(2, 100, critic_loss=1e-6)
    assert lines_of(console) == [
        " 20%  2/10 episodes  5 steps/s  1 min 20 s left  "
        "episode reward –  Sharpe 1.23  drawdown −20.0%  critic loss 1e−06",
    ]


def test_a_resumed_run_is_timed_from_where_it_resumed():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(1_000, "timesteps", console=console, clock=clock) as progress:
        progress.update(501, 501)
        clock.seconds += 10.0
        progress.update(601, 601)
    assert lines_of(console)[0] == " 60%  601/1,000 timesteps  10 steps/s  40 s left"


def test_the_speed_is_that_of_the_last_half_minute():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(100_000, "timesteps", console=console, clock=clock) as progress:
        done = 0
        for speed in [1_000] * 10 + [10] * 60:
            done += speed
            progress.update(done, done)
            clock.seconds += 1.0
    assert "  10 steps/s" in lines_of(console)[-1]


def test_99_point_9_percent_is_not_100():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(1_000, "timesteps", console=console, clock=clock) as progress:
        progress.update(999, 999)
    assert lines_of(console)[0].startswith(" 99%")


def test_a_message_is_printed_as_it_is():
    console = plain_console()
    with RLProgressTracker(10, "timesteps", console=console) as progress:
        progress.message("saved [bold]best.pt[/bold]")
    assert lines_of(console) == ["saved [bold]best.pt[/bold]"]


def test_a_disabled_tracker_is_silent():
    clock, console = Clock(), plain_console()
    with RLProgressTracker(10, "timesteps", enabled=False, console=console, clock=clock) as progress:
        for done in range(1, 11):
            clock.seconds += 10.0
            progress.update(done, done, sharpe_ratio=1.0)
        progress.message("nothing")
    assert console.file.getvalue() == ""


def test_in_a_terminal_a_bar_is_drawn_and_the_cursor_comes_back_after_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)

    def interrupted_run():
        with RLProgressTracker(10, "timesteps", console=console, clock=Clock()) as progress:
            progress.update(5, 5, episode_return=0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    drawn = console.file.getvalue()
    assert "━" in drawn
    assert "50%" in drawn
    assert "episode reward" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_closing_twice_prints_once():
    console = plain_console()
    progress = RLProgressTracker(10, "timesteps", console=console, clock=Clock())
    progress.update(10, 10)
    progress.close()
    progress.close()
    assert len(lines_of(console)) == 1


def test_an_update_that_draws_nothing_is_cheap():
    progress = RLProgressTracker(10**9, "timesteps", console=plain_console())
    progress.update(1, 1)
    seconds = min(
        timeit.repeat(lambda: progress.update(2, 2, episode_return=1.0, sharpe_ratio=2.0), number=1_000, repeat=5)
    )
    # The promise is 5 microseconds; a busy machine may take four times as long.
    assert seconds / 1_000 < 20e-6


def test_a_run_of_nothing_is_refused():
    with pytest.raises(ValueError, match="total must be at least 1, got 0"):
        RLProgressTracker(0, "timesteps")


def test_live_values_and_durations_are_written_for_people():
    assert [format_live("loss", value) for value in (12345.678, -0.5, math.inf)] == ["1.23e+04", "−0.5", "inf"]
    assert format_seconds(59.6) == "1 min 0 s"
