"""How simulated nodes of one machine share a round: who is done takes of the others'.

Cores are not equally fast, or not all the time, and a round lasts as long as its
slowest node. So each node writes down which of its clients wait for it, where all
nodes can read that, and takes them from there a few at a time; once it has none left
it takes those of the node that has most. The sum does not depend on who trained whom.
"""

import logging
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context

from strategies import wire

Job = tuple[int, int | None]
"""A client to train, and for how many local epochs; None for those of the run."""

_FILE = "waiting.sqlite"
_PART = 8  # a node takes this part of what waits at a time: the rest is left to others
_PATIENCE_SECONDS = 60.0  # until another node has written its few bytes
_SIMULATED = "num-partitions"  # Flower's simulation alone says this to a node

log = logging.getLogger("flwr.fl_app")


@contextmanager
def waiting_file() -> Iterator[str]:
    """Make the file in which a run's nodes write; yield its path, remove it after."""
    with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
        path = Path(folder) / _FILE
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE waiting (round, node, client, epochs)")
        yield str(path)


def jobs(
    dealt: Sequence[Job],
    task: ConfigRecord,
    context: Context,
    num_examples: Callable[[int], int],
) -> Iterator[Job]:
    """Yield what a node is to train: what it was dealt, and what it takes of others'.

    Where nodes share, the longest come first (Graham 1969: what is taken last should be
    short), and the first of all is left to its node, so that each has one to answer.

    Args:
        dealt: the node's own.
        task: of the message; names the file if nodes are to share.
        context: the node's.
        num_examples: number of training examples of a client, by its id.
    """
    path = Path(str(task.get(wire.SHARED, "")))
    # A real node opens nothing at a server's word; one elsewhere does not find it.
    found = _SIMULATED in context.node_config and path.name == _FILE and path.is_file()
    if not found or len(dealt) < 2:
        yield from dealt
        return
    own = sorted(dealt, key=lambda job: -num_examples(job[0]))
    try:
        waiting = Waiting(path, wire.integer(task, wire.ROUND), str(context.node_id))
        waiting.put(own[1:])
    except sqlite3.Error as error:
        log.warning("This node shares no clients: %s: %s", path, error)
        yield from own
        return
    with closing(waiting):
        yield own[0]
        while taken := _taken(waiting):
            yield from taken


def _taken(waiting: "Waiting") -> list[Job]:
    """Return the next clients; none where that cannot be known any more.

    The server then names those with which no node began; what was trained counts.
    """
    try:
        return waiting.take()
    except sqlite3.Error as error:
        log.warning("This node stops sharing clients: %s", error)
        return []


class Waiting:
    """The clients of a round with which no node has begun, as one node sees them."""

    def __init__(self, path: Path, round: int, node: str) -> None:
        """Open the file, which must be there."""
        self.round, self.node = round, node
        self._database = sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=_PATIENCE_SECONDS,
            isolation_level=None,  # transactions are begun by hand
        )
        self._database.execute("PRAGMA synchronous = OFF")  # it need not last

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, jobs: Sequence[Job]) -> None:
        """Let these wait for this node; whoever comes first takes them."""
        rows = [(self.round, self.node, *job) for job in jobs]
        with self._alone() as database:
            database.executemany("INSERT INTO waiting VALUES (?, ?, ?, ?)", rows)

    def take(self) -> list[Job]:
        """Take some clients: of this node, or else of that which has most waiting."""
        with self._alone() as database:
            fullest = database.execute(
                "SELECT node, count(*) FROM waiting WHERE round = ? GROUP BY node "
                "ORDER BY node = ? DESC, count(*) DESC, node LIMIT 1",
                (self.round, self.node),
            ).fetchone()
            if fullest is None:
                return []
            node, number = fullest
            rows = database.execute(
                "SELECT rowid, client, epochs FROM waiting "
                "WHERE round = ? AND node = ? ORDER BY rowid LIMIT ?",
                (self.round, node, max(1, number // _PART)),
            ).fetchall()
            taken = [(row,) for row, _, _ in rows]
            database.executemany("DELETE FROM waiting WHERE rowid = ?", taken)
        return [(client, epochs) for _, client, epochs in rows]

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """Keep other nodes out, and what is done within whole."""
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or takes back
            yield self._database
