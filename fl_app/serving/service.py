"""Starts the service: which address it may be bound to, and what it prints."""

import ipaddress
import logging
import os
from pathlib import Path

from fl_app.config import ConfigError
from fl_app.serving.jobs import TOKEN_VARIABLE


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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    results: Path, project: Path, host: str, port: int, data_dir: str = ""
) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: see `check_binding`.
    """
    import uvicorn

    from fl_app.serving.app import Settings, create

    token = os.environ.get(TOKEN_VARIABLE, "")
    check_binding(host, token)
    access = logging.getLogger("fl_app.access")
    access.setLevel(logging.INFO)
    if not access.handlers:
        access.addHandler(logging.StreamHandler())
    access.propagate = False
    uvicorn.run(
        create(Settings(results, project, data_dir, token)),
        host=host,
        port=port,
        access_log=False,
        timeout_keep_alive=10,
        limit_concurrency=200,
        timeout_graceful_shutdown=5,
    )
