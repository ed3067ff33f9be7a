"""The portfolio manager: from any signal to target weights within limits, and from those to orders.

A decision is made at a close and filled later; it uses the bars it is given, the last of which has just closed, and the
account. `training.portfolio_backtest` walks it over a price table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.portfolio_config import PortfolioConfig
from ml.tradingbots.components.portfolio_sources import as_source
from ml.tradingbots.components.portfolio_state import PortfolioState, Proposal, TargetSource, simple_returns
from ml.tradingbots.core.exposure_scaling import drawdown_brake, kelly_scale, volatility_scale
from ml.tradingbots.core.order_sizing import SizedOrders, size_orders
from ml.tradingbots.core.portfolio_constraints import (
    PortfolioLimits,
    inside_band,
    is_within,
    largest_scale,
    partial_move,
)
from ml.tradingbots.core.portfolio_projection import InfeasibleLimitsError, project
from ml.tradingbots.data.bars import Bars

__all__ = ["PortfolioConfig", "PortfolioDecision", "PortfolioManager", "PortfolioState"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Weights that differ by less are the same one, computed in another order.
_SAME = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class PortfolioDecision:
    """What a manager decided at one close, and how it came to it."""

    timestamp: pd.Timestamp
    """When the bar became known, UTC; the orders are for the next open."""
    assets: tuple[str, ...]
    """Names of the assets."""
    close: FloatArray
    """Prices of that close; (n_assets,)."""
    target_weights: FloatArray
    """Signed share of equity wanted per asset, NaN where no order is sent; (n_assets,)."""
    stages: pd.DataFrame
    """Weights after each stage (rows `proposed`, `limits`, `exposure`, `band`, `turnover`); one column per asset."""
    volatility_scale: float = 1.0
    """Factor that volatility targeting put on the exposure; 1 where it is off."""
    kelly_scale: float = 1.0
    """Factor of the Kelly cap."""
    brake: float = 1.0
    """Factor of the drawdown brake."""


class PortfolioManager:
    """Turns a signal into target weights within limits, and target weights into orders.

    Stages of a decision, in this order; each starts from what the one before it left:

    1. `proposed`: what the source wants.
    2. `limits`: the nearest portfolio (least sum of squared differences) within all limits on weights, groups, gross and net
       exposure. A proposal within them is left as it is.
    3. `exposure`: times one factor from volatility targeting, the Kelly cap and the drawdown brake, never beyond the limits.
    4. `band`: assets close to their target keep their units; the others make room where limits ask for it.
    5. `turnover`: straight toward the target, as far as the turnover cap goes; where the account has drifted out of the
       limits, to the nearest portfolio within both.

    Limits hold for every target that is decided. Between rebalances weights drift, and an asset that keeps its units drifts
    over the gap to the fill as well.

    Args:
        config: limits, risk, trading and calendar; None takes the defaults: long only, no borrowing.
        source: an allocator or the name of one (`list_allocators()`), a fitted predictor, a trained agent, or a `TargetSource`.
        **changes: single settings, in place of the config's.

    Raises:
        TypeError: the source is none of these, or a setting is unknown.
        ValueError: a setting is refused.
    """

    def __init__(self, config: PortfolioConfig | None = None, source: Any = "equal_weight", **changes: Any) -> None:
        if config is not None and not isinstance(config, PortfolioConfig):
            raise TypeError(
                f"config must be a PortfolioConfig, got {type(config).__name__}; pass the signal as source=..."
            )
        self.config = dataclasses.replace(config or PortfolioConfig(), **changes)
        self.source = as_source(source, window_size=self.config.window_size, risk_window=self.config.risk_window)

    def first_bar(self, price_data: pd.DataFrame | Bars) -> int:
        """Return the first bar at which a decision can be made."""
        bars = Bars.from_frame(price_data)
        needed = self.config.risk_window if self.config.has_risk_estimates else 1
        return max(self.source.first_bar(bars), needed)

    def decide(self, price_data: pd.DataFrame | Bars, state: PortfolioState | None = None) -> PortfolioDecision:
        """Decide at the close of the last bar.

        Args:
            price_data: prices up to now; what `Bars.from_frame` accepts.
            state: the account; None is a flat one.

        Raises:
            InfeasibleLimitsError: limits contradict each other; the message names them.
            ValueError: there are too few bars, or the account has other assets.
        """
        bars = Bars.from_frame(price_data)
        state = state or PortfolioState.flat(bars.n_assets)
        _check_assets(state, bars.n_assets)
        limits, held = self.config.limits(bars.assets), state.weights
        proposal = _checked(self.source.propose(bars, state), bars.n_assets, self.source)
        hold = np.isnan(proposal.weights)
        limited = project(np.where(hold, held, proposal.weights), limits)
        scaled, factors = self._exposed(limited, limits, proposal, bars, state)
        kept = (hold & (np.abs(scaled - held) <= _SAME)) | inside_band(held, scaled, self._band(state))
        banded, kept = _with_kept(scaled, limits, held, kept)
        moved, kept = self._within_turnover(banded, limits, held, kept)
        stages = {
            "proposed": proposal.weights,
            "limits": limited,
            "exposure": scaled,
            "band": banded,
            "turnover": moved,
        }
        return PortfolioDecision(
            timestamp=bars.timestamps[-1],
            assets=bars.assets,
            close=bars.close[-1],
            target_weights=np.where(kept, np.nan, moved),
            stages=pd.DataFrame.from_dict(stages, orient="index", columns=list(bars.assets)),
            **factors,
        )

    def size(
        self, target_weights: FloatArray, equity: float, weights: FloatArray, price: FloatArray, assets: tuple[str, ...]
    ) -> SizedOrders:
        """Turn target weights into orders at given prices, as `core.order_sizing.size_orders`."""
        config = self.config
        return size_orders(
            equity,
            weights,
            target_weights,
            price,
            config.limits(assets),
            config.costs,
            lot_size=config.lot_size,
            minimum_notional=config.minimum_notional,
        )

    def orders(
        self, decision: PortfolioDecision, state: PortfolioState, prices: Mapping[str, float] | None = None
    ) -> pd.DataFrame:
        """Return the orders that carry a decision out.

        Args:
            decision: what `decide` returned.
            state: the account it was made for.
            prices: what the orders will be filled at, by asset; None takes the closes of the decision.

        Returns:
            One row per order, indexed by asset: `units` to buy (positive) or sell, `price`, `notional` (signed) and `costs`, in
            account currency, and `position`, the units held after it.

        Raises:
            ValueError: a price is missing or not positive, the account has other assets, or nothing is left of it at these
                prices.
        """
        _check_assets(state, len(decision.assets))
        price = decision.close
        if prices is not None:
            missing = [asset for asset in decision.assets if asset not in prices]
            if missing:
                raise ValueError(f"prices must have every asset of the decision, {missing[0]!r} is missing")
            price = np.array([prices[asset] for asset in decision.assets], dtype=np.float64)
            if not (np.isfinite(price) & (price > 0.0)).all():
                raise ValueError(f"prices must be positive numbers, got {dict(prices)}")
        equity, weights = state.marked(price / decision.close - 1.0)
        sized = self.size(decision.target_weights, equity, weights, price, decision.assets)
        columns = {
            "units": sized.change,
            "price": price,
            "notional": sized.change * price,
            "costs": sized.costs,
            "position": sized.units,
        }
        table = pd.DataFrame(columns, index=pd.Index(decision.assets, name="asset"))
        sent: pd.DataFrame = table.loc[sized.change != 0.0]
        return sent

    def _exposed(
        self, weights: FloatArray, limits: PortfolioLimits, proposal: Proposal, bars: Bars, state: PortfolioState
    ) -> tuple[FloatArray, dict[str, float]]:
        """Return the weights times what volatility, Kelly and drawdown leave of them, and these factors."""
        config = self.config
        factors = {"volatility_scale": 1.0, "kelly_scale": 1.0, "brake": 1.0}
        if config.has_risk_estimates:
            returns = simple_returns(bars, config.risk_window)
            covariance = np.atleast_2d(np.cov(returns, rowvar=False))
            if config.volatility_target is not None:
                target = config.volatility_target / np.sqrt(bars.bars_per_year)
                scale = volatility_scale(weights, covariance, target)
                factors["volatility_scale"] = (
                    min(scale, max(largest_scale(weights, limits), 1.0)) if scale > 1.0 else scale
                )
            if config.kelly_fraction is not None:
                mean = returns.mean(axis=0) if proposal.mean is None else proposal.mean
                exposed = weights * factors["volatility_scale"]
                factors["kelly_scale"] = kelly_scale(exposed, mean, covariance, config.kelly_fraction)
        if config.brake_start is not None:
            factors["brake"] = drawdown_brake(state.drawdown, config.brake_start, config.brake_full, config.brake_floor)
        scale = factors["volatility_scale"] * factors["kelly_scale"]
        # What is kept without an order was braked when it was bought, and is never bought back.
        again = factors["brake"] if state.brake == 0.0 else min(factors["brake"] / state.brake, 1.0)
        brake = np.where(np.isnan(proposal.weights), again, factors["brake"])
        # One factor leads nowhere outside the limits; two might, where longs and shorts set each other off.
        return project(weights * (scale * brake), limits), factors

    def _band(self, state: PortfolioState) -> float:
        """Return the distance of a weight from its target that is not traded."""
        return max(self.config.drift_band, self.config.minimum_notional / state.equity)

    def _within_turnover(
        self, target: FloatArray, limits: PortfolioLimits, held: FloatArray, kept: BoolArray
    ) -> tuple[FloatArray, BoolArray]:
        cap = self.config.max_turnover
        if cap is None:
            return target, kept
        moved = partial_move(held, target, cap)
        if is_within(moved, limits):
            return moved, kept
        try:
            return project(moved, limits, held=held, max_turnover=cap), np.zeros_like(kept)
        except InfeasibleLimitsError as error:
            if not self.config.exceed_turnover:
                raise InfeasibleLimitsError(
                    f"{error}. The account holds {held.round(4).tolist()}; exceed_turnover=True trades to the nearest "
                    "portfolio within the other limits where none is in reach",
                    error.conflict,
                ) from None
        return project(held, limits), np.zeros_like(kept)


def _checked(proposal: Proposal, n_assets: int, source: TargetSource) -> Proposal:
    """Refuse what a source must not say; a weight that is NaN means that the asset is left alone."""
    weights = np.asarray(proposal.weights)
    if weights.shape != (n_assets,) or np.isinf(weights).any():
        raise ValueError(
            f"the source {type(source).__name__} must propose weights ({n_assets},), finite or NaN to leave an asset alone; it "
            f"proposed {weights}"
        )
    return proposal


def _check_assets(state: PortfolioState, n_assets: int) -> None:
    if len(state.weights) != n_assets:
        raise ValueError(
            f"state.weights must have {n_assets} entries, one per asset, got {len(state.weights)}: give the account of this "
            "decision"
        )


def _with_kept(
    target: FloatArray, limits: PortfolioLimits, held: FloatArray, kept: BoolArray
) -> tuple[FloatArray, BoolArray]:
    """Return the target with some assets left as they are, and which; none where limits leave no room for that."""
    kept = kept & (held >= limits.lower) & (held <= limits.upper)
    if not kept.any():
        return target, kept
    try:
        return project(target, limits, held=held, kept=kept), kept
    except InfeasibleLimitsError:
        return target, np.zeros_like(kept)
