"""What happens after each round: metrics files, the log line, the pictures.

A callback has three hooks, all no-ops here. The rows they are given are those of
metrics.jsonl; they must not change them.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fl_app import partition_picture, plots
from fl_app.artifacts import CURVES, PARTITION, RunFolder
from fl_app.config import RunConfig
from strategies import wire
from strategies.interfaces import RoundResult

log = logging.getLogger("flwr.fl_app")

_REST = 100  # times as long as a core took to draw a picture

Rows = Sequence[Mapping[str, Any]]


class Callback:
    """Hooks into a run, called by the server in order of registration."""

    def on_start(
        self, counts: Any, class_names: Sequence[str], client_names: Sequence[str]
    ) -> None:
        """Before round 0.

        Args:
            counts: (num_clients, num_classes) numbers of training examples.
            class_names: names of the classes.
            client_names: names of the clients; empty where they are mere numbers.
        """

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """After a round: all rows so far; `result` is None for round 0."""

    def on_end(self, rows: Rows) -> None:
        """After the last round, or when the run fails."""


class MetricsFiles(Callback):
    """Writes metrics.jsonl and clients.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._names: Sequence[str] = ()

    def on_start(
        self, counts: Any, class_names: Sequence[str], client_names: Sequence[str]
    ) -> None:
        """Note what the clients are called."""
        self._names = client_names

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Write the rounds anew (the last but one has gained its validation)."""
        self._folder.write_metrics(rows)
        if result is not None:
            self._folder.append_clients(client_rows(result, self._names))

    def on_end(self, rows: Rows) -> None:
        """Write the rounds a last time."""
        self._folder.write_metrics(rows)


def client_rows(result: RoundResult, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a round's lines of clients.jsonl, sorted by client.

    Args:
        result: the round.
        names: names of the clients in order, if they have any.
    """

    def who(client: int) -> dict[str, Any]:
        named = {"name": names[client]} if names else {}
        return {"round": result.round, "client": client, **named}

    trained = [
        {
            **who(int(row[wire.CLIENT_IDS])),
            "num_examples": int(row[wire.NUM_EXAMPLES]),
            "train_loss": row[wire.LOSS],
            **{
                key.replace("-", "_"): value
                for key, value in row.items()
                if key not in (wire.CLIENT_IDS, wire.NUM_EXAMPLES, wire.LOSS)
            },
            **who(int(row[wire.CLIENT_IDS])),  # whatever a node calls its metrics
            "failure": None,
        }
        for row in result.trained
    ]
    failed = [
        {
            **who(failure.client_id),
            "node": str(failure.node_id),
            "failure": failure.reason,
            "traceback": failure.traceback,
        }
        for failure in result.failures
    ]
    return sorted(trained + failed, key=lambda row: row["client"])


class ProgressLog(Callback):
    """Logs a line per round, for those who follow with `flwr run --stream`."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Log the round's figures."""
        row = rows[-1]
        parts = [f"round {row['round']}/{self._num_rounds}"]
        for key, label in (
            ("test_accuracy", "test accuracy"),
            ("test_loss", "test loss"),
            ("train_loss", "train loss"),
        ):
            if row[key] is not None:
                parts.append(f"{label} {row[key]:.4f}")
        if result is not None:
            parts.append(f"{row['num_clients']} clients")
            parts.append(f"{row['seconds']:.1f} s")
        log.info("  ".join(parts))


class Pictures(Callback):
    """Draws partition.png once, and curves.png as rounds end.

    Drawing is done on a thread of its own, so that training does not wait for it, and
    takes a hundredth of one core at most, but for the first: the next picture of rounds
    is drawn half a minute after the last one, at the earliest, and shows all rounds
    until then.
    """

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self._folder = folder
        self._config = config
        self._wake = threading.Condition()
        self._next: Callable[[], None] | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def on_start(
        self, counts: Any, class_names: Sequence[str], client_names: Sequence[str]
    ) -> None:
        """Have it drawn who owns what."""
        title = describe_partition(self._config)
        first = partial(
            partition_picture.partition, counts, class_names, title, client_names
        )
        self._thread = threading.Thread(
            target=self._draw, args=(first,), daemon=True, name="pictures"
        )
        self._thread.start()

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Hand the newest rows to the drawing thread."""
        frozen = [dict(row) for row in rows]
        with self._wake:
            self._next = lambda: self._write(frozen)
            self._wake.notify()

    def on_end(self, rows: Rows) -> None:
        """Stop the thread; draw the last state."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if rows:
            self._write(rows)

    def _draw(self, partition: Callable[[], bytes]) -> None:
        self._attempt(PARTITION, partition)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._ended)
                draw, self._next = self._next, None
                if self._ended or draw is None:
                    return
            start = time.thread_time()
            draw()
            rest = _REST * (time.thread_time() - start)
            with self._wake:
                self._wake.wait_for(lambda: self._ended, timeout=rest)

    def _write(self, rows: Rows) -> None:
        config = self._config
        title = f"{Path(config.dataset).name}, {config.model}, {config.strategy}"
        self._attempt(CURVES, lambda: plots.curves(rows, title))

    def _attempt(self, name: str, draw: Callable[[], bytes]) -> None:
        """Draw and write a picture; one that fails must not end a training."""
        try:
            self._folder.write_picture(name, draw())
        except Exception:
            log.exception("%s could not be drawn", name)


def describe_partition(config: RunConfig) -> str:
    """Return the data set, and how it was divided with what option."""
    detail = {
        "dirichlet": f", alpha {config.dirichlet_alpha:g}",
        "quantity": f", alpha {config.dirichlet_alpha:g}",
        "classes": f", {config.classes_per_client} per client",
        "shards": f", {config.shards_per_client} per client",
    }.get(config.partitioner, "")
    return f"{Path(config.dataset).name}, divided by {config.partitioner}{detail}"
