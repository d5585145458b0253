"""A run's figures in TensorBoard's file, read back with TensorBoard's reader."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_app import checkpoints, running, tracking
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from tests.conftest import make_config
from tests.test_resuming import Killed, kill_in, resume, start
from tests.test_run import run

TRACKED: dict[str, Any] = {"tracking": "tensorboard"}


def read(folder: RunFolder, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.path / tracking.FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def column(folder: RunFolder, key: str) -> list[tuple[int, float]]:
    rows = folder.metrics()
    return [(r["round"], pytest.approx(r[key])) for r in rows if r[key] is not None]


@pytest.mark.parametrize(
    ("tag", "key"),
    [
        ("accuracy/test", "test_accuracy"),
        ("accuracy/validation", "validation_accuracy"),
        ("loss/training", "train_loss"),
        ("cost/bytes up", "upload_bytes"),
    ],
)
def test_every_round_is_there(tmp_path: Path, tag: str, key: str) -> None:
    folder = run(tmp_path, **TRACKED)
    assert read(folder, tag) == column(folder, key) != []


def test_a_resumed_run_is_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": "logistic", "num-clients": 4, "run-name": "run", **TRACKED}
    with monkeypatch.context() as patch:
        kill_in(patch, checkpoints, "write", 3)
        with pytest.raises(Killed):
            start(tmp_path, given=options | {"num-server-rounds": 4})
    for rounds in (4, 6):  # stopped, and then finished
        folder = resume(tmp_path, num_server_rounds=rounds)
        for what in ("test", "validation"):
            curve = column(folder, f"{what}_accuracy")
            assert read(folder, f"accuracy/{what}") == curve
        assert len(read(folder, "accuracy/test")) == rounds + 1


def test_a_file_that_cannot_be_opened_ends_no_run(tmp_path: Path) -> None:
    options = {"model": "logistic", "num-clients": 4, "run-name": "run", **TRACKED}
    folder = start(tmp_path, given=options | {"num-server-rounds": 1})
    for file in (folder.path / tracking.FOLDER).iterdir():
        file.unlink()
    (folder.path / tracking.FOLDER).rmdir()
    (folder.path / tracking.FOLDER).write_text("in the way")
    assert resume(tmp_path, num_server_rounds=2).summary()


def test_a_command_without_the_package_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    config = make_config(results_dir=str(tmp_path), **TRACKED)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        running.prepare(config, 1)


def test_without_the_package_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        run(tmp_path, **TRACKED)
    assert list(tmp_path.iterdir()) == []
    tracking.check(make_config())
