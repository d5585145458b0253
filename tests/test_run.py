"""Whole runs in this process: the real apps, on nodes that are function calls."""

import itertools
import json
import math
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from llvmlite.binding import get_host_cpu_name
from PIL import Image

from fl_app import client_app, partition_picture, plots, server_app, task
from fl_app.artifacts import RunFolder, model_sha256, read_model
from fl_app.config import ConfigError
from strategies.federation import FederationError
from tests.conftest import default_options, make_config
from tests.local_grid import LocalGrid, app_node

QUICK = {
    "model": "logistic",
    "num-server-rounds": 3,
    "local-epochs": 1,
    "num-clients": 6,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(results: Path, *, nodes: int = 2, **changes: Any) -> RunFolder:
    """Run a federation; options in snake_case."""
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    named = {"run-name": "run", "results-dir": str(results)}
    options = default_options() | QUICK | named | given
    serve(options, nodes)
    return RunFolder(results / options["run-name"])


def serve(options: dict[str, Any], nodes: int = 2) -> None:
    """Run the server half, over nodes in this process."""
    # Ids that are not in order, as Flower's are random.
    ids = np.random.default_rng(nodes).permutation(1000)[:nodes].tolist()
    grid = LocalGrid({i: app_node(client_app.app, options) for i in ids})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))


def sha(folder: RunFolder) -> str:
    summary = folder.summary()
    assert summary is not None
    return str(summary["model_sha256"])


def test_a_run_leaves_all_it_should(tmp_path: Path) -> None:
    folder = run(tmp_path, evaluate_every=2)
    assert {path.name for path in folder.path.iterdir()} == {
        "config.json",
        "checkpoint",
        "metrics.jsonl",
        "clients.jsonl",
        "model.safetensors",
        "best.safetensors",
        "curves.png",
        "partition.png",
        "report.html",
        "summary.json",
    }
    rows = folder.metrics()
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    # evaluated: 0, every second, and the last
    for key in ("test_accuracy", "test_loss", "validation_accuracy"):
        assert [row[key] is not None for row in rows] == [True, False, True, True]
    assert [row["num_clients"] for row in rows] == [0, 6, 6, 6]
    assert all(row["num_failures"] == 0 for row in rows)
    assert all(row["upload_bytes"] > 0 < row["download_bytes"] for row in rows[1:])
    clients = folder.clients()
    assert len(clients) == 18
    assert {row["client"] for row in clients} == set(range(6))
    assert all(row["update_norm"] > 0 and row["failure"] is None for row in clients)
    for name in ("curves.png", "partition.png"):
        with Image.open(folder.path / name) as picture:
            assert picture.width > 600
    summary = folder.summary()
    assert summary is not None
    assert summary["rounds"] == 3
    assert summary["final_test_accuracy"] == rows[-1]["test_accuracy"] > 0.5
    assert summary["final_test_loss"] == rows[-1]["test_loss"]
    assert len(summary["per_class_accuracy"]) == 10


def test_the_saved_model_is_the_one_that_was_evaluated(tmp_path: Path) -> None:
    from fl_app import models
    from fl_app.data import datasets
    from tests.conftest import make_config

    folder = run(tmp_path)
    arrays, info = read_model(folder.path / "model.safetensors")
    assert model_sha256(arrays) == sha(folder)
    model = models.build(info.model, info.input_shape, len(info.class_names), seed=9)
    task.set_arrays(model, arrays)
    data = datasets.load(make_config(dataset=info.dataset))
    examples = task.Examples(
        torch.tensor(data.test_images), torch.tensor(data.test_labels)
    )
    normalise = task.Normalisation(info.mean, info.std)
    result = task.evaluate(model, examples, normalise, num_classes=10)
    summary = folder.summary()
    assert summary is not None
    assert result.accuracy == summary["final_test_accuracy"]
    assert result.loss == pytest.approx(summary["final_test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "improved-cnn", "augment": True, "num-server-rounds": 1},
        {"strategy": "fedprox", "optimizer": "adam", "learning_rate": 0.001},
        {"model": "improved-cnn", "normalisation_policy": "pooled"},
        {"fraction_train": 0.5, "partitioner": "classes", "fraction_evaluate": 0.2},
    ],
)
def test_the_number_of_nodes_does_not_change_a_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {"num_server_rounds": 2, **changes}
    folders = {n: run(tmp_path / str(n), nodes=n, **changes) for n in (1, 2, 7)}
    assert len({sha(folder) for folder in folders.values()}) == 1
    timed = {"seconds", "upload_bytes", "download_bytes"}
    metrics = {
        json.dumps(
            [{k: v for k, v in row.items() if k not in timed} for row in f.metrics()]
        )
        for f in folders.values()
    }
    assert len(metrics) == 1


def test_runs_repeat_and_another_seed_gives_another_model(tmp_path: Path) -> None:
    hashes = [
        sha(run(tmp_path, run_name=name, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_mu_zero_is_fedavg_bit_for_bit(tmp_path: Path) -> None:
    plain = run(tmp_path, run_name="plain")
    zero = run(tmp_path, run_name="zero", strategy="fedprox", proximal_mu=0.0)
    some = run(tmp_path, run_name="some", strategy="fedprox", proximal_mu=1.0)
    assert sha(plain) == sha(zero) != sha(some)
    assert {row["proximal_loss"] for row in zero.clients()} == {0.0}
    assert all(row["proximal_loss"] > 0 for row in some.clients())


def test_a_huge_mu_keeps_the_model_where_it_was(tmp_path: Path) -> None:
    still = run(tmp_path, run_name="still", strategy="fedprox", proximal_mu=1e9)
    accuracies = {row["test_accuracy"] for row in still.metrics()}
    assert len(accuracies) == 1
    assert max(row["update_norm"] for row in still.clients()) < 1e-6


def test_the_golden_model(tmp_path: Path) -> None:
    """Guards D3. The bits of float arithmetic differ between kinds of processor and
    releases of torch: there is one hash for each, and none is guessed.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    kind = f"{vendor()} {capability}, torch {torch_release()}"
    if kind not in GOLDEN:
        pytest.skip(f"no golden hash was recorded for {kind}")
    assert sha(run(tmp_path, nodes=3)) == GOLDEN[kind]


def test_small_convolutions_give_one_model_on_any_number_of_nodes(
    tmp_path: Path,
) -> None:
    """Theirs are kernels of our own, for which there is a hash as well."""
    options = {"model": "lenet", "num_server_rounds": 2}
    hashes = {
        sha(run(tmp_path, nodes=nodes, run_name=f"on-{nodes}", **options))
        for nodes in (1, 3)
    }
    assert len(hashes) == 1
    # The compiler's choices differ between processors of one vendor, too.
    numba = ".".join(metadata.version("numba").split(".")[:2])
    kind = f"{get_host_cpu_name()}, torch {torch_release()}, numba {numba}"
    if kind in GOLDEN_LENET:
        assert hashes == {GOLDEN_LENET[kind]}


GOLDEN_LENET = {
    "znver5, torch 2.15, numba 0.68": (
        "984e617598002bbd031a609cb7cc718a893429d20fb067a2e61e3b47ac22fd31"
    ),
    "emeraldrapids, torch 2.15, numba 0.68": (
        "1da6c14b2885c3efe96f8a5e06f5b5b5993e7e0643ff176b2e06254c868adaa2"
    ),
}


def torch_release() -> str:
    return ".".join(torch.__version__.split(".")[:2])


def vendor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("vendor_id"))


GOLDEN = {
    "AuthenticAMD AVX512, torch 2.15": (
        "573ab2dbe5aa7b8dc02633c3aea97d677a98247fae5c81f21e4552954fceda1b"
    ),
    "GenuineIntel AVX512, torch 2.15": (
        "4044a75d23e453269fe4e8cf9bdcb6b3"  # two halves, for the line's length
        "82ab90ba66458b4cc7b524ebb57ffe3d"
    ),
}


def test_training_goes_on_from_a_saved_model(tmp_path: Path) -> None:
    first = run(tmp_path, run_name="first")
    path = str(first.path / "model.safetensors")
    second = run(tmp_path, run_name="second", initial_model=path)
    assert second.metrics()[0]["test_loss"] == first.metrics()[-1]["test_loss"]
    assert second.metrics()[-1]["test_loss"] < first.metrics()[-1]["test_loss"]


def test_a_model_of_another_shape_is_refused_before_training(tmp_path: Path) -> None:
    first = run(tmp_path, run_name="first")
    path = str(first.path / "model.safetensors")
    with pytest.raises(ConfigError, match="initial-model = .* does not fit"):
        run(tmp_path, run_name="second", initial_model=path, model="mlp")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proximal_mu": -1.0}, "proximal-mu = -1.0"),
        ({"dataset": "nowhere"}, "dataset = 'nowhere' is unknown"),
        ({"results_dir": "/proc/nowhere"}, "results-dir = '/proc/nowhere'"),
        ({"num_clients": 5000}, "num-clients = 5000 is more than the 1438"),
        ({"dirichlet_alpha": 0.001, "num_clients": 60}, "raise dirichlet-alpha"),
    ],
)
def test_bad_input_ends_before_training_and_leaves_no_folder(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, FederationError), match=said):
        run(tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_run_name_that_exists_is_refused(tmp_path: Path) -> None:
    before = sha(run(tmp_path))
    with pytest.raises(ConfigError, match="run-name = 'run' exists"):
        run(tmp_path)
    assert sha(RunFolder(tmp_path / "run")) == before


def test_a_client_that_raises_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client_app.ClientWork.train

    def train(work: Any, client: int, **options: Any) -> Any:
        if client == 4:
            raise ValueError("boom")
        return honest(work, client, **options)

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    folder = run(tmp_path)
    assert [row["num_failures"] for row in folder.metrics()] == [0, 1, 1, 1]
    assert [row["num_clients"] for row in folder.metrics()] == [0, 5, 5, 5]
    failed = [row for row in folder.clients() if row["failure"]]
    assert {row["client"] for row in failed} == {4}
    assert failed[0]["failure"] == "ValueError: boom"
    assert "Traceback" in failed[0]["traceback"]


def test_when_time_is_up_the_clients_that_are_done_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client_app.ClientWork.train

    def train(work: Any, client: int, **options: Any) -> Any:
        if client == 2:
            time.sleep(1.1)
        return honest(work, client, **options)

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    folder = run(tmp_path, nodes=1, num_server_rounds=1, round_timeout=1.0)
    failed = {r["client"]: r["failure"] for r in folder.clients() if r["failure"]}
    assert sorted(failed) == [2, 3, 4, 5]
    assert all("the round's time was up" in reason for reason in failed.values())
    assert [r["client"] for r in folder.clients() if not r["failure"]] == [0, 1]


@pytest.mark.parametrize("num_clients", [2, 6])
def test_an_update_that_is_not_finite_is_left_out_on_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_clients: int
) -> None:
    honest = client_app.ClientWork.train

    def train(work: Any, client: int, **options: Any) -> Any:
        update, row = honest(work, client, **options)
        if client == 1:
            update["1.bias"] = np.full_like(update["1.bias"], np.nan)
        return update, row

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    folder = run(tmp_path, num_clients=num_clients)
    failed = [row for row in folder.clients() if row["failure"]]
    assert {row["client"] for row in failed} == {1}
    assert "not finite" in failed[0]["failure"]
    assert all(math.isfinite(row["test_loss"]) for row in folder.metrics())


def test_a_run_whose_clients_all_fail_ends_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(work: Any, client: int, **options: Any) -> Any:
        raise ValueError("boom")

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    with pytest.raises(FederationError, match="missed the quorum.*boom"):
        run(tmp_path, max_failed_rounds=2)
    folder = RunFolder(tmp_path / "run")
    assert folder.summary() is None
    error = folder.error()
    assert error is not None
    assert "boom" in error["message"]
    assert len(folder.metrics()) == 3  # rounds 0 to 2 are kept


def test_a_validation_that_raises_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = client_app.ClientWork.validate

    def validate(work: Any, client: int) -> Any:
        if client == 2:
            raise ValueError("boom in validation")
        return honest(work, client)

    monkeypatch.setattr(client_app.ClientWork, "validate", validate)
    folder = run(tmp_path, fraction_train=0.34, fraction_evaluate=1.0)
    assert all(row["num_failures"] == 0 for row in folder.metrics())
    assert all(row["validation_accuracy"] is not None for row in folder.metrics())
    assert "boom in validation" in caplog.text


def test_a_picture_that_fails_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise ValueError("no ink")

    monkeypatch.setattr(plots, "curves", fail)
    monkeypatch.setattr(partition_picture, "partition", fail)
    folder = run(tmp_path)
    assert folder.summary() is not None
    assert not (folder.path / "curves.png").exists()


def test_messages_are_not_mutated(tmp_path: Path) -> None:
    """Neither half writes into what it was handed, or into what it has sent."""
    options = default_options() | QUICK | {"strategy": "fedprox"}
    options |= {"results-dir": str(tmp_path), "run-name": "run"}
    before = dict(options)
    work, taken = app_node(client_app.app, options), []

    def node(message: Message) -> Message | None:
        taken.append((message.content, snapshot(message.content)))
        return work(message)

    grid = LocalGrid({1: node, 2: node})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    assert options == before
    assert len(taken) == 2 + 3 * 2 + 2  # the query, three rounds, the last validation
    for content, as_it_came in taken:
        assert snapshot(content) == as_it_came


def snapshot(content: RecordDict) -> dict[str, Any]:
    """Return all values of a message, arrays as their bytes."""
    return {
        name: {
            key: list(value)
            if isinstance(value, list)
            else getattr(value, "data", value)
            for key, value in record.items()
        }
        for name, record in content.items()
    }


def test_the_global_model_is_judged_on_what_clients_train_on(tmp_path: Path) -> None:
    """With one step on all examples, clients' mean loss is the global model's."""
    folder = run(
        tmp_path,
        evaluate_training=True,
        partitioner="iid",
        num_clients=3,
        batch_size=5000,
        local_epochs=1,
        augment=False,
        evaluate_every=1,
    )
    rows = folder.metrics()
    for before, after in itertools.pairwise(rows):
        assert before["global_train_loss"] == pytest.approx(after["train_loss"])
    assert rows[-1]["global_train_loss"] < rows[0]["global_train_loss"]


def test_a_server_without_data_cannot_judge_training() -> None:
    with pytest.raises(ConfigError, match="evaluate-training = true is not allowed"):
        make_config(dataset="private", evaluate_training=True)
