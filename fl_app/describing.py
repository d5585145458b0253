"""The command that shows a data set as a federation would divide it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fl_app import environment, plots
from fl_app.artifacts import write_atomically
from fl_app.callbacks import describe_partition
from fl_app.config import ConfigError, RunConfig, project_path
from fl_app.data import datasets, private
from strategies.randomness import keyed_generator

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset

_EXAMPLES = 40

Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Skew:
    """How unlike the clients are."""

    sizes: list[int]
    """Training examples of each client."""
    classes: list[int]
    """Classes that each client has examples of."""
    divergence: float
    """Mean Jensen-Shannon divergence of the clients' labels from those of all, in bits:
    0 where every client has the same shares of the classes, at most 1."""

    @classmethod
    def of(cls, counts: Counts) -> "Skew":
        """Measure a (num_clients, num_classes) table of examples."""
        everybody = counts.sum(axis=0)
        apart = [_divergence(mine, everybody) for mine in counts]
        return cls(
            [int(n) for n in counts.sum(axis=1)],
            [int(n) for n in (counts > 0).sum(axis=1)],
            float(np.mean(apart)),
        )


def _divergence(p: Counts, q: Counts) -> float:
    """Return the Jensen-Shannon divergence of two histograms, in bits (Lin 1991)."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(p, q, base=2)) ** 2  # SciPy's is the square root


def write(console: Console, config: RunConfig, output: str) -> Path:
    """Print how the data is divided; write pictures and figures; return their folder.

    Raises:
        ConfigError: the options do not fit the data, or nothing can be written.
    """
    if config.dataset == private.NAME:
        raise ConfigError(
            "dataset = 'private' is on the nodes: look at a node's folder with "
            'dataset="FOLDER"'
        )
    dataset = datasets.load(config)
    partition = dataset.partition(config, environment.default_nodes())
    counts = partition.label_counts()
    skew = Skew.of(counts)
    _print(console, config, dataset, skew)
    title = describe_partition(config)
    names, clients = dataset.class_names, dataset.client_names(config)
    pictures = {
        "labels.png": plots.partition(counts, names, title, clients),
        "heat-map.png": plots.partition_map(counts, names, title),
        "examples.png": _examples(dataset, config),
    }
    figures = {
        "dataset": config.dataset,
        "partitioner": config.partitioner,
        "seed": config.seed,
        "class_names": names,
        "client_names": clients,
        "label_counts": counts.tolist(),
        "mean_jensen_shannon_divergence_bits": skew.divergence,
    }
    folder = project_path(output, "--output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            write_atomically(folder / name, png)
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(folder / "partition.json", text.encode())
    except OSError as error:
        raise ConfigError(f"--output {output!r} cannot be written: {error}") from error
    return folder


def _print(console: Console, config: RunConfig, dataset: "Dataset", skew: Skew) -> None:
    table = Table(title=describe_partition(config), title_justify="left")
    for column in ("", "least", "median", "most"):
        table.add_column(column, justify="right" if column else "left")
    for label, values in (
        ("training examples", skew.sizes),
        ("classes", skew.classes),
    ):
        middle = float(np.median(values))
        table.add_row(
            f"{label} of a client", f"{min(values)}", f"{middle:g}", f"{max(values)}"
        )
    console.print(table)
    shape = "x".join(map(str, dataset.input_shape))
    for line in (
        f"{len(skew.sizes)} clients, {sum(skew.sizes)} training and "
        f"{len(dataset.test_labels)} test examples of shape {shape}, "
        f"{len(dataset.class_names)} classes",
        f"mean Jensen-Shannon divergence of labels: {skew.divergence:.4f} bits "
        "(0: all alike, 1: nothing in common)",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _examples(dataset: "Dataset", config: RunConfig) -> bytes:
    """Return a PNG of training examples, drawn at random."""
    draws = keyed_generator(config.seed, "examples")
    number = min(_EXAMPLES, len(dataset.train_labels))
    chosen = np.sort(draws.permutation(len(dataset.train_labels))[:number])
    images = np.asarray(dataset.train_images[chosen]) / dataset.full_scale
    labels = [dataset.class_names[int(y)] for y in dataset.train_labels[chosen]]
    return plots.examples(images, labels, Path(config.dataset).name)
