"""Encoded images with the names of their classes, in memory or in files."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

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

    def __getitem__(self, index: Any) -> Any:
        return Path(self.paths[index]).read_bytes()


class Places(Sequence[str]):
    """Names of files as text, made when they are asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return shown(self._paths[index])


class Chain(Sequence[Any]):
    """Several sequences, one after the other, without a copy."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, int(index))
        return self._parts[part][int(index) - (self._ends[part - 1] if part else 0)]


def of_files(paths: list[str], labels: list[str]) -> Table:
    """Return the table of image files whose classes are known."""
    return Table(Files(paths), Places(paths), labels, in_order(set(labels)))


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of classes in order: as numbers if all are, else as text."""
    names = list(names)
    numeric = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numeric else 0, name))


def joined(tables: Sequence[Table]) -> Table:
    """Return several tables as one."""
    if len(tables) == 1:
        return tables[0]
    return Table(
        Chain([table.images for table in tables]),
        Chain([table.places for table in tables]),
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
