"""The node's side: takes a message, trains and validates the clients in it, replies.

Each client is guarded by itself: one that fails is reported with its reason, and the
others count all the same.
"""

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
from fl_app import at_once, mods, processes, work_stealing
from fl_app.client_states import ClientStates
from fl_app.client_work import ClientWork, Memories, Row
from fl_app.config import ConfigError, RunConfig
from fl_app.data import private
from fl_app.data.datasets import recipe_for
from fl_app.data.decoding import level_counts
from fl_app.workspace import agreed_in, hosted, open_workspace, options_of
from strategies import aggregation, wire
from strategies.wire import Arrays

log = logging.getLogger("flwr.fl_app")

app = ClientApp()

Failure = tuple[int, str, str]
"""Client id, reason, traceback."""


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer which clients this node hosts.

    That is any client of a data set that every node can read; or the node's own data,
    of which it first says what must be known to agree on a layout. Or answer how many
    clients it trains fastest at once, if that is what it is asked.
    """
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    if wire.TRY_TOGETHER in task:
        return _try_together(message, context)
    config = RunConfig.from_options(dict(options_of(message, context)), recipe_for)
    own = private.Node.of(context.node_config)
    if config.dataset != private.NAME and own is not None:
        raise ConfigError(
            f"this node has data of its own (data-path): the run must have dataset = "
            f"{private.NAME!r}, it has {config.dataset!r}"
        )
    if config.dataset == private.NAME and own is None:
        raise ConfigError("this node has no data-path in its node-config")
    with _kept_in_log(own is not None):
        if own is not None and agreed_in(message) is None:
            described = ConfigRecord({wire.JSON: own.describe(config)})
            return Message(RecordDict({wire.DESCRIBED: described}), reply_to=message)
        data = hosted(message, context)
    processes.import_ahead("torch")
    if own is None:
        arrays = {wire.LABEL_COUNTS: data.partition.label_counts()}
    else:
        (client,) = wire.integers(task, wire.CLIENT_IDS)
        arrays = {
            wire.LABEL_COUNTS: data.partition.counts_of(client)[None],
            wire.LEVEL_COUNTS: level_counts(data.dataset.train_images),
        }
    if data.partition.own_validation is not None:
        arrays[wire.OWN_VALIDATION] = data.partition.own_validation_counts()
    return Message(RecordDict({wire.HOSTED: wire.pack(arrays)}), reply_to=message)


@contextmanager
def _kept_in_log(is_private: bool) -> Iterator[None]:
    """Keep names of a node's own files and folders from the server."""
    try:
        yield
    except ConfigError as error:
        if not is_private:
            raise
        log.error("%s", error)
        raise ConfigError(
            "this node's own data cannot be read: its log says why"
        ) from None


def _try_together(message: Message, context: Context) -> Message:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    budget = wire.budget_in(task)
    deadline = time.monotonic() + budget
    with processes.watched(budget):
        number = at_once.fastest(
            partial(open_workspace, message, context),
            wire.integer(task, wire.TRY_TOGETHER),
            deadline,
        )
    answer = ConfigRecord({wire.CLIENTS_TOGETHER: number})
    return Message(RecordDict({wire.FASTEST: answer}), reply_to=message)


@app.train(mods=[mods.tell_states, mods.compress])
def train(message: Message, context: Context) -> Message:
    """Validate the global model where asked, then train the clients of the message."""
    return _work(message, context)


@app.evaluate(mods=[mods.compress])
def evaluate(message: Message, context: Context) -> Message:
    """Validate the global model on the clients of the message."""
    return _work(message, context)


def _work(message: Message, context: Context) -> Message:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    budget = wire.budget_in(task)
    deadline = time.monotonic() + budget
    with processes.watched(budget):
        return _train_and_validate(message, context, deadline)


def _train_and_validate(message: Message, context: Context, deadline: float) -> Message:
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    space = open_workspace(message, context)
    received = wire.unpack(wire.take(message.content, wire.MODEL, ArrayRecord))
    options = wire.take(message.content, wire.STRATEGY, ConfigRecord)
    train_ids = wire.integers(task, wire.TRAIN_IDS)
    evaluate_ids = wire.integers(task, wire.EVALUATE_IDS)
    slow = wire.integers(task, wire.EPOCHS)
    epochs = dict(zip(train_ids, slow, strict=True)) if slow else {}
    own, sizes = at_once.arranged(
        [(client, epochs.get(client)) for client in sorted(train_ids)],
        wire.integer(task, wire.CLIENTS_TOGETHER),
        space.num_examples,
    )
    jobs = work_stealing.jobs(own, task, context, space.num_examples)
    round = wire.integer(task, wire.ROUND)
    keeps_state = strategies.load(space.config.strategy).KEEPS_STATE
    memories = _memories(message, context, keeps_state=keeps_state)
    work = ClientWork(space, received, round, dict(options), deadline, memories)

    cohort_size = wire.integer(task, wire.COHORT_SIZE)
    total = aggregation.ExactSum(work.summed, cohort_size, work.arithmetic)
    trained: list[Row] = []
    validated: list[Row] = []
    failed: list[Failure] = []
    not_validated: list[Failure] = []
    updates: dict[int, Arrays] = {}
    single = len(train_ids) == 1 or bool(task.get(wire.SINGLE_UPDATES, 0))
    for client in sorted(evaluate_ids):
        with _guarded(client, not_validated):
            validated += work.validate(client)
    for client, result in work.train_each(jobs, sizes):
        with _guarded(client, failed):
            update, row = result()
            if single:
                examples = int(row[wire.NUM_EXAMPLES])
                aggregation.check_update(update, work.summed, examples)
                updates[client] = dict(update)
            else:
                total.add(update, int(row[wire.NUM_EXAMPLES]))
            trained.append(row)

    reply = RecordDict()
    number = len(updates)
    for client in list(updates):  # no more than one of them in memory twice
        reply[wire.update_of(client, of=number)] = wire.pack(updates.pop(client))
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


def _memories(message: Message, context: Context, *, keeps_state: bool) -> Memories:
    """Return what the clients of a message remember."""
    task = wire.take(message.content, wire.TASK, ConfigRecord)
    beside = wire.find(message.content, wire.BESIDE, ArrayRecord)
    received = wire.unpack(beside) if beside else {}
    states = ClientStates.of(message, context) if keeps_state else None
    return Memories(received, states, wire.states_in(task))


@contextmanager
def _guarded(client: int, failures: list[Failure]) -> Iterator[None]:
    """Keep one client's error from the others: note it, with its traceback."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        failures.append((client, reason, traceback.format_exc()))
