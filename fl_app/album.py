"""All pictures of a data set as a federation would divide it, by the file's name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app import brightness_picture, data_pictures, lettering, partition_picture
from fl_app.callbacks import describe_partition
from fl_app.client_figures import Pictured
from fl_app.config import RunConfig
from strategies.randomness import keyed_generator

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset
    from fl_app.data.partition import Partition

_EXAMPLES = 40
"""Examples in the picture of many clients."""
_LONGEST = 14
"""Characters of a label above an example: as many as its width takes."""


def draw(
    config: RunConfig, dataset: "Dataset", partition: "Partition", pictured: Pictured
) -> dict[str, bytes | None]:
    """Return a PNG for each file; None where there is nothing to be shown."""
    title = describe_partition(config)
    names = dataset.client_names(config)
    about = (partition.label_counts(), dataset.class_names, title, names)
    few = len(partition.clients) <= data_pictures.MAX_ROWS
    examples = _rows_of_examples if few else _mixed_examples
    return {
        "labels.png": data_pictures.labels(*about),
        "heat-map.png": partition_picture.partition_map(*about),
        "examples.png": examples(config, dataset, partition),
        "images.png": _images(partition, pictured, title, names),
    }


def _rows_of_examples(
    config: RunConfig, dataset: "Dataset", partition: "Partition"
) -> bytes:
    """Draw training examples of each client at random, in the order of the classes."""
    images, labels = [], []
    for client in range(len(partition.clients)):
        draws = keyed_generator(config.seed, "examples", client=client)
        chosen = draws.permutation(partition.split(client)[0])[: data_pictures.COLUMNS]
        classes = np.asarray(dataset.train_labels)[chosen]
        chosen = chosen[np.lexsort((chosen, classes))]
        images.append(_scaled(dataset, chosen))
        labels.append(_classes_of(dataset, chosen))
    names = dataset.client_names(config)
    clients = lettering.labels(names) or [f"client {c}" for c in range(len(images))]
    title = Path(config.dataset).name
    return data_pictures.client_examples(images, labels, clients, title)


def _mixed_examples(
    config: RunConfig, dataset: "Dataset", partition: "Partition"
) -> bytes:
    """Draw training examples of all clients at random, each under its class.

    Where clients have names, that of the example's client is below the class.
    """
    draws = keyed_generator(config.seed, "examples")
    number = min(_EXAMPLES, len(dataset.train_labels))
    chosen = np.sort(draws.permutation(len(dataset.train_labels))[:number])
    labels = _classes_of(dataset, chosen)
    if names := lettering.labels(dataset.client_names(config), _LONGEST):
        holders = {int(i): c for c, mine in enumerate(partition.clients) for i in mine}
        labels = [
            f"{label}\n{names[holders[int(i)]]}"
            for label, i in zip(labels, chosen, strict=True)
        ]
    title = Path(config.dataset).name
    return data_pictures.examples(_scaled(dataset, chosen), labels, title)


def _scaled(dataset: "Dataset", chosen: Any) -> Any:
    return np.asarray(dataset.train_images[chosen]) / dataset.full_scale


def _classes_of(dataset: "Dataset", chosen: Any) -> list[str]:
    labels = lettering.labels(dataset.class_names, _LONGEST)
    return [labels[int(y)] for y in dataset.train_labels[chosen]]


def _images(
    partition: "Partition", pictured: Pictured, title: str, names: list[str]
) -> bytes | None:
    """Draw the sizes and the brightness of each client's images; None of features."""
    if pictured.brightness is None:
        return None
    shorter = resized = None
    if pictured.sizes is not None and pictured.resized is not None:
        sides = pictured.sizes.min(axis=1)
        shorter = [sides[mine] for mine in partition.clients]
        resized = [float(pictured.resized[mine].mean()) for mine in partition.clients]
    brightness = [pictured.brightness[mine] for mine in partition.clients]
    return brightness_picture.draw(brightness, shorter, resized, title, names)
