"""How forecasts fared, printed: every score with its interval, the naive forecasts beside the others."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pandas as pd

from tradingbots.console import show, show_table

if TYPE_CHECKING:
    from ml.tradingbots.training import ForecastValidation

# So that a table fits a terminal of 80 columns.
SCORES_PER_TABLE = 4


def show_scores(validation: ForecastValidation) -> None:
    """Print what was forecast, the pooled scores of every model and horizon, and what follows from them."""
    from ml.tradingbots.training import forecast_verdict

    folds = validation.folds
    n_assets = validation.outcomes.columns.get_level_values("asset").nunique()
    show(
        f"\nOut of sample, {folds['test_start'].min():%Y-%m-%d} to {folds['test_end'].max():%Y-%m-%d}, "
        f"{len(validation.outcomes):,} origins in {len(folds)} {'fold' if len(folds) == 1 else 'folds'}, "
        f"{n_assets} {'asset' if n_assets == 1 else 'assets'}; {validation.confidence:.0%} intervals\n"
    )
    table = validation.formatted_table()
    several = table.index.get_level_values("horizon").nunique() > 1
    table.index = pd.Index([_label(model, horizon, validation, several) for model, horizon in table.index])
    if not sys.stdout.isatty():
        show_table(table)
    else:
        for first in range(0, table.shape[1], SCORES_PER_TABLE):
            # The interval below its score.
            columns = table.iloc[:, first : first + SCORES_PER_TABLE]
            show_table(columns.map(lambda text: text.replace(" (", "\n(")))
    show()
    show(forecast_verdict(validation))


def show_weights(predictor: Any) -> None:
    """Print what each member of a fitted ensemble counts for, horizon by horizon; nothing of other predictors."""
    weights = getattr(predictor, "weights_", None)
    if weights is not None:
        show("\nWeights of the members\n")
        show_table(weights.map("{:.3f}".format).rename(columns=lambda horizon: f"{horizon} ahead"), first="member")


def _label(model: str, horizon: int, validation: ForecastValidation, several: bool) -> str:
    ahead = f", {horizon} ahead" if several else ""
    return f"{model}{' (naive)' if model in validation.naive else ''}{ahead}"
