"""Processes for messages, forked from one that has PyTorch imported."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.superexec.executor.types import ExecutionSpec

from fl_app import environment, network, warm
from tests.test_network import processes_of

SPECS = [
    {"insecure": True},
    {"insecure": False, "root_certificates_path": "/ca.crt", "parent_pid": 7},
    {"insecure": True, "parent_pid": None},
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


@pytest.mark.parametrize("served", warm.PRELOADED)
def test_no_gpu_is_opened_by_what_is_imported_ahead(served: str) -> None:
    """What a process knows of one is of no use to its forks."""
    modules = [name for name in warm.PRELOADED[served] if name != "_fl_app_ray_nodes"]
    code = (
        "import importlib, torch\n"
        "opened = []\n"
        "def open_gpu(*_): opened.append(1); return 0\n"
        "torch._C._cuda_init = torch._C._cuda_getDeviceCount = open_gpu\n"
        "torch.cuda._is_compiled = lambda: True\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(len(opened))\n"
        "torch.cuda.is_available()\n"
        "print(len(opened))\n"  # it would have been seen
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("0\n1\n", 0), done.stderr


@pytest.mark.parametrize("command", warm._FORKED)
@pytest.mark.parametrize("given", SPECS)
def test_the_arguments_are_flowers_own(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], command: str
) -> None:
    started = []
    monkeypatch.setattr(
        subprocess_executor.subprocess, "Popen", lambda args, **_: started.append(args)
    )
    (task_type,) = (t for t, c in TASK_TYPE_TO_COMMAND.items() if c == command)
    given = {**given, "task_type": task_type}
    subprocess_executor.SubprocessExecutor().launch(spec(**given))
    assert started == [[command, *warm.arguments(spec(**given))]]


CHILD = """
import json, sys
from pathlib import Path

def tell():
    constants = sys.modules.get("ray._private.ray_constants")
    uv_hook = getattr(constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)
    nodes = sys.modules.get("_fl_app_ray_nodes")
    with_ray = getattr(nodes, "with_ray", None)
    told = [sys.argv, sorted(sys.modules), uv_hook, with_ray]
    Path(sys.argv[1]).write_text(json.dumps(told))
"""

PARENT = """
import multiprocessing, sys
import _fl_app_warm as warm, child

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(warm.PRELOADED[sys.argv[1]])
    sys.argv = ["flwr-clientapp", sys.argv[2]]
    process = context.Process(target=child.tell)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("served", list(warm.PRELOADED))
def test_a_forked_process_has_torch_and_no_module_of_an_app(
    tmp_path: Path, served: str
) -> None:
    """Else the code of the node would stand in for that of the bundle."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "_fl_app_warm.py").write_text(Path(warm.__file__).read_text())
    (tmp_path / "_fl_app_ray_nodes.py").write_text(
        "import sys; with_ray = 'ray' in sys.modules"
    )
    told = str(tmp_path / "told")
    subprocess.run(
        [sys.executable, "parent.py", served, told], cwd=tmp_path, check=True
    )
    arguments, modules, uv_hook, with_ray = json.loads((tmp_path / "told").read_text())
    assert arguments == ["flwr-clientapp", told]
    assert {"torch", *warm.PRELOADED[served]} <= set(modules)
    assert not [m for m in modules if m.partition(".")[0] in ("fl_app", "strategies")]
    if "ray" in modules:
        assert uv_hook is False, "Flower was imported too late for Ray to heed it"
        assert with_ray is False, "Ray has read by then what a node is started for"
        assert "ray.dashboard.consts" not in modules, "it reads how agents end"


def starting(launched: list[Any]) -> warm.Launch:
    """Return Flower's way of launching, which notes what it is given."""
    return lambda self, given: launched.append(given)


def test_other_tasks_are_started_as_flower_does() -> None:
    """Only those that are known are forked."""
    launched: list[ExecutionSpec] = []
    launch = warm._forking(SimpleNamespace(Process=None), starting(launched))  # type: ignore[arg-type]
    launch(None, spec(task_type=TaskType.SERVER_APP))
    assert launched == [spec(task_type=TaskType.SERVER_APP)]


CLIENT_APP: tuple[str, list[list[str]]] = "flwr-clientapp", []
SIMULATION = "flwr-simulation", [["tools"]]


class Forked:
    """Stands in for a process: runs its target here, in place of Flower's function."""

    def __init__(self, target: Any, args: Any, name: str) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)


@pytest.mark.parametrize(
    ("task_type", "module", "command", "before"),
    [
        (TaskType.CLIENT_APP, "flwr.supernode.cli.flwr_clientapp", *CLIENT_APP),
        (TaskType.SIMULATION, "flwr.simulation.app", *SIMULATION),
    ],
)
def test_known_tasks_are_forked(
    monkeypatch: pytest.MonkeyPatch,
    task_type: TaskType,
    module: str,
    command: str,
    before: list[list[str]],
) -> None:
    """And a simulation begins with the server that forks for its Ray."""
    forked: list[list[str]] = []
    servers = SimpleNamespace(start=lambda of: forked.append([of]), TOOLS="tools")
    monkeypatch.setitem(sys.modules, "_fl_app_ray_processes", servers)
    monkeypatch.setattr(
        importlib.import_module(module),
        command.replace("-", "_"),
        lambda: forked.append(list(sys.argv)),
    )

    def never(self: Any, given: Any) -> None:
        raise AssertionError("started as Flower does")

    arguments = list(sys.argv)
    launch = warm._forking(SimpleNamespace(Process=Forked), never)  # type: ignore[arg-type]
    given = spec(task_type=task_type)
    assert launch(None, given).status == "accepted"
    assert forked == [*before, [command, *warm.arguments(given)]]
    assert sys.argv == arguments


def code_of(given: ExecutionSpec) -> str:
    """Return what a forked process executes."""
    codes: list[str] = []

    class Noted:
        def __init__(self, target: Any, args: Any, name: str) -> None:
            assert target is exec
            codes.append(args[0])

        def start(self) -> None:
            """Not here."""

    launch = warm._forking(SimpleNamespace(Process=Noted), starting([]))  # type: ignore[arg-type]
    launch(None, given)
    return codes[0]


def test_no_two_forks_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flower's noise for differential privacy would be."""
    monkeypatch.setattr(
        warm, "_FORKED", {"flwr-clientapp": "from numpy.random import rand"}
    )
    drawn = []
    for _ in range(2):
        numpy.random.seed(0)  # noqa: NPY002 - the state that each fork finds
        found: dict[str, Any] = {}
        exec(code_of(spec()).replace("run()", "drawn = run()"), found)
        drawn.append(found["drawn"])
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_to_be_silent_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: bool
) -> None:
    """As a simulation is, whose output Flower sends to who runs it."""
    (tmp_path / "told.py").write_text(
        "import os, sys\n"
        "def run():\n"
        "    print('said')\n"
        "    print('warned', file=sys.stderr)\n"
        "    os.system('echo said')\n"
    )
    monkeypatch.setattr(warm, "_FORKED", {"flwr-simulation": "from told import run"})
    code = code_of(spec(task_type=TaskType.SIMULATION, suppress_output=silent))
    (tmp_path / "_fl_app_ray_processes.py").write_text(
        "TOOLS = 0\n\ndef start(variable):\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=tmp_path
    )
    assert bool(done.stdout or done.stderr) is not silent


@pytest.mark.parametrize("served", list(warm.PRELOADED))
def test_the_server_imports_before_there_is_something_to_do(
    monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    """For a first run, too: it and all its nodes gain from it."""
    happened: list[Any] = []
    executor = subprocess_executor.SubprocessExecutor
    launch = executor.launch
    monkeypatch.setattr(executor, "launch", launch)
    monkeypatch.setattr(warm, "start_server", lambda context: happened.append("server"))

    def run() -> None:
        happened.append([sys.argv, executor.launch is not launch])

    monkeypatch.setattr("flwr.supercore.cli.flower_superexec", run)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="warm.py"))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["flower-superexec", served, "--insecure"])
    warm.main()
    assert happened == ["server", [["flower-superexec", "--insecure"], True]]


def test_what_brings_its_own_packages_is_started_as_flower_does() -> None:
    """Else it would run with those of the environment, which are in memory."""
    launched: list[ExecutionSpec] = []
    launch = warm._forking(SimpleNamespace(Process=None), starting(launched))  # type: ignore[arg-type]
    own = spec(runtime_dependency_install=True)
    launch(None, own)
    assert launched == [own]


def test_after_an_upgrade_tasks_are_started_as_flower_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else they would run with the old packages, which are in memory."""
    launched: list[ExecutionSpec] = []
    launch = warm._forking(SimpleNamespace(Process=None), starting(launched))  # type: ignore[arg-type]
    monkeypatch.setattr(warm, "_last_installation", lambda: 0.0)
    launch(None, spec())
    assert launched == [spec()]


@pytest.mark.parametrize("error", [EOFError, OSError])
def test_without_the_server_that_forks_flower_does_it(error: type[Exception]) -> None:
    def failing(target: Any, args: Any, name: str) -> Any:
        raise error

    launched: list[ExecutionSpec] = []
    launch = warm._forking(SimpleNamespace(Process=failing), starting(launched))  # type: ignore[arg-type]
    launch(None, spec())
    assert launched == [spec()]


@pytest.mark.parametrize("served", list(warm.PRELOADED))
def test_setup_makes_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    monkeypatch.setattr(environment, "_site_packages", lambda: tmp_path / "site")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "pre fix"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    environment.setup(Path("/project"))
    command = environment.warm_commands(served) / "flower-superexec"
    said = subprocess.run(
        [str(command), "--version"], capture_output=True, text=True, check=True
    )
    assert "Flower version" in said.stdout
    assert command.is_relative_to(tmp_path / "pre fix" / "libexec" / "fl-app")


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
