"""Projections on limits of any size, held to scipy's linear programs; conflicts that are named are real and minimal."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from ml.tradingbots.core.portfolio_constraints import (
    GROSS,
    LARGEST,
    LEAST_NET,
    LOWEST,
    MOST_NET,
    TURNOVER,
    PortfolioLimits,
    group_label,
)
from ml.tradingbots.core.portfolio_projection import InfeasibleLimitsError, project


def problem(seed, size):
    """Return limits of a size, pinned weights among them, what is held and a cap on turnover where there is one."""
    rng = np.random.default_rng(seed)
    n_assets, n_groups = int(rng.integers(1, 7)), int(rng.integers(0, 3))
    upper = rng.choice([0.0, 0.05, 0.3, 1.0, np.inf], n_assets) * size
    lower = -upper if rng.random() < 0.5 else np.zeros(n_assets)
    lower = np.where(np.isfinite(upper) & (rng.random(n_assets) < 0.15), upper, lower)
    min_net = rng.choice([-np.inf, -0.2, 0.0, 0.3, 1.0]) * size
    limits = PortfolioLimits(
        lower=lower,
        upper=upper,
        max_gross=float(rng.choice([0.5, 1.0, 1.5, 300.0, np.inf])) * size,
        min_net=float(min_net),
        max_net=float(max(min_net, rng.choice([0.0, 0.7, 1.0, np.inf]) * size)),
        members=rng.random((n_groups, n_assets)) < 0.5,
        group_caps=rng.choice([0.0, 0.1, 0.4], n_groups) * size,
        group_names=tuple(f"g{number}" for number in range(n_groups)),
    )
    if rng.random() < 0.7:
        return rng, limits, {}
    return (
        rng,
        limits,
        {"held": rng.normal(0.0, 0.3, n_assets) * size, "max_turnover": float(rng.choice([0.1, 2.0])) * size},
    )


def best(limits, gain, size, held=None, max_turnover=np.inf):
    """Return the largest gain @ weights within the limits by scipy, None where no portfolio is within them."""
    n, units = limits.n_assets, dataclasses.asdict(limits)
    eye, none, one, zero = np.eye(n), np.zeros((n, n)), np.ones((1, n)), np.zeros((1, n))
    rows = [(eye, -eye, none, np.zeros(n)), (-eye, -eye, none, np.zeros(n)), (zero, one, zero, limits.max_gross)]
    rows += [(one, zero, zero, limits.max_net), (-one, zero, zero, -limits.min_net)]
    rows += [(zero, 1.0 * mask[None], zero, cap) for mask, cap in zip(limits.members, limits.group_caps, strict=True)]
    if held is not None:
        rows += [(eye, none, -eye, held), (-eye, none, -eye, -held), (zero, zero, one, max_turnover)]
    bound = np.concatenate([np.atleast_1d(row[3]) for row in rows]) / size
    matrix = np.vstack([np.hstack(row[:3]) for row in rows])[np.isfinite(bound)]
    boxes = [*zip(units["lower"] / size, units["upper"] / size, strict=True), *[(0.0, None)] * (2 * n)]
    cost = np.concatenate([-gain, np.zeros(2 * n)])
    found = linprog(cost, A_ub=matrix, b_ub=bound[np.isfinite(bound)], bounds=boxes, method="highs")
    return None if found.status == 2 else -found.fun


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("reach", [1e-3, 1.0, 1e3, 1e5])
def test_whatever_the_sizes_the_nearest_portfolio_is_found_or_there_is_none(size, reach):
    for seed in range(60):
        rng, limits, held = problem(seed, size)
        target = np.clip(rng.normal(0.0, 1.0, limits.n_assets) * reach * size, -1e6, 1e6)
        try:
            found = project(target, limits, **held)
        except InfeasibleLimitsError:
            assert best(limits, np.zeros(len(target)), size, **held) is None
            continue
        # The nearest point p of a convex set has (t − p) @ q <= (t − p) @ p for every q in it.
        aim = (target - found) / max(np.linalg.norm(target - found), 1e-9 * size)
        # Of the size of the limits, or of the largest weight where nothing limits it.
        rounding = 1e-8 * max(np.abs(found).max() / size, 1.0)
        assert best(limits, aim, size, **held) == pytest.approx(float(aim @ found) / size, abs=10.0 * rounding)


@pytest.mark.parametrize("wish", [1.0, 1e3, 1e6])
def test_a_wish_far_outside_leaves_the_others_what_they_asked_for(wish):
    limits = PortfolioLimits(lower=np.zeros(3), upper=np.full(3, 0.5), max_gross=1.0)
    np.testing.assert_allclose(project(np.array([wish, 0.2, 0.1]), limits), [0.5, 0.2, 0.1], rtol=1e-12)


def test_a_target_that_is_no_wish_is_refused():
    limits = PortfolioLimits(lower=np.zeros(2), upper=np.full(2, 0.5), max_gross=1.0)
    with pytest.raises(ValueError, match="target must be weights of at most 1,000,000 times the equity, got 1e"):
        project(np.array([1e12, 0.1]), limits)


def without(limits, name):
    """Return limits without those of a name."""
    nothing = {
        LOWEST: {"lower": np.full(limits.n_assets, -np.inf)},
        LARGEST: {"upper": np.full(limits.n_assets, np.inf)},
        GROSS: {"max_gross": np.inf},
        LEAST_NET: {"min_net": -np.inf},
        MOST_NET: {"max_net": np.inf},
    } | {
        group_label(group): {
            "group_caps": np.where(np.arange(len(limits.group_names)) == place, np.inf, limits.group_caps)
        }
        for place, group in enumerate(limits.group_names)
    }
    return dataclasses.replace(limits, **nothing[name])


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 100.0]))
def test_without_any_one_of_the_limits_named_the_others_leave_a_portfolio(seed, size):
    _, limits, held = problem(seed, size)
    nothing = np.zeros(limits.n_assets)
    try:
        project(nothing, limits, **held)
        return
    except InfeasibleLimitsError as error:
        conflict = error.conflict
    names = {LOWEST, LARGEST, GROSS, LEAST_NET, MOST_NET, *map(group_label, limits.group_names)}
    assert set(conflict) <= names | {TURNOVER}
    for name in names - set(conflict):
        limits = without(limits, name)
    if TURNOVER not in conflict:
        held = {}
    assert best(limits, nothing, size, **held) is None
    for name in conflict:
        fewer = (limits, {}) if name == TURNOVER else (without(limits, name), held)
        assert best(fewer[0], nothing, size, **fewer[1]) is not None, name


def test_weights_that_are_fixed_are_called_by_both_their_limits():
    lower, upper = np.array([0.7, 0.6]), np.array([0.7, 1.0])
    with pytest.raises(InfeasibleLimitsError) as caught:
        project(np.zeros(2), PortfolioLimits(lower=lower, upper=upper, max_gross=1.0))
    assert set(caught.value.conflict) == {"lowest weights", "max_gross_exposure"}
