"""A `flower-superexec` that has PyTorch imported before there is something to do.

Flower starts a new process for each message to a node, and for each simulation, and
that process imports PyTorch and Flower: seconds of a round, or of a run's start. This
one forks the process instead, from a server of Python's `multiprocessing` that has
imported what every app needs, and no module of any app: an app's code still comes from
its bundle, anew for each process.

`fl-app setup` copies this file into site-packages and makes commands of it that are
called `flower-superexec`, in folders of their own; who has such a folder at the
beginning of the PATH starts it. It imports nothing of `fl_app`, whose modules would
otherwise stand in for those of the bundle.
"""

import multiprocessing
import os
import sys
import sysconfig
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import _children  # type: ignore[attr-defined]
from typing import Any

Launch = Callable[[Any, Any], Any]
"""Of an executor and the specification of a task: starts its process."""

_ANY = ["torch", "numpy", "pydantic", "safetensors.numpy", "filelock", "PIL.Image"]
PRELOADED = {
    "supernode": [
        *_ANY,
        *("numba", "flwr.clientapp", "flwr.supernode.cli.flwr_clientapp"),
    ],
    "simulation": [
        *_ANY,
        *("numba", "matplotlib.figure", "matplotlib.backends.backend_agg"),
        *("flwr.serverapp", "flwr.clientapp"),
        "flwr.simulation.app",  # before Ray: makes settings that it reads as it comes
        "_fl_app_ray_nodes",  # starts a server, see `fl_app.ray_processes`
        *("ray", "flwr.server.superlink.fleet.vce.backend.raybackend"),
    ],
}
"""What is imported before processes are forked, by who is to be served."""

_FORKED = {
    "flwr-clientapp": "from flwr.supernode.cli.flwr_clientapp import flwr_clientapp",
    "flwr-simulation": "from flwr.simulation.app import flwr_simulation",
}
"""Flower's commands that are forked, and how their functions are had."""

_TOOLS = "import _fl_app_ray_processes as p\np.start(p.TOOLS)\n"
_BEFORE = {"flwr-simulation": _TOOLS}
"""What some do first: see `fl_app.ray_processes`."""

_SEED = "import numpy\nnumpy.random.seed()\n"
"""Else all that are forked would draw the same where nothing is said."""

_SILENCE = """
import os
nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 1)
os.dup2(nowhere, 2)
"""


def main() -> None:
    """Run Flower's command, with the launch of processes replaced.

    The first argument, which is not Flower's, says whom it serves.
    """
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor.subprocess_executor import (
        SubprocessExecutor,
    )

    served = sys.argv.pop(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED[served])
    # Forked processes would otherwise run this file again, as their main module.
    for name in ("__file__", "__spec__"):
        if hasattr(sys.modules["__main__"], name):
            setattr(sys.modules["__main__"], name, None)
    start_server(context)
    forking = _forking(context, SubprocessExecutor.launch)
    SubprocessExecutor.launch = forking  # type: ignore[assignment, method-assign]
    flower_superexec()


def start_server(context: ForkServerContext) -> None:
    """Start the server that forks, so that it imports while nothing is asked of it."""
    from multiprocessing import forkserver

    forkserver.ensure_running()


def _forking(context: ForkServerContext, start: Launch) -> Launch:
    """Return what launches a task: by a fork if it can be, or else by `start`.

    By `start` what brings packages of its own, and all again once other packages are
    installed than are in memory.
    """
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
    from flwr.supercore.superexec.executor.types import LaunchResult

    installed = _last_installation()

    def launch(self: Any, spec: Any) -> Any:
        command = TASK_TYPE_TO_COMMAND.get(spec.task_type)
        current = _last_installation() == installed
        if command not in _FORKED or spec.runtime_dependency_install or not current:
            return start(self, spec)
        code = f"{_FORKED[command]} as run\nrun()"  # imported there alone
        code = _SEED + _BEFORE.get(command, "") + code
        if spec.suppress_output:
            code = f"{_SILENCE}\n{code}"
        before = sys.argv
        sys.argv = [command, *arguments(spec)]  # the new process takes them over
        try:
            process = context.Process(target=exec, args=(code, {}), name=command)
            process.start()
        except (EOFError, OSError):  # the server that forks did not survive its imports
            sys.argv = before
            return start(self, spec)
        finally:
            sys.argv = before
        # As with Flower's own processes nobody waits for it: it watches its parent.
        _children.discard(process)
        return LaunchResult.accepted()

    return launch


def _last_installation() -> float:
    """Return when a package was last installed or removed, in seconds of the epoch."""
    return os.stat(sysconfig.get_path("purelib")).st_mtime


def arguments(spec: Any) -> list[str]:
    """Return what the command is started with, as Flower's own executor does."""
    given = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
    if spec.insecure:
        given.append("--insecure")
    elif spec.root_certificates_path is not None:
        given += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        given += ["--parent-pid", str(spec.parent_pid)]
    return given


if __name__ == "__main__":
    main()
