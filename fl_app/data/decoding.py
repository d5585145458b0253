"""Encoded images of any size and mode into uint8 arrays, with what describes them.

Images are looked at twice, a lot at a time: their headers say how all of them are to be
laid out, then each is decoded to that and written away. No more than some lots are in
memory.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low
from typing import Any

import numpy as np
from PIL import Image

from fl_app.config import ConfigError
from fl_app.data import cache, pixels
from fl_app.data.account import Account
from fl_app.data.layouts import LIMIT, Layout, Sizing, Survey, layout
from fl_app.data.lots import Damaged, Joined, in_lots
from fl_app.data.pixels import DamagedError, Form, Header
from fl_app.data.progress import watched
from fl_app.data.tables import Table, united
from strategies.randomness import keyed_generator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Client:
    """The images of one owner; `validation` is what it keeps for that itself."""

    train: Table
    validation: Table | None = None
    name: str | None = None

    @property
    def tables(self) -> list[Table]:
        """What it trains on, then what it validates with."""
        return [self.train, *([self.validation] if self.validation else [])]


@dataclass(frozen=True)
class Source:
    """What a data set holds. Without `test`, a fixed stratified fifth is taken."""

    clients: list[Client]
    test: Table | None
    take_test: bool = True
    is_own: bool = False
    """Whether these are a user's own images: their size is limited by "auto"."""
    account: Account = field(default_factory=Account)


def survey(
    tables: Sequence[Table], damaged: "Damaged | None" = None
) -> tuple[Survey, Array]:
    """Look at every image's header; return a summary, and the sizes (N, 2) int32.

    Args:
        tables: the images.
        damaged: takes in those that are none.

    Raises:
        ConfigError: files are no images, and nothing takes them in.
    """
    every = Joined(tables)
    own = Damaged() if damaged is None else damaged
    headers: list[Header] = []
    with watched("looking at", len(every)) as advance:
        for found in in_lots(every, partial(_looked_at, damaged=own)):
            headers += found
            advance(len(found))
    if damaged is None:
        own.check()
    sizes = Counter(one.size for one in headers)
    names = united([table.class_names for table in tables])
    summary = Survey(
        names,
        sizes,
        frozenset(one.mode for one in headers),
        median_low(min(one.size) for one in headers) if headers else 0,
        max((one.white for one in headers), default=0),
    )
    return summary, np.array([one.size for one in headers], np.int32).reshape(-1, 2)


def decode(source: Source, sizing: Sizing) -> cache.Built:
    """Return a source's images and labels, decoded as they are written.

    Raises:
        ConfigError: an image cannot be decoded, or has no training image.
    """
    tables = [table for client in source.clients for table in client.tables]
    every = [*tables, *([source.test] if source.test else [])]
    names = united([table.class_names for table in every])
    damaged = Damaged()
    looked = [survey(client.tables, damaged) for client in source.clients]
    if len(damaged.reasons) == sum(len(table.labels) for table in tables):
        damaged.check()
    form = layout(
        *([one for one, _ in looked], names, sizing),
        limit=LIMIT if source.is_own else None,
    ).form
    if len(names) < 2:
        raise ConfigError(
            f"all images are of one class, {names[0]!r}: a classifier needs two or "
            "more; is this the folder that holds the class folders?"
        )
    owned = _owned(source)
    joined, labels = Joined(tables), _labels(tables, names)
    kept = {"train": np.arange(len(labels))}
    if source.test is None and source.take_test:
        is_test = test_mask(labels, num_classes=len(names))
        kept = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
        tested, test_labels = joined, labels
    else:
        others = [source.test] if source.test else []
        tested, test_labels = Joined(others), _labels(others, names)
        kept["test"] = np.arange(len(test_labels))
    account = source.account
    account.num_images, account.num_classes = len(labels), len(names)
    account.num_images += len(source.test.labels) if source.test else 0
    into = Into(form, account.done, damaged)
    counts = np.zeros((1 if form.mode == "L" else 3, 256), np.int64)
    streams: dict[str, Array | cache.Stream] = {
        "train-images": decoded(joined, kept["train"], into, counts),
        "train-labels": labels[kept["train"]],
        "test-images": decoded(tested, kept["test"], into),
        "test-labels": test_labels[kept["test"]],
    }
    if source.is_own:
        streams["train-sizes"] = np.concatenate([s for _, s in looked])[kept["train"]]
    streams |= owned

    def described() -> dict[str, Any]:  # once all of that is decoded
        damaged.check()
        mean, std = normalisation(counts)
        note_form(account, form)
        return {
            "class-names": names,
            "mean": mean,
            "std": std,
            "full-scale": 255.0,
            "owners": [c.name for c in source.clients if c.name is not None],
            "white-level": form.white,
            "account": account.line(),
            "warnings": account.warnings(),
        }

    return streams, described


def note_form(account: Account, form: Form) -> None:
    """Add to an account by which rules images were changed."""
    if pixels.DEEP in account.done:
        account.notes.append(f"{form.white:,} is white in 16-bit images")
    if any(what.startswith(pixels.RESIZED) for what in account.done):
        account.notes.append(f"resize = {form.resize}")


def _owned(source: Source) -> dict[str, Array]:
    """Return whose each training image is, and which its owner keeps to validate."""
    if not any(client.name is not None for client in source.clients):
        return {}
    sizes = [sum(len(t.labels) for t in client.tables) for client in source.clients]
    found = {"train-owners": np.repeat(np.arange(len(sizes)), sizes)}
    if any(client.validation for client in source.clients):
        found["own-validation"] = own_validation(source.clients)
    return found


def own_validation(clients: Sequence[Client]) -> Array:
    """Return which images their owners keep for validation, (N,) bool."""
    return np.concatenate(
        [
            np.full(len(table.labels), table is client.validation)
            for client in clients
            for table in client.tables
        ]
    )


@dataclass(frozen=True)
class Into:
    """What images are brought to, and what takes in how that went."""

    form: Form
    done: Counter[str]
    """Counts what was done to them."""
    damaged: Damaged

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 1 if self.form.mode == "L" else 3, self.form.size[1], self.form.size[0]


def decoded(
    images: Sequence[tuple[bytes, str]],
    chosen: Array,
    into: Into,
    counts: Array | None = None,
) -> cache.Stream:
    """Return some images, (N, C, H, W) uint8, that are decoded as they are asked for.

    Args:
        images: encoded, with where they came from.
        chosen: which of them.
        into: what they are brought to.
        counts: is added how often each level occurs, (C, 256).
    """

    def pieces() -> Iterator[Array]:
        with watched("decoding", len(chosen)) as advance:
            for found in in_lots(
                images,
                partial(_brought, into=into),
                chosen,
                num_bytes=int(np.prod(into.shape)),
            ):
                for _, words in found:
                    into.done.update(words)
                piece = np.stack([levels for levels, _ in found])
                if counts is not None:
                    counts[:] += level_counts(piece)
                advance(len(found))
                yield piece

    return cache.Stream((len(chosen), *into.shape), np.dtype(np.uint8), pieces)


def arrays_of(
    tables: Sequence[Table], to: Layout, account: Account | None = None
) -> tuple[Array, Array]:
    """Return the images (N, C, H, W) uint8 and the labels (N,) int64 of the tables.

    The account takes in what was done to them.

    Raises:
        ConfigError: an image cannot be decoded.
    """
    into = Into(to.form, account.done if account else Counter(), Damaged())
    stream, labels = laid_out(tables, to, into)
    images = np.empty(stream.shape, np.uint8)
    at = 0
    for piece in stream.pieces():
        images[at : at + len(piece)] = piece
        at += len(piece)
    into.damaged.check()
    return images, labels


def laid_out(
    tables: Sequence[Table], to: Layout, into: Into
) -> tuple[cache.Stream, Array]:
    """Return what `arrays_of` does, the images as a stream; damage is not checked."""
    every = Joined(tables)
    stream = decoded(every, np.arange(len(every)), into)
    return stream, _labels(tables, to.class_names)


def _looked_at(
    images: Sequence[tuple[bytes, str]], lot: Array, *, damaged: Damaged
) -> list[Header]:
    found = []
    for i in lot:
        encoded, place = images[i]
        try:
            found.append(pixels.header(encoded))
        except DamagedError as error:
            damaged.add(place, "is no image that can be read", error)
            found.append(Header((1, 1), "L", 0))
    return found


def _brought(
    images: Sequence[tuple[bytes, str]], lot: Array, *, into: Into
) -> list[tuple[Array, list[str]]]:
    found = []
    for i in lot:
        encoded, place = images[i]
        try:
            found.append(pixels.read(encoded, into.form))
        except DamagedError as error:
            into.damaged.add(place, "cannot be decoded", error)
            found.append((np.zeros(into.shape, np.uint8), []))
    return found


def _labels(tables: Sequence[Table], class_names: list[str]) -> Array:
    index = {name: i for i, name in enumerate(class_names)}
    return np.array(
        [index[label] for table in tables for label in table.labels], np.int64
    )


def resized(images: Array, form: Form) -> Array:
    """Return decoded images (N, C, H, W) uint8 in another size."""
    found = []
    for image in images:
        whole = Image.fromarray(
            image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        )
        found.append(pixels.levels(whole, form)[0])
    return np.stack(found)


def with_test(images: Array, labels: Array, *, num_classes: int) -> dict[str, Array]:
    """Set a fixed fifth of each class aside as the test split."""
    is_test = test_mask(labels, num_classes=num_classes)
    return {
        "train-images": images[~is_test],
        "train-labels": labels[~is_test],
        "test-images": images[is_test],
        "test-labels": labels[is_test],
    }


def test_mask(labels: Array, *, num_classes: int) -> Array:
    """Return which examples are the fixed fifth of each class, (N,) bool."""
    draws = keyed_generator(0, "test-split")
    chosen = [
        order[: int(len(order) / 5 + 0.5)]
        for order in (
            draws.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)
        )
    ]
    is_test = np.zeros(len(labels), bool)
    is_test[np.concatenate(chosen)] = True
    return is_test


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
