"""Validation of predictors: what is fitted and judged where, agreement of scores with arithmetic, and every refusal."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from ml.tradingbots.components.cnn_predictor import CNNPricePredictor
from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor
from ml.tradingbots.components.forecast_table import forward_returns
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import RidgePredictor, ZeroPredictor
from ml.tradingbots.components.return_predictor import levels_within
from ml.tradingbots.core import forecast_metrics
from ml.tradingbots.core.metrics import sharpe_ratio
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import CombinatorialPurgedCV, PurgedKFold, WalkForwardValidator
from ml.tradingbots.data.synthetic import autoregressive
from ml.tradingbots.data.synthetic_patterns import panel_autoregressive
from ml.tradingbots.training.forecast_validation import LEVELS, SCORES, check_purge, validate

torch.set_num_threads(1)
PRICES = autoregressive(700, phi=0.4, seed=3).prices
SPLITTER = WalkForwardValidator(n_splits=3, purge_size=2)


class PointLagOne:
    """AR(1) by least squares: a whole predictor in closed form."""

    def __init__(self, *, horizons=(1,), window_size=2):
        self.horizons, self.window_size = horizons, window_size

    def get_params(self, deep=True):
        return {"horizons": self.horizons, "window_size": self.window_size}

    def fit(self, price_data, *, bars=None):
        table = Bars.from_frame(price_data)
        last, y = self._last(table), forward_returns(table, self.horizons)
        self.n_bars_given, self.bars_given = table.n_bars, bars
        rows = bars[(bars >= self.window_size - 1) & (bars + max(self.horizons) < table.n_bars)]
        x = last[rows][..., None]
        self.slope = (x * y[rows]).sum((0, 1)) / (x * x).sum((0, 1))
        self.deviation = (y[rows] - x * self.slope).std((0, 1))
        return self

    def predict(self, price_data, *, bars=None):
        table = Bars.from_frame(price_data)
        rows = self._origins(table, bars)
        columns = pd.MultiIndex.from_product([table.assets, self.horizons])
        mean = self._last(table)[rows][..., None] * self.slope
        return pd.DataFrame(mean.reshape(len(rows), len(columns)), index=table.timestamps[rows], columns=columns)

    def _origins(self, table, bars):
        rows = np.arange(table.n_bars) if bars is None else bars
        return rows[rows >= self.window_size - 1]

    @staticmethod
    def _last(table):
        return np.diff(np.log(table.close), axis=0, prepend=np.nan)


class LagOne(PointLagOne):
    """With normal quantiles."""

    predictor_type = "lag_one"

    def predict_quantiles(self, price_data, quantiles, *, bars=None):
        mean = self.predict(price_data, bars=bars)
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(quantiles, dtype=torch.float64)).numpy()
        n_assets = len(mean.columns) // len(self.horizons)
        wide = mean.to_numpy().reshape(len(mean), n_assets, len(self.horizons), 1) + self.deviation[:, None] * normal
        columns = pd.MultiIndex.from_tuples([(*label, level) for label in mean.columns for level in quantiles])
        return pd.DataFrame(wide.reshape(len(mean), len(columns)), index=mean.index, columns=columns)


class Zero(PointLagOne):
    """Expects nothing, and has no quantiles."""

    def predict(self, price_data, *, bars=None):
        return super().predict(price_data, bars=bars) * 0.0


NAIVE = {"zero": Zero}


def check(factory=LagOne, prices=PRICES, splitter=SPLITTER, naive=NAIVE, **settings):
    return validate(factory, prices, splitter, naive=naive, **{"n_bootstrap": 60} | settings)


@pytest.fixture(scope="module")
def found():
    horizons = (1, 2)
    return check(lambda: LagOne(horizons=horizons), naive={"zero": lambda: Zero(horizons=horizons)})


# --- What is fitted and asked


def test_every_fold_fits_a_fresh_predictor_on_its_training_origins_alone():
    made = []

    def factory():
        made.append(LagOne(horizons=(1, 2)))
        return made[-1]

    check(factory, naive={})
    fitted = [predictor for predictor in made if hasattr(predictor, "slope")]
    folds = list(SPLITTER.split(PRICES))
    assert [predictor.bars_given.tolist() for predictor in fitted] == [train.tolist() for train, _ in folds]


def test_a_fit_is_given_no_bar_beyond_its_last_label():
    made = []
    check(lambda: made.append(LagOne(horizons=(1, 2))) or made[-1], naive={})
    fitted = [predictor for predictor in made if hasattr(predictor, "slope")]
    assert [predictor.n_bars_given for predictor in fitted] == [
        train[-1] + 3
        for train, _ in SPLITTER.split(PRICES)  # Positions up to train[-1] + horizon.
    ]


class Careless(LagOne):
    """Standardises by the mean of every bar that it is shown, future ones included."""

    @staticmethod
    def _last(table):
        last = LagOne._last(table)
        return last - np.nanmean(last)


def test_even_a_careless_predictor_sees_nothing_beyond_the_test_block():
    changed = PRICES.copy()
    first_test = next(iter(SPLITTER.split(PRICES)))[1]
    changed.iloc[first_test[-1] + 1 :] *= 3.0
    before, after = (check(Careless, prices, n_bootstrap=0).predictions.loc[0] for prices in (PRICES, changed))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_prices_may_be_bars_or_a_table_to_the_same_bits():
    of_bars = check(prices=Bars.from_frame(PRICES), n_bootstrap=0)
    pd.testing.assert_frame_equal(of_bars.pooled, check(n_bootstrap=0).pooled, check_exact=True)


def test_all_models_are_judged_at_the_origins_that_all_of_them_forecast():
    models = {"short": LagOne, "long": lambda: LagOne(window_size=20)}
    found = check(models, splitter=PurgedKFold(n_splits=4, purge_size=1), n_bootstrap=0)
    n_origins = found.per_fold["n_origins"].unstack("model")
    assert (n_origins["short"] == n_origins["long"]).all()
    assert found.folds["n_origins"].tolist() == [156, 175, 175, 175]  # 19 bars of the first fold lack a window of 20.


def test_progress_is_reported_once_for_each_model_and_fold():
    reports = []
    check(report=reports.append, n_bootstrap=0)
    assert [(report.model, report.fold) for report in reports] == [
        (name, fold) for fold in range(3) for name in ("lag_one", "zero")
    ]
    assert reports[0].n_folds == 3
    assert reports[0].n_test_bars == 175


# --- Scores


def test_scores_are_those_of_the_forecasts_that_are_handed_out(found):
    y = found.outcomes.xs(2, level="horizon", axis=1).to_numpy()
    known = np.isfinite(y).all(1)
    prediction = found.predictions["lag_one"].xs(2, level="horizon", axis=1).to_numpy()[known]
    quantiles = found.quantiles["lag_one"].xs(2, level="horizon", axis=1).to_numpy()[known][:, None]
    row = found.pooled.loc[("lag_one", 2)]
    assert row["n_origins"] == known.sum() == len(y) - 2
    assert row["ic"] == forecast_metrics.information_coefficient(y[known], prediction)
    assert row["crps"] == forecast_metrics.crps_from_quantiles(y[known], quantiles, LEVELS)
    assert row["coverage"] == forecast_metrics.coverage(y[known], quantiles[..., 0], quantiles[..., -1])


def test_r2_is_against_the_mean_of_each_folds_own_training_returns(found):
    y = forward_returns(Bars.from_frame(PRICES), (1,))[..., 0]
    for fold, (train, test) in enumerate(SPLITTER.split(PRICES)):
        known = test[np.isfinite(y[test, 0])]
        prediction = found.predictions[("lag_one", "asset", 1)].loc[fold].to_numpy()[: len(known), None]
        wanted = forecast_metrics.r2_against_naive(y[known], prediction, y[train].mean())
        assert found.per_fold.loc[("lag_one", 1, fold), "r2"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("prices", [PRICES, panel_autoregressive(3, 300, seed=5).prices], ids=["one asset", "panel"])
def test_intervals_are_of_the_very_scores_in_the_pooled_table(prices):
    horizons = (1, 3)
    splitter = WalkForwardValidator(n_splits=2, purge_size=3)
    found = check(lambda: LagOne(horizons=horizons), prices, splitter, naive={}, n_bootstrap=20)
    estimates = found.intervals["estimate"].unstack("score")[list(SCORES)]
    # The interval adds the scores up origin by origin, in another order.
    np.testing.assert_allclose(estimates, found.pooled[list(SCORES)], rtol=1e-9, atol=1e-12)
    ends = found.intervals.dropna()
    assert ((ends["low"] <= ends["estimate"] + 1e-12) & (ends["estimate"] <= ends["high"] + 1e-12)).mean() > 0.9


def test_blocks_are_at_least_a_horizon_long():
    splitter = WalkForwardValidator(n_splits=2, purge_size=12)
    found = check(lambda: LagOne(horizons=(12,)), splitter=splitter, naive={})
    assert (found.intervals["block_length"] >= 12.0).all()


def test_a_known_market_is_found_out_and_no_skill_stays_none(found):
    r2 = found.intervals.loc[("lag_one", 1, "r2")]
    assert r2["low"] < 0.16 < r2["high"]  # phi² is the best R² that there is.
    assert found.intervals.loc[("lag_one", 1, "ic"), "low"] > 0.2
    assert found.pooled.loc[("zero", 1), "r2"] <= 0.0
    assert np.isnan(found.pooled.loc[("zero", 1), "ic"])
    assert np.isnan(found.pooled.loc[("zero", 1), "sharpe_ratio"])
    # Three standard errors of 525 outcomes of a share of 0.9.
    assert abs(found.pooled.loc[("lag_one", 1), "coverage"] - 0.9) < 3.0 * np.sqrt(0.09 / 525)


def test_costs_lower_the_sharpe_ratio_and_nothing_else():
    free, dear = (check(cost_rate=rate, n_bootstrap=0).pooled.loc[("lag_one", 1)] for rate in (0.0, 0.002))
    assert dear["sharpe_ratio"] < free["sharpe_ratio"] - 0.5
    assert dear.drop("sharpe_ratio").equals(free.drop("sharpe_ratio"))


def test_a_model_without_quantiles_has_no_crps(found):
    assert np.isnan(found.pooled.loc[("zero", 1), "crps"])
    assert "zero" not in found.quantiles.columns.get_level_values("model")


def test_without_resamples_there_are_no_intervals():
    assert check(n_bootstrap=0).intervals[["low", "high"]].isna().all().all()


def test_same_seed_same_intervals():
    one, two, other = (check(seed=seed, naive={}).intervals["low"] for seed in (1, 1, 2))
    assert one.equals(two)
    assert not one.equals(other)


# --- Tables and text


def test_tables_name_their_rows(found):
    assert found.per_fold.index.names == ["model", "horizon", "fold"]
    assert found.predictions.columns.names == ["model", "asset", "horizon"]
    assert found.quantiles.columns.names == ["model", "asset", "horizon", "quantile"]
    assert found.predictions.index.equals(found.outcomes.index)
    assert found.folds["test_end"].max() == PRICES.index[-1]


def test_what_the_sign_rule_earned_is_handed_out_bar_by_bar_and_its_sharpe_ratio_is_the_score(found):
    assert found.strategy_returns.index.equals(found.predictions.index)
    for label in found.pooled.index:
        earned = found.strategy_returns[label].dropna()
        sharpe = sharpe_ratio(earned, bars_per_year=Bars.from_frame(PRICES).bars_per_year)
        np.testing.assert_allclose(sharpe, found.pooled.loc[label, "sharpe_ratio"], rtol=1e-12)


def test_the_frame_has_each_score_with_its_interval(found):
    frame = found.to_frame()
    assert list(frame.columns[:4]) == ["n_origins", "r2", "r2_low", "r2_high"]
    assert frame.loc[("lag_one", 2), "ic_high"] == found.intervals.loc[("lag_one", 2, "ic"), "high"]


def test_it_reads_as_a_table_with_the_naive_ones_marked(found):
    text = repr(found)
    assert "3 folds, 525 origins" in text
    assert "zero (naive), 1 ahead" in text
    assert "95% intervals" in text


# --- Our own predictors


def test_our_predictors_stand_beside_the_usual_naive_ones():
    tiny = {"window_size": 6, "max_epochs": 1, "horizons": (1, 2)}
    models = {
        "lstm": lambda: LSTMPricePredictor(hidden_dim=4, **tiny),
        "cnn": lambda: CNNPricePredictor(hidden_dim=4, n_filters=(4,), **tiny),
    }
    found = check(models, panel_autoregressive(2, 200, seed=1).prices, naive=None, n_bootstrap=20)
    assert found.naive == ("zero", "drift", "last_sign", "ridge")
    names = ["lstm", "cnn", *found.naive]
    assert found.pooled.index.tolist() == [(name, horizon) for name in names for horizon in (1, 2)]
    assert found.pooled[["r2", "crps", "coverage"]].notna().all().all()


def test_a_predictor_named_like_a_usual_naive_one_stands_in_its_place():
    own = RidgePredictor(window_size=9)
    found = check({"ridge": lambda: clone(own), "lag_one": LagOne}, naive=None, n_bootstrap=0)
    assert found.naive == ("zero", "drift", "last_sign")
    assert found.pooled.index.get_level_values("model").tolist() == ["ridge", "lag_one", *found.naive]
    alone = check({"mine": lambda: clone(own), "lag_one": LagOne}, naive=None, n_bootstrap=0)
    assert found.pooled.loc[("ridge", 1)].equals(alone.pooled.loc[("mine", 1)])
    assert check(lambda: clone(own), naive=None, n_bootstrap=0).naive == ("zero", "drift", "last_sign")


def test_an_ensemble_can_be_judged_beside_a_ridge_that_sees_as_much_as_its_members():
    def ensemble():
        return EnsemblePricePredictor([RidgePredictor(window_size=12), RidgePredictor()])

    found = check({"ensemble": ensemble}, naive=None, n_bootstrap=0)
    wanted = check(lambda: RidgePredictor(window_size=12), naive={}, n_bootstrap=0)
    assert found.predictions["ridge"].equals(wanted.predictions["ridge"])


def narrow(quantiles=(0.1, 0.5, 0.9), **changes):
    tiny = {"hidden_dim": 4, "window_size": 4, "max_epochs": 1}
    return LSTMPricePredictor(head="quantile", quantiles=quantiles, **tiny | changes)


@pytest.mark.parametrize(
    "factory",
    [narrow, lambda: EnsemblePricePredictor([narrow(), RidgePredictor()])],
    ids=["network", "ensemble with such a member"],
)
def test_a_model_whose_quantiles_do_not_reach_far_enough_is_judged_without_crps_and_coverage(factory):
    found = check(
        {"narrow": factory}, naive=None, splitter=WalkForwardValidator(n_splits=2, purge_size=1), n_bootstrap=0
    )
    assert found.pooled.loc[("narrow", 1), ["crps", "coverage"]].isna().all()
    assert found.pooled.loc[("narrow", 1), ["r2", "ic"]].notna().all()
    assert "narrow" not in found.quantiles.columns.get_level_values("model")
    assert found.pooled.loc[list(found.naive), "crps"].notna().all()


def test_levels_that_a_predictor_cannot_be_asked_for_are_left_out():
    levels = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
    inner = EnsemblePricePredictor({"inner": narrow((0.2, 0.5, 0.8)), "ridge": RidgePredictor()})
    assert levels_within(narrow(), levels) == levels[1:-1]
    assert levels_within(EnsemblePricePredictor({"outer": inner, "narrow": narrow()}), levels) == (0.25, 0.5, 0.75)
    assert levels_within(narrow((*LEVELS[:5], 0.5, *LEVELS[5:])), LEVELS) == LEVELS
    assert levels_within(LSTMPricePredictor(quantiles=(0.1, 0.5, 0.9), head="gaussian"), levels) == levels
    assert levels_within(LagOne(), levels) == levels
    assert levels_within(PointLagOne(), levels) == ()


def test_the_usual_naive_forecasts_know_the_volatility_where_the_predictors_do():
    def ensemble():
        return EnsemblePricePredictor([RidgePredictor(volatility_bars=20), RidgePredictor(volatility_bars=5)])

    found = check({"ensemble": ensemble}, naive=None, n_bootstrap=0)
    wanted = check(lambda: ZeroPredictor(volatility_bars=20), naive={}, n_bootstrap=0)
    pd.testing.assert_frame_equal(found.quantiles["zero"], wanted.quantiles["zero"], check_exact=True)
    widths = found.quantiles["zero"].diff(axis=1).iloc[:, 1:]
    assert (widths.groupby("fold").std() > 0.0).all(axis=None)
    still = check(LagOne, naive=None, n_bootstrap=0).quantiles["zero"]
    assert (still.groupby("fold").nunique() == 1).all(axis=None)


# --- Refusals


def test_a_naive_forecast_may_not_reach_further_than_the_purge_either():
    with pytest.raises(ValueError, match="forecasts reach 5 ahead"):
        check(naive={"far": lambda: Zero(horizons=(1, 5))})


@pytest.mark.parametrize("make", [WalkForwardValidator, PurgedKFold])
def test_a_purge_shorter_than_the_horizon_is_refused_with_the_splitter_to_use(make):
    with pytest.raises(ValueError, match=r"n_splits=3, purge_size=4"):
        check(lambda: LagOne(horizons=(1, 4)), splitter=make(n_splits=3, purge_size=3), naive={})


@pytest.mark.parametrize(("gap", "is_refused"), [(3, True), (4, False)])
def test_folds_of_any_splitter_are_measured(gap, is_refused):
    folds = [(np.arange(10), np.arange(9 + gap, 20))]
    if not is_refused:
        return check_purge(folds, 3, object())
    with pytest.raises(ValueError, match=r"WalkForwardValidator\(n_splits=5, purge_size=3\)"):
        check_purge(folds, 3, object())


@pytest.mark.parametrize(
    "splitter",
    [
        CombinatorialPurgedCV(n_folds=4, n_test_folds=2, purge_size=1),
        WalkForwardValidator(train_size=100, test_size=50, step=20, purge_size=1),
    ],
)
def test_bars_tested_twice_are_refused(splitter):
    with pytest.raises(ValueError, match="tested in"):
        check(splitter=splitter)


class Holes(PointLagOne):
    def predict(self, price_data, *, bars=None):
        return super().predict(price_data, bars=bars).where(lambda table: table > 0.0)


class OtherAsset(PointLagOne):
    def predict(self, price_data, *, bars=None):
        return super().predict(price_data, bars=bars).rename(columns={"asset": "other"})


class Silent(PointLagOne):
    def __init__(self):
        self.horizons = None

    def get_params(self, deep=True):
        return {}


@pytest.mark.parametrize(
    ("factory", "error", "match"),
    [
        (Holes, ValueError, "forecast no number at bar"),
        (OtherAsset, ValueError, "forecast no column"),
        (Silent, TypeError, "how far ahead"),
        ({}, ValueError, "at least one predictor"),
        ({"zero": LagOne}, ValueError, "factory and naive both have a 'zero'"),
    ],
)
def test_what_cannot_be_judged_is_refused(factory, error, match):
    with pytest.raises(error, match=match):
        check(factory)


def test_folds_without_a_common_origin_are_refused():
    with pytest.raises(ValueError, match=r"no test bar of fold 0 .*lag_one 0"):
        check(lambda: LagOne(window_size=80), splitter=PurgedKFold(n_splits=10, purge_size=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 0.0},
        {"confidence": 95},
        {"confidence": float("nan")},
        {"cost_rate": -0.001},
        {"cost_rate": 1.0},
        {"n_bootstrap": -1},
        {"seed": -1},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name_before_any_fit(wrong):
    made = []
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be"):
        check(lambda: made.append(LagOne()) or made[-1], **wrong)
    assert not made
