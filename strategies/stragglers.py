"""Clients that manage only part of their local epochs, as simulated heterogeneity.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, section 5.2: in each round a fixed share of the cohort are stragglers,
each of which has time for a number of epochs drawn uniformly from 1 to E. FedAvg drops
them in the paper, FedProx keeps what they managed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from strategies.randomness import keyed_generator

DROP, KEEP = "drop", "keep"


@dataclass(frozen=True)
class Stragglers:
    """Who straggles when: a schedule that the seed fixes, alike for all strategies."""

    fraction: float
    """Share of a round's cohort, in [0, 1]."""
    policy: str
    """DROP or KEEP."""
    epochs: int
    """What those who do not straggle do, >= 1."""
    seed: int

    def __post_init__(self) -> None:
        """Raises: ValueError: a value is not allowed."""
        if not 0 <= self.fraction <= 1:
            raise ValueError(
                f"straggler-fraction must be in [0, 1], got {self.fraction}"
            )
        if self.policy not in (DROP, KEEP):
            raise ValueError(f"stragglers must be drop or keep, got {self.policy!r}")

    def schedule(self, cohort: Sequence[int], round: int) -> dict[int, int]:
        """Return the epochs of each straggler of a round, by client id.

        floor(fraction * n + 0.5) of n clients straggle. One permutation per round
        serves every fraction, so a smaller one's stragglers are among a larger one's.
        """
        number = int(self.fraction * len(cohort) + 0.5)
        if number == 0:
            return {}
        draws = keyed_generator(self.seed, "stragglers", round=round)
        order = draws.permutation(len(cohort))
        managed = draws.integers(1, self.epochs, size=len(cohort), endpoint=True)
        ranked = sorted(cohort)
        return {ranked[i]: int(managed[i]) for i in order[:number]}

    def taking_part(self, cohort: Sequence[int], round: int) -> list[int]:
        """Return whom a round asks: all, or without stragglers; at least one client."""
        if self.policy == KEEP:
            return list(cohort)
        slow = self.schedule(cohort, round)
        in_time = [client for client in cohort if client not in slow]
        most = sorted(cohort, key=lambda c: (-slow.get(c, self.epochs), c))
        return in_time or most[:1]
