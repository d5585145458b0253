"""Pictures are looked at by people; here, that they show all there is to show."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fl_app import data_pictures, partition_picture, plots


def row(number: int, **changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "round": number,
        "test_accuracy": 0.1 * number,
        "test_loss": 2.0 / (number + 1),
        "train_loss": None if number == 0 else 1.5 / number,
        "validation_accuracy": 0.1 * number,
    }
    return base | changes


def colours(png: bytes) -> set[tuple[int, int, int]]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.width > 600
    counted = image.getcolors(1 << 24)
    assert counted is not None
    return {colour for _, colour in counted}  # type: ignore[misc]


Draw = Callable[..., bytes]
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def test_curves_show_server_and_clients() -> None:
    drawn = colours(plots.curves([row(i) for i in range(6)], "title"))
    assert {BLUE, ORANGE} <= drawn


def test_curves_leave_out_what_was_not_measured() -> None:
    empty = {"test_accuracy": None, "test_loss": None}
    rows = [row(i, **empty, validation_accuracy=None) for i in range(3)]
    drawn = colours(plots.curves(rows, "title"))
    assert BLUE not in drawn
    assert ORANGE in drawn


@pytest.mark.parametrize("number", [0, 1, 500])
def test_curves_of_any_length(number: int) -> None:
    assert colours(plots.curves([row(i) for i in range(number)], "title"))


SHAPES = [(1, 2), (5, 10), (40, 10), (41, 10), (20, 40), (1000, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "draw",
    [
        partition_picture.partition,
        partition_picture.partition_map,
        data_pictures.labels,
    ],
)
def test_partitions_of_any_size(draw: Draw, shape: tuple[int, int]) -> None:
    counts = np.random.default_rng(0).integers(0, 50, shape)
    names = [f"class {i}" for i in range(shape[1])]
    assert len(colours(draw(counts, names, "title"))) > 10


def test_percentages_are_exact() -> None:
    axes = plots.new_figure(3, 3).subplots()
    axes.set_xlim(0, 0.011)
    plots.percentages(axes.xaxis)
    ticks = axes.xaxis.get_major_formatter().format_ticks([0, 0.005, 0.01])
    assert ticks == ["0 %", "0.5 %", "1 %"]
