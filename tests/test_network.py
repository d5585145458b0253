"""The app over a real SuperLink and real SuperNodes, with TLS and keys, on loopback."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fl_app import network
from fl_app.artifacts import RunFolder
from tests.conftest import PROJECT, default_options
from tests.test_cli import FL_APP
from tests.test_run import QUICK, run, serve

pytestmark = pytest.mark.network

OPTIONS = " ".join(f"{key}={json.dumps(value)}" for key, value in QUICK.items())
SECONDS = 240


def start(
    tmp_path: Path, command: str, options: str, *more: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(FL_APP), command, *more, "-c", f'results-dir="{tmp_path}" {options}'],
        env={
            **os.environ,
            "FLWR_HOME": str(tmp_path / "flwr"),
            "TMPDIR": str(tmp_path),
            "NO_COLOR": "1",
        },
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell has its background jobs ignore Ctrl-C, and what those start too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def processes_of(tmp_path: Path) -> list[int]:
    """Return the processes that were started, at any remove, by this test."""
    mark = f"FLWR_HOME={tmp_path}".encode()
    return [
        pid
        for pid in network._processes()
        if any(v.startswith(mark) for v in network._environment(pid))
    ]


def of_this_test(tmp_path: Path) -> list[str]:
    """Return their command lines."""
    found = []
    for pid in processes_of(tmp_path):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return [line for line in found if line]


def wait_until_gone(tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while of_this_test(tmp_path):
        assert time.monotonic() < deadline, of_this_test(tmp_path)
        time.sleep(0.3)


def wait_for_round(folder: RunFolder, round: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not any(row["round"] >= round for row in folder.metrics()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def sha(folder: RunFolder) -> str:
    summary = folder.summary()
    assert summary is not None
    return str(summary["model_sha256"])


@pytest.mark.faults
def test_three_supernodes_make_the_simulations_model(tmp_path: Path) -> None:
    started = start(tmp_path, "network", f'{OPTIONS} run-name="net"')
    said, _ = started.communicate(timeout=SECONDS)
    assert started.returncode == 0, said
    assert "round 3/3" in said
    here = run(tmp_path, run_name="here")
    assert sha(RunFolder(tmp_path / "net")) == sha(here)
    assert {p.name for p in (tmp_path / "net").iterdir()} == {
        p.name for p in here.path.iterdir()
    }
    wait_until_gone(tmp_path)


@pytest.mark.faults
def test_killed_and_then_stopped_it_leaves_no_process_and_ends_with_the_same_model(
    tmp_path: Path,
) -> None:
    longer = OPTIONS.replace("num-server-rounds=3", "num-server-rounds=6")
    started = start(tmp_path, "network", f'{longer} run-name="net"')
    folder = RunFolder(tmp_path / "net")
    wait_for_round(folder, 1)
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_until_gone(tmp_path)
    assert folder.summary() is None

    resumed = start(tmp_path, "network", 'resume="net"')
    wait_for_round(folder, 2)
    resumed.send_signal(signal.SIGINT)
    said, _ = resumed.communicate(timeout=90)
    assert resumed.returncode == 1, said
    assert "it was stopped by the user" in said
    assert 'To go on: fl-app network --nodes 3 -c \'resume="net"' in said
    wait_until_gone(tmp_path)

    given = {"results-dir": str(tmp_path), "resume": "net"}
    serve(default_options() | given)  # on nodes in this process
    assert sha(folder) == sha(run(tmp_path, run_name="here", num_server_rounds=6))


@pytest.mark.faults
def test_a_node_for_each_folder_makes_the_model_of_folders(
    tmp_path: Path, clinics: Path
) -> None:
    options = f'{OPTIONS} num-server-rounds=1 run-name="net"'
    options = options.replace("num-server-rounds=3 ", "").replace("num-clients=6 ", "")
    started = start(tmp_path, "network", options, "--data", str(clinics))
    said, _ = started.communicate(timeout=SECONDS)
    assert started.returncode == 0, said
    here = run(
        tmp_path,
        run_name="here",
        dataset=str(clinics),
        partitioner="folders",
        num_clients="auto",
        num_server_rounds=1,
    )
    assert sha(RunFolder(tmp_path / "net")) == sha(here)
    names = [row["name"] for row in RunFolder(tmp_path / "net").clients()]
    assert names == ["east", "north", "south"]
