"""The service: runs as they are, and predictions of their models. OpenAPI at /docs."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from fl_app.serving import images, predict_routes, run_routes
from fl_app.serving.catalogue import Catalogue
from fl_app.serving.guards import Gauges, Guard
from fl_app.serving.predictor import Batcher
from fl_app.serving.schemas import REFUSALS, Health

_FORM = 4096  # bytes of a multipart form around its file


@dataclass(frozen=True)
class Settings:
    """How the service is run."""

    results: Path
    token: str = ""
    """What requests must bear; empty for none, which is for loopback alone."""
    request_timeout: float = 30.0
    """Seconds in which a request must have arrived."""


def create(settings: Settings) -> FastAPI:
    """Return the service."""
    catalogue = Catalogue(settings.results)
    gauges = Gauges()
    batcher = Batcher(gauges.batches.observe)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="fl-app", lifespan=lifespan, responses=REFUSALS)
    app.add_middleware(
        Guard,
        gauges=gauges,
        token=settings.token,
        max_body=images.MAX_BYTES + _FORM,
        timeout=settings.request_timeout,
    )

    @app.get("/health")
    def health() -> Health:
        """Whether the service answers; needs no token."""
        return Health()

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Figures for Prometheus."""
        figures = generate_latest(gauges.registry)
        return Response(figures, media_type=CONTENT_TYPE_LATEST)

    app.include_router(run_routes.router(catalogue))
    app.include_router(predict_routes.router(catalogue, batcher))
    return app
