"""Keys and certificates of a federation: its own authority, the server's, the nodes'.

TLS shows nodes and operators that the server is the one they mean; a node's key shows
the server that the node is one the operator has registered. Private files are readable
by their owner alone. Elliptic curve P-384 throughout, as Flower needs of nodes' keys.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_app.config import ConfigError

AUTHORITY, SERVER = "ca", "server"
LOCAL = ("localhost", "127.0.0.1")
"""In every server's certificate: Flower's SuperLink calls itself by these."""

_HOST_NAME = re.compile(
    r"(?i)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
_AUTHORITY_DAYS = 3650

PrivateKey = ec.EllipticCurvePrivateKey


def make(
    folder: Path, *, hosts: Sequence[str], nodes: Sequence[str], days: int
) -> list[Path]:
    """Make what is asked for; return the files written.

    The authority (ca.key, ca.crt) is made where there is none yet, and else signs anew.

    Args:
        folder: where the files go; made if need be.
        hosts: names and addresses under which nodes and operators reach the server;
            none makes no server certificate.
        nodes: names of nodes, each given NAME.key and NAME.pub.
        days: how long the server's certificate is valid; the authority is ten years.

    Raises:
        ConfigError: a file is there already, or a name is no file's name.
    """
    wanted = [*(["server.key", "server.crt"] if hosts else [])]
    for node in nodes:
        if not node.replace("-", "").replace("_", "").isalnum() or node in (
            AUTHORITY,
            SERVER,
        ):
            raise ConfigError(
                f"--node {node!r} is no name for a node: letters, digits, - and _"
            )
        wanted += [f"{node}.key", f"{node}.pub"]
    for name in wanted:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} is there already: remove it first if it is to be "
                "replaced; whoever relies on it must then get the new one"
            )
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *LOCAL))]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / ".gitignore").write_text("*\n")  # private keys are never committed
    written: list[Path] = []
    authority = _authority(folder, written)
    if datetime.now(UTC) + timedelta(days=days) > authority[1].not_valid_after_utc:
        raise ConfigError(
            f"--days {days} is beyond the authority's own end, "
            f"{authority[1].not_valid_after_utc:%Y-%m-%d}: choose fewer"
        )
    if hosts:
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = _server_certificate(authority, key, hosts[0], names, days)
        written += [
            _write(folder / "server.key", _pem(key), private=True),
            _write(folder / "server.crt", certificate),
        ]
    for node in nodes:
        key = ec.generate_private_key(ec.SECP384R1())
        written += [
            _write(folder / f"{node}.key", _openssh(key), private=True),
            _write(folder / f"{node}.pub", _openssh_public(key)),
        ]
    return written


def _authority(
    folder: Path, written: list[Path]
) -> tuple[PrivateKey, x509.Certificate]:
    """Return the folder's authority; make it where there is none."""
    key_path, path = folder / "ca.key", folder / "ca.crt"
    if key_path.exists() and path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(key, PrivateKey):
            raise ConfigError(
                f"{key_path} is no elliptic-curve key: use another folder"
            )
        return key, x509.load_pem_x509_certificate(path.read_bytes())
    if key_path.exists() or path.exists():
        raise ConfigError(
            f"{folder} has one of ca.key and ca.crt, not both: an authority's key is "
            "needed to sign; keep both together"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fl-app authority")
    certificate = (
        _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_key_id(key), critical=False)
        .sign(key, hashes.SHA384())
    )
    written += [
        _write(key_path, _pem(key), private=True),
        _write(path, certificate.public_bytes(serialization.Encoding.PEM)),
    ]
    return key, certificate


def _server_certificate(
    authority: tuple[PrivateKey, x509.Certificate],
    key: PrivateKey,
    host: str,
    names: Sequence[x509.GeneralName],
    days: int,
) -> bytes:
    signer, issuer = authority
    certificate = (
        _builder(_name(host), issuer.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(_key_id(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ a little
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: PrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    """Return a host as certificates name it.

    Raises:
        ConfigError: it is neither an address nor a name.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST_NAME.fullmatch(host) or len(host) > 253:
        raise ConfigError(
            f"--server {host!r} is no host: give a name (fl.example.org) or an address "
            "(10.0.0.1), without scheme and port"
        )
    return x509.DNSName(host)


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _openssh(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _openssh_public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


def _write(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a new file; a private one is never readable by others, not for a moment."""
    mode = 0o600 if private else 0o644
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content if content.endswith(b"\n") else content + b"\n")
    return path
