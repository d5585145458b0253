"""The doctor's look at a server from outside: each fault is told from the others."""

import datetime as dt
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from pathlib import Path

import pytest

from fl_app import certificates, reach
from fl_app.config import ConfigError
from fl_app.doctor import Finding


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], Path]:
    """Returns the folder of an authority by name, with a server of those names."""
    root = tmp_path_factory.mktemp("keys")

    def make(name: str, hosts: list[str]) -> Path:
        folder = root / name
        if not folder.exists():
            certificates.make(folder, hosts=hosts, nodes=[], days=1)
        return folder

    return make


@contextmanager
def served(
    keys: Path | None,
    *,
    control: int = 403,
    health: int = 200,
    late: int = 0,
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """A server on loopback, with TLS if it has keys; its clock is `late` seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health)
            self.end_headers()

        def do_POST(self) -> None:
            self.send_response(control)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            then = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=late)
            return format_datetime(then, usegmt=True)

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None: ...

    server = Server((host, 0), Handler)
    if keys is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "server.crt", keys / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def look(server: str, keys: Path) -> list[Finding]:
    return list(reach.examine(server, str(keys / "ca.crt")))


def test_all_is_well(keys: Callable[[str, list[str]], Path]) -> None:
    ours = keys("ours", ["127.0.0.1"])
    with served(ours) as server:
        findings = look(server, ours)
    assert all(finding.ok for finding in findings)
    assert "closed to this machine" in findings[-1].what
    assert len(findings) == 5


def test_an_open_control_api_is_pointed_out(
    keys: Callable[[str, list[str]], Path],
) -> None:
    ours = keys("ours", ["127.0.0.1"])
    with served(ours, control=415) as server:
        last = look(server, ours)[-1]
    assert last.ok is None
    assert "whoever reaches that port can submit code" in last.what


def test_what_is_wrong_is_told(keys: Callable[[str, list[str]], Path]) -> None:
    ours, theirs = keys("ours", ["127.0.0.1"]), keys("theirs", ["127.0.0.1"])
    for server_keys, trusted, options, said in (
        (theirs, ours, {}, "of another authority"),
        (ours, ours, {"host": "127.0.0.2"}, "not for '127.0.0.2'"),
        (None, ours, {}, "does not speak TLS"),
        (ours, ours, {"health": 502}, "gives status 502"),
        (ours, ours, {"late": 400}, "seconds ahead of the server's"),
        (ours, ours, {"late": -400}, "behind the server's"),
    ):
        with served(server_keys, **options) as server:
            wrong = [f.what for f in look(server, trusted) if f.ok is False]
        assert len(wrong) == 1
        assert said in wrong[0]


def test_nobody_there(keys: Callable[[str, list[str]], Path]) -> None:
    ours = keys("ours", ["127.0.0.1"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (found,) = look(f"127.0.0.1:{free.getsockname()[1]}", ours)
        assert "refuses connections" in found.what
        (found,) = look("no-such-host.invalid:1", ours)
        assert "no name that this machine knows" in found.what


@pytest.mark.parametrize("server", ["host", "host:", ":80", "host:x", "host:70000"])
def test_an_address_is_host_and_port(
    server: str, keys: Callable[[str, list[str]], Path]
) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        look(server, keys("ours", ["127.0.0.1"]))


def test_a_certificate_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        look("127.0.0.1:1", tmp_path)
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ConfigError, match="holds no certificate"):
        look("127.0.0.1:1", tmp_path)
