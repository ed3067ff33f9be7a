"""Rewards by name: what one bar is worth to the agent.

A reward sees one `Outcome` and a short memory of its own, and is written with operators, so that the scalar environment
(floats) and the vector environment (tensors) share it. Add one: a class here, its name in `REWARDS`, a pencil test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.core.accounting import positive_part

# Per-bar standard deviation below which a risk-adjusted reward stops dividing (10 basis points): an account that has been
# flat has no volatility, and dividing by "almost none" would make its first trade look miraculous.
VOLATILITY_FLOOR = 1e-3

# Bound of the differential ratios, which are of the order of one standardised return and tens after a crash: where returns
# have had almost no variance, the formulas promise millions.
RATIO_BOUND = 100.0

Memory = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one bar did to the account; floats, or tensors of shape (n_accounts,)."""

    simple_return: Any
    """E'/E − 1."""
    log_return: Any
    """ln(E'/E)."""
    drawdown_before: Any
    """1 − E/peak at the last close."""
    drawdown_after: Any
    """1 − E'/peak at this close."""


class Reward(Protocol):
    """A reward: its memory at the start of an episode, and one step."""

    initial_memory: tuple[float, ...]

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Return the reward of this bar and the memory for the next one."""
        ...


class LogReturn:
    """`log_return`: ln(E'/E), per bar. Sums to ln(E_T/E_0) exactly."""

    initial_memory: tuple[float, ...] = ()

    def __init__(self, config: TradingEnvConfig) -> None:
        pass

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward ln(E'/E)."""
        return outcome.log_return, memory


class SimpleReturn:
    """`return`: E'/E − 1, per bar."""

    initial_memory: tuple[float, ...] = ()

    def __init__(self, config: TradingEnvConfig) -> None:
        pass

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward E'/E − 1."""
        return outcome.simple_return, memory


class DifferentialSharpe:
    """`differential_sharpe`: derivative of the moving Sharpe ratio (Moody & Saffell, 2001, eq. 14); dimensionless.

    D = (B·ΔA − ½A·ΔB) / (B − A²)^1.5 with the moments A, B of the bars before, ΔA = R − A, ΔB = R² − B, then A += η·ΔA,
    B += η·ΔB. Warm-up: for the first `reward_warmup_bars` bars of an episode the reward is 0 and the moments are plain
    averages; B − A² never counts below `VOLATILITY_FLOOR`², nor D beyond ±`RATIO_BOUND`.
    """

    initial_memory: tuple[float, ...] = (0.0, 0.0, 0.0)  # A, B, bars seen

    def __init__(self, config: TradingEnvConfig) -> None:
        self.decay = config.reward_decay
        self.warmup_bars = config.reward_warmup_bars

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward the marginal Sharpe ratio of this bar."""
        mean, square, n_seen = memory
        value = outcome.simple_return
        mean_change, square_change = value - mean, value * value - square
        variance = _at_least(square - mean * mean, VOLATILITY_FLOOR**2)
        reward = (square * mean_change - 0.5 * mean * square_change) / variance**1.5
        rate = _at_least(1.0 / (n_seen + 1.0), self.decay)
        after = (mean + rate * mean_change, square + rate * square_change, n_seen + 1.0)
        return _bounded(reward) * (n_seen >= self.warmup_bars), after


class DifferentialSortino:
    """`sortino`: derivative of the moving downside-deviation ratio (Moody & Saffell, 2001, eq. 22); dimensionless.

    With A the moving mean and D² the moving mean of min(R, 0)²: (R − ½A)/D for R > 0, and
    (D²(R − ½A) − ½A·R²)/D³ otherwise. Warm-up and bound as for `differential_sharpe`; D never counts below `VOLATILITY_FLOOR`.
    """

    initial_memory: tuple[float, ...] = (0.0, 0.0, 0.0)  # A, D², bars seen

    def __init__(self, config: TradingEnvConfig) -> None:
        self.decay = config.reward_decay
        self.warmup_bars = config.reward_warmup_bars

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward the marginal downside-deviation ratio of this bar."""
        mean, downside_square, n_seen = memory
        value = outcome.simple_return
        floored = _at_least(downside_square, VOLATILITY_FLOOR**2)
        loss = positive_part(-value)
        reward = (floored * (value - 0.5 * mean) - 0.5 * mean * loss * loss) / floored**1.5
        rate = _at_least(1.0 / (n_seen + 1.0), self.decay)
        after = (
            mean + rate * (value - mean),
            downside_square + rate * (loss * loss - downside_square),
            n_seen + 1.0,
        )
        return _bounded(reward) * (n_seen >= self.warmup_bars), after


class CalmarReward:
    """`calmar`: log return minus `drawdown_weight` × the drawdown this bar added, per bar."""

    initial_memory: tuple[float, ...] = ()

    def __init__(self, config: TradingEnvConfig) -> None:
        self.weight = config.drawdown_weight

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward growth, charge new drawdown; recovering one is not paid twice."""
        added = positive_part(outcome.drawdown_after - outcome.drawdown_before)
        return outcome.log_return - self.weight * added, memory


class CVaRReward:
    """`cvar`: log return minus `tail_weight` × the loss beyond `tail_threshold`, per bar.

    The penalty is the expectation term of Rockafellar & Uryasev (2000) with the value-at-risk held at the threshold.
    """

    initial_memory: tuple[float, ...] = ()

    def __init__(self, config: TradingEnvConfig) -> None:
        self.threshold = config.tail_threshold
        self.weight = config.tail_weight

    def step(self, memory: Memory, outcome: Outcome) -> tuple[Any, Memory]:
        """Reward growth, charge the tail."""
        return outcome.log_return - self.weight * positive_part(-outcome.log_return - self.threshold), memory


REWARDS: dict[str, Callable[[TradingEnvConfig], Reward]] = {
    "log_return": LogReturn,
    "return": SimpleReturn,
    "differential_sharpe": DifferentialSharpe,
    "sortino": DifferentialSortino,
    "calmar": CalmarReward,
    "cvar": CVaRReward,
}


def create_reward(config: TradingEnvConfig) -> Reward:
    """Return the reward that the config names."""
    return REWARDS[config.reward](config)


def _at_least(value: Any, least: float) -> Any:
    # `least` joins in the dtype of `value`: a number times a boolean tensor would be float32.
    return value * (value > least) + (least + 0.0 * value) * (value <= least)


def _bounded(ratio: Any) -> Any:
    return 0.5 * (abs(ratio + RATIO_BOUND) - abs(ratio - RATIO_BOUND))
