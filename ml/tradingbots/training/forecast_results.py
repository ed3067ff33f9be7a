"""What a validation of forecasts found: tables of scores with their intervals, and the forecasts themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

SCORES = ("r2", "ic", "rank_ic", "directional_skill", "crps", "coverage", "sharpe_ratio")
"""What forecasts are judged by; `ForecastValidation` says what each means."""
_PERCENT = ("r2", "directional_skill", "coverage")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ForecastValidation:
    """What predictors forecast out of sample, and how good that was.

    Scores, all pooled over assets: `r2`, R² against the better of zero and the mean training return; `ic` and `rank_ic`,
    correlation of forecast and outcome; `directional_skill`, share of directions called minus that of always calling the
    majority; `crps`, twice the mean pinball loss over the quantiles 0.05, 0.15 to 0.95, in units of log returns (less is
    better); `coverage`, share of outcomes in the 90% interval; `sharpe_ratio`, annualised, after costs, of holding each
    asset long or short by the sign of its forecast for one bar, whatever the horizon. Each fold starts flat. A score that is
    not defined, such as the correlation of a constant, is NaN.
    """

    per_fold: pd.DataFrame
    """`n_origins` and the scores; rows (model, horizon, fold)."""
    pooled: pd.DataFrame
    """The same over the origins of all folds; rows (model, horizon)."""
    intervals: pd.DataFrame
    """`estimate`, `low`, `high` and `block_length` (bars) of the pooled scores; rows (model, horizon, score)."""
    predictions: pd.DataFrame
    """Expected log returns; rows (fold, timestamp), columns (model, asset, horizon)."""
    quantiles: pd.DataFrame
    """Forecast quantiles of models that have them; rows as above, columns (model, asset, horizon, quantile)."""
    outcomes: pd.DataFrame
    """What happened, NaN where it is not known yet; rows as above, columns (asset, horizon)."""
    strategy_returns: pd.DataFrame
    """What holding by the sign of the forecasts earned over the bar after each origin, after costs, simple returns, NaN where
    the outcome is not known; rows as above, columns (model, horizon)."""
    folds: pd.DataFrame
    """Bars and dates of each fold, `n_origins` of which were forecast by every model."""
    confidence: float
    """Share of intervals built like these that would hold the truth, in (0, 1)."""
    naive: tuple[str, ...]
    """Which models are forecasts without skill, to compare with."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (model, horizon): each pooled score with its interval, `r2`, `r2_low`, `r2_high` and so on."""
        ends = self.intervals[["low", "high"]].unstack("score")
        table = self.pooled[["n_origins"]].copy()
        for score in SCORES:
            table[score] = self.pooled[score]
            for end in ("low", "high"):
                table[f"{score}_{end}"] = ends[(end, score)]
        return table

    def formatted_table(self) -> pd.DataFrame:
        """Return the pooled scores and intervals as text for people."""
        numbers = self.to_frame()
        return pd.DataFrame(
            {
                score.replace("_", " "): [
                    _as_text(score, row[score], row[f"{score}_low"], row[f"{score}_high"])
                    for _, row in numbers.iterrows()
                ]
                for score in SCORES
            },
            index=numbers.index,
        )

    def __repr__(self) -> str:
        """The pooled table, and what it is made of."""
        table = self.formatted_table()
        table.index = pd.Index(
            [f"{model}{' (naive)' if model in self.naive else ''}, {horizon} ahead" for model, horizon in table.index]
        )
        period = f"{self.folds['test_start'].min():%Y-%m-%d} to {self.folds['test_end'].max():%Y-%m-%d}"
        return (
            f"Out of sample: {len(self.folds)} folds, {len(self.outcomes):,} origins from {period}, assets: "
            f"{self.outcomes.columns.get_level_values('asset').nunique()}; {self.confidence:.0%} intervals by the stationary "
            f"bootstrap\n{table.to_string()}"
        )


def _as_text(score: str, value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    form = ".2%" if score in _PERCENT else ".5f" if score == "crps" else ".3f" if "ic" in score.split("_") else ".2f"
    text = [format(number, form) for number in (value, low, high)]
    return (text[0] if np.isnan(low) else f"{text[0]} ({text[1]} to {text[2]})").replace("-", "−")
