"""`clients-together = "auto"`: what nodes try, answer, and what a run makes of it."""

from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fl_app import at_once, task, together, workspace
from fl_app.config import RunConfig
from fl_app.data import datasets
from strategies import wire
from strategies.federation import Federation
from tests.conftest import default_options, make_config
from tests.local_grid import Handler, LocalGrid
from tests.test_run import run, sha


@pytest.mark.parametrize(
    ("seconds", "at_most", "expected"),
    [
        ({1: 1.0, 2: 2.0, 4: 1.1, 8: 0.6, 16: 0.5, 32: 0.55, 64: 0.1}, 64, 16),
        ({1: 1.0, 2: 2.0, 4: 1.1, 8: 0.6, 16: 0.5}, 15, 8),
        ({1: 1.0, 2: 2.0, 4: 1.5, 8: 1.2, 16: 1.3}, 64, 1),  # never worth it
        ({1: 1.0, 2: 0.95, 4: 0.96}, 64, 1),  # not clearly better
        ({1: 1.0, 2: 0.8}, 2, 2),
        ({1: 1.0}, 1, 1),
    ],
)
def test_the_fastest_is_chosen(
    seconds: dict[int, float], at_most: int, expected: int
) -> None:
    assert at_once.chosen(seconds.__getitem__, at_most) == expected


def test_what_does_not_fit_ends_the_trial() -> None:
    tried = []

    def seconds(number: int) -> float:
        tried.append(number)
        if number == 8:
            raise torch.OutOfMemoryError
        return 1 / number

    assert at_once.chosen(seconds, 64) == 4
    assert tried == [1, 2, 4, 8]


def a_space(**changes: object) -> workspace.Workspace:
    given = {"num-clients": 6, "model": "mlp", "batch-size": 16} | changes
    return workspace.with_options(default_options() | given)


def test_a_trial_takes_the_clients_own_steps_and_leaves_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = a_space(**{"local-epochs": 3})
    before = task.get_arrays(space.model)
    state = torch.get_rng_state()
    trained = []
    alone, several = task.train, together.run

    def noting(model: torch.nn.Module, *what: object, **how: object) -> float:
        trained.append(1)
        return alone(model, *what, **how)  # type: ignore[arg-type]

    def noting_several(models: list[torch.nn.Module], *others: object) -> object:
        trained.append(len(models))
        return several(models, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(task, "train", noting)
    monkeypatch.setattr(together, "run", noting_several)
    trial = at_once.Trial(space, 6)
    assert 0 < trial.seconds_of_a_step(1) < inf
    assert trained == [1] * 4 * 3  # four clients; to warm up, and twice
    trained.clear()
    assert 0 < trial.seconds_of_a_step(6) < inf
    assert trained == [6] * 3
    for name, array in task.get_arrays(space.model).items():
        np.testing.assert_array_equal(array, before[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_tried_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "Trial", None)
    assert at_once.fastest(a_space(), 6) == 1


def answering(number: object) -> Handler:
    counts = wire.pack({wire.LABEL_COUNTS: np.array([[5, 0], [4, 1], [3, 3]])})

    def node(message: Message) -> Message:
        if wire.AT_ONCE not in wire.take(message.content, wire.TASK, ConfigRecord):
            return Message(RecordDict({wire.HOSTED: counts}), reply_to=message)
        answer = ConfigRecord({wire.AT_ONCE: number})  # type: ignore[dict-item]
        return Message(RecordDict({wire.FASTEST: answer}), reply_to=message)

    return node


@pytest.mark.parametrize(
    ("answers", "expected"),
    [((8, 4), 4), ((8, 1), 1), ((8,), 8), ((8, 99), 1), ((8, "all"), 1), ((0,), 1)],
)
def test_no_node_is_slowed_down(answers: tuple[object, ...], expected: int) -> None:
    grid = LocalGrid({k: answering(each) for k, each in enumerate(answers)})
    federation = Federation(grid, min_nodes=1, node_timeout=1)
    assert federation.clients_at_once(8) == expected


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Have nodes find a number the fastest; return what they were asked."""

    def found(number: int) -> list[int]:
        asked: list[int] = []

        def fastest(space: workspace.Workspace, at_most: int) -> int:
            asked.append(at_most)
            return number

        monkeypatch.setattr(at_once, "fastest", fastest)
        return asked

    return found


AUTO = {"model": "mlp", "num_clients": 6, "clients_together": "auto"}


def test_a_run_keeps_what_was_found(
    tmp_path: Path, answer: Callable[[int], list[int]]
) -> None:
    asked = answer(2)
    auto = run(tmp_path, run_name="auto", **AUTO)
    assert asked == [3, 3]  # each of two nodes; it has three of the six clients
    two = run(tmp_path, run_name="two", **AUTO | {"clients_together": 2})
    assert sha(auto) == sha(two)
    for folder in (auto, two):
        described = folder.config()
        assert described is not None
        assert described["options"]["clients-together"] == 2
    run(tmp_path, run_name="", resume="auto", **AUTO | {"num_server_rounds": 4})
    assert asked == [3, 3]  # it goes on with what it has
    assert auto.metrics()[-1]["round"] == 4
    described = auto.config()
    assert described is not None
    assert described["options"]["clients-together"] == 2


def test_on_processors_it_is_one_by_one(tmp_path: Path) -> None:
    auto = run(tmp_path, run_name="auto", **AUTO)
    one = run(tmp_path, run_name="one", **AUTO | {"clients_together": 1})
    assert sha(auto) == sha(one)
    described = auto.config()
    assert described is not None
    assert described["options"]["clients-together"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "improved-cnn"},  # has dropout and statistics of batches
        {"num_clients": 2},  # one for each of two nodes
        {"fraction_train": 0.3},  # likewise
    ],
)
def test_nothing_is_asked_where_there_is_nothing_to_choose(
    tmp_path: Path, answer: Callable[[int], list[int]], changes: dict[str, object]
) -> None:
    asked = answer(8)
    folder = run(tmp_path, **AUTO | {"num_server_rounds": 1} | changes)
    assert asked == []
    described = folder.config()
    assert described is not None
    assert described["options"]["clients-together"] == 1


def test_the_option_is_a_number_or_auto() -> None:
    for given in ("auto", 0):
        assert make_config(clients_together=given).clients_together == at_once.AUTO
    config = make_config(clients_together="auto")
    sent = RunConfig.from_options(config.for_clients(), datasets.recipe_for)
    assert sent.clients_together == 1  # until it is settled
