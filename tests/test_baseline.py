"""Baselines take the federation's steps on its data; nothing or all is shared."""

import io
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fl_app import baseline
from fl_app.artifacts import RunFolder, model_sha256, read_model
from fl_app.baseline import Steps
from fl_app.config import ConfigError
from fl_app.data import datasets
from tests.conftest import make_config
from tests.test_run import QUICK, run

OPTIONS = {key.replace("-", "_"): value for key, value in QUICK.items()}


def alone(results: Path, regime: str, epochs: int | None = None, **changes: Any) -> Any:
    given = {"run_name": regime, "results_dir": str(results), "regime": regime}
    config = make_config(**OPTIONS | given | changes)
    return baseline.run(Console(file=io.StringIO()), config, epochs)


@pytest.mark.parametrize("regime", [baseline.CENTRAL, baseline.LOCAL_ONLY])
def test_it_takes_the_federations_steps(tmp_path: Path, regime: str) -> None:
    options: dict[str, Any] = {"fraction_train": 0.5, "local_epochs": 2}
    federated = run(tmp_path, run_name="federated", **options)
    ours = alone(tmp_path, regime, **options)
    for round in (1, 2, 3):
        theirs = [c for c in federated.clients() if c["round"] == round]
        mine = [c for c in ours.clients() if c["round"] == round]
        assert sum(c["steps"] for c in mine) == sum(c["steps"] for c in theirs)
        if regime == baseline.LOCAL_ONLY:
            keys = ("client", "steps", "num_examples")
            assert [[c[k] for k in keys] for c in mine] == [
                [c[k] for k in keys] for c in theirs
            ]
    summary = ours.summary()
    assert summary is not None
    total = sum(c["steps"] for c in federated.clients())
    assert summary["gradient_steps"] == total
    left = [{p.name for p in folder.path.iterdir()} for folder in (federated, ours)]
    single = {"model.safetensors"} if regime == baseline.LOCAL_ONLY else set()
    assert left[0] - left[1] == {"best.safetensors"} | single


def test_the_first_round_alone_is_the_federations(tmp_path: Path) -> None:
    """With one client there is nothing to share: all three are the same training."""
    options = {"num_clients": 1, "num_server_rounds": 1, "partitioner": "iid"}
    federated = run(tmp_path, run_name="federated", **options)
    for regime in (baseline.CENTRAL, baseline.LOCAL_ONLY):
        ours = alone(tmp_path, regime, **options).metrics()[-1]
        theirs = federated.metrics()[-1]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["test_accuracy"] == pytest.approx(
            theirs["test_accuracy"], abs=0.003
        )
        assert ours["validation_accuracy"] == theirs["validation_accuracy"]


def test_central_has_everybodys_examples_as_they_split_them() -> None:
    config = make_config(**OPTIONS)
    partition = datasets.load(config).partition(config, 2)
    (train, validation), parts = partition.merged().split(0), partition
    splits = [parts.split(c) for c in range(6)]
    assert sorted(train) == sorted(np.concatenate([t for t, _ in splits]))
    assert sorted(validation) == sorted(np.concatenate([v for _, v in splits]))
    assert partition.merged().label_counts().sum() == parts.label_counts().sum()


def test_central_is_best_and_alone_is_worst(tmp_path: Path) -> None:
    options: dict[str, Any] = {"partitioner": "classes", "num_server_rounds": 8}
    accuracies = [
        folder.summary()["final_test_accuracy"]  # type: ignore[index]
        for folder in (
            alone(tmp_path, baseline.CENTRAL, **options),
            run(tmp_path, run_name="federated", **options),
            alone(tmp_path, baseline.LOCAL_ONLY, **options),
        )
    ]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[2] < 0.3  # two of ten classes each


def test_local_only_tells_of_each_client(tmp_path: Path) -> None:
    folder = alone(tmp_path, baseline.LOCAL_ONLY)
    summary = folder.summary()
    assert len(summary["per_client_accuracy"]) == 6
    last = [c for c in folder.clients() if c["round"] == 3]
    assert [c["test_accuracy"] for c in last] == summary["per_client_accuracy"]
    mean = np.mean(summary["per_client_accuracy"])
    assert folder.metrics()[-1]["test_accuracy"] == pytest.approx(mean)


def test_it_repeats_and_its_model_is_saved(tmp_path: Path) -> None:
    one = alone(tmp_path, baseline.CENTRAL)
    again = alone(tmp_path, baseline.CENTRAL, run_name="again")
    arrays, _ = read_model(one.path / "model.safetensors")
    assert one.summary()["model_sha256"] == model_sha256(arrays)
    assert again.summary()["model_sha256"] == model_sha256(arrays)


def test_epochs_are_spread_over_the_rounds() -> None:
    config = make_config(**OPTIONS | {"num_server_rounds": 4, "batch_size": 10})
    steps = Steps(config, [25, 71], epochs=3)
    rounds = range(1, 5)
    assert sum(steps.pooled(r) for r in rounds) == 3 * ceil(96 / 10)
    for client, size in enumerate((25, 71)):
        total = sum(steps.of_clients(r)[client] for r in rounds)
        assert total == 3 * ceil(size / 10)


def test_what_has_no_baseline_is_refused(tmp_path: Path) -> None:
    for changes, said in (
        ({"dataset": "private"}, "nobody has all of the data"),
        ({"resume": "x"}, "cannot be resumed"),
        ({"patience": 3}, "patience is not allowed here"),
    ):
        config = make_config(**OPTIONS | {"results_dir": str(tmp_path)} | changes)
        with pytest.raises(ConfigError, match=said):
            baseline.named(config)
    with pytest.raises(ConfigError, match="use `fl-app baseline`"):
        run(tmp_path, regime="central")
    assert baseline.named(make_config(regime="central")).run_name.startswith(
        "digits-central-"
    )


@pytest.mark.parametrize("strategy", ["fedprox", "fednova", "fedadam", "fedmedian"])
def test_no_strategy_has_a_part_in_it(tmp_path: Path, strategy: str) -> None:
    plain = alone(tmp_path, baseline.CENTRAL).summary()
    other = alone(tmp_path, baseline.CENTRAL, run_name="other", strategy=strategy)
    assert other.summary()["model_sha256"] == plain["model_sha256"]


def test_pooled_variances_are_the_models_own(tmp_path: Path) -> None:
    options = {"model": "improved-cnn", "num_clients": 1, "num_server_rounds": 2}
    models = []
    for policy in ("average", "pooled"):
        folder = alone(
            tmp_path,
            baseline.CENTRAL,
            run_name=policy,
            normalisation_policy=policy,
            **options,
        )
        models.append(read_model(folder.path / "model.safetensors")[0])
    for name, array in models[0].items():
        np.testing.assert_allclose(models[1][name], array, rtol=1e-3, atol=1e-5)


def test_stragglers_are_the_federations(tmp_path: Path) -> None:
    options: dict[str, Any] = {"straggler_fraction": 0.5, "local_epochs": 3}
    for policy in ("keep", "drop"):
        given = options | {"stragglers": policy}
        federated = run(tmp_path, run_name=f"federated-{policy}", **given)
        ours = alone(tmp_path, baseline.LOCAL_ONLY, run_name=policy, **given)
        for key in ("round", "client", "steps"):
            theirs = [row[key] for row in federated.clients()]
            assert [row[key] for row in ours.clients()] == theirs


def test_a_failure_leaves_its_reason(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        alone(tmp_path, baseline.CENTRAL, learning_rate=1e9, model="cnn", augment=False)
    error = RunFolder(tmp_path / "central").error()
    assert error is not None
    assert "smaller learning-rate" in error["message"]
