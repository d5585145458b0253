"""Checkpoints: all that a run's next round depends on, in one file per round.

A file's name carries a digest of its content, and its content one of the run's options,
so a torn file and one of another run are told from a good one.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.artifacts import write_atomically
from fl_app.callbacks import Callback, Rows
from fl_app.config import RunConfig
from strategies.fedavg import FedAvg
from strategies.interfaces import RoundResult
from strategies.wire import Arrays

log = logging.getLogger("flwr.fl_app")

FOLDER = "checkpoint"
KEPT = 2
_NAME = re.compile(r"round-(\d{6})-([0-9a-f]{16})\.safetensors")
CHANGEABLE = {
    *("num-server-rounds", "resume", "run-name", "results-dir", "data-dir"),
    *("min-nodes", "node-timeout", "round-timeout", "max-failed-rounds", "patience"),
    "tracking",
}
"""Options that may be others when a run is resumed: no round depends on them."""

_MODEL, _STRATEGY = "model/", "strategy/"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round, round 0 being the untrained model."""

    round: int
    arrays: Arrays
    """The global model."""
    rows: list[dict[str, Any]]
    """Those of metrics.jsonl."""
    label_counts: str
    """Digest of the training examples per client and class."""
    seconds: float = 0.0
    """Time that the run had taken, over all its processes."""
    strategy_arrays: Arrays = field(default_factory=dict)
    strategy_state: dict[str, Any] = field(default_factory=dict)


def write(run: Path, checkpoint: Checkpoint, config: RunConfig) -> None:
    """Write a checkpoint, on disk before it takes its place; prune older ones.

    Raises:
        OSError: it cannot be written; the checkpoints that are there are left alone.
    """
    from safetensors.numpy import save

    described = {
        "round": checkpoint.round,
        "options": options_digest(config),
        "rows": checkpoint.rows,
        "label_counts": checkpoint.label_counts,
        "seconds": checkpoint.seconds,
        "strategy": checkpoint.strategy_state,
        "order": list(checkpoint.arrays),
    }
    named = {
        **{_MODEL + name: a for name, a in checkpoint.arrays.items()},
        **{_STRATEGY + name: a for name, a in checkpoint.strategy_arrays.items()},
    }
    tensors = {name: np.asarray(array, order="C") for name, array in named.items()}
    content = save(tensors, metadata={"fl-app": json.dumps(described)})
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"round-{checkpoint.round:06d}-{_digest(content)}.safetensors"
    write_atomically(folder / name, content)
    others = [path for path in _paths(run) if path.name != name]
    earlier = [path for path in others if _round_of(path) < checkpoint.round]
    for path in set(others) - set(earlier[: KEPT - 1]):  # those not earlier: refused
        path.unlink(missing_ok=True)


def read_newest(run: Path, config: RunConfig) -> Checkpoint | None:
    """Return a run's newest checkpoint that is whole and its own; None without one.

    Those passed over are logged with the reason.
    """
    for path in _paths(run):
        try:
            return _read(path, config)
        except CheckpointError as error:
            log.warning("Checkpoint %s is not used: %s", path.name, error)
    return None


def newest_round(run: Path) -> int:
    """Return the round of a run's newest checkpoint, usable or not; 0 without one."""
    return max(map(_round_of, _paths(run)), default=0)


def exist(run: Path) -> bool:
    """Whether a run has checkpoints, be they usable or not."""
    return bool(_paths(run))


def _read(path: Path, config: RunConfig) -> Checkpoint:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    named = _NAME.fullmatch(path.name)
    assert named is not None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error}") from None
    if _digest(content) != named[2]:
        raise CheckpointError("it is torn or altered: its content is not what it was")
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})["fl-app"])
        tensors = load(content)
        if described["options"] != options_digest(config):
            raise CheckpointError("it is of a run with other options")
        return Checkpoint(
            round=described["round"],
            arrays={name: tensors[_MODEL + name] for name in described["order"]},
            rows=described["rows"],
            label_counts=described["label_counts"],
            seconds=described["seconds"],
            strategy_arrays=_below(_STRATEGY, tensors),
            strategy_state=described["strategy"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"it is no checkpoint of this version: {error}") from None


def _below(prefix: str, tensors: Mapping[str, Any]) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def _paths(run: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    found = [p for p in (run / FOLDER).glob("round-*") if _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _round_of(path: Path) -> int:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def options_digest(config: RunConfig) -> str:
    """Return a digest of the options that a run's figures depend on."""
    deciding = {
        key: value for key, value in config.options().items() if key not in CHANGEABLE
    }
    return _digest(json.dumps(deciding, sort_keys=True).encode())


def counts_digest(label_counts: Any) -> str:
    """Return a digest of a federation's training examples per client and class."""
    counts = np.ascontiguousarray(label_counts, dtype="<i8")
    return _digest(f"{counts.shape}".encode() + counts.tobytes())


class Checkpoints(Callback):
    """Writes a checkpoint after each round; register it after what else is kept."""

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        strategy: FedAvg,
        initial: Arrays,
        begun: float,
    ) -> None:
        """Keep what a round's result does not tell.

        Args:
            run: the run's folder.
            config: its options.
            strategy: what trains; its state is kept too.
            initial: the model of round 0.
            begun: when the run began, on the monotonic clock.
        """
        self._run = run
        self._config = config
        self._strategy = strategy
        self._initial = initial
        self._counts = ""
        self._begun = begun

    def on_start(
        self, counts: Any, class_names: Sequence[str], client_names: Sequence[str]
    ) -> None:
        """Note who owns what."""
        self._counts = counts_digest(counts)

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Write the state after the round; what cannot be written ends the run."""
        state = self._strategy.state()
        checkpoint = Checkpoint(
            round=result.round if result else 0,
            arrays=result.arrays if result else self._initial,
            rows=[dict(row) for row in rows],
            label_counts=self._counts,
            seconds=time.monotonic() - self._begun,
            strategy_arrays=state.arrays,
            strategy_state=state.values,
        )
        write(self._run, checkpoint, self._config)
