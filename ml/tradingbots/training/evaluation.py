"""One deterministic pass over prices, beside baselines that pay the same costs through the same environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ml.tradingbots.components.agent_regimes import check_shows_regimes
from ml.tradingbots.components.agent_spaces import check_fits
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_adapter import as_vector_env
from ml.tradingbots.training.results import BUY_AND_HOLD, EvaluationResult
from ml.tradingbots.training.trajectory import Trajectory

FloatArray = npt.NDArray[np.float64]
Decide = Callable[[npt.NDArray[np.float32], int], Any]

# Bars over which the momentum baseline looks back: a month of daily bars.
MOMENTUM_BARS = 20


def evaluate_agent(
    agent: Any,
    env: TradingEnvironment,
    *,
    n_bootstrap: int = 1_000,
    seed: int = 0,
    name: str = "agent",
    sample: Literal["out of sample", "in sample"] = "out of sample",
) -> EvaluationResult:
    """Walk the whole price table once, deterministically, and compare with the baselines.

    The pass starts flat at the first legal bar and ends at the last one, whatever `episode_length` and `random_start`
    say. The baselines are buy-and-hold (equal weights, bought once), flat, and the sign of each asset's last
    `MOMENTUM_BARS` bars; all pay the environment's costs.

    Args:
        agent: anything with `select_action(observation, deterministic=True)`.
        env: prices and settings; it is not changed.
        n_bootstrap: resamples of the confidence intervals; 0 skips them.
        seed: of the bootstrap.
        name: what tables call the agent.
        sample: whether the agent had never seen these prices; only the caller can know.

    Returns:
        The comparison: `table()`, `verdict()`, `diagnosis()`, `metrics`.
    """
    check_shows_regimes(env, agent)
    whole = evaluation_environment(env)
    check_fits(whole.action_space, agent)
    trajectory = run_strategy(whole, lambda obs, _bar: act(agent, obs, whole.action_mask()), name=name)
    return EvaluationResult.from_trajectories(
        trajectory, run_baselines(env), n_bootstrap=n_bootstrap, seed=seed, sample=sample
    )


def act(agent: Any, observation: Any, action_mask: Any) -> Any:
    """Return an agent's deterministic action; agents of ours are told which choices are legal, others need not listen."""
    knows_masks = action_mask is not None and getattr(agent, "is_discrete", False)
    legal = {"action_mask": action_mask} if knows_masks else {}
    return agent.select_action(observation, deterministic=True, **legal)


def evaluation_environment(env: TradingEnvironment, **changes: Any) -> TradingEnvironment:
    """Return the same market and settings as one pass over all of it."""
    config = dataclasses.replace(env.config, random_start=False, episode_length=None, **changes)
    return TradingEnvironment(env.market, config)


def run_strategy(env: TradingEnvironment, decide: Decide, *, name: str) -> Trajectory:
    """Walk `env` from its first bar to its end with `decide(observation, bar)`."""
    observation, info = env.reset()
    first = info["bar"]
    actions, targets, rewards, turnover, costs = [], [], [], [], []
    equity, weights = [info["equity"]], [info["weight"]]
    done = False
    while not done:
        action = decide(observation, info["bar"])
        observation, reward, terminated, truncated, info = env.step(action)
        actions.append(action)
        targets.append(info["target_weight"])
        rewards.append(reward)
        turnover.append(info["turnover"])
        costs.append(info["costs"])
        equity.append(info["equity"])
        weights.append(info["weight"])
        done = terminated or truncated
    stopped_at = env.market.bars.timestamps[info["bar"]] if terminated else None
    n_assets, config = env.market.n_assets, env.config
    # A strategy that was stopped holds cash to the end, so that all strategies are measured over the same bars.
    n_idle = env.market.last_bar - info["bar"]
    actions += actions[-1:] * n_idle
    nothing = 0.0 if n_assets == 1 else np.zeros(n_assets)
    targets += [nothing] * n_idle
    equity += equity[-1:] * n_idle
    weights += [nothing] * n_idle
    for values in (rewards, turnover, costs):
        values += [0.0] * n_idle
    n_steps = len(rewards)
    return Trajectory(
        name=name,
        timestamps=env.market.bars.timestamps[first : first + n_steps + 1],
        assets=env.market.assets,
        equity_curve=np.array(equity),
        weights=np.array(weights, dtype=np.float64).reshape(n_steps + 1, n_assets),
        target_weights=np.array(targets, dtype=np.float64).reshape(n_steps, n_assets),
        actions=np.array(actions).reshape(n_steps, -1),
        turnover=np.array(turnover),
        costs=np.array(costs),
        rewards=np.array(rewards),
        bars_per_year=env.market.bars.bars_per_year,
        action_low=config.min_weight,
        action_high=config.max_weight,
        stopped_at=stopped_at,
    )


def run_baselines(env: TradingEnvironment) -> dict[str, Trajectory]:
    """Run the baselines on the prices and costs of `env`."""
    # A stop-out is the agent's own rule: a baseline that is sold at its low is no baseline.
    whole = evaluation_environment(env, action_type="continuous", max_drawdown=1.0)
    n_assets, config = env.market.n_assets, env.config
    size = min(config.max_weight, config.max_gross_exposure / n_assets)
    first, hold = whole.market.first_bar, np.full(n_assets, np.nan)
    close = env.market.bars.close

    def buy_and_hold(_obs: npt.NDArray[np.float32], bar: int) -> FloatArray:
        return np.full(n_assets, size) if bar == first else hold

    def flat(_obs: npt.NDArray[np.float32], _bar: int) -> FloatArray:
        return hold

    def momentum(_obs: npt.NDArray[np.float32], bar: int) -> FloatArray:
        if bar < MOMENTUM_BARS:
            return hold
        side = np.sign(close[bar] - close[bar - MOMENTUM_BARS])
        wanted: FloatArray = size * (side if config.allow_short else side.clip(0.0))
        return wanted

    rules: dict[str, Decide] = {BUY_AND_HOLD: buy_and_hold, "flat": flat, "momentum": momentum}
    return {name: run_strategy(whole, rule, name=name) for name, rule in rules.items()}


def evaluate_episodes(agent: Any, env: Any, *, n_episodes: int = 10, seed: int = 0) -> FloatArray:
    """Play whole episodes of any Gymnasium environment, deterministically.

    Args:
        agent: anything with `select_action(observations, deterministic=True)`.
        env: a `gymnasium.Env` or the id of a registered one.
        n_episodes: episodes to play.
        seed: of the first reset.

    Returns:
        Sum of rewards of each episode; (n_episodes,).
    """
    vector_env = as_vector_env(env, n_envs=1, seed=seed)
    check_fits(vector_env.single_action_space, agent)
    observation, infos = vector_env.reset()
    episode_returns: list[float] = []
    while len(episode_returns) < n_episodes:
        with torch.inference_mode():
            action = act(agent, observation, infos.get("action_mask"))
        observation, _, _, _, infos = vector_env.step(action)
        if "episode" in infos:
            episode_returns += infos["episode"]["r"][infos["_episode"]].tolist()
    return np.array(episode_returns[:n_episodes])
