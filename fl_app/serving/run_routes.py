"""Runs over HTTP: which there are, how they stand, their pictures and reports."""

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from fl_app.artifacts import CURVES, REPORT
from fl_app.serving.schemas import RunDetail, RunLine, RunName
from fl_app.serving.states import Found, Runs


def router(found: Runs) -> APIRouter:
    """Return the routes under /runs."""
    routes = APIRouter(tags=["runs"])

    @routes.get("/runs")
    def runs() -> list[RunLine]:
        """All runs, the newest first; those that wait before them."""
        return [RunLine(**_line(one)) for one in found.all()]

    @routes.get("/runs/{run}")
    def run(run: RunName) -> RunDetail:
        """A run: how it stands, its options, each round's figures, its summary."""
        one = found.named(run)
        return RunDetail(
            **_line(one),
            options=one.options,
            metrics=one.folder.metrics(),
            summary=one.folder.summary(),
            error=one.error,
        )

    @routes.get("/runs/{run}/curves.png", response_class=FileResponse)
    def curves(run: RunName) -> FileResponse:
        """The picture of a run's accuracy and loss."""
        return _file_of(found.named(run), CURVES, "image/png")

    @routes.get("/runs/{run}/report", response_class=FileResponse)
    def report(run: RunName) -> FileResponse:
        """A finished run on one page."""
        return _file_of(found.named(run), REPORT, "text/html")

    return routes


def _file_of(found: Found, name: str, kind: str) -> FileResponse:
    path = found.folder.path / name
    if not path.is_file():
        raise HTTPException(404, found.lacks(name))
    return FileResponse(path, media_type=kind)


def _line(found: Found) -> dict[str, Any]:
    rows = found.folder.metrics()
    measured = [r["test_accuracy"] for r in rows if r["test_accuracy"] is not None]
    return {
        "id": found.folder.name,
        "status": found.status,
        "rounds": rows[-1]["round"] if rows else 0,
        "test_accuracy": measured[-1] if measured else None,
        "regime": found.options.get("regime", "federated"),
        **{k: found.options[k] for k in ("dataset", "model", "strategy", "seed")},
    }
