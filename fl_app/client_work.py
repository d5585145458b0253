"""One round's work on single clients."""

import time
from dataclasses import replace
from math import ceil
from typing import Any

import strategies
from fl_app.workspace import Workspace, examples_of
from strategies import aggregation, wire
from strategies.interfaces import Term
from strategies.randomness import keyed_seed
from strategies.wire import Arrays

Row = dict[str, float]


class ClientWork:
    """Trains and validates single clients, from the model as it was received."""

    def __init__(
        self,
        space: Workspace,
        received: Arrays,
        round: int,
        options: dict[str, Any],
        deadline: float,
    ) -> None:
        self.space = space
        self.deadline = deadline
        self.received = received
        self.round = round
        self.options = options
        self.pooled = space.config.normalisation_policy == "pooled"
        self.base = aggregation.to_moments(received) if self.pooled else received
        """What updates are differences to."""

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
        task.set_arrays(space.model, self.received)
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
        }
        return [row]

    def train(
        self, client: int, *, epochs: int | None = None, steps: int | None = None
    ) -> tuple[Arrays, Row]:
        """Return the client's update and its metrics.

        Args:
            client: its id.
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
        seed = keyed_seed(config.seed, "train", round=self.round, client=client)
        task.set_arrays(space.model, self.received)

        options = task.TrainOptions.of_round(config, self.round)
        an_epoch = ceil(len(examples) / options.batch_size)
        if epochs is not None:
            options = replace(options, local_epochs=epochs)
        if steps is not None:
            options = replace(options, local_epochs=ceil(steps / an_epoch))
        number = steps or options.local_epochs * an_epoch

        def run_training(*, term: Term | None = None) -> Row:
            loss = task.train(
                space.model,
                examples,
                options,
                space.normalise,
                seed=seed,
                augment=augment,
                term=term,
                deadline=self.deadline,
                max_steps=number,
            )
            return {wire.LOSS: loss, wire.STEPS: number}

        strategy = strategies.load(config.strategy)
        metrics = strategy.client_train(space.model, run_training, self.options)
        local = task.get_arrays(space.model)
        local = aggregation.to_moments(local) if self.pooled else local
        update = aggregation.subtract(local, self.base)
        update = strategy.client_update(update, metrics, self.options)
        row = {
            wire.CLIENT_IDS: client,
            wire.NUM_EXAMPLES: len(examples),
            wire.UPDATE_NORM: aggregation.norm(update),
            wire.SECONDS: time.monotonic() - start,
        }
        return update, row | metrics
