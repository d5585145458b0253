"""Processes for messages, forked from one that has PyTorch imported."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.superexec.executor.types import ExecutionSpec

from fl_app import environment, network, warm
from tests.test_network import processes_of

SPECS = [
    {"insecure": True},
    {"insecure": False, "root_certificates_path": "/ca.crt", "parent_pid": 7},
    {"insecure": True, "runtime_dependency_install": True, "parent_pid": None},
]


def spec(**given: Any) -> ExecutionSpec:
    fields = {
        "task_type": TaskType.CLIENT_APP,
        "task_id": 1,
        "token": "secret",
        "runtime_api_address": "127.0.0.1:9",
        "insecure": True,
        "root_certificates_path": None,
        "parent_pid": None,
        "runtime_dependency_install": False,
        "suppress_output": False,
    }
    known = ExecutionSpec.__dataclass_fields__
    return ExecutionSpec(**{k: v for k, v in (fields | given).items() if k in known})


@pytest.mark.parametrize("given", SPECS)
def test_the_arguments_are_flowers_own(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    started = []
    monkeypatch.setattr(
        subprocess_executor.subprocess, "Popen", lambda args, **_: started.append(args)
    )
    subprocess_executor.SubprocessExecutor().launch(spec(**given))
    assert started == [["flwr-clientapp", *warm.arguments(spec(**given))]]


CHILD = """
import json, sys
from pathlib import Path

def tell():
    Path(sys.argv[1]).write_text(json.dumps([sys.argv, sorted(sys.modules)]))
"""

PARENT = """
import multiprocessing, sys
import _fl_app_warm as warm, child

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(warm.PRELOADED)
    sys.argv = ["flwr-clientapp", sys.argv[1]]
    process = context.Process(target=child.tell)
    process.start()
    process.join()
"""


def test_a_forked_process_has_torch_and_no_module_of_an_app(tmp_path: Path) -> None:
    """Else the code of the node would stand in for that of the bundle."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "_fl_app_warm.py").write_text(Path(warm.__file__).read_text())
    subprocess.run(
        [sys.executable, "parent.py", str(tmp_path / "told")], cwd=tmp_path, check=True
    )
    arguments, modules = json.loads((tmp_path / "told").read_text())
    assert arguments == ["flwr-clientapp", str(tmp_path / "told")]
    assert {"torch", "flwr.supernode.cli.flwr_clientapp"} <= set(modules)
    assert not [m for m in modules if m.partition(".")[0] in ("fl_app", "strategies")]


def test_other_tasks_are_started_as_flower_does() -> None:
    """Only a client app is forked."""
    launched = []
    launch = warm._launching(
        SimpleNamespace(Process=None),  # type: ignore[arg-type]
        lambda self, given: launched.append(given.task_type),
    )
    launch(None, spec(task_type=TaskType.SERVER_APP))
    assert launched == [TaskType.SERVER_APP]


def test_a_client_app_is_forked() -> None:
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    forked = []

    class Process:
        def __init__(self, target: Any, name: str) -> None:
            self.target = target

        def start(self) -> None:
            forked.append((self.target, list(sys.argv)))

    def never(self: Any, given: Any) -> None:
        raise AssertionError("started as Flower does")

    before = list(sys.argv)
    launch = warm._launching(SimpleNamespace(Process=Process), never)  # type: ignore[arg-type]
    assert launch(None, spec()).status == "accepted"
    assert forked == [(flwr_clientapp, ["flwr-clientapp", *warm.arguments(spec())])]
    assert sys.argv == before


@pytest.mark.parametrize("error", [EOFError, OSError])
def test_without_the_server_that_forks_flower_does_it(error: type[Exception]) -> None:
    def failing(target: Any, name: str) -> Any:
        raise error

    launched = []
    launch = warm._launching(
        SimpleNamespace(Process=failing),  # type: ignore[arg-type]
        lambda self, given: launched.append(given),
    )
    launch(None, spec())
    assert launched == [spec()]


def test_setup_makes_the_command(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(environment, "_site_packages", lambda: tmp_path / "site")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "pre fix"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    environment.setup(Path("/project"))
    command = environment.warm_commands() / "flower-superexec"
    said = subprocess.run(
        [str(command), "--version"], capture_output=True, text=True, check=True
    )
    assert "Flower version" in said.stdout
    assert command.parent.parent.parent == tmp_path / "pre fix"


@pytest.mark.network
@pytest.mark.faults
def test_nodes_are_warm_and_end_with_all_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment.setup(environment.find_project())
    with network.federation(environment.find_project(), network.sharing(1)):
        lines = [
            Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(tmp_path)
        ]
        assert [line for line in lines if "_fl_app_warm.py" in line]
    assert processes_of(tmp_path) == []
