"""Many encoded images, looked at by threads, a lot at a time; damage is gathered."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from fl_app.config import ConfigError
from fl_app.data.pixels import DamagedError
from fl_app.data.tables import Table

Array = np.ndarray[Any, Any]
_LOT = 200  # images that a thread looks at before it hands them over
_MOST_DAMAGED = 5  # files that are named
_T = TypeVar("_T")


class Joined(Sequence[tuple[bytes, str]]):
    """The images of several tables one after the other, with their places."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = list(tables)
        self._ends = list(accumulate(len(table.images) for table in tables))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        table = int(np.searchsorted(self._ends, index, side="right"))
        row = int(index) - (self._ends[table - 1] if table else 0)
        place = self._tables[table].places[row]
        try:
            return self._tables[table].images[row], place
        except OSError as error:
            raise ConfigError(f"{place} cannot be read: {error.strerror}") from error


def in_lots(
    images: Sequence[tuple[bytes, str]],
    look: Callable[[Sequence[tuple[bytes, str]], Array], _T],
    chosen: Array | None = None,
) -> Iterator[_T]:
    """Yield what is found in lots of images, in order; threads share them.

    No more lots are begun than there is work for, so that few are in memory.
    """
    indices = np.arange(len(images)) if chosen is None else chosen
    workers = os.cpu_count() or 1
    lots = [indices[i : i + _LOT] for i in range(0, len(indices), _LOT)]
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(look, images, lot) for lot in lots[: 2 * workers]]
        for following in [*lots[2 * workers :], *([None] * len(ahead))]:
            yield ahead.pop(0).result()
            if following is not None:
                ahead.append(pool.submit(look, images, following))


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
