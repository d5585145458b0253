"""Whole runs through Flower's Ray-backed simulation, as a user starts them."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_app import environment
from tests.conftest import PROJECT

pytestmark = pytest.mark.simulation
BIN = Path(sys.executable).parent
QUICK = 'model="logistic" num-server-rounds=2 local-epochs=1'


class Machine:
    """A fresh home and Flower home; stops the SuperLinks that were started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = ("PATH", "FL_APP_CACHE", "LANG")
        self.variables = {k: os.environ[k] for k in kept if k in os.environ}
        self.variables |= {
            "HOME": str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
        }

    def run(
        self, *command: str, cwd: Path = PROJECT
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env=self.variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def superlinks(self) -> list[int]:
        """Process ids of the SuperLinks of this machine."""
        return self.processes(b"flower-superlink")

    def processes(self, name: bytes) -> list[int]:
        """Process ids of this machine whose command has that in it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                variables = (process / "environ").read_bytes()
            except OSError:
                continue
            mine = f"FLWR_HOME={self.variables['FLWR_HOME']}\0".encode() in variables
            if mine and name in command:
                found.append(int(process.name))
        return found

    def stop(self) -> None:
        for process in self.superlinks():
            os.kill(process, signal.SIGTERM)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("home"))
    yield made
    made.stop()
    end = time.monotonic() + 20
    while made.processes(b"forkserver") and time.monotonic() < end:
        time.sleep(0.2)
    assert not made.processes(b"forkserver"), "what runs are forked from goes, too"


def summary(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return content


def git_status() -> str:
    command = ["git", "-C", str(PROJECT), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class OtherSuperLink(http.server.BaseHTTPRequestHandler):
    """Says that it is well and knows nothing else, as another project's would."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def _usual_port_is_taken() -> Iterator[None]:
    try:
        server = http.server.HTTPServer(("127.0.0.1", 39091), OtherSuperLink)
    except OSError:  # by a real SuperLink of somebody's: as good
        yield
        return
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("_usual_port_is_taken")
def test_flower_s_own_command_from_another_folder(machine: Machine) -> None:
    """From a clean Flower home, with options, into the project's own results."""
    before = git_status()
    assert machine.run("fl-app", "setup").returncode == 0
    name = f"test-{os.getpid()}"
    try:
        done = machine.run(
            *("flwr", "run", str(PROJECT), "local-simulation", "--stream"),
            *("-c", f'{QUICK} run-name="{name}"'),
            cwd=machine.folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        folder = PROJECT / "results" / name
        assert summary(folder)["rounds"] == 2, done.stdout
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == 3
        assert (folder / "curves.png").stat().st_size > 10_000
    finally:
        shutil.rmtree(PROJECT / "results" / name, ignore_errors=True)
    assert "uv sync" not in done.stdout + done.stderr
    assert not (machine.folder / "flwr" / "runtime-envs").exists()
    assert git_status() == before
    assert len(machine.superlinks()) == 1


def test_fl_app_run_on_another_number_of_nodes_gives_the_same_model(
    machine: Machine,
) -> None:
    hashes = set()
    for nodes in ("1", "3"):
        results = machine.folder / f"results-{nodes}"
        options = f'{QUICK} run-name="run" results-dir="{results}"'
        done = machine.run("fl-app", "run", "--nodes", nodes, "-c", options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "round 2/2" in done.stdout
        assert "test accuracy" in done.stdout
        assert str(results / "run" / "curves.png") in done.stdout
        hashes.add(summary(results / "run")["model_sha256"])
    assert len(hashes) == 1
    assert len(machine.superlinks()) == 1  # the one that was there is used again


def test_a_run_that_fails_has_a_status_and_shows_the_first_traceback(
    machine: Machine,
) -> None:
    results = machine.folder / "results-failed"
    options = (
        f'{QUICK} run-name="run" results-dir="{results}" learning-rate=1e30 '
        "max-failed-rounds=1"
    )
    done = machine.run("fl-app", "run", "-c", options)
    assert done.returncode == 1
    assert "missed the quorum" in done.stdout
    assert "Traceback (most recent call last)" in done.stdout
    assert "has training diverged?" in done.stdout
    assert not (results / "run" / "summary.json").exists()


def test_a_request_to_end_stops_the_run_and_says_so(machine: Machine) -> None:
    results = machine.folder / "results-stopped"
    options = (
        f'model="logistic" num-server-rounds=5000 run-name="run" '
        f'results-dir="{results}"'
    )
    command = [str(BIN / "fl-app"), "run", "-c", options]
    run = subprocess.Popen(
        command,
        env=machine.variables,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = results / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    # A node that is not forked has another title; in the raylet a blank follows.
    nodes = machine.processes(b"/default_worker.py\0")
    assert len(nodes) == environment.default_nodes(), "nodes are not forked"
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "stopped by the user" in printed
    error = json.loads((results / "run" / "error.json").read_text())
    assert "stopped by the user" in error["message"]
    time.sleep(12)  # Flower takes some seconds to end the server's process
    rounds = len(metrics.read_text().splitlines())
    time.sleep(3)
    assert len(metrics.read_text().splitlines()) == rounds
    assert not machine.processes(b"/ray/"), "Ray goes, too"
