"""Accounts in several markets side by side, as one vector environment: what agents train against that learn several at once.

Every account stays in its market. A rollout therefore holds each market's own steps, a replay memory as many transitions of
each, and no advantage reaches from one into another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_environment import TradingVectorEnv

Scaling = Literal["none", "each"]


class MultiMarketVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """`n_envs` accounts in each of several markets; steps, infos and indexed observations are those of `TradingVectorEnv`.

    Accounts stand market by market: the first `n_envs` are in the first one. `bar` counts through all markets, one after the
    other, so that it says which one an observation is of.

    Args:
        environments: a `TradingEnvironment` for each market, by name. They show the same features of as many assets and take
            the same actions; prices, rewards and costs may differ, and two may be of the same prices.
        n_envs: accounts in each.
        device: where the tensors live.
        seed: of the generators of random starts; each market has one of its own.
        identify: whether observations end with which market it is, a 1 among zeros; (n_markets,).
        scaling: "each" shows market features minus their mean over their deviation, each market's own over its price table;
            "none" shows them as they are.
        **changes: fields of the environments' configs that differ for these accounts, e.g. `random_start=True`.

    Attributes:
        names: of the markets.
        markets: the vector environment of each.
        observation_space_dim: length of the flattened observation.
        market_of_account: which market each account is in; int64 (n_markets · n_envs,).

    Raises:
        TypeError: one is no `TradingEnvironment`.
        ValueError: there is none, or two do not fit together.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so.
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        environments: Mapping[str, TradingEnvironment],
        *,
        n_envs: int = 16,
        device: str | torch.device = "cpu",
        seed: int = 0,
        identify: bool = False,
        scaling: Scaling = "none",
        **changes: Any,
    ) -> None:
        _check(environments, scaling)
        self.device = torch.device(device)
        self.names = tuple(environments)
        self.identify, self.scaling = identify, scaling
        self.markets: tuple[TradingVectorEnv, ...] = tuple(
            env.vectorize(n_envs, device=str(device), seed=seed + number, **changes)
            for number, env in enumerate(environments.values())
        )
        first = self.markets[0]
        self.num_envs = n_envs * len(self.markets)
        self.window_size, self.account_dim = first.config.window_size, first.account_dim
        self.market_of_account = torch.arange(len(self.markets), device=self.device).repeat_interleave(n_envs)
        lengths = torch.tensor([env.market.n_bars for env in self.markets])
        self._offsets = (lengths.cumsum(0) - lengths).to(self.device)
        self._offset_of_account = self._offsets.index_select(0, self.market_of_account)
        self._last_bars = (self._offsets + lengths.to(self.device))[:-1].contiguous()
        table = torch.cat([self._scaled(env) for env in self.markets])
        self._table = table
        self._windows = table.as_strided(
            (len(table) - self.window_size + 1, self.window_size * table.shape[1]), (table.shape[1], 1)
        )
        self._identities = torch.eye(len(self.markets), device=self.device)
        self.observation_space_dim = first.observation_space_dim + (len(self.markets) if identify else 0)
        dim = self.observation_space_dim
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float32)
        self.single_action_space = first.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.bar = self._present_bars()

    @property
    def action_space_dim(self) -> int:
        """As of each market."""
        return self.markets[0].action_space_dim

    @property
    def bars_per_year(self) -> float:
        """Of the first market: what Sharpe ratios of training episodes are annualised with."""
        return self.markets[0].market.bars.bars_per_year

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every account; `options` are every market's."""
        found = [
            env.reset(seed=None if seed is None else seed + number, options=options)
            for number, env in enumerate(self.markets)
        ]
        self.bar = self._present_bars()
        infos = {name: torch.cat([info[name] for _, info in found]) for name in found[0][1]}
        return self.gather(self.bar, self.account_features()), infos

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Walk every account one bar."""
        if len(actions) != self.num_envs:
            raise ValueError(f"actions must be those of {self.num_envs} accounts, got {len(actions)}")
        parts = torch.split(actions, self.num_envs // len(self.markets))
        found = [env.step(part) for env, part in zip(self.markets, parts, strict=True)]
        _, rewards, terminations, truncations, all_infos = zip(*found, strict=True)
        reward, terminated, truncated = map(torch.cat, (rewards, terminations, truncations))
        infos = self._infos(list(all_infos), terminated | truncated)
        self.bar = self._present_bars()
        return self.gather(self.bar, self.account_features()), reward, terminated, truncated, infos

    def account_features(self) -> Tensor:
        """Account part of the present observations, after any reset; float32 (n_envs, account_dim)."""
        return torch.cat([env.account_features() for env in self.markets])

    def action_mask(self) -> Tensor | None:
        """Legal choices at the present observations; None where actions are continuous."""
        masks = [env.action_mask() for env in self.markets]
        return None if any(mask is None for mask in masks) else torch.cat([mask for mask in masks if mask is not None])

    def market_of(self, bar: Tensor) -> Tensor:
        """Return which market bars are of; int64, shaped as `bar`."""
        return torch.bucketize(bar, self._last_bars, right=True)

    def gather(self, bar: Tensor, account: Tensor) -> Tensor:
        """Rebuild observations from what identifies them, as `TradingVectorEnv.gather`; `bar` counts through all markets."""
        parts = [self._windows.index_select(0, bar - (self.window_size - 1)), account]
        if self.identify:
            parts.append(self._identities.index_select(0, self.market_of(bar)))
        return torch.cat(parts, 1)

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every observation entry, all bars of all markets counted alike.

        What `scaling` has put in order already, and which market it is, have 0 and 1.
        """
        both = [env.observation_statistics() for env in self.markets]
        n_bars = [env.market.n_bars - env.market.first_bar for env in self.markets]
        share = torch.tensor(n_bars, dtype=torch.float64)[:, None] / sum(n_bars)
        means, stds = (torch.stack([each[number].double() for each in both]) for number in (0, 1))
        mean = (share * means).sum(0)
        std = (share * (stds.square() + (means - mean).square())).sum(0).sqrt()
        if self.scaling == "each":
            window = self.window_size * self._table.shape[1]
            mean[:window], std[:window] = 0.0, 1.0
        own = torch.zeros(len(self.markets) if self.identify else 0, dtype=torch.float64)
        return torch.cat([mean, own]), torch.cat([std, own + 1.0])

    def specification(self) -> dict[str, Any]:
        """What the first market says of itself, and the names of all."""
        return self.markets[0].specification() | {"markets": list(self.names)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the episodes go on."""
        return {"markets": {name: env.state_dict() for name, env in zip(self.names, self.markets, strict=True)}}

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        """Go on from a saved state; returns the present observations.

        Raises:
            ValueError: it was saved with other markets, prices or numbers of accounts.
        """
        if tuple(state["markets"]) != self.names:
            raise ValueError(
                f"the saved environment has the markets {', '.join(state['markets'])}, this one {self.names}"
            )
        for name, env in zip(self.names, self.markets, strict=True):
            env.load_state_dict(state["markets"][name])
        self.bar = self._present_bars()
        return self.gather(self.bar, self.account_features())

    def _present_bars(self) -> Tensor:
        return torch.cat([env.bar for env in self.markets]) + self._offset_of_account

    def _scaled(self, env: TradingVectorEnv) -> Tensor:
        """Return the feature table of a market as accounts see it; (n_bars, n_assets · n_features)."""
        table = torch.as_tensor(env.market.features, device=self.device)
        if self.scaling == "none":
            return table
        width = table.shape[1]
        mean, std = (values[:width].to(table) for values in env.observation_statistics())
        return (table - mean) / std

    def _infos(self, infos: list[dict[str, Any]], done: Tensor) -> dict[str, Any]:
        account = torch.cat([each["next_account"] for each in infos])
        bar = torch.cat([each["next_bar"] for each in infos]) + self._offset_of_account
        joined: dict[str, Any] = {"next_bar": bar, "next_account": account}
        for name in ("action_mask", "next_action_mask"):
            if name in infos[0]:
                joined[name] = torch.cat([each[name] for each in infos])
        if any("episode" in each for each in infos):
            joined["final_obs"], joined["_final_obs"] = self.gather(bar, account), done
            n = self.num_envs // len(infos)
            fields = next(each["episode"] for each in infos if "episode" in each)
            blank = {name: torch.full_like(values, torch.nan) for name, values in fields.items()}
            summaries = [each.get("episode", blank) for each in infos]
            joined["episode"] = {name: torch.cat([each[name] for each in summaries]) for name in fields}
            nobody = torch.zeros(n, dtype=torch.bool, device=self.device)
            joined["_episode"] = torch.cat([each.get("_episode", nobody) for each in infos])
        return joined


def _check(environments: Mapping[str, TradingEnvironment], scaling: str) -> None:
    if scaling not in get_args(Scaling):
        raise ValueError(f"scaling must be {' or '.join(map(repr, get_args(Scaling)))}, got {scaling!r}")
    if not isinstance(environments, Mapping) or not environments:
        raise ValueError("environments must have at least one market: {'name': TradingEnvironment(prices, config)}")
    for name, env in environments.items():
        if not isinstance(env, TradingEnvironment):
            raise TypeError(f"market {name!r} must be a TradingEnvironment, got {type(env).__name__}")
    (first_name, first), *others = environments.items()
    for name, env in others:
        for what, wanted, found in (
            ("features", first.market.feature_names, env.market.feature_names),
            ("number of assets", first.market.n_assets, env.market.n_assets),
            ("window_size", first.config.window_size, env.config.window_size),
            ("execution_delay", first.config.execution_delay, env.config.execution_delay),
            ("actions", first.action_space, env.action_space),
        ):
            if wanted != found:
                raise ValueError(
                    f"markets {first_name!r} and {name!r} must have the same {what} for one agent, got {wanted} and {found}"
                )
