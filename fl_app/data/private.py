"""Data that stays on its node: read there, and agreed upon without being seen.

Nodes with data of their own tell the server, in two steps, what it must know to give
all of them the same model: first the names of their classes, how many images have which
size, their median side, and the pixel formats; then, laid out as agreed, how many
examples each class has and how often each level occurs in each channel. From these come
the model's input shape and a normalisation over all clients, the same as if the images
lay in one place.
"""

import hashlib
import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config import WHITE, ConfigError, RunConfig, project_path
from fl_app.data import cache, decoding, reading
from fl_app.data.account import Account
from fl_app.data.datasets import Dataset, recipe_augmentation
from fl_app.data.decoding import Array, Client
from fl_app.data.folders import Known
from fl_app.data.layouts import Layout, Survey, layout
from fl_app.data.lots import Damaged
from fl_app.data.partition import Partition
from fl_app.data.pixels import Form
from fl_app.data.sources import columns_of, folder_key, sizing_of
from fl_app.data.tables import Table, united
from fl_app.data.tree import Tree, scan

log = logging.getLogger("flwr.fl_app")

NAME = "private"
"""The value of the option `dataset` that stands for each node's own data."""
_TOLD_SIZES = 1000  # most common sizes that a node tells: the message stays small


@dataclass(frozen=True)
class Node:
    """A node's own data: where it lies, and the name of the client that it makes."""

    folder: Path
    client: str

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> "Node | None":
        """Return what a node's configuration names; None where it names nothing.

        Raises:
            ConfigError: there is no such folder.
        """
        path = node_config.get("data-path")
        if path is None:
            return None
        folder = Path(str(path)).expanduser()
        if not folder.is_absolute():
            raise ConfigError(f"data-path = {str(path)!r} of this node is not absolute")
        if not folder.is_dir():
            raise ConfigError(f"data-path = {str(path)!r}: there is no such folder")
        client = str(node_config.get("client-id", "") or folder.resolve().name)
        return cls(folder, client)

    def describe(self, config: RunConfig) -> str:
        """Return the node's part of the first step, as JSON; log what was read."""
        client, account = self._read(scan(self.folder), config)
        seen, _ = decoding.survey(client.tables)
        log.info("%s: %s", self.folder, account.line())
        for warning in account.warnings():
            log.warning("%s: %s", self.folder, warning)
        common = sorted(seen.sizes.items(), key=lambda item: (-item[1], item[0]))
        return json.dumps(
            {
                "client": self.client,
                "class-names": seen.class_names,
                "sizes": [[*size, number] for size, number in common[:_TOLD_SIZES]],
                "side": seen.side,
                "modes": sorted(seen.modes),
                "white": seen.white,
            }
        )

    def load(self, agreed: str, config: RunConfig) -> Dataset:
        """Return the node's data, laid out as agreed; decoded once, then cached.

        Raises:
            ConfigError: an image cannot be decoded.
        """
        described = json.loads(agreed)
        to = layout_of(described)
        tree = scan(self.folder)
        agreement = hashlib.sha256(json.dumps(_layout_json(to)).encode()).hexdigest()
        known = hashlib.sha256(json.dumps(sorted(_known(config))).encode()).hexdigest()
        key = folder_key("private", tree, columns_of(config), sizing_of(config))

        def build() -> cache.Built:
            client, account = self._read(tree, config)
            into = decoding.Into(to.form, account.done, Damaged())
            images, labels = decoding.laid_out(client.tables, to, into)
            arrays: dict[str, Array | cache.Stream]
            arrays = {"images": images, "labels": labels}
            if client.validation:
                arrays["own-validation"] = decoding.own_validation([client])

            def described() -> dict[str, Any]:
                into.damaged.check()
                decoding.note_form(account, to.form)
                log.info("%s: %s", self.folder, account.line())
                return {}

            return arrays, described

        arrays, _ = cache.open_or_build(f"{key}-{agreement[:8]}-{known[:4]}", build)
        images, labels = arrays["images"], arrays["labels"]
        own = arrays.get("own-validation")
        return _dataset(described, to, images, labels, test=None, own_validation=own)

    @staticmethod
    def _read(tree: Tree, config: RunConfig) -> tuple[Client, Account]:
        return reading.read_client(tree, columns_of(config), _known(config))


def _known(config: RunConfig) -> Known:
    """Return the classes that the options name: such a folder is no wrapper."""
    return frozenset(_named_classes(config))


def _named_classes(config: RunConfig) -> list[str]:
    names = unicodedata.normalize("NFC", config.class_names).split(",")
    return [name.strip() for name in names if name.strip()]


class _Whole(Sequence[Any]):
    """All examples, whichever client is asked for: the node is that client."""

    def __init__(self, number: int) -> None:
        self._all = np.arange(number)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, client: Any) -> Any:
        return self._all


def partition(dataset: Dataset, config: RunConfig) -> Partition:
    """Return the partition of a node's own data: one client, with whatever number."""
    labels = np.asarray(dataset.train_labels)
    return Partition(
        labels,
        len(dataset.class_names),
        _Whole(len(labels)),
        config.seed,
        config.validation_fraction,
        dataset.own_validation,
    )


class Agreement:
    """The server's part: takes in what nodes tell, and says what holds for all."""

    def __init__(self, config: RunConfig) -> None:
        """Read the server's own test folder, where it has one.

        Raises:
            ConfigError: there is no such folder, or it holds no data set.
        """
        self._config = config
        self._test: Table | None = None
        self._account: Account | None = None
        if config.test_path:
            folder = project_path(config.test_path, "test-path")
            if not folder.is_dir():
                raise ConfigError(
                    f"test-path = {config.test_path!r}: there is no such folder"
                )
            self._test, self._account = reading.read_test(
                scan(folder), columns_of(config), _known(config)
            )
        self._agreed: dict[str, Any] = {}

    def agree(self, told: Mapping[int, str]) -> tuple[str, dict[int, str]]:
        """Return what holds for all nodes, and why some cannot take part.

        Args:
            told: per node, what `Node.describe` returned.
        """
        refused: dict[int, str] = {}
        surveys: dict[str, Survey] = {}
        allowed = self._allowed_classes()
        for node in sorted(told):
            try:
                client, seen = _told(told[node])
                layout([seen], seen.class_names)  # its images can be used
                if client in surveys:
                    raise ValueError(f"another node is client {client!r} already")
                if allowed is not None and (odd := set(seen.class_names) - {*allowed}):
                    raise ValueError(
                        f"client {client!r} has classes that are not the federation's: "
                        f"{', '.join(sorted(odd))}; there are: {', '.join(allowed)}"
                    )
            except (ValueError, KeyError, TypeError) as error:
                refused[node] = str(error)
                continue
            surveys[client] = seen
        if not surveys:
            return "{}", refused
        in_order = [surveys[client] for client in sorted(surveys)]
        names = allowed or united([one.class_names for one in in_order])
        to = layout(in_order, names, sizing_of(self._config))
        self._agreed = {**_layout_json(to), "mean": [], "std": []}
        return json.dumps(self._agreed), refused

    def complete(self, levels: Sequence[Array]) -> str:
        """Return what was agreed with the normalisation over all clients.

        Args:
            levels: per client, (channels, 256) counts of levels.
        """
        mean, std = decoding.normalisation(np.sum(levels, axis=0))
        self._agreed |= {"mean": mean, "std": std}
        return json.dumps(self._agreed)

    def dataset(self) -> Dataset:
        """Return the server's data: its test images, laid out as agreed, or none."""
        to = layout_of(self._agreed)
        width, height = to.form.size
        channels = 1 if to.form.mode == "L" else 3
        nothing = np.empty((0, channels, height, width), np.uint8)
        no_labels = np.empty(0, np.int64)
        if self._test is None or self._account is None:
            return _dataset(self._agreed, to, nothing, no_labels, test=None)
        test = decoding.arrays_of([self._test], to, self._account)
        decoding.note_form(self._account, to.form)
        made = _dataset(self._agreed, to, nothing, no_labels, test=test)
        return replace(
            made,
            account=f"test-path: {self._account.line()}",
            warnings=self._account.warnings(),
        )

    def _allowed_classes(self) -> list[str] | None:
        """Return the federation's classes; None where nodes alone can say."""
        if self._config.class_names:
            return _named_classes(self._config)
        return self._test.class_names if self._test else None


def _told(text: str) -> tuple[str, Survey]:
    """Return a node's client and survey, from what it sent: not to be trusted."""
    described = json.loads(text)
    client, names = described["client"], described["class-names"]
    if not isinstance(client, str) or not isinstance(names, list) or not names:
        raise ValueError("it names no client, or no classes")
    if not 1 <= len(client) <= 100 or not client.isprintable():
        raise ValueError("its client-id is no name: up to 100 printable characters")
    if not all(isinstance(name, str) for name in names) or len(names) > 100_000:
        raise ValueError("its class names are no list of names")
    sizes = {
        (int(width), int(height)): int(number)
        for width, height, number in described["sizes"]
    }
    if not sizes or any(not 1 <= side <= 2**14 for size in sizes for side in size):
        raise ValueError("it has no image, or images of more than 16384 pixels a side")
    side = described.get("side", min(min(size) for size in sizes))
    white = described.get("white", 0)
    if not isinstance(side, int) or not 1 <= side <= 2**14:
        raise ValueError("the median side of its images is none")
    if not isinstance(white, int) or not 0 <= white <= WHITE:
        raise ValueError("the white level of its images is none")
    modes = frozenset(map(str, described["modes"]))
    return client, Survey(names, sizes, modes, side, white)


def _layout_json(to: Layout) -> dict[str, Any]:
    form = to.form
    return {
        "class-names": to.class_names,
        "size": list(form.size),
        "mode": form.mode,
        "resize": form.resize,
        "white": form.white,
    }


def layout_of(described: Mapping[str, Any]) -> Layout:
    """Return the layout in what was agreed."""
    width, height = described["size"]
    form = Form(
        (width, height), described["mode"], described["resize"], described["white"]
    )
    return Layout(list(described["class-names"]), form)


def _dataset(
    described: Mapping[str, Any],
    to: Layout,
    images: Array,
    labels: Array,
    *,
    test: tuple[Array, Array] | None,
    own_validation: Array | None = None,
) -> Dataset:
    test_images, test_labels = test or (images[:0], labels[:0])
    return Dataset(
        name=NAME,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=to.class_names,
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        full_scale=255.0,
        augmentation=recipe_augmentation(NAME),
        owners=[],
        own_validation=own_validation,
        resize=to.form.resize,
        white_level=to.form.white,
    )
