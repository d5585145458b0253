"""Server optimisers: the mean update is taken for a gradient to step by.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295,
algorithm 2.
"""

from typing import Any

import numpy as np

from strategies import aggregation
from strategies.fedavg import FedAvg
from strategies.interfaces import ServerState
from strategies.replies import Row
from strategies.wire import Arrays

Array = np.ndarray[Any, Any]


class ServerOptimizer(FedAvg):
    """FedAvg with a step of the server's own; subclasses say which.

    What they remember of each parameter (`slots`, float64) is part of a checkpoint.
    Counters and batch-norm statistics are averaged as ever: they are no parameters, and
    a step beyond their mean would make variances negative.
    """

    SLOTS: tuple[str, ...] = ()
    """Names of what is remembered of each parameter."""

    def __init__(self, *, server_learning_rate: float, **fedavg_options: Any) -> None:
        """Raises: ValueError: the learning rate is not positive."""
        super().__init__(**fedavg_options)
        if not 0 < server_learning_rate < float("inf"):
            raise ValueError(
                f"server-learning-rate must be > 0, got {server_learning_rate}"
            )
        self.server_learning_rate = server_learning_rate
        self._slots: dict[str, Arrays] = {slot: {} for slot in self.SLOTS}

    def step(self, name: str, delta: Array) -> Array:
        """Return what is added to a parameter, from its mean update (float64)."""
        raise NotImplementedError

    def remembered(self, slot: str, name: str, *, initial: float = 0.0) -> Array:
        """Return a parameter's slot; what is to be kept of it goes to `remember`."""
        return self._slots[slot].get(name, np.float64(initial))  # type: ignore[arg-type]

    def remember(self, slot: str, name: str, value: Array) -> None:
        """Keep a parameter's slot for the next round."""
        self._slots[slot][name] = value

    def server_update(
        self, current: Arrays, mean: Arrays, trained: list[Row]
    ) -> Arrays:
        """Return the current model and a step from the mean update."""
        steps = {
            name: delta
            if aggregation.is_statistic(name, current[name])
            else np.asarray(self.step(name, delta))
            for name, delta in mean.items()
        }
        return aggregation.apply_mean(current, steps)

    def state(self) -> ServerState:
        """Return FedAvg's, and the slots."""
        arrays = {
            f"{slot}/{name}": array
            for slot, named in self._slots.items()
            for name, array in named.items()
        }
        return ServerState(super().state().values, arrays)

    def restore(self, state: ServerState) -> None:
        """Go on from a state that `state` returned."""
        super().restore(state)
        for key, array in state.arrays.items():
            slot, _, name = key.partition("/")
            self._slots[slot][name] = array


class AdaptiveOptimizer(ServerOptimizer):
    """Steps scaled by the root of a running second moment, per coordinate."""

    SLOTS = ("first", "second")

    def __init__(
        self, *, beta1: float, beta2: float, tau: float, **options: Any
    ) -> None:
        """Raises: ValueError: beta1 or beta2 is not in [0, 1), or tau not positive."""
        super().__init__(**options)
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1), got {beta}")
        if not 0 < tau < float("inf"):
            raise ValueError(f"tau must be > 0, got {tau}")
        self.beta1, self.beta2, self.tau = beta1, beta2, tau

    def second_moment(self, before: Array, square: Array) -> Array:
        """Return the new second moment, from the last one and the squared update."""
        raise NotImplementedError

    def step(self, name: str, delta: Array) -> Array:
        """Return eta m / (sqrt(v) + tau), with m and v brought up to date.

        As in the paper v starts at tau^2; neither moment is corrected for its start.
        """
        first = self.beta1 * self.remembered("first", name) + (1 - self.beta1) * delta
        before = self.remembered("second", name, initial=self.tau**2)
        second = self.second_moment(before, np.square(delta))
        self.remember("first", name, np.asarray(first))
        self.remember("second", name, np.asarray(second))
        return self.server_learning_rate * first / (np.sqrt(second) + self.tau)
