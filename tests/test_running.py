"""What the command line does around a run, without one."""

import os
import signal
from pathlib import Path

import pytest

from fl_app import resuming, running
from fl_app.artifacts import RunFolder
from tests.conftest import make_config


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_is_taken_as_ctrl_c(number: int) -> None:
    outer = signal.signal(number, signal.SIG_DFL)  # also where the tests run by nohup
    try:
        with pytest.raises(KeyboardInterrupt), running.stopped_by_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outer)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running.stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_is_left_where_the_run_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_STOP_SECONDS", 0.3)
    folder = RunFolder.create(make_config(results_dir=str(tmp_path), run_name="run"))
    with resuming.held(folder):
        running.leave_error(folder, "killed")  # another process goes on with it
    assert folder.error() is None
    running.leave_error(folder, "killed")
    error = folder.error()
    assert error is not None
    assert error["message"] == "killed"


def test_a_finished_run_is_given_no_error(tmp_path: Path) -> None:
    folder = RunFolder.create(make_config(results_dir=str(tmp_path), run_name="run"))
    folder.write_summary({"rounds": 1})
    running.leave_error(folder, "killed")
    assert folder.error() is None


def test_the_command_to_go_on_names_the_folder_of_results(tmp_path: Path) -> None:
    here = make_config(run_name="run")
    assert running._resuming("fl-app run", here) == "fl-app run -c 'resume=\"run\"'"
    there = make_config(run_name="run", results_dir=str(tmp_path))
    assert running._resuming("fl-app network --nodes 3", there) == (
        f'fl-app network --nodes 3 -c \'resume="run" results-dir="{tmp_path}"\''
    )
