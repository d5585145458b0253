"""A folder of images as it lies on the disk: folders, images, tables, and the rest.

Nothing is decided here. Leftovers of operating systems are passed over, links are
followed once, and what is no image is counted by its kind.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fl_app.config import ConfigError

PICTURES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes of files that are read, in lower case."""
_CONVERT = "convert them to PNG or JPEG"
UNREAD_PICTURES = {
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl"), _CONVERT),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), _CONVERT),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"), _CONVERT),
    **dict.fromkeys((".dcm", ".dicom", ".nii"), "export their images as PNG"),
    **dict.fromkeys((".svs", ".ndpi", ".czi"), "export their tiles as PNG"),
}
"""Suffixes of pictures that are not read, and what to do with them."""
UNREAD = {
    **UNREAD_PICTURES,
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"), "unpack them"),
}
"""Those, and of files that may hold pictures."""
METADATA = "metadata.csv"
_TABLE = ".parquet"
_LEFTOVERS = frozenset(
    name.casefold()
    for name in (
        *("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir"),
        *("lost+found", "System Volume Information", "$RECYCLE.BIN"),
    )
)
BROKEN, AGAIN, SPECIAL = "links into nowhere", "links to folders read", "special files"

_Key = tuple[int, int]
"""Device and inode: what a folder is, whichever way leads to it."""


@dataclass(eq=False)
class Folder:
    """One folder; paths are as they are reached, links and all."""

    path: str
    folders: list["Folder"] = field(default_factory=list)
    """By name."""
    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata: str | None = None
    others: Counter[str] = field(default_factory=Counter)
    """Number of other files by kind, those of `folders` not among them."""

    @cached_property
    def name(self) -> str:
        """The folder's name as text, see `shown`."""
        return shown(os.path.basename(self.path))

    def walk(self) -> Iterator["Folder"]:
        """Yield the folder and all below it, in order."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    @cached_property
    def num_images(self) -> int:
        """Images in the folder and below it."""
        return len(self.images) + sum(folder.num_images for folder in self.folders)

    @cached_property
    def num_tables(self) -> int:
        """Parquet files in the folder and below it."""
        return len(self.tables) + sum(folder.num_tables for folder in self.folders)

    @property
    def full(self) -> list["Folder"]:
        """The folders in it that hold an image or a table, at whatever depth."""
        return [f for f in self.folders if f.num_images or f.num_tables]

    def all_images(self) -> list[str]:
        """Return the paths of all images in it and below it."""
        return [path for folder in self.walk() for path in folder.images]

    def passed_over(self) -> Counter[str]:
        """Return the number of other files in it and below it, by kind."""
        total: Counter[str] = Counter()
        for folder in self.walk():
            total.update(folder.others)
        return total


@dataclass(frozen=True)
class Tree:
    """All that lies in a folder."""

    top: Folder
    digest: str
    """Changes with names, sizes and times of the files."""
    num_leftovers: int


def shown(name: str) -> str:
    """Return a file's name as text in NFC; one not in UTF-8 is Windows-1252."""
    raw = os.fsencode(name)
    for encoding in ("utf-8", "cp1252"):
        try:
            return unicodedata.normalize("NFC", raw.decode(encoding))
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def scan(folder: Path) -> Tree:
    """Return what lies in a folder and below it.

    Raises:
        ConfigError: a folder cannot be read, or links lead in a circle.
    """
    return _Scanner().scan(folder)


class _Scanner:
    """Real folders first, then links: what is reached both ways is read once."""

    def __init__(self) -> None:
        self._seen: set[_Key] = set()
        self._links: list[tuple[Folder, str]] = []
        self._digest = hashlib.sha256()
        self._num_leftovers = 0

    def scan(self, path: Path) -> Tree:
        self._digest.update(os.fsencode(path.resolve()))
        top = self._folder(os.fspath(path))
        assert top is not None
        while self._links:
            parent, link = self._links.pop(0)
            self._follow(parent, link)
        for folder in top.walk():
            folder.folders.sort(key=lambda f: f.name)
        return Tree(top, self._digest.hexdigest()[:16], self._num_leftovers)

    def _folder(self, path: str) -> Folder | None:
        """Return a folder; None if it was read already."""
        try:
            status = os.stat(path)
            key = (status.st_dev, status.st_ino)
            if key in self._seen:
                return None
            self._seen.add(key)
            with os.scandir(path) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise ConfigError(
                f"{shown(path)} cannot be read ({error.strerror}): give yourself the "
                "right to read it, or move it away"
            ) from error
        found = Folder(path)
        for entry in entries:
            self._take(found, entry)
        return found

    def _take(self, into: Folder, entry: os.DirEntry[str]) -> None:
        if entry.name.startswith(".") or entry.name.casefold() in _LEFTOVERS:
            self._num_leftovers += 1
        elif entry.is_dir(follow_symlinks=False):
            self._add(into, entry.path)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            self._links.append((into, entry.path))
        else:
            self._file(into, entry)

    def _file(self, into: Folder, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError:  # of a link: nothing is there, or it leads to itself
            into.others[BROKEN] += 1
            return
        if not entry.is_file():
            into.others[SPECIAL] += 1
            return
        self._digest.update(
            os.fsencode(entry.path)
            + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
        )
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in PICTURES:
            into.images.append(entry.path)
        elif suffix == _TABLE:
            into.tables.append(entry.path)
        elif entry.name.casefold() == METADATA:
            into.metadata = entry.path
        else:
            into.others[shown(suffix) or "without a suffix"] += 1

    def _follow(self, parent: Folder, link: str) -> None:
        target, place = os.path.realpath(link), os.path.realpath(parent.path)
        if place == target or place.startswith(target.rstrip("/") + "/"):
            raise ConfigError(
                f"the link {shown(link)} leads in a circle, to {shown(target)}: remove "
                "it"
            )
        self._add(parent, link)

    def _add(self, parent: Folder, path: str) -> None:
        if (found := self._folder(path)) is not None:
            parent.folders.append(found)
        else:
            parent.others[AGAIN] += 1
