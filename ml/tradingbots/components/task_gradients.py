"""Gradient surgery for tasks that disagree (Yu et al., 2020, "Gradient Surgery for Multi-Task Learning", PCGrad)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def project_conflicts(gradients: Tensor, generator: torch.Generator) -> Tensor:
    """Take from each task's gradient what points against another's, and add up what is left (algorithm 1 of the paper).

    g_i ← g_i − (g_i·g_j / |g_j|²) g_j for the other tasks j in random order, wherever g_i·g_j < 0; g_j as it was at first.

    Args:
        gradients: one row for each task; (n_tasks, n_parameters).
        generator: what draws the orders.

    Returns:
        The sum of the projected gradients; (n_parameters,).
    """
    sizes = gradients.square().sum(1)
    total = torch.zeros_like(gradients[0])
    for task, gradient in enumerate(gradients):
        projected = gradient.clone()
        for other in torch.randperm(len(gradients), generator=generator, device=gradients.device).tolist():
            if other == task:
                continue
            against = torch.dot(projected, gradients[other])
            if bool((against < 0.0) & (sizes[other] > 0.0)):
                projected -= (against / sizes[other]) * gradients[other]
        total += projected
    return total


def with_surgery(
    loss_of: Callable[..., Any], parameters: Sequence[Tensor], n_tasks: int, generator: torch.Generator
) -> Callable[..., Any]:
    """Return a loss whose value is that of `loss_of` and whose gradient is the tasks' gradients after surgery.

    `loss_of` is called once for each task with the rows that are its own; the gradients count by their shares of the rows,
    so that without conflicts their sum is the gradient of the whole batch. What it says beside the loss is put together:
    a number for each row in its place, other numbers as means over rows.

    Args:
        loss_of: a mean over rows; returns the loss, or a tuple that begins with it.
        parameters: those that the loss is to be taken down by.
        n_tasks: entries at the end of an observation that say which task a row is of.
        generator: what draws the orders.
    """

    def combined(*arguments: Any) -> Any:
        task = _observation(arguments[0])[:, -n_tasks:].argmax(1)
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        found, rows_of, gradients = [], [], []
        for number in range(n_tasks):
            rows = (task == number).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            answer = loss_of(*(_rows(argument, rows, len(task)) for argument in arguments))
            loss = answer[0] if isinstance(answer, tuple) else answer
            parts = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            share = len(rows) / len(task)
            gradients.append(share * torch.cat([part.flatten() for part in parts]))
            found.append(_detached(answer))
            rows_of.append(rows)
        total = project_conflicts(torch.stack(gradients), generator)
        pieces = torch.split(total, [parameter.numel() for parameter in wanted])
        # Worth nothing, and its gradient is the one found: whoever descends this loss takes the step of the surgery.
        pairs = zip(wanted, pieces, strict=True)
        slope = torch.stack([((parameter - parameter.detach()).flatten() @ piece) for parameter, piece in pairs]).sum()
        joined = _joined(found, rows_of, len(task))
        return (joined[0] + slope, *joined[1:]) if isinstance(joined, tuple) else joined + slope

    return combined


def _observation(argument: Any) -> Tensor:
    """Return the observations in the first argument of a loss: they, a record or a tuple that holds them."""
    if isinstance(argument, Tensor):
        return argument
    found: Tensor = argument[0] if isinstance(argument, (tuple, list)) else argument.observation
    return found


def _rows(argument: Any, rows: Tensor, n_rows: int) -> Any:
    """Return the rows of whatever has as many; other arguments are for all."""
    if isinstance(argument, Tensor):
        return argument.index_select(0, rows) if argument.ndim and len(argument) == n_rows else argument
    if isinstance(argument, (tuple, list)):
        return tuple(_rows(item, rows, n_rows) for item in argument)
    if dataclasses.is_dataclass(argument) and not isinstance(argument, type):
        fields = {field.name: getattr(argument, field.name) for field in dataclasses.fields(argument)}
        return dataclasses.replace(argument, **{name: _rows(item, rows, n_rows) for name, item in fields.items()})
    return argument


def _detached(answer: Any) -> Any:
    return tuple(map(_detached, answer)) if isinstance(answer, tuple) else answer.detach()


def _joined(answers: list[Any], rows_of: list[Tensor], n_rows: int) -> Any:
    """Put together what the losses of the tasks said."""
    if isinstance(answers[0], tuple):
        return tuple(_joined(list(parts), rows_of, n_rows) for parts in zip(*answers, strict=True))
    if answers[0].ndim == 0:
        shares = torch.tensor([len(rows) / n_rows for rows in rows_of], device=answers[0].device)
        return (torch.stack(answers) * shares).sum()
    whole = answers[0].new_empty((n_rows, *answers[0].shape[1:]))
    for rows, part in zip(rows_of, answers, strict=True):
        whole[rows] = part
    return whole
