"""Seconds of each round of federated averaging in Apple's pfl-research.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 pfl_side.py --case C --output O

One process per core, as in pfl-research's own benchmarks: each trains its share of the
cohort and the updates are summed by an all-reduce. It needs pfl, torch and numpy, and
writes one JSON object from the first process. A round is timed from its start to the
updated central model; what the script checks or evaluates lies between the rounds.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal import ops
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

EVALUATION_BATCH = 500


class Classifier(nn.Module):
    """An image classifier with the methods that pfl calls.

    Args:
        layers: the network, from images to the classes' scores.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Return the classes' scores of each image."""
        return self.layers(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Return the accuracy on a batch, weighted by its examples."""
        correct = (self(images).argmax(1) == labels).sum().item()
        return {"accuracy": Weighted(correct, len(labels))}


def build_model(name: str, channels: int, height: int) -> Classifier:
    """Build a network for square images of ten classes.

    Args:
        name: "lenet" or "cnn".
        channels: channels of an image.
        height: height, and width, of an image.

    Returns:
        The network, with PyTorch's default initial parameters.
    """
    if name == "lenet":
        side = (height - 12) // 4
        layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )
    elif name == "cnn":
        side = height // 4
        layers = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * side * side, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    else:
        raise ValueError(f"no such model: {name}")
    return Classifier(layers)


class Ledger:
    """What this process trained: the users of a round, and the first round's steps."""

    def __init__(self) -> None:
        self.users: list[int] = []
        self.steps = 0
        self.counting = True

    def add_step(self, *_: Any) -> None:
        """Count one step of a local optimiser."""
        self.steps += 1


class UntestedAveraging(FederatedAveraging):
    """Federated averaging that never evaluates a user's data.

    pfl evaluates each user before and after its training whenever the iteration is a
    multiple of the evaluation frequency, and so always in the first one.
    """

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> tuple:
        """Return pfl's instructions for the next round, without evaluation."""
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(
                dataclasses.replace(context, do_evaluation=False)
                for context in contexts
            )
        return contexts, model, metrics


class RoundClock(TrainingProcessCallback):
    """Times the rounds and, between them, checks and evaluates the model.

    Args:
        case: the workload.
        ledger: what this process trained.
        test: the test set.
        steps: the steps a round has to take, over all processes.
    """

    def __init__(self, case: dict, ledger: Ledger, test: Dataset, steps: int) -> None:
        self.seconds: list[float] = []
        self.evaluation_seconds: list[float] = []
        self.accuracy: list[float] = []
        self.steps_per_round = 0
        self.startup_seconds = 0.0
        self._case = case
        self._ledger = ledger
        self._test = test.get_worker_partition()
        self._expected_steps = steps
        self._start = 0.0

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Start the first round once every process is ready."""
        total(torch.zeros(1))
        self.startup_seconds = process_age()
        self._start = time.perf_counter()
        return Metrics()

    def after_central_iteration(
        self,
        aggregate_metrics: Metrics,
        model: PyTorchModel,
        *,
        central_iteration: int,
    ) -> tuple[bool, Metrics]:
        """End a round, check it, evaluate the model and start the next one."""
        end = time.perf_counter()
        self.seconds.append(end - self._start)
        self._check()
        total(torch.zeros(1))
        start = time.perf_counter()
        metrics = ops.all_reduce_metrics(
            model.evaluate(
                self._test,
                eval_params=NNEvalHyperParams(local_batch_size=EVALUATION_BATCH),
            )
        )
        self.evaluation_seconds.append(time.perf_counter() - start)
        self.accuracy.append(metrics["accuracy"].overall_value)
        total(torch.zeros(1))
        self._start = time.perf_counter()
        return False, Metrics()

    def _check(self) -> None:
        times = torch.zeros(self._case["num_clients"])
        for user in self._ledger.users:
            times[user] += 1
        self._ledger.users.clear()
        times = total(times)
        if times.max() > 1 or times.sum() != self._case["cohort"]:
            raise RuntimeError("a round did not train each user of its cohort once")
        if self._ledger.counting:
            self._ledger.counting = False
            self.steps_per_round = int(total(torch.tensor([self._ledger.steps])).item())
            if self.steps_per_round != self._expected_steps:
                raise RuntimeError(
                    f"{self.steps_per_round} steps instead of {self._expected_steps}"
                )


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, which wait for each other."""
    return distributed.all_reduce([values])[0]


def process_age() -> float:
    """Return the seconds since this process started (Linux only)."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def normalise(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Return uint8 images as float32 of zero mean and unit variance."""
    shape = (1, -1, 1, 1)
    scaled = torch.from_numpy(images).float().div_(255)
    return scaled.sub_(torch.from_numpy(mean).view(shape)).div_(
        torch.from_numpy(std).view(shape)
    )


def build_users(
    case: dict, arrays: dict[str, np.ndarray], ledger: Ledger
) -> FederatedDataset:
    """Build the federated data set, each user's tensors cached in memory.

    pfl trains on a user's examples in the order they are stored, so that order is drawn
    here, as is the order in which the users are sampled.

    Args:
        case: the workload.
        arrays: the data file's arrays.
        ledger: notes each user as it is trained.

    Returns:
        The data set, which samples no user twice in a round.
    """
    draws = np.random.default_rng(case["seed"])
    owners = draws.permuted(arrays["owners"], axis=1)
    clients, examples = owners.shape
    if clients != case["num_clients"]:
        raise ValueError(f"the data has {clients} clients, not {case['num_clients']}")
    order = owners.reshape(-1)
    images = normalise(arrays["train_images"][order], arrays["mean"], arrays["std"])
    labels = torch.from_numpy(arrays["train_labels"][order])
    data = list(zip(images.split(examples), labels.split(examples), strict=True))

    def make_dataset(user: int) -> Dataset:
        ledger.users.append(user)
        return Dataset(data[user], user_id=str(user))

    # Without weights each process counts the users it drew, and the processes drift
    # apart where the cohort does not divide among them.
    uneven = case["cohort"] % distributed.world_size != 0
    return FederatedDataset(
        make_dataset,
        get_user_sampler("minimize_reuse", draws.permutation(clients).tolist()),
        user_id_to_weight=dict.fromkeys(range(clients), examples) if uneven else None,
    )


def build_network(case: dict, shape: tuple[int, ...], ledger: Ledger) -> PyTorchModel:
    """Build the model with its local and central optimisers.

    Args:
        case: the workload.
        shape: the shape of an image, channels first.
        ledger: notes each step of a local optimiser in the first round.

    Returns:
        The model, the same in every process.
    """
    network = build_model(case["model"], shape[0], shape[1])

    def local_optimizer(
        parameters: Iterable[nn.Parameter], lr: float
    ) -> torch.optim.SGD:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=case["momentum"])
        if ledger.counting:
            optimizer.register_step_post_hook(ledger.add_step)
        return optimizer

    return PyTorchModel(
        model=network,
        local_optimizer_create=local_optimizer,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )


def run(case: dict) -> dict[str, Any]:
    """Train the workload.

    Args:
        case: the workload, as read from its file.

    Returns:
        What the first process measured.
    """
    torch.manual_seed(case["seed"])
    np.random.seed(case["seed"])  # noqa: NPY002 - pfl draws from it
    with np.load(case["data"]) as file:
        arrays = dict(file)
    ledger = Ledger()
    users = build_users(case, arrays, ledger)
    model = build_network(case, arrays["train_images"].shape[1:], ledger)
    images = normalise(arrays["test_images"], arrays["mean"], arrays["std"])
    test = Dataset((images, torch.from_numpy(arrays["test_labels"])))
    batches = -(-arrays["owners"].shape[1] // case["batch_size"])
    clock = RoundClock(
        case, ledger, test, case["cohort"] * case["local_epochs"] * batches
    )
    del arrays, images
    UntestedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=case["rounds"],
            evaluation_frequency=case["rounds"],
            train_cohort_size=case["cohort"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=case["batch_size"],
            local_num_epochs=case["local_epochs"],
            local_learning_rate=case["learning_rate"],
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return {
        "framework": f"pfl-research {version('pfl')}",
        "startup_seconds": clock.startup_seconds,
        "seconds": clock.seconds,
        "evaluation_seconds": clock.evaluation_seconds,
        "accuracy": clock.accuracy,
        "steps_per_round": clock.steps_per_round,
    }


def main() -> None:
    """Run the case of the command line and write what it measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # Otherwise pfl looks for a GPU at every batch.
    os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")
    torch.set_num_threads(1)
    result = run(json.loads(arguments.case.read_text()))
    if distributed.global_rank == 0:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
