"""Markets as specialists and blind agents meet them: bars weighted by how much they are of a regime, columns left out.

Prices are exogenous: what an account does changes no bar. "Train on the bars of a regime" is therefore exact: the specialist
of a regime maximises the sum of rewards, each times the probability that its bar is of the regime. These probabilities are
taken over their mean where the specialist walks, so that its rewards are in the market's unit: mixing weighs values once more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ml.tradingbots.components.regime_layout import RegimeLayout, without_regimes
from ml.tradingbots.components.vector_environment import TradingVectorEnv

# Length of an episode where the config sets none: a year of daily bars.
EPISODE_BARS = 252


class WeightedVectorEnv(TradingVectorEnv):
    """A `TradingVectorEnv` whose episodes begin in proportion to weights of bars, and whose rewards are multiplied by them.

    Rewards are multiplied by weights over the mean of weights at bars drawn in proportion to them, Σ w² / Σ w: weights that are
    all alike leave rewards as they are.

    The weight of bar t goes with the decision made at its close and the reward of the step from it. Summaries of episodes are
    those of the account, unweighted. Where the config leaves the length of an episode open it is a year of daily bars (252):
    episodes that all ran to the end of the data would leave the regimes they began in.

    Args:
        env: the environment whose market, settings and number of accounts it shares; it is not changed.
        weights: of each bar, at least 0; (n_bars,). What lies before the first legal bar is not read.
        seed: of the draws of first bars.

    Raises:
        ValueError: the weights are of another number of bars, not finite or negative.
    """

    def __init__(self, env: TradingVectorEnv, weights: Tensor, *, seed: int) -> None:
        market = env.market
        length = env.config.episode_length or max(min(EPISODE_BARS, (market.last_bar - market.first_bar) // 2), 1)
        config = dataclasses.replace(env.config, random_start=True, episode_length=length)
        if weights.shape != (market.n_bars,):
            raise ValueError(f"weights must be ({market.n_bars},), one for each bar, got {tuple(weights.shape)}")
        legal = weights[market.first_bar :]
        if not bool((torch.isfinite(legal) & (legal >= 0.0)).all()):
            raise ValueError("weights must be finite and at least 0 from the first legal bar on")
        self._weights = weights.to(env.device, torch.float64)
        self._factors = (self._weights / _mean_where_drawn(legal.double())).float()
        starts = self._weights[market.first_bar : market.last_start(length) + 1]
        # A regime that never comes within reach of a first bar: any bar is as good, its rewards count for next to nothing.
        self._cumulative = (starts if float(starts.sum()) > 0.0 else torch.ones_like(starts)).cumsum(0)
        super().__init__(market, config, n_envs=env.num_envs, device=env.device, seed=seed, synchronous=env.synchronous)
        self.specified_config = env.specified_config

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Walk every account one bar; rewards are weighted."""
        factor = self._factors.index_select(0, self.bar)
        observation, reward, terminated, truncated, infos = super().step(actions)
        return observation, reward * factor, terminated, truncated, infos

    def _draw_starts(self, n: int) -> Tensor:
        generator = self._generator
        uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64).to(self.device)
        place = torch.searchsorted(self._cumulative, uniform * self._cumulative[-1], right=True)
        return self.market.first_bar + place.clamp_max(len(self._cumulative) - 1)


def _mean_where_drawn(weights: Tensor) -> float:
    total = float(weights.sum())
    return float((weights * weights).sum()) / total if total > 0.0 else 1.0


class BlindVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """A market environment without its columns of regimes; it walks the environment given, and nothing else is changed.

    Args:
        env: the environment.
        layout: where its observations speak of regimes.

    Raises:
        ValueError: there is nothing else to see.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so.
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(self, env: TradingVectorEnv, layout: RegimeLayout) -> None:
        self.env, self.num_envs, self.device = env, env.num_envs, env.device
        specification = without_regimes(env.specification())
        if not specification["features"]:
            raise ValueError(
                "observe_probabilities=False hides the columns of regimes, and the environment shows no other feature: name "
                "some in TradingEnvConfig(features=...)"
            )
        self._specification = specification
        self.columns = torch.tensor(layout.visible, device=env.device)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(layout.visible),), np.float32)
        self.single_action_space = env.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = env.action_space
        self.account_dim = env.account_dim

    @property
    def bar(self) -> Tensor:
        """Position of every account in the price table; (n_envs,)."""
        return self.env.bar

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every account."""
        observation, infos = self.env.reset(seed=seed, options=options)
        return self.see(observation), infos

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Walk every account one bar."""
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            infos = {**infos, "final_obs": self.see(infos["final_obs"])}
        return self.see(observation), reward, terminated, truncated, infos

    def see(self, observation: Tensor) -> Tensor:
        """Return observations without what they say of regimes."""
        return observation.index_select(1, self.columns)

    def account_features(self) -> Tensor:
        """Account part of the present observations; (n_envs, account_dim)."""
        return self.env.account_features()

    def gather(self, bar: Tensor, account: Tensor) -> Tensor:
        """Rebuild observations; (batch, observation_dim)."""
        return self.see(self.env.gather(bar, account))

    def action_mask(self) -> Tensor | None:
        """Legal choices at the present observations; None where actions are continuous."""
        return self.env.action_mask()

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Exact mean and standard deviation of every entry that is seen."""
        mean, std = self.env.observation_statistics()
        columns = self.columns.cpu()
        return mean[columns], std[columns]

    def specification(self) -> dict[str, Any]:
        """Return what an agent needs to be shown the same observations, the columns of regimes left out."""
        return self._specification
