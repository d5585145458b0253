"""Draws data sets of images as people have them, and reads them through the app."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl_app.artifacts import ModelInfo
from fl_app.config import ConfigError, RunConfig
from fl_app.data import datasets
from fl_app.data.datasets import Dataset
from tests.conftest import make_config

Counts = dict[str, int]
Array = np.ndarray[Any, Any]

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".png": "PNG",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
}
"""Suffixes that are read, and how such a file is written."""

# --- drawing


def encoded(picture: Any, kind: str = "PNG", **how: Any) -> bytes:
    """Return an array or a picture as a file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


@lru_cache(maxsize=1000)
def photo(
    level: int = 100,
    size: tuple[int, int] = (10, 8),
    kind: str = "PNG",
    *,
    grey: bool = False,
) -> bytes:
    """Return a noisy picture of a mean level, as a file; `size` is width and height."""
    draws = np.random.default_rng(level)
    shape = size[::-1] if grey else (*size[::-1], 3)
    low, high = max(0, level - 20), min(255, level + 20)
    return encoded(draws.integers(low, high, shape, dtype=np.uint8), kind)


def put(path: Path, content: bytes | str = b"") -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def plant(
    root: Path,
    counts: Mapping[str, int],
    *,
    name: str = "{:03d}.png",
    size: tuple[int, int] = (10, 8),
    grey: bool = False,
) -> Path:
    """Write so many images into each folder; the last part of its path sets a level."""
    words = sorted({folder.rsplit("/", 1)[-1] for folder in counts})
    suffix = Path(name.format(0)).suffix.lower()
    for folder, number in counts.items():
        level = 50 + 150 * words.index(folder.rsplit("/", 1)[-1]) // len(words)
        content = photo(level, size, FORMATS[suffix], grey=grey)
        for i in range(number):
            put(root / folder / name.format(i), content)
    return root


def leave_macs_files(root: Path, folder: str, names: list[str]) -> None:
    """Write what a Mac adds to a folder, and to the top of its zip file."""
    fork = b"\0\5\26\7" + bytes(60)
    put(root / folder / ".DS_Store", b"\0\0\0\1Bud1")
    for name in names:
        put(root / folder / f"._{name}", fork)
        put(root / "__MACOSX" / folder / f"._{name}", fork)


def unreadable_name(text: str) -> str:
    """Return a name whose bytes are Windows-1252, as old zip files leave them."""
    return os.fsdecode(text.encode("cp1252"))


def features(classes: Mapping[str, Sequence[str]], image: str = "image") -> bytes:
    """Return what Hugging Face's `datasets` writes into a Parquet file's schema."""
    kinds: dict[str, Any] = {image: {"_type": "Image"}}
    for column, names in classes.items():
        kinds[column] = {"names": list(names), "_type": "ClassLabel"}
    return json.dumps({"info": {"features": kinds}}).encode()


def write_parquet(
    path: Path, columns: Mapping[str, Any], info: bytes | None = None
) -> Path:
    """Write columns (lists or Arrow arrays) as a Parquet file."""
    table = pa.table(dict(columns))
    if info is not None:
        table = table.replace_schema_metadata({b"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def boxed(images: Iterable[bytes | None]) -> list[dict[str, Any] | None]:
    """Return images as a column of {bytes, path}."""
    return [None if one is None else {"bytes": one, "path": None} for one in images]


# --- reading


def by_class(labels: Any, names: Sequence[str]) -> Counts:
    """Return how many labels there are of each class."""
    counted = np.bincount(np.asarray(labels, np.int64), minlength=len(names))
    return dict(zip(names, counted.tolist(), strict=True))


@dataclass(frozen=True)
class Seen:
    """What was read of a folder."""

    data: Dataset
    config: RunConfig

    @property
    def train(self) -> Counts:
        return by_class(self.data.train_labels, self.data.class_names)

    @property
    def test(self) -> Counts:
        return by_class(self.data.test_labels, self.data.class_names)

    @property
    def all(self) -> Counts:
        return {name: n + self.test[name] for name, n in self.train.items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.input_shape

    @property
    def owned(self) -> dict[str, tuple[Counts, Counts]]:
        """Training and validation examples of each owner."""
        cut = self.data.partition(self.config, 1)
        labels, names = np.asarray(self.data.train_labels), self.data.class_names
        parts = [[by_class(labels[i], names) for i in cut.split(c)]
                 for c in range(len(cut.clients))]  # fmt: skip
        return {
            owner: (train, validation)
            for owner, (train, validation) in zip(self.data.owners, parts, strict=True)
        }

    def image(self, index: int, split: str = "train") -> Array:
        """Return an image, (height, width, channels)."""
        images = getattr(self.data, f"{split}_images")
        return np.asarray(images[index]).transpose(1, 2, 0)

    def of_class(self, name: str, split: str = "train") -> Array:
        """Return a class's images, (number, height, width, channels)."""
        labels = getattr(self.data, f"{split}_labels")
        chosen = np.asarray(labels) == self.data.class_names.index(name)
        images = getattr(self.data, f"{split}_images")
        return np.asarray(images[chosen]).transpose(0, 2, 3, 1)


def look(folder: Path, partitioner: str = "iid", **options: Any) -> Seen:
    """Read a folder, and divide it among two clients or its owners."""
    clients = 0 if partitioner == "folders" else 2
    given = {"num_clients": clients, "partitioner": partitioner} | options
    config = make_config(dataset=str(folder), **given)
    data = datasets.load(config)
    data.partition(config, 2)
    return Seen(data, config)


def passed_over(account: str) -> int:
    """Return how many files an account says were passed over."""
    _, found, after = account.partition("passed over ")
    return int(after.split()[0].replace(",", "")) if found else 0


def images_read(account: str) -> int:
    """Return how many images an account says were read."""
    return int(account.partition("read ")[2].split()[0].replace(",", ""))


def model_info(shape: tuple[int, int, int] = (3, 8, 10), **changes: Any) -> ModelInfo:
    """Return the description of a model with such an input."""
    levels = (0.5,) * shape[0]
    return ModelInfo("logistic", "own", shape, levels, levels, 255.0, ["a", "b"],
                     **changes)  # fmt: skip


def refusal(folder: Path, partitioner: str = "iid", **options: Any) -> str:
    """Return what is said of a folder that must be refused."""
    with pytest.raises(ConfigError) as caught:
        look(folder, partitioner, **options)
    return str(caught.value)
