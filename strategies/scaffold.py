r"""SCAFFOLD: control variates hold clients back from drifting towards their own data.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled
Averaging for Federated Learning", ICML 2020, arXiv:1910.06378, algorithm 1 with option
II. A client steps by

.. math:: y \leftarrow y - \eta_l \, (g_i(y) - c_i + c)

and after K steps from x to y remembers

.. math:: c_i^+ = c_i - c + \frac{x - y}{K \eta_l}

It sends y - x and c_i^+ - c_i. The server steps by their means over the cohort S:

.. math:: x \leftarrow x + \eta_g \, \overline{y - x}, \qquad
          c \leftarrow c + \frac{\sum_{i \in S} n_i}{\sum_i n_i} \,
          \overline{c_i^+ - c_i}

Deviations: clients weigh by their examples n_i in both means, as in FedAvg, so c is the
examples' mean of all c_i (the paper's objective and means weigh clients alike; with
equal sizes both are the same). The correction c - c_i is part of the gradient, before
momentum and `max-gradient-norm`; with momentum, K counts for the gradients that K steps
move by, as FedNova's normaliser does. Two arrays travel each way for each parameter.
"""

from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies import aggregation, wire
from strategies.fedavg import FedAvg
from strategies.fednova import normaliser
from strategies.interfaces import LocalTraining, Memory, ServerState
from strategies.replies import Row
from strategies.wire import Arrays

if TYPE_CHECKING:
    import torch
    from torch import nn

_CONTROL = "control/"  # of checkpointed arrays


class Scaffold(FedAvg):
    """FedAvg of clients whose gradients are corrected by control variates."""

    def __init__(
        self, *, server_learning_rate: float, optimizer: str, **fedavg_options: Any
    ) -> None:
        """Raises: ValueError: the learning rate is not positive, or not of SGD."""
        super().__init__(**fedavg_options)
        if not 0 < server_learning_rate < float("inf"):
            raise ValueError(
                f"server-learning-rate must be > 0, got {server_learning_rate}"
            )
        if optimizer != "sgd":
            raise ValueError(
                "control variates are means of SGD's gradients: use optimizer = 'sgd'"
            )
        self.server_learning_rate = server_learning_rate
        self._control: Arrays = {}  # c, by name of parameter; empty for 0

    KEEPS_STATE = True

    def client_arrays(self) -> Arrays:
        """Send c along, in the model's dtype; nothing while it is 0."""
        return {name: c.astype(np.float32) for name, c in self._control.items()}

    @staticmethod
    def summed(model: Arrays) -> Arrays:
        """Return the model, and an array beside it for each parameter."""
        return model | {
            aggregation.BESIDE + name: array
            for name, array in model.items()
            if not aggregation.is_statistic(name, array)
        }

    def server_update(
        self, current: Arrays, mean: Arrays, trained: list[Row]
    ) -> Arrays:
        """Return the current model and the step; bring c up to date."""
        share = fsum(row[wire.NUM_EXAMPLES] for row in trained) / self._population
        step: Arrays = {}
        for name, array in current.items():
            if aggregation.is_statistic(name, array):
                step[name] = mean[name]
                continue
            step[name] = self.server_learning_rate * mean[name]
            before = self._control.get(name, np.zeros(array.shape))
            change = share * mean[aggregation.BESIDE + name]
            self._control[name] = np.asarray(before + change)
        return aggregation.apply_mean(current, step)

    @staticmethod
    def client_train(
        model: "nn.Module",
        train: LocalTraining,
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> dict[str, float]:
        """Train with the correction; remember c_i^+ and send c_i^+ - c_i."""
        memory = memory or Memory()
        start = {name: _numpy(p).copy() for name, p in model.named_parameters()}
        zero = {name: np.zeros_like(x) for name, x in start.items()}
        server, own = memory.received or zero, memory.state or zero
        correction = {name: server[name] - own[name] for name in start}
        metrics = train(term=Correction(model, correction))
        steps = normaliser(int(metrics[wire.STEPS]), train.momentum)
        moved = {name: start[name] - _numpy(p) for name, p in model.named_parameters()}
        change = {
            name: np.asarray(delta / np.float32(steps * train.learning_rate))
            - server[name]
            for name, delta in moved.items()
        }
        memory.sent = change
        memory.kept = {name: own[name] + delta for name, delta in change.items()}
        return metrics

    def state(self) -> ServerState:
        """Return FedAvg's, and c."""
        arrays = {_CONTROL + name: c for name, c in self._control.items()}
        return ServerState(super().state().values, arrays)

    def restore(self, state: ServerState) -> None:
        """Go on from a state that `state` returned."""
        super().restore(state)
        self._control = {
            name.removeprefix(_CONTROL): c for name, c in state.arrays.items()
        }


class Correction:
    """c - c_i, a constant part of the gradient."""

    implicit = False

    def __init__(self, model: "nn.Module", correction: Arrays) -> None:
        import torch

        self._parameters = [p for _, p in model.named_parameters()]
        self._correction = [
            torch.from_numpy(correction[name]).to(p.device)
            for name, p in model.named_parameters()
        ]

    def add_gradient(self) -> None:
        """Add the correction to the gradients."""
        import torch

        with torch.no_grad():
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_add_(gradients, self._correction)

    def step(self, step_size: float) -> None:
        """Not used: the term is linear, so its gradient is all there is."""
        raise NotImplementedError


def _numpy(tensor: "torch.Tensor") -> np.ndarray[Any, Any]:
    return np.asarray(tensor.detach().cpu().numpy())


STRATEGY = Scaffold
