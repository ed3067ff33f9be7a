"""How a policy does in a market, quickly: one deterministic pass by accounts side by side, and a figure of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv
from ml.tradingbots.core.metrics import sharpe_ratio

ScoreName = Literal["sharpe_ratio", "log_growth"]
Score = Callable[[Any, TradingEnvironment], float]
# Accounts begin flat and pay for their first trade: stretches of a year of daily bars keep that small.
LANE_BARS = 252
MAX_LANES = 64


def score_of(name: ScoreName | Score) -> Score:
    """Return what scores a policy; raises ValueError where there is none of that name."""
    if callable(name):
        return name
    if name not in get_args(ScoreName):
        raise ValueError(f"score must be {' or '.join(map(repr, get_args(ScoreName)))} or a function, got {name!r}")
    return _sharpe if name == "sharpe_ratio" else _growth


def walk_log_returns(agent: Any, env: TradingEnvironment, *, n_lanes: int | None = None) -> npt.NDArray[np.float64]:
    """Walk an agent's deterministic policy over a price table, after costs.

    Args:
        agent: anything with `select_action(observation, deterministic=True)`.
        env: prices and settings; it is not changed.
        n_lanes: accounts that walk a stretch each, side by side; None takes stretches of about a year of daily bars, up
            to 64 of them.

    Returns:
        Log return of every account on every bar; (n_bars of a stretch − 1, n_lanes). An account that was stopped holds
        cash to its end.
    """
    n_bars = env.market.last_bar - env.market.first_bar
    n_lanes = n_lanes or max(1, min(MAX_LANES, n_bars // LANE_BARS))
    length = n_bars // n_lanes
    if length < 2:
        raise ValueError(f"{n_bars} bars are too few to walk {n_lanes} stretches of at least 2")
    config = dataclasses.replace(env.config, random_start=False, episode_length=None)
    vector_env = TradingVectorEnv(env.market, config, n_envs=n_lanes)
    observation, infos = vector_env.reset(options={"start_bar": env.market.first_bar + length * torch.arange(n_lanes)})
    equity = vector_env.account.equity.clone()
    alive, found = torch.ones(n_lanes, dtype=torch.bool), []
    # One bar less than a stretch, so that no account reaches the end of the data and starts over.
    for _ in range(length - 1):
        mask = infos.get("action_mask")
        legal = {"action_mask": mask} if mask is not None and getattr(agent, "is_discrete", False) else {}
        action = agent.select_action(observation, deterministic=True, **legal)
        observation, _, terminated, _, infos = vector_env.step(torch.as_tensor(action).cpu())
        now = vector_env.account.equity.clone()
        moved = (now / equity).log()
        if bool(terminated.any()):  # Its account has begun anew.
            left = infos["episode"]["log_growth"].double() - (equity / config.initial_balance).log()
            moved = torch.where(terminated, left, moved)
        found.append(torch.where(alive, moved, 0.0))
        alive, equity = alive & ~terminated, now
    return np.asarray(torch.stack(found), dtype=np.float64)


def _growth(agent: Any, env: TradingEnvironment) -> float:
    """Mean log return per bar."""
    return float(walk_log_returns(agent, env).mean())


def _sharpe(agent: Any, env: TradingEnvironment) -> float:
    """Annualised Sharpe ratio of all accounts' returns; an agent that never trades scores like cash, 0."""
    simple = np.expm1(walk_log_returns(agent, env)).ravel(order="F")
    found = sharpe_ratio(simple, bars_per_year=env.market.bars.bars_per_year)
    return 0.0 if found != found else found
