"""Starts the service: which address it may be bound to, and what it prints."""

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import socket
import threading
from pathlib import Path
from types import FrameType

import uvicorn
from rich.console import Console
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fl_app import artifacts
from fl_app.config import ConfigError, project_path
from fl_app.serving.app import Settings, create
from fl_app.serving.guards import is_loopback
from fl_app.serving.jobs import TOKEN_VARIABLE

_ANY = {"0.0.0.0", "::"}
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


class Prompt(HttpToolsProtocol):
    """HTTP over connections that are closed where no request arrives in time.

    Uvicorn waits without end for a connection's first header, or the rest of one, and
    such connections count among those it takes.
    """

    seconds = 30.0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting until a header is whole."""
        if self._is_idle() and self._patience is None:
            self._wait()
        super().data_received(data)
        if not self._is_idle():
            self._cease()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._cease()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.seconds, self._give_up)

    def _cease(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._is_idle():
            self.transport.close()


def check_binding(host: str, token: str) -> None:
    """Refuse to be reached from other machines without a token.

    Raises:
        ConfigError: `host` is not loopback, and there is no token.
    """
    if not token and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} "
            "to a secret that requests must bear, or bind to 127.0.0.1"
        )


def token(console: Console, host: str, port: int, *, make: bool) -> str:
    """Return what requests must bear; empty for none.

    Args:
        console: where a token that is made is said, with the service's address.
        host: what the service is bound to.
        port: likewise.
        make: make one where FL_APP_TOKEN sets none.

    Raises:
        ConfigError: see `check_binding`.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given or not make:
        check_binding(host, given)
        return given
    made = secrets.token_urlsafe(24)
    shown = "127.0.0.1" if host in _ANY else host
    console.print(f"address  http://{shown}:{port}", highlight=False)
    console.print(f"token    {made}", highlight=False, soft_wrap=True)
    return made


def check(results: Path, data_dir: str, host: str, port: int) -> None:
    """Check what the service is to work with, before it says that it is there.

    Raises:
        ConfigError: a folder cannot be used, or the port is taken.
    """
    try:
        artifacts.make_writable(results)
    except OSError as error:
        raise ConfigError(
            f"--results-dir {results} cannot be written ({error.strerror}): give a "
            "folder that can"
        ) from None
    if data_dir and not project_path(data_dir, "--data-dir").is_dir():
        raise ConfigError(f"--data-dir {data_dir} is no folder")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be bound to ({error.strerror}): give another "
                "--port, or --host"
            ) from None


class _Server(uvicorn.Server):
    """Says at once, and not when all requests are answered, that it ends."""

    def __init__(self, config: uvicorn.Config, ending: threading.Event) -> None:
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._ending.set()
        super().handle_exit(sig, frame)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: see `check_binding`.
    """
    check_binding(host, settings.token)
    _return_freed_memory()
    said = logging.getLogger("fl_app")
    said.setLevel(logging.INFO)
    if not said.handlers:
        said.addHandler(logging.StreamHandler())
    said.propagate = False
    Prompt.seconds = settings.request_timeout
    ending = threading.Event()
    config = uvicorn.Config(
        create(settings, ending),
        http=Prompt,
        host=host,
        port=port,
        access_log=False,
        timeout_keep_alive=10,
        limit_concurrency=200,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config, ending)
    with contextlib.suppress(KeyboardInterrupt):  # raised again once all is closed
        server.run()
    if not server.started:
        raise SystemExit(3)  # it has said why


def _return_freed_memory() -> None:
    """Have the C library hand large blocks back to the system once they are freed.

    Else what many threads took for large pictures stays with the process: after 500
    uploads 1.1 GB instead of 0.7. Other C libraries go without.
    """
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    )
    if mallopt is not None:  # the numbers of glibc's malloc.h
        mallopt(_M_MMAP_THRESHOLD, 2**18)
        mallopt(_M_ARENA_MAX, 2)
