"""Settings that all predictors share, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ml.tradingbots.components.config_checks import check_field_types, check_seed
from ml.tradingbots.components.forecast_heads import HeadName, make_head


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Hyperparameters of every predictor.

    Raises:
        TypeError: a value has another type than its field.
        ValueError: a value is out of range.
    """

    window_size: int = 32
    """Bars in an input."""
    horizons: tuple[int, ...] = (1,)
    """Bars ahead, increasing: the targets are log returns over each."""
    features: tuple[str, ...] = ("log_return",)
    """What is seen of each bar: names of `list_features()` or columns of the data."""
    volatility_bars: int = 0
    """Look-back of the volatility that targets are divided by, where markets are calm and wild by turns; 0 does not divide."""
    head: HeadName = "gaussian"
    """Distribution that is predicted."""
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
    """Levels that the quantile head learns; for other heads any levels can be asked for."""
    asset_dim: int = 0
    """Length of an embedding of the asset, learned; 0 treats all assets alike, also those never seen."""
    learning_rate: float = 1e-3
    batch_size: int = 256
    """Windows per gradient step."""
    max_epochs: int = 50
    """Passes over the training windows, at most."""
    patience: int = 5
    """Epochs without a better validation loss that end training."""
    validation_share: float = 0.2
    """Share of the origins, the last ones, that decide when to stop; those before whose targets reach in are left out."""
    weight_decay: float = 0.0
    """Decoupled (AdamW), per unit of learning rate."""
    max_grad_norm: float | None = 1.0
    """Longest gradient; None does not clip."""
    clip: float = 10.0
    """Size beyond which standardised features are cut."""
    seed: int = 0
    """Of first weights, shuffling and dropout. Nothing global is used."""
    device: str = "cpu"
    """Where it is fitted and asked; one that cannot be used is refused by `fit`."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_seed(self.seed)
        at_least_one = ("window_size", "batch_size", "max_epochs", "patience")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons must be increasing numbers of bars, at least 1, got {self.horizons}")
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError(f"features must name each feature once, got {self.features}")
        if self.volatility_bars < 0 or self.volatility_bars == 1:
            raise ValueError(f"volatility_bars must be 0 or at least 2, got {self.volatility_bars}")
        for name in ("asset_dim", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}; None does not clip")
        if not 0.0 < self.validation_share < 1.0:
            raise ValueError(f"validation_share must be in (0, 1), got {self.validation_share}")
        make_head(self.head, self.quantiles)

    @property
    def values_per_window(self) -> int:
        """Numbers that the widest layer makes of one window, about."""
        return self.window_size * (len(self.features) + self.asset_dim)


def available_devices() -> tuple[str, ...]:
    """Return the devices that networks can be on here, the processor first."""
    accelerators = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}
    return ("cpu", *(f"{name}:{n}" for name, kind in accelerators.items() for n in range(kind.device_count())))


def can_use(device: str) -> bool:
    """Return whether networks can be on a device here; "cuda" is the first of its kind."""
    try:
        asked = torch.device(device)
    except RuntimeError:  # No name of a device.
        return False
    return asked.type == "cpu" or f"{asked.type}:{asked.index or 0}" in available_devices()


def check_device(device: str) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        TypeError: it is no name.
        ValueError: there is no such device.
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'cpu', got {device!r}")
    if not can_use(device):
        raise ValueError(
            f"device must be one that can be used here, {', '.join(available_devices())}, got {device!r}; "
            "use device='cpu', which always can"
        )
