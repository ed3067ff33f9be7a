"""What an agent may ask for: the space of legal targets and the limits on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ml.tradingbots.components.env_config import TradingEnvConfig

FloatArray = npt.NDArray[np.float64]

HOLD, BUY, SELL = range(3)
N_CHOICES = 3


def action_space(config: TradingEnvConfig, n_assets: int) -> spaces.Space[Any]:
    """Return the action space of one account."""
    if config.action_type == "continuous":
        return spaces.Box(np.float32(config.min_weight), np.float32(config.max_weight), (n_assets,), np.float32)
    return spaces.Discrete(N_CHOICES) if n_assets == 1 else spaces.MultiDiscrete([N_CHOICES] * n_assets)


def action_dim(config: TradingEnvConfig, n_assets: int) -> int:
    """Return the agent's `action_dim`: a target weight per asset, or three choices per asset."""
    return n_assets * (1 if config.action_type == "continuous" else N_CHOICES)


def idle_weights(config: TradingEnvConfig, n_assets: int, *, has_gap: bool) -> FloatArray:
    """Return the weight at which each choice is certain to trade nothing, as if it were a hold.

    The target must be the weight held when the order is filled, whatever the market does until then and whatever is chosen
    for the other assets. That is so for a sale to 0, held flat. Of one asset it is also so for its target held where orders
    are filled at the last close, and for a target of 1 where a gap comes first: all of the equity in the asset moves with
    it, while any other weight drifts. In a portfolio every other target depends on its neighbours (`limit_gross`). With
    `execution_delay` nothing is certain: the orders under way come first.

    Args:
        config: limits, kind of action and delay.
        n_assets: assets of the account.
        has_gap: whether the price moves between the decision and its fill (the data has opens).

    Returns:
        Weights of hold, buy and sell, NaN where there is no such weight; (3,).

    >>> idle_weights(TradingEnvConfig(action_type="discrete", allow_short=False), 1, has_gap=True)
    array([nan,  1.,  0.])
    """
    buy = min(config.max_weight, config.max_gross_exposure)
    sell = max(config.min_weight, -config.max_gross_exposure)
    idle = np.array([np.nan, buy, sell])
    certain = idle == 0.0
    if n_assets == 1:
        certain |= (idle == 1.0) | (not has_gap)
    if config.execution_delay > 0:
        certain[:] = False
    return np.where(certain, idle, np.nan)


def legal_choices(weight: Any, idle: Any) -> Any:
    """Return the action mask: which choices could trade, and always the hold.

    Args:
        weight: weights held, NumPy array or tensor with a last axis of length one, (..., 1); or a number.
        idle: what `idle_weights` says; (3,).

    Returns:
        Boolean hold, buy and sell per weight, (..., 3).

    >>> legal_choices(np.array([[0.0], [0.4], [1.0]]), np.array([np.nan, 1.0, 0.0]))
    array([[ True,  True, False],
           [ True,  True,  True],
           [ True, False,  True]])
    """
    # No tolerance: a fill sets exactly its target, 0 and 1 do not drift by a rounding, and a trade of a rounding would pay
    # its minimum commission. NaN differs from everything.
    return weight != idle


def legal_target(action: Any, weights: FloatArray, config: TradingEnvConfig) -> FloatArray:
    """Turn an action into the target that the environment would trade to.

    Args:
        action: what the agent answered; (n_assets,), or a single choice.
        weights: signed share of equity held now; (n_assets,).
        config: limits and kind of action.

    Returns:
        Target weights, NaN where no order is sent; (n_assets,).

    Raises:
        ValueError: a choice is none of the three.
    """
    values = np.atleast_1d(np.asarray(action))
    if config.action_type == "discrete":
        if not np.isin(values, range(N_CHOICES)).all():
            raise ValueError(f"action must be 0 (hold), 1 (buy) or 2 (sell) per asset, got {action!r}")
        wanted = np.array([np.nan, config.max_weight, config.min_weight])[values.astype(np.int64)]
    else:
        # Twice as fast as `clip` on a handful of values; NaN passes.
        wanted = np.minimum(np.maximum(values.astype(np.float64), config.min_weight), config.max_weight)
    if len(wanted) == 1:
        # Clipped, not scaled: the bound itself, to the last bit.
        return np.asarray(wanted.clip(-config.max_gross_exposure, config.max_gross_exposure))
    return limit_gross(wanted, weights, config.max_gross_exposure)


def limit_gross(target: FloatArray, weight: FloatArray, max_gross_exposure: float) -> FloatArray:
    """Scale targets down together so that, with the assets kept as they are, gross exposure stays within its limit.

    Args:
        target: wanted weights, NaN where no order is sent; (n_assets,).
        weight: weights held now; (n_assets,).
        max_gross_exposure: largest sum of absolute weights.

    >>> limit_gross(np.array([0.75, -0.75]), np.zeros(2), 1.0)
    array([ 0.5, -0.5])
    """
    size = np.abs(target)
    gross = size.sum()
    if gross <= max_gross_exposure:
        return target
    hold = np.isnan(target)
    room = max_gross_exposure
    if hold.any():
        room = max(max_gross_exposure - float(np.abs(weight[hold]).sum()), 0.0)
        gross = size[~hold].sum()
        if gross <= room:
            return target
    limited: FloatArray = target * (room / gross)
    return limited
