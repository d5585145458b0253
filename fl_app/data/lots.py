"""Many encoded images, looked at by threads, a lot at a time; damage is gathered."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from fl_app.config import ConfigError
from fl_app.data.pixels import DamagedError
from fl_app.data.tables import Chain, Table

Array = np.ndarray[Any, Any]
_LOT = 200  # images that a thread looks at before it hands them over, at most
_LOT_BYTES = 2**24  # and what they may take together
_MOST_DAMAGED = 5  # files that are named
_T = TypeVar("_T")


class Joined(Sequence[tuple[bytes, str]]):
    """The images of several tables one after the other, with their places."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._images = Chain([table.images for table in tables])
        self._places = Chain([table.places for table in tables])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        place = self._places[index]
        try:
            return self._images[index], place
        except OSError as error:
            raise ConfigError(f"{place} cannot be read: {error.strerror}") from error


def in_lots(
    images: Sequence[tuple[bytes, str]],
    look: Callable[[Sequence[tuple[bytes, str]], Array], _T],
    chosen: Array | None = None,
    *,
    num_bytes: int = 1,
) -> Iterator[_T]:
    """Yield what is found in lots of images, in order; threads share them.

    No more lots are begun than there is work for, so that few are in memory. What is
    found in one image takes `num_bytes`.
    """
    indices = np.arange(len(images)) if chosen is None else chosen
    workers = _num_cores()
    lot = max(1, min(_LOT, _LOT_BYTES // num_bytes))
    lots = [indices[i : i + lot] for i in range(0, len(indices), lot)]
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(look, images, lot) for lot in lots[: 2 * workers]]
        for following in [*lots[2 * workers :], *([None] * len(ahead))]:
            yield ahead.pop(0).result()
            if following is not None:
                ahead.append(pool.submit(look, images, following))


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Damaged:
    """The images that cannot be read, with the reasons: all of them are told at once.

    What is read of them meanwhile is black, and must not be used.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        """By place."""

    def add(self, place: str, what: str, reason: DamagedError) -> None:
        """Take in one; what is known of it already stays."""
        self.reasons.setdefault(place, f"{place} {what} ({reason})")

    def check(self) -> None:
        """Raises: ConfigError: there is one; the message names the first ones."""
        number = len(self.reasons)
        named = "; ".join(sorted(self.reasons.values())[:_MOST_DAMAGED])
        if number == 1:
            raise ConfigError(f"{named}: mend or remove it")
        if number > 1:
            more = f"; and {number - _MOST_DAMAGED} more"
            raise ConfigError(
                f"{number} files are damaged: {named}"
                f"{more if number > _MOST_DAMAGED else ''}: mend or remove them"
            )
