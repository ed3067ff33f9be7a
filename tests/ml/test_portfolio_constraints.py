"""Limits on portfolios: projections keep them, leave alone what is within them, and name those that exclude each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.core.portfolio_constraints import (
    PortfolioLimits,
    excesses,
    inside_band,
    is_within,
    largest_scale,
    partial_move,
)
from ml.tradingbots.core.portfolio_projection import InfeasibleLimitsError, project

EXCESS = 1e-9  # What the module promises; found are 1e-15.
shares = st.floats(-2.0, 2.0).map(lambda value: round(value, 3))


def weights_of(n_assets):
    return st.lists(shares, min_size=n_assets, max_size=n_assets).map(np.array)


@st.composite
def problems(draw):
    """Return a target, limits that allow cash, and what is held."""
    n_assets = draw(st.integers(1, 8))
    upper = np.array(
        draw(st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0, np.inf]), min_size=n_assets, max_size=n_assets))
    )
    n_groups = draw(st.integers(0, 3))
    members = draw(
        st.lists(st.lists(st.booleans(), min_size=n_assets, max_size=n_assets), min_size=n_groups, max_size=n_groups)
    )
    limits = PortfolioLimits(
        lower=-upper if draw(st.booleans()) else np.zeros(n_assets),
        upper=upper,
        max_gross=draw(st.sampled_from([0.5, 1.0, 1.5, np.inf])),
        min_net=draw(st.sampled_from([-np.inf, -0.2, 0.0])),
        max_net=draw(st.sampled_from([0.0, 0.7, 1.0, np.inf])),
        members=np.array(members, dtype=bool).reshape(n_groups, n_assets),
        group_caps=np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.4]), min_size=n_groups, max_size=n_groups))),
        group_names=tuple(f"g{number}" for number in range(n_groups)),
    )
    return draw(weights_of(n_assets)), limits, draw(weights_of(n_assets))


@settings(deadline=None, max_examples=80)
@given(problems())
def test_a_projection_is_within_all_limits(problem):
    target, limits, _ = problem
    assert max(excesses(project(target, limits), limits).values()) <= EXCESS


@settings(deadline=None, max_examples=80)
@given(problems())
def test_a_portfolio_within_the_limits_is_left_as_it_is(problem):
    target, limits, _ = problem
    inside = project(target, limits)
    assert project(inside, limits) is inside


@settings(deadline=None, max_examples=60)
@given(problems())
def test_nothing_within_the_limits_is_nearer(problem):
    # The nearest point p of a convex set has (t − p)·(q − p) <= 0 for every q in it.
    target, limits, other = problem
    nearest, another = project(target, limits), project(other, limits)
    assert (target - nearest) @ (another - nearest) <= 1e-8


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from([0.01, 0.2, 1.0]))
def test_with_a_turnover_cap_all_limits_and_the_cap_hold(problem, max_turnover):
    target, limits, other = problem
    held = project(other, limits)
    found = project(target, limits, held=held, max_turnover=max_turnover)
    assert max(excesses(found, limits, held=held, max_turnover=max_turnover).values()) <= EXCESS


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 255))
def test_assets_that_are_kept_stay_exactly_where_they_are(problem, bits):
    target, limits, other = problem
    held = project(other, limits)
    kept = np.array([bits >> place & 1 for place in range(len(held))], dtype=bool)
    # With longs and shorts kept, the others can be asked for more than they can set off; that is refused elsewhere.
    if not np.isfinite(limits.min_net):
        found = project(target, limits, held=held, kept=kept)
        assert (found[kept] == held[kept]).all()
        assert max(excesses(found, limits).values()) <= EXCESS


@settings(deadline=None, max_examples=30)
@given(problems(), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([-np.inf, 0.3, 1.0]))
def test_a_portfolio_is_found_or_the_limits_that_exclude_each_other_are_named(problem, max_turnover, min_net):
    target, limits, held = problem
    limits = PortfolioLimits(
        lower=limits.lower,
        upper=limits.upper,
        max_gross=limits.max_gross,
        min_net=min_net,
        max_net=max(limits.max_net, min_net),
        members=limits.members,
        group_caps=limits.group_caps,
        group_names=limits.group_names,
    )
    conflict: tuple[str, ...] = ()
    found = target
    try:
        found = project(target, limits, held=held, max_turnover=max_turnover)
    except InfeasibleLimitsError as error:
        conflict, message = error.conflict, str(error)
    if conflict:
        assert all(name in message for name in conflict)
    else:
        assert max(excesses(found, limits, held=held, max_turnover=max_turnover).values()) <= EXCESS


@pytest.mark.parametrize("seed", range(8))
def test_projections_are_those_of_another_formulation(seed):
    import cvxpy

    rng = np.random.default_rng(seed)
    n_assets = 10
    limits = PortfolioLimits(
        lower=np.full(n_assets, -0.2),
        upper=np.full(n_assets, 0.25),
        max_gross=1.2,
        min_net=0.1,
        max_net=0.8,
        members=rng.random((2, n_assets)) < 0.4,
        group_caps=np.array([0.3, 0.4]),
        group_names=("a", "b"),
    )
    held, target = project(rng.normal(0.0, 0.3, n_assets), limits), rng.normal(0.0, 0.4, n_assets)
    weights = cvxpy.Variable(n_assets)
    size = cvxpy.abs(weights)
    rules = [
        weights >= -0.2,
        weights <= 0.25,
        cvxpy.sum(size) <= 1.2,
        cvxpy.sum(weights) >= 0.1,
        cvxpy.sum(weights) <= 0.8,
    ]
    rules += [cvxpy.sum(size[members]) <= cap for members, cap in zip(limits.members, limits.group_caps, strict=True)]
    rules += [cvxpy.norm1(weights - held) <= 0.5]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(weights - target)), rules).solve(
        solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
    )
    # The root of the tolerance on the objective, which is flat at its minimum.
    np.testing.assert_allclose(project(target, limits, held=held, max_turnover=0.5), weights.value, atol=1e-6)


def test_too_much_in_two_assets_is_taken_off_both_alike():
    limits = PortfolioLimits(lower=np.zeros(2), upper=np.ones(2), max_gross=1.0)
    np.testing.assert_allclose(project(np.array([0.9, 0.5]), limits), [0.7, 0.3], atol=1e-15)


def limits_of(n_assets=2, **changes):
    return PortfolioLimits(**{"lower": np.zeros(n_assets), "upper": np.ones(n_assets)} | changes)


@pytest.mark.parametrize(
    ("limits", "conflict"),
    [
        (limits_of(upper=np.full(2, 0.4), min_net=1.0), {"largest weights", "min_net_exposure"}),
        (limits_of(max_gross=0.5, min_net=0.6), {"max_gross_exposure", "min_net_exposure"}),
        (limits_of(max_net=-0.1), {"lowest weights", "max_net_exposure"}),
        (
            limits_of(members=np.array([[True, True]]), group_caps=np.array([0.3]), group_names=("tech",), min_net=0.5),
            {"max_group_exposure['tech']", "min_net_exposure"},
        ),
    ],
)
def test_the_error_names_exactly_the_limits_in_conflict(limits, conflict):
    with pytest.raises(InfeasibleLimitsError, match="no portfolio satisfies") as caught:
        project(np.array([0.5, 0.5]), limits)
    assert set(caught.value.conflict) == conflict


def test_a_turnover_cap_too_small_to_get_inside_is_named():
    with pytest.raises(InfeasibleLimitsError, match=r"max_turnover \(0.1\)") as caught:
        project(np.array([1.0, 0.0]), limits_of(min_net=1.0), held=np.zeros(2), max_turnover=0.1)
    assert set(caught.value.conflict) == {"min_net_exposure", "max_turnover"}


def test_targets_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="target must be 2 finite weights"):
        project(np.array([np.nan, 1.0]), limits_of())


def test_turnover_without_what_is_held_is_refused():
    with pytest.raises(ValueError, match="held must be given"):
        project(np.array([2.0, 1.0]), limits_of(), max_turnover=0.1)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_the_largest_scale_is_within_the_limits_and_more_is_not(problem):
    target, limits, _ = problem
    inside = project(target, limits)
    scale = largest_scale(inside, limits)
    if np.isfinite(scale) and 1e-6 < scale < 1e6:
        assert is_within(inside * scale, limits, tolerance=1e-9)
        assert not is_within(inside * scale * 1.001, limits, tolerance=1e-12) or np.abs(inside).max() * scale < 1e-6


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from([0.0, 0.1, 1.0]))
def test_a_partial_move_keeps_the_cap_and_the_limits_of_both_its_ends(problem, max_turnover):
    target, limits, other = problem
    held, wanted = project(other, limits), project(target, limits)
    moved = partial_move(held, wanted, max_turnover)
    assert max(excesses(moved, limits, held=held, max_turnover=max_turnover).values()) <= EXCESS


def test_no_band_leaves_nothing_alone():
    assert not inside_band(np.array([0.5]), np.array([0.5]), 0.0).any()
