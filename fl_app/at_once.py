"""How many clients a node trains at once: measured where they are to be trained.

`clients-together = "auto"`. Whether one model with an axis of clients (`together`) is
trained sooner than one client after the other depends on device, model and batches, so
each node tries a few steps of both as a run begins. The run then has one number, which
its options keep: repeated with it, on as many nodes, it comes to the same model.
"""

import logging
import time
from collections.abc import Callable
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from fl_app.config import RunConfig
from strategies.federation import Federation, sample_cohort

if TYPE_CHECKING:
    from torch import nn

    from fl_app.together import Work
    from fl_app.workspace import Workspace

log = logging.getLogger("flwr.fl_app")

AUTO = 0
"""Of `RunConfig.clients_together`, until it is settled."""
MOST = 64
_STEPS = 10  # of a client, at most
_ALONE = 4  # clients that are tried one by one
_TRIALS = 2  # of which the fastest counts; before them one that warms up
_GAIN = 0.9  # of the time one by one, that clients at once may take


def settled(config: RunConfig, federation: Federation, model: "nn.Module") -> RunConfig:
    """Return the options with a number of clients in place of "auto"; tell the nodes.

    The least of what the nodes answer, so that no node is slowed down; 1 for models
    that can only be trained for one client at a time.
    """
    if config.clients_together != AUTO:
        return config
    clients = federation.client_ids
    cohort = sample_cohort(clients, config.fraction_train, seed=config.seed, round=1)
    share = ceil(len(cohort) / len(federation.node_ids))
    number = 1
    if share > 1 and _allows_several(model):
        number = federation.clients_at_once(min(share, MOST))
        log.info("The nodes train fastest with clients-together = %d", number)
    config = config.model_copy(update={"clients_together": number})
    federation.set_options(config.for_clients())
    return config


def _allows_several(model: "nn.Module") -> bool:
    from fl_app import together

    try:
        together.check(model)
    except ValueError as error:
        log.info("The model is trained for one client at a time: %s", error)
        return False
    return True


def fastest(space: "Workspace", at_most: int) -> int:
    """Return how many clients this process trains fastest at once, a power of two.

    On a processor 1, without a trial: more are slower there (docs/performance.md), and
    the result of a run does not depend on how many nodes it has.
    """
    from fl_app import task

    if task.default_device().type == "cpu":
        return 1
    return chosen(Trial(space, at_most).seconds_of_a_step, at_most)


def chosen(seconds: Callable[[int], float], at_most: int) -> int:
    """Return the number from 1, 2, 4, ... that takes the fewest seconds.

    Ends with the first of several that is no better than half as many; returns 1 where
    none is clearly better than one after the other.

    Args:
        seconds: of a step of a client, of so many at once; raises where they do not
            fit.
        at_most: the largest to try.
    """
    alone = seconds(1)
    best, least, number = 1, inf, 2
    while number <= at_most:
        try:
            now = seconds(number)
        except Exception as error:  # for want of memory, say: fewer do
            log.warning("%d clients at once cannot be trained: %s", number, error)
            break
        if now >= least:
            break
        best, least = number, now
        number *= 2
    return best if least < _GAIN * alone else 1


class Trial:
    """The first steps of a node's clients; its model is the same afterwards."""

    def __init__(self, space: "Workspace", at_most: int) -> None:
        """Take so many of the clients, as they are in their first round."""
        from fl_app import task
        from fl_app.data.augment import AUGMENTATIONS
        from fl_app.workspace import examples_of

        config = space.config
        name = space.dataset.augmentation if config.augment else None
        options = task.TrainOptions.of_round(config, 1)
        given = {
            "options": options,
            "normalise": space.normalise,
            "seed": 0,
            "augment": AUGMENTATIONS[name] if name else None,
            "max_steps": _STEPS,
        }
        self._model = space.model
        self._works: list[Work[float]] = []
        self._steps: list[int] = []
        self._copies: list[nn.Module] = []
        for client in range(at_most):
            examples = examples_of(space, space.partition.split(client)[0])
            self._works.append(_work({"examples": examples, **given}))
            epoch = ceil(len(examples) / options.batch_size)
            self._steps.append(min(_STEPS, options.local_epochs * epoch))

    def seconds_of_a_step(self, number: int) -> float:
        """Return what one client's step takes, of so many clients at once."""
        taken = []
        for _ in range(1 + _TRIALS):
            start = time.perf_counter()
            self.train(number)
            taken.append(time.perf_counter() - start)
        return min(taken[1:]) / self.steps(number)

    def steps(self, number: int) -> int:
        """Return how many steps `train` takes, those of all its clients."""
        return sum(self._steps[: _ALONE if number == 1 else number])

    def train(self, number: int) -> None:
        """Train so many clients at once; of 1, a few one after the other."""
        from fl_app import task, together

        if number > 1:
            self._copies += together.copies(self._model, number - len(self._copies))
            outcomes = together.run(
                self._copies[:number], self._model, self._works[:number]
            )
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            return
        start = task.Snapshot(self._model)
        for work in self._works[:_ALONE]:
            try:
                work(self._model, task.train)
            finally:
                start.restore()


def _work(given: dict[str, Any]) -> "Work[float]":
    """Return what trains a model on what is given, by whatever way to train."""
    return lambda model, train: train(model, **given)
