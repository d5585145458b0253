"""Where a run's figures come from: versions, git commit and host."""

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from fl_app.config import PROJECT_VARIABLE

_VERSIONED = (
    "fl-app",
    "flwr",
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "llvmlite",
    "ray",
)


def describe() -> dict[str, Any]:
    """Return versions, git commit and host, so that a run can be repeated."""
    versions = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    host = {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    return {"versions": versions, "git_commit": _git_commit(), "host": host}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """Return the project's commit, marked -dirty if files differ; None without git."""
    project = os.environ.get(PROJECT_VARIABLE)
    if project is None:
        return None
    command = ["git", "-C", project, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
