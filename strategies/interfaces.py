"""What strategies, training and the server hand each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from strategies import wire
from strategies.replies import ClientFailure, Validation, weighted_mean
from strategies.wire import Arrays


class Term(Protocol):
    """A term that a strategy adds to the client's objective, over w = the parameters.

    Training uses one of the two: the step with SGD where the term wants that, else the
    gradient.
    """

    @property
    def implicit(self) -> bool:
        """Whether the term is to be stepped after SGD's step."""

    def add_gradient(self) -> None:
        """Add the term's gradient at w to the gradients of w."""

    def step(self, step_size: float) -> None:
        """Move w to the term's proximal point for that step size, in place."""


class LocalTraining(Protocol):
    """The client's own training, handed to a strategy's client half.

    Trains the model in place on the client's data and returns metrics (a float each).
    """

    @property
    def learning_rate(self) -> float:
        """That of this round."""

    @property
    def momentum(self) -> float:
        """SGD's; 0 with another optimiser."""

    def __call__(self, *, term: Term | None = None) -> dict[str, float]:
        """Run all local epochs."""


class Codec(Protocol):
    """Makes arrays small for their way, and whole again."""

    def encode(self, update: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
        """Return what is sent."""

    def decode(self, arrays: Mapping[str, Any]) -> Arrays:
        """Return what was encoded; raises `ValueError` for what never was."""


CodecFor = Callable[[Arrays], Codec]
"""Returns the codec for arrays laid out as some."""


@dataclass
class Memory:
    """What a client half has beside the model and the data."""

    received: Arrays = field(default_factory=dict)
    """What the server sent beside the model."""
    state: Arrays = field(default_factory=dict)
    """What this client remembers; empty before it was first counted in."""
    kept: Arrays | None = None
    """What it is to remember from now on; None for nothing new."""
    sent: Arrays = field(default_factory=dict)
    """What goes to the server beside the update."""


@dataclass
class RoundResult:
    """What one round did. `arrays` is the new global model (the old one if not met)."""

    round: int
    arrays: Arrays
    cohort: list[int]
    trained: list[dict[str, float]] = field(default_factory=list)
    """Per client counted in, sorted by client id: the keys of wire.TRAINED."""
    failures: list[ClientFailure] = field(default_factory=list)
    validation: Validation | None = None
    """Of the model the clients received: the global model of round - 1."""
    quorum_met: bool = True
    alignment: float | None = None
    """Mean cosine of the clients' updates to their mean; see `round_loop.alignment`."""
    seconds: float = 0.0
    upload_bytes: int = 0
    download_bytes: int = 0

    @property
    def update_norm(self) -> float | None:
        """Mean L2 norm of the clients' updates; None where nobody says."""
        named = [row for row in self.trained if wire.UPDATE_NORM in row]
        return weighted_mean(named, wire.UPDATE_NORM)

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over examples; None where no client was counted in."""
        return weighted_mean(self.trained, wire.LOSS)


@dataclass(frozen=True)
class ServerState:
    """What the next round depends on beside the global model."""

    values: dict[str, Any] = field(default_factory=dict)
    """JSON values."""
    arrays: Arrays = field(default_factory=dict)
