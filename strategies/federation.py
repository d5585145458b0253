"""Nodes and clients behind Flower's `Grid`: who hosts what, and messages with a bound.

A *client* owns one part of the data; a *node* computes. Where every node can read all
of the data, any node can train any client, and `deal` spreads a cohort over the nodes.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from strategies import wire
from strategies.randomness import keyed_generator

_PULLED = 4  # replies pulled at once: each may be as large as the model
_PATIENCE = 0.03  # share of the time waited so far that a reply may lie unnoticed

log = logging.getLogger("flwr.fl_app")


class FederationError(RuntimeError):
    """The federation cannot train; the message says why and what to do."""


@dataclass(frozen=True)
class Reply:
    """What one node answered: `content`, or the `error` that stands in its place."""

    node_id: int
    content: RecordDict | None
    error: str = ""


class Federation:
    """The nodes of a run, the clients they host, and the exchange of messages."""

    def __init__(
        self,
        grid: Grid,
        *,
        min_nodes: int,
        node_timeout: float,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Wait for nodes and ask each what it hosts.

        Args:
            grid: Flower's way to the nodes.
            options: the run's options; every message carries them, for a resumed run's
                are not those it was submitted with.
            min_nodes: how many nodes to wait for.
            node_timeout: seconds to wait for them, and for their answers.

        Raises:
            FederationError: too few nodes came, or they do not agree on the data.
        """
        self._grid = grid
        self._min_nodes = min_nodes
        text = json.dumps(dict(options or {}), sort_keys=True)
        self._options = ConfigRecord({wire.JSON: text})
        self.label_counts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
        """Training examples per client and class, shape (num_clients, num_classes)."""
        self.node_ids = self._wait_for_nodes(min_nodes, node_timeout)
        self._query(node_timeout)

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

    def _query(self, timeout: float) -> None:
        """Learn from every node which clients it hosts."""
        self.num_nodes = len(self.node_ids)
        """Number of nodes that were asked; `num-clients` = 0 stands for it."""
        task = ConfigRecord({wire.NUM_NODES: self.num_nodes})
        contents = {node: RecordDict({wire.TASK: task}) for node in self.node_ids}
        counts, answered, errors = [], [], []
        for reply in self.exchange(contents, wire.QUERY, timeout=timeout):
            try:
                counts.append(_label_counts(reply))
                answered.append(reply.node_id)
            except Exception as error:  # whatever a node may send
                errors.append(f"node {reply.node_id}: {error}")
                log.warning("Node %d does not take part: %s", reply.node_id, error)
        if len(answered) < self._min_nodes:
            raise FederationError(
                f"{len(answered)} nodes can take part, min-nodes = {self._min_nodes}; "
                f"the first that cannot: {errors[0]}"
            )
        if any(not np.array_equal(counts[0], other) for other in counts[1:]):
            raise FederationError(
                "the nodes read different data under one name: the label counts of "
                "their partitions differ"
            )
        self.node_ids = sorted(answered)
        self.label_counts = counts[0]

    @property
    def client_ids(self) -> list[int]:
        """Ids of all clients, sorted."""
        return list(range(len(self.label_counts)))

    def num_examples(self, client_id: int) -> int:
        """Return the number of training examples of a client."""
        return int(self.label_counts[client_id].sum())

    def deal(self, cohort: Sequence[int]) -> dict[int, list[int]]:
        """Return the clients each node is to train, balanced by number of examples.

        Largest first to the node with the least so far (Graham 1969, at most 4/3 of
        the best makespan). Nodes that would get no client are left out.
        """
        shares: dict[int, list[int]] = {node: [] for node in self.node_ids}
        loads = dict.fromkeys(self.node_ids, 0)
        for client in sorted(cohort, key=lambda c: (-self.num_examples(c), c)):
            node = min(self.node_ids, key=lambda n: (loads[n], n))
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

        Every node yields exactly one `Reply`: an error stands for a node that was
        refused, failed or stayed silent for `timeout` seconds. Messages expire with
        the timeout, so a late node does not go on working through old ones.
        """
        waiting: dict[str, int] = {}
        for node, content in contents.items():
            content[wire.OPTIONS] = self._options
            message = Message(content, node, message_type, ttl=timeout)
            sent = [i for i in self._grid.push_messages([message]) if i]
            if sent:
                waiting[sent[0]] = node
            else:
                yield Reply(node, None, "the message was refused by the SuperLink")
        start = time.monotonic()
        while waiting and (passed := time.monotonic() - start) < timeout:
            found = False
            for message in self._ready(list(waiting)):
                found = True
                node = waiting.pop(message.metadata.reply_to_message_id)
                if message.has_error():
                    yield Reply(node, None, message.error.reason or "unknown error")
                else:
                    yield Reply(node, message.content)
            if waiting and not found:
                time.sleep(min(max(0.01, passed * _PATIENCE), 0.2))
        for node in waiting.values():
            yield Reply(node, None, f"no reply within {timeout:g} seconds")


def _label_counts(reply: Reply) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return what a node says it hosts, (num_clients, num_classes)."""
    if reply.content is None:
        raise ValueError(reply.error)
    hosted = wire.unpack(wire.take(reply.content, wire.HOSTED, ArrayRecord))
    counts = hosted[wire.LABEL_COUNTS]
    if counts.dtype != np.int64 or counts.ndim != 2 or 0 in counts.shape:
        raise ValueError(f"label counts are {counts.dtype} of shape {counts.shape}")
    if counts.min() < 0 or counts.sum(axis=1).min() < 1:
        raise ValueError("label counts are negative, or of a client without examples")
    return counts


def sample_cohort(
    client_ids: Sequence[int], fraction: float, *, seed: int, round: int
) -> list[int]:
    """Return max(1, floor(fraction * n + 0.5)) client ids, sorted; none for fraction 0.

    One permutation per (seed, round) serves every fraction, so of two cohorts of a
    round the smaller lies in the larger.
    """
    if fraction == 0 or not client_ids:
        return []
    size = min(len(client_ids), max(1, int(fraction * len(client_ids) + 0.5)))
    order = keyed_generator(seed, "cohort", round=round).permutation(len(client_ids))
    ranked = sorted(client_ids)
    return sorted(ranked[i] for i in order[:size])
