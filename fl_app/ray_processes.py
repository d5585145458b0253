"""Ray's Python processes, forked from ones that have their packages imported.

For a run Ray starts a Python for itself some times and one for each simulated node.
Each imports Ray, a node's Flower and PyTorch too: seconds of a run's start, on every
core. So there are two servers that fork. One is forked from the process that runs are
forked from (see `warm`), before that imports Ray, and serves the nodes of all runs; the
other from a run's own process as it begins, and serves that run's Ray. A Python of
Ray's finds their addresses in its environment, before it has imported anything (see
`startup`), hands over its arguments, environment and standard files, and waits for the
fork that does its work. Who finds no server does it alone.

`fl-app setup` copies this file into site-packages. It imports nothing of `fl_app`,
whose modules would otherwise stand in for those of a run's bundle.
"""

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any, NoReturn

NODES, TOOLS = "FL_APP_RAY_NODES", "FL_APP_RAY_TOOLS"
"""Variables with the addresses of the two servers, each with a secret.

The nodes' has not imported Ray, whose library reads as it is imported which job and
which raylet a node works for.
"""

SCRIPTS = {
    NODES: ("ray/_private/workers/default_worker.py",),
    TOOLS: (
        "ray/dashboard/dashboard.py",
        "ray/dashboard/agent.py",
        "ray/_private/runtime_env/agent/main.py",
        "ray/_private/log_monitor.py",
        "ray/autoscaler/_private/monitor.py",
    ),
}
"""What each server forks."""

_PIPE = "RAY_enable_pipe_based_agent_to_parent_health_check"
"""Has agents know by a pipe that who started them has ended: not by their parent, which
of a fork is another."""

_TRUE = ("1", "true")
_FLAGS = ("-u", "-B", "-P")
"""Of Python, with which Ray may start a script."""

_TAKEN = b"1"
_SECONDS = 5.0
"""For a request, once somebody has connected."""

_LOOK_SECONDS = 1.0
"""Between looks for whether who started a process is still there."""


def start(variable: str) -> None:
    """Start a server, where it can be; call it before there are threads.

    It ends when the last of this process and its forks has ended.
    """
    if variable == TOOLS and os.environ.setdefault(_PIPE, "1").lower() not in _TRUE:
        return  # agents would look at their parent
    name = f"fl-app-ray-{os.getpid()}-{os.urandom(8).hex()}"
    # The name can be listed by whoever shares the network, another container say.
    secret = os.urandom(16).hex()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(f"\0{name}")  # Linux alone: a name that is no file
        listener.listen()
        alive, held = os.pipe()
        server = os.fork()
    except OSError:
        listener.close()
        return
    if server == 0:
        os.close(held)
        _serve(listener, alive, secret)
    listener.close()
    os.close(alive)
    os.environ[variable] = f"{name} {secret}"  # and `held` is open until the end


def hand_over() -> None:
    """Have a fork do what this process was started for, and end with it.

    Returns, for the process to do it itself, where there is no server to ask.
    """
    for number, argument in enumerate(sys.orig_argv[1:], 1):
        if argument.startswith("-"):
            if argument not in _FLAGS:
                return  # a module, say, that is to run the script
            continue
        for variable, scripts in SCRIPTS.items():
            if argument.endswith(scripts) and variable in os.environ:
                _hand_over(os.environ[variable], sys.orig_argv[number:])
        return  # what comes later is the script's: another script, for Ray's own set-up


def _hand_over(address: str, arguments: list[str]) -> None:
    name, _, secret = address.partition(" ")
    request = {
        "secret": secret,
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "prefix": sys.prefix,
    }
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(f"\0{name}")
        if _user(connection) != os.getuid():
            return
        content = json.dumps(request).encode()
        size = struct.pack("!I", len(content))
        socket.send_fds(connection, [size], [0, 1, 2])
        connection.sendall(content)
        if connection.recv(1) != _TAKEN:
            return
        os._exit(_outcome(connection))


def _outcome(connection: socket.socket) -> int:
    """Wait for the fork; return its exit code, 1 where it has none or is not needed."""
    parent = os.getppid()
    connection.settimeout(_LOOK_SECONDS)
    while os.getppid() == parent:  # Ray's own is still there
        with contextlib.suppress(TimeoutError):
            code = connection.recv(1)  # comes when the fork ends, unless it is killed
            return code[0] if code else 1
    return 1


def _user(connection: socket.socket) -> int:
    """Return the number of the user at the other end."""
    form = "3i"  # process, user, group
    size = struct.calcsize(form)
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack(form, found)[1])


def _serve(listener: socket.socket, alive: int, secret: str) -> NoReturn:
    """Fork who is asked for, until the other end of `alive` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for their status
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # memory that is not looked at stays shared
    while True:
        ready, _, _ = select.select([listener.fileno(), alive], [], [])
        if alive in ready:
            os._exit(0)
        with contextlib.suppress(OSError, ValueError):
            connection, _ = listener.accept()
            with connection:
                request, files = _receive(connection, secret)
                try:
                    if os.fork() == 0:
                        listener.close()
                        os.close(alive)
                        _become(request, files, connection)
                finally:
                    _close(files)


def _receive(
    connection: socket.socket, secret: str
) -> tuple[dict[str, Any], list[int]]:
    """Return a request and the standard files that come with it.

    Raises:
        ValueError: it is none, or not for this server.
        OSError: it does not come in time, or is another user's.
    """
    import hmac  # takes its time, and who asks does without

    connection.settimeout(_SECONDS)
    if _user(connection) != os.getuid():
        raise PermissionError("of another user")
    size, files, _, _ = socket.recv_fds(connection, struct.calcsize("!I"), 3)
    try:
        (left,) = struct.unpack("!I", size)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.read(left))
        if not isinstance(request, dict) or request.get("prefix") != sys.prefix:
            raise ValueError("not of this environment, whose packages are imported")
        if not hmac.compare_digest(str(request.get("secret")), secret):
            raise ValueError("of somebody who was not told the secret")
    except struct.error as error:
        _close(files)
        raise ValueError("no request") from error
    except BaseException:
        _close(files)
        raise
    return request, files


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _become(
    request: dict[str, Any], files: list[int], connection: socket.socket
) -> NoReturn:
    """Be the process that asked, as if it had started here, and end."""
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        _close(files)
        sys.stdin = os.fdopen(0, closefd=False)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        connection.settimeout(None)
        connection.sendall(_TAKEN)
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["arguments"]
        folders = [os.path.dirname(sys.argv[0]), *request["path"]]
        sys.path[:] = folders + [p for p in sys.path if p not in folders]
        if "numpy" in sys.modules:  # all forks would draw the same
            sys.modules["numpy"].random.seed()
        _run(sys.argv[0])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([code % 256]))
        os._exit(code)


def _run(script: str) -> None:
    import runpy

    runpy.run_path(script, run_name="__main__")


def _end_with(connection: socket.socket) -> None:
    """End this process when the one that asked does."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)
