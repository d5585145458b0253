"""Keys and certificates are what TLS and Flower take, and private ones are private."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)

from fl_app import certificates
from fl_app.config import ConfigError


def make(folder: Path, hosts: list[str], nodes: list[str], days: int = 30) -> list[str]:
    made = certificates.make(folder, hosts=hosts, nodes=nodes, days=days)
    return [path.name for path in made]


def test_private_files_are_the_owners_alone(tmp_path: Path) -> None:
    names = make(tmp_path / "new", ["server.lan"], ["hospital-a"])
    assert names == [
        "ca.key",
        "ca.crt",
        "server.key",
        "server.crt",
        "hospital-a.key",
        "hospital-a.pub",
    ]
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "new").iterdir()}
    assert {n for n, mode in modes.items() if mode == 0o600} == {
        name for name in names if name.endswith(".key")
    }
    assert modes["ca.crt"] == 0o644


def test_the_servers_certificate_names_its_hosts(tmp_path: Path) -> None:
    make(tmp_path, ["fl.example.org", "10.0.0.5"], [])
    content = (tmp_path / "server.crt").read_bytes()
    names = x509.load_pem_x509_certificate(content).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == [
        "fl.example.org",
        "localhost",
    ]
    addresses = names.value.get_values_for_type(x509.IPAddress)
    assert [str(a) for a in addresses] == ["10.0.0.5", "127.0.0.1"]


def handshake(server: Path, trusted: Path, host: str) -> None:
    """Do a TLS handshake over a socket pair; raise what the client raises."""
    here, there = socket.socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.crt", server / "server.key")

    def serve() -> None:
        try:
            serving.wrap_socket(there, server_side=True).close()
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        trusting = ssl.create_default_context(cafile=str(trusted / "ca.crt"))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
        with trusting.wrap_socket(here, server_hostname=host):
            pass
    finally:
        here.close()
        thread.join()


def test_who_trusts_the_authority_trusts_the_server(tmp_path: Path) -> None:
    make(tmp_path / "ours", ["fl.example.org"], [])
    make(tmp_path / "theirs", ["fl.example.org"], [])
    handshake(tmp_path / "ours", tmp_path / "ours", "fl.example.org")
    handshake(tmp_path / "ours", tmp_path / "ours", "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tmp_path / "ours", tmp_path / "theirs", "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path / "ours", tmp_path / "ours", "other.example.org")


def test_a_later_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path, [], ["a"])
    assert make(tmp_path, ["late.lan"], ["b"]) == [
        "server.key",
        "server.crt",
        "b.key",
        "b.pub",
    ]
    handshake(tmp_path, tmp_path, "late.lan")


def test_a_nodes_keys_belong_together(tmp_path: Path) -> None:
    make(tmp_path, [], ["a"])
    private = load_ssh_private_key((tmp_path / "a.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "a.pub").read_bytes())
    assert private.public_key() == public


def test_nothing_is_replaced(tmp_path: Path) -> None:
    make(tmp_path, ["one.lan"], ["a"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for hosts, nodes in ((["two.lan"], []), ([], ["b", "a"])):
        with pytest.raises(ConfigError, match="is there already"):
            make(tmp_path, hosts, nodes)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="not both"):
        make(tmp_path, [], ["c"])
    del before["ca.crt"]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "host", ["", "srv.lan:9092", "https://srv.lan", "a b", "-x.org", "m\u00fcnchen.de"]
)
def test_a_host_must_be_one(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="is no host"):
        make(tmp_path / "new", [host], [])
    assert not (tmp_path / "new").exists()


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beyond the authority's own end"):
        make(tmp_path, ["srv.lan"], [], days=4000)


@pytest.mark.parametrize("name", ["", "../a", "a b", "ca", "server", "a/b"])
def test_a_name_must_be_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a node"):
        make(tmp_path / "new", [], [name])
    assert not (tmp_path / "new").exists()
