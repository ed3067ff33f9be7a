"""What carrying an agent to another market brought, beside learning there from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

# Share of scratch's asymptote that counts as learned, where no threshold is given.
LEARNED = 0.9
# The asymptote of a curve is the mean of its last fifth: single evaluations are noisy.
ASYMPTOTE_SHARE = 0.2
FINE_TUNED, SCRATCH = "fine-tuned", "scratch"
SCORE_NAMES = {"sharpe_ratio": "Sharpe ratio", "log_growth": "mean log return per bar"}


@dataclass(frozen=True)
class TransferReport:
    """Learning curves after transfer and from scratch, and the three measures of Taylor & Stone (2009).

    "Transfer Learning for Reinforcement Learning Domains: A Survey", JMLR 10: jump start, time to threshold, asymptote.
    """

    curves: pd.DataFrame
    """Scores by timesteps in the target market: columns `fine-tuned` and, where it was learned, `scratch`."""
    zero_shot: float
    """Score of the transferred agent before its first step in the target market."""
    untrained: float
    """Score of an agent with first weights, in the same market."""
    score: str
    """What a score is."""
    out_of_sample: bool
    """Whether scores are of prices that nobody learned from, the pretrained agent included."""
    reinitialized: bool = False
    """Whether what was transferred was thrown away, because it began worse than an untrained agent."""
    threshold_given: float | None = None
    """Score that counts as learned; None is 90% of scratch's asymptote."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the transfer, plain values."""
    agent: Any = field(default=None, repr=False)
    """The fine-tuned agent."""
    scratch_agent: Any = field(default=None, repr=False)
    """The one that learned from scratch."""

    @property
    def jump_start(self) -> float:
        """Score of the transferred agent before its first step, less the untrained one's."""
        return self.zero_shot - self.untrained

    @property
    def is_negative(self) -> bool:
        """Whether the transferred agent began worse than an untrained one."""
        return self.jump_start < 0.0

    @property
    def threshold(self) -> float:
        """Score that counts as learned; NaN where scratch learned nothing that it could be a share of."""
        if self.threshold_given is not None:
            return self.threshold_given
        best = self.asymptote(SCRATCH)
        return LEARNED * best if best > 0.0 else math.nan

    def asymptote(self, who: str = FINE_TUNED) -> float:
        """Mean of the last fifth of a curve; NaN where there is none. `who` is a column of `curves`."""
        if who not in self.curves:
            return math.nan
        values = self.curves[who].dropna().to_numpy(np.float64)
        n_last = max(1, round(ASYMPTOTE_SHARE * (len(values) - 1)))
        return float(values[-n_last:].mean())

    def timesteps_to_threshold(self, who: str = FINE_TUNED) -> float:
        """Timesteps at the first evaluation that reached the threshold; infinite where none did, NaN without one."""
        if who not in self.curves or math.isnan(self.threshold):
            return math.nan
        return timesteps_to(self.curves[who], self.threshold)

    def to_frame(self) -> pd.DataFrame:
        """Return the measures, one column per agent; scratch's jump start is 0 by definition."""
        columns = {}
        for who in self.curves:
            starts = (self.zero_shot, self.jump_start) if who == FINE_TUNED else (self.untrained, 0.0)
            columns[str(who)] = [*starts, self.timesteps_to_threshold(str(who)), self.asymptote(str(who))]
        index = ["score at 0 steps", "jump start", "timesteps to threshold", "asymptote"]
        return pd.DataFrame(columns, index=index)

    def formatted_table(self) -> pd.DataFrame:
        """Return `to_frame` as text."""
        frame = self.to_frame()
        text = frame.map(lambda value: _figure(value))
        steps = frame.loc["timesteps to threshold"].to_numpy(np.float64)
        text.loc["timesteps to threshold"] = [_timesteps(float(value)) for value in steps]
        return text

    def verdict(self) -> str:
        """Say in a few sentences what the transfer brought."""
        where = "unseen prices" if self.out_of_sample else "prices that count as seen (in sample)"
        start = (
            f"Before its first step in the target market the transferred agent scores {_figure(self.zero_shot)} on {where}, "
            f"an untrained one {_figure(self.untrained)} ({self.score_name})."
        )
        return " ".join(part for part in (start, self._negative(), self._speed(), self._end()) if part)

    @property
    def score_name(self) -> str:
        """What a score is, in words."""
        return SCORE_NAMES.get(self.score, self.score.replace("_", " "))

    def summary(self) -> str:
        """Return verdict and table as text."""
        return f"{self.verdict()}\n\n{self.formatted_table().to_string()}"

    def _negative(self) -> str:
        if self.reinitialized:
            return (
                "That is negative transfer: on the prices to learn from, too, it did worse than an untrained agent, so it was "
                "thrown away and the agent began with first weights."
                if self.is_negative
                else "On the prices to learn from it did worse than an untrained agent, so it was thrown away and the agent "
                "began with first weights."
            )
        if not self.is_negative:
            return ""
        return (
            "That is negative transfer: what was learned in the source market harms here. Consider "
            "on_negative='reinitialize', reinitialize=('heads',), freeze=() or another source."
        )

    def _speed(self) -> str:
        if math.isnan(self.threshold):
            return (
                "Scratch earned nothing, so there is no threshold to count timesteps to; give one, or more timesteps."
                if SCRATCH in self.curves
                else ""
            )
        ours = self.timesteps_to_threshold(FINE_TUNED)
        reached = f"{ours:,.0f} timesteps" if math.isfinite(ours) else "more timesteps than it was given"
        text = f"To reach {_figure(self.threshold)} it needs {reached}"
        if SCRATCH not in self.curves:
            return f"{text}."
        theirs = self.timesteps_to_threshold(SCRATCH)
        return f"{text}, scratch {f'{theirs:,.0f}' if math.isfinite(theirs) else 'more than it was given'}."

    def _end(self) -> str:
        if SCRATCH not in self.curves:
            return f"It ends at {_figure(self.asymptote())}."
        return f"It ends at {_figure(self.asymptote())}, scratch at {_figure(self.asymptote(SCRATCH))}."


def timesteps_to(curve: pd.Series, threshold: float) -> float:
    """Return the first index of a curve whose value is at least a threshold; infinite where none is.

    >>> timesteps_to(pd.Series([0.0, 0.5, 0.9], index=[0, 100, 200]), 0.5)
    100.0
    """
    reached = curve.index[(curve >= threshold).to_numpy()]
    return float(reached[0]) if len(reached) else math.inf


def _figure(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else "–"


def _timesteps(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not reached" if math.isinf(value) else "–"
