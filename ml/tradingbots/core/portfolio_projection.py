"""The nearest portfolio within limits: a quadratic program, its solution made exact, and the conflict where there is none.

Clarabel's interior-point method (Goulart & Chen, 2024) finds which limits bind, to about 1e-9; given those, the nearest point
is the solution of a small linear system, exact to rounding. Sizes of weights enter as variables of their own, s >= |w|. All of
it is measured in the size of the largest weight that the limits allow, so that tolerances mean the same for all limits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml.tradingbots.core.portfolio_constraints import (
    GROSS,
    LARGEST,
    LEAST_NET,
    LOWEST,
    MOST_NET,
    TURNOVER,
    BoolArray,
    FloatArray,
    PortfolioLimits,
    excesses,
    group_label,
    is_within,
)

KEPT = "weights that are kept"
LARGEST_TARGET = 1e6
"""Size up to which targets are answered exactly; weights beyond it are a division by next to nothing, not a wish."""
# What the solver leaves, and so the distance at which a limit counts as binding; in units of the largest weight.
_BINDING = 1e-7
# Excess that an answer may have. Limits that contradict each other by less are one limit.
_ACCEPTED = 1e-9
_SOLVER_TOLERANCE = 1e-11


class InfeasibleLimitsError(ValueError):
    """No portfolio is within all limits.

    Attributes:
        conflict: names of limits that exclude each other; without any one of them the others leave a portfolio.
    """

    def __init__(self, message: str, conflict: tuple[str, ...]) -> None:
        super().__init__(message)
        self.conflict = conflict


class SolverError(FloatingPointError):
    """The limits leave a portfolio, and the solver did not find it."""


def project(
    target: FloatArray,
    limits: PortfolioLimits,
    *,
    held: FloatArray | None = None,
    max_turnover: float = np.inf,
    kept: BoolArray | None = None,
) -> FloatArray:
    """Return the portfolio within the limits that is nearest to a target, by the sum of squared differences.

    Args:
        target: weights wanted; one within the limits is returned as it is; (n_assets,).
        limits: what is allowed.
        held: weights before the trade; needed for `max_turnover` and `kept`; (n_assets,).
        max_turnover: largest sum of sizes of the changes from `held`.
        kept: assets that stay at the weight held; (n_assets,).

    Returns:
        Weights that exceed no limit by more than 1e-9, or that share of the largest weight allowed where it is above 1;
        (n_assets,).

    Raises:
        InfeasibleLimitsError: there is no such portfolio; the message and `conflict` name the limits that exclude each other.
        ValueError: the target is not finite or above `LARGEST_TARGET`, or `held` is missing.
        SolverError: there is one, and it was not found.

    >>> limits = PortfolioLimits(lower=np.zeros(3), upper=np.full(3, 0.5), max_gross=1.0)
    >>> project(np.array([0.9, 0.5, -0.2]), limits)
    array([0.5, 0.5, 0. ])
    """
    _check(target, limits, held, max_turnover, kept)
    if kept is not None and held is not None and kept.any():
        target = np.where(kept, held, target)
    if is_within(target, limits, held=held, max_turnover=max_turnover):
        return target
    kept = np.zeros(limits.n_assets, dtype=bool) if kept is None else kept
    unit, binding = _sized(target, limits, held, kept, max_turnover)
    problem = (_in_units(binding, unit), None if held is None else held / unit, max_turnover / unit, kept)
    found = _solved(target / unit, *problem)
    if found is not None:
        weights = found * unit
        smaller = _power_of_two(max(float(np.abs(weights).max()), _least_unit(target, held, kept, max_turnover)))
        if smaller < unit / 8.0 and weights.any():
            # Nothing kept each of them smaller, and all limits together did: once more, on the scale of what came out.
            held = None if held is None else held / smaller
            again = _solved(target / smaller, _in_units(binding, smaller), held, max_turnover / smaller, kept)
            weights = weights if again is None else again * smaller
        return weights
    raise _failure(limits, held, max_turnover, kept)


def _failure(
    limits: PortfolioLimits, held: FloatArray | None, max_turnover: float, kept: BoolArray
) -> InfeasibleLimitsError | SolverError:
    """Return the error for limits within which the solver found nothing."""
    sizes = [limits.lower, limits.upper, limits.group_caps, np.zeros(1) if held is None else held]
    sizes.append(np.array([limits.max_gross, limits.min_net, limits.max_net, max_turnover, 1e-9]))
    size = np.abs(np.concatenate(sizes))
    unit = _power_of_two(float(size.max(where=np.isfinite(size), initial=0.0)))
    held = None if held is None else held / unit
    rows = _rows(_in_units(limits, unit), held, max_turnover / unit, kept, equations=False)
    if _least_excess(rows, held, limits.n_assets) <= _ACCEPTED:
        return SolverError(
            "the solver failed: the limits leave a portfolio, and the one nearest to the target was not found. Limits or "
            "targets of very different sizes are hard to solve for; bring them closer to each other"
        )
    conflict = _conflict(rows, held, limits.n_assets)
    return InfeasibleLimitsError(_in_words(conflict, limits, max_turnover), conflict)


def _solved(
    target: FloatArray, limits: PortfolioLimits, held: FloatArray | None, max_turnover: float, kept: BoolArray
) -> FloatArray | None:
    """Return the nearest portfolio, None where there is none or the solver does not find it; all in units of its size."""
    near = _nearest(_rows(limits, held, max_turnover, kept), held, target)
    if near is not None:
        for weights in (_exact(near, target, limits, held, max_turnover, kept), near):
            if _largest_excess(weights, limits, held, max_turnover, kept) <= _ACCEPTED:
                return weights
    return None


def _check(
    target: FloatArray, limits: PortfolioLimits, held: FloatArray | None, max_turnover: float, kept: BoolArray | None
) -> None:
    for name, values in (("target", target), ("held", held)):
        if values is not None and (values.shape != limits.lower.shape or not np.isfinite(values).all()):
            raise ValueError(f"{name} must be {limits.n_assets} finite weights, one per asset, got {values}")
        if values is not None and np.abs(values).max(initial=0.0) > LARGEST_TARGET:
            raise ValueError(
                f"{name} must be weights of at most {LARGEST_TARGET:,.0f} times the equity, got "
                f"{values[np.argmax(np.abs(values))]:.3g}; a forecast over next to no variance asks for such"
            )
    if held is None and (max_turnover < np.inf or kept is not None):
        raise ValueError("held must be given with max_turnover or kept: both are measured from the weights held")
    if not max_turnover >= 0.0:
        raise ValueError(f"max_turnover must be at least 0, got {max_turnover}")


def _sized(
    target: FloatArray, limits: PortfolioLimits, held: FloatArray | None, kept: BoolArray, max_turnover: float
) -> tuple[float, PortfolioLimits]:
    """Return the size of the largest weight that can come out, as a power of two, and the limits that can bind.

    Limits that others keep from ever binding would only set the scale of the solver's tolerance.
    """
    caps = np.minimum(np.maximum(np.abs(limits.lower), np.abs(limits.upper)), limits.max_gross)
    for mask, cap in zip(limits.members, limits.group_caps, strict=True):
        caps[mask] = np.minimum(caps[mask], cap)
    least = _least_unit(target, held, kept, max_turnover)
    if not np.isfinite(caps).all():
        nets = [abs(net) for net in (limits.min_net, limits.max_net) if np.isfinite(net)]
        finite = float(caps.max(where=np.isfinite(caps), initial=0.0))
        return _power_of_two(max(finite, float(np.abs(target).max()), least, *nets)), limits
    unit = _power_of_two(max(float(caps.max()), least))
    together = unit * limits.n_assets
    return unit, dataclasses.replace(
        limits,
        lower=np.where(limits.lower < -unit, -np.inf, limits.lower),
        upper=np.where(limits.upper > unit, np.inf, limits.upper),
        max_gross=limits.max_gross if limits.max_gross <= together else np.inf,
        min_net=limits.min_net if limits.min_net >= -together else -np.inf,
        max_net=limits.max_net if limits.max_net <= together else np.inf,
        group_caps=np.where(limits.group_caps > together, np.inf, limits.group_caps),
    )


def _least_unit(target: FloatArray, held: FloatArray | None, kept: BoolArray, max_turnover: float) -> float:
    """Return the least unit in which neither what is held nor the target is too large for the solver."""
    matters = kept if max_turnover == np.inf else np.ones_like(kept)
    largest_held = 0.0 if held is None else float(np.abs(held).max(where=matters, initial=0.0))
    return max(largest_held, float(np.abs(target).max()) / LARGEST_TARGET, 1e-9)


def _power_of_two(size: float) -> float:
    # Division by one loses no bit.
    return float(2.0 ** np.ceil(np.log2(size)))


def _in_units(limits: PortfolioLimits, unit: float) -> PortfolioLimits:
    return dataclasses.replace(
        limits,
        lower=limits.lower / unit,
        upper=limits.upper / unit,
        max_gross=limits.max_gross / unit,
        min_net=limits.min_net / unit,
        max_net=limits.max_net / unit,
        group_caps=limits.group_caps / unit,
    )


@dataclass(frozen=True, eq=False)
class _Row:
    """Limits of one name, as rows of `matrix @ (w, s, v) <= bound` (or ==) with s >= |w| and v >= |w − held|."""

    name: str
    on_weight: Any
    """Sparse; (n_rows, n_assets)."""
    on_size: Any
    on_change: Any
    bound: FloatArray
    equal: bool = False


def _rows(
    limits: PortfolioLimits, held: FloatArray | None, max_turnover: float, kept: BoolArray, *, equations: bool = True
) -> list[_Row]:
    """Return all finite limits; with `equations`, two of them that leave one value are one row."""
    from scipy import sparse  # type: ignore[import-untyped]

    n, rows = limits.n_assets, list[_Row]()
    eye, one = sparse.identity(n, format="csr"), sparse.csr_matrix(np.ones((1, n)))

    def add(
        name: str, bound: Any, *, weight: Any = None, size: Any = None, change: Any = None, equal: bool = False
    ) -> None:
        bound = np.atleast_1d(np.asarray(bound, dtype=np.float64))
        finite = np.isfinite(bound)
        if finite.any():
            nothing = sparse.csr_matrix((len(bound), n))
            on_weight, on_size, on_change = (
                (nothing if part is None else part)[finite] for part in (weight, size, change)
            )
            rows.append(_Row(name, on_weight, on_size, on_change, bound[finite], equal))

    # A solver that walks the interior needs equations where there is none.
    pinned = ~kept & (limits.lower == limits.upper) & equations
    free = ~kept & ~pinned
    add(LARGEST, limits.upper[pinned], weight=eye[pinned], equal=True)
    add(LOWEST, -limits.lower[free], weight=-eye[free])
    add(LARGEST, limits.upper[free], weight=eye[free])
    add(GROSS, limits.max_gross, size=one)
    if limits.min_net == limits.max_net and equations:
        add(MOST_NET, limits.max_net, weight=one, equal=True)
    else:
        add(LEAST_NET, -limits.min_net, weight=-one)
        add(MOST_NET, limits.max_net, weight=one)
    for name, members, cap in zip(limits.group_names, limits.members, limits.group_caps, strict=True):
        add(group_label(name), cap, size=sparse.csr_matrix(members[None].astype(np.float64)))
    if held is not None:
        add(KEPT, held[kept], weight=eye[kept], equal=True)
        add(TURNOVER, max_turnover, change=one)
    return rows


def _nearest(rows: list[_Row], held: FloatArray | None, target: FloatArray) -> FloatArray | None:
    """Return the solver's nearest point, None where it says that there is none or did not come near it."""
    matrix, bound, n_equal = _stacked(rows, held, len(target), elastic=False)
    linear = np.zeros(matrix.shape[1])
    linear[: len(target)] = -target
    found, is_solved = _clarabel(linear, matrix, bound, n_equal, n_quadratic=len(target))
    return found[: len(target)] if is_solved else None


def _least_excess(rows: list[_Row], held: FloatArray | None, n_assets: int) -> float:
    """Return the largest excess over limits that the portfolio which exceeds them least has."""
    matrix, bound, _ = _stacked(rows, held, n_assets, elastic=True)
    linear = np.zeros(matrix.shape[1])
    linear[-1] = 1.0
    found, is_solved = _clarabel(linear, matrix, bound, 0, n_quadratic=0)
    if not is_solved:
        raise SolverError(
            "the solver failed to say whether the limits exclude each other; bring them to more similar sizes"
        )
    return float(found[-1])


def _conflict(rows: list[_Row], held: FloatArray | None, n_assets: int) -> tuple[str, ...]:
    """Return names of limits that exclude each other, none of which could be left out."""
    names = list(dict.fromkeys(row.name for row in rows))
    for name in tuple(names):
        fewer = [row for row in rows if row.name in names and row.name != name]
        if fewer and _least_excess(fewer, held, n_assets) > _ACCEPTED:
            names.remove(name)
    return tuple(names)


def _stacked(rows: list[_Row], held: FloatArray | None, n: int, *, elastic: bool) -> tuple[Any, FloatArray, int]:
    """Return matrix and bounds of all rows, equations first, and how many of those there are.

    Columns are the weights, then sizes and changes where a row asks for them. With `elastic` a last column is what every
    limit may be exceeded by, and equations are two limits.
    """
    from scipy import sparse

    eye = sparse.identity(n, format="csr")
    uses_size = any(row.on_size.nnz for row in rows)
    uses_change = any(row.on_change.nnz for row in rows)
    equations = [row for row in rows if row.equal]
    blocks, bounds = [], []

    def add(weight: Any, size: Any, change: Any, bound: FloatArray, slack: float) -> None:
        parts = [weight, *([size] if uses_size else []), *([change] if uses_change else [])]
        if elastic:
            parts.append(sparse.csr_matrix(np.full((len(bound), 1), slack)))
        blocks.append(sparse.hstack(parts))
        bounds.append(bound)

    for row in [*equations, *(row for row in rows if not row.equal)]:
        add(row.on_weight, row.on_size, row.on_change, row.bound, -1.0)
    none = sparse.csr_matrix((n, n))
    for row in equations if elastic else ():
        add(-row.on_weight, -row.on_size, -row.on_change, -row.bound, -1.0)
    for side in (1.0, -1.0):
        if uses_size:
            add(side * eye, -eye, none, np.zeros(n), 0.0)
        if uses_change:
            assert held is not None
            add(side * eye, none, -eye, side * held, 0.0)
    if elastic:  # Room is no merit.
        nothing = sparse.csr_matrix((1, n))
        add(nothing, nothing, nothing, np.zeros(1), -1.0)
    return sparse.vstack(blocks, format="csc"), np.concatenate(bounds), sum(len(row.bound) for row in equations)


def _clarabel(
    linear: FloatArray, matrix: Any, bound: FloatArray, n_equal: int, *, n_quadratic: int
) -> tuple[FloatArray, bool]:
    """Minimise ½ Σ xᵢ² over the first `n_quadratic` variables plus `linear @ x`, with `matrix @ x <= bound`.

    Args:
        linear: (n_variables,).
        matrix: sparse; (n_rows, n_variables).
        bound: (n_rows,).
        n_equal: first rows that hold with equality.
        n_quadratic: see above.

    Returns:
        Where the solver ended, and whether that is a solution.
    """
    # Imported where they are used: most portfolios are within their limits and need neither.
    import clarabel
    from scipy import sparse

    squared = np.arange(len(linear)) < n_quadratic
    cones = [clarabel.ZeroConeT(n_equal)] if n_equal else []
    cones += [clarabel.NonnegativeConeT(len(bound) - n_equal)] if len(bound) > n_equal else []
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = _SOLVER_TOLERANCE
    quadratic = sparse.diags(squared.astype(np.float64), format="csc")
    solver = clarabel.DefaultSolver(quadratic, linear, matrix, bound, cones, settings)
    solution = solver.solve()
    # Almost: it could not reach a tolerance as tight as ours.
    is_solved = solution.status in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
    return np.array(solution.x), is_solved


def _largest_excess(
    weights: FloatArray, limits: PortfolioLimits, held: FloatArray | None, max_turnover: float, kept: BoolArray
) -> float:
    if not np.isfinite(weights).all():
        return np.inf
    over = excesses(weights, limits, held=held, max_turnover=max_turnover)
    # What is kept may lie outside its own limits, as drift left it.
    over[LOWEST] = float((limits.lower - weights).max(where=~kept, initial=-np.inf))
    over[LARGEST] = float((weights - limits.upper).max(where=~kept, initial=-np.inf))
    if held is not None:
        over[KEPT] = float(np.abs(weights - held).max(where=kept, initial=0.0))
    return max(over.values())


def _exact(
    near: FloatArray,
    target: FloatArray,
    limits: PortfolioLimits,
    held: FloatArray | None,
    max_turnover: float,
    kept: BoolArray,
) -> FloatArray:
    """Return the nearest point of those where the same limits bind as at a point close to the solution.

    Weights on a bound, on 0 or on what is held (where sizes or changes are limited) are settled there; for the others the
    limits on sums are equations, and the nearest solution is a shift along their normals.
    """
    weights, settled = near.copy(), np.zeros(len(near), dtype=bool)
    rows, bounds = list[FloatArray](), list[float]()

    def settle(where: BoolArray, values: FloatArray) -> None:
        weights[where], settled[where] = values[where], True

    def bind(row: FloatArray, bound: float) -> None:
        rows.append(row)
        bounds.append(bound)

    for bound in (limits.lower, limits.upper):
        settle((np.abs(near - bound) < _BINDING) & ~kept, bound)
    all_assets = np.ones((1, len(near)), dtype=bool)
    caps = np.concatenate([[limits.max_gross], limits.group_caps])
    for cap, mask in zip(caps, np.vstack([all_assets, limits.members]), strict=True):
        if np.abs(near[mask]).sum() > cap - _BINDING:
            settle((np.abs(near) < _BINDING) & mask, np.zeros_like(near))
            bind(np.sign(near) * mask, cap)
    for net in (limits.min_net, limits.max_net):
        if abs(near.sum() - net) < _BINDING:
            bind(np.ones_like(near), net)
    if held is not None:
        change = near - held
        if np.abs(change).sum() > max_turnover - _BINDING:
            settle(np.abs(change) < _BINDING, held)
            bind(np.sign(change), max_turnover + float(np.sign(change) @ held))
        settle(kept, held)
    free = ~settled
    weights[free] = target[free]
    if rows and free.any():
        matrix = np.array(rows)
        weights[free] += np.linalg.lstsq(matrix[:, free], np.array(bounds) - matrix @ weights, rcond=1e-10)[0]
    # A limit that only seemed to bind would have moved it further than the solver errs.
    return weights if np.abs(weights - near).max() < 100.0 * _BINDING else near


def _in_words(conflict: tuple[str, ...], limits: PortfolioLimits, max_turnover: float) -> str:
    values = {GROSS: limits.max_gross, LEAST_NET: limits.min_net, MOST_NET: limits.max_net, TURNOVER: max_turnover}
    values |= {group_label(name): float(cap) for name, cap in zip(limits.group_names, limits.group_caps, strict=True)}
    totals = {
        LARGEST: f"{LARGEST} (together {limits.upper.sum():.6g})",
        LOWEST: f"{LOWEST} (together {limits.lower.sum():.6g})",
    }
    named = [totals.get(name, f"{name} ({values[name]:.6g})" if name in values else name) for name in conflict]
    return f"no portfolio satisfies {', '.join(named)} at once; loosen one of them"
