"""How runs stand: what their folders say, and what the jobs do that make them."""

from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from fl_app.artifacts import RunFolder
from fl_app.serving.catalogue import Catalogue, Status, status_of
from fl_app.serving.jobs import Job, Jobs

OVER = {Status.FINISHED, Status.FAILED, Status.STOPPED}


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

    def lacks(self, what: str) -> str:
        """Return the sentence that the run has no such file, or not yet."""
        over = self.status in OVER
        return f"run {self.folder.name!r} is {self.status}: it has no {what}" + (
            "" if over else " yet"
        )


class Runs:
    """All runs of a results folder, those that wait too."""

    def __init__(self, catalogue: Catalogue, jobs: Jobs) -> None:
        self._catalogue = catalogue
        self._jobs = jobs

    def all(self) -> list[Found]:
        """Return all runs: those that wait, then the others, the newest first."""
        jobs = {job.id: job for job in self._jobs.all()}
        dated = [
            (when, self._found(folder, jobs.pop(folder.name, None)))
            for when, folder in self._catalogue.dated()
        ]
        for job in jobs.values():
            dated.append((job.created, self._found(self._jobs.folder_of(job), job)))

        def newest(pair: tuple[float, Found]) -> tuple[bool, float]:
            begun, one = pair
            if one.job is not None and one.status is Status.QUEUED:
                return True, one.job.created  # a run that is to go on began long ago
            return False, begun

        return [one for _, one in sorted(dated, key=newest, reverse=True)]

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
        if job is not None and not job.pid and not job.cancelled:
            status, options = Status.QUEUED, job.resolved
        elif config is not None:
            status, options = status_of(folder), config["options"]
            alive = job is not None and self._jobs.is_alive(job)
            again = job is not None and "resume" in job.options
            if alive and (again or status is not Status.FINISHED):
                status = Status.RUNNING  # it is beginning, or about to end
        else:
            assert job is not None
            status, options = self._without_folder(job), job.resolved
            if status is Status.FAILED:
                said = self._jobs.said(job) or "the run ended before it began"
                error = {"type": "Failure", "message": said}
        if status is Status.RUNNING and job and job.cancelled:
            status = Status.STOPPING
        if status not in OVER:
            error = None  # why a run that goes on had ended before
        return Found(folder, status, options, job, error)

    def _without_folder(self, job: Job) -> Status:
        if self._jobs.is_alive(job):
            return Status.RUNNING
        if job.cancelled:
            return Status.STOPPED
        return Status.FAILED
