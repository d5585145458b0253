"""The best model by validation, and runs that end early."""

from pathlib import Path
from typing import Any

import pytest

from fl_app import best, checkpoints
from fl_app.artifacts import RunFolder, model_sha256, read_model
from fl_app.config import ConfigError
from tests.conftest import make_config
from tests.test_resuming import Killed, figures, kill_in
from tests.test_resuming import resume as resume_run
from tests.test_resuming import start as start_run
from tests.test_run import run

STILL = {"learning_rate": 1e-12, "num_server_rounds": 9}


def rows(*accuracies: float | None) -> list[dict[str, Any]]:
    return [{"round": i, best.ACCURACY: a} for i, a in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("accuracies", "round"),
    [
        ((0.1, 0.5, 0.4, None), 1),
        ((0.5, 0.5, None), 0),  # the first of equals
        ((None, 0.2, None, 0.3), 3),
    ],
)
def test_the_best_row(accuracies: tuple[float | None, ...], round: int) -> None:
    found = best.best_row(rows(*accuracies))
    assert found is not None
    assert found["round"] == round


def test_there_is_none_without_a_verdict() -> None:
    assert best.best_row(rows(None, None)) is None
    assert not best.out_of_patience(rows(None, None), 1)


@pytest.mark.parametrize(
    ("accuracies", "patience", "ends"),
    [
        ((0.1, 0.5, 0.4, 0.3), 2, True),
        ((0.1, 0.5, 0.4, 0.3), 3, False),
        ((0.1, 0.5, 0.4, None), 2, False),
        ((0.1, 0.5, None, 0.4, None, 0.5), 2, True),
        ((0.1, 0.5, 0.4, 0.6), 1, False),
        ((0.5, 0.4, 0.3, 0.2), 0, False),
    ],
)
def test_patience(
    accuracies: tuple[float | None, ...], patience: int, ends: bool
) -> None:
    assert best.out_of_patience(rows(*accuracies), patience) == ends


@pytest.mark.parametrize("option", ["validation_fraction", "fraction_evaluate"])
def test_patience_needs_validation(option: str) -> None:
    with pytest.raises(ConfigError, match="patience = 2 needs validation"):
        make_config(patience=2, **{option: 0.0})


def test_a_run_that_does_not_improve_ends_early(tmp_path: Path) -> None:
    folder = run(tmp_path, patience=2, evaluate_every=1, **STILL)
    summary = folder.summary()
    assert summary is not None
    assert summary["rounds"] == 3  # the verdict on round 2 comes with round 3
    assert summary["best_round"] == 0
    assert len(folder.metrics()) == 4
    assert folder.metrics()[-1]["test_accuracy"] is not None
    assert folder.metrics()[-1][best.ACCURACY] is not None
    longer = run(tmp_path, run_name="longer", patience=5, **STILL)
    assert len(longer.metrics()) == 7


def test_the_best_model_is_that_of_its_round(tmp_path: Path) -> None:
    folder = run(tmp_path, num_server_rounds=4)
    summary = folder.summary()
    assert summary is not None
    until = run(tmp_path, run_name="until", num_server_rounds=summary["best_round"])
    ours, _ = read_model(folder.path / "best.safetensors")
    theirs, _ = read_model(until.path / "model.safetensors")
    assert model_sha256(ours) == model_sha256(theirs)


@pytest.mark.parametrize("call", [2, 4])
def test_a_killed_run_ends_where_the_whole_one_does(tmp_path: Path, call: int) -> None:
    """Killed in mid-run, and after the last checkpoint of a run that ends early."""
    options = {
        "model": "logistic",
        "num-server-rounds": 9,
        "num-clients": 4,
        "learning-rate": 1e-12,
        "patience": 2,
        "run-name": "run",
    }
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = start_run(tmp_path / "whole", given=options)
    with pytest.MonkeyPatch.context() as patch:
        if call == 4:
            kill_in(patch, RunFolder, "write_summary", 1)
        else:
            kill_in(patch, checkpoints, "write", call)
        with pytest.raises(Killed):
            start_run(tmp_path / "killed", given=options)
    assert figures(resume_run(tmp_path / "killed")) == figures(whole)
    bests = [
        model_sha256(read_model(tmp_path / name / "run" / "best.safetensors")[0])
        for name in ("whole", "killed")
    ]
    assert bests[0] == bests[1]
