"""What a tree of folders means: splits and classes; or why that cannot be told.

The class is the first level below the set, and deeper folders belong to it. Splits come
from exact names of folders, where they stand over classes that agree; names of image
files decide nothing. What could be read in two ways is refused, with both.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fl_app.config import ConfigError
from fl_app.data import metadata, parquet, tables
from fl_app.data.account import kinds
from fl_app.data.splits import (
    TRAIN,
    listed,
    mention_splits,
    refuse_near_splits,
    split_of,
    split_of_table,
)
from fl_app.data.tables import BY_NAME, Columns, Table
from fl_app.data.tree import UNREAD_PICTURES, Folder, shown

Known = frozenset[str]
"""Names of classes that others of the federation have, or the options."""
NOTHING: Known = frozenset()
_PLAIN = frozenset(
    (
        *("images", "image", "imgs", "img", "pictures", "photos", "scans"),
        *("data", "dataset", "datasets", "archive", "export"),
    )
)
"""Names, in small letters, that nobody gives to a class or a client."""


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

    def take_over(self, other: "Content") -> None:
        """Add what was noticed in reading another one."""
        self.passed_over.update(other.passed_over)
        self.used |= other.used
        self.cautions += other.cautions
        self.notes += other.notes


def read_set(
    top: Folder,
    columns: Columns = BY_NAME,
    known: Known = NOTHING,
    *,
    is_careful: bool = False,
) -> Content:
    """Return what a folder of classes holds, by split.

    Args:
        top: the folder.
        columns: of tables, where the options name them.
        known: names of classes: a folder called so is not looked through.
        is_careful: whether the set may hold one class alone, with folders in it.

    Raises:
        ConfigError: there is nothing in it, or it cannot be told what it means.
    """
    content = Content({})
    if pictured := _pictured(top, columns):
        return _of_parquet(top, pictured, columns, content)
    folder = inside(top, columns, known, is_careful=is_careful)
    splits = _splits(folder, columns)
    if splits is None:
        content.cautions += _cautions(folder, columns)
        content.splits[TRAIN] = _of_classes(folder, columns, content)
        if folder is not top and split_of(folder.name) not in (None, TRAIN):
            content.cautions.append(_alone(folder.name))
    else:
        _agree(splits, columns, known, content, is_careful=is_careful)
    return content


def _alone(split: str) -> str:
    return f"{split} is the only split there is: it is read as the whole set"


def _cautions(folder: Folder, columns: Columns) -> list[str]:
    """Say what is odd about class folders."""
    if labelled_in(folder, columns):
        return []
    found = [
        f"{f.name} is read as a class, and not as a split: its neighbours are classes"
        for f in folder.full
        if split_of(f.name) and not f.images
    ]
    return found + [
        f"{f.name} is no class: it holds no image that is read, but {kinds(others)}"
        for f in folder.folders
        if not f.num_images and not f.num_tables and (others := f.passed_over())
    ]


def inside(
    top: Folder, columns: Columns, known: Known = NOTHING, *, is_careful: bool = False
) -> Folder:
    """Return the folder that holds the classes or splits: one around all is no level.

    Of a set that may hold one class alone, a folder around others is not looked through
    where classes are known and those are none, or where all of those have numbers in
    their names: patients and years are called so.

    Raises:
        ConfigError: only one chain of folders leads to the images, so that it cannot
            be told which of them is the class; or one folder around others may be it.
    """
    chain = [top]
    while True:
        folder = chain[-1]
        labelled = metadata.gives_labels(folder.metadata, columns)
        if folder.images or folder.tables or labelled or len(folder.full) != 1:
            break
        if any(map(_unread_pictures, folder.folders)):
            break  # beside the one there are others, which are told of
        (only,) = folder.full
        if only.name in known:
            return folder
        if is_careful and _may_be_class(only, folder, known):
            if known:
                return folder
            raise ConfigError(
                f"{shown(only.path)} holds all images, in the folders "
                f"{listed(f.name for f in only.full)}. If these are the classes, give "
                f"the path of {only.name}; if {only.name} is the one class, name the "
                "federation's classes with class-names"
            )
        chain.append(only)
    last = chain[-1]
    if not last.images or labelled or len(chain) < 2:
        return last
    if len(chain) == 2 or split_of(chain[-2].name):  # one class, around its images
        return chain[-2]
    raise ConfigError(
        f"{shown(top.path)}: all images lie in "
        f"{'/'.join(f.name for f in chain[1:])}, and each of these folders may be the "
        "class: give the path of the folder that holds the class folder"
        + ("; or name the federation's classes with class-names" if is_careful else "")
    )


def _may_be_class(only: Folder, around: Folder, known: Known) -> bool:
    """Whether a folder around others may be a class, and those patients or years."""
    inner = {f.name for f in only.full}
    return not (
        len(inner) < 2
        or any(map(split_of, (only.name, *inner)))
        or only.num_tables
        or inner & known
        or is_plain(only, around)
        or not (known or are_numbered(inner))
    )


def is_plain(folder: Folder, around: Folder) -> bool:
    """Whether a folder's name says that it is a mere folder around others."""
    return folder.name.casefold() in {*_PLAIN, around.name.casefold()}


def are_numbered(names: Iterable[str]) -> bool:
    """Whether all names have a digit in them, as those of patients have."""
    return all(any(c.isdigit() for c in name) for name in names)


# --- classes


def _of_classes(folder: Folder, columns: Columns, content: Content) -> Table:
    """Return the images of a folder of class folders."""
    if labelled := labelled_in(folder, columns):
        return _of_labels(folder, labelled, columns, content)
    if folder.images:
        raise ConfigError(loose(folder))
    if not folder.full:
        raise ConfigError(_nothing(folder))
    for inner in folder.folders:
        _refuse_lost(inner)
    _refuse_splits_below(folder)
    refuse_near_splits(folder)
    paths, labels = [], []
    for inner in folder.full:
        images = inner.all_images()
        paths += images
        labels += [inner.name] * len(images)
    return tables.of_files(paths, labels)


def loose(folder: Folder) -> str:
    """Return why images that lie in no class folder are refused."""
    beside = " beside folders" if folder.full else ""
    more = f" and {len(folder.images) - 1:,} more" if len(folder.images) > 1 else ""
    said = (
        f"{shown(folder.path)} holds images{beside} "
        f"({shown(os.path.basename(folder.images[0]))}{more}): put each into a folder "
        "that is named for its class, or name them in a metadata.csv (file_name,label)"
    )
    if folder.metadata:
        header = ", ".join(metadata.metadata_columns(folder.metadata))
        said += f". Its metadata.csv has the columns {header}: see label-column"
    return said


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
    if unread := _unread_pictures(folder):
        raise ConfigError(
            f"{shown(folder.path)} holds {kinds(unread)} and no image that is read"
        )


def _unread_pictures(folder: Folder) -> dict[str, int]:
    """Return numbers of pictures by kind, of a folder that holds only unread ones."""
    if folder.num_images or folder.num_tables:
        return {}
    others = folder.passed_over()
    return {kind: n for kind, n in others.items() if kind in UNREAD_PICTURES}


def _refuse_splits_below(folder: Folder) -> None:
    below = [f for c in folder.full for f in c.full if split_of(f.name)]
    if len(below) > 1:
        raise ConfigError(splits_below(folder, folder.full))


# --- splits


def _splits(folder: Folder, columns: Columns) -> dict[str, list[Folder]] | None:
    """Return the folders of each split; None if there are none."""
    full = folder.full
    named = [f for f in full if split_of(f.name)]
    if not named or folder.images:
        return None
    if metadata.gives_labels(folder.metadata, columns):
        raise ConfigError(
            f"{shown(str(folder.metadata))} gives classes of images in "
            f"{listed(f.name for f in named)}, which may be splits: put a metadata.csv "
            "into each split, with names relative to it"
        )
    over = [f for f in named if not f.images or labelled_in(f, columns)]
    below = {name.casefold() for f in over for name in _names(f)}
    if len(named) == len(full):
        if len(over) < len(named):
            flat = next(f for f in named if f not in over)
            raise ConfigError(
                f"{shown(flat.path)} is called as a split and holds images without a "
                "class folder: put each image into a folder that is named for its "
                "class, or move the folder away; if it is a class, rename it"
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
        f"{shown(folder.path)}: {listed(f.name for f in over)} may be a split with "
        f"classes in it, and stands beside {listed(f.name for f in others)}, which "
        "are none: keep splits alone in their folder; if it is a class, rename it"
    )


def _names(folder: Folder) -> list[str]:
    return [inner.name for inner in folder.full]


def _agree(
    splits: Mapping[str, Sequence[Folder]],
    columns: Columns,
    known: Known,
    content: Content,
    *,
    is_careful: bool,
) -> None:
    """Read the splits; refuse those whose classes have nothing in common."""
    folders = [f for of in splits.values() for f in of]
    if TRAIN not in splits:
        raise ConfigError(
            f"{listed(shown(f.path) for f in folders)} are called as splits, and "
            "none of them is train"
        )
    several = [f for f in folders if len(f.full) > 1]
    known |= {inner.name for f in several for inner in f.full}
    for split, of in splits.items():
        found = [
            _of_classes(
                inside(f, columns, known, is_careful=is_careful), columns, content
            )
            for f in of
        ]
        content.splits[split] = tables.joined(found)
    names = {split: set(t.class_names) for split, t in content.splits.items()}
    for other, theirs in names.items():
        if not names[TRAIN] & theirs:
            raise ConfigError(
                f"{listed(shown(f.path) for f in folders)} are called as splits, and "
                f"have no class in common: {listed(sorted(names[TRAIN]))} in train, "
                f"{listed(sorted(theirs))} in {other}"
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


def labelled_in(folder: Folder, columns: Columns) -> list[Folder]:
    """Return the folders whose metadata.csv gives classes: this, or those in it."""
    if metadata.gives_labels(folder.metadata, columns):
        return [folder]
    return [f for f in folder.folders if metadata.gives_labels(f.metadata, columns)]


def _of_labels(
    folder: Folder, labelled: Sequence[Folder], columns: Columns, content: Content
) -> Table:
    found = []
    if folder.images and folder not in labelled:
        raise ConfigError(loose(folder))
    for one in labelled:
        images = one.all_images()
        table = metadata.of_metadata(str(one.metadata), images, columns)
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
    schemas = {path: parquet.schema_of(path, columns.image) for path in paths}
    pictured = [p for p in paths if schemas[p].images]
    if top.num_images and any(parquet.holds_images(p, schemas[p]) for p in pictured):
        raise ConfigError(
            f"{shown(top.path)} holds image files and a Parquet file with images "
            f"({shown(pictured[0])}): keep one of them"
        )
    if paths and not pictured and not top.num_images:
        parquet.columns_of(shown(paths[0]), schemas[paths[0]], columns)
    return pictured


def _of_parquet(
    top: Folder, paths: Sequence[str], columns: Columns, content: Content
) -> Content:
    images, named = top.all_images(), Counter[str]()
    splits: dict[str | None, list[str]] = defaultdict(list)
    for path in paths:
        splits[split_of_table(top, path)].append(path)
    if None in splits and (len(splits) > 1 or mention_splits(top, splits[None])):
        some = listed(os.path.basename(p) for p in splits[None])
        raise ConfigError(
            f"{shown(top.path)}: it cannot be told to which split {some} belong: call "
            "the files train.parquet and test.parquet, or put them into folders of "
            "that name"
        )
    for split, of in splits.items():
        found = [parquet.of_parquet(path, columns, images) for path in of]
        for table in found:
            if isinstance(table.images, parquet.Cells):
                named.update(table.images.paths.values())
        content.splits[split or TRAIN] = tables.joined(found)
    if repeated := [path for path, number in named.items() if number > 1]:
        raise ConfigError(
            f"{shown(top.path)}: tables name {shown(repeated[0])} more than once: an "
            "image has one class"
        )
    if len(images) > len(named):
        content.passed_over["images not named in a table"] = len(images) - len(named)
    if TRAIN not in content.splits:
        if len(content.splits) > 1:
            raise ConfigError(
                f"{shown(top.path)} has splits {sorted(content.splits)} but no 'train'"
            )
        ((alone, table),) = content.splits.items()
        content.splits = {TRAIN: table}
        content.cautions.append(_alone(alone))
    content.used.update(paths)
    return content


def splits_below(folder: Folder, uppers: Sequence[Folder]) -> str:
    """Return why splits below the first level are refused."""
    some = next(f for upper in uppers for f in upper.full if split_of(f.name))
    upper = next(f for f in uppers if some in f.full)
    return (
        f"{shown(folder.path)}: there are splits below "
        f"{listed(f.name for f in uppers)}. If these are sites, each with its own "
        f'splits, give partitioner="folders". If they are classes, splits must stand '
        f"over them: move "
        f"{upper.name}/{some.name} to {some.name}/{upper.name}, and so on"
    )
