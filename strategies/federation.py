"""Nodes and clients behind Flower's `Grid`: who hosts what, and messages with a bound.

A *client* owns one part of the data; a *node* computes. Where every node can read all
of the data, any node can train any client, and `deal` spreads a cohort over the nodes.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from strategies import wire
from strategies.randomness import keyed_generator
from strategies.wire import Arrays

T = TypeVar("T")

_PULLED = 4  # replies pulled at once: each may be as large as the model
_PATIENCE = 0.015  # share of the time waited so far that a reply may lie unnoticed
_PAUSE = 50  # times what it takes to ask for replies, until they are asked for again

log = logging.getLogger("flwr.fl_app")


class FederationError(RuntimeError):
    """The federation cannot train; the message says why and what to do."""


@dataclass(frozen=True)
class Reply:
    """What one node answered: `content`, or the `error` that stands in its place."""

    node_id: int
    content: RecordDict | None
    error: str = ""


class Agreement(Protocol):
    """What nodes with data of their own must have in common; the application's."""

    def agree(self, told: Mapping[int, str]) -> tuple[str, dict[int, str]]:
        """Return what holds for all nodes, and why some cannot take part."""

    def complete(self, levels: Sequence[Any]) -> str:
        """Return it with what follows from the clients' counts of levels."""


class Federation:
    """The nodes of a run, the clients they host, and the exchange of messages."""

    def __init__(
        self,
        grid: Grid,
        *,
        min_nodes: int,
        node_timeout: float,
        options: Mapping[str, Any] | None = None,
        agreement: Agreement | None = None,
        client_names: Sequence[str] = (),
        on_sent: Callable[[], None] = lambda: None,
        wait_for_reply: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait for nodes and ask each what it hosts.

        Args:
            grid: Flower's way to the nodes.
            options: the run's options; every message carries them, for a resumed run's
                are not those it was submitted with.
            agreement: how nodes that each have data of their own are brought to one
                layout; None where every node can read all of the data.
            client_names: names of the clients in order, where they have any and every
                node can read all of the data.
            on_sent: called when the messages of an exchange have been sent.
            wait_for_reply: called where no reply is there, with the seconds after which
                to look again; may return sooner, when one comes.
            min_nodes: how many nodes to wait for.
            node_timeout: seconds to wait for them, and for their answers.

        Raises:
            FederationError: too few nodes came, or they do not agree on the data.
        """
        self._grid = grid
        self._on_sent = on_sent
        self._wait_for_reply = wait_for_reply
        self._min_nodes = min_nodes
        self._node_timeout = node_timeout
        text = json.dumps(dict(options or {}), sort_keys=True)
        self._options = ConfigRecord({wire.JSON: text})
        self.states: ConfigRecord | None = None
        """Where clients keep what they remember; sent along once it is set."""
        self.waiting_folder = ""
        """Name of the temporary folder in which nodes write which clients wait for
        them, for others to take; sent along once it is set."""
        self.clients_together = 1
        """How many clients a node trains at once; sent along."""
        self.label_counts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
        """Training examples per client and class, shape (num_clients, num_classes)."""
        self.own_validation: np.ndarray[tuple[int], np.dtype[np.int64]]
        """Examples that clients' own splits keep for validation; 0 without one."""
        self.client_names = list(client_names)
        """Names of the clients, in order; empty where they are mere numbers."""
        self.node_ids = self._wait_for_nodes(min_nodes, node_timeout)
        self.num_nodes = len(self.node_ids)
        """Number of nodes that were asked; `num-clients` = 0 stands for it."""
        self._agreed: ConfigRecord | None = None
        self._node_of: dict[int, int] | None = None
        """Per client, the node that hosts it; None where any node can."""
        if agreement is None:
            self._query_shared(node_timeout)
        else:
            self._query_private(agreement, node_timeout)
        self._sizes: list[int] = self.label_counts.sum(axis=1).tolist()

    def _wait_for_nodes(self, min_nodes: int, timeout: float) -> list[int]:
        deadline = time.monotonic() + timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < min_nodes:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{len(nodes)} of min-nodes = {min_nodes} nodes were there after "
                    f"node-timeout = {timeout:g} seconds: start more nodes, wait "
                    "longer or ask for fewer"
                )
            time.sleep(0.2)
        return nodes

    def _query_shared(self, timeout: float) -> None:
        """Learn from every node which clients there are; all must say the same."""
        hosted = self._ask(dict.fromkeys(self.node_ids, -1), _hosted, timeout)
        counts = [arrays[wire.LABEL_COUNTS] for arrays in hosted.values()]
        if any(not np.array_equal(counts[0], other) for other in counts[1:]):
            raise FederationError(
                "the nodes read different data under one name: the label counts of "
                "their partitions differ"
            )
        self.node_ids = sorted(hosted)
        self.label_counts = counts[0]
        self.own_validation = _own_validation(next(iter(hosted.values())))

    def _query_private(self, agreement: Agreement, timeout: float) -> None:
        """Learn what each node has, agree on a layout, learn what that makes of it.

        Clients are numbered in order of their names.
        """
        told = self._ask(dict.fromkeys(self.node_ids, -1), _description, timeout)
        nodes = list(told)
        while True:  # until all that agreed have answered: a round or two
            text, refused = agreement.agree({node: told[node][1] for node in nodes})
            for node, reason in sorted(refused.items()):
                log.warning("Node %d does not take part: %s", node, reason)
            nodes = [node for node in nodes if node not in refused]
            nodes.sort(key=lambda node: told[node][0])
            first = next(iter(sorted(refused.items())), None)
            self._require(len(nodes), first and f"node {first[0]}: {first[1]}")
            self._agreed = ConfigRecord({wire.JSON: text})
            numbers = {node: client for client, node in enumerate(nodes)}
            hosted = self._ask(numbers, _hosted_alone, timeout)
            if len(hosted) == len(nodes):
                break
            nodes = list(hosted)
        self.node_ids = sorted(nodes)
        self._node_of = dict(enumerate(nodes))
        self.client_names = [told[node][0] for node in nodes]
        self.label_counts = np.concatenate(
            [hosted[n][wire.LABEL_COUNTS] for n in nodes]
        )
        self.own_validation = np.concatenate(
            [_own_validation(hosted[n]) for n in nodes]
        )
        complete = agreement.complete([hosted[n][wire.LEVEL_COUNTS] for n in nodes])
        self._agreed = ConfigRecord({wire.JSON: complete})

    def _ask(
        self, nodes: Mapping[int, int], read: Callable[[Reply], T], timeout: float
    ) -> dict[int, T]:
        """Query nodes; return what those that can take part answer, as read.

        Args:
            nodes: per node, the client that it is; -1 where that is not settled.
            read: takes in a reply; what it raises keeps a node from taking part.
            timeout: seconds to wait for the answers.

        Raises:
            FederationError: they are fewer than `min_nodes`.
        """
        contents = {}
        for node, client in nodes.items():
            task = ConfigRecord({wire.NUM_NODES: self.num_nodes})
            task[wire.CLIENT_IDS] = [client]
            contents[node] = RecordDict({wire.TASK: task})
        answers: dict[int, T] = {}
        errors = []
        for reply in self.exchange(contents, wire.QUERY, timeout=timeout):
            try:
                answers[reply.node_id] = read(reply)
            except Exception as error:  # whatever a node may send
                errors.append(f"node {reply.node_id}: {error}")
                log.warning("Node %d does not take part: %s", reply.node_id, error)
        self._require(len(answers), errors[0] if errors else None)
        return answers

    def ask_clients_together(self, at_most: int) -> int:
        """Return how many clients each node can train at once and be fast.

        Each tries some numbers up to `at_most`, until half of `node_timeout` is over.
        The least of what they answer, which is 1 for one that fails or is silent. Nodes
        that have gone are left out.
        """
        contents = {}
        for node in self._present():
            task = ConfigRecord({wire.NUM_NODES: self.num_nodes})
            task[wire.TRY_TOGETHER] = at_most
            task[wire.BUDGET] = self._node_timeout / 2
            contents[node] = RecordDict({wire.TASK: task})
        answers = []
        for reply in self.exchange(contents, wire.QUERY, timeout=self._node_timeout):
            try:
                answers.append(_clients_together(reply, at_most))
            except Exception as error:  # whatever a node may send
                answers.append(1)
                log.warning(
                    "Node %d does not say how many clients it trains fastest: %s",
                    reply.node_id,
                    error,
                )
        return min(answers, default=1)

    def _require(self, answered: int, first_error: str | None) -> None:
        if answered < self._min_nodes:
            raise FederationError(
                f"{answered} nodes can take part, min-nodes = {self._min_nodes}; the "
                f"first that cannot: {first_error}"
            )

    @property
    def client_ids(self) -> list[int]:
        """Ids of all clients, sorted."""
        return list(range(len(self.label_counts)))

    def describe(self, client_id: int) -> str:
        """Return how a client is spoken of: by number, and name if it has one."""
        name = f" ({self.client_names[client_id]})" if self.client_names else ""
        return f"client {client_id}{name}"

    def num_examples(self, client_id: int) -> int:
        """Return the number of training examples of a client."""
        return self._sizes[client_id]

    def wait(self) -> None:
        """Wait until `min_nodes` of the run's nodes are there; `node_timeout` at most.

        A node that was restarted with its key is the same node again.
        """
        deadline = time.monotonic() + self._node_timeout
        told = False
        while len(self._present()) < self._min_nodes and time.monotonic() < deadline:
            if not told:
                log.warning("Waiting for min-nodes = %d nodes", self._min_nodes)
            told = True
            time.sleep(0.2)

    def _present(self) -> list[int]:
        """Return the nodes of this run that are there now, as far as Flower knows."""
        return sorted({*self.node_ids} & {*self._grid.get_node_ids()})

    def deal(
        self, cohort: Sequence[int], holders: Mapping[int, int] | None = None
    ) -> dict[int, list[int]]:
        """Return the clients each node is to train, balanced by number of examples.

        Largest first to the node with the least so far (Graham 1969, at most 4/3 of
        the best makespan). Nodes that would get no client are left out, and so are
        those that are not there, if any is. A client that only one node has is dealt
        to that, there or not.

        Args:
            cohort: the clients.
            holders: per client that remembers something, the node that has it: the
                client goes there if the node is there.
        """
        shares: dict[int, list[int]] = {node: [] for node in self.node_ids}
        present = self._present() or self.node_ids
        loads = dict.fromkeys(self.node_ids, 0)
        held = holders or {}
        for client in sorted(cohort, key=lambda c: (-self.num_examples(c), c)):
            if self._node_of is not None:
                node = self._node_of[client]
            elif held.get(client) in present:
                node = held[client]
            else:
                node = min(present, key=lambda n: (loads[n], n))
            shares[node].append(client)
            loads[node] += self.num_examples(client)
        return {node: sorted(clients) for node, clients in shares.items() if clients}

    def _ready(self, message_ids: list[str]) -> Iterator[Message]:
        """Yield replies that are there, a few in memory at a time."""
        for start in range(0, len(message_ids), _PULLED):
            yield from self._grid.pull_messages(message_ids[start : start + _PULLED])

    def exchange(
        self, contents: Mapping[int, RecordDict], message_type: str, *, timeout: float
    ) -> Iterator[Reply]:
        """Send each node its content; yield the replies as they come.

        Every node yields exactly one `Reply`: an error stands for a node that is not
        there, was refused, failed or stayed silent for `timeout` seconds. Messages
        expire with the timeout, so a late node does not go on working through old ones.
        """
        waiting: dict[str, int] = {}
        present = {*self._grid.get_node_ids()}
        for node, content in contents.items():
            if node not in present:
                yield Reply(node, None, "the node is not there")
                continue
            content[wire.OPTIONS] = self._options
            if self.states is not None:
                content[wire.STATES] = self.states
            if self._agreed is not None:
                content[wire.AGREED] = self._agreed
            message = Message(content, node, message_type, ttl=timeout)
            sent = [i for i in self._grid.push_messages([message]) if i]
            if sent:
                waiting[sent[0]] = node
            else:
                yield Reply(node, None, "the message was refused by the SuperLink")
        self._on_sent()
        start = time.monotonic()
        while waiting and (passed := time.monotonic() - start) < timeout:
            found, asked = False, time.monotonic()
            for message in self._ready(list(waiting)):
                found = True
                node = waiting.pop(message.metadata.reply_to_message_id)
                if message.has_error():
                    yield Reply(node, None, message.error.reason or "unknown error")
                else:
                    yield Reply(node, message.content)
            if waiting and not found:
                pause = min(passed * _PATIENCE, (time.monotonic() - asked) * _PAUSE)
                self._wait_for_reply(min(max(0.01, pause), 0.2))
        for node in waiting.values():
            yield Reply(node, None, f"no reply within {timeout:g} seconds")


def _content(reply: Reply) -> RecordDict:
    if reply.content is None:
        raise ValueError(reply.error)
    return reply.content


def _description(reply: Reply) -> tuple[str, str]:
    """Return a client's name, and all that its node tells of it."""
    described = wire.take(_content(reply), wire.DESCRIBED, ConfigRecord)
    text = str(described[wire.JSON])
    return str(json.loads(text)["client"]), text


def _clients_together(reply: Reply, at_most: int) -> int:
    found = wire.take(_content(reply), wire.FASTEST, ConfigRecord)
    number = wire.integer(found, wire.CLIENTS_TOGETHER)
    if not 1 <= number <= at_most:
        raise ValueError(f"{number} is not from 1 to {at_most}")
    return number


def _hosted(reply: Reply) -> Arrays:
    """Return what a node says it hosts: label counts (num_clients, num_classes)."""
    hosted = wire.unpack(wire.take(_content(reply), wire.HOSTED, ArrayRecord))
    counts = hosted[wire.LABEL_COUNTS]
    if counts.dtype != np.int64 or counts.ndim != 2 or 0 in counts.shape:
        raise ValueError(f"label counts are {counts.dtype} of shape {counts.shape}")
    if counts.min() < 0 or counts.sum(axis=1).min() < 1:
        raise ValueError("label counts are negative, or of a client without examples")
    _own_validation(hosted)
    return hosted


def _own_validation(hosted: Arrays) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return how many examples each client's own split keeps for validation."""
    number = len(hosted[wire.LABEL_COUNTS])
    found = hosted.get(wire.OWN_VALIDATION, np.zeros(number, np.int64))
    if found.dtype != np.int64 or found.shape != (number,) or found.min() < 0:
        raise ValueError(f"own validation is {found.dtype} of shape {found.shape}")
    return found


def _hosted_alone(reply: Reply) -> Arrays:
    """Return what a node hosts that is one client: level counts (channels, 256) too."""
    hosted = _hosted(reply)
    if len(hosted[wire.LABEL_COUNTS]) != 1:
        raise ValueError("a node with data of its own is one client")
    levels = hosted[wire.LEVEL_COUNTS]
    if levels.dtype != np.int64 or levels.ndim != 2 or levels.shape[1] != 256:
        raise ValueError(f"level counts are {levels.dtype} of shape {levels.shape}")
    if levels.min() < 0 or levels.sum(axis=1).min() < 1:
        raise ValueError("level counts are negative, or of no pixel")
    return hosted


def cohort_size(num_clients: int, fraction: float) -> int:
    """Return max(1, floor(fraction * n + 0.5)); 0 for fraction 0, or no clients."""
    if fraction == 0 or not num_clients:
        return 0
    return max(1, int(fraction * num_clients + 0.5))


def sample_cohort(
    client_ids: Sequence[int], fraction: float, *, seed: int, round: int
) -> list[int]:
    """Return `cohort_size` of the client ids, sorted.

    One permutation per (seed, round) serves every fraction, so of two cohorts of a
    round the smaller lies in the larger.
    """
    size = cohort_size(len(client_ids), fraction)
    if not size:
        return []
    order = keyed_generator(seed, "cohort", round=round).permutation(len(client_ids))
    ranked = sorted(client_ids)
    return sorted(ranked[i] for i in order[:size])
