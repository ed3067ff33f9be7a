"""Many accounts over one price table, as a handful of tensor operations: what agents train against.

The same market, accounting and rewards as `TradingEnvironment`; n accounts in a batch are n accounts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ml.tradingbots.components.account import GROWTH_FLOOR
from ml.tradingbots.components.action_space import N_CHOICES, action_dim, action_space, idle_weights, legal_choices
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import FeatureFunction, Market
from ml.tradingbots.components.rewards import Outcome, create_reward
from ml.tradingbots.components.vector_account import VectorAccount
from ml.tradingbots.components.vector_restart import Restarting, RestartingByFlag, RestartingByIndex
from ml.tradingbots.data.bars import Bars

CHOICE_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TradingVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """`n_envs` accounts that each live the episode of `TradingEnvironment`; its docstring is the specification.

    Observations are float32 tensors (n_envs, observation_space_dim), actions tensors (n_envs, n_assets) or integer choices
    (n_envs,) / (n_envs, n_assets). Accounts reset themselves in the step that ends their episode (SAME_STEP): the returned
    observation is then the first of the next episode, and `infos["final_obs"]` holds the last of the old one (n_envs,
    observation_space_dim), meaningful where `infos["_final_obs"]` is true. An episode that ended is summarised in
    `infos["episode"]`: `r` (sum of rewards), `l` (bars), `sharpe` (not annualised), `max_drawdown`, `log_growth`.

    It follows the indexed-observation protocol: `bar` and `account_features()` say where every account stands,
    `infos["next_bar"]` and `infos["next_account"]` where each stood before any reset, and `gather(bar, account)` rebuilds
    observations from them.

    Discrete environments have action masks as in `TradingEnvironment`, bool (n_envs, n_assets * 3): `action_mask()` and
    `infos["action_mask"]` (of `reset` and `step`) belong to the observation returned, `infos["next_action_mask"]` to
    `infos["next_account"]` and `infos["final_obs"]`, before any reset.

    Args:
        price_data: a DataFrame that `Bars.from_frame` accepts, a `Bars`, or a `Market` to share.
        config: as for `TradingEnvironment`.
        n_envs: number of accounts.
        device: where the tensors live.
        seed: of the generator of random starts; `reset(seed=...)` replaces it.
        extra_features: named functions of `Bars`, see `Market`.
        synchronous: whether a step may look at values, which waits for the device. Where it may, choices are checked, and
            ended episodes are in the infos of the steps that had any. Where it may not, those infos are always there
            (`_episode` and `_final_obs` say which rows mean anything), fresh starts are drawn for all accounts at every step
            by a generator on the device, and a choice out of range is the device's own error. None: true on the CPU only.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so.
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        price_data: Market | Bars | pd.DataFrame,
        config: TradingEnvConfig | None = None,
        *,
        n_envs: int = 16,
        device: str | torch.device = "cpu",
        seed: int = 0,
        extra_features: Mapping[str, FeatureFunction] | None = None,
        synchronous: bool | None = None,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        market = Market.of(price_data, config, extra_features)
        self.config = config or market.config
        # What is saved with an agent; `TradingEnvironment.vectorize` puts its own, without what differs in training only.
        self.specified_config = self.config
        self.market = market
        self.num_envs = n_envs
        self.device = torch.device(device)
        self.synchronous = self.device.type == "cpu" if synchronous is None else synchronous
        self.reward_function = create_reward(self.config)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (market.observation_dim,), np.float32)
        self.single_action_space = action_space(self.config, market.n_assets)
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self.account = VectorAccount(market, self.config, n_envs, self.device, synchronous=self.synchronous)
        table = torch.as_tensor(market.features, device=self.device)
        rows, row_dim = table.shape
        # A window is a contiguous slice of the table, so all windows are one overlapping view of it: nothing is copied.
        self._windows = table.as_strided((rows - self.config.window_size + 1, market.window_dim), (row_dim, 1))
        self._window_offset = self.config.window_size - 1
        self._generator = torch.Generator("cpu" if self.synchronous else self.device).manual_seed(seed)
        self._idle_weights: Tensor | None = None
        if self.config.action_type == "discrete":
            idle = idle_weights(self.config, market.n_assets, has_gap=market.bars.has_open)
            self._idle_weights = torch.as_tensor(idle, device=self.device)
        self._started = False
        # Part of the indexed-observation protocol, which agents look for before the first reset.
        self.bar = torch.full((n_envs,), market.first_bar, dtype=torch.int64, device=self.device)
        self._fingerprint = market.fingerprint()

    @property
    def observation_space_dim(self) -> int:
        """Length of the flattened observation."""
        return self.market.observation_dim

    @property
    def action_space_dim(self) -> int:
        """Continuous: one target weight per asset. Discrete: three choices per asset."""
        return action_dim(self.config, self.market.n_assets)

    @property
    def bars_per_year(self) -> float:
        """Bars of the price table per calendar year."""
        return self.market.bars.bars_per_year

    @property
    def is_under_way(self) -> bool:
        """Whether it was reset."""
        return self._started

    @property
    def account_dim(self) -> int:
        """Length of the account part of an observation."""
        return self.market.account_dim

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every account; `options={"start_bar": tensor or int}` picks the first bars."""
        if seed is not None:
            self._generator.manual_seed(seed)
        start = (options or {}).get("start_bar")
        n = self.num_envs
        if start is None:
            bar = self._draw_starts(n)
        else:
            bar = torch.as_tensor(start, device=self.device).expand(n).clone()
            low, high = self.market.first_bar, self.market.last_start(None)
            if int(bar.min()) < low or int(bar.max()) > high:
                raise ValueError(f"start_bar must be in [{low}, {high}], got {int(bar.min())} to {int(bar.max())}")
        self.bar = bar
        self.end_bar = self._ends(bar)
        self.account.reset()
        self._memory = tuple(
            torch.full((n,), value, dtype=torch.float64, device=self.device)
            for value in self.reward_function.initial_memory
        )
        zeros = torch.zeros(n, dtype=torch.float64, device=self.device)
        # Sums over the episode: reward, log growth, squared simple return, simple return, deepest drawdown.
        self._sums = [zeros.clone() for _ in range(5)]
        self._episode_start = bar.clone()
        self._started = True
        self._features = self.account.features()
        mask = self.action_mask()
        return self.gather(self.bar, self._features), {} if mask is None else {"action_mask": mask}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Walk every account one bar."""
        if not self._started:
            raise RuntimeError("call reset() before step()")
        account, config = self.account, self.config
        drawdown_before = account.drawdown
        account.advance(self.bar, self._targets(actions))
        bar = self.bar + 1
        growth_log = account.growth.clamp_min(GROWTH_FLOOR).log()
        simple_return = account.growth - 1.0
        outcome = Outcome(simple_return, growth_log, drawdown_before, account.drawdown)
        reward, self._memory = self.reward_function.step(self._memory, outcome)
        if config.reward_scaling != 1.0:
            reward = reward * config.reward_scaling
        terminated = account.equity <= config.ruin_fraction * config.initial_balance
        if config.max_drawdown < 1.0:
            terminated = terminated | (account.drawdown > config.max_drawdown)
        ended = bar >= self.end_bar
        done = terminated | ended
        truncated = done & ~terminated
        self._accumulate(reward, growth_log, simple_return)
        features = account.features()
        observation = self.gather(bar, features)
        infos: dict[str, Any] = {"next_bar": bar, "next_account": features}
        mask = self.action_mask()
        if mask is not None:
            infos["next_action_mask"] = infos["action_mask"] = mask
        self.bar = bar
        if not self.synchronous or bool(done.any()):
            infos["final_obs"], infos["_final_obs"] = observation, done
            infos["episode"], infos["_episode"] = self._episode_summary(), done
            accounts: Restarting = RestartingByIndex(done) if self.synchronous else RestartingByFlag(done)
            observation, features = self._restart(accounts, observation, features)
            if mask is not None:
                infos["action_mask"] = self.action_mask()
        self._features = features
        return observation, reward.float(), terminated, truncated, infos

    def account_features(self) -> Tensor:
        """Account part of the present observations, after any reset; float32 (n_envs, account_dim)."""
        return self._features

    def action_mask(self) -> Tensor | None:
        """Legal choices at the present observations, bool (n_envs, n_assets * 3); None where actions are continuous."""
        if self._idle_weights is None:
            return None
        legal: Tensor = legal_choices(self.account.weight[..., None], self._idle_weights)
        return legal.flatten(1)

    def gather(self, bar: Tensor, account: Tensor) -> Tensor:
        """Rebuild observations from what identifies them.

        Args:
            bar: positions in the price table; (batch,).
            account: account features; (batch, account_dim).

        Returns:
            float32 observations; (batch, observation_space_dim).
        """
        return torch.cat([self._windows.index_select(0, bar - self._window_offset), account], 1)

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Exact mean and standard deviation of every observation entry over this price table."""
        mean, std = self.market.observation_statistics()
        return torch.as_tensor(mean), torch.as_tensor(std)

    def specification(self) -> dict[str, Any]:
        """Return what a loaded agent needs to be shown the same observations: plain values, saved with it."""
        return self.market.specification(self.specified_config)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the episodes go on: positions, accounts, reward memory, generator."""
        return {
            "bar": self.bar,
            "end_bar": self.end_bar,
            "episode_start": self._episode_start,
            "memory": list(self._memory),
            "sums": [value.clone() for value in self._sums],  # They are added to in place.
            "account": self.account.state_dict(),
            "generator": self._generator.get_state(),
            "generator_device": self._generator.device.type,
            "market": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        """Go on from a saved state; returns the present observations.

        Raises:
            ValueError: the state was saved with another number of accounts.
        """
        if tuple(state["bar"].shape) != (self.num_envs,):
            raise ValueError(f"the saved environment has {len(state['bar'])} accounts, this one {self.num_envs}")
        if state["market"] != self._fingerprint:
            raise ValueError(
                "the saved run was trained on other prices or features; resume it with the same price_data"
            )
        to = self.device
        self.bar, self.end_bar = state["bar"].to(to), state["end_bar"].to(to)
        self._episode_start = state["episode_start"].to(to)
        self._memory = tuple(value.to(to) for value in state["memory"])
        self._sums = [value.to(to).clone() for value in state["sums"]]
        self.account.load_state_dict(state["account"])
        # The generators of two kinds of device cannot take over each other's state; another device draws anew.
        if state.get("generator_device", "cpu") == self._generator.device.type:
            self._generator.set_state(state["generator"].cpu())
        self._started = True
        self._features = self.account.features()
        return self.gather(self.bar, self._features)

    def _draw_starts(self, n: int) -> Tensor:
        first = self.market.first_bar
        if not self.config.random_start:
            return torch.full((n,), first, dtype=torch.int64, device=self.device)
        last = self.market.last_start(self.config.episode_length)
        generator = self._generator
        return torch.randint(first, last + 1, (n,), generator=generator, device=generator.device).to(self.device)

    def _ends(self, bar: Tensor) -> Tensor:
        length = self.config.episode_length
        if length is None:
            return torch.full_like(bar, self.market.last_bar)
        return (bar + length).clamp_max(self.market.last_bar)

    def _targets(self, actions: Tensor) -> Tensor:
        """Turn actions into legal target weights, NaN for no order; float64 (n_envs,) or (n_envs, n_assets)."""
        config, account = self.config, self.account
        if config.action_type == "discrete":
            self._check_choices(actions)
            targets = account.choice_weights.index_select(0, actions.long().flatten()).view(actions.shape)
        else:
            expected = (self.num_envs, self.market.n_assets)
            if actions.shape != expected:
                raise ValueError(f"actions must have shape {expected}, (n_envs, n_assets); got {tuple(actions.shape)}")
            targets = actions.detach().to(torch.float64)  # No gradient flows through a market.
            targets = targets.squeeze(1) if account.single else targets
            targets = targets.clamp(config.min_weight, config.max_weight)
        return account.limit(targets)

    def _check_choices(self, actions: Tensor) -> None:
        single = self.account.single
        expected = (self.num_envs,) if single else (self.num_envs, self.market.n_assets)
        if actions.shape != expected:
            named = "(n_envs,)" if single else "(n_envs, n_assets)"
            raise ValueError(f"actions must have shape {expected}, {named}; got {tuple(actions.shape)}")
        if actions.dtype not in CHOICE_TYPES:
            raise ValueError(f"discrete actions must be an integer tensor, got {actions.dtype}")
        if self.synchronous:
            low, high = actions.aminmax()
            if int(low) < 0 or int(high) >= N_CHOICES:
                raise ValueError(f"actions must be 0 (hold), 1 (buy) or 2 (sell), got {int(low)} to {int(high)}")

    def _accumulate(self, reward: Tensor, growth_log: Tensor, simple_return: Tensor) -> None:
        sums = self._sums
        sums[0] += reward
        sums[1] += growth_log
        sums[2].addcmul_(simple_return, simple_return)
        sums[3] += simple_return
        torch.maximum(sums[4], self.account.drawdown, out=sums[4])

    def _episode_summary(self) -> dict[str, Tensor]:
        reward, log_growth, squares, total, drawdown = self._sums
        length = (self.bar - self._episode_start).to(torch.float64)
        mean = total / length
        variance = (squares - length * mean * mean) / (length - 1.0)
        # Below the rounding of the sums there is no volatility to divide by: undefined, never huge.
        defined = (length > 1.0) & (variance > 1e-18)
        sharpe = torch.where(defined, mean / variance.clamp_min(1e-18).sqrt(), torch.nan)
        return {
            "r": reward.clone(),
            "l": length,
            "sharpe": sharpe,
            "max_drawdown": drawdown.clone(),
            "log_growth": log_growth.clone(),
        }

    def _restart(self, accounts: Restarting, observation: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Begin a new episode in the accounts that are done."""
        starts = self._draw_starts(accounts.count)
        self.bar = accounts.put(self.bar, starts)
        self.end_bar = accounts.put(self.end_bar, self._ends(starts))
        self._episode_start = accounts.put(self._episode_start, starts)
        self.account.restart(accounts)
        self._memory = tuple(
            accounts.fill(value, initial)
            for value, initial in zip(self._memory, self.reward_function.initial_memory, strict=True)
        )
        self._sums = [accounts.fill(value, 0.0) for value in self._sums]
        fresh = accounts.of(self.account.features())
        return accounts.put(observation, self.gather(starts, fresh)), accounts.put(features, fresh)
