"""Ray's processes, forked from one that has what they need imported."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_app import ray_processes, startup

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="sockets without a file are Linux's"
)

(SCRIPT,) = ray_processes.SCRIPTS[ray_processes.NODES]
PARENT = """
import subprocess, sys
import _fl_app_ray_processes as ray_processes, numpy, preloaded

ray_processes.start(ray_processes.NODES)
exec(sys.argv[1])
"""
"""Forks the server, then does what it is told; `ask` below starts a worker from it."""

WORKER = """
import json, os, sys
print(json.dumps({
    "arguments": sys.argv[1:],
    "forked": "preloaded" in sys.modules,
    "more": os.environ.get("MORE"),
    "folder": os.getcwd(),
    "path": sys.path[:2],
    "process": os.getpid(),
    "name": __name__,
    "draw": sys.modules["numpy"].random.rand() if "numpy" in sys.modules else None,
}), flush=True)
exec(sys.argv[1])
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a script that is called as Ray's, and a Python that hands it over.

    `sitecustomize` is imported as the hook of `fl-app setup` is, before the script.
    """
    source = Path(ray_processes.__file__).read_text()
    # Under a name that the hook in the environment does not look for.
    source = source.replace(ray_processes.NODES, "FL_APP_TEST")
    (tmp_path / "_fl_app_ray_processes.py").write_text(source)
    (tmp_path / "preloaded.py").touch()
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, _fl_app_ray_processes\n"
        "prefix, sys.prefix = sys.prefix, os.environ.get('PREFIX', sys.prefix)\n"
        "_fl_app_ray_processes.hand_over()\n"
        "sys.prefix = prefix\n"
    )
    script = tmp_path / SCRIPT
    script.parent.mkdir(parents=True)
    script.write_text(WORKER)
    return tmp_path


def ask(here: Path, what: str = "", **variables: str) -> list[str]:
    """Return the arguments of a call that starts a worker."""
    command = [sys.executable, str(here / SCRIPT), what, "--of=ours"]
    return [f"{command!r}", f"cwd={str(here / 'ray')!r}", f"env=env | {variables!r}"]


def parent(here: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "parent.py", f"import os\nenv = dict(os.environ)\n{code}"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(here)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker(here: Path, what: str = "", before: str = "", **variables: str) -> list[str]:
    """Return the lines that a worker wrote, its code and its errors."""
    call = ", ".join(ask(here, what, **variables))
    code = f"{before}\nprint(subprocess.run({call}).returncode)"
    said, errors = parent(here, code).communicate(timeout=60)
    return [*said.splitlines(), errors]


def test_a_fork_does_the_work_of_a_worker(here: Path) -> None:
    told, code, errors = worker(here, MORE="1")
    assert json.loads(told) | {"process": 0, "draw": 0} == {
        "arguments": ["", "--of=ours"],
        "forked": True,
        "more": "1",
        "folder": str(here / "ray"),
        "path": [str((here / SCRIPT).parent), str(here)],
        "process": 0,
        "draw": 0,
        "name": "__main__",
    }
    assert (code, errors) == ("0", "")


@pytest.mark.parametrize(
    ("what", "code", "error"),
    [
        ("sys.exit(3)", "3", ""),
        ("sys.exit()", "0", ""),
        ("sys.exit('no room')", "1", "no room"),
        ("raise LookupError('no such node')", "1", "LookupError: no such node"),
        ("os.kill(os.getpid(), 9)", "1", ""),
    ],
)
def test_it_ends_as_the_worker_would(
    here: Path, what: str, code: str, error: str
) -> None:
    told, returned, errors = worker(here, what)
    assert json.loads(told)["forked"]
    assert returned == code
    assert error in errors


def test_no_two_of_them_draw_the_same(here: Path) -> None:
    """As Flower's noise for differential privacy would be."""
    call = ", ".join(ask(here))
    code = f"for _ in range(2): subprocess.run({call})"
    said, _ = parent(here, code).communicate(timeout=60)
    first, second = (json.loads(line) for line in said.splitlines())
    assert first["draw"] != second["draw"]


def test_what_was_to_be_done_at_the_end_is(here: Path) -> None:
    what = "import atexit; atexit.register(print, 'done'); print('last', end=' ')"
    assert worker(here, what)[1:] == ["last done", "0", ""]


@pytest.mark.parametrize(
    "before",
    [
        "os.environ.pop(ray_processes.NODES); env = dict(os.environ)",
        "env[ray_processes.NODES] = 'nobody'",
        "env[ray_processes.NODES] = 'nobody secret'",
        "env[ray_processes.NODES] = env[ray_processes.NODES][:-1] + '?'",
        "env['PREFIX'] = '/another/environment'",
    ],
)
def test_without_a_server_a_worker_starts_by_itself(here: Path, before: str) -> None:
    told, code, errors = worker(here, "sys.exit(3)", before)
    assert not json.loads(told)["forked"]
    assert (code, errors) == ("3", "")


@pytest.mark.parametrize("script", sum(ray_processes.SCRIPTS.values(), ()))
def test_ray_has_these_scripts(script: str) -> None:
    """Otherwise they would be started as before, and nobody would notice."""
    import ray

    assert (Path(ray.__file__).parent.parent / script).exists()


@pytest.mark.parametrize(
    ("before", "forked"),
    [
        (["-u"], True),
        (["other.py"], False),  # as Ray's own that makes an environment for a worker
        (["-m", "other"], False),  # as a profiler of memory
        (["-X", "dev"], False),
    ],
)
def test_what_is_run_is_a_script_of_rays(
    here: Path, before: list[str], forked: bool
) -> None:
    """Others may have one among their arguments, and something to do first."""
    (here / "other.py").write_text("import sys\nprint('\"forked\": false')")
    command = [sys.executable, *before, str(here / SCRIPT), ""]
    code = f"subprocess.run({command!r}, cwd={str(here)!r})"
    said, _ = parent(here, code).communicate(timeout=60)
    assert f'"forked": {str(forked).lower()}' in said


@pytest.mark.parametrize(("given", "served"), [(None, True), ("0", False)])
def test_agents_that_look_at_their_parent_are_not_forked(
    monkeypatch: pytest.MonkeyPatch, given: str | None, served: bool
) -> None:
    """They would end, since a fork's parent is not who started them."""
    monkeypatch.delenv(ray_processes.TOOLS, raising=False)
    monkeypatch.setenv(ray_processes._PIPE, given or "")
    if given is None:
        monkeypatch.delenv(ray_processes._PIPE)
    monkeypatch.setattr(os, "fork", lambda: 1)
    ray_processes.start(ray_processes.TOOLS)
    assert (ray_processes.TOOLS in os.environ) is served
    assert os.environ.pop(ray_processes._PIPE) == (given or "1")
    os.environ.pop(ray_processes.TOOLS, None)


def test_what_is_no_request_is_passed_over(here: Path) -> None:
    nonsense = (
        "import socket\n"
        "short, wrong, empty = b'\\0\\0\\0\\7{}', b'\\0\\0\\0\\1?', b'\\0\\0\\0\\2{}'\n"
        "null = b'\\0\\0\\0\\4null'\n"
        "sent_with = [(short, [0]), (wrong, []), (empty, [1]), (null, []), (b'', [])]\n"
        "for sent, files in sent_with:\n"
        "    with socket.socket(socket.AF_UNIX) as connection:\n"
        "        connection.connect(chr(0) + env[ray_processes.NODES].split()[0])\n"
        "        if sent:\n"
        "            socket.send_fds(connection, [sent], files)\n"
    )
    told, *rest = worker(here, before=nonsense)
    assert json.loads(told)["forked"]
    assert rest == ["0", ""]


def test_another_user_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ray_processes._user(ours) == os.getuid()
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        with pytest.raises(PermissionError):
            ray_processes._receive(theirs, "")


def test_nothing_is_handed_to_another_users_server(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would learn the environment, and could be waited for in vain."""
    name = f"fl-app-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        monkeypatch.setenv(ray_processes.NODES, name)
        monkeypatch.setattr(sys, "orig_argv", ["python3", str(here / SCRIPT)])
        monkeypatch.setattr(ray_processes, "_user", lambda connection: os.getuid() + 1)
        ray_processes.hand_over()
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b""


def ended(process: int) -> bool:
    """Whether a process ends within some seconds."""
    end = time.monotonic() + 20
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_the_fork_ends_with_the_process_that_asked(here: Path) -> None:
    """Ray kills the one that it has started, if it did not hear of another."""
    call = ", ".join(ask(here, "import time; time.sleep(60)"))
    code = f"asked = subprocess.Popen({call})\nprint(asked.pid, flush=True)\ninput()"
    with parent(here, code) as process:
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        (asked,) = (int(line) for line in lines if line.strip().isdigit())
        (told,) = (json.loads(line) for line in lines if line.startswith("{"))
        assert asked != told["process"]
        os.kill(asked, signal.SIGKILL)
        assert ended(told["process"])
        process.kill()


def test_the_fork_ends_with_who_started_the_one_that_asked(here: Path) -> None:
    """Ray's raylet, say, whose agents would else stay."""
    asked = ", ".join(ask(here, "import time; time.sleep(60)"))
    between = f"import os, subprocess; env = dict(os.environ); subprocess.run({asked})"
    code = f"subprocess.Popen([sys.executable, '-c', {between!r}])"
    code = f"between = {code}\nprint(between.pid, flush=True)\ninput()"
    with parent(here, code) as process:
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        (middle,) = (int(line) for line in lines if line.strip().isdigit())
        (told,) = (json.loads(line) for line in lines if line.startswith("{"))
        os.kill(middle, signal.SIGKILL)
        assert ended(told["process"])
        process.kill()


def test_the_server_ends_with_the_process_that_started_it(here: Path) -> None:
    code = "print(env[ray_processes.NODES].split()[0], flush=True)\ninput()"
    with parent(here, code) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert serves(name)
        process.kill()
        process.wait()
        end = time.monotonic() + 20
        while serves(name) and time.monotonic() < end:
            time.sleep(0.05)
        assert not serves(name)


def serves(name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(f"\0{name}") == 0


def test_both_sides_know_where_the_server_is_told() -> None:
    assert tuple(ray_processes.SCRIPTS) == startup.RAY_PROCESSES


def test_it_imports_nothing_of_an_app() -> None:
    """Else the code in the environment would stand in for that of the bundle."""
    source = Path(ray_processes.__file__).read_text()
    assert "import fl_app" not in source
    assert "from fl_app" not in source
