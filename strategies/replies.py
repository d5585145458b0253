"""Replies of a round, taken in one by one: checked, summed, and then forgotten.

Memory does not grow with the cohort: of a reply's arrays only their sum is kept. What a
node sends is not trusted: whatever is wrong with a reply, its clients are left out with
the reason, and the round goes on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies import wire
from strategies.aggregation import ExactSum, UpdateError
from strategies.federation import Reply
from strategies.wire import Arrays

log = logging.getLogger("flwr.fl_app")

Row = dict[str, float]


@dataclass(frozen=True)
class ClientFailure:
    """A client left out of a round, and why."""

    client_id: int
    node_id: int
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Validation:
    """The clients' verdict on a global model, over their own validation data."""

    accuracy: float
    loss: float
    num_examples: int


class Tally:
    """Takes in a round's replies one by one; keeps sums, not replies."""

    def __init__(
        self,
        num_examples: Callable[[int], int],
        model: Arrays | None = None,
        cohort_size: int = 1,
    ) -> None:
        """Start empty.

        Args:
            num_examples: number of training examples of a client, by its id.
            model: what updates are differences to; None if nobody trains.
            cohort_size: number of clients that train.
        """
        self._num_examples = num_examples
        self.total = ExactSum(model or {}, cohort_size)
        self.trained: list[Row] = []
        self.validated: list[Row] = []
        self.failures: list[ClientFailure] = []
        self.upload_bytes = 0

    def add(self, reply: Reply, sent: RecordDict) -> None:
        """Count in what answers `sent`, or each client in it as failed."""
        task = wire.take(sent, wire.TASK, ConfigRecord)
        asked = wire.integers(task, wire.TRAIN_IDS)
        if reply.content is None:
            self._fail(reply, asked, reply.error)
            return
        try:
            size = wire.num_bytes(reply.content)
            ids = wire.integers(task, wire.EVALUATE_IDS)
            validated = _validated(reply.content, ids)
            not_validated = _failures(reply, wire.NOT_VALIDATED)
            failed = _failures(reply, wire.FAILED)
            trained = _rows(reply.content, wire.TRAINED, {wire.LOSS})
            self._check_clients(trained, failed, asked)
            self._add_updates(reply.content, trained)
        except Exception as error:  # a reply may be wrong in more ways than are known
            self._fail(reply, asked, f"bad reply: {type(error).__name__}: {error}")
            return
        self.upload_bytes += size
        self.trained += trained
        self.validated += validated
        self.failures += failed
        for failure in not_validated:
            log.warning(
                "Client %d (node %d) did not validate: %s",
                *(failure.client_id, failure.node_id, failure.reason),
            )

    def _check_clients(
        self, trained: list[Row], failed: list[ClientFailure], asked: list[int]
    ) -> None:
        """Every client that was asked is accounted for, with the examples it has."""
        reported = [int(row[wire.CLIENT_IDS]) for row in trained]
        accounted = sorted(reported + [failure.client_id for failure in failed])
        if accounted != sorted(asked):
            raise UpdateError(
                f"it accounts for clients {accounted}, asked were {asked}"
            )
        for client, row in zip(reported, trained, strict=True):
            if row[wire.NUM_EXAMPLES] != self._num_examples(client):
                raise UpdateError(
                    f"client {client} reports num-examples = {row[wire.NUM_EXAMPLES]}, "
                    f"at the start it had {self._num_examples(client)}"
                )

    def _add_updates(self, content: RecordDict, trained: list[Row]) -> None:
        """Add a node's partial sum, or the single update of its only client."""
        weight = sum(self._num_examples(int(row[wire.CLIENT_IDS])) for row in trained)
        totals = wire.find(content, wire.SUM, ArrayRecord)
        update = wire.find(content, wire.UPDATE, ArrayRecord)
        if totals is not None:
            self.total.add_partial(wire.unpack(totals), weight, len(trained))
        elif update is not None:
            if len(trained) != 1:
                raise UpdateError(f"one update stands for {len(trained)} clients")
            self.total.add(wire.unpack(update), weight)
        elif trained:
            raise UpdateError("it holds no update")

    def _fail(self, reply: Reply, clients: list[int], reason: str) -> None:
        lines = reason.strip().splitlines() or ["unknown error"]
        self.failures += [
            ClientFailure(client, reply.node_id, lines[0], reason) for client in clients
        ]
        if not clients:
            log.warning("Node %d did not validate: %s", reply.node_id, lines[0])

    def validation(self) -> Validation | None:
        """Return accuracy and loss over all validation examples."""
        rows = sorted(self.validated, key=lambda row: row[wire.CLIENT_IDS])
        loss = weighted_mean(rows, wire.LOSS)
        if loss is None:
            return None
        num_examples = int(sum(row[wire.NUM_EXAMPLES] for row in rows))
        num_correct = sum(row[wire.NUM_CORRECT] for row in rows)
        return Validation(num_correct / num_examples, loss, num_examples)


def _rows(content: RecordDict, name: str, needed: set[str]) -> list[Row]:
    """Return a record of equally long lists as one dict per client.

    Raises:
        ValueError: a column is missing, or a value is not finite.
    """
    record = wire.find(content, name, MetricRecord)
    if record is None:
        return []
    columns = {key: list(value) for key, value in record.items()}  # type: ignore[arg-type]
    if missing := {wire.CLIENT_IDS, wire.NUM_EXAMPLES, *needed} - columns.keys():
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    if not all(isfinite(value) for column in columns.values() for value in column):
        raise ValueError(f"{name} holds a value that is not finite")
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _validated(content: RecordDict, asked: list[int]) -> list[Row]:
    """Return the verdicts, of clients that were asked, each within its bounds."""
    rows = _rows(content, wire.VALIDATED, {wire.LOSS, wire.NUM_CORRECT})
    clients = [row[wire.CLIENT_IDS] for row in rows]
    if len(set(clients)) < len(clients) or not set(clients) <= set(asked):
        raise ValueError(f"{clients} validated, asked were {asked}")
    for row in rows:
        if not 0 <= row[wire.NUM_CORRECT] <= row[wire.NUM_EXAMPLES] < 2**40:
            raise ValueError("more were classified right than there are")
    return rows


def _failures(reply: Reply, name: str) -> list[ClientFailure]:
    assert reply.content is not None
    record = wire.find(reply.content, name, ConfigRecord)
    if record is None:
        return []
    ids = wire.integers(record, wire.CLIENT_IDS)
    columns = (ids, record[wire.REASON], record[wire.TRACEBACK])
    return [
        ClientFailure(client, reply.node_id, str(reason), str(traceback))
        for client, reason, traceback in zip(*columns, strict=True)  # type: ignore[arg-type]
    ]


def weighted_mean(rows: list[Row], key: str) -> float | None:
    """Return the mean of a metric over examples; None where there is none."""
    weight = sum(row[wire.NUM_EXAMPLES] for row in rows)
    if not weight:
        return None
    return float(sum(row[wire.NUM_EXAMPLES] * row[key] for row in rows) / weight)
