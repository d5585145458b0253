r"""FedNova: updates are normalised by the number of local steps behind them.

Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization", NeurIPS 2020, arXiv:2007.07481, equation 12:

.. math:: w_{t+1} = w_t + \tau_{\mathrm{eff}} \sum_k p_k \Delta_k / a_k, \qquad
          \tau_{\mathrm{eff}} = \sum_k p_k a_k

with :math:`p_k = n_k / \sum_j n_j` and :math:`a_k = \lVert a_k \rVert_1` of the local
solver: the number of steps for plain SGD, and for SGD with momentum :math:`\rho` after
:math:`\tau` steps (section 4.1)

.. math::
    a_k = \frac{1}{1 - \rho}
          \left(\tau - \rho \frac{1 - \rho^\tau}{1 - \rho}\right)

A client that takes more steps then weighs no more in the direction than its examples
do. Deviations: with Adam, whose steps have no such sum, a_k is the number of steps.
Counters and batch-norm statistics are averaged as ever.
"""

from collections.abc import Mapping
from math import fsum
from typing import Any

import numpy as np

from strategies import aggregation, wire
from strategies.fedavg import FedAvg
from strategies.interfaces import Memory
from strategies.replies import Row
from strategies.wire import Arrays

MOMENTUM = "momentum"
NORMALISER = "normaliser"


class FedNova(FedAvg):
    """FedAvg of updates per local step."""

    def __init__(
        self, *, optimizer: str = "sgd", momentum: float = 0.0, **fedavg_options: Any
    ) -> None:
        """Take what local steps are like from the run's options."""
        super().__init__(**fedavg_options)
        self.momentum = momentum if optimizer == "sgd" else 0.0

    COUNTS_STEPS = True

    def client_options(self, round: int) -> dict[str, float]:
        """Send the local momentum along."""
        return {MOMENTUM: self.momentum}

    @staticmethod
    def client_update(
        update: Arrays,
        metrics: dict[str, float],
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> Arrays:
        """Return the update over a_k; the metrics gain `normaliser`, which is a_k."""
        size = normaliser(int(metrics[wire.STEPS]), float(options[MOMENTUM]))
        metrics[NORMALISER] = size
        return {
            name: array
            if aggregation.is_statistic(name, array)
            else np.asarray(array / array.dtype.type(size))
            for name, array in update.items()
        }

    def server_update(
        self, current: Arrays, mean: Arrays, trained: list[Row]
    ) -> Arrays:
        """Return the current model and tau_eff times the mean of what was sent."""
        examples = fsum(row[wire.NUM_EXAMPLES] for row in trained)
        effective = fsum(
            row[wire.NUM_EXAMPLES] * normaliser(int(row[wire.STEPS]), self.momentum)
            for row in trained
        )
        steps = {
            name: delta
            if aggregation.is_statistic(name, current[name])
            else delta * (effective / examples)
            for name, delta in mean.items()
        }
        return aggregation.apply_mean(current, steps)


def normaliser(steps: int, momentum: float) -> float:
    """Return a_k: by how many gradients the sum of so many steps moves."""
    geometric = (1 - momentum**steps) / (1 - momentum)
    return (steps - momentum * geometric) / (1 - momentum)


STRATEGY = FedNova
