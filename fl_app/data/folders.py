"""What a tree of folders means: splits, classes, owners; or why that cannot be told.

The class is the first level below the set, and deeper folders belong to it. Splits come
from exact names of folders, where they stand over classes that agree; names of image
files decide nothing. What could be read in two ways is refused, with both.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_app.config import ConfigError
from fl_app.data import tables
from fl_app.data.account import kinds
from fl_app.data.tables import BY_NAME, Columns, Table
from fl_app.data.tree import UNREAD_PICTURES, Folder, shown

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SHARD = r"(?:[-_.]\d+)?(?:-of-\d+)?(?:-[0-9a-f]{8,})?"
_EXACT = re.compile(rf"({'|'.join(_SPLITS)}){_SHARD}", re.IGNORECASE)
Known = frozenset[str]
"""Names of classes that others of the federation have, or the options."""
NOTHING: Known = frozenset()


def split_of(name: str) -> str | None:
    """Return the split that a folder's whole name stands for; None for none."""
    return _SPLITS.get(name.casefold())


@dataclass
class Content:
    """The tables of one set by split, and what was noticed in reading it."""

    splits: dict[str, Table]
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of images that were left out on purpose, by the reason."""
    used: set[str] = field(default_factory=set)
    """Parquet files and metadata.csv files that say something of the images."""
    cautions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Owned:
    """The sets of the owners, and the test images that are nobody's."""

    owners: dict[str, Content]
    test: Content | None


def read_set(
    top: Folder, columns: Columns = BY_NAME, known: Known = NOTHING
) -> Content:
    """Return what a folder of classes holds, by split.

    Args:
        top: the folder.
        columns: of tables, where the options name them.
        known: names of classes: a folder called so is not looked through.

    Raises:
        ConfigError: there is nothing in it, or it cannot be told what it means.
    """
    content = Content({})
    if pictured := _pictured(top, columns):
        return _of_parquet(top, pictured, columns, content)
    folder = inside(top, columns, known)
    splits = _splits(folder, columns)
    if splits is None:
        content.splits[TRAIN] = _of_classes(folder, columns, content)
    else:
        _agree(splits, columns, known, content)
    return content


def inside(top: Folder, columns: Columns, known: Known = NOTHING) -> Folder:
    """Return the folder that holds the classes or splits: one around all is no level.

    Raises:
        ConfigError: only one chain of folders leads to the images, so that it cannot
            be told which of them is the class.
    """
    chain = [top]
    while True:
        folder = chain[-1]
        labelled = tables.gives_labels(folder.metadata, columns)
        if folder.images or folder.tables or labelled or len(folder.full) != 1:
            break
        (only,) = folder.full
        if only.name in known:
            return folder
        chain.append(only)
    last = chain[-1]
    if not last.images or labelled or len(chain) < 2:
        return last
    if len(chain) == 2 or split_of(chain[-2].name):  # one class, around its images
        return chain[-2]
    raise ConfigError(
        f"{shown(top.path)}: all images lie in "
        f"{'/'.join(f.name for f in chain[1:])}, and each of these folders may be the "
        "class: give the path of the folder that holds the class folder, or "
        "class-names"
    )


def refuse_two_readings(top: Folder, columns: Columns) -> None:
    """Refuse what may be sites with classes in them, or classes with folders in them.

    Raises:
        ConfigError: names recur on the second level of the folder, or of its splits.
    """
    folder = inside(top, columns)
    parts = [folder]
    if folder.full and all(split_of(f.name) for f in folder.full):
        parts = folder.full
    for part in parts:
        uppers = part.full
        if _labelled(part, columns):
            continue
        if sum(bool(f.num_tables and not f.num_images) for f in uppers) > 1:
            raise ConfigError(
                f"{shown(top.path)}: there are Parquet files in "
                f"{_listed(f.name for f in uppers)}. Are these sites, each with its "
                'own data? Then give partitioner="folders". Else give the partitioner '
                'that is to deal all of it out, such as partitioner="dirichlet"'
            )
        lower = Counter(
            name for upper in uppers for name in {f.name.casefold() for f in upper.full}
        )
        recurring = {name for name, number in lower.items() if number > 1}
        if recurring and all(map(split_of, recurring)):
            raise ConfigError(_splits_below(part, uppers))
        if recurring:
            raise ConfigError(_two_readings(top, uppers))


def _splits_below(folder: Folder, uppers: Sequence[Folder]) -> str:
    some = next(f for upper in uppers for f in upper.full if split_of(f.name))
    upper = next(f for f in uppers if some in f.full)
    return (
        f"{shown(folder.path)}: there are splits below "
        f"{_listed(f.name for f in uppers)}. If these are sites, each with its own "
        f'splits, give partitioner="folders". If they are classes, splits must stand '
        f"over them: move "
        f"{upper.name}/{some.name} to {some.name}/{upper.name}, and so on"
    )


def _two_readings(top: Folder, uppers: Sequence[Folder]) -> str:
    below: Counter[str] = Counter()
    for upper in uppers:
        for folder in upper.full:
            below[folder.name] += folder.num_images
    first = _listed(f"{f.name} ({f.num_images:,})" for f in uppers)
    second = _listed(f"{name} ({number:,})" for name, number in sorted(below.items()))
    return (
        f"{shown(top.path)} can be read in two ways, and which is meant cannot be told "
        f"from the names. Sites {first} with the classes {second}: then give "
        f'partitioner="folders". Or classes {first} with folders such as '
        f"{next(iter(below))!r} in them: then give the partitioner that is to deal the "
        'images out, such as partitioner="dirichlet"'
    )


def read_owners(top: Folder, columns: Columns = BY_NAME) -> Owned:
    """Return the sets of a folder of folders, one for each owner.

    A folder `test` in it is nobody's. Splits may also stand over the owners.

    Raises:
        ConfigError: an owner has no image, or it cannot be told what a folder means.
    """
    rest, tests = owner_folders(top)
    if not rest:
        return _owners_in_splits(_around_owners(top), columns)
    known = _known_classes(rest, columns)
    owners = {f.name: read_set(f, columns, known) for f in rest}
    return Owned(owners, _merged([_test_of(f, columns, known) for f in tests]))


def owner_folders(top: Folder) -> tuple[list[Folder], list[Folder]]:
    """Return the folders of the owners, and those of nobody's test images.

    There are neither where splits stand over the owners.

    Raises:
        ConfigError: see `read_owners`.
    """
    top = _around_owners(top)
    if top.images:
        raise ConfigError(_loose(top))
    named = [f for f in top.folders if split_of(f.name)]
    rest = [f for f in top.folders if not split_of(f.name)]
    trains = [f for f in named if split_of(f.name) != TEST]
    if trains and not rest:
        return [], []
    if trains:
        raise ConfigError(
            f"{shown(trains[0].path)} stands beside clients' folders "
            f"({_listed(f.name for f in rest)}): if it is a client, rename it; if it "
            "is a split, it must stand in the folder of the client that it belongs to"
        )
    if not rest:
        raise ConfigError(
            f"partitioner = 'folders' finds no client folder in {shown(top.path)}: "
            "each sub-folder is one client, with class folders or Parquet files in it"
        )
    for folder in rest:
        _refuse_empty(folder)
    if len({f.name for f in rest}) < len(rest):
        raise ConfigError(f"{shown(top.path)}: two clients' folders have one name")
    return rest, named


def _around_owners(top: Folder) -> Folder:
    """Look through a folder around all: one whose folders hold the same names."""
    folder = top
    while not folder.images and not folder.tables and len(folder.folders) == 1:
        (only,) = folder.folders
        lower = Counter(f.name for inner in only.full for f in inner.full)
        holds_tables = all(f.num_tables for f in only.full)
        if split_of(only.name) or not (
            any(n > 1 for n in lower.values()) or (len(only.full) > 1 and holds_tables)
        ):
            return folder
        folder = only
    return folder


def _owners_in_splits(top: Folder, columns: Columns) -> Owned:
    """Read `train/north/ill` and the like."""
    parts: dict[str, dict[str, Folder]] = defaultdict(dict)
    server: list[Folder] = []
    for folder in top.full:
        split = split_of(folder.name)
        assert split is not None
        if split == TEST and all(f.images and not f.full for f in folder.full):
            server.append(folder)
            continue
        for owner in folder.full:
            parts[owner.name].setdefault(split, owner)
    lacking = [name for name, splits in parts.items() if TRAIN not in splits]
    if lacking or not parts:
        raise ConfigError(
            f"{shown(top.path)}: {_listed(lacking) or 'no client'} has images to "
            "validate or test with and none to train on; with partitioner = 'folders' "
            "each folder in a split is a client"
        )
    trained = [splits[TRAIN] for splits in parts.values()]
    known = _known_classes(trained, columns)
    owners = {}
    for name, splits in sorted(parts.items()):
        contents = {s: read_set(f, columns, known) for s, f in splits.items()}
        owners[name] = Content({})
        for split, content in contents.items():
            if content.splits.keys() != {TRAIN}:
                raise ConfigError(
                    f"{shown(splits[split].path)} has splits in it, below a split"
                )
            owners[name].splits[split] = content.splits[TRAIN]
            _take_over(owners[name], content)
    tests = [_test_of(folder, columns, known) for folder in server]
    return Owned(owners, _merged(tests))


def _test_of(folder: Folder, columns: Columns, known: Known) -> Content:
    """Return a folder's images, all of them for testing."""
    content = read_set(folder, columns, known)
    content.splits = {TEST: tables.joined(list(content.splits.values()))}
    return content


def _merged(contents: Sequence[Content]) -> Content | None:
    if not contents:
        return None
    first, *others = contents
    for other in others:
        first.splits[TEST] = tables.joined([first.splits[TEST], other.splits[TEST]])
        _take_over(first, other)
    return first


def _take_over(content: Content, other: Content) -> None:
    content.passed_over.update(other.passed_over)
    content.used |= other.used
    content.cautions += other.cautions
    content.notes += other.notes


def _known_classes(owners: Sequence[Folder], columns: Columns) -> Known:
    """Return the classes of owners that have several: with them there is no doubt."""
    found: set[str] = set()
    for folder in owners:
        if len(folder.full) > 1 and not folder.num_tables:
            for table in read_set(folder, columns).splits.values():
                found.update(table.class_names)
    return frozenset(found)


def _refuse_empty(folder: Folder) -> None:
    if folder.num_images or folder.num_tables:
        return
    others = kinds(folder.passed_over())
    raise ConfigError(
        f"{shown(folder.path)} holds no image that is read"
        + (f" (there are {others})" if others else "")
        + ": remove the folder, or put images into it"
    )


# --- classes


def _of_classes(folder: Folder, columns: Columns, content: Content) -> Table:
    """Return the images of a folder of class folders."""
    if labelled := _labelled(folder, columns):
        return _of_labels(folder, labelled, columns, content)
    if folder.images:
        raise ConfigError(_loose(folder))
    if not folder.full:
        raise ConfigError(_nothing(folder))
    for inner in folder.folders:
        _refuse_lost(inner)
    _refuse_splits_below(folder)
    paths, labels = [], []
    for inner in folder.full:
        images = inner.all_images()
        paths += images
        labels += [inner.name] * len(images)
    return tables.of_files(paths, labels)


def _loose(folder: Folder) -> str:
    beside = " beside folders" if folder.full else ""
    return (
        f"{shown(folder.path)} holds images{beside} "
        f"({shown(os.path.basename(folder.images[0]))}): put each into a folder that "
        "is named for its class, or name them in a metadata.csv (file_name,label)"
    )


def _nothing(folder: Folder) -> str:
    others = kinds(folder.passed_over())
    return (
        f"{shown(folder.path)} holds no data set"
        + (f" (there are {others})" if others else "")
        + ": it needs images in a folder for each class, or Parquet files with an "
        "image and a label column"
    )


def _refuse_lost(folder: Folder) -> None:
    """Refuse a class that would vanish because of the kind of its files."""
    others = folder.passed_over()
    unread = {kind: n for kind, n in others.items() if kind in UNREAD_PICTURES}
    if unread and not folder.num_images and not folder.num_tables:
        raise ConfigError(
            f"{shown(folder.path)} holds {kinds(unread)} and no image that is read"
        )


def _refuse_splits_below(folder: Folder) -> None:
    below = [f for c in folder.full for f in c.full if split_of(f.name)]
    if len(below) > 1:
        raise ConfigError(_splits_below(folder, folder.full))


# --- splits


def _splits(folder: Folder, columns: Columns) -> dict[str, list[Folder]] | None:
    """Return the folders of each split; None if there are none."""
    full = folder.full
    named = [f for f in full if split_of(f.name)]
    if not named or folder.images or (folder.metadata and _labelled(folder, columns)):
        return None
    over = [f for f in named if not f.images or _labelled(f, columns)]
    below = {name.casefold() for f in over for name in _names(f)}
    if len(named) == len(full):
        if len(over) < len(named):
            flat = next(f for f in named if f not in over)
            raise ConfigError(
                f"{shown(flat.path)} is called as a split and holds images without a "
                "class folder: put each image into a folder that is named for its "
                "class; if it is a class, rename it"
            )
        found: dict[str, list[Folder]] = defaultdict(list)
        for inner in named:
            found[str(split_of(inner.name))].append(inner)
        return dict(found)
    others = [f for f in full if f not in named]
    if not over or (
        len(over) == 1
        and not any(f.images for f in others)
        and not any(name.casefold() in below for f in others for name in _names(f))
    ):
        return None  # a class that is called train
    raise ConfigError(
        f"{shown(folder.path)}: {_listed(f.name for f in over)} may be a split with "
        f"classes in it, and stands beside {_listed(f.name for f in others)}, which "
        "are none: keep splits alone in their folder; if it is a class, rename it"
    )


def _names(folder: Folder) -> list[str]:
    return [inner.name for inner in folder.full]


def _agree(
    splits: Mapping[str, Sequence[Folder]],
    columns: Columns,
    known: Known,
    content: Content,
) -> None:
    """Read the splits; refuse those whose classes have nothing in common."""
    folders = [f for of in splits.values() for f in of]
    if TRAIN not in splits:
        raise ConfigError(
            f"{_listed(shown(f.path) for f in folders)} are called as splits, and "
            "none of them is train"
        )
    several = [f for f in folders if len(f.full) > 1]
    known |= {inner.name for f in several for inner in f.full}
    for split, of in splits.items():
        found = [_of_classes(inside(f, columns, known), columns, content) for f in of]
        content.splits[split] = tables.joined(found)
    names = {split: set(t.class_names) for split, t in content.splits.items()}
    for other, theirs in names.items():
        if not names[TRAIN] & theirs:
            raise ConfigError(
                f"{_listed(shown(f.path) for f in folders)} are called as splits, and "
                f"have no class in common: {_listed(sorted(names[TRAIN]))} in train, "
                f"{_listed(sorted(theirs))} in {other}"
            )
    content.cautions += _one_sided(names)


def _one_sided(names: Mapping[str, set[str]]) -> list[str]:
    """Say which classes not all splits have."""
    found = []
    for name in sorted(set().union(*names.values())):
        lacking = [split for split in names if name not in names[split]]
        if lacking:
            found.append(f"class {name!r} is missing in {' and '.join(lacking)}")
    return found


# --- labels in a file


def _labelled(folder: Folder, columns: Columns) -> list[Folder]:
    """Return the folders whose metadata.csv gives classes: this, or those in it."""
    if tables.gives_labels(folder.metadata, columns):
        return [folder]
    return [f for f in folder.folders if tables.gives_labels(f.metadata, columns)]


def _of_labels(
    folder: Folder, labelled: Sequence[Folder], columns: Columns, content: Content
) -> Table:
    found = []
    if folder.images and folder not in labelled:
        raise ConfigError(_loose(folder))
    for one in labelled:
        images = one.all_images()
        table = tables.of_metadata(str(one.metadata), images, columns)
        if len(images) > len(table.images):
            number = len(images) - len(table.images)
            content.passed_over["images not named in metadata.csv"] += number
        content.used.add(str(one.metadata))
        firsts = {f.name for f in one.full}
        if firsts == set(table.labels) and not one.images:
            _refuse_disagreement(one, table)
        found.append(table)
    unnamed = [f for f in folder.full if f not in labelled]
    if folder not in labelled and unnamed:
        raise ConfigError(
            f"{shown(unnamed[0].path)} has no metadata.csv with labels, and "
            f"{shown(labelled[0].path)} has"
        )
    content.notes.append("classes by metadata.csv")
    return tables.joined(found)


def _refuse_disagreement(folder: Folder, table: Table) -> None:
    paths = table.images.paths if isinstance(table.images, tables.Files) else []
    for path, label in zip(paths, table.labels, strict=False):
        first = shown(os.path.relpath(path, folder.path)).split("/")[0]
        if first != label:
            raise ConfigError(
                f"{shown(path)} is {label!r} by metadata.csv, and lies in the class "
                f"folder {first!r}: mend one of them"
            )


# --- Parquet


def _pictured(top: Folder, columns: Columns) -> list[str]:
    """Return the Parquet files that hold images."""
    paths = [path for folder in top.walk() for path in folder.tables]
    schemas = {path: tables.schema_of(path, columns.image) for path in paths}
    pictured = [p for p in paths if schemas[p].images]
    if top.num_images and any(tables.holds_images(p, schemas[p]) for p in pictured):
        raise ConfigError(
            f"{shown(top.path)} holds image files and a Parquet file with images "
            f"({shown(pictured[0])}): keep one of them"
        )
    if paths and not pictured and not top.num_images:
        tables.columns_of(shown(paths[0]), schemas[paths[0]], columns)
    return pictured


def _of_parquet(
    top: Folder, paths: Sequence[str], columns: Columns, content: Content
) -> Content:
    splits: dict[str | None, list[str]] = defaultdict(list)
    for path in paths:
        splits[_split_of_table(top, path)].append(path)
    if None in splits and (len(splits) > 1 or _mention_splits(splits[None])):
        some = _listed(os.path.basename(p) for p in splits[None])
        raise ConfigError(
            f"{shown(top.path)}: it cannot be told to which split {some} belong: call "
            "the files train.parquet and test.parquet, or put them into folders of "
            "that name"
        )
    for split, of in splits.items():
        found = [tables.of_parquet(path, columns) for path in of]
        content.splits[split or TRAIN] = tables.joined(found)
    rows = sum(len(table.labels) for table in content.splits.values())
    if top.num_images > rows:
        content.passed_over["images not named in a table"] = top.num_images - rows
    if TRAIN not in content.splits:
        if len(content.splits) > 1:
            raise ConfigError(
                f"{shown(top.path)} has splits {sorted(content.splits)} but no 'train'"
            )
        content.splits = {TRAIN: next(iter(content.splits.values()))}
    content.used.update(paths)
    return content


def _split_of_table(top: Folder, path: str) -> str | None:
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


def _mention_splits(paths: Sequence[str]) -> bool:
    """Whether names of several files contain words of splits, other than wholly."""
    words = [
        {split_of(w) for w in re.split(r"[^a-z]+", Path(p).stem.casefold())} - {None}
        for p in paths
    ]
    return len(paths) > 1 and any(words) and len({frozenset(w) for w in words}) > 1


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
