"""Trainings over HTTP: start one, follow it round by round, stop it."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from click import ClickException
from fastapi import APIRouter, Body, Header, HTTPException
from pydantic import WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from fl_app.config import ConfigError
from fl_app.serving.catalogue import Status
from fl_app.serving.jobs import BusyError, Jobs, QueueFullError
from fl_app.serving.schemas import (
    CONFLICT,
    EVENTS,
    FULL,
    UNREACHABLE,
    UNUSABLE,
    RunName,
    Started,
)
from fl_app.serving.states import OVER, Runs

_PERIOD_SECONDS = 0.3
_BEAT_SECONDS = 15.0
_MAX_STREAMS = 32

_EXAMPLES = [{"dataset": "digits", "num-server-rounds": 3, "strategy": "fedprox"}]


def router(
    runs: Runs,
    jobs: Jobs,
    described: Mapping[str, Any],
    stream_seconds: float,
    ending: threading.Event,
) -> APIRouter:
    """Return the routes that train.

    Args:
        runs: all runs.
        jobs: takes new ones.
        described: schema of a training's options.
        stream_seconds: after so many, a stream of events is closed.
        ending: set when the service ends: streams are closed then.
    """
    routes = APIRouter(tags=["train"])
    streams: set[object] = set()

    @routes.post(
        "/train", status_code=202, responses={**UNUSABLE, **FULL, **UNREACHABLE}
    )
    def train(
        options: Annotated[
            dict[str, str | int | float | bool] | None,
            WithJsonSchema({"anyOf": [described, {"type": "null"}]}),
            Body(description="Options as for `fl-app run`.", examples=_EXAMPLES),
        ] = None,
    ) -> Started:
        """Queue a training; without options, the default one.

        One trains at a time. It goes on should the service end. `resume` takes the name
        of a run that has ended early, or that is to have more `num-server-rounds`.
        """
        try:
            job = jobs.submit(options or {})
        except ConfigError as error:
            raise HTTPException(422, str(error)) from None
        except QueueFullError as error:
            raise HTTPException(429, str(error)) from None
        except BusyError as error:
            raise HTTPException(503, error.format_message()) from None
        return Started(id=job.id, status=Status.QUEUED)

    @routes.post(
        "/runs/{run}/stop", status_code=202, responses={**CONFLICT, **UNREACHABLE}
    )
    def stop(run: RunName) -> Started:
        """Stop a training, or take it from the queue; what it has done is kept.

        It is `stopping` for some seconds; a run that is at its end may finish first.
        """
        found = runs.named(run)
        over = found.status in OVER  # its process may take a moment to end
        try:
            stopped = not over and found.job is not None and jobs.stop(found.job)
        except ClickException as error:
            raise HTTPException(503, error.format_message()) from None
        if not stopped:
            raise HTTPException(
                409, f"run {run!r} is {found.status}: there is nothing to stop"
            )
        return Started(id=run, status=runs.named(run).status)

    @routes.get(
        "/runs/{run}/events", response_class=StreamingResponse, responses=EVENTS
    )
    async def events(
        run: RunName, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """Each round's figures as they come, as server-sent events; then `end`.

        A round comes again, under the same id, once the clients have validated it.
        A browser's `EventSource` that was cut off goes on where it was, as it does when
        the service closes a stream that has been open for long.
        """
        await run_in_threadpool(runs.named, run)
        if len(streams) >= _MAX_STREAMS:
            raise HTTPException(429, f"{_MAX_STREAMS} streams are open already")
        known = last_event_id or ""
        after = int(known) if known.isdecimal() and len(known) < 10 else -1

        async def stream() -> AsyncIterator[str]:
            mark = object()
            streams.add(mark)  # not before: what is never begun is never ended
            try:
                async for event in _events(runs, run, after, stream_seconds, ending):
                    yield event
            finally:
                streams.discard(mark)

        return StreamingResponse(
            stream(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return routes


async def _events(
    runs: Runs, run: str, after: int, seconds: float, ending: threading.Event
) -> AsyncIterator[str]:
    silent = 0.0
    sent: dict[str, Any] = {}  # the newest row: validation is added to it later
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ending.is_set():
        found = await run_in_threadpool(runs.named, run)
        over = found.status in OVER  # asked first: what comes after it is the last
        for row in await run_in_threadpool(found.folder.metrics):
            newer = row["round"] > after
            if newer or (row["round"] == sent.get("round") and row != sent):
                after, silent, sent = row["round"], 0.0, row
                yield _event("round", row, after)
        if over:
            summary = await run_in_threadpool(found.folder.summary)
            yield _event("end", {"status": found.status, "summary": summary})
            return
        if silent >= _BEAT_SECONDS:
            silent = 0.0
            yield ": still going on\n\n"
        await asyncio.sleep(_PERIOD_SECONDS)
        silent += _PERIOD_SECONDS


def _event(kind: str, data: Any, number: int | None = None) -> str:
    line = "" if number is None else f"id: {number}\n"
    return f"{line}event: {kind}\ndata: {json.dumps(_finite(data))}\n\n"


def _finite(data: Any) -> Any:
    """Return the data with null for what JSON has no number for."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
