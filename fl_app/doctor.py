"""What may be wrong with a set-up, checked one thing at a time: `fl-app doctor`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from fl_app import announcing, artifacts, environment
from fl_app.config import ConfigError, RunConfig
from fl_app.data import cache, datasets
from fl_app.server_app import build_strategy, check_model


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `ok` is None where it is worth knowing but not wrong."""

    ok: bool | None
    what: str


def examine(project: Path, resolve: Callable[[], RunConfig]) -> Iterator[Finding]:
    """Yield what is found, in the order in which things are needed.

    Args:
        project: the project's folder.
        resolve: reads the options of the run that is wanted.
    """
    yield from _versions()
    yield from _programs()
    yield _hook(project)
    yield _connection()
    yield from _machine()
    yield from _ports()
    yield from _folders()
    try:
        config = resolve()
    except ConfigError as error:
        yield Finding(False, str(error))
    else:
        yield from _run(config)


def _versions() -> Iterator[Finding]:
    """Python, and every package the project needs, within its range."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(sys.version_info >= (3, 11), f"Python {python} (3.11 or later)")
    wrong = []
    for line in metadata.requires("fl-app") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    for what in wrong:
        yield Finding(False, f"{what}: run `make install`")
    if not wrong:
        flower, torch = metadata.version("flwr"), metadata.version("torch")
        yield Finding(True, f"packages are in range (flwr {flower}, torch {torch})")
    yield _torchvision()


def _torchvision() -> Finding:
    """Torch and torchvision must be built for each other; in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch, torchvision"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return Finding(True, "torch and torchvision fit each other")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return Finding(
        False, f"torch and torchvision do not import ({reason}): run `make install`"
    )


def _programs() -> Iterator[Finding]:
    """Flower starts its own programs by bare name."""
    here = Path(sys.executable).parent
    for name in ("flwr", "flower-superlink"):
        found = shutil.which(name)
        if found is None:
            yield Finding(False, f"{name} is not on PATH: activate the environment")
        elif Path(found).parent != here:
            yield Finding(False, f"{name} on PATH is {found}, not the one in {here}")
        else:
            yield Finding(True, f"{name} is {found}")


def _hook(project: Path) -> Finding:
    if environment.hook_is_current(project):
        return Finding(True, "Python starts with the project's defaults for Flower")
    return Finding(False, "Python lacks the project's defaults: run `fl-app setup`")


def _connection() -> Finding:
    path = environment.flower_config()
    if environment.is_registered(path):
        return Finding(True, f"connection {environment.CONNECTION!r} is in {path}")
    return Finding(
        False,
        f"connection {environment.CONNECTION!r} is not in {path}, or points elsewhere: "
        "run `fl-app setup`",
    )


def _machine() -> Iterator[Finding]:
    cores, gpus = environment.num_cores(), environment.num_gpus()
    nodes = environment.registered_nodes(environment.flower_config())
    default = environment.default_nodes()
    yield Finding(True, f"{cores} cores, {gpus} GPUs: {default} nodes by default")
    if nodes is not None and nodes < default:
        yield Finding(
            None,
            f"`flwr run . {environment.CONNECTION}` simulates {nodes} nodes, fewer "
            "than this machine can compute with",
        )
    free = shutil.disk_usage(Path.home()).free / 2**30
    yield Finding(free > 1, f"{free:.0f} GiB free on the disk of the home folder")


def _ports() -> Iterator[Finding]:
    """The local SuperLink's port is free, or held by one of ours."""
    variable = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
    value = os.environ[variable]
    if not value.isdecimal() or not 0 < int(value) < 65536:
        yield Finding(False, f"{variable} = {value!r} is no port: unset it")
        return
    port = int(value)
    with socket.socket() as probe:
        probe.settimeout(0.5)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    holder = _holder(port) if taken else ""
    if not taken:
        yield Finding(True, f"port {port} is free for the local SuperLink")
    elif "flower-superlink" in holder:
        yield Finding(True, f"port {port} is held by our SuperLink ({holder})")
    else:
        yield Finding(
            False,
            f"port {port} is held by {holder or 'a process of another user'}: stop it, "
            f"or set {variable} to a free port",
        )


def _holder(port: int) -> str:
    """Return `pid command` of the process that listens on a port, from /proc."""
    wanted = f":{port:04X}"
    inodes = {
        fields[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[1].endswith(wanted) and fields[3] == "0A"
    }
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(handle) for handle in (process / "fd").iterdir()}
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if any(f"socket:[{inode}]" in links for inode in inodes):
            return f"process {process.name}: {command.decode(errors='replace').strip()}"
    return ""


def _folders() -> Iterator[Finding]:
    """Flower's home and the data cache take files."""
    home = environment.flower_config().parent
    for folder, what in ((home, "Flower's home"), (cache.cache_folder(), "data cache")):
        if _writable(folder):
            yield Finding(True, f"{what} {folder} can be written")
        else:
            yield Finding(
                False,
                f"{what} {folder} cannot be written: give another folder with "
                "FLWR_HOME or FL_APP_CACHE",
            )


def _writable(folder: Path) -> bool:
    """Try it, in the folder or the nearest that is there: rights alone do not tell."""
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def _told(said: list[str], warnings: list[str]) -> Iterator[Finding]:
    yield from (Finding(True, line) for line in said)
    yield from (Finding(None, warning) for warning in warnings)


def _run(config: RunConfig) -> Iterator[Finding]:
    """The wanted run: its data, what is to be done with them, its results folder."""
    try:
        data = datasets.load(config)
        config = datasets.settled(config)
        yield from _told(*announcing.of_data(data))
        partition = data.partition(config, environment.default_nodes())
        yield Finding(
            True,
            f"dataset {config.dataset!r}: {len(data.train_labels)} training and "
            f"{len(data.test_labels)} test examples, {len(partition.clients)} clients",
        )
        check_model(build_strategy(config), config, data)
        yield Finding(True, f"strategy {config.strategy!r} and model {config.model!r}")
        yield from _told(*announcing.of_model(config, data))
    except ConfigError as error:
        yield Finding(False, str(error))
    try:
        yield Finding(True, f"results go to {artifacts.usable_results_dir(config)}")
    except ConfigError as error:
        yield Finding(False, str(error))
