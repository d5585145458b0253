"""Clients trained at once, against the same clients one after the other."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fl_app import models, task, together
from fl_app.artifacts import RunFolder, read_model
from fl_app.batches import Augment, Examples, Normalisation
from fl_app.config import ConfigError
from fl_app.data.augment import rotate_shift
from strategies.fedprox import ProximalTerm
from tests.conftest import make_config
from tests.test_run import run

NORMALISE = Normalisation((0.5,), (0.5,))
SHAPE = (1, 8, 8)


def examples(number: int, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (number, *SHAPE), dtype=torch.uint8, generator=draws)
    return Examples(images, torch.randint(0, 10, (number,), generator=draws))


CLIENTS = [examples(number, number) for number in (5, 21, 12, 16)]


def options(**changes: Any) -> task.TrainOptions:
    given = {"local_epochs": 2, "batch_size": 8, "learning_rate": 0.05} | changes
    return task.TrainOptions.of_round(make_config(**given), 1)


def all_at_once(
    start: nn.Module, works: list[together.Work[Any]]
) -> list[tuple[float, nn.Module] | Exception]:
    return together.run(together.copies(start, len(works)), start, works)


def work(
    client: int,
    model: nn.Module,
    train: together.Train,
    *,
    chosen: task.TrainOptions,
    augment: Augment | None = None,
    mu: float = 0.0,
) -> tuple[float, nn.Module]:
    term = ProximalTerm(list(model.parameters()), mu) if mu else None
    loss = train(
        model,
        CLIENTS[client],
        chosen,
        NORMALISE,
        seed=client,
        augment=augment,
        term=term,
    )
    return loss, model


def assert_like_one_by_one(
    name: str, chosen: task.TrainOptions, *, within: float = 1e-4, **others: Any
) -> None:
    """Assert that models differ by less than a share of how far they have moved."""
    start = task.place(models.build(name, SHAPE, 10, seed=1))
    works = [partial(work, k, chosen=chosen, **others) for k in range(len(CLIENTS))]
    for client, outcome in enumerate(all_at_once(start, works)):
        assert not isinstance(outcome, Exception), outcome
        loss, model = outcome
        alone = copy.deepcopy(start)
        expected, _ = work(client, alone, task.train, chosen=chosen, **others)
        assert loss == pytest.approx(expected, rel=within)
        assert distance(model, alone) < within * distance(alone, start)


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((p - q).square().sum() for p, q in pairs)) ** 0.5


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn", "lenet", "resnet"])
def test_each_model(name: str) -> None:
    assert_like_one_by_one(name, options(momentum=0.9, weight_decay=0.001))


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_gradients_are_clipped_for_each_client(name: str) -> None:
    """Those of convolutions too, which lie in memory in another order."""
    assert_like_one_by_one(name, options(max_gradient_norm=0.05, local_epochs=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.0},
        {"max_gradient_norm": 0.1, "momentum": 0.5},
        {"optimizer": "adam", "learning_rate": 0.01, "max_gradient_norm": 1.0},
        {"batch_size": 64},
    ],
)
def test_each_way_to_step(changes: dict[str, Any]) -> None:
    assert_like_one_by_one("mlp", options(**changes))


def test_augmentation_and_bfloat16() -> None:
    assert_like_one_by_one("lenet", options(), augment=rotate_shift)
    assert_like_one_by_one("mlp", options(precision="bfloat16"), within=0.05)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])  # stepped, added
def test_a_term_holds_its_own_client(optimizer: str) -> None:
    chosen = options(optimizer=optimizer, learning_rate=0.002)
    assert_like_one_by_one("mlp", chosen, within=1e-3, mu=0.7)


def test_no_more_steps_than_asked_for() -> None:
    start = models.build("mlp", SHAPE, 10, seed=1)

    def some(client: int, model: nn.Module, train: together.Train) -> Any:
        data, seed = CLIENTS[client], client
        return train(model, data, options(), NORMALISE, seed=seed, max_steps=client)

    works = [partial(some, client) for client in (1, 2, 3)]
    for client, loss in zip((1, 2, 3), all_at_once(start, works), strict=True):
        expected = some(client, copy.deepcopy(start), task.train)
        assert loss == pytest.approx(expected, abs=1e-6)


def test_each_fails_by_itself() -> None:
    start = models.build("mlp", SHAPE, 10, seed=1)
    poisoned = Examples(torch.full((9, *SHAPE), torch.nan), torch.arange(9))

    def early(model: nn.Module, train: together.Train) -> Any:
        raise ValueError("before training")

    def late(model: nn.Module, train: together.Train) -> Any:
        train(model, CLIENTS[0], options(), NORMALISE, seed=1)
        raise ValueError("after training")

    def nan(model: nn.Module, train: together.Train) -> Any:
        return train(model, poisoned, options(), NORMALISE, seed=1)

    well = partial(work, 1, chosen=options())
    outcomes = all_at_once(start, [early, late, nan, well])
    assert [type(outcome) for outcome in outcomes] == [
        ValueError,
        ValueError,
        FloatingPointError,
        tuple,
    ]
    alone = work(1, copy.deepcopy(start), task.train, chosen=options())
    assert outcomes[3][0] == pytest.approx(alone[0], abs=1e-6)  # type: ignore[index]


def test_where_an_operation_for_all_fails_each_trains_alone() -> None:
    start = models.build("mlp", SHAPE, 10, seed=1)
    small = Examples(torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.arange(4))

    def odd(model: nn.Module, train: together.Train) -> Any:
        return train(model, small, options(), NORMALISE, seed=1)

    failed, well = all_at_once(start, [odd, partial(work, 0, chosen=options())])
    assert isinstance(failed, RuntimeError)
    assert not isinstance(well, Exception)
    alone = work(0, copy.deepcopy(start), task.train, chosen=options())
    assert well[0] == alone[0]
    assert distance(well[1], alone[1]) == 0


def test_a_client_without_examples_fails_as_it_does_alone() -> None:
    start = models.build("mlp", SHAPE, 10, seed=1)
    nothing = examples(0)

    def none(model: nn.Module, train: together.Train) -> Any:
        return train(model, nothing, options(), NORMALISE, seed=1)

    for works in ([none], [none, partial(work, 1, chosen=options())]):
        outcomes = all_at_once(start, works)
        assert isinstance(outcomes[0], ZeroDivisionError)
        assert not any(isinstance(outcome, Exception) for outcome in outcomes[1:])


@pytest.mark.parametrize("where", ["training", "starting a thread"])
def test_nothing_waits_for_what_was_broken_off(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A node that is told to end does, and one without a thread to spare says so."""
    start = models.build("mlp", SHAPE, 10, seed=1)
    error: type[BaseException] = SystemExit

    def broken(*_: Any) -> Any:
        raise error("no more")

    if where == "training":
        monkeypatch.setattr(together, "_train", broken)
    else:
        error = RuntimeError
        submit, begun = ThreadPoolExecutor.submit, itertools.count()

        def some(self: Any, *given: Any) -> Any:
            return (submit if next(begun) < 2 else broken)(self, *given)

        monkeypatch.setattr(ThreadPoolExecutor, "submit", some)
    works = [partial(work, client, chosen=options()) for client in range(3)]
    with pytest.raises(error, match="no more"):
        all_at_once(start, works)


def test_copies_serve_again() -> None:
    start = models.build("mlp", SHAPE, 10, seed=1)
    copies = together.copies(start, 3)
    works = [partial(work, client, chosen=options()) for client in range(3)]
    first, again = (
        [task.get_arrays(model) for _, model in together.run(copies, start, works)]  # type: ignore[misc]
        for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert all(p.grad is None for model in copies for p in model.parameters())


def test_when_time_is_up_the_clients_that_are_done_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(together, "monotonic", lambda: next(clock))
    start = models.build("mlp", SHAPE, 10, seed=1)

    def timed(client: int, model: nn.Module, train: together.Train) -> Any:
        data, deadline = CLIENTS[client], 3  # the fifth step would begin at 4
        return train(model, data, options(), NORMALISE, seed=client, deadline=deadline)

    works = [partial(timed, client) for client in (0, 1, 2)]  # 2, 6 and 4 steps
    done, late, just = all_at_once(start, works)
    assert isinstance(done, float)
    assert isinstance(just, float)
    assert isinstance(late, TimeoutError)
    assert "time was up" in str(late)


def arrays(folder: RunFolder) -> Any:
    return read_model(folder.path / "model.safetensors")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": "fedprox", "straggler-fraction": 0.5},
        {"strategy": "scaffold", "compression": "int8"},
        # Slowly: at its own rate this model magnifies a last bit a thousandfold.
        {
            "strategy": "fedbn",
            "model": "resnet",
            "learning-rate": 0.001,
            "num-clients": 4,
        },
    ],
)
def test_a_run_comes_to_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = {"model": "mlp", "num-server-rounds": 2, "local-epochs": 2} | changes
    one = run(tmp_path, run_name="one", **given)
    several = run(tmp_path, run_name="several", clients_together=2, **given)
    expected = arrays(one)
    for name, array in arrays(several).items():
        torch.testing.assert_close(array, expected[name], rtol=0, atol=2e-4)
    for ours, theirs in zip(several.clients(), one.clients(), strict=True):
        assert ours["failure"] is None
        assert ours["client"] == theirs["client"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-3)


def test_models_that_see_whole_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"improved-cnn.*clients-together = 1"):
        run(tmp_path, model="improved-cnn", clients_together=2)
    with pytest.raises(ValueError, match="dropout"):
        together.check(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match="statistics of whole batches"):
        together.check(nn.BatchNorm2d(3, track_running_stats=False))
