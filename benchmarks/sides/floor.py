"""A training step alone: plain loops over tensors in memory, one process a core.

    python benchmarks/sides/floor.py --case CASE --output FILE [--naive]

The same clients, batches and SGD steps as the federation's, each client going on from
where the one before ended: no model is sent, received, averaged or evaluated. With our
own training step, or (`--naive`) with the step that a tutorial writes: eager PyTorch,
`torch.optim.SGD`, images as they come. Either normalises a client's images at its turn.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_app import models, task

_IDLE_SECONDS = 300.0


def main() -> None:
    """Measure, and write the seconds of each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--naive", action="store_true")
    arguments = parser.parse_args()
    case = json.loads(Path(arguments.case).read_text())
    with Floor(case, naive=arguments.naive) as floor:
        seconds = [floor.round() for _ in range(case["rounds"])]
    Path(arguments.output).write_text(json.dumps({"seconds": seconds}))


class Floor:
    """The processes, one a core, whose rounds start when they are asked to."""

    def __init__(self, case: Mapping[str, Any], *, naive: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        number = len(os.sched_getaffinity(0))
        self._barrier = context.Barrier(number + 1)
        self._spans: multiprocessing.Queue[tuple[float, float]] = context.Queue()
        gates = (self._barrier, self._spans)
        self._workers = [
            context.Process(
                target=work, args=(case, rank, number, naive, *gates), daemon=True
            )
            for rank in range(number)
        ]

    def __enter__(self) -> "Floor":
        for worker in self._workers:
            worker.start()
        return self

    def round(self) -> float:
        """Train a round's clients; return its seconds, first start to last end."""
        self._barrier.wait()
        spans = [self._spans.get() for _ in self._workers]
        return max(end for _, end in spans) - min(start for start, _ in spans)

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.terminate()
            worker.join()


def work(
    case: Mapping[str, Any],
    rank: int,
    number: int,
    naive: bool,
    barrier: Barrier,
    spans: "multiprocessing.Queue[tuple[float, float]]",
) -> None:
    """Train every `number`-th client of each round's cohort; put start and end."""
    torch.set_num_threads(1)
    data = np.load(case["data"])
    images, labels = data["train_images"], data["train_labels"]
    normalise = task.Normalisation(tuple(data["mean"]), tuple(data["std"]))
    model = models.build(case["model"], images.shape[1:], 10, seed=case["seed"])
    owned = [
        task.Examples(torch.from_numpy(images[o]), torch.from_numpy(labels[o]))
        for o in data["owners"]
    ]
    if not naive:
        model = task.place(model)
    options = task.TrainOptions(
        case["local_epochs"],
        case["batch_size"],
        "sgd",
        case["learning_rate"],
        case["momentum"],
        0.0,
    )
    draws = np.random.default_rng(case["seed"])
    for round in itertools.count():
        cohort = draws.permutation(case["num_clients"])[: case["cohort"]]
        barrier.wait(_IDLE_SECONDS)  # who asked may be gone
        start = time.monotonic()
        for client in cohort[rank::number]:
            if naive:
                inputs = normalise(owned[client].images.float())
                train_naively(model, inputs, owned[client].labels, case)
            else:
                task.train(model, owned[client], options, normalise, seed=round)
        spans.put((start, time.monotonic()))


def train_naively(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    case: Mapping[str, Any],
) -> None:
    """Train as a tutorial does, but for its data loader."""
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case["learning_rate"], momentum=case["momentum"]
    )
    for _ in range(case["local_epochs"]):
        for chosen in torch.randperm(len(labels)).split(case["batch_size"]):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
