"""One round's work on single clients."""

import time
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, repeat
from math import ceil
from typing import TYPE_CHECKING, Any

import strategies
from fl_app.client_states import ClientStates
from fl_app.workspace import Workspace, examples_of
from strategies import aggregation, wire
from strategies.algorithm import Algorithm
from strategies.interfaces import Memory, Term
from strategies.randomness import keyed_seed
from strategies.wire import Arrays

if TYPE_CHECKING:
    from torch import nn

    from fl_app import task
    from fl_app.together import Train

Row = dict[str, float]
Update = MutableMapping[str, Any]
"""Arrays by name. Until it is looked at, summed or copied, nothing else may be done
with the node's model: see `difference.Difference`."""
Trained = tuple[Update, Row]
"""A client's update and its metrics."""


class Memories:
    """What the clients of a message remember; nothing unless their states are named."""

    def __init__(
        self,
        received: Arrays | None = None,
        states: ClientStates | None = None,
        rounds: Mapping[int, int] | None = None,
    ) -> None:
        """Hold what the message brings.

        Args:
            received: what the server sent beside the model.
            states: the clients' states on this node.
            rounds: per client, the round whose state it is to take.
        """
        self._received = received or {}
        self._states = states
        self._rounds = rounds or {}

    def of(self, client: int) -> Memory:
        """Return what a client starts from."""
        state = (
            self._states.read(client, self._rounds.get(client, 0))
            if self._states
            else {}
        )
        return Memory(self._received, state)

    def keep(self, client: int, round: int, memory: Memory) -> None:
        """Write what a client is to remember after a round."""
        if self._states and memory.kept is not None:
            base = self._rounds.get(client, 0)
            self._states.write(client, round, memory.kept, base=base)


@dataclass(frozen=True)
class _Training:
    """A client's local training, as strategies are handed it."""

    train: Callable[..., float]
    steps: int
    learning_rate: float
    momentum: float

    def __call__(self, *, term: Term | None = None) -> Row:
        return {wire.LOSS: self.train(term=term), wire.STEPS: self.steps}


class ClientWork:
    """Trains and validates single clients, from the model as it was received."""

    def __init__(
        self,
        space: Workspace,
        received: Arrays,
        round: int,
        options: dict[str, Any],
        deadline: float,
        memories: Memories | None = None,
        strategy: type[Algorithm] | None = None,
    ) -> None:
        """Work on one message's clients.

        Args:
            space: the data, and the model that is overwritten.
            received: the model to start from, by name.
            round: from 1.
            options: the strategy's, for its client half.
            deadline: of `time.monotonic`, when clients are given up.
            memories: what clients remember; None for nothing.
            strategy: whose client half trains; None for the run's.
        """
        self.space = space
        self.deadline = deadline
        self.received = received
        self.round = round
        self.options = options
        self.pooled = space.config.normalisation_policy == "pooled"
        self.base = aggregation.to_moments(received) if self.pooled else received
        """What updates are differences to."""
        self._strategy = strategy or strategies.load(space.config.strategy)
        self._memories = memories or Memories()
        self._start: task.Snapshot | None = None

    def _begin(self) -> "task.Snapshot":
        """Put the received model into the resident one."""
        from fl_app import task

        if self._start is None:
            task.set_arrays(self.space.model, self.received)
            self._start = task.Snapshot(self.space.model)
        else:
            self._start.restore()
        return self._start

    @property
    def summed(self) -> Arrays:
        """What all that a client sends is laid out like."""
        return self._strategy.summed(self.base)

    @cached_property
    def arithmetic(self) -> aggregation.Arithmetic:
        """What goes through all values of an update fastest here."""
        from fl_app import convolutional, gradients

        trained_by = gradients.backpropagation(
            self.space.model, self.space.config.precision
        )
        if not isinstance(trained_by, convolutional.Network):
            return aggregation.NUMPY
        from fl_app import kernels  # and Numba, which training needs in any case

        return aggregation.Arithmetic(kernels.add_fixed_point, kernels.sums_of_squares)

    @cached_property
    def _options_of_round(self) -> "task.TrainOptions":
        from fl_app import task

        return task.TrainOptions.of_round(self.space.config, self.round)

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("the round's time was up before this client's turn")

    def validate(self, client: int) -> list[Row]:
        """Return the received model's result; nothing without validation examples."""
        from fl_app import task

        self._check_time()
        space = self.space
        examples = examples_of(space, space.partition.split(client)[1])
        if len(examples) == 0:
            return []
        self._begin()
        if self._strategy.client_model is not Algorithm.client_model:
            self._strategy.client_model(space.model, self._memories.of(client))
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
            wire.ONLY_CLASS: -1 if result.only_class is None else result.only_class,
        }
        return [row]

    def train_each(
        self, jobs: Iterator[tuple[int, int | None]], sizes: Iterable[int] = repeat(1)
    ) -> Iterator[tuple[int, Callable[[], Trained]]]:
        """Yield each client, and what returns or raises what `train` does of it.

        One client's update is to be done with before the next one is asked for.

        Args:
            jobs: clients' ids, and the local epochs that they manage; None for all.
            sizes: of the groups that are trained at once, one after the other.
        """
        for size in sizes:
            group = list(islice(jobs, size))
            if not group:
                return
            works = [partial(self.train, client, epochs=e) for client, e in group]
            yield from zip(
                [client for client, _ in group],
                self.train_at_once(works) if len(group) > 1 else works,
                strict=True,
            )

    def train_at_once(
        self, works: Sequence[Callable[..., Trained]], *, or_one_by_one: bool = True
    ) -> list[Callable[[], Trained]]:
        """Do calls of `train`, training at once; return what gives the results.

        Each client's `seconds` are its share of the time that all took.

        Args:
            works: `train` of each client.
            or_one_by_one: whether they are trained so if an operation for all fails.
        """
        from fl_app import together

        start = time.monotonic()
        number, models = len(works), self.space.copies
        outcomes: list[Trained | Exception]
        try:
            self._begin()
            models += together.copies(self.space.model, number - len(models))
            outcomes = together.run(
                models[:number], self.space.model, works, or_one_by_one=or_one_by_one
            )
        except Exception as error:  # of none of them: each reports it
            outcomes = [error] * number
        share = {wire.SECONDS: (time.monotonic() - start) / number}
        try:
            return [partial(_result, outcome, share) for outcome in outcomes]
        finally:
            del outcomes  # an error holds this frame, and all that it was about

    def _update(self, model: "nn.Module", start: "task.Snapshot | None") -> Update:
        """Return what training changed; `start` is the resident model's, if it is that.

        Differences to what the model was put back to save copies of all weights.
        """
        from fl_app import task

        if start is not None and not self.pooled:
            return start.changes()
        local = task.get_arrays(model)
        local = aggregation.to_moments(local) if self.pooled else local
        return aggregation.subtract(local, self.base)

    def train(
        self,
        client: int,
        model: "nn.Module | None" = None,
        trained: "Train | None" = None,
        *,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> Trained:
        """Return the client's update and its metrics.

        Args:
            client: its id.
            model: what it trains, as it was received; None for the node's.
            trained: what trains that; None for `task.train`.
            epochs: how many it manages; None for all local epochs.
            steps: how many steps it takes, in place of epochs.
        """
        from fl_app import task
        from fl_app.data.augment import AUGMENTATIONS

        self._check_time()
        start = time.monotonic()
        space, config = self.space, self.space.config
        examples = examples_of(space, space.partition.split(client)[0])
        name = space.dataset.augmentation if config.augment else None
        augment = AUGMENTATIONS[name] if name else None
        memory = self._memories.of(client)
        start_model = None
        if model is None:
            start_model, model = self._begin(), space.model
        self._strategy.client_model(model, memory)

        options = self._options_of_round
        an_epoch = ceil(len(examples) / options.batch_size)
        if epochs is not None:
            options = replace(options, local_epochs=epochs)
        if steps is not None:
            options = replace(options, local_epochs=ceil(steps / an_epoch))
        number = steps or options.local_epochs * an_epoch

        training = _Training(
            partial(
                trained or task.train,
                *(model, examples, options, space.normalise),
                seed=keyed_seed(config.seed, "train", round=self.round, client=client),
                augment=augment,
                deadline=self.deadline,
                max_steps=number,
            ),
            number,
            options.learning_rate,
            options.momentum if options.optimizer == "sgd" else 0.0,
        )
        strategy = self._strategy
        metrics = strategy.client_train(model, training, self.options, memory)
        update = self._update(model, start_model)
        if strategy.client_update is not Algorithm.client_update:
            update = dict(update)
            update = strategy.client_update(update, metrics, self.options, memory)
        if memory.sent:
            update = dict(update)
            update |= {aggregation.BESIDE + name: a for name, a in memory.sent.items()}
        self._memories.keep(client, self.round, memory)
        row = {
            wire.CLIENT_IDS: client,
            wire.NUM_EXAMPLES: len(examples),
            wire.UPDATE_NORM: aggregation.norm(update, self.arithmetic),
            wire.SECONDS: time.monotonic() - start,
        }
        return update, row | metrics


def _result(outcome: Trained | Exception, more: Row) -> Trained:
    if isinstance(outcome, Exception):
        try:
            raise outcome
        finally:
            del outcome  # which holds this frame now
    update, row = outcome
    return update, row | more
