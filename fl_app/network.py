"""A federation of real processes on this machine: a SuperLink and SuperNodes over TLS.

What runs on separate machines in earnest runs here on loopback, with the same commands,
keys and certificates; `docs/deployment.md` gives them one by one.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fl_app import certificates, environment, running
from fl_app.config import ConfigError, RunConfig
from fl_app.data import owners as owners_of
from fl_app.data import private
from fl_app.data.tree import Folder, scan
from fl_app.environment import SetupError

if TYPE_CHECKING:
    from fl_app.submission import Connection

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_MARK = "FL_APP_NETWORK"
"""Environment variable by which the processes of one network know each other."""
_HOST = "127.0.0.1"
_MORTAL = [
    *(sys.executable, "-S", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "  # PR_SET_PDEATHSIG
    "os.execv(sys.argv[1], sys.argv[1:])",
]
"""Before a command: has the kernel kill it when the process that started it is gone.

Not ask it to end: a SuperLink that is asked waits for its connections to close, now and
then for ever. What these commands start looks itself whether its parent is there, which
it is until process 1 has reaped it. The kernel goes by the thread that started it.
"""


@dataclass(frozen=True)
class Process:
    """A process of the network, and where its output goes."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path


class Network:
    """Starts processes, and ends them with all that they have started."""

    def __init__(self, folder: Path, project: Path, *, warm: bool = True) -> None:
        """Keep where files go.

        Args:
            folder: for keys, databases and logs; of this network alone.
            project: the working directory of all processes.
            warm: whether nodes fork processes that have PyTorch imported (see `warm`).
        """
        self.folder = folder
        self._warm = warm
        self._project = project
        self._mark = secrets.token_hex(8)
        self._processes: list[Process] = []
        self.port = 0

    def start(self, name: str, *command: str, path: Sequence[Path] = ()) -> Process:
        """Start a command of this environment; its output goes to NAME.log.

        Its PATH begins with `path`, then this environment's commands.
        """
        scripts = Path(sys.executable).parent
        commands = [*map(str, [*path, scripts]), os.environ.get("PATH", os.defpath)]
        variables = {
            **os.environ,
            _MARK: self._mark,
            "PATH": os.pathsep.join(commands),
            "FLWR_HOME": str(self.folder / "flower" / name),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), _HOST))),
        }
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [*_MORTAL, str(scripts / command[0]), *command[1:]],
                cwd=self._project,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._processes.append(process)
        return process

    def start_superlink(self) -> Process:
        """Start the SuperLink and wait until it answers.

        Raises:
            SetupError: it ended, or does not answer.
        """
        self.port = free_port()
        process = self.start(
            "superlink",
            "flower-superlink",
            *("--ssl-ca-certfile", str(self.folder / "ca.crt")),
            *("--ssl-certfile", str(self.folder / "server.crt")),
            *("--ssl-keyfile", str(self.folder / "server.key")),
            *("--host", _HOST, "--port", str(self.port)),
            *("--database", str(self.folder / "superlink.db")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        )
        trusted = create_default_context(cafile=str(self.folder / "ca.crt"))
        url = f"https://{_HOST}:{self.port}/health"
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=trusted),
        )

        def answers() -> bool:
            try:
                with direct.open(url, timeout=2) as response:
                    return bool(response.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        self._wait(answers, [process], "the SuperLink does not answer")
        return process

    def start_supernode(self, name: str, config: Mapping[str, Any]) -> Process:
        """Start a node whose key is registered; `config` is its own configuration."""
        return self.start(
            name,
            "flower-supernode",
            *("--root-certificates", str(self.folder / "ca.crt")),
            *("--superlink", f"{_HOST}:{self.port}"),
            *("--auth-supernode-private-key", str(self.folder / f"{name}.key")),
            *("--host", _HOST, "--port", str(free_port())),
            *("--node-config", node_config(config)),
            path=[environment.warm_commands()] if self._warm else [],
        )

    def wait_online(self, connection: "Connection", nodes: Sequence[Process]) -> None:
        """Wait until all nodes are there.

        Raises:
            SetupError: one ended, or does not come.
        """
        self._wait(
            lambda: connection.online() >= len(nodes), nodes, "the nodes do not come up"
        )

    def _wait(
        self, done: Callable[[], bool], processes: Sequence[Process], failure: str
    ) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not done():
            for process in processes:
                if process.popen.poll() is not None:
                    raise SetupError(f"{process.name} ended: {last_words(process.log)}")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"{failure} within {_START_SECONDS:g} seconds: "
                    f"{last_words(processes[0].log)}"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End every process of the network: asked first, then killed."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.popen.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and self.left():
            for process in self._processes:
                process.popen.poll()  # reaps what has ended
            time.sleep(0.1)
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.popen.wait()

    def left(self) -> list[int]:
        """Return the network's processes that are alive, of any generation."""
        mark = f"{_MARK}={self._mark}".encode()
        return [pid for pid in _processes() if mark in _environment(pid)]


def free_port() -> int:
    """Return a port of loopback that nobody listened on a moment ago."""
    with socket.socket() as free:
        free.bind((_HOST, 0))
        return int(free.getsockname()[1])


def node_config(values: Mapping[str, Any]) -> str:
    """Return a node's configuration as `flower-supernode` takes it."""
    texts = {
        key: f'"{value}"' if isinstance(value, str) else str(value)
        for key, value in values.items()
    }
    return " ".join(f"{key}={text}" for key, text in texts.items())


def last_words(log: Path, lines: int = 3) -> str:
    """Return the end of a process's output, in one line."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return " / ".join([line for line in said if line][-lines:]) or "it said nothing"


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    """Return a process's variables; none for one that has ended or is another's."""
    try:
        return (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


@contextlib.contextmanager
def federation(
    project: Path, nodes: Sequence[Mapping[str, Any]], *, warm: bool = True
) -> Iterator["Connection"]:
    """Run a SuperLink and nodes, authenticated over TLS, for as long as the block.

    Yields the way to the SuperLink.

    Args:
        project: the working directory of all processes.
        nodes: the configuration of each node.
        warm: see `Network`.

    Raises:
        SetupError: a process does not start.
    """
    from fl_app.submission import Connection

    with tempfile.TemporaryDirectory(prefix="fl-app-network-") as folder:
        network = Network(Path(folder), project, warm=warm)
        names = [f"node{i}" for i in range(len(nodes))]
        certificates.make(network.folder, hosts=[_HOST], nodes=names, days=7)
        try:
            network.start_superlink()
            address = f"{_HOST}:{network.port}"
            connection = Connection.to(address, network.folder / "ca.crt")
            for name in names:
                connection.register(network.folder / f"{name}.pub", name)
            started = [
                network.start_supernode(name, config)
                for name, config in zip(names, nodes, strict=True)
            ]
            network.wait_online(connection, started)
            yield connection
        finally:
            network.stop()


def sharing(num_nodes: int) -> list[dict[str, Any]]:
    """Return the configurations of nodes that can all read all of the data."""
    return [{"partition-id": i, "num-partitions": num_nodes} for i in range(num_nodes)]


def owning(folder: Path) -> list[dict[str, Any]]:
    """Return the configurations of nodes that each have a folder of their own.

    Raises:
        ConfigError: there is no folder in it.
    """
    owners, _ = _folders(folder)
    return [{"data-path": owner.path, "client-id": owner.name} for owner in owners]


def _folders(folder: Path) -> tuple[list[Folder], list[Folder]]:
    """Return the nodes' folders, and those of the server's test images."""
    if not folder.is_dir():
        raise ConfigError(
            f"--data {str(folder)!r}: it must be a folder with a folder for each node"
        )
    owners, tests = owners_of.owner_folders(scan(folder).top)
    if not owners:
        raise ConfigError(
            f"--data {str(folder)!r}: its splits stand over the nodes' folders: each "
            "node needs one folder, with splits in it"
        )
    if len(tests) > 1:
        raise ConfigError(
            f"--data {str(folder)!r}: {tests[0].name} and {tests[1].name} are both for "
            "the server's tests: keep one"
        )
    return owners, tests


def options_for(folder: Path) -> dict[str, Any]:
    """Return the options of a run over `owning` nodes, where none are given."""
    owners, tests = _folders(folder)
    return {
        "dataset": private.NAME,
        "min-nodes": len(owners),  # each has data that no other has
        "test-path": tests[0].path if tests else "",
    }


def run(
    console: Console,
    project: Path,
    config: RunConfig,
    given: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    command: str,
) -> str | None:
    """Run on a network of this machine; return why it failed, or None.

    Args:
        console: where progress is shown.
        project: folder of the app.
        config: all options, checked, with a run name.
        given: the options that differ from the project's defaults.
        nodes: the configuration of each SuperNode to start.
        command: what was typed, without the run's options.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("fl-app network needs Linux: it finds its processes in /proc")
    with contextlib.ExitStack() as stack:

        def connect() -> "Connection":
            return stack.enter_context(federation(project, nodes))

        return running.run(console, connect, project, config, given, {}, command)
