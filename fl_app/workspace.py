"""What a node has open while it works: the run's options, its data, one model."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message

from fl_app.config import RunConfig
from fl_app.data import private
from strategies import wire

if TYPE_CHECKING:
    from torch import nn

    from fl_app.data.datasets import Dataset
    from fl_app.data.partition import Partition
    from fl_app.task import Examples, Normalisation

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Workspace:
    """What a node keeps between messages of a run: its data and one resident model."""

    config: RunConfig
    dataset: "Dataset"
    partition: "Partition"
    model: "nn.Module"
    normalise: "Normalisation"
    copies: "list[nn.Module]" = field(default_factory=list)
    """Of the model, as many as were trained together so far."""


def options_of(message: Message, context: Context) -> Options:
    """Return the run's options: as the server sends them, or else as submitted."""
    sent = wire.find(message.content, wire.OPTIONS, ConfigRecord)
    resolved = json.loads(str(sent[wire.JSON])) if sent else {}
    return tuple(sorted((resolved or context.run_config).items()))


def agreed_in(message: Message) -> str | None:
    """Return what was agreed on nodes' own data; None where nothing was yet."""
    record = wire.find(message.content, wire.AGREED, ConfigRecord)
    return None if record is None else str(record[wire.JSON])


def open_workspace(message: Message, context: Context) -> Workspace:
    """Return the data and the model that the message is about."""
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    own = private.Node.of(context.node_config)
    return _cached_workspace(
        options_of(message, context),
        wire.integer(task, wire.NUM_NODES),
        own,
        agreed_in(message) or "" if own else "",
    )


@lru_cache(maxsize=1)
def _cached_workspace(
    options: Options, num_nodes: int, own: private.Node | None, agreed: str
) -> Workspace:
    """Open the data and build the model, once per run and process."""
    import torch

    from fl_app import models, task
    from fl_app.data import datasets

    config = RunConfig.from_options(dict(options), datasets.recipe_for)
    torch.set_num_threads(config.num_threads)
    dataset = own.load(agreed) if own else datasets.load(config)
    shape, classes = dataset.input_shape, len(dataset.class_names)
    model = task.place(models.build(config.model, shape, classes, seed=0))
    return Workspace(
        config,
        dataset,
        private.partition(dataset, config)
        if own
        else dataset.partition(config, num_nodes),
        model,
        task.Normalisation(dataset.mean, dataset.std, dataset.full_scale),
    )


def examples_of(space: Workspace, indices: Any) -> "Examples":
    """Return some of the training examples."""
    import torch

    from fl_app.task import Examples

    return Examples(
        torch.from_numpy(space.dataset.train_images[indices]),
        torch.from_numpy(space.dataset.train_labels[indices]),
    )
