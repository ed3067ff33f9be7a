"""Where the members of a `RegimeAwareAgent` train, and how they are told what observations are scaled by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ml.tradingbots.components.normalization import ObservationNormalizer
from ml.tradingbots.components.regime_environment import BlindVectorEnv
from ml.tradingbots.components.serialization import check_like
from ml.tradingbots.components.vector_environment import TradingVectorEnv


class HandedOnNormalizer(ObservationNormalizer):
    """Keeps how observations are to be scaled and leaves them as they are: members scale what they see themselves."""

    def __call__(self, observations: Tensor) -> Tensor:
        """Return observations as they are: the probabilities in them are read from them."""
        return observations

    def update(self, observations: Tensor) -> None:
        """Members follow what each of them sees."""


@dataclass(frozen=True)
class World:
    """Where one member trains."""

    env: TradingVectorEnv
    """The market, weighted by its regime for a specialist."""
    seen: TradingVectorEnv | BlindVectorEnv
    """What it sees of it."""

    def see(self, observation: Tensor) -> Tensor:
        """Return observations of the market as the member sees them."""
        return self.seen.see(observation) if isinstance(self.seen, BlindVectorEnv) else observation

    def resumed(self, saved: Any) -> Tensor:
        """Put the market where it was; returns what the member sees.

        Raises:
            ValueError: it was saved of another market, or is damaged.
        """
        self.env.reset()
        check_like(saved, self.env.state_dict(), "environments", finite=False)
        return self.see(self.env.load_state_dict(saved))
