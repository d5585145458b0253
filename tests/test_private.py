"""Nodes with data of their own, against the simulation that reads all of it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from fl_app import client_app, server_app
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from fl_app.data import datasets, private
from strategies.federation import FederationError
from tests.conftest import default_options, make_config
from tests.local_grid import LocalGrid, app_node
from tests.pictures import write_images
from tests.test_run import QUICK, sha


def run(
    results: Path, nodes: dict[int, dict[str, Any] | None], name: str, **changes: Any
) -> RunFolder:
    """Run in one process on nodes with those configurations."""
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    options = default_options() | QUICK | {"num-clients": "auto"} | given
    options |= {"run-name": name, "results-dir": str(results)}
    grid = LocalGrid(
        {node: app_node(client_app.app, options, own) for node, own in nodes.items()}
    )
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    return RunFolder(results / name)


def own(clinics: Path, *names: str) -> dict[int, dict[str, Any] | None]:
    """Nodes with ids in no order, each with one folder."""
    ids = (50, 7, 31, 12)
    return {
        node: {"data-path": str(clinics / name)}
        for node, name in zip(ids, names, strict=False)
    }


def test_private_nodes_make_the_simulations_model(
    tmp_path: Path, clinics: Path
) -> None:
    nodes = own(clinics, "south", "north", "east")
    here = run(
        tmp_path,
        nodes,
        "private",
        dataset="private",
        test_path=str(clinics / "test"),
        min_nodes=3,
    )
    twin = run(
        tmp_path,
        {1: None, 2: None},
        "twin",
        dataset=str(clinics),
        partitioner="folders",
    )
    assert sha(here) == sha(twin)
    ours, theirs = here.metrics(), twin.metrics()
    for key in ("test_accuracy", "test_loss", "validation_accuracy", "train_loss"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    counted = [
        [(r["round"], r["client"], r["num_examples"]) for r in folder.clients()]
        for folder in (here, twin)
    ]
    assert counted[0] == counted[1]
    for folder in (here, twin):
        named = {row["client"]: row["name"] for row in folder.clients()}
        assert named == {0: "east", 1: "north", 2: "south"}


def test_the_server_can_do_without_data(tmp_path: Path, clinics: Path) -> None:
    folder = run(
        tmp_path, own(clinics, "north", "south"), "none", dataset="private", min_nodes=2
    )
    summary = folder.summary()
    assert summary is not None
    assert summary["final_test_accuracy"] is None
    assert all(row["test_accuracy"] is None for row in folder.metrics())
    assert folder.metrics()[-1]["validation_accuracy"] > 0.5


def test_clients_are_named_by_their_option_or_folder(clinics: Path) -> None:
    path = str(clinics / "north")
    node = private.Node.of({"data-path": path})
    named = private.Node.of({"data-path": path, "client-id": "clinic-1"})
    assert node is not None
    assert named is not None
    assert (node.client, named.client) == ("north", "clinic-1")
    assert private.Node.of({"partition-id": 0}) is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"data-path": "/none"}, "there is no such folder"),
        ({"data-path": "relative"}, "is not absolute"),
        (None, "this node has no data-path in its node-config"),
        ({"data-path": "CLINICS/north"}, "another node is client 'north' already"),
        ({"data-path": "ODD"}, "has classes that are not the federation's: caat"),
        ({"data-path": "DEEP"}, "images of mode F"),
    ],
)
def test_a_node_that_does_not_fit_is_left_out_alone(
    tmp_path: Path,
    clinics: Path,
    caplog: pytest.LogCaptureFixture,
    bad: dict[str, Any] | None,
    said: str,
) -> None:
    write_images(tmp_path / "odd", {"caat": 3, "dog": 3})
    (tmp_path / "deep" / "cat").mkdir(parents=True)
    Image.fromarray(np.full((8, 10), 0.5, np.float32)).save(tmp_path / "deep/cat/1.tif")
    for word, path in (
        ("CLINICS", clinics),
        ("ODD", tmp_path / "odd"),
        ("DEEP", tmp_path / "deep"),
    ):
        if bad:
            bad = {"data-path": bad["data-path"].replace(word, str(path))}
    folder = run(
        tmp_path,
        {**own(clinics, "north", "south"), 99: bad},
        "run",
        dataset="private",
        class_names="cat,dog,owl",
        min_nodes=2,
    )
    assert folder.summary() is not None
    assert {row["client"] for row in folder.clients()} == {0, 1}
    warned = [r.getMessage() for r in caplog.records if "does not take part" in r.msg]
    assert any(re.match("Node 99 ", line) and said in line for line in warned)


def test_too_few_that_fit_are_an_error_with_the_reason(
    tmp_path: Path, clinics: Path
) -> None:
    write_images(tmp_path / "odd", {"caat": 3, "dog": 3})
    nodes = {**own(clinics, "north"), 99: {"data-path": str(tmp_path / "odd")}}
    with pytest.raises(FederationError, match="1 nodes can take part.*caat"):
        run(
            tmp_path,
            nodes,
            "run",
            dataset="private",
            test_path=str(clinics / "test"),
            min_nodes=2,
        )
    assert not (tmp_path / "run").exists()


def test_a_shared_data_set_and_a_node_with_its_own_do_not_mix(
    tmp_path: Path, clinics: Path
) -> None:
    with pytest.raises(FederationError, match="the run must have dataset = 'private'"):
        run(tmp_path, own(clinics, "north"), "run", dataset="digits")


def test_private_data_is_not_read_in_one_place() -> None:
    with pytest.raises(ConfigError, match="partitioner = 'folders'"):
        datasets.load(make_config(dataset="private"))


@pytest.mark.parametrize(
    "told",
    [
        "no json",
        "{}",
        '{"client": 3, "class-names": ["a"], "sizes": [[1, 1, 1]], "modes": ["L"]}',
        '{"client": "c", "class-names": [], "sizes": [[1, 1, 1]], "modes": ["L"]}',
        '{"client": "c", "class-names": [3], "sizes": [[1, 1, 1]], "modes": ["L"]}',
        '{"client": "c", "class-names": ["a"], "sizes": [], "modes": ["L"]}',
        '{"client": "c", "class-names": ["a"], "sizes": [[0, 1, 1]], "modes": ["L"]}',
        '{"client": "c", "class-names": ["a"], "sizes": [[1e9, 1, 1]], "modes": ["L"]}',
    ],
)
def test_what_a_node_tells_is_not_trusted(told: str) -> None:
    agreement = private.Agreement(make_config(dataset="private"))
    sound = (
        '{"client": "s", "class-names": ["a", "b"], "sizes": [[4, 6, 9]], '
        '"modes": ["L"]}'
    )
    text, refused = agreement.agree({1: told, 2: sound})
    assert list(refused) == [1]
    assert '"size": [4, 6]' in text
