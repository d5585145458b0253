import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fl_app import environment, startup
from fl_app.environment import ADDRESS, SetupError

PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Flower home, a site-packages and a prefix of the test's own."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr(environment, "_site_packages", lambda: packages)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path / "flwr"


def connections(home: Path) -> dict[str, Any]:
    superlinks: dict[str, Any] = tomllib.loads((home / "config.toml").read_text())
    return dict(superlinks["superlink"])


def test_setup_registers_the_connection_on_all_cores(home: Path) -> None:
    changed = environment.setup(Path("/project"))
    assert len(changed) == 2
    connection = connections(home)["local-simulation"]
    assert connection["address"] == ADDRESS
    assert connection["options"]["num-supernodes"] == environment.default_nodes()
    assert {"local", "supergrid"} < connections(home).keys()  # Flower's own stay


def test_setup_can_be_repeated(home: Path) -> None:
    environment.setup(Path("/project"))
    before = (home / "config.toml").read_bytes()
    assert environment.setup(Path("/project")) == []
    assert (home / "config.toml").read_bytes() == before


def test_setup_keeps_what_the_user_wrote(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text(
        '# mine\n[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "lab:1"\n'
        "[superlink.local-simulation.options]\nnum-supernodes = 3\n"
    )
    environment.setup(Path("/project"))
    assert "# mine" in (home / "config.toml").read_text()
    assert connections(home)["default"] == "lab"
    assert connections(home)["local-simulation"]["options"] == {"num-supernodes": 3}
    assert connections(home)["local-simulation"]["address"] == ADDRESS


def test_a_broken_config_is_an_error_and_stays_as_it_is(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[superlink")
    with pytest.raises(SetupError, match=r"config.toml is not as Flower writes it"):
        environment.setup(Path("/project"))
    assert (home / "config.toml").read_text() == "[superlink"


def test_setup_that_cannot_write_says_so(home: Path) -> None:
    home.parent.joinpath("flwr").write_text("a file in the way")
    with pytest.raises(SetupError, match="cannot write"):
        environment.setup(Path("/project"))


def test_another_project_is_taken_over_by_its_own_setup(home: Path) -> None:
    environment.setup(Path("/one"))
    assert environment.hook_is_current(Path("/one"))
    assert not environment.hook_is_current(Path("/two"))
    environment.setup(Path("/two"))
    assert environment.hook_is_current(Path("/two"))


def test_defaults_keep_flower_from_installing_and_name_the_project() -> None:
    variables: dict[str, str] = {"PATH": "/usr/bin"}
    startup.apply("/project", variables)
    assert variables["FL_APP_PROJECT"] == "/project"
    assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert variables["PATH"].endswith(":/usr/bin")


def test_what_the_user_set_stays() -> None:
    variables = {PORT: "1234", "PATH": "/usr/bin"}
    startup.apply("/project", variables)
    startup.apply("/project", variables)
    assert variables[PORT] == "1234"


def test_what_another_checkout_set_is_replaced() -> None:
    variables = {"PATH": "/usr/bin", "FLWR_HOME": "/home/flwr"}
    startup.apply("/one", variables)
    first = variables[PORT]
    startup.apply("/two", variables)
    assert variables["FL_APP_PROJECT"] == "/two"
    assert variables[PORT] != first


def test_the_users_own_values_stay() -> None:
    name = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
    variables = {"PATH": "/usr/bin"}
    startup.apply("/one", variables)
    assert variables[name] == "0.2"
    variables = {"PATH": "/usr/bin", name: "5"}
    startup.apply("/one", variables)
    assert variables[name] == "5"


@pytest.mark.parametrize(
    ("command", "changes", "forks"),
    [
        (["flower-superlink", "--insecure", "--simulation"], {}, True),
        (["flower-superlink", "--simulation"], {"FL_APP_WARM": "0"}, False),
        (["flower-superlink", "--insecure"], {}, False),
        (["flower-supernode"], {}, False),
    ],
)
def test_a_superlink_for_simulations_forks_them(
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    changes: dict[str, str],
    forks: bool,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", *command])
    variables = {"PATH": "/usr/bin", **changes}
    startup.apply("/project", variables)
    first = variables["PATH"].split(":")[0]
    assert (first == str(environment.warm_commands("simulation"))) is forks
    assert variables["PATH"].endswith(":/usr/bin")
    simulates = "--simulation" in command
    assert (variables.get(HOOK) == "fl_app.startup.without_inherited") is simulates


HOOK = "RAY_RUNTIME_ENV_HOOK"


def test_another_hook_for_ray_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["flower-superlink", "--simulation"])
    variables = {"PATH": "/usr/bin", HOOK: "theirs.hook"}
    startup.apply("/project", variables)
    assert variables[HOOK] == "theirs.hook"


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"env_vars": {"PYTHONPATH": "/app"}}, {}),
        ({"env_vars": {"PYTHONPATH": "/app"}, "pip": ["x"]}, {"pip": ["x"]}),
        ({"env_vars": {"PYTHONPATH": "/b"}}, {"env_vars": {"PYTHONPATH": "/b"}}),
        (
            {"env_vars": {"PYTHONPATH": "/app", "MORE": "1"}},
            {"env_vars": {"MORE": "1"}},
        ),
        ({}, {}),
        (None, None),
    ],
)
@pytest.mark.parametrize("running", ["", "local", "cluster", "noted"])
def test_rays_workers_are_told_what_they_do_not_inherit(
    asked: Any,
    left: Any,
    running: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/app")
    monkeypatch.delenv("MORE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if running == "cluster":
        monkeypatch.setenv("RAY_ADDRESS", "first.example.org:6379")
    if running == "noted":
        note = tmp_path / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text("127.0.0.1:6379\n")
    if running == "local":  # to start one, whatever is up
        monkeypatch.setenv("RAY_ADDRESS", "local")
    assert startup.without_inherited(asked) == (
        asked if running in ("cluster", "noted") else left
    )


def test_where_ray_does_not_say_whether_it_is_up_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import utils

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/app")
    monkeypatch.delattr(utils, "read_ray_address")
    asked: dict[str, object] = {"env_vars": {"PYTHONPATH": "/app"}}
    assert startup.without_inherited(asked) == asked


def test_ray_calls_the_hook_that_setup_installs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import load_class
    from ray._private import ray_constants

    environment.setup(Path("/project"))
    # Not what an earlier set-up installed here, which this process has imported.
    monkeypatch.delitem(sys.modules, environment._HOOK, raising=False)
    monkeypatch.syspath_prepend(environment._site_packages())
    assert ray_constants.RAY_RUNTIME_ENV_HOOK == HOOK
    name = f"{environment._HOOK}.{startup.without_inherited.__name__}"
    assert load_class(name)({"env_vars": {"MORE": "1"}}) == {"env_vars": {"MORE": "1"}}


def test_ports_differ_between_projects_and_flower_homes() -> None:
    ports = {
        startup.defaults(project, {"FLWR_HOME": home})[PORT]
        for project in ("/a", "/b")
        for home in ("/h", "/i")
    }
    assert len(ports) == 4
    assert all(20000 <= int(port) < 32000 for port in ports)


def test_nodes_share_the_cores() -> None:
    cores = environment.num_cores()
    assert environment.node_resources(1)["client-resources-num-cpus"] == cores
    assert environment.node_resources(cores * 5)["client-resources-num-cpus"] == 1


def test_gpus_are_counted_as_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown, number in (
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("1", 1),
        ("0,1", 2),
        ("0,3", 2),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert environment.num_gpus() == number


def test_nodes_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    shares = {n: environment.node_resources(n) for n in (2, 3, 4, 8, 12)}
    gpus = {n: s["client-resources-num-gpus"] for n, s in shares.items()}
    assert gpus == {2: 1.0, 3: 1.0, 4: 1.0, 8: 0.5, 12: 0.3333}


def test_the_project_is_found_from_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    project = environment.find_project()
    monkeypatch.chdir(project / "tests")
    assert environment.find_project() == project
    monkeypatch.chdir("/")
    assert environment.find_project() == project  # from the code's own place
