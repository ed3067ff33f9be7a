"""Figures of forecasts: what they draw is what the validation holds."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.naive_predictors import RidgePredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import WalkForwardValidator
from ml.tradingbots.data.synthetic_patterns import panel_autoregressive
from ml.tradingbots.training.calibration import CHANCE, chance_band, effective_outcomes
from ml.tradingbots.training.figure_style import BASELINE_GREYS
from ml.tradingbots.training.forecast_figures import (
    calibration_figure,
    coverage_figure,
    fan_chart_figure,
    interval_figure,
    model_lines,
)
from ml.tradingbots.training.forecast_slices import ForecastSlice, forecast_slice
from ml.tradingbots.training.forecast_validation import LEVELS, validate
from ml.tradingbots.training.skill_figures import (
    fitting_figure,
    fold_figure,
    skill_figure,
    stitched_equity_figure,
)

torch.set_num_threads(1)
PRICES = panel_autoregressive(3, 600, phi=0.4, seed=1).prices
BARS = Bars.from_frame(PRICES)


class PointRidge:
    """A predictor that has no quantiles, and forecasts one bar ahead only."""

    def __init__(self):
        self.inner = RidgePredictor(window_size=2)

    def get_params(self, deep=True):
        return self.inner.get_params()

    def fit(self, price_data, *, bars=None):
        self.inner.fit(price_data, bars=bars)
        return self

    def predict(self, price_data, *, bars=None):
        return self.inner.predict(price_data, bars=bars)


@pytest.fixture(scope="module")
def found():
    factory = {"short": lambda: RidgePredictor(horizons=(1, 5), window_size=2), "point": PointRidge}
    return validate(factory, PRICES, WalkForwardValidator(n_splits=3, purge_size=5), n_bootstrap=40)


@pytest.fixture(scope="module")
def latest():
    predictor = RidgePredictor(horizons=(1, 5), window_size=2).fit(PRICES)
    return predictor.predict_quantiles(PRICES, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)).tail(1)


def traces(figure):
    return {trace.name: trace for trace in figure.data}


# --- The fan


def test_the_fan_is_the_close_times_the_exponential_of_the_quantiles(latest):
    figure = fan_chart_figure(BARS, latest, asset="A01")
    close = PRICES["A01"].iloc[-1]
    wanted = close * np.exp(latest["A01"].iloc[0])
    median = traces(figure)["median"]
    assert list(median.x) == [1, 5]
    np.testing.assert_allclose(median.y, [wanted[1, 0.5], wanted[5, 0.5]], rtol=1e-12)
    for name, low, high in (("90%", 0.05, 0.95), ("80%", 0.1, 0.9), ("50%", 0.25, 0.75)):
        outline = traces(figure)[name]
        assert list(outline.x) == [0, 1, 5, 5, 1, 0]
        ends = [close, wanted[1, low], wanted[5, low], wanted[5, high], wanted[1, high], close]
        np.testing.assert_allclose(outline.y, ends, rtol=1e-12)


def test_the_fan_starts_where_the_closes_end(latest):
    past = traces(fan_chart_figure(BARS, latest, n_bars=20))["close"]
    np.testing.assert_array_equal(past.y, PRICES["A00"].iloc[-21:])
    assert list(past.x) == list(range(-20, 1))


def test_prices_after_the_origin_are_drawn_beside_the_fan():
    predictor = RidgePredictor(horizons=(5,)).fit(PRICES)
    quantiles = predictor.predict_quantiles(PRICES, bars=[500])
    what_came = traces(fan_chart_figure(BARS, quantiles))["what came"]
    np.testing.assert_array_equal(what_came.y, PRICES["A00"].iloc[500:506])


def test_quantiles_without_a_median_make_bands_alone(latest):
    outer = latest.loc[:, [label[2] in (0.05, 0.95) for label in latest.columns]]
    assert set(traces(fan_chart_figure(BARS, outer))) == {"close", "90%"}


def test_a_name_is_not_taken_for_markup():
    hostile = "<a href='http://x'>B&B</a>"
    prices = PRICES[["A00"]].rename(columns={"A00": hostile})
    quantiles = RidgePredictor().fit(prices).predict_quantiles(prices).tail(1)
    title = fan_chart_figure(Bars.from_frame(prices), quantiles).layout.title.text
    assert "&lt;a href='http://x'&gt;B&amp;B&lt;/a&gt;" in title
    assert "<" not in title


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q: (BARS, pd.concat([q, q]), None), "quantiles must be one row"),
        (lambda q: (BARS, q["A00"], None), r"columns \(asset, horizon, quantile\)"),
        (lambda q: (BARS, q.loc[:, [label[2] == 0.5 for label in q.columns]], None), "a pair of levels"),
        (lambda q: (BARS, q, "MSFT"), "asset must be in the forecast .* got 'MSFT'"),
        (lambda q: (BARS.slice(0, 100), q, None), "bars must hold the origin"),
    ],
    ids=["two rows", "two levels", "no pair", "unknown asset", "no origin"],
)
def test_what_makes_no_fan_is_refused(latest, change, words):
    bars, quantiles, asset = change(latest)
    with pytest.raises(ValueError, match=words):
        fan_chart_figure(bars, quantiles, asset=asset)


# --- Intervals, calibration, coverage


def test_the_marked_misses_are_the_outcomes_outside_their_interval(found):
    figure = interval_figure(found, model="ridge", asset="A02", horizon=5, n_origins=100)
    quantiles, outcomes = found.quantiles["ridge"]["A02"][5], found.outcomes["A02"][5]
    rows = outcomes.notna().to_numpy()
    quantiles, outcomes = quantiles[rows].iloc[-100:], outcomes[rows].iloc[-100:]
    outside = (outcomes < quantiles[LEVELS[0]]) | (outcomes > quantiles[LEVELS[-1]])
    drawn = traces(figure)
    name = f"outcome outside ({outside.sum()})"
    np.testing.assert_array_equal(drawn[name].y, outcomes[outside])
    assert len(drawn[f"outcome inside ({100 - outside.sum()})"].y) == 100 - outside.sum()
    np.testing.assert_array_equal(drawn["90% interval"].y, quantiles[LEVELS[-1]])


@pytest.mark.parametrize("horizon", [1, 5])
def test_calibration_is_the_share_of_outcomes_below_each_quantile(found, horizon):
    outcomes = found.outcomes.xs(horizon, axis=1, level="horizon")
    quantiles = found.quantiles["short"].xs(horizon, axis=1, level="horizon")
    known = outcomes.notna().all(axis=1)
    shares = [np.mean([outcomes[known][a] <= quantiles[known][a][level] for a in outcomes.columns]) for level in LEVELS]
    upper, lower = (trace for trace in calibration_figure(found, horizon=horizon).data if trace.name == "short")
    np.testing.assert_allclose(upper.y, shares, rtol=1e-12)
    np.testing.assert_allclose(lower.y, np.subtract(shares, LEVELS), atol=1e-12)


def test_a_model_without_quantiles_has_no_calibration_and_takes_no_colour_of_another(found):
    drawn = {trace.name: trace.line.color for trace in calibration_figure(found).data}
    assert "point" not in drawn
    assert drawn["short"] == model_lines(found)["short"]["color"]


def make_slice(outcomes, quantiles):
    n_origins = len(outcomes)
    return ForecastSlice(
        timestamps=pd.date_range("2020-01-01", periods=n_origins, tz="UTC"),
        outcomes=outcomes,
        predictions=np.zeros_like(outcomes),
        quantiles=np.broadcast_to(quantiles, (*outcomes.shape, len(quantiles))),
        levels=np.array(LEVELS),
    )


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_assets_count_by_how_far_they_move_together(shared):
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((4_000, 1)), rng.standard_normal((4_000, 5))
    outcomes = np.sqrt(shared) * common + np.sqrt(1.0 - shared) * own
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS, dtype=torch.float64)).numpy()
    count = effective_outcomes([make_slice(outcomes, normal)], 1)
    if shared == 0.7:
        assert 4_000 < count < 20_000
    else:
        # A ratio of sample variances of 4,000 rows, averaged over ten levels: known to a few per cent.
        assert count == pytest.approx(4_000 if shared else 20_000, rel=0.05)


@pytest.mark.parametrize("horizon", [1, 5])
def test_the_band_of_chance_holds_perfect_forecasts_as_often_as_it_says(horizon):
    rng = np.random.default_rng(1)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS, dtype=torch.float64)).numpy()
    inside = []
    for _ in range(300):
        returns = rng.standard_normal((300 + horizon - 1, 3)) + rng.standard_normal((300 + horizon - 1, 1))
        sums = np.cumsum(np.concatenate([np.zeros((1, 3)), returns]), axis=0)
        outcomes = sums[horizon:] - sums[:-horizon]
        found = make_slice(outcomes, normal * np.sqrt(2.0 * horizon))
        low, high = chance_band(np.array(LEVELS), effective_outcomes([found], horizon))
        shares = found.hits().mean(axis=(0, 1))
        inside.append((low <= shares) & (shares <= high))
    # 300 draws of ten levels that go together: a standard error of about 1%. Binomial counts are whole, and outcomes that
    # overlap count for a little more than once in h: the band may hold more than it says.
    assert CHANCE - 0.03 < np.mean(inside) < 0.995


def test_coverage_over_time_ends_with_that_of_the_last_window(found):
    inside = forecast_slice(found, "zero", 1).covered().mean(axis=1)
    line = next(trace for trace in coverage_figure(found, window=100).data if trace.name == "zero")
    assert line.y[-1] == pytest.approx(inside[-100:].mean(), rel=1e-12)
    assert len(line.y) == len(inside) - 99


def test_what_cannot_be_drawn_of_a_validation_is_refused(found):
    with pytest.raises(ValueError, match="horizon must be one that was forecast, 1, 5, got 2"):
        calibration_figure(found, horizon=2)
    with pytest.raises(ValueError, match=r"model must be one with quantiles 1 ahead, .* got 'point'"):
        interval_figure(found, model="point")
    with pytest.raises(ValueError, match="asset must be one of A00, A01, A02, got 'SPY'"):
        interval_figure(found, asset="SPY")
    with pytest.raises(ValueError, match="window must be between 1 and the number of origins"):
        coverage_figure(found, window=10_000)
    with pytest.raises(ValueError, match="no model 'point' forecast 5 ahead"):
        forecast_slice(found, "point", 5)


def test_without_any_quantiles_there_is_nothing_to_calibrate():
    bare = validate(PointRidge, PRICES, WalkForwardValidator(n_splits=2, purge_size=1), naive={}, n_bootstrap=0)
    with pytest.raises(ValueError, match="no model has quantiles 1 ahead"):
        calibration_figure(bare)


# --- Skill


@pytest.mark.parametrize("score", ["r2", "ic", "sharpe_ratio"])
def test_the_forest_holds_the_pooled_scores_and_their_intervals(found, score):
    figure = skill_figure(found, score=score)
    names = list(figure.layout.yaxis.ticktext)
    drawn = {}
    for trace in figure.data:
        horizon = int(trace.name.split()[0])
        for x, y, plus, minus in zip(trace.x, trace.y, trace.error_x.array, trace.error_x.arrayminus, strict=True):
            drawn[names[round(y)].replace(" ", "_"), horizon] = (x - minus, x, x + plus)
    for (model, horizon), row in found.intervals.xs(score, level="score").iterrows():
        if np.isfinite(drawn[model, horizon][1]):
            wanted = [row[name] if np.isfinite(row[name]) else row["estimate"] for name in ("low", "estimate", "high")]
            np.testing.assert_allclose(drawn[model, horizon], wanted, atol=1e-12)
    assert np.isfinite(drawn["short", 1][1])


def test_what_lies_far_off_the_axis_is_written_at_its_edge(found):
    intervals = found.intervals.copy()
    intervals.loc[("drift", 5, "r2"), ["estimate", "low", "high"]] = [-9.0, -9.5, -8.5]
    figure = skill_figure(dataclasses.replace(found, intervals=intervals))
    assert figure.layout.xaxis.range[0] > -1.0
    assert [annotation.text for annotation in figure.layout.annotations] == ["◂ −900.0%"]


def test_naive_forecasts_are_grey_and_predictors_are_not(found):
    lines = model_lines(found)
    greys = {name for name, line in lines.items() if line["color"] in BASELINE_GREYS}
    assert greys == set(found.naive)
    styles = {(line["color"], line.get("dash")) for line in lines.values()}
    assert len(styles) == len(lines)


def test_folds_are_drawn_as_the_table_has_them(found):
    figure = fold_figure(found, horizon=5)
    for trace in figure.data:
        np.testing.assert_array_equal(
            trace.y, found.per_fold["r2"].xs(5, level="horizon").xs(trace.name.replace(" ", "_"))
        )


def test_unknown_scores_are_refused(found):
    with pytest.raises(ValueError, match=r"score must be one of r2, .* got 'coverage'"):
        skill_figure(found, score="coverage")


# --- Equity and fit


def test_the_equity_compounds_the_strategy_returns_over_all_folds(found):
    figure = stitched_equity_figure(found, horizon=5)
    earned = found.strategy_returns["ridge", 5].dropna()
    drawn = traces(figure)
    np.testing.assert_allclose(drawn["ridge"].y[[0, -1]], [1.0, (1.0 + earned).prod()], rtol=1e-10)
    assert len(drawn["ridge"].y) == len(earned) + 1
    held = np.expm1(found.outcomes.xs(1, axis=1, level="horizon").loc[earned.index]).mean(axis=1)
    assert drawn["buy and hold"].y[-1] == pytest.approx((1.0 + held).prod(), rel=1e-10)
    assert "point" not in drawn  # It forecast one bar ahead only.


def test_a_line_stands_where_each_later_fold_begins(found):
    starts = [shape.x0 for shape in stitched_equity_figure(found).layout.shapes]
    assert starts == list(found.folds["test_start"].dt.tz_localize(None))[1:]


def test_the_kept_epoch_is_marked():
    history = pd.DataFrame(
        {"train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.5, 2.0], "best_epoch": [1, 2, 2]}, index=[1, 2, 3]
    )
    kept = traces(fitting_figure(history))["kept: epoch 2"]
    assert (list(kept.x), list(kept.y)) == ([2], [1.5])


def test_a_history_without_losses_is_refused():
    with pytest.raises(ValueError, match="train_loss and val_loss"):
        fitting_figure(pd.DataFrame({"loss": [1.0]}))
