"""Hyperparameters in one frozen config, reached by name: scikit-learn's protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self


class Configured:
    """Something with one config, whose fields are its hyperparameters.

    Args:
        config: hyperparameters; None takes the class's defaults.
        **changes: single hyperparameters, in place of the config's.
    """

    config_class: ClassVar[type[Any]]
    config: Any

    def __init__(self, config: Any = None, **changes: Any) -> None:
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self._check_names(changes)
        self.config = dataclasses.replace(config or self.config_class(), **changes)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyperparameters by name; `deep` is not used."""
        return {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}

    def set_params(self, **params: Any) -> Self:
        """Change hyperparameters; what was learned is forgotten.

        Raises:
            ValueError: a name is unknown or a value is refused.
        """
        self._check_names(params)
        fresh = type(self)(dataclasses.replace(self.config, **params))
        self.__dict__.clear()
        self.__dict__.update(fresh.__dict__)
        return self

    def __sklearn_clone__(self) -> Self:
        return type(self)(self.config)

    def _check_names(self, params: Mapping[str, Any]) -> None:
        known = [field.name for field in dataclasses.fields(self.config_class)]
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ValueError(
                f"unknown hyperparameter {unknown[0]!r} of {self.config_class.__name__}; known are {', '.join(known)}"
            )

    def __repr__(self) -> str:
        """The class and what differs from its defaults."""
        default = self.config_class()
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != getattr(default, name)]
        return f"{type(self).__name__}({', '.join(changed)})"
