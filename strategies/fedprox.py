r"""FedProx: FedAvg whose clients are held near the global model by a proximal term.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv:1812.06127. Definition 2: client k minimises

.. math:: h_k(w; w_t) = F_k(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2

with the norm *squared*, over the parameters (buffers are no part of w), and
:math:`w_t` the global model as received, held constant. The mean is FedAvg's.

Deviation: where the paper's solver, SGD, takes the term's gradient at the old point,
here its step on the term is implicit (backward Euler, the term's proximal operator).
After SGD has moved w to y by its step on :math:`F_k`,

.. math:: w^+ = w_t + (y - w_t) / (1 + \eta\mu)
          \iff w^+ = y - \eta \, \mu (w^+ - w_t)

so the pull is the term's gradient :math:`\mu (w - w_t)` at the new point. The points
where training comes to rest are those of h_k, and no mu is too large; the explicit step
diverges once eta mu > 2. With momentum beta, eta is the step's size in the long run,
:math:`\eta / (1 - \beta)`. Adam, whose steps do not grow with the gradient, is
given the term's gradient before its step. With mu = 0 no arithmetic is done at all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strategies.fedavg import FedAvg
from strategies.interfaces import LocalTraining, Memory

if TYPE_CHECKING:
    import torch
    from torch import nn

PROXIMAL_MU = "proximal-mu"
PROXIMAL_LOSS = "proximal-loss"


class FedProx(FedAvg):
    """FedAvg with a proximal term of weight mu in every client's objective."""

    def __init__(self, *, proximal_mu: float, **fedavg_options: Any) -> None:
        """Raises: ValueError: mu is negative."""
        super().__init__(**fedavg_options)
        if not proximal_mu >= 0:
            raise ValueError(f"proximal-mu must be >= 0, got {proximal_mu}")
        self.proximal_mu = proximal_mu

    def client_options(self, round: int) -> dict[str, float]:
        """Send mu along."""
        return {PROXIMAL_MU: self.proximal_mu}

    @staticmethod
    def client_train(
        model: "nn.Module",
        train: LocalTraining,
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> dict[str, float]:
        """Train on the objective with the term.

        The metrics gain `proximal-loss`, the value of the term at the end.
        """
        term = ProximalTerm(list(model.parameters()), float(options[PROXIMAL_MU]))
        metrics = train(term=term if term.mu > 0 else None)
        return metrics | {PROXIMAL_LOSS: term.value().item()}


class ProximalTerm:
    """mu / 2 * ||w - w_t||^2, with w_t the parameters as they are at construction."""

    implicit = True

    def __init__(self, parameters: "Sequence[torch.Tensor]", mu: float) -> None:
        self.mu = mu
        self._parameters = list(parameters)
        self._anchor = [p.detach().clone() for p in parameters]

    def value(self) -> "torch.Tensor":
        """Return the term, 0-dim; differentiable, with the gradient mu (w - w_t)."""
        import torch

        pairs = zip(self._parameters, self._anchor, strict=True)
        squares = [(w - w_t).square().sum() for w, w_t in pairs]
        return self.mu / 2 * torch.stack(squares).sum()

    def add_gradient(self) -> None:
        """Add mu (w - w_t) to the gradients of w."""
        import torch

        with torch.no_grad():
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            difference = torch._foreach_sub(self._parameters, self._anchor)
            torch._foreach_add_(gradients, difference, alpha=self.mu)

    def step(self, step_size: float) -> None:
        """Move w in place to w_t + (w - w_t) / (1 + step_size * mu); mu > 0."""
        import torch

        with torch.no_grad():
            pull = step_size * self.mu  # may be infinite: the result is then w_t
            torch._foreach_lerp_(self._parameters, self._anchor, 1 / (1 + 1 / pull))


STRATEGY = FedProx
