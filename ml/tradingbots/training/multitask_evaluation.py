"""How an agent of several tasks does in each of them: every task's policy on every task's unseen prices.

The diagonal is what each task earns. What lies beside it says whether the policies differ: a task that another's policy serves
as well needs none of its own. Whether learning together helped is the last comparison, with an agent of that task alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ml.tradingbots.components.multitask_agent import MultiTaskRLAgent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.task_policy import TaskPolicy
from ml.tradingbots.core import metrics
from ml.tradingbots.training.evaluation import act, evaluation_environment, run_baselines
from ml.tradingbots.training.results import BUY_AND_HOLD

FloatArray = npt.NDArray[np.float64]
TaskScore = Literal["sharpe_ratio", "total_return", "reward"]

AGENT, SINGLE, TRANSFER = "several tasks", "single task", "transfer"


@dataclass(frozen=True)
class TaskEvaluation:
    """What `evaluate_tasks` found."""

    matrix: pd.DataFrame
    """Score of each task's policy (rows) on each task's unseen prices (columns)."""
    comparison: pd.DataFrame
    """By task: the score of its own policy ("several tasks"), that of an agent of the task alone ("single task"; NaN where
    none was given), their difference ("transfer": negative where learning together did harm), and "buy_and_hold"."""
    equity: dict[str, pd.DataFrame]
    """By task: account values at every close, from 1, of its own policy and of what it is compared with."""
    score: TaskScore
    """What scores are: annualised Sharpe ratio, total return, or mean reward per bar of the task's own reward."""

    def table(self) -> pd.DataFrame:
        """Return the matrix, one row a policy, with the comparison of that policy's own task behind it."""
        return pd.concat({"on": self.matrix, "its own task": self.comparison.drop(columns=AGENT)}, axis=1)

    def verdict(self) -> str:
        """Say in words whether learning together helped."""
        words = {"sharpe_ratio": "Sharpe ratio", "total_return": "total return", "reward": "mean reward per bar"}
        measure, rows = words[self.score], self.comparison
        above = int((rows[AGENT] > rows[BUY_AND_HOLD]).sum())
        held = (
            f"Out of sample the agent of all tasks has a higher {measure} than buy-and-hold in {above} of {len(rows)}."
        )
        known = rows[TRANSFER].dropna()
        if known.empty:
            return held
        better = int((known > 0.0).sum())
        # Objectives have units of their own: a mean of them would be of nothing.
        average = f", on average by {known.mean():+.3g}".replace("-", "−") if self.score != "reward" else ""
        return (
            f"{held} Learning together gave a higher {measure} than learning alone in {better} of {len(known)} "
            f"tasks{average}. One seed and one stretch of market say little: differences of this kind come "
            "about by chance, too."
        )


def train_single_tasks(
    agent: MultiTaskRLAgent, *, timesteps_per_task: int | None = None, n_envs: int = 16
) -> dict[str, TaskPolicy]:
    """Train the controls: for each task an agent of the same kind and settings that never meets another.

    Args:
        agent: of all tasks, with its environments.
        timesteps_per_task: transitions; None takes what `agent` has learned from in each task.
        n_envs: accounts.
    """
    steps = timesteps_per_task or max(agent.learner.num_timesteps // agent.n_tasks, 1)
    return {name: single_task_agent(agent, name).train(steps, n_envs=n_envs).for_task(name) for name in agent.names}


def single_task_agent(agent: MultiTaskRLAgent, name: str) -> MultiTaskRLAgent:
    """Return an agent of one task alone, made as the agent of all is, and not trained yet.

    Raises:
        ValueError: the agent was loaded without environments.
    """
    if name not in agent.environments:
        raise ValueError(f"the agent has no environment of task {name!r}: load it with environments={{...}}")
    return MultiTaskRLAgent({name: agent.environments[name]}, agent.config, seed=agent.seed, device=agent.device)


def evaluate_tasks(
    agent: MultiTaskRLAgent,
    environments: Mapping[str, TradingEnvironment],
    *,
    single_task: Mapping[str, Any] | Literal["train"] | None = None,
    score: TaskScore = "sharpe_ratio",
) -> TaskEvaluation:
    """Walk every task's policy once over every task's prices, deterministically.

    Prices are seen on the scale of the task they are of, as it was in training, whoever's policy acts.

    Args:
        agent: of several tasks.
        environments: unseen prices of each task, by the tasks' names.
        single_task: policies of agents that learned a task alone, by task; "train" makes them here, by
            `train_single_tasks`; None compares with none.
        score: what is compared.

    Raises:
        ValueError: a task has no environment, or the score is unknown.
    """
    if score not in get_args(TaskScore):
        raise ValueError(f"score must be one of {', '.join(get_args(TaskScore))}, got {score!r}")
    if set(environments) != set(agent.names):
        raise ValueError(
            f"environments must be those of the tasks {', '.join(agent.names)}, got {', '.join(environments) or 'none'}"
        )
    controls: Mapping[str, Any] = train_single_tasks(agent) if single_task == "train" else single_task or {}
    matrix = pd.DataFrame(index=pd.Index(agent.names, name="policy"), columns=list(agent.names), dtype=float)
    rows, equity = {}, {}
    for place, name in enumerate(agent.names):
        env = evaluation_environment(environments[name])
        walked = _walk(agent.for_all(name), env, agent.n_tasks)
        scores = walked.scores(score)
        matrix[name] = scores
        held = run_baselines(env)[BUY_AND_HOLD]
        curves = {AGENT: walked.equity[:, place], BUY_AND_HOLD: held.equity_curve / held.equity_curve[0]}
        own, alone = scores[place], float("nan")
        if name in controls:
            control = _walk(controls[name], env, 1)
            curves[SINGLE], alone = control.equity[:, 0], control.scores(score)[0]
        hold = _score(curves[BUY_AND_HOLD], held.rewards, score, walked.bars_per_year)
        rows[name] = {AGENT: own, SINGLE: alone, TRANSFER: own - alone, BUY_AND_HOLD: hold}
        equity[name] = pd.DataFrame(curves, index=held.timestamps.rename("timestamp"))
    comparison = pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")
    return TaskEvaluation(matrix, comparison, equity, score)


@dataclass(frozen=True)
class _Walked:
    """Accounts that walked a market side by side."""

    equity: FloatArray
    """From 1; (n_steps + 1, n_accounts)."""
    rewards: FloatArray
    """(n_steps, n_accounts)."""
    bars_per_year: float

    def scores(self, score: TaskScore) -> list[float]:
        """Score of every account."""
        pairs = zip(self.equity.T, self.rewards.T, strict=True)
        return [_score(equity, rewards, score, self.bars_per_year) for equity, rewards in pairs]


def _walk(policy: Any, env: TradingEnvironment, n_accounts: int) -> _Walked:
    """Walk accounts from the first bar to the last; one that is stopped out holds cash from then on."""
    accounts = env.vectorize(n_accounts)
    observation, _ = accounts.reset()
    n_steps = env.market.last_bar - env.market.first_bar
    growth, rewards = np.zeros((n_steps + 1, n_accounts)), np.zeros((n_steps, n_accounts))
    running = torch.ones(n_accounts, dtype=torch.bool)
    for step in range(n_steps):
        mask = accounts.action_mask()
        observation, reward, terminated, truncated, infos = accounts.step(act(policy, observation, mask))
        now = (accounts.account.equity / env.config.initial_balance).log()
        if "episode" in infos:
            # Where an episode ended the account has begun anew, and its end is in the summary.
            now = torch.where(infos["_episode"], infos["episode"]["log_growth"], now)
        growth[step + 1] = np.where(running.numpy(), now.numpy(), growth[step])
        rewards[step] = np.where(running.numpy(), reward.numpy(), 0.0)
        running = running & ~(terminated | truncated)
    return _Walked(np.exp(growth), rewards, env.market.bars.bars_per_year)


def _score(equity: FloatArray, rewards: FloatArray, score: TaskScore, bars_per_year: float) -> float:
    if score == "reward":
        return float(np.mean(rewards))
    asset_returns = equity[1:] / equity[:-1] - 1.0
    if score == "total_return":
        return metrics.total_return(asset_returns)
    # An account that never traded has earned what it has risked: nothing.
    return metrics.sharpe_ratio(asset_returns, bars_per_year=bars_per_year) if asset_returns.any() else 0.0
