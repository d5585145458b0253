"""Faults of real nodes: what misbehaves is left out and named, the run goes on."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_app import certificates, client_app, network, server_app
from fl_app.artifacts import RunFolder
from fl_app.submission import Connection
from strategies import wire
from tests.conftest import PROJECT, default_options
from tests.local_grid import Handler, LocalGrid, app_node
from tests.pictures import write_digits
from tests.test_network import sha, wait_for_round

pytestmark = pytest.mark.faults

NAMES = ("honest", "killed", "liar", "twister")  # in the order of client ids
PAYLOADS = {
    "liar": ["raise", "nan", "inf", "shape", "broadcastable", "missing"],
    "twister": ["extra", "zero", "negative", "huge", "string"],
}
BAD_ROUND = 1 + max(map(len, PAYLOADS.values()))
"""In which one client hangs, one dies and one loses its SuperNode."""
REASONS = {
    "raise": "sabotaged",
    "nan": "not finite",
    "inf": "not finite",
    "shape": "shape",
    "broadcastable": "shape",
    "missing": "missing",
    "extra": "unknown to the model",
    "zero": "reports num-examples = 0",
    "negative": "reports num-examples = -5",
    "huge": "reports num-examples = 1099511627776",
    "string": "no MetricRecord",
}
ROUNDS = BAD_ROUND + 7
TIMEOUT = 30.0
OPTIONS: dict[str, Any] = {
    "dataset": "private",
    "model": "logistic",
    "num-server-rounds": ROUNDS,
    "local-epochs": 2,
    "min-fraction": 0.2,
    "max-failed-rounds": 1,
    "round-timeout": TIMEOUT,
}


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as images: a folder for each node, and one for the server's test."""
    root = tmp_path_factory.mktemp("owners")
    write_digits(root, (*NAMES, "test"))
    return root


class Site:
    """A SuperLink and nodes that can be killed, started again and sabotaged."""

    def __init__(self, folder: Path, owners: Path) -> None:
        self.net = network.Network(folder, PROJECT)
        self._owners = owners

    def open(self) -> None:
        """Start the SuperLink and tell it the nodes' keys."""
        folder = self.net.folder
        certificates.make(folder, hosts=["127.0.0.1"], nodes=NAMES, days=1)
        self.net.start_superlink()
        self.link = Connection.to(f"127.0.0.1:{self.net.port}", folder / "ca.crt")
        for name in NAMES:
            self.link.register(folder / f"{name}.pub", name)

    def start(self, name: str, plan: dict[int, str] | None = None) -> network.Process:
        config = {"data-path": str(self._owners / name)}
        with pytest.MonkeyPatch.context() as patch:
            if plan:
                patch.setenv("PYTHONPATH", str(PROJECT / "tests" / "saboteur"))
                patch.setenv("SABOTAGE", json.dumps(plan))
            return self.net.start_supernode(name, config)


@pytest.fixture
def site(tmp_path: Path, owners: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    started = Site(folder, owners)
    try:
        started.open()
        yield started
    finally:
        started.net.stop()


def supervise(site: Site, name: str, stop: threading.Event) -> None:
    """Start a node again until it stays, as systemd would."""
    while not stop.wait(5):
        process = site.start(name)
        while process.popen.poll() is None:
            if stop.wait(1):
                return


def twin(results: Path, owners: Path, absent: set[tuple[int, int]]) -> RunFolder:
    """Run in this process, without the clients that are absent from a round."""
    options = default_options() | OPTIONS
    options |= {"results-dir": str(results), "run-name": "twin", "min-nodes": 4}
    options["test-path"] = str(owners / "test")

    def node(client: int, name: str) -> Handler:
        own = app_node(client_app.app, options, {"data-path": str(owners / name)})

        def handle(message: Message) -> Message | None:
            if message.metadata.message_type == wire.TRAIN:
                task = wire.take(message.content, wire.TASK, ConfigRecord)
                if (wire.integer(task, wire.ROUND), client) in absent:
                    message.content[wire.TASK] = ConfigRecord({})  # makes it fail
            return own(message)

        return handle

    grid = LocalGrid({i: node(i, name) for i, name in enumerate(NAMES)})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    return RunFolder(results / "twin")


def test_a_run_survives_whatever_its_clients_do(
    tmp_path: Path, owners: Path, site: Site
) -> None:
    plans = {
        name: dict(enumerate(faults, start=1)) for name, faults in PAYLOADS.items()
    }
    plans["liar"][BAD_ROUND] = "hang"
    plans["twister"][BAD_ROUND] = "die"
    plans["killed"] = {BAD_ROUND: "hang"}  # else it may be done before it is killed
    nodes = {name: site.start(name, plans.get(name)) for name in NAMES}
    site.net.wait_online(site.link, list(nodes.values()))
    options = OPTIONS | {
        "min-nodes": 4,
        "test-path": str(owners / "test"),
        "results-dir": str(tmp_path),
        "run-name": "attacked",
    }
    run_id = site.link.start(PROJECT, options, {})
    folder = RunFolder(tmp_path / "attacked")
    wait_for_round(folder, BAD_ROUND - 1)
    time.sleep(1)  # into the round
    for pid in group_of(nodes["killed"].popen.pid):
        os.kill(pid, signal.SIGKILL)
    stop = threading.Event()
    supervisor = threading.Thread(target=supervise, args=(site, "killed", stop))
    supervisor.start()
    try:
        deadline = time.monotonic() + 420
        while not (status := site.link.status(run_id)).finished:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        stop.set()
        supervisor.join()
    assert status.completed, status.details

    rows = folder.clients()
    said = {(r["round"], r["name"]): r["failure"] for r in rows}
    for name, faults in PAYLOADS.items():
        for round, fault in enumerate(faults, start=1):
            assert REASONS[fault] in (said[round, name] or ""), (fault, said)
    for name in ("killed", "liar", "twister"):
        assert said[BAD_ROUND, name]
        assert said[ROUNDS, name] is None, said  # it takes part again
    assert not any(said[round, "honest"] for round in range(1, ROUNDS + 1))
    for row in folder.metrics()[1:]:
        failures = [r for r in rows if r["round"] == row["round"] and r["failure"]]
        assert row["num_failures"] == len(failures)
    assert all(r["node"] for r in rows if r["failure"])

    absent = {(r["round"], r["client"]) for r in rows if r["failure"]}
    assert sha(folder) == sha(twin(tmp_path, owners, absent))


def group_of(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [one for child in children for one in group_of(int(child))]
