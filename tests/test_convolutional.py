import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_app import convolutional, gradients, kernels, models, optim, task
from fl_app.batches import LAYOUT, Batches, Examples, Normalisation, to_images_last
from fl_app.client_work import ClientWork
from fl_app.data.augment import rotate_shift
from strategies import aggregation
from strategies.difference import Difference, Layout
from tests.conftest import PROJECT, make_config

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 21, 30)]
OTHERS = sorted(models.MODELS.keys() - {"lenet"})
Found = list[torch.Tensor]
BOUND = 2.0**62
KERNELS = aggregation.Arithmetic(kernels.add_fixed_point, kernels.sums_of_squares)
SUMMING = [kernels.add_fixed_point, aggregation.NUMPY.add_fixed_point]
SQUARING = [kernels.sums_of_squares, aggregation.NUMPY.sums_of_squares]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert len(ours) == len(exact) > 1
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


def test_a_model_whose_channels_lie_last_has_the_same_gradients() -> None:
    """To the bit; they lie as it does, which the optimiser's step relies on."""
    shape = (3, 32, 32)
    usual = lenet(shape)
    last = models.build("lenet", shape, 10, seed=0).to(memory_format=LAYOUT)  # type: ignore[call-overload]
    assert usual[0].weight.is_contiguous()
    assert not last[0].weight.is_contiguous()
    for model in (usual, last):
        way = gradients.backpropagation(model, "float32")
        assert isinstance(way, convolutional.Network)
        way(*batch(shape, 8))
    for one, other in zip(usual.parameters(), last.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
        assert other.grad.stride() == other.stride()
    steps = [
        optim.sgd(model.parameters(), learning_rate=0.1, momentum=0.9, weight_decay=0.0)
        for model in (usual, last)
    ]
    for step in steps:
        step()
    for one, other in zip(usual.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


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
        ours = convolutional.Convolution(layer, first=True).forward(
            to_images_last(inputs)
        )
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


def chain(
    *, side: int = 6, outputs: int = 6, pooling: nn.Module | None = None, **changes: Any
) -> nn.Module:
    """Returns a small network for images of 16 x 16 with a channel; `side` after it."""
    options = {"in_channels": 1, "kernel_size": 5} | changes
    return nn.Sequential(
        *(nn.Conv2d(out_channels=outputs, **options), pooling or nn.MaxPool2d(2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(outputs * side * side, 3)),
    )


def two_convolutions(between: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, between, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(between, 4, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )


def padded(*padding: int) -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d(padding), *chain(side=7))


TAKEN = {
    "one convolution": chain(),
    "two": two_convolutions(6),
    "padded": padded(0, 2, 0, 2),
    "two linear": nn.Sequential(*chain(), nn.ReLU(), nn.Linear(3, 3)),
}
LEFT = {
    "3x3": chain(kernel_size=3, side=7),
    "odd outputs": chain(outputs=5),
    "odd inputs": two_convolutions(5),
    "many outputs": chain(outputs=18),
    "stride": chain(stride=2, side=3),
    "dilation": chain(dilation=2, side=4),
    "padding": chain(padding=2, side=8),
    "groups": chain(in_channels=2, groups=2),
    "no bias": chain(bias=False),
    "pooling of three": chain(pooling=nn.MaxPool2d(3), side=4),
    "pooling that overlaps": chain(pooling=nn.MaxPool2d(2, 1), side=11),
    "pooling of odd ends": chain(pooling=nn.MaxPool2d(2, ceil_mode=True)),
    "mean pooling": chain(pooling=nn.AvgPool2d(2)),
    "padded above": padded(2, 0, 2, 0),
    "linear without bias": nn.Sequential(
        *chain(), nn.ReLU(), nn.Linear(3, 3, bias=False)
    ),
    "flattened in part": nn.Sequential(
        *list(chain())[:3], nn.Flatten(2), nn.Linear(36, 3)
    ),
    "no convolution": nn.Sequential(nn.Flatten(), nn.Linear(256, 3)),
    "another layer": nn.Sequential(*chain(), nn.Softmax(1)),
    "nested": nn.Sequential(chain()),
    **{name: models.build(name, (1, 16, 16), 3, seed=0) for name in OTHERS},
}


@pytest.mark.parametrize("model", TAKEN.values(), ids=TAKEN.keys())
def test_a_chain_of_ones_own_is_taken(model: nn.Module) -> None:
    inputs, targets = batch((1, 16, 16), 5)
    targets %= 3
    way = gradients.backpropagation(model, "float32")
    assert isinstance(way, convolutional.Network)
    ours = found(way, model, (inputs, targets))
    exact = copy.deepcopy(model).double()
    reference = gradients.automatic(exact, "float32")
    assert_near(ours, found(reference, exact, (inputs.double(), targets)))


@pytest.mark.parametrize("model", LEFT.values(), ids=LEFT.keys())
def test_other_networks_are_left_to_pytorch(model: nn.Module) -> None:
    way = gradients.backpropagation(model, "float32")
    assert not isinstance(way, convolutional.Network)
    channels = 2 if model is LEFT["groups"] else 1
    if model is not LEFT["flattened in part"]:  # they are networks all the same
        model(torch.zeros((2, channels, 16, 16)))


def test_images_of_other_channels_are_an_error() -> None:
    way = gradients.backpropagation(lenet((3, 32, 32)), "float32")
    with pytest.raises(ValueError, match="inputs have 1 channels, filters 3"):
        way(*batch((1, 32, 32), 2))


class Pull:
    """A term whose gradient is that of mu / 2 |w - w0|^2."""

    implicit = False

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._moving = list(model.parameters())
        self._start = [p.detach().clone() for p in self._moving]
        self._mu = mu

    def add_gradient(self) -> None:
        for moving, start in zip(self._moving, self._start, strict=True):
            assert moving.grad is not None
            moving.grad.add_(moving.detach() - start, alpha=self._mu)

    def step(self, step_size: float) -> None:
        raise AssertionError


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_is_that_of_automatic_differentiation(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over steps, with momentum, clipped gradients, a term and a last smaller batch."""
    shape = (3, 32, 32)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (75, *shape), generator=draws, dtype=torch.uint8)
    examples = Examples(images, torch.arange(75) % 10)
    rate = 0.05 if optimizer == "sgd" else 0.001
    options = task.TrainOptions(2, 32, optimizer, rate, 0.9, 1e-3, max_gradient_norm=1)
    ends = []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(convolutional, "network", lambda model: None)
        model = lenet(shape)
        start = task.get_arrays(model)
        loss = task.train(
            *(model, examples, options, Normalisation((0.5,) * 3, (0.25,) * 3)),
            seed=0,
            term=Pull(model, 0.1),
        )
        ends.append((loss, task.get_arrays(model)))
    (loss, ours), (other_loss, theirs) = ends
    assert loss == pytest.approx(other_loss, rel=1e-4)
    for name, array in ours.items():
        moved = np.abs(theirs[name] - start[name]).max()
        assert moved > 0
        assert np.abs(array - theirs[name]).max() < 0.01 * moved


def test_other_arithmetic_is_left_to_pytorch() -> None:
    model = lenet((1, 28, 28))
    for threads, precision in ((1, "bfloat16"), (2, "float32")):
        torch.set_num_threads(threads)
        way = gradients.backpropagation(model, precision)
        assert not isinstance(way, convolutional.Network)
    assert convolutional.network(lenet((1, 28, 28)).double()) is None
    next(model.parameters()).requires_grad_(False)
    assert convolutional.network(model) is None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 64, 200])
def test_evaluation_is_that_of_the_model(size: int, threads: int) -> None:
    model = lenet((3, 32, 32))
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, 32, 32), generator=draws, dtype=torch.uint8)
    normalise = Normalisation((0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        logits = model(normalise(images.float())) if size else torch.zeros((0, 10))
    right = logits.argmax(dim=1)
    labels = torch.where(torch.arange(size) % 3 == 0, (right + 1) % 10, right)
    torch.set_num_threads(threads)
    result = task.evaluate(model, Examples(images, labels), normalise, num_classes=10)
    assert result.num_correct == size - len(range(0, size, 3))
    expected = float(F.cross_entropy(logits, labels)) if size else 0.0
    assert result.loss == pytest.approx(expected, rel=1e-5)


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
        assert to_images_last(others).data_ptr() == others.data_ptr()
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
from fl_app import kernels
stats = kernels.differentiate.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_what_is_compiled_and_what_was_kept_give_the_same_bits(tmp_path: Path) -> None:
    """In processes of their own, since a process compiles once: some seconds."""
    said = [_in_a_process({"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(2)]
    (digest, first), (kept_digest, second) = said
    assert (first, second) == ("0 1", "1 0")  # hits and misses of what was kept
    assert digest == kept_digest
    assert len(digest) == 64


def _in_a_process(variables: dict[str, str]) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, **variables, "PYTHONPATH": "."},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def test_without_a_folder_for_it_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plain(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", plain)
    assert kernels._compiled(len) is len


def test_sums_are_numpys_to_the_bit() -> None:
    """Halves, which are rounded to even, and all that is just within the range."""
    scale = 2.0**36
    halves = np.arange(-4000, 4001, dtype=np.float32) / 2 / np.float32(scale)
    large = np.float32([2.0**25, -(2.0**25), 2.0**-149, -0.0, 1e-3, -1 / 3])
    values = np.concatenate([halves, large])
    ours, numpys = (np.arange(len(values), dtype=np.int64) for _ in range(2))
    assert kernels.add_fixed_point(ours, values, None, scale, BOUND) == 0
    assert aggregation.NUMPY.add_fixed_point(numpys, values, None, scale, BOUND) == 0
    assert (ours == numpys).all()
    by_hand = np.zeros(4, np.int64)
    halves = np.float32([0.5, 1.5, 2.5, -2.5])
    kernels.add_fixed_point(by_hand, halves, None, 1.0, BOUND)
    assert by_hand.tolist() == [0, 2, 2, -2]
    kernels.add_fixed_point(by_hand, halves, np.float32([1, 0, -1, 0]), 1.0, BOUND)
    assert by_hand.tolist() == [0, 4, 6, -4]


def test_differences_are_summed_as_numpy_sums_them() -> None:
    """To the bit: the difference is rounded to float32 first, as an array's is."""
    draws = np.random.default_rng(0)
    now, before = (draws.normal(size=70_001).astype(np.float32) for _ in range(2))
    arrays = np.zeros((4, len(now)), np.int64)
    for add, (untaken, taken) in zip(SUMMING, (arrays[:2], arrays[2:]), strict=True):
        assert add(untaken, now, before, 7 * 2.0**36, BOUND) == 0
        assert add(taken, now - before, None, 7 * 2.0**36, BOUND) == 0
    assert arrays[0].any()
    assert (arrays == arrays[0]).all()


@pytest.mark.parametrize("squares", SQUARING)
@pytest.mark.parametrize("size", [1, 15, 16, 257, 62_006])
def test_squares_of_differences_are_those_of_arrays(
    squares: Callable[..., np.ndarray], size: int
) -> None:
    draws = np.random.default_rng(size)
    now, before = (draws.normal(size=size).astype(np.float32) for _ in range(2))
    ends = np.array([size // 3, size])
    untaken = squares(now, before, ends)
    assert untaken == pytest.approx(squares(now - before, None, ends), rel=1e-12)
    expected = np.square(np.float64(now - before)).sum()
    assert untaken.sum() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("add", SUMMING)
@pytest.mark.parametrize("number", [1, 100, 2**15, 2**15 + 1, 80_000])
def test_what_is_beyond_the_bound_is_counted_and_left_out(
    add: Callable[..., int], number: int
) -> None:
    values = np.random.default_rng(0).normal(size=number).astype(np.float32)
    odd = np.float32([np.nan, np.inf, -np.inf, 8.01, -8.01, 3e38])[:number]
    values[-len(odd) :] = odd
    before = np.arange(number, dtype=np.int64)
    totals = before.copy()
    assert add(totals, values, None, 1000.0, 8000.0) == len(odd)
    assert (totals[-len(odd) :] == before[-len(odd) :]).all()
    rounded = np.rint(values[: -len(odd)].astype(np.float64) * 1000)
    assert (totals[: -len(odd)] - before[: -len(odd)] == rounded).all()
    assert add(totals, values, None, -1000.0, 8000.0) == len(odd)
    assert (totals == before).all()
    just = np.float32([8, -8])
    assert add(np.zeros(2, np.int64), just, None, 1000.0, 8000.0) == 0


@pytest.mark.parametrize("arithmetic", [KERNELS, aggregation.NUMPY])
@pytest.mark.parametrize("odd", [np.nan, np.inf, 2.0**26])
@pytest.mark.parametrize("made", [True, False])
def test_an_update_that_is_refused_leaves_the_sum_as_it_was(
    arithmetic: aggregation.Arithmetic, odd: float, *, made: bool
) -> None:
    draws = np.random.default_rng(0)
    names = {"a": (300, 200), "b": (7,)}
    first, second = (
        {name: draws.normal(size=shape).astype("f4") for name, shape in names.items()}
        for _ in range(2)
    )
    total, alone = (aggregation.ExactSum(first, 2, arithmetic) for _ in range(2))
    for each in (total, alone):
        each.add(first, 3)
    bad = {name: array.copy() for name, array in second.items()}
    bad["b"][4] = odd
    layout = Layout(names)
    before = draws.normal(size=layout.size).astype("f4")
    now = before + np.concatenate([array.ravel() for array in bad.values()])
    with pytest.raises(aggregation.UpdateError, match="'b'"):
        total.add(bad if made else Difference(now, before, layout), 5)
    assert (total.num_clients, total.weight) == (1, 3)
    for name, array in alone.totals.items():
        assert (total.totals[name] == array).all()


@pytest.mark.parametrize(
    ("name", "precision", "threads", "compiled"),
    [
        ("lenet", "float32", 1, True),
        ("lenet", "float32", 2, False),
        ("lenet", "bfloat16", 1, False),
        ("mlp", "float32", 1, False),
    ],
)
def test_nodes_sum_by_kernels_where_they_train_by_kernels(
    name: str, precision: str, threads: int, *, compiled: bool
) -> None:
    torch.set_num_threads(threads)
    model = task.place(models.build(name, (1, 8, 8), 10, seed=0))
    space: Any = SimpleNamespace(
        model=model,
        config=make_config(precision=precision),
    )
    arithmetic = ClientWork(space, {}, 1, {}, deadline=0.0).arithmetic
    adding = kernels.add_fixed_point if compiled else aggregation.NUMPY.add_fixed_point
    assert arithmetic.add_fixed_point is adding


@pytest.mark.parametrize("squares", SQUARING)
def test_squares_are_summed_up_in_double_precision(
    squares: Callable[..., np.ndarray],
) -> None:
    values = np.full(10**6, 1 / 3, np.float32)
    expected = float(np.float32(1 / 3)) ** 2 * 10**6
    (found,) = squares(values, None, np.array([10**6]))
    # What is rounded a million times; how it adds up is up to the processor's vectors.
    assert found == pytest.approx(expected, rel=10**6 * 2**-53)
    assert squares(np.zeros(0, np.float32), None, np.array([0])).tolist() == [0]
    assert np.isnan(squares(np.float32([1, np.nan]), None, np.array([2]))).all()


@pytest.mark.parametrize("squares", SQUARING)
def test_squares_of_parts_are_those_of_the_arrays_alone(
    squares: Callable[..., np.ndarray],
) -> None:
    """To the bit: a norm must not depend on how the arrays lie."""
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    ends = np.array([1, 17, 17, 300, 4999, 5000])
    starts = [0, *ends[:-1]]
    alone = [
        squares(values[start:end].copy(), None, np.array([end - start]))[0]
        for start, end in zip(starts, ends, strict=True)
    ]
    assert squares(values, None, ends).tolist() == alone


@pytest.mark.parametrize(
    ("setting", "features", "expected"),
    [
        ({}, "+avx512f,+avx2", "+avx512f,+avx2,-prefer-256-bit"),
        ({}, "-avx512f,+avx2", None),
        ({}, "", None),
        ({"CPU_FEATURES": "+avx2"}, "+avx512f", "+avx2"),
        ({"CPU_NAME": "skylake"}, "+avx512f", None),
    ],
)
def test_vectors_are_as_wide_as_the_processors(
    setting: dict[str, str],
    features: str,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = kernels.numba_config
    monkeypatch.setattr(kernels, "get_host_cpu_features", lambda: features)
    for name in ("CPU_NAME", "CPU_FEATURES"):
        monkeypatch.setattr(config, name, setting.get(name))
    kernels._use_wide_vectors()
    assert expected == config.CPU_FEATURES
