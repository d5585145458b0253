"""What a node has open while it works: the run's options, its data, one model."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message

from fl_app import processes
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
class Hosted:
    """The data that a node has of a run, and the clients it is divided among."""

    config: RunConfig
    dataset: "Dataset"
    partition: "Partition"


@dataclass(frozen=True)
class Workspace(Hosted):
    """What a node keeps between messages of a run: its data and one resident model."""

    model: "nn.Module"
    normalise: "Normalisation"
    copies: "list[nn.Module]" = field(default_factory=list)
    """Of the model, as many as were trained together so far."""

    @cached_property
    def training_examples(self) -> "Examples":
        """The data set's, in memory, the device's own if they fit there; only read."""
        import numpy as np
        import torch

        from fl_app import task

        of = self.dataset
        with warnings.catch_warnings():  # a mapped file that cannot be written to
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images, labels = (
                torch.from_numpy(np.asarray(array))
                for array in (of.train_images, of.train_labels)
            )
        every = task.Examples(images, labels)
        if processes.for_one_message():  # most of them would be moved in vain
            return every
        return every.to(task.default_device())

    def num_examples(self, client: int) -> int:
        """Return the number of a client's training examples."""
        return len(self.partition.split(client)[0])


def options_of(message: Message, context: Context) -> Options:
    """Return the run's options: as the server sends them, or else as submitted."""
    sent = wire.find(message.content, wire.OPTIONS, ConfigRecord)
    resolved = json.loads(str(sent[wire.JSON])) if sent else {}
    return tuple(sorted((resolved or context.run_config).items()))


def agreed_in(message: Message) -> str | None:
    """Return what was agreed on nodes' own data; None where nothing was yet."""
    record = wire.find(message.content, wire.AGREED, ConfigRecord)
    return None if record is None else str(record[wire.JSON])


def hosted(message: Message, context: Context) -> Hosted:
    """Return the data that the message is about; PyTorch is not imported for it."""
    return _cached_data(*_asked(message, context))


def open_workspace(message: Message, context: Context) -> Workspace:
    """Return the data and the model that the message is about."""
    return _cached_workspace(*_asked(message, context))


def with_options(options: Mapping[str, Any]) -> Workspace:
    """Return what one node of a run with these options would have open."""
    return _cached_workspace(tuple(sorted(options.items())), 1, None, "")


def _asked(
    message: Message, context: Context
) -> tuple[Options, int, private.Node | None, str]:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    own = private.Node.of(context.node_config)
    return (
        options_of(message, context),
        wire.integer(task, wire.NUM_NODES),
        own,
        agreed_in(message) or "" if own else "",
    )


@lru_cache(maxsize=1)
def _cached_data(
    options: Options, num_nodes: int, own: private.Node | None, agreed: str
) -> Hosted:
    """Open the data, once per run and process."""
    from fl_app.data import datasets

    config = RunConfig.from_options(dict(options), datasets.recipe_for)
    if own:
        dataset = own.load(agreed, config)
        return Hosted(config, dataset, private.partition(dataset, config))
    dataset = datasets.load(config)
    return Hosted(config, dataset, dataset.partition(config, num_nodes))


@lru_cache(maxsize=1)
def _cached_workspace(
    options: Options, num_nodes: int, own: private.Node | None, agreed: str
) -> Workspace:
    """Build the model beside the data, once per run and process."""
    import torch

    from fl_app import models, task

    data = _cached_data(options, num_nodes, own, agreed)
    config, dataset = data.config, data.dataset
    torch.set_num_threads(config.num_threads)
    shape, classes = dataset.input_shape, len(dataset.class_names)
    model = task.place(models.build(config.model, shape, classes, seed=0))
    return Workspace(
        config,
        dataset,
        data.partition,
        model,
        task.Normalisation(dataset.mean, dataset.std, dataset.full_scale),
    )


def examples_of(space: Workspace, indices: Any) -> "Examples":
    """Return some of the training examples, by their indices; they are not copied."""
    import torch

    from fl_app.task import Examples

    every = space.training_examples
    chosen = torch.from_numpy(indices).to(every.images.device)
    return Examples(every.images, every.labels, chosen)
