"""The trading environment: one account walks a price table bar by bar."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pandas as pd
from gymnasium import spaces

from ml.tradingbots.components.account import AccountState, PortfolioAccount, SingleAssetAccount
from ml.tradingbots.components.action_space import action_dim, action_space, idle_weights, legal_choices, legal_target
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import FeatureFunction, Market
from ml.tradingbots.components.rewards import Outcome, create_reward
from ml.tradingbots.data.bars import Bars

if TYPE_CHECKING:
    from ml.tradingbots.components.vector_environment import TradingVectorEnv

__all__ = ["TradingEnvConfig", "TradingEnvironment"]

FloatArray = npt.NDArray[np.float64]


class TradingEnvironment(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """Trade one asset, or a portfolio, on past prices.

    ## Description
    Each step goes from the close of bar t to the close of bar t + 1. The decision uses bars up to t and the account after
    the close of t; it is filled at the open of t + 1 (the last close stands in where the data has no open), pays its costs,
    and the position is held to the close of t + 1. `execution_delay` makes every order wait that many bars more. Prices do
    not react to the account, except through the impact formula where it is switched on.

    ## Action space
    | `action_type` | space | meaning |
    |---|---|---|
    | `continuous` | `Box(min_weight, max_weight, (n_assets,))` | target weight: signed share of equity wanted after the fill and its costs. NaN sends no order. Values outside the box are clipped; targets above `max_gross_exposure` together are scaled down in proportion. |
    | `discrete`, one asset | `Discrete(3)` | 0 hold (no order), 1 buy (to +max_weight), 2 sell (to −max_weight, or to 0 without shorts) |
    | `discrete`, portfolio | `MultiDiscrete([3] * n_assets)` | the same, per asset |

    ## Observation space
    `Box(-inf, inf, (observation_space_dim,), float32)`; raw values, agents normalise them.

    | index | meaning | unit | range | known at |
    |---|---|---|---|---|
    | `[0, W·A·F)` | `window_size` rows of market features, oldest first; in a row assets major, features minor | each feature's own | finite | close of its bar |
    | next A | weights held, after drift | share of equity | about ±max_weight | close of t |
    | next A | return of the open position since its average entry price, 0 when flat | fraction | > −1 for longs | close of t |
    | next 1 | drawdown from the episode's peak | fraction | [0, 1] | close of t |
    | next A·`execution_delay` | targets under way, oldest first; the weight held where no order waits | share of equity | ±max_weight | close of t |

    ## Reward
    `reward_scaling` × the reward named by `config.reward`; by default ln(E'/E), which sums to ln(E_T/E_0).

    ## Start
    Flat, with `initial_balance`, at the first bar whose window is full and defined; with `random_start` at a bar drawn from
    the legal range by the environment's own generator (`reset(seed=...)`); with `reset(options={"start_bar": t})` at bar t.

    ## Episode end
    1. Termination: equity at or below `ruin_fraction` of the initial balance.
    2. Termination: drawdown above `max_drawdown`, where that is below 1.
    3. Truncation: `episode_length` bars walked, or the last bar reached. The market goes on; values bootstrap.

    ## Costs
    Each fill pays commission and slippage on its notional (see `TransactionCosts`); shorts, borrowed cash and positive cash
    accrue interest over calendar time. `info["costs"]` is what the bar's fills took out of equity, in currency.

    ## Info
    `bar`, `equity`, `weight` (a number for one asset, else (n_assets,)), `turnover` (fraction of equity before the trade), `costs` (currency) of the bar's fills, and `target_weight`, the legal target that the
    last action asked for (None: no order).

    Discrete environments add `action_mask`, int8 (n_assets * 3,): per asset hold, buy and sell, 1 for legal. A masked choice
    is one that is certain to trade nothing, so that it does what a hold does and the mask takes nothing away: selling while
    flat where shorts are not allowed, and for one asset buying while fully invested (all of the equity in the asset; any
    other weight drifts over the gap to the fill, and can be bought back to its target) or, where the data has no open, while
    holding exactly what the choice would set. Hold is always legal. With `execution_delay` nothing is masked, because the
    orders under way decide what is held when the next one is filled.

    ## Arguments
    `price_data`: a DataFrame that `Bars.from_frame` accepts, a `Bars`, or a `Market` to share. `config`: a `TradingEnvConfig`.
    `extra_features`: named functions of `Bars`, see `Market`.

    ## Version history
    v1: first version.

    Raises:
        ValueError: bad prices, features or settings; the message names what, where and how to mend it.
    """

    version = 1
    metadata: dict[str, Any] = {"render_modes": ["figure"]}  # noqa: RUF012 - Gymnasium declares it so.

    def __init__(
        self,
        price_data: Market | Bars | pd.DataFrame,
        config: TradingEnvConfig | None = None,
        *,
        extra_features: Mapping[str, FeatureFunction] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "figure"):
            raise ValueError(f"render_mode must be None or 'figure', got {render_mode!r}")
        self.render_mode = render_mode
        self.market = Market.of(price_data, config, extra_features)
        self.config = config or self.market.config
        account = SingleAssetAccount if self.market.n_assets == 1 else PortfolioAccount
        self.account = account(self.market, self.config)
        self.reward_function = create_reward(self.config)
        self.action_space = action_space(self.config, self.market.n_assets)
        dim = self.market.observation_dim
        self.observation_space = spaces.Box(-np.inf, np.inf, (dim,), np.float32)
        self._flat_features = self.market.features.reshape(-1)
        self._row_dim = self.market.features.shape[1]
        self._window_dim = self.market.window_dim
        self._bar = -1
        self._end_bar = -1
        self._delay = self.config.execution_delay
        self._n_assets = self.market.n_assets
        self._idle: FloatArray | None = None
        if self.config.action_type == "discrete":
            self._idle = idle_weights(self.config, self._n_assets, has_gap=self.market.bars.has_open)

    @property
    def observation_space_dim(self) -> int:
        """Length of the flattened observation."""
        return self.market.observation_dim

    @property
    def action_space_dim(self) -> int:
        """Continuous: one target weight per asset. Discrete: three choices per asset."""
        return action_dim(self.config, self._n_assets)

    @property
    def account_state(self) -> AccountState:
        """The account after the current close."""
        account = self.account
        weight = np.atleast_1d(np.asarray(account.weight, dtype=np.float64))
        return AccountState(
            equity=account.equity,
            cash=account.equity * (1.0 - float(weight.sum())),
            weight=weight,
            position=weight * account.equity / self.market.bars.close[self._bar],
            peak_equity=account.peak_equity,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; `options={"start_bar": t}` picks its first bar."""
        super().reset(seed=seed)
        market = self.market
        first, last = market.first_bar, market.last_start(self.config.episode_length)
        start = (options or {}).get("start_bar")
        if start is None:
            start = int(self.np_random.integers(first, last + 1)) if self.config.random_start else first
        elif not first <= start <= market.last_start(None):
            raise ValueError(f"start_bar must be in [{first}, {market.last_start(None)}], got {start}")
        self._bar = int(start)
        length = self.config.episode_length
        self._end_bar = market.last_bar if length is None else min(self._bar + length, market.last_bar)
        account = self.account
        account.reset()
        self._memory: tuple[Any, ...] = self.reward_function.initial_memory
        self._under_way: list[Any] = [self._no_order()] * self._delay
        self._target = self._no_order()
        self._start_bar = self._bar
        self._equity_curve = [account.equity]
        self._weights: list[Any] = [account.weight]
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Walk one bar; see the class docstring."""
        if self._bar >= self._end_bar:
            raise RuntimeError("the episode is over (or has not begun): call reset() before step()")
        account = self.account
        target = self._single_target(action) if self._n_assets == 1 else self._portfolio_target(action)
        self._target = order = target
        if self._delay:
            self._under_way.append(target)
            order = self._under_way.pop(0)
        drawdown_before = account.drawdown
        account.advance(self._bar, order)  # type: ignore[arg-type]
        self._bar += 1
        outcome = Outcome(account.simple_return, account.log_return, drawdown_before, account.drawdown)
        reward, self._memory = self.reward_function.step(self._memory, outcome)
        self._equity_curve.append(account.equity)
        self._weights.append(account.weight)
        config = self.config
        terminated = (
            account.equity <= config.ruin_fraction * config.initial_balance or account.drawdown > config.max_drawdown
        )
        truncated = not terminated and self._bar >= self._end_bar
        if terminated:
            self._end_bar = self._bar
        return self._observe(), float(reward) * config.reward_scaling, terminated, truncated, self._info()

    def vectorize(self, n_envs: int, *, device: str = "cpu", seed: int = 0, **changes: Any) -> TradingVectorEnv:
        """Return `n_envs` accounts over this environment's own price table; what agents train against.

        Args:
            n_envs: number of accounts.
            device: where the tensors live.
            seed: of the generator of random starts.
            **changes: fields of the config that differ for them, e.g. `random_start=True`.
        """
        from ml.tradingbots.components.vector_environment import TradingVectorEnv

        config = dataclasses.replace(self.config, **changes)
        vector_env = TradingVectorEnv(self.market, config, n_envs=n_envs, device=device, seed=seed)
        vector_env.specified_config = self.config
        return vector_env

    def specification(self) -> dict[str, Any]:
        """Return what a loaded agent needs to be shown the same observations: plain values, saved with it."""
        return self.market.specification(self.config)

    def render(self) -> Any:
        """Return a Plotly figure of the episode so far: price, equity and weights."""
        from ml.tradingbots.components.rendering import episode_figure

        bars = self.market.bars.slice(self._start_bar, self._bar + 1)
        return episode_figure(bars, np.array(self._equity_curve), np.array(self._weights).reshape(-1, self._n_assets))

    def _observe(self) -> npt.NDArray[np.float32]:
        observation = np.empty(self.market.observation_dim, dtype=np.float32)
        end = (self._bar + 1) * self._row_dim
        window = self._window_dim
        observation[:window] = self._flat_features[end - window : end]
        account, n_assets = self.account, self._n_assets
        if n_assets == 1:
            observation[window] = account.weight
            observation[window + 1] = account.unrealised_return
            observation[window + 2] = account.drawdown
        else:
            observation[window : window + n_assets] = account.weight
            observation[window + n_assets : window + 2 * n_assets] = account.unrealised_return
            observation[window + 2 * n_assets] = account.drawdown
        if self._delay:
            waiting = np.concatenate(
                [np.where(np.isnan(order), account.weight, order).ravel() for order in self._under_way]
            )
            observation[window + 2 * n_assets + 1 :] = waiting
        return observation

    def _info(self) -> dict[str, Any]:
        account = self.account
        info = {
            "bar": self._bar,
            "equity": account.equity,
            "weight": account.weight,
            "turnover": account.turnover,
            "costs": account.costs,
            "target_weight": self._asked(),
        }
        if self._idle is not None:
            info["action_mask"] = self.action_mask(account.weight)
        return info

    def action_mask(self, weight: Any = None) -> npt.NDArray[np.int8] | None:
        """Return which choices are legal, as `info["action_mask"]`; None where actions are continuous.

        Args:
            weight: share of equity held; a number for one asset, or (n_assets,). None is the account's own.
        """
        if self._idle is None:
            return None
        held = np.reshape(self.account.weight if weight is None else weight, (-1, 1))
        legal: npt.NDArray[np.int8] = legal_choices(held, self._idle).ravel().view(np.int8)
        return legal

    def _asked(self) -> Any:
        """Return the last target with None for no order: NaN equals nothing, and Gymnasium's checker compares infos."""
        target = self._target
        if self._n_assets == 1:
            return None if target != target else target
        hold = np.isnan(target)
        return np.where(hold, None, target) if hold.any() else target

    def _no_order(self) -> Any:
        return float("nan") if self._n_assets == 1 else np.full(self._n_assets, np.nan)

    def _single_target(self, action: Any) -> float:
        config = self.config
        if config.action_type == "discrete":
            choice = _only_value(action)
            if not isinstance(choice, int):
                raise ValueError(f"action must be an integer: 0 (hold), 1 (buy) or 2 (sell), got {action!r}")
            if choice == 0:
                return float("nan")
            if choice == 1:
                return min(config.max_weight, config.max_gross_exposure)
            if choice == 2:
                return max(config.min_weight, -config.max_gross_exposure)
            raise ValueError(f"action must be 0 (hold), 1 (buy) or 2 (sell), got {action!r}")
        value = _only_value(action)
        if not isinstance(value, (float, int)):
            raise ValueError(f"action must be a number, the target weight of the asset; got {action!r}")
        bound = config.max_weight if config.max_weight < config.max_gross_exposure else config.max_gross_exposure
        if value > bound:
            return bound
        low = -bound if config.allow_short else 0.0
        return low if value < low else float(value)

    def _portfolio_target(self, action: Any) -> FloatArray:
        values = np.asarray(action)
        if values.shape != (self._n_assets,):
            raise ValueError(f"action must have shape ({self._n_assets},), one value per asset; got {values.shape}")
        if values.dtype.kind not in ("iu" if self.config.action_type == "discrete" else "iuf"):
            wanted = "integer choices" if self.config.action_type == "discrete" else "numbers"
            raise ValueError(f"action must hold {wanted}, one per asset; got {action!r}")
        return legal_target(values, np.asarray(self.account.weight), self.config)


def _only_value(action: Any) -> Any:
    """Return the value of an action for one asset as Python's own; raises ValueError where there are several or none."""
    if isinstance(action, (float, int)):
        return action
    if isinstance(action, (list, tuple)):
        if len(action) == 1:
            return _only_value(action[0])
        raise ValueError(f"action must be one number or hold exactly one, got {len(action)} values")
    try:
        return action.item()  # NumPy and torch, scalars and arrays of any shape
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"action must be one number or hold exactly one, got an array of shape {tuple(action.shape)}"
        ) from error
    except AttributeError:
        return action
