"""The best that any agent can do: optimal trading under proportional costs on the Markov synthetic markets.

The decision at the close of bar t sees the market's state s and the weight w held now. The account trades at that close
(the prices have no open, so the last close stands in for the next one), then is carried to the next close; the reward
is the log of the equity's growth over both. With x(w, w*) the equity left by the trade (`core.accounting.rebalance`)
and R, w' the simple return and the drifted weight of the bar that follows (`core.accounting.carry`), the Bellman
equation is

    V(s, w)  = max over w* of [ log x(w, w*) + Q(s, w*) ]
    Q(s, w*) = E[ log(1 + w* R) + discount · V(s', w') ].

It is solved by value iteration on a grid of states and weights, with evenly spaced nodes over the innovation and linear
interpolation between grid points. Because log x separates into log(1 ± k w) - log(1 ± k w*) and the problem is concave,
the continuous optimum is a band (Davis & Norman, 1990): hold inside it, trade to its nearer edge outside.

Two readings to keep in mind. The continuous agent cannot hold a weight beyond the legal targets: a short that drifts
past `min_weight` is bought back to it. The discrete agent's "hold" lets it drift, so the discrete optimum can be the
higher of the two.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ml.tradingbots.core.accounting import carry, rebalance
from ml.tradingbots.data.synthetic import Autoregressive, OrnsteinUhlenbeck, RandomWalk, SyntheticMarket

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Actions = Literal["continuous", "discrete"]
MarkovMarket = RandomWalk | Autoregressive | OrnsteinUhlenbeck

STATE_RANGE = 5.0
"""Half the width of the grid of states, in stationary standard deviations; beyond it, the edge's value stands in."""
INNOVATION_RANGE = 5.0
"""Largest innovation considered, in its standard deviations; a larger one comes once in 1.7 million bars."""
# About a minute on the default grid.
MAX_SWEEPS = 20_000
TOLERANCE = 1e-9
"""Value iteration stops when a sweep changes all values by the same amount to within this, in log return."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimalPolicy:
    """The optimal policy of one market at one cost rate, as tables over a grid of states and weights."""

    parameters: MarkovMarket
    """The market's process."""
    cost_rate: float
    """Commission plus slippage, as a fraction of the notional traded."""
    discount: float
    """Discount per bar; 1 is the long-run average."""
    actions: Actions
    """Whether the agent names any target weight, or holds, buys (to the highest weight) or sells (to the lowest)."""
    states: FloatArray
    """Grid of the market's state, increasing; (n_states,)."""
    weights: FloatArray
    """Grid of weights held, increasing, wider than the legal targets because weights drift; (n_grid_weights,)."""
    min_weight: float
    """Lowest legal target weight."""
    max_weight: float
    """Highest legal target weight."""
    after_trade_value: FloatArray
    """Q(s, w*): discounted sum of log returns from holding w* on; relative to an unknown constant at discount 1;
    (n_states, n_grid_weights)."""
    lower: FloatArray
    """Continuous actions: an account below this weight buys up to it; (n_states,)."""
    upper: FloatArray
    """Continuous actions: an account above this weight sells down to it; (n_states,)."""
    long_run: Callable[[], float] = field(repr=False)
    """Computes `mean_log_return`; only on demand, because it takes long where costs forbid nearly all trading."""

    @cached_property
    def mean_log_return(self) -> float:
        """Expected log return per bar in the long run, after costs, of following the policy from a flat start."""
        return self.long_run()

    def target_weight(self, state: FloatArray, weight: FloatArray) -> FloatArray:
        """Decide for many accounts at once.

        Args:
            state: the market's state at the close; (n_accounts,).
            weight: signed share of equity held now; (n_accounts,).

        Returns:
            The share of equity wanted after the trade, equal to `weight` to hold; (n_accounts,).
        """
        if self.actions == "continuous":
            lower, upper = np.interp(state, self.states, self.lower), np.interp(state, self.states, self.upper)
            clipped: FloatArray = np.clip(weight, lower, upper)
            return clipped
        goals = [weight, np.full_like(weight, self.max_weight), np.full_like(weight, self.min_weight)]
        # Hold comes first, so that it wins ties.
        best = np.argmax([self._worth(state, weight, goal) for goal in goals], axis=0)
        chosen: FloatArray = np.choose(best, goals)
        return chosen

    def value(self, state: FloatArray, weight: FloatArray) -> FloatArray:
        """Discounted sum of log returns that an account can expect under the policy.

        Args:
            state: the market's state at the close; (n_accounts,).
            weight: signed share of equity held now; (n_accounts,).

        Returns:
            The value in log return; at discount 1 relative to an unknown constant; (n_accounts,).
        """
        return self._worth(state, weight, self.target_weight(state, weight))

    def after_trade(self, state: FloatArray, target_weight: FloatArray) -> FloatArray:
        """Q, the value of carrying some weights on from here, interpolated; arguments and result (n_accounts,)."""
        row, row_share = _locate(state, self.states)
        column, column_share = _locate(target_weight, self.weights)
        table = self.after_trade_value
        low = (1.0 - column_share) * table[row, column] + column_share * table[row, column + 1]
        high = (1.0 - column_share) * table[row + 1, column] + column_share * table[row + 1, column + 1]
        return (1.0 - row_share) * low + row_share * high

    def _worth(self, state: FloatArray, weight: FloatArray, target_weight: FloatArray) -> FloatArray:
        """Log x + Q of trading to some targets now and following the policy after; (n_accounts,)."""
        remaining, _ = rebalance(np.ones_like(weight), weight, target_weight, cost_rate=self.cost_rate)
        return np.log(remaining) + self.after_trade(state, target_weight)


def optimal_policy(
    parameters: MarkovMarket,
    *,
    cost_rate: float,
    discount: float,
    max_weight: float = 1.0,
    min_weight: float = -1.0,
    actions: Actions = "continuous",
    n_states: int = 241,
    n_weights: int = 81,
    n_nodes: int = 37,
) -> OptimalPolicy:
    """Compute the policy that earns the highest expected discounted log return.

    Args:
        parameters: the process, as found in a synthetic market's `parameters`.
        cost_rate: commission plus slippage, as a fraction of the notional traded (0.0005 is 5 basis points).
        discount: discount per bar, in (0, 1]; 1 maximises the long-run average itself, which no policy can beat.
        max_weight: highest legal target, a share of equity, >= 0; also what the discrete action "buy" targets.
        min_weight: lowest legal target, <= 0 (0 is long-only); also what the discrete action "sell" targets.
        actions: "continuous" for any legal target, "discrete" for hold, buy and sell.
        n_states: number of grid points over ±5 stationary standard deviations of the state.
        n_weights: number of grid points from `min_weight` to `max_weight`; flat is added where it is not among them.
        n_nodes: number of nodes over ±5 standard deviations of the innovation.

    Returns:
        The policy; its long-run mean log return is computed when it is asked for.

    Raises:
        ValueError: an argument is out of range, or a legal position can lose the whole equity in one bar.
        RuntimeError: value iteration did not converge; at discount 1 because the average depends on where one starts.
    """
    _check_arguments(cost_rate, discount, min_weight, max_weight, actions)
    _check_grid_sizes(n_states, n_weights, n_nodes)
    grid = _make_grid(parameters, min_weight, max_weight, actions, n_states, n_weights, n_nodes)
    chooser = _Chooser(grid, cost_rate, actions, min_weight, max_weight)
    value, added = _settle(
        lambda value: chooser.best(grid.after_trade(value, discount)),
        np.zeros_like(grid.reward),
        np.ones(grid.reward.shape, dtype=np.bool_),
        "value iteration",
    )
    if discount < 1.0:
        value = value + added * discount / (1.0 - discount)
    after_trade_value = grid.after_trade(value, discount)
    lower, upper = chooser.band(after_trade_value)
    return OptimalPolicy(
        parameters=parameters,
        cost_rate=cost_rate,
        discount=discount,
        actions=actions,
        states=grid.states,
        weights=grid.weights,
        min_weight=min_weight,
        max_weight=max_weight,
        after_trade_value=after_trade_value,
        lower=grid.weights[lower],
        upper=grid.weights[upper],
        long_run=lambda: _mean_log_return(grid, chooser, chooser.decide(after_trade_value), value),
    )


def simulate_policy(policy: OptimalPolicy, market: SyntheticMarket, *, cost_rate: float) -> FloatArray:
    """Trade one path with a policy, starting flat.

    Args:
        policy: what decides at each close.
        market: the path; its process should be the policy's.
        cost_rate: the cost rate charged, which may differ from the one that the policy was computed for.

    Returns:
        Log return of the equity from close t to close t + 1, for t in [0, n_bars - 1); (n_bars - 1,).
    """
    close = market.prices["close"].to_numpy()
    asset_returns = (close[1:] / close[:-1] - 1.0).tolist()
    decide = _scalar_rule(policy, market.state)
    weight, growths = 0.0, []
    for t, asset_return in enumerate(asset_returns):
        target = decide(t, weight)
        equity, _ = rebalance(1.0, weight, target, cost_rate=cost_rate)
        equity, weight = carry(equity, target, asset_return)
        growths.append(equity)
    log_rewards: FloatArray = np.log(np.array(growths))
    return log_rewards


def _scalar_rule(policy: OptimalPolicy, state: FloatArray) -> Callable[[int, float], float]:
    """The policy on one path as (bar, weight) -> target; the states of all bars are looked up at once, for speed."""
    if policy.actions == "continuous":
        lower = np.interp(state, policy.states, policy.lower).tolist()
        upper = np.interp(state, policy.states, policy.upper).tolist()
        return lambda t, weight: min(max(weight, lower[t]), upper[t])
    return _discrete_rule(policy, state)


def _discrete_rule(policy: OptimalPolicy, state: FloatArray) -> Callable[[int, float], float]:
    """`OptimalPolicy.target_weight` for discrete actions, on Python floats."""
    row, row_share = (values.tolist() for values in _locate(state, policy.states))
    table, grid = policy.after_trade_value.tolist(), policy.weights.tolist()
    low, high = policy.min_weight, policy.max_weight
    ones = np.ones_like(state)
    # Worth of being at the two goals; what it costs to get there depends on the weight held.
    after_buying = policy.after_trade(state, high * ones).tolist()
    after_selling = policy.after_trade(state, low * ones).tolist()

    def decide(t: int, weight: float) -> float:
        cell = min(max(bisect_right(grid, weight) - 1, 0), len(grid) - 2)
        share = min(max((weight - grid[cell]) / (grid[cell + 1] - grid[cell]), 0.0), 1.0)
        below, above = table[row[t]], table[row[t] + 1]
        best = (1.0 - row_share[t]) * ((1.0 - share) * below[cell] + share * below[cell + 1])
        best += row_share[t] * ((1.0 - share) * above[cell] + share * above[cell + 1])
        target = weight
        for goal, after_trade in ((high, after_buying[t]), (low, after_selling[t])):
            worth = math.log(rebalance(1.0, weight, goal, cost_rate=policy.cost_rate)[0]) + after_trade
            if worth > best:
                best, target = worth, goal
        return target

    return decide


@dataclass(frozen=True, kw_only=True)
class _Dynamics:
    """The next state is intercept + persistence · s + e, and the log return is the next state minus memory · s."""

    intercept: float
    persistence: float
    memory: float
    volatility: float
    stationary_deviation: float


def _dynamics(parameters: MarkovMarket) -> _Dynamics:
    if isinstance(parameters, RandomWalk):
        intercept, persistence, memory = parameters.mean_log_return, 0.0, 0.0
        deviation = parameters.volatility
    elif isinstance(parameters, Autoregressive):
        persistence, memory = parameters.phi, 0.0
        intercept = parameters.mean_log_return * (1.0 - parameters.phi)
        deviation = parameters.stationary_deviation
    elif isinstance(parameters, OrnsteinUhlenbeck):
        intercept, persistence, memory = 0.0, 1.0 - parameters.reversion, 1.0
        deviation = parameters.stationary_deviation
    else:
        raise TypeError(
            "parameters must be RandomWalk, Autoregressive or OrnsteinUhlenbeck, whose state is known at each close; "
            f"got {type(parameters).__name__}"
        )
    if parameters.volatility == 0.0:
        raise ValueError("volatility must be above 0: without risk there is nothing to optimise")
    return _Dynamics(
        intercept=intercept,
        persistence=persistence,
        memory=memory,
        volatility=parameters.volatility,
        stationary_deviation=deviation,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grid:
    """Where every grid point goes for every innovation: cells of the grid and the share of their upper neighbour."""

    states: FloatArray  # (n_states,)
    weights: FloatArray  # (n_grid_weights,)
    probability: FloatArray  # (n_nodes,)
    reward: FloatArray  # E log(1 + w* R); (n_states, n_grid_weights)
    row: IntArray  # (n_states, n_nodes)
    row_share: FloatArray  # (n_states, n_nodes)
    column: IntArray  # as an index into the flattened (n_states, n_nodes, n_grid_weights); the same shape
    column_share: FloatArray  # (n_states, n_nodes, n_grid_weights)

    def after_trade(self, value: FloatArray, discount: float) -> FloatArray:
        """Q from V; (n_states, n_grid_weights)."""
        low = value[self.row]
        at_next_state = (low + self.row_share[..., None] * (value[self.row + 1] - low)).ravel()
        left = at_next_state[self.column]
        at_next_weight = left + self.column_share * (at_next_state[self.column + 1] - left)
        expected: FloatArray = np.einsum("q,sqw->sw", self.probability, at_next_weight)
        return self.reward + discount * expected

    def reached_from(self, start: npt.NDArray[np.bool_], target: IntArray) -> npt.NDArray[np.bool_]:
        """Grid points that a policy can come to from some of them; `target` as in `_Chooser.decide`; same shape."""
        reached, new = start, start
        while new.any():
            row = np.nonzero(new)[0]
            share = self.column_share[row, :, target[new]]
            next_row = self.row[row]
            next_column = self.column[row, :, target[new]] % len(self.weights)
            after = np.zeros_like(reached)
            for right, possible in ((0, share < 1.0), (1, share > 0.0)):
                for higher in (0, 1):
                    after[next_row[possible] + higher, next_column[possible] + right] = True
            new = after & ~reached
            reached = reached | after
        return reached


def _make_grid(
    parameters: MarkovMarket,
    min_weight: float,
    max_weight: float,
    actions: Actions,
    n_states: int,
    n_weights: int,
    n_nodes: int,
) -> _Grid:
    process = _dynamics(parameters)
    # Even spacing, not Gauss-Hermite: values have kinks where the position flips, where 21 Hermite nodes err by 1%.
    nodes = np.linspace(-INNOVATION_RANGE, INNOVATION_RANGE, n_nodes)
    density = np.exp(-0.5 * nodes**2)
    probability = density / density.sum()
    # Where the state says nothing about the next bar, two grid points say it as well as many.
    n_states = n_states if process.persistence or process.memory else 2
    states = STATE_RANGE * process.stationary_deviation * np.linspace(-1.0, 1.0, n_states)
    next_state = process.intercept + process.persistence * states[:, None] + process.volatility * nodes
    log_return = next_state - process.memory * states[:, None]
    worst = float(np.abs(log_return).max())
    if min(min_weight * np.expm1(worst), max_weight * np.expm1(-worst)) <= -1.0:
        raise ValueError(
            f"a weight between {min_weight} and {max_weight} can lose the whole equity in a bar that moves by "
            f"{worst:.0%}: lower the volatility or the weights"
        )
    weights = _weight_grid(min_weight, max_weight, n_weights, worst, actions)
    growth, drifted = _carry_grid(weights, np.expm1(log_return), min_weight, max_weight, actions)
    row, row_share = _locate(next_state, states)
    column, column_share = _locate(drifted, weights)
    first = len(weights) * np.arange(next_state.size).reshape(*next_state.shape, 1)
    return _Grid(
        states=states,
        weights=weights,
        probability=probability,
        reward=np.einsum("q,sqw->sw", probability, np.log(growth)),
        row=row,
        row_share=row_share,
        column=first + column,
        column_share=column_share,
    )


def _weight_grid(
    min_weight: float, max_weight: float, n_weights: int, worst_move: float, actions: Actions
) -> FloatArray:
    """Even steps over the legal targets, on beyond them as far as weights drift, and 0; increasing."""
    legal, step = np.linspace(min_weight, max_weight, n_weights, retstep=True)
    moves = np.expm1([-worst_move, worst_move])
    _, drifted = carry(np.ones((2, 1)), np.array([[min_weight], [max_weight]]), moves)
    # A band trades a drifted weight back at the next bar; "hold" lets it go for as long as it pays.
    n_bars = 1 if actions == "continuous" else 3
    n_below = math.ceil(n_bars * (min_weight - drifted.min()) / step)
    n_above = math.ceil(n_bars * (drifted.max() - max_weight) / step)
    below = min_weight - step * np.arange(min(n_below, n_weights), 0, -1)
    above = max_weight + step * np.arange(1, min(n_above, n_weights) + 1)
    # Rounding may miss zero by 1e-17, which would be a second zero.
    return np.unique(np.concatenate([below, legal[np.abs(legal) > 1e-9], [0.0], above]))


def _carry_grid(
    weights: FloatArray, asset_returns: FloatArray, min_weight: float, max_weight: float, actions: Actions
) -> tuple[FloatArray, FloatArray]:
    """Growth of the equity and drifted weight of each grid weight; (n_states, n_nodes, n_grid_weights) each."""
    if actions == "continuous":
        # Weights beyond the legal ones are traded back before they are carried.
        weights = np.clip(weights, min_weight, max_weight)
    # "Hold" could ruin an account whose weight has drifted far; a growth of 1e-6 keeps the policy away from there.
    growth, _ = carry(np.ones(()), weights, asset_returns[..., None])
    growth = np.maximum(growth, 1e-6)
    return growth, weights * (1.0 + asset_returns[..., None]) / growth


@dataclass(frozen=True, eq=False)
class _Chooser:
    """The maximisation over targets, for every grid point at once."""

    grid: _Grid
    cost_rate: float
    actions: Actions
    min_weight: float
    max_weight: float

    def best(self, after_trade_value: FloatArray) -> FloatArray:
        """V from Q; (n_states, n_grid_weights)."""
        if self.actions == "discrete":
            highest: FloatArray = np.max(self._discrete(after_trade_value)[0], axis=0)
            return highest
        buy, sell = self._worth_as_target(after_trade_value)
        weights = self.grid.weights
        # The best target above each weight, and the best below it.
        best_above = np.maximum.accumulate(buy[:, ::-1], axis=1)[:, ::-1]
        best_below = np.maximum.accumulate(sell, axis=1)
        buying = np.log1p(self.cost_rate * weights) + best_above
        selling = np.log1p(-self.cost_rate * weights) + best_below
        better: FloatArray = np.maximum(buying, selling)
        return better

    def band(self, after_trade_value: FloatArray) -> tuple[IntArray, IntArray]:
        """Grid indices of the weights to buy up to and to sell down to; (n_states,) each."""
        buy, sell = self._worth_as_target(after_trade_value)
        return buy.argmax(axis=1), sell.argmax(axis=1)

    def decide(self, after_trade_value: FloatArray) -> IntArray:
        """Grid index of the target at every grid point; (n_states, n_grid_weights)."""
        target: IntArray
        if self.actions == "discrete":
            worths, targets = self._discrete(after_trade_value)
            target = np.take_along_axis(targets, worths.argmax(axis=0)[None], axis=0)[0]
        else:
            lower, upper = self.band(after_trade_value)
            target = np.clip(np.arange(len(self.grid.weights)), lower[:, None], upper[:, None])
        return target

    def trade_cost(self, target: IntArray) -> FloatArray:
        """Log x of trading to grid indices; (n_states, n_grid_weights)."""
        held = np.broadcast_to(self.grid.weights, target.shape)
        remaining, _ = rebalance(np.ones_like(held), held, self.grid.weights[target], cost_rate=self.cost_rate)
        cost: FloatArray = np.log(remaining)
        return cost

    def _worth_as_target(self, after_trade_value: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Worth of each legal target to an account that buys or sells towards it, but for a term of what it holds."""
        weights = self.grid.weights
        legal = (weights >= self.min_weight - 1e-12) & (weights <= self.max_weight + 1e-12)
        buy = np.where(legal, after_trade_value - np.log1p(self.cost_rate * weights), -np.inf)
        sell = np.where(legal, after_trade_value - np.log1p(-self.cost_rate * weights), -np.inf)
        return buy, sell

    def _discrete(self, after_trade_value: FloatArray) -> tuple[FloatArray, IntArray]:
        """Worth and target of hold, buy and sell (hold first: it wins ties); (3, n_states, n_grid_weights) each."""
        hold = np.arange(len(self.grid.weights))
        goals = [np.abs(self.grid.weights - goal).argmin() for goal in (self.max_weight, self.min_weight)]
        targets = np.stack([hold, *(np.full_like(hold, goal) for goal in goals)])
        worths = after_trade_value[:, targets].swapaxes(0, 1) + self.trade_cost(targets)[:, None]
        return worths, np.broadcast_to(targets[:, None], worths.shape)


def _settle(
    sweep: Callable[[FloatArray], FloatArray], value: FloatArray, where: npt.NDArray[np.bool_], what: str
) -> tuple[FloatArray, float]:
    """Apply a Bellman operator until it adds the same to every value, and return the values and what it adds.

    The true change of each value lies between the least and the largest one (MacQueen's bounds; Puterman, 1994, section
    6.6), long before the values themselves converge.
    """
    for _ in range(MAX_SWEEPS):
        updated = sweep(value)
        change = (updated - value)[where]
        value = updated
        if change.max() - change.min() < TOLERANCE:
            return value, float(0.5 * (change.max() + change.min()))
    raise RuntimeError(
        f"{what} did not converge in {MAX_SWEEPS} sweeps: costs may be so high that the weight held at the start "
        "matters for ever; try a lower cost_rate, or a discount below 1"
    )


def _mean_log_return(grid: _Grid, chooser: _Chooser, target: IntArray, value: FloatArray) -> float:
    """Long-run log return per bar of following `target` from flat; `value` is a guess to start from."""
    flat = np.zeros(target.shape, dtype=np.bool_)
    flat[:, np.abs(grid.weights).argmin()] = True
    cost = chooser.trade_cost(target)
    _, added = _settle(
        lambda total: cost + np.take_along_axis(grid.after_trade(total, 1.0), target, axis=1),
        value,
        grid.reached_from(flat, target),
        "the long-run average",
    )
    return added


def _locate(points: FloatArray, grid: FloatArray) -> tuple[IntArray, FloatArray]:
    """Grid cell of each point and the share of its upper end; points off the grid are moved to its edge."""
    cell = np.clip(np.searchsorted(grid, points, side="right") - 1, 0, len(grid) - 2)
    share = (points - grid[cell]) / (grid[cell + 1] - grid[cell])
    return cell, np.clip(share, 0.0, 1.0)


def _check_arguments(cost_rate: float, discount: float, min_weight: float, max_weight: float, actions: Actions) -> None:
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    if not (
        np.isfinite([min_weight, max_weight]).all() and min_weight <= 0.0 <= max_weight and min_weight < max_weight
    ):
        raise ValueError(
            f"min_weight must be <= 0 and max_weight >= 0 and they must differ, got {min_weight} and {max_weight}"
        )
    largest_weight = max(1.0, -min_weight, max_weight)
    if not 0.0 <= cost_rate * largest_weight < 0.25:
        raise ValueError(f"cost_rate must be at least 0 and below {0.25 / largest_weight:g}, got {cost_rate}")
    if actions not in ("continuous", "discrete"):
        raise ValueError(f"actions must be 'continuous' or 'discrete', got {actions!r}")


def _check_grid_sizes(n_states: int, n_weights: int, n_nodes: int) -> None:
    # Nodes more than a standard deviation apart get the variance wrong.
    least = int(2.0 * INNOVATION_RANGE) + 1
    for name, size, required in (("n_states", n_states, 2), ("n_weights", n_weights, 2), ("n_nodes", n_nodes, least)):
        if size < required:
            raise ValueError(f"{name} must be at least {required}, got {size}")
