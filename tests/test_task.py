import math
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_app import batches, models, task, workspace
from fl_app.batches import LAYOUT, Batches
from fl_app.config import ConfigError
from fl_app.data.augment import rotate_shift
from tests.conftest import make_config

NORMALISE = task.Normalisation((0.0,), (1.0,))


def examples(number: int, shape: tuple[int, ...] = (1, 8, 8)) -> task.Examples:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=draws)
    return task.Examples(images, torch.arange(number) % 10)


def options(**changes: Any) -> task.TrainOptions:
    return task.TrainOptions.of_round(
        make_config(**{"local_epochs": 2, "batch_size": 8, **changes}), 1
    )


def train(model: nn.Module, data: task.Examples, **changes: Any) -> float:
    seed = changes.pop("seed", 3)
    augment = changes.pop("augmentation", None)
    return task.train(
        model, data, options(**changes), NORMALISE, seed=seed, augment=augment
    )


class Constant(nn.Module):
    """Logits that do not depend on the image: log-odds [2, 0] for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([2.0, 0.0]))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.logits.expand(len(x), 2))


def test_evaluation_is_a_mean_over_examples_in_eval_mode() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    data = task.Examples(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), labels)
    result = task.evaluate(Constant(), data, NORMALISE, num_classes=2, chunk=3)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert result.loss == pytest.approx((3 * right + 4 * wrong) / 7, rel=1e-6)
    assert result.accuracy == 3 / 7
    assert result.per_class_accuracy == [1.0, 0.0]
    assert result.predicted_per_class == [7, 0]
    assert result.only_class == 0


def test_a_class_without_examples_has_no_accuracy() -> None:
    data = task.Examples(
        torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long()
    )
    result = task.evaluate(Constant(), data, NORMALISE, num_classes=2)
    assert result.per_class_accuracy == [1.0, None]


def test_evaluation_does_not_depend_on_the_chunk() -> None:
    model, data = models.build("cnn", (1, 8, 8), 10, seed=0), examples(50)
    losses = [
        task.evaluate(model, data, NORMALISE, num_classes=10, chunk=chunk).loss
        for chunk in (1, 7, 50, 500)
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_normalisation() -> None:
    normalise = task.Normalisation((0.5, 0.0), (0.25, 1.0))
    pixels = torch.tensor([0.0, 255.0]).expand(1, 2, 1, 2)
    expected = [[[[-2.0, 2.0]], [[0.0, 1.0]]]]
    torch.testing.assert_close(normalise(pixels), torch.tensor(expected))


def test_training_is_repeated_by_its_seed_and_leaves_the_callers_draws() -> None:
    data, results = examples(20), []
    for seed in (3, 3, 4):
        model = models.build("improved-cnn", (1, 8, 8), 10, seed=0)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        train(model, data, seed=seed, augmentation=rotate_shift)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(task.get_arrays(model))
    one, two, other = results
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)


def test_loss_falls_and_is_the_mean_over_examples() -> None:
    model, data = models.build("mlp", (1, 8, 8), 10, seed=0), examples(20)
    first = train(model, data, local_epochs=1)
    assert first == pytest.approx(math.log(10), abs=0.3)
    assert train(model, data, local_epochs=30) < first


def test_the_mean_loss_weights_the_last_small_batch_by_its_size() -> None:
    # A model that learns nothing: three batches of 8, 8 and 1, all with the same loss.
    data = task.Examples(
        torch.zeros(17, 1, 2, 2, dtype=torch.uint8), torch.zeros(17).long()
    )
    model = Constant()
    model.dropout = nn.Dropout(0.0)
    loss = train(model, data, learning_rate=1e-30, local_epochs=1)
    assert loss == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_every_example_is_seen_once_an_epoch() -> None:
    seen: list[torch.Tensor] = []

    class Recorder(Constant):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.flatten(1)[:, 0].clone())
            return super().forward(x)

    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    train(Recorder(), task.Examples(images, torch.zeros(20).long()), local_epochs=2)
    pixels = torch.cat(seen) * 255
    for epoch in pixels.split(20):
        assert sorted(epoch.round().int().tolist()) == list(range(20))
    assert pixels[:20].tolist() != pixels[20:].tolist()


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = models.build("mlp", (1, 8, 8), 10, seed=0)
    with pytest.raises(FloatingPointError, match="smaller learning-rate"):
        train(model, examples(20), learning_rate=1e30)


def test_a_deadline_that_has_passed_ends_training() -> None:
    model = models.build("logistic", (1, 8, 8), 10, seed=0)
    with pytest.raises(TimeoutError, match="time was up"):
        task.train(
            model,
            examples(20),
            options(),
            NORMALISE,
            seed=0,
            deadline=time.monotonic() - 1,
        )


def test_the_learning_rate_decays_each_round() -> None:
    config = make_config(learning_rate=0.4, learning_rate_decay=0.5)
    rates = [task.TrainOptions.of_round(config, r).learning_rate for r in (1, 2, 3)]
    assert rates == [0.4, 0.2, 0.1]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("exponential", 2, [1 / 3, 2 / 3, 1, 0.5, 0.25]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 1, [0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", 1, [0.5, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_schedules(schedule: str, warmup: int, expected: list[float]) -> None:
    config = make_config(
        learning_rate=1.0,
        learning_rate_schedule=schedule,
        learning_rate_decay=0.5,
        warmup_rounds=warmup,
        num_server_rounds=5,
    )
    rounds = range(1, 6)
    rates = [task.TrainOptions.of_round(config, r).learning_rate for r in rounds]
    assert rates == pytest.approx(expected)


def test_a_warmup_leaves_rounds_to_train() -> None:
    with pytest.raises(ConfigError, match="warmup-rounds = 5 must be less than"):
        make_config(warmup_rounds=5, num_server_rounds=5)


def test_adam_trains() -> None:
    model, data = models.build("mlp", (1, 8, 8), 10, seed=0), examples(20)
    changes = {"optimizer": "adam", "learning_rate": 0.001}
    first = train(model, data, local_epochs=1, **changes)
    assert train(model, data, local_epochs=20, **changes) < first


def test_the_layout_changes_nothing_but_rounding() -> None:
    data, results = examples(40), []
    for placed in (False, True):
        model = models.build("resnet", (1, 8, 8), 10, seed=0)
        model = task.place(model) if placed else model
        train(model, data, momentum=0.0)
        results.append(task.get_arrays(model))
    for name, array in results[0].items():
        np.testing.assert_allclose(array, results[1][name], atol=2e-4)
        assert results[1][name].flags.c_contiguous


def test_bfloat16_trains_almost_alike_and_keeps_float32_weights() -> None:
    data, losses = examples(40), []
    for precision in ("float32", "bfloat16"):
        model = task.place(models.build("cnn", (1, 8, 8), 10, seed=0))
        losses.append(train(model, data, precision=precision, local_epochs=5))
        assert {a.dtype for a in task.get_arrays(model).values()} == {np.dtype("f4")}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_arrays_round_trip_and_are_copies() -> None:
    model = models.build("improved-cnn", (1, 8, 8), 10, seed=0)
    arrays = task.get_arrays(model)
    other = models.build("improved-cnn", (1, 8, 8), 10, seed=1)
    task.set_arrays(other, arrays)
    again = task.get_arrays(other)
    assert list(again) == list(arrays)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    arrays["0.weight"][:] = 0
    assert task.get_arrays(model)["0.weight"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("1.bias"), "another model; not in both: 1.bias"),
        (lambda a: a.update(x=np.zeros(1)), "not in both: x"),
        (lambda a: a.update({"1.bias": np.zeros(3, np.float32)}), r"\(3,\)"),
        (lambda a: a.update({"1.bias": np.zeros(10)}), "float64"),
    ],
)
def test_arrays_of_another_model_are_refused(change: Any, said: str) -> None:
    model = models.build("logistic", (1, 8, 8), 10, seed=0)
    arrays = task.get_arrays(model)
    change(arrays)
    with pytest.raises(ValueError, match=said):
        task.set_arrays(model, arrays)


@pytest.mark.parametrize("shape", [(3, 9, 7), (1, 8, 8), (60, 1, 1)])
def test_large_clients_batches_are_those_of_small_ones(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = examples(25, shape).images
    data = task.Examples(drawn, torch.arange(25))
    normalise = task.Normalisation((0.3,) * shape[0], (0.2,) * shape[0])

    def epochs() -> list[torch.Tensor]:
        draws = torch.Generator().manual_seed(1)
        made = Batches(data, normalise, None, draws, torch.device("cpu"))
        return [each for _ in range(2) for batch in made.epoch(8) for each in batch]

    small = epochs()
    monkeypatch.setattr(batches, "_NORMALISED_AT_ONCE", 0)
    large = epochs()
    assert len(small) == 16
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))
    assert torch.equal(small[0], normalise(drawn[small[1]].float()))
    assert all(x.is_contiguous(memory_format=LAYOUT) for x in large[::2])


@pytest.mark.parametrize("augment", [None, rotate_shift])
@pytest.mark.parametrize("images_last", [True, False])
@pytest.mark.parametrize("at_once", [0, 2**20])
def test_chosen_examples_batches_are_those_of_the_examples_alone(
    monkeypatch: pytest.MonkeyPatch,
    augment: task.Augment | None,
    at_once: int,
    *,
    images_last: bool,
) -> None:
    monkeypatch.setattr(batches, "_NORMALISED_AT_ONCE", at_once)
    every = examples(60, (1, 8, 8))
    chosen = torch.tensor([59, 3, 4, 40, 0, 21, 22, 7, 8, 50, 31])
    some = task.Examples(every.images, every.labels, chosen)
    alone = task.Examples(every.images[chosen], every.labels[chosen])
    assert len(some) == len(alone) == 11
    made, expected = (
        list(
            Batches(
                *(data, NORMALISE, augment, task.draws_of(0), torch.device("cpu")),
                images_last=images_last,
            ).epochs(2, 4)
        )
        for data in (some, alone)
    )
    assert len(made) == len(expected) == 6
    for (inputs, targets), (others, labels) in zip(made, expected, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, labels)


@pytest.mark.filterwarnings("error")
def test_a_nodes_examples_are_not_copied() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(20)
    images.flags.writeable = labels.flags.writeable = False  # as a mapped file is
    data: Any = SimpleNamespace(train_images=images, train_labels=labels)
    empty: Any = None
    space = workspace.Workspace(empty, data, empty, empty, NORMALISE)
    indices = np.array([3, 1, 19])
    found = workspace.examples_of(space, indices)
    assert found.images.data_ptr() == images.ctypes.data
    assert len(found) == 3
    assert (found.gathered().images.numpy() == images[indices]).all()
    assert found.gathered().labels.tolist() == [3, 1, 19]


def test_predictions_are_counted_by_class() -> None:
    model, data = models.build("cnn", (1, 8, 8), 10, seed=0), examples(50)
    result = task.evaluate(model, data, NORMALISE, num_classes=10, chunk=7)
    answers = model(NORMALISE(data.images.float())).argmax(dim=1)
    assert result.predicted_per_class == torch.bincount(answers, minlength=10).tolist()
    assert result.num_correct == int((answers == data.labels).sum())
    one, two = (replace(result, predicted_per_class=n) for n in ([0, 9], [1, 8]))
    assert (one.only_class, two.only_class) == (1, None)


def test_chosen_examples_are_evaluated_alone() -> None:
    every = examples(600)
    chosen = torch.arange(0, 600, 7)
    alone = task.Examples(every.images[chosen], every.labels[chosen])
    model = models.build("mlp", (1, 8, 8), 10, seed=0)
    result, expected = (
        task.evaluate(model, data, NORMALISE, num_classes=10, chunk=50)
        for data in (task.Examples(every.images, every.labels, chosen), alone)
    )
    assert result == expected
    assert result.num_examples == 86


def test_a_snapshot_brings_the_model_back() -> None:
    model = task.place(models.build("improved-cnn", (1, 8, 8), 10, seed=0))
    before = task.get_arrays(model)
    kept = task.Snapshot(model)
    train(model, examples(24))
    after, changes = task.get_arrays(model), kept.changes()
    assert [*changes] == [*before]
    for name, array in changes.items():
        assert np.array_equal(array, after[name] - before[name])
        assert array.any()
        assert (array.dtype, array.flags.c_contiguous) == (before[name].dtype, True)
    kept.restore()
    for name, array in task.get_arrays(model).items():
        assert np.array_equal(array, before[name])
    assert model[0].weight.is_contiguous(memory_format=LAYOUT)
    assert all(array.any() for array in changes.values())  # a copy, no view
