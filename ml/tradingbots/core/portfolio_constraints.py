"""Limits on a portfolio's weights, what they allow, and the moves that respect them; pure functions of arrays.

A weight is a signed share of equity. Limits bound each weight, the sum of weights (net exposure), the sum of their sizes
(gross exposure) and such sums over groups of assets. They form a convex set, so that a mix of two portfolios within the limits
is within them as well. `portfolio_projection` finds the nearest portfolio inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Excess that is rounding: sums of a few hundred weights are exact to about 1e-14.
TOLERANCE = 1e-10

LOWEST, LARGEST = "lowest weights", "largest weights"
GROSS, LEAST_NET, MOST_NET = "max_gross_exposure", "min_net_exposure", "max_net_exposure"
TURNOVER = "max_turnover"


@dataclass(frozen=True, kw_only=True, eq=False)
class PortfolioLimits:
    """What a portfolio may hold. Weights and exposures are shares of equity.

    Raises:
        ValueError: shapes differ, or a lower limit lies above its upper one.
    """

    lower: FloatArray
    """Lowest weight of each asset; −inf is no limit; (n_assets,)."""
    upper: FloatArray
    """Largest weight of each asset; (n_assets,)."""
    max_gross: float = np.inf
    """Largest sum of sizes of weights."""
    min_net: float = -np.inf
    """Smallest sum of weights; 1 is fully invested."""
    max_net: float = np.inf
    """Largest sum of weights; above 1 cash is borrowed."""
    members: BoolArray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    """Whether an asset belongs to a group; (n_groups, n_assets)."""
    group_caps: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Largest sum of sizes of weights in each group; (n_groups,)."""
    group_names: tuple[str, ...] = ()
    """What errors call the groups; n_groups of them."""

    def __post_init__(self) -> None:
        n_assets, n_groups = len(self.lower), len(self.group_names)
        if n_groups == 0:
            object.__setattr__(self, "members", np.zeros((0, n_assets), dtype=bool))
        shapes = {
            "lower": (n_assets,),
            "upper": (n_assets,),
            "members": (n_groups, n_assets),
            "group_caps": (n_groups,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        if not (self.lower <= self.upper).all():
            place = int(np.argmin(self.lower <= self.upper))
            raise ValueError(
                f"the lowest weight of asset {place} ({self.lower[place]}) lies above its largest ({self.upper[place]}): "
                "lower one of them"
            )
        if not self.min_net <= self.max_net:
            raise ValueError(f"{LEAST_NET} ({self.min_net}) must not exceed {MOST_NET} ({self.max_net})")

    @property
    def n_assets(self) -> int:
        """Number of assets."""
        return len(self.lower)

    @property
    def allow_cash_only(self) -> bool:
        """Whether holding nothing is within the limits, so that exposure can always be reduced."""
        bounds = (self.lower <= 0.0).all() and (self.upper >= 0.0).all()
        return bool(bounds and self.min_net <= 0.0 <= self.max_net)


def excesses(
    weights: FloatArray, limits: PortfolioLimits, *, held: FloatArray | None = None, max_turnover: float = np.inf
) -> dict[str, float]:
    """Return by how much a portfolio exceeds each limit, as shares of equity; negative is room left.

    Args:
        weights: signed shares of equity; (n_assets,).
        limits: what is allowed.
        held: weights before the trade, where turnover is limited too; (n_assets,).
        max_turnover: largest sum of sizes of the changes.

    >>> limits = PortfolioLimits(lower=np.zeros(2), upper=np.ones(2), max_gross=1.0)
    >>> found = excesses(np.array([0.75, 0.5]), limits)
    >>> found["max_gross_exposure"], found["largest weights"]
    (0.25, -0.25)
    """
    size, net = np.abs(weights), float(weights.sum())
    found = {
        LOWEST: float((limits.lower - weights).max()),
        LARGEST: float((weights - limits.upper).max()),
        GROSS: float(size.sum()) - limits.max_gross,
        LEAST_NET: limits.min_net - net,
        MOST_NET: net - limits.max_net,
    }
    in_groups = limits.members @ size - limits.group_caps
    found |= {group_label(name): float(over) for name, over in zip(limits.group_names, in_groups, strict=True)}
    if held is not None:
        found[TURNOVER] = float(np.abs(weights - held).sum()) - max_turnover
    return found


def group_label(name: str) -> str:
    """Return what errors call the cap of a group."""
    return f"max_group_exposure[{name!r}]"


def is_within(
    weights: FloatArray,
    limits: PortfolioLimits,
    *,
    held: FloatArray | None = None,
    max_turnover: float = np.inf,
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether a portfolio exceeds no limit by more than rounding; arguments as `excesses`."""
    return max(excesses(weights, limits, held=held, max_turnover=max_turnover).values()) <= tolerance


def largest_scale(weights: FloatArray, limits: PortfolioLimits) -> float:
    """Return the largest factor at which a portfolio is still within the limits; infinite where nothing bounds it.

    Args:
        weights: a portfolio within the limits; (n_assets,).
        limits: what is allowed.

    >>> limits = PortfolioLimits(lower=np.zeros(2), upper=np.array([0.6, 1.0]), max_gross=1.5)
    >>> largest_scale(np.array([0.3, 0.2]), limits)
    2.0
    """
    size, net = np.abs(weights), float(weights.sum())
    used = np.concatenate([weights, -weights, [size.sum(), net, -net], limits.members @ size])
    room = np.concatenate(
        [limits.upper, -limits.lower, [limits.max_gross, limits.max_net, -limits.min_net], limits.group_caps]
    )
    growing = used > 0.0
    if not growing.any():
        return np.inf
    with np.errstate(over="ignore"):  # Next to nothing can grow without end.
        return float((room[growing] / used[growing]).min())


def partial_move(held: FloatArray, target: FloatArray, max_turnover: float) -> FloatArray:
    """Move from the weights held straight toward a target, as far as the turnover allows.

    Between two portfolios within convex limits every step of the way is within them.

    Args:
        held: weights before the trade; (n_assets,).
        target: weights wanted; (n_assets,).
        max_turnover: largest sum of sizes of the changes, a fraction of equity.

    >>> partial_move(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5)
    array([0.75, 0.25])
    """
    turnover = float(np.abs(target - held).sum())
    if turnover <= max_turnover:
        return target
    moved: FloatArray = held + (target - held) * (max_turnover / turnover)
    return moved


def inside_band(held: FloatArray, target: FloatArray, band: FloatArray | float) -> BoolArray:
    """Return which assets have drifted so little from their target that they are left alone; (n_assets,).

    A band of 0 leaves nothing alone: an order to hold exactly what is held is still an order, filled after the gap.

    Args:
        held: weights before the trade; (n_assets,).
        target: weights wanted; (n_assets,).
        band: largest distance that is not traded, a share of equity; a number or (n_assets,).

    >>> inside_band(np.array([0.50, 0.40]), np.array([0.51, 0.45]), 0.02)
    array([ True, False])
    """
    close: BoolArray = (np.abs(target - held) <= band) & (np.asarray(band) > 0.0)
    return close
