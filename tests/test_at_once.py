"""`clients-together = "auto"`: what nodes try, answer, and what a run makes of it."""

import contextlib
import gc
import json
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from math import ceil, inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fl_app import at_once, baseline, comparison, sweep, task, together, workspace
from fl_app.artifacts import RunFolder
from fl_app.client_work import ClientWork
from fl_app.serving.jobs import Jobs
from strategies import wire
from strategies.federation import Federation
from tests.conftest import PROJECT, default_options, make_config
from tests.local_grid import Handler, LocalGrid
from tests.test_run import run, sha


@pytest.mark.parametrize(
    ("seconds", "at_most", "tried", "expected"),
    [
        ([1.0, 2.0, 1.1, 0.6, 0.5, 0.55], 64, [1, 2, 4, 8, 16, 32], 16),
        ([1.0, 2.0, 1.1, 0.6], 15, [1, 2, 4, 8], 8),
        ([1.0, 2.0, 1.5, 1.2, 1.3], 64, [1, 2, 4, 8, 16], 1),  # never worth it
        ([1.0, 0.95, 0.96], 64, [1, 2, 4], 1),  # not clearly better
        ([1.0, 0.8], 2, [1, 2], 2),
        ([1.0], 1, [1], 1),
    ],
)
def test_the_fastest_is_chosen(
    seconds: list[float], at_most: int, tried: list[int], expected: int
) -> None:
    asked, answers = [], iter(seconds)

    def of(number: int) -> float:
        asked.append(number)
        return next(answers)

    assert at_once.chosen(of, at_most) == expected
    assert asked == tried


def a_space(**changes: object) -> workspace.Workspace:
    given = {"num-clients": 6, "model": "mlp", "batch-size": 16} | changes
    return workspace.with_options(default_options() | given)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were trained at once, in each of all trainings."""
    found: list[int] = []
    alone, several = task.train, together.run

    def noting(model: torch.nn.Module, *what: Any, **how: Any) -> float:
        found.append(1)
        return alone(model, *what, **how)

    def noting_several(models: list[torch.nn.Module], *others: Any, **how: Any) -> Any:
        found.append(len(models))
        return several(models, *others, **how)

    monkeypatch.setattr(task, "train", noting)
    monkeypatch.setattr(together, "run", noting_several)
    return found


def test_a_trial_takes_the_clients_own_steps(trained: list[int]) -> None:
    space = a_space(**{"local-epochs": 3})
    state = torch.get_rng_state()
    trial = at_once.Trial(space, 6)
    assert 0 < trial.seconds_of_a_step(1) < inf
    assert trained == [1] * 4 * 3  # four clients; to warm up, and twice
    trained.clear()
    assert 0 < trial.seconds_of_a_step(6) < inf
    assert trained == [6] * 3
    sizes = [len(space.partition.split(client)[0]) for client in range(6)]
    assert trial.steps(6) == sum(min(20, 3 * ceil(size / 16)) for size in sizes)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_is_of_clients_of_middling_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = a_space(**{"num-clients": 20, "partitioner": "quantity"})
    chosen: list[int] = []
    whole = space.partition.split

    def noting(client: int) -> Any:
        chosen.append(client)
        return whole(client)

    monkeypatch.setattr(type(space.partition), "split", lambda _, c: noting(c))
    at_once.Trial(space, 4)
    sizes = sorted((len(o), k) for k, o in enumerate(space.partition.clients))
    assert {chosen[0], chosen[1]} == {client for _, client in sizes[9:11]}
    assert set(chosen) == {client for _, client in sizes[8:12]}


def test_what_cannot_be_trained_at_once_ends_the_trial(
    monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    """And is not taken for what is trained one by one in its place."""
    whole = together._Stack.step

    def step(stack: Any, active: int) -> None:
        if active == 4:
            raise torch.OutOfMemoryError
        whole(stack, active)

    monkeypatch.setattr(together._Stack, "step", step)
    space = a_space(**{"num-clients": 8, "partitioner": "iid"})
    trial = at_once.Trial(space, 8)
    with pytest.raises(torch.OutOfMemoryError):
        trial.seconds_of_a_step(4)
    trained.clear()
    assert at_once.chosen(trial.seconds_of_a_step, 8) in (1, 2)
    assert trained == [1] * 12 + [2] * 3 + [4]  # and 8 are not tried


def test_a_trial_ends_when_its_time_is_up() -> None:
    trial = at_once.Trial(a_space(), 6, deadline=time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        trial.seconds_of_a_step(1)
    with pytest.raises(TimeoutError):
        trial.seconds_of_a_step(2)


def test_a_trial_ends_amid_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    trial = at_once.Trial(a_space(), 6, deadline=now + 1000)
    asked = []

    def later() -> float:
        asked.append(1)
        return now + (0 if len(asked) <= 3 else 2000)

    monkeypatch.setattr(together, "monotonic", later)
    with pytest.raises(TimeoutError):
        trial.seconds_of_a_step(2)
    assert len(asked) == 4


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """What was stacked so far, where no collector of cycles comes to help."""
    made: list[weakref.ref[Any]] = []
    whole = together._Stack.__init__

    def noted(stack: Any, rows: Any) -> None:
        made.append(weakref.ref(stack))
        whole(stack, rows)

    monkeypatch.setattr(together._Stack, "__init__", noted)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


JOBS: list[at_once.Job] = [(client, None) for client in range(8)]


def work_of(space: workspace.Workspace) -> ClientWork:
    return ClientWork(space, task.get_arrays(space.model), 1, {}, inf)


def test_a_group_that_diverged_is_let_go(stacks: list[weakref.ref[Any]]) -> None:
    space = a_space(**{"num-clients": 8, "partitioner": "iid", "learning-rate": 1e30})
    failed = 0
    for _, result in work_of(space).train_each(iter(JOBS), [4, 4]):
        with contextlib.suppress(FloatingPointError):
            result()
            failed -= 1
        failed += 1
        assert [stack() for stack in stacks] == [None] * len(stacks)
    assert (failed, len(stacks)) == (8, 2)


def test_a_group_without_memory_is_let_go_before_one_by_one(
    monkeypatch: pytest.MonkeyPatch, stacks: list[weakref.ref[Any]]
) -> None:
    def full(stack: Any, active: int) -> None:
        raise torch.OutOfMemoryError

    alone, alive = together._alone, []

    def noted(request: Any) -> Any:
        alive.append(stacks[0]())
        return alone(request)

    monkeypatch.setattr(together._Stack, "step", full)
    monkeypatch.setattr(together, "_alone", noted)
    # What keeps records keeps errors, as pytest does.
    monkeypatch.setattr(together.log, "warning", lambda *said, **more: None)
    work = work_of(a_space(**{"num-clients": 8, "partitioner": "iid"}))
    for client, result in work.train_each(iter(JOBS[:4]), [4]):
        update, _ = result()
        expected, _ = work.train(client)
        for name, array in expected.items():
            np.testing.assert_array_equal(update[name], array)
    assert alive == [None] * 4


def test_a_trial_without_memory_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, stacks: list[weakref.ref[Any]]
) -> None:
    """When the device is told to give back what it has in reserve."""

    def full(stack: Any, active: int) -> None:
        raise torch.OutOfMemoryError

    space = a_space(**{"num-clients": 8, "partitioner": "iid"})
    devices = chain([SimpleNamespace(type="other")], repeat(torch.device("cpu")))
    left: list[Any] = []

    def give_back() -> None:
        left.extend([stack() for stack in stacks] + space.copies)

    other = SimpleNamespace(empty_cache=give_back)
    monkeypatch.setattr(together._Stack, "step", full)
    monkeypatch.setattr(task, "default_device", lambda: next(devices))
    monkeypatch.setattr(torch, "get_device_module", lambda device: other)
    assert at_once.fastest(lambda: space, 8) == 1
    assert left == [None]


@pytest.fixture
def on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(task, "default_device", lambda: torch.device("cpu"))


@pytest.mark.usefixtures("on_a_processor")
def test_nothing_is_tried_on_a_processor() -> None:
    def opened() -> workspace.Workspace:
        raise AssertionError("there is no need for its data")

    assert at_once.fastest(opened, 6) == 1


def test_groups_are_alike() -> None:
    sizes = {0: 5, 1: 90, 2: 7, 3: 60, 4: 50, 5: 6, 6: 6}
    dealt: list[at_once.Job] = [(client, None) for client in sizes]
    dealt[1] = (1, 2)  # two epochs of 90
    order, groups = at_once.arranged(dealt, 4, sizes.__getitem__)
    assert [client for client, _ in order] == [1, 3, 4, 2, 5, 6, 0]
    assert groups == [4, 3]
    order, groups = at_once.arranged(dealt, 1, sizes.__getitem__)
    assert order == dealt
    assert list(islice(groups, 9)) == [1] * 9  # however many are taken from others
    assert at_once.arranged([], 4, sizes.__getitem__)[0] == []


@pytest.mark.parametrize(
    ("clients", "number", "expected"),
    [
        (5, 4, [3, 2]),
        (13, 4, [4, 3, 3, 3]),
        (57, 8, [8, 7, 7, 7, 7, 7, 7, 7]),
        (8, 4, [4, 4]),
        (3, 64, [3]),
    ],
)
def test_no_group_is_small(clients: int, number: int, expected: list[int]) -> None:
    dealt: list[at_once.Job] = [(client, None) for client in range(clients)]
    assert at_once.arranged(dealt, number, lambda _: 1)[1] == expected


def answering(number: object) -> Handler:
    counts = wire.pack({wire.LABEL_COUNTS: np.array([[5, 0], [4, 1], [3, 3]])})

    def node(message: Message) -> Message:
        task = wire.take(message.content, wire.TASK, ConfigRecord)
        if wire.TRY_TOGETHER not in task:
            return Message(RecordDict({wire.HOSTED: counts}), reply_to=message)
        assert task[wire.TRY_TOGETHER] == 8
        assert task[wire.BUDGET] == 0.5
        if number is None:
            return Message(Error(2, "no"), reply_to=message)
        answer = ConfigRecord({wire.CLIENTS_TOGETHER: number})  # type: ignore[dict-item]
        return Message(RecordDict({wire.FASTEST: answer}), reply_to=message)

    return node


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        *[((8, 4), 4), ((8, 1), 1), ((8,), 8)],
        # One that fails, or makes no sense, is not to be slowed down either.
        *[((8, 99), 1), ((8, "all"), 1), ((8, 0), 1), ((8, None), 1), ((None,), 1)],
    ],
)
def test_no_node_is_slowed_down(answers: tuple[object, ...], expected: int) -> None:
    grid = LocalGrid({k: answering(each) for k, each in enumerate(answers)})
    federation = Federation(grid, min_nodes=1, node_timeout=1)
    assert federation.ask_clients_together(8) == expected


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Have nodes find a number the fastest; return what they were asked."""

    def found(number: int) -> list[int]:
        asked: list[int] = []

        def fastest(opened: Any, at_most: int, deadline: float) -> int:
            assert 50 < deadline - time.monotonic() < 60  # half of node-timeout
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


@pytest.mark.usefixtures("on_a_processor")
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
    sent = [make_config(clients_together=each).for_clients() for each in ("auto", 8)]
    assert sent[0] == sent[1]  # so that nodes do not open their data anew


def test_a_sweep_takes_a_run_for_its_own_whatever_was_found(tmp_path: Path) -> None:
    config = make_config(
        clients_together="auto", results_dir=str(tmp_path), run_name="a"
    )
    RunFolder.create(config.model_copy(update={"clients_together": 16}))
    sweep._check(sweep.Cell(config, {}))


def test_the_service_hands_the_word_on(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, PROJECT, nodes=2)
    for given in ("auto", 0, 1):
        handed, _ = jobs._checked({"clients-together": given, "model": "auto"})
        assert handed["clients-together"] == given
        assert "model" not in handed  # "auto" is what it is in any case


def test_a_baseline_trains_one_by_one() -> None:
    assert baseline.named(make_config(clients_together="auto")).clients_together == 1


def write_run(results: Path, number: int, seed: int, **changes: Any) -> Path:
    """Write what a comparison reads of a run, of a model that is its number's."""
    folder = RunFolder.create(
        make_config(
            clients_together=number,
            seed=seed,
            results_dir=str(results),
            run_name=f"n{number}-s{seed}-{len(changes)}",
            **changes,
        )
    )
    found = {"model_sha256": f"{number}", "final_test_accuracy": 0.5, "rounds": 1}
    (folder.path / "summary.json").write_text(json.dumps(found))
    return folder.path


def test_runs_that_found_other_numbers_are_one_method(tmp_path: Path) -> None:
    found = [write_run(tmp_path, n, seed) for seed, n in enumerate((16, 32, 16))]
    runs, again = comparison.read([*found, write_run(tmp_path, 1, 0)])
    assert again == []
    labels = [(m.label, len(m.runs)) for m in comparison.group(runs)]
    assert [number for _, number in labels] == [3, 1]
    assert "several" in labels[0][0]


def test_one_of_what_was_found_is_no_other_method(tmp_path: Path) -> None:
    found = [write_run(tmp_path, n, seed) for seed, n in enumerate((16, 1, 16))]
    (method,) = comparison.group(comparison.read(found)[0])
    assert len(method.runs) == 3


def test_numbers_compared_of_one_method_are_not_those_of_another(
    tmp_path: Path,
) -> None:
    compared = [write_run(tmp_path, n, 0) for n in (2, 4)]
    prox: dict[str, Any] = {"strategy": "fedprox"}
    found = [write_run(tmp_path, n, s, **prox) for s, n in enumerate((16, 32, 16))]
    # Of baselines the number says nothing, whatever an older version wrote there.
    central: dict[str, Any] = {"regime": "central", "optimizer": "adam"}
    older = [write_run(tmp_path, n, seed, **central) for seed, n in enumerate((8, 1))]
    runs, _ = comparison.read([*compared, *found, *older])
    assert [len(method.runs) for method in comparison.group(runs)] == [1, 1, 3, 2]


def test_numbers_that_are_compared_are_methods(tmp_path: Path) -> None:
    """As by a sweep over them."""
    found = [write_run(tmp_path, n, seed) for n in (2, 4, 8) for seed in (0, 1)]
    runs, again = comparison.read(found)
    assert again == []
    methods = comparison.group(runs)
    assert [len(method.runs) for method in methods] == [2, 2, 2]
    for method, number in zip(methods, (2, 4, 8), strict=True):
        assert f"clients-together={number}" in method.label


def test_of_an_older_baseline_the_number_says_nothing(tmp_path: Path) -> None:
    central: dict[str, Any] = {"regime": "central"}
    old, new = (
        comparison.Run.read(write_run(tmp_path, n, 0, **central)) for n in (8, 1)
    )
    assert old.method == new.method
    cell = make_config(
        clients_together=1, results_dir=str(tmp_path), run_name=old.name, **central
    )
    sweep._check(sweep.Cell(cell, {}))


def test_a_node_that_has_gone_is_left_out() -> None:
    grid = LocalGrid({1: answering(8), 2: answering(None)})
    federation = Federation(grid, min_nodes=1, node_timeout=1)
    assert federation.ask_clients_together(8) == 1
    grid.nodes.pop(2)
    assert federation.ask_clients_together(8) == 8
