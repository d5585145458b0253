"""Words that name splits: of folders, and of Parquet files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl_app.config import ConfigError
from fl_app.data.tree import Folder, shown

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SHARD = r"(?:[-_.]\d+)?(?:-of-\d+)?(?:-[0-9a-f]{8,})?"
_EXACT = re.compile(rf"({'|'.join(_SPLITS)}){_SHARD}", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """Return the split that a folder's whole name stands for; None for none."""
    return _SPLITS.get(name.casefold())


def split_of_table(top: Folder, path: str) -> str | None:
    """Return the split that a Parquet file's name or one of its folders stands for.

    Raises:
        ConfigError: they stand for different ones.
    """
    relative = Path(path).relative_to(top.path)
    exact = _EXACT.fullmatch(relative.stem)
    found = {split_of(part) for part in relative.parts[:-1]} - {None}
    if exact:
        found.add(_SPLITS[exact[1].casefold()])
    if len(found) > 1:
        raise ConfigError(
            f"{shown(path)}: its name and its folder say different splits"
        )
    return next(iter(found), None)


def refuse_near_splits(folder: Folder) -> None:
    """Refuse folders whose names are nearly those of splits, as train_set and test_set.

    Raises:
        ConfigError: names differ in nothing but the words of splits in them.
    """
    names = [
        re.split(r"[^a-z]+", inner.name.casefold().strip()) for inner in folder.full
    ]
    words = {frozenset(filter(None, map(split_of, name))) for name in names}
    rest = {tuple(w for w in name if not split_of(w)) for name in names}
    if len(words) > 1 and all(words) and len(rest) == 1 and any(rest):
        raise ConfigError(
            f"{shown(folder.path)}: {listed(f.name for f in folder.full)} may be "
            "splits: call them train, val and test. If they are classes, give them "
            "other names"
        )


def mention_splits(top: Folder, paths: Sequence[str]) -> bool:
    """Whether several files, or folders of theirs, have words of splits in names."""
    names = [str(Path(path).relative_to(top.path).with_suffix("")) for path in paths]
    words = [
        {split_of(word) for word in re.split(r"[^a-z]+", name.casefold())} - {None}
        for name in names
    ]
    return len(paths) > 1 and any(words) and len({frozenset(w) for w in words}) > 1


def listed(names: Iterable[str], most: int = 6) -> str:
    """Return names as text, the first of many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
