"""Folders as people have them: what is read of each, and what is refused."""

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_app.config import PROJECT_VARIABLE
from fl_app.data import datasets
from tests.conftest import make_config
from tests.own_folders import (
    Counts,
    encoded,
    images_read,
    leave_macs_files,
    look,
    passed_over,
    photo,
    plant,
    put,
    refusal,
    unreadable_name,
    write_parquet,
)

HEIC = b"\0\0\0\x18ftypheic" + bytes(40)
Draw = Callable[[Path], Any]


# --- class folders alone: a fixed fifth of each class, half up, becomes the test split


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    seen = look(plant(tmp_path, {"bus": 12, "car": 12, "train": 12}))
    assert seen.data.class_names == ["bus", "car", "train"]
    assert seen.train == dict.fromkeys(("bus", "car", "train"), 10)
    assert seen.test == dict.fromkeys(("bus", "car", "train"), 2)


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "ship"),
        ("control", "test"),
        ("cable", "dev board"),
        ("dev", "prod"),
        ("Testing", "production"),
        ("eval", "other"),
        ("valid", "broken"),
        ("test strip", "train ticket"),
    ],
)
def test_a_word_for_a_split_may_be_a_class(tmp_path: Path, names: Any) -> None:
    seen = look(plant(tmp_path, dict.fromkeys(names, 10)))
    assert seen.train == dict.fromkeys(names, 8)
    assert seen.test == dict.fromkeys(names, 2)


@pytest.mark.parametrize(
    "renamed",
    [
        {"ill": "test_{:03d}.png"},
        {"ill": "{:03d}-eval.png"},
        {"ill": "train-{:03d}.png"},
        {"ill": "val_{:03d}.png", "healthy": "val_{:03d}.png"},
        {"ill": "test {:03d}.png", "healthy": "train {:03d}.png"},
        {"ill": "test{:03d}.png", "healthy": "0{:03d}.png"},
    ],
)
def test_names_of_files_decide_nothing(tmp_path: Path, renamed: Any) -> None:
    for name in ("ill", "healthy"):
        plant(tmp_path, {name: 7})
        plant(tmp_path, {name: 3}, name=renamed.get(name, "more {:03d}.png"))
    seen = look(tmp_path)
    assert seen.train == {"healthy": 8, "ill": 8}
    assert seen.test == {"healthy": 2, "ill": 2}


@pytest.mark.parametrize(
    "parent",
    ["test/scans", "train/scans", "clinics/dev", "val", "test", "a b/Test"],
)
def test_names_above_the_folder_decide_nothing(tmp_path: Path, parent: str) -> None:
    seen = look(plant(tmp_path / parent, {"ill": 10, "healthy": 10}))
    assert seen.train == {"healthy": 8, "ill": 8}
    assert seen.test == {"healthy": 2, "ill": 2}


def test_the_fifth_is_rounded_half_up_in_each_class(tmp_path: Path) -> None:
    numbers = {f"{n:02d}": n for n in range(1, 14)}
    seen = look(plant(tmp_path, numbers))
    fifth = [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    assert list(seen.test.values()) == fifth
    assert seen.all == numbers


def test_the_same_folder_is_read_the_same_way_elsewhere(tmp_path: Path) -> None:
    for place in ("one", "another"):
        for i in range(20):
            put(tmp_path / place / "ab"[i % 2] / f"{i}.png", photo(10 * i))
    one, another = (look(tmp_path / place).data for place in ("one", "another"))
    np.testing.assert_array_equal(one.train_images, another.train_images)
    np.testing.assert_array_equal(one.test_labels, another.test_labels)


def test_what_is_read_is_what_lies_there(tmp_path: Path) -> None:
    """Each image has the label of the folder that it lies in."""
    levels = {}
    for k, name in enumerate(("cat", "dog", "owl")):
        for i in range(10):
            level = 80 * k + 5 * i
            levels[level] = name
            put(tmp_path / name / f"{i}.png", encoded(np.full((4, 6), level, np.uint8)))
    data = look(tmp_path).data
    found = {}
    for split in ("train", "test"):
        images, labels = (
            getattr(data, f"{split}_images"),
            getattr(data, f"{split}_labels"),
        )
        for image, label in zip(images, labels, strict=True):
            assert image.min() == image.max()
            found[int(image.max())] = data.class_names[label]
    assert found == levels


# --- splits


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        ({"train": 20, "val": 10, "test": 6}, 30, 6),
        ({"Training": 20, "Testing": 6}, 20, 6),
        ({"TRAIN": 5, "Test": 2}, 5, 2),
        ({"train": 5, "validation": 3, "test": 2}, 8, 2),
        ({"training": 5, "VALID": 3, "testing": 2}, 8, 2),
        ({"train": 5, "dev": 3, "test": 2}, 8, 2),
        ({"train": 5, "eval": 3, "test": 2}, 8, 2),
        ({"train": 8, "valid": 2}, 8, 2),  # of ten, a fifth is the test split
    ],
)
def test_splits_by_the_names_of_folders(
    tmp_path: Path, splits: Counts, train: int, test: int
) -> None:
    for split, number in splits.items():
        plant(tmp_path / split, {"cat": number, "dog": number})
    seen = look(tmp_path)
    assert seen.train == {"cat": train, "dog": train}
    assert seen.test == {"cat": test, "dog": test}
    total = 2 * sum(splits.values())
    assert images_read(seen.data.account) == total
    assert f"from {len(splits)} splits" in seen.data.account


def test_that_validation_images_join_training_is_said(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        plant(tmp_path / split, {"cat": 4, "dog": 4})
    assert re.search(r"\bval", look(tmp_path).data.account)


def test_a_split_of_its_own_is_kept_image_by_image(tmp_path: Path) -> None:
    for k, split in enumerate(("train", "val", "test")):
        for i in range(6):
            picture = np.full((4, 6), 80 * k + i, np.uint8)
            put(tmp_path / split / "ab"[i % 2] / f"{i}.png", encoded(picture))
    data = look(tmp_path).data
    levels = [sorted(np.unique(x).tolist()) for x in (data.train_images,
                                                      data.test_images)]  # fmt: skip
    assert levels == [[*range(6), *range(80, 86)], [*range(160, 166)]]


def test_a_class_may_be_missing_in_a_split(tmp_path: Path) -> None:
    plant(tmp_path / "train", {"cat": 5, "dog": 5, "owl": 5})
    plant(tmp_path / "test", {"cat": 2, "dog": 2})
    seen = look(tmp_path)
    assert seen.test == {"cat": 2, "dog": 2, "owl": 0}
    assert any("owl" in line for line in seen.data.warnings)


def test_a_class_in_the_test_split_alone_is_warned_of(tmp_path: Path) -> None:
    plant(tmp_path / "train", {"cat": 5, "dog": 5})
    plant(tmp_path / "test", {"cat": 2, "owl": 2})
    seen = look(tmp_path)
    assert seen.train == {"cat": 5, "dog": 5, "owl": 0}
    assert seen.test == {"cat": 2, "dog": 0, "owl": 2}
    assert any("owl" in line for line in seen.data.warnings)


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 5, "val": 5, "test": 5})
    assert re.search("class", refusal(tmp_path))


def test_classes_above_splits_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        plant(tmp_path / name, {"train": 5, "test": 2})
    said = refusal(tmp_path)
    assert "cat" in said or "train" in said


def test_a_split_among_other_folders_of_folders_is_refused(tmp_path: Path) -> None:
    """`train` stands over classes, and `more` beside it too: neither can be told."""
    for name in ("train", "more"):
        plant(tmp_path / name, {"cat": 5, "dog": 5})
    assert "train" in refusal(tmp_path)


# --- deeper folders belong to the class


def test_patients_in_classes(tmp_path: Path) -> None:
    patients = ("p01", "p02", "p03")
    plant(tmp_path, {f"{c}/{p}": 6 for c in ("healthy", "ill") for p in patients})
    for partitioner in ("iid", "dirichlet"):
        seen = look(tmp_path, partitioner, dirichlet_alpha=100.0)
        assert seen.train == {"healthy": 14, "ill": 14}
        assert seen.test == {"healthy": 4, "ill": 4}


def test_names_that_recur_below_are_asked_about(tmp_path: Path) -> None:
    """Are `healthy` and `ill` clients with classes `left` and `right`, or classes?"""
    counts = {"ill/left": 5, "ill/right": 5, "healthy/left": 4, "healthy/right": 4}
    plant(tmp_path, counts)
    said = refusal(tmp_path, "auto", num_clients=2)
    assert "folders" in said
    assert "dirichlet" in said
    for word in ("ill", "healthy", "left", "right"):
        assert word in said
    seen = look(tmp_path)
    assert seen.all == {"healthy": 8, "ill": 10}
    owned = look(tmp_path, "folders", validation_fraction=0.0).owned
    assert {owner: train for owner, (train, _) in owned.items()} == {
        "healthy": {"left": 4, "right": 4},
        "ill": {"left": 5, "right": 5},
    }


def test_splits_are_no_second_reading(tmp_path: Path) -> None:
    """Classes recur under splits, which is as it should be."""
    for split, number in (("train", 10), ("val", 4), ("test", 3)):
        plant(tmp_path / split, {"cat": number, "dog/old": number})
    seen = look(tmp_path, "auto", num_clients=1)
    assert seen.train == {"cat": 14, "dog": 14}
    assert seen.test == {"cat": 3, "dog": 3}


def test_patients_that_recur_in_splits_are_asked_about(tmp_path: Path) -> None:
    for split in ("train", "test"):
        plant(tmp_path / split, {"ill/p1": 5, "healthy/p1": 5})
    assert "folders" in refusal(tmp_path, "auto", num_clients=1)
    assert look(tmp_path).train == {"healthy": 5, "ill": 5}


def test_names_that_do_not_recur_are_classes(tmp_path: Path) -> None:
    counts = {f"{c}/{c[0]}{k}": 5 for c in ("ill", "healthy") for k in range(3)}
    plant(tmp_path, counts)
    seen = look(tmp_path, "auto", num_clients=2, dirichlet_alpha=100.0)
    assert seen.train == {"healthy": 12, "ill": 12}
    assert seen.test == {"healthy": 3, "ill": 3}


def test_mixed_depth(tmp_path: Path) -> None:
    plant(tmp_path, {"ill": 5, "healthy/a/b": 3, "healthy/c": 2, "ill/old": 5})
    assert look(tmp_path, "auto", num_clients=1).all == {"healthy": 5, "ill": 10}


def test_the_same_file_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    plant(tmp_path, {"cat/a": 4, "cat/b": 4, "dog/c": 4})
    assert look(tmp_path).all == {"cat": 8, "dog": 4}


# --- one folder around all


@pytest.mark.parametrize("inner", ["photos", "my set (1)", "data.v2", "Fotos für Köln"])
def test_a_folder_around_class_folders(tmp_path: Path, inner: str) -> None:
    plant(tmp_path / inner, {"cat": 10, "dog": 10})
    (tmp_path / "readme.txt").write_text("about it")
    assert look(tmp_path).train == {"cat": 8, "dog": 8}


def test_a_folder_around_splits(tmp_path: Path) -> None:
    for split, number in (("train", 6), ("test", 3)):
        plant(tmp_path / "inner" / split, {"cat": number, "dog": number})
    seen = look(tmp_path)
    assert seen.train == {"cat": 6, "dog": 6}
    assert seen.test == {"cat": 3, "dog": 3}


def test_a_folder_around_tables(tmp_path: Path) -> None:
    images = [photo(50 * (i % 2)) for i in range(10)]
    columns = {"image": images, "label": [i % 2 for i in range(10)]}
    write_parquet(tmp_path / "inner" / "train.parquet", columns)
    assert look(tmp_path).train == {"0": 4, "1": 4}


def test_folders_around_folders(tmp_path: Path) -> None:
    plant(tmp_path / "archive" / "archive" / "photos", {"cat": 10, "dog": 10})
    put(tmp_path / "archive" / "readme.md", "about it")
    assert look(tmp_path).train == {"cat": 8, "dog": 8}


def test_a_folder_around_the_classes_of_each_split(tmp_path: Path) -> None:
    for split, number in (("train", 6), ("test", 3)):
        plant(tmp_path / split / "images", {"cat": number, "dog": number})
    seen = look(tmp_path)
    assert seen.train == {"cat": 6, "dog": 6}
    assert seen.test == {"cat": 3, "dog": 3}


def test_folders_of_other_files_are_not_around_anything(tmp_path: Path) -> None:
    """As tools for objects in images lay it out: `labels` beside `images`."""
    for split, number in (("train", 6), ("val", 2)):
        plant(tmp_path / "images" / split, {"cat": number, "dog": number})
        put(tmp_path / "labels" / split / "000.txt", "0 0.5 0.5 1 1")
    assert look(tmp_path).all == {"cat": 8, "dog": 8}


# --- what is not told by folders


@pytest.mark.parametrize("name", ["test", "test1", "unlabelled"])
def test_images_to_be_classified_are_no_class(tmp_path: Path, name: str) -> None:
    """A contest's test images lie in no class folder."""
    plant(tmp_path, {"train/cat": 5, "train/dog": 5, name: 5})
    assert name in refusal(tmp_path)


def test_names_that_cannot_be_printed_are_said(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    put(tmp_path / "cat" / unreadable_name("Läufer.png"), photo())
    assert look(tmp_path).all == {"cat": 6, "dog": 5}
    put(tmp_path / "dog" / unreadable_name("Größe.png"), "none")
    said = refusal(tmp_path)
    assert said.encode()
    assert "Größe.png" in said


def test_a_long_name(tmp_path: Path) -> None:
    """A file in the cache is called after it."""
    plant(tmp_path / ("x" * 250), {"cat": 5, "y" * 250: 5})
    assert look(tmp_path / ("x" * 250)).train == {"cat": 4, "y" * 250: 4}


def test_loose_images_in_a_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        plant(tmp_path / split, {"cat": 5, "dog": 5})
    put(tmp_path / "test" / "loose.png", photo())
    assert "named for its class" in refusal(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 10})
    assert "cat" in refusal(tmp_path)


@pytest.mark.parametrize("with_folders", [True, False])
def test_loose_images_are_refused(tmp_path: Path, with_folders: bool) -> None:
    if with_folders:
        plant(tmp_path, {"cat": 5, "dog": 5})
    put(tmp_path / "loose.png", photo())
    assert "named for its class" in refusal(tmp_path)


def test_a_zip_is_not_looked_into(tmp_path: Path) -> None:
    plant(tmp_path / "x", {"cat": 6, "dog": 6})
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    assert ".zip" in refusal(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "owl").mkdir()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    put(tmp_path / "notes" / "a.txt", "a")
    put(tmp_path / "notes" / "b.txt", "b")
    seen = look(tmp_path)
    assert seen.data.class_names == ["cat", "dog"]
    assert passed_over(seen.data.account) == 2


# --- leftovers of systems, and other files


def test_leftovers_of_a_mac(tmp_path: Path) -> None:
    for owner in ("north", "south"):
        plant(tmp_path / owner, {"healthy": 8, "ill": 8})
        for name in ("healthy", "ill"):
            names = [f"{i:03d}.png" for i in range(8)]
            leave_macs_files(tmp_path, f"{owner}/{name}", names)
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    eight = {"healthy": 8, "ill": 8}
    assert {k: train for k, (train, _) in seen.owned.items()} == {
        "north": eight,
        "south": eight,
    }
    assert passed_over(seen.data.account) == 0
    assert not seen.data.warnings


@pytest.mark.parametrize(
    "leftover",
    [
        "Thumbs.db",
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "cat/.DS_Store",
        "cat/._1.png",
        ".git/objects/1.png",
        ".thumbnails/large/1.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/cat/1.png",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
        "@eaDir/1.png",
        "lost+found/1.png",
        "System Volume Information/1.png",
        "$RECYCLE.BIN/S-1-5-21/$R1.png",
        "cat/__MACOSX/._1.png",
    ],
)
def test_leftovers_are_no_part_of_the_set(tmp_path: Path, leftover: str) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    put(tmp_path / leftover, photo(1))
    seen = look(tmp_path)
    assert seen.train == {"cat": 4, "dog": 4}
    assert images_read(seen.data.account) == 10
    assert passed_over(seen.data.account) == 0
    assert not seen.data.warnings
    assert "leftover" in seen.data.account


def test_a_leftover_folder_is_not_the_folder_around_all(tmp_path: Path) -> None:
    plant(tmp_path / "photos", {"cat": 5, "dog": 5})
    plant(tmp_path / "__MACOSX", {"photos/cat": 5, "photos/dog": 5})
    assert look(tmp_path).train == {"cat": 4, "dog": 4}


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    put(tmp_path / "cat" / "clip.mpg", b"\0\0\1\xba" + bytes(40))
    put(tmp_path / "cat" / "scan.dcm", bytes(128) + b"DICM")
    put(tmp_path / "cat" / "weights.h5", b"\x89HDF\r\n\x1a\n")
    put(tmp_path / "dog" / "figure.eps", "%!PS-Adobe-3.0\n")
    put(tmp_path / "dog" / "ANOTHER.EPS", "%!PS-Adobe-3.0\n")
    seen = look(tmp_path)
    assert seen.all == {"cat": 8, "dog": 8}
    assert passed_over(seen.data.account) == 5
    for said in ("1 .mpg", "1 .dcm", "1 .h5", "2 .eps"):
        assert said in seen.data.account
    assert any("5" in line for line in seen.data.warnings)  # of 21: a good fifth


def test_few_other_files_are_no_warning(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 20, "dog": 20})
    put(tmp_path / "LICENSE.txt", "free")
    put(tmp_path / "cat" / "notes.txt", "none")
    seen = look(tmp_path)
    assert passed_over(seen.data.account) == 2
    assert "2 .txt" in seen.data.account
    assert not seen.data.warnings


def test_phones(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 6, "dog": 6}, name="IMG_{:03d}.JPG")
    for name in ("cat", "dog"):
        for k in range(6):
            put(tmp_path / name / f"IMG_{100 + k}.HEIC", HEIC)
    seen = look(tmp_path)
    assert seen.all == {"cat": 6, "dog": 6}
    assert "12 .heic" in seen.data.account
    assert any(".heic" in line for line in seen.data.warnings)


def test_a_class_beside_one_of_unread_pictures_is_not_looked_through(
    tmp_path: Path,
) -> None:
    plant(tmp_path, {"ill/p01": 5, "ill/p02": 5})
    put(tmp_path / "healthy" / "IMG_1.HEIC", HEIC)
    assert "healthy" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["val", "Testing"])
def test_a_split_alone_is_read_as_the_set_and_said(tmp_path: Path, split: str) -> None:
    plant(tmp_path, {f"{split}/cat": 5, f"{split}/dog": 5})
    seen = look(tmp_path)
    assert seen.all == {"cat": 5, "dog": 5}
    assert any(split in line for line in seen.data.warnings)


@pytest.mark.parametrize("where", ["both", "one"])
@pytest.mark.parametrize("suffix", [".HEIC", ".dcm"])
def test_a_class_of_unread_pictures_is_refused(
    tmp_path: Path, where: str, suffix: str
) -> None:
    if where == "one":
        plant(tmp_path, {"cat": 5, "dog": 5})
    else:
        put(tmp_path / "cat" / f"IMG_1{suffix}", HEIC)
    for k in range(5):
        put(tmp_path / "owl" / f"IMG_{k}{suffix}", HEIC)
    said = refusal(tmp_path)
    assert suffix.lower() in said
    assert "owl" in said or where == "both"


@pytest.mark.parametrize(
    "suffix",
    ["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "dib", "gif", "tif", "tiff", "webp",
     "ppm", "pgm", "pbm", "pnm"],
)  # fmt: skip
def test_suffixes_that_are_read(tmp_path: Path, suffix: str) -> None:
    plant(tmp_path, {"cat": 2, "dog": 2}, name="{}.png")
    plant(tmp_path, {"cat": 2}, name="img_{}." + suffix)
    plant(tmp_path, {"dog": 2}, name="img_{}." + suffix.upper())
    plant(tmp_path, {"dog": 1}, name="old_{}." + suffix.title())
    seen = look(tmp_path)
    assert seen.all == {"cat": 4, "dog": 5}
    assert passed_over(seen.data.account) == 0


def test_names_as_cameras_write_them(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 6, "dog": 6}, name="IMG_{:03d}.JPG")
    plant(tmp_path, {"cat": 4, "dog": 4}, name="img_{:03d}.Png")
    assert look(tmp_path).train == {"cat": 8, "dog": 8}


# --- links


def test_links_to_files(tmp_path: Path) -> None:
    plant(tmp_path, {"store": 24})
    for i in range(24):
        target = tmp_path / "store" / f"{i:03d}.png"
        link = tmp_path / "set" / ("keep", "reject")[i % 2] / f"{i}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target if i < 12 else os.path.relpath(target, link.parent))
    assert look(tmp_path / "set").train == {"keep": 10, "reject": 10}


def test_links_to_folders(tmp_path: Path) -> None:
    plant(tmp_path / "disk2", {"cat": 12, "x/dog": 12, "more": 3})
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "2025").symlink_to(tmp_path / "disk2" / "cat")
    (tmp_path / "set" / "cat" / "2026").symlink_to(tmp_path / "disk2" / "more")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "disk2" / "x")
    assert look(tmp_path / "set").all == {"cat": 15, "dog": 12}


def test_the_set_itself_may_be_a_link(tmp_path: Path) -> None:
    plant(tmp_path / "disk2", {"cat": 5, "dog": 5})
    (tmp_path / "set").symlink_to(tmp_path / "disk2")
    assert look(tmp_path / "set").train == {"cat": 4, "dog": 4}


def test_a_folder_is_read_once(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog/zoo": 5, "dog": 2})
    (tmp_path / "dog" / "a").symlink_to(tmp_path / "dog" / "zoo")
    (tmp_path / "dog" / "b").symlink_to(tmp_path / "cat")
    seen = look(tmp_path)
    assert seen.all == {"cat": 5, "dog": 7}
    assert images_read(seen.data.account) == 12


def test_a_loop_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    assert "again" in refusal(tmp_path)


def test_links_into_nowhere_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "no" / "gone.png")
    (tmp_path / "dog" / "gone").symlink_to("/no/such/folder")
    seen = look(tmp_path)
    assert seen.train == {"cat": 4, "dog": 4}
    assert passed_over(seen.data.account) == 2
    assert "nowhere" in seen.data.account
    assert seen.data.warnings  # 2 of 12


def test_links_to_each_other(tmp_path: Path) -> None:
    plant(tmp_path, {"cat/a": 5, "dog/b": 5})
    (tmp_path / "cat" / "a" / "link").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "b" / "link").symlink_to(tmp_path / "cat")
    assert look(tmp_path).all == {"cat": 5, "dog": 5}


def test_a_link_to_itself_is_one_into_nowhere(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 20, "dog": 20})
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
    seen = look(tmp_path)
    assert seen.train == {"cat": 16, "dog": 16}
    assert passed_over(seen.data.account) == 1


def test_a_pipe_is_passed_over(tmp_path: Path) -> None:
    """To open one would wait for ever."""
    plant(tmp_path, {"cat": 20, "dog": 20})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    seen = look(tmp_path)
    assert seen.train == {"cat": 16, "dog": 16}
    assert passed_over(seen.data.account) == 1


def test_a_folder_may_be_called_as_an_image(tmp_path: Path) -> None:
    plant(tmp_path, {"cat.png/a.jpg": 5, "dog.JPG": 5})
    assert look(tmp_path).all == {"cat.png": 5, "dog.JPG": 5}


def test_many_levels(tmp_path: Path) -> None:
    deep = "/".join(f"level {k}" for k in range(60))
    plant(tmp_path, {f"cat/{deep}": 5, "dog": 5})
    assert look(tmp_path).all == {"cat": 5, "dog": 5}


# --- metadata.csv beside folders


@pytest.mark.parametrize("rows", [2, 16])
def test_a_table_without_labels_does_not_disturb(tmp_path: Path, rows: int) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    paths = [f"{c}/{k:03d}.png" for c in ("cat", "dog") for k in range(8)]
    lines = [f"{path},{30 + k}" for k, path in enumerate(paths[:rows])]
    put(tmp_path / "metadata.csv", "\n".join(["file_name,age", *lines, ""]))
    seen = look(tmp_path)
    assert seen.train == {"cat": 6, "dog": 6}
    assert seen.test == {"cat": 2, "dog": 2}
    assert "1 .csv" in seen.data.account or "metadata.csv" in seen.data.account


def test_an_index_beside_class_folders_does_not_disturb(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    columns = {"file": [str(k) for k in range(8)], "age": list(range(8))}
    write_parquet(tmp_path / "index.parquet", columns)
    seen = look(tmp_path)
    assert seen.train == {"cat": 6, "dog": 6}
    assert ".parquet" in seen.data.account


# --- names


def test_names_in_another_encoding(tmp_path: Path) -> None:
    plant(tmp_path, {unreadable_name("Läsion"): 10, "gesund": 10})
    seen = look(tmp_path)
    assert seen.data.class_names == ["Läsion", "gesund"]
    assert seen.train == {"Läsion": 8, "gesund": 8}


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (("Läsion", "La\u0308sion"), "Läsion"),
        ((unreadable_name("Läsion"), "La\u0308sion"), "Läsion"),
        (("e\u0301te\u0301", "été"), "été"),
        (("\u212b", "A\u030a"), "\u00c5"),
    ],
)
def test_spellings_of_a_name_are_one_class(
    tmp_path: Path, spellings: tuple[str, str], name: str
) -> None:
    for split, spelling in zip(("train", "test"), spellings, strict=True):
        plant(tmp_path / split, {spelling: 5, "zebra": 5})
    seen = look(tmp_path)
    assert sorted(seen.data.class_names) == sorted((name, "zebra"))
    assert seen.train == seen.test == {name: 5, "zebra": 5}
    assert not seen.data.warnings


def test_two_spellings_beside_each_other_are_one_class(tmp_path: Path) -> None:
    plant(tmp_path, {"Läsion": 5, "gesund": 5})
    plant(tmp_path, {"La\u0308sion": 5})
    assert look(tmp_path).all == {"Läsion": 10, "gesund": 5}


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1", "0"], ["0", "1", "9", "10"]),
        (["010", "9", "1"], ["1", "9", "010"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["b", "B", "a", "ä", "Z"], ["B", "Z", "a", "b", "ä"]),
        (["健康", "γ", "krank (Stufe 1.5)"], ["krank (Stufe 1.5)", "γ", "健康"]),
    ],
)
def test_the_order_of_classes(
    tmp_path: Path, names: list[str], order: list[str]
) -> None:
    assert look(plant(tmp_path, dict.fromkeys(names, 3))).data.class_names == order


# --- paths


def test_a_path_is_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any name that is a folder is that folder."""
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
    plant(tmp_path / "data" / "scans", {"cat": 5, "dog": 5})
    plant(tmp_path / "scans", {"cat": 10, "dog": 10})
    assert look(Path("data/scans")).train == {"cat": 4, "dog": 4}
    assert look(Path("scans")).train == {"cat": 8, "dog": 8}


def test_a_folder_that_may_be_on_the_hub_too_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
    plant(tmp_path / "clinic" / "scans", {"cat": 5, "dog": 5})
    data = look(Path("clinic/scans")).data
    assert any("Hub" in line for line in (data.account, *data.warnings))


def test_another_folder_at_the_same_path_is_read_anew(tmp_path: Path) -> None:
    plant(tmp_path / "scans", {"cat": 10, "dog": 10})
    assert look(tmp_path / "scans").all == {"cat": 10, "dog": 10}
    shutil.rmtree(tmp_path / "scans")
    plant(tmp_path / "scans", {"cat": 8, "dog": 8})
    assert look(tmp_path / "scans").all == {"cat": 8, "dog": 8}


def test_a_renamed_class_is_read_anew(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    look(tmp_path)
    (tmp_path / "dog").rename(tmp_path / "cow")
    assert look(tmp_path).all == {"cat": 5, "cow": 5}


def test_a_changed_target_of_a_link_is_read_anew(tmp_path: Path) -> None:
    plant(tmp_path / "disk", {"dog": 5})
    plant(tmp_path / "set", {"cat": 5})
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "disk" / "dog")
    assert look(tmp_path / "set").all == {"cat": 5, "dog": 5}
    put(tmp_path / "disk" / "dog" / "new.png", photo())
    assert look(tmp_path / "set").all == {"cat": 5, "dog": 6}


# --- what stays as it was


def test_options_of_other_data_are_untouched() -> None:
    """Own folders did not change what named data sets are."""
    data = datasets.load(make_config())
    assert data.account == ""
    assert data.warnings == []
    assert data.train_sizes is None
    assert data.own_validation is None
    assert data.input_shape == (1, 8, 8)


def test_the_partitioner_is_open_until_the_data_is_known(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 20, "dog": 20})
    config = make_config(dataset=str(tmp_path), num_clients=2)
    assert config.partitioner == "auto"
    counts = datasets.load(config).partition(config, 2).label_counts()
    named = config.model_copy(update={"partitioner": "dirichlet"})
    again = datasets.load(named).partition(named, 2).label_counts()
    np.testing.assert_array_equal(counts, again)
    assert make_config().partitioner != "auto"


def test_grey_needs_all_training_images_grey(tmp_path: Path) -> None:
    plant(tmp_path / "a", {"train/x": 5, "train/y": 5, "test/x": 2}, grey=True)
    assert look(tmp_path / "a").shape == (1, 8, 10)
    put(tmp_path / "a" / "test" / "y" / "colour.png", photo(90))
    assert look(tmp_path / "a").shape == (1, 8, 10)
    put(tmp_path / "a" / "train" / "y" / "colour.png", photo(90))
    assert look(tmp_path / "a").shape == (3, 8, 10)
    assert Image.open(io.BytesIO(photo(90))).mode == "RGB"


# --- what readers of the code found


@pytest.mark.parametrize(
    "names", [("train_set", "test_set"), ("training data", "testing data")]
)
def test_names_that_are_nearly_splits_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    plant(tmp_path, {f"{name}/{c}": 4 for name in names for c in ("cat", "dog")})
    assert "may be splits" in refusal(tmp_path)


def test_a_metadata_csv_over_splits_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"train/x": 4, "test/x": 4})
    rows = [
        f"{s}/x/{k:03d}.png,{'ab'[k % 2]}" for s in ("train", "test") for k in range(4)
    ]
    put(tmp_path / "metadata.csv", "\n".join(["file_name,label", *rows]))
    assert "into each split" in refusal(tmp_path)


def test_a_column_that_nothing_has_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 4, "dog": 4})
    assert "diagnosis" in refusal(tmp_path, label_column="diagnosis")


def test_a_split_that_is_read_as_a_class_is_said(tmp_path: Path) -> None:
    plant(tmp_path, {"train/steam": 4, "bus/city": 4})
    seen = look(tmp_path)
    assert seen.all == {"bus": 4, "train": 4}
    assert any("train is read as a class" in line for line in seen.data.warnings)


def test_classes_are_in_one_order_on_every_machine() -> None:
    from fl_app.data.tables import in_order

    assert in_order(["1", "01", "001", "2"]) == ["001", "01", "1", "2"]
    assert in_order(["2", "001", "1", "01"]) == ["001", "01", "1", "2"]


def test_a_file_called_as_a_data_set_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "digits", "notes")
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
    assert len(datasets.load(make_config()).class_names) == 10
