"""What is said of a GPU, seen on its stand-in: run by `test_stand_in` alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from fl_app import at_once, models, task, workspace
from fl_app.batches import Examples, Normalisation
from fl_app.client_work import ClientWork
from fl_app.data.augment import AUGMENTATIONS
from tests import stand_in
from tests.conftest import default_options, make_config
from tests.test_run import run

SHAPE = (3, 32, 32)
NORMALISE = Normalisation((0.5,) * 3, (0.25,) * 3)
WAYS: list[dict[str, Any]] = [
    {"momentum": 0.9, "weight_decay": 0.001, "max_gradient_norm": 1.0},
    {"optimizer": "adam", "learning_rate": 0.001},
]


def bytes_sent() -> int:
    """Return how many bytes have gone to the device."""
    return int(sys.modules[stand_in.NAME].bytes_sent())


def waits() -> int:
    """Return how often the CPU waited for what the device has to do."""
    return int(sys.modules[stand_in.NAME].waits())


def examples() -> Examples:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (600, *SHAPE), dtype=torch.uint8, generator=draws)
    labels = torch.randint(10, (600,), generator=draws)
    return Examples(images, labels, torch.randperm(600, generator=draws)[:50])


def trained(
    device: torch.device,
    name: str,
    augmentation: str | None = None,
    data: Examples | None = None,
    **changes: Any,
) -> tuple[float, dict[str, NDArray[Any]], task.Evaluation]:
    """Return a client's loss, the change of its model and what that is worth."""
    options = {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes
    model = models.build(name, SHAPE, 10, seed=0).to(device)
    model = model.to(memory_format=task.LAYOUT)
    task.gather(model)
    start = task.Snapshot(model)
    loss = task.train(
        model,
        data or examples().to(device),
        task.TrainOptions.of_round(make_config(**options), 1),
        NORMALISE,
        seed=0,
        augment=AUGMENTATIONS[augmentation] if augmentation else None,
    )
    changes = {key: np.array(array) for key, array in start.changes().items()}
    result = task.evaluate(model, examples(), NORMALISE, num_classes=10)
    return loss, changes, result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
@pytest.mark.parametrize("name", models.MODELS)
def test_a_client_trains_as_on_a_cpu(
    name: str, augmentation: str | None, way: dict[str, Any]
) -> None:
    there = trained(task.default_device(), name, augmentation, **way)
    here = trained(torch.device("cpu"), name, augmentation, **way)
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    # Normalised layers, and Adam, make much of how sums of convolutions are rounded.
    within = 0.1 if name in ("resnet", "improved-cnn") else 1e-3
    for key, change in here[1].items():
        assert np.linalg.norm(there[1][key] - change) <= within * np.linalg.norm(change)
    assert there[2].num_correct == pytest.approx(here[2].num_correct, abs=2)
    assert there[2].loss == pytest.approx(here[2].loss, rel=within)


def test_bfloat16() -> None:
    loss, _, _ = trained(task.default_device(), "cnn", precision="bfloat16")
    exact, _, _ = trained(task.default_device(), "cnn")
    assert loss == pytest.approx(exact, rel=0.02)
    assert loss != exact


@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_images_stay_on_the_device(augmentation: str | None) -> None:
    """Of a client that trains there go the order of its images and what is drawn."""
    data = examples().to(task.default_device())
    trained(task.default_device(), "logistic", augmentation, data=data)
    model = task.place(models.build("logistic", SHAPE, 10, seed=0))
    options = task.TrainOptions.of_round(make_config(local_epochs=3, batch_size=16), 1)
    sent, waited = bytes_sent(), waits()
    task.train(
        *(model, data, options, NORMALISE),
        seed=0,
        augment=AUGMENTATIONS[augmentation] if augmentation else None,
    )
    order, drawn = 3 * 50 * 8, 3 * 50 * 3 * 4 * bool(augmentation)
    few = 100  # the loss, to begin with
    assert bytes_sent() - sent <= order + drawn + few
    assert waits() - waited == 1  # for the loss, at the end


def test_a_nodes_data_set_is_moved_there_once() -> None:
    space = workspace.with_options(default_options() | {"num-clients": 3})
    indices = [space.partition.split(client)[0] for client in range(3)]
    first = workspace.examples_of(space, indices[0])
    assert first.images.device == first.labels.device == task.default_device()
    sent = bytes_sent()
    others = [workspace.examples_of(space, each) for each in indices[1:]]
    assert bytes_sent() - sent == sum(8 * len(each) for each in others)
    assert all(each.images is first.images for each in others)


def test_how_many_at_once_is_tried_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def seconds(trial: at_once.Trial, number: int) -> float:
        sent = bytes_sent()
        trial.train(number)
        assert bytes_sent() > sent
        tried.append(number)
        return 1 / number

    monkeypatch.setattr(at_once.Trial, "seconds_of_a_step", seconds)
    folder = run(tmp_path, model="mlp", num_clients=9, clients_together="auto")
    assert tried == [1, 2, 4] * 2  # five of nine clients for one of two nodes
    described, summary = folder.config(), folder.summary()
    assert described is not None
    assert described["options"]["clients-together"] == 4
    assert summary is not None
    assert summary["final_test_accuracy"] > 0.5


class Started(TorchDispatchMode):
    """Counts the operations that compute: on a GPU each is started by the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        self.number += not operation.is_view and "empty" not in str(operation)
        return operation(*given, **(named or {}))


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn", "lenet", "resnet"])
def test_clients_at_once_start_fewer_operations(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[int] = []  # a mode is of its thread, and these have theirs
    train = ClientWork.train

    def counted(
        work: Any, client: int, model: Any = None, *more: Any, **how: Any
    ) -> Any:
        if model is None:
            return train(work, client, **how)
        with Started() as started:
            result = train(work, client, model, *more, **how)
        beside.append(started.number)
        return result

    monkeypatch.setattr(ClientWork, "train", counted)
    options = {"model": name, "num-clients": 32, "batch-size": 8, "local-epochs": 2}
    options |= {"partitioner": "iid", "max-gradient-norm": 0.0}
    trial = at_once.Trial(workspace.with_options(default_options() | options), 32)
    of_a_step = {}
    for number in (1, 2, 8, 32):
        with Started() as started:
            trial.train(number)
        assert len(beside) == (0 if number == 1 else number)
        of_a_step[number] = (started.number + sum(beside)) / trial.steps(number)
        beside.clear()
    print(name, {number: round(each, 1) for number, each in of_a_step.items()})
    assert of_a_step[32] < of_a_step[1] / 4


def test_what_lies_on_two_devices_is_refused() -> None:
    """Else nothing here would be seen."""
    there = torch.ones(3, device=task.default_device())
    for mixed in (
        lambda: there + torch.ones(3),
        lambda: torch.stack([there[0], torch.ones(())]),
        lambda: torch._foreach_add_([there], [torch.ones(3)]),
        lambda: torch._fused_sgd_(
            [torch.ones(2, 3, device=task.default_device())],
            [torch.ones(3, 2, device=task.default_device()).t()],
            [],
            lr=1.0,
            momentum=0.0,
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=True,
        ),
    ):
        with pytest.raises(RuntimeError, match=r"device|lie as its parameter"):
            mixed()


def test_what_is_large_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And clients train all the same, to the same bits."""
    device = task.default_device()
    moved = [trained(device, "cnn", each)[1] for each in (None, "flip-crop")]
    size = examples().images.nbytes
    of_device = torch.get_device_module(device)
    monkeypatch.setattr(of_device, "mem_get_info", lambda _: (10 * size, 10 * size))
    assert examples().to(device).images.device.type == "cpu"
    stayed = [trained(device, "cnn", each)[1] for each in (None, "flip-crop")]
    for one, other in zip(moved, stayed, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["lenet", "improved-cnn"])
def test_a_model_is_fetched_at_once(name: str) -> None:
    """However many tensors it has; those of each dtype together."""
    model = task.place(models.build(name, SHAPE, 10, seed=0))
    waited = waits()
    arrays = task.get_arrays(model)
    assert waits() - waited == len({array.dtype for array in arrays.values()})
    state = model.cpu().state_dict()
    assert list(arrays) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(arrays[key], tensor.numpy())


def test_evaluation_waits_three_times() -> None:
    """However many images there are."""
    device = task.default_device()
    model = task.place(models.build("logistic", SHAPE, 10, seed=0))
    data = Examples(examples().images, examples().labels).to(device)
    task.evaluate(model, data, NORMALISE, num_classes=10)
    waited = waits()
    task.evaluate(model, data, NORMALISE, num_classes=10, chunk=50)
    assert waits() - waited == 3


def test_a_federation_learns_there(tmp_path: Path) -> None:
    before = bytes_sent()
    folder = run(tmp_path, model="cnn", num_server_rounds=3)
    summary = folder.summary()
    assert summary is not None
    assert summary["final_test_accuracy"] > 0.5
    model = (folder.path / "model.safetensors").stat().st_size
    evaluated, trained = 4, 3  # the first model, too
    assert bytes_sent() - before >= 0.9 * (evaluated + trained) * model
