"""docs/deployment.md and compose.yaml, command for command, on hosts of their own.

What the files say is what is run; only `systemctl`, `sudo` and the container engine are
stand-ins (`tests/systemctl.py`, `tests/hosts.py`).
"""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_app.artifacts import RunFolder
from tests import hosts, systemctl
from tests.conftest import PROJECT, default_options
from tests.hosts import APP, Host
from tests.pictures import write_digits
from tests.test_run import run, serve, sha

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(
        not hosts.available(), reason="needs root, namespaces and overlay file systems"
    ),
]

GUIDE = PROJECT / "docs" / "deployment.md"
SERVER = "fl.example.org"


def blocks(heading: str) -> list[str]:
    """Return the shell blocks below a heading of the guide."""
    text = GUIDE.read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)


def words(line: str) -> list[str]:
    return shlex.split(line.replace("\\\n", " "))


def test_the_units_start_what_the_guide_shows() -> None:
    folder = PROJECT / "deploy" / "systemd"
    superlink = systemctl.parse("fl-app-superlink", folder)
    shown = words(blocks("2. The server")[1])
    assert [Path(w).name if i == 0 else w for i, w in enumerate(
        systemctl.command(superlink, {})
    )] == shown  # fmt: skip
    (written,) = re.findall(
        r"north\.env <<'END'\n(.*?)END\n", blocks("4. The nodes")[1], flags=re.DOTALL
    )
    lines = [shlex.split(line)[0] for line in written.splitlines()]
    variables = dict(line.split("=", 1) for line in lines)
    node = systemctl.parse("fl-app-supernode@north", folder)
    command = systemctl.command(node, variables)
    shown = words(blocks("4. The nodes")[2])
    assert [Path(command[0]).name, *command[1:]] == shown


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in (PROJECT / "deploy" / "systemd").iterdir():
        here = path.read_text().replace("User=fl-app", "User=root")
        here = here.replace("/opt/fl-app/.venv", f"{PROJECT}/.venv")
        (tmp_path / path.name.replace("@", "@north")).write_text(here)
    units = [str(path) for path in tmp_path.iterdir()]
    try:
        done = subprocess.run(
            ["systemd-analyze", "verify", *units],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as images: a folder for each node, one for the server's test."""
    root = tmp_path_factory.mktemp("images")
    write_digits(root, ("north", "south", "test"))
    return root


def outfit(host: Host) -> None:
    """Give a host what its real twin has: sudo, systemctl, and the project set up."""
    sudo = host.path("/usr/local/bin/sudo")
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    stand_in = host.path("/usr/local/bin/systemctl")
    stand_in.write_text(f"#!{PROJECT}/.venv/bin/python\n" + (
        PROJECT / "tests" / "systemctl.py"
    ).read_text())  # fmt: skip
    for path in (sudo, stand_in):
        path.chmod(0o755)
    host.do(".venv/bin/fl-app setup")


def send(source: Host, target: Host, *names: str) -> None:
    """Carry files of `certificates/` from one host to another."""
    folder = target.path(f"{APP}/certificates")
    folder.mkdir(exist_ok=True)
    for name in names:
        content = source.path(f"{APP}/certificates/{name}").read_bytes()
        (folder / name).write_bytes(content)


@pytest.fixture
def site(tmp_path: Path, images: Path) -> Iterator[dict[str, Host]]:
    names = {"authority": [], "server": [SERVER], "north": [], "south": []}
    binds = {
        "server": {"/srv/test": images / "test"},
        "north": {"/srv/images": images / "north"},
        "south": {"/srv/images": images / "south"},
    }
    with hosts.network(tmp_path / "hosts", names, binds) as there:
        for host in there.values():
            outfit(host)
        yield there


def test_the_guide(tmp_path: Path, images: Path, site: dict[str, Host]) -> None:
    authority, server = site["authority"], site["server"]
    north, south = site["north"], site["south"]
    if not server.path("/usr/sbin/nginx").exists():
        pytest.skip("nginx is not installed")

    (make,) = blocks("1. Keys and certificates")
    authority.do(make)
    send(
        authority,
        server,
        "ca.crt",
        "server.key",
        "server.crt",
        "north.pub",
        "south.pub",
    )
    send(authority, north, "ca.crt", "north.key")
    send(authority, south, "ca.crt", "south.key")

    server.do(blocks("2. The server")[0])
    connect, register = blocks("3. The operator")
    server.do(connect)
    wait(lambda: server.try_("flwr supernode list deployment")[0] == 0)
    server.do(register)

    look, start, _ = blocks("4. The nodes")
    for host in (north, south):
        said = host.do(look.replace("north", host.name))
        assert "its Control API is closed to this machine" in said
        host.do(start.replace("north", host.name))
    wait(lambda: server.do("flwr supernode list deployment").count("online") == 2)
    wrong = refusals(authority, north)
    assert not wrong, "\n".join(wrong)

    first, second = blocks("5. A run")[0].strip().splitlines()
    first = first.replace("min-nodes", 'test-path="/srv/test" min-nodes')
    assert "num-server-rounds=20 " in first
    assert "num-server-rounds=30'" in second
    server.do(first.replace("=20 ", "=2 "), timeout=200)
    results = server.path(f"{APP}/results/first")
    assert results.joinpath("summary.json").exists(), server.do("flwr ls deployment")
    server.do(second.replace("=30'", "=3'"), timeout=200)
    assert results.joinpath("metrics.jsonl").read_text().count("\n") == 4

    twin = run(
        tmp_path, dataset=str(images), partitioner="folders", num_server_rounds=3,
        num_clients="auto", model="auto", local_epochs="auto",
    )  # fmt: skip
    ours = yaml.safe_load(results.joinpath("summary.json").read_text())
    theirs = twin.summary()
    assert theirs is not None
    assert ours["model_sha256"] == theirs["model_sha256"]
    clients = results.joinpath("clients.jsonl").read_text()
    assert '"name": "north"' in clients
    assert '"name": "south"' in clients


def wait(ready: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def refusals(authority: Host, node: Host) -> list[str]:
    """Try what must be refused, from a node's address; return what was not."""
    wrong = []
    door = f"{SERVER}:9092"
    ca = "certificates/ca.crt"
    node.do(f"fl-app setup --server {door} --root-certificates {ca}")
    authority.do("fl-app certificates --node stranger")
    send(authority, node, "stranger.key", "stranger.pub")
    for line in (
        "flwr run . deployment",
        "flwr stop 1 deployment",
        "flwr ls deployment",
        "flwr supernode list deployment",
        "flwr supernode register certificates/stranger.pub deployment --name stranger",
    ):
        status, said = node.try_(line)
        if status == 0:
            wrong.append(f"{line}: {said}")

    node.do("fl-app certificates --folder /root/other --server x --node stranger")
    base = f"timeout 30 flower-supernode --superlink {door} --port 9095"
    key = "--auth-supernode-private-key certificates/stranger.key"
    for line, reason in (
        (f"{base} --root-certificates {ca} {key}", "Failed to activate SuperNode"),
        (f"{base} --root-certificates {ca}", "403 Forbidden"),
        (f"{base} --root-certificates /root/other/ca.crt {key}", "VERIFY_FAILED"),
    ):
        status, said = node.try_(line)
        if status == 0 or reason not in said:
            wrong.append(f"{line}: {said}")

    doctor = "fl-app doctor --server"
    for line, reason in (
        (
            f"{doctor} {door} --root-certificates /root/other/ca.crt",
            "another authority",
        ),
        (f"{doctor} {SERVER}:9093", "refuses connections"),
        (f"{doctor} {SERVER}:80", "refuses connections"),
    ):
        status, said = node.try_(line)
        if status == 0 or reason not in said:
            wrong.append(f"{line}: {said}")
    status, said = node.try_(
        f"timeout 15 flower-supernode --insecure --superlink {door}"
    )
    if status == 0 or "online" in said.lower():
        wrong.append(f"plain text: {said}")
    return wrong


class Compose:
    """Runs compose.yaml's services on hosts, as an engine would in containers."""

    def __init__(self, folder: Path) -> None:
        self.services = yaml.safe_load((PROJECT / "compose.yaml").read_text())[
            "services"
        ]
        self.volumes = folder / "volumes"
        self.binds: dict[str, dict[str, Path]] = {}
        for name, service in self.services.items():
            self.binds[name] = {}
            for volume in service.get("volumes", []):
                kept, inside = volume.split(":")[:2]
                path = self.volumes / kept
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(0o777)
                self.binds[name][inside] = path

    def line(self, name: str) -> str:
        return shlex.join(self.services[name]["command"]).replace("$$", "$")


def test_compose(tmp_path: Path) -> None:
    compose = Compose(tmp_path)
    names: dict[str, list[str]] = {name: [] for name in compose.services}
    with hosts.network(tmp_path / "hosts", names, compose.binds) as there:
        for host in there.values():
            host.do(".venv/bin/fl-app setup")
        there["keys"].do(compose.line("keys"))
        before = there["keys"].do("ls certificates")
        there["keys"].do(compose.line("keys"))  # as at the next start
        assert there["keys"].do("ls certificates") == before
        superlink = there["superlink"]
        superlink.start(compose.line("superlink"))
        health = shlex.join(compose.services["superlink"]["healthcheck"]["test"][1:])
        wait(lambda: superlink.try_(health)[0] == 0)
        there["register"].do(compose.line("register"))
        assert "already in use" in there["register"].do(compose.line("register"))
        for name in ("north", "south"):
            there[name].start(compose.line(name))
        wait(
            lambda: superlink.do("flwr supernode list deployment").count("online") == 2
        )
        (said,) = [b for b in blocks("Containers") if "exec superlink" in b]
        (line,) = re.findall(r"exec superlink (.*)", said)
        superlink.do(
            line.replace("run-name", "min-nodes=2 num-server-rounds=2 run-name"), 200
        )
        service = there["service"]
        served = service.start(compose.line("service"))
        health = shlex.join(compose.services["service"]["healthcheck"]["test"][1:])
        wait(lambda: service.try_(health)[0] == 0)
        assert served.stdout is not None
        found = (re.match(r"token +(\S+)", line) for line in served.stdout)
        token = next(match[1] for match in found if match)
        ask = f"curl -sS -H 'Authorization: Bearer {token}' http://127.0.0.1:8000"
        options = {"num-server-rounds": 2, "min-nodes": 2, "run-name": "asked-for"}
        body = f"-H 'Content-Type: application/json' -d '{json.dumps(options)}'"
        assert json.loads(service.do(f"{ask}/train {body}"))["status"] == "queued"
        wait(
            lambda: (
                json.loads(service.do(f"{ask}/runs/asked-for"))["status"]
                in ("finished", "failed", "stopped")
            ),
            150,
        )
        told = json.loads(service.do(f"{ask}/runs/asked-for"))
        assert told["status"] == "finished", told
        assert told["summary"]["rounds"] == 2
        assert "401" in service.do("curl -sSi http://127.0.0.1:8000/runs")
    assert (compose.volumes / "results" / "first" / "summary.json").exists()


def test_the_image_has_what_it_copies() -> None:
    text = (PROJECT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (PROJECT / source).exists(), line
    ignored = (PROJECT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert f"!{source.split('/')[0]}\n" in ignored, source


def test_a_ray_cluster_of_two_machines(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "performance.md").read_text()
    _, found, text = page.partition("## More than one machine")
    assert found
    head, other, start = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    shared = tmp_path / "shared"
    shared.mkdir()
    binds = {name: {"/shared": shared} for name in ("first", "second")}
    names = {"first": ["first.example.org"], "second": []}
    address = "--num-cpus 1 --node-ip-address 10.77.0."  # no way out: Ray finds none
    with hosts.network(tmp_path / "hosts", names, binds) as there:
        first, second = there["first"], there["second"]
        for host in there.values():
            host.do(".venv/bin/fl-app setup")
        first.do(head.strip() + f" {address}1", timeout=120)
        cached = "/root/cache-of-second"
        start_ray = f"export FL_APP_CACHE={cached}; {other.strip()} {address}2"
        second.do(start_ray, timeout=120)
        first.do(start.replace("-c '", "-c 'num-server-rounds=3 "), timeout=300)
        assert "digits" in second.do(f"ls {cached}")  # where a node has read them
        found = first.path(f"{APP}/results/cluster/summary.json").read_text()
    options = {"run-name": "twin", "results-dir": str(tmp_path), "num-server-rounds": 3}
    serve(default_options() | options)
    assert json.loads(found)["model_sha256"] == sha(RunFolder(tmp_path / "twin"))
