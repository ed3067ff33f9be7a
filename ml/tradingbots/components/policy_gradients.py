"""The gradient of an actor-critic's loss in closed form, for perceptrons that read the observation as it is.

With networks of 64 units, autograd's bookkeeping costs more than the arithmetic. The losses are written once more with their
derivatives, by hand; `tests/ml/test_policy_gradients.py` holds them against autograd. Encoders, state-dependent noise and
compiled losses stay with autograd.
"""

from __future__ import annotations

from collections.abc import Callable

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
from ml.tradingbots.components.networks import ActorCritic
from ml.tradingbots.components.optimizers import scale_down

# Gradient before an activation, from the gradient after it and the activation's value.
_DERIVATIVES: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    torch.tanh: torch.ops.aten.tanh_backward,
    torch.relu: lambda gradient, value: torch.ops.aten.threshold_backward(gradient, value, 0.0),
}


class PolicyGradient:
    """Evaluates an `ActorCritic` and writes the gradients of a loss L(log-probabilities, entropy, values) to its parameters.

    Args:
        network: it; its encoders must have no parameters, its noise must not depend on the state.
    """

    def __init__(self, network: ActorCritic) -> None:
        self.network = network
        self._layers = list(zip(network.body.weights, network.body.biases, strict=True))
        self._heads = (network.policy_head, network.value_head)
        self._activation = network.body.activation
        self._derivative = _DERIVATIVES[network.body.activation]
        # All gradients in one row: one call finds their norm, one scales them.
        parameters = list(network.parameters())
        self._row = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
        parts = self._row.split([parameter.numel() for parameter in parameters])
        self._gradients = {
            parameter: part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)
        }

    def suits(self, observation: Tensor) -> bool:
        """Whether it is faster than autograd here: not where single products are large."""
        return not any(is_large(observation, weight) for weight, _ in self._layers)

    @torch.no_grad()
    def evaluate(
        self, observation: Tensor, action: Tensor, mask: Tensor | None, n_branches: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability (batch,), mean entropy () and value (batch,), and keep what `backward` needs.

        `n_branches` is the number of choices made at once, 0 where actions are numbers.
        """
        self._n_branches = n_branches
        x = observation.unsqueeze(0).expand(2, -1, -1)
        self._values = [x]  # Of every layer, the input first; (2, batch, width).
        for weight, bias in self._layers:
            x = self._activation(torch.baddbmm(bias, x, weight))
            self._values.append(x)
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
        gradients = self._gradients
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        output = self._choices(log_prob, entropy) if self._n_branches else self._numbers(log_prob, entropy)
        policy, value_head = self._heads
        (features, value_features), column = self._values[-1], value[:, None]
        torch.mm(output.T, features, out=gradients[policy.weight])
        torch.sum(output, 0, out=gradients[policy.bias])
        torch.mm(column.T, value_features, out=gradients[value_head.weight])
        torch.sum(column, 0, out=gradients[value_head.bias])
        behind = torch.empty_like(self._values[-1])
        torch.mm(output, policy.weight, out=behind[0])
        torch.mm(column, value_head.weight, out=behind[1])
        for number in reversed(range(len(self._layers))):
            weight, bias = self._layers[number]
            behind = self._derivative(behind, self._values[number + 1])
            torch.bmm(self._values[number].mT, behind, out=gradients[weight])
            torch.sum(behind, 1, keepdim=True, out=gradients[bias])
            if number:
                behind = torch.bmm(behind, weight.mT)

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> None:
        """Scale the gradients so that their norm is at most `max_norm`; None leaves them."""
        if max_norm is not None:
            scale_down([self._row], torch.linalg.vector_norm(self._row), max_norm)

    def _numbers(self, log_prob: Tensor, entropy: float) -> Tensor:
        """∂L/∂ means of a Gaussian; writes that of its log standard deviation, in which the entropy grows by 1 per entry."""
        scaled = self._scaled
        weighted = log_prob[:, None] * scaled  # ln N = −½z² − ln σ − …, z = (a − μ)/σ.
        torch.add((weighted * scaled).sum(0), entropy - log_prob.sum(), out=self._gradients[self.network.log_std])
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
