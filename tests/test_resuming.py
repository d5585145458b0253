"""A run that was stopped goes on to the same bits; here in one process."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fl_app import artifacts, checkpoints, client_app, resuming, server_app
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from strategies.fedavg import FedAvg
from strategies.federation import FederationError
from tests.conftest import default_options, make_config
from tests.local_grid import LocalGrid, app_node

QUICK: dict[str, Any] = {
    "model": "logistic",
    "num-server-rounds": 4,
    "local-epochs": 1,
    "num-clients": 6,
    "fraction-train": 0.5,
}


class Killed(BaseException):
    """Ends the server as a signal would: nothing tidies up."""


def start(results: Path, *, given: dict[str, Any] | None = None) -> RunFolder:
    options = default_options() | {"results-dir": str(results)}
    options |= QUICK | {"run-name": "run"} if given is None else given
    grid = LocalGrid({i: app_node(client_app.app, options) for i in (7, 3)})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    return RunFolder(results / str(options["resume"] or options["run-name"]))


def resume(results: Path, **given: Any) -> RunFolder:
    options = {name.replace("_", "-"): value for name, value in given.items()}
    return start(results, given={"resume": "run", **options})


def kill_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let that call (from 1) of a function end the server instead."""
    whole = getattr(owner, name)
    calls = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


def figures(folder: RunFolder) -> dict[str, Any]:
    """All that must not depend on whether a run was stopped: not the times."""

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]

    summary = folder.summary()
    assert summary is not None
    del summary["total_seconds"]
    return {
        "summary": summary,
        "metrics": timeless(folder.metrics()),
        "clients": timeless(folder.clients()),
        "error": folder.error(),
        "options": (folder.config() or {})["options"] | {"results-dir": ""},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a run that nothing stopped."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    return figures(start(tmp_path_factory.mktemp("whole")))


WRITES = [
    (checkpoints, "write", 1),  # round 0
    (checkpoints, "write", 2),
    (checkpoints, "write", 5),  # the last round
    (checkpoints, "write_atomically", 3),
    (FedAvg, "_round", 1),
    (FedAvg, "_round", 3),
    (RunFolder, "append_clients", 2),
    (RunFolder, "write_metrics", 3),
    (FedAvg, "validate", 1),
    (RunFolder, "write_model", 1),
    (RunFolder, "write_summary", 1),
]


@pytest.mark.parametrize(("owner", "name", "call"), WRITES)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: dict[str, Any], owner: Any, name: str, call: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, owner, name, call)
        with pytest.raises(Killed):
            start(tmp_path)
    assert RunFolder(tmp_path / "run").summary() is None
    assert figures(resume(tmp_path)) == whole


def test_a_run_may_be_stopped_more_than_once(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    for call in (2, 2, 2):
        with pytest.MonkeyPatch.context() as patch:
            kill_in(patch, FedAvg, "_round", call)
            with pytest.raises(Killed):
                resume(tmp_path) if (tmp_path / "run").exists() else start(tmp_path)
    assert figures(resume(tmp_path)) == whole


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = start(tmp_path)
    names = sorted(p.name[:12] for p in (folder.path / "checkpoint").glob("round-*"))
    assert names == ["round-000003", "round-000004"]


def stopped(results: Path) -> list[Path]:
    """Return the checkpoints of a run stopped in round 4, the newest first."""
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, FedAvg, "_round", 4)
        with pytest.raises(Killed):
            start(results)
    return sorted((results / "run" / "checkpoint").glob("round-*"), reverse=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[: len(content) // 2], "torn or altered"),
        (lambda content: b"", "torn or altered"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "torn or altered"),
    ],
)
def test_a_torn_checkpoint_is_passed_over(
    tmp_path: Path,
    whole: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    said: str,
) -> None:
    newest, _ = stopped(tmp_path)
    newest.write_bytes(damage(newest.read_bytes()))
    assert figures(resume(tmp_path)) == whole
    assert f"Checkpoint {newest.name} is not used: it is {said}" in caplog.text
    assert "The run goes on after round 2" in caplog.text


def test_a_checkpoint_of_another_run_is_passed_over(
    tmp_path: Path, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    (tmp_path / "other").mkdir()
    start(tmp_path / "other", given=QUICK | {"seed": 1, "run-name": "run"})
    foreign = max((tmp_path / "other" / "run" / "checkpoint").glob("round-*"))
    (tmp_path / "run" / "checkpoint" / foreign.name).write_bytes(foreign.read_bytes())
    assert figures(resume(tmp_path)) == whole
    assert (
        f"{foreign.name} is not used: it is of a run with other options" in caplog.text
    )


def test_a_checkpoint_that_cannot_be_written_ends_the_run_resumably(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    def full(path: Path, content: bytes, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", full)
        said = 'No space left on device.*continue with resume = "run"'
        with pytest.raises(artifacts.ResultsError, match=said):
            start(tmp_path)
    error = RunFolder(tmp_path / "run").error()
    assert error is not None
    assert "No space left" in error["message"]
    assert figures(resume(tmp_path)) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_run_resumably(
    small_disk: Path, whole: dict[str, Any]
) -> None:
    """Whatever a round writes first finds no room, and nothing before it is hurt."""
    honest = FedAvg._round

    def fill(strategy: Any, federation: Any, arrays: Any, round: int) -> Any:
        if round == 3:
            with (
                contextlib.suppress(OSError),
                (small_disk / "other").open("wb") as file,
            ):
                while True:
                    file.write(bytes(4096))
                    file.flush()
        return honest(strategy, federation, arrays, round)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedAvg, "_round", fill)
        with pytest.raises(artifacts.ResultsError, match="No space left on device"):
            start(small_disk)
    folder = RunFolder(small_disk / "run")
    config = make_config(**{k.replace("-", "_"): v for k, v in QUICK.items()})
    newest = checkpoints.read_newest(folder.path, config)
    assert newest is not None
    assert newest.round == 2
    assert len(folder.metrics()) == 3
    (small_disk / "other").unlink()
    assert figures(resume(small_disk)) == whole


def test_a_finished_run_is_trained_further(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    start(tmp_path, given=QUICK | {"num-server-rounds": 2, "run-name": "run"})
    longer = figures(resume(tmp_path, num_server_rounds=4))
    assert longer == whole


def test_an_extension_that_was_stopped_is_still_one(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    start(tmp_path, given=QUICK | {"num-server-rounds": 2, "run-name": "run"})
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, FedAvg, "_round", 2)
        with pytest.raises(Killed):
            resume(tmp_path, num_server_rounds=4)
    folder = resume(tmp_path)
    assert figures(folder) == whole
    resumed = (folder.config() or {})["resumed"]
    assert [again["after_round"] for again in resumed] == [2, 3]


def test_without_a_usable_checkpoint_nothing_is_lost(tmp_path: Path) -> None:
    for path in stopped(tmp_path):
        path.write_bytes(b"torn")
    folder = RunFolder(tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="no checkpoint that can be used"):
        resume(tmp_path)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


def test_checkpoints_that_were_refused_do_not_crowd_out_new_ones(
    tmp_path: Path,
) -> None:
    newest, before = stopped(tmp_path)
    newest.write_bytes(b"torn")
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, FedAvg, "_round", 2)
        with pytest.raises(Killed):
            resume(tmp_path)
    kept = sorted(before.parent.glob("round-*"))
    assert [path.name[:12] for path in kept] == ["round-000002", "round-000003"]
    assert kept[0] == before
    assert kept[1].read_bytes() != b"torn"


def test_a_run_that_gave_up_is_given_rounds_anew(tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("out of order")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app.ClientWork, "train", fail)
        with pytest.raises(FederationError, match="2 rounds in a row"):
            start(tmp_path, given=QUICK | {"max-failed-rounds": 2, "run-name": "run"})
    folder = resume(tmp_path)
    rows = folder.metrics()
    assert [row["num_clients"] for row in rows] == [0, 0, 0, 3, 3]
    assert folder.error() is None


def test_a_run_that_gave_up_in_its_last_round_is_not_finished_by_resuming(
    tmp_path: Path,
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("out of order")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app.ClientWork, "train", fail)
        given = QUICK | {"max-failed-rounds": 4, "run-name": "run"}
        with pytest.raises(FederationError, match="4 rounds in a row"):
            start(tmp_path, given=given)
    with pytest.raises(FederationError, match="no round is left"):
        resume(tmp_path)
    assert RunFolder(tmp_path / "run").summary() is None


def test_the_initial_model_is_not_needed_again(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    first = start(tmp_path, given=QUICK | {"run-name": "first"})
    path = first.path / "model.safetensors"
    given = QUICK | {"run-name": "run", "initial-model": str(path)}
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, FedAvg, "_round", 3)
        with pytest.raises(Killed):
            start(tmp_path, given=given)
    path.unlink()
    assert resume(tmp_path).summary() is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resume": "none"}, "resume = 'none': there is no such run"),
        ({"resume": "../run"}, "there is no such run"),
        ({"resume": "run", "seed": 9}, "the run has seed = 0, it cannot go on with 9"),
        ({"resume": "run", "num-server-rounds": "x"}, "num-server-rounds = 'x' is not"),
        ({"resume": "run"}, "the run has finished its 4 rounds"),
        ({"resume": "run", "num-server-rounds": 3}, "has finished its 4 rounds"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    folder = start(tmp_path)
    before = figures(folder)
    with pytest.raises(ConfigError, match=said):
        start(tmp_path, given=given)
    assert figures(folder) == before


def test_fewer_rounds_than_are_done_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ConfigError, match="round 3 is done, num-server-rounds = 2 is"):
        resume(tmp_path, num_server_rounds=2)


def test_other_data_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    config = resuming.config_of({"resume": "run"}, str(tmp_path))
    with (
        pytest.raises(ConfigError, match="data is not what the run began with"),
        resuming.opened(config, np.ones((6, 10), np.int64)),
    ):
        pass


def test_a_run_that_is_going_on_is_not_resumed(tmp_path: Path) -> None:
    stopped(tmp_path)
    with (
        resuming.held(RunFolder(tmp_path / "run")),
        pytest.raises(ConfigError, match="run run is still going on"),
    ):
        resume(tmp_path)


def test_the_digest_of_options_forgets_where_a_run_was_made() -> None:
    one = checkpoints.options_digest(make_config())
    assert one == checkpoints.options_digest(make_config(results_dir="/elsewhere"))
    assert one == checkpoints.options_digest(make_config(num_server_rounds=99))
    assert one != checkpoints.options_digest(make_config(seed=1))
    assert one != checkpoints.options_digest(make_config(local_epochs=9))


def test_a_checkpoint_round_trips_exactly(tmp_path: Path) -> None:
    config = make_config()
    kept = checkpoints.Checkpoint(
        round=3,
        arrays={"w": np.array([[0.1, -0.0]], np.float32), "n": np.array(7)},
        rows=[{"round": 0, "test_loss": 0.1 + 0.2, "train_loss": None}],
        label_counts="x",
        seconds=1.5,
        strategy_arrays={"v": np.arange(3.0)},
        strategy_state={"failed-rounds": 1},
    )
    checkpoints.write(tmp_path, kept, config)
    read = checkpoints.read_newest(tmp_path, config)
    assert read is not None
    for mine, theirs in (
        (kept.arrays, read.arrays),
        (kept.strategy_arrays, read.strategy_arrays),
    ):
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            assert array.dtype == theirs[name].dtype
            assert array.shape == theirs[name].shape
            assert array.tobytes() == theirs[name].tobytes()
    assert json.dumps(read.rows) == json.dumps(kept.rows)
    assert (read.round, read.seconds, read.strategy_state) == (
        3,
        1.5,
        {"failed-rounds": 1},
    )


def test_a_schedule_that_knows_its_end_keeps_it(tmp_path: Path) -> None:
    options = QUICK | {"run-name": "run", "learning-rate-schedule": "cosine"}
    start(tmp_path, given=options | {"num-server-rounds": 2})
    with pytest.raises(ConfigError, match="num-server-rounds, which must stay 2"):
        resume(tmp_path, num_server_rounds=4)
    with pytest.raises(ConfigError, match="come to its end: start a new run"):
        resume(tmp_path)


def test_what_is_changed_must_fit_the_rest(tmp_path: Path) -> None:
    options = QUICK | {"run-name": "run", "fraction-evaluate": 0.0}
    start(tmp_path, given=options | {"num-server-rounds": 1})
    with pytest.raises(ConfigError, match="patience = 2 needs validation"):
        resume(tmp_path, num_server_rounds=4, patience=2)
