"""Reads images and labels from wherever they lie into uint8 arrays.

Sources are read by `datasets` (through `flwr_datasets` for the Hub): Parquet files with
an image and a label column, image files in class folders, or an owner/name on the Hub.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config import ConfigError
from fl_app.data.decoding import Array, Splits, Table, decode, describe, with_test

TEST_FOLDER = "test"
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def read_digits() -> tuple[dict[str, Array], dict[str, Any]]:
    """Return scikit-learn's bundled 8x8 digits; grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    arrays = with_test(images, labels, num_classes=10)
    return arrays, describe(arrays, [str(i) for i in range(10)], [])


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
        reason = _first_line(error)
        raise ConfigError(
            f"dataset = {option!r} could not be had from the Hugging Face Hub "
            f"({hub_id}: {reason}): check the name and the network, or point data-dir "
            "at a folder that holds a copy"
        ) from error
    return decode(Splits([train], test))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _names(hub: Any) -> set[str]:
    return set(hub._dataset)


def read_folder(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a local folder: Parquet files, or images in class folders."""
    splits = _load_folder(folder)
    return decode(Splits([splits["train"]], splits.get("test")))


def read_table(folder: Path) -> Table:
    """Return a folder's training images, still encoded."""
    return _load_folder(folder)["train"]


def owner_folders(folder: Path) -> list[Path]:
    """Return the folders of a folder's clients, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name != TEST_FOLDER and not path.name.startswith(".")
    )


def read_owners(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a folder of folders, one per client; `test/` in it is the server's."""
    tables = [
        replace(read_table(owner), owner=owner.name) for owner in owner_folders(folder)
    ]
    if not tables:
        raise ConfigError(
            f"partitioner = 'folders' finds no client folder in {folder}: each "
            "sub-folder is one client, with class folders or Parquet files in it"
        )
    test = None
    if (folder / TEST_FOLDER).is_dir():
        test = read_table(folder / TEST_FOLDER)
    return decode(Splits(tables, test, take_test=False))


def _load_folder(folder: Path) -> dict[str, Table]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="fl-app-") as scratch:
        loader = _loader(folder)
        try:
            loaded = datasets.load_dataset(**loader, cache_dir=scratch)
        except Exception as error:
            reason = _first_line(error)
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
    if any(p.suffix.lower() in _PICTURES for p in folder.iterdir()):
        raise ConfigError(
            f"{folder} holds images beside class folders: put each into a folder that "
            "is named for its class"
        )
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
    if any(value is None or value == -1 for value in values):  # -1: the Hub's "none"
        raise ConfigError(f"{source} has rows without a label in {labels[0]!r}")
    if isinstance(features[labels[0]], datasets.ClassLabel):
        names = list(features[labels[0]].names)
        named = [names[value] for value in values]
    else:
        names = [str(value) for value in sorted(set(values))]
        named = [str(value) for value in values]
    encoded, places = [], []
    for row, cell in enumerate(raw[images[0]]):
        inside = cell["bytes"] is not None
        places.append(f"row {row} of {source}" if inside else cell["path"])
        encoded.append(cell["bytes"] if inside else Path(cell["path"]).read_bytes())
    return Table(encoded, places, named, names)
