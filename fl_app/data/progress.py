"""How far the reading of a data set is: a bar on a terminal, else a line in the log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("flwr.fl_app")

_FEW = 1000  # images that take no time worth telling
_SECONDS = 10.0  # between two lines in the log


@contextmanager
def watched(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told of each so many images that are done."""
    if total < _FEW:
        yield lambda number: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{doing} {total:,} images", total=total)
            yield lambda number: bar.advance(task, number)
    else:
        yield _Lines(doing, total)


class _Lines:
    def __init__(self, doing: str, total: int) -> None:
        self._doing, self._total, self._done = doing, total, 0
        self._last = time.monotonic()

    def __call__(self, number: int) -> None:
        self._done += number
        if time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            log.info("%s images: %d of %d", self._doing, self._done, self._total)
