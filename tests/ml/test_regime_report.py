"""What a detector says of a market, the page about it and its figures."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from ml.tradingbots.components.hiddenmarkov import (
    GaussianHMM,
    JumpModel,
    OnlineHMM,
    VolatilityThreshold,
    regime_features,
    select_n_regimes,
)
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.synthetic import random_walk, regime_switching
from ml.tradingbots.training.regime_analysis import analyse_regimes
from ml.tradingbots.training.regime_figures import (
    duration_figure,
    regime_colours,
    regime_price_figure,
    regime_probability_figure,
    score_gain_figure,
    transition_figure,
)
from ml.tradingbots.training.regime_report import naming_sentence, regime_report_html, write_regime_report

PRICES = Bars.from_frame(
    regime_switching(
        1_200, drifts=(0.001, -0.0015), volatilities=(0.006, 0.02), stay_probability=(0.98, 0.96), seed=3
    ).prices
)
FEATURES = regime_features(PRICES)
N_TRAIN = 800


def analysis_of(detector, prices=PRICES, n_train=N_TRAIN, **settings):
    features = regime_features(prices, volatility_bars=settings.get("volatility_bars", 0))
    return analyse_regimes(detector.fit(features.iloc[:n_train]), prices, n_train, **settings)


@pytest.fixture(scope="module")
def found():
    return analysis_of(GaussianHMM(n_starts=2), selection=select_n_regimes(FEATURES.iloc[:N_TRAIN], (1, 2)))


def drawn(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


# What is said.


def test_what_is_said_of_a_bar_comes_from_that_bar_and_those_before_it(found):
    cut = PRICES.slice(0, 1_001)
    detector = GaussianHMM(n_starts=2).fit(FEATURES.iloc[:N_TRAIN])
    then = analyse_regimes(detector, cut, N_TRAIN)
    pd.testing.assert_frame_equal(then.probabilities(), found.probabilities().iloc[:1_000], check_exact=True)


def test_the_detector_is_left_at_the_last_bar(found):
    np.testing.assert_array_equal(found.detector.predict_next(), found.following[-1])


def test_the_worth_of_a_regime_is_measured_on_the_bars_that_it_was_expected_for(found):
    worth = found.performance("after")
    expected = found.following[N_TRAIN - 1 : -1].argmax(axis=1)
    returns = found.asset_returns[N_TRAIN:]
    for k, name in enumerate(found.state_names):
        own = returns[expected == k]
        assert worth.loc[name, "share"] == pytest.approx(len(own) / 399)
        assert worth.loc[name, "mean_return"] == pytest.approx(own.mean() * 252)
        assert worth.loc[name, "volatility"] == pytest.approx(own.std(ddof=1) * np.sqrt(252))
    np.testing.assert_allclose(found.asset_returns, np.expm1(FEATURES["log_return"]), rtol=1e-9)


def test_noise_on_which_regimes_are_worth_nothing_shows_no_gain():
    gains = [
        analysis_of(
            GaussianHMM(n_starts=1, tolerance=0.1, seed=seed), Bars.from_frame(random_walk(1_200, seed=seed).prices)
        )
        for seed in range(4)
    ]
    # Two regimes that are not there cost a few parameters' worth of bits; an interval misses 0 from below by chance.
    assert sum(found.score_gain_interval[0] > 0.0 for found in gains) <= 1
    assert max(found.score_gain for found in gains) < 0.02


def test_regimes_that_are_there_foretell_bars_better_than_one_normal_distribution(found):
    assert found.score_gain_interval[0] > 0.0
    assert "regimes foretold bars better than one normal distribution" in found.verdict()
    plain = GaussianHMM(n_regimes=1).fit(FEATURES.iloc[:N_TRAIN]).predictive_log_scores(FEATURES)
    np.testing.assert_allclose(found.plain_log_scores, plain, rtol=1e-9)


def test_changes_of_regime_are_counted_by_year(found):
    regimes = found.regimes[:N_TRAIN]
    assert found.flips_per_year("training") == pytest.approx((np.diff(regimes) != 0).mean() * 252)
    alternating = GaussianHMM.from_parameters([0.0, 1.0], [1.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    alternating.fit = lambda X: alternating
    assert analysis_of(alternating).expected_flips_per_year() == pytest.approx(252.0)


def test_a_bear_that_earns_more_than_the_bull_is_not_passed_over_in_silence():
    steps = np.where(np.arange(1_200) % 100 < 50, 0.002, -0.002)
    log_price = np.cumsum(np.random.default_rng(4).normal(0.0, 0.004, 1_200) + steps)
    prices = Bars.from_frame(pd.DataFrame({"close": 100.0 * np.exp(log_price)}))
    upside_down = GaussianHMM.from_parameters([0.002, -0.002], [1.6e-5, 1.6e-5], [[0.02, 0.98], [0.98, 0.02]])
    upside_down.fit = lambda X: upside_down
    found = analysis_of(upside_down, prices)
    assert found.misnamed_in() == ["training", "after"]
    assert "foretell no returns" in naming_sentence(found)


@pytest.mark.parametrize("n_train", [1, 1_200])
def test_training_bars_must_be_there(n_train):
    with pytest.raises(ValueError, match=r"n_train_bars must be from 2 to .* 1199, got"):
        analyse_regimes(GaussianHMM(n_starts=1).fit(FEATURES), PRICES, n_train)


# Figures.


def test_the_price_is_shaded_over_all_bars_and_no_bar_twice(found):
    figure = regime_price_figure(found)
    stretches = []
    for name in found.state_names:
        x = [corner for corner in drawn(figure, name.replace("_", " ")).x if corner is not None]
        stretches += list(zip(x[::4], x[2::4], strict=True))
    stretches.sort()
    times = found.timestamps.tz_localize(None)
    assert pd.Timestamp(stretches[0][0]) == times[0]
    assert pd.Timestamp(stretches[-1][1]) == times[-1]
    assert all(one[1] == other[0] for one, other in pairwise(stretches))
    assert len(stretches) == 1 + (np.diff(found.regimes) != 0).sum()
    assert figure.layout.yaxis.type == "log"
    assert pd.Timestamp(figure.layout.shapes[0].x0) == times[N_TRAIN]


def test_many_bars_make_few_stretches():
    prices = Bars.from_frame(regime_switching(20_000, seed=1).prices)
    found = analysis_of(VolatilityThreshold(half_life_bars=1.0), prices, 3_000)
    n_changes = (np.diff(found.regimes) != 0).sum()
    # Five points each, were every stretch drawn.
    assert sum(len(trace.x) for trace in regime_price_figure(found).data) < 0.8 * 5 * n_changes
    assert "of stretches of bars the most frequent" in regime_report_html(found)


def test_probabilities_add_up_to_one_at_every_place(found):
    figure = regime_probability_figure(found)
    np.testing.assert_allclose(sum(trace.y for trace in figure.data), 1.0, rtol=1e-12)


def test_the_matrix_shows_its_numbers_and_durations_their_bars(found):
    heat = transition_figure(found).data[0]
    np.testing.assert_array_equal(heat.z, found.transition_matrix)
    assert heat.text[0][0] == f"{found.transition_matrix[0, 0]:.1%}"
    np.testing.assert_allclose(duration_figure(found).data[0].x, found.expected_durations)


def test_the_gain_is_added_up_from_the_end_of_training(found):
    line = score_gain_figure(found).data[0]
    assert line.y[N_TRAIN - 1] == 0.0
    assert line.y[-1] == pytest.approx(found.score_gain * 399)


def test_bull_is_green_and_every_regime_has_its_own_colour(found):
    assert found.state_names == ("bull", "bear") or not found.is_named_by_mean
    assert len(set(regime_colours(found))) == 2
    four = analysis_of(VolatilityThreshold(n_regimes=4))
    assert len(set(regime_colours(four))) == 4


# The page.


def test_the_page_states_the_verdict_what_looks_ahead_and_the_facts(found, tmp_path):
    path = write_regime_report(tmp_path / "report.html", found, title="A & B", facts={"Prices": "<b>x</b>"})
    page = path.read_text(encoding="utf-8")
    text = page[page.index("</script>") :]
    for words in (
        found.verdict(),
        "Nothing looks ahead",
        naming_sentence(found),
        "A &amp; B",
        "&lt;b&gt;x&lt;/b&gt;",
        "What regimes were worth",
        "How many regimes",
        "95% interval",
    ):
        assert words in text
    assert not re.search(r'<[^>]*\s(src|href)="', text)


def test_the_same_analysis_gives_the_same_page(found):
    assert regime_report_html(found) == regime_report_html(found)


@pytest.mark.parametrize(
    ("detector", "settings"),
    [
        (JumpModel(n_regimes=3), {"volatility_bars": 10}),
        (VolatilityThreshold(n_regimes=2), {}),
        (OnlineHMM(burn_in_bars=300), {}),
        (GaussianHMM(n_regimes=1), {}),
        (GaussianHMM(n_regimes=2, n_starts=1, tolerance=0.1, emission="student_t"), {}),
    ],
    ids=["jump", "threshold", "online", "one", "student"],
)
def test_every_detector_has_a_page(detector, settings):
    found = analysis_of(detector, **settings)
    page = regime_report_html(found)
    assert ("What regimes foretell" in page) == found.has_densities
    assert ("went on learning" in page) == isinstance(detector, OnlineHMM)
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_without_bars_after_training_nothing_is_claimed():
    found = analysis_of(GaussianHMM(n_starts=1), n_train=1_199)
    assert found.verdict().startswith("All bars were learned from, so nobody can say")
    page = regime_report_html(found)
    assert "after training →" not in page
    assert "Filtered only" not in page


def test_a_handful_of_bars_after_training_says_that_it_is_too_few():
    found = analysis_of(GaussianHMM(n_starts=1), n_train=1_190)
    assert "9 bars after training are too few" in found.verdict()
    assert found.performance("after")["mean_return"].isna().all()
    regime_report_html(found)
