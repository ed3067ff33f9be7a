"""Which limits bound a managed portfolio, decision by decision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.portfolio_config import PortfolioConfig
from ml.tradingbots.components.portfoliomanager import PortfolioDecision

FloatArray = npt.NDArray[np.float64]

# Weights are projected to rounding: what is nearer to a bound is at it.
_AT = 1e-9


def binding_limits(decisions: tuple[PortfolioDecision, ...], config: PortfolioConfig) -> pd.DataFrame:
    """Say which settings bound which decision.

    A limit on weights binds where the target lies at it and limits had moved the proposal; a factor on exposure where it is
    not 1; a drift band and least orders where an asset was left as it is; a turnover cap where the account was stopped on its
    way.

    Args:
        decisions: of one manager, in time order.
        config: its settings.

    Returns:
        One row per decision, by its timestamp; one column of booleans per setting that can bind, by its name in
        `PortfolioConfig` (`allow_short` for being long only, `max_group_exposure: NAME` for a group).
    """
    rows = [_bound(decision, config) for decision in decisions]
    return pd.DataFrame(rows, index=pd.DatetimeIndex([decision.timestamp for decision in decisions])).astype(bool)


def _bound(decision: PortfolioDecision, config: PortfolioConfig) -> dict[str, bool]:
    proposed, limited, exposed, banded, moved = decision.stages.to_numpy(np.float64)
    found = _weight_limits(decision, config, proposed, limited)
    if config.volatility_target is not None:
        found["volatility_target"] = decision.volatility_scale != 1.0
    if config.kelly_fraction is not None:
        found["kelly_fraction"] = decision.kelly_scale < 1.0
    if config.brake_start is not None:
        found["brake_start"] = decision.brake < 1.0
    kept = np.isnan(decision.target_weights) & ~np.isnan(proposed)
    for name in ("drift_band", "minimum_notional"):
        if getattr(config, name) > 0.0:
            found[name] = bool(kept.any() and _differ(banded, exposed).any())
    if config.max_turnover is not None:
        found["max_turnover"] = bool(_differ(moved, banded).any())
    return found


def _weight_limits(
    decision: PortfolioDecision, config: PortfolioConfig, proposed: FloatArray, limited: FloatArray
) -> dict[str, bool]:
    limits = config.limits(decision.assets)
    # Where nothing was proposed, the account as it was went in; of that only a move of others can be seen.
    moved = ~np.isnan(proposed) & _differ(np.nan_to_num(proposed), limited)
    gross, net = np.abs(limited).sum(), limited.sum()
    at_upper, at_lower = ~_differ(np.abs(limited), limits.upper), ~_differ(limited, limits.lower)
    named = np.array([asset in config.max_weights for asset in decision.assets])
    found = {} if config.allow_short else {"allow_short": bool((moved & at_lower).any())}
    if config.max_weight is not None:
        found["max_weight"] = bool((moved & at_upper & ~named).any())
    if named.any():
        found["max_weights"] = bool((moved & at_upper & named).any())
    sums = {
        "max_gross_exposure": (gross, limits.max_gross),
        "min_net_exposure": (net, limits.min_net),
        "max_net_exposure": (net, limits.max_net),
        **{
            f"max_group_exposure: {name}": (np.abs(limited[members]).sum(), cap)
            for name, members, cap in zip(limits.group_names, limits.members, limits.group_caps, strict=True)
        },
    }
    for name, (value, bound) in sums.items():
        if np.isfinite(bound):
            found[name] = bool(moved.any() and abs(value - bound) <= _AT * len(limited))
    return found


def _differ(values: FloatArray, others: FloatArray) -> npt.NDArray[np.bool_]:
    different: npt.NDArray[np.bool_] = np.abs(values - others) > _AT
    return different
