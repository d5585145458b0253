"""Runs over real nodes, killed at random, end as if nothing had happened.

`make faults` runs them too; they take about half an hour.
"""

import os
import signal
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fl_app.artifacts import RunFolder
from tests.test_network import (
    OPTIONS,
    SECONDS,
    of_this_test,
    processes_of,
    start,
    wait_for_round,
    wait_until_gone,
)
from tests.test_run import run

pytestmark = pytest.mark.kills

ROUNDS = 5
VICTIMS = ("flwr-serverapp", "flower-superlink", "everything")
LONGER = OPTIONS.replace("num-server-rounds=3", f"num-server-rounds={ROUNDS}")


def figures(folder: RunFolder) -> Any:
    """All that must be the same, times aside."""
    summary = folder.summary()
    assert summary is not None
    rows = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.metrics()]
    return summary["model_sha256"], rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    results = tmp_path_factory.mktemp("whole")
    return figures(run(results, nodes=2, num_server_rounds=ROUNDS))


def kill(tmp_path: Path, victim: str, parent: "subprocess.Popen[str]") -> int:
    """Kill the victim without a warning; return how many processes it was."""
    everything = victim == "everything"
    if everything:
        parent.kill()
    killed = 0
    for pid in processes_of(tmp_path):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if everything or victim in line:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


@pytest.mark.parametrize("number", range(20))
def test_killed_at_any_moment(tmp_path: Path, whole: Any, number: int) -> None:
    draws = Random(number)
    victim = VICTIMS[number % len(VICTIMS)]
    round, moment = draws.randrange(ROUNDS), draws.uniform(0, 4)
    started = start(tmp_path, "network", f'{LONGER} run-name="net"', "--nodes", "2")
    folder = RunFolder(tmp_path / "net")
    wait_for_round(folder, round)
    with pytest.raises(subprocess.TimeoutExpired):  # it must still be going on
        started.wait(moment)
    assert folder.summary() is None
    assert kill(tmp_path, victim, started)
    said, _ = started.communicate(timeout=SECONDS)
    assert started.returncode != 0, said
    wait_until_gone(tmp_path)

    again = start(tmp_path, "network", 'resume="net"', "--nodes", "2")
    said, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, said
    assert figures(folder)[0] == whole[0]
    ours, theirs = figures(folder)[1], whole[1]
    for key in ("round", "test_accuracy", "test_loss", "train_loss", "num_failures"):
        assert [row[key] for row in ours] == [row[key] for row in theirs], key
    assert not of_this_test(tmp_path)
