"""What stands between an agent and prices that may lack the columns of regimes it reads."""

from __future__ import annotations

import warnings
from typing import Any

from ml.tradingbots.components.regime_columns import RegimeColumns
from ml.tradingbots.components.regime_layout import is_regime_column
from ml.tradingbots.data.bars import Bars


def with_regimes_of(agent: Any, bars: Bars) -> Bars:
    """Return a table with the columns of an agent's regimes, if it has a detector and the table lacks them."""
    regimes = getattr(agent, "regimes", None)
    if not isinstance(regimes, RegimeColumns) or regimes.are_in(bars):
        return bars
    return Bars.from_frame(regimes.add_to(bars))


def warn_of_short_history(agent: Any, bars: Bars, n_bars: int) -> None:
    """Warn where an agent adds the columns of its regimes to so few bars that they depend on where the table begins.

    Args:
        agent: whoever is to decide.
        bars: the table that it was given.
        n_bars: how many of its bars come before the decision.
    """
    regimes = getattr(agent, "regimes", None)
    if not isinstance(regimes, RegimeColumns) or regimes.are_in(bars):
        return
    needed = regimes.bars_to_forget
    if needed is not None and n_bars < needed:
        warnings.warn(
            f"{n_bars} bars up to the decision are few: what the agent's detector says of regimes depends on where the prices "
            f"begin until {needed} bars have passed; give as many, or always begin at the same bar",
            UserWarning,
            stacklevel=3,
        )


def check_shows_regimes(env: Any, agent: Any) -> None:
    """Check that the prices an agent is to be judged on have columns of regimes, where it needs them.

    Raises:
        ValueError: they have none.
    """
    market = getattr(getattr(env, "unwrapped", env), "market", None)
    if not hasattr(agent, "add_regimes") or market is None or any(map(is_regime_column, market.feature_names)):
        return
    raise ValueError(
        f"agent {agent.agent_type!r} is to be judged on prices without columns of regimes: make the environment of "
        "agent.add_regimes(prices), or of with_regime_probabilities(prices, probabilities) where it has no detector"
    )
