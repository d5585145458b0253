"""Nodes that share a round: who is done takes the clients that wait for others."""

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fl_app import client_app, server_app, sharing, waking
from fl_app.artifacts import RunFolder
from fl_app.config import RunConfig
from fl_app.data import datasets
from strategies import wire
from tests.conftest import PROJECT, default_options
from tests.local_grid import Handler, LocalGrid, app_node

SIMULATED = {"partition-id": 0, "num-partitions": 2}
OPTIONS = {
    "model": "logistic",
    "num-server-rounds": 2,
    "local-epochs": 1,
    "num-clients": 6,
    "run-name": "run",
}


@pytest.fixture
def waiting() -> Iterator[Path]:
    with sharing.waiting_file() as path:
        yield Path(path)


def begin(
    path: Path | str,
    node: int,
    *clients: int,
    round: int = 1,
    config: dict[str, Any] = SIMULATED,
    sizes: dict[int, int] | None = None,
    epochs: int | None = None,
) -> Iterator[sharing.Job]:
    """Return the jobs of a node that was dealt these clients."""
    task = ConfigRecord({wire.ROUND: round, wire.SHARED: str(path)})
    context = Context(1, node, dict(config), RecordDict(), {})
    dealt = [(client, epochs) for client in clients]
    return sharing.jobs(
        dealt, task, context, lambda client: (sizes or {}).get(client, 9)
    )


def test_who_is_done_takes_what_waits_for_another(waiting: Path) -> None:
    slow, fast = begin(waiting, 1, 0, 2, 4, 6, epochs=3), begin(waiting, 2, 1, 3, 5)
    assert next(slow) == (0, 3)
    assert list(fast) == [(1, None), (3, None), (5, None), (2, 3), (4, 3), (6, 3)]
    assert list(slow) == []


def test_the_first_client_is_left_to_its_node(waiting: Path) -> None:
    first = begin(waiting, 1, 0, 2)
    assert next(first) == (0, None)
    assert [client for client, _ in begin(waiting, 2, 1, 3)] == [1, 3, 2]


def test_the_longest_are_begun_first(waiting: Path) -> None:
    jobs = begin(waiting, 1, 0, 1, 2, 3, sizes={0: 5, 1: 7, 2: 5, 3: 8})
    assert [client for client, _ in jobs] == [3, 1, 0, 2]


def test_of_several_nodes_the_fullest_is_helped(waiting: Path) -> None:
    few, many = begin(waiting, 1, 0, 1, 2), begin(waiting, 2, 3, 4, 5, 6)
    next(few), next(many)
    third = begin(waiting, 3, 7, 8)
    assert [client for client, _ in third] == [7, 8, 4, 1, 5, 2, 6]


def test_what_waits_from_another_round_is_left_alone(waiting: Path) -> None:
    next(begin(waiting, 1, 0, 2, 4, round=1))  # and then its node was lost
    assert [client for client, _ in begin(waiting, 2, 1, 3, round=2)] == [1, 3]


@pytest.mark.parametrize("config", [{}, {"partition-id": 0}])
def test_a_real_node_opens_no_file_by_a_server_s_word(
    waiting: Path, config: dict[str, Any]
) -> None:
    next(begin(waiting, 1, 0, 2, 4))
    assert list(begin(waiting, 2, 3, 1, config=config)) == [(3, None), (1, None)]


def test_a_node_of_another_machine_makes_no_file(tmp_path: Path) -> None:
    elsewhere = tmp_path / "waiting.sqlite"
    assert list(begin(elsewhere, 1, 3, 1)) == [(3, None), (1, None)]
    assert list(tmp_path.iterdir()) == []


def test_without_a_usable_file_a_node_trains_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "waiting.sqlite"
    broken.write_bytes(b"no database, but long enough to be read as one " * 20)
    assert [client for client, _ in begin(broken, 1, 0, 2)] == [0, 2]
    assert "shares no clients" in caplog.text


def test_a_file_that_is_lost_ends_the_taking_not_the_round(
    waiting: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = begin(waiting, 1, 0, 2, 4)
    assert next(jobs) == (0, None)
    waiting.write_bytes(b"overwritten " * 2000)
    assert list(jobs) == []
    assert "stops sharing" in caplog.text


def test_the_file_goes_with_the_run() -> None:
    with sharing.waiting_file() as path:
        assert list(begin(path, 1, 0, 2)) == [(0, None), (2, None)]
    assert not Path(path).parent.exists()


NODE = """
import json, sys
from flwr.app import ConfigRecord, Context, RecordDict
from fl_app import sharing
from strategies import wire
path, node, first, end = sys.argv[1], *map(int, sys.argv[2:])
task = ConfigRecord({wire.ROUND: 1, wire.SHARED: path})
context = Context(1, node, {"num-partitions": 3}, RecordDict(), {})
dealt = [(client, None) for client in range(first, end)]
jobs = sharing.jobs(dealt, task, context, lambda client: 1)
print(json.dumps([client for client, _ in jobs]))
"""


def test_no_client_is_lost_or_taken_twice_by_nodes_at_once(waiting: Path) -> None:
    shares = [(0, 900), (900, 910), (910, 1000)]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, str(waiting), *map(str, (node, *share))],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        )
        for node, share in enumerate(shares)
    ]
    said = [node.communicate(timeout=60)[0] for node in nodes]
    counts = Counter(client for text in said for client in json.loads(text))
    assert counts == Counter(range(1000))
    with closing(sqlite3.connect(waiting)) as database:
        assert database.execute("SELECT count(*) FROM waiting").fetchone() == (0,)


# --- whole runs: node 7 has done its own while node 3 trains its first client


def options_of(results: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return default_options() | OPTIONS | {"results-dir": str(results)} | changes


def run(grid: LocalGrid, options: dict[str, Any]) -> RunFolder:
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    return RunFolder(Path(options["results-dir"]) / "run")


class Unequal(LocalGrid):
    """Nodes 3 and 7; 3 has begun when 7 is asked for its reply, which is before 3 is.

    Keeps whom each reply counts in.
    """

    def __init__(self, options: dict[str, Any], fast: Handler | None = None) -> None:
        self.trained: dict[int, list[list[int]]] = {3: [], 7: []}
        config = RunConfig.from_options(options, datasets.recipe_for)
        counts = datasets.load(config).partition(config, 2).label_counts()
        self._sizes = dict(enumerate(counts.sum(axis=1)))
        node = app_node(client_app.app, options, SIMULATED)
        super().__init__({3: self._noting(node), 7: self._noting(fast or node)})

    def _noting(self, node: Handler) -> Handler:
        def handle(message: Message) -> Message | None:
            reply = node(message)
            assert reply is not None
            rows = reply.has_content() and wire.find(
                reply.content, wire.TRAINED, MetricRecord
            )
            if rows:
                clients = sorted(int(client) for client in rows[wire.CLIENT_IDS])  # type: ignore[union-attr]
                self.trained[message.metadata.dst_node_id].append(clients)
            return reply

        return handle

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = list(messages)
        for message in pushed:
            task = wire.take(message.content, wire.TASK, ConfigRecord)
            if message.metadata.dst_node_id == 3 and wire.SHARED in task:
                clients = wire.integers(task, wire.TRAIN_IDS)
                slow = wire.integers(task, wire.EPOCHS) or [None] * len(clients)
                context = Context(1, 3, SIMULATED, RecordDict(), {})
                dealt = list(zip(clients, slow, strict=True))
                next(sharing.jobs(dealt, task, context, self._sizes.__getitem__))
        return super().push_messages(pushed)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server take nodes for simulated ones, and node 3 begin but once."""
    put, begun = sharing.Waiting.put, set()

    def put_once(waits: sharing.Waiting, jobs: Sequence[sharing.Job]) -> None:
        node = waits.node, waits.round
        if node not in begun:
            put(waits, jobs)
        begun.add(node)

    monkeypatch.setattr(sharing.Waiting, "put", put_once)
    monkeypatch.setattr(waking, "in_simulation", lambda grid: True)
    monkeypatch.setattr(waking, "reply_wait", lambda grid: time.sleep)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": "fedprox"},
        {"strategy": "fedmedian"},
        {"compression": "int8", "error-feedback": False},
        {"straggler-fraction": 0.5, "stragglers": "keep", "local-epochs": 3},
    ],
)
def test_who_trained_whom_changes_nothing(
    tmp_path: Path, shared: None, changes: dict[str, Any]
) -> None:
    options = options_of(tmp_path / "shared", changes)
    grid = Unequal(options)
    folder = run(grid, options)
    assert [len(clients) for clients in grid.trained[7]] == [5, 5]
    assert [len(clients) for clients in grid.trained[3]] == [1, 1]

    options = options_of(tmp_path / "apart", changes)
    node = app_node(client_app.app, options)  # that is no simulated one
    other = run(LocalGrid({3: node, 7: node}), options)
    kept = ("test_loss", "train_loss", "num_clients", "num_failures", "upload_bytes")
    assert [[row[key] for key in kept] for row in folder.metrics()] == [
        [row[key] for key in kept] for row in other.metrics()
    ]
    assert sha(folder) == sha(other)


def sha(folder: RunFolder) -> str:
    summary = folder.summary()
    assert summary is not None
    return str(summary["model_sha256"])


def test_clients_that_a_node_took_and_lost_are_named(
    tmp_path: Path, shared: None, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(tmp_path, {"min-fraction": 0.1, "num-server-rounds": 1})
    honest = app_node(client_app.app, options, SIMULATED)

    def failing(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        if wire.TRAINED not in reply.content:
            return reply
        return Message(Error(2, "out of memory"), reply_to=message)

    grid = Unequal(options, failing)
    folder = run(grid, options)
    (own,) = grid.trained[3]
    row = folder.metrics()[1]
    assert (row["num_clients"], row["num_failures"]) == (1, 5)
    reasons = Counter(
        record.args[2:]
        for record in caplog.records
        if isinstance(record.args, tuple) and "leaves out" in str(record.msg)
    )
    assert reasons == {
        (7, "out of memory"): 3,
        (3, "it waited for any node that shares, and none accounted for it"): 2,
    }
    assert len(own) == 1


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param([9], id="not of this round"),
        pytest.param([0, 0], id="twice"),
    ],
)
def test_a_node_that_accounts_for_others_than_the_cohort_is_refused(
    tmp_path: Path, shared: None, forged: list[int]
) -> None:
    options = options_of(tmp_path, {"min-fraction": 0.1, "num-server-rounds": 1})
    honest = app_node(client_app.app, options, SIMULATED)

    def forging(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        if wire.TRAINED in reply.content:
            columns = {
                wire.CLIENT_IDS: forged,
                wire.REASON: ["no"] * len(forged),
                wire.TRACEBACK: ["no"] * len(forged),
            }
            reply.content[wire.FAILED] = ConfigRecord(columns)  # type: ignore[arg-type]
        return reply

    folder = run(Unequal(options, forging), options)
    row = folder.metrics()[1]
    assert (row["num_clients"], row["num_failures"]) == (1, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "scaffold", "optimizer": "sgd"},
        {"compression": "int8", "error-feedback": True},
        {"clients-together": 2, "model": "mlp"},
    ],
)
def test_what_depends_on_the_node_is_not_shared(
    tmp_path: Path, shared: None, changes: dict[str, Any]
) -> None:
    options = options_of(tmp_path, changes)
    grid = Unequal(options)
    run(grid, options)
    assert [len(clients) for clients in grid.trained[7]] == [3, 3]
    assert [len(clients) for clients in grid.trained[3]] == [3, 3]
