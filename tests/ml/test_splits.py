import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.data import Bars, load_prices, train_test_split


def closes(n_bars: int = 10) -> pd.DataFrame:
    """Close = day of the month."""
    return pd.DataFrame({"close": 1.0 + np.arange(n_bars)}, index=pd.date_range("2024-01-01", periods=n_bars))


def days(frame: pd.DataFrame) -> list[int]:
    return [int(day) for day in frame["close"]]


def test_the_test_begins_where_training_ends():
    train, test = train_test_split(closes(), test_start="2024-01-07")
    assert days(train) == [1, 2, 3, 4, 5, 6]
    assert days(test) == [7, 8, 9, 10]


def test_a_date_without_a_bar_means_the_next_bar():
    train, test = train_test_split(closes().drop(pd.Timestamp("2024-01-07")), test_start="2024-01-07")
    assert days(train)[-1] == 6
    assert days(test)[0] == 8


def test_start_and_end_cut_both_sides():
    train, test = train_test_split(
        closes(), train_start="2024-01-03", test_start="2024-01-06", test_end=pd.Timestamp("2024-01-09")
    )
    assert days(train) == [3, 4, 5]
    assert days(test) == [6, 7, 8]


def test_purged_bars_leave_the_end_of_training():
    train, test = train_test_split(closes(), test_start="2024-01-07", purge_size=2)
    assert days(train) == [1, 2, 3, 4]
    assert days(test) == [7, 8, 9, 10]


def test_warm_up_bars_come_before_the_first_test_decision():
    train, test = train_test_split(closes(), test_start="2024-01-07", purge_size=1, warmup_bars=3)
    assert days(train) == [1, 2, 3, 4, 5]
    assert days(test) == [4, 5, 6, 7, 8, 9, 10]


def test_warm_up_may_reach_before_the_training_start():
    _, test = train_test_split(closes(), train_start="2024-01-06", test_start="2024-01-07", warmup_bars=6)
    assert days(test)[0] == 1


def test_a_date_with_a_time_zone_is_that_instant():
    _, test = train_test_split(closes(), test_start="2024-01-06 20:00-04:00")
    assert days(test)[0] == 7


def test_the_columns_and_the_index_stay_as_they_were():
    frame = load_prices("sp500").tz_localize("America/New_York").rename(columns=str.title)
    train, test = train_test_split(frame, test_start="2010", purge_size=5)
    pd.testing.assert_frame_equal(test, frame.loc["2010-01-01":], check_freq=False)
    pd.testing.assert_frame_equal(train, frame.loc[:"2009-12-31"].iloc[:-5], check_freq=False)


def test_numbered_rows_are_split_by_their_business_days():
    frame = closes(30).reset_index(drop=True)
    train, test = train_test_split(frame, test_start="2000-01-17", warmup_bars=2)
    assert list(train.index) == list(range(10))
    assert Bars.from_frame(test).timestamps[2] == pd.Timestamp("2000-01-17", tz="UTC")


def test_bars_can_be_split():
    bars = Bars.from_frame(closes())
    train, test = train_test_split(bars, test_start="2024-01-07")
    assert Bars.from_frame(train).timestamps.equals(bars.timestamps[:6])
    assert days(test) == [7, 8, 9, 10]


def test_changing_a_side_changes_neither_the_other_nor_the_table():
    frame = closes()
    train, test = train_test_split(frame, test_start="2024-01-07", warmup_bars=3)
    test.loc[:, "close"] = 0.0
    assert days(train) == [1, 2, 3, 4, 5, 6]
    assert days(frame) == days(closes())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"test_start": "2024-02-01"}, r"test side is empty: .*test_start=2024-02-01 .*2024-01-10.*earlier test_start"),
        ({"test_start": "2024-01-07", "test_end": "2024-01-07"}, r"test side is empty: .*test_end=2024-01-07"),
        ({"test_start": "2024-01-01"}, r"training side is empty: 0 bars .*later test_start"),
        (
            {"test_start": "2024-01-04", "train_start": "2024-01-06"},
            r"training side is empty: 0 bars .*earlier train_start",
        ),
        (
            {"test_start": "2024-01-04", "purge_size": 3},
            r"training side is empty: 3 bars .*purge_size=3.*smaller purge_size",
        ),
        ({"test_start": "2024-01-04", "warmup_bars": 4}, r"warmup_bars=4 needs .*got 3; .*fewer warmup_bars"),
        ({"test_start": "2024-01-04", "purge_size": -1}, r"purge_size must be 0 or more bars, got -1"),
        ({"test_start": "2024-01-04", "warmup_bars": -1}, r"warmup_bars must be 0 or more bars, got -1"),
        ({"test_start": "someday"}, r"test_start must be a date such as '2015-06-30', got 'someday'"),
        ({"test_start": pd.NaT}, r"test_start must be a date such as '2015-06-30', got NaT"),
    ],
)
def test_impossible_splits_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        train_test_split(closes(), **arguments)


def test_a_bad_table_is_refused_before_it_is_split():
    frame = closes()
    frame.iloc[8, 0] = np.nan
    with pytest.raises(ValueError, match=r"column 'close' at row 8 \(2024-01-09 00:00:00\+00:00\) is nan"):
        train_test_split(frame, test_start="2024-01-03")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_every_split_keeps_time_apart(data):
    frame = closes(data.draw(st.integers(2, 25)))
    cut = data.draw(st.integers(1, len(frame) - 1))
    purge_size = data.draw(st.integers(0, cut - 1))
    warmup_bars = data.draw(st.integers(0, cut))
    train, test = train_test_split(frame, test_start=frame.index[cut], purge_size=purge_size, warmup_bars=warmup_bars)
    assert len(train) == cut - purge_size
    assert train.index[-1] < frame.index[cut] == test.index[warmup_bars]
    assert len(test) == len(frame) - cut + warmup_bars
