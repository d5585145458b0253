"""A process whose parent is gone ends by itself; tried on real processes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fl_app import processes
from tests.conftest import PROJECT

ORPHAN = """
import signal, sys, time
from fl_app import processes
processes._GRACE_SECONDS = 0.2
signal.signal(signal.SIGINT, signal.SIG_IGN)
processes.end_with_parent()
print("watching", flush=True)
time.sleep(60)
"""


def begin(*arguments: str) -> "subprocess.Popen[str]":
    started = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "watching\n"
    return started


def test_it_ends_after_the_process_it_was_told_of() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child = begin("--parent-pid", str(parent.pid))
    time.sleep(1)
    assert child.poll() is None
    parent.kill()
    parent.wait()
    assert child.wait(timeout=20) == 1


def test_one_that_was_told_of_none_stays() -> None:
    child = begin()
    time.sleep(1.5)
    assert child.poll() is None
    child.kill()
    child.wait()


HANGING = """
import sys, time
from fl_app import processes
processes._CLIENT_GRACE_SECONDS = 0.2
sys.argv[0] = sys.argv[1]
with processes.watched(0.3):
    time.sleep(float(sys.argv[2]))
print("came through")
"""


def hang(name: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", HANGING, name, str(seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_client_process_that_hangs_is_ended_and_says_where() -> None:
    ended = hang("/bin/flwr-clientapp", 50)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "<string>" in ended.stderr
    assert "came through" not in ended.stdout


def test_work_in_time_is_let_through_and_so_is_any_other_process() -> None:
    assert hang("/bin/flwr-clientapp", 0).stdout == "came through\n"
    assert hang("/bin/default_worker.py", 1.5).stdout == "came through\n"


@pytest.mark.parametrize(
    ("program", "imported"), [("default_worker.py", True), ("flwr-clientapp", False)]
)
def test_only_a_process_that_stays_imports_ahead(
    program: str, imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wanted_soon.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wanted_soon", raising=False)
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}"])
    processes.import_ahead("wanted_soon")
    for thread in threading.enumerate():
        if thread.name == "import wanted_soon":
            thread.join()
    assert ("wanted_soon" in sys.modules) is imported
    sys.modules.pop("wanted_soon", None)


def test_what_a_node_hosts_is_known_without_pytorch() -> None:
    program = """
import sys
from fl_app import client_app, environment, workspace
options = environment.default_options(environment.find_project())
hosted = workspace._cached_data(tuple(sorted(options.items())), 2, None, "")
print(hosted.partition.label_counts().shape, "torch" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "(10, 10) False\n"
