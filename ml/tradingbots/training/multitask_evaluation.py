"""How an agent of several tasks does in each of them: every task's policy on every task's unseen prices.

The diagonal is what each task earns. What lies beside it says whether the policies differ: a task that another's policy serves
as well needs none of its own. Whether learning together helped is the last comparison, with an agent of that task alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ml.tradingbots.components.agent_config import AgentConfig, OffPolicyConfig
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
    unlearned: tuple[str, ...] = ()
    """Who took no gradient step and so has no score in `comparison`: "several tasks", or tasks whose control it was."""

    def table(self) -> pd.DataFrame:
        """Return the matrix, one row a policy, with the comparison of that policy's own task behind it."""
        return pd.concat({"on": self.matrix, "its own task": self.comparison.drop(columns=AGENT)}, axis=1)

    def verdict(self) -> str:
        """Say in words whether learning together helped."""
        words = {"sharpe_ratio": "Sharpe ratio", "total_return": "total return", "reward": "mean reward per bar"}
        measure, rows = words[self.score], self.comparison
        if AGENT in self.unlearned:
            return "The agent of all tasks took no gradient step, so it is not compared: give it more timesteps."
        above = int((rows[AGENT] > rows[BUY_AND_HOLD]).sum())
        held = (
            f"Out of sample the agent of all tasks has a higher {measure} than buy-and-hold in {above} of {len(rows)}."
        )
        if self.unlearned:
            held = (
                f"{held} The controls of {', '.join(self.unlearned)} took no gradient step, so they are not "
                "compared: give them more timesteps."
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

    Where the agent learns from a memory, the control's is its share of it, and it begins to learn after its share of the
    random timesteps, but at the earliest with a batch: counted in a task's own bars both begin as late.

    Raises:
        ValueError: the agent was loaded without environments.
    """
    if name not in agent.environments:
        raise ValueError(f"the agent has no environment of task {name!r}: load it with environments={{...}}")
    config = dataclasses.replace(agent.config, agent_config=_share_of(agent.learner.config, agent.n_tasks))
    return MultiTaskRLAgent({name: agent.environments[name]}, config, seed=agent.seed, device=agent.device)


def _share_of(config: AgentConfig, n_tasks: int) -> AgentConfig:
    """Return the settings of a control: whatever counts timesteps of all tasks, divided among them."""
    if not isinstance(config, OffPolicyConfig):
        return config
    starts = max(config.learning_starts // n_tasks, min(config.batch_size, config.learning_starts))
    size = max(config.buffer_size // n_tasks, min(config.batch_size, config.buffer_size), starts)
    return dataclasses.replace(config, learning_starts=starts, buffer_size=size)


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
    if not isinstance(environments, Mapping) or set(environments) != set(agent.names):
        given = ", ".join(map(str, environments)) if isinstance(environments, Mapping) else type(environments).__name__
        raise ValueError(f"environments must be those of the tasks {', '.join(agent.names)}, got {given or 'none'}")
    for name, env in environments.items():
        if not isinstance(env, TradingEnvironment):
            raise TypeError(
                f"environments must be TradingEnvironments, that of {name!r} is of type {type(env).__name__}"
            )
        if env.observation_space_dim != agent.learner.state_dim - agent.n_tasks:
            raise ValueError(
                f"the environment of {name!r} shows {env.observation_space_dim} numbers, the agent was trained on "
                f"{agent.learner.state_dim - agent.n_tasks}: give it the same window_size, features and number of assets"
            )
    controls = _controls(agent, single_task)
    unlearned = _unlearned(agent, controls)
    matrix = pd.DataFrame(index=pd.Index(agent.names, name="policy"), columns=list(agent.names), dtype=float)
    rows, equity = {}, {}
    for place, name in enumerate(agent.names):
        env = evaluation_environment(environments[name])
        walked = _walk(agent.for_all(name), env, agent.n_tasks)
        scores = walked.scores(score)
        matrix[name] = scores
        held = run_baselines(env)[BUY_AND_HOLD]
        curves = {AGENT: walked.equity[:, place], BUY_AND_HOLD: held.equity_curve / held.equity_curve[0]}
        own, alone = float("nan") if AGENT in unlearned else scores[place], float("nan")
        if name in controls:
            control = _walk(controls[name], env, 1)
            curves[SINGLE] = control.equity[:, 0]
            alone = float("nan") if name in unlearned else control.scores(score)[0]
        hold = _score(curves[BUY_AND_HOLD], held.rewards, score, walked.bars_per_year)
        rows[name] = {AGENT: own, SINGLE: alone, TRANSFER: own - alone, BUY_AND_HOLD: hold}
        equity[name] = pd.DataFrame(curves, index=held.timestamps.rename("timestamp"))
    comparison = pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")
    return TaskEvaluation(matrix, comparison, equity, score, unlearned)


def _controls(agent: MultiTaskRLAgent, given: Any) -> Mapping[str, Any]:
    """Return the policies to compare with, checked."""
    if given is None or (isinstance(given, str) and given == "train"):
        return {} if given is None else train_single_tasks(agent)
    if not isinstance(given, Mapping):
        shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
        raise TypeError(f"single_task must be 'train', None, or policies by task, got {shown}")
    if unknown := [name for name in given if name not in agent.names]:
        raise ValueError(f"single_task names {unknown[0]!r}, which is no task: {', '.join(agent.names)}")
    return given


def _unlearned(agent: MultiTaskRLAgent, controls: Mapping[str, Any]) -> tuple[str, ...]:
    """Return who took no gradient step, where that can be known: policies may be of any kind."""
    idle = [
        name for name, policy in controls.items() if isinstance(policy, TaskPolicy) and not policy.learner.num_updates
    ]
    return (*([] if agent.learner.num_updates else [AGENT]), *idle)


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
