"""The node's side: takes a message, trains and validates the clients in it, replies.

Each client is guarded by itself: one that fails is reported with its reason, and the
others count all the same.
"""

import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

import strategies
from fl_app.config import ConfigError, RunConfig
from fl_app.data import private
from fl_app.data.datasets import recipe_for
from fl_app.data.decoding import level_counts
from strategies import aggregation, wire
from strategies.interfaces import Term
from strategies.randomness import keyed_seed
from strategies.wire import Arrays

if TYPE_CHECKING:
    from torch import nn

    from fl_app.data.datasets import Dataset
    from fl_app.data.partition import Partition
    from fl_app.task import Examples, Normalisation

app = ClientApp()

Row = dict[str, float]
Failure = tuple[int, str, str]
"""Client id, reason, traceback."""
Options = tuple[tuple[str, Any], ...]

_PROCESS = "flwr-clientapp"  # of a SuperNode, for one message
_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class Workspace:
    """What a node keeps between messages of a run: its data and one resident model."""

    config: RunConfig
    dataset: "Dataset"
    partition: "Partition"
    model: "nn.Module"
    normalise: "Normalisation"


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer which clients this node hosts.

    That is any client of a data set that every node can read; or the node's own data,
    of which it first says what must be known to agree on a layout.
    """
    config = RunConfig.from_options(dict(_options(message, context)), recipe_for)
    own = private.Node.of(context.node_config)
    if config.dataset != private.NAME and own is not None:
        raise ConfigError(
            f"this node has data of its own (data-path): the run must have dataset = "
            f"{private.NAME!r}, it has {config.dataset!r}"
        )
    if config.dataset == private.NAME and own is None:
        raise ConfigError("this node has no data-path in its node-config")
    if own is not None and _agreed(message) is None:
        described = ConfigRecord({wire.JSON: own.describe()})
        return Message(RecordDict({wire.DESCRIBED: described}), reply_to=message)
    space = _workspace(message, context)
    if own is None:
        hosted = {wire.LABEL_COUNTS: space.partition.label_counts()}
    else:
        task = wire.take(message.content, wire.TASK, ConfigRecord)
        (client,) = wire.integers(task, wire.CLIENT_IDS)
        hosted = {
            wire.LABEL_COUNTS: space.partition.counts_of(client)[None],
            wire.LEVEL_COUNTS: level_counts(space.dataset.train_images),
        }
    return Message(RecordDict({wire.HOSTED: wire.pack(hosted)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Validate the global model where asked, then train the clients of the message."""
    return _work(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Validate the global model on the clients of the message."""
    return _work(message, context)


@contextmanager
def _watched(message: Message) -> Iterator[None]:
    """End this process if the work hangs: a node works for one message at a time.

    It is the business of processes that Flower starts for one message, which can be
    spared; a simulated node is a process that others need. The watch is the C
    library's, so it also ends what never comes back to Python, and says where it was.
    """
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    budget = task.get(wire.BUDGET)
    if Path(sys.argv[0]).name != _PROCESS or not isinstance(budget, float):
        yield
        return
    faulthandler.dump_traceback_later(budget + _GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _work(message: Message, context: Context) -> Message:
    with _watched(message):
        return _train_and_validate(message, context, time.monotonic())


def _train_and_validate(message: Message, context: Context, began: float) -> Message:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    budget = task.get(wire.BUDGET, inf)
    deadline = began + (budget if isinstance(budget, float) else inf)
    space = _workspace(message, context)
    received = wire.unpack(wire.take(message.content, wire.MODEL, ArrayRecord))
    options = wire.take(message.content, wire.STRATEGY, ConfigRecord)
    train_ids = wire.integers(task, wire.TRAIN_IDS)
    evaluate_ids = wire.integers(task, wire.EVALUATE_IDS)
    round = _integer(task, wire.ROUND)
    work = _ClientWork(space, received, round, dict(options), deadline)

    total = aggregation.ExactSum(work.base, _integer(task, wire.COHORT_SIZE))
    trained: list[Row] = []
    validated: list[Row] = []
    failed: list[Failure] = []
    not_validated: list[Failure] = []
    updates: dict[int, Arrays] = {}
    single = len(train_ids) == 1 or bool(task.get(wire.SINGLE_UPDATES, 0))
    for client in sorted({*train_ids, *evaluate_ids}):
        if client in evaluate_ids:
            with _guarded(client, not_validated):
                validated += work.validate(client)
        if client in train_ids:
            with _guarded(client, failed):
                update, row = work.train(client)
                if single:
                    examples = int(row[wire.NUM_EXAMPLES])
                    aggregation.check_update(update, work.base, examples)
                    updates[client] = update
                else:
                    total.add(update, int(row[wire.NUM_EXAMPLES]))
                trained.append(row)

    reply = RecordDict()
    for client, update in updates.items():
        reply[wire.update_of(client, of=len(updates))] = wire.pack(update)
    if trained and not single:
        reply[wire.SUM] = wire.pack(total.totals)
    for name, rows in ((wire.TRAINED, trained), (wire.VALIDATED, validated)):
        if rows:
            reply[name] = MetricRecord({key: [r[key] for r in rows] for key in rows[0]})
    for name, failures in ((wire.FAILED, failed), (wire.NOT_VALIDATED, not_validated)):
        if failures:
            columns = zip(*failures, strict=True)
            ids, reasons, traces = (list(column) for column in columns)
            reply[name] = ConfigRecord(
                {wire.CLIENT_IDS: ids, wire.REASON: reasons, wire.TRACEBACK: traces}
            )
    return Message(reply, reply_to=message)


@contextmanager
def _guarded(client: int, failures: list[Failure]) -> Iterator[None]:
    """Keep one client's error from the others: note it, with its traceback."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        failures.append((client, reason, traceback.format_exc()))


class _ClientWork:
    """One round's work on single clients, with the model as it was received."""

    def __init__(
        self,
        space: Workspace,
        received: Arrays,
        round: int,
        options: dict[str, Any],
        deadline: float,
    ) -> None:
        self.space = space
        self.deadline = deadline
        self.received = received
        self.round = round
        self.options = options
        self.pooled = space.config.normalisation_policy == "pooled"
        self.base = aggregation.to_moments(received) if self.pooled else received
        """What updates are differences to."""

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("the round's time was up before this client's turn")

    def validate(self, client: int) -> list[Row]:
        """Return the received model's result; nothing without validation examples."""
        from fl_app import task

        self._check_time()
        space = self.space
        examples = _examples(space, space.partition.split(client)[1])
        if len(examples) == 0:
            return []
        task.set_arrays(space.model, self.received)
        result = task.evaluate(
            space.model,
            examples,
            space.normalise,
            num_classes=len(space.dataset.class_names),
        )
        row: Row = {
            wire.CLIENT_IDS: client,
            wire.NUM_EXAMPLES: result.num_examples,
            wire.NUM_CORRECT: result.num_correct,
            wire.LOSS: result.loss,
        }
        return [row]

    def train(self, client: int) -> tuple[Arrays, Row]:
        """Return the client's update and its metrics."""
        from fl_app import task
        from fl_app.data.augment import AUGMENTATIONS

        self._check_time()
        start = time.monotonic()
        space, config = self.space, self.space.config
        examples = _examples(space, space.partition.split(client)[0])
        name = space.dataset.augmentation if config.augment else None
        augment = AUGMENTATIONS[name] if name else None
        seed = keyed_seed(config.seed, "train", round=self.round, client=client)
        task.set_arrays(space.model, self.received)

        def run_training(*, term: Term | None = None) -> Row:
            loss = task.train(
                space.model,
                examples,
                task.TrainOptions.of_round(config, self.round),
                space.normalise,
                seed=seed,
                augment=augment,
                term=term,
                deadline=self.deadline,
            )
            return {wire.LOSS: loss}

        strategy = strategies.load(config.strategy)
        metrics = strategy.client_train(space.model, run_training, self.options)
        local = task.get_arrays(space.model)
        local = aggregation.to_moments(local) if self.pooled else local
        update = aggregation.subtract(local, self.base)
        row = {
            wire.CLIENT_IDS: client,
            wire.NUM_EXAMPLES: len(examples),
            wire.UPDATE_NORM: aggregation.norm(update),
            wire.SECONDS: time.monotonic() - start,
        }
        return update, row | metrics


def _options(message: Message, context: Context) -> Options:
    """Return the run's options: as the server sends them, or else as submitted."""
    sent = wire.find(message.content, wire.OPTIONS, ConfigRecord)
    resolved = json.loads(str(sent[wire.JSON])) if sent else {}
    return tuple(sorted((resolved or context.run_config).items()))


def _agreed(message: Message) -> str | None:
    record = wire.find(message.content, wire.AGREED, ConfigRecord)
    return None if record is None else str(record[wire.JSON])


def _workspace(message: Message, context: Context) -> Workspace:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    own = private.Node.of(context.node_config)
    return _cached_workspace(
        _options(message, context),
        _integer(task, wire.NUM_NODES),
        own,
        _agreed(message) or "" if own else "",
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


def _examples(space: Workspace, indices: Any) -> "Examples":
    import torch

    from fl_app.task import Examples

    return Examples(
        torch.from_numpy(space.dataset.train_images[indices]),
        torch.from_numpy(space.dataset.train_labels[indices]),
    )


def _integer(record: ConfigRecord, key: str) -> int:
    value = record[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} must be an integer, got {value!r}")
    return value
