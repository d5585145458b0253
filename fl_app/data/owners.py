"""Owners of images: a folder for each, with splits in it or over it.

Sites with classes in them and classes with folders in them are the same tree: the
partitioner says which is meant, and where it does not, both readings are told.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_app.config import ConfigError
from fl_app.data import tables
from fl_app.data.account import kinds
from fl_app.data.folders import (
    Content,
    Known,
    are_numbered,
    inside,
    is_plain,
    labelled_in,
    loose,
    read_set,
    splits_below,
)
from fl_app.data.splits import TEST, TRAIN, listed, refuse_near_splits, split_of
from fl_app.data.tables import BY_NAME, Columns
from fl_app.data.tree import Folder, shown


@dataclass
class Owned:
    """The sets of the owners, and the test images that are nobody's."""

    owners: dict[str, Content]
    test: Content | None


def _two_readings(top: Folder, uppers: Sequence[Folder], columns: Columns) -> str:
    first = _numbered(f.name for f in uppers for _ in range(f.num_images))
    lower = next(f.name for upper in uppers for f in upper.full)
    try:
        owned = read_owners(top, columns)
    except ConfigError:
        sites = f'Sites {first}: then give partitioner="folders"'
    else:
        labels = [
            (name, label)
            for name, content in owned.owners.items()
            for table in content.splits.values()
            for label in table.labels
        ]
        of, every = (_numbered(column) for column in zip(*labels, strict=True))
        sites = f'Sites {of} with the classes {every}: then give partitioner="folders"'
    return (
        f"{shown(top.path)} can be read in two ways, and which is meant cannot be told "
        f"from the names. {sites}. Or classes {first} with folders such as {lower!r} "
        "in them: then give the partitioner that is to deal the images out, such as "
        'partitioner="dirichlet"'
    )


def _numbered(names: Iterable[str]) -> str:
    """Return names with how often each occurs."""
    return listed(f"{name} ({n:,})" for name, n in sorted(Counter(names).items()))


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
    owners = {f.name: read_set(f, columns, known, is_careful=True) for f in rest}
    return Owned(owners, _merged([_test_of(f, columns, known) for f in tests]))


def owner_folders(top: Folder) -> tuple[list[Folder], list[Folder]]:
    """Return the folders of the owners, and those of nobody's test images.

    There are neither where splits stand over the owners.

    Raises:
        ConfigError: see `read_owners`.
    """
    top = _around_owners(top)
    if top.images:
        raise ConfigError(loose(top))
    named = [f for f in top.folders if split_of(f.name)]
    rest = [f for f in top.folders if not split_of(f.name)]
    trains = [f for f in named if split_of(f.name) != TEST]
    if trains and not rest:
        return [], []
    if trains:
        raise ConfigError(
            f"{shown(trains[0].path)} stands beside clients' folders "
            f"({listed(f.name for f in rest)}): if it is a client, rename it; if it "
            "is a split, it must stand in the folder of the client that it belongs to"
        )
    if not rest:
        raise ConfigError(
            f"partitioner = 'folders' finds no client folder in {shown(top.path)}: "
            "each sub-folder is one client, with class folders or Parquet files in it"
        )
    for folder in rest:
        _refuse_empty(folder)
    if all(f.images and not f.metadata for f in rest):
        raise ConfigError(
            f"{shown(top.path)}: with partitioner = 'folders' each folder is a client "
            f"with class folders in it, and {listed(f.name for f in rest)} hold "
            "images: put each image into a folder that is named for its class; if "
            "these folders are the classes, give another partitioner"
        )
    if len({f.name for f in rest}) < len(rest):
        raise ConfigError(f"{shown(top.path)}: two clients' folders have one name")
    return rest, named


def _around_owners(top: Folder) -> Folder:
    """Return the folder that holds the owners: one around all of them is no owner.

    Raises:
        ConfigError: it cannot be told whether the one folder is an owner.
    """
    folder = top
    while not folder.images and not folder.tables and len(folder.folders) == 1:
        (only,) = folder.folders
        lower = Counter(f.name for inner in only.full for f in inner.full)
        holds_tables = len(only.full) > 1 and all(f.num_tables for f in only.full)
        if any(map(split_of, (only.name, *(f.name for f in only.full)))):
            return folder
        if not holds_tables and not any(n > 1 for n in lower.values()):
            return folder
        recurring = [name for name, n in lower.items() if n > 1]
        if recurring and are_numbered(recurring) and not is_plain(only, folder):
            raise ConfigError(
                f"{shown(top.path)} holds one folder, {only.name}. If the clients are "
                f"{listed(f.name for f in only.full)}, give the path of {only.name}; "
                "if it is a client, the others are missing"
            )
        folder = only
    return folder


def _owners_in_splits(top: Folder, columns: Columns) -> Owned:
    """Read `train/north/ill` and the like."""
    parts: dict[str, dict[str, list[Folder]]] = defaultdict(lambda: defaultdict(list))
    server: list[Folder] = []
    for folder in top.full:
        split = split_of(folder.name)
        assert split is not None
        if split == TEST and all(f.images and not f.full for f in folder.full):
            server.append(folder)
            continue
        for owner in folder.full:
            parts[owner.name][split].append(owner)
    lacking = [name for name, splits in parts.items() if TRAIN not in splits]
    if lacking or not parts:
        raise ConfigError(
            f"{shown(top.path)}: {listed(lacking) or 'no client'} has images to "
            "validate or test with and none to train on; with partitioner = 'folders' "
            "each folder in a split is a client"
        )
    trained = [folder for splits in parts.values() for folder in splits[TRAIN]]
    known = _known_classes(trained, columns)
    owners = {}
    for name, splits in sorted(parts.items()):
        owners[name] = Content({})
        for split, of in splits.items():
            contents = [read_set(f, columns, known, is_careful=True) for f in of]
            for content, folder in zip(contents, of, strict=True):
                if content.splits.keys() != {TRAIN}:
                    raise ConfigError(
                        f"{shown(folder.path)} has splits in it, below a split"
                    )
                owners[name].take_over(content)
            found = tables.joined([content.splits[TRAIN] for content in contents])
            owners[name].splits[split] = found
    tests = [_test_of(folder, columns, known) for folder in server]
    return Owned(owners, _merged(tests))


def _test_of(folder: Folder, columns: Columns, known: Known) -> Content:
    """Return a folder's images, all of them for testing."""
    content = read_set(folder, columns, known, is_careful=True)
    content.splits = {TEST: tables.joined(list(content.splits.values()))}
    return content


def _merged(contents: Sequence[Content]) -> Content | None:
    if not contents:
        return None
    first, *others = contents
    for other in others:
        first.splits[TEST] = tables.joined([first.splits[TEST], other.splits[TEST]])
        first.take_over(other)
    return first


def _known_classes(owners: Sequence[Folder], columns: Columns) -> Known:
    """Return the classes that owners have, as far as there is no doubt of them.

    Where an owner has several folders, they are its classes. Where each has one, these
    are classes if they differ, and else a folder around the classes.
    """
    found: set[str] = set()
    singles: list[Folder] = []
    for folder in owners:
        if folder.num_tables:
            continue
        if len(folder.full) > 1:
            for table in read_set(folder, columns, is_careful=True).splits.values():
                found.update(table.class_names)
        elif not split_of(folder.full[0].name):
            singles.append(folder.full[0])
    if not found and len({f.name for f in singles}) > 1:
        found = {f.name for f in singles}
    elif not found and len(singles) > 1:
        found = {inner.name for f in singles for inner in f.full}
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
        refuse_near_splits(part)
        if labelled_in(part, columns):
            continue
        if sum(bool(f.num_tables and not f.num_images) for f in uppers) > 1:
            raise ConfigError(
                f"{shown(top.path)}: there are Parquet files in "
                f"{listed(f.name for f in uppers)}. Are these sites, each with its "
                'own data? Then give partitioner="folders". Else give the partitioner '
                'that is to deal all of it out, such as partitioner="dirichlet"'
            )
        lower = Counter(
            name for upper in uppers for name in {f.name.casefold() for f in upper.full}
        )
        recurring = {name for name, number in lower.items() if number > 1}
        if recurring and all(map(split_of, recurring)):
            raise ConfigError(splits_below(part, uppers))
        if recurring:
            raise ConfigError(_two_readings(top, uppers, columns))
