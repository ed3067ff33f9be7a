"""What an agent would hold now: the core of `tradingbots act`, for any service that asks the same question.

The answer is the one that the environment would get at that bar: the same features, the same account, the same limits.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.action_space import legal_target
from ml.tradingbots.components.agent_regimes import warn_of_short_history, with_regimes_of
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.serialization import CheckpointError, checked_config
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.names import did_you_mean
from ml.tradingbots.data.timestamps import utc_timestamp
from ml.tradingbots.training.evaluation import act

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LiveAccount:
    """A real account, told in the terms of an observation. Assets that are not named count as 0."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Signed share of equity held, by asset; empty is flat."""
    unrealised_return: Mapping[str, float] = field(default_factory=dict)
    """Return of each open position since its average entry price, a fraction, by asset."""
    drawdown: float = 0.0
    """Fall from the account's highest close, a fraction in [0, 1]."""
    orders_under_way: tuple[Mapping[str, float], ...] = ()
    """Target weights ordered and not yet filled, oldest first, one mapping per bar of `execution_delay`; an asset that is
    not named has no order. Empty means that no order is under way."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What an agent answered at one bar."""

    timestamp: pd.Timestamp
    """When the bar became known, UTC; the order is for the next open."""
    assets: tuple[str, ...]
    """Names of the assets."""
    target_weights: FloatArray
    """Legal target: signed share of equity wanted per asset, NaN where no order is sent; (n_assets,)."""
    action: npt.NDArray[Any]
    """What the agent answered, before limits; (action_dim,)."""
    weights: FloatArray
    """Signed share of equity held when it answered; (n_assets,)."""
    unrealised_return: FloatArray
    """Return of each open position since its entry, a fraction; (n_assets,)."""
    drawdown: float
    """Fall of the account from its highest close, a fraction."""
    orders_under_way: FloatArray
    """Targets ordered and not yet filled, oldest first, NaN for no order; (execution_delay, n_assets)."""
    equity: float | None
    """Value of the replayed account, in currency; None for an account that was told."""

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain values for JSON; null stands for "no order"."""
        return {
            "timestamp": self.timestamp.isoformat(),
            "target_weights": self._by_asset(self.target_weights),
            "account": {
                "source": "given" if self.equity is None else "replay",
                "equity": self.equity,
                "weights": self._by_asset(self.weights),
                "unrealised_return": self._by_asset(self.unrealised_return),
                "drawdown": self.drawdown,
                "orders_under_way": [self._by_asset(order) for order in self.orders_under_way],
            },
            "action": self.action.tolist(),
        }

    def _by_asset(self, values: FloatArray) -> dict[str, float | None]:
        # NaN is no JSON; adding 0.0 turns −0.0, which reads like a tiny short, into 0.
        pairs = zip(self.assets, values.tolist(), strict=True)
        return {asset: None if value != value else value + 0.0 for asset, value in pairs}


def target_weights(
    agent: Any,
    price_data: Market | Bars | pd.DataFrame,
    *,
    at: str | date | pd.Timestamp | None = None,
    account: LiveAccount | None = None,
    start: str | date | pd.Timestamp | None = None,
) -> Decision:
    """Ask an agent what it wants to hold after a bar.

    Args:
        agent: a trained agent, e.g. from `load_rl_agent`; it acts deterministically.
        price_data: prices up to now: as many bars as windows and indicators need, and one more. An agent that
            adds columns of regimes needs `agent.regimes.bars_to_forget`, or its answer depends on where they begin; it warns.
        at: act at the last bar known at this instant; None is the last bar. Later bars are never looked at.
        account: the account to act for. None replays the agent, which begins flat and with the environment's initial
            balance, to the account that it would hold by then.
        start: first instant at which a replay may decide; None is the first bar with a full window.

    Returns:
        The legal target weights, with the account and the raw action that they come from.

    Raises:
        ValueError: the agent was not trained on a market, prices do not fit it, there are too few bars, `at` lies outside
            them, the account names other assets, or the replayed account was stopped out before the bar.
    """
    if not isinstance(price_data, Market):
        price_data = Bars.from_frame(price_data)
    env = environment_for(agent, price_data)
    bar = _bar_at(env.market, at)
    if isinstance(price_data, Bars):
        warn_of_short_history(agent, price_data, bar + 1)
    if account is None:
        return _replayed(agent, env, bar, start)
    if start is not None:
        raise ValueError("start belongs to a replay, and the account is given: leave one of them out")
    return _told(agent, env, bar, account)


def environment_for(agent: Any, price_data: Market | Bars | pd.DataFrame) -> TradingEnvironment:
    """Build the environment that an agent was trained in, over other prices: one pass from the first bar to the last.

    Assets may come in another order than in training.

    Raises:
        ValueError: the agent was not trained on a market, or assets or features differ; the message names them.
    """
    config = trained_config(agent)
    if not isinstance(price_data, Market):
        price_data = _with_assets_of(agent, with_regimes_of(agent, Bars.from_frame(price_data)))
    env = TradingEnvironment(price_data, config)
    trained, found = tuple(agent.environment_spec["features"]), env.market.feature_names
    if trained != found:
        raise ValueError(
            f"the agent was trained on the features {', '.join(trained)}, these prices give {', '.join(found)}"
            f"{_difference(trained, found)}; bring the columns it was trained with"
        )
    if env.observation_space_dim != agent.state_dim:
        raise ValueError(
            f"the agent takes observations of length {agent.state_dim}, these prices give {env.observation_space_dim}"
        )
    return env


def trained_config(agent: Any) -> TradingEnvConfig:
    """Return the settings of the environment that an agent was trained in, as one pass over all prices.

    Raises:
        ValueError: it was not trained on a market, or the settings in its file are refused.
    """
    spec = agent.environment_spec
    if not {"config", "assets", "features"} <= set(spec):
        raise ValueError("the agent was not trained in a trading environment, so it cannot be shown prices")
    for name in ("assets", "features"):
        if not isinstance(spec[name], (list, tuple)) or not all(isinstance(label, str) for label in spec[name]):
            raise CheckpointError(f"the environment saved with the agent has {name} that are no names: {spec[name]!r}")
    try:
        config = TradingEnvConfig.from_dict(spec["config"])
        checked_config(config, TradingEnvConfig, "the agent's environment")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the environment settings saved with the agent were refused: {error}") from error
    return dataclasses.replace(config, episode_length=None, random_start=False)


def _replayed(agent: Any, env: TradingEnvironment, bar: int, start: str | date | pd.Timestamp | None) -> Decision:
    """Walk the agent from its first bar to `bar`, then ask it."""
    n_assets, delay = env.market.n_assets, env.config.execution_delay
    orders = deque(np.full((delay, n_assets), np.nan), maxlen=delay)
    observation, info = env.reset(options={"start_bar": _first_bar(env.market, bar, start)})
    while info["bar"] < bar:
        action = act(agent, observation, env.action_mask())
        observation, _, terminated, _, info = env.step(action)
        # None, no order, becomes NaN.
        orders.append(np.atleast_1d(np.asarray(info["target_weight"], dtype=np.float64)))
        if terminated:
            raise ValueError(
                f"the replayed account was stopped out at {env.market.bars.timestamps[info['bar']]}, with a drawdown of "
                f"{env.account.drawdown:.1%}; give the account to act for instead (flat, or its weights)"
            )
    account = env.account
    return _decide(
        agent,
        env,
        bar,
        observation,
        weights=np.atleast_1d(np.asarray(account.weight, dtype=np.float64)),
        unrealised_return=np.atleast_1d(np.asarray(account.unrealised_return, dtype=np.float64)),
        drawdown=float(account.drawdown),
        orders_under_way=np.array(orders, dtype=np.float64).reshape(delay, n_assets),
        equity=float(account.equity),
    )


def _told(agent: Any, env: TradingEnvironment, bar: int, account: LiveAccount) -> Decision:
    """Ask the agent with an account that was told."""
    market, delay = env.market, env.config.execution_delay
    weights = _per_asset(account.weights, market.assets, "weights", 0.0)
    unrealised = _per_asset(account.unrealised_return, market.assets, "unrealised_return", 0.0)
    if not 0.0 <= account.drawdown <= 1.0:
        raise ValueError(f"drawdown must be a fraction in [0, 1], got {account.drawdown}")
    if account.orders_under_way and len(account.orders_under_way) != delay:
        raise ValueError(
            f"orders_under_way must hold one entry per bar of execution_delay ({delay}), got {len(account.orders_under_way)}"
        )
    given = [_per_asset(order, market.assets, "orders_under_way", np.nan) for order in account.orders_under_way]
    orders = np.array(given) if given else np.full((delay, market.n_assets), np.nan)
    window = market.features[bar + 1 - env.config.window_size : bar + 1]
    waiting = np.where(np.isnan(orders), weights, orders)
    observation = np.concatenate([window.ravel(), weights, unrealised, np.array([account.drawdown]), waiting.ravel()])
    return _decide(
        agent,
        env,
        bar,
        observation.astype(np.float32),
        weights=weights,
        unrealised_return=unrealised,
        drawdown=float(account.drawdown),
        orders_under_way=orders,
        equity=None,
    )


def _decide(agent: Any, env: TradingEnvironment, bar: int, observation: Any, **account: Any) -> Decision:
    action = act(agent, observation, env.action_mask(account["weights"]))
    return Decision(
        timestamp=env.market.bars.timestamps[bar],
        assets=env.market.assets,
        target_weights=legal_target(action, account["weights"], env.config),
        action=np.atleast_1d(np.asarray(action)),
        **account,
    )


def _first_bar(market: Market, bar: int, start: str | date | pd.Timestamp | None) -> int:
    """Return the first bar of a replay that ends at `bar`."""
    # An episode needs a bar to walk to, so that it cannot begin at the very last one.
    last = min(bar, market.last_start(None))
    if start is None:
        return market.first_bar
    first = int(market.bars.timestamps.searchsorted(utc_timestamp(start, "start")))
    if not market.first_bar <= first <= last:
        times = market.bars.timestamps
        raise ValueError(f"start={start} must lie between {times[market.first_bar]} and {times[last]}")
    return first


def _bar_at(market: Market, at: str | date | pd.Timestamp | None) -> int:
    """Return the last bar known at an instant."""
    times = market.bars.timestamps
    if at is None:
        return market.last_bar
    bar = int(times.searchsorted(utc_timestamp(at, "at"), side="right")) - 1
    if bar < market.first_bar or utc_timestamp(at, "at") > times[-1]:
        raise ValueError(
            f"at={at} must lie between {times[market.first_bar]}, the first bar with a full window, and {times[-1]}, the "
            "last bar"
        )
    return bar


def _with_assets_of(agent: Any, bars: Bars) -> Bars:
    trained = tuple(agent.environment_spec["assets"])
    if bars.assets == trained:
        return bars
    if set(bars.assets) != set(trained):
        raise ValueError(
            f"the agent was trained on the assets {_shortened(trained)}, the prices hold {_shortened(bars.assets)}"
            f"{_difference(trained, bars.assets)}"
        )
    return bars.select(trained)


def _difference(wanted: tuple[str, ...], found: tuple[str, ...]) -> str:
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    parts = [f"missing: {_shortened(missing)}"] if missing else []
    parts += [f"unknown to it: {_shortened(unknown)}"] if unknown else []
    return f" ({'; '.join(parts)})" if parts else " (in another order)"


def _shortened(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _per_asset(values: Mapping[str, float], assets: tuple[str, ...], name: str, missing: float) -> FloatArray:
    """Return values by asset as an array in the order of `assets`; (n_assets,)."""
    for asset, value in values.items():
        if asset not in assets:
            raise ValueError(
                f"{name} names {asset!r}, which the agent does not trade.{did_you_mean(asset, assets)} "
                f"Its assets: {_shortened(assets)}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ValueError(f"{name} of {asset!r} must be a finite number, got {value!r}")
    return np.array([float(values.get(asset, missing)) for asset in assets])
