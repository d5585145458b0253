r"""FedProx: FedAvg whose clients are held near the global model by a proximal term.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv:1812.06127. Definition 2: client k minimises

.. math:: h_k(w; w_t) = F_k(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2

with the norm *squared*, over the parameters (buffers are no part of w), and
:math:`w_t` the global model as received, held constant. The mean is FedAvg's.

Deviation: where the paper's solver takes the term's gradient at the old point, here the
step on the term is implicit (backward Euler, the term's proximal operator). After the
optimiser has moved w to y by its step on :math:`F_k`,

.. math:: w^+ = w_t + (y - w_t) / (1 + \eta\mu)
          \iff w^+ = y - \eta \, \mu (w^+ - w_t)

so the pull is the term's gradient :math:`\mu (w - w_t)` at the new point. For plain
gradient steps the stationary points are those of h_k; the two differ by a factor
1 + O(eta mu) in the pull; and no mu is too large: the explicit step diverges once
eta mu > 2. With mu = 0 the factor is exactly 1, and no arithmetic is done at all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strategies.fedavg import FedAvg, LocalTraining

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
        model: "nn.Module", train: LocalTraining, options: Mapping[str, Any]
    ) -> dict[str, float]:
        """Train with a pull to the received model after each step.

        The metrics gain `proximal-loss`, the value of the term at the end.
        """
        mu = float(options[PROXIMAL_MU])
        parameters = list(model.parameters())
        anchor = [p.detach().clone() for p in parameters]

        def pull(learning_rate: float) -> None:
            proximal_step(parameters, anchor, mu, learning_rate)

        metrics = train(after_step=pull if mu > 0 else None)
        term = proximal_term(parameters, anchor, mu)
        return metrics | {PROXIMAL_LOSS: term.item()}


def proximal_term(
    parameters: "Sequence[torch.Tensor]", anchor: "Sequence[torch.Tensor]", mu: float
) -> "torch.Tensor":
    """Return mu / 2 * ||w - w_t||^2 as a 0-dim tensor; its gradient is mu (w - w_t)."""
    import torch

    squares = [
        (w - w_t.detach()).square().sum()
        for w, w_t in zip(parameters, anchor, strict=True)
    ]
    return mu / 2 * torch.stack(squares).sum()


def proximal_step(
    parameters: "Sequence[torch.Tensor]",
    anchor: "Sequence[torch.Tensor]",
    mu: float,
    learning_rate: float,
) -> None:
    """Move w in place to its proximal point, w_t + (w - w_t) / (1 + eta mu); mu > 0."""
    import torch

    with torch.no_grad():
        pull = learning_rate * mu  # may be infinite: the result is then the anchor
        torch._foreach_lerp_(list(parameters), list(anchor), 1 / (1 + 1 / pull))


STRATEGY = FedProx
