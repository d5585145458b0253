"""Owners of folders, by the server and on nodes of their own; each kind of folder."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fl_app import describing
from fl_app.config import ConfigError
from fl_app.data.private import Agreement, Node
from tests import test_private, test_run
from tests.conftest import make_config
from tests.own_folders import (
    encoded,
    leave_macs_files,
    look,
    photo,
    plant,
    put,
    refusal,
    unreadable_name,
    write_parquet,
)

Draw = Callable[[Path], Any]
Nodes = dict[int, dict[str, Any] | None]


# --- owners


def clinics(root: Path, *owners: str, number: int = 8) -> Path:
    for owner in owners:
        plant(root / owner, {"healthy": number, "ill": number})
    return root


@pytest.mark.parametrize(
    "owners",
    [
        ["Köln Süd", "St. Mary's"],
        ['ward "B"', "ward C"],
        ["a=b, c", "back\\slash", "{braces}", "[x]"],
        ["dev-hospital", "north"],
        ["test site", "training ward"],
        ["1", "10", "9"],
    ],
)
def test_owners_as_people_name_them(tmp_path: Path, owners: list[str]) -> None:
    seen = look(clinics(tmp_path, *owners), "folders", validation_fraction=0.0)
    assert sorted(seen.data.owners) == sorted(owners)
    for train, _ in seen.owned.values():
        assert train == {"healthy": 8, "ill": 8}
    assert len(seen.data.test_labels) == 0
    assert seen.data.client_names(seen.config) == seen.data.owners


def test_names_of_owners_files_decide_nothing(tmp_path: Path) -> None:
    clinics(tmp_path, "north", "dev-hospital", number=10)
    folder = tmp_path / "north" / "ill"
    (folder / "003.png").rename(folder / "test 003.png")
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    assert np.bincount(seen.data.train_owners).tolist() == [20, 20]  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "notes.txt"])
def test_an_owner_without_images_is_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    clinics(tmp_path, "north", "south")
    (tmp_path / "west").mkdir()
    if content:
        put(tmp_path / "west" / content, "soon")
    assert "west" in refusal(tmp_path, "folders")


def test_owners_of_a_single_image(tmp_path: Path) -> None:
    for k in range(4):
        plant(tmp_path / f"client{k}", {("cat", "dog")[k % 2]: 1})
    seen = look(tmp_path, "folders")
    one = [{"cat": 1, "dog": 0}, {"cat": 0, "dog": 1}]
    nothing = {"cat": 0, "dog": 0}
    assert seen.owned == {f"client{k}": (one[k % 2], nothing) for k in range(4)}


@pytest.mark.parametrize("name", ["test", "Testing", "TEST"])
def test_the_servers_test_folder(tmp_path: Path, name: str) -> None:
    clinics(tmp_path, "north", "south")
    plant(tmp_path / name, {"healthy": 3, "ill": 2})
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    assert seen.data.owners == ["north", "south"]
    assert seen.test == {"healthy": 3, "ill": 2}


def test_an_owners_validation_images_are_its_validation(tmp_path: Path) -> None:
    for split, number in (("train", 10), ("val", 3)):
        plant(tmp_path / "north" / split, {"healthy": number, "ill": number})
    clinics(tmp_path, "south", number=10)
    seen = look(tmp_path, "folders", validation_fraction=0.1)
    assert seen.owned["north"] == ({"healthy": 10, "ill": 10},
                                   {"healthy": 3, "ill": 3})  # fmt: skip
    train, validation = seen.owned["south"]
    assert (sum(train.values()), sum(validation.values())) == (18, 2)
    assert seen.data.own_validation is not None
    assert int(np.sum(seen.data.own_validation)) == 6
    without = look(tmp_path, "folders", validation_fraction=0.0)
    assert without.owned["north"][1] == {"healthy": 3, "ill": 3}


def test_an_owners_test_images_are_tested_on(tmp_path: Path) -> None:
    for split, number in (("train", 10), ("test", 3)):
        plant(tmp_path / "north" / split, {"healthy": number, "ill": number})
    clinics(tmp_path, "south", number=10)
    plant(tmp_path / "test", {"healthy": 2, "ill": 1})
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    assert seen.owned["north"][0] == {"healthy": 10, "ill": 10}
    assert seen.test == {"healthy": 5, "ill": 4}


def test_splits_above_owners(tmp_path: Path) -> None:
    for split, number in (("train", 10), ("val", 2)):
        clinics(tmp_path / split, "north", "south", number=number)
    seen = look(tmp_path, "folders")
    both = ({"healthy": 10, "ill": 10}, {"healthy": 2, "ill": 2})
    assert seen.owned == {"north": both, "south": both}


def test_owners_of_splits_are_told_from_splits_of_owners(tmp_path: Path) -> None:
    for owner in ("north", "south"):
        for split, number in (("Training", 6), ("Validation", 2), ("Testing", 1)):
            plant(tmp_path / owner / split, {"healthy": number, "ill": number})
    seen = look(tmp_path, "folders")
    both = ({"healthy": 6, "ill": 6}, {"healthy": 2, "ill": 2})
    assert seen.owned == {"north": both, "south": both}
    assert seen.test == {"healthy": 2, "ill": 2}


def test_an_owner_may_have_a_folder_around_all(tmp_path: Path) -> None:
    clinics(tmp_path / "north", "export 2026")
    clinics(tmp_path, "south")
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    eight = ({"healthy": 8, "ill": 8}, {"healthy": 0, "ill": 0})
    assert seen.owned == {"north": eight, "south": eight}


def test_an_owner_of_one_class_with_folders_in_it(tmp_path: Path) -> None:
    """`ill` is a class that another owner has: no folder around all."""
    clinics(tmp_path, "north")
    plant(tmp_path / "south" / "ill", {"p1": 4, "p2": 4})
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    assert seen.data.class_names == ["healthy", "ill"]
    assert seen.owned["south"][0] == {"healthy": 0, "ill": 8}


def test_a_folder_around_all_owners(tmp_path: Path) -> None:
    clinics(tmp_path / "clinics", "north", "south")
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    eight = ({"healthy": 8, "ill": 8}, {"healthy": 0, "ill": 0})
    assert seen.owned == {"north": eight, "south": eight}


def test_owners_are_not_taken_without_being_asked(tmp_path: Path) -> None:
    clinics(tmp_path, "north", "south")
    said = refusal(tmp_path, "auto", num_clients=2)
    assert "folders" in said
    assert "north" in said


def test_owners_with_tables(tmp_path: Path) -> None:
    clinics(tmp_path, "north")
    columns = {"image": [photo(40), photo(90)], "label": ["ill", "healthy"]}
    write_parquet(tmp_path / "south" / "train.parquet", columns)
    seen = look(tmp_path, "folders", validation_fraction=0.0)
    assert seen.owned["north"][0] == {"healthy": 8, "ill": 8}
    assert seen.owned["south"][0] == {"healthy": 1, "ill": 1}


# --- the same folders by `fl-app data`, in a run and on private nodes


def splits(root: Path) -> None:
    for split, number in (("train", 10), ("val", 4), ("test", 3)):
        plant(root / split, {"cat": number, "dog": number})


def wrapped(root: Path) -> None:
    plant(root / "export", {"cat": 10, "dog": 10})


def untidy(root: Path) -> None:
    plant(root, {"cat": 10, "dog": 10})
    leave_macs_files(root, "cat", ["000.png"])
    put(root / "dog" / "Thumbs.db", b"\xd0\xcf\x11\xe0")
    put(root / "dog" / "notes.txt", "none")


def linked(root: Path) -> None:
    plant(root.parent / "disk2", {"cat": 10, "dog": 10})
    root.mkdir(parents=True)
    for name in ("cat", "dog"):
        (root / name).symlink_to(root.parent / "disk2" / name)
    (root / "dog" / "gone.png").symlink_to(root / "nowhere")


def nested(root: Path) -> None:
    plant(root, {"cat/a/b": 6, "cat": 4, "dog/c": 10})


def named_train(root: Path) -> None:
    plant(root, {"cat": 10, "train": 10})


def encoded_otherwise(root: Path) -> None:
    plant(root, {unreadable_name("Läsion"): 10, "gesund": 10})


def photographed(root: Path) -> None:
    plant(root, {"cat": 4, "dog": 10}, name="IMG_{:03d}.JPG", size=(24, 18))
    plant(root, {"cat": 6}, name="edited {}.tif")


def in_parquet(root: Path) -> None:
    images = [photo(50 + 100 * (i % 2)) for i in range(20)]
    columns = {"image": images, "label": [["cat", "dog"][i % 2] for i in range(20)]}
    write_parquet(root / "train.parquet", columns)


def in_a_table(root: Path) -> None:
    rows = ["file_name,label"]
    for i in range(20):
        put(root / "images" / f"{i}.png", photo(50 + 100 * (i % 2)))
        rows.append(f"images/{i}.png,{['cat', 'dog'][i % 2]}")
    put(root / "metadata.csv", "\n".join(rows))


KINDS = (splits, wrapped, untidy, linked, nested, named_train, encoded_otherwise,
         photographed, in_parquet, in_a_table)  # fmt: skip
"""Each draws two classes of ten; `splits` draws four and three more of each."""


@pytest.mark.parametrize("draw", KINDS)
def test_the_server_reads_each_kind(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "set")
    seen = look(tmp_path / "set")
    train, test = (14, 3) if draw is splits else (8, 2)
    assert [*seen.train.values(), *seen.test.values()] == [train, train, test, test]


def test_private_nodes_read_each_kind_as_the_server_does(tmp_path: Path) -> None:
    """One federation of all kinds; the simulation of its folders makes its model."""
    nodes: Nodes = {}
    for k, draw in enumerate(KINDS):
        root = tmp_path / "set" / draw.__name__
        place = tmp_path / "elsewhere" / draw.__name__ if draw is linked else root
        draw(place)
        if place != root:
            root.parent.mkdir(exist_ok=True)
            root.symlink_to(place)
        nodes[7 * k + 3] = {"data-path": str(root), "client-id": draw.__name__}
    named: dict[str, Any] = {"num_server_rounds": 1, "min_fraction": 1.0}
    own = test_private.run(
        tmp_path, nodes, "own", dataset="private", min_nodes=len(KINDS), **named
    )
    twin = test_private.run(
        tmp_path,
        {1: None, 2: None},
        "twin",
        dataset=str(tmp_path / "set"),
        partitioner="folders",
        **named,
    )
    tested = look(tmp_path / "set", "folders").test
    assert tested == {"Läsion": 0, "cat": 3, "dog": 3, "gesund": 0, "train": 0}
    for folder in (own, twin):
        counted = {
            row["name"]: row["num_examples"]
            for row in folder.clients()
            if "num_examples" in row
        }
        apart = {"splits": 20}  # and a tenth of each other's images is for validation
        assert counted == {d.__name__: 18 for d in KINDS} | apart
    assert test_run.sha(own) == test_run.sha(twin)
    ours, theirs = own.metrics()[-1], twin.metrics()[-1]
    assert ours["validation_accuracy"] == theirs["validation_accuracy"]


def test_a_run_trains_on_what_lies_there(tmp_path: Path) -> None:
    splits(tmp_path / "set")
    folder = test_run.run(
        tmp_path,
        dataset=str(tmp_path / "set"),
        partitioner="iid",
        num_clients=2,
        num_server_rounds=1,
        validation_fraction=0.0,
    )
    assert sum(row["num_examples"] for row in folder.clients()) == 2 * 14
    sixths = folder.metrics()[-1]["test_accuracy"] * 2 * 3
    assert sixths == pytest.approx(round(sixths))


def test_the_data_command_shows_what_lies_there(tmp_path: Path) -> None:
    counts = {unreadable_name("Läsion"): 5, "gesund": 4}
    for split in ("train", "val", "test"):
        plant(tmp_path / "set" / split, counts)
    said = io.StringIO()
    config = make_config(
        dataset=str(tmp_path / "set"), partitioner="iid", num_clients=2,
        validation_fraction=0.0,
    )  # fmt: skip
    folder = describing.write(Console(file=said, width=500), config, str(tmp_path))
    figures = json.loads((folder / "partition.json").read_text())
    assert figures["class_names"] == ["Läsion", "gesund"]
    assert np.sum(figures["label_counts"], axis=0).tolist() == [10, 8]
    assert "9 test" in said.getvalue()
    assert look(tmp_path / "set").data.account in said.getvalue()


def private(path: Path, results: Path, name: str = "own", **options: Any) -> Any:
    given = {"dataset": "private", "num_server_rounds": 1} | options
    return test_private.run(results, {5: {"data-path": str(path)}}, name, **given)


def test_a_nodes_validation_images_are_its_validation(tmp_path: Path) -> None:
    """The same model as where the server reads the folder of folders."""
    draws = np.random.default_rng(0)
    for owner in ("north", "south"):
        for split, number in (("train", 12), ("val", 3)):
            for i in range(2 * number):
                noise = draws.integers(120 * (i % 2), 120 * (i % 2) + 130, (8, 10))
                path = tmp_path / "set" / owner / split / "ab"[i % 2] / f"{i}.png"
                put(path, encoded(noise.astype(np.uint8)))
    own: Nodes = {
        7: {"data-path": str(tmp_path / "set" / "north")},
        3: {"data-path": str(tmp_path / "set" / "south")},
    }
    nodes = test_private.run(tmp_path, own, "own", dataset="private", min_nodes=2)
    twin = test_private.run(
        tmp_path,
        {1: None},
        "twin",
        dataset=str(tmp_path / "set"),
        partitioner="folders",
    )
    assert test_run.sha(nodes) == test_run.sha(twin)
    for ours, theirs in zip(nodes.metrics(), twin.metrics(), strict=True):
        assert ours["validation_accuracy"] == theirs["validation_accuracy"]
    assert {row["num_examples"] for row in nodes.clients()} == {24}


def test_a_nodes_test_images_stay_unread_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, number in (("train", 10), ("test", 3)):
        plant(tmp_path / "set" / split, {"cat": number, "dog": number})
    with caplog.at_level(logging.INFO):
        folder = private(tmp_path / "set", tmp_path, validation_fraction=0.0)
    assert {row["num_examples"] for row in folder.clients()} == {20}
    logged = [record.getMessage() for record in caplog.records]
    assert any("test" in line and "read" in line for line in logged)


def test_what_a_node_read_is_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untidy(tmp_path / "set")
    with caplog.at_level(logging.INFO):
        private(tmp_path / "set", tmp_path)
    logged = [record.getMessage() for record in caplog.records]
    assert any("passed over 1 file" in line for line in logged)


def test_a_node_of_one_class_with_folders_in_it(tmp_path: Path) -> None:
    """The federation's classes tell that `ill` is no folder around all."""
    plant(tmp_path / "set" / "ill", {"p1": 4, "p2": 4})
    folder = private(
        tmp_path / "set", tmp_path, class_names="healthy,ill", validation_fraction=0.0
    )
    assert {row["num_examples"] for row in folder.clients()} == {8}


def test_the_servers_test_path_is_read_alike(tmp_path: Path) -> None:
    plant(tmp_path / "set", {"cat": 6, "dog": 6})
    wrapped(tmp_path / "judged")
    leave_macs_files(tmp_path / "judged", "export/cat", ["000.png"])
    folder = private(tmp_path / "set", tmp_path, test_path=str(tmp_path / "judged"))
    assert folder.metrics()[-1]["test_accuracy"] is not None


def test_a_nodes_damaged_image_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("north", "south", "odd"):
        plant(tmp_path / name, {"cat": 5, "dog": 5})
    put(tmp_path / "odd" / "cat" / "broken.png", photo()[:-40])
    names = ("north", "south", "odd")
    nodes: Nodes = {
        k: {"data-path": str(tmp_path / name)} for k, name in enumerate(names, 7)
    }
    folder = test_private.run(
        tmp_path, nodes, "own", dataset="private", min_nodes=2, num_server_rounds=1
    )
    assert {row["client"] for row in folder.clients()} == {0, 1}
    logged = [record.getMessage() for record in caplog.records]
    assert any("broken.png" in line for line in logged)


@pytest.mark.parametrize("names", [("p01", "p02"), ("2019", "2020")])
def test_one_class_at_each_owner_is_not_looked_through(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    plant(tmp_path, {f"north/ill/{name}": 4 for name in names})
    plant(tmp_path, {f"south/healthy/{name}": 4 for name in names})
    assert look(tmp_path, "folders").data.class_names == ["healthy", "ill"]


def test_one_class_with_patients_is_never_told_by_their_names(tmp_path: Path) -> None:
    plant(tmp_path, {"ill/p01": 4, "ill/p02": 4})
    node = Node(tmp_path, "north")
    with pytest.raises(ConfigError, match="class-names"):
        node.describe(make_config(dataset="private"))
    told = node.describe(make_config(dataset="private", class_names="ill,healthy"))
    assert json.loads(told)["class-names"] == ["ill"]


def test_one_site_with_patients_is_not_taken_for_its_classes(tmp_path: Path) -> None:
    plant(
        tmp_path, {f"north/{c}/{p}": 3 for c in ("ill", "well") for p in ("p1", "p2")}
    )
    assert "north" in refusal(tmp_path, "folders")


def test_what_a_node_cannot_read_stays_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "bad" / "ill" / "Mustermann_1962.png", b"no image")
    plant(tmp_path / "good", {"ill": 6, "well": 6})
    nodes: dict[int, dict[str, Any] | None] = {
        1: {"data-path": str(tmp_path / "bad")},
        2: {"data-path": str(tmp_path / "good")},
    }
    test_private.run(tmp_path, nodes, "private", dataset="private", min_nodes=1)
    told = [
        r.getMessage() for r in caplog.records if "does not take part" in r.getMessage()
    ]
    assert len(told) == 1
    assert "its log says why" in told[0]
    assert "Mustermann" not in told[0]
    assert any("Mustermann" in r.getMessage() for r in caplog.records)


def test_the_servers_test_images_are_accounted_for(tmp_path: Path) -> None:
    plant(tmp_path / "test", {"ill": 2, "well": 2})
    put(tmp_path / "test" / "ill" / "1.heic", b"")
    config = make_config(dataset="private", test_path=str(tmp_path / "test"))
    plant(tmp_path / "node", {"ill": 2, "well": 2})
    agreement = Agreement(config)
    agreement.agree({1: Node(tmp_path / "node", "n").describe(config)})
    agreement.complete([np.ones((3, 256), np.int64)])
    data = agreement.dataset()
    assert "read 4 images" in data.account
    assert "1 .heic" in data.account
    assert data.warnings


def test_splits_of_one_kind_over_owners_are_read_together(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 2, "dev": 3}
    for split, number in counts.items():
        plant(tmp_path, {f"{split}/{o}/{c}": number for o in ("n", "s") for c in "ab"})
    data = look(tmp_path, "folders").data
    assert len(data.train_labels) == 2 * 2 * (6 + 2 + 3)
    assert data.own_validation is not None
    assert int(data.own_validation.sum()) == 2 * 2 * (2 + 3)
