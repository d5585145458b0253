"""Images a second of the local training step: ours in bfloat16 beside eager float32.

    python benchmarks/sides/step.py --output FILE

One process, one thread; random images, as the arithmetic does not depend on them. In
turn, so that each sees the machine as the others do.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from fl_app import models, task

_SHAPES = {"cnn": (1, 28, 28), "resnet": (3, 32, 32), "lenet": (3, 32, 32)}
_BATCH, _STEPS, _TURNS = 64, 12, 7


def main() -> None:
    """Measure, and write images a second by model and step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name) for name in _SHAPES}
    Path(arguments.output).write_text(json.dumps(found))


def measure(name: str) -> dict[str, float]:
    """Return images a second by kind of step."""
    shape = _SHAPES[name]
    labels = torch.randint(10, (_BATCH * _STEPS,))
    pixels = torch.randint(256, (len(labels), *shape), dtype=torch.uint8)
    normalise = task.Normalisation((0.5,) * shape[0], (0.25,) * shape[0])
    tutorial = models.build(name, shape, 10, seed=0)
    model = task.place(models.build(name, shape, 10, seed=0))
    examples = task.Examples(pixels, labels)
    seconds: dict[str, list[float]] = {"eager": [], "float32": [], "bfloat16": []}
    for _ in range(_TURNS + 1):
        start = time.perf_counter()
        eager(tutorial, normalise(pixels.float()), labels)
        seconds["eager"].append(time.perf_counter() - start)
        for precision in ("float32", "bfloat16"):
            options = task.TrainOptions(1, _BATCH, "sgd", 0.01, 0.9, 0.0, precision)
            start = time.perf_counter()
            task.train(model, examples, options, normalise, seed=0)
            seconds[precision].append(time.perf_counter() - start)
    return {kind: len(labels) / median(each[1:]) for kind, each in seconds.items()}


def eager(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Train an epoch as a tutorial does, but for its data loader."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for chosen in torch.randperm(len(labels)).split(_BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
