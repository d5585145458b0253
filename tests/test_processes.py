"""A process whose parent is gone ends by itself; tried on real processes."""

import subprocess
import sys
import time

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
