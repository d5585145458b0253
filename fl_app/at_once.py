"""How many clients a node trains at once, and which.

With `clients-together = "auto"` that is measured where they are to be trained, for
whether one model with an axis of clients (`together`) is trained sooner than one client
after the other depends on device, model and batches. The run then has one number, which
its options keep: repeated with it, on as many nodes, it comes to the same model.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from math import ceil, inf
from typing import TYPE_CHECKING

import strategies
from fl_app.client_work import ClientWork
from fl_app.config import AUTO, RunConfig
from strategies.federation import Federation, cohort_size

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset
    from fl_app.workspace import Workspace

log = logging.getLogger("flwr.fl_app")

Job = tuple[int, int | None]
"""A client's id, and the local epochs that it manages; None for all."""

MOST = 64
_STEPS = 20  # of a client, at most
_ALONE = 4  # clients that are tried one by one
_TRIALS = 2  # of which the fastest counts; before them one that warms up
_GAIN = 0.9  # of the time one by one, that clients at once may take


def settled(config: RunConfig, federation: Federation, dataset: "Dataset") -> RunConfig:
    """Return the options with a number of clients in place of "auto".

    The least of what the nodes answer, so that no node is slowed down; 1 for models
    that can only be trained for one client at a time, and where a node has one client.
    """
    if config.clients_together != AUTO:
        return config
    cohort = cohort_size(len(federation.client_ids), config.fraction_train)
    share = ceil(cohort / len(federation.node_ids))
    number = 1
    if share > 1 and _allows_several(config, dataset):
        number = federation.ask_clients_together(min(share, MOST))
        log.info("clients-together = %d, as the nodes answer", number)
    return config.model_copy(update={"clients_together": number})


def _allows_several(config: RunConfig, dataset: "Dataset") -> bool:
    from fl_app import models, together

    shape, num_classes = dataset.input_shape, len(dataset.class_names)
    try:
        together.check(models.build(config.model, shape, num_classes, seed=0))
    except ValueError as error:
        log.info("The model is trained for one client at a time: %s", error)
        return False
    return True


def arranged(
    dealt: Sequence[Job], number: int, num_examples: Callable[[int], int]
) -> tuple[list[Job], Iterable[int]]:
    """Return clients in the order they are trained in, and the sizes of their groups.

    Clients of about as many steps come together, and sizes differ by one at most: a
    group takes as long as the longest of its clients, and a small one gains little.

    Args:
        dealt: what the node is to train.
        number: how many at most are trained at once; 1 leaves the order as it is.
        num_examples: number of training examples of a client, by its id.
    """
    if number == 1 or not dealt:
        return list(dealt), repeat(1)
    by_work = sorted(dealt, key=lambda job: -num_examples(job[0]) * (job[1] or 1))
    least, more = divmod(len(dealt), groups := ceil(len(dealt) / number))
    return by_work, [least + (i < more) for i in range(groups)]


def fastest(
    opened: "Callable[[], Workspace]", at_most: int, deadline: float = inf
) -> int:
    """Return how many clients this process trains fastest at once, a power of two.

    On a processor 1, without a trial: more are slower there (docs/performance.md), and
    the result of a run does not depend on how many nodes it has.

    Args:
        opened: opens the run's data and model.
        at_most: the largest number to try.
        deadline: of `time.monotonic`, when the trial ends with what it has found.
    """
    import torch

    from fl_app import task

    device = task.default_device()
    if device.type == "cpu":
        return 1
    space = opened()
    try:
        return chosen(Trial(space, at_most, deadline).seconds_of_a_step, at_most)
    finally:  # other processes of the device have a use for its memory
        space.copies.clear()
        gc.collect()  # errors of what did not fit, which hold it and their frames
        torch.get_device_module(device).empty_cache()


def chosen(seconds: Callable[[int], float], at_most: int) -> int:
    """Return the number from 1, 2, 4, ... that takes the fewest seconds.

    Ends with the first of several that is no better than half as many; returns 1 where
    none is clearly better than one after the other.

    Args:
        seconds: of a step of a client, of so many at once; raises where they do not
            fit, or when the time is up.
        at_most: the largest to try.
    """
    alone = seconds(1)
    best, least, number = 1, inf, 2
    while number <= at_most:
        try:
            now = seconds(number)
        except Exception as error:  # for want of memory, say: fewer do
            reason = f"{type(error).__name__}: {error}"  # whose frames hold tensors
            log.warning("%d clients at once cannot be trained: %s", number, reason)
            break
        if now >= least:
            break
        best, least = number, now
        number *= 2
    return best if least < _GAIN * alone else 1


class Trial:
    """The first steps of clients of middling size, trained as FedAvg does.

    With all that a client takes beside them, from the model it is handed to its update.
    """

    def __init__(self, space: "Workspace", at_most: int, deadline: float = inf) -> None:
        """Take so many of the run's clients, whichever node is to train them."""
        from fl_app import task

        received = task.get_arrays(space.model)
        fedavg = strategies.load("fedavg")
        self._work = ClientWork(space, received, 1, {}, deadline, strategy=fedavg)
        owned = space.partition.clients
        by_size = sorted(range(len(owned)), key=lambda client: len(owned[client]))
        middle = (len(by_size) - 1) / 2
        # From the middle outwards, so that few are of about the size that many are.
        places = sorted(range(len(by_size)), key=lambda place: abs(place - middle))
        clients = [by_size[place] for place in places[:at_most]]
        config = space.config
        self._steps = [
            min(_STEPS, config.local_epochs * ceil(n / config.batch_size))
            for n in map(space.num_examples, clients)
        ]
        self._trainings = [
            partial(self._work.train, client, steps=steps)
            for client, steps in zip(clients, self._steps, strict=True)
        ]

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
        if number == 1:
            for training in self._trainings[:_ALONE]:
                training()
            return
        for result in self._work.train_at_once(
            self._trainings[:number], or_one_by_one=False
        ):
            result()
