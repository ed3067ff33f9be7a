"""Carrying what an agent learned in some markets to another one, and saying honestly what that brought.

The pretrained agent is an ordinary agent: `trainer.agent.save(path)`, `TransferLearningTrainer(load_rl_agent(path))`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import pandas as pd

from ml.tradingbots.components.agent_spaces import check_fits
from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.config_checks import check_seed
from ml.tradingbots.components.freezing import FreezingSchedule, anchors_of
from ml.tradingbots.components.multi_market import MultiMarketVectorEnv
from ml.tradingbots.components.parameter_groups import MODULES, ModuleName, check_modules, copy_parameters
from ml.tradingbots.components.policy_scores import Score, ScoreName, score_of
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.transfer_results import FINE_TUNED, SCRATCH, TransferReport
from ml.tradingbots.components.transfer_scaling import NormalizerChoice, set_scales
from ml.tradingbots.components.vector_environment import TradingVectorEnv

# Length of training episodes that start at a random bar, where an environment leaves it open: a year of daily bars.
RANDOM_EPISODE_BARS = 252

OnNegative = Literal["warn", "reinitialize"]


class TransferLearningTrainer:
    """Pretrains an agent on several markets at once and fine-tunes copies of it on others.

    Args:
        agent: from `create_rl_agent` or `load_rl_agent`; any kind.
        normalizer: on which scale observations and rewards are seen in the target market: "transfer" keeps the source's,
            "reset" takes the target's own, "blend" pools both by counts.
        blend_weight: what the source's statistics count for in a blend, in bars of the target.
        freeze: modules that stand still, out of encoder, trunk and heads, in actors and critics alike; see
            `parameter_groups`. An agent with network="mlp" has no encoder.
        unfreeze_at: modules that begin to move at a share of the timesteps, e.g. {0.3: ("trunk",), 0.6: ("encoder",)}.
        layer_decay: factor of the step size per layer away from the head, in (0, 1].
        learning_rate_factor: factor of the step size of everything that moves, the temperature included.
        l2_sp: pull towards the pretrained weights (Li et al., 2018).
        reinitialize: modules that begin with new first weights in the target market, e.g. ("heads",).
        reset_exploration: whether the agent explores as a new one does: standard deviations, temperature and schedules
            begin anew. False carries them over, timesteps so far included.
        on_negative: what to do where the transferred agent begins worse than an untrained one: "reinitialize", where that
            is so on the prices to learn from, throws away what was transferred, the source's scales included, and freezes
            nothing; "warn" only says so in the report.
        seed: of fine-tuned agents and starts; scratch has the next one. None takes the agent's.

    Raises:
        TypeError: `agent` is none of ours.
        ValueError: a setting is refused.
    """

    def __init__(
        self,
        agent: BaseAgent,
        *,
        normalizer: NormalizerChoice = "transfer",
        blend_weight: int = 1_000,
        freeze: tuple[ModuleName, ...] = ("encoder", "trunk"),
        unfreeze_at: Mapping[float, tuple[ModuleName, ...]] | None = None,
        layer_decay: float = 1.0,
        learning_rate_factor: float = 1.0,
        l2_sp: float = 0.0,
        reinitialize: tuple[ModuleName, ...] = (),
        reset_exploration: bool = True,
        on_negative: OnNegative = "reinitialize",
        seed: int | None = None,
    ) -> None:
        if not isinstance(agent, BaseAgent):
            raise TypeError(f"agent must be one of create_rl_agent or load_rl_agent, got {type(agent).__name__}")
        for name, value, choices in (
            ("normalizer", normalizer, NormalizerChoice),
            ("on_negative", on_negative, OnNegative),
        ):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(choices)))}, got {value!r}")
        if isinstance(blend_weight, bool) or not isinstance(blend_weight, int) or blend_weight < 1:
            raise ValueError(f"blend_weight must be a whole number of bars of at least 1, got {blend_weight!r}")
        self.agent = agent
        self.normalizer, self.blend_weight, self.on_negative = normalizer, blend_weight, on_negative
        self.schedule = FreezingSchedule(
            freeze=freeze,
            unfreeze_at=unfreeze_at or {},
            layer_decay=layer_decay,
            learning_rate_factor=learning_rate_factor,
            l2_sp=l2_sp,
        )
        self.reinitialize = check_modules(reinitialize, "reinitialize")
        if frozen := [name for name in self.reinitialize if name in self.schedule.freeze]:
            raise ValueError(
                f"{frozen[0]!r} is in reinitialize and in freeze: first weights that stand still learn nothing; take it "
                "out of one of them"
            )
        self.reset_exploration = bool(reset_exploration)
        self.seed = agent.seed if seed is None else check_seed(seed)

    def pretrain(
        self, environments: Mapping[str, TradingEnvironment], total_timesteps: int, *, n_envs: int = 16
    ) -> TransferLearningTrainer:
        """Train the agent on several markets at once: every update sees all of them, so that none is forgotten.

        Args:
            environments: a `TradingEnvironment` for each market, by name; the same features and actions.
            total_timesteps: transitions to collect, summed over accounts and markets.
            n_envs: accounts in each market.

        Returns:
            The trainer itself; `agent` has learned.
        """
        _check_counts(total_timesteps=total_timesteps, n_envs=n_envs)
        if hasattr(self.agent, "add_regimes"):
            raise TypeError(
                "a RegimeAwareAgent's specialists train on one market each time, not on several at once: train it by "
                "train_rl_agent(agent, env) in one market; fine_tune then carries it over"
            )
        env = source_accounts(environments, n_envs=n_envs, device=str(self.agent.device), seed=self.seed)
        self.agent.bind(env)
        _scale_fresh(self.agent, env)
        for _ in _learning(self.agent, env, total_timesteps):
            pass
        return self

    def student(self, target_env: TradingEnvironment, *, n_envs: int = 16) -> BaseAgent:
        """Return a new agent that begins in a target market with what the pretrained one knows; it has no memory.

        Where the pretrained agent says until when it has seen prices (`environment_spec["seen_until"]`), so does the student.
        Optimisers begin anew, target networks stand where the networks do. Rates are not set: `schedule.apply` does that,
        or the callback `training.fine_tuning.FineTuning` in a run of `train_rl_agent`.

        Raises:
            TypeError, ValueError: the agent cannot see or act in the target market.
        """
        self.check_target(target_env)
        env = target_accounts(target_env, n_envs=n_envs, device=str(self.agent.device), seed=self.seed)
        student = self._new_agent(self.seed, env)
        if (seen := self.agent.environment_spec.get("seen_until")) is not None:
            student.environment_spec = student.environment_spec | {"seen_until": seen}
        kept = [name for name in MODULES if name not in self.reinitialize]
        copy_parameters(self.agent, student, modules=kept, exploration=not self.reset_exploration)
        if not self.reset_exploration:
            student.num_timesteps = self.agent.num_timesteps
        set_scales(student, self.agent, env, normalizer=self.normalizer, blend_weight=self.blend_weight)
        return student

    def scratch(self, target_env: TradingEnvironment, *, n_envs: int = 16, seed_offset: int = 1) -> BaseAgent:
        """Return a new agent of the same config that knows nothing, on the target market's own scales."""
        self.check_target(target_env)
        env = target_accounts(target_env, n_envs=n_envs, device=str(self.agent.device), seed=self.seed)
        agent = self._new_agent(self.seed + seed_offset, env)
        _scale_fresh(agent, env)
        return agent

    def fine_tune(
        self,
        target_env: TradingEnvironment,
        total_timesteps: int,
        *,
        eval_env: TradingEnvironment | None = None,
        scratch: bool = True,
        n_evaluations: int = 20,
        n_envs: int = 16,
        score: ScoreName | Score = "sharpe_ratio",
        threshold: float | None = None,
    ) -> TransferReport:
        """Fine-tune a copy of the pretrained agent in a target market, and compare it with learning there from scratch.

        The pretrained agent is not changed, so that calls do not add up.

        Args:
            target_env: prices to learn from.
            total_timesteps: transitions to learn from, for the copy and again for scratch.
            eval_env: prices to score on, which nobody learns from; None scores on the prices learned from.
            scratch: whether to learn from scratch too; without it there is nothing to compare with.
            n_evaluations: scores on a curve, besides the one before the first step.
            n_envs: accounts that collect side by side.
            score: "sharpe_ratio" (annualised), "log_growth" (mean log return per bar), or a function of agent and
                environment; of the deterministic policy, after costs.
            threshold: score that counts as learned; None is 90% of scratch's asymptote.

        Returns:
            Curves and measures; `report.agent` is the fine-tuned agent.
        """
        _check_counts(total_timesteps=total_timesteps, n_envs=n_envs, n_evaluations=n_evaluations)
        if threshold is not None and (
            isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold)
        ):
            raise ValueError(f"threshold must be a finite score or None, got {threshold!r}")
        self.check_target(target_env)
        if eval_env is not None:
            self.check_target(eval_env, "eval_env")
        rate, judged = _checked(score_of(score)), eval_env if eval_env is not None else target_env
        student, new = self.student(target_env, n_envs=n_envs), self.scratch(target_env, n_envs=n_envs)
        zero_shot, untrained = rate(student, judged), rate(new, judged)
        starts_over = self.harms(student, new, target_env, rate)
        schedule: FreezingSchedule | None = self.schedule
        if starts_over:
            student, schedule = self.scratch(target_env, n_envs=n_envs, seed_offset=0), None
        every = total_timesteps / n_evaluations
        curves = {}
        for name, agent, its_schedule in ((FINE_TUNED, student, schedule), (SCRATCH, new, None)):
            if name == SCRATCH and not scratch:
                continue
            env = target_accounts(target_env, n_envs=n_envs, device=str(agent.device), seed=agent.seed)
            points = {0: rate(agent, judged)}
            for before, now in _learning(agent, env, total_timesteps, its_schedule):
                if now // every > before // every or now >= total_timesteps:
                    points[now] = rate(agent, judged)
            curves[name] = pd.Series(points)
        return TransferReport(
            curves=pd.DataFrame(curves).rename_axis("timesteps"),
            zero_shot=zero_shot,
            untrained=untrained,
            score=score if isinstance(score, str) else getattr(score, "__name__", "score"),
            out_of_sample=eval_env is not None,
            reinitialized=starts_over,
            threshold_given=threshold,
            settings=self.settings(),
            agent=student,
            scratch_agent=new if scratch else None,
        )

    def harms(self, student: BaseAgent, new: BaseAgent, target_env: TradingEnvironment, score: Score) -> bool:
        """Whether what was transferred is to be thrown away: judged on prices to learn from, never on those held back."""
        return self.on_negative == "reinitialize" and score(student, target_env) < score(new, target_env)

    def settings(self) -> dict[str, Any]:
        """Return what a transfer is done with, plain values."""
        schedule = dataclasses.asdict(self.schedule)
        own = ("normalizer", "blend_weight", "reinitialize", "reset_exploration", "on_negative", "seed")
        return {"agent_type": self.agent.agent_type, **schedule, **{name: getattr(self, name) for name in own}}

    def check_target(self, env: TradingEnvironment, what: str = "the target") -> None:
        """Refuse a target market that the agent cannot see or act in, by what differs.

        Raises:
            TypeError: it is no `TradingEnvironment`, or takes another kind of actions.
            ValueError: it shows other observations, or bounds weights differently.
        """
        if not isinstance(env, TradingEnvironment):
            raise TypeError(f"{what} must be a TradingEnvironment, got {type(env).__name__}")
        agent, now = self.agent, env.specification()
        agent._require_networks()
        before = agent.environment_spec
        differing = [
            f"{what} {_named(before[what])} before, {_named(now[what])} here"
            for what in ("features", "assets")
            if what in before
            and (before[what] != now[what] if what == "features" else len(before[what]) != len(now[what]))
        ]
        windows = [spec.get("config", {}).get("window_size") for spec in (before, now)]
        if windows[0] is not None and windows[0] != windows[1]:
            differing.append(f"window_size {windows[0]} before, {windows[1]} here")
        if env.observation_space_dim != agent.state_dim or differing:
            why = "; ".join(differing) or "make both environments with the same TradingEnvConfig"
            raise ValueError(
                f"the agent was pretrained on observations of {agent.state_dim} numbers, the target shows "
                f"{env.observation_space_dim}, and weights do not carry over to others: {why}. Give the target the same "
                "features, window_size and number of assets, or pretrain on markets like it"
            )
        check_fits(env.action_space, agent)
        limits = [spec.get("config", {}) for spec in (before, now)]
        changed = [
            f"{name} {limits[0][name]} before, {limits[1][name]} here"
            for name in ("allow_short", "max_weight")
            if name in limits[0] and limits[0][name] != limits[1][name]
        ]
        if changed:
            raise ValueError(
                f"the same output of the policy would be another position in the target: {'; '.join(changed)}. Give the "
                "target the same bounds of actions, or pretrain with those that it has"
            )

    def _new_agent(self, seed: int, env: TradingVectorEnv) -> BaseAgent:
        agent = self.agent
        new = type(agent)(agent.state_dim, agent.action_dim, agent.config, device=str(agent.device), seed=seed)
        new.bind(env)
        return new


def source_accounts(
    environments: Mapping[str, TradingEnvironment], *, n_envs: int, device: str = "cpu", seed: int = 0
) -> MultiMarketVectorEnv:
    """Return accounts in all source markets side by side that start at random bars; errors as `MultiMarketVectorEnv`."""
    checked = MultiMarketVectorEnv(environments, n_envs=1)  # What is refused is refused before lengths are asked for.
    lengths = [_episode_bars(environments[name]) for name in checked.names]
    return MultiMarketVectorEnv(
        environments, n_envs=n_envs, device=device, seed=seed, random_start=True, episode_length=min(lengths)
    )


def target_accounts(env: TradingEnvironment, *, n_envs: int, device: str = "cpu", seed: int = 0) -> TradingVectorEnv:
    """Return accounts in a target market that start at random bars."""
    return env.vectorize(n_envs, device=device, seed=seed, random_start=True, episode_length=_episode_bars(env))


def _episode_bars(env: TradingEnvironment) -> int:
    legal = env.market.last_bar - env.market.first_bar
    return env.config.episode_length or max(min(RANDOM_EPISODE_BARS, legal // 2), 1)


def _learning(
    agent: BaseAgent, env: Any, total_timesteps: int, schedule: FreezingSchedule | None = None
) -> Iterator[tuple[int, int]]:
    """Walk and learn to a budget; yields timesteps before and after every vector step."""
    offset, before, anchors = agent.num_timesteps, 0, None
    agent.schedule_timesteps = offset + total_timesteps
    if schedule is not None:
        anchors = anchors_of(agent) if schedule.l2_sp else None
        schedule.apply(agent, 0.0, anchors)
    for report in agent.training_steps(env):
        now = report.num_timesteps - offset
        if schedule is not None and schedule.changes(before / total_timesteps, now / total_timesteps):
            schedule.apply(agent, now / total_timesteps, anchors)
        yield before, now
        before = now
        if now >= total_timesteps:
            break
    if schedule is not None:
        FreezingSchedule(freeze=()).apply(agent)  # Who trains it on is to find all of it free.
    agent.scale_rewards = False  # The scale that was found stays.


def _scale_fresh(agent: BaseAgent, env: Any) -> None:
    if agent.num_timesteps == 0:
        agent.normalizer.fix(*env.observation_statistics())
    agent.scale_rewards = True


def _checked(score: Score) -> Score:
    """Return a score that is refused where it is no number."""

    def rate(agent: Any, env: TradingEnvironment) -> float:
        value: Any = score(agent, env)  # Whoever wrote it may return anything.
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"score must return a finite number for an agent and an environment, got {value!r}")
        return float(value)

    return rate


def _named(value: Any) -> str:
    return f"({', '.join(map(str, value))})"


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < math.inf:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
