"""What trading and holding cost: one frozen dataclass of rates, and the formulas for interest and market impact."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ml.tradingbots.core.accounting import positive_part

if TYPE_CHECKING:
    from ml.tradingbots.core.accounting import Number


@dataclass(frozen=True, kw_only=True)
class TransactionCosts:
    """Rates of every cost an account can pay. All are fractions unless a field says currency; none may be negative."""

    commission_rate: float = 0.001
    """Commission per fill, as a fraction of its notional (0.001 is 10 basis points)."""
    slippage_rate: float = 0.0
    """Adverse price move per fill, as a fraction of the price; half a quoted spread belongs here."""
    minimum_commission: float = 0.0
    """Least commission of one fill, in account currency."""
    borrow_rate: float = 0.0
    """Annual rate paid on the notional held short."""
    margin_rate: float = 0.0
    """Annual rate paid on borrowed cash (the negative part of the cash share)."""
    cash_rate: float = 0.0
    """Annual rate earned on positive cash."""
    impact_coefficient: float = 0.0
    """Square-root market impact: coefficient · daily volatility · sqrt(notional / average daily traded value)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be a finite number of at least 0, got {value}")
        if self.cost_rate >= 0.5:
            raise ValueError(
                f"commission_rate + slippage_rate must be below 0.5, got {self.cost_rate}: "
                "rates are fractions, so 10 basis points are 0.001"
            )

    @property
    def cost_rate(self) -> float:
        """Proportional cost of a fill: commission plus slippage, as a fraction of notional."""
        return self.commission_rate + self.slippage_rate

    @property
    def has_accruals(self) -> bool:
        """Whether holding a position costs or earns anything by itself."""
        return self.borrow_rate > 0.0 or self.margin_rate > 0.0 or self.cash_rate > 0.0


def accrued_interest(costs: TransactionCosts, cash_share: Number, short_share: Number, years: Number | float) -> Number:
    """Interest over a stretch of calendar time, as a fraction of equity; positive when earned.

    Args:
        costs: the rates.
        cash_share: 1 − Σw, negative when cash is borrowed.
        short_share: Σ max(−w, 0).
        years: calendar time, in years.

    >>> costs = TransactionCosts(borrow_rate=0.02, margin_rate=0.05, cash_rate=0.01)
    >>> round(accrued_interest(costs, 1.5, 0.5, 1.0), 12)
    0.005
    >>> accrued_interest(costs, -1.0, 0.0, 0.5)
    -0.025
    """
    earned = costs.cash_rate * positive_part(cash_share) - costs.margin_rate * positive_part(-cash_share)
    return (earned - costs.borrow_rate * short_share) * years


def impact_rate(coefficient: float, daily_volatility: Number, notional: Number, daily_value: Number) -> Number:
    """Square-root market impact of an order, as an adverse fraction of the price.

    The order is priced as it is sent (|w* − w|·E before costs): one pass, no iteration on the price it causes.

    Args:
        coefficient: dimensionless; about 1 in the literature (Almgren et al., 2005; Tóth et al., 2011).
        daily_volatility: standard deviation of daily returns, a fraction.
        notional: |units × price| of the order, in account currency.
        daily_value: average daily traded value, in the same currency.

    >>> impact_rate(1.0, 0.02, 1e6, 1e8)
    0.002
    """
    rate: Number = coefficient * daily_volatility * (notional / daily_value) ** 0.5
    return rate
