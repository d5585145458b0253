"""Encoded images of any size and mode into one uint8 array, with what describes it."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fl_app.config import ConfigError
from strategies.randomness import keyed_generator

Array = np.ndarray[Any, Any]
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_UNREADABLE = (OSError, Image.DecompressionBombError)
_LOT = 1000  # images a thread decodes at a time


@dataclass(frozen=True)
class Table:
    """Encoded images with the names of their classes; one owner, or none."""

    images: list[bytes]
    places: list[str]
    """Where each image came from, for errors."""
    labels: list[str]
    class_names: list[str]
    owner: str | None = None


@dataclass(frozen=True)
class Splits:
    """What a source holds. Without `test`, a fixed stratified fifth is taken."""

    train: list[Table]
    test: Table | None
    take_test: bool = True


@dataclass(frozen=True)
class Survey:
    """What is to be known of encoded images before they can be laid out."""

    class_names: list[str]
    sizes: Mapping[tuple[int, int], int]
    """Number of images by (width, height)."""
    modes: frozenset[str]
    """Pillow's names of pixel formats."""


@dataclass(frozen=True)
class Layout:
    """What all images of a data set are brought to."""

    class_names: list[str]
    size: tuple[int, int]
    """Width and height."""
    mode: str
    """L or RGB."""


def survey(table: Table) -> Survey:
    """Look at every image's header.

    Raises:
        ConfigError: a file is no image.
    """
    headers = [_header(*pair) for pair in zip(table.images, table.places, strict=True)]
    sizes = Counter(size for size, _ in headers)
    return Survey(table.class_names, sizes, frozenset(mode for _, mode in headers))


def layout(train: Sequence[Survey], class_names: list[str]) -> Layout:
    """Return the most common size, and grey only if every training image is grey.

    Raises:
        ConfigError: there is no image, or one does not fit 8 bits.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for one in train:
        sizes.update(one.sizes)
    if not sizes:
        raise ConfigError("the data set holds no training image")
    modes = frozenset[str]().union(*(one.modes for one in train))
    if odd := modes - _GREY_MODES - _COLOUR_MODES:
        raise ConfigError(
            f"the data set holds images of mode {', '.join(sorted(odd))}, whose levels "
            "do not fit 8 bits: scale them to 0..255 first"
        )
    size = min(sizes, key=lambda s: (-sizes[s], s))
    return Layout(class_names, size, "L" if modes <= _GREY_MODES else "RGB")


def arrays_of(tables: Sequence[Table], to: Layout) -> tuple[Array, Array]:
    """Return the images (N, C, H, W) uint8 and the labels (N,) int64 of the tables.

    Raises:
        ConfigError: an image cannot be decoded.
    """
    index = {name: i for i, name in enumerate(to.class_names)}
    encoded = [image for table in tables for image in table.images]
    places = [place for table in tables for place in table.places]
    labels = [index[label] for table in tables for label in table.labels]
    return _decode_all(encoded, places, to.size, to.mode), np.asarray(labels, np.int64)


def decode(splits: Splits) -> tuple[dict[str, Array], dict[str, Any]]:
    """Decode all images to the most common size, grey only if every one is grey."""
    tables = [*splits.train, *([splits.test] if splits.test else [])]
    names = united([table.class_names for table in tables])
    to = layout([survey(table) for table in splits.train], names)
    images, labels = arrays_of(splits.train, to)
    if splits.test is not None:
        arrays = {"train-images": images, "train-labels": labels}
        arrays["test-images"], arrays["test-labels"] = arrays_of([splits.test], to)
    elif splits.take_test:
        arrays = with_test(images, labels, num_classes=len(names))
    else:
        arrays = {"train-images": images, "train-labels": labels}
        arrays |= {"test-images": images[:0], "test-labels": labels[:0]}
    owners = [table.owner for table in splits.train if table.owner is not None]
    if owners:
        sizes_of = [len(table.images) for table in splits.train]
        arrays["train-owners"] = np.repeat(np.arange(len(owners)), sizes_of)
    return arrays, describe(arrays, names, owners)


def _decode_all(
    encoded: list[bytes], places: list[str], size: tuple[int, int], mode: str
) -> Array:
    """Return all images, (N, C, H, W) uint8; threads share them in large lots."""
    channels = 1 if mode == "L" else 3
    images = np.empty((len(encoded), channels, size[1], size[0]), np.uint8)

    def decode(start: int) -> None:
        for i, image in enumerate(encoded[start : start + _LOT], start):
            try:
                images[i] = _pixels(image, size, mode)
            except _UNREADABLE as error:
                raise ConfigError(
                    f"{places[i]} cannot be decoded ({error}): mend or remove it"
                ) from error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(decode, range(0, len(encoded), _LOT)))
    return images


def united(class_names: Sequence[list[str]]) -> list[str]:
    """Return the first list if all agree, else the sorted union."""
    first = class_names[0]
    if all(names == first for names in class_names):
        return first
    union = {name for names in class_names for name in names}
    numeric = all(name.isdecimal() for name in union)
    return sorted(union, key=int if numeric else str)


def _header(encoded: bytes, place: str) -> tuple[tuple[int, int], str]:
    """Return (width, height) and mode without decoding the pixels."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size, image.mode
    except _UNREADABLE as error:
        raise ConfigError(f"{place} is no image: mend or remove it") from error


def _pixels(encoded: bytes, size: tuple[int, int], mode: str) -> Array:
    """Return one image as (C, H, W) uint8."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert(mode)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def with_test(images: Array, labels: Array, *, num_classes: int) -> dict[str, Array]:
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


def describe(
    arrays: dict[str, Array], class_names: list[str], owners: list[str]
) -> dict[str, Any]:
    """Return class names and the training images' mean and deviation per channel."""
    mean, std = normalisation(level_counts(arrays["train-images"]))
    return {
        "class-names": class_names,
        "mean": mean,
        "std": std,
        "full-scale": 255.0,
        "owners": owners,
    }


def level_counts(images: Array) -> Array:
    """Return how often each level occurs, (channels, 256) int64; owners' counts add."""
    channels = range(images.shape[1])
    counts = [np.bincount(images[:, c].ravel(), minlength=256) for c in channels]
    return np.stack(counts).astype(np.int64)


def normalisation(counts: Array) -> tuple[list[float], list[float]]:
    """Return mean and deviation per channel, of levels divided by 255."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in counts:
        mean = float((channel * levels).sum() / channel.sum())
        variance = float((channel * np.square(levels - mean)).sum() / channel.sum())
        means.append(round(mean, 6))
        deviations.append(round(max(variance, 1e-6) ** 0.5, 6))
    return means, deviations
