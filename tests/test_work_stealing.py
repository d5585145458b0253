"""Nodes that share a round: who is done takes the clients that wait for others."""

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fl_app import client_app, network, processes, server_app, waking, work_stealing
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
def folder() -> Iterator[str]:
    with work_stealing.waiting_folder() as name:
        yield name


def file_in(folder: str) -> Path:
    return Path(tempfile.gettempdir()) / folder / "waiting.sqlite"


def begin(
    folder: str,
    node: int,
    *clients: int,
    round: int = 1,
    config: Mapping[str, Any] = SIMULATED,
    sizes: Mapping[int, int] | None = None,
    epochs: Mapping[int, int] | None = None,
) -> Iterator[int]:
    """Return the clients that a node trains which was dealt these."""
    task = ConfigRecord({wire.ROUND: round, wire.WAITING: folder})
    context = Context(1, node, dict(config), RecordDict(), {})
    dealt = [(client, (epochs or {}).get(client)) for client in clients]
    size = (sizes or {}).get
    jobs = work_stealing.jobs(dealt, task, context, lambda client: size(client, 9))
    return (client for client, _ in jobs)


def test_who_is_done_takes_what_waits_for_another(folder: str) -> None:
    slow, fast = begin(folder, 1, 0, 2, 4, 6), begin(folder, 2, 1, 3, 5)
    assert next(slow) == 0
    assert list(fast) == [1, 3, 5, 2, 4, 6]
    assert list(slow) == []


def test_clients_wait_from_the_moment_their_node_has_its_message(folder: str) -> None:
    slow = begin(folder, 1, 0, 2, 4)  # and then it validates
    assert list(begin(folder, 2, 1, 3)) == [1, 3, 2, 4]
    assert list(slow) == [0], "the first is left to its node"


def test_how_many_epochs_a_client_manages_goes_with_it(folder: str) -> None:
    slow = work_stealing.jobs(
        [(0, 3), (2, 1), (4, 2)],
        ConfigRecord({wire.ROUND: 1, wire.WAITING: folder}),
        Context(1, 1, dict(SIMULATED), RecordDict(), {}),
        lambda client: 5,
    )
    other = work_stealing.jobs(
        [(1, 3), (3, 3)],
        ConfigRecord({wire.ROUND: 1, wire.WAITING: folder}),
        Context(1, 2, dict(SIMULATED), RecordDict(), {}),
        lambda client: 5,
    )
    assert list(other) == [(1, 3), (3, 3), (4, 2), (2, 1)]
    assert list(slow) == [(0, 3)]


def test_the_most_work_is_begun_first(folder: str) -> None:
    sizes = {0: 5, 1: 7, 2: 5, 3: 8}
    assert list(begin(folder, 1, 0, 1, 2, 3, sizes=sizes)) == [3, 1, 0, 2]
    epochs = {0: 3, 1: 1, 2: 2, 3: 1}
    assert list(begin(folder, 2, 0, 1, 2, 3, sizes=sizes, epochs=epochs)) == [
        0,
        2,
        3,
        1,
    ]


def test_of_several_nodes_the_fullest_is_helped(folder: str) -> None:
    begin(folder, 1, 0, 1, 2)
    begin(folder, 2, 3, 4, 5, 6)
    assert list(begin(folder, 3, 7, 8)) == [7, 8, 4, 1, 5, 2, 6]


def test_who_was_dealt_one_client_neither_gives_nor_takes(folder: str) -> None:
    begin(folder, 1, 0, 2, 4)
    assert list(begin(folder, 2, 1)) == [1]


def test_what_waits_from_another_round_is_left_alone(folder: str) -> None:
    begin(folder, 1, 0, 2, 4, round=1)  # and then its node was lost
    assert list(begin(folder, 2, 1, 3, round=2)) == [1, 3]


def test_a_real_node_opens_no_file_by_a_server_s_word(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, 1, 0, 2, 4)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-clientapp", "--insecure"])
    assert processes.for_one_message()
    nodes = network.sharing(2)
    assert list(begin(folder, 2, 3, 1, config=nodes[0])) == [3, 1]


def test_nor_does_a_simulated_one_open_another(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, 1, 0, 2, 4)
    for other in (f"../{folder}", f"{folder}/.", str(file_in(folder).parent), ""):
        assert list(begin(other, 2, 3, 1)) == [3, 1]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # as on another machine
    assert list(begin(folder, 2, 3, 1)) == [3, 1]
    assert list(tmp_path.iterdir()) == []


def test_without_a_usable_file_a_node_trains_its_own(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    file_in(folder).write_bytes(b"no database, but long enough to be read as one " * 20)
    assert list(begin(folder, 1, 0, 2)) == [0, 2]
    assert "offers no clients" in caplog.text


def test_a_file_that_is_lost_ends_the_taking_not_the_round(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = begin(folder, 1, 0, 2, 4)
    assert next(jobs) == 0
    file_in(folder).write_bytes(b"overwritten " * 2000)
    assert list(jobs) == []
    assert "stops taking" in caplog.text


def test_the_folder_goes_with_the_run() -> None:
    with work_stealing.waiting_folder() as name:
        assert list(begin(name, 1, 0, 2)) == [0, 2]
    assert not file_in(name).parent.exists()


def test_without_room_for_the_folder_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with work_stealing.waiting_folder() as name:
        assert list(begin(name, 1, 0, 2)) == [0, 2]
    assert "will not take clients" in caplog.text


NODE = """
import json, sys, time
from flwr.app import ConfigRecord, Context, RecordDict
from fl_app import work_stealing
from strategies import wire
folder, node, first, end = sys.argv[1], *map(int, sys.argv[2:])
work_stealing._PART = 10**9  # one client at a time: as many transactions as can be
task = ConfigRecord({wire.ROUND: 1, wire.WAITING: folder})
context = Context(1, node, {}, RecordDict(), {})
dealt = [(client, None) for client in range(first, end)]
jobs = work_stealing.jobs(dealt, task, context, lambda client: 1)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([client for client, _ in jobs if not time.sleep(0.0003)]))
"""


def test_no_client_is_lost_or_taken_twice_by_nodes_at_once(folder: str) -> None:
    shares = [(0, 900), (900, 910), (910, 1000)]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, folder, *map(str, (node, *share))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        for node, share in enumerate(shares)
    ]
    for node in nodes:
        assert node.stdout is not None
        assert node.stdout.readline() == "ready\n"
    for node in nodes:
        assert node.stdin is not None
        node.stdin.write("go\n")
        node.stdin.flush()
    said = [json.loads(node.communicate(timeout=60)[0]) for node in nodes]
    counts = Counter(client for clients in said for client in clients)
    assert counts == Counter(range(1000))
    assert len(said[1]) > 10, "they did not work at once"
    with closing(sqlite3.connect(file_in(folder))) as database:
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
            if message.metadata.dst_node_id == 3 and wire.WAITING in task:
                clients = wire.integers(task, wire.TRAIN_IDS)
                slow = wire.integers(task, wire.EPOCHS) or [None] * len(clients)
                context = Context(1, 3, SIMULATED, RecordDict(), {})
                dealt = list(zip(clients, slow, strict=True))
                work_stealing.jobs(dealt, task, context, self._sizes.__getitem__)
        return super().push_messages(pushed)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server take nodes for simulated ones, and node 3 begin but once."""
    put, begun = work_stealing.Waiting.put, set()

    def put_once(
        waits: work_stealing.Waiting, jobs: Sequence[work_stealing.Job]
    ) -> None:
        node = waits.node, waits.round
        if node not in begun:
            put(waits, jobs)
        begun.add(node)

    monkeypatch.setattr(work_stealing.Waiting, "put", put_once)
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
    tmp_path: Path,
    shared: None,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    options = options_of(tmp_path / "shared", changes)
    grid = Unequal(options)
    folder = run(grid, options)
    assert [len(clients) for clients in grid.trained[7]] == [5, 5]
    assert [len(clients) for clients in grid.trained[3]] == [1, 1]

    monkeypatch.setattr(waking, "in_simulation", lambda grid: False)
    options = options_of(tmp_path / "apart", changes)
    node = app_node(client_app.app, options)
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


def changing(
    options: dict[str, Any], change: Callable[[Message, Message], Message]
) -> Handler:
    """Return a node whose replies to what it was to train are changed."""
    honest = app_node(client_app.app, options, SIMULATED)

    def handle(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        return change(message, reply) if wire.TRAINED in reply.content else reply

    return handle


def test_clients_that_a_node_took_and_lost_are_named(
    tmp_path: Path, shared: None, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Message, reply: Message) -> Message:
        return Message(Error(2, "out of memory"), reply_to=message)

    options = options_of(tmp_path, {"min-fraction": 0.1, "num-server-rounds": 1})
    grid = Unequal(options, changing(options, fail))
    row = run(grid, options).metrics()[1]
    assert (row["num_clients"], row["num_failures"]) == (1, 5)
    reasons = Counter(
        record.args[2:]
        for record in caplog.records
        if isinstance(record.args, tuple) and "leaves out" in str(record.msg)
    )
    assert reasons == {(7, "out of memory"): 5}, "those it took, too"
    (own,) = grid.trained[3]
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
    grid = Unequal(options, changing(options, accounting_for(forged)))
    row = run(grid, options).metrics()[1]
    assert (row["num_clients"], row["num_failures"]) == (1, 5)


def test_a_client_that_another_node_has_accounted_for_is_not_counted_again(
    tmp_path: Path, shared: None
) -> None:
    options = options_of(tmp_path, {"min-fraction": 0.1, "num-server-rounds": 1})
    grid = Unequal(options)

    def claim(message: Message, reply: Message) -> Message:
        (taken,) = grid.trained[7]
        return accounting_for(taken[:1])(message, reply)

    grid.nodes[3] = changing(options, claim)
    row = run(grid, options).metrics()[1]
    assert (row["num_clients"], row["num_failures"]) == (5, 1)


def accounting_for(clients: list[int]) -> Callable[[Message, Message], Message]:
    """Return what has a reply tell that these failed."""
    told = ["no"] * len(clients)

    def change(message: Message, reply: Message) -> Message:
        columns = {wire.CLIENT_IDS: clients, wire.REASON: told, wire.TRACEBACK: told}
        reply.content[wire.FAILED] = ConfigRecord(columns)  # type: ignore[arg-type]
        return reply

    return change


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
