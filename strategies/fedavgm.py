r"""FedAvgM: FedAvg with momentum on the server.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019, arXiv:1909.06335, section 4.3. With
:math:`\Delta_t` FedAvg's mean update of round t:

.. math:: v_t = \beta v_{t-1} + \Delta_t, \qquad w_{t+1} = w_t + \eta v_t

Deviations: the server's learning rate eta, 1 in the paper; the momentum is plain, not
Nesterov's, which the paper's experiments use. With beta = 0 and eta = 1 it is FedAvg,
bit for bit.
"""

from typing import Any

from strategies.server_optimizer import Array, ServerOptimizer


class FedAvgM(ServerOptimizer):
    """FedAvg whose global model moves with momentum."""

    SLOTS = ("momentum",)

    def __init__(self, *, momentum: float, **options: Any) -> None:
        """Raises: ValueError: the momentum is not in [0, 1)."""
        super().__init__(**options)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum

    def step(self, name: str, delta: Array) -> Array:
        """Return eta v, with v brought up to date."""
        velocity = self.momentum * self.remembered("momentum", name) + delta
        self.remember("momentum", name, velocity)
        return self.server_learning_rate * velocity


STRATEGY = FedAvgM
