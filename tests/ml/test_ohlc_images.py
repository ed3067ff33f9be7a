"""Images are the charts they claim to be, pixel by pixel, and know nothing but their own window."""

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.forecast_table import ForecastTable
from ml.tradingbots.components.ohlc_images import ImageWindows, chart_columns, ohlc_images, panel_rows
from ml.tradingbots.data.bars import Bars

# Five bars between 10 and 19: ten rows, one for each whole price, 19 at the top.
OPEN = [12.0, 14.0, 16.0, 15.0, 11.0]
HIGH = [15.0, 17.0, 19.0, 16.0, 13.0]
LOW = [11.0, 13.0, 14.0, 11.0, 10.0]
CLOSE = [14.0, 16.0, 15.0, 12.0, 13.0]
VOLUME = [10.0, 20.0, 0.0, 5.0, 14.0]


def draw(*columns, height=10, **named):
    image = ohlc_images(
        *(torch.from_numpy(np.array([column], dtype=np.float64)) for column in columns),
        **{name: torch.from_numpy(np.array([column], dtype=np.float64)) for name, column in named.items()},
        height=height,
    )
    return ["".join(".#"[pixel] for pixel in row) for row in image[0, 0]]


def random_windows(batch, size, seed):
    rng = np.random.default_rng(seed)
    close = 50.0 * np.exp(np.cumsum(0.01 * rng.standard_normal((batch, size)), 1))
    opening = close * np.exp(0.005 * rng.standard_normal((batch, size)))
    high = np.maximum(opening, close) * np.exp(0.005 * rng.random((batch, size)))
    low = np.minimum(opening, close) * np.exp(-0.005 * rng.random((batch, size)))
    volume, mean = rng.lognormal(5.0, 1.0, (batch, size)), close * 0.99
    return tuple(torch.from_numpy(values) for values in (opening, high, low, close, volume, mean))


def test_five_bars_are_drawn_as_with_a_pencil():
    assert draw(OPEN, HIGH, LOW, CLOSE) == [
        ".......#.......",  # 19
        ".......#.......",
        "....#..#.......",
        "....####..#....",  # 16: the close of the second bar, the open of the third
        ".#..#..####....",
        ".####..#..#....",  # 14
        ".#..#.....#..##",
        "##........##.#.",  # 12
        ".#........#.##.",
        ".............#.",  # 10
    ]


def test_the_largest_volume_fills_the_bottom_fifth_and_the_others_their_share_of_it():
    # 26 rows: 20 for prices, one between, 5 for volume, in which 20 units are 5 rows; 14 are 3.5, which goes up.
    picture = draw(OPEN, HIGH, LOW, CLOSE, VOLUME, height=26)
    assert picture[20] == "." * 15
    assert picture[21:] == [
        "....#..........",
        "....#........#.",
        ".#..#........#.",
        ".#..#........#.",
        ".#..#.....#..#.",
    ]
    assert picture[:20] == draw(OPEN, HIGH, LOW, CLOSE, height=20)
    assert draw(OPEN, HIGH, LOW, CLOSE, [0.0] * 5, height=26)[21:] == ["." * 15] * 5


@pytest.mark.parametrize(
    ("bars", "height", "n_price", "n_volume"), [(5, 32, 25, 6), (20, 64, 51, 12), (60, 96, 76, 19)]
)
def test_panels_have_the_sizes_of_the_paper(bars, height, n_price, n_volume):
    assert panel_rows(height, volume=True) == (n_price, n_volume)
    image = ohlc_images(*random_windows(2, bars, seed=0), height=height)
    assert image.shape == (2, 1, height, 3 * bars)
    marked = image[:, 0].any(2)
    assert marked[:, [0, n_price - 1, height - n_volume, height - 1]].all()  # Every panel is used from edge to edge.
    assert not marked[:, n_price].any()


def test_moving_averages_are_a_line_from_middle_to_middle_that_shares_the_scale():
    flat = [13.0, 13.0, 13.0]
    assert draw(flat, flat, flat, flat, moving_average=[10.0, 13.0, 19.0]) == [
        ".......#.",  # 19
        ".........",
        "......#..",  # 17: two thirds of the way from 13 to 19
        ".........",
        ".....#...",
        ".........",
        "#########",  # 13: the bars
        "...#.....",
        "..#......",
        ".#.......",  # 10: the line alone is here
    ]


def test_a_mark_in_the_open_leaves_its_place_black_where_the_open_is_missing():
    with_gap = draw([float("nan"), *OPEN[1:]], HIGH, LOW, CLOSE)
    whole = draw(OPEN, HIGH, LOW, CLOSE)
    assert [row[1:] for row in with_gap] == [row[1:] for row in whole]
    assert [row[0] for row in whole].count("#") == 1
    assert [row[0] for row in with_gap].count("#") == 0


@pytest.mark.parametrize("price", [13.0, 0.1])
def test_a_window_that_stands_still_is_one_line_in_the_middle(price):
    # A mean of tenths is off by a rounding, which must not become the scale.
    still, mean = [price] * 3, [price, price * (1.0 + 2e-16), price]
    picture = draw(still, still, still, still, [0.0] * 3, moving_average=mean, height=17)
    assert [number for number, row in enumerate(picture) if "#" in row] == [6]  # 13 rows of prices.
    assert picture[6] == "#" * 9


@pytest.mark.parametrize("factor", [1e3, 1e-4, 7.3])
def test_prices_and_volumes_times_a_constant_give_the_same_image(factor):
    prices = random_windows(500, 20, seed=1)
    image = ohlc_images(*prices, height=64)
    assert torch.equal(ohlc_images(*(values * factor for values in prices), height=64), image)
    # Prices of whole ticks lie halfway between two rows now and then.
    ticks = tuple((values * 4.0).round() / 4.0 for values in prices)
    assert torch.equal(ohlc_images(*(values * factor for values in ticks), height=64), ohlc_images(*ticks, height=64))


def test_a_window_alone_is_drawn_as_in_a_batch():
    prices = random_windows(20, 5, seed=2)
    image = ohlc_images(*prices, height=32)
    for row in range(20):
        assert torch.equal(ohlc_images(*(values[row : row + 1] for values in prices), height=32)[0], image[row])


def test_drawing_never_waits_for_its_device():
    # Tensors on "meta" have no numbers: reading one, or mixing devices, raises.
    prices = [values.to("meta") for values in random_windows(3, 5, seed=0)]
    image = ohlc_images(*prices, height=32)
    assert (image.device.type, image.shape, image.dtype) == ("meta", (3, 1, 32, 15), torch.uint8)


def test_an_image_of_too_few_rows_is_refused():
    with pytest.raises(ValueError, match="height must be at least 8 rows, got 7"):
        draw(OPEN, HIGH, LOW, CLOSE, height=7)


def test_windows_of_a_table_are_those_of_the_asset_and_the_bar_asked_for():
    opening, high, low, close, volume, _ = (values.numpy().T for values in random_windows(2, 60, seed=3))
    timestamps = pd.date_range("2024-01-01", periods=60)
    bars = Bars(timestamps, ("A", "B"), close=close, open=opening, high=high, low=low, volume=volume)
    columns = chart_columns(bars, window_size=8, volume=True, moving_average=True)
    table = ForecastTable.of_columns(bars, columns, window_size=8, horizons=(1,), volatility_bars=0)
    assert table.first_bar == 14  # Eight bars, and seven before them for the mean at the first.
    windows = ImageWindows(table, height=32, volume=True, moving_average=True, device=torch.device("cpu"))
    drawn = windows(torch.tensor([1, 0]), torch.tensor([20, 59]))
    for row, (asset, bar) in enumerate([(1, 20), (0, 59)]):
        of_asset = [values[:, asset] for values in (opening, high, low, close, volume)]
        shown = [values[bar - 7 : bar + 1] for values in of_asset]
        mean = [of_asset[3][t - 7 : t + 1].mean() for t in range(bar - 7, bar + 1)]
        found = ["".join(".#"[pixel] for pixel in line) for line in drawn[row, 0]]
        assert found == draw(*shown, moving_average=mean, height=32)


@pytest.mark.parametrize("missing", ["open", "high", "low", "volume"])
def test_a_missing_column_is_named(missing):
    columns = {"open": OPEN, "high": HIGH, "low": LOW, "volume": VOLUME}
    given = {name: np.array(values)[:, None] for name, values in columns.items() if name != missing}
    timestamps = pd.date_range("2024-01-01", periods=5)
    bars = Bars(timestamps, ("A",), close=np.array(CLOSE)[:, None], **given)
    with pytest.raises(ValueError, match=f"no column '{missing}'"):
        chart_columns(bars, window_size=2, volume=True, moving_average=False)
    if missing == "volume":
        assert chart_columns(bars, window_size=2, volume=False, moving_average=False).shape == (5, 1, 4)
