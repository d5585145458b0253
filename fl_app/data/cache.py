"""A data set, decoded once, as memory-mapped arrays that all processes share.

One folder per data set and source state: `.npy` files and `meta.json`, which is written
last and holds the CRC-32 of each file. A folder that is torn or altered fails that
check and is built again; building happens under a lock, in a folder of its own that is
renamed into place.
"""

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fl_app.config import ConfigError

log = logging.getLogger("flwr.fl_app")

CACHE_VARIABLE = "FL_APP_CACHE"
_VERSION = 3  # of the layout: raise it when what is stored changes
_META = "meta.json"

Array = np.ndarray[Any, Any]
Contents = tuple[dict[str, Array], dict[str, Any]]
"""Named arrays, and whatever else describes them (JSON)."""


@dataclass(frozen=True)
class Stream:
    """An array that is written as it is made, a piece at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterator[Array]]
    """Along the first axis, in order."""


Built = tuple[
    Mapping[str, Array | Stream], dict[str, Any] | Callable[[], dict[str, Any]]
]
"""Contents as they are made; what describes them may be known once they are."""


def in_memory(built: Built) -> Contents:
    """Return contents with all arrays made."""
    arrays, described = built
    whole = {
        name: np.concatenate([np.empty((0, *a.shape[1:]), a.dtype), *a.pieces()])
        if isinstance(a, Stream)
        else a
        for name, a in arrays.items()
    }
    return whole, described() if callable(described) else described


def cache_folder() -> Path:
    """Return the folder of all caches: $FL_APP_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(base) / "fl-app")


def open_or_build(name: str, build: Callable[[], Built]) -> Contents:
    """Return the arrays, memory-mapped read-only, and their description.

    Args:
        name: the cache's folder name; must change when the source does.
        build: decodes the source; called only if there is no sound cache.
    """
    folder = cache_folder() / f"{name}-v{_VERSION}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the data cache {folder.parent} cannot be made ({error.strerror}): give "
            f"another folder with {CACHE_VARIABLE}"
        ) from error
    if (contents := _open(folder)) is not None:
        return contents
    with FileLock(f"{folder}.lock"):
        if (contents := _open(folder)) is not None:
            return contents  # another process built it meanwhile
        if folder.exists():
            log.warning("The cache %s is damaged and is built again", folder)
            shutil.rmtree(folder)
        _write(folder, *build())
        contents = _open(folder)
    if contents is None:
        raise OSError(f"the cache {folder} cannot be read back: is the disk sound?")
    return contents


def _write(
    folder: Path,
    arrays: Mapping[str, Array | Stream],
    described: dict[str, Any] | Callable[[], dict[str, Any]],
) -> None:
    """Write a complete folder beside `folder`, then rename it into place."""
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        checksums = {}
        for name, array in arrays.items():
            path = draft / f"{name}.npy"
            if isinstance(array, Stream):
                _save(path, array)
            else:
                np.save(path, np.asarray(array, order="C"))
            checksums[name] = _checksum(path)
        told = described() if callable(described) else described
        meta = {"checksums": checksums, "described": told}
        (draft / _META).write_text(json.dumps(meta))
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save(path: Path, stream: Stream) -> None:
    """Write a stream as `np.save` would write the array."""
    header = {
        "descr": np.lib.format.dtype_to_descr(stream.dtype),
        "fortran_order": False,
        "shape": stream.shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in stream.pieces():
            file.write(np.asarray(piece, stream.dtype, order="C").data)


def _open(folder: Path) -> Contents | None:
    """Return the contents, or None if the folder is absent, torn or altered."""
    try:
        meta = json.loads((folder / _META).read_text())
        arrays = {}
        for name, checksum in meta["checksums"].items():
            path = folder / f"{name}.npy"
            if _checksum(path) != checksum:
                return None
            arrays[name] = np.load(path, mmap_mode="r")
        return arrays, meta["described"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file, read in pieces."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum
