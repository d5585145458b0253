"""Where data lies and what its copy in the cache is called."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from fl_app.config import PROJECT_VARIABLE, ConfigError, RunConfig, project_path
from fl_app.data import cache
from fl_app.data.layouts import AUTO, Sizing
from fl_app.data.tables import BY_NAME, Columns
from fl_app.data.tree import Tree, shown

Source = tuple[str, Callable[[], cache.Built]]
"""A cache key, which changes when the source does, and how to read the source."""


def sizing_of(config: RunConfig) -> Sizing:
    """Return the options that say how large images are to be."""
    return Sizing(config.image_size, config.resize)


def columns_of(config: RunConfig) -> Columns:
    """Return the options that name columns of tables."""
    return Columns(config.image_column, config.label_column)


def folder_in_project(name: str) -> Path | None:
    """Return the folder of that name in the project; None if there is none."""
    if not os.environ.get(PROJECT_VARIABLE):
        return None
    path = project_path(name, "dataset")
    if path.is_file():
        raise ConfigError(f"dataset = {name!r}: {about_file(path)}")
    return path if path.is_dir() else None


def about_file(path: Path) -> str:
    """Return why a file is no data set, and what to do."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return f"{path} is a file: give the folder that it is in"
    todo = "unpack it, and " if suffix in (".zip", ".tar", ".tgz", ".gz", ".7z") else ""
    return f"{path} is a file: {todo}give the path of a folder"


def folder_key(kind: str, tree: Tree, columns: Columns, sizing: Sizing) -> str:
    """Return a cache key that changes when a file is added, removed or altered."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", shown(Path(tree.top.path).name))[:40]
    return keyed(kind, name, tree.digest, columns, sizing)


def keyed(kind: str, name: str, digest: str, columns: Columns, sizing: Sizing) -> str:
    """Return a key of what is read and how."""
    if (columns, sizing) != (BY_NAME, AUTO):
        how = repr((columns, sizing)).encode()
        digest += ("-" if digest else "") + hashlib.sha256(how).hexdigest()[:8]
    return "-".join(part for part in (kind, name, digest) if part)
