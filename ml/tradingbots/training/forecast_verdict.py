"""What can be concluded from a validation of forecasts: each predictor beside the best forecast without skill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml.tradingbots.components.forecast_table import FloatArray
from ml.tradingbots.core.bootstrap import BootstrapInterval, automatic_block_length, block_bootstrap_interval
from ml.tradingbots.training.forecast_results import ForecastValidation
from ml.tradingbots.training.forecast_slices import forecast_slice, horizons_of, models_at
from ml.tradingbots.training.formatting import bars_ahead, format_fine_percent, format_interval, spaced
from ml.tradingbots.training.results import NO_INTERVAL, Interval

N_BOOTSTRAP = 4_000
"""Resamples of each comparison: the ends of its interval lie far out in the tails where there are many comparisons."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The R² of one predictor beside that of the best naive forecast of the same returns."""

    model: str
    horizon: int
    r2: float
    """NaN where the outcomes do not vary."""
    r2_interval: Interval
    """Of `r2`, as the validation has it; NaN where it was not estimated."""
    naive: str | None
    """The naive forecast with the highest R²; None where none stands beside the predictor."""
    naive_r2: float
    interval: Interval
    """Of `difference`, wide enough to hold for all comparisons of a validation at once; NaN where it was not estimated."""

    @property
    def difference(self) -> float:
        """R² of the predictor less that of the naive forecast."""
        return self.r2 - self.naive_r2

    @property
    def is_win(self) -> bool:
        """Whether the predictor is better than the better of zero and the training mean, and surely than every naive one."""
        return self.r2 > 0.0 and self.interval[0] > 0.0


def compare_with_naive(validation: ForecastValidation, *, seed: int = 0) -> list[Comparison]:
    """Compare the R² of every predictor with the best naive one at its horizon, on the same origins.

    What the two have in common, the market, cancels in the difference of their squared errors, so that its interval is
    narrower than those of the two scores suggest. Whoever names the best of k comparisons has chosen it for its luck too:
    each interval therefore has confidence 1 - (1 - c) / k, and all k hold at once with at least c (Bonferroni).

    Args:
        validation: what `validate` returned. Where it has no intervals (`n_bootstrap=0`), there are none here.
        seed: of the resampling.
    """
    pairs = [
        (model, horizon)
        for horizon in horizons_of(validation)
        for model in models_at(validation, horizon)
        if model not in validation.naive
    ]
    confidence = 1.0 - (1.0 - validation.confidence) / max(len(pairs), 1)
    return [_compared(validation, model, horizon, confidence, seed) for model, horizon in pairs]


def forecast_verdict(validation: ForecastValidation, comparisons: Sequence[Comparison] | None = None) -> str:
    """Say in two sentences whether any predictor beats the naive forecasts, and whether that can be told from luck.

    Args:
        validation: what `validate` returned.
        comparisons: what `compare_with_naive` found; None finds it.
    """
    found = compare_with_naive(validation) if comparisons is None else comparisons
    best = best_comparison(found)
    if best is None:
        return "No R² is defined: the outcomes do not vary."
    n_wins = sum(comparison.is_win for comparison in found)
    return f"{_outcome(best, n_wins, len(found), validation.confidence)} {_difference(best, len(found), validation.confidence)}"


def best_comparison(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the comparison that speaks most for a predictor: of those with an R² above 0, the largest difference."""
    known = [comparison for comparison in comparisons if not np.isnan(comparison.r2)]
    if not known:
        return None
    positive = [comparison for comparison in known if comparison.r2 > 0.0 and comparison.naive is not None]
    if any(comparison.is_win for comparison in positive):
        positive = [comparison for comparison in positive if comparison.is_win]
    if positive:
        return max(positive, key=lambda comparison: comparison.difference)
    return max(known, key=lambda comparison: comparison.r2)


def _compared(validation: ForecastValidation, model: str, horizon: int, confidence: float, seed: int) -> Comparison:
    r2 = {name: float(validation.pooled["r2"][name, horizon]) for name in models_at(validation, horizon)}
    ends = validation.intervals.loc[(model, horizon, "r2"), ["low", "high"]].to_numpy(np.float64)
    rivals = [name for name in r2 if name in validation.naive and not np.isnan(r2[name])]
    naive = max(rivals, key=lambda name: r2[name], default=None)
    interval = NO_INTERVAL
    if naive is not None and np.isfinite(ends).all():
        gain = _gain(validation, (model, naive), horizon, (r2[model], r2[naive]))
        found = _interval(gain, horizon, confidence, seed)
        interval = (found.low, found.high)
    return Comparison(
        model=model,
        horizon=horizon,
        r2=r2[model],
        r2_interval=(float(ends[0]), float(ends[1])),
        naive=naive,
        naive_r2=float("nan") if naive is None else r2[naive],
        interval=interval,
    )


def _gain(validation: ForecastValidation, models: tuple[str, str], horizon: int, r2: tuple[float, float]) -> FloatArray:
    """Return what each origin adds to the first model's R² less the second's, which is the mean of it; (n_origins,)."""
    slices = [forecast_slice(validation, model, horizon) for model in models]
    errors = [((found.outcomes - found.predictions) ** 2).sum(axis=1) for found in slices]
    # Both R² have one denominator, that of the better of zero and the training mean, which follows from either.
    error, unexplained = max((float(error.mean()), 1.0 - score) for error, score in zip(errors, r2, strict=True))
    gain: FloatArray = (errors[1] - errors[0]) * (unexplained / error if error > 0.0 else 0.0)
    return gain


def _interval(gain: FloatArray, horizon: int, confidence: float, seed: int) -> BootstrapInterval:
    def mean(batch: FloatArray) -> FloatArray:
        found: FloatArray = batch.mean(axis=1)
        return found

    # Outcomes over h bars share h - 1 of them with their neighbours.
    length = max(automatic_block_length(mean, gain, vectorised=True), float(min(horizon, max(len(gain) // 4, 1))))
    return block_bootstrap_interval(
        mean, gain, block_length=length, n_samples=N_BOOTSTRAP, confidence=confidence, seed=seed, vectorised=True
    )


def _outcome(best: Comparison, n_wins: int, n_comparisons: int, confidence: float) -> str:
    estimated = np.isfinite(best.r2_interval).all()
    interval = f" ({confidence:.0%} interval {format_interval(best.r2_interval, format_fine_percent)})"
    r2 = f"R² {format_fine_percent(best.r2)}{interval if estimated else ''}"
    name, ahead = spaced(best.model), bars_ahead(best.horizon)
    if best.naive is None:
        return f"Out of sample, the best predictor is {name} {ahead}: {r2} against the better of zero and the training mean."
    naive = f"{spaced(best.naive)}, {format_fine_percent(best.naive_r2)}"
    if best.is_win:
        others = "" if n_wins == 1 else f" {n_wins} of {n_comparisons} forecasts do, this one by most."
        return f"Out of sample, {name} beats the naive forecasts {ahead}: {r2}; the best of them, {naive}.{others}"
    if best.r2 <= 0.0:
        outcome = "no predictor beats the better of zero and the training mean: the best"
    elif best.difference > 0.0:
        outcome = "no predictor is shown to beat the naive forecasts: the best"
    else:
        outcome = "no predictor beats the naive forecasts: the closest"
    return f"Out of sample, {outcome}, {name} {ahead}, has {r2}; the best naive forecast, {naive}."


def _difference(best: Comparison, n_comparisons: int, confidence: float) -> str:
    if best.naive is None:
        return "No naive forecast stands beside it."
    low, high = best.interval
    if np.isnan(low) or np.isnan(high):
        return "Whether the difference can be told apart from luck was not estimated."
    together = (
        f"{confidence:.0%} interval{f' for all {n_comparisons} comparisons at once' if n_comparisons > 1 else ''}"
    )
    return (
        f"The difference is {'' if low > 0.0 or high < 0.0 else 'not '}distinguishable from zero: "
        f"{format_fine_percent(best.difference)} ({together}: {format_interval(best.interval, format_fine_percent)})."
    )
