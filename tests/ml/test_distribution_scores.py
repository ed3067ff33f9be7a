"""Scores of quantiles, intervals and distributions by pencil and against numerical integration."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from ml.tradingbots.core import distribution_scores as scores


def test_pinball_loss_is_least_at_the_true_quantile():
    y = np.random.default_rng(4).standard_normal(20_000)
    candidates = np.linspace(-2.0, 2.0, 401)
    losses = [scores.pinball_loss(y, np.full(len(y), c), 0.2) for c in candidates]
    assert candidates[int(np.argmin(losses))] == pytest.approx(np.quantile(y, 0.2), abs=0.011)  # One step of the grid.


def test_several_quantiles_average_their_losses():
    y, forecast = np.array([[0.0, 1.0]]), np.array([[[-1.0, 1.0], [0.0, 2.0]]])
    single = [scores.pinball_loss(y, forecast[..., i], q) for i, q in enumerate([0.1, 0.9])]
    assert scores.pinball_loss(y, forecast, [0.1, 0.9]) == pytest.approx(np.mean(single))


@pytest.mark.parametrize("y", [-3.0, -0.2, 0.0, 1.5])
@pytest.mark.parametrize(
    ("score", "distribution"),
    [
        (lambda y: scores.crps_gaussian([y], 0.3, 0.7), stats.norm(0.3, 0.7)),
        (lambda y: scores.crps_student_t([y], 0.3, 0.7, 1.5), stats.t(1.5, 0.3, 0.7)),
        (lambda y: scores.crps_student_t([y], 0.3, 0.7, 5.0), stats.t(5.0, 0.3, 0.7)),
    ],
    ids=["gaussian", "student_1.5", "student_5"],
)
def test_closed_forms_of_the_crps_agree_with_its_integral(score, distribution, y):
    below = integrate.quad(lambda x: distribution.cdf(x) ** 2, -np.inf, y)[0]
    above = integrate.quad(lambda x: distribution.sf(x) ** 2, y, np.inf)[0]
    assert score(y) == pytest.approx(below + above, rel=1e-6)  # The integral's own accuracy, 1e-8, with room.


def test_the_crps_of_a_dense_grid_of_quantiles_is_the_closed_form():
    y, levels = np.array([-1.0, 0.5]), (np.arange(500) + 0.5) / 500
    forecast = np.broadcast_to(stats.norm.ppf(levels), (2, 500))
    # The error of the midpoint rule with 500 points, at a kink.
    assert scores.crps_from_quantiles(y, forecast, levels) == pytest.approx(scores.crps_gaussian(y, 0.0, 1.0), rel=2e-3)


def test_the_winkler_score_is_the_sum_of_both_pinball_losses():
    generator = np.random.default_rng(5)
    y, low = generator.standard_normal(100), -1.0 - generator.random(100)
    high = 1.0 + generator.random(100)
    pinball = scores.pinball_loss(y, low, 0.05) + scores.pinball_loss(y, high, 0.95)
    assert scores.winkler_score(y, low, high, nominal_coverage=0.9) == pytest.approx(2.0 / 0.1 * pinball)


def test_infinite_intervals_cover_and_crossed_ones_are_refused():
    assert scores.coverage([0.0], [-math.inf], [math.inf]) == 1.0
    assert scores.interval_width([-math.inf], [math.inf]) == math.inf
    with pytest.raises(ValueError, match="row 1"):
        scores.coverage([0.0, 0.0], [-1.0, 1.0], [1.0, 0.0])
