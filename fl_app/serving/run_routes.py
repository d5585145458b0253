"""Runs over HTTP: which there are, how they stand, their pictures and reports."""

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from fl_app.artifacts import CURVES, REPORT, RunFolder
from fl_app.serving.catalogue import Catalogue, status_of
from fl_app.serving.schemas import RunDetail, RunLine, RunName


def router(catalogue: Catalogue) -> APIRouter:
    """Return the routes under /runs."""
    routes = APIRouter()

    @routes.get("/runs")
    def runs() -> list[RunLine]:
        """All runs, the newest first."""
        return [RunLine(**_line(folder)) for folder in catalogue.all()]

    @routes.get("/runs/{run}")
    def run(run: RunName) -> RunDetail:
        """A run: how it stands, its options, each round's figures, its summary."""
        folder = named(catalogue, run)
        return RunDetail(
            **_line(folder),
            options=(folder.config() or {})["options"],
            metrics=folder.metrics(),
            summary=folder.summary(),
            error=folder.error(),
        )

    @routes.get("/runs/{run}/curves.png", response_class=FileResponse)
    def curves(run: RunName) -> FileResponse:
        """The picture of a run's accuracy and loss."""
        return _file_of(named(catalogue, run), CURVES, "image/png")

    @routes.get("/runs/{run}/report", response_class=FileResponse)
    def report(run: RunName) -> FileResponse:
        """A finished run on one page."""
        return _file_of(named(catalogue, run), REPORT, "text/html")

    return routes


def named(catalogue: Catalogue, name: str) -> RunFolder:
    """Return a run; answers 404 where there is none of that name."""
    folder = catalogue.find(name)
    if folder is None:
        raise HTTPException(404, f"there is no run {name!r}; GET /runs lists them")
    return folder


def _file_of(folder: RunFolder, name: str, kind: str) -> FileResponse:
    path = folder.path / name
    if not path.is_file():
        raise HTTPException(404, f"run {folder.name!r} has no {name} yet")
    return FileResponse(path, media_type=kind)


def _line(folder: RunFolder) -> dict[str, Any]:
    options = (folder.config() or {})["options"]
    rows = folder.metrics()
    measured = [r["test_accuracy"] for r in rows if r["test_accuracy"] is not None]
    return {
        "id": folder.name,
        "status": status_of(folder),
        "rounds": rows[-1]["round"] if rows else 0,
        "test_accuracy": measured[-1] if measured else None,
        **{key: options[key] for key in ("dataset", "model", "strategy", "seed")},
    }
