"""What the columns of regimes are called, and where they stand in an observation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.tradingbots.components.base_detector import MOST_REGIMES
from ml.tradingbots.components.encoders import window_shape

ENTROPY, NOVELTY = "regime_entropy", "regime_novelty"
_PROBABILITY = re.compile(r"regime_p(\d+)")


def probability_name(regime: int) -> str:
    """Return the name of the column with the probability of a regime.

    >>> probability_name(0)
    'regime_p0'
    """
    return f"regime_p{regime}"


def regime_column_names(n_regimes: int) -> tuple[str, ...]:
    """Return the names of all columns of so many regimes, in their order.

    >>> regime_column_names(2)
    ('regime_p0', 'regime_p1', 'regime_entropy', 'regime_novelty')
    """
    return (*(probability_name(regime) for regime in range(n_regimes)), ENTROPY, NOVELTY)


def is_regime_column(name: str) -> bool:
    """Whether a column is one of those, however many regimes there are."""
    return name in (ENTROPY, NOVELTY) or _PROBABILITY.fullmatch(name) is not None


@dataclass(frozen=True)
class RegimeLayout:
    """Where an observation says which regime comes next: places in the flattened vector."""

    probabilities: tuple[int, ...]
    """Of each regime at the next bar, as known at the newest bar; (n_regimes,)."""
    entropy: int
    """Of them, over its largest value."""
    novelty: int
    """1 where the detector is surprised."""
    hidden: tuple[int, ...]
    """Every place with something about regimes: all bars of the window, all assets."""
    state_dim: int
    """Length of the observation."""

    @property
    def n_regimes(self) -> int:
        """Number of regimes."""
        return len(self.probabilities)

    @property
    def visible(self) -> tuple[int, ...]:
        """Places that say nothing about regimes."""
        hidden = set(self.hidden)
        return tuple(place for place in range(self.state_dim) if place not in hidden)

    @classmethod
    def of(cls, specification: Mapping[str, Any], state_dim: int) -> RegimeLayout:
        """Find the columns by what a market environment says about itself.

        Args:
            specification: what its `specification()` returned; it may come from a file and is believed in nothing.
            state_dim: length of the flattened observation.

        Raises:
            ValueError: it is no market's, or one of the columns is missing.
        """
        if not specification:
            raise ValueError(
                "a RegimeAwareAgent needs a market with columns of regimes, and this environment does not say what it shows: "
                "give a TradingEnvironment over RegimeColumns(...).fit(train).add_to(prices)"
            )
        shape = window_shape(specification, state_dim)
        names = tuple(specification["features"])
        n_regimes = sum(_PROBABILITY.fullmatch(name) is not None for name in names)
        wanted = regime_column_names(max(n_regimes, 1))
        missing = [name for name in wanted if name not in names]
        if missing or n_regimes > MOST_REGIMES:
            raise ValueError(
                f"the environment shows the features {', '.join(names[:12])}, and a RegimeAwareAgent needs "
                f"{', '.join(missing) or f'at most {MOST_REGIMES} regimes'} too: make the prices by "
                "RegimeColumns(...).fit(train).add_to(prices) or with_regime_probabilities(prices, probabilities), and leave "
                "use_extra_columns on or name the columns in features"
            )
        newest = (shape.window_size - 1) * shape.row_dim
        places = {name: newest + names.index(name) for name in wanted}
        regime_columns = [number for number, name in enumerate(names) if is_regime_column(name)]
        n_rows = shape.window_size * shape.row_dim // len(names)  # One for each bar and asset.
        return cls(
            probabilities=tuple(places[probability_name(regime)] for regime in range(n_regimes)),
            entropy=places[ENTROPY],
            novelty=places[NOVELTY],
            hidden=tuple(row * len(names) + column for row in range(n_rows) for column in regime_columns),
            state_dim=state_dim,
        )


def without_regimes(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an environment would say about itself if it did not show regimes."""
    names = [name for name in specification["features"] if not is_regime_column(name)]
    return {**specification, "features": names}
