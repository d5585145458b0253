"""What the command line does around a run, without one."""

import io
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_app import following, resuming, running
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
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


@pytest.fixture
def _ctrl_c_as_usual() -> Iterator[None]:
    """Also where the tests run in the background, which is not interrupted."""
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, outer)


@pytest.mark.usefixtures("_ctrl_c_as_usual")
def test_who_asks_twice_is_answered_and_three_times_heeded() -> None:
    console = Console(file=io.StringIO())
    with running._not_stopped_again(console):
        signal.raise_signal(signal.SIGINT)
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert said == "it is being stopped; once more to wait for it no longer\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_goes_on_shows_its_new_rounds_alone() -> None:
    console = Console(file=io.StringIO(), width=200)
    row = {"test_accuracy": 0.5, "test_loss": 1.0, "num_failures": 0}
    with following.RunView(console, 4) as view:
        view.go_on(2)
        view.show([{"round": n, **row} for n in range(4)])
        view.show([{"round": n, **row} for n in range(5)])
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.partition("  ")[0] for line in said] == [
        "going on after round 2",
        "round 3/4",
        "round 4/4",
    ]


def test_what_was_there_before_a_run_went_on_is_not_shown(tmp_path: Path) -> None:
    """Also where it goes on from an earlier round than its newest checkpoint."""
    config = make_config(results_dir=str(tmp_path), run_name="run")
    folder = RunFolder.create(config)
    row = {"test_accuracy": 0.5, "test_loss": 1.0, "num_failures": 0}
    folder.write_metrics({"round": n, **row} for n in range(4))
    looks = 0

    def state() -> str:
        nonlocal looks
        looks += 1
        if looks == 1:
            folder.reopen(2, config)
            folder.write_metrics({"round": n, **row} for n in range(6))
        return "finished" if looks == 3 else "running"

    console = Console(file=io.StringIO(), width=200)
    with following.RunView(console, 5) as view:
        following.follow(folder, view, state, patience=60, resumed=0)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0] == "going on after round 2"
    assert [line[:9] for line in said[1:]] == ["round 3/5", "round 4/5", "round 5/5"]


def test_options_of_other_strategies_are_noted() -> None:
    given = {"proximal-mu": 0.1, "fedadam.tau": 0.1, "seed": 1, "num-clients": 3}
    given |= {"momentum": 0.5, "optimizer": "adam"}  # training's own, too
    unused = running.without_effect(make_config(strategy="fedavg"), given)
    assert unused == ["proximal-mu", "fedadam.tau"]
    assert running.without_effect(make_config(strategy="fedprox"), given) == unused[1:]
    adam = make_config(strategy="fedadam")
    assert running.without_effect(adam, given) == unused[:1]


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


@dataclass
class Ended:
    """A SuperLink whose run has come to its end."""

    finished = completed = True
    state, sub_state, details = "finished", "completed", ""

    def start(self, *_: Any) -> int:
        return 1

    def stop(self, run_id: int) -> None:
        assert run_id == 1

    def status(self, run_id: int) -> "Ended":
        return self


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_that_ended_before_it_was_stopped_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """But a sweep, which shares its view among runs, does not begin the next."""
    config = make_config(results_dir=str(tmp_path), run_name="run")
    folder = RunFolder.create(config)
    folder.write_summary({"rounds": 1})

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "follow", interrupted)
    console = Console(file=io.StringIO())
    view = following.RunView(console, 3) if shared else None
    given = (Ended, tmp_path, config, {}, {}, "fl-app run", view)  # type: ignore[var-annotated]
    assert running.run(console, *given) == (running.STOPPED if shared else None)  # type: ignore[arg-type]
    assert "stopping the run" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_told_of_a_finished_run(tmp_path: Path) -> None:
    config = make_config(results_dir=str(tmp_path), run_name="run", compression="int8")
    folder = RunFolder.create(config)
    row = {"round": 1, "validation_accuracy": None, "upload_bytes": 1_234_567}
    folder.write_metrics([row | {"num_failures": 2}])
    folder.append_clients(
        [{"round": 1, "client": 4, "node": "1", "failure": "StateError: gone"}]
    )
    folder.write_summary(
        {
            "final_test_accuracy": 0.5,
            "final_test_loss": None,
            "rounds": 1,
            "total_seconds": 2.0,
            "model_sha256": "ab" * 32,
        }
    )
    console = Console(file=io.StringIO(), width=100)
    following.print_result(console, folder)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.23 MB (int8)" in printed
    assert "2 times; first: StateError: gone" in printed
    assert "not measured" in printed


def test_a_baseline_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    config = make_config(regime="central", results_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="use `fl-app baseline`"):
        running.prepare(config, 2)
