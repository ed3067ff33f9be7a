"""On which scale an agent that moved to another market sees its observations and rewards."""

from __future__ import annotations

from typing import Literal

import torch

from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.exploration import uniform_actions, uniform_choices
from ml.tradingbots.components.on_policy import OnPolicyAgent
from ml.tradingbots.components.vector_environment import TradingVectorEnv

NormalizerChoice = Literal["transfer", "reset", "blend"]
# Vector steps of random actions that tell how large the rewards of a market are.
N_PROBE_STEPS = 64


def set_scales(
    student: BaseAgent,
    pretrained: BaseAgent,
    env: TradingVectorEnv,
    *,
    normalizer: NormalizerChoice,
    blend_weight: int,
) -> None:
    """Give an agent in a new market the scales of observations and rewards that it learns with there.

    Args:
        student: the agent that will learn in `env`, with no timesteps yet.
        pretrained: the agent whose weights it has.
        env: accounts in the new market.
        normalizer: "transfer" keeps the mean and deviation of observations and the scale of rewards that the pretrained
            agent learned with; "reset" takes the new market's own; "blend" pools both.
        blend_weight: what the pretrained agent's statistics count for in a blend, in bars of the new market.

    Raises:
        ValueError: the pretrained agent has no statistics to blend.
    """
    if normalizer == "transfer":
        student.normalizer.load_state_dict(pretrained.normalizer.state_dict())
    elif normalizer == "reset":
        student.normalizer.fix(*env.observation_statistics())
    else:
        _blend_observations(student, pretrained, env, blend_weight)
    if normalizer != "reset":
        student.reward_scale = pretrained.reward_scale
    if isinstance(student, OnPolicyAgent) and isinstance(pretrained, OnPolicyAgent):
        _carry_returns(student, pretrained, normalizer, blend_weight)
    elif normalizer == "blend":
        _blend_rewards(student, env, blend_weight)
    else:
        student.scale_rewards = normalizer == "reset"


def _blend_observations(student: BaseAgent, pretrained: BaseAgent, env: TradingVectorEnv, weight: int) -> None:
    if pretrained.normalizer.mode == "off":
        raise ValueError(
            "normalizer='blend' needs the statistics of the source, and this agent saw its observations unscaled; "
            "pretrain it with TransferLearningTrainer.pretrain or train_rl_agent, or take normalizer='reset'"
        )
    source, (mean, std) = pretrained.normalizer.statistics, env.observation_statistics()
    n_bars = env.market.n_bars - env.market.first_bar
    share = weight / (weight + n_bars)
    apart = mean.double() - source.mean
    variance = share * source.var + (1.0 - share) * std.double().square() + share * (1.0 - share) * apart.square()
    student.normalizer.fix(source.mean + (1.0 - share) * apart, variance.sqrt())


def _carry_returns(student: OnPolicyAgent, pretrained: OnPolicyAgent, normalizer: str, weight: int) -> None:
    """Running deviation of discounted sums of rewards: kept as it is, begun anew, or gone on with at a weight."""
    student.scale_rewards = normalizer != "transfer"
    if normalizer != "reset":
        student.return_statistics.load_state_dict(pretrained.return_statistics.state_dict())
    if normalizer == "blend" and student.return_statistics.count:
        student.return_statistics.count = weight


def _blend_rewards(student: BaseAgent, env: TradingVectorEnv, weight: int) -> None:
    """Pool the variance of rewards under random actions."""
    n_bars = env.market.n_bars - env.market.first_bar
    share = weight / (weight + n_bars)
    here, there = random_reward_variance(student, env), student.reward_scale**-2.0
    student.reward_scale = (share * there + (1.0 - share) * here) ** -0.5 if here > 1e-24 else student.reward_scale
    student.scale_rewards = False


def random_reward_variance(agent: BaseAgent, env: TradingVectorEnv) -> float:
    """Measure the variance of rewards under uniformly random actions; draws nothing of the agent's, resets `env`."""
    generator = torch.Generator(device=agent.device).manual_seed(agent.seed)
    _, infos = env.reset()
    rewards = []
    for _ in range(N_PROBE_STEPS):
        if agent.is_discrete:
            mask = infos.get("action_mask")
            action = uniform_choices(env.num_envs, agent.n_branches, agent.action_dim, generator, agent.device, mask)
        else:
            action = uniform_actions(env.num_envs, agent.action_dim, generator, agent.device)
        _, reward, _, _, infos = env.step(agent.to_environment(action))
        rewards.append(reward)
    return float(torch.stack(rewards).double().var())
