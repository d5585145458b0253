"""The service: runs as they are, and predictions of their models. OpenAPI at /docs."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from fl_app import environment
from fl_app.serving import (
    images,
    predict_routes,
    request_schema,
    run_routes,
    train_routes,
)
from fl_app.serving.catalogue import Catalogue
from fl_app.serving.guards import DOCS_FILES, Gauges, Guard
from fl_app.serving.jobs import BusyError, Job, Jobs
from fl_app.serving.predictor import Batcher
from fl_app.serving.schemas import REFUSALS, Choices, Health
from fl_app.serving.states import Runs

log = logging.getLogger("fl_app")

_PAGE = Path(__file__).with_name("page.html")
_POLICY = (  # nothing from elsewhere
    "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'"
)
_QUEUE_SECONDS = 0.3
_FORM = 4096  # bytes of a multipart form around its file


@dataclass(frozen=True)
class Settings:
    """How the service is run."""

    results: Path
    project: Path
    data_dir: str = ""
    """Where data sets lie; "" for the Hub."""
    token: str = ""
    """What requests must bear; empty for none, which is for loopback alone."""
    federation: str = ""
    """Where trainings run: a name in Flower's config.toml; "" simulates them."""
    request_timeout: float = 30.0
    """Seconds in which a request must have arrived."""
    stream_seconds: float = 3600.0
    """Seconds after which a stream of events is closed."""


def create(settings: Settings, ending: threading.Event | None = None) -> FastAPI:
    """Return the service.

    Args:
        settings: how it is run.
        ending: set when it is to end, so that streams of events do not hold it up.
    """
    ending = ending or threading.Event()
    catalogue = Catalogue(settings.results)
    gauges = Gauges()
    batcher = Batcher(gauges.batches.observe)

    jobs = Jobs(
        settings.results,
        settings.project,
        data_dir=settings.data_dir,
        federation=settings.federation,
    )
    runs = Runs(catalogue, jobs)
    declared = environment.default_options(settings.project)
    real_nodes = bool(settings.federation)
    described = request_schema.of_options(declared, real_nodes=real_nodes)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            queue = tasks.create_task(_advance(jobs))
            yield
            queue.cancel()
        batcher.close()
        going_on = await run_in_threadpool(jobs.running)
        if going_on is not None:
            log.warning(
                "training %s goes on; a service started again shows, and stops, it",
                going_on.id,
            )

    app = FastAPIOffline(  # /docs without a network
        title="fl-app",
        description="Trains federations, follows their runs, asks their models.",
        redoc_url=None,
        static_url=DOCS_FILES,
        lifespan=lifespan,
        responses=REFUSALS,
    )
    # The guard sees to the token; this has the document, and /docs, know of it.
    closed = [Depends(HTTPBearer(auto_error=False))] if settings.token else []
    app.add_middleware(
        Guard,
        gauges=gauges,
        token=settings.token,
        max_body=images.MAX_BYTES + _FORM,
        timeout=settings.request_timeout,
    )

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        """Add what is most often forgotten."""
        kind = request.headers.get("content-type", "")
        if request.url.path == "/train" and "json" not in kind:
            said = (
                "the options are JSON: send the header Content-Type: application/json"
            )
            return JSONResponse({"detail": said}, 422)
        return await request_validation_exception_handler(request, error)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        """The page; what it shows, it asks for."""
        return HTMLResponse(
            _PAGE.read_text(), headers={"Content-Security-Policy": _POLICY}
        )

    @app.get("/choices", dependencies=closed)
    def choices() -> Choices:
        """What some options can be, and are by default."""
        return Choices.of(declared, real_nodes=real_nodes)

    @app.get("/health")
    def health() -> Health:
        """Whether the service answers; needs no token."""
        return Health()

    @app.get("/metrics", response_class=Response, dependencies=closed)
    def metrics() -> Response:
        """Figures for Prometheus."""
        figures = generate_latest(gauges.registry)
        return Response(figures, media_type=CONTENT_TYPE_LATEST)

    for routes in (
        train_routes.router(runs, jobs, described, settings.stream_seconds, ending),
        run_routes.router(runs),
        predict_routes.router(catalogue, runs, batcher),
    ):
        app.include_router(routes, dependencies=closed)
    return app


async def _advance(jobs: Jobs) -> None:
    """Start trainings, one after the other, for as long as the service runs."""
    begun: Job | None = None
    while True:
        try:
            if begun is not None and not jobs.is_alive(begun):
                log.info("training %s has ended", begun.id)
                begun = None
            started = await run_in_threadpool(jobs.advance)
            if started is not None:
                begun = started
                log.info("training %s begins", begun.id)
        except BusyError as error:
            log.warning("No training is begun: %s", error.format_message())
        except OSError:
            log.exception("A training could not be started")
        await asyncio.sleep(_QUEUE_SECONDS)
