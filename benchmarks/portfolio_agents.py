"""Agents that hold twenty stocks, after costs, beside the portfolios that anybody can have.

    python benchmarks/portfolio_agents.py --choose --resume    # settings, on the years before the test, with one seed
    python benchmarks/portfolio_agents.py --resume             # five agents, five seeds; goes on where it was interrupted
    python benchmarks/portfolio_agents_page.py                 # docs/reports/portfolio-agents.md from what was kept

Agents train on 1990 to 2014 and are judged on 2015 to 2022, which nothing was chosen on. A decision is made at every close and
filled there: the source has no opens.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import tyro
from records import RESULTS, ROOT, Records, conditions, digest

from ml.tradingbots.components import PortfolioConfig, PortfolioManager
from ml.tradingbots.components.a2c_agent import A2CConfig
from ml.tradingbots.components.ddpg_agent import DDPGConfig
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_agents import PPOConfig, create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.td3_agent import TD3Config
from ml.tradingbots.core.costs import TransactionCosts
from ml.tradingbots.data import Bars, load_prices
from ml.tradingbots.training import RLTrainingConfig, train_rl_agent
from ml.tradingbots.training.evaluation import act, run_baselines, run_strategy
from ml.tradingbots.training.portfolio_backtest import backtest_portfolio
from ml.tradingbots.training.portfolio_comparison import ALLOCATED, EQUAL_WEIGHT, sharpe_gain
from ml.tradingbots.training.results import BUY_AND_HOLD
from ml.tradingbots.training.trajectory import Trajectory
from tradingbots.periods import with_context

SOURCE = "sp500-stocks"
VALIDATION_START, TEST_START = "2012-01-01", "2015-01-01"
N_SEEDS, CHOOSING_SEED = 5, 100
N_ENVS = 64
# Daily decisions of agents cost more than monthly ones of the baselines; both pay the house's default of 10 basis points.
ENV_CONFIG = TradingEnvConfig(
    window_size=1,
    allow_short=False,
    features=("log_return", "momentum:20", "momentum:250", "volatility:60"),
)
BASE: dict[str, Any] = {
    "ppo": PPOConfig(n_steps=32, batch_size=512, n_epochs=4, learning_rate=1e-3, gae_lambda=0.8, log_std_init=-0.5),
    "a2c": A2CConfig(
        n_steps=8,
        learning_rate=1e-3,
        learning_rate_schedule="linear",
        gae_lambda=0.8,
        normalize_advantages=True,
        log_std_init=-0.5,
        optimizer="rmsprop",
    ),
    "sac": SACConfig(hidden_dim=64, learning_rate=1e-3, alpha=0.1, learning_starts=5_000),
    "td3": TD3Config(hidden_dim=64, learning_rate=1e-3, noise_std=0.3, learning_starts=5_000),
    "ddpg": DDPGConfig(
        hidden_dim=64, learning_rate=1e-3, noise_std=0.3, exploration_noise="gaussian", learning_starts=5_000
    ),
}
# What is chosen among, per agent: how far it looks ahead, and how long it learns.
DISCOUNTS, BUDGETS = (0.9, 0.99), (50_000, 200_000, 800_000)
# The highest Sharpe ratio of 2012 to 2014 each; `--choose` says whether that is still so.
CHOSEN: dict[str, tuple[float, int]] = {
    "ppo": (0.9, 50_000),
    "a2c": (0.9, 50_000),
    "sac": (0.99, 50_000),
    "td3": (0.99, 50_000),
    "ddpg": (0.99, 50_000),
}
# Functions that a row is made by; how it is shown does not change it.
MEASURING = ("prices", "environment", "train", "walk", "_baselines", "_figures")
# The same with four times the training, for whoever doubts that the chosen one is enough.
LONGER = {agent: (discount, 200_000) for agent, (discount, _) in CHOSEN.items()}
FIGURES = ("annual_return", "sharpe_ratio", "max_drawdown", "annual_turnover", "cost_share", "mean_gross_exposure")


@dataclass(frozen=True)
class Options:
    """What to run."""

    agents: tuple[str, ...] = tuple(BASE)
    """Which agents."""
    seeds: int = N_SEEDS
    """Seeds per agent."""
    choose: bool = False
    """Whether to choose settings instead, on 2012 to 2014 with seed 100; the test years are not touched."""
    save: bool = False
    """Whether to write benchmarks/results/portfolio_agents.json, row by row."""
    resume: bool = False
    """As `save`, and runs that the file has from the same settings, code, versions and machine are not made again."""


def main(options: Options) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    records = Records("portfolio_agents", save=options.save, resume=options.resume)
    if options.choose:
        _choose(options, records)
        return
    baselines = _baselines()
    for name, account in baselines.items():
        found = _figures(account, baselines[EQUAL_WEIGHT])
        known = {figure: value for figure, value in found.items() if name != EQUAL_WEIGHT or "gain" not in figure}
        _show(name, records.add(name, _conditions(), {"kind": "baseline", "name": name, **known}))
    accounts, summary = {}, {}
    for kind, settings in {"longer": LONGER, "agent": CHOSEN}.items():
        accounts = {
            (agent, seed): _measured(kind, agent, seed, settings[agent], records, baselines[EQUAL_WEIGHT])
            for agent in options.agents
            for seed in range(options.seeds)
        }
        summary[kind] = _pooled(accounts, baselines[EQUAL_WEIGHT])
        for agent, entry in summary[kind].items():
            print(f"{agent:6} {kind}: mean of {entry['seeds']} seeds less equal weight {_interval(entry)}")
    records.write(summary)
    if records.save and len(accounts) == len(BASE) * N_SEEDS:
        curves = {name: account.equity_curve for name, account in baselines.items()}
        curves |= {f"{agent} {seed}": equity for (agent, seed), equity in accounts.items()}
        _keep_curves(curves, baselines[EQUAL_WEIGHT].timestamps)


@functools.cache
def prices() -> Bars:
    """Return the twenty stocks."""
    return Bars.from_frame(load_prices(SOURCE))


def environment(start: str | None, end: str | None) -> TradingEnvironment:
    """Return the environment whose first decision falls on the first bar of [start, end)."""
    return TradingEnvironment(with_context(prices(), ENV_CONFIG, start, end), ENV_CONFIG)


def train(agent_type: str, seed: int, discount: float, total_timesteps: int, end: str) -> Any:
    """Train an agent on all bars before `end`."""
    env = environment(None, end)
    config = dataclasses.replace(BASE[agent_type], gamma=discount)
    agent = create_rl_agent(agent_type, env.observation_space_dim, env.action_space_dim, config, seed=seed)
    training = RLTrainingConfig(total_timesteps=total_timesteps, n_envs=N_ENVS, seed=seed, progress=False)
    train_rl_agent(agent, env, training)
    return agent


def walk(agent: Any, start: str, end: str | None, name: str) -> Trajectory:
    """Walk an agent over the bars of [start, end), deterministically."""
    return run_strategy(environment(start, end), lambda seen, _bar: act(agent, seen, None), name=name)


def _choose(options: Options, records: Records) -> None:
    held = run_baselines(environment(VALIDATION_START, TEST_START))[BUY_AND_HOLD]
    figures = {name: held.metrics[name] for name in FIGURES}
    _show(BUY_AND_HOLD, records.add("choice: buy and hold", _conditions(), {"kind": "choice baseline"} | figures))
    for agent_type in options.agents:
        found = {}
        for discount in DISCOUNTS:
            for budget in BUDGETS:
                key, under = f"choice: {agent_type}, discount {discount}, {budget} timesteps", _conditions(agent_type)
                row = records.done(key, under)
                if row is None:
                    agent = train(agent_type, CHOOSING_SEED, discount, budget, VALIDATION_START)
                    account = walk(agent, VALIDATION_START, TEST_START, agent_type)
                    row = {"kind": "choice", "agent": agent_type, "discount": discount, "timesteps": budget}
                    row = records.add(key, under, row | {name: account.metrics[name] for name in FIGURES})
                found[discount, budget] = row["sharpe_ratio"]
                _show(key.removeprefix("choice: "), row)
        best = max(found, key=lambda setting: found[setting])
        print(f"{agent_type}: best {best}, used {CHOSEN[agent_type]}\n")


def _measured(
    kind: str, agent_type: str, seed: int, settings: tuple[float, int], records: Records, equal: Trajectory
) -> npt.NDArray[np.float64]:
    """Return the account of one run at each close, from its file where the run is done."""
    key, under = f"{agent_type}, {settings[1]} timesteps, seed {seed}", _conditions(agent_type, settings)
    path = ROOT / "runs" / "portfolio-agents" / f"{digest(under)}-{agent_type}-{seed}.npy"
    row = records.done(key, under) if path.is_file() else None
    if row is None:
        before = time.process_time()
        agent = train(agent_type, seed, *settings, TEST_START)
        seconds = time.process_time() - before
        account = walk(agent, TEST_START, None, agent_type)
        row = {"kind": kind, "name": agent_type, "seed": seed, "discount": settings[0], "timesteps": settings[1]}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, account.equity_curve)
        row = records.add(key, under, row | _figures(account, equal) | {"cpu_seconds": seconds})
    _show(key, row)
    equity: npt.NDArray[np.float64] = np.load(path, allow_pickle=False)
    return equity


def _baselines() -> dict[str, Trajectory]:
    """Walk monthly allocators, and what is bought once, from the agents' first close on."""
    costs = TransactionCosts(commission_rate=ENV_CONFIG.commission)
    config = PortfolioConfig(rebalance="MS", costs=costs)
    first = int(prices().timestamps.searchsorted(pd.Timestamp(TEST_START, tz="UTC")))
    walks = {
        name: backtest_portfolio(PortfolioManager(config, name), prices(), start=first, name=name) for name in ALLOCATED
    }
    held = walks[EQUAL_WEIGHT].baselines()[BUY_AND_HOLD]
    return {name: found.trajectory for name, found in walks.items()} | {BUY_AND_HOLD: held}


def _figures(account: Trajectory, equal: Trajectory) -> dict[str, Any]:
    if not account.timestamps.equals(equal.timestamps):
        raise RuntimeError(f"{account.name} was walked over other closes than equal weight")
    gain = sharpe_gain(account.strategy_returns, equal.strategy_returns, bars_per_year=equal.bars_per_year)
    found = {"sharpe_gain": gain.estimate, "sharpe_gain_low": gain.low, "sharpe_gain_high": gain.high}
    return {name: account.metrics[name] for name in FIGURES} | found


def _pooled(accounts: dict[tuple[str, int], Any], equal: Trajectory) -> dict[str, Any]:
    """Return what the seeds of each agent gained on average, resampled bar by bar together."""
    summary = {}
    for agent in dict.fromkeys(name for name, _ in accounts):
        curves = np.stack([curve for (name, _), curve in accounts.items() if name == agent], axis=1)
        returns = curves[1:] / curves[:-1] - 1.0
        gain = sharpe_gain(returns, equal.strategy_returns, bars_per_year=equal.bars_per_year)
        found = {"sharpe_gain": gain.estimate, "sharpe_gain_low": gain.low, "sharpe_gain_high": gain.high}
        summary[agent] = {"seeds": curves.shape[1], "block_length": gain.block_length, **found}
    return summary


def _keep_curves(curves: dict[str, npt.NDArray[np.float64]], timestamps: pd.DatetimeIndex) -> None:
    """Write what 1 became in each account at the end of each week, for the figure."""
    table = pd.DataFrame(
        {name: equity / equity[0] for name, equity in curves.items()}, index=timestamps.tz_localize(None)
    )
    weekly = table.iloc[[*range(0, len(table) - 1, 5), -1]]
    weekly.to_csv(RESULTS / "portfolio_agents.csv", index_label="date", float_format="%.4f", date_format="%Y-%m-%d")


def _conditions(agent_type: str | None = None, chosen: Any = None) -> dict[str, Any]:
    """Return what a row depends on: its settings, and the functions of this file that make it."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    functions = [ast.dump(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in MEASURING]
    settings = {"environment": ENV_CONFIG, "n_envs": N_ENVS, "split": [VALIDATION_START, TEST_START]}
    agent = {} if agent_type is None else {"agent": BASE[agent_type], "chosen": chosen}
    return conditions(settings | agent | {"benchmark": digest(functions)})


def _show(name: str, row: dict[str, Any]) -> None:
    gain = f"  less equal weight {_interval(row)}" if "sharpe_gain" in row else ""
    print(
        f"{name:40} Sharpe {row['sharpe_ratio']:5.2f}  a year {row['annual_return']:6.1%}  "
        f"drawdown {row['max_drawdown']:5.1%}  turnover {row['annual_turnover']:5.1f}  costs {row['cost_share']:6.1%}{gain}",
        flush=True,
    )


def _interval(entry: dict[str, Any]) -> str:
    return f"{entry['sharpe_gain']:+.2f} ({entry['sharpe_gain_low']:+.2f} to {entry['sharpe_gain_high']:+.2f})"


if __name__ == "__main__":
    main(tyro.cli(Options))
