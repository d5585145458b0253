"""Folders of images that several tests take for clients' data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("cat", "dog", "owl")


def write_images(
    folder: Path,
    counts: dict[str, int],
    *,
    size: tuple[int, int] = (10, 8),
    colour: bool = False,
    seed: int = 0,
) -> None:
    draws = np.random.default_rng(seed)
    for name, number in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            shape = (size[1], size[0], 3) if colour else (size[1], size[0])
            level = 40 + 80 * (CLASSES.index(name) if name in CLASSES else 1)
            pixels = draws.integers(level - 40, level + 40, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")


@pytest.fixture(scope="session")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clients (sizes, classes and pixel formats differ) and a test folder."""
    root = tmp_path_factory.mktemp("clinics")
    write_images(root / "north", {"cat": 12, "dog": 9, "owl": 7}, seed=1)
    write_images(root / "south", {"cat": 20, "owl": 4}, seed=2, colour=True)
    write_images(root / "east", {"dog": 8}, seed=3, size=(16, 16))
    write_images(root / "test", {"cat": 6, "dog": 6, "owl": 6}, seed=4)
    (root / "north" / "cat" / "notes.txt").write_text("not an image")
    (root / "north" / "readme.md").write_text("nor this")
    return root


def write_digits(root: Path, owners: Sequence[str]) -> None:
    """Deal scikit-learn's digits to a folder for each owner, as images."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / owners[i % len(owners)] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * 15.9375).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
