"""What callbacks see: the run so far, typed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml.tradingbots.training.rl_training import RLTrainingConfig

# Episodes over which the running figures are averaged.
RECENT_EPISODES = 100


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """One training episode that ended. Market figures are NaN in other environments."""

    episode_return: float
    """Sum of its rewards."""
    length: int
    """Timesteps it lasted."""
    sharpe_ratio: float
    """Annualised Sharpe ratio of the account's returns."""
    max_drawdown: float
    """Deepest fall from a peak, a fraction."""
    total_return: float
    """Growth of the account, a fraction."""


@dataclass
class TrainingState:
    """A training run as its callbacks see it. Callbacks read it; `record` and `request_stop` are how they answer."""

    agent: Any
    """The agent being trained."""
    env: Any
    """The vector environment it trains in."""
    eval_env: Any
    """The environment given for evaluation, or the one given for training."""
    eval_is_out_of_sample: bool
    """Whether `eval_env` was given."""
    config: RLTrainingConfig
    """The run's settings."""
    save: Callable[[Path | str], Path]
    """Writes the whole run to a file that `resume_from` takes."""
    num_timesteps: int = 0
    """Transitions so far, summed over accounts."""
    num_episodes: int = 0
    """Episodes ended so far."""
    num_evaluations: int = 0
    """Evaluations so far."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Losses of the last gradient step, 0-dimensional tensors."""
    recent_episodes: deque[EpisodeSummary] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    """The last episodes that ended."""
    last_evaluation: dict[str, float] = field(default_factory=dict)
    """Figures of the last evaluation."""
    pending: dict[str, float] = field(default_factory=dict)
    """What the next log row will hold beside its own columns."""
    stop_reason: str = ""
    """Why the run stops; empty while it goes on."""

    def record(self, **values: float) -> None:
        """Put values into the next row of the log."""
        self.pending.update(values)

    def request_stop(self, reason: str) -> None:
        """End the run after this step."""
        self.stop_reason = self.stop_reason or reason

    def recent_mean(self, name: str) -> float:
        """Mean of a figure over the recent episodes where it is defined; NaN where none is."""
        values = [value for episode in self.recent_episodes if (value := getattr(episode, name)) == value]
        return sum(values) / len(values) if values else float("nan")
