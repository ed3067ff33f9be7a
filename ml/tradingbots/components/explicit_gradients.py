"""Gradients of losses in closed form, for perceptrons that read the observation as it is.

With networks of 64 units, autograd's bookkeeping costs more than the arithmetic. The losses are written once more with their
derivatives, by hand; `tests/ml/test_explicit_gradients.py` holds them against autograd. Encoders, state-dependent noise and
compiled losses stay with autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ml.tradingbots.components.affine import is_large
from ml.tradingbots.components.distributions import (
    categorical_entropy,
    categorical_log_prob,
    gaussian_entropy,
    log_probabilities,
    standardized_log_prob,
)
from ml.tradingbots.components.networks import ActorCritic, BranchingQNetwork
from ml.tradingbots.components.optimizers import scale_down

# Gradient before an activation, from the gradient after it and the activation's value.
_DERIVATIVES: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    torch.tanh: torch.ops.aten.tanh_backward,
    torch.relu: lambda gradient, value: torch.ops.aten.threshold_backward(gradient, value, 0.0),
}


def covers(agent: type, names: Sequence[str]) -> bool:
    """Whether an agent's class writes its gradients for the very methods it has: none of `names` was overridden below."""

    def depth(name: str) -> int:
        return next(number for number, owner in enumerate(agent.__mro__) if name in vars(owner))

    return all(depth("_write_explicitly") <= depth(name) for name in names)


class ExplicitGradient:
    """Hidden layers forward and backward, and a row that holds the gradients of all parameters.

    Args:
        parameters: all parameters of the network.
        layers: weights and biases of the hidden layers: (out, in) and (out,) as in `nn.Linear`, or (n, in, out) and
            (n, 1, out) as in `BatchedMLP`.
        activation: after every one of them.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        layers: Sequence[tuple[Tensor, Tensor]],
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        parameters = list(parameters)
        # In one row: one call finds their norm, one scales them.
        sizes = [parameter.numel() for parameter in parameters]
        self._row = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        parts = torch.split(self._row, sizes)
        self.gradients = {parameter: part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)}
        is_batched = layers[0][0].ndim == 3
        self._parameters = layers  # Not views of them, which would go stale where a parameter gets other numbers.
        self._transposed = not is_batched
        self._layer_gradients = [
            (self.gradients[weight] if is_batched else self.gradients[weight].T, self.gradients[bias])
            for weight, bias in layers
        ]
        self._activation, self._derivative = activation, _DERIVATIVES[activation]
        self._affine: Callable[..., Tensor] = torch.baddbmm if is_batched else torch.addmm
        self._product: Callable[..., Tensor] = torch.bmm if is_batched else torch.mm
        self._keeps_axis = is_batched

    def suits(self, observation: Tensor) -> bool:
        """Whether it may stand for autograd here: not where products are large, parameters frozen, or types changed."""
        device = observation.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return False
        if not all(parameter.requires_grad for parameter in self.gradients):
            return False
        return not any(is_large(observation, weight) for weight, _ in self._layers())

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights (…, in, out) and biases."""
        return [(weight.T, bias) for weight, bias in self._parameters] if self._transposed else list(self._parameters)

    @torch.no_grad()
    def clip(self, max_norm: float | None, frozen: Iterable[Tensor] = ()) -> None:
        """Scale the gradients so that their norm is at most `max_norm`; None leaves them.

        Those of `frozen` parameters become 0 first: what does not move must not shorten the step of what does.
        """
        for parameter in frozen:
            self.gradients[parameter].zero_()
        if max_norm is not None:
            scale_down([self._row], torch.linalg.vector_norm(self._row), max_norm)

    def _features(self, x: Tensor) -> Tensor:
        """Walk forward through the hidden layers, and keep their values; (…, batch, in) to (…, batch, width)."""
        self._values, self._walked = [x], self._layers()
        for weight, bias in self._walked:
            x = self._activation(self._affine(bias, x, weight))
            self._values.append(x)
        return x

    def _descend(self, behind: Tensor) -> None:
        """Walk backward through them, from the gradient with respect to the features."""
        for number in reversed(range(len(self._walked))):
            weight_gradient, bias_gradient = self._layer_gradients[number]
            behind = self._derivative(behind, self._values[number + 1])
            self._product(self._values[number].mT, behind, out=weight_gradient)
            torch.sum(behind, -2, keepdim=self._keeps_axis, out=bias_gradient)
            if number:
                behind = self._product(behind, self._walked[number][0].mT)

    def _head(self, head: torch.nn.Linear, features: Tensor, output: Tensor) -> None:
        """Write the gradients of a head, from those with respect to its output."""
        torch.mm(output.T, features, out=self.gradients[head.weight])
        torch.sum(output, 0, out=self.gradients[head.bias])

    def _hand_over(self) -> None:
        for parameter, gradient in self.gradients.items():
            parameter.grad = gradient


class PolicyGradient(ExplicitGradient):
    """Evaluates an `ActorCritic` and writes the gradients of a loss L(log-probabilities, entropy, values) to its parameters.

    Args:
        network: it; its encoders must have no parameters, its noise must not depend on the state.
    """

    def __init__(self, network: ActorCritic) -> None:
        body = network.body
        super().__init__(network.parameters(), list(zip(body.weights, body.biases, strict=True)), body.activation)
        self.network = network
        self._heads = (network.policy_head, network.value_head)

    @torch.no_grad()
    def evaluate(
        self, observation: Tensor, action: Tensor, mask: Tensor | None, n_branches: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability (batch,), mean entropy () and value (batch,), and keep what `backward` needs.

        `n_branches` is the number of choices made at once, 0 where actions are numbers.
        """
        self._n_branches = n_branches
        x = self._features(observation.unsqueeze(0).expand(2, -1, -1))
        policy, value = self._heads
        output = torch.addmm(policy.bias, x[0], policy.weight.T)
        values = torch.addmv(value.bias, x[1], value.weight[0])
        if n_branches:
            self._log_probs, self._choice = log_probabilities(output, n_branches, mask), action.long()
            log_prob = categorical_log_prob(self._log_probs, self._choice)
            return log_prob, categorical_entropy(self._log_probs).mean(), values
        log_std = self.network.log_std
        self._inverse = (-log_std).exp()
        self._scaled = (action - output) * self._inverse
        return standardized_log_prob(self._scaled, log_std), gaussian_entropy(log_std), values

    @torch.no_grad()
    def backward(self, log_prob: Tensor, entropy: float, value: Tensor) -> None:
        """Write the gradients of all parameters.

        Args:
            log_prob: ∂L/∂ of every log-probability; (batch,).
            entropy: ∂L/∂ of the mean entropy.
            value: ∂L/∂ of every value; (batch,).
        """
        output = self._choices(log_prob, entropy) if self._n_branches else self._numbers(log_prob, entropy)
        policy, value_head = self._heads
        features, column = self._values[-1], value[:, None]
        self._head(policy, features[0], output)
        self._head(value_head, features[1], column)
        behind = torch.empty_like(features)
        torch.mm(output, policy.weight, out=behind[0])
        torch.mm(column, value_head.weight, out=behind[1])
        self._descend(behind)
        self._hand_over()

    def _numbers(self, log_prob: Tensor, entropy: float) -> Tensor:
        """∂L/∂ means of a Gaussian; writes that of its log standard deviation, in which the entropy grows by 1 per entry."""
        scaled = self._scaled
        weighted = log_prob[:, None] * scaled  # ln N = −½z² − ln σ − …, z = (a − μ)/σ.
        torch.add((weighted * scaled).sum(0), entropy - log_prob.sum(), out=self.gradients[self.network.log_std])
        return weighted * self._inverse

    def _choices(self, log_prob: Tensor, entropy: float) -> Tensor:
        """∂L/∂ logits of independent choices, log-probability ln p[c] and entropy −Σ p ln p of each branch."""
        log_probs = self._log_probs
        probability = log_probs.exp()
        gradient = -log_prob[:, None, None] * probability
        gradient.scatter_add_(-1, self._choice.unsqueeze(-1), log_prob[:, None, None].expand(-1, self._n_branches, 1))
        if entropy:
            surprise = probability * log_probs
            gradient -= (entropy / len(log_prob)) * (surprise - probability * surprise.sum(-1, keepdim=True))
        return gradient.flatten(1)


class ValueGradient(ExplicitGradient):
    """Evaluates a `BranchingQNetwork` and writes the gradients of a loss of its values to its parameters.

    Args:
        network: it; its encoder must have no parameters.
    """

    def __init__(self, network: BranchingQNetwork) -> None:
        super().__init__(network.parameters(), network.body.parameters_of_layers, network.body.activation)
        self.network = network

    @torch.no_grad()
    def evaluate(self, observation: Tensor, n_branches: int) -> Tensor:
        """Return the values (batch, n_branches, choices), and keep what `backward` needs."""
        return self.network.values(self._features(observation), n_branches)

    @torch.no_grad()
    def backward(self, values: Tensor) -> None:
        """Write the gradients of all parameters; `values` is ∂L/∂ of every value, (batch, n_branches, choices)."""
        network, features = self.network, self._values[-1]
        if network.value_head is None:
            behind = self._behind(network.advantage_head, features, values.flatten(1))
        else:  # Q = V + A − mean A.
            advantage = values - values.mean(-1, keepdim=True)
            behind = self._behind(network.advantage_head, features, advantage.flatten(1))
            behind += self._behind(network.value_head, features, values.sum((1, 2))[:, None])
        self._descend(behind)
        self._hand_over()

    def _behind(self, head: torch.nn.Linear, features: Tensor, output: Tensor) -> Tensor:
        self._head(head, features, output)
        return output @ head.weight
