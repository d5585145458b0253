"""How large a client's update may be."""

from math import isfinite
from statistics import median

from strategies.aggregation import UpdateError, beside_of, norm
from strategies.wire import Arrays

_NORMS_KEPT = 1000


class NormLimit:
    """How large an update may be: a factor over the median of those accepted before.

    The median is over the newest `_NORMS_KEPT` updates of earlier rounds, so that it
    follows training as its steps shrink.
    """

    def __init__(self, factor: float, first: float, *, beside: bool = False) -> None:
        """Set the limits; a factor of 0 is no limit.

        Args:
            factor: over the median of accepted norms.
            first: the largest norm while there is none.
            beside: whether what travels beside an update is measured, in its place.
        """
        self._factor = factor
        self._first = first
        self._beside = beside
        self.accepted: list[float] = []
        """Norms of earlier rounds, the oldest first."""

    def check(self, update: Arrays) -> float:
        """Return the norm (L2, over all float arrays) of what is measured.

        Raises:
            UpdateError: it is above the limit.
        """
        size = norm(beside_of(update) if self._beside else update)
        limit = self._factor * median(self.accepted) if self.accepted else self._first
        if self._factor and isfinite(size) and size > limit:
            whose = "the norm of what is beside it," if self._beside else "its norm"
            raise UpdateError(
                f"{whose} {size:.4g} is above {limit:.4g}, which is "
                + (
                    f"max-update-norm = {self._factor:g} times the median until now"
                    if self.accepted
                    else "max-first-update-norm"
                )
            )
        return size

    def accept(self, norms: list[float]) -> None:
        """Take the norms of a round's accepted updates, in order of client."""
        if self._factor:
            self.accepted = (self.accepted + norms)[-_NORMS_KEPT:]
