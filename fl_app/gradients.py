"""A batch's loss and its gradient, left in the parameters' `grad`.

By automatic differentiation, or in closed form where the model is simple enough that
recording and replaying its operations takes longer than carrying them out.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_app import convolutional, softmax

Backpropagation = Callable[[Tensor, Tensor], Tensor]
"""From inputs (B, ...) and targets (B,) to the mean cross-entropy, in nats."""


def backpropagation(model: nn.Module, precision: str) -> Backpropagation:
    """Return what computes the model's loss and gradient, for that precision."""
    if precision == "float32" and _is_softmax_regression(model):
        return softmax_regression(model)
    # Several threads are of more use to PyTorch's convolutions.
    if precision == "float32" and torch.get_num_threads() == 1:
        return convolutional.network(model) or automatic(model, precision)
    return automatic(model, precision)


def automatic(model: nn.Module, precision: str) -> Backpropagation:
    """Return automatic differentiation, in bfloat16 where autocast sees fit."""
    parameters = list(model.parameters())
    chosen = arithmetic(precision, parameters[0].device)

    def run(inputs: Tensor, targets: Tensor) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        with chosen:
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return run


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which losses of that precision are computed."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _is_softmax_regression(model: nn.Module) -> bool:
    if type(model) is not nn.Sequential or len(model) != 2:
        return False
    first, last = model
    exactly = type(first) is nn.Flatten and type(last) is nn.Linear
    return exactly and last.bias is not None


def softmax_regression(model: nn.Module) -> Backpropagation:
    """Return the closed form for a linear layer on flattened inputs x.

    With r the gradient by its outputs W x + b, dW is the batch's sum of r x^T and db
    that of r.
    """
    weight, bias = model.parameters()

    def run(inputs: Tensor, targets: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        logits = torch.addmm(bias, flat, weight.t())
        loss, residual = softmax.cross_entropy(logits, targets)
        weight.grad = residual.t().mm(flat)
        bias.grad = residual.sum(0)
        return loss

    return torch.no_grad()(run)
