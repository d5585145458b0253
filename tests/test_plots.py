"""Pictures are looked at by people; here, that they show all there is to show."""

import io

import numpy as np
import pytest
from PIL import Image

from fl_app import plots


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


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (40, 10), (41, 10), (1000, 100)])
def test_partitions_of_any_size(shape: tuple[int, int]) -> None:
    counts = np.random.default_rng(0).integers(0, 50, shape)
    names = [f"class {i}" for i in range(shape[1])]
    assert len(colours(plots.partition(counts, names, "title"))) > 10
