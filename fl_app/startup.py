"""Defaults that every Python process of the project's environment starts with.

Flower starts a local SuperLink by itself, detached, with the environment of whichever
shell typed `flwr run` first; nothing of a later shell reaches it. So these defaults are
set at the start of Python: `fl-app setup` copies this file into site-packages, beside a
`.pth` line that calls `apply`. It must stay quick and import the standard library only.
"""

import importlib
import json
import os
import sys
import zlib
from collections.abc import MutableMapping

RECORD = "FL_APP_DEFAULTS"
RAY_PROCESSES = ("FL_APP_RAY_NODES", "FL_APP_RAY_TOOLS")
"""Where a run forks the processes of its Ray, see `ray_processes`."""

WARM = "FL_APP_WARM"
"""Set to 0, this machine's SuperLink keeps no process to fork from in memory."""


def apply(project: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the defaults; what the user has set stays.

    What an outer process set by this function (a test that starts another checkout's
    Python, say) is recorded, is not the user's, and is replaced.
    """
    try:
        inherited = json.loads(environment.get(RECORD, "{}"))
    except ValueError:
        inherited = {}
    values = defaults(project, environment)
    for name, value in values.items():
        if name not in environment or environment[name] == inherited.get(name):
            environment[name] = value
    environment[RECORD] = json.dumps(values)
    scripts = os.path.dirname(sys.executable)
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    if scripts not in path:
        path = [scripts, *path]
    if "--simulation" in sys.orig_argv:  # a SuperLink for simulations
        hook = f"{__name__}.{without_inherited.__name__}"
        environment.setdefault("RAY_RUNTIME_ENV_HOOK", hook)
        if sys.platform == "linux" and environment.get(WARM) != "0":
            # What it starts by name forks them, see `warm`. Elsewhere libraries that
            # were imported do not survive a fork for certain.
            path = [os.path.join(sys.prefix, "libexec", "fl-app", "simulation"), *path]
    environment["PATH"] = os.pathsep.join(path)
    if any(name in environment for name in RAY_PROCESSES):
        module = __name__.replace("startup", "ray_processes")  # beside this one
        importlib.import_module(module).hand_over()


def without_inherited(
    runtime_env: dict[str, object] | None,
) -> dict[str, object] | None:
    """Return the environment of Ray's workers without variables that they inherit.

    Flower asks for a PYTHONPATH that is already its own process's, and so that of all
    that Ray is about to start. For an environment that differs, Ray first starts a
    Python for each worker which imports all of Ray and then makes way for the worker.
    A Ray that is up already inherits nothing: the cluster in RAY_ADDRESS, or else the
    one that `ray start` noted on this machine.
    """
    from ray._private import utils  # no public function says where a Ray is up

    noted = getattr(utils, "read_ray_address", lambda: "perhaps")
    address = os.environ.get("RAY_ADDRESS", "")
    running = address != "local" and (address or noted())  # "local" starts one
    asked = (runtime_env or {}).get("env_vars")
    if running or runtime_env is None or not isinstance(asked, dict):
        return runtime_env
    left = {name: value for name, value in runtime_env.items() if name != "env_vars"}
    others = {n: value for n, value in asked.items() if os.environ.get(n) != value}
    return left | {"env_vars": others} if others else left


def defaults(project: str, environment: MutableMapping[str, str]) -> dict[str, str]:
    """Return the defaults for a project's folder and the Flower home in force.

    Ports are a hash of both, so that a local SuperLink of another project, which would
    run the app in that project's folder and Python, is never taken for ours.
    """
    home = environment.get("FLWR_HOME") or os.path.expanduser("~/.flwr")
    slot = zlib.crc32(f"{project}\0{os.path.abspath(home)}".encode()) % 6000
    port = 20000 + 2 * slot  # below the ports that Linux hands out by itself
    return {
        "FL_APP_PROJECT": project,
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(port + 1),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Processes that Ray would start ahead: one a core, however few nodes there are,
        # and no sooner than those that nodes ask for.
        "RAY_prestart_worker_first_driver": "0",
        # Seconds between looks for a run to start, which waits for half of them; Flower
        # has 1. Looking takes time of the cores that train.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }
