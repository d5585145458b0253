"""What `fl-app setup` does, and what it finds out about the machine.

Two things make `flwr run . local-simulation` work from any shell: a connection of that
name in Flower's config.toml, and the defaults of `startup` in the environment's Python.
"""

import os
import shlex
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from fl_app import ray_processes, startup, warm
from fl_app.artifacts import write_atomically
from fl_app.config import PROJECT_VARIABLE, ConfigError

if TYPE_CHECKING:
    from tomlkit.items import Table

CONNECTION = "local-simulation"
DEPLOYMENT = "deployment"
ADDRESS = ":local-in-memory:"
"""A SuperLink that Flower starts when needed, with no state in files: every local
SuperLink of a user would share one database, and take runs from one another."""

_HOOK, _WARM = "_fl_app_startup", "_fl_app_warm"
_RAY, _NODES = "_fl_app_ray_processes", "_fl_app_ray_nodes"


class SetupError(RuntimeError):
    """The set-up cannot be done; the message says why and what to do."""


def find_project() -> Path:
    """Return the project's folder: around the working directory, or else the code's.

    Raises:
        SetupError: neither is a checkout of this project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parent.parent):
        try:
            described = tomllib.loads((folder / "pyproject.toml").read_text())
        except (OSError, tomllib.TOMLDecodeError):
            continue
        if described.get("project", {}).get("name") == "fl-app":
            return folder.resolve()
    raise SetupError(
        "this is no folder of fl-app: change to the project's folder (the one with its "
        "pyproject.toml) and try again"
    )


def default_options(project: Path) -> dict[str, Any]:
    """Return the options that pyproject.toml declares, flat, kebab-case."""
    described = tomllib.loads((project / "pyproject.toml").read_text())
    return flatten(described["tool"]["flwr"]["app"]["config"])


def flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as `table.option` keys, as Flower does."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def enter(project: Path) -> None:
    """Set the defaults for this process; call it before Flower is imported."""
    os.environ.pop(PROJECT_VARIABLE, None)
    startup.apply(str(project))


def setup(
    project: Path, server: str = "", root_certificates: Path = Path()
) -> list[str]:
    """Do the set-up; return what was changed, nothing if it was done before.

    Args:
        project: the project's folder.
        server: HOST:PORT of a SuperLink to connect to as `deployment`; "" for none.
        root_certificates: the certificate of its authority.

    Raises:
        SetupError: a file cannot be written.
    """
    changed = []
    try:
        if _write_hook(project):
            changed.append(f"defaults for Python in {_site_packages()}")
        if _edit(flower_config(), _add_simulation):
            changed.append(f"connection {CONNECTION!r} in {flower_config()}")

        def add_server(superlinks: "Table") -> None:
            import tomlkit

            connection = superlinks.setdefault(DEPLOYMENT, tomlkit.table())
            certificate = str(root_certificates.expanduser().resolve())
            connection["address"] = server
            connection["root-certificates"] = certificate

        if server and _edit(flower_config(), add_server):
            changed.append(f"connection {DEPLOYMENT!r} in {flower_config()}")
    except OSError as error:
        raise SetupError(
            f"the set-up cannot write {error.filename} ({error.strerror}): use a "
            "virtual environment and a FLWR_HOME that you may write to"
        ) from error
    return changed


def flower_config() -> Path:
    """Return the path of Flower's config.toml."""
    home = os.environ.get("FLWR_HOME") or Path.home() / ".flwr"
    return Path(home).expanduser() / "config.toml"


def hook_is_current(project: Path) -> bool:
    """Whether Python of this environment starts with the project's defaults."""
    return all(
        path.exists() and path.read_text() == text for path, text in _hook(project)
    )


def _hook(project: Path) -> list[tuple[Path, str]]:
    """Return the files of the start-up hook and what it needs, with their contents."""
    call = f"import {_HOOK}; {_HOOK}.apply({str(project)!r})\n"
    nodes = f"import {_RAY} as processes\n\nprocesses.start(processes.NODES)\n"
    script = _site_packages() / f"{_WARM}.py"
    command = shlex.join([sys.executable, "-P", str(script)])
    name = "flower-superexec"
    forking = [
        (warm_commands(served) / name, f'#!/bin/sh\nexec {command} {served} "$@"\n')
        for served in warm.PRELOADED
    ]
    return [  # what imports another after that one
        (_site_packages() / f"{_RAY}.py", Path(ray_processes.__file__).read_text()),
        (_site_packages() / f"{_NODES}.py", nodes),
        (_site_packages() / f"{_HOOK}.py", Path(startup.__file__).read_text()),
        (_site_packages() / f"{_HOOK}.pth", call),
        (script, Path(warm.__file__).read_text()),
        *forking,
    ]


def warm_commands(served: str = "supernode") -> Path:
    """Return the folder that the PATH of who is served begins with, to run `warm`."""
    folder = Path(sys.prefix) / "libexec" / "fl-app"
    return folder if served == "supernode" else folder / served


def _write_hook(project: Path) -> bool:
    if hook_is_current(project):
        return False
    for path, text in _hook(project):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        if text.startswith("#!"):
            path.chmod(0o755)
    return True


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _add_simulation(superlinks: "Table") -> None:
    """Add or mend the connection; the user's options for it stay."""
    import tomlkit

    connection = superlinks.setdefault(CONNECTION, tomlkit.table())
    if connection.get("address") != ADDRESS:
        connection["address"] = ADDRESS
    connection.setdefault("options", simulation_options(default_nodes()))


def _edit(path: Path, change: "Callable[[Table], None]") -> bool:
    """Change the connections in Flower's config.toml; keep all else in the file."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        before = path.read_text() if path.exists() else _flower_default()
        try:
            document = tomlkit.parse(before)
            change(document.setdefault("superlink", tomlkit.table()))
        except (TOMLKitError, AttributeError, TypeError) as error:
            raise SetupError(f"{path} is not as Flower writes it: {error}") from error
        after = tomlkit.dumps(document)
        if path.exists() and after == before:
            return False
        write_atomically(path, after.encode())
    return True


def is_registered(path: Path) -> bool:
    """Whether the connection is in Flower's config.toml as `setup` leaves it."""
    return _connection(path).get("address") == ADDRESS


def registered_nodes(path: Path) -> int | None:
    """Return how many nodes `flwr run` simulates; None where the file says nothing."""
    nodes = _connection(path).get("options", {}).get("num-supernodes")
    return nodes if isinstance(nodes, int) else None


def _connection(path: Path) -> dict[str, Any]:
    try:
        described = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return {}
    connection = described.get("superlink", {}).get(CONNECTION, {})
    return connection if isinstance(connection, dict) else {}


def _flower_default() -> str:
    from flwr.cli.constant import DEFAULT_FLOWER_CONFIG_TOML

    return DEFAULT_FLOWER_CONFIG_TOML


def simulation_options(num_nodes: int) -> dict[str, Any]:
    """Return Flower's options for a simulation of that many nodes on this machine."""
    resources = node_resources(num_nodes)
    return {
        "num-supernodes": num_nodes,
        "backend": {
            "client-resources": {
                "num-cpus": resources["client-resources-num-cpus"],
                "num-gpus": resources["client-resources-num-gpus"],
            }
        },
    }


def node_resources(num_nodes: int) -> dict[str, int | float]:
    """Return the share of cores and GPUs of one node, so that all of them are used."""
    return {
        "client-resources-num-cpus": max(1, num_cores() // num_nodes),
        "client-resources-num-gpus": _gpu_share(num_nodes),
    }


def _gpu_share(num_nodes: int) -> float:
    """Return a node's share: at most one GPU, rounded down for the way as a float32."""
    return min(1.0, floor(num_gpus() / num_nodes * 10_000) / 10_000)


def default_nodes() -> int:
    """Return how many nodes to simulate: one a GPU, or else one a core."""
    return num_gpus() or num_cores()


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def num_gpus() -> int:
    """Return the number of NVIDIA GPUs, without importing a library that knows."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return len([p for p in hidden.split(",") if p.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def check_nodes(num_nodes: int) -> None:
    """Raise `ConfigError` unless `--nodes` is at least 1."""
    if num_nodes < 1:
        raise ConfigError(f"--nodes = {num_nodes} is not allowed: should be at least 1")
