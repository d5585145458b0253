import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fl_app import artifacts
from fl_app.artifacts import ModelInfo, RunFolder, model_sha256, read_model
from fl_app.config import ConfigError
from tests.conftest import make_config

INFO = ModelInfo("mlp", "digits", (1, 8, 8), (0.3,), (0.4,), 255.0, ["a", "b"])


def create(results: Path, **options: object) -> RunFolder:
    return RunFolder.create(make_config(results_dir=str(results), **options))


def test_a_new_run_says_how_it_can_be_repeated(tmp_path: Path) -> None:
    folder = create(tmp_path / "deep" / "results", run_name="one", seed=7)
    described = json.loads((folder.path / "config.json").read_text())
    assert folder.path == tmp_path / "deep" / "results" / "one"
    assert described["options"]["seed"] == 7
    assert described["options"]["model"] == "cnn"  # as resolved
    assert {"python", "flwr", "torch"} <= described["versions"].keys()
    assert described["host"]["cores"] == os.cpu_count()
    assert "git_commit" in described
    assert folder.summary() is None


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    create(tmp_path, run_name="one")
    with pytest.raises(ConfigError, match="run-name = 'one' exists"):
        create(tmp_path, run_name="one")


def test_names_made_at_once_differ(tmp_path: Path) -> None:
    names = {create(tmp_path).name for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("digits-fedavg-") for name in names)


def test_a_results_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="results-dir = .* cannot be written"):
        create(tmp_path / "file" / "results")


def test_metrics_and_clients_are_read_back(tmp_path: Path) -> None:
    folder = create(tmp_path, run_name="one")
    folder.write_metrics([{"round": 0}, {"round": 1}])
    folder.append_clients([{"client": 0}])
    folder.append_clients([{"client": 1}])
    assert folder.metrics() == [{"round": 0}, {"round": 1}]
    assert folder.clients() == [{"client": 0}, {"client": 1}]


def test_a_line_half_written_is_not_read(tmp_path: Path) -> None:
    folder = create(tmp_path, run_name="one")
    folder.append_clients([{"client": 0}])
    with (folder.path / "clients.jsonl").open("a") as file:
        file.write('{"client": 1')
    assert folder.clients() == [{"client": 0}]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    artifacts.write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        artifacts.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_file_round_trips_with_what_it_is(tmp_path: Path) -> None:
    folder = create(tmp_path, run_name="one")
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
    folder.write_model(arrays, INFO)
    read, info = read_model(folder.path / "model.safetensors")
    assert info == INFO
    assert model_sha256(read) == model_sha256(arrays)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ConfigError, match="not a model that a run has written"):
        read_model(tmp_path / "m")
    with pytest.raises(ConfigError, match="not a model"):
        read_model(tmp_path / "absent")


def test_the_hash_is_over_name_dtype_shape_and_bytes() -> None:
    arrays = {"b": np.array([1.5], np.float32), "a": np.array([[1, 2]], np.int64)}
    expected = hashlib.sha256(
        b"a\nint64\n1,2\n" + np.array([1, 2], "<i8").tobytes()
        + b"b\nfloat32\n1\n" + np.array([1.5], "<f4").tobytes()
    ).hexdigest()  # fmt: skip
    assert model_sha256(arrays) == expected
    assert model_sha256(dict(reversed(arrays.items()))) == expected
    swapped = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in arrays.items()}
    assert model_sha256(swapped) == expected
    for other in (
        {**arrays, "b": np.array([1.5], np.float64)},
        {**arrays, "a": np.array([1, 2], np.int64)},
        {"c": arrays["b"], "a": arrays["a"]},
    ):
        assert model_sha256(other) != expected
