"""Prices by name, and stretches of them that begin with full windows."""

from __future__ import annotations

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.data import Bars, load_prices
from ml.tradingbots.data.timestamps import utc_timestamp


def load_bars(source: str) -> Bars:
    """Load prices and check them; errors name the source."""
    try:
        return Bars.from_frame(load_prices(source))
    except FileNotFoundError:
        raise
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from error


def context_bars(bars: Bars, config: TradingEnvConfig, start: str, end: str | None = None) -> int:
    """How many bars before `start` fill windows and indicators, so that the first decision falls on its first bar.

    Args:
        bars: all prices.
        config: settings of the environment.
        start: first instant of the period.
        end: first instant after it; None is the end of the data.

    Raises:
        ValueError: fewer bars come before `start`.
    """
    first = int(bars.timestamps.searchsorted(utc_timestamp(start, "start")))
    stop = bars.n_bars if end is None else int(bars.timestamps.searchsorted(utc_timestamp(end, "end")))
    if first >= stop:
        raise ValueError(
            f"no bar lies between {start} and {end or 'the end'}: the prices run from {bars.timestamps[0]} to "
            f"{bars.timestamps[-1]}"
        )
    needed = Market(bars.slice(0, stop), config).first_bar
    if needed > first:
        raise ValueError(
            f"{needed} bars are needed before {start} to fill windows and indicators, and {first} are there; start at "
            f"{bars.timestamps[needed]} or later, or bring earlier prices"
        )
    # Columns of the user's own may be undefined at the start of the data only, and then need less further on.
    while (found := Market(bars.slice(first - needed, stop), config).first_bar) < needed:
        needed = found
    return needed


def with_context(bars: Bars, config: TradingEnvConfig, start: str | None, end: str | None = None) -> Bars:
    """Return the bars of [start, end) with the context before them that fills windows; None is the end of the data."""
    if start is None:
        return bars.between(None, end)
    first = int(bars.timestamps.searchsorted(utc_timestamp(start, "start")))
    context = context_bars(bars, config, start, end)
    stop = bars.n_bars if end is None else int(bars.timestamps.searchsorted(utc_timestamp(end, "end")))
    return bars.slice(first - context, stop)
