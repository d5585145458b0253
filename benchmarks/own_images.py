"""The default recipe for own images beside a grid of 24 others, on six federations.

    python -m benchmarks.own_images --output FILE [--only FEDERATION] [--default-only]

Draws each federation as a folder of image files, one folder a site, with fresh images
of the same making in `test/`. A run trains 20 rounds in this process, without Ray. Its
figure is the test accuracy in the last round. The grid is 4 models x 3 learning rates x
2 batch sizes; all else is the recipe's. Two processes work, with one thread each.

Results are added to FILE (JSON) run by run. Started again, it skips what FILE holds.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, product
from math import cos, pi, sin
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fl_app.artifacts import write_atomically
from fl_app.data.datasets import OTHER

Array = np.ndarray[Any, Any]
Point = tuple[str, float, int]
"""Model, learning rate and batch size: a cell of the grid."""

PROJECT = Path(__file__).parents[1]
MODELS = ("lenet", "improved-cnn", "cnn", "resnet")
LEARNING_RATES = (0.003, 0.01, 0.03)
BATCH_SIZES = (16, 32)
SEEDS = (0, 1)
ROUNDS = 20
PASS = 0.9
"""Share of the best cell's accuracy that the default must reach."""
_FINER = 3  # shapes are drawn at so many times the size, for smooth edges


@dataclass(frozen=True)
class Federation:
    """Sites with pictures of a few classes, told apart by shapes or by textures."""

    sites: tuple[tuple[int, ...], ...]
    """Number of pictures of each class, by site."""
    test: tuple[int, ...]
    """Number of pictures of each class in `test/`."""
    sides: tuple[int, ...]
    """Width and height, one of these. The most frequent one is the median, too."""
    making: str = "shapes"
    mode: str = "RGB"


_HUNDRED = ((34, 33, 33), (33, 34, 33), (33, 33, 34))
_MISSING = ((34, 33, 33), (50, 50, 0), (33, 33, 34))
_TEST = (150, 150, 150)
FEDERATIONS = {
    "10x30": Federation(((10, 10, 10),) * 10, _TEST, (24,)),
    "grey": Federation(_HUNDRED, _TEST, (20,), "textures", "L"),
    "skew-5:1": Federation(((100, 20, 20),) * 3, (250, 50, 50), (20,), "textures"),
    "missing-class": Federation(_MISSING, _TEST, (24,)),
    "3x100": Federation(_HUNDRED, _TEST, (64, 64, 64, 64, 80, 96, 128)),
    "2x3000": Federation(((750,) * 4,) * 2, (250,) * 4, (16,)),
}


def draw(name: str, folder: Path) -> None:
    """Write a federation's files: `site/class/NNN.png` and `test/class/NNN.png`."""
    random = np.random.default_rng(sum(name.encode()))
    federation = FEDERATIONS[name]
    parts = {f"site-{i}": counts for i, counts in enumerate(federation.sites)}
    for part, counts in (parts | {"test": federation.test}).items():
        for label, count in enumerate(counts):
            place = folder / part / f"class-{label}"
            for number in range(count):
                place.mkdir(parents=True, exist_ok=True)
                picture(federation, label, random).save(place / f"{number:03}.png")


def picture(
    federation: Federation, label: int, random: np.random.Generator
) -> Image.Image:
    """Return one picture of a class; place, size, colours, light and noise vary."""
    side = int(random.choice(federation.sides))
    mask = _MAKINGS[federation.making](label, side, random)
    ground, colour = random.uniform(30, 150, 3), random.uniform(-40, 40, 3)
    colour += random.uniform(50, 100)
    turn, slope = random.uniform(0, 2 * pi), np.linspace(-1, 1, side)
    light = cos(turn) * slope[:, None] + sin(turn) * slope
    noise = random.normal(0, random.uniform(5, 25), (side, side, 1))
    pixels = ground + colour * mask[..., None] + noise
    pixels += random.uniform(0, 40) * light[..., None]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")
    return image.convert(federation.mode)


def _shape(label: int, side: int, random: np.random.Generator) -> Array:
    """Return where (side, side) a disc, cross, triangle or ring lies, in [0, 1]."""
    size = side * _FINER
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    radius = random.uniform(0.22, 0.36) * size
    x, y = random.uniform(0.9 * radius, size - 0.9 * radius, 2)
    turn = random.uniform(-0.4, 0.4)

    def point(degrees: float) -> tuple[float, float]:
        angle = turn + degrees / 180 * pi
        return x + radius * sin(angle), y - radius * cos(angle)

    box = (x - radius, y - radius, x + radius, y + radius)
    if label == 0:
        pen.ellipse(box, fill=255)
    elif label == 1:
        for end in (0, 90):
            ends = (*point(end), *point(end + 180))
            pen.line(ends, fill=255, width=int(0.5 * radius))
    elif label == 2:
        pen.polygon([point(0), point(125), point(235)], fill=255)
    else:
        pen.ellipse(box, outline=255, width=int(0.35 * radius))
    image = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(image, np.float64) / 255


def _texture(label: int, side: int, random: np.random.Generator) -> Array:
    """Return stripes down, stripes across or checks (side, side), in [0, 1]."""
    rows, columns = np.mgrid[:side, :side] / side
    turn = random.uniform(-0.4, 0.4)
    right = cos(turn) * columns + sin(turn) * rows
    down = cos(turn) * rows - sin(turn) * columns
    waves = [
        np.sin(2 * pi * (random.uniform(2, 5) * axis + random.uniform()))
        for axis in (right, down)
    ]
    wave = (waves[0], waves[1], waves[0] * waves[1])[label]
    return (0.5 + 0.5 * wave) * random.uniform(0.4, 1)


_MAKINGS = {"shapes": _shape, "textures": _texture}


def default_point() -> Point:
    """Return the recipe's model, learning rate and batch size."""
    return OTHER.recipe.model, OTHER.recipe.learning_rate, OTHER.recipe.batch_size


def cells(default_only: bool, only: str | None) -> list[tuple[str, Point, int]]:
    """Return all runs as (federation, point, seed), the default's first.

    The default may be a cell of the grid.
    """
    grid = [] if default_only else product(MODELS, LEARNING_RATES, BATCH_SIZES)
    names = [only] if only else FEDERATIONS
    runs = (product(names, points, SEEDS) for points in ([default_point()], grid))
    return list(dict.fromkeys(chain(*runs)))


def measure(cell: tuple[str, Point, int], data: Path) -> dict[str, Any]:
    """Train one cell; return its options and figures."""
    name, point, seed = cell
    started = time.perf_counter()
    varied = dict(zip(("model", "learning-rate", "batch-size"), point, strict=True))
    rows = train({"dataset": str(data / name), "seed": seed} | varied)
    accuracies = [round(row["test_accuracy"], 4) for row in rows]
    return {
        "federation": name,
        "point": point,
        "seed": seed,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "first_train_loss": rows[1]["train_loss"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def train(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run whose node is a call in this process."""
    from flwr.app import Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from fl_app import client_app, environment, server_app
    from tests.local_grid import LocalGrid, app_node

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as results:
        fixed = {"results-dir": results, "partitioner": "folders", "run-name": "run"}
        rounds = {"num-server-rounds": ROUNDS}
        options = environment.default_options(PROJECT) | fixed | rounds | options
        grid = LocalGrid({1: app_node(client_app.app, options)})
        server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
        metrics = (Path(results) / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in metrics.splitlines()]


def table(results: list[dict[str, Any]]) -> str:
    """Return the default beside the best cell, a federation a row (Markdown)."""
    heads = ["federation", "majority", "default", "by seed", "best of the grid"]
    heads += ["accuracy", "by seed", "default / best", "runs"]
    lines = [heads, ["---"] * len(heads)]
    for name, federation in FEDERATIONS.items():
        found: dict[Point, dict[int, float]] = {}
        for row in results:
            if row["federation"] == name:
                by_seed = found.setdefault(tuple(row["point"]), {})
                by_seed[row["seed"]] = row["accuracy"]
        runs = str(sum(map(len, found.values())))
        whole = {p: [by[s] for s in SEEDS] for p, by in found.items() if len(by) == 2}
        if default_point() in whole:
            majority = f"{max(federation.test) / sum(federation.test):.3f}"
            lines.append([name, majority, *_compared(whole), runs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _compared(whole: dict[Point, list[float]]) -> list[str]:
    """Return the middle columns of `table`, from each point's accuracies by seed."""
    best = max(whole, key=lambda point: fmean(whole[point]))
    means = [fmean(whole[point]) for point in (default_point(), best)]
    first, second = (
        [f"{mean:.3f}", ", ".join(f"{accuracy:.3f}" for accuracy in whole[point])]
        for mean, point in zip(means, (default_point(), best), strict=True)
    )
    share = means[0] / means[1]
    judged = f"{share:.3f}" if share >= PASS else f"{share:.3f}, below {PASS}"
    return [*first, "`{}`, {}, {}".format(*best), *second, judged]


def main() -> None:
    """Measure what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", choices=FEDERATIONS)
    parser.add_argument("--default-only", action="store_true")
    given = parser.parse_args()
    held: dict[str, Any] = {"recipe": asdict(OTHER.recipe), "results": []}
    if given.output.exists():
        held = json.loads(given.output.read_text())
    if held["recipe"] != asdict(OTHER.recipe):
        sys.exit(f"{given.output} holds runs of another recipe: give another file")
    done = {(r["federation"], tuple(r["point"]), r["seed"]) for r in held["results"]}
    missing = [c for c in cells(given.default_only, given.only) if c not in done]
    with tempfile.TemporaryDirectory() as folder:
        for name in {cell[0] for cell in missing}:
            draw(name, Path(folder, name))
        os.environ |= {"FL_APP_PROJECT": str(PROJECT), "OMP_NUM_THREADS": "1"}
        os.environ["FL_APP_CACHE"] = f"{folder}/cache"
        work = partial(measure, data=Path(folder))
        with get_context("spawn").Pool(2, maxtasksperchild=20) as pool:
            for row in pool.imap_unordered(work, missing):
                held["results"].append(row)
                write_atomically(given.output, json.dumps(held, indent=1).encode())
                print({k: v for k, v in row.items() if k != "accuracies"}, flush=True)
    print(table(held["results"]))


if __name__ == "__main__":
    main()
