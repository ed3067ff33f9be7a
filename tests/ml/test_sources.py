import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.data import Bars, describe_prices, list_sources, load_prices


def prices(n_bars: int = 4) -> pd.DataFrame:
    close = 100.0 + np.arange(n_bars) / 3.0
    columns = {"open": close - 0.5, "high": close + 1.0, "low": close - 1.0, "close": close, "volume": 7.0}
    return pd.DataFrame(columns, index=pd.date_range("2024-01-01", periods=n_bars, name="date"))


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("source", "n_bars", "assets", "fields"),
    [
        ("sp500", 5031, 1, ("open", "high", "low", "close", "volume")),
        ("nasdaq", 5031, 1, ("open", "high", "low", "close", "volume")),
        ("sp500-stocks", 8313, 20, ("close",)),
    ],
)
def test_installed_data_sets_load_and_are_valid(source, n_bars, assets, fields):
    description = describe_prices(load_prices(source))
    assert description.n_bars == n_bars
    assert len(description.assets) == assets
    assert description.fields == fields
    assert description.extra == ()
    assert description.bars_per_year == 252.0


def test_open_repeats_the_last_close_in_the_sp500_but_not_in_the_nasdaq():
    # Shares quoted in docs/data.md, counted once from the raw tables: 2004 and 8 of 5030 bars.
    assert describe_prices(load_prices("sp500")).open_equals_last_close_share == 2004 / 5030
    assert describe_prices(load_prices("nasdaq")).open_equals_last_close_share == 8 / 5030
    early = describe_prices(Bars.from_frame(load_prices("sp500")).between(end="2006"))
    assert early.open_equals_last_close_share == pytest.approx(0.963, abs=0.0005)


def test_a_loaded_data_set_belongs_to_the_caller():
    frame = load_prices("sp500")
    frame.loc[:, "close"] = 0.0
    assert (load_prices("sp500")["close"] > 0.0).all()


def test_every_source_is_listed_with_one_line():
    sources = list_sources()
    assert list(sources)[:3] == ["sp500", "nasdaq", "sp500-stocks"]
    assert all(line and "\n" not in line for line in sources.values())
    assert "hindsight" in sources["sp500-stocks"]
    assert any("yfinance" in name for name in sources)


def test_closes_have_no_open_to_describe():
    assert describe_prices(prices()[["close"]]).open_equals_last_close_share is None


def test_one_bar_has_no_frequency_to_describe():
    description = describe_prices(prices(1))
    assert (description.bars_per_year, description.open_equals_last_close_share) == (None, None)


def test_description_counts_opens_at_the_last_close():
    frame = prices(5)
    frame.loc[frame.index[2], "open"] = frame["close"].iloc[1]
    description = describe_prices(frame.assign(feature=1.0))
    assert description.open_equals_last_close_share == 0.25
    assert description.extra == ("feature",)
    assert (description.first, description.last) == (
        frame.index[0].tz_localize("UTC"),
        frame.index[-1].tz_localize("UTC"),
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".CSV"])
def test_a_written_table_is_read_back_exactly(tmp_path, suffix):
    path = tmp_path / f"prices{suffix}"
    (prices().to_parquet if suffix == ".parquet" else prices().to_csv)(path)
    pd.testing.assert_frame_equal(load_prices(str(path)), prices(), check_freq=False)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_checked_bars_are_read_back_exactly(tmp_path, suffix):
    frame = Bars.from_frame(load_prices("sp500-stocks")).slice(0, 50).to_frame()
    path = tmp_path / f"prices{suffix}"
    (frame.to_parquet if suffix == ".parquet" else frame.to_csv)(path)
    pd.testing.assert_frame_equal(load_prices(str(path)), frame, check_names=False, check_freq=False)


def test_a_table_of_several_assets_and_fields_survives_parquet(tmp_path):
    frame = Bars.from_frame(pd.concat({"AAA": prices(), "BBB": prices()}, axis=1)).to_frame()
    frame.to_parquet(tmp_path / "prices.parquet")
    loaded = Bars.from_frame(load_prices(str(tmp_path / "prices.parquet")))
    assert loaded.assets == ("AAA", "BBB")
    np.testing.assert_array_equal(loaded.high, np.column_stack([prices()["high"]] * 2))


@pytest.mark.parametrize("name", ["Date", "DATETIME", "timestamp", "Time"])
def test_the_date_column_of_a_csv_is_found_by_name(tmp_path, name):
    source = write(tmp_path / "prices.csv", f"close,{name}\n1.5,2024-01-02\n2.5,2024-01-03\n")
    frame = load_prices(source)
    assert frame.index.equals(pd.DatetimeIndex(["2024-01-02", "2024-01-03"]))
    assert list(frame.columns) == ["close"]


def test_without_a_name_the_first_column_of_a_csv_holds_the_dates(tmp_path):
    source = write(tmp_path / "prices.csv", "Tag,AAA,BBB\n2024-01-02,1,2\n2024-01-03,3,4\n")
    assert Bars.from_frame(load_prices(source)).assets == ("AAA", "BBB")


def test_the_date_column_of_a_parquet_file_is_found_by_name(tmp_path):
    prices().reset_index().to_parquet(tmp_path / "prices.parquet", index=False)
    pd.testing.assert_frame_equal(load_prices(str(tmp_path / "prices.parquet")), prices(), check_freq=False)


def test_a_parquet_file_without_dates_numbers_its_bars(tmp_path):
    prices().reset_index(drop=True).to_parquet(tmp_path / "prices.parquet")
    bars = Bars.from_frame(load_prices(str(tmp_path / "prices.parquet")))
    assert bars.timestamps[0] == pd.Timestamp("2000-01-03", tz="UTC")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("20240102", "2024-01-02"),
        ("2024-01-02 16:00", "2024-01-02 16:00"),
        ("2024-01-02T16:00:00Z", "2024-01-02 16:00+00:00"),
        ("2024-01-02 16:00:00-05:00", "2024-01-02 21:00+00:00"),
    ],
)
def test_iso_dates_of_a_csv_are_understood(tmp_path, written, expected):
    frame = load_prices(write(tmp_path / "prices.csv", f"date,close\n{written},1.0\n"))
    assert frame.index[0] == pd.Timestamp(expected)


def test_a_csv_across_a_clock_change_is_read_as_utc(tmp_path):
    text = "date,close\n2024-03-08 16:00:00-05:00,1\n2024-03-11 16:00:00-04:00,2\n"
    assert list(load_prices(write(tmp_path / "prices.csv", text)).index.hour) == [21, 20]


@pytest.mark.parametrize(
    "written", ["31/01/2024", "01/02/2024", "January", "", "1704153600", "2024-02-30", "2024", "2024-02"]
)
def test_other_dates_of_a_csv_are_refused(tmp_path, written):
    source = write(tmp_path / "prices.csv", f"date,close\n2024-01-02,1.0\n{written},2.0\n")
    with pytest.raises(ValueError, match=r"column 'date' of .* at row 1 is .*ISO 8601 \(2020-01-31\).*pd\.to_datetime"):
        load_prices(source)


def test_seconds_since_1970_are_refused_rather_than_guessed(tmp_path):
    source = write(tmp_path / "prices.csv", "time,close\n1704153600,1.0\n1704240000,2.0\n")
    with pytest.raises(ValueError, match=r"column 'time' of .* at row 0 is '1704153600'.*unit='s'"):
        load_prices(source)


def test_dates_with_and_without_a_time_zone_are_refused(tmp_path):
    source = write(tmp_path / "prices.csv", "date,close\n2024-01-02 16:00,1.0\n2024-01-03 16:00+00:00,2.0\n")
    with pytest.raises(
        ValueError, match=r"row 0 is '2024-01-02 16:00', row 1 is '2024-01-03 16:00\+00:00'.*Give every row"
    ):
        load_prices(source)


def test_a_csv_without_dates_is_refused(tmp_path):
    source = write(tmp_path / "prices.csv", "open,close\n1.0,1.0\n")
    with pytest.raises(ValueError, match=r"has no date column: .*the first, 'open', holds numbers.*index_label='date'"):
        load_prices(source)


def test_a_csv_with_two_date_columns_is_refused(tmp_path):
    source = write(tmp_path / "prices.csv", "date,time,close\n2024-01-02,16:00,1.0\n")
    with pytest.raises(ValueError, match=r"several date columns: 'date', 'time'; one is required"):
        load_prices(source)


@pytest.mark.parametrize("name", ["prices.csv", "prices.csv.gz", "prices.parquet"])
def test_a_broken_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"" if name == "prices.csv" else b"\x1f\x8b\x08\x00 no such format")
    with pytest.raises(ValueError, match=r"cannot be read as (CSV|Parquet) .*Check that the file is complete"):
        load_prices(str(path))


def test_a_truncated_archive_is_refused(tmp_path):
    path = tmp_path / "prices.csv.gz"
    prices(200).to_csv(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as CSV"):
        load_prices(str(path))


def test_a_missing_file_is_refused_with_its_neighbours(tmp_path):
    prices().to_csv(tmp_path / "prices.csv")
    with pytest.raises(FileNotFoundError, match=r"no file .*price\.csv\. Did you mean 'prices\.csv'\?"):
        load_prices(str(tmp_path / "price.csv"))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"its folder .*nowhere does not exist"):
        load_prices(str(tmp_path / "nowhere" / "prices.csv"))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "prices.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder, and a file is required"):
        load_prices(str(tmp_path / "prices.csv"))


@pytest.mark.parametrize("name", ["prices.pkl", "prices.pickle", "prices.joblib"])
def test_a_pickle_is_never_read(tmp_path, name):
    prices().to_pickle(tmp_path / name)
    with pytest.raises(ValueError, match=r"is a pickle, which can run any code.*frame\.to_parquet"):
        load_prices(str(tmp_path / name))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one ending in \.csv, \.csv\.gz, \.parquet is required"):
        load_prices(str(tmp_path / "prices.xlsx"))


@pytest.mark.parametrize(
    ("source", "meant"), [("sp50", "sp500"), ("SP500", "sp500"), ("nasdac", "nasdaq"), ("sp500_stocks", "sp500-stocks")]
)
def test_an_unknown_source_is_refused_with_what_may_have_been_meant(source, meant):
    with pytest.raises(
        ValueError, match=rf"unknown source '{source}'\. Did you mean '{meant}'\? Available: sp500, nasdaq, "
    ):
        load_prices(source)


def test_an_unknown_source_unlike_any_other_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"unknown source 'gold'\. Available: sp500, nasdaq, sp500-stocks, "):
        load_prices("gold")


def test_yfinance_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "yfinance", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'tradingbots[data]'")):
        load_prices("yfinance:AAPL,MSFT")


@pytest.mark.parametrize("source", ["yfinance:", "yfinance:AAPL,,MSFT"])
def test_yfinance_without_tickers_is_refused(source):
    with pytest.raises(ValueError, match=r"must name tickers separated by commas, as in 'yfinance:AAPL,MSFT'"):
        load_prices(source)


def stand_in_for_yfinance(monkeypatch, frame):
    """Put a module in yfinance's place that returns a table in yfinance's shape; tests use no network."""
    module = types.ModuleType("yfinance")
    module.download = lambda tickers, **_: frame
    monkeypatch.setitem(sys.modules, "yfinance", module)


def test_yfinance_tables_are_cut_to_the_days_all_tickers_have(monkeypatch):
    frame = pd.concat({"AAPL": prices(), "MSFT": prices().iloc[1:]}, axis=1, names=["Ticker", "Price"]).swaplevel(
        axis=1
    )
    stand_in_for_yfinance(monkeypatch, frame.rename(columns=str.title, level=0).sort_index(axis=1))
    bars = Bars.from_frame(load_prices("yfinance:AAPL, MSFT"))
    assert bars.assets == ("AAPL", "MSFT")
    assert bars.n_bars == 3


@pytest.mark.parametrize("nothing", [None, pd.DataFrame(), pd.DataFrame({"Close": [np.nan]})])
def test_yfinance_without_prices_is_refused(monkeypatch, nothing):
    stand_in_for_yfinance(monkeypatch, nothing)
    with pytest.raises(ValueError, match=r"no day on which all of AAPL, NOPE have prices\. Check the spelling"):
        load_prices("yfinance:AAPL,NOPE")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    closes=st.lists(st.floats(1e-150, 1e150), min_size=1, max_size=20),
    offset=st.sampled_from([None, "UTC", "Asia/Kolkata"]),
    microseconds=st.integers(0, 10**15),
)
def test_every_close_and_time_survives_a_csv(tmp_path_factory, closes, offset, microseconds):
    start = pd.Timestamp("1990-01-01", tz=offset) + pd.Timedelta(microseconds, unit="us")
    frame = pd.DataFrame({"close": closes}, index=pd.date_range(start, periods=len(closes), freq="37min"))
    path = tmp_path_factory.mktemp("csv") / "prices.csv"
    frame.to_csv(path)
    expected, loaded = Bars.from_frame(frame), Bars.from_frame(load_prices(str(path)))
    assert loaded.timestamps.equals(expected.timestamps)
    np.testing.assert_array_equal(loaded.close, expected.close)
