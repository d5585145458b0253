r"""FedYogi: Yogi on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295,
algorithm 2: FedAdam but for the second moment, which moves by no more than the squared
update, so that it cannot collapse when updates suddenly shrink:

.. math:: v_t = v_{t-1} - (1 - \beta_2) \Delta_t^2 \,
          \mathrm{sign}(v_{t-1} - \Delta_t^2)
"""

import numpy as np

from strategies.server_optimizer import AdaptiveOptimizer, Array


class FedYogi(AdaptiveOptimizer):
    """FedAvg whose global model is stepped by Yogi."""

    def second_moment(self, before: Array, square: Array) -> Array:
        """Return the last moment, moved towards the square."""
        moved = (1 - self.beta2) * square * np.sign(before - square)
        return np.asarray(before - moved)


STRATEGY = FedYogi
