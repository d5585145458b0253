"""Whether a server can be reached, and by whom: what a node's machine can find out."""

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from fl_app.config import ConfigError
from fl_app.doctor import Finding

_SECONDS = 5.0
_CLOCK_SECONDS = 300.0
"""Flower takes a node's signature for no longer than that."""
_CONTROL = "/v1/control/list-runs"
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_ of OpenSSL
_UNKNOWN_AUTHORITY = {18, 19, 20, 21}
_WRONG_NAME = {62, 64}


def examine(server: str, root_certificates: str) -> Iterator[Finding]:
    """Yield what is found on the way to a server, up to what blocks it.

    Args:
        server: HOST:PORT, as `flower-supernode --superlink` takes it.
        root_certificates: path of the authority's certificate.

    Raises:
        ConfigError: an argument is not what it should be.
    """
    host, port = _address(server)
    context = _trusting(root_certificates)
    found = _connect(host, port)
    yield found
    if not found.ok:
        return
    found = _handshake(host, port, context)
    yield found
    if not found.ok:
        return
    yield from _answers(host, port, context)


def check(server: str, root_certificates: str) -> None:
    """Raise `ConfigError` unless both are what they should be; connect to nothing."""
    _address(server)
    _trusting(root_certificates)


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--server {server!r}: it must be HOST:PORT, such as fl.example.org:9092"
        )
    return host.strip("[]"), int(port)


def _trusting(root_certificates: str) -> ssl.SSLContext:
    path = Path(root_certificates).expanduser()
    try:
        return ssl.create_default_context(cafile=str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"--root-certificates {path}: there is no such file"
        ) from None
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"--root-certificates {path}: it holds no certificate ({error})"
        ) from None


def _connect(host: str, port: int) -> Finding:
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return Finding(True, f"{where} takes connections")
    except (socket.gaierror, UnicodeError):
        return Finding(False, f"{host} is no name that this machine knows")
    except ConnectionRefusedError:
        return Finding(
            False,
            f"{where} refuses connections: nothing listens there, or on loopback only",
        )
    except TimeoutError:
        return Finding(
            False,
            f"{where} does not answer in {_SECONDS:g} seconds: a firewall may be in "
            "between, or the machine is off",
        )
    except OSError as error:
        return Finding(False, f"{where} cannot be reached: {error.strerror or error}")


def _handshake(host: str, port: int, context: ssl.SSLContext) -> Finding:
    try:
        with (
            socket.create_connection((host, port), timeout=_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return Finding(
                True, f"it speaks {secured.version()}, with a certificate of our own"
            )
    except ssl.SSLCertVerificationError as error:
        return Finding(False, _untrusted(host, error))
    except ssl.SSLError as error:
        return Finding(
            False,
            "it does not speak TLS: a SuperLink started with --insecure, or another "
            f"service, is at that port ({error.reason or error})",
        )
    except OSError as error:
        return Finding(False, f"it breaks off before TLS is agreed on ({error})")


def _untrusted(host: str, error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in _UNKNOWN_AUTHORITY:
        return (
            "its certificate is of another authority than --root-certificates: another "
            "server, or certificates that were made anew on one side only"
        )
    if code in _WRONG_NAME:
        return (
            f"its certificate is not for {host!r}: make it anew with "
            f"`fl-app certificates --server {host}`, with all names it is reached by"
        )
    if code == _EXPIRED:
        return "its certificate has expired: make it anew with `fl-app certificates`"
    if code == _NOT_YET:
        return "its certificate is not valid yet: this machine's clock may be slow"
    return f"its certificate is refused: {error.verify_message}"


def _answers(host: str, port: int, context: ssl.SSLContext) -> Iterator[Finding]:
    """The service behind TLS, its clock, and whether it lets everybody rule."""
    try:
        status, date = _request(host, port, context, "GET", "/health")
    except (OSError, http.client.HTTPException) as error:
        yield Finding(False, f"it answers no request ({error!r})")
        return
    if status != 200:
        yield Finding(
            False, f"GET /health gives status {status}: no SuperLink's answer"
        )
        return
    yield Finding(True, "it answers: GET /health gives 200")
    ahead = _ahead(date)
    if ahead is not None:
        if abs(ahead) > _CLOCK_SECONDS:
            yield Finding(
                False,
                f"this machine's clock is {abs(ahead):.0f} seconds "
                f"{'ahead of' if ahead > 0 else 'behind'} the server's: Flower refuses "
                f"nodes above {_CLOCK_SECONDS:g}",
            )
        else:
            yield Finding(True, "the clocks agree")
    try:
        status, _ = _request(host, port, context, "POST", _CONTROL)
    except (OSError, http.client.HTTPException):
        status = 0
    if status == 0:
        yield Finding(None, "whether its Control API is open could not be told")
    elif status in (403, 404):
        yield Finding(True, "its Control API is closed to this machine")
    else:
        yield Finding(
            None,
            "its Control API is open to this machine: whoever reaches that port can "
            "submit code (docs/deployment.md closes it)",
        )


def _ahead(date: str) -> float | None:
    """Return by how many seconds this clock is ahead of a Date header, if it is one."""
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None


def _request(
    host: str, port: int, context: ssl.SSLContext, method: str, path: str
) -> tuple[int, str]:
    """Return status and date of an answer; proxies of the environment are not used."""
    connection = http.client.HTTPSConnection(
        host, port, timeout=_SECONDS, context=context
    )
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers.get("Date", "")
    finally:
        connection.close()
