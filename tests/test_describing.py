"""`fl-app data`: the measured figures by hand, and what it prints and writes."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from fl_app import (
    album,
    client_figures,
    client_table,
    data_pictures,
    describing,
    plots,
)
from fl_app.client_figures import ClientFigures, Pictured, Skew, percent
from fl_app.config import ConfigError
from fl_app.data import datasets
from fl_app.data.datasets import Dataset
from tests.conftest import make_config
from tests.test_lettering import NAMES
from tests.test_plots import colours

Figures = dict[str, Any]


def test_the_divergence_by_hand() -> None:
    alike = Skew.of(np.array([[1, 3], [10, 30]]))
    assert alike.divergence == pytest.approx(0, abs=1e-12)
    apart = Skew.of(np.array([[8, 0], [0, 8]]))
    # Of (1, 0) from (1/2, 1/2): the mean of their KL divergences from the middle.
    p, q = np.array([1.0, 1e-300]), np.array([0.5, 0.5])
    m = (p + q) / 2
    by_hand = (np.sum(p * np.log2(p / m)) + np.sum(q * np.log2(q / m))) / 2
    assert apart.divergence == pytest.approx(by_hand, rel=1e-9)
    assert apart.sizes == [8, 8]
    assert apart.classes == [1, 1]
    nobody = Skew.of(np.array([[8, 0], [0, 8], [0, 0]]))
    assert nobody.divergence == apart.divergence


def made(owners: Sequence[str], each: int = 10, colour: bool = False) -> Dataset:
    """Draw a data set: owner i has `each` images or more, at first of level 10 i."""
    draws = np.random.default_rng(0)
    numbers = each + np.arange(len(owners)) % 7
    whose = np.repeat(np.arange(len(owners)), numbers)
    images = np.empty((len(whose), 3 if colour else 1, 6, 8), np.uint8)
    images[:] = (10 * whose % 256)[:, None, None, None]
    labels = draws.integers(0, 3, len(whose))
    sizes = np.full((len(whose), 2), (8, 6), np.int32)
    sizes[::2] = (40, 20)
    return Dataset(
        name="made",
        train_images=images,
        train_labels=labels,
        test_images=images[:4],
        test_labels=labels[:4],
        class_names=["_a", "$b$", "猫"],
        mean=(0.5,),
        std=(0.5,),
        full_scale=255.0,
        augmentation=None,
        owners=list(owners),
        train_owners=whose,
        train_sizes=sizes,
        account="read 10 images of 3 classes from 1 split; passed over 2 files: 2 .txt",
        warnings=["2 of 12 files were passed over: [2] .txt"],
    )


Describe = Callable[[Dataset], tuple[str, Path]]


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Describe:
    """Return what describes a data set of owners: its text and its folder."""

    def run(dataset: Dataset) -> tuple[str, Path]:
        monkeypatch.setattr(datasets, "load", lambda config: dataset)
        config = make_config(dataset="../made", partitioner="folders", num_clients=0)
        said = io.StringIO()
        console = Console(file=said, width=130)
        folder = describing.write(console, config, str(tmp_path / "out"))
        return said.getvalue(), folder

    return run


def read(folder: Path) -> Figures:
    return dict(json.loads((folder / "partition.json").read_text()))


def test_figures_of_the_clients_by_hand(describe: Describe) -> None:
    _, folder = describe(made(["north", "south", "east"]))
    figures = read(folder)
    assert figures["client_names"] == ["north", "south", "east"]
    assert figures["training_examples"] == [9, 10, 11]
    assert figures["validation_examples"] == [1, 1, 1]
    assert figures["brightness"] == pytest.approx([0, 10 / 255, 20 / 255])
    # Every other image is 40 x 20; where those are half, the median lies between.
    assert figures["median_size"] == [[24, 13], [40, 20], [24, 13]]
    assert figures["resized"] == pytest.approx([1 / 2, 6 / 11, 1 / 2])
    counts = np.array(figures["label_counts"])
    assert counts.sum(axis=1).tolist() == figures["training_examples"]


def test_brightness_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made(["a", "b", "c"], colour=True)
    whole = Pictured.of(dataset).brightness
    monkeypatch.setattr(client_figures, "_AT_ONCE", 7)
    parts = Pictured.of(dataset).brightness
    assert whole is not None
    assert parts is not None
    assert parts.tolist() == whole.tolist()
    direct = np.asarray(dataset.train_images).mean(axis=(1, 2, 3)) / 255
    assert whole == pytest.approx(direct)


def test_owners_are_named_in_the_table(describe: Describe) -> None:
    dataset = made(["north", "[b]south[/b]", "东"])
    text, _ = describe(dataset)
    assert text.startswith(dataset.account + "\n")
    assert f"warning: {dataset.warnings[0]}" in text
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [row.split("│")[2].strip() for row in rows] == dataset.owners
    cells = [cell.strip() for cell in rows[0].split("│")]
    assert cells[3:5] == ["9", "1"]
    assert cells[6:9] == ["0 %", "24x13", "50 %"]


def test_many_clients_are_summarised_and_the_ends_named(describe: Describe) -> None:
    dataset = made([f"ward {i}" for i in range(50)])
    assert dataset.train_sizes is not None
    dataset.train_sizes[:] = (8, 6)
    dataset.train_sizes[dataset.train_owners == 8] = (9, 9)
    text, folder = describe(dataset)
    bright = next(line for line in text.splitlines() if "brightness" in line)
    cells = [cell.strip() for cell in bright.split("│")]
    # 250 / 255 at ward 25, after which the levels begin anew; 0 at ward 0 alone.
    assert cells[2] == "0 % (ward 0)"
    assert cells[4] == "98 % (ward 25)"
    resized = next(line for line in text.splitlines() if "resized" in line)
    assert [cell.strip() for cell in resized.split("│")][2:5] == [
        *("0 %", "0 %", "100 % (ward 8)")
    ]
    assert {p.name for p in folder.iterdir()} == {
        *("labels.png", "heat-map.png", "examples.png", "images.png", "partition.json")
    }


def test_the_table_of_nobody_in_particular() -> None:
    one = ClientFigures(5, 0, 1, None, None, None)
    said = io.StringIO()
    console = Console(file=said, width=100)
    console.print(client_table.build("[x]", [one, replace(one, training=6)]))
    console.print(client_table.build("many", [one] * 49 + [replace(one, training=6)]))
    text = said.getvalue()
    assert "[x]" in text
    assert "brightness" not in text
    assert "6 (client 49)" in text


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0, "0 %"), (0.001, "<1 %"), (0.42, "42 %"), (0.9999, ">99 %"), (1, "100 %")],
)
def test_percent(fraction: float, said: str) -> None:
    assert percent(fraction) == said


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are drawn, in order."""
    figures: list[Figure] = []
    to_png = plots.to_png

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return to_png(figure)

    monkeypatch.setattr(plots, "to_png", keep)
    return figures


def texts(figure: Figure) -> set[str]:
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize("number", [3, 30])
def test_owners_are_named_in_every_picture(
    describe: Describe, drawn: list[Figure], number: int
) -> None:
    owners = [f"ward {i}" for i in range(number)]
    describe(made(owners))
    labels, heat_map, examples, images = drawn
    for figure in (labels, heat_map, images):
        assert set(owners) <= texts(figure)
    if number == 3:
        assert set(owners) <= texts(examples)
    else:
        beneath = {text.split("\n")[-1] for text in texts(examples)}
        assert len(beneath & set(owners)) > 10


def test_many_owners_are_named_as_far_as_there_is_room(
    describe: Describe, drawn: list[Figure]
) -> None:
    describe(made([f"ward {i}" for i in range(100)]))
    labels, heat_map, _, images = drawn
    for figure in (labels, heat_map):
        assert 30 <= sum(text.startswith("ward ") for text in texts(figure)) <= 40
    assert any("ward 0 to ward 51" in text for text in texts(images))


def test_the_heat_map_holds_whole_numbers(
    describe: Describe, drawn: list[Figure]
) -> None:
    _, folder = describe(made(["north", "south", "east"]))
    counts = np.array(read(folder)["label_counts"])
    cells = {(*t.get_position(), t.get_text()) for t in drawn[1].axes[0].texts}
    assert cells == {(c, i, str(n)) for (i, c), n in np.ndenumerate(counts) if n}


@pytest.mark.parametrize("number", [1, 2, 41])
def test_ticks_of_counts_are_whole(
    describe: Describe, drawn: list[Figure], number: int
) -> None:
    describe(made([f"{i}!" for i in range(number)], each=2))
    for axis in (
        drawn[0].axes[0].yaxis if number > 40 else drawn[0].axes[0].xaxis,
        drawn[1].axes[1].xaxis,
    ):
        assert all(float(tick).is_integer() for tick in axis.get_majorticklocs())
        said = [tick.get_text() for tick in axis.get_majorticklabels()]
        assert all(text.isdecimal() for text in said)


@pytest.mark.parametrize("copies", [1, 4])
def test_any_name_is_described_without_a_warning(
    describe: Describe, copies: int
) -> None:
    names = [name.replace("\udc80", "") or "?" for name in NAMES]
    owners = [f"{name}{i or ''}" for i in range(copies) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, folder = describe(made(owners, each=3))
    assert read(folder)["client_names"] == owners


def test_it_grows_with_the_skew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(album, "draw", lambda *given: {})
    found = []
    for alpha in (100.0, 1.0, 0.1):
        folder = describing.write(
            Console(file=io.StringIO()),
            make_config(dirichlet_alpha=alpha, seed=1),
            str(tmp_path),
        )
        found.append(read(folder)["mean_jensen_shannon_divergence_bits"])
    assert 0 < found[0] < found[1] < found[2] < 1


def test_what_is_printed_and_written(tmp_path: Path) -> None:
    said = io.StringIO()
    config = make_config(partitioner="classes", classes_per_client=2, num_clients=5)
    console = Console(file=said, width=120)
    folder = describing.write(console, config, str(tmp_path / "new"))
    text = said.getvalue()
    assert "digits, divided by classes, 2 per client" in text
    assert "5 clients" in text
    assert "359 test examples of shape 1x8x8, 10 classes" in text
    assert {p.name for p in folder.iterdir()} == {
        *("labels.png", "heat-map.png", "examples.png", "images.png", "partition.json")
    }
    for path in folder.glob("*.png"):
        assert len(colours(path.read_bytes())) > 5
    figures = read(folder)
    assert (np.array(figures["label_counts"]) > 0).sum(axis=1).tolist() == [2] * 5
    assert figures["median_size"] == [None] * 5  # there is no file that has one
    assert all(0.2 < bright < 0.4 for bright in figures["brightness"])
    again = describing.write(console, config, str(tmp_path / "again"))
    assert all(
        (again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir()
    )


def test_owners_give_the_same_bytes_again(describe: Describe) -> None:
    _, folder = describe(made(["north", "南", "$east$"], colour=True))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    describe(made(["north", "南", "$east$"], colour=True))
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clients_in_folders(clinics: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    config = make_config(dataset=str(clinics), partitioner="folders", num_clients=0)
    folder = describing.write(Console(file=said, width=120), config, str(tmp_path))
    figures = read(folder)
    assert figures["client_names"] == ["east", "north", "south"]
    assert figures["median_size"] == [[16, 16], [10, 8], [10, 8]]
    assert all(name in said.getvalue() for name in figures["client_names"])
    assert figures["account"] in said.getvalue()
    assert "passed over 2 files" in figures["account"]


def test_features_that_are_no_images_are_drawn_too(tmp_path: Path) -> None:
    (tmp_path / "images.png").write_bytes(b"of another data set")
    describing.write(
        Console(file=io.StringIO()), make_config(dataset="synthetic"), str(tmp_path)
    )
    assert (tmp_path / "examples.png").exists()
    assert not (tmp_path / "images.png").exists()
    assert set(read(tmp_path)["brightness"]) == {None}


@pytest.mark.parametrize("number", [1, 7, 8, 9])
@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 1, 60), (1, 9, 2)])
def test_any_number_of_examples(number: int, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).random((number, *shape))
    assert data_pictures.examples(images, [r"a\$b"] * number, "ti$t$le")


def test_clients_with_less_than_a_row() -> None:
    images = [np.zeros((n, 1, 4, 4)) for n in (0, 1, 8)]
    labels = [[], ["a"], ["b"] * 8]
    names = ["none", "one", "eight"]
    assert data_pictures.client_examples(images, labels, names, "title")


def test_a_client_with_validation_alone(describe: Describe) -> None:
    dataset = made(["north", "south", "east"])
    kept = dataset.train_owners == 1
    text, folder = describe(replace(dataset, own_validation=kept))
    assert read(folder)["training_examples"] == [9, 0, 11]
    assert read(folder)["validation_examples"] == [1, 11, 1]
    assert "nan" not in text


def test_private_data_is_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is on the nodes"):
        describing.write(Console(), make_config(dataset="private"), str(tmp_path))
