r"""Trimmed mean: the mean of what is left without the extremes of each coordinate.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018, arXiv:1803.01498, definition 2 and algorithm 1
(option II), on updates in place of gradients. Of the K values of a coordinate the
:math:`b = \lfloor \beta K \rfloor` smallest and as many of the largest are left out:

.. math:: w_{t+1} = w_t + \frac{1}{K - 2 b} \sum_{k \in U_t} (w^k_{t+1} - w_t)

Up to a fraction beta of the clients, whatever they send, cannot move a coordinate
beyond the range of the others.
"""

from math import ceil, floor
from typing import Any

import numpy as np

from strategies.robust import Array, RobustMean


class TrimmedMean(RobustMean):
    """Coordinate-wise trimmed mean of the updates, each client counting alike."""

    def __init__(self, *, beta: float, **fedavg_options: Any) -> None:
        """Raises: ValueError: beta is not in [0, 0.5)."""
        super().__init__(**fedavg_options)
        if not 0 <= beta < 0.5:
            raise ValueError(f"trimmed-mean.beta must be in [0, 0.5), got {beta}")
        self.beta = beta

    def remark(self, cohort_size: int) -> str:
        """Say so if nothing is trimmed."""
        if self.beta == 0 or self._cut(cohort_size):
            return ""
        return (
            f"trimmed-mean.beta = {self.beta:g} leaves out none of {cohort_size} "
            f"clients in a round, only of {ceil(1 / self.beta - 1e-9)} or more"
        )

    def _cut(self, num_clients: int) -> int:
        return floor(self.beta * num_clients + 1e-9)

    def statistic(self, values: Array) -> Array:
        """Return the trimmed mean over axis 0 of sorted values (K, ...)."""
        cut = self._cut(len(values))
        return np.asarray(values[cut : len(values) - cut].mean(axis=0))


STRATEGY = TrimmedMean
