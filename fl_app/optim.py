"""SGD and Adam as single fused calls, equal bit for bit to `torch.optim`'s fused ones.

The first optimiser that `torch.optim` builds in a process imports 900 modules of its
compiler, 2.5 s for each node process, and each of its steps walks hooks and state
dictionaries that a local training of a few hundred steps has no use for.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Step = Callable[[], None]
"""Updates the parameters in place from their gradients."""


def sgd(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    max_gradient_norm: float = 0.0,
    kept: list[Tensor] | None = None,
) -> Step:
    """Return a step of stochastic gradient descent with (heavy-ball) momentum.

    The gradient g of all parameters together is scaled down to `max_gradient_norm` if
    it is longer (Pascanu et al. 2013, arXiv:1211.5063); 0 leaves it as it is. Then
    v <- momentum * v + (g + weight_decay * w), with v = g at first; w <- w - lr * v.
    Into `kept` go the tensors that the step keeps, each like its parameter.
    """
    moving = list(parameters)
    velocities = [torch.empty_like(p) for p in moving] if momentum else []
    if kept is not None:
        kept += velocities
    first = True

    def step() -> None:
        nonlocal first
        gradients = _gradients(moving)
        clip(gradients, max_gradient_norm)
        torch._fused_sgd_(
            moving,
            gradients,
            velocities,
            lr=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )
        first = False

    return torch.no_grad()(step)


def adam(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    max_gradient_norm: float = 0.0,
    kept: list[Tensor] | None = None,
) -> Step:
    """Return a step of Adam (Kingma and Ba 2015, arXiv:1412.6980), usual constants.

    The gradient is scaled down first, and `kept` is given, as in `sgd`.
    """
    moving = list(parameters)
    first = [torch.zeros_like(p) for p in moving]
    second = [torch.zeros_like(p) for p in moving]
    if kept is not None:
        kept += first + second
    counts = [torch.zeros((), device=p.device) for p in moving]

    def step() -> None:
        gradients = _gradients(moving)
        clip(gradients, max_gradient_norm)
        torch._foreach_add_(counts, 1)
        torch._fused_adam_(
            moving,
            gradients,
            first,
            second,
            [],
            counts,
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=weight_decay,
            amsgrad=False,
            maximize=False,
        )

    return torch.no_grad()(step)


def clip(gradients: list[Tensor], longest: float) -> None:
    """Scale the gradients in place so that their joint L2 norm is `longest` at most."""
    if longest:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(gradients) != len(parameters):
        raise RuntimeError("a parameter of the model takes no part in the loss")
    return gradients
