"""Random trees of folders: what is read is what was drawn, or the damage is named."""

import contextlib
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fl_app.config import ConfigError
from fl_app.data import private
from tests.conftest import make_config
from tests.own_folders import (
    FORMATS,
    Counts,
    by_class,
    images_read,
    look,
    passed_over,
    photo,
    put,
    unreadable_name,
)

MANY = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],  # to shrink a tree takes minutes
    suppress_health_check=list(HealthCheck),
)
FEWER = settings(MANY, max_examples=30)

NAMES = [
    *("cat", "Dog", "krank (Stufe 1.5)", "été", "Läsion", "größer", "ναι", "άλφα"),
    *("健康", "病気", "здоров", "St. Mary's", 'ward "B"', "a=b, c", "back\\slash"),
    *("10", "9", "007", "2", "x{1}", "[y]", "100 %", "#1", "~tmp", "car.v2"),
    *("test strip", "trains"),
]
"""Of classes and owners; none is one of the words for splits."""
SPLITS = {
    "train": ["train", "training"],
    "val": ["val", "valid", "validation", "dev", "eval"],
    "test": ["test", "testing"],
}
LEFTOVERS = [
    *(".DS_Store", "._000.png", "Thumbs.db", "desktop.ini", ".hidden.png"),
    *("__MACOSX/._a.png", "@eaDir/a.png/thumb.jpg", ".git/a.png", "lost+found/a.png"),
    *("System Volume Information/a.png", "$RECYCLE.BIN/S-1/a.png", ".cache/x/a.jpg"),
]
OTHERS = [
    ".txt",
    ".JSON",
    ".md",
    ".npy",
    ".dcm",
    ".Heic",
    ".svg",
    ".pdf",
    ".mp4",
    ".xml",
]
DAMAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "html": lambda: b"<!DOCTYPE html><title>404</title>",
    "cut": lambda: photo(90, (30, 20))[:-80],
    "noise": lambda: bytes(range(256)),
}
SUFFIXES = [*FORMATS, *(suffix.upper() for suffix in FORMATS)]


def spellings(name: str) -> list[str]:
    """Return how a name may stand on a disk: composed, decomposed, in Windows-1252."""
    found = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    if not name.isascii():
        with contextlib.suppress(UnicodeEncodeError):  # it may lack the letters
            found.add(unreadable_name(unicodedata.normalize("NFC", name)))
    return sorted(found)


@dataclass
class Drawn:
    """A tree on the disk, and what a reader must find in it."""

    root: Path
    classes: list[str] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    """Images by owner and split, "north/train", and class."""
    num_others: int = 0
    num_leftovers: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [unicodedata.normalize("NFC", name) for name in self.classes]

    @property
    def num_images(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    def of(self, part: str) -> Counts:
        """Return the images of a part by class; 0 where it has none."""
        return dict.fromkeys(self.names, 0) | self.counts.get(part, {})

    def count(self, part: str, name: str, number: int) -> None:
        counts = self.counts.setdefault(part, {})
        counts[name] = counts.get(name, 0) + number


@dataclass
class Artist:
    """Draws parts of trees; `outside` is a folder that links may point to."""

    draw: Any
    outside: Path
    made: int = 0

    def pick(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def below(self, highest: int) -> int:
        return int(self.draw(st.integers(0, highest)))

    def seldom(self) -> bool:
        return self.below(3) == 3

    def fresh(self, stem: str) -> str:
        self.made += 1
        return f"{stem}{self.made}"

    def split_name(self, split: str) -> str:
        name = self.pick(SPLITS[split])
        return str(self.pick([name, name.upper(), name.title()]))

    def names(self, least: int, most: int, apart: Sequence[str] = ()) -> list[str]:
        choices = st.sampled_from([name for name in NAMES if name not in apart])
        several = st.lists(choices, min_size=least, max_size=most, unique=True)
        return list(self.draw(several))

    def image(self, folder: Path, level: int) -> None:
        """Write an image, or a link to one."""
        suffix = self.pick(SUFFIXES)
        content = photo(level, kind=FORMATS[suffix.lower()])
        path = folder / (self.fresh("img ") + suffix)
        if not self.seldom():
            put(path, content)
            return
        target = put(self.outside / self.fresh("store"), content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def class_folder(self, folder: Path, number: int, level: int) -> None:
        """Spread images over a folder, folders in it, and a folder linked from it."""
        place = folder
        if self.seldom():  # the class itself is a link
            place = self.outside / self.fresh("disk")
            place.mkdir()
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(place)
        depth = self.below(2)
        homes = [place]
        for _ in range(depth):
            homes.append(homes[-1] / self.fresh("patient"))
        if depth and self.seldom():
            homes = homes[1:]  # none directly in the folder
        if self.seldom():
            home = self.outside / self.fresh("more")
            home.mkdir()
            place.mkdir(parents=True, exist_ok=True)
            (place / self.fresh("linked")).symlink_to(home)
            homes.append(home)
        for _ in range(number):
            self.image(self.pick(homes), level)

    def clutter(self, tree: Drawn, folders: list[Path]) -> None:
        """Add what is no part of the set; and seldom a damaged image."""
        for _ in range(self.below(3)):
            folder = self.pick(folders)
            leftover = folder / self.pick(LEFTOVERS)
            if not leftover.exists():
                tree.num_leftovers += 1
                put(leftover, photo(3))
        for _ in range(self.below(3)):
            put(self.pick(folders) / (self.fresh("note") + self.pick(OTHERS)), "x")
            tree.num_others += 1
        if self.seldom():
            put(self.pick(folders) / self.fresh("LICENSE"), "free")
            tree.num_others += 1
        for _ in range(self.below(1)):
            link = self.pick(folders) / self.fresh("gone")
            link.symlink_to(self.outside / "nowhere" / link.name)
            tree.num_others += 1
        if self.seldom():  # an owner's would be refused
            (self.pick(folders[1:]) / self.fresh("nothing")).mkdir()

    def damage(self, tree: Drawn, class_folders: list[Path]) -> None:
        name = f"{self.fresh('broken')}.{self.pick(['png', 'JPG', 'tiff'])}"
        put(self.pick(class_folders) / name, DAMAGE[self.pick(sorted(DAMAGE))]())
        tree.damaged.append(name)

    def splits(self) -> dict[str, str]:
        """Return splits and their folders; there may be none."""
        chosen = self.pick(["", "train test", "train val", "train val test"]).split()
        return {split: self.split_name(split) for split in chosen}

    def part(self, tree: Drawn, root: Path, part: str, counts: Counts) -> list[Path]:
        """Draw the class folders of a split; return them."""
        made = []
        for level, (name, number) in enumerate(counts.items()):
            folder = root / self.pick(spellings(name))
            self.class_folder(folder, number, 40 + 40 * level)
            tree.count(part, unicodedata.normalize("NFC", name), number)
            made.append(folder)
        return made

    def whole_set(self, tree: Drawn, root: Path, owner: str = "") -> list[Path]:
        """Draw class folders, or splits over them; return the class folders."""
        made = []
        for split, name in (self.splits() or {"train": ""}).items():
            counts = self.numbers(tree.classes, all_of_them=split == "train")
            made += self.part(tree, root / name, f"{owner}/{split}", counts)
        return made

    def numbers(self, classes: list[str], *, all_of_them: bool) -> Counts:
        number = {name: 1 + self.below(5) for name in classes}
        if all_of_them:
            return number
        kept = classes[:1] + [name for name in classes[1:] if self.below(2)]
        return {name: number[name] for name in kept}

    def clutter_around(self, tree: Drawn, class_folders: list[Path]) -> None:
        above = {folder.parent for folder in class_folders}
        places = {tree.root, *class_folders, *above}
        self.clutter(tree, sorted(places, key=os.fsencode))


@contextmanager
def begun(data: st.DataObject) -> Iterator[tuple[Drawn, Artist]]:
    """Make an empty tree, and who draws it."""
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder) / "set", Path(folder) / "outside"
        root.mkdir()
        outside.mkdir()
        artist = Artist(data.draw, outside)
        yield Drawn(root, artist.names(2, 4)), artist


def one_set(tree: Drawn, artist: Artist) -> list[Path]:
    """Draw a set, perhaps with a folder around it; return its class folders."""
    root = tree.root
    if artist.below(1):
        root = root / artist.pick(["photos", "data set", "资料", "v1.2"])
    class_folders = artist.whole_set(tree, root)
    artist.clutter_around(tree, class_folders)
    return class_folders


def assert_named(tree: Drawn, partitioner: str) -> None:
    with pytest.raises(ConfigError) as caught:
        look(tree.root, partitioner)
    assert all(name in str(caught.value) for name in tree.damaged)


@MANY
@given(st.data())
def test_what_is_read_is_what_was_drawn(data: st.DataObject) -> None:
    with begun(data) as (tree, artist):
        class_folders = one_set(tree, artist)
        if artist.seldom():
            artist.damage(tree, class_folders)
            assert_named(tree, "iid")
            return
        seen = look(tree.root)
        train, validation, test = (tree.of(f"/{s}") for s in ("train", "val", "test"))
        pooled = {name: train[name] + validation[name] for name in train}
        if "/test" not in tree.counts:  # a fifth of each class, half up
            test = {name: int(number / 5 + 0.5) for name, number in pooled.items()}
            pooled = {name: pooled[name] - test[name] for name in pooled}
        assert (seen.train, seen.test) == (pooled, test)
        numeric = all(name.isdecimal() for name in train)
        assert seen.data.class_names == sorted(train, key=int if numeric else str)
        account, total = seen.data.account, tree.num_images
        assert images_read(account) == total
        assert passed_over(account) == tree.num_others
        assert ("leftover" in account) == bool(tree.num_leftovers)
        if tree.num_others > 0.05 * (total + tree.num_others):
            assert seen.data.warnings


@FEWER
@given(st.data())
def test_owners_have_what_was_drawn(data: st.DataObject) -> None:
    """And the server tests on their test splits and a folder of its own."""
    with begun(data) as (tree, artist):
        owners = artist.names(2, 3, apart=tree.classes)
        class_folders = []
        for owner in owners:
            home = tree.root / artist.pick(spellings(owner))
            class_folders += artist.whole_set(tree, home, owner)
        if artist.below(1):
            counts = artist.numbers(tree.classes, all_of_them=False)
            home = tree.root / artist.split_name("test")
            class_folders += artist.part(tree, home, "/test", counts)
        artist.clutter_around(tree, class_folders)
        if artist.seldom():
            artist.damage(tree, class_folders)
            assert_named(tree, "folders")
            return
        seen = look(tree.root, "folders", validation_fraction=0.0)
        assert seen.owned == {
            unicodedata.normalize("NFC", owner): (
                tree.of(f"{owner}/train"),
                tree.of(f"{owner}/val"),
            )
            for owner in owners
        }
        tests = [tree.of(part) for part in tree.counts if part.endswith("/test")]
        assert seen.test == {
            name: sum(counts[name] for counts in tests) for name in tree.names
        }
        assert images_read(seen.data.account) == tree.num_images
        assert passed_over(seen.data.account) == tree.num_others


@FEWER
@given(st.data())
def test_a_private_node_has_what_was_drawn(data: st.DataObject) -> None:
    """But for its test split, which stays unread."""
    config = make_config(dataset="private", validation_fraction=0.0)
    with begun(data) as (tree, artist):
        one_set(tree, artist)
        node = private.Node.of({"data-path": str(tree.root)})
        assert node is not None
        agreed, refused = private.Agreement(config).agree({1: node.describe(config)})
        assert not refused
        found = node.load(agreed, config)
        labels = np.asarray(found.train_labels)
        parts = private.partition(found, config).split(0)
        train, validation = (by_class(labels[i], found.class_names) for i in parts)
        assert (train, validation) == (tree.of("/train"), tree.of("/val"))
