"""What the server knows of what clients remember: since which round, on which node.

A client's state lies with the client (`Memory`); the server says with each message of
which round it is to take it: of the last one in which the client was counted in. A
client whose update was refused thus forgets that round, and a resumed run finds every
client as it was.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any


class KnownStates:
    """Per client, the round of its state, and the node if that alone has it."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[int, int]] = {}

    def round_of(self, client: int) -> int:
        """Return the round whose state a client is to take; 0 for none."""
        return self._of.get(client, (0, 0))[0]

    @property
    def holders(self) -> dict[int, int]:
        """The node that alone has a client's state, where one does."""
        return {client: node for client, (_, node) in self._of.items() if node}

    def counted(
        self,
        clients: Iterable[int],
        dealt: Mapping[int, Iterable[int]],
        round: int,
        own_nodes: Collection[int] = (),
    ) -> None:
        """Note that clients were counted in.

        Args:
            clients: those counted in.
            dealt: the clients that each node trained.
            round: in which.
            own_nodes: the nodes whose folder of states no other sees.
        """
        chosen = set(clients)
        for node, ids in dealt.items():
            alone = node if node in own_nodes else 0
            self._of |= dict.fromkeys(chosen.intersection(ids), (round, alone))

    def as_json(self) -> list[list[int]]:
        """Return all of it as JSON: a list of client, round, node."""
        return [[client, *known] for client, known in sorted(self._of.items())]

    @classmethod
    def of_json(cls, value: Any) -> "KnownStates":
        """Return what `as_json` was called on."""
        states = cls()
        states._of = {client: (round, node) for client, round, node in value}
        return states
