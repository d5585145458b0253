"""A batch's loss and its gradient, left in the parameters' `grad`.

By automatic differentiation, or in closed form where the model is simple enough that
recording and replaying its operations takes longer than carrying them out.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Backpropagation = Callable[[Tensor, Tensor], Tensor]
"""From inputs (B, ...) and targets (B,) to the mean cross-entropy, in nats."""


def backpropagation(model: nn.Module, precision: str) -> Backpropagation:
    """Return what computes the model's loss and gradient, for that precision."""
    if precision == "float32" and _is_softmax_regression(model):
        return softmax_regression(model)
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

    With p = softmax(W x + b) and y the one-hot target, dW is the batch's mean of
    (p - y) x^T and db that of p - y (Bishop 2006, "Pattern Recognition and Machine
    Learning", equation 4.109).
    """
    weight, bias = model.parameters()

    def run(inputs: Tensor, targets: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        log_p = torch.addmm(bias, flat, weight.t()).log_softmax(1)
        loss = F.nll_loss(log_p, targets)
        of_target = targets.unsqueeze(1)
        residual = log_p.exp_()
        residual.scatter_add_(
            1, of_target, residual.new_full((), -1).expand_as(of_target)
        )
        residual.div_(len(targets))
        weight.grad = residual.t().mm(flat)
        bias.grad = residual.sum(0)
        return loss

    return torch.no_grad()(run)
