"""How evenly a model serves the clients: figures over their accuracies."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean, pstdev

_WORST = 0.1


@dataclass(frozen=True)
class Spread:
    """Over the accuracies of all clients, each counting alike."""

    mean: float
    deviation: float
    """Standard deviation over these clients (they are all there are)."""
    worst: float
    """Mean of the worst 10 % of the clients, of one at least (Li et al. 2020, "Fair
    Resource Allocation in Federated Learning", arXiv:1905.10497, section 4)."""
    jain: float
    """Jain's index (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one has all
    (Jain, Chiu and Hawe 1984, arXiv:cs/9809099)."""

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> "Spread":
        """Return the figures of one accuracy or more."""
        ranked = sorted(accuracies)
        number = len(ranked)
        squares = sum(value * value for value in ranked)
        return cls(
            fmean(ranked),
            pstdev(ranked),
            fmean(ranked[: max(1, ceil(_WORST * number - 1e-9))]),
            sum(ranked) ** 2 / (number * squares) if squares else 1.0,
        )
