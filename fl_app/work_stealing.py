"""How simulated nodes of one machine even out a round: by work stealing.

Cores are not equally fast, or not all the time, and a round lasts as long as its
slowest node. So each node writes down which of the clients it is to train wait for it,
where all nodes can read that, and takes them from there a few at a time; once it has
none left it takes those of the node that has most (after Blumofe and Leiserson 1999,
doi:10.1145/324133.324234). The sum does not depend on who trained whom.
"""

import logging
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context

from fl_app import processes
from strategies import wire

Job = tuple[int, int | None]
"""A client to train, and for how many local epochs; None for those of the run."""

_PREFIX = "fl-app-"
_FOLDER = re.compile(_PREFIX + r"\w{8}")
_FILE = "waiting.sqlite"
_PART = 8  # a node takes this part of what waits at a time: the rest is left to others
_PATIENCE_SECONDS = 60.0  # until another node has written its few bytes

log = logging.getLogger("flwr.fl_app")


@contextmanager
def waiting_folder() -> Iterator[str]:
    """Make the temporary folder in which a run's nodes write; yield its name.

    It is removed at the end; of a run that is killed it stays, some kilobytes. Where
    none can be made the name is empty, and each node trains what it was dealt.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        with closing(sqlite3.connect(Path(folder.name) / _FILE)) as database:
            database.execute("CREATE TABLE waiting (round, node, client, epochs)")
    except (OSError, sqlite3.Error) as error:
        log.warning("Nodes will not take clients from one another: %s", error)
        yield ""
        return
    with folder:
        yield Path(folder.name).name


def jobs(
    dealt: Sequence[Job],
    task: ConfigRecord,
    context: Context,
    num_examples: Callable[[int], int],
) -> Iterator[Job]:
    """Return what a node is to train: what it was dealt, and what it takes of others'.

    From now on others can take of this node's, but for the first, so that it has one to
    answer. A node that was dealt a single client neither gives nor takes: it sends
    that one's update, and not a sum. The most work comes first: what is left to the end
    should be short (Graham 1969).

    Args:
        dealt: the node's own.
        task: of the message; names the folder, if there is one.
        context: the node's.
        num_examples: number of training examples of a client, by its id.
    """
    waiting = None
    if len(dealt) > 1 and (path := _file(str(task.get(wire.WAITING, "")))):
        dealt = sorted(dealt, key=lambda job: -num_examples(job[0]) * (job[1] or 1))
        round = wire.integer(task, wire.ROUND)
        waiting = _put(path, round, str(context.node_id), dealt[1:])
    return iter(dealt) if waiting is None else _taking(dealt[0], waiting)


def _file(folder: str) -> Path | None:
    """Return the file in the folder of that name; None if it is not for this node.

    A real node, whose processes are for one message, opens none at a server's word;
    a simulated one of another machine does not find it.
    """
    if processes.for_one_message() or not _FOLDER.fullmatch(folder):
        return None
    path = Path(tempfile.gettempdir()) / folder / _FILE
    return path if path.is_file() else None


def _put(path: Path, round: int, node: str, own: Sequence[Job]) -> "Waiting | None":
    """Let these wait for the node; None if that cannot be."""
    try:
        waiting = Waiting(path, round, node)
        with ExitStack() as failed:
            failed.callback(waiting.close)
            waiting.put(own)
            failed.pop_all()
    except sqlite3.Error as error:
        log.warning("This node offers no clients to others: %s: %s", path, error)
        return None
    return waiting


def _taking(first: Job, waiting: "Waiting") -> Iterator[Job]:
    """Yield the first and then all that waits, until nothing does.

    Or until that cannot be known any more: the server then names the clients with which
    no node began, and what was trained counts.
    """
    with closing(waiting):
        yield first
        while True:
            try:
                taken = waiting.take()
            except sqlite3.Error as error:
                log.warning("This node stops taking clients: %s", error)
                return
            if not taken:
                return
            yield from taken


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

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, jobs: Sequence[Job]) -> None:
        """Let these wait for this node; whoever comes first takes them."""
        self._database.execute("PRAGMA synchronous = OFF")  # it need not last
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
