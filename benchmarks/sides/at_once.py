"""Milliseconds of a client's step, of clients one by one and of several at once.

    python benchmarks/sides/at_once.py --data-dir DIR --output FILE

On the device that a node would take: a GPU if there is one, else one core. Clients of
60 MNIST or 50 CIFAR-10 images, as `clients-together = "auto"` tries them: with what it
takes to begin and end a client's training.
"""

import argparse
import json
from pathlib import Path

import torch

from fl_app import task, workspace
from fl_app.at_once import Trial
from fl_app.environment import default_options, find_project

_MODELS = {
    "mnist": ("logistic", "mlp", "cnn"),
    "cifar10": ("lenet", "resnet"),
}
_SPLIT = {
    "mnist": {"num-clients": 1000, "batch-size": 10},
    "cifar10": {"num-clients": 1000, "batch-size": 32},
}
_NUMBERS = {"cpu": (1, 2, 8, 32), "cuda": (1, 2, 4, 8, 16, 32, 64)}


def main() -> None:
    """Measure, and write the figures by model and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    found = {
        model: measure(dataset, model, arguments.data_dir)
        for dataset, chosen in _MODELS.items()
        for model in chosen
    }
    device = task.default_device()
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else "one core"
    described = {"device": on, "milliseconds": found}
    Path(arguments.output).write_text(json.dumps(described))


def measure(dataset: str, model: str, data_dir: str) -> dict[str, float | None]:
    """Return milliseconds of a client's step by number of clients at once.

    The last is None if so many do not fit the device's memory.
    """
    options = default_options(find_project()) | _SPLIT[dataset]
    options |= {"dataset": dataset, "data-dir": data_dir, "model": model}
    options |= {"partitioner": "iid", "validation-fraction": 0.0, "augment": False}
    options |= {"local-epochs": 1}
    space = workspace.with_options(options)
    numbers = _NUMBERS[task.default_device().type]
    trial = Trial(space, max(numbers))
    found: dict[str, float | None] = {}
    for number in numbers:
        try:
            seconds = trial.seconds_of_a_step(number)
        except torch.OutOfMemoryError:
            found[str(number)] = None
            break
        found[str(number)] = round(1e3 * seconds, 3)
    return found


if __name__ == "__main__":
    main()
