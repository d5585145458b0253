"""Trainings as jobs: queued in files, run by processes of their own, one at a time.

A job is a file beside the runs and, while it is going on, a process that runs
`fl-app run` in a session of its own. The service may be killed and started again: the
process goes on, and the files tell where everything stands.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit
from click import ClickException
from filelock import FileLock, Timeout

from fl_app import artifacts, environment, resuming, running, simulation
from fl_app.artifacts import RunFolder, write_atomically
from fl_app.config import RUN_NAME, ConfigError, RunConfig, is_auto
from fl_app.data import datasets
from fl_app.server_app import build_strategy
from fl_app.serving import request_schema
from fl_app.serving.catalogue import Catalogue, is_held

if TYPE_CHECKING:
    from fl_app.submission import Connection

FOLDER = ".jobs"
MAX_QUEUED = 8
TOKEN_VARIABLE = "FL_APP_TOKEN"
"""Environment variable with what requests to the service must bear."""
_GOES_ON = (
    "resume = {0!r}: the run is still going on, or about to end: try again once "
    "GET /runs/{0} says that it is over"
)
_LOG_LINES = 20
_ERROR = "error: "  # as `fl-app run` begins the line that says why it ends
_REMEMBERED = 100  # trainings that are over
_PATIENCE = 10.0
"""Seconds in which another service of the folder has done its part with the jobs."""

Options = Mapping[str, str | int | float | bool]


class QueueFullError(RuntimeError):
    """As many trainings wait as may."""


class BusyError(ClickException):
    """Another service of the folder is at its trainings and does not get done."""

    def __init__(self) -> None:
        super().__init__(
            "another service of this folder is busy with its trainings: try again in "
            "a moment, or see what keeps it"
        )


@dataclass(frozen=True)
class Job:
    """A training that was asked for."""

    id: str
    """Name of its run."""
    options: dict[str, Any]
    resolved: dict[str, Any]
    """All options."""
    created: float
    """Seconds since 1970."""
    pid: int = 0
    """Its process; 0 before it began."""
    born: int = 0
    """When that began, in the kernel's ticks: a pid alone may be another's later."""
    cancelled: bool = False


class Jobs:
    """The trainings of a results folder."""

    def __init__(
        self,
        results: Path,
        project: Path,
        *,
        data_dir: str = "",
        nodes: int = 0,
        federation: str = "",
    ) -> None:
        """Take up what an earlier service left.

        Args:
            results: where runs go.
            project: the app's folder.
            data_dir: where data sets lie, as the option; "" for the Hub.
            nodes: simulated nodes; 0 for as many as there are cores.
            federation: real nodes instead: a SuperLink in Flower's config.toml.
        """
        self._results = results
        self._folder = results / FOLDER
        self._project = project
        self._data_dir = data_dir
        self._nodes = nodes or environment.default_nodes()
        self._federation = federation
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()  # of the jobs' files, see `_alone`

    def submit(self, given: Options) -> Job:
        """Queue a training.

        Raises:
            ConfigError: an option is not allowed; nothing is queued.
            QueueFullError: too many wait.
            BusyError: another service keeps the trainings to itself.
        """
        options, resolved = self._checked(given)
        job = Job(str(resolved["run-name"]), options, resolved, time.time())
        with self._alone():
            earlier = self.find(job.id)
            if earlier is not None and not self._is_over(earlier):
                if given.get("resume"):
                    raise ConfigError(_GOES_ON.format(job.id))
                raise ConfigError(f"run {job.id!r} is taken: choose another name")
            if len(self.queued()) >= MAX_QUEUED:
                raise QueueFullError(
                    f"{MAX_QUEUED} trainings wait already: try again when one is done"
                )
            self._forget()
            self._write(job)
        return job

    def _forget(self) -> None:
        """Remove the files of trainings that are long over; their runs stay."""
        over = [job for job in self.all() if self._is_over(job)]
        for job in over[:-_REMEMBERED]:
            self._started.pop(job.id, None)
            for kind in ("log", "toml", "json"):
                (self._folder / f"{job.id}.{kind}").unlink(missing_ok=True)

    def _checked(self, given: Options) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the options to start with, run name and all, and all as resolved."""
        for name in request_schema.FORBIDDEN:
            if name in given:
                raise ConfigError(
                    f"option {name} cannot be set over HTTP: leave it out"
                )
        named = request_schema.known_datasets(real_nodes=bool(self._federation))
        if str(given.get("dataset", "digits")) not in named:
            known = ", ".join(named)
            raise ConfigError(f"over HTTP, dataset must be one of: {known}")
        declared = environment.default_options(self._project)
        request_schema.check(given, declared)
        own: dict[str, Any] = {"results-dir": str(self._results)}
        if given.get("resume"):
            return self._resumed({**given, **own}, declared)
        if self._data_dir:
            own["data-dir"] = self._data_dir
        config = RunConfig.from_options(
            {**declared, **given, **own}, datasets.recipe_for
        )
        artifacts.usable_results_dir(config)
        build_strategy(config)
        if config.min_nodes > self._nodes and not self._federation:
            raise ConfigError(f"min-nodes must be at most {self._nodes}")
        name = config.run_name or artifacts.unused_name(config)
        kept = {
            name: value
            for name, value in given.items()
            if not is_auto(name, value) or not is_auto(name, declared[name])
        }
        called = {"run-name": name}
        return {**kept, **own, **called}, {**config.options(), **called}

    def _resumed(
        self, given: dict[str, Any], declared: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return likewise for a run that goes on."""
        name = str(given["resume"])
        if not re.fullmatch(RUN_NAME, name):
            raise ConfigError(f"resume = {name!r} is not the name of a run")
        if Catalogue(self._results).find(name) is None:
            raise ConfigError(f"resume = {name!r}: there is no such run")
        config = resuming.resolve(given, declared)
        if config.regime != "federated":
            raise ConfigError(f"resume = {name!r}: the run is no federation")
        if is_held(RunFolder(self._results / name)):
            raise ConfigError(_GOES_ON.format(name))
        return given, config.options() | {"run-name": name}

    def all(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        found = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Job(**json.loads(path.read_text())))
        return sorted(found, key=lambda job: (job.created, job.id))

    def find(self, name: str) -> Job | None:
        """Return the job of a run's name (one that is a folder's name)."""
        path = self._folder / f"{name}.json"
        try:
            return Job(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def queued(self) -> list[Job]:
        """Return the jobs that have not begun, the oldest first."""
        return [job for job in self.all() if not job.pid and not job.cancelled]

    def running(self) -> Job | None:
        """Return the job that is going on, be it without the process that began it."""
        return next(
            (
                job
                for job in self.all()
                if self.is_alive(job) or (job.pid and is_held(self.folder_of(job)))
            ),
            None,
        )

    def _is_over(self, job: Job) -> bool:
        """Whether a job has been, or will never be, carried out."""
        return bool(job.cancelled or job.pid) and not self.is_alive(job)

    def is_alive(self, job: Job) -> bool:
        """Whether a job's process is going on."""
        started = self._started.get(job.id)
        # Its run may go on by another process, which another service started.
        own = started is not None and started.pid == job.pid
        if started is not None and own and started.poll() is not None:
            return False  # and its exit status is taken
        return bool(job.pid) and _born(job.pid) == job.born

    def advance(self) -> Job | None:
        """Start the oldest job that waits, if none is going on; return it.

        Raises:
            BusyError: another service keeps the trainings to itself.
        """
        if not self.queued():
            return None
        with self._alone():
            return self._advance()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one that changes jobs, in this service or another of the folder.

        Two that start one job would leave a process that no file knows of.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / ".lock", poll_interval=0.01)
        end = time.monotonic() + _PATIENCE
        if not self._lock.acquire(timeout=_PATIENCE):
            raise BusyError
        try:
            lock.acquire(timeout=max(0.0, end - time.monotonic()))
        except Timeout:
            self._lock.release()
            raise BusyError from None
        except BaseException:
            self._lock.release()
            raise
        try:
            yield
        finally:
            lock.release()
            self._lock.release()

    def _advance(self) -> Job | None:
        waiting = self.queued()
        if not waiting or self.running() is not None:
            return None
        job = waiting[0]
        text = "\n".join(f"{k} = {_toml(v)}" for k, v in job.options.items()) + "\n"
        write_atomically(self._folder / f"{job.id}.toml", text.encode())
        log = self._folder / f"{job.id}.log"
        nodes = (
            ("--federation", self._federation)
            if self._federation
            else ("--nodes", str(self._nodes))
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("fl-app")),
                    *("run", *nodes),
                    *("-c", str(self._folder / f"{job.id}.toml")),
                ],
                cwd=self._project,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        begun = replace(job, pid=process.pid, born=_born(process.pid))
        self._started[job.id] = process
        self._write(begun)
        return begun

    def stop(self, job: Job) -> bool:
        """Take a job from the queue, or interrupt it; return whether there was need.

        A run that is interrupted stops as by Ctrl-C: with its files as they are. Where
        its process is gone, Flower is asked to stop it.

        Raises:
            click.ClickException: Flower's SuperLink cannot be reached, or another
                service keeps the trainings to itself.
        """
        with self._alone():
            now = self.find(job.id) or job
            told = self._told(now)
            folder = self.folder_of(now)
            described = folder.config() or {}
            if told or "flower_run_id" not in described or not is_held(folder):
                return told
            # First, so that who asks meanwhile does not ask Flower as well.
            self._write(replace(now, cancelled=True))
        try:
            self._connect().stop(int(described["flower_run_id"]))  # may take its time
        except BaseException:
            with self._alone():
                self._write(now)
            raise
        threading.Thread(
            target=running.leave_error, args=(folder, running.STOPPED), daemon=True
        ).start()
        return True

    def _told(self, job: Job) -> bool:
        """Stop a job that waits or has a process; return whether it is one."""
        if not job.pid and not job.cancelled:
            self._write(replace(job, cancelled=True))
            return True
        alive = self.is_alive(job)
        if job.cancelled and (alive or is_held(self.folder_of(job))):
            return True  # it has been told, and is ending
        if alive:
            self._write(replace(job, cancelled=True))
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGTERM)  # INT is ignored in the background
        return alive

    def _connect(self) -> "Connection":
        if not self._federation:
            return simulation.connect(self._project)
        from fl_app.submission import Connection

        return Connection.named(self._federation)

    def said(self, job: Job) -> str:
        """Return why a job ended without a run, or else the last it printed."""
        try:
            text = (self._folder / f"{job.id}.log").read_text(errors="replace")
        except OSError:
            return ""
        lines = text.strip().splitlines()
        errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
        if errors:
            lines = lines[errors[-1] :]
            lines[0] = lines[0].removeprefix(_ERROR)
        return "\n".join(lines[-_LOG_LINES:])

    def folder_of(self, job: Job) -> RunFolder:
        """Return the run's folder, there or not yet."""
        return RunFolder(self._results / job.id)

    def _write(self, job: Job) -> None:
        text = json.dumps(asdict(job), indent=2) + "\n"
        write_atomically(self._folder / f"{job.id}.json", text.encode())


def _environment() -> dict[str, str]:
    """Return what a training's process is given: not the service's secret."""
    kept = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE}
    return {**kept, "NO_COLOR": "1"}


def _born(pid: int) -> int:
    """Return when a process began, in ticks since the machine did; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def _toml(value: object) -> str:
    return str(tomlkit.item(value).as_string())
