"""Public reference tasks: what each agent must score on cheap Gymnasium environments, and the settings that get there.

Settings are those of the RL Zoo (rl-baselines3-zoo, `hyperparams/*.yml`) where it has the task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ml.tradingbots.components.a2c_agent import A2CConfig
from ml.tradingbots.components.ddpg_agent import DDPGConfig
from ml.tradingbots.components.rl_agents import DQNConfig, PPOConfig, create_rl_agent
from ml.tradingbots.components.sac_agent import SACConfig
from ml.tradingbots.components.td3_agent import TD3Config
from ml.tradingbots.components.vector_adapter import as_vector_env
from ml.tradingbots.training.evaluation import evaluate_episodes
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent

N_EVALUATION_EPISODES = 50
# Evaluation episodes start from states that no training seed below gives.
EVALUATION_SEED = 10_000


@dataclass(frozen=True)
class ReferenceTask:
    """An environment, an agent with its settings, and the score it must reach."""

    env_id: str
    agent_type: str
    config: Any
    total_timesteps: int
    n_envs: int
    required: float
    """Mean episode reward, the median over seeds, that must be reached."""
    zoo: float
    """What the RL Zoo reports for one trained model."""

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.env_id} {self.agent_type}"


@dataclass(frozen=True)
class ReferenceScore:
    """What one seed scored."""

    task: str
    seed: int
    mean: float
    """Mean reward of the evaluation episodes, acting deterministically."""
    std: float
    """Their standard deviation."""
    cpu_seconds: float
    """Processor time of the training."""
    wall_seconds: float
    """Time of the training."""


_TASKS = (
    ReferenceTask(
        "CartPole-v1",
        "ppo",
        PPOConfig(
            action_type="discrete",
            n_steps=32,
            batch_size=256,
            n_epochs=20,
            gamma=0.98,
            gae_lambda=0.8,
            learning_rate=1e-3,
            learning_rate_schedule="linear",
            clip_schedule="linear",
        ),
        total_timesteps=100_000,
        n_envs=8,
        required=475.0,
        zoo=500.0,
    ),
    ReferenceTask(
        "CartPole-v1",
        "a2c",
        A2CConfig(action_type="discrete"),
        total_timesteps=500_000,
        n_envs=8,
        required=450.0,
        zoo=500.0,
    ),
    ReferenceTask(
        "CartPole-v1",
        "dqn",
        DQNConfig(
            learning_rate=2.3e-3,
            batch_size=64,
            buffer_size=100_000,
            learning_starts=1_000,
            target_update_interval=10,
            train_freq=256,
            gradient_steps=128,
            epsilon_fraction=0.16,
            epsilon_end=0.04,
            dueling=False,
            double=False,
        ),
        total_timesteps=50_000,
        n_envs=1,
        required=450.0,
        zoo=500.0,
    ),
    ReferenceTask(
        "Acrobot-v1",
        "dqn",
        DQNConfig(
            learning_rate=6.3e-4,
            batch_size=128,
            buffer_size=50_000,
            learning_starts=0,
            target_update_interval=250,
            train_freq=4,
            gradient_steps=-1,
            epsilon_fraction=0.12,
            epsilon_end=0.1,
            dueling=False,
            double=False,
        ),
        total_timesteps=100_000,
        n_envs=1,
        required=-100.0,
        zoo=-76.6,
    ),
    ReferenceTask(
        "Pendulum-v1",
        "ppo",
        PPOConfig(
            n_steps=1_024,
            batch_size=64,
            n_epochs=10,
            gamma=0.9,
            gae_lambda=0.95,
            learning_rate=1e-3,
            gsde=True,
            gsde_sample_freq=4,
        ),
        total_timesteps=100_000,
        n_envs=4,
        required=-250.0,
        zoo=-172.2,
    ),
    ReferenceTask(
        "Pendulum-v1",
        "sac",
        SACConfig(learning_rate=1e-3, learning_starts=100),
        total_timesteps=20_000,
        n_envs=1,
        required=-200.0,
        zoo=-157.0,
    ),
    ReferenceTask(
        "Pendulum-v1",
        "td3",
        TD3Config(
            hidden_dims=(400, 300),
            noise_std=0.1,
            learning_rate=1e-3,
            gamma=0.98,
            buffer_size=200_000,
            learning_starts=10_000,
        ),
        total_timesteps=20_000,
        n_envs=1,
        required=-200.0,
        zoo=-151.9,
    ),
    ReferenceTask(
        "Pendulum-v1",
        "ddpg",
        DDPGConfig(
            hidden_dims=(400, 300),
            exploration_noise="gaussian",
            noise_std=0.1,
            learning_rate=1e-3,
            gamma=0.98,
            buffer_size=200_000,
            learning_starts=10_000,
        ),
        total_timesteps=20_000,
        n_envs=1,
        required=-200.0,
        zoo=-152.1,
    ),
    ReferenceTask(
        "MountainCarContinuous-v0",
        "sac",
        SACConfig(
            hidden_dim=64,
            learning_rate=3e-4,
            buffer_size=50_000,
            batch_size=512,
            auto_alpha=False,
            alpha=0.1,
            train_freq=32,
            gradient_steps=32,
            gamma=0.9999,
            tau=0.01,
            learning_starts=0,
            gsde=True,
            log_std_init=-3.67,
        ),
        total_timesteps=50_000,
        n_envs=1,
        required=90.0,
        zoo=94.7,
    ),
)
REFERENCE_TASKS = {task.name: task for task in _TASKS}


def reference_score(task: ReferenceTask, *, seed: int, torch_threads: int = 1) -> ReferenceScore:
    """Train an agent on a task and evaluate it over fifty episodes."""
    env = as_vector_env(task.env_id, n_envs=task.n_envs, seed=seed)
    space = env.single_action_space
    (state_dim,) = env.single_observation_space.shape
    action_dim = int(space.n) if hasattr(space, "n") else space.shape[0]
    agent = create_rl_agent(task.agent_type, state_dim, action_dim, task.config, seed=seed)
    training = RLTrainingConfig(
        total_timesteps=task.total_timesteps,
        n_envs=task.n_envs,
        seed=seed,
        normalize_observations=False,
        normalize_rewards=False,
        progress=False,
        torch_threads=torch_threads,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    train_rl_agent(agent, env, training)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = evaluate_episodes(agent, task.env_id, n_episodes=N_EVALUATION_EPISODES, seed=EVALUATION_SEED)
    return ReferenceScore(task.name, seed, float(scores.mean()), float(scores.std()), cpu, wall)
