"""Data sets from wherever they lie: scikit-learn, the Hugging Face Hub, a folder."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config import ConfigError
from fl_app.data import cache, folders, owners, parquet, tables
from fl_app.data.account import Account
from fl_app.data.decoding import (
    Client,
    Source,
    decode,
    describe,
    resized,
    with_test,
)
from fl_app.data.folders import Content
from fl_app.data.layouts import AUTO, Sizing
from fl_app.data.pixels import Form
from fl_app.data.splits import TEST, TRAIN, VALIDATION, split_of
from fl_app.data.tables import BY_NAME, Columns, Table
from fl_app.data.tree import Tree, shown


def read_digits(sizing: Sizing = AUTO) -> cache.Contents:
    """Return scikit-learn's bundled 8x8 digits; grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    if sizing.image_size not in ("auto", 0):
        side = int(sizing.image_size)
        images = resized(images, Form((side, side), "L", sizing.resize))
    arrays = with_test(images, labels, num_classes=10)
    return arrays, describe(arrays, [str(i) for i in range(10)], [])


def read_hub(
    hub_id: str,
    option: str,
    columns: Columns = BY_NAME,
    sizing: Sizing = AUTO,
    *,
    is_own: bool = False,
) -> cache.Contents:
    """Return a data set from the Hugging Face Hub, downloaded by `flwr_datasets`.

    Raises:
        ConfigError: it cannot be had, or holds no images with one class each.
    """
    from flwr_datasets import FederatedDataset
    from flwr_datasets.partitioner import IidPartitioner

    try:
        hub = FederatedDataset(
            dataset=hub_id, partitioners={"train": IidPartitioner(1)}, shuffle=False
        )
        train = _hub_table(hub.load_split("train"), hub_id, columns)
        names = {"train"} | set(hub._dataset)
        joins = [n for n in sorted(names) if is_own and split_of(n) == VALIDATION]
        for name in joins:
            train = tables.joined(
                [train, _hub_table(hub.load_split(name), hub_id, columns)]
            )
        has_test = "test" in names
        test = _hub_table(hub.load_split("test"), hub_id, columns) if has_test else None
    except ConfigError:
        raise
    except Exception as error:  # any of a dozen libraries may raise here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"dataset = {option!r} could not be had from the Hugging Face Hub "
            f"({hub_id}: {reason}): check the name and the network, or point data-dir "
            "at a folder that holds a copy"
        ) from error
    account = Account(num_splits=1 + len(joins) + has_test)
    account.notes += [f"split {name!r} joins training" for name in joins]
    if unread := sorted(names - {"train", "test", *joins}):
        account.notes.append(f"splits left unread: {', '.join(unread)}")
    source = Source([Client(train)], test, is_own=is_own, account=account)
    return cache.in_memory(decode(source, sizing))


def _hub_table(split: Any, source: str, columns: Columns) -> Table:
    """Take the image and the label column out of a `datasets.Dataset`."""
    import datasets

    features = split.features
    images = [n for n, f in features.items() if isinstance(f, datasets.Image)]
    classes = {
        n: list(f.names)
        for n, f in features.items()
        if isinstance(f, datasets.ClassLabel)
    }
    schema = parquet.Schema(list(features), images, classes)
    image, label = parquet.columns_of(source, schema, columns)
    if isinstance(features[image], datasets.Image):
        split = split.cast_column(image, datasets.Image(decode=False))
    table = split.select_columns([image, label]).with_format("arrow")[:]
    return parquet.of_arrow(
        *(table.column(image), table.column(label)),
        source=source,
        label=label,
        class_names=classes.get(label),
        folder=Path(),
    )


def read_folder(
    tree: Tree, columns: Columns, sizing: Sizing, *, is_own: bool = True
) -> cache.Built:
    """Return a folder of classes; its `val` joins the images to train on."""
    content = folders.read_set(tree.top, columns)
    account = _account(tree, [content], columns)
    train = content.splits[TRAIN]
    if validation := content.splits.get(VALIDATION):
        number = len(validation.labels)
        account.notes.append(f"{number:,} of the split for validation join training")
        train = tables.joined([train, validation])
    account.num_splits = len(content.splits)
    test = content.splits.get(TEST)
    source = Source([Client(train)], test, is_own=is_own, account=account)
    return decode(source, sizing)


def read_owners(tree: Tree, columns: Columns, sizing: Sizing) -> cache.Built:
    """Return a folder of folders, one per client; `test/` in it is the server's."""
    owned = owners.read_owners(tree.top, columns)
    contents = [*owned.owners.values(), *([owned.test] if owned.test else [])]
    account = _account(tree, contents, columns)
    tests = [c.splits[TEST] for c in contents if TEST in c.splits]
    clients = [
        Client(content.splits[TRAIN], content.splits.get(VALIDATION), name)
        for name, content in sorted(owned.owners.items())
    ]
    number = sum(len(c.validation.labels) for c in clients if c.validation)
    if number:
        keeping = sum(c.validation is not None for c in clients)
        account.notes.append(
            f"{number:,} are for validation by {keeping} of {len(clients)} clients' "
            "own splits"
        )
    own_tests = len(tests) - (owned.test is not None)
    if own_tests:
        account.notes.append(
            f"clients whose own test images are tested together: {own_tests}"
        )
    if not tests:
        account.notes.append("no image is for testing")
    account.num_owners = len(clients)
    account.num_splits = 1 + bool(number) + bool(tests)
    test = tables.joined(tests) if tests else None
    source = Source(clients, test, take_test=False, is_own=True, account=account)
    return decode(source, sizing)


def read_client(
    tree: Tree, columns: Columns, known: folders.Known
) -> tuple[Client, Account]:
    """Return the images of a folder that is one client's, and what was read of it.

    A split for testing is left where it is: nobody asks a client for it.
    """
    content = folders.read_set(tree.top, columns, known, is_careful=True)
    client = Client(content.splits[TRAIN], content.splits.get(VALIDATION))
    account = _account(tree, [content], columns)
    account.num_splits = len(client.tables)
    account.num_images = sum(len(table.labels) for table in client.tables)
    names = tables.united([table.class_names for table in client.tables])
    account.num_classes = len(names)
    if client.validation:
        number = len(client.validation.labels)
        account.notes.append(f"{number:,} are its own split for validation")
    if test := content.splits.get(TEST):
        account.notes.append(
            f"{len(test.labels):,} of its split for testing left unread"
        )
    return client, account


def read_test(
    tree: Tree, columns: Columns, known: folders.Known
) -> tuple[Table, Account]:
    """Return the images of the server's own test folder, whatever splits it has."""
    content = folders.read_set(tree.top, columns, known)
    table = tables.joined(list(content.splits.values()))
    account = _account(tree, [content], columns)
    account.num_images, account.num_splits = len(table.labels), len(content.splits)
    account.num_classes = len(table.class_names)
    if len(content.splits) > 1:
        account.notes.append("all splits are tested on")
    return table, account


def _account(tree: Tree, contents: list[Content], columns: Columns) -> Account:
    """Begin the account of a folder with what is not read of it.

    Raises:
        ConfigError: columns are named, and no table has been read.
    """
    account = Account(num_leftovers=tree.num_leftovers)
    account.passed_over = tree.top.passed_over()
    used = set[str]().union(*(content.used for content in contents))
    if columns != BY_NAME and not used:
        raise ConfigError(
            f"{shown(tree.top.path)}: no table is read of it, and so image-column = "
            f"{columns.image!r} and label-column = {columns.label!r} name no column: "
            "leave them empty, or mend the table's header"
        )
    for folder in tree.top.walk():
        beside = [*folder.tables, *([folder.metadata] if folder.metadata else [])]
        account.passed_over.update(
            Path(path).suffix.lower() for path in beside if path not in used
        )
    for content in contents:
        account.passed_over.update(content.passed_over)
    said = Counter(c for content in contents for c in content.cautions)
    account.cautions = list(said)
    account.notes = list(dict.fromkeys(n for c in contents for n in c.notes))
    return account
