"""What a trading environment is told: one frozen dataclass, checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ml.tradingbots.components.config_checks import check_field_types
from ml.tradingbots.core.costs import TransactionCosts

RewardName = Literal["log_return", "return", "differential_sharpe", "sortino", "calmar", "cvar"]
ActionType = Literal["continuous", "discrete"]

# Beyond it the orders under way alone would be most of what an agent sees.
MAX_EXECUTION_DELAY = 1_000


@dataclass(frozen=True, kw_only=True)
class TradingEnvConfig:
    """Settings of `TradingEnvironment` and `TradingVectorEnv`. Fractions are fractions: 10 basis points are 0.001."""

    initial_balance: float = 100_000.0
    """Equity at the start of an episode, in account currency."""
    window_size: int = 20
    """Past bars in an observation, the current one included."""
    commission: float = 0.001
    """Commission per fill, as a fraction of its notional."""
    slippage_rate: float = 0.0
    """Adverse price move per fill, as a fraction of the price; half a quoted spread belongs here."""
    minimum_commission: float = 0.0
    """Least commission of one fill, in account currency."""
    borrow_rate: float = 0.0
    """Annual rate paid on the notional held short."""
    margin_rate: float = 0.0
    """Annual rate paid on borrowed cash."""
    cash_rate: float = 0.0
    """Annual rate earned on positive cash."""
    impact_coefficient: float = 0.0
    """Square-root market impact coefficient; needs a volume column."""
    execution_delay: int = 0
    """Extra bars between a decision and its fill; 0 fills at the next bar's open (the last close where there is none)."""
    action_type: ActionType = "continuous"
    """continuous: target weights in a Box. discrete: 0 hold, 1 buy, 2 sell, one choice per asset."""
    max_weight: float = 1.0
    """Largest share of equity in one asset, long or short."""
    max_gross_exposure: float = 1.0
    """Largest sum of absolute weights; targets above it are scaled down together."""
    allow_short: bool = True
    """Whether weights may be negative."""
    features: tuple[str, ...] = ("log_return",)
    """Market features by name, per asset (`list_features()` shows them); `name:n_bars` sets a look-back."""
    use_extra_columns: bool = True
    """Whether columns of the price table other than open, high, low, close and volume become features too."""
    reward: RewardName = "log_return"
    """Reward of one bar; see `rewards.py` for each formula and unit."""
    reward_scaling: float = 1.0
    """Factor on every reward."""
    reward_decay: float = 0.01
    """Weight of the newest bar in the moving moments of `differential_sharpe` and `sortino`."""
    reward_warmup_bars: int = 20
    """First bars of an episode in which `differential_sharpe` and `sortino` pay 0 while their moments form. The moments are
    plain averages until 1 over the bars seen falls below `reward_decay`."""
    drawdown_weight: float = 1.0
    """`calmar`: penalty per unit of added drawdown."""
    tail_threshold: float = 0.02
    """`cvar`: loss of one bar (log return) from which the tail begins."""
    tail_weight: float = 1.0
    """`cvar`: penalty per unit of loss beyond the threshold."""
    episode_length: int | None = None
    """Bars an episode lasts; None runs to the end of the data."""
    random_start: bool = False
    """Whether an episode starts at a random legal bar, from the environment's own seeded generator."""
    ruin_fraction: float = 0.01
    """An account at or below this share of `initial_balance` is ruined and its episode terminates."""
    max_drawdown: float = 1.0
    """An account whose drawdown exceeds this is stopped out and its episode terminates; 1 switches it off."""

    def __post_init__(self) -> None:
        check_field_types(self)
        _check_positive(self, "initial_balance", "max_weight", "max_gross_exposure")
        _check_at_least(self, 1, "window_size")
        _check_at_least(self, 0, "execution_delay", "reward_warmup_bars")
        _check_at_least(self, 0.0, "drawdown_weight", "tail_threshold", "tail_weight")
        if self.execution_delay > MAX_EXECUTION_DELAY:
            raise ValueError(f"execution_delay must be at most {MAX_EXECUTION_DELAY} bars, got {self.execution_delay}")
        if self.episode_length is not None and self.episode_length < 1:
            raise ValueError(
                f"episode_length must be at least 1 bar, or None for the whole data; got {self.episode_length}"
            )
        for name, low, high in (
            ("ruin_fraction", 0.0, 1.0),
            ("reward_decay", 0.0, 1.0),
            ("max_drawdown", 0.0, 1.0 + 1e-12),
        ):
            value = getattr(self, name)
            if not low <= value < high:
                raise ValueError(f"{name} must be a fraction between 0 and 1, got {value}")
        if self.reward_decay == 0.0 or self.max_drawdown == 0.0:
            raise ValueError("reward_decay and max_drawdown must be above 0")
        if not self.features and not self.use_extra_columns:
            raise ValueError("features is empty and use_extra_columns is off: the agent would see no market at all")
        if self.reward_scaling == 0.0:
            raise ValueError(f"reward_scaling must be a number other than 0, got {self.reward_scaling}")
        _ = self.costs  # Rates are checked where they live.

    @property
    def costs(self) -> TransactionCosts:
        """The cost rates as the accounting takes them."""
        return TransactionCosts(
            commission_rate=self.commission,
            slippage_rate=self.slippage_rate,
            minimum_commission=self.minimum_commission,
            borrow_rate=self.borrow_rate,
            margin_rate=self.margin_rate,
            cash_rate=self.cash_rate,
            impact_coefficient=self.impact_coefficient,
        )

    @property
    def min_weight(self) -> float:
        """Lowest legal weight of one asset: −max_weight, or 0 where shorts are not allowed."""
        return -self.max_weight if self.allow_short else 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TradingEnvConfig:
        """Rebuild a config from `dataclasses.asdict`, every field checked again.

        Raises:
            ValueError: a field is unknown, or its value is refused.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown TradingEnvConfig fields: {', '.join(unknown)}; was the file written by a newer version?"
            )
        return cls(**values)


def _check_positive(config: TradingEnvConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0.0:
            raise ValueError(f"{name} must be a positive number, got {value}")


def _check_at_least(config: TradingEnvConfig, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
