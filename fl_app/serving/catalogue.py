"""The runs in a folder of results, as the service tells of them."""

import re
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from fl_app import checkpoints
from fl_app.artifacts import MODEL, RunFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Status(StrEnum):
    """How a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Catalogue:
    """Finds runs by name; a name from a request reaches no other file."""

    def __init__(self, results: Path) -> None:
        self._results = results

    def all(self) -> list[RunFolder]:
        """Return all runs, the newest first."""
        found = [
            (path.stat().st_mtime_ns, path.parent)
            for path in self._results.glob("*/config.json")
            if _NAME.fullmatch(path.parent.name)
        ]
        return [RunFolder(path) for _, path in sorted(found, reverse=True)]

    def find(self, name: str) -> RunFolder | None:
        """Return the run of that name; None where there is none."""
        if not _NAME.fullmatch(name):
            return None
        folder = RunFolder(self._results / name)
        return folder if folder.config() is not None else None

    def newest_model(self) -> RunFolder | None:
        """Return the run whose model was written last; None without any."""
        written = [
            ((folder.path / MODEL).stat().st_mtime_ns, folder)
            for folder in self.all()
            if (folder.path / MODEL).exists()
        ]
        return max(written, key=lambda pair: pair[0])[1] if written else None


def status_of(folder: RunFolder) -> Status:
    """Return how a run stands; a run that no process holds is not going on."""
    if folder.summary() is not None:
        return Status.FINISHED
    if _is_held(folder):
        return Status.RUNNING
    return Status.FAILED if folder.error() is not None else Status.STOPPED


def _is_held(folder: RunFolder) -> bool:
    lock = folder.path / checkpoints.FOLDER / ".lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
