"""How runs stand: what their folders say, and what the jobs do that make them."""

from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from fl_app.artifacts import RunFolder
from fl_app.serving.catalogue import Catalogue, Status, status_of
from fl_app.serving.jobs import Job, Jobs


@dataclass(frozen=True)
class Found:
    """A run, begun or not."""

    folder: RunFolder
    status: Status
    options: dict[str, Any]
    """As resolved."""
    job: Job | None
    error: dict[str, Any] | None
    """Why it ended without a result."""


class Runs:
    """All runs of a results folder, those that wait too."""

    def __init__(self, catalogue: Catalogue, jobs: Jobs) -> None:
        self._catalogue = catalogue
        self._jobs = jobs

    def all(self) -> list[Found]:
        """Return all runs, the newest first."""
        jobs = {job.id: job for job in self._jobs.all()}
        folders = self._catalogue.all()
        begun = [self._found(folder, jobs.pop(folder.name, None)) for folder in folders]
        waiting = [
            self._found(self._jobs.folder_of(job), job)
            for job in reversed(list(jobs.values()))
        ]
        return waiting + begun

    def named(self, name: str) -> Found:
        """Return a run; answers 404 where there is none of that name."""
        folder = self._catalogue.find(name)
        job = self._jobs.find(name)
        if folder is not None:
            return self._found(folder, job)
        if job is not None:
            return self._found(self._jobs.folder_of(job), job)
        raise HTTPException(404, f"there is no run {name!r}; GET /runs lists them")

    def _found(self, folder: RunFolder, job: Job | None) -> Found:
        config = folder.config()
        error = folder.error()
        if config is not None:
            status = status_of(folder)
            options = config["options"]
            if status is not Status.FINISHED and job and self._jobs.is_alive(job):
                status = Status.RUNNING  # it is beginning, or about to end
        else:
            assert job is not None
            status, options = self._without_folder(job), job.resolved
            if status is Status.FAILED:
                said = self._jobs.said(job) or "the run ended before it began"
                error = {"type": "Failure", "message": said}
        return Found(folder, status, options, job, error)

    def _without_folder(self, job: Job) -> Status:
        if self._jobs.is_alive(job):
            return Status.RUNNING
        if job.cancelled:
            return Status.STOPPED
        return Status.FAILED if job.pid else Status.QUEUED
