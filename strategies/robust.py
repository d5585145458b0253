"""Updates kept one by one, for statistics that a few bad clients cannot move far.

A sum forgets who added what; these need every client's value of each coordinate, so
memory grows with the cohort, and clients count alike whatever their number of examples
(one that lies about its data would else count for many).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from strategies.aggregation import UpdateError, check_update
from strategies.fedavg import FedAvg
from strategies.wire import Arrays

Array = np.ndarray[Any, Any]
Statistic = Callable[[Array], Array]
"""From (K, ...) float64 values of K clients, sorted along axis 0, to one (...)."""


class UpdateStack:
    """The updates of a round; `mean` is a statistic of each coordinate."""

    def __init__(self, model: Mapping[str, Array], statistic: Statistic) -> None:
        """Start empty, for updates to `model`, which is only read."""
        self._model = dict(model)
        self._statistic = statistic
        self._updates: list[Mapping[str, Array]] = []
        self.num_clients = 0
        self.weight = 0

    def add(self, update: Mapping[str, Array], weight: int) -> None:
        """Take in one client's update.

        Raises:
            UpdateError: see `check_update`.
        """
        check_update(update, self._model, weight)
        self._updates.append(update)
        self.num_clients += 1
        self.weight += weight

    def add_partial(
        self, totals: Mapping[str, Array], weight: int, num_clients: int
    ) -> None:
        """Refuse a sum: what is in it can no longer be told.

        Raises:
            UpdateError: always.
        """
        raise UpdateError("a sum of updates was sent where each is needed")

    def mean(self) -> Arrays:
        """Return the statistic: float64, or int64 rounded for integer arrays.

        It depends on the set of updates alone, not on their order.

        Raises:
            ValueError: nothing was added.
        """
        if not self._updates:
            raise ValueError("no update was added, so there is no mean")
        means: Arrays = {}
        for name, reference in self._model.items():
            values = np.stack([update[name] for update in self._updates])
            values = np.sort(values.astype(np.float64), axis=0)
            value = np.asarray(self._statistic(values))
            whole = reference.dtype.kind in "iu"
            means[name] = np.rint(value).astype(np.int64) if whole else value
        return means


class RobustMean(FedAvg):
    """FedAvg with a robust statistic of the updates in place of their mean."""

    NEEDS_EVERY_VALUE = True

    def __init__(self, **fedavg_options: Any) -> None:
        """Keep the options of FedAvg; ask nodes for single updates.

        Raises:
            ValueError: `normalisation-policy` is "pooled", which needs a mean.
        """
        super().__init__(**fedavg_options)
        if self.pooled:
            raise ValueError(
                "normalisation-policy = 'pooled' needs a mean of second moments, which "
                "a robust statistic is not: use 'average'"
            )
        self.single_updates = True

    def collect(self, model: Arrays, cohort_size: int) -> UpdateStack:
        """Return a stack in place of a sum."""
        return UpdateStack(model, self.statistic)

    def statistic(self, values: Array) -> Array:
        """Return one (...) for (K, ...) float64 values, sorted along axis 0."""
        raise NotImplementedError
