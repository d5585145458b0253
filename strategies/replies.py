"""Replies of a round, taken in one by one: checked, summed, and then forgotten.

Memory does not grow with the cohort: of a reply's arrays only their sum is kept.
"""

import logging
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies import aggregation, wire
from strategies.aggregation import ExactSum, UpdateError
from strategies.federation import Reply
from strategies.wire import Arrays

log = logging.getLogger("flwr.fl_app")


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
        self, cohort: list[int] | None = None, model: Arrays | None = None
    ) -> None:
        self.total = ExactSum(model or {})
        self.trained: list[dict[str, float]] = []
        self.validated: list[dict[str, float]] = []
        self.failures: list[ClientFailure] = []
        self.upload_bytes = 0

    def add(self, reply: Reply, asked: list[int] | None = None) -> None:
        """Count a reply in, or each client that was `asked` of the node as failed."""
        if reply.content is None:
            self._fail(reply, asked or [], reply.error)
            return
        self.upload_bytes += wire.num_bytes(reply.content)
        try:
            validated = _rows(reply.content, wire.VALIDATED)
            failed = _failures(reply)
            trained = _rows(reply.content, wire.TRAINED)
            self._add_updates(reply.content, trained, failed, asked or [])
        except (UpdateError, ValueError, KeyError, TypeError) as error:
            self._fail(reply, asked or [], f"bad reply: {error}")
            return
        self.trained += trained
        self.validated += validated
        self.failures += failed

    def _add_updates(
        self,
        content: RecordDict,
        trained: list[dict[str, float]],
        failed: list[ClientFailure],
        asked: list[int],
    ) -> None:
        """Add a node's partial sum, or the single update of its only client."""
        reported = [int(row[wire.CLIENT_IDS]) for row in trained]
        accounted = sorted(reported + [failure.client_id for failure in failed])
        if accounted != sorted(asked):
            raise UpdateError(
                f"it accounts for clients {accounted}, asked were {asked}"
            )
        weights = [row[wire.NUM_EXAMPLES] for row in trained]
        for weight in weights:
            aggregation.check_weight(weight)
        totals = wire.find(content, wire.SUM, ArrayRecord)
        update = wire.find(content, wire.UPDATE, ArrayRecord)
        if totals is not None:
            self.total.add_partial(wire.unpack(totals), int(sum(weights)))
        elif update is not None:
            if len(trained) != 1:
                raise UpdateError(f"one update stands for {len(trained)} clients")
            self.total.add(wire.unpack(update), int(weights[0]))
        elif trained:
            raise UpdateError("it holds no update")

    def _fail(self, reply: Reply, clients: list[int], reason: str) -> None:
        lines = reason.strip().splitlines() or ["unknown error"]
        self.failures += [
            ClientFailure(client, reply.node_id, lines[0], reason) for client in clients
        ]
        if not clients:
            log.warning("Node %d failed to validate: %s", reply.node_id, lines[0])

    def validation(self) -> Validation | None:
        """Return accuracy and loss over all validation examples."""
        num_examples = int(sum(row[wire.NUM_EXAMPLES] for row in self.validated))
        if num_examples == 0:
            return None
        loss = weighted_mean(
            sorted(self.validated, key=lambda m: m[wire.CLIENT_IDS]), wire.LOSS
        )
        num_correct = sum(row[wire.NUM_CORRECT] for row in self.validated)
        return Validation(num_correct / num_examples, loss or 0.0, num_examples)


def _rows(content: RecordDict, name: str) -> list[dict[str, float]]:
    """Return a record of equally long lists as one dict per client."""
    record = wire.find(content, name, MetricRecord)
    if record is None:
        return []
    columns = {key: list(value) for key, value in record.items()}  # type: ignore[arg-type]
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _failures(reply: Reply) -> list[ClientFailure]:
    assert reply.content is not None
    record = wire.find(reply.content, wire.FAILED, ConfigRecord)
    if record is None:
        return []
    ids = wire.integers(record, wire.CLIENT_IDS)
    columns = (ids, record[wire.REASON], record[wire.TRACEBACK])
    return [
        ClientFailure(client, reply.node_id, str(reason), str(traceback))
        for client, reason, traceback in zip(*columns, strict=True)  # type: ignore[arg-type]
    ]


def weighted_mean(rows: list[dict[str, float]], key: str) -> float | None:
    """Return the mean of a metric over examples; None where there is none."""
    weight = sum(row[wire.NUM_EXAMPLES] for row in rows)
    if not weight:
        return None
    return float(sum(row[wire.NUM_EXAMPLES] * row[key] for row in rows) / weight)
