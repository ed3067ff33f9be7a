"""Factors on exposure: volatility, Kelly, drawdown."""

import itertools

import numpy as np
import pytest

from ml.tradingbots.core.exposure_scaling import drawdown_brake, kelly_scale, portfolio_volatility, volatility_scale


def random_moments(seed, n_assets=4):
    rng = np.random.default_rng(seed)
    root = rng.normal(0.0, 0.01, (n_assets, n_assets))
    return rng.normal(0.0, 1.0, n_assets), rng.normal(0.0, 0.001, n_assets), root @ root.T


@pytest.mark.parametrize("seed", range(10))
def test_the_scaled_portfolio_has_the_volatility_asked_for(seed):
    weights, _, covariance = random_moments(seed)
    scaled = weights * volatility_scale(weights, covariance, 0.02)
    # Relative rounding of a square root.
    assert portfolio_volatility(scaled, covariance) == pytest.approx(0.02, rel=1e-12)


def test_a_portfolio_without_risk_keeps_its_size():
    assert volatility_scale(np.zeros(2), np.eye(2), 0.1) == 1.0


@pytest.mark.parametrize("seed", range(10))
def test_no_portfolio_is_larger_than_its_fraction_of_kelly(seed):
    weights, mean, covariance = random_moments(seed)
    scaled = weights * kelly_scale(weights, mean, covariance, 0.5)
    assert scaled @ covariance @ scaled <= 0.5 * scaled @ mean * (1.0 + 1e-12)


def test_growth_is_greatest_at_full_kelly():
    # ln(1 + w·r) of a coin worth ±10% with P(up) = 0.55: mean 0.01, and the exact optimum is mean / 0.01 (1 of equity).
    returns, chances = np.array([0.1, -0.1]), np.array([0.55, 0.45])
    mean = float(returns @ chances)
    kelly = 10.0 * kelly_scale(np.array([10.0]), np.array([mean]), np.array([[float(returns**2 @ chances)]]), 1.0)
    sizes = np.linspace(0.0, 3.0, 301)
    growth = np.log1p(sizes[:, None] * returns) @ chances
    assert kelly == pytest.approx(sizes[growth.argmax()], abs=0.01)  # The grid's step.


def test_what_is_expected_to_lose_is_not_held():
    assert kelly_scale(np.array([1.0]), np.array([-0.01]), np.array([[0.04]]), 0.5) == 0.0


def test_the_brake_only_tightens_as_the_drawdown_grows():
    factors = [drawdown_brake(drawdown, 0.1, 0.3, 0.2) for drawdown in np.linspace(0.0, 1.0, 101)]
    assert factors[0] == 1.0
    assert factors[-1] == 0.2
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
