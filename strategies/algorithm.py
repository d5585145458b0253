"""What a strategy fills in: the two halves of an algorithm, server's and client's.

The round loop calls the server half in the ServerApp; the node calls the client half,
whose functions are static: all they know is what they are given.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from strategies.interfaces import LocalTraining, Memory
from strategies.replies import Collected, Row
from strategies.wire import Arrays

if TYPE_CHECKING:
    from torch import nn


class Algorithm:
    """Both halves; by default a client trains and sends its update as it is."""

    COUNTS_STEPS = False
    """Whether the server half relies on the clients' numbers of local steps."""

    ONE_MODEL = True
    """Whether training ends in one model for all; else the clients alone can judge."""

    NEEDS_EVERY_VALUE = False
    """Whether a value that a client did not send would count as 0 among the others'."""

    KEEPS_STATE = False
    """Whether a client remembers something from one round to the next."""

    def server_update(
        self, current: Arrays, mean: Arrays, trained: list[Row]
    ) -> Arrays:
        """Return the next global model.

        Args:
            current: the global model.
            mean: the mean of what the clients sent, laid out as `summed` says.
            trained: the metrics of each client in it, sorted by client.
        """
        raise NotImplementedError

    def collect(self, model: Arrays, cohort_size: int) -> Collected:
        """Return what takes in a round's updates to `model`; its mean is used."""
        raise NotImplementedError

    def check_model(self, model: "nn.Module") -> None:
        """Raises: ValueError: the algorithm is not for this model."""

    def remark(self, cohort_size: int) -> str:
        """Return what may surprise whoever has so many clients in a round; or ""."""
        return ""

    def client_options(self, round: int) -> dict[str, float]:
        """Return what the client half needs to know in this round."""
        return {}

    def client_arrays(self) -> Arrays:
        """Return the arrays that clients receive beside the model."""
        return {}

    @staticmethod
    def summed(model: Arrays) -> Arrays:
        """Return arrays laid out like all that a client sends: a model's and others.

        Names of what it sends beside its update begin with `aggregation.BESIDE`.
        """
        return model

    @staticmethod
    def client_model(model: "nn.Module", memory: Memory) -> None:
        """Put what is the client's own into the model it received, in place."""

    @staticmethod
    def client_train(
        model: "nn.Module",
        train: LocalTraining,
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> dict[str, float]:
        """Train the local model, which starts as the global one; return metrics."""
        return train()

    @staticmethod
    def client_update(
        update: Arrays,
        metrics: dict[str, float],
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> Arrays:
        """Return what a client sends of its update; may add to its metrics."""
        return update
