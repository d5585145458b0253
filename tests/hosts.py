"""Machines of their own on this one: each with its network, processes and file system.

A host is a set of Linux namespaces. Its file system is this machine's with a layer of
its own on top, so that what is written there, also to /etc and /opt, stays there, and
all of it is gone with the host. Needs root, and overlay file systems.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import PROJECT

APP = "/opt/fl-app"
_UNSHARE = ["unshare", "--mount", "--propagation", "private", "--net"]
_START = """
set -e
mount -t tmpfs none {own}
mkdir {own}/upper {own}/work {own}/root {own}/app {own}/app-work
mount -t overlay none -o lowerdir=/,upperdir={own}/upper,workdir={own}/work {root}
mkdir -p {root}{app}
mount -t overlay none \
    -o lowerdir={project},upperdir={own}/app,workdir={own}/app-work {root}{app}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount --rbind /sys {root}/sys
{binds}
chmod a+x {root}/root {home}
ip link set lo up
touch {own}/ready
exec sleep infinity
"""


def available() -> bool:
    """Whether this machine can have hosts."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    probe = "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay"
    probe += " none -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    return not subprocess.run([*_UNSHARE, "sh", "-c", probe], check=False).returncode


class Host:
    """One machine; commands run in the project's folder, its environment active."""

    def __init__(self, name: str, own: Path, binds: Mapping[str, Path]) -> None:
        self.name = name
        self._root = own / "root"
        own.mkdir(parents=True)
        lines = []
        for inside, folder in binds.items():
            lines.append(f"mkdir -p {self._root}{inside}")
            lines.append(f"mount --bind {folder} {self._root}{inside}")
        script = _START.format(
            own=own,
            root=self._root,
            app=APP,
            project=PROJECT,
            home=f"{self._root}{Path.home()}",
            binds="\n".join(lines),
        )
        self._holder = subprocess.Popen(
            [*_UNSHARE, "--pid", "--fork", "--kill-child", "sh", "-c", script]
        )
        deadline = time.monotonic() + 20
        while not self._started(own):
            assert self._holder.poll() is None, f"{name} did not start"
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.05)

    def _started(self, own: Path) -> bool:
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        found = children.read_text().split()
        if not found:
            return False
        self.pid = int(found[0])
        return Path(f"/proc/{self.pid}/root{own}/ready").exists()

    def command(self, line: str, user: str = "root") -> list[str]:
        """Return what runs a shell's line on this host."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "chroot"]
        home = "/root" if user == "root" else "/var/lib/fl-app"
        clean = [
            "env",
            "-i",
            f"HOME={home}",
            f"PATH={os.environ['PATH']}",
            "LANG=C.UTF-8",
        ]
        switch = (
            [] if user == "root" else ["setpriv", f"--reuid={user}", "--clear-groups"]
        )
        active = f"set -e; cd {APP}; . .venv/bin/activate; {line}"
        return [*enter, str(self._root), *clean, *switch, "bash", "-c", active]

    def try_(self, line: str, timeout: float = 60) -> tuple[int, str]:
        """Run a line; return its exit status and all it said."""
        done = subprocess.run(
            self.command(line),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout

    def do(self, line: str, timeout: float = 60) -> str:
        """Run a line that must succeed; return what it said."""
        status, said = self.try_(line, timeout)
        assert status == 0, f"{self.name}: {line}\n{said}"
        return said

    def start(self, line: str, user: str = "root") -> "subprocess.Popen[str]":
        """Start a line; it is ended with the host."""
        return subprocess.Popen(
            self.command(line, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def path(self, inside: str) -> Path:
        """Return where this machine sees a file of the host."""
        return Path(f"/proc/{self.pid}/root{self._root}{inside}")

    def stop(self) -> None:
        """End everything on the host; its files are gone with it."""
        self._holder.kill()
        self._holder.wait()


@contextmanager
def network(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    binds: Mapping[str, Mapping[str, Path]] | None = None,
) -> Iterator[dict[str, Host]]:
    """Hosts on one network that know each other by name.

    Args:
        folder: an empty one, to work in.
        names: per host, the names by which the others know it.
        binds: per host and path on it, the folder of this machine that is there.
    """
    started: list[Host] = []
    switch = subprocess.Popen(
        [*_UNSHARE, "sh", "-c", "ip link add bridge type bridge && "
         "ip link set bridge up && exec sleep infinity"],
    )  # fmt: skip
    try:
        book = "127.0.0.1 localhost\n" + "".join(
            f"10.77.0.{i} {' '.join((name, *others))}\n"
            for i, (name, others) in enumerate(names.items(), start=1)
        )
        for i, name in enumerate(names, start=1):
            host = Host(name, folder / name, (binds or {}).get(name, {}))
            started.append(host)
            host.path("/etc/hosts").write_text(book)
            _plug(host, switch.pid, i)
        yield {host.name: host for host in started}
    finally:
        for host in started:
            host.stop()
        switch.kill()
        switch.wait()


def _plug(host: Host, switch: int, number: int) -> None:
    """Lay a cable from the host to the switch."""

    def at(pid: int, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-n", *command], check=True)

    peer = ("peer", "name", "eth0", "netns", str(host.pid))
    port = f"port{number}"
    at(switch, "ip", "link", "add", port, "type", "veth", *peer)
    at(switch, "ip", "link", "set", port, "master", "bridge", "up")
    at(host.pid, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
    at(host.pid, "ip", "link", "set", "eth0", "up")
