"""What is said of a GPU, seen on its stand-in: run by `test_stand_in` alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl_app import models, task, workspace
from fl_app.artifacts import read_model
from fl_app.batches import Examples, Normalisation
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
    return int(stand_in.functions["bytes_sent"]())


def values_read() -> int:
    """Return how often a value of the device's was waited for."""
    return int(stand_in.functions["values_read"]())


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
        data or examples().on(device),
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
@pytest.mark.parametrize("name", ["logistic", "mlp", "lenet", "cnn", "resnet"])
def test_a_client_trains_as_on_a_cpu(
    name: str, augmentation: str | None, way: dict[str, Any]
) -> None:
    there = trained(task.device(), name, augmentation, **way)
    here = trained(torch.device("cpu"), name, augmentation, **way)
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    # Normalised layers, and Adam, make much of how sums of convolutions are rounded.
    within = 0.1 if name == "resnet" else 1e-3
    for key, change in here[1].items():
        assert np.linalg.norm(there[1][key] - change) <= within * np.linalg.norm(change)
    assert there[2].num_correct == pytest.approx(here[2].num_correct, abs=2)
    assert there[2].loss == pytest.approx(here[2].loss, rel=within)


def test_bfloat16() -> None:
    loss, _, _ = trained(task.device(), "cnn", precision="bfloat16")
    assert loss == pytest.approx(trained(task.device(), "cnn")[0], rel=0.02)
    assert loss != trained(task.device(), "cnn")[0]


@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_images_stay_on_the_device(augmentation: str | None) -> None:
    """Of a client that trains there go the order of its images and what is drawn."""
    data = examples().on(task.device())
    trained(task.device(), "logistic", augmentation, data=data)
    model = task.place(models.build("logistic", SHAPE, 10, seed=0))
    options = task.TrainOptions.of_round(make_config(local_epochs=3, batch_size=16), 1)
    sent, read = bytes_sent(), values_read()
    task.train(
        *(model, data, options, NORMALISE),
        seed=0,
        augment=AUGMENTATIONS[augmentation] if augmentation else None,
    )
    order, drawn = 3 * 50 * 8, 3 * 50 * 3 * 4 * bool(augmentation)
    few = 100  # the loss, to begin with
    assert bytes_sent() - sent <= order + drawn + few
    assert values_read() - read == 1  # the loss, at the end


def test_a_nodes_data_set_is_moved_there_once() -> None:
    options = tuple(sorted((default_options() | {"num-clients": 3}).items()))
    space = workspace._cached_workspace(options, 1, None, "")
    indices = [space.partition.split(client)[0] for client in range(3)]
    first = workspace.examples_of(space, indices[0])
    assert first.images.device == first.labels.device == task.device()
    sent = bytes_sent()
    others = [workspace.examples_of(space, each) for each in indices[1:]]
    assert bytes_sent() - sent == sum(8 * len(each) for each in others)
    assert all(each.images is first.images for each in others)


def test_what_lies_on_two_devices_is_refused() -> None:
    """Else nothing here would be seen."""
    there = torch.ones(3, device=task.device())
    for mixed in (
        lambda: there + torch.ones(3),
        lambda: torch._foreach_add_([there], [torch.ones(3)]),
        lambda: torch._fused_sgd_(
            [torch.ones(2, 3, device=task.device())],
            [torch.ones(3, 2, device=task.device()).t()],
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


def test_a_federation_learns(tmp_path: Path) -> None:
    """Its server judges there, too."""
    folder = run(tmp_path, model="cnn", num_server_rounds=3)
    summary = folder.summary()
    assert summary is not None
    assert summary["final_test_accuracy"] > 0.5
    assert read_model(folder.path / "model.safetensors")
