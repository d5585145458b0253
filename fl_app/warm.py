"""A SuperNode's `flower-superexec` that has PyTorch imported before a message comes.

Flower starts a new process for each message to a node, and that process imports
PyTorch: seconds of every round. This one forks the process instead, from a server of
Python's `multiprocessing` that has imported what every client app needs, and no module
of any app: an app's code still comes from its bundle, anew for each message.

`fl-app setup` copies this file into site-packages and makes a command of it that is
called `flower-superexec`, in a folder of its own; a SuperNode whose PATH begins with
that folder starts it. It imports nothing of `fl_app`, whose modules would otherwise
stand in for those of the bundle.
"""

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.process import _children  # type: ignore[attr-defined]
from typing import Any

PRELOADED = [
    *(
        "torch",
        "numpy",
        "numba",
        "pydantic",
        "safetensors.numpy",
        "filelock",
        "PIL.Image",
    ),
    *("flwr.clientapp", "flwr.supernode.cli.flwr_clientapp"),
]
_COMMAND = "flwr-clientapp"


def main() -> None:
    """Run Flower's command, with the launch of client apps replaced."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor.subprocess_executor import (
        SubprocessExecutor,
    )

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Forked processes would otherwise run this file again, as their main module.
    for name in ("__file__", "__spec__"):
        if hasattr(sys.modules["__main__"], name):
            setattr(sys.modules["__main__"], name, None)
    start_server(context)
    SubprocessExecutor.launch = _launching(  # type: ignore[method-assign]
        context, SubprocessExecutor.launch
    )
    flower_superexec()


def start_server(context: ForkServerContext) -> None:
    """Start the server that forks, so that it imports while nothing is asked of it."""
    from multiprocessing import forkserver

    forkserver.ensure_running()


def _launching(context: ForkServerContext, start: Any) -> Any:
    """Return what launches a task: a client app by a fork, others as Flower does."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
    from flwr.supercore.superexec.executor.types import LaunchResult

    def launch(self: Any, spec: Any) -> Any:
        if TASK_TYPE_TO_COMMAND.get(spec.task_type) != _COMMAND:
            return start(self, spec)
        from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

        before = sys.argv
        sys.argv = [_COMMAND, *arguments(spec)]  # the new process takes them over
        try:
            process = context.Process(target=flwr_clientapp, name=_COMMAND)
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


def arguments(spec: Any) -> list[str]:
    """Return what `flwr-clientapp` is started with, as Flower's own executor does."""
    given = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
    if spec.insecure:
        given.append("--insecure")
    elif spec.root_certificates_path is not None:
        given += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        given += ["--parent-pid", str(spec.parent_pid)]
    if spec.runtime_dependency_install:
        given.append("--allow-runtime-dependency-installation")
    return given


if __name__ == "__main__":
    main()
