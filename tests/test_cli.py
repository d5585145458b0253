"""The command as a user types it, in a process of its own; nothing is trained here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_app import cli, doctor, simulation
from fl_app.config import PROJECT_VARIABLE, ConfigError, RunConfig
from tests.conftest import PROJECT, make_config

FL_APP = Path(sys.executable).parent / "fl-app"


def fl_app(
    home: Path, *arguments: str, cwd: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ,
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [str(FL_APP), *arguments],
        env=variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("proximal-mu=-1.0", "proximal-mu = -1.0 is not allowed"),
        ('strategy="fedmagic"', "there are: fedadam, fedavg"),
        ("epochs=5", "option epochs is unknown: did you mean local-epochs?"),
        ("num-clients=5000", "num-clients = 5000 is more than the 1438"),
        ('dataset="mnits"', "dataset = 'mnits' is unknown"),
        ('dataset="mnist" data-dir="/none"', "is not in data-dir = '/none'"),
        ('results-dir="/proc/none"', "results-dir = '/proc/none' cannot be written"),
        ('run-name="a/b"', "run-name = 'a/b' is not allowed"),
        ('initial-model="/none"', "/none is not a model that a run has written"),
        ("min-nodes=50", "min-nodes = 50 is more than the"),
        ("seed=", "--run-config cannot be read: 'seed=' is no key=value"),
        ("seed = 3", "'seed = 3' is no key=value"),
        ("seed=nonsense", "strings in quotes"),
        ("/none.toml", "--run-config cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    tmp_path: Path, options: str, said: str
) -> None:
    done = fl_app(tmp_path, "run", "-c", options)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_run_name_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results" / "mine").mkdir(parents=True)
    options = f'results-dir="{tmp_path}/results" run-name="mine"'
    done = fl_app(tmp_path, "run", "-c", options)
    assert done.returncode == 1
    assert "run-name = 'mine' exists" in done.stderr


def test_bad_numbers_of_nodes(tmp_path: Path) -> None:
    done = fl_app(tmp_path, "run", "--nodes", "0")
    assert done.returncode == 1
    assert "--nodes = 0 is not allowed" in done.stderr


def test_setup_and_doctor(tmp_path: Path) -> None:
    before = fl_app(tmp_path, "doctor")
    assert before.returncode == 1
    assert "connection 'local-simulation' is not in" in before.stdout
    assert "run `fl-app setup`" in before.stdout
    assert fl_app(tmp_path, "setup").returncode == 0
    assert "already set up" in fl_app(tmp_path, "setup").stdout
    after = fl_app(tmp_path, "doctor")
    assert after.returncode == 0, after.stdout
    assert "wrong" not in after.stdout


def test_doctor_finds_what_is_wrong_with_a_run(tmp_path: Path) -> None:
    fl_app(tmp_path, "setup")
    done = fl_app(tmp_path, "doctor", "-c", 'dataset="mnist" data-dir="/none"')
    assert done.returncode == 1
    assert "wrong  dataset = 'mnist' is not in data-dir" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "topk", "strategy": "fedmedian"}, "use int8 or int4"),
        ({"model": "improved-cnn", "clients-together": 4}, "set clients-together = 1"),
        ({"model": "cnn", "clients-together": 4}, ""),
    ],
)
def test_doctor_looks_at_what_does_not_go_together(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = make_config(**options, results_dir=str(tmp_path))
    wrong = [f.what for f in doctor._run(config) if f.ok is False]
    assert len(wrong) == bool(said)
    assert all(said in what for what in wrong)


def test_doctor_names_who_holds_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    fl_app(tmp_path, "setup")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(port))
        done = fl_app(tmp_path, "doctor")
    assert done.returncode == 1
    assert f"port {port} is held by process {os.getpid()}" in done.stdout


def test_outside_the_project_the_codes_own_folder_is_taken(tmp_path: Path) -> None:
    done = fl_app(tmp_path, "run", "-c", "proximal-mu=-1.0", cwd=tmp_path)
    assert "proximal-mu = -1.0" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-c", "seed="], "--run-config cannot be read: 'seed=' is no key=value"),
        (["-c", 'dataset="private"'], "`fl-app network --data DIR`"),
        (["--data", "/none"], "it must be a folder with a folder for each node"),
        (["--data", "/none", "--nodes", "2"], "leave --nodes out"),
        (["--nodes", "0"], "--nodes = 0 is not allowed"),
        (["-c", "min-nodes=9"], "min-nodes = 9 is more than the 3 nodes"),
    ],
)
def test_a_network_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = fl_app(tmp_path, "network", *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--quantization"], "int8"),
        (["--quantization", "-c", 'compression="int8" seed=3'], "int8"),
        ([], "none"),
    ],
)
def test_quantization_is_short_for_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: str
) -> None:
    started = []

    def noting(console: Any, project: Any, config: RunConfig, *rest: Any) -> str:
        started.append(config.compression)
        return "not run: a test"

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setenv(PROJECT_VARIABLE, str(PROJECT))
    monkeypatch.setattr(simulation, "run", noting)
    done = CliRunner().invoke(cli.cli, ["run", *given])
    assert done.exit_code == 1
    assert started == [expected]


@pytest.mark.parametrize("other", ["int4", "none"])
def test_quantization_beside_another_codec_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setenv(PROJECT_VARIABLE, str(PROJECT))
    given = ["run", "--quantization", "-c", f'compression="{other}"']
    error = CliRunner().invoke(cli.cli, given).exception
    assert isinstance(error, ConfigError)
    assert f"-c says '{other}': give one of them" in str(error)


def test_a_federation_that_is_not_there(tmp_path: Path) -> None:
    done = fl_app(tmp_path, "run", "--federation", "nowhere")
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    done = fl_app(tmp_path, "run", "--federation", "nowhere", "--nodes", "2")
    assert done.returncode != 0
    assert "leave --nodes out" in done.stdout + done.stderr
