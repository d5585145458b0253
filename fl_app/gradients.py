"""A batch's loss and its gradient, left in the parameters' `grad`.

By automatic differentiation, or in closed form where the model is simple enough that
recording and replaying its operations takes longer than carrying them out.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_app import convolutional, softmax

log = logging.getLogger("flwr.fl_app")

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
        _warn_if_slow(device.type)
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@cache
def _warn_if_slow(device_type: str) -> None:
    """Say once in a process what makes it many times slower than it need be."""
    if said := slowness("bfloat16", device_type):
        log.warning("%s", said)


def slowness(precision: str, device_type: str) -> str:
    """Return why that precision is no gain on this machine's device; or ""."""
    if precision != "bfloat16" or _computes_bfloat16(device_type):
        return ""
    what = "GPU" if device_type == "cuda" else "processor"
    return (
        f"this {what} has no arithmetic for precision = 'bfloat16', which is emulated: "
        "precision = 'float32' may be many times as fast"
    )


def _computes_bfloat16(device_type: str) -> bool:
    """Whether there are instructions for it; True where nothing is known."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # Without them autocast falls back to loops over single numbers.
        known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return known is None or bool(known())
    return True


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
