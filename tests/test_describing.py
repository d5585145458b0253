"""`fl-app data`: the measured skew by hand, and what it prints and writes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fl_app import describing, plots
from fl_app.config import ConfigError
from fl_app.describing import Skew
from tests.conftest import make_config
from tests.test_plots import colours


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


def test_it_grows_with_the_skew(tmp_path: Path) -> None:
    found = []
    for alpha in (100.0, 1.0, 0.1):
        folder = describing.write(
            Console(file=io.StringIO()),
            make_config(dirichlet_alpha=alpha, seed=1),
            str(tmp_path),
        )
        figures = json.loads((folder / "partition.json").read_text())
        found.append(figures["mean_jensen_shannon_divergence_bits"])
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
        *("labels.png", "heat-map.png", "examples.png", "partition.json")
    }
    for path in folder.glob("*.png"):
        assert len(colours(path.read_bytes())) > 5
    counts = np.array(
        json.loads((folder / "partition.json").read_text())["label_counts"]
    )
    assert ((counts > 0).sum(axis=1) == 2).all()
    again = describing.write(console, config, str(tmp_path / "again"))
    assert all(
        (again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir()
    )


def test_features_that_are_no_images_are_drawn_too(tmp_path: Path) -> None:
    describing.write(
        Console(file=io.StringIO()), make_config(dataset="synthetic"), str(tmp_path)
    )
    assert (tmp_path / "examples.png").exists()


@pytest.mark.parametrize("number", [1, 7, 8, 9])
def test_any_number_of_examples(number: int) -> None:
    images = np.random.default_rng(0).random((number, 3, 6, 5))
    assert plots.examples(images, ["a$b"] * number, "title")


def test_private_data_is_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is on the nodes"):
        describing.write(Console(), make_config(dataset="private"), str(tmp_path))
