"""The command that shows a data set as a federation would divide it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from fl_app import album, client_figures, client_table, environment
from fl_app.artifacts import write_atomically
from fl_app.callbacks import describe_partition
from fl_app.client_figures import ClientFigures, Pictured, Skew
from fl_app.config import ConfigError, RunConfig, project_path
from fl_app.data import datasets, private

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset
    from fl_app.data.partition import Partition


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
    config = datasets.settled(config)
    _say_read(console, dataset)
    partition = dataset.partition(config, environment.default_nodes())
    pictured = Pictured.of(dataset)
    clients = client_figures.measure(partition, pictured)
    skew = Skew.of(partition.label_counts())
    _print(console, config, dataset, clients, skew)
    pictures = album.draw(config, dataset, partition, pictured)
    figures = _figures(config, dataset, partition, clients, skew)
    folder = project_path(output, "--output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            if png is None:  # nor shall one of another data set be taken for its own
                (folder / name).unlink(missing_ok=True)
            else:
                write_atomically(folder / name, png)
        text = json.dumps(figures, indent=2) + "\n"
        write_atomically(folder / "partition.json", text.encode())
    except OSError as error:
        raise ConfigError(f"--output {output!r} cannot be written: {error}") from error
    return folder


def _say_read(console: Console, dataset: "Dataset") -> None:
    if dataset.account:
        console.print(Text(dataset.account), soft_wrap=True)
    for warning in dataset.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _print(
    console: Console,
    config: RunConfig,
    dataset: "Dataset",
    clients: list[ClientFigures],
    skew: Skew,
) -> None:
    names = dataset.client_names(config)
    console.print(client_table.build(describe_partition(config), clients, names))
    shape = "x".join(map(str, dataset.input_shape))
    for line in (
        f"{len(clients)} clients, {sum(skew.sizes)} training, "
        f"{sum(client.validation for client in clients)} validation and "
        f"{len(dataset.test_labels)} test examples of shape {shape}, "
        f"{len(dataset.class_names)} classes",
        f"mean Jensen-Shannon divergence of labels: {skew.divergence:.4f} bits "
        "(0: all alike, 1: nothing in common)",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _figures(
    config: RunConfig,
    dataset: "Dataset",
    partition: "Partition",
    clients: list[ClientFigures],
    skew: Skew,
) -> dict[str, Any]:
    """Return what is written to partition.json; lists are in the order of clients."""
    return {
        "dataset": config.dataset,
        "account": dataset.account,
        "warnings": dataset.warnings,
        "partitioner": config.partitioner,
        "seed": config.seed,
        "class_names": dataset.class_names,
        "client_names": dataset.client_names(config),
        "label_counts": partition.label_counts().tolist(),
        "mean_jensen_shannon_divergence_bits": skew.divergence,
        "training_examples": [client.training for client in clients],
        "validation_examples": [client.validation for client in clients],
        "brightness": [client.brightness for client in clients],
        "median_size": [client.median_size for client in clients],
        "resized": [client.resized for client in clients],
    }
