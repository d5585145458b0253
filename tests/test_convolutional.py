import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_app import convolutional, gradients, kernels, models, task
from fl_app.batches import LAYOUT, Batches, Examples, Normalisation, images_last
from fl_app.data.augment import rotate_shift
from tests.conftest import PROJECT

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 21, 30)]
OTHERS = sorted(models.MODELS.keys() - {"lenet"})
Found = list[torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def lenet(shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return task.place(models.build("lenet", shape, classes, seed=0))


def batch(shape: tuple[int, int, int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn((size, *shape), generator=draws)
    return inputs, torch.randint(0, 10, (size,), generator=draws)


def found(
    way: gradients.Backpropagation,
    model: nn.Module,
    given: tuple[torch.Tensor, torch.Tensor],
) -> Found:
    loss = way(*given)
    return [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_near(ours: Found, exact: Found) -> None:
    """Off by no more, of the largest in an array, than float32 is rounded."""
    assert len(ours) == len(exact) == 11
    for one, other in zip(ours, exact, strict=True):
        error = (one.double() - other).abs().max()
        assert error <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("size", [1, 7, 16, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_are_those_of_differentiation_in_double_precision(
    shape: tuple[int, int, int], size: int
) -> None:
    model, exact = lenet(shape), lenet(shape).double()
    inputs, targets = batch(shape, size)
    way = gradients.backpropagation(model, "float32")
    assert isinstance(way, convolutional.Network)
    ours = found(way, model, (inputs, targets))
    reference = gradients.automatic(exact, "float32")
    assert_near(ours, found(reference, exact, (inputs.double(), targets)))


def test_where_the_largest_are_equal_the_first_takes_the_gradient() -> None:
    shape = (3, 32, 32)
    model, exact = lenet(shape), lenet(shape).double()
    inputs = torch.ones((2, *shape))
    targets = torch.tensor([0, 3])
    ours = found(gradients.backpropagation(model, "float32"), model, (inputs, targets))
    reference = gradients.automatic(exact, "float32")
    assert_near(ours, found(reference, exact, (inputs.double(), targets)))


def test_by_hand() -> None:
    """A filter of ones over a ramp, and another that is never positive."""
    inputs = np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1)
    weights = np.ones((2, 1, 5, 5), np.float32)
    weights[1] = -1
    out = np.empty((2, 1, 1, 1), np.float32)
    places = np.empty(out.shape, np.int8)
    kernels.convolve(inputs, weights, np.array([1, 0], np.float32), out, places)
    # The window at the lower right, rows and columns 1 to 5: 25 times its middle, 21.
    assert out.ravel().tolist() == [25 * 21 + 1, 0]
    assert places.ravel().tolist() == [3, 4]
    of_weights, of_inputs = np.empty_like(weights), np.empty((0,) * 4, np.float32)
    of_bias = np.empty(2, np.float32)
    gradient = np.full(out.shape, 2, np.float32)
    kernels.differentiate(
        inputs, weights, places, gradient, of_weights, of_bias, of_inputs
    )
    assert of_bias.tolist() == [2, 0]
    assert of_weights[0, 0].tolist() == (2 * inputs[0, 1:, 1:, 0]).tolist()
    assert not of_weights[1].any()


def test_what_is_not_a_number_stays_so() -> None:
    inputs, _ = batch((1, 12, 12), 3)
    inputs[1, 0, 5, 5] = np.nan
    inputs[2, 0, 0, 0] = np.inf
    layer = nn.Conv2d(1, 2, 5)
    with torch.no_grad():
        expected = F.relu(F.max_pool2d(layer(inputs), 2))
        ours = convolutional.Convolution(layer, first=True).forward(images_last(inputs))
    torch.testing.assert_close(ours.permute(3, 0, 1, 2), expected, equal_nan=True)
    assert expected[1].isnan().any()
    assert not expected[0].isnan().any()


def test_training_that_diverges_is_an_error() -> None:
    options = task.TrainOptions(3, 8, "sgd", 1e20, 0.9, 0.0)
    labels = torch.arange(32) % 10
    with pytest.raises(FloatingPointError, match="learning-rate"):
        task.train(
            lenet((1, 28, 28)),
            Examples(torch.randint(256, (32, 1, 28, 28), dtype=torch.uint8), labels),
            options,
            Normalisation((0.5,), (0.25,)),
            seed=0,
        )


def test_gradients_lie_in_memory_as_their_parameters() -> None:
    model = lenet((3, 32, 32))
    gradients.backpropagation(model, "float32")(*batch((3, 32, 32), 4))
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def chain(*, kernel: int = 5, outputs: int = 6, **pooling: bool) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, outputs, kernel), nn.MaxPool2d(2, **pooling), nn.ReLU()),
        *(nn.Flatten(), nn.LazyLinear(3)),
    )


@pytest.mark.parametrize(
    "model",
    [
        chain(kernel=3),
        chain(outputs=5),
        chain(outputs=32),
        chain(ceil_mode=True),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)),
        nn.Sequential(*chain(), nn.Softmax(1)),
        nn.Sequential(chain()),
        *(models.build(name, (1, 28, 28), 10, seed=0) for name in OTHERS),
    ],
)
def test_other_networks_are_left_to_pytorch(model: nn.Module) -> None:
    assert convolutional.network(model) is None


def test_a_chain_of_ones_own_is_taken() -> None:
    model = chain()
    model(torch.zeros((1, 1, 12, 12)))  # the last layer takes its size from it
    assert isinstance(convolutional.network(model), convolutional.Network)


def test_other_arithmetic_is_left_to_pytorch() -> None:
    model = lenet((1, 28, 28))
    assert not isinstance(
        gradients.backpropagation(model, "bfloat16"), convolutional.Network
    )
    assert convolutional.network(lenet((1, 28, 28)).double()) is None
    next(model.parameters()).requires_grad_(False)
    assert convolutional.network(model) is None
    torch.set_num_threads(2)
    assert convolutional.network(lenet((1, 28, 28))) is None


@pytest.mark.parametrize("size", [20, 600])
@pytest.mark.parametrize("augment", [None, rotate_shift])
def test_batches_with_the_images_last_have_the_same_numbers(
    augment: task.Augment | None, size: int
) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, 32, 32), generator=draws, dtype=torch.uint8)
    examples = Examples(images, torch.arange(size))
    normalise = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    plain, last = (
        Batches(
            *(examples, normalise, augment, task.draws_of(0), torch.device("cpu")),
            images_last=lying,
        ).epochs(2, 32)
        for lying in (False, True)
    )
    number = 0
    for (inputs, targets), (others, other_targets) in zip(plain, last, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, other_targets)
        assert inputs.is_contiguous(memory_format=LAYOUT)
        assert others.permute(1, 2, 3, 0).is_contiguous()
        assert images_last(others).data_ptr() == others.data_ptr()
        number += len(targets)
    assert number == 2 * size


_PROGRAM = """
import hashlib, torch
from fl_app import models, task
torch.set_num_threads(1)
model = task.place(models.build("lenet", (3, 32, 32), 10, seed=0))
draws = torch.Generator().manual_seed(0)
images = torch.randint(256, (70, 3, 32, 32), generator=draws, dtype=torch.uint8)
task.train(
    model, task.Examples(images, torch.arange(70) % 10),
    task.TrainOptions(2, 32, "sgd", 0.1, 0.9, 0.0),
    task.Normalisation((0.5,) * 3, (0.25,) * 3), seed=0,
)
arrays = task.get_arrays(model)
print(hashlib.sha256(b"".join(a.tobytes() for a in arrays.values())).hexdigest())
"""


def test_what_is_compiled_and_what_was_kept_give_the_same_bits(
    tmp_path: Path,
) -> None:
    digests = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(ran.stdout.strip())
        assert list(tmp_path.rglob("kernels.differentiate*.nbc"))
    assert len(set(digests)) == 1
    assert len(digests[0]) == 64
