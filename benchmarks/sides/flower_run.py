"""An app through Flower's Ray-backed simulation: ours, or a plain one.

    python benchmarks/sides/flower_run.py --case CASE --output FILE [--plain [--pinned]]

In a Flower home of its own, so that the SuperLink is a fresh one. Ours is started by
`flwr run`, as a user does (by `fl-app run` on a given number of nodes); the plain app
(`benchmarks/plain_flower`, one message a client) likewise, over as many simulated nodes
as it has clients: with the resources that Flower gives a client where nothing is said
(two cores) and PyTorch's own number of threads, as in a quickstart; or (`--pinned`)
with a core and a thread a client. Writes the seconds of each round without evaluation,
those of the server's evaluations, of the start, and the peak memory of all processes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
PLAIN = PROJECT / "benchmarks" / "plain_flower"
_BIN = Path(sys.executable).parent
_SETTLED_SECONDS = 60.0
"""How old a process is whose environment will not change any more by an exec."""


def main() -> None:
    """Run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--pinned", action="store_true")
    arguments = parser.parse_args()
    case = json.loads(Path(arguments.case).read_text())
    run = partial(plain, pinned=arguments.pinned) if arguments.plain else ours
    with tempfile.TemporaryDirectory() as home, Home(Path(home)) as flower:
        Path(arguments.output).write_text(json.dumps(run(flower, case)))


class Home:
    """A Flower home; its processes are watched, and ended with it."""

    def __init__(self, folder: Path, look_seconds: float = 5.0) -> None:
        """Look at the memory so often: a look takes time of the cores that train."""
        self.folder = folder
        self._look_seconds = look_seconds
        self._others: set[str] = set()
        self.variables = {
            **os.environ,
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_COLOR": "1",
        }
        self.peak_bytes = 0

    def __enter__(self) -> "Home":
        self.command("fl-app", "setup")
        return self

    def __exit__(self, *_: object) -> None:
        self._others.clear()  # a number may be another process's by now
        _signal([pid for pid, _ in self._processes()], signal.SIGTERM)
        deadline = time.monotonic() + 20
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.2)

    def command(self, name: str, *arguments: str, project: Path = PROJECT) -> None:
        """Run a command of the environment in this home, its memory watched."""
        process = subprocess.Popen(
            [str(_BIN / name), *arguments],
            env=self.variables,
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,))
        watcher.start()
        said, _ = process.communicate()
        stop.set()
        watcher.join()
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{said[-3000:]}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all processes meanwhile."""
        processes = [pid for pid, _ in self._processes()]
        try:
            _signal(processes, signal.SIGSTOP)
            yield
        finally:
            _signal(processes, signal.SIGCONT)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self._look_seconds):
            self.peak_bytes = max(self.peak_bytes, self._bytes())

    def _processes(self) -> list[tuple[int, Path]]:
        """Return the processes with this home in their environment."""
        mark = f"FLWR_HOME={self.folder / 'flwr'}\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            if process.name in self._others:
                continue
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((int(process.name), process))
                elif time.time() - process.stat().st_mtime > _SETTLED_SECONDS:
                    self._others.add(process.name)
            except OSError:
                continue
        return found

    def _bytes(self) -> int:
        """Return the proportional set size of all processes, shared pages once."""
        total = 0
        for _, process in self._processes():
            try:
                lines = (process / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(x.split()[1]) for x in lines if x.startswith("Pss:"))
        return total * 1024


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, number)


def ours(
    home: Home, case: Mapping[str, Any], between: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Run our app; return its figures.

    Args:
        home: where it runs.
        case: what.
        between: is called in each round after the first, soon after it has begun.
    """
    folder = home.folder / "run"
    options = case["options"] | {
        "data-dir": case["data_dir"],
        "num-server-rounds": case["rounds"],
        "results-dir": str(home.folder),
        "run-name": folder.name,
    }
    metrics = folder / "metrics.jsonl"
    rows_written = Rows(metrics, case["rounds"], between)
    began = time.time()
    command = ("flwr", "run", ".", "local-simulation", "--stream")
    if case["nodes"]:
        command = ("fl-app", "run", "--nodes", str(case["nodes"]))
    with rows_written:
        home.command(
            *command,
            *("--run-config", " ".join(f"{k}={_toml(v)}" for k, v in options.items())),
        )
    whole = time.time() - began
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    done = rows_written.times
    gaps = [after - before for before, after in pairwise(done[1:])]
    spent = [row["seconds"] for row in rows[2:]]
    beyond = [gap - own for gap, own in zip(gaps, spent, strict=False)]
    options = json.loads((folder / "config.json").read_text())["options"]
    return {
        "seconds": [row["seconds"] for row in rows[1:]],
        "evaluation_seconds": beyond,  # with the checkpoint and the run's files
        "accuracy": [row["test_accuracy"] for row in rows[1:]],
        "first_round_seconds": done[1] - began,
        "whole_seconds": whole,
        "peak_bytes": home.peak_bytes,
        "clients_together": options["clients-together"],
        "model": json.loads((folder / "summary.json").read_text())["model_sha256"],
    }


class Rows:
    """Notes when each row of a run's metrics was written.

    Of rows that come faster than it looks, when the last one was: a look takes time of
    the cores that train.
    """

    _LOOK_SECONDS = 0.05

    def __init__(
        self, path: Path, rounds: int, between: Callable[[], None] | None = None
    ) -> None:
        """Watch a file of a row for the first model and one a round.

        Args:
            path: the file.
            rounds: of the run.
            between: is called after each round's row but the last one's.
        """
        self._path, self._rounds, self._between = path, rounds, between
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.times: list[float] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = 0.0
        while not self._stop.wait(self._LOOK_SECONDS):
            try:
                if self._path.stat().st_mtime == seen:
                    continue
                with self._path.open("rb") as file:  # replaced, never added to
                    seen = os.fstat(file.fileno()).st_mtime
                    rows = file.read().count(b"\n")
            except OSError:
                continue
            self.times += [seen] * (rows - len(self.times))
            if self._between and 1 < rows <= self._rounds:
                self._between()


def plain(home: Home, case: Mapping[str, Any], *, pinned: bool) -> dict[str, Any]:
    """Run the plain app, one simulated node a client; return its figures."""
    output = home.folder / "plain.json"
    options = {
        "data": str(Path(case["data_dir"]) / case["dataset"]),
        "num-server-rounds": case["rounds"],
        "local-epochs": case["local_epochs"],
        "batch-size": case["batch_size"],
        "learning-rate": case["learning_rate"],
        "held-out": case["validation_fraction"],
        "num-threads": 1 if pinned else 0,
        "evaluate": False,
        "output": str(output),
    }
    nodes = f"num-supernodes={case['num_clients']}"
    nodes += " client-resources-num-cpus=1" if pinned else ""
    home.variables["FL_APP_WARM"] = "0"  # all processes started as Flower does
    if not pinned:
        home.variables.pop("OMP_NUM_THREADS", None)
    home.command(
        *("flwr", "run", str(PLAIN), "local-simulation", "--stream"),
        *("--run-config", " ".join(f"{k}={_toml(v)}" for k, v in options.items())),
        *("--federation-config", nodes),
    )
    said = json.loads(output.read_text())
    return said | {"peak_bytes": home.peak_bytes}


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


if __name__ == "__main__":
    main()
