"""The runs in a folder of results, as the service tells of them."""

import contextlib
import fcntl
import re
from enum import StrEnum
from pathlib import Path

from fl_app import checkpoints
from fl_app.artifacts import MODEL, RunFolder, StoppedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAMED = {"dataset", "model", "strategy", "seed"}
"""Options that are told of each run."""


class Status(StrEnum):
    """How a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Catalogue:
    """Finds runs by name; a name from a request reaches no other file."""

    def __init__(self, results: Path) -> None:
        self._results = results

    def all(self) -> list[RunFolder]:
        """Return all runs, the newest first."""
        return [folder for _, folder in self.dated()]

    def dated(self) -> list[tuple[float, RunFolder]]:
        """Return all runs and when they began, in seconds since 1970; newest first."""
        found = []
        for path in self._results.glob("*/config.json"):
            folder = self.find(path.parent.name)
            with contextlib.suppress(OSError):  # it was removed just now
                if folder is not None:
                    found.append((path.stat().st_mtime, folder))
        return sorted(found, key=lambda pair: (pair[0], pair[1].name), reverse=True)

    def find(self, name: str) -> RunFolder | None:
        """Return the run of that name; None where there is none, or none of ours."""
        if not _NAME.fullmatch(name):
            return None
        folder = RunFolder(self._results / name)
        try:
            options = (folder.config() or {})["options"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return folder if options.keys() >= _NAMED else None

    def newest_model(self) -> RunFolder | None:
        """Return the run whose model was written last; None without any."""
        written = []
        for folder in self.all():
            with contextlib.suppress(OSError):  # it has none
                written.append(((folder.path / MODEL).stat().st_mtime_ns, folder))
        return max(written, key=lambda pair: pair[0])[1] if written else None


def status_of(folder: RunFolder) -> Status:
    """Return how a run stands; a run that no process holds is not going on."""
    if folder.summary() is not None:
        return Status.FINISHED
    if is_held(folder):
        return Status.RUNNING
    error = folder.error()
    stopped = error is None or error.get("type") == StoppedError.__name__
    return Status.STOPPED if stopped else Status.FAILED


def is_held(folder: RunFolder) -> bool:
    """Whether a process, of this service or not, writes to the folder.

    Asked by a shared lock, which keeps only writers away for a moment, and they have
    patience (see `resuming.held`): of two that ask neither takes the other for one.
    """
    try:
        with (folder.path / checkpoints.FOLDER / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # it is locked, or cannot be asked about
        return True
    return False
