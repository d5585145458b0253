"""The folder of a run, results/<run>/: its only writer and reader.

Files are written beside their place and renamed into it, so a reader never sees half
of one. `summary.json` comes last: a folder without it is of a run that did not finish.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fl_app import provenance
from fl_app.config import WHITE, ConfigError, Resize, RunConfig, project_path

Array = np.ndarray[Any, Any]
_RESIZE: dict[str, Resize] = {how: how for how in get_args(Resize)}

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
REPORT = "report.html"
BEST_MODEL = "best.safetensors"
SUMMARY = "summary.json"
ERROR = "error.json"
MODEL = "model.safetensors"
CURVES = "curves.png"
PARTITION = "partition.png"


class ResultsError(RuntimeError):
    """A run's files cannot be written; the message says why and how to go on."""


@dataclass(frozen=True)
class ModelInfo:
    """What a saved model is, beside its tensors: enough to build and feed it."""

    model: str
    dataset: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float
    class_names: list[str]
    resize: Resize = "squeeze"
    """How images of other sizes are brought to that of the input."""
    white_level: int = WHITE
    """The level of 16-bit images that stands for white."""


class RunFolder:
    """One run's folder. Create it with `create`, or name one that is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @classmethod
    def create(cls, config: RunConfig) -> "RunFolder":
        """Make the folder of a new run and write its config.json.

        Raises:
            ConfigError: the run exists, or the results folder cannot be written.
        """
        results = usable_results_dir(config)
        name = config.run_name or unused_name(config)
        options = config.options() | {"run-name": name}
        draft = cls(Path(tempfile.mkdtemp(dir=results, prefix=f".{name}-")))
        draft._write_json(CONFIG, {"options": options, **provenance.describe()})
        draft.path.chmod(0o755)
        try:
            draft.path.rename(results / name)
        except OSError:  # a folder that holds something
            shutil.rmtree(draft.path)
            raise ConfigError(_taken(results / name)) from None
        return cls(results / name)

    def reopen(self, last_round: int, config: RunConfig) -> None:
        """Take the folder back to where it was after a round: the run goes on.

        config.json gets the options that hold from now on, and where that is.
        """
        described = self.config() or {}
        again = {"after_round": last_round, **provenance.describe()}
        described["options"] = config.options() | {"resume": ""}
        described["resumed"] = [*self.resumed(), again]
        self._write_json(CONFIG, described)
        for name in (SUMMARY, ERROR):
            (self.path / name).unlink(missing_ok=True)
        kept = [_line(row) for row in self.clients() if row["round"] <= last_round]
        self._write_bytes(CLIENTS, "".join(kept).encode())

    def resumed(self) -> list[dict[str, Any]]:
        """Return where the run went on, `after_round`, and with what versions."""
        return list((self.config() or {}).get("resumed", []))

    def write_flower_run(self, run_id: int) -> None:
        """Note in config.json by which id Flower knows the run, to stop it by."""
        self._write_json(CONFIG, (self.config() or {}) | {"flower_run_id": str(run_id)})

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl anew: one line a round, from round 0."""
        text = "".join(map(_line, rows))
        write_atomically(self.path / METRICS, text.encode(), durable=False)

    def append_clients(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to clients.jsonl: one per client and round."""
        with (self.path / CLIENTS).open("a") as file:
            file.writelines(map(_line, rows))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that follows counts on them

    def write_model(
        self, arrays: Mapping[str, Array], info: ModelInfo, *, best: bool = False
    ) -> None:
        """Write model.safetensors, or the best one, with `info` as its metadata."""
        from safetensors.numpy import save

        described = {
            "model": info.model,
            "dataset": info.dataset,
            "input_shape": json.dumps(info.input_shape),
            "normalisation": json.dumps(
                {"mean": info.mean, "std": info.std, "full_scale": info.full_scale}
            ),
            "class_names": json.dumps(info.class_names),
            "resize": info.resize,
            "white_level": str(info.white_level),
        }
        tensors = {name: np.asarray(a, order="C") for name, a in arrays.items()}
        self._write_bytes(
            BEST_MODEL if best else MODEL, save(tensors, metadata=described)
        )

    def write_picture(self, name: str, png: bytes) -> None:
        """Write a picture."""
        self._write_bytes(name, png)

    def write_report(self, html: str) -> None:
        """Write report.html."""
        self._write_bytes(REPORT, html.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the run is finished."""
        self._write_json(SUMMARY, summary)

    def write_error(self, error: BaseException) -> None:
        """Write error.json: the run ended without a result, and why."""
        described = {"type": type(error).__name__, "message": str(error)}
        self._write_json(ERROR, described)

    def config(self) -> dict[str, Any] | None:
        """Return config.json: options and origin; None where there is none."""
        return self._read_json(CONFIG)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rounds so far; none before round 0 was evaluated."""
        return self._read_lines(METRICS)

    def clients(self) -> list[dict[str, Any]]:
        """Return one row per client and round so far."""
        return self._read_lines(CLIENTS)

    def summary(self) -> dict[str, Any] | None:
        """Return the summary; None where the run did not finish."""
        return self._read_json(SUMMARY)

    def error(self) -> dict[str, Any] | None:
        """Return why the run ended without a result; None where it did not."""
        return self._read_json(ERROR)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def _write_bytes(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write the file in full, and if `durable` on disk, before it takes its place."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Put the folder's entries on disk, so that a renamed file is found there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StoppedError(RuntimeError):
    """A run was stopped by its user; named in its error.json."""


def read_info(path: Path) -> ModelInfo:
    """Return the description of a model.safetensors; its tensors are not read.

    Raises:
        ConfigError: see `read_model`.
    """
    return _read_safetensors(path, tensors=False)[1]


def read_model(path: Path) -> tuple[dict[str, Array], ModelInfo]:
    """Return the tensors and the description of a model.safetensors.

    Raises:
        ConfigError: the file is not there, or is not one that a run has written.
    """
    return _read_safetensors(path, tensors=True)


def _read_safetensors(
    path: Path, *, tensors: bool
) -> tuple[dict[str, Array], ModelInfo]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            described = file.metadata() or {}
            names = file.keys() if tensors else ()
            arrays = {name: file.get_tensor(name) for name in names}
        normalisation = json.loads(described["normalisation"])
        channels, height, width = json.loads(described["input_shape"])
        return arrays, ModelInfo(
            model=described["model"],
            dataset=described["dataset"],
            input_shape=(channels, height, width),
            mean=tuple(normalisation["mean"]),
            std=tuple(normalisation["std"]),
            full_scale=normalisation["full_scale"],
            class_names=json.loads(described["class_names"]),
            resize=_RESIZE[described.get("resize", "squeeze")],
            white_level=int(described.get("white_level", WHITE)),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a model that a run has written ({error}): give the path "
            "of a run's model.safetensors"
        ) from error


def model_sha256(arrays: Mapping[str, Array]) -> str:
    """Return the hash of a model: SHA-256 over its tensors, sorted by name.

    Each adds name, dtype, shape (as text, each followed by a newline) and its
    little-endian bytes in C order.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name}\n{array.dtype.name}\n{shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def usable_results_dir(config: RunConfig) -> Path:
    """Return the results folder, made if need be, after a check that it takes files.

    Raises:
        ConfigError: it cannot be written, or holds a run of the name already.
    """
    results = project_path(config.results_dir, "results-dir")
    try:
        make_writable(results)
    except OSError as error:
        raise ConfigError(
            f"results-dir = {config.results_dir!r} cannot be written ({error}): give "
            "a folder that can"
        ) from error
    taken = config.run_name and not config.resume
    if taken and (results / config.run_name).exists():
        raise ConfigError(_taken(results / config.run_name))
    return results


def make_writable(folder: Path) -> None:
    """Make a folder, if need be. Raises: OSError: it takes no files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def unused_name(config: RunConfig) -> str:
    """Return a name made of data set, strategy, time and a few random digits."""
    method = config.strategy if config.regime == "federated" else config.regime
    dataset = re.sub(r"[^A-Za-z0-9._-]", "-", Path(config.dataset).name) or "data"
    moment = time.strftime("%Y%m%d-%H%M%S")  # the digits: runs may start at once
    return f"{dataset}-{method}-{moment}-{secrets.token_hex(2)}"


def _taken(path: Path) -> str:
    return (
        f"run-name = {path.name!r} exists in {path.parent}: choose another name, or "
        "remove that folder"
    )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
