"""What the nodes are asked in a round: one message content for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from strategies import wire
from strategies.federation import Federation
from strategies.known_states import KnownStates


@dataclass(frozen=True)
class Request:
    """Which clients train and which validate in a round, and how."""

    round: int
    train: list[int]
    evaluate: list[int]
    budget: float
    """Seconds that a node may work."""
    single_updates: bool = False
    """Whether each client's update is sent, not the sum of several."""
    epochs: Mapping[int, int] = field(default_factory=dict)
    """Local epochs of each client that trains; empty where all do the run's."""
    states: KnownStates | None = None
    """Which states clients are to take; None where they remember nothing."""

    def contents(
        self, federation: Federation, shared: Mapping[str, ArrayRecord | ConfigRecord]
    ) -> dict[int, RecordDict]:
        """Deal the clients to the nodes that are there; return a content per node.

        Args:
            federation: the nodes and clients.
            shared: records that go to every node, as they are (never copied).
        """
        federation.wait()
        clients = sorted({*self.train, *self.evaluate})
        holders = self.states.holders if self.states else {}
        deal = federation.deal(clients, holders)
        # What a client remembers may lie where another node does not look.
        stealing = len(deal) > 1 and self.train and not self.states
        folder = federation.waiting_folder if stealing else ""
        return {
            node: RecordDict(
                {**shared, wire.TASK: self._task(federation, dealt, folder)}
            )
            for node, dealt in deal.items()
        }

    def _task(
        self, federation: Federation, clients: list[int], waiting: str
    ) -> ConfigRecord:
        chosen, validating = set(self.train), set(self.evaluate)
        training = [client for client in clients if client in chosen]
        lists = {
            wire.TRAIN_IDS: training,
            wire.EVALUATE_IDS: [client for client in clients if client in validating],
        }
        if self.epochs:
            lists[wire.EPOCHS] = [self.epochs[client] for client in training]
        if self.states:
            lists[wire.STATE_ROUNDS] = [self.states.round_of(c) for c in clients]
        return ConfigRecord(
            {
                wire.ROUND: self.round,
                wire.NUM_NODES: federation.num_nodes,
                wire.COHORT_SIZE: max(1, len(self.train)),
                wire.SINGLE_UPDATES: int(self.single_updates),
                wire.BUDGET: self.budget,
                wire.CLIENTS_TOGETHER: federation.clients_together,
                **({wire.WAITING: waiting} if waiting else {}),
                **{key: values for key, values in lists.items() if values},
            }
        )
