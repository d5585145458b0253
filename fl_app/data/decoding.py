"""Encoded images of any size and mode into one uint8 array, with what describes it."""

import io
import os
from collections import Counter
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


def decode(splits: Splits) -> tuple[dict[str, Array], dict[str, Any]]:
    """Decode all images to the most common size, grey only if every one is grey."""
    tables = [*splits.train, *([splits.test] if splits.test else [])]
    names = _class_names(tables)
    headers = [
        _header(image, place)
        for table in splits.train
        for image, place in zip(table.images, table.places, strict=True)
    ]
    if not headers:
        raise ConfigError("the data set holds no training image")
    sizes = Counter(size for size, _ in headers)
    size = min(sizes, key=lambda s: (-sizes[s], s))
    modes = {mode for _, mode in headers}
    if odd := modes - _GREY_MODES - _COLOUR_MODES:
        raise ConfigError(
            f"the data set holds images of mode {', '.join(sorted(odd))}, whose levels "
            "do not fit 8 bits: scale them to 0..255 first"
        )
    mode = "L" if modes <= _GREY_MODES else "RGB"
    index = {name: i for i, name in enumerate(names)}

    def arrays_of(tables: list[Table]) -> tuple[Array, Array]:
        encoded = [image for table in tables for image in table.images]
        places = [place for table in tables for place in table.places]
        images = _decode_all(encoded, places, size, mode)
        labels = [index[label] for table in tables for label in table.labels]
        return images, np.asarray(labels, np.int64)

    images, labels = arrays_of(splits.train)
    if splits.test is not None:
        arrays = {"train-images": images, "train-labels": labels}
        arrays["test-images"], arrays["test-labels"] = arrays_of([splits.test])
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


def _class_names(tables: list[Table]) -> list[str]:
    """Return the first table's order if all agree, else the sorted union."""
    first = tables[0].class_names
    if all(table.class_names == first for table in tables):
        return first
    union = {name for table in tables for name in table.class_names}
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
        "full-scale": 255.0,
        "owners": owners,
    }
