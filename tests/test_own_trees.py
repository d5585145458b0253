"""Random trees of folders: what is read is what was drawn, or the damage is named."""

import contextlib
import os
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fl_app.config import ConfigError
from tests.own_folders import (
    FORMATS,
    Counts,
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

NAMES = [
    *("cat", "Dog", "krank (Stufe 1.5)", "été", "Läsion", "größer", "ναι", "άλφα"),
    *("健康", "病気", "здоров", "St. Mary's", 'ward "B"', "a=b, c", "back\\slash"),
    *(
        "10",
        "9",
        "007",
        "2",
        "x{1}",
        "[y]",
        "100 %",
        "#1",
        "~tmp",
        "car.v2",
        "test strip",
    ),
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
DAMAGE = {
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
    counts: dict[str, Counts] = field(default_factory=dict)
    """Images by split (or owner and split) and class."""
    num_others: int = 0
    num_leftovers: int = 0
    damaged: list[str] = field(default_factory=list)

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
        """Return splits and their folders; none is a single nameless one."""
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

    def numbers(self, classes: list[str], *, all_of_them: bool) -> Counts:
        number = {name: 1 + self.below(5) for name in classes}
        if all_of_them:
            return number
        kept = classes[:1] + [name for name in classes[1:] if self.below(2)]
        return {name: number[name] for name in kept}


def fifth(number: int) -> int:
    return int(number / 5 + 0.5)


def expected(tree: Drawn) -> tuple[Counts, Counts]:
    """Return training and test images by class: `val` joins training."""
    names = {name for counts in tree.counts.values() for name in counts}
    pooled = {
        name: sum(c.get(name, 0) for s, c in tree.counts.items() if s != "test")
        for name in names
    }
    if "test" in tree.counts:
        return pooled, {name: tree.counts["test"].get(name, 0) for name in names}
    test = {name: fifth(number) for name, number in pooled.items()}
    return {name: pooled[name] - test[name] for name in names}, test


@MANY
@given(st.data())
def test_what_is_read_is_what_was_drawn(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder) / "set", Path(folder) / "outside"
        root.mkdir()
        outside.mkdir()
        tree, artist = Drawn(root), Artist(data.draw, outside)
        if data.draw(st.booleans()):
            root = root / artist.pick(["photos", "data set", "资料", "v1.2"])
        classes, splits = artist.names(2, 4), artist.splits()
        class_folders = []
        if splits:
            for split, name in splits.items():
                counts = artist.numbers(classes, all_of_them=split == "train")
                class_folders += artist.part(tree, root / name, split, counts)
        else:
            counts = artist.numbers(classes, all_of_them=True)
            class_folders += artist.part(tree, root, "", counts)
        places = {tree.root, root, *class_folders, *(f.parent for f in class_folders)}
        artist.clutter(tree, sorted(places, key=os.fsencode))
        if artist.seldom():
            artist.damage(tree, class_folders)
        if tree.damaged:
            with pytest.raises(ConfigError) as caught:
                look(tree.root)
            assert all(name in str(caught.value) for name in tree.damaged)
            return
        seen = look(tree.root)
        train, test = expected(tree)
        assert (seen.train, seen.test) == (train, test)
        numeric = all(name.isdecimal() for name in train)
        order = sorted(train, key=int if numeric else str)
        assert seen.data.class_names == order
        account, total = seen.data.account, sum(train.values()) + sum(test.values())
        assert images_read(account) == total
        assert passed_over(account) == tree.num_others
        assert ("leftover" in account) == bool(tree.num_leftovers)
        if tree.num_others > 0.05 * (total + tree.num_others):
            assert seen.data.warnings


@MANY
@given(st.data())
def test_owners_have_what_was_drawn(data: st.DataObject) -> None:
    """Each with class folders, or splits over them; and a test folder of the server."""
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder) / "set", Path(folder) / "outside"
        root.mkdir()
        outside.mkdir()
        tree, artist = Drawn(root), Artist(data.draw, outside)
        classes = artist.names(2, 4)
        owners = artist.names(2, 3, apart=classes)
        class_folders = []
        for owner in owners:
            home = root / artist.pick(spellings(owner))
            splits = artist.splits() or {"": ""}
            for split, name in splits.items():
                counts = artist.numbers(classes, all_of_them=split in ("", "train"))
                part = f"{owner}/{split or 'train'}"
                class_folders += artist.part(tree, home / name, part, counts)
        if data.draw(st.booleans()):
            counts = artist.numbers(classes, all_of_them=False)
            home = root / artist.split_name("test")
            class_folders += artist.part(tree, home, "/test", counts)
        places = {root, *class_folders, *(f.parent for f in class_folders)}
        artist.clutter(tree, sorted(places, key=os.fsencode))
        if artist.seldom():
            artist.damage(tree, class_folders)
            with pytest.raises(ConfigError) as caught:
                look(root, "folders")
            assert all(name in str(caught.value) for name in tree.damaged)
            return
        seen = look(root, "folders", validation_fraction=0.0)
        composed = [unicodedata.normalize("NFC", name) for name in classes]
        nothing = dict.fromkeys(composed, 0)
        parts = {part: nothing | counts for part, counts in tree.counts.items()}
        assert seen.owned == {
            unicodedata.normalize("NFC", owner): (
                parts[f"{owner}/train"],
                parts.get(f"{owner}/val", nothing),
            )
            for owner in owners
        }
        tested = [counts for part, counts in parts.items() if part.endswith("/test")]
        assert seen.test == {n: sum(c[n] for c in tested) for n in composed}
        assert passed_over(seen.data.account) == tree.num_others
        total = sum(sum(counts.values()) for counts in parts.values())
        assert images_read(seen.data.account) == total
