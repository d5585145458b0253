"""Encoded images with the names of their classes, in memory or in files."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from fl_app.data.tree import shown


@dataclass(frozen=True)
class Columns:
    """Which columns hold images and labels; "" where the file itself has to tell."""

    image: str = ""
    label: str = ""


BY_NAME = Columns()
"""Columns are found by their names and kinds."""


@dataclass(frozen=True)
class Table:
    """Encoded images with the names of their classes."""

    images: Sequence[bytes]
    places: Sequence[str]
    """Where each image came from, for errors."""
    labels: list[str]
    class_names: list[str]
    """In the order of the numbers that stand for them."""


class Files(Sequence[bytes]):
    """The contents of files, each read when it is asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "Files": ...
    def __getitem__(self, index: int | slice) -> "bytes | Files":
        if isinstance(index, slice):
            return Files(self.paths[index])
        return Path(self.paths[index]).read_bytes()


class Places(Sequence[str]):
    """Names of files as text, made when they are asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "str | Places":
        if isinstance(index, slice):
            return Places(self._paths[index])
        return shown(self._paths[index])


def of_files(paths: list[str], labels: list[str]) -> Table:
    """Return the table of image files whose classes are known."""
    return Table(Files(paths), Places(paths), labels, in_order(set(labels)))


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of classes in order: as numbers if all are, else as text."""
    names = list(names)
    numeric = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return sorted(names, key=int if numeric else str)


def joined(tables: Sequence[Table]) -> Table:
    """Return several tables as one."""
    if len(tables) == 1:
        return tables[0]
    return Table(
        [image for table in tables for image in table.images]
        if not all(isinstance(table.images, Files) for table in tables)
        else Files([p for t in tables for p in t.images.paths]),  # type: ignore[attr-defined]
        [place for table in tables for place in table.places],
        [label for table in tables for label in table.labels],
        united([table.class_names for table in tables]),
    )


def united(class_names: Sequence[list[str]]) -> list[str]:
    """Return the first list if all agree, else the union in order."""
    first = class_names[0]
    if all(names == first for names in class_names):
        return first
    return in_order({name for names in class_names for name in names})


def nfc(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name)
