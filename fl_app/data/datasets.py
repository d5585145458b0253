"""Data sets by name: where they lie, how they are read, and a recipe to train them."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config import (
    PROJECT_VARIABLE,
    WHITE,
    ConfigError,
    Recipe,
    Resize,
    RunConfig,
    project_path,
)
from fl_app.data import cache, owners, reading, synthetic
from fl_app.data.partition import Partition
from fl_app.data.partition import build as build_partition
from fl_app.data.sources import (
    Source,
    about_file,
    columns_of,
    folder_in_project,
    folder_key,
    keyed,
    sizing_of,
)
from fl_app.data.tree import scan

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DatasetSpec:
    """A named data set: on the Hub, or made here from the options alone."""

    recipe: Recipe
    hub_id: str = ""
    make: Callable[[RunConfig], Source] | None = None
    augmentation: str | None = "rotate-shift"


@dataclass(frozen=True)
class Dataset:
    """A data set, memory-mapped: images (N, C, H, W) and labels (N,) int64.

    Images are uint8, or float32 where they are features made by a generator.
    """

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float
    """The value of `images` that stands for 1 in `mean` and `std`."""
    augmentation: str | None
    owners: list[str]
    """Names of the clients, where the data comes in one folder per client."""
    train_owners: Array | None = None
    own_validation: Array | None = None
    """Which training examples their owner keeps for validation, (N,) bool."""
    train_sizes: Array | None = None
    """Width and height that each training image had, (N, 2) int32."""
    resize: Resize = "crop"
    """How images of other sizes are brought to that of these."""
    white_level: int = WHITE
    """The level of 16-bit images that stands for white."""
    account: str = ""
    """What was read and what was passed over, in one line."""
    warnings: list[str] = field(default_factory=list)
    """What the owner of the data should look at."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    def partition(self, config: RunConfig, num_nodes: int) -> Partition:
        """Return who owns what; `num-clients` = 0 stands for one client per node.

        Raises:
            ConfigError: the options do not fit the data.
        """
        config = settled(config)
        owned = _is_owned(config)
        default = len(self.owners) if owned else num_nodes
        num_clients = config.num_clients or default
        if owned and not self.owners:
            raise ConfigError(
                f"partitioner = {config.partitioner!r} is not allowed: dataset = "
                f"{self.name!r} does not say who owns what"
            )
        if owned and num_clients != len(self.owners):
            raise ConfigError(
                f"num-clients = {num_clients} does not fit partitioner = "
                f"{config.partitioner!r}: there are {len(self.owners)} clients in the "
                "data (0 takes them all)"
            )
        return build_partition(
            config,
            np.asarray(self.train_labels),
            num_classes=len(self.class_names),
            num_clients=num_clients,
            owners=self.train_owners if owned else None,
            own_validation=self.own_validation if owned else None,
        )

    def client_names(self, config: RunConfig) -> list[str]:
        """Return what the clients are called; nothing where they are mere numbers."""
        numbers = [str(i) for i in range(len(self.owners))]
        return self.owners if _is_owned(config) and self.owners != numbers else []


def settled(config: RunConfig) -> RunConfig:
    """Return the options once the data is read: by then "auto" has one meaning."""
    if config.partitioner != "auto":
        return config
    return config.model_copy(update={"partitioner": "dirichlet"})


def _is_owned(config: RunConfig) -> bool:
    """Whether the data itself says who owns what."""
    return config.partitioner in ("folders", "natural")


def _synthetic(config: RunConfig) -> Source:
    """Draw the FedProx paper's data anew for each seed and setting."""
    drawn = (
        config.synthetic_alpha,
        config.synthetic_beta,
        config.num_clients or 30,
        config.seed,
    )
    key = "-".join(map(str, ("synthetic", *drawn)))
    return key, lambda: synthetic.generate(*drawn)


def _digits(config: RunConfig) -> Source:
    sizing = sizing_of(config)
    if sizing.image_size in ("auto", 0):
        return "digits", reading.read_digits
    key = f"digits-{sizing.image_size}-{sizing.resize}"
    return key, lambda: reading.read_digits(sizing)


def _private(config: RunConfig) -> Source:
    """Refuse: there is nothing to be read in one place."""
    raise ConfigError(
        "dataset = 'private' is the data of real nodes, each with its data-path (see "
        "docs/deployment.md, or `fl-app network --data DIR`); to simulate it, give "
        "the folder of the clients' folders as dataset, with partitioner = 'folders'"
    )


_OTHER = Recipe(
    model="lenet",
    num_server_rounds=20,
    local_epochs=8,
    batch_size=16,
    learning_rate=0.03,
    learning_rate_decay=0.97,
    max_gradient_norm=5.0,
    augment=True,
    partitioner="auto",
)

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        make=_digits,
        recipe=Recipe(
            model="cnn",
            num_server_rounds=10,
            local_epochs=3,
            batch_size=16,
            learning_rate=0.02,
            augment=False,
        ),
    ),
    "mnist": DatasetSpec(
        hub_id="ylecun/mnist",
        recipe=Recipe(
            model="cnn",
            num_server_rounds=10,
            local_epochs=2,
            batch_size=50,
            learning_rate=0.02,
            augment=True,
        ),
    ),
    "fashion-mnist": DatasetSpec(
        hub_id="zalando-datasets/fashion_mnist",
        recipe=Recipe(
            model="improved-cnn",
            num_server_rounds=20,
            local_epochs=2,
            batch_size=50,
            learning_rate=0.02,
            augment=False,
        ),
    ),
    "cifar10": DatasetSpec(
        hub_id="uoft-cs/cifar10",
        augmentation="flip-crop",
        recipe=Recipe(
            model="resnet",
            num_server_rounds=10,
            local_epochs=8,
            batch_size=64,
            learning_rate=0.03,
            learning_rate_decay=0.8,
            weight_decay=5e-4,
            max_gradient_norm=5.0,
            augment=True,
            num_clients=5,
        ),
    ),
    "private": DatasetSpec(
        make=_private,
        recipe=replace(_OTHER, partitioner="natural", num_clients=0),
    ),
    "synthetic": DatasetSpec(
        make=_synthetic,
        augmentation=None,
        recipe=Recipe(
            model="logistic",
            num_server_rounds=200,
            local_epochs=20,
            batch_size=10,
            learning_rate=0.01,
            momentum=0.0,
            augment=False,
            partitioner="natural",
            num_clients=30,
        ),
    ),
}
OTHER = DatasetSpec(recipe=_OTHER)
"""What a local folder or a Hub data set without an entry above is given."""


def recipe_for(name: str) -> Recipe:
    """Return the recipe that "auto" options take for this data set."""
    return DATASETS.get(name, OTHER).recipe


def recipe_augmentation(name: str) -> str | None:
    """Return how images of this data set are augmented; None where they cannot be."""
    return DATASETS.get(name, OTHER).augmentation


def load(config: RunConfig) -> Dataset:
    """Return the data set of a run, from the cache or its source.

    Raises:
        ConfigError: it is not there or holds nothing usable; the message names the
            option and what to do.
    """
    name = config.dataset
    spec = DATASETS.get(name, OTHER)
    if config.augment and spec.augmentation is None:
        raise ConfigError(f"augment = True is not allowed for dataset = {name!r}")
    if config.image_size not in ("auto", 0) and spec.augmentation is None:
        raise ConfigError(
            f"image-size = {config.image_size} is not allowed for dataset = {name!r}: "
            "it has no images"
        )
    key, read = _source(config, spec)
    arrays, described = cache.open_or_build(key, read)
    return Dataset(
        name=name,
        train_images=arrays["train-images"],
        train_labels=arrays["train-labels"],
        test_images=arrays["test-images"],
        test_labels=arrays["test-labels"],
        class_names=described["class-names"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        full_scale=described["full-scale"],
        augmentation=spec.augmentation,
        owners=described["owners"],
        train_owners=arrays.get("train-owners"),
        own_validation=arrays.get("own-validation"),
        train_sizes=arrays.get("train-sizes"),
        resize=config.resize,
        white_level=described.get("white-level", WHITE),
        account=described.get("account", ""),
        warnings=[*described.get("warnings", []), *_remarks(config)],
    )


def _source(config: RunConfig, spec: DatasetSpec) -> Source:
    """Return the source as it is now."""
    name = config.dataset
    folder = local_folder(config)
    columns, sizing = columns_of(config), sizing_of(config)
    is_own = spec is OTHER
    if config.partitioner == "folders":
        if folder is None:
            raise ConfigError(
                f"partitioner = 'folders' needs a local folder of client folders, and "
                f"dataset = {name!r} is none: give its path"
            )
        tree = scan(folder)
        return folder_key(
            "folders", tree, columns, sizing
        ), lambda: reading.read_owners(tree, columns, sizing)
    if spec.make is not None:
        return spec.make(config)
    if folder is not None:
        tree = scan(folder)
        if config.partitioner == "auto":
            owners.refuse_two_readings(tree.top, columns)
        kind = "own" if is_own else "folder"
        return folder_key(kind, tree, columns, sizing), lambda: reading.read_folder(
            tree, columns, sizing, is_own=is_own
        )
    hub_id = spec.hub_id or name
    if not _HUB_NAME.fullmatch(hub_id):
        known = ", ".join(sorted(DATASETS))
        raise ConfigError(
            f"dataset = {name!r} is unknown; there are: {known}; or give a folder's "
            "path, or an owner/name on the Hugging Face Hub"
        )
    key = keyed("hub", hub_id.replace("/", "--"), "", columns, sizing)
    return key, lambda: reading.read_hub(hub_id, name, columns, sizing, is_own=is_own)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(config: RunConfig) -> Path | None:
    """Return the folder the options point at; None where they mean another source.

    What exists as a folder is one, but for the names of `DATASETS`.

    Raises:
        ConfigError: they name a folder, and there is none.
    """
    name = config.dataset
    spec = DATASETS.get(name)
    if spec is not None and spec.make is not None:
        return None
    if name.startswith(("/", "~", ".")):
        folder = project_path(name, "dataset")
        if folder.is_file():
            raise ConfigError(f"dataset = {name!r}: {about_file(folder)}")
        if not folder.is_dir():
            raise ConfigError(f"dataset = {name!r}: there is no folder {folder}")
        return folder
    if config.data_dir:
        folder = project_path(config.data_dir, "data-dir") / name
        if not folder.is_dir():
            raise ConfigError(
                f"dataset = {name!r} is not in data-dir = {config.data_dir!r}: there "
                f"is no folder {folder}; put it there, or leave data-dir empty to read "
                "the Hub"
            )
        return folder
    return folder_in_project(name) if spec is None else None


def _remarks(config: RunConfig) -> list[str]:
    """Say which of two things a name was taken for."""
    name, folder = config.dataset, local_folder(config)
    if config.data_dir or name.startswith(("/", "~", ".")):
        return []
    if folder is not None and _HUB_NAME.fullmatch(name):
        return [
            f"dataset = {name!r} is taken for the folder {folder}, not for a data set "
            "of that name on the Hugging Face Hub"
        ]
    project = os.environ.get(PROJECT_VARIABLE)
    if name in DATASETS and project and (Path(project) / name).is_dir():
        return [
            f"dataset = {name!r} is the data set of that name; for the folder, write "
            f"./{name}"
        ]
    return []
