"""What stands before every request: who asks, how much is sent, how long it takes."""

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("fl_app.access")

_METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"}
DOCS_FILES = "/docs/files"
_OPEN = {"/", "/health", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
"""Paths that need no token: the pages say nothing of the runs by themselves."""


class TooLargeError(Exception):
    """A request's body is larger than allowed."""


class TooMuchError(Exception):
    """The bodies of all requests together are larger than allowed."""


@dataclass
class _Body:
    """What has arrived of a request."""

    parts: deque[bytes] = field(default_factory=deque)
    size: int = 0


class Gauges:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fl_app_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fl_app_request_seconds",
            "Seconds until a request was answered.",
            ["route"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
        )
        self.batches = Histogram(
            "fl_app_batch_size",
            "Images in a forward pass.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )


class Guard:
    """ASGI middleware: token, size and time of a request, and a line on each."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gauges: Gauges,
        token: str = "",
        max_body: int,
        timeout: float,
        max_bodies: int = 2**26,
    ) -> None:
        """Wrap an app.

        Args:
            app: what answers.
            gauges: counts the requests.
            token: what a request must bear; empty for none.
            max_body: bytes of a request's body.
            timeout: seconds in which a request must have arrived whole.
            max_bodies: bytes of the bodies of all requests that are not answered yet.
        """
        self._app = app
        self._gauges = gauges
        self._token = token.encode()
        self._max_body = max_body
        self._timeout = timeout
        self._max_bodies = max_bodies
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500
        body = _Body()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, noting)
                return
            await self._fill(body, receive)
            await self._app(scope, _replay(body.parts, receive), noting)
        except TooMuchError:
            await _said(429, "too much is being sent at once: try again in a moment")(
                scope, receive, noting
            )
        except TooLargeError:
            await _said(413, f"a request holds at most {self._max_body} bytes")(
                scope, receive, noting
            )
        except TimeoutError:
            await _said(
                408, f"the request did not arrive in {self._timeout:g} seconds"
            )(scope, receive, noting)
        finally:
            self._bodies -= body.size
            self._note(scope, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise TooLargeError
        if not self._token:
            return _from_elsewhere(headers)
        if _is_open(scope["path"]):
            return None
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        return _said(
            401,
            "a bearer token is needed: Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )

    async def _fill(self, body: _Body, receive: Receive) -> None:
        """Take a body in, until its end.

        Raises:
            TooLargeError: there is more than allowed.
            TooMuchError: with those of all others, there is.
            TimeoutError: it does not come.
        """
        async with asyncio.timeout(self._timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise TimeoutError
                part = message.get("body", b"")
                body.parts.append(part)
                body.size += len(part)
                self._bodies += len(part)
                if body.size > self._max_body:
                    raise TooLargeError
                if self._bodies > self._max_bodies:
                    raise TooMuchError
                if not message.get("more_body", False):
                    return

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._gauges.requests.labels(method, route, str(status)).inc()
        self._gauges.seconds.labels(route).observe(seconds)
        client = scope.get("client") or ("", 0)
        line = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "client": client[0],
        }
        log.info(json.dumps(line))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _from_elsewhere(headers: Mapping[bytes, bytes]) -> JSONResponse | None:
    """Refuse what a page of another site has a browser on this machine send.

    Without a token it is the address alone that says who asks. A name that was made to
    lead here (DNS rebinding) is no address of this machine's own; and browsers name
    the site that a request which changes something comes from.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if not host.endswith("]") else host
    if not is_loopback((name or host).strip("[]")):
        return _said(421, f"this service is not called {host!r}: use 127.0.0.1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin and origin.partition("://")[2] != host:
        return _said(403, f"a page of {origin!r} may not ask this service")
    return None


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(f"{DOCS_FILES}/")


def _replay(parts: deque[bytes], receive: Receive) -> Receive:
    """Return what hands over a body that has arrived, then waits for the client."""

    async def replay() -> Message:
        if not parts:
            return await receive()
        body = parts.popleft()  # and not kept: the app may need the room
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    return replay


def _said(
    status: int, reason: str, headers: dict[str, Any] | None = None
) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers)
