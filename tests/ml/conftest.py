"""Builders shared by the test modules, as fixtures: small seeded price tables and a simulator in units and cash."""

import numpy as np
import pandas as pd
import pytest

ASSETS = ("AAA", "BBB", "CCC", "DDD")


def build_prices(
    n_bars=60,
    n_assets=1,
    *,
    seed=0,
    has_open=True,
    volume=False,
    extra=False,
    volatility=0.02,
    freq="B",
    start="2020-01-01",
):
    """Return a table of random prices that `Bars.from_frame` accepts; the close moves by `volatility` a bar."""
    rng = np.random.default_rng(seed)
    index = pd.date_range(start, periods=n_bars, freq=freq)
    gap = 1.0 + 0.5 * volatility * rng.standard_normal((n_bars, n_assets)) if has_open else np.ones((n_bars, n_assets))
    session = 1.0 + volatility * rng.standard_normal((n_bars, n_assets))
    close = 100.0 * np.cumprod(gap * session, axis=0)
    columns = {"close": close}
    if has_open:
        columns = {"open": close / session, **columns}
    if volume:
        columns["volume"] = rng.uniform(1e4, 2e4, (n_bars, n_assets))
    if extra:
        columns["signal"] = rng.standard_normal((n_bars, n_assets))
    if n_assets == 1:
        return pd.DataFrame({name: values[:, 0] for name, values in columns.items()}, index=index)
    names = pd.MultiIndex.from_product([list(columns), ASSETS[:n_assets]], names=["field", "asset"])
    return pd.DataFrame(np.hstack(list(columns.values())), index=index, columns=names)


class UnitsAndCash:
    """The plainest account there is: cash and units. It knows no weights and shares no code with the project."""

    def __init__(self, cash, n_assets):
        self.cash = cash
        self.units = np.zeros(n_assets)
        self.paid = 0.0

    def accrue(self, prices, years, *, borrow_rate=0.0, margin_rate=0.0, cash_rate=0.0):
        short_notional = -(np.minimum(self.units, 0.0) * prices).sum()
        interest = cash_rate * max(self.cash, 0.0) - margin_rate * max(-self.cash, 0.0) - borrow_rate * short_notional
        self.cash += interest * years

    def fill(self, amounts, prices, *, commission_rate=0.0, slippage_rate=0.0, minimum_commission=0.0):
        for asset, (amount, price) in enumerate(zip(amounts, prices, strict=True)):
            if amount == 0.0:
                continue
            notional = abs(amount) * price
            costs = max(commission_rate * notional, minimum_commission) + slippage_rate * notional
            self.cash -= amount * price + costs
            self.units[asset] += amount
            self.paid += costs

    def equity(self, prices):
        return self.cash + float((self.units * prices).sum())


@pytest.fixture(scope="session")
def make_prices():
    return build_prices


@pytest.fixture(scope="session")
def units_and_cash():
    return UnitsAndCash
