import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from skfolio import model_selection as skfolio_splitters
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, TimeSeriesSplit, cross_val_score
from sklearn.neighbors import KNeighborsRegressor

from ml.tradingbots.data import Bars
from ml.tradingbots.data.splitters import CombinatorialPurgedCV, PanelSplit, PurgedKFold, WalkForwardValidator

quick = settings(deadline=None, derandomize=True, max_examples=80)


def lists(splitter, X, **arguments):
    return [(train.tolist(), test.tolist()) for train, test in splitter.split(X, **arguments)]


def business_days(start="2020-01-15", end="2023-12-29"):
    index = pd.bdate_range(start, end)
    return pd.DataFrame({"close": 1.0 + np.arange(len(index))}, index=index)


def folds_or_nothing(splitter, X):
    """Return the folds, or skip the example where the arguments do not fit the data."""
    try:
        return list(splitter.split(X))
    except ValueError:
        assume(False)


# Walk-forward: by number of folds.


@quick
@given(st.integers(2, 300), st.integers(1, 20), st.sampled_from(["expanding", "rolling"]), st.data())
@example(100, 5, "expanding", None)
@example(103, 5, "expanding", None)
@example(1004, 5, "rolling", None)
def test_a_number_of_folds_is_exact_and_no_fold_is_a_dwarf(n_bars, n_splits, mode, data):
    purge_size, embargo_size = (
        (0, 0) if data is None else (data.draw(st.integers(0, 30)), data.draw(st.integers(0, 10)))
    )
    splitter = WalkForwardValidator(n_splits, mode=mode, purge_size=purge_size, embargo_size=embargo_size)
    folds = folds_or_nothing(splitter, range(n_bars))
    assert len(folds) == splitter.get_n_splits() == n_splits
    sizes = [len(test) for _, test in folds]
    first_test = n_bars - sum(sizes)
    assert max([*sizes, first_test]) - min([*sizes, first_test]) <= 1
    np.testing.assert_array_equal(np.concatenate([test for _, test in folds]), np.arange(first_test, n_bars))
    for train, test in folds:
        start = 0 if mode == "expanding" else test[0] - first_test
        np.testing.assert_array_equal(train, np.arange(start, test[0] - purge_size - embargo_size))


@quick
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 20), st.integers(1, 5))
def test_what_an_error_says_would_fit_does_and_no_more(n_bars, n_splits, purge_size, min_train_size):
    arguments = {"purge_size": purge_size, "min_train_size": min_train_size}
    try:
        folds = list(WalkForwardValidator(n_splits, **arguments).split(range(n_bars)))
    except ValueError as error:
        message = str(error)
        assert f"n_splits={n_splits} does not fit {n_bars} bars" in message
        if "would fit" not in message:
            with pytest.raises(ValueError, match="does not fit"):
                list(WalkForwardValidator(1, **arguments).split(range(n_bars)))
            return
        fitting = int(message.rsplit("n_splits=", 1)[1].split(" ")[0])
        assert fitting < n_splits
        assert len(list(WalkForwardValidator(fitting, **arguments).split(range(n_bars)))) == fitting
        with pytest.raises(ValueError, match="does not fit"):
            list(WalkForwardValidator(fitting + 1, **arguments).split(range(n_bars)))
    else:
        assert all(len(train) >= min_train_size and len(test) >= 1 for train, test in folds)


@quick
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 9))
def test_equal_blocks_are_those_of_scikit_learn(n_splits, block, gap):
    X = np.zeros((block * (n_splits + 1), 2))
    if n_splits > 1 and gap < block:
        theirs = TimeSeriesSplit(n_splits, gap=gap)
        assert lists(WalkForwardValidator(n_splits, purge_size=gap), X) == lists(theirs, X)


@quick
@given(
    st.integers(2, 8),
    st.integers(1, 10),
    st.integers(20, 120),
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_folds_of_a_given_size_are_those_of_scikit_learn(n_splits, test_size, n_bars, gap, train_size):
    assume(n_bars - n_splits * test_size - gap > 0)
    theirs = TimeSeriesSplit(n_splits, test_size=test_size, gap=gap)
    ours = WalkForwardValidator(n_splits, test_size=test_size, purge_size=gap)
    assert lists(ours, range(n_bars)) == lists(theirs, np.zeros(n_bars))
    if train_size is not None and n_bars - n_splits * test_size >= train_size + gap:
        theirs = TimeSeriesSplit(n_splits, test_size=test_size, gap=gap, max_train_size=train_size)
        ours = WalkForwardValidator(
            n_splits, train_size=train_size + gap, test_size=test_size, purge_size=gap, mode="rolling"
        )
        assert lists(ours, range(n_bars)) == lists(theirs, np.zeros(n_bars))


def test_a_training_size_leaves_the_rest_to_the_folds():
    folds = lists(WalkForwardValidator(3, train_size=4, mode="rolling"), range(12))
    assert [test for _, test in folds] == [[4, 5, 6], [7, 8, 9], [10, 11]]
    assert [train for train, _ in folds] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


# Walk-forward: by sizes.


@quick
@given(st.integers(2, 200), st.integers(1, 60), st.integers(1, 40), st.integers(0, 20), st.booleans())
def test_sizes_in_bars_are_those_of_skfolio(n_bars, train_size, test_size, purge_size, expand_train):
    assume(train_size + purge_size + test_size <= n_bars)
    theirs = skfolio_splitters.WalkForward(
        test_size=test_size, train_size=train_size, purged_size=purge_size, expand_train=expand_train
    )
    # Skfolio counts the purged bars beside the training size, we count them in it.
    ours = WalkForwardValidator(
        train_size=train_size + purge_size,
        test_size=test_size,
        purge_size=purge_size,
        mode="expanding" if expand_train else "rolling",
    )
    assert lists(ours, range(n_bars)) == lists(theirs, np.zeros((n_bars, 1)))
    assert ours.get_n_splits(range(n_bars)) == theirs.get_n_splits(np.zeros((n_bars, 1)))


@pytest.mark.parametrize("purge_size", [0, 5])
@pytest.mark.parametrize("mode", ["expanding", "rolling"])
@pytest.mark.parametrize(("n_train", "n_test"), [(12, 3), (6, 1), (24, 12)])
def test_calendar_sizes_are_those_of_skfolio(purge_size, mode, n_train, n_test):
    frame = business_days("2020-01-01", "2024-01-02")
    theirs = skfolio_splitters.WalkForward(
        test_size=n_test, train_size=n_train, freq="MS", purged_size=purge_size, expand_train=mode == "expanding"
    )
    ours = WalkForwardValidator(train_size=f"{n_train}MS", test_size=f"{n_test}MS", purge_size=purge_size, mode=mode)
    assert lists(ours, frame) == lists(theirs, frame)


def test_a_step_longer_or_shorter_than_the_test_spaces_the_folds():
    apart = WalkForwardValidator(train_size=4, test_size=2, step=3)
    assert [test for _, test in lists(apart, range(12))] == [[4, 5], [7, 8], [10, 11]]
    overlapping = WalkForwardValidator(train_size=4, test_size=3, step=1)
    assert [test for _, test in lists(overlapping, range(8))] == [[4, 5, 6], [5, 6, 7]]


def test_calendar_blocks_begin_on_the_calendar():
    frame = business_days()
    report = WalkForwardValidator(train_size="365D", test_size="3MS").purge_report(frame)
    assert report["test_start"].dt.strftime("%Y-%m-%d").tolist()[:3] == ["2021-02-01", "2021-05-03", "2021-08-02"]
    assert report["test_end"].dt.strftime("%Y-%m-%d").tolist()[:3] == ["2021-04-30", "2021-07-30", "2021-10-29"]


def test_a_year_is_whole_where_only_the_next_year_could_follow():
    splitter = WalkForwardValidator(train_size="12MS", test_size="1YS")
    assert splitter.get_n_splits(business_days("2020-01-01", "2022-12-30")) == 2  # A Friday; the next bar is of 2023.
    assert splitter.get_n_splits(business_days("2020-01-01", "2022-12-29")) == 1


def test_every_day_is_tested_once_up_to_the_last_whole_block():
    frame = business_days()
    tests = [test for _, test in WalkForwardValidator(train_size="200D", test_size="2W").split(frame)]
    joined = np.concatenate(tests)
    np.testing.assert_array_equal(joined, np.arange(joined[0], joined[-1] + 1))
    assert {len(test) for test in tests} == {10}


def test_hours_are_counted_from_the_bar_and_days_from_midnight():
    index = pd.date_range("2024-01-01 07:00", periods=24 * 10, freq="h")
    frame = pd.DataFrame({"close": 1.0}, index=index)
    by_hours = WalkForwardValidator(train_size="48h", test_size="24h").purge_report(frame)
    assert by_hours["test_start"].iloc[0] == pd.Timestamp("2024-01-03 07:00", tz="UTC")
    by_days = WalkForwardValidator(train_size=30, test_size="1D").purge_report(frame)
    # Bar 30 is at 13:00 of the second day: its midnight would leave fewer than 30 bars.
    assert by_days["test_start"].iloc[0] == pd.Timestamp("2024-01-03", tz="UTC")


@quick
@given(
    st.sampled_from([50, "365D", "12MS", pd.Timedelta(days=200), pd.offsets.DateOffset(months=7)]),
    st.sampled_from([21, "1MS", "1QS", "2W-MON", pd.offsets.DateOffset(months=1)]),
    st.sampled_from([None, 13, "2MS"]),
    st.sampled_from(["expanding", "rolling"]),
    st.integers(0, 30),
    st.integers(0, 5),
    st.integers(0, 1_000),
)
def test_sizes_keep_time_apart_and_the_future_changes_no_fold(train, test, step, mode, purge, embargo, n_cut):
    frame = business_days().drop(pd.bdate_range("2021-03-01", "2021-05-10"))  # A gap longer than some blocks.
    splitter = WalkForwardValidator(
        train_size=train, test_size=test, step=step, mode=mode, purge_size=purge, embargo_size=embargo
    )
    folds = folds_or_nothing(splitter, frame)
    assert len(folds) == splitter.get_n_splits(frame)
    for train_bars, test_bars in folds:
        assert train_bars[-1] + purge + embargo == test_bars[0] - 1
        assert (np.diff(train_bars) == 1).all()
        assert (np.diff(test_bars) == 1).all()
    known = frame.iloc[:n_cut]
    try:
        before = lists(splitter, known)
    except ValueError:
        return
    assert before == [(a.tolist(), b.tolist()) for a, b in folds][: len(before)]


def test_a_table_and_its_bars_have_the_same_folds():
    frame = business_days().tz_localize("America/New_York")
    splitter = WalkForwardValidator(train_size="1YS", test_size="1QS", purge_size=3)
    assert lists(splitter, Bars.from_frame(frame)) == lists(splitter, frame) == lists(splitter, frame.index)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "give n_splits, or both train_size and test_size; got n_splits=None"),
        ({"train_size": 10}, "give n_splits, or both train_size and test_size"),
        ({"n_splits": 0}, "n_splits must be an integer of 1 or more, got 0"),
        ({"n_splits": 2.0}, r"n_splits must be an integer of 1 or more, got 2\.0"),
        ({"n_splits": True}, "n_splits must be an integer of 1 or more, got True"),
        ({"n_splits": 3, "step": 5}, "step=5 needs test_size"),
        ({"n_splits": 3, "test_size": "3MS"}, "takes test_size and step in bars, got test_size='3MS'"),
        (
            {"n_splits": 3, "mode": "roling"},
            r"mode must be 'expanding' or 'rolling', got 'roling'\. ?Did you mean 'rolling'",
        ),
        ({"n_splits": 3, "purge_size": -1}, "purge_size must be an integer of 0 or more, got -1"),
        ({"n_splits": 3, "embargo_size": 0.5}, r"embargo_size must be an integer of 0 or more, got 0\.5"),
        ({"n_splits": 3, "min_train_size": 0}, "min_train_size must be an integer of 1 or more, got 0"),
        ({"train_size": 0, "test_size": 3}, "train_size must be at least 1 bar, got 0"),
        (
            {"train_size": "soon", "test_size": 3},
            "train_size must be a number of bars or a calendar length .* got 'soon'",
        ),
        ({"train_size": 0.5, "test_size": 3}, "train_size must be a number of bars or a calendar length .* got 0.5"),
        ({"train_size": 10, "test_size": "-3D"}, "test_size must be longer than nothing, got '-3D'"),
        ({"train_size": 10, "test_size": "3ME"}, r"test_size must fall on the starts of periods \('MS'.*got '3ME'"),
    ],
)
def test_impossible_walks_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        WalkForwardValidator(**arguments)


@pytest.mark.parametrize(
    ("arguments", "X", "complaint"),
    [
        ({"n_splits": 10}, range(8), r"n_splits=10 does not fit 8 bars.*n_splits=7 would fit"),
        ({"n_splits": 5, "purge_size": 30}, range(100), r"purge_size=30.*n_splits=2 would fit"),
        ({"n_splits": 1, "purge_size": 90}, range(100), r"does not fit 100 bars.*Use a longer period"),
        (
            {"train_size": 10, "test_size": 5, "purge_size": 10},
            range(99),
            r"fold 0.*larger train_size, at least 11 bars",
        ),
        (
            {"train_size": 90, "test_size": 20},
            range(99),
            r"no whole test block fits: 90 of 99 bars come before.*9 left",
        ),
        ({"train_size": "9D", "test_size": 3}, range(99), r"train_size='9D' is a calendar length.*got range"),
        ({"train_size": 9, "test_size": "6h"}, business_days(), r"test_size must not be shorter than the spacing"),
        ({"train_size": 9, "test_size": 9}, business_days()[::-1], r"row 1 .* is earlier than row 0"),
        ({"n_splits": 2}, pd.concat([business_days()] * 2), r"several rows per date.*PanelSplit"),
    ],
)
def test_data_that_do_not_fit_are_refused(arguments, X, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(WalkForwardValidator(**arguments).split(X))


def test_the_number_of_folds_by_sizes_needs_the_data():
    with pytest.raises(ValueError, match="X is required"):
        WalkForwardValidator(train_size=10, test_size=5).get_n_splits()


def test_what_has_no_length_is_refused():
    with pytest.raises(TypeError, match="X must be a Bars, a DataFrame or something with a length, got int"):
        list(WalkForwardValidator(3).split(7))


# K folds, and their combinations.


@quick
@given(st.integers(2, 150), st.integers(2, 12), st.integers(0, 12), st.integers(0, 12))
def test_each_bar_is_tested_once_and_training_keeps_its_distance(n_bars, n_splits, purge_size, embargo_size):
    folds = folds_or_nothing(PurgedKFold(n_splits, purge_size, embargo_size), range(n_bars))
    assert len(folds) == n_splits
    np.testing.assert_array_equal(np.concatenate([test for _, test in folds]), np.arange(n_bars))
    bars = np.arange(n_bars)
    for train, test in folds:
        before, after = bars < test[0] - purge_size, bars > test[-1] + purge_size + embargo_size
        np.testing.assert_array_equal(train, bars[before | after])


@quick
@given(st.integers(2, 60), st.integers(2, 10))
def test_without_purge_k_folds_are_those_of_scikit_learn(n_bars, n_splits):
    assume(n_bars >= n_splits)
    assert lists(PurgedKFold(n_splits), range(n_bars)) == lists(KFold(n_splits), np.zeros(n_bars))


@quick
@given(st.integers(3, 8), st.integers(2, 5), st.integers(4, 12), st.integers(0, 4), st.integers(0, 4))
def test_combinations_are_those_of_skfolio(n_folds, n_test_folds, fold_size, purge_size, embargo_size):
    assume(n_test_folds < n_folds)
    assume(purge_size + embargo_size < fold_size - 1)
    X = np.zeros((n_folds * fold_size, 1))
    theirs = skfolio_splitters.CombinatorialPurgedCV(n_folds, n_test_folds, purge_size, embargo_size)
    ours = CombinatorialPurgedCV(n_folds, n_test_folds, purge_size, embargo_size)
    expected = [(train.tolist(), np.concatenate(tests).tolist()) for train, tests in theirs.split(X) if len(train)]
    assume(len(expected) == theirs.n_splits)
    assert lists(ours, X) == expected
    assert ours.get_n_splits() == theirs.n_splits
    np.testing.assert_array_equal(ours.paths(), theirs.recombined_paths.T)


@pytest.mark.parametrize(("n_bars", "n_folds"), [(29, 10), (30, 10), (31, 7), (10, 10)])
def test_no_bar_is_left_out_of_the_folds(n_bars, n_folds):
    cv = CombinatorialPurgedCV(n_folds, 2)
    folds = cv.folds(range(n_bars))
    np.testing.assert_array_equal(np.concatenate(folds), np.arange(n_bars))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    tested = np.bincount(np.concatenate([test for _, test in cv.split(range(n_bars))]), minlength=n_bars)
    assert (tested == n_folds - 1).all()


@quick
@given(st.integers(2, 7), st.integers(1, 6), st.integers(7, 60))
def test_every_path_tests_every_bar_once(n_folds, n_test_folds, n_bars):
    assume(n_test_folds < n_folds)
    cv = CombinatorialPurgedCV(n_folds, n_test_folds)
    folds, tests = cv.folds(range(n_bars)), [test for _, test in cv.split(range(n_bars))]
    paths = cv.paths()
    assert paths.shape == (math.comb(n_folds - 1, n_test_folds - 1), n_folds)
    assert all(np.isin(folds[fold], tests[split]).all() for path in paths for fold, split in enumerate(path))
    used = {(split, fold) for path in paths for fold, split in enumerate(path)}
    assert len(used) == paths.size == cv.get_n_splits() * n_test_folds


@quick
@given(st.integers(3, 7), st.integers(1, 4), st.integers(20, 90), st.integers(0, 6), st.integers(0, 6))
def test_no_training_label_meets_a_test_label(n_folds, n_test_folds, n_bars, horizon, embargo_size):
    assume(n_test_folds < n_folds)
    cv = CombinatorialPurgedCV(n_folds, n_test_folds, purge_size=horizon, embargo_size=embargo_size)
    for train, test in folds_or_nothing(cv, range(n_bars)):
        distance = train[:, None] - test[None, :]
        assert not ((distance >= -horizon) & (distance <= horizon + embargo_size)).any()


def test_one_test_fold_is_k_folds():
    combined, folds = CombinatorialPurgedCV(5, 1, 2, 3), PurgedKFold(5, 2, 3)
    assert lists(combined, range(43)) == lists(folds, range(43))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: PurgedKFold(1), "n_splits must be an integer of 2 or more, got 1"),
        (lambda: list(PurgedKFold(5).split(range(3))), "n_splits=5 needs at least 5 bars, got 3. n_splits=3 would fit"),
        (
            lambda: list(PurgedKFold(2, 50).split(range(60))),
            r"fold 0 has nothing left to learn from: of 60 bars 30 are",
        ),
        (lambda: CombinatorialPurgedCV(5, 5), "n_test_folds must be less than n_folds=5, got 5"),
        (lambda: CombinatorialPurgedCV(40, 20), r"make 137,846,528,820 splits.*Use fewer folds"),
        (
            lambda: list(CombinatorialPurgedCV(10).split(range(8))),
            "n_folds=10 needs at least 10 bars, got 8. n_folds=8",
        ),
    ],
)
def test_impossible_folds_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# Panels.


def panel(n_dates=40, seed=0):
    """A long table of three assets, some rows missing, in no order."""
    rng = np.random.default_rng(seed)
    dates = pd.bdate_range("2024-01-01", periods=n_dates)
    index = pd.MultiIndex.from_product([["AAA", "BBB", "CCC"], dates], names=["asset", "date"])
    rows = rng.permutation(len(index))[: int(0.9 * len(index))]
    return pd.DataFrame({"signal": rng.standard_normal(len(rows))}, index=index[rows])


@pytest.mark.parametrize(
    "splitter",
    [
        WalkForwardValidator(4, purge_size=3),
        WalkForwardValidator(train_size="2W", test_size="1W"),
        PurgedKFold(4, 3, 2),
        CombinatorialPurgedCV(5, 2, 1, 1),
    ],
)
def test_rows_of_one_date_are_on_one_side(splitter):
    table = panel()
    dates = table.index.get_level_values("date")
    days = dates.unique().sort_values()
    by_date = list(splitter.split(days))
    folds = list(PanelSplit(splitter).split(table))
    assert len(folds) == len(by_date) == PanelSplit(splitter).get_n_splits(table)
    for (train, test), (train_days, test_days) in zip(folds, by_date, strict=True):
        assert set(dates[train]) == set(days[train_days])
        assert set(dates[test]) == set(days[test_days])
        assert len(train) == dates.isin(days[train_days]).sum()


def test_a_column_of_dates_does_what_an_index_does():
    table = panel()
    flat = table.reset_index()
    splitter = PanelSplit(PurgedKFold(4, 2, 2))
    assert lists(splitter, table) == lists(splitter, flat, groups=flat["date"])
    assert lists(splitter, table) == lists(splitter, table.reset_index("asset"))


def test_the_report_of_a_panel_counts_dates_and_rows():
    table = panel()
    splitter = PanelSplit(WalkForwardValidator(3, purge_size=2))
    report = splitter.purge_report(table)
    folds = lists(splitter, table)
    assert report["n_train_rows"].tolist() == [len(train) for train, _ in folds]
    assert report["n_test_rows"].tolist() == [len(test) for _, test in folds]
    assert report["n_test_bars"].sum() + report["n_train_bars"].iloc[0] + 2 == 40


@pytest.mark.parametrize(
    ("X", "groups", "complaint"),
    [
        (range(5), None, "a panel is split by date: X needs an index with one level of timestamps, it has 0"),
        (range(5), list("abcde"), "groups must hold the date of each row as timestamps"),
        (range(5), pd.date_range("2024", periods=4), "groups must hold one date per row: X has 5 rows, groups 4"),
        (range(2), pd.DatetimeIndex(["2024-01-01", None]), "every row needs a date, row 1 has none"),
    ],
)
def test_panels_without_dates_are_refused(X, groups, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(PanelSplit(WalkForwardValidator(2)).split(X, groups=groups))


def test_a_panel_wraps_splitters_of_bars_only():
    with pytest.raises(TypeError, match="splitter must be a splitter of bars, such as WalkForwardValidator, got KFold"):
        PanelSplit(KFold())


def test_a_long_table_is_not_split_by_row():
    with pytest.raises(ValueError, match="several rows per date"):
        list(WalkForwardValidator(2).split(panel()))


# All of them.

ALL = [
    WalkForwardValidator(4, purge_size=2, embargo_size=1),
    WalkForwardValidator(train_size=30, test_size=10, purge_size=3, mode="rolling"),
    PurgedKFold(4, 2, 1),
    CombinatorialPurgedCV(5, 2, 2, 1),
]


@pytest.mark.parametrize("splitter", ALL, ids=repr)
def test_the_report_accounts_for_every_fold(splitter):
    frame = business_days().iloc[:100]
    report = splitter.purge_report(frame)
    folds = list(splitter.split(frame))
    assert report.index.name == "fold"
    for (train, test), row in zip(folds, report.itertuples(), strict=True):
        assert (row.n_train_bars, row.n_test_bars) == (len(train), len(test))
        assert (row.train_start, row.train_end) == tuple(frame.index[train[[0, -1]]].tz_localize("UTC"))
        assert (row.test_start, row.test_end) == tuple(frame.index[test[[0, -1]]].tz_localize("UTC"))
        if isinstance(splitter, WalkForwardValidator):
            assert row.n_purged == splitter.purge_size
            assert row.n_embargoed == splitter.embargo_size
        else:
            assert row.n_train_bars + row.n_test_bars + row.n_purged + row.n_embargoed == 100
    by_position = splitter.purge_report(range(100))
    assert by_position["test_end"].tolist() == [int(test[-1]) for _, test in folds]


@pytest.mark.parametrize("splitter", ALL, ids=repr)
def test_scikit_learn_takes_it(splitter):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 3)), rng.standard_normal(100)
    assert len(cross_val_score(Ridge(), X, y, cv=splitter)) == splitter.get_n_splits(X)
    search = clone(GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=splitter))
    assert search.fit(X, y).n_splits_ == splitter.get_n_splits(X)


@pytest.mark.parametrize("splitter", [*ALL, PanelSplit(PurgedKFold(3))], ids=repr)
def test_the_printed_form_makes_the_same_splitter(splitter):
    again = eval(repr(splitter))
    assert repr(again) == repr(splitter) == repr(pickle.loads(pickle.dumps(splitter)))


def test_the_printed_form_is_that_of_scikit_learn():
    assert repr(PurgedKFold(4)) == "PurgedKFold(embargo_size=0, n_splits=4, purge_size=0)"
    assert repr(TimeSeriesSplit(4)) == "TimeSeriesSplit(gap=0, max_train_size=None, n_splits=4, test_size=None)"


# The leak canary.


def canary(cv, seed):
    """Return the out-of-sample R² of one nearest neighbour in time, where there is nothing to predict."""
    rng = np.random.default_rng(seed)
    n_bars, horizon = 2_000, 20
    noise = rng.standard_normal(n_bars + horizon)
    label = np.convolve(noise, np.ones(horizon), mode="valid")[1:]  # Sum of the next 20 bars' noise.
    time = np.arange(n_bars, dtype=np.float64)[:, None]
    predictions = np.empty(n_bars)
    for train, test in cv.split(time):
        predictions[test] = KNeighborsRegressor(1).fit(time[train], label[train]).predict(time[test])
    return 1.0 - np.mean((label - predictions) ** 2) / np.var(label)


def test_overlapping_labels_of_noise_score_only_where_folds_leak():
    shuffled = [canary(KFold(5, shuffle=True, random_state=seed), seed) for seed in range(5)]
    unpurged_error = [canary(PurgedKFold(50), seed) for seed in range(5)]
    purged = [canary(PurgedKFold(50, purge_size=20, embargo_size=20), seed) for seed in range(5)]
    # A neighbour one bar away shares 19 of 20 terms: R² near 0.9.
    assert min(shuffled) > 0.8
    # Far from the test, one neighbour is an independent draw of the label: R² near -1.
    assert max(purged) < 0.0
    assert np.mean(unpurged_error) > np.mean(purged) + 0.3
