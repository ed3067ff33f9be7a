"""Prices in, in time order: checked tables, where they come from, and how they are split."""

from ml.tradingbots.data.bars import Bars, require_bars
from ml.tradingbots.data.sources import describe_prices, list_sources, load_prices
from ml.tradingbots.data.splits import train_test_split

__all__ = [
    "Bars",
    "describe_prices",
    "list_sources",
    "load_prices",
    "require_bars",
    "train_test_split",
]
