"""Where a portfolio's target weights come from: an allocator, a predictor's forecasts or a trained agent.

A source sees prices up to the bar that has just closed, and nothing else: the table it is given ends there.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.action_space import action_space, idle_weights, legal_choices, legal_target
from ml.tradingbots.components.agent_regimes import warn_of_short_history, with_regimes_of
from ml.tradingbots.components.agent_spaces import check_fits
from ml.tradingbots.components.allocators import ALLOCATORS, Allocator, create_allocator
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.features import market_features
from ml.tradingbots.components.portfolio_state import PortfolioState, Proposal, TargetSource, simple_returns
from ml.tradingbots.data.bars import Bars

FloatArray = npt.NDArray[np.float64]
SignalRule = Literal["mean_over_variance", "sign"]
SignalRisk = Literal["trailing", "quantiles"]


class AllocatorSource:
    """Weights from the returns of the last bars.

    Args:
        allocator: anything with `weights(returns_window)`.
        window_size: returns that it sees, in bars.
    """

    def __init__(self, allocator: Allocator, window_size: int = 252) -> None:
        self.allocator, self.window_size = allocator, window_size

    def first_bar(self, bars: Bars) -> int:
        """Return the first bar with a full window."""
        return self.window_size

    def propose(self, bars: Bars, state: PortfolioState) -> Proposal:
        """Return the allocator's weights.

        Raises:
            ValueError: it answered for other assets, or with numbers that are not finite.
        """
        columns = list(bars.assets)
        window = pd.DataFrame(
            simple_returns(bars, self.window_size), index=bars.timestamps[-self.window_size :], columns=columns
        )
        found = self.allocator.weights(window)
        if not isinstance(found, pd.Series) or set(found.index) != set(columns) or len(found) != len(columns):
            raise ValueError(f"an allocator must return a Series with one weight for each of {columns}, got {found!r}")
        weights = np.asarray(found.reindex(columns), dtype=np.float64)
        if not np.isfinite(weights).all():
            raise ValueError(f"an allocator must return finite weights, got {found.to_dict()}")
        return Proposal(weights=weights)


class PredictorSource:
    """Weights from the forecasts of a fitted predictor.

    With `mean_over_variance` each asset gets scale · m/v, m the expected return over the horizon and v its variance: what grows
    fastest for one asset alone (Kelly, 1956). With `sign` it gets scale · sign(m) / n_assets. Log returns are taken for simple
    ones, so that no forecast means no position.

    Args:
        predictor: fitted on bars before those it is asked about; that is the caller's to see to.
        rule: see above.
        scale: factor on all weights; 0.5 is half Kelly.
        horizon: bars ahead, one of the predictor's; None takes its first.
        risk: where v comes from: "trailing", the variance of the last `risk_window` log returns times the horizon, or
            "quantiles", the spread of the predictor's 5% and 95% quantiles, read as a normal distribution's.
        risk_window: log returns in the trailing variance.
    """

    levels = (0.05, 0.95)

    def __init__(
        self,
        predictor: Any,
        *,
        rule: SignalRule = "mean_over_variance",
        scale: float = 1.0,
        horizon: int | None = None,
        risk: SignalRisk = "trailing",
        risk_window: int = 60,
    ) -> None:
        if rule not in ("mean_over_variance", "sign"):
            raise ValueError(f"rule must be 'mean_over_variance' or 'sign', got {rule!r}")
        if risk not in ("trailing", "quantiles"):
            raise ValueError(f"risk must be 'trailing' or 'quantiles', got {risk!r}")
        if not 0.0 < scale < np.inf:
            raise ValueError(f"scale must be a positive number, got {scale}")
        if risk_window < 2:
            raise ValueError(f"risk_window must be at least 2 bars, got {risk_window}")
        horizons = tuple(predictor.horizons)
        if horizon is not None and horizon not in horizons:
            raise ValueError(f"horizon must be one of the predictor's, {horizons}, got {horizon}")
        self.predictor, self.rule, self.scale = predictor, rule, scale
        self.horizon = horizons[0] if horizon is None else horizon
        self.risk, self.risk_window = risk, risk_window

    def first_bar(self, bars: Bars) -> int:
        """Return the first bar with a forecast and, where it is needed, a full risk window."""
        first = int(bars.timestamps.searchsorted(self.predictor.predict(bars).index[0]))
        needs_window = self.rule == "mean_over_variance" and self.risk == "trailing"
        return max(first, self.risk_window) if needs_window else first

    def propose(self, bars: Bars, state: PortfolioState) -> Proposal:
        """Return weights for the forecast made at the last bar."""
        origin = np.array([bars.n_bars - 1])
        mean = self._of_horizon(self.predictor.predict(bars, bars=origin), bars)
        expected = np.expm1(mean) / self.horizon
        if self.rule == "sign":
            return Proposal(weights=self.scale * np.sign(mean) / bars.n_assets, mean=expected)
        variance = self._variance(bars, origin)
        weights = np.divide(self.scale * mean, variance, out=np.zeros_like(mean), where=variance > 0.0)
        return Proposal(weights=weights, mean=expected)

    def _variance(self, bars: Bars, origin: npt.NDArray[np.int64]) -> FloatArray:
        if self.risk == "trailing":
            log_returns = np.log1p(simple_returns(bars, self.risk_window))
            trailing: FloatArray = log_returns.var(axis=0, ddof=1) * self.horizon
            return trailing
        frame = self.predictor.predict_quantiles(bars, self.levels, bars=origin)
        low, high = (self._of_horizon(frame.xs(level, axis=1, level="quantile"), bars) for level in self.levels)
        normal = NormalDist()
        spread: FloatArray = (high - low) / (normal.inv_cdf(self.levels[1]) - normal.inv_cdf(self.levels[0]))
        return spread**2

    def _of_horizon(self, frame: pd.DataFrame, bars: Bars) -> FloatArray:
        values: FloatArray = frame.xs(self.horizon, axis=1, level="horizon")[list(bars.assets)].to_numpy(np.float64)[0]
        return values


class AgentSource:
    """Weights that a trained agent asks for, acting deterministically as in the environment it was trained in.

    Args:
        agent: anything with `select_action(observation, deterministic=True)`.
        env_config: settings of its observations and actions; None takes those saved with the agent.

    Raises:
        ValueError: the agent was not trained on a market and no settings are given, or they have an `execution_delay`.
    """

    def __init__(self, agent: Any, env_config: TradingEnvConfig | None = None) -> None:
        spec = getattr(agent, "environment_spec", None) or {}
        if env_config is None and "config" not in spec:
            raise ValueError(
                "the agent was not trained in a trading environment; give env_config=TradingEnvConfig(...)"
            )
        self.agent = agent
        self.config = TradingEnvConfig.from_dict(spec["config"]) if env_config is None else env_config
        self._trained: dict[str, tuple[str, ...]] = {
            name: tuple(spec[name]) for name in ("assets", "features") if name in spec
        }
        if self.config.execution_delay > 0:
            raise ValueError(
                f"an agent that waits execution_delay={self.config.execution_delay} bars for its orders cannot be managed: "
                "the manager fills at the next open. Train it with execution_delay=0"
            )

    def first_bar(self, bars: Bars) -> int:
        """Return the first bar with a full window of defined features."""
        defined = np.isfinite(self._features(self._as_trained(bars))).all(axis=1)
        if not defined.any():
            raise ValueError(f"price_data has {bars.n_bars} bars, too few for the agent's features; give more bars")
        return int(np.argmax(defined)) + self.config.window_size - 1

    def propose(self, bars: Bars, state: PortfolioState) -> Proposal:
        """Return the legal target that the agent asks for.

        Raises:
            ValueError: assets or features are not those it was trained with.
        """
        warn_of_short_history(self.agent, bars, bars.n_bars)
        trained = self._as_trained(bars)
        order = [bars.assets.index(asset) for asset in trained.assets]
        weights = state.weights[order]
        unrealised = np.zeros(bars.n_assets) if state.unrealised_return is None else state.unrealised_return[order]
        window = self._features(trained)[-self.config.window_size :]
        if len(window) < self.config.window_size or not np.isfinite(window).all():
            raise ValueError(
                f"price_data has {bars.n_bars} bars, too few for a full window of {self.config.window_size} with all of the "
                "agent's features; give more bars"
            )
        observation = np.concatenate([window.ravel(), weights, unrealised, [state.drawdown]]).astype(np.float32)
        check_fits(action_space(self.config, bars.n_assets), self.agent)
        action = self.agent.select_action(observation, deterministic=True, **self._legal(trained, weights))
        proposed = np.empty(bars.n_assets)
        proposed[order] = legal_target(action, weights, self.config)
        return Proposal(weights=proposed)

    def _as_trained(self, bars: Bars) -> Bars:
        """Return the bars with their assets in the order of training, and the columns of the agent's regimes."""
        bars = with_regimes_of(self.agent, bars)
        trained = self._trained.get("assets", bars.assets)
        if set(trained) != set(bars.assets):
            raise ValueError(
                f"the agent was trained on the assets {', '.join(trained[:8])}, the prices hold {', '.join(bars.assets[:8])}"
            )
        return bars if trained == bars.assets else bars.select(trained)

    def _features(self, bars: Bars) -> FloatArray:
        """Return the market features, one row a bar, as the environment lays them out; (n_bars, n_assets · n_features)."""
        names, columns = market_features(bars, self.config, {})
        trained = self._trained.get("features", names)
        if trained != names:
            raise ValueError(
                f"the agent was trained on the features {', '.join(trained)}, these prices give {', '.join(names)}; bring the "
                "columns it was trained with"
            )
        return columns.reshape(bars.n_bars, -1)

    def _legal(self, bars: Bars, weights: FloatArray) -> dict[str, Any]:
        if self.config.action_type != "discrete" or not getattr(self.agent, "is_discrete", False):
            return {}
        idle = idle_weights(self.config, bars.n_assets, has_gap=bars.has_open)
        return {"action_mask": legal_choices(weights[:, None], idle).ravel().view(np.int8)}


def as_source(source: Any, *, window_size: int, risk_window: int) -> TargetSource:
    """Return a source of target weights for whatever can be one.

    Args:
        source: a `TargetSource`, an allocator or the name of one, a fitted predictor, or a trained agent.
        window_size: returns that an allocator sees.
        risk_window: returns that the variance beside a forecast is estimated from.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(source, str):
        return AllocatorSource(create_allocator(source), window_size)
    if hasattr(source, "propose") and hasattr(source, "first_bar"):
        found: TargetSource = source
        return found
    if hasattr(source, "select_action"):
        return AgentSource(source)
    if hasattr(source, "predict_quantiles"):
        return PredictorSource(source, risk_window=risk_window)
    if isinstance(source, Allocator) and not isinstance(source, type):
        return AllocatorSource(source, window_size)
    raise TypeError(
        f"source must be an allocator (SkfolioAllocator(estimator), or one of {', '.join(ALLOCATORS)}), a fitted predictor or "
        f"a trained agent, got {type(source).__name__}"
    )
