"""Sweeps: what the grid is, and that one started again does only what is missing."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_app import checkpoints, running, simulation, sweep
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from strategies.fedavg import FedAvg
from tests.conftest import default_options
from tests.test_run import serve

QUICK = "model='logistic' num-server-rounds=2 local-epochs=1 num-clients=4"


def cells(*arguments: str, results: Path | None = None) -> list[sweep.Cell]:
    where = [f'results-dir="{results}"'] if results else []
    return sweep.grid([QUICK, *arguments, *where], "grid")


def test_every_combination_the_last_list_fastest() -> None:
    found = cells('strategy=["fedavg", "fedprox"] proximal-mu=0.5', "seed=[0,1]")
    assert [c.config.run_name for c in found] == [
        "grid-fedavg-seed-0",
        "grid-fedavg-seed-1",
        "grid-fedprox-seed-0",
        "grid-fedprox-seed-1",
    ]
    assert [c.config.seed for c in found] == [0, 1, 0, 1]
    assert {c.config.proximal_mu for c in found} == {0.5}
    assert found[2].given["strategy"] == "fedprox"
    (first, _) = cells("learning-rate=[0.1,0.01] run-name='mine'")
    assert first.config.run_name == "mine-learning-rate-0.1"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seed=[0,0]", "lists of different values"),
        ("seed=[]", "lists of different values"),
        ("seed=1", "needs an option with several values"),
        ("strategy=[fedavg]", "strings in quotes, also in lists"),
        ("seed=[0,1] seed=2", "seed is given twice"),
        ("seed=[0,1] nonsense", "no key=value"),
        ("sede=[0,1]", "option sede is unknown"),
        ("seed=[0,-1]", "seed = -1 is not allowed"),
        ("run-name=['a','b']", "none for run-name"),
        ('seed=[0,1] resume="x"', "leave resume out"),
        (f"seed={[*range(1001)]}", "1001 runs, at most 1000"),
        ('regime=["federated","central"] patience=2', "patience is not allowed here"),
        ('strategy=["fedavg","fedmedian"] compression="topk"', "use int8 or int4"),
        ('test-path=["/a/x","/b/x"]', "two runs of the grid would be called"),
    ],
)
def test_what_is_no_grid_is_refused(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cells(argument)


def test_a_long_name_keeps_what_tells_runs_apart() -> None:
    many = "local-epochs=[1,2] batch-size=[16,32] learning-rate=[0.1,0.01] "
    lists = many + "momentum=[0.0,0.9] weight-decay=[0.0,0.01] seed=[0,1,2]"
    found = sweep.grid([lists], "grid")
    names = [cell.config.run_name for cell in found]
    assert len(set(names)) == len(names) == 96
    assert max(map(len, names)) <= 100


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of runs that were started; they train on nodes in this process."""
    names: list[str] = []

    def run(console: Any, project: Any, config: Any, given: Any, *_: Any) -> None:
        names.append(given.get("resume") or config.run_name)
        serve(default_options() | given | {"run-name": config.run_name})

    monkeypatch.setattr(simulation, "run", run)
    return names


def go(grid: list[sweep.Cell], tmp_path: Path) -> tuple[list[str], str]:
    said = io.StringIO()
    console = Console(file=said, width=200)
    return sweep.run(console, grid, 2, str(tmp_path / "out"), 0), said.getvalue()


def test_a_sweep_runs_once_and_compares(tmp_path: Path, started: list[str]) -> None:
    grid = cells('regime=["federated","central"] seed=[0,1]', results=tmp_path)
    failures, said = go(grid, tmp_path)
    assert failures == []
    assert started == ["grid-federated-seed-0", "grid-federated-seed-1"]
    assert "grid-central-seed-1  round 2/2  accuracy" in said
    methods = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {m["method"] for m in methods} == {"fedavg", "central"}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("grid-*/*")}
    go(grid, tmp_path)
    assert len(started) == 2
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("grid-*/*")}


def test_what_was_stopped_goes_on_and_what_is_missing_is_run(
    tmp_path: Path, started: list[str]
) -> None:
    grid = cells("seed=[0,1,2]", results=tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    go(cells("seed=[0,1,2]", results=whole), whole)
    honest, calls = FedAvg._round, []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("in round 2")
        return honest(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedAvg, "_round", dying)
        failures, _ = go(grid[:1], tmp_path)
    assert failures == ["grid-seed-0: MemoryError: in round 2"]
    assert checkpoints.exist(grid[0].folder.path)
    started.clear()
    assert go(grid, tmp_path)[0] == []
    assert started == ["grid-seed-0", "grid-seed-1", "grid-seed-2"]
    for seed in range(3):
        ours, theirs = (
            RunFolder(results / f"grid-seed-{seed}").summary()
            for results in (tmp_path, whole)
        )
        assert ours is not None
        assert theirs is not None
        assert ours["model_sha256"] == theirs["model_sha256"]


def test_another_run_of_that_name_is_left_alone(
    tmp_path: Path, started: list[str]
) -> None:
    go(cells("seed=[0,1]", results=tmp_path), tmp_path)
    other = cells("seed=[0,1] learning-rate=0.5", results=tmp_path)
    with pytest.raises(ConfigError, match="other options .learning-rate.: give the"):
        go(other, tmp_path)
    assert started == ["grid-seed-0", "grid-seed-1"]


def test_a_failure_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "run", lambda *_: "error: it failed")
    failures, _ = go(cells("seed=[0,1]", results=tmp_path), tmp_path)
    assert failures == [f"grid-seed-{seed}: error: it failed" for seed in (0, 1)]


def test_ctrl_c_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = f"error: the run failed: {running.STOPPED}"
    monkeypatch.setattr(simulation, "run", lambda *_: stopped)
    failures, _ = go(cells("seed=[0,1]", results=tmp_path), tmp_path)
    assert failures == [f"grid-seed-0: {stopped}"]
