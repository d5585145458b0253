"""Reads images and labels from wherever they lie into uint8 arrays.

Sources are read by `datasets` (through `flwr_datasets` for the Hub): Parquet files with
an image and a label column, image files in class folders, or an owner/name on the Hub.
"""

import io
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fl_app.config import ConfigError
from strategies.randomness import keyed_generator

Array = np.ndarray[Any, Any]
_GREY_MODES = {"1", "L", "LA"}
TEST_FOLDER = "test"
_LOT = 1000  # images a thread decodes at a time


@dataclass(frozen=True)
class Table:
    """Encoded images with the names of their classes; one owner, or none."""

    images: list[bytes]
    labels: list[str]
    class_names: list[str]
    owner: str | None = None


@dataclass(frozen=True)
class Splits:
    """What a source holds. Without `test`, a fixed stratified fifth is taken."""

    train: list[Table]
    test: Table | None
    take_test: bool = True


def read_digits() -> tuple[dict[str, Array], dict[str, Any]]:
    """Return scikit-learn's bundled 8x8 digits; grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    arrays = _with_test(images, labels, num_classes=10)
    return arrays, _describe(arrays, [str(i) for i in range(10)], [])


def read_hub(hub_id: str, option: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a data set from the Hugging Face Hub, downloaded by `flwr_datasets`."""
    from flwr_datasets import FederatedDataset
    from flwr_datasets.partitioner import IidPartitioner

    try:
        hub = FederatedDataset(
            dataset=hub_id, partitioners={"train": IidPartitioner(1)}, shuffle=False
        )
        train = _table(hub.load_split("train"), hub_id)
        test = _table(hub.load_split("test"), hub_id) if "test" in _names(hub) else None
    except ConfigError:
        raise
    except Exception as error:  # any of a dozen libraries may raise here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"dataset = {option!r} could not be had from the Hugging Face Hub "
            f"({hub_id}: {reason}): check the name and the network, or point data-dir "
            "at a folder that holds a copy"
        ) from error
    return _decode(Splits([train], test))


def _names(hub: Any) -> set[str]:
    return set(hub._dataset)


def read_folder(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a local folder: Parquet files, or images in class folders."""
    splits = _load_folder(folder)
    return _decode(Splits([splits["train"]], splits.get("test")))


def read_owners(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a folder of folders, one per client; `test/` in it is the server's."""
    owners = sorted(p.name for p in folder.iterdir() if p.is_dir())
    tables = []
    for owner in owners:
        if owner != TEST_FOLDER and not owner.startswith("."):
            table = _load_folder(folder / owner)["train"]
            tables.append(Table(table.images, table.labels, table.class_names, owner))
    if not tables:
        raise ConfigError(
            f"partitioner = 'folders' finds no client folder in {folder}: each "
            "sub-folder is one client, with class folders or Parquet files in it"
        )
    test = None
    if TEST_FOLDER in owners:
        test = _load_folder(folder / TEST_FOLDER)["train"]
    return _decode(Splits(tables, test, take_test=False))


def _load_folder(folder: Path) -> dict[str, Table]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="fl-app-") as scratch:
        try:
            loaded = datasets.load_dataset(**_loader(folder), cache_dir=scratch)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{folder} holds no data set ({reason}): it needs Parquet files with "
                "an image and a label column, or images in class folders"
            ) from error
        names = {"train" if len(loaded) == 1 else name: name for name in loaded}
        if "train" not in names:
            raise ConfigError(f"{folder} has splits {sorted(names)} but no 'train'")
        return {
            name: _table(loaded[names[name]], str(folder))
            for name in ("train", "test")
            if name in names
        }


def _loader(folder: Path) -> dict[str, Any]:
    """Return how `datasets` is to read a folder: Parquet files, or class folders."""
    if any(folder.rglob("*.parquet")):
        return {"path": str(folder)}
    # By itself the loader drops the label where a folder holds one class only.
    return {"path": "imagefolder", "data_dir": str(folder), "drop_labels": False}


def _table(split: Any, source: str) -> Table:
    """Take the image and the label column out of a `datasets.Dataset`."""
    import datasets

    features = split.features
    images = [n for n, f in features.items() if isinstance(f, datasets.Image)]
    classes = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    labels = [n for n in ("label", "labels") if n in features] + classes
    if not images or not labels:
        raise ConfigError(
            f"{source} has columns {list(features)}: one must hold images and one, "
            "called label, the class"
        )
    raw = split.cast_column(images[0], datasets.Image(decode=False))
    values = list(raw[labels[0]])
    if any(value is None for value in values):
        raise ConfigError(f"{source} has rows without a label in {labels[0]!r}")
    if isinstance(features[labels[0]], datasets.ClassLabel):
        names = list(features[labels[0]].names)
        named = [names[value] for value in values]
    else:
        names = [str(value) for value in sorted(set(values))]
        named = [str(value) for value in values]
    encoded = [
        cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        for cell in raw[images[0]]
    ]
    return Table(encoded, named, names)


def _decode(splits: Splits) -> tuple[dict[str, Array], dict[str, Any]]:
    """Decode all images to the most common size, grey only if every one is grey."""
    tables = [*splits.train, *([splits.test] if splits.test else [])]
    names = _class_names(tables)
    headers = [_header(image) for table in splits.train for image in table.images]
    if not headers:
        raise ConfigError("the data set holds no training image")
    sizes = Counter(size for size, _ in headers)
    size = min(sizes, key=lambda s: (-sizes[s], s))
    mode = "L" if {mode for _, mode in headers} <= _GREY_MODES else "RGB"
    index = {name: i for i, name in enumerate(names)}

    def arrays_of(tables: list[Table]) -> tuple[Array, Array]:
        encoded = [image for table in tables for image in table.images]
        images = _decode_all(encoded, size, mode)
        labels = [index[label] for table in tables for label in table.labels]
        return images, np.asarray(labels, np.int64)

    images, labels = arrays_of(splits.train)
    if splits.test is not None:
        arrays = {"train-images": images, "train-labels": labels}
        arrays["test-images"], arrays["test-labels"] = arrays_of([splits.test])
    elif splits.take_test:
        arrays = _with_test(images, labels, num_classes=len(names))
    else:
        arrays = {"train-images": images, "train-labels": labels}
        arrays |= {"test-images": images[:0], "test-labels": labels[:0]}
    owners = [table.owner for table in splits.train if table.owner is not None]
    if owners:
        sizes_of = [len(table.images) for table in splits.train]
        arrays["train-owners"] = np.repeat(np.arange(len(owners)), sizes_of)
    return arrays, _describe(arrays, names, owners)


def _decode_all(encoded: list[bytes], size: tuple[int, int], mode: str) -> Array:
    """Return all images, (N, C, H, W) uint8; threads share them in large lots."""
    channels = 1 if mode == "L" else 3
    images = np.empty((len(encoded), channels, size[1], size[0]), np.uint8)

    def decode(start: int) -> None:
        for i, image in enumerate(encoded[start : start + _LOT], start):
            try:
                images[i] = _pixels(image, size, mode)
            except OSError as error:
                raise ConfigError(
                    f"image {i} of the data set cannot be decoded ({error}): mend or "
                    "remove it"
                ) from error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(decode, range(0, len(encoded), _LOT)))
    return images


def _class_names(tables: list[Table]) -> list[str]:
    """Return the first table's order if all agree, else the sorted union."""
    first = tables[0].class_names
    if all(table.class_names == first for table in tables):
        return first
    union = {name for table in tables for name in table.class_names}
    numeric = all(name.isdecimal() for name in union)
    return sorted(union, key=int if numeric else str)


def _header(encoded: bytes) -> tuple[tuple[int, int], str]:
    """Return (width, height) and mode without decoding the pixels."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size, image.mode
    except OSError as error:
        raise ConfigError(f"the data set holds a file that is no image: {error}") from (
            error
        )


def _pixels(encoded: bytes, size: tuple[int, int], mode: str) -> Array:
    """Return one image as (C, H, W) uint8."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert(mode)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _with_test(images: Array, labels: Array, *, num_classes: int) -> dict[str, Array]:
    """Set a fixed fifth of each class aside as the test split."""
    draws = keyed_generator(0, "test-split")
    chosen = [
        order[: int(len(order) / 5 + 0.5)]
        for order in (
            draws.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)
        )
    ]
    is_test = np.zeros(len(labels), bool)
    is_test[np.concatenate(chosen)] = True
    return {
        "train-images": images[~is_test],
        "train-labels": labels[~is_test],
        "test-images": images[is_test],
        "test-labels": labels[is_test],
    }


def _describe(
    arrays: dict[str, Array], class_names: list[str], owners: list[str]
) -> dict[str, Any]:
    """Return class names and the training images' mean and deviation per channel."""
    images = arrays["train-images"]
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * np.square(levels - mean)).sum() / counts.sum())
        means.append(round(mean, 6))
        deviations.append(round(max(variance, 1e-6) ** 0.5, 6))
    return {
        "class-names": class_names,
        "mean": means,
        "std": deviations,
        "owners": owners,
    }
