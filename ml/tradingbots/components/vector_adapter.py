"""Any environment as the one interface that agents train against: torch tensors, n accounts, SAME_STEP autoreset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor


def as_vector_env(env: Any, *, n_envs: int = 1, device: str = "cpu", seed: int = 0, **changes: Any) -> Any:
    """Return `env` as a torch vector environment.

    Args:
        env: a vector environment that already yields tensors (returned as it is), a `TradingEnvironment`, any other
            `gymnasium.Env` (one with a spec when `n_envs` > 1), or the id of a registered one.
        n_envs: number of copies or accounts.
        device: where the tensors live.
        seed: of the first reset.
        **changes: fields of the environment's config that differ in training; market environments only.

    Raises:
        TypeError: the environment cannot be used.
    """
    if isinstance(env, VectorEnv):
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise TypeError("a vector environment must reset in the same step: build it with autoreset_mode=SAME_STEP")
        return TensorVectorEnv(env, device=device, seed=seed) if isinstance(env, SyncVectorEnv) else env
    if hasattr(env, "vectorize"):
        return env.vectorize(n_envs, device=device, seed=seed, **changes)
    makers = [_maker(env, n_envs)] * n_envs
    return TensorVectorEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), device=device, seed=seed)


def _maker(env: Any, n_envs: int) -> Callable[[], gymnasium.Env[Any, Any]]:
    if isinstance(env, str):
        return lambda: gymnasium.make(env)
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"env must be a gymnasium environment or its id, got {type(env).__name__}")
    if n_envs == 1:
        return lambda: env
    if env.spec is None:
        raise TypeError(
            "n_envs > 1 needs an environment made by gymnasium.make, so that it can be made again; or pass n_envs=1"
        )
    spec = env.spec
    return lambda: gymnasium.make(spec)


class TensorVectorEnv(VectorEnv[Tensor, Tensor, Any]):
    """A NumPy vector environment with SAME_STEP autoreset, as tensors; sums rewards per episode.

    `infos["final_obs"]` is a tensor (n_envs, obs_dim) that holds every account's observation before any reset.

    Discrete and MultiDiscrete spaces take integer tensors (n_envs,) or (n_envs, n). Where the copies put Gymnasium's
    `action_mask` into their infos (an array, or a tuple of arrays, one 0 or 1 per choice; MultiDiscrete end to end),
    `action_mask()` and `infos["action_mask"]` are bool tensors (n_envs, n_choices) of the observations returned, and
    `infos["next_action_mask"]` is the one before any reset. Where a copy gives none, or leaves no choice at all (as games do
    when they are over), everything is legal.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so.
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(self, env: Any, *, device: str = "cpu", seed: int = 0) -> None:
        self.env = env
        self.device = torch.device(device)
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self.observation_space, self.action_space = env.observation_space, env.action_space
        shape = env.single_observation_space.shape
        if shape is None or len(shape) != 1:
            raise TypeError(
                f"observations must be flat vectors, got {env.single_observation_space}; wrap FlattenObservation"
            )
        self._seed: int | None = seed
        self._choices = _choices(env.single_action_space)
        self._n_choices = sum(self._choices)
        self._action_mask: Tensor | None = None
        self._has_masks: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every copy; the first reset uses the seed given at construction."""
        chosen = seed if seed is not None else self._seed
        self._seed = None
        observation, infos = self.env.reset(seed=chosen, options=options)
        self._reward_sum = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs)
        self._action_mask = self._mask(infos)
        if self._has_masks and self._action_mask is None:
            self._action_mask = self._anything()
        self._has_masks = self._action_mask is not None
        ours = {} if self._action_mask is None else {"action_mask": self._action_mask}
        return self._tensor(observation), ours

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every copy.

        Raises:
            ValueError: a discrete environment was given actions that are no integers.
        """
        if self._n_choices and (actions.is_floating_point() or actions.dtype is torch.bool):
            raise ValueError(f"discrete actions must be an integer tensor, got {actions.dtype}")
        action = actions.cpu().numpy().astype(self.env.single_action_space.dtype, copy=False)
        observation, reward, terminated, truncated, infos = self.env.step(action)
        self._reward_sum += reward
        self._length += 1.0
        done = terminated | truncated
        ours: dict[str, Any] = {}
        after = self._tensor(observation)
        if done.any():
            final = after.clone()
            for row in np.flatnonzero(done):
                final[row] = self._tensor(infos["final_obs"][row])
            nan = torch.full((self.num_envs,), torch.nan, dtype=torch.float64)
            summary = {"r": torch.as_tensor(self._reward_sum.copy()), "l": torch.as_tensor(self._length.copy())}
            ours = {
                "final_obs": final,
                "_final_obs": torch.as_tensor(done),
                "episode": summary | {"sharpe": nan, "max_drawdown": nan, "log_growth": nan},
                "_episode": torch.as_tensor(done),
            }
            self._reward_sum[done] = 0.0
            self._length[done] = 0.0
        ours |= self._masks(infos, done)
        flags = torch.as_tensor(terminated, device=self.device), torch.as_tensor(truncated, device=self.device)
        return after, self._tensor(reward), *flags, ours

    def action_mask(self) -> Tensor | None:
        """Legal choices at the present observations, bool (n_envs, n_choices); None where the copies say nothing."""
        return self._action_mask

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies."""
        self.env.close(**kwargs)

    def _masks(self, infos: dict[str, Any], done: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        """Return the masks of one step: of the observations returned, and of those before any reset."""
        self._action_mask = after = self._mask(infos)
        final = self._mask(infos.get("final_info", {}))
        if not self._has_masks:
            if after is None and final is None:
                return {}
            raise ValueError("info['action_mask'] came from step and not from the first reset: it must come from both")
        anything = self._anything()
        after, final = anything if after is None else after, anything if final is None else final
        ended = torch.as_tensor(done, device=self.device)[:, None]
        self._action_mask = after
        return {"action_mask": after, "next_action_mask": torch.where(ended, final, after)}

    def _anything(self) -> Tensor:
        return torch.ones(self.num_envs, self._n_choices, dtype=torch.bool, device=self.device)

    def _mask(self, infos: dict[str, Any]) -> Tensor | None:
        """Return the masks in the infos of a NumPy vector environment, all true for a copy that gave none."""
        if "action_mask" not in infos or not self._n_choices:
            return None
        legal = np.ones((self.num_envs, self._n_choices), dtype=np.bool_)
        for row in np.flatnonzero(infos["_action_mask"]):
            mask = infos["action_mask"][row]
            mask = np.concatenate(mask) if isinstance(mask, tuple) else np.ravel(mask)
            if len(mask) != self._n_choices:
                raise ValueError(f"action_mask must have {self._n_choices} entries, one per choice; got {len(mask)}")
            legal[row] = mask != 0
        for dimension in np.split(legal, np.cumsum(self._choices)[:-1], axis=1):
            dimension[~dimension.any(1)] = True
        return torch.as_tensor(legal, device=self.device)

    def _tensor(self, values: Any) -> Tensor:
        # A copy: SyncVectorEnv writes its next observations into the same array.
        return torch.tensor(np.asarray(values), dtype=torch.float32, device=self.device)


def _choices(space: spaces.Space[Any]) -> list[int]:
    """Return how many choices each dimension of a discrete space has; nothing for other spaces."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [int(n) for n in space.nvec.ravel()] if isinstance(space, spaces.MultiDiscrete) else []
