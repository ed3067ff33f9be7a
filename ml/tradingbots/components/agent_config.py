"""What the configs of all agents share: fields, their units and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ml.tradingbots.components.config_checks import check_field_types

# Far beyond what learns from prices: a digit too many must be a message, not a machine without memory.
MAX_HIDDEN_DIM = 65_536
MAX_LAYERS = 64

ActionType = Literal["continuous", "discrete"]


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Hyperparameters that every agent has."""

    network: Literal["mlp", "cnn", "lstm", "transformer"] = "mlp"
    """What reads the observation: "mlp" takes it as it is; the others read the window of market features, row by row, and
    join the account features after it. They need a market environment, which says how its window is made."""
    hidden_dim: int = 256
    """Width of every hidden layer, and of what a window is turned into."""
    n_layers: int = 2
    """Hidden layers of each network."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths layer by layer, (400, 300) for instance; None is `n_layers` times `hidden_dim`."""
    activation: Literal["relu", "tanh"] = "relu"
    """Between layers."""
    learning_rate: float = 3e-4
    """Step size of the optimisers."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """"linear" lets the step size fall to 0 over the timesteps of the run."""
    gamma: float = 0.99
    """Discount per environment step, in [0, 1)."""
    max_grad_norm: float | None = None
    """Norm to which the gradient of each optimiser's parameters, taken together, is clipped; None leaves it."""
    compile: bool = False
    """Whether losses are compiled by `torch.compile`: needs a C++ compiler and about a minute; same results to rounding."""

    def __post_init__(self) -> None:
        check_field_types(self)
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must be in [0, 1), got {self.gamma}")
        check_positive(self, "learning_rate")
        check_positive(self, "max_grad_norm", optional=True)
        check_at_least_one(self, "hidden_dim", "n_layers")
        widths = self.hidden_dims
        if widths is not None and (not widths or min(widths) < 1):
            raise ValueError(f"hidden_dims must be widths of at least 1, layer by layer, got {widths}; or None")
        if max(self.hidden_dim, *(widths or (1,))) > MAX_HIDDEN_DIM:
            raise ValueError(
                f"hidden_dim must be at most {MAX_HIDDEN_DIM}, got {max(self.hidden_dim, *(widths or (1,)))}"
            )
        if max(self.n_layers, len(widths or ())) > MAX_LAYERS:
            raise ValueError(f"n_layers must be at most {MAX_LAYERS}, got {max(self.n_layers, len(widths or ()))}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return self.hidden_dims if self.hidden_dims is not None else (self.hidden_dim,) * self.n_layers


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(AgentConfig):
    """Hyperparameters of agents that learn from a replay memory."""

    buffer_size: int = 1_000_000
    """Transitions kept in the replay memory."""
    batch_size: int = 256
    """Transitions per gradient step."""
    learning_starts: int = 1_000
    """Environment timesteps of uniformly random actions before the first gradient step."""
    train_freq: int = 1
    """Vector steps between blocks of gradient steps."""
    gradient_steps: int = 1
    """Gradient steps per block; −1 takes one per transition collected since the last block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "buffer_size", "batch_size", "train_freq")
        if self.gradient_steps != -1:
            check_at_least_one(self, "gradient_steps")
        if not 0 <= self.learning_starts <= self.buffer_size:
            raise ValueError(
                f"learning_starts ({self.learning_starts}) must be between 0 and buffer_size ({self.buffer_size}): "
                "beyond it the first transitions would be overwritten before they are learned from"
            )


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(AgentConfig):
    """Hyperparameters of agents that learn from what their present policy just did."""

    action_type: ActionType = "continuous"
    """Kind of actions of the environment: a Gaussian policy, or one categorical policy per choice."""
    hidden_dim: int = 64
    activation: Literal["relu", "tanh"] = "tanh"
    max_grad_norm: float | None = 0.5
    gae_lambda: float = 0.95
    """Share of the error that is passed back one more step, in [0, 1] (GAE)."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy in the loss."""
    value_coef: float = 0.5
    """Weight of the mean squared error of the value in the loss."""
    normalize_advantages: bool = True
    """Whether advantages are centred and divided by their standard deviation, per gradient step."""
    log_std_init: float = 0.0
    """First logarithm of the Gaussian policy's standard deviation, actions being in [−1, 1]."""
    gsde: bool = False
    """Whether exploration noise depends on the state and stays for a while (Raffin et al., 2021); continuous actions only."""
    gsde_sample_freq: int = -1
    """Vector steps between draws of that noise; −1 draws once per rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "gae_lambda")
        for name in ("entropy_coef", "value_coef"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        check_gsde(self, self.action_type)


def check_gsde(config: Any, action_type: ActionType = "continuous") -> None:
    """Check the fields of state-dependent exploration."""
    if config.gsde_sample_freq != -1 and config.gsde_sample_freq < 1:
        raise ValueError(f"gsde_sample_freq must be at least 1, or -1, got {config.gsde_sample_freq}")
    if config.gsde and action_type == "discrete":
        raise ValueError("gsde needs continuous actions: leave it False with action_type='discrete'")
    if not -20.0 <= config.log_std_init <= 2.0:
        raise ValueError(f"log_std_init must be in [-20, 2], got {config.log_std_init}")


def check_positive(config: Any, *names: str, optional: bool = False) -> None:
    """Check that fields are greater than 0; None passes where it is optional."""
    for name in names:
        value = getattr(config, name)
        if not (optional and value is None) and not value > 0.0:
            raise ValueError(f"{name} must be a positive number, got {value}")


def check_at_least_one(config: Any, *names: str) -> None:
    """Check that fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def check_fraction(config: Any, *names: str) -> None:
    """Check that fields are in [0, 1]."""
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}")


def check_share(config: Any, *names: str) -> None:
    """Check that fields are in (0, 1]."""
    for name in names:
        if not 0.0 < getattr(config, name) <= 1.0:
            raise ValueError(f"{name} must be in (0, 1], got {getattr(config, name)}")
