"""Transfer between markets whose best policy is known: how much an agent keeps, and how much sooner it learns.

Judged on bars that nobody learned from, as a share of what the optimal policy gains on the very same bars and accounts, after
costs of 5 basis points. Log returns of all markets are AR(1); the target is three times as volatile as the source and has a
tenth of its bars. The source has the target's coefficient, or the opposite one, where all it teaches is wrong.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.parameter_groups import parameter_groups
from ml.tradingbots.components.rl_agents import create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.transfer_learning import TransferLearningTrainer
from ml.tradingbots.components.transfer_results import FINE_TUNED, LEARNED, SCRATCH, TransferReport, timesteps_to
from ml.tradingbots.data.optimal import MarkovMarket, optimal_policy
from ml.tradingbots.data.synthetic import SyntheticMarket, autoregressive
from ml.tradingbots.training.market_recipes import MARKET_RECIPES
from ml.tradingbots.training.regret import gain_of_agent, gain_of_optimum

Source = Literal["same", "opposite"]
AgentName = Literal["sac", "ppo"]

PHI = 0.3
SOURCE_VOLATILITY, TARGET_VOLATILITY = 0.01, 0.03
COST_RATE = 0.0005
DISCOUNT = 0.9
ENVIRONMENT = TradingEnvConfig(window_size=1, episode_length=500, commission=COST_RATE)
# Those of `market_recipes`, but that SAC begins to learn sooner: 5,000 timesteps of random actions would be most of what
# scratch needs, and hide what transfer saves. Chosen on seeds 100 and 101.
RECIPES: dict[AgentName, Any] = {
    "sac": dataclasses.replace(MARKET_RECIPES["sac"], gamma=DISCOUNT, learning_starts=500),
    "ppo": dataclasses.replace(MARKET_RECIPES["ppo"], gamma=DISCOUNT),
}
# What TransferLearningTrainer is told, by source and name.
SETTINGS: dict[Source, dict[str, dict[str, Any]]] = {
    "same": {"all layers": {"freeze": ()}, "default (heads alone)": {}},
    "opposite": {
        "all layers": {"freeze": (), "on_negative": "warn"},
        "heads alone": {"on_negative": "warn"},
        "new heads": {"freeze": (), "reinitialize": ("heads",), "normalizer": "reset", "on_negative": "warn"},
        "default (thrown away)": {},
    },
}


@dataclass(frozen=True, kw_only=True)
class TransferSize:
    """How much of everything."""

    n_source_bars: int = 50_000
    n_target_bars: int = 5_000
    """A tenth of the source's."""
    n_test_bars: int = 64_000
    """Unseen bars of the target market, walked by 256 accounts."""
    source_timesteps: int = 60_000
    """Transitions of pretraining."""
    target_timesteps: int = 12_288
    """Transitions of fine-tuning, and of scratch."""
    eval_timesteps: int = 256
    """Between scores: a rollout of PPO."""
    n_source_envs: int = 64
    n_envs: int = 16
    """Accounts in the target market."""


@dataclass(frozen=True, kw_only=True)
class TransferOutcome:
    """One transfer. Scores are shares of the optimal policy's gain on unseen bars of the target market."""

    agent: AgentName
    source: Source
    setting: str
    seed: int
    optimum: float
    """Gain of the optimal policy, mean log return per bar."""
    zero_shot: float
    """Of the transferred agent before its first step, on the source's scales or those that the setting takes."""
    zero_shot_reset: float
    """The same on the target's own scales."""
    zero_shot_blend: float
    """The same on both pooled, by numbers of bars of the target."""
    untrained: float
    """Of an agent with first weights."""
    asymptote: float
    """Mean of the last fifth of the curve."""
    scratch_asymptote: float
    timesteps_to_optimum: float
    """Until 90% of the optimum; infinite where it was not reached."""
    scratch_timesteps_to_optimum: float
    timesteps_to_scratch: float
    """Until 90% of scratch's asymptote."""
    scratch_timesteps_to_scratch: float
    frozen_unchanged: bool | None
    """Whether what was frozen is the same bit for bit; None where nothing was."""
    curve: list[list[float]]
    """Timesteps, score fine-tuned, score from scratch."""
    cpu_seconds: float
    """Of pretraining, fine-tuning and scratch."""


def transfer_outcomes(
    agent_type: AgentName,
    *,
    seed: int,
    size: TransferSize | None = None,
    sources: tuple[Source, ...] = ("same", "opposite"),
) -> list[TransferOutcome]:
    """Pretrain an agent on each source, transfer it by each of `SETTINGS`, and judge it beside one scratch.

    Args:
        agent_type: which agent, by its recipe.
        seed: of agents, paths and starts; 0 to 4 are those that are reported.
        size: of paths and budgets; None is what is reported.
        sources: which.
    """
    size = size or TransferSize()
    path = _path(PHI, TARGET_VOLATILITY, size.n_test_bars, 2_000 + seed)
    learned_from = _path(PHI, TARGET_VOLATILITY, size.n_target_bars, 3_000 + seed)
    test, target = (TradingEnvironment(each.prices, ENVIRONMENT) for each in (path, learned_from))
    optima = {test: Optimum(path), target: Optimum(learned_from)}

    def score(agent: Any, env: TradingEnvironment) -> float:
        return optima[env].share(agent)

    outcomes: list[TransferOutcome] = []
    scratch: TransferReport | None = None
    for source in sources:
        began = time.process_time()
        phi = PHI if source == "same" else -PHI
        env = _market(phi, SOURCE_VOLATILITY, size.n_source_bars, 1_000 + seed)
        agent = create_rl_agent(
            agent_type, env.observation_space_dim, env.action_space_dim, RECIPES[agent_type], seed=seed
        )
        first = TransferLearningTrainer(agent).pretrain({source: env}, size.source_timesteps, n_envs=size.n_source_envs)
        zero_shot = {name: score(_student(first, name, target, size), test) for name in ("reset", "blend")}
        for setting, told in SETTINGS[source].items():
            trainer = TransferLearningTrainer(first.agent, **told)
            report = trainer.fine_tune(
                target,
                size.target_timesteps,
                eval_env=test,
                score=score,
                scratch=scratch is None,
                n_evaluations=size.target_timesteps // size.eval_timesteps,
                n_envs=size.n_envs,
            )
            scratch = scratch or report
            seconds, began = time.process_time() - began, time.process_time()
            frozen = frozen_unchanged(trainer, report) if trainer.schedule.freeze and not report.reinitialized else None
            key = {
                "agent": agent_type,
                "source": source,
                "setting": setting,
                "seed": seed,
                "optimum": optima[test].gain,
            }
            outcomes.append(_outcome(key, report, scratch, zero_shot, frozen, seconds))
    return outcomes


class Optimum:
    """What the best policy gains on a path, and which share of it others do.

    Args:
        path: of a market whose best policy is known.

    Attributes:
        gain: of the best policy, mean log return per bar.
    """

    def __init__(self, path: SyntheticMarket) -> None:
        assert isinstance(path.parameters, MarkovMarket)
        self.path = path
        policy = optimal_policy(path.parameters, cost_rate=COST_RATE, discount=DISCOUNT)
        self.gain = float(gain_of_optimum(policy, path, ENVIRONMENT).gains.mean())

    def share(self, agent: Any) -> float:
        """Return the agent's gain over the best policy's on the same bars."""
        return float(gain_of_agent(agent, self.path, ENVIRONMENT).gains.mean()) / self.gain


def frozen_unchanged(trainer: TransferLearningTrainer, report: TransferReport) -> bool:
    """Whether the modules that were frozen to the end are the pretrained agent's bit for bit."""
    ours, theirs = parameter_groups(report.agent), parameter_groups(trainer.agent)
    return all(
        torch.equal(one.parameter, other.parameter)
        for module in trainer.schedule.frozen(1.0)
        for one, other in zip(ours[module], theirs[module], strict=True)
    )


def _student(trainer: TransferLearningTrainer, normalizer: Any, target: TradingEnvironment, size: TransferSize) -> Any:
    scaled = TransferLearningTrainer(trainer.agent, normalizer=normalizer, blend_weight=size.n_target_bars)
    return scaled.student(target, n_envs=size.n_envs)


def _outcome(
    key: Mapping[str, Any],
    report: TransferReport,
    scratch: TransferReport,
    zero_shot: Mapping[str, float],
    frozen: bool | None,
    seconds: float,
) -> TransferOutcome:
    tuned, learned = report.curves[FINE_TUNED], scratch.curves[SCRATCH]
    asymptote = scratch.asymptote(SCRATCH)
    return TransferOutcome(
        **key,
        zero_shot=report.zero_shot,
        zero_shot_reset=zero_shot["reset"],
        zero_shot_blend=zero_shot["blend"],
        untrained=scratch.untrained,
        asymptote=report.asymptote(),
        scratch_asymptote=asymptote,
        timesteps_to_optimum=timesteps_to(tuned, LEARNED),
        scratch_timesteps_to_optimum=timesteps_to(learned, LEARNED),
        timesteps_to_scratch=timesteps_to(tuned, LEARNED * asymptote),
        scratch_timesteps_to_scratch=timesteps_to(learned, LEARNED * asymptote),
        frozen_unchanged=frozen,
        curve=[[float(n), float(tuned[n]), float(learned[n])] for n in tuned.index],
        cpu_seconds=seconds,
    )


def _path(phi: float, volatility: float, n_bars: int, seed: int) -> SyntheticMarket:
    return autoregressive(n_bars, phi=phi, volatility=volatility, seed=seed)


def _market(phi: float, volatility: float, n_bars: int, seed: int) -> TradingEnvironment:
    return TradingEnvironment(_path(phi, volatility, n_bars, seed).prices, ENVIRONMENT)
