"""Agents made of agents: what adapts to regimes, and regimes as it is shown them. `docs/regimes.md` explains it.

This file is the door; everything has a file of its own.
"""

from __future__ import annotations

from ml.tradingbots.components.regime_aware_agent import RegimeAwareAgent
from ml.tradingbots.components.regime_aware_config import RegimeAwareConfig
from ml.tradingbots.components.regime_columns import RegimeColumns, with_regime_probabilities

__all__ = ["RegimeAwareAgent", "RegimeAwareConfig", "RegimeColumns", "with_regime_probabilities"]
