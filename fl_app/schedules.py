"""How the learning rate changes over the rounds."""

from collections.abc import Callable
from math import cos, pi

Schedule = Callable[[int, int, float], float]
"""(rounds since the warm-up, rounds after it in all, decay) to a factor in (0, 1]."""

SCHEDULES: dict[str, Schedule] = {
    "exponential": lambda done, _, decay: decay**done,
    "cosine": lambda done, of, _: (1 + cos(pi * done / of)) / 2,
    "linear": lambda done, of, _: 1 - done / of,
}
ENDING = {"cosine", "linear"}
"""Those that depend on the number of rounds."""


def factor(
    name: str, round: int, *, num_rounds: int, decay: float, warmup_rounds: int
) -> float:
    """Return what the learning rate is multiplied by in a round.

    It rises in equal steps over the warm-up, is 1 in the first round after it, and
    never reaches 0: "cosine" (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5,
    one period) and "linear" would in the round after the last.

    Args:
        name: of `SCHEDULES`.
        round: from 1.
        num_rounds: all rounds.
        decay: factor a round, of "exponential" alone.
        warmup_rounds: rounds of the warm-up, fewer than all.
    """
    if round <= warmup_rounds:
        return round / (warmup_rounds + 1)
    done = round - warmup_rounds - 1
    return SCHEDULES[name](done, num_rounds - warmup_rounds, decay)
