"""What `make bench` measures, and the files that its sides are handed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A federation whose rounds are timed."""

    name: str
    dataset: str
    model: str
    num_clients: int
    examples: int
    """Of each client."""
    batch_size: int
    cohort: int
    """Clients in a round."""
    local_epochs: int = 1
    learning_rate: float = 0.02
    momentum: float = 0.9
    validation_fraction: float = 0.0
    """Of a client's part, set aside so that `examples` are left to train on."""
    nodes: int = 0
    """Of our app; 0 for as many as fit the machine."""
    clients_together: int | str = 1
    sides: tuple[str, ...] = ("floor", "naive", "ours", "plain", "pinned", "pfl")
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Our app's options."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "partitioner": "iid",
            "num-clients": self.num_clients,
            "validation-fraction": self.validation_fraction,
            "fraction-train": self.cohort / self.num_clients,
            "fraction-evaluate": 0.0,
            "batch-size": self.batch_size,
            "local-epochs": self.local_epochs,
            "optimizer": "sgd",
            "learning-rate": self.learning_rate,
            "learning-rate-decay": 1.0,
            "momentum": self.momentum,
            "weight-decay": 0.0,
            "max-gradient-norm": 0.0,
            "augment": False,
            "clients-together": self.clients_together,
            "seed": self.seed,
        }


_LENET = {"dataset": "cifar10", "model": "lenet", "batch_size": 32}
CASES = [
    Case("10 x 4,000", **_LENET, num_clients=10, cohort=10, examples=4000,
         validation_fraction=0.2),
    Case("100 x 500", **_LENET, num_clients=100, cohort=100, examples=500),
    Case("1,000 x 50", **_LENET, num_clients=1000, cohort=1000, examples=50),
    Case("MNIST cnn", "mnist", "cnn", num_clients=100, cohort=10, examples=600,
         batch_size=10, local_epochs=5, sides=("floor", "naive", "ours")),
]  # fmt: skip
GROWTH = [
    Case(f"{clients:,} clients", **_LENET, num_clients=clients, cohort=clients,
         examples=50_000 // clients, sides=("ours",))
    for clients in (10, 100, 1_000, 10_000)
]  # fmt: skip
COHORTS = [
    Case(f"{clients:,} clients, 100 a round", **_LENET, num_clients=clients, cohort=100,
         examples=5, validation_fraction=0.0 if clients == 10_000 else 0.99,
         sides=("ours",))
    for clients in (100, 10_000)
]  # fmt: skip


def write(case: Case, data_dir: str, rounds: int, folder: Path) -> Path:
    """Write the case, with its data as arrays, for the sides; return its file.

    `owners` (num_clients, examples) are indices into the training images: the same
    parts as in our app's own run.
    """
    from fl_app.config import RunConfig
    from fl_app.data import datasets
    from fl_app.environment import default_options, find_project

    declared = default_options(find_project())
    options = declared | case.options | {"data-dir": data_dir}
    config = RunConfig.from_options(options, datasets.recipe_for)
    data = datasets.load(config)
    partition = data.partition(config, 1)
    owners = [partition.split(client)[0] for client in range(case.num_clients)]
    sizes = {len(owned) for owned in owners}
    if sizes != {case.examples}:
        raise SystemExit(f"{case.name}: clients have {sizes} examples")
    arrays = folder / "data.npz"
    np.savez(
        arrays,
        train_images=data.train_images,
        train_labels=data.train_labels,
        test_images=data.test_images,
        test_labels=data.test_labels,
        mean=np.array(data.mean, np.float32),
        std=np.array(data.std, np.float32),
        owners=np.stack(owners),
    )
    path = folder / "case.json"
    described = asdict(case) | {
        "data": str(arrays),
        "data_dir": data_dir,
        "rounds": rounds,
        "options": case.options,
    }
    path.write_text(json.dumps(described))
    return path
