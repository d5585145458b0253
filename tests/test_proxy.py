"""The closed door: behind the shipped nginx configuration, nodes work and none else."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fl_app import certificates, network
from fl_app.submission import Connection
from tests.conftest import PROJECT

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[network.Network]:
    """A SuperLink, and nginx before it; `port` is nginx's."""
    net = network.Network(tmp_path, PROJECT)
    certificates.make(tmp_path, hosts=["127.0.0.1"], nodes=["node0"], days=1)
    try:
        net.start_superlink()
        inner, outer = net.port, network.free_port()
        shipped = (PROJECT / "deploy" / "nginx.conf").read_text()
        for placeholder, here in (
            ("127.0.0.1:9093;", f"127.0.0.1:{inner};"),
            ("listen 9092 ssl", f"listen 127.0.0.1:{outer} ssl"),
            ("/etc/fl-app", str(tmp_path)),
        ):
            assert placeholder in shipped
            shipped = shipped.replace(placeholder, here)
        conf = tmp_path / "nginx.conf"
        conf.write_text(f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\n{shipped}")
        proxy = subprocess.Popen(
            ["nginx", "-p", str(tmp_path), "-c", str(conf), "-g", "daemon off;"],
            stdin=subprocess.DEVNULL,
        )
        try:
            Connection.to(f"127.0.0.1:{inner}", tmp_path / "ca.crt").register(
                tmp_path / "node0.pub", "node0"
            )
            net.inner_port, net.port = inner, outer  # type: ignore[attr-defined]
            yield net
        finally:
            proxy.terminate()
            proxy.wait()
    finally:
        net.stop()


def test_a_node_takes_part_through_the_proxy_and_rules_nothing(
    behind_proxy: network.Network, tmp_path: Path
) -> None:
    inner = behind_proxy.inner_port  # type: ignore[attr-defined]
    operator = Connection.to(f"127.0.0.1:{inner}", tmp_path / "ca.crt")
    node = behind_proxy.start_supernode("node0", {"partition-id": 0})
    behind_proxy.wait_online(operator, [node])
    options = {
        "model": "logistic",
        "num-server-rounds": 1,
        "local-epochs": 1,
        "run-name": "proxied",
        "results-dir": str(tmp_path / "results"),
    }
    run_id = operator.start(PROJECT, options, {})

    intruder = Connection.to(f"127.0.0.1:{behind_proxy.port}", tmp_path / "ca.crt")
    with pytest.raises(click.ClickException):
        intruder.start(PROJECT, options | {"run-name": "smuggled"}, {})
    with pytest.raises(click.ClickException):
        intruder.stop(run_id)
    certificates.make(tmp_path, hosts=[], nodes=["smuggler"], days=1)
    with pytest.raises(click.ClickException):
        intruder.register(tmp_path / "smuggler.pub", "smuggler")
    with pytest.raises(click.ClickException):
        intruder.status(run_id)

    deadline = time.monotonic() + 180
    while not (status := operator.status(run_id)).finished:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert status.completed, status.details
    assert (tmp_path / "results" / "proxied" / "summary.json").exists()
    assert not (tmp_path / "results" / "smuggled").exists()


def test_a_node_without_a_registered_key_is_turned_away(
    behind_proxy: network.Network, tmp_path: Path
) -> None:
    certificates.make(tmp_path, hosts=[], nodes=["stranger"], days=1)
    stranger = behind_proxy.start_supernode("stranger", {"partition-id": 0})
    assert stranger.popen.wait(timeout=60) != 0
    assert "Failed to activate SuperNode" in stranger.log.read_text()
