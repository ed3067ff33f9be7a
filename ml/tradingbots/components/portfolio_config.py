"""What a portfolio manager is told: limits, risk, trading and the calendar, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.core.portfolio_constraints import PortfolioLimits
from ml.tradingbots.data.calendar_sizes import read_size
from ml.tradingbots.data.names import did_you_mean


@dataclass(frozen=True, kw_only=True)
class PortfolioConfig:
    """Settings of `PortfolioManager`. Weights and exposures are shares of equity; None is no limit.

    They are applied in the order in which they stand here: limits, exposure, band, turnover, lots.
    """

    allow_short: bool = False
    """Whether weights may be negative."""
    max_weight: float | None = 1.0
    """Largest size of the weight of one asset, long or short."""
    max_weights: Mapping[str, float] = field(default_factory=dict)
    """The same for single assets, by name, in place of `max_weight`."""
    max_gross_exposure: float | None = 1.0
    """Largest sum of sizes of weights."""
    min_net_exposure: float | None = None
    """Smallest sum of weights; 1 is always fully invested."""
    max_net_exposure: float | None = None
    """Largest sum of weights; above 1 cash is borrowed."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Assets of each group, by its name; an asset may be in several or none."""
    max_group_exposure: Mapping[str, float] = field(default_factory=dict)
    """Largest sum of sizes of weights in a group, by its name."""
    volatility_target: float | None = None
    """Standard deviation of returns in a year to which exposure is scaled, down or, within the limits, up; 0.1 is 10%."""
    kelly_fraction: float | None = None
    """Share of the growth-optimal exposure that is held at most; 0.5 is half Kelly. The mean is the predictor's, or else that
    of the last `risk_window` bars."""
    risk_window: int = 60
    """Past returns per asset that volatility, the Kelly cap and the variance beside a forecast are estimated from, in bars."""
    brake_start: float | None = None
    """Drawdown from which exposure is reduced."""
    brake_full: float = 0.3
    """Drawdown from which it is reduced as far as it goes."""
    brake_floor: float = 0.25
    """Factor on exposure from there on; at 0 the account would never trade again."""
    drift_band: float = 0.0
    """Distance of a weight from its target up to which it is not traded."""
    max_turnover: float | None = None
    """Largest turnover of one rebalance: the account moves straight toward its target, as far as that goes."""
    exceed_turnover: bool = False
    """What happens where no portfolio within the limits can be reached with `max_turnover`, at the start or after a shock:
    True trades to the nearest one all the same, False raises an error."""
    lot_size: float = 0.0
    """Positions are whole multiples of it, in units (1 for whole shares); 0 trades fractions."""
    minimum_notional: float = 0.0
    """Least size of an order, in account currency."""
    rebalance: int | str = 1
    """Bars from one decision to the next, or a calendar length such as "1W", "MS" or "3MS" whose first bar decides."""
    window_size: int = 252
    """Past returns that an allocator sees, in bars."""
    costs: TransactionCosts = field(default_factory=TransactionCosts)
    """What fills and holding cost."""

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("max_weight", "max_gross_exposure", "volatility_target", "kelly_fraction", "max_turnover"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be above 0, or None for none, got {value}")
        for name in ("drift_band", "lot_size", "minimum_notional"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("risk_window", "window_size"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2 bars, got {getattr(self, name)}")
        self._check_brake()
        self._check_named_limits()
        self._check_net()
        read_size(self.rebalance, "rebalance")
        if self.costs.impact_coefficient > 0.0 and (self.lot_size > 0.0 or self.minimum_notional > 0.0):
            raise ValueError(
                f"impact_coefficient ({self.costs.impact_coefficient}) cannot be combined with lot_size or minimum_notional: "
                "orders are sized before their impact is known. Set one of them to 0, or count impact as slippage_rate"
            )

    @property
    def has_risk_estimates(self) -> bool:
        """Whether a decision needs the last `risk_window` returns."""
        return self.volatility_target is not None or self.kelly_fraction is not None

    def limits(self, assets: tuple[str, ...]) -> PortfolioLimits:
        """Return the limits on the weights of these assets, in their order.

        Raises:
            ValueError: a limit names an asset that is not among them.
        """
        for name, named in {"max_weights": tuple(self.max_weights), **self.groups}.items():
            for asset in named:
                if asset not in assets:
                    place = name if name == "max_weights" else f"groups[{name!r}]"
                    raise ValueError(
                        f"{place} names {asset!r}, which is not traded.{did_you_mean(asset, assets)} "
                        f"Assets: {', '.join(assets[:8])}{' …' if len(assets) > 8 else ''}"
                    )
        largest = _or(self.max_weight, np.inf)
        upper = np.array([self.max_weights.get(asset, largest) for asset in assets], dtype=np.float64)
        names = tuple(self.max_group_exposure)
        return PortfolioLimits(
            lower=-upper if self.allow_short else np.zeros(len(assets)),
            upper=upper,
            max_gross=_or(self.max_gross_exposure, np.inf),
            min_net=_or(self.min_net_exposure, -np.inf),
            max_net=_or(self.max_net_exposure, np.inf),
            members=np.array([[asset in self.groups[name] for asset in assets] for name in names], dtype=bool),
            group_caps=np.array([self.max_group_exposure[name] for name in names], dtype=np.float64),
            group_names=names,
        )

    def _check_brake(self) -> None:
        if self.brake_start is not None and not 0.0 <= self.brake_start < self.brake_full <= 1.0:
            raise ValueError(
                f"brake_start and brake_full must be drawdowns with 0 <= brake_start < brake_full <= 1, got "
                f"{self.brake_start} and {self.brake_full}"
            )
        if not 0.0 <= self.brake_floor <= 1.0:
            raise ValueError(f"brake_floor must be a fraction between 0 and 1, got {self.brake_floor}")

    def _check_named_limits(self) -> None:
        for field_name in ("max_weights", "max_group_exposure"):
            for name, value in getattr(self, field_name).items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < np.inf:
                    raise ValueError(f"{field_name}[{name!r}] must be a share of equity of at least 0, got {value!r}")
        for name in self.max_group_exposure:
            if name not in self.groups:
                raise ValueError(
                    f"max_group_exposure names the group {name!r}, which groups does not have."
                    f"{did_you_mean(name, tuple(self.groups))} Add its assets: groups={{{name!r}: (...,)}}"
                )
        for name, assets in self.groups.items():
            if isinstance(assets, str) or not assets:
                raise ValueError(f"groups[{name!r}] must name one or more assets in a tuple, got {assets!r}")

    def _check_net(self) -> None:
        low, high = _or(self.min_net_exposure, -np.inf), _or(self.max_net_exposure, np.inf)
        gross = _or(self.max_gross_exposure, np.inf)
        if low > high:
            raise ValueError(f"min_net_exposure ({low}) must not exceed max_net_exposure ({high})")
        if low > gross or high < -gross:
            raise ValueError(
                f"net exposure between {low} and {high} cannot be had with max_gross_exposure {gross}: raise the latter"
            )
        if high < 0.0 and not self.allow_short:
            raise ValueError(f"max_net_exposure ({high}) below 0 needs allow_short=True")
        scaling = [
            name for name in ("volatility_target", "kelly_fraction", "brake_start") if getattr(self, name) is not None
        ]
        if scaling and not low <= 0.0 <= high:
            raise ValueError(
                f"{scaling[0]} reduces exposure, which min_net_exposure={self.min_net_exposure} and "
                f"max_net_exposure={self.max_net_exposure} do not allow; drop one of them"
            )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)
