"""Which parameters of an agent do what: encoder, trunk or heads, and how far from the answer they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ml.tradingbots.components.base_agent import BaseAgent
from ml.tradingbots.components.encoders import WindowEncoder
from ml.tradingbots.components.networks import (
    ActorCritic,
    BatchedMLP,
    Body,
    BranchingQNetwork,
    Critic,
    DeterministicActor,
    SquashedGaussianActor,
)

ModuleName = Literal["encoder", "trunk", "heads"]
MODULES: tuple[ModuleName, ...] = get_args(ModuleName)
# Where an agent's target networks come from; they follow these.
TARGETS = {"actor_target": "actor", "critic_target": "critic", "target_network": "network"}
# How widely an agent explores, as opposed to what it thinks is best.
EXPLORATION = ("log_std", "log_alpha")


@dataclass(frozen=True, eq=False)
class ParameterLayer:
    """One parameter of an agent, and where it stands."""

    name: str
    """As in the agent's file, e.g. "actor.body.layers.0.weight"."""
    parameter: Tensor
    depth: int
    """Layers between it and the answer: 0 in a head, 1 in the last hidden layer, more below."""


def parameter_groups(agent: BaseAgent) -> dict[ModuleName, list[ParameterLayer]]:
    """Sort everything that an agent's optimisers move into encoder, trunk and heads, in actors and critics alike.

    The encoder reads the window (it has no parameters where `network` is "mlp"); the trunk is the hidden layers; heads are
    the last layers, and with them what belongs to no layer: standard deviations of policies and SAC's temperature. Critics
    of one batched perceptron have their last layer as head.

    Returns:
        Lists by module, in the order of the agent's file; target networks, which follow others, are not among them.

    Raises:
        RuntimeError: the agent has not met its environment yet and has no networks.
        TypeError: a network is of a kind that is not known here.
    """
    agent._require_networks()
    groups: dict[ModuleName, list[ParameterLayer]] = {name: [] for name in MODULES}
    for name in agent.learned:
        value = getattr(agent, name)
        if name in TARGETS or not isinstance(value, (nn.Module, Tensor)):
            continue
        if isinstance(value, Tensor):
            if value.requires_grad:
                groups["heads"].append(ParameterLayer(name, value, 0))
            continue
        places = {id(parameter): (module, depth) for module, depth, parameter in _places(value)}
        for own, parameter in value.named_parameters():
            module, depth = places[id(parameter)]
            groups[module].append(ParameterLayer(f"{name}.{own}", parameter, depth))
    return groups


def check_modules(names: Iterable[str], what: str) -> tuple[ModuleName, ...]:
    """Return names of modules as given once they are known to be some; raises ValueError."""
    if isinstance(names, str):
        raise ValueError(f"{what} must be a tuple of modules, got the text {names!r}; write ({names!r},)")
    if not isinstance(names, Iterable):
        raise ValueError(f"{what} must be a tuple of modules, got {names!r}; () for none")
    given = tuple(names)
    for name in given:
        if name not in MODULES:
            raise ValueError(f"{what} must name modules out of {', '.join(MODULES)}, got {name!r}")
    return tuple(name for name in MODULES if name in given)


def optimizers_of(agent: BaseAgent) -> Iterator[torch.optim.Optimizer]:
    """Yield every optimiser that an agent owns."""
    for name in agent.learned:
        value = getattr(agent, name)
        if isinstance(value, torch.optim.Optimizer):
            yield value


@torch.no_grad()
def copy_parameters(source: BaseAgent, target: BaseAgent, *, modules: Iterable[str], exploration: bool) -> None:
    """Give an agent the parameters of another one of the same kind and shape, in place.

    Args:
        source: whose they are.
        target: who gets them; its target networks, too, become what its networks then are.
        modules: which of encoder, trunk and heads.
        exploration: whether standard deviations and temperature go along with the heads.
    """
    ours, theirs = parameter_groups(target), parameter_groups(source)
    for module in check_modules(modules, "modules"):
        for to, come in zip(ours[module], theirs[module], strict=True):
            if exploration or not to.name.endswith(EXPLORATION):
                to.parameter.copy_(come.parameter)
    align_targets(target)


@torch.no_grad()
def align_targets(agent: BaseAgent) -> None:
    """Put an agent's target networks where its networks are; what is frozen in one then stands still in the other."""
    for target, online in TARGETS.items():
        if target in agent.learned:
            getattr(agent, target).load_state_dict(getattr(agent, online).state_dict())


def _places(network: nn.Module) -> Iterator[tuple[ModuleName, int, Tensor]]:
    """Yield module, depth and parameter for every parameter of a network."""
    if isinstance(network, (SquashedGaussianActor, DeterministicActor)):
        yield from _body(network.body)
        yield from _heads(network.head, getattr(network, "log_std", None))
    elif isinstance(network, BranchingQNetwork):
        yield from _body(network.body)
        yield from _heads(network.advantage_head, network.value_head)
    elif isinstance(network, Critic):
        n_hidden = len(network.mlp.weights) - 1
        yield from _encoder(network.encoder, n_hidden)
        yield from _batched(network.mlp, n_hidden)
    elif isinstance(network, ActorCritic):
        n_hidden = len(network.body.weights)
        for encoder in network.encoders:
            yield from _encoder(encoder, n_hidden)
        yield from _batched(network.body, n_hidden)
        yield from _heads(network.policy_head, network.value_head, getattr(network, "log_std", None))
    else:
        raise TypeError(
            f"cannot tell the modules of a {type(network).__name__} apart; name its parameters in parameter_groups.py"
        )


def _body(body: Body) -> Iterator[tuple[ModuleName, int, Tensor]]:
    n_hidden = len(body.layers)
    yield from _encoder(body.encoder, n_hidden)
    for number, layer in enumerate(body.layers):
        for parameter in layer.parameters():
            yield "trunk", n_hidden - number, parameter


def _batched(mlp: BatchedMLP, n_hidden: int) -> Iterator[tuple[ModuleName, int, Tensor]]:
    for number, pair in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        module: ModuleName = "trunk" if number < n_hidden else "heads"
        for parameter in pair:
            yield module, n_hidden - number, parameter


def _encoder(encoder: nn.Module, n_hidden: int) -> Iterator[tuple[ModuleName, int, Tensor]]:
    """An encoder's own last layer comes after the rest of it."""
    last = {id(parameter) for parameter in encoder.head.parameters()} if isinstance(encoder, WindowEncoder) else set()
    for parameter in encoder.parameters():
        yield "encoder", n_hidden + (1 if id(parameter) in last else 2), parameter


def _heads(*parts: Any) -> Iterator[tuple[ModuleName, int, Tensor]]:
    for part in parts:
        for parameter in part.parameters() if isinstance(part, nn.Module) else [] if part is None else [part]:
            yield "heads", 0, parameter
