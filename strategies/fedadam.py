r"""FedAdam: Adam on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295,
algorithm 2. With :math:`\Delta_t` the clients' mean update of round t, per coordinate:

.. math::
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \Delta_t^2 \\
    w_{t+1} &= w_t + \eta \, m_t / (\sqrt{v_t} + \tau)

with :math:`m_0 = 0` and :math:`v_0 = \tau^2`. Deviation: updates are weighted by
numbers of examples, as everywhere here; the paper's mean is over clients.
"""

from strategies.server_optimizer import AdaptiveOptimizer, Array


class FedAdam(AdaptiveOptimizer):
    """FedAvg whose global model is stepped by Adam."""

    def second_moment(self, before: Array, square: Array) -> Array:
        """Return a running mean of squares."""
        return self.beta2 * before + (1 - self.beta2) * square


STRATEGY = FedAdam
