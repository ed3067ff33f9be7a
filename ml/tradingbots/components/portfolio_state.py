"""The account that a portfolio is decided for, and what a source of target weights answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ml.tradingbots.core.accounting import carry_portfolio
from ml.tradingbots.data.bars import Bars, require_bars

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PortfolioState:
    """The account that a decision is made for, after a close."""

    equity: float
    """Value of the account, in its currency."""
    weights: FloatArray
    """Signed share of equity held per asset, in the order of the price table; (n_assets,)."""
    drawdown: float = 0.0
    """Fall from the account's highest close, a fraction."""
    unrealised_return: FloatArray | None = None
    """Return of each open position since its average entry price; what agents look at. None is 0 everywhere; (n_assets,)."""
    brake: float = 1.0
    """Factor of the drawdown brake at the decision before; what is kept without an order is braked only further."""

    def __post_init__(self) -> None:
        if not 0.0 < self.equity < np.inf:
            raise ValueError(
                f"equity must be a positive number, got {self.equity}: a wiped-out account decides nothing"
            )
        if self.weights.ndim != 1 or not np.isfinite(self.weights).all():
            raise ValueError(f"weights must be one finite number per asset, got {self.weights}")
        if not 0.0 <= self.drawdown <= 1.0:
            raise ValueError(f"drawdown must be a fraction in [0, 1], got {self.drawdown}")
        if not 0.0 <= self.brake <= 1.0:
            raise ValueError(f"brake must be a factor in [0, 1], got {self.brake}")

    @classmethod
    def flat(cls, n_assets: int, equity: float = 1.0) -> Self:
        """Return an account that holds cash only."""
        return cls(equity=equity, weights=np.zeros(n_assets))

    @classmethod
    def of_positions(
        cls, cash: float, units: Mapping[str, float], prices: Mapping[str, float], *, drawdown: float = 0.0
    ) -> Self:
        """Return the account of some cash and positions.

        Args:
            cash: in account currency, negative where borrowed.
            units: signed units held by asset; assets that are not named are not held.
            prices: price by asset, in the order of the price table.
            drawdown: fall from the account's highest close, a fraction.

        Raises:
            ValueError: a position has no price, or nothing is left of the account.
        """
        for asset in units:
            if asset not in prices:
                raise ValueError(f"units names {asset!r}, which has no price; prices has {', '.join(prices)}")
        values = np.array([units.get(asset, 0.0) * price for asset, price in prices.items()], dtype=np.float64)
        equity = cash + float(values.sum())
        if not equity > 0.0:
            raise ValueError(f"the account must be worth something, got cash {cash} and positions of {values.sum()}")
        return cls(equity=equity, weights=values / equity, drawdown=drawdown)

    def marked(self, price_change: FloatArray) -> tuple[float, FloatArray]:
        """Return equity and weights after prices moved by these simple returns; (n_assets,)."""
        equity, weights = carry_portfolio(np.asarray(self.equity), self.weights, price_change)
        return float(equity), weights


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """What a source wants."""

    weights: FloatArray
    """Signed share of equity wanted per asset, NaN for no order; (n_assets,)."""
    mean: FloatArray | None = None
    """Expected simple return of one bar per asset, for the Kelly cap; None where the source says nothing; (n_assets,)."""


class TargetSource(Protocol):
    """Anything that says what to hold."""

    def first_bar(self, bars: Bars) -> int:
        """Return the first bar at which it can say something; prices after that bar must not matter."""
        ...

    def propose(self, bars: Bars, state: PortfolioState) -> Proposal:
        """Return what to hold after the last bar of a table."""
        ...


def simple_returns(bars: Bars, n_returns: int) -> FloatArray:
    """Return the last simple returns of every asset; (n_returns, n_assets).

    Raises:
        ValueError: there are fewer.
    """
    require_bars(bars, n_returns + 1, f"a window of {n_returns} returns")
    close = bars.close[-n_returns - 1 :]
    returns: FloatArray = close[1:] / close[:-1] - 1.0
    return returns
