"""Replies of a round, taken in one by one: checked, summed, and then forgotten.

Memory does not grow with the number of replies: of their arrays only the sum is kept (a
robust strategy keeps updates, and a reply with a codec holds one a client). What a
node sends is not trusted: whatever is wrong with a reply, its clients are left out with
the reason, and the round goes on.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies import wire
from strategies.aggregation import ExactSum, UpdateError, norm
from strategies.federation import Reply
from strategies.norm_limit import NormLimit
from strategies.wire import Arrays

log = logging.getLogger("flwr.fl_app")

Row = dict[str, float]

_TAKEN = "it waited for any node, and none accounted for it"
_LARGEST = 1e100
"""Of what a metric can be: sums over all clients stay finite."""


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
    by_client: dict[int, float] = field(default_factory=dict)
    """Each client's accuracy, by its id."""
    only_class: int | None = None
    """The class that the model said of all these examples; None if there were several,
    or a node does not tell. A node's word: it may be beyond the run's classes."""


class Collected(Protocol):
    """Updates of a round, taken in one by one; `ExactSum` or `UpdateStack`."""

    num_clients: int
    weight: int

    def add(self, update: Mapping[str, Any], weight: int) -> None:
        """Take in one client's update, all of it or, on an `UpdateError`, nothing."""

    def add_partial(
        self, totals: Mapping[str, Any], weight: int, num_clients: int
    ) -> None:
        """Take in a node's exact sum of several clients' updates, likewise."""

    def mean(self) -> Arrays:
        """Return what stands for all of them."""


class Tally:
    """Takes in a round's replies one by one; keeps sums, not replies."""

    def __init__(
        self,
        num_examples: Callable[[int], int],
        total: Collected | None = None,
        limits: Sequence[NormLimit] = (),
        num_steps: Mapping[int, int] | None = None,
        validation_fraction: float | None = None,
        decode: Callable[[Arrays], Arrays] | None = None,
        cohort: Iterable[int] = (),
        own_validation: Sequence[int] = (),
    ) -> None:
        """Start empty.

        Args:
            num_examples: number of training examples of a client, by its id.
            total: what takes in the updates; None if nobody trains.
            limits: how large an update may be, and what travels beside it.
            num_steps: local steps of each client, where the algorithm relies on them.
            validation_fraction: share of its examples that each client keeps for
                validation; None where that is not known.
            decode: makes an update of what a client sends; None if that is one.
            cohort: the clients that any node may account for, where they take them
                from one another.
            own_validation: per client, the examples that a split of its own keeps for
                validation, 0 without one; empty if no client has one.
        """
        self._decode = decode
        self._num_examples = num_examples
        self.total = total or ExactSum({}, 1)
        self._limits = limits
        self._num_steps = num_steps
        self._validation_fraction = validation_fraction
        self._own_validation = own_validation
        self._unaccounted = set(cohort)
        self._left: dict[int, tuple[int, str]] = {}
        """Per client that any node may take: whose it was, and why that lacks it."""
        self._silent: list[tuple[int, str]] = []
        """Nodes whose clients and takings are not accounted for, and why."""
        self._norms: dict[int, list[float]] = {}
        self.own_nodes: set[int] = set()
        """Nodes that keep clients' states in a folder of their own."""
        self.trained: list[Row] = []
        self.validated: list[Row] = []
        self.failures: list[ClientFailure] = []
        self.upload_bytes = 0

    def _most_validated(self, client: int) -> float:
        """Return how many validation examples a client of its size can have.

        Of n examples floor(f n + 0.5) are for validation, so the m for training leave
        at most f / (1 - f) (m + 1/2) + 1/2 of them.
        """
        if client < len(self._own_validation) and self._own_validation[client]:
            return self._own_validation[client]
        share = self._validation_fraction
        if share is None:
            return inf
        return (share * self._num_examples(client) + 0.5) / (1 - share) + 1

    def norms(self, limit: int) -> list[float]:
        """Return what a limit measured of the updates counted in, by client."""
        return [sizes[limit] for _, sizes in sorted(self._norms.items())]

    def add(self, reply: Reply, sent: RecordDict) -> None:
        """Count in what answers `sent`, or each client in it as failed."""
        task = wire.take(sent, wire.TASK, ConfigRecord)
        asked = wire.integers(task, wire.TRAIN_IDS)
        stealing = wire.WAITING in task
        if reply.content is None:
            self._lack(reply.node_id, asked, reply.error, stealing=stealing)
            return
        try:
            size = wire.num_bytes(reply.content)
            place = wire.find(reply.content, wire.STATES, ConfigRecord)
            ids = wire.integers(task, wire.EVALUATE_IDS)
            validated = _validated(reply.content, ids, self._most_validated)
            not_validated = _failures(reply, wire.NOT_VALIDATED)
            failed = _failures(reply, wire.FAILED)
            trained = _rows(reply.content, wire.TRAINED, {wire.LOSS})
            accounted = self._check_clients(trained, failed, asked, stealing=stealing)
            if task.get(wire.SINGLE_UPDATES) and wire.SUM in reply.content:
                raise UpdateError("a sum of updates was sent where each was asked for")
            refused = self._add_updates(reply, trained)
        except Exception as error:  # a reply may be wrong in more ways than are known
            reason = f"bad reply: {type(error).__name__}: {error}"
            self._lack(reply.node_id, asked, reason, stealing=stealing)
            return
        if stealing:
            self._left |= dict.fromkeys(asked, (reply.node_id, _TAKEN))
            self._unaccounted -= accounted
        self.upload_bytes += size
        if place is not None and place.get(wire.OWN):
            self.own_nodes.add(reply.node_id)
        left_out = {failure.client_id for failure in refused}
        self.trained += [r for r in trained if r[wire.CLIENT_IDS] not in left_out]
        self.validated += validated
        self.failures += failed + refused
        for failure in not_validated:
            log.warning(
                "Client %d (node %d) did not validate: %s",
                *(failure.client_id, failure.node_id, failure.reason),
            )

    def finish(self) -> None:
        """Count as failed what any node could take and none accounts for.

        To be called when each has replied. A client that was taken failed with the node
        that took it: with that which did not reply, or whose reply was refused (of
        several, the first stands for all).
        """
        for client, (node, reason) in sorted(self._left.items()):
            if client in self._unaccounted:
                taken = reason is _TAKEN and self._silent
                self._fail(*(self._silent[0] if taken else (node, reason)), client)

    def _lack(
        self, node: int, asked: list[int], reason: str, *, stealing: bool
    ) -> None:
        """Take in no answer: the clients failed, or other nodes have them."""
        if stealing and asked:
            self._silent.append((node, reason))
            self._left |= dict.fromkeys(asked, (node, reason))
        else:
            self._fail(node, reason, *asked)

    def _check_clients(
        self,
        trained: list[Row],
        failed: list[ClientFailure],
        asked: list[int],
        *,
        stealing: bool,
    ) -> set[int]:
        """Every client that was asked is accounted for, with the examples it has.

        Nodes that take clients from one another account for any of the cohort.
        """
        reported = [int(row[wire.CLIENT_IDS]) for row in trained]
        accounted = sorted(reported + [failure.client_id for failure in failed])
        known = set(accounted)
        if stealing:
            if len(known) < len(accounted) or not known <= self._unaccounted:
                raise UpdateError(
                    f"it accounts for clients {accounted}, some of them twice, already "
                    "accounted for or not of this round"
                )
        elif accounted != sorted(asked):
            raise UpdateError(
                f"it accounts for clients {accounted}, asked were {asked}"
            )
        for client, row in zip(reported, trained, strict=True):
            if row.get(wire.UPDATE_NORM, 0.0) < 0:
                raise UpdateError(f"client {client} reports a negative norm")
            if row[wire.NUM_EXAMPLES] != self._num_examples(client):
                raise UpdateError(
                    f"client {client} reports num-examples = {row[wire.NUM_EXAMPLES]}, "
                    f"at the start it had {self._num_examples(client)}"
                )
            if self._num_steps is not None:
                steps, expected = row.get(wire.STEPS), self._num_steps[client]
                if steps != expected:
                    raise UpdateError(
                        f"client {client} reports {steps} steps, it was to take "
                        f"{expected}"
                    )
        return known

    def _add_updates(self, reply: Reply, trained: list[Row]) -> list[ClientFailure]:
        """Add a node's partial sum, or its clients' updates; return those refused.

        A partial sum is refused as a whole, by the error that is raised; updates are
        refused one by one.
        """
        assert reply.content is not None
        clients = [int(row[wire.CLIENT_IDS]) for row in trained]
        totals = wire.find(reply.content, wire.SUM, ArrayRecord)
        if totals is not None:
            weight = sum(self._num_examples(client) for client in clients)
            self.total.add_partial(wire.unpack(totals), weight, len(clients))
            return []
        refused = []
        for client, row in zip(clients, trained, strict=True):
            try:
                name = wire.update_of(client, of=len(clients))
                record = wire.find(reply.content, name, ArrayRecord)
                if record is None:
                    raise UpdateError("it holds no update")
                sent = wire.unpack(record)
                if self._decode is None:
                    self._add_update(client, sent)
                else:  # what is counted in is the update as it was decoded
                    update = self._decode(sent)
                    self._add_update(client, update)
                    row[wire.UPDATE_NORM] = norm(update)
            except Exception as error:  # whatever a client may send
                reason = f"bad reply: {type(error).__name__}: {error}"
                refused.append(ClientFailure(client, reply.node_id, reason, reason))
        return refused

    def _add_update(self, client: int, update: Arrays) -> None:
        sizes = [limit.check(update) for limit in self._limits]
        self.total.add(update, self._num_examples(client))
        self._norms[client] = sizes

    def _fail(self, node: int, reason: str, *clients: int) -> None:
        lines = reason.strip().splitlines() or ["unknown error"]
        self.failures += [
            ClientFailure(client, node, lines[0], reason) for client in clients
        ]
        if not clients:
            log.warning("Node %d did not validate: %s", node, lines[0])

    def validation(self) -> Validation | None:
        """Return accuracy and loss over all validation examples."""
        rows = sorted(self.validated, key=lambda row: row[wire.CLIENT_IDS])
        loss = weighted_mean(rows, wire.LOSS)
        if loss is None:
            return None
        num_examples = int(sum(row[wire.NUM_EXAMPLES] for row in rows))
        num_correct = sum(row[wire.NUM_CORRECT] for row in rows)
        by_client = {
            int(row[wire.CLIENT_IDS]): row[wire.NUM_CORRECT] / row[wire.NUM_EXAMPLES]
            for row in rows
        }
        said = {row.get(wire.ONLY_CLASS, -1) for row in rows}
        only = int(said.pop()) if len(said) == 1 else -1
        return Validation(
            num_correct / num_examples,
            loss,
            num_examples,
            by_client,
            only if only >= 0 else None,
        )


def _rows(content: RecordDict, name: str, needed: set[str]) -> list[Row]:
    """Return a record of equally long lists as one dict per client.

    Raises:
        ValueError: a column is missing, a value is not finite, or an id no integer.
    """
    record = wire.find(content, name, MetricRecord)
    if record is None:
        return []
    columns = {key: list(value) for key, value in record.items()}  # type: ignore[arg-type]
    if missing := {wire.CLIENT_IDS, wire.NUM_EXAMPLES, *needed} - columns.keys():
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    if not all(
        abs(value) <= _LARGEST for column in columns.values() for value in column
    ):
        raise ValueError(
            f"{name} holds a value that is not finite, or beyond all sense"
        )
    if not all(float(client).is_integer() for client in columns[wire.CLIENT_IDS]):
        raise ValueError(f"{name} holds a client id that is no integer")
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _validated(
    content: RecordDict, asked: list[int], most: Callable[[int], float]
) -> list[Row]:
    """Return the verdicts, of clients that were asked, each within its bounds.

    Args:
        content: what a node answered.
        asked: the clients that were to validate.
        most: how many validation examples a client can have.
    """
    rows = _rows(content, wire.VALIDATED, {wire.LOSS, wire.NUM_CORRECT})
    if not all(float(r[wire.NUM_EXAMPLES]).is_integer() for r in rows):
        raise ValueError("a number of examples is no integer")
    clients = [row[wire.CLIENT_IDS] for row in rows]
    if len(set(clients)) < len(clients) or not set(clients) <= set(asked):
        raise ValueError(f"{clients} validated, asked were {asked}")
    for row in rows:
        if not 0 <= row[wire.NUM_CORRECT] <= row[wire.NUM_EXAMPLES] < 2**40:
            raise ValueError("more were classified right than there are")
        if not 1 <= row[wire.NUM_EXAMPLES] <= most(int(row[wire.CLIENT_IDS])):
            raise ValueError("it validated on no example, or on more than it can have")
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
