r"""FedAvg: federated averaging, which all other strategies here begin with.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629, algorithm 1:

.. math:: w_{t+1} = w_t + \sum_{k \in S_t} \frac{n_k}{\sum_j n_j} (w^k_{t+1} - w_t)

with :math:`S_t` the cohort and :math:`n_k` the number of training examples of client
k. Deviations: none in the mean; updates are summed exactly (`aggregation`), and a
client whose update fails its checks is left out of both sums.
"""

from strategies import aggregation
from strategies.replies import Collected, Row
from strategies.round_loop import RoundLoop
from strategies.wire import Arrays


class FedAvg(RoundLoop):
    """Weighted average of the clients' updates."""

    def server_update(
        self, current: Arrays, mean: Arrays, trained: list[Row]
    ) -> Arrays:
        """Return the current model and the mean update."""
        return aggregation.apply_mean(current, mean)

    def collect(self, model: Arrays, cohort_size: int) -> Collected:
        """Return an exact sum, which any number of nodes can share."""
        return aggregation.ExactSum(model, cohort_size)


STRATEGY = FedAvg
