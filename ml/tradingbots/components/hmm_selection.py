"""How many regimes: by what models say of bars they have not seen, or by BIC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from ml.tradingbots.components.gaussian_hmm import GaussianHMM, GaussianHMMConfig
from ml.tradingbots.components.regime_detector import FloatArray
from ml.tradingbots.components.regime_inputs import read_histories


@dataclass(frozen=True)
class RegimeSelection:
    """A number of regimes, and what speaks for it."""

    n_regimes: int
    """The number chosen."""
    table: pd.DataFrame
    """One row per candidate. By "predictive": `log_score`, mean log density of a held-back bar given those before it, `behind`,
    by how much it is below the best one's, and `error`, the standard error of that. By "bic": `bic` and `behind`."""


def select_n_regimes(
    X: Any,
    candidates: Sequence[int] = (1, 2, 3, 4),
    *,
    by: Literal["predictive", "bic"] = "predictive",
    config: GaussianHMMConfig | None = None,
    test_share: float = 0.3,
) -> RegimeSelection:
    """Choose a number of regimes.

    Args:
        X: features of one history; (n_bars, n_features).
        candidates: numbers of regimes, each at least 1.
        by: "predictive" fits on the first bars and takes the fewest regimes whose one-step log score on the last ones is
            within a standard error of the best; "bic" fits on all and takes the lowest BIC (Schwarz, 1978).
        config: the other hyperparameters.
        test_share: share of the bars, the last ones, that "predictive" holds back.

    Raises:
        ValueError: an argument is out of range, or there are too few bars.
    """
    if not candidates or min(candidates) < 1 or len(set(candidates)) != len(candidates):
        raise ValueError(f"candidates must be different numbers of regimes, at least 1 each, got {tuple(candidates)}")
    if by not in ("predictive", "bic"):
        raise ValueError(f'by must be "predictive" or "bic", got {by!r}')
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share must be in (0, 1), got {test_share}")
    rows, numbers = read_histories([X]).rows, sorted(candidates)
    models = [GaussianHMM(replace(config or GaussianHMMConfig(), n_regimes=number)) for number in numbers]
    if by == "bic":
        values = np.array([model.fit(rows).bic(rows) for model in models])
        table = pd.DataFrame(
            {"bic": values, "behind": values - values.min()}, index=pd.Index(numbers, name="n_regimes")
        )
        return RegimeSelection(numbers[int(np.argmin(values))], table)
    n_train = len(rows) - math.ceil(test_share * len(rows))
    if n_train < 1:
        raise ValueError(f"test_share={test_share} leaves none of {len(rows)} bars to fit on: lower it")
    # Filtered from the first bar on: at the first held-back bar a model knows where it is.
    scores = [model.fit(rows[:n_train]).predictive_log_scores(rows)[n_train:] for model in models]
    best = scores[int(np.argmax([score.mean() for score in scores]))]
    behind = [best - score for score in scores]
    table = pd.DataFrame(
        {
            "log_score": [score.mean() for score in scores],
            "behind": [gap.mean() for gap in behind],
            "error": [_error_of_mean(gap) for gap in behind],
        },
        index=pd.Index(numbers, name="n_regimes"),
    )
    near = (table["behind"] <= table["error"]).to_numpy()
    return RegimeSelection(numbers[int(np.argmax(near))], table)


def _error_of_mean(values: FloatArray) -> float:
    """Standard error of a mean of dependent values (Newey & West, 1987), lags up to the cube root of their number."""
    off = values - values.mean()
    n_lags = int(len(off) ** (1.0 / 3.0))
    total = float(off @ off)
    for lag in range(1, min(n_lags, len(off) - 1) + 1):
        total += 2.0 * (1.0 - lag / (n_lags + 1.0)) * float(off[lag:] @ off[:-lag])
    return math.sqrt(max(total, 0.0)) / len(off)
