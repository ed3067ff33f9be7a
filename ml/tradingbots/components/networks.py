"""Networks of the agents: small, explicit, and batched where several of one shape are always evaluated together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ml.tradingbots.components.affine import is_large, large_affine
from ml.tradingbots.components.distributions import LOG_STD_MAX, LOG_STD_MIN, squashed_gaussian_log_prob

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}
# A mean far outside [−1, 1] cannot be brought back by squashing's gradient (Raffin et al., 2021, reference code).
GSDE_MEAN_BOUND = 2.0
# Keeps the standard deviation of state-dependent noise away from 0 where all features are.
GSDE_VARIANCE_FLOOR = 1e-6


class BatchedMLP(nn.Module):
    """`n_networks` perceptrons of one shape, evaluated as one batched matrix product per layer.

    Args:
        n_networks: how many.
        sizes: input, hidden and output widths.
        activation: between layers.
        activate_last: whether the last layer is followed by the activation too.
        orthogonal: whether weights start orthogonal with gain √2 and biases at 0; otherwise as in `nn.Linear`.
    """

    def __init__(
        self,
        n_networks: int,
        sizes: Sequence[int],
        *,
        activation: str,
        activate_last: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.n_networks = n_networks
        self.activation = ACTIVATIONS[activation]
        self.n_activated = len(sizes) - 1 if activate_last else len(sizes) - 2
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for width_in, width_out in pairwise(sizes):
            bound = 1.0 / math.sqrt(width_in)  # What nn.Linear draws from.
            weight = torch.empty(n_networks, width_in, width_out).uniform_(-bound, bound)
            bias = torch.empty(n_networks, 1, width_out).uniform_(-bound, bound)
            if orthogonal:
                bias.zero_()
                for network in weight:
                    nn.init.orthogonal_(network, math.sqrt(2.0))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        # Asking a list of parameters for its entries costs more than a small product.
        self._layers = list(zip(self.weights, self.biases, strict=True))

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Evaluate all networks.

        Args:
            x: one input for all (batch, width), or one for each (n_networks, batch, width).
            frozen: whether the parameters are constants, to which no gradient goes.

        Returns:
            (n_networks, batch, width of the last layer).
        """
        if any(is_large(x, weight) for weight, _ in self._layers):
            # One after the other: the product of a batch of large matrices is no faster.
            parameters = [(weight.unbind(0), bias.unbind(0)) for weight, bias in self._parameters_of(frozen)]
            inputs = x.unbind(0) if x.ndim == 3 else [x] * self.n_networks
            networks = range(self.n_networks)
            return torch.stack([self._chain(inputs[n], [(w[n], b[n]) for w, b in parameters]) for n in networks])
        if x.ndim == 2:
            x = x.unsqueeze(0).expand(self.n_networks, -1, -1)
        for layer, (weight, bias) in enumerate(self._parameters_of(frozen)):
            x = torch.baddbmm(bias, x, weight)
            if layer < self.n_activated:
                x = self.activation(x)
        return x

    def evaluate(self, network: int, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Evaluate one of the networks; (batch, width) to (batch, width of the last layer)."""
        return self._chain(x, [(weight[network], bias[network]) for weight, bias in self._parameters_of(frozen)])

    def _parameters_of(self, frozen: bool) -> list[tuple[Tensor, Tensor]]:
        return [(weight.detach(), bias.detach()) for weight, bias in self._layers] if frozen else self._layers

    def _chain(self, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Walk through the layers of one network: weights (in, out) and biases (1, out)."""
        for layer, (weight, bias) in enumerate(layers):
            is_hidden = layer < self.n_activated
            x = _layer(x, weight, bias, self.activation if is_hidden else None)
        return x


def _layer(x: Tensor, weight: Tensor, bias: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """One layer of a perceptron; (rows, in) to (rows, out), weight (in, out), bias (out,) or (1, out)."""
    if is_large(x, weight):
        relu = activation is torch.relu
        x = large_affine(x, weight, bias.view(-1), relu=relu)
        return x if relu or activation is None else activation(x)
    x = torch.addmm(bias, x, weight)
    return x if activation is None else activation(x)


class Body(nn.Module):
    """An encoder and hidden layers: from observations to the features that a head reads."""

    def __init__(self, encoder: nn.Module, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.encoder = encoder
        sizes: list[int] = [encoder.output_dim, *widths]  # type: ignore[list-item]
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        # Asking modules for their parameters costs more than a small product.
        self.parameters_of_layers: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in layers]
        self.activation = ACTIVATIONS[activation]
        self.output_dim = widths[-1]

    def forward(self, observation: Tensor) -> Tensor:
        """(batch, state_dim) to (batch, output_dim)."""
        x: Tensor = self.encoder(observation)
        for weight, bias in self.parameters_of_layers:
            x = _layer(x, weight.T, bias, self.activation)
        return x


class SquashedGaussianActor(nn.Module):
    """Gaussian policy squashed by tanh into [−1, 1] (Haarnoja et al., 2018, appendix C).

    With `gsde` the noise is a linear function of the features (Raffin et al., 2021, "Smooth Exploration for Robotic
    Reinforcement Learning", equation 8): its standard deviation is √(Σ featureⱼ² σⱼ²), σ learned and the same everywhere.
    """

    def __init__(self, body: Body, action_dim: int, *, gsde: bool = False, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.gsde = gsde
        self.head = nn.Linear(body.output_dim, action_dim if gsde else 2 * action_dim)
        if gsde:
            self.log_std = nn.Parameter(torch.full((body.output_dim, action_dim), log_std_init))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing; (batch, action_dim) each."""
        features = self.body(observation)
        if self.gsde:
            mean = self.head(features).clamp(-GSDE_MEAN_BOUND, GSDE_MEAN_BOUND)
            return mean, gsde_log_std(features, self.log_std)
        mean, log_std = self.head(features).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def deterministic(self, observation: Tensor) -> Tensor:
        """Return the squashed mean; (batch, action_dim)."""
        mean, _ = self(observation)
        return torch.tanh(mean)

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Turn standard normal noise (batch, action_dim) into actions and their log-probabilities.

        Returns:
            Actions in [−1, 1] (batch, action_dim) and log-probabilities (batch,).
        """
        mean, log_std = self(observation)
        before_squash = mean + log_std.exp() * noise
        return torch.tanh(before_squash), squashed_gaussian_log_prob(noise, log_std, before_squash)

    def explore(self, observation: Tensor, matrices: Tensor) -> Tensor:
        """Return actions with state-dependent noise; `matrices` is (batch, features, action_dim)."""
        features = self.body(observation)
        mean = self.head(features).clamp(-GSDE_MEAN_BOUND, GSDE_MEAN_BOUND)
        return torch.tanh(mean + gsde_noise(features, self.log_std, matrices))


def gsde_log_std(features: Tensor, log_std: Tensor) -> Tensor:
    """Log standard deviation of state-dependent noise.

    Args:
        features: (batch, n_features); detach them where the noise must not shape them.
        log_std: of the noise matrix's entries; (n_features, action_dim).

    Returns:
        (batch, action_dim).
    """
    variance = features.square() @ log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp().square()
    return 0.5 * (variance + GSDE_VARIANCE_FLOOR).log()


def gsde_noise(features: Tensor, log_std: Tensor, matrices: Tensor) -> Tensor:
    """State-dependent noise from standard normal matrices (batch, n_features, action_dim); (batch, action_dim)."""
    return torch.einsum("bf,bfa->ba", features, matrices * log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp())


class DeterministicActor(nn.Module):
    """A policy that answers one action, squashed by tanh into [−1, 1] (Lillicrap et al., 2016)."""

    def __init__(self, body: Body, action_dim: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.output_dim, action_dim)

    def forward(self, observation: Tensor) -> Tensor:
        """(batch, state_dim) to (batch, action_dim)."""
        return torch.tanh(self.head(self.body(observation)))


class Critic(nn.Module):
    """One or several Q-functions of (observation, action); several share the encoder and nothing else."""

    def __init__(
        self, encoder: nn.Module, action_dim: int, widths: Sequence[int], *, activation: str, n_critics: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width: int = encoder.output_dim  # type: ignore[assignment]
        self.mlp = BatchedMLP(n_critics, [width + action_dim, *widths, 1], activation=activation)

    def forward(self, observation: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return all values; (n_critics, batch). `frozen` spends no gradient on the critics, only on the action."""
        values: Tensor = self.mlp(torch.cat([self.encoder(observation), action], -1), frozen=frozen)
        return values.squeeze(-1)

    def first(self, observation: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the first critic's values; (batch,)."""
        return self.mlp.evaluate(0, torch.cat([self.encoder(observation), action], -1), frozen=frozen).squeeze(-1)


class ActorCritic(nn.Module):
    """A policy and a value function with nothing in common but their shape, so that both are one batched product.

    Weights start orthogonal with gain √2, the policy's head with 0.01, the value's with 1, biases at 0 (Andrychowicz et al.,
    2021, "What Matters in On-Policy Reinforcement Learning?").

    Args:
        encoders: what reads the observation, for policy and value.
        widths: hidden layers of each.
        n_outputs: of the policy: means or logits.
        activation: between layers.
        log_std: first value of the log standard deviation, of the shape it is learned in; None for logits.
    """

    def __init__(
        self,
        encoders: tuple[nn.Module, nn.Module],
        widths: Sequence[int],
        n_outputs: int,
        *,
        activation: str,
        log_std: Tensor | None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.is_plain = not any(True for _ in self.encoders.parameters())
        width: int = encoders[0].output_dim  # type: ignore[assignment]
        self.body = BatchedMLP(2, [width, *widths], activation=activation, activate_last=True, orthogonal=True)
        self.policy_head = _orthogonal(nn.Linear(widths[-1], n_outputs), 0.01)
        self.value_head = _orthogonal(nn.Linear(widths[-1], 1), 1.0)
        if log_std is not None:
            self.log_std = nn.Parameter(log_std)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the policy's output (batch, n_outputs), its features (batch, width) and the value (batch,)."""
        encoded = observation if self.is_plain else torch.stack([encoder(observation) for encoder in self.encoders])
        features, value_features = self.body(encoded).unbind(0)
        return self.policy_head(features), features, self.value_head(value_features).squeeze(-1)

    def policy(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's output and its features without evaluating the value."""
        features = self._features(0, observation)
        return nn.functional.linear(features, self.policy_head.weight, self.policy_head.bias), features

    def value(self, observation: Tensor) -> Tensor:
        """Return the value alone; (batch,)."""
        features = self._features(1, observation)
        return nn.functional.linear(features, self.value_head.weight, self.value_head.bias).squeeze(-1)

    def _features(self, network: int, observation: Tensor) -> Tensor:
        return self.body.evaluate(network, observation if self.is_plain else self.encoders[network](observation))


class BranchingQNetwork(nn.Module):
    """Values of discrete choices, one branch of choices per asset (Tavakoli et al., 2018, "Action Branching Architectures").

    Dueling (Wang et al., 2016, equation 9): Q = V + A − mean of A over the choices of the branch, V shared by all branches.
    """

    def __init__(
        self, encoder: nn.Module, widths: Sequence[int], action_dim: int, *, activation: str, dueling: bool
    ) -> None:
        super().__init__()
        self.body = Body(encoder, widths, activation)
        self.advantage_head = nn.Linear(widths[-1], action_dim)
        self.value_head = nn.Linear(widths[-1], 1) if dueling else None

    def forward(self, observation: Tensor, n_branches: int) -> Tensor:
        """(batch, state_dim) to (batch, n_branches, choices of a branch)."""
        return self.values(self.body(observation), n_branches)

    def values(self, features: Tensor, n_branches: int) -> Tensor:
        """The same from the features (batch, width)."""
        advantage = nn.functional.linear(features, self.advantage_head.weight, self.advantage_head.bias)
        # Sizes spelled out: an export keeps the batch free, and an empty batch leaves nothing to infer.
        advantage = advantage.view(features.shape[0], n_branches, advantage.shape[1] // n_branches)
        if self.value_head is None:
            return advantage
        value: Tensor = self.value_head(features).unsqueeze(-1)
        return value + advantage - advantage.mean(-1, keepdim=True)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def soft_update(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """Move target parameters a share `tau` towards the online ones, all in one call."""
    torch._foreach_lerp_(list(target), list(online), tau)
