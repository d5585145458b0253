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
