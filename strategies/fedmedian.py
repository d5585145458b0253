r"""FedMedian: the median of the clients' updates, coordinate by coordinate.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018, arXiv:1803.01498, definition 1 and algorithm 1
(option I), on updates in place of gradients:

.. math:: w_{t+1} = w_t + \operatorname{med}_{k \in S_t} (w^k_{t+1} - w_t)

For an even number of clients the median is the mean of the two in the middle. Fewer
than half of the clients, whatever they send, cannot move a coordinate beyond the range
of the others.
"""

import numpy as np

from strategies.robust import Array, RobustMean


class FedMedian(RobustMean):
    """Coordinate-wise median of the updates, each client counting alike."""

    def statistic(self, values: Array) -> Array:
        """Return the median over axis 0 of sorted values (K, ...)."""
        low, high = (len(values) - 1) // 2, len(values) // 2
        return np.asarray((values[low] + values[high]) / 2)


STRATEGY = FedMedian
